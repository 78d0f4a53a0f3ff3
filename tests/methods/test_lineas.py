"""LinEAS: loss and gradient by hand, the learnt maps against a descent of the test's own, and a planted shift."""

import math
from dataclasses import replace

import pytest
import torch

from bench.export.effect import measure
from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import layout, sites
from methods.base import FitData, Pairs
from methods.directions import pooled_at
from methods.errors import SetupError
from methods.intervention import generating, hooked
from methods.lineas import LinEAS, distance, sparser
from methods.maps import Spot
from methods.progress import counting
from methods.tokens import Text, encode_pairs
from tests.architectures import CONFIGS, lm_of
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

TEXT = "The old tree near the river"


def fit(method: LinEAS, lm: LM, pairs: Pairs = PAIRS) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def norms_of(lm: LM) -> list[Spot]:
    layers = range(len(layout.blocks(lm.model)))
    return [Spot(f"layers.{i}.norm", i, None, sites.last_norm(lm.model, i)) for i in layers]


def pooled(lm: LM, spots: list[Spot], side: list[str], maps: torch.Tensor | None = None) -> list[torch.Tensor]:
    """(N, D) of each place, text by text, with maps (2, M, D), slopes and shifts, by hooks of the test's own."""
    rows: list[list[torch.Tensor]] = [[] for _ in spots]
    for prompt, text in zip(PAIRS.prompt, side, strict=True):
        ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.encode(prompt))
        hooks = []
        for at, spot in enumerate(spots):

            def mapped(y, at=at, begin=begin):
                y = y if maps is None else y * (1 + maps[0, at]) + maps[1, at]
                rows[at].append(y[0, begin:].mean(0))
                return y

            hooks.append(spot.place.hook(mapped))
        with generating(lm.model), hooked(hooks):
            lm.model(torch.tensor([ids]), use_cache=False)
    return [torch.stack(one) for one in rows]


def by_hand(lm: LM, spots: list[Spot], maps: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
    """The formula, unit by unit."""
    found = []
    for one, other in zip(pooled(lm, spots, PAIRS.undesired, maps), targets, strict=True):
        units = [(one[:, i].sort()[0] - other[:, i].sort()[0]).pow(2).sum() for i in range(one.shape[1])]
        found.append(sum(units) / len(units))
    return sum(found) / len(found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_loss_and_gradient_by_hand(architecture):
    lm, method = tiny_lm(architecture), LinEAS()
    spots = norms_of(lm)
    texts = encode_pairs(lm.model, lm.tokenizer, PAIRS)
    with torch.no_grad():
        targets = pooled(lm, spots, PAIRS.desired)
    drawn = 0.1 * torch.randn(2, len(spots), layout.width(lm.model), generator=torch.Generator().manual_seed(1))
    for maps in (torch.zeros_like(drawn), drawn):
        ours, own = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        found = method.loss(lm.model, spots, ours[0], ours[1], texts.undesired, targets)
        wanted = by_hand(lm, spots, own, targets)
        (gradient,), (expected,) = torch.autograd.grad(found, [ours]), torch.autograd.grad(wanted, [own])
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        difference = float((gradient - expected).abs().max() / expected.abs().max())
        assert difference < 1e-4 and float(expected.abs().max()) > 0


@pytest.mark.parametrize(("architecture", "sparsity"), [("llama", 0.0), ("gpt2", 0.008)])
def test_the_fit_is_a_descent_along_a_cosine_with_proximal_steps(architecture, sparsity):
    lm, method = tiny_lm(architecture), LinEAS(steps=4, learning_rate=0.3, sparsity=sparsity)
    spots = norms_of(lm)
    with torch.no_grad():
        targets = pooled(lm, spots, PAIRS.desired)
    maps = torch.zeros(2, len(spots), layout.width(lm.model), requires_grad=True)
    for step in range(4):
        rate = 0.3 * (0.001 + 0.999 * (1 + math.cos(math.pi * step / 4)) / 2)
        (gradient,) = torch.autograd.grad(by_hand(lm, spots, maps, targets), [maps])
        moved = (maps - rate * gradient).detach()
        shrunk = moved.sign() * (moved.abs() - rate * sparsity).clamp(min=0)
        size = shrunk.norm(dim=-1, keepdim=True)
        least = rate * sparsity * math.sqrt(maps.shape[-1])
        maps = torch.where(size > least, shrunk * (1 - least / size), 0).requires_grad_()
    artefact, maps = fit(method, lm), maps.detach()
    worst = 0.0
    for at, spot in enumerate(spots):
        for field, wanted in (("scale", 1 + maps[0, at]), ("shift", maps[1, at])):
            found = artefact[f"{spot.key}.{field}"]
            worst = max(worst, float((found - wanted).abs().max() / maps.abs().max()))
    assert worst < 1e-3 and float(maps.abs().max()) > 1e-3
    assert {key for key in artefact if not key.startswith("info.")} == {
        f"{spot.key}.{field}" for spot in spots for field in ("scale", "shift")
    }
    still = float((maps == 0).all(0).float().mean())
    assert float(artefact["info.share_left_alone"]) == pytest.approx(still) and (still > 0.05) == (sparsity > 0)


def test_six_numbers_by_hand():
    """Sorted 1 2 6 against 0 3 12, and 0 0 0 against 1 1 1: (1 + 1 + 36 + 3) / 2."""
    source = torch.tensor([[2.0, 0.0], [6.0, 0.0], [1.0, 0.0]])
    target = torch.tensor([[12.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert float(distance(source, target)) == (1 + 1 + 36 + 3) / 2
    assert float(distance(source[[2, 0, 1]], target)) == (1 + 1 + 36 + 3) / 2


def test_the_proximal_step_solves_its_problem():
    """Its result has a smaller objective than anything near it; a row shorter than the threshold becomes 0."""
    values, threshold = torch.tensor([[0.9, -0.5, 0.05, 0.0], [0.1, 0.1, 0.0, -0.1]]), 0.12

    def objective(x: torch.Tensor) -> torch.Tensor:
        penalty = x.abs().sum(-1) + 2 * x.norm(dim=-1)  # sqrt(4)
        return (x - values).square().sum(-1) / 2 + threshold * penalty

    found = sparser(values, threshold)
    assert torch.equal(found[1], torch.zeros(4)) and found[0, 2] == 0 and (found[0, :2] != 0).all()
    near = found + 1e-3 * torch.randn(500, 2, 4, generator=torch.Generator().manual_seed(0))
    assert (objective(near) > objective(found)).all()
    assert torch.equal(sparser(values, 0.0), values)


# -- what is learnt ------------------------------------------------------------------------------------------------


def test_source_that_is_the_target_stays_as_it_is():
    lm, method = tiny_lm(), LinEAS(steps=3)
    spots = norms_of(lm)
    texts = encode_pairs(lm.model, lm.tokenizer, PAIRS)
    targets = pooled_at(lm.model, texts.undesired, [spot.place for spot in spots], read="continuation", skip_first=1)
    found, losses = method._learn(lm.model, spots, texts.undesired, targets)
    assert max(losses) < 1e-8
    for one in found:
        torch.testing.assert_close(one.scale, torch.ones_like(one.scale), atol=1e-6, rtol=0)
        torch.testing.assert_close(one.shift, torch.zeros_like(one.shift), atol=1e-6, rtol=0)


def test_the_order_of_the_texts_of_a_side_does_not_count():
    lm, method = tiny_lm(), LinEAS(steps=3, learning_rate=0.5)
    turned = [7, 0, 3, 1, 2, 6, 5, 4]
    lone = PAIRS._replace(prompt=[""] * 8)
    other = lone._replace(undesired=[lone.undesired[i] for i in turned])
    one, two = fit(method, lm, lone), fit(method, lm, other)
    for key, wanted in one.items():
        torch.testing.assert_close(two[key], wanted, rtol=1e-3, atol=1e-5)
    assert float((one["layers.0.norm.shift"]).abs().max()) > 1e-3


def test_the_loss_falls_and_a_huge_sparsity_is_refused():
    lm = tiny_lm()
    artefact = fit(LinEAS(steps=30, learning_rate=0.5), lm)
    assert artefact["info.last_loss"] < 0.9 * artefact["info.first_loss"]
    with pytest.raises(SetupError, match="lineas: the fit changed nothing, .*sparsity=1000000.0 leaves all maps"):
        fit(LinEAS(steps=2, sparsity=1e6), lm)


def test_batches_are_drawn_where_there_are_more_pairs():
    lm, method = tiny_lm(), LinEAS(steps=4, batch_size=3)
    one, again = fit(method, lm), fit(method, lm)
    other, whole = fit(replace(method, seed=1), lm), fit(replace(method, batch_size=8), lm)
    key = "layers.1.norm.shift"
    assert torch.equal(one[key], again[key])
    assert not torch.equal(one[key], other[key]) and not torch.equal(one[key], whole[key])


def test_targets_are_drawn_independently_of_the_sources():
    """By the numbers of the texts: over many draws a target is its source's partner as often as chance has it."""
    method, generator = LinEAS(batch_size=4), torch.Generator().manual_seed(0)
    source = [Text([number], 0) for number in range(8)]
    numbers = torch.arange(8.0)[:, None]
    same, shared, draws = 0, 0, 500
    for _ in range(draws):
        texts, (rows, more) = method._batch(source, [numbers, 10 * numbers], generator)
        ours, theirs = [text.tokens[0] for text in texts], rows[:, 0].int().tolist()
        assert len(set(ours)) == len(set(theirs)) == 4 and torch.equal(more, 10 * rows)
        same += sum(one == other for one, other in zip(ours, theirs, strict=True))
        shared += len(set(ours) & set(theirs))
    assert same / draws == pytest.approx(4 / 8, abs=0.15)
    assert shared / draws == pytest.approx(4 * 4 / 8, abs=0.15)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_shift_is_learnt_at_the_first_place_alone(swapped):
    """All blocks give the same stream; once map 1 has carried it over, nothing is left for the next."""
    lm, pairs, direction, _ = planted_sink(sink_norm=0.0, blocks=3)
    if swapped:
        pairs = Pairs(pairs.prompt, pairs.undesired, pairs.desired)
    for layer in range(1, len(layout.blocks(lm.model))):
        for kind in ("down", "o"):
            layout.stream_rows(lm.model, layer, kind).parts[0].parameter.zero_()
    method = LinEAS(where="block", steps=60, learning_rate=0.5)
    artefact = fit(method, lm, pairs)
    sign, moved = (-1 if swapped else 1), []
    stream = -sign * direction  # of a source text, before the first map
    for layer in range(3):
        after = artefact[f"layers.{layer}.scale"] * stream + artefact[f"layers.{layer}.shift"]
        moved.append(float((after - stream) @ direction))
        stream = after
    assert moved[0] == pytest.approx(2 * sign, abs=0.1) and max(abs(one) for one in moved[1:]) < 0.1
    assert artefact["info.last_loss"] < 0.05 * artefact["info.first_loss"]


def test_read_and_skip_first_say_what_is_pooled():
    """A sink that weighs more in a shorter text is carried over only where it is read."""
    lm, pairs, _, sink = planted_sink(sink_norm=20.0)

    def shift(**options) -> float:
        method = LinEAS(where="block", steps=10, learning_rate=0.02, **options)
        return abs(float(fit(method, lm, pairs)["layers.0.shift"] @ sink))

    assert max(shift(), shift(read="all")) < 0.1 * shift(read="all", skip_first=0)


# -- where and how it acts -----------------------------------------------------------------------------------------

NAMES = {
    "llama": "post_attention_layernorm", "gpt2": "ln_2", "opt": "final_layer_norm", "gptj": "ln_1",
    "gpt_neox": "post_attention_layernorm", "bloom": "post_attention_layernorm", "phi2": "input_layernorm",
    "qwen3": "post_attention_layernorm", "mixtral": "post_attention_layernorm",
    "gemma3": "post_feedforward_layernorm", "olmo2": "post_feedforward_layernorm",
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "name"), NAMES.items())
def test_the_last_norm_of_a_block(architecture, name):
    lm = lm_of(architecture)
    for layer, block in enumerate(layout.blocks(lm.model)):
        assert sites.last_norm(lm.model, layer).module is block.get_submodule(name)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_auto_is_norms_in_every_architecture(architecture):
    lm = lm_of(architecture)
    artefact = fit(LinEAS(steps=1), lm)
    keys = ["attention", "mlp"] if sites.is_normed(lm.model, 0, "mlp") else ["norm"]
    assert {key for key in artefact if not key.startswith("info.")} == {
        f"layers.{layer}.{key}.{field}" for layer in range(2) for key in keys for field in ("scale", "shift")
    }


@pytest.mark.parametrize(("architecture", "where"), [
    ("gpt2", "auto"), ("llama", "auto"), ("gptj", "norm"), ("gpt2", "both"), ("gemma3", "auto"), ("falcon", "auto"),
    ("bloom", "auto"), ("llama", "block"),
])  # fmt: skip
def test_maps_act_at_all_tokens_by_hooks_or_in_weights(architecture, where):
    lm, method = lm_of(architecture), LinEAS(where=where, steps=1)
    spots, ids = method._spots(lm.model), torch.tensor([[5, 9, 11, 7, 3]])
    drawn = torch.Generator().manual_seed(2)
    maps = {spot.key: 0.3 * torch.randn(2, layout.width(lm.model), generator=drawn) for spot in spots}
    artefact = {f"{key}.scale": 1 + one[0] for key, one in maps.items()}
    artefact |= {f"{key}.shift": one[1] for key, one in maps.items()}
    hooks = [spot.place.hook(lambda y, a=maps[spot.key]: 0.3 * y + 0.7 * ((1 + a[0]) * y + a[1])) for spot in spots]
    with torch.no_grad(), generating(lm.model):
        base = lm.model(ids).logits
        with hooked(hooks):
            wanted = lm.model(ids).logits
        with method.apply(lm.model, artefact, 0.7):
            got = lm.model(ids).logits
            steered_by_hooks = any(spot.place.module._forward_hooks for spot in spots)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (got - base).abs().max() > 1e-2
    assert steered_by_hooks == (architecture in ("llama", "gemma3"))
    assert torch.equal(lm.model(ids).logits, base)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_strength_zero_and_the_way_out_leave_every_bit(architecture):
    lm, method = tiny_lm(architecture), LinEAS(steps=2)
    ids = [lm.encode("The old tree near")]
    base, before = prefill(lm, ids)[1], {name: one.clone() for name, one in lm.model.named_parameters()}
    artefact = fit(method, lm)
    assert all(one.grad is None and not one.requires_grad for one in lm.model.parameters())
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    with pytest.raises(KeyboardInterrupt), method.apply(lm.model, artefact, 1):
        assert not torch.equal(prefill(lm, ids)[1], base)
        raise KeyboardInterrupt
    assert torch.equal(prefill(lm, ids)[1], base)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


def test_what_can_be_exported():
    """A LayerNorm and a matrix with a bias take a map up; an RMSNorm has no bias."""
    lm = tiny_lm("gpt2")
    for where, name in (("auto", ".ln_2."), ("attention", ".attn.c_proj.")):
        method = LinEAS(where=where, steps=2)
        effect = measure(lm, method, fit(method, lm), 1.0)
        assert effect.beyond is None and len(effect.weights) == 6 and all(name in key for key in effect.weights)
    lm = tiny_lm("llama")
    assert measure(lm, LinEAS(), fit(LinEAS(steps=2), lm), 1.0).beyond is not None


def test_the_tokens_that_are_read_are_those_of_passes():
    lm, method = tiny_lm(), LinEAS(steps=7)
    sizes = [sum(len(lm.encode(p + t)) for p, t in zip(PAIRS.prompt, side, strict=True)) for side in PAIRS[1:]]
    with counting() as count:
        fit(method, lm)
    assert count.tokens == sizes[0] + 7 * 3 * sizes[1]
    assert LinEAS(steps=7, batch_size=200).passes() == (1 + 3 * 7) / 2


def test_wrong_settings_and_missing_data():
    lm = tiny_lm()
    for options, message in (
        ({"where": "heads"}, "allowed are auto, norm, attention, mlp, both, block"),
        ({"read": "last"}, "allowed are all, continuation"),
        ({"steps": 0}, r"method\.steps=0: expected a whole number, at least 1"),
        ({"batch_size": 1}, r"method\.batch_size=1: expected a whole number, at least 2"),
        ({"batch_size": 2.5}, r"method\.batch_size=2\.5: expected a whole number, at least 2"),
        ({"learning_rate": 0}, r"method\.learning_rate=0: expected a number above 0"),
        ({"sparsity": -1}, r"method\.sparsity=-1: expected a number of 0 or more"),
        ({"sparsity": math.nan}, r"method\.sparsity=nan: expected a number of 0 or more"),
        ({"skip_first": -1}, r"method\.skip_first=-1: expected a whole number, at least 0"),
        ({"seed": "x"}, r"method\.seed='x': expected a whole number"),
    ):
        with pytest.raises(SetupError, match=message):
            LinEAS(**options).check(lm.model)
    with pytest.raises(SetupError, match="lineas learns from contrast pairs and got 1; give at least 2"):
        fit(LinEAS(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="the desired texts are the undesired ones, in whatever order"):
        fit(LinEAS(), lm, PAIRS._replace(undesired=PAIRS.desired[::-1], prompt=[""] * 8))
    with pytest.raises(SetupError, match="lower method.learning_rate, or check that"):
        fit(LinEAS(steps=40, learning_rate=1e6), lm)
    with pytest.raises(SetupError, match=r"the size of the maps is (nan|inf) after 1 steps; lower"):
        fit(LinEAS(steps=1, learning_rate=1e39), lm)
    with pytest.raises(SetupError, match=r"scale \(2, 36\) was not fitted on this model"):
        with LinEAS().apply(lm.model, {"layers.0.norm.scale": torch.ones(2, 36)}, 1):
            pass
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"scale \(36,\) was not fitted on this model, whose width is 28"):
        with LinEAS().apply(other.model, fit(LinEAS(steps=1), lm), 1):
            pass
