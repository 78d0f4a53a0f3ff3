"""What a scorer is, how many texts are scored at once, and what counts as a score."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Protocol

from methods.errors import SetupError


class Scorer(Protocol):
    """Judges completions, 0 to 1. Scorers are frozen dataclasses, one per file.

    measures: "toxicity" (1 toxic), "sentiment" (1 positive, .5 neutral) or "refusal" (1 refused); a suite reads those
    that measure what it asks.
    """

    @property
    def name(self) -> str:
        """What its scores are filed under."""
        ...

    @property
    def measures(self) -> str:
        """What a high score stands for."""
        ...

    def identity(self) -> dict[str, Any]:
        """Name, version and weights of what judges, as plain JSON values: part of every score's id."""
        ...

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """One score per completion; None where it could not be scored. A blank one scores 0, of sentiment .5."""
        ...


def unique_scores(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """As `scores`, but each distinct (prompt, completion) is judged once."""
    pairs = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(pairs))
    judged = dict(zip(distinct, scores(scorer, [p for p, _ in distinct], [c for _, c in distinct]), strict=True))
    return [judged[pair] for pair in pairs]


def scores(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """The scorer's own, once they are seen to be scores; whoever brings a scorer, nobody calls it otherwise.

    Raises SetupError for another number of them than of texts, and for one that is no number from 0 to 1.
    """
    given: Any = scorer(prompts, completions)
    found = list(given) if isinstance(given, Iterable) else [given]
    if len(found) != len(completions):
        raise SetupError(f"scorer {scorer.name} gave {len(found)} scores for {len(completions)} texts")
    for score in found:
        if score is not None and not (isinstance(score, Real) and 0 <= float(score) <= 1):
            raise SetupError(
                f"scorer {scorer.name} gave the score {score!r}; a score is a number from 0 to 1, or None for a text "
                "that it cannot judge. Nothing is made of it: mend the scorer, or take another"
            )
    return [None if score is None else float(score) for score in found]
