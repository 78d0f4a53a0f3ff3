import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from bench.export.effect import measure
from bench.model.lm import LM
from methods import layout
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.psa import PSA, analytic_epsilon, analytic_sigma, clipped_mean, drawn, lost
from tests.sinks import planted_sink
from tests.tiny import tiny_lm
from tests.vectors import PAIRS, before_and_after, ids_of, output_by_hand, text_logits

LAYER = 1
KEY = f"layers.{LAYER}.direction"
ONE = {"first_layer": LAYER, "last_layer": LAYER}
BACKGROUND = ["The weather near the river", "Bread and work", "People talk about the long road home", "A lazy dog"]


def fit(method: PSA, lm: LM, pairs: Pairs = PAIRS, background: list[str] = BACKGROUND) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs, background=background))


def vector(artefact: dict[str, Tensor], layer: int = LAYER, index: int = 0) -> Tensor:
    """(D,) the private vector, without the unit that it is kept in."""
    return artefact[f"layers.{layer}.direction"] / artefact["info.residual_norm"][index]


def public_norm(lm: LM, layer: int = LAYER) -> float:
    """Mean length of the stream in the background, without each text's first token."""
    means = [output_by_hand(lm, lm.encode(text), layer)[1:].norm(dim=-1).mean() for text in BACKGROUND]
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("clip", [0.01, 0.7, 5.0])
@pytest.mark.parametrize("read", ["last", "continuation"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_noise_it_is_the_clipped_mean(architecture, read, clip):
    lm = tiny_lm(architecture)
    norm = public_norm(lm)
    rows = []
    for prompt, *sides in zip(*PAIRS, strict=True):
        features = []
        for continuation in sides:
            head, tail = ids_of(lm, prompt, continuation)
            start = len(head) if read == "continuation" else len(head + tail) - 1
            features.append(output_by_hand(lm, head + tail, LAYER)[start:].mean(0))
        d = features[0] - features[1]
        rows.append(d / max(clip * norm, float(d.norm())))
    expected = torch.stack(rows).mean(0)
    artefact = fit(PSA(**ONE, sigma=0, clip=clip, read=read), lm)
    assert float(artefact["info.residual_norm"][0]) == pytest.approx(norm, rel=1e-4)
    torch.testing.assert_close(artefact[KEY].double(), norm * expected, atol=1e-4 * norm, rtol=1e-3)
    assert float(artefact["info.direction_norm"][0]) == pytest.approx(float(expected.norm()), rel=1e-3)
    assert expected.norm() <= 1 and "info.epsilon" not in artefact, "no noise, no guarantee"


def test_clipping_shortens_what_is_long_and_scales_the_rest():
    rows = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, -2.0]]])
    found = clipped_mean(rows, torch.tensor([2.0]))
    torch.testing.assert_close(found, torch.tensor([[0.2, (0.8 + 0.5 - 1) / 3]]))
    two = clipped_mean(torch.cat([rows, rows]), torch.tensor([2.0, 10.0]))  # each block by its own norm
    torch.testing.assert_close(two, torch.tensor([[0.2, (0.8 + 0.5 - 1) / 3], [0.1, (0.4 + 0.1 - 0.2) / 3]]))


def test_another_pair_moves_the_vector_by_two_over_n():
    """And no more; a pair that points the opposite way moves it by nearly as much."""
    lm, method = tiny_lm(), PSA(**ONE, sigma=0, clip=1e-3)
    base = vector(fit(method, lm))
    count, moves = len(PAIRS.prompt), []
    for i in range(count):
        turned = Pairs(list(PAIRS.prompt), list(PAIRS.desired), list(PAIRS.undesired))
        turned.desired[i], turned.undesired[i] = PAIRS.undesired[i], PAIRS.desired[i]
        moves.append(float((vector(fit(method, lm, turned)) - base).norm()))
    assert moves == pytest.approx([2 / count] * count, rel=1e-4)
    other = Pairs([*PAIRS.prompt[:-1], "Bread"], [*PAIRS.desired[:-1], " and water"], [*PAIRS.undesired[:-1], " sings"])
    assert 0 < float((vector(fit(method, lm, other)) - base).norm()) <= 2 / count + 1e-6
    noisy = [fit(replace(method, sigma=0.3), lm, one) for one in (PAIRS, other)]
    moved = float((vector(noisy[0]) - vector(noisy[1])).norm())
    assert moved == pytest.approx(float((vector(fit(method, lm, other)) - base).norm()), rel=1e-2), "one noise for both"


def test_the_noise_is_sigma_in_every_coordinate():
    many = torch.cat([drawn(seed, 3, 4096) for seed in range(8)])
    assert float(many.mean()) == pytest.approx(0, abs=0.03) and float(many.std()) == pytest.approx(1, rel=0.02)
    lm = tiny_lm()
    clean, noisy = (vector(fit(PSA(**ONE, sigma=sigma, seed=5), lm)) for sigma in (0, 0.3))
    torch.testing.assert_close(noisy - clean, 0.3 * drawn(5, LAYER, len(clean)), atol=1e-5, rtol=1e-4)


def test_noise_belongs_to_seed_and_block():
    lm = tiny_lm()
    several = PSA(first_layer=1, last_layer=3, sigma=0.5)
    artefact = fit(several, lm)
    assert all(torch.equal(one, artefact[key]) for key, one in fit(several, lm).items())
    assert not torch.equal(fit(replace(several, seed=1), lm)[KEY], artefact[KEY])
    clean = fit(replace(several, sigma=0), lm)
    noise = [vector(artefact, layer, i) - vector(clean, layer, i) for i, layer in enumerate((1, 2, 3))]
    width = len(noise[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(torch.cosine_similarity(noise[one], noise[other], dim=0))) < 4 / width**0.5
    alone = fit(replace(several, first_layer=2, last_layer=2), lm)
    torch.testing.assert_close(alone["layers.2.direction"], artefact["layers.2.direction"])


@pytest.mark.parametrize(("count", "sigma"), [(290, 0.02), (1000, 0.02), (20, 0.5), (5, 3.0)])
def test_epsilon_by_the_exact_condition_and_the_papers_formula(count, sigma):
    normal, delta = NormalDist(), 1 / (5 * count)
    epsilon = analytic_epsilon(sigma, delta, count)
    step = 2 / count / sigma

    def condition(value: float) -> float:
        far = normal.cdf(-step / 2 - value / step)
        return normal.cdf(step / 2 - value / step) - math.exp(value) * far

    if epsilon:
        assert condition(epsilon) == pytest.approx(delta, rel=1e-6)
    else:
        assert condition(0) <= delta
    assert lost(0.7, sigma, count) == pytest.approx(condition(0.7), rel=1e-6, abs=1e-12)
    classical = 2 * math.sqrt(2 * math.log(1.25 / delta)) / (count * sigma)
    assert epsilon < classical if classical < 1 else epsilon > 0


def test_the_papers_own_budgets_are_those_of_its_formula():
    """At sigma .02: .40 a block for 1,000 pairs, 1.32 for 290, five blocks; the bound is proved below 1 alone."""
    for count, each in ((1000, 0.40), (290, 1.32)):
        sigma, delta = PSA().noise(count, 5)
        assert (sigma, delta) == (0.02, 1 / (5 * count))
        assert 2 * math.sqrt(2 * math.log(1.25 / delta)) / (count * sigma) == pytest.approx(each, abs=0.02)


def test_sigma_from_epsilon_and_back():
    for epsilon in (0.1, 1.0, 8.0):
        sigma, delta = PSA(sigma=None, epsilon=5 * epsilon).noise(100, 5)
        assert analytic_epsilon(sigma, delta, 100) == pytest.approx(epsilon, rel=1e-6)
        assert sigma == analytic_sigma(epsilon, 1 / 500, 100)
    sigma, delta = PSA(sigma=None, epsilon=2, mechanism="classical", delta=1e-4).noise(100, 5)
    assert sigma == pytest.approx(2 * math.sqrt(2 * math.log(1.25 / 1e-4)) / (100 * 0.4)) and delta == 1e-4
    assert analytic_sigma(0.4, 1e-4, 100) < sigma
    sizes = [PSA(sigma=None, epsilon=1, delta=1e-5).noise(count, 1)[0] for count in (10, 100, 1000)]
    assert sizes[0] > sizes[1] > sizes[2], "more pairs, less noise"
    assert sizes[0] / sizes[2] == pytest.approx(100, rel=1e-6)


def test_the_record_holds_the_budget_of_all_blocks():
    lm, count = tiny_lm(), len(PAIRS.prompt)
    artefact = fit(PSA(first_layer=1, last_layer=3, sigma=0.5), lm)
    delta = 1 / (5 * count)
    assert float(artefact["info.delta"]) == pytest.approx(3 * delta)
    assert float(artefact["info.epsilon"]) == pytest.approx(3 * analytic_epsilon(0.5, delta, count))
    formula = 3 * 2 * math.sqrt(2 * math.log(1.25 / delta)) / (count * 0.5)
    assert float(artefact["info.epsilon_classical"]) == pytest.approx(formula)
    asked = fit(PSA(first_layer=1, last_layer=3, sigma=None, epsilon=4.5, delta=0.01), lm)
    assert float(asked["info.epsilon"]) == pytest.approx(4.5) and float(asked["info.delta"]) == pytest.approx(0.03)


def test_unit_and_clipping_norm_do_not_come_from_the_pairs():
    lm, method = tiny_lm(), PSA(**ONE)
    other = Pairs(PAIRS.prompt, [text + " near the river" for text in PAIRS.desired], PAIRS.undesired)
    norms = [fit(method, lm, pairs)["info.residual_norm"] for pairs in (PAIRS, other)]
    assert torch.equal(*norms)
    assert not torch.equal(fit(method, lm, background=BACKGROUND[:1])["info.residual_norm"], norms[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_direction_is_found_and_points_to_the_desired(architecture):
    lm, pairs, direction, _ = planted_sink(architecture)
    found = vector(fit(PSA(**ONE), lm, pairs))
    assert torch.cosine_similarity(found, direction, dim=0) > 0.98
    assert float(found @ direction) == pytest.approx(1, abs=0.1)
    swapped = vector(fit(PSA(**ONE), lm, Pairs(pairs.prompt, pairs.undesired, pairs.desired)))
    assert torch.cosine_similarity(swapped, direction, dim=0) < -0.98
    loud = vector(fit(PSA(**ONE, sigma=2), lm, pairs))
    assert torch.cosine_similarity(loud, direction, dim=0) < 0.8


@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
def test_every_block_moves_the_tokens_of_the_scope(scope):
    lm, method = tiny_lm(), PSA(first_layer=1, last_layer=3, scope=scope)
    artefact = fit(method, lm)
    for layer in range(5):
        before, after, prompt = before_and_after(lm, method, artefact, -0.2, layer)
        where = torch.zeros(len(before), dtype=torch.bool)
        if layer in (1, 2, 3):
            where[slice(*{"all": (0, None), "prompt": (0, prompt), "generation": (prompt, None)}[scope])] = True
            added = -0.2 * artefact[f"layers.{layer}.direction"]
            torch.testing.assert_close(after[where], before[where] + added, atol=1e-5, rtol=1e-5)
        assert (before != after).any(-1).tolist() == where.tolist()


def test_strength_zero_and_an_exception_leave_every_bit():
    lm, method = tiny_lm(), PSA()
    artefact, base = fit(method, lm), text_logits(lm)
    bytes_before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(text_logits(lm), base)
    with pytest.raises(KeyError), method.apply(lm.model, artefact, 0.2):
        assert not torch.equal(text_logits(lm), base)
        raise KeyError
    assert torch.equal(text_logits(lm), base)
    assert all(torch.equal(one, bytes_before[name]) for name, one in lm.model.state_dict().items())


def test_its_vectors_can_be_exported():
    lm, method = tiny_lm(), PSA(first_layer=1, last_layer=2)
    effect = measure(lm, method, artefact := fit(method, lm), 0.2)
    assert effect.beyond is None and set(effect.vectors) == {1, 2} and not effect.weights
    torch.testing.assert_close(effect.vectors[2], 0.2 * artefact["layers.2.direction"])
    lengths = artefact["info.direction_norm"].tolist()
    assert method.residual_norms({"direction_norm": lengths}) == pytest.approx(sum(lengths) / 2)


def test_wrong_settings_and_missing_data():
    lm = tiny_lm()
    for options, message in (
        ({"read": "letter"}, "allowed are all, continuation, last"),
        ({"scope": "front"}, "allowed are all, prompt, generation"),
        ({"mechanism": "laplace"}, "allowed are analytic, classical"),
        ({"clip": 0}, "method.clip=0: expected a number above 0, in mean residual norms"),
        ({"sigma": None}, "method.sigma=None and method.epsilon=None: give one of them"),
        ({"epsilon": 2}, "method.sigma=0.02 and method.epsilon=2: give one of them"),
        ({"sigma": -1}, "method.sigma=-1: expected a standard deviation"),
        ({"sigma": float("nan")}, "method.sigma=nan: expected a number"),
        ({"sigma": None, "epsilon": 0}, "method.epsilon=0: expected a number above 0"),
        ({"delta": 1.0}, "method.delta=1.0: expected a number between 0 and 1"),
        ({"first_layer": 9}, "layer 9 out of range: this model of type llama has 5 blocks .* set method.first_layer"),
    ):
        with pytest.raises(SetupError, match=message):
            PSA(**options).check(lm.model)
    with pytest.raises(SetupError, match="is 3 at each of 1 blocks, and the classical bound is proved only below 1"):
        fit(PSA(**ONE, sigma=None, epsilon=3, mechanism="classical"), lm)
    with pytest.raises(SetupError, match="psa learns from contrast pairs and got 1; give at least 2"):
        fit(PSA(), lm, Pairs(*(column[:1] for column in PAIRS)))
    for background in ([], None):
        with pytest.raises(SetupError, match="from public texts and got none; set background=wiki"):
            fit(PSA(), lm, background=background)
    same = Pairs(PAIRS.prompt, PAIRS.desired, PAIRS.desired)
    with pytest.raises(SetupError, match="do not differ where method.read looks"):
        fit(PSA(**ONE, sigma=0), lm, same)
    assert fit(PSA(**ONE), lm, same)[KEY].norm() > 0, "with noise nobody learns that they are the same"


def test_an_artefact_of_another_model_or_of_other_layers():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(PSA(**ONE), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with PSA(**ONE).apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with PSA(first_layer=1, last_layer=2).apply(lm.model, artefact, 1):
            pass
    assert layout.width(lm.model) == 36
