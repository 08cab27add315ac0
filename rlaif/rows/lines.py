"""Files of lines and of JSON. Lines end at "\\n" alone: U+2028 and its like are text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from rlaif.errors import InputError
from rlaif.rows.mend import MENDABLE
from rlaif.rows.strict import quick_json, strict_json
from rlaif.rows.unpack import whole

MAX_LINE_BYTES = 16 * 2**20
_KINDS_OF = {int: "a number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}

Row = tuple[str, Mapping[str, Any]]
"""(where it stands, its columns)"""


def raw_lines(name: str, file: BinaryIO, *, blank: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line, `blank` ones on request. Raises InputError where MAX_LINE_BYTES hold no end or nothing."""
    number = nothing = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{name}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MB")
        if not line.isspace():
            nothing = 0
            yield number, line
            continue
        nothing += len(line)
        if nothing > MAX_LINE_BYTES:
            raise InputError(f"{name}:{number}: there were nothing but blank lines for {MAX_LINE_BYTES >> 20} MB")
        if blank:
            yield number, line


def decode(name: str, raw: bytes, lossy: bool, first: int = 1) -> str:
    """The file's lines from the `first` on: all of them, or one. Raises InputError naming line and byte."""
    if first == 1:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:4]:
            raise InputError(f"{name}:1: the file is UTF-16; save it as UTF-8")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8", "surrogateescape" if lossy else "strict")
    except UnicodeDecodeError as error:
        at = error.start
        line, byte = first + raw.count(b"\n", 0, at), at - raw.rfind(b"\n", 0, at)
        raise InputError(f"{name}:{line}: invalid UTF-8 at byte {byte}: {raw[at : at + 4]!r}{MENDABLE}") from None


def _text(name: str, number: int, raw: bytes, lossy: bool) -> str:
    """A line without its end."""
    return decode(name, raw, lossy, number).rstrip("\n").rstrip("\r")


def jsonl_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    """The object of each line that is not blank."""
    for number, raw in raw_lines(name, file):
        where = f"{name}:{number}"
        row = quick_json(raw)
        if row is None:
            text = _text(name, number, raw, lossy)
            if not text.strip():
                continue
            row = strict_json(where, text, lossy)
        if not isinstance(row, dict):
            raise InputError(f"{where}: a line must be a JSON object, got {kind_of(row)}")
        yield where, row


def json_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    """The items of the list that the file holds."""
    raw = whole(name, file, "save it as .jsonl, one object a line")
    rows = quick_json(raw)
    if rows is None:
        rows = strict_json(name, decode(name, raw, lossy), lossy)
    del raw
    if not isinstance(rows, list):
        raise InputError(f"{name}: the file must hold a JSON list, got {kind_of(rows)}")
    for place, row in enumerate(rows, 1):
        yield f"{name}: item {place}", row if isinstance(row, dict) else {"prompt": row}


def txt_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    """Each line that is not blank is a prompt."""
    for number, raw in raw_lines(name, file):
        text = _text(name, number, raw, lossy).strip()
        if text:
            yield f"{name}:{number}", {"prompt": text}


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return (
        "nothing"
        if value is None
        else "an empty list"
        if value == []
        else f"{_KINDS_OF.get(type(value), type(value).__name__)}"
    )
