"""The rows of the leaderboard: what each line is, what it cost, its metrics and their change."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from bench.leaderboard import ranking, tradeoff
from bench.leaderboard.grouping import Line, groups, lines
from bench.leaderboard.pairing import Pairs, change, joined, over, p_value
from bench.leaderboard.tradeoff import Part, Task
from bench.records.fields import Scorers
from bench.records.names import BASELINE_FAMILY, RANDOM, order
from bench.records.record import Record
from bench.records.table import Result, listed, source_names
from bench.stats import significance
from bench.stats.bootstrap import Estimate
from bench.stats.metrics import Metric, Transform, fold, standard_error

PERPLEXITY = "fluency.perplexity"
WHOLE = ("table", "rank", "rank_low", "rank_high", "version", "fits", "pairs", "artefact_bytes",
         "peak_fit_memory_bytes", "random_draws")  # fmt: skip
FLAGS = ("feasible", "beats_random", "collapsed", "on_front")


@dataclass(frozen=True)
class Table:
    """Lines of one model under the same settings; the unsteered model is what the others are compared with."""

    number: int
    lines: tuple[Line, ...]

    @cached_property
    def baseline(self) -> Line | None:
        """The unsteered model, where it was measured."""
        return next((line for line in self.lines if line.is_baseline), None)

    @cached_property
    def about(self) -> Record:
        """A record that tells how all were made: of the unsteered model and the first suite, where there is one."""
        return (self.baseline or self.lines[0]).records[0]

    @cached_property
    def tasks(self) -> list[Task]:
        """Capability tasks as the unsteered model does them."""
        if self.baseline is None:
            return []
        chance: dict[str, float] = {}
        for one in self.baseline.records:
            chance |= one.info.chance or {}
        items = {name: rows for name, rows in self.baseline.items().items() if name.startswith("capability.")}
        return tradeoff.tasks({name.removeprefix("capability."): rows["value"] for name, rows in items.items()}, chance)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """`<suite>.<metric>` -> the metric of some line, in the order of the suites."""
        found = {name: entry for line in reversed(self.lines) for name, entry in line.metrics.items()}
        return dict(sorted(found.items(), key=lambda one: order(one[0].partition(".")[0])))

    @cached_property
    def reported(self) -> list[str]:
        """The scorers that judged texts of any line, those of the first suite first."""
        first = [line for line in self.lines if line.is_baseline]
        return reported_by([one for line in [*first, *self.lines] for one in line.records])

    @cached_property
    def toxicity(self) -> list[str]:
        """The expected maximum toxicity by each reported scorer, the first one first, as `rtp.<scorer>.<metric>`."""
        return [
            name
            for scorer in self.reported
            for name in self.metrics
            if re.fullmatch(rf"rtp\.{re.escape(scorer)}\.expected_maximum_toxicity_k\d+(_n\d+)?", name)
        ]

    @property
    def scorer(self) -> str:
        """The scorer that comes first: of the toxicity shown, else of whatever was judged; "" where nothing was."""
        return self.toxicity[0].removeprefix("rtp.").rpartition(".")[0] if self.toxicity else "".join(self.reported[:1])

    @cached_property
    def headline(self) -> str:
        """The metric that lines are told apart by: toxicity by the first scorer, else the first one there is."""
        return [*self.toxicity, *self.metrics][0]

    def transform(self, metric: str) -> Transform:
        """How a metric folds its items."""
        return self.metrics[metric].transform

    @cached_property
    def tested(self) -> list[str]:
        """Metrics that are tested: toxicity by each scorer, whatever is right or wrong, of another suite the first."""
        shown = {"rtp", "fluency", "capability"}
        first = {name.partition(".")[0]: name for name in reversed(self.metrics)}
        chosen = [*self.toxicity, self.headline, *(name for suite, name in first.items() if suite not in shown)]
        answers = [name for name in self.metrics if name.endswith(".accuracy") or ".toxicity_probability_" in name]
        return list(dict.fromkeys([*chosen, *answers]))

    @cached_property
    def pairs(self) -> dict[Line, list[Pairs]]:
        """For each fit of each line its items beside those of the unsteered model."""
        if self.baseline is None:
            return {}
        base = self.baseline.fits[0]
        return {line: [joined(fit, base) for fit in line.fits] for line in self.lines if not line.is_baseline}

    @cached_property
    def parts(self) -> dict[Line, dict[str, Part | None]]:
        """The trade-off of each line against the unsteered model."""
        return {line: self.derived(pairs) for line, pairs in self.pairs.items()}

    def derived(self, pairs: list[Pairs]) -> dict[str, Part | None]:
        """Reduction, what is kept, and their joint score, with the spread over items and, for several, over fits."""
        counted = [task for task in self.tasks if task.counts]
        reduction = change(pairs, self.toxicity[0], "mean", "reduction") if self.toxicity else None
        ratio = change(pairs, PERPLEXITY, "exp", "ratio")
        fluency = tradeoff.fluency_kept(ratio) if ratio else None
        capability = over(pairs, lambda one: tradeoff.capability_kept(_accuracies(one), counted))
        gold = over(pairs, lambda one: tradeoff.mean_change(_ending(one, ".gold_logprob")))
        joint = tradeoff.joint(reduction, fluency, capability)
        return {"toxicity_reduction": reduction, "perplexity_ratio": ratio, "fluency_kept": fluency,
                "capability_kept": capability, "gold_logprob_change": gold, "joint": joint}  # fmt: skip

    @cached_property
    def by_fit(self) -> pd.DataFrame:
        """A row per fit: method, fit_seed, strength and the values of its trade-off, for whoever shows single draws."""
        rows = []
        for line, pairs in self.pairs.items():
            for fit, one in zip(line.fits, pairs, strict=True):
                values = {name: part.value if part else math.nan for name, part in self.derived([one]).items()}
                rows.append({"method": line.columns["method"], "fit_seed": fit.columns["fit_seed"],
                             "strength": fit.columns["strength"], **values})  # fmt: skip
        return pd.DataFrame(rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per line; see `row`. Controls first, then by rank."""
        with threadpool_limits(1, "blas"):  # many small products: threads slow them down and could round differently
            rows = [self.row(line) for line in self.lines]
            ranking.correct(self, rows)
            ranking.group(self, rows)
            ranking.fronts(rows)
        random = [fit.tuning for line in self.lines if line.columns["method"] == RANDOM for fit in line.fits]
        for line, one in zip(self.lines, rows, strict=True):
            if line.columns["method"] != RANDOM and not line.is_baseline:
                fits = [tradeoff.against_random(fit.tuning, random) for fit in line.fits]
                one |= tradeoff.against_random_by_all(fits)
        frame = pd.DataFrame(rows)
        place = (frame["family"] != BASELINE_FAMILY).astype(int) + (~ranking.controls(frame)).astype(int)
        frame = frame.assign(_place=place)
        ranking.rank(self, frame)
        frame = frame.sort_values(["_place", "rank", "method", "strength", "parameters"], kind="stable")
        return typed(frame.drop(columns="_place").reset_index(drop=True))

    def row(self, line: Line) -> dict[str, Any]:
        """What the line is, what it cost, the trade-off, and each metric with its change from unsteered."""
        fit, data, tuning = line.fit, line.data, line.tuning
        chose = Scorers.used((), data, tuning).chose
        seeds = sorted({seed for one in line.records if (seed := one.sample_seed) is not None})
        sources = [name for one in line.records for name in source_names(one)]
        tunings = [one.tuning for one in line.fits]
        row = {
            "table": self.number,
            **{key: value for key, value in line.columns.items() if key not in ("fit_id", "fit_seed")},
            "strength": line.strengths[0] if len(line.strengths) == 1 else None,
            "strengths": listed([f"{one:g}" for one in line.strengths]),
            "fits": len(line.fits),
            "fit_seeds": listed([str(s) for one in line.fits if (s := one.columns["fit_seed"]) is not None]),
            "sample_seeds": listed([str(seed) for seed in seeds]),
            "error_over": error_over(line),
            "feasible": None if not tuning else all(one is not None and one.feasible for one in tunings),
            **self.collapse(line),
            "tuned": bool(tuning),
            "trials": len(tuning.trials) if tuning else None,
            "data": data.name if data else None,
            "pairs": data.pairs if data else None,
            "fit_seconds": mean_of([one.fit.seconds for one in line.fits if one.fit]),
            "peak_fit_memory_bytes": fit.peak_memory_bytes if fit else None,
            "artefact_bytes": fit.artefact_bytes if fit else None,
            "relative_speed": mean_of([one.cost.relative_speed for one in line.fits if one.cost]),
            "sources": listed(list(dict.fromkeys(sources))),
            "scorers_report": listed(reported_by(line.records)),
            "scorer_tune": chose.get("tune"),
            "scorer_pairs": chose.get("pairs"),
            "tasks_at_floor": listed([task.name for task in self.tasks if task.at_floor]),
            **dict.fromkeys(("random_reduction_low", "random_reduction_mean", "random_reduction_high", "random_draws",
                             "beats_random", "dev_reduction", "dev_perplexity_ratio", "shrinkage")),
        }  # fmt: skip
        chosen = [tradeoff.chosen_trial(one) for one in tunings]
        known = [trial for trial in chosen if trial is not None]
        row |= self.tradeoff(line)
        if known:
            row["dev_reduction"] = mean_of([trial.reduction for trial in known])
            row["dev_perplexity_ratio"] = mean_of([trial.perplexity_ratio for trial in known])
            row["shrinkage"] = self.shrinkage(line, row["dev_reduction"])
        for name, entry in line.metrics.items():
            row |= measured(name, entry, line)
            row |= self.against_unsteered(name, entry.transform, self.pairs.get(line, []))
        return row | {"records": record_names(line)}

    def against_unsteered(self, name: str, transform: Transform, pairs: list[Pairs]) -> dict[str, Any]:
        """The change of a metric, its interval and, where it is tested, p and what could have been found."""
        part = change(pairs, name, transform) if pairs else None
        delta = part.estimate() if part else Estimate(math.nan, None, None)
        row: dict[str, Any] = {
            f"{name}.delta": delta.value, f"{name}.delta_low": delta.low, f"{name}.delta_high": delta.high
        }  # fmt: skip
        if name in self.tested:
            row[f"{name}.p"] = p_value(pairs, name, transform) if part else None
            row[f"{name}.detectable"] = significance.detectable(pairs[0][name]) if part else None
        return row

    def shrinkage(self, line: Line, dev_reduction: float) -> float | None:
        """Reduction on the dev split less that on the test split, of what was tuned; None where it is not reported."""
        if line.tuning is None:
            return None
        tuned = f"rtp.{line.tuning.scorer}.{line.tuning.objective}"
        name = next((one for one in self.metrics if one == tuned or one.startswith(f"{tuned}_k")), None)
        part = change(self.pairs.get(line, []), name, "mean", "reduction") if name else None
        return dev_reduction - part.value if part else None

    def collapse(self, line: Line) -> dict[str, Any]:
        """Whether texts of the test split have collapsed, of any fit and sampling seed, and why.

        Empty where there is nothing to compare.
        """
        own, base = (
            [
                {name: metric.value for name, metric in record.metrics.items()}
                for record in (one.records if one else ())
                if record.suite == "fluency"
            ]
            for one in (line, self.baseline)
        )
        if line.is_baseline or not own or not base:
            return {"collapsed": None, "collapse_reason": None}
        reasons = [reason for one in own if (reason := tradeoff.collapse(one, base[0])) is not None]
        times = f" ({len(reasons)} of {len(own)} runs)" if len(own) > 1 and reasons else ""
        return {"collapsed": bool(reasons), "collapse_reason": reasons[0] + times if reasons else None}

    def tradeoff(self, line: Line) -> dict[str, Any]:
        """The trade-off with its intervals; for the unsteered model what it is by definition, without."""
        if line.is_baseline:
            fluent = 1.0 if PERPLEXITY in line.metrics else None
            nothing = 0.0 if self.toxicity and self.toxicity[0] in line.metrics else None
            able = 1.0 if any(task.counts for task in self.tasks) else None
            exact = {"toxicity_reduction": nothing, "perplexity_ratio": fluent, "fluency_kept": fluent}
            return exact | {"capability_kept": able, "gold_logprob_change": 0.0 if self.tasks else None, "joint": None}
        found: dict[str, Any] = {}
        for name, part in (self.parts.get(line) or dict.fromkeys(DERIVED)).items():
            estimate = part.estimate() if part else Estimate(math.nan, None, None)
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found


DERIVED = ("toxicity_reduction", "perplexity_ratio", "fluency_kept", "capability_kept", "gold_logprob_change", "joint")


def _ending(pairs: Pairs, end: str) -> dict[str, pd.DataFrame]:
    return {name: rows for name, rows in pairs.items() if name.endswith(end)}


def _accuracies(pairs: Pairs) -> dict[str, pd.DataFrame]:
    """Paired accuracies of the suite capability, by task."""
    rows = {name: one for name, one in _ending(pairs, ".accuracy").items() if name.startswith("capability.")}
    return {name.removeprefix("capability.").removesuffix(".accuracy"): one for name, one in rows.items()}


def reported_by(records: Sequence[Record]) -> list[str]:
    """The scorers that judged texts of these records, in their order."""
    return list(dict.fromkeys(name for one in records for name in one.judged_by.report or ()))


def record_names(line: Line) -> str | None:
    """The ids of a line's records, which no other line has."""
    return listed(sorted(one.id for one in line.records))


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def error_over(line: Line) -> str:
    """What the intervals of a line speak about."""
    seeded = any(fit.columns["fit_seed"] is not None for fit in line.fits)
    if len(line.fits) > 1:
        return f"items and {len(line.fits)} fit seeds"
    return "items; one fit seed" if seeded and not line.is_baseline else "items"


def measured(name: str, metric: Metric, line: Line) -> dict[str, Any]:
    """Value, standard error and count of a metric, over the fits. One without items keeps the record's own number."""
    own = [one for fit in line.fits if (one := fit.items().get(name)) is not None]
    if not own:
        return {name: metric.value, f"{name}.se": metric.standard_error, f"{name}.n": metric.n}
    transform = metric.transform
    arrays = [(one["value"].to_numpy(float), one["weight"].to_numpy(float)) for one in own]
    values = np.array([fold(*one, transform) for one in arrays])
    errors = [standard_error(*one, transform) for one in arrays]
    error = None if None in errors else math.sqrt(float(np.mean(np.square(np.array(errors, dtype=float)))))
    if len(values) > 1 and error is not None:  # other items for all of the fits, other fits
        error = math.sqrt(error**2 + float(values.var(ddof=1)) / len(values))
    return {name: float(values.mean()), f"{name}.se": error, f"{name}.n": len(own[0])}


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers and flags as booleans, both of which may be missing."""
    kinds: dict[str, str] = {}
    for column in frame.columns:
        if column in (*WHOLE, "trials") or str(column).endswith(".n"):
            kinds[column] = "Int64"
        elif column in FLAGS:
            kinds[column] = "boolean"
        elif frame[column].isna().all():
            kinds[column] = "float64"
    return frame.astype(kinds)


def tables(results: Sequence[Result], each_fit: bool = False) -> list[Table]:
    """One table for each group of cells that may be compared; the fits of a method as one line, or each as its own."""
    return [Table(i + 1, lines(entries, each_fit)) for i, entries in enumerate(groups(results))]
