"""Finished formats: a pure function from a selection to a row each, and one way to write a file."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import orjson


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as UTF-8 JSON lines (gzip for a name in .gz) and returns their number.

    The file appears whole or not at all: it is written beside its place and moved there.
    """
    count = 0
    with _whole(path) as raw, ExitStack() as stack:
        file: IO[bytes] = raw
        if path.suffix == ".gz":
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb", mtime=0)))
        for row in rows:
            file.write(_line(row))
            count += 1
    return count


def _line(row: Mapping[str, Any]) -> bytes:
    """The row as compact JSON. Raises ValueError or TypeError if it is none."""
    with suppress(TypeError):
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        if b"null" not in line:  # which may be a number that is none
            return line
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with _whole(path) as file:
        file.write(content)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def number(value: float) -> float:
    """`value` as exports show it: six decimals, no negative zero."""
    return round(value, 6) + 0.0
