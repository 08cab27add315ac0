"""Findings: what was found, how often, where first; and which rows of the file it concerns.

Memory does not grow with the rows: of each kind of finding a few examples are kept. Which rows are to be left out of a cleaned
copy is noted, where one is wanted, in a private database, which beyond its cache is a temporary file.
"""

from __future__ import annotations

import sqlite3
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlaif.check.rules import RULES, SEVERITIES, Rule

EXAMPLES = 3
EXCERPT = 160
_CACHE_KB = 4096

Fault = tuple[str, str]
"""(code of a rule, what exactly)"""


@dataclass(slots=True)
class Finding:
    """What a rule found: `count` rows (or findings, where rows have none), and the first `examples`: (place, detail)."""

    rule: Rule
    count: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)

    def add(self, place: int, detail: str, times: int = 1) -> None:
        """So many more. The examples of the lowest places are kept."""
        self.count += times
        if len(self.examples) < EXAMPLES or place < self.examples[-1][0]:
            insort(self.examples, (place, excerpt(detail)))
            del self.examples[EXAMPLES:]


class Findings:
    """All findings of a file. `remember`: also which rows those are that a cleaned copy leaves out."""

    def __init__(self, *, remember: bool = False) -> None:
        self._by_code: dict[str, Finding] = {}
        self._db: sqlite3.Connection | None = None
        if remember:
            self._db = sqlite3.connect("", isolation_level=None)
            self._db.executescript(
                f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KB};"
                "CREATE TABLE rows (place INTEGER NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL); BEGIN"
            )

    def add(self, code: str, place: int, detail: str, *, times: int = 1, keep: bool = False) -> None:
        """Notes that the row at `place` (0: the file) breaks a rule. `keep`: a cleaned copy has it, put right."""
        found = self._by_code.get(code)
        if found is None:
            found = self._by_code[code] = Finding(RULES[code])
        found.add(place, detail, times)
        if self._db is not None and place and not keep and (found.rule.severity == "error" or code == "duplicate"):
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?)", (place, code, excerpt(detail)))

    def __contains__(self, code: str) -> bool:
        return code in self._by_code

    def listed(self) -> list[Finding]:
        """All, errors first, in the order of the rules."""
        order = {code: (SEVERITIES.index(rule.severity), place) for place, (code, rule) in enumerate(RULES.items())}
        return sorted(self._by_code.values(), key=lambda found: order[found.rule.code])

    def rows(self) -> Iterator[tuple[int, str, str]]:
        """(place, code, detail) of the rows to be left out, by place."""
        if self._db is not None:
            yield from self._db.execute("SELECT place, code, detail FROM rows ORDER BY place, rowid")

    def close(self) -> None:
        """Frees the database."""
        if self._db is not None:
            self._db.close()


def excerpt(text: Any, length: int = EXCERPT) -> str:
    """A text in one line of at most `length` characters, without what a terminal would act on."""
    head = " ".join(str(text)[: 8 * length].split())
    head = "".join(letter if letter.isprintable() else "�" for letter in head)
    return head if len(head) <= length else head[: length - 1] + "…"
