"""`check`: a file in, a report out."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.check import fix as fixing
from rlaif.check import near, reading, tokens
from rlaif.check.contamination import TestSets
from rlaif.check.findings import Finding, Findings
from rlaif.check.inspect import inspect
from rlaif.errors import InputError


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file. `formats`: (name, rows, first row); `columns`: rows that fill them; `lengths`: see Balance.

    `fixed` is None, or says where the cleaned copy and the list of changes are, its rows, and the changes counted.
    """

    file: str
    rows: int
    formats: tuple[tuple[str, int, int], ...]
    columns: dict[str, int]
    lengths: dict[str, Any] | None
    findings: tuple[Finding, ...]
    fixed: dict[str, Any] | None
    wall_s: float

    def count(self, severity: str) -> int:
        """How many findings of this severity there are."""
        return sum(found.rule.severity == severity for found in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program to read."""
        return {
            "file": self.file,
            "rows": self.rows,
            "formats": [{"format": name, "rows": rows, "first_row": first} for name, rows, first in self.formats],
            "columns": self.columns,
            "longer_chosen": self.lengths,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [
                {
                    "code": found.rule.code,
                    "severity": found.rule.severity,
                    "count": found.count,
                    "says": found.rule.says,
                    "advice": found.rule.advice,
                    "examples": [{"row": place or None, "detail": detail} for place, detail in found.examples],
                }
                for found in self.findings
            ],
            "fixed": self.fixed,
            "wall_s": round(self.wall_s, 3),
        }


def check(
    source: str | Path,
    *,
    tokenizer: str | None = None,
    max_length: int | None = None,
    trainer: str | None = None,
    against: Sequence[str] = (),
    fix: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Checks a finished file: .jsonl, .json, .parquet or .csv, packed or not. Raises InputError for wrong usage alone.

    `tokenizer` (a folder, a hub ID or `smollm2`) adds what depends on tokens, at `max_length` (1024) for `trainer` (dpo, reward
    or kto, for pairs). `against` are files of test sets. `fix` is where a cleaned copy goes. `say` is told how it gets on.
    """
    began = time.monotonic()
    path = Path(source)
    reading.readable(path, str(source))
    if tokenizer is None and (max_length is not None or trainer is not None):
        raise InputError("--max-length and --trainer need a --tokenizer")
    if max_length is not None and max_length < 1:
        raise InputError(f"--max-length must be at least 1, got {max_length!r}")
    if trainer is not None and trainer not in tokens.TRAINERS:
        raise InputError(f"--trainer must be one of {', '.join(tokens.TRAINERS)}, got {trainer!r}")
    changes_at = fixing.place_for(Path(fix), path) if fix is not None else None
    tests = TestSets(tuple(against)) if against else None
    counted = None
    if tokenizer is not None:
        counted = tokens.Tokens(tokens.load(tokenizer), max_length=max_length or tokens.MAX_LENGTH, trainer=trainer)
    with closing(Findings(remember=fix is not None)) as findings:
        rows = reading.read(path)
        try:
            seen = inspect(rows, findings, tokens=counted, tests=tests, near_too=not near.why_not(), say=say)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"cannot write what rows are compared by to temporary files ({error}): set TMPDIR") from None
        fixed = None
        if fix is not None and changes_at is not None:
            fixed = _fixed(path, Path(fix), changes_at, fixing.Fix(findings, seen.main))
        return Report(
            str(source),
            seen.rows,
            tuple((str(form), rows, first) for form, (rows, first) in seen.formats.items()),
            dict(seen.columns),
            seen.balance.lengths(),
            tuple(findings.listed()),
            fixed,
            time.monotonic() - began,
        )


def _fixed(path: Path, out: Path, changes_at: Path, fix: fixing.Fix) -> dict[str, Any]:
    if not fixing.write(out, changes_at, fix, reading.read(path)):
        return {"out": None, "rows": 0, "changes": None, "counts": []}
    counts = [{"action": act, "reason": why, "rows": count} for (act, why), count in sorted(fix.changes.items())]
    return {"out": str(out), "rows": fix.rows, "changes": str(changes_at), "counts": counts}
