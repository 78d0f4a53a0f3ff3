"""Where the lines of a table stand among each other: corrected p, groups, ranks, Pareto front."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.leaderboard.pairing import told_apart
from bench.records.names import BASELINE_FAMILY, RANDOM
from bench.stats import pareto, significance
from bench.stats.bootstrap import Estimate, interval

if TYPE_CHECKING:
    from bench.leaderboard.comparison import Table

PLANES = ("fluency_kept", "capability_kept")  # what toxicity reduction is set against

Rows = list[dict[str, Any]]
"""A row for each of `Table.lines`, in their order."""


def controls(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows that are no method: unsteered, random directions."""
    return (frame["family"] == BASELINE_FAMILY) | (frame["method"] == RANDOM)


def correct(table: "Table", rows: Rows) -> None:
    """Add `.p_holm` of each tested metric, over the lines, and `verdict`: what the headline's change amounts to."""
    for metric in table.tested:
        for row, p in zip(rows, significance.holm([row.get(f"{metric}.p") for row in rows]), strict=True):
            row[f"{metric}.p_holm"] = p
    for row in rows:
        p, delta = row.get(f"{table.headline}.p_holm"), row.get(f"{table.headline}.delta", math.nan)
        better = (delta > 0) == table.metrics[table.headline].higher_is_better
        row["verdict"] = None if p is None else "no difference found"
        if p is not None and p < significance.ALPHA and delta != 0:
            row["verdict"] = "better" if better else "worse"


def group(table: "Table", rows: Rows) -> None:
    """Add `group`: lines that share a letter are not told apart in the headline, after Holm over all pairs of lines."""
    metric = table.headline
    sign = -1 if table.metrics[metric].higher_is_better else 1
    known = [i for i, row in enumerate(rows) if pd.notna(row.get(metric))]
    best = sorted(known, key=lambda i: sign * rows[i][metric])
    both = [(i, j) for i in known for j in known if i < j]
    p = [told_apart(table.lines[i], table.lines[j], metric, table.transform(metric)) for i, j in both]
    corrected = zip(both, significance.holm(p), strict=True)
    apart = {frozenset(map(str, pair)) for pair, value in corrected if value is not None and value < significance.ALPHA}
    letter = significance.letters([str(i) for i in best], apart)
    for i, row in enumerate(rows):
        row["group"] = letter.get(str(i))


def fronts(rows: Rows) -> None:
    """Add `on_front`: of toxicity reduction and fluency kept, or capability kept; collapsed text never is."""
    for row in rows:
        row["on_front"] = None
    for plane in PLANES:
        seen = [row for row in rows if pd.notna(row[plane]) and pd.notna(row["toxicity_reduction"])]
        seen = [row for row in seen if not row["collapsed"]]
        if seen:
            points = np.array([[row["toxicity_reduction"], row[plane]] for row in seen], dtype=float)
            for row, on in zip(seen, pareto.front(points), strict=True):
                row["on_front"] = bool(on) or bool(row["on_front"])


def eligible(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Methods that may be ranked: not collapsed, tuned within bounds; of given strength only where none was tuned."""
    methods = ~controls(frame)
    known = {name: frame[name].astype("boolean") for name in ("feasible", "collapsed", "tuned")}
    sound = known["feasible"].fillna(True) & ~known["collapsed"].fillna(False)
    given = ~known["tuned"] & bool(known["tuned"][methods].any())
    return (methods & sound & ~given).astype(bool)


def rank(table: "Table", frame: pd.DataFrame) -> None:
    """Add `rank` by the joint score and its 95 % interval, of what is `eligible`.

    `frame`: a row for each of `table.lines`, in their order.
    """
    shown = frame.index[eligible(frame) & frame["joint"].notna()]
    ranks = frame.loc[shown, "joint"].astype(float).rank(ascending=False, method="min")
    parts = [table.parts[table.lines[i]]["joint"] for i in shown]
    ends = significance.rank_intervals(np.stack([part.draws for part in parts if part])) if parts else []
    frame.insert(1, "rank", ranks.reindex(frame.index))
    for k, name in enumerate(("rank_low", "rank_high")):
        found = pd.Series([end[k] for end in ends], index=shown, dtype=float)
        frame.insert(2 + k, name, found.reindex(frame.index))


def hypervolume(table: "Table", plane: str, random: bool = False) -> Estimate | None:
    """Area under the front of toxicity reduction and `plane`, with its interval; None where none is known.

    Of the methods, or of the random directions. What is kept counts for at most 1; what collapsed is left out.
    """
    parts = [
        (found["toxicity_reduction"], found[plane])
        for line, found in table.parts.items()
        if (line.columns["method"] == RANDOM) == random and not table.collapse(line)["collapsed"]
    ]
    known = [(x, y) for x, y in parts if x is not None and y is not None]
    if not known:
        return None
    drawn = pareto.hypervolume(np.stack([np.stack([x.draws, np.minimum(y.draws, 1.0)]) for x, y in known]))
    value = pareto.hypervolume(np.array([[x.value, min(y.value, 1.0)] for x, y in known]))
    return Estimate(float(value), *interval(drawn, min(min(x.n, y.n) for x, y in known)))
