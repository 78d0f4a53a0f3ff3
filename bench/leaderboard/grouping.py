"""Which results may stand in one table. No torch here.

Records that share `comparison` differ in their steering alone, so their items may be paired; nothing else is.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import pandas as pd

from bench.records.identity import digest
from bench.records.names import BASELINE_FAMILY, order, sample_seed
from bench.records.table import Record, identity_columns


class Entry:
    """Model, method and strength, with the records of one setting per suite: one for each sampling seed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = sorted(records, key=lambda one: (order(one.suite), sample_seed(one) or 0, one.facts["id"]))
        self.columns = identity_columns(self.records[0].facts)
        self._items: dict[frozenset[str] | None, dict[str, pd.DataFrame]] = {}

    @property
    def is_baseline(self) -> bool:
        """The model as it is."""
        return bool(self.columns["family"] == BASELINE_FAMILY)

    def first(self, key: str) -> dict[str, Any]:
        """What the first record that says anything about `key` says."""
        return next((one.facts[key] for one in self.records if one.facts.get(key)), {})

    @cached_property
    def comparisons(self) -> set[str]:
        """What its records may be compared with."""
        return {one.facts["comparison"] for one in self.records}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """`<suite>.<metric>` -> its entry in the first record that has it."""
        found: dict[str, dict[str, Any]] = {}
        for one in self.records:
            for name, entry in one.facts["metrics"].items():
                found.setdefault(f"{one.suite}.{name}", entry)
        return found

    def items(self, within: set[str] | None = None) -> dict[str, pd.DataFrame]:
        """`<suite>.<metric>` -> value and weight by item, averaged over sampling seeds; of these comparisons alone.

        Sampling seeds are further draws of the same item, since no two prompts share a random stream.
        """
        key = None if within is None else frozenset(within)
        if key not in self._items:
            self._items[key] = self._averaged(within)
        return self._items[key]

    def _averaged(self, within: set[str] | None) -> dict[str, pd.DataFrame]:
        parts = [
            one.items.assign(metric=one.suite + "." + one.items["metric"].astype(str))
            for one in self.records
            if within is None or one.facts["comparison"] in within
        ]
        if not parts:
            return {}
        whole = pd.concat(parts, ignore_index=True)
        whole = whole[whole["weight"] > 0]
        whole["value"] *= whole["weight"]
        sums = whole.groupby(["metric", "item"], sort=True)[["value", "weight"]].sum()
        sums["value"] /= sums["weight"]
        return {str(name): rows.droplevel("metric") for name, rows in sums.groupby(level="metric", sort=True)}


class Line:
    """A row of a table: one method, its fits by their seeds, each an entry of its own.

    Fits of one line differ in the seed of the fit alone, and in the strength where each fit was tuned by itself.
    """

    def __init__(self, fits: Iterable[Entry]) -> None:
        self.fits = tuple(sorted(fits, key=lambda one: (one.columns["fit_seed"] or 0, one.columns["strength"])))
        self.columns = self.fits[0].columns
        self.is_baseline = self.fits[0].is_baseline
        self.first = self.fits[0].first
        self.records = [record for fit in self.fits for record in fit.records]
        self.comparisons = set.intersection(*(fit.comparisons for fit in self.fits))

    @cached_property
    def strengths(self) -> list[float]:
        """The strengths of its fits, ascending."""
        return sorted({float(fit.columns["strength"]) for fit in self.fits})

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """`<suite>.<metric>` -> its entry in the first fit that has it."""
        return {name: entry for fit in reversed(self.fits) for name, entry in fit.metrics().items()}

    def items(self, within: set[str] | None = None) -> dict[str, pd.DataFrame]:
        """`<suite>.<metric>` -> value and weight by item, averaged over the fits; weights are summed over them."""
        return pooled([fit.items(within) for fit in self.fits])


def pooled(fits: Sequence[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Value and weight by item of several fits together, of the metrics that all of them have."""
    if len(fits) == 1:
        return fits[0]
    together = {}
    for name in fits[0]:
        if all(name in one for one in fits):
            rows = pd.concat([one[name] for one in fits])
            sums = rows.assign(value=rows["value"] * rows["weight"]).groupby(level=0).sum()
            together[name] = sums.assign(value=sums["value"] / sums["weight"])
    return together


def lines(entries: Iterable[Entry], each_fit: bool = False) -> tuple[Line, ...]:
    """The entries of a table as lines: those that differ in the seed of the fit alone are one, unless `each_fit`.

    Two fits of one seed are no fits of one line: what tells them apart is what they learnt from.
    """
    if each_fit:
        return tuple(Line([one]) for one in entries)
    found: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    seen: dict[tuple[str, Any], int] = defaultdict(int)
    for one in entries:
        columns = one.columns
        settings = {key: value for key, value in json.loads(columns["parameters"]).items() if key != "seed"}
        chosen = tuned_how(one.first("tuning")) or columns["strength"]
        suites = sorted({record.suite for record in one.records})
        key = digest([columns["method"], columns["version"], settings, chosen, learnt_from(one), suites])
        seed = (key, columns["fit_seed"])
        found[key, seen[seed]].append(one)
        seen[seed] += 1
    return tuple(Line(fits) for fits in found.values())


def tuned_how(tuning: dict[str, Any]) -> dict[str, Any]:
    """How a strength was chosen: by what, within which bounds, with how many trials. Empty where it was given."""
    named = {key: tuning[key] for key in ("scorer", "objective", "constraints", "search") if key in tuning}
    return named | {"trials": len(tuning["trials"])} if tuning else {}


def learnt_from(entry: Entry) -> dict[str, Any]:
    """What a record says of the data that a method learnt from, sources and counts, as far as it names the data."""
    data = entry.first("data")
    return {key: value for key, value in data.items() if isinstance(value, str | int | bool)}


def groups(records: Sequence[Record]) -> list[tuple[Entry, ...]]:
    """The test results in as few groups of entries as hold all of them; in one group each suite has one setting.

    A cell that knows a suite under other settings alone is left out of a group. Groups are taken by how many items
    they add that no group before them has, so what was measured at the same size stands together.
    """
    cells = by_cell([one for one in records if one.facts["split"] == "test"])
    models: dict[str, list[list[Record]]] = defaultdict(list)
    for found in cells:
        models[digest(found[0].facts["model"])].append(found)
    made = []
    for model in sorted(models, key=lambda one: (str(models[one][0][0].facts["model"]["name"]), one)):
        looks = settings([one for found in models[model] for one in found])
        shown: set[str] = set()
        while best := most_new(models[model], looks, shown):
            shown |= {one.facts["id"] for found in best for one in found}
            made.append(tuple(Entry(found) for found in best))
    return made


def by_cell(records: Sequence[Record]) -> list[list[Record]]:
    """Records of the same model, method, strength and fit. Of two with equal comparison the first by id is kept."""
    cells: dict[str, dict[str, Record]] = defaultdict(dict)
    for one in sorted(records, key=lambda one: str(one.facts["id"])):
        columns = identity_columns(one.facts)
        named = {key: columns[key] for key in ("method", "version", "strength", "fit_id")}
        key = digest([one.facts["model"], named, json.loads(columns["parameters"])])
        cells[key].setdefault(one.facts["comparison"], one)
    return [list(found.values()) for _, found in sorted(cells.items())]


def settings(records: Sequence[Record]) -> dict[str, str]:
    """Comparison -> how the suite looked at the model, whatever the sampling seed.

    The suite's whole identity is in `comparison`, but with the seed; what a record says besides tells which
    comparisons are other seeds of one setting. Where it does not tell, because two of them have the same seed, each
    comparison is a setting of its own.
    """
    looks: dict[str, tuple[str, int | None]] = {}
    for one in records:
        facts = one.facts
        sampling = {key: value for key, value in (facts.get("sampling") or {}).items() if key != "seed"}
        sizes = {key: facts["info"].get(key) for key in ("k", "prompts")}
        look = digest([one.suite, sampling, sizes, facts.get("sources"), sorted(facts["metrics"])])
        looks.setdefault(facts["comparison"], (look, sample_seed(one)))
    pairs = list(looks.values())
    unclear = {look for look, _ in pairs if any(pairs.count(pair) > 1 for pair in pairs if pair[0] == look)}
    return {key: f"{look} {key}" if look in unclear else look for key, (look, _) in looks.items()}


def most_new(cells: Sequence[list[Record]], looks: dict[str, str], shown: set[str]) -> list[list[Record]]:
    """The choice of one setting per suite that adds most items; its cells with their records. Empty: nothing new."""
    options: dict[str, set[str]] = defaultdict(set)
    for one in itertools.chain(*cells):
        options[one.suite].add(looks[one.facts["comparison"]])
    best: list[list[Record]] = []
    most = 0
    for combination in itertools.product(*(sorted(options[suite]) for suite in sorted(options))):
        fitting = []
        for records in cells:
            inside = [one for one in records if looks[one.facts["comparison"]] in combination]
            if {one.suite for one in inside} == {one.suite for one in records}:
                fitting.append(inside)
        new = sum(len(one.items) for one in itertools.chain(*fitting) if one.facts["id"] not in shown)
        if new > most:
            best, most = fitting, new
    return best
