"""A KV cache with room for columns to come, so that a step writes its own column instead of copying all before it.

Layers of another kind than full attention (a sliding window keeps its last columns alone) stay as transformers makes
them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32  # columns that are made at least, where there is no room left


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values (B, H, C, D) of one block: views of larger buffers, whose further columns are free.

    Two layers never share a buffer that either writes to: `select` makes a new one.
    """

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns (B, H, T, D); returns all keys and values."""
        del args, kwargs
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self._fill(key_states[..., :0, :], value_states[..., :0, :], 0)
        before = self.keys.shape[-2]
        columns = before + key_states.shape[-2]
        if columns > self.buffers[0].shape[-2]:
            self._fill(self.keys, self.values, columns - before + ROOM)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., before:columns, :] = states
        self.keys, self.values = (one[..., :columns, :] for one in self.buffers)
        return self.keys, self.values

    def select(self, rows: Tensor, room: int) -> None:
        """Keep these rows, in this order, with space for `room` further columns."""
        if self.is_initialized:
            self._fill(self.keys, self.values, room, rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As `select`, with as much room as there was."""
        if self.is_initialized:
            self.select(indices, self.buffers[0].shape[-2] - self.keys.shape[-2])

    def _fill(self, keys: Tensor, values: Tensor, room: int, rows: Tensor | None = None) -> None:
        """Take these rows (None: all) over into new buffers, with space for `room` further columns."""
        self.buffers = _with_room(keys, room, rows), _with_room(values, room, rows)
        self.keys, self.values = (one[..., : keys.shape[-2], :] for one in self.buffers)


def _with_room(states: Tensor, room: int, rows: Tensor | None) -> Tensor:
    """A copy of these rows of the states (B, H, C, D) in a buffer (R, H, C + room, D)."""
    _, heads, columns, size = states.shape
    buffer = states.new_empty(len(states) if rows is None else len(rows), heads, columns + room, size)
    begin = buffer[..., :columns, :]
    if rows is None:
        begin.copy_(states)
    else:
        torch.index_select(states, 0, rows, out=begin)  # six times as fast as states[rows]
    return buffer


def empty(config: PreTrainedConfig) -> Cache:
    """A cache of which nothing is filled."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def keeps_all(cache: Cache) -> bool:
    """Whether every layer keeps all columns; one with a sliding window counts columns, padding among them."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def select(cache: Cache, rows: Tensor, room: int | None = None) -> None:
    """Keep these rows of a cache, in this order; `room`: columns that will be appended, None for as many as before."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if room is not None and isinstance(layer, RoomyLayer):
            layer.select(rows, room)
        else:
            layer.batch_select_indices(rows)
