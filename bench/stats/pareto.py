"""The Pareto front of a trade-off."""

import numpy as np

from bench.stats.bootstrap import Array


def front(points: Array) -> Array:
    """Return (M,) booleans: whether no other point is at least as good in both coordinates and better in one.

    Larger coordinates are better.

    Args:
        points: (M, 2); a point with NaN is not on the front.
    """
    x, y = points[:, None, :], points[None, :, :]  # x against each y
    beaten = np.all(y >= x, axis=2) & np.any(y > x, axis=2)  # (M, M)
    return np.asarray(~np.any(beaten, axis=1) & ~np.any(np.isnan(points), axis=1))
