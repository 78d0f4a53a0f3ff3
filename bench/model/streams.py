"""Read the current rows again, with other weights or a prefix, to steer while decoding (`methods.decoding.Streams`)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.model import padding
from bench.model.rows import Rows, branch
from methods import layout
from methods.errors import SetupError
from methods.intervention import Hook, hooked

MOST, FEWEST = 2**15, 2**12  # columns of the rows that are tried ahead together, cached columns included
TIMES = 4  # so many times the columns of the rows are tried together, within these bounds

Forward = Callable[[Rows, Tensor, Tensor, int | Tensor], Tensor]
"""Lets the model read ids (B, T), of which `real` (B, T) are not padding, into rows; gives logits of some columns."""


@dataclass(frozen=True)
class Readings:
    """The implementation of `methods.decoding.Streams` for one forward.

    forward: the model's forward without steering at decoding time. keep: the columns of this forward that have logits,
    as `LM.read` takes them. columns: (K,) the indices of these columns, counted from the start of the rows. asked:
    names of the further readings (the same rows read with other weights or a prefix) that were asked for in this
    forward.
    """

    model: PreTrainedModel
    forward: Forward
    start: Callable[[Tensor], Rows]
    rows: Rows
    keep: int | Tensor
    columns: Tensor
    asked: set[str] = field(default_factory=set)

    def other(
        self, name: str, inside: Callable[[], AbstractContextManager[object]], before: Sequence[int] = ()
    ) -> Tensor:
        """Return (B, K, V) logits of the columns, read in another context; see `methods.decoding.Streams.other`."""
        if name in self.asked:
            raise ValueError(f"the reading {name!r} was asked for twice in one step; give each reading its own name")
        self.asked.add(name)
        stream = self.rows.others.get(name)
        if stream is None:
            stream = self.rows.others[name] = self.start(self.rows.prompt)
        read = stream.ids.shape[1]
        known = read - len(before) if read else 0  # columns of the rows that the stream has read
        ids, real = self.rows.ids[:, known:], self.rows.seen[:, known:]
        if before and not read:
            ids, real = _behind(before, ids, real)
        more = stream.seen.sum(-1) + real.sum(-1) - self.rows.seen.sum(-1)  # (B,) tokens that the rows do not have
        stream.prompt = self.rows.prompt + more  # the rows' own changes when a shared beginning is branched
        with inside():
            return self.forward(stream, ids, real, self._kept(ids.shape[1]))

    def _kept(self, columns: int) -> int | Tensor:
        """Return `keep` for a forward with this number of columns, which ends with the columns of this forward."""
        if isinstance(self.keep, Tensor):
            return self.columns - self.rows.ids.shape[1] + columns
        return len(self.columns)

    def ahead(self, tokens: Tensor) -> Tensor:
        """Return (B, K, N, D) final states; see `methods.decoding.Streams.ahead`."""
        if padding.needs_no_gaps(self.model):
            raise SetupError(
                f"{self.model.config.model_type} has a sliding window, or attention that counts columns, so a token "
                "that was tried cannot be taken out of its cache again; choose another method"
            )
        rows, columns, count = tokens.shape
        flat = tokens.reshape(-1, 1)  # (B * K * N, 1)
        row = torch.arange(rows, device=tokens.device).repeat_interleave(columns * count)
        column = self.columns.to(tokens.device).repeat_interleave(count).repeat(rows)
        parts = (torch.split(one, tried_together(*self.rows.seen.shape)) for one in (row, column, flat))
        return torch.cat([self._final_state(*part) for part in zip(*parts, strict=True)]).view(rows, columns, count, -1)

    def _final_state(self, row: Tensor, column: Tensor, ids: Tensor) -> Tensor:
        """Return final states (N, D) after tokens (N, 1), each read after a column (N,) of a row (N,).

        The copies of the rows do not outlive this call.
        """
        rows = branch([(replace(self.rows, others={}), row)], 1)
        rows.seen &= torch.arange(rows.seen.shape[1], device=ids.device)[None] <= column[:, None]
        seen = []

        def keep(hidden: Tensor) -> Tensor:
            seen.append(hidden[:, -1])
            return hidden

        with hooked([Hook(layout.final_norm(self.model), "output", keep)]):
            self.forward(rows, ids, torch.ones_like(ids, dtype=torch.bool), 1)
        return seen[0]


def tried_together(rows: int, columns: int) -> int:
    """Return how many tokens are tried ahead at once; each takes a copy of its row's cache with one more column."""
    return max(1, min(MOST, max(FEWEST, TIMES * rows * columns)) // (columns + 1))


def _behind(before: Sequence[int], ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return `ids` and `real` (B, T + n) of left-padded rows (B, T), with the n tokens of `before` before each text.

    The first token of `before` replaces an equal one that a text begins with (BOS).
    """
    start = real.long().argmax(-1)  # (B,) the text's first column
    repeated = (ids.gather(1, start[:, None]) == before[0])[:, 0]
    start = start + repeated.long()
    count = len(before)
    column = torch.arange(ids.shape[1] + count, device=ids.device)[None]  # (1, T + n)
    inserted = (column >= start[:, None]) & (column < start[:, None] + count)
    source = torch.where(column < start[:, None], column, column - count).clamp(min=0)  # (B, T + n)
    added = torch.tensor(before, device=ids.device)[(column - start[:, None]).clamp(0, count - 1)]
    there = real.gather(1, source) & (column >= start[:, None])
    return torch.where(inserted, added, ids.gather(1, source)), there | inserted
