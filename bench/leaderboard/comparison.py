"""The comparison of a table's rows: with which row, in which metrics, and by how much they differ."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.leaderboard import tradeoff
from bench.leaderboard.aims import Aims, aims
from bench.leaderboard.effects import Effects
from bench.leaderboard.grouping import Row
from bench.leaderboard.paired_rows import PairedRows
from bench.leaderboard.tradeoff import Task
from bench.records.names import RANDOM, order
from bench.records.record import Record
from bench.stats.metrics import Metric, fold


@dataclass(frozen=True)
class Comparison:
    """The rows of one model under the same settings, which are compared with the unsteered model."""

    number: int
    rows: tuple[Row, ...]

    @cached_property
    def baseline(self) -> Row | None:
        """The unsteered model; None if it was not measured."""
        return next((row for row in self.rows if row.is_baseline), None)

    @cached_property
    def about(self) -> Record:
        """A record that shows how all rows were made: the unsteered model's of the first suite, if there is one."""
        return (self.baseline or self.rows[0]).records[0]

    @cached_property
    def tasks(self) -> list[Task]:
        """The capability tasks, with the results of the unsteered model."""
        return tasks(self.baseline) if self.baseline else []

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metric of some row for each `<suite>.<metric>`, in the order of the suites."""
        found = {name: metric for row in reversed(self.rows) for name, metric in row.metrics.items()}
        return dict(sorted(found.items(), key=lambda one: order(one[0].partition(".")[0])))

    @cached_property
    def aims(self) -> Aims:
        """The metrics by which the rows are compared, and the scorers behind them."""
        return aims(self.rows, list(self.metrics))

    @cached_property
    def paired(self) -> PairedRows:
        """The items of each row beside the unsteered model's."""
        return PairedRows(self.rows, self.baseline)

    @cached_property
    def effects(self) -> Effects:
        """The trade-off of each row against the unsteered model."""
        return Effects(self.metrics, self.aims, self.paired.pairs)

    # -- the controls --------------------------------------------------------------------------------------------------

    def control(self, row: Row) -> Row | None:
        """Return the row that a method has to beat: its own control with equal settings, else the random direction.

        None for the unsteered model, for controls, and if neither was measured.
        """
        if row.is_baseline or row.is_control:
            return None
        controls, random = self._controls
        own = [one for one in controls if one.controls(row)]
        return max(own or random, key=lambda one: len(one.fits), default=None)

    @cached_property
    def _controls(self) -> tuple[list[Row], list[Row]]:
        """The rows that are methods' own controls, and the rows that are random directions."""
        random = [one for one in self.rows if one.about.method == RANDOM]
        return [one for one in self.rows if one.is_control and one not in random], random

    @cached_property
    def control_spreads(self) -> dict[str, float]:
        """The pooled standard deviation of the headline over the draws of controls, for each way of making these.

        A way is left out if no control of it has several draws. A few draws may lie close together by chance, so no row
        is compared with a spread smaller than that of all controls made in the same way.
        """
        metric = self.aims.headline
        transform = self.metrics[metric].transform
        found = defaultdict[str, list[float]](list)
        for row in (one for one in self.rows if one.is_control):
            items = [one for fit in row.fits if (one := fit.items().get(metric)) is not None]
            if len(items) > 1:
                values = [fold(one.value, one.weight, transform) for one in items]
                found[row.control_kind].append(float(np.var(values, ddof=1)))
        return {kind: math.sqrt(sum(own) / len(own)) for kind, own in found.items()}


def tasks(baseline: Row) -> list[Task]:
    """Return the capability tasks of the unsteered model, with their chance accuracy."""
    chance: dict[str, float] = {}
    for one in baseline.records:
        chance |= one.info.chance or {}
    items = {name: rows for name, rows in baseline.items().items() if name.startswith("capability.")}
    return tradeoff.tasks({name.removeprefix("capability."): rows.value for name, rows in items.items()}, chance)


def collapsed(row: Row, baseline: Row | None) -> tuple[bool | None, str | None]:
    """Return whether the test texts of any fit and sampling seed have collapsed, and why.

    Both are None if there is nothing to compare.
    """
    own, base = (_fluency(one) if one else [] for one in (row, baseline))
    if row.is_baseline or not own or not base:
        return None, None
    reasons = [reason for one in own if (reason := tradeoff.collapse_reason(one, base[0])) is not None]
    times = f" ({len(reasons)} of {len(own)} runs)" if len(own) > 1 and reasons else ""
    return bool(reasons), reasons[0] + times if reasons else None


def _fluency(row: Row) -> list[dict[str, float]]:
    """Return the metric values of each record of the suite fluency."""
    records = [record for record in row.records if record.suite == "fluency"]
    return [{name: metric.value for name, metric in record.metrics.items()} for record in records]
