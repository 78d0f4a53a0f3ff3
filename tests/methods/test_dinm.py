import random
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from methods import layout
from methods.base import Examples, FitData, Pairs
from methods.dinm import DINM
from methods.directions import stream_distances
from methods.errors import SetupError
from methods.intervention import Hook, hooked
from methods.training import completion_loss, encoded, encoded_pairs
from tests.architectures import lm_of
from tests.tiny import tiny_lm

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
BACKGROUND = ["The long road home is near the river.", "People walk along the water and talk.", "A bird sings."]
METHOD = DINM(steps=4, learning_rate=1e-2, batch_size=16)


def toy(count: int, seed: int) -> Pairs:
    drawn = random.Random(seed)
    prompts = [" ".join(drawn.choices(WORDS, k=2 + i % 2)) for i in range(count)]
    return Pairs(prompts, [" love" + " bread" * (i % 2) for i in range(count)], [" hate the dog"] * count)


PAIRS = toy(8, 1)
DATA = FitData(pairs=PAIRS, background=BACKGROUND)


@pytest.fixture(scope="module")
def lm():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight *= 4  # a model that can be sure
    return lm


def weights(lm):
    return {name: one.detach().clone() for name, one in lm.model.named_parameters()}


def changes(artefact):
    return {key.removeprefix("change."): one for key, one in artefact.items() if key.startswith("change.")}


def texts(lm):
    return encoded_pairs(lm.model, lm.tokenizer, PAIRS, 128)[:2]


def ordinary(lm):
    return encoded(lm.model, lm.tokenizer, Examples([""] * 3, BACKGROUND), "texts", 128)[0]


def test_distances_by_hand(lm):
    """Text by text, without padding, up to the end of the shorter one; the last block before the final norm."""
    total, blocks = torch.zeros(5), layout.blocks(lm.model)
    for desired, undesired in zip(*texts(lm), strict=True):
        streams = []
        for text in (desired, undesired):
            seen = []
            handles = [one.register_forward_hook(lambda _m, _a, out, to=seen: to.append(out[0])) for one in blocks]
            with torch.no_grad():
                lm.model(input_ids=torch.tensor([text.tokens]), use_cache=False)
            for handle in handles:
                handle.remove()
            streams.append(seen)
        shorter = min(len(desired.tokens), len(undesired.tokens))
        total += torch.tensor([(one[:shorter] - two[:shorter]).norm() for one, two in zip(*streams, strict=True)])
    torch.testing.assert_close(stream_distances(lm.model, *texts(lm), batch_size=3).clone(), total / 8)


@pytest.mark.parametrize("planted", [1, 3])
def test_the_block_that_tells_the_texts_apart_is_edited(lm, planted):
    """Behind it the stream is 50 times as long, and the next block takes that back; nothing else moves."""
    blocks, before = layout.blocks(lm.model), weights(lm)
    widen = Hook(blocks[planted], "output", lambda h: 50 * h)
    narrow = Hook(blocks[planted + 1], "output", lambda h: h / 50)
    with hooked([widen, narrow]):
        artefact = METHOD.fit(lm.model, lm.tokenizer, DATA)
    name = f"model.layers.{planted}.mlp.down_proj.weight"
    assert int(artefact["info.layer"]) == planted and set(changes(artefact)) == {name}
    with METHOD.apply(lm.model, artefact, 1.0):
        differ = {key for key, one in weights(lm).items() if not torch.equal(one, before[key])}
    assert differ == {name}


def by_formula(lm, method, name):
    """Adam written out, over `functional_call`; every pair and every ordinary text is in each step's batch."""
    desired, background = texts(lm)[0], ordinary(lm)
    start = dict(lm.model.named_parameters())[name].detach().clone()

    def logits(text, weight):
        ids = {"input_ids": torch.tensor([text.tokens]), "use_cache": False}
        return functional_call(lm.model, {name: weight}, (), ids).logits[0].double().log_softmax(-1)

    def loss(weight):
        said = [(logits(text, weight), text) for text in desired]
        each = [-one[i - 1, text.tokens[i]] for one, text in said for i in range(text.prompt, len(text.tokens))]
        apart = []
        for text in background if method.kl_weight else ():
            with torch.no_grad():
                usual = logits(text, start)[text.prompt - 1 : -1]
            now = logits(text, weight)[text.prompt - 1 : -1]
            apart.append((usual.exp() * (usual - now)).sum(-1))
        kept = method.kl_weight * torch.cat(apart).mean() if apart else 0.0
        return method.edit_weight * torch.stack(each).mean() + kept

    weight, first, second = start.clone(), 0.0, 0.0
    for step in range(1, method.steps + 1):
        leaf = weight.clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
        weight = weight - method.learning_rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
    return weight - start


@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 5.0])
def test_the_change_is_by_formula(lm, kl_weight):
    """Five times the KL's weight gives another change than once, and the learning rate stays as it is."""
    method = replace(METHOD, layer=2, kl_weight=kl_weight)
    name = "model.layers.2.mlp.down_proj.weight"
    found = changes(method.fit(lm.model, lm.tokenizer, DATA))[name]
    wanted = by_formula(lm, method, name)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_a_kl_without_gradient_is_no_kl(lm):
    """As the authors' code has it: the same bits as without the term. With its gradient the drift is smaller."""
    method = replace(METHOD, layer=2, steps=10)
    off, released, kept = (
        replace(method, **options).fit(lm.model, lm.tokenizer, DATA)
        for options in ({"kl_weight": 0.0}, {"kl_gradient": False}, {"kl_weight": 5.0})
    )
    for name, one in changes(off).items():
        assert torch.equal(one, changes(released)[name]) and not torch.equal(one, changes(kept)[name])
    assert float(kept["info.drift"]) < 0.5 * float(off["info.drift"])


def test_the_drift_is_the_divergence_of_before_from_after(lm):
    """KL(before || after) in nats per token by hand, text by text, and not KL(after || before)."""
    artefact = replace(METHOD, layer=2, steps=10, kl_weight=0.0).fit(lm.model, lm.tokenizer, DATA)

    def rows():
        with torch.no_grad():
            each = [lm.model(torch.tensor([one.tokens])).logits[0, one.prompt - 1 : -1] for one in ordinary(lm)]
        return torch.cat(each).double().log_softmax(-1)  # (C, V)

    before = rows()
    with METHOD.apply(lm.model, artefact, 1.0):
        after = rows()
    wanted, other = (float((p.exp() * (p - q)).sum(-1).mean()) for p, q in ((before, after), (after, before)))
    assert abs(wanted - other) > 0.05 * wanted
    assert float(artefact["info.drift"]) == pytest.approx(wanted, rel=1e-3)


def test_a_loss_that_is_small_enough_ends_it(lm):
    """Below 1e-4, as in the authors' code; if it is so at the start, nothing would be changed."""
    small = replace(METHOD, layer=2, edit_weight=1e-7, kl_weight=0.0)
    with pytest.raises(SetupError, match="dinm: the fit changed nothing, .* took no step"):
        small.fit(lm.model, lm.tokenizer, DATA)
    larger = replace(small, edit_weight=1e-3).fit(lm.model, lm.tokenizer, DATA)
    assert all(one.any() for one in changes(larger).values())
    assert 1e-7 * float(larger["info.loss_before"]) < 1e-4


def test_the_desired_texts_become_likelier(lm):
    artefact = replace(METHOD, steps=10).fit(lm.model, lm.tokenizer, DATA)
    desired, found = texts(lm)[0], []
    for strength in (-0.5, 0.0, 0.5, 1.0):
        with METHOD.apply(lm.model, artefact, strength), torch.no_grad():
            found.append(float(completion_loss(lm.model, desired)))
    assert found == sorted(found, reverse=True) and found[-1] < found[1] - 0.3
    assert found[-1] == pytest.approx(float(artefact["info.loss_after"]), rel=1e-4)


def test_undesired_texts_only_find_the_block(lm):
    method = replace(METHOD, layer=2)
    other = DATA._replace(pairs=PAIRS._replace(undesired=[" old tree by"] * 8))
    one, two = (method.fit(lm.model, lm.tokenizer, data) for data in (DATA, other))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


@pytest.mark.parametrize(("architecture", "count"), [("gpt2", 1), ("opt", 1), ("mixtral", 1), ("qwen3_moe", 1)])
def test_one_tensor_changes_and_no_bias(architecture, count):
    """Of a mixture the one that holds every expert's value matrix."""
    lm = lm_of(architecture)
    artefact = replace(METHOD, layer=1).fit(lm.model, lm.tokenizer, DATA)
    (found,) = changes(artefact).items()
    assert found[0].endswith("weight" if architecture in ("gpt2", "opt") else "down_proj") and found[1].any()
    if architecture in ("mixtral", "qwen3_moe"):
        assert found[1].shape[0] == 3


def test_all_is_undone_and_strength_0_touches_nothing(lm):
    before = weights(lm)
    artefact = METHOD.fit(lm.model, lm.tokenizer, DATA)
    versions = {name: one._version for name, one in lm.model.named_parameters()}
    with METHOD.apply(lm.model, artefact, 0.0):
        assert versions == {name: one._version for name, one in lm.model.named_parameters()}
    with pytest.raises(KeyError), METHOD.apply(lm.model, artefact, 1.0):
        raise KeyError
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())
    assert not any(one.requires_grad or one.grad is not None for one in lm.model.parameters())


def test_equal_texts_tell_no_block(lm):
    same = PAIRS._replace(undesired=PAIRS.desired)
    with pytest.raises(SetupError, match="have the same features at every block"):
        METHOD.fit(lm.model, lm.tokenizer, DATA._replace(pairs=same))


def test_missing_data_is_a_clear_error(lm):
    for background, count in ((None, "got none; set"), ([], "got none; set"), (["", ""], "got 2, all empty; set")):
        with pytest.raises(SetupError, match=f"^dinm .*{count} background=wiki, or background=texts background.path="):
            METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS, background=background))
    with pytest.raises(SetupError, match="give at least 2"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(background=BACKGROUND))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": 5}, "out of range"), ({"steps": 0}, "at least 1"), ({"edit_weight": 0.0}, "at least 1"),
     ({"kl_weight": -1.0}, "at least 1"), ({"learning_rate": 0.0}, "above 0")],
)  # fmt: skip
def test_bad_options_are_refused(lm, options, message):
    with pytest.raises(SetupError, match=message):
        replace(METHOD, **options).check(lm.model)


def test_ordinary_texts_are_drawn_by_the_seed_after_its_own(lm, monkeypatch):
    seen, drift = [], DINM._drift
    monkeypatch.setattr(DINM, "_drift", lambda self, *given: seen.append(given[-1]) or drift(self, *given))
    replace(METHOD, layer=2, batch_size=2, seed=5).fit(lm.model, lm.tokenizer, DATA)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(6)).tolist()
    batches = [[ordinary(lm)[i].tokens for i in part] for part in (order[:2], order[2:])]
    assert [[text.tokens for text in texts] for texts in seen] == [batches[i % 2] for i in range(4)]
