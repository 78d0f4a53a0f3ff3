"""Group the results that may stand in one table.

Records that share `comparison` differ only in their steering, so their items may be paired; no others are paired.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from bench.leaderboard.items import Items, averaged, together
from bench.records.fields import Cost, FitFacts, LearntFrom, Tuned, plain
from bench.records.identity import digest
from bench.records.names import BASELINE_FAMILY, CONTROL, is_control, order
from bench.records.record import Record
from bench.records.table import CellFacts, Result
from bench.stats.metrics import FIRST, Metric


def _place(one: Result) -> tuple[tuple[int, str], int, str]:
    """Return the key by which results are sorted: the suite, the sampling seed, the id of the record."""
    return order(one.record.suite), one.record.sample_seed or 0, one.record.id


class Fit:
    """A model, method and strength, with results: one setting for each suite, one record for each sampling seed."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = sorted(results, key=_place)
        self.records = [one.record for one in self.results]
        self.about = CellFacts.of(self.records[0])
        self.method = self.records[0].method
        self._items: dict[frozenset[str] | None, dict[str, Items]] = {}

    @property
    def is_baseline(self) -> bool:
        """True for the unsteered model, with which every other row is compared."""
        return self.about.family == BASELINE_FAMILY

    @property
    def data(self) -> LearntFrom | None:
        """The data that the method learnt from, by the first record that states it; None if none does."""
        return next((one.data for one in self.records if one.data), None)

    @property
    def facts(self) -> FitFacts | None:
        """What the fit took and what the method states about it, by the first record that has it; None if none has."""
        return next((one.fit for one in self.records if one.fit), None)

    @property
    def tuning(self) -> Tuned | None:
        """How the strength was chosen, by the first record that states it; None if the strength was given."""
        return next((one.tuning for one in self.records if one.tuning), None)

    @property
    def cost(self) -> Cost | None:
        """The sampling speed of the steered model, by the first record that states it; None if none does."""
        return next((one.cost for one in self.records if one.cost), None)

    @cached_property
    def comparisons(self) -> set[str]:
        """The comparison ids of its records; items of two fits may be paired if the fits share a comparison."""
        return {one.comparison for one in self.records}

    def metrics(self) -> dict[str, Metric]:
        """Return for each `<suite>.<metric>` the metric of the first record that has it."""
        found: dict[str, Metric] = {}
        for one in self.records:
            for name, metric in one.metrics.items():
                found.setdefault(f"{one.suite}.{name}", metric)
        return found

    def items(self, within: set[str] | None = None) -> dict[str, Items]:
        """Return value and weight by item for each `<suite>.<metric>`, averaged over sampling seeds.

        within: use only records of these comparisons. A further sampling seed is a further draw of the same item, since
        no two prompts share a random stream.
        """
        key = None if within is None or self.comparisons <= within else frozenset(within)
        if key not in self._items:
            self._items[key] = averaged([one for one in self.results if key is None or one.record.comparison in key])
        return self._items[key]


class Row:
    """A row of a table: one method, with its fits by seed.

    The fits of a row differ only in the seed of the fit, and in the strength if each fit was tuned separately.
    """

    def __init__(self, fits: Iterable[Fit]) -> None:
        self.fits = tuple(sorted(fits, key=lambda one: (one.about.fit_seed or 0, one.about.strength)))
        self.about, self.method = self.fits[0].about, self.fits[0].method
        self.is_baseline = self.fits[0].is_baseline
        self.data, self.facts, self.tuning = self.fits[0].data, self.fits[0].facts, self.fits[0].tuning
        self.records = [record for fit in self.fits for record in fit.records]
        self.comparisons = set.intersection(*(fit.comparisons for fit in self.fits))
        self._items: dict[frozenset[str] | None, dict[str, Items]] = {}

    @property
    def is_control(self) -> bool:
        """Whether the row is a control, with which methods are compared, and not a method."""
        return is_control(self.about.method, self.about.family)

    @property
    def control_kind(self) -> str:
        """How a control was made, such as from pairs with swapped labels; for other rows the name of the method."""
        return self.method.control.how if self.method.control else self.about.method

    def controls(self, other: "Row") -> bool:
        """Return whether this row is the control of the other, with its method, options, pairs and strength."""
        control = self.method.control
        if control is None or self.about.method != other.about.method + CONTROL:
            return False
        return self._made_as == other._made_as and control.of_strength in other.strengths

    @property
    def _made_as(self) -> tuple[Any, ...]:
        """The settings that a method and its control share: all but the seed of the fit and the swapping of labels."""
        data = self.fits[0].data.recipe if self.fits[0].data else {}
        data = {key: value for key, value in data.items() if key != "flip"}
        return self.about.version, self.method.settings, data

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths of its fits, ascending."""
        return sorted({float(fit.about.strength) for fit in self.fits})

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Each `<suite>.<metric>` of the first fit that has it, except metrics of only the first k texts."""
        every = {name: metric for fit in reversed(self.fits) for name, metric in fit.metrics().items()}
        return {name: metric for name, metric in every.items() if not name.endswith(FIRST)}

    def items(self, within: set[str] | None = None) -> dict[str, Items]:
        """Return value and weight by item for each `<suite>.<metric>`, averaged over the fits; weights are summed."""
        key = None if within is None else frozenset(within)
        if key not in self._items:
            self._items[key] = pooled([fit.items(within) for fit in self.fits])
        return self._items[key]


def pooled(fits: Sequence[dict[str, Items]]) -> dict[str, Items]:
    """Average several fits item by item, in each metric that all of them have.

    The value of an item is its weighted mean over the fits that have the item; its weight is the sum of their weights.
    """
    if len(fits) == 1:
        return fits[0]
    return {name: together([one[name] for one in fits]) for name in fits[0] if all(name in one for one in fits)}


def rows(fits: Iterable[Fit], each_fit: bool = False) -> tuple[Row, ...]:
    """Group fits into rows: those that differ only in their seeds of fit or data form one row, unless `each_fit`.

    Two fits with equal seeds belong to different rows, because they differ in the data that they learnt from.
    """
    if each_fit:
        return tuple(Row([one]) for one in fits)
    found: dict[str, list[Fit]] = defaultdict(list)
    for one in fits:
        about, control = one.about, one.method.control
        given = about.strength if control is None else control.to_json()  # a control's draws have different strengths
        chosen = one.tuning.how if one.tuning else given
        suites = sorted({record.suite for record in one.records})
        recipe = one.data.recipe if one.data else None
        found[digest([about.method, about.version, one.method.settings, chosen, recipe, suites])].append(one)
    return tuple(Row(some) for own in found.values() for some in apart(own))


def apart(fits: Sequence[Fit]) -> list[list[Fit]]:
    """Put the fits of one recipe into one row.

    If two of them have equal seeds, make one row for each set of fits whose data have the same measured facts.
    """
    seeds = [(one.about.fit_seed, str(one.data.draws if one.data else [])) for one in fits]
    several = len(set(seeds)) < len(seeds)
    found: dict[tuple[str, int], list[Fit]] = defaultdict(list)
    seen: dict[tuple[str, Any], int] = defaultdict(int)
    for one, seed in zip(fits, seeds, strict=True):
        key = digest(one.data.measured) if several and one.data else ""
        found[key, seen[key, seed]].append(one)
        seen[key, seed] += 1
    return list(found.values())


def learnt_from(fit: Fit) -> dict[str, str | int | bool | float]:
    """Return the name and the counts of the data that a method learnt from."""
    return fit.data.named if fit.data else {}


def groups(results: Sequence[Result]) -> list[tuple[Fit, ...]]:
    """Split the test results into as few groups of fits as possible; in one group each suite has one setting.

    A group leaves out cells that have one of its suites only under other settings. Each next group is the one that adds
    the most items that no former group has, so cells that were measured at the same size are together.
    """
    cells = by_cell([one for one in results if one.record.split == "test"])
    models: dict[str, list[list[Result]]] = defaultdict(list)
    for found in cells:
        models[digest(found[0].record.model.to_json())].append(found)
    made = []
    for model in sorted(models, key=lambda one: (models[one][0][0].record.model.name, one)):
        looks = settings([one.record for found in models[model] for one in found])
        shown: set[str] = set()
        while best := most_new(models[model], looks, shown):
            shown |= {one.record.id for found in best for one in found}
            made.append(tuple(Fit(found) for found in best))
    return made


def by_cell(results: Sequence[Result]) -> list[list[Result]]:
    """Group results of the same model, method, strength and fit.

    If two records have equal comparisons, the one with more items is kept (the unsteered model may have been sampled
    more often); among equals, the first by id.
    """
    cells: dict[str, dict[str, Result]] = defaultdict(dict)
    for one in sorted(results, key=lambda one: (-len(one.items), one.record.id)):
        about = CellFacts.of(one.record)
        named = {key: getattr(about, key) for key in ("method", "version", "strength", "fit_id")}
        key = digest([one.record.model.to_json(), named, one.record.method.parameters])
        cells[key].setdefault(one.record.comparison, one)
    return [list(found.values()) for _, found in sorted(cells.items())]


def settings(records: Sequence[Record]) -> dict[str, str]:
    """Map comparison ids to the settings of the suite, without the sampling seed.

    `comparison` identifies the suite together with the seed. Other fields of the records show which comparisons differ
    only in the seed. They cannot show it if two comparisons with equal fields have the same seed; each is then its own
    setting.
    """
    looks: dict[str, tuple[str, int | None]] = {}
    for one in records:
        sampling = one.sampling.setting if one.sampling else {}
        sizes = {"k": one.info.k, "prompts": one.info.prompts}
        names = sorted(name for name in one.metrics if not name.endswith(FIRST))  # only unsteered has them
        look = digest([one.suite, sampling, sizes, plain(one.sources), names])
        looks.setdefault(one.comparison, (look, one.sample_seed))
    pairs = list(looks.values())
    unclear = {look for look, _ in pairs if any(pairs.count(pair) > 1 for pair in pairs if pair[0] == look)}
    return {key: f"{look} {key}" if look in unclear else look for key, (look, _) in looks.items()}


def most_new(cells: Sequence[list[Result]], looks: dict[str, str], shown: set[str]) -> list[list[Result]]:
    """Choose the settings, one per suite, that add the most new items; return their cells' results if any is new."""
    options: dict[str, set[str]] = defaultdict(set)
    for one in itertools.chain(*cells):
        options[one.record.suite].add(looks[one.record.comparison])
    best: list[list[Result]] = []
    most = 0
    for combination in itertools.product(*(sorted(options[suite]) for suite in sorted(options))):
        fitting = []
        for results in cells:
            inside = [one for one in results if looks[one.record.comparison] in combination]
            if {one.record.suite for one in inside} == {one.record.suite for one in results}:
                fitting.append(inside)
        new = sum(len(one.items) for one in itertools.chain(*fitting) if one.record.id not in shown)
        if new > most:
            best, most = fitting, new
    return best
