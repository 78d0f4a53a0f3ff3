"""Sentiment by a lexicon with rules that a PyPI package carries: needs no download."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

from methods.errors import require


@dataclass(frozen=True)
class Vader:
    """VADER (Hutto and Gilbert 2014, ICWSM): rated words, with rules for negation, degree, capitals and punctuation.

    score = (compound + 1) / 2, where VADER's compound of the whole text lies in [-1, 1]: 0 negative, .5 neutral, 1
    positive. A text is positive above .5, negative below it. The authors call a text neutral for a compound between
    -.05 and .05, a score between .475 and .525; the suites here call only .5 neutral, so a text that is only slightly
    positive or negative counts as such. A text without a rated word, and a blank one, scores exactly .5.

    It was rated on posts on social media, sentence by sentence. In a long review or a broken text it only sees words.
    """

    name: ClassVar[str] = "vader"
    measures: ClassVar[str] = "sentiment"

    def __post_init__(self) -> None:
        """Raises SetupError without the package."""
        require("vaderSentiment", "scorer=vader", "sentiment")

    def identity(self) -> dict[str, Any]:
        """Return the version of the package, which carries the lexicon and the rules."""
        return {"name": self.name, "version": 1, "vaderSentiment": version("vaderSentiment")}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Score the sentiment of each completion by itself."""
        del prompts
        analyzer = _analyzer()
        return [(float(analyzer.polarity_scores(text)["compound"]) + 1) / 2 for text in completions]


@functools.cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
