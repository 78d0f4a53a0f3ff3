"""Uncertainty of a number: paired bootstrap over items, intervals of shares, rates corrected for errors.

The unit that is resampled is the item (a prompt, a document). The intervals therefore speak about other items of the
same kind. They hold the fit, its seed and the choice of strength fixed, treat items as independent, and are not
corrected for the number of comparisons in a table.
"""

import functools
import math
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit  # scipy.stats takes .5 s to import

from bench.stats.metrics import Transform

Array = np.ndarray
Compare = Literal["difference", "ratio", "reduction"]
Folded = tuple[Array, Array, Transform]
"""Values and weights, (n,) each, and the transform by which `metrics.fold` folds them."""
Key = tuple[bytes, bytes, Transform, int]
LEVEL, RESAMPLES = 0.95, 10_000
ALIKE = 1e-12  # relative spread of items that are all the same but for rounding
BLOCK = 4_000_000  # counts held as float64 at once: 32 MB
TOGETHER = 64  # arrays of draws that one matrix product gives
KEPT = 1024  # arrays of draws, 80 MB: every row is compared with the same unsteered values, so these are needed often

_kept: OrderedDict[Key, Array] = OrderedDict()


class Paired(Protocol):
    """Paired items of two results: values and weights of both, (n,) each; a frame with these columns is one."""

    value_a: Any
    weight_a: Any
    value_b: Any
    weight_b: Any

    def __len__(self) -> int: ...


def sides(pairs: Paired) -> tuple[Array, Array, Array, Array]:
    """Return values and weights of a, then of b, (n,) each."""
    a, weights_a, b, weights_b = pairs.value_a, pairs.weight_a, pairs.value_b, pairs.weight_b
    return np.asarray(a, float), np.asarray(weights_a, float), np.asarray(b, float), np.asarray(weights_b, float)


class Estimate(NamedTuple):
    """A number and its interval; `low` and `high` are None if the items do not determine one (a single item)."""

    value: float
    low: float | None
    high: float | None


def compared(a: Array | float, b: Array | float, compare: Compare) -> Array:
    """Compare `a` with the reference `b`: a - b, a / b, or the relative reduction 1 - a / b; ratios to 0 are NaN."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if compare == "difference":
        return np.asarray(a - b)
    ratio = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return np.asarray(ratio if compare == "ratio" else 1 - ratio)


def draws(values: Array, weights: Array, transform: Transform = "mean", *, seed: int = 0) -> Array:
    """Return (RESAMPLES,) values: `metrics.fold` of each resample of the items, drawn with replacement.

    A value is NaN if the items of its resample have no weight.

    Equal `seed` and number of items give the same resamples, so folds of paired items can be compared draw by draw.
    """
    (found,) = draws_of([(values, weights, transform)], seed=seed)
    return found


def draws_of(wanted: Sequence[Folded], *, seed: int = 0) -> list[Array]:
    """Return what `draws` gives for each of `wanted`. All of these have equally many items.

    Matrix products compute them together, ten times as fast as one by one. The last KEPT results are kept, so a caller
    that will need many `draws` calls this function with all of them first.
    """
    keys = [
        (np.asarray(values, float).tobytes(), np.asarray(weights, float).tobytes(), transform, seed)
        for values, weights, transform in wanted
    ]
    missing = list(dict.fromkeys(key for key in keys if key not in _kept))
    for i in range(0, len(missing), TOGETHER):
        part = missing[i : i + TOGETHER]
        _kept.update(zip(part, _drawn(part, seed), strict=True))
    found = [_kept[key] for key in keys]
    for key in keys:
        _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return found


def _drawn(keys: Sequence[Key], seed: int) -> list[Array]:
    """Return the draws for each key, which holds values and weights as bytes; all keys have equally many items."""
    weights = {one: np.frombuffer(one) for one in dict.fromkeys(key[1] for key in keys)}
    rows = even([*weights.values(), *(weights[key[1]] * np.frombuffer(key[0]) for key in keys)])  # (rows, n)
    counts = _counts(rows.shape[1], RESAMPLES, seed)
    block = max(2, BLOCK // rows.shape[1] // 2 * 2)
    parts = [rows @ counts[i : i + block].astype(float).T for i in range(0, RESAMPLES, block)]
    sums = np.concatenate(parts, axis=1)  # (rows, RESAMPLES)
    whole = dict(zip(weights, sums, strict=False))
    return [_folded(own, whole[key[1]], key[2]) for own, key in zip(sums[len(weights) :], keys, strict=False)]


def even(rows: Sequence[Array]) -> Array:
    """Stack the rows; if their number is odd, a row of zeros is added, since BLAS would round the last row differently.

    So the numbers of a row do not depend on how many other rows are computed together with it.
    """
    return np.stack([*rows, *([np.zeros_like(rows[0])] if len(rows) % 2 else [])])


def _folded(weighed: Array, weights: Array, transform: Transform) -> Array:
    mean = np.divide(weighed, weights, out=np.full(len(weights), np.nan), where=weights > 0)
    drawn = np.asarray(np.exp(mean) if transform == "exp" else mean)
    drawn.flags.writeable = False  # they are shared
    return drawn


def interval(drawn: Array, n: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Return the expanded percentile interval of bootstrap draws over n items.

    The plain percentile interval is too narrow for few items: its spread is that of a variance divided by n, and its
    quantiles are normal ones. So the quantiles Phi(-+ sqrt(n / (n - 1)) t_{n-1}) are taken in place of 2.5% and
    97.5% (Hesterberg 2015, arXiv 1411.5279, section 5.3). In simulations of paired toxicity, accuracy and perplexity
    it covered at least as well as BCa, which does badly when most differences are ties.
    An end that is not finite is None; both ends are None for fewer than 2 items.
    """
    drawn = drawn[~np.isnan(drawn)]
    if n < 2 or len(drawn) == 0:
        return None, None
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))
    ordered = np.sort(drawn)
    low, high = quantile(ordered, tail), quantile(ordered, 1 - tail)
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def quantile(ordered: Array, share: float) -> float:
    """Return the same bits as `np.quantile`, which takes four times as long as sorting; `ordered` is ascending."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    a, b, part = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)]), place - below
    if a == b:
        return a
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part


def two_level(values: Array, draws_of_fits: Array, n: int) -> Array:
    """Return (RESAMPLES,) draws of a mean over fits, by a bootstrap over items and fits; for `interval` with this n.

    A fit is one seed of what a method draws while it is fitted. Items and fits are crossed: every fit is measured on
    the same items. The spread over other fits is the variance of the fits' own means, which includes what the
    interaction of items and fits adds to it. The spread over other items comes from the draws over items, averaged over
    the fits; they include the interaction too, so they are shrunk to the variance that is left without it. The
    sum is the variance of a two-way table with random rows and columns (Searle, Casella and McCulloch 1992, section
    4.2). At most the variance of the fits is subtracted as interaction: two fits may lie close together by chance, or
    have equal shares of right answers. If the interaction were subtracted from the variance of the fits, that would
    then be 0; a fifth of simulated tables of null methods had a star in this way. A handful of fits cannot be
    resampled (two fits have three resamples), so draws over fits are parametric: Student's t with F - 1 degrees of
    freedom, which assumes that fits scatter normally. The interval of two fits is wide. The draws over fits are seeded
    by the estimates themselves, so those of two methods, or of two metrics, are independent; equal draws would cancel
    in a difference.

    Sampling seeds are not a level of their own: the continuations of a prompt come from a stream that no other prompt
    has, so another seed gives further draws of the same item, and they are averaged within it.

    Args:
        values: (F,) the estimate of each fit.
        draws_of_fits: (F, RESAMPLES) each fit's draws over items, the same resamples for every fit.
        n: the number of items.
    """
    fits = len(values)
    of_items = draws_of_fits.mean(axis=0)  # (RESAMPLES,)
    if fits == 1 or n < 2 or np.isnan(of_items).all():
        return np.asarray(of_items)
    of_fits = float(values.var(ddof=1)) / fits
    interaction = min(float(np.nanvar(draws_of_fits - of_items, axis=1).mean()) / (fits - 1), of_fits)
    whole, middle = float(np.nanvar(of_items)), float(np.nanmean(of_items))
    kept = math.sqrt(max(1 - interaction / whole, 0.0)) if whole > 0 else 1.0
    seed = zlib.crc32(np.round(values, 9).tobytes())  # rounded: other machines differ in the last bits
    drawn = np.random.default_rng([seed, fits]).standard_t(fits - 1, len(of_items))
    return np.asarray(middle + kept * (of_items - middle) + math.sqrt(of_fits) * drawn)


def one_more_draw(values: Array, least: float = 0.0) -> Array:
    """Return (RESAMPLES,) draws of how far one more value, drawn as these F values are, lies from their mean.

    A draw is sd(values) sqrt(1 + 1 / F) t with F - 1 degrees of freedom, Student's prediction of a further observation,
    which assumes that the values scatter normally. least: a standard deviation that is taken in place of a smaller one.
    Values of fits on the same items also scatter by the interaction of items and fits. It is not subtracted: the
    estimated variance would then be 0 for a few fits that happen to lie close together.
    """
    count = len(values)
    seed = zlib.crc32(np.round(values, 9).tobytes())  # rounded: other machines differ in the last bits
    drawn = np.random.default_rng([seed, count]).standard_t(count - 1, RESAMPLES)
    return np.asarray(math.sqrt(1 + 1 / count) * max(float(np.std(values, ddof=1)), least) * drawn)


def paired_draws(
    values_a: Array,
    weights_a: Array,
    values_b: Array,
    weights_b: Array,
    transform: Transform = "mean",
    compare: Compare = "difference",
    *,
    seed: int = 0,
) -> Array:
    """Return (RESAMPLES,) draws of the change from b to a; each compares a and b on the same resampled items.

    Raises ValueError if a and b have different numbers of items.
    """
    if len(values_a) != len(values_b):
        raise ValueError(f"{len(values_a)} items of a and {len(values_b)} of b are not pairs")
    a = draws(values_a, weights_a, transform, seed=seed)
    return compared(a, draws(values_b, weights_b, transform, seed=seed), compare)


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1).

    n may be a fraction, as the effective number of items in `value_interval` is. scipy's interval takes whole numbers
    only, and statsmodels, which tests compare this with, would be a dependency for three lines.
    """
    if n <= 0:
        raise ValueError("a share of no items has no interval")
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else centre - half  # exactly 0 and 1 at the ends, which rounding would miss
    return low, 1.0 if successes == n else centre + half


def value_interval(
    value: float, error: float | None, n: int, transform: Transform = "mean", *, share: bool = False
) -> tuple[float | None, float | None]:
    """Return the 95% interval of a metric's own value over n items, which never leaves the metric's range.

    share: whether every item is from 0 to 1. If so, the result is Wilson's interval for as many yes-or-no items as
    would give this standard error; if all items are 0 or 1, that number is n. The interval of an exponential is
    computed on the scale of its logarithm; the interval of any other mean is the normal one. Both ends are None if the
    items do not show the width, because there is only one, or because all are equal; but with `share`, a value of
    exactly 0 or 1 gets Wilson's interval for n items.
    """
    if share and value in (0.0, 1.0):
        return wilson(value * n, n)
    if not error or math.isnan(error) or error < ALIKE * abs(value) or n < 2:
        return None, None
    if share and 0 < value < 1:
        items = value * (1 - value) / error**2 * n / (n - 1)
        return wilson(value * items, items)
    z = float(ndtri((1 + LEVEL) / 2))
    if transform == "exp":
        times = np.exp(z * error / value)  # infinite where no number holds the end
        return value / times, float(value * times) if np.isfinite(value * times) else None
    return value - z * error, value + z * error


def corrected_rate(rate: float, sensitivity: float, specificity: float) -> float | None:
    """Return the true share of toxic texts if a judge with these error rates calls `rate` of them toxic; within [0, 1].

    It is (rate + specificity - 1) / (sensitivity + specificity - 1), Rogan and Gladen 1978, equation 1 solved for the
    true share. It holds if the judge errs on these texts as on those by which its error rates were measured.
    None for a judge no better than a coin, sensitivity + specificity <= 1.
    """
    skill = sensitivity + specificity - 1
    return None if skill <= 0 else min(max((rate + specificity - 1) / skill, 0.0), 1.0)


def corrected(
    rate: float,
    standard_error: float,
    sensitivity: float,
    positives: int,
    specificity: float,
    negatives: int,
    level: float = LEVEL,
) -> Estimate | None:
    """Return `corrected_rate` with an interval by the delta method, its ends within [0, 1]; None if there is no rate.

    Rate, sensitivity and specificity are measured on different texts, so with p the unclipped corrected rate and
    J = sensitivity + specificity - 1,
    variance = (standard_error^2 + p^2 Var(sensitivity) + (1 - p)^2 Var(specificity)) / J^2,
    where Var(sensitivity) = sensitivity (1 - sensitivity) / positives, and likewise for specificity and negatives.
    """
    value = corrected_rate(rate, sensitivity, specificity)
    if value is None:
        return None
    skill = sensitivity + specificity - 1
    p = (rate + specificity - 1) / skill
    of_sensitivity = sensitivity * (1 - sensitivity) / positives
    of_specificity = specificity * (1 - specificity) / negatives
    variance = (standard_error**2 + p**2 * of_sensitivity + (1 - p) ** 2 * of_specificity) / skill**2
    half = float(ndtri((1 + level) / 2)) * math.sqrt(variance)
    return Estimate(value, min(max(p - half, 0.0), 1.0), max(min(p + half, 1.0), 0.0))


@functools.lru_cache(maxsize=16)
def _counts(n: int, resamples: int, seed: int) -> Array:
    """Return (resamples, n) counts of each item in each resample: multinomial, drawn in blocks to save memory."""
    generator = np.random.default_rng([seed, n])
    counts = np.empty((resamples, n), dtype=np.uint16)
    block = max(1, BLOCK // n)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        chosen = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(chosen.ravel(), minlength=rows * n).reshape(rows, n)
    return counts
