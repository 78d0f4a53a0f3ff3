"""The base model: what every method is compared with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import Artefact, FitData, Method, Steering


@dataclass(frozen=True, kw_only=True)
class Unsteered(Method):
    """Leaves the model as it is, at any strength.

    Example:
        >>> from methods import FitData, Unsteered
        >>> method = Unsteered()
        >>> artefact = method.fit(model, tokenizer, FitData())
        >>> with method.apply(model, artefact, 1.0):
        ...     artefact, model(**inputs).logits.equal(logits)
        ({}, True)
    """

    name: ClassVar[str] = "unsteered"
    title: ClassVar[str] = "Unsteered"
    family: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "none"

    strengths: Sequence[float] = ()

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return an empty artefact, since there is nothing to learn."""
        del model, tokenizer, data
        return {}

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Leave the model as it is."""
        del model, artefact, strength
        yield Steering()
