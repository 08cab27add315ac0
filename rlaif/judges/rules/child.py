"""The program of the process in which `worker` does what might never end. It stands alone: nothing of rlaif is imported.

A line on stdin is a task, a line on stdout its outcome. Before each task the kernel's timer is set: when it runs out, SIGALRM
ends the process, wherever it is: in the engine of regular expressions, or in the power of two large integers.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
from typing import Any

_MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Works on tasks until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    out, sys.stdout = sys.stdout, sys.stderr  # a library that prints does not spoil the answers
    sys.path[:] = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        task = json.loads(line)
        try:
            work = _TASKS[task["do"]]()
            signal.setitimer(signal.ITIMER_REAL, task["limit_s"])
            said = {"is": work(**task["with"])}
        except Exception as error:  # a pattern that is none, an expression that cannot be compared
            said = {"failed": f"{type(error).__name__}: {error}"[:500]}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        out.write(json.dumps(said) + "\n")
        out.flush()


def _searcher() -> Any:
    def search(pattern: str, flags: int, text: str) -> bool:
        return re.search(pattern, text, flags) is not None

    return search


def _verifier() -> Any:
    """Compares two final answers by math-verify, whose own time limits need the signals of a main thread and are off."""
    from math_verify import parse, verify  # its import takes a second, and none of a task's time

    logging.disable(logging.CRITICAL)  # it warns of every limit that is off

    def equal(reference: str, answer: str) -> str:
        gold, found = parse(reference, parsing_timeout=None), parse(answer, parsing_timeout=None)
        if not gold or not found:
            return "no answer" if gold else "no reference"
        return "equal" if verify(gold, found, timeout_seconds=None) else "different"

    return equal


_TASKS = {"search": _searcher, "equal": _verifier}

if __name__ == "__main__":
    main()
