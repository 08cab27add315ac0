from __future__ import annotations

import math
import random
from typing import Any

from rlaif.pace.knee import Knee
from rlaif.pace.quota import Quota, Share
from rlaif.pace.rate import Rate

_START = 32
_GROW_S, _GROW_BY = 0.25, 1.5
_SHRINK = 0.8
_FIRST_HOLD_S, _LONGEST_HOLD_S = 0.25, 30.0
_SOON_S = 1e-4


class Flight:
    """One call from its sending until it lands."""

    __slots__ = ("at", "kind", "level", "number", "share")

    def __init__(self, number: int, at: float, kind: str, level: int, share: Share | None) -> None:
        self.number, self.at, self.kind, self.level, self.share = number, at, kind, level, share


class Pace:
    def __init__(
        self, ceiling: int, *, rpm: float | None = None, tpm: float | None = None, rng: random.Random | None = None
    ) -> None:
        if ceiling < 1:
            raise ValueError(f"ceiling is {ceiling!r}: give the most calls at once, at least 1")
        self.ceiling = ceiling
        self.limit = float(min(ceiling, _START))
        self.in_flight = 0
        self.held_until = 0.0
        self._quota = Quota(rpm, tpm) if rpm is not None or tpm is not None else None
        self._rng = rng or random.Random(0)
        self._rate = Rate()
        self._knee = Knee(ceiling)
        self._number = 0
        self._wanted = False  # a call waits for the limit
        self._starting = True  # slow start: no trouble yet
        self._quiet = True  # nothing has come back yet
        self._saturated_at: float | None = None
        self._regrow = 0.0  # the limit before the last shrink
        self._mark = 0  # sends up to this number belong to the last episode
        self._episodes = 0  # in a row, without an answer in between

    def admit(self, now: float, tokens: int = 0) -> float:
        if self.in_flight > self.limit - 1.0:
            self._wanted = True
            if not self._quiet or self.limit >= self.ceiling:
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
        if self._saturated_at is None:
            self._saturated_at = now
        wait = self._saturated_at + _GROW_S - now
        if wait > 1e-9:
            return max(wait, _SOON_S)
        self._saturated_at = now
        self.limit = min(self.limit * _GROW_BY, float(self.ceiling))
        return 0.0 if self.in_flight <= self.limit - 1.0 else _GROW_S

    def sent(self, now: float, tokens: int = 0, kind: str = "") -> Flight:
        self._number = number = self._number + 1
        self.in_flight = level = self.in_flight + 1
        self._wanted = False
        self._rate.sent(now)
        return Flight(number, now, kind, level, None if self._quota is None else self._quota.sent(now, tokens))

    def answered(self, flight: Flight, now: float, tokens: int | None = None) -> None:
        self.in_flight -= 1
        self._quiet = False
        self._episodes = 0
        if tokens is not None and flight.share is not None and self._quota is not None:
            self._quota.used(flight.share, tokens)
        knee = self._knee
        limit = self.limit
        if self._wanted and limit < self.ceiling and knee.open:
            if self._starting or limit < self._regrow or self._rate.value is not None:
                limit += 1.0
            else:
                limit += 1.0 / limit
            self.limit = limit if limit < self.ceiling else float(self.ceiling)
        knee.learn(flight.kind, flight.level, now - flight.at)
        if knee.due:
            self._look(now)

    def _look(self, now: float) -> None:
        goal = self._knee.look(now, self.limit, self._wanted)
        if goal is not None:
            self._starting = self._knee.open
            self.limit = max(1.0, min(goal, float(self.ceiling)))

    def refused(self, flight: Flight, now: float, wait_s: float | None) -> bool:
        self.in_flight -= 1
        self._quiet = False
        if flight.share is not None and self._quota is not None:
            self._quota.used(flight.share, 0)
        new = flight.number > self._mark
        if wait_s is None or (wait_s <= 0.0 and self._episodes):
            held = 0.0
            if new:
                held = min(_FIRST_HOLD_S * 2**min(self._episodes, 20), _LONGEST_HOLD_S) * self._rng.uniform(0.5, 1.0)
        else:
            held = wait_s + min(0.05 * wait_s, 0.05) * self._rng.random()
        self.held_until = max(self.held_until, now + held)
        if new:
            self._mark = self._number
            self._episodes += 1
            self._starting = False
            if self._rate.value is None or flight.level > self.limit * _SHRINK:
                self._regrow = max(self.limit, 0.9 * self._regrow)
                self.limit = max(1.0, self.limit * _SHRINK)
            self._rate.episode(flight.number, flight.at, self.held_until, now, wait_s is not None and wait_s != int(wait_s))
            self._knee.disturbed()
        self._rate.refused()
        return new

    def failed(self, flight: Flight, now: float) -> None:
        self.in_flight -= 1

    def hold(self, now: float, wait_s: float) -> None:
        self.held_until = max(self.held_until, now + wait_s)

    def state(self, now: float) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "in_flight": self.in_flight,
            "rate": self._rate.value,
            "held_s": max(0.0, self.held_until - now),
        }
