"""Other readings of the rows that are being written, for steering at decoding time (`methods.decoding.Streams`)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.model import kv_cache
from bench.model.rows import Rows, branch
from methods import layout
from methods.errors import SetupError
from methods.intervention import Hook, hooked

COLUMNS = 2**15  # of rows that are tried ahead together, cached columns included

Forward = Callable[[Rows, Tensor, Tensor, int | Tensor], Tensor]
"""Lets the model read ids (B, T), of which `real` (B, T) are no padding, into rows; gives logits of some columns."""


@dataclass(frozen=True)
class Readings:
    """What `methods.decoding.Streams` promises, for one forward.

    forward: of the model, without steering at decoding time. keep: the columns of this forward that have logits, as
    `LM.read` takes them. columns: (K,) the same as columns of the rows. asked: names of readings that were asked for.
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
        """(B, K, V) logits of the columns, read inside another context; see `methods.decoding.Streams.other`."""
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
        stream.prompt = self.rows.prompt + more  # the rows' own is another once a shared beginning is branched off
        with inside():
            return self.forward(stream, ids, real, self._kept(ids.shape[1]))

    def _kept(self, columns: int) -> int | Tensor:
        """The same columns as those with logits, where a forward reads so many that ends with this one's."""
        if isinstance(self.keep, Tensor):
            return self.columns - self.rows.ids.shape[1] + columns
        return len(self.columns)

    def ahead(self, tokens: Tensor) -> Tensor:
        """(B, K, N, D) final states; see `methods.decoding.Streams.ahead`."""
        if not kv_cache.keeps_all(self.rows.cache):
            raise SetupError(
                f"{self.model.config.model_type} has a sliding window, from which a token cannot be tried and taken "
                "back; choose another method"
            )
        rows, columns, count = tokens.shape
        flat = tokens.reshape(-1, 1)  # (B * K * N, 1)
        row = torch.arange(rows, device=tokens.device).repeat_interleave(columns * count)
        column = self.columns.to(tokens.device).repeat_interleave(count).repeat(rows)
        together = max(1, COLUMNS // (self.rows.seen.shape[1] + 1))
        found = []
        for some in torch.split(torch.arange(len(flat), device=tokens.device), together):
            tried = branch([(self.rows, row[some])], 1)
            tried.seen &= torch.arange(tried.seen.shape[1], device=tokens.device)[None] <= column[some, None]
            tried.others.clear()
            found.append(self._final_state(tried, flat[some]))
        return torch.cat(found).view(rows, columns, count, -1)

    def _final_state(self, rows: Rows, ids: Tensor) -> Tensor:
        seen = []

        def keep(hidden: Tensor) -> Tensor:
            seen.append(hidden[:, -1])
            return hidden

        with hooked([Hook(layout.final_norm(self.model), "output", keep)]):
            self.forward(rows, ids, torch.ones_like(ids, dtype=torch.bool), 1)
        return seen[0]


def _behind(before: Sequence[int], ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (B, T), which are padded on the left, with tokens before each text: (B, T + n) ids and real.

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
