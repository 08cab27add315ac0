"""What is written to the ledger, and how: rows, the jobs that add them, and what a whole group of jobs does."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.ledger.file import check, crc_of, pack, sound
from rlaif.prices import SpendRow, Usage, guess_tokens, is_completion, usage_of

BATCH = 256
_ADD_CALLS, _ADD_RECORDS, _ROWS = "INSERT INTO calls VALUES ", "INSERT OR REPLACE INTO records VALUES ", 128
ADD_CALL = f"INSERT INTO calls VALUES ({'?, ' * 11}?)"
ADD_FAULT = "INSERT INTO faults (ordinal, role, model, at, kind, status, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer on file: the response it came in, and which of its choices it is."""

    call: int
    choice: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without an answer, final until failures are retried."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as it is stored; `body` is what `records.dump_prompt` wrote."""

    ordinal: int
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Use:
    """What one response used: tokens of the prompt and of the completion, and how many came from the provider's cache."""

    role: str
    model: str
    tokens: tuple[int, int]
    cached: int


@dataclass(frozen=True, slots=True)
class Call:
    """A response to be stored; what it used is read from the body unless it is given."""

    id: int
    ordinal: int
    role: str
    model: str
    kept_at: float
    keys: bytes
    body: bytes
    packed: bytes
    free: bool
    usage: Usage | None
    asked_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A record to be stored."""

    ordinal: int
    calls: int
    packed: bytes


Job = Work | Call | Finished


def do(db: sqlite3.Connection, jobs: Sequence[Job], spend: dict[tuple[str, str], SpendRow]) -> list[Any]:
    """Does the jobs in one transaction, rows of a kind together, and adds to `spend`. A call's result is whether it is one."""
    calls, records, used, results = [], [], defaultdict[tuple[str, str], list[_Used]](list), []
    for job in jobs:
        result: Any = None
        if isinstance(job, Call):
            usage, packed = job.usage or usage_of(job.body), job.packed
            result = usage is not None or is_completion(job.body)
            if result:
                tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) if usage else (None, None, None)
                row = (job.ordinal, job.role, job.model, job.kept_at, None, job.keys, *tokens, packed)
                calls.append((job.id, *row, crc_of(*row)))
                used[(job.model, job.role)].append((job, usage))
            else:
                fault = (job.ordinal, job.role, job.model, job.kept_at, "bad_body", 200, packed)
                db.execute(ADD_FAULT, (*fault, crc_of(*fault)))
        elif isinstance(job, Finished):
            record = (job.ordinal, job.calls, job.packed)
            records.append((*record, crc_of(*record)))
        else:
            result = job(db)
        results.append(result)
    _insert(db, _ADD_CALLS, calls)
    _insert(db, _ADD_RECORDS, records)
    for name, responses in used.items():
        spend[name] = _added(spend.get(name) or SpendRow(*name, True, 0, 0, 0, 0, 0, 0, 0), responses)
    return results


def _insert(db: sqlite3.Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts rows, many in a statement: between statements the interpreter's lock changes hands, which costs more."""
    at, many = 0, _ROWS
    while at < len(rows):
        while many > len(rows) - at:
            many //= 2
        part = rows[at : at + many]
        db.execute(sql + ", ".join([f"({', '.join('?' * len(part[0]))})"] * many), [value for row in part for value in row])
        at += many


_Used = tuple[Call, Usage | None]


def _added(row: SpendRow, responses: Sequence[_Used]) -> SpendRow:
    """The totals with `responses`."""
    counted = [usage for _, usage in responses if usage is not None]
    silent = [call for call, usage in responses if usage is None]
    return replace(
        row,
        free=row.free and all(call.free for call, _ in responses),
        calls=row.calls + len(responses),
        uncounted=row.uncounted + len(silent),
        prompt_tokens=row.prompt_tokens + sum(u.prompt_tokens for u in counted),
        cached_tokens=row.cached_tokens + sum(u.cached_tokens for u in counted),
        completion_tokens=row.completion_tokens + sum(u.completion_tokens for u in counted),
        guessed_prompt_tokens=row.guessed_prompt_tokens + sum(call.asked_tokens for call in silent),
        guessed_completion_tokens=row.guessed_completion_tokens
        + sum(guess_tokens(call.body.decode("utf-8", "replace")) for call in silent),
    )


def note(db: sqlite3.Connection, facts: dict[str, str]) -> None:
    """Stores named facts of the run."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", [(*fact, crc_of(*fact)) for fact in facts.items()])


def fact(db: sqlite3.Connection, name: str) -> str | None:
    """A named fact of the run."""
    found = None
    for key, value, crc in db.execute("SELECT name, value, crc FROM meta NOT INDEXED"):  # few: the index need not be believed
        check(f"the fact {key!r}", (key, value), crc)
        found = str(value) if key == name else found
    return found


def drop_failures(db: sqlite3.Connection, kind: str | None) -> None:
    """Takes out failed calls (of one kind, or all), and the records that were made with them."""
    which = "kind IS NOT NULL" + (" AND kind = ?" if kind else "")
    values = (kind,) if kind else ()
    db.execute(f"DELETE FROM records WHERE ordinal IN (SELECT ordinal FROM calls INDEXED BY failed WHERE {which})", values)
    db.execute(f"DELETE FROM calls INDEXED BY failed WHERE {which}", values)


def store_prompts(
    db: sqlite3.Connection, prompts: Iterable[PromptRow], changed: Callable[[PromptRow | None, PromptRow | None], object]
) -> None:
    """Compares prompts with those on file, by their places, and adds what is new. `changed` is asked where they differ."""
    on_file = db.execute("SELECT ordinal, id, body, crc FROM prompts ORDER BY ordinal")
    before = on_file.fetchone()
    add, new = "INSERT OR REPLACE INTO prompts VALUES (?, ?, ?, ?)", list[tuple[Any, ...]]()
    for prompt in prompts:
        row = _prompt_row(prompt)
        if before is not None and before[0] == prompt.ordinal:  # else it is new, or was lost with a damaged ledger
            ordinal, name, body, crc = before
            same, before = before == row, on_file.fetchone()
            if same:
                continue
            was = PromptRow(ordinal, name, sound(f"prompt {ordinal + 1}", (ordinal, name, body), crc))
            if was == prompt:  # packed by another version of zlib
                continue
            changed(was, prompt)
            db.execute("DELETE FROM records WHERE ordinal = ?", (ordinal,))
        new.append(row)
        if len(new) >= BATCH:  # all stand before what is still to be read
            db.executemany(add, new)
            new.clear()
    db.executemany(add, new)
    if before is not None:
        changed(PromptRow(before[0], before[1], b""), None)


def _prompt_row(prompt: PromptRow) -> tuple[Any, ...]:
    row = (prompt.ordinal, prompt.id, pack(prompt.body))
    return (*row, crc_of(*row))
