"""Reading what the user brings: prompts, and candidates that already exist.

Everything is checked before anything is spent: the first row that is wrong is named by file and line, and nothing of the
file is used. Lines end at "\\n" alone: U+2028 and its like are text. Memory does not grow with the number of rows.

On request a row that only repeats an earlier one is left out, and what is no text in a row (bytes that are not UTF-8, halves
of surrogate pairs) becomes U+FFFD instead of a refusal; how many rows that concerns is said once they are read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from rlaif.errors import InputError
from rlaif.keys import digest, plain
from rlaif.templates import example, is_file
from rlaif.types import Candidate, Message, Prompt

log = logging.getLogger("rlaif")

MAX_LINE_BYTES = 16 * 2**20
_PAIR = ("response_a", "response_b")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_KINDS_OF = {int: "a number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}
_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')
_NO_TEXT = re.compile("[\ud800-\udfff]")
_MENDABLE = " (--replace puts U+FFFD there)"
_FLAT = (str, int, bool, type(None))
_IDS_CACHE_KB = 8192
_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".txt")

Row = tuple[str, Mapping[str, Any]]
"""(where it stands, its columns)"""

Answer = tuple[str, str, float | None]
"""(text, the model that wrote it, score)"""


def read_prompts(
    source: str | Iterable[Any],
    *,
    system: str | None = None,
    limit: int | None = None,
    dedupe: bool = False,
    replace: bool = False,
) -> Iterator[Prompt]:
    """The prompts of a file, a dataset or Python values, in order, `limit` at most. Raises InputError at the first wrong row.

    `dedupe` leaves out prompts with the messages of an earlier one, `replace` puts U+FFFD where a text is none.
    """
    for prompt, _ in _read(source, system, limit, dedupe, replace, judged=False):
        yield prompt


def read_candidates(
    source: str | Iterable[Any],
    *,
    system: str | None = None,
    limit: int | None = None,
    dedupe: bool = False,
    replace: bool = False,
) -> Iterator[tuple[Prompt, list[Candidate]]]:
    """Prompts with answers that already exist, as `read_prompts`: `candidates`, or `response_a` and `response_b`.

    To `dedupe`, the same prompt with other candidates is another comparison, and stays.
    """
    return _read(source, system, limit, dedupe, replace, judged=True)


def _read(
    source: str | Iterable[Any], system: str | None, limit: int | None, dedupe: bool, replace: bool, *, judged: bool
) -> Iterator[tuple[Prompt, list[Candidate]]]:
    kept = left_out = 0
    mender = _Mender()
    with closing(_Ids()) as ids:
        for where, row in _rows(source, lossy=replace):
            if replace:
                row = mender.mend(where, row)
            own, (messages, reference, fields) = row.get("id"), _columns(where, row, judged)
            answers = _answers(where, _given(row)) if judged else []
            asked = messages
            if system is not None and messages[0]["role"] != "system":
                asked = ({"role": "system", "content": system}, *messages)
            if dedupe and ids.repeats(asked, answers):
                if own is not None:
                    ids.take(where, own, messages)
                left_out += 1
                continue
            name = ids.take(where, own, messages)
            candidates = [Candidate(f"{name}/{k}", text, by, score=score) for k, (text, by, score) in enumerate(answers)]
            yield Prompt(name, asked, reference, fields, kept), candidates
            kept += 1
            if kept == limit:
                break
    if not kept:
        raise InputError(f"{_shown(source)} holds no {'candidates' if judged else 'prompts'}")
    if left_out:
        log.warning("rows left out, as they only repeat an earlier one (--dedupe): %d", left_out)
    if mender.rows:
        log.warning("rows in which U+FFFD stands for what is no text (--replace): %d", mender.rows)


def file_of(source: str | Iterable[Any]) -> Path | None:
    """The one file that holds the rows of `source`, None where there is no such file."""
    if not isinstance(source, (str, Path)):
        return None
    path = example(str(source))
    return path if is_file(path) else None


class _Ids:
    """Gives each prompt its id: its own, or a hash of its messages with -2, -3 for repeats; and tells which rows repeat.

    What was given so far stands in a private database, which beyond its cache is a temporary file.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_IDS_CACHE_KB};"
            "CREATE TABLE ids (id TEXT PRIMARY KEY, repeats INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;"
            "CREATE TABLE seen (digest TEXT PRIMARY KEY) WITHOUT ROWID; BEGIN"
        )

    def close(self) -> None:
        """Frees the database."""
        self._db.close()

    def take(self, where: str, given: Any, messages: tuple[Message, ...]) -> str:
        """The id of the prompt with `messages`. Raises InputError if `given` cannot be one."""
        if given is None:
            name = _hash(messages)
            if not self._is_new(name):
                name = self._next(name)
        else:
            name = _own_id(where, given)
            if not self._is_new(name):
                raise InputError(f"{where}: the id {given!r} stands in an earlier row too")
        return name

    def repeats(self, messages: tuple[Message, ...], answers: list[Answer]) -> bool:
        """Whether this was asked of an earlier row."""
        return not self._is_new(digest([messages, answers]), "INSERT OR IGNORE INTO seen VALUES (?)")

    def _is_new(self, name: str, add: str = "INSERT OR IGNORE INTO ids (id) VALUES (?)") -> bool:
        try:
            return self._db.execute(add, (name,)).rowcount == 1
        except sqlite3.Error as error:
            raise InputError(f"cannot note the prompts' ids in a temporary file ({error}): set SQLITE_TMPDIR") from None

    def _next(self, base: str) -> str:
        """The first of BASE-2, BASE-3, ... that is free."""
        (repeats,) = self._db.execute("SELECT repeats FROM ids WHERE id = ?", (base,)).fetchone()
        while True:
            repeats += 1
            if self._is_new(f"{base}-{repeats}"):
                self._db.execute("UPDATE ids SET repeats = ? WHERE id = ?", (repeats, base))
                return f"{base}-{repeats}"


def _own_id(where: str, given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, (str, int)) or str(given) == "":
        raise InputError(f"{where}: `id` must be a text or a number, got {given!r}")
    if not _encodable(str(given)):
        raise InputError(f"{where}: the id {given!r} holds half a surrogate pair, which is no text{_MENDABLE}")
    return str(given)


def _hash(messages: tuple[Message, ...]) -> str:
    """digest(messages, 8), by a shorter way where all values are texts: orjson and json write these alike."""
    if {type(value) for message in messages for value in message.values()} == {str}:
        raw = orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(raw, digest_size=8).hexdigest()
    return digest(list(messages), 8)


def _columns(where: str, row: Mapping[str, Any], judged: bool) -> tuple[tuple[Message, ...], str | None, dict[str, Any]]:
    """(messages, reference, other columns) of a row."""
    if judged and not isinstance(_given(row), list):
        raise InputError(f"{where}: `candidates` must be a list, got {_kind(row.get('candidates'))}")
    hidden: tuple[str, ...] = ("id", "prompt", "candidates", *_PAIR) if judged else ("id", "prompt")
    reference = row.get("reference")
    if isinstance(reference, (str, int, float)):
        hidden += ("reference",)
    else:  # one a turn, say: it stays a field
        reference = None
    try:
        messages = _messages(where, row.get("prompt"))
        fields = {str(k): _plain(v) for k, v in row.items() if k not in hidden}
    except RecursionError:
        raise InputError(f"{where}: a column is nested too deeply") from None
    return messages, None if reference is None else str(reference), fields


def _messages(where: str, prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        if type(prompt) is str and prompt.strip() and _encodable(prompt):  # as most are
            return ({"role": "user", "content": prompt},)
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise InputError(f"{where}: `prompt` must be a text or a list of messages, got {_kind(prompt)}")
    for message in prompt:
        if not isinstance(message, (dict, Mapping)) or message.get("role") not in _ROLES:
            raise InputError(f"{where}: a message of `prompt` needs a `role` out of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"{where}: a message of `prompt` needs a text as `content`, got {_kind(message.get('content'))}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: `prompt` ends with a message of the {prompt[-1]['role']}; it must end with the user's")
    if not prompt[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty")
    messages = tuple([{str(k): _plain(v) for k, v in message.items() if v is not None} for message in prompt])
    if not all(_encodable(m["content"] if len(m) == 2 else json.dumps(m, ensure_ascii=False)) for m in messages):
        raise InputError(f"{where}: the prompt holds half a surrogate pair, which is no text{_MENDABLE}")
    return messages


def _given(row: Mapping[str, Any]) -> Any:
    """The row's candidates: a list, or the two of a gold pair."""
    if "candidates" not in row and all(name in row for name in _PAIR):
        return [row[name] for name in _PAIR]
    return row.get("candidates")


def _answers(where: str, given: list[Any]) -> list[Answer]:
    return [_answer(where, place, item) for place, item in enumerate(given, 1)]


def _answer(where: str, place: int, item: Any) -> Answer:
    row = {"response": item} if isinstance(item, str) else item
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: candidate {place} must be a text or an object, got {_kind(item)}")
    text = row.get("text") if row.get("response") is None else row["response"]
    if not isinstance(text, str):
        raise InputError(f"{where}: candidate {place} needs a text as `response`, got {_kind(text)}")
    if not _encodable(text):
        raise InputError(f"{where}: candidate {place} holds half a surrogate pair, which is no text{_MENDABLE}")
    score = row.get("score")
    try:
        number = None if score is None else float(score)
        fine = number is None or (math.isfinite(number) and isinstance(score, (int, float)) and not isinstance(score, bool))
    except (TypeError, ValueError, OverflowError):
        number, fine = None, False
    if not fine:
        raise InputError(f"{where}: the score of candidate {place} must be a number, got {str(score)[:40]!r}")
    return text, str(row.get("model") or ""), number


class _Mender:
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


def _rows(source: str | Iterable[Any], *, lossy: bool) -> Iterator[Row]:
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
        raise InputError(f"{name}:{line}: invalid UTF-8 at byte {byte}: {raw[at : at + 4]!r}{_MENDABLE}") from None


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
            raise InputError(f"{where}: a line must be a JSON object, got {_kind(row)}")
        yield where, row


def _json_rows(name: str, file: BinaryIO, lossy: bool) -> Iterator[Row]:
    raw = file.read()
    rows = _quick_json(raw)
    if rows is None:
        rows = _json(name, _decode(name, raw, lossy), lossy)
    if not isinstance(rows, list):
        raise InputError(f"{name}: the file must hold a JSON list, got {_kind(rows)}")
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
            raise InputError(f"{name}: row {place}: invalid UTF-8: {at!r}{_MENDABLE}") from None
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
            f"{where}: a text holds half a surrogate pair: {error.object[error.start : error.end]!r}{_MENDABLE}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, at character {error.pos + 1}") from None
    except ValueError as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{where}: not valid JSON: {reason}") from None


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    return value if type(value) in _FLAT else plain(value)


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
