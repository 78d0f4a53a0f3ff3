import itertools
import math

import numpy as np
import pandas as pd
import pytest

from bench.stats.metrics import expected_maximum, fold, metric, standard_error


def test_fold_by_hand():
    values, ones = np.array([0.2, 0.4, 0.9]), np.ones(3)
    assert fold(values, ones) == pytest.approx(0.5)
    assert fold(values, np.array([2.0, 1.0, 1.0])) == pytest.approx((0.4 + 0.4 + 0.9) / 4)
    # perplexity of two texts of 1 and 3 tokens with mean losses ln 2 and ln 4: exp((ln 2 + 3 ln 4) / 4) = 2^(7/4)
    assert fold(np.log([2.0, 4.0]), np.array([1.0, 3.0]), "exp") == pytest.approx(2**1.75)


def test_standard_error_by_hand():
    values, ones = np.array([1.0, 2.0, 3.0, 6.0]), np.ones(4)
    assert standard_error(values, ones) == pytest.approx(values.std(ddof=1) / 2)
    # the delta method: e^mean times the error of the mean
    assert standard_error(values, ones, "exp") == pytest.approx(values.std(ddof=1) / 2 * math.exp(3))
    # weights 1 and 3 around the mean 7/4 of values 1 and 2: influences -.75 * .5 and .25 * 1.5, so sqrt(2 * .375^2 / 2)
    assert standard_error(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(0.375)
    assert standard_error(np.array([1.0]), np.array([1.0])) is None


def test_the_standard_error_of_a_weighted_mean_is_its_spread():
    generator = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(2000):
        weights = generator.integers(10, 100, 40).astype(float)
        values = 2 + 0.01 * weights + generator.standard_normal(40)
        found.append(fold(values, weights))
        errors.append(standard_error(values, weights))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.05)


def test_a_mean_of_nothing_is_no_number():
    for values, weights in ((np.array([]), np.array([])), (np.array([0.3]), np.array([0.0]))):
        with pytest.raises(ValueError, match="no items to average"):
            fold(values, weights)


def test_a_metric_does_not_count_unscored_samples():
    items = pd.DataFrame({"value": [0.0, 1.0, 1.0], "weight": 1.0})
    found = metric(items, higher_is_better=True, unscored=2)
    assert (found.value, found.n, found.unscored, found.higher_is_better) == (pytest.approx(2 / 3), 3, 2, True)
    assert found.standard_error == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", range(1, 7))
def test_an_expected_maximum_is_the_mean_over_all_subsets(k):
    values = np.array([0.3, 0.9, 0.1, 0.3, 0.7])
    subsets = [max(some) for some in itertools.combinations(values, k)]
    assert expected_maximum(values, k) == pytest.approx(np.mean(subsets) if subsets else math.nan, nan_ok=True)
    assert expected_maximum(values, 5) == 0.9 and expected_maximum(values, 1) == pytest.approx(values.mean())


def test_the_expected_maximum_is_unbiased_with_less_variance():
    generator = np.random.default_rng(0)
    drawn = generator.random((4000, 8)) ** 3
    found = np.array([expected_maximum(row, 3) for row in drawn])
    of_three = drawn[:, :3].max(1)
    assert found.mean() == pytest.approx(of_three.mean(), abs=4 * of_three.std() / np.sqrt(4000))
    assert found.std() < 0.8 * of_three.std()


def test_an_expected_maximum_of_many_values_is_a_number():
    assert expected_maximum(np.full(5000, 0.25), 300) == pytest.approx(0.25)
    assert expected_maximum(np.arange(1100.0), 550) == pytest.approx(1099, abs=1.5)
