"""What a scorer is, and how many texts are scored at once."""

from collections.abc import Sequence
from typing import Any, Protocol


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
    """As the scorer, but each distinct (prompt, completion) is judged once."""
    pairs = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(pairs))
    judged = dict(zip(distinct, scorer([p for p, _ in distinct], [c for _, c in distinct]), strict=True))
    return [judged[pair] for pair in pairs]
