"""A method: every token is made as much likelier as it is more frequent in desired texts than in undesired ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class UnigramBias(Method):
    """logits <- logits + strength * b, with b the log odds of each token, from counts in the pairs' continuations.

    b_v = log((n_v + s) / (N + s V)) of the desired less the same of the undesired; n_v counts token v, N all tokens,
    s is `smoothing`. At strength 1 it is the naive Bayes classifier's factor for the next token.
    """

    name: ClassVar[str] = "unigram_bias"
    family: ClassVar[str] = "decoding"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "log odds"

    smoothing: float = 1.0
    strengths: Sequence[float] = (0.5, 1, 1.5, 2, 3)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a smoothing that makes a log of nothing."""
        del model
        if self.smoothing <= 0:
            raise SetupError(f"method.smoothing={self.smoothing}: a number above 0; 1 is usual")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Count. Raises SetupError without pairs."""
        pairs = required_pairs(data, self.name)
        size = model.config.vocab_size
        return {"bias": self.log_odds(tokenizer, pairs.desired, size) - self.log_odds(tokenizer, pairs.undesired, size)}

    def log_odds(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> Tensor:
        """(V,) smoothed log frequency of each token."""
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
        counts = torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=size) + self.smoothing  # (V,)
        return (counts / counts.sum()).log()

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Nothing in the model is touched."""
        if not strength:
            yield Steering()
            return
        bias = strength * artefact["bias"]
        yield Steering(next_logits=lambda step: step.logits + bias.to(step.logits))
