"""Whole runs of the command against a real HTTP server: what is bought, what is written, and what survives a crash."""

from __future__ import annotations

import json
import math
import resource
import signal
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    ROW_KEYS,
    Room,
    committed,
    qualities,
    quality,
    read_rows,
    rlaif,
    start,
    stored_records,
    summary,
    write_prompts,
    write_rows,
)
from server import FAULTS, THINKING

pytestmark = pytest.mark.slow

NewRoom = Callable[[], Room]


def generate(room: Room, prompts: Path, out: Path, *more: object, command: str = "generate", expect: int = 0) -> str:
    """One run of the command, all pairs compared unless another judge is named; returns what it said."""
    judge = () if "--judge" in more or "--config" in more else ("--judge", "pairwise")
    done = rlaif(command, prompts, "--policy", room.model(), "--out", out, *judge, *more, expect=expect)
    return done.stdout + done.stderr


def bodies(out: Path) -> list[bytes]:
    """All that is stored compressed in a run directory."""
    with closing(sqlite3.connect(f"file:{out / 'run.sqlite'}?mode=ro", uri=True)) as db:
        return [zlib.decompress(body) for table in ("calls", "records") for (body,) in db.execute(f"SELECT body FROM {table}")]


def dpo(out: Path) -> bytes:
    return (out / "dpo.jsonl").read_bytes()


@dataclass(frozen=True)
class Finished:
    """A finished run that tests only read."""

    room: Room
    prompts: Path
    out: Path
    said: str


@pytest.fixture(scope="module")
def run(new_room: NewRoom, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Six prompts, four samples each, every pair judged in both orders."""
    room, folder = new_room(), tmp_path_factory.mktemp("finished")
    prompts = write_prompts(folder / "prompts.jsonl", 6)
    asked = ["--policy", room.model(), "--judge", "pairwise", "--out", folder / "run"]
    said = rlaif("generate", prompts, *asked, OPENAI_API_KEY="sk-test-secret").stdout
    return Finished(room, prompts, folder / "run", said)


# What comes out


def test_rows_keep_the_contract(run: Finished) -> None:
    rows = read_rows(run.out / "dpo.jsonl")
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(6)]
    sampled = {e["body"]["messages"][0]["content"]: e["texts"] for e in run.room.log() if not e["judge"]}
    for row in rows:
        assert list(row) == ROW_KEYS
        (asked,) = row["prompt"]
        assert asked == {"role": "user", "content": f"Question {row['id'][1:]}: why?"}
        ranked = sorted(sampled[asked["content"]], key=quality)
        assert len(set(ranked)) == 4
        assert row["chosen"] == [{"role": "assistant", "content": ranked[-1]}]
        assert row["rejected"] == [{"role": "assistant", "content": ranked[0]}]
        assert row["score_chosen"] > row["score_rejected"]
        better, worse = qualities(row)
        share = 1 / (1 + math.exp(-6 * (better - worse)))  # of the comparisons of these two; there are those with others, too
        assert share - 0.02 < row["p_chosen"] < 1.0
        assert (row["p_source"], row["judge"], row["flip"]) == ("judge", "pairwise:openai/m", False)


def test_rows_load_as_a_dataset(run: Finished, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset("json", data_files=str(run.out / "dpo.jsonl"), cache_dir=str(tmp_path), split="train")
    assert loaded.column_names == ROW_KEYS
    assert list(loaded) == read_rows(run.out / "dpo.jsonl")


def test_summary_counts_what_happened(run: Finished) -> None:
    log, said = run.room.log(), summary(run.out)
    assert said["calls"] == {"policy": 6, "judge": 6 * 12, "reused": 0}
    assert (len(log), run.room.calls(), run.room.repeats()) == (78, (6, 72), 0)
    assert said["tokens"] == {
        "prompt": sum(e["usage"]["prompt_tokens"] for e in log),
        "completion": sum(e["usage"]["completion_tokens"] for e in log),
    }
    assert (said["prompts"], said["pairs"], said["dropped"], said["state"]) == (6, 6, {}, "done")
    assert (said["faults"], said["maybe_lost"], said["failures"]) == ({}, 0, [])
    assert (said["flip_rate"], said["no_verdict_rate"], said["first_shown_rate"]) == (0.0, 0.0, 0.5)
    longer = [len(r["chosen"][0]["content"]) - len(r["rejected"][0]["content"]) for r in read_rows(run.out / "dpo.jsonl")]
    assert said["longer_chosen_rate"] == pytest.approx(sum(x > 0 for x in longer) / sum(x != 0 for x in longer))
    assert said["cost_usd"] is None and said["wall_s"] > 0
    assert "6 pairs from 6 prompts" in run.said and "6 policy, 72 judge, 0 reused" in run.said


def test_requests_are_what_the_settings_say(run: Finished) -> None:
    bodies = [e["body"] for e in run.room.log() if not e["judge"]]
    assert {(b["model"], b["n"], b["temperature"], b["max_tokens"]) for b in bodies} == {("m", 4, 1.0, 512)}
    assert len({b["seed"] for b in bodies}) == 6
    verdicts = [e["body"] for e in run.room.log() if e["judge"]]
    assert {(b["temperature"], b["logprobs"], b["max_tokens"]) for b in verdicts} == {(1.0, True, 1)}
    assert not any("n" in b for b in verdicts)


def test_key_is_sent_and_stands_in_no_file(run: Finished) -> None:
    assert {e["authorization"] for e in run.room.log()} == {"Bearer sk-test-secret"}
    files = [p for p in run.out.rglob("*") if p.is_file()]
    assert {"run.sqlite", "config.yaml", "dpo.jsonl", "summary.json"} <= {p.name for p in files}
    assert not [p.name for p in files if b"sk-test-secret" in p.read_bytes()]


@pytest.mark.parametrize("transport", ["aiohttp", "openai"])
@pytest.mark.parametrize(("status", "exit_status"), [(401, 3), (400, 0)])
def test_key_that_the_endpoint_repeats_stands_nowhere(
    room: Room, tmp_path: Path, transport: str, status: int, exit_status: int
) -> None:
    room.set(failure=f"echo_{status}", fail_when="Question 1")
    out = tmp_path / "run"
    options = ["--policy", room.model(), "--out", out, "-n", 2, "--transport", transport]
    prompts = write_prompts(tmp_path / "p.jsonl", 3)
    done = rlaif("generate", prompts, *options, expect=exit_status, OPENAI_API_KEY="sk-test-secret")
    assert {e["authorization"] for e in room.log()} == {"Bearer sk-test-secret"}
    assert "Cannot use" in done.stdout + done.stderr and "sk-test-secret" not in done.stdout + done.stderr
    assert not [p.name for p in out.rglob("*") if p.is_file() and b"sk-test-secret" in p.read_bytes()]
    assert not any(b"sk-test-secret" in body for body in bodies(out))


def test_configuration_of_a_run_makes_it_again(run: Finished, tmp_path: Path) -> None:
    before = run.room.count()
    rlaif("generate", "--config", run.out / "config.yaml", "--out", tmp_path / "again", "--concurrency", 3)
    assert dpo(tmp_path / "again") == dpo(run.out)
    assert run.room.count() == before + 78


# What is bought once


def test_second_run_buys_nothing(run: Finished) -> None:
    before, rows = run.room.count(), dpo(run.out)
    generate(run.room, run.prompts, run.out)
    said = summary(run.out)
    assert (run.room.count(), dpo(run.out)) == (before, rows)
    assert said["calls"] == {"policy": 0, "judge": 0, "reused": 78}
    assert (said["pairs"], said["state"]) == (6, "done")


def test_more_samples_buy_only_the_new_ones(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    generate(room, prompts, out, "-n", 2)
    assert room.calls() == (3, 6)
    first = [[c.text for c in r.candidates] for r in stored_records(out)]
    generate(room, prompts, out, "-n", 4)
    assert (room.calls(), room.repeats()) == ((6, 36), 0)
    assert [[c.text for c in r.candidates][:2] for r in stored_records(out)] == first
    assert all(len({c.text for c in r.candidates}) == 4 for r in stored_records(out))
    rows = dpo(out)
    generate(room, prompts, out, "-n", 3)
    generate(room, prompts, out, "-n", 4)
    assert (room.calls(), dpo(out)) == ((6, 36), rows)


def test_more_prompts_later_end_as_if_there_from_the_start(room: Room, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    generate(room, prompts, tmp_path / "grown", "-n", 2)
    before = room.count()
    write_prompts(prompts, 5)
    generate(room, prompts, tmp_path / "grown", "-n", 2)
    assert (room.count(), room.repeats()) == (before + 3 * 3, 0)
    generate(room, prompts, tmp_path / "whole", "-n", 2)
    assert dpo(tmp_path / "grown") == dpo(tmp_path / "whole")


def test_limit_reads_a_part_and_later_the_rest(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 4), tmp_path / "run"
    generate(room, prompts, out, "-n", 2, "--limit", 2)
    assert (summary(out)["prompts"], room.count()) == (2, 6)
    generate(room, prompts, out, "-n", 2)
    rows = read_rows(out / "dpo.jsonl")
    assert ([r["id"] for r in rows], room.count()) == (["p0", "p1", "p2", "p3"], 12)
    generate(room, prompts, out, "-n", 2, "--limit", 1)
    assert (summary(out)["prompts"], read_rows(out / "dpo.jsonl")[0]["id"], room.count()) == (1, "p0", 12)


def test_another_judge_or_constitution_reuses_the_candidates(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    generate(room, prompts, out, "-n", 3)
    rows = dpo(out)
    assert room.calls() == (3, 18)
    generate(room, prompts, out, "-n", 3, "--constitution", "harmless")
    assert room.calls() == (3, 36)
    generate(room, prompts, out, "-n", 3, "--judge", "judges/shortest.py:shortest")
    assert room.calls() == (3, 36)
    for row in read_rows(out / "dpo.jsonl"):
        assert len(row["chosen"][0]["content"]) < len(row["rejected"][0]["content"])
        assert (row["judge"], row["flip"]) == ("shortest", None)
    generate(room, prompts, out, "-n", 3, "--judge-model", room.model("another"))
    assert room.calls() == (3, 54)
    assert {r["judge"] for r in read_rows(out / "dpo.jsonl")} == {"pairwise:openai/another"}
    generate(room, prompts, out, "-n", 3)
    assert (room.calls(), dpo(out)) == ((3, 54), rows)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--temperature", "0.5"], ["temperature", "1.0", "0.5"]),
        (["--max-tokens", "9"], ["max_tokens", "512", "9"]),
        (["--seed", "7"], ["seed", "0", "7"]),
        (["--system", "Be brief."], ["system", "null", "Be brief."]),
        (["--policy", "fake/oracle"], ["policy", "fake"]),
        (["--extra-body", '{"top_p": 0.5}'], ["top_p"]),
    ],
    ids=lambda value: value[0],
)
def test_changed_settings_are_refused_with_the_difference(run: Finished, changed: list[str], named: list[str]) -> None:
    before, files = run.room.count(), {p.name: p.read_bytes() for p in run.out.iterdir() if p.name != "run.lock"}
    said = generate(run.room, run.prompts, run.out, *changed, expect=2)
    assert all(name in said for name in named), said
    assert run.room.count() == before
    assert {p.name: p.read_bytes() for p in run.out.iterdir() if p.name in files} == files


@pytest.mark.parametrize("change", ["text", "order", "gone", "reference", "tail"])
def test_changed_prompts_are_refused_with_the_difference(run: Finished, tmp_path: Path, change: str) -> None:
    before, rows = run.room.count(), read_rows(run.prompts)
    if change == "text":
        rows[2]["prompt"] = "Another question?"
    elif change == "order":
        rows[1], rows[2] = rows[2], rows[1]
    elif change == "gone":
        rows.pop()
    elif change == "tail":
        rows[2]["prompt"] = [{"role": "system", "content": ""}, {"role": "user", "content": rows[2]["prompt"]}]
    else:
        rows[2]["reference"] = "42"
    said = generate(run.room, write_rows(tmp_path / "p.jsonl", rows), run.out, expect=2)
    number, name = {"order": (2, "p1"), "gone": (6, "p5")}.get(change, (3, "p2"))
    assert f"prompt {number}" in said and name in said
    assert {
        "text": 'text was "Question 2: why?", now "Another question?"',
        "order": 'id was "p1", now "p2"',
        "gone": "gone from the input",
        "reference": "reference changed",
        "tail": "messages changed",
    }[change] in said
    assert run.room.count() == before


# Concurrency and crashes: equal bytes


@pytest.mark.parametrize("concurrency", [1, 64])
def test_concurrency_changes_no_byte(run: Finished, new_room: NewRoom, tmp_path: Path, concurrency: int) -> None:
    room = new_room()
    room.set(latency_s=0.002 if concurrency == 1 else 0.02)
    generate(room, run.prompts, tmp_path / "run", "--concurrency", concurrency)
    assert dpo(tmp_path / "run") == dpo(run.out)
    assert room.peak() == 1 if concurrency == 1 else 20 < room.peak() <= 64


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.003)


def interrupted_runs(room: Room, prompts: Path, out: Path, moments: list[int], how: int) -> Iterator[tuple[Any, int]]:
    """Starts the run again and again, and signals it when so many requests have reached the endpoint."""
    for moment in moments:
        process = start("generate", prompts, "--policy", room.model(), "--out", out, "--concurrency", 8)
        wait_for(lambda moment=moment: room.count() >= moment)  # type: ignore[misc]
        process.send_signal(how)
        said = process.communicate(timeout=30)
        yield (process.returncode, *said), room.count()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_run_waits_for_what_is_in_flight_and_resumes(
    run: Finished, new_room: NewRoom, tmp_path: Path, how: signal.Signals
) -> None:
    room, out = new_room(), tmp_path / "run"
    room.set(latency_s=0.05)
    for (status, stdout, stderr), _ in interrupted_runs(room, run.prompts, out, [30], how):
        assert "Traceback" not in stdout + stderr
        if how == signal.SIGINT:
            assert status == 130 and "interrupted" in stderr
        assert room.count() < 78
        assert committed(out) == {e["id"] for e in room.log()}, "a call in flight was dropped"
    room.set()
    generate(room, run.prompts, out)
    assert (dpo(out), room.repeats()) == (dpo(run.out), 0)


def test_faults_change_no_byte(run: Finished, new_room: NewRoom, tmp_path: Path) -> None:
    room = new_room()
    room.set(fault_share=0.3)
    generate(room, run.prompts, tmp_path / "run")
    assert dpo(tmp_path / "run") == dpo(run.out)
    assert room.count() > 78 + 15
    found, log = summary(tmp_path / "run"), room.log()
    assert found["no_verdict_rate"] == 0.0 and found["calls"] == {"policy": 6, "judge": 72, "reused": 0}
    statuses = Counter(e["status"] for e in log)
    assert sum(found["faults"].values()) == room.count() - 78
    assert (found["faults"]["http_429"], found["faults"]["http_500"]) == (statuses[429], statuses[500])
    assert found["faults"]["broken"] == statuses[0] and found["faults"]["bad_body"] == statuses[200] - 78
    assert found["maybe_lost"] == statuses[0] + statuses[200] - 78


def test_each_fault_gets_at_least_four_attempts(room: Room, tmp_path: Path) -> None:
    room.set(fault_first=3, faults=",".join([*FAULTS, "whitespace", "no_choices", "error_inside", "null_choices"]))
    prompts, out = write_prompts(tmp_path / "p.jsonl", 9), tmp_path / "run"
    generate(room, prompts, out, "-n", 2, "--judge", "judges/longest.py:longest")
    assert [c.error for r in stored_records(out) for c in r.candidates] == [None] * 18
    assert (room.count(), room.repeats()) == (9 * 4, 9 * 3)


def test_full_disk_stops_the_run_and_space_lets_it_go_on(run: Finished, new_room: NewRoom, tmp_path: Path) -> None:
    """A disk that fills up while the run works; without room for the reserve, 8 MiB, it would not have begun."""
    room, out = new_room(), tmp_path / "run"
    room.set(latency_s=0.05)
    process = start(*("generate", run.prompts, "--policy", room.model(), "--out", out, "--concurrency", 4))
    while room.count() < 12 and process.poll() is None:
        time.sleep(0.01)
    size = (out / "run.sqlite-wal").stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, (process.returncode, stdout, stderr)
    assert "(disk)" in stderr and "Traceback" not in stderr
    asked, kept = room.count(), committed(out)
    assert 0 < len(kept) < 78
    generate(room, run.prompts, out)
    assert dpo(out) == dpo(run.out)
    assert {e["id"] for e in room.log()[asked:]}.isdisjoint(kept)
    assert room.repeats() <= 4, "calls went on although nothing could be stored"


# Endpoints that do less than they are asked


@pytest.mark.parametrize(
    ("behaviour", "policy_calls"), [({"most_choices": 1}, 12), ({"most_choices": 2}, 9), ({"missing_choices": 1}, 6)]
)
def test_missing_choices_are_topped_up(room: Room, tmp_path: Path, behaviour: dict[str, int], policy_calls: int) -> None:
    room.set(**behaviour)
    generate(room, write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run")
    for record in stored_records(tmp_path / "run"):
        assert len({c.text for c in record.candidates}) == 4
        assert [c.id for c in record.candidates] == [f"{record.prompt.id}/{k}" for k in range(4)]
    assert (room.calls()[0], room.repeats()) == (policy_calls, 0)
    asked = room.count()
    generate(room, tmp_path / "p.jsonl", tmp_path / "run")
    assert room.count() == asked


def test_interruption_while_choices_are_topped_up_changes_no_byte(new_room: NewRoom, tmp_path: Path) -> None:
    prompts, (whole, room) = write_prompts(tmp_path / "p.jsonl", 1), (new_room(), new_room())
    whole.set(most_choices=2)
    generate(whole, prompts, tmp_path / "whole")
    room.set(most_choices=2, failure="auth", fail_after=1)
    generate(room, prompts, tmp_path / "run", expect=3)
    room.set(most_choices=2)
    generate(room, prompts, tmp_path / "run")
    assert dpo(tmp_path / "run") == dpo(tmp_path / "whole")


def test_judge_without_logprobs_falls_back_to_text_and_says_so_once(run: Finished, new_room: NewRoom, tmp_path: Path) -> None:
    for behaviour in ({"logprobs": "ignored"}, {"refuses": "logprobs"}):
        room, out = new_room(), tmp_path / f"run{len(behaviour)}{next(iter(behaviour))}"
        room.set(**behaviour)
        said = generate(room, run.prompts, out, "--concurrency", 4)
        assert said.count("falls back") == 1
        pairs = [(r["chosen"], r["rejected"]) for r in read_rows(out / "dpo.jsonl")]
        assert pairs == [(r["chosen"], r["rejected"]) for r in read_rows(run.out / "dpo.jsonl")]
        in_vain = sum(bool(e["body"].get("logprobs")) for e in room.log())
        assert 1 <= in_vain <= 8, "it goes on asking for what it does not get"
        assert {v.scale for r in stored_records(out) for v in r.verdicts} == {"vote"}


def test_judge_that_cannot_answer_in_one_token_is_asked_for_text(room: Room, tmp_path: Path) -> None:
    room.set(failure="unfinished", fail_when='"logprobs": true')
    prompts, out = write_prompts(tmp_path / "p.jsonl", 4), tmp_path / "run"
    said = generate(room, prompts, out, "-n", 2)
    assert said.count("falls back") == 1
    assert (summary(out)["pairs"], summary(out)["no_verdict_rate"], summary(out)["failures"]) == (4, 0.0, [])
    assert {v.scale for r in stored_records(out) for v in r.verdicts} == {"vote"}
    asked = room.count()
    generate(room, prompts, out, "-n", 2)
    assert room.count() == asked


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "seed", "n", "top_logprobs"])
def test_refused_fields_are_learned(room: Room, tmp_path: Path, name: str) -> None:
    room.set(refuses=name)
    generate(room, write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run", "-n", 2, "--concurrency", 1)
    log = room.log()
    refused = [e for e in log if e["status"] == 400]
    assert len(refused) == 1, "a request that waited for its turn was sent as before"
    assert not any(name in e["body"] for e in log if e["number"] > refused[0]["number"])
    if name == "max_tokens":
        assert {e["body"]["max_completion_tokens"] for e in log if e["status"] == 200} == {512, 1}
    assert [c.error for r in stored_records(tmp_path / "run") for c in r.candidates] == [None] * 6
    assert summary(tmp_path / "run")["no_verdict_rate"] == 0.0


def test_a_refused_field_is_told_once(room: Room, tmp_path: Path) -> None:
    room.set(refuses="temperature", latency_s=0.02)
    said = generate(room, write_prompts(tmp_path / "p.jsonl", 20), tmp_path / "run", "-n", 2, "--concurrency", 8)
    assert said.count("refuses temperature") == 1
    assert sum(e["status"] == 400 for e in room.log()) <= 8


@pytest.mark.parametrize("thinking", ["field", "block", "tail"])
def test_thinking_is_neither_answer_nor_verdict(run: Finished, new_room: NewRoom, tmp_path: Path, thinking: str) -> None:
    room, out = new_room(), tmp_path / "run"
    room.set(thinking=thinking, logprobs="ignored")
    generate(room, run.prompts, out)
    for row, plain in zip(read_rows(out / "dpo.jsonl"), read_rows(run.out / "dpo.jsonl"), strict=True):
        assert (row["chosen"], row["rejected"]) == (plain["chosen"], plain["rejected"])
    assert summary(out)["no_verdict_rate"] == 0.0
    assert {c.thinking for r in stored_records(out) for c in r.candidates} == {THINKING}
    assert not any("0.999" in e["body"]["messages"][-1]["content"] for e in room.log())


def test_extra_body_is_in_every_request(room: Room, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    generate(room, prompts, tmp_path / "run", "-n", 2, "--extra-body", '{"top_p": 0.5, "chat_template_kwargs": {"x": [1]}}')
    bodies = [e["body"] for e in room.log()]
    assert len(bodies) == 6
    assert all(b["top_p"] == 0.5 and b["chat_template_kwargs"] == {"x": [1]} for b in bodies)


def test_system_message_is_in_every_sample_and_in_the_rows(room: Room, tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "How?"}, {"prompt": own}])
    generate(room, prompts, tmp_path / "run", "-n", 2, "--system", "Be brief.")
    asked = [e["body"]["messages"] for e in room.log() if not e["judge"]]
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]
    assert sorted(asked, key=str) == sorted([brief, own], key=str)
    assert [r["prompt"] for r in read_rows(tmp_path / "run" / "dpo.jsonl")] == [brief, own]


# What may be in a pair, and why a prompt has none


def test_truncated_answers_are_on_neither_side_unless_allowed(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 6), tmp_path / "run"
    room.set(truncated_above=0.6)
    generate(room, prompts, out)
    rows = read_rows(out / "dpo.jsonl")
    assert rows and all(max(qualities(row)) <= 0.6 for row in rows)
    assert summary(out)["pairs"] + sum(summary(out)["dropped"].values()) == 6
    generate(room, prompts, out, "--allow-truncated")
    allowed = read_rows(out / "dpo.jsonl")
    assert len(allowed) == 6 and sum(max(qualities(row)) > 0.6 for row in allowed) >= 4
    assert (room.calls(), room.repeats()) == ((6, 72), 0)


@pytest.mark.parametrize(
    ("behaviour", "reason", "expected"),
    [
        ({"answers": "same"}, "identical", {"flip_rate": None, "no_verdict_rate": None, "first_shown_rate": None}),
        ({"answers": "empty"}, "ineligible", {"no_verdict_rate": None}),
        ({"answers": "blank"}, "ineligible", {"no_verdict_rate": None}),
        ({"truncated_above": -1.0}, "ineligible", {"no_verdict_rate": None}),
        ({"failure": "null_content"}, "sampling_failed", {"no_verdict_rate": None}),
        ({"judge": "tie"}, "tied", {"flip_rate": 0.0, "no_verdict_rate": 0.0}),
        ({"judge": "tie", "logprobs": "ignored"}, "tied", {"flip_rate": 0.0, "first_shown_rate": None}),
        ({"judge": "first"}, "tied", {"flip_rate": 1.0, "first_shown_rate": 1.0, "no_verdict_rate": 0.0}),
        ({"judge": "first", "logprobs": "ignored"}, "tied", {"flip_rate": 1.0, "first_shown_rate": 1.0}),
        ({"judge": "unreadable"}, "no_verdict", {"flip_rate": None, "no_verdict_rate": 1.0, "first_shown_rate": None}),
        ({"judge": "contradictory", "logprobs": "ignored"}, "no_verdict", {"no_verdict_rate": 1.0}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_prompts_without_a_pair_say_why(
    room: Room, tmp_path: Path, behaviour: dict[str, Any], reason: str, expected: dict[str, Any]
) -> None:
    room.set(**behaviour)
    said = generate(room, write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run", "-n", 3)
    found = summary(tmp_path / "run")
    assert (found["prompts"], found["pairs"], found["dropped"]) == (3, 0, {reason: 3})
    assert {name: found[name] for name in expected} == expected
    assert dpo(tmp_path / "run") == b""
    assert reason in said


def test_a_call_that_cannot_succeed_is_its_prompts_failure_alone(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 4), tmp_path / "run"
    for failure in ("too_long", "policy"):
        room.set(failure=failure, fail_when="Question 2")
        generate(room, prompts, out / failure, "-n", 2)
        assert summary(out / failure)["dropped"] == {"sampling_failed": 1}
        assert [r["id"] for r in read_rows(out / failure / "dpo.jsonl")] == ["p0", "p1", "p3"]
    asked = room.count()
    assert asked == 2 * (4 + 6)
    generate(room, prompts, out / "policy", "-n", 2)
    assert room.count() == asked, "a stored failure is final"
    generate(room, prompts, out / "policy", "-n", 2, "--retry-failed")
    assert room.count() == asked + 1
    room.set()
    generate(room, prompts, out / "policy", "-n", 2, "--retry-failed")
    assert (room.count(), summary(out / "policy")["pairs"]) == (asked + 1 + 3, 4)


# Stops


@pytest.mark.parametrize(
    ("failure", "kind"),
    [("auth", "auth"), ("forbidden", "auth"), ("quota", "quota"), ("model", "model"), ("long_hold", "rate_limit")],
)
def test_endpoint_that_says_no_stops_the_run_resumably(
    run: Finished, new_room: NewRoom, tmp_path: Path, failure: str, kind: str
) -> None:
    room, out = new_room(), tmp_path / "run"
    room.set(failure=failure, fail_after=20, latency_s=0.01)
    said = generate(room, run.prompts, out, "--concurrency", 4, expect=3)
    assert f"({kind})" in said
    assert room.count() <= 20 + 4 + (kind == "auth"), "calls went on after the refusal, and what confirms it"
    stopped = summary(out)
    assert (stopped["state"], stopped["stopped"]["kind"]) == ("stopped", kind)
    assert not (out / "dpo.jsonl").exists()
    assert committed(out) == {e["id"] for e in room.log()[:20]}
    assert all(c.error is None for r in stored_records(out) for c in r.candidates)
    assert all(v.error is None for r in stored_records(out) for v in r.verdicts)
    room.set()
    generate(room, run.prompts, out)
    assert dpo(out) == dpo(run.out)
    assert {e["id"] for e in room.log()[:20]}.isdisjoint(e["id"] for e in room.log()[20:])


def test_refused_settings_stop_before_the_file_is_through(room: Room, tmp_path: Path) -> None:
    room.set(failure="policy")
    said = generate(room, write_prompts(tmp_path / "p.jsonl", 40), tmp_path / "run", "--concurrency", 2, expect=3)
    assert "(config)" in said and "safety system" in said
    assert room.count() <= 5 + 2


@pytest.mark.parametrize("concurrency", [1, 64])
@pytest.mark.parametrize("fail_when", ["", "[[A]]"], ids=["policy", "judge"])
def test_refused_settings_cost_no_prompt_once_they_are_repaired(
    room: Room, tmp_path: Path, concurrency: int, fail_when: str
) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 10), tmp_path / "run"
    room.set(failure="policy", fail_when=fail_when, logprobs="ignored")
    options = ["-n", 2, "--concurrency", concurrency]
    assert "(config)" in generate(room, prompts, out, *options, expect=3)
    assert summary(out)["stopped"]["kind"] == "config"
    room.set(logprobs="ignored")
    generate(room, prompts, out, *options)
    assert (summary(out)["pairs"], summary(out)["dropped"], summary(out)["no_verdict_rate"]) == (10, {}, 0.0)


@pytest.mark.parametrize("failure", ["too_long", "null_content"])
def test_price_of_an_endpoint_is_unknown_whatever_came_of_it(room: Room, tmp_path: Path, failure: str) -> None:
    room.set(failure=failure)
    said = generate(room, write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "run", "-n", 2)
    found = summary(tmp_path / "run")
    assert (found["pairs"], found["state"], found["cost_usd"]) == (0, "done", None)
    assert found["failures"][0]["of"] == "policy" and found["failures"][0]["error"] in said
    assert "cost: unknown" in said


def test_tokens_are_unknown_where_no_call_counted_them(room: Room, tmp_path: Path) -> None:
    room.set(usage="missing")
    said = generate(room, write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "run", "-n", 2)
    assert summary(tmp_path / "run")["tokens"] == {"prompt": None, "completion": None, "calls_without_a_count": 2 + 4}
    assert "unknown prompt, unknown completion" in said


# A judge that does not come back


@pytest.mark.timeout(60)
def test_a_second_interrupt_ends_a_judge_that_does_not_come_back(tmp_path: Path) -> None:
    judge = tmp_path / "stuck.py"
    judge.write_text(
        "import time\nfrom pathlib import Path\n"
        "def stuck(prompt, candidates):\n    Path(__file__).with_suffix('.begun').touch()\n    time.sleep(600)\n"
    )
    rows = write_rows(tmp_path / "c.jsonl", [{"prompt": "Why?", "candidates": ["a", "b"]}])
    with start("judge", rows, "--judge", f"{judge}:stuck", "--out", tmp_path / "run") as process:
        wait_for(judge.with_suffix(".begun").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stdout + stderr


# The other commands


def test_judge_compares_answers_that_exist(room: Room, tmp_path: Path) -> None:
    given = [f"A text of quality {q}." for q in ("0.200", "0.900", "0.500")]
    rows = [
        {"id": 1, "prompt": "Why?", "candidates": given},
        {
            "prompt": [{"role": "user", "content": "How?"}],
            "candidates": [{"text": given[1], "score": 1}, {"response": given[0]}],
        },
        {"id": "one", "prompt": "One?", "candidates": given[:1]},
        {"id": "none", "prompt": "None?", "candidates": []},
    ]
    candidates, out = write_rows(tmp_path / "c.jsonl", rows), tmp_path / "run"
    rlaif("judge", candidates, "--judge", "pairwise", "--judge-model", room.model(), "--out", out)
    found = read_rows(out / "dpo.jsonl")
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in found] == [(given[1], given[0])] * 2
    assert (found[0]["id"], found[1]["prompt"]) == ("1", rows[1]["prompt"])
    assert room.calls() == (0, 6 + 2)
    assert (summary(out)["prompts"], summary(out)["pairs"], sum(summary(out)["dropped"].values())) == (4, 2, 2)
    rlaif("judge", candidates, "--judge", "pairwise", "--judge-model", room.model(), "--out", out)
    assert room.count() == 8
    for first in (given[:2], [given[1], given[0], given[2]], [*given[:2], {"text": given[2], "score": 1}]):
        rows[0]["candidates"] = first
        changed = rlaif("judge", write_rows(candidates, rows), "--judge-model", room.model(), "--out", out, expect=2)
        assert "prompt 1" in changed.stderr and ": candidates changed." in changed.stderr and room.count() == 8


def test_best_of_n_and_export_are_two_views_of_one_run(run: Finished, tmp_path: Path) -> None:
    out = tmp_path / "best"
    generate(run.room, run.prompts, out, command="best-of-n")
    found = read_rows(out / "sft.jsonl")
    assert list(found[0]) == ["id", "prompt", "completion", "score", "p_win", "n", "model", "judge"]
    assert [r["completion"] for r in found] == [r["chosen"] for r in read_rows(run.out / "dpo.jsonl")]
    assert {(r["n"], r["model"]) for r in found} == {(4, "openai/m")}
    assert all(0.5 < r["p_win"] <= 1 for r in found)
    said = summary(out)
    assert said["best_of_n"] == {"n": 4, "kl_bound_nats": pytest.approx(math.log(4) - 0.75, abs=1e-5)}
    before = run.room.count()
    rlaif("export", out, "--format", "dpo")
    rlaif("export", run.out, "--format", "sft", "--out", tmp_path / "other.jsonl")
    assert dpo(out) == dpo(run.out)
    assert (tmp_path / "other.jsonl").read_bytes() == (out / "sft.jsonl").read_bytes()
    assert run.room.count() == before


def test_two_policies_give_n_samples_each(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    generate(room, prompts, out, "--policy", room.model("other"), "-n", 2)
    for record in stored_records(out):
        assert [c.model for c in record.candidates] == ["openai/m"] * 2 + ["openai/other"] * 2
        assert len({c.text for c in record.candidates} | {c.id for c in record.candidates}) == 8
    assert room.calls() == (6, 36)
    assert {e["body"]["model"] for e in room.log() if e["judge"]} == {"m"}
    assert summary(out)["pairs"] == 3


def test_jury_of_two_judges(room: Room, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "run"
    judges = ["--judge", "pairwise", "--judge", "judges/shortest.py:shortest"]
    generate(room, prompts, out, "-n", 3, *judges)
    assert room.calls() == (3, 18)
    assert {r["judge"] for r in read_rows(out / "dpo.jsonl")} == {"pairwise:openai/m+shortest"}
    for record in stored_records(out):
        assert sorted(v.judge for v in record.verdicts) == ["pairwise:openai/m"] * 6 + ["shortest"]
    assert summary(out)["judges"] == ["pairwise:openai/m", "shortest"]
    generate(room, prompts, out, "-n", 3)
    assert room.calls() == (3, 18)
    assert {r["judge"] for r in read_rows(out / "dpo.jsonl")} == {"pairwise:openai/m"}


def test_openai_client_gives_the_same_bytes(run: Finished, new_room: NewRoom, tmp_path: Path) -> None:
    room = new_room()
    room.set(fault_share=0.2)
    generate(room, run.prompts, tmp_path / "run", "--transport", "openai", "--extra-body", "{}")
    assert dpo(tmp_path / "run") == dpo(run.out)


def test_dry_run_spends_nothing_and_says_what_would_be_spent(run: Finished, room: Room, tmp_path: Path) -> None:
    said = generate(room, run.prompts, tmp_path / "run", "--dry-run")
    assert "prompts: 6" in said and "policy_calls: 6" in said and "judge_calls: 72" in said
    assert (room.count(), (tmp_path / "run").exists()) == (0, False)


def test_models_served(room: Room) -> None:
    assert rlaif("models", "served", room.url).stdout.split() == [room.model()]


def test_gzipped_prompts_and_a_base_url_from_the_environment(room: Room, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"prompt": "Why?"}).encode()))
    rlaif("generate", path, "--policy", "openai/m", "--out", tmp_path / "run", OPENAI_BASE_URL=room.url)
    assert room.calls() == (1, 8), "by default four ratings and two duels"
