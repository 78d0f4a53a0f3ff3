"""Pairs whose labels are partly wrong: for label noise, and as a control that learns from the same texts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data.splits import Learnt
from bench.fit_data.base import FitSource
from bench.model.lm import LM
from bench.records.identity import named
from methods.base import Pairs
from methods.errors import SetupError


@dataclass(frozen=True)
class Flipped(FitSource):
    """The pairs of another source; each pair's two texts are swapped with probability `share`, drawn with `seed`.

    With share .5 the labels hold no information: an effect that remains does not come from them.
    """

    source: FitSource
    share: float
    seed: int

    @property
    def name(self) -> str:  # type: ignore[override]  # the name of the pairs
        """The name of the pairs, which swapping does not change."""
        return self.source.name

    def identity(self) -> dict[str, Any]:
        """Return the recipe of the pairs, with the probability and the seed."""
        return named(self.source) | {"flip": self.share, "flip_seed": self.seed}

    def check(self) -> None:
        """Raises SetupError for a share outside 0 to 1, and for what the source refuses."""
        if not 0 <= self.share <= 1:
            raise SetupError(f"pairs.flip={self.share}: expected a share of the pairs, from 0 to 1")
        self.source.check()

    def load(self, lm: LM) -> tuple[Pairs, dict[str, Any]]:
        """Return the pairs, some of them swapped, and facts that say how many."""
        pairs, about = self.source.load(lm)
        assert isinstance(pairs, Pairs)
        flipped, count = swapped(pairs, self.share, self.seed)
        return flipped, about | {"flip": f"{self.share:g}", "flipping": {"seed": self.seed, "flipped": count}}

    def tokens(self) -> int:
        """Count the tokens that the source takes; swapping takes none."""
        return self.source.tokens()

    def origin(self) -> FitSource:
        """Return the source whose pairs these are; they are made once for all its subsets and swapped copies."""
        return self.source.origin()

    def learnt(self) -> Learnt:
        """Return what the pairs were made from; no suite may ask it."""
        return self.source.learnt()

    def size(self) -> int:
        """Return the size of the source; swapping does not change it."""
        return self.source.size()


def swapped(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, int]:
    """Return the pairs, some of them with their two texts swapped, and how many were swapped."""
    coins = np.random.default_rng([seed, len(pairs.prompt)]).random(len(pairs.prompt)) < share
    both = [
        (undesired, desired) if coin else (desired, undesired)
        for desired, undesired, coin in zip(pairs.desired, pairs.undesired, coins, strict=True)
    ]
    return Pairs(pairs.prompt, [one for one, _ in both], [other for _, other in both]), int(coins.sum())
