"""SASA: the probe by another way of computing it, rises by the formula, and which tokens are tried."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.model.sampling import prefill, sample
from methods import layout
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.intervention import record
from methods.sasa import SASA, fisher
from tests.architectures import lm_of
from tests.decoding import gap_to_sampling, steered_logits, step
from tests.methods.test_contract import PAIRS
from tests.tiny import tiny_lm

PROMPTS = ["the old tree", "a small bird sings in the", "rain"]
WIDTH = 36  # of the tiny Llama


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def artefact_of(direction, midpoint=0.0, deviation=1.0):
    return {
        "direction": direction, "midpoint": torch.tensor(midpoint), "deviation": torch.tensor(deviation),
    }  # fmt: skip


# -- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 12)])
def test_the_probe_by_least_squares(count, width):
    """Fisher's direction is that of a regression of the side on the features; with few texts, the shortest one."""
    desired, undesired = 2 * normal(count, width) + 1, 2 * normal(count, width, seed=1) - 0.5
    probe = fisher(desired, undesired, 1e-6)
    one, other = desired.double().numpy(), undesired.double().numpy()
    within = np.concatenate([one - one.mean(0), other - other.mean(0)])
    inverse = np.linalg.pinv(within / math.sqrt(2 * count - 2), rcond=1e-9)  # (D, 2N); S+ = inverse inverse'
    wanted = inverse @ inverse.T @ (one.mean(0) - other.mean(0)) / 2
    wanted /= np.linalg.norm(wanted)
    np.testing.assert_allclose(probe.direction.numpy(), wanted, atol=1e-8)
    assert float(probe.direction.norm()) == pytest.approx(1)
    assert float(probe.midpoint) == pytest.approx(float(wanted @ (one.mean(0) + other.mean(0)) / 2))
    assert probe.rank == min(width, 2 * count - 2)
    spread = [float(np.var(side @ wanted, ddof=0)) * count for side in (one, other)]
    assert float(probe.deviation) == pytest.approx(math.sqrt(sum(spread) / (2 * count - 2)))


def test_swapped_sides_negate_the_probe():
    desired, undesired = normal(20, 5) + 1, normal(20, 5, seed=1)
    probe, swapped = fisher(desired, undesired, 1e-6), fisher(undesired, desired, 1e-6)
    torch.testing.assert_close(swapped.direction, -probe.direction)
    torch.testing.assert_close(swapped.midpoint, -probe.midpoint)
    torch.testing.assert_close(swapped.deviation, probe.deviation)


def test_a_planted_direction_is_found_under_other_noise():
    """Fisher, unlike a difference of means, discounts a direction in which every text varies."""
    noise = normal(400, 2, 4) * torch.tensor([0.1, 10.0, 0.1, 0.1])
    planted = torch.tensor([1.0, 1.0, 0.0, 0.0])
    probe = fisher(noise[:, 0] + planted, noise[:, 1], 1e-6)
    assert probe.direction[0] > 0.99
    assert float(probe.midpoint) == pytest.approx(0.5, abs=0.1)


def test_small_eigenvalues_are_left_out():
    desired, undesired = normal(50, 3) * torch.tensor([1.0, 1.0, 1e-5]), normal(50, 3, seed=1)
    undesired = undesired * torch.tensor([1.0, 1.0, 1e-5]) + torch.tensor([1.0, 0.0, 1.0])
    probe = fisher(desired, undesired, 1e-6)
    assert probe.rank == 2 and abs(float(probe.direction[2])) < 1e-4
    assert fisher(desired, undesired, 0.0).rank == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_states_are_read_at_the_last_token_after_the_final_norm(architecture):
    lm = tiny_lm(architecture)
    artefact = fit(SASA(), lm)
    sides = []
    for side in (PAIRS.desired, PAIRS.undesired):
        rows = []
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            ids = torch.tensor([lm.encode(prompt + text)])
            with torch.no_grad():
                rows.append(lm.model(ids, output_hidden_states=True).hidden_states[-1][0, -1])  # after the norm
        sides.append(torch.stack(rows))
    wanted = fisher(*sides, 1e-6)
    assert abs(float(torch.cosine_similarity(artefact["direction"].double(), wanted.direction, dim=0))) > 0.999
    assert float(artefact["direction"] @ wanted.direction.float()) > 0
    assert float(artefact["midpoint"]) == pytest.approx(float(wanted.midpoint), rel=1e-2, abs=1e-3)
    right = [(float(wanted.direction @ row.double()) > wanted.midpoint) == (n == 0) for n in (0, 1) for row in sides[n]]
    assert float(artefact["info.train_accuracy"]) == pytest.approx(sum(right) / len(right)) and sum(right) > 8


# -- decoding --------------------------------------------------------------------------------------------------------


def by_formula(logits, states, direction, midpoint, unit, strength, top_p, most):
    """Of one column: logits (V,), states (V, D)."""
    probability, candidates, total = logits.double().softmax(-1), [], 0.0
    for token in logits.argsort(descending=True).tolist():
        if total >= top_p or len(candidates) == most:
            break
        candidates.append(token)
        total += float(probability[token])
    margins = [(float(states[token].double() @ direction.double()) - midpoint) / unit for token in candidates]
    weights = [math.exp(one - max(margins)) for one in margins]
    found = logits.double().clone()
    for token, weight in zip(candidates, weights, strict=True):
        found[token] += strength * weight / sum(weights)
    return found


@pytest.mark.parametrize("margin", ["raw", "std"])
@pytest.mark.parametrize("most", [2, 5, 1000])
@pytest.mark.parametrize("strength", [2, 50, -3])
def test_logits_by_the_formula(strength, most, margin):
    lm = tiny_lm()
    logits, states, direction = 2 * normal(2, 3, 30), normal(30, WIDTH, seed=1), normal(WIDTH, seed=2)
    method = SASA(margin=margin, max_candidates=most)
    artefact = artefact_of(direction, 0.7, 3.0)
    got = steered_logits(method, artefact, strength, lm.model, step(logits, states=states))
    for row in range(2):
        for column in range(3):
            unit = 3.0 if margin == "std" else 1.0
            wanted = by_formula(logits[row, column], states, direction, 0.7, unit, strength, 0.9, most)
            torch.testing.assert_close(got[row, column].double(), wanted, rtol=1e-5, atol=1e-5)


def test_all_rises_together_are_the_strength():
    lm = tiny_lm()
    logits, states = 2 * normal(4, 2, 50), normal(50, WIDTH, seed=1)
    got = steered_logits(SASA(), artefact_of(normal(WIDTH, seed=2)), 10, lm.model, step(logits, states=states))
    rise = got - logits
    torch.testing.assert_close(rise.sum(-1), torch.full((4, 2), 10.0))
    assert (rise >= 0).all() and ((rise > 0).sum(-1) <= 20).all() and ((rise == 0).sum(-1) >= 30).all()


def test_permuted_candidates_have_permuted_rises():
    lm = tiny_lm()
    logits, states, order = 2 * normal(1, 1, 12), normal(12, WIDTH, seed=1), torch.randperm(12)
    artefact = artefact_of(normal(WIDTH, seed=2))
    got = steered_logits(SASA(), artefact, 5, lm.model, step(logits, states=states))
    again = steered_logits(SASA(), artefact, 5, lm.model, step(logits[..., order], states=states[order]))
    torch.testing.assert_close(again, got[..., order])


def test_a_probe_along_one_tokens_axis_prefers_that_token():
    lm = tiny_lm()
    states = 30 * torch.eye(20, WIDTH)
    logits = torch.zeros(1, 1, 20)
    got = steered_logits(SASA(top_p=1.0), artefact_of(torch.eye(WIDTH)[7]), 4, lm.model, step(logits, states=states))
    wanted = torch.zeros(20)
    wanted[7] = 4
    torch.testing.assert_close(got[0, 0], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_candidates_are_read_by_the_model(architecture):
    lm = tiny_lm(architecture)
    method = SASA(max_candidates=4)
    artefact = fit(method, lm)
    last = len(layout.blocks(lm.model)) - 1
    with lm.steered(method, artefact, 20) as steered:
        got = prefill(steered, [lm.encode(prompt) for prompt in PROMPTS])[1]
    base = prefill(lm, [lm.encode(prompt) for prompt in PROMPTS])[1]
    for row, prompt in enumerate(PROMPTS):
        states = torch.zeros(300, layout.width(lm.model))
        for token in base[row].topk(4).indices.tolist():
            with record(lm.model, [last]) as seen, torch.no_grad():
                lm.model(torch.tensor([[*lm.encode(prompt), token]]))
                states[token] = layout.final_norm(lm.model)(seen[last])[0, -1]
        values = [float(artefact[key]) for key in ("midpoint", "deviation")]
        wanted = by_formula(base[row], states, artefact["direction"], *values, 20, 0.9, 4)
        torch.testing.assert_close(got[row].double(), wanted, rtol=1e-2, atol=5e-2)
    assert not torch.equal(got, base)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_likelihood_is_steered_as_sampling_is(architecture):
    lm = tiny_lm(architecture)
    method = SASA(margin="raw", max_candidates=5)
    artefact = fit(method, lm)
    with lm.steered(method, artefact, 10) as steered:
        tokens = [int(prefill(lm, [lm.encode(PROMPTS[0])])[1].argmax()), 40, 12, 7]
        assert gap_to_sampling(steered, PROMPTS, tokens) < 2e-2
        assert abs(gap_to_sampling(lm, PROMPTS, tokens)) < 1e-3
        texts = sample(steered, PROMPTS, 3, 8)
    assert texts != sample(lm, PROMPTS, 3, 8)


def test_strength_zero_is_the_model_itself():
    lm = tiny_lm()
    with SASA().apply(lm.model, fit(SASA(), lm), 0) as steering:
        assert steering.next_logits is None


def test_bfloat16_logits_stay_so_and_the_given_ones_are_kept():
    lm = tiny_lm()
    logits, states = normal(1, 2, 9).bfloat16(), normal(9, WIDTH).bfloat16()
    before = logits.clone()
    got = steered_logits(SASA(), artefact_of(normal(WIDTH)), 5, lm.model, step(logits, states=states))
    assert got.dtype == torch.bfloat16 and torch.equal(logits, before) and not torch.equal(got, logits)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3", "olmo3"])
def test_a_sliding_window_is_refused_before_anything_is_read(architecture):
    lm = lm_of(architecture)
    with pytest.raises(SetupError, match="has a sliding window, from which a token cannot be tried"):
        SASA().check(lm.model)
    SASA().check(lm_of("llama").model)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_p": 0}, "method.top_p=0"),
        ({"top_p": 1.2}, "method.top_p=1.2"),
        ({"max_candidates": 1}, "at least 2 tokens"),
        ({"margin": "unit"}, "allowed are raw, std"),
        ({"eigenvalue": -1}, "method.eigenvalue=-1"),
    ],
)
def test_wrong_settings(options, told):
    lm = tiny_lm()
    for call in (lambda method: method.check(lm.model), lambda method: fit(method, lm)):
        with pytest.raises(SetupError, match=told):
            call(SASA(**options))


def test_texts_that_tell_nothing():
    lm = tiny_lm()
    same = PAIRS._replace(undesired=PAIRS.desired)
    with pytest.raises(SetupError, match="have the same mean"):
        fit(SASA(), lm, same)
    one = Pairs(["The fox"] * 3, [" sings"] * 3, [" hate"] * 3)
    with pytest.raises(SetupError, match="do not vary"):
        fit(SASA(), lm, one)
    with pytest.raises(SetupError, match="learns from contrast pairs and got 1"):
        fit(SASA(), lm, Pairs(*(column[:1] for column in PAIRS)))


def test_an_artefact_of_another_model():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    with pytest.raises(SetupError, match="was not fitted on this model, whose width is 28"):
        with replace(SASA(), margin="raw").apply(other.model, fit(SASA(), lm), 1):
            pass
