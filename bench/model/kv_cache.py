"""A KV cache with room for columns to come, so that a step writes its own column instead of copying all before it.

Layers other than full attention (a sliding window only keeps its last columns) stay as transformers makes them.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32  # the fewest columns that are added when no room is left


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values (B, H, C, D) of one block: views of larger buffers, whose further columns are free.

    Two layers never share a buffer that either writes to: `select` makes a new one.
    """

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns (B, H, T, D), and return all keys and values."""
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
            self._fill(self.keys, self.values, room, rows.to(self.keys.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows with the same room as before."""
        if self.is_initialized:
            self.select(indices, self.buffers[0].shape[-2] - self.keys.shape[-2])

    def branch(self, parts: Sequence[tuple["RoomyLayer", Tensor]], room: int) -> "RoomyLayer":
        """Return a layer with copies of these rows of other layers, and space for `room` further columns."""
        found = copy.copy(self)
        found._hold([(one.keys, rows) for one, rows in parts], [(one.values, rows) for one, rows in parts], room)
        return found

    def _fill(self, keys: Tensor, values: Tensor, room: int, rows: Tensor | None = None) -> None:
        """Copy these rows (None: all) into new buffers, with space for `room` further columns."""
        self._hold([(keys, rows)], [(values, rows)], room)

    def _hold(self, keys: "_Parts", values: "_Parts", room: int) -> None:
        self.buffers = _with_room(keys, room), _with_room(values, room)
        self.keys, self.values = (one[..., : one.shape[-2] - room, :] for one in self.buffers)


_Parts = Sequence[tuple[Tensor, Tensor | None]]  # states (B, H, C, D), and which of their rows; None: all


def _with_room(parts: _Parts, room: int) -> Tensor:
    """Return a copy of the rows of all parts, one part after the other, in a buffer (R, H, C + room, D).

    C: the number of columns of the longest part; rows of shorter parts begin with zeros.
    """
    columns = max(states.shape[-2] for states, _ in parts)
    counts = [len(states if rows is None else rows) for states, rows in parts]
    first, _ = parts[0]
    buffer = first.new_empty(sum(counts), first.shape[1], columns + room, first.shape[-1])
    for (states, rows), place in zip(parts, torch.split(buffer, counts), strict=True):
        missing = columns - states.shape[-2]
        place[..., :missing, :] = 0
        begin = place[..., missing:columns, :]
        if rows is None:
            begin.copy_(states)
        else:
            torch.index_select(states, 0, rows.to(states.device), out=begin)  # six times as fast as states[rows]
    return buffer


def empty(config: PreTrainedConfig) -> Cache:
    """Return an empty cache."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def keeps_all(cache: Cache) -> bool:
    """Return whether every layer keeps all columns; a sliding window does not, and counts padding as columns."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def select(cache: Cache, rows: Tensor, room: int | None = None) -> None:
    """Keep these rows of a cache, in this order. room: number of columns to make space for; None: as many as before.

    A layer without keys is left as it is: in some models (Gemma 4) blocks read the keys and values of an earlier block.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        if room is not None and isinstance(layer, RoomyLayer):
            layer.select(rows, room)
        elif layer.is_initialized and layer.keys is not None:
            layer.batch_select_indices(rows.to(layer.keys.device))


def branch(parts: Sequence[tuple[Cache, Tensor]], room: int) -> Cache:
    """Copy the given rows of one or several caches into a new cache with space for `room` further columns.

    If there are several caches, all their layers have to keep all columns (`keeps_all`); shorter caches are padded
    on the left.
    """
    found = copy.copy(parts[0][0])
    found.layers = [copy.copy(layer) for layer in found.layers]
    if len(parts) == 1:
        select(found, parts[0][1], room)
        return found
    layers: list[Any] = found.layers
    found.layers = [
        layer.branch([(cache.layers[number], rows) for cache, rows in parts], room)
        for number, layer in enumerate(layers)
    ]
    return found
