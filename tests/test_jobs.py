"""A Run from Python: every way of reading it, from every state of its directory, stopped and asked about at any moment."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, committed, read_rows, stored_records, summary, write_prompts
from pydantic import TypeAdapter

import rlaif
from rlaif.live import Snapshot

PROMPTS = 6
CALLS = PROMPTS * 3
NewRoom = Callable[[], Room]


def generate(room: Room, out: Path, prompts: int = PROMPTS, **more: Any) -> rlaif.Run:
    """A run over `prompts` prompts, three calls each."""
    given = [{"id": f"p{k}", "prompt": f"Question {k}?"} for k in range(prompts)]
    return rlaif.generate(given, **{"policy": room.model(), "n": 2, "out": out, "concurrency": 4} | more)


@pytest.fixture(scope="module")
def expected(new_room: NewRoom, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    generate(new_room(), out).wait()
    return (out / "dpo.jsonl").read_bytes()


# Every way of reading, from every state


def in_a_loop(read: Callable[[], Any]) -> Any:
    async def cell() -> Any:
        return read()

    return asyncio.run(cell())


async def collected(run: rlaif.Run) -> list[rlaif.Record]:
    return [record async for record in run]


def records_of(run: rlaif.Run) -> list[rlaif.Record]:
    return list(run)


def pairs_of(run: rlaif.Run) -> list[rlaif.PreferencePair]:
    return list(run.pairs())


def nothing_of(run: rlaif.Run) -> None:
    run.wait()


WAYS: dict[str, Callable[[rlaif.Run], Any]] = {
    "for": records_of,
    "for in a loop": lambda run: in_a_loop(lambda: records_of(run)),
    "async for": lambda run: asyncio.run(collected(run)),
    "pairs": pairs_of,
    "pairs in a loop": lambda run: in_a_loop(lambda: pairs_of(run)),
    "wait": nothing_of,
    "wait in a loop": lambda run: in_a_loop(lambda: nothing_of(run)),
    "dataset": lambda run: run.to_dataset() and None,
    "dataset in a loop": lambda run: in_a_loop(lambda: run.to_dataset() and None),
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow if "loop" in way else ()) for way in WAYS])
@pytest.mark.parametrize("state", ["fresh", "half", "finished"])
def test_every_way_of_reading_gives_all_from_every_state(
    room: Room, expected: bytes, tmp_path: Path, state: str, way: str
) -> None:
    if state == "half":  # some prompts are finished, some begun, some not
        room.set(failure="quota", fail_after=10)
        with pytest.raises(rlaif.StopRun):
            generate(room, tmp_path, concurrency=2).wait()
        room.set()
    elif state == "finished":
        generate(room, tmp_path).wait()
    on_file, asked = ([r.prompt.id for r in stored_records(tmp_path)], room.count()) if state != "fresh" else ([], 0)
    kept = len(committed(tmp_path)) if state != "fresh" else 0
    run = generate(room, tmp_path)
    found = WAYS[way](run)
    if found is not None:
        ids = [one.prompt.id for one in found]
        assert sorted(ids) == [f"p{k}" for k in range(PROMPTS)]
        assert ids[: len(on_file)] == on_file, "what is on file comes first, in input order"
    assert (tmp_path / "dpo.jsonl").read_bytes() == expected
    assert run.summary == run.wait() == summary(tmp_path)
    assert (run.summary["state"], run.summary["prompts"]) == ("done", PROMPTS)
    calls = run.summary["calls"]
    assert (calls["policy"] + calls["judge"], calls["reused"]) == (CALLS - kept, kept)
    assert (room.count() - asked, len(committed(tmp_path))) == (CALLS - kept, CALLS)
    assert {"fresh": kept == 0, "half": 0 < kept < CALLS, "finished": kept == CALLS}[state]
    assert [*run.to_dataset()] == read_rows(tmp_path / "dpo.jsonl") and room.count() - asked == CALLS - kept


def test_records_on_file_are_those_that_were_made(room: Room, tmp_path: Path) -> None:
    first = {record.prompt.id: record for record in generate(room, tmp_path)}
    again = list(generate(room, tmp_path))
    assert again == [first[f"p{k}"] for k in range(PROMPTS)] == stored_records(tmp_path)


def test_reading_a_run_twice_buys_nothing_and_counts_anew(room: Room, tmp_path: Path) -> None:
    run = generate(room, tmp_path)
    assert (len(list(run)), run.wait()["calls"]["reused"]) == (PROMPTS, 0)
    assert len(list(run)) == PROMPTS
    assert run.wait()["calls"] == {"policy": 0, "judge": 0, "reused": CALLS} and room.count() == CALLS


def test_waiting_goes_on_where_a_loop_was_left(room: Room, tmp_path: Path, expected: bytes) -> None:
    room.set(latency_s=0.02)
    run = generate(room, tmp_path, concurrency=1)
    for _ in run:
        break
    kept = len(committed(tmp_path))
    assert 3 <= kept < CALLS and run.summary is None
    calls = run.wait()["calls"]
    assert (calls["policy"] + calls["judge"], calls["reused"]) == (CALLS - kept, kept)
    assert (tmp_path / "dpo.jsonl").read_bytes() == expected


def test_a_run_that_was_stopped_says_so_again_and_goes_on_when_it_is_read(room: Room, tmp_path: Path, expected: bytes) -> None:
    room.set(failure="quota", fail_after=5)
    run = generate(room, tmp_path)
    for _ in range(2):
        with pytest.raises(rlaif.StopRun, match="quota"):
            run.wait()
    assert run.summary is not None and run.summary["stopped"]["kind"] == "quota" and not (tmp_path / "dpo.jsonl").exists()
    room.set()
    assert len(list(run)) == PROMPTS
    assert run.wait()["state"] == run.snapshot()["state"] == "done" and (tmp_path / "dpo.jsonl").read_bytes() == expected


def test_the_time_of_a_run_is_that_of_its_work(room: Room, tmp_path: Path) -> None:
    run = generate(room, tmp_path, prompts=1)
    time.sleep(0.5)
    assert run.wait()["wall_s"] < 0.5


def test_a_bug_of_ones_own_leaves_a_directory_that_goes_on(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw, in the work on one prompt, is raised as it is, after what is in flight has been stored."""
    from rlaif import pairs

    real = pairs.eligible

    def eligible(candidates: Any, **more: Any) -> Any:
        if candidates[0].id == "p3/0":
            raise ZeroDivisionError("a bug")
        return real(candidates, **more)

    monkeypatch.setattr(pairs, "eligible", eligible)
    room.set(latency_s=0.02)
    with pytest.raises(ZeroDivisionError):
        generate(room, tmp_path).wait()
    assert committed(tmp_path) == {entry["id"] for entry in room.log()}
    monkeypatch.undo()
    assert generate(room, tmp_path).wait()["pairs"] == PROMPTS and (room.count(), room.repeats()) == (CALLS, 0)


# Stopped at any moment


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Does something in another thread; what it raised is in the list."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        thread.join()


def test_an_interruption_at_any_moment_drops_nothing(room: Room, tmp_path: Path, expected: bytes) -> None:
    draw = random.Random(20)
    room.set(latency_s=0.02)
    ends: list[str] = []
    while "done" not in ends:
        run, moment = generate(room, tmp_path, concurrency=2), draw.uniform(0.0, 0.08) if len(ends) < 20 else 60.0

        def stop(run: rlaif.Run = run, moment: float = moment) -> None:
            end = time.monotonic() + moment
            while time.monotonic() < end and run.summary is None:
                time.sleep(0.001)
            run.interrupt()

        with meanwhile(stop) as errors:
            try:
                ends.append(run.wait()["state"])
            except rlaif.StopRun as error:
                assert error.kind == "interrupted"
                ends.append("stopped")
        assert errors == []
        assert committed(tmp_path) == {entry["id"] for entry in room.log()}, "a call in flight was dropped"
        assert run.summary is not None and run.summary["maybe_lost"] == 0
    assert len(ends) > 2 and (room.count(), room.repeats()) == (CALLS, 0)
    assert (tmp_path / "dpo.jsonl").read_bytes() == expected


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_beside_the_run_does_no_harm(room: Room, tmp_path: Path, when: str) -> None:
    run = generate(room, tmp_path)
    if when == "before":
        run.interrupt()
        with pytest.raises(rlaif.StopRun) as stop:
            run.wait()
        assert (stop.value.kind, room.count()) == ("interrupted", 0)
    else:
        run.wait()
        run.interrupt()
        run.interrupt()
        assert run.wait()["state"] == "done"


@pytest.mark.timeout(60)
def test_a_run_that_has_to_end_does_not_wait_for_another_endpoint(room: Room, tmp_path: Path) -> None:
    """The policy's endpoint lets wait for 20 s when the judge ends the run."""

    def judge(prompt: rlaif.Prompt, candidates: Any) -> Any:
        while room.count() < 4:  # the other prompts wait by now
            time.sleep(0.01)
        raise rlaif.StopRun("judge", "no more")

    room.set(failure="hold_20", fail_after=1)
    began = time.monotonic()
    with pytest.raises(rlaif.StopRun, match="no more"):
        generate(room, tmp_path, judge=judge).wait()
    assert time.monotonic() - began < 5


# Asked about at any moment


@pytest.mark.slow
def test_where_it_stands_can_be_asked_from_another_thread_at_any_time(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.01, fault_share=0.2, faults="server_error")
    seen: list[Snapshot] = []
    ended = threading.Event()
    run = generate(room, tmp_path, prompts=12, budget_tokens=10**9)
    before = run.snapshot()

    def watch() -> None:
        while not ended.is_set():
            seen.append(run.snapshot())
            time.sleep(0.0005)

    with meanwhile(watch) as errors:
        try:
            found = run.wait()
        finally:
            ended.set()
    assert errors == []
    after = run.snapshot()
    for snapshot in (before, *seen, after):
        TypeAdapter(Snapshot).validate_python(snapshot)
        assert snapshot["done"] <= snapshot["prompts"] and 0 <= snapshot["in_flight"] <= 4
    assert (before["state"], before["prompts"], before["done"], before["endpoints"]) == ("running", 0, 0, [])
    begun = [snapshot for snapshot in seen if snapshot["prompts"]]
    for one, next_one in zip(begun, [*begun[1:], after], strict=True):
        assert one["done"] <= next_one["done"] and one["wall_s"] <= next_one["wall_s"] + 0.001
        assert all(one["calls"][name] <= next_one["calls"][name] for name in ("policy", "judge", "faults"))
    assert {snapshot["state"] for snapshot in seen} <= {"running", "done"} and len({s["done"] for s in seen}) > 3
    assert after["state"] == "done" and (after["prompts"], after["done"], after["in_flight"]) == (12, 12, 0)
    assert after["calls"] == found["calls"] | {"faults": sum(found["faults"].values())}
    assert after["tokens"] == found["tokens"] and after["cost_usd"] is found["cost_usd"] is None
    assert after["endpoints"][0]["retries"] == after["calls"]["faults"] == room.count() - 36


def test_a_stopped_run_says_why_and_what_it_waits_for_before(room: Room, tmp_path: Path) -> None:
    room.set(failure="hold_20", fail_after=5)
    run = generate(room, tmp_path)
    held: list[Any] = []

    def watch() -> None:
        while not (endpoints := run.snapshot()["endpoints"]) or endpoints[0]["held"] is None:
            time.sleep(0.005)
        held.append(endpoints[0]["held"])
        run.interrupt()
        assert run.snapshot()["state"] in ("stopping", "stopped")

    with meanwhile(watch) as errors, pytest.raises(rlaif.StopRun):
        run.wait()
    assert errors == []
    assert 15 < held[0]["until"] - time.time() < 22 and "429" in held[0]["why"]
    now = run.snapshot()
    assert (now["state"], now["reason"]) == ("stopped", "interrupted")
    assert now["endpoints"][0]["held"] is None


# Before anything is bought


def test_a_dry_run_counts_and_buys_nothing(room: Room, tmp_path: Path) -> None:
    given = {"policy": [room.model(), room.model("other")], "judge": ["pairwise", "shortest.py:shortest"], "n": 3}
    plan = generate(room, tmp_path / "run", **given).dry_run()
    assert in_a_loop(generate(room, tmp_path / "run", **given).dry_run) == plan
    assert (plan["prompts"], plan["policy_calls"], plan["judge_calls"], plan["judges"]) == (6, 12, 6 * (30 + 1), 2)
    assert (room.count(), (tmp_path / "run").exists()) == (0, False)
    found = generate(room, tmp_path / "run", **given).wait()
    assert (found["calls"]["policy"], found["calls"]["judge"]) == (plan["policy_calls"], plan["judge_calls"])


def test_a_dry_run_knows_the_first_rows_alone(room: Room, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 50)
    run = rlaif.generate(prompts, policy=room.model(), out=tmp_path / "run", n=2, limit=7)
    assert (run.dry_run()["prompts"], run.dry_run()["judge_calls"]) == (7, 14)


@pytest.mark.parametrize("settings", [{"prompts": ["a", ""]}, {"policy": "fake/nobody"}, {"judge": "nobody"}, {"judge": []}])
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(rlaif.InputError):
        rlaif.generate(**{"prompts": ["a"], "policy": "fake/oracle", "out": tmp_path / "run"} | settings).dry_run(probe=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "limit", "probed"), [(2, None, 2), (1, 4, 1), (9, 4, 4), (9, None, 6)])
def test_a_probe_buys_so_many_prompts_and_the_run_uses_them(
    room: Room, tmp_path: Path, expected: bytes, probe: int, limit: int | None, probed: int
) -> None:
    run = generate(room, tmp_path, limit=limit)
    plan = run.dry_run(probe=probe)
    assert room.calls() == (probed, 2 * probed) and len(stored_records(tmp_path)) == probed
    assert plan["prompts"] == (limit or PROMPTS) and run.summary is None
    real = sum(entry["usage"]["prompt_tokens"] for entry in room.log()) / probed
    assert plan["expected"]["prompt_tokens"] == pytest.approx(real * plan["prompts"], rel=0.01)
    again = run.dry_run(probe=probe)["expected"]
    assert again["prompt_tokens"] == plan["expected"]["prompt_tokens"] and room.count() == 3 * probed
    assert run.wait()["calls"]["reused"] == 3 * probed
    assert (room.count(), room.repeats()) == (3 * (limit or PROMPTS), 0)
    if limit is None:
        assert (tmp_path / "dpo.jsonl").read_bytes() == expected


def test_a_probe_that_is_stopped_says_why(room: Room, tmp_path: Path) -> None:
    room.set(failure="quota", fail_after=1)
    with pytest.raises(rlaif.StopRun, match="quota"):
        generate(room, tmp_path).dry_run(probe=2)
    room.set()
    assert generate(room, tmp_path).wait()["pairs"] == PROMPTS and room.repeats() <= 4
