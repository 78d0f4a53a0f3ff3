"""The row of each cell: what it is, what it cost, its metrics and their difference to unsteered. No torch here."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from bench import tradeoff
from bench.collect import Record, names, source_names
from bench.comparable import BASELINE_FAMILY, Entry, groups, sample_seed
from bench.metrics import fold, standard_error
from bench.statistics import Estimate
from bench.tradeoff import Part, Task

RANDOM = "random_direction"  # the control whose draws are shown as a range
PERPLEXITY = "fluency.perplexity"
WHOLE = ("table", "rank", "version", "fit_seed", "pairs", "artefact_bytes", "peak_fit_memory_bytes", "random_draws")
FLAGS = ("feasible", "beats_random", "collapsed")


@dataclass(frozen=True)
class Table:
    """Cells of one model under the same settings; the unsteered model is what the others are compared with."""

    number: int
    cells: tuple[Entry, ...]

    @cached_property
    def baseline(self) -> Entry | None:
        """The unsteered model, where it was measured."""
        return next((cell for cell in self.cells if cell.is_baseline), None)

    @cached_property
    def about(self) -> Record:
        """A record that tells how all were made: of the unsteered model and the first suite, where there is one."""
        return (self.baseline or self.cells[0]).records[0]

    @cached_property
    def tasks(self) -> list[Task]:
        """Capability tasks as the unsteered model does them."""
        if self.baseline is None:
            return []
        chance: dict[str, float] = {}
        for one in self.baseline.records:
            chance |= one.facts["info"].get("chance") or {}
        items = {name: rows for name, rows in self.baseline.items().items() if name.startswith("capability.")}
        return tradeoff.tasks({name.removeprefix("capability."): rows["value"] for name, rows in items.items()}, chance)

    @cached_property
    def toxicity(self) -> list[str]:
        """The expected maximum toxicity by each reported scorer, the first one first, as `rtp.<scorer>.<metric>`."""
        columns = dict.fromkeys(name for cell in self.cells for name in cell.metrics())
        reported = self.about.facts["scorers"]["report"]
        return [
            name
            for scorer in reported
            for name in columns
            if re.fullmatch(rf"rtp\.{re.escape(scorer)}\.expected_maximum_toxicity_k\d+(_n\d+)?", name)
        ]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per cell; see `row`. Controls first, then by rank."""
        with threadpool_limits(1, "blas"):  # many small products: threads slow them down and could round differently
            rows = [self.row(cell) for cell in self.cells]
        random = [cell.first("tuning") for cell in self.cells if cell.columns["method"] == RANDOM]
        for cell, one in zip(self.cells, rows, strict=True):
            if cell.columns["method"] != RANDOM and not cell.is_baseline:
                one |= tradeoff.against_random(cell.first("tuning"), random)
        frame = pd.DataFrame(rows)
        controls = (frame["family"] == BASELINE_FAMILY) | (frame["method"] == RANDOM)
        whole = (frame["feasible"] != False) & (frame["collapsed"] != True)  # noqa: E712 -- None is neither
        ranked = frame["joint"].where(~controls & whole)
        frame.insert(1, "rank", ranked.astype(float).rank(ascending=False, method="min"))
        place = (frame["family"] != BASELINE_FAMILY).astype(int) + (~controls).astype(int)  # unsteered, random, others
        frame = frame.assign(_place=place).sort_values(
            ["_place", "rank", "method", "strength", "fit_seed", "parameters"], kind="stable"
        )
        return typed(frame.drop(columns="_place").reset_index(drop=True))

    def row(self, cell: Entry) -> dict[str, Any]:
        """What the cell is, what it cost, the trade-off, and each metric with its difference to unsteered."""
        fit, data, scorers, tuning = (cell.first(key) for key in ("fit", "data", "scorers", "tuning"))
        seeds = sorted({seed for one in cell.records if (seed := sample_seed(one)) is not None})
        sources = [name for one in cell.records for name in source_names(one.facts)]
        row = {
            "table": self.number,
            **cell.columns,
            "sample_seeds": names([str(seed) for seed in seeds]),
            "feasible": tuning.get("feasible"),
            **self.collapse(cell),
            "tuned": bool(tuning),
            "data": data.get("name"),
            "pairs": data.get("pairs"),
            "fit_seconds": fit.get("seconds"),
            "peak_fit_memory_bytes": fit.get("peak_memory_bytes"),
            "artefact_bytes": fit.get("artefact_bytes"),
            "relative_speed": cell.first("cost").get("relative_speed"),
            "sources": names(list(dict.fromkeys(sources))),
            "scorers_report": names(scorers.get("report")),
            "scorer_tune": scorers.get("tune"),
            "scorer_pairs": scorers.get("pairs"),
            "tasks_at_floor": names([task.name for task in self.tasks if task.at_floor]),
            "random_reduction_low": None,
            "random_reduction_mean": None,
            "random_reduction_high": None,
            "random_draws": None,
            "beats_random": None,
            "dev_reduction": None,
            "dev_perplexity_ratio": None,
        }
        chosen = tradeoff.chosen_trial(tuning)
        if chosen is not None:
            row |= {"dev_reduction": chosen.reduction, "dev_perplexity_ratio": chosen.perplexity_ratio}
        pairs = self.pairs(cell)
        row |= self.derived(cell, pairs)
        own = cell.items()
        for name, entry in cell.metrics().items():
            row |= measured(name, entry, own.get(name), pairs.get(name))
        return row | {"records": names(sorted(one.facts["id"] for one in cell.records))}

    def collapse(self, cell: Entry) -> dict[str, Any]:
        """Whether the texts of the test split have collapsed, and why; empty where there is nothing to compare."""
        own, base = ({n: e["value"] for n, e in one.metrics().items()} if one else {} for one in (cell, self.baseline))
        fluency = [
            {n.removeprefix("fluency."): v for n, v in one.items() if n.startswith("fluency.")} for one in (own, base)
        ]
        if cell.is_baseline or not all(fluency):
            return {"collapsed": None, "collapse_reason": None}
        reason = tradeoff.collapse(*fluency)
        return {"collapsed": reason is not None, "collapse_reason": reason}

    def pairs(self, cell: Entry) -> dict[str, pd.DataFrame]:
        """`<suite>.<metric>` -> value_a, weight_a of the cell and value_b, weight_b of unsteered on the same items."""
        if self.baseline is None or cell.is_baseline:
            return {}
        shared = cell.comparisons & self.baseline.comparisons
        a, b = cell.items(shared), self.baseline.items(shared)
        joined = {name: a[name].join(b[name], lsuffix="_a", rsuffix="_b", how="inner") for name in a if name in b}
        return {name: rows for name, rows in joined.items() if len(rows)}

    def derived(self, cell: Entry, pairs: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """The trade-off; for the unsteered model what it is by definition, without intervals."""
        if cell.is_baseline:
            has = cell.metrics()
            fluent = 1.0 if PERPLEXITY in has else None
            nothing = 0.0 if self.toxicity and self.toxicity[0] in has else None
            able = 1.0 if any(task.counts for task in self.tasks) else None
            exact = {"toxicity_reduction": nothing, "perplexity_ratio": fluent, "fluency_kept": fluent}
            return exact | {"capability_kept": able, "gold_logprob_change": 0.0 if self.tasks else None, "joint": None}
        toxic = self.toxicity[0] if self.toxicity else ""
        reduction = tradeoff.compare_items(pairs[toxic], "mean", "reduction") if toxic in pairs else None
        ratio = tradeoff.compare_items(pairs[PERPLEXITY], "exp", "ratio") if PERPLEXITY in pairs else None
        fluency = tradeoff.fluency_kept(ratio) if ratio else None
        accuracy = {task.name: pairs.get(f"capability.{task.name}.accuracy") for task in self.tasks}
        known = {name: rows for name, rows in accuracy.items() if rows is not None}
        capability = tradeoff.capability_kept(known, [task for task in self.tasks if task.counts])
        gold = {name: rows for name, rows in pairs.items() if name.endswith(".gold_logprob")}
        parts: dict[str, Part | None] = {
            "toxicity_reduction": reduction,
            "perplexity_ratio": ratio,
            "fluency_kept": fluency,
            "capability_kept": capability,
            "gold_logprob_change": tradeoff.mean_change(gold),
            "joint": tradeoff.joint(reduction, fluency, capability),
        }
        found: dict[str, Any] = {}
        for name, part in parts.items():
            estimate = part.estimate() if part else Estimate(math.nan, None, None)
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found


def measured(
    name: str, entry: Mapping[str, Any], own: pd.DataFrame | None, pairs: pd.DataFrame | None
) -> dict[str, Any]:
    """The six columns of a metric. One without items keeps the record's own number, and has no difference."""
    row = {name: entry["value"], f"{name}.se": entry["standard_error"], f"{name}.n": entry["n"]}
    transform = entry["transform"]
    if own is not None:
        values, weights = own["value"].to_numpy(float), own["weight"].to_numpy(float)
        error = standard_error(values, weights, transform)
        row = {name: fold(values, weights, transform), f"{name}.se": error, f"{name}.n": len(own)}
    delta = Estimate(math.nan, None, None)
    if pairs is not None:
        delta = tradeoff.compare_items(pairs, transform, "difference").estimate()
    return row | {f"{name}.delta": delta.value, f"{name}.delta_low": delta.low, f"{name}.delta_high": delta.high}


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers and flags as booleans, both of which may be missing."""
    kinds: dict[str, str] = {}
    for column in frame.columns:
        if column in WHOLE or str(column).endswith(".n"):
            kinds[column] = "Int64"
        elif column in FLAGS:
            kinds[column] = "boolean"
        elif frame[column].isna().all():
            kinds[column] = "float64"
    return frame.astype(kinds)


def tables(records: Sequence[Record]) -> list[Table]:
    """One table for each group of cells that may be compared."""
    return [Table(i + 1, cells) for i, cells in enumerate(groups(records))]
