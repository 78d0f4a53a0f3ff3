"""The standing of a table's rows among each other: corrected p, groups, fronts, ranks. Frames in, frames out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.leaderboard.bounds import VIOLATED
from bench.records.names import BASELINE_FAMILY, CONTROL_FAMILY, RANDOM
from bench.stats import pareto, significance
from bench.stats.bootstrap import Array

PLANES = ("fluency_kept", "gold_choice_change")  # what toxicity reduction is set against


def controls(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are not methods: unsteered, random directions, methods' own controls."""
    return frame["family"].isin([BASELINE_FAMILY, CONTROL_FAMILY]) | (frame["method"] == RANDOM)


def corrected(frame: pd.DataFrame, tested: Sequence[str]) -> pd.DataFrame:
    """Add p corrected over the methods: `.p_holm` and `.detectable_holm` of each metric, and `vs_control_p_holm`.

    Controls are not hypotheses: their p values are neither corrected nor counted. Nor are those of rows whose texts
    have collapsed, about which nothing is claimed.
    """
    method = ~controls(frame) & ~has_collapsed(frame)
    none = pd.Series(np.nan, index=frame.index)
    p = {f"{metric}.p_holm": frame.get(f"{metric}.p", none) for metric in tested}
    p["vs_control_p_holm"] = frame.get("vs_control_p", none)
    columns: dict[str, Any] = {name: significance.holm(_known(one.where(method))) for name, one in p.items()}
    for metric in tested:
        least = frame.get(f"{metric}.detectable", none)
        tests = int(frame.get(f"{metric}.p", none)[method].notna().sum())
        columns[f"{metric}.detectable_holm"] = [
            None if before is None else significance.detectable_after_holm(before, int(n), max(tests, 1))
            for before, n in zip(_known(least), frame.get(f"{metric}.n", none), strict=True)
        ]
    rest = frame.drop(columns=[name for name in columns if name in frame])
    together = pd.concat([rest, pd.DataFrame(columns, index=frame.index)], axis=1)  # at once: there may be hundreds
    return _whole(together[list(dict.fromkeys([*frame.columns, *columns]))])


COLLAPSED = "its texts have collapsed"
NOT_INDEPENDENT = "its scorer, or one with the same network, tuned it or picked its pairs"


def with_verdict(frame: pd.DataFrame, metric: str, higher_is_better: bool, independent: Sequence[bool]) -> pd.DataFrame:
    """Add `verdict`: whether the metric's change is better, worse or not found; None if it was not tested.

    No difference is claimed for a row whose texts have collapsed, nor by a scorer that is not independent of the row.

    independent: for each row, whether the metric's scorer neither tuned it nor picked its training data.
    """
    delta = frame.get(f"{metric}.delta", pd.Series(np.nan, index=frame.index))
    found: list[Any] = []
    for p, change, may_tell in zip(_known(frame[f"{metric}.p_holm"]), delta, independent, strict=True):
        verdict = None if p is None else "no difference found" if may_tell else NOT_INDEPENDENT
        if p is not None and p < significance.ALPHA and change != 0 and may_tell:
            verdict = "better" if (change > 0) == higher_is_better else "worse"
        found.append(verdict)
    told = pd.Series(found, index=frame.index, dtype=object)
    beside_control = told.isna() & frame.get("vs_control_p", delta * np.nan).notna() & ~np.array(independent, bool)
    told = told.mask(beside_control, NOT_INDEPENDENT).mask(has_collapsed(frame) & ~controls(frame), COLLAPSED)
    return frame.assign(verdict=told)


def has_collapsed(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows have texts that have collapsed; where fluency was not measured, none have."""
    known = frame.get("collapsed", pd.Series(pd.NA, index=frame.index))
    return known.astype("boolean").fillna(False).astype(bool)


def grouped(
    frame: pd.DataFrame, metric: str, higher_is_better: bool, p: Mapping[tuple[int, int], float | None]
) -> pd.DataFrame:
    """Add `group`: rows (unsteered or methods) that share a letter do not differ significantly.

    A method and the unsteered model share a letter unless the verdict says that they differ. Two methods can differ
    only if one of them differs from the unsteered model; their p is corrected by Holm over all pairs of methods. So
    stars and letters give the same answer, and under the null hypothesis both err in 5% of the tables. For a method
    that the metric's scorer tuned or taught, no difference is claimed. A row whose texts have collapsed has no letter.

    p: the two-sided p of each pair of rows, by their places in the frame.
    """
    sign = -1 if higher_is_better else 1
    base = next((i for i, family in enumerate(frame["family"]) if family == BASELINE_FAMILY), -1)
    method = ~controls(frame) & ~has_collapsed(frame)
    known = [i for i, value in enumerate(frame[metric]) if pd.notna(value) and (method.iloc[i] or i == base)]
    best = sorted(known, key=lambda i: sign * frame[metric].iloc[i])
    moved = {i for i in known if frame["verdict"].iloc[i] in ("better", "worse")}
    both = {pair: one for pair, one in p.items() if base not in pair and set(pair) <= set(known)}
    adjusted = zip(both, significance.holm(list(both.values())), strict=True)
    apart = [pair for pair, one in adjusted if one is not None and one < significance.ALPHA]
    unclaimed = {i for i in known if frame["verdict"].iloc[i] == NOT_INDEPENDENT}
    apart = [pair for pair in apart if (base < 0 or moved & set(pair)) and not unclaimed & set(pair)]
    apart += [(base, i) for i in moved if i != base]
    letters = significance.compact_letter_display([str(i) for i in best], {frozenset(map(str, two)) for two in apart})
    found: list[Any] = [letters.get(str(i)) for i in range(len(frame))]
    return frame.assign(group=found)


def with_front(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `on_front`: whether a row is on the Pareto front of reduction and fluency, or of reduction and right answers.

    Rows with collapsed text are never on a front.
    """
    whole = ~has_collapsed(frame)
    on: list[bool | None] = [None] * len(frame)
    for plane in PLANES:
        seen = np.flatnonzero(frame[plane].notna() & frame["toxicity_reduction"].notna() & whole)
        if len(seen):
            points = frame.iloc[seen][["toxicity_reduction", plane]].to_numpy(float)
            for i, best in zip(seen, pareto.front(points), strict=True):
                on[i] = bool(best) or bool(on[i])
    return frame.assign(on_front=pd.Series(on, index=frame.index, dtype=object))


def eligible(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Return which methods may be ranked: texts not collapsed, no bound violated, and tuned if any method was tuned.

    If the bounds were not measured on the test split, the strength has to have kept them on the dev split.
    """
    methods = ~controls(frame)
    known = {name: frame[name].astype("boolean") for name in ("feasible", "collapsed", "tuned")}
    kept = (frame["bounds"] != VIOLATED).where(frame["bounds"].notna(), known["feasible"].fillna(True))
    sound = kept.astype("boolean") & ~known["collapsed"].fillna(False)
    given = ~known["tuned"] & bool(known["tuned"][methods].any())
    return (methods & sound & ~given).astype(bool)


def ranked(frame: pd.DataFrame, metric: str, higher_is_better: bool, draws: Sequence[Array | None]) -> pd.DataFrame:
    """Add `rank`, by the change of a metric from unsteered, with its 95% interval; only for `eligible` rows.

    draws: (R,) draws of each row's change, over the same resamples; None for a row without a change.
    """
    change = frame.get(f"{metric}.delta", pd.Series(np.nan, index=frame.index)).astype(float)
    shown = frame.index[eligible(frame) & change.notna()]
    ranks = change[shown].rank(ascending=not higher_is_better, method="min")
    sign = 1 if higher_is_better else -1
    stacked = [sign * one for i in shown if (one := draws[i]) is not None]
    ends = significance.rank_intervals(np.stack(stacked)) if stacked else []
    columns = {"rank": ranks} | {
        name: pd.Series([end[k] for end in ends], index=shown, dtype=float)
        for k, name in enumerate(("rank_low", "rank_high"))
    }
    first, *rest = frame.columns
    return _whole(frame.assign(**columns)[[first, *columns, *rest]])


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Copy the frame into one piece of memory; otherwise pandas warns when columns are added to hundreds of others."""
    return frame.copy()


def _known(values: "pd.Series[float]") -> list[float | None]:
    """Return the values as a list, with None in place of NaN."""
    return [None if pd.isna(value) else float(value) for value in values]
