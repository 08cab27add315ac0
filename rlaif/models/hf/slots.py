"""Keys and values of many rows in one buffer a layer, which rows join and leave without the others being copied.

A row is aligned at its end: its columns are the last ones, and every step adds one for all. What lies before its start is
padding, all zeros or what an earlier row left there: finite, and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from rlaif.models.hf.prefixes import State

_SPARE = 64
"""Columns to grow by, so that a buffer is not copied at each step."""


class Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's buffer [rows, heads, columns, size]; `length` columns are in use."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds columns for the first rows; returns the keys and values of these rows."""
        rows, end = key_states.shape[0], self.length + key_states.shape[2]
        keys, values = self.room(rows, end, key_states, value_states)
        keys[:rows, :, self.length : end] = key_states
        values[:rows, :, self.length : end] = value_states
        self.length = end
        return keys[:rows, :, :end], values[:rows, :, :end]

    def room(self, rows: int, columns: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers, with room for so many rows and columns; `keys` and `values` [.., heads, .., size] are what goes in.

        Rows beyond `rows` are not in use: buffers that grow longer leave them, so that fewer rows need less memory.
        """
        self.is_initialized = True
        if self.buffers is None:
            self.dtype, self.device = keys.dtype, keys.device
            self.buffers = (_zeros(rows, columns, keys), _zeros(rows, columns, values))
        have = self.buffers[0]
        if rows > have.shape[0] or columns > have.shape[2]:
            if columns > have.shape[2]:
                columns += _SPARE
            else:
                rows, columns = max(rows, have.shape[0] * 3 // 2), have.shape[2]
            kept = min(rows, have.shape[0])
            grown = []
            for old in self.buffers:
                new = _zeros(rows, columns, old)
                new[:kept, :, : self.length] = old[:kept, :, : self.length]
                grown.append(new)
            self.buffers = (grown[0], grown[1])
        return self.buffers

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.length


def _zeros(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(rows, like.shape[-3], columns, like.shape[-1], dtype=like.dtype, device=like.device)


class Slots(Cache):  # type: ignore[misc]
    """The states of a batch of rows, as transformers' models take them."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[Layer() for _ in range(layers)])

    @property
    def length(self) -> int:
        """Columns in use."""
        return int(self.layers[0].length)

    def fill(self, states: Sequence[State | None], columns: int, room: int) -> None:
        """Begins with `columns` columns, a row for each state; a state that is shorter stands at the end. Room for `room`."""
        sample = next(state for state in states if state is not None)
        for number, layer in enumerate(self.layers):
            keys, values = layer.room(len(states), room, *sample[number])
            layer.length = columns
            for row, state in enumerate(states):
                if state is not None:
                    k, v = state[number]
                    keys[row, :, columns - k.shape[1] : columns] = k
                    values[row, :, columns - v.shape[1] : columns] = v

    def state(self, row: int, start: int) -> State:
        """The keys and values of a row from column `start` on, as views."""
        return [(keys[row, :, start : self.length], values[row, :, start : self.length]) for keys, values in self._buffers()]

    def put(self, row: int, state: State) -> None:
        """Puts a state into a row, at the end of its columns; where there are too few columns, all are moved up."""
        tokens = state[0][0].shape[1]
        self.widen(tokens - self.length)
        for layer, (k, v) in zip(self.layers, state, strict=True):
            keys, values = layer.room(row + 1, layer.length, k, v)
            keys[row, :, layer.length - tokens : layer.length] = k
            values[row, :, layer.length - tokens : layer.length] = v

    def move(self, source: int, target: int) -> None:
        """Copies a row over another one."""
        for keys, values in self._buffers():
            keys[target, :, : self.length] = keys[source, :, : self.length]
            values[target, :, : self.length] = values[source, :, : self.length]

    def widen(self, columns: int) -> None:
        """Adds columns of padding before all rows."""
        if columns > 0:
            for layer in self.layers:
                length, layer.length = layer.length, layer.length + columns
                if layer.buffers is None:
                    continue
                grown = [_zeros(old.shape[0], layer.length + _SPARE, old) for old in layer.buffers]
                for new, old in zip(grown, layer.buffers, strict=True):
                    new[:, :, columns : layer.length] = old[:, :, :length]
                layer.buffers = (grown[0], grown[1])

    def narrow(self, columns: int) -> None:
        """Takes away the first columns, which are padding in every row. Needs no memory: columns move by as many at a time."""
        for layer in self.layers:
            left = layer.length - columns
            for buffer in layer.buffers or ():
                for start in range(0, left, columns):
                    end = min(start + columns, left)
                    buffer[:, :, start:end] = buffer[:, :, start + columns : end + columns]
            layer.length = left

    def back_to(self, columns: int) -> None:
        """Forgets what a forward pass that broke off has added."""
        for layer in self.layers:
            layer.length = min(layer.length, columns)

    def bytes_per_token(self) -> int:
        """What a column of one row takes, in bytes."""
        return sum(part[0, :, 0].numel() * part.element_size() for buffers in self._buffers() for part in buffers)

    def _buffers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [layer.buffers for layer in self.layers if layer.buffers is not None]
