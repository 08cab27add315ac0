"""Finished formats: a pure function from a selection to rows each, and one way to write JSON lines.

A file appears whole or not at all, and equal rows give equal bytes. What is no JSON is refused: half a
surrogate pair where a row is written, NaN already by `number`, through which every number of a row goes.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

_BUFFER = 2**16
_EXACT = 1e9  # times a million it is still far below 2**53


class Writer(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes, /) -> object:
        """Takes them all."""


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as UTF-8 JSON lines and returns their number; compressed for a name in .gz or .zst.

    The file appears whole or not at all: it is written beside its place and moved there. Raises ValueError or TypeError for
    a row that is no JSON. Numbers must have come through `number`.
    """
    with whole(path) as raw:
        if path.suffix == ".gz":
            with io.BufferedWriter(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0), _BUFFER) as file:
                return write_lines(file, rows)
        if path.suffix == ".zst":
            import pyarrow

            same = os.fdopen(os.dup(raw.fileno()), "wb")  # it is closed with the stream
            with pyarrow.CompressedOutputStream(pyarrow.PythonFile(same, mode="w"), "zstd") as stream:
                return write_lines(stream, rows)
        return write_lines(raw, rows)


def write_lines(file: Writer, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as JSON lines; returns their number. Raises ValueError or TypeError for a row that is no JSON."""
    count = 0
    dumps, write = orjson.dumps, file.write
    for row in rows:
        try:
            line = dumps(row, None, orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # an integer of more than 64 bits, or no JSON at all
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        write(line)
        count += 1
    return count


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with whole(path) as file:
        file.write(content)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file beside its place, which is moved there when the block ends without an exception, and else removed.

    Of several that are written to one place at the same time each is whole, and the last one to end stays.
    """
    part, handle = _own_part(path)
    with os.fdopen(handle, "wb", _BUFFER) as file:
        try:
            yield file
            file.flush()
            os.fsync(handle)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _own_part(path: Path) -> tuple[Path, int]:
    """An empty file beside the place that no other writer has; one that a killed writer left is taken over."""
    for number in itertools.count():
        part = path.with_name(f".{path.name}.{f'{number}.' * (number > 0)}part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _locks(handle) and part.exists() and os.fstat(handle).st_ino == part.stat().st_ino:
                os.ftruncate(handle, 0)
                return part, handle
        except FileNotFoundError:  # another writer has just ended
            pass
        os.close(handle)
    raise AssertionError("numbers do not end")


def _locks(handle: int) -> bool:
    """Whether nobody else has the file; where files cannot be locked, it is taken that nobody has."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def number(value: float) -> float:
    """`value` as exports show it: six decimals, no negative zero. Raises ValueError if it is not finite."""
    if -_EXACT < value < _EXACT:
        return round(value * 1e6) / 1e6
    if value - value != 0.0:
        raise ValueError(f"{value!r} is no number that a file can hold")
    return float(round(value, 6))
