"""Several scorers as one: the mean of what each of them says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from bench.records.identity import named
from bench.scorers.base import TEXTS, Fetched, Scorer, by_length
from bench.scorers.base import scores as scores_of
from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class MeanOf:
    """The mean of the parts' scores, each with the same weight; None if any part gives None.

    The mean of scorers that err on different texts usually errs less than each of them. Against Perspective's toxicity
    >= 0.5, profanity_check and toxic_comment have AUC .916 and .907 on 2,373 continuations of RealToxicityPrompts, and
    their mean has .938 (on the prompts: .948, .947 and .965). Both were trained on Jigsaw's comments, so their mean,
    too, misses toxicity of other kinds.

    A blank text scores the mean of what it scores with each part. name: the name under which its scores are stored; the
    same as its key in conf/scorer.
    """

    parts: Mapping[str, Scorer] = field(default_factory=dict)
    name: str = "mean_of"

    def __post_init__(self) -> None:
        """Raises SetupError for fewer than two parts, one that is not a scorer, and parts with different measures."""
        option = f"scorer.{self.name}.parts"
        if len(self.parts) < 2:
            raise SetupError(
                f"{option} names {', '.join(self.parts) or 'nothing'}; a mean needs two scorers or more: add one with "
                f"+scorer@{option}.second=lexicon"
            )
        if odd := [part for part, scorer in self.parts.items() if not hasattr(scorer, "measures")]:
            raise SetupError(f"{option}.{odd[0]} is not a scorer; choose one with +scorer@{option}.{odd[0]}=lexicon")
        measured = {part: scorer.measures for part, scorer in self.parts.items()}
        if len(set(measured.values())) > 1:
            told = ", ".join(f"{part} measures {what}" for part, what in measured.items())
            raise SetupError(f"{option}: {told}; allowed are scorers that measure the same: take out or replace one")

    @property
    def measures(self) -> str:
        """The property that all parts measure."""
        return next(iter(self.parts.values())).measures

    def identity(self) -> dict[str, Any]:
        """Return the identity of each part, in order, without the names that the config gives them."""
        return {"name": self.name, "version": 1, "parts": [named(part) for part in self.parts.values()]}

    def fetch(self) -> None:
        """Fetch what each part needs."""
        for part in self.parts.values():
            if isinstance(part, Fetched):
                part.fetch()

    def batches(self, completions: Sequence[str]) -> list[list[int]]:
        """Return batches of texts of similar length, for parts whose scores depend on the batch in their last bits."""
        return by_length(completions, TEXTS)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Return one score per completion. Raises SetupError for a part that gives something else than scores."""
        given = [scores_of(part, prompts, completions) for part in self.parts.values()]
        return [None if None in row else fmean(row) for row in zip(*given, strict=True)]  # type: ignore[arg-type]
