"""The command in a forked process. By itself, so that the process need not load what tests need."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path


def run(words: Sequence[str], files: Sequence[DupFd], cwd: Path, environment: Mapping[str, str]) -> None:
    """Runs the command as if it had been started so; `files` become its standard input, output and errors."""
    from rlaif.cli import main

    for number, file in enumerate(files):
        os.dup2(file.detach(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    main()
