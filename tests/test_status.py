"""`rlaif status`: a run of another process, at work, ended and killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, rlaif, start, write_prompts

from rlaif import live

pytestmark = pytest.mark.slow


def ask(out: Path) -> dict[str, Any]:
    return dict(json.loads(rlaif("status", out, "--json").stdout))


def test_a_run_at_work_killed_and_ended(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.2)
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl", 60)
    command = ["generate", prompts, "--policy", room.model(), "-n", 2, "--concurrency", 6, "--out", out]
    process = start(*command)
    while not (out / "live.json").exists() or json.loads((out / "live.json").read_text())["done"] == 0:
        time.sleep(0.05)
    status = ask(out)
    assert (status["state"], status["alive"], status["pid"], status["prompts"]) == ("running", True, process.pid, 60)
    assert 0 < status["done"] < 60 and status["calls"]["policy"] > 0 and status["tokens"]["prompt"] > 0
    said = rlaif("status", out).stdout
    assert said.startswith(f"running (pid {process.pid} on ") and " of 60 " in said and "\x1b" not in said

    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    status = ask(out)
    assert (status["state"], status["alive"], status["pid"]) == ("stopped", False, process.pid)
    assert "stopped without a word at 20" in status["said"] and "the same command goes on" in status["said"]
    assert 1 <= status["maybe_lost"] <= 6
    assert f"at most {status['maybe_lost']} calls may have been billed and lost" in rlaif("status", out).stdout

    room.set()
    assert f"ended with {status['maybe_lost']} calls in flight" in rlaif(*command).stdout
    assert live.look(out).to_json()["maybe_lost"] == status["maybe_lost"]
    status = live.look(out).to_json()
    assert (status["state"], status["alive"], status["done"], status["prompts"]) == ("done", False, 60, 60)
    assert rlaif("status", out).stdout.startswith("done at 20")


def test_a_stopped_run_says_why(room: Room, tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl", 10)
    room.set(failure="quota", fail_after=9)
    rlaif("generate", prompts, "--policy", room.model(), "-n", 2, "--concurrency", 1, "--out", out, expect=3)
    said = rlaif("status", out, "--watch").stdout
    assert "once that is put right, the same command goes on" in said and "billed and lost" not in said
    assert said.startswith("stopped at 20") and "quota: " in said and "exceeded your current quota" in said


def test_a_refused_command_does_not_hide_where_the_run_stands(room: Room, tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl", 5)
    command = ["generate", prompts, "--policy", room.model(), "-n", 2, "--out", out]
    rlaif(*command)
    before = live.look(out)
    assert before.report is not None
    rlaif(*command, "--temperature", 0.5, expect=2)
    assert live.look(out) == before


def test_a_run_without_a_report_stands_as_its_ledger_says(tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl", 5)
    rlaif("generate", prompts, "--policy", "fake/oracle", "--out", out)
    (out / "live.json").unlink()
    standing = live.look(out)
    assert (standing.state, standing.done, standing.prompts, standing.alive) == ("done", 5, 5, False)
    assert "5 of 5 prompts are finished" in rlaif("status", out).stdout


def test_watching_ends_with_the_run(room: Room, tmp_path: Path) -> None:
    room.set(latency_s=0.2)
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl", 10)
    process = start("generate", prompts, "--policy", room.model(), "-n", 2, "--concurrency", 4, "--out", out)
    while not (out / "live.json").exists():
        time.sleep(0.05)
    lines = [json.loads(line) for line in rlaif("status", out, "--json", "--watch").stdout.splitlines()]
    process.communicate(timeout=60)
    assert [line["alive"] for line in lines] == [True] * (len(lines) - 1) + [False] and len(lines) >= 2
    assert lines[-1]["state"] == "done" and lines[-1]["done"] == 10


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        said = rlaif("status", path, expect=2)
        assert said.stderr.startswith("error: ") and repr(str(path)) in said.stderr and said.stdout == ""
