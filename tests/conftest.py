"""Fixtures: one test server for the whole of the tests, a fresh endpoint of it for each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from helpers import Room

os.environ["RLAIF_CHECKS"] = "0"  # calls are counted everywhere; tests/test_checks.py turns planted checks on
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of hundreds of commands, each would compile the package anew


@pytest.fixture(scope="session")
def new_room() -> Iterator[Callable[[], Room]]:
    """Makes endpoints of the test server, which runs in its own process."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base, names = process.stdout.readline().strip(), count(1)
            yield lambda: Room(f"{base}/room{next(names)}")
        finally:
            process.kill()


@pytest.fixture
def room(new_room: Callable[[], Room]) -> Room:
    """A fresh endpoint."""
    return new_room()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other, where others use the cores, take a hundred times as long over tiny matrices."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny transformers model."""
    import tiny

    return tiny.save_chat(tmp_path_factory.mktemp("llama"))
