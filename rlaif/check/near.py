"""Rows that are nearly the same as an earlier one: MinHash signatures (Broder 1997) with locality-sensitive hashing.

A row is the set of its shingles: SHINGLE characters from the beginning of every word, of scripts without spaces WIDE_SHINGLE
from every character, case and white space apart. Signatures and their bands lie on disk. Rows that share a band are compared
by their signatures, which estimate the Jaccard similarity of the sets with a standard error of 0.035 at 0.8.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.check.columns import Column, groups
from rlaif.check.formats import Example

THRESHOLD = 0.8
"""The Jaccard similarity from which on rows count as nearly the same: as in Lee et al. 2022 (Deduplicating training data)."""
HASHES, BANDS = 128, 16
"""Eight hashes a band: rows of similarity 0.8 share a band with probability 0.95, of 0.9 with 0.9999, of 0.5 with 0.06."""
SHINGLE, WIDE_SHINGLE = 24, 6
"""About five words, or six letters of Chinese, Japanese or Korean."""
LEAST = 8
"""A row of fewer shingles is too short for 'nearly': one word more or less is another text."""
_BATCH = 1 << 16  # characters that are hashed together: what that takes stays in the processor's cache
_WIDE = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def why_not() -> str:
    """What is missing for looking for near-duplicates; "" if nothing."""
    if importlib.util.find_spec("rensa") is None:
        return "near-duplicates need the package rensa: pip install 'rlaif[check]'"
    return ""


class NearDuplicates:
    """Signatures of rows, on disk. `add` each row, then go through `found`."""

    def __init__(self, folder: Path) -> None:
        self._signatures = Column(folder, "signatures", "u2", width=HASHES)
        self._bands = [Column(folder, f"band{band}", "u8") for band in range(BANDS)]
        self._places, self._keys = Column(folder, "near", "u8"), Column(folder, "exact", "u8")
        self._texts: list[str] = []
        self._waiting: list[int] = []
        self._characters = 0

    def add(self, place: int, exact: int, example: Example) -> None:
        """Notes a row. Rows of the same key `exact` are repeats, not near ones."""
        self._keys.add(exact)
        self._texts.append(" ".join(" ".join((example.asked, *example.texts)).casefold().split()))
        self._waiting.append(place)
        self._characters += len(self._texts[-1])
        if self._characters >= _BATCH:
            self._sign()

    def _sign(self) -> None:
        if not self._texts:
            return
        import rensa

        hashes, offsets = shingles(self._texts)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, HASHES, 1)
        signatures = np.array(matrix.to_rows(), np.uint32)
        known = np.diff(offsets.astype(np.int64)) >= LEAST
        size = HASHES // BANDS
        for number, column in enumerate(self._bands):
            keys = np.zeros(len(signatures), np.uint64)
            for part in range(number * size, (number + 1) * size):
                keys = (keys ^ signatures[:, part]) * np.uint64(_BASE)
                keys ^= keys >> np.uint64(29)
            column.extend(np.where(known, keys, 0))
        self._signatures.extend(signatures.astype(np.uint16))
        self._places.extend(np.array(self._waiting, np.uint64))
        self._texts.clear()
        self._waiting.clear()
        self._characters = 0

    def found(self) -> Iterator[tuple[int, int, float]]:
        """(place, an earlier place that it nearly repeats, estimated similarity), each place once at most."""
        self._sign()
        seen = bytearray(self._places.rows)
        for band in self._bands:
            for rows in groups(band):
                first = before = int(rows[0])
                for row in map(int, rows[1:]):
                    if not seen[row]:
                        for other in {first, before}:
                            share = self._similarity(row, other)
                            if share >= THRESHOLD:
                                seen[row] = 1
                                if self._keys.at(row) != self._keys.at(other):
                                    yield int(self._places.at(row)[0]), int(self._places.at(other)[0]), share
                                break
                    before = row

    def _similarity(self, row: int, other: int) -> float:
        return float((self._signatures.at(row) == self._signatures.at(other)).mean())

    def close(self) -> None:
        """Closes the files."""
        for column in (self._signatures, self._places, self._keys, *self._bands):
            column.close()


def shingles(texts: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(hashes of the shingles of all texts, offsets [texts + 1] into them), by a rolling hash over the whole batch."""
    gap = "\0" * SHINGLE
    codes = np.frombuffer((gap + gap.join(texts) + gap).encode("utf-32-le", "surrogatepass"), np.uint32)
    powers, inverses = _powers(len(codes))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes + np.uint64(1)) * powers, out=sums[1:])
    wide = np.zeros(len(codes), bool)
    if codes.max() >= _WIDE[0][0]:
        for low, high in _WIDE:
            wide |= (codes >= low) & (codes <= high)
    starts = (codes > 32) & (wide | np.r_[False, codes[:-1] <= 32] | np.r_[False, wide[:-1]])
    at = np.flatnonzero(starts)
    length = np.where(wide[at], WIDE_SHINGLE, SHINGLE)
    hashes = (sums[at + length] - sums[at]) * inverses[at]
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(31)
    ends = np.cumsum([SHINGLE + len(text) for text in texts])
    return hashes, np.r_[0, np.searchsorted(at, ends)].astype(np.uint64)


def _powers(length: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """So many powers of the base and of its inverse, modulo 2^64."""
    if length <= 2 * _BATCH:
        tables = _usual_powers()
        return tables[0][:length], tables[1][:length]
    powers = np.full((2, length), [[_BASE], [_INVERSE]], np.uint64)
    powers[:, 0] = 1
    np.cumprod(powers, axis=1, out=powers)
    return powers[0], powers[1]


@cache
def _usual_powers() -> np.ndarray[Any, Any]:
    powers = np.full((2, 2 * _BATCH), [[_BASE], [_INVERSE]], np.uint64)
    powers[:, 0] = 1
    return np.cumprod(powers, axis=1)
