"""How much a room takes: rates that change while it runs, what it says of when to come back, and a queue for its slots.

Times are seconds since the first request here; the room turns them into moments.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import cycle
from statistics import NormalDist
from typing import Protocol

from chaos.behaviour import Behaviour

_ROUNDING = 1e-9


class Plan:
    """Requests a second over time, in steps: `50:15,20:15,100`; the last stays, or all of them begin again."""

    def __init__(self, text: str, repeats: bool) -> None:
        parts = [part.partition(":") for part in text.split(",")]
        self._steps = [(float(rate), float(seconds or "inf")) for rate, _, seconds in parts]
        self._repeats, self._period = repeats, sum(seconds for _, seconds in self._steps)
        if any(rate < 0 or seconds <= 0 for rate, seconds in self._steps) or not any(rate for rate, _ in self._steps):
            raise ValueError(f"rates {text!r}: say RATE:SECONDS,... with some positive rate")
        if not all(math.isfinite(seconds) for _, seconds in self._steps[:-1]):
            raise ValueError(f"rates {text!r}: only the last one may stay for ever")

    @property
    def highest(self) -> float:
        """The highest rate of all."""
        return max(rate for rate, _ in self._steps)

    def spans(self, moment: float) -> Iterator[tuple[float, float]]:
        """(end, rate) of the steps from `moment` on."""
        around = self._repeats and math.isfinite(self._period)
        start = moment - moment % self._period if around else 0.0
        for rate, seconds in cycle(self._steps) if around else self._steps:
            start += seconds
            if start > moment:
                yield start, rate
        yield math.inf, self._steps[-1][0]

    def at(self, moment: float) -> float:
        """The rate at a moment."""
        return next(self.spans(moment))[1]

    def between(self, start: float, end: float) -> float:
        """Requests that the rate makes between two moments."""
        total = 0.0
        for until, rate in self.spans(start):
            total += rate * (min(until, end) - start)
            start = until
            if until >= end:
                break
        return total

    def when(self, start: float, amount: float) -> float:
        """The moment by which the rate has made `amount` requests since `start`."""
        for until, rate in self.spans(start):
            if rate and start + amount / rate <= until:
                return start + amount / rate
            if until == math.inf:
                break
            amount -= rate * (until - start)
            start = until
        return math.inf


class Limiter(Protocol):
    """Accepts requests at moments that never go back."""

    def free_at(self, now: float) -> float:
        """The first moment, `now` or later, at which a request is accepted if no other comes before it."""

    def take(self, now: float) -> None:
        """Accepts a request."""


class Bucket:
    """A token bucket: full at first."""

    def __init__(self, plan: Plan, burst: int) -> None:
        self._plan, self._burst = plan, max(1, burst)
        self._level, self._at = float(self._burst), 0.0

    def free_at(self, now: float) -> float:
        self._level = min(self._burst, self._level + self._plan.between(self._at, now))
        self._at = now
        return now if self._level >= 1 - _ROUNDING else self._plan.when(now, 1 - _ROUNDING / 2 - self._level)

    def take(self, now: float) -> None:
        self._level -= 1


class Sliding:
    """As many in any window as the rate of the moment allows."""

    def __init__(self, plan: Plan, window_s: float) -> None:
        self._plan, self._window_s = plan, window_s
        self._taken: deque[float] = deque()

    def free_at(self, now: float) -> float:
        while self._taken and self._taken[0] <= now - self._window_s + _ROUNDING:
            self._taken.popleft()
        for until, rate in self._plan.spans(now):
            over = len(self._taken) - int(rate * self._window_s + _ROUNDING) + 1
            if over <= 0:
                return now
            if over <= len(self._taken):
                free = max(now, self._taken[over - 1] + self._window_s)
                if free < until:
                    return free
            now = until
            if now == math.inf:
                break
        return math.inf

    def take(self, now: float) -> None:
        self._taken.append(now)


class Fixed:
    """As many in each window of the clock as the rate at its beginning allows."""

    def __init__(self, plan: Plan, window_s: float) -> None:
        self._plan, self._window_s = plan, window_s
        self._window, self._used = 0, 0

    def free_at(self, now: float) -> float:
        window = self._number(now)
        if window != self._window:
            self._window, self._used = window, 0
        if self._used < self._allowed(window):
            return now
        later = (w for w in range(window + 1, window + 1000) if self._allowed(w))
        return next((w * self._window_s for w in later), math.inf)

    def take(self, now: float) -> None:
        self._used += 1

    def _number(self, now: float) -> int:
        return int(now / self._window_s + _ROUNDING)

    def _allowed(self, window: int) -> int:
        return int(self._plan.at(window * self._window_s) * self._window_s + _ROUNDING)


def limiter(how: Behaviour) -> Limiter | None:
    """The limiter of a behaviour, None if it accepts everything."""
    if how.limit and how.rates:
        raise ValueError("limit and rates: set one of them")
    if how.limit:
        return Sliding(Plan(repr(how.limit / how.limit_s), False), how.limit_s)
    if not how.rates:
        return None
    plan = Plan(how.rates, how.rates_repeat)
    if how.rate_kind == "bucket":
        return Bucket(plan, how.rate_burst)
    if plan.highest * how.rate_window_s < 1 - _ROUNDING:
        raise ValueError(f"rates {how.rates!r}: no window of {how.rate_window_s} s ever takes a request")
    return (Sliding if how.rate_kind == "sliding" else Fixed)(plan, how.rate_window_s)


class Rates:
    """A limiter on the room's clock, which starts at its first request, and what came of it."""

    def __init__(self, how: Behaviour) -> None:
        self._how, self._limiter = how, limiter(how)
        self._began: float | None = None
        self._last = 0.0
        self.accepted = self.refused = 0

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._limiter is not None

    def refused_until(self, now: float) -> float | None:
        """None if the request is accepted, or the moment from which on one is."""
        if self._limiter is None:
            return None
        self._began = now if self._began is None else self._began
        self._last = now - self._began
        free = self._limiter.free_at(self._last)
        if free <= self._last:
            self._limiter.take(self._last)
            self.accepted += 1
            return None
        self.refused += 1
        return self._began + free

    def summary(self) -> dict[str, float]:
        """`allowed` is what a client would have had accepted that asked again whenever it could, from the first request
        to the last: it costs as much as asking so often."""
        greedy, allowed, moment = limiter(self._how), 0, 0.0
        while greedy is not None and self._began is not None and (moment := greedy.free_at(moment)) <= self._last:
            greedy.take(moment)
            allowed += 1
        return {"seconds": self._last, "allowed": allowed, "accepted": self.accepted, "refused": self.refused}


class Holds:
    """Counts the requests that came before the moment that the client had been told to wait for."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._heard: deque[tuple[float, float]] = deque()
        self._until = 0.0
        self.broken = 0

    def told(self, now: float, until: float) -> None:
        """The client is told now to come back at `until`."""
        self._heard.append((now + self._grace_s, until))

    def came(self, now: float) -> None:
        """A request came."""
        while self._heard and self._heard[0][0] <= now:
            self._until = max(self._until, self._heard.popleft()[1])
        self.broken += now < self._until


def duration(seconds: float) -> str:
    """As OpenAI writes durations: 20ms, 1.2s, 6m0s, 1h0m0s."""
    thousandths = math.ceil(seconds * 1000 - _ROUNDING)
    if thousandths < 1000:
        return f"{thousandths}ms"
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    said = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{said}" if hours else f"{minutes}m{said}" if minutes else said


def _date(seconds: float) -> tuple[dict[str, str], float]:
    moment = math.ceil(time.time() + seconds)
    return {"Retry-After": format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True)}, moment - time.time()


def _naive_date(seconds: float) -> tuple[dict[str, str], float]:
    headers, told = _date(seconds)
    return {"Retry-After": headers["Retry-After"].removesuffix(" GMT")}, told


SAYS: dict[str, Callable[[float], tuple[dict[str, str], float | None]]] = {
    "exact": lambda s: ({"Retry-After": f"{math.ceil(s * 1000) / 1000:.3f}"}, s),
    "ms": lambda s: ({"retry-after-ms": str(math.ceil(s * 1000))}, s),
    "seconds": lambda s: ({"Retry-After": str(math.ceil(s))}, math.ceil(s)),
    "date": _date,
    "naive_date": _naive_date,
    "reset_headers": lambda s: ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": duration(s)}, s),
    "none": lambda s: ({}, None),
}
"""The headers that tell a client to wait so many seconds, and the seconds that it was told."""


class Queue:
    """Works on at most `slots` requests at a time; the others wait in the order they came."""

    def __init__(self, how: Behaviour) -> None:
        self._how = how
        self._free = asyncio.Semaphore(how.slots) if how.slots else None
        self._active = 0
        self._normal = NormalDist()
        spread = math.log1p(how.service_cv**2)
        self._mu, self._sigma = -spread / 2, math.sqrt(spread)

    async def work(self, name: str, wanted: Callable[[], bool]) -> float | None:
        """Works on the request; returns when that began, None if it was no longer `wanted` when its turn came."""
        if self._free is None:
            return await self._served(name)
        async with self._free:
            return await self._served(name) if wanted() else None

    async def _served(self, name: str) -> float:
        began = time.monotonic()
        if self._how.service_s:
            seconds = self.seconds(name) * (1 + self._how.batch_slope * self._active)
            self._active += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._active -= 1
        return began

    def seconds(self, name: str) -> float:
        """How long the work on a request takes alone."""
        if not self._sigma:
            return self._how.service_s
        share = (int(name[-12:], 16) + 0.5) / 16.0**12
        return self._how.service_s * math.exp(self._mu + self._sigma * self._normal.inv_cdf(share))
