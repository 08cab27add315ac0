"""One endpoint's limits, over a real server: what is tried again, what fails alone, what stops the run, and when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from helpers import Room
from hypothesis import given
from hypothesis import strategies as st

from rlaif.endpoint import Endpoint, retry_after_s
from rlaif.errors import CallFailed, StopRun
from rlaif.models import chat
from rlaif.models.openai import Transport, make_transport

Call = Callable[[str], Awaitable[bytes]]


def through(
    room: Room | str,
    work: Callable[[Call], Awaitable[Any]],
    *,
    keep: Any = None,
    kind: str = "aiohttp",
    timeout_s: float = 5.0,
    **limits: int,
) -> Any:
    """Runs `work(call)`, where `call(text)` sends a prompt through one endpoint."""
    url = room if isinstance(room, str) else room.url

    async def kept(body: bytes) -> None:
        return None

    async def run() -> Any:
        endpoint = Endpoint(url, **({"concurrency": 4, "attempts": 2} | limits))
        transport: Transport = make_transport(kind, url, api_key=None, timeout_s=timeout_s)

        def call(text: str) -> Awaitable[bytes]:
            body = {"model": "m", "messages": [{"role": "user", "content": text}]}
            return endpoint.call(lambda: transport.post(body), keep or kept, chat.read)

        try:
            return await work(call)
        finally:
            await transport.close()

    return asyncio.run(run())


def asked(room: Room) -> list[str]:
    return [e["body"]["messages"][0]["content"] for e in room.log()]


@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
@pytest.mark.parametrize(
    ("failure", "error", "name", "attempts"),
    [
        ("auth", StopRun, "auth", 1),
        ("forbidden", StopRun, "auth", 1),
        ("quota", StopRun, "quota", 1),
        ("model", StopRun, "model", 1),
        ("long_hold", StopRun, "rate_limit", 1),
        ("too_long", CallFailed, "too_long", 1),
        ("policy", CallFailed, "bad_request", 1),
        ("rate_limit", StopRun, "rate_limit", 2),
        ("busy", StopRun, "rate_limit", 2),
        ("server_error", CallFailed, "server_error", 2),
        ("error_inside", CallFailed, "server_error", 2),
        ("html", CallFailed, "bad_body", 2),
        ("cut_json", CallFailed, "bad_body", 2),
        ("whitespace", CallFailed, "bad_body", 2),
        ("null_choices", CallFailed, "bad_body", 2),
        ("no_choices", CallFailed, "empty", 2),
        ("reset", CallFailed, "broken", 2),
    ],
)
def test_outcome_of_each_fault(room: Room, kind: str, failure: str, error: type[Any], name: str, attempts: int) -> None:
    room.set(failure=failure)
    with pytest.raises(error) as caught:
        through(room, lambda call: call("Why?"), kind=kind)
    assert (caught.value.kind, room.count()) == (name, attempts)
    assert isinstance(caught.value, StopRun) == (error is StopRun)


@pytest.mark.parametrize("failure", ["never", "drip"])
@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
def test_one_deadline_for_the_whole_attempt(room: Room, failure: str, kind: str) -> None:
    room.set(failure=failure)
    began = time.monotonic()
    with pytest.raises(CallFailed, match=r"0\.3 s"):
        through(room, lambda call: call("Why?"), timeout_s=0.3, kind=kind)
    assert 0.6 <= time.monotonic() - began < 3.0
    assert room.count() == 2


def test_a_body_beyond_the_cap_is_not_asked_for_again(room: Room) -> None:
    room.set(failure="bomb")
    with pytest.raises(CallFailed) as failed:
        through(room, lambda call: call("Why?"), timeout_s=60)
    assert (failed.value.kind, room.count()) == ("too_big", 1)


@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
def test_nobody_there_stops_the_run(kind: str) -> None:
    async def several(call: Call) -> list[Any]:
        return await asyncio.gather(*(call(str(k)) for k in range(3)), return_exceptions=True)

    for error in through("http://127.0.0.1:9/v1", several, kind=kind):
        assert isinstance(error, StopRun) and error.kind == "unreachable" and "127.0.0.1:9" in str(error)


def test_every_body_is_kept_before_it_is_read(room: Room) -> None:
    kept: list[bytes] = []

    async def keep(body: bytes) -> None:
        kept.append(body)

    room.set(fault_first=2, faults="html,cut_json,no_choices")
    body = through(room, lambda call: call("Why?"), keep=keep, attempts=4)
    assert len(kept) == 3 and kept[-1] == body and chat.read(body).choices


def test_at_most_so_many_calls_at_once(room: Room) -> None:
    room.set(latency_s=0.02)

    async def many(call: Call) -> None:
        await asyncio.gather(*(call(str(k)) for k in range(40)))

    through(room, many, concurrency=5)
    assert (room.count(), room.peak()) == (40, 5)


def test_a_call_holds_its_place_until_it_is_kept(room: Room) -> None:
    seen: list[int] = []

    async def keep(body: bytes) -> None:
        await asyncio.sleep(0.1)
        seen.append(room.count())

    async def three(call: Call) -> None:
        await asyncio.gather(*(call(str(k)) for k in range(3)))

    through(room, three, keep=keep, concurrency=1)
    assert seen == [1, 2, 3]


def test_a_call_that_waits_to_try_again_gives_its_place_up(room: Room) -> None:
    room.set(failure="server_error", fail_when="first")

    async def two(call: Call) -> None:
        first = asyncio.ensure_future(call("first"))
        await asyncio.sleep(0.05)
        await call("second")
        with suppress(CallFailed, StopRun):
            await first

    through(room, two, concurrency=1)
    assert asked(room) == ["first", "second", "first"]


def test_retry_after_holds_every_call_for_that_long(room: Room) -> None:
    room.set(failure="hold", fail_when="first")

    async def several(call: Call) -> None:
        first = asyncio.ensure_future(call("first"))
        await asyncio.sleep(0.1)
        await asyncio.gather(*(call(str(k)) for k in range(3)))
        with suppress(CallFailed, StopRun):
            await first

    through(room, several)
    times = [e["time"] for e in room.log()]
    assert len(times) >= 5 and min(times[1:]) - times[0] >= 0.5
    assert times[-1] - times[0] < 3


def test_a_rate_limit_uses_up_no_attempt_while_other_calls_are_accepted(room: Room) -> None:
    room.set(limit=6, limit_s=0.1)

    async def many(call: Call) -> list[bytes]:
        return await asyncio.gather(*(call(str(k)) for k in range(80)))

    assert len(through(room, many, concurrency=40)) == 80
    refused = Counter(e["id"] for e in room.log() if e["status"] == 429)
    assert max(refused.values()) > 2, "no call met the limit more often than it has attempts"


def test_after_a_stop_nothing_more_is_sent(room: Room) -> None:
    room.set(failure="auth", fail_when="first", latency_s=0.02)

    async def many(call: Call) -> list[Any]:
        return await asyncio.gather(call("first"), *(call(str(k)) for k in range(9)), return_exceptions=True)

    results = through(room, many, concurrency=2)
    assert room.count() <= 3
    assert sum(isinstance(r, bytes) for r in results) == room.count() - 1
    assert {r.kind for r in results if not isinstance(r, bytes)} == {"auth"}


def test_a_store_that_fails_lets_nothing_more_out(room: Room) -> None:
    async def keep(body: bytes) -> None:
        raise StopRun("disk", "no space left")

    async def many(call: Call) -> list[Any]:
        return await asyncio.gather(*(call(str(k)) for k in range(12)), return_exceptions=True)

    room.set(latency_s=0.02)
    assert {r.kind for r in through(room, many, concurrency=2, keep=keep)} == {"disk"}
    assert room.count() <= 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00"}, None),
        ({"retry-after": "Wed, 21 Oct 100000 07:28:00 GMT"}, None),
    ],
)
def test_what_a_response_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_a_date_is_so_many_seconds_from_now() -> None:
    def after(seconds: int) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)

    assert retry_after_s({"retry-after": after(100)}) == pytest.approx(100, abs=3)
    assert retry_after_s({"retry-after": after(-100)}) is None


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_header_is_a_time_or_none(value: str, milliseconds: str) -> None:
    found = retry_after_s({"retry-after": value, "retry-after-ms": milliseconds})
    assert found is None or 0 <= found < float("inf")
