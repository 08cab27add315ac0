"""Two things asyncio lacks: waiting for all before raising, and an async generator read from synchronous code."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 64


async def all_of(*awaitables: Awaitable[T]) -> list[T]:
    """The results in order. Raises the first error, but only once all have ended: what is in flight is never dropped."""
    if len(awaitables) == 1:
        return [await awaitables[0]]
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


def iterate(make: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
    """Reads an async generator from synchronous code, also inside a running event loop (a notebook).

    It runs in a thread with a loop of its own, at most 64 items ahead. Closing the generator cancels it and waits for it.
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()
    room = threading.Semaphore(_AHEAD)
    closed = threading.Event()
    stop: list[Callable[[], object]] = []

    async def drive() -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        if task is not None:
            stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        async with contextlib.aclosing(make()) as source:  # else a cancelled wait for room would leave its end to the loop's
            async for item in source:
                while not room.acquire(blocking=False):
                    await asyncio.sleep(0.005)
                items.put((item, None))

    def work() -> None:
        try:
            asyncio.run(drive())
        except BaseException as error:
            items.put((None, error))
        else:
            items.put((None, _End()))
        closed.set()

    thread = threading.Thread(target=work, name="rlaif-run", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, _End):
                return
            if error is not None:
                raise error
            room.release()
            yield item  # type: ignore[misc]
    finally:
        while not sys.is_finalizing() and not closed.wait(0.05):  # at the interpreter's end its thread is gone
            for cancel in stop[:1]:
                with contextlib.suppress(RuntimeError):  # its loop has just closed
                    cancel()
                stop.clear()
        if not sys.is_finalizing():
            thread.join()


class _End(Exception):
    """The iterator has ended."""
