"""A batch of texts as far as the model has read them, with the caches of other readings of the same texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from bench.model import kv_cache


@dataclass
class Rows:
    """A batch of texts as far as the model has read them.

    prompt: (B,) length of each prompt in real tokens. seen: (B, C) which cache columns are real. ids: (B, C) their
    tokens. others: further readings of the same texts, by name (`bench.model.streams`). noted: (B, ...) what hooks keep
    about each row (`methods.positions.Positions`).
    """

    prompt: Tensor
    seen: Tensor
    ids: Tensor
    cache: Cache
    others: "dict[str, Rows]" = field(default_factory=dict)
    noted: dict[Any, Tensor] = field(default_factory=dict)

    def select(self, rows: Tensor, room: int | None = None) -> None:
        """Keep these rows, in this order; a row may be repeated. room: how many tokens each will read further."""
        kv_cache.select(self.cache, rows, room)
        self.prompt, self.seen, self.ids = self.prompt[rows], self.seen[rows], self.ids[rows]
        self.noted = {key: one[rows.to(one.device)] for key, one in self.noted.items()}
        for other in self.others.values():
            other.select(rows, room)

    def append(self, ids: Tensor, real: Tensor) -> Tensor:
        """Append the tokens (B, T) that are read next, and return their positions, which are arbitrary for padding."""
        before = self.seen.sum(-1)  # (B,)
        self.seen = torch.cat([self.seen, real], dim=-1)  # (B, C)
        self.ids = torch.cat([self.ids, ids], dim=-1)
        return before[:, None] + real.long().cumsum(-1) - 1  # (B, T)


def branch(parts: Sequence[tuple[Rows, Tensor]], room: int) -> Rows:
    """Return the chosen rows of all parts as one batch, which is a copy with room for `room` further tokens per row.

    A part is a batch and the numbers of the rows to take from it. Parts may differ in their number of columns if their
    caches keep all columns (`bench.model.kv_cache.keeps_all`).
    """
    columns = max(rows.seen.shape[1] for rows, _ in parts)
    names = parts[0][0].others
    noted = set.intersection(*(set(rows.noted) for rows, _ in parts))
    return Rows(
        torch.cat([rows.prompt[of_it] for rows, of_it in parts]),
        torch.cat([pad(rows.seen[of_it], (columns - rows.seen.shape[1], 0)) for rows, of_it in parts]),
        torch.cat([pad(rows.ids[of_it], (columns - rows.ids.shape[1], 0)) for rows, of_it in parts]),
        kv_cache.branch([(rows.cache, of_it) for rows, of_it in parts], room),
        {name: branch([(rows.others[name], of_it) for rows, of_it in parts], room) for name in names},
        {key: torch.cat([rows.noted[key][of_it.to(rows.noted[key].device)] for rows, of_it in parts]) for key in noted},
    )
