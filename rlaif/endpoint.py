"""One endpoint's limits: how many calls at once and how fast, when to try again, when to stop.

The only retry loop of the program. Calls wait in line; `Pace` says when the next may be sent. A call holds its place until
its response is committed, and gives it up while it waits to try again. Every outcome is one of: the answer, try again,
`CallFailed` (this call only) or `StopRun` (every call to this endpoint, from then on).

Ten failures in a row (5xx, broken connections), and as many as calls are in flight, open the circuit; so does one refused
connection where there were answers before. Then one call at a time goes out as a probe, every few seconds, until one is
answered. Neither such attempts nor refused rates use up a call's tries, of which it has twelve; but a call whose probes are
answered with 500, which may be its own fault, has only a few.
A 401 or 403 is believed when it comes a second time, for one call sent alone. An endpoint that answers nothing, accepts
nothing, or asks to wait, for longer than `max_wait_s` stops the run.
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
from typing import TYPE_CHECKING, TypeVar

from rlaif.errors import CallFailed, StopRun
from rlaif.pace import Flight, Pace
from rlaif.responses import ErrorInside, Rejected, Response, TransportError, error_fields, one_line, retry_after_s
from rlaif.types import Purchase

if TYPE_CHECKING:
    from rlaif import live

T = TypeVar("T")

MAX_WAIT_S = 900.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_SOON_S, _LATEST_SOON_S = 0.05, 0.25  # where others are answered
_FIRST_PROBE_S = 0.5
_RETRIED = {408, 409, 425, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds"}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_ATTEMPTS_TO_FIND = 5
_FAILURES_TO_OPEN, _CALLS_TO_OPEN = 10, 5
_PROBES_OF_ONE_CALL = 4
_LONGEST_SHOWN_S, _FAR_S = 1e9, 6 * 86400.0


@dataclass(slots=True, eq=False)
class _Call:
    """One call's tries. `alone` is set while it is sent as a probe; `probes` are those that were answered with 500.

    What was `begun` is finished first. `since`: when it was first sent.
    """

    kind: str
    tokens: int
    attempts: int = 0
    probes: int = 0
    since: float = math.inf
    begun: bool = False
    alone: bool = False
    refused_key: bool = False


class Endpoint:
    """The shared limits of every model behind one address."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        attempts: int = 12,
        max_wait_s: float = MAX_WAIT_S,
        longest_probe_s: float = 10.0,
    ) -> None:
        self.name, self.concurrency = name, concurrency
        self._pace = Pace(concurrency, rpm=rpm, tpm=tpm)
        self._line: deque[tuple[_Call, asyncio.Future[Flight]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._attempts, self._max_wait_s, self._longest_probe_s = attempts, max_wait_s, longest_probe_s
        self._stopped: StopRun | None = None
        self._wake: asyncio.Event | None = None
        self._accepted, self._accepted_at = 0, -math.inf
        self._retries = self._rate_limited = 0
        self._why_held = ""
        self._limited_since: float | None = None
        self._failed_in_a_row = 0
        self._failing: set[_Call] = set()
        self._storing = 0  # bodies that have come and are not read yet
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
        is no answer. Raises CallFailed or StopRun as the module says.
        """
        call = _Call(kind, tokens)
        while True:
            flight = await self._admitted(call)
            try:
                return await self._once(call, flight, send, purchase, read)
            except _Retry as retry:
                failed, counted = retry.failed, retry.counted
            except StopRun as reason:
                raise self.stop(reason) from None
            finally:
                self._pump()
            self._retries += 1
            call.begun = True
            if not counted:
                continue  # the pace waits for all
            call.attempts += 1
            call.since = min(call.since, flight.at)
            lost = failed.kind == "unreachable" and self._accepted == 0  # a wrong address, most likely
            if call.attempts >= (_ATTEMPTS_TO_FIND if lost else self._attempts):
                break
            await self._sleep(self._wait_s(call) * random.uniform(0.5, 1.0))
        said = f"{failed} ({call.attempts} attempts)"
        if failed.kind == "unreachable" or (failed.kind == "server_error" and self._accepted == 0):
            raise self.stop(StopRun(failed.kind, said))
        raise CallFailed(failed.kind, said)

    def _wait_s(self, call: _Call) -> float:
        """How long a call waits to try again: as long as nothing was answered, or hardly where it alone had bad luck."""
        if not self._accepted:
            return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**call.attempts)
        silent_s = time.monotonic() - max(self._accepted_at, call.since)
        return min(_LONGEST_WAIT_S, max(silent_s, min(_LATEST_SOON_S, _SOON_S * 2.0 ** (call.attempts - 1))))

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

    @property
    def stopped(self) -> StopRun | None:
        """Why it lets nothing out any more."""
        return self._stopped

    def state(self) -> live.EndpointState:
        """What it does now, for a person: calls in flight, limits, what it waits for and until when (Unix time)."""
        now = time.monotonic()
        pace = self._pace.state(now)
        until = self._pace.held_until
        held: live.Held | None = None
        if until > now and self._stopped is None:
            held = {"why": self._why_held, "until": time.time() + until - now}
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
        if call.begun and self._down_since is None:  # in an outage everyone probes in turn
            self._line.appendleft((call, waiting))
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
            self._storing += 1
            try:
                await purchase.keep(response.body)
            finally:
                self._storing -= 1
            try:
                answer = read(response.body)
            except ErrorInside as error:
                landed = error.status == 429
                raise self._refused(call, flight, error.status, response) from None
            except CallFailed as error:
                raise self._fail(call, error) from None
            landed = True
            now = time.monotonic()
            self._pace.answered(flight, now, getattr(answer, "tokens", None))
            self._accept(call, now)
            return answer
        finally:
            if call.alone:
                call.alone = self._probing = False
            if not landed:
                self._pace.failed(flight, time.monotonic())

    def _accept(self, call: _Call, now: float) -> None:
        self._accepted, self._accepted_at = self._accepted + 1, now
        self._limited_since = None
        if call.alone:  # what was sent before the doubt does not end it
            self._doubted = None
        self._alive(call)

    def _alive(self, call: _Call) -> None:
        """It answers, whatever it says. That closes the circuit, if it was asked since that opened."""
        if self._failed_in_a_row and (call.alone or self._down_since is None):
            self._failed_in_a_row = self._probes = 0
            self._failing.clear()
            self._down_since = None

    def _refused(self, call: _Call, flight: Flight, status: int, response: Response) -> Exception:
        """What a refusal means: a _Retry, a CallFailed or a StopRun, to be raised. A hold or a stop begins here."""
        now = time.monotonic()
        code, param, said = error_fields(response.body, _QUOTA_CODES | _TOO_LONG_CODES)
        short = f"{status}: {said.removesuffix('.')}"
        what = f"{self.name} answered {short}"
        wait = retry_after_s(response.headers) if status in _RETRIED or status >= 500 else None
        if status == 429:
            self._rate_limited += 1
            self._pace.refused(flight, now, wait)
        elif wait is not None:
            self._pace.hold(now, wait)
        if self._pace.held_until > now:
            self._why_held = short
        if status == 402 or code in _QUOTA_CODES:
            return self.stop(StopRun("quota", what))
        if status in (401, 403):
            return self._doubt(call, what)
        if status in (404, 405):
            return self.stop(StopRun("model", what))
        if wait is not None and wait > self._max_wait_s:
            asked = f"it asks to wait {min(wait, _LONGEST_SHOWN_S):.0f} s{_until(wait)}"
            return self.stop(StopRun("rate_limit", f"{what}; {asked}, more than {self._max_wait_s:.0f} (--max-wait)"))
        if status == 429:
            return self._limited(what, now)
        if status in _RETRIED or status >= 500:
            return self._fail(call, CallFailed("server_error", what), own=status == 500)
        self._alive(call)
        if code in _TOO_LONG_CODES or "context length" in said or "context size" in said:
            return CallFailed("too_long", what)
        return Rejected(what, said, param)

    def _doubt(self, call: _Call, what: str) -> Exception:
        """A refused key: asked once more, alone; then it is believed. One that others are accepted with uses up tries."""
        if call.alone and self._doubted is not None:
            return self.stop(StopRun("auth", what))
        again, call.refused_key = call.refused_key, True
        self._doubted = what
        return _Retry(CallFailed("auth", what), counted=again)

    def _limited(self, what: str, now: float) -> Exception:
        """Too many requests: the pace has taken note. Nothing accepted for too long, with nothing in flight, stops the run."""
        if self._limited_since is None:
            self._limited_since = now
        if now - self._limited_since > self._max_wait_s and not self._pace.in_flight:
            longest = f"for {self._max_wait_s:.0f} s (--max-wait)"
            return self.stop(StopRun("rate_limit", f"{what}; it has accepted nothing {longest}"))
        return _Retry(CallFailed("rate_limit", what), counted=False)

    def _fail(self, call: _Call, failed: CallFailed, *, own: bool = False) -> Exception:
        """A failure of the endpoint, or of this call's `own`: what comes of it for the call and for the circuit."""
        if failed.kind == "too_big":
            self._alive(call)
            return failed
        now, down = time.monotonic(), self._down_since is not None
        if not down and not self._opens(call, failed.kind):
            return _Retry(failed, counted=True)
        if down and not call.alone:  # sent before the circuit opened
            return _Retry(failed, counted=False)
        if self._down_since is None:
            self._down_since = now
        call.probes += down and own
        if call.probes >= _PROBES_OF_ONE_CALL:
            return CallFailed(failed.kind, f"{failed} (alone, {call.probes} times)")
        if now - self._down_since > self._max_wait_s:
            longest = f"for {self._max_wait_s:.0f} s (--max-wait)"
            return self.stop(StopRun("unreachable", f"{failed}; it has answered nothing {longest}"))
        wait = min(self._longest_probe_s, _FIRST_PROBE_S * 2.0 ** min(self._probes, 10)) * random.uniform(0.8, 1.0)
        self._probes += 1
        self._pace.hold(now, wait)
        why = str(failed).removeprefix(self.name).removeprefix(" answered").lstrip(": ")
        self._why_held = f"{why}; then one call tries again"
        return _Retry(failed, counted=False)

    def _opens(self, call: _Call, kind: str) -> bool:
        """Counts a failure. True if it opens the circuit: where it is no single call's fault.

        Failures come back sooner than answers, and are counted sooner, before they are stored: while more calls are in
        flight than have failed, or an answer is being stored, failures are not known to be in a row.
        """
        if kind not in ("server_error", "unreachable", "broken", "timeout"):
            return False
        self._failed_in_a_row += 1
        self._failing.add(call)
        if kind == "unreachable":
            return self._accepted > 0  # never reached: its calls' own tries end soon
        enough = min(_CALLS_TO_OPEN, max(2, self.concurrency))
        many = self._failed_in_a_row >= max(_FAILURES_TO_OPEN, self._pace.in_flight)
        return many and len(self._failing) >= enough and not self._storing


def _until(seconds: float) -> str:
    """The time here after so many seconds, in words; none for what is as good as never."""
    return time.strftime(", until %a %H:%M", time.localtime(time.time() + seconds)) if seconds < _FAR_S else ""


class _Retry(Exception):
    """The call is sent again; `counted`: that uses up a try."""

    def __init__(self, failed: CallFailed, *, counted: bool) -> None:
        super().__init__(str(failed))
        self.failed, self.counted = failed, counted
