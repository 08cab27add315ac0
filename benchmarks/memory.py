"""Measure what a run's length costs: memory of the `rlaif` process, time a prompt, and how soon a run goes on again.

Each row is one process that runs as the command line does (prompts from a JSON Lines file, progress followed, files written
at the end) against the test server on loopback, which answers at once: 2 samples a prompt in one request, then one request
of a judge that shows both. The rows of --prompts begin with an empty directory. Those of --resumed go on with a run of
which all but the last --left prompts are finished (its ledger is a small real run's, its rows repeated under other names), and
then once more with as many prompts added to its input, which has to be read and compared for that.

* first request: seconds from the start of the process to the first request at the server.
* wall: seconds to the end of the process, and of them those after the last request: the fit and the files.
* ms/prompt: wall time between the first request and the last, over the prompts done in it.
* CPU ms/prompt: user and system time of the process over the same; then in the first and the last quarter alone.
* MiB: resident memory, of which the last number is anonymous: not pages of mapped files, which the system can take back.
  The page cache of the ledger and of temporary files is the system's, and in none of these.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from _server import MIB, Moment, Room, say, serving, show, table, watch

from rlaif import progress, records
from rlaif.config import RunConfig, make_config
from rlaif.errors import StopRun
from rlaif.jobs import Run
from rlaif.judges import JudgePlan
from rlaif.ledger import KEY_BYTES, Ledger, crc_of, pack
from rlaif.ranking.schedule import Every
from rlaif.source import Source
from rlaif.types import Answers, Candidate, Prompt, Request, Verdict
from rlaif.voice import speaking

_BASE = 1000
COLUMNS = (
    "prompts",
    "first request s",
    "wall s",
    "after the last request",
    "ms/prompt",
    "CPU ms/prompt",
    "first quarter",
    "last quarter",
    "peak MiB",
    "at the end",
    "anonymous",
    "ledger MiB",
)


class Comparison:
    """Shows both candidates once: one call a prompt."""

    name, arity, schedule, digest = "comparison", None, Every(None), "comparison"

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        text = "\n\n".join([prompt.text, *(c.text for c in shown), "Which is better? [[A]] or [[B]]"])
        request = Request(({"role": "user", "content": text},), temperature=0.0, max_tokens=50, ordinal=prompt.ordinal)
        choice = await self._answers.answer(request)
        first = "[[A]]" in choice.text
        return Verdict(self.name, tuple(c.id for c in shown), (float(first), float(not first)), "vote")

    def stop(self, reason: StopRun) -> None:
        """The model is told."""

    async def close(self) -> None:
        """Nothing to free."""


def settings(prompts: Path, out: Path, model: str) -> RunConfig:
    """What every run here is told to do."""
    given = {"command": "generate", "prompts": str(prompts), "out": str(out), "policy": [model], "n": 2}
    return make_config(given)


def work(prompts: Path, out: Path, model: str) -> None:
    """The process that is measured: the run as the command line does it."""
    plan = JudgePlan(model, None, Every(None), lambda answers, ledger, tally: Comparison(answers))  # type: ignore[arg-type]
    with speaking("text") as face:
        progress.follow(Run(settings(prompts, out, model), judges=[plan]), face)


def prompt_of(ordinal: int) -> Prompt:
    text = f"Question {ordinal}: " + "why is the sky blue and the grass green? " * 5
    return Prompt(f"p{ordinal}", ({"role": "user", "content": text},), ordinal=ordinal)


def write_prompts(path: Path, first: int, end: int) -> Path:
    """Adds prompts to a file."""
    with path.open("a", encoding="utf-8") as file:
        for prompt in map(prompt_of, range(first, end)):
            file.write(json.dumps({"id": prompt.id, "prompt": prompt.text}) + "\n")
    return path


def measure(prompts: Path, out: Path, room: Room) -> list[Moment]:
    command = [sys.executable, __file__, "--work", str(prompts), str(out), room.model()]
    return watch(command, room.count)


def lengthen(prompts: Path, out: Path, model: str, *, base: int, to: int, left: int) -> None:
    """Makes the finished run of `base` prompts one of `to`, all but the last `left` finished."""
    write_prompts(prompts, base, to)
    with closing(sqlite3.connect(out / "run.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        bought: list[list[tuple[Any, ...]]] = [[] for _ in range(base)]
        for row in db.execute(
            "SELECT ordinal, role, model, kept_at, kind, keys, prompt_tokens, cached_tokens, completion_tokens, body"
            " FROM calls ORDER BY id"
        ):
            bought[row[0]].append(row[1:])
        finished = db.execute("SELECT calls, body FROM records ORDER BY ordinal").fetchall()
        for first in range(base, to, 5000):
            ordinals = range(first, min(first + 5000, to))
            done = [ordinal for ordinal in ordinals if ordinal < to - left]
            db.execute("BEGIN")
            db.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", map(_prompt_row, ordinals))
            db.executemany(
                f"INSERT INTO calls VALUES (NULL{', ?' * 11})", (row for k in done for row in _call_rows(k, bought[k % base]))
            )
            db.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?)", (_record_row(k, k % base, *finished[k % base]) for k in done)
            )
            db.execute("COMMIT")
        db.execute("BEGIN")
        sums = db.execute(
            "SELECT count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), model, role FROM calls"
            " GROUP BY model, role"
        )
        for calls, prompt, cached, completion, *name in sums.fetchall():
            spent = (*name, 0, calls, 0, prompt, cached, completion, 0, 0)
            db.execute(f"REPLACE INTO spend VALUES ({'?, ' * 10}?)", (*spent, crc_of(*spent)))
        fact = "source", Source(settings(prompts, out, model)).fingerprint()
        db.execute("REPLACE INTO meta VALUES (?, ?, ?)", (*fact, crc_of(*fact)))
        db.execute("COMMIT")


def _prompt_row(ordinal: int) -> tuple[Any, ...]:
    prompt = prompt_of(ordinal)
    row = ordinal, prompt.id, pack(records.dump_prompt(prompt))
    return *row, crc_of(*row)


def _call_rows(ordinal: int, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for role, model, kept_at, kind, keys, *rest in calls:
        marks = (
            hashlib.blake2b(f"{ordinal} {role} {at}".encode(), digest_size=KEY_BYTES) for at in range(0, len(keys), KEY_BYTES)
        )
        row = ordinal, role, model, kept_at, kind, b"".join(mark.digest() for mark in marks), *rest
        yield *row, crc_of(*row)


def _record_row(ordinal: int, like: int, calls: int, packed: bytes) -> tuple[Any, ...]:
    body = zlib.decompress(packed).replace(f'"p{like}/'.encode(), f'"p{ordinal}/'.encode())
    row = ordinal, calls, pack(body)
    return *row, crc_of(*row)


def row_of(name: str, prompts: int, out: Path, moments: Sequence[Moment]) -> list[str]:
    """One line of the table; `prompts` is how many were worked on."""
    before, end = moments[0].seen, moments[-1]
    sent = end.seen - before
    first = next(m for m in moments if m.seen > before)
    quarter, rest, last = (next(m for m in moments if m.seen - before >= sent * share) for share in (0.25, 0.75, 1.0))

    def each_ms(of: str, begin: Moment, until: Moment) -> str:
        done = max(until.seen - begin.seen, 1) / sent * prompts
        return f"{(getattr(until, of) - getattr(begin, of)) / done * 1000:.2f}"

    cpu_ms = [each_ms("cpu_s", *span) for span in ((first, last), (first, quarter), (rest, last))]
    times = [f"{first.at:.1f}", f"{end.at:.1f}", f"{end.at - last.at:.1f}", each_ms("at", first, last), *cpu_ms]
    size = sum(path.stat().st_size for path in out.glob("run.sqlite*")) / MIB
    return [name, *times, f"{end.peak:.1f}", f"{end.resident:.1f}", f"{end.anonymous:.1f}", f"{size:.0f}"]


def fresh(prompts: int, room: Room, where: Path) -> list[str]:
    """Runs so many prompts for real."""
    path, out = write_prompts(where / "prompts.jsonl", 0, prompts), where / "run"
    return row_of(f"{prompts:,}", prompts, out, measure(path, out, room))


def resumed(prompts: int, left: int, room: Room, where: Path, *, base: int = _BASE) -> list[list[str]]:
    """Goes on with a long run that is almost finished; then once more, with so many prompts added at the end of its input."""
    path, out = write_prompts(where / "prompts.jsonl", 0, base), where / "run"
    measure(path, out, room)
    say(f"writing the ledger of {prompts:,} prompts")
    lengthen(path, out, room.model(), base=base, to=prompts, left=left)
    rows = [row_of(f"{prompts:,}, {left:,} left", left, out, measure(path, out, room))]
    write_prompts(path, prompts, prompts + left)
    rows.append(row_of(f"{prompts:,}, {left:,} added", left, out, measure(path, out, room)))
    with closing(Ledger.read(out)) as ledger:
        assert ledger.finished()[0] == prompts + left, "the run that was resumed is finished"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of long runs.")
    parser.add_argument("--prompts", type=int, nargs="*", default=[10_000, 200_000], help="runs from nothing (%(default)s)")
    parser.add_argument(
        "--resumed", type=int, default=1_000_000, help="prompts of the run that is resumed; 0: none (%(default)s)"
    )
    parser.add_argument("--left", type=int, default=2000, help="of these so many are not finished (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where there is room: 4 GB for a million prompts (a temporary folder)")
    parser.add_argument("--work", nargs=3, metavar=("PROMPTS", "OUT", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), Path(args.work[1]), args.work[2])
        return
    rows: list[list[str]] = []
    with serving() as room:
        for number, prompts in enumerate([*args.prompts, *([args.resumed] if args.resumed else [])]):
            say(f"{prompts:,} prompts")
            where = Path(tempfile.mkdtemp(dir=args.dir, prefix="rlaif-memory-"))
            try:
                if number < len(args.prompts):
                    rows.append(fresh(prompts, room(f"room{number}"), where))
                else:
                    rows += resumed(prompts, args.left, room(f"room{number}"), where)
            finally:
                shutil.rmtree(where)
    show(f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}", table(COLUMNS, rows))


if __name__ == "__main__":
    main()
