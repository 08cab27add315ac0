"""Tables straight from the pages of an SQLite file, without SQLite (https://www.sqlite.org/fileformat2.html).

Nothing here trusts what it reads: a number that cannot be is passed over, a chain that returns to itself ends, and what is
found need not be right. Whether it is, the rows' checksums say.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MAGIC = b"SQLite format 3\0"
_TABLE_LEAF, _TABLE_INTERIOR, _INDEX_LEAF = 0x0D, 0x05, 0x0A
_INT_BYTES = (0, 1, 2, 3, 4, 6, 8)
_DEEPEST = 20  # as deep as SQLite goes

_SIZES: tuple[int, ...] = tuple(2**power for power in range(9, 17))
_SAMPLE = 2**26

IN_USE, FREE = 1, 2


class Cell(NamedTuple):
    """A row as it lies on a page: `values` is None if it cannot be read. `at` is its byte in its page."""

    rowid: int
    values: list[Any] | None
    page: int
    at: int


class View:
    """One reading of a database: the pages of its file, and over them those of the log that `overlay` names.

    `count` is how many pages there are to look at, `size` how many of them the database says it has.
    """

    def __init__(self, main: int, log: int | None, *, page_size: int, reserved: int, overlay: Mapping[int, int]) -> None:
        self._main, self._log, self._overlay = main, log, overlay
        self.page_size, self.usable = page_size, page_size - reserved
        in_file = -(-os.fstat(main).st_size // page_size)
        in_log = 0 if log is None else os.fstat(log).st_size // page_size
        self.count = min(max(in_file, max(overlay, default=0)), in_file + in_log)  # a garbled frame may name any page
        head = self.page(1)[:100]
        self.trusted = is_header(head)
        self.size = min(self.count, int.from_bytes(head[28:32], "big")) if self.trusted else self.count

    def page(self, number: int) -> bytes:
        """A page, padded with zeros where the file ends; b"" if there is none or the disk does not give it."""
        at = self._overlay.get(number)
        handle = self._main if at is None or self._log is None else self._log
        if not 0 < number <= 2**32:
            return b""
        try:
            data = os.pread(handle, self.page_size, (number - 1) * self.page_size if at is None else at)
        except OSError:
            return b""
        return data.ljust(self.page_size, b"\0") if data else b""

    @property
    def in_log(self) -> Mapping[int, int]:
        """The pages that are read from the log, with their places there."""
        return self._overlay

    # What is on a page

    def cells(self, number: int, data: bytes) -> Iterator[Cell]:
        """The rows of a table's leaf page."""
        for at in _pointers(data, number, _TABLE_LEAF):
            try:
                size, start = varint(data, at)
                rowid, start = varint(data, start)
                payload = self._payload(data, start, size)
            except IndexError:
                continue
            yield Cell(rowid, None if payload is None else values(payload), number, at)

    def index_cells(self, number: int) -> Iterator[list[Any]]:
        """The short entries of an index's leaf page."""
        data = self.page(number)
        for at in _pointers(data, number, _INDEX_LEAF):
            try:
                size, start = varint(data, at)
            except IndexError:
                continue
            entry = values(data[start : start + size]) if size <= len(data) else None
            if entry is not None:
                yield entry

    def _payload(self, data: bytes, start: int, size: int) -> bytes | None:
        """A row's bytes, with those on overflow pages; None if they are not all there."""
        usable = self.usable
        if not 0 < size <= self.count * self.page_size:
            return None
        if size <= usable - 35:
            return data[start : start + size] if start + size <= usable else None
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= usable - 35 else least
        if start + local + 4 > usable:
            return None
        parts, left, passed = [data[start : start + local]], size - local, set[int]()
        following = int.from_bytes(data[start + local : start + local + 4], "big")
        while left > 0:
            page = self.page(following) if following not in passed else b""
            if not page:
                return None
            passed.add(following)
            parts.append(page[4 : min(usable, 4 + left)])
            left -= len(parts[-1])
            following = int.from_bytes(page[:4], "big")
        return b"".join(parts)

    # Which pages there are

    def leaves(self, root: int, marks: bytearray) -> Iterator[tuple[int, bytes]]:
        """The leaf pages of the table at `root`, in order, marked as in use with all on the way to them.

        A leaf whose rows are not those that its parents announce is passed over.
        """
        ahead: list[tuple[int, int, int, int]] = [(root, -(2**63), 2**63 - 1, 0)]
        while ahead:
            number, least, most, depth = ahead.pop()
            if not 0 < number <= self.count or marks[number] or depth > _DEEPEST:
                continue
            data = self.page(number)
            if kind(data, number) == _TABLE_LEAF:
                if _in_order(data, number, least, most):
                    marks[number] = IN_USE
                    yield number, data
            elif kind(data, number) == _TABLE_INTERIOR:
                marks[number] = IN_USE
                low, children = least, []
                for child, key in _children(data, number):
                    children.append((child, low, most if key is None else key, depth + 1))
                    low = low if key is None else key
                ahead.extend(reversed(children))

    def find(self, root: int, rowid: int) -> tuple[int, int] | None:
        """(page, byte in it) of a row, as its table leads there."""
        number = root
        for _ in range(_DEEPEST):
            data = self.page(number)
            if kind(data, number) == _TABLE_LEAF:
                return next(((number, cell.at) for cell in self.cells(number, data) if cell.rowid == rowid), None)
            below = [child for child, key in _children(data, number) if key is None or rowid <= key]
            if not below:
                return None
            number = below[0]
        return None

    def mark_free(self, marks: bytearray) -> bool:
        """Marks the pages that the file says are free. Returns whether it says so in full: then all others are in use."""
        if not self.trusted:
            return False
        head = self.page(1)
        trunk, expected = struct.unpack_from(">II", head, 32)
        seen = 0
        while trunk:
            data = self.page(trunk)
            if not 1 < trunk <= self.count or not data or marks[trunk] == FREE or seen > expected:
                return False
            following, count = struct.unpack_from(">II", data)
            if count > self.usable // 4 - 2:
                return False
            for number in (trunk, *struct.unpack_from(f">{count}I", data, 8)):
                if not 1 < number <= self.count or marks[number] == FREE:
                    return False
                marks[number] = marks[number] or FREE
                seen += 1
            trunk = following
        return bool(seen == expected)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends. Raises IndexError past the end."""
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    value = value << 8 | data[at + 8]
    return value - 2**64 if value >= 2**63 else value, at + 9


def values(payload: bytes) -> list[Any] | None:
    """The columns of a stored row; None if these bytes are none."""
    found: list[Any] = []
    try:
        body, at = varint(payload, 0)
        end = body
        while at < end:
            code, at = varint(payload, at)
            if code < 0 or code in (10, 11):
                return None
            if code in (0, 8, 9):
                found.append((None, 0, 1)[max(0, code - 7)])
                continue
            size = (code - 12) // 2 if code >= 12 else 8 if code == 7 else _INT_BYTES[code]
            data = payload[body : body + size]
            if len(data) != size:
                return None
            body += size
            if code >= 12:
                found.append(data if code % 2 == 0 else text(data))
            else:
                found.append(struct.unpack(">d", data)[0] if code == 7 else int.from_bytes(data, "big", signed=True))
    except IndexError:
        return None
    return found if at == end and body == len(payload) else None


def text(data: bytes) -> str:
    """Text as it is stored; bytes that are none stay, as lone surrogates, so that the checksum tells."""
    return data.decode("utf-8", "surrogateescape")


def kind(data: bytes, number: int) -> int:
    """What sort of page it is."""
    start = _start(number)
    return data[start] if len(data) > start else -1


def page_size_of(head: bytes) -> int | None:
    """The page size in a file's first bytes, None if there is none."""
    size = int.from_bytes(head[16:18], "big")
    size = 65536 if size == 1 else size
    return size if len(head) >= 18 and size in _SIZES else None


def guess_page_size(handle: int) -> int:
    """The page size with which most of a file's pages look like leaf pages of a table, by its first bytes."""
    looks = dict.fromkeys(_SIZES, 0)
    for size in _SIZES:
        for at in range(0, min(os.fstat(handle).st_size, _SAMPLE), size):
            try:
                data = os.pread(handle, size, at)
            except OSError:
                continue
            number = at // size + 1
            count = int.from_bytes(data[3:5], "big")
            whole = count > 0 and len(data) == size and len(_pointers(data, number, _TABLE_LEAF)) == count
            looks[size] += whole and _in_order(data, number, -(2**63), 2**63 - 1)
    return max(_SIZES, key=lambda size: looks[size])


def is_header(head: bytes) -> bool:
    """Whether these 100 bytes are the beginning of a database, as SQLite would have it and beyond: none of it garbled."""
    return (
        head[:16] == MAGIC
        and page_size_of(head) is not None
        and head[18:20] in (b"\1\1", b"\2\2")
        and head[21:24] == b"\x40\x20\x20"
        and head[44:47] == bytes(3)
        and 1 <= head[47] <= 4
        and head[56:60] == b"\0\0\0\1"
        and not any(head[72:92])
    )


def _start(number: int) -> int:
    return 100 if number == 1 else 0


def _pointers(data: bytes, number: int, expected: int) -> list[int]:
    """Where the cells of a page begin, in the order of their keys; [] if it is another sort of page."""
    if kind(data, number) != expected:
        return []
    start, width = _start(number), 12 if expected == _TABLE_INTERIOR else 8
    count = int.from_bytes(data[start + 3 : start + 5], "big")
    first = start + width
    count = min(count, (len(data) - first) // 2)
    found = struct.unpack_from(f">{count}H", data, first)
    return [at for at in found if first <= at < len(data)]


def _children(data: bytes, number: int) -> Iterator[tuple[int, int | None]]:
    """(page, largest rowid below it) of an interior page's children; the last has no such bound."""
    for at in _pointers(data, number, _TABLE_INTERIOR):
        if at + 5 <= len(data):
            try:
                yield int.from_bytes(data[at : at + 4], "big"), varint(data, at + 4)[0]
            except IndexError:
                continue
    if kind(data, number) == _TABLE_INTERIOR:
        start = _start(number) + 8
        yield int.from_bytes(data[start : start + 4], "big"), None


def _in_order(data: bytes, number: int, least: int, most: int) -> bool:
    """Whether a leaf's rowids rise, from above `least` to no more than `most`."""
    for at in _pointers(data, number, _TABLE_LEAF):
        try:
            rowid = varint(data, varint(data, at)[1])[0]
        except IndexError:
            return False
        if not (least < rowid or least == -(2**63)) or rowid > most:
            return False
        least = rowid
    return True
