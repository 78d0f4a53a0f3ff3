"""Activation transport: maps against their formulas, blocks one by one against whole forwards, and what is touched."""

import itertools

import numpy as np
import pytest
import torch

from bench.export.effect import measure
from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import blockwise, layout, sites
from methods.act import AcT, transport
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.intervention import generating, hooked, record
from methods.maps import EDGE
from methods.progress import counting
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

KINDS = ["linear", "mean", "gaussian"]


def fit(method: AcT, lm: LM, pairs: Pairs = PAIRS) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def cloud(seed: int, count: int = 40, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.linspace(0.1, 30, width) + 5


def shuffled(values: torch.Tensor, seed: int = 3) -> torch.Tensor:
    """Each column in an order of its own."""
    order = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)).argsort(0)
    return values.gather(0, order)


def by_formula(a: np.ndarray, b: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Slope and shift of each column by numpy's own least squares on the sorted values, and by its moments."""
    slopes, shifts = [], []
    for one, other in zip(np.sort(a.T), np.sort(b.T), strict=True):
        if kind == "linear":
            slope, shift = np.linalg.lstsq(np.stack([one, np.ones_like(one)], 1), other, rcond=None)[0]
        else:
            slope = 1.0 if kind == "mean" else np.std(other) / np.std(one)
            shift = np.mean(other) - slope * np.mean(one)
        slopes.append(slope)
        shifts.append(shift)
    return np.array(slopes), np.array(shifts)


# -- the map of a unit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_of_the_formula(kind):
    a, b = cloud(0), cloud(1) ** 2
    for found, wanted in zip(
        transport(a, b, kind), by_formula(a.double().numpy(), b.double().numpy(), kind), strict=True
    ):
        torch.testing.assert_close(found.double(), torch.tensor(wanted), rtol=2e-6, atol=1e-6)


def test_six_numbers_by_hand():
    """Sorted, 1 2 6 go to 0 3 12: slope (-2 -5 + -1 -2 + 3 7) / (4 + 1 + 9) = 33/14, means 3 and 5."""
    scale, shift = transport(torch.tensor([[2.0], [6.0], [1.0]]), torch.tensor([[12.0], [0.0], [3.0]]), "linear")
    assert float(scale) == pytest.approx(33 / 14) and float(shift) == pytest.approx(5 - 3 * 33 / 14, rel=1e-6)
    scale, shift = transport(torch.tensor([[2.0], [6.0], [1.0]]), torch.tensor([[12.0], [0.0], [3.0]]), "mean")
    assert (float(scale), float(shift)) == (1, 2)


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_a_planted_affine_map_is_found(kind):
    a = cloud(0)
    scale, shift = transport(a, shuffled(2 * a.double() + 3), kind)
    torch.testing.assert_close(scale, torch.full((7,), 2.0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shift, torch.full((7,), 3.0), rtol=1e-6, atol=1e-5)


def test_equal_spreads_are_mean_transport():
    a = cloud(0).double()
    wanted = transport(a, shuffled(a + 4), "mean")
    for kind in KINDS:
        for found, one in zip(transport(a, shuffled(a + 4), kind), wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(wanted, (torch.ones(7), torch.full((7,), 4.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_texts_does_not_count(kind):
    a, b = cloud(0), cloud(1)
    for one, other in itertools.product((a, shuffled(a)), (b, shuffled(b))):
        for found, wanted in zip(transport(one, other, kind), transport(a, b, kind), strict=True):
            assert torch.equal(found, wanted)


def test_source_and_target_swapped_is_another_map():
    a, b = cloud(0), 2 * cloud(1)
    there, back = transport(a, b, "linear"), transport(b, a, "linear")
    assert (there[0] > 1.2).all() and (back[0] < 0.8).all()


def test_units_that_do_not_vary_get_no_slope():
    a, b = cloud(0), cloud(1)
    a[:, 2] = 1000.0
    scale, shift = transport(a, b, "linear")
    assert scale[2] == 1 and float(shift[2]) == pytest.approx(float(b[:, 2].mean()) - 1000, rel=1e-6)
    for kind in ("mean", "gaussian"):
        for one, other in ((a, b), (b, a)):  # on either side
            scale, shift = transport(one, other, kind)
            assert scale[2] == 1 and shift[2] == 0 and (shift[[0, 1, 3]] != 0).all()


# -- where and how it acts -----------------------------------------------------------------------------------------


def at_the_only_place(method: AcT, lm: LM, artefact: dict[str, torch.Tensor], values: torch.Tensor, strength: float):
    """What the method makes of these values (B, T, D) at the output of block 0."""
    found = []
    pre = layout.blocks(lm.model)[0].register_forward_hook(lambda *_: values)
    try:
        with method.apply(lm.model, artefact, strength):
            seen = layout.blocks(lm.model)[0].register_forward_hook(lambda _m, _a, out: found.append(out))
            with torch.no_grad():
                lm.model(torch.tensor([[5, 6]]))
            seen.remove()
    finally:
        pre.remove()
    return found[0]


def test_values_inside_the_support_are_carried_and_no_others():
    lm, method = tiny_lm(), AcT(where="block", causal=False)
    width = layout.width(lm.model)
    plan = {"scale": 3.0, "shift": 10.0, "low": -1.0, "high": 4.0}
    artefact = {f"layers.{i}.{key}": torch.full((width,), value) for i in range(5) for key, value in plan.items()}
    values = torch.linspace(-3, 6, 2 * width).view(1, 2, width)
    values[0, 0, :4] = torch.tensor([-1.0, 4.0, -1.0 + 5 * EDGE / 2, 4.0 - 5 * EDGE / 4])  # ends, and in the ramps
    got = at_the_only_place(method, lm, artefact, values, 0.5)
    outside = (values <= -1) | (values >= 4)
    assert outside.any() and torch.equal(got[outside], values[outside])
    well = (values > -1 + 5 * EDGE) & (values < 4 - 5 * EDGE)
    torch.testing.assert_close(got[well], 0.5 * values[well] + 0.5 * (3 * values[well] + 10))
    for column, share in ((2, 0.5), (3, 0.25)):
        y = float(values[0, 0, column])
        assert float(got[0, 0, column]) == pytest.approx(y + share * 0.5 * (2 * y + 10), rel=1e-4)
    everywhere = {key: value for key, value in artefact.items() if not key.endswith(("low", "high"))}
    got = at_the_only_place(AcT(where="block", support="infinite"), lm, everywhere, values, 0.5)
    torch.testing.assert_close(got, 0.5 * values + 0.5 * (3 * values + 10))


def test_a_rounding_at_an_end_of_the_support_moves_no_logit_far():
    lm, method = tiny_lm(), AcT(where="block", causal=False)
    width = layout.width(lm.model)
    plan = {"scale": 1.0, "shift": 50.0, "low": 0.0, "high": 1.0}
    artefact = {f"layers.{i}.{key}": torch.full((width,), value) for i in range(5) for key, value in plan.items()}
    low, high = (
        at_the_only_place(method, lm, artefact, torch.full((1, 2, width), y), 1.0) for y in (1 - 1e-6, 1 + 1e-6)
    )
    assert (low - high).abs().max() < 0.02


def test_a_constant_support_maps_nothing():
    lm, method = tiny_lm(), AcT(where="block", causal=False)
    width = layout.width(lm.model)
    plan = {"scale": 1.0, "shift": 50.0, "low": 0.5, "high": 0.5}
    artefact = {f"layers.{i}.{key}": torch.full((width,), value) for i in range(5) for key, value in plan.items()}
    values = torch.tensor([0.4, 0.5, 0.6] * (2 * width // 3)).view(1, 2, width)
    assert torch.equal(at_the_only_place(method, lm, artefact, values, 1.0), values)


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", ["attention"]),
        ("gemma2", ["attention", "mlp"]),
        ("olmo2", ["attention", "mlp"]),
        ("gpt2", ["attention"]),
    ],
)
def test_places_of_auto(architecture, keys):
    lm = lm_of(architecture)
    artefact = fit(AcT(causal=False), lm)
    wanted = {
        f"layers.{i}.{key}.{field}" for i in range(2) for key in keys for field in ("scale", "shift", "low", "high")
    }
    assert {key for key in artefact if not key.startswith("info.")} == wanted


# -- the fit -------------------------------------------------------------------------------------------------------


def forwards(
    lm: LM, pairs: Pairs, place: sites.Place, first: int, active: dict[sites.Place, dict], whole: bool = False
):
    """(N, D) of the desired and of the undesired texts at a place, from one whole forward a text with maps by hand."""

    def mapped(place, one):
        def function(values):
            edge = EDGE * (one["high"] - one["low"])
            share = (torch.minimum(values - one["low"], one["high"] - values) / edge).clamp(0, 1)
            return values + share * (one["scale"] * values + one["shift"] - values)

        return place.hook(function)

    sides = []
    for side in (pairs.desired, pairs.undesired):
        rows = []
        for prompt, text in zip(pairs.prompt, side, strict=True):
            head, ids = lm.encode(prompt), lm.encode(prompt + text)
            seen = []

            def keep(values, seen=seen):
                seen.append(values[0].clone())
                return values

            hooks = [mapped(*one) for one in active.items()]
            with torch.no_grad(), generating(lm.model), hooked([*hooks, place.hook(keep)]):
                lm.model(input_ids=torch.tensor([ids]), use_cache=False)
            rows.append(seen[0][max(0 if whole else len(head), first) :].mean(0))
        sides.append(torch.stack(rows))
    return sides


def places_of(lm: LM, where: str) -> dict[str, sites.Place]:
    found = {}
    for layer, block in enumerate(layout.blocks(lm.model)):
        if where == "block":
            found[f"layers.{layer}"] = sites.Place(block, "output", layout.width(lm.model))
        for part in sites.PARTS if where == "both" else [where]:
            if part != "block":
                found[f"layers.{layer}.{part}"] = sites.written(lm.model, layer, part)
    return found


def by_hand(lm: LM, where: str, kind: str, *, causal: bool, pushed: str = "both") -> dict[str, torch.Tensor]:
    artefact, active = {}, {}
    for key, place in places_of(lm, where).items():
        desired, undesired = forwards(lm, PAIRS, place, 1, active if causal else {})
        if pushed == "source":
            desired = forwards(lm, PAIRS, place, 1, {})[0]
        slope, shift = by_formula(undesired.double().numpy(), desired.double().numpy(), kind)
        one = {"scale": torch.tensor(slope).float(), "shift": torch.tensor(shift).float()}
        one |= {"low": undesired.amin(0), "high": undesired.amax(0)}
        active[place] = one
        artefact |= {f"{key}.{field}": value for field, value in one.items()}
    return artefact


CASES = [
    ("llama", "attention", True, "both"), ("llama", "both", True, "both"), ("gpt2", "mlp", True, "both"),
    ("gemma2", "both", True, "both"), ("gptj", "both", True, "both"), ("opt", "block", True, "both"),
    ("llama", "both", False, "both"), ("falcon", "mlp", False, "both"), ("mixtral", "mlp", True, "both"),
    ("gemma3", "both", True, "source"), ("bloom", "attention", True, "source"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "where", "causal", "pushed"), CASES)
def test_the_fit_is_that_of_whole_forwards_one_by_one(architecture, where, causal, pushed):
    lm = lm_of(architecture)
    artefact = fit(AcT(where=where, causal=causal, pushed=pushed, kind="gaussian"), lm)
    wanted = by_hand(lm, where, "gaussian", causal=causal, pushed=pushed)
    assert {key for key in artefact if not key.startswith("info.")} == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(
            artefact[key], value, rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize("architecture", ["phi2", "gpt_neox", "gemma3_multimodal", "olmo3", "qwen3_moe_mixed"])
def test_block_by_block_is_one_forward_after_another(architecture):
    """Without hooks the blocks give, one by one, the streams of whole forwards."""
    lm = lm_of(architecture)
    ids = torch.tensor([[5, 9, 11, 7, 3, 60, 61, 62, 63], [4, 8, 2, 6, 10, 0, 0, 0, 0]])
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    streams = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: streams.append(out[0] if isinstance(out, tuple) else out))
        for block in layout.blocks(lm.model)
    ]
    with torch.inference_mode(), generating(lm.model), blockwise.kept(lm.model) as batches:
        lm.model(input_ids=ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, wanted in enumerate(streams):
        blockwise.run(lm.model, batches, layer)
        blockwise.run(lm.model, batches, layer, onward=True)
        torch.testing.assert_close(batches[0].stream, wanted)


def test_a_model_that_works_between_its_blocks_is_refused():
    lm = tiny_lm()
    handle = layout.blocks(lm.model)[2].register_forward_pre_hook(lambda _m, args: (args[0] + 1, *args[1:]))

    class Odd(type(layout.blocks(lm.model)[1])):
        def __call__(self, hidden_states, *args, **kwargs):
            return super().__call__(hidden_states * 2, *args, **kwargs)

    fit(AcT(), lm)  # a hook that was set before is the block's own, and runs once
    handle.remove()
    layout.blocks(lm.model)[1].__class__ = Odd
    with pytest.raises(SetupError, match="changes the residual stream between blocks 0 and 1"):
        fit(AcT(), lm)
    fit(AcT(causal=False), lm)


def test_hooks_that_were_there_before_act_once():
    """As of a method that came before in a stack."""
    lm = tiny_lm()
    handle = layout.blocks(lm.model)[2].register_forward_pre_hook(lambda _m, args: (args[0] * 1.5, *args[1:]))
    found, wanted = fit(AcT(kind="gaussian"), lm), by_hand(lm, "attention", "gaussian", causal=True)
    handle.remove()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=2e-3, atol=2e-4)


def silence(lm: LM) -> None:
    """Every block but the first writes nothing."""
    for layer in range(1, len(layout.blocks(lm.model))):
        for kind in ("down", "o"):
            layout.stream_rows(lm.model, layer, kind).parts[0].parameter.zero_()


@pytest.mark.parametrize(("pushed", "wanted"), [("source", 0), ("both", 1)])
def test_what_one_place_has_equalised_the_next_leaves(pushed, wanted):
    """All blocks give the same stream, so map 1 equalises what the next ones see, unless the targets move as well."""
    lm, pairs, _, _ = planted_sink()
    silence(lm)
    options = {"where": "block", "pushed": pushed, "support": "infinite", "kind": "mean"}
    causal, at_once = (fit(AcT(causal=causal, **options), lm, pairs) for causal in (True, False))
    first = causal["layers.0.shift"]
    assert first.norm() > 1
    torch.testing.assert_close(at_once["layers.3.shift"], first, rtol=1e-4, atol=1e-4)
    for layer in (1, 4):
        torch.testing.assert_close(causal[f"layers.{layer}.shift"], wanted * first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_shift_is_found_past_the_attention_sink(architecture):
    """Undesired texts carry -direction and desired ones +direction, of length 1 each."""
    lm, pairs, direction, sink = planted_sink(architecture)

    def shift(pairs: Pairs = pairs, **options) -> torch.Tensor:
        return fit(AcT(where="block", causal=False, kind="mean", **options), lm, pairs)["layers.1.shift"]

    lone = pairs._replace(prompt=[""] * len(pairs.prompt))
    for found in (shift(), shift(lone), shift(lone, read="all")):
        assert (found - 2 * direction).norm() < 0.15
    assert abs(float(shift(read="all") @ sink)) < 0.02  # the prompt is read, too, and weakens the direction
    assert abs(float(shift(read="all", skip_first=0) @ sink)) > 1.5  # it weighs more in a shorter text


def test_read_and_skip_first_say_what_is_pooled():
    lm = tiny_lm()
    first, second = (sites.written(lm.model, layer, "attention") for layer in (0, 1))
    for read, skip in (("continuation", 0), ("all", 0), ("all", 3)):
        for causal in (True, False):
            artefact = fit(AcT(read=read, skip_first=skip, causal=causal), lm)
            one = {field: artefact[f"layers.0.attention.{field}"] for field in ("scale", "shift", "low", "high")}
            for layer, place, active in ((0, first, {}), (1, second, {first: one} if causal else {})):
                _, undesired = forwards(lm, PAIRS, place, skip, active, whole=read == "all")
                low = artefact[f"layers.{layer}.attention.low"]
                torch.testing.assert_close(low, undesired.amin(0), rtol=1e-3, atol=1e-4)


def test_the_share_inside_the_support_is_counted():
    lm = tiny_lm()
    method = AcT(where="mlp", causal=False)
    artefact = fit(method, lm)
    places = places_of(lm, "mlp")
    inside = tokens = 0.0
    for prompt, text in zip(PAIRS.prompt, PAIRS.undesired, strict=True):
        seen = {}
        hooks = [p.hook(lambda v, key=key, seen=seen: seen.setdefault(key, v)) for key, p in places.items()]
        with torch.no_grad(), hooked(hooks), method.apply(lm.model, artefact, 1.0):
            lm.model(torch.tensor([lm.encode(prompt + text)]), use_cache=False)
        for key, values in seen.items():
            read = values[0, len(lm.encode(prompt)) :]
            inside += ((read > artefact[f"{key}.low"]) & (read < artefact[f"{key}.high"])).sum().item()
            tokens += read.numel()
    assert float(artefact["info.inside_support"]) == pytest.approx(inside / tokens, abs=2e-3)
    assert 0.05 < inside / tokens < 0.95
    assert "info.inside_support" not in fit(AcT(support="infinite"), lm)


@pytest.mark.parametrize("where", ["attention", "mlp", "both", "block"])
@pytest.mark.parametrize("pushed", ["both", "source"])
def test_the_tokens_that_are_read_are_those_of_passes(where, pushed):
    lm = tiny_lm()
    method = AcT(where=where, pushed=pushed, support="infinite")
    size = sum(len(lm.encode(p + t)) for side in PAIRS[1:] for p, t in zip(PAIRS.prompt, side, strict=True))
    with counting() as count:
        fit(method, lm)
    assert 0.7 * method.passes() < count.tokens / size <= 1.1 * method.passes()
    with counting() as count:
        fit(AcT(where=where, causal=False, support="infinite"), lm)
    assert count.tokens == size and AcT(causal=False).passes() == 1


# -- steering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", ["source", "infinite"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_strength_zero_and_the_way_out_leave_every_bit(architecture, support):
    lm, method = tiny_lm(architecture), AcT(where="both", support=support)
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


def test_positive_strength_moves_towards_the_desired():
    lm, pairs, direction, _ = planted_sink()
    method = AcT(where="block", causal=False, kind="mean", support="infinite")
    artefact = fit(method, lm, pairs)
    ids = torch.tensor([lm.encode(pairs.prompt[0] + pairs.undesired[0])])

    def along(strength: float) -> float:
        with torch.no_grad(), method.apply(lm.model, artefact, strength), record(lm.model, [0]) as seen:
            lm.model(ids)
            return float(seen[0][0, 1:].mean(0) @ direction)

    assert along(0.5) == pytest.approx(along(0) + 1, abs=0.1)
    assert along(1) == pytest.approx(along(0) + 2, abs=0.2)


@pytest.mark.parametrize("architecture", ["gpt2", "phi2", "bloom", "gpt_neox", "opt"])
def test_weights_that_take_the_map_up_do_what_hooks_do(architecture):
    lm, method = lm_of(architecture), AcT(where="both", support="infinite")
    artefact, ids = fit(method, lm), torch.tensor([[5, 9, 11, 7, 3]])
    with torch.no_grad():
        base = lm.model(ids).logits
        with method.apply(lm.model, artefact, 0.7):
            got = lm.model(ids).logits
            assert not any(place.module._forward_hooks for place in places_of(lm, "both").values())
        hooks = []
        for key, place in places_of(lm, "both").items():
            scale, shift = artefact[f"{key}.scale"], artefact[f"{key}.shift"]
            hooks.append(place.hook(lambda y, a=scale, b=shift: 0.3 * y + 0.7 * (a * y + b)))
        with generating(lm.model), hooked(hooks):
            wanted = lm.model(ids).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (got - base).abs().max() > 1e-2


def test_what_can_be_exported():
    """Weights where there are biases, a vector a block for mean transport of blocks, and nothing with a support."""
    lm, attention = tiny_lm("gpt2"), AcT(support="infinite")
    effect = measure(lm, attention, fit(attention, lm), 1.0)
    assert effect.beyond is None and effect.weights and all(".attn.c_proj." in name for name in effect.weights)
    lm, blocks = tiny_lm("llama"), AcT(where="block", kind="mean", support="infinite", pushed="source")
    artefact = fit(blocks, lm)
    effect = measure(lm, blocks, artefact, 0.5)
    assert effect.beyond is None and not effect.weights and sorted(effect.vectors) == [0, 1, 2, 3, 4]
    for layer, vector in effect.vectors.items():
        torch.testing.assert_close(vector, 0.5 * artefact[f"layers.{layer}.shift"])
    assert measure(lm, AcT(), fit(AcT(), lm), 1.0).beyond is not None


def test_wrong_settings_and_missing_data():
    lm = tiny_lm()
    for options, message in (
        ({"kind": "affine"}, "method.kind='affine': allowed are linear, mean, gaussian"),
        ({"where": "heads"}, "allowed are auto, attention, mlp, both, block"),
        ({"support": "all"}, "allowed are source, infinite"),
        ({"pushed": "target"}, "allowed are both, source"),
        ({"read": "last"}, "allowed are all, continuation"),
        ({"skip_first": -1}, "is negative"),
        ({"max_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(SetupError, match=message):
            fit(AcT(**options), lm)
    with pytest.raises(SetupError, match="act learns from contrast pairs and got none"):
        AcT().fit(lm.model, lm.tokenizer, FitData())
    with pytest.raises(SetupError, match="act learns from contrast pairs and got 1; give at least 2"):
        fit(AcT(), lm, Pairs(*(column[:1] for column in PAIRS)))
    same = Pairs([""] * 3, [" a", " b", " c"], [" c", " a", " b"])
    with pytest.raises(SetupError, match="the desired texts are the undesired ones, in whatever order"):
        fit(AcT(), lm, same)


def test_an_artefact_of_another_model_or_other_places():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(AcT(), lm)
    with pytest.raises(SetupError, match=r"scale \(36,\) was not fitted on this model, whose width is 28"):
        with AcT().apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.0\.mlp\.scale was not fitted on this model"):
        with AcT(where="mlp").apply(lm.model, artefact, 1):
            pass
