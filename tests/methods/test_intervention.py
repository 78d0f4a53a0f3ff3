import pytest
import torch

from methods import layout
from methods.intervention import (
    Hook,
    Positions,
    adding,
    at,
    current_positions,
    edited,
    hooked,
    record,
    scope_mask,
    stopped_after,
)
from tests.tiny import CONFIGS, tiny_model

IDS = torch.tensor([[5, 80, 33, 7, 120, 41]])


def positions(first, length, cached, prompt) -> Positions:
    return Positions(*(torch.tensor(value) for value in (first, length, cached, prompt)))


@torch.inference_mode()
def run(model) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("site", ["input", "output"])
def test_hook_moves_the_stream_by_exactly_what_it_adds(architecture, site):
    model = tiny_model(architecture)
    base, layer = run(model), 1
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(layout.width(model), generator=generator)
    with record(model, [layer], site) as seen:
        run(model)
        before = seen[layer]
        with (
            hooked([Hook(layout.blocks(model)[layer], site, lambda h: h + vector)]),
            record(model, [layer], site) as at2,
        ):
            moved = run(model)
            assert torch.equal(at2[layer], before + vector)  # recorded behind the hook
        assert torch.equal(seen[layer], before)  # recorded before it: nothing was written in place
    assert not torch.allclose(moved, base)
    assert torch.equal(run(model), base)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_block_output_keeps_its_kind(architecture):
    model = tiny_model(architecture)
    block, kinds = layout.blocks(model)[0], []
    with hooked([Hook(block, "output", lambda h: h + 1)]):
        handle = block.register_forward_hook(lambda _m, _a, output: kinds.append(type(output)))
        run(model)
        handle.remove()
    assert kinds == [tuple if architecture == "gptj" else torch.Tensor]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_record_gives_hidden_states_the_last_before_the_norm(architecture):
    model = tiny_model(architecture)
    depth = len(layout.blocks(model))
    with torch.inference_mode(), record(model, range(depth)) as out, record(model, range(depth), "input") as into:
        states = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
        for layer in range(depth):
            assert torch.equal(into[layer], states[layer])
        for layer in range(depth - 1):
            assert torch.equal(out[layer], states[layer + 1])
        assert not torch.allclose(out[depth - 1], states[-1])
        assert torch.equal(layout.final_norm(model)(out[depth - 1]), states[-1])


def test_hooks_are_gone_after_an_exception():
    model = tiny_model()
    base, block = run(model), layout.blocks(model)[0]
    with (
        pytest.raises(KeyError),
        hooked([Hook(block, "output", lambda h: h + 1), Hook(block, "input", lambda h: h * 2)]),
    ):
        raise KeyError
    assert not block._forward_hooks and not block._forward_pre_hooks
    assert torch.equal(run(model), base)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_forward_stops_after_the_block_and_leaves_no_trace(architecture):
    model, layer = tiny_model(architecture), 1
    base, blocks = run(model), layout.blocks(model)
    with record(model, [layer]) as seen:
        run(model)
        whole = seen[layer]
    ran = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    with record(model, [layer]) as seen:
        with stopped_after(model, layer):
            run(model)
            pytest.fail("it went on")
        assert torch.equal(seen[layer], whole)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert torch.equal(run(model), base)
    with pytest.raises(KeyError), stopped_after(model, layer):
        raise KeyError
    assert not any(block._forward_hooks for block in blocks)


def test_edited_copies_the_bytes_back_also_after_an_exception():
    model = tiny_model("gpt2")
    weight = layout.value_matrix(model, 0).parameter
    before = weight.detach().clone()
    with edited({weight: before + 1}):
        assert torch.equal(weight, before + 1)
    assert torch.equal(weight, before)
    with pytest.raises(KeyError), edited({weight: before * 0}):
        raise KeyError
    assert torch.equal(weight, before)


def test_edited_with_a_wrong_shape_undoes_what_it_had_done():
    model = tiny_model()
    first, second = layout.value_matrix(model, 0).parameter, layout.value_matrix(model, 1).parameter
    before = first.detach().clone()
    with pytest.raises(ValueError, match=r"new value has shape \(2,\), the parameter \(36, 52\)"):
        with edited({first: before + 1, second: torch.zeros(2)}):
            pytest.fail("entered")
    assert torch.equal(first, before)


def test_positions_count_real_tokens_only():
    # left-padded by 2; right-padded by 1; one decoding step behind 4 cached tokens, its row padded by 3
    where = positions([2, 0, 3], [2, 3, 1], [0, 0, 4], [2, 2, 3])
    assert where.in_text(4).tolist() == [[-1, -1, 0, 1], [0, 1, 2, -1], [-1, -1, -1, 4]]


def test_scope_masks_by_hand():
    # row 0: left-padded by one, prompt of 3 and 2 more; row 1: prompt of 4, one more, right-padded; row 2: decoding
    where = positions([1, 0, 4], [4, 5, 1], [0, 0, 6], [3, 4, 5])
    t, f = True, False

    def mask(scope, **options):
        with at(where):
            return scope_mask(scope, 5, **options).tolist()

    assert mask("front", front=2) == [[f, t, t, f, f], [t, t, f, f, f], [f, f, f, f, f]]
    assert mask("prompt") == [[f, t, t, t, f], [t, t, t, t, f], [f, f, f, f, f]]
    assert mask("generation") == [[f, f, f, f, t], [f, f, f, f, t], [f, f, f, f, t]]
    assert mask("generation", boundary=True) == [[f, f, f, t, t], [f, f, f, t, t], [f, f, f, f, t]]
    assert scope_mask("all", 5) is None
    with pytest.raises(ValueError, match="not one of all, front, prompt, generation"), at(where):
        scope_mask("last", 5)


def test_boundary_of_a_decoding_step_is_not_the_prompt_again():
    # the first generated token, read behind the whole prompt: steered once, by either rule
    where = positions([0], [1], [3], [3])
    with at(where):
        assert scope_mask("generation", 1).tolist() == [[True]]
        assert scope_mask("generation", 1, boundary=True).tolist() == [[True]]
        assert scope_mask("prompt", 1).tolist() == [[False]]
        assert scope_mask("front", 1, front=3).tolist() == [[False]]


def test_padding_is_in_no_scope():
    where = positions([2], [1], [0], [0])  # an empty prompt: the boundary rule asks for position -1, which padding has
    with at(where):
        assert scope_mask("generation", 4, boundary=True).tolist() == [[False, False, True, False]]


def test_a_scope_without_positions_raises_and_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"bench\.load_lm"):
        current_positions()
    where = positions([0], [1], [0], [1])
    with pytest.raises(KeyError), at(where):
        assert current_positions() is where
        raise KeyError
    with pytest.raises(RuntimeError):
        scope_mask("prompt", 3)


def test_adding_leaves_other_columns_bit_equal():
    hidden = torch.randn(1, 4, 3, dtype=torch.bfloat16)
    vector = torch.tensor([1.0, -2.0, 0.5])
    with at(positions([0], [4], [0], [2])):
        moved = adding(vector, "generation")(hidden)
        bounded = adding(vector, "generation", boundary=True)(hidden)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved[:, :2], hidden[:, :2]) and torch.equal(bounded[:, :1], hidden[:, :1])
    assert torch.equal(moved[:, 2:], hidden[:, 2:] + vector.bfloat16())
    assert torch.equal(bounded[:, 1:], hidden[:, 1:] + vector.bfloat16())
    assert torch.equal(adding(vector, "all")(hidden), hidden + vector.bfloat16())
