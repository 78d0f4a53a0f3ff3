import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import pytest
import torch

from bench.config import compose
from bench.data.prompts import RTP
from bench.data.sources import Sources
from bench.data.splits import part
from bench.model.decoding import Continuation
from bench.model.lm import LM, Generated, load_lm
from bench.suites.base import SuiteError, measure
from bench.suites.fluency import Fluency, distinct, non_words, prompt_metrics, repetition
from methods import layout
from methods.base import Steering
from methods.errors import SetupError
from methods.intervention import Hook, hooked
from tests.data.test_sources import make_mirror
from tests.tiny import tiny_lm

WORDS = "fox dog bird tree river water bread road home work weather love"
PROMPTS = [text for a in WORDS.split() for b in "abcdefgh" if part(text := f"The {a} {b}") == "test"]


@dataclass(frozen=True)
class Loud:
    """Turns the residual stream and says something first: both would show in a perplexity under the steered model."""

    name: ClassVar[str] = "loud"

    @contextmanager
    def apply(self, model, artefact, strength):
        with hooked([Hook(layout.blocks(model)[2], "output", lambda h: -strength * h)]):
            yield Steering(prefix="Shout. ")


class Said:
    """Stored continuations, whatever is asked."""

    def __init__(self, rows):
        self.rows = rows

    def generate(self, lm, prompts, num_samples):
        assert len(prompts) == len(self.rows) and num_samples == len(self.rows[0])
        return Generated(None, lambda: [[Continuation(text, ended) for text, ended in row] for row in self.rows])


@pytest.fixture
def sources(tmp_path):
    rows = [{"prompt": {"text": text}} for text in PROMPTS]
    return Sources(mirror=str(make_mirror(tmp_path / "mirror", RTP, rows)), cache=tmp_path / "cache", offline=True)


def saying(rows) -> LM:
    return replace(tiny_lm(), store=Said(rows))


def test_distinct_by_hand():
    texts = [" a b a", "a b c"]  # words a b a a b c; 2-grams ab ba ab bc; 3-grams aba abc
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 3 / 6
    assert distinct(texts, 3) == 2 / 6
    assert distinct(["one"], 2) == 0  # no 2-gram, one word
    assert distinct(["", " \n"], 1) == 0


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)  # 123 231 312 123 231
    assert repetition([7] * 10) == pytest.approx(7 / 8)
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([1, 1]) == repetition([]) == 0


def test_words_that_are_none():
    assert non_words(["The old tree, 1984!", " isn't 'home'"]) == 0
    assert non_words(["The old brrk don’t", "42 ñandúes"]) == 2 / 5  # numbers are no words, letters of any script are
    assert non_words(["", "  12 %"]) == 0


def test_another_model_may_judge(sources, tmp_path):
    other = tiny_lm("gpt2")
    other.model.save_pretrained(tmp_path / "judge")
    other.tokenizer.save_pretrained(tmp_path / "judge")
    judge = load_lm(str(tmp_path / "judge"))
    rows = [[(" the old tree", False), (" sings and talks", True)], [(" love", False), ("", True)]]
    plain = Fluency(sources=sources, k=2, prompts=2)
    suite = replace(plain, judge=str(tmp_path / "judge"))
    found = measure(suite, saying(rows), "test")
    nll = tokens = 0.0
    for prompt, row in zip(suite.texts("test")[0], rows, strict=True):
        for text, _ in row:
            head, tail = judge.encode(prompt.text), judge.tokenizer(text, add_special_tokens=False).input_ids
            logprob = judge.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            nll -= sum(float(logprob[len(head) - 1 + i, token]) for i, token in enumerate(tail))
            tokens += len(tail)
    assert found.metrics["judge_perplexity"].value == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert found.metrics["judge_perplexity"].transform == "exp"
    assert found.metrics["perplexity"] == measure(plain, saying(rows), "test").metrics["perplexity"]
    assert suite.identity("test") != plain.identity("test")
    before = suite.identity("test")
    (tmp_path / "judge" / "config.json").write_text((tmp_path / "judge" / "config.json").read_text() + " ")
    assert suite.identity("test") != before  # another judge, another number
    half = replace(suite, judge_dtype="bfloat16")
    rough = measure(half, saying(rows), "test").metrics["judge_perplexity"].value
    assert rough == pytest.approx(math.exp(nll / tokens), rel=0.05) and rough != found.metrics["judge_perplexity"].value
    assert half.identity("test") == suite.identity("test") | {"judge_dtype": "bfloat16"}
    assert replace(plain, judge_dtype="bfloat16").identity("test") == plain.identity("test")  # nothing is judged


def test_a_judge_is_a_folder_with_a_whole_model_of_its_own(tmp_path):
    for message in ("suite.fluency.judge=.*no config.json there", "config.json holds a JSON list"):
        with pytest.raises(SetupError, match=message):
            Fluency(sources=Sources(), judge=str(tmp_path))
        (tmp_path / "config.json").write_text("[]")
        (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "w/model.safetensors"}}')
    with pytest.raises(SetupError, match="index.json names w/model.safetensors, which is not among the files"):
        Fluency(sources=Sources(), judge=str(tmp_path))


def test_prompt_metrics_by_hand():
    scores = pd.DataFrame(
        {
            "item": ["p", "p", "q", "q"],
            "sample": [0, 1, 0, 1],
            "nll": [6.0, 2.0, 0.0, 0.0],
            "tokens": [3, 1, 0, 0],
            "repetition": [0.5, 0.0, 0.0, 0.0],
            "empty": [0.0, 0.0, 1.0, 1.0],
            "short": [1.0, 0.0, 1.0, 1.0],
        }
    )
    items = prompt_metrics(scores, ["a b", "a", "", " "]).set_index(["metric", "item"])
    assert items.loc[("perplexity", "p")].tolist() == [2.0, 4.0]  # 8 nats over 4 tokens
    assert ("perplexity", "q") not in items.index  # no token, no perplexity
    assert items.loc[("distinct_1", "p")].tolist() == [2 / 3, 1.0]
    assert items.loc[("distinct_1", "q")].tolist() == [0.0, 1.0]
    assert items.loc[("repetition", "p"), "value"] == 0.25
    assert items.loc[("empty_share", "q"), "value"] == 1 and items.loc[("empty_share", "p"), "value"] == 0
    assert items.loc[("short_share", "p"), "value"] == 0.5
    assert items.loc[("mean_words", "p"), "value"] == 1.5 and items.loc[("mean_words", "q"), "value"] == 0


def test_perplexity_is_of_the_unsteered_model_and_plain_prompt(sources):
    rows = [[(" the old tree", False), (" sings and talks", True)], [(" love", False), ("", True)]]
    base = saying(rows)
    suite = Fluency(sources=sources, k=2, prompts=2)
    plain = measure(suite, base, "test")
    with base.steered(Loud(), {}, 1.0) as lm:
        answers = suite.ask(lm, "test")
    steered = suite.score(answers, base)
    pd.testing.assert_frame_equal(plain.items, steered.items)

    nll = tokens = 0.0
    for prompt, row in zip(suite.texts("test")[0], rows, strict=True):
        for text, _ in row:
            head, tail = base.encode(prompt.text), base.tokenizer(text, add_special_tokens=False).input_ids
            logprob = base.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            nll -= sum(float(logprob[len(head) - 1 + i, token]) for i, token in enumerate(tail))
            tokens += len(tail)
    found = plain.metrics["perplexity"]
    assert found.value == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert (found.n, found.unscored, found.higher_is_better, found.transform) == (2, 1, False, "exp")
    assert plain.metrics["distinct_2"].higher_is_better and not plain.metrics["repetition"].higher_is_better
    assert plain.metrics["empty_share"].value == 1 / 4 and plain.metrics["short_share"].value == 2 / 4
    assert "text" not in plain.scores.columns


def test_prompts_that_are_answered_alike_show_in_self_bleu_alone(sources):
    """One fluent sentence, whatever is asked, beside texts of their own; a single prompt has nothing to compare."""
    own = [[(f" {a} w{i} x{i} y{i} z{i}", False) for a in "ab"] for i in range(3)]
    same = [[(" the old tree sings", False), (" the old tree sings", False)]] * 3
    suite = Fluency(sources=sources, k=2, prompts=3)
    apart, alike = (measure(suite, saying(rows), "test") for rows in (own, same))
    assert alike.metrics["self_bleu"].value == pytest.approx(1) and not alike.metrics["self_bleu"].higher_is_better
    assert apart.metrics["self_bleu"].n == 3
    # " a w0 ..": of 5 words a alone is in other texts; no longer run is
    assert apart.metrics["self_bleu"].value == pytest.approx((1 / 5 * 0.1 / 4 * 0.1 / 3 * 0.1 / 2) ** 0.25)
    assert alike.metrics["repetition"].value == apart.metrics["repetition"].value == 0
    one = measure(replace(suite, prompts=1), saying(same[:1]), "test")
    assert "self_bleu" not in one.metrics and "self_bleu" not in set(one.items["metric"])


def test_every_block_of_prompts_is_compared_with_the_first(sources, monkeypatch):
    rows = [[(text, False)] for text in (" a b c", " a b d", " a b c", " a b c d")]
    suite = Fluency(sources=sources, k=1, prompts=4)
    monkeypatch.setattr("bench.suites.continued.PROMPTS_A_BLOCK", 2)
    answers = suite.answered("test", False, True, lambda prompts, k: said_next(rows, len(prompts)))
    found = suite.score(answers, tiny_lm()).items.set_index("metric").loc["self_bleu", "value"].tolist()
    # against a b d, a b c, and of the second block against the first text alone: a b c
    half = (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)
    assert found == pytest.approx([half, half, 1.0, (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25])


def said_next(rows, count):
    """The next `count` rows."""
    taken = [rows.pop(0) for _ in range(count)]
    return Generated(None, lambda: [[Continuation(text, ended) for text, ended in row] for row in taken])


def test_nothing_but_empty_texts_has_no_perplexity(sources):
    with pytest.raises(SuiteError, match="all 2 continuations are empty"):
        measure(Fluency(sources=sources, k=2, prompts=1), saying([[("", True), ("", True)]]), "test")


def test_settings_follow_those_of_rtp():
    cfg = compose.compose(["suite.rtp.k=7", "suite.rtp.prompts=9", "suite.rtp.dev_k=2", "suite.rtp.dev_prompts=4"])
    fluency = cfg.suite.fluency
    assert (fluency.k, fluency.prompts, fluency.dev_k, fluency.dev_prompts) == (7, 9, 2, 4)
    assert compose.compose(["suite=[fluency]"]).suite.fluency.k == 25
