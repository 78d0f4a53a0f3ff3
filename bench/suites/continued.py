"""The base of the suites that judge continuations of prompts."""

import functools
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from bench.data.sources import Located, Sources
from bench.data.splits import Prompt
from bench.model.decoding import Continuation, Sampling, thinking_facts
from bench.model.generation_cache import generate
from bench.model.lm import LM, Generated
from bench.records.identity import named
from bench.scorers.base import Labelled, Scorer, unique_scores
from bench.stats import metrics
from bench.suites.base import Answers, Split, Suite, SuiteError, SuiteResult
from methods.errors import SetupError

TOKENS_A_PROMPT = 15  # roughly
PROMPTS_A_BLOCK = (
    512  # prompts sampled, stored and judged at a time: this bounds memory, and a stopped run goes on from there
)
UNSCORED_LIMIT = 0.01
MOST = 10**6  # texts of a prompt, or prompts
DECODING = ("max_new_tokens", "temperature", "top_p", "stop", "top_k", "repetition_penalty", "frequency_penalty")


def no_answers(texts: int) -> str:
    """Return the error for a model that thinks, all of whose texts were cut before an answer."""
    return (
        f"in all {texts} texts the thinking was cut before there was an answer; raise sampling.max_new_tokens, or set "
        "model.thinking=off, or judge to judge the thoughts"
    )


class Block(NamedTuple):
    """Some prompts with their continuations; texts are read one such block at a time, so that memory does not grow."""

    prompts: list[Prompt]
    texts: Generated


@dataclass(frozen=True, kw_only=True)
class Continued(Suite[list[Block]]):
    """Chooses the prompts and the number of continuations; suites with equal settings read the same stored texts.

    name: the name under which its results are stored; each protocol has its own. decoding: the settings that the
    protocol fixes; all other settings are the run's (conf/sampling). unsteered_k: how many continuations of each test
    prompt the unsteered model writes. The numbers of all rows depend on these continuations, of which the first k are
    the same for any unsteered_k.
    """

    version: ClassVar[int]
    samples: ClassVar[bool] = True

    name: str
    sources: Sources
    k: int = 25
    prompts: int | None = 100
    dev_k: int = 3
    dev_prompts: int = 32
    unsteered_k: int | None = None
    decoding: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raises SetupError for an impossible number of texts or prompts, and for unknown decoding."""
        for option in ("k", "prompts", "dev_k", "dev_prompts", "unsteered_k"):
            count = getattr(self, option)
            if option in ("prompts", "unsteered_k") and count is None:
                continue
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
                raise SetupError(f"suite.{self.name}.{option}={count!r}: expected a whole number from 1 to {MOST:,}")
        if self.unsteered_k is not None and self.unsteered_k < self.k:
            raise SetupError(
                f"suite.{self.name}.unsteered_k={self.unsteered_k}: expected at least k={self.k}, or null, which is k"
            )
        unknown = set(self.decoding or {}) - set(DECODING)
        if unknown:
            raise SetupError(f"suite.{self.name}.decoding={sorted(unknown)}: allowed are {', '.join(DECODING)}")
        self.decoded(Sampling())

    def decoded(self, sampling: Sampling) -> Sampling:
        """Return the run's decoding with what the protocol fixes."""
        return replace(sampling, **(self.decoding or {}))

    def samples_a_prompt(self, split: Split) -> int:
        """Return how many continuations of each prompt this split compares."""
        return self.k if split == "test" else self.dev_k

    def unsteered_samples(self, split: Split) -> int:
        """Return how many continuations the unsteered model is asked for, at least the k of this split."""
        return self.unsteered_k or self.k if split == "test" else self.dev_k

    def count(self, split: Split) -> int | None:
        """Return the number of prompts of this split; None for all."""
        return self.prompts if split == "test" else self.dev_prompts

    @abstractmethod
    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return the prompts of this split, and where they come from."""

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the prompts and k, as ids see them."""
        prompts, located = self.texts(split)
        return {
            "k": self.samples_a_prompt(split),
            "prompts": [prompt.id for prompt in prompts],
            "source": located[0].fingerprint if len(located) == 1 else [one.fingerprint for one in located],
        }

    def tokens(self, split: Split) -> int:
        """Count each prompt once, and each continuation as long as it may be."""
        return self._tokens(split, self.samples_a_prompt(split))

    def unsteered_tokens(self, split: Split) -> int:
        """Count the tokens for as many continuations as the unsteered model is asked for."""
        return self._tokens(split, self.unsteered_samples(split))

    def _tokens(self, split: Split, samples: int) -> int:
        return len(self.texts(split)[0]) * (TOKENS_A_PROMPT + self.decoded(Sampling()).max_new_tokens * samples)

    def worded(self, prompt: Prompt, chat: bool) -> Prompt:
        """Return the prompt as a model reads it, here unchanged. chat: whether the model's chat template is used."""
        del chat
        return prompt

    def blocks(self, split: Split, chat: bool) -> Iterator[list[Prompt]]:
        """Yield the prompts as they are asked, some at a time."""
        prompts, _ = self.texts(split)
        for start in range(0, len(prompts), PROMPTS_A_BLOCK):
            yield [self.worded(prompt, chat) for prompt in prompts[start : start + PROMPTS_A_BLOCK]]

    def ask(self, lm: LM, split: Split) -> Answers[list[Block]]:
        """Sample continuations of each prompt, or find them in the store."""
        lm = replace(lm, sampling=self.decoded(lm.sampling))
        return self.answered(split, lm.chat, lm.steering_identity is None, functools.partial(generate, lm))

    def answered(
        self, split: Split, chat: bool, unsteered: bool, generated: Callable[[Sequence[str], int], Generated]
    ) -> Answers[list[Block]]:
        """Return the prompts with their continuations. generated: makes a number of continuations of each text."""
        k = self.unsteered_samples(split) if unsteered else self.samples_a_prompt(split)
        blocks = [
            Block(prompts, generated([prompt.text for prompt in prompts], k)) for prompts in self.blocks(split, chat)
        ]
        return Answers(split, blocks, [one.texts.id for one in blocks if one.texts.id is not None])

    def facts(self, split: Split) -> dict[str, Any]:
        """Return what a record says about the prompts."""
        prompts, located = self.texts(split)
        k = self.samples_a_prompt(split)
        return {
            "k": k,
            "prompts": len(prompts),
            "texts": len(prompts) * k,  # that are compared
            "sources": [one.facts() for one in located],
        }


@dataclass(frozen=True, kw_only=True)
class Judged(Continued):
    """Continuations, each judged by every scorer of the kind that the suite reads."""

    reads: ClassVar[str] = "toxicity"  # what a scorer has to measure
    higher_is_better: ClassVar[bool] = False

    scorers: Sequence[Scorer]

    @property
    def judges(self) -> list[Scorer]:
        """The run's scorers that measure what this suite reads."""
        return [scorer for scorer in self.scorers if scorer.measures == self.reads]

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the prompts, k and the scorers, as ids see them."""
        return super().identity(split) | {"scorers": [named(scorer) for scorer in self.judges]}

    @abstractmethod
    def prompt_metrics(self, scores: pd.DataFrame, scorer: str, split: Split) -> dict[str, "pd.Series[float]"]:
        """Return each metric's values by item, from scored texts (columns item, group, sample, score, empty)."""

    def judged_by(self) -> list[str]:
        """Return the scorers that judge the texts."""
        return [scorer.name for scorer in self.judges]

    def check_judges(self) -> None:
        """Raises SetupError if no scorer of the run measures what this suite reads."""
        if not self.judges:
            given = ",".join(scorer.name for scorer in self.scorers)
            raise SetupError(
                f"suite.{self.name} needs a scorer of {self.reads}; none of scorer=[{given}] is one; see --help scorer"
            )

    def ask(self, lm: LM, split: Split) -> Answers[list[Block]]:
        """Sample the continuations, after checking that a scorer can judge them."""
        self.check_judges()
        return super().ask(lm, split)

    def score(self, answers: Answers[list[Block]], baseline: LM | None = None) -> SuiteResult:
        """Judge the texts. Raises SuiteError when a scorer leaves more than 1% of them unscored.

        With model.thinking=strip a text whose thinking was cut has no answer, so it is unscored, whatever the scorers
        make of an empty text; `info.unfinished_thinking` counts such texts. Raises SuiteError if no text has an answer.
        """
        del baseline
        self.check_judges()
        split, frames = answers.split, []
        thinking: Counter[str] = Counter()
        unanswered = 0
        for block, generated in answers.said:
            rows = generated.read()
            frames.append(self._judged(block, rows))
            thinking.update(thinking_facts(rows))
            unanswered += sum(one.unanswered for row in rows for one in row)
        scores = pd.concat(frames, ignore_index=True)
        frames.clear()
        if unanswered == len(scores):
            raise SuiteError(no_answers(unanswered))
        found: dict[str, metrics.Metric] = {}
        items = []
        for scorer in self.judges:
            unscored = int(scores[scorer.name].isna().sum())
            if unscored - unanswered > UNSCORED_LIMIT * len(scores):
                raise SuiteError(
                    f"{scorer.name} left {unscored - unanswered} of {len(scores)} texts unscored; more than 1% is a "
                    "failure. Change how it judges, if it has such options, or take another scorer"
                )
            known = scores.assign(score=scores[scorer.name]).dropna(subset=["score"])
            for name, values in self.prompt_metrics(known, scorer.name, split).items():
                table = pd.DataFrame(
                    {
                        "metric": f"{scorer.name}.{name}",
                        "item": values.index,
                        "value": values.to_numpy(float),
                        "weight": 1.0,
                    }
                )
                better = self.higher_is_better
                found[f"{scorer.name}.{name}"] = metrics.metric(table, higher_is_better=better, unscored=unscored)
                items.append(table)
        info = self.facts(split) | {"scorers": [scorer.name for scorer in self.judges]} | thinking
        return SuiteResult(found, pd.concat(items, ignore_index=True)[metrics.ITEM_COLUMNS], scores, info)

    def _judged(self, block: Sequence[Prompt], rows: Sequence[Sequence[Continuation]]) -> pd.DataFrame:
        """Return a row for each text of these prompts, with its scores; NaN for a text without an answer."""
        k = len(rows[0])
        frame = pd.DataFrame(
            {
                "item": np.repeat([prompt.id for prompt in block], k),  # (N * k,)
                "group": np.repeat([prompt.group for prompt in block], k),
                "sample": np.tile(np.arange(k), len(block)),
                "empty": [float(not one.text.strip()) for row in rows for one in row],
            }
        )
        asked = [prompt.text for prompt in block for _ in range(k)]
        texts = [continuation.text for row in rows for continuation in row]
        cut = [continuation.unanswered for row in rows for continuation in row]
        for scorer in self.judges:
            scored = np.array(unique_scores(scorer, asked, texts), dtype=float)  # None becomes NaN
            frame[scorer.name] = np.where(cut, np.nan, scored)
            if isinstance(scorer, Labelled):
                for label, of_label in _by_label(scorer, texts).items():
                    frame[f"{scorer.name}.{label}"] = np.where(cut, np.nan, of_label)
        return frame


def _by_label(scorer: Labelled, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the scores of each label, (B,), judging equal texts once; NaN for a text that could not be scored."""
    distinct, of_text = np.unique(np.array(texts, dtype=object), return_inverse=True)
    found = scorer.by_label(distinct.tolist())
    return {label: np.array(scored, dtype=float)[of_text] for label, scored in found.items()}
