"""Waiting for all, and an async generator read from synchronous code: nothing is dropped, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.aio import all_of, iterate


async def after(seconds: float, value: Any, seen: list[Any] | None = None) -> Any:
    """The value, or raises it, after so long."""
    await asyncio.sleep(seconds)
    if seen is not None:
        seen.append(value)
    if isinstance(value, Exception):
        raise value
    return value


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "rlaif-run"]


# all_of


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=5))
def test_all_end_before_the_first_error_is_raised(items: list[tuple[int, bool]]) -> None:
    values = [LookupError(k) if fails else k for k, (_, fails) in enumerate(items)]
    seen: list[Any] = []
    work = all_of(*(after(delay / 1000, value, seen) for (delay, _), value in zip(items, values, strict=True)))

    async def main() -> list[Any]:
        return await work

    failing = [value for value in values if isinstance(value, Exception)]
    if failing:
        with pytest.raises(LookupError) as caught:
            asyncio.run(main())
        assert caught.value is failing[0], "the first in order, not in time"
    else:
        assert asyncio.run(main()) == values
    assert len(seen) == len(items)


@pytest.mark.parametrize("count", [1, 3])
def test_a_cancelled_wait_cancels_all(count: int) -> None:
    seen: list[Any] = []

    async def main() -> set[Any]:
        waiting = asyncio.ensure_future(all_of(*(after(60, k, seen) for k in range(count))))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert (asyncio.run(main()), seen) == (set(), [])


# iterate


class Counting:
    """Yields 0, 1, ... and notes how far it came and that it was closed."""

    def __init__(self, count: int, error: Exception | None = None, pause_s: float = 0.0) -> None:
        self.count, self.error, self.pause_s = count, error, pause_s
        self.made, self.closed = 0, False

    async def __call__(self) -> AsyncGenerator[int, None]:
        try:
            for k in range(self.count):
                await asyncio.sleep(self.pause_s)
                self.made += 1
                yield k
            if self.error is not None:
                raise self.error
        finally:
            await asyncio.sleep(0)  # what is cancelled may still await
            self.closed = True


def test_items_come_in_order_also_inside_a_running_loop() -> None:
    async def cell() -> list[int]:
        return list(iterate(Counting(300)))

    assert list(iterate(Counting(300))) == asyncio.run(cell()) == list(range(300))
    assert threads() == []


def test_an_error_comes_after_the_items_before_it() -> None:
    items, counting = [], Counting(100, error=LookupError("here"))
    with pytest.raises(LookupError, match="here"):
        for item in iterate(counting):
            items.append(item)
    assert (items, counting.closed, threads()) == (list(range(100)), True, [])


def test_a_reader_that_does_not_read_is_not_run_ahead_of_for_ever() -> None:
    counting = Counting(10_000)
    items = iterate(counting)
    assert next(items) == 0
    time.sleep(0.2)
    assert 60 <= counting.made <= 70
    assert [next(items) for _ in range(200)] == list(range(1, 201))
    items.close()
    assert counting.closed and counting.made < 400


@pytest.mark.parametrize("pause_s", [0.0, 60.0], ids=["full", "waiting"])
@pytest.mark.parametrize("read", [0, 1])
def test_closing_ends_it_wherever_it_is(pause_s: float, read: int) -> None:
    counting = Counting(10_000)
    items = iterate(counting)
    for _ in range(read):
        next(items)
    counting.pause_s = pause_s
    time.sleep(0.05)
    began = time.monotonic()
    items.close()
    assert time.monotonic() - began < 2.0 and threads() == []
    assert counting.closed == bool(read), "what is never read never begins"


def test_an_exception_in_the_loop_s_body_closes_it() -> None:
    counting = Counting(10_000)
    with pytest.raises(ZeroDivisionError):
        for item in iterate(counting):
            1 / item
    assert counting.closed and threads() == []
