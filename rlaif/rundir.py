"""A run directory in one process's hands: that it can be written to, the kernel lock, the reserve, what is in flight.

`run.lock` is locked for life and names the owner. `run.flying` holds two counters, of attempts sent and of attempts whose
end is known, in the kernel's memory: they outlive a kill, so that the next process can say how many calls may have been
billed and lost. `run.reserve` is room on the disk that is given up when the disk is full, for what is still in flight.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rlaif.errors import InputError, StopRun

log = logging.getLogger("rlaif")

RESERVE_BYTES = 8 * 2**20
_COUNTERS = struct.Struct("<QQ")
_LOOKS_S = (0.005, 0.02, 0.05)
_ABSURD, _TRIES = 2**32, 100
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has none left."""
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "glusterfs", "9p")


class RunDirectory:
    """The owner of a run directory. `lost` is how many attempts were in flight when the owner before died."""

    def __init__(self, directory: Path, lock: int, flying: int) -> None:
        self._directory, self._lock, self._flying = directory, lock, flying
        self.lost = _open_ones(os.pread(flying, _COUNTERS.size, 0))
        self._sent, self._ended = self.lost, 0
        os.pwrite(flying, _COUNTERS.pack(self._sent, self._ended), 0)

    @classmethod
    def take(cls, directory: Path) -> RunDirectory:
        """Owns `directory`, creating it if need be. Raises InputError if another process has it or it cannot be written."""
        handles: list[int] = []
        try:
            if directory.is_file():
                raise InputError(f"the run directory {str(directory)!r} is a file; choose another directory")
            handles.append(_take_lock(directory))
            _write_reserve(directory)
            handles.append(os.open(directory / "run.flying", os.O_RDWR | os.O_CREAT, 0o644))
            owned = cls(directory, *handles)
        except OSError as error:
            for handle in handles:
                os.close(handle)
            room = f" (a run needs {RESERVE_BYTES / 2**20:.0f} MiB there to begin)" if error.errno in NO_ROOM else ""
            said = f"cannot write to the run directory {str(directory)!r}: {error.strerror or error}{room}"
            raise InputError(said) from None
        kind = _file_system(directory)
        if kind in _NETWORK:
            log.warning("%s is on a network disk (%s), where locks and commits may not hold: use a local one", directory, kind)
        return owned

    def sent(self) -> None:
        """An attempt is sent."""
        self._sent += 1
        self._count()

    def ended(self) -> None:
        """An attempt's end is known and stored."""
        self._ended += 1
        self._count()

    def lost_is_noted(self) -> None:
        """What the owner before had in flight is in the books."""
        self._ended += self.lost
        self.lost = 0
        self._count()

    def give_up_reserve(self) -> None:
        """Makes room on the disk."""
        with suppress(OSError):  # whoever asks is in trouble already
            (self._directory / "run.reserve").unlink()

    def discard(self) -> None:
        """Lets others have the directory, without the files that were made here."""
        for name in ("run.flying", "run.lock"):  # the lock last: who waits for this one finds that it is another file
            with suppress(OSError):
                (self._directory / name).unlink()
        self.give_back()

    def give_back(self) -> None:
        """Lets others have the directory."""
        self.give_up_reserve()
        os.close(self._flying)
        os.close(self._lock)

    def _count(self) -> None:
        # Not in mapped memory: where a disk is full, touching a page that has no place on it kills the process.
        with suppress(OSError):  # a disk that fails stops the run where it matters
            os.pwrite(self._flying, _COUNTERS.pack(self._sent, self._ended), 0)


def is_owned(directory: Path) -> bool:
    """Whether a process works in the directory, this one included."""
    with suppress(FileNotFoundError), open(directory / "run.lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def left_open(directory: Path) -> int:
    """How many attempts the directory's last owner sent without learning their end: in flight now, or when it died."""
    try:
        return _open_ones((directory / "run.flying").read_bytes())
    except OSError:
        return 0


def _open_ones(counters: bytes) -> int:
    sent, ended = _COUNTERS.unpack(counters) if len(counters) == _COUNTERS.size else (0, 0)
    return sent - ended if 0 <= sent - ended < _ABSURD else 0


def _take_lock(directory: Path) -> int:
    """The locked `run.lock`, with this process's name in it."""
    path = directory / "run.lock"
    for _ in range(_TRIES):  # the owner before may have just taken the file, and its new directory, away again
        with suppress(FileExistsError, FileNotFoundError), ExitStack() as stack:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, handle)
            try:
                _lock(handle)
            except BlockingIOError:
                owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"another process works in {str(directory)!r} ({owner}); wait for it or choose another directory"
                ) from None
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                os.fsync(handle)
                stack.pop_all()
                return handle
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _lock(handle: int) -> None:
    """Locks the file. Raises BlockingIOError if another process has it, for longer than `rlaif status` takes a look."""
    for wait in _LOOKS_S:
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(wait)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_reserve(directory: Path) -> None:
    """Puts the reserve there; it also shows, before anything is spent, that a file can be written, synced and renamed."""
    (directory / "run.reserve").unlink(missing_ok=True)  # of a process that was killed: there may be room for one alone
    part = directory / ".run.reserve.part"
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(handle, b"\0")
        os.posix_fallocate(handle, 0, RESERVE_BYTES)
        os.fsync(handle)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    part.replace(directory / "run.reserve")


def _file_system(directory: Path) -> str:
    """The kind of file system that holds `directory`, "" where that cannot be told."""
    best, kind = "", ""
    try:
        where = str(directory.resolve())
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                point = before.split()[4].replace("\\040", " ")
                if len(point) >= len(best) and (where + "/").startswith(point.rstrip("/") + "/"):
                    best, kind = point, after.split()[0]
    except (OSError, IndexError):
        return ""
    return kind


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says of an OSError that a file cannot be written: StopRun("disk") where there is no room, else InputError."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {str(path)!r}: {error.strerror or error}"
        raise (StopRun("disk", said) if error.errno in NO_ROOM else InputError(said)) from None
