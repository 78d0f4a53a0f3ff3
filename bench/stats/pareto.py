"""The Pareto front of a trade-off, and how much of the plane it covers."""

import numpy as np

from bench.stats.bootstrap import Array


def front(points: Array) -> Array:
    """(M,) true where no other point is at least as good in both and better in one; larger is better.

    Args:
        points: (M, 2); a point with NaN is not on the front.
    """
    x, y = points[:, None, :], points[None, :, :]  # x against each y
    beaten = np.all(y >= x, axis=2) & np.any(y > x, axis=2)  # (M, M)
    return np.asarray(~np.any(beaten, axis=1) & ~np.any(np.isnan(points), axis=1))


def hypervolume(points: Array) -> Array:
    """Area that the points dominate above and right of (0, 0), by resample.

    1 where one method removes all toxicity and keeps everything; what is below 0 counts for nothing.
    Source: Zitzler and Thiele 1998 (PPSN V, 292-301), section 4, here in two dimensions by a sweep.

    Args:
        points: (M, 2, ...) values of M methods; NaN dominates nothing.
    """
    held = np.nan_to_num(np.maximum(points, 0.0), nan=0.0)
    order = np.argsort(-held[:, 0], axis=0, kind="stable")  # (M, ...) from right to left
    x = np.take_along_axis(held[:, 0], order, axis=0)
    y = np.maximum.accumulate(np.take_along_axis(held[:, 1], order, axis=0), axis=0)
    step = x - np.concatenate([x[1:], np.zeros_like(x[:1])])
    return np.asarray((step * y).sum(axis=0))
