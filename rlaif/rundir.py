"""A run directory in one process's hands: that it can be written to, the kernel lock, the reserve, what is in flight.

`run.lock` is locked for life and names the owner. `run.flying` holds two counters, of attempts sent and of attempts whose
end is known, in mapped memory: they outlive a kill, so that the next process can say how many calls may have been billed
and lost. `run.reserve` is room on the disk that is given up when the disk is full, for what is still in flight.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import socket
import struct
from pathlib import Path

from rlaif.errors import InputError

log = logging.getLogger("rlaif")

RESERVE_BYTES = 8 * 2**20
_COUNTERS = struct.Struct("<QQ")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "glusterfs", "9p")


class RunDirectory:
    """The owner of a run directory. `lost` is how many attempts were in flight when the owner before died."""

    def __init__(self, directory: Path, lock: int, flying: mmap.mmap) -> None:
        self._directory, self._lock, self._flying = directory, lock, flying
        sent, ended = _COUNTERS.unpack_from(flying)
        self.lost = max(0, sent - ended)
        self._sent, self._ended = self.lost, 0
        _COUNTERS.pack_into(flying, 0, self._sent, self._ended)

    @classmethod
    def take(cls, directory: Path) -> RunDirectory:
        """Owns `directory`, creating it if need be. Raises InputError if another process has it or it cannot be written."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(directory)
        except OSError as error:
            raise _unwritable(directory, error) from None
        try:
            _write_reserve(directory)
            return cls(directory, lock, _map(directory / "run.flying"))
        except OSError as error:
            os.close(lock)
            raise _unwritable(directory, error) from None

    def sent(self) -> None:
        """An attempt is sent."""
        self._sent += 1
        _COUNTERS.pack_into(self._flying, 0, self._sent, self._ended)

    def ended(self) -> None:
        """An attempt's end is known and stored."""
        self._ended += 1
        _COUNTERS.pack_into(self._flying, 0, self._sent, self._ended)

    def lost_is_noted(self) -> None:
        """What the owner before had in flight is in the books."""
        self._ended += self.lost
        self.lost = 0
        _COUNTERS.pack_into(self._flying, 0, self._sent, self._ended)

    def give_up_reserve(self) -> None:
        """Makes room on the disk."""
        (self._directory / "run.reserve").unlink(missing_ok=True)

    def give_back(self) -> None:
        """Lets others have the directory."""
        self.give_up_reserve()
        self._flying.close()
        os.close(self._lock)


def _unwritable(directory: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to the run directory {str(directory)!r}: {error.strerror or error}")


def _take_lock(directory: Path) -> int:
    path = directory / "run.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise InputError(
            f"another process works in {str(directory)!r} ({owner}); wait for it or choose another directory"
        ) from None
    kind = _file_system(directory)
    if kind in _NETWORK:
        log.warning("%s is on a network disk (%s), where locks and commits may not hold: use a local one", directory, kind)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    os.fsync(handle)
    return handle


def _write_reserve(directory: Path) -> None:
    """Puts the reserve there; it also shows, before anything is spent, that a file can be written, synced and renamed."""
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


def _map(path: Path) -> mmap.mmap:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(handle).st_size != _COUNTERS.size:
            os.ftruncate(handle, _COUNTERS.size)
        return mmap.mmap(handle, _COUNTERS.size)
    finally:
        os.close(handle)


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
