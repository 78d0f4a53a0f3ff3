"""A metric aggregates per-item values into a number, with its uncertainty, its count and the better direction.

Items are a table with one row per (metric, item): `value`, and a `weight` for items that do not count alike (tokens in
a perplexity). A metric's value is the weighted mean of its items, or e to the power of that mean.
"""

import math
import sys
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import gammaln

ITEM_COLUMNS = ["metric", "item", "value", "weight"]
Transform = Literal["mean", "exp"]
FIRST = "_first_k"  # ends the name of a metric of the first k texts, if there are more texts


IN_NATS = ("mean_kl", "kl_95", "last_token_kl")
"""Ends of the names of metrics that are not shares, though their items may all happen to lie between 0 and 1."""


def is_share(name: str, *values: np.ndarray) -> bool:
    """Return whether a metric's items are shares: all its values are from 0 to 1, and its name is not in IN_NATS."""
    return not name.endswith(IN_NATS) and all(((one >= 0) & (one <= 1)).all() for one in values)


TOLD = ("low", "high", "se", "n", "delta", "delta_low", "delta_high", "p", "p_holm", "detectable", "detectable_holm")
"""Ends of the columns that tables have for each metric, after its name; no part of a metric's name equals one."""


class Metric(NamedTuple):
    """One number of a result.

    unscored: how many texts or documents could not be judged, not counted in `n`; None if an old record does not say.
    """

    value: float
    standard_error: float | None  # over items; None for a single item
    n: int
    unscored: int | None
    higher_is_better: bool
    transform: Transform = "mean"


def fold(values: np.ndarray, weights: np.ndarray, transform: Transform = "mean") -> float:
    """Return the weighted mean of the items, or e to the power of it.

    Raises ValueError without items, since their mean is not zero; for an item that is not finite, which a mean of the
    others would hide; and if exp of the mean is too large for a float.
    """
    if len(values) == 0 or weights.sum() == 0:
        raise ValueError("no items to average: every one of them is unscored or has no weight")
    broken = len(values) - int((np.isfinite(values) & np.isfinite(weights)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(values)} items are NaN or infinite, so they have no mean")
    mean = float(np.average(values, weights=weights))
    if transform == "exp" and mean > math.log(sys.float_info.max):
        raise ValueError(f"exp of the mean of the items, {mean:.4g}, is larger than a float can be")
    return math.exp(mean) if transform == "exp" else mean


def standard_error(values: np.ndarray, weights: np.ndarray, transform: Transform = "mean") -> float | None:
    """Return the standard error of `fold` over items, by linearising the ratio of sums (Cochran 1977, section 6.3)."""
    n = len(values)
    if n < 2:
        return None
    mean = np.average(values, weights=weights)
    residual = weights * (values - mean) / weights.mean()  # influence of each item on the mean
    error = math.sqrt(float((residual**2).sum()) / (n * (n - 1)))
    return error * math.exp(mean) if transform == "exp" else error


def metric(items: pd.DataFrame, *, higher_is_better: bool, unscored: int = 0, transform: Transform = "mean") -> Metric:
    """Make the metric of these items (columns `value`, `weight`)."""
    values, weights = items["value"].to_numpy(float), items["weight"].to_numpy(float)
    return Metric(
        fold(values, weights, transform),
        standard_error(values, weights, transform),
        len(values),
        unscored,
        higher_is_better,
        transform,
    )


def expected_maximum(values: np.ndarray, k: int) -> float:
    """Return the mean of the subset's largest value over all subsets of k of these K values.

    It is an unbiased estimate of the expected maximum of k fresh values. The i-th smallest value is the largest of
    comb(i - 1, k - 1) subsets, so the mean is sum_i comb(i - 1, k - 1) x_(i) / comb(K, k). This U-statistic (Hoeffding
    1948, section 3) has less variance than the maximum of k values alone. NaN if K < k.
    """
    if len(values) < k:
        return math.nan
    rank = np.arange(k, len(values) + 1)  # smaller values are the largest of no subset
    share = np.exp(_log_comb(rank - 1, k - 1) - _log_comb(len(values), k))  # sums to 1; as it is, comb may overflow
    return float(share @ np.sort(values)[k - 1 :])


def _log_comb(n: Any, k: int) -> Any:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
