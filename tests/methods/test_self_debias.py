"""Self-Debiasing: factors by hand, what it leaves alone, and that a likelihood is steered as sampling is."""

import math

import pytest
import torch

from bench.model.sampling import prefill, sample
from methods import decoding
from methods.base import FitData
from methods.errors import SetupError
from methods.self_debias import SelfDebias
from tests.decoding import gap_to_sampling, steered_logits, step
from tests.tiny import tiny_lm

PROMPTS = ["the old tree", "a small bird sings in the", "rain"]
ANNOUNCED = {"announcement.0": torch.tensor([1, 5]), "announcement.1": torch.tensor([1, 7, 8])}


def fit(method, lm):
    return method.fit(lm.model, lm.tokenizer, FitData())


def distributions(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator)


def by_formula(plain, announced, strength, epsilon):
    """Token by token, in double precision; logits (V,) of one column."""
    p = plain.double().softmax(-1)
    others = [one.double().softmax(-1) for one in announced]
    weights = []
    for w in range(len(p)):
        rise = max(float(other[w]) for other in others) - float(p[w])
        factor = max(epsilon, math.exp(-strength * rise)) if rise > 0 else 1.0
        weights.append(float(p[w]) * factor)
    return torch.tensor(weights, dtype=torch.double) / sum(weights)


@pytest.mark.parametrize("pieces", [1, 10**6])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("strength", [10, 50, 200, -5])
def test_probabilities_by_the_formula(strength, count, pieces, monkeypatch):
    monkeypatch.setattr(decoding, "PIECE", pieces)  # one row at a time, or all
    plain, *announced = (distributions(2, 3, 11, seed=seed) for seed in range(count + 1))
    method = SelfDebias(unwanted=["a"] * count)
    got = steered_logits(method, ANNOUNCED, strength, None, step(plain, *announced))
    assert got.shape == plain.shape and got.dtype == plain.dtype
    probability = got.double().softmax(-1)
    torch.testing.assert_close(probability.sum(-1), torch.ones(2, 3, dtype=torch.double))
    for row in range(2):
        for column in range(3):
            wanted = by_formula(plain[row, column], [one[row, column] for one in announced], strength, 0.01)
            torch.testing.assert_close(probability[row, column], wanted, rtol=1e-5, atol=1e-9)


def test_a_token_that_doubles_falls_by_the_computed_factor():
    """Planted: of .2, .3 and .5 the first becomes .4 behind the announcement, the others fall."""
    plain, announced = (torch.tensor([[p]]).log() for p in ([0.2, 0.3, 0.5], [0.4, 0.25, 0.35]))
    got = steered_logits(SelfDebias(), ANNOUNCED, 10, None, step(plain, announced)).softmax(-1)[0, 0]
    fallen = 0.2 * math.exp(-10 * 0.2)
    torch.testing.assert_close(got, torch.tensor([fallen, 0.3, 0.5]) / (fallen + 0.8))
    least = steered_logits(SelfDebias(epsilon=0.5), ANNOUNCED, 1000, None, step(plain, announced)).softmax(-1)[0, 0]
    torch.testing.assert_close(least, torch.tensor([0.1, 0.3, 0.5]) / 0.9)


def test_what_no_announcement_raises_keeps_its_logit():
    plain, one, other = (distributions(4, 2, 20, seed=seed) for seed in range(3))
    method = SelfDebias(unwanted=["a", "b"])
    moved = steered_logits(method, ANNOUNCED, 100, None, step(plain, one, other)) - plain
    raised = torch.maximum(one.softmax(-1), other.softmax(-1)) > plain.softmax(-1)
    assert torch.equal(moved[~raised], torch.zeros_like(moved[~raised]))
    assert (moved[raised] < 0).all() and (moved >= math.log(0.01) - 1e-5).all()
    assert raised.any() and not raised.all()
    swapped = steered_logits(method, ANNOUNCED, 100, None, step(plain, other, one)) - plain
    assert torch.equal(swapped, moved), "which announcement raises it does not matter"


def test_each_announcement_is_read_before_the_text():
    lm = tiny_lm()
    method = SelfDebias(template="we talk of {}. ", unwanted=["rain", "old bread"])
    artefact = fit(method, lm)
    texts = ["we talk of rain. ", "we talk of old bread. "]
    assert [artefact[f"announcement.{n}"].tolist() for n in (0, 1)] == [lm.encode(text) for text in texts]
    plain = prefill(lm, [lm.encode(prompt) for prompt in PROMPTS])[1]
    announced = [prefill(lm, [lm.encode(text) + lm.encode(p)[1:] for p in PROMPTS])[1] for text in texts]  # one BOS
    with lm.steered(method, artefact, 50) as steered:
        got = prefill(steered, [lm.encode(prompt) for prompt in PROMPTS])[1].softmax(-1)
    for row in range(len(PROMPTS)):
        wanted = by_formula(plain[row], [one[row] for one in announced], 50, 0.01)
        torch.testing.assert_close(got[row].double(), wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_likelihood_is_steered_as_sampling_is(architecture):
    lm = tiny_lm(architecture)
    method = SelfDebias()
    with lm.steered(method, fit(method, lm), 200) as steered:
        assert gap_to_sampling(steered, PROMPTS, [8, 40, 12, 7]) < 1e-3
        assert gap_to_sampling(lm, PROMPTS, [8, 40, 12, 7]) < 1e-3
        texts = sample(steered, PROMPTS, 3, 8)
    assert texts != sample(lm, PROMPTS, 3, 8)


def test_room_is_left_for_the_longest_announcement():
    lm = tiny_lm()
    method = SelfDebias(template="{}", unwanted=["rain", "the long road home"])
    artefact = fit(method, lm)
    longest = len(lm.encode("the long road home"))
    with lm.steered(method, artefact, 10) as steered:
        assert steered.max_length == lm.max_length - longest
    with method.apply(lm.model, artefact, 0) as steering:
        assert steering.next_logits is None and steering.demand.room == 0
    lm.model.config.max_position_embeddings = longest
    with pytest.raises(SetupError, match=f"announcement 2 has {longest} tokens, the model reads {longest}; shorten"):
        fit(method, lm)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template": "the text:"}, "write {} once"),
        ({"template": "{} and {}"}, "write {} once"),
        ({"unwanted": []}, "one or more descriptions"),
        ({"unwanted": ["rain", " "]}, "none of them empty"),
        ({"unwanted": "rain"}, "a list"),
        ({"epsilon": 0}, "above 0 and below 1"),
        ({"epsilon": 1.5}, "method.epsilon=1.5"),
    ],
)
def test_wrong_settings(options, told):
    lm = tiny_lm()
    for call in (lambda method: method.check(lm.model), lambda method: fit(method, lm)):
        with pytest.raises(SetupError, match=told):
            call(SelfDebias(**options))


def test_bfloat16_logits_stay_so():
    plain, announced = distributions(1, 2, 9).bfloat16(), distributions(1, 2, 9, seed=1).bfloat16()
    assert steered_logits(SelfDebias(), ANNOUNCED, 50, None, step(plain, announced)).dtype == torch.bfloat16
