"""One endpoint's controller: what may be sent now, and what each outcome says."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from rlaif.pace.knee import Knee
from rlaif.pace.quota import Quota, Share
from rlaif.pace.rate import Rate

_START = 32
_GROW_S, _GROW_BY = 0.2, 1.5
_SHRINK = 0.8
_FIRST_HOLD_S, _LONGEST_HOLD_S = 0.25, 30.0
_JITTER, _JITTER_S = 0.05, 0.05  # of a Retry-After, and at most
_SOON_S = 1e-4  # no shorter wait is asked for: a clock may not tell the difference


@dataclass(slots=True)
class Flight:
    """One call from its sending until it lands: the `number`-th sent, the `level`-th in flight then."""

    number: int
    at: float
    kind: str
    level: int
    share: Share | None


class Pace:
    """Decides when one endpoint may be sent a call. `now` is in monotonic seconds and never goes back.

    Every call that is `sent` must land once: `answered`, `refused` or `failed`.
    """

    def __init__(
        self, ceiling: int, *, rpm: float | None = None, tpm: float | None = None, rng: random.Random | None = None
    ) -> None:
        if ceiling < 1:
            raise ValueError(f"the most calls at once is {ceiling!r}: give at least 1")
        self.limit = float(min(ceiling, _START))
        self.in_flight = 0
        self.held_until = 0.0
        self._ceiling = float(ceiling)
        self._quota = Quota(rpm, tpm) if rpm is not None or tpm is not None else None
        self._rng = rng or random.Random(0)
        self._rate = Rate()
        self._knee = Knee(ceiling)
        self._number = 0  # calls sent
        self._wanted = False  # a call waits because of the limit
        self._starting = True  # slow start: no sign of trouble yet
        self._silent = True  # nothing has come back yet
        self._saturated_at: float | None = None  # while silent: since when, or since the last growth
        self._regrow = 0.0  # the limit before the last shrink
        self._mark = 0  # refusals of calls up to this number belong to the last episode
        self._shrunk = -ceiling  # calls sent before the last shrink
        self._episodes = 0  # in a row, no answer in between

    def admit(self, now: float, tokens: int = 0) -> float:
        """0.0: a call of about `tokens` may be sent. Else the seconds until asking again makes sense.

        Infinite where only a landing helps; asking again after every landing is always right.
        """
        if self.in_flight > self.limit - 1.0:
            self._wanted = True
            if not self._silent or self.limit >= self._ceiling:
                return math.inf
            wait = self._grow_unanswered(now)
            if wait:
                return wait
        wait = self.held_until - now
        rate = self._rate
        if rate.value is not None and rate.slot - now > wait:
            wait = rate.slot - now
        if self._quota is not None:
            wait = max(wait, self._quota.wait(now, tokens))
        if wait <= 1e-9:
            return 0.0
        return wait if wait > _SOON_S else _SOON_S

    def _grow_unanswered(self, now: float) -> float:
        """Slow start by time: a refusal comes back at once, an answer of a reasoning model after a minute."""
        if self._saturated_at is None:
            self._saturated_at = now
        wait = self._saturated_at + _GROW_S - now
        if wait > 1e-9:
            return max(wait, _SOON_S)
        self._saturated_at = now
        self.limit = min(self.limit * _GROW_BY, self._ceiling)
        return 0.0 if self.in_flight <= self.limit - 1.0 else _GROW_S

    def sent(self, now: float, tokens: int = 0, kind: str = "") -> Flight:
        """Counts a call in flight. Calls of one `kind` have like latencies."""
        if self._number == 0:
            self._rate.began(now)
        self._number += 1
        self.in_flight += 1
        self._wanted = False
        self._knee.sent[kind] += 1
        self._rate.sent(now)
        share = None if self._quota is None else self._quota.sent(now, tokens)
        return Flight(self._number, now, kind, self.in_flight, share)

    def answered(self, flight: Flight, now: float, tokens: int | None = None) -> None:
        """The call has its answer, which used `tokens`; None: unknown, the estimate stands."""
        self.in_flight -= 1
        self._silent = False
        self._episodes = 0
        if tokens is not None and flight.share is not None and self._quota is not None:
            self._quota.used(flight.share, tokens)
        knee, limit = self._knee, self.limit
        if self._wanted:
            most = min(self._ceiling, knee.cap)
            if limit < most:
                # Doubling a round trip back to where it was; past that one a round trip, unless the rate guards the way.
                quick = self._starting or limit < self._regrow or self._rate.guards
                self.limit = limit = min(limit + (1.0 if quick else 1.0 / limit), most)
        knee.learn(flight.kind, flight.number, flight.level, now - flight.at)
        if knee.due:
            found = knee.look(now, self._number, limit, self._wanted)
            if found is not None:
                self._starting = knee.cap == math.inf
                self.limit = max(1.0, min(found, self._ceiling))

    def refused(self, flight: Flight, now: float, wait_s: float | None) -> bool:
        """The call was refused as one too many (429); `wait_s` is its Retry-After. True: a new episode.

        One shrink an episode: refusals of calls that were under way when the last one began belong to it. None either
        where the learned rate kept the limit from being reached.
        """
        self.in_flight -= 1
        self._silent = False
        if flight.share is not None and self._quota is not None:
            self._quota.used(flight.share, 0)
        new = flight.number > self._mark
        held_s = 0.0
        if wait_s is not None and (wait_s > 0.0 or not self._episodes):
            held_s = max(wait_s, 0.0) + min(_JITTER * max(wait_s, 0.0), _JITTER_S) * self._rng.random()
        elif new:
            held_s = min(_FIRST_HOLD_S * 2.0 ** min(self._episodes, 20), _LONGEST_HOLD_S) * self._rng.uniform(0.5, 1.0)
        self.held_until = max(self.held_until, now + held_s)
        if new:
            self._mark = self._number
            self._episodes += 1
            self._starting = False
            if flight.number > self._shrunk + self.limit if self._rate.value is None else flight.level > _SHRINK * self.limit:
                self._shrunk = self._number
                self._regrow = max(self.limit, 0.9 * self._regrow)
                self.limit = max(1.0, _SHRINK * self.limit)
                self._knee.disturbed(now)
            exact = wait_s is not None and wait_s % 1.0 != 0.0
            self._rate.episode(flight.number, flight.at, now, self.held_until, exact, self._number)
        self._rate.refused(flight.number)
        return new

    def failed(self, flight: Flight, now: float) -> None:
        """The call came to nothing (5xx, a broken connection, a timeout), which says nothing of limits."""
        self.in_flight -= 1

    def hold(self, now: float, wait_s: float) -> None:
        """No send for `wait_s`, for a reason of the caller's."""
        self.held_until = max(self.held_until, now + wait_s)

    def state(self, now: float) -> dict[str, Any]:
        """For a display: `limit`, `in_flight`, `rate` (learned requests/s or None), `held_s`."""
        held_s = max(0.0, self.held_until - now)
        return {"limit": self.limit, "in_flight": self.in_flight, "rate": self._rate.value, "held_s": held_s}
