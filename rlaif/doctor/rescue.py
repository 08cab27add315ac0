"""Saves the readable rows of a damaged ledger into a new one.

Rows are looked for twice: by SQL, from both ends of each table up to the damage, and then on every page of the file by
itself, whether or not anything leads there. What is guaranteed: an answer is saved if the page it lies on and its overflow
pages are whole, in the file or in the WAL. Rows of the other tables too, if besides the pages from their table's root to
theirs are whole, or the list of free pages is; but for records where a part of the WAL is lost: an old record under new
facts would be a wrong label, and to make it again from the answers costs no call.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from math import ceil
from pathlib import Path

from rlaif.doctor.pages import FREE, IN_USE, View
from rlaif.doctor.report import Report
from rlaif.doctor.sieve import Saved, Sieve, Totals, in_words
from rlaif.doctor.source import UNREADABLE, Source, check_kind, opened
from rlaif.doctor.tables import Row, Table, layout, tables
from rlaif.errors import InputError
from rlaif.ledger import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, crc_of

_LEAST_ROW = 30  # bytes that a row of calls or faults takes at the least
_WITNESSES = {
    "answers": "SELECT (SELECT count(*) FROM calls INDEXED BY calls_of)"
    " - (SELECT count(*) FROM calls INDEXED BY failed WHERE kind IS NOT NULL)",
    "failures": "SELECT count(*) FROM calls INDEXED BY failed WHERE kind IS NOT NULL",
    "records": "SELECT count(*) FROM records INDEXED BY finished",
    "meta": "SELECT count(*) FROM meta INDEXED BY sqlite_autoindex_meta_1",
}
"""Indexes know how many rows there were."""


def salvage(directory: Path, out: Path) -> Report:
    """Reads every readable row of the run in `directory` into a new run in `out`, and says what is lost.

    Raises InputError if `out` holds anything, a process works on the run, or there is nothing that could be saved.
    """
    with opened(directory, alone=True) as source, _new_ledger(out) as db:
        saved = collect(source, db)
        if not any(saved.rows.values()):
            raise InputError(f"{str(source.path)!r} holds no row of a run that could be saved")
        db.execute("DELETE FROM meta WHERE name = 'source'")  # so that the next run reads its input, for prompts that are lost
        for row in _spend(saved):
            db.execute(f"INSERT INTO spend VALUES ({', '.join('?' * len(row))}, ?)", (*row, crc_of(*row)))
    with suppress(OSError):  # `export` reads it; a resume writes it again
        shutil.copyfile(directory / "config.yaml", out / "config.yaml")
    return Report(
        out,
        f"{out / 'run.sqlite'}: what could be read of {directory / 'run.sqlite'}",
        (f"saved: {in_words(saved.rows)}",),
        saved.losses,
        ("The command of the run goes on from there with --out set to the new directory.",),
        saved.rows,
        saved.lost,
    )


def collect(source: Source, into: sqlite3.Connection | None) -> Saved:
    """Takes every row that can be read. Raises InputError if it is another program's or version's database."""
    bytes_in_all = source.size + (0 if source.log is None else os.fstat(source.log).st_size)
    most = bytes_in_all // _LEAST_ROW
    lost = source.wal is not None and bool(source.wal.lost)
    known: dict[str, int] = {}
    spend: dict[tuple[str, str], Row] = {}
    with closing(Sieve(into, most=most, records=not lost)) as sieve:
        # Where SQLite passes over a part of the WAL, the pages hold newer rows than SQL does.
        for way in (_by_pages, _by_sql) if lost else (_by_sql, _by_pages):
            way(source, sieve, known, spend)
        plausible = {name: row for name, row in spend.items() if _plausible(row, most)}
        return sieve.saved(known, plausible)


# By SQL


def _by_sql(source: Source, sieve: Sieve, known: dict[str, int], spend: dict[tuple[str, str], Row]) -> None:
    with suppress(*UNREADABLE), source.sql() as db:
        check_kind(db, source.path)
        for table in tables().values():
            for rowid, row in _read(db, table):
                sieve.take(table, rowid, row, in_use=True)
        for label, sql in _WITNESSES.items():
            with suppress(*UNREADABLE):
                known[label] = int(db.execute(sql).fetchone()[0])
        with suppress(*UNREADABLE):
            for row in db.execute("SELECT * FROM spend").fetchall():
                spend.setdefault((str(row[0]), str(row[1])), row)


def _read(db: sqlite3.Connection, table: Table) -> Iterator[tuple[int, Row]]:
    """A table's rows from its beginning up to the damage, then from its end down to it."""
    for order in ("ASC", "DESC"):
        try:
            found = db.execute(f"SELECT rowid, {', '.join(table.columns)} FROM {table.name} NOT INDEXED ORDER BY rowid {order}")
            for rowid, *row in found:
                if table.alias is not None:
                    row[table.alias] = None
                fitting = table.fit(rowid, row)
                if fitting is not None:
                    yield rowid, fitting
        except UNREADABLE:
            continue
        return


# By pages


def _by_pages(source: Source, sieve: Sieve, known: dict[str, int], spend: dict[tuple[str, str], Row]) -> None:
    for size, reserved in source.page_sizes():
        for view, newest in _views(source, size, reserved):
            _from(view, sieve, spend, newest=newest)


def _views(source: Source, page_size: int, reserved: int) -> Iterator[tuple[View, bool]]:
    """The database with as much of the WAL as can be verified; where SQLite does not use all of that, other readings too."""
    yield source.view(page_size, reserved, lost=True), True
    if source.wal is not None and source.wal.unused:
        yield source.view(page_size, reserved), False
        yield source.view(page_size, reserved, lost=True, unverified=True), False
        yield source.view(page_size, reserved, log=False), False


def _from(view: View, sieve: Sieve, spend: dict[tuple[str, str], Row], *, newest: bool) -> None:
    """Lets every row on the view's pages through the sieve."""
    marks = bytearray(view.count + 1)
    begin = roots(view)
    for table in tables().values():
        for number, data in view.leaves(begin[table.name], marks):
            _cells(view, number, data, sieve, in_use=newest, of=table)
    for entry in view.index_cells(begin["spend"]) if newest else ():
        if len(entry) >= 2:
            spend.setdefault((str(entry[0]), str(entry[1])), tuple(entry))
    all_known = view.mark_free(marks)
    for number in range(2, view.count + 1):
        if marks[number] != IN_USE:
            in_use = newest and all_known and marks[number] != FREE and number <= view.size
            _cells(view, number, view.page(number), sieve, in_use=in_use)


def _cells(view: View, number: int, data: bytes, sieve: Sieve, *, in_use: bool, of: Table | None = None) -> None:
    """The rows of one page; what is no row is noted as missing in the table `of`, if it is known whose page this is."""
    for cell in view.cells(number, data):
        fitting = [(t, row) for t in tables().values() if (row := t.fit(cell.rowid, cell.values or ())) is not None]
        for table, row in fitting:
            sieve.take(table, cell.rowid, row, in_use=in_use)
        if not fitting and of is not None and in_use:
            sieve.miss(of, cell.rowid)


def roots(view: View) -> dict[str, int]:
    """Where each table begins: as the schema says, or else as in a fresh ledger."""
    found = {name: root for name, (root, _) in layout().items()}
    for number, data in view.leaves(1, bytearray(view.count + 1)):
        for cell in view.cells(number, data):
            row = cell.values or ()
            if len(row) == 5 and row[0] == "table" and row[1] in found and isinstance(row[3], int) and 1 < row[3] <= view.count:
                found[row[1]] = row[3]
    return found


# What is written


def _plausible(row: Row, most: int) -> bool:
    """Whether this was a row of `spend`, of no more calls than there is room for."""
    return len(row) == 11 and crc_of(*row[:-1]) == row[-1] and row[3] <= most


def _spend(saved: Saved) -> Iterator[Row]:
    """The totals of the answers saved; the guesses for those that did not say are taken from the old totals, in proportion.

    Where these cannot be read, a guess is the mean of the others, and a model counts as one that costs money.
    """
    for (model, role), totals in sorted(saved.totals.items()):
        old = saved.old_spend.get((model, role))
        yield model, role, old[2] if old else 0, *totals.numbers(), *_guesses(totals, old)


def _guesses(totals: Totals, old: Row | None) -> tuple[int, int]:
    """Prompt and completion tokens of the calls that did not say."""
    known, among = (old[8:10], old[4]) if old and old[4] else ((totals.prompt_tokens, totals.completion_tokens), 0)
    share = totals.uncounted / (among or max(1, totals.calls - totals.uncounted))
    return ceil(known[0] * share), ceil(known[1] * share)


@contextmanager
def _new_ledger(out: Path) -> Iterator[sqlite3.Connection]:
    """A ledger that appears in `out` when it is whole, or not at all. Raises InputError if it cannot be made there."""
    part, path = out / ".run.sqlite.part", out / "run.sqlite"
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{str(out)!r} is not empty; nothing is overwritten: choose another directory")
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(part.unlink, missing_ok=True)
            with closing(sqlite3.connect(part, isolation_level=None)) as db:
                db.executescript(
                    f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN; {SCHEMA}"
                    f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
                )
                yield db
                db.execute("COMMIT")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
    except sqlite3.Error as error:
        raise InputError(f"cannot write {str(path)!r}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
