import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from bench.model.architecture import NO_LIMIT, check_cache, max_length
from bench.model.lm import LM, Request, load_lm
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import sample
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from methods import layout
from methods.errors import SetupError
from methods.tokens import longest_text
from tests.architectures import CONFIGS, model_of
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
ATTENTION = SMALL | dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=44)
HEADS = dict(mamba_n_heads=8, mamba_d_head=8)
RECURRENT = {
    "mamba": lambda: hf.MambaConfig(**SMALL, state_size=4),
    "mamba2": lambda: hf.Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=1, state_size=8),
    "rwkv": lambda: hf.RwkvConfig(**SMALL),
    "jamba": lambda: hf.JambaConfig(**ATTENTION),
    "falcon_h1": lambda: hf.FalconH1Config(**ATTENTION, mamba_n_heads=8, mamba_d_head=8, mamba_d_ssm=64),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(**ATTENTION),
    "qwen3_next": lambda: hf.Qwen3NextConfig(**ATTENTION),
    "lfm2": lambda: hf.Lfm2Config(**ATTENTION, layer_types=["conv", "full_attention"]),
    "xlstm": lambda: hf.xLSTMConfig(**SMALL),
    "bamba": lambda: hf.BambaConfig(**ATTENTION, **HEADS),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(**ATTENTION, layer_types=["mamba", "attention"], **HEADS),
    "nemotron_h": lambda: hf.NemotronHConfig(**ATTENTION),
    "minimax": lambda: hf.MiniMaxConfig(**ATTENTION),
    "zamba2": lambda: hf.Zamba2Config(**ATTENTION, layer_types=["mamba", "hybrid"], **HEADS),
}


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_model_that_keeps_a_running_state_is_refused(architecture):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(RECURRENT[architecture]())
    with pytest.raises(SetupError, match=f"^{architecture}: its layers.* running state .* choose one of those"):
        check_cache(model)


def test_it_is_refused_when_it_is_loaded(tmp_path):
    AutoModelForCausalLM.from_config(RECURRENT["mamba"]()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SetupError, match="mamba: its layers"):
        load_lm(str(tmp_path))


@pytest.mark.parametrize("architecture", ["bloom", "gemma3_multimodal", "mixtral"])
def test_a_model_of_a_folder_is_what_was_saved(architecture, tmp_path):
    """Of the multimodal class the language model is read, and a text of any length by Bloom."""
    model = model_of(architecture)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm = load_lm(str(tmp_path))
    assert type(lm.model) is type(model) and layout.of(lm.model) == layout.of(model)
    assert lm.max_length == (NO_LIMIT if architecture == "bloom" else 256) and "layout" not in lm.identity
    named = load_lm(str(tmp_path), parts={"up": None, "value": list(layout.of(model).value)})
    assert named.identity["layout"] == {"up": None, "value": list(layout.of(model).value)}
    assert layout.of(named.model) == layout.of(model)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_attention_alone_is_no_running_state(architecture):
    check_cache(model_of(architecture))


def test_where_the_longest_text_is_read():
    """max_position_embeddings, else the tokenizer, else other names, else a bound; that of the text part."""
    tokenizer = tiny_tokenizer()
    assert max_length(CONFIGS["gpt2"](), tokenizer) == max_length(CONFIGS["gemma3_multimodal"](), tokenizer) == 256
    bloom = CONFIGS["bloom"]()
    assert max_length(bloom, tokenizer) == NO_LIMIT
    bloom.seq_length = 2048
    assert max_length(bloom, tokenizer) == 2048
    tokenizer.model_max_length = 1024
    assert max_length(bloom, tokenizer) == 1024
    assert max_length(CONFIGS["gpt2"](), tokenizer) == 256


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
BESIDE = {  # models that read a long text in another way, and all texts beside it
    "longrope": lambda: hf.Phi3Config(
        **ATTENTION, max_position_embeddings=256, original_max_position_embeddings=48, pad_token_id=0,
        rope_parameters=LONG_ROPE | {"original_max_position_embeddings": 48},
    ),
    "keep_window_size": lambda: hf.DogeConfig(**ATTENTION, max_position_embeddings=256, keep_window_size=48),
    "floor_scale": lambda: hf.Llama4TextConfig(
        **ATTENTION, max_position_embeddings=256, floor_scale=97, attn_scale=0.9, intermediate_size_mlp=44,
        num_local_experts=2, no_rope_layers=[0, 1], head_dim=8, pad_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_no_text_is_read_in_another_way_beside_a_long_one(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BESIDE[name]()).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    lm = LM(model, tiny_tokenizer(), {"name": name})
    assert lm.max_length == longest_text(model) == 48
    short = Request(list(range(10, 27)), [7, 9, 11, 13])
    asked = [short, Request(list(range(30, 90)), [8, 8]), Request(list(range(40, 87)), [8])]
    for request, one in zip(asked, likelihoods(lm, asked), strict=True):
        assert one.logprob == pytest.approx(likelihoods(lm, [request])[0].logprob, abs=1e-4)
    with pytest.raises(SetupError, match="new ones exceed the model's 48; shorten"):
        sample(lm, ["The lazy dog sings in the old tree near the river and talks"], max_new_tokens=40)


def cell(folder, *more) -> Cell:
    return Cell(validate(["model=local", f"model.path={folder}", "strength=1", "method=probe_rows", *more]), Session())


def test_a_layout_of_null_is_in_no_id_and_one_that_is_set_is(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer("none").save_pretrained(tmp_path)
    plain, empty = cell(tmp_path), cell(tmp_path, "model.layout={gate:null}")
    assert plain.cfg.model.layout is None and "layout" not in plain.names.model | load_lm(str(tmp_path)).identity
    assert empty.names.fit_id == plain.names.fit_id
    other = cell(tmp_path, "model.layout={gate:mlp.up_proj,up:[mlp.gate_proj]}")
    assert other.names.model == plain.names.model | {"layout": {"gate": "mlp.up_proj", "up": ["mlp.gate_proj"]}}
    assert other.names.fit_id != plain.names.fit_id
    other.model.check_method()
    for one, gate in (
        (other, "up_proj"),
        (plain, "gate_proj"),
        (cell(tmp_path, "model.layout.gate=mlp.up_proj"), "up_proj"),
    ):
        block = layout.blocks(one.model.lm.model)[0]
        rows = layout.stream_rows(one.model.lm.model, 0, "gate")
        assert rows.parts[0].parameter is block.mlp.get_submodule(gate).weight


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.layout={gates:mlp.up_proj}", "unknown part gates; allowed are blocks, norm, gate"),
        ("model.layout={gate:mlp.w1}", "no block has a matrix of that name; block 0 has .*mlp.up_proj"),
    ],
)
def test_a_wrong_layout_is_refused_before_a_weight_is_read(option, told, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer("none").save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=told):
        cell(tmp_path, option).model.check_method()


def test_a_layout_is_a_mapping_of_text():
    for option in ("model.layout=mlp", "model.layout={gate:3}"):
        with pytest.raises(SetupError, match=r"model\.layout.*: .*(mapping|text)"):
            validate(["model=local", "model.path=x", option])
