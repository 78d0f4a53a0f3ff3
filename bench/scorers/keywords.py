"""A scorer that gives 1 to a text with any of a topic's words, and 0 to every other text."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from methods.errors import SetupError


@dataclass(frozen=True)
class Keywords:
    """Scores 1 if any of the words occurs in the text, else 0: the rule of ActAdd's topic counts (arXiv 2308.10248).

    Only whole words count, in capitals or small letters: "wedding" is not in "weddings", so name both. In a term of
    several words, such as "wedding dress", the blanks may be of any kind.
    """

    words: Sequence[str]
    name: ClassVar[str] = "keywords"
    measures: ClassVar[str] = "topic"

    def __post_init__(self) -> None:
        """Raises SetupError for a list without a word, and for a word of blanks."""
        if not self.words or any(not word.strip() for word in self.words):
            raise SetupError(f"words={list(self.words)}: expected at least one word, and no blank ones")

    def identity(self) -> dict[str, Any]:
        """Return the version of the rule and the words, sorted, so that their order does not count."""
        return {
            "name": self.name,
            "version": 1,
            "words": sorted({" ".join(_same(word).split()) for word in self.words}),
        }

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        each = (r"\s+".join(map(re.escape, _same(word).split())) for word in sorted(self.words, key=len, reverse=True))
        return re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)")

    def mentions(self, text: str) -> bool:
        """Return whether the text contains any of the words as whole words, in any case."""
        return self._pattern.search(_same(text)) is not None

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Score each completion by itself: 1 if it is about the topic, else 0."""
        del prompts
        return [float(self.mentions(text)) for text in completions]


def _same(text: str) -> str:
    """Return the text in small letters, with each letter and its accent as one character."""
    return unicodedata.normalize("NFC", text.lower())
