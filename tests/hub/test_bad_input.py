"""Models that cannot be benchmarked: one clear error each, from a folder and from the hub."""

import json

import pytest
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaModel, T5Config, T5ForConditionalGeneration

from bench.model import checkpoint
from bench.model.lm import load_lm
from methods.errors import SetupError
from tests.hub.conftest import forget
from tests.hub.test_models import NAME, cell, folder, node  # noqa: F401  a fixture
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

ENCODER = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20)
OTHERS = {
    "BERT": (lambda: BertForMaskedLM(BertConfig(**ENCODER)), r"is an encoder, which fills gaps .*\(Bert\)"),
    "RoBERTa": (lambda: RobertaModel(RobertaConfig(**ENCODER)), r"is an encoder, .*\(Roberta\)"),
    "T5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2)
        ),
        r"is an encoder with a decoder.*\(T5\)",
    ),
}


def each_way(hub, tmp_path, place):
    """From a folder and from the hub, as a cell meets it first."""
    hub.add("models", NAME, place)
    forget()
    yield lambda: load_lm(str(place))
    yield lambda: cell(tmp_path).model.lm
    yield lambda: cell(tmp_path, f"model.path={place}", "model.id=null", "model.name=x").model.lm


@pytest.mark.parametrize("kind", list(OTHERS))
def test_a_model_of_another_kind_is_named(hub, tmp_path, kind):
    make, message = OTHERS[kind]
    make().save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    for call in each_way(hub, tmp_path, tmp_path / "model"):
        with pytest.raises(SetupError, match=f"{message}; give a causal language model"):
            call()
    with pytest.raises(SetupError, match=message):  # before a weight is fetched or read
        checkpoint.skeleton(node(id=NAME), NAME, checkpoint.commit(NAME, "main"))


def test_weights_that_are_cut_are_named(hub, tmp_path, folder):  # noqa: F811
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for call in each_way(hub, tmp_path, folder):
        with pytest.raises(SetupError, match="model.safetensors.*(cut short or damaged|incomplete|whole copy)"):
            call()


def test_a_part_that_is_missing_is_named(hub, tmp_path, folder):  # noqa: F811
    (folder / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    first = min(folder.glob("model-*.safetensors"))
    first.unlink()
    for call in each_way(hub, tmp_path, folder):
        with pytest.raises(SetupError, match=f"{first.name}"):
            call()


def test_a_tokenizer_that_does_not_fit_is_named(hub, tmp_path, folder):  # noqa: F811
    config = json.loads((folder / "config.json").read_text())
    wide = type(tiny_model("llama"))(tiny_model("llama").config.__class__(**config | {"vocab_size": 400}))
    wide.save_pretrained(folder)
    for call in each_way(hub, tmp_path, folder):
        with pytest.raises(SetupError, match=r"has \d+ tokens, but the model gives logits for 400.*different models"):
            call()
    narrow = type(wide)(wide.config.__class__(**config | {"vocab_size": 200}))
    narrow.save_pretrained(folder)
    for call in each_way(hub, tmp_path, folder):
        with pytest.raises(SetupError, match="the tokenizer has token .*embedding matrix has 200 rows"):
            call()


@pytest.mark.parametrize("rows", [304, 320])
def test_a_matrix_padded_to_a_round_number_is_not_refused(folder, rows):  # noqa: F811
    config = json.loads((folder / "config.json").read_text())
    type(tiny_model("llama"))(tiny_model("llama").config.__class__(**config | {"vocab_size": rows})).save_pretrained(
        folder
    )
    assert load_lm(str(folder)).encode("The old tree")
