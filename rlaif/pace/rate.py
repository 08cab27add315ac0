"""The requests per second that an endpoint sustains, learned from its refusals."""

from __future__ import annotations

from collections import deque

_BACK = 0.94  # of a rate that was refused after a calm time
_STEEP = (0.95, 0.9, 0.7, 0.6)  # and of one that was refused again at once, and again
_BEND = 1.003  # past this multiple of the last known rate it was raised
_DOUBLING_S = 0.5
_SEARCHING_S = 0.4
_FORGET_S = 60.0
_SOONEST_S, _LATEST_S = 0.6, 10.0
_REFUSED, _HELD = 0.04, 0.35
_LATE_S = 0.005
_DOUBT = 0.3
_SKIP = 2
_NEAR = 0.98
_FEW, _MILD = 8, 0.9
_PATIENT, _MOST = 1.5, 6.0
_HALF, _KEEP = 0.55, 0.95
_ENOUGH = 4


class Rate:
    """`value`: requests per second, None while unknown or of no matter. `slot`: no send before it."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.slot = 0.0
        self._known = 0.0  # the rate that was last refused after a calm time; 0.0: only searched for
        self._age = 0.0  # paced seconds since the last episode
        self._scale = 1.0  # paced seconds until the known rate is reached again
        self._paced_at = 0.0
        self._since: tuple[int, float] = (0, 0.0)  # number and time of the send whose refusal began the last episode
        self._refused = 0  # since then
        self._cost_refused, self._cost_held = 1.0, 0.0  # of an episode, decayed means
        self._resumed = 0.0
        self._trust = 0.5
        self._patience = 1.0
        self._calm: tuple[int, float] = (0, 0.0)
        self._refused_calm = 0
        self._again = 0  # episodes at the heels of the last calm one
        self._drop = 0.0
        self._sends: deque[float] = deque()

    def sent(self, now: float) -> None:
        """Takes a slot. A send that waited for its slot is paced by the rate, which then may grow."""
        sends = self._sends
        sends.append(now)
        while sends[0] < now - 1.0:
            sends.popleft()
        rate = self.value
        if rate is None:
            return
        late, gap = now - self.slot, 1.0 / rate
        if late < max(_LATE_S, 0.25 * gap):
            self._paced_at = now
            self._age += gap
            self.value = self._grown(rate, gap)
            self.slot = max(self.slot, now - max(0.0, _LATE_S - gap)) + gap
        else:
            if now - self._paced_at > _FORGET_S:
                self.value = None
            self.slot = now + gap

    def _grown(self, rate: float, gap: float) -> float:
        if not self._known:
            return rate * min(2 ** (gap / _SEARCHING_S), 1.5)
        if rate >= self._known * _BEND:
            return rate * min(2 ** (gap / _DOUBLING_S), 1.25)
        x = self._age / self._scale - 1.0
        return max(rate, min(self._known * (1.0 + self._drop * x * x * x), rate * 1.25))

    def refused(self) -> None:
        """Counts one request that was refused."""
        self._refused += 1
        self._refused_calm += 1

    def episode(self, number: int, at: float, held_until: float, now: float, exact: bool) -> None:
        """A refusal of the `number`-th send, made at `at`, began an episode that holds sends for `held_s`.

        `exact`: the endpoint said when the next request is due, to better than a second.
        """
        held_s = held_until - now
        before, since = self._since
        accepted = max(0, number - 1 - before - self._refused)
        took = max(at - since, 1e-3)
        rate = self.value
        if rate is not None:
            first = max(at - 1.0, self._resumed)
            bound = rate
            if at - first > 0.25:
                mean = (1.0 + sum(1 for t in self._sends if first <= t < at)) / (at - first)
                bound *= min(1.0, mean / rate) ** self._trust
        if rate is None:
            soon = 1.0 / max(held_s, 0.001) if exact and held_s < 0.25 else 0.0
            self.value = max(accepted / max(took, 1.0), soon, 4.0 if held_s < 2 else 1.0 / held_s)
            self._known = 0.0
        elif not self._known or self._age > 0.5 * self._scale or rate > _NEAR * self._known:  # after a calm time
            if self._known:
                self._cost_refused += 0.3 * (self._refused - self._cost_refused)
            self._again = self._refused_calm = 0
            self._calm = number, at
            if rate > self._known * 1.06:
                self._trust = max(0.0, self._trust - _DOUBT)
                self._patience = 1.0
            elif self._known:
                self._patience = min(self._patience * _PATIENT, _MOST)
            self._known, self.value = bound, bound * _BACK
        else:
            self._again += 1
            number0, at0 = self._calm
            accepted = number - 1 - number0 - self._refused_calm
            floor = accepted / max(at - at0, 1e-3) if accepted >= _ENOUGH else 0.0
            self._trust = min(1.0, self._trust + 0.3)
            few = accepted < _FEW
            steep = _STEEP[min(self._again + (_SKIP if held_s > 0.1 else 0), len(_STEEP)) - 1] if few else _MILD
            floor = min(floor, bound)
            if floor > _HALF * self._known:
                self._known *= _KEEP
            else:
                self._known = max(floor, bound * (1 + steep) / 2)
                self._patience = 1.0
            self.value = min(max(floor, bound * steep), self._known)
        self._since, self._refused = (number, at), 0
        self._cost_held = held_s
        self._drop = max(0.06, 1.0 - self.value / self._known) if self._known else 0.0
        self._age = 0.0
        cheap = self._cost_refused / self.value / _REFUSED
        self._scale = min(max(_SOONEST_S, cheap, self._patience * self._cost_held / _HELD), _LATEST_S)
        self._resumed = held_until
        self.slot = max(held_until, self._sends[-1] + 1.0 / self.value)
