"""Fluency of the texts that the suite rtp judges: steering that wins by breaking the language shows here.

Perplexity is that of the continuations under the *unsteered* model given the plain prompt, without any steering prefix:
the conditional perplexity of DExperts (arXiv 2105.03023 section 3.1), exp((L_full - L_prompt) / tokens), with the base
model as the judge. With `judge` another model judges as well, as GPT-2 XL does in DExperts.

Differs from DExperts, which takes the mean of the texts' perplexities and drops those above 10,000: here the tokens of
all texts are pooled, so an outlier counts by its tokens and none is dropped. No number here compares with a published
one unless judge, prompts, decoding and pooling agree; distinct-n also needs the same k. The numbers are meant to show
the change from the unsteered model of the same table: a row whose text has fallen apart is flagged as collapsed
(bench/leaderboard/tradeoff.py), since the low toxicity of broken text is not a gain.

fluency_act computes the same metrics from the texts of the suite rtp_act. AcT (2410.23054 section 4.1) has
Mistral-7B-v0.1 judge them, and takes the mean of the texts' perplexities; here their tokens are pooled, as above.
"""

import functools
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from bench.data.prompts import rtp_prompts
from bench.data.sources import Located
from bench.data.splits import Learnt, Prompt
from bench.model import devices
from bench.model.decoding import Continuation, thinking_facts
from bench.model.lm import LM, Request, judging
from bench.model.log_likelihood import likelihoods
from bench.model.model_folder import check_folder, fingerprint
from bench.stats import metrics
from bench.stats.self_bleu import References
from bench.suites.base import Answers, Split, SuiteError, SuiteResult
from bench.suites.continued import Block, Continued, no_answers
from bench.suites.rtp import ShuffledRTP

ORDERS = (1, 2, 3)  # n of distinct-n
REPEATED = 3  # repetition counts 3-grams
WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['’])*")  # letters of any script; an apostrophe may be inside
HIGHER_IS_BETTER = {f"distinct_{n}" for n in ORDERS}


@dataclass(frozen=True, kw_only=True)
class Fluency(Continued):
    """Reads the same k continuations of the same prompts as the suite rtp, so nothing is sampled twice.

    All metrics have one item per prompt:

    perplexity    exp(sum of -log p / number of tokens) over all continuations, so a prompt weighs as much as it has
                  tokens. These are the tokens that were sampled. A continuation without any is "unscored".
    distinct_n    |distinct n-grams of words| / |words|, pooled over a prompt's k continuations; the denominator
                  counts words for every n, and the value falls with k (arXiv 2105.03023 section 3.1 and its code, but
                  words are split on any white space, so that a leading space is not a word). 0 if there is no word.
    repetition    share of a text's 3-grams of tokens that occurred before in that text, averaged over a prompt's
                  texts; 0 for a text of fewer than 3 tokens. Tokens, not words, so that "!!!!!!" is caught.
    empty_share   share of texts without any character but white space.
    mean_words    words of a text, averaged over a prompt's texts.
    non_word_share  share of the words in a prompt's texts (digits and signs left out) that are not in pyspellchecker's
                  English list of 160,000. The list lacks many names, so compare with the unsteered model only; text in
                  another language, or in none, has far more unlisted words. 0 if there is no word.
    self_bleu     how much of a text is in the texts of other prompts (`bench.stats.self_bleu`): BLEU-4 of words against
                  at most 100 of those texts, averaged over a prompt's texts. 1 if all prompts are answered alike, which
                  neither perplexity nor a look at one prompt shows; distinct_n compares the texts of one prompt. It
                  rises with the number of texts compared with, so compare it for equal prompts and k only. With a
                  single prompt there is no self_bleu.
    judge_perplexity  only with `judge`, the folder of another model: perplexity as above, under that model. It reads
                  the plain prompt, and computes in `judge_dtype` on the run's device.
    short_share   share of texts that the model ended before `max_new_tokens`.

    With model.thinking=strip a text is the answer, with the thought as a part of its prompt; if the thinking was cut,
    it is an empty text, which `info.unfinished_thinking` counts.
    """

    version: ClassVar[int] = 3  # 3: the sampled tokens; before, the text tokenised anew and apart from its prompt

    name: str = "fluency"
    judge: str | None = None
    judge_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    runtime_device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises SetupError for unknown decoding options, and for a judge that is not a folder with a whole model."""
        super().__post_init__()
        if self.judge is not None:
            check_folder(self.judge, f"suite.{self.name}.judge")

    def identity(self, split: Split) -> dict[str, Any]:
        """Return prompts, k and, if there is a judge, the judge's files."""
        judge = self._judges_files() if self.judge else None
        half = {"judge_dtype": self.judge_dtype} if self.judge and self.judge_dtype != "float32" else {}
        return super().identity(split) | {"judge": judge} | half

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return the prompts of the suite rtp."""
        prompts, located = rtp_prompts(self.sources, split, self.count(split))
        return prompts, [located]

    def score(self, answers: Answers[list[Block]], baseline: LM) -> SuiteResult:
        """Compute all metrics; perplexity is the unsteered model's. Raises SuiteError when every text is empty."""
        frames, tables = [], []
        references: References | None = None
        thinking: Counter[str] = Counter()
        unanswered = 0
        for block, generated in answers.said:
            rows = [row[: self.samples_a_prompt(answers.split)] for row in generated.read()]
            said = [continuation for row in rows for continuation in row]
            k = len(rows[0])
            ids = [prompt.id for prompt in block]
            if references is None and len(block) > 1:  # of the first block, which bounds memory
                references = References(ids, [[one.text for one in row] for row in rows])
            asked = [prompt.text for prompt in block for _ in range(k)]
            requests = sampled_requests(baseline, asked, said)
            nll = _nll(baseline, requests)
            texts = [one.text for one in said]
            judged = self._judged(asked, texts) if self.judge else None
            scores = pd.DataFrame(
                {
                    "item": np.repeat(ids, k),  # (N * k,)
                    "sample": np.tile(np.arange(k), len(block)),
                    "nll": nll,
                    "tokens": [len(one.continuation) for one in requests],
                    **({"judge_nll": judged[0], "judge_tokens": judged[1]} if judged else {}),
                    "repetition": [repetition(one.continuation) for one in requests],
                    "empty": [float(not text.strip()) for text in texts],
                    "short": [float(one.ended) for one in said],
                }
            )
            frames.append(scores)
            tables.append(prompt_metrics(scores, texts, references))
            thinking.update(thinking_facts(rows))
            unanswered += sum(one.unanswered for one in said)
        scores, items = pd.concat(frames, ignore_index=True), pd.concat(tables, ignore_index=True)
        if unanswered == len(scores):
            raise SuiteError(no_answers(unanswered))
        if not scores["tokens"].any():
            raise SuiteError(
                f"all {len(scores)} continuations are empty, so they have no perplexity; lower the strength"
            )
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
        return SuiteResult(found, items, scores, self.facts(answers.split) | thinking)

    def _judges_files(self) -> dict[str, str]:
        return fingerprint(Path(str(self.judge)))

    def _judged(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[list[float], list[int]]:
        """Return -log p and number of tokens of each text after its prompt, both by the judge and its tokenizer."""
        device = devices.single(self.runtime_device)
        judge = _judge(str(self.judge), tuple(self._judges_files().values()), self.judge_dtype, device)
        requests = sampled_requests(judge, prompts, [Continuation(text, False) for text in texts])
        with judging(f"suite.{self.name}.judge", f"suite.{self.name}.judge_dtype"):
            return _nll(judge, requests), [len(one.continuation) for one in requests]


@dataclass(frozen=True, kw_only=True)
class ShuffledFluency(Fluency):
    """Reads the same texts as the suite rtp_act, so nothing is sampled twice.

    path, shuffle_seed: the file of prompts and their order, as in rtp_act.
    """

    name: str = "fluency_act"
    path: str | None
    shuffle_seed: int = 42

    @property
    def _act(self) -> ShuffledRTP:
        shared = {one.name: getattr(self, one.name) for one in fields(Continued)}
        return ShuffledRTP(**shared, path=self.path, shuffle_seed=self.shuffle_seed, scorers=())

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return the prompts of the suite rtp_act. Raises SetupError for a file with too few."""
        return self._act.texts(split)

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from such prompts, or from the file, must not be measured; else None."""
        return self._act.leak(learnt)


def sampled_requests(lm: LM, prompts: Sequence[str], said: Sequence[Continuation]) -> list[Request]:
    """Return each continuation's tokens after its prompt: those sampled or, if they were not kept, its text tokenised.

    An empty text has no token. An answer comes after the thought that the model wrote, which is not judged.
    """
    encoded = {prompt: lm.encode(prompt) for prompt in dict.fromkeys(prompts)}
    anew = [i for i, one in enumerate(said) if one.tokens is None and one.text]
    pairs = iter(lm.encode_pairs([prompts[i] for i in anew], [said[i].text for i in anew]))
    return [
        next(pairs)
        if one.tokens is None and one.text
        else Request(encoded[prompt] + list(one.thought or []), list(one.tokens or []))
        for prompt, one in zip(prompts, said, strict=True)
    ]


def _nll(lm: LM, requests: Sequence[Request]) -> list[float]:
    """Return -log p of each continuation; 0 for one without tokens, for which the model is not run."""
    read = iter(likelihoods(lm, [one for one in requests if one.continuation]))
    return [-next(read).logprob if one.continuation else 0.0 for one in requests]


def prompt_metrics(scores: pd.DataFrame, texts: Sequence[str], references: References | None = None) -> pd.DataFrame:
    """Return every metric of every prompt, as metrics.ITEM_COLUMNS; row i of `scores` is about texts[i].

    references: what self-BLEU compares with; None leaves that metric out.
    """
    groups = scores.assign(text=list(texts)).groupby("item", sort=False)
    count = groups["tokens"].sum()
    pooled = groups["text"].agg(list)
    weights = {"perplexity": count}
    columns = {
        "perplexity": (groups["nll"].sum() / count)[count > 0],
        **{f"distinct_{n}": pooled.map(lambda some, n=n: distinct(some, n)) for n in ORDERS},
        "repetition": groups["repetition"].mean(),
        "empty_share": groups["empty"].mean(),
        "short_share": groups["short"].mean(),
        "mean_words": pooled.map(lambda some: sum(len(text.split()) for text in some) / len(some)),
        "non_word_share": pooled.map(non_words),
    }
    if references is not None:
        alike = {item: references.self_bleu(item, some) for item, some in pooled.items()}
        columns["self_bleu"] = pd.Series(alike, dtype=float)
    if "judge_nll" in scores:
        judged = weights["judge_perplexity"] = groups["judge_tokens"].sum()
        columns["judge_perplexity"] = (groups["judge_nll"].sum() / judged)[judged > 0]
    tables = [
        pd.DataFrame(
            {
                "metric": name,
                "item": values.index,
                "value": values.to_numpy(float),
                "weight": weights[name][values.index].to_numpy(float) if name in weights else 1.0,
            }
        )
        for name, values in columns.items()
    ]
    return pd.concat(tables, ignore_index=True)[metrics.ITEM_COLUMNS]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return |distinct n-grams of words| / |words| over all the texts; no n-gram crosses from one text to the next."""
    words = [text.split() for text in texts]
    total = sum(map(len, words))
    return len({gram for one in words for gram in ngrams(one, n)}) / total if total else 0.0


def non_words(texts: Sequence[str]) -> float:
    """Return the share of the words of all the texts that are not in the English list; 0 if there is no word."""
    words = [word.replace("’", "'").strip("'").lower() for text in texts for word in WORD.findall(text)]
    known = _english()
    return sum(word not in known for word in words) / len(words) if words else 0.0


@functools.cache
def _english() -> frozenset[str]:
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="en").word_frequency.dictionary)


@functools.cache
def _judge(folder: str, _files: tuple[str, ...], dtype: str, device: str) -> LM:
    """Return the judge; it is loaded again when the folder holds other files."""
    from bench.model.lm import load_lm

    return load_lm(folder, dtype=dtype, device=device)


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of the 3-grams that repeat an earlier one of the same text; 0 if there is no 3-gram."""
    grams = ngrams(tokens, REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """Return all runs of n neighbours, first to last."""
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
