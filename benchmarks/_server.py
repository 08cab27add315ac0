"""What the benchmarks share: the test server in a process of its own, a process seen from outside, Markdown tables."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import COMMAND, Room, environment  # noqa: E402

os.environ["RLAIF_CHECKS"] = "0"  # planted checks of judges are calls of their own

MIB = 2**20
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def serving() -> Iterator[Callable[[str], Room]]:
    """Runs the test server in a process of its own; yields what makes an endpoint of it, by name."""
    command = [sys.executable, str(ROOT / "tests" / "server.py"), "--port", "0", "--log", "counts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            yield lambda name: Room(f"{base}/{name}")
        finally:
            process.kill()


class Process:
    """A command that runs; what it says is kept for the case that it fails."""

    def __init__(self, command: Sequence[object]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (it is closed with the process)
        self._command = list(map(str, command))
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._said, env=environment())
        self.pid = self._process.pid

    def runs(self) -> bool:
        """Whether it has not ended yet. Raises if it has failed."""
        status = self._process.poll()
        if status:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(self._command)} ended with {status}: {said[-2000:]}")
        return status is None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()


def rlaif(*arguments: object) -> Process:
    """The command line, running."""
    return Process([*COMMAND, *arguments])


@dataclass(frozen=True, slots=True)
class Moment:
    """A process as the system sees it: `at` in seconds since its start, memory in MiB; `seen` is what else was asked."""

    at: float
    cpu_s: float
    resident: float
    peak: float
    anonymous: float
    seen: Any


def watch(command: Sequence[object], look: Callable[[], Any], *, every_s: float = 0.1) -> list[Moment]:
    """Runs a command to its end and looks at it now and then. Raises if it fails."""
    began, moments = time.monotonic(), list[Moment]()
    with Process(command) as process:
        while process.runs():
            seen = look()
            moment = _moment(process.pid, time.monotonic() - began, seen)
            moments += [] if moment is None else [moment]
            time.sleep(every_s)
    return moments


def _moment(pid: int, at: float, seen: Any) -> Moment | None:
    """None if the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        memory = {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:", "RssAnon:")}
        cpu_s = (int(stat[11]) + int(stat[12])) / _TICKS
        return Moment(at, cpu_s, memory["VmRSS:"], memory["VmHWM:"], memory["RssAnon:"], seen)
    except (OSError, KeyError):
        return None


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, names: int = 1) -> str:
    """A Markdown table; all but the first `names` columns are numbers."""
    marks = [" --- "] * names + [" ---: "] * (len(columns) - names)
    lines = [columns, *rows]
    text = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([text[0], f"|{'|'.join(marks)}|", *text[1:]])


def show(*parts: str) -> None:
    """Prints parts with a blank line between them."""
    print("\n\n".join(parts), flush=True)


def say(words: str) -> None:
    """Tells a person who waits."""
    print(words, file=sys.stderr, flush=True)
