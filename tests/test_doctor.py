"""Ledgers are built by the schema, damaged on purpose, examined and salvaged. Nothing stands in for SQLite or the files."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from rlaif.doctor import Report, examine, salvage, why_unreadable
from rlaif.doctor.tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, crc_of, tables
from rlaif.errors import InputError

PAGE = 4096
Rows = dict[str, Counter[Any]]


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def put(db: sqlite3.Connection, table: str, *values: Any) -> None:
    """A row without its id, with its checksum."""
    names = [c for c in tables()[table].columns if (table, c) not in (("calls", "id"), ("faults", "id"))]
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    db.execute(sql, (*values, crc_of(*values)) if names[-1] == "crc" else values)


def packed(seed: random.Random, size: int, **more: Any) -> bytes:
    return zlib.compress(json.dumps({"text": seed.randbytes(size // 2).hex(), **more}).encode(), 1)


def build(directory: Path, prompts: int = 30, *, seed: int = 0, large: int = 12_000, forget: bool = True) -> sqlite3.Connection:
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
    if forget:
        db.execute("BEGIN")
        for ordinal in range(prompts):
            put(db, "records", ordinal, 1, packed(rng, 300, plan="old"))
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
        db.executescript("BEGIN; DELETE FROM records; DELETE FROM calls; COMMIT")
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
        if ordinal % 3:
            put(db, "records", ordinal, 2, packed(rng, large if ordinal % 7 == 0 else 400))
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
        return {
            name: Counter(db.execute(f"SELECT {', '.join(c for c in t.columns if (name, c) != ('calls', 'id'))} FROM {name}"))
            for name, t in tables().items()
        } | {"spend": Counter(db.execute("SELECT * FROM spend"))}


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to copy: `closed` is one file, `killed` has a WAL of many transactions, `half` is half in the file, half in the WAL."""
    base = tmp_path_factory.mktemp("made")
    db = build(base / "closed")
    shutil.copytree(base / "closed", base / "killed", ignore=shutil.ignore_patterns("*-shm"))
    db.close()
    db = build(base / "half", 20, seed=1)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for ordinal in range(20, 30):
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
    assert "run.sqlite: sound" in text and "answers of m as policy: 30" in text and "reset" in text and "too_long" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run_is_saved_whole(made: Path, originals: dict[str, Rows], tmp_path: Path, kind: str) -> None:
    report = salvage(made / kind, tmp_path / "new")
    (made / kind / "run.sqlite-shm").unlink(missing_ok=True)
    assert not report.damaged, report.lines()
    assert content(tmp_path / "new" / "run.sqlite") == originals[kind]
    assert not examine(tmp_path / "new").damaged
    assert os.listdir(tmp_path / "new") == ["run.sqlite"]
