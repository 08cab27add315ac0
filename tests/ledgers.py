"""What tests of the ledger share: opening it, filling it, asking it, and looking at its file from outside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.ledger import KEY_BYTES, Failure, Ledger, PromptRow, Stored


def using(directory: Path, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
    """Opens the ledger, works with it in an event loop, closes it."""

    async def run() -> Any:
        ledger = Ledger.open(directory)
        try:
            return await work(ledger)
        finally:
            ledger.close()

    return asyncio.run(run())


@contextmanager
def reading(directory: Path) -> Iterator[Ledger]:
    with closing(Ledger.read(directory)) as ledger:
        yield ledger


def key(*of: Any) -> bytes:
    return hashlib.blake2b(repr(of).encode(), digest_size=KEY_BYTES).digest()


def completion(*texts: str, tokens: tuple[int, int] | None = (10, 20)) -> bytes:
    body: dict[str, Any] = {"choices": [{"index": i, "message": {"content": text}} for i, text in enumerate(texts)]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps(body).encode()


ANSWER = completion("Because.")


async def keep(ledger: Ledger, ordinal: int, keys: Iterable[bytes], body: bytes = ANSWER, **more: Any) -> int:
    return await ledger.keep(ordinal, list(keys), body, **{"role": "policy", "model": "m", "free": True} | more)


async def fail(ledger: Ledger, ordinal: int, keys: Iterable[bytes], kind: str = "timeout", message: str = "too slow") -> None:
    await ledger.fail(ordinal, list(keys), kind, message, role="policy", model="m")


def prompts(count: int, first: int = 0) -> list[PromptRow]:
    return [PromptRow(k, f"p{k}", b'{"messages":[%d]}' % k) for k in range(first, count)]


def refuse(before: PromptRow | None, now: PromptRow | None) -> None:
    raise InputError(f"{before} is now {now}")


async def begin(ledger: Ledger, rows: Iterable[PromptRow] | None, facts: dict[str, str] | None = None) -> None:
    await ledger.begin(facts or {}, None if rows is None else lambda: rows, plan="plan", changed=refuse)


def found(ledger: Ledger, ordinal: int, what: bytes) -> tuple[int, bytes] | Failure | None:
    """What a key answers to: a choice of a body, a failure, or nothing."""
    entry = ledger.lookup(ordinal, what)
    return (entry.choice, ledger.body(entry.call)) if isinstance(entry, Stored) else entry


def sql(directory: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """What another process reads in the file."""
    with closing(sqlite3.connect(directory / "run.sqlite", isolation_level=None)) as db:
        return db.execute(query, values).fetchall()


def flip(directory: Path, stored: bytes | str) -> None:
    """Turns one bit in the middle of a value as it lies in the file, everywhere it does."""
    raw = stored if isinstance(stored, bytes) else stored.encode()
    path = directory / "run.sqlite"
    data = bytearray(path.read_bytes())
    assert not (directory / "run.sqlite-wal").exists() and raw in data
    for at in range(len(data)):
        if data[at : at + len(raw)] == raw:
            data[at + len(raw) // 2] ^= 1
    path.write_bytes(data)
