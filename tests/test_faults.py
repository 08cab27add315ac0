"""Faults and bad inputs, each through a whole run against a real server, and what must come of it.

A row is the number of a fault, what the server does, and the outcome that is expected: `same` (the files of a run in which
nothing went wrong), `fails` (the prompt that was hit is a listed failure, the others are as ever, and it can be asked again),
`stops` (exit status 3, and the same command goes on to the same files), `unusable` (answers that are kept and not chosen).
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import Room, committed, read_rows, start, stored_records, summary, write_prompts
from typer.testing import CliRunner

import rlaif
from rlaif.cli import app
from rlaif.data import read_prompts
from rlaif.ledger import Ledger
from rlaif.types import Record

pytestmark = pytest.mark.slow

NewRoom = Callable[[], Room]
COUNT, CALLS = 6, 6 * 3


@dataclass(frozen=True)
class Place:
    """A run directory of its own, and the endpoint that the run asks."""

    room: Room
    prompts: Path
    out: Path

    def run(self, *more: object, expect: int | None = 0) -> str:
        """The command; returns what it said."""
        arguments = ["generate", self.prompts, "--policy", self.room.model(), "--out", self.out, "-n", 2, *more]
        done = CliRunner().invoke(app, [*map(str, arguments)], env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None})
        assert expect in (None, done.exit_code), (done.exit_code, done.output[-2000:], done.stderr[-2000:], done.exception)
        assert "Traceback" not in done.output + done.stderr
        return done.output + done.stderr

    def rows(self) -> bytes:
        return (self.out / "dpo.jsonl").read_bytes()

    def records(self) -> list[Record]:
        return stored_records(self.out)

    def stored_faults(self) -> list[tuple[str, int | None, bytes]]:
        """Attempts without an answer, as they are on file."""
        with closing(sqlite3.connect(f"file:{self.out / 'run.sqlite'}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT kind, status, body FROM faults ORDER BY id").fetchall()
        return [(kind, status, zlib.decompress(body)) for kind, status, body in found]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl", COUNT)


@pytest.fixture
def place(room: Room, prompts: Path, tmp_path: Path) -> Place:
    return Place(room, prompts, tmp_path / "run")


@pytest.fixture(scope="module")
def clean(new_room: NewRoom, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run in which nothing went wrong."""
    here = Place(new_room(), prompts, tmp_path_factory.mktemp("clean") / "run")
    here.run()
    assert (here.room.count(), len(read_rows(here.out / "dpo.jsonl"))) == (CALLS, COUNT)
    return here


@pytest.fixture(scope="module")
def texts(new_room: NewRoom, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same where the judge can only be asked for text."""
    here = Place(new_room(), prompts, tmp_path_factory.mktemp("texts") / "run")
    here.room.set(logprobs="ignored")
    here.run()
    return here


Expected = Callable[[Place, Place, dict[str, Any]], None]


@dataclass(frozen=True)
class Row:
    number: int
    behaviour: dict[str, Any]
    expected: Expected
    options: tuple[object, ...] = ()

    def __str__(self) -> str:
        hit = self.behaviour.get("failure") or self.behaviour.get("faults") or self.behaviour.get("usage") or ""
        return "-".join(map(str, (self.number, hit, *self.options))) if hit else f"{self.number}-{self.behaviour}"


def same(faults: str | None = "", odd: str = "", *, lost: bool | None = None) -> Expected:
    """The files of a clean run. `faults` are the kinds on file, `odd` what is said to be odd; `lost`: calls may be lost."""

    def check(place: Place, clean: Place, said: dict[str, Any]) -> None:
        assert place.rows() == clean.rows()
        assert (said["state"], said["pairs"], said["failures"]) == ("done", COUNT, [])
        assert faults is None or set(said["faults"]) == set(faults.split())
        calls, stored = said["calls"]["policy"] + said["calls"]["judge"], len(place.stored_faults())
        assert place.room.count() == calls + stored and stored == sum(said["faults"].values()), "an attempt is not on file"
        assert set(said["odd"]) == set(odd.split())
        assert lost is None or (said["maybe_lost"] > 0) == lost
        assert place.room.rate()["sends_before_allowed"] == 0
        asked = place.room.count()
        place.run()
        assert place.room.count() == asked, "the finished run asked again"

    return check


def stops(kind: str, *, words: str = "") -> Expected:
    """Exit status 3 with the kind; nothing is lost; the same command goes on to the files of a clean run."""

    def check(place: Place, clean: Place, said: dict[str, Any]) -> None:
        assert (said["state"], said["stopped"]["kind"]) == ("stopped", kind)
        assert words in said["stopped"]["message"]
        assert not (place.out / "dpo.jsonl").exists()
        answered = {e["id"] for e in place.room.log() if e["answered"] and e["status"] == 200 and e["billed"]}
        assert answered <= committed(place.out), "an answer that arrived is not on file"
        assert not any(c.error for r in place.records() for c in r.candidates)
        before = place.room.count()
        place.room.set()
        place.run()
        assert place.rows() == clean.rows()
        assert answered.isdisjoint(e["id"] for e in place.room.log()[before:])

    return check


def fails(error: str, *, asked: Container[int] = (1,)) -> Expected:
    """Prompt 2 alone is a failure, asked for so often; on request it is asked again, and then all is as in a clean run."""

    def check(place: Place, clean: Place, said: dict[str, Any]) -> None:
        assert (said["state"], said["pairs"], said["dropped"]) == ("done", COUNT - 1, {"sampling_failed": 1})
        ((who, message),) = [(f["of"], f["error"]) for f in said["failures"]]
        assert who == "policy" and message.startswith(error), message
        assert labels(place) == [row for row in labels(clean) if row["id"] != "p2"]
        hit = [e for e in place.room.log() if "Question 2:" in e["body"]["messages"][0]["content"]]
        assert len(hit) in asked
        before = place.room.count()
        place.run()
        assert place.room.count() == before, "a stored failure is final"
        place.room.set()
        place.run("--retry-failed")
        assert place.rows() == clean.rows()

    return check


def unusable(reason: str, error: str | None = None, thinking: str | None = None) -> Expected:
    """The answers of prompt 2 are on file as they came, in no pair, and are not asked for again."""

    def check(place: Place, clean: Place, said: dict[str, Any]) -> None:
        assert (said["pairs"], said["dropped"]) == (COUNT - 1, {reason: 1})
        (record,) = [r for r in place.records() if r.prompt.id == "p2"]
        assert {(c.error, c.thinking) for c in record.candidates} == {(error, thinking)} and len(record.candidates) == 2
        assert labels(place) == [row for row in labels(clean) if row["id"] != "p2"]
        assert place.room.count() == CALLS - 2 and said["failures"] == ([] if error is None else said["failures"])

    return check


def as_text(place: Place, clean: Place, said: dict[str, Any]) -> None:
    """The judge falls back to text: the same answers are chosen."""
    assert (said["state"], said["pairs"], said["no_verdict_rate"]) == ("done", COUNT, 0.0)
    chosen = [(r["id"], r["chosen"], r["rejected"]) for r in read_rows(place.out / "dpo.jsonl")]
    assert chosen == [(r["id"], r["chosen"], r["rejected"]) for r in read_rows(clean.out / "dpo.jsonl")]
    assert {v.scale for r in place.records() for v in r.verdicts} == {"vote"}
    assert b"NaN" not in place.rows() and b"Infinity" not in place.rows()


def uncounted(place: Place, clean: Place, said: dict[str, Any]) -> None:
    """Tokens and cost are unknown, never 0, and a budget goes by a guess."""
    assert place.rows() == clean.rows()
    assert said["tokens"]["prompt"] is None and said["cost_usd"] is None and said["tokens"]["calls_without_a_count"] == CALLS
    again = Place(place.room, place.prompts, place.out.with_name("limited"))
    assert "(budget)" in again.run("--budget-tokens", 1000, expect=3)


def one(failure: str, expected: Expected, number: int, *options: object, **more: Any) -> Row:
    """The first request that is `failure` for meets it, and no other."""
    return Row(number, {"failure": failure, "fail_count": 1} | more, expected, options)


def first(failures: str, expected: Expected, number: int, *options: object) -> Row:
    """The first attempts of every request meet one of `failures`."""
    return Row(number, {"fault_first": 1, "faults": ",".join(failures.split())}, expected, options)


def turns(failures: str, expected: Expected, number: int, *options: object) -> Row:
    """Every request meets one of `failures`, in turn."""
    return Row(number, {"fault_share": 1.0, "faults": ",".join(failures.split())}, expected, options)


def two(failure: str, expected: Expected, number: int, *options: object) -> Row:
    """Every request that speaks of prompt 2 meets `failure`."""
    return Row(number, {"failure": failure, "fail_when": "Question 2:"}, expected, options)


def all_(failure: str, expected: Expected, number: int, *options: object, **more: Any) -> Row:
    """Every request meets `failure`."""
    return Row(number, {"failure": failure} | more, expected, options)


NO_TEXT, FILTERED = "no text in the message", "stopped by the endpoint's content filter"
ROWS = [
    *(one(f, same("http_429"), 1) for f in ("hold", "hold_ms")),
    *(one(f, same("http_429"), 2) for f in ("hold_past", "hold_year_100000")),
    *(one(f, same("http_429"), 3) for f in ("busy", "hold_reset_headers")),
    *(all_(f, stops("rate_limit", words="21600 s"), 4, fail_after=9) for f in ("hold_6h", "hold_6h_503")),
    all_("hold_20", stops("rate_limit", words="more than 5"), 4, "--max-wait", 5, fail_after=9),
    *(all_(f, stops("quota"), 5, fail_after=9) for f in ("quota", "quota_type_only", "status_402", "error_inside_quota")),
    first("status_500 status_502 status_503 status_504 status_529", same(None, lost=False), 6),
    first("error_text error_empty hold_503", same("http_500 http_503", lost=False), 6),
    Row(6, {"down_after": 4, "down_for_s": 1.0, "down": "503"}, same("http_503", lost=False), ("--concurrency", 4)),
    first("status_408 status_409 status_425", same("http_408 http_409 http_425", lost=False), 7),
    two("too_long", fails("too_long"), 8),
    two("error_inside_too_long", fails("too_long"), 8),
    *(two(f, fails("bad_request"), 9) for f in ("policy", "status_413", "error_list")),
    all_("policy", stops("config", words="safety system"), 9),
    *(all_(f, stops("auth"), 10, fail_after=9) for f in ("auth", "forbidden", "error_inside_auth")),
    one("auth", same("http_401", lost=False), 10, fail_after=9),
    all_("model", stops("model"), 11, fail_after=9),
    all_("model", stops("model"), 11),
    Row(12, {"down_after": 4, "down_for_s": 1.0, "down": "reset"}, same("broken"), ("--concurrency", 4)),
    first("reset close reset_headers close_headers reset_body close_body", same("broken", lost=True), 13),
    first("close_chunks length_long length_text length_short not_http reset_after_work", same("broken", lost=True), 13),
    one("drip", same("timeout", lost=True), 14, "--timeout", 1),
    one("never", same("timeout", lost=True), 15, "--timeout", 1),
    all_("slow", same(), 15, "--timeout", 30, drip_s=0.01),
    first("html json_text json_null json_list event_stream", same("bad_body"), 16),
    first("cut_json truncated bad_utf8 twice json_deep gzip_cut empty_body", same("bad_body"), 17),
    first("gzip_not", same("broken"), 17),
    turns("gzip byte_order_mark text_plain padded", same(), 17),
    first("whitespace", same("bad_body"), 18),
    *(two(f, fails("too_big"), 19) for f in ("bomb", "over_cap")),
    first("error_inside error_inside_500 error_inside_server_error error_inside_unknown", same("bad_body"), 20),
    first(
        "error_inside_no_code error_inside_string null_choices choices_null choices_missing choices_text", same("bad_body"), 20
    ),
    one("error_inside_rate_limit", same("bad_body"), 20),
    first("no_choices choices_empty", same("bad_body"), 21),
    *(two(f, unusable("sampling_failed", NO_TEXT), 22) for f in ("tool_call", "message_null", "content_number")),
    two("reasoning_only", unusable("sampling_failed", NO_TEXT, "Let me think about it."), 22),
    *(two(f, unusable("ineligible"), 23) for f in ("content_empty", "content_blank")),
    *(two(f, unusable("sampling_failed", FILTERED), 24) for f in ("finish_content_filter", "finish_filtered_empty")),
    two("refusal", unusable("sampling_failed", "refused by the endpoint"), 25),
    all_("refusal_with_content", same(), 25),
    two("finish_length", unusable("ineligible"), 26),
    turns("finish_unknown finish_null finish_missing", same(odd="unknown_finish"), 27),
    all_("choices_more", same(), 28),
    turns("choices_reversed index_missing index_text index_negative index_duplicate", same(), 29),
    all_("id_duplicate", same(odd="repeated_id"), 30),
    turns("id_missing model_missing", same(), 30),
    all_("model_other", same(odd="other_model"), 31),
    all_("model_other", stops("model", words="'another-model'"), 31, "--strict-model", fail_after=9),
    turns("usage_missing usage_null usage_empty usage_text usage_negative", uncounted, 32),
    turns("usage_nan usage_fraction usage_inconsistent usage_zero usage_huge", uncounted, 32),
    all_("usage_cached", same(), 32),
    turns("logprobs_missing logprobs_null logprobs_empty", as_text, 33),
    turns("logprobs_nan logprobs_positive logprobs_nulls logprobs_minus_9999 logprobs_minus_infinity", as_text, 34),
]


ENDLESS = {
    **dict.fromkeys(("status_500", "status_503", "status_408", "status_409", "error_inside", "error_text"), "server_error"),
    **dict.fromkeys(("reset", "reset_body", "close_headers", "length_long"), "broken"),
    **dict.fromkeys(("never", "drip"), "timeout"),
    **dict.fromkeys(("html", "json_text", "cut_json", "whitespace", "null_choices"), "bad_body"),
    "no_choices": "empty",
}
Endless = dict[str, tuple[Place, threading.Thread]]


@pytest.fixture(scope="module")
def endless(new_room: NewRoom, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Endless:
    """Runs, each in a thread of its own, in which every attempt of one prompt's sampling fails: they wait for a minute."""

    def start(failure: str) -> tuple[Place, threading.Thread]:
        place = Place(new_room(), prompts, tmp_path_factory.mktemp(failure) / "run")
        place.room.set(failure=failure, fail_when="Question 2:")
        run = rlaif.generate(prompts, policy=place.room.model(), out=place.out, n=2, timeout_s=1.0)
        thread = threading.Thread(target=run.wait)
        thread.start()
        return place, thread

    return {failure: start(failure) for failure in ENDLESS}


def labels(place: Any) -> list[dict[str, Any]]:
    """The rows but for their numbers: what the judge is like is found out from all prompts, one fewer changes it a little."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("score", "p_chosen"))}
        for row in read_rows(place.out / "dpo.jsonl")
    ]


@pytest.mark.slow
def test_runs_that_meet_one_fault_again_and_again_go_on_with_the_rest(endless: Endless) -> None:
    """Their end is looked at further down: meanwhile other tests run."""
    for place, _ in endless.values():
        until(lambda place=place: place.room.count() >= CALLS - 1)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, place: Place, clean: Place, texts: Place) -> None:
    place.room.set(**row.behaviour)
    place.run(*row.options, expect=None)
    row.expected(place, texts if row.expected is as_text else clean, summary(place.out))


# Holds and stops, as they are seen


def waiting(place: Place, reached: Callable[[rlaif.Run], bool], **settings: Any) -> tuple[rlaif.Run, threading.Thread]:
    """A run in a thread of its own, once something has come true."""
    run = rlaif.generate(place.prompts, policy=place.room.model(), out=place.out, n=2, **settings)

    def wait() -> None:
        with pytest.raises(rlaif.StopRun):
            run.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: reached(run))
    return run, thread


def until(reached: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_what_a_run_waits_for_and_until_when_can_be_seen(place: Place, clean: Place) -> None:
    place.room.set(failure="hold_20", fail_after=3)
    run, thread = waiting(place, lambda run: any(e["held"] for e in run.snapshot()["endpoints"]))
    (endpoint,) = run.snapshot()["endpoints"]
    held, now = endpoint["held"], time.time()
    assert held is not None and "429: Slow down" in held["why"] and 15 < held["until"] - now < 21
    run.interrupt()
    thread.join(5)
    assert not thread.is_alive(), "it waits on although it is interrupted"
    place.room.set()
    place.run()
    assert place.rows() == clean.rows()


@pytest.mark.parametrize(("failure", "kind", "more"), [("quota", "quota", 0), ("model", "model", 0), ("auth", "auth", 1)])
def test_no_more_calls_than_those_in_flight_go_out_after_a_no(place: Place, failure: str, kind: str, more: int) -> None:
    place.room.set(failure=failure, fail_after=8, latency_s=0.05)
    assert f"({kind})" in place.run("--concurrency", 4, expect=3)
    log = place.room.log()
    told = sorted(e["time"] for e in log)[8] + 0.05
    assert len(log) <= 8 + 4 + more and sum(e["time"] > told + 0.04 for e in log) <= more


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
def test_nobody_there(place: Place, url: str) -> None:
    """Row 12."""
    arguments = ["generate", str(place.prompts), "--policy", f"openai/m@{url}", "--out", str(place.out)]
    done = CliRunner().invoke(app, arguments, env={"OPENAI_API_KEY": "k"})
    assert done.exit_code == 3 and "(unreachable)" in done.stderr and url.split("/")[2] in done.stderr
    said = summary(place.out)
    assert set(said["faults"]) == {"unreachable"} and said["maybe_lost"] == 0


def test_what_a_hostile_endpoint_says_does_nothing_to_the_terminal(place: Place) -> None:
    place.room.set(refuses="seed", refusal="\x1b[2J\x1b]0;owned\x07 [bold]no[/] \r\x1b[31m\u202e", refusal_param="messages")
    said = place.run(expect=3)
    assert "(config)" in said and "owned" in said
    assert not set(said) & set("\x1b\x07\r\u202e")


@pytest.mark.parametrize("failure", ["reset_body", "reset_after_work", "close_body"])
def test_calls_that_may_be_lost_are_counted_as_the_bill_has_them(place: Place, clean: Place, failure: str) -> None:
    """Row 13: what was worked out and did not arrive, by the server's own bill."""
    place.room.set(failure=failure, fail_count=5)
    place.run()
    bill, said = place.room.bill(), summary(place.out)
    lost = bill["billed"]["m"]["calls"] - bill["delivered"]["m"]["calls"]
    assert (lost, said["maybe_lost"], place.rows()) == (5, 5, clean.rows())
    assert said["tokens"]["completion"] == bill["delivered"]["m"]["completion_tokens"]
    begun = [body for kind, _, body in place.stored_faults() if kind == "broken"]
    assert len(begun) == 5 and (failure == "reset_after_work" or all(body.startswith(b'{"id"') for body in begun))


def test_a_feature_that_is_refused_leaves_nothing_open(place: Place) -> None:
    place.room.set(refuses="logprobs", latency_s=0.01)
    place.run("--concurrency", 4)
    assert (summary(place.out)["maybe_lost"], summary(place.out)["pairs"]) == (0, COUNT)
    assert "in flight" not in place.run() and summary(place.out)["maybe_lost"] == 0


# Budgets: row 63


def prices(path: Path, **of: dict[str, float]) -> Path:
    path.write_text(json.dumps(of))
    return path


@pytest.mark.parametrize("concurrency", [1, 4, 16])
@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_a_budget_is_overshot_by_what_is_in_flight_at_most(
    place: Place, clean: Place, tmp_path: Path, unit: str, concurrency: int
) -> None:
    place.room.set(latency_s=0.01)
    file = prices(tmp_path / "prices.json", m={"input": 1000.0, "output": 3000.0})
    limit = ("--budget-tokens", 1200) if unit == "tokens" else ("--budget", 1.5)
    assert "(budget)" in place.run(*limit, "--prices", file, "--concurrency", concurrency, expect=3)
    log, said = place.room.log(), summary(place.out)
    cost = [
        e["usage"]["total_tokens"]
        if unit == "tokens"
        else e["usage"]["prompt_tokens"] / 1000 + e["usage"]["completion_tokens"] * 0.003
        for e in log
    ]
    used = sum(said["tokens"].values()) if unit == "tokens" else said["cost_usd"]
    assert used == pytest.approx(sum(cost)) and limit[1] <= used < limit[1] + concurrency * max(cost)
    assert 0 < len(log) < CALLS and not (place.out / "dpo.jsonl").exists()
    place.run(*limit, "--prices", file, expect=3)
    assert place.room.count() == len(log), "a budget that is used up buys"
    place.run(limit[0], limit[1] * 100, "--prices", file)
    assert place.rows() == clean.rows() and place.room.count() == CALLS


def test_a_budget_without_a_price_is_refused(place: Place, tmp_path: Path) -> None:
    said = place.run("--budget", 1, expect=2)
    assert "--budget" in said and repr(place.room.model()) in said and "--prices" in said
    other = prices(tmp_path / "prices.json", other={"input": 1.0, "output": 1.0})
    place.run("--budget", 1, "--prices", other, expect=2)
    assert place.room.count() == 0 and not place.out.exists()


def test_what_was_spent_is_the_server_s_bill_whatever_was_killed(place: Place, clean: Place) -> None:
    """Rows 58 and 63: after kills, what is on file falls short of the bill by calls that are said to be lost, and no others."""
    place.room.set(latency_s=0.02)
    for moment in (2, 9, 15):
        with start("generate", place.prompts, "--policy", place.room.model(), "--out", place.out, "-n", 2) as process:
            until(lambda moment=moment: place.room.count() >= moment or process.poll() is not None)  # type: ignore[misc]
            process.kill()
    place.room.set()
    place.run()
    bill, said = place.room.bill()["billed"]["m"], summary(place.out)
    with closing(Ledger.read(place.out)) as ledger:
        rows = ledger.spend()
    lost = bill["calls"] - sum(row.calls for row in rows)
    assert 0 <= lost <= said["maybe_lost"] <= 3 * CALLS and sum(row.calls for row in rows) == CALLS
    assert said["tokens"]["prompt"] <= bill["prompt_tokens"] and place.rows() == clean.rows()
    if not lost:
        assert said["tokens"] == {"prompt": bill["prompt_tokens"], "completion": bill["completion_tokens"]}


# The machine: rows 50, 54, 59, 60


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with path.open("wb") as file:
        for _ in range(300):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(rlaif.InputError, match=r"p\.jsonl:1.*16"):
            list(read_prompts(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 10 MB; as root alone."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", path], check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(place: Place, clean: Place, small_disk: Path) -> None:
    """Row 54: a real disk, full while calls are in flight: what arrived is on file all the same."""
    place = Place(place.room, place.prompts, small_disk / "run")
    place.room.set(latency_s=0.02)
    filler = small_disk / "filler"

    def fill() -> None:
        until(lambda: place.room.count() >= 4)
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 2**16)

    thread = threading.Thread(target=fill)
    thread.start()
    said = place.run("--concurrency", 2, expect=3)
    thread.join()
    assert "(disk)" in said and "Make room" in said
    answered = {e["id"] for e in place.room.log() if e["answered"]}
    assert answered == committed(place.out) and 4 <= len(answered) < CALLS
    filler.unlink()
    asked = place.room.count()
    place.run()
    assert place.rows() == clean.rows() and place.room.count() == CALLS
    assert answered.isdisjoint(e["id"] for e in place.room.log()[asked:])


def test_a_second_interrupt_breaks_off_and_what_was_in_flight_is_counted(place: Place, clean: Place) -> None:
    place.room.set(failure="never", fail_after=5)
    arguments = ("generate", place.prompts, "--policy", place.room.model(), "--out", place.out, "-n", 2, "--concurrency", 3)
    with start(*arguments) as process:
        until(lambda: place.room.count() >= 8)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None, "it did not wait for what is in flight"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in stdout + stderr and time.monotonic() - began < 5
    place.room.set()
    assert "3 calls in flight" in place.run()
    assert (place.rows(), summary(place.out)["maybe_lost"]) == (clean.rows(), 3)


def test_a_terminal_that_goes_away_stops_nothing(place: Place, clean: Place) -> None:
    place.room.set(latency_s=0.05)
    arguments = ("generate", place.prompts, "--policy", place.room.model(), "--out", place.out, "-n", 2, "--concurrency", 2)
    with start(*arguments) as process:
        until(lambda: place.room.count() >= 2)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    assert place.rows() == clean.rows() and place.room.count() == CALLS


def test_a_clock_that_jumps_changes_no_wait(place: Place, clean: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 60: a day ahead at one look at the clock, a day back at the next."""
    real, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return real() + (86400 if looks[0] % 2 else -86400)

    monkeypatch.setattr(time, "time", jumping)
    place.room.set(failure="hold_date", fail_count=1)
    began = time.monotonic()
    place.run("--max-wait", 20, "--limit", 1)
    assert time.monotonic() - began < 15 and place.room.rate()["sends_before_allowed"] == 0
    assert labels(place) == labels(clean)[:1] and looks[0] > 5


# Bad inputs that have no test of their own elsewhere


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_refused(room: Room, tmp_path: Path, content: bytes) -> None:
    """Row 52."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    said = Place(room, path, tmp_path / "run").run(expect=2)
    assert "no prompts" in said and room.count() == 0 and not (tmp_path / "run").exists()


# Where every attempt fails: begun further up, looked at last


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("failure", ENDLESS)
def test_faults_that_do_not_end_are_failures_of_their_prompt_alone(endless: Endless, clean: Place, failure: str) -> None:
    """Rows 6, 7, 13 to 18, 20 and 21, where every attempt of one prompt's sampling fails."""
    place, thread = endless[failure]
    thread.join()
    fails(ENDLESS[failure], asked=(12,))(place, clean, summary(place.out))
