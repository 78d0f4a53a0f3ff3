from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from bench.export.effect import measure
from bench.model.sampling import prefill
from methods import layout, sites
from methods.activation_scaling import ActivationScaling, mean_log_probabilities
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.intervention import hooked
from methods.optimiser import soft_threshold
from methods.tokens import encode, encode_pairs
from tests.architectures import CONFIGS, lm_of
from tests.methods.test_contract import DATA, PAIRS
from tests.sinks import DESIRED, UNDESIRED, planted_sink
from tests.tiny import tiny_lm

BACKGROUND = DATA["background"][:3]
NORMED = ["gemma2", "gemma3", "gemma3_multimodal", "olmo2", "olmo3"]
EXPERTS = ["mixtral", "qwen3_moe", "qwen3_moe_mixed"]


def fit(method, lm, pairs=PAIRS, background=BACKGROUND):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs, background=background))


def places(lm):
    layers = range(len(layout.blocks(lm.model)))
    return [sites.written(lm.model, layer, part) for layer in layers for part in ("attention", "mlp")]


def scaled(lm, scales):
    """Hooks of the test's own: every component's write times 1 + its scalar."""
    flat = scales.flatten().tolist()
    return [place.hook(lambda y, by=1 + one: by * y) for place, one in zip(places(lm), flat, strict=True)]


def log_probabilities(lm, ids):
    """(T - 1, V) of every token but the first, read alone."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)


def by_hand(lm, scales, pairs, background, kl_weight):
    """The loss of the formula, text by text."""

    def said(text):
        with hooked(scaled(lm, scales)):
            found = log_probabilities(lm, text.tokens)[text.prompt - 1 :]
        return found.gather(-1, torch.tensor(text.tokens[text.prompt :])[:, None]).mean()

    preferred = torch.stack([functional.logsigmoid(said(one) - said(other)) for one, other in pairs])
    rows = []
    for text in background:
        before = log_probabilities(lm, text.tokens)
        with hooked(scaled(lm, scales)):
            now = log_probabilities(lm, text.tokens)
        rows.append((before.exp() * (before - now)).sum(-1))
    return float(-preferred.mean() + kl_weight * torch.cat(rows).mean())


def read(lm):
    texts = encode_pairs(lm.model, lm.tokenizer, PAIRS)
    usual = encode(lm.model, lm.tokenizer, [""] * len(BACKGROUND), BACKGROUND)[0]
    return list(zip(texts.desired, texts.undesired, strict=True)), [text._replace(prompt=1) for text in usual]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_loss_and_gradient_by_hand(architecture):
    lm = tiny_lm(architecture)
    pairs, background = (some[:2] for some in read(lm))
    count = len(places(lm))
    scales = 0.2 * torch.randn(count, generator=torch.Generator().manual_seed(1))
    method = ActivationScaling(kl_weight=0.7)

    def loss(at):
        return method.loss(lm.model, places(lm), at, pairs, background)

    wanted = scales.clone().requires_grad_()
    found = loss(wanted)
    assert found.item() == pytest.approx(by_hand(lm, scales, pairs, background, 0.7), rel=1e-5)
    assert float(loss(torch.zeros(count))) == pytest.approx(
        by_hand(lm, torch.zeros(count), pairs, background, 0.0), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(found, [wanted])
    for one, step in zip(gradient, 2e-3 * torch.eye(count), strict=True):
        slope = by_hand(lm, scales + step, pairs, background, 0.7) - by_hand(lm, scales - step, pairs, background, 0.7)
        assert float(one) == pytest.approx(slope / 4e-3, rel=0.02, abs=0.02 * float(gradient.abs().max()))


def test_one_step_of_adam_and_the_proximal_step():
    """The first step of Adam is the learning rate against the gradient's sign; the penalty takes its part of it."""
    lm = tiny_lm()
    pairs, background = read(lm)
    at = torch.zeros(len(places(lm)), requires_grad=True)
    plain = ActivationScaling(steps=1, batch_size=8, sparsity=0, learning_rate=0.02)
    (gradient,) = torch.autograd.grad(plain.loss(lm.model, places(lm), at, pairs, background), [at])
    torch.testing.assert_close(fit(plain, lm)["scales"], -0.02 * gradient.sign().view(-1, 2), rtol=1e-3, atol=0)
    weight = float(gradient.abs().median())
    artefact = fit(replace(plain, sparsity=weight), lm)
    expected = -0.02 * gradient.sign() * (1 - weight / gradient.abs()).clamp(min=0)
    torch.testing.assert_close(artefact["scales"], expected.view(-1, 2), rtol=1e-3, atol=1e-6)
    assert artefact["info.zeros"] in (4, 5) and artefact["scales"].shape == (5, 2)
    shrunk = soft_threshold(torch.tensor([0.3, -0.3, 0.1]), torch.tensor(0.2))
    assert shrunk.tolist() == pytest.approx([0.1, -0.1, 0.0])


def test_the_loss_falls_and_a_huge_sparsity_is_refused():
    lm = tiny_lm()
    artefact = fit(ActivationScaling(steps=15, batch_size=8, learning_rate=0.05), lm)
    assert artefact["info.last_loss"] < artefact["info.first_loss"] - 0.02
    with pytest.raises(SetupError, match="the fit changed nothing, .*method.sparsity=1000000000.0 leaves no scalar"):
        fit(ActivationScaling(steps=2, sparsity=1e9), lm)
    few, all_of_them = (fit(ActivationScaling(steps=5, sparsity=one), lm)["scales"] for one in (0.02, 0))
    assert few.abs().sum() < all_of_them.abs().sum() and (few == 0).any() and not (all_of_them == 0).any()


def test_faithfulness_keeps_ordinary_texts():
    lm, (_, background) = tiny_lm(), read(tiny_lm())
    moved = []
    for weight in (0.0, 30.0):
        artefact = fit(ActivationScaling(steps=10, kl_weight=weight, learning_rate=0.05), lm)
        with lm.steered(ActivationScaling(), artefact, 1.0):
            now = [log_probabilities(lm, text.tokens) for text in background]
        before = [log_probabilities(lm, text.tokens) for text in background]
        moved.append(float(sum((b.exp() * (b - n)).sum() for b, n in zip(before, now, strict=True))))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("swapped", [False, True])
def test_the_mlp_that_writes_the_bad_token_is_turned_down(swapped):
    """Its bias adds what the undesired tokens' logits read; with the labels swapped it is turned up."""
    lm, pairs, _, _ = planted_sink("gpt2", sink_norm=0.0)
    unembedding = lm.model.get_output_embeddings().weight
    good, bad = (
        unembedding[lm.tokenizer(some, add_special_tokens=False).input_ids].mean(0) for some in (DESIRED, UNDESIRED)
    )
    sites.written(lm.model, 1, "mlp").module.bias.add_(0.3 * functional.normalize(bad - good, dim=0))
    if swapped:
        pairs = Pairs(pairs.prompt, pairs.undesired, pairs.desired)
    method = ActivationScaling(steps=20, kl_weight=0.01, learning_rate=0.05, sparsity=0.01)
    scales = fit(method, lm, pairs)["scales"]
    assert scales[1, 1].sign() == (1 if swapped else -1)
    others = scales.abs().flatten()
    others[3] = 0
    assert scales[1, 1].abs() > 5 * others.max()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_folded_weights_do_what_hooks_do(architecture):
    """To a millionth of the logits; attention and MLP of each block have scalars of their own."""
    lm = lm_of(architecture)
    ids = [lm.encode("The old tree near the river")]
    scales = torch.tensor([[-0.6, 0.4], [0.9, -1.7]])
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    with hooked(scaled(lm, 0.5 * scales)):
        wanted = prefill(lm, ids)[1]
    with pytest.raises(ZeroDivisionError), lm.steered(ActivationScaling(), {"scales": scales}, 0.5) as steered:
        got = prefill(steered, ids)[1]
        hooks = sum(len(module._forward_hooks) for module in lm.model.modules())
        changed = {name for name, one in lm.model.state_dict().items() if not torch.equal(one, before[name])}
        raise ZeroDivisionError
    size = float(wanted.abs().max())
    torch.testing.assert_close(got / size, wanted / size, atol=2e-6, rtol=0)
    assert hooks == {"mixtral": 2, "qwen3_moe": 2, "qwen3_moe_mixed": 1}.get(architecture, 0)
    assert len([name for name in changed if name.endswith("weight")]) == 4 - hooks
    assert all("norm" in name for name in changed) == (architecture in NORMED)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
def test_minus_1_silences_a_component(architecture):
    lm = lm_of(architecture)
    ids = [lm.encode("The old tree near the river")]
    for layer, at in ((0, 0), (0, 1), (1, 1)):
        scales = torch.zeros(2, 2)
        scales[layer, at] = -1
        with hooked(sites.zeroed([sites.written(lm.model, layer, ("attention", "mlp")[at])])):
            wanted = prefill(lm, ids)[1]
        with lm.steered(ActivationScaling(), {"scales": scales}, 1.0) as steered:
            torch.testing.assert_close(prefill(steered, ids)[1], wanted, atol=1e-5, rtol=1e-5)


def test_strength_0_and_a_fit_leave_every_bit():
    lm, method = tiny_lm("gpt2"), ActivationScaling(steps=3)
    ids = [lm.encode("The old tree near")]
    for parameter in list(lm.model.parameters())[:5]:
        parameter.requires_grad_(True)
    wanted = [parameter.requires_grad for parameter in lm.model.parameters()]
    base, before = prefill(lm, ids)[1], {name: one.clone() for name, one in lm.model.state_dict().items()}
    artefact = fit(method, lm)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())
    assert [parameter.requires_grad for parameter in lm.model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    assert torch.equal(fit(method, lm)["scales"], artefact["scales"])
    assert not torch.equal(fit(ActivationScaling(steps=3, seed=1), lm)["scales"], artefact["scales"])


def test_a_text_counts_by_its_mean():
    lm = tiny_lm()
    texts = encode_pairs(lm.model, lm.tokenizer, PAIRS)
    with torch.no_grad():
        found = mean_log_probabilities(lm.model, texts.desired)
    for one, text in zip(found, texts.desired, strict=True):
        every = log_probabilities(lm, text.tokens)[text.prompt - 1 :].gather(
            -1, torch.tensor(text.continuation)[:, None]
        )
        assert float(one) == pytest.approx(float(every.mean()), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mixtral"])
def test_what_can_be_exported(architecture):
    lm = lm_of(architecture)
    effect = measure(lm, ActivationScaling(), {"scales": torch.tensor([[0.5, -0.5], [0.25, 0.1]])}, 1.0)
    assert (effect.beyond is None) == (architecture != "mixtral")
    assert not effect.vectors and len(effect.weights) == {"gpt2": 8, "mixtral": 2}.get(architecture, 4)


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"steps": 0}, "steps and batch size must be at least 1"),
        ({"batch_size": 0}, "steps and batch size must be at least 1"),
        ({"learning_rate": 0}, "and the learning rate above 0"),
        ({"kl_weight": -1}, "method.kl_weight=-1: expected a number of 0 or more"),
        ({"sparsity": float("inf")}, "method.sparsity=inf: expected a number of 0 or more"),
        ({"max_tokens": 1}, "at least 2 tokens"),
    ):
        with pytest.raises(SetupError, match=message):
            ActivationScaling(**options).check(lm.model)
    with pytest.raises(SetupError, match="activation_scaling learns from contrast pairs and got 1"):
        fit(ActivationScaling(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="needs ordinary texts, on which the model is to stay as it is, and got none"):
        fit(ActivationScaling(), lm, background=[])
    empty = Pairs(PAIRS.prompt, [""] * 8, PAIRS.undesired)
    with pytest.raises(SetupError, match="0 pairs and 3 background texts have a token"):
        fit(ActivationScaling(), lm, empty)
    broken = tiny_lm()
    layout.value_matrix(broken.model, 1).parameter[0, 0] = torch.nan
    with pytest.raises(SetupError, match="the loss is nan after 0 steps; lower method.learning_rate, or check that"):
        fit(ActivationScaling(steps=5), broken)
    for artefact in ({}, {"scales": torch.zeros(3, 2)}):
        with pytest.raises(SetupError, match="activation_scaling: scales .* not fitted on this model"):
            with ActivationScaling().apply(lm.model, artefact, 1):
                pass


def test_two_steps_of_adam_with_the_kl_term():
    """At scalars of 0 the KL term has no gradient, so the first step says nothing of it."""
    lm = tiny_lm()
    pairs, background = read(lm)
    method = ActivationScaling(steps=2, batch_size=8, sparsity=0, learning_rate=0.02, kl_weight=50.0)
    at = torch.zeros(len(places(lm)), requires_grad=True)
    optimiser = torch.optim.Adam([at], lr=0.02)
    for _ in range(2):
        optimiser.zero_grad()
        method.loss(lm.model, places(lm), at, pairs, background).backward()
        optimiser.step()
    torch.testing.assert_close(fit(method, lm)["scales"], at.detach().view(-1, 2), rtol=1e-3, atol=1e-5)
