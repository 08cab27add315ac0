"""Kills a run again and again, and holds what is left of it to the endpoint's own log and bill.

`rlaif generate` runs as a process of its own and gets SIGKILL at a seeded random moment: while it starts, while it buys, or
when all is bought and the files are written. Then the same command again, until it has been killed so often; the last one
runs to its end. The endpoint answers equal requests equally, fails now and then, and writes down every request.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import COMMAND, Room, environment, read_rows, rlaif, summary, write_prompts

from rlaif import doctor

PHASES = ("starting", "buying", "ending")
FAULTS = "server_error,rate_limit,reset,reset_after_work"
_CALLS = 3  # of a prompt with two samples
_LONGEST_S = 120.0


@dataclass(frozen=True, slots=True)
class Kill:
    """What was known after a kill: `asked` requests had been made in all, `bought` names those whose answers were on file."""

    phase: str
    asked: int
    bought: frozenset[str]


@dataclass
class Victim:
    """The run that is killed."""

    room: Room
    prompts: Path
    out: Path
    concurrency: int
    expected: bytes
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    startup_s: float = 1.0
    gone: int = 0
    torn: int = 0
    read: dict[int, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[bytes]:
        """The same command again."""
        self.starts += 1
        command = [*COMMAND, "generate", self.prompts, "--policy", self.room.model(), "--out", self.out, "-n", 2]
        command += ["--concurrency", self.concurrency]
        return subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def note(self, phase: str) -> None:
        """Looks at what a kill has left, once the endpoint has nothing more to do."""
        asked = self._settled()
        rows, before = self._rows(), self.kills[-1].bought if self.kills else frozenset()
        self.gone += len(before - rows.keys()) + sum(times - 1 for times in rows.values())
        self.kills.append(Kill(phase, asked, frozenset(rows)))
        for name, whole in (("dpo.jsonl", self.expected), ("summary.json", None)):
            file = self.out / name
            self.torn += file.exists() and not _is_whole(file.read_bytes(), whole)

    def _settled(self) -> int:
        """How many requests there were, when no more come and none is worked on."""
        while True:
            asked = self.room.count()
            time.sleep(0.02)
            if not self.room.in_flight() and self.room.count() == asked:
                return asked

    def _rows(self) -> Counter[str]:
        """How often each request's answer is in the ledger."""
        path = self.out / "run.sqlite"
        if not path.exists():
            return Counter()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'calls'").fetchone()[0]:
                return Counter()
            ids = [number for (number,) in db.execute("SELECT id FROM calls WHERE kind IS NULL")]
            for number in set(ids) - self.read.keys():
                (body,) = db.execute("SELECT body FROM calls WHERE id = ?", (number,)).fetchone()
                self.read[number] = json.loads(zlib.decompress(body))["id"]
        return Counter(self.read[number] for number in ids)


def _is_whole(content: bytes, whole: bytes | None) -> bool:
    try:
        return content == whole if whole is not None else bool(json.loads(content))
    except ValueError:
        return False


def kills(
    count: int,
    seed: int,
    *,
    room: Room,
    whole: Room,
    folder: Path,
    prompts: int | None = None,
    concurrency: int = 8,
    latency_s: float = 0.1,
    fault_share: float = 0.03,
) -> dict[str, Any]:
    """Kills a run `count` times and lets it end then; returns what came of it, counted.

    `room` is the killed run's endpoint, `whole` that of the same run without a kill. Promised by the design and not counted
    on here: `asked_again`, `gone`, `torn` and `duplicates` are 0, `most_lost` is at most `concurrency`, `billed` is at most
    `calls` + `maybe_lost`, `same` and `sound` are true.
    """
    rng, began = random.Random(seed), time.monotonic()
    source = write_prompts(folder / "prompts.jsonl", prompts or max(8, count * concurrency // 7))
    total = _CALLS * len(read_rows(source))
    whole.set(log="counts")
    rlaif("generate", source, "--policy", whole.model(), "--out", folder / "whole", "-n", 2)
    room.set(log="full", latency_s=latency_s, fault_share=fault_share, faults=FAULTS)
    victim = Victim(room, source, folder / "run", concurrency, (folder / "whole" / "dpo.jsonl").read_bytes())
    while len(victim.kills) < count:
        _kill(victim, rng, total, latency_s)
    last = victim.start()
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said.decode()
    return _figures(victim, folder / "whole", total) | {"seconds": round(time.monotonic() - began, 1)}


def _kill(victim: Victim, rng: random.Random, total: int, latency_s: float) -> None:
    """One start and, if it comes before the end, one kill."""
    left = total - len(victim.kills[-1].bought) if victim.kills else total
    phase = rng.choices(PHASES[:2], (1, 4))[0] if left and not (victim.out / "dpo.jsonl").exists() else "ending"
    more, wait_s, share = rng.randint(1, 3 * victim.concurrency), rng.uniform(0.0, latency_s), rng.random()
    asked, began = victim.room.count(), time.monotonic()
    with victim.start() as process:
        if phase == "buying":
            _wait(process, victim.room, asked + min(left, more))
            time.sleep(wait_s)
        else:  # a process that has nothing to buy lives about as long as another one needs to buy the first answer
            _wait(process, victim.room, asked + 1, share * victim.startup_s)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert not process.returncode or process.returncode == -signal.SIGKILL, said
    if not ended and process.returncode:
        victim.note(phase)
    elif phase != "buying":
        victim.startup_s = time.monotonic() - began


def _wait(process: subprocess.Popen[bytes], room: Room, until: int, seconds: float = _LONGEST_S) -> None:
    """Waits for so many requests, for so long, or for the process's end, whatever comes first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and room.count() < until:
        time.sleep(0.002)


def _figures(victim: Victim, whole: Path, total: int) -> dict[str, Any]:
    log, bill, told = victim.room.log(), victim.room.bill(), summary(victim.out)
    left_over = sorted({p.name for p in victim.out.iterdir()} - {p.name for p in whole.iterdir()})
    rows, expected = victim._rows(), summary(whole)
    asked_again = sum(len(kill.bought & {entry["id"] for entry in log[kill.asked :]}) for kill in victim.kills)
    ids = [row["id"] for row in read_rows(victim.out / "dpo.jsonl")]
    lost = _lost(log, victim.kills)
    phases = {phase: [k for k, kill in zip(lost, victim.kills, strict=True) if kill.phase == phase] for phase in PHASES}
    return {
        "kills": len(victim.kills),
        "starts": victim.starts,
        "phases": {phase: _phase(lost) for phase, lost in phases.items()},
        "requests": len(log),
        "calls": rows.total(),
        "needed": total,
        "billed": sum(row["calls"] for row in bill["billed"].values()),
        "maybe_lost": told["maybe_lost"],
        "asked_again": asked_again,
        "gone": victim.gone + sum(times - 1 for times in rows.values()),
        "torn": victim.torn,
        "duplicates": len(ids) - len(set(ids)),
        "lost": sum(lost),
        "most_lost": max(lost, default=0),
        "same": (victim.out / "dpo.jsonl").read_bytes() == victim.expected,
        "same_tokens": told["tokens"] == expected["tokens"],
        "left_over": left_over,
        "sound": not doctor.examine(victim.out).damaged,
    }


def _lost(log: Sequence[dict[str, Any]], kills: Sequence[Kill]) -> list[int]:
    """How many answers were worked out since the kill before and were not on file at a kill: they are bought again."""
    lost, since = [], 0
    for kill in kills:
        given = {entry["id"] for entry in log[since : kill.asked] if entry["billed"] and entry["status"] == 200}
        lost.append(len(given - kill.bought))
        since = kill.asked
    return lost


def _phase(lost: Sequence[int]) -> dict[str, int]:
    return {"kills": len(lost), "lost": sum(lost), "most_lost": max(lost, default=0)}
