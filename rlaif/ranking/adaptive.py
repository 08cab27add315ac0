"""Judging where it matters: cheap scores of all candidates first, then duels of those on whom the decision depends.

Each candidate is rated by itself; where the judge cannot give an expected rating (no log-probabilities), or the calls do not
pay for a rating of each, all are ranked together twice, in an order and in its reverse. From then on it is known who may be the
best and who the worst, and a duel, a pair in both orders, is asked for only where its outcome is expected to move the choice:
that is its knowledge gradient (Frazier, Powell and Dayanik 2009, "The knowledge-gradient policy for correlated normal
beliefs"). With the posterior of the strengths N(m, C), a duel of i and j, read as an observation of s_i - s_j with variance r,
will move the means by

    a Z,   a = C u / sqrt(u'Cu + r),   u = e_i - e_j,   Z ~ N(0, 1),

and its worth is E[max(m + a Z) - min(m + a Z)] - (max m - min m): by how much the expected gap between the best and the worst
is to grow. With the aim "best", for which the worst does not matter, it is E[max(m + a Z)] - max m. r is 1 / (2 p (1 - p)), the
inverse Fisher information of two verdicts with probability p. Two duels of different candidates may be asked for at once: the
second is chosen under the covariance that the first will leave, which does not depend on its outcome.

It ends when P(best better than worst) reaches the target (with the aim "best", P(best better than each other one)), when no
duel is worth anything, or when the calls are spent. If all pairs in both orders are no more calls than it may ask for, it asks
for these: of two candidates there is nothing to save. Where no rating and no ranking can be read, it asks for pairs round a
circle, of four candidates for all, unless `most` forbids it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking import posterior
from rlaif.ranking.schedule import Every, Purse, both_orders, in_turn
from rlaif.types import Group, Rounds, Said, Verdict

Aim = Literal["gap", "best"]
Floats = NDArray[np.float64]

TARGET = 1.0
"""P(chosen better than rejected) from which on nothing more is asked. At 1, calls are spent as long as they move the choice."""
_AT_ONCE = 2  # duels of a prompt
_WORTH = 1e-4  # of the gap so far: a duel that is expected to add less adds nothing
_LETTERS = 26  # to name those who are ranked together by
_UNSCORED = 12  # calls for duels where no score can be read: all pairs of four
_RATINGS_SD = 1.8  # of ratings from 1 to 9, within a prompt
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Scores, then duels: at most `most` calls (2 or more), or by default log2(count) duels.

    `aim` is what the duels are for: the "gap" between the best and the worst, or the "best" alone. Without `rates`, and where
    `most` does not pay for a rating of each, all are ranked together from the start.
    """

    most: int | None = None
    target: float = TARGET
    aim: Aim = "gap"
    rates: bool = True

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """See `rlaif.types.Schedule`."""
        count = len(ids)
        if count * (count - 1) <= (self.most or default_calls(count)):
            yield from Every(2, most=self.most).rounds(ids, seed)
            return
        purse = Purse(self.most)
        verdicts = yield from self._scores(count, seed, purse)
        if all(verdict.scores is None for verdict in verdicts):  # it rates and ranks nothing readably, and may yet compare
            most = max(default_calls(count), _UNSCORED) if self.most is None else purse.left
            yield from in_turn(Every(2, most=most).groups(count, seed), purse)
            return
        met = set[tuple[int, int]]()
        while (duels := self._most_duels(count, len(met), purse)) > 0:
            means, covariance = posterior.of_one(ids, verdicts, _RATINGS_SD)
            if _certainty(means, covariance, self.aim) >= self.target:
                return
            pairs = _worth_asking(means, covariance, self.aim, met, min(_AT_ONCE, duels))
            if not pairs:
                return
            met.update(pairs)
            said = yield from in_turn(both_orders(pairs), purse)
            verdicts += filter(None, said)

    def _scores(self, count: int, seed: int, purse: Purse) -> Generator[list[Group], Said, list[Verdict]]:
        """A rating of each; or, where the first one cannot be had or is too dear, all of them ranked together twice."""
        verdicts: list[Verdict] = []
        if self._rates(count):
            said = yield [(0,)]
            purse.pay(said)
            verdicts += filter(None, said)
            if verdicts and purse.asks(1) >= count - 1:
                said = yield [(place,) for place in range(1, count)]
                purse.pay(said)
                return verdicts + list(filter(None, said))
        if lists := _lists(count, seed)[: purse.left]:
            said = yield lists
            purse.pay(said)
            verdicts += filter(None, said)
        return verdicts

    def _rates(self, count: int) -> bool:
        """Whether it asks for ratings, if these can be had."""
        return self.rates and (self.most is None or self.most >= count)

    def _most_duels(self, count: int, fought: int, purse: Purse) -> int:
        """How many more duels may be asked for."""
        return _duels(count) - fought if self.most is None else purse.duels()

    def calls(self, count: int) -> Counter[int]:
        """See `rlaif.types.Schedule`: with all of its duels, of a judge whose scores can be read.

        One that gives no ratings asks for fewer in all, of other sizes.
        """
        if count < 2:
            return Counter()
        if count * (count - 1) <= (self.most or default_calls(count)):
            return Every(2, most=self.most).calls(count)
        scores = Counter({1: count}) if self._rates(count) else Counter(map(len, _lists(count, 0)[: self.most]))
        duels = _duels(count) if self.most is None else (self.most - scores.total()) // 2
        return scores + Counter({2: 2 * duels})


def default_calls(count: int) -> int:
    """A rating for each and its duels in both orders; all pairs of up to three: 2, 6, 8, 9, 12 for 2 to 6, 14 for 8."""
    return count + 2 * _duels(count) if count > 3 else count * (count - 1)


def _duels(count: int) -> int:
    """How many duels are asked for where nothing else is said."""
    return round(math.log2(count))


def _lists(count: int, seed: int) -> list[tuple[int, ...]]:
    """All together in two orders; in groups that overlap, where there are more than letters to name them by."""
    return Every(min(count, _LETTERS), 2).groups(count, seed)


def _certainty(means: Floats, covariance: Floats, aim: Aim) -> float:
    """P(the best better than the worst); with the aim "best", than the one that it is least surely better than."""
    best = int(means.argmax())
    variance = covariance[best, best] + covariance.diagonal() - 2.0 * covariance[best]
    sure = np.delete((means[best] - means) / np.sqrt(np.maximum(variance, _LEAST)), best)
    against = sure[np.delete(means, best).argmin()] if aim == "gap" else sure.min()
    return 0.5 * math.erfc(-float(against) / math.sqrt(2.0))


def _worth_asking(means: Floats, covariance: Floats, aim: Aim, met: set[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """The duels that are worth most, each of other candidates, at most so many; none if none is worth anything."""
    one, other = _all_pairs(len(means))
    spread = float(means.max() - means.min())
    free = np.array([pair not in met for pair in zip(one.tolist(), other.tolist(), strict=True)])
    found: list[tuple[int, int]] = []
    while len(found) < most and free.any():
        across = covariance[:, one] - covariance[:, other]
        pairs = np.arange(len(one))
        variance = across[one, pairs] - across[other, pairs]
        noise = _noise(means[one] - means[other], variance)
        worth = np.where(free, _worth(means, across / np.sqrt(variance + noise), aim), 0.0)
        best = int(worth.argmax())
        if worth[best] <= _WORTH * spread:
            break
        found.append((int(one[best]), int(other[best])))
        covariance = covariance - np.outer(across[:, best], across[:, best]) / (variance[best] + noise[best])
        free &= (one != one[best]) & (one != other[best]) & (other != one[best]) & (other != other[best])
    return found


def _noise(apart: Floats, variance: Floats) -> Floats:
    """The variance of what two verdicts say of a difference: 1 / (2 p (1 - p)), p as MacKay (1992) approximates its mean."""
    p = 0.5 + 0.5 * np.tanh(0.5 * apart / np.sqrt(1.0 + math.pi / 8.0 * variance))
    return np.asarray(0.5 / (p * (1.0 - p)))


def _worth(means: Floats, moves: Floats, aim: Aim) -> Floats:
    """The knowledge gradient of each duel: `moves` has a column for each, what one standard normal step does to the means."""
    nodes, weights = _normal()
    after = means[:, None, None] + moves[:, :, None] * nodes
    gained = after.max(axis=0) - means.max()
    if aim == "gap":
        gained -= after.min(axis=0) - means.min()
    return np.asarray(gained @ weights)


@cache
def _normal() -> tuple[Floats, Floats]:
    """Nodes and weights of E[f(Z)] for a standard normal Z."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    return nodes, weights / weights.sum()


@cache
def _all_pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count, 1)
