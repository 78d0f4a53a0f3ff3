"""Penalties on repeated tokens and top-k, against transformers' own processors."""

from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from bench.model import penalties
from bench.model.decoding import Sampling
from bench.model.generation_cache import decoding_identity
from bench.model.rows import Rows
from bench.model.sampling import continuations, prefill
from methods.errors import SetupError
from tests.tiny import tiny_lm

PROMPTS = ["the old tree", "a small bird sings in the the the", "rain"]
GREEDY = Sampling(max_new_tokens=12, temperature=0, top_p=1)


def rows_of(ids, real, prompt):
    return Rows(torch.tensor(prompt), torch.tensor(real, dtype=torch.bool), torch.tensor(ids), None)


@pytest.mark.parametrize("penalty", [1.2, 0.8, 3.0])
def test_repetition_is_penalised_as_transformers_does(penalty):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    rows = rows_of([[0, 0, 7, 9], [3, 3, 5, 8]], [[0, 0, 1, 1], [1, 1, 1, 1]], [1, 2])
    got = penalties.applied(logits, rows, replace(GREEDY, repetition_penalty=penalty))
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    assert torch.equal(got[:1], processor(torch.tensor([[7, 9]]), logits[:1].clone()))
    assert torch.equal(got[1:], processor(torch.tensor([[3, 3, 5, 8]]), logits[1:].clone()))


def test_logits_of_16_bits_are_penalised_in_32():
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = rows_of([list(range(0, 500, 2))], [[1] * 250], [250])
    got = penalties.applied(logits, rows, replace(GREEDY, repetition_penalty=1.2))
    assert torch.equal(got, RepetitionPenaltyLogitsProcessor(1.2)(rows.ids, logits.float()))


def test_frequency_counts_what_was_written_not_the_prompt():
    logits = torch.zeros(2, 10)
    rows = rows_of([[0, 0, 7, 9, 9], [3, 3, 5, 3, 3]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], [1, 3])
    got = penalties.applied(logits, rows, replace(GREEDY, frequency_penalty=0.5))
    wanted = torch.zeros(2, 10)
    wanted[0, 9] = wanted[1, 3] = -1.0
    assert torch.equal(got, wanted)
    everywhere = replace(GREEDY, frequency_penalty=0.5, frequency_in_prompt=True)
    wanted[0, 7], wanted[1, 3], wanted[1, 5] = -0.5, -2.0, -0.5
    assert torch.equal(penalties.applied(logits, rows, everywhere), wanted)


def test_the_most_probable_tokens_stay_as_in_transformers():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    rows = rows_of([[1]] * 4, [[1]] * 4, [1] * 4)
    got = penalties.applied(logits, rows, replace(GREEDY, top_k=5))
    assert torch.equal(got, TopKLogitsWarper(5)(torch.zeros(4, 1), logits.clone()))
    assert penalties.applied(logits, rows, replace(GREEDY, top_k=50)) is logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_are_those_of_generate_token_by_token(architecture):
    """Greedy with a repetition penalty: every token as `generate` chooses it, in a batch padded on the left."""
    lm = tiny_lm(architecture)
    ours = continuations(lm, PROMPTS, 1, replace(GREEDY, repetition_penalty=1.3))
    plain = continuations(lm, PROMPTS, 1, GREEDY)
    assert ours != plain
    for prompt, (one,) in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([lm.encode(prompt)])
        made = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, repetition_penalty=1.3,
            pad_token_id=0,
        )  # fmt: skip
        found = made[0, ids.shape[1] :].tolist()
        assert list(one.tokens) == [token for token in found if token not in lm.stop_tokens]


def test_drawn_tokens_are_those_that_the_processors_leave():
    """Each token drawn is among those that transformers' processors leave, and the penalty comes before top-k."""
    lm = tiny_lm()
    settings = Sampling(max_new_tokens=10, top_p=1.0, top_k=3, repetition_penalty=1.5)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), TopKLogitsWarper(3)])
    for prompt, row in zip(PROMPTS, continuations(lm, PROMPTS, 4, settings), strict=True):
        for one in row:
            ids = lm.encode(prompt)
            for token in one.tokens:
                _, logits = prefill(lm, [ids])
                assert processors(torch.tensor([ids]), logits)[0, token] > -torch.inf
                ids.append(token)


def test_settings_that_are_off_are_in_no_identity():
    assert decoding_identity(Sampling()) == decoding_identity(Sampling(top_k=None, repetition_penalty=1.0))
    assert set(decoding_identity(Sampling())) == {"max_new_tokens", "temperature", "top_p", "seed", "stop", "version"}
    on = Sampling(top_k=50, repetition_penalty=1.2, frequency_penalty=1.0)
    assert decoding_identity(on).items() >= {"top_k": 50, "repetition_penalty": 1.2, "frequency_penalty": 1.0}.items()
    assert "top_k" not in decoding_identity(replace(on, temperature=0))
    assert decoding_identity(Sampling(frequency_in_prompt=True)) == decoding_identity(Sampling())
    assert decoding_identity(replace(on, frequency_in_prompt=True)) != decoding_identity(on)


@pytest.mark.parametrize(
    ("setting", "named"),
    [({"top_k": 0}, "top_k"), ({"repetition_penalty": 0}, "repetition_penalty"),
     ({"repetition_penalty": 1e-40}, "repetition_penalty"), ({"frequency_penalty": float("nan")}, "frequency_penalty"),
     ({"frequency_penalty": 1e39}, "frequency_penalty")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(setting, named):
    with pytest.raises(SetupError, match=f"sampling.{named}"):
        Sampling(**setting)
