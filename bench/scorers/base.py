"""The protocol that every scorer implements, its batches, and what counts as a score."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from bench.records import unfinished
from bench.records.identity import digest, named
from methods.errors import SetupError

SHOWN = (
    "name", "version", "label", "activation", "measures", "max_tokens", "device", "dtype", "question", "yes", "no",
)  # fmt: skip
"""Parts of a scorer's identity that change how a network is asked or reported, and not the network."""
TEXTS = 256
"""Number of texts that a scorer gets at a time, unless it is `Batched`."""


class Scorer(Protocol):
    """Judges completions by scores from 0 to 1. Scorers are frozen dataclasses, one per file.

    measures: "toxicity" (1 toxic), "sentiment" (1 positive, .5 neutral), "refusal" (1 refused) or "topic" (1 about the
    topic); a suite uses the scorers that measure what it needs.

    A scorer whose scores depend in the last bits on the other texts of a batch is `Batched` as well.
    """

    @property
    def name(self) -> str:
        """The name of the scorer in records."""
        ...

    @property
    def measures(self) -> str:
        """The property that a high score means."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the scorer's name, version and weights, as plain JSON values; they are part of every score's id."""
        ...

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Return a score per completion; None if it could not be scored. A blank one scores 0, or .5 for sentiment."""
        ...


def networks(scorer: Scorer) -> tuple[str, ...]:
    """Return what a scorer judges by, as a digest; for a mean, the names of its parts and their digests.

    Two scorers that read the same network or word list have the same digest, even if their names or labels differ: such
    scorers are not independent.
    """
    if isinstance(scorer, Combined):
        found = {one for part in scorer.parts.values() for one in (part.name, *networks(part))}
        return tuple(sorted(found))
    own = {key: value for key, value in named(scorer).items() if key not in SHOWN}
    return (digest({"class": type(scorer).__qualname__} | own),)


@runtime_checkable
class Combined(Protocol):
    """A scorer that is computed from other scorers, which `parts` has by their names."""

    parts: Mapping[str, Scorer]


@runtime_checkable
class Batched(Protocol):
    """A scorer that says which texts it judges together."""

    def batches(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the numbers of the completions that are judged together, each in one list."""
        ...


@runtime_checkable
class Fetched(Protocol):
    """A scorer that needs files which may have to be fetched (`python -m bench.prefetch`)."""

    def fetch(self) -> None:
        """Fetch these files. Raises SetupError if that fails."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A scorer whose network judges by several labels; a result keeps the scores of all of them beside the score."""

    def by_label(self, completions: Sequence[str]) -> Mapping[str, list[float | None]]:
        """Return a score per completion for each label; None if it could not be scored."""
        ...


def unique_scores(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """Return the scores, judging each distinct (prompt, completion) once; finished batches are kept (`unfinished`)."""
    pairs = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(pairs))
    batches = scorer.batches if isinstance(scorer, Batched) else _in_turn
    plan = batches([completion for _, completion in distinct])
    if sorted(row for rows in plan for row in rows) != list(range(len(distinct))):
        raise SetupError(
            f"scorer {scorer.name}: its batches do not hold each of {len(distinct)} texts once; fix the scorer"
        )
    judged: dict[tuple[str, str], float | None] = {}
    with unfinished.batches(lambda: ["scores", named(scorer), distinct, plan], len(plan)) as kept:
        for number, rows in enumerate(plan):
            some = [distinct[row] for row in rows]
            judge = functools.partial(scores, scorer, [prompt for prompt, _ in some], [text for _, text in some])
            judged.update(zip(some, kept.once(number, judge), strict=True))
    return [judged[pair] for pair in pairs]


def judging_device(device: str | None, runtime_device: str) -> str:
    """Return the device of a scorer that is a model: its own, or the run's. The whole model is on one device."""
    from bench.model import devices

    return device or devices.single(runtime_device)


def _in_turn(completions: Sequence[str]) -> list[list[int]]:
    return [list(range(len(completions)))[start : start + TEXTS] for start in range(0, len(completions), TEXTS)]


def by_length(completions: Sequence[str], batch_size: int) -> list[list[int]]:
    """Return batches for a model that pads: numbers of all blank texts, then of the others, short ones first."""
    blank = [i for i, text in enumerate(completions) if not text.strip()]
    order = sorted((i for i, text in enumerate(completions) if text.strip()), key=lambda i: len(completions[i]))
    return ([blank] if blank else []) + [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def scores(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """Return the scorer's scores, after a check that they are scores. Scorers are only called through this function.

    Raises SetupError if there are more or fewer scores than texts, and for a score that is not a number from 0 to 1.
    """
    given: Any = scorer(prompts, completions)
    found = list(given) if isinstance(given, Iterable) else [given]
    if len(found) != len(completions):
        raise SetupError(f"scorer {scorer.name} gave {len(found)} scores for {len(completions)} texts; fix the scorer")
    for score in found:
        if score is not None and not (isinstance(score, Real) and 0 <= float(score) <= 1):
            raise SetupError(
                f"scorer {scorer.name} gave the score {score!r}; a score is a number from 0 to 1, or None for a text "
                "that it cannot judge. Fix the scorer, or take another"
            )
    return [None if score is None else float(score) for score in found]
