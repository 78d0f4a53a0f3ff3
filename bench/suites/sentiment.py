"""Sentiment steering: does the model continue the beginning of a film review with the opposite sentiment?

Protocol of ActAdd (arXiv 2308.10248, its IMDb experiment): the model is given the beginning of a review and continues
it; it succeeds if a classifier finds the opposite of the review's sentiment in the continuation, which is judged alone,
without the beginning that it shares with the review. Success is reported for each direction, of 1,000 reviews.

Differs: how much of a review the paper gives is not known to us, so it is an option, `prefix_words`. It counts words
rather than tokens, so that every model is given the same text and none is cut within a word. The wheel has 200 of the
50,000 reviews. The paper's classifier is a Twitter-roBERTa; here VADER, a lexicon with rules, judges unless the run
names a scorer that measures sentiment (hf_classifier with a Twitter-roBERTa comes closer). Decoding and length are the
run's own (conf/sampling). So only rows of the same judge, data, prefix and decoding compare; the paper's numbers
(LLaMA-3-8B in its later version: neg_to_pos .349 after .200 unsteered, pos_to_neg .395 after .207) only show how large
an effect to expect.

A success is not always the aim of steering: a method that makes text positive should raise neg_to_pos and lower
pos_to_neg. Neither is 0 for an unsteered model: look at the change. Text that has collapsed has no sentiment for a
lexicon, so it is not a success. The suite is for plain continuation: with model.chat=true the beginning is a user's
message, and the model answers it rather than writing on.
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from bench.data.sources import Located
from bench.data.splits import Learnt, Prompt, by_group, part_of, prompt
from bench.data.text_sets import REVIEWS, leak, texts_of
from bench.scorers.base import Scorer
from bench.suites.base import Split
from bench.suites.continued import Judged
from methods.errors import SetupError

NEUTRAL = 0.5  # a score above it is positive, below it negative
LABELS = {"0": "negative", "1": "positive"}


@dataclass(frozen=True, kw_only=True)
class Sentiment(Judged):
    """Continuations of the beginnings of reviews; an item for each review.

    neg_to_pos       share of a negative review's k continuations that are positive (score above .5).
    pos_to_neg       share of a positive review's continuations that are negative (score below .5).
    mean_sentiment   mean score of the continuations of all reviews, 0 negative to 1 positive.

    A score of exactly .5 is neither. An empty continuation counts as .5, whatever the scorer makes of it.

    prompts: how many reviews of each sentiment, which are the first in the order of a hash; None for all. data: IMDb,
    or the sentences of nyu-mll/glue's sst2, many of which are shorter than the prefix and then given whole.
    prefix_words: how many words of a review the model is given; HTML line breaks count as blanks.
    """

    version: ClassVar[int] = 1
    reads: ClassVar[str] = "sentiment"
    higher_is_better: ClassVar[bool] = True

    name: str = "sentiment"
    data: str = "stanfordnlp/imdb"
    prefix_words: int = 25
    k: int = 1
    prompts: int | None = 50
    dev_k: int = 1
    dev_prompts: int = 16

    def __post_init__(self) -> None:
        """Raises SetupError for an unknown set, and for a prefix without a word."""
        super().__post_init__()
        if self.data not in REVIEWS:
            raise SetupError(f"suite.{self.name}.data={self.data}: allowed are {', '.join(REVIEWS)}")
        if self.prefix_words < 1:
            raise SetupError(f"suite.{self.name}.prefix_words={self.prefix_words}: expected at least 1")

    @property
    def judges(self) -> list[Scorer]:
        """The run's scorers of sentiment; VADER if there is none."""
        return vader_unless(super().judges)

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from texts of this suite must not be measured on them; None if it may."""
        return leak(learnt, self.data, self.name)

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return beginnings of negative, then of positive reviews. Raises SetupError if one kind is absent."""
        reviews, located = texts_of(self.sources, self.data)
        kinds = by_group(reviews)
        if set(kinds) != set(LABELS):
            raise SetupError(
                f"{self.data} from {located.source}: its column label holds {', '.join(sorted(kinds))}; expected are "
                "0 (negative) and 1 (positive)"
            )
        chosen: list[Prompt] = []
        for label, named in LABELS.items():
            beginnings = dict.fromkeys(beginning(one.text, self.prefix_words) for one in kinds[label])
            some = [prompt(text, named) for text in beginnings]
            chosen += part_of(some, split, self.prompts, self.dev_prompts, f"suite.{self.name}.prompts")
        return chosen, [located]

    def prompt_metrics(self, scores: pd.DataFrame, scorer: str, split: Split) -> dict[str, "pd.Series[float]"]:
        """Return the rates of success in both directions, and the mean score."""
        del scorer, split
        score = scores["score"].where(scores["empty"] == 0, NEUTRAL)
        positive = scores["group"] == "positive"
        success = score.lt(NEUTRAL).where(positive, score.gt(NEUTRAL)).astype(float)
        return {
            "neg_to_pos": success[~positive].groupby(scores["item"][~positive], sort=False).mean(),
            "pos_to_neg": success[positive].groupby(scores["item"][positive], sort=False).mean(),
            "mean_sentiment": score.groupby(scores["item"], sort=False).mean(),
        }


def beginning(review: str, words: int) -> str:
    """Return the first words of a review, single blanks between them."""
    return " ".join(review.replace("<br />", " ").split()[:words])


def vader_unless(judges: list[Scorer]) -> list[Scorer]:
    """Return the judges, or VADER if there is none."""
    from bench.scorers.vader import Vader

    return judges or [Vader()]
