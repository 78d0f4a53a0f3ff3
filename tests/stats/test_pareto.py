import numpy as np

from bench.stats.pareto import front


def test_front_by_hand():
    points = np.array([[0.0, 1.0], [0.5, 0.8], [0.4, 0.7], [0.9, 0.1], [np.nan, 1.0], [0.5, 0.8]])
    assert front(points).tolist() == [True, True, False, True, False, True]  # equal points do not beat each other
