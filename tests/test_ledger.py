"""The run store: real SQLite files, real processes, real kills, real disks without room."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers import in_namespace, python
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import ANSWER, begin, completion, fail, flip, found, keep, key, prompts, reading, refuse, sql, using

from rlaif.config import RunConfig
from rlaif.doctor import salvage
from rlaif.errors import InputError, StopRun
from rlaif.ledger import SCHEMA_VERSION, Failure, Ledger, PromptRow, Stored, crc_of
from rlaif.prices import SpendRow, Usage, guess_tokens
from rlaif.source import Source


def commits(directory: Path) -> int:
    """How many transactions stand in the write-ahead log: a frame that ends one says how large the file is then."""
    data = (directory / "run.sqlite-wal").read_bytes()
    if not data:
        return 0
    (size, *_), salts = struct.unpack(">I", data[8:12]), data[16:24]
    heads = [data[at : at + 24] for at in range(32, len(data) - 23, 24 + size)]
    return sum(head[4:8] != b"\0\0\0\0" and head[8:16] == salts for head in heads)


# Answers


def test_the_ith_choice_answers_the_ith_key(tmp_path: Path) -> None:
    body = completion("one", "two") + b" \n"

    async def work(ledger: Ledger) -> None:
        call = await keep(ledger, 7, [key("a"), key("b")], body)
        assert call > 0
        for choice, name in enumerate("ab"):
            assert ledger.lookup(7, key(name)) == Stored(call, choice)
        assert ledger.body(call) == body, "as it was received, byte by byte"
        assert ledger.lookup(7, key("c")) is None and ledger.lookup(6, key("a")) is None

    using(tmp_path / "run", work)
    with reading(tmp_path / "run") as ledger:
        assert [found(ledger, 7, key(name)) for name in "abc"] == [(0, body), (1, body), None]
        assert ledger.lookup(6, key("a")) is None, "what one prompt has bought answers no other"


def test_the_next_body_answers_what_the_last_one_left_open(tmp_path: Path) -> None:
    """A response of fewer choices than asked for holds no answer to the others: they are bound again."""
    short, rest = completion("one"), completion("two")

    async def work(ledger: Ledger) -> None:
        await keep(ledger, 0, [key("a"), key("b")], short)
        assert [found(ledger, 0, key(name)) for name in "ab"] == [(0, short), (1, short)]
        await keep(ledger, 0, [key("b")], rest)
        assert [found(ledger, 0, key(name)) for name in "ab"] == [(0, short), (0, rest)]

    using(tmp_path, work)
    with reading(tmp_path) as ledger:
        assert [found(ledger, 0, key(name)) for name in "ab"] == [(0, short), (0, rest)]


KEYS = [key(k) for k in range(4)]
STEPS = st.lists(
    st.tuples(st.just("keep"), st.integers(0, 2), st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    | st.tuples(st.just("fail"), st.integers(0, 2), st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True))
    | st.tuples(st.just("other"), st.integers(0, 2), st.lists(st.sampled_from(KEYS), min_size=1, max_size=2))
    | st.tuples(st.sampled_from(["save", "look", "reopen", "forget"]), st.integers(0, 2), st.just([])),
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_lookups_are_those_of_a_dict_whatever_comes_between(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Answers of this process and of earlier ones, of shelves put away and taken out again, failures and their end."""
    directory, model, number = tmp_path_factory.mktemp("run"), dict[tuple[int, bytes], list[Any]](), 0

    def same(ledger: Ledger) -> None:
        for ordinal in range(3):
            for name in KEYS:
                assert found(ledger, ordinal, name) == (model.get((ordinal, name)) or [None])[-1]

    async def work(ledger: Ledger) -> None:
        nonlocal number
        while steps:
            kind, ordinal, keys = steps.pop(0)
            number += 1
            if kind == "keep":
                body = completion(str(number))
                await keep(ledger, ordinal, keys, body)
                for choice, name in enumerate(keys):
                    model.setdefault((ordinal, name), []).append((choice, body))
            elif kind == "fail":
                await fail(ledger, ordinal, keys, message=str(number))
                for name in keys:
                    model.setdefault((ordinal, name), []).append(Failure("timeout", str(number)))
            elif kind == "other":
                assert await keep(ledger, ordinal, keys, b"<html>") == 0
            elif kind == "save":
                await ledger.save_record(ordinal, b"{}")
            elif kind == "look":
                same(ledger)
            elif kind == "forget":
                await ledger.forget_failures("timeout")
                for place, said in model.items():
                    model[place] = [one for one in said if not isinstance(one, Failure)]
            else:
                return
        same(ledger)

    using(directory, work)
    while steps:
        using(directory, work)
    with reading(directory) as ledger:
        same(ledger)


NO_COMPLETIONS = {
    "empty": b"",
    "whitespace": b" \n" * 100,
    "html": b"<html>502</html>",
    "null": b"null",
    "list": b"[]",
    "choices null": b'{"choices": null}',
    "no choices": b'{"choices": []}',
    "error": b'{"error": {"message": "slow down", "code": 429}}',
    "cut": ANSWER[:-5],
    "bytes": b"\xff\x00\xfe",
    "deep": b"[" * 200_000,
    "long number": b'{"choices": ' + b"1" * 6000 + b"}",
}


@pytest.mark.parametrize("body", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_a_body_that_is_no_completion_is_a_fault_and_binds_nothing(tmp_path: Path, body: bytes) -> None:
    async def work(ledger: Ledger) -> None:
        assert await keep(ledger, 3, [key("a")], body, free=False) == 0
        assert ledger.lookup(3, key("a")) is None
        assert ledger.faults() == {"bad_body": 1} and ledger.spend() == [] and ledger.maybe_lost() == 1

    using(tmp_path, work)
    ((ordinal, kind, status, packed),) = sql(tmp_path, "SELECT ordinal, kind, status, body FROM faults")
    assert (ordinal, kind, status, zlib.decompress(packed)) == (3, "bad_body", 200, body)
    with reading(tmp_path) as ledger:
        assert ledger.lookup(3, key("a")) is None and ledger.faults() == {"bad_body": 1}


STRANGE_COMPLETIONS = {
    "NaN": b'{"choices": [{"logprob": NaN}]}',
    "half a pair": b'{"choices": [{"text": "\\ud800"}]}',
    "only usage": b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}',
    "usage that is none": b'{"choices": [7], "usage": {"prompt_tokens": -3, "completion_tokens": "x"}}',
    "many tokens": completion("a", tokens=(2**53 - 1, 2**53 - 1)),
    "too many tokens": completion("a", tokens=(2**70, 1)),
}


@pytest.mark.parametrize("body", STRANGE_COMPLETIONS.values(), ids=STRANGE_COMPLETIONS)
def test_whatever_was_billed_is_kept_as_it_came(tmp_path: Path, body: bytes) -> None:
    async def work(ledger: Ledger) -> None:
        assert ledger.body(await keep(ledger, 0, [key("a")], body)) == body
        assert ledger.faults() == {} and sum(row.calls for row in ledger.spend()) == 1

    using(tmp_path, work)


def test_a_failure_s_message_may_hold_half_a_surrogate_pair(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await fail(ledger, 0, [key("a")], "bad_request", "half \ud800 a pair")
        assert ledger.lookup(0, key("a")) == Failure("bad_request", "half ? a pair")

    using(tmp_path, work)
    with reading(tmp_path) as ledger:
        assert ledger.lookup(0, key("a")) == Failure("bad_request", "half ? a pair")


def test_shelves_of_finished_prompts_are_put_away(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        async def one(ordinal: int) -> None:
            assert ledger.lookup(ordinal, key(ordinal)) is None
            await keep(ledger, ordinal, [key(ordinal)])
            await fail(ledger, ordinal, [key("f")])
            await ledger.save_record(ordinal, b"{}")

        for first in range(0, 300, 50):
            await asyncio.gather(*(one(ordinal) for ordinal in range(first, first + 50)))
            assert not ledger._shelves
        assert found(ledger, 17, key(17)) == (0, ANSWER), "and can be taken out again"

    using(tmp_path, work)


def test_a_record_counts_the_responses_that_it_was_made_from(tmp_path: Path) -> None:
    async def first(ledger: Ledger) -> None:
        await keep(ledger, 0, [key("a"), key("b")])
        await keep(ledger, 0, [key("old judge")])

    async def second(ledger: Ledger) -> None:
        for name in ("a", "b", "a", "c"):
            ledger.lookup(0, key(name))
        await keep(ledger, 0, [key("c")])
        await ledger.save_record(0, b"{}")
        assert ledger.finished() == (1, 2)

    using(tmp_path, first)
    using(tmp_path, second)


# Commits


def test_what_was_awaited_is_committed_before_anything_else_happens(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        with closing(sqlite3.connect(tmp_path / "run.sqlite")) as other:
            for k in range(10):
                call = await keep(ledger, k, [key(k)])
                assert other.execute("SELECT count(*), max(id) FROM calls").fetchone() == (k + 1, call)
                await ledger.save_record(k, b"{}")
                assert other.execute("SELECT count(*) FROM records").fetchone() == (k + 1,)
                await ledger.fault(k, "broken", None, b"half", role="policy", model="m")
                assert other.execute("SELECT count(*) FROM faults").fetchone() == (k + 1,)
                await ledger.note({"k": str(k)})
                assert other.execute("SELECT value FROM meta WHERE name = 'k'").fetchone() == (str(k),)

    using(tmp_path, work)


KILLED_AFTER_ONE = """
import asyncio, os, signal, sys
from pathlib import Path
from rlaif.ledger import Ledger
async def main(directory, first, many):
    ledger = Ledger.open(Path(directory))
    body = b'{"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    one = lambda k: ledger.keep(k, [b"%016d" % k], body, role="policy", model="m", free=True)
    await asyncio.gather(*(one(first + k) for k in range(many)))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def test_killed_right_after_the_await_it_is_there(tmp_path: Path) -> None:
    first = 0
    for many in (1, 700):
        assert subprocess.run(python(KILLED_AFTER_ONE, tmp_path, first, many), check=False).returncode == -signal.SIGKILL
        first += many
        with reading(tmp_path) as ledger:
            assert all(isinstance(ledger.lookup(k, b"%016d" % k), Stored) for k in range(first))
            assert [(row.calls, row.prompt_tokens, row.completion_tokens) for row in ledger.spend()] == [
                (first, 3 * first, 4 * first)
            ]


def test_jobs_of_one_turn_are_one_transaction(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await begin(ledger, prompts(3))
        before = commits(tmp_path)
        calls = await asyncio.gather(
            *(keep(ledger, k % 3, [key(k)], completion(str(k))) for k in range(150)),
            fail(ledger, 1, [key("f")]),
            ledger.fault(2, "broken", None, b"", role="judge", model="m"),
            ledger.save_record(0, b"{}"),
            ledger.note({"a": "b"}),
        )
        assert commits(tmp_path) == before + 1
        assert len(set(calls[:150])) == 150
        for k, call in enumerate(calls[:150]):
            assert ledger.lookup(k % 3, key(k)) == Stored(call, 0) and ledger.body(call) == completion(str(k))

    using(tmp_path, work)


def test_many_at_once_are_a_few_transactions(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        async def prompt(ordinal: int) -> None:
            for step in range(4):
                await keep(ledger, ordinal, [key(ordinal, step)], completion(f"{ordinal} {step}"))

        before = commits(tmp_path)
        await asyncio.gather(*(prompt(ordinal) for ordinal in range(60)))
        assert 4 <= commits(tmp_path) - before <= 30, "the fourth of a prompt waits for its third, others do not"
        for ordinal in range(60):
            assert found(ledger, ordinal, key(ordinal, 3)) == (0, completion(f"{ordinal} 3"))

    using(tmp_path, work)


def test_the_writing_connection_syncs_each_commit(tmp_path: Path) -> None:
    def pragmas(db: sqlite3.Connection) -> list[Any]:
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    async def work(ledger: Ledger) -> None:
        assert await ledger._commit(pragmas) == ["wal", 2]  # 2 is FULL

    using(tmp_path, work)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace(1) to see what is asked of the kernel")
def test_an_answer_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    """Write of the log, sync of the log, then the word to the one who waits: in this order, for every commit."""
    code = """
import asyncio, os, sys
from pathlib import Path
from rlaif.ledger import Ledger
async def main():
    ledger = Ledger.open(Path(sys.argv[1]))
    for k in range(5):
        os.write(2, b"ASKED")
        await ledger.keep(k, [b"%016d" % k], b'{"choices": [{}]}', role="policy", model="m", free=True)
        os.write(2, b"TOLD")
    ledger.close()
asyncio.run(main())
"""
    trace = tmp_path / "trace"
    asked = "trace=write,pwrite64,fsync,fdatasync"
    command = ["strace", "-f", "-y", "-e", asked, "-o", str(trace), *python(code, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"no process may be traced here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    words = []
    for line in trace.read_text(errors="replace").splitlines():
        for word, sign in (("ask", '"ASKED"'), ("told", '"TOLD"'), ("write", "pwrite64("), ("sync", "sync(")):
            if sign in line and (word in ("ask", "told") or "run.sqlite-wal" in line):
                words.append(word)
    inside = " ".join(words).split("ask")[1:]
    assert len(inside) == 5
    for one in inside:
        before = one.split("told")[0].split()
        assert before[0] == "write" and before[-1] == "sync", one


# A job that raises


def bad_jobs() -> dict[str, tuple[Callable[[Ledger], Awaitable[Any]], type[Exception]]]:
    def half() -> Iterator[PromptRow]:
        yield from prompts(2)
        raise InputError("line 3: no prompt")

    return {
        "input": (lambda ledger: ledger.begin({"a": "b"}, half, plan="p", changed=refuse), InputError),
        "number": (lambda ledger: ledger.save_record(10**30, b"{}"), OverflowError),
        "surrogate": (lambda ledger: keep(ledger, 0, [key("x")], role="\ud800"), UnicodeEncodeError),
        "null": (lambda ledger: ledger.note({"seed": None}), sqlite3.IntegrityError),  # type: ignore[dict-item]
        "bug": (lambda ledger: ledger._commit(lambda db: 1 // 0), ZeroDivisionError),
        "half done": (lambda ledger: ledger._commit(lambda db: db.execute("DELETE FROM calls") and 1 // 0), ZeroDivisionError),
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", bad_jobs())
def test_a_job_that_raises_harms_itself_alone(tmp_path: Path, name: str) -> None:
    """Those that travel with it are stored: they may be answers that were paid for. It is told what it raised itself."""
    bad, raised = bad_jobs()[name]
    troubles: list[StopRun] = []

    async def work(ledger: Ledger) -> None:
        ledger.on_trouble = troubles.append
        await keep(ledger, 0, [key("first")])
        before = [keep(ledger, k, [key(k)]) for k in range(5)]
        after = [keep(ledger, k, [key(k)]) for k in range(5, 10)]
        *calls, wrong = await asyncio.gather(*before, *after, bad(ledger), return_exceptions=True)
        assert type(wrong) is raised
        assert all(isinstance(call, int) and call > 0 for call in calls)
        assert await keep(ledger, 11, [key("last")]) > 0

    using(tmp_path, work)
    assert not troubles
    with reading(tmp_path) as ledger:
        assert all(isinstance(ledger.lookup(k, key(k)), Stored) for k in range(10))
        assert ledger.spend()[0].calls == 12 and (ledger.prompts(), ledger.finished()) == (0, (0, 0))


def test_a_file_that_was_changed_under_the_run_stops_it(tmp_path: Path) -> None:
    troubles: list[StopRun] = []

    async def work(ledger: Ledger) -> None:
        ledger.on_trouble = troubles.append
        await keep(ledger, 0, [key("a")])
        sql(tmp_path, "DROP TABLE calls")
        for _ in range(2):
            with pytest.raises(StopRun, match=r"run\.sqlite' is damaged .*rlaif doctor") as stop:
                await keep(ledger, 0, [key("b")])
            assert stop.value.kind == "damaged"
        await ledger.save_record(0, b"{}")  # what can still be stored is

    using(tmp_path, work)
    assert [reason.kind for reason in troubles] == ["damaged"], "the sending is stopped once"


@pytest.mark.timeout(60)
def test_who_cannot_stop_the_sending_does_not_end_the_writer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(reason: StopRun) -> None:
        raise RuntimeError("Event loop is closed")

    async def work(ledger: Ledger) -> None:
        ledger.on_trouble = broken
        sql(tmp_path, "DROP TABLE faults")
        with pytest.raises(StopRun, match="damaged"):
            await ledger.fault(0, "broken", None, b"", role="policy", model="m")
        assert await keep(ledger, 0, [key("a")]) > 0

    using(tmp_path, work)
    assert "the sending could not be stopped" in caplog.text


def test_a_file_that_another_program_has_locked_is_waited_for(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        with closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(keep(ledger, 0, [key("a")]))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            other.execute("ROLLBACK")
            assert await waiting > 0

    using(tmp_path, work)


def test_close_waits_for_what_was_begun_and_lets_nothing_in_after(tmp_path: Path) -> None:
    async def work() -> None:
        ledger = Ledger.open(tmp_path)
        tasks = [asyncio.ensure_future(keep(ledger, 0, [key(k)])) for k in range(300)]
        await asyncio.sleep(0)
        ledger.close()
        ledger.close()
        assert all(call > 0 for call in await asyncio.gather(*tasks))
        with pytest.raises(StopRun, match="is closed"):
            await keep(ledger, 0, [key("late")])

    asyncio.run(work())
    with reading(tmp_path) as ledger:
        assert all(ledger.lookup(0, key(k)) for k in range(300)) and ledger.lookup(0, key("late")) is None


# What was used


def sums(directory: Path, *, asked: int) -> list[tuple[Any, ...]]:
    """What `spend` has to say, added up call by call; each request was guessed at `asked` tokens."""
    totals: dict[tuple[str, str], list[int]] = {}
    rows = sql(
        directory, "SELECT model, role, prompt_tokens, cached_tokens, completion_tokens, body FROM calls WHERE kind IS NULL"
    )
    for model, role, prompt, cached, completed, body in rows:
        guess = (0, 0) if prompt is not None else (asked, guess_tokens(zlib.decompress(body).decode()))
        row = totals.setdefault((model, role), [0] * 7)
        add = (1, prompt is None, prompt or 0, cached or 0, completed or 0, *guess)
        totals[model, role] = [old + new for old, new in zip(row, add, strict=True)]
    return [(*name, *row) for name, row in sorted(totals.items())]


def said(rows: Iterable[SpendRow]) -> list[tuple[Any, ...]]:
    return sorted(
        (
            *(row.model, row.role, row.calls, row.uncounted, row.prompt_tokens, row.cached_tokens, row.completion_tokens),
            *(row.guessed_prompt_tokens, row.guessed_completion_tokens),
        )
        for row in rows
    )


def test_the_totals_are_those_of_the_calls_and_one_that_costs_money_makes_a_model_one_that_does(tmp_path: Path) -> None:
    rng = random.Random(0)

    async def some(ledger: Ledger) -> None:
        async def one(k: int) -> None:
            tokens = None if rng.random() < 0.3 else (rng.randrange(100), 1 + rng.randrange(50))
            usage = Usage(5, 2, 1) if rng.random() < 0.2 else None
            role, model = rng.choice(["policy", "judge"]), rng.choice(["openai/m@http://a/v1", "fake/b"])
            body = completion("x" * rng.randrange(30), tokens=tokens) if rng.random() < 0.9 else b"none"
            await keep(ledger, k, [key(k)], body, role=role, model=model, usage=usage, asked_tokens=7, free=model == "fake/b")

        await asyncio.gather(*(one(k) for k in range(rng.randrange(1, 60))))
        await fail(ledger, 0, [key("f")])
        assert said(ledger.spend()) == sums(tmp_path, asked=7)

    for _ in range(5):
        using(tmp_path, some)
    with reading(tmp_path) as ledger:
        assert said(ledger.spend()) == sums(tmp_path, asked=7)
        assert {(row.model, row.free) for row in ledger.spend()} == {("openai/m@http://a/v1", False), ("fake/b", True)}
    using(tmp_path, lambda ledger: keep(ledger, 0, [key("paid")], role="judge", model="fake/b", free=False))
    with reading(tmp_path) as ledger:
        assert not next(row.free for row in ledger.spend() if (row.model, row.role) == ("fake/b", "judge"))


WRITER = """
import asyncio, json, random, sys
from pathlib import Path
from rlaif.ledger import Ledger
async def main():
    ledger, rng = Ledger.open(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
    await ledger.begin({}, None, plan="p", changed=None)
    async def one(k):
        usage = {} if k % 3 else {"usage": {"prompt_tokens": rng.randrange(99), "completion_tokens": 7}}
        body = json.dumps({"choices": [{"message": {"content": f"body {k} " + "x" * rng.randrange(3000)}}]} | usage).encode()
        ledger.sent()
        await ledger.keep(k // 13, [b"%016d" % k], body, role="policy", model="m", free=False, asked_tokens=7)
        ledger.ended()
        print(k, flush=True)
    for k in range(int(sys.argv[2]), 10**9, 4):
        await asyncio.gather(*(one(k + i) for i in range(4)))
asyncio.run(main())
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_the_totals_are_right(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for lines in (1, 40, 400):
        first = max(acknowledged, default=-1) + 1000
        with subprocess.Popen(python(WRITER, tmp_path, first), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(lines)]
            os.kill(process.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        with reading(tmp_path) as ledger:
            assert said(ledger.spend()) == sums(tmp_path, asked=7)
    with reading(tmp_path) as ledger:
        for k in acknowledged:
            entry = found(ledger, k // 13, b"%016d" % k)
            assert isinstance(entry, tuple) and b'"body %d x' % k in entry[1].replace(b'"body %d "' % k, b'"body %d x"' % k)
        assert 0 <= ledger.maybe_lost() <= 2 * 4, "of two processes that died, four calls each; the third is not noted yet"


# Prompts and records


def test_a_run_has_the_prompts_that_are_unfinished_and_those_that_are(tmp_path: Path) -> None:
    done = [0, 1, 5, 255, 256, 257, 600, 699]

    async def work(ledger: Ledger) -> None:
        await begin(ledger, prompts(700))
        for ordinal in reversed(done):
            await ledger.save_record(ordinal, b"record %d" % ordinal)
        await ledger.save_record(5, b"record 5 again")

    using(tmp_path, work)
    with reading(tmp_path) as ledger:
        assert ledger.prompts() == 700
        for limit in (None, 0, 1, 2, 5, 6, 256, 257, 700, 10**9):
            most = 700 if limit is None else limit
            given = prompts(min(most, 700))
            assert list(ledger.unfinished(limit)) == [row for row in given if row.ordinal not in done]
            want = [
                (k, f"p{k}", prompts(k + 1)[k].body, b"record 5 again" if k == 5 else b"record %d" % k)
                for k in done
                if k < most
            ]
            assert list(ledger.records(limit)) == list(ledger.finished_now(limit)()) == want
            assert ledger.finished(limit) == (len(want), 0)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 40), st.sets(st.integers(0, 39)), st.none() | st.integers(0, 50))
def test_unfinished_and_finished_are_the_prompts(
    tmp_path_factory: pytest.TempPathFactory, count: int, done: set[int], limit: int | None
) -> None:
    done = {ordinal for ordinal in done if ordinal < count}

    async def work(ledger: Ledger) -> None:
        await begin(ledger, prompts(count))
        await asyncio.gather(*(ledger.save_record(ordinal, b"{}") for ordinal in done))
        among = set(range(count if limit is None else min(count, limit)))
        assert [row.ordinal for row in ledger.unfinished(limit)] == sorted(among - done)
        assert [row[0] for row in ledger.records(limit)] == sorted(among & done)
        assert ledger.finished(limit)[0] == len(among & done)

    using(tmp_path_factory.mktemp("run"), work)


@pytest.mark.slow
def test_far_into_a_long_run_the_unfinished_ones_are_found(tmp_path: Path) -> None:
    many, holes = 140_000, [3, 65_535, 65_536, 131_071, 131_072, 139_998]
    using(tmp_path, lambda ledger: begin(ledger, None))
    body = zlib.compress(b"{}")
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as db, db:
        rows = ((k, str(k), body) for k in range(many))
        db.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", ((*row, crc_of(*row)) for row in rows))
        finished = ((k, 2, body) for k in range(many) if k not in holes)
        db.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", ((*row, crc_of(*row)) for row in finished))
    with reading(tmp_path) as ledger:
        began = time.monotonic()
        assert [row.ordinal for row in ledger.unfinished()] == holes
        assert ledger.finished() == (many - len(holes), 2 * (many - len(holes)))
        assert time.monotonic() - began < 5
        assert [row.ordinal for row in ledger.unfinished(65_536)] == holes[:2]
        now = ledger.finished_now(70_000)()
        assert [next(now)[0] for _ in range(5)] == [0, 1, 2, 4, 5]


def test_records_that_are_added_meanwhile_change_nothing_of_what_is_read(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await begin(ledger, prompts(900))
        before = list(range(0, 900, 3))
        await asyncio.gather(*(ledger.save_record(ordinal, b"old %d" % ordinal) for ordinal in before))
        now, unfinished, given = ledger.finished_now(), ledger.unfinished(), list[int]()
        on_file = now()
        while rows := list(islice(unfinished, 30)):
            given += [row.ordinal for row in rows]
            await asyncio.gather(*(ledger.save_record(row.ordinal, b"new %d" % row.ordinal) for row in rows))
            for old in islice(on_file, 20):
                assert old[0] == before.pop(0) and old[3] == b"old %d" % old[0]
        assert given == [ordinal for ordinal in range(900) if ordinal % 3], "each once, in order"
        assert [old[0] for old in on_file] == [] == before and len(list(now())) == 300
        assert [row[0] for row in ledger.records()] == list(range(900))
        assert list(ledger.unfinished()) == []

    using(tmp_path, work)


def test_a_snapshot_is_of_one_moment(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await begin(ledger, prompts(4))
        await ledger.save_record(1, b"{}")
        with closing(Ledger.read(tmp_path)) as reader:
            with reader.snapshot():
                first = list(reader.records())
                await ledger.save_record(2, b"{}")
                assert list(reader.records()) == first and reader.finished() == (1, 0)
            assert reader.finished() == (2, 0)

    using(tmp_path, work)


# The beginning


def source(out: Path, given: Iterable[Any], **more: Any) -> Source:
    return Source(RunConfig(prompts="", out=str(out), policy=["fake/echo"], **more), list(given))


def begin_with(out: Path, given: Iterable[Any], *, plan: str = "plan", forget_failures: bool = False, **more: Any) -> None:
    """The run's own beginning: its prompts as they are read and compared."""
    read = source(out, given, **more)
    using(
        out,
        lambda ledger: ledger.begin(
            {"fact": "new"}, read.rows, plan=plan, changed=read.changed, forget_failures=forget_failures
        ),
    )


def rows_of(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": f"q{k}", "prompt": f"Why {k}?"} | fields for k in range(count)]


def state(out: Path) -> dict[str, Any]:
    with reading(out) as ledger:
        return {
            "prompts": ledger.prompts(),
            "records": [row[0] for row in ledger.records()],
            "unfinished": [row.ordinal for row in ledger.unfinished()],
            "stored": sql(out, "SELECT * FROM prompts"),
            "fact": ledger.meta("fact"),
            "plan": ledger.meta("plan"),
        }


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Six prompts; the first five are finished, each with an answer; those of 1 and 3 with a failure."""

    async def work(ledger: Ledger) -> None:
        read = source(tmp_path, rows_of(6))
        await ledger.begin({"fact": "old"}, read.rows, plan="plan", changed=read.changed)
        for ordinal in range(5):
            assert ledger.lookup(ordinal, key(ordinal)) is None
            await keep(ledger, ordinal, [key(ordinal)])
            if ordinal in (1, 3):
                await fail(ledger, ordinal, [key("f")], "timeout" if ordinal == 1 else "bad_request")
            await ledger.save_record(ordinal, b"{}")

    using(tmp_path, work)
    return tmp_path


def test_the_same_prompts_change_nothing(begun: Path) -> None:
    before = state(begun)
    begin_with(begun, rows_of(6))
    assert state(begun) == before | {"fact": "new"}
    using(begun, lambda ledger: begin(ledger, None))
    assert state(begun) == before | {"fact": "new"}


def test_prompts_packed_otherwise_are_the_same(begun: Path) -> None:
    """Another zlib, or another level, packs the same body in other bytes."""
    for ordinal, name, body in sql(begun, "SELECT ordinal, id, body FROM prompts"):
        row = (ordinal, name, zlib.compress(zlib.decompress(body), 9))
        sql(begun, "REPLACE INTO prompts VALUES (?, ?, ?, ?)", *row, crc_of(*row))
    before = state(begun)
    begin_with(begun, rows_of(6))
    assert state(begun) == before | {"fact": "new"}


def test_appended_prompts_are_added(begun: Path) -> None:
    before = state(begun)
    begin_with(begun, rows_of(600))
    after = state(begun)
    assert (after["prompts"], after["records"], after["unfinished"]) == (600, before["records"], list(range(5, 600)))
    assert after["stored"][:6] == before["stored"]
    begin_with(begun, rows_of(600))
    assert state(begun) == after


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "Why not?"}, "text was .*Why 2.*now .*Why not"),
        ({"id": "other"}, "id was .*q2.*now .*other"),
        ({"reference": "Because."}, "reference changed"),
    ],
)
def test_a_changed_prompt_is_refused_and_nothing_is_stored(begun: Path, change: dict[str, str], words: str) -> None:
    before, rows = state(begun), rows_of(9)
    rows[2] |= change
    with pytest.raises(InputError, match=rf"prompt 3 \('q2'\) has changed.*{words}"):
        begin_with(begun, rows, plan="another")
    assert state(begun) == before


def test_other_columns_may_change_and_their_records_are_made_again(begun: Path) -> None:
    before, rows = state(begun), rows_of(7)
    rows[0] |= {"topic": "cats"}
    rows[4] |= {"topic": "dogs"}
    begin_with(begun, rows)
    after = state(begun)
    assert (after["prompts"], after["records"], after["unfinished"]) == (7, [1, 2, 3], [0, 4, 5, 6])
    assert [new == old for new, old in zip(after["stored"], before["stored"], strict=False)] == [
        False,
        *[True] * 3,
        False,
        True,
    ]
    with reading(begun) as ledger:
        assert b"cats" in next(ledger.unfinished()).body
        assert isinstance(ledger.lookup(0, key(0)), Stored), "from the answers on file"


def test_every_prompt_s_columns_may_change_at_once(begun: Path) -> None:
    begin_with(begun, rows_of(700))
    begin_with(begun, rows_of(700, topic="cats"))
    with reading(begun) as ledger:
        assert [b"cats" in row.body for row in ledger.unfinished()] == [True] * 700


def test_prompts_that_are_gone_are_refused_unless_a_limit_leaves_them_out(begun: Path) -> None:
    before = state(begun)
    with pytest.raises(InputError, match=r"prompt 4 \('q3'\) of the earlier run is gone"):
        begin_with(begun, rows_of(3))
    assert state(begun) == before
    begin_with(begun, rows_of(6), limit=3)
    assert state(begun) == before | {"fact": "new"}
    with reading(begun) as ledger:
        assert ledger.finished(3) == (3, 3) and list(ledger.unfinished(3)) == []


@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 300])
def test_input_that_is_wrong_in_the_middle_stores_nothing(begun: Path, after: int) -> None:
    before = state(begun)
    with pytest.raises(InputError, match=f"item {after + 1}: "):
        begin_with(begun, [*rows_of(after), {"prompt": 7}], plan="another", forget_failures=True)
    assert state(begun) == before


def test_another_plan_drops_the_records_and_none_of_the_answers(begun: Path) -> None:
    begin_with(begun, rows_of(6), plan="another")
    after = state(begun)
    assert (after["records"], after["unfinished"], after["plan"]) == ([], list(range(6)), "another")
    with reading(begun) as ledger:
        assert all(isinstance(ledger.lookup(k, key(k)), Stored) for k in range(5))
        assert ledger.spend()[0].calls == 5


def test_failures_are_forgotten_on_request_and_with_them_the_records_that_they_are_in(begun: Path) -> None:
    begin_with(begun, rows_of(6))
    with reading(begun) as ledger:
        assert isinstance(ledger.lookup(1, key("f")), Failure) and ledger.finished() == (5, 5)
    begin_with(begun, rows_of(6), forget_failures=True)
    assert state(begun)["records"] == [0, 2, 4]
    with reading(begun) as ledger:
        assert [ledger.lookup(k, key("f")) for k in (1, 3)] == [None, None]
        assert all(isinstance(ledger.lookup(k, key(k)), Stored) for k in range(5))


def test_failures_of_one_kind_can_be_forgotten(begun: Path) -> None:
    async def work(ledger: Ledger) -> None:
        assert isinstance(ledger.lookup(3, key("f")), Failure)
        await ledger.forget_failures("bad_request")
        assert ledger.lookup(3, key("f")) is None and ledger.lookup(1, key("f")) == Failure("timeout", "too slow")

    using(begun, work)
    assert state(begun)["records"] == [0, 1, 2, 4]


def test_prompts_that_were_lost_and_saved_again_find_their_places(
    begun: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A salvaged ledger lacks what was damaged: the next run puts it back, and makes again what hung on it."""
    flip(begun, sql(begun, "SELECT body FROM prompts WHERE ordinal = 2")[0][0])
    out = tmp_path_factory.mktemp("salvaged") / "run"
    assert salvage(begun, out).rows["prompts"] == 5
    with reading(out) as ledger:
        assert [row[0] for row in ledger.records()] == [0, 1, 3, 4] and ledger.meta("source") is None
    begin_with(out, rows_of(6))
    after = state(out)
    assert (after["prompts"], after["records"], after["unfinished"]) == (6, [0, 1, 3, 4], [2, 5])
    with reading(out) as ledger:
        assert isinstance(ledger.lookup(2, key(2)), Stored)


def test_a_damaged_prompt_is_found_also_where_it_is_compared(begun: Path) -> None:
    before = sql(begun, "SELECT * FROM prompts")
    flip(begun, before[2][2])
    with pytest.raises(StopRun, match=r"prompt 3: its checksum is wrong.*rlaif doctor"):
        begin_with(begun, rows_of(6))


# Calls that were in flight


IN_FLIGHT = """
import asyncio, os, signal, sys
from pathlib import Path
from rlaif.ledger import Ledger
async def main(directory, begins, sent, kept):
    ledger = Ledger.open(Path(directory))
    if int(begins):
        await ledger.begin({}, None, plan="p", changed=None)
    for k in range(int(sent)):
        ledger.sent()
    for k in range(int(kept)):
        await ledger.keep(k, [bytes(16)], b'{"choices": [{}]}', role="policy", model="m", free=False)
        ledger.ended()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main(*sys.argv[1:]))
"""


def died(directory: Path, *, begins: bool, sent: int, kept: int) -> None:
    done = subprocess.run(python(IN_FLIGHT, directory, int(begins), sent, kept), check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_calls_in_flight_when_a_process_was_killed_are_counted_for_good(tmp_path: Path) -> None:
    async def look(ledger: Ledger) -> tuple[int, int]:
        return ledger.died_with, ledger.maybe_lost()

    async def note(ledger: Ledger) -> tuple[int, int]:
        await begin(ledger, None)
        return ledger.died_with, ledger.maybe_lost()

    died(tmp_path, begins=True, sent=5, kept=2)
    assert using(tmp_path, look) == (3, 0)
    assert using(tmp_path, look) == (3, 0), "until it is noted"
    died(tmp_path, begins=False, sent=2, kept=1)
    assert using(tmp_path, look) == (4, 0)
    assert using(tmp_path, note) == (0, 4)
    assert using(tmp_path, note) == (0, 4)
    died(tmp_path, begins=True, sent=1, kept=1)
    assert using(tmp_path, note) == (0, 4)
    died(tmp_path, begins=True, sent=2, kept=0)
    assert using(tmp_path, note) == (0, 6)

    async def faults(ledger: Ledger) -> None:
        for kind in ("broken", "timeout", "unreachable", "http_500", "bad_body"):
            await ledger.fault(0, kind, None, b"half", role="policy", model="m")
        assert ledger.maybe_lost() == 6 + 3, "what was never sent, or was refused, is not billed"

    using(tmp_path, faults)
    with reading(tmp_path) as ledger:
        ledger.sent()  # who only reads counts nothing
        assert (ledger.died_with, ledger.maybe_lost()) == (0, 9)


# Who may have it


def test_one_owner_at_a_time_readers_any(tmp_path: Path) -> None:
    with closing(Ledger.open(tmp_path)):
        for _ in range(2):
            with pytest.raises(InputError, match=f"another process works.*pid {os.getpid()} "):
                Ledger.open(tmp_path)
        with reading(tmp_path) as one, reading(tmp_path) as other:
            assert one.lookup(0, key("a")) is None and other.spend() == []
    Ledger.open(tmp_path).close()


def test_what_was_discarded_was_never_there(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "a" / "run").discard()
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "mine").mkdir()
    Ledger.open(tmp_path / "mine").discard()
    assert not list((tmp_path / "mine").iterdir())

    async def refused(ledger: Ledger) -> None:
        await begin(ledger, prompts(3))
        (tmp_path / "b" / "notes.txt").write_text("mine")
        ledger.discard()

    using(tmp_path / "b", refused)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("what", ["call", "failure", "fault", "record"])
def test_what_something_came_of_is_not_discarded(tmp_path: Path, what: str) -> None:
    jobs: dict[str, Callable[[Ledger], Awaitable[Any]]] = {
        "call": lambda ledger: keep(ledger, 0, [key("a")]),
        "failure": lambda ledger: fail(ledger, 0, [key("a")]),
        "fault": lambda ledger: ledger.fault(0, "broken", None, b"", role="policy", model="m"),
        "record": lambda ledger: ledger.save_record(0, b"{}"),
    }

    async def work(ledger: Ledger) -> None:
        await jobs[what](ledger)
        ledger.discard()

    using(tmp_path / "run", work)
    table = {"call": "calls", "failure": "calls", "fault": "faults", "record": "records"}[what]
    assert sql(tmp_path / "run", f"SELECT count(*) FROM {table}") == [(1,)]
    Ledger.open(tmp_path / "run").discard()
    assert sql(tmp_path / "run", f"SELECT count(*) FROM {table}") == [(1,)], "nor an earlier run"


def test_an_earlier_run_of_which_nothing_came_yet_is_not_discarded(tmp_path: Path) -> None:
    using(tmp_path, lambda ledger: begin(ledger, prompts(3)))
    Ledger.open(tmp_path).discard()
    with reading(tmp_path) as ledger:
        assert ledger.prompts() == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a run's ledger"),
        (b"SQLite format 3\x00" + b"\x00" * 200, "rlaif doctor"),
        (b"My notes.\n" * 500, "not readable.*rlaif doctor"),
    ],
    ids=["empty", "damaged", "text"],
)
def test_what_is_no_ledger_is_not_read(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.sqlite").write_bytes(content)
    with pytest.raises(InputError, match=words):
        Ledger.read(tmp_path)
    if content:
        with pytest.raises(InputError, match=words):
            Ledger.open(tmp_path)
    assert (tmp_path / "run.sqlite").read_bytes() == content


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").mkdir()
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"has no run\.sqlite"):
            Ledger.read(directory)
    with pytest.raises(InputError, match=r"run\.sqlite"):
        Ledger.open(tmp_path)


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    sql(tmp_path, "CREATE TABLE photos (id INTEGER PRIMARY KEY)")
    for door in (Ledger.read, Ledger.open):
        with pytest.raises(InputError, match="not a run's ledger; choose another directory"):
            door(tmp_path)
    assert sql(tmp_path, "SELECT name FROM sqlite_master") == [("photos",)]


@pytest.mark.parametrize(
    ("version", "words"),
    [(SCHEMA_VERSION + 1, "a newer rlaif .*upgrade"), (SCHEMA_VERSION - 1, "an older rlaif .*choose another directory")],
)
def test_other_schemas_are_refused_and_named(tmp_path: Path, version: int, words: str) -> None:
    Ledger.open(tmp_path).close()
    sql(tmp_path, f"PRAGMA user_version = {version}")
    for door in (Ledger.read, Ledger.open):
        with pytest.raises(InputError, match=words) as refused:
            door(tmp_path)
        assert f"(schema {version}, this one reads {SCHEMA_VERSION})" in str(refused.value)
    sql(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION}")
    Ledger.open(tmp_path).close()


@pytest.mark.parametrize("begun", ["empty file", "no tables"])
def test_a_file_that_was_begun_when_the_process_was_killed_is_no_obstacle(tmp_path: Path, begun: str) -> None:
    (tmp_path / "run.sqlite").touch()
    if begun == "no tables":
        sql(tmp_path, "PRAGMA journal_mode=WAL")
        assert (tmp_path / "run.sqlite").read_bytes().startswith(b"SQLite format 3")
    using(tmp_path, lambda ledger: keep(ledger, 0, [key("a")]))
    with reading(tmp_path) as ledger:
        assert isinstance(ledger.lookup(0, key("a")), Stored)


READ_ALL = """
import sys
from pathlib import Path
from rlaif.ledger import Ledger
ledger = Ledger.read(Path(sys.argv[1]))
print([row[0] for row in ledger.records()], ledger.spend()[0].calls, ledger.lookup(1, None))
"""


@pytest.mark.slow
def test_a_run_that_lies_where_nobody_can_write_can_be_read(begun: Path) -> None:
    want = "[0, 1, 2, 3, 4] 5 None\n"
    if os.geteuid() == 0:
        assert (
            in_namespace(f"mount --bind {begun} {begun} && mount -o remount,bind,ro {begun}", python(READ_ALL, begun)) == want
        )
    else:
        begun.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert subprocess.run(python(READ_ALL, begun), capture_output=True, text=True, check=True).stdout == want
        begun.chmod(stat.S_IRWXU)
