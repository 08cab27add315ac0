"""Running a user's functions with a time limit. One that does not end in time is given up, and the others go on.

A function in a thread cannot be ended from outside. Its thread is asked to end, which a loop in Python does and a blocked
call does not, and is left behind; another thread goes on with those that wait. Threads are daemons: none keeps the program
from ending. A coroutine is cancelled, and left behind if it does not end of that. What no limit can reach is code that
keeps the interpreter to itself: a regular expression that backtracks for ever, or a coroutine that never awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Outcome = tuple[Any, BaseException | None]
"""(what a function returned, None) or (None, what it raised). A future cannot carry every exception."""

_AT_ONCE = 64
_IDLE_S = 10.0
_GRACE_S = 5.0


class Hung(Exception):
    """A function did not end in time; `abandoned` if it still runs."""

    def __init__(self, *, abandoned: bool) -> None:
        super().__init__()
        self.abandoned = abandoned


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Outcome]


class ThreadRunner:
    """Runs functions for one event loop, one after another, in a thread that is kept as long as there is work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, name: str) -> None:
        self.loop, self._timeout_s, self._name = loop, timeout_s, name
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._finished: deque[tuple[_Job, Outcome]] = deque()
        self._state = threading.Lock()  # held for a change of the next three, never while a function runs
        self._thread: threading.Thread | None = None
        self._running: _Job | None = None
        self._began = 0.0
        self._open = 0  # calls of `run` that have not come to their end
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: Exception | None = None

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """What the function returned or raised, when its turn has come. Raises Hung, or the reason of a stop."""
        if self._stopped is not None:
            raise self._stopped
        job = _Job(function, arguments, self.loop.create_future())
        with self._state:
            self._waiting.put(job)
            if self._thread is None:
                self._start()
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout_s, self._watch)
        self._open += 1
        try:
            return await job.future
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        finally:
            self._open -= 1

    def stop(self, reason: Exception) -> None:
        """Raises `reason` for all that wait for their turn, and for all that come; the thread ends after its function."""
        self._stopped = reason
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._waiting.get_nowait()
                if job is not None and not job.future.done():
                    job.future.set_exception(reason)
        self._waiting.put(None)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def _work(self) -> None:
        while True:
            try:
                job = self._waiting.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._state:
                    if self._waiting.empty():
                        self._thread = None
                        return
                continue
            if job is None:
                return
            with self._state:
                if job.future.done():  # nobody waits for it any more
                    continue
                self._running, self._began = job, time.monotonic()
            outcome = _call(job)
            with self._state:
                if self._running is not job:  # this thread was left behind
                    return
                self._running = None
            self._finished.append((job, outcome))
            if len(self._finished) == 1:  # else the loop has been told, and has not come yet
                with contextlib.suppress(RuntimeError):  # it has been closed
                    self.loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        while self._finished:
            job, outcome = self._finished.popleft()
            if not job.future.done():
                job.future.set_result(outcome)

    def _watch(self) -> None:
        """Gives up the running function if its time is over, and comes again when the next one's could be."""
        with self._state:
            job, left = self._running, self._began + self._timeout_s - time.monotonic()
        if job is None or (left <= 0 and self._abandon(job)):
            left = self._timeout_s
            if job is not None and not job.future.done():
                job.future.set_exception(Hung(abandoned=True))
        self._timer = self.loop.call_later(max(left, 0.0), self._watch) if self._open else None

    def _abandon(self, job: _Job) -> bool:
        """Leaves the thread behind if it still runs the job, and goes on in another one."""
        with self._state:
            if self._running is not job:
                return False
            self._running = None
            if self._thread is not None and self._thread.ident is not None:
                _ask_to_end(self._thread.ident)
            self._start()
            return True


class TaskRunner:
    """Runs coroutine functions on the event loop, at most 64 at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, name: str) -> None:
        self.loop, self._name = loop, name
        self._timeout_s, self._grace_s = timeout_s, min(timeout_s, _GRACE_S)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._stopped: Exception | None = None

    async def run(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Outcome:
        """What the function returned or raised. Raises Hung, or the reason of a stop."""
        async with self._places:
            if self._stopped is not None:
                raise self._stopped
            task = self.loop.create_task(_outcome(function, arguments), name=self._name)
            try:
                await asyncio.wait((task,), timeout=self._timeout_s)
                if task.done():
                    return task.result()
            finally:  # its time is over, or nobody waits any more
                if not task.done():
                    task.cancel()
                    await asyncio.wait((task,), timeout=self._grace_s)
                    if not task.done():
                        _leave(task)
            raise Hung(abandoned=not task.done())

    def stop(self, reason: Exception) -> None:
        """Raises `reason` for all that wait for their turn, and for all that come."""
        self._stopped = reason


def _call(job: _Job) -> Outcome:
    try:
        return job.function(*job.arguments), None
    except BaseException as error:
        return None, error


async def _outcome(function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return await function(*arguments), None
    except GeneratorExit:
        raise
    except BaseException as error:
        return None, error


def _ask_to_end(thread: int) -> None:
    """Raises SystemExit in the thread at its next step in Python: a loop left behind takes no time from the others."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))


_left: list[asyncio.Task[Outcome]] = []


def _leave(task: asyncio.Task[Outcome]) -> None:
    """Takes the task off the loop's list, so that the loop does not wait for it when it closes."""
    asyncio._unregister_task(task)  # documented for those who extend asyncio
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    _left.append(task)  # it may still be collected with its loop; a warning about it would help nobody
