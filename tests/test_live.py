"""Rates, what is ahead, holds, and the file that tells another process. Time is passed in."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif import live
from rlaif.errors import InputError
from rlaif.ledger import Ledger
from rlaif.live import Holds, Live, Report

START = 1_700_000_000.0


def endpoint(name: str = "one", **more: Any) -> Any:
    numbers = {"in_flight": 0, "limit": 8, "ceiling": 8, "waiting": 0, "rate_per_s": None, "retries": 0, "rate_limited": 0}
    return {"name": name, **numbers, "held": None} | more


def snapshot(at: float = 0.0, *, done: int = 0, judge: int = 0, **more: Any) -> Any:
    """A snapshot `at` seconds after the start."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "time": START + at,
        "state": "running",
        "reason": None,
        "prompts": 1000,
        "done": done,
        "failed": 0,
        "under_way": 0,
        "calls": {"policy": 0, "judge": judge, "reused": 0, "faults": 0},
        "tokens": {"prompt": 10 * judge, "completion": 0},
        "cost_usd": None,
        "budget_usd": None,
        "wall_s": at,
        "in_flight": 0,
        "maybe_lost": 0,
        "endpoints": [],
    } | more


def feed(reports: Live, snapshots: Any, begin: float = 0.0) -> Report:
    """The last report of snapshots that come a second apart."""
    for at, one in enumerate(snapshots):
        report = reports.add(one, begin + at)
    return report


def test_a_steady_run(tmp_path: Path) -> None:
    report = feed(Live(tmp_path), (snapshot(t, done=2 * t, judge=10 * t, cost_usd=0.2 * t) for t in range(101)))
    assert report["prompts_per_s"] == pytest.approx(2.0) and report["eta_s"] == pytest.approx(800 / 2)
    assert report["calls_per_s"] == pytest.approx(10.0) and report["tokens_per_s"] == pytest.approx(100.0)
    assert report["projected_usd"] == pytest.approx(0.1 * 1000)


def test_a_target_is_reached_before_the_prompts_are_used_up(tmp_path: Path) -> None:
    shots = (snapshot(t, done=2 * t, judge=10 * t, cost_usd=0.2 * t, accepted=t // 2, target=60) for t in range(101))
    report = feed(Live(tmp_path), shots)
    assert report["eta_s"] == pytest.approx(10 * 4 / 2) and report["projected_usd"] == pytest.approx(20.0 + 40 * 0.1)
    none_yet = feed(Live(tmp_path), (snapshot(t, done=2 * t, judge=10 * t, accepted=0, target=60) for t in range(101)))
    assert none_yet["eta_s"] == pytest.approx(800 / 2)


def test_nothing_is_said_before_it_is_known(tmp_path: Path) -> None:
    report = feed(Live(tmp_path), (snapshot(t, judge=10 * t, cost_usd=0.1 * t) for t in range(20)))
    assert (report["prompts_per_s"], report["eta_s"], report["projected_usd"]) == (None, None, None)
    assert report["calls_per_s"] == pytest.approx(10.0)


def test_rates_follow_the_last_half_minute(tmp_path: Path) -> None:
    done = [10 * t for t in range(61)] + [600 + t for t in range(1, 41)]
    report = feed(Live(tmp_path), (snapshot(t, done=d, judge=d) for t, d in enumerate(done)))
    assert report["prompts_per_s"] == pytest.approx(1.0) and report["eta_s"] == pytest.approx(360.0)


def test_slow_prompts_are_counted_over_as_long_as_it_takes(tmp_path: Path) -> None:
    report = feed(Live(tmp_path), (snapshot(t, done=t // 20, judge=t) for t in range(401)))
    assert report["prompts_per_s"] == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("told_at_once", [True, False], ids=["all in one second", "over ten seconds"])
def test_what_the_ledger_answers_is_no_measure_of_the_rest(tmp_path: Path, told_at_once: bool) -> None:
    replay = [0, 900] if told_at_once else [90 * t for t in range(11)]
    rest = [900 + t for t in range(1, 31)]
    begin = len(replay) - 1
    shots = [snapshot(t, done=d, cost_usd=90.0) for t, d in enumerate(replay)]
    shots += [snapshot(begin + t, done=d, judge=3 * t, cost_usd=90.0 + 0.5 * t) for t, d in enumerate(rest, 1)]
    report = feed(Live(tmp_path), shots)
    assert report["prompts_per_s"] == pytest.approx(1.0) and report["eta_s"] == pytest.approx(70.0)
    assert report["projected_usd"] == pytest.approx(90.0 + 0.5 * 100)


def test_another_judge_on_stored_answers_is_paid_work(tmp_path: Path) -> None:
    """Every prompt takes eight answers from the ledger and one new call."""
    calls = [{"policy": 0, "judge": t, "reused": 8 * t, "faults": 0} for t in range(41)]
    report = feed(Live(tmp_path), (snapshot(t, done=t, calls=c) for t, c in enumerate(calls)))
    assert report["prompts_per_s"] == pytest.approx(1.0)


def test_a_long_hold_adds_to_the_time_left_and_not_to_the_work(tmp_path: Path) -> None:
    reports = Live(tmp_path)
    feed(reports, (snapshot(t, done=t, judge=t) for t in range(41)))
    held = {"why": "429", "until": START + 40 + 300}
    waits = (snapshot(t, done=40, judge=40, endpoints=[endpoint(held=held)]) for t in range(41, 101))
    report = feed(reports, waits, 41)
    assert report["prompts_per_s"] == pytest.approx(1.0) and report["eta_s"] == pytest.approx(960 + 240)


def test_the_end(tmp_path: Path) -> None:
    report = feed(Live(tmp_path), (snapshot(t, done=500 * t, judge=500 * t, cost_usd=2.0 * t) for t in range(3)))
    assert (report["eta_s"], report["projected_usd"]) == (0.0, 4.0)


def test_cost_of_a_short_run_is_not_guessed_from_its_first_prompts(tmp_path: Path) -> None:
    """All prompts are under way when the first ones finish: most is paid for, little is finished."""
    shots = [snapshot(t, prompts=64, done=t, judge=60 * t, cost_usd=t / 10, under_way=64 - t) for t in range(12)]
    assert feed(Live(tmp_path), shots)["projected_usd"] is None


def test_calls_that_wait_do_not_hide_the_cost_ahead(tmp_path: Path) -> None:
    """Each prompt asks for twelve judgements at once."""
    waits = [endpoint(waiting=700)]
    shots = (
        snapshot(t, done=t, judge=12 * t, cost_usd=0.1 * t, under_way=64, in_flight=64, endpoints=waits) for t in range(101)
    )
    projected = feed(Live(tmp_path), shots)["projected_usd"]
    assert projected is not None and 80 < projected < 120


@given(st.lists(st.tuples(*[st.integers(0, 300)] * 3, st.floats(0, 5)), max_size=40), st.integers(0, 2000))
def test_what_is_ahead_is_never_negative_nor_below_what_was_spent(steps: list[tuple[int, int, int, float]], extra: int) -> None:
    reports, at, done, judge, cost = Live(Path("nowhere")), 0.0, 0, 0, 0.0
    prompts = sum(step[0] for step in steps) + extra
    for finished, bought, busy, passed in steps:
        at, done, judge, cost = at + passed, done + finished, judge + bought, cost + 0.01 * bought
        report = reports.add(snapshot(at, prompts=prompts, done=done, judge=judge, cost_usd=cost, under_way=busy), at)
        for name in ("prompts_per_s", "calls_per_s", "tokens_per_s", "eta_s"):
            assert report[name] is None or report[name] >= 0.0  # type: ignore[literal-required]
        assert report["projected_usd"] is None or report["projected_usd"] >= cost


def test_long_holds_are_told_once_and_their_end() -> None:
    holds = Holds()

    def at(moment: float, until: float | None) -> list[Any]:
        held = None if until is None else {"why": "429", "until": START + until}
        return [news and news["until"] - START for _, news in holds.changes(snapshot(moment, endpoints=[endpoint(held=held)]))]

    assert at(0, None) == [] and at(1, 3) == []  # two seconds: nobody needs to know
    assert at(2, None) == [] and at(3, 20) == [20.0] and at(4, 20) == [] and at(5, 22) == []
    assert at(6, 40) == [40.0] and at(7, None) == [None] and at(8, None) == []


def test_many_short_holds_in_a_row_are_a_long_one() -> None:
    holds = Holds()
    shots = [snapshot(t, endpoints=[endpoint(held={"why": "429", "until": START + t + 1})]) for t in range(8)]
    assert [len(holds.changes(shot)) for shot in shots] == [0, 0, 0, 0, 0, 0, 1, 0]


def test_an_outage_is_told_of_ever_more_seldom() -> None:
    """Each of its probes moves the end of the hold on."""
    holds = Holds()
    shots = [snapshot(t, endpoints=[endpoint(held={"why": "503", "until": START + t + 8})]) for t in range(900)]
    told = [shot["time"] - START for shot in shots if holds.changes(shot)]
    assert told[:3] == [0.0, 6.0, 12.0] and len(told) < 25 and told[-1] > 800


def test_of_a_run_that_stops_nothing_goes_on() -> None:
    holds = Holds()
    held = [endpoint(held={"why": "503", "until": START + 60})]
    assert len(holds.changes(snapshot(0, endpoints=held))) == 1
    assert holds.changes(snapshot(1, endpoints=[endpoint()], state="stopping")) == []


@pytest.fixture
def owned(tmp_path: Path) -> Any:
    ledger = Ledger.open(tmp_path)
    yield tmp_path
    ledger.close()


def test_the_last_report_is_read_back(owned: Path) -> None:
    reports = Live(owned)
    report = reports.add(snapshot(done=3, judge=9, endpoints=[endpoint(held={"why": "\ud800 429", "until": START})]))
    reports.write(report)
    assert live.read(owned) == report and not list(owned.glob(".*"))


def test_nothing_is_written_before_the_work_begins_or_by_one_that_does_not_own_the_directory(owned: Path) -> None:
    reports = Live(owned)
    for one in (snapshot(), snapshot(done=1, pid=1), snapshot(done=1, host="elsewhere")):
        reports.write(reports.add(one))
    assert live.read(owned) is None


@pytest.mark.parametrize("trouble", ["full disk", "no directory", "a folder in its place"])
def test_a_report_that_cannot_be_written_stops_nothing(owned: Path, trouble: str) -> None:
    if trouble == "full disk":
        (owned / ".live.json.part").symlink_to("/dev/full")
    elif trouble == "a folder in its place":
        (owned / "live.json").mkdir()
    reports = Live(owned / "gone" if trouble == "no directory" else owned)
    reports.write(reports.add(snapshot(done=1)))
    assert live.read(owned) is None and not list(owned.glob(".*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"x"', '{"pid": 1}', "\xff"])
def test_a_file_that_is_no_report_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "live.json").write_text(text, encoding="latin-1")
    assert live.read(tmp_path) is None


@pytest.mark.parametrize("name", ["prompts", "calls", "state", "endpoints"])
@pytest.mark.parametrize("wrong", [None, [{}], {"a": 1}, "much"])
def test_a_report_of_another_shape_is_none(owned: Path, name: str, wrong: Any) -> None:
    report = Live(owned).add(snapshot(done=1))
    (owned / "live.json").write_text(json.dumps({**report, name: wrong}))
    assert live.read(owned) is None


def test_the_owner_is_told_by_the_lock_and_not_by_the_file(tmp_path: Path) -> None:
    assert live.owner(tmp_path) is None
    ledger = Ledger.open(tmp_path)
    assert live.owner(tmp_path) == f"pid {os.getpid()} on {socket.gethostname()}"
    ledger.close()
    assert (tmp_path / "run.lock").read_text() and live.owner(tmp_path) is None


def test_looking_holds_up_nobody(owned: Path) -> None:
    """Two may look at once, and the lock is given back."""
    handle = os.open(owned / "run.lock", os.O_RDONLY)
    assert live.owner(owned) is not None
    os.close(handle)
    Ledger.read(owned).close()
    assert live.look(owned).alive


def test_after_a_look_the_directory_can_be_owned(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    assert live.owner(tmp_path) is None
    handle = os.open(tmp_path / "run.lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_a_living_process_without_a_report(owned: Path) -> None:
    """One that was started from Python, or has just begun; the report of another process is not its own."""
    assert (live.look(owned).state, live.look(owned).alive, live.look(owned).report) == ("running", True, None)
    (owned / "live.json").write_text(json.dumps(Live(owned).add(snapshot(done=7, pid=1))))
    assert live.look(owned).report is None


def test_a_living_process_that_says_nothing_more(owned: Path) -> None:
    reports = Live(owned)
    reports.write(reports.add(snapshot(done=1)))
    standing = live.look(owned)
    assert standing.alive and standing.state == "running" and "nothing was heard of it since" in standing.said


def test_a_process_on_another_machine_whose_lock_is_not_seen(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    report = Live(tmp_path).add(snapshot(time.time() - START, done=1, host="elsewhere"))
    (tmp_path / "live.json").write_text(json.dumps(report))
    assert live.look(tmp_path).alive
    (tmp_path / "live.json").write_text(json.dumps({**report, "time": START}))
    assert not live.look(tmp_path).alive and "without a word" in live.look(tmp_path).said


@pytest.mark.parametrize(
    ("state", "words"), [("done", "done at"), ("stopped", "quota: no money left; once that is put right, the same command")]
)
def test_how_it_ended(tmp_path: Path, state: str, words: str) -> None:
    Ledger.open(tmp_path).close()
    reason = "quota: no money left" if state == "stopped" else None
    (tmp_path / "live.json").write_text(json.dumps(Live(tmp_path).add(snapshot(done=1000, state=state, reason=reason))))
    standing = live.look(tmp_path)
    assert (standing.state, standing.alive) == (state, False) and words in standing.said


def test_no_run_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run directory"):
            live.look(path)


def test_a_dead_process_is_known_to_be_dead(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, 'tests')\nfrom pathlib import Path\nfrom test_live import snapshot\n"
        "from rlaif.ledger import Ledger\nfrom rlaif.live import Live\n"
        "here = Path(sys.argv[1]); ledger = Ledger.open(here); reports = Live(here)\n"
        "reports.write(reports.add(snapshot(done=5, judge=9))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False, timeout=60)
    report = live.read(tmp_path)
    assert report is not None and report["done"] == 5
    standing = live.look(tmp_path)
    assert not standing.alive and standing.said.startswith("stopped without a word at 2023-11-1")
