"""Readers of the sets that the behaviour suites ask: instructions that a model may refuse, and film reviews."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from bench.data.prompts import Prompt, prompt
from bench.data.sources import Located, Sources
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

    The order of the file is no part of it. Raises SetupError for a missing column and for a set without any text.
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


def loaded(
    sources: Sources, name: str, config: str | None, split: str, needed: Sequence[str]
) -> tuple[Located, list[dict[str, Any]]]:
    """The rows of a split, at least one, each with the needed columns. Raises SetupError where it is not so."""
    found = sources.locate(name, config, split)
    table = sources.load(name, config, split)
    columns, rows = table.column_names, [dict(row) for row in table]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise SetupError(f"{found} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    if not rows:
        raise SetupError(f"{found} has no rows; give a whole copy")
    return found, rows


def part_of(
    prompts: Sequence[Prompt], split: Literal["dev", "test"], count: int | None, dev_count: int, option: str
) -> list[Prompt]:
    """Of prompts in the order of a hash: the first `count` for test, None for all; for dev the last of the others.

    So a larger count contains a smaller one. Raises SetupError where there are too few.
    """
    if split == "test":
        if count is not None and count > len(prompts):
            raise SetupError(f"{option}={count}: there are {len(prompts)}; ask for fewer, or set null for all")
        return list(prompts[:count])
    others = prompts[len(prompts) if count is None else count :]
    if len(others) < dev_count:
        raise SetupError(
            f"the dev split needs {dev_count} of {len(prompts)} besides those of the test split, which takes "
            f"{'all' if count is None else count}; lower {option}"
        )
    return list(others[-dev_count:])


def by_group(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of each group, in their order."""
    groups: dict[str, list[Prompt]] = {}
    for one in prompts:
        groups.setdefault(one.group, []).append(one)
    return groups


def rank(text: str) -> str:
    """Hash of a text without outer blanks, by which sets are ordered."""
    return hashlib.sha256(text.strip().encode()).hexdigest()
