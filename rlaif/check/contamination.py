"""Texts of test sets in the rows: N words in a row that both have, as in the GPT-3 paper (Brown et al. 2020, appendix C).

N is 13, and for texts of 8 to 12 words all of them. Texts of 4 to 7 words are found where a prompt says just that; shorter
ones say nothing. A letter of a script without spaces is a word.
Words are compared without case and marks. An N-gram that many items of a test set share is its template, not its content.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.check.findings import Fault
from rlaif.check.formats import Example
from rlaif.errors import InputError
from rlaif.rows import rows

LONGEST, SHORTEST, WHOLE = 13, 8, 4
SHARED = 10
"""The GPT-3 paper ignores N-grams that are found in more than so many places of the training set; here: of the test sets."""
MOST = 4_000_000
"""N-grams that are held at most, about 64 MB; what comes after them is not looked for, which is said."""

_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class TestSets:
    """The N-grams of test sets, in memory. Call it with a row."""

    __test__ = False  # no test of pytest

    def __init__(self, files: tuple[str, ...]) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self.items = self.short = 0
        self.is_full = False
        self._lengths: set[int] = set()
        hashes, items = array("q"), array("l")
        for file in files:
            self._read(file, hashes, items)
        self._hashes, self._items = _without_template(np.array(hashes, np.int64), np.array(items, np.int32))

    def _read(self, file: str, hashes: array[int], items: array[int]) -> None:
        before = self.items
        for where, row in rows(file, lossy=False):
            self.items += 1
            name = f"{Path(file).name}: {row['id']}" if isinstance(row.get("id"), (str, int)) else Path(where).name
            self._names.append(name)
            long_enough = False
            for text in _texts(row):
                said = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in _WORD.findall(text.casefold())]
                if len(said) < WHOLE:
                    continue
                long_enough = True
                size = min(LONGEST, len(said))
                grams = {hash(tuple(said[at : at + size])) for at in range(len(said) - size + 1)}
                if len(hashes) + len(grams) > MOST:
                    self.is_full = True
                    break
                if size >= SHORTEST:
                    self._lengths.add(size)
                hashes.extend(grams)
                items.extend([len(self._names) - 1] * len(grams))
            self.short += not long_enough
        if self.items == before:
            raise InputError(f"{file!r} holds no rows")

    def notes(self) -> Iterator[str]:
        """What is not looked for."""
        if self.short:
            yield f"{self.short} of {self.items} test items have no text of {WHOLE} words: they are not looked for"
        if self.is_full:
            yield f"the test sets have more than {MOST:,} N-grams: the rest is not looked for"

    def __call__(self, example: Example) -> Iterator[Fault]:
        """The test items of which the row's prompt or answers hold an N-gram."""
        names = ("prompt", *(name for name, _ in example.answers))
        for name, text in zip(names, (example.asked, *example.texts), strict=True):
            found = self.find(text, is_prompt=name == "prompt")
            if found is not None:
                yield "contaminated", f"`{name}` has words of {found[0]}: {found[1]}"

    def find(self, text: str, *, is_prompt: bool = False) -> tuple[str, str] | None:
        """(the test item, the words) of the first N-gram of a test item in a text; None for none."""
        said = _WORD.findall(text.casefold())
        if len(said) < (WHOLE if is_prompt else SHORTEST):
            return None
        get = self._numbers.get
        numbers = [get(word, 0) for word in said]
        short = len(said) < SHORTEST and all(numbers)
        grams, places = ([hash(tuple(numbers))], [(0, len(said))]) if short else ([], [])
        for start, end in _known(numbers):
            for size in self._lengths:
                for at in range(start, end - size + 1):
                    grams.append(hash(tuple(numbers[at : at + size])))
                    places.append((at, size))
        if not grams or not len(self._hashes):
            return None
        wanted = np.array(grams, np.int64)
        nearest = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        hits = np.flatnonzero(self._hashes[nearest] == wanted)
        if not len(hits):
            return None
        place, size = places[hits[0]]
        return self._names[int(self._items[nearest[hits[0]]])], " ".join(said[place : place + size])


def _known(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs of words that test sets know, as far as they are long enough."""
    start = 0
    for at, number in enumerate([*numbers, 0]):
        if not number:
            if at - start >= SHORTEST:
                yield start, at
            start = at + 1


def _without_template(
    hashes: np.ndarray[Any, Any], items: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """N-grams, sorted, and the first item of each, without those of more than SHARED items."""
    order = np.argsort(hashes, kind="stable")
    hashes, items = hashes[order], items[order]
    if not len(hashes):
        return hashes, items
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    few = np.diff(np.r_[starts, len(hashes)]) <= SHARED
    return hashes[starts[few]], items[starts[few]]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for item in value if isinstance(value, list) else value.values():
            yield from _texts(item)
