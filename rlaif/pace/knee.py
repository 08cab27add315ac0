"""Where more calls at once stop buying throughput: for endpoints that queue and never refuse.

By Little's law (1961) throughput is concurrency / latency. Latencies are kept by the concurrency at which their call was
sent, two bins an octave, and by kind, for outputs differ in length; two bins are compared over the kinds that both saw, in
the same mix, so that a shift from short calls to long ones does not look like a queue. The useful limit is the least
concurrency with 85 % of the best throughput seen, and 40 % above it, so that the server's slots stay full. Only bins that
saw calls lately count. Where these do not tell, a trial does: half the limit when latency has risen, half as much again
when it has fallen, and now and then.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

_USEFUL = 0.85  # of the best throughput
_SLACK = 1.4
_WINDOW = 512  # latencies that a mean remembers
_COHORT = 128  # calls that judge a trial, at most
_LATELY = 1024  # answers, or eight for each call in flight
_LEAST = 4  # latencies of a kind that make it count in a bin
_LOOK = 32  # answers between two looks
_SURE, _SURER = 2.5, 3.5  # standard errors
_DOWN, _UP = 0.5, 1.5
_SHIFT = 0.12  # of a latency's logarithm that asks for a trial
_FIRST_TRIAL_S, _LAST_TRIAL_S = 10.0, 300.0


class _Cell:
    """Latencies of one kind in one bin: decayed mean, variance and mean concurrency."""

    __slots__ = ("count", "level", "mean", "seen", "variance")

    def __init__(self) -> None:
        self.count = self.seen = 0
        self.mean = self.variance = self.level = 0.0


class Knee:
    """`cap`: the limit that latencies speak for, infinite while nothing speaks against more. `due`: to `look` again."""

    def __init__(self, ceiling: int) -> None:
        self.cap = math.inf
        self.due = False
        self._ceiling = float(ceiling)
        self._bins = [0] + [int(2 * math.log2(n) + 1e-9) for n in range(1, ceiling + 1)]
        self._cells: dict[str, list[_Cell]] = {}
        self.sent: Counter[str] = Counter()  # calls of each kind, of late
        self._seen = 0  # answers
        self._look_at = _LOOK
        self._home = math.inf  # the cap to go back to from a trial
        self._trial = 0.0  # the limit on trial; 0.0: none
        self._first = self._last = self._landed = 0  # it is judged by the calls in between, of which so many have landed
        self._since = 0.0  # when the limit last changed by what is done here
        self._ask = 0.0  # the factor of a trial that is asked for
        self._pause_s = _FIRST_TRIAL_S  # until the next trial that nothing asks for
        self._again_at = 0.0  # no trial before it
        self._settled = 0  # answers seen when the limit last changed
        self._usual: dict[str, float] = {}  # kind -> mean latency once it had

    def learn(self, kind: str, number: int, level: int, latency: float) -> None:
        """Adds the latency of the `number`-th call, which was sent as the `level`-th in flight."""
        self._seen = seen = self._seen + 1
        self.due = seen >= self._look_at
        if self._trial:
            # A trial is judged by the calls sent first in it. Of later ones only the short land in time, and of those
            # that it found in flight the long are left.
            if not self._first < number <= self._last:
                return
            self._landed += 1
        cells = self._cells.get(kind)
        if cells is None:
            cells = self._cells[kind] = [_Cell() for _ in range(self._bins[-1] + 1)]
        cell = cells[self._bins[level if level <= self._ceiling else -1]]
        count = cell.count
        if count < _WINDOW:
            cell.count = count = count + 1
        elif seen - cell.seen > 4 * _LATELY:
            cell.count = count = 1
        cell.seen = seen
        off = max(latency, 1e-6) - cell.mean
        cell.mean += off / count
        cell.variance += (off * off * (count - 1) / count - cell.variance) / count
        cell.level += (level - cell.level) / count

    def disturbed(self, now: float) -> None:
        """The limit was moved by a refusal: a trial under way says nothing."""
        if self._trial:
            self._go_home(now)

    def look(self, now: float, number: int, limit: float, saturated: bool) -> float | None:
        """A new limit, None to leave it as it is. Sets `cap`. `number`: of the call that was sent last."""
        self.due = False
        self._look_at = self._seen + max(_LOOK, int(limit) // 2)
        if sum(self.sent.values()) > 4 * _LATELY:
            for kind in self.sent:
                self.sent[kind] //= 2
        if self._trial:
            return self._judge(now)
        points = self._curve(self._seen - max(_LATELY, int(8 * limit)))
        waits = [point.wait_s for point in points if point.level < 1.2 * limit]
        if not waits or (self.cap < math.inf and now - self._since < 3.0 * max(waits)):
            return None  # of what was sent since the limit changed, only the short have landed
        found = _useful(points)
        if found is not None and found[0] < 0.9 * limit and points[-1].level > min(0.8 * limit, 2.0 * found[0]):
            goal, bracketed = found
            return self._settle(now, goal, 0.0 if bracketed else _DOWN)
        return self._try(now, number, limit) if saturated and limit > 0.9 * min(self.cap, self._ceiling) else None

    def _settle(self, now: float, goal: float, ask: float) -> float:
        """Makes `goal` the cap. `ask`: the factor of a trial to follow, 0.0 for none."""
        self._trial, self.cap, self._ask, self._since = 0.0, goal, ask, now
        self._settled, self._usual = self._seen, {}
        return goal

    def _try(self, now: float, number: int, limit: float) -> float | None:
        """Begins a trial where one is due."""
        here = self._bins[int(limit)]
        means = {kind: cells[here] for kind, cells in self._cells.items() if cells[here].count >= _LEAST}
        count = sum(cell.count for cell in means.values())
        if self._seen - self._settled < max(2 * _LOOK, 2 * int(limit)) or count < 2 * _LOOK:
            return None
        if not self._ask:
            if not self._usual:
                if self._seen - self._settled > 2 * _COHORT + 2 * limit:
                    self._usual = {kind: cell.mean for kind, cell in means.items()}
                    self._again_at = now + max(self._pause_s, 10.0 * max(self._usual.values()))
                return None
            moved = _shift(means, self._usual)
            if moved:  # another server, or other outputs: what was seen of it is of no use
                self._forget(None)
                self._settle(now, self.cap, _DOWN if moved > 0 else _UP)
                self._pause_s = _FIRST_TRIAL_S
                return None
            if now < self._again_at or self.cap >= self._ceiling:
                return None
            self._ask = _UP
        base = min(self.cap, self._ceiling)
        trial = max(1.0, min(base * self._ask, self._ceiling))
        self._ask = 0.0
        if int(trial) == int(base):
            return None
        self._forget(here)
        self._home, self._trial, self.cap = self.cap, trial, trial
        self._first, self._landed, self._since, self._settled = number, 0, now, self._seen
        self._last = number + max(_LOOK, min(int(4 * trial), _COHORT))
        return trial

    def _forget(self, keep: int | None) -> None:
        """Forgets all bins but one."""
        for cells in self._cells.values():
            for place, cell in enumerate(cells):
                if place != keep:
                    cell.count = 0

    def _judge(self, now: float) -> float | None:
        """Ends the trial once it has told enough, or has taken too long."""
        home = min(self._home, self._ceiling)
        points = self._curve(0)
        if not points:
            return self._go_home(now) if self._seen - self._settled > 8 * _COHORT else None
        tried = min(points, key=lambda point: abs(math.log(point.level / self._trial)))
        stayed = min(points, key=lambda point: abs(math.log(point.level / home)))
        told = math.log(tried.level / stayed.level)
        complete = self._landed >= 0.95 * (self._last - self._first)
        late = now - self._since > 30.0 * stayed.wait_s
        if abs(told) < 0.2:
            return self._go_home(now) if late else None
        gain = math.log(tried.rate / stayed.rate) / told  # 0.0: none; 1.0: throughput follows the concurrency
        doubt = math.sqrt(tried.variance + stayed.variance) / abs(told)
        if complete and told > 0 and gain - _SURE * doubt > 0.5:
            self._pause_s = _FIRST_TRIAL_S
            self._settle(now, math.inf, 0.0)
            return tried.level
        if complete and told < 0 and gain + _SURE * doubt < 0.5 and tried.rate > _USEFUL * stayed.rate:
            goal = math.ceil(max(_SLACK * tried.level * _USEFUL * max(1.0, stayed.rate / tried.rate), tried.level + 1.0))
            return self._settle(now, min(goal, home), _DOWN if goal < home and tried.rate > 0.9 * stayed.rate else 0.0)
        against = gain + doubt < 0.5 if told > 0 else gain - doubt > 0.5
        return self._go_home(now) if complete or late or (against and self._landed > _LOOK / 2) else None

    def _go_home(self, now: float) -> float:
        """Ends a trial that changes nothing."""
        self._pause_s = min(2.0 * self._pause_s, _LAST_TRIAL_S)
        usual = self._usual
        home = self._settle(now, self._home, 0.0)
        self._usual, self._again_at = usual, now + max(self._pause_s, 10.0 * max(usual.values(), default=0.0))
        return min(home, self._ceiling)

    def _curve(self, lately: int) -> list[_Point]:
        """Throughput by concurrency, for one mix of kinds. Only bins that saw calls after the `lately`-th answer."""
        fresh = {
            kind: {place: cell for place, cell in enumerate(cells) if cell.count >= _LEAST and cell.seen > lately}
            for kind, cells in self._cells.items()
        }
        counts = [sum(cells[place].count for cells in fresh.values() if place in cells) for place in range(self._bins[-1] + 1)]
        most = max(counts)
        if not most:
            return []
        base = counts.index(most)
        total = sum(self.sent.values())
        mix = {kind: count / total for kind, count in self.sent.items() if count > 0.02 * total}
        if not all(base in fresh.get(kind, ()) for kind in mix):
            return []  # calls of a kind have yet to come back: the longest, most likely
        whole = sum(share * fresh[kind][base].mean for kind, share in mix.items())
        points = []
        for place in range(len(counts)):
            cells = {kind: fresh[kind][place] for kind in mix if place in fresh[kind]}
            there = sum(mix[kind] * fresh[kind][base].mean for kind in cells)
            if there < 0.8 * whole:
                continue
            wait = sum(mix[kind] * cell.mean for kind, cell in cells.items())
            spread = sum(
                mix[kind] ** 2 * max(cell.variance, (0.4 * cell.mean) ** 2) / cell.count for kind, cell in cells.items()
            )
            level = sum(cell.level * cell.count for cell in cells.values()) / sum(cell.count for cell in cells.values())
            points.append(_Point(level, level * there / wait, spread / wait**2, wait))
        return points


class _Point(NamedTuple):
    """A bin's mean concurrency, its throughput on a common scale, that one's relative variance, and its mean latency."""

    level: float
    rate: float
    variance: float
    wait_s: float


def _useful(points: list[_Point]) -> tuple[float, bool] | None:
    """The limit that 85 % of the best throughput needs, with slack, and whether less was seen to be too little.

    None where the points do not tell.
    """
    sure = [point for point in points if point.variance < 0.05]
    if not sure:
        return None
    top = sure[-1]
    need, before = _USEFUL * max(point.rate for point in sure), None
    for point in points:
        if 1.3 * point.level > top.level:
            return None
        # Without a queue the throughput would be as the concurrency: the doubt must not reach halfway to that.
        margin = math.log(point.rate / top.rate) - 0.5 * math.log(point.level / top.level)
        if point.rate >= need and margin > _SURER * math.sqrt(point.variance + top.variance):
            break
        before = point
    level = point.level
    if before is None:
        level *= need / point.rate
    elif before.rate < need < point.rate:
        level = before.level * (level / before.level) ** (math.log(need / before.rate) / math.log(point.rate / before.rate))
    bracketed = before is not None and math.log(need / before.rate) > 2.0 * math.sqrt(before.variance)
    return math.ceil(max(_SLACK * level, level + 1.0)), bracketed


def _shift(now: dict[str, _Cell], usual: dict[str, float]) -> float:
    """1.0 where latencies have clearly risen over what was usual, -1.0 where they have fallen, else 0.0."""
    shared = [kind for kind in now if kind in usual]
    count = sum(now[kind].count for kind in shared)
    if not count:
        return 0.0
    moved = sum(now[kind].count * math.log(now[kind].mean / usual[kind]) for kind in shared) / count
    doubt = math.sqrt(sum(now[kind].count * now[kind].variance / now[kind].mean ** 2 for kind in shared)) / count
    return math.copysign(1.0, moved) if abs(moved) > max(_SHIFT, 4.0 * 1.4 * doubt) else 0.0
