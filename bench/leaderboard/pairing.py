"""Compare one row of a table with another, on the items that both were measured on."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.leaderboard.grouping import Fit, Row
from bench.leaderboard.items import Pair, side_by_side
from bench.leaderboard.tradeoff import BootstrapEstimate, compare_items, over_fits
from bench.stats.bootstrap import ALIKE, Compare, one_more_draw
from bench.stats.metrics import FIRST, Transform
from bench.stats.significance import bootstrap_p, paired_tests

Pairs = Mapping[str, Pair]
"""For each `<suite>.<metric>` the items of one fit or row beside those of another."""


def joined(a: Fit | Row, b: Fit | Row, only: str | None = None, first: frozenset[str] = frozenset()) -> dict[str, Pair]:
    """Pair the items that `a` and `b` were both asked in the same way, for one metric or for all.

    first: metrics for which only the first k texts of `b` are taken (`PairedRows.first`).
    """
    shared = a.comparisons & b.comparisons
    one, other = a.items(shared), b.items(shared)
    names = [name for name in one if name in other and only in (None, name) and not name.endswith(FIRST)]
    read = {name: name + FIRST if name in first and name + FIRST in other else name for name in names}
    both = {name: side_by_side(one[name], other[read[name]]) for name in names}
    return {name: rows for name, rows in both.items() if len(rows)}


def paired(
    fits: Sequence[Fit], other: Fit | Row, only: str | None = None, first: frozenset[str] = frozenset()
) -> list[Pairs]:
    """Return `joined` for each fit; in a metric that all fits have, keep only the items that all fits have.

    Fits with equally many items have the same resamples (`bench.stats.bootstrap.draws`). With unequal numbers the fits'
    draws would be independent, and the variance over items would be averaged away.
    """
    found = [joined(fit, other, only, first) for fit in fits]
    for name in set.intersection(*map(set, found)) if len(found) > 1 else ():
        of_one, *others = (one[name].index for one in found)
        rest = [index for index in others if index is not of_one and not index.equals(of_one)]
        if not rest:
            continue
        shared = of_one[np.logical_and.reduce([of_one.isin(index) for index in rest])]
        for one in found:
            if len(one[name]) > len(shared):
                one[name] = one[name].at(shared)
    return [{name: rows for name, rows in one.items() if len(rows)} for one in found]


def closer_first(rows: Sequence[Row], base: Fit) -> frozenset[str]:
    """Return the metrics in which rows scatter less around the unsteered model's first k texts than around all of them.

    More texts have less noise, but the first k share their random streams with the texts of the rows. The answer is the
    same for all rows, since otherwise they would be compared with different texts.
    """
    names = [name.removesuffix(FIRST) for name in base.items() if name.endswith(FIRST)]
    fits = [fit for row in rows for fit in row.fits]

    def scatter(name: str, first: frozenset[str]) -> float:
        pairs = [both[name] for fit in fits if name in (both := joined(fit, base, name, first))]
        return sum(float(np.var(one.difference)) for one in pairs if len(one))

    return frozenset(name for name in names if scatter(name, frozenset({name})) < scatter(name, frozenset()))


def over(fits: list[Pairs], make: Callable[[Pairs], BootstrapEstimate | None]) -> BootstrapEstimate | None:
    """Return the mean over the fits of what `make` estimates for each; None if it returns None for any fit."""
    estimates = [make(pairs) for pairs in fits]
    known = [one for one in estimates if one is not None]
    return over_fits(known) if known and len(known) == len(estimates) else None


def change(
    fits: list[Pairs], metric: str, transform: Transform, compare: Compare = "difference"
) -> BootstrapEstimate | None:
    """Return the mean change of a metric over a row's fits, each paired with the reference; None if a fit lacks it.

    Ratios are averaged as logarithms: fits scatter around them evenly, and no draw of a ratio is negative.
    """
    if not fits or any(metric not in pairs for pairs in fits):
        return None
    found = [compare_items(pairs[metric], transform, compare) for pairs in fits]
    if len(found) == 1:
        return found[0]
    if compare != "ratio" or any(one.value <= 0 or (one.draws <= 0).any() for one in found):
        return over_fits(found)
    return over_fits([one.log() for one in found]).exp()


def difference(
    a: Row, b: Row, metric: str, transform: Transform, least_spread: float = 0.0
) -> BootstrapEstimate | None:
    """Return the difference of row a from row b, over the fits of both; None if a fit of either lacks the metric.

    The change of a's fits from b's mean varies over items and over a's fits; the change of b's fits from a's mean
    varies over items and over b's fits. Both together count the variance over items twice, so it is subtracted once.

    If only one row has several fits, the single fit of the second row counts as one more draw from the distribution of
    those fits (`one_more_draw`), which holds if the rows do not differ. If both rows have one fit, nothing shows how
    much fits scatter, and the draws are NaN.

    least_spread: the least standard deviation that is assumed for the several fits.
    """
    of_a, of_b, both = paired(a.fits, b, metric), paired(b.fits, a, metric), [joined(a, b, metric)]
    if any(metric not in one for one in [*of_a, *of_b, *both]):
        return None
    of_all = [of_a[0][metric].index, of_b[0][metric].index]
    shared = of_all[0][of_all[0].isin(of_all[1])]
    if not len(shared):
        return None
    found, back, items = (
        change([{metric: one[metric].at(shared)} for one in several], metric, transform)
        for several in (of_a, of_b, both)
    )
    if found is None or back is None or items is None:
        return None
    if min(len(a.fits), len(b.fits)) > 1:
        return BootstrapEstimate(found.value, found.draws - back.draws - items.draws, found.n)
    several = of_a if len(a.fits) > 1 else of_b
    if len(several) == 1:
        return BootstrapEstimate(found.value, np.full_like(items.draws, np.nan), found.n)
    values = [compare_items(one[metric].at(shared), transform, "difference").value for one in several]
    drawn = items.draws - items.value + one_more_draw(np.array(values), least_spread)
    size = ALIKE * max(float(np.abs(one[metric].at(shared).value_a).max()) for one in of_a)
    if abs(found.value) < size and (np.abs(drawn) < size).all():  # equal but for rounding
        return BootstrapEstimate(0.0, np.zeros_like(drawn), found.n)
    return BootstrapEstimate(found.value, drawn + found.value, found.n)


def p_value(fits: list[Pairs], metric: str, transform: Transform) -> float | None:
    """Return the two-sided p of no change: over items for one fit, over items and fits for several."""
    return p_values([fits], metric, transform)[0]


def p_values(rows: Sequence[list[Pairs]], metric: str, transform: Transform) -> list[float | None]:
    """Return `p_value` of each row; None for a row without the metric. Rows of a single fit are computed together."""
    alone = [i for i, fits in enumerate(rows) if len(fits) == 1 and metric in fits[0]]
    found: list[float | None] = [None] * len(rows)
    for i, p in zip(alone, paired_tests([rows[i][0][metric] for i in alone], transform), strict=True):
        found[i] = p
    for i, fits in enumerate(rows):
        if len(fits) > 1 and (one := change(fits, metric, transform)) is not None:
            found[i] = bootstrap_p(one.draws, one.n)
    return found


def pairwise_p(a: Row, b: Row, metric: str, transform: Transform) -> float | None:
    """Return the two-sided p of equal values of two rows in this metric.

    If both have several fits, each row's fits are compared with the mean of the other row, and the larger p counts.
    """
    return pairwise_ps([(a, b)], metric, transform)[0]


def pairwise_ps(rows: Sequence[tuple[Row, Row]], metric: str, transform: Transform) -> list[float | None]:
    """Return `pairwise_p` of each of these pairs of rows; rows of a single fit are computed together."""
    ordered = [(b, a) if len(a.fits) < len(b.fits) else (a, b) for a, b in rows]
    found = p_values([paired(a.fits, b, metric) for a, b in ordered], metric, transform)
    both = [i for i, (_, b) in enumerate(ordered) if len(b.fits) > 1]
    back = p_values([paired(ordered[i][1].fits, ordered[i][0], metric) for i in both], metric, transform)
    for i, other in zip(both, back, strict=True):
        one = found[i]
        found[i] = None if one is None or other is None else max(one, other)
    return found
