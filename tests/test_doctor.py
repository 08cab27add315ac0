"""Ledgers are built by the schema, damaged on purpose, examined and salvaged. Nothing stands in for SQLite or the files."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from rlaif.doctor import Report, examine, salvage
from rlaif.doctor.pages import FREE, View
from rlaif.doctor.rescue import roots
from rlaif.doctor.sieve import label_of
from rlaif.doctor.tables import Row, tables
from rlaif.doctor.wal import read_wal
from rlaif.errors import InputError
from rlaif.ledger import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, crc_of

PAGE = 4096
TRIALS = int(os.environ.get("RLAIF_TRIALS", "30"))  # more of them to look for what is rare
Rows = dict[str, Counter[Any]]
WRITTEN: dict[str, set[Any]] = {}  # every row that a test ever wrote


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def covered(table: str) -> tuple[str, ...]:
    """The columns but for an id that SQLite gives."""
    columns = tables()[table].columns
    return columns[1:] if columns[0] == "id" else columns


def put(db: sqlite3.Connection, table: str, *values: Any) -> None:
    """A row without its id, with its checksum."""
    names = covered(table)
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    row = (*values, crc_of(*values)) if names[-1] == "crc" else values
    db.execute(sql, row)
    WRITTEN.setdefault(table, set()).add(row)


def packed(seed: random.Random, size: int, **more: Any) -> bytes:
    return zlib.compress(json.dumps({"text": seed.randbytes(size // 2).hex(), **more}).encode(), 1)


def build(directory: Path, prompts: int = 30, *, seed: int = 0, large: int = 12_000) -> sqlite3.Connection:
    """A run as the ledger leaves it: a transaction a prompt, answers of all sizes, failures and records that were deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    db = connect(directory / "run.sqlite")
    db.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA secure_delete=OFF; PRAGMA wal_autocheckpoint=0; BEGIN;"
        f"{SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT; BEGIN"
    )
    for name in ("plan", "policy", "seed"):
        put(db, "meta", name, json.dumps({name: rng.random()}))
    for ordinal in range(prompts):
        put(db, "prompts", ordinal, f"p{ordinal}", packed(rng, 200, id=ordinal))
    db.execute("COMMIT")
    for ordinal in range(prompts):
        db.execute("BEGIN")
        for role in ("policy", "judge"):
            counted = rng.random() < 0.8
            tokens = (rng.randrange(99), rng.randrange(9), rng.randrange(999)) if counted else (None, None, None)
            size = large if rng.random() < 0.2 else rng.randrange(20, 600)
            kept = float(rng.randrange(10**6)) if rng.random() < 0.1 else rng.random() * 1e9
            values = (ordinal, role, "m", kept, None, rng.randbytes(32), *tokens, packed(rng, size, id=ordinal))
            put(db, "calls", *values)
            spend(db, "m", role, tokens)
        if ordinal % 5 == 0:
            put(
                db,
                "calls",
                ordinal,
                "policy",
                "m",
                rng.random(),
                "too_long",
                rng.randbytes(16),
                None,
                None,
                None,
                packed(rng, 90),
            )
            put(db, "faults", ordinal, "policy", "m", rng.random(), "reset", None, packed(rng, 50))
            put(db, "faults", ordinal, "policy", "m", rng.random(), "server_error", 503, packed(rng, 50))
        put(db, "records", ordinal, 2, packed(rng, large if ordinal % 7 == 0 else 2000, plan="old"))
        for _ in range(3):
            put(
                db,
                "calls",
                ordinal,
                "judge",
                "m",
                rng.random(),
                "timeout",
                rng.randbytes(16),
                None,
                None,
                None,
                packed(rng, 900),
            )
        db.execute("COMMIT")
    db.execute("BEGIN")
    db.execute("DELETE FROM calls WHERE kind = 'timeout'")
    db.execute("DELETE FROM records")
    for ordinal in range(0, prompts, 3):
        put(db, "records", ordinal, 2, packed(rng, 400))
    db.execute("COMMIT")
    return db


def spend(db: sqlite3.Connection, model: str, role: str, tokens: tuple[Any, ...]) -> None:
    """Adds a call to the running totals; one that did not say is guessed at 10 and 20 tokens."""
    unsaid = tokens[0] is None
    add = (1, int(unsaid), *(n or 0 for n in tokens), 10 * unsaid, 20 * unsaid)
    row = db.execute("SELECT * FROM spend WHERE model = ? AND role = ?", (model, role)).fetchone() or (0,) * 11
    numbers = [old + new for old, new in zip(row[3:-1], add, strict=True)]
    values = (model, role, 1, *numbers)
    db.execute(f"INSERT OR REPLACE INTO spend VALUES ({', '.join('?' * 11)})", (*values, crc_of(*values)))


def content(path: Path) -> Rows:
    """What a ledger holds, by table; ids are none of it."""
    with closing(connect(path)) as db:
        return {name: Counter(db.execute(f"SELECT {', '.join(covered(name))} FROM {name}")) for name in tables()} | {
            "spend": Counter(db.execute("SELECT * FROM spend"))
        }


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to copy: `closed` is one file, `killed` has a WAL of many transactions, `half-killed` both."""
    base = tmp_path_factory.mktemp("made")
    db = build(base / "closed", 20, large=9000)
    shutil.copytree(base / "closed", base / "killed", ignore=shutil.ignore_patterns("*-shm"))
    db.close()
    db = build(base / "half", 12, seed=1, large=9000)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for ordinal in range(12, 20):
        put(db, "prompts", ordinal, f"p{ordinal}", packed(random.Random(ordinal), 300))
        put(db, "calls", ordinal, "policy", "m", ordinal + 0.5, None, bytes(16), 1, 0, 2, packed(random.Random(ordinal), 5000))
        spend(db, "m", "policy", (1, 0, 2))
    shutil.copytree(base / "half", base / "half-killed", ignore=shutil.ignore_patterns("*-shm"))
    db.close()
    shutil.rmtree(base / "half")
    return base


KINDS = ("closed", "killed", "half-killed")


@pytest.fixture(scope="module")
def originals(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What each of them holds, read from a copy."""
    found = {}
    for kind in KINDS:
        copy = tmp_path_factory.mktemp("read") / kind
        shutil.copytree(made / kind, copy)
        found[kind] = content(copy / "run.sqlite")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run_is_sound_and_stays_as_it_was(made: Path, originals: dict[str, Rows], kind: str) -> None:
    before = files(made / kind)
    report = examine(made / kind)
    assert not report.damaged, report.lines()
    after = files(made / kind)
    after.pop("run.sqlite-shm", None)
    (made / kind / "run.sqlite-shm").unlink(missing_ok=True)
    assert before == after
    rows = originals[kind]
    assert report.rows["answers"] + report.rows["failures"] == rows["calls"].total()
    assert all(report.rows[name] == rows[name].total() for name in ("prompts", "faults", "records", "meta"))
    text = "\n".join(report.lines())
    assert "run.sqlite: sound" in text and "answers of m as policy: 20" in text and "reset" in text and "too_long" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run_is_saved_whole(made: Path, originals: dict[str, Rows], tmp_path: Path, kind: str) -> None:
    report = salvage(made / kind, tmp_path / "new")
    (made / kind / "run.sqlite-shm").unlink(missing_ok=True)
    assert not report.damaged, report.lines()
    assert content(tmp_path / "new" / "run.sqlite") == originals[kind]
    assert not examine(tmp_path / "new").damaged
    assert os.listdir(tmp_path / "new") == ["run.sqlite"]


# Damage

Damage = Callable[[random.Random, bytearray, list[int]], None]
"""Changes a file's bytes; the list is of the pages in use."""


def garble(rng: random.Random, data: bytearray, used: list[int]) -> None:
    size = rng.choice((1, 1, 4, 60, 900, 9000))
    start = rng.randrange(len(data))
    changed = range(start, min(len(data), start + size))
    data[changed.start : changed.stop] = rng.choice((rng.randbytes(len(changed)), bytes(len(changed))))


def truncate(rng: random.Random, data: bytearray, used: list[int]) -> None:
    del data[rng.randrange(1, len(data)) :]


def swap(rng: random.Random, data: bytearray, used: list[int]) -> None:
    """Two pages in use change places, or one is written twice: a disk that wrote elsewhere."""
    one, other = ((rng.choice(used) - 1) * PAGE for _ in range(2))
    first, second = data[one : one + PAGE], data[other : other + PAGE]
    data[one : one + PAGE] = second
    if rng.random() < 0.5:
        data[other : other + PAGE] = first


def page_1(rng: random.Random, data: bytearray, used: list[int]) -> None:
    data[:PAGE] = bytes(PAGE)


def near_the_top(rng: random.Random, data: bytearray, used: list[int]) -> None:
    """In the header, the schema, or the first pages, where the tables begin."""
    start = rng.choice((rng.randrange(100), rng.randrange(PAGE), rng.randrange(8 * PAGE)))
    changed = range(start, min(len(data), start + rng.choice((1, 1, 3, 40))))
    data[changed.start : changed.stop] = rng.randbytes(len(changed))


def differing(whole: bytes, data: bytes) -> set[int]:
    """The bytes that are not as they were."""
    parts = [at for at in range(0, len(whole), PAGE) if whole[at : at + PAGE] != data[at : at + PAGE]]
    return {at for part in parts for at in range(part, min(part + PAGE, len(whole))) if data[at : at + 1] != whole[at : at + 1]}


def readable(directory: Path) -> Rows | None:
    """What a reader finds; None if it meets an error."""
    try:
        return content(directory / "run.sqlite")
    except (sqlite3.Error, OverflowError, UnicodeDecodeError):
        return None


def judge(where: Path, original: Rows, *, may_refuse: bool, early: bool = False) -> tuple[Report | None, Rows]:
    """Examines and salvages a damaged run: no exception, nothing written or invented. The report, and what was saved.

    `early`: the files may be sound, of an earlier moment; what was deleted later may be there.
    """
    before = files(where)
    out = where.with_name("new")
    try:
        report, saved = examine(where), None
    except InputError as error:
        assert may_refuse and ("not a run's ledger" in str(error) or "schema" in str(error)), error
        return None, {name: Counter() for name in original}
    after = files(where)
    after.pop("run.sqlite-shm", None)
    (where / "run.sqlite-shm").unlink(missing_ok=True)
    assert after == before
    assert report.lines() and (
        not report.damaged or any("Next: rlaif doctor" in line or "No row" in line for line in report.lines())
    )
    with suppress(InputError):
        saved = salvage(where, out)
    (where / "run.sqlite-shm").unlink(missing_ok=True)
    if saved is None:
        assert (report.damaged or early) and not any(report.rows.values())
        return report, {name: Counter() for name in original}
    if report.damaged:
        assert (report.rows, report.lost) == (saved.rows, saved.lost), (report.lines(), saved.lines())
    assert not examine(out).damaged, examine(out).lines()
    found = content(out / "run.sqlite")
    for name in ("prompts", "calls", "faults", "records"):
        assert set(found[name]) <= WRITTEN[name] and set(found[name].values()) <= {1}
        assert early or found[name] <= original[name], (name, found[name] - original[name])
    copy = where.with_name("copy")
    shutil.copytree(where, copy)
    sound = readable(copy)
    if sound != original and not early:
        assert report.damaged, (report.lines(), sound)
    return report, found


class Watched(View):
    """A view that knows which pages it was asked for."""

    def page(self, number: int) -> bytes:
        self.__dict__.setdefault("asked", set()).add(number)
        return super().page(number)


def places(path: Path, log: Path | None = None) -> tuple[list[tuple[str, Row, set[int], set[int]]], set[int], list[int]]:
    """(label, row, the pages it lies on, the pages that lead there) of each row; the pages that list free ones; those used."""
    found = []
    with path.open("rb") as file, (log or path).open("rb") as other:
        wal = read_wal(other.fileno(), PAGE) if log else None
        view = Watched(file.fileno(), other.fileno(), page_size=PAGE, reserved=0, overlay=wal.overlay() if wal else {})
        for name, root in roots(view).items():
            for number, data in view.leaves(root, bytearray(view.count + 1)) if name in tables() else ():
                view.asked = set()
                assert view.find(root, next(view.cells(number, data)).rowid)
                way = view.asked - {number}
                view.asked = set()
                for cell in view.cells(number, data):
                    row = tables()[name].fit(cell.rowid, cell.values or ())
                    assert row is not None
                    found.append((label_of(tables()[name], row), row, view.asked | {number}, way))
                    view.asked = set()
        marks = bytearray(view.count + 1)
        view.asked = set()
        assert view.mark_free(marks) and FREE in marks
        return found, view.asked, [number for number in range(1, view.count + 1) if marks[number] != FREE]


@pytest.mark.parametrize(
    ("damage", "trials"),
    [
        *((garble, TRIALS), (page_1, 1)),
        *(
            pytest.param(*s, marks=pytest.mark.slow)
            for s in ((truncate, TRIALS // 3), (swap, TRIALS // 2), (near_the_top, TRIALS))
        ),
    ],
)
def test_what_lies_on_whole_pages_is_saved(tmp_path: Path, damage: Damage, trials: int) -> None:
    build(tmp_path / "run", 24, large=9000).close()
    path = tmp_path / "run" / "run.sqlite"
    (where_rows_lie, free_list, used), original, whole = places(path), content(path), path.read_bytes()
    assert len(where_rows_lie) == sum(original[name].total() for name in tables())
    for trial in range(trials):
        data = bytearray(whole)
        damage(random.Random(trial), data, used)
        changed = differing(whole, data)
        place = tmp_path / str(trial)
        (place / "run").mkdir(parents=True)
        (place / "run" / "run.sqlite").write_bytes(data)
        report, found = judge(place / "run", original, may_refuse=bool(changed & set(range(60, 72))))
        shutil.rmtree(place)
        if report is None:
            continue
        pages = {byte // PAGE + 1 for byte in changed}
        for label, row, on, way in where_rows_lie:
            anywhere = label in ("answers", "faults")
            if not pages & on and (anywhere or (1 not in pages and (not pages & way or not pages & free_list))):
                name = "calls" if label in ("answers", "failures") else label
                assert found[name][row[-len(covered(name)) :]], (trial, label, row[0])


def frames_of(log: Path) -> dict[int, range]:
    """The bytes of each page's newest frame."""
    with log.open("rb") as file:
        wal = read_wal(file.fileno(), PAGE)
        assert wal is not None and wal.applied == len(wal.frames)
        return {page: range(at - 24, at + PAGE) for page, at in wal.overlay().items()}


@pytest.mark.parametrize("kind", ["killed", pytest.param("half-killed", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "damage", "trials"),
    [("run.sqlite-wal", garble, TRIALS // 3), ("run.sqlite-wal", truncate, TRIALS // 6), ("run.sqlite", garble, TRIALS // 6)],
    ids=["garbled wal", "truncated wal", "garbled file"],
)
def test_answers_are_saved_from_whole_frames(
    made: Path, originals: dict[str, Rows], tmp_path: Path, kind: str, name: str, damage: Damage, trials: int
) -> None:
    where_rows_lie, _, used = places(made / kind / "run.sqlite", made / kind / "run.sqlite-wal")
    frames, whole = frames_of(made / kind / "run.sqlite-wal"), (made / kind / name).read_bytes()
    for trial in range(trials):
        data = bytearray(whole)
        damage(random.Random(trial), data, used)
        changed = differing(whole, data)
        place = tmp_path / str(trial)
        shutil.copytree(made / kind, place / "run")
        (place / "run" / name).write_bytes(data)
        header = name == "run.sqlite" and changed & set(range(60, 72))
        report, found = judge(place / "run", originals[kind], may_refuse=bool(header), early=name != "run.sqlite")
        shutil.rmtree(place)
        if report is None:
            continue
        if name == "run.sqlite-wal" and damage is garble and changed:
            assert report.damaged, (trial, min(changed), len(whole))
        for label, row, on, _ in (
            where_rows_lie if name == "run.sqlite-wal" or 1 not in {byte // PAGE + 1 for byte in changed} else ()
        ):
            lies = [frames.get(n, range((n - 1) * PAGE, n * PAGE)) for n in on]
            in_log = [n in frames for n in on]
            hit = any(
                changed & set(place) for place, logged in zip(lies, in_log, strict=True) if logged == (name != "run.sqlite")
            )
            if label in ("answers", "faults") and not hit:
                assert found["calls" if label == "answers" else label][row[1:]], (trial, label, row[0])


# What else a directory may hold


def small(directory: Path) -> Path:
    build(directory, 6, large=9000).close()
    return directory / "run.sqlite"


def change(path: Path, sql: str, *values: Any) -> None:
    with closing(connect(path)) as db:
        db.execute(sql, values)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def said(report: Report) -> str:
    return "\n".join(report.lines())


def test_without_a_run_there_is_nothing_to_examine(tmp_path: Path) -> None:
    for work in (lambda: examine(tmp_path), lambda: salvage(tmp_path, tmp_path / "new")):
        with pytest.raises(InputError, match=r"has no run\.sqlite"):
            work()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("start", ["touched", "wal mode", "schema not committed"])
def test_a_run_that_did_not_begin_is_sound(tmp_path: Path, start: str) -> None:
    path = tmp_path / "first" / "run.sqlite"
    path.parent.mkdir()
    path.touch()
    if start != "touched":
        db = connect(path)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(f"BEGIN; {SCHEMA}")
        shutil.copytree(tmp_path / "first", tmp_path / "run", ignore=shutil.ignore_patterns("*-shm"))
        db.close()
    report = examine(path.parent if start == "touched" else tmp_path / "run")
    assert not report.damaged and "did not begin" in said(report)
    with pytest.raises(InputError, match="no row"):
        salvage(report.directory, tmp_path / "new")


def test_a_wal_beside_an_empty_file_is_not_touched_and_is_read(made: Path, originals: dict[str, Rows], tmp_path: Path) -> None:
    shutil.copytree(made / "killed", tmp_path / "run")
    (tmp_path / "run" / "run.sqlite").write_bytes(b"")
    before = files(tmp_path / "run")
    report = examine(tmp_path / "run")
    assert report.damaged and "run.sqlite is empty" in said(report)
    assert not salvage(tmp_path / "run", tmp_path / "new").damaged
    assert files(tmp_path / "run") == before  # SQLite would have deleted the WAL
    assert content(tmp_path / "new" / "run.sqlite") == originals["killed"]


@pytest.mark.parametrize("text", [b"My notes.\n" * 900, b"\0" * 9000, b"SQLite format 3\0" + b"\0" * 200, b"x"])
def test_a_file_of_something_else_is_named_and_yields_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.sqlite").write_bytes(text)
    report = examine(tmp_path)
    assert report.damaged and "nothing can be saved" in said(report)
    with pytest.raises(InputError, match="no row"):
        salvage(tmp_path, tmp_path / "new")
    assert (tmp_path / "run.sqlite").read_bytes() == text and not (tmp_path / "new" / "run.sqlite").exists()


def test_another_program_s_database_is_refused(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "run.sqlite")) as db:
        db.executescript("PRAGMA application_id=7; CREATE TABLE songs (name); INSERT INTO songs VALUES ('a')")
    for work in (lambda: examine(tmp_path), lambda: salvage(tmp_path, tmp_path / "new")):
        with pytest.raises(InputError, match="is not a run's ledger: its application id is 7"):
            work()


@pytest.mark.parametrize(("version", "words"), [(SCHEMA_VERSION + 1, "newer.*upgrade"), (SCHEMA_VERSION - 1, "older")])
def test_another_version_s_ledger_is_refused(tmp_path: Path, version: int, words: str) -> None:
    change(small(tmp_path), f"PRAGMA user_version = {version}")
    for work in (lambda: examine(tmp_path), lambda: salvage(tmp_path, tmp_path / "new")):
        with pytest.raises(InputError, match=f"schema {version}") as error:
            work()
        assert re.search(words, str(error.value))


@pytest.mark.parametrize("pragma", ["application_id = 0", "application_id = 12", "user_version = 0", "user_version = 5000000"])
def test_marks_that_cannot_be_are_damage(tmp_path: Path, pragma: str) -> None:
    path = small(tmp_path / "run")
    original = content(path)
    change(path, f"PRAGMA {pragma}")
    report = examine(tmp_path / "run")
    assert report.damaged and re.search(r"byte 6[08]", said(report))
    assert not salvage(tmp_path / "run", tmp_path / "new").damaged
    assert content(tmp_path / "new" / "run.sqlite") == original


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE calls SET role = 'x' WHERE id = 2", r"calls, row 2 \(byte [\d,]+ of run.sqlite\): its checksum is wrong"),
        ("UPDATE calls SET prompt_tokens = 10000 WHERE id = 1", "calls, row 1 .*: its checksum is wrong"),
        ("UPDATE prompts SET body = x'00' WHERE ordinal = 3", "prompts, row 3 .*: its checksum is wrong"),
        ("UPDATE records SET calls = 99", "records, row 3 .*: its checksum is wrong"),
        ("UPDATE faults SET status = 'x'", "faults, row 1 .*: a column holds another kind of value"),
        (
            "UPDATE spend SET calls = calls + 1 WHERE role = 'judge'",
            r"spend, m as judge: its totals are \(7, .*add up to \(6, ",
        ),
        ("DELETE FROM spend", "spend, m as judge: its totals are None"),
        ("DELETE FROM calls WHERE id = 1", "spend, m as policy: its totals are"),
        ("DROP INDEX calls_of", "the schema of calls_of is missing"),
        ("DROP TABLE faults", "the schema of faults is missing"),
    ],
)
def test_what_sqlite_would_pass_over_is_found(tmp_path: Path, sql: str, words: str) -> None:
    path = small(tmp_path / "run")
    original = content(path)
    assert not examine(tmp_path / "run").damaged
    change(path, sql)
    report = examine(tmp_path / "run")
    assert report.damaged and re.search(words, said(report)), said(report)
    assert f"Next: rlaif doctor {tmp_path / 'run'} --salvage {tmp_path / 'run-saved'}" in said(report)
    salvage(tmp_path / "run", tmp_path / "new")
    assert not examine(tmp_path / "new").damaged
    assert all(rows <= original[name] for name, rows in content(tmp_path / "new" / "run.sqlite").items() if name != "spend")


@pytest.mark.parametrize(
    ("body", "damaged"), [(b"not packed", True), (zlib.compress(b"<html>"), False), (zlib.compress(b"\xff"), False)]
)
def test_a_body_that_is_no_json_is_as_it_came_and_one_that_cannot_be_unpacked_is_not(
    tmp_path: Path, body: bytes, damaged: bool
) -> None:
    with closing(build(tmp_path, 3)) as db:
        put(db, "calls", 0, "judge", "m", 1.5, "bad_body", bytes(16), None, None, None, body)
    assert examine(tmp_path).damaged == damaged


def test_keys_are_whole(tmp_path: Path) -> None:
    with closing(build(tmp_path, 3)) as db:
        put(db, "calls", 0, "judge", "m", 1.5, "bad_body", bytes(17), None, None, None, zlib.compress(b"{}"))
    assert "its keys are 17 bytes" in said(examine(tmp_path))


def test_what_is_lost_is_counted_and_what_it_costs_is_said(tmp_path: Path) -> None:
    path = small(tmp_path / "run")
    with closing(connect(path)) as db:
        lost = db.execute(
            "SELECT id, prompt_tokens, completion_tokens FROM calls WHERE role = 'policy' AND prompt_tokens > 0"
        ).fetchone()
        total = db.execute("SELECT uncounted FROM spend WHERE role = 'policy'").fetchone()[0]
    assert total > 0
    change(path, "UPDATE calls SET body = x'00' WHERE id = ?", lost[0])
    report = salvage(tmp_path / "run", tmp_path / "new")
    assert report.damaged and report.lost == {"prompts": 0, "answers": 1, "failures": 0, "faults": 0, "records": 0, "meta": 0}
    assert f"1 of m as policy, {lost[1]} prompt and {lost[2]} completion tokens" in said(report)
    assert "lost answers: 1; a resume buys them again where their prompt has no record" in said(report)
    (policy,) = [row for row in content(tmp_path / "new" / "run.sqlite")["spend"] if row[1] == "policy"]
    assert policy[2:5] == (1, 5, total) and policy[8:10] == (10 * total, 20 * total)


def test_a_damaged_number_of_a_call_loses_neither_it_nor_another(tmp_path: Path) -> None:
    path = small(tmp_path / "run")
    original = content(path)
    with path.open("rb") as file:
        view = View(file.fileno(), None, page_size=PAGE, reserved=0, overlay={})
        place = view.find(roots(view)["calls"], 2)
        assert place is not None
        at = (place[0] - 1) * PAGE + place[1]
    data = bytearray(path.read_bytes())
    while data[at] >= 0x80:  # the length comes first
        at += 1
    assert data[at + 1] == 2
    data[at + 1] = 1
    path.write_bytes(data)
    assert examine(tmp_path / "run").damaged
    salvage(tmp_path / "run", tmp_path / "new")
    assert content(tmp_path / "new" / "run.sqlite")["calls"] == original["calls"]


def test_a_run_that_someone_works_on_is_examined_and_not_salvaged(tmp_path: Path) -> None:
    with closing(build(tmp_path / "run", 6)) as db, open(tmp_path / "run" / "run.lock", "w+") as lock:
        lock.write(f"pid {os.getpid()} on here\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        db.execute("PRAGMA wal_autocheckpoint=1000")
        report = examine(tmp_path / "run")
        assert not report.damaged and f"a process works on it (pid {os.getpid()} on here)" in said(report)
        with pytest.raises(InputError, match=f"pid {os.getpid()} on here.*stop it first"):
            salvage(tmp_path / "run", tmp_path / "new")
        assert not (tmp_path / "new").exists()
        db.execute("UPDATE calls SET body = x'00' WHERE id = 1")
        report = examine(tmp_path / "run")
        assert report.damaged and "Stop the process" in said(report)
        fcntl.flock(lock, fcntl.LOCK_UN)
        examine(tmp_path / "run")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the doctor has let go of it


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    small(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for out in (tmp_path / "full", tmp_path / "run", tmp_path / "full" / "a"):
        before = files(out) if out.is_dir() else None
        with pytest.raises(InputError, match="choose another directory"):
            salvage(tmp_path / "run", out)
        assert (files(out) if out.is_dir() else None) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("n: 4\n")
    salvage(tmp_path / "run", tmp_path / "empty")
    assert sorted(os.listdir(tmp_path / "empty")) == ["config.yaml", "run.sqlite"]


def test_frames_of_an_earlier_round_and_of_a_transaction_cut_off_are_no_damage(tmp_path: Path) -> None:
    with closing(build(tmp_path / "first", 12)) as db:
        db.execute("PRAGMA wal_checkpoint(RESTART)")
        put(db, "faults", 1, "policy", "m", 1.5, "reset", None, zlib.compress(b"{}"))
        shutil.copytree(tmp_path / "first", tmp_path / "again", ignore=shutil.ignore_patterns("*-shm"))
        db.execute("PRAGMA cache_size=2")  # a transaction larger than this is in the log before its end
        db.execute("BEGIN")
        db.execute("UPDATE prompts SET id = id || 'x'")
        for k in range(40):
            put(db, "faults", k, "policy", "m", 2.5 + k, "reset", None, packed(random.Random(k), 6000))
        shutil.copytree(tmp_path / "first", tmp_path / "cut", ignore=shutil.ignore_patterns("*-shm"))
    assert files(tmp_path / "again") != files(tmp_path / "cut")
    for name in ("again", "cut"):
        report = examine(tmp_path / name)
        assert not report.damaged, said(report)
        assert report.rows["faults"] == 7


def test_a_log_begun_anew_whose_header_is_cut_off_is_no_damage(tmp_path: Path) -> None:
    with closing(build(tmp_path / "first", 6)) as db:
        db.execute("PRAGMA wal_checkpoint(FULL)")
        shutil.copytree(tmp_path / "first", tmp_path / "run", ignore=shutil.ignore_patterns("*-shm"))
    log = tmp_path / "run" / "run.sqlite-wal"
    log.write_bytes(log.read_bytes()[:16] + os.urandom(8) + log.read_bytes()[24:])
    report = examine(tmp_path / "run")
    assert not report.damaged and "its header is not whole, and all that it holds is in run.sqlite" in said(report)


def test_page_1_gone_all_is_saved(made: Path, originals: dict[str, Rows], tmp_path: Path) -> None:
    shutil.copytree(made / "closed", tmp_path / "run")
    data = (tmp_path / "run" / "run.sqlite").read_bytes()
    (tmp_path / "run" / "run.sqlite").write_bytes(bytes(PAGE) + data[PAGE:])
    report = examine(tmp_path / "run")
    assert "byte 0: no SQLite database begins with" in said(report) and report.rows["answers"] == 40
    salvage(tmp_path / "run", tmp_path / "new")
    assert content(tmp_path / "new" / "run.sqlite") == originals["closed"]


@pytest.mark.parametrize("size", [512, 1024, 65536])
def test_other_page_sizes_are_read_too(tmp_path: Path, size: int) -> None:
    path = small(tmp_path / "run")
    with closing(connect(path)) as db:
        db.executescript(f"PRAGMA journal_mode=DELETE; PRAGMA page_size={size}; VACUUM; PRAGMA journal_mode=WAL")
    original, data = content(path), path.read_bytes()
    for name, damaged in (("sound", data), ("beheaded", bytes(100) + data[100:])):
        path.write_bytes(damaged)
        salvage(tmp_path / "run", tmp_path / name)
        assert content(tmp_path / name / "run.sqlite")["calls"] == original["calls"]
