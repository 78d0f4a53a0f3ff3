from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.export.effect import measure
from bench.model.lm import LM
from methods import layout
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.instruction import Instruction
from methods.intervention import Hook, hooked
from tests.sinks import planted_sink
from tests.tiny import tiny_lm
from tests.vectors import PAIRS, before_and_after, output_by_hand, text_logits

LAYER = 1
KEY, TARGET = f"layers.{LAYER}.direction", f"layers.{LAYER}.target"
WORDS = "People talk about love. "


def made(**options) -> Instruction:
    return Instruction(**{"layer": LAYER, "instruction": WORDS} | options)


def fit(method: Instruction, lm: LM, pairs: Pairs = PAIRS) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def by_hand(lm: LM, method: Instruction) -> tuple[Tensor, Tensor, float]:
    """Mean difference, mean activation with the instruction, and the mean length of the stream without it."""
    there, absent, lengths = [], [], []
    for prompt in PAIRS.prompt:
        there.append(output_by_hand(lm, lm.encode(method.instruction + prompt), LAYER)[-1])
        plain = output_by_hand(lm, lm.encode(prompt), LAYER)
        absent.append(plain[-1])
        lengths.append(plain[1:].norm(dim=-1).mean())
    means = torch.stack(there).mean(0), torch.stack(absent).mean(0)
    return means[0] - means[1], means[0], float(torch.stack(lengths).mean())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_direction_and_target_are_those_of_the_formula(architecture):
    lm, method = tiny_lm(architecture), made()
    difference, mean, norm = by_hand(lm, method)
    unit = difference / difference.norm()
    artefact = fit(method, lm)
    torch.testing.assert_close(artefact[KEY].double(), norm * unit, atol=1e-3 * norm, rtol=1e-3)
    target = float(mean @ unit)
    assert float(artefact[TARGET]) == pytest.approx(target, rel=1e-3)
    assert float(artefact["info.target"]) == pytest.approx(target, rel=1e-3)
    assert float(artefact["info.target_without"]) == pytest.approx(
        target - float(difference.norm()), rel=1e-3, abs=1e-3
    )
    assert float(artefact["info.direction_norm"]) == pytest.approx(float(difference.norm()), rel=1e-3)


def test_clamp_sets_the_projection_and_nothing_else():
    lm, method = tiny_lm(), made()
    artefact = fit(method, lm)
    unit, target = artefact[KEY].double() / artefact[KEY].double().norm(), float(artefact[TARGET])
    before, after, _ = (one.double() if isinstance(one, Tensor) else one
                        for one in before_and_after(lm, method, artefact, 1, LAYER))  # fmt: skip
    torch.testing.assert_close(after @ unit, torch.full((len(after),), target).double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after - (after @ unit)[:, None] * unit, before - (before @ unit)[:, None] * unit,
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    assert ((before @ unit) - target).abs().min() > 1e-2, "there was something to set"
    for share in (0.25, 1.25, -0.5):
        moved = before_and_after(lm, method, artefact, share, LAYER)[1].double() @ unit
        torch.testing.assert_close(moved, before @ unit + share * (target - before @ unit), atol=1e-4, rtol=1e-4)


def test_clamping_twice_is_clamping_once():
    lm, method = tiny_lm(), made()
    artefact = fit(method, lm)
    with lm.steered(method, artefact, 1) as once:
        first = text_logits(once)
        for strength in (1, 0.5):
            with method.apply(lm.model, artefact, strength):
                torch.testing.assert_close(text_logits(once), first, atol=1e-4, rtol=1e-4)


def test_add_moves_every_token_by_the_strength_in_lengths():
    lm, method = tiny_lm(), made(operation="add")
    artefact = fit(method, lm)
    difference, _, norm = by_hand(lm, method)
    added = (-0.3 * norm * difference / difference.norm()).float()
    before, after, _ = before_and_after(lm, method, artefact, -0.3, LAYER)
    torch.testing.assert_close(after - before, added.expand_as(before), atol=1e-3 * norm, rtol=1e-3)
    assert method.residual_norms({}) == 1 and made().residual_norms({}) is None
    assert fit(made(), lm).keys() == artefact.keys()
    assert all(torch.equal(one, artefact[key]) for key, one in fit(made(), lm).items())


def test_an_offset_of_all_activations_cancels_in_the_direction():
    lm, method = tiny_lm(), made()
    offset = 5 * torch.randn(layout.width(lm.model), generator=torch.Generator().manual_seed(5))
    plain = fit(method, lm)
    with hooked([Hook(layout.blocks(lm.model)[LAYER], "output", lambda hidden: hidden + offset)]):
        moved = fit(method, lm)
    unit = plain[KEY] / plain[KEY].norm()
    torch.testing.assert_close(moved[KEY] / moved[KEY].norm(), unit, atol=1e-4, rtol=1e-4)
    assert float(moved[TARGET] - plain[TARGET]) == pytest.approx(float(offset @ unit), rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_effect_is_found_and_points_to_the_instruction(architecture):
    """The last token feels what stands before it: one head of block 1 writes the direction where a digit was read."""
    lm, pairs, direction, _ = planted_sink(architecture, sink_norm=1.0)
    block = layout.blocks(lm.model)[LAYER]

    def write(hidden: Tensor) -> Tensor:
        mean = (hidden @ direction).cumsum(1) / torch.arange(1, hidden.shape[1] + 1)  # (B, T), what was read so far
        return hidden + 3 * mean[..., None] * direction

    words = Pairs(pairs.prompt[:6], [""] * 6, [""] * 6)
    with hooked([Hook(block, "output", write)]):
        found = {digits: fit(made(instruction=digits), lm, words)[KEY] for digits in ("0123", "5678")}
    assert torch.cosine_similarity(found["0123"], direction, dim=0) > 0.95
    assert torch.cosine_similarity(found["5678"], direction, dim=0) < -0.95


def test_continuations_are_not_read():
    lm, method = tiny_lm(), made()
    artefact = fit(method, lm)
    other = fit(method, lm, PAIRS._replace(desired=[" hate"] * 5, undesired=[" love and the river"] * 5))
    assert all(torch.equal(one, other[key]) for key, one in artefact.items())
    assert not method.reads_labels
    blank = Pairs([*PAIRS.prompt, "", " "], [*PAIRS.desired, " a", " b"], [*PAIRS.undesired, " c", " d"])
    without = fit(method, lm, blank)
    assert torch.equal(without[KEY], artefact[KEY]) and without["info.empty_prompts"] == 2


@pytest.mark.parametrize("operation", ["clamp", "add"])
@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
def test_scope_says_which_tokens_move(scope, operation):
    lm, method = tiny_lm(), made(scope=scope, operation=operation)
    artefact = fit(method, lm)
    before, after, prompt = before_and_after(lm, method, artefact, 0.5, LAYER)
    where = torch.zeros(len(before), dtype=torch.bool)
    where[slice(*{"all": (0, None), "prompt": (0, prompt), "generation": (prompt, None)}[scope])] = True
    assert (before != after).any(-1).tolist() == where.tolist()
    for layer in (0, 2):
        before, after, _ = before_and_after(lm, method, artefact, 0.5, layer)
        assert torch.equal(before, after)


def test_in_a_chat_both_texts_go_through_the_template():
    lm = tiny_lm()
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}Input: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Response:{% endif %}"
    )
    there, absent = [], []
    for prompt in PAIRS.prompt:
        for rows, text in ((there, WORDS + prompt), (absent, prompt)):
            rows.append(output_by_hand(lm, lm.encode(f"Input: {text}\nResponse:"), LAYER)[-1])
    difference = torch.stack(there).mean(0) - torch.stack(absent).mean(0)
    found = fit(made(chat=True), lm)
    assert float(found["info.direction_norm"]) == pytest.approx(float(difference.norm()), rel=1e-3)
    assert torch.cosine_similarity(found[KEY].double(), difference, dim=0) > 0.9999
    lm.tokenizer.chat_template = None
    with pytest.raises(SetupError, match="this tokenizer has no chat template"):
        fit(made(chat=True), lm)


def test_a_long_prompt_loses_its_left_and_the_instruction_stays():
    lm, method = tiny_lm(), made(instruction=" love")
    size = len(lm.tokenizer(" love", add_special_tokens=False).input_ids)
    lm.model.config.max_position_embeddings = 40
    pairs = Pairs([*PAIRS.prompt, " the" * 100], [*PAIRS.desired, ""], [*PAIRS.undesired, ""])
    whole, plain, cut = method.texts(lm.model, lm.tokenizer, pairs.prompt)
    the, love = (lm.tokenizer(word, add_special_tokens=False).input_ids for word in (" the", " love"))
    assert cut == 1 and whole[-1].tokens == [1, *love, *the * (39 - size)]
    excess = 1 + size + 100 - 40
    assert plain[-1].tokens == [1, *the * (100 - excess)]
    short = fit(method, lm, pairs._replace(prompt=[*PAIRS.prompt, " the" * (39 - size)]))
    assert torch.equal(fit(method, lm, pairs)[KEY], short[KEY])
    with pytest.raises(SetupError, match="prompt 1 has .* tokens with the instruction, and the model reads 40"):
        fit(made(instruction=" love" * 60), lm)
    lm.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(SetupError, match="prompt 6 has .* tokens with the instruction, and the model reads 40"):
        fit(replace(method, chat=True), lm, pairs)


def test_strength_zero_and_an_exception_leave_every_bit():
    for operation in ("clamp", "add"):
        lm, method = tiny_lm(), made(operation=operation)
        artefact, base = fit(method, lm), text_logits(lm)
        bytes_before = {name: one.clone() for name, one in lm.model.state_dict().items()}
        with method.apply(lm.model, artefact, 0):
            assert torch.equal(text_logits(lm), base)
        with pytest.raises(KeyError), method.apply(lm.model, artefact, 0.5):
            assert not torch.equal(text_logits(lm), base)
            raise KeyError
        assert torch.equal(text_logits(lm), base)
        assert all(torch.equal(one, bytes_before[name]) for name, one in lm.model.state_dict().items())


def test_addition_alone_can_be_exported():
    lm, method = tiny_lm(), made(operation="add")
    effect = measure(lm, method, artefact := fit(method, lm), 0.2)
    assert effect.beyond is None and set(effect.vectors) == {LAYER}
    torch.testing.assert_close(effect.vectors[LAYER], 0.2 * artefact[KEY])
    assert "depends on what is there" in str(measure(lm, made(), artefact, 1).beyond)


def test_wrong_settings_and_instructions_without_an_effect():
    lm = tiny_lm()
    for options, message in (
        ({"operation": "project"}, "allowed are clamp, add"),
        ({"scope": "front"}, "allowed are all, prompt, generation"),
        ({"instruction": " \n"}, "method.instruction is empty"),
        ({"layer": 5}, "layer 5 out of range"),
    ):
        with pytest.raises(SetupError, match=message):
            made(**options).check(lm.model)
    with pytest.raises(SetupError, match="instruction learns from contrast pairs and got 1; give at least 2"):
        fit(made(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="learns from prompts, and 1 of 3 pairs have one"):
        fit(made(), lm, Pairs(["The", "", "\n"], [" a"] * 3, [" b"] * 3))
    with hooked([Hook(layout.blocks(lm.model)[0], "output", torch.zeros_like)]):  # nothing is read any more
        with pytest.raises(SetupError, match="does not change the output of block 0 at the end of the prompts"):
            fit(made(layer=0), lm)


def test_an_artefact_of_another_model_or_layer():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(made(), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with made().apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with made(layer=2).apply(lm.model, artefact, 1):
            pass
