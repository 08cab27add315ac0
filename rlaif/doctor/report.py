"""What the doctor has to say, in plain lines."""

from __future__ import annotations

import shlex
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PRIMARY = 0xFF  # the low byte of SQLite's extended error codes
_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY: "is held by another process",
    sqlite3.SQLITE_LOCKED: "is held by another process",
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full",
    sqlite3.SQLITE_READONLY: "cannot be written",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "cannot be opened",
}


@dataclass(frozen=True)
class Report:
    """What was found in `directory`.

    `rows` counts rows by table: those that are sound, or those saved. `lost` counts those known to be missing or damaged;
    there may be more where nothing is left that knew of them. `advice` is what to do next.
    """

    directory: Path
    title: str
    facts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def damaged(self) -> bool:
        """True if the ledger is not as it was written; of a salvage, if something could not be saved."""
        return bool(self.problems)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        return [
            self.title,
            *(f"  {fact}" for fact in self.facts),
            *(f"  damaged: {problem}" for problem in self.problems),
            *self.advice,
        ]


def next_command(directory: Path) -> str:
    """The command that saves what can be read in `directory`."""
    new = directory.with_name(f"{directory.resolve().name}-saved")
    return f"rlaif doctor {shlex.quote(str(directory))} --salvage {shlex.quote(str(new))}"


def why_unreadable(directory: Path, error: Exception) -> str:
    """One sentence for a run that met `error` (a sqlite3.Error, a zlib.error) in its ledger: what it is and what to do."""
    path = repr(str(directory / "run.sqlite"))
    ask = f"`rlaif doctor {shlex.quote(str(directory))}` says what is damaged and what can be saved"
    if isinstance(error, zlib.error):
        return f"{path} is damaged, a stored answer cannot be unpacked ({error}): {ask}"
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & _PRIMARY
    if code in _NOT_DAMAGE:
        return f"{path} {_NOT_DAMAGE[code]} ({error}): see to that, then the same command goes on"
    if code == sqlite3.SQLITE_IOERR:
        return f"{path} cannot be read, the disk reports a fault ({error}): copy the directory to a sound disk, and {ask}"
    return f"{path} is damaged ({error}): {ask}"
