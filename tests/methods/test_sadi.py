from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from bench.export.effect import measure
from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import prefill
from methods import generating, layout, sites
from methods.act import AcT
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.intervention import hooked
from methods.sadi import SADI
from methods.stack import Stack
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS
from tests.tiny import tiny_lm

TEXT = ("The old tree near", " the river sings")
ELEMENTS = ["heads", "neurons", "hidden"]


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def masks(artefact):
    return {int(key.split(".")[1]): one.tolist() for key, one in artefact.items() if key.startswith("layers.")}


def place_of(lm, layer, element):
    if element == "heads":
        return sites.heads(lm.model, layer).place
    return sites.neurons(lm.model, layer) if element == "neurons" else sites.projected(lm.model, layer, "mlp")


@contextmanager
def watched(lm, element):
    """(T, width) of the first row at every block in the latest forward, behind every hook that was set before."""
    seen = {}

    def keep(layer):
        def function(hidden):
            seen[layer] = hidden[0].clone()
            return hidden

        return function

    with hooked(place_of(lm, layer, element).hook(keep(layer)) for layer in range(len(layout.blocks(lm.model)))):
        yield seen


def read(lm, head, tail):
    """Logits (T, V) of a text that is read at once, as in a likelihood."""
    ids = torch.tensor([head + tail])
    return lm.read(lm.start(torch.tensor([len(head)])), ids, torch.ones_like(ids, dtype=torch.bool))[0]


def words(lm):
    return lm.encode(TEXT[0]), lm.tokenizer(TEXT[1]).input_ids[1:]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_elements_by_hand(architecture, element):
    """Those of the largest positive mean difference at the last token; a head's is that of its entries' mean."""
    lm, rows, seen = tiny_lm(architecture), [], []
    modules = [
        block.get_submodule((layout.of(lm.model).o if element == "heads" else layout.of(lm.model).value)[0])
        for block in layout.blocks(lm.model)
    ]
    for side in (PAIRS.desired, PAIRS.undesired):
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            seen.clear()
            handles = [
                module.register_forward_hook(lambda _, args, out: seen.append(out if element == "hidden" else args[0]))
                for module in modules
            ]
            with torch.inference_mode():
                lm.model(torch.tensor([lm.tokenizer(prompt + text).input_ids]))
            for handle in handles:
                handle.remove()
            last = torch.stack([one.reshape(-1, one.shape[-1])[-1] for one in seen]).double()  # (L, width)
            if element == "heads":
                last = last.view(len(last), lm.model.config.num_attention_heads, -1).mean(-1)
            rows.append(last.numpy())
    difference = np.mean(rows[:8], 0) - np.mean(rows[8:], 0)  # (L, E)
    count = 7
    order = [i for i in np.argsort(-difference, axis=None)[:count] if difference.flat[i] > 0]
    wanted = [tuple(map(int, np.unravel_index(i, difference.shape))) for i in order]
    artefact = fit(SADI(element=element, top=count), lm)
    assert {(layer, one) for layer, chosen in masks(artefact).items() for one in chosen} == set(wanted)
    assert [tuple(one) for one in artefact["info.elements"].tolist()] == wanted
    torch.testing.assert_close(
        artefact["info.differences"].double(), torch.from_numpy(difference.flat[order].copy()), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_planted_element_is_found(element):
    """It is larger in desired texts; one that is smaller by more is left alone, as one that never differs."""
    lm, block, number = tiny_lm(), 3, 2
    wanted = {tuple(lm.tokenizer(p + t).input_ids) for p, t in zip(PAIRS.prompt, PAIRS.desired, strict=True)}
    size = sites.heads(lm.model, block).size if element == "heads" else 1
    seen = {}

    def look(_module, _args, kwargs):
        rows = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
        seen["sign"] = torch.tensor([float(tuple(row[real].tolist()) in wanted) for row, real in rows])

    def write(hidden):
        moved = hidden.clone()
        for at, by in ((number, 1000.0), (number + 1, -5000.0), (number + 2, 0.0)):
            moved[..., at * size : (at + 1) * size] += by * seen["sign"][:, None, None]
        return moved

    place = place_of(lm, block, element)
    handle = lm.model.register_forward_pre_hook(look, with_kwargs=True)
    with hooked([place.hook(write)]):
        artefact = fit(SADI(element=element, top=1), lm)
        swapped = fit(SADI(element=element, top=1), lm, Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired))
    handle.remove()
    assert masks(artefact) == {block: [number]} and masks(swapped) == {block: [number + 1]}
    assert float(artefact["info.differences"][0]) == pytest.approx(1000, rel=0.05)


def test_a_share_of_the_elements_and_fewer_positive_ones():
    lm = tiny_lm()
    assert fit(SADI(element="neurons", top=0.02), lm)["info.chosen"] == 5  # of 5 blocks of 52
    every = fit(SADI(top=30), lm)
    assert 0 < every["info.chosen"] < 30 and (every["info.differences"] > 0).all()
    assert fit(SADI(top=1e-6), lm)["info.chosen"] == 1


@pytest.mark.every(4)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, [False, True, True]),
        ({"boundary": False}, [False, False, True]),
        ({"scope": "last"}, [False, True, False]),
        ({"scope": "prompt"}, [True, True, False]),
        ({"scope": "all"}, [True, True, True]),
    ],
)
def test_only_chosen_elements_move_and_in_scope(architecture, element, options, moved):
    """At the first block with any: they are times 1 + delta, everything else is bit-equal."""
    lm = tiny_lm(architecture)
    method = SADI(element=element, top=5, **options)
    artefact, (head, tail) = fit(method, lm), words(lm)
    layer = min(masks(artefact))
    size = sites.heads(lm.model, layer).size if element == "heads" else 1
    with watched(lm, element) as seen:
        logits = read(lm, head, tail)
        base = seen[layer]
    with lm.steered(method, artefact, 2.0) as steered, watched(lm, element) as seen:
        changed = read(steered, head, tail)
        after = seen[layer]
    chosen = torch.zeros(base.shape[1] // size, dtype=torch.bool)
    chosen[masks(artefact)[layer]] = True
    chosen = chosen.repeat_interleave(size)
    assert torch.equal(after[:, ~chosen], base[:, ~chosen])
    for column, expected in zip((0, len(head) - 1, len(head)), moved, strict=True):
        assert torch.equal(after[column, chosen], (3.0 if expected else 1.0) * base[column, chosen])
    if method.scope in ("generation", "last"):
        first = len(head) - (method.scope == "last" or method.boundary)
        assert torch.equal(changed[:first], logits[:first]) and not torch.equal(changed[first], logits[first])


def test_blocks_react_in_place_and_not_when_put_back():
    """Behind the first block with elements, the authors' way keeps what the unsteered run has there."""
    lm = tiny_lm()
    head, tail = words(lm)
    with watched(lm, "heads") as seen:
        read(lm, head, tail)
        base = dict(seen)
    found = {}
    for frozen in (False, True):
        method = SADI(top=8, frozen=frozen, scope="last")
        artefact = fit(method, lm)
        assert len(masks(artefact)) > 1
        with lm.steered(method, artefact, 4.0) as steered, watched(lm, "heads") as seen:
            read(steered, head, tail)
            found[frozen] = dict(seen)
    at, last = len(head) - 1, max(masks(artefact))
    size = sites.heads(lm.model, 0).size
    for layer in range(5):
        factor = torch.ones(6, size)
        factor[masks(artefact).get(layer, [])] = 5.0
        assert torch.equal(found[True][layer][at], base[layer][at] * factor.flatten())
        assert torch.equal(found[True][layer][:at], base[layer][:at])
    assert (found[False][last][at] - found[True][last][at]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("options", [{}, {"scope": "last"}, {"scope": "last", "frozen": True}])
def test_a_likelihood_is_steered_as_a_sample_is(architecture, options):
    """At once, token by token from the cache, and with a beginning that several contexts share."""
    lm, method = tiny_lm(architecture), SADI(top=5, **options)
    artefact, (head, tail) = fit(method, lm), words(lm)
    base = read(lm, head, tail)
    with lm.steered(method, artefact, 3.0) as steered:
        whole = read(steered, head, tail)
        rows, last = prefill(steered, [head])
        steps = [last[0]]
        for token in tail:
            steps.append(steered.read(rows, torch.tensor([[token]]), torch.tensor([[True]]))[0, -1])
        half = steered.start(torch.tensor([len(head)]))
        steered.read(half, torch.tensor([head[:3]]), torch.ones(1, 3, dtype=torch.bool))
        parts = steered.read(half, torch.tensor([head[3:] + tail]), torch.ones(1, len(head + tail) - 3).bool())[0]
        prompts = [TEXT[0] + " and the", TEXT[0]]
        together = log_likelihood(steered, prompts, [TEXT[1]] * 2)
        alone = [log_likelihood(steered, [prompt], [TEXT[1]])[0] for prompt in prompts]
    torch.testing.assert_close(torch.stack(steps), whole[len(head) - 1 :], atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(parts, whole[3:], atol=2e-3, rtol=1e-4)
    assert (whole - base)[len(head) - 1 :].abs().max() > 1e-2
    for one, other in zip(together, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_generate_puts_back_the_prompts_last_token_too():
    """`apply` before `generating`, as the README has it; the first new token's logits are those of `read`."""
    lm, method = tiny_lm(), SADI(top=5, scope="last", frozen=True)
    artefact, (head, _) = fit(method, lm), words(lm)
    ids = torch.tensor([head])
    with lm.steered(method, artefact, 6.0) as steered:
        wanted = prefill(steered, [head])[1]
    with method.apply(lm.model, artefact, 6.0), generating(lm.model):
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    torch.testing.assert_close(out.logits[0], wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"scope": "last", "frozen": True}])
def test_no_change_at_0_next_to_none_beside_it(options):
    lm, method = tiny_lm(), SADI(top=5, **options)
    artefact, ids = fit(method, lm), [lm.encode(TEXT[0])]
    base = prefill(lm, ids)[1]
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    with lm.steered(method, artefact, 1e-7) as steered:  # a factor of 1
        torch.testing.assert_close(prefill(steered, ids)[1], base, atol=1e-3, rtol=1e-4)
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    with pytest.raises(ZeroDivisionError), lm.steered(method, artefact, 5) as steered:
        assert not torch.equal(prefill(steered, ids)[1], base)
        raise ZeroDivisionError
    assert torch.equal(prefill(lm, ids)[1], base)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in lm.model.modules())


def test_minus_1_takes_the_elements_away():
    lm, method = tiny_lm(), SADI(top=5, scope="all")
    artefact, (head, tail) = fit(method, lm), words(lm)
    with lm.steered(method, artefact, -1.0) as steered, watched(lm, "heads") as seen:
        read(steered, head, tail)
        for layer, chosen in masks(artefact).items():
            assert not seen[layer].view(len(head + tail), 6, -1)[:, chosen].any()


def test_it_cannot_be_exported():
    lm, method = tiny_lm(), SADI(top=5, scope="all")
    assert measure(lm, method, fit(method, lm), 2.0).beyond is not None


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"element": "rows"}, "allowed are heads, neurons, hidden"),
        ({"read": "first"}, "allowed are all, continuation, last"),
        ({"scope": "front"}, "allowed are generation, last, prompt, all"),
        ({"skip_first": -1}, "is negative"),
        ({"top": 0}, "expected a number of elements of at least 1"),
        ({"top": 2.5}, "expected a number of elements of at least 1"),
        ({"frozen": True}, "method.frozen=true with method.scope=generation: .* set method.scope=last"),
    ):
        with pytest.raises(SetupError, match=message):
            SADI(**options).check(lm.model)
    with pytest.raises(SetupError, match="mixtral: the mlp of block 0 writes through several matrices"):
        SADI(element="neurons").check(lm_of("mixtral").model)
    with pytest.raises(SetupError, match="sadi learns from contrast pairs and got 1"):
        fit(SADI(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="none of 30 heads has a larger mean in desired"):
        fit(SADI(), lm, PAIRS._replace(undesired=PAIRS.desired))
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"layers\.\d\.elements was not fitted on this model, which has no such heads"):
        with SADI().apply(other.model, {"layers.1.elements": torch.tensor([5])}, 1):
            pass
    with pytest.raises(SetupError, match="layers.4.elements was not fitted on this model"):
        with SADI().apply(other.model, {"layers.4.elements": torch.tensor([0])}, 1):
            pass


def test_a_frozen_reading_is_not_had_from_single_blocks():
    lm, frozen = tiny_lm(), SADI(frozen=True, scope="last")
    for causal in (True, False):
        method = Stack(parts={"sadi": frozen, "act": AcT(causal=causal)}, at={"sadi": 1, "act": 1})
        with pytest.raises(SetupError, match="put act before sadi") if causal else nullcontext():
            method.fit(lm.model, lm.tokenizer, FitData(PAIRS))


def test_skip_first_leaves_out_the_beginning_of_each_text():
    lm, means = tiny_lm(), []
    for side in (PAIRS.desired, PAIRS.undesired):
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            with watched(lm, "hidden") as seen:
                read(lm, lm.tokenizer(prompt + text).input_ids, [])
            means.append(torch.stack([seen[layer][2:].double().mean(0) for layer in sorted(seen)]))  # (L, D)
    difference = torch.stack(means[:8]).mean(0) - torch.stack(means[8:]).mean(0)
    found = fit(SADI(element="hidden", top=9, read="all", skip_first=2), lm)["info.differences"].double()
    torch.testing.assert_close(found, difference.flatten().sort(descending=True).values[:9], atol=1e-5, rtol=1e-4)


def test_rounding_of_values_that_cancel_out_is_no_difference(monkeypatch):
    """The first element is 1000 and -1000 in turn, and larger in the desired texts by less than a 1e-5 of that."""
    lm, turns = tiny_lm(), torch.tensor([1000.0, -1000.0] * 4)
    sides = [torch.zeros(8, 5 * 52), torch.zeros(8, 5 * 52)]
    sides[0][:, 0], sides[1][:, 0], sides[0][:, 7] = turns + 1e-3, turns, 1e-4
    given = iter(sides)
    monkeypatch.setattr(SADI, "_features", lambda *_: next(given))
    assert masks(fit(SADI(element="neurons", top=2), lm)) == {0: [7]}
