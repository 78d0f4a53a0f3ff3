"""What steering at decoding time sees of the running forward: the logits, every row's tokens, and other readings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor


class Streams(Protocol):
    """Other readings of the rows that are being written, each with a KV cache of its own.

    Their caches follow the rows: where a row is copied, dropped or read on, so is what was read for it here.
    """

    def other(
        self, name: str, inside: Callable[[], AbstractContextManager[object]], before: Sequence[int] = ()
    ) -> Tensor:
        """(B, K, V) logits after the same columns, as the model gives them inside another context.

        name: of this reading, one for each context. inside: makes the context, for example one that edits weights; it
        is entered and left at every forward. before: tokens put before every row's text; a BOS token that the text
        begins with moves in front of them. A reading that is not asked for in one forward catches up in the next.
        """
        ...

    def ahead(self, tokens: Tensor) -> Tensor:
        """(B, K, N, D) the final state, which the unembedding reads, after each of N next tokens (B, K, N).

        Each costs a forward of one token. Raises SetupError for a model with a sliding window, or without final norm.
        """
        ...


class Step(NamedTuple):
    """One forward of the model. In sampling K is 1; where a text is read as a whole, all its columns come at once."""

    logits: Tensor  # (B, K, V) of the next token after each of K columns
    ids: Tensor  # (B, C) each row's tokens so far, those of this forward included
    real: Tensor  # (B, C) false at padding, where an id says nothing
    columns: Tensor  # (K,) which columns of `ids` the logits follow
    prompt: Tensor  # (B,) tokens of each row's prompt
    streams: Streams
