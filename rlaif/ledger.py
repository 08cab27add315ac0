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

import asyncio
import logging
import queue
import sqlite3
import threading
import time
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rlaif.errors import InputError, StopRun
from rlaif.prices import SpendRow, Usage, guess_tokens, is_completion, usage_of
from rlaif.rundir import RunDirectory

log = logging.getLogger("rlaif")

SCHEMA_VERSION = 2
APPLICATION_ID = 0x726C6166  # "rlaf"
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE calls (id INTEGER PRIMARY KEY, ordinal INTEGER NOT NULL, role TEXT NOT NULL, model TEXT NOT NULL,
                    kept_at REAL NOT NULL, kind TEXT, keys BLOB NOT NULL, prompt_tokens INTEGER, cached_tokens INTEGER,
                    completion_tokens INTEGER, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX calls_of ON calls(ordinal);
CREATE INDEX failed ON calls(ordinal) WHERE kind IS NOT NULL;
CREATE TABLE faults (id INTEGER PRIMARY KEY, ordinal INTEGER NOT NULL, role TEXT NOT NULL, model TEXT NOT NULL,
                     at REAL NOT NULL, kind TEXT NOT NULL, status INTEGER, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE spend (model TEXT NOT NULL, role TEXT NOT NULL, free INTEGER NOT NULL, calls INTEGER NOT NULL,
                    uncounted INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
                    completion_tokens INTEGER NOT NULL, guessed_prompt_tokens INTEGER NOT NULL,
                    guessed_completion_tokens INTEGER NOT NULL, PRIMARY KEY (model, role)) WITHOUT ROWID;
CREATE TABLE records (ordinal INTEGER PRIMARY KEY, calls INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX finished ON records(ordinal, calls);
"""
_GROUP, _BATCH, _SPAN = 512, 256, 2**16
_GATHER_S = 0.004
KEY_BYTES = 16
_DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_TRIES_TO_SAVE, _TRY_AGAIN_S = 5, 0.5
_MAYBE_BILLED = ("broken", "timeout", "bad_body", "too_big")
_ADD_CALLS, _ADD_RECORDS, _ROWS = "INSERT INTO calls VALUES ", "INSERT OR REPLACE INTO records VALUES ", 128
_ADD_CALL = f"INSERT INTO calls VALUES ({'?, ' * 11}?)"
_ADD_FAULT = "INSERT INTO faults (ordinal, role, model, at, kind, status, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer on file: the response it came in, and which of its choices it is."""

    call: int
    choice: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without an answer, final until failures are retried."""

    kind: str
    message: str


@dataclass(slots=True)
class _Shelf:
    """What one prompt has on file, by key; `used` are the responses that its record is made from."""

    answers: dict[bytes, Stored | Failure] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as it is stored; `body` is what `records.dump_prompt` wrote."""

    ordinal: int
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Use:
    """What one response used: tokens of the prompt and of the completion, and how many came from the provider's cache."""

    role: str
    model: str
    tokens: tuple[int, int]
    cached: int


class Ledger:
    """The store of one run directory. Close it to give the directory back.

    `on_trouble` is called, in the writer's thread, when the disk fails: sending has to stop.
    """

    def __init__(self, directory: Path, owned: RunDirectory | None) -> None:
        self.directory = directory
        self.on_trouble: Callable[[StopRun], object] = lambda reason: None
        self._owned = owned
        self._reader = _connect(directory / "run.sqlite", write=False)
        self._shelves: dict[int, _Shelf] = {}
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._batch: _Batch | None = None
        self._trouble: StopRun | None = None
        self._broken: StopRun | None = None
        self._closed = self._new = self._made = False
        self._last_called = self._number("SELECT max(ordinal) FROM calls", -1)
        self._calls = self._number("SELECT max(id) FROM calls", 0)
        self._spend = {(row.model, row.role): row for row in self._spend_rows()}
        self._writer: threading.Thread | None = None
        if owned is not None:
            self._writer = threading.Thread(target=self._write, name="rlaif-ledger", daemon=True)
            self._writer.start()

    @classmethod
    def open(cls, directory: Path) -> Ledger:
        """Owns `directory` for writing, creating what is missing. Raises InputError if it cannot be had."""
        made = not directory.exists()
        owned = RunDirectory.take(directory)
        try:
            new = not (directory / "run.sqlite").exists()
            _prepare(directory / "run.sqlite")
            with _damage(directory):
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
        _check_version(path)
        with _damage(directory):
            return cls(directory, None)

    def discard(self) -> None:
        """Closes, and takes a directory that held no run before away again, unless something came of it."""
        self._end_writing()
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
        self._end_writing()
        self._reader.close()
        if self._owned is not None:
            self._owned.give_back()
            self._owned = None

    def _end_writing(self) -> None:
        self._closed = True
        self._send_off()
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()

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
        with _damage(self.directory, StopRun):
            row = self._reader.execute("SELECT * FROM calls WHERE id = ?", (call,)).fetchone()
            if row is None:
                raise zlib.error(f"call {call} is missing")
            return _sound(f"call {call}", row[1:-1], row[-1])

    def meta(self, name: str) -> str | None:
        """A named fact of the run."""
        with _damage(self.directory):
            row = self._reader.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def prompts(self) -> int:
        """How many prompts this directory has seen."""
        return self._number("SELECT max(ordinal) FROM prompts", -1) + 1

    def finished(self, limit: int | None = None) -> tuple[int, int]:
        """How many of the first `limit` prompts have a record, and how many responses these were made from."""
        with _damage(self.directory):
            count, calls = self._reader.execute(
                "SELECT count(*), total(calls) FROM records INDEXED BY finished WHERE ordinal < ?", (_most(limit),)
            ).fetchone()
        return int(count), int(calls)

    def unfinished(self, limit: int | None = None) -> Iterator[PromptRow]:
        """The prompts without a record, in input order, of the first `limit`. Raises StopRun where a row is damaged."""
        end = min(self.prompts(), _most(limit))
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
        return self._between(0, _most(limit))

    def finished_now(self, limit: int | None = None) -> Callable[[], Iterator[tuple[int, str, bytes, bytes]]]:
        """A reader of the records that are finished at this moment, as `records`, whatever is added meanwhile."""
        ask = "SELECT ordinal FROM records INDEXED BY finished WHERE ordinal < ? ORDER BY ordinal"
        with _damage(self.directory):
            ordinals = array("q", (ordinal for (ordinal,) in self._reader.execute(ask, (_most(limit),))))

        def read() -> Iterator[tuple[int, str, bytes, bytes]]:
            for at in range(0, len(ordinals), _BATCH):
                wanted = ordinals[at : at + _BATCH]
                among = set(wanted)
                yield from (row for row in self._between(wanted[0], wanted[-1] + 1) if row[0] in among)

        return read

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment, whatever is written meanwhile."""
        self._reader.execute("BEGIN")
        try:
            yield
        finally:
            self._reader.execute("COMMIT")

    def spend(self) -> list[SpendRow]:
        """What this directory's calls have used so far, a row for each model and role."""
        return list((self._spend if self._writer else {(r.model, r.role): r for r in self._spend_rows()}).values())

    def uses(self, limit: int | None = None) -> Iterator[list[Use]]:
        """What each response of a prompt used, as far as it said, prompt by prompt, of the first `limit`."""
        last = min(self.prompts(), _most(limit))
        for ordinal in range(last):
            rows = self._rows(
                "SELECT role, model, prompt_tokens, completion_tokens, cached_tokens FROM calls WHERE ordinal = ?"
                " AND prompt_tokens IS NOT NULL ORDER BY id",
                (ordinal,),
            )
            yield [Use(role, model, (prompt, completion), cached) for role, model, prompt, completion, cached in rows]

    def faults(self) -> dict[str, int]:
        """How many attempts gave no answer, by kind."""
        with _damage(self.directory):
            return dict(self._reader.execute("SELECT kind, count(*) FROM faults GROUP BY kind ORDER BY kind").fetchall())

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
        job = _Call(call, ordinal, role, model, time.time(), b"".join(keys), body, packed, free, usage, asked_tokens)
        kept = await self._commit(job)
        if not kept:
            return 0
        shelf = self._shelf(ordinal)
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
        await self._commit(lambda db: db.execute(_ADD_CALL, (call, *row, crc_of(*row))) and None)
        self._shelf(ordinal).answers.update(dict.fromkeys(keys, Failure(kind, message)))

    async def fault(self, ordinal: int, kind: str, status: int | None, body: bytes, *, role: str, model: str) -> None:
        """Stores what came of an attempt that gave no answer."""
        row = (ordinal, role, model, time.time(), kind, status, pack(body))
        await self._commit(lambda db: db.execute(_ADD_FAULT, (*row, crc_of(*row))) and None)

    async def save_record(self, ordinal: int, body: bytes) -> None:
        """Stores a finished record; the prompt's shelf is put away."""
        shelf = self._shelves.pop(ordinal, None)
        await self._commit(_Finished(ordinal, len(shelf.used) if shelf else 0, pack(body)))

    async def forget_failures(self, kind: str) -> None:
        """Opens the calls again that failed with `kind`: what the user can repair is not final."""
        await self._commit(lambda db: _forget_failures(db, kind))

    async def note(self, facts: dict[str, str]) -> None:
        """Stores named facts of the run."""
        await self._commit(lambda db: _note(db, facts))

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
            _note(db, facts | {"died_with": died_with})
            if prompts is not None:
                _store_prompts(db, prompts(), changed)
            if db.execute("SELECT value FROM meta WHERE name = 'plan'").fetchone() != (plan,):
                db.execute("DELETE FROM records")
                _note(db, {"plan": plan})
            if forget_failures:
                _forget_failures(db, None)

        await self._commit(work)
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
        with _damage(self.directory, StopRun):
            rows = self._reader.execute("SELECT * FROM calls WHERE ordinal = ? ORDER BY id", (ordinal,)).fetchall()
            for call, *values, crc in rows:
                _check(f"call {call}", values, crc)
                kind, keys, body = values[4], values[5], values[9]
                bound = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
                if kind is None:
                    shelf.answers.update((key, Stored(call, choice)) for choice, key in enumerate(bound))
                else:
                    shelf.answers.update(dict.fromkeys(bound, Failure(kind, zlib.decompress(body).decode())))

    def _prompt(self, ordinal: int) -> PromptRow:
        with _damage(self.directory, StopRun):
            row = self._reader.execute("SELECT id, body, crc FROM prompts WHERE ordinal = ?", (ordinal,)).fetchone()
            if row is None:
                raise zlib.error(f"prompt {ordinal + 1} is missing")
            name, body, crc = row
            return PromptRow(ordinal, name, _sound(f"prompt {ordinal + 1}", (ordinal, name, body), crc))

    def _between(self, first: int, end: int) -> Iterator[tuple[int, str, bytes, bytes]]:
        """The records from `first` on, before `end`, a batch at a time."""
        while found := self._records(first, end):
            yield from found
            first = found[-1][0] + 1

    def _records(self, first: int, end: int) -> list[tuple[int, str, bytes, bytes]]:
        """The next batch of them, all or nothing: neither table nor index may have lost one."""
        with _damage(self.directory), self._moment():
            rows = self._reader.execute(
                "SELECT r.ordinal, r.calls, p.id, p.body, p.crc, r.body, r.crc FROM records r NOT INDEXED"
                " LEFT JOIN prompts p ON p.ordinal = r.ordinal"
                " WHERE r.ordinal >= ? AND r.ordinal < ? ORDER BY r.ordinal LIMIT ?",
                (first, end, _BATCH),
            ).fetchall()
            indexed = self._reader.execute(
                "SELECT ordinal, calls FROM records INDEXED BY finished WHERE ordinal >= ? AND ordinal < ? ORDER BY ordinal",
                (first, rows[-1][0] + 1 if len(rows) == _BATCH else end),
            ).fetchall()
            if indexed != [row[:2] for row in rows]:
                raise zlib.error(f"the records from that of prompt {first + 1} on are not those that its index names")
            return [
                (
                    ordinal,
                    name,
                    _sound(f"prompt {ordinal + 1}", (ordinal, name, prompt), prompt_crc),
                    _sound(f"the record of prompt {ordinal + 1}", (ordinal, calls, body), crc),
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
        with _damage(self.directory):
            value = self._reader.execute(sql).fetchone()[0]
        return otherwise if value is None else int(value)

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with _damage(self.directory, StopRun):
            return self._reader.execute(sql, values).fetchall()

    def _spend_rows(self) -> Iterator[SpendRow]:
        with _damage(self.directory):
            for row in self._reader.execute("SELECT * FROM spend ORDER BY model, role").fetchall():
                yield SpendRow(row[0], row[1], bool(row[2]), *row[3:])

    async def _commit(self, job: Job) -> Any:
        """What the job says, once it is committed. Jobs of one turn of the event loop travel together."""
        if self._broken or self._closed:
            raise self._broken or StopRun("disk", f"the ledger in {str(self.directory)!r} is closed")
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch(asyncio.get_running_loop(), [], [])
            batch.loop.call_later(_GATHER_S, self._send_off)
        done = batch.loop.create_future()
        batch.jobs.append(job)
        batch.done.append(done)
        return await done

    def _send_off(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._queue.put(batch)

    # The writer's thread

    def _write(self) -> None:
        db: sqlite3.Connection | None = None
        open_for_work = True
        while open_for_work:
            batches: list[_Batch] = []
            jobs = 0
            while jobs < _GROUP and (not batches or not self._queue.empty()):
                batch = self._queue.get()
                if batch is None:
                    open_for_work = False
                    break
                batches.append(batch)
                jobs += len(batch.jobs)
            if not batches:
                break
            try:
                db = db or _connect(self.directory / "run.sqlite", write=True)
                results: list[Any] | Exception = self._save(db, [job for batch in batches for job in batch.jobs])
            except Exception as error:  # whatever it is, those who wait must hear of it
                results = error
                if not isinstance(error, (InputError, StopRun)):
                    results = StopRun("disk", f"cannot write to {str(self.directory / 'run.sqlite')!r}: {error}")
                    self._broken = results
                    self.on_trouble(results)
            _settle(batches, results)
        if db is not None:
            db.close()

    def _save(self, db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Any]:
        """Commits a group. A disk that is full or fails stops the sending; then it is tried again, the reserve given up."""
        for attempt in range(_TRIES_TO_SAVE):
            spend = dict(self._spend)
            try:
                db.execute("BEGIN IMMEDIATE")
                results = _do(db, jobs, spend)
                for name, row in spend.items():
                    if self._spend.get(name) != row:
                        db.execute(f"INSERT OR REPLACE INTO spend VALUES ({'?, ' * 9}?)", astuple(row))
                db.execute("COMMIT")
            except Exception as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if not isinstance(error, sqlite3.Error) or code not in _DISK_FULL or attempt == _TRIES_TO_SAVE - 1:
                    raise
                self._stop_for(error)
            else:
                self._spend = spend
                return results
        raise AssertionError("the last attempt returns or raises")

    def _stop_for(self, error: Exception) -> None:
        """Stops the sending, once, and makes room for what is in flight."""
        if self._trouble is None:
            where = str(self.directory / "run.sqlite")
            self._trouble = StopRun("disk", f"cannot write to {where!r}: {error}. Make room there")
            self.on_trouble(self._trouble)
            if self._owned is not None:
                self._owned.give_up_reserve()
        else:
            time.sleep(_TRY_AGAIN_S)


@dataclass(slots=True)
class _Batch:
    """Jobs that travel to the writer together, and the futures of their results."""

    loop: asyncio.AbstractEventLoop
    jobs: list[Job]
    done: list[asyncio.Future[Any]]


@dataclass(frozen=True, slots=True)
class _Call:
    """A response to be stored; what it used is read from the body unless it is given."""

    id: int
    ordinal: int
    role: str
    model: str
    kept_at: float
    keys: bytes
    body: bytes
    packed: bytes
    free: bool
    usage: Usage | None
    asked_tokens: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """A record to be stored."""

    ordinal: int
    calls: int
    packed: bytes


Job = Work | _Call | _Finished


def _do(db: sqlite3.Connection, jobs: Sequence[Job], spend: dict[tuple[str, str], SpendRow]) -> list[Any]:
    """Does the jobs in one transaction, rows of a kind together, and adds to `spend`. A call's result is whether it is one."""
    calls, records, used, results = [], [], defaultdict[tuple[str, str], list[_Used]](list), []
    for job in jobs:
        result: Any = None
        if isinstance(job, _Call):
            usage, packed = job.usage or usage_of(job.body), job.packed
            result = usage is not None or is_completion(job.body)
            if result:
                tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) if usage else (None, None, None)
                row = (job.ordinal, job.role, job.model, job.kept_at, None, job.keys, *tokens, packed)
                calls.append((job.id, *row, crc_of(*row)))
                used[(job.model, job.role)].append((job, usage))
            else:
                fault = (job.ordinal, job.role, job.model, job.kept_at, "bad_body", 200, packed)
                db.execute(_ADD_FAULT, (*fault, crc_of(*fault)))
        elif isinstance(job, _Finished):
            record = (job.ordinal, job.calls, job.packed)
            records.append((*record, crc_of(*record)))
        else:
            result = job(db)
        results.append(result)
    _insert(db, _ADD_CALLS, calls)
    _insert(db, _ADD_RECORDS, records)
    for name, responses in used.items():
        spend[name] = _added(spend.get(name) or SpendRow(*name, True, 0, 0, 0, 0, 0, 0, 0), responses)
    return results


def _insert(db: sqlite3.Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts rows, many in a statement: between statements the interpreter's lock changes hands, which costs more."""
    at, many = 0, _ROWS
    while at < len(rows):
        while many > len(rows) - at:
            many //= 2
        part = rows[at : at + many]
        db.execute(sql + ", ".join([f"({', '.join('?' * len(part[0]))})"] * many), [value for row in part for value in row])
        at += many


_Used = tuple[_Call, Usage | None]


def _added(row: SpendRow, responses: Sequence[_Used]) -> SpendRow:
    """The totals with `responses`."""
    counted = [usage for _, usage in responses if usage is not None]
    silent = [call for call, usage in responses if usage is None]
    return replace(
        row,
        free=row.free and all(call.free for call, _ in responses),
        calls=row.calls + len(responses),
        uncounted=row.uncounted + len(silent),
        prompt_tokens=row.prompt_tokens + sum(u.prompt_tokens for u in counted),
        cached_tokens=row.cached_tokens + sum(u.cached_tokens for u in counted),
        completion_tokens=row.completion_tokens + sum(u.completion_tokens for u in counted),
        guessed_prompt_tokens=row.guessed_prompt_tokens + sum(call.asked_tokens for call in silent),
        guessed_completion_tokens=row.guessed_completion_tokens
        + sum(guess_tokens(call.body.decode("utf-8", "replace")) for call in silent),
    )


def pack(body: bytes) -> bytes:
    """The body as a zlib stream. A small window and memory: for a body of kilobytes, setting them up is most of the work."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 13, 6)
    return packer.compress(body) + packer.flush()


def crc_of(*values: Any) -> int:
    """The checksum of a row's columns: of their repr, bytes by their length, and then of the bytes."""
    texts = repr([len(value) if type(value) is bytes else value for value in values])
    crc = zlib.crc32(texts.encode("utf-8", "surrogatepass"))
    for value in values:
        if type(value) is bytes:
            crc = zlib.crc32(value, crc)
    return crc


def _note(db: sqlite3.Connection, facts: dict[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))


def _forget_failures(db: sqlite3.Connection, kind: str | None) -> None:
    """Takes out failed calls (of one kind, or all), and the records that were made with them."""
    which = "kind IS NOT NULL" + (" AND kind = ?" if kind else "")
    values = (kind,) if kind else ()
    db.execute(f"DELETE FROM records WHERE ordinal IN (SELECT ordinal FROM calls INDEXED BY failed WHERE {which})", values)
    db.execute(f"DELETE FROM calls INDEXED BY failed WHERE {which}", values)


def _store_prompts(
    db: sqlite3.Connection, prompts: Iterable[PromptRow], changed: Callable[[PromptRow | None, PromptRow | None], object]
) -> None:
    on_file = db.execute("SELECT ordinal, id, body FROM prompts ORDER BY ordinal")
    before = on_file.fetchone()
    new: list[tuple[Any, ...]] = []
    add = "INSERT OR REPLACE INTO prompts VALUES (?, ?, ?, ?)"
    for prompt in prompts:
        packed = pack(prompt.body)
        if before is not None and before[0] == prompt.ordinal:
            same = before[1] == prompt.id and before[2] == packed
            was = PromptRow(before[0], before[1], prompt.body if same else zlib.decompress(before[2]))
            before = on_file.fetchone()
            if was == prompt:  # perhaps packed by another version of zlib
                continue
            changed(was, prompt)
            db.execute("DELETE FROM records WHERE ordinal = ?", (prompt.ordinal,))
        new.append(_prompt_row(prompt, packed))
        if len(new) >= _BATCH:  # all stand before what is still to be read
            db.executemany(add, new)
            new.clear()
    db.executemany(add, new)
    if before is not None:
        changed(PromptRow(before[0], before[1], b""), None)


def _prompt_row(prompt: PromptRow, packed: bytes) -> tuple[Any, ...]:
    return prompt.ordinal, prompt.id, packed, crc_of(prompt.ordinal, prompt.id, packed)


def _most(limit: int | None) -> int:
    return 2**62 if limit is None else limit


def _check(what: str, values: Sequence[Any], crc: int) -> None:
    """Raises zlib.error if the checksum of a row, named by `what`, is wrong."""
    if crc_of(*values) != crc:
        raise zlib.error(f"{what}: its checksum is wrong")


def _sound(what: str, values: Sequence[Any], crc: int) -> bytes:
    """The unpacked body, which is the last of `values`, of a row whose checksum is right. Raises zlib.error if it is not."""
    _check(what, values, crc)
    return zlib.decompress(values[-1])


def _damaged(directory: Path, what: object) -> str:
    return f"{str(directory / 'run.sqlite')!r} is damaged ({what}): `rlaif doctor {directory}` says what can be saved"


@contextmanager
def _damage(directory: Path, kind: type[InputError] | type[StopRun] = InputError) -> Iterator[None]:
    """Turns what SQLite and zlib say of a damaged file into a message for the user."""
    try:
        yield
    except (sqlite3.DatabaseError, zlib.error, OverflowError, UnicodeDecodeError) as error:
        said = _damaged(directory, error)
        raise (InputError(said) if kind is InputError else StopRun("damaged", said)) from None


def _settle(batches: Sequence[_Batch], results: list[Any] | Exception) -> None:
    """Tells those who wait, in their loop's thread; results are cut into the batches'."""
    at = 0
    for batch in batches:
        part = results if isinstance(results, Exception) else results[at : at + len(batch.jobs)]
        at += len(batch.jobs)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            batch.loop.call_soon_threadsafe(_settle_one, batch.done, part)


def _settle_one(waiting: Sequence[asyncio.Future[Any]], results: list[Any] | Exception) -> None:
    for place, done in enumerate(waiting):
        if done.done():  # cancelled
            continue
        if isinstance(results, Exception):
            done.set_exception(results)
        else:
            done.set_result(results[place])


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    if write:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
    else:
        db.execute("PRAGMA query_only=ON")
    return db


def _prepare(path: Path) -> None:
    """Creates the schema in a new file, checks it in an old one."""
    if path.exists() and _marks(path) != (0, 0, 0):  # zeros: a file that was begun when the process was killed
        _check_version(path)
        return
    try:
        with closing(_connect(path, write=True)) as db:
            db.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            )
    except sqlite3.Error as error:
        raise InputError(f"cannot create {str(path)!r}: {error}") from None


def _marks(path: Path) -> tuple[int, int, int]:
    """The file's application id, schema version and number of tables. Raises InputError if it is no database."""
    try:
        with closing(_connect(path, write=False)) as db:
            ask = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
            application, version, tables = (int(db.execute(sql).fetchone()[0]) for sql in ask)
            return application, version, tables
    except sqlite3.Error as error:
        raise InputError(
            f"{str(path)!r} is not readable as a run's ledger: {error}. `rlaif doctor {path.parent}` says what can be saved"
        ) from None


def _check_version(path: Path) -> None:
    application, version, _ = _marks(path)
    if application != APPLICATION_ID:
        raise InputError(f"{str(path)!r} is not a run's ledger; choose another directory")
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise InputError(
            f"{str(path)!r} was written by {'a newer' if newer else 'an older'} rlaif (schema {version}, this one reads"
            f" {SCHEMA_VERSION}); {'upgrade' if newer else 'choose another directory, or use that version'}"
        )
