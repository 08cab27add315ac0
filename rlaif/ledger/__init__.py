"""The run store: one SQLite file that holds every response bought and every finished record.

A response body is committed before anybody parses it, and bound to the keys it was bought for: the i-th choice answers
the i-th key. A key whose body turns out to hold no such choice counts as unanswered and is bound again by the next body.
What a prompt has bought stands together and is read at once when the prompt's turn comes (its *shelf*).
One thread writes, in group commits off the event loop; a caller's await returns after its commit (WAL, synchronous=FULL).
One process at a time owns a run directory: a kernel lock on `run.lock`, held for life.

A disk that is full or fails stops the sending first; then the reserve (a file kept for this) makes room for what is still
in flight. Every row carries a checksum, so that damage is found when it is read.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, StopRun
from rlaif.ledger.file import (
    APPLICATION_ID,
    KEY_BYTES,
    SCHEMA,
    SCHEMA_VERSION,
    check,
    check_version,
    connect,
    crc_of,
    damage,
    most,
    pack,
    prepare,
    sound,
)
from rlaif.ledger.rows import (
    ADD_CALL,
    ADD_FAULT,
    BATCH,
    Call,
    Failure,
    Finished,
    Job,
    PromptRow,
    Stored,
    Use,
    drop_failures,
    fact,
    note,
    store_prompts,
)
from rlaif.ledger.writer import Writer
from rlaif.prices import SpendRow, Usage
from rlaif.rundir import RunDirectory

__all__ = [
    "APPLICATION_ID",
    "KEY_BYTES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Failure",
    "Ledger",
    "PromptRow",
    "Stored",
    "Use",
    "crc_of",
    "pack",
]

_SPAN = 2**16
_MAYBE_BILLED = ("broken", "timeout", "bad_body", "too_big")


@dataclass(slots=True)
class _Shelf:
    """What one prompt has on file, by key; `used` are the responses that its record is made from."""

    answers: dict[bytes, Stored | Failure] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)


class Ledger:
    """The store of one run directory. Close it to give the directory back.

    `on_trouble` is called, in the writer's thread, when the disk fails: sending has to stop.
    """

    def __init__(self, directory: Path, owned: RunDirectory | None) -> None:
        self.directory = directory
        self.on_trouble: Callable[[StopRun], object] = lambda reason: None
        self._owned = owned
        self._reader = connect(directory / "run.sqlite", write=False)
        self._shelves: dict[int, _Shelf] = {}
        self._new = self._made = False
        try:
            self._last_called = self._number("SELECT max(ordinal) FROM calls", -1)
            self._calls = self._number("SELECT max(id) FROM calls", 0)
            spend = {(row.model, row.role): row for row in self._spend_rows()}
        except BaseException:
            self._reader.close()
            raise
        self._writer: Writer | None = None
        if owned is not None:
            self._writer = Writer(directory, spend, lambda reason: self.on_trouble(reason), owned.give_up_reserve)

    @classmethod
    def open(cls, directory: Path) -> Ledger:
        """Owns `directory` for writing, creating what is missing. Raises InputError if it cannot be had."""
        made = not directory.exists()
        owned = RunDirectory.take(directory)
        try:
            new = not (directory / "run.sqlite").exists()
            prepare(directory / "run.sqlite")
            with damage(directory):
                ledger = cls(directory, owned)
            ledger._new, ledger._made = new, made
        except BaseException:
            owned.give_back()
            raise
        return ledger

    @classmethod
    def read(cls, directory: Path) -> Ledger:
        """Reads an existing run without owning it. Raises InputError if there is none."""
        path = directory / "run.sqlite"
        if not path.is_file():
            raise InputError(f"{str(directory)!r} is not a run directory: it has no run.sqlite")
        check_version(path)
        with damage(directory):
            return cls(directory, None)

    def discard(self) -> None:
        """Closes, and takes a directory that held no run before away again, unless something came of it."""
        if self._writer is not None:
            self._writer.close()
        if not self._new or self._owned is None or self._holds_anything():
            self.close()
            return
        self._reader.close()
        for name in ("run.sqlite", "run.sqlite-wal", "run.sqlite-shm"):
            (self.directory / name).unlink(missing_ok=True)
        self._owned.discard()
        self._owned = None
        if self._made:
            with suppress(OSError):  # somebody put something there meanwhile
                self.directory.rmdir()

    def close(self) -> None:
        """Waits for pending commits and releases the directory."""
        if self._writer is not None:
            self._writer.close()
        self._reader.close()
        if self._owned is not None:
            self._owned.give_back()
            self._owned = None

    def _holds_anything(self) -> bool:
        """Whether a call was made, of whatever outcome. Where that cannot be told, it was."""
        asked = " OR ".join(f"EXISTS (SELECT 1 FROM {table})" for table in ("calls", "faults", "records"))
        try:
            return bool(self._reader.execute(f"SELECT {asked}").fetchone()[0])
        except sqlite3.Error:
            return True

    # Reading

    def lookup(self, ordinal: int, key: bytes) -> Stored | Failure | None:
        """What is on file for `key` of the prompt at `ordinal`; a response asked for counts as used by its record."""
        shelf = self._shelf(ordinal)
        found = shelf.answers.get(key)
        if isinstance(found, Stored):
            shelf.used.add(found.call)
        return found

    def sent(self) -> None:
        """An attempt that may cost money is sent."""
        if self._owned is not None:
            self._owned.sent()

    def ended(self) -> None:
        """The end of such an attempt is known and stored."""
        if self._owned is not None:
            self._owned.ended()

    @property
    def died_with(self) -> int:
        """How many attempts were in flight when an earlier process died without a word, until `begin` notes it."""
        return self._owned.lost if self._owned is not None else 0

    def maybe_lost(self) -> int:
        """How many calls may have been billed though their answer never arrived: broken off, or lost with a process."""
        faults = self.faults()
        return int(self.meta("died_with") or 0) + sum(faults.get(kind, 0) for kind in _MAYBE_BILLED)

    def body(self, call: int) -> bytes:
        """A response as it was received."""
        with damage(self.directory, StopRun):
            row = self._reader.execute("SELECT * FROM calls WHERE id = ?", (call,)).fetchone()
            if row is None:
                raise zlib.error(f"call {call} is missing")
            return sound(f"call {call}", row[1:-1], row[-1])

    def meta(self, name: str) -> str | None:
        """A named fact of the run."""
        with damage(self.directory):
            return fact(self._reader, name)

    def prompts(self) -> int:
        """How many prompts this directory has seen."""
        with damage(self.directory):
            last = self._reader.execute("SELECT ordinal, id, body, crc FROM prompts ORDER BY ordinal DESC LIMIT 1").fetchone()
            if last is None:
                return 0
            check(f"prompt {last[0] + 1}", last[:3], last[3])  # or else all after a garbled one would not be missed
            return int(last[0]) + 1

    def finished(self, limit: int | None = None) -> tuple[int, int]:
        """How many of the first `limit` prompts have a record, and how many responses these were made from."""
        with damage(self.directory):
            count, calls = self._reader.execute(
                "SELECT count(*), total(calls) FROM records INDEXED BY finished WHERE ordinal < ?", (most(limit),)
            ).fetchone()
        return int(count), int(calls)

    def unfinished(self, limit: int | None = None) -> Iterator[PromptRow]:
        """The prompts without a record, in input order, of the first `limit`. Raises StopRun where a row is damaged."""
        end = min(self.prompts(), most(limit))
        for first in range(0, end, _SPAN):
            finished = bytearray(min(_SPAN, end - first))
            ask = "SELECT ordinal FROM records INDEXED BY finished WHERE ordinal >= ? AND ordinal < ?"
            for (ordinal,) in self._rows(ask, (first, first + len(finished))):
                finished[ordinal - first] = 1
            at = finished.find(0)
            while at >= 0:
                yield self._prompt(first + at)
                at = finished.find(0, at + 1)

    def records(self, limit: int | None = None) -> Iterator[tuple[int, str, bytes, bytes]]:
        """(ordinal, id, prompt's body, record's body) of finished records in input order, of the first `limit` prompts.

        Raises InputError where a row is damaged.
        """
        return self._between(0, most(limit))

    def finished_now(self, limit: int | None = None) -> Callable[[], Iterator[tuple[int, str, bytes, bytes]]]:
        """A reader of the records that are finished at this moment, as `records`, whatever is added meanwhile."""
        ask = "SELECT ordinal FROM records INDEXED BY finished WHERE ordinal < ? ORDER BY ordinal"
        with damage(self.directory):
            ordinals = array("q", (ordinal for (ordinal,) in self._reader.execute(ask, (most(limit),))))

        def read() -> Iterator[tuple[int, str, bytes, bytes]]:
            for at in range(0, len(ordinals), BATCH):
                wanted = ordinals[at : at + BATCH]
                among = set(wanted)
                yield from (row for row in self._between(wanted[0], wanted[-1] + 1) if row[0] in among)

        return read

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment, whatever is written meanwhile."""
        with damage(self.directory):
            self._reader.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):  # where the file is damaged, as what was read inside has said
                self._reader.execute("ROLLBACK")

    def spend(self) -> list[SpendRow]:
        """What this directory's calls have used so far, a row for each model and role."""
        return list(self._writer.spend.values() if self._writer else self._spend_rows())

    def uses(self, limit: int | None = None) -> Iterator[list[Use]]:
        """What each response of a prompt used, as far as it said, prompt by prompt, of the first `limit`."""
        last = min(self.prompts(), most(limit))
        for ordinal in range(last):
            rows = self._rows(
                "SELECT role, model, prompt_tokens, completion_tokens, cached_tokens FROM calls WHERE ordinal = ?"
                " AND prompt_tokens IS NOT NULL ORDER BY id",
                (ordinal,),
            )
            yield [Use(role, model, (prompt, completion), cached) for role, model, prompt, completion, cached in rows]

    def faults(self) -> dict[str, int]:
        """How many attempts gave no answer, by kind."""
        found, last = Counter[str](), 0
        with damage(self.directory):
            for fault, *values, crc in self._reader.execute("SELECT * FROM faults ORDER BY id"):
                check(f"fault {fault}", values, crc)
                if fault <= last:
                    raise zlib.error(f"fault {fault} comes after fault {last}")
                found[values[4]], last = found[values[4]] + 1, fault
        return dict(sorted(found.items()))

    # Writing: each returns after the commit

    async def keep(
        self,
        ordinal: int,
        keys: Sequence[bytes],
        body: bytes,
        *,
        role: str,
        model: str,
        free: bool,
        usage: Usage | None = None,
        asked_tokens: int = 0,
    ) -> int:
        """Stores a response body bound to `keys`, choice by choice, and returns the call's id, 0 if it is no completion.

        What it used is read from the body unless it is given; where the body does not say, `asked_tokens` for the request
        and the body's length are the guess. Only then, and guarded: a body that cannot be read is stored all the same.
        """
        call = self._next_call()
        packed = pack(body)
        job = Call(call, ordinal, role, model, time.time(), b"".join(keys), body, packed, free, usage, asked_tokens)
        kept = await self._commit(job)
        if not kept:
            return 0
        self._last_called = max(self._last_called, ordinal)
        shelf = self._shelves.get(ordinal)
        if shelf is not None:  # else it is filled from the file when it is asked for
            for choice, key in enumerate(keys):
                shelf.answers[key] = Stored(call, choice)
            shelf.used.add(call)
        return call

    async def fail(self, ordinal: int, keys: Sequence[bytes], kind: str, message: str, *, role: str, model: str) -> None:
        """Stores that the calls for `keys` ended without an answer."""
        message = message.encode("utf-8", "replace").decode()  # an endpoint may say anything
        packed = pack(message.encode())
        row = (ordinal, role, model, time.time(), kind, b"".join(keys), None, None, None, packed)
        call = self._next_call()
        await self._commit(lambda db: db.execute(ADD_CALL, (call, *row, crc_of(*row))) and None)
        self._last_called = max(self._last_called, ordinal)
        if (shelf := self._shelves.get(ordinal)) is not None:
            shelf.answers.update(dict.fromkeys(keys, Failure(kind, message)))

    async def fault(self, ordinal: int, kind: str, status: int | None, body: bytes, *, role: str, model: str) -> None:
        """Stores what came of an attempt that gave no answer."""
        row = (ordinal, role, model, time.time(), kind, status, pack(body))
        await self._commit(lambda db: db.execute(ADD_FAULT, (*row, crc_of(*row))) and None)

    async def save_record(self, ordinal: int, body: bytes) -> None:
        """Stores a finished record; the prompt's shelf is put away."""
        shelf = self._shelves.pop(ordinal, None)
        await self._commit(Finished(ordinal, len(shelf.used) if shelf else 0, pack(body)))

    async def forget_failures(self, kind: str) -> None:
        """Opens the calls again that failed with `kind`: what the user can repair is not final."""
        await self._commit(lambda db: drop_failures(db, kind))
        self._shelves.clear()

    async def note(self, facts: dict[str, str]) -> None:
        """Stores named facts of the run."""
        await self._commit(lambda db: note(db, facts))

    async def begin(
        self,
        facts: dict[str, str],
        prompts: Callable[[], Iterable[PromptRow]] | None,
        *,
        plan: str,
        changed: Callable[[PromptRow | None, PromptRow | None], object],
        forget_failures: bool = False,
    ) -> None:
        """Stores the run's facts and its prompts, all or nothing. Records of another plan go: they are made again.

        `prompts()` are compared with those on file, in order, in the writer's thread; None: they are known to be the same.
        `changed(before, now)` is asked where two differ or one is missing, and raises, or accepts the new one: then its record
        is made again. With `forget_failures`, calls that failed are open again.
        """

        died_with = str(int(self.meta("died_with") or 0) + self.died_with)

        def work(db: sqlite3.Connection) -> None:
            note(db, facts | {"died_with": died_with})
            if prompts is not None:
                store_prompts(db, prompts(), changed)
            if fact(db, "plan") != plan:
                db.execute("DELETE FROM records")
                note(db, {"plan": plan})
            if forget_failures:
                drop_failures(db, None)

        await self._commit(work)
        self._shelves.clear()
        if self._owned is not None:
            self._owned.lost_is_noted()

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls

    def _shelf(self, ordinal: int) -> _Shelf:
        shelf = self._shelves.get(ordinal)
        if shelf is None:
            shelf = _Shelf()
            if ordinal <= self._last_called:
                self._fill(shelf, ordinal)
            self._shelves[ordinal] = shelf  # only now: a shelf that could not be read is not an empty one
        return shelf

    def _fill(self, shelf: _Shelf, ordinal: int) -> None:
        with damage(self.directory, StopRun):
            rows = self._reader.execute("SELECT * FROM calls WHERE ordinal = ? ORDER BY id", (ordinal,)).fetchall()
            for call, *values, crc in rows:
                check(f"call {call}", values, crc)
                kind, keys, body = values[4], values[5], values[9]
                bound = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
                if kind is None:
                    shelf.answers.update((key, Stored(call, choice)) for choice, key in enumerate(bound))
                else:
                    shelf.answers.update(dict.fromkeys(bound, Failure(kind, zlib.decompress(body).decode())))

    def _prompt(self, ordinal: int) -> PromptRow:
        with damage(self.directory, StopRun):
            row = self._reader.execute("SELECT id, body, crc FROM prompts WHERE ordinal = ?", (ordinal,)).fetchone()
            if row is None:
                raise zlib.error(f"prompt {ordinal + 1} is missing")
            name, body, crc = row
            return PromptRow(ordinal, name, sound(f"prompt {ordinal + 1}", (ordinal, name, body), crc))

    def _between(self, first: int, end: int) -> Iterator[tuple[int, str, bytes, bytes]]:
        """The records from `first` on, before `end`, a batch at a time."""
        while found := self._records(first, end):
            yield from found
            first = found[-1][0] + 1

    def _records(self, first: int, end: int) -> list[tuple[int, str, bytes, bytes]]:
        """The next batch of them, all or nothing: neither table nor index may have lost one."""
        with damage(self.directory), self._moment():
            rows = self._reader.execute(
                "SELECT r.ordinal, r.calls, p.id, p.body, p.crc, r.body, r.crc FROM records r NOT INDEXED"
                " LEFT JOIN prompts p ON p.ordinal = r.ordinal"
                " WHERE r.ordinal >= ? AND r.ordinal < ? ORDER BY r.ordinal LIMIT ?",
                (first, end, BATCH),
            ).fetchall()
            indexed = self._reader.execute(
                "SELECT ordinal, calls FROM records INDEXED BY finished WHERE ordinal >= ? AND ordinal < ? ORDER BY ordinal",
                (first, rows[-1][0] + 1 if len(rows) == BATCH else end),
            ).fetchall()
            if indexed != [row[:2] for row in rows]:
                raise zlib.error(f"the records from that of prompt {first + 1} on are not those that its index names")
            return [
                (
                    ordinal,
                    name,
                    sound(f"prompt {ordinal + 1}", (ordinal, name, prompt), prompt_crc),
                    sound(f"the record of prompt {ordinal + 1}", (ordinal, calls, body), crc),
                )
                for ordinal, calls, name, prompt, prompt_crc, body, crc in rows
            ]

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """As `snapshot`, also inside one."""
        self._reader.execute("SAVEPOINT moment")
        try:
            yield
        finally:
            self._reader.execute("RELEASE moment")

    def _number(self, sql: str, otherwise: int) -> int:
        with damage(self.directory):
            value = self._reader.execute(sql).fetchone()[0]
        return otherwise if value is None else int(value)

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with damage(self.directory, StopRun):
            return self._reader.execute(sql, values).fetchall()

    def _spend_rows(self) -> Iterator[SpendRow]:
        with damage(self.directory):
            for *row, crc in self._reader.execute("SELECT * FROM spend ORDER BY model, role").fetchall():
                check(f"what {row[0]!r} has used as {row[1]}", row, crc)
                yield SpendRow(row[0], row[1], bool(row[2]), *row[3:])

    async def _commit(self, job: Job) -> Any:
        if self._writer is None:
            raise StopRun("disk", f"the ledger in {str(self.directory)!r} is not open for writing")
        return await self._writer.commit(job)
