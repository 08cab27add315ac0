"""Two things asyncio lacks: waiting for all before raising, and an async iterator read from synchronous code."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def all_of(*awaitables: Awaitable[T]) -> list[T]:
    """The results in order. Raises the first error, but only once all have ended: what is in flight is never dropped."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


def iterate(make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """Reads an async iterator from synchronous code, also inside a running event loop (a notebook).

    It runs in a thread with a loop of its own, at most a few items ahead. Closing the generator cancels it.
    """
    items: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=64)
    stop = threading.Event()

    async def drive() -> None:
        async for item in make():
            while not stop.is_set():
                try:
                    items.put_nowait((item, None, False))
                    break
                except queue.Full:
                    await asyncio.sleep(0.01)
            if stop.is_set():
                return

    def work() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(drive())
        except BaseException as raised:
            error = raised
        while not stop.is_set():
            try:
                items.put((None, error, True), timeout=0.1)
                return
            except queue.Full:
                continue

    thread = threading.Thread(target=work, name="rlaif-run", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = items.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
