"""A cleaned copy of a file, and the list of every change beside it.

Left out are rows with an error and exact repeats; of rows that contradict each other, both sides. Put right is what needs no
guess (`rlaif.check.repairs`). Nothing else is touched: warnings are for a person to judge. The file itself is never written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import orjson

from rlaif.check.findings import Findings, excerpt
from rlaif.check.formats import Format, format_of
from rlaif.check.reading import Ended, Read
from rlaif.check.repairs import explicit, repaired
from rlaif.errors import InputError
from rlaif.export import whole, write_jsonl


def place_for(out: Path, source: Path) -> Path:
    """Where the changes are listed. Raises InputError if the copy cannot be written there."""
    if out.exists() and out.samefile(source):
        raise InputError(f"--fix {str(out)!r} is the file itself: name another one")
    if not out.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        raise InputError(f"--fix {str(out)!r}: the copy is written as .jsonl, .jsonl.gz or .jsonl.zst")
    if not out.parent.is_dir():
        raise InputError(f"--fix {str(out)!r}: there is no folder {str(out.parent)!r}")
    changes = out.with_name(f"{out.name}.changes.jsonl")
    if changes.exists() and changes.samefile(source):
        raise InputError(f"--fix {str(out)!r} would list its changes in the file itself")
    return changes


class Fix:
    """Decides of each row what becomes of it, and counts the changes by (action, reason)."""

    def __init__(self, findings: Findings, main: Format | None) -> None:
        self._marked = groupby(findings.rows(), key=lambda mark: mark[0])
        self._next = next(self._marked, None)
        self._main = main
        self._apart = "implicit_prompt" in findings and main is not None and main.prompt == "implicit" and main.form == "text"
        self.changes: Counter[tuple[str, str]] = Counter()
        self.rows = 0

    def sort(self, rows: Iterator[Read]) -> Iterator[tuple[Mapping[str, Any] | None, list[dict[str, Any]]]]:
        """(the row as it stands in the copy, None if it is left out; the changes) of each row."""
        for place, row in rows:
            kept, done = self._decide(place, row)
            self.rows += kept is not None
            self.changes.update({(action, reason) for action, reason, _ in done})
            name = None if isinstance(row, InputError) else row.get("id")
            name = name if isinstance(name, (str, int)) else None
            yield kept, [{"line": place, "id": name, "action": act, "reason": why, "detail": what} for act, why, what in done]

    def _decide(
        self, place: int, row: Mapping[str, Any] | InputError
    ) -> tuple[Mapping[str, Any] | None, list[tuple[str, str, str]]]:
        marks = self._marks(place)
        if isinstance(row, Ended):
            raise InputError(f"--fix: row {place}: {row}: a copy would lack it all, so none is written")
        if isinstance(row, InputError):
            return None, [("removed", "unreadable", excerpt(row))]
        if marks:
            return None, [("removed", code, detail) for code, detail in marks[:1]]
        row, mended = repaired(row)
        form = format_of(row)
        if form != self._main:
            return None, [("removed", "mixed_formats", str(form))]
        done = [("repaired", code, detail) for code, detail in mended]
        if self._apart:
            row = explicit(row, form)
            done.append(("repaired", "implicit_prompt", "the prompt stands in a column of its own"))
        return row, done

    def _marks(self, place: int) -> list[tuple[str, str]]:
        """What was found wrong with the row at a place; places are asked for in their order."""
        while self._next is not None and self._next[0] < place:
            self._next = next(self._marked, None)
        if self._next is None or self._next[0] != place:
            return []
        return [(code, detail) for _, code, detail in self._next[1]]


def write(out: Path, changes_at: Path, fix: Fix, rows: Iterator[Read]) -> bool:
    """Writes the copy and the list of changes, both or neither: False if no row is left. Raises InputError if it cannot."""
    try:
        with whole(changes_at) as listed:
            write_jsonl(out, _noting(fix, rows, listed))
        return True
    except _NothingLeft:
        return False
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"--fix {str(out)!r}: a row cannot be written as JSON: {error}") from None


def _noting(fix: Fix, rows: Iterator[Read], listed: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    for row, changes in fix.sort(rows):
        for change in changes:
            listed.write(orjson.dumps(change, option=orjson.OPT_APPEND_NEWLINE))
        if row is not None:
            yield row
    if not fix.rows:
        raise _NothingLeft


class _NothingLeft(Exception):
    """No row is without an error: a file without rows is no copy."""
