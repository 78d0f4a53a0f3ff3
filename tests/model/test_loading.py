"""Weights that were not there, a beginning and an end of text that the tokenizer has and nobody asked for."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from bench.model import checkpoint, model_folder
from bench.model.lm import load_lm
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.tokenizer import set_bos
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from methods.errors import SetupError
from methods.prompt import Prompt
from tests.model.test_log_likelihood import asked
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
    named = r"shapes than the model's: model\.layers\.0\.mlp\.down_proj\.weight \(\(36, 60\), in the files \(36, 52\)\)"
    with pytest.raises(SetupError, match=named):
        load_lm(str(folder))


def test_quantised_weights_that_nobody_says_how_to_read(folder):
    def quantise(weights):
        weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].to(torch.int8)

    edit_weights(folder, quantise)
    with pytest.raises(SetupError, match=r"as whole numbers.*: model\.layers\.1\.mlp\.up_proj\.weight"):
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
    assert auto.cfg.model.bos == "tokenizer" and auto.names.model["bos"] == own
    assert auto.names.model == given.names.model  # so results that are stored keep their ids
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
    assert cell(folder).names.model["bos"] == [1, 0]


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


def test_a_tokenizer_without_special_tokens_reads_texts():
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
    assert cell(folder).names.model["stop_tokens"] == named  # only where an older version went on


def test_without_a_generation_config_the_models_own_counts(folder):
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[7, 9])
    assert load_lm(str(folder)).stop_tokens == {2, 7, 9}
    assert cell(folder).names.model["stop_tokens"] == [2, 7, 9]


# -- files that are not what they should be ----------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


def node(folder, **more):
    return OmegaConf.create({"wheel": None, "path": str(folder), "id": None, "revision": "main", "bos": "none", **more})


def every_way(folder):
    """The places that read a model's folder, in the order of a run."""
    return [
        lambda: model_folder.check_folder(str(folder), "model.path"),
        lambda: checkpoint.identity(node(folder)),
        lambda: checkpoint.text_rules(node(folder), lambda: str(folder)),
        lambda: load_lm(str(folder)),
    ]


@pytest.mark.every(3)
@pytest.mark.parametrize("content", ["[]", "5", "null", '"x"', "{", DEEP, f'{{"a": {DEEP}}}', b'{"a": "\xe9"}'])
@pytest.mark.parametrize("name", [*model_folder.OBJECTS, "model.safetensors.index.json"])
def test_json_that_is_no_object_names_its_file(folder, name, content):
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for call in every_way(folder):
        with pytest.raises(SetupError, match=rf"{name} (is not valid JSON|holds a JSON \w+).*whole copy"):
            call()


@pytest.mark.parametrize("value", ["x", "2", 1.5, [["x"]], True, {"a": 1}])
def test_an_end_of_text_that_is_no_token(folder, value):
    edit(folder / "generation_config.json", eos_token_id=value)
    for call in every_way(folder)[2:]:
        with pytest.raises(SetupError, match=r"eos_token_id.*is .*a token's number|cannot load"):
            call()
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=value)
    for call in every_way(folder)[2:]:
        with pytest.raises(SetupError, match=r"config.json: .*eos_token_id.*|a token's number"):
            call()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"num_attention_heads": 0}, "config.json: ZeroDivisionError"),
        ("config.json", {"vocab_size": "x"}, r"config.json: .*Field 'vocab_size' expected int, got str"),
        ("config.json", {"text_config": {"x": 1}}, "cannot load a model from"),
        ("tokenizer_config.json", {"eos_token": 5}, r"cannot load the tokenizer \(tokenizer.json, tok.*eos_token"),
        ("tokenizer.json", {"model": 5}, r"cannot load the tokenizer \(tokenizer.json"),
    ],
)
def test_values_that_no_model_can_have(folder, file, changes, message):
    edit(folder / file, **changes)
    with pytest.raises(SetupError, match=message):
        load_lm(str(folder))


# -- which files are read ----------------------------------------------------------------------------------------------


def sharded(folder, place, where="model.safetensors.index.json", **more):
    """The folder's weights under another name, which an index gives."""
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(target)
    names = dict.fromkeys(load_file(target), place)
    (folder / where).write_text(json.dumps({"metadata": {}, "weight_map": names, **more}))


@pytest.mark.parametrize("place", ["w/model-2.safetensors", "../out.safetensors", "m-2.pt", "m-2.safetensors.1"])
def test_weights_that_the_fingerprint_does_not_see_are_refused(folder, place):
    """They were loaded, so the weights changed and the results of other weights were said to be known."""
    sharded(folder, place)
    (folder / "other.safetensors").write_bytes(b"beside it")
    for call in every_way(folder):
        with pytest.raises(SetupError, match=rf"index.json names {place}, which is not among the files directly in"):
            call()


def test_weights_that_config_json_names(folder):
    sharded(folder, "w/x.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "other.safetensors").write_bytes(b"beside it")
    for named in ("w/x.safetensors", "x.safetensors", 5):
        edit(folder / "config.json", transformers_weights=named)
        for call in every_way(folder):
            with pytest.raises(SetupError, match=f"config.json names {named}, which is not among the files"):
                call()


def test_a_tokenizer_file_in_another_folder(folder):
    (folder / "t").mkdir()
    (folder / "tokenizer.json").rename(folder / "t/tokenizer.4.0.0.json")
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=["t/tokenizer.4.0.0.json"])
    with pytest.raises(SetupError, match="names t/tokenizer.4.0.0.json, which is not among the files"):
        model_folder.fingerprint(folder)


def test_an_index_is_read_only_if_its_shards_are_used(folder):
    """A folder often has the index of the pickles too, without them."""
    expected = load_lm(str(folder)).model.lm_head.weight
    other = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(other))
    assert torch.equal(load_lm(str(folder)).model.lm_head.weight, expected)
    sharded(folder, "model-00001-of-00001.safetensors")
    assert torch.equal(load_lm(str(folder)).model.lm_head.weight, expected)
    assert "model-00001-of-00001.safetensors" in checkpoint.identity(node(folder))["files"]
    (folder / "model-00001-of-00001.safetensors").unlink()
    (folder / "other.safetensors").write_bytes(b"beside it")
    with pytest.raises(SetupError, match=r"index.json names model-00001-of-00001.safetensors, which is not among"):
        model_folder.check_folder(str(folder), "model.path")


def test_an_index_without_weights(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(SetupError, match="has no weight_map"):
        model_folder.fingerprint(folder)


def test_what_names_a_folder_is_what_is_read_of_it(folder):
    """The names of an ordinary folder stay; what else may be read is seen, through links, and when it changes."""
    before = model_folder.fingerprint(folder)
    assert set(before) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                           "tokenizer_config.json"}  # fmt: skip
    assert before == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in before}
    for harmless in ("README.md", ".gitattributes", "onnx/model.onnx", "original/consolidated.00.pth"):
        (folder / harmless).parent.mkdir(exist_ok=True)
        (folder / harmless).write_text("x")
    (folder / "a folder.json").mkdir()
    assert model_folder.fingerprint(folder) == before
    for read in ("chat_template.jinja", "additional_chat_templates/default.jinja", "bpe.codes", "source.spm"):
        (folder / read).parent.mkdir(exist_ok=True)
        (folder / read).write_text("{{ messages }}")
        assert read in model_folder.fingerprint(folder)
    elsewhere = folder.parent / "blob"
    (folder / "vocab.txt").symlink_to(elsewhere)
    with pytest.raises(SetupError, match="vocab.txt cannot be read: No such file"):
        model_folder.fingerprint(folder)
    elsewhere.write_text("a")
    first = model_folder.fingerprint(folder)
    elsewhere.write_text("b, another one")
    assert model_folder.fingerprint(folder) != first


def test_a_changed_folder_has_another_id_and_is_read_again(folder):
    named, rules = checkpoint.identity(node(folder)), checkpoint.text_rules(node(folder), lambda: str(folder))
    checkpoint.check_unchanged(node(folder), named)
    edit(folder / "generation_config.json", eos_token_id=[7, 9])
    assert checkpoint.identity(node(folder)) != named
    assert rules["stop_tokens"] is None
    assert checkpoint.text_rules(node(folder), lambda: str(folder))["stop_tokens"] == [2, 7, 9]
    with pytest.raises(SetupError, match=r"were changed while this ran \(generation_config.json\)"):
        checkpoint.check_unchanged(node(folder), named)


def test_a_model_changed_before_loading_gives_no_number(folder):
    one = cell(folder)
    _ = one.names.model
    edit_weights(folder, lambda weights: weights["lm_head.weight"].mul_(2))
    with pytest.raises(SetupError, match=r"were changed while this ran \(model.safetensors\)"):
        _ = one.model.lm


# -- chat templates ----------------------------------------------------------------------------------------------------

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no chat here') }}", "no chat here"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("hello", "leaves out the content of a user message"),
        (5, "cannot be used"),
    ],
)
def test_a_failing_chat_template_is_found_on_loading(folder, template, message):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SetupError, match=f"model.chat=true, but the chat template .*{message}.*; set model.chat=false"):
        load_lm(str(folder), chat=True)
    assert load_lm(str(folder)).encode("The")  # without a template nothing is wrong


@pytest.mark.parametrize(
    "system",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
        "{% set messages = messages[1:] if messages[0].role == 'system' else messages %}",
    ],
)
def test_a_prefix_is_the_system_message_if_there_is_one(folder, system):
    edit(folder / "tokenizer_config.json", chat_template=system + PLAIN)
    method = Prompt(prompts=["Be kind."], strengths=(1,))
    with load_lm(str(folder), chat=True).steered(method, {}, 1.0) as steered:
        assert steered.tokenizer.decode(steered.encode("The")).endswith("[user] Be kind.\n\nThe")
    edit(folder / "tokenizer_config.json", chat_template=PLAIN)
    with load_lm(str(folder), chat=True).steered(method, {}, 1.0) as steered:
        assert steered.tokenizer.decode(steered.encode("The")).endswith("[system] Be kind.[user] The")


def test_a_template_that_fails_on_one_prompt_is_no_traceback(folder):
    bad = "{% if 'dog' in messages[-1].content %}{{ raise_exception('no dogs') }}{% endif %}"
    edit(folder / "tokenizer_config.json", chat_template=bad + PLAIN)
    with pytest.raises(SetupError, match="no dogs; set model.chat=false"):
        load_lm(str(folder), chat=True).encode("a dog")
