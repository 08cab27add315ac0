"""Takes each row of a run once, from wherever it was found, if it can be believed; and counts what is missing.

What was bought is right for ever: an answer or a fault counts wherever it lies, also on a page that SQLite has freed or in an
old copy of a page. Prompts, failures, records and facts are replaced and deleted by a run: of these only rows on pages in use
count.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

from rlaif.doctor.tables import Row, Table

LABELS = ("prompts", "answers", "failures", "faults", "records", "meta")
"""What rows are counted as: those of `calls` are answers or failures."""

_FORGOTTEN = 2**20  # failures that a run may have deleted, so that numbers go beyond the rows there are
_MEANS = {
    "prompts": "the next run writes them again from its input",
    "answers": "a resume buys them again where their prompt has no record",
    "failures": "a resume asks again",
    "faults": "missing in the count of attempts without an answer, no more",
    "records": "a resume makes them again from the stored answers, without a call",
    "meta": "facts of the run, which the next run writes again",
}


@dataclass
class Totals:
    """What the answers of one model in one role used; `uncounted` are those that did not say."""

    calls: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, table: Table, row: Row) -> None:
        """Adds an answer."""
        prompt, cached, completion = (row[table.place(c)] for c in ("prompt_tokens", "cached_tokens", "completion_tokens"))
        self.calls += 1
        self.uncounted += prompt is None
        self.prompt_tokens += prompt or 0
        self.cached_tokens += cached or 0
        self.completion_tokens += completion or 0

    def numbers(self) -> tuple[int, ...]:
        """As `spend` has them, without the guesses."""
        return self.calls, self.uncounted, self.prompt_tokens, self.cached_tokens, self.completion_tokens


Spend = dict[tuple[str, str], Totals]
"""By model and role."""


@dataclass(frozen=True)
class Saved:
    """What came through: rows and known losses by label, the losses in words, and the totals of the answers.

    `old_spend` are the rows of the damaged file's `spend` that are still to be read.
    """

    rows: dict[str, int]
    lost: dict[str, int]
    losses: tuple[str, ...]
    totals: Spend
    old_spend: dict[tuple[str, str], Row]


class Sieve:
    """Rows go into the ledger `into`, if there is one. Close it.

    `most` is how many rows the file has room for: a rowid far above it is not believed, since the checksum of calls and
    faults does not cover it. `records=False` lets none through.
    """

    def __init__(self, into: sqlite3.Connection | None, *, most: int, records: bool) -> None:
        self._into, self._most, self._records = into, most, records
        self._rows = Counter(dict.fromkeys(LABELS, 0))
        self._totals: Spend = {}
        self._last_prompt = -1
        self._last_id: Counter[str] = Counter()
        # Which rows were seen, in a temporary database that spills to disk: a run may have millions.
        self._notes = sqlite3.connect("", isolation_level=None)
        self._notes.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE taken (digest BLOB PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE ids (of TEXT, id, PRIMARY KEY (of, id)) WITHOUT ROWID;"
            "CREATE TABLE bad (of TEXT, id, PRIMARY KEY (of, id)) WITHOUT ROWID; BEGIN"
        )

    def close(self) -> None:
        """Forgets which rows were seen."""
        self._notes.close()

    def take(self, table: Table, rowid: int, row: Row, *, in_use: bool) -> None:
        """Takes a row that fits its table, unless its checksum is wrong, it was taken before, or it may be out of date."""
        if not table.sound(row):
            if in_use:
                self.miss(table, rowid)
            return
        label = label_of(table, row)
        if not (in_use or label in ("answers", "faults")) or (label == "records" and not self._records):
            return
        if not self._notes.execute("INSERT OR IGNORE INTO taken VALUES (?)", (_identity(table, row),)).rowcount:
            return
        self._notes.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (table.name, rowid))
        self._rows[label] += 1
        if "ordinal" in table.columns:
            self._last_prompt = max(self._last_prompt, row[table.place("ordinal")])
        if 0 < rowid <= self._most:
            self._last_id[table.name] = max(self._last_id[table.name], rowid)
        if label == "answers":
            name = row[table.place("model")], row[table.place("role")]
            self._totals.setdefault(name, Totals()).add(table, row)
        if self._into is not None:
            self._insert(self._into, table, row)

    def miss(self, table: Table, rowid: int) -> None:
        """Notes a row that is there and damaged."""
        self._notes.execute("INSERT OR IGNORE INTO bad VALUES (?, ?)", (table.name, rowid))

    def saved(self, known: dict[str, int], old_spend: dict[tuple[str, str], Row]) -> Saved:
        """What was taken. `known` is how many rows there were, as far as indexes still say.

        A record whose prompt is lost is let go: it cannot be exported, and to make it again costs no call.
        """
        known["records"] = max(known.get("records", 0), self._rows["records"])
        prompts = "SELECT id FROM ids WHERE of = 'prompts'"
        let_go = self._notes.execute(f"DELETE FROM ids WHERE of = 'records' AND id NOT IN ({prompts})").rowcount
        self._rows["records"] -= let_go
        if let_go and self._into is not None:
            self._into.execute("DELETE FROM records WHERE ordinal NOT IN (SELECT ordinal FROM prompts)")
        if old_spend:
            known["answers"] = max(known.get("answers", 0), sum(row[3] for row in old_spend.values()))
        lost = self._lost(known)
        said = {label: f"lost {label}: {count:,}; {_MEANS[label]}" for label, count in lost.items() if count}
        bought = [self._to_buy(name, row) for name, row in sorted(old_spend.items())]
        if "answers" in said and any(bought):
            said["answers"] += f" ({'; '.join(filter(None, bought))})"
        return Saved(dict(self._rows), lost, tuple(said.values()), self._totals, old_spend)

    def _lost(self, known: dict[str, int]) -> dict[str, int]:
        ask = "SELECT of, count(*) FROM (SELECT of, id FROM bad EXCEPT SELECT of, id FROM ids) GROUP BY of"
        bad = Counter({"answers" if of == "calls" else str(of): int(count) for of, count in self._notes.execute(ask)})
        known["prompts"] = max(known.get("prompts", 0), self._last_prompt + 1)
        known["faults"] = max(known.get("faults", 0), self._last_id["faults"])
        # Where nothing else tells, a number that is missing was an answer; or a failure that was forgotten.
        known.setdefault("answers", self._last_id["calls"] - self._rows["failures"])
        missing = {label: max(0, known.get(label, 0) - self._rows[label]) for label in LABELS}
        bad["answers"] -= missing["failures"]  # a damaged row of `calls` may have been either
        return {label: max(missing[label], bad[label]) for label in LABELS}

    def _to_buy(self, name: tuple[str, str], row: Row) -> str:
        calls, _, prompt, _, completion = self._totals.get(name, Totals()).numbers()
        if row[3] <= calls:
            return ""
        tokens = f"{max(0, row[5] - prompt):,} prompt and {max(0, row[7] - completion):,} completion tokens"
        return f"{row[3] - calls:,} of {row[0]} as {row[1]}, {tokens}"

    def _insert(self, into: sqlite3.Connection, table: Table, row: Row) -> None:
        sql = f"INSERT OR IGNORE INTO {table.name} VALUES ({', '.join('?' * len(row))})"
        if table.columns[0] != "id":
            into.execute(sql, row)
        elif not (0 < row[0] <= self._most + _FORGOTTEN and into.execute(sql, row).rowcount):
            into.execute(sql, (None, *row[1:]))  # its number is damaged, or that of another row is: it gets a new one


def label_of(table: Table, row: Row) -> str:
    """What a row counts as."""
    if table.name != "calls":
        return table.name
    return "answers" if row[table.place("kind")] is None else "failures"


def in_words(rows: dict[str, int]) -> str:
    """Counts by label."""
    return ", ".join(f"{rows.get(label, 0):,} {'facts' if label == 'meta' else label}" for label in LABELS)


def _identity(table: Table, row: Row) -> bytes:
    """The same for two versions or copies of one row: its key, or for calls and faults, whose id may be damaged, what it is."""
    if table.name == "calls":
        parts: Row = tuple(row[table.place(c)] for c in ("ordinal", "role", "model", "kept_at", "kind", "keys"))
    elif table.columns[0] == "id":
        parts = row[1:]
    else:
        parts = row[:1]
    return blake2b(repr((table.name, parts)).encode(), digest_size=16).digest()
