"""The requests per second that an endpoint sustains, learned from its refusals.

Endpoints limit requests per second (a token bucket, a window), not calls in flight. A refusal begins an *episode*: it says
that the allowance was used up when that call was sent. The spacing in force then is too short if the endpoint keeps no
spare, and the mean of the last second is what it bears if it does; which of the two to believe is learned as well. Sends
are paced at just under the estimate. From there the rate grows like CUBIC's window (Ha, Rhee & Xu 2008): steeply back to
the rate last refused, flat around it, and by doubling once nothing was refused where it used to be, for then the limit was
raised. How soon depends on what a refusal costs: requests refused, seconds held.

Some refusals have nothing to do with the rate: a gateway that is short of machines refuses one request in ten, however few
there are. What was sent between a refused call and the news of its refusal tells: where an allowance is used up, most of
these calls are refused as well. Where most of them are accepted, the rate was not much too high, if at all; if that goes on
while the rate falls, the sends are not paced any more. Where there are too few of them to tell, and the refusals come sooner
than the rate is back where it was refused, a volley is sent to find out: after a minute at the soonest, and ever more seldom.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

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
_MATES, _MOST_REFUSED = 8, 0.5  # so many sends after a refused one tell, and no more of them are refused by chance
_SURELY, _SURER = 16, 32  # so many where a rate was learned before, and to end the belief in chance
_UNTOLD = 2  # the first refusals are forgotten where these sends were too few to tell
_EARLY, _VOLLEY = 12, 10  # so many more refusals came too early than in time for a limit: then so many sends are not paced
_LATE = 1.1  # of the delay of the first refusal, the others are back
_TRUST_S, _LONGEST_TRUST_S = 60.0, 600.0  # for so long, and longer each time, a limit is not doubted again


@dataclass(slots=True)
class _Mates:
    """The sends after the `first`, which was refused, up to the `last` before that was known, at `rate`.

    By `due` nearly all that are `refused` have come back, which takes `delay_s`. `at_heels`: the episode is at the heels of
    another. `volley`: they are sent to find out.
    """

    first: int
    last: int
    due: float
    delay_s: float
    rate: float = 0.0
    at_heels: bool = False
    volley: bool = False
    refused: int = 0

    @property
    def count(self) -> int:
        """How many they are."""
        return self.last - self.first

    @property
    def few(self) -> bool:
        """Whether no more of them are refused than may be by chance."""
        return self.refused <= _MOST_REFUSED * self.count


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
        self._mates: _Mates | None = None  # of the call that began the last episode, until they are counted
        self._met = self._met_refused = 0  # mates counted since the last calm time, and the refused ones of them
        self._chance = False  # refusals come by chance: nothing is paced
        self._early = 0.0  # refusals too early for a limit, less half of the others
        self._volley = 0  # sends to come that are not paced
        self._trial, self._untold = False, 0  # paced until the mates tell; how often they were too few
        self._free = 0, 0.0, 0  # the number and time of the send since which nothing is paced, and the refusals since
        self._share = _GUESS, False  # the rate to begin with, and whether it is well known
        self._doubted = 0.0  # when the belief in chance began, or may begin
        self._trust_s = _TRUST_S / 2.0  # for so long it was ruled out the last time it was wrong

    @property
    def guards(self) -> bool:
        """Whether the number in flight may grow fast: sends are paced, or refusals come by chance as far as was ever seen."""
        return self.value is not None or (self._chance and self._trust_s < _TRUST_S)

    def began(self, now: float) -> None:
        """The first of all calls is sent: what is accepted is counted from here."""
        self._last = self._calm = 0, now
        self._free = 0, now, 0

    def sent(self, now: float) -> None:
        """Takes a slot. A send that had to wait for it is paced by the rate, which may grow then."""
        if self._mates is not None and now >= self._mates.due:
            self._count_mates(now)
        rate = self.value
        if rate is None:
            return
        sends = self._sends
        sends.append(now)
        while sends[0] < now - 1.0:
            sends.popleft()
        if self._volley:
            self._volley -= 1
            if not self._volley and self._mates is not None:
                self._mates.due = now + self._mates.delay_s
            return
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

    def refused(self, number: int) -> None:
        """Counts the refusal of the `number`-th send."""
        self._refused += 1
        self._refused_calm += 1
        if self.value is None:
            first, since, refused = self._free
            self._free = first, since, refused + 1
        if self._mates is not None and self._mates.first < number <= self._mates.last:
            self._mates.refused += 1

    def episode(self, number: int, at: float, now: float, held_until: float, exact: bool, last: int) -> None:
        """The refusal of the `number`-th send of `last`, made at `at`, begins an episode. Comes before its `refused`.

        `exact`: the endpoint said when the next request is due, to better than a second.
        """
        mates = self._mates
        if mates is not None:
            if now < mates.due and ((self._trial and mates.few) or (mates.volley and number <= mates.last)):  # not told yet
                self.slot = max(self.slot, held_until)
                return
            self._count_mates(now)
        before, since = self._last
        accepted = max(0, number - 1 - before - self._refused)
        held_s = max(held_until - now, 0.0)
        late = now - at
        delay_s = _LATE * late + _TIMER_S
        self._mates = mates = _Mates(number, last, now + delay_s, delay_s, (last - number) / max(late, 1e-3))
        if self._chance or self.value is None:
            # What was accepted may have been a burst: it is a second's share, unless the endpoint names a shorter spacing.
            due = 1.0 / max(held_s, 0.001) if exact and held_s < 0.25 else 0.0
            first, since, refused = self._free
            accepted = max(0, number - 1 - first - refused)
            self._share = max(accepted / max(at - since, 1.0), due, _GUESS), accepted >= _BURST
            if not self._chance:
                self._trial = True
                self._pace(held_until)
            self._last, self._refused = (number, at), 0
            return
        heels = self._heels
        self._early = max(0.0, self._early + (1.0 if self.value < _NEAR * self._known else -0.5))
        bound = self._bound(self.value, at)
        if not self._known or self._age > 0.5 * self._scale or self.value > _NEAR * self._known:
            self._after_calm(number, at, bound)
        else:
            self._at_heels(number, at, bound, accepted, held_s)
            mates.at_heels = self._heels > heels
        self.value = max(self.value, _LEAST)
        self._drop = max(0.06, 1.0 - self.value / self._known) if self._known else 0.0
        self._age = 0.0
        dear = max(self._cost / self.value / _REFUSED, self._patience * held_s / _HELD)
        self._scale = min(max(_SOONEST_S, dear), _LATEST_S)
        if self._early >= _EARLY and now >= self._doubted:
            self._early = 0.0
            self._volley = int(_VOLLEY + 2.0 * self.value)  # more than an allowance of a second
            self._mates = _Mates(last, last + self._volley, math.inf, delay_s, volley=True)
        self._last, self._refused = (number, at), 0
        self._resumed = self._paced_at = held_until
        self.slot = max(held_until, self._sends[-1] + 1.0 / self.value if self._sends else 0.0)

    def _count_mates(self, now: float) -> None:
        """Looks at what was sent between a refused call and the news of its refusal, and whether that was refused too."""
        assert self._mates is not None
        mates, self._mates = self._mates, None
        self._met += mates.count
        self._met_refused += mates.refused
        few = self._met_refused <= _MOST_REFUSED * self._met
        told = self._met >= _MATES
        if self._chance:
            told = self._met >= _SURER
            if told and not few:
                self._chance = False
                self._pace(now)
                if now - self._doubted > self._trust_s:
                    self._trust_s = _TRUST_S / 2.0
                self._disbelieve(now)
        elif self._trial:
            self._trial = False
            self._untold += 1
            if not told and few and self._untold < _UNTOLD:
                self.value = None
            elif told and few:
                self._believe_in_chance(now)
            told = told or self.value is not None
            if self.value is not None:
                self._doubted = max(self._doubted, now + _TRUST_S)
        elif mates.volley:
            told = True
            if mates.few:
                self._believe_in_chance(now)
            else:
                self._disbelieve(now)
        elif not mates.at_heels:
            told = True
        else:
            told = self._met >= _SURELY
            if told and few and now >= self._doubted:
                self._believe_in_chance(now)
        if told:
            self._met = self._met_refused = 0
            if self.value is None:
                self._free = mates.last, now, 0
        if self.value is not None and not mates.volley and mates.count >= _MATES and mates.few:
            borne = mates.rate * (1.0 - mates.refused / mates.count)
            self._known = max(self._known, borne)
            self.value = max(self.value, borne * _BACK)

    def _believe_in_chance(self, now: float) -> None:
        self.value, self._known, self._chance, self._doubted = None, 0.0, True, now

    def _disbelieve(self, now: float) -> None:
        self._trust_s = min(2.0 * self._trust_s, _LONGEST_TRUST_S)
        self._doubted = now + self._trust_s

    def _pace(self, start: float) -> None:
        """Paces the sends from `start` on, at the rate of those that were accepted by now."""
        self.value, sure = self._share
        self._known = self.value if sure else 0.0
        self._drop, self._age = 0.06, 0.0
        self._scale = min(max(_SOONEST_S, self._cost / self.value / _REFUSED), _LATEST_S)
        self._sends.clear()
        self._guarded = False
        self._resumed = self._paced_at = self.slot = start

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
