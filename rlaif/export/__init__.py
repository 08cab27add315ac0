"""Finished formats: a pure function from a selection to rows each, and one way to write JSON lines.

A file appears whole or not at all, and equal rows give equal bytes. What is no JSON is refused: half a
surrogate pair where a row is written, NaN already by `number`, through which every number of a row goes.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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

    Of several that write to one place at a time, each waits for the one before: a run may end while it is being exported.
    """
    part = path.with_name(f".{path.name}.part")
    with _alone(part) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _alone(part: Path) -> IO[bytes]:
    """The file, empty and locked: what another process has left there is overwritten, one that still writes is waited for."""
    while True:
        file = part.open("ab", _BUFFER)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):  # else it has been moved to its place meanwhile
                file.seek(0)
                file.truncate()
                return file
        file.close()


def number(value: float) -> float:
    """`value` as exports show it: six decimals, no negative zero. Raises ValueError if it is not finite."""
    if -_EXACT < value < _EXACT:
        return round(value * 1e6) / 1e6
    if value - value != 0.0:
        raise ValueError(f"{value!r} is no number that a file can hold")
    return float(round(value, 6))
