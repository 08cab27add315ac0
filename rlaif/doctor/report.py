"""What the doctor has to say, in plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
