"""Reading what the user brings: prompts, and candidates that already exist.

Everything is checked before anything is spent: the first row that is wrong is named by file and line, and nothing of the
file is used. Lines end at "\\n" alone: U+2028 and its like are text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlaif.errors import InputError
from rlaif.keys import digest, plain
from rlaif.templates import example, is_file
from rlaif.types import Candidate, Message, Prompt

MAX_LINE_BYTES = 16 * 2**20
_ROLES = ("system", "developer", "user", "assistant", "tool")
_KINDS_OF = {int: "a number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}
_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".txt")

Row = tuple[str, Mapping[str, Any]]
"""(where it stands, its columns)"""


def read_prompts(source: str | Iterable[Any], *, system: str | None = None, limit: int | None = None) -> Iterator[Prompt]:
    """The prompts of a file, a dataset or Python values, in order. Raises InputError at the first wrong row."""
    ids = _Ids()
    for ordinal, (where, row) in enumerate(islice(_rows(source), limit)):
        yield __import__("dataclasses").replace(_prompt(where, row, ids, system), ordinal=ordinal)
    if not ids.used:
        raise InputError(f"{_shown(source)} holds no prompts")


def read_candidates(
    source: str | Iterable[Any], *, system: str | None = None, limit: int | None = None
) -> Iterator[tuple[Prompt, list[Candidate]]]:
    """Prompts with answers that already exist, in order. Raises InputError at the first wrong row."""
    ids = _Ids()
    for ordinal, (where, row) in enumerate(islice(_rows(source), limit)):
        given = row.get("candidates")
        if not isinstance(given, list):
            raise InputError(f"{where}: `candidates` must be a list, got {_kind(given)}")
        rest = {k: v for k, v in row.items() if k != "candidates"}
        prompt = __import__("dataclasses").replace(_prompt(where, rest, ids, system), ordinal=ordinal)
        yield prompt, [_candidate(where, prompt.id, k, item) for k, item in enumerate(given)]
    if not ids.used:
        raise InputError(f"{_shown(source)} holds no candidates")


def file_of(source: str | Iterable[Any]) -> Path | None:
    """The one file that holds the rows of `source`, None where there is no such file."""
    if not isinstance(source, (str, Path)):
        return None
    path = example(str(source))
    return path if is_file(path) else None


class _Ids:
    """Gives each prompt its id: its own, or a hash of its messages with -2, -3 for repeats."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._repeats: dict[str, int] = {}

    def take(self, where: str, given: Any, messages: tuple[Message, ...]) -> str:
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, (str, int)) or str(given) == "":
                raise InputError(f"{where}: `id` must be a text or a number, got {given!r}")
            if not _encodable(str(given)):
                raise InputError(f"{where}: the id {given!r} holds half a surrogate pair, which is no text")
            if str(given) in self.used:
                raise InputError(f"{where}: the id {given!r} stands in an earlier row too")
            self.used.add(str(given))
            return str(given)
        base = name = digest(list(messages), 8)
        while name in self.used:
            self._repeats[base] = self._repeats.get(base, 1) + 1
            name = f"{base}-{self._repeats[base]}"
        self.used.add(name)
        return name


def _prompt(where: str, row: Mapping[str, Any], ids: _Ids, system: str | None) -> Prompt:
    messages = _messages(where, row.get("prompt"))
    name = ids.take(where, row.get("id"), messages)
    if system is not None and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    reference = row.get("reference")  # a text or a number; anything else (one a turn, say) stays a field
    if reference is not None and not isinstance(reference, (str, int, float)):
        reference = None
    known = ("id", "prompt") if reference is None else ("id", "prompt", "reference")
    fields = {str(k): plain(v) for k, v in row.items() if k not in known}
    return Prompt(name, messages, None if reference is None else str(reference), fields)


def _messages(where: str, prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise InputError(f"{where}: `prompt` must be a text or a list of messages, got {_kind(prompt)}")
    for message in prompt:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise InputError(f"{where}: a message of `prompt` needs a `role` out of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"{where}: a message of `prompt` needs a text as `content`, got {_kind(message.get('content'))}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: `prompt` ends with a message of the {prompt[-1]['role']}; it must end with the user's")
    if not prompt[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty")
    messages = tuple({str(k): plain(v) for k, v in message.items() if v is not None} for message in prompt)
    if not _encodable(json.dumps(messages, ensure_ascii=False)):
        raise InputError(f"{where}: the prompt holds half a surrogate pair, which is no text")
    return messages


def _candidate(where: str, prompt_id: str, place: int, item: Any) -> Candidate:
    row = {"response": item} if isinstance(item, str) else item
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: candidate {place + 1} must be a text or an object, got {_kind(item)}")
    text = row.get("text") if row.get("response") is None else row["response"]
    if not isinstance(text, str):
        raise InputError(f"{where}: candidate {place + 1} needs a text as `response`, got {_kind(text)}")
    if not _encodable(text):
        raise InputError(f"{where}: candidate {place + 1} holds half a surrogate pair, which is no text")
    score = row.get("score")
    try:
        number = None if score is None else float(score)
        fine = number is None or (math.isfinite(number) and isinstance(score, (int, float)) and not isinstance(score, bool))
    except (TypeError, ValueError, OverflowError):
        number, fine = None, False
    if not fine:
        raise InputError(f"{where}: the score of candidate {place + 1} must be a number, got {str(score)[:40]!r}")
    return Candidate(id=f"{prompt_id}/{place}", text=text, model=str(row.get("model") or ""), score=number)


def _rows(source: str | Iterable[Any]) -> Iterator[Row]:
    if not isinstance(source, (str, Path)):
        for place, item in enumerate(source, 1):
            is_row = isinstance(item, Mapping)
            yield f"item {place}", item if is_row else {"prompt": list(item) if isinstance(item, tuple) else item}
        return
    path = example(str(source))
    if os.path.isdir(path):
        yield from _dataset_rows(path)
        return
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if not os.path.exists(path) and plain.suffix not in _KINDS and str(source).count("/") == 1:
        yield from _hub_rows(str(source))
        return
    if plain.suffix not in _KINDS:
        if not os.path.exists(path):
            raise InputError(f"no file at {str(source)[:200]!r}")
        raise InputError(
            f"{str(source)!r}: cannot tell its kind; the name should end in {', '.join(_KINDS)}, or these with .gz"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from _READERS[plain.suffix](str(path), cast(BinaryIO, file))
    except FileNotFoundError:
        raise InputError(f"no file at {str(source)!r}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {str(source)!r}: {error}") from None


def _lines(name: str, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """(where, text) of each line that is not blank."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{where}: the line is longer than {MAX_LINE_BYTES >> 20} MB")
        text = _decode(where, line, first=number == 1).rstrip("\n").rstrip("\r")
        if text.strip():
            yield where, text


def _decode(where: str, raw: bytes, *, first: bool) -> str:
    if first and (raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:4]):
        raise InputError(f"{where}: the file is UTF-16; save it as UTF-8")
    if first:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: invalid UTF-8 at byte {error.start + 1}: {raw[error.start : error.start + 4]!r}") from None


def _jsonl_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    for where, text in _lines(name, file):
        row = _json(where, text)
        if not isinstance(row, dict):
            raise InputError(f"{where}: a line must be a JSON object, got {_kind(row)}")
        yield where, row


def _json_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    rows = _json(name, _decode(name, file.read(), first=True))
    if not isinstance(rows, list):
        raise InputError(f"{name}: the file must hold a JSON list, got {_kind(rows)}")
    for place, row in enumerate(rows, 1):
        yield f"{name}: item {place}", row if isinstance(row, dict) else {"prompt": row}


def _csv_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(_decode(name, file.read(), first=True), newline=""), strict=True)
    try:
        if "prompt" not in (reader.fieldnames or []):
            raise InputError(f"{name}: no column `prompt`; there are {', '.join(reader.fieldnames or []) or 'none'}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{name}:{reader.line_num}: the row does not have as many fields as the header")
            yield f"{name}:{reader.line_num}", {k: v for k, v in row.items() if v or k == "prompt"}
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: not valid CSV: {error}") from None


def _txt_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    for where, text in _lines(name, file):
        yield where, {"prompt": text.strip()}


def _parquet_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file if not isinstance(file, gzip.GzipFile) else io.BytesIO(file.read()))
        place = 0
        for batch in opened.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                place += 1
                yield f"{name}: row {place}", {k: v for k, v in row.items() if v is not None}
    except pyarrow.ArrowException as error:
        raise InputError(f"{name}: not valid parquet: {error}") from None


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
    for place, row in enumerate(loaded, 1):
        yield f"{path}: row {place}", {k: v for k, v in row.items() if v is not None}


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


def _json(where: str, text: str) -> Any:
    """Strict JSON: no repeated keys, no NaN, nothing that cannot be written back as UTF-8. Raises InputError."""

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
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a text holds half a surrogate pair: {error.object[error.start : error.end]!r}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, at character {error.pos + 1}") from None
    except ValueError as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{where}: not valid JSON: {reason}") from None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return (
        "nothing"
        if value is None
        else "an empty list"
        if value == []
        else f"{_KINDS_OF.get(type(value), type(value).__name__)}"
    )


def _shown(source: str | Iterable[Any]) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else "the input"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
