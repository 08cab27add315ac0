"""One endpoint's limits: how many calls at once and how fast, when to try again, when to stop.

The only retry loop of the program. Calls wait in line; `Pace` says when the next may be sent. A call holds its place until
its response is committed, and gives it up while it waits to try again. Every outcome is one of: the answer, try again, `CallFailed`
(this call only) or `StopRun` (every call to this endpoint, from then on).

Ten failures in a row (5xx, no connection) open the circuit: one call at a time goes out as a probe, every few seconds,
until one is answered; such attempts use up no call's tries. A 401 or 403 is believed when it comes a second time, for one
call sent alone. An endpoint that answers nothing, or asks to wait, for longer than `max_wait_s` stops the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.errors import CallFailed, StopRun
from rlaif.pace import Flight, Pace
from rlaif.responses import ErrorInside, Rejected, Response, TransportError, error_fields, one_line, retry_after_s
from rlaif.types import Purchase

T = TypeVar("T")

MAX_WAIT_S = 900.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 30.0
_FIRST_PROBE_S, _LONGEST_PROBE_S = 0.5, 10.0
_RETRIED = {408, 409, 425, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds"}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_ATTEMPTS_TO_FIND = 5
_FAILURES_TO_OPEN, _CALLS_TO_OPEN = 10, 5


@dataclass(slots=True)
class _Call:
    """One call's tries. `alone` is set while it is sent as a probe."""

    kind: str
    tokens: int
    attempts: int = 0
    began: int = 0
    seen: int = 0
    alone: bool = False
    refused_key: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What an endpoint waits for, and until when (monotonic seconds)."""

    why: str
    until: float


class Endpoint:
    """The shared limits of every model behind one address."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        attempts: int = 8,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self.name, self.concurrency = name, concurrency
        self._pace = Pace(concurrency, rpm=rpm, tpm=tpm)
        self._line: deque[tuple[_Call, asyncio.Future[Flight]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._attempts, self._max_wait_s = attempts, max_wait_s
        self._stopped: StopRun | None = None
        self._wake: asyncio.Event | None = None
        self._accepted = 0
        self._retries = self._rate_limited = 0
        self._held: Held | None = None
        self._failed_in_a_row = 0
        self._failing: set[int] = set()
        self._down_since: float | None = None
        self._probes = 0
        self._probing = False
        self._doubted: str | None = None

    async def call(
        self,
        send: Callable[[], Awaitable[Response]],
        purchase: Purchase,
        read: Callable[[bytes], T],
        *,
        kind: str = "",
        tokens: int = 0,
    ) -> T:
        """Sends until there is a kept body that `read` takes, and returns what it read.

        `kind` names calls of like length, `tokens` is the most that this one may use. `read` raises CallFailed on a body that
        is no answer. Raises CallFailed or StopRun as the module says. A rate limit uses up a try only if nothing was accepted
        since this call's last one: while the endpoint works, waiting is all it takes.
        """
        call = _Call(kind, tokens, began=self._accepted, seen=self._accepted)
        while True:
            flight = await self._admitted(call)
            try:
                return await self._once(call, flight, send, purchase, read)
            except _Retry as retry:
                failed = retry.failed
            except StopRun as reason:
                raise self.stop(reason) from None
            finally:
                self._pump()
            self._retries += 1
            if not self._counts(call, failed):
                continue
            call.attempts += 1
            call.seen = self._accepted
            lost = failed.kind == "unreachable" and self._accepted == 0  # a wrong address, most likely
            if call.attempts >= (_ATTEMPTS_TO_FIND if lost else self._attempts):
                break
            if failed.kind != "rate_limit":  # then the pace waits for all
                wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (call.attempts - 1))
                await self._sleep(wait * random.uniform(0.5, 1.0))
        said = f"{failed} ({call.attempts} attempts)"
        nothing = self._accepted == call.began and failed.kind in ("rate_limit", "server_error")
        if failed.kind == "unreachable" or (nothing and (failed.kind == "rate_limit" or self._accepted == 0)):
            raise self.stop(StopRun(failed.kind, said))
        raise CallFailed(failed.kind, said)

    def stop(self, reason: StopRun) -> StopRun:
        """Lets no further call out and ends every wait; returns the first reason given. Called in the loop's thread."""
        self._stopped = self._stopped or reason
        if self._wake is not None:
            self._wake.set()
        while self._line:
            _, waiting = self._line.popleft()
            if not waiting.done():
                waiting.set_exception(self._stopped)
        return self._stopped

    def state(self) -> dict[str, Any]:
        """What it does now, for a person: calls in flight, limits, what it waits for and until when (Unix time)."""
        now = time.monotonic()
        pace = self._pace.state(now)
        held = None
        if self._held is not None and self._held.until > now and self._stopped is None:
            held = {"why": self._held.why, "until": time.time() + self._held.until - now}
        return {
            "name": self.name,
            "in_flight": self._pace.in_flight,
            "limit": int(pace["limit"]),
            "ceiling": self.concurrency,
            "waiting": len(self._line),
            "rate_per_s": pace["rate"],
            "retries": self._retries,
            "rate_limited": self._rate_limited,
            "held": held,
        }

    # The line

    async def _admitted(self, call: _Call) -> Flight:
        """A place among the calls in flight. Raises StopRun if the endpoint is stopped."""
        if self._stopped:
            raise self._stopped
        if not self._line and (flight := self._try_to_admit(call)) is not None:
            return flight
        waiting: asyncio.Future[Flight] = asyncio.get_running_loop().create_future()
        if call.attempts and self._down_since is None:
            self._line.appendleft((call, waiting))  # what was begun is finished first; in an outage everyone probes in turn
        else:
            self._line.append((call, waiting))
        self._pump()
        try:
            flight = await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._land(call, waiting.result())
            raise
        if self._stopped:  # between the place was given and now
            self._land(call, flight)
            raise self._stopped
        return flight

    def _try_to_admit(self, call: _Call) -> Flight | None:
        alone = self._down_since is not None or self._doubted is not None
        if alone and self._probing:
            return None
        now = time.monotonic()
        wait = self._pace.admit(now, call.tokens)
        if wait > 0.0:
            if wait != math.inf and (self._timer is None or self._timer.when() > now + wait):
                self._set_timer(wait)
            return None
        call.alone = self._probing = alone
        return self._pace.sent(now, call.tokens, call.kind)

    def _pump(self) -> None:
        """Lets out what may go."""
        while self._line:
            call, waiting = self._line[0]
            if waiting.done():  # cancelled
                self._line.popleft()
                continue
            flight = self._try_to_admit(call)
            if flight is None:
                return
            self._line.popleft()
            waiting.set_result(flight)

    def _set_timer(self, wait: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _land(self, call: _Call, flight: Flight) -> None:
        """A call that was let out ends without having been tried."""
        self._pace.failed(flight, time.monotonic())
        if call.alone:
            call.alone = self._probing = False
        self._pump()

    async def _sleep(self, seconds: float) -> None:
        """Waits, not longer than until the endpoint is stopped; raises StopRun then."""
        self._wake = self._wake or asyncio.Event()
        if self._stopped is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
        if self._stopped:
            raise self._stopped

    # One attempt

    async def _once(
        self,
        call: _Call,
        flight: Flight,
        send: Callable[[], Awaitable[Response]],
        purchase: Purchase,
        read: Callable[[bytes], T],
    ) -> T:
        """The answer of one attempt. What a failure means is acted on at once, before it is stored."""
        landed = False
        try:
            purchase.begin()
            try:
                response = await send()
            except TransportError as error:
                outcome = self._fail(call, CallFailed(error.kind, f"{self.name}: {one_line(str(error))}"))
                await purchase.fault(error.kind, None, error.partial or str(error).encode("utf-8", "replace"))
                raise outcome from None
            if response.status != 200:
                landed = response.status == 429
                outcome = self._refused(call, flight, response.status, response)
                await purchase.fault(f"http_{response.status}", response.status, response.body)
                raise outcome
            await purchase.keep(response.body)
            try:
                answer = read(response.body)
            except ErrorInside as error:
                landed = error.status == 429
                raise self._refused(call, flight, error.status, response) from None
            except CallFailed as error:
                raise self._fail(call, error) from None
            landed = True
            self._pace.answered(flight, time.monotonic(), getattr(answer, "tokens", None))
            self._accept()
            return answer
        finally:
            if call.alone:
                call.alone = self._probing = False
            if not landed:
                self._pace.failed(flight, time.monotonic())

    def _accept(self) -> None:
        self._accepted += 1
        if self._failed_in_a_row:
            self._failed_in_a_row = 0
            self._failing.clear()
        if self._down_since is not None or self._doubted is not None:
            self._down_since, self._doubted, self._probes, self._held = None, None, 0, None

    def _refused(self, call: _Call, flight: Flight, status: int, response: Response) -> Exception:
        """What a refusal means: a _Retry, a CallFailed or a StopRun, to be raised. A hold or a stop begins here."""
        now = time.monotonic()
        code, param, said = error_fields(response.body, _QUOTA_CODES | _TOO_LONG_CODES)
        what = f"{self.name} answered {status}: {said}"
        wait = retry_after_s(response.headers) if status in _RETRIED or status >= 500 else None
        if status == 429:
            self._rate_limited += 1
            self._pace.refused(flight, now, wait)
        elif wait is not None:
            self._pace.hold(now, wait)
        if self._pace.held_until > now:
            self._held = Held(f"{status}: {said}", self._pace.held_until)
        if status == 402 or code in _QUOTA_CODES:
            return self.stop(StopRun("quota", what))
        if status in (401, 403):
            return self._doubt(call, what)
        if status in (404, 405):
            return self.stop(StopRun("model", what))
        if status in _RETRIED or status >= 500:
            if wait is not None and wait > self._max_wait_s:
                longest = f"more than {self._max_wait_s:.0f} (--max-wait)"
                return self.stop(StopRun("rate_limit", f"{what}; it asks to wait {wait:.0f} s, {longest}"))
            if status == 429:
                return _Retry(CallFailed("rate_limit", what))
            return self._fail(call, CallFailed("server_error", what))
        if code in _TOO_LONG_CODES or "context length" in said or "context size" in said:
            return CallFailed("too_long", what)
        return Rejected(what, said, param)

    def _doubt(self, call: _Call, what: str) -> Exception:
        """A refused key: asked once more, alone; then it is believed."""
        if call.refused_key or (call.alone and self._doubted is not None):
            return self.stop(StopRun("auth", what))
        self._doubted, call.refused_key = what, True
        return _Retry(CallFailed("auth", what))

    def _fail(self, call: _Call, failed: CallFailed) -> _Retry | StopRun:
        """Counts a failure of the endpoint; too many in a row open the circuit, and too long a time stops the run."""
        if failed.kind not in ("server_error", "unreachable", "broken", "timeout"):
            return _Retry(failed)
        now = time.monotonic()
        self._failed_in_a_row += 1
        self._failing.add(id(call))
        enough = min(_CALLS_TO_OPEN, max(2, self.concurrency))
        if self._down_since is None:
            if self._failed_in_a_row < _FAILURES_TO_OPEN or len(self._failing) < enough:
                return _Retry(failed)
            if failed.kind == "unreachable" and self._accepted == 0:
                return _Retry(failed)  # never reached: its calls' own tries end soon
            self._down_since = now
        elif not call.alone:  # sent before the circuit opened
            return _Retry(failed)
        if now - self._down_since > self._max_wait_s:
            longest = f"for {self._max_wait_s:.0f} s (--max-wait)"
            return self.stop(StopRun("unreachable", f"{failed}; it has answered nothing {longest}"))
        wait = min(_LONGEST_PROBE_S, _FIRST_PROBE_S * 2.0 ** min(self._probes, 10)) * random.uniform(0.8, 1.0)
        self._probes += 1
        self._pace.hold(now, wait)
        self._held = Held(f"{failed}; it is tried again", now + wait)
        return _Retry(failed)

    def _counts(self, call: _Call, failed: CallFailed) -> bool:
        """Whether a try is used up."""
        if failed.kind == "auth":
            return False
        if failed.kind == "rate_limit":
            counted = self._accepted == call.seen
            call.seen = self._accepted
            return counted
        return self._down_since is None


class _Retry(Exception):
    def __init__(self, failed: CallFailed) -> None:
        self.failed = failed
