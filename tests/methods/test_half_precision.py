"""Models of 16 bits: what is learnt on them is as good as their activations allow, and they are left as they were."""

import math

import pytest
import torch
from torch.nn import functional

from bench.model.lm import Request
from bench.model.log_likelihood import _token_logprobs, likelihoods
from bench.selftest import learning, steering
from bench.selftest.subject import Subject
from methods.base import INFO, FitData
from tests.methods.test_contract import DATA, NAMES, SHORTER
from tests.methods.yaml_files import load
from tests.tiny import tiny_lm

HALF = [torch.bfloat16, torch.float16]
ENLARGED = {"sasa": 10}  # how much a fit enlarges the activations' rounding: it inverts a covariance
COUNTED = {"aura"}  # of whose 64 pairs of texts, for each unit, a few change places by rounding
ADAPTERS = {"lora", "dpo", "kl_then_steer"}
TUNED = {"finetune", "security_vector", "task_negation", "dinm"}
TRAINED = TUNED | ADAPTERS


def made(name):
    return load(name, *SHORTER.get(name, []))


def in_half(dtype):
    lm = tiny_lm(blocks=3)
    lm.model.to(dtype)
    return lm


def rounded(dtype):
    """The very same weights, in fp32."""
    lm = in_half(dtype)
    lm.model.float()
    return lm


def fitted(name, lm):
    method = made(name)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(**{field: DATA[field] for field in method.needs}))
    return {key: tensor for key, tensor in artefact.items() if not key.startswith(INFO)}


def angle(one, other):
    return math.acos(min(1.0, float(functional.cosine_similarity(one.double(), other.double(), dim=0))))


@pytest.mark.every(6)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_learnt_is_as_exact_as_the_activations(name, dtype):
    exact, found = fitted(name, rounded(dtype)), fitted(name, in_half(dtype))
    assert exact.keys() == found.keys()
    changes = {key for key in found if "change." in key}
    vectors = {key for key, tensor in found.items() if tensor.is_floating_point()} - changes
    assert {found[key].dtype for key in vectors} <= {torch.float32}
    assert {found[key].dtype for key in changes} <= {torch.bfloat16}
    for key in found.keys() - vectors - changes:  # which rows are moved
        assert torch.equal(found[key], exact[key]), key
    for key in vectors if name in COUNTED else ():
        assert (exact[key] - found[key]).abs().max() <= 4 * 2 / 64, key
        assert (exact[key] == found[key]).float().mean() > (0.6 if dtype == torch.bfloat16 else 0.9), key
    most = 4 * ENLARGED.get(name, 1) * torch.finfo(dtype).eps
    for key in vectors if name not in TRAINED | COUNTED else ():
        if not exact[key].any() and not found[key].any():
            continue
        assert angle(exact[key].flatten(), found[key].flatten()) < most, key
    if changes:  # an Adam step hangs on the signs of gradients, some of which are noise
        one, other = (torch.cat([each[key].double().flatten() for key in sorted(changes)]) for each in (exact, found))
        assert angle(one, other) < (0.2 if dtype == torch.bfloat16 else 0.1)
        assert float(other.norm()) == pytest.approx(float(one.norm()), rel=0.02)


@pytest.mark.every(8)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_strength_0_is_the_base_and_every_byte_is_restored(name, dtype):
    subject = Subject(make=lambda: made(name), load=lambda: in_half(dtype), data=FitData(**DATA))
    for promise in (learning.fit, learning.fit_again, steering.undo, steering.strength_zero, steering.saved):
        promise(subject)
    assert {one.dtype for one in subject.lm.model.parameters()} == {dtype}


@pytest.mark.every(2)
@pytest.mark.parametrize("name", sorted(TUNED))
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_strength_1_is_the_fine_tuned_model_rounded_once(dtype, name):
    """The change is added in fp32: in 16 bits, strength * change and the sum would both be rounded before."""
    lm, method = in_half(dtype), made(name)
    artefact, before = fitted(name, lm), {key: p.detach().float() for key, p in lm.model.named_parameters()}
    sign = -1 if name == "task_negation" else 1
    for strength in (1.0, 0.3):
        with method.apply(lm.model, artefact, strength):
            for key, parameter in lm.model.named_parameters():
                added = artefact.get(f"change.{key}")  # dinm has one
                wanted = before[key] if added is None else before[key] + sign * strength * added.float()
                assert torch.equal(parameter, wanted.to(dtype)), key


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_log_probabilities_are_those_in_double_precision(dtype):
    torch.manual_seed(0)
    logits, tokens, rows = (8 * torch.randn(5, 700)).to(dtype), torch.arange(5) * 100, torch.arange(5)
    wanted = logits.double().log_softmax(-1)[rows, tokens]
    found = _token_logprobs(logits, tokens, rows)[0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_likelihoods_of_16_bits_are_near_those_of_32(dtype):
    high, low = rounded(dtype), in_half(dtype)
    asked = [Request(high.encode("The quick brown"), [40, 50, 60, 70]), Request(high.encode("People"), [99])]
    for one, other in zip(likelihoods(high, asked), likelihoods(low, asked), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=100 * torch.finfo(dtype).eps)
