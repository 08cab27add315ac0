"""Where a run stands, second by second: its rates, the time and the cost ahead, and the file that tells another process.

A `Snapshot` is what the running process knows at one moment; `Live` is fed with one a second and makes a `Report` of it.
What lies ahead is judged by the prompts that this process paid for, over the last half minute: on a resume thousands of
prompts go by that the ledger answers alone, and they say nothing about the others. Every other prompt takes at least one
call, so a second in which more prompts finish than calls were bought for does not count.

`DIR/live.json` is the last report. It may be late or missing: writing it never stops a run, and the ledger is what counts.
Whether the process lives is told by the kernel lock on `DIR/run.lock`, not by the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from rlaif.errors import InputError
from rlaif.ledger import Ledger
from rlaif.rundir import left_open

LONG_HOLD_S = 5.0
_WINDOW_S = 30.0
_FEW = 10
_REMEMBERED = 600
_SHORTEST_S = 0.5
_SILENT_S = 10.0
_SELDOM_S = 60.0


class Calls(TypedDict):
    """Responses that this process bought, what the ledger answered instead, and attempts that gave no answer."""

    policy: int
    judge: int
    reused: int
    faults: int


class Tokens(TypedDict):
    """Tokens of the calls that this process bought."""

    prompt: int
    completion: int


class Held(TypedDict):
    """Why an endpoint lets nothing out, and until when (unix time)."""

    why: str
    until: float


class EndpointState(TypedDict):
    """One endpoint: calls in flight, how many it takes by now (`limit`) and at most, and those that wait for a place."""

    name: str
    in_flight: int
    limit: int
    ceiling: int
    waiting: int
    rate_per_s: float | None
    retries: int
    rate_limited: int
    held: Held | None


class Snapshot(TypedDict):
    """What the running process knows at `time` (unix).

    `done` counts every finished prompt, also those that were finished before and those that `failed`; those `under_way` are
    begun and not finished. `cost_usd` is that of the whole directory, None if it is not known. `maybe_lost`: so many calls
    may have been billed without an answer. `accepted` and `target`, None for no target, are of rejection sampling.
    """

    pid: int
    host: str
    time: float
    state: Literal["running", "stopping", "done", "stopped"]
    reason: str | None
    prompts: int
    done: int
    failed: int
    under_way: int
    calls: Calls
    tokens: Tokens
    cost_usd: float | None
    budget_usd: float | None
    wall_s: float
    in_flight: int
    maybe_lost: int
    endpoints: list[EndpointState]
    accepted: NotRequired[int]
    target: NotRequired[int | None]


class Report(Snapshot):
    """A snapshot with what follows from those before it; None: not known yet."""

    prompts_per_s: float | None
    calls_per_s: float | None
    tokens_per_s: float | None
    eta_s: float | None
    projected_usd: float | None


@dataclass(frozen=True, slots=True)
class _Point:
    """Counters at a moment: `worked` prompts were paid for by this process, in `worked_s` seconds; `credit` is what is
    left of its calls when each of these prompts has used one up."""

    at: float
    done: int
    bought: int
    tokens: int
    worked: int
    worked_s: float
    credit: int


class Live:
    """The reports of one running process, from its snapshots; and its live.json."""

    def __init__(self, directory: Path, *, window_s: float = _WINDOW_S) -> None:
        self.directory = directory
        self._window_s = window_s
        self._points: deque[_Point] = deque(maxlen=_REMEMBERED)
        self._paid_before: tuple[float, int] | None = None

    def add(self, snapshot: Snapshot, at: float | None = None) -> Report:
        """The report of this moment, `at` on a clock that never jumps."""
        point = self._point(snapshot, time.monotonic() if at is None else at)
        self._points.append(point)
        rate, left = self._prompts_per_s(), _left(snapshot)
        held = max((e["held"]["until"] - snapshot["time"] for e in snapshot["endpoints"] if e["held"]), default=0.0)
        eta = None if rate is None else left / rate + max(0.0, held)
        return {
            **snapshot,
            "prompts_per_s": rate,
            "calls_per_s": self._per_s("bought"),
            "tokens_per_s": self._per_s("tokens"),
            "eta_s": 0.0 if left <= 0 and snapshot["prompts"] else eta,
            "projected_usd": self._projected(snapshot, point),
        }

    def write(self, report: Report) -> None:
        """Puts the report into live.json. Never raises: a run does not stop for it.

        Nothing is written before the run has begun its work, nor by a process that does not own the directory.
        """
        begun = report["done"] or _answered(report) or any(_busy(e) for e in report["endpoints"])
        if not begun or _owner_on_file(self.directory) != _name(report):
            return
        part = self.directory / ".live.json.part"
        try:
            part.write_text(json.dumps(report) + "\n", encoding="utf-8")
            part.replace(self.directory / "live.json")
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                part.unlink()

    def _point(self, snapshot: Snapshot, at: float) -> _Point:
        done, tokens = snapshot["done"], total(snapshot["tokens"])
        bought = snapshot["calls"]["policy"] + snapshot["calls"]["judge"]
        if not self._points:
            return _Point(at, done, bought, tokens, 0, 0.0, bought)
        last = self._points[-1]
        finished, credit = done - last.done, last.credit + bought - last.bought
        still = finished == 0 and any(_is_long(e["held"], snapshot["time"]) for e in snapshot["endpoints"])
        if finished > credit or still:  # answered by the ledger, or waiting for an endpoint to be let out again
            return _Point(at, done, bought, tokens, last.worked, last.worked_s, credit)
        return _Point(at, done, bought, tokens, last.worked + finished, last.worked_s + at - last.at, credit - finished)

    def _prompts_per_s(self) -> float | None:
        """Over the window, or as far back as a few prompts finished."""
        now = self._points[-1]
        then = now
        for then in reversed(self._points):
            if now.worked_s - then.worked_s >= self._window_s and now.worked - then.worked >= _FEW:
                break
        worked, spent = now.worked - then.worked, now.worked_s - then.worked_s
        return worked / spent if worked and spent >= _SHORTEST_S else None

    def _per_s(self, what: Literal["bought", "tokens"]) -> float | None:
        now = self._points[-1]
        then = next(p for p in self._points if now.at - p.at <= self._window_s)
        spent = now.at - then.at
        return float(getattr(now, what) - getattr(then, what)) / spent if spent >= _SHORTEST_S else None

    def _projected(self, snapshot: Snapshot, now: _Point) -> float | None:
        """The cost at the end: what this process paid for a prompt, times those to come, on top of the cost by now.

        Prompts under way are paid for in part: a quarter of their number counts as paid for, and nothing is said while it
        would matter much.
        """
        cost, left = snapshot["cost_usd"], _left(snapshot)
        if cost is None:
            return None
        if self._paid_before is None or now.bought == 0:
            self._paid_before = cost, now.worked
        if left <= 0 and snapshot["prompts"]:
            return cost
        paid_before, worked_before = self._paid_before
        worked = now.worked - worked_before
        busy = min(left, snapshot["under_way"])
        if worked < max(_FEW, busy):
            return None
        return cost + (cost - paid_before) / (worked + busy / 4) * (left - busy / 4)


class Holds:
    """Tells what is new about endpoints that wait for long."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: dict[str, tuple[float, float]] = {}  # when, and until when it would wait

    def changes(self, snapshot: Snapshot) -> list[tuple[str, Held | None]]:
        """Endpoints that began a long hold since the last call, or whose hold got much longer; None: it goes on again.

        Many short holds without a moment between them are a long one. Where they go on and on, as the probes in an outage do,
        that is told ever more seldom, down to once a minute. Of a run that stops nothing goes on.
        """
        now, found = snapshot["time"], list[tuple[str, Held | None]]()
        for endpoint in snapshot["endpoints"]:
            name, held = endpoint["name"], endpoint["held"]
            if held is None:
                self._since.pop(name, None)
                if self._told.pop(name, None) is not None and snapshot["state"] == "running":
                    found.append((name, None))
                continue
            since = self._since.setdefault(name, now)
            if name in self._told:
                at, until = self._told[name]
                longer = held["until"] - until
                news = longer > _SELDOM_S or (longer > LONG_HOLD_S and now - at >= at - since)
            else:
                news = _is_long(held, now) or now - since > LONG_HOLD_S
            if news:
                self._told[name] = now, held["until"]
                found.append((name, held))
        return found


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run directory stands: `said` in one sentence, `report` if a process left one; `alive`: a process works in it."""

    state: str
    alive: bool
    said: str
    prompts: int
    done: int
    report: Report | None

    def to_json(self) -> dict[str, Any]:
        """All facts as one object."""
        known: dict[str, Any] = dict(self.report or {})
        own = {"state": self.state, "alive": self.alive, "said": self.said, "prompts": self.prompts, "done": self.done}
        return known | own


def _left(snapshot: Snapshot) -> int:
    """How many prompts are still to come: all, or as many as the target will take at the rate at which answers are accepted."""
    left, target, accepted = snapshot["prompts"] - snapshot["done"], snapshot.get("target"), snapshot.get("accepted", 0)
    if target is None or not accepted:
        return left
    return min(left, max(0, round((target - accepted) * snapshot["done"] / accepted)))


def total(tokens: Tokens) -> int:
    """Both kinds of tokens."""
    return tokens["prompt"] + tokens["completion"]


def read(directory: Path) -> Report | None:
    """The last report of the directory's last process, None if there is none to be read."""
    try:
        return TypeAdapter(Report).validate_python(json.loads((directory / "live.json").read_bytes()))
    except (OSError, ValueError):  # of another version, perhaps
        return None


def owner(directory: Path) -> str | None:
    """Who works in the directory now ("pid 12 on host"), None if nobody does."""
    try:
        handle = os.open(directory / "run.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _owner_on_file(directory) or "unknown"
    else:
        return None
    finally:
        os.close(handle)  # gives the lock back at once


def look(directory: Path) -> Standing:
    """How the run in `directory` stands. Raises InputError if there is none."""
    holder, report = owner(directory), read(directory)
    if holder is not None:
        return _living(directory, holder, report)
    if report is not None and report["state"] in ("running", "stopping") and _elsewhere(report):
        return _living(directory, _name(report), report)
    prompts, done = _on_file(directory)
    if report is None:
        rest = "every prompt is finished" if done >= prompts else "no process works on it; the same command goes on"
        return Standing("done" if done >= prompts else "stopped", False, rest, prompts, done, None)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(report["time"]))
    report = {**report, "maybe_lost": report["maybe_lost"] + left_open(directory)}
    if report["state"] == "done":
        return Standing("done", False, f"done at {when}", report["prompts"], report["done"], report)
    if report["state"] == "stopped":
        repaired = "" if report["reason"] == "interrupted" else "once that is put right, "
        said = f"stopped at {when}: {report['reason']}; {repaired}the same command goes on"
    else:
        said = f"stopped without a word at {when} ({_name(report)}); the same command goes on"
    return Standing("stopped", False, said, prompts, done, report)


def _living(directory: Path, holder: str, report: Report | None) -> Standing:
    silent = 0.0 if report is None else time.time() - report["time"]
    stale = report is not None and silent > _SILENT_S and report["state"] in ("done", "stopped")
    if report is None or stale or _name(report) != holder:  # another process's, long gone
        return Standing("running", True, f"running ({holder})", *_on_file(directory), None)
    said = f"{report['state']} ({holder})"
    if silent > _SILENT_S:
        said += f"; nothing was heard of it since {time.strftime('%H:%M:%S', time.localtime(report['time']))}"
    return Standing(report["state"], True, said, report["prompts"], report["done"], report)


def _elsewhere(report: Report) -> bool:
    """Whether a process on another machine reported a moment ago: on some network disks its lock is not seen here."""
    return report["host"] != socket.gethostname() and abs(time.time() - report["time"]) < _SILENT_S


def _on_file(directory: Path) -> tuple[int, int]:
    """(prompts, finished prompts) by the ledger."""
    if not directory.is_dir():
        raise InputError(f"there is no run directory at {str(directory)!r}")
    with closing(Ledger.read(directory)) as ledger:
        return ledger.prompts(), ledger.finished()[0]


def _owner_on_file(directory: Path) -> str | None:
    """What the last owner wrote into the lock file."""
    try:
        return (directory / "run.lock").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _name(snapshot: Snapshot) -> str:
    """The process as it stands in the lock file."""
    return f"pid {snapshot['pid']} on {snapshot['host']}"


def _answered(report: Report) -> bool:
    calls = report["calls"]
    return bool(calls["policy"] or calls["judge"] or calls["reused"] or calls["faults"])


def _is_long(held: Held | None, now: float) -> bool:
    return held is not None and held["until"] - now > LONG_HOLD_S


def _busy(endpoint: EndpointState) -> bool:
    return bool(endpoint["in_flight"] or endpoint["waiting"] or endpoint["held"])
