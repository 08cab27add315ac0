"""Work that might never end, in a process that can be ended: regular expressions and algebra on texts of strangers.

Neither lets go of the interpreter while it is stuck, so that no thread can watch over it and no signal handler is run. The
process (`child`) is started with the first task, kept for the next ones, and ends with its time limit, or with this program.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_SIGNALLED_BY_ALARM = -14


class OverLimit(Exception):
    """A task did not end within its time, or took more memory than there is for it; its message says so."""


class Worker:
    """One process for one task at a time; threads wait for their turn."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def do(self, task: str, limit_s: float, **arguments: Any) -> Any:
        """What came of a task of `child`. Raises OverLimit, or ValueError with what went wrong in it."""
        with self._turn:
            said = self._ask(json.dumps({"do": task, "with": arguments, "limit_s": limit_s}))
            if said is None:
                status = self._end()
                if status == _SIGNALLED_BY_ALARM:
                    raise OverLimit(f"it did not end within {limit_s:g} s")
                raise OverLimit(f"its process ended with status {status}")
        if "failed" in said:
            raise (
                OverLimit("it took too much memory") if said["failed"].startswith("MemoryError") else ValueError(said["failed"])
            )
        return said["is"]

    def close(self) -> None:
        """Ends the process; the next task starts another."""
        with self._turn:
            self._end()

    def _ask(self, line: str) -> dict[str, Any] | None:
        """The answer, None if the process is gone."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        except BaseException:  # whoever waited is gone: the answer would be taken for the next task's
            process.kill()
            self._end()
            raise
        return dict(json.loads(said)) if said else None

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([path for path in sys.path if path]) + "\n")
        return self._process

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        return process.wait()

    def __del__(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()
