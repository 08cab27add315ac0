"""Ids of prompts: their own, or a hash of their messages; and which rows only repeat an earlier one."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

import orjson

from rlaif.data.messages import encodable
from rlaif.errors import InputError
from rlaif.keys import digest
from rlaif.rows import MENDABLE
from rlaif.types import Message

_CACHE_KB = 8192

Answer = tuple[str, str, float | None]
"""(text, the model that wrote it, score)"""


class Ids:
    """Gives each prompt its id: its own, or a hash of its messages with -2, -3 for repeats; and tells which rows repeat.

    What was given so far stands in a private database, which beyond its cache is a temporary file.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KB};"
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
    if not encodable(str(given)):
        raise InputError(f"{where}: the id {given!r} holds half a surrogate pair, which is no text{MENDABLE}")
    return str(given)


def _hash(messages: tuple[Message, ...]) -> str:
    """digest(messages, 8), by a shorter way where all values are texts: orjson and json write these alike."""
    if {type(value) for message in messages for value in message.values()} == {str}:
        raw = orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(raw, digest_size=8).hexdigest()
    return digest(list(messages), 8)
