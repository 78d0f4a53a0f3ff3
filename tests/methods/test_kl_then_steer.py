import random
from dataclasses import replace

import pytest
import torch

from methods import layout
from methods.adapter import adapter, lora_parameters
from methods.base import Examples, FitData, Pairs
from methods.caa import CAA
from methods.errors import SetupError
from methods.intervention import Hook, Positions, at, hooked
from methods.kl_then_steer import KLThenSteer, pushing
from methods.training import encoded, trainable
from tests.tiny import tiny_lm

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
BACKGROUND = [
    "The long road home is near the river.", "People walk along the water and talk.", "A bird sings in a tree.",
    "We talk about bread.", "The lazy dog and the fox", "work and weather, and the old road", "A small fox jumps",
    "Bread and water near the old tree",
]  # fmt: skip
METHOD = KLThenSteer(rank=4, alpha=8, learning_rate=1e-2, epochs=12, batch_size=8, share=1.0, layer=2)
QUICK = replace(METHOD, epochs=1)


def toy(count: int, seed: int) -> Pairs:
    drawn = random.Random(seed)
    prompts = [" ".join(drawn.choices(WORDS, k=2 + i % 2)) for i in range(count)]
    return Pairs(prompts, [" love" + " bread" * (i % 2) for i in range(count)], [" hate the dog"] * count)


DATA = FitData(pairs=toy(8, 1), background=BACKGROUND)
TEXT = "The old fox and the small bird walk home"


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def fitted(lm):
    return METHOD.fit(lm.model, lm.tokenizer, DATA)


def weights(lm):
    return {name: one.detach().clone() for name, one in lm.model.named_parameters()}


def ordinary(lm, texts=BACKGROUND):
    return encoded(lm.model, lm.tokenizer, Examples([""] * len(texts), list(texts)), "texts", 128)[0]


def logits(lm, tokens, prompt=1):
    ids = torch.tensor([tokens])
    one = torch.ones(1, dtype=torch.long)
    with torch.no_grad(), at(Positions(0 * one, len(tokens) * one, 0 * one, prompt * one)):
        return lm.model(input_ids=ids, use_cache=False).logits[0]


def kl_by_hand(usual, now):
    """Sum over columns of KL(usual || now), and their number; the last column tells nothing of the text."""
    usual, now = (one[:-1].double().log_softmax(-1) for one in (usual, now))
    return (usual.exp() * (usual - now)).sum(), len(usual)


def steered_by_hand(lm, method, vector, texts, c, steered_first=False):
    """Mean over all tokens of all texts, one text at a time and without padding."""
    total, count, block = 0.0, 0, layout.blocks(lm.model)[method.layer]
    for text, coefficient in zip(texts, c.tolist(), strict=True):
        usual = logits(lm, text.tokens)
        with hooked([Hook(block, "output", lambda h, c=coefficient: h + c * vector)]):
            now = logits(lm, text.tokens)
        found, columns = kl_by_hand(now, usual) if steered_first else kl_by_hand(usual, now)
        total, count = total + float(found), count + columns
    return total / count


COEFFICIENTS = torch.tensor([0.5, -0.2, 0.0, 1.0, -1.0, 0.3, 0.1, -0.4])


@pytest.mark.parametrize("kl_from", ["unsteered", "steered"])
def test_an_untrained_adapter_leaves_the_kl_of_the_steered_base(lm, fitted, kl_from):
    method, vector = replace(METHOD, kl_from=kl_from), fitted["layers.2.direction"]
    wanted = steered_by_hand(lm, method, vector, ordinary(lm), COEFFICIENTS, kl_from == "steered")
    with adapter(lm.model, 4, 8, 0) as lora, torch.no_grad():
        found = method.steered_divergence(lm.model, lora, vector, COEFFICIENTS, ordinary(lm))
    assert float(found) == pytest.approx(wanted, rel=1e-4)
    assert float(found) > 0.01


def test_without_a_push_there_is_nothing_to_learn(lm, fitted):
    vector = fitted["layers.2.direction"]
    with adapter(lm.model, 4, 8, 0) as lora:
        parameters = list(lora_parameters(lm.model).values())
        sizes = []
        for c in (0 * COEFFICIENTS, COEFFICIENTS):
            with trainable(parameters):
                loss = METHOD.steered_divergence(lm.model, lora, vector, c, ordinary(lm))
                found = torch.autograd.grad(loss, parameters)
            sizes.append(sum(float(one.norm()) for one in found))
    assert sizes[0] < 1e-4 * sizes[1]


def test_the_teacher_has_neither_adapter_nor_vector(lm, fitted):
    """A student that has an adapter and is not pushed is compared with the base model, not with itself."""
    vector, texts = fitted["layers.2.direction"], ordinary(lm)[:1]
    with adapter(lm.model, 4, 8, 0) as lora:
        generator = torch.Generator().manual_seed(0)
        for parameter in lora_parameters(lm.model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        with torch.no_grad():
            found = METHOD.steered_divergence(lm.model, lora, vector, torch.zeros(1), texts)
        adapted = logits(lm, texts[0].tokens)
    total, count = kl_by_hand(logits(lm, texts[0].tokens), adapted)
    assert float(found) == pytest.approx(float(total) / count, rel=1e-4)


def test_training_takes_the_side_effect_away(lm, fitted):
    """On texts that it was not trained on too: the KL of the steered model to the base, with and without the LoRA."""
    assert float(fitted["info.drift_after"]) < 0.6 * float(fitted["info.drift_before"])
    unseen = ordinary(lm, [TEXT, "People talk about the weather", "The dog is near the river"])
    plain = replace(METHOD, epochs=0)
    found = []
    for method in (plain, METHOD):
        total, count = 0.0, 0
        for text in unseen:
            usual = logits(lm, text.tokens)
            with method.apply(lm.model, fitted, 0.5):
                one, columns = kl_by_hand(usual, logits(lm, text.tokens))
            total, count = total + float(one), count + columns
        found.append(total / count)
    assert found[1] < 0.8 * found[0]


def test_the_vector_is_caas_at_the_length_of_the_stream(lm, fitted):
    """Without the LoRA it is CAA of that block, steering all tokens, at strength times the mean residual norm."""
    plain = replace(METHOD, epochs=0)
    artefact = plain.fit(lm.model, lm.tokenizer, DATA)
    assert not any(key.startswith("adapter.") for key in artefact)
    vector = artefact["layers.2.direction"]
    assert torch.equal(vector, fitted["layers.2.direction"])
    assert float(vector.norm()) == pytest.approx(float(artefact["info.residual_norm"]), rel=1e-5)
    caa = CAA(layer=2, scope="all")
    other = caa.fit(lm.model, lm.tokenizer, DATA)
    length, residual = float(other["info.direction_norm"]), float(other["info.residual_norm"])
    tokens = lm.encode(TEXT)
    with plain.apply(lm.model, artefact, 0.3):
        found = logits(lm, tokens)
    with caa.apply(lm.model, other, 0.3 * residual / length):
        torch.testing.assert_close(found, logits(lm, tokens), atol=1e-4, rtol=1e-5)


def test_the_direction_points_to_the_desired_texts(lm, fitted):
    """And with swapped labels to the other side."""
    pairs = Pairs(DATA.pairs.prompt, DATA.pairs.undesired, DATA.pairs.desired)
    swapped = replace(QUICK, epochs=0).fit(lm.model, lm.tokenizer, DATA._replace(pairs=pairs))
    one, other = fitted["layers.2.direction"], swapped["layers.2.direction"]
    assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(-1, abs=1e-5)


def test_the_strength_scales_the_vector_and_not_the_adapter(lm, fitted):
    block, seen = layout.blocks(lm.model)[2], []
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    try:
        changed = []
        for strength in (0.1, 0.5):
            with METHOD.apply(lm.model, fitted, strength):
                logits(lm, lm.encode(TEXT))
                changed.append(weights(lm))
    finally:
        handle.remove()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(changed[0][name], changed[1][name])
    before = weights(lm)[name]
    up, down = (fitted[f"adapter.{name}.{part}"].double() for part in ("up", "down"))
    torch.testing.assert_close(changed[0][name].double(), before.double() + up @ down, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(seen[0], seen[1])  # our hook stands before the method's, so both saw the adapter alone


def test_steering_acts_where_the_scope_says(lm, fitted):
    tokens = lm.encode(TEXT)
    base = logits(lm, tokens, prompt=5)
    for scope, first in (("all", 0), ("generation", 4)):
        method = replace(METHOD, epochs=0, scope=scope)
        with method.apply(lm.model, fitted, 0.5):
            moved = (logits(lm, tokens, prompt=5) - base).abs().amax(-1) > 1e-5
        assert moved.tolist() == [column >= first for column in range(len(tokens))]


def test_most_texts_are_trained_without_a_push():
    """Of the others it is uniform, with both signs, drawn for each text."""
    drawn = torch.cat(replace(METHOD, share=0.125, coefficient=2.0).coefficients([16] * 1000))
    pushed = drawn[drawn != 0]
    assert len(pushed) / len(drawn) == pytest.approx(0.125, abs=0.01)
    assert float(pushed.abs().max()) <= 2 and float(pushed.abs().mean()) == pytest.approx(1.0, abs=0.05)
    assert float((pushed > 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    own = METHOD.coefficients([3, 2])
    assert [len(one) for one in own] == [3, 2] and len({float(c) for one in own for c in one}) == 5


def test_coefficient_bounds_and_seed_draw_the_pushes():
    drawn, other = (torch.cat(replace(METHOD, seed=seed).coefficients([8] * 4)) for seed in (0, 1))
    assert float(drawn.abs().max()) <= 0.5 and not torch.equal(drawn, other)


def test_strength_0_touches_nothing_and_all_is_undone(lm, fitted):
    before, base = weights(lm), logits(lm, lm.encode(TEXT))
    versions = {name: one._version for name, one in lm.model.named_parameters()}
    with METHOD.apply(lm.model, fitted, 0.0):
        assert versions == {name: one._version for name, one in lm.model.named_parameters()}
        assert torch.equal(logits(lm, lm.encode(TEXT)), base)
    with pytest.raises(KeyError), METHOD.apply(lm.model, fitted, 0.3):
        raise KeyError
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())
    assert torch.equal(logits(lm, lm.encode(TEXT)), base)


def test_an_artefact_without_adapter_or_layer_is_refused(lm, fitted):
    bare = {key: one for key, one in fitted.items() if not key.startswith("adapter.")}
    with pytest.raises(SetupError, match="holds no adapter"), METHOD.apply(lm.model, bare, 0.3):
        pass
    with pytest.raises(SetupError, match="not fitted"), replace(METHOD, layer=3).apply(lm.model, fitted, 0.3):
        pass


def test_missing_data_and_equal_texts_are_refused(lm):
    for background, count in ((None, "got none; set"), ([], "got none; set"), ([""], "got 1, all empty; set")):
        with pytest.raises(SetupError, match=f"^kl_then_steer .*{count} background=wiki, or background=texts"):
            QUICK.fit(lm.model, lm.tokenizer, DATA._replace(background=background))
    with pytest.raises(SetupError, match="give at least 2"):
        QUICK.fit(lm.model, lm.tokenizer, DATA._replace(pairs=None))
    same = DATA.pairs._replace(undesired=DATA.pairs.desired)
    with pytest.raises(SetupError, match="have the same mean at block 2"):
        QUICK.fit(lm.model, lm.tokenizer, DATA._replace(pairs=same))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": 5}, "out of range"), ({"share": 0.0}, "above 0"), ({"coefficient": -1.0}, "above 0"),
     ({"scope": "prompt"}, "all, generation"), ({"kl_from": "base"}, "unsteered, steered"), ({"rank": 0}, "at least 1"),
     ({"epochs": -1}, "at least 1")],
)  # fmt: skip
def test_bad_options_are_refused(lm, options, message):
    with pytest.raises(SetupError, match=message):
        replace(METHOD, **options).check(lm.model)


def test_a_push_begins_at_the_last_token_of_the_prompt():
    hidden, vector = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 2.0, -1.0])
    here = Positions(torch.zeros(2), torch.full((2,), 4), torch.zeros(2), torch.tensor([2, 3]))
    for scope, first in (("generation", (1, 2)), ("all", (0, 0))):
        with at(here):
            moved = pushing(vector, torch.tensor([0.5, -2.0]), scope)(hidden) - hidden
        for row, by in ((0, 0.5), (1, -2.0)):
            assert not moved[row, : first[row]].any()
            torch.testing.assert_close(moved[row, first[row] :], (by * vector).expand(4 - first[row], 3))


def test_the_drift_before_is_that_of_the_pushed_base_by_hand(lm):
    """At the coefficient of the option, with an adapter that does nothing yet."""
    method = replace(QUICK, coefficient=0.3)
    artefact = method.fit(lm.model, lm.tokenizer, DATA)
    wanted = steered_by_hand(lm, method, artefact["layers.2.direction"], ordinary(lm), torch.full((8,), 0.3))
    assert float(artefact["info.drift_before"]) == pytest.approx(wanted, rel=1e-4)
