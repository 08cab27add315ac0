"""Reading what the user brings: prompts, and candidates that already exist.

Everything is checked before anything is spent: the first row that is wrong is named by file and line, and nothing of the
file is used. Lines end at "\\n" alone: U+2028 and its like are text. Memory does not grow with the number of rows.

On request a row that only repeats an earlier one is left out, and what is no text in a row (bytes that are not UTF-8, halves
of surrogate pairs) becomes U+FFFD instead of a refusal; how many rows that concerns is said once they are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from rlaif.errors import InputError
from rlaif.keys import digest, plain
from rlaif.rows import MENDABLE, Mender, kind_of, rows
from rlaif.templates import example, is_file
from rlaif.types import Candidate, Message, Prompt

log = logging.getLogger("rlaif")

_PAIR = ("response_a", "response_b")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FLAT = (str, int, bool, type(None))
_IDS_CACHE_KB = 8192

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
    mender = Mender()
    with closing(_Ids()) as ids:
        for where, row in rows(source, lossy=replace):
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
        raise InputError(f"{where}: the id {given!r} holds half a surrogate pair, which is no text{MENDABLE}")
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
        raise InputError(f"{where}: `candidates` must be a list, got {kind_of(row.get('candidates'))}")
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
        raise InputError(f"{where}: `prompt` must be a text or a list of messages, got {kind_of(prompt)}")
    for message in prompt:
        if not isinstance(message, (dict, Mapping)) or message.get("role") not in _ROLES:
            raise InputError(f"{where}: a message of `prompt` needs a `role` out of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"{where}: a message of `prompt` needs a text as `content`, got {kind_of(message.get('content'))}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: `prompt` ends with a message of the {prompt[-1]['role']}; it must end with the user's")
    if not prompt[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty")
    messages = tuple([{str(k): _plain(v) for k, v in message.items() if v is not None} for message in prompt])
    if not all(_encodable(m["content"] if len(m) == 2 else json.dumps(m, ensure_ascii=False)) for m in messages):
        raise InputError(f"{where}: the prompt holds half a surrogate pair, which is no text{MENDABLE}")
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
        raise InputError(f"{where}: candidate {place} must be a text or an object, got {kind_of(item)}")
    text = row.get("text") if row.get("response") is None else row["response"]
    if not isinstance(text, str):
        raise InputError(f"{where}: candidate {place} needs a text as `response`, got {kind_of(text)}")
    if not _encodable(text):
        raise InputError(f"{where}: candidate {place} holds half a surrogate pair, which is no text{MENDABLE}")
    score = row.get("score")
    try:
        number = None if score is None else float(score)
        fine = number is None or (math.isfinite(number) and isinstance(score, (int, float)) and not isinstance(score, bool))
    except (TypeError, ValueError, OverflowError):
        number, fine = None, False
    if not fine:
        raise InputError(f"{where}: the score of candidate {place} must be a number, got {str(score)[:40]!r}")
    return text, str(row.get("model") or ""), number


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


def _shown(source: str | Iterable[Any]) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else "the input"
