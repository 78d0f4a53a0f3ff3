"""AurA: AUROC against its definition, damped units against a loop by hand, planted units, and the folded weights."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bench.export import checkpoint
from bench.export.effect import Steered, measure
from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import layout
from methods.aura import AurA, auroc
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.folding import folded
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

LLAMA, GPT2 = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ("mlp.c_fc", "mlp.c_proj")
NAMES = {"llama": LLAMA, "gpt2": GPT2, "gemma2": LLAMA, "phi3": ("mlp.gate_up_proj", "mlp.down_proj")}
IDS = torch.tensor([[5, 9, 11, 7, 3], [4, 8, 2, 6, 10]])


def fit(method: AurA, lm: LM, pairs: Pairs = PAIRS) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def factors(artefact: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor for key, tensor in artefact.items() if key.endswith(".alpha")])


def modules(lm: LM, architecture: str) -> dict[str, nn.Module]:
    return {
        f"layers.{layer}.{name}": block.get_submodule(name)
        for layer, block in enumerate(layout.blocks(lm.model))
        for name in NAMES[architecture]
    }


def largest(lm: LM, module: nn.Module, pairs: Pairs, *, first: int = 0, whole: bool = False) -> list[Tensor]:
    """(N, outputs) of undesired and desired texts, one text at a time."""
    sides = []
    for side in (pairs.undesired, pairs.desired):
        rows = []
        for prompt, text in zip(pairs.prompt, side, strict=True):
            seen = []
            handle = module.register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.append(out.view(-1, out.shape[-1]))
            )
            with torch.no_grad():
                lm.model(torch.tensor([lm.encode(prompt + text)]), use_cache=False)
            handle.remove()
            rows.append(seen[0][max(0 if whole else len(lm.encode(prompt)), first) :].amax(0))
        sides.append(torch.stack(rows))
    return sides


def by_counting(positive: Tensor, negative: Tensor) -> Tensor:
    """Every undesired text against every desired one; what differs by rounding alone is a tie."""
    difference, rounding = positive[:, None] - negative[None], 1e-5 * torch.cat([positive, negative]).abs().amax(0)
    return ((difference > rounding).double() + 0.5 * (difference.abs() <= rounding).double()).mean((0, 1))


# -- AUROC ---------------------------------------------------------------------------------------------------------


def test_auroc_of_six_numbers_by_hand():
    """3 beats all of 0 1 2; 1 beats 0 and equals 1; 0 equals 0: 3 + 1.5 + .5 of 9."""
    found = auroc(torch.tensor([[3.0], [1.0], [0.0]]), torch.tensor([[1.0], [0.0], [2.0]]))
    assert float(found) == pytest.approx(5 / 9)


def test_auroc_counts_all_pairs_with_ties():
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, 9, (n, 11), generator=generator).float() for n in (13, 20))
    torch.testing.assert_close(auroc(positive, negative), by_counting(positive, negative))
    torch.testing.assert_close(auroc(negative, positive), 1 - auroc(positive, negative))


def test_auroc_of_special_units():
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(auroc(values, values - values.abs().max() * 3), torch.ones(4).double())
    assert torch.equal(auroc(torch.full((5, 1), 2.0), torch.full((7, 1), 2.0)), torch.full((1,), 0.5).double())
    other = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    for monotone in (torch.exp, lambda x: x**3, lambda x: 5 * x - 100):
        assert torch.equal(auroc(monotone(values), monotone(other)), auroc(values, other))


# -- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.every(5)
@pytest.mark.parametrize(("read", "skip_first"), [("continuation", 1), ("all", 0), ("all", 2)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi3"])
def test_factors_are_those_of_the_formula(architecture, read, skip_first):
    lm = lm_of(architecture)
    artefact = fit(AurA(read=read, skip_first=skip_first), lm)
    wanted = {}
    for name, module in modules(lm, architecture).items():
        area = by_counting(*largest(lm, module, PAIRS, first=skip_first, whole=read == "all"))
        wanted[f"{name}.alpha"] = torch.where(area > 0.5, 1 - 2 * (area - 0.5), 1.0).float()
    assert {key for key in artefact if not key.startswith("info.")} == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(artefact[key], value, msg=lambda text, key=key: f"{key}: {text}")
    every = torch.cat(list(wanted.values()))
    assert float(artefact["info.share_above_half"]) == pytest.approx(float((every < 1).float().mean()))
    assert artefact["info.share_damped"] == artefact["info.share_above_half"]
    assert float(artefact["info.mean_alpha"]) == pytest.approx(float(every.mean()), rel=1e-5)


def test_swapped_labels_damp_the_other_units():
    lm = tiny_lm()
    there, back = (
        factors(fit(AurA(), lm, one)) for one in (PAIRS, PAIRS._replace(desired=PAIRS[2], undesired=PAIRS[1]))
    )
    assert (there < 1).any() and (back < 1).any() and not ((there < 1) & (back < 1)).any()


def test_which_texts_make_a_pair_does_not_count():
    lm = tiny_lm()
    alone = Pairs(
        [""] * len(PAIRS.prompt), *([p + t for p, t in zip(PAIRS.prompt, side, strict=True)] for side in PAIRS[1:])
    )
    there = fit(AurA(), lm, alone)
    turned = fit(AurA(), lm, alone._replace(undesired=alone.undesired[::-1]))
    torch.testing.assert_close(factors(there), factors(turned))


@pytest.mark.parametrize("form", ["det0", "damp"])
def test_the_top_share_is_touched_and_no_more(form):
    lm = tiny_lm()
    aura, everything = fit(AurA(), lm), fit(AurA(form=form, damp_alpha=0.25), lm)
    value = {"det0": 0.0, "damp": 0.25}[form]
    assert torch.equal(factors(everything), torch.where(factors(aura) < 1, value, 1.0))
    units = len(factors(aura))
    for top in (0.001, 0.05, 0.2):
        some = factors(fit(AurA(form=form, damp_alpha=0.25, top=top), lm))
        count = max(1, round(top * units))
        assert int((some < 1).sum()) == count and (some[some < 1] == value).all()
        assert factors(aura)[some < 1].max() <= factors(aura)[some == 1].min()  # the best are taken, of all layers
        assert torch.equal(factors(fit(AurA(top=top), lm)), torch.where(some < 1, factors(aura), 1.0))
    assert torch.equal(factors(fit(AurA(form=form, damp_alpha=0.25, top=1), lm)), factors(everything))


def test_units_below_the_least_auroc_are_left():
    lm = tiny_lm()
    all_of_them, some = factors(fit(AurA(), lm)), fit(AurA(min_auroc=0.7), lm)
    assert torch.equal(factors(some), torch.where(all_of_them < 0.6 - 1e-6, all_of_them, 1.0))
    assert float(some["info.share_damped"]) < float(some["info.share_above_half"])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_unit_alone_is_silenced(architecture):
    """One row of the first matrix fires on undesired tokens; those of the others are constant."""
    lm, pairs, direction, _ = planted_sink(architecture)
    name, unit = NAMES[architecture][0], 17
    for module in modules(lm, architecture).values():
        module.weight.zero_()
    target = layout.blocks(lm.model)[1].get_submodule(name)
    (target.weight.T if isinstance(target, Conv1D) else target.weight)[unit] = -direction
    artefact = fit(AurA(), lm, pairs)
    alpha = artefact.pop(f"layers.1.{name}.alpha")
    assert alpha[unit] == 0 and (alpha.sum() == len(alpha) - 1)
    assert all((tensor == 1).all() for key, tensor in artefact.items() if key.endswith(".alpha"))
    assert float(artefact["info.share_damped"]) == pytest.approx(1 / sum(len(t) for t in [alpha, factors(artefact)]))
    swapped = pairs._replace(desired=pairs.undesired, undesired=pairs.desired)
    with pytest.raises(SetupError, match="no unit of the MLPs separates undesired"):
        fit(AurA(), lm, swapped)


def test_the_attention_sink_alone_may_be_the_largest():
    """A row that fires on undesired tokens and a hundred times as much on BOS tells nothing where BOS is read."""
    lm, pairs, direction, sink = planted_sink()
    for module in modules(lm, "llama").values():
        module.weight.zero_()
    gate = layout.blocks(lm.model)[0].mlp.gate_proj.weight
    gate[3] = -direction + 5 * sink
    lone = pairs._replace(prompt=[""] * len(pairs.prompt))
    for options in ({}, {"read": "all"}):
        assert fit(AurA(**options), lm, lone)["layers.0.mlp.gate_proj.alpha"][3] == 0
    with pytest.raises(SetupError, match="no unit of the MLPs"):
        fit(AurA(read="all", skip_first=0), lm, lone)


# -- the weights ---------------------------------------------------------------------------------------------------


@contextmanager
def scaled(lm: LM, architecture: str, artefact: dict[str, Tensor], strength: float) -> Iterator[None]:
    """The outputs of the modules multiplied, as published."""
    handles = []
    for name, module in modules(lm, architecture).items():
        factor = (1 - strength * (1 - artefact[f"{name}.alpha"])).clamp(min=0)
        handles.append(module.register_forward_hook(lambda _m, _a, out, factor=factor: out * factor))
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("form", ["aura", "det0"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi3"])
def test_folded_weights_do_what_scaled_outputs_do(architecture, form):
    lm = lm_of(architecture)
    method = AurA(form=form)
    artefact = fit(method, lm)
    with torch.no_grad():
        base = lm.model(IDS).logits
        for strength in (0.3, 1, 1.5, -0.5):
            with scaled(lm, architecture, artefact, strength):
                wanted = lm.model(IDS).logits
            with method.apply(lm.model, artefact, strength):
                got = lm.model(IDS).logits
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            assert (got - base).abs().max() > 1e-3


def test_rows_and_bias_by_hand():
    linear, conv = nn.Linear(3, 2), Conv1D(2, 3)
    scale = torch.tensor([0.5, -2.0])
    for module, weight in ((linear, linear.weight), (conv, conv.weight.T)):
        with torch.no_grad():
            module.bias.copy_(torch.tensor([1.0, 3.0]))
        new = folded(module, scale, torch.tensor([10.0, 20.0]))
        assert torch.equal(new[module.bias], torch.tensor([10.5, 14.0]))
        got = new[module.weight] if module is linear else new[module.weight].T
        assert torch.equal(got, torch.stack([0.5 * weight[0], -2.0 * weight[1]]))
    assert len(folded(nn.Linear(3, 2, bias=False), scale)) == 1
    with pytest.raises(SetupError, match="without a bias cannot take up a shift"):
        folded(nn.Linear(3, 2, bias=False), scale, scale)
    with pytest.raises(SetupError, match="a Linear with 2 outputs cannot take up 3 factors"):
        folded(linear, torch.ones(3))
    with pytest.raises(SetupError, match="a ReLU with no weight matrix"):
        folded(nn.ReLU(), scale)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_strength_zero_and_the_way_out_leave_every_bit(architecture):
    lm, method = tiny_lm(architecture), AurA()
    ids = [lm.encode("The old tree near")]
    base, before = prefill(lm, ids)[1], {name: one.clone() for name, one in lm.model.named_parameters()}
    artefact = fit(method, lm)
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    with pytest.raises(KeyboardInterrupt), method.apply(lm.model, artefact, 1):
        assert not torch.equal(prefill(lm, ids)[1], base)
        raise KeyboardInterrupt
    assert torch.equal(prefill(lm, ids)[1], base)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_exported_checkpoint_has_the_same_bits(architecture, tmp_path):
    lm, method = tiny_lm(architecture), AurA()
    artefact = fit(method, lm)
    effect = measure(lm, method, artefact, 1.0)
    assert effect.beyond is None and not effect.vectors
    assert all(any(name in one for name in NAMES[architecture]) for one in effect.weights)
    assert checkpoint.write(tmp_path, Steered(lm, method, artefact, 1.0, effect, "", None, "tiny")) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(), method.apply(lm.model, artefact, 1.0):
        assert torch.equal(loaded(IDS).logits, lm.model(IDS).logits)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "qwen3_moe_mixed"])
def test_a_mixture_of_experts_is_refused(architecture):
    lm = lm_of(architecture)
    for run in (lambda: AurA().check(lm.model), lambda: fit(AurA(), lm)):
        with pytest.raises(SetupError, match="one for each expert; choose another method"):
            run()


def test_wrong_settings_and_missing_data():
    lm = tiny_lm()
    for options, message in (
        ({"form": "det1"}, "allowed are aura, det0, damp"),
        ({"read": "last"}, "allowed are all, continuation"),
        ({"top": 0}, "method.top=0: expected a share of the units in"),
        ({"top": 2}, "method.top=2: expected a share"),
        ({"damp_alpha": 1}, "method.damp_alpha=1: expected a factor"),
        ({"damp_alpha": float("nan")}, "method.damp_alpha=nan"),
        ({"min_auroc": 0.4}, "method.min_auroc=0.4: expected at least 0.5"),
        ({"skip_first": -1}, "is negative"),
        ({"max_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(SetupError, match=message):
            fit(AurA(**options), lm)
    for data, count in ((FitData(), "none"), (FitData(Pairs(*(column[:1] for column in PAIRS))), "1")):
        with pytest.raises(SetupError, match=f"aura learns from contrast pairs and got {count}; give at least 2"):
            AurA().fit(lm.model, lm.tokenizer, data)
    same = PAIRS._replace(undesired=PAIRS.desired)
    with pytest.raises(SetupError, match="aura: the desired texts are the undesired ones"):
        fit(AurA(), lm, same)


def test_an_artefact_of_another_model():
    for one, other in itertools.permutations(("llama", "gpt2")):
        artefact = fit(AurA(), tiny_lm(one))
        with pytest.raises(SetupError, match="no factors for the .* outputs of layers.0.mlp"):
            with AurA().apply(tiny_lm(other).model, artefact, 1):
                pass
    artefact = fit(AurA(), tiny_lm())
    artefact["layers.2.mlp.up_proj.alpha"] = torch.ones(50)
    with pytest.raises(SetupError, match=r"50 factors for the 52 outputs of layers\.2\.mlp\.up_proj"):
        with AurA().apply(tiny_lm().model, artefact, 1):
            pass
