"""Holds the position that the current forward pass has reached in each text, for hooks that act only at some tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Positions(NamedTuple):
    """Where the current forward pass lies in the text of each row: four numbers per row, each number in a tensor (B,).

    `in_text` computes the position of every column from them. Positions do not count padding, on either side: the first
    real token of a row is at position 0.

    noted: what hooks keep about each row from one forward to the next, (B, ...) tensors under keys of their own. The
    code that runs the model gives one dict to all forwards of the same rows; if it copies, reorders or drops rows, it
    also copies, reorders or drops their entries (bench.model.rows). None: nothing is kept.
    """

    first: Tensor  # first real column of this forward (number of pads on the left)
    length: Tensor  # real columns of this forward
    cached: Tensor  # real tokens already in the KV cache
    prompt: Tensor  # length of the prompt (for a likelihood: of the context), prefix included
    noted: dict[Any, Tensor] | None = None

    def in_text(self, columns: int) -> Tensor:
        """Return the position of each column in its row's text, (B, T); -1 at padding."""
        column = torch.arange(columns, device=self.first.device)[None, :]  # (1, T)
        real = (column >= self.first[:, None]) & (column < (self.first + self.length)[:, None])  # (B, T)
        return torch.where(real, column - self.first[:, None] + self.cached[:, None], -1)


_current: ContextVar[Positions | None] = ContextVar("positions", default=None)


@contextmanager
def at(positions: Positions) -> Iterator[None]:
    """Tell the hooks the positions of the forward inside the `with`."""
    token = _current.set(positions)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """Inside the `with`, transformers' own `model.generate` tells the hooks where each forward is.

    A forward with an empty KV cache is assumed to hold the whole prompts; the attention mask says what is padding.
    Batches (padded on the left, as `generate` wants them), sampling and beam search are supported; prefill in chunks
    and assisted decoding are not.

    Example:
        >>> from methods import CAA, FitData, generating
        >>> method = CAA(layer=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 9.0), generating(model):
        ...     steered = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        >>> steered.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False))
        False
    """
    prompt = torch.zeros(0)
    noted: dict[Any, Tensor] = {}

    def tell(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal prompt, noted
        given = next(
            one for one in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if one is not None
        )
        columns, cache = given.shape[1], kwargs.get("past_key_values")
        before = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(len(given), before + columns, dtype=torch.long, device=given.device)
        real = mask[:, before:].bool()  # (B, T)
        if not before:
            prompt, noted = real.sum(-1), {}  # (B,)
        _current.set(Positions(real.long().argmax(-1), real.sum(-1), mask[:, :before].sum(-1), prompt, noted))

    token = _current.set(None)
    handle = model.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _current.reset(token)


def number_of_rows() -> int | None:
    """Return B, the number of rows of the running forward; None if no positions were set."""
    positions = _current.get()
    return None if positions is None else len(positions.first)


def current_positions() -> Positions:
    """Return the positions of the running forward. Raises RuntimeError if none were set."""
    positions = _current.get()
    if positions is None:
        raise RuntimeError(
            "this steering needs to know where the prompt ends, and the running forward does not say; "
            "call model.generate inside `with methods.generating(model)`, run the model through bench.load_lm, or set "
            "`with methods.intervention.at(Positions(...))` around each forward"
        )
    return positions
