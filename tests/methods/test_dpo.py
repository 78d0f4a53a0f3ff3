import math
import random
from dataclasses import replace

import pytest
import torch

from methods import dpo
from methods.base import FitData, Pairs
from methods.dpo import DPO, dpo_loss, pair_log_likelihoods, preference_loss
from methods.errors import SetupError
from methods.training import encoded_pairs, trainable
from tests.tiny import tiny_lm

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
METHOD = DPO(rank=4, alpha=8, learning_rate=1e-2, epochs=4, batch_size=4)


def toy(count: int, seed: int) -> Pairs:
    """Texts of one to four tokens, in which " love" is preferred to " hate"."""
    drawn = random.Random(seed)
    prompts = [" ".join(drawn.choices(WORDS, k=2 + i % 2)) for i in range(count)]
    desired = [" love" + " bread" * (i % 2) for i in range(count)]
    return Pairs(prompts, desired, [" hate" + " the dog" * (i % 3 == 0) for i in range(count)])


TRAIN, UNSEEN = toy(16, 1), toy(16, 2)
SWAPPED = Pairs(TRAIN.prompt, TRAIN.undesired, TRAIN.desired)


@pytest.fixture(scope="module")
def lm():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight *= 4  # a model that can be sure
    return lm


@pytest.fixture(scope="module")
def fitted(lm):
    return METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))


def texts(lm, pairs=TRAIN):
    return encoded_pairs(lm.model, lm.tokenizer, pairs, 128)[:2]


def said(lm, prompt: str, text: str) -> torch.Tensor:
    """log p(text | prompt) by hand: one text, no padding, summed over its tokens and not divided by their number."""
    ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.tokenizer(prompt).input_ids)
    logits = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[i - 1, ids[i]] for i in range(begin, len(ids)))


def both_said(lm, pairs) -> torch.Tensor:
    """(N, 2)."""
    with torch.no_grad():
        sides = [[said(lm, p, t) for p, t in zip(pairs.prompt, side, strict=True)] for side in pairs[1:]]
    return torch.tensor(sides).T


def weights(lm):
    return {name: one.detach().clone() for name, one in lm.model.named_parameters()}


def test_log_probabilities_are_sums_over_the_continuation(lm):
    torch.testing.assert_close(pair_log_likelihoods(lm.model, *texts(lm)).detach(), both_said(lm, TRAIN))


def test_the_loss_by_hand():
    """Rewards (1, -2) and (-0.5, 0.5), at beta 0.3."""
    policy = torch.tensor([[-4.0, -9.0], [-6.5, -3.5]])
    reference = torch.tensor([[-5.0, -7.0], [-6.0, -4.0]])
    by_hand = (math.log(1 + math.exp(-0.3 * 3)) + math.log(1 + math.exp(0.3))) / 2
    assert float(dpo_loss(policy, reference, 0.3)) == pytest.approx(by_hand, rel=1e-6)


def test_the_loss_is_log_2_at_the_start(lm):
    assert float(preference_loss(lm.model, *texts(lm), beta=0.1).detach()) == pytest.approx(math.log(2), abs=1e-7)
    reference = both_said(lm, TRAIN)
    found = preference_loss(lm.model, *texts(lm), beta=0.1, reference=reference)
    assert float(found.detach()) == pytest.approx(math.log(2), abs=1e-5)


def gradients(lm, pairs, beta, names):
    """Of `preference_loss` at the first step, by these weights; no adapter is there."""
    chosen = [dict(lm.model.named_parameters())[name] for name in names]
    with trainable(chosen):
        return torch.autograd.grad(preference_loss(lm.model, *texts(lm, pairs), beta=beta), chosen)


NAMES = ["model.layers.1.mlp.down_proj.weight", "model.layers.3.self_attn.q_proj.weight"]


def test_the_first_gradient_is_half_beta_times_the_difference(lm):
    """- beta / 2 * mean of (grad log p(desired) - grad log p(undesired)), text by text."""
    chosen = [dict(lm.model.named_parameters())[name] for name in NAMES]
    with trainable(chosen):
        desired, undesired = (
            sum(said(lm, p, t) for p, t in zip(TRAIN.prompt, side, strict=True)) / len(side) for side in TRAIN[1:]
        )
        by_hand = torch.autograd.grad(-0.3 / 2 * (desired - undesired), chosen)
    for one, other in zip(gradients(lm, TRAIN, 0.3, NAMES), by_hand, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_swapped_labels_turn_the_first_gradient(lm):
    for one, other in zip(gradients(lm, TRAIN, 0.1, NAMES), gradients(lm, SWAPPED, 0.1, NAMES), strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(one, -other, atol=1e-6 * float(one.norm()), rtol=1e-4)


def test_the_first_step_is_adams_by_hand():
    """As in test_lora: A stays, B = - rate g / (|g| + eps), with DPO's gradient by hand."""
    lm = tiny_lm()
    method = DPO(rank=3, alpha=6, learning_rate=1e-2, epochs=1, batch_size=16)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    for name, gradient in zip(NAMES, gradients(lm, TRAIN, 0.1, NAMES), strict=True):
        up, down = (artefact[f"adapter.{name}.{part}"].double() for part in ("up", "down"))
        own = 2 * gradient.double() @ down.T
        wanted = 2 * (-1e-2 * own / (own.abs() + 1e-8)) @ down
        assert (up @ down - wanted).norm() < 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_preferred_becomes_likelier(lm, fitted, swapped):
    """On unseen prompts; with swapped labels the other text does."""
    learnt = METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=SWAPPED)) if swapped else fitted
    base, found = both_said(lm, UNSEEN), []
    for strength in (0.25, 1.0):
        with METHOD.apply(lm.model, learnt, strength):
            rewards = both_said(lm, UNSEEN) - base
        found.append(float((rewards[:, 0] - rewards[:, 1]).mean()) * (-1 if swapped else 1))
    assert found[1] > found[0] > 0.2 and found[1] > 2


def test_the_reference_is_the_base_model_at_every_step(lm, monkeypatch):
    """Read once before the training, with no adapter; it does not follow what is trained."""
    wanted, seen = {float(one[0]): one for one in both_said(lm, TRAIN)}, []
    real = dpo.preference_loss

    def look(model, desired, undesired, *, beta, reference):
        found = real(model, desired, undesired, beta=beta, reference=reference)
        seen.append((reference, float(found.detach())))
        return found

    monkeypatch.setattr(dpo, "preference_loss", look)
    METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    assert len(seen) == 16 and seen[0][1] == pytest.approx(math.log(2), abs=1e-4) and seen[-1][1] < 0.5
    for reference, _ in seen:
        for row in reference:
            nearest = min(wanted.values(), key=lambda one: float((one - row).abs().sum()))  # noqa: B023
            torch.testing.assert_close(row, nearest, atol=1e-4, rtol=1e-5)


def test_the_facts_are_those_of_the_model_at_strength_1(lm, fitted):
    base = both_said(lm, TRAIN)
    with METHOD.apply(lm.model, fitted, 1.0):
        rewards = both_said(lm, TRAIN) - base
    margins = 0.1 * (rewards[:, 0] - rewards[:, 1])
    by_hand = {
        "desired_gain": rewards[:, 0].mean(), "undesired_gain": rewards[:, 1].mean(), "margin": margins.mean(),
        "accuracy": (margins > 0).float().mean(), "loss_after": -margins.sigmoid().log().mean(),
    }  # fmt: skip
    for name, wanted in by_hand.items():
        assert float(fitted[f"info.{name}"]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4), name
    assert float(fitted["info.loss_after"]) < 0.6


def test_a_larger_beta_holds_the_model_back(lm, fitted):
    """A margin that is large already gives no gradient: the sigmoid is near 0."""
    held = replace(METHOD, beta=20.0).fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    assert float(held["info.margin"]) / 20 < 0.7 * float(fitted["info.margin"]) / 0.1


def test_strength_0_touches_nothing_and_all_is_undone(lm, fitted):
    before = weights(lm)
    versions = {name: one._version for name, one in lm.model.named_parameters()}
    with METHOD.apply(lm.model, fitted, 0.0):
        assert versions == {name: one._version for name, one in lm.model.named_parameters()}
    with pytest.raises(KeyError), METHOD.apply(lm.model, fitted, 1.0):
        raise KeyError
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf])
def test_a_beta_that_is_not_above_0_is_refused(lm, beta):
    with pytest.raises(SetupError, match="a number above 0"):
        DPO(beta=beta).check(lm.model)


def test_pairs_of_equal_texts_and_too_few_are_refused(lm):
    with pytest.raises(SetupError, match="the two texts of every pair are the same"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(["The", "We"], [" fox", " dog"], [" fox", " dog"])))
    with pytest.raises(SetupError, match="give at least 2"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(["The"], [" fox"], [" dog"])))
