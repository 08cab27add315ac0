"""One endpoint's limits: how many calls at once, when to try again, when to stop.

The only retry loop of the program. A call holds its place until its response is committed, and gives it up while it
waits to try again or is held. Every outcome is one of: the body, try again, `CallFailed` (this call only) or `StopRun`
(every call to this endpoint, from then on).
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rlaif.errors import CallFailed, StopRun
from rlaif.types import Keep

MAX_HOLD_S = 900.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 30.0
_RETRIED = {408, 409, 425, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_funds"}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_ATTEMPTS_TO_FIND = 5


@dataclass(frozen=True, slots=True)
class Response:
    """What came back over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No response: the connection failed (`reached` False) or broke or timed out (`reached` True)."""

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


class Rejected(CallFailed):
    """The endpoint refuses this request as it is (400, 413, 422): `said` in its own words.

    `param` names the field it complains of, "" if it names none.
    """

    def __init__(self, message: str, said: str, param: str) -> None:
        super().__init__("bad_request", message)
        self.said, self.param = said, param


class ErrorInside(CallFailed):
    """A response with status 200 that holds an error object, to be treated like `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("error_inside", message)
        self.status = status


class Endpoint:
    """The shared limits of every model behind one address."""

    def __init__(self, name: str, *, concurrency: int, attempts: int = 8) -> None:
        self.name, self.concurrency = name, concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._attempts = attempts
        self._held_until = 0.0
        self._stopped: StopRun | None = None
        self._wake: asyncio.Event | None = None
        self._accepted = 0

    async def call(self, send: Callable[[], Awaitable[Response]], keep: Keep, check: Callable[[bytes], object]) -> bytes:
        """Sends until there is a kept body that passes `check`, and returns it.

        `check` raises CallFailed on a body that is no answer. Raises CallFailed or StopRun as the module says. A rate
        limit uses up an attempt only if nothing was accepted since this call's last one: while the endpoint works,
        waiting is all it takes.
        """
        attempt, began = 0, self._accepted
        seen = began
        while True:
            try:
                async with self._place():
                    return await self._once(send, keep, check)
            except _Retry as retry:
                failed = retry.failed
            if failed.kind != "rate_limit" or self._accepted == seen:
                attempt += 1
            seen = self._accepted
            lost = failed.kind == "unreachable" and self._accepted == 0  # a wrong address, most likely
            if attempt >= (_ATTEMPTS_TO_FIND if lost else self._attempts):
                break
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** max(0, attempt - 1))
            await self._sleep(wait * random.uniform(0.5, 1.0))
        said = f"{failed} ({attempt} attempts)"
        if failed.kind == "unreachable" or (failed.kind == "rate_limit" and self._accepted == began):
            raise self.stop(StopRun(failed.kind, said))
        raise CallFailed(failed.kind, said)

    def stop(self, reason: StopRun) -> StopRun:
        """Lets no further call out and ends every wait; returns the first reason given. Called in the loop's thread."""
        self._stopped = self._stopped or reason
        if self._wake is not None:
            self._wake.set()
        return self._stopped

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """A place among the calls in flight, after any hold. Raises StopRun if the endpoint is stopped."""
        while True:
            while (wait := self._held_until - time.monotonic()) > 0:
                await self._sleep(wait)
            async with self._slots:
                if self._stopped:
                    raise self._stopped
                if self._held_until <= time.monotonic():
                    yield
                    return

    async def _sleep(self, seconds: float) -> None:
        """Waits, not longer than until the endpoint is stopped; raises StopRun then."""
        self._wake = self._wake or asyncio.Event()
        if self._stopped is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)
        if self._stopped:
            raise self._stopped

    async def _once(self, send: Callable[[], Awaitable[Response]], keep: Keep, check: Callable[[bytes], object]) -> bytes:
        try:
            response = await send()
        except TransportError as error:
            raise _Retry(CallFailed("broken" if error.reached else "unreachable", f"{self.name}: {error}")) from None
        if response.status != 200:
            raise self._classify(response.status, response.headers, response.body)
        try:
            await keep(response.body)
        except StopRun as reason:
            raise self.stop(reason) from None
        try:
            check(response.body)
        except ErrorInside as error:
            raise self._classify(error.status, response.headers, response.body) from None
        except CallFailed as error:
            raise _Retry(error) from None
        self._accepted += 1
        return response.body

    def _classify(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """What a refusal means: a _Retry, a CallFailed or a StopRun, to be raised."""
        code, param, said = _error_fields(body)
        what = f"{self.name} answered {status}: {said}"
        if status == 402 or code in _QUOTA_CODES:
            return self.stop(StopRun("quota", what))
        if status in (401, 403):
            return self.stop(StopRun("auth", what))
        if status in (404, 405):
            return self.stop(StopRun("model", what))
        if status in _RETRIED or status >= 500:
            wait = retry_after_s(headers)
            if wait is not None and wait > MAX_HOLD_S:
                return self.stop(StopRun("rate_limit", f"{what}; it asks to wait {wait:.0f} s, more than {MAX_HOLD_S:.0f}"))
            if wait is not None:
                self._held_until = max(self._held_until, time.monotonic() + wait)
            return _Retry(CallFailed("rate_limit" if status == 429 else "server_error", what))
        if code in _TOO_LONG_CODES or "context length" in said or "context size" in said:
            return CallFailed("too_long", what)
        return Rejected(what, said, param)


class _Retry(Exception):
    def __init__(self, failed: CallFailed) -> None:
        self.failed = failed


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait (`retry-after-ms`, `retry-after` in seconds or as a date), None if it does not."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * scale
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        parsed = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        seconds = parsed.timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _error_fields(body: bytes) -> tuple[str, str, str]:
    """(code, param, message) of an OpenAI-style error body; the message falls back to the body's beginning."""
    text = " ".join(body[:2000].decode("utf-8", "replace").split())[:300]
    try:
        error: Any = json.loads(body)
    except ValueError:
        return "", "", text or "(empty body)"
    if isinstance(error, dict):
        error = error.get("error", error)
    if isinstance(error, dict):
        codes = {str(error.get("code") or ""), str(error.get("type") or "")}
        known = codes & (_QUOTA_CODES | _TOO_LONG_CODES)
        return known.pop() if known else "", str(error.get("param") or ""), str(error.get("message") or text)[:500]
    return "", "", str(error)[:500]
