"""The package from Python: in a script, in a notebook's running loop, with `async for`."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pytest
from helpers import ROW_KEYS, Room, environment, read_rows, stored_records

import rlaif

PROMPTS = [{"id": f"p{k}", "prompt": f"Question {k}?"} for k in range(6)]


def generate(out: Path, prompts=PROMPTS, **settings) -> rlaif.Run:
    return rlaif.generate(prompts, **{"policy": "fake/oracle", "out": out, "n": 3} | settings)


def left_running(before: set[threading.Thread]) -> list[str]:
    """Threads of a run that are still there a moment after it has ended."""
    for _ in range(50):
        gc.collect()
        left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(("rlaif", "judge"))]
        if not left:
            return []
        time.sleep(0.1)
    return left


def test_records_come_as_they_finish_and_the_file_at_the_end(tmp_path):
    run = generate(tmp_path)
    seen = [record.prompt.id for record in run]
    assert sorted(seen) == [p["id"] for p in PROMPTS]
    rows = read_rows(tmp_path / "dpo.jsonl")
    assert [list(row) for row in rows] == [ROW_KEYS] * len(rows)
    assert run.summary["prompts"] == 6 and run.summary["pairs"] == len(rows) > 0
    assert json.loads((tmp_path / "summary.json").read_text()) == run.summary


def test_it_works_inside_a_running_loop_as_in_a_notebook(tmp_path):
    async def cell():
        return [record.prompt.id for record in generate(tmp_path)]

    assert len(asyncio.run(cell())) == 6
    assert (tmp_path / "dpo.jsonl").exists()


def test_async_for_reads_records_too(tmp_path):
    async def main():
        run = generate(tmp_path)
        found = [record async for record in run]
        return found, run.summary

    found, summary = asyncio.run(main())
    assert len(found) == 6 and summary["state"] == "done"
    assert sorted(r.ordinal for r in found) == [r.ordinal for r in stored_records(tmp_path)]


def test_pairs_come_as_their_prompts_finish(tmp_path):
    run = generate(tmp_path)
    found = {pair.prompt.id: pair for pair in run.pairs()}
    rows = {row["id"]: row for row in run.to_dataset()}
    assert set(found) == set(rows)
    for name, pair in found.items():
        assert rows[name]["chosen"][0]["content"] == pair.chosen.text
        assert rows[name]["rejected"][0]["content"] == pair.rejected.text
        assert rows[name]["p_chosen"] == pytest.approx(pair.p_chosen, abs=0.05)


def test_a_dataset_holds_the_rows_of_the_file(tmp_path):
    run = generate(tmp_path)
    made = run.to_dataset()
    assert isinstance(made, datasets.Dataset) and made.to_list() == read_rows(tmp_path / "dpo.jsonl")
    assert made.column_names == ROW_KEYS


def test_waiting_twice_runs_once(tmp_path):
    run = generate(tmp_path)
    assert run.wait() is run.wait()
    assert run.wait()["calls"]["reused"] == 0


def test_best_of_n_writes_the_best_answer_of_each(tmp_path):
    run = rlaif.best_of_n(PROMPTS, policy="fake/oracle", judge="pairwise", out=tmp_path, n=4)
    rows = {row["id"]: row for row in run.to_dataset()}
    assert [*rows] == [p["id"] for p in PROMPTS]
    for record in stored_records(tmp_path):
        best = max(record.candidates, key=lambda c: c.text.split("quality ")[1])
        assert rows[record.prompt.id]["completion"] == [{"role": "assistant", "content": best.text}]
        assert rows[record.prompt.id]["n"] == 4


def test_existing_answers_are_judged_by_a_function_of_ones_own(tmp_path):
    async def longest(prompt, candidates):
        """Prefer the longer answer."""
        return [len(c.text) for c in candidates]

    rows = [{"prompt": "q", "candidates": ["a", {"response": "ccc", "model": "m"}, {"text": "bb", "score": 3}]}]
    run = rlaif.judge(rows, judge=longest, out=tmp_path)
    (row,) = run.to_dataset()
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("ccc", "a")
    assert (row["score_chosen"], row["score_rejected"], row["judge"], row["flip"]) == (3.0, 1.0, "longest", None)


def test_a_jury_is_a_list(tmp_path):
    def longest(prompt, candidates):
        return [len(c.text) for c in candidates]

    run = generate(tmp_path, judge=["pairwise", longest])
    (first, *_) = run.to_dataset()
    assert first["judge"] == "pairwise:fake/oracle+longest"
    assert run.summary["judges"] == ["pairwise:fake/oracle", "longest"]


@pytest.mark.parametrize(
    ("prompts", "roles"),
    [
        (["one", "two"], [["user"], ["user"]]),
        ([{"prompt": "one"}, {"prompt": "two", "id": 2}], [["user"], ["user"]]),
        ([[{"role": "system", "content": "s"}, {"role": "user", "content": "one"}], "two"], [["system", "user"], ["user"]]),
        ([{"prompt": [{"role": "user", "content": "one"}]}], [["user"]]),
        (({"prompt": f"{k}"} for k in range(3)), [["user"]] * 3),
    ],
)
def test_prompts_are_texts_messages_or_rows(tmp_path, prompts, roles):
    generate(tmp_path, prompts).wait()
    assert [[m["role"] for m in r.prompt.messages] for r in stored_records(tmp_path)] == roles


def test_prompts_may_be_a_dataset_or_a_path(tmp_path):
    rows = datasets.Dataset.from_list(PROMPTS)
    from_rows = generate(tmp_path / "a", rows).to_dataset().to_list()
    rows.save_to_disk(tmp_path / "saved")
    assert generate(tmp_path / "b", tmp_path / "saved").to_dataset().to_list() == from_rows
    rows.to_json(tmp_path / "prompts.jsonl")
    assert generate(tmp_path / "c", str(tmp_path / "prompts.jsonl")).to_dataset().to_list() == from_rows


def test_the_shipped_prompts_are_not_hidden_by_a_run_directory_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert generate(Path("demo"), "demo", limit=2).wait()["prompts"] == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [{"prompt": ""}]}, "item 1: the prompt is empty"),
        ({"prompts": ["fine", 3]}, "item 2"),
        ({"prompts": ["fine", "half a surrogate \ud800"]}, "item 2"),
        ({"policy": "fake/nobody"}, "fake/nobody"),
        ({"judge": "nobody"}, "nobody"),
        ({"judge": []}, "no judge"),
        ({"temprature": 1}, "no setting `temprature`"),
        ({"n": 1}, "at least 2"),
        ({"policy": ["fake/oracle", "fake/tie", "fake/oracle"]}, "named twice"),
        ({"policy": [f"openai/m@http://127.0.0.1:9/v1{end}" for end in ("", "/")]}, "named twice"),
    ],
)
def test_wrong_input_is_an_input_error_and_leaves_nothing(tmp_path, settings, said):
    with pytest.raises(rlaif.InputError, match=said):
        generate(tmp_path / "out", **settings).wait()
    assert not (tmp_path / "out" / "dpo.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "candidates": [{"response": "a", "score": float("nan")}, "b"]}, "score"),
        ({"prompt": "q", "candidates": ["a", "\udfff"]}, "item 1"),
        ({"prompt": "q", "candidates": "ab"}, "`candidates` must be a list"),
    ],
)
def test_wrong_answers_are_an_input_error(tmp_path, row, said):
    with pytest.raises(rlaif.InputError, match=said):
        rlaif.judge([row], judge="shortest.py:shortest", out=tmp_path).wait()


# Stopping early


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"judge": ["pairwise", "shortest.py:shortest"]}, marks=pytest.mark.slow)]
)
def test_leaving_the_loop_early_leaves_a_directory_that_goes_on(tmp_path, settings):
    before = set(threading.enumerate())
    many = [f"Question {k}?" for k in range(300)]
    run = generate(tmp_path / "run", many, **settings)
    for record in run:
        assert record.candidates
        break
    assert left_running(before) == []
    assert run.summary is None and not (tmp_path / "run" / "dpo.jsonl").exists()
    again = generate(tmp_path / "run", many, **settings)
    summary = again.wait()
    assert summary["prompts"] == 300 and summary["calls"]["reused"] > 0
    generate(tmp_path / "whole", many, **settings).wait()
    assert (tmp_path / "run" / "dpo.jsonl").read_bytes() == (tmp_path / "whole" / "dpo.jsonl").read_bytes()


@pytest.mark.timeout(60)
def test_leaving_the_loop_does_not_wait_for_calls_in_flight(tmp_path):
    async def slow(prompt, candidates):
        await asyncio.sleep(0.0 if prompt.text == "fast" else 600.0)
        return [len(c.text) for c in candidates]

    before = set(threading.enumerate())
    for record in generate(tmp_path, ["fast", "slow"], judge=slow):
        assert record.prompt.text == "fast"
        break
    assert left_running(before) == []
    assert [r.prompt.text for r in stored_records(tmp_path)] == ["fast"]


def test_leaving_an_async_loop_early_gives_the_directory_back(tmp_path):
    async def main():
        records = aiter(generate(tmp_path))
        await anext(records)
        await records.aclose()
        return [record async for record in generate(tmp_path)]

    assert len(asyncio.run(main())) == 6


def test_nothing_is_asked_once_an_async_loop_is_closed(tmp_path, room: Room):
    room.set(latency_s=0.05)

    async def main():
        records = aiter(generate(tmp_path, policy=room.model(), concurrency=2))
        async for _ in records:
            break
        await records.aclose()
        asked, tasks = room.count(), asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0.4)
        return asked, tasks

    asked, tasks = asyncio.run(main())
    assert (tasks, room.count()) == (set(), asked) and asked < 6 + 36


@pytest.mark.parametrize(
    "judge", ["'pairwise'", "lambda prompt, candidates: sleep(600.0 * ('k' not in prompt.text)) or [1, 2]"]
)
def test_a_loop_that_is_left_open_does_not_keep_the_program_from_ending(tmp_path, judge):
    code = (
        "import rlaif\nfrom time import sleep\n"
        f"prompts = ['k'] + [f'Question {{k}}?' for k in range(300)]\n"
        f"run = rlaif.generate(prompts, policy='fake/oracle', judge={judge}, out='run', n=2)\n"
        "it = iter(run)\nprint(next(it).prompt.text)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert time.monotonic() - began < 15


def interrupted(run: rlaif.Run, begun) -> float:
    """Interrupts the run when `begun()` is true; returns how long it took to end."""
    moment: list[float] = []

    def wait_and_interrupt():
        while not begun():
            time.sleep(0.005)
        moment.append(time.monotonic())
        run.interrupt()

    thread = threading.Thread(target=wait_and_interrupt)
    thread.start()
    with pytest.raises(rlaif.StopRun) as stop:
        run.wait()
    thread.join()
    assert stop.value.kind == "interrupted" and run.summary["state"] == "stopped"
    return time.monotonic() - moment[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("failure", ["hold_20", "busy"])
def test_an_interrupted_run_does_not_wait_to_try_again(tmp_path, room: Room, failure):
    room.set(failure=failure, fail_after=3)
    run = generate(tmp_path, policy=room.model())
    assert interrupted(run, lambda: room.count() > 3) < 2
    room.set()
    assert generate(tmp_path, policy=room.model()).wait()["pairs"] == 6


@pytest.mark.timeout(60)
def test_an_interrupted_run_waits_for_the_judgements_in_flight_alone(tmp_path):
    called = []

    def slow(prompt, candidates):
        called.append(prompt.id)
        time.sleep(0.05)
        return [len(c.text) for c in candidates]

    slow.arity = 2
    rows = [{"prompt": f"{k}", "candidates": ["a", "bb", "ccc", "dddd"]} for k in range(10)]
    assert interrupted(rlaif.judge(rows, judge=slow, out=tmp_path), lambda: len(called) > 11) < 2
    assert len(called) < 30


def test_an_error_in_the_loop_s_body_is_the_caller_s(tmp_path):
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        for _ in generate(tmp_path):
            1 / 0  # noqa: B018
    assert left_running(before) == []
    assert generate(tmp_path).wait()["state"] == "done"


def test_a_run_that_is_never_read_does_nothing(tmp_path):
    generate(tmp_path / "run")
    run = iter(generate(tmp_path / "run"))
    run.close()
    assert not (tmp_path / "run").exists()


def test_a_slow_reader_gets_everything(tmp_path):
    """More records than are read ahead wait for a reader that takes its time."""
    seen = 0
    for _ in generate(tmp_path, [f"Question {k}?" for k in range(200)]):
        seen += 1
        if seen == 1:
            time.sleep(0.5)
    assert seen == 200


@pytest.mark.slow
def test_two_runs_in_one_directory_exclude_each_other(tmp_path):
    more_than_is_read_ahead = [f"Question {k}?" for k in range(1000)]
    records = iter(generate(tmp_path, more_than_is_read_ahead))
    next(records)
    with pytest.raises(rlaif.InputError, match="another process"):
        generate(tmp_path, more_than_is_read_ahead).wait()
    records.close()
    assert generate(tmp_path, more_than_is_read_ahead).wait()["state"] == "done"


def test_more_samples_more_prompts_and_another_judge_buy_only_what_is_new(tmp_path):
    generate(tmp_path, PROMPTS[:3], n=2).wait()
    more = generate(tmp_path, PROMPTS, n=4, judge="shortest.py:shortest").wait()
    fresh = generate(tmp_path / "fresh", PROMPTS, n=4, judge="shortest.py:shortest").wait()
    assert more["prompts"] == 6 and more["calls"]["policy"] == fresh["calls"]["policy"]
    again = generate(tmp_path, PROMPTS, n=4, judge="shortest.py:shortest").wait()
    assert (again["calls"]["policy"], again["calls"]["judge"]) == (0, 0)
    assert {r.prompt.id: len(r.candidates) for r in stored_records(tmp_path)} == {p["id"]: 4 for p in PROMPTS}
