"""The protocol of sources of training data: each fills one field of `methods.base.FitData` and has a group in conf/."""

from typing import Any, ClassVar, Protocol

from bench.data.splits import Learnt
from bench.model.lm import LM
from methods.base import Examples, Labelled, Pairs


class FitSource(Protocol):
    """Makes pairs or other texts to learn from, and names them. All sources inherit from this class."""

    name: ClassVar[str]

    def identity(self) -> dict[str, Any]:
        """Return the recipe, as plain JSON values: part of the id of every fit that reads it."""
        ...

    def check(self) -> None:
        """Raise SetupError for mistakes that can be found without a model."""

    def load(self, lm: LM) -> tuple[Pairs | Examples | Labelled | list[str], dict[str, Any]]:
        """Return the texts, and facts about them for the record; `sources` lists the data sets that were read."""
        ...

    def tokens(self) -> int:
        """Return roughly how many tokens go through the model while the texts are made, for the progress bar."""
        ...

    def origin(self) -> "FitSource":
        """Return the source that makes the texts, of which this one may be a subset or a changed copy."""
        return self

    def learnt(self) -> Learnt:
        """Return what no suite may ask a method that learns from this source."""
        return Learnt()

    def size(self) -> int:
        """Return roughly how many tokens the texts have, that is, what one pass over them takes."""
        ...
