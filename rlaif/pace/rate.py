"""The requests per second that an endpoint sustains, learned from its refusals.

Endpoints limit requests per second (a token bucket, a window), not calls in flight. A refusal begins an *episode*: it says
that the allowance was used up when that call was sent. The spacing in force then is too short if the endpoint keeps no
spare, and the mean of the last second is what it bears if it does; which of the two to believe is learned as well. Sends
are paced at just under the estimate. From there the rate grows like CUBIC's window (Ha, Rhee & Xu 2008): steeply back to
the rate last refused, flat around it, and by doubling once nothing was refused where it used to be, for then the limit was
raised. How soon depends on what a refusal costs: requests refused, seconds held.
"""

from __future__ import annotations

from collections import deque

_BACK = 0.94  # of a rate that was refused after a calm time
_STEEP = (0.95, 0.9, 0.7, 0.6)  # of one refused at the heels of another, by how many there were
_DEAR_S, _SKIP = 0.1, 2  # where each costs such a hold, the first of these are skipped
_FEW, _MILD = 8, 0.8  # a rate that bore more than so many requests was not far off
_NEAR = 0.98  # so close to the known rate, a refusal says that this one was a little too high
_SURE, _KEEP = 0.55, 0.95  # a known rate of which so much was borne among refusals is kept, nearly
_PASSED = 1.003  # a rate so far above the known one was raised
_RAISED = 1.06
_DOUBLING_S, _SEARCH_S = 0.5, 0.4
_REFUSED, _HELD = 0.033, 0.35  # about the share of requests, and of time, that growing may cost
_SOONEST_S, _LATEST_S = 0.6, 10.0
_BURST = 16  # so many accepted at the beginning tell the rate
_PATIENT, _PATIENCE = 1.5, 3.0  # growth waits longer each time that a dear refusal confirms the rate
_TIMER_S = 0.005  # lateness of timers, made up for only where the spacing is shorter
_LEAST, _GUESS = 1 / 60, 4.0  # requests per second
_SPARING = 1.0  # slower than this only where something is accepted between refusals: else they are an outage
_FORGET_S = 60.0


class Rate:
    """`value`: requests per second, None while unknown or of no matter. `slot`: no send before it."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.slot = 0.0
        self._known = 0.0  # the rate last refused after a calm time; 0.0: still searched for
        self._drop = 0.0  # the fall from it, as a share of it
        self._age = 0.0  # seconds of paced sending since
        self._scale = 1.0  # of these until the known rate is reached again
        self._paced_at = 0.0
        self._sends: deque[float] = deque()  # in the last second
        self._last = 0, 0.0  # number and time of the send that began the last episode
        self._calm = 0, 0.0  # the same of the last one after a calm time
        self._resumed = 0.0  # when the last hold ended
        self._refused = self._refused_calm = 0  # refusals since then, each
        self._heels = 0  # episodes at the heels of the calm one
        self._spare = 0.5  # how far the mean of the last second is believed, 0.0 to 1.0
        self._patience = 1.0
        self._cost = 1.0  # refusals an episode, decayed mean
        self._guarded = False  # the last episode was of paced sends, not of the herd that came before them

    def began(self, now: float) -> None:
        """The first of all calls is sent: what is accepted is counted from here."""
        self._last = self._calm = 0, now

    def sent(self, now: float) -> None:
        """Takes a slot. A send that had to wait for it is paced by the rate, which may grow then."""
        rate = self.value
        if rate is None:
            return
        sends = self._sends
        sends.append(now)
        while sends[0] < now - 1.0:
            sends.popleft()
        late, gap = now - self.slot, 1.0 / rate
        if late < max(_TIMER_S, 0.25 * gap):
            self._paced_at = now
            self._age += gap
            self.value = self._grown(rate, gap)
            self.slot = max(self.slot, now - max(0.0, _TIMER_S - gap)) + gap
        else:
            self.slot = now + gap
            if now - self._paced_at > _FORGET_S:
                self.value = None

    def _grown(self, rate: float, gap: float) -> float:
        if not self._known:
            return rate * min(2 ** (gap / _SEARCH_S), 1.5)
        if rate >= self._known * _PASSED:
            return rate * min(2 ** (gap / _DOUBLING_S), 1.25)
        x = self._age / self._scale - 1.0
        return max(rate, min(self._known * (1.0 + self._drop * x * x * x), rate * 1.25))

    def refused(self) -> None:
        """Counts one refusal."""
        self._refused += 1
        self._refused_calm += 1

    def episode(self, number: int, at: float, now: float, held_until: float, exact: bool) -> None:
        """The refusal of the `number`-th send, made at `at`, begins an episode. Comes before its `refused`.

        `exact`: the endpoint said when the next request is due, to better than a second.
        """
        held_s = max(held_until - now, 0.0)
        before, since = self._last
        accepted = max(0, number - 1 - before - self._refused)
        if self.value is None:
            # The beginning was a burst: take it for a second's share, unless the endpoint names a shorter spacing.
            due = 1.0 / max(held_s, 0.001) if exact and held_s < 0.25 else 0.0
            self.value = max(accepted / max(at - since, 1.0), due, _GUESS)
            self._known = self.value if accepted >= _BURST else 0.0
            self._sends.clear()
            self._guarded = False
        else:
            bound = self._bound(self.value, at)
            if not self._known or self._age > 0.5 * self._scale or self.value > _NEAR * self._known:
                self._after_calm(number, at, bound)
            else:
                self._at_heels(number, at, bound, accepted, held_s)
        self.value = max(self.value, _LEAST)
        self._drop = max(0.06, 1.0 - self.value / self._known) if self._known else 0.0
        self._age = 0.0
        dear = max(self._cost / self.value / _REFUSED, self._patience * held_s / _HELD)
        self._scale = min(max(_SOONEST_S, dear), _LATEST_S)
        self._last, self._refused = (number, at), 0
        self._resumed = self._paced_at = held_until
        self.slot = max(held_until, self._sends[-1] + 1.0 / self.value if self._sends else 0.0)

    def _bound(self, rate: float, at: float) -> float:
        """What the endpoint may bear, given that `rate` was refused at `at`."""
        first = max(at - 1.0, self._resumed)
        if at - first <= 0.25:
            return rate
        mean = (1.0 + sum(1 for sent in self._sends if first <= sent < at)) / (at - first)
        return float(rate * min(1.0, mean / rate) ** self._spare)

    def _after_calm(self, number: int, at: float, bound: float) -> None:
        assert self.value is not None
        if self._known and self._guarded:
            self._cost += 0.3 * (self._refused - self._cost)
        self._guarded = True
        if self.value > _RAISED * self._known:  # the endpoint bore more than was known
            self._spare = max(0.0, self._spare - 0.3)
            self._patience = 1.0
        else:
            self._patience = min(self._patience * _PATIENT, _PATIENCE)
        self._calm, self._refused_calm, self._heels = (number, at), 0, 0
        self._known, self.value = bound, bound * _BACK

    def _at_heels(self, number: int, at: float, bound: float, accepted: int, held_s: float) -> None:
        assert self.value is not None
        rate = self.value
        if not accepted and rate <= _SPARING:
            return
        self._heels += 1
        self._spare = min(1.0, self._spare + 0.3)
        steep = _MILD
        if accepted < _FEW:
            steep = _STEEP[min(self._heels + (_SKIP if held_s > _DEAR_S else 0), len(_STEEP)) - 1]
        # The allowance was used up at the calm refusal: what was accepted since then came in at the endpoint's rate.
        first, began = self._calm
        since = number - 1 - first - self._refused_calm
        borne = since / max(at - began, 1e-3) if since >= 4 else 0.0
        if borne > _SURE * self._known:
            self._known *= _KEEP
        else:
            self._known = max(borne, min(bound, rate * (1.0 + steep) / 2.0))
            self._patience = 1.0
        self.value = min(max(borne, min(bound, rate * steep)), self._known)
