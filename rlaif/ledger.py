"""The run store: one SQLite file that holds every response bought and every finished record.

A response body is committed before anybody parses it, and bound to the keys it was bought for: the i-th choice answers
the i-th key. A key whose body turns out to hold no such choice counts as unanswered and is bound again by the next body.
One thread writes, in group commits off the event loop; a caller's await returns after its commit (WAL, synchronous=FULL).
One process at a time owns a run directory: a kernel lock on `run.lock`, held for life.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, StopRun

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x726C6166  # "rlaf"
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE calls (id INTEGER PRIMARY KEY, role TEXT NOT NULL, model TEXT NOT NULL, kept_at REAL NOT NULL,
                    prompt_tokens INTEGER, completion_tokens INTEGER, free INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE answers (key TEXT PRIMARY KEY, call INTEGER, choice INTEGER, kind TEXT, message TEXT) WITHOUT ROWID;
CREATE TABLE records (ordinal INTEGER PRIMARY KEY, prompt BLOB NOT NULL, body BLOB NOT NULL);
"""
_GROUP = 512


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer on file: the response it came in, which of its choices it is, and whether its tokens are noted."""

    call: int
    choice: int
    counted: bool
    packed: bytes

    @property
    def body(self) -> bytes:
        """The response as it was received."""
        return zlib.decompress(self.packed)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without an answer, final until failures are retried."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Spend:
    """What the directory's calls have used, as far as they said: None if there are calls and none did.

    `unpriced` says that a call's price is unknown, `uncounted` how many calls did not say what they used.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    unpriced: bool
    uncounted: int


Work = Callable[[sqlite3.Connection], Any]


class Ledger:
    """The store of one run directory. Close it to give the directory back."""

    def __init__(self, directory: Path, lock: int | None) -> None:
        self.directory = directory
        self._lock = lock
        self._reader = _connect(directory / "run.sqlite", write=False)
        self._queue: queue.SimpleQueue[tuple[Work, asyncio.Future[Any] | None] | None] = queue.SimpleQueue()
        self._broken: str | None = None
        self._closed = False
        self._writer: threading.Thread | None = None
        if lock is not None:
            self._writer = threading.Thread(target=self._write, name="rlaif-ledger", daemon=True)
            self._writer.start()

    @classmethod
    def open(cls, directory: Path) -> Ledger:
        """Owns `directory` for writing, creating what is missing. Raises InputError if it cannot be had."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(directory)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write to the run directory {str(directory)!r}: {reason}") from None
        try:
            _prepare(directory / "run.sqlite")
            return cls(directory, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def read(cls, directory: Path) -> Ledger:
        """Reads an existing run without owning it. Raises InputError if there is none."""
        path = directory / "run.sqlite"
        if not path.is_file():
            raise InputError(f"{str(directory)!r} is not a run directory: it has no run.sqlite")
        _check_version(path)
        return cls(directory, None)

    def close(self) -> None:
        """Waits for pending commits and releases the directory."""
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
        self._reader.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Reading

    def lookup(self, key: str) -> Stored | Failure | None:
        """What is on file for `key`."""
        row = self._reader.execute(
            "SELECT a.call, a.choice, a.kind, a.message, c.prompt_tokens, c.body"
            " FROM answers a LEFT JOIN calls c ON c.id = a.call WHERE a.key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        if row[0] is None:
            return Failure(row[2], row[3])
        return Stored(row[0], row[1], counted=row[4] is not None, packed=row[5])

    def meta(self, name: str) -> str | None:
        """A named fact of the run."""
        row = self._reader.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def prompts(self) -> Iterator[tuple[int, str, str]]:
        """(ordinal, id, digest) of every prompt this directory has seen, in input order."""
        yield from self._reader.execute("SELECT ordinal, id, digest FROM prompts ORDER BY ordinal")

    def records(self, limit: int | None = None) -> Iterator[tuple[int, str, bytes, bytes]]:
        """(ordinal, id, prompt's body, record's body) of finished records in input order, of the first `limit` prompts."""
        rows = self._reader.execute(
            "SELECT r.ordinal, p.id, r.prompt, r.body FROM records r JOIN prompts p USING (ordinal)"
            " WHERE r.ordinal < ? ORDER BY r.ordinal",
            (2**62 if limit is None else limit,),
        )
        for ordinal, name, prompt, body in rows:
            yield ordinal, name, zlib.decompress(prompt), zlib.decompress(body)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment, whatever is written meanwhile."""
        self._reader.execute("BEGIN")
        try:
            yield
        finally:
            self._reader.execute("COMMIT")

    def spend(self) -> Spend:
        """Tokens and pricing of every call this directory has bought."""
        prompt, completion, free, calls, counted = self._reader.execute(
            "SELECT sum(prompt_tokens), sum(completion_tokens), min(free), count(*), count(prompt_tokens) FROM calls"
        ).fetchone()
        nothing = 0 if calls == 0 else None
        return Spend(
            nothing if prompt is None else prompt,
            nothing if completion is None else completion,
            unpriced=free == 0,
            uncounted=calls - counted,
        )

    # Writing: each returns after the commit, except `note_usage`

    async def keep(self, keys: Sequence[str], body: bytes, *, role: str, model: str, free: bool) -> int:
        """Stores a response body bound to `keys`, choice by choice, and returns the call's id."""

        def work(db: sqlite3.Connection) -> int:
            call = db.execute(
                "INSERT INTO calls (role, model, kept_at, free, body) VALUES (?, ?, ?, ?, ?)",
                (role, model, time.time(), int(free), zlib.compress(body, 6)),
            ).lastrowid
            db.executemany(
                "INSERT OR REPLACE INTO answers (key, call, choice) VALUES (?, ?, ?)",
                [(key, call, choice) for choice, key in enumerate(keys)],
            )
            return int(call or 0)

        return int(await self._commit(work))

    async def fail(self, keys: Sequence[str], kind: str, message: str) -> None:
        """Stores that the calls for `keys` ended without an answer."""
        message = message.encode("utf-8", "replace").decode()  # an endpoint may say anything
        rows = [(key, kind, message) for key in keys]
        sql = "INSERT OR REPLACE INTO answers (key, kind, message) VALUES (?, ?, ?)"
        await self._commit(lambda db: db.executemany(sql, rows) and None)

    async def forget_failures(self, kind: str) -> None:
        """Opens the calls again that failed with `kind`: what the user can repair is not final."""
        await self._commit(lambda db: db.execute("DELETE FROM answers WHERE kind = ?", (kind,)) and None)

    async def save_record(self, ordinal: int, prompt: bytes, body: bytes) -> None:
        """Stores a finished record."""
        row = (ordinal, zlib.compress(prompt, 6), zlib.compress(body, 6))
        await self._commit(lambda db: db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row) and None)

    def note_usage(self, call: int, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Adds the token counts of a call, with the next commit."""
        row = (prompt_tokens, completion_tokens, call)
        sql = "UPDATE calls SET prompt_tokens = ?, completion_tokens = ? WHERE id = ? AND prompt_tokens IS NULL"
        self._queue.put((lambda db: db.execute(sql, row) and None, None))

    async def begin(
        self, facts: dict[str, str], prompts: Iterable[tuple[int, str, str]], *, plan: str, forget_failures: bool = False
    ) -> None:
        """Stores the run's facts and its prompts. Records of another plan go: they are made again from the answers.

        With `forget_failures`, calls that failed are open again.
        """
        rows = list(prompts)

        def work(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))
            db.executemany("INSERT OR REPLACE INTO prompts VALUES (?, ?, ?)", rows)
            if db.execute("SELECT value FROM meta WHERE name = 'plan'").fetchone() != (plan,):
                db.execute("DELETE FROM records")
                db.execute("INSERT OR REPLACE INTO meta VALUES ('plan', ?)", (plan,))
            if forget_failures:
                db.execute("DELETE FROM answers WHERE kind IS NOT NULL")

        await self._commit(work)

    async def _commit(self, work: Work) -> Any:
        if self._broken or self._closed:
            raise StopRun("disk", self._broken or f"the ledger in {str(self.directory)!r} is closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put((work, future))
        return await asyncio.shield(future)

    def _write(self) -> None:
        db: sqlite3.Connection | None = None
        open_for_work = True
        while open_for_work:
            group = [self._queue.get()]
            while len(group) < _GROUP and not self._queue.empty():
                group.append(self._queue.get())
            open_for_work = None not in group
            jobs = [job for job in group if job is not None]
            try:
                db = db or _connect(self.directory / "run.sqlite", write=True)
                db.execute("BEGIN IMMEDIATE")
                results = [work(db) for work, _ in jobs]
                db.execute("COMMIT")
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._broken = f"cannot write to {str(self.directory / 'run.sqlite')!r}: {error}"
                if db is not None and db.in_transaction:
                    db.execute("ROLLBACK")
                for _, future in jobs:
                    _settle(future, None, StopRun("disk", self._broken))
            else:
                for (_, future), result in zip(jobs, results, strict=True):
                    _settle(future, result, None)
        if db is not None:
            db.close()


def _settle(future: asyncio.Future[Any] | None, result: Any, error: Exception | None) -> None:
    def settle(waiting: asyncio.Future[Any]) -> None:
        if waiting.done():
            return
        if error is None:
            waiting.set_result(result)
        else:
            waiting.set_exception(error)

    if future is not None and not future.get_loop().is_closed():
        future.get_loop().call_soon_threadsafe(settle, future)


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
                f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
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
        raise InputError(f"{str(path)!r} is not readable as a run's ledger: {error}") from None


def _check_version(path: Path) -> None:
    application, version, _ = _marks(path)
    if application != _APPLICATION_ID:
        raise InputError(f"{str(path)!r} is not a run's ledger; choose another directory")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{str(path)!r} was written by a newer rlaif (schema {version}, this one reads {SCHEMA_VERSION}); upgrade"
        )


def _take_lock(directory: Path) -> int:
    path = directory / "run.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise InputError(
            f"another process works in {str(directory)!r} ({owner}); wait for it or choose another directory"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    os.fsync(handle)
    return handle
