"""The ledger's file: its schema, how it is opened, and how damage in it is found and told.

Every row carries a checksum of its columns, bodies are zlib streams: what has changed is found when it is read.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlaif.errors import InputError, StopRun
from rlaif.rundir import is_owned

SCHEMA_VERSION = 2
APPLICATION_ID = 0x726C6166  # "rlaf"
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL);
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
                    guessed_completion_tokens INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (model, role)) WITHOUT ROWID;
CREATE TABLE records (ordinal INTEGER PRIMARY KEY, calls INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX finished ON records(ordinal, calls);
"""
KEY_BYTES = 16
OF_THE_DISK = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
)
_ALL = 2**62


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


def most(limit: int | None) -> int:
    """The ordinal before which the first `limit` prompts stand."""
    return _ALL if limit is None else min(limit, _ALL)


def check(what: str, values: Sequence[Any], crc: int) -> None:
    """Raises zlib.error if the checksum of a row, named by `what`, is wrong."""
    if crc_of(*values) != crc:
        raise zlib.error(f"{what}: its checksum is wrong")


def sound(what: str, values: Sequence[Any], crc: int) -> bytes:
    """The unpacked body, which is the last of `values`, of a row whose checksum is right. Raises zlib.error if it is not."""
    check(what, values, crc)
    return zlib.decompress(values[-1])


def code_of(error: Exception) -> int:
    """SQLite's primary code of an error, 0 if it is none of SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def damaged(directory: Path, what: object) -> str:
    """What a user is told of a damaged ledger."""
    return f"{str(directory / 'run.sqlite')!r} is damaged ({what}): `rlaif doctor {directory}` says what can be saved"


@contextmanager
def damage(directory: Path, kind: type[InputError] | type[StopRun] = InputError) -> Iterator[None]:
    """Turns what SQLite and zlib say of a file that is damaged, or cannot be read, into a message for the user."""
    try:
        yield
    except sqlite3.ProgrammingError:  # of this module, as is asking what is closed
        raise
    except (sqlite3.DatabaseError, zlib.error, OverflowError, UnicodeDecodeError) as error:
        said, word = damaged(directory, error), "damaged"
        if code_of(error) in OF_THE_DISK and code_of(error) != sqlite3.SQLITE_IOERR:
            said, word = f"cannot read {str(directory / 'run.sqlite')!r}: {error}", "disk"
        raise (InputError(said) if kind is InputError else StopRun(word, said)) from None


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection that writes safely (WAL, synchronous=FULL), or one that changes nothing."""
    where = path.absolute().as_uri()
    if not write and _cannot_change(path):
        where += "?immutable=1"  # then SQLite needs no file beside it
    elif not write and _is_left(path):
        where += "?mode=ro"  # or else SQLite takes the WAL in when this one closes, but not what lies behind damage in it
    db = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        db.execute("PRAGMA cell_size_check=ON")
        if write:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
        else:
            db.execute("PRAGMA query_only=ON")
    except BaseException:
        db.close()
        raise
    return db


def _cannot_change(path: Path) -> bool:
    """Whether the database is whole in its one file, nobody has it open, and it lies where this process may not write."""
    return not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()


def _is_left(path: Path) -> bool:
    """Whether a process that died has left a WAL, which is the next run's or the doctor's to deal with."""
    return _has_wal(path) and not is_owned(path.parent)


def _has_wal(path: Path) -> bool:
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def prepare(path: Path) -> None:
    """Creates the schema in a new file, checks it in an old one."""
    if path.exists() and _marks(path) != (0, 0, 0):  # zeros: a file that was begun when the process was killed
        check_version(path)
        return
    try:
        with closing(connect(path, write=True)) as db:
            db.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            )
    except sqlite3.Error as error:
        raise InputError(f"cannot create {str(path)!r}: {error}") from None


def _marks(path: Path) -> tuple[int, int, int]:
    """The file's application id, schema version and number of tables. Raises InputError if it is no database."""
    if not path.stat().st_size:  # SQLite is not asked: beside an empty database it deletes the WAL
        if _has_wal(path):
            raise InputError(
                f"{str(path)!r} is empty, but not what lies beside it: `rlaif doctor {path.parent}` says what can be saved"
            )
        return 0, 0, 0
    try:
        with closing(connect(path, write=False)) as db:
            ask = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
            application, version, tables = (int(db.execute(sql).fetchone()[0]) for sql in ask)
            return application, version, tables
    except sqlite3.Error as error:
        raise InputError(
            f"{str(path)!r} is not readable as a run's ledger: {error}. `rlaif doctor {path.parent}` says what can be saved"
        ) from None


def check_version(path: Path) -> None:
    """Raises InputError if the file is not a ledger of this schema."""
    application, version, _ = _marks(path)
    doctor = f"`rlaif doctor {path.parent}` says whether it is a damaged one"
    if application != APPLICATION_ID:
        raise InputError(f"{str(path)!r} is not a run's ledger; choose another directory, or {doctor}")
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise InputError(
            f"{str(path)!r} was written by {'a newer' if newer else 'an older'} rlaif (schema {version}, this one reads"
            f" {SCHEMA_VERSION}); {'upgrade' if newer else 'choose another directory, or use that version'}; or {doctor}"
        )
