"""Attitude: does a model answer texts of negative emotion positively or negatively?

Protocol of Model Surgery (arXiv 2407.08770, its experiments on attitude): the model answers texts of negative emotion
(Saravia et al. 2018), ChatGPT says whether an answer is positive or negative, and the paper reports the share of each.
LLaMA2-7B gives 63.7% negative and 36.4% positive answers, 77.6% negative ones after the edit towards the negative,
54.8% positive ones after the edit towards the positive.

Differs: a scorer of sentiment judges, VADER unless the run names another (hf_classifier with a checkpoint for
sentiment). It may find an answer neither positive nor negative, so levels do not compare with the paper's, only changes
do. We do not know which emotions and how many texts the paper takes, how it words them, and how long an answer may be.
Here the texts of sadness, anger and fear in the set's test split are asked as they are, and an answer has at most 128
greedy tokens. The set is dair-ai/emotion on the hub (its labels are read as 0 sadness, 1 joy, 2 love, 3 anger, 4 fear,
5 surprise). If it is not available, beginnings of negative film reviews, or your own file, stand in for it. Only rows
of the same data, template, decoding and judge compare.

The suite `sentiment` measures something else: whether the beginning of a review is continued with the opposite
sentiment. Text that has collapsed has no sentiment for a lexicon: it is neither, so both shares fall.
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from bench.data.sources import Located
from bench.data.splits import Learnt, Prompt, part_of, prompt
from bench.data.text_sets import EMOTION, REVIEWS, check_source, leak, texts_of, texts_of_file
from bench.model.lm import LM
from bench.scorers.base import Scorer
from bench.suites.asked import PLACE, Asked
from bench.suites.base import Answers, Split, SuiteResult
from bench.suites.continued import Block
from bench.suites.sentiment import NEUTRAL, beginning, vader_unless
from methods.errors import SetupError

NEGATIVE = {EMOTION: ("0", "3", "4"), **dict.fromkeys(REVIEWS, ("0",))}
"""The labels of texts of negative emotion in each set."""


@dataclass(frozen=True, kw_only=True)
class Attitude(Asked):
    """Answers to texts of negative emotion; an item for each text.

    negative_share   share of a text's k answers that are negative (score below .5).
    positive_share   share of them that are positive (score above .5).
    mean_sentiment   their mean score, 0 negative to 1 positive.

    A score of exactly .5 is neither. An empty answer counts as .5, whatever the scorer makes of it.

    data: which set, by its name on the hub, or "file". path: for data="file", the file (JSONL or CSV), of which all
    texts are asked. text: the column of that file with the texts. prefix_words: how many words of a text the model is
    given; None for all.
    prompts: how many texts; None for all. In tables a smaller negative share counts as better.
    """

    version: ClassVar[int] = 1
    reads: ClassVar[str] = "sentiment"

    name: str = "attitude"
    data: str = EMOTION
    path: str | None = None
    text: str = "text"
    prefix_words: int | None = None
    k: int = 1
    prompts: int | None = 100
    dev_k: int = 1
    template: str = PLACE

    def __post_init__(self) -> None:
        """Raises SetupError for an unknown set, for a file without data="file", and for data="file" without a file."""
        super().__post_init__()
        check_source(self.name, self.data, self.path, NEGATIVE)

    @property
    def judges(self) -> list[Scorer]:
        """The run's scorers of sentiment; VADER if there is none."""
        return vader_unless(super().judges)

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from texts of this suite must not be measured on them; None if it may."""
        return leak(learnt, self.data, self.name, self.path)

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return the texts of negative emotion of this split. Raises SetupError if the set has none."""
        if self.path is not None:
            found, located = texts_of_file(self.path, self.text)
        else:
            every, located = texts_of(self.sources, self.data)
            found = [one for one in every if one.group in NEGATIVE[self.data]]
        if not found:
            raise SetupError(
                f"{self.data} from {located.source}: no text has a label of {', '.join(NEGATIVE[self.data])}"
            )
        if self.prefix_words is not None:
            found = [prompt(text) for text in dict.fromkeys(beginning(one.text, self.prefix_words) for one in found)]
        return part_of(found, split, self.prompts, self.dev_prompts, f"suite.{self.name}.prompts"), [located]

    def prompt_metrics(self, scores: pd.DataFrame, scorer: str, split: Split) -> dict[str, "pd.Series[float]"]:
        """Return both shares and the mean score of each text's answers."""
        del scorer, split
        score = scores["score"].where(scores["empty"] == 0, NEUTRAL)
        found = {
            "negative_share": score.lt(NEUTRAL).astype(float),
            "positive_share": score.gt(NEUTRAL).astype(float),
            "mean_sentiment": score,
        }
        return {name: values.groupby(scores["item"], sort=False).mean() for name, values in found.items()}

    def score(self, answers: Answers[list[Block]], baseline: LM | None = None) -> SuiteResult:
        """Score as every suite of continuations does; a smaller negative share is better."""
        found = super().score(answers, baseline)
        better = {
            name: one._replace(higher_is_better=not name.endswith(".negative_share"))
            for name, one in found.metrics.items()
        }
        return found._replace(metrics=better)
