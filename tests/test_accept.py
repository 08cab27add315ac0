"""Rejection sampling: a prompt is sampled while it has no accepted answer, and the run ends at its target."""

from __future__ import annotations

import gzip
import json
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, quality, read_rows, start, stored_records, summary, write_prompts, write_rows
from helpers import rlaif as command

import rlaif
from rlaif.accept import accepted, parse
from rlaif.errors import InputError
from rlaif.types import Verdict

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data at {DATA}")
LEAST = 0.7


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """Rates an answer of the test server by its hidden quality."""
    path = tmp_path / "quality.py"
    path.write_text(
        "import re\n\ndef quality(prompt, candidates):\n"
        "    return [float(re.findall(r'quality (\\d\\.\\d+)', c.text)[-1]) for c in candidates]\n"
    )
    return f"{path}:quality"


def sample(tmp_path: Path, room: Room, judge: str, *more: object, out: str = "run", prompts: int = 40, **kw: Any):
    path = write_prompts(tmp_path / "prompts.jsonl", prompts)
    return command(
        *("best-of-n", path, "--policy", room.model(), "--judge", judge, "--out", tmp_path / out),
        *("--accept", f"score:{LEAST}", *more),
        **kw,
    )


# What is accepted


def rating(candidate: str, score: float | None, judge: str = "j") -> Verdict:
    return Verdict(judge, (candidate,), None if score is None else (score,), error="lost" if score is None else None)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], {}),
        ([rating("a", 6.9), rating("b", 7.0), rating("c", 9.0)], {"b": 7.0, "c": 9.0}),
        ([rating("a", None), rating("b", 8.0)], {"b": 8.0}),
        ([rating("a", 8.0), rating("a", 5.0), rating("b", 8.0), rating("b", 6.0)], {"b": 7.0}),
        ([rating("a", 8.0), rating("a", 6.0, "k"), rating("b", 7.0), rating("b", 8.0, "k")], {"b": 7.5}),
        ([rating("a", 8.0), rating("a", None, "k")], {}),
        ([rating("a", 8.0), rating("b", 8.0), rating("b", 9.0, "k")], {"b": 8.5}),
        ([Verdict("j", ("a", "b"), (9.0, 1.0))], {}),
        ([Verdict("j", ("a",), (9.0,), "probability")], {}),
    ],
)
def test_an_answer_is_accepted_where_every_judge_rates_it_high_enough(verdicts, expected):
    """A failed verdict is no rating, and what was said of two together says nothing of one."""
    assert accepted(parse("score:7"), verdicts) == expected


def test_rules_read_as_people_write_them():
    assert parse("score:7") == parse("score>=7") == parse(" score = 7.0")
    assert (parse("correct").judge, parse("correct").least, parse("correct").needs_reference) == ("rules-math", 1.0, True)
    for text in ("", "score", "score:", "score:high", "score:nan", "correct:1", "best"):
        with pytest.raises(InputError, match="give `correct`, or `score:T`"):
            parse(text)


# What is sampled


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_prompt_is_sampled_while_it_has_no_accepted_answer_and_no_longer(tmp_path, room, judge, n):
    sample(tmp_path, room, judge, "--max-samples", 6, "-n", n)
    records, said = stored_records(tmp_path / "run"), summary(tmp_path / "run")
    rows = {row["id"]: row for row in read_rows(tmp_path / "run" / "sft.jsonl")}
    for record in records:
        good = [quality(c.text) >= LEAST for c in record.candidates]
        rounds = [good[at : at + n] for at in range(0, len(good), n)]
        assert not any(any(r) for r in rounds[:-1]) and len(good) <= 6 and len({c.id for c in record.candidates}) == len(good)
        assert any(rounds[-1]) or len(good) == 6
        if any(good):
            row = rows[record.prompt.id]
            best = max((c for c in record.candidates), key=lambda c: quality(c.text))
            assert row["completion"][0]["content"] == best.text and row["score"] == quality(best.text) and row["n"] == len(good)
        else:
            assert record.prompt.id not in rows
    drawn = [len(record.candidates) for record in records]
    assert len(records) == 40 and len(set(drawn)) > 1 and room.count() == sum(drawn) / n
    assert said["accept"] == {"rule": f"score:{LEAST}", "target": None, "accepted": len(rows), "samples": sum(drawn)}
    assert (said["prompts"], said["pairs"]) == (40, len(rows)) and said["dropped"] == {"not_accepted": 40 - len(rows)}
    assert room.repeats() == 0


@pytest.mark.parametrize("concurrency", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_beyond_the_target_is_bought_what_was_in_flight(tmp_path, room, judge, concurrency):
    room.set(latency_s=0.1)
    done = sample(tmp_path, room, judge, "--target", 12, "--concurrency", concurrency, prompts=200)
    said, rows = summary(tmp_path / "run"), read_rows(tmp_path / "run" / "sft.jsonl")
    assert len(rows) == 12 == said["pairs"] and said["state"] == "done" and said["accept"]["accepted"] >= 12
    assert f"{said['accept']['accepted']} of 12 wanted" in done.stdout
    assert all(row["score"] >= LEAST for row in rows)
    log = sorted(room.log(), key=lambda entry: entry["time"])
    good = [entry["time"] + 0.1 for entry in log if quality(entry["texts"][0]) >= LEAST]
    reached = sorted(good)[11]  # the twelfth accepted answer was on its way
    in_flight = sum(entry["time"] <= reached < entry["time"] + 0.1 for entry in log)
    assert in_flight <= concurrency and room.peak() <= concurrency
    assert sum(entry["time"] > reached for entry in log) <= concurrency  # sent before that answer was read
    assert not any(entry["time"] > reached + 0.09 for entry in log)
    assert said["dropped"]["target_reached"] >= 100 and said["pairs"] + sum(said["dropped"].values()) == said["prompts"] == 200
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), key=lambda name: int(name[1:]))


@pytest.mark.slow
def test_a_higher_target_goes_on_where_the_lower_one_ended(tmp_path, room, judge):
    sample(tmp_path, room, judge, "--target", 5, prompts=100)
    first = room.count()
    sample(tmp_path, room, judge, "--target", 5, prompts=100)
    assert room.count() == first
    sample(tmp_path, room, judge, "--target", 20, prompts=100)
    assert room.count() > first and room.repeats() == 0
    assert len(read_rows(tmp_path / "run" / "sft.jsonl")) == 20


@pytest.mark.slow
def test_more_samples_are_bought_for_those_that_need_them_alone(tmp_path, room, judge):
    sample(tmp_path, room, judge, "--max-samples", 2)
    few = {record.prompt.id: len(record.candidates) for record in stored_records(tmp_path / "run")}
    sample(tmp_path, room, judge, "--max-samples", 9)
    for record in stored_records(tmp_path / "run"):
        good = [quality(c.text) >= LEAST for c in record.candidates]
        assert any(good) or len(good) == 9
        assert len(good) >= few[record.prompt.id]
    assert room.repeats() == 0 and room.count() == sum(len(r.candidates) for r in stored_records(tmp_path / "run"))


@pytest.mark.slow
def test_a_kill_loses_at_most_what_was_in_flight_and_ends_at_the_same_target(tmp_path, room, judge):
    room.set(latency_s=0.05)
    path = write_prompts(tmp_path / "prompts.jsonl", 100)
    arguments = ("best-of-n", path, "--policy", room.model(), "--judge", judge, "--out", tmp_path / "run")
    arguments += ("--accept", f"score:{LEAST}", "--target", 30, "--concurrency", 4)
    with start(*arguments) as process:
        while room.count() < 30:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(stored_records(tmp_path / "run")) < 30
    command(*arguments)
    assert len(read_rows(tmp_path / "run" / "sft.jsonl")) == 30 and room.repeats() <= 4


@pytest.mark.slow
def test_concurrency_changes_nothing_where_there_is_no_target(tmp_path, room, judge):
    for concurrency in (1, 16):
        sample(tmp_path, room, judge, "--max-samples", 5, "--concurrency", concurrency, out=f"run{concurrency}")
    one, many = ((tmp_path / f"run{c}" / "sft.jsonl").read_bytes() for c in (1, 16))
    assert one == many and one


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "asked"), [("too_long", 1), ("null_content", 3)])
def test_a_prompt_that_cannot_be_answered_is_given_up(tmp_path, room, judge, failure, asked):
    """What is refused for its length is refused for ever; an answer without text may have one the next time."""
    room.set(failure=failure, fail_when="Question 1:")
    sample(tmp_path, room, judge, "--max-samples", 3, prompts=6)
    found = {record.prompt.id: record.candidates for record in stored_records(tmp_path / "run")}
    assert len(found) == 6 and [c.error is not None for c in found["p1"]] == [True] * asked
    assert summary(tmp_path / "run")["dropped"]["sampling_failed"] == 1
    assert sum(len(c) for c in found.values()) >= 5 + asked


def test_an_llm_rates_each_answer(tmp_path):
    out = tmp_path / "run"
    done = command(
        *("best-of-n", "prompts/examples/demo.jsonl", "--policy", "fake/oracle", "--out", out),
        *("--accept", "score:6.5", "--max-samples", "8", "--limit", "10"),
    )
    rows, said = read_rows(out / "sft.jsonl"), summary(out)
    assert rows and all(row["score"] >= 6.5 and row["judge"] == "pointwise:fake/oracle" for row in rows)
    assert said["calls"]["judge"] == said["accept"]["samples"] < 80 and f"accepted (score:6.5): {len(rows)}" in done.stdout


def test_two_policies_take_their_rounds_together(tmp_path, room, judge):
    path = write_prompts(tmp_path / "prompts.jsonl", 10)
    run = rlaif.best_of_n(
        str(path),
        policy=[room.model("a"), room.model("b")],
        judge=judge,
        out=tmp_path / "run",
        accept="score:0.9",
        max_samples=7,
    )
    assert run.wait()["accept"]["samples"] == room.count()
    for record in stored_records(tmp_path / "run"):
        models = Counter(c.model for c in record.candidates)
        assert len(set(models.values())) == 1 and len(record.candidates) in (2, 4, 6)  # 7 would leave one of them out


# Real questions, recorded answers


class Recorded(BaseHTTPRequestHandler):
    """A policy that gives recorded solutions one after another; when they are used up, a wrong one."""

    solutions: dict[str, list[str]]
    given: defaultdict[str, int]
    lock = threading.Lock()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"]
        with self.lock:
            at = self.given[question]
            self.given[question] += 1
        texts = self.solutions[question]
        message = {"role": "assistant", "content": texts[at] if at < len(texts) else "I give up. A: -1"}
        body = json.dumps(
            {
                "id": f"{at}-{hash(question)}",
                "object": "chat.completion",
                "created": 0,
                "model": asked["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def solver() -> Iterator[tuple[str, list[dict[str, Any]], dict[str, list[int]]]]:
    """(the model, prompts with references, right or wrong by the source's own label for each recorded solution)."""
    with gzip.open(DATA / "candidates" / "gsm8k.jsonl.gz") as file:
        rows = {row["prompt"]: row for row in map(json.loads, file)}
    with gzip.open(DATA / "prompts" / "gsm8k_test.jsonl.gz") as file:
        prompts = [row for row in map(json.loads, file) if row["prompt"] in rows][:60]
    handler = type("Handler", (Recorded,), {"given": defaultdict(int)})
    handler.solutions = {question: [c["response"] for c in row["candidates"]] for question, row in rows.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        given = [{"id": p["id"], "prompt": p["prompt"], "reference": p["answer"]} for p in prompts]
        labels = {p["id"]: [c["score"] for c in rows[p["prompt"]]["candidates"]] for p in prompts}
        yield f"openai/recorded@http://127.0.0.1:{server.server_port}/v1", given, labels
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
@needs_data
def test_the_first_right_solution_of_each_question_by_its_reference(tmp_path, solver):
    model, prompts, labels = solver
    path = write_rows(tmp_path / "gsm8k.jsonl", prompts)
    out = tmp_path / "run"
    command("best-of-n", path, "--policy", model, "--out", out, "--accept", "correct", "--max-samples", 4)
    rows = {row["id"]: row for row in read_rows(out / "sft.jsonl")}
    for record in stored_records(out):
        right = labels[record.prompt.id]
        drawn = right.index(1) + 1 if 1 in right else 4
        assert len(record.candidates) == drawn and (record.prompt.id in rows) is (1 in right)
        if 1 in right:
            assert rows[record.prompt.id]["completion"][0]["content"] == record.candidates[drawn - 1].text
    assert 20 < len(rows) < 60 and summary(out)["dropped"] == {"not_accepted": 60 - len(rows)}
    # the same records hold preference pairs: a right solution against a wrong one
    command("export", out, "--format", "dpo", "--out", tmp_path / "dpo.jsonl")
    pairs = read_rows(tmp_path / "dpo.jsonl")
    assert pairs and all((row["score_chosen"], row["score_rejected"]) == (1.0, 0.0) for row in pairs)


# What is refused, and what is foreseen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--accept", "score:0.5", "--judge", "pairwise"), "a judge that rates each answer by itself"),
        pytest.param(
            ("--accept", "score:0.5", "--judge", "listwise"), "a judge that rates each answer by itself", marks=pytest.mark.slow
        ),
        (("--accept", "correct"), "has no `reference`"),
        pytest.param(("--accept", "good"), "is no rule: give `correct`", marks=pytest.mark.slow),
        pytest.param(("--target", "5"), "give --accept", marks=pytest.mark.slow),
        pytest.param(("--accept", "score:0.5", "-n", "4", "--max-samples", "3"), "less than one round", marks=pytest.mark.slow),
        pytest.param(("--accept", "score:0.5", "--temperature", "0"), "the first one again", marks=pytest.mark.slow),
        (("--max-samples", "5"), "give --accept"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_spent(tmp_path, room, arguments, words):
    path = write_prompts(tmp_path / "prompts.jsonl", 3)
    out = tmp_path / "run"
    said = command("best-of-n", path, "--policy", room.model(), "--out", out, *arguments, expect=2).stderr
    assert words in said and room.count() == 0 and not (out / "run.sqlite").exists()


def test_generate_takes_no_rule_of_acceptance(tmp_path):
    with pytest.raises(InputError, match="rlaif best-of-n"):
        rlaif.generate(["q"], policy="fake/oracle", out=tmp_path, accept="score:1")


def test_a_forecast_is_for_the_most_that_it_may_take(tmp_path, room, judge):
    said = sample(tmp_path, room, judge, "--max-samples", 5, "--dry-run", prompts=10).stdout
    assert "policy_calls: 50" in said and "every prompt takes all of its 5 samples" in said and room.count() == 0
    (calls,) = [line.split() for line in said.splitlines() if line.startswith("policy calls")]
    assert calls[-3:] == ["10", "50", "50"]
