import pytest
import torch

from bench.model.lm import LM
from bench.model.sampling import prefill, sample
from methods import layout
from methods.act_add import ActAdd, residual
from methods.base import FitData
from methods.errors import SetupError
from methods.intervention import record
from tests.sinks import planted_sink
from tests.tiny import CONFIGS, tiny_lm

PROMPT = "People walk along the water"
LAYER = 2


def fit(method: ActAdd, lm: LM) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData())


def front(method: ActAdd, lm: LM) -> torch.Tensor:
    return fit(method, lm)[f"layers.{method.layer}.front"]


def read(lm: LM, ids: list[int], prompt: int) -> torch.Tensor:
    """(T, V) logits of one text in one forward."""
    rows = lm.start(torch.tensor([prompt]))
    return lm.read(rows, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_vector_is_the_difference_by_position_at_block_input(architecture):
    lm = tiny_lm(architecture)
    method = ActAdd(desired="love", undesired="hate and", layer=LAYER)
    desired, undesired = method.tokens(lm.tokenizer)
    space = lm.tokenizer(" ", add_special_tokens=False).input_ids[0]
    missing = len(undesired) - len(lm.tokenizer("love").input_ids)
    assert missing > 0 and desired == lm.tokenizer("love").input_ids + [space] * missing
    with torch.inference_mode():
        states = [
            lm.model(torch.tensor([t]), output_hidden_states=True).hidden_states[LAYER][0] for t in (desired, undesired)
        ]
    artefact = fit(method, lm)
    expected = states[0] - states[1]
    torch.testing.assert_close(artefact[f"layers.{LAYER}.front"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        artefact["info.norm_ratio"], expected.norm(dim=-1) / states[0].norm(dim=-1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("pad", [" ", None])
def test_swapping_the_prompts_negates_and_bos_gives_zero(architecture, pad):
    lm = tiny_lm(architecture)
    v = front(ActAdd(desired="love and bread", undesired="hate", layer=LAYER, pad=pad), lm)
    assert torch.equal(front(ActAdd(desired="hate", undesired="love and bread", layer=LAYER, pad=pad), lm), -v)
    assert not v[0].any() and v[1:].any(-1).all()


def test_zero_difference_and_zero_strength_leave_every_bit():
    lm = tiny_lm()
    method = ActAdd(desired="love", undesired="hate", layer=LAYER)
    artefact, ids = fit(method, lm), lm.encode(PROMPT)
    base = read(lm, ids, len(ids))
    key = f"layers.{LAYER}.front"
    for steering, strength in (({key: artefact[key] * 0}, 7), (artefact, 0)):
        with method.apply(lm.model, steering, strength):
            assert torch.equal(read(lm, ids, len(ids)), base)
    with method.apply(lm.model, artefact, 7):
        assert not torch.equal(read(lm, ids, len(ids)), base)
    assert torch.equal(read(lm, ids, len(ids)), base)  # removed, it leaves nothing behind


@pytest.mark.parametrize(
    ("desired", "undesired", "pad"), [("love", "love", " "), ("love", "love", None), ("love", "love ", " ")]
)
def test_prompts_of_the_same_tokens_are_an_error(desired, undesired, pad):
    with pytest.raises(SetupError, match="are the same tokens here .* give two texts that differ"):
        fit(ActAdd(desired=desired, undesired=undesired, layer=LAYER, pad=pad), tiny_lm())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_pad_each_prompt_acts_as_far_as_it_goes(architecture):
    lm = tiny_lm(architecture)
    method = ActAdd(desired="love", undesired="hate and bread", layer=LAYER, pad=None)
    desired, undesired = method.tokens(lm.tokenizer)
    assert desired == lm.tokenizer("love").input_ids and undesired == lm.tokenizer("hate and bread").input_ids
    short, long = residual(lm.model, desired, LAYER), residual(lm.model, undesired, LAYER)
    assert len(short) < len(long)
    artefact = fit(method, lm)
    v = artefact[f"layers.{LAYER}.front"]
    assert torch.equal(v[: len(short)], short - long[: len(short)])
    assert torch.equal(v[len(short) :], -long[len(short) :])
    assert not artefact["info.desired_norm"][len(short) :].any()
    torch.testing.assert_close(artefact["info.norm_ratio"][len(short) :], torch.ones(len(long) - len(short)))
    # added one after the other, as two vectors with an end each, it is the same
    ids = lm.encode(PROMPT)
    with record(lm.model, [LAYER], "input") as seen:
        read(lm, ids, len(ids))
        expected = seen[LAYER][0].clone()
    expected[: len(short)] += 3 * short
    expected[: len(long)] -= 3 * long
    with lm.steered(method, artefact, 3) as steered, record(lm.model, [LAYER], "input") as entered:
        read(steered, ids, len(ids))
    torch.testing.assert_close(entered[LAYER][0], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_self_swap_turns_one_prompt_into_the_other(architecture):
    """With the undesired prompt itself as prompt, and strength 1, the stream from the layer on is the desired one's."""
    lm = tiny_lm(architecture)
    method = ActAdd(desired="love and bread", undesired="hate and bread", layer=LAYER)
    desired, undesired = method.tokens(lm.tokenizer)
    target, base = read(lm, desired, len(desired)), read(lm, undesired, len(undesired))
    with lm.steered(method, fit(method, lm), 1) as steered:
        swapped = read(steered, undesired, len(undesired))
    assert (base - target).abs().max() > 0.1
    torch.testing.assert_close(swapped, target, atol=1e-3, rtol=1e-3)


def test_only_the_front_is_touched_and_nothing_before_it_notices():
    lm = tiny_lm()
    method = ActAdd(desired="love", undesired="hate", layer=LAYER)
    artefact, ids = fit(method, lm), lm.encode(PROMPT)
    v = artefact[f"layers.{LAYER}.front"]
    size = len(v)
    layers = range(len(layout.blocks(lm.model)))

    def streams(lm: LM) -> dict[int, torch.Tensor]:
        with record(lm.model, layers) as seen:
            read(lm, ids, len(ids))
        return {layer: hidden[0] for layer, hidden in seen.items()}

    before = streams(lm)
    with lm.steered(method, artefact, 3) as steered:
        # a recorder entered inside is called behind the steering hook: the input as the block gets it
        with record(lm.model, [LAYER], "input") as entered:
            read(steered, ids, len(ids))
            into = entered[LAYER][0]
        after = streams(steered)
    for layer in range(LAYER):
        assert torch.equal(after[layer], before[layer])
    assert torch.equal(into[size:], before[LAYER - 1][size:])
    assert torch.equal(into[:size], before[LAYER - 1][:size] + 3 * v)
    assert torch.equal(after[LAYER][0], before[LAYER][0])  # BOS, where v is 0
    assert not torch.allclose(after[LAYER][-1], before[LAYER][-1])  # felt through attention, at every later token


def test_cached_steps_are_untouched():
    lm = tiny_lm()
    method = ActAdd(desired="love", undesired="hate", layer=LAYER)
    with lm.steered(method, fit(method, lm), 3) as steered:
        rows, _ = prefill(steered, [steered.encode(PROMPT)])
        step, real = torch.tensor([[40]]), torch.tensor([[True]])
        with record(lm.model, [LAYER], "input") as behind:
            steered.read(rows, step, real)
        with record(lm.model, [LAYER - 1]) as written:
            steered.read(rows, step, real)
            with record(lm.model, [LAYER], "input") as entered:
                steered.read(rows, step, real)
            assert torch.equal(entered[LAYER], written[LAYER - 1])
    assert behind[LAYER].shape == (1, 1, layout.width(lm.model))


def test_left_padding_moves_the_front_along():
    lm = tiny_lm()
    method = ActAdd(desired="love", undesired="hate", layer=LAYER)
    artefact = fit(method, lm)
    v = artefact[f"layers.{LAYER}.front"]
    encoded = [lm.encode(PROMPT), lm.encode("The lazy")]
    pads = len(encoded[0]) - len(encoded[1])
    assert pads > 0 and len(encoded[1]) >= len(v)
    with record(lm.model, [LAYER], "input") as seen:
        prefill(lm, encoded)
        before = seen[LAYER]
    with lm.steered(method, artefact, 2) as steered, record(lm.model, [LAYER], "input") as entered:
        prefill(steered, encoded)
        moved = entered[LAYER]
    assert torch.equal(moved[1, pads : pads + len(v)], before[1, pads : pads + len(v)] + 2 * v)
    assert torch.equal(moved[1, :pads], before[1, :pads])
    assert torch.equal(moved[1, pads + len(v) :], before[1, pads + len(v) :])


def test_short_prompt_is_an_error_by_default_and_can_be_clipped():
    lm = tiny_lm(bos="none")
    strict = ActAdd(desired="love", undesired="hate and bread", layer=LAYER)
    artefact = fit(strict, lm)
    size = len(artefact[f"layers.{LAYER}.front"])
    ids = lm.encode("a")
    assert len(ids) == 1 < size
    with pytest.raises(SetupError, match=rf"first {size} tokens, and a prompt has 1; set method\.short_prompt=clip"):
        with lm.steered(strict, artefact, 3) as steered:
            sample(steered, [PROMPT, "a"], 1, 2)
    clip = ActAdd(desired="love", undesired="hate and bread", layer=LAYER, short_prompt="clip")
    text = ids + lm.tokenizer(" river bird").input_ids
    with record(lm.model, [LAYER], "input") as seen:
        read(lm, text, 1)
        before = seen[LAYER][0]
    with lm.steered(clip, artefact, 3) as steered, record(lm.model, [LAYER], "input") as entered:
        read(steered, text, 1)
        after = entered[LAYER][0]
    assert torch.equal(after[1:], before[1:])  # the continuation is never touched, though the vector is longer
    assert torch.equal(after[0], before[0] + 3 * artefact[f"layers.{LAYER}.front"][0])


@pytest.mark.parametrize("bos", ["none", "prepend"])
def test_start_puts_a_shared_beginning_before_both_prompts(bos):
    lm = tiny_lm(bos=bos)
    plain = ActAdd(desired="love", undesired="hate", layer=LAYER)
    started = ActAdd(desired="love", undesired="hate", layer=LAYER, start="</s>")
    begin = [1] * (bos == "prepend")
    (a, b), (c, d) = plain.tokens(lm.tokenizer), started.tokens(lm.tokenizer)
    shared = [*begin, lm.tokenizer.eos_token_id]
    assert c == shared + a[len(begin) :] and d == shared + b[len(begin) :]
    v = front(started, lm)
    assert not v[: len(shared)].any() and v[len(shared) :].any(-1).all()
    torch.testing.assert_close(v, residual(lm.model, c, LAYER) - residual(lm.model, d, LAYER))


def test_a_shared_start_keeps_a_planted_sink_out_of_the_vector():
    """The sink token first in one prompt alone: row 0 is all sink. With a shared start it is ordinary words again."""
    lm, _, direction, sink = planted_sink()
    prompts = {"desired": "<s>0", "undesired": "1<s>"}
    without = ActAdd(**prompts, layer=LAYER)
    lm_without = tiny_lm(bos="none").tokenizer
    v = without.fit(lm.model, lm_without, FitData())[f"layers.{LAYER}.front"]
    assert torch.cosine_similarity(v[0], sink, dim=0) > 0.99 and v[0].norm() > 90
    started = ActAdd(desired="0", undesired="5", layer=LAYER, start="<s>")
    v = started.fit(lm.model, lm_without, FitData())[f"layers.{LAYER}.front"]
    assert not v[0].any()
    assert torch.cosine_similarity(v[1], direction, dim=0) > 0.98 and abs(float(v[1] @ sink)) < 0.3


def test_a_pad_that_is_a_sink_shows_in_the_norms():
    """As in SmolLM2, where the paper's space behind "Love" is seven times as long as a word."""
    lm, _, _, sink = planted_sink()
    lm.model.get_input_embeddings().weight[lm.tokenizer(" ", add_special_tokens=False).input_ids[0]] = 50 * sink
    sunk = fit(ActAdd(desired="0", undesired="56", layer=LAYER), lm)
    v = sunk[f"layers.{LAYER}.front"]
    assert torch.cosine_similarity(v[-1], sink, dim=0) > 0.99
    assert sunk["info.desired_norm"][-1] > 40 > 2 > sunk["info.undesired_norm"][-1]
    other = fit(ActAdd(desired="0", undesired="56", layer=LAYER, pad="\n"), lm)
    assert other["info.desired_norm"][-1] < 2 and abs(float(other[f"layers.{LAYER}.front"][-1] @ sink)) < 0.3


def test_wrong_settings():
    lm = tiny_lm()
    with pytest.raises(SetupError, match="does not add exactly one token after a prompt: .* another text, or null"):
        fit(ActAdd(desired="love", undesired="hate and bread", pad="xyz", layer=LAYER), lm)
    with pytest.raises(SetupError, match="allowed are error, clip"):
        ActAdd(short_prompt="cut").check(lm.model)
    with pytest.raises(SetupError, match="layer 40 out of range"):
        ActAdd(layer=40).check(lm.model)
    bare = tiny_lm(bos="none")
    with pytest.raises(SetupError, match="are the same tokens here"):
        fit(ActAdd(desired="", undesired="", layer=LAYER), bare)
    with pytest.raises(SetupError, match=r"method\.undesired has no tokens with this tokenizer"):
        fit(ActAdd(desired="love", undesired="", layer=LAYER, pad=None), bare)
    assert ActAdd(desired="love", undesired="", layer=LAYER).tokens(bare.tokenizer)[1]  # of pads alone


def test_an_artefact_of_another_model_or_layer():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    method = ActAdd(layer=LAYER)
    artefact = fit(method, lm)
    with pytest.raises(
        SetupError, match=r"layers\.2\.front \(\d+, 36\) was not fitted on this model, whose width is 28"
    ):
        with method.apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.1\.front was not fitted on this model at this layer"):
        with ActAdd(layer=1).apply(lm.model, artefact, 1):
            pass
