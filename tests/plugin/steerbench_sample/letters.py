"""A suite: the share of letters in what the model writes; text that falls apart into symbols shows here."""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from bench.data.prompts import rtp_prompts
from bench.data.sources import Located
from bench.data.splits import Prompt
from bench.model.lm import LM
from bench.stats import metrics
from bench.suites.base import Answers, Split, SuiteResult
from bench.suites.continued import Block, Continued


@dataclass(frozen=True, kw_only=True)
class Letters(Continued):
    """share: letters and blanks among the characters of a prompt's continuations; an item per prompt."""

    version: ClassVar[int] = 1

    name: str = "letters"

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """As the suite rtp, so that with equal settings the same continuations are read."""
        prompts, located = rtp_prompts(self.sources, split, self.count(split))
        return prompts, [located]

    def score(self, answers: Answers[list[Block]], baseline: LM) -> SuiteResult:
        """Count."""
        del baseline  # the unsteered model judges nothing here
        rows = []
        for prompts, texts in answers.said:
            for prompt, written in zip(prompts, texts.read(), strict=True):
                text = "".join(one.text for one in written)
                rows.append({"item": prompt.id, "value": share(text), "characters": len(text)})
        scores = pd.DataFrame(rows)
        items = scores[["item", "value"]].assign(metric="share", weight=1.0)[metrics.ITEM_COLUMNS]
        found = {"share": metrics.metric(items, higher_is_better=True)}
        return SuiteResult(found, items, scores, self.facts(answers.split))


def share(text: str) -> float:
    """Letters and blanks among the characters; 0 for no text."""
    return sum(one.isalpha() or one.isspace() for one in text) / len(text) if text else 0.0
