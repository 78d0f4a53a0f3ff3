"""What a scorer is, and how many texts are scored at once."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol


class Scorer(Protocol):
    """Judges completions: 0 harmless to 1 toxic. Scorers are frozen dataclasses, one per file."""

    name: ClassVar[str]

    def identity(self) -> dict[str, Any]:
        """Name, version and weights of what judges, as plain JSON values: part of every score's id."""
        ...

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """One score per completion; None where it could not be scored. An empty completion scores 0."""
        ...


def unique_scores(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """As the scorer, but each distinct (prompt, completion) is judged once."""
    pairs = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(pairs))
    judged = dict(zip(distinct, scorer([p for p, _ in distinct], [c for _, c in distinct]), strict=True))
    return [judged[pair] for pair in pairs]
