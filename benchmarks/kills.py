"""Measure what kill -9 costs: a run is killed at random moments, again and again, and held to its endpoint's log and bill.

Each row is one run of the `rlaif` command (2 samples a prompt in one request, then two judge calls) against the test server,
which answers equal requests equally after 0.1 s, fails now and then and writes down every request. SIGKILL comes at seeded
random moments: while the process starts, while it buys, and when all is bought and the files are written. The last process
is let go to its end.

* kills: by phase, starting / buying / ending. calls: answers that the run needs, and that its ledger holds in the end.
* again: answers on file when the process was killed that were asked for once more. gone: answers on file that were missing
  or twice there after a later kill. torn: result files found unfinished. twice: rows of dpo.jsonl with an id that another has.
* lost: answers billed that were in flight at a kill, in all and at most at one kill; these are bought again.
* billed: all answers that the endpoint has worked out, also those that it failed to deliver. maybe: how many the run's summary
  says may have been billed and lost. With `calls` they are never fewer than what was billed.
* same: the pairs are byte for byte those of a run that nobody killed. sound: the doctor finds nothing wrong.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from _server import Room, say, serving, show, table
from killing import PHASES, kills

COLUMNS = (
    *("concurrency", "starts", "kills", "calls", "again", "gone", "torn", "twice"),
    *("lost", "at a kill", "billed", "maybe", "same", "sound", "s"),
)


def row(concurrency: int, found: dict[str, Any]) -> list[object]:
    """One line of the table."""
    by_phase = " / ".join(str(found["phases"][phase]["kills"]) for phase in PHASES)
    counts = (found[name] for name in ("calls", "asked_again", "gone", "torn", "duplicates", "lost", "most_lost", "billed"))
    yes = ("yes" if found[name] else "NO" for name in ("same", "sound"))
    return [concurrency, found["starts"], by_phase, *counts, found["maybe_lost"], *yes, f"{found['seconds']:.0f}"]


def broken(concurrency: int, found: dict[str, Any]) -> list[str]:
    """The promises that were not kept."""
    promises = {
        "no acknowledged answer is asked for again": not found["asked_again"],
        "no acknowledged answer is lost or stored twice": not found["gone"] and found["calls"] == found["needed"],
        "a kill costs at most the calls in flight": found["most_lost"] <= concurrency,
        "what was billed is in the ledger or said to be lost": found["billed"] <= found["calls"] + found["maybe_lost"],
        "no file is half written, no row is there twice": not found["torn"] + found["duplicates"] + len(found["left_over"]),
        "the same bytes as without a kill": found["same"] and found["same_tokens"] and found["sound"],
    }
    return [promise for promise, kept in promises.items() if not kept]


def run(count: int, seed: int, concurrency: int, rooms: tuple[Room, Room]) -> dict[str, Any]:
    """The figures of one run that is killed so often."""
    room, whole = rooms
    with tempfile.TemporaryDirectory() as folder:
        return kills(count, seed, room=room, whole=whole, folder=Path(folder), concurrency=concurrency)


def main() -> None:
    parser = argparse.ArgumentParser(description="What kill -9 costs a run.")
    parser.add_argument("--kills", type=int, default=200, help="of each run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 64], metavar="N", help="a run each (8 64)")
    args = parser.parse_args()
    lines, complaints = [], []
    with serving() as room:
        for concurrency in args.concurrency:
            found = run(args.kills, args.seed, concurrency, (room(f"killed{concurrency}"), room(f"whole{concurrency}")))
            say(f"concurrency {concurrency}: {found}")
            lines.append(row(concurrency, found))
            complaints += [f"concurrency {concurrency}: not kept: {promise}" for promise in broken(concurrency, found)]
    show(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}", table(COLUMNS, lines, names=0))
    show("\n".join(complaints) if complaints else "Every promise was kept.")


if __name__ == "__main__":
    main()
