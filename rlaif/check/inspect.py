"""One pass over the rows: every check of a row, then those that need all of them."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.check import near
from rlaif.check.balance import Balance
from rlaif.check.contamination import TestSets
from rlaif.check.duplicates import Duplicates
from rlaif.check.findings import Fault, Findings
from rlaif.check.formats import Example, Format, format_of, read
from rlaif.check.near import NearDuplicates
from rlaif.check.reading import Read
from rlaif.check.repairs import repaired, separable
from rlaif.check.rules import RULES
from rlaif.check.structure import CHECKS
from rlaif.check.tokens import Tokens
from rlaif.errors import InputError
from rlaif.rows import kind_of

MOST_COLUMNS = 100
_EVERY_S = 10.0

Say = Callable[[str], None]


@dataclass(slots=True)
class Seen:
    """What the rows have shown: formats with (rows, first place), columns with the rows that fill them."""

    rows: int = 0
    formats: dict[Format, tuple[int, int]] = field(default_factory=dict)
    columns: Counter[str] = field(default_factory=Counter)
    types: dict[str, dict[str, int]] = field(default_factory=dict)
    balance: Balance = field(default_factory=Balance)

    @property
    def main(self) -> Format | None:
        """The format of most rows, the first of equals; None without any."""
        return max(self.formats, key=lambda form: self.formats[form][0]) if self.formats else None

    def count(self, place: int, row: Mapping[str, Any], form: Format) -> None:
        """Notes a row."""
        if form.kind != "unknown" and form.form != "both":
            rows, first = self.formats.get(form, (0, place))
            self.formats[form] = (rows + 1, first)
        for name, value in row.items():
            if value is None or (name not in self.columns and len(self.columns) >= MOST_COLUMNS):
                continue
            self.columns[name] += 1
            types = self.types.setdefault(name, {})
            kind = kind_of(value) if value != [] else "a list"
            if kind not in types:
                types[kind] = place


def inspect(
    rows: Iterator[Read], findings: Findings, *, tokens: Tokens | None, tests: TestSets | None, near_too: bool, say: Say
) -> Seen:
    """Goes through the rows and adds all that is wrong with them to the findings."""
    seen, began, said = Seen(), time.monotonic(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlaif-check-") as folder, ExitStack() as stack:
        repeats = stack.enter_context(closing(Duplicates(Path(folder))))
        likes = stack.enter_context(closing(NearDuplicates(Path(folder)))) if near_too else None
        for place, row in rows:
            seen.rows += 1
            if isinstance(row, InputError):
                findings.add("unreadable", place, str(row))
                continue
            example = _one(place, row, seen, findings, tokens, tests)
            if example is not None:
                exact = repeats.add(place, example)
                if likes is not None:
                    likes.add(place, exact, example)
            if seen.rows % 1000 == 0 and time.monotonic() - said > _EVERY_S:
                said = time.monotonic()
                say(f"{seen.rows:,} rows read, {seen.rows / (said - began):,.0f} a second")
        for found in (repeats.repeats(), repeats.shared_ids()):
            for code, place, detail in found:
                findings.add(code, place, detail)
        for place, other, share in likes.found() if likes is not None else ():
            findings.add("near_duplicate", place, f"like row {other}, similarity {share:.2f}")
    _whole(seen, findings)
    for note in (near.why_not() if not near_too else "", *(tests.notes() if tests is not None else ())):
        if note:
            findings.add("not_done", 0, note)
    return seen


def _one(
    place: int, row: Mapping[str, Any], seen: Seen, findings: Findings, tokens: Tokens | None, tests: TestSets | None
) -> Example | None:
    """Checks a row by itself, and returns it if other rows are to be compared with it: without an error, that is."""
    row, mended = repaired(row)
    _add(findings, place, mended, keep=True)
    form = format_of(row)
    seen.count(place, row, form)
    example, faults = read(row, form)
    if form.dialect:
        findings.add("dialect", place, str(form))
    if example is None:
        _add(findings, place, faults)
        return None
    for check in CHECKS:
        faults += check(example)
    if tests is not None:
        faults += tests(example)
    if tokens is not None and not any(RULES[code].severity == "error" for code, _ in faults):
        faults += tokens(example)
    faults += seen.balance.add(example)
    keep = [fault for fault in faults if fault[0] == "implicit_prompt" and separable(example)]
    _add(findings, place, [fault for fault in faults if fault not in keep])
    _add(findings, place, keep, keep=True)
    wrong = any(RULES[code].severity == "error" for code, _ in faults if code != "implicit_prompt" or not keep)
    return None if wrong else example


def _add(findings: Findings, place: int, faults: Sequence[Fault], *, keep: bool = False) -> None:
    """Adds what is wrong with a row, each code once; `keep`: the row itself can stay."""
    for code, detail in {code: (code, detail) for code, detail in reversed(faults)}.values():
        findings.add(code, place, detail, keep=keep)


def _whole(seen: Seen, findings: Findings) -> None:
    """What only all rows show."""
    if not seen.rows:
        findings.add("no_rows", 0, "the file is empty")
    main = seen.main
    first = min(seen.formats.items(), key=lambda item: item[1][1])[0] if seen.formats else None
    for form, (rows, place) in seen.formats.items():
        if form != main and main is not None:
            taken = "; it is the first row's, so trainers take all rows for such" if form == first else ""
            findings.add("mixed_formats", place, f"{rows} rows: {form}{taken}", times=rows)
    whole = sum(rows for rows, _ in seen.formats.values())
    for name, rows in seen.columns.items():
        if rows < whole and len(seen.formats) == 1:
            findings.add("uneven_columns", 0, f"`{name}` is in {rows} of {whole} rows")
        types = seen.types[name]
        if len(types) > 1 and len(seen.formats) == 1:
            places = ", ".join(f"{kind} from row {place} on" for kind, place in types.items())
            findings.add("mixed_types", max(types.values()), f"`{name}`: {places}")
    for code, detail in seen.balance.faults():
        findings.add(code, 0, detail)
