"""The run store: real SQLite files, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError, StopRun
from rlaif.ledger import SCHEMA_VERSION, Failure, Ledger, Stored


def using(directory: Path, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
    """Opens the ledger, works with it in an event loop, closes it."""

    async def run() -> Any:
        ledger = Ledger.open(directory)
        try:
            return await work(ledger)
        finally:
            ledger.close()

    return asyncio.run(run())


async def keep(ledger: Ledger, keys: list[str], body: bytes = b"{}", *, role: str = "policy", free: bool = True) -> int:
    return await ledger.keep(keys, body, role=role, model="m", free=free)


def test_the_ith_choice_answers_the_ith_key(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        call = await keep(ledger, ["a", "b"], b"\x00 any bytes \xff")
        for choice, key in enumerate("ab"):
            found = ledger.lookup(key)
            assert isinstance(found, Stored)
            assert (found.call, found.choice, found.counted, found.body) == (call, choice, False, b"\x00 any bytes \xff")
        assert ledger.lookup("c") is None

    using(tmp_path / "run", work)


def test_the_next_body_rebinds_a_key_and_an_answer_ends_a_failure(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        first = await keep(ledger, ["a", "b"], b"half")
        second = await keep(ledger, ["b"], b"whole")
        found = [ledger.lookup(k) for k in "ab"]
        assert [(f.call, f.choice, f.body) for f in found if isinstance(f, Stored)] == [
            (first, 0, b"half"),
            (second, 0, b"whole"),
        ]
        await ledger.fail(["b", "c"], "timeout", "too slow")
        assert [ledger.lookup(k) for k in "bc"] == [Failure("timeout", "too slow")] * 2
        await keep(ledger, ["c"], b"late")
        found = [ledger.lookup("c")]
        assert isinstance(found[0], Stored) and found[0].body == b"late"

    using(tmp_path, work)


def test_what_was_awaited_is_committed_before_anything_else_happens(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        with closing(sqlite3.connect(tmp_path / "run.sqlite")) as other:
            for k in range(20):
                await keep(ledger, [str(k)])
                assert other.execute("SELECT count(*) FROM answers").fetchone() == (k + 1,)

    using(tmp_path, work)


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        calls = await asyncio.gather(*(keep(ledger, [f"{k}-{i}" for i in range(3)], str(k).encode()) for k in range(1500)))
        assert len(set(calls)) == 1500
        for k, call in enumerate(calls):
            found = ledger.lookup(f"{k}-2")
            assert isinstance(found, Stored) and (found.call, found.choice, found.body) == (call, 2, str(k).encode())

    using(tmp_path, work)


def test_close_waits_for_what_was_begun(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        tasks = [asyncio.ensure_future(keep(ledger, [str(k)])) for k in range(300)]
        await asyncio.sleep(0)
        ledger.note_usage(1, 5, 7)
        ledger.close()
        await asyncio.gather(*tasks)

    asyncio.run(work(Ledger.open(tmp_path)))
    with closing(Ledger.read(tmp_path)) as ledger:
        assert all(ledger.lookup(str(k)) for k in range(300))
        assert (ledger.spend().prompt_tokens, ledger.spend().completion_tokens) == (5, 7)


WRITER = """
import asyncio, sys
from pathlib import Path
from rlaif.ledger import Ledger
async def main():
    ledger = Ledger.open(Path(sys.argv[1]))
    start = int(sys.argv[2])
    async def one(k):
        await ledger.keep([f"k{k}"], b"body %d" % k, role="policy", model="m", free=True)
        print(k, flush=True)
    for k in range(start, 10**9, 4):
        await asyncio.gather(*(one(k + i) for i in range(4)))
asyncio.run(main())
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for lines in (1, 7, 40, 160):
        next_key = max(acknowledged, default=-1) + 1000
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(next_key)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(lines)]
            os.kill(process.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    with closing(Ledger.read(tmp_path)) as ledger:
        for k in acknowledged:
            found = ledger.lookup(f"k{k}")
            assert isinstance(found, Stored) and found.body == b"body %d" % k


def test_one_owner_at_a_time_readers_any(tmp_path: Path) -> None:
    with closing(Ledger.open(tmp_path)):
        with pytest.raises(InputError, match=f"pid {os.getpid()} "):
            Ledger.open(tmp_path)
        with closing(Ledger.read(tmp_path)) as reader:
            assert reader.lookup("a") is None
    Ledger.open(tmp_path).close()


def test_a_refused_owner_does_not_release_the_first(tmp_path: Path) -> None:
    with closing(Ledger.open(tmp_path)):
        for _ in range(2):
            with pytest.raises(InputError, match="another process"):
                Ledger.open(tmp_path)


def test_records_come_in_input_order_and_up_to_a_limit(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        for ordinal in (7, 0, 3):
            await ledger.save_record(ordinal, f"record {ordinal}".encode())
        await ledger.save_record(3, b"record 3 again")
        assert list(ledger.records()) == [b"record 0", b"record 3 again", b"record 7"]
        assert list(ledger.records(4)) == [b"record 0", b"record 3 again"]
        assert list(ledger.records(0)) == []

    using(tmp_path, work)


def test_records_outlive_a_run_with_the_same_plan_only_and_answers_every_plan(tmp_path: Path) -> None:
    async def one(ledger: Ledger) -> None:
        await ledger.begin({"seed": "0"}, [(0, "a", "x")], plan="first")
        await keep(ledger, ["k"])
        await ledger.save_record(0, b"r")

    async def again(ledger: Ledger, plan: str, records: list[bytes]) -> None:
        await ledger.begin({"seed": "1"}, [(0, "a", "x"), (1, "b", "y")], plan=plan)
        assert list(ledger.records()) == records
        assert ledger.lookup("k") is not None
        assert (ledger.meta("seed"), ledger.meta("other")) == ("1", None)
        assert list(ledger.prompts()) == [(0, "a", "x"), (1, "b", "y")]

    using(tmp_path, one)
    using(tmp_path, lambda ledger: again(ledger, "first", [b"r"]))
    using(tmp_path, lambda ledger: again(ledger, "second", []))


def test_failures_are_forgotten_on_request_alone(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await keep(ledger, ["good"])
        await ledger.fail(["bad"], "timeout", "too slow")
        await ledger.begin({}, [], plan="p")
        assert ledger.lookup("bad") == Failure("timeout", "too slow")
        await ledger.begin({}, [], plan="p", forget_failures=True)
        assert ledger.lookup("bad") is None and ledger.lookup("good") is not None

    using(tmp_path, work)


def test_spend_adds_up_and_one_unpriced_call_makes_it_unknown(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        assert (ledger.spend().prompt_tokens, ledger.spend().unpriced) == (0, False)
        first = await keep(ledger, ["a"])
        ledger.note_usage(first, 3, 4)
        ledger.note_usage(first, 300, 400)  # a call is counted once
        second = await keep(ledger, ["b"], role="judge")
        ledger.note_usage(second, 10, None)
        await keep(ledger, ["c"])
        spend = ledger.spend()
        assert (spend.prompt_tokens, spend.completion_tokens, spend.unpriced) == (13, 4, False)
        await keep(ledger, ["d"], free=False)
        assert ledger.spend().unpriced

    using(tmp_path, work)


def test_a_store_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await keep(ledger, ["a"])
        with closing(sqlite3.connect(tmp_path / "run.sqlite")) as other, other:
            other.execute("DROP TABLE answers")
        for _ in range(2):
            with pytest.raises(StopRun) as stop:
                await keep(ledger, ["b"])
            assert stop.value.kind == "disk" and "run.sqlite" in str(stop.value)

    using(tmp_path, work)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "bad",
    [
        lambda ledger, call: ledger.save_record(10**30, b"r"),
        lambda ledger, call: keep(ledger, ["x"], role="\ud800"),
        lambda ledger, call: ledger.begin({"seed": None}, [], plan="p"),  # type: ignore[dict-item]
        lambda ledger, call: ledger.note_usage(call, 10**30, 1),
        lambda ledger, call: ledger._commit(lambda db: 1 // 0),
    ],
    ids=["ordinal", "surrogate", "null", "usage", "raises"],
)
def test_whatever_goes_wrong_in_the_writer_everyone_who_waits_hears_of_it(tmp_path: Path, bad: Callable[..., Any]) -> None:
    async def work(ledger: Ledger) -> None:
        call = await keep(ledger, ["a"])
        waiting = [asyncio.ensure_future(keep(ledger, [f"b{k}"])) for k in range(5)]
        said = bad(ledger, call)
        waiting += [] if said is None else [asyncio.ensure_future(said)]
        for found in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(found, int) or (isinstance(found, StopRun) and found.kind == "disk")
        with pytest.raises(StopRun, match=r"run\.sqlite") as stop:
            await keep(ledger, ["c"])
        assert stop.value.kind == "disk"

    using(tmp_path, work)
    with closing(Ledger.read(tmp_path)) as ledger:
        assert isinstance(ledger.lookup("a"), Stored) and ledger.lookup("c") is None


@pytest.mark.timeout(60)
def test_a_failure_s_message_may_hold_half_a_surrogate_pair(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await ledger.fail(["a"], "bad_request", "half \ud800 a pair")
        assert ledger.lookup("a") == Failure("bad_request", "half ? a pair")

    using(tmp_path, work)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a run's ledger"),
        (b"SQLite format 3\x00" + b"\x00" * 200, "run.sqlite"),
        (b"My notes.\n" * 500, "not readable"),
    ],
    ids=["empty", "damaged", "text"],
)
def test_what_is_no_ledger_is_not_read(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.sqlite").write_bytes(content)
    with pytest.raises(InputError, match=words):
        Ledger.read(tmp_path)
    assert (tmp_path / "run.sqlite").read_bytes() == content


def test_a_newer_schema_is_refused_and_named(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for door in (Ledger.read, Ledger.open):
        with pytest.raises(InputError, match=f"schema {SCHEMA_VERSION + 1}"):
            door(tmp_path)


def test_a_file_of_length_zero_is_a_run_that_did_not_begin(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").touch()
    using(tmp_path, lambda ledger: keep(ledger, ["a"]))
    with closing(Ledger.read(tmp_path)) as ledger:
        assert isinstance(ledger.lookup("a"), Stored)


def test_a_database_without_tables_is_a_run_that_did_not_begin(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as db:
        db.execute("PRAGMA journal_mode=WAL")
    assert (tmp_path / "run.sqlite").read_bytes().startswith(b"SQLite format 3")
    using(tmp_path, lambda ledger: keep(ledger, ["a"]))
    with closing(Ledger.read(tmp_path)) as ledger:
        assert ledger.lookup("a") is not None


KEYS = st.sampled_from("abcdef")
STEPS = st.lists(
    st.tuples(st.just("keep"), st.lists(KEYS, min_size=1, max_size=3, unique=True), st.binary(max_size=9))
    | st.tuples(st.just("fail"), st.lists(KEYS, min_size=1, max_size=2, unique=True), st.text(max_size=5)),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_lookups_are_those_of_a_dict_also_after_reopening(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    directory, model = tmp_path_factory.mktemp("run"), dict[str, Any]()

    def same(ledger: Ledger) -> None:
        for key in "abcdef":
            found = ledger.lookup(key)
            assert (found and (found.choice, found.body) if isinstance(found, Stored) else found) == model.get(key)

    async def work(ledger: Ledger) -> None:
        for kind, keys, content in steps:
            if kind == "keep":
                await keep(ledger, keys, content)
                model.update({key: (choice, content) for choice, key in enumerate(keys)})
            else:
                await ledger.fail(keys, "kind", content)
                model.update(dict.fromkeys(keys, Failure("kind", content)))
        same(ledger)

    using(directory, work)
    with closing(Ledger.read(directory)) as ledger:
        same(ledger)
