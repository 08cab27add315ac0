"""Clients in fresh processes: what one cost, and what the test server saw of it.

A client is a script that does some work against an endpoint and prints one JSON object as its last line: what it measured
around that work. What it cost as a whole, with the start of its interpreter, is taken from the kernel when it ends.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from _server import Room
from helpers import environment, write_rows

_LIMIT_S = 300.0
_SAID = 2000


class Failed(Exception):
    """A client's process ended badly; the message holds the end of what it said."""


@dataclass(frozen=True)
class Ran:
    """A client's process: its wall and CPU time (user and system, with children that it waited for), and what it measured."""

    wall_s: float
    cpu_s: float
    said: dict[str, Any] = field(default_factory=dict)


def run(command: Sequence[object], *, limit_s: float = _LIMIT_S, **env: str) -> Ran:
    """Runs a client's command in a fresh process. Raises Failed if it does not end well, or not within `limit_s`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(**env),
            start_new_session=True,
        )
        late = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        _, status, used = os.wait4(process.pid, 0)  # waits, and says what it cost
        wall = time.perf_counter() - began
        late.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        lines = out.read().decode(errors="replace").rstrip().split("\n")
        if process.returncode != 0:
            tail = err.read().decode(errors="replace").strip()[-_SAID:]
            raise Failed(f"{Path(str(command[0])).name} ended with status {process.returncode} after {wall:.0f} s: {tail}")
    said = json.loads(lines[-1]) if lines[-1].startswith("{") else {}
    return Ran(wall, used.ru_utime + used.ru_stime, said)


def server_cpu_s(room: Room) -> float:
    """The CPU time that the room's server has used so far."""
    with urlopen(f"{room.base.rpartition('/')[0]}/cost", timeout=30) as response:
        return float(json.load(response)["cpu_s"])


def write_prompts(path: Path, number: int) -> Path:
    """A file of `number` prompts of about 40 words, each one another."""
    text = "why is the sky blue, and the grass green? " * 5
    return write_rows(path, ({"prompt": f"Question number {i}: {text.strip()}"} for i in range(number)))


def first_to_last(log: Sequence[dict[str, Any]]) -> float:
    """Seconds between the first request of a log and the last one, as they came in at the server."""
    times = [entry["time"] for entry in log]
    return max(times) - min(times)


def alternating(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, name): every name once a repeat, in the other direction every other time."""
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            yield repeat, name


def middle(values: Iterable[float], form: str = ".2f") -> str:
    """The median, as a cell."""
    return format(statistics.median(values), form)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median with the lowest and the highest, as a cell."""
    return f"{middle(values, form)} ({min(values):{form}} to {max(values):{form}})"


def machine() -> str:
    """What it runs on, and how busy that was over the last minutes."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, load average {load}"
