"""One endpoint's limits, over a real server: what is tried again, what fails alone, what stops the run, and when."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, pairwise
from typing import Any

import pytest
from helpers import Books, Room
from hypothesis import given
from hypothesis import strategies as st

from rlaif.endpoint import Endpoint
from rlaif.errors import CallFailed, StopRun
from rlaif.models import chat
from rlaif.models.openai import make_transport
from rlaif.responses import TransportError, error_fields, retry_after_s
from rlaif.types import Reply

pytestmark = pytest.mark.slow


class Calls:
    """An endpoint in a running loop."""

    def __init__(self, endpoint: Endpoint, post: Callable[[dict[str, Any]], Awaitable[Any]], books: Books) -> None:
        self.endpoint, self.books, self._post = endpoint, books, post

    async def __call__(self, text: str) -> Reply:
        """Sends a prompt."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        return await self.endpoint.call(lambda: self._post(body), self.books, chat.read)

    async def all(self, *texts: object) -> list[Reply | BaseException]:
        """Sends prompts together; what came of each."""
        return await asyncio.gather(*(self(str(text)) for text in texts), return_exceptions=True)


async def connected(
    room: Room | str,
    work: Callable[[Calls], Awaitable[Any]],
    *,
    books: Books | None = None,
    kind: str = "aiohttp",
    timeout_s: float = 5.0,
    **limits: Any,
) -> Any:
    """Works with one endpoint; at the end nothing of it is left over."""
    url = room if isinstance(room, str) else room.url
    endpoint = Endpoint(url, **({"concurrency": 4, "attempts": 2, "max_wait_s": 5.0} | limits))
    transport = make_transport(kind, url, api_key=None, timeout_s=timeout_s)
    try:
        found = await work(Calls(endpoint, transport.post, books or Books()))
        state = endpoint.state()
        assert (state["in_flight"], state["waiting"]) == (0, 0), "a place or a waiting call is left over"
        return found
    finally:
        await transport.close()


def through(room: Room | str, work: Callable[[Calls], Awaitable[Any]], **how: Any) -> Any:
    """The same in a loop of its own."""
    return asyncio.run(connected(room, work, **how))


def asked(room: Room) -> list[str]:
    return [e["body"]["messages"][0]["content"] for e in room.log()]


def kinds(found: list[Reply | BaseException]) -> dict[str, int]:
    """What came of calls: how many were answered, and how the others ended."""
    return dict(Counter(e.kind if isinstance(e, (CallFailed, StopRun)) else type(e).__name__ for e in found))


def down(endpoint: Endpoint) -> bool:
    """Whether the circuit is open and a probe is waited for."""
    held = endpoint.state()["held"]
    return held is not None and held["why"].endswith("one call tries again")


async def until(reached: Callable[[], bool]) -> None:
    """Waits for something to come true."""
    for _ in range(3000):
        if reached():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


# What comes of each fault

OUTCOMES: list[tuple[str, type[Exception], int, str]] = [
    ("quota", StopRun, 1, "quota quota_hard_limit quota_inactive quota_funds quota_type_only status_402 error_inside_quota"),
    ("auth", StopRun, 2, "auth forbidden error_inside_auth"),
    ("model", StopRun, 1, "model"),
    ("rate_limit", StopRun, 1, "long_hold hold_6h hold_6h_ms hold_6h_date hold_6h_503"),
    ("too_long", CallFailed, 1, "too_long error_inside_too_long"),
    ("bad_request", CallFailed, 1, "policy status_413 status_422 error_list error_string"),
    ("server_error", StopRun, 2, "status_408 status_409 status_425 status_500 status_502 status_503 status_504 status_529"),
    ("server_error", StopRun, 2, "error_text error_empty error_inside error_inside_500 error_inside_server_error"),
    ("server_error", StopRun, 2, "error_inside_unknown error_inside_no_code error_inside_string"),
    ("bad_body", CallFailed, 2, "html cut_json whitespace empty_body json_null json_list json_text json_deep event_stream"),
    ("bad_body", CallFailed, 2, "null_choices choices_missing choices_text choices_of_null truncated bad_utf8 twice gzip_cut"),
    ("empty", CallFailed, 2, "no_choices choices_empty"),
    ("broken", CallFailed, 2, "reset close reset_headers close_headers reset_body close_body close_chunks"),
    ("broken", CallFailed, 2, "length_long length_short length_text not_http gzip_not"),
]
BY_OPENAI: list[tuple[str, type[Exception], int, str]] = [
    ("quota", StopRun, 1, "quota"),
    ("auth", StopRun, 2, "auth"),
    ("model", StopRun, 1, "model"),
    ("rate_limit", StopRun, 1, "hold_6h"),
    ("too_long", CallFailed, 1, "too_long"),
    ("bad_request", CallFailed, 1, "policy"),
    ("server_error", StopRun, 2, "status_500 status_503 error_inside"),
    ("bad_body", CallFailed, 2, "html whitespace null_choices truncated"),
    ("empty", CallFailed, 2, "no_choices"),
    ("broken", CallFailed, 2, "reset reset_body close_body gzip_not"),
]


@pytest.mark.parametrize(
    ("transport", "kind", "error", "attempts", "failures"),
    [*(("aiohttp", *row) for row in OUTCOMES), *(("openai", *row) for row in BY_OPENAI)],
    ids=lambda value: str(value).split()[0],
)
def test_outcome_of_each_fault(
    new_room: Callable[[], Room], transport: str, kind: str, error: type[Exception], attempts: int, failures: str
) -> None:
    """Each failure at an endpoint of its own, all at once."""

    async def meet(failure: str) -> tuple[str, type[Exception], str, int, int, int]:
        room, books = new_room(), Books()
        room.set(failure=failure)
        try:
            await connected(room, lambda call: call("Why?"), kind=transport, books=books)
        except (CallFailed, StopRun) as caught:
            stored = len(books.kept) + len(books.faults)
            return failure, type(caught), caught.kind, room.count(), books.begun, stored
        raise AssertionError(f"{failure}: answered")

    async def meet_all() -> list[tuple[str, type[Exception], str, int, int, int]]:
        return await asyncio.gather(*map(meet, failures.split()))

    for failure, raised, said, *counts in asyncio.run(meet_all()):
        raised = CallFailed if issubclass(raised, CallFailed) else raised
        assert (failure, raised, said, counts) == (failure, error, kind, [attempts] * 3)


@pytest.mark.parametrize("failure", ["reset_headers", "reset_body", "close_body", "never", "drip", "not_http"])
def test_what_came_before_a_break_is_kept(room: Room, failure: str) -> None:
    room.set(failure=failure, drip_s=0.05)
    books = Books()
    with pytest.raises(CallFailed):
        through(room, lambda call: call("Why?"), books=books, attempts=1, timeout_s=0.5)
    ((kind, status, body),) = books.faults
    assert (kind, status, books.kept) == ("timeout" if failure in ("never", "drip") else "broken", None, [])
    if failure in ("reset_body", "close_body"):
        assert body.startswith(b'{"id": "')
    elif failure == "drip":
        assert body.strip(b" ") == b"" and 3 < len(body) < 11
    else:
        assert len(body) > 10, "nothing says what happened"


@pytest.mark.parametrize("failure", ["bomb", "over_cap"])
def test_a_body_beyond_the_cap_is_not_asked_for_again(room: Room, failure: str) -> None:
    room.set(failure=failure)
    books = Books()
    with pytest.raises(CallFailed) as failed:
        through(room, lambda call: call("Why?"), timeout_s=60, books=books)
    assert (failed.value.kind, room.count(), books.kept) == ("too_big", 1, [])
    ((kind, _, body),) = books.faults
    assert kind == "too_big" and body.strip(b" ") == b"" and 1000 < len(body) <= 2**16


@pytest.mark.parametrize("failure", ["never", "drip"])
@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
def test_one_deadline_for_the_whole_attempt(room: Room, failure: str, kind: str) -> None:
    room.set(failure=failure)
    began = time.monotonic()
    with pytest.raises(CallFailed, match=r"0\.3 s"):
        through(room, lambda call: call("Why?"), timeout_s=0.3, kind=kind)
    assert 0.6 <= time.monotonic() - began < 3.0
    assert room.count() == 2


def test_a_slow_answer_in_time_is_an_answer(room: Room) -> None:
    room.set(failure="slow", drip_s=0.05)
    assert through(room, lambda call: call("Why?"), timeout_s=3.0).choices and room.count() == 1


@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
def test_nobody_there_stops_the_run(kind: str) -> None:
    for error in through("http://127.0.0.1:9/v1", lambda call: call.all(1, 2, 3), kind=kind):
        assert isinstance(error, StopRun) and error.kind == "unreachable" and "127.0.0.1:9" in str(error)


@contextmanager
def deaf() -> Iterator[str]:
    """An address that lets nobody in and says nothing: its queue of connections is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        for one in waiting:
            one.close()


def posted(kind: str, url: str) -> list[tuple[str, str]]:
    """What comes of sending a request three times, as kind and message."""

    async def post() -> list[tuple[str, str]]:
        transport, said = make_transport(kind, url, api_key=None, timeout_s=0.6), []
        for _ in range(3):  # the openai package takes its time to be loaded at the first
            with pytest.raises(TransportError) as failed:
                await transport.post({"model": "m", "messages": []})
            said.append((failed.value.kind, str(failed.value)))
        await transport.close()
        return said

    return asyncio.run(post())


@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
def test_a_connection_that_does_not_come_was_never_sent(kind: str) -> None:
    with deaf() as url:
        assert [kind for kind, _ in posted(kind, url)[1:]] == ["unreachable"] * 2


@pytest.mark.parametrize("kind", ["aiohttp", "openai"])
@pytest.mark.parametrize("name", ["no-such-host.invalid", "127.0.0.1:{tls}"])
def test_no_name_and_no_certificate_are_unreachable(room: Room, kind: str, name: str) -> None:
    url = f"https://{name}/v1".replace("{tls}", room.base.split(":")[2].split("/")[0])
    assert [kind for kind, _ in posted(kind, url)[1:]] == ["unreachable"] * 2 and room.count() == 0


def test_every_body_is_kept_before_it_is_read(room: Room) -> None:
    books = Books()
    room.set(fault_first=2, faults="html,cut_json,no_choices")
    reply = through(room, lambda call: call("Why?"), books=books, attempts=4)
    assert len(books.kept) == 3 and chat.read(books.kept[-1]) == reply


# Messages are for people


NASTY = "\x1b[31mred\x1b]0;title\x07 line\r\nnext\u202e\x00 [/bold] \x9b2J end"


@pytest.mark.parametrize("inside", [{"message": NASTY}, NASTY, [NASTY], {"message": [NASTY, {"x": NASTY}]}])
def test_what_an_endpoint_says_is_shown_as_one_printable_line(inside: Any) -> None:
    for body in (json.dumps({"error": inside}).encode(), NASTY.encode()):
        _, _, said = error_fields(body, ())
        assert said.isprintable() and "red" in said and "end" in said and len(said) <= 500


def test_a_hostile_refusal_is_printable(room: Room) -> None:
    room.set(refuses="messages", refusal=NASTY * 100)
    with pytest.raises(CallFailed) as failed:
        through(room, lambda call: call("Why?"))
    assert str(failed.value).isprintable() and "red" in str(failed.value) and len(str(failed.value)) < 700


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_error_body_has_a_message(said: Any) -> None:
    for body in (json.dumps(said).encode(), json.dumps({"error": said}).encode(), repr(said).encode("utf-8", "replace")):
        code, _, message = error_fields(body, {"a"})
        assert code in ("", "a") and message.isprintable()


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"error": {"message": ' + b"[" * 900 + b"]" * 900 + b"}}", b"9" * 5000])
def test_an_error_body_that_is_hard_to_read_is_shown_as_it_begins(deep: bytes) -> None:
    assert error_fields(deep, ())[2][:1].encode() in deep


# How many at once


def test_at_most_so_many_calls_at_once(room: Room) -> None:
    room.set(latency_s=0.02)
    assert kinds(through(room, lambda call: call.all(*range(40)), concurrency=5)) == {"Reply": 40}
    assert (room.count(), room.peak()) == (40, 5)


def test_a_call_holds_its_place_until_it_is_kept(room: Room) -> None:
    seen: list[int] = []

    class Slow(Books):
        async def keep(self, body: bytes) -> None:
            await asyncio.sleep(0.1)
            seen.append(room.count())

    through(room, lambda call: call.all(1, 2, 3), books=Slow(), concurrency=1)
    assert seen == [1, 2, 3]


def test_a_call_that_fails_holds_its_place_until_that_is_stored(room: Room) -> None:
    seen: list[int] = []

    class Slow(Books):
        async def fault(self, kind: str, status: int | None, body: bytes) -> None:
            await asyncio.sleep(0.1)
            seen.append(room.count())

    room.set(failure="policy", fail_count=2)
    through(room, lambda call: call.all(1, 2, 3), books=Slow(), concurrency=1)
    assert seen == [1, 2]


def test_a_call_that_waits_to_try_again_gives_its_place_up(room: Room) -> None:
    room.set(failure="server_error", fail_when="first")

    async def two(call: Calls) -> None:
        first = asyncio.ensure_future(call("first"))
        await until(lambda: bool(call.books.faults))
        await call("second")
        with suppress(CallFailed, StopRun):
            await first

    through(room, two, concurrency=1)
    assert asked(room) == ["first", "second", "first"]


# Waiting


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        ("hold", 0.5),
        ("hold_ms", 0.5),
        ("hold_reset_headers", 0.5),
        ("hold_503", 0.5),
        ("hold_seconds", 1.0),
        ("hold_date", 1.0),
        ("hold_naive_date", 1.0),
    ],
)
def test_nothing_is_sent_before_the_endpoint_wants_it(room: Room, failure: str, seconds: float) -> None:
    room.set(failure=failure, fail_count=1)

    async def several(call: Calls) -> tuple[float, list[Any], dict[str, Any]]:
        began, first = time.monotonic(), asyncio.ensure_future(call("first"))
        await until(lambda: bool(call.books.faults))
        state = call.endpoint.state()
        found = [*await call.all(1, 2, 3), await first]
        return time.monotonic() - began, found, dict(state)

    took, found, state = through(room, several)
    log = room.log()
    assert kinds(found) == {"Reply": 4} and len(log) == 5
    assert room.rate()["sends_before_allowed"] == 0
    assert min(e["time"] for e in log[1:]) >= log[0]["come_back"]
    assert seconds <= took < seconds + 8.0
    assert "Slow down" in state["held"]["why"] or "overloaded" in state["held"]["why"]
    assert 0 < state["held"]["until"] - time.time() + took <= seconds + 1.1


@pytest.mark.parametrize("failure", ["hold_0", "hold_past", "hold_year_100000", "hold_garbage", "hold_nan", "hold_negative"])
def test_a_wait_that_says_nothing_is_none(room: Room, failure: str) -> None:
    room.set(failure=failure, fail_count=1)
    began = time.monotonic()
    assert through(room, lambda call: call("Why?")).choices
    assert room.count() == 2 and time.monotonic() - began < 2


def test_a_wait_beyond_the_longest_stops_at_once_and_says_how_long(room: Room) -> None:
    room.set(failure="hold_20", fail_when="first")

    async def several(call: Calls) -> list[Any]:
        first = asyncio.ensure_future(call("first"))
        await until(lambda: bool(call.books.faults))
        return [*await call.all(1, 2), *await asyncio.gather(first, return_exceptions=True)]

    began = time.monotonic()
    found = through(room, several, max_wait_s=19.0)
    assert kinds(found) == {"rate_limit": 3} and time.monotonic() - began < 2 and room.count() == 1
    assert "20 s" in str(found[0]) and "19 (--max-wait)" in str(found[0])


def test_a_refused_rate_uses_up_no_try(room: Room) -> None:
    room.set(limit=6, limit_s=0.1)
    assert kinds(through(room, lambda call: call.all(*range(60)), concurrency=40, attempts=1)) == {"Reply": 60}
    assert any(e["status"] == 429 for e in room.log())


@pytest.mark.parametrize("failure", ["busy", "error_inside_429", "error_inside_text_429", "error_inside_rate_limit"])
def test_a_busy_endpoint_is_waited_for_and_costs_no_try(room: Room, failure: str) -> None:
    room.set(failure=failure, fail_count=6)
    assert kinds(through(room, lambda call: call.all(*range(4)), max_wait_s=30.0, attempts=1)) == {"Reply": 4}
    assert room.count() == 10


def test_an_endpoint_that_accepts_nothing_for_too_long_stops_the_run(room: Room) -> None:
    room.set(failure="busy")
    began = time.monotonic()
    found = through(room, lambda call: call.all(*range(6)), max_wait_s=1.0)
    assert kinds(found) == {"rate_limit": 6} and 1.0 < time.monotonic() - began < 4.0
    assert "Too many requests" in str(found[0]) and "--max-wait" in str(found[0])


def test_work_in_flight_is_no_endpoint_that_accepts_nothing(room: Room) -> None:
    room.set(latency_s=3.0)

    async def two(call: Calls) -> list[Any]:
        slow = asyncio.ensure_future(call("slow"))
        await until(lambda: room.count() == 1)
        room.set(failure="busy", fail_when="later", fail_count=3)
        return [await call("later"), await slow]

    assert kinds(through(room, two, max_wait_s=0.1)) == {"Reply": 2}


# A key that is refused


@pytest.mark.parametrize("concurrency", [1, 4, 16])
@pytest.mark.parametrize("failure", ["auth", "forbidden"])
def test_a_refused_key_is_asked_for_once_more_alone_and_then_believed(room: Room, failure: str, concurrency: int) -> None:
    room.set(failure=failure, fail_after=20, latency_s=0.01)
    found = through(room, lambda call: call.all(*range(60)), concurrency=concurrency)
    assert kinds(found) == {"Reply": 20, "auth": 40}
    log = room.log()
    assert 21 < len(log) <= 20 + concurrency + 1 or concurrency == 1 == len(log) - 21
    assert sum(e["time"] > log[20]["time"] + 0.01 for e in log) <= concurrency + 1


def test_a_key_that_was_refused_by_mistake_goes_on(room: Room) -> None:
    room.set(failure="auth", fail_after=5, fail_count=1, latency_s=0.01)
    assert kinds(through(room, lambda call: call.all(*range(30)))) == {"Reply": 30}
    assert room.count() == 31


def test_an_answer_to_what_was_sent_before_says_nothing_for_the_key(room: Room) -> None:
    async def work(call: Calls) -> list[Any]:
        slow = asyncio.ensure_future(call("slow"))
        await until(lambda: room.count() == 1)
        room.set(failure="auth", fail_when="other", latency_s=0.3)
        others = asyncio.ensure_future(call.all(*(f"other {k}" for k in range(10))))
        return [await slow, *await others]

    room.set(latency_s=0.5)  # it ends while the key is asked for once more
    assert kinds(through(room, work, concurrency=2)) == {"Reply": 1, "auth": 10}
    assert room.count() == 3


def test_a_text_that_is_forbidden_while_others_are_not_fails_alone(room: Room) -> None:
    room.set(failure="forbidden", fail_when="poison")

    async def several(call: Calls) -> list[Any]:
        async def others(name: str) -> list[Reply]:
            found = []
            while not first.done():
                found.append(await call(f"{name} {len(found)}"))
            return found

        first = asyncio.ensure_future(call("poison"))
        found = await asyncio.gather(*(others(name) for name in "abcd"))
        return [*chain(*found), *await asyncio.gather(first, return_exceptions=True)]

    found = through(room, several, attempts=3, concurrency=1)
    assert isinstance(found[-1], CallFailed) and found[-1].kind == "auth"
    assert kinds(found[:-1]) == {"Reply": len(found) - 1}
    assert asked(room).count("poison") == 4


def test_failures_do_not_lower_the_limit(room: Room) -> None:
    async def work(call: Calls) -> tuple[int, list[Any], int]:
        before = call.endpoint.state()["limit"]
        room.set(fault_share=0.4, faults="status_500,status_529,reset,html")
        return before, await call.all(*range(40)), call.endpoint.state()["limit"]

    before, found, now = through(room, work, attempts=20, concurrency=16)
    assert kinds(found) == {"Reply": 40} and now >= before >= 1


# Stops


def test_after_a_stop_nothing_more_is_sent(room: Room) -> None:
    room.set(failure="quota", fail_when="first", latency_s=0.02)
    results = through(room, lambda call: call.all("first", *range(9)), concurrency=2)
    assert room.count() <= 3
    assert kinds(results) == {"Reply": room.count() - 1, "quota": 11 - room.count()}


def test_a_stop_comes_before_the_refusal_is_stored(room: Room) -> None:
    class Slow(Books):
        async def fault(self, kind: str, status: int | None, body: bytes) -> None:
            await asyncio.sleep(0.3)
            await super().fault(kind, status, body)

    books = Slow()
    room.set(failure="quota", fail_when="first")
    results = through(room, lambda call: call.all("first", *range(200)), concurrency=2, books=books)
    assert books.faults and room.count() < 200 and kinds(results)["quota"] == 201 - sum(isinstance(r, Reply) for r in results)
    assert room.count() == 1 + kinds(results).get("Reply", 0)
    asked_at = [e["time"] for e in room.log()]
    assert max(asked_at) - asked_at[0] < 0.25, "it went on while the refusal was stored"


def test_a_place_that_is_given_in_the_turn_of_a_stop_is_not_used(room: Room) -> None:
    class Stopping(Books):
        async def keep(self, body: bytes) -> None:
            asyncio.get_running_loop().call_soon(lambda: endpoints[0].stop(StopRun("interrupted", "enough")))

    endpoints: list[Endpoint] = []

    async def three(call: Calls) -> list[Any]:
        endpoints.append(call.endpoint)
        return await call.all(1, 2, 3)

    found = through(room, three, books=Stopping(), concurrency=1)
    assert kinds(found) == {"Reply": 1, "interrupted": 2} and room.count() == 1


def test_a_stop_ends_every_wait(room: Room) -> None:
    room.set(failure="server_error", fail_when="backs off", latency_s=0.01)

    async def several(call: Calls) -> tuple[float, list[Any]]:
        work = asyncio.ensure_future(call.all("backs off", *range(3)))
        await until(lambda: call.books.faults != [] and len(call.books.kept) == 3)
        room.set(failure="hold_20")
        held = asyncio.ensure_future(call.all(*range(10, 30)))
        await until(lambda: call.endpoint.state()["held"] is not None)
        began = time.monotonic()
        call.endpoint.stop(StopRun("interrupted", "enough"))
        call.endpoint.stop(StopRun("later", "the first reason counts"))
        assert call.endpoint.state()["held"] is None
        return time.monotonic() - began, [*await work, *await held, *await call.all("too late")]

    took, found = through(room, several, attempts=9, max_wait_s=100.0)
    assert kinds(found) == {"Reply": 3, "interrupted": 22} and took < 0.5


@pytest.mark.parametrize("what", ["keep", "fault", "begin"])
def test_books_that_fail_let_nothing_more_out(room: Room, what: str) -> None:
    class Full(Books):
        def begin(self) -> None:
            super().begin()
            if what == "begin":
                raise StopRun("disk", "no space left")

        async def keep(self, body: bytes) -> None:
            raise StopRun("disk", "no space left")

        async def fault(self, kind: str, status: int | None, body: bytes) -> None:
            raise StopRun("disk", "no space left")

    room.set(latency_s=0.02, failure="policy" if what == "fault" else "")
    assert kinds(through(room, lambda call: call.all(*range(12)), concurrency=2, books=Full())) == {"disk": 12}
    assert room.count() <= (0 if what == "begin" else 3)


# An endpoint that is down


@pytest.mark.parametrize("down", ["reset", "503"])
def test_an_outage_is_waited_for_by_one_call_at_a_time_and_uses_up_no_try(room: Room, down: str) -> None:
    room.set(down_after=20, down_for_s=2.0, down=down, latency_s=0.01)
    held: list[Any] = []

    async def work(call: Calls) -> list[Any]:
        calls = asyncio.ensure_future(call.all(*range(120)))
        while not calls.done():
            held.append(call.endpoint.state()["held"])
            await asyncio.sleep(0.01)
        return await calls

    found = through(room, work, concurrency=12, max_wait_s=30.0, longest_probe_s=0.3)
    assert kinds(found) == {"Reply": 120}
    log = room.log()
    refused = [e["time"] for e in log if not e["answered"] or e["status"] != 200]
    opened = sorted(refused)[min(len(refused), 24) - 1]
    probes = [moment for moment in sorted(refused) if moment > opened]
    assert len(refused) < 24 + 12 and all(b - a > 0.2 for a, b in pairwise(probes))
    after = [e for e in log if e["time"] > max(refused)]
    assert len(after) >= 90 and after[40]["time"] - after[0]["time"] < 2, "it goes on one at a time"
    assert any(h and h["why"].endswith("one call tries again") and h["until"] > 0 for h in held) and held[-1] is None


@pytest.mark.parametrize("failure", ["status_503", "reset", "html"])
def test_an_outage_ends_with_the_longest_wait(room: Room, failure: str) -> None:
    room.set(failure=failure if failure != "html" else "status_503", fail_after=4)

    async def work(call: Calls) -> tuple[float, list[Any]]:
        began, calls = time.monotonic(), asyncio.ensure_future(call.all(*range(40)))
        if failure == "html":  # in place of the 503s, once it is down
            await until(lambda: down(call.endpoint))
            room.set(failure="html")
        return time.monotonic() - began, [*await calls, time.monotonic() - began]

    _, found = through(room, work, max_wait_s=1.0, longest_probe_s=0.1, attempts=8)
    took = found.pop()
    assert kinds(found) == {"Reply": 4, "unreachable": 36} and 1.0 < took < 4.0
    assert "--max-wait" in str(found[-1]) and room.count() < 4 + 10 + 4 + 25


def test_failures_that_come_with_answers_are_no_outage(room: Room) -> None:
    held: list[Any] = []

    class Slow(Books):
        async def keep(self, body: bytes) -> None:
            await asyncio.sleep(0.1)

    async def work(call: Calls) -> list[Any]:
        calls = asyncio.ensure_future(call.all(*(f"{'bad' if k % 3 else 'good'} {k}" for k in range(24))))
        while not calls.done():
            held.append(call.endpoint.state()["held"])
            await asyncio.sleep(0.005)
        return await calls

    room.set(failure="status_503", fail_when="bad", fail_count=16, latency_s=0.05)
    assert kinds(through(room, work, concurrency=24, books=Slow())) == {"Reply": 24}
    assert room.count() == 24 + 16 and held == [None] * len(held)


def test_an_answer_to_what_was_sent_before_does_not_end_an_outage(room: Room) -> None:
    async def work(call: Calls) -> list[Any]:
        slow = asyncio.ensure_future(call("slow"))
        await until(lambda: room.count() == 1)
        room.set(failure="status_503", fail_when="other")
        others = asyncio.ensure_future(call.all(*(f"other {k}" for k in range(10))))
        return [await slow, *await others]

    room.set(latency_s=1.0)
    found = through(room, work, concurrency=12, attempts=2, max_wait_s=2.0, longest_probe_s=0.1)
    assert kinds(found) == {"Reply": 1, "unreachable": 10}


def test_a_refusal_in_an_outage_is_a_sign_of_life(room: Room) -> None:
    room.set(failure="status_503", fail_after=4)

    async def work(call: Calls) -> tuple[list[Any], int]:
        calls = asyncio.ensure_future(call.all(*range(24)))
        await until(lambda: down(call.endpoint))
        room.set(failure="policy", latency_s=0.02)
        await until(lambda: call.books.faults[-1][0] == "http_400")
        together = 0
        while not calls.done():
            together = max(together, call.endpoint.state()["in_flight"])
            await asyncio.sleep(0.002)
        return await calls, together

    found, together = through(room, work, attempts=8)
    assert kinds(found) == {"Reply": 4, "bad_request": 20} and together > 1


def test_a_refused_connection_where_there_were_answers_waits_for_the_server(room: Room) -> None:
    """A server that is started again: its address refuses connections for a while."""

    async def work(call: Calls) -> list[Any]:
        port = int(room.base.split(":")[2].split("/")[0])

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))  # type: ignore[index]
                there[1].write(re.sub(rb"(?i)\r\nhost:", b"\r\nConnection: close\r\nHost:", head, count=1) + body)
                writer.write(await there[0].read())
                await writer.drain()
            writer.close()
            there[1].close()

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        own = server.sockets[0].getsockname()[1]
        transport = make_transport("aiohttp", room.url.replace(f":{port}", f":{own}"), api_key=None, timeout_s=5.0)
        through_relay = Calls(call.endpoint, transport.post, call.books)
        found = await through_relay.all("before")
        server.close()
        calls = asyncio.ensure_future(through_relay.all("one", "two"))
        await asyncio.sleep(1.2)
        assert not calls.done()
        server = await asyncio.start_server(relay, "127.0.0.1", own)
        found += await calls
        server.close()
        await transport.close()
        return found

    books = Books()
    assert kinds(through(room, work, books=books, longest_probe_s=0.3)) == {"Reply": 3}
    assert {kind for kind, _, _ in books.faults} == {"unreachable"} and 2 <= len(books.faults) < 12


@pytest.mark.parametrize("failure", ["status_500", "status_503", "reset", "never"])
def test_a_text_that_no_server_survives_fails_alone(room: Room, failure: str) -> None:
    room.set(failure=failure, fail_when="poison", latency_s=0.005)

    async def work(call: Calls) -> list[Any]:
        first = asyncio.ensure_future(call("poison"))
        found = await call.all(*range(100))
        return [*found, *await asyncio.gather(first, return_exceptions=True)]

    found = through(room, work, attempts=3, timeout_s=0.3)
    assert kinds(found[:-1]) == {"Reply": 100} and isinstance(found[-1], CallFailed)
    assert found[-1].kind in ("server_error", "broken", "timeout") and "3 attempts" in str(found[-1])
    assert asked(room).count("poison") == 3


def test_poison_alone_at_the_end_of_a_run_does_not_keep_it_from_its_end(room: Room) -> None:
    room.set(failure="status_500", fail_when="poison")
    texts = [f"poison {k}" if k % 2 else str(k) for k in range(24)]
    found = through(room, lambda call: call.all(*texts), concurrency=12, attempts=8, longest_probe_s=0.02)
    assert kinds(found) == {"Reply": 12, "server_error": 12}
    assert max(Counter(asked(room)).values()) <= 8 + 4


# Calls that are given up


def test_a_probe_that_is_given_up_leaves_its_turn_to_the_others(room: Room) -> None:
    room.set(failure="status_503", fail_after=2)

    async def work(call: Calls) -> list[Any]:
        tasks = [asyncio.ensure_future(call(str(k))) for k in range(20)]
        await until(lambda: down(call.endpoint))
        room.set(failure="never")
        count = room.count()
        await until(lambda: room.count() > count)
        for task in tasks[::2]:  # the probe is one of these, or one of the others
            task.cancel()
        await asyncio.sleep(0.05)
        room.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = through(room, work, timeout_s=1.0, longest_probe_s=0.1)
    assert set(kinds(found)) == {"Reply", "CancelledError"} and kinds(found)["Reply"] >= 10


@pytest.mark.parametrize("seed", range(2))
def test_calls_that_are_given_up_leak_no_place_and_starve_nobody(room: Room, seed: int) -> None:
    room.set(latency_s=0.004, fault_share=0.3, faults="rate_limit,server_error,html,reset")
    rng = random.Random(seed)

    async def work(call: Calls) -> list[Any]:
        tasks = [asyncio.ensure_future(call(str(k))) for k in range(120)]
        doomed = rng.sample(tasks, 60)
        for task in doomed:
            await asyncio.sleep(rng.choice((0, 0, 0, 0.001, 0.003)))
            task.cancel()
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        kept = [result for task, result in zip(tasks, found, strict=True) if task not in doomed]
        return kept + await call.all(*range(200, 210))

    found = through(room, work, attempts=20)
    assert kinds(found) == {"Reply": 70}
    assert room.peak() <= 4 + 60  # those given up may still be worked on


def test_a_place_is_handed_on_when_the_call_it_was_given_to_has_just_been_given_up(room: Room) -> None:
    async def work(call: Calls) -> list[Any]:
        tasks: list[asyncio.Task[Reply]] = []

        class Cancelling(Books):
            async def keep(self, body: bytes) -> None:
                if len(tasks) == 3:
                    asyncio.get_running_loop().call_soon(tasks[1].cancel)

        call.books = Cancelling()
        tasks += [asyncio.ensure_future(call(str(k))) for k in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert kinds(through(room, work, concurrency=1)) == {"Reply": 2, "CancelledError": 1}


# When to come back


def after(seconds: float, *, since: datetime | None = None) -> str:
    return format_datetime((since or datetime.now(UTC)) + timedelta(seconds=seconds), usegmt=True)


NOON = datetime(2031, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "21600"}, 21600.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 100000 07:28:00 GMT"}, None),
        ({"retry-after": after(30, since=NOON), "date": after(0, since=NOON)}, 30.0),
        ({"retry-after": after(30, since=NOON).removesuffix(" GMT"), "date": after(0, since=NOON)}, 30.0),
        ({"retry-after": after(-30, since=NOON), "date": after(0, since=NOON)}, None),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, 360.0),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "3"}, None),
        ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-reset-tokens": "1h2m3s"}, 3723.0),
        ({"x-ratelimit-reset-tokens": "7.66"}, 7.66),
        ({"x-ratelimit-reset-tokens": "soon"}, None),
        ({"x-ratelimit-reset-tokens": "1s or so"}, None),
        ({"retry-after": "soon", "x-ratelimit-reset-requests": "2s"}, 2.0),
        ({"retry-after": "-1", "x-ratelimit-reset-requests": "2s"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "x-ratelimit-reset-requests": "2s"}, 2.0),
    ],
)
def test_what_a_response_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_a_date_is_so_many_seconds_from_now_in_any_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for date in (after(100), after(100).removesuffix(" GMT")):
            assert retry_after_s({"retry-after": date}) == pytest.approx(100, abs=3)
        assert retry_after_s({"retry-after": after(-100)}) is None
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != "Asia/Kolkata"


@given(st.text(max_size=40), st.text(max_size=10), st.text(max_size=10), st.text(max_size=10))
def test_any_header_is_a_time_or_none(value: str, milliseconds: str, reset: str, date: str) -> None:
    found = retry_after_s(
        {"retry-after": value, "retry-after-ms": milliseconds, "x-ratelimit-reset-requests": reset, "date": date}
    )
    assert found is None or 0 <= found < float("inf")
