import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm, permutation_test, t
from statsmodels.stats.multitest import multipletests

from bench.stats.bootstrap import draws, interval, two_level
from bench.stats.significance import (
    PERMUTATIONS,
    _smallest_effect,
    bootstrap_p,
    compact_letter_display,
    detectable,
    detectable_after_holm,
    detectable_by_draws,
    holm,
    least_p,
    mcnemar_test,
    paired_test,
    permuted,
    rank_intervals,
)
from tests.stats.test_bootstrap import crossed

ONES = np.ones


def table(a, b, weights=None) -> pd.DataFrame:
    weights = np.ones(len(a)) if weights is None else weights
    return pd.DataFrame({"value_a": a, "weight_a": weights, "value_b": b, "weight_b": weights})


def toxic(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that do the same: skewed scores with a prompt's level in common."""
    level = generator.beta(0.5, 1.5, n)
    return tuple(np.clip(level + 0.2 * generator.standard_normal(n), 0, 1) for _ in range(2))


# -- simulations: how often a difference is claimed that is not there ----------------------------------------------


@pytest.mark.parametrize("kind", ["continuous", "binary", "weighted"])
def test_false_positives_stay_at_five_percent(kind, monkeypatch):
    monkeypatch.setattr(
        "bench.stats.significance.PERMUTATIONS", 499
    )  # 20 times faster, and no less exact under the null
    generator, found, simulations = np.random.default_rng(1), 0, 600
    for _ in range(simulations):
        a, b = toxic(generator, 40)
        if kind == "binary":
            a, b = (a > 0.4).astype(float), (b > 0.4).astype(float)
        weights = generator.integers(20, 100, 40).astype(float) if kind == "weighted" else None
        p = paired_test(table(a, b, weights), "exp" if kind == "weighted" else "mean")
        found += p < 0.05
    assert found / simulations <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / simulations)
    assert found > 0 or kind == "binary"  # a test that never finds anything would pass as well


def test_holm_keeps_the_whole_table_at_five_percent(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage in every call
    generator, wrong, simulations = np.random.default_rng(2), 0, 4000
    for _ in range(simulations):  # eight methods against one baseline: all of them share its noise
        z = (generator.standard_normal(8) + generator.standard_normal()) / 2**0.5
        wrong += min(holm((2 * norm.sf(abs(z))).tolist())) < 0.05
    assert 0.01 <= wrong / simulations <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / simulations)


def test_what_is_detectable_is_detected_four_times_in_five(monkeypatch):
    monkeypatch.setattr("bench.stats.significance.PERMUTATIONS", 499)
    generator, found, simulations = np.random.default_rng(3), 0, 600
    for _ in range(simulations):
        b = generator.normal(0.4, 0.3, 50)
        a = b + generator.normal(0, 0.25, 50)
        shift = detectable(table(generator.normal(0, 0.25, 50), np.zeros(50)))
        found += paired_test(table(a + shift, b)) < 0.05
    assert 0.74 <= found / simulations <= 0.86


# -- by hand and against the libraries ------------------------------------------------------------------------------


def test_permutation_by_hand():
    # differences 1, 2, 3: of the 8 choices of signs two have a mean as far from 0 as +2
    assert permuted(np.array([2.0, 3, 4]), ONES(3), ONES(3), ONES(3)) == pytest.approx(2 / 8)
    # swapping the weights along with the values: (a, b) = (2 w1, 0 w1), (0 w3, 0 w3)
    a, b, w = np.array([2.0, 0]), np.zeros(2), np.array([1.0, 3])
    assert permuted(a, w, b, w) == 1.0  # the second item never differs, so both signs of the first are as far


def test_permutation_against_scipy_for_many_items():
    generator = np.random.default_rng(4)
    a, b = toxic(generator, 60)
    b = b + 0.04
    other = permutation_test(
        (a, b), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=generator,
    ).pvalue  # fmt: skip
    assert permuted(a, ONES(60), b, ONES(60)) == pytest.approx(other, abs=0.02)
    weighted = permuted(a, 2 * ONES(60), b, 2 * ONES(60))  # equal weights are no weights, by the other road
    assert weighted == pytest.approx(other, abs=0.02)


def test_a_pair_of_equal_seed_gives_equal_p():
    a, b = toxic(np.random.default_rng(5), 60)
    assert permuted(a, ONES(60), b, ONES(60)) == permuted(a, ONES(60), b, ONES(60))


def test_mcnemar_by_hand():
    a, b = np.array([1.0] * 7 + [0.0] * 1 + [1.0] * 20), np.array([0.0] * 7 + [1.0] * 1 + [1.0] * 20)
    assert mcnemar_test(a, b) == pytest.approx(binomtest(1, 8).pvalue)  # 7 gained, 1 lost, 20 the same
    assert mcnemar_test(a, a) == 1.0
    assert paired_test(table(a, b)) == mcnemar_test(a, b)
    assert paired_test(table(a, b + 1e-9)) != mcnemar_test(a, b)  # not right or wrong: permuted


def test_one_item_has_no_test():
    assert paired_test(table([1.0], [0.5])) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([None]) == [None] and holm([]) == []


def test_detectable_by_hand():
    difference = np.array([-0.2, 0.2] * 25)  # standard deviation .202
    # normal approximation (1.96 + .842) / sqrt(50) = .396 standard deviations, a little more by Student's t
    assert detectable(table(difference, np.zeros(50))) == pytest.approx(0.404 * difference.std(ddof=1), rel=0.01)
    four_times = table(np.tile(difference, 4), np.zeros(200))
    assert detectable(table(difference, np.zeros(50))) / detectable(four_times) == pytest.approx(2.0, rel=0.03)
    assert detectable(table(ONES(50), np.zeros(50))) is None and detectable(table(difference[:2], [0, 0])) is None


def test_ranks_by_hand():
    draws = np.array([[3.0] * 99 + [0.0], [2.0] * 100, [1.0] * 50 + [2.5] * 50])
    assert rank_intervals(draws) == [(1, 1), (2, 3), (2, 3)]
    assert rank_intervals(-draws, higher_is_better=False) == [(1, 1), (2, 3), (2, 3)]


def test_a_resample_in_which_one_method_has_no_value_ranks_none():
    """Otherwise the other would win wherever the first is undefined, such as a ratio to 0."""
    lower = np.array([1.0] * 50 + [np.nan] * 50)
    higher = np.array([2.0] * 50 + [0.0] * 50)
    assert rank_intervals(np.stack([lower, higher])) == [(2, 2), (1, 1)]
    assert rank_intervals(np.stack([lower, higher]), higher_is_better=False) == [(1, 1), (2, 2)]
    mixed = np.array([[1.0, 3.0, np.nan, np.nan], [2.0, 2.0, 9.0, 9.0], [0.0, 0.0, 9.0, np.nan]])
    assert rank_intervals(mixed) == [(1, 2), (1, 2), (3, 3)]
    assert rank_intervals(np.array([[1.0, 1.0], [np.nan, np.nan]])) == [(1, 2), (1, 2)], "nothing is known"


def test_letters_by_hand():
    def apart(*pairs):
        return {frozenset(pair) for pair in pairs}

    assert compact_letter_display("abc", apart()) == {"a": "a", "b": "a", "c": "a"}
    assert compact_letter_display("abc", apart("ac")) == {"a": "a", "b": "ab", "c": "b"}
    assert compact_letter_display("abc", apart("ab", "ac", "bc")) == {"a": "a", "b": "b", "c": "c"}
    assert compact_letter_display("wxyz", apart("wz", "wy", "xz")) == {"w": "a", "x": "ab", "y": "bc", "z": "c"}


def test_letters_say_just_what_the_tests_say():
    generator = np.random.default_rng(6)
    for _ in range(50):
        names = [str(i) for i in range(7)]
        different = {frozenset((a, b)) for a in names for b in names if a < b and generator.random() < 0.4}
        found = compact_letter_display(names, different)
        for a in names:
            for b in names:
                if a < b:
                    assert bool(set(found[a]) & set(found[b])) == (frozenset((a, b)) not in different)


def test_the_p_of_draws_is_where_their_interval_leaves_zero_out():
    draws = np.random.default_rng(7).normal(1.0, 0.6, 9999)
    p = bootstrap_p(draws, 20)
    assert p == pytest.approx(2 * t.sf(1 / 0.6 * (19 / 20) ** 0.5, 19), rel=0.05)
    for level, outside in ((1 - p - 0.01, True), (1 - p + 0.01, False)):
        assert (interval(draws, 20, level)[0] > 0) == outside
    assert bootstrap_p(-draws, 20) == pytest.approx(p) and bootstrap_p(draws - 1, 20) > 0.9
    assert bootstrap_p(draws, 1) is None


@pytest.mark.parametrize("fits", [3, 5])
def test_false_positives_of_several_fits_stay_at_five_percent(fits, monkeypatch):
    monkeypatch.setattr("bench.stats.bootstrap.RESAMPLES", 1000)
    generator, found, simulations = np.random.default_rng(8), 0, 800
    for i in range(simulations):
        values = crossed(generator, fits, 50, 0.2, 0.1, 0.2)
        drawn = np.stack([draws(one, np.ones(50), seed=i % 5) for one in values])
        found += bootstrap_p(two_level(values.mean(axis=1), drawn, 50), 50) < 0.05
    assert 0.02 <= found / simulations <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / simulations)


def test_holm_gives_the_bits_of_statsmodels():
    generator = np.random.default_rng(8)
    for n in (1, 2, 7, 40):
        p = generator.random(n) ** 3
        p[: n // 3] = p[0]  # some are equal
        assert holm(p.tolist()) == multipletests(p, method="holm")[1].tolist()
    assert holm([None, 0.01, None, 0.5, 0.03]) == [None, 0.03, None, 0.5, 0.06] and holm([None]) == [None]


@pytest.mark.parametrize("n", [3, 13, 14, 170, 600])
@pytest.mark.parametrize("heavy", [False, True])
def test_swaps_are_drawn_as_scipy_draws_them(n, heavy):
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=n), generator.normal(0.1, size=n)
    weights = [generator.integers(1, 9, n).astype(float) if heavy else ONES(n) for _ in "ab"]
    values, both = np.concatenate([a, b]), np.concatenate(weights)

    def folds(x, y, axis):
        return np.subtract(*((both[i] * values[i]).sum(axis=axis) / both[i].sum(axis=axis) for i in (x, y)))

    other = permutation_test(
        (np.arange(n), n + np.arange(n)), folds, permutation_type="samples", n_resamples=PERMUTATIONS,
        batch=1000, rng=np.random.default_rng([0, n]),
    ).pvalue  # fmt: skip
    assert permuted(a, weights[0], b, weights[1]) == other


def test_detectable_after_holm_is_that_of_the_smaller_level():
    pairs = table(np.random.default_rng(3).normal(0, 0.2, 60), ONES(60))
    before = detectable(pairs)
    assert detectable_after_holm(before, 60, 6) == pytest.approx(detectable(pairs, alpha=0.05 / 6))
    assert detectable_after_holm(before, 60, 1) == before


def test_detectable_by_draws_equals_items_if_fits_agree():
    difference = np.random.default_rng(4).normal(0, 0.2, 80)
    drawn = draws(difference, ONES(80))
    assert detectable_by_draws(drawn, 80) == pytest.approx(detectable(table(difference, np.zeros(80))), rel=0.05)
    assert detectable_by_draws(np.zeros(100), 80) is None and detectable_by_draws(drawn, 2) is None


@pytest.mark.parametrize(
    "n, alpha, effect", [(3, 0.05 / 20, 14.6), (4, 0.05 / 20, 5.94), (10, 0.0005, 2.05), (170, 0.05, None)]
)
def test_the_smallest_effect_has_its_power_in_simulations(n, alpha, effect):
    found = detectable_after_holm(_smallest_effect(n, 0.8, 0.05), n, round(0.05 / alpha))
    assert effect is None or found == pytest.approx(effect, rel=0.01)
    drawn = np.random.default_rng(0).normal(found, 1, (20_000, n))
    statistic = drawn.mean(1) / drawn.std(1, ddof=1) * np.sqrt(n)
    assert (np.abs(statistic) > t.ppf(1 - alpha / 2, n - 1)).mean() == pytest.approx(0.8, abs=0.012)


def test_ranks_are_one_more_than_the_number_of_better_ones():
    draws = np.random.default_rng(0).integers(0, 6, (12, 300)).astype(float)  # with many ties
    for values, higher in ((draws, True), (-draws, False)):
        ranks = 1 + (draws[None] > draws[:, None]).sum(axis=1)
        expected = np.quantile(ranks, [0.025, 0.975], axis=1, method="inverted_cdf").astype(int).T
        assert rank_intervals(values, higher) == [tuple(one) for one in expected]


@pytest.mark.parametrize("n", [2, 5, 13, 40])
def test_no_p_is_below_the_least(n):
    far = paired_test(pd.DataFrame({"value_a": np.arange(n) + 50.5, "weight_a": 1.0, "value_b": 0.5, "weight_b": 1.0}))
    assert far == pytest.approx(least_p(n))
    assert bootstrap_p(np.full(500, 3.0), n) == pytest.approx(least_p(n, 500))
