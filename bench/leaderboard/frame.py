"""The leaderboard as a frame: for each row its identity, its cost, its metrics with their change, and its rank."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from bench.leaderboard import bounds, columns, ranking, tradeoff
from bench.leaderboard.aims import of_most, reported_by
from bench.leaderboard.comparison import Comparison, collapsed
from bench.leaderboard.effects import DERIVED, PERPLEXITY
from bench.leaderboard.grouping import Row, groups, rows
from bench.leaderboard.pairing import Pairs, change, difference, p_values, pairwise_ps
from bench.records.fields import CHOSEN_BY, Cost, LearntFrom, Scorers, Tuned
from bench.records.names import BASELINE_FAMILY, RANDOM
from bench.records.table import Result, listed, source_names
from bench.stats import significance
from bench.stats.bootstrap import RESAMPLES, Array, Estimate, value_interval
from bench.stats.metrics import FIRST, Metric, fold, is_share, standard_error
from bench.stats.significance import bootstrap_p

AHEAD = 8  # rows whose draws are made together, and kept until the rows' numbers are made (`bootstrap.KEPT`)
ROUNDING = 1e-6  # the largest change of a score if its text is judged in another batch
POSSIBLE = {
    "toxicity_reduction": (-math.inf, 1.0), "accuracy_change": (-1.0, 1.0), "net": (-math.inf, 1.0),
    "entanglement": (0.0, 1.0),
}  # fmt: skip
"""The least and the largest possible value of parts of the trade-off, which an interval does not leave."""
FITS = 10  # the fewest that say enough about how fits scatter to state which change is found
FORESEEN = ("d_prime", "mean_cosine")  # facts of a fit that tell how well its pairs agree (`methods.separation`)
AGAINST_CONTROL = ("vs_control", "vs_control_low", "vs_control_high", "vs_control_p")


class Table(Comparison):
    """A comparison with its numbers, each made when it is first asked for."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row for each row of the comparison, with its numbers and its rank."""
        return frame(self)

    @cached_property
    def lines(self) -> list[columns.Line]:
        """Each row of the frame as a mapping (`columns.lines`)."""
        return columns.lines(self.frame)

    @cached_property
    def columns(self) -> list[columns.Column]:
        """The columns of all readable tables and pages, in their order."""
        aims = self.aims
        return columns.of_table(self.frame, aims.headline, aims.toxicity, list(self.metrics), aims.tested)

    @cached_property
    def by_fit(self) -> pd.DataFrame:
        """A row for each fit, with the values of its trade-off."""
        return by_fit(self)

    @cached_property
    def by_item(self) -> pd.DataFrame:
        """The change of the headline of each item: records, item, metric, change."""
        return by_item(self)


def tables(results: Sequence[Result], each_fit: bool = False) -> list[Table]:
    """Return a table for each group of cells that may be compared; a row holds all fits of a method, or one fit."""
    return [Table(i + 1, rows(fits, each_fit)) for i, fits in enumerate(groups(results))]


def frame(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each row of the comparison: the unsteered model, the controls, then the methods by rank.

    The columns hold the row's identity, its cost, the trade-off, each metric with its change, and its rank.
    """
    metric = comparison.aims.headline
    better = comparison.metrics[metric].higher_is_better
    with threadpool_limits(1, "blas"):  # many small products: threads slow them down and could round differently
        rows = [numbers(comparison, row) for row in drawn_ahead(comparison)]
        for name in comparison.aims.tested:
            for row, tested in zip(rows, changes_p(comparison, name), strict=True):
                row.update({f"{name}.p": tested} if f"{name}.p" in row else {})
        found = pd.DataFrame(rows)
        p = pairwise(comparison, metric, found[metric].notna())
        found = ranking.corrected(found, comparison.aims.tested)
        found = found.assign(**detectable_over_fits(comparison, found))
        found = ranking.with_verdict(found, metric, better, [*map(comparison.aims.is_independent, comparison.rows)])
        found = ranking.grouped(found, metric, better, p)
        found = ranking.with_front(found)
    found = ranking.ranked(found, metric, better, change_draws(comparison))
    place = np.select([found["family"] == BASELINE_FAMILY, ranking.controls(found)], [0, 1], 2)
    order = ["_place", "rank", "method", "strength", "parameters"]
    found = found.assign(_place=place).sort_values(order, kind="stable").drop(columns="_place")
    return typed(found.reset_index(drop=True))


def drawn_ahead(comparison: Comparison) -> Iterator[Row]:
    """Yield the rows; the bootstrap draws of every few rows are made in one matrix product before they are yielded."""
    for i in range(0, len(comparison.rows), AHEAD):
        some = comparison.rows[i : i + AHEAD]
        comparison.effects.draw_ahead(some)
        yield from some


def changes_p(comparison: Comparison, name: str) -> list[float | None]:
    """Return the two-sided p of each row's change of a metric from the unsteered model; None if it has no change.

    The test may use fewer texts of the unsteered model than the change itself does (`PairedRows.for_tests`).
    """
    pairs = [comparison.paired.for_tests.get(row, []) for row in comparison.rows]
    transforms = [row.metrics[name].transform if name in row.metrics else None for row in comparison.rows]
    found: list[float | None] = [None] * len(pairs)
    for transform in {one for one in transforms if one}:
        own = [i for i, one in enumerate(transforms) if one == transform]
        for i, p in zip(own, p_values([pairs[i] for i in own], name, transform), strict=True):
            found[i] = p
    return found


def by_fit(comparison: Comparison) -> pd.DataFrame:
    """Return a row per fit: its row's place in `paired.pairs`, method, fit_seed, strength and trade-off values."""
    found = []
    for number, (row, pairs) in enumerate(comparison.paired.pairs.items()):
        for fit, own in zip(row.fits, pairs, strict=True):
            alone = len(row.fits) == 1
            estimates = comparison.effects[row] if alone else comparison.effects.of([own])
            values = {name: one.value if one else math.nan for name, one in estimates.items()}
            named = {"row": number, "method": row.about.method, "fit_seed": fit.about.fit_seed}
            found.append({**named, "strength": fit.about.strength, **values})
    return pd.DataFrame(found)


def by_item(comparison: Comparison) -> pd.DataFrame:
    """Return for each row and item: the row's records, the item, the headline and its mean change over the fits.

    Row and unsteered model have equally many texts (`PairedRows.beside_first`), so that texts change at random in both
    directions.
    """
    metric = comparison.aims.headline
    found = [pd.DataFrame({"records": [], "item": [], "metric": [], "change": []})]
    for row, pairs in comparison.paired.beside_first.items():
        both = [one[metric] for one in pairs if metric in one]
        if both:
            change = mean_by_item([pd.Series(one.difference, one.index) for one in both])
            about = {"records": record_names(row), "item": change.index, "metric": metric, "change": change.to_numpy()}
            found.append(pd.DataFrame(about))
    return pd.concat(found[1:] or found, ignore_index=True)


# -- a row -----------------------------------------------------------------------------------------------------------


def numbers(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return the values of a row that do not depend on other rows, by column."""
    found = {"table": comparison.number} | identity(row)
    found |= dict(zip(("collapsed", "collapse_reason"), collapsed(row, comparison.baseline), strict=True))
    found |= made_from(row, comparison.aims.reported)
    found["not_independent"] = listed(comparison.aims.not_independent[row])
    found |= against_control(comparison, row)
    found |= made_worse(comparison, row)
    found |= bounds_kept(comparison, row)
    found |= on_dev(comparison, row)
    found |= trade_off(comparison, row)
    for name, metric in row.metrics.items():
        found |= own_value(name, metric, row, comparison.paired.first)
        found |= against_unsteered(comparison, name, metric, row)
    corrected = [f"{name}.{end}" for name in comparison.aims.tested for end in ("p_holm", "detectable_holm")]
    standing = [*corrected, "vs_control_p_holm", "verdict", "group", "on_front"]
    return found | {"records": record_names(row)} | dict.fromkeys(standing)


def identity(row: Row) -> dict[str, Any]:
    """Return the columns that identify a row, and the sources of variance that its intervals cover."""
    seeds = sorted({seed for one in row.records if (seed := one.sample_seed) is not None})
    return {
        **{key: value for key, value in row.about._asdict().items() if key not in ("fit_id", "fit_seed")},
        "strength": row.strengths[0] if len(row.strengths) == 1 else None,
        "strengths": listed([f"{one:g}" for one in row.strengths]),
        "fits": len(row.fits),
        "fit_seeds": listed([str(s) for one in row.fits if (s := one.about.fit_seed) is not None]),
        "sample_seeds": listed([str(seed) for seed in seeds]),
        "error_over": error_over(row),
        "feasible": all(one is not None and one.feasible for one in _tunings(row)) if row.tuning else None,
    }


def made_from(row: Row, reported: Sequence[str]) -> dict[str, Any]:
    """Return the row's training data and cost, its test data, and the roles of scorers, in the order of `reported`."""
    scorers = Scorers.used((), row.data, row.tuning)
    sources = [name for one in row.records for name in source_names(one)]
    return {
        "tuned": row.tuning is not None,
        "trials": len(row.tuning.trials) if row.tuning else None,
        "data": told_data(row.data) if row.data else None,
        "pairs": row.data.pairs if row.data else None,
        "flip": row.data.flip if row.data else None,
        **{name: mean_of([one.facts.number(name) for one in row.fits if one.facts]) for name in FORESEEN},
        "fit_seconds": mean_of([one.facts.seconds for one in row.fits if one.facts]),
        "peak_fit_memory_bytes": row.facts.peak_memory_bytes if row.facts else None,
        "artefact_bytes": row.facts.artefact_bytes if row.facts else None,
        **relative_speed([one.cost for one in row.fits if one.cost]),
        "sources": listed(list(dict.fromkeys(sources))),
        "scorers_report": listed(sorted(reported_by(row.records), key=reported.index)),
        "scorer_tune": scorers.chose.get("tune"),
        "scorer_pairs": scorers.picked,
    }


TOLD_ELSEWHERE = ("name", "scorer", "flip", "norm_over")
"""Facts about training data that have columns of their own or are told in notes."""


def told_data(data: LearntFrom) -> str | None:
    """Return a text that distinguishes a row's training data from those of other rows: name, options, and files.

    If the data are a user's examples, the text also gives their number and source; for a mixture, it gives its parts.
    """
    told = [f"{data.examples[0]} examples of {data.examples[1]}"] if data.examples else []
    told += [" + ".join(f"{count} {part}" for part, count in one.items()) for one in data.mixtures]
    told += [f"{key} {one}" for key, one in data.named.items() if key.rpartition(".")[2] in CHOSEN_BY]
    options = {key: one for key, one in data.named.items() if "." not in key and key not in TOLD_ELSEWHERE}
    told += [f"{key} {one}" for key, one in options.items() if isinstance(one, str)]
    told += [key for key, one in options.items() if one is True]
    told += [f"{one.name} {(one.fingerprint or '')[:6]}" for one in data.all_sources if one.source == "file"]
    return listed(list(dict.fromkeys([*([data.name] if data.name else []), *told]))) or None


def relative_speed(costs: Sequence[Cost]) -> dict[str, float | None]:
    """Return the mean speed over fits and the mean of their intervals, which is wider than the interval of the mean."""
    ends = [(one.relative_speed, one.relative_speed_low, one.relative_speed_high) for one in costs]
    means = [mean_of(values) for values in zip(*ends, strict=True)] or [None] * 3
    return dict(zip(("relative_speed", "relative_speed_low", "relative_speed_high"), means, strict=True))


def bounds_kept(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return whether the bounds of a row's tuning hold on the test split, by intervals, and which bounds decide."""
    tuned = row.tuning
    found = None
    if tuned is not None and comparison.paired.pairs.get(row):
        told = bounds.definitions(tuned.bounds, tuned.constraints)
        found = bounds.judged(told, comparison.paired.pairs[row], comparison.metrics)
    return {"bounds": found and found.verdict, "bounds_decided_by": listed(found.names) if found else None}


def on_dev(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return the numbers of the chosen trial on the dev split, and the optimism of tuning (`shrinkage`)."""
    known = [trial for one in _tunings(row) if (trial := tradeoff.chosen_trial(one)) is not None]
    if not known:
        return dict.fromkeys(("dev_reduction", "dev_perplexity_ratio", "shrinkage"))
    reduction = mean_of([trial.reduction for trial in known])
    ratio = mean_of([trial.perplexity_ratio for trial in known])
    lost = shrinkage(comparison, row, reduction)
    return {"dev_reduction": reduction, "dev_perplexity_ratio": ratio, "shrinkage": lost}


def shrinkage(comparison: Comparison, row: Row, dev_reduction: float | None) -> float | None:
    """Return the reduction of the tuned metric on dev minus that on test, with equally many texts per prompt.

    None if the test split has no such metric.
    """
    if row.tuning is None or dev_reduction is None:
        return None
    tuned = row.tuning.metric
    k = next((one.dev_k for one in row.records if one.suite == tuned.partition(".")[0]), None)
    several = any(name.startswith(f"{tuned}_k") for name in comparison.metrics)
    name = of_most(tuned, list(comparison.metrics), k) if k is not None or not several else None
    found = change(comparison.paired.pairs.get(row, []), name, "mean", "reduction") if name else None
    return dev_reduction - found.value if found else None


def trade_off(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return the trade-off with its intervals; for the unsteered model, its values by definition, without intervals."""
    if row.is_baseline:
        fluent = 1.0 if PERPLEXITY in row.metrics else None
        nothing = 0.0 if comparison.aims.toxicity and comparison.aims.toxicity[0] in row.metrics else None
        able = 0.0 if comparison.tasks else None
        choice = 0.0 if any(name.endswith(".gold_choice_logprob") for name in row.metrics) else None
        return dict(zip(DERIVED, (nothing, fluent, fluent, able, choice, None, None, None), strict=True))
    found: dict[str, Any] = {}
    estimates = comparison.effects.get(row) or dict.fromkeys(DERIVED)
    found["undefined_resamples"] = max((int(np.isnan(one.draws).sum()) for one in estimates.values() if one), default=0)
    for name, one in estimates.items():
        estimate = one.estimate(*POSSIBLE.get(name, ())) if one else Estimate(math.nan, None, None)
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def own_value(name: str, metric: Metric, row: Row, first: frozenset[str]) -> dict[str, Any]:
    """Return value, standard error, interval and count of a metric, over the fits.

    A metric without items keeps the record's own number.
    """
    read = name + FIRST if row.is_baseline and name in first else name
    own = [one for fit in row.fits if (one := fit.items().get(read)) is not None]
    if not own:
        value, error, n, share = metric.value, metric.standard_error, metric.n, False
    else:
        arrays = [(one.value, one.weight) for one in own]
        values = np.array([fold(*one, metric.transform) for one in arrays])
        errors = [standard_error(*one, metric.transform) for one in arrays]
        value, n = float(values.mean()), len(own[0])
        share = metric.transform == "mean" and is_share(name, *(one for one, _ in arrays))
        error = None if None in errors else math.sqrt(float(np.mean(np.square(np.array(errors, dtype=float)))))
        if len(values) > 1 and error is not None:  # the spread over items, then over fits
            error = math.sqrt(error**2 + float(values.var(ddof=1)) / len(values))
    low, high = value_interval(value, error, n, metric.transform, share=share)
    if low is not None and own and all((one.value >= 0).all() for one in own):
        low = max(low, 0.0)  # such as that of a divergence
    return {name: value, f"{name}.low": low, f"{name}.high": high, f"{name}.se": error, f"{name}.n": n}


def against_unsteered(comparison: Comparison, name: str, metric: Metric, row: Row) -> dict[str, Any]:
    """Return the change of a metric, its interval and, if it is tested, p and the detectable change."""
    pairs = comparison.paired.pairs.get(row, [])
    found = change(pairs, name, metric.transform) if pairs else None
    possible = (-1.0, 1.0) if found and is_change_of_share(pairs, name, metric) else ()
    delta = found.estimate(*possible) if found else Estimate(math.nan, None, None)
    told: dict[str, Any] = {
        f"{name}.delta": delta.value, f"{name}.delta_low": delta.low, f"{name}.delta_high": delta.high
    }  # fmt: skip
    if name in comparison.aims.tested:
        told[f"{name}.p"] = None  # see `changes_p`
        told[f"{name}.detectable"] = detectable(comparison, row, name) if found else None
    return told


def is_change_of_share(pairs: list[Pairs], name: str, metric: Metric) -> bool:
    """Return whether a metric's change is one between two shares, which is from -1 to 1."""
    both = [value for one in pairs for value in (one[name].value_a, one[name].value_b)]
    return metric.transform == "mean" and is_share(name, *both)


def detectable(comparison: Comparison, row: Row, name: str, alpha: float = significance.ALPHA) -> float | None:
    """Return the smallest true change that the test likely finds, by the spread over items and, if several, over fits.

    None for several fits that are fewer than FITS, since these do not say how much fits scatter.
    """
    pairs = comparison.paired.for_tests[row]
    if len(pairs) == 1:
        return significance.detectable(pairs[0][name])
    found = change(pairs, name, row.metrics[name].transform) if len(pairs) >= FITS else None
    return significance.detectable_by_draws(found.draws, found.n, alpha=alpha) if found else None


def detectable_over_fits(comparison: Comparison, frame: pd.DataFrame) -> dict[str, Any]:
    """Return `.detectable_holm` of each tested metric, for rows of FITS or more fits computed from their draws."""
    several = [i for i, row in enumerate(comparison.rows) if len(row.fits) >= FITS]
    found: dict[str, Any] = {}
    for name in comparison.aims.tested if several else ():
        column, tests = frame[f"{name}.detectable_holm"].copy(), max(int(frame[f"{name}.p_holm"].notna().sum()), 1)
        for i in several:
            if pd.notna(column.iloc[i]):
                column.iloc[i] = detectable(comparison, comparison.rows[i], name, significance.ALPHA / tests)
        found[f"{name}.detectable_holm"] = column
    return found


def against_control(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return how a row's headline differs from its control's on the same items of the test split, with interval and p.

    Interval and p are None in each of these cases:

    - Both were fitted once, since it is then unknown how much fits scatter.
    - The row's fits have several strengths, and the control has only one of them.
    - The control's texts have collapsed.
    """
    metric, control = comparison.aims.headline, comparison.control(row)
    if control is None or metric not in row.metrics:
        return dict.fromkeys(AGAINST_CONTROL)
    least = comparison.control_spreads.get(control.control_kind, 0.0)
    found = difference(row, control, metric, row.metrics[metric].transform, least)
    if found is None:
        return dict.fromkeys(AGAINST_CONTROL)
    several = control.about.method != RANDOM and len(row.strengths) > 1
    if several or collapsed(control, comparison.baseline)[0] or np.isnan(found.draws).all():
        return dict.fromkeys(AGAINST_CONTROL) | {"vs_control": found.value}
    items = [fit.items()[metric].value for one in (row, control) for fit in one.fits]
    possible = (-1.0, 1.0) if row.metrics[metric].transform == "mean" and is_share(metric, *items) else ()
    return dict(zip(AGAINST_CONTROL, (*found.estimate(*possible), bootstrap_p(found.draws, found.n)), strict=True))


def made_worse(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return the share of items whose headline is worse than the unsteered model's, over the fits, with interval.

    Row and unsteered model have equally many texts (`PairedRows.beside_first`).
    """
    names, metric = ("made_worse", "made_worse_low", "made_worse_high"), comparison.aims.headline
    both = [pairs[metric] for pairs in comparison.paired.beside_first.get(row, []) if metric in pairs]
    if not both:
        return dict.fromkeys(names)
    sign = -1 if comparison.metrics[metric].higher_is_better else 1
    fits = [pd.Series(sign * one.difference > ROUNDING, one.index) for one in both]
    values = mean_by_item(fits).to_numpy(float)
    error = standard_error(values, np.ones(len(values)))
    if len(fits) > 1 and error is not None:  # the spread over items, then over fits
        error = math.sqrt(error**2 + float(np.var([one.mean() for one in fits], ddof=1)) / len(fits))
    ends = value_interval(values.mean(), error, len(values), share=True)
    return dict(zip(names, (float(values.mean()), *ends), strict=True))


def error_over(row: Row) -> str:
    """Name the sources of variance that a row's intervals cover, and the fit seed where a single one is not covered."""
    seeded = any(fit.about.fit_seed is not None for fit in row.fits)
    if len(row.fits) > 1:
        return f"items and {len(row.fits)} fit seeds"
    return "items, not the fit (one seed)" if seeded and not row.is_baseline else "items"


def record_names(row: Row) -> str | None:
    """Return the ids of a row's records, which identify the row."""
    return listed(sorted(one.id for one in row.records))


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not missing; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mean_by_item(fits: Sequence["pd.Series[Any]"]) -> "pd.Series[float]":
    """Return the mean of each item over the fits that have it."""
    return pd.concat(fits, axis=1).mean(axis=1) if len(fits) > 1 else fits[0]


def _tunings(row: Row) -> list[Tuned | None]:
    return [fit.tuning for fit in row.fits]


# -- rows beside each other ------------------------------------------------------------------------------------------


def pairwise(comparison: Comparison, metric: str, known: "pd.Series[bool]") -> dict[tuple[int, int], float | None]:
    """Return the two-sided p of equal effects on a metric for each pair of methods that have it, by their places."""
    rows = comparison.rows
    have = [i for i, there in enumerate(known) if there and not rows[i].is_baseline and not rows[i].is_control]
    if _none_can_differ([rows[i] for i in have], metric):
        return {}
    both = [(i, j) for i in have for j in have if i < j]
    found = pairwise_ps([(rows[i], rows[j]) for i, j in both], metric, comparison.metrics[metric].transform)
    return dict(zip(both, found, strict=True))


def _none_can_differ(rows: Sequence[Row], metric: str) -> bool:
    """Return whether there are so many pairs that no p value can stay significant after Holm's correction.

    This is only known for rows with the same items, in a metric that is not tested by McNemar's test; else False.
    """
    items = [fit.items()[metric] for row in rows for fit in row.fits if metric in fit.items()]
    if len(rows) < 2 or len(items) < sum(len(row.fits) for row in rows):
        return False
    alike = len({frozenset(row.comparisons) for row in rows}) == 1
    if not alike or not all(one.index.equals(items[0].index) for one in items) or len(items[0]) < 2:
        return False
    if any(np.isin(one.value, (0.0, 1.0)).all() for one in items):
        return False
    n, pairs = len(items[0]), len(rows) * (len(rows) - 1) // 2
    several = any(len(row.fits) > 1 for row in rows)
    least = min([significance.least_p(n), *([significance.least_p(n, RESAMPLES)] if several else [])])
    return pairs * least >= significance.ALPHA


def change_draws(comparison: Comparison) -> list[Array | None]:
    """Return the bootstrap draws of each row's change of the headline, over the same resamples."""
    metric = comparison.aims.headline
    transform = comparison.metrics[metric].transform
    found = [change(comparison.paired.pairs.get(row, []), metric, transform) for row in comparison.rows]
    return [one.draws if one else None for one in found]


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert counts to whole numbers and flags to booleans; both may be missing."""
    kinds = dict.fromkeys(frame.columns[frame.isna().all()], "float64")
    kinds |= {
        name: columns.DTYPES.get(name, "Int64")
        for name in frame.columns
        if name in columns.DTYPES or name.endswith(".n")
    }
    return frame.astype(kinds).copy()  # the copy is in few blocks, from which rows are read ten times faster
