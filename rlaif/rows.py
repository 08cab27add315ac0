"""Rows of what the user names: files of JSON Lines, JSON, CSV, Parquet or text, gzip of these, and datasets.

A row that cannot be read is refused by file and line. Lines end at "\\n" alone: U+2028 and its like are text. JSON is read
strictly: no repeated keys, no NaN, no number that would be rounded.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from rlaif.errors import InputError
from rlaif.templates import example

MAX_LINE_BYTES = 16 * 2**20
MENDABLE = " (--replace puts U+FFFD there)"
_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')
_NO_TEXT = re.compile("[\ud800-\udfff]")
_KINDS_OF = {int: "a number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}
_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".txt")

Row = tuple[str, Mapping[str, Any]]
"""(where it stands, its columns)"""


class Mender:
    """Puts U+FFFD for each byte that is not UTF-8 (as `surrogateescape` reads it) and each half of a surrogate pair.

    `rows` is how many it was done to.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._found = 0

    def mend(self, where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row, in which every text is one."""
        self._found = 0
        try:
            mended: Mapping[str, Any] = self._value(row)
        except RecursionError:
            raise InputError(f"{where}: a column is nested too deeply") from None
        except KeyError as error:
            raise InputError(
                f"{where}: the key {error.args[0]!r} stands twice, once U+FFFD stands for what is no text"
            ) from None
        self.rows += self._found > 0
        return mended

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            if value.isascii():
                return value
            text, found = _NO_TEXT.subn("\ufffd", value)
            self._found += found
            return text
        if isinstance(value, Mapping):
            mended = dict[Any, Any]()
            for key, item in value.items():
                name = self._value(key)
                if name in mended:
                    raise KeyError(name)
                mended[name] = self._value(item)
            return mended
        return [self._value(item) for item in value] if isinstance(value, (list, tuple)) else value


def rows(source: str | Iterable[Any], *, lossy: bool) -> Iterator[Row]:
    """The rows of any source. `lossy`: what is no text in them may be lone surrogates, and is mended by the caller."""
    if not isinstance(source, (str, Path)):
        for place, item in enumerate(source, 1):
            is_row = isinstance(item, Mapping)
            yield f"item {place}", item if is_row else {"prompt": list(item) if isinstance(item, tuple) else item}
        return
    name = str(source)
    if "\0" in name:
        raise InputError(f"no file at {name[:200]!r}: no file's name holds a null character")
    path = example(name)
    if os.path.isdir(path):
        yield from _dataset_rows(path)
        return
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if not os.path.exists(path) and plain.suffix not in _KINDS and _may_be_on_hub(name):
        yield from _hub_rows(name)
        return
    if plain.suffix not in _KINDS:
        if not os.path.exists(path):
            raise InputError(f"no file at {str(source)[:200]!r}")
        raise InputError(
            f"{str(source)!r}: cannot tell its kind; the name should end in {', '.join(_KINDS)}, or these with .gz"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from _READERS[plain.suffix](str(path), cast(BinaryIO, file), lossy)
    except FileNotFoundError:
        raise InputError(f"no file at {str(source)!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(source)!r}: {error}") from None


def _may_be_on_hub(name: str) -> bool:
    """Whether it looks like OWNER/NAME: a path into a folder that is here was meant as a path."""
    owner, _, rest = name.partition("/")
    return bool(owner) and rest.count("/") == 0 and rest != "" and owner != "~" and not os.path.isdir(owner)


def _raw_lines(name: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{name}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MB")
        yield number, line


def _text(name: str, number: int, raw: bytes, lossy: bool) -> str:
    """A line without its end."""
    return _decode(name, raw, lossy, number).rstrip("\n").rstrip("\r")


def _decode(name: str, raw: bytes, lossy: bool, first: int = 1) -> str:
    """The file's lines from the `first` on: all of them, or one."""
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


def _jsonl_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    for number, raw in _raw_lines(name, file):
        where = f"{name}:{number}"
        row = _quick_json(raw)
        if row is None:
            text = _text(name, number, raw, lossy)
            if not text.strip():
                continue
            row = _json(where, text, lossy)
        if not isinstance(row, dict):
            raise InputError(f"{where}: a line must be a JSON object, got {kind_of(row)}")
        yield where, row


def _json_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    raw = file.read()
    rows = _quick_json(raw)
    if rows is None:
        rows = _json(name, _decode(name, raw, lossy), lossy)
    if not isinstance(rows, list):
        raise InputError(f"{name}: the file must hold a JSON list, got {kind_of(rows)}")
    for place, row in enumerate(rows, 1):
        yield f"{name}: item {place}", row if isinstance(row, dict) else {"prompt": row}


def _csv_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(_decode(name, file.read(), lossy), newline=""), strict=True)
    try:
        if "prompt" not in (reader.fieldnames or []):
            raise InputError(f"{name}: no column `prompt`; there are {', '.join(reader.fieldnames or []) or 'none'}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{name}:{reader.line_num}: the row does not have as many fields as the header")
            yield f"{name}:{reader.line_num}", {k: v for k, v in row.items() if v or k == "prompt"}
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: not valid CSV: {error}") from None


def _txt_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    for number, raw in _raw_lines(name, file):
        where = f"{name}:{number}"
        text = _text(name, number, raw, lossy).strip()
        if text:
            yield where, {"prompt": text}


def _parquet_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file if not isinstance(file, gzip.GzipFile) else io.BytesIO(file.read()))
        place = 0
        for batch in opened.iter_batches(batch_size=1024):
            for row in _arrow_rows(name, batch, place, lossy):
                place += 1
                yield f"{name}: row {place}", {k: v for k, v in row.items() if v is not None}
    except pyarrow.ArrowException as error:
        raise InputError(f"{name}: not valid parquet: {error}") from None


def _arrow_rows(name: str, batch: Any, before: int, lossy: bool) -> list[dict[str, Any]]:
    """The rows of a batch that follows on `before` others. Other programs put any bytes into Arrow's texts."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        rows = [{column: batch[column][place] for column in batch.schema.names} for place in range(batch.num_rows)]
    found = []
    for place, row in enumerate(rows, before + 1):
        try:
            found.append(
                {column: _arrow_value(value, "surrogateescape" if lossy else "strict") for column, value in row.items()}
            )
        except UnicodeDecodeError as error:
            at = error.object[error.start : error.start + 4]
            raise InputError(f"{name}: row {place}: invalid UTF-8: {at!r}{MENDABLE}") from None
    return found


def _arrow_value(value: Any, errors: str) -> Any:
    import pyarrow

    if not value.is_valid:
        return None
    if isinstance(value, pyarrow.StringScalar):
        return value.as_buffer().to_pybytes().decode("utf-8", errors)
    if isinstance(value, pyarrow.StructScalar):
        return {name: _arrow_value(item, errors) for name, item in value.items()}
    if isinstance(value, pyarrow.ListScalar):
        return [_arrow_value(item, errors) for item in value.values]
    return value.as_py()


_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".txt": _txt_rows, ".parquet": _parquet_rows}


def _dataset_rows(path: Path) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{str(path)!r} is a folder, but not a saved dataset: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise InputError(
                f"{str(path)!r} holds the splits {', '.join(loaded)}: name one, as {path / next(iter(loaded), '')}"
            )
        loaded = next(iter(loaded.values()))
    place = 0
    try:
        for place, row in enumerate(loaded, 1):
            yield f"{path}: row {place}", {k: v for k, v in row.items() if v is not None}
    except UnicodeDecodeError as error:
        at = error.object[error.start : error.start + 4]
        raise InputError(
            f"{path}: row {place + 1}: invalid UTF-8: {at!r}; save the dataset as .parquet, where --replace puts U+FFFD there"
        ) from None


def _hub_rows(name: str) -> Iterator[Row]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, split=split or "train", streaming=True)
        for place, row in enumerate(loaded, 1):
            yield f"{name}: row {place}", {k: v for k, v in row.items() if v is not None}
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds
        raise InputError(f"no file at {name!r}, and it cannot be loaded as a hub dataset: {_first_line(error)}") from None


def _quick_json(raw: bytes) -> Any:
    """What `_json` would say, or None where it has to be asked: orjson takes repeated keys, and rounds long numbers.

    Every key stands before a colon. So a text with no more of `":` than the value has keys repeats none.
    """
    try:
        value = orjson.loads(raw)
        keys = _keys([value])
    except (ValueError, RecursionError):
        return None
    return value if raw.count(b":") == keys or len(_KEY_ENDS.findall(raw)) == keys else None


def _keys(value: dict[str, Any] | list[Any]) -> int:
    """How many keys `value` and the objects in it have. Raises ValueError for a number that may have been rounded."""
    found, items = (len(value), value.values()) if isinstance(value, dict) else (0, value)
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            found += _keys(item)
        elif kind is float and abs(item) >= 2.0**63:
            raise ValueError
    return found


def _json(where: str, text: str, lossy: bool) -> Any:
    """Strict JSON: no repeated keys, no NaN; unless `lossy`, nothing that is no text. Raises InputError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(k for k in found if sum(k == other for other, _ in items) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
        if not lossy and "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: a text holds half a surrogate pair: {error.object[error.start : error.end]!r}{MENDABLE}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, at character {error.pos + 1}") from None
    except ValueError as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{where}: not valid JSON: {reason}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return (
        "nothing"
        if value is None
        else "an empty list"
        if value == []
        else f"{_KINDS_OF.get(type(value), type(value).__name__)}"
    )
