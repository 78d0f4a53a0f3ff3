"""Steering at decoding time: the tokens it sees, other readings with caches of their own, and tokens tried ahead."""

import contextlib
from dataclasses import replace

import pytest
import torch

from bench.model.decoding import Sampling
from bench.model.lm import Request
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import continuations, prefill, sample
from methods import layout
from methods.base import Demand, Steering
from methods.errors import SetupError
from methods.intervention import Hook, current_positions, edited, hooked, record
from tests.architectures import lm_of
from tests.tiny import CONFIGS, CORPUS, tiny_lm

PROMPTS = ["the old tree", "a small bird sings in the", "rain"]
REQUESTS = [Request([1, 5, 9], [8, 7]), Request([1, 5, 9, 11], [6]), Request([1, 30], [8, 7, 12, 40])]


def steered(lm, next_logits, room=0):
    return replace(lm, steering=Steering(next_logits=next_logits, demand=Demand(room=room)), steered_by="1 of test")


def halved(lm):
    """A context in which the last block writes half as much."""
    weight = layout.value_matrix(lm.model, 1).parameter
    return lambda: edited({weight: weight * 0.5})


@pytest.mark.parametrize("architecture", CONFIGS)
def test_another_reading_is_the_model_inside_its_context(architecture):
    lm = tiny_lm(architecture)
    inside = halved(lm)
    other = steered(lm, lambda step: step.streams.other("half", inside))
    with inside():
        texts = sample(lm, PROMPTS, 3, 8)
        wanted = likelihoods(lm, REQUESTS)
    assert sample(other, PROMPTS, 3, 8) == texts != sample(lm, PROMPTS, 3, 8)
    got = likelihoods(other, REQUESTS)
    assert [one.logprob for one in got] == pytest.approx([one.logprob for one in wanted], rel=1e-5)


def test_the_same_context_gives_the_same_bits():
    lm = tiny_lm()
    seen = []

    def same(step):
        other = step.streams.other("same", contextlib.nullcontext)
        seen.append(torch.equal(other, step.logits))
        return other

    assert sample(steered(lm, same), PROMPTS, 3, 8) == sample(lm, PROMPTS, 3, 8)
    likelihoods(steered(lm, same), REQUESTS)
    assert all(seen)


@pytest.mark.parametrize("bos", ["prepend", "none"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_tokens_go_before_every_text(architecture, bos):
    """As the model reads prefix and prompt as one text; a BOS moves to the front."""
    lm = tiny_lm(architecture, bos=bos)
    before = lm.tokenizer("we talk of rain. ").input_ids
    prompts = [lm.encode(prompt) for prompt in PROMPTS]
    found = []

    def keep(step):
        found.append(step.streams.other("before", contextlib.nullcontext, before))
        return step.logits

    rows, _ = prefill(steered(lm, keep, len(before)), prompts)
    longer = [[*before, *(ids[1:] if bos == "prepend" else ids)] for ids in prompts]
    wanted_rows, wanted = prefill(lm, longer)
    assert torch.allclose(found[-1][:, -1], wanted, atol=1e-5)
    rows.select(torch.tensor([2, 0, 0]))
    wanted_rows.select(torch.tensor([2, 0, 0]))
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
    real = torch.ones_like(ids, dtype=torch.bool)
    steered(lm, keep, len(before)).read(rows, ids, real)
    assert torch.allclose(found[-1], lm.read(wanted_rows, ids, real), atol=1e-5)


@pytest.mark.parametrize("bos", ["prepend", "none"])
def test_hooks_see_where_the_prompt_ends_in_another_reading(bos):
    """A BOS that moves to the front is not counted twice, and a beginning that contexts share has no end of its own."""
    lm = tiny_lm(bos=bos)
    before = lm.tokenizer("we talk of rain. ").input_ids
    contexts = [lm.encode(CORPUS + prompt) for prompt in PROMPTS]
    requests = [Request(context, [8, 7]) for context in contexts]
    ends = {len(context) - (bos == "prepend") + len(before) for context in contexts}
    seen = set()

    def look(hidden):
        seen.update(current_positions().prompt.tolist())
        return hidden

    def inside():
        return hooked([Hook(layout.blocks(lm.model)[0], "output", look)])

    def other(step):
        if step.ids.shape[1] >= max(map(len, contexts)):  # not where the shared beginning is read
            return step.streams.other("before", inside, before)
        return step.streams.other("before", contextlib.nullcontext, before)

    likelihoods(steered(lm, other, len(before)), requests)
    assert seen == ends


def test_two_readings_of_one_name_are_refused():
    def twice(step):
        step.streams.other("x", contextlib.nullcontext, [5, 6])
        return step.streams.other("x", contextlib.nullcontext, [7, 8, 9])

    with pytest.raises(ValueError, match="'x' was asked for twice in one step"):
        likelihoods(steered(tiny_lm(), twice, 3), REQUESTS)


def test_room_for_what_goes_before_is_taken_off():
    lm = tiny_lm()
    assert steered(lm, lambda step: step.logits, 7).max_length == lm.max_length - 7


def test_a_reading_that_was_not_asked_for_catches_up():
    lm = tiny_lm()
    inside, calls = halved(lm), []

    def sometimes(step):
        calls.append(step)
        return step.streams.other("half", inside) if len(calls) % 3 == 0 else step.logits

    rows, _ = prefill(steered(lm, sometimes), [lm.encode(prompt) for prompt in PROMPTS])
    ids = torch.tensor([[5], [6], [7]])
    for _ in range(2):
        got = steered(lm, sometimes).read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=1)
    with inside():
        whole, wanted = prefill(
            lm, [[*lm.encode(prompt), token, token] for prompt, token in zip(PROMPTS, (5, 6, 7), strict=True)]
        )
    assert torch.allclose(got[:, -1], wanted, atol=1e-5)


def test_a_step_holds_the_tokens_of_each_row():
    lm = tiny_lm()
    seen = {}

    def keep(step):
        for row in range(len(step.ids)):
            for k, column in enumerate(step.columns.tolist()):
                if step.real[row, column]:
                    text = step.ids[row, : column + 1][step.real[row, : column + 1]].tolist()
                    seen[tuple(text)] = step.logits[row, k]
        return step.logits

    texts = continuations(steered(lm, keep), PROMPTS, 2, Sampling(max_new_tokens=6))
    likelihoods(steered(lm, keep), REQUESTS)
    for prompt, row in zip(PROMPTS, texts, strict=True):
        for one in row:
            ids = [*lm.encode(prompt), *one.tokens]
            assert all(tuple(ids[:end]) in seen for end in range(len(ids) - len(one.tokens), len(ids)))
    for context, continuation in REQUESTS:
        text = [*context, *continuation]
        for end in range(len(context), len(text)):
            wanted = lm.model(input_ids=torch.tensor([text[:end]])).logits[0, -1]
            assert torch.allclose(seen[tuple(text[:end])], wanted, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_tokens_tried_ahead_leave_the_rows_as_they_are(architecture):
    lm = tiny_lm(architecture)
    tried, last = [], len(layout.blocks(lm.model)) - 1

    def ahead(step):
        tokens = step.logits.topk(3, dim=-1).indices
        tried.append((step, tokens, step.streams.ahead(tokens)))
        return step.logits

    assert sample(steered(lm, ahead), PROMPTS, 2, 4) == sample(lm, PROMPTS, 2, 4)
    likelihoods(steered(lm, ahead), REQUESTS)
    for step, tokens, states in tried[::3]:
        row, k = len(tokens) - 1, len(step.columns) - 1
        column = int(step.columns[k])
        if not step.real[row, column]:
            continue
        text = step.ids[row, : column + 1][step.real[row, : column + 1]].tolist()
        for n in range(3):
            with record(lm.model, [last]) as seen:
                lm.model(input_ids=torch.tensor([[*text, int(tokens[row, k, n])]]))
            wanted = layout.final_norm(lm.model)(seen[last])[0, -1]
            assert torch.allclose(states[row, k, n], wanted, atol=1e-4)


def test_a_sliding_window_takes_nothing_back():
    lm = steered(lm_of("gemma2"), lambda step: step.streams.ahead(step.logits.topk(2, dim=-1).indices))
    with pytest.raises(SetupError, match="sliding window"):
        sample(lm, PROMPTS, 1, 2)
