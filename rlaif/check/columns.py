"""Columns of numbers on disk, and groups of equal keys in them: what a million rows are compared by without holding them.

A column is appended to row by row and read in chunks. Keys are 64-bit hashes: among a million rows two different texts share
one with probability 3e-8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

_BUFFERED = 1 << 14
_CHUNK = 1 << 17
_AT_ONCE = 1 << 18
"""So many keys are sorted at once: about 10 MB."""


def key(*parts: str) -> int:
    """A hash of texts in this order, 1..2^64-1; the same in every run."""
    hasher = blake2b(digest_size=8)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little"))
        hasher.update(raw)
    return int.from_bytes(hasher.digest(), "little") or 1


class Column:
    """Numbers of one type on disk, `width` of them a row."""

    def __init__(self, folder: Path, name: str, dtype: Any, *, width: int = 1) -> None:
        self._file = (folder / name).open("w+b")
        self._dtype, self._width = np.dtype(dtype), width
        self._size = self._dtype.itemsize * width
        self._buffer: list[int] = []
        self._is_flushed = True
        self.rows = 0

    def add(self, value: int) -> None:
        """Appends one row of width 1."""
        self._buffer.append(value)
        self.rows += 1
        self._is_flushed = False
        if len(self._buffer) >= _BUFFERED:
            self._flush()

    def extend(self, rows: np.ndarray[Any, Any]) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.rows += len(rows)
        self._is_flushed = False

    def _flush(self) -> None:
        if self._buffer:
            self._file.write(np.array(self._buffer, self._dtype).tobytes())
            self._buffer.clear()
        if not self._is_flushed:
            self._file.flush()
            self._is_flushed = True

    def at(self, row: int) -> np.ndarray[Any, Any]:
        """One row, [width]."""
        self._flush()
        return np.frombuffer(os.pread(self._file.fileno(), self._size, row * self._size), self._dtype)

    def chunks(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """(first row, [rows, width] or [rows]) of parts of it, in order. What is appended meanwhile is not seen."""
        self._flush()
        for first in range(0, self.rows, _CHUNK):
            count = min(_CHUNK, self.rows - first)
            part = np.frombuffer(os.pread(self._file.fileno(), count * self._size, first * self._size), self._dtype)
            yield first, part if self._width == 1 else part.reshape(count, self._width)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def groups(keys: Column) -> Iterator[np.ndarray[Any, Any]]:
    """Rows that have the same key, two at least, ascending. The key 0 is none. One range of the keys is sorted at a time."""
    parts = max(1, -(-keys.rows // _AT_ONCE))
    step = -(-(1 << 64) // parts)
    for part in range(parts):
        found, places = [], []
        low, high = np.uint64(max(1, part * step)), np.uint64(min((part + 1) * step, 1 << 64) - 1)
        for first, chunk in keys.chunks():
            inside = np.flatnonzero((chunk >= low) & (chunk <= high))
            found.append(chunk[inside])
            places.append(inside + first)
        every, rows = np.concatenate(found or [np.empty(0, np.uint64)]), np.concatenate(places or [np.empty(0, np.int64)])
        order = np.argsort(every, kind="stable")
        every, rows = every[order], rows[order]
        starts = np.flatnonzero(np.r_[True, every[1:] != every[:-1]]) if len(every) else np.empty(0, np.int64)
        ends = np.r_[starts[1:], len(every)]
        for at in np.flatnonzero(ends - starts > 1):
            yield rows[starts[at] : ends[at]]
