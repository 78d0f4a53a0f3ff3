"""Significance of differences: paired tests, corrected for their number; ranks; groups without a difference.

The unit is the item (a prompt, a document), as in `bench.stats.bootstrap`; the same item under two steerings is a
pair.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from scipy.special import bdtr, gammaincinv, ndtr, ndtri, stdtr, stdtrit  # scipy.stats takes .5 s to import

from bench.stats.bootstrap import Array, Paired, interval, sides
from bench.stats.metrics import Transform

ALPHA, POWER = 0.05, 0.8
PERMUTATIONS = 9999
TOGETHER = 32  # tests that one matrix product computes
Sides = tuple[Array, Array, Array, Array]


def paired_test(pairs: Paired, transform: Transform = "mean", *, seed: int = 0) -> float | None:
    """Return the two-sided p of "both models do the same on these items"; None for fewer than 2 items.

    The p is that of McNemar's test if every item is right or wrong, else that of the permutation test.

    Args:
        pairs: a row per item.
        transform: the metric's transform, as in `bench.stats.metrics.fold`.
        seed: the seed of the permutations.
    """
    return paired_tests([pairs], transform, seed=seed)[0]


def paired_tests(pairs: Sequence[Paired], transform: Transform = "mean", *, seed: int = 0) -> list[float | None]:
    """Return `paired_test` of each of `pairs`; those with equally many items are permuted in one product."""
    found: list[float | None] = [None] * len(pairs)
    permuting: dict[int, list[int]] = defaultdict(list)
    for i, one in enumerate(pairs):
        a, wa, b, wb = sides(one)
        if len(a) >= 2 and np.isin(np.concatenate([a, b]), (0.0, 1.0)).all() and (wa == 1).all() and (wb == 1).all():
            found[i] = mcnemar_test(a, b)
        elif len(a) >= 2:
            permuting[len(a)].append(i)
    for alike in permuting.values():
        for some in (alike[i : i + TOGETHER] for i in range(0, len(alike), TOGETHER)):
            for i, p in zip(some, _permuted([sides(pairs[i]) for i in some], transform, seed), strict=True):
                found[i] = p
    return found


def permuted(
    a: Array, weights_a: Array, b: Array, weights_b: Array, transform: Transform = "mean", *, seed: int = 0
) -> float:
    """Return the two-sided p of the paired permutation test of fold(a) - fold(b), (n,) each.

    Under the null hypothesis the two results of an item could as well be swapped; p is the share of swaps with a
    difference at least as large as the observed one. With few items all possible swaps are made; with more items 9999
    random ones are made, and the observed order is counted as one more.
    Assumes that items are independent, and that under the null hypothesis the pair's joint distribution is symmetric.
    Source: Good 2005, Permutation, Parametric and Bootstrap Tests, section 3.6; Phipson and Smyth 2010 for the count.
    """
    return _permuted([(a, weights_a, b, weights_b)], transform, seed)[0]


def _permuted(several: Sequence[Sides], transform: Transform, seed: int) -> list[float]:
    """Return `permuted` of each of these, which have equally many items."""
    moved = [row for a, wa, b, wb in several for row in (wb * b - wa * a, wb - wa)]  # gains of a's sums by a swap
    n = len(moved[0])
    shifts = np.concatenate([np.stack(moved) @ part.T for part in _swaps(n, seed, PERMUTATIONS)], axis=1)
    counted = 0 if 2**n <= PERMUTATIONS else 1
    return [_share_beyond(*one, shifts[2 * i : 2 * i + 2], transform, counted) for i, one in enumerate(several)]


def _share_beyond(
    a: Array, weights_a: Array, b: Array, weights_b: Array, shifts: Array, transform: Transform, counted: int
) -> float:
    """Return p, by the share of swaps that differ at least as much; shifts: (2, R) what each adds to the sums of a."""
    both = ((a, weights_a), (b, weights_b))
    sums = [np.array([[(weights * values).sum()], [weights.sum()]]) for values, weights in both]

    def folds(of_a: Array, of_b: Array) -> Array:
        means = [one[0] / one[1] for one in (of_a, of_b)]
        return np.asarray(np.exp(means[0]) - np.exp(means[1]) if transform == "exp" else means[0] - means[1])

    observed = float(folds(*sums)[0])
    null = folds(sums[0] + shifts, sums[1] - shifts)
    tie = 100 * np.finfo(float).eps * max(abs(observed), float(np.abs(null).max()))
    tails = [np.count_nonzero(null <= observed + tie), np.count_nonzero(null >= observed - tie)]
    return float(min(1.0, 2 * (min(tails) + counted) / (len(null) + counted)))


def _swaps(n: int, seed: int, most: int) -> Iterable[Array]:
    """Return (R, n) arrays of some megabytes, 1 where an item is swapped; all ways to swap if they are at most `most`.

    The swaps are those of scipy's permutation_test, which takes 15 times as long since it does not keep them.
    """
    return _kept(n, seed, most) if n <= 2000 else _drawn(n, seed, most)


@functools.lru_cache(maxsize=8)
def _kept(n: int, seed: int, most: int) -> list[Array]:
    return list(_drawn(n, seed, most))


def _drawn(n: int, seed: int, most: int) -> Iterator[Array]:
    if 2**n <= most:
        yield np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.int8)
        return
    generator = np.random.default_rng([seed, n])
    rows = max(1, 2_000_000 // n)
    for first in range(0, most, rows):
        pairs = np.tile(np.arange(2, dtype=np.int8), (min(rows, most - first), n, 1))
        yield generator.permuted(pairs, axis=-1)[..., 0]


def bootstrap_p(draws: Array, n: int) -> float | None:
    """Return the two-sided p of a difference of 0: the smallest p whose interval (`bootstrap.interval`) excludes 0.

    It is used for a mean over several fits, since a permutation of items would ignore that other fits are possible.
    None for fewer than 2 items.

    Args:
        draws: (R,) bootstrap draws of the difference, over items and fits (`bench.stats.bootstrap.two_level`).
        n: the number of items.
    """
    known = draws[~np.isnan(draws)]
    if n < 2 or len(known) == 0:
        return None
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    tail = min((beyond + 1) / (len(known) + 1), 0.5)
    return float(2 * stdtr(n - 1, ndtri(tail) * np.sqrt((n - 1) / n)))


def least_p(n: int, draws: int | None = None) -> float:
    """Return the smallest p that `permuted` can give for n items or, with `draws`, `bootstrap_p` for so many draws."""
    if draws is None:
        return 2.0 / min(1 << n, PERMUTATIONS + 1)
    return float(2 * stdtr(n - 1, ndtri(1 / (draws + 1)) * np.sqrt((n - 1) / n)))


def mcnemar_test(a: Array, b: Array) -> float:
    """Return the exact two-sided p of McNemar's test for outcomes 0 or 1, (n,) each; 1 if no item differs.

    Only items on which the two differ count: under the null hypothesis either of the two is equally likely to be right
    (McNemar 1947; exact by the binomial distribution).
    """
    gained, lost = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, by Holm 1979; missing values stay missing and do not count.

    For any dependence between the tests, the chance of even one false finding is at most 5%. The numbers equal those of
    statsmodels' multipletests, which is not used because it runs the garbage collector in each call and is slow.
    """
    known = [i for i, one in enumerate(p) if one is not None]
    ascending = sorted(known, key=lambda i: p[i] or 0.0)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for smaller, i in enumerate(ascending):  # len(known) - smaller: the hypotheses that are left
        least = max(least, min(1.0, (p[i] or 0.0) * (len(known) - smaller)))
        corrected[i] = least
    return corrected


def detectable(pairs: Paired, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Return the smallest true mean difference that a two-sided paired t test at `alpha` finds with this power.

    This difference follows from the number of items and the standard deviation of their differences, and is in the
    metric's unit (for a perplexity, in the unit of its logarithm). None for fewer than 3 items or without any
    difference. Assumes that the differences of items not sampled here spread as these do. Source: Cohen 1988, chapter
    2.
    """
    a, wa, b, wb = sides(pairs)
    weights, difference = np.sqrt(wa * wb), a - b
    if len(difference) < 3:
        return None
    mean = np.average(difference, weights=weights)
    spread = float(np.std(weights * (difference - mean) / weights.mean(), ddof=1))
    if spread == 0:
        return None
    return _smallest_effect(len(difference), power, alpha) * spread


def detectable_by_draws(drawn: Array, n: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Return the smallest detectable change over several fits, from (R,) bootstrap draws over n items.

    If the true change is this large, the interval excludes 0 with probability `power`. It is computed from quantiles of
    the draws, since their standard deviation is infinite for two or three fits (Student's t with 1 or 2 degrees of
    freedom).
    """
    low, high = interval(drawn, n, 1 - alpha)
    if n < 3 or low is None or high is None or low == high:
        return None
    return (high - low) / 2 + float(np.nanquantile(drawn, power) - np.nanmedian(drawn))


def detectable_after_holm(before: float, n: int, tests: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """Return `detectable` if `tests` p values are corrected: at alpha / tests, as in Holm's first step."""
    return before * _smallest_effect(n, power, alpha / tests) / _smallest_effect(n, power, alpha)


@functools.cache
def _smallest_effect(n: int, power: float, alpha: float) -> float:
    """Return the smallest effect, in standard deviations of the differences, that a paired t test of n pairs finds.

    The non-central t of the test, (Z + delta) / S, is averaged over S by Gauss-Legendre nodes of its quantiles, since
    statsmodels' solver is silently wrong by up to a factor of three if n is small and alpha tiny. The power rises with
    delta, so the interval is bisected down to floating-point precision; scipy.optimize is not used, as it takes .1 s to
    import.
    """
    df = n - 1
    critical = float(stdtrit(df, 1 - alpha / 2))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    scale = np.sqrt(2 * gammaincinv(df / 2, (nodes + 1) / 2) / df)  # S at equal steps of its distribution

    def found(delta: float) -> float:
        return float(weights @ (ndtr(delta - critical * scale) + ndtr(-delta - critical * scale))) / 2

    low, high = 0.0, 10 * critical + 50
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high / float(np.sqrt(n))


def rank_intervals(draws: Array, higher_is_better: bool = True, level: float = 1 - ALPHA) -> list[tuple[int, int]]:
    """Return the lowest and highest rank of each of M methods (1 is best) in the middle `level` of the resamples.

    Args:
        draws: (M, R) the methods' values over the same R resamples of the items; a resample with any NaN is left out.
        higher_is_better: whether a large value ranks first.
        level: the level of the interval.

    Source: Marshall and Spiegelhalter 1998 (BMJ 316:1701), who simulate ranks; this function resamples items. The
    interval tells how far a rank would move with other items. It does not test whether two methods differ; for that see
    `compact_letter_display`.
    """
    whole = draws[:, ~np.isnan(draws).any(axis=0)]
    if not whole.size:
        return [(1, len(draws))] * len(draws)
    values = -whole if higher_is_better else whole
    places = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, places, axis=0)
    first = np.arange(1, len(values) + 1)[:, None] * np.ones_like(places)  # equal values share the best of their ranks
    first[1:][ordered[1:] == ordered[:-1]] = 1
    ranks = np.empty_like(places)  # (M, R)
    np.put_along_axis(ranks, places, np.maximum.accumulate(first, axis=0), axis=0)
    tail = (1 - level) / 2
    ends = np.quantile(ranks, [tail, 1 - tail], axis=1, method="inverted_cdf")  # (2, M)
    return [(int(low), int(high)) for low, high in ends.T]


def compact_letter_display(names: Sequence[str], different: Collection[frozenset[str]]) -> dict[str, str]:
    """Return the compact letter display: two names share a letter exactly if `different` lacks their pair.

    `names`: in the order in which letters are given, the best first. A shared letter does not mean that two are equal,
    only that these items do not tell them apart. Source: Piepho 2004 (J. Comput. Graph. Stat. 13:456), the
    insert-and-absorb algorithm.
    """
    groups = [set(names)]
    for pair in sorted(different, key=sorted):
        split = []
        for group in groups:
            split += [group - {one} for one in pair] if pair <= group else [group]
        groups = []
        for group in sorted(split, key=len, reverse=True):
            if not any(group <= other for other in groups):
                groups.append(group)
    order = {name: place for place, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(order[name] for name in group))
    return {name: "".join(_letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def _letter(i: int) -> str:
    """Return the letter of this number: lower case first, then upper case."""
    return chr(ord("a") + i) if i < 26 else chr(ord("A") + i - 26)
