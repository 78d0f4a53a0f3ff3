from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.export.effect import measure
from bench.model.lm import LM
from methods import layout
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.repe import RepE
from tests.sinks import planted_sink
from tests.tiny import tiny_lm
from tests.vectors import PAIRS, before_and_after, ids_of, mean_length_by_hand, output_by_hand, text_logits

LAYER = 1
KEY = f"layers.{LAYER}.direction"
ONE = {"first_layer": LAYER, "last_layer": LAYER}


def fit(method: RepE, lm: LM, pairs: Pairs = PAIRS) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def differences_by_hand(lm: LM, layer: int, read: str = "last") -> np.ndarray:
    """(N, D) difference of each pair, of features read one text at a time."""
    rows = []
    for prompt, *sides in zip(*PAIRS, strict=True):
        features = []
        for continuation in sides:
            head, tail = ids_of(lm, prompt, continuation)
            start = {"last": len(head + tail) - 1, "continuation": len(head), "all": 0}[read]
            features.append(output_by_hand(lm, head + tail, layer)[start:].mean(0))
        rows.append(features[0] - features[1])
    return torch.stack(rows).numpy()


def principal(rows: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """The eigenvector of X'X with the largest eigenvalue, on the side of most of the ordered differences."""
    _, axes = np.linalg.eigh(rows.T @ rows)
    axis = axes[:, -1]
    sides = np.sign(ordered @ axis).sum()
    return axis * (np.sign(sides) or np.sign(ordered.mean(0) @ axis))


@pytest.mark.every(5)
@pytest.mark.parametrize("read", ["last", "continuation", "all"])
@pytest.mark.parametrize("center", [False, "shuffle", True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_vector_is_that_of_the_formula(architecture, center, read):
    lm = tiny_lm(architecture)
    ordered = differences_by_hand(lm, LAYER, read)
    rows = ordered
    if center == "shuffle":
        coins = torch.randint(2, (len(ordered), 1), generator=torch.Generator().manual_seed(4)).numpy()
        rows = np.where(coins == 1, ordered, -ordered)
    if center is not False:
        rows = rows - rows.mean(0)
    unit = principal(rows, ordered)
    artefact = fit(RepE(**ONE, center=center, read=read, shuffle_seed=4), lm)
    norm = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    assert float(artefact["info.residual_norm"][0]) == pytest.approx(norm, rel=1e-4)
    torch.testing.assert_close(artefact[KEY].double(), torch.tensor(norm * unit), atol=2e-3 * norm, rtol=2e-3)
    values = np.linalg.svd(rows, compute_uv=False) ** 2
    assert float(artefact["info.explained"][0]) == pytest.approx(values[0] / values.sum(), rel=1e-3)
    assert float(artefact["info.agreeing"][0]) == pytest.approx((ordered @ unit > 0).mean())


def test_uncentred_is_pca_of_activations_around_each_pairs_mean():
    lm = tiny_lm()
    half = differences_by_hand(lm, LAYER) / 2
    around = np.concatenate([half, -half])  # each pair's two activations less their mean
    around = around - around.mean(0)
    found, unit = fit(RepE(**ONE), lm)[KEY], torch.tensor(principal(around, half)).float()
    torch.testing.assert_close(found / found.norm(), unit, atol=1e-3, rtol=1e-3)


def test_a_planted_mean_is_found_unless_it_is_taken_off():
    """Differences of mean e0 that vary a little, and most along e1."""
    generator = torch.Generator().manual_seed(0)
    rows = 0.02 * torch.randn(40, 12, generator=generator)
    rows[:, 1] += 0.3 * torch.randn(40, generator=generator)
    rows[:, 0] += 2
    found = {center: RepE(center=center).direction(rows, 1.0, 0) for center in (False, "shuffle", True)}
    assert found[False][0][0] > 0.99 and found["shuffle"][0][0] > 0.99
    assert found[True][0][1].abs() > 0.99 and found[True][0][0].abs() < 0.1
    assert found[False][2] == 1 and found["shuffle"][2] == 1
    seeds = [RepE(center="shuffle", shuffle_seed=seed).direction(rows, 1.0, 0)[0] for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


@pytest.mark.parametrize(("sides", "sign"), [([5.0, -1, -1], -1), ([-5.0, 1, 1], 1), ([3.0, -1], 1), ([-3.0, 1], -1)])
def test_most_pairs_decide_the_sign_and_the_mean_a_tie(sides, sign):
    rows = torch.tensor(sides)[:, None] * torch.tensor([[1.0, 0, 0]])
    unit, explained, agreeing = RepE().direction(rows, 1.0, 0)
    torch.testing.assert_close(unit, torch.tensor([float(sign), 0, 0]))
    assert explained == pytest.approx(1) and float(agreeing) == pytest.approx(
        sum(side * sign > 0 for side in sides) / len(sides)
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_direction_is_found_and_points_to_the_desired(architecture):
    lm, pairs, direction, sink = planted_sink(architecture)
    for options in ({}, {"read": "continuation"}, {"center": "shuffle"}, {"read": "all", "skip_first": 1}):
        found = fit(RepE(**ONE, **options), lm, pairs)[KEY]
        assert torch.cosine_similarity(found, direction, dim=0) > 0.99, options
    leaked = fit(RepE(**ONE, read="all"), lm, pairs)[KEY]
    assert abs(float(torch.cosine_similarity(leaked, sink, dim=0))) > 0.8
    swapped = fit(RepE(**ONE), lm, Pairs(pairs.prompt, pairs.undesired, pairs.desired))[KEY]
    assert torch.cosine_similarity(swapped, direction, dim=0) < -0.99


@pytest.mark.parametrize("center", [False, True])
def test_swapping_some_pairs_changes_at_most_the_sign(center):
    lm, method = tiny_lm(), RepE(**ONE, center=center)
    sides = enumerate(zip(PAIRS.desired, PAIRS.undesired, strict=True))
    desired, undesired = zip(*[(a, b) if i % 2 else (b, a) for i, (a, b) in sides], strict=True)
    some = Pairs(PAIRS.prompt, list(desired), list(undesired))
    one, other = (torch.nn.functional.normalize(fit(method, lm, pairs)[KEY], dim=0) for pairs in (PAIRS, some))
    assert (abs(float(one @ other)) > 0.9999) != method.reads_labels


def test_every_block_of_the_range_gets_its_own_vector():
    lm = tiny_lm()
    several = RepE(first_layer=0.2, last_layer=0.6)
    artefact = fit(several, lm)
    assert [key for key in artefact if key.startswith("layers.")] == [f"layers.{i}.direction" for i in (1, 2, 3)]
    for layer in (1, 2, 3):
        alone = fit(replace(several, first_layer=layer, last_layer=layer), lm)
        torch.testing.assert_close(artefact[f"layers.{layer}.direction"], alone[f"layers.{layer}.direction"])
        before, after, _ = before_and_after(lm, several, artefact, 0.3, layer)
        added = 0.3 * artefact[f"layers.{layer}.direction"]
        torch.testing.assert_close(after - before, added.expand_as(before), atol=1e-4, rtol=1e-4)
    for layer in (0, 4):
        before, after, _ = before_and_after(lm, several, artefact, 0.3, layer)
        assert torch.equal(before, after)


def test_strength_is_in_mean_lengths_of_the_stream():
    lm, method = tiny_lm(), RepE(**ONE)
    artefact = fit(method, lm)
    norm = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    before, after, _ = before_and_after(lm, method, artefact, -0.5, LAYER)
    assert (after - before).norm(dim=-1) == pytest.approx([0.5 * norm] * len(before), rel=1e-3)
    assert method.residual_norms({}) == 1


def test_piecewise_strengthens_what_is_there():
    lm, method = tiny_lm(), RepE(**ONE, operation="piecewise")
    artefact = fit(method, lm)
    before, after, _ = before_and_after(lm, method, artefact, 0.4, LAYER)
    v = artefact[KEY]
    side = (before.double() @ v.double()).sign()
    assert {-1.0, 1.0} == set(side.tolist())
    torch.testing.assert_close(after, before + (0.4 * side[:, None] * v).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operation", ["add", "piecewise"])
def test_keep_length_changes_the_direction_alone(operation):
    lm, method = tiny_lm(), RepE(**ONE, operation=operation, keep_length=True)
    artefact = fit(method, lm)
    before, after, _ = before_and_after(lm, method, artefact, 0.4, LAYER)
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), atol=1e-4, rtol=1e-4)
    free = before_and_after(lm, replace(method, keep_length=False), artefact, 0.4, LAYER)[1]
    torch.testing.assert_close(torch.cosine_similarity(free, after), torch.ones(len(after)), atol=1e-5, rtol=1e-5)
    assert (free.norm(dim=-1) - before.norm(dim=-1)).abs().max() > 1e-2


@pytest.mark.parametrize("options", [{}, {"operation": "piecewise"}, {"keep_length": True}])
@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
def test_scope_says_which_tokens_move(scope, options):
    lm, method = tiny_lm(), RepE(**ONE, scope=scope, **options)
    before, after, prompt = before_and_after(lm, method, fit(method, lm), 0.4, LAYER)
    moved = (before != after).any(-1)
    expected = {"all": (True, True), "prompt": (True, False), "generation": (False, True)}[scope]
    assert moved[:prompt].tolist() == [expected[0]] * prompt
    assert moved[prompt:].tolist() == [expected[1]] * (len(moved) - prompt)


def test_strength_zero_and_an_exception_leave_every_bit():
    lm, method = tiny_lm(), RepE(first_layer=0, last_layer=3)
    artefact, base = fit(method, lm), text_logits(lm)
    bytes_before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(text_logits(lm), base)
    with pytest.raises(KeyError), method.apply(lm.model, artefact, 0.2):
        assert not torch.equal(text_logits(lm), base)
        raise KeyError
    assert torch.equal(text_logits(lm), base)
    assert all(torch.equal(one, bytes_before[name]) for name, one in lm.model.state_dict().items())


def test_what_it_adds_can_be_exported():
    lm, method = tiny_lm(), RepE(first_layer=1, last_layer=2)
    artefact = fit(method, lm)
    effect = measure(lm, method, artefact, 0.2)
    assert effect.beyond is None and set(effect.vectors) == {1, 2} and not effect.weights
    torch.testing.assert_close(effect.vectors[2], 0.2 * artefact["layers.2.direction"])
    for options in ({"operation": "piecewise"}, {"keep_length": True}, {"scope": "generation"}):
        assert measure(lm, replace(method, **options), artefact, 0.2).beyond, options


def test_wrong_settings_and_pairs_without_a_direction():
    lm = tiny_lm()
    for options, message in (
        ({"read": "letter"}, "allowed are all, continuation, last"),
        ({"center": "yes"}, "method.center='yes': allowed are false, shuffle, true"),
        ({"center": 0}, "method.center=0: allowed are false, shuffle, true"),
        ({"operation": "project"}, "allowed are add, piecewise"),
        ({"scope": "front"}, "allowed are all, prompt, generation"),
        ({"skip_first": -1}, "is negative"),
        ({"last_layer": 5}, "layer 5 out of range: this model of type llama has 5 blocks .* set method.last_layer"),
        ({"first_layer": 3, "last_layer": 1}, "is block 3 and method.last_layer=1 is block 1: the last one must not"),
    ):
        with pytest.raises(SetupError, match=message):
            RepE(**options).check(lm.model)
    with pytest.raises(SetupError, match="repe learns from contrast pairs and got 1; give at least 2"):
        fit(RepE(), lm, Pairs(*(column[:1] for column in PAIRS)))
    same = Pairs(PAIRS.prompt, PAIRS.desired, PAIRS.desired)
    with pytest.raises(SetupError, match="differences at block 1 are all zero .* where method.read looks$"):
        fit(RepE(**ONE), lm, same)
    alike = Pairs(*(column[:1] * 4 for column in PAIRS))
    with pytest.raises(SetupError, match="do not differ from one another .*set method.center=false"):
        fit(RepE(**ONE, center=True), lm, alike)
    assert fit(RepE(**ONE), lm, alike)["info.explained"] == pytest.approx(1)


def test_an_artefact_of_another_model_or_of_other_layers():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(RepE(**ONE), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with RepE(**ONE).apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with RepE(first_layer=1, last_layer=2).apply(lm.model, artefact, 1):
            pass
    assert layout.width(lm.model) == 36
