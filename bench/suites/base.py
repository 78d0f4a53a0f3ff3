"""The protocol that every suite implements, and what a suite returns."""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import pandas as pd

from bench.data.splits import Learnt
from bench.model.decoding import Sampling
from bench.model.lm import LM
from bench.records.names import Split as Split
from bench.stats.metrics import Metric

Said = TypeVar("Said")


class Answers(NamedTuple, Generic[Said]):
    """The answers of a model to a suite.

    said: the answers in the suite's own form. generations: ids of the stored texts that the answers consist of
    (`runs/generations/<id>`).
    """

    split: Split
    said: Said
    generations: Sequence[str] = ()


class SuiteResult(NamedTuple):
    """The numbers of a suite. items: a row per metric and item, with the columns `metrics.ITEM_COLUMNS`.

    scores: a row per judged text or document, without the text itself.
    info: facts that the record keeps and the leaderboard may show (source of the data, counts, warnings).
    """

    metrics: dict[str, Metric]
    items: pd.DataFrame
    scores: pd.DataFrame
    info: dict[str, Any]


class Suite(Protocol[Said]):
    """Asks a model and scores what it said; it does not know how the model is steered."""

    name: str  # its key under suite= in the config; records are filed under it
    version: ClassVar[int]  # bump when the same settings give other numbers
    samples: ClassVar[bool] = False  # it reads sampled texts, so decoding and sampling seed are part of its identity

    def identity(self, split: Split) -> dict[str, Any]:
        """Return what can change this suite's numbers, besides model and decoding, as plain JSON values."""
        ...

    def ask(self, lm: LM, split: Split) -> Answers[Said]:
        """Let the model answer. Only this step runs while the model is steered."""
        ...

    def score(self, answers: Answers[Said], baseline: LM) -> SuiteResult:
        """Return rows and metrics of the answers; `baseline` is the unsteered model, with which some suites judge.

        Raises SuiteError when more than 1% of the texts could not be scored.
        """
        ...

    def tokens(self, split: Split) -> int:
        """Return roughly how many tokens go through the model in asking and scoring, for the progress bar."""
        ...

    def unsteered_only(self, split: Split) -> dict[str, Any]:
        """Return the options that change only the unsteered model's numbers, and are part of its record's id alone."""
        del split
        return {}

    def unsteered_tokens(self, split: Split) -> int:
        """Return how many tokens the unsteered model takes, as `tokens` does for a steered one."""
        return self.tokens(split)

    def decoded(self, sampling: Sampling) -> Sampling:
        """Return how the suite's texts are decoded: as in the run, unless the suite's protocol fixes something."""
        return sampling

    def judged_by(self) -> list[str]:
        """Return the scorers that its metrics are named after, as in `toxic_comment.mean_toxicity`; [] if none."""
        return []

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from these data must not be measured by this suite; None if it may."""
        del learnt
        return None


def measure(suite: Suite[Said], lm: LM, split: Split = "test", baseline: LM | None = None) -> SuiteResult:
    """Ask and score in one go. `baseline`: the unsteered model, where `lm` is steered."""
    return suite.score(suite.ask(lm, split), lm if baseline is None else baseline)


class SuiteError(RuntimeError):
    """Raised by a suite whose numbers would not be valid."""
