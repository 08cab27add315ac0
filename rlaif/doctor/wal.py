"""The write-ahead log, frame by frame (https://www.sqlite.org/fileformat2.html#the_write_ahead_log).

A frame is the new content of a page. SQLite applies frames up to the last commit before the first one that is not right,
and passes over the others silently: right after a crash, and a loss after damage. Each frame's checksum goes on from the one
before, as it is stored: so a frame after the damage can be verified too, if only the one before it kept its checksum.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC = {0x377F0682: "little", 0x377F0683: "big"}  # the byte order that checksums are computed in
_FORMAT = 3007000
_MASK = 0xFFFFFFFF


class Frame(NamedTuple):
    """A page's new content, `at` this byte of the log. `commit` is the file's size in pages if a transaction ends here.

    `current`: its salts are the log's, it is no remnant of an earlier round; `verified`: its checksum is right.
    """

    page: int
    at: int
    commit: int
    current: bool
    verified: bool


@dataclass(frozen=True)
class Wal:
    """A log as it was read. `applied` is how many frames SQLite applies.

    `lost` are later frames that belong to committed transactions; `broken_at` is the byte of the first frame that is neither
    right nor a remnant of an earlier round, None if there is none.
    """

    page_size: int
    whole_header: bool
    frames: tuple[Frame, ...]
    applied: int
    lost: tuple[Frame, ...]
    broken_at: int | None

    @property
    def unused(self) -> bool:
        """True if there are frames of this round that SQLite does not apply: of a transaction cut off, or after damage."""
        return self.broken_at is not None or any(frame.current for frame in self.frames[self.applied :])

    def overlay(self, *, lost: bool = False, unverified: bool = False) -> dict[int, int]:
        """Where the newest content of each page is: what SQLite sees; with `lost`, also what was committed later.

        With `unverified`, all of the log's later frames, whatever became of them.
        """
        found = {frame.page: frame.at for frame in self.frames[: self.applied]}
        if lost:
            found |= {frame.page: frame.at for frame in self.lost if frame.verified}
        if unverified:
            found |= {frame.page: frame.at for frame in self.frames[self.applied :] if frame.current}
        return found


def read_wal(handle: int, page_size: int) -> Wal | None:
    """The log, None if it holds no frame. `page_size` is for a log whose own header cannot say."""
    head = _read(handle, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return None
    magic, version, size, rounds, *salts, sum_0, sum_1 = _HEADER.unpack(head)
    order = _MAGIC.get(magic, sys.byteorder)
    whole = magic in _MAGIC and version == _FORMAT and _checksum(head[:24], (0, 0), order) == (sum_0, sum_1)
    if whole:
        page_size = size
    heads = list(_heads(handle, page_size))
    if not heads:
        return None
    if not whole:
        salts = list(Counter(head[2:4] for _, head in heads).most_common(1)[0][0])
    frames, before = [], (sum_0, sum_1)
    for at, (page, commit, salt_0, salt_1, *sums) in heads:
        content = _read(handle, _FRAME.size + page_size, at)
        verified = page > 0 and _checksum(content[:8] + content[_FRAME.size :], before, order) == tuple(sums)
        frames.append(Frame(page, at + _FRAME.size, commit, [salt_0, salt_1] == salts, verified))
        before = sums[0], sums[1]

    good = next((place for place, f in enumerate(frames) if not (f.current and f.verified)), len(frames)) if whole else 0
    applied = max((place + 1 for place in range(good) if frames[place].commit), default=0)
    last = max(
        (place + 1 for place in range(applied, len(frames)) if frames[place].current and frames[place].commit), default=0
    )
    lost = tuple(frame for frame in frames[applied:last] if frame.current)
    broken = frames[good].at - _FRAME.size if good < len(frames) else None
    if not whole:
        broken = 0
    elif broken is not None and not lost and not frames[good].current:
        # Each round of the log raises the first salt by one: a remnant is known by a salt of the rounds before.
        age = (salts[0] - heads[good][1][2]) & _MASK
        broken = None if 0 < age <= rounds else broken
    return Wal(page_size, whole, tuple(frames), applied, lost, broken)


def _heads(handle: int, page_size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(byte, header) of every whole frame."""
    size = os.fstat(handle).st_size
    for at in range(_HEADER.size, size - _FRAME.size - page_size + 1, _FRAME.size + page_size):
        head = _read(handle, _FRAME.size, at)
        yield at, _FRAME.unpack(head if len(head) == _FRAME.size else bytes(_FRAME.size))


def _read(handle: int, size: int, at: int) -> bytes:
    try:
        return os.pread(handle, size, at)
    except OSError:  # a sector that cannot be read is as good as a damaged one
        return b""


@cache
def _words(size: int, order: str) -> struct.Struct:
    return struct.Struct(f"{'<' if order == 'little' else '>'}{size // 4}I")


def _checksum(data: bytes, before: tuple[int, int], order: str) -> tuple[int, int]:
    """SQLite's checksum of `data`, gone on from `before`."""
    if len(data) % 8:
        return -1, -1
    one, two = before
    words = iter(_words(len(data), order).unpack(data))
    for first, second in zip(words, words, strict=True):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
