"""The rows of a file, with its unreadable lines among them instead of an end at the first one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.rows import MENDABLE, kind_of, rows
from rlaif.rows.lines import MAX_LINE_BYTES, decode
from rlaif.rows.strict import quick_json, strict_json
from rlaif.rows.unpack import PACKED, opened

_NUMBER = re.compile(r"(.*?)(\d+)\Z", re.DOTALL)
_PLACE = re.compile(r"(?::|: row )(\d+): ")
_LINED = (".jsonl", ".ndjson")
_KINDS = (*_LINED, ".json", ".parquet", ".csv", ".tsv")


class Ended(InputError):
    """The file cannot be read any further, though there is more of it."""


Read = tuple[int, Mapping[str, Any] | InputError]
"""(the number of a line or row, what stands there)"""


def readable(path: Path, source: str) -> None:
    """Raises InputError if there is no file of a known kind: that is wrong usage, not a finding."""
    if not path.exists():
        raise InputError(f"no file at {source!r}")
    if path.is_dir():
        raise InputError(f"{source!r} is a folder: name a file")
    if _kind(path) not in _KINDS:
        raise InputError(
            f"{source!r}: cannot tell its kind; the name should end in {', '.join(_KINDS)}, or these with {' or '.join(PACKED)}"
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {source!r}: {error.strerror or error}") from None


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def read(path: Path) -> Iterator[Read]:
    """Each row or the reason why it is none, with its number. Reading goes on behind an unreadable row wherever it can.

    Where it cannot, the last thing that is yielded is an `Ended`.
    """
    if _kind(path) in _LINED:
        yield from _lines(path)
        return
    last = 0
    unread: list[InputError] = []
    try:
        for where, row in rows(str(path), lossy=False, unread=unread.append):
            yield from _told(unread, last)
            last = number(where)
            yield last, row
        yield from _told(unread, last)
    except InputError as error:
        yield from _told(unread, last)
        yield _place(error, last + 1), Ended(f"{_reason(error)}; nothing behind it can be read")


def _told(unread: list[InputError], last: int) -> Iterator[Read]:
    """What could not be read since the row `last`, once."""
    for error in unread:
        yield _place(error, last + 1), InputError(_reason(error))
    unread.clear()


def _reason(error: InputError) -> str:
    """What an error says, without where and without what `check` cannot do."""
    said = str(error).removesuffix(MENDABLE)
    match = _PLACE.search(said)
    return said[match.end() :] if match else said


def number(where: str) -> int:
    """The number at the end of a place such as FILE:12 or FILE: row 12."""
    match = _NUMBER.match(where)
    return int(match[2]) if match else 0


def _place(error: InputError, otherwise: int) -> int:
    match = _PLACE.search(str(error))
    return int(match[1]) if match else otherwise


def _lines(path: Path) -> Iterator[Read]:
    place = 0
    try:
        with opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                place += 1
                if len(line) > MAX_LINE_BYTES:
                    yield place, InputError(f"the line is longer than {MAX_LINE_BYTES >> 20} MB")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                    continue
                try:
                    row = _row(path.name, place, line)
                except InputError as error:
                    yield place, InputError(str(error).removeprefix(f"{path.name}:{place}: ").removesuffix(MENDABLE))
                    if "UTF-16" in str(error):
                        return
                    continue
                if row is not None:
                    yield place, row
    except (OSError, EOFError, zlib.error, InputError) as error:
        yield place + 1, InputError(f"the file breaks off here: {error}")


def _row(name: str, place: int, raw: bytes) -> Mapping[str, Any] | None:
    """The row of a line, None for an empty one, read as strictly as everywhere. Raises InputError."""
    row = quick_json(raw)
    if row is None:
        text = decode(name, raw, False, place).rstrip("\r\n")
        if not text.strip():
            return None
        row = strict_json(f"{name}:{place}", text, False)
    if not isinstance(row, dict):
        raise InputError(f"a line must be a JSON object, got {kind_of(row)}")
    return row
