import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from bench.leaderboard.tradeoff import compare_items
from bench.stats.bootstrap import (
    Estimate,
    compared,
    draws,
    interval,
    paired_draws,
    quantile,
    two_level,
    value_interval,
    wilson,
)


def paired_bootstrap(a, weights_a, b, weights_b, transform="mean", compare="difference") -> Estimate:
    """As a leaderboard holds two results against each other."""
    pairs = pd.DataFrame({"value_a": a, "weight_a": weights_a, "value_b": b, "weight_b": weights_b})
    return compare_items(pairs, transform, compare).estimate()


def paired(generator: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Skewed toxicity-like items of two models on the same prompts, with E[a - b] = shift."""
    level = generator.gamma(1.5, 0.2, n)
    return level + shift + 0.2 * (generator.exponential(1, n) - 1), level


@pytest.mark.every(2)
@pytest.mark.parametrize("shift", [0.0, -0.1])
def test_intervals_cover_and_null_differences_are_rarely_flagged(shift):
    generator, simulations, ones = np.random.default_rng(1), 800, np.ones(60)
    inside = 0
    for _ in range(simulations):
        a, b = paired(generator, 60, shift)
        found = paired_bootstrap(a, ones, b, ones)
        inside += found.low <= shift <= found.high
    assert 0.93 <= inside / simulations <= 0.97  # at shift 0 the rest is what would be flagged by mistake


@pytest.mark.slow
def test_the_interval_of_a_perplexity_ratio_covers():
    generator, simulations, inside = np.random.default_rng(2), 1000, 0
    for _ in range(simulations):
        weights = generator.integers(20, 100, 60).astype(float)
        b = generator.normal(2.8, 0.6, 60)
        found = paired_bootstrap(b + generator.normal(0.2, 0.3, 60), weights, b, weights, "exp", "ratio")
        inside += found.low <= np.exp(0.2) <= found.high
    assert 0.925 <= inside / simulations <= 0.975


def test_values_by_hand():
    a, b = np.array([1.0, 3.0]), np.array([2.0, 6.0])
    ones, weights = np.ones(2), np.array([1.0, 3.0])
    assert paired_bootstrap(a, ones, b, ones).value == -2
    assert paired_bootstrap(a, ones, b, ones, compare="reduction") == (0.5, 0.5, 0.5)  # half in every resample
    assert paired_bootstrap(a, weights, b, weights, compare="ratio").value == pytest.approx(0.5)
    found = paired_bootstrap(np.log(a), ones, np.log(b), ones, "exp", "difference")
    assert found.value == pytest.approx(3**0.5 - 12**0.5)


def test_the_pairing_is_what_narrows_the_interval():
    generator, ones = np.random.default_rng(3), np.ones(50)
    b = generator.normal(0, 10, 50)
    found = paired_bootstrap(b + 1, ones, b, ones)
    assert found.low == pytest.approx(1) and found.high == pytest.approx(1)
    mixed = paired_bootstrap(generator.permutation(b) + 1, ones, b, ones)
    assert mixed.high - mixed.low > 5


def test_against_scipy_with_the_quantiles_widened_for_few_items():
    generator = np.random.default_rng(4)
    a, b = paired(generator, 400, -0.1)  # at 400 items the widening is below 1%
    found = paired_bootstrap(a, np.ones(400), b, np.ones(400))
    other = bootstrap((a - b,), np.mean, method="percentile", n_resamples=10_000, rng=generator).confidence_interval
    assert found.low == pytest.approx(other.low, abs=2e-3) and found.high == pytest.approx(other.high, abs=2e-3)


def test_same_input_same_interval_and_another_seed_another_one():
    a, b = paired(np.random.default_rng(5), 30, 0.1)
    ones = np.ones(30)
    assert paired_bootstrap(a, ones, b, ones) == paired_bootstrap(a, ones, b, ones)
    assert not np.array_equal(paired_draws(a, ones, b, ones), paired_draws(a, ones, b, ones, seed=1))


def test_large_sets_are_resampled_in_blocks_to_the_same_draws(monkeypatch):
    import bench.stats.bootstrap as module

    values = np.random.default_rng(6).random(50)
    whole = draws(values, np.ones(50), seed=9)
    module._counts.cache_clear()
    monkeypatch.setattr(module, "BLOCK", 1000)
    np.testing.assert_allclose(draws(values, np.ones(50), seed=9), whole, rtol=1e-12)


def test_what_has_no_interval():
    one = np.ones(1)
    assert paired_bootstrap(one, one, 2 * one, one) == (-1.0, None, None)
    with pytest.raises(ValueError, match="2 items of a and 1 of b are not pairs"):
        paired_draws(np.ones(2), np.ones(2), one, one)
    with pytest.raises(ValueError, match="no items to average"):
        paired_bootstrap(one, 0 * one, one, one)
    assert np.isnan(compared(1.0, 0.0, "reduction")) and np.isnan(compared(0.0, 0.0, "ratio"))


def test_quantiles_have_the_bits_of_numpy():
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 199, 10_000):
        for values in (
            generator.normal(size=size),
            generator.integers(0, 3, size) / 3,
            np.exp(generator.normal(size=size)),
        ):
            for share in (0.0, 0.0133, 0.025, 0.5, 0.9751, 1.0):
                assert quantile(np.sort(values), share) == np.quantile(values, [share])[0]


def test_wilson_by_hand():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    for successes, n, expected in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)),
                                   (1, 29, (0.0061, 0.1718)), (29, 29, (0.8830, 1.0))):  # fmt: skip
        assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)
    with pytest.raises(ValueError):
        wilson(0, 0)


def test_the_interval_of_a_value_stays_in_its_range():
    assert value_interval(0.25, np.sqrt(0.25 * 0.75 / 3), 4, share=True) == pytest.approx(wilson(1, 4))
    assert value_interval(0.0, 0.0, 20, share=True) == wilson(0, 20)
    assert value_interval(1.0, None, 1, share=True)[1] == 1
    for value, error, n in ((0.02, 0.03, 40), (0.97, 0.05, 12), (0.5, 0.4, 3)):
        low, high = value_interval(value, error, n, share=True)
        assert 0 < low < value < high < 1
    low, high = value_interval(20.0, 15.0, 9, "exp")
    assert low > 0 and low * high == pytest.approx(400)
    assert value_interval(-3.0, 0.5, 9) == pytest.approx((-3.98, -2.02), abs=1e-3)
    for alike in ((0.3, 0.0), (0.3, None), (0.3, 1e-17), (0.3, float("nan"))):
        assert value_interval(*alike, 5, share=True) == value_interval(*alike, 5) == (None, None)


def test_two_hundred_comparisons_in_seconds():
    a, b = paired(np.random.default_rng(7), 60, 0.1)
    ones = np.ones(60)
    start = time.process_time()
    for _ in range(200):
        paired_bootstrap(a, ones, b, ones)
    assert time.process_time() - start < 10


# -- items and fits ---------------------------------------------------------------------------------------------


def crossed(generator: np.random.Generator, fits: int, n: int, item: float, fit: float, both: float) -> np.ndarray:
    """Differences of several fits on the same items, with mean 0; (F, n)."""
    prompts = item * (generator.exponential(1, n) - 1)  # skewed, as toxicity is
    noise = both * generator.standard_normal((fits, n))
    return prompts + fit * generator.standard_normal((fits, 1)) + noise


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "fits, item, fit, both", [(3, 0.2, 0.15, 0.2), (5, 0.3, 0.05, 0.2), (5, 0.2, 0.15, 0.2), (10, 0.3, 0.0, 0.3)]
)
def test_the_interval_over_items_and_fits_covers(monkeypatch, fits, item, fit, both):
    monkeypatch.setattr("bench.stats.bootstrap.RESAMPLES", 1000)
    generator, simulations, inside, n = np.random.default_rng(8), 800, 0, 50
    for i in range(simulations):
        values = crossed(generator, fits, n, item, fit, both)
        drawn = np.stack([draws(one, np.ones(n), seed=i % 5) for one in values])
        low, high = interval(two_level(values.mean(axis=1), drawn, n), n)
        inside += low <= 0 <= high
    assert 0.92 <= inside / simulations <= 0.98  # 93 to 97%, and the noise of 800 simulations


def test_differing_fits_widen_the_interval():
    generator, n = np.random.default_rng(9), 40
    values = crossed(generator, 5, n, 0.3, 0.0, 0.0)
    drawn = np.stack([draws(one, np.ones(n)) for one in values])
    np.testing.assert_array_equal(two_level(values[:1].mean(axis=1), drawn[:1], n), drawn[0])
    alone = interval(drawn[0], n)
    same = interval(two_level(values.mean(axis=1), drawn, n), n)  # five copies of one fit: the items alone are left
    assert same == pytest.approx(alone, abs=1e-9)
    shift = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])[:, None]
    wide = interval(two_level((values + shift).mean(axis=1), drawn + shift, n), n)
    assert wide[1] - wide[0] > 2 * (same[1] - same[0])
    # with no spread over items, Student's t over the five fits: 2.776 * .3162 / sqrt(5)
    bare = np.quantile(two_level(shift[:, 0], np.tile(shift, (1, drawn.shape[1])), n), [0.025, 0.975])
    assert bare[1] == pytest.approx(2.776 * shift.std(ddof=1) / 5**0.5, rel=0.05) and -bare[0] == pytest.approx(
        bare[1], rel=0.1
    )
