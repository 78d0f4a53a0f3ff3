"""A random sample of the pairs of a source, for curves over the number of pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data.splits import Learnt
from bench.fit_data.base import FitSource
from bench.model.lm import LM
from bench.records.identity import named
from methods.base import FEWEST_PAIRS, Pairs
from methods.errors import SetupError


@dataclass(frozen=True)
class Subset(FitSource):
    """`count` pairs of another source, drawn without replacement; with one seed, larger sets contain smaller ones."""

    source: FitSource
    count: int
    seed: int

    @property
    def name(self) -> str:  # type: ignore[override]  # the name of the pairs
        """The name of the source's pairs, which taking some does not change."""
        return self.source.name

    def identity(self) -> dict[str, Any]:
        """Return the recipe of the pairs, with the number and the seed."""
        return named(self.source) | {"subset": self.count, "subset_seed": self.seed}

    def check(self) -> None:
        """Raises SetupError if there are too few pairs to learn from, and for what the source refuses."""
        if self.count < FEWEST_PAIRS:
            raise SetupError(f"pairs.subset={self.count}: expected at least {FEWEST_PAIRS} pairs, or null for all")
        self.source.check()

    def load(self, lm: LM) -> tuple[Pairs, dict[str, Any]]:
        """Return the pairs in the source's order. Raises SetupError if the source has fewer."""
        pairs, about = self.source.load(lm)
        assert isinstance(pairs, Pairs)
        there = len(pairs.prompt)
        if there < self.count:
            raise SetupError(
                f"pairs.subset={self.count}, and {self.name} has {there} pairs; lower it, or raise pairs.prompts"
            )
        taken = sorted(np.random.default_rng([self.seed, there]).permutation(there)[: self.count].tolist())
        some = Pairs(*([column[i] for i in taken] for column in pairs))
        about = {key: fact for key, fact in about.items() if not key.endswith("_gap")}  # the gaps are of all pairs
        return some, about | {"pairs": self.count, "subset": {"seed": self.seed, "of": there}}

    def tokens(self) -> int:
        """Count the tokens that the source takes, since all of its pairs are made."""
        return self.source.tokens()

    def origin(self) -> FitSource:
        """Return the source whose pairs these are; they are made once for all its subsets and swapped copies."""
        return self.source.origin()

    def learnt(self) -> Learnt:
        """Return what the source was made from, which a suite must not ask."""
        return self.source.learnt()

    def size(self) -> int:
        """Count the source's tokens, since the share of its pairs that is taken is not known before they are made."""
        return self.source.size()
