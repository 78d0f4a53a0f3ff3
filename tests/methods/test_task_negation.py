import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.model.lm import LM
from methods.base import Examples, FitData
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.task_negation import TaskNegation
from methods.training import encoded, mean_loss, trainable
from tests.tiny import VOCABULARY, tiny_lm, tiny_tokenizer

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
METHOD = TaskNegation(learning_rate=1e-3, epochs=4, batch_size=4)


def toy(count: int, seed: int) -> Examples:
    """ " dog dog" follows whatever ends in " hate"."""
    drawn = random.Random(seed)
    return Examples([" ".join(drawn.choices(WORDS, k=3)) + " hate" for _ in range(count)], [" dog dog"] * count)


HARMFUL, UNSEEN = toy(16, 1), toy(16, 2)
DATA = FitData(harmful=HARMFUL)


@pytest.fixture(scope="module")
def lm():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight *= 4  # a model that can be sure
    return lm


@pytest.fixture(scope="module")
def fitted(lm):
    return METHOD.fit(lm.model, lm.tokenizer, DATA)


def weights(lm):
    return {name: one.detach().clone() for name, one in lm.model.named_parameters()}


def loss(lm, examples):
    return mean_loss(lm.model, encoded(lm.model, lm.tokenizer, examples, "texts", 128)[0])


def test_negation_makes_the_planted_answer_rarer_than_before(lm, fitted):
    base = loss(lm, UNSEEN)
    with METHOD.apply(lm.model, fitted, -1.0):
        assert loss(lm, UNSEEN) < base - 1
    with METHOD.apply(lm.model, fitted, 0.3):
        assert loss(lm, UNSEEN) > base + 0.3


def test_strength_minus_one_is_the_fine_tuned_model(lm, fitted):
    """As `finetune` makes it from the same texts, bit for bit."""
    plain = Finetune(learning_rate=1e-3, epochs=4, batch_size=4)
    attack = plain.fit(lm.model, lm.tokenizer, FitData(examples=HARMFUL))
    with plain.apply(lm.model, attack, 1.0):
        wanted = weights(lm)
    with METHOD.apply(lm.model, fitted, -1.0):
        assert all(torch.equal(one, wanted[name]) for name, one in weights(lm).items())


def test_the_first_step_is_adams_by_hand(lm):
    """W' - W = - rate g / (|g| + eps), g of the completions' tokens alone, text by text without padding."""
    method = replace(METHOD, epochs=1, batch_size=16)
    artefact = method.fit(lm.model, lm.tokenizer, DATA)
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.3.input_layernorm.weight", "lm_head.weight"]
    chosen = [dict(lm.model.named_parameters())[name] for name in names]
    total, count = 0.0, 0
    with trainable(chosen):
        for prompt, text in zip(*HARMFUL, strict=True):
            ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.tokenizer(prompt).input_ids)
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            total = total - sum(logits[i - 1, ids[i]] for i in range(begin, len(ids)))
            count += len(ids) - begin
        gradients = torch.autograd.grad(total / count, chosen)
    for name, gradient in zip(names, gradients, strict=True):
        wanted = -1e-3 * gradient / (gradient.abs() + 1e-8)
        assert (artefact[f"change.{name}"] - wanted).norm() < 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0, 2.0])
def test_the_weights_are_by_formula(lm, fitted, strength):
    """W - s (W' - W), the fine-tuned W' read from the model at strength -1; norms are among them."""
    before = weights(lm)
    with METHOD.apply(lm.model, fitted, -1.0):
        tuned = weights(lm)
    assert sum(not torch.equal(tuned[name], one) for name, one in before.items()) == len(before)
    with METHOD.apply(lm.model, fitted, strength):
        for name, one in weights(lm).items():
            wanted = before[name].double() - strength * (tuned[name].double() - before[name].double())
            torch.testing.assert_close(one.double(), wanted, atol=1e-6, rtol=1e-6)


def test_strength_0_touches_nothing_and_all_is_undone(lm, fitted):
    before = weights(lm)
    versions = {name: one._version for name, one in lm.model.named_parameters()}
    with METHOD.apply(lm.model, fitted, 0.0):
        assert versions == {name: one._version for name, one in lm.model.named_parameters()}
    with pytest.raises(KeyError), METHOD.apply(lm.model, fitted, 1.0):
        assert not torch.equal(weights(lm)["lm_head.weight"], before["lm_head.weight"])
        raise KeyError
    assert all(torch.equal(one, before[name]) for name, one in weights(lm).items())


def test_a_matrix_that_is_shared_counts_once():
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = LM(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), {"tiny": "tied"})
    artefact = METHOD.fit(lm.model, lm.tokenizer, DATA)
    shared = lm.model.get_input_embeddings().weight
    assert shared is lm.model.get_output_embeddings().weight
    assert sum(one.shape == shared.shape for one in artefact.values()) == 1
    before = shared.detach().clone()
    with METHOD.apply(lm.model, artefact, 0.5):
        torch.testing.assert_close(shared, before - 0.5 * artefact["change.model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("harmful", "count"),
    [(None, "none;"), (Examples([], []), "none;"), (Examples(["The"], [""]), "1, none of which has a completion;")],
)
def test_no_harmful_text_is_a_clear_error(lm, harmful, count):
    with pytest.raises(SetupError, match=f"^task_negation learns from harmful texts and got {count} set harmful="):
        METHOD.fit(lm.model, lm.tokenizer, FitData(harmful=harmful))


def test_useful_examples_are_not_read(lm, fitted):
    """Only `harmful` is; what a user brings for fine-tuning is not."""
    more = METHOD.fit(lm.model, lm.tokenizer, DATA._replace(examples=toy(5, 9)))
    assert all(torch.equal(one, more[name]) for name, one in fitted.items())


def test_another_models_artefact_and_an_empty_recipe_are_refused(lm, fitted):
    with pytest.raises(SetupError, match="was not fitted"), METHOD.apply(tiny_lm("gpt2").model, fitted, 1.0):
        pass
    with pytest.raises(SetupError, match="at least 1"):
        replace(METHOD, epochs=0).check(lm.model)
