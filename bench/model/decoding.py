"""How texts are decoded, and what a sampled text is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from methods.errors import SetupError


@dataclass(frozen=True)
class Sampling:
    """How texts are decoded; `batch_size` (rows) is the one field that is no part of a result's identity."""

    max_new_tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    batch_size: int = 256
    stop: str | None = None  # a text ends before this string

    def __post_init__(self) -> None:
        """Raises SetupError for a setting outside its range."""
        if not 0 < self.top_p <= 1:
            raise SetupError(f"sampling.top_p={self.top_p} is outside (0, 1]; 0.9 is RealToxicityPrompts' nucleus")
        if self.temperature < 0:
            raise SetupError(f"sampling.temperature={self.temperature} is negative; 0 is greedy, 1 the model's own")
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise SetupError("sampling.max_new_tokens and runtime.batch_size must be at least 1")
        if self.stop == "":
            raise SetupError("sampling.stop is empty, which every text holds; set null for no stop string")


class Continuation(NamedTuple):
    """One sampled text, without its prompt.

    ended: the model, or the stop string, closed it before `max_new_tokens`.
    tokens: the sampled ids of the text, without the one that ended it and without any that the stop string cuts; None
    in files of older versions, which kept the text alone.
    """

    text: str
    ended: bool
    tokens: Sequence[int] | None = None
