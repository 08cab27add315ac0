"""Who owns a run directory, and what a process leaves in it: real processes, real kills, a real disk without room."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import in_namespace, python

from rlaif.errors import InputError
from rlaif.rundir import RESERVE_BYTES, RunDirectory, _file_system

CHILD = """
import sys
from pathlib import Path
from rlaif.rundir import RunDirectory
owned = RunDirectory.take(Path(sys.argv[1]))
for word in sys.argv[2:]:
    getattr(owned, word)()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def another(directory: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the directory and has done `words`; it is killed with SIGKILL at the end."""
    with subprocess.Popen(
        python(CHILD, directory, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def killed_after(directory: Path, *words: str) -> None:
    with another(directory, *words):
        pass


def lost_in(directory: Path) -> int:
    owned = RunDirectory.take(directory)
    owned.give_back()
    return owned.lost


# The lock


def test_a_second_process_is_told_who_works_there_until_that_one_is_killed(tmp_path: Path) -> None:
    with another(tmp_path) as owner:
        for _ in range(2):  # to be refused takes nothing from the owner
            with pytest.raises(InputError, match=rf"another process works.*pid {owner.pid} on {socket.gethostname()}"):
                RunDirectory.take(tmp_path)
        assert (tmp_path / "run.reserve").stat().st_size == RESERVE_BYTES
    RunDirectory.take(tmp_path).give_back()


def test_what_is_given_back_can_be_taken_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        RunDirectory.take(tmp_path / "new" / "run").give_back()
    assert sorted(path.name for path in (tmp_path / "new" / "run").iterdir()) == ["run.flying", "run.lock"]


RACER = """
import os, sys
from pathlib import Path
from rlaif.errors import InputError
from rlaif.rundir import RunDirectory
directory, inside = Path(sys.argv[1]), Path(sys.argv[2])
taken = 0
while taken < 40:
    try:
        owned = RunDirectory.take(directory)
    except InputError as error:
        assert "another process" in str(error), error
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if anybody else is inside
    taken += 1
    inside.unlink()
    owned.discard()
    try:
        directory.rmdir()
    except OSError:
        pass
"""


@pytest.mark.slow
def test_no_two_own_a_directory_though_its_owners_take_it_away_again(tmp_path: Path) -> None:
    racers = [subprocess.Popen(python(RACER, tmp_path / "run", tmp_path / "inside")) for _ in range(3)]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]


def test_a_lock_file_without_a_name_in_it_is_still_a_lock(tmp_path: Path) -> None:
    with another(tmp_path):
        os.truncate(tmp_path / "run.lock", 0)
        with pytest.raises(InputError, match="unknown"):
            RunDirectory.take(tmp_path)


# What cannot be written


def test_a_path_that_is_a_file_or_lies_in_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"prompts\.jsonl' is a file"):
        RunDirectory.take(tmp_path / "prompts.jsonl")
    with pytest.raises(InputError, match="Not a directory"):
        RunDirectory.take(tmp_path / "prompts.jsonl" / "run")
    assert (tmp_path / "prompts.jsonl").read_text() == "mine"


TAKE = """
import sys
from pathlib import Path
from rlaif.errors import InputError
from rlaif.rundir import RunDirectory
try:
    RunDirectory.take(Path(sys.argv[1]))
except InputError as error:
    print(error)
else:
    print("taken")
"""


def test_a_directory_that_is_read_only_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if os.geteuid() == 0:  # root may write wherever the file system lets anybody
        said = in_namespace(f"mount --bind {run} {run} && mount -o remount,bind,ro {run} || exit 1", python(TAKE, run))
        assert "Read-only file system" in said
    else:
        run.chmod(stat.S_IRUSR | stat.S_IXUSR)
        said = subprocess.run(python(TAKE, run), capture_output=True, text=True, check=True).stdout
        assert "Permission denied" in said
    assert f"cannot write to the run directory {str(run)!r}" in said
    assert not list(run.iterdir())


def test_a_disk_without_room_for_the_reserve_is_refused_and_nothing_stays_in_the_way(tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = f"mount -t tmpfs -o size={RESERVE_BYTES - 4096} tmpfs {tmp_path}"
    said = in_namespace(script, python(TAKE, run), ["ls", "-A", str(run)])
    assert "No space left on device" in said and "8 MiB" in said
    assert said.split("\n", 1)[1].split() == ["run.lock"]


@pytest.mark.parametrize("pages", [0, *(pytest.param(pages, marks=pytest.mark.slow) for pages in (1, 2, 3))])
def test_the_last_page_of_a_disk_kills_nobody(tmp_path: Path, pages: int) -> None:
    """A counter in mapped memory would: writing to a page that finds no room is SIGBUS."""
    size = RESERVE_BYTES + 16 * 4096
    fill = f"head -c {(16 - pages) * 4096} /dev/zero > {tmp_path}/fill"
    said = in_namespace(f"mount -t tmpfs -o size={size} tmpfs {tmp_path} && {fill}", python(TAKE, tmp_path / "run"))
    assert said == "taken\n" if pages == 3 else "No space left" in said or said == "taken\n"


@pytest.mark.slow
def test_the_reserve_of_a_killed_process_does_not_take_the_room_of_the_new_one(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size={RESERVE_BYTES + 2**20} tmpfs {tmp_path}"
    assert in_namespace(mount, python(TAKE, tmp_path / "run"), python(TAKE, tmp_path / "run")) == "taken\ntaken\n"


def test_a_limit_on_the_size_of_files_is_a_disk_without_room(tmp_path: Path) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)){TAKE}"
    said = subprocess.run(python(limited, tmp_path), capture_output=True, text=True, check=True).stdout
    assert "File too large" in said and "8 MiB" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


# What is in flight


@pytest.mark.slow
def test_what_was_sent_and_not_ended_when_the_process_was_killed_is_known(tmp_path: Path) -> None:
    killed_after(tmp_path, "sent", "sent", "sent", "ended")
    assert lost_in(tmp_path) == 2
    assert lost_in(tmp_path) == 2, "whoever does not note it leaves it to the next"
    killed_after(tmp_path, "sent")
    assert lost_in(tmp_path) == 3
    killed_after(tmp_path, "lost_is_noted", "sent", "ended", "sent")
    assert lost_in(tmp_path) == 1
    killed_after(tmp_path, "lost_is_noted")
    assert lost_in(tmp_path) == 0


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 16, b"\0" * 8 + b"\xff" * 8, b"\1" + b"\0" * 40])
def test_counters_that_cannot_be_right_count_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.flying").write_bytes(content)
    owned = RunDirectory.take(tmp_path)
    assert owned.lost in (0, 1)
    owned.sent()
    owned.give_back()
    assert lost_in(tmp_path) == owned.lost + 1


def test_the_reserve_is_given_up_once_and_with_the_directory(tmp_path: Path) -> None:
    owned = RunDirectory.take(tmp_path)
    reserve = tmp_path / "run.reserve"
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES, "a hole keeps no room"
    owned.give_up_reserve()
    owned.give_up_reserve()
    assert not reserve.exists()
    owned.give_back()


# Where it lies


@pytest.mark.slow
def test_the_file_system_is_told_by_the_nearest_mount(tmp_path: Path) -> None:
    assert _file_system(Path("/proc")) == _file_system(Path("/proc/self")) == "proc"
    assert _file_system(Path("/")) not in ("", "proc")
    assert _file_system(tmp_path / "does" / "not" / "exist") == _file_system(tmp_path)
    ask = "import sys; from pathlib import Path; from rlaif.rundir import _file_system; print(_file_system(Path(sys.argv[1])))"
    inner = tmp_path / "with a space"
    inner.mkdir()
    assert in_namespace(f"mount -t tmpfs tmpfs '{inner}'", python(ask, inner / "run"), python(ask, tmp_path / "with a")) == (
        f"tmpfs\n{_file_system(tmp_path)}\n"
    )


def test_a_local_disk_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlaif"):
        RunDirectory.take(tmp_path).give_back()
    assert not caplog.records


def test_to_be_refused_leaves_nothing_open(tmp_path: Path) -> None:
    owned = RunDirectory.take(tmp_path / "run")
    (tmp_path / "other" / "run.reserve").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InputError, match=f"pid {os.getpid()} "):
            RunDirectory.take(tmp_path / "run")
        with pytest.raises(InputError, match="cannot write"):  # after it has the lock
            RunDirectory.take(tmp_path / "other")
    assert len(os.listdir("/proc/self/fd")) == before
    owned.give_back()
    RunDirectory.take(tmp_path / "run").give_back()
    (tmp_path / "other" / "run.reserve").rmdir()
    RunDirectory.take(tmp_path / "other").give_back()
