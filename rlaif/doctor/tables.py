"""The tables of a ledger and the shape of their rows, read off the schema; and what makes a row believable.

A row that fits its table's columns and whose checksum is right was written by a run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlaif.ledger import SCHEMA, crc_of

Row = tuple[Any, ...]
_KINDS: Mapping[str, type] = {"INTEGER": int, "TEXT": str, "BLOB": bytes, "REAL": float}


@dataclass(frozen=True)
class Table:
    """A table with its columns in the order stored.

    `alias` is the place of the column that is the rowid, None without one; `root` the page where the table begins in a
    file that was never rebuilt; `covered` are the places that the checksum is of, none where the table has no checksum.
    """

    name: str
    columns: tuple[str, ...]
    kinds: tuple[type, ...]
    required: tuple[bool, ...]
    alias: int | None
    root: int
    covered: tuple[int, ...]

    def fit(self, rowid: int, values: Sequence[Any]) -> Row | None:
        """A stored row as SQL would give it; None if it is not of this table."""
        if len(values) != len(self.columns):
            return None
        row = list(values)
        if self.alias is not None:
            if row[self.alias] is not None:
                return None
            row[self.alias] = rowid
        for place, (value, kind, required) in enumerate(zip(row, self.kinds, self.required, strict=True)):
            if kind is float and isinstance(value, int):
                row[place] = float(value)  # SQLite stores 2.0 as the integer 2
            elif not isinstance(value, kind) and (value is not None or required):
                return None
        return tuple(row)

    def sound(self, row: Row) -> bool:
        """Whether the row's checksum is right; where there is none, whether its texts are texts."""
        if not self.covered:
            return not any(isinstance(value, str) and _is_bent(value) for value in row)
        return bool(crc_of(*(row[place] for place in self.covered)) == row[-1])

    def place(self, column: str) -> int:
        """Where a column stands in a row."""
        return self.columns.index(column)


def _is_bent(text: str) -> bool:
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)


@cache
def tables() -> Mapping[str, Table]:
    """The ledger's tables with a rowid, by name: all but `spend`, whose totals follow from `calls`."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        masters = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID'")
        return {name: _table(db, name, root) for name, root in masters.fetchall()}


@cache
def layout() -> Mapping[str, tuple[int, str]]:
    """(root page, SQL) of every table and index that a fresh ledger has, by name."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return {name: (root, sql) for name, root, sql in db.execute("SELECT name, rootpage, sql FROM sqlite_master")}


def _table(db: sqlite3.Connection, name: str, root: int) -> Table:
    columns = db.execute(f"PRAGMA table_info({name})").fetchall()
    names = tuple(str(column[1]) for column in columns)
    alias = next((place for place, c in enumerate(columns) if c[5] and c[2] == "INTEGER"), None)
    # The checksum is of all other columns, but for an id that SQLite gave the row.
    given = None if alias is None or names[alias] != "id" else alias
    return Table(
        name,
        names,
        tuple(_KINDS[c[2]] for c in columns),
        tuple(bool(c[3] or c[5]) for c in columns),
        alias,
        root,
        tuple(place for place in range(len(names) - 1) if place != given) if names[-1] == "crc" else (),
    )
