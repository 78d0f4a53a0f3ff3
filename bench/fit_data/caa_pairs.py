"""Contrast pairs for contrastive activation addition: questions with two answers, (A) and (B)."""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.data.caa_questions import BEHAVIOURS, CAA, answer
from bench.data.sources import Sources
from bench.fit_data.base import FitSource
from bench.fit_data.fine_tuning import too_few
from bench.model.lm import LM, worded
from methods.base import Pairs
from methods.errors import SetupError

SPLIT = "generate"  # the set has test_ab and test_open_ended as well, which nothing here reads
PAIR_TOKENS = 230  # tokens of a question that is read once with each answer, roughly


@dataclass(frozen=True, kw_only=True)
class ABPairs(FitSource):
    """Questions on one behaviour; the answer letter that matches it is desired, the one that does not is undesired.

    A base model reads "Input: QUESTION", a new line and "Response: (A)", as in the authors' code; a chat model reads
    the question in its chat template with the answer after it. The method caa with method.read=letter reads the model
    at the letter. The pairs are in the order of a hash of the question, so a larger `limit` contains the pairs of a
    smaller one.

    swap: make the matching answer the undesired one. This is for a behaviour that is not wanted, so that a positive
    strength moves away from it.
    """

    name: ClassVar[str] = "ab"
    version: ClassVar[int] = 1

    sources: Sources
    behaviour: str = "sycophancy"
    limit: int | None = None
    swap: bool = False

    def check(self) -> None:
        """Raises SetupError for a behaviour that the set does not have, and for a limit below 1."""
        if self.behaviour not in BEHAVIOURS:
            raise SetupError(f"pairs.behaviour={self.behaviour!r}: allowed are {', '.join(BEHAVIOURS)}")
        if self.limit is not None and self.limit < 1:
            raise SetupError(f"pairs.limit={self.limit}: expected at least 1, or null for all")

    def identity(self) -> dict[str, Any]:
        """Return the source, the behaviour, the number of pairs, and which answer is the desired one."""
        self.check()
        source = self.sources.locate(CAA, self.behaviour, SPLIT).identity()
        own = {"name": self.name, "version": self.version, "source": source}
        return own | {"limit": self.limit, "swap": self.swap}

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Count the tokens of each question, read twice, once with each answer."""
        return (self.limit or BEHAVIOURS[self.behaviour]) * PAIR_TOKENS

    def load(self, lm: LM) -> tuple[Pairs, dict[str, Any]]:
        """Return the pairs, worded for this model. Raises SetupError if there are too few, or for bad answers."""
        self.check()
        rows = [dict(row) for row in self.sources.load(CAA, self.behaviour, SPLIT)]
        if self.limit is not None and len(rows) < self.limit:
            raise too_few(
                f"questions on {self.behaviour}", self.limit, len(rows), "lower pairs.limit or set it to null"
            )
        pairs = Pairs([], [], [])
        for row in sorted(rows, key=lambda row: _digest(row["question"]))[: self.limit]:
            prompt = worded(lm, row["question"])
            matching, other = (answer(row[f"answer_{kind}_behavior"]) for kind in ("matching", "not_matching"))
            if matching == other:
                raise SetupError(f"{CAA}, {self.behaviour}: both answers of {row['question'][:60]!r} are {other}")
            blank = "" if prompt[-1].isspace() else " "
            pairs.prompt.append(prompt)
            pairs.desired.append(blank + (other if self.swap else matching))
            pairs.undesired.append(blank + (matching if self.swap else other))
        about = {"pairs": len(pairs.prompt), "behaviour": self.behaviour, "swap": self.swap}
        return pairs, about | {"sources": [self.sources.locate(CAA, self.behaviour, SPLIT).facts()]}


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()
