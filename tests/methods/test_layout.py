import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    Llama4TextConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Qwen2Config,
)
from transformers.pytorch_utils import Conv1D

from methods import layout
from methods.errors import SetupError
from tests import architectures
from tests.tiny import CONFIGS, VOCABULARY, tiny_model

SIZES = dict(vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
OTHERS = {
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
}
ALL = [*CONFIGS, *OTHERS]
LLAMA = ("model.layers", "model.norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.{}_proj",
         "self_attn.o_proj")  # fmt: skip
NAMES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gpt2": ("transformer.h", "transformer.ln_f", "mlp.c_fc", None, "mlp.c_proj", "attn.c_attn", "attn.c_proj"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm", "fc1", None, "fc2", "self_attn.{}_proj",
            "self_attn.out_proj"),
    "gptj": ("transformer.h", "transformer.ln_f", "mlp.fc_in", None, "mlp.fc_out", "attn.{}_proj", "attn.out_proj"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp.dense_h_to_4h", None, "mlp.dense_4h_to_h",
                 "attention.query_key_value", "attention.dense"),
}  # fmt: skip
"""Blocks, final norm, gate, up, value, qkv, o: as a table had them by hand before they were searched for."""


def model_of(architecture):
    if architecture in CONFIGS:
        return tiny_model(architecture)
    return AutoModelForCausalLM.from_config(OTHERS[architecture]).eval()


@pytest.mark.parametrize("architecture", NAMES)
def test_the_search_finds_what_a_table_named_by_hand(architecture):
    blocks, norm, gate, up, value, qkv, o = NAMES[architecture]
    q, k, v = ((qkv.format(one),) for one in "qkv")
    found = layout.of(model_of(architecture))
    fused = {"gpt2": "stacked", "gpt_neox": "groups"}.get(architecture)
    assert found == layout.Layout(blocks, norm, (gate,), (up,) if up else (), (value,), q, k, v, (o,), fused)


@pytest.mark.parametrize("architecture", NAMES)
def test_matrices_are_those_that_the_table_named(architecture):
    """Parameter, direction and bytes, as an edit by the old names had them."""
    model = model_of(architecture)
    _, _, gate, up, value, qkv, o = NAMES[architecture]
    named = {"gate": gate, "up": up, "down": value, "o": o} | {k: qkv.format(k) for k in "qkv" if "{}" in qkv}
    for layer, block in enumerate(layout.blocks(model)):
        for kind, name in named.items():
            if name is None:
                continue
            module = block.get_submodule(name)
            (found,) = layout.stream_rows(model, layer, kind).parts
            assert found.parameter is module.weight and found.expert is found.rows is None
            stored_as_rows = isinstance(module, Conv1D) == (kind in ("down", "o"))
            assert torch.equal(found.read(), module.weight if stored_as_rows else module.weight.T)


@pytest.mark.parametrize("architecture", ALL)
def test_matrices_are_outputs_by_inputs_as_in_their_modules(architecture):
    model = model_of(architecture)
    names, block = layout.of(model), layout.blocks(model)[1]
    assert len(layout.blocks(model)) == model.config.num_hidden_layers
    assert layout.width(model) == model.config.hidden_size
    for name, found in (
        (names.gate[0], layout.stream_rows(model, 1, "gate").parts[0]),
        (names.value[0], layout.value_matrix(model, 1)),
    ):
        module, weight = block.get_submodule(name), found.read()
        x = torch.randn(3, weight.shape[1])
        bias = module.bias if getattr(module, "bias", None) is not None else 0
        with torch.no_grad():
            torch.testing.assert_close(module(x), x @ weight.T + bias, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.stored(weight.clone()), found.parameter)
        assert found.stored(weight).is_contiguous()
    gate, value = layout.stream_rows(model, 1, "gate").read(), layout.value_matrix(model, 1).read()
    assert gate.shape == value.T.shape and gate.shape[1] == layout.width(model)
    assert gate.shape[0] != gate.shape[1]  # the sizes of the tiny models let no mix-up pass


@pytest.mark.parametrize("architecture", ALL)
def test_value_matrix_columns_are_what_the_mlp_writes(architecture):
    """Edit one column by hand: the block's output moves along that column's change and nowhere else."""
    model = model_of(architecture)
    value = layout.value_matrix(model, 0)
    change = torch.zeros_like(value.read())
    change[:, 3] = torch.arange(change.shape[0]).float()
    module = layout.blocks(model)[0].get_submodule(layout.of(model).value[0])
    x = torch.zeros(1, change.shape[1])
    x[0, 3] = 2.0
    with torch.no_grad():
        before = module(x)
        value.parameter.copy_(value.stored(value.read() + change))
        torch.testing.assert_close(module(x) - before, 2 * change[:, 3][None], atol=1e-4, rtol=1e-4)


def test_a_model_without_final_norm_says_so():
    """OPT-350m: norm after each block, none at the end, and an embedding narrower than the model."""
    config = OPTConfig(
        vocab_size=20, hidden_size=12, word_embed_proj_dim=8, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        do_layer_norm_before=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert layout.width(model) == 12
    with pytest.raises(SetupError, match="no final norm"):
        layout.final_norm(model)


@pytest.mark.parametrize("architecture", ALL)
def test_final_norm_is_a_norm(architecture):
    assert "norm" in type(layout.final_norm(model_of(architecture))).__name__.lower()
    assert isinstance(layout.final_norm(model_of(architecture)), nn.Module)


@pytest.mark.parametrize("architecture", ALL)
def test_the_final_norm_runs_once_before_the_unembedding(architecture):
    """By what runs, since all norms of a fresh model have the same weights."""
    model, ran = model_of(architecture).eval(), []
    for name, module in (("block", layout.blocks(model)[-1]), ("norm", layout.final_norm(model))):
        module.register_forward_hook(lambda _m, _a, output, name=name: ran.append((name, output)))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 80, 33]]), use_cache=False).logits
        assert [name for name, _ in ran] == ["block", "norm"]
        torch.testing.assert_close(model.get_output_embeddings()(ran[1][1]), logits)


@pytest.mark.parametrize(
    ("layer", "index"),
    [(0, 0), (4, 4), (-1, 4), (-5, 0), (0.0, 0), (0.19, 0), (0.2, 1), (0.5, 2), (0.999, 4), (3.0, 3)],
)
def test_layer_index_of_five(layer, index):
    assert layout.layer_index(tiny_model(), layer) == index


@pytest.mark.parametrize("layer", [5, -6, 40])
def test_layer_out_of_range(layer):
    with pytest.raises(
        SetupError,
        match=rf"layer {layer} out of range: this model of type llama has 5 blocks \(0-4\); set method\.layer",
    ):
        layout.layer_index(tiny_model(), layer)


@pytest.mark.parametrize("layer", [1.5, -0.2, float("nan"), float("inf"), "final", None])
def test_layer_fraction_out_of_range(layer):
    with pytest.raises(SetupError, match="neither a block number nor a fraction"):
        layout.layer_index(tiny_model(), layer)


def test_layer_range():
    model = tiny_model()
    assert list(layout.layer_range(model, 1, 3)) == [1, 2]
    assert list(layout.layer_range(model, 0.4, None)) == [2, 3, 4]
    assert list(layout.layer_range(model, -2, None)) == [3, 4]
    with pytest.raises(SetupError, match="no block between 3 and 3"):
        layout.layer_range(model, 3, 3)


# -- what the tree does not tell -----------------------------------------------------------------------------------


def renamed(old, new, under):
    """A Llama whose blocks call a module of theirs something else; its forward is not used."""
    model = tiny_model()
    for block in layout.blocks(model):
        inside = block.get_submodule(under)
        inside.add_module(new, inside._modules.pop(old))
    layout.declare(model, None)
    return model


def test_an_unknown_name_is_asked_for_and_then_used():
    model = renamed("gate_proj", "frobnicate", "mlp")
    with pytest.raises(SetupError, match=r"no gate matrix.*mlp\.frobnicate.*model\.layout=\{gate: NAME\}"):
        layout.stream_rows(model, 1, "gate")
    assert len(layout.stream_rows(model, 1, "down").read()) == 52  # the others are known as before
    layout.declare(model, {"gate": "mlp.frobnicate"})
    assert layout.stream_rows(model, 1, "gate").parts[0].parameter is layout.blocks(model)[1].mlp.frobnicate.weight
    layout.declare(model, None)
    assert layout.of(model).gate == ()


def test_an_mlp_of_two_matrices_is_told_by_its_shapes():
    model = tiny_model("gptj")
    for block in layout.blocks(model):
        block.mlp.alpha, block.mlp.beta = block.mlp._modules.pop("fc_in"), block.mlp._modules.pop("fc_out")
    layout.declare(model, None)
    assert (layout.of(model).gate, layout.of(model).value) == (("mlp.alpha",), ("mlp.beta",))


def test_what_one_of_several_mlps_leaves_open_is_open_for_all():
    """Else a method would edit an expert that is always on, and not the others, without a word."""
    model = tiny_model()
    for block in layout.blocks(model):
        block.mlp.shared = copy.deepcopy(block.mlp)
    layout.declare(model, None)
    assert layout.of(model).value == ("mlp.down_proj", "mlp.shared.down_proj")
    assert len(layout.stream_rows(model, 0, "down").parts) == 2
    shared = layout.blocks(model)[3].mlp.shared
    shared.out = shared._modules.pop("down_proj")
    layout.declare(model, None)
    assert layout.of(model).value == () and len(layout.of(model).gate) == 2
    with pytest.raises(SetupError, match="no down matrix of its own in block 3 .*mlp.shared.out."):
        layout.stream_rows(model, 3, "down")


def test_a_declared_order_of_q_k_v_must_not_contradict_the_model():
    model = tiny_model("gpt_neox")
    rows = layout.stream_rows(model, 0, "v").read()
    with pytest.raises(SetupError, match=r"fused=stacked: the values that block 0 caches show that it is groups"):
        layout.declare(model, {"fused": "stacked"})
    layout.declare(model, {"fused": "groups"})
    assert torch.equal(layout.stream_rows(model, 0, "v").read(), rows)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"value": "mlp.gate_proj"}, "writes the residual stream has 36 outputs"),
        ({"gate": "mlp.down_proj"}, "36 inputs"),
        ({"norm": "lm_head"}, r"this module \(\w+\) has a matrix"),
        ({"norm": "model.embed_tokens"}, r"this module \(\w+\) has a matrix"),
    ],
)
def test_a_matrix_of_another_width_cannot_be_declared(parts, told):
    with pytest.raises(SetupError, match=told):
        layout.declare(tiny_model(), parts)


def test_two_lists_of_like_blocks_are_not_guessed_between():
    model = tiny_model()
    model.model.second = nn.ModuleList(copy.deepcopy(block) for block in layout.blocks(model))
    layout.declare(model, None)
    with pytest.raises(
        SetupError, match=r"several lists.*model\.layers \(5 of LlamaDecoderLayer\), model\.second.*NAME"
    ):
        layout.blocks(model)
    layout.declare(model, {"blocks": "model.second"})
    assert layout.blocks(model) is model.model.second


def test_a_depth_that_no_list_has_is_refused_with_what_is_there():
    model = tiny_model()
    model.config.num_hidden_layers = 7
    layout.declare(model, None)
    with pytest.raises(SetupError, match=r"no list of 7 blocks of one class was found, only model\.layers \(5 of"):
        layout.blocks(model)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (
            {"gates": "mlp.gate_proj"},
            r"unknown part gates; allowed are blocks, norm, gate, up, value, q, k, v, o, fused",
        ),
        (
            {"gate": "mlp.gate"},
            r"model\.layout\.gate=mlp\.gate: no block has a matrix of that name; block 0 has .*mlp\.",
        ),
        ({"blocks": "model.norm"}, r"model\.layout\.blocks=model\.norm: this is a LlamaRMSNorm; expected a ModuleList"),
        ({"norm": "model.nrm"}, r"model\.layout\.norm=model\.nrm: LlamaForCausalLM has no such module"),
        ({"fused": "striped"}, r"model\.layout\.fused='striped': allowed are stacked, groups, null"),
        ({"fused": "stacked"}, r"model\.layout\.fused=stacked: q, k and v are matrices of their own here"),
        ({"gate": 3}, r"model\.layout\.gate=3: expected the name of a matrix, or a list of names"),
        ({"gate": ["mlp.up_proj", 3]}, r"model\.layout\.gate=.*: expected the name of a matrix, or a list of names"),
        ({"gate": ["mlp.gate_proj"] * 2}, r"model\.layout\.gate=.*: a matrix is named twice"),
        ({"norm": ""}, r"model\.layout\.norm=: this module \(LlamaForCausalLM\) has a matrix; expected the norm"),
        (
            {"norm": "model.rotary_emb"},
            r"this module \(LlamaRotaryEmbedding\) has no weight; expected .* of 36 numbers",
        ),
        ({"norm": "model.layers.0.input_layernorm"}, r"this module \(LlamaRMSNorm\) is inside a block; expected"),
        ({"norm": "model.layers.0.mlp.act_fn"}, r"this module \(SiLUActivation\) is inside a block; expected"),
    ],
)
def test_a_declaration_that_fits_nothing_is_refused(parts, told):
    with pytest.raises(SetupError, match=told):
        layout.declare(tiny_model(), parts)


def test_a_part_of_a_parameter_is_written_whole_in_one_edit():
    """Rows of gate and up in one matrix, one after the other: nothing that was written first is lost."""
    model = architectures.model_of("phi3")
    gate, up = layout.stream_rows(model, 0, "gate"), layout.stream_rows(model, 0, "up")
    new = {}
    gate.put(new, gate.read() + 1)
    up.put(new, up.read() - 1)
    (parameter,) = new
    assert torch.equal(new[parameter], torch.cat([gate.read() + 1, up.read() - 1]))
    assert gate.parts[0].parameter is up.parts[0].parameter is parameter


def test_only_a_norm_of_the_width_can_be_declared():
    model = tiny_model()
    model.model.other, model.model.short = copy.deepcopy(model.model.norm), nn.LayerNorm(8)
    layout.declare(model, {"norm": "model.other"})
    assert layout.final_norm(model) is model.model.other
    with pytest.raises(SetupError, match=r"norm=model\.short: .* has weights of the sizes \(8,\), \(8,\); expected"):
        layout.declare(model, {"norm": "model.short"})
    assert layout.final_norm(model) is model.model.norm  # a refused declaration leaves nothing behind


def test_a_norm_of_the_embeddings_is_not_the_final_one():
    """It is made after the blocks in Bart, and nothing follows the blocks there."""
    model = tiny_model()
    model.model.embedding_norm = model.model._modules.pop("norm")
    layout.declare(model, None)
    assert layout.of(model).norm == "model.embedding_norm"  # as LFM2 calls its final norm
    model.model.layernorm_embedding = model.model._modules.pop("embedding_norm")
    layout.declare(model, None)
    assert layout.of(model).norm is None


@pytest.mark.parametrize(("one", "other"), [("gate", "up"), ("up", "gate")])
def test_a_gate_declared_as_what_was_found_as_up_leaves_the_rest(one, other):
    """Both would be taken for one matrix that holds both, and half of its rows for each."""
    model = tiny_model()
    mlp = layout.blocks(model)[0].mlp
    for name in (f"mlp.{other}_proj", f"mlp.{other}_proj.weight"):
        layout.declare(model, {one: name})
        assert torch.equal(layout.stream_rows(model, 0, one).read(), mlp.get_submodule(f"{other}_proj").weight)
        assert torch.equal(layout.stream_rows(model, 0, other).read(), mlp.get_submodule(f"{one}_proj").weight)


@pytest.mark.parametrize(
    ("architecture", "parts", "told"),
    [
        (
            "llama",
            {"q": "self_attn.k_proj"},
            "k_proj would be the matrix of q and k, .* that of k; declare all of q, k:",
        ),
        (
            "llama",
            {"value": "self_attn.o_proj"},
            "o_proj would be the matrix of value and o, .* declare all of value, o:",
        ),
        ("llama", {"gate": "mlp.up_proj", "up": "mlp.up_proj"}, "one matrix for both would have 88 outputs.* has 44;"),
        (
            "phi3",
            {"up": []},
            "gate_up_proj would be the matrix of gate, .* that of gate and up; declare all of gate, up:",
        ),
        (
            "gpt2",
            {"v": "attn.c_attn", "k": []},
            "c_attn would be the matrix of q and v, .* that of q and k and v; declare",
        ),
        ("gpt2", {"q": [], "k": [], "v": "attn.c_attn"}, "c_attn would be the matrix of v, .* that of q and k and v;"),
    ],
)
def test_a_matrix_is_of_one_kind_or_of_all_that_share_it(architecture, parts, told):
    with pytest.raises(SetupError, match=told):
        layout.declare(architectures.model_of(architecture), parts)


def test_a_shared_matrix_can_be_declared_as_such():
    model = architectures.model_of("phi3")
    before = layout.of(model)
    layout.declare(model, {"gate": "mlp.gate_up_proj", "up": ["mlp.gate_up_proj"], "v": "self_attn.qkv_proj"})
    assert layout.of(model) == before


def codegen():
    """Its q, v and k are of four parts that would be on one device each, which is neither of the two orders."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        CodeGenConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    ).eval()


@pytest.mark.parametrize("parts", [None, {"fused": "stacked"}, {"fused": "groups"}])
def test_an_order_of_q_k_v_that_is_neither_is_refused(parts):
    model = codegen()
    with pytest.raises(
        SetupError, match=r"codegen: attn\.qkv_proj, .* neither stacked .* No other order can be declared"
    ):
        layout.declare(model, parts)
        layout.stream_rows(model, 0, "v")


def test_clipped_values_show_the_order_of_q_k_v():
    torch.manual_seed(0)
    config = MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, attn_config={"clip_qkv": 0.01})
    model = AutoModelForCausalLM.from_config(config).eval()
    weight = layout.blocks(model)[0].attn.Wqkv.weight
    assert torch.equal(layout.stream_rows(model, 0, "v").read(), weight[64:])
    layout.declare(model, {"fused": "stacked"})
    with pytest.raises(SetupError, match="show that it is stacked"):
        layout.declare(model, {"fused": "groups"})


def test_a_token_whose_values_are_zero_tells_no_order():
    """As that of a padding row: both orders give zeros, and the first of them was taken."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS["gpt_neox"])
    config.attention_bias = False
    model = AutoModelForCausalLM.from_config(config).eval()
    model.gpt_neox.embed_in.weight.data[0] = 0
    assert layout.of(model).fused == "groups"
    heads = layout.blocks(model)[0].attention.query_key_value.weight.view(4, 3, 8, 32)
    assert torch.equal(layout.stream_rows(model, 0, "v").read(), heads[:, 2].flatten(0, 1))


@pytest.mark.parametrize("size", [32, 16, 44])
def test_experts_as_wide_as_the_stream_are_not_transposed(size):
    """Llama 4 stores (inputs, outputs) and does not say so; with 32 `down` is square, with 16 gate and up together."""
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=size, intermediate_size_mlp=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        interleave_moe_layer_step=1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    experts = next(one for one in layout.blocks(model)[0].modules() if hasattr(one, "gate_up_proj"))
    both = experts.gate_up_proj.transpose(1, 2)  # (E, 2 * size, D)
    assert torch.equal(layout.stream_rows(model, 0, "gate").read()[:size], both[0, :size])
    assert torch.equal(layout.stream_rows(model, 0, "up").read()[:size], both[0, size:])
    down = [one for one in layout.stream_rows(model, 0, "down").parts if one.parameter is experts.down_proj]
    assert torch.equal(down[0].read(), experts.down_proj[0])
