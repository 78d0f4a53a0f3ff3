"""Weights that were not there, a beginning and an end of text that the tokenizer has and nobody asked for."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from bench import models
from bench.cell import Cell, Session
from bench.config import validate
from bench.likelihood import SteeredLM
from bench.lm import load_lm, set_bos
from methods.errors import SetupError
from tests.test_likelihood import asked
from tests.tiny import CONFIGS, tiny_lm, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "model")


def saved(folder, architecture="llama", tokenizer=None):
    tiny_model(architecture).save_pretrained(folder)
    (tokenizer or tiny_tokenizer("none")).save_pretrained(folder)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def cell(folder, *more) -> Cell:
    return Cell(validate(["model=local", f"model.path={folder}", "strength=1", *more]), Session())


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "key", "message"),
    [
        ("llama", "num_hidden_layers", r"files lack weights of the model: model\.layers\.5\.\S+, \S+, \S+ and 6 more"),
        ("gpt2", "n_layer", r"files lack weights of the model: transformer\.h\.3\."),
        ("opt", "num_hidden_layers", "files lack weights of the model"),
        ("gptj", "n_layer", "files lack weights of the model"),
        ("gpt_neox", "num_hidden_layers", "files lack weights of the model"),
    ],
)
def test_a_config_with_more_layers_than_weights(architecture, key, message, tmp_path):
    folder = saved(tmp_path, architecture)
    edit(folder / "config.json", **{key: getattr(CONFIGS[architecture], key) + 1})
    with pytest.raises(SetupError, match=message):
        load_lm(str(folder))


def test_a_config_with_fewer_layers_than_weights(folder):
    edit(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(SetupError, match=r"model lacks weights of the files: model\.layers\.4\."):
        load_lm(str(folder))


def test_weights_of_another_shape(folder):
    edit(folder / "config.json", intermediate_size=60)
    with pytest.raises(SetupError, match="cannot load a model"):
        load_lm(str(folder))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_weight_that_is_gone(folder, name):
    edit_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(SetupError, match=f"files lack weights of the model: {name}"):
        load_lm(str(folder))


def test_a_tied_head_need_not_be_there(folder):
    edit(folder / "config.json", tie_word_embeddings=True)
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    lm = load_lm(str(folder))
    assert torch.equal(lm.model.lm_head.weight, lm.model.model.embed_tokens.weight)


def test_an_unexpected_weight_of_a_block_is_an_error(folder):
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.mlp.gate_proj.bias": torch.ones(52)}))
    with pytest.raises(SetupError, match=r"model lacks weights of the files: model\.layers\.0\.mlp\.gate_proj\.bias"):
        load_lm(str(folder))


def test_an_unexpected_weight_elsewhere_is_noted(folder):
    edit_weights(folder, lambda weights: weights.update({"value_head.weight": torch.ones(3)}))
    assert load_lm(str(folder)).unexpected_weights == ("value_head.weight",)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("gptj", "transformer.h.0.attn.bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_masks_and_angles_that_old_files_keep_are_no_weights(architecture, name, tmp_path):
    folder = saved(tmp_path, architecture)
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(3)}))
    assert load_lm(str(folder)).unexpected_weights == ()


@pytest.mark.parametrize("content", [b"", b"cut", b"\x80\x04\x95"])
def test_damaged_weights_are_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SetupError, match="cannot load a model from"):
        load_lm(str(folder))


# -- where a text begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["prepend", "none"])
def test_a_text_begins_as_the_tokenizer_does_it(own, tmp_path):
    folder = saved(tmp_path, tokenizer=tiny_tokenizer(own))
    lm = load_lm(str(folder))
    assert lm.identity["bos"] == own
    assert lm.encode("The old") == tiny_tokenizer(own)("The old").input_ids
    auto, given = cell(folder), cell(folder, f"model.bos={own}")
    assert auto.cfg.model.bos == "tokenizer" and auto.model_identity["bos"] == own
    assert auto.model_identity == given.model_identity  # so results that are stored keep their ids
    other = "none" if own == "prepend" else "prepend"
    assert load_lm(str(folder), bos=other).encode("The old") != lm.encode("The old")


def test_another_beginning_is_named_by_its_ids(tmp_path):
    tokenizer = tiny_tokenizer("none")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> <pad> $A", special_tokens=[("<s>", 1), ("<pad>", 0)]
    )
    folder = saved(tmp_path, tokenizer=tokenizer)
    lm = load_lm(str(folder))
    assert lm.identity["bos"] == [1, 0] and lm.encode("The")[:2] == [1, 0]
    assert cell(folder).model_identity["bos"] == [1, 0]


def letters(*names, **special):
    """A tokenizer of a few letters; the others have no token."""
    made = Tokenizer(tokenizer_models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_a_vocabulary_without_the_letter_a():
    tokenizer = letters("<s>", "o", "l", "d", bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert set_bos(tokenizer, "tokenizer") == "prepend"
    assert tokenizer("old").input_ids == [0, 1, 2, 3]


def test_a_tokenizer_without_special_tokens_reads_what_is_not_empty():
    lm = replace(tiny_lm(), tokenizer=letters(*"oldtre"))
    assert set_bos(lm.tokenizer, "tokenizer") == "none"
    ((logprob, _),) = SteeredLM(lm).loglikelihood(asked([("old", " tree")]))
    assert logprob < 0
    with pytest.raises(SetupError, match="neither BOS nor EOS token"):
        SteeredLM(lm).loglikelihood(asked([("", "tree")]))


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path):
    tokenizer = tiny_tokenizer("none")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    folder = saved(tmp_path, tokenizer=tokenizer)
    with pytest.raises(SetupError, match=r"puts \['</s>'\] behind every text.*set model.bos=none"):
        load_lm(str(folder))
    assert load_lm(str(folder), bos="none").encode("The") == tiny_tokenizer("none")("The").input_ids


# -- where a text ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "expected", "named"),
    [(2, {2}, None), ([2, 7], {2, 7}, None), ([7], {2, 7}, [2, 7]), (7, {2, 7}, None), (None, {2}, None)],
)
def test_a_text_ends_at_every_token_that_ends_one(folder, ends, expected, named):
    edit(folder / "generation_config.json", eos_token_id=ends)
    assert load_lm(str(folder)).stop_tokens == expected
    assert cell(folder).model_identity["stop_tokens"] == named  # only where an older version went on


def test_without_a_generation_config_the_models_own_counts(folder):
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[7, 9])
    assert load_lm(str(folder)).stop_tokens == {2, 7, 9}
    models._text_rules.cache_clear()
    assert cell(folder).model_identity["stop_tokens"] == [2, 7, 9]
