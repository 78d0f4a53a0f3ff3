import numpy as np
import pytest

from bench.stats.pareto import front, hypervolume


def test_front_by_hand():
    points = np.array([[0.0, 1.0], [0.5, 0.8], [0.4, 0.7], [0.9, 0.1], [np.nan, 1.0], [0.5, 0.8]])
    assert front(points).tolist() == [True, True, False, True, False, True]  # equal points do not beat each other


def test_hypervolume_by_hand():
    # .5 x .8 and, right of it, .4 x .1; the point inside adds nothing, what is below 0 neither
    points = np.array([[0.5, 0.8], [0.9, 0.1], [0.4, 0.7], [-0.3, 1.0]])
    assert hypervolume(points) == pytest.approx(0.5 * 0.8 + 0.4 * 0.1)
    assert hypervolume(np.array([[1.0, 1.0]])) == 1.0
    assert hypervolume(np.array([[np.nan, 1.0]])) == 0.0


def test_hypervolume_of_every_resample():
    generator = np.random.default_rng(0)
    points = generator.normal(0.4, 0.3, (4, 2, 20))
    assert hypervolume(points) == pytest.approx(np.array([hypervolume(points[:, :, i]) for i in range(20)]))
    moved = points[[2, 0, 3, 1]]
    assert hypervolume(moved) == pytest.approx(hypervolume(points))  # the order of the methods is no part of it
