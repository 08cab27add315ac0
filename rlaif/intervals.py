"""Intervals and tests of rates. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

_EXACT = 1000


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval (low, high) of a rate (Wilson 1927). Raises ValueError without a trial.

    It stays within 0..1 and holds its level for few trials and for rates near 0 or 1, where the normal approximation does not.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} trials")
    return _score_interval(successes / n, n, level)


def _score_interval(rate: float, n: float, level: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if rate == 0 else max(0.0, middle - half)), (1.0 if rate == 1 else min(1.0, middle + half))


@dataclass(slots=True)
class ClusteredRate:
    """A rate over trials that come in clusters, such as the pairs of one prompt, which do not speak independently.

    The rate is the plain one, all trials alike. Its variance is that of a ratio over clusters (linearised; Cochran 1977,
    section 6; Liang and Zeger 1986), and the interval is Wilson's with the number of independent trials that would have this
    variance (Kish 1965; for Wilson's interval: Dean and Pagano 2015). With one trial a cluster it is `wilson`. That number is
    never more than there are trials; where all trials came out alike, nothing tells how dependent they are, and it is the
    number of clusters.
    """

    clusters: int = 0
    trials: int = 0
    successes: int = 0
    _trials2: int = 0
    _successes2: int = 0
    _products: int = 0

    def add(self, successes: int, trials: int) -> None:
        """Counts a cluster; one without trials says nothing."""
        if trials:
            self.clusters += 1
            self.trials += trials
            self.successes += successes
            self._trials2 += trials * trials
            self._successes2 += successes * successes
            self._products += successes * trials

    @property
    def rate(self) -> float | None:
        """Successes over trials, None without a trial."""
        return self.successes / self.trials if self.trials else None

    @property
    def independent(self) -> float:
        """How many independent trials would tell as much."""
        rate = self.rate
        if rate is None or rate in (0.0, 1.0) or self.clusters < 2:
            return float(self.clusters)
        squares = self._successes2 - 2 * rate * self._products + rate * rate * self._trials2
        variance = self.clusters / (self.clusters - 1) * squares / self.trials**2
        plain = rate * (1 - rate) / (self.trials - 1)
        effect = max(variance / plain, 1.0)
        return self.trials / effect

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The interval of the rate, None without a trial."""
        rate = self.rate
        return None if rate is None else _score_interval(rate, self.independent, level)


def sign_test(successes: int, n: int) -> float:
    """P(at least so many successes) where each trial is one with probability 1/2: the one-sided p-value of the sign test.

    Exact up to 1000 trials, above them by the normal approximation with correction for continuity. Raises ValueError unless
    0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if n <= _EXACT:
        return float(sum(math.comb(n, k) for k in range(successes, n + 1)) / (1 << n))
    return math.erfc((successes - 0.5 - n / 2) / math.sqrt(n / 2)) / 2
