"""The rows of a comparison beside the unsteered model, item by item."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from bench.leaderboard.grouping import Row
from bench.leaderboard.items import Pair, side_by_side
from bench.leaderboard.pairing import Pairs, closer_first, paired
from bench.stats.metrics import FIRST

SKEWED = 0.05
"""The largest skewness of a mean (`skewness`) with which a test may swap k texts and more texts. Simulated tables of
null methods: at .01 to .03 they have the stars that they should have, at .25 three times as many."""

OfRows = dict[Row, list[Pairs]]
"""For each row and each of its fits, the items beside the unsteered model's; all fits of a row have the same items."""


class PairedRows:
    """The items of each row but the unsteered model's, beside those of the unsteered model; empty without one."""

    def __init__(self, rows: Sequence[Row], baseline: Row | None) -> None:
        self._rows = [row for row in rows if not row.is_baseline]
        self._base = baseline.fits[0] if baseline else None

    @cached_property
    def pairs(self) -> OfRows:
        """The items beside all texts of the unsteered model, or beside its first k (`first`)."""
        base = self._base
        return {row: paired(row.fits, base, first=self.first) for row in self._rows} if base else {}

    @cached_property
    def beside_first(self) -> OfRows:
        """Like `pairs`, but beside the first k texts of the unsteered model wherever there are such."""
        if self._base is None or self.first_known <= self.first:
            return self.pairs
        return {row: paired(row.fits, self._base, first=self.first_known) for row in self._rows}

    @cached_property
    def for_tests(self) -> OfRows:
        """The pairs that tests use: `pairs`, except in metrics whose differences are skewed.

        In those metrics a row is paired with only the first k texts of the unsteered model. If steering changes
        nothing, two results of equally many texts could as well be swapped. A result of k texts and an estimate from
        more texts could not be swapped: if scores are skewed, the difference is skewed too, and a test that swaps the
        two results finds too many differences. All rows are paired in the same way.
        """
        uneven = self.first_in_tests
        if not uneven:
            return self.pairs
        others = self.beside_first
        return {
            row: [
                {**own, **{name: other[name] for name in uneven if name in other}}
                for own, other in zip(fits, others[row], strict=True)
            ]
            for row, fits in self.pairs.items()
        }

    @cached_property
    def first_in_tests(self) -> frozenset[str]:
        """The metrics that are compared with all texts of the unsteered model, but tested against its first k."""
        return frozenset(name for name in self.first_known - self.first if self.is_skewed(name))

    def is_skewed(self, name: str) -> bool:
        """Whether differences from the result of all texts of the unsteered model are skewed in this metric.

        They count as skewed if the rows' differences are skewed on average, or if the differences of the unsteered
        model's own first k texts are skewed. The rows alone do not suffice, since strong effects may skew their
        differences in the other direction.
        """
        found = [skewness(one[name]) for fits in self.pairs.values() for one in fits if name in one]
        items = self._base.items() if self._base else {}
        own = skewness(side_by_side(items[name + FIRST], items[name])) if name in items else 0.0
        return max(abs(float(np.mean(found or [0.0]))), abs(own)) > SKEWED

    @cached_property
    def first(self) -> frozenset[str]:
        """Metrics in which the rows are compared only with the first k texts of the unsteered model.

        In other metrics they are compared with all its texts, even if it was sampled more often.
        """
        return closer_first(self._rows, self._base) if self._base else frozenset()

    @cached_property
    def first_known(self) -> frozenset[str]:
        """The metrics for which the unsteered model also has a result of its first k texts alone."""
        items = self._base.items() if self._base else {}
        return frozenset(name.removesuffix(FIRST) for name in items if name.endswith(FIRST))


def skewness(pair: Pair) -> float:
    """Return the skewness of the mean of a pair's differences; 0 if they are all equal."""
    centred = pair.difference - pair.difference.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 / math.sqrt(len(pair)) if spread > 0 else 0.0
