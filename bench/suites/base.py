"""What a suite is and what it returns."""

from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import pandas as pd

from bench.model.lm import LM
from bench.stats.metrics import Metric

Split = Literal["dev", "test"]


class SuiteResult(NamedTuple):
    """items: metrics.ITEM_COLUMNS, a row per metric and item. scores: a row per judged text or document, without text.

    info: facts that the record keeps and the leaderboard may show (source of the data, counts, warnings).
    """

    metrics: dict[str, Metric]
    items: pd.DataFrame
    scores: pd.DataFrame
    info: dict[str, Any]


class Suite(Protocol):
    """Looks at a model and returns rows and metrics; it does not know how the model is steered."""

    name: str  # its key under suite= in the config; records are filed under it
    version: ClassVar[int]  # bump when the same settings give other numbers
    samples: ClassVar[bool]  # it reads sampled texts, so decoding and sampling seed are part of its identity

    def identity(self, split: Split) -> dict[str, Any]:
        """Everything but the model and the decoding that can change this suite's numbers, as plain JSON values."""
        ...

    def run(self, lm: LM, split: Split) -> SuiteResult:
        """Look at the model. Raises SuiteError when more than 1 % of the texts could not be scored."""
        ...

    def tokens(self, split: Split) -> int:
        """How many tokens a run takes through the model, roughly, for the progress bar."""
        ...


class SuiteError(RuntimeError):
    """A suite that cannot stand by its numbers."""
