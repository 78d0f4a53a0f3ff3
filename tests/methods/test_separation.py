"""Agreement and separation of contrast pairs, on clouds whose answer is known, and as facts of the methods' fits."""

import math

import pytest
import torch

from methods import caa, detox, directions, mean_centring, probe_rows
from methods.base import FitData, Pairs, facts
from methods.separation import FEWEST_FOR_FOLDS, held_out_projections, separation, separation_facts
from tests.methods.test_contract import DATA, PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

METHODS = {
    "caa": caa.CAA(),
    "mean_centring": mean_centring.MeanCentring(),
    "detox": detox.DeTox(rank=1),
    "probe_rows": probe_rows.ProbeRows(min_steps=20),
}


def clouds(seed, count, width, distance, common=0.0):
    """Two clouds of unit variance whose means are `distance` apart; pairs share a part of that standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, count, width, generator=generator, dtype=torch.float64)
    sides = math.sqrt(1 - common**2) * drawn[:2] + common * drawn[2]
    sides[0, :, 0] += distance
    return sides + 1000  # far from the origin, as activations are


@pytest.mark.parametrize("common", [0.0, 0.7])
@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_a_planted_d_prime_is_found(distance, common):
    found = separation(*clouds(0, 4000, 6, distance, common))
    assert found.d_prime == pytest.approx(distance, abs=0.06)


@pytest.mark.parametrize("distance", [1.0, 4.0])
def test_the_cosine_is_what_the_signal_leaves_of_the_noise(distance):
    count, width = 50, 400
    noise = 2 * width  # squared length of the noise in a difference
    signal = distance**2
    expected = signal / math.sqrt((signal + noise) * (signal + noise / (count - 1)))
    found = sum(separation(*clouds(seed, count, width, distance)).mean_cosine for seed in range(20)) / 20
    assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("count", [4, FEWEST_FOR_FOLDS, 60])
def test_noise_is_told_from_nothing_in_a_wide_space(count):
    """The cosine with the mean of all differences would be 1 / sqrt(count), and d' of the fitted pairs far above 0."""
    found = torch.tensor([separation(*clouds(seed, count, 300, 0.0)) for seed in range(400)])
    error = found.std(0) / math.sqrt(400)
    assert (found.mean(0).abs() < 4 * error).all()
    assert error[0] < 0.02 and error[1] < 0.1


def test_equal_differences_have_cosine_1_opposite_ones_minus_1():
    base = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(-1, 2, 30)
    found = separation(base + shift, base)
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)
    along = base.double() @ (shift / shift.norm()).double()
    assert found.d_prime == pytest.approx(float(shift.norm()) / float(along.std()), rel=1e-5)
    turned = separation(base + shift * torch.tensor([1.0, -1.0]).repeat(6)[:, None], base)
    assert turned.mean_cosine == pytest.approx(-1, abs=1e-6) and turned.d_prime < 0


def test_three_pairs_by_hand():
    desired, undesired = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), torch.zeros(3, 2)
    others = torch.tensor([[2.0, 3.0], [3.0, 2.0], [1.0, 1.0]]) / torch.tensor([[13.0], [13.0], [2.0]]).sqrt()
    cosines = (desired / desired.norm(dim=1, keepdim=True) * others).sum(1)
    plus, minus = ((side - 0.5).mul(others).sum(1) for side in (desired, undesired))  # their mean is (.5, .5)
    expected = (plus.mean() - minus.mean()) / ((plus.var() + minus.var()) / 2).sqrt()
    found = separation(desired, undesired)
    assert found.mean_cosine == pytest.approx(float(cosines.mean()))
    assert found.d_prime == pytest.approx(float(expected))


def test_a_fold_is_projected_on_a_direction_of_other_folds():
    sides = clouds(0, FEWEST_FOR_FOLDS, 8, 1.0)
    before = held_out_projections(sides)
    sides[0, :2] += 50 * torch.randn(8, generator=torch.Generator().manual_seed(1))  # the first of five folds
    after = held_out_projections(sides)
    old, new = ((one[1, :2] - one[1, :2].mean()) for one in (before, after))  # but for where 0 is
    torch.testing.assert_close(new, old)
    assert not torch.isclose(after[:, 2:], before[:, 2:]).any()


def test_swapped_sides_and_a_shared_offset_change_nothing():
    """The direction turns with the sides, so both numbers stay; a shift of everything is no spread within a side."""
    sides = clouds(3, 20, 10, 1.5)
    found = separation(*sides)
    assert separation(sides[1], sides[0]) == pytest.approx(found)
    assert separation(*(sides + 1e4 * torch.randn(10, generator=torch.Generator().manual_seed(2)))) == pytest.approx(
        found, rel=1e-6
    )


def test_what_cannot_be_said_is_no_fact():
    one = torch.ones(1, 4)
    assert all(map(math.isnan, separation(one, -one))) and not separation_facts(one, -one)
    alike = separation_facts(torch.ones(6, 4), -torch.ones(6, 4))  # no spread to divide by
    assert alike.keys() == {"info.mean_cosine"} and alike["info.mean_cosine"] == pytest.approx(1)
    nothing = separation(torch.ones(6, 4), torch.ones(6, 4))
    assert nothing.mean_cosine == 0 and math.isnan(nothing.d_prime)


def test_of_several_layers_the_mean():
    layers = [clouds(seed, 12, 5, seed) for seed in (1, 2)]
    desired, undesired = torch.stack(layers, dim=1)  # (L, N, D) each
    found = facts(separation_facts(desired, undesired))
    both = [separation(*one) for one in layers]
    for i, name in enumerate(("mean_cosine", "d_prime")):
        assert found[name] == pytest.approx(sum(one[i] for one in both) / 2)


# -- the methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_states_both_and_reads_no_text_more_for_it(name, monkeypatch):
    lm, data = tiny_lm(), FitData(PAIRS, background=DATA["background"])
    passes = []
    lm.model.register_forward_hook(lambda *_: passes.append(1))
    with_facts = METHODS[name].fit(lm.model, lm.tokenizer, data)
    read = len(passes)
    assert {"mean_cosine", "d_prime"} <= facts(with_facts).keys()
    monkeypatch.setattr(f"methods.{name}.separation_facts", lambda *_: {})
    without = METHODS[name].fit(lm.model, lm.tokenizer, data)
    assert len(passes) == 2 * read
    assert with_facts.keys() - without.keys() == {"info.mean_cosine", "info.d_prime"}
    assert all(torch.equal(with_facts[key], tensor) for key, tensor in without.items())


@pytest.mark.parametrize("name", METHODS)
def test_pairs_that_agree_are_told_from_pairs_that_do_not(name):
    """A planted direction, and the same pairs with every second one the other way round.

    Mean-centring reads no undesired text, but a background, here the same texts.
    """
    lm, pairs, *_ = planted_sink("llama")
    turned = Pairs(
        pairs.prompt,
        *([one[i % 2] for i, one in enumerate(zip(*order, strict=True))] for order in (pairs[1:], pairs[:0:-1])),
    )
    options = {"layer_start": 1, "layer_stop": 2, "skip_first": 1} if name == "detox" else {"layer": 1, "skip_first": 1}
    method = type(METHODS[name])(**options, **({"min_steps": 20} if name == "probe_rows" else {}))
    agreeing, mixed = (
        facts(method.fit(lm.model, lm.tokenizer, FitData(one, background=one.undesired))) for one in (pairs, turned)
    )
    assert agreeing["mean_cosine"] > 0.5 and agreeing["d_prime"] > 2
    assert mixed["mean_cosine"] < 0.2 and mixed["d_prime"] < 0.5 * agreeing["d_prime"]


def test_the_facts_are_of_the_layer_that_is_read():
    lm = tiny_lm()
    found = facts(caa.CAA(layer=3).fit(lm.model, lm.tokenizer, FitData(PAIRS)))
    texts = directions_of(lm, 3)
    assert (found["mean_cosine"], found["d_prime"]) == pytest.approx(tuple(separation(*texts)), rel=1e-4)


def directions_of(lm, layer):
    encoded = caa.encode_pairs(lm.model, lm.tokenizer, PAIRS)
    return (
        directions.pooled_features(lm.model, side, [layer], read="continuation")[0]
        for side in (encoded.desired, encoded.undesired)
    )
