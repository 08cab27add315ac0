"""Measure how well a run finds out what an endpoint bears, while that changes.

Each row is a run of the `rlaif` command for a minute or three (2 samples a prompt in one request, then two short judge calls)
against the test server, which counts for itself. It knows nothing of the limits: the run has to find them.

A limited rate. The endpoint accepts requests by a token bucket of 10 ("bucket"), by a sliding window of a second ("sliding")
or by seconds of the clock ("fixed"), at a rate that changes in steps; the others meet 429, with the exact time to come back,
in whole seconds, or without a word. A refusal takes 20 ms and an answer 0.3 s more.

* used: requests accepted over those that a client would have had accepted that asked again whenever it could.
* 429: the share of all requests that were refused. early: requests sent before the time that a 429 had named.

A queue. The endpoint works on 8 requests at a time, 0.5 s each on average, and lets the others wait.

* in flight: requests at the server, after so many seconds, and the median over the second half. With fewer than 8 it idles;
  more than that only wait.
* share: requests answered over what 8 places could, from when the first answer is due to the last look.

No limit. Every request takes the same time. full: seconds until 90 % of the ceiling were in flight.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _server import Process, Room, rlaif, say, serving, show, table
from helpers import write_prompts

STEPS = "50:15,20:15,100:15,60:15"
KINDS = ("bucket", "sliding", "fixed")
SAYS = ("exact", "seconds", "none")
LATENCIES = {"latency_s": 0.02, "service_s": 0.3, "service_cv": 0.3}  # of a refusal the first, of an answer both
SLOTS, SERVICE_S, CEILING = 8, 0.5, 128
PROMPTS = 20_000
_LOOK_S = 0.25


@dataclass(frozen=True)
class Look:
    """The endpoint at a moment, in seconds since the first request."""

    at: float
    in_flight: int
    requests: int


@dataclass(frozen=True)
class Course:
    """A run as its endpoint saw it."""

    looks: Sequence[Look]
    rate: dict[str, float]
    answered: int


def follow(room: Room, prompts: Path, seconds: float, *, concurrency: int, **behaviour: Any) -> Course:
    """Runs against an endpoint for some seconds from the first request on, then breaks off."""
    room.set(log="counts", **behaviour)
    with tempfile.TemporaryDirectory() as out:
        settings = ("--out", Path(out) / "run", "--policy", room.model(), "-n", 2, "--concurrency", concurrency)
        with rlaif("generate", prompts, *settings) as run:
            while not room.count():
                _go_on(run, 0.02)
            began, looks = time.monotonic(), [Look(0.0, 1, 1)]
            while looks[-1].at < seconds:
                _go_on(run, _LOOK_S)
                looks.append(Look(time.monotonic() - began, room.in_flight(), room.count()))
            rate, bill = room.rate(), room.bill()
    return Course(looks, rate, sum(row["calls"] for row in bill["delivered"].values()))


def _go_on(run: Process, seconds: float) -> None:
    if not run.runs():
        raise RuntimeError("the run ended before its time: it needs more prompts")
    time.sleep(seconds)


def limited(room: Room, prompts: Path, kind: str, says: str, steps: str, concurrency: int) -> list[str]:
    """A row of a limited rate."""
    seconds = sum(float(step.partition(":")[2]) for step in steps.split(","))
    course = follow(room, prompts, seconds, concurrency=concurrency, rates=steps, rate_kind=kind, retry_after=says, **LATENCIES)
    rate = course.rate
    counts = [rate[name] for name in ("allowed", "accepted", "refused")]
    refused = rate["refused"] / (rate["accepted"] + rate["refused"])
    said = {"none": "nothing"}.get(says, says)
    shares = [f"{rate['accepted'] / rate['allowed']:.1%}", f"{refused:.1%}", f"{rate['sends_before_allowed']:.0f}"]
    return [kind, said, *(f"{count:.0f}" for count in counts), *shares, f"{_median_in_flight(course):.0f}"]


def queueing(room: Room, prompts: Path, seconds: float, ceiling: int, cv: float) -> list[str]:
    """A row of a queue."""
    course = follow(room, prompts, seconds, concurrency=ceiling, slots=SLOTS, service_s=SERVICE_S, service_cv=cv)
    ideal = SLOTS / SERVICE_S
    per_s = course.answered / (course.looks[-1].at - SERVICE_S)
    at = [next(look.in_flight for look in course.looks if look.at >= share * seconds) for share in (0.1, 0.25, 0.5)]
    most = max(look.in_flight for look in course.looks)
    return [f"{cv:g}", *map(str, at), str(course.looks[-1].in_flight), f"{_median_in_flight(course):.0f}", str(most),
            f"{per_s:.1f}", f"{ideal:.1f}", f"{per_s / ideal:.1%}"]  # fmt: skip


def unlimited(room: Room, prompts: Path, seconds: float, ceiling: int, latency_s: float) -> list[str]:
    """A row of an endpoint without a limit."""
    course = follow(room, prompts, seconds, concurrency=ceiling, latency_s=latency_s)
    full = next((f"{look.at:.1f}" for look in course.looks if look.in_flight >= 0.9 * ceiling), "never")
    per_s = course.answered / (course.looks[-1].at - latency_s)
    return [
        f"{latency_s:g} s",
        str(ceiling),
        full,
        f"{_median_in_flight(course):.0f}",
        f"{per_s:.0f}",
        f"{ceiling / latency_s:.0f}",
    ]


def _median_in_flight(course: Course) -> float:
    """Over the second half."""
    half = course.looks[-1].at / 2
    return statistics.median(look.in_flight for look in course.looks if look.at >= half)


def rows(tasks: Sequence[Callable[[Room], list[str]]], rooms: Iterator[Room], at_once: int) -> list[list[str]]:
    """What the tasks say, each with an endpoint of its own."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda task: task(next(rooms)), tasks))


def main() -> None:
    parser = argparse.ArgumentParser(description="How well the limits of an endpoint are found.")
    parser.add_argument("--rates", default=STEPS, help="RATE:SECONDS,... (%(default)s)")
    parser.add_argument("--kinds", nargs="*", default=KINDS, help="of limits (%(default)s)")
    parser.add_argument("--says", nargs="*", default=SAYS, help="what a 429 says of when to come back (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="the ceiling under a limited rate (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="of a queue; without a limit 20; 0: none of these (%(default)s)"
    )
    parser.add_argument("--ceiling", type=int, default=CEILING, help="there (%(default)s)")
    parser.add_argument("--at-once", type=int, default=1, help="so many runs at a time (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as where, serving() as room:
        prompts = write_prompts(Path(where) / "prompts.jsonl", PROMPTS)
        rooms = (room(f"room{number}") for number in range(1000))
        tables = []

        def add(title: str, columns: Sequence[str], names: int, tasks: Sequence[Callable[[Room], list[str]]]) -> None:
            if tasks:
                say(f"{title}: {len(tasks)} runs")
                tables.extend([title, table(columns, rows(tasks, rooms, args.at_once), names=names)])

        add(
            f"A limited rate, {args.rates} (requests a second : seconds), at most {args.concurrency} in flight",
            ("limit", "429 says", "allowed", "accepted", "refused", "used", "429", "early", "median in flight"),
            2,
            [
                lambda room, kind=kind, says=says: limited(room, prompts, kind, says, args.rates, args.concurrency)
                for kind in args.kinds
                for says in args.says
            ],
        )
        if args.seconds:
            after = [f"after {args.seconds * share:.0f} s" for share in (0.1, 0.25, 0.5, 1.0)]
            add(
                f"A queue for {SLOTS} places, {SERVICE_S} s each on average, at most {args.ceiling} in flight",
                ("spread of the time", *after, "median of the second half", "most", "answers/s", "ideal", "share"),
                1,
                [lambda room, cv=cv: queueing(room, prompts, args.seconds, args.ceiling, cv) for cv in (0.5, 0.0)],
            )
            add(
                "No limit",
                ("time of a request", "ceiling", "full after s", "median in flight", "answers/s", "ideal"),
                1,
                [lambda room, s=s: unlimited(room, prompts, min(args.seconds, 20.0), args.ceiling, s) for s in (0.5, 2.0)],
            )
    show(f"{os.cpu_count()} cores, Python {platform.python_version()}", *tables)


if __name__ == "__main__":
    main()
