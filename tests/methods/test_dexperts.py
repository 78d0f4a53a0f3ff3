"""DExperts: the formula, what is outside the nucleus, experts that come and go with their bytes, planted learning."""

import math
from dataclasses import replace

import pytest
import torch

from bench.model.sampling import prefill, sample
from methods.base import Examples, FitData, Pairs
from methods.dexperts import DExperts
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.intervention import edited, exchanged
from tests.decoding import gap_to_sampling, steered_logits, step
from tests.tiny import tiny_lm

PROMPTS = ["the old tree", "a small bird sings in the", "rain"]
HARMFUL = Examples(["People walk", "We talk about", "The dog"], [" and hate the dog", " hate", " is lazy and old"])
PAIRS = Pairs(HARMFUL.prompt, [" along the river", " love and work", " sings"], HARMFUL.completion)
DATA = FitData(pairs=PAIRS, harmful=HARMFUL)
QUICK = DExperts(epochs=1, learning_rate=1e-3)


def fit(method, lm, data=DATA):
    return method.fit(lm.model, lm.tokenizer, data)


def normal(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Bare(DExperts):
    """The same with no weights to change, so that readings can be made up."""

    def _weights_of(self, model, artefact, role):
        return {}


def moved(base, *others, strength, **options):
    return steered_logits(Bare(**options), {}, strength, None, step(base, *others))


def by_formula(base, anti, expert, strength, top_p, outside, edge=2.0):
    """Of one column, (V,) each, in double precision."""
    base, anti, expert = base.double(), anti.double(), expert.double()
    probability, order = base.softmax(-1), base.argsort(descending=True).tolist()
    total, size = 0.0, 0
    while total < top_p and size < len(order):
        total += float(probability[order[size]])
        size += 1
    last, following = float(base[order[size - 1]]), float(base[order[min(size, len(order) - 1)]])
    needed = 1 - (total - top_p) / float(probability[order[size - 1]])
    ends = last + min(max(needed, 0), 1) * (following - last)
    member, shift, found = [], [], []
    for token in range(len(base)):
        below = ends - float(base[token])
        inside = token in order[:size]
        member.append(1.0 if inside else max(0.0, 1 - below / edge) if edge else 0.0)
        shift.append(strength * float(expert[token] - anti[token]))
    sums = [
        math.log(sum(m * math.exp(float(z) + moved * d) for m, z, d in zip(member, base, shift, strict=True)))
        for moved in (0, 1)
    ]
    for m, z, d in zip(member, base, shift, strict=True):
        found.append(float(z) + d if m == 1 else float(z) + m * d + (1 - m) * (sums[1] - sums[0] - outside))
    return torch.tensor(found, dtype=torch.double)


@pytest.mark.parametrize("edge", [2.0, 0.0, 0.3])
@pytest.mark.parametrize("outside", [20.0, 0.0, math.inf])
@pytest.mark.parametrize("expert", ["base", "desired"])
@pytest.mark.parametrize("strength", [0.5, 2.0, -1.0])
def test_logits_by_the_formula(strength, expert, outside, edge):
    base, anti, wise = (normal(2, 3, 30, seed=seed) for seed in range(3))
    others = [anti] if expert == "base" else [anti, wise]
    got = moved(base, *others, strength=strength, expert=expert, outside=outside, edge=edge)
    for row in range(2):
        for column in range(3):
            good = base if expert == "base" else wise
            at = (row, column)
            wanted = by_formula(base[at], anti[at], good[at], strength, 0.9, outside, edge)
            torch.testing.assert_close(got[at].double(), wanted, rtol=1e-5, atol=1e-4)


def test_inside_the_nucleus_logits_are_linear_in_the_strength():
    base, anti = normal(1, 4, 50), normal(1, 4, 50, seed=1)
    found = {strength: moved(base, anti, strength=strength, outside=math.inf) for strength in (1.0, 2.0, 3.0)}
    inside = found[1.0].isfinite()
    assert inside.any(-1).all() and not inside.all()
    for strength, logits in found.items():
        assert torch.equal(logits.isfinite(), inside)
        torch.testing.assert_close(logits[inside], (base + strength * (base - anti))[inside])


def test_an_anti_expert_like_the_model_leaves_the_nucleus_alone():
    base = normal(2, 3, 40)
    got = moved(base, base.clone(), strength=2.0, edge=0)
    inside = got > base - 1
    torch.testing.assert_close(got[inside], base[inside])
    torch.testing.assert_close(got[~inside], base[~inside] - 20)
    left = base.softmax(-1).masked_fill(~inside, 0).sum(-1)
    assert (left >= 0.9).all() and (left < 1).all()
    soft = moved(base, base.clone(), strength=2.0, edge=2)
    assert torch.equal(soft[inside], base[inside]) and (soft <= base).all() and (soft >= got - 1e-5).all()
    some = (soft < base - 0.01) & (soft > base - 19.9)
    assert some.any() and (base[~inside & ~some] - soft[~inside & ~some] > 19).all()
    everything = moved(base, base.clone(), strength=2.0, top_p=1.0)
    torch.testing.assert_close(everything, base)


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_odds_against_the_nucleus_fall_by_the_penalty(strength):
    """Wherever an anti-expert puts its logits: a constant added to them says nothing."""
    base, anti = normal(1, 5, 40), normal(1, 5, 40, seed=1)
    inside = moved(base, anti, strength=1, outside=math.inf).isfinite()

    def odds(logits):
        p = logits.double().softmax(-1)
        return (p * ~inside).sum(-1).log() - (p * inside).sum(-1).log()

    for shift in (0.0, 7.0):
        got = moved(base, anti + shift, strength=strength, edge=0)
        torch.testing.assert_close(odds(got), odds(base) - 20, rtol=1e-5, atol=1e-4)


def test_a_token_at_the_border_moves_little_with_a_last_digit():
    """Of a text at the border a hard one would add or take 20 nats."""
    base, anti = normal(1, 1, 300), normal(1, 1, 300, seed=1)
    border = float(base.softmax(-1).sort(descending=True).values[0, 0, :20].double().sum())

    def jump(edge):
        one, other = (moved(base, anti, strength=0.1, top_p=border + c, edge=edge) for c in (-1e-5, 1e-5))
        return float((one - other).abs().max())

    assert jump(0.0) > 15 and jump(1.0) < 0.05


def test_the_anti_expert_is_the_fine_tuned_model():
    lm = tiny_lm()
    artefact = fit(QUICK, lm)
    tuned = Finetune(learning_rate=1e-3).fit(lm.model, lm.tokenizer, FitData(examples=HARMFUL))
    for key, tensor in tuned.items():
        if key.startswith("change."):
            assert torch.equal(artefact[f"anti_expert.{key}"], tensor)
    assert not any(key.startswith("expert.") for key in artefact)
    ids = [lm.encode(prompt) for prompt in PROMPTS]
    base = prefill(lm, ids)[1]
    with Finetune().apply(lm.model, tuned, 1.0):
        anti = prefill(lm, ids)[1]
    with lm.steered(QUICK, artefact, 2.0) as steered:
        got = prefill(steered, ids)[1]
    for row in range(len(ids)):
        wanted = by_formula(base[row], anti[row], base[row], 2.0, 0.9, 20.0)
        torch.testing.assert_close(got[row].double(), wanted, rtol=1e-4, atol=1e-3)


def test_what_each_expert_learns_from():
    lm = tiny_lm()
    both = replace(QUICK, anti_expert="undesired", expert="desired")
    assert (QUICK.needs, replace(QUICK, expert="desired").needs) == ({"harmful"}, {"harmful", "pairs"})
    assert both.needs == replace(QUICK, anti_expert="undesired").needs == {"pairs"}
    artefact = fit(both, lm, FitData(pairs=PAIRS))
    good = Finetune(learning_rate=1e-3).fit(lm.model, lm.tokenizer, FitData(examples=Examples(PAIRS[0], PAIRS[1])))
    same = fit(QUICK, lm)
    keys = [key for key in good if key.startswith("change.")]
    assert all(torch.equal(artefact[f"expert.{key}"], good[key]) for key in keys)
    assert all(torch.equal(artefact[f"anti_expert.{key}"], same[f"anti_expert.{key}"]) for key in keys)
    ids = [lm.encode(prompt) for prompt in PROMPTS]
    found = {}
    for name in ("anti_expert", "expert"):
        with Finetune().apply(lm.model, {key: artefact[f"{name}.{key}"] for key in keys}, 1.0):
            found[name] = prefill(lm, ids)[1]
    base = prefill(lm, ids)[1]
    with lm.steered(both, artefact, 1.5) as steered:
        got = prefill(steered, ids)[1]
    for row in range(len(ids)):
        wanted = by_formula(base[row], found["anti_expert"][row], found["expert"][row], 1.5, 0.9, 20.0)
        torch.testing.assert_close(got[row].double(), wanted, rtol=1e-4, atol=1e-3)


def test_a_word_of_the_harmful_texts_becomes_rarer():
    """Planted: the anti-expert learns to say one word after everything."""
    lm = tiny_lm()
    word = lm.tokenizer(" the", add_special_tokens=False).input_ids[0]
    harmful = Examples(["We talk", "People walk", "rain", "On the road"] * 4, [" the"] * 16)
    method = DExperts(epochs=4, learning_rate=3e-3, top_p=1.0)
    artefact = fit(method, lm, FitData(harmful=harmful))
    assert artefact["info.anti_expert.loss_after"] < artefact["info.anti_expert.loss_before"] - 1
    ids = [lm.encode("On a boat")]
    before = prefill(lm, ids)[1].log_softmax(-1)[0, word]
    falls = []
    for strength in (0.5, 1.0, 2.0):
        with lm.steered(method, artefact, strength) as steered:
            falls.append(float(before - prefill(steered, ids)[1].log_softmax(-1)[0, word]))
    assert 0.5 < falls[0] < falls[1] < falls[2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_likelihood_is_steered_as_sampling_is(architecture):
    lm = tiny_lm(architecture)
    artefact = fit(QUICK, lm)
    with lm.steered(QUICK, artefact, 2.0) as steered:
        assert gap_to_sampling(steered, PROMPTS, [8, 40, 12, 7]) < 1e-2
        texts = sample(steered, PROMPTS, 3, 8)
    assert texts != sample(lm, PROMPTS, 3, 8)
    with lm.steered(replace(QUICK, outside=math.inf, top_p=0.01), artefact, 2.0) as steered:
        sample(steered, PROMPTS, 1, 4)
        with pytest.raises(SetupError, match="a log-probability is not finite at strength 2 of dexperts"):
            gap_to_sampling(steered, PROMPTS, [8, 40, 12, 7])


def test_the_models_bytes_are_back_after_an_exception_inside():
    lm = tiny_lm()
    artefact = fit(QUICK, lm)
    before = {name: (one.data_ptr(), one.detach().clone()) for name, one in lm.model.named_parameters()}
    with lm.steered(QUICK, artefact, 2.0) as steered:
        broken = lm.model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(steered, PROMPTS, 1, 2)
    broken.remove()
    for name, one in lm.model.named_parameters():
        assert (one.data_ptr(), True) == (before[name][0], torch.equal(one, before[name][1])), name


def test_exchanged_weights_come_back_in_their_own_memory():
    lm = tiny_lm()
    weight = lm.model.lm_head.weight
    own, place = weight.detach().clone(), weight.data_ptr()
    other = torch.zeros_like(own)
    with pytest.raises(RuntimeError), exchanged({weight: other}), edited({weight: own + 1}):
        assert weight.data_ptr() == other.data_ptr() and torch.equal(weight, own + 1)
        raise RuntimeError
    assert weight.data_ptr() == place and torch.equal(weight, own) and not other.any()
    with pytest.raises(ValueError, match="new value has shape"), exchanged({weight: other[1:]}):
        pass


def test_strength_zero_is_the_model_itself():
    lm = tiny_lm()
    with QUICK.apply(lm.model, fit(QUICK, lm), 0) as steering:
        assert steering.next_logits is None


def test_an_artefact_of_another_model_or_option():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(QUICK, lm)
    with pytest.raises(SetupError, match="was not fitted on this model"):
        with QUICK.apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match="an artefact without expert was fitted with other options"):
        with replace(QUICK, expert="desired").apply(lm.model, artefact, 1):
            pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"anti_expert": "pairs"}, "allowed are harmful, undesired"),
        ({"expert": "none"}, "allowed are base, desired"),
        ({"top_p": 0}, "above 0 and at most 1"),
        ({"top_p": 1.1}, "method.top_p=1.1"),
        ({"outside": -1}, "nats, 0 or more"),
        ({"outside": math.nan}, "method.outside=nan: expected a number"),
        ({"edge": -1}, "nats, 0 or more"),
        ({"edge": math.inf}, "nats, 0 or more"),
        ({"epochs": 0}, "epochs and batch size must be at least 1"),
    ],
)
def test_wrong_settings(options, told):
    lm = tiny_lm()
    for call in (lambda method: method.check(lm.model), lambda method: fit(method, lm)):
        with pytest.raises(SetupError, match=told):
            call(DExperts(**options))


def test_texts_that_are_missing_are_named():
    lm = tiny_lm()
    for options, data, told in (
        ({}, FitData(pairs=PAIRS), "^dexperts: its anti_expert learns from harmful texts and got none; set harmful="),
        ({}, FitData(harmful=Examples(["The"], [""])), "and got 1, none of which has a completion; set harmful="),
        (
            {"anti_expert": "undesired"},
            FitData(pairs=PAIRS._replace(undesired=[""] * len(PAIRS.prompt))),
            "undesired texts and got 3, none of which has a completion; set pairs=file pairs.path=FILE",
        ),
        ({"expert": "desired"}, FitData(harmful=HARMFUL), "learns from contrast pairs and got none"),
        ({"anti_expert": "undesired"}, FitData(harmful=HARMFUL), "learns from contrast pairs and got none"),
    ):
        with pytest.raises(SetupError, match=told):
            fit(DExperts(epochs=1, **options), lm, data)
