"""What happens to a run store whose file was damaged, or whose disk has no room: real files, real disks."""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import in_namespace, python
from ledgers import begin, completion, fail, flip, found, keep, key, reading, sql, using

from rlaif.errors import InputError, StopRun
from rlaif.ledger import Ledger, PromptRow, Stored

pytestmark = pytest.mark.slow

Damaged = (InputError, StopRun)


def read_everything(ledger: Ledger) -> dict[str, Any]:
    """All that a ledger can be asked, of up to 40 prompts with keys named as in `build`."""
    return {
        "prompts": ledger.prompts(),
        "finished": ledger.finished(),
        "records": list(ledger.records()),
        "finished now": list(ledger.finished_now()()),
        "unfinished": list(ledger.unfinished()),
        "spend": ledger.spend(),
        "faults": ledger.faults(),
        "facts": [ledger.meta(name) for name in ("fact", "plan", "died_with", "none")],
        "answers": [found(ledger, ordinal, key(ordinal, k)) for ordinal in range(40) for k in range(3)],
    }


async def build(ledger: Ledger, seen: list[dict[str, Any]], seed: int = 0) -> None:
    """A run of 40 prompts, half of them finished; `seen` is what is on file after each commit."""
    rng = random.Random(seed)

    def look() -> None:
        with reading(ledger.directory) as reader:
            seen.append(read_everything(reader))

    def text(size: int) -> str:
        return rng.randbytes(size // 2).hex()

    look()
    await begin(
        ledger, [PromptRow(k, f"p{k}", b"{%d %s}" % (k, text(300).encode())) for k in range(40)], facts={"fact": text(200)}
    )
    look()
    for k in range(40):
        body = completion(*(text(rng.choice([40, 400, 6000])) for _ in range(2)), tokens=(k, 7))
        await keep(ledger, k, [key(k, 0), key(k, 1)], body, free=False)
        look()
        if k % 6 == 0:
            await fail(ledger, k, [key(k, 2)], message=text(60))
            await ledger.fault(k, "broken", None, b"half", role="judge", model="m")
            look()
        if k % 2:
            await ledger.save_record(k, text(700).encode())
            look()
        if k == 25:
            sql(ledger.directory, "PRAGMA wal_checkpoint(PASSIVE)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A run as a killed process leaves it, the same one closed, and what was on file commit by commit."""
    base, seen = tmp_path_factory.mktemp("built"), list[dict[str, Any]]()

    async def work(ledger: Ledger) -> None:
        await build(ledger, seen)
        shutil.copytree(base / "run", base / "killed", ignore=shutil.ignore_patterns("*-shm", "run.lock", "run.reserve"))

    using(base / "run", work)
    return base / "killed", base / "run", seen


VALUES = {
    "an answer": "SELECT body FROM calls WHERE id = 1",
    "the last answer": "SELECT body FROM calls WHERE kind IS NULL ORDER BY id DESC LIMIT 1",
    "a key": "SELECT keys FROM calls WHERE ordinal = 7",
    "a failure": "SELECT body FROM calls WHERE kind IS NOT NULL",
    "a record": "SELECT body FROM records WHERE ordinal = 21",
    "a finished prompt": "SELECT body FROM prompts WHERE ordinal = 11",
    "an unfinished prompt": "SELECT body FROM prompts WHERE ordinal = 20",
    "a fact": "SELECT value FROM meta WHERE name = 'fact'",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_flipped_bit_is_found_when_it_is_read(built: Any, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(built[1], run)
    flip(run, sql(run, VALUES[name])[0][0])
    for door in (Ledger.read, Ledger.open):
        with closing(door(run)) as ledger, pytest.raises(Damaged, match=r"run\.sqlite' is damaged .*`rlaif doctor ") as said:
            read_everything(ledger)
        assert isinstance(said.value, InputError) or said.value.kind == "damaged"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE spend SET prompt_tokens = prompt_tokens - 1", "what 'm' has used as policy"),
        ("UPDATE spend SET free = 1", "what 'm' has used as policy"),
        ("UPDATE calls SET completion_tokens = 8 WHERE ordinal = 4", "call 6: its checksum"),
        ("UPDATE calls SET ordinal = 5 WHERE ordinal = 4", "call 6: its checksum"),
        ("UPDATE calls SET kind = 'timeout' WHERE ordinal = 4", "call 6: its checksum"),
        ("UPDATE calls SET keys = 7 WHERE ordinal = 4", "call 6: its checksum"),
        ("UPDATE prompts SET id = 'p' || 4 WHERE ordinal = 5", "prompt 6: its checksum"),
        ("UPDATE records SET body = (SELECT body FROM records WHERE ordinal = 1) WHERE ordinal = 3", "the record of prompt 4"),
        ("UPDATE meta SET value = 'another' WHERE name = 'plan'", "the fact 'plan'"),
        ("DELETE FROM prompts WHERE ordinal = 20", "prompt 21 is missing"),
        ("DELETE FROM prompts WHERE ordinal = 21", "prompt 22"),
        ("DELETE FROM records", None),
    ],
)
def test_values_that_were_changed_from_outside_are_found(built: Any, tmp_path: Path, change: str, words: str | None) -> None:
    run = tmp_path / "run"
    shutil.copytree(built[1], run)
    sql(run, change)
    if words is None:  # a whole deletion is what SQLite was asked for, no damage
        with reading(run) as ledger:
            assert read_everything(ledger)["finished"] == (0, 0)
        return
    with pytest.raises(Damaged, match=f"is damaged .*{words}.*rlaif doctor"), reading(run) as ledger:
        read_everything(ledger)


@pytest.mark.parametrize(
    "statement", ["DELETE FROM records WHERE ordinal = 21", "UPDATE records SET calls = 9 WHERE ordinal = 21"]
)
def test_records_that_their_index_does_not_name_are_found(built: Any, tmp_path: Path, statement: str) -> None:
    """The table is changed while the schema does not know of the index: as where one page of two was written."""
    run = tmp_path / "run"
    shutil.copytree(built[1], run)
    with closing(sqlite3.connect(run / "run.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        index = db.execute("SELECT * FROM sqlite_master WHERE name = 'finished'").fetchone()
        db.execute("DELETE FROM sqlite_master WHERE name = 'finished'")
    sql(run, statement)
    with closing(sqlite3.connect(run / "run.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
    with reading(run) as ledger:
        for records in (ledger.records(), ledger.finished_now()()):
            with pytest.raises(InputError, match=r"not those that its index names.*rlaif doctor"):
                list(records)


def test_a_shelf_that_cannot_be_read_is_not_an_empty_one(built: Any, tmp_path: Path) -> None:
    """Else what is on file would be bought again."""
    run = tmp_path / "run"
    shutil.copytree(built[1], run)
    sql(run, "UPDATE calls SET keys = x'00' WHERE ordinal = 4")

    async def work(ledger: Ledger) -> None:
        for _ in range(2):
            with pytest.raises(StopRun, match="call 6: its checksum"):
                ledger.lookup(4, key(4, 0))
        with pytest.raises(StopRun, match="call 99 is missing"):
            ledger.body(99)
        assert isinstance(ledger.lookup(3, key(3, 0)), Stored)

    using(run, work)


def test_a_database_that_was_emptied_keeps_its_log(built: Any, tmp_path: Path) -> None:
    """SQLite would delete the log beside an empty database, and with it what can still be saved."""
    run = tmp_path / "run"
    shutil.copytree(built[0], run)
    (run / "run.sqlite").write_bytes(b"")
    log = (run / "run.sqlite-wal").read_bytes()
    for door in (Ledger.read, Ledger.open):
        with pytest.raises(InputError, match=r"run\.sqlite' is empty.*rlaif doctor"):
            door(run)
    assert (run / "run.sqlite-wal").read_bytes() == log


def test_a_copy_that_was_cut_or_garbled_says_so_or_is_what_was_stored_or_an_older_state_of_it(
    built: Any, tmp_path: Path
) -> None:
    """Whatever lies in the file: never another error, never half of it without a word."""
    killed, closed, seen = built
    outcomes: Counter[str] = Counter()
    for seed in range(60):
        rng, run = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(rng.choice([killed, closed]), run)
        path = rng.choice([file for file in run.glob("run.sqlite*") if file.stat().st_size])
        data = bytearray(path.read_bytes())
        at, how = rng.randrange(len(data)), rng.choice(["cut", "flip", "garble", "zero", "gone"])
        if how == "cut":
            data = data[:at]
        elif how == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif how == "gone" and (run / "run.sqlite-wal").exists():
            path = run / "run.sqlite-wal"
            data.clear()
        else:
            part = data[at : at + rng.choice([1, 4, 40, 400, 4096])]
            data[at : at + len(part)] = rng.randbytes(len(part)) if how == "garble" else bytes(len(part))
        path.write_bytes(data)
        try:
            with closing(rng.choice([Ledger.read, Ledger.open])(run)) as ledger:
                got = read_everything(ledger)
        except Damaged as error:
            assert re.search(r"rlaif doctor|not a run's ledger|schema \d+", str(error)), (seed, how, path.name, at, str(error))
            outcomes["said"] += 1
        else:
            assert got in seen, (seed, how, path.name, at, [name for name in got if got[name] != seen[-1][name]])
            outcomes["all" if got == seen[-1] else "older"] += 1
        shutil.rmtree(run)
    assert min(outcomes[name] for name in ("said", "all", "older")) >= 5, outcomes


# A disk without room

BODY = """
import asyncio, json, os, random, resource, sys
from pathlib import Path
from rlaif.errors import StopRun
from rlaif.ledger import Ledger, Stored
directory, notes = Path(sys.argv[1]), Path(sys.argv[2])
stored, refused, troubles = [], [], []
def body(k):
    return json.dumps({"choices": [{"message": {"content": random.Random(k).randbytes(10_000).hex()}}]}).encode()
async def one(ledger, k):
    ledger.sent()
    try:
        await ledger.keep(k, [b"%016d" % k], body(k), role="policy", model="m", free=False)
    except StopRun as reason:
        refused.append([k, reason.kind, str(reason)])
    else:
        ledger.ended()
        stored.append(k)
async def flight(ledger, many):
    first = len(stored) + len(refused)
    await asyncio.gather(*(one(ledger, first + k) for k in range(many)))
def opened():
    ledger = Ledger.open(directory)
    ledger.on_trouble = lambda reason: troubles.append([reason.kind, (directory / "run.reserve").exists()])
    return ledger
"""

FILL = """
async def main():
    ledger = opened()
    await ledger.begin({}, None, plan="p", changed=None)
    while not troubles:
        await flight(ledger, 32)
    after_trouble = len(stored), len(refused), (directory / "run.reserve").exists()
    await flight(ledger, 64)
    after_flight = len(stored), len(refused)
    while not refused:
        await flight(ledger, 64)
    ledger.close()
    notes.write_text(json.dumps([stored, refused, troubles, after_trouble, after_flight]))
asyncio.run(main())
"""

GO_ON = """
async def main():
    before, again = json.loads(notes.read_text())[:2]
    ledger = opened()
    for k in before:
        found = ledger.lookup(k, b"%016d" % k)
        assert isinstance(found, Stored) and ledger.body(found.call) == body(k), k
    print(ledger.died_with, [k for k, *_ in again if ledger.lookup(k, b"%016d" % k) is not None])
    await ledger.begin({}, None, plan="p", changed=None)
    await asyncio.gather(*(one(ledger, k) for k, *_ in again))
    print(refused, troubles, len(stored) == len(again), ledger.spend()[0].calls == len(before) + len(again))
    ledger.close()
asyncio.run(main())
"""


def test_a_disk_that_is_full_stops_the_sending_first_and_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    disk, notes = tmp_path / "disk", tmp_path / "notes"
    disk.mkdir()
    told = in_namespace(
        f"mount -t tmpfs -o size=27m tmpfs {disk} && head -c 16M /dev/zero > {disk}/others",
        python(BODY + FILL, disk / "run", notes),
        ["rm", f"{disk}/others"],
        python(BODY + GO_ON, disk / "run", notes),
    )
    stored, refused, troubles, after_trouble, after_flight = json.loads(notes.read_text())
    assert troubles == [["disk", True]], "the sending is stopped once, before the reserve is given up"
    assert after_trouble[1:] == [0, False], "what was in flight is stored, with the reserve's room"
    assert after_flight == [after_trouble[0] + 64, 0], "and what arrives after it"
    assert {kind for _, kind, _ in refused} == {"disk"} and "full" in refused[0][2] and "Make room" in refused[0][2]
    assert not {k for k, *_ in refused} & set(stored)
    assert told.splitlines() == [f"{len(refused)} []", "[] [] True True"], "with room again the same directory goes on"


WRITE_ERROR = """
async def main():
    ledger = opened()
    await ledger.begin({}, None, plan="p", changed=None)
    await flight(ledger, 5)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, ((directory / "run.sqlite-wal").stat().st_size + 60_000, hard))
    while not refused:
        await flight(ledger, 3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    many = len(stored)
    await flight(ledger, 3)
    ledger.close()
    notes.write_text(json.dumps([stored, refused, troubles, len(stored) - many]))
asyncio.run(main())
"""


def test_a_write_error_stops_the_sending_and_what_arrives_once_it_is_gone_is_stored(tmp_path: Path) -> None:
    """A limit on the size of files (EFBIG) reaches SQLite as an error of the disk."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    subprocess.run(python(BODY + WRITE_ERROR, run, notes), check=True, timeout=60)
    _, refused, troubles, afterwards = json.loads(notes.read_text())
    assert troubles == [["disk", True]] and afterwards == 3
    assert 0 < len(refused) <= 3 and {kind for _, kind, _ in refused} == {"disk"}
    told = subprocess.run(python(BODY + GO_ON, run, notes), capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.splitlines() == [f"{len(refused)} []", "[] [] True True"]


PASSING_ERROR = """
import threading
async def main():
    ledger = opened()
    await ledger.begin({}, None, plan="p", changed=None)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    lift = threading.Timer(0.4, resource.setrlimit, (resource.RLIMIT_FSIZE, (hard, hard)))
    ledger.on_trouble = lambda reason: (troubles.append(reason.kind), lift.start())
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    while not troubles:
        await flight(ledger, 3)
    ledger.close()
    print(refused, troubles)
asyncio.run(main())
"""


def test_an_error_of_the_disk_that_passes_soon_costs_no_answer(tmp_path: Path) -> None:
    command = python(BODY + PASSING_ERROR, tmp_path / "run", tmp_path / "notes")
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "[] ['disk']\n"
