"""Everything about a ledger that can be checked, without changing it.

The files are looked at before SQLite is (see `source`), and the WAL beside it: SQLite passes over a damaged WAL without a word,
and with it over the newest answers. Then SQLite checks its structure, and every row is read: rows that SQLite gives without
complaint may still be garbled.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.doctor.pages import MAGIC, View
from rlaif.doctor.report import Report, next_command
from rlaif.doctor.rescue import collect, roots
from rlaif.doctor.sieve import Totals, in_words, label_of
from rlaif.doctor.source import UNREADABLE, Source, check_kind, not_begun, opened
from rlaif.doctor.tables import Row, Table, tables
from rlaif.ledger import crc_of

KEY_BYTES = 16
_SHOWN = 5
_NOT_BEGUN = "a run that did not begin: nothing is stored"
_LEFT_BEHIND = ("*.part", "run.sqlite-journal", "run.reserve")


def examine(directory: Path) -> Report:
    """Says what is in the run's ledger and whether all of it is as it was written; changes nothing.

    Raises InputError if there is no run, or its ledger is another program's or another version's.
    """
    with opened(directory) as source:
        check = _Check(source)
        check.wal()
        check.database()
        facts = [*check.about(), *_surroundings(source)]
        if not check.problems:
            return Report(directory, f"{source.path}: {check.state}", tuple(facts), rows=dict(check.rows))
        return _damaged(source, check, facts)


def _damaged(source: Source, check: _Check, facts: list[str]) -> Report:
    title = f"{source.path}: damaged"
    problems = tuple(check.problems)
    advice: tuple[str, ...]
    if source.owner is not None:
        advice = (
            f"Stop the process that works there ({source.owner}), then: rlaif doctor {shlex.quote(str(source.directory))}",
        )
        return Report(source.directory, title, tuple(facts), problems, advice, dict(check.rows))
    saved = collect(source, None)
    if not any(saved.rows.values()):
        advice = ("No row of a run can be read from it: nothing can be saved. Take it from a backup, or begin again.",)
    else:
        advice = (
            f"Can be saved: {in_words(saved.rows)}.",
            *(f"  {loss}" for loss in saved.losses),
            f"Next: {next_command(source.directory)}",
        )
    return Report(source.directory, title, tuple(facts), problems, advice, saved.rows, saved.lost)


@dataclass
class _Check:
    """What was found so far."""

    source: Source
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    state: str = "sound"
    bought: dict[tuple[str, str], Totals] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def about(self) -> Iterator[str]:
        """What there is."""
        prompts = self.rows["prompts"]
        if not self.rows:
            return
        yield f"prompts: {prompts:,}, {self.rows['records']:,} of them finished"
        for (model, role), totals in sorted(self.bought.items()):
            yield f"answers of {model} as {role}: {totals.calls:,}"
        for name, counts in (("failures", self.failures), ("faults", self.faults)):
            if counts:
                yield f"{name}: {', '.join(f'{count:,} {kind}' for kind, count in counts.most_common())}"
        log = 0 if self.source.log is None else os.fstat(self.source.log).st_size
        size = self.source.size + log
        yield f"size: {size:,} bytes" + (f", {size // prompts:,} a prompt" if prompts else "")
        yield from self.notes

    # The log beside the database

    def wal(self) -> None:
        """Whether SQLite sees all that was committed to the WAL."""
        source, wal = self.source, self.source.wal
        if wal is None or (wal.broken_at is None and source.size):
            return
        name, where = "run.sqlite-wal", f"byte {wal.broken_at or 0:,}"
        if not source.size:
            self.problems.append(
                "run.sqlite is empty, but run.sqlite-wal holds pages of it (do not open it with SQLite:"
                " it would delete that file)"
            )
        elif wal.lost:
            view = source.view(wal.page_size, 0)
            # A log that is begun anew may be cut off in its header: then all that it held is in the database.
            newest = source.view(wal.page_size, 0, lost=True, unverified=True)
            unseen = {frame.page for frame in wal.lost if newest.page(frame.page) != view.page(frame.page)}
            if unseen:
                commits = sum(bool(f.commit) for f in wal.lost)
                self.problems.append(
                    f"{name}, {where}: SQLite passes over everything from there, {commits:,} commits that change"
                    f" {len(unseen):,} pages"
                )
            else:
                self.notes.append(f"{name}: its header is not whole, and all that it holds is in run.sqlite")
        else:
            self.problems.append(
                f"{name}, {where}: the last transaction is not whole; cut off by a power failure before it was acknowledged,"
                " or damaged since"
            )

    # The database

    def database(self) -> None:
        """What SQLite says, and every row. Raises InputError if it is another program's or version's."""
        source = self.source
        if not source.size:
            self.state = _NOT_BEGUN
            return
        if not source.head.startswith(MAGIC):
            self.problems.append(f"run.sqlite, byte 0: no SQLite database begins with {source.head[:16]!r}")
        try:
            with source.sql() as db:
                if not_begun(db) and not self.problems:
                    self.state = _NOT_BEGUN
                    return
                self.problems += check_kind(db, source.path)
                db.execute("BEGIN")  # all that follows is of one moment, whatever is written meanwhile
                self._structure(db)
                wrong = [table for table in tables().values() if not self._table(db, table)]
                if not wrong:
                    self._spend(db)
        except UNREADABLE as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
                self.problems.append(f"run.sqlite cannot be opened here ({error}); is the directory writable?")
            else:
                self.problems.append(f"run.sqlite: SQLite cannot read it: {error}")

    def _structure(self, db: sqlite3.Connection) -> None:
        size = int(db.execute("PRAGMA page_size").fetchone()[0])
        said = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({_SHOWN + 1})")]
        if said == ["ok"]:
            return
        said = [line for text in said for line in text.splitlines() if not line.startswith("*** in database")]
        for line in said[:_SHOWN]:
            page = re.search(r"\bpage (\d+)", line)
            at = f", byte {(int(page[1]) - 1) * size:,}" if page else ""
            self.problems.append(f"run.sqlite{at}: {line}")
        if len(said) > _SHOWN:
            self.problems.append("run.sqlite: SQLite's integrity check finds more than these")

    def _table(self, db: sqlite3.Connection, table: Table) -> bool:
        """Reads every row of a table. Returns whether all were there and right."""
        wrong: list[tuple[int, str]] = []
        count, last = 0, None
        try:
            for last, *row in db.execute(
                f"SELECT rowid, {', '.join(table.columns)} FROM {table.name} NOT INDEXED ORDER BY rowid"
            ):
                reason = self._row(table, last, tuple(row))
                if reason:
                    count += 1
                    wrong += [(last, reason)] if len(wrong) < _SHOWN else []
        except UNREADABLE as error:
            after = "from its first row" if last is None else f"after row {last}"
            self.problems.append(f"{table.name} cannot be read {after}: {error}")
            return False
        for rowid, reason in wrong:
            self.problems.append(f"{table.name}, row {rowid}{self._place(table, rowid)}: {reason}")
        if count > len(wrong):
            self.problems.append(f"{table.name}: {count - len(wrong):,} more rows are damaged")
        return not wrong

    def _row(self, table: Table, rowid: int, row: Row) -> str | None:
        """What is wrong with a row; a sound one is counted."""
        values = tuple(None if place == table.alias else value for place, value in enumerate(row))
        fitting = table.fit(rowid, values)
        if fitting is None:
            return "a column holds another kind of value than it may"
        if not table.sound(row):
            return "its checksum is wrong" if table.covered else "its text is no text"
        reason = _body(table, row) or _keys(table, row)
        if reason:
            return reason
        label = label_of(table, row)
        self.rows[label] += 1
        if label == "answers":
            name = row[table.place("model")], row[table.place("role")]
            self.bought.setdefault(name, Totals()).add(table, row)
        elif label in ("failures", "faults"):
            getattr(self, label)[row[table.place("kind")]] += 1
        return None

    def _place(self, table: Table, rowid: int) -> str:
        """Where in the file a row lies, in words; empty if nothing leads there, or it is in the WAL."""
        source = self.source
        if source.owner is not None:
            return ""
        view: View = source.view(*source.page_sizes()[0])
        found = view.find(roots(view)[table.name], rowid)
        if found is None or found[0] in view.in_log:
            return ""
        return f" (byte {(found[0] - 1) * view.page_size + found[1]:,} of run.sqlite)"

    def _spend(self, db: sqlite3.Connection) -> None:
        """The running totals against the sums over the calls."""
        try:
            rows = db.execute("SELECT * FROM spend ORDER BY model, role").fetchall()
        except UNREADABLE as error:
            self.problems.append(f"spend cannot be read: {error}")
            return
        said = {(row[0], row[1]): tuple(row[3:8]) for row in rows if row[3]}
        for name in sorted({*said, *self.bought}, key=repr):
            sums = self.bought.get(name, Totals()).numbers()
            if said.get(name) != sums:
                self.problems.append(
                    f"spend, {name[0]} as {name[1]}: its totals are {said.get(name)}, the calls add up to {sums}"
                    " (calls, uncounted, prompt, cached and completion tokens)"
                )
        for row in rows:
            if crc_of(*row[:-1]) != row[-1]:
                self.problems.append(f"spend, {row[0]} as {row[1]}: its checksum is wrong")


def _body(table: Table, row: Row) -> str | None:
    """What is wrong with the body that a row holds."""
    if "body" not in table.columns:
        return None
    try:
        body = zlib.decompress(row[table.place("body")])
        if table.name in ("prompts", "records"):  # what an endpoint said is kept as it came, whatever it is
            json.loads(body)
    except zlib.error as error:
        return f"its body cannot be unpacked: {error}"
    except (ValueError, RecursionError):
        return "its body is no JSON"
    return None


def _keys(table: Table, row: Row) -> str | None:
    size = len(row[table.place("keys")]) if "keys" in table.columns else KEY_BYTES
    return None if size and size % KEY_BYTES == 0 else f"its keys are {size} bytes, not a multiple of {KEY_BYTES}"


def _surroundings(source: Source) -> Iterator[str]:
    """What stands around the database."""
    if source.owner is not None:
        yield f"in use: a process works on it ({source.owner})"
        return
    if source.wal is not None and source.wal.applied:
        yield f"left behind: run.sqlite-wal with {source.wal.applied:,} changed pages, which the next run takes in"
    names = sorted({path.name for pattern in _LEFT_BEHIND for path in source.directory.glob(pattern)})
    if names:
        yield f"left behind: {', '.join(names)}"
