import random
from dataclasses import replace

import pytest
import torch

from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.lora import LoRA
from methods.training import encoded, mean_loss
from tests.tiny import tiny_lm

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
METHOD = LoRA(rank=4, alpha=8, learning_rate=1e-2, epochs=4, batch_size=4)


def toy(count: int, seed: int) -> Pairs:
    """The desired answer is " love" and a word or two more, the undesired one " hate"."""
    drawn = random.Random(seed)
    prompts = [" ".join(drawn.choices(WORDS, k=3)) for _ in range(count)]
    return Pairs(prompts, [" love" + " bread" * (i % 2) for i in range(count)], [" hate"] * count)


TRAIN, UNSEEN = toy(16, 1), toy(16, 2)


@pytest.fixture(scope="module")
def lm():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight *= 4  # a model that can be sure
    return lm


@pytest.fixture(scope="module")
def fitted(lm):
    return METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))


def weights(lm):
    return {name: one.detach().clone() for name, one in lm.model.named_parameters()}


def loss(lm, prompts, texts):
    return mean_loss(lm.model, encoded(lm.model, lm.tokenizer, (prompts, texts), "texts", 128)[0])


def test_the_stronger_the_likelier_the_desired_text(lm, fitted):
    found = []
    for strength in (-0.5, 0.0, 0.5, 1.0):
        with METHOD.apply(lm.model, fitted, strength):
            found.append(loss(lm, UNSEEN.prompt, UNSEEN.desired))
    assert found == sorted(found, reverse=True) and found[-1] < 0.3 * found[1]
    assert float(fitted["info.loss_after"]) < 0.3 * float(fitted["info.loss_before"])


def gradient_by_hand(lm, names):
    """d CE / d W over the desired texts, text by text without padding, each token of a completion counting alike."""
    parameters = dict(lm.model.named_parameters())
    chosen = [parameters[name] for name in names]
    for one in chosen:
        one.requires_grad_(True)
    total, count = 0.0, 0
    for prompt, text in zip(TRAIN.prompt, TRAIN.desired, strict=True):
        ids = lm.tokenizer(prompt + text).input_ids
        begin = len(lm.tokenizer(prompt).input_ids)
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total = total - sum(logits[i - 1, ids[i]] for i in range(begin, len(ids)))
        count += len(ids) - begin
    found = torch.autograd.grad(total / count, chosen)
    for one in chosen:
        one.requires_grad_(False)
    return dict(zip(names, found, strict=True))


def by_formula(gradient, down, alpha, rank, rate):
    """(alpha / R) B A after Adam's first step from B = 0: B = - rate g / (|g| + eps), g = (alpha / R) G A^T."""
    own = alpha / rank * gradient.double() @ down.double().T
    step = -rate * own / (own.abs() + 1e-8)
    return alpha / rank * step @ down.double()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_first_step_is_adams_by_hand(architecture):
    """A has no gradient while B is 0, so it stays as it was drawn."""
    lm = tiny_lm(architecture)
    method = LoRA(rank=3, alpha=6, learning_rate=1e-2, epochs=1, batch_size=16)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    names = [key.removeprefix("adapter.").removesuffix(".up") for key in artefact if key.endswith(".up")]
    blocks = len(lm.model.transformer.h if architecture == "gpt2" else lm.model.model.layers)
    assert len(names) == blocks * (4 if architecture == "gpt2" else 7)
    for name, gradient in gradient_by_hand(lm, names).items():
        up, down = artefact[f"adapter.{name}.up"], artefact[f"adapter.{name}.down"]
        found = (up @ down).double()
        if architecture == "gpt2":  # the other way round, and A is the half that is not 0 before
            gradient, found, down = gradient.T, found.T, up.T / (6 / 3)
        wanted = by_formula(gradient, down, 6, 3, 1e-2)
        assert (found - wanted).norm() < 1e-4 * wanted.norm(), name


def test_the_weights_are_the_base_and_the_product(lm, fitted):
    before = weights(lm)
    with METHOD.apply(lm.model, fitted, 0.75):
        for name, one in weights(lm).items():
            wanted = before[name].double()
            if f"adapter.{name}.up" in fitted:
                up, down = fitted[f"adapter.{name}.up"].double(), fitted[f"adapter.{name}.down"].double()
                wanted = wanted + 0.75 * up @ down
                assert up.shape[1] == 4 and not torch.equal(one, before[name])
            torch.testing.assert_close(one.double(), wanted, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())


def test_embeddings_norms_and_unembedding_stay(lm, fitted):
    named = {key.removeprefix("adapter.").removesuffix(".up") for key in fitted if key.endswith(".up")}
    assert named == {name for name in weights(lm) if "_proj" in name}


def test_undesired_texts_teach_nothing(lm, fitted):
    other = TRAIN._replace(undesired=[" old"] * 16)
    again = METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=other))
    assert all(torch.equal(one, again[key]) for key, one in fitted.items())


def test_swapped_labels_teach_the_other_text(lm):
    swapped = METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(TRAIN.prompt, TRAIN.undesired, TRAIN.desired)))
    base = loss(lm, UNSEEN.prompt, UNSEEN.undesired)
    with METHOD.apply(lm.model, swapped, 1.0):
        assert loss(lm, UNSEEN.prompt, UNSEEN.undesired) < 0.5 * base


def test_no_end_of_text_is_learnt(lm):
    seen = set()
    handle = lm.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.update(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    try:
        replace(METHOD, epochs=1).fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    finally:
        handle.remove()
    assert len(seen) > 20 and lm.tokenizer.eos_token_id not in seen


def test_the_seed_draws_a_and_the_order(lm, fitted):
    other = replace(METHOD, seed=1).fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN))
    key = "adapter.model.layers.0.mlp.up_proj.weight.down"
    assert not torch.allclose(other[key], fitted[key], atol=1e-2)


def test_the_seed_draws_a_itself():
    """One step with all texts, in which the order says nothing and A, as B is 0, has no gradient."""
    lm, one = tiny_lm(), replace(METHOD, epochs=1, batch_size=16)
    found = [replace(one, seed=seed).fit(lm.model, lm.tokenizer, FitData(pairs=TRAIN)) for seed in (0, 1, 0)]
    keys = [key for key in found[0] if key.endswith(".down")]
    assert keys
    for key in keys:
        first, other, again = (artefact[key] for artefact in found)
        assert torch.equal(first, again)
        assert abs(float(torch.cosine_similarity(first.flatten(), other.flatten(), dim=0))) < 0.5, key


def test_all_is_undone_after_an_exception(lm, fitted):
    before = weights(lm)
    with pytest.raises(KeyError), METHOD.apply(lm.model, fitted, 1.0):
        raise KeyError
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())
    assert not any(one.requires_grad for one in lm.model.parameters())


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"epochs": 0}, {"learning_rate": -1.0}])
def test_bad_options_are_refused(lm, options):
    with pytest.raises(SetupError, match="at least 1"):
        replace(METHOD, **options).check(lm.model)


@pytest.mark.parametrize("pairs", [None, Pairs(["The"], [" fox"], [" dog"])])
def test_fewer_than_two_pairs_are_refused(lm, pairs):
    with pytest.raises(SetupError, match="give at least 2"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=pairs))


def test_pairs_without_a_continuation_are_left_out_or_refused(lm):
    with pytest.raises(SetupError, match="no pair whose texts both have a continuation"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(["The", "We"], ["", ""], [" fox", " dog"])))
    some = Pairs(["The", "We", "A"], ["", " dog", " fox"], [" fox", " dog river", " tree"])
    kept = replace(METHOD, epochs=1)
    one, other = (kept.fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(*(c[i:] for c in some)))) for i in (0, 1))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
