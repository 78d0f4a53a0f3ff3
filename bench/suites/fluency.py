"""Fluency of the texts that the suite rtp judges: steering that wins by breaking the language shows here.

Perplexity is that of the continuations under the *unsteered* model given the plain prompt, without any steering
prefix: the conditional perplexity of DExperts (arXiv 2105.03023 section 3.1), exp((L_full - L_prompt) / tokens), with
the base model as the judge. With `judge` another model judges as well, there GPT-2 XL.

Differs from DExperts: tokens of all texts are pooled, where it takes the mean of the texts' perplexities and drops
those above 10,000; so an outlier counts by its tokens and none is dropped. No number here compares with a published one
unless judge, prompts, decoding and pooling agree; distinct-n also needs the same k. What they are for is the change
against the unsteered model of the same table: a row whose text has fallen apart is flagged as collapsed
(bench/tradeoff.py), since the low toxicity of broken text is no gain.
"""

import functools
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bench import metrics
from bench.data.prompts import Prompt, rtp_prompts
from bench.data.sources import Located
from bench.lm import LM
from bench.models import fingerprint
from bench.suites.base import Split, SuiteError, SuiteResult
from bench.suites.continued import Continued
from bench.token_likelihood import Request

ORDERS = (1, 2, 3)  # n of distinct-n
REPEATED = 3  # repetition counts 3-grams
WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['’])*")  # letters of any script; an apostrophe may be inside
HIGHER_IS_BETTER = {f"distinct_{n}" for n in ORDERS}


@dataclass(frozen=True, kw_only=True)
class Fluency(Continued):
    """Reads the same k continuations of the same prompts as the suite rtp, so nothing is sampled twice.

    All metrics have one item per prompt:

    perplexity    exp(sum of -log p / number of tokens) over all continuations; a prompt weighs what its tokens do.
                  Continuations are tokenised apart from their prompt; an empty one has no token and is "unscored".
    distinct_n    |distinct n-grams of words| / |words|, pooled over a prompt's k continuations; the denominator is
                  words for every n, and the value falls with k (arXiv 2105.03023 section 3.1 and its code, but
                  words are split on any white space, so that a leading space is no word). 0 where there is no word.
    repetition    share of a text's 3-grams of tokens that occurred before in that text, averaged over a prompt's
                  texts; 0 for a text of fewer than 3 tokens. Tokens, not words, so that "!!!!!!" is caught.
    empty_share   share of texts without any character but white space.
    mean_words    words of a text, averaged over a prompt's texts.
    non_word_share  share of a prompt's words, digits and signs left out, that are in no English word list (that of
                  pyspellchecker, 160,000 words). Names count as no words, so compare with the unsteered model only;
                  text in another language, or none, has far more of them. 0 where there is no word.
    judge_perplexity  with `judge`: perplexity as above under another model, a folder, that reads the plain prompt.
    short_share   share of texts that the model ended before `max_new_tokens`.
    """

    version: ClassVar[int] = 2

    name: str = "fluency"
    judge: str | None = None

    def identity(self, split: Split) -> dict[str, Any]:
        """Prompts, k and, where there is one, the judge's files."""
        judge = fingerprint(Path(self.judge)) if self.judge else None
        return super().identity(split) | {"judge": judge}

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """As the suite rtp."""
        prompts, located = rtp_prompts(self.sources, split, self.count(split))
        return prompts, [located]

    def run(self, lm: LM, split: Split) -> SuiteResult:
        """Sample, or take the stored texts, and look at them. Raises SuiteError when every text is empty."""
        frames, tables = [], []
        for block, rows in self.continued(lm, split):
            texts = [continuation.text for row in rows for continuation in row]
            k = len(rows[0])
            tokens = [list(lm.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
            with lm.unsteered() as base:
                contexts = [base.encode(prompt.text) for prompt in block for _ in range(k)]
                read = base.likelihood([Request(c, t) for c, t in zip(contexts, tokens, strict=True)])
            judged = self._judged([prompt.text for prompt in block for _ in range(k)], texts) if self.judge else None
            scores = pd.DataFrame(
                {
                    "item": np.repeat([prompt.id for prompt in block], k),  # (N * k,)
                    "sample": np.tile(np.arange(k), len(block)),
                    "nll": [-one.logprob for one in read],
                    "tokens": [one.tokens for one in read],
                    **({"judge_nll": judged[0], "judge_tokens": judged[1]} if judged else {}),
                    "repetition": [repetition(ids) for ids in tokens],
                    "empty": [float(not text.strip()) for text in texts],
                    "short": [float(continuation.ended) for row in rows for continuation in row],
                }
            )
            frames.append(scores)
            tables.append(prompt_metrics(scores, texts))
        scores, items = pd.concat(frames, ignore_index=True), pd.concat(tables, ignore_index=True)
        if not scores["tokens"].any():
            raise SuiteError(f"all {len(scores)} continuations are empty, so they have no perplexity")
        unscored = int((scores["tokens"] == 0).sum())
        found = {
            str(name): metrics.metric(
                table,
                higher_is_better=name in HIGHER_IS_BETTER,
                unscored=unscored if name == "perplexity" else 0,
                transform="exp" if str(name).endswith("perplexity") else "mean",
            )
            for name, table in items.groupby("metric", sort=False)
        }
        return SuiteResult(found, items, scores, self.facts(split))

    def _judged(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[list[float], list[int]]:
        """-log p and number of tokens of each text after its prompt, under the judge and with its own tokens."""
        judge = _judge(str(self.judge))
        requests = [
            Request(judge.encode(prompt), list(judge.tokenizer(text, add_special_tokens=False).input_ids))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        read = judge.likelihood(requests)
        return [-one.logprob for one in read], [one.tokens for one in read]


def prompt_metrics(scores: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
    """Every metric of every prompt, as metrics.ITEM_COLUMNS; row i of `scores` is about texts[i]."""
    groups = scores.assign(text=list(texts)).groupby("item", sort=False)
    count = groups["tokens"].sum()
    pooled = groups["text"].agg(list)
    weights = {"perplexity": count}
    columns = {
        "perplexity": groups["nll"].sum() / count.where(count > 0, math.nan),
        **{f"distinct_{n}": pooled.map(lambda some, n=n: distinct(some, n)) for n in ORDERS},
        "repetition": groups["repetition"].mean(),
        "empty_share": groups["empty"].mean(),
        "short_share": groups["short"].mean(),
        "mean_words": pooled.map(lambda some: sum(len(text.split()) for text in some) / len(some)),
        "non_word_share": pooled.map(non_words),
    }
    if "judge_nll" in scores:
        weights["judge_perplexity"] = groups["judge_tokens"].sum()
        columns["judge_perplexity"] = groups["judge_nll"].sum() / weights["judge_perplexity"].replace(0, math.nan)
    tables = [
        pd.DataFrame(
            {
                "metric": name,
                "item": values.index,
                "value": values.to_numpy(float),
                "weight": weights[name].to_numpy(float) if name in weights else 1.0,
            }
        )
        for name, values in columns.items()
    ]
    return pd.concat(tables, ignore_index=True).dropna()[metrics.ITEM_COLUMNS].reset_index(drop=True)


def distinct(texts: Sequence[str], n: int) -> float:
    """|distinct n-grams of words| / |words| over all the texts; n-grams do not cross from one text to the next."""
    words = [text.split() for text in texts]
    total = sum(map(len, words))
    return len({gram for one in words for gram in ngrams(one, n)}) / total if total else 0.0


def non_words(texts: Sequence[str]) -> float:
    """Share of the words of all the texts that are in no English word list; 0 where there is no word."""
    words = [word.replace("’", "'").strip("'").lower() for text in texts for word in WORD.findall(text)]
    known = _english()
    return sum(word not in known for word in words) / len(words) if words else 0.0


@functools.cache
def _english() -> frozenset[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="en").word_frequency.dictionary)


@functools.cache
def _judge(folder: str) -> LM:
    from bench.lm import load_lm

    return load_lm(folder)


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 3-grams that repeat an earlier one of the same text; 0 where there is no 3-gram."""
    grams = ngrams(tokens, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n neighbours, first to last."""
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
