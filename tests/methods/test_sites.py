"""Where attention, MLP, heads and neurons of a block are, on every architecture."""

import copy

import pytest
import torch

from methods import layout, sites
from methods.errors import SetupError
from methods.intervention import Positions, at, hooked, record
from tests.architectures import CONFIGS, model_of

EXPERTS = {"mixtral", "qwen3_moe", "qwen3_moe_mixed"}
NORMED = {"gemma2", "gemma3", "gemma3_multimodal", "olmo2", "olmo3"}
IDS = torch.tensor([[5, 9, 11, 7, 3], [4, 8, 2, 6, 10]])


@pytest.fixture(scope="module", params=list(CONFIGS))
def built(request):
    return request.param, model_of(request.param)


@torch.no_grad()
def stream(model, hooks, layer):
    """The stream at the input and at the output of a block, with these hooks."""
    none, length = torch.zeros(2, dtype=torch.long), torch.full((2,), 5)
    with (
        at(Positions(none, length, none, length)),
        hooked(hooks),
        record(model, [layer], "input") as before,
        record(model, [layer]) as after,
    ):
        model(input_ids=IDS, use_cache=False)
        return before[layer].clone(), after[layer].clone()


@torch.no_grad()
def test_a_block_without_its_writes_passes_the_stream_on(built):
    _, model = built
    for layer in range(2):
        places = [sites.written(model, layer, part) for part in sites.PARTS]
        before, after = stream(model, sites.zeroed(places), layer)
        assert torch.equal(before, after)
        assert all(place.width == 32 for place in places)


def test_each_part_alone_matters(built):
    _, model = built
    for part in sites.PARTS:
        before, after = stream(model, sites.zeroed([sites.written(model, 1, part)]), 1)
        assert not torch.equal(before, after)


def test_a_norm_behind_the_projection_is_found(built):
    name, model = built
    for layer in range(2):
        assert [sites.is_normed(model, layer, part) for part in sites.PARTS] == [name in NORMED] * 2
        kinds = [type(sites.projected(model, layer, part).module).__name__ for part in sites.PARTS]
        assert not any("norm" in kind.lower() for kind in kinds)


@torch.no_grad()
def test_heads_are_the_columns_of_the_output_matrix(built):
    _, model = built
    heads = sites.heads(model, 1)
    seen = {}

    def keep(inputs):
        seen["inputs"] = inputs
        return inputs

    place = sites.projected(model, 1, "attention")

    def keep_output(output):
        seen["output"] = output
        return output

    hooks = [heads.place.hook(keep), place.hook(keep_output)]
    stream(model, hooks, 1)
    assert seen["inputs"].shape == (2, 5, heads.number * heads.size) == (2, 5, heads.place.width)
    matrix = layout.stream_rows(model, 1, "o").read()  # (H * d, D)
    bias = getattr(place.module, "bias", None)
    wanted = seen["inputs"] @ matrix + (0 if bias is None else bias)
    assert torch.allclose(seen["output"], wanted, atol=1e-5)


@torch.no_grad()
def test_neurons_are_the_inputs_of_the_value_matrix(built):
    name, model = built
    if name in EXPERTS:
        with pytest.raises(SetupError, match="one for each expert"):
            sites.neurons(model, 1)
        return
    place = sites.neurons(model, 1)
    seen = []

    def keep(hidden):
        seen.append(hidden)
        return hidden

    stream(model, [place.hook(keep)], 1)
    assert seen[0].shape == (2, 5, place.width)
    assert place.width == layout.value_matrix(model, 1).read().shape[1]


@torch.no_grad()
def test_linears_of_the_mlp_run_in_the_order_given(built):
    name, model = built
    if name in EXPERTS:
        with pytest.raises(SetupError, match="one for each expert"):
            sites.mlp_linears(model, 1)
        return
    order = []
    found = sites.mlp_linears(model, 1)
    handles = [m.register_forward_hook(lambda *_, key=key: order.append(key)) for key, m in found.items()]
    stream(model, [], 1)
    for handle in handles:
        handle.remove()
    assert order == list(found)


def test_blocks_of_a_mixed_model_are_told_apart():
    model = model_of("qwen3_moe_mixed")
    assert sites.neurons(model, 0).width == 44
    assert list(sites.mlp_linears(model, 0)) == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    with pytest.raises(SetupError, match="one for each expert"):
        sites.neurons(model, 1)


def test_heads_that_do_not_fit_are_refused():
    model = model_of("llama")
    model.config.num_attention_heads = 3
    with pytest.raises(SetupError, match="not 3 heads"):
        sites.heads(model, 0)


def test_a_declared_layout_is_searched_anew():
    model = model_of("llama")
    mlp = layout.blocks(model)[0].mlp
    assert sites.written(model, 0, "mlp").module is mlp.down_proj
    for block in layout.blocks(model):
        block.mlp.another = copy.deepcopy(block.mlp.down_proj)
        block.mlp.forward = lambda x, own=block.mlp: own.another(own.gate_proj(x) * own.up_proj(x))
    layout.declare(model, {"value": "mlp.another"})
    assert sites.written(model, 0, "mlp").module is mlp.another
