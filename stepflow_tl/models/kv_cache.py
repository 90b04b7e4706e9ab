"""A KV cache with room: tokens are written in place, rows leave, and others take their places.

transformers' own `DynamicCache` copies all keys and values for each new token. Rows are aligned at
their right end, so that rows of any length can stand beside each other. What stands left of a
row's first token is masked out by whoever runs the model, and is always a finite number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_LEAST_ROOM = 64  # columns
_SHARE = 4  # room for one more column for so many


class _Room:
    """A tensor [row, kv_head, column, d_head] inside a larger one.

    Args:
        like: Keys or values of the first pass, for shapes and dtype.
        rows: Number of rows that there may be.
    """

    def __init__(self, like: Tensor, rows: int) -> None:
        batch, heads, columns, size = like.shape
        self._held = like.new_zeros(max(rows, batch), heads, _with_room(columns), size)
        self._rows: Tensor = self._held[:batch]
        self.shown: Tensor = self._rows[:, :, :0]

    def write(self, new: Tensor) -> Tensor:
        """Append columns; all that there are now."""
        width, more = self.shown.shape[2], new.shape[2]
        if width + more > self._held.shape[2]:
            self._reserve(len(new), width + more)
        self._rows.narrow(2, width, more).copy_(new)
        self.shown = self._rows.narrow(2, 0, width + more)
        return self.shown

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come twice."""
        width = self.shown.shape[2]
        moved = [(to, row) for to, row in enumerate(rows) if to != row]
        self._reserve(len(rows), width)
        if moved:
            to, row = torch.tensor(moved, device=self._held.device).unbind(1)
            self._held[to, :, :width] = self._held[row, :, :width]
        self._show(len(rows), width)

    def resize(self, width: int) -> None:
        """Have so many columns: more or fewer at the left end."""
        rows, _, now, _ = self.shown.shape
        kept = self.shown[:, :, max(0, now - width) :].clone()
        self._reserve(rows, width)
        self._held[:rows, :, : width - kept.shape[2]] = 0
        self._show(rows, width)
        self.shown[:, :, width - kept.shape[2] :] = kept

    def join(self, other: Tensor) -> None:
        """Append rows, of no more columns than there are, at the right end."""
        rows, _, width, _ = self.shown.shape
        self._reserve(rows + len(other), width)
        self._show(rows + len(other), width)
        self.shown[rows:, :, width - other.shape[2] :] = other

    def _reserve(self, rows: int, columns: int) -> None:
        """Make room, where there is not enough."""
        room = self._held.shape
        if rows <= room[0] and columns <= room[2]:
            return
        wider = _with_room(columns) if columns > room[2] else room[2]
        held = self._held.new_zeros(max(rows, room[0]), room[1], wider, room[3])
        now, _, width, _ = self.shown.shape
        held[:now, :, :width] = self.shown
        self._held = held
        self._show(now, width)

    def _show(self, rows: int, width: int) -> None:
        self._rows = self._held[:rows]
        self.shown = self._rows[:, :, :width]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # untyped
    """Keys and values of one layer that sees all positions.

    Args:
        rows: Number of rows that there may be.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._rooms: tuple[_Room, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new columns; those of all columns."""
        if not self._rooms:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rooms = tuple(_Room(like, self._rows) for like in (key_states, value_states))
        self.keys, self.values = map(_Room.write, self._rooms, (key_states, value_states))
        return self.keys, self.values

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come twice."""
        for room in self._rooms:
            room.select(rows)
        self._show()

    def resize(self, width: int) -> None:
        """Have so many columns: more or fewer at the left end."""
        for room in self._rooms:
            room.resize(width)
        self._show()

    def join(self, other: RoomyLayer) -> None:
        """Append the rows of another, which has no more columns."""
        for room, more in zip(self._rooms, other._rooms, strict=True):
            room.join(more.shown)
        self._show()

    def _show(self) -> None:
        if self._rooms:
            self.keys, self.values = (room.shown for room in self._rooms)


class WindowLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]  # untyped
    """Keys and values of one layer that sees the last positions only, and keeps no others."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come twice."""
        if self.is_initialized:
            index = torch.tensor(rows, device=self.device)
            self.keys, self.values = self.keys[index], self.values[index]

    def resize(self, width: int) -> None:
        """Have so many columns: more or fewer at the left end."""
        if self.is_initialized:
            self.cumulative_length = width
            columns = min(width, self.sliding_window - 1)
            self.keys, self.values = (_fitted(x, columns) for x in (self.keys, self.values))

    def join(self, other: WindowLayer) -> None:
        """Append the rows of another, which has no more columns."""
        if self.is_initialized:
            columns = self.keys.shape[2]
            self.keys = torch.cat([self.keys, _fitted(other.keys, columns)])
            self.values = torch.cat([self.values, _fitted(other.values, columns)])


def roomy_cache(decoder: Any, rows: int) -> DynamicCache | None:
    """A cache with room for a Hugging Face decoder; None where its layers keep something else.

    Args:
        decoder: The model.
        rows: Number of rows that there may be.
    """
    cache = DynamicCache(config=decoder.config)
    layers = [_with_rows(layer, rows) for layer in cache.layers]
    if not layers or None in layers:
        return None
    cache.layers = layers
    return cache


def _with_rows(layer: Any, rows: int) -> Any:
    if type(layer) is DynamicLayer:
        return RoomyLayer(rows)
    if type(layer) is DynamicSlidingWindowLayer:
        return WindowLayer(layer.sliding_window)
    return None


def _with_room(columns: int) -> int:
    return columns + max(_LEAST_ROOM, columns // _SHARE)


def _fitted(x: Tensor, columns: int) -> Tensor:
    """So many columns, more or fewer at the left end."""
    if x.shape[2] >= columns:
        return x[:, :, x.shape[2] - columns :]
    return torch.nn.functional.pad(x, (0, 0, columns - x.shape[2], 0))
