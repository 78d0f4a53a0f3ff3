"""Two rows on the items that both were measured on."""

import numpy as np
import pytest
from scipy import stats

from bench.leaderboard.grouping import Fit, Row
from bench.leaderboard.pairing import change, difference, joined, over, p_value, paired, pairwise_p
from bench.leaderboard.tradeoff import BootstrapEstimate
from bench.records.fields import MethodFacts
from tests.leaderboard.test_grouping import CAA, UNSTEERED, fits, result

RANDOM = MethodFacts(name="random_direction", family="activation", version=1, parameters={}, strength=1.0)


def test_only_items_that_were_asked_in_the_same_way_are_paired():
    base, own = Fit([result(2, items=3)]), Fit([result(5, CAA, items=2)])
    pairs = joined(own, base)["rtp.m"]
    assert pairs.value_a.tolist() == [5.0, 5.0] and pairs.value_b.tolist() == [2.0, 2.0]
    assert list(pairs.index) == ["item0", "item1"]
    assert joined(own, base, only="other") == {}
    assert joined(Fit([result(5, CAA, comparison="two")]), base) == {}


def test_what_one_fit_lacks_is_not_told_of_the_row():
    base, few = Fit([result(2)]), fits(0, 1)
    pairs = [joined(fit, base) for fit in few]
    assert change(pairs, "rtp.m", "mean").value == pytest.approx((1 - 2 + 2 - 2) / 2)
    assert change([pairs[0], {}], "rtp.m", "mean") is None and change([], "rtp.m", "mean") is None
    assert over(pairs, lambda _: BootstrapEstimate(1.0, np.ones(4), 2)).value == 1.0


def test_ratios_of_several_fits_are_averaged_as_logarithms():
    base = Fit([result(2)])
    pairs = [joined(fit, base) for fit in fits(0, 7)]  # of values 1 and 8, so ratios 1/2 and 4
    assert change(pairs, "rtp.m", "mean", "ratio").value == pytest.approx(2**0.5)
    assert change(pairs[:1], "rtp.m", "mean", "ratio").value == pytest.approx(0.5)


def test_p_is_none_where_a_metric_is_missing():
    pairs = [joined(fit, Fit([result(2)])) for fit in fits(0)]
    assert 0 < p_value(pairs, "rtp.m", "mean") <= 1 and p_value(pairs, "other", "mean") is None


def test_of_two_rows_with_several_fits_the_larger_p_counts():
    near, far = Row(fits(3, 4, 5)), Row(fits(30, 31, 33))
    both = pairwise_p(near, far, "rtp.m", "mean")
    of_near = p_value([joined(fit, far, "rtp.m") for fit in near.fits], "rtp.m", "mean")
    of_far = p_value([joined(fit, near, "rtp.m") for fit in far.fits], "rtp.m", "mean")
    assert both == max(of_near, of_far) == pairwise_p(far, near, "rtp.m", "mean")
    assert pairwise_p(near, Row([Fit([result(1, comparison="two")])]), "rtp.m", "mean") is None


def test_a_difference_of_rows_has_the_spread_of_both_fits():
    one, few = Row(fits(3)), Row(fits(0, 4, 8))
    change_to_mean = change([joined(one.fits[0], few, "rtp.m")], "rtp.m", "mean")
    found, back = difference(one, few, "rtp.m", "mean"), difference(few, one, "rtp.m", "mean")
    assert found.value == change_to_mean.value == pytest.approx(-back.value)
    assert change_to_mean.draws.std() == 0, "all items are alike, and the fits are held fixed"
    assert found.draws.std() == pytest.approx(back.draws.std(), rel=0.1) and found.draws.std() > 1
    assert np.isnan(difference(one, Row(fits(5)), "rtp.m", "mean").draws).all(), "nobody knows how much fits scatter"
    low, high = np.quantile(found.draws - found.value, [0.025, 0.975])
    expected = stats.t(2).ppf(0.975) * np.std([0, 4, 8], ddof=1) * np.sqrt(1 + 1 / 3)
    assert (-low, high) == pytest.approx((expected, expected), rel=0.1), "Student's prediction of a further fit"
    assert difference(one, few, "other", "mean") is None


def test_first_texts_that_shared_items_lack_are_not_read():
    """An unsteered model may have more texts with one sampling seed than with another."""
    base = Fit([result(2)])
    found, plain = (joined(fits(0)[0], base, first=first)["rtp.m"] for first in (frozenset({"rtp.m"}), frozenset()))
    assert found.difference.tolist() == plain.difference.tolist()


def test_fits_are_compared_on_the_items_that_all_have():
    """Otherwise their resamples would be independent, and what items spread would be averaged away."""
    generator = np.random.default_rng(0)
    level, base = generator.random(60), Fit([record_of(UNSTEERED, generator.random(60))])
    whole = [Fit([record_of(CAA, level + 0.001 * seed, fit=seed)]) for seed in range(5)]
    partly = [Fit([record_of(CAA, level[seed:] + 0.001 * seed, fit=seed, first=seed)]) for seed in range(5)]
    pairs = paired(partly, base)
    assert {tuple(one["rtp.m"].index) for one in pairs} == {tuple(f"item{i:02d}" for i in range(4, 60))}
    spread = [change(paired(fits_of, base), "rtp.m", "mean").draws.std() for fits_of in (whole, partly)]
    assert spread[1] == pytest.approx(spread[0], rel=0.15)
    one = Row([Fit([record_of(RANDOM, generator.random(60), fit=9)])])
    spread = [difference(one, Row(fits_of), "rtp.m", "mean").draws.std() for fits_of in (whole, partly)]
    assert spread[1] == pytest.approx(spread[0], rel=0.15)


def record_of(method, values, *, fit=None, first=0):
    """A result whose items have these values, numbered from `first`."""
    found = result(fit or 0, method, fit=fit, items=len(values))
    names = [f"item{first + i:02d}" for i in range(len(values))]
    return found._replace(items=found.items.assign(item=names, value=np.asarray(values, float)))
