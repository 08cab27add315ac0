"""A run directory as the doctor reads it, without changing it.

SQLite itself is not harmless to look with: asked for a database of no length it deletes the WAL beside it, also in read-only
mode. So the files are looked at first, and SQLite is asked only where that is safe:

- a process works on the run: read-only, as any reader of a WAL database (the writer does not mind);
- no WAL, or an empty one: `immutable`, which takes no lock and makes no file;
- a WAL that a killed process left: read-only. SQLite works out which of its frames count, and notes that in a new
  `run.sqlite-shm`; neither the database nor the WAL is written, since a read-only connection makes no checkpoint.
  (`immutable` would pass over the WAL: the newest answers.)
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rlaif.doctor.pages import MAGIC, View, guess_page_size, is_header, page_size_of, text
from rlaif.doctor.tables import layout, tables
from rlaif.doctor.wal import Wal, read_wal
from rlaif.errors import InputError
from rlaif.ledger import APPLICATION_ID, SCHEMA_VERSION

UNREADABLE = (sqlite3.Error, OverflowError, UnicodeDecodeError)
"""What reading a damaged database raises: Python cannot even decode some of SQLite's own messages about it."""
_USUAL_PAGE = 4096
_NEXT_VERSIONS = 100  # a schema version beyond is no version but damage


@dataclass(frozen=True)
class Source:
    """The files of one run. `owner` names the process that works on it, None if there is none."""

    directory: Path
    main: int
    log: int | None
    wal: Wal | None
    owner: str | None

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / "run.sqlite"

    @property
    def size(self) -> int:
        """Bytes of the database, without its WAL."""
        return os.fstat(self.main).st_size

    @property
    def head(self) -> bytes:
        """The file's first bytes."""
        try:
            return os.pread(self.main, 100, 0)
        except OSError:
            return b""

    def page_sizes(self) -> list[tuple[int, int]]:
        """(page size, bytes kept free at the end of each page) to read the file with: one, unless its header is in doubt."""
        head, found = self.head, []
        if head.startswith(MAGIC) and (size := page_size_of(head)) and head[20] <= size - 480:
            found.append((size, head[20]))
        if self.wal is not None and self.wal.whole_header:
            found.append((self.wal.page_size, 0))
        if not is_header(head):
            found.append((guess_page_size(self.main), 0))
        return list(dict.fromkeys([*found, (_USUAL_PAGE, 0)]))

    def view(self, page_size: int, reserved: int, *, lost: bool = False, unverified: bool = False, log: bool = True) -> View:
        """The database as SQLite sees it, or with more of the WAL, or without it."""
        wal = self.wal if log and self.wal is not None and self.wal.page_size == page_size else None
        overlay = {} if wal is None else wal.overlay(lost=lost, unverified=unverified)
        return View(self.main, self.log, page_size=page_size, reserved=reserved, overlay=overlay)

    @contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        """A connection that changes nothing. It, and what is asked of it, may raise UNREADABLE."""
        if not self.size:
            raise sqlite3.DatabaseError("the file is empty")  # asked for it, SQLite would delete the WAL
        quiet = self.owner is None and (self.log is None or not os.fstat(self.log).st_size)
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro{'&immutable=1' if quiet else ''}"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)) as db:
            db.text_factory = text
            for pragma in ("query_only=ON", "trusted_schema=OFF", "cell_size_check=ON"):
                db.execute(f"PRAGMA {pragma}")
            yield db


@contextmanager
def opened(directory: Path, *, alone: bool = False) -> Iterator[Source]:
    """The files of a run, open. With `alone`, no run can begin meanwhile. Raises InputError if there is no run."""
    path = directory / "run.sqlite"
    if not path.is_file():
        raise InputError(f"{str(directory)!r} is not a run directory: it has no run.sqlite")
    with ExitStack() as stack:
        try:
            owner = stack.enter_context(_owner(directory, alone=alone))
            if alone and owner is not None:
                raise InputError(f"another process works in {str(directory)!r} ({owner}); stop it first, then the same command")
            main = _open(path, stack)
            log_path = directory / "run.sqlite-wal"
            log = _open(log_path, stack) if log_path.is_file() else None
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
        # A writer moves on while its WAL is read; SQLite's own reading is the only one that counts then.
        wal = None if log is None or owner is not None else read_wal(log, page_size_of(_start(main)) or _USUAL_PAGE)
        yield Source(directory, main, log, wal, owner)


def check_log(directory: Path) -> None:
    """Raises InputError if SQLite would pass over committed answers, and then write over them: behind damage in the WAL, or
    beside a database that is empty. A directory without a run is fine.
    """
    if not (directory / "run.sqlite").is_file():
        return
    with opened(directory) as source:
        lost = source.wal is not None and (source.wal.lost or (not source.size and source.wal.frames))
    if lost:
        where = str(directory / "run.sqlite-wal")
        raise InputError(
            f"{where!r} is damaged, and what was bought last lies behind the damage: `rlaif doctor {directory}` says what can"
            " be saved"
        )


def check_kind(db: sqlite3.Connection, path: Path) -> list[str]:
    """What is wrong with the database's marks and schema. Raises InputError if it is another program's or version's."""
    application, version = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version"))
    found = dict(db.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if not found and not application:  # SQLite sees nothing of it: not begun, or in a damaged WAL
        return ["run.sqlite: SQLite sees no table in it"]
    if application != APPLICATION_ID and not set(tables()) & set(found):
        raise InputError(f"{str(path)!r} is not a run's ledger: its application id is {application}")
    if 0 < version != SCHEMA_VERSION and version <= SCHEMA_VERSION + _NEXT_VERSIONS and application == APPLICATION_ID:
        newer = version > SCHEMA_VERSION
        raise InputError(
            f"{str(path)!r} was written by {'a newer' if newer else 'an older'} rlaif (schema {version}, this one reads"
            f" {SCHEMA_VERSION}); {'upgrade' if newer else 'use that version'}"
        )
    wrong = []
    if application != APPLICATION_ID:
        wrong.append(f"run.sqlite, byte 68: the application id is {application}, not {APPLICATION_ID}")
    if version != SCHEMA_VERSION:
        wrong.append(f"run.sqlite, byte 60: the schema version is {version}, not {SCHEMA_VERSION}")
    bent = [name for name, (_, sql) in layout().items() if name not in found or found[name] != sql]
    if bent:
        wrong.append(f"run.sqlite, page 1: the schema of {', '.join(bent)} is missing or changed")
    return wrong


def not_begun(db: sqlite3.Connection) -> bool:
    """Whether this is what a process leaves that was killed before it stored anything."""
    ask = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    return not any(db.execute(sql).fetchone()[0] for sql in ask)


@contextmanager
def _owner(directory: Path, *, alone: bool) -> Iterator[str | None]:
    """Who holds the run's lock. It is held only with `alone`: to look must not keep a run from beginning."""
    try:
        handle = os.open(directory / "run.lock", os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
            return
        if not alone:
            fcntl.flock(handle, fcntl.LOCK_UN)
        yield None
    finally:
        os.close(handle)


def _open(path: Path, stack: ExitStack) -> int:
    handle = os.open(path, os.O_RDONLY)
    stack.callback(os.close, handle)
    return handle


def _start(handle: int) -> bytes:
    try:
        return os.pread(handle, 100, 0)
    except OSError:
        return b""
