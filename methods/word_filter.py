"""A word filter: tokens that would complete a listed word become less likely. A control for what scorers reward."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options, word_list
from methods.base import Artefact, FitData, Method, Pairs, Steering, required_pairs
from methods.decoding import Step
from methods.errors import SetupError

SHORTEST = 2  # fewest letters of a word that is learnt; a single letter is mostly what an apostrophe leaves
FACT_DIGITS = 13  # hex digits of the list's sha256 in a fact: so many are a number that a float holds exactly


@dataclass(frozen=True, kw_only=True)
class WordFilter(Method):
    """z(w) <- z(w) - strength for every token w that would complete a listed word after the row's last tokens.

    The word filter among the baselines of RealToxicityPrompts (arXiv 2009.11462) never writes a listed word; strength
    .inf does the same. A filter only knows words, so its gain shows how far a scorer looks only at words.

    A word is found in the text, as letters between characters that belong to no word. It does not matter how it is
    split into tokens, whether a space comes before it, whether it is in capitals or small letters, or whether its
    beginning is already in the prompt. A longer word that contains a listed one is not affected, unless the tokenizer
    writes it as the listed word and an ending: before the ending is drawn, the two are the same. A letter that the
    tokenizer writes by several tokens, as bytes, belongs to no word. The filter cannot be exported: `bad_words_ids` of
    transformers forbid sequences of tokens wherever they occur, so in longer words too, and have no strength.

    words: a UTF-8 file with a word in each line. If it is None, the words are learnt from the pairs: for every word w
    that occurs in the continuations of at least `min_texts` undesired texts,

        log odds = log (u + .5) / (N - u + .5) - log (d + .5) / (N - d + .5)

    is computed, where u of the N undesired and d of the N desired texts have w in the continuation. The list is the
    `count` words with the highest log odds, without those below `min_log_odds`. How the list is learnt is a choice of
    ours; the baseline's list is not known to us. If the list came from the scorer that judges the texts, that scorer's
    number would be meaningless. `info.list_hash`, the first 13 hex digits of the sha256 of the sorted words as a
    number, tells two lists apart. `info.undesired_share` and `info.desired_share` are the shares of the pairs' texts
    that contain a word of a learnt list.

    Example:
        >>> from methods import FitData, WordFilter
        >>> method = WordFilter(count=1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 4) as steering:
        ...     has_function = steering.next_logits is not None
        >>> has_function, float(artefact["info.undesired_share"]), float(artefact["info.desired_share"])
        (True, 0.5, 0.0)
    """

    name: ClassVar[str] = "word_filter"
    title: ClassVar[str] = "Word filter"
    cite: ClassVar[str] = "2009.11462"
    family: ClassVar[str] = "decoding"
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "nats off a logit"

    words: str | None = None
    count: int = 50
    min_texts: int = 2
    min_log_odds: float = 1.0
    strengths: Sequence[float] = (1, 2, 4, 8, 16)
    file_hash: str | None = field(init=False, default=None)  # so that a changed file has another id

    def __post_init__(self) -> None:
        if self.words is not None:
            object.__setattr__(self, "file_hash", hashlib.sha256(_bytes(self.words)).hexdigest())

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # a list that is given is not learnt
        """The pairs, unless a file has the words."""
        return frozenset({"pairs"} if self.words is None else ())

    @property
    def has_control(self) -> bool:  # type: ignore[override]
        """Whether there is a control: only if words are learnt, since swapped pairs give a list that says nothing."""
        return self.words is None

    def passes(self) -> float:
        """Return 0, since the model reads nothing."""
        return 0.0

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a list that cannot be read, and for numbers that leave no word."""
        del model
        options.check_types(self)
        if self.count < 1 or self.min_texts < 1 or not math.isfinite(self.min_log_odds):
            raise SetupError(
                f"method.count={self.count}, method.min_texts={self.min_texts}, method.min_log_odds="
                f"{self.min_log_odds}: count and min_texts must be at least 1, min_log_odds a finite number"
            )
        if self.words is not None:
            read(self.words)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the list as an automaton over tokens (`methods.word_list`).

        Raises SetupError if pairs are needed and there are none, or if no word tells undesired from desired texts.
        """
        self.check(model)
        facts: dict[str, float] = {}
        if self.words is None:
            pairs = required_pairs(data, self.name)
            words = self._learnt(pairs)
            facts["undesired_share"] = word_list.share_with(words, pairs.undesired)
            facts["desired_share"] = word_list.share_with(words, pairs.desired)
        else:
            words = read(self.words)
        vocabulary = model.config.get_text_config().vocab_size
        found = word_list.automaton(words, word_list.token_texts(tokenizer, vocabulary))
        if not len(found.always) and not len(found.completing):
            raise SetupError(
                f"word_filter: no token completes any of the {len(words)} words, whose letters the tokenizer lacks; "
                "set method.words to another file"
            )
        listed = hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()
        told = {f"info.{name}": torch.tensor(value) for name, value in facts.items()}
        told["info.list_hash"] = torch.tensor(int(listed[:FACT_DIGITS], 16))
        return {**found.saved(), "info.words": torch.tensor(len(words)), **told}

    def _learnt(self, pairs: Pairs) -> set[str]:
        undesired, desired = (
            Counter(word for text in side for word in set(word_list.words_of(text)))
            for side in (pairs.undesired, pairs.desired)
        )
        texts = len(pairs.undesired)
        odds = {
            word: _log_odds(held, texts) - _log_odds(desired[word], texts)
            for word, held in undesired.items()
            if held >= self.min_texts and len(word) >= SHORTEST
        }
        ranked = sorted(
            (word for word in odds if odds[word] >= self.min_log_odds), key=lambda word: (-odds[word], word)
        )
        if not ranked:
            raise SetupError(
                f"word_filter: no word of at least {self.min_texts} undesired texts has log odds of "
                f"{self.min_log_odds:g} or more against desired texts; give more pairs, lower method.min_log_odds or "
                "method.min_texts, or set method.words to a file"
            )
        return set(ranked[: self.count])

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Subtract the strength from logits inside the `with`. Raises SetupError for another vocabulary's artefact."""
        own, vocabulary = word_list.loaded(artefact), model.config.get_text_config().vocab_size
        if len(own.after) != vocabulary:
            raise SetupError(
                f"word_filter: the list was fitted for {len(own.after)} tokens, and this model has {vocabulary}; "
                "fit it again"
            )

        def next_logits(step: Step) -> Tensor:
            nonlocal own
            own = own.to_device(step.ids.device)
            return own.penalised(step.logits, own.states(step), strength)

        yield Steering(next_logits=next_logits) if strength else Steering()


def read(path: str) -> set[str]:
    """Return the words of a file, in small letters; empty lines are left out. Raises SetupError if it is not a list."""
    try:
        lines = _bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SetupError(f"method.words={path}: the file is not UTF-8 ({error.reason}); save it as UTF-8") from error
    words = {number: line.strip().casefold() for number, line in enumerate(lines, 1) if line.strip()}
    wrong = [number for number, word in words.items() if not word_list.WORD.fullmatch(word)]
    if wrong or not words:
        raise SetupError(
            f"method.words={path}: "
            + (f"line {wrong[0]} is not one word of letters, digits and _" if wrong else "it holds no word")
            + "; write one word in each line"
        )
    return set(words.values())


def _bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise SetupError(f"method.words={path}: {error.strerror}; name a file with a word in each line") from error


def _log_odds(held: int, texts: int) -> float:
    return math.log((held + 0.5) / (texts - held + 0.5))
