"""The items of one metric as arrays: those of a single fit or row, or those of two side by side."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from bench.records.table import NAMES, NUMBERS, Result
from bench.stats.bootstrap import Array

MOST = 256  # settings of suites whose places are kept


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Value and weight of each item, (n,) each. index: the names of the items, ascending."""

    index: "pd.Index[str]"
    value: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.index)

    def at(self, index: "pd.Index[str]") -> Self:
        """Return the items with these names, in this order; all of them have to be there."""
        rows = self.index.get_indexer(index)
        return type(self)(index, self.value[rows], self.weight[rows])


@dataclass(slots=True, eq=False)
class Pair:
    """Two results on the same items: value and weight of each item in both, (n,) each."""

    index: "pd.Index[str]"
    value_a: Any
    weight_a: Any
    value_b: Any
    weight_b: Any

    def __len__(self) -> int:
        return len(self.index)

    def at(self, index: "pd.Index[str]") -> Self:
        """Return the items with these names, in this order; all of them have to be there."""
        rows = self.index.get_indexer(index)
        return type(self)(index, *(one[rows] for one in (self.value_a, self.weight_a, self.value_b, self.weight_b)))

    @property
    def difference(self) -> Array:
        """(n,) the first value minus the second."""
        return np.asarray(self.value_a - self.value_b)


def side_by_side(a: Items, b: Items) -> Pair:
    """Pair the items that both have, in the order of the first."""
    if a.index is not b.index and not a.index.equals(b.index):
        shared = a.index[a.index.isin(b.index)]
        a, b = a.at(shared), b.at(shared)
    return Pair(a.index, a.value, a.weight, b.value, b.weight)


def together(parts: Sequence[Items]) -> Items:
    """Return the weighted mean of each item over the parts that have it; weights are summed."""
    weights = np.concatenate([one.weight for one in parts])
    weighed = np.concatenate([one.value * one.weight for one in parts])
    if len(parts) == 1:
        return Items(parts[0].index, weighed / weights, weights)
    names = parts[0].index.append([one.index for one in parts[1:]])
    sums = pd.DataFrame({"value": weighed, "weight": weights}).groupby(names, sort=True).sum()
    weight = sums["weight"].to_numpy(float)
    return Items(sums.index, sums["value"].to_numpy(float) / weight, weight)


def averaged(results: Iterable[Result]) -> dict[str, Items]:
    """Return the items of each `<suite>.<metric>`, averaged over these results; metrics and items are sorted.

    Items without weight are left out.
    """
    parts: dict[str, list[Items]] = defaultdict(list)
    for record, items in results:
        for name, own in by_metric(items).items():
            parts[f"{record.suite}.{name}"].append(own)
    return {name: together(parts[name]) for name in sorted(parts)}


def by_metric(items: pd.DataFrame) -> dict[str, Items]:
    """Return for each metric its items with a weight above 0; a metric without such items is left out."""
    value, weight = (items[name].to_numpy(float) for name in NUMBERS)
    found = {name: Items(index, value[rows], weight[rows]) for name, (rows, index) in places(items).items()}
    if not (weight > 0).all():
        found = {name: one.at(one.index[one.weight > 0]) for name, one in found.items()}
    return {name: one for name, one in found.items() if len(one)}


Places = dict[str, tuple[Array, "pd.Index[str]"]]
"""For each metric the rows of its items in a table, in the order of the items' names, and these names."""

_known: dict[tuple[int, int], tuple[Any, Any, Places]] = {}


def places(items: pd.DataFrame) -> Places:
    """Return the places of each metric's items; found only once for tables that share names (`bench.records.table`)."""
    names = [getattr(items[name].array, "__arrow_array__", items[name].copy)() for name in NAMES]  # never changed
    key = (id(names[0]), id(names[1]))
    if key not in _known:
        if len(_known) >= MOST:
            _known.clear()
        _known[key] = (names[0], names[1], _places(items))  # an object that is held keeps its id for itself
    return _known[key][2]


def _places(items: pd.DataFrame) -> Places:
    ordered = items[NAMES].astype(str).reset_index(drop=True).sort_values(NAMES, kind="stable")
    groups = ordered.groupby("metric", sort=True)["item"]
    return {str(name): (own.index.to_numpy(), pd.Index(own, name="item")) for name, own in groups}
