"""Measure what becomes of damaged ledgers: a real run's files are cut off or garbled, and then read in every way.

Runs of the `rlaif` command against the test server (which also fails now and then) are killed, gone on with, and held still
in the middle: what they have written by then, database and WAL, is kept. Each trial takes a copy, damages one place of one
of the two files, and asks the doctor (`examine`, and `salvage` of what it calls damaged) and the ledger (everything that can
be read of it). What is sound is known: the content at each commit that the files hold, and every row that was ever written.

The ledger must give the whole content, or that of an earlier commit (a WAL that is cut off is what a power failure leaves), or
say that it is damaged. The doctor must not call content sound that is neither, nor save a row that no run has written, and
what it saves must be read again. Everything else is a failure, and listed.

* whole, earlier, said: what the ledger did. failures: trials with one, of the ledger or of the doctor.
* doctor: trials that it called sound, and damaged. saved: the share of rows (prompts, calls, faults, records) that salvage
  brought back of those that the sound ledger holds, where there was damage: the median and the lowest.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import platform
import random
import shutil
import signal
import sqlite3
import statistics
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _server import Room, rlaif, say, serving, show, table
from helpers import write_prompts

from rlaif import doctor, results
from rlaif.doctor.wal import read_wal
from rlaif.errors import InputError, StopRun
from rlaif.ledger import Ledger, PromptRow, Stored

MAIN, LOG = "run.sqlite", "run.sqlite-wal"
TABLES = ("prompts", "calls", "faults", "records")
FORMS = ("cut off", "bytes garbled", "block of zeros", "block from elsewhere")
SHARES = (0.2, 0.5, 0.8)
_FRAME_HEAD, _PAGE = 24, 4096
_BACKFILLED = 96  # where run.sqlite-shm counts the frames that are in the database already
_HANGS_S = 120

Rows = dict[str, set[tuple[Any, ...]]]


class Content(dict[str, str]):
    """A digest of what each of the ledger's readers gives, by its name."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclass(frozen=True)
class Victim:
    """A run's files as they were at a moment, and the truth about them."""

    directory: Path
    keys: Sequence[tuple[int, bytes]]
    facts: Mapping[str, str]
    prompts: Sequence[PromptRow]
    whole: Content
    commits: frozenset[Content]
    rows: Rows


@dataclass
class Trial:
    """What was done to which file, and what came of it."""

    number: int
    file: str
    form: str
    place: str
    ledger: str = ""
    doctor: str = ""
    saved: float | None = None
    failures: list[str] = field(default_factory=list)


# Victims


def victims(room: Room, prompts: int, where: Path, shares: Sequence[float]) -> list[Victim]:
    """A run, with each of `shares` of its prompts finished."""
    path = write_prompts(where / "prompts.jsonl", prompts)
    room.set(log="counts", latency_s=0.02, fault_share=0.1, faults="server_error,cut_json")
    found = []
    for number, share in enumerate(shares):
        out, kept = where / f"run{number}", where / f"victim{number}"
        kept.mkdir()
        _run_until(path, room, int(prompts * share / 2), out)
        _run_until(path, room, int(prompts * share), out, kept)
        found.append(_known(kept))
    return found


def _run_until(prompts: Path, room: Room, done: int, out: Path, kept: Path | None = None) -> None:
    """Runs until so many prompts are finished, holds the process still, copies what it has written, and kills it."""
    with rlaif("generate", prompts, "--out", out, "--policy", room.model(), "-n", 2, "--concurrency", 8) as run:
        while run.runs() and _finished(out) < done:
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGSTOP)
        for name in (MAIN, LOG, MAIN + "-shm") if kept is not None else ():
            shutil.copy(out / name, kept / name)


def _finished(out: Path) -> int:
    try:
        with closing(Ledger.read(out)) as ledger:
            return ledger.finished()[0]
    except InputError:
        return 0


def _known(directory: Path) -> Victim:
    """The truth about the files in `directory`."""
    shm = (directory / f"{MAIN}-shm").read_bytes()
    (directory / f"{MAIN}-shm").unlink()
    (backfilled,) = struct.unpack_from("=I", shm, _BACKFILLED)
    with (directory / LOG).open("rb") as file:
        wal = read_wal(file.fileno(), _PAGE)
    assert wal is not None and wal.applied and wal.broken_at is None, "the log of a run that works is whole"
    with _copy(directory) as copy, closing(sqlite3.connect(copy / MAIN)) as db:
        rows = {name: set(db.execute(f"SELECT * FROM {name}")) for name in TABLES}
        facts = dict(db.execute("SELECT name, value FROM meta ORDER BY name"))
    keys = [(row[1], row[6][at : at + 16]) for row in sorted(rows["calls"]) for at in range(0, len(row[6]), 16)]
    prompts = [PromptRow(ordinal, name, zlib.decompress(body)) for ordinal, name, body, _ in sorted(rows["prompts"])]
    known = Victim(directory, keys, facts, prompts, Content(), frozenset(), rows)
    with _copy(directory) as copy:
        whole = content(copy, known)
    commits = set()
    for place, frame in enumerate(wal.frames[: wal.applied], 1):
        if frame.commit and place >= backfilled:  # the database holds later pages than a shorter log would
            with _copy(directory) as copy:
                os.truncate(copy / LOG, frame.at + wal.page_size)
                commits.add(content(copy, known))
    if not backfilled:
        with _copy(directory) as copy:
            os.truncate(copy / LOG, 0)
            commits.add(content(copy, known))
    sizes = [(directory / name).stat().st_size for name in (MAIN, LOG)]
    said = f"{len(commits)} states, {backfilled} of {wal.applied} frames are in the database"
    say(f"{directory.name}: database {sizes[0]:,} bytes, log {sizes[1]:,}, {said}")
    assert whole in commits
    return replace(known, whole=whole, commits=frozenset(commits))


@contextmanager
def _copy(directory: Path) -> Iterator[Path]:
    """A copy of a run's files, for one use."""
    with tempfile.TemporaryDirectory() as where:
        copy = Path(where) / "run"
        shutil.copytree(directory, copy)
        yield copy


# Reading


def content(directory: Path, known: Victim) -> Content:
    """Digests of all that the ledger's readers give. Raises what they raise."""
    with closing(Ledger.read(directory)) as ledger, ledger.snapshot():
        found = {
            "numbers": _digest([ledger.prompts(), ledger.finished(), ledger.finished(10), ledger.maybe_lost()]),
            "facts": _digest((name, ledger.meta(name)) for name in known.facts),
            "unfinished": _digest(ledger.unfinished()),
            "records": _digest(ledger.records()),
            "finished now": _digest(ledger.finished_now()()),
            "uses": _digest(ledger.uses()),
            "faults": _digest(ledger.faults().items()),
            "spend": _digest(ledger.spend()),
            "answers": _digest(_answer(ledger, *key) for key in known.keys),
        }
        begun = ledger.meta("config") is not None
    return Content(found | {"rows": _digest(results.rows(directory, "dpo") if begun else ())})


def _answer(ledger: Ledger, ordinal: int, key: bytes) -> Any:
    found = ledger.lookup(ordinal, key)
    return ledger.body(found.call) if isinstance(found, Stored) else found


def _digest(values: Iterable[Any]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for value in values:
        hasher.update(repr(value).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


# Damage


def damage(rng: random.Random, directory: Path, name: str, form: str) -> str:
    """Damages one place of a file; returns where, in words."""
    path = directory / name
    size = path.stat().st_size
    at = rng.randrange(size)
    if form == "cut off":
        os.truncate(path, at)
        return f"to {at:,} of {size:,} bytes"
    if form == "bytes garbled":
        length = min(rng.choice((1, 1, 2, 8, 64, 600)), size - at)
        new = rng.randbytes(length)
    else:
        block = rng.choice((512, _PAGE))
        at -= at % block
        length = min(block, size - at)
        new = bytes(length)
        if form == "block from elsewhere":
            other = rng.randrange(max(1, size // block)) * block
            with path.open("rb") as file:
                file.seek(other)
                new = file.read(length)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)
    return f"{len(new)} bytes from {at:,} of {size:,}"


def trial(number: int, rng: random.Random, victim: Victim) -> Trial:
    """Damages a copy, asks the doctor and the ledger, and judges them."""
    file = rng.choice((MAIN, LOG))
    form = rng.choice(FORMS)
    with _copy(victim.directory) as copy:
        done = Trial(number, file, form, f"{victim.directory.name}: {damage(rng, copy, file, form)}")
        with _limited(done):
            before = _digests(copy)
            report = _examine(done, copy, victim)
            if _digests(copy) != before:
                done.failures.append("the doctor has changed the files")
            found = _read(done, copy, victim)
            if _digests(copy) != before:
                done.failures.append("reading has changed the files")
            _compare(done, report, found, victim)
    return done


@contextmanager
def _limited(done: Trial) -> Iterator[None]:
    """Ends what takes too long."""

    def on_alarm(number: int, frame: object) -> None:
        raise TimeoutError(f"longer than {_HANGS_S} s")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(_HANGS_S)
    try:
        yield
    except TimeoutError:
        done.failures.append("hangs: " + _last_line())
    finally:
        signal.alarm(0)


def _examine(done: Trial, copy: Path, victim: Victim) -> doctor.Report | None:
    """The doctor's opinion, and what it saves. None if it says that this is no ledger, or fails."""
    try:
        report = doctor.examine(copy)
        done.doctor = "damaged" if report.damaged else "sound"
        if report.damaged:
            done.saved = _salvage(done, copy, victim)
    except InputError as error:
        done.doctor = f"refuses: {error}"
        done.failures.append(f"the doctor refuses: {_plain(error, copy)}")
        return None
    except Exception as error:
        done.doctor = "fails"
        done.failures.append(f"the doctor fails: {type(error).__name__}: {_last_line()}")
        return None
    return report


def _salvage(done: Trial, copy: Path, victim: Victim) -> float:
    """Saves what can be saved and returns its share; 0 if nothing can."""
    new = copy.with_name("saved")
    try:
        doctor.salvage(copy, new)
    except InputError as error:
        if "nothing" not in str(error) and "No row" not in str(error):
            raise
        return 0.0
    with closing(sqlite3.connect(new / MAIN)) as db:
        rows = {name: set(db.execute(f"SELECT * FROM {name}")) for name in TABLES}
    for name in TABLES:
        alias = name in ("calls", "faults")  # their ids are SQLite's own
        saved, true = ({row[1:] for row in some} if alias else some for some in (rows[name], victim.rows[name]))
        if not saved <= true:
            done.failures.append(f"salvage made {len(saved - true)} rows of {name} that no run has written")
    again = doctor.examine(new)
    if again.damaged:
        done.failures.append(f"what was saved is damaged: {again.problems[0]}")
    try:
        _export(new)
        asyncio.run(_begin(new, victim))
        content(new, victim)
    except (InputError, StopRun) as error:
        done.failures.append(f"what was saved cannot be gone on with: {_plain(error, new)}")
    return sum(map(len, rows.values())) / sum(map(len, victim.rows.values()))


def _export(directory: Path) -> None:
    """Reads the run's rows, unless what says how it was run is lost."""
    with closing(Ledger.read(directory)) as ledger:
        begun = ledger.meta("config") is not None
    if begun:
        for _ in results.rows(directory, "dpo"):
            pass


async def _begin(directory: Path, victim: Victim) -> None:
    """Begins a run on what was saved as the command does, if it is given the same input."""
    doctor.check_log(directory)
    ledger = Ledger.open(directory)
    try:
        facts = dict(victim.facts)
        prompts = None if ledger.meta("source") == facts["source"] else lambda: iter(victim.prompts)
        await ledger.begin(facts, prompts, plan=facts["plan"], changed=_refuse)
    finally:
        ledger.close()


def _refuse(before: PromptRow | None, now: PromptRow | None) -> None:
    raise InputError(f"{before} has become {now}")


def _read(done: Trial, copy: Path, victim: Victim) -> Content | None:
    """The content, None if the ledger says that it is damaged."""
    try:
        found = content(copy, victim)
    except (InputError, StopRun) as error:
        done.ledger = "said"
        if "rlaif doctor" not in str(error):
            done.ledger = "failure"
            done.failures.append(f"the ledger says only: {_plain(error, copy)}")
        return None
    except Exception as error:
        done.ledger = "failure"
        done.failures.append(f"the ledger fails: {type(error).__name__}: {error}: {_last_line()}")
        return None
    done.ledger = "whole" if found == victim.whole else "earlier" if found in victim.commits else "failure"
    if done.ledger == "failure":
        off = min(([name for name, of in found.items() if of != state[name]] for state in victim.commits), key=len)
        done.failures.append(f"the ledger gives other {', '.join(off)} than it had, and the doctor says: {done.doctor}")
    return found


def _compare(done: Trial, report: doctor.Report | None, found: Content | None, victim: Victim) -> None:
    if report is not None and not report.damaged and found not in victim.commits:
        done.failures.append("the doctor calls it sound")


def _digests(directory: Path) -> dict[str, str]:
    return {
        name: hashlib.blake2b((directory / name).read_bytes()).hexdigest() if (directory / name).exists() else "gone"
        for name in (MAIN, LOG)
    }


def _last_line() -> str:
    last = traceback.extract_tb(sys.exc_info()[2])[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _plain(error: Exception, directory: Path) -> str:
    return str(error).replace(str(directory), "DIR")


# The table


def row_of(name: Sequence[str], trials: Sequence[Trial]) -> list[str]:
    """One line of the table."""
    ledger, asked = Counter(t.ledger for t in trials), Counter(t.doctor for t in trials)
    saved = [t.saved for t in trials if t.saved is not None]
    shares = [f"{statistics.median(saved):.1%}", f"{min(saved):.1%}"] if saved else ["-", "-"]
    counts = [len(trials), *(ledger[k] for k in ("whole", "earlier", "said")), sum(bool(t.failures) for t in trials)]
    return [*name, *map(str, counts), str(asked["sound"]), str(asked["damaged"]), *shares]


COLUMNS = ("file", "damage", "trials", "whole", "earlier", "said", "failures", "doctor: sound", "damaged", "saved", "at least")


def rows(trials: Sequence[Trial]) -> list[list[str]]:
    kinds = [(file, form) for file in (MAIN, LOG) for form in FORMS]
    found = [(kind, [t for t in trials if (t.file, t.form) == kind]) for kind in kinds]
    return [row_of(kind, some) for kind, some in found if some] + [row_of(("all", ""), trials)]


def run(count: int, seed: int, prompts: int, shares: Sequence[float] = SHARES) -> list[Trial]:
    """So many trials on runs of so many prompts."""
    with tempfile.TemporaryDirectory() as where:
        with serving() as room:
            found = victims(room("damage"), prompts, Path(where), shares)
        trials = []
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            trials.append(trial(number, rng, found[number % len(found)]))
            if number % 50 == 49:
                say(f"{number + 1} trials, {sum(bool(t.failures) for t in trials)} with a failure")
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description="What becomes of damaged ledgers.")
    parser.add_argument("--trials", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--prompts", type=int, default=300, help="of each of the runs that are damaged (%(default)s)")
    args = parser.parse_args()
    trials = run(args.trials, args.seed, args.prompts)
    show(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}", table(COLUMNS, rows(trials), names=2))
    failed = [f"{t.number}. {t.file}, {t.form}, {t.place}: {'; '.join(t.failures)}" for t in trials if t.failures]
    show("\n".join(failed) if failed else "No failures.")


if __name__ == "__main__":
    main()
