"""The test server itself, seen by a real client: what it shows is what the other tests rely on."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import aiohttp
import pytest
from chaos import rates
from helpers import Room
from hypothesis import given, settings
from hypothesis import strategies as st
from server import FAILURES, Behaviour

NewRoom = Callable[[], Room]
Said = tuple[int, Any, bytes]
Ask = Callable[..., Awaitable[Said]]
SERVER = [sys.executable, str(Path(__file__).with_name("server.py"))]
SHOWN = "Which is better, A of quality 0.700 or B of quality 0.200?"


def chat(text: str = "Why?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]} | more


def over(room: Room, work: Callable[[Ask], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """Runs `work(ask)`, where `ask(body)` gives the (status, headers, body) of a chat request to the room, or another."""

    async def run() -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

            async def ask(body: Any, to: Room = room) -> Said:
                async with session.post(to.url + "/chat/completions", json=body) as reply:
                    return reply.status, reply.headers, await reply.read()

            return await work(ask)

    return asyncio.run(run())


def ask_all(room: Room, bodies: list[dict[str, Any]], timeout_s: float = 10.0) -> list[Any]:
    """All at once; an exception stands for a reply that was none."""
    return list(over(room, lambda ask: asyncio.gather(*map(ask, bodies), return_exceptions=True), timeout_s))


def ask_in_turn(room: Room, bodies: list[dict[str, Any]], timeout_s: float = 10.0) -> list[Any]:
    async def work(ask: Ask) -> list[Any]:
        return [(await asyncio.gather(ask(body), return_exceptions=True))[0] for body in bodies]

    return list(over(room, work, timeout_s))


# Equal requests are answered equally


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from([1, 2, 4])), min_size=1, max_size=14),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_equal_requests_are_answered_equally(new_room: NewRoom, asked: Any, slots: int, shuffled: Any) -> None:
    bodies = [chat(text, seed=seed, n=n) for text, seed, n in asked]
    one, other = new_room(), new_room()
    other.set(slots=slots, service_s=0.002, service_cv=1.0, batch_slope=0.5, log="counts")
    expected = {json.dumps(body): reply[2] for body, reply in zip(bodies, ask_in_turn(one, bodies), strict=True)}
    shuffled.shuffle(bodies)
    turned = [dict(reversed(body.items())) for body in bodies]  # another order of keys is the same request
    assert [reply[2] for reply in ask_all(other, turned)] == [expected[json.dumps(body)] for body in bodies]
    texts = {name: json.loads(body)["choices"][0]["message"]["content"] for name, body in expected.items()}
    distinct = {(text, seed) for text, seed, _ in asked}
    assert len(set(texts.values())) == len(distinct), "an answer depends on what is asked and the seed, not on n"
    assert one.bill(every=True)["times"] == other.bill(every=True)["times"]


# A queue


def test_a_queue_works_on_so_many_in_the_order_they_came(room: Room) -> None:
    room.set(slots=3, service_s=0.03)
    assert {reply[0] for reply in ask_all(room, [chat(str(k)) for k in range(15)])} == {200}
    began = [e["began"] for e in sorted(room.log(), key=lambda e: e["number"])]
    assert began == sorted(began)
    assert room.peak() == 15 and all(b - a >= 0.028 for a, b in zip(began, began[3:], strict=False))
    assert began[-1] - began[0] < 14 * 0.03, "as slow as one at a time"


def test_the_work_on_a_request_takes_its_own_time(room: Room) -> None:
    queue = rates.Queue(Behaviour(service_s=2.0, service_cv=0.5))
    times = [queue.seconds(sha256(str(k).encode()).hexdigest()[:24]) for k in range(4000)]
    assert statistics.fmean(times) == pytest.approx(2.0, rel=0.05)
    assert statistics.stdev(times) / statistics.fmean(times) == pytest.approx(0.5, rel=0.1)
    room.set(service_s=0.1, service_cv=0.5)
    waits = [over(room, lambda ask, text=text: timed(ask, text)) for text in ("a", "a", "b", "b")]
    ids = [e["id"] for e in room.log()]
    queue = rates.Queue(Behaviour(service_s=0.1, service_cv=0.5))
    assert all(0 <= wait - queue.seconds(name) < 0.25 for wait, name in zip(waits, ids, strict=True))


async def timed(ask: Ask, text: str) -> float:
    began = time.monotonic()
    await ask(chat(text))
    return time.monotonic() - began


def test_a_batch_slows_all_down(room: Room) -> None:
    room.set(service_s=0.05, batch_slope=1.0)
    began = time.monotonic()
    ask_all(room, [chat(str(k)) for k in range(5)])
    assert 5 * 0.05 <= time.monotonic() - began < 0.5


@pytest.mark.slow
def test_a_client_that_leaves_the_queue_is_not_billed(room: Room) -> None:
    room.set(slots=1, service_s=0.3)
    first, *others = ask_all(room, [chat(str(k)) for k in range(4)], timeout_s=0.15)
    assert isinstance(first, TimeoutError) and all(isinstance(other, TimeoutError) for other in others)
    time.sleep(0.3)
    assert ask_all(room, [chat("after")])[0][0] == 200
    bill = room.bill()
    assert (room.count(), bill["billed"]["m"]["calls"], bill["delivered"]["m"]["calls"]) == (5, 2, 1)


# Rates

PLANS = st.lists(
    st.tuples(st.sampled_from([0, 0.5, 2, 10, 40]), st.sampled_from([0.3, 1, 2.5])), min_size=1, max_size=4
).filter(lambda steps: any(rate for rate, _ in steps))
GAPS = st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.7, 1.0, 3.0]), max_size=60)
LIMITS = {
    "rate_kind": st.sampled_from(["bucket", "sliding", "fixed"]),
    "rate_burst": st.sampled_from([1, 5]),
    "rate_window_s": st.sampled_from([0.5, 1.0]),
    "rates_repeat": st.booleans(),
}


@given(PLANS, GAPS, st.fixed_dictionaries(LIMITS))
def test_a_refused_request_is_told_the_first_moment_at_which_it_is_accepted(steps: Any, gaps: Any, more: Any) -> None:
    how = Behaviour(rates=",".join(f"{rate}:{seconds}" for rate, seconds in steps), **more)

    if how.rate_kind != "bucket" and max(rate for rate, _ in steps) * how.rate_window_s < 1:
        with pytest.raises(ValueError, match="no window"):
            rates.limiter(how)
        return

    def after(moments: list[float]) -> tuple[rates.Limiter, float, list[float]]:
        limiter, now, taken = rates.limiter(how), 0.0, []
        assert limiter is not None
        for now in moments:
            if limiter.free_at(now) <= now:
                limiter.take(now)
                taken.append(now)
        return limiter, now, taken

    moments = [sum(gaps[: k + 1]) for k in range(len(gaps))]
    limiter, now, taken = after(moments)
    free = limiter.free_at(now)
    if math.isfinite(free):
        assert after([*moments, free])[2] == [*taken, free]
    if free > now:
        soonest = min(free, now + 1000)
        for share in (0.0, 0.5, 0.999):
            moment = now + (soonest - now) * share
            assert after([*moments, moment])[2] == taken, "the told moment is not the first"


@given(PLANS, GAPS, st.booleans(), st.integers(1, 5))
def test_a_bucket_never_gives_more_than_the_rates_make(steps: Any, gaps: Any, repeats: bool, burst: int) -> None:
    text = ",".join(f"{rate}:{seconds}" for rate, seconds in steps)
    asked = rates.Rates(Behaviour(rates=text, rates_repeat=repeats, rate_burst=burst))
    now = 5000.0
    for gap in gaps:
        now += gap
        asked.refused_until(now)
    summary = asked.summary()
    assert summary["accepted"] + summary["refused"] == len(gaps) and summary["accepted"] <= summary["allowed"]
    cycles = 100 if repeats else 1
    made = integral([*(steps * cycles), (0 if repeats else steps[-1][0], 1e9)], summary["seconds"])
    assert summary["allowed"] <= burst + made + 1e-6 if gaps else summary["allowed"] == 0


def integral(steps: list[tuple[float, float]], until: float) -> float:
    total = start = 0.0
    for rate, seconds in steps:
        total += rate * max(0.0, min(seconds, until - start))
        start += seconds
    return total


@given(st.sampled_from([5, 20]), GAPS, st.booleans())
def test_a_window_never_takes_more_than_its_share(rate: int, gaps: Any, fixed: bool) -> None:
    limiter = rates.limiter(Behaviour(rates=str(rate), rate_kind="fixed" if fixed else "sliding"))
    assert limiter is not None
    now, taken = 0.0, []
    for gap in gaps:
        now += gap
        if limiter.free_at(now) <= now:
            limiter.take(now)
            taken.append(now)
    starts = {float(math.floor(t)) for t in taken} if fixed else set(taken)
    assert all(sum(start <= t < start + 1 - 1e-6 for t in taken) <= rate for start in starts)


def seconds_told(headers: Any) -> float:
    """The wait that the headers of a refusal ask for."""
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000
    if "x-ratelimit-reset-requests" in headers:
        said = headers["x-ratelimit-reset-requests"]
        return float(said[:-2]) / 1000 if said.endswith("ms") else float(said[:-1])
    value = headers["Retry-After"]
    return float(value) if value[0].isdigit() else email.utils.parsedate_to_datetime(value).timestamp() - time.time()


@pytest.mark.slow
def test_a_refusal_says_when_to_come_back(new_room: NewRoom) -> None:
    longest = {"exact": 0.41, "ms": 0.41, "reset_headers": 0.41, "seconds": 1.05, "date": 1.45}
    rooms = {kind: new_room() for kind in longest}

    async def one(ask: Ask, kind: str) -> tuple[str, float]:
        assert [(await ask(chat(text), rooms[kind]))[0] for text in "ab"] == [200, 200], kind
        status, headers, body = await ask(chat("c"), rooms[kind])
        until = time.monotonic() + seconds_told(headers)
        assert status == 429 and json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        await asyncio.sleep(until - time.monotonic())
        assert (await ask(chat("c"), rooms[kind]))[0] == 200, kind
        return kind, until

    for kind, room in rooms.items():
        room.set(rates="2.5", rate_burst=2, retry_after=kind)
    for kind, until in over(room, lambda ask: asyncio.gather(*(one(ask, kind) for kind in rooms))):
        log, rate = rooms[kind].log(), rooms[kind].rate()
        assert [e["accepted"] for e in log] == [True, True, False, True]
        assert log[2]["come_back"] == pytest.approx(until, abs=0.05)
        assert 0.0 < log[2]["come_back"] - log[2]["time"] <= longest[kind], kind
        assert (rate["accepted"], rate["refused"], rate["sends_before_allowed"]) == (3, 1, 0), kind


def test_a_refusal_may_not_say_when_to_come_back(room: Room) -> None:
    for behaviour in ({"rates": "1", "rate_burst": 1, "retry_after": "none"}, {"limit": 1, "limit_s": 5}):
        room.set(**behaviour)
        status, headers, _ = ask_in_turn(room, [chat("a"), chat("b")])[1]
        assert status == 429
        assert not {name.lower() for name in headers} & {"retry-after", "retry-after-ms", "x-ratelimit-reset-requests"}
    assert [e["come_back"] for e in room.log()] == [None] * 4


def test_who_comes_too_early_is_counted(room: Room) -> None:
    room.set(rates="2", rate_burst=1, grace_s=0.1)

    async def work(ask: Ask) -> list[int]:
        met = [(await ask(chat(str(k))))[0] for k in range(3)]  # the third is within the grace
        for pause in (0.12, 0.12, 0.4):
            await asyncio.sleep(pause)
            met.append((await ask(chat("again")))[0])
        return met

    assert over(room, work) == [200, 429, 429, 429, 429, 200]
    rate = room.rate()
    assert (rate["accepted"], rate["refused"], rate["sends_before_allowed"]) == (2, 4, 2)


@pytest.mark.slow
def test_rates_change_under_the_run(room: Room) -> None:
    room.set(rates="100:0.3,10:0.3,100", rate_burst=1, log="counts")

    async def work(ask: Ask) -> None:
        async def one(number: int) -> None:
            ended = time.monotonic() + 0.9
            while time.monotonic() < ended:
                status, headers, _ = await ask(chat(str(number)))
                await asyncio.sleep(seconds_told(headers) if status == 429 else 0)

        await asyncio.gather(*map(one, range(8)))

    over(room, work)
    rate = room.rate()
    allowed = 1 + 30 + 3 + 100 * (rate["seconds"] - 0.6)
    assert rate["allowed"] == pytest.approx(allowed, abs=1.01) and 0.5 * allowed <= rate["accepted"] <= rate["allowed"]
    assert rate["accepted"] + rate["refused"] == room.count() and room.log() == []


def test_windows_differ_in_when_they_open(new_room: NewRoom) -> None:
    """Ten in any 0.5 s: one request, many late in the first window, early in the second one, and late in it."""
    for kind, expected in {"fixed": [1, 9, 10, 0], "sliding": [1, 9, 1, 9]}.items():
        window = Behaviour(rates="20", rate_kind=kind, rate_window_s=0.5, retry_after="none")
        limiter = rates.limiter(window)
        assert limiter is not None
        asked = [(0.0, 1), (0.3, 12), (0.55, 12), (0.85, 12)]
        assert [sum(accepted(limiter, moment) for _ in range(count)) for moment, count in asked] == expected

        room, again = new_room(), rates.limiter(window)
        room.set(rates="20", rate_kind=kind, rate_window_s=0.5, retry_after="none")

        async def work(ask: Ask) -> None:
            for _ in range(4):
                await asyncio.gather(*(ask(chat(str(k))) for k in range(8)))
                await asyncio.sleep(0.15)

        over(room, work)
        log = room.log()
        came = [entry["time"] - log[0]["time"] for entry in log]
        assert again is not None and [entry["accepted"] for entry in log] == [accepted(again, moment) for moment in came]
        assert sum(entry["accepted"] for entry in log) == room.rate()["accepted"] <= room.rate()["allowed"]


def accepted(limiter: rates.Limiter, moment: float) -> bool:
    """Whether a request is accepted that comes then."""
    free = limiter.free_at(moment) <= moment
    if free:
        limiter.take(moment)
    return free


def test_durations_are_written_as_openai_writes_them() -> None:
    said = {
        0.0: "0ms",
        0.02: "20ms",
        0.0201: "21ms",
        1.0: "1s",
        1.2: "1.2s",
        59.9995: "1m0s",
        360.0: "6m0s",
        3723.5: "1h2m3.5s",
    }
    assert {seconds: rates.duration(seconds) for seconds in said} == said


# Outages


@pytest.mark.slow
def test_an_outage_breaks_what_is_in_flight_and_ends(room: Room) -> None:
    room.set(service_s=0.15, down_after=4, down_for_s=0.4)

    async def work(ask: Ask) -> list[Any]:
        before = [asyncio.ensure_future(ask(chat(str(k)))) for k in range(4)]
        await asyncio.sleep(0.05)
        down = await asyncio.gather(*(ask(chat(str(k))) for k in range(4, 7)), return_exceptions=True)
        lost = await asyncio.gather(*before, return_exceptions=True)
        await asyncio.sleep(0.4)
        return [*lost, *down, await ask(chat("after"))]

    *broken, fine = over(room, work)
    assert len(broken) == 7 and all(isinstance(e, aiohttp.ClientOSError) for e in broken), broken
    assert fine[0] == 200 and room.bill()["billed"]["m"]["calls"] == 1


def test_an_outage_may_be_a_503(room: Room) -> None:
    room.set(down_after=1, down_for_s=0.2, down="503")

    async def work(ask: Ask) -> list[int]:
        met = [(await ask(chat("a")))[0] for _ in range(3)]
        await asyncio.sleep(0.25)
        return [*met, (await ask(chat("a")))[0]]

    assert over(room, work) == [200, 503, 503, 200]


# The bill


@pytest.mark.parametrize("log", ["full", "counts"])
def test_the_bill_counts_what_was_worked_out(room: Room, log: str) -> None:
    room.set(log=log, failure="reset_after_work", fail_when="lost", fail_count=2)
    ask_in_turn(room, [chat("one two three"), chat("lost"), chat("lost"), chat("lost", model="o"), chat("lost")])
    room.set(log=log, failure="status_500", usage="huge")
    ask_in_turn(room, [chat("not billed")])
    room.set(log=log, usage="huge")
    whole = [json.loads(reply[2]) for reply in ask_all(room, [chat("one two three"), chat("four", n=3)])]
    bill = room.bill()
    assert {model: row["calls"] for model, row in bill["billed"].items()} == {"m": 6, "o": 1}
    assert {model: row["calls"] for model, row in bill["delivered"].items()} == {"m": 4, "o": 1}
    assert bill["billed"]["m"]["prompt_tokens"] == 3 + 1 + 1 + 1 + 3 + 1
    assert bill["delivered"]["m"]["prompt_tokens"] == 3 + 1 + 3 + 1
    assert (bill["requests"], bill["repeats"], sorted(bill["times"].values())) == (4, 3, [2, 3])
    assert whole[0]["id"] in bill["times"] and room.bill(every=True)["times"][whole[1]["id"]] == 1
    assert len(room.log()) == (8 if log == "full" else 0) and room.count() == 8


def test_what_the_client_did_not_wait_for_is_billed(room: Room) -> None:
    room.set(service_s=0.2)
    assert isinstance(ask_all(room, [chat()], timeout_s=0.1)[0], TimeoutError)
    time.sleep(0.2)
    bill = room.bill()
    assert (bill["billed"]["m"]["calls"], bill["delivered"]) == (1, {})


# What goes wrong


def met(room: Room, name: str, body: dict[str, Any], timeout_s: float = 5.0) -> Any:
    room.set(failure=name, drip_s=0.02)
    return ask_all(room, [body], timeout_s)[0]


BIG, ENDLESS = {"bomb", "over_cap"}, {"never", "drip"}
AS_GOOD = {"text_plain", "gzip", "slow"}
ONLY_SCORED = {name for name in FAILURES if name.startswith("logprobs_")}


@pytest.mark.slow
def test_each_failure_is_seen_once_and_then_no_more(new_room: NewRoom) -> None:
    rooms = {name: new_room() for name in FAILURES.keys() - BIG - ENDLESS}
    for name, room in rooms.items():
        room.set(failure=name, fail_after=1, fail_count=1, drip_s=0.005)

    async def work(ask: Ask) -> None:
        async def one(name: str) -> None:
            body = chat(SHOWN, n=2, logprobs=True, top_logprobs=5) if name in ONLY_SCORED else chat(n=2)
            good = (await ask(body, rooms[name]))[0::2]
            (bad,) = await asyncio.gather(ask(body, rooms[name]), return_exceptions=True)
            same = not isinstance(bad, BaseException) and bad[0::2] == good
            assert good[0] == 200 and same == (name in AS_GOOD), name
            assert (await ask(body, rooms[name]))[0::2] == good, name

        await asyncio.gather(*map(one, rooms))

    over(room, work)


REFUSED = {
    "auth": (401, "invalid_api_key"),
    "forbidden": (403, None),
    "model": (404, "model_not_found"),
    "quota": (429, "insufficient_quota"),
    "quota_hard_limit": (429, "billing_hard_limit_reached"),
    "quota_inactive": (429, "billing_not_active"),
    "quota_funds": (429, "insufficient_funds"),
    "too_long": (400, "context_length_exceeded"),
    "policy": (400, "content_policy_violation"),
    **{f"status_{status}": (status, None) for status in (402, 408, 409, 413, 422, 425, 429, 500, 502, 503, 504, 529)},
    "error_inside": (200, 502),
    "error_inside_429": (200, 429),
    "error_inside_500": (200, 500),
    "error_inside_text_429": (200, "429"),
    "error_inside_rate_limit": (200, "rate_limit_exceeded"),
    "error_inside_server_error": (200, "server_error"),
    "error_inside_quota": (200, "insufficient_quota"),
}


def test_refusals_have_their_status_and_code(room: Room) -> None:
    for name, (status, code) in REFUSED.items():
        reply = met(room, name, chat())
        assert (reply[0], json.loads(reply[2])["error"].get("code")) == (status, code), name
    assert room.bill()["billed"] == {}


def test_a_key_may_be_refused_once_or_for_ever(room: Room) -> None:
    room.set(failure="auth", fail_count=1, fail_after=1)
    assert [reply[0] for reply in ask_in_turn(room, [chat()] * 4)] == [200, 401, 200, 200]
    room.set(failure="auth")
    assert [reply[0] for reply in ask_in_turn(room, [chat()] * 2)] == [401, 401]


WAITS = {
    "hold": ("Retry-After", "0.500"),
    "hold_503": ("Retry-After", "0.500"),
    "hold_ms": ("retry-after-ms", "500"),
    "hold_seconds": ("Retry-After", "1"),
    "hold_reset_headers": ("x-ratelimit-reset-requests", "500ms"),
    "hold_6h": ("Retry-After", "21600"),
    "hold_past": ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),
    "hold_year_100000": ("Retry-After", "Wed, 21 Oct 100000 07:28:00 GMT"),
    "hold_garbage": ("Retry-After", "soon"),
    "hold_negative": ("Retry-After", "-3"),
    "hold_infinite": ("Retry-After", "inf"),
}


def test_refusals_say_when_to_come_back(room: Room) -> None:
    for name, (header, value) in WAITS.items():
        reply = met(room, name, chat())
        assert (reply[0], reply[1][header]) == (503 if name == "hold_503" else 429, value), name
    for name, wait in (("hold_date", 1), ("hold_naive_date", 1), ("hold_6h_date", 21600)):
        said = met(room, name, chat())[1]["Retry-After"]
        assert said.endswith(" GMT") == (name != "hold_naive_date")
        assert (
            0 <= email.utils.parsedate_to_datetime(said.removesuffix(" GMT") + " +0000").timestamp() - time.time() <= wait + 1
        )
    told = {e["number"]: e["come_back"] for e in room.log()}
    assert told[1] is not None and told[list(WAITS).index("hold_garbage") + 1] is None


def message(completion: Any) -> Any:
    return completion["choices"][0]["message"]


def token(completion: Any) -> float:
    return completion["choices"][1]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"]


CHANGED: dict[str, Callable[[Any], bool]] = {
    "choices_null": lambda c: c["choices"] is None,
    "choices_missing": lambda c: "choices" not in c and "usage" in c,
    "choices_empty": lambda c: c["choices"] == [],
    "choices_reversed": lambda c: [choice["index"] for choice in c["choices"]] == [1, 0],
    "choices_more": lambda c: [choice["index"] for choice in c["choices"]] == [0, 1, 2],
    "choices_fewer": lambda c: [choice["index"] for choice in c["choices"]] == [0],
    "index_duplicate": lambda c: [choice["index"] for choice in c["choices"]] == [0, 0],
    "content_null": lambda c: message(c) == {"role": "assistant", "content": None},
    "content_empty": lambda c: message(c)["content"] == "",
    "content_blank": lambda c: message(c)["content"] and not message(c)["content"].strip(),
    "tool_call": lambda c: message(c)["content"] is None and message(c)["tool_calls"][0]["function"]["name"] == "look_up",
    "reasoning_only": lambda c: message(c)["content"] is None and message(c)["reasoning_content"],
    "refusal": lambda c: message(c)["content"] is None and message(c)["refusal"],
    "finish_content_filter": lambda c: {choice["finish_reason"] for choice in c["choices"]} == {"content_filter"},
    "finish_length": lambda c: {choice["finish_reason"] for choice in c["choices"]} == {"length"},
    "finish_unknown": lambda c: c["choices"][1]["finish_reason"] not in ("stop", "length", "content_filter", "tool_calls"),
    "finish_missing": lambda c: "finish_reason" not in c["choices"][1],
    "id_duplicate": lambda c: c["id"] == "chatcmpl-1",
    "model_other": lambda c: c["model"] == "another-model",
    "usage_missing": lambda c: "usage" not in c and len(c["choices"]) == 2,
    "usage_negative": lambda c: c["usage"]["prompt_tokens"] < 0 and c["usage"]["completion_tokens"] < 0,
    "usage_inconsistent": lambda c: c["usage"]["total_tokens"] < c["usage"]["prompt_tokens"],
    "usage_huge": lambda c: c["usage"]["total_tokens"] == 2 * 10**30,
    "logprobs_missing": lambda c: "logprobs" not in c["choices"][1],
    "logprobs_null": lambda c: c["choices"][1]["logprobs"] is None,
    "logprobs_nan": lambda c: math.isnan(token(c)),
    "logprobs_positive": lambda c: token(c) > 0,
    "logprobs_minus_infinity": lambda c: token(c) == -math.inf,
    "logprobs_minus_9999": lambda c: token(c) == -9999.0,
}


def test_completions_are_changed_as_their_names_say(room: Room) -> None:
    body = chat(SHOWN, n=2, logprobs=True, top_logprobs=5)
    good = json.loads(ask_all(room, [body])[0][2])
    for name, holds in CHANGED.items():
        reply = met(room, name, body)
        assert reply[0] == 200 and holds(json.loads(reply[2])) and not holds(good), name
    bill = room.bill()
    assert bill["billed"]["m"]["calls"] == bill["delivered"]["m"]["calls"] == 1 + len(CHANGED), "they were worked out"


def test_a_change_of_what_is_not_there_changes_nothing() -> None:
    for name in ONLY_SCORED - {"logprobs_missing", "logprobs_null"}:
        for completion in ({"choices": [{"index": 0, "logprobs": None}]}, {"choices": []}, {"choices": None}):
            assert FAILURES[name].change(json.loads(json.dumps(completion))) == completion, name


BROKEN = {
    "reset": aiohttp.ClientOSError,
    "reset_after_work": aiohttp.ClientOSError,
    "close": aiohttp.ServerDisconnectedError,
    "reset_headers": aiohttp.ClientOSError,
    "close_headers": aiohttp.ServerDisconnectedError,
    "reset_body": aiohttp.ClientPayloadError,
    "close_body": aiohttp.ClientPayloadError,
    "close_chunks": aiohttp.ClientPayloadError,
    "length_long": aiohttp.ClientPayloadError,
    "length_short": aiohttp.ClientResponseError,
    "length_text": aiohttp.ClientResponseError,
    "not_http": aiohttp.ClientResponseError,
    "gzip_not": aiohttp.ClientPayloadError,
    "never": TimeoutError,
    "drip": TimeoutError,
}


@pytest.mark.parametrize("name", BROKEN)
def test_connections_break_where_they_should(room: Room, name: str) -> None:
    error = met(room, name, chat(), timeout_s=0.2 if name in ENDLESS else 5.0)
    assert isinstance(error, BROKEN[name]), repr(error)
    (entry,) = room.log()
    assert entry["billed"] == (name not in ("reset", "close", "never", "drip"))
    assert room.bill()["delivered"] == {}


def test_bodies_are_no_completions(room: Room) -> None:
    good = ask_all(room, [chat()])[0][2]
    assert met(room, "html", chat())[1]["Content-Type"] == "text/html"
    assert met(room, "empty_body", chat())[::2] == (200, b"")
    assert met(room, "whitespace", chat())[2].strip() == b""
    assert met(room, "truncated", chat())[2] == good[: len(good) // 2]
    assert met(room, "padded", chat())[2].strip() == good
    for name in ("html", "cut_json", "truncated", "twice", "gzip_cut"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(met(room, name, chat())[2])
    with pytest.raises(UnicodeDecodeError):
        met(room, "bad_utf8", chat())[2].decode()
    with pytest.raises(RecursionError):
        json.loads(met(room, "json_deep", chat())[2])


@pytest.mark.parametrize(("name", "most"), [("bomb", 2**20), pytest.param("over_cap", 2**27, marks=pytest.mark.slow)])
def test_a_body_may_be_too_big(room: Room, name: str, most: int) -> None:
    async def work() -> tuple[int, int]:
        async with (
            aiohttp.ClientSession(auto_decompress=name != "bomb") as session,
            session.post(room.url + "/chat/completions", json=chat()) as reply,
        ):
            size = 0
            async for piece in reply.content.iter_any():
                size += len(piece)
            return reply.status, size

    room.set(failure=name)
    status, size = asyncio.run(work())
    assert status == 200 and (size > 64 * 2**20 or name == "bomb") and size < most


def test_a_slow_body_arrives_in_the_end(room: Room) -> None:
    room.set(failure="slow", drip_s=0.02)
    began = time.monotonic()
    assert json.loads(ask_all(room, [chat()])[0][2])["id"] == room.log()[0]["id"]
    assert time.monotonic() - began >= 0.2 and room.bill()["delivered"]["m"]["calls"] == 1


def test_faults_come_by_attempt_and_by_share(room: Room) -> None:
    room.set(fault_first=2, faults="status_500")
    assert [reply[0] for reply in ask_in_turn(room, [chat("a"), chat("a"), chat("b"), chat("a")])] == [500, 500, 500, 200]
    room.set(fault_share=0.3, faults="status_502", log="counts")
    statuses = Counter(reply[0] for reply in ask_all(room, [chat("a")] * 100))
    assert statuses.keys() == {200, 502} and 15 <= statuses[502] <= 45


# The server as a process


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"failure": "no_such"}, "no_such"),
        ({"faults": "html,no_such"}, "no_such"),
        ({"usage": "no_such"}, "no_such"),
        ({"retry_after": "tomorrow"}, "tomorrow"),
        ({"rates": "-1:3"}, "-1:3"),
        ({"rates": "5,6:1"}, "5,6:1"),
        ({"rates": "5", "limit": 3}, "limit"),
        ({"latency": 1}, "latency"),
    ],
)
def test_a_behaviour_that_cannot_be_is_refused(room: Room, behaviour: dict[str, Any], said: str) -> None:
    with pytest.raises(HTTPError) as refused:
        room.set(**behaviour)
    with refused.value as reply:
        assert reply.status == 400 and said in json.load(reply)["error"]["message"]


@pytest.mark.slow
def test_every_setting_is_an_option() -> None:
    asked = (["--help"], ["--failure", "no_such"])
    both = [subprocess.Popen([*SERVER, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for more in asked]
    (shown, _), (_, complaint) = (process.communicate(timeout=30) for process in both)
    assert [process.returncode for process in both] == [0, 2]
    assert all(f"--{setting.name.replace('_', '-')} " in shown for setting in fields(Behaviour))
    assert "no_such" in complaint and "Traceback" not in complaint


def test_options_are_every_rooms_behaviour() -> None:
    command = [*SERVER, "--port", "0", "--service-s", "0.1", "--slots", "1", "--log", "counts", "--rates-repeat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            room = Room(process.stdout.readline().strip() + "/any")
            began = time.monotonic()
            assert {reply[0] for reply in ask_all(room, [chat(), chat()])} == {200}
            assert time.monotonic() - began >= 0.2 and (room.count(), room.log()) == (2, [])
        finally:
            process.kill()
