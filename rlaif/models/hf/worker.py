"""One thread that owns a network: jobs go in from the event loop, answers come back to it, and the loop never waits.

The network is loaded with the first job. An engine takes whatever waits and works in steps, so that what comes later can
join between two of them. A job whose caller has gone is dropped at the next step. An engine that breaks down stops the
worker: it is about no single job, so none of them may be taken for one that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from rlaif.errors import StopRun

if TYPE_CHECKING:
    from rlaif.live import EndpointState

_GATHER_S = 0.003
"""What is asked together comes within this time; a batch begun with the first of it would miss the rest."""


class Job:
    """One piece of work and its caller's future; `begun` when it has left the line."""

    __slots__ = ("_future", "_loop", "begun", "work")

    def __init__(self, work: Any, future: asyncio.Future[Any]) -> None:
        self.work, self.begun = work, False
        self._future, self._loop = future, future.get_loop()

    @property
    def dropped(self) -> bool:
        """True if nobody waits for it any more."""
        return self._future.done()

    def finish(self, result: Any) -> None:
        """Gives the caller its result."""
        self._tell(lambda future: future.set_result(result))

    def fail(self, error: BaseException) -> None:
        """Raises `error` for the caller."""
        self._tell(lambda future: future.set_exception(error))

    def _tell(self, act: Callable[[asyncio.Future[Any]], None]) -> None:
        def settle() -> None:
            if not self._future.done():
                act(self._future)

        with contextlib.suppress(RuntimeError):  # its loop has been closed
            self._loop.call_soon_threadsafe(settle)


class Engine(Protocol):
    """What works on jobs, in the worker's thread alone. What it raises is about no single job: those it fails."""

    def take(self, jobs: list[Job]) -> None:
        """Puts jobs into its line."""

    def step(self) -> bool:
        """Does a piece of work; False if nothing is left to do. Finishes or fails every job that it took."""


class Worker:
    """The thread of one network; `load` makes its engine there.

    What `load` or the engine raises stops it: all that wait and all that come raise it, as a StopRun of kind `model` if it
    is none itself.
    """

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        self._name, self._load = name, load
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open: set[Job] = set()
        self._opening = threading.Lock()
        self._stopped: StopRun | None = None

    async def run(self, work: Any) -> Any:
        """What the engine makes of `work`. Raises what it fails with, or the reason of a stop."""
        if self._stopped is not None:
            raise self._stopped
        job = Job(work, asyncio.get_running_loop().create_future())
        with self._opening:
            self._open.add(job)
        self._queue.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        try:
            return await job._future
        finally:
            with self._opening:
                self._open.discard(job)

    def stop(self, reason: StopRun) -> None:
        """Raises `reason` for all that wait for their turn, and for all that come; what has begun goes on."""
        self._stopped = self._stopped or reason
        for job in self._all_open():
            if not job.begun and not job._future.done():
                job._future.set_exception(self._stopped)

    async def close(self) -> None:
        """Ends every job and the thread, and frees the network."""
        self.stop(StopRun("closed", "the run has ended"))
        assert self._stopped is not None
        for job in self._all_open():
            if not job._future.done():
                job._future.set_exception(self._stopped)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    def state(self, name: str, at_once: int) -> EndpointState:
        """What it does now, for a person; `at_once` is how many jobs keep it busy. Any thread may ask."""
        jobs = self._all_open()
        begun = sum(job.begun for job in jobs)
        return {
            "name": name,
            "in_flight": begun,
            "limit": at_once,
            "ceiling": at_once,
            "waiting": len(jobs) - begun,
            "rate_per_s": None,
            "retries": 0,
            "rate_limited": 0,
            "held": None,
        }

    @property
    def stopped(self) -> StopRun | None:
        """Why it takes no more."""
        return self._stopped

    def _all_open(self) -> list[Job]:
        with self._opening:
            return list(self._open)

    def _work(self) -> None:
        engine: Engine | None = None
        held: list[Job] = []
        more = False
        try:
            while (jobs := self._taken(wait=not more)) is not None:
                held = [job for job in held if not job.dropped] + jobs
                engine = engine or self._load()
                engine.take(jobs)
                more = engine.step()
        except BaseException as error:  # a network that cannot be loaded, or a bug
            reason = self._broken(error)
            engine = None
            while jobs is not None:
                for job in [*held, *jobs]:
                    job.fail(reason)
                held, jobs = [], self._taken(wait=True)

    def _broken(self, error: BaseException) -> StopRun:
        """Why nothing works any more; its cause, if it is a bug, tells where it happened."""
        reason = error
        if not isinstance(reason, StopRun):
            reason = StopRun("model", f"{self._name} broke down: {first_line(error)}")
            traceback.clear_frames(error.__traceback__)  # they hold the network
            reason.__cause__ = error
        self._stopped = self._stopped or reason
        return reason

    def _taken(self, *, wait: bool) -> list[Job] | None:
        """All jobs that wait now, at least one if it is to `wait`; None when the worker is closed."""
        jobs: list[Job | None] = []
        if wait:
            jobs.append(self._queue.get())
            time.sleep(_GATHER_S)
        with contextlib.suppress(queue.Empty):
            while True:
                jobs.append(self._queue.get_nowait())
        return None if None in jobs else [job for job in jobs if job is not None and not job.dropped]


def first_line(error: BaseException) -> str:
    """The first line of what an error says, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
