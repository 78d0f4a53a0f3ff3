"""The tokens of an answer: never none, whatever the tokenizer joins; of a sampled text those that were sampled."""

import gzip
import json
import math
from dataclasses import replace

import pytest
import torch

from bench.data.prompts import RTP
from bench.data.sources import Sources
from bench.model.decoding import Continuation, Sampling
from bench.model.generation_cache import Generations, sampled, writer
from bench.model.lm import LM, Request
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.sampling import continuations
from bench.suites.base import measure
from bench.suites.fluency import Fluency, sampled_requests
from methods.base import Steering
from tests.data.test_sources import make_mirror
from tests.model.test_log_likelihood import asked
from tests.suites.test_fluency import PROMPTS
from tests.tiny import metaspace_tokenizer, spanning_tokenizer, tiny_lm

JOINS = [
    ("The ol", "d tree"), ("The old", " tree"), ("The ", "old"), ("talk", "!"), ("the\n", "old"), ("a 😀", "b"),
    ("the", "😀😀"), ("", "The"), ("The ", " "), ("the", ""), (" \n", "old"), ("and", "\u200b"),
]  # fmt: skip


def joined(make) -> LM:
    return replace(tiny_lm(), tokenizer=make())


def by_hand(lm: LM, request: Request) -> float:
    """Log p of a continuation, of one forward."""
    ids = request.context + request.continuation
    with torch.inference_mode():
        logprob = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprob[i - 1, ids[i]]) for i in range(len(request.context), len(ids)))


@pytest.mark.parametrize("make", [spanning_tokenizer, metaspace_tokenizer])
@pytest.mark.parametrize(("context", "answer"), JOINS)
def test_an_answer_is_never_without_tokens(make, context, answer):
    lm = joined(make)
    (request,) = lm.encode_pairs([context], [answer])
    whole = lm.tokenizer(context + answer).input_ids
    ids = request.context + request.continuation
    assert request.context and request.continuation
    assert [token for token in ids if token not in (1, 2)] == whole  # but for what stands for no text
    ((logprob, greedy),) = SteeredLM(lm).loglikelihood(asked([(context, answer)]))
    assert math.isfinite(logprob) and logprob < 0 and not greedy


def test_a_token_over_the_join_is_the_answers():
    lm = joined(spanning_tokenizer)
    tokens = lm.tokenizer.convert_ids_to_tokens
    (request,) = lm.encode_pairs(["The old"], [" tree"])
    assert tokens(request.context) == ["TheĠ", "o", "l"]
    assert tokens(request.continuation) == ["dĠ", "t", "r", "e", "e"]
    ((logprob, _),) = SteeredLM(lm).loglikelihood(asked([("The old", " tree")]))
    assert logprob == pytest.approx(by_hand(lm, request), abs=1e-4)


def test_an_answer_within_the_contexts_last_token_does_not_win():
    """Counted by the context's tokens it would have none, and log p = 0 would beat all others."""
    lm = joined(spanning_tokenizer)
    pair = ("The", " ")  # one token, "TheĠ"
    ((logprob, greedy),) = SteeredLM(lm).loglikelihood(asked([pair]))
    assert logprob == pytest.approx(by_hand(lm, Request([1], [lm.tokenizer.convert_tokens_to_ids("TheĠ")])), abs=1e-4)
    assert logprob < 0 and not greedy


def test_no_answer_is_the_end_of_the_text():
    lm = tiny_lm()
    (request,) = lm.encode_pairs(["The old"], [""])
    assert request == Request(lm.encode("The old"), [lm.tokenizer.eos_token_id])


def test_a_prefix_is_part_of_the_text():
    lm = replace(joined(metaspace_tokenizer), steering=Steering(prefix="Be kind. "))
    ((logprob, _),) = SteeredLM(lm).loglikelihood(asked([("The", " fox")]))
    plain = replace(lm, steering=Steering())
    assert SteeredLM(plain).loglikelihood(asked([("Be kind. The", " fox")]))[0][0] == logprob
    (rolling,) = SteeredLM(lm).loglikelihood_rolling(asked([("The fox",)]))
    (request,) = plain.encode_pairs(["Be kind. "], ["The fox"])
    assert rolling == pytest.approx(by_hand(lm, request), abs=1e-4)


def text_of(lm: LM, tokens: list[int]) -> str:
    """As a sampled text is read."""
    return lm.tokenizer.decode(tokens, skip_special_tokens=True)


# -- sampled texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [spanning_tokenizer, metaspace_tokenizer])
def test_stored_texts_keep_their_tokens(make, tmp_path):
    lm = replace(joined(make), store=Generations(tmp_path), sampling=Sampling(max_new_tokens=6))
    prompts = ["The old", "talk", "a b"]  # behind an emoji random bytes would change how it is shown
    rows = sampled(lm, prompts, 20)
    fresh = continuations(lm, prompts, 20, lm.sampling)
    assert rows == [[one._replace(tokens=list(one.tokens)) for one in row] for row in fresh]
    again = 0
    for prompt, row in zip(prompts, rows, strict=True):
        head = lm.encode(prompt)
        for one in row:
            assert not set(one.tokens) & lm.stop_tokens
            assert text_of(lm, head + one.tokens) == text_of(lm, head) + one.text
            again += lm.encode_pairs([prompt], [one.text])[0].continuation != one.tokens
    assert again > 3  # so it matters which ones are scored


def test_tokens_end_before_the_stop_string():
    lm = replace(joined(spanning_tokenizer), sampling=Sampling(max_new_tokens=12, stop="e"))
    rows = continuations(lm, ["The old", "People"], 12, lm.sampling)
    cut = [one for row in rows for one in row if one.ended]
    assert len(cut) > 4
    for one in cut:
        assert "e" not in one.text and one.text.startswith(text_of(lm, one.tokens))
        assert one.tokens or one.text == ""


@pytest.fixture
def sources(tmp_path):
    rows = [{"prompt": {"text": text}} for text in PROMPTS]
    return Sources(mirror=str(make_mirror(tmp_path / "mirror", RTP, rows)), cache=tmp_path / "cache", offline=True)


@pytest.mark.parametrize("make", [spanning_tokenizer, metaspace_tokenizer])
def test_perplexity_is_of_the_sampled_tokens(make, sources, tmp_path):
    lm = replace(joined(make), store=Generations(tmp_path / "generations"), sampling=Sampling(max_new_tokens=6))
    suite = Fluency(sources=sources, k=4, prompts=5)
    prompts = [prompt.text for prompt in suite.texts("test")[0]]
    found = measure(suite, lm, "test")
    nll = tokens = 0.0
    for prompt, row in zip(prompts, sampled(lm, prompts, 4), strict=True):
        for one in row:
            nll -= by_hand(lm, Request(lm.encode(prompt), one.tokens)) if one.tokens else 0
            tokens += len(one.tokens)
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found.scores["tokens"].sum() == tokens


def test_stored_texts_without_tokens_are_sampled_again(sources, tmp_path, capsys):
    """What is made of texts alone would stand beside what is made of tokens, as perplexities that do not compare."""
    lm = replace(joined(metaspace_tokenizer), store=Generations(tmp_path), sampling=Sampling(max_new_tokens=6))
    suite = Fluency(sources=sources, k=2, prompts=3)
    prompts = [prompt.text for prompt in suite.texts("test")[0]]
    folder = tmp_path / writer(lm).id(prompts, 2)
    folder.mkdir()
    with gzip.open(folder / "samples.jsonl.gz", "wt", encoding="utf-8") as out:
        for prompt in prompts:
            out.write(json.dumps({"prompt": prompt, "continuations": [["!", False], [" tree", True]]}) + "\n")
    assert lm.store.stored(writer(lm), prompts, 2).read()[0][0] == Continuation(
        "!", False
    )  # to be judged again they are enough
    found = measure(suite, lm, "test")
    assert "lacks the sampled tokens, as an older version wrote it; it is set aside" in capsys.readouterr().err
    fresh = replace(lm, store=None)
    assert found.metrics == measure(suite, fresh, "test").metrics


def test_a_judge_reads_prompt_and_text_as_one():
    lm = joined(metaspace_tokenizer)
    (request, _) = sampled_requests(lm, ["The old"] * 2, [Continuation("!", False), Continuation("", True)])
    assert lm.tokenizer.convert_ids_to_tokens(request.continuation) == ["<0x21>"]
