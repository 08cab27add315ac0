"""The one thread that writes to a ledger: in group commits, off the event loop; an await returns after its commit.

Jobs of a few milliseconds travel together. A disk that is full or fails stops the sending first; then the reserve makes
room, and what is in flight is stored all the same.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from rlaif.errors import StopRun
from rlaif.ledger.file import OF_THE_DISK, code_of, connect, crc_of, damaged
from rlaif.ledger.rows import Job, do
from rlaif.prices import SpendRow

log = logging.getLogger("rlaif")

_GROUP, _GATHER_S = 512, 0.004
_TRIES_TO_SAVE, _TRY_AGAIN_S = 5, 0.5


class Writer:
    """Commits jobs to the ledger in `directory`. `spend` are the running totals as they were committed last.

    `on_trouble` is called, in the thread, with the reason why nothing more can be stored; `make_room` then.
    """

    def __init__(
        self,
        directory: Path,
        spend: dict[tuple[str, str], SpendRow],
        on_trouble: Callable[[StopRun], object],
        make_room: Callable[[], object],
    ) -> None:
        self.spend = spend
        self._directory, self._on_trouble, self._make_room = directory, on_trouble, make_room
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._batch: _Batch | None = None
        self._db: sqlite3.Connection | None = None
        self._trouble: StopRun | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="rlaif-ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for what was given to it; takes nothing more."""
        self._closed = True
        self._send_off()
        self._queue.put(None)
        self._thread.join()

    async def commit(self, job: Job) -> Any:
        """What the job says, once it is committed. Jobs of one turn of the event loop travel together."""
        if self._closed:
            raise StopRun("disk", f"the ledger in {str(self._directory)!r} is closed")
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch(asyncio.get_running_loop(), [], [])
            batch.loop.call_later(_GATHER_S, self._send_off)
        done = batch.loop.create_future()
        batch.jobs.append(job)
        batch.done.append(done)
        return await done

    def _send_off(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._queue.put(batch)

    # Its thread

    def _write(self) -> None:
        open_for_work = True
        while open_for_work:
            batches: list[_Batch] = []
            jobs = 0
            while jobs < _GROUP and (not batches or not self._queue.empty()):
                batch = self._queue.get()
                if batch is None:
                    open_for_work = False
                    break
                batches.append(batch)
                jobs += len(batch.jobs)
            if not batches:
                break
            _settle(batches, self._outcomes([job for batch in batches for job in batch.jobs]))
        if self._db is not None:
            self._db.close()

    def _outcomes(self, jobs: Sequence[Job]) -> list[Any]:
        """What each job says or raises. A group that cannot be committed is so one by one: one that raises harms no other."""
        try:
            return self._save(jobs, _TRIES_TO_SAVE)
        except Exception as error:  # whatever it is, those who wait must hear of it
            return [self._told(error)] if len(jobs) == 1 else [self._alone(job) for job in jobs]

    def _alone(self, job: Job) -> Any:
        try:
            return self._save([job], 1)[0]
        except Exception as error:
            return self._told(error)

    def _save(self, jobs: Sequence[Job], tries: int) -> list[Any]:
        """Commits a group. A disk that is full or fails stops the sending; then it is tried again, the reserve given up."""
        for left in reversed(range(tries)):
            spend = dict(self.spend)
            try:
                db = self._db = self._db or connect(self._directory / "run.sqlite", write=True)
                db.execute("BEGIN IMMEDIATE")
                results = do(db, jobs, spend)
                for name, row in spend.items():
                    if self.spend.get(name) != row:
                        values = (*name, int(row.free), *astuple(row)[3:])
                        db.execute(f"INSERT OR REPLACE INTO spend VALUES ({'?, ' * 10}?)", (*values, crc_of(*values)))
                db.execute("COMMIT")
            except Exception as error:
                if self._db is not None and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if code_of(error) not in OF_THE_DISK:
                    raise
                again = self._trouble is not None
                self._stop_sending(self._told(error))
                if not left:
                    raise
                if again:
                    time.sleep(_TRY_AGAIN_S)
            else:
                self.spend = spend
                return results
        raise AssertionError("the last try returns or raises")

    def _told(self, error: Exception) -> Exception:
        """What the one who waits hears: that the file cannot be written or is damaged, or else what the job itself raised."""
        if code_of(error) in OF_THE_DISK:
            where = str(self._directory / "run.sqlite")
            return StopRun("disk", f"cannot write to {where!r}: {error}. Make room or repair it")
        if isinstance(error, zlib.error) or type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError):
            said = StopRun("damaged", damaged(self._directory, error))
            self._stop_sending(said)
            return said
        return error

    def _stop_sending(self, reason: Exception) -> None:
        """Says, once, that nothing more can be stored, and makes room for what is in flight."""
        if self._trouble is not None or not isinstance(reason, StopRun):
            return
        self._trouble = reason
        try:
            self._on_trouble(reason)
        except Exception:
            log.exception("the sending could not be stopped")
        self._make_room()


@dataclass(slots=True)
class _Batch:
    """Jobs that travel to the writer together, and the futures of their results."""

    loop: asyncio.AbstractEventLoop
    jobs: list[Job]
    done: list[asyncio.Future[Any]]


def _settle(batches: Sequence[_Batch], results: list[Any]) -> None:
    """Tells those who wait, in their loop's thread; results are cut into the batches'."""
    at = 0
    for batch in batches:
        part = results[at : at + len(batch.jobs)]
        at += len(batch.jobs)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            batch.loop.call_soon_threadsafe(_settle_one, batch.done, part)


def _settle_one(waiting: Sequence[asyncio.Future[Any]], results: list[Any]) -> None:
    for done, result in zip(waiting, results, strict=True):
        if done.done():  # cancelled
            continue
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)
