"""Where the rows of a table stand among each other: corrected p, groups, fronts, ranks. Frames in, frames out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.records.names import BASELINE_FAMILY, RANDOM
from bench.stats import pareto, significance
from bench.stats.bootstrap import Array

PLANES = ("fluency_kept", "capability_kept")  # what toxicity reduction is set against


def controls(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows that are no method: unsteered, random directions."""
    return (frame["family"] == BASELINE_FAMILY) | (frame["method"] == RANDOM)


def corrected(frame: pd.DataFrame, tested: Sequence[str]) -> pd.DataFrame:
    """With `.p_holm` of each tested metric and `vs_control_p_holm`, corrected over the rows, and `.detectable_holm`."""
    none = pd.Series(np.nan, index=frame.index)
    p = {f"{metric}.p_holm": frame.get(f"{metric}.p", none) for metric in tested}
    p["vs_control_p_holm"] = frame.get("vs_control_p", none)
    columns: dict[str, Any] = {name: significance.holm(_known(one)) for name, one in p.items()}
    for metric in tested:
        least = frame.get(f"{metric}.detectable", none)
        tests = int(frame.get(f"{metric}.p", none).notna().sum())
        columns[f"{metric}.detectable_holm"] = [
            None if before is None else significance.detectable_after_holm(before, int(n), tests)
            for before, n in zip(_known(least), frame.get(f"{metric}.n", none), strict=True)
        ]
    return frame.assign(**columns)


def with_verdict(frame: pd.DataFrame, metric: str, higher_is_better: bool) -> pd.DataFrame:
    """With `verdict`: what the metric's change amounts to; None where it was not tested."""
    delta = frame.get(f"{metric}.delta", pd.Series(np.nan, index=frame.index))
    found: list[Any] = []
    for p, change in zip(_known(frame[f"{metric}.p_holm"]), delta, strict=True):
        verdict = None if p is None else "no difference found"
        if p is not None and p < significance.ALPHA and change != 0:
            verdict = "better" if (change > 0) == higher_is_better else "worse"
        found.append(verdict)
    return frame.assign(verdict=found)


def grouped(
    frame: pd.DataFrame, metric: str, higher_is_better: bool, p: Mapping[tuple[int, int], float | None]
) -> pd.DataFrame:
    """With `group`: rows that share a letter are not told apart in the metric, after Holm over all pairs of rows.

    p: two-sided, of each pair of rows by their places in the frame.
    """
    sign = -1 if higher_is_better else 1
    known = [i for i, value in enumerate(frame[metric]) if pd.notna(value)]
    best = sorted(known, key=lambda i: sign * frame[metric].iloc[i])
    adjusted = zip(p, significance.holm(list(p.values())), strict=True)
    apart = {frozenset(map(str, pair)) for pair, one in adjusted if one is not None and one < significance.ALPHA}
    letters = significance.compact_letter_display([str(i) for i in best], apart)
    found: list[Any] = [letters.get(str(i)) for i in range(len(frame))]
    return frame.assign(group=found)


def with_front(frame: pd.DataFrame) -> pd.DataFrame:
    """With `on_front`: of toxicity reduction and fluency kept, or capability kept; collapsed text never is."""
    whole = ~frame["collapsed"].astype("boolean").fillna(False)
    on: list[bool | None] = [None] * len(frame)
    for plane in PLANES:
        seen = np.flatnonzero(frame[plane].notna() & frame["toxicity_reduction"].notna() & whole)
        if len(seen):
            points = frame.iloc[seen][["toxicity_reduction", plane]].to_numpy(float)
            for i, best in zip(seen, pareto.front(points), strict=True):
                on[i] = bool(best) or bool(on[i])
    return frame.assign(on_front=pd.Series(on, index=frame.index, dtype=object))


def eligible(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Methods that may be ranked: not collapsed, tuned within bounds; of given strength only where none was tuned."""
    methods = ~controls(frame)
    known = {name: frame[name].astype("boolean") for name in ("feasible", "collapsed", "tuned")}
    sound = known["feasible"].fillna(True) & ~known["collapsed"].fillna(False)
    given = ~known["tuned"] & bool(known["tuned"][methods].any())
    return (methods & sound & ~given).astype(bool)


def ranked(frame: pd.DataFrame, metric: str, higher_is_better: bool, draws: Sequence[Array | None]) -> pd.DataFrame:
    """With `rank` by the change of a metric to unsteered and its 95 % interval, of what is `eligible`.

    draws: (R,) of the change of each row, over the same resamples; None where it has none.
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
    return frame.assign(**columns)[[first, *columns, *rest]]


def _known(values: "pd.Series[float]") -> list[float | None]:
    """What is missing as None."""
    return [None if pd.isna(value) else float(value) for value in values]
