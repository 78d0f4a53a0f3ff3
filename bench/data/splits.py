"""The split into fit, dev and test: a hash of the text alone decides."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from methods.errors import SetupError

Part = Literal["fit", "dev", "test"]
PARTS: dict[str, tuple[float, float]] = {"fit": (0.0, 0.45), "dev": (0.45, 0.60), "test": (0.60, 1.0)}


class Prompt(NamedTuple):
    """A prompt. id: 12 hex digits of the sha256 of its text. group: results are also averaged per group; "": none."""

    id: str
    text: str
    group: str = ""


def prompt(text: str, group: str = "") -> Prompt:
    """Return the prompt of this text."""
    return Prompt(_digest(text)[:12], text, group)


def part(text: str) -> Part:
    """Return which part a prompt belongs to: 45% fit, 15% dev, 40% test, by a hash of its text without outer blanks.

    The text alone decides, so a prompt that several sources have is in the same part everywhere.
    """
    place = int(_digest(text)[-16:], 16) / 16**16  # in [0, 1)
    for name, (low, high) in PARTS.items():
        if low <= place < high:
            return name  # type: ignore[return-value]
    raise AssertionError(place)


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def part_of(
    prompts: Sequence[Prompt], split: Literal["dev", "test"], count: int | None, dev_count: int, option: str
) -> list[Prompt]:
    """Return the prompts of a split: for test the first `count` (None: all), for dev the last `dev_count`.

    The dev prompts are taken only from those that are not in the test split.

    prompts: in the order of a hash, so that a larger test split contains a smaller one. option: names `count` in the
    message. Raises SetupError if there are too few.
    """
    if split == "test":
        if count is not None and count > len(prompts):
            raise SetupError(f"{option}={count}: there are {len(prompts)}; ask for fewer, or set null for all")
        return list(prompts[:count])
    others = prompts[len(prompts) if count is None else count :]
    if len(others) < dev_count:
        most = len(prompts) - dev_count
        told = f"set {option} to at most {most}" if most > 0 else "ask for fewer on the dev split"
        raise SetupError(
            f"{option}={'null' if count is None else count}: the test split takes {len(prompts) - len(others)} of "
            f"{len(prompts)}, and the dev split needs {dev_count} others; {told}"
        )
    return list(others[-dev_count:])


def by_group(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Return the prompts of each group, in their order."""
    groups: dict[str, list[Prompt]] = {}
    for one in prompts:
        groups.setdefault(one.group, []).append(one)
    return groups


def rank(text: str) -> str:
    """Return the hash of a text without outer blanks, by which sets are ordered."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


class Learnt(NamedTuple):
    """The texts that a method has learnt from, which no suite may ask.

    tasks: lm-eval's tasks whose documents for fitting it has seen (`lm_eval_tasks.is_for_fitting`). rtp: whether it has
    seen prompts of the fit part of RealToxicityPrompts. wiki: how many sentences of Wikipedia it has seen, which are
    the first of `text_sets.wiki_sentences`. sets: other data sets that it has seen, as (name, split); a file as
    ("file", sha256).
    """

    tasks: Sequence[str] = ()
    rtp: bool = False
    wiki: int = 0
    sets: Sequence[tuple[str, str]] = ()
