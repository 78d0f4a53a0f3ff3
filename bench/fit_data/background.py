"""Ordinary texts that a method compares with: sentences of Wikipedia."""

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.data.text_sets import WIKI, wiki_sentences
from bench.fit_data.base import FitSource
from bench.fit_data.fine_tuning import too_few
from bench.model.lm import LM
from methods.errors import SetupError

TEXT_TOKENS = 30  # tokens of a sentence, roughly


@dataclass(frozen=True, kw_only=True)
class WikiSentences(FitSource):
    """The first `count` sentences of the wheel's Wikipedia set that have at least five words."""

    name: ClassVar[str] = "wiki"
    version: ClassVar[int] = 1

    sources: Sources
    count: int = 200

    def check(self) -> None:
        """Raises SetupError for a count below 1."""
        if self.count < 1:
            raise SetupError(f"background.count={self.count}: expected at least 1")

    def identity(self) -> dict[str, Any]:
        """Return the source and the number of sentences."""
        source = self.sources.locate(WIKI, split="test").identity()
        return {"name": self.name, "version": self.version, "source": source, "count": self.count}

    def learnt(self) -> Learnt:
        """Return the first sentences of the set, which a suite must not ask."""
        return Learnt(wiki=self.count)

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return the number of sentences times a typical length."""
        return self.count * TEXT_TOKENS

    def load(self, lm: LM) -> tuple[list[str], dict[str, Any]]:  # noqa: ARG002  the texts are there already
        """Return the sentences. Raises SetupError if there are fewer than `count`, and for rows without a text."""
        located, texts = wiki_sentences(self.sources)
        if len(texts) < self.count:
            raise too_few("background.count", self.count, len(texts), "ask for fewer, or use background=texts")
        return texts[: self.count], {"texts": self.count, "sources": [located.facts()]}
