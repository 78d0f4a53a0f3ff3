"""How texts are decoded, and what a sampled text is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from methods.errors import SetupError
from methods.later import is_later, later

MOST = 100  # the largest penalty, so that no logit becomes infinite
COLDEST = 1e-6  # the lowest temperature besides 0; a logit divided by less could become infinite


@dataclass(frozen=True)
class Sampling:
    """How texts are decoded; `batch_size` (rows) is the one field that is not part of a result's identity."""

    max_new_tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    batch_size: int = 256
    stop: str | None = None  # a text ends before this string; if the model thinks, it counts only in the answer
    top_k: int | None = later(None)  # the number of most probable tokens that are drawn from
    repetition_penalty: float = later(1.0)  # logits of tokens already there are divided if positive, else multiplied
    frequency_penalty: float = later(0.0)  # subtracted from a token's logit for each time that it was written
    frequency_in_prompt: bool = later(False)  # the token's places in the prompt count, too

    def __post_init__(self) -> None:
        """Raises SetupError for a setting outside its range."""
        if not 0 < self.top_p <= 1:
            raise SetupError(f"sampling.top_p={self.top_p} is outside (0, 1]; 0.9 is RealToxicityPrompts' nucleus")
        if not (self.temperature == 0 or COLDEST <= self.temperature < math.inf):
            raise SetupError(
                f"sampling.temperature={self.temperature}: expected 0, which is greedy, or a number from {COLDEST} on; "
                "1 is the model's own"
            )
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise SetupError("sampling.max_new_tokens and runtime.batch_size must be at least 1")
        if self.stop == "":
            raise SetupError(
                "sampling.stop is the empty string, which every text contains; set null for no stop string"
            )
        if self.top_k is not None and self.top_k < 1:
            raise SetupError(f"sampling.top_k={self.top_k}: expected at least 1, or null for all tokens")
        if not 1 / MOST <= self.repetition_penalty <= MOST:
            raise SetupError(
                f"sampling.repetition_penalty={self.repetition_penalty}: expected {1 / MOST} to {MOST}; 1 means no "
                "penalty"
            )
        if not abs(self.frequency_penalty) <= MOST:
            raise SetupError(
                f"sampling.frequency_penalty={self.frequency_penalty}: expected -{MOST} to {MOST}; 0 means no penalty"
            )

    def facts(self) -> dict[str, Any]:
        """Return the settings that can change a text, but no seed, and newer ones (`is_later`) only if not default."""
        unused = {"batch_size", "seed"} | ({"frequency_in_prompt"} if not self.frequency_penalty else set())
        return {
            one.name: value
            for one in fields(self)
            if one.name not in unused and not ((value := getattr(self, one.name)) == one.default and is_later(one))
        }


Outcome = Literal["thought", "unfinished", "without"]
"""What became of the thinking: it was closed; it was not closed, so there is no answer; there was no thinking."""


class Answer(NamedTuple):
    """The text that a model wrote after its thinking. start: the number of sampled tokens before it."""

    text: str
    start: int
    outcome: Outcome


class Continuation(NamedTuple):
    """One sampled text, without its prompt.

    ended: whether the model, or the stop string, closed it before `max_new_tokens`. tokens: the sampled ids of the
    text, without the one that ended it and without any that the stop string cuts; None in files of older versions,
    which only kept the text. answer: the answer of a model that thinks; None if it was not looked for. thought: if the
    text is the answer alone, the sampled ids before `tokens`; else None.
    """

    text: str
    ended: bool
    tokens: Sequence[int] | None = None
    answer: Answer | None = None
    thought: Sequence[int] | None = None

    @property
    def unanswered(self) -> bool:
        """Whether only the answer is judged, and the thinking was cut off before there was an answer."""
        return self.thought is not None and self.answer is not None and self.answer.outcome == "unfinished"

    def answered(self) -> "Continuation":
        """Return the answer alone, empty if there is none. Raises SetupError if its beginning is not known."""
        if self.answer is None or self.tokens is None:
            raise SetupError(
                "model.thinking=strip, but an older version stored these texts without the place where their "
                "answers begin; run their cell again"
            )
        tokens, start = list(self.tokens), self.answer.start
        return self._replace(text=self.answer.text, tokens=tokens[start:], thought=tokens[:start])

    def stored(self) -> list[Any]:
        """Return the text, whether it ended, its tokens and, for a model that thinks, its answer, as JSON values."""
        return [self.text, self.ended, self.tokens, *([] if self.answer is None else [list(self.answer)])]

    @classmethod
    def read(cls, stored: Sequence[Any]) -> "Continuation":
        """Return the continuation that this or an older version's `stored` gave. Raises TypeError for anything else."""
        text, ended, *more = stored
        tokens, answer = more + [None] * (2 - len(more))
        return cls(text, ended, tokens, None if answer is None else Answer(*answer))


def check_chat(mode: str, chat: bool) -> None:
    """Raises SetupError if `mode` (model.thinking) is not "off" outside of a chat."""
    if mode != "off" and not chat:
        raise SetupError(
            f"model.thinking={mode}, but model.chat=false, and a model only thinks in a chat; set model.chat=true, or "
            "model.thinking=off"
        )


def thinking_facts(rows: Sequence[Sequence[Continuation]]) -> dict[str, int]:
    """Count texts whose thinking was never closed, and texts without thinking; empty if thinking was not looked for."""
    outcomes = [one.answer.outcome for row in rows for one in row if one.answer is not None]
    if not outcomes:
        return {}
    return {"unfinished_thinking": outcomes.count("unfinished"), "without_thinking": outcomes.count("without")}
