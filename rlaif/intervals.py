"""Intervals and tests of rates, means and agreement. Pure.

Cluster-robust means, Cohen's kappa and the sign test are statsmodels' and scipy's, loaded with the first call. Wilson's
interval is written out with scipy.special's quantile and tested against statsmodels': every run ends with it, and statsmodels
and scipy.stats take more than a second to load. Derived here is what they do not have: a score interval of a rate in clusters,
and Cohen's kappa in clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_DIGITS = 6
_LEAST_EFFECT, _NOTHING = 0.1, 1e-9


def rounded(value: float | None) -> float | None:
    """A number as files have it; never -0."""
    return None if value is None else round(value, _DIGITS) + 0.0


def written(interval: Sequence[float] | None) -> list[float] | None:
    """An interval as files have it."""
    return None if interval is None else [round(end, _DIGITS) + 0.0 for end in interval]


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval (low, high) of a rate (Wilson 1927). Raises ValueError without a trial.

    It stays within 0..1 and holds its level for few trials and for rates near 0 or 1, where the normal approximation does not.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} trials")
    return _score_interval(successes / n, n, level)


@lru_cache(maxsize=4096)  # of many categories, most have the same few counts
def _score_interval(rate: float, n: float, level: float) -> tuple[float, float]:
    from scipy.special import ndtri

    z2 = float(ndtri(0.5 + level / 2)) ** 2
    middle, half = rate + z2 / (2 * n), math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n)))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if rate == 0 else max(0.0, low)), (1.0 if rate == 1 else min(1.0, high))


@dataclass(slots=True)
class ClusteredRate:
    """A rate over trials that come in clusters, such as the pairs of one prompt, which do not speak independently.

    The rate is the plain one, all trials alike. Its variance is that of a ratio over clusters (linearised; Cochran 1977,
    section 6; Liang and Zeger 1986), and the interval is Wilson's with the number of independent trials that would have this
    variance (Kish 1965; for Wilson's interval: Dean and Pagano 2015), less what a variance from few clusters is worth: times
    (z / t)^2, with t of `freedom` degrees of freedom (Korn and Graubard 1998). With one trial a cluster it is `wilson`.

    Trials that oppose each other (a pair asked in both orders of a judge that likes the first place) tell more than
    independent ones: up to ten times as much is believed. Where all trials came out alike, nothing tells how dependent they
    are, and that number is the number of clusters; where all clusters did, it is the number of trials.
    """

    clusters: int = 0
    trials: int = 0
    successes: int = 0
    _trials2: int = 0
    _successes2: int = 0
    _products: int = 0

    @classmethod
    def of(cls, outcomes: Sequence[bool], clusters: Sequence[int]) -> ClusteredRate:
        """The rate of `outcomes`, each in the cluster (a number from 0) that stands at the same place."""
        made = cls()
        _, where = np.unique(np.asarray(clusters, dtype=np.int64), return_inverse=True)
        trials = np.bincount(where)
        successes = np.bincount(where, np.asarray(outcomes, dtype=np.float64), len(trials)).astype(np.int64)
        made.clusters, made.trials, made.successes = int((trials > 0).sum()), int(trials.sum()), int(successes.sum())
        made._trials2, made._successes2 = int(trials @ trials), int(successes @ successes)
        made._products = int(trials @ successes)
        return made

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
        """How many independent trials would tell as much, were their variance known."""
        rate = self.rate
        if rate is None or rate in (0.0, 1.0) or self.clusters < 2:
            return float(self.clusters)
        squares = self._successes2 - 2 * rate * self._products + rate * rate * self._trials2
        variance = self.clusters / (self.clusters - 1) * squares / self.trials**2
        plain = rate * (1 - rate) / (self.trials - 1)
        effect = variance / plain
        return self.trials / max(effect, _LEAST_EFFECT) if effect > _NOTHING else float(self.trials)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval of the rate, None without a trial."""
        rate = self.rate
        if rate is None:
            return None
        estimated = rate not in (0.0, 1.0) and self.trials > self.clusters > 1
        worth = _worth(freedom(self.trials, self._trials2), level) if estimated else 1.0
        return _score_interval(rate, self.independent * worth, level)

    def numbers(self, clusters: str = "prompts") -> dict[str, Any]:
        """The rate as files have it: `value`, `count` of so many trials, in so many clusters; None for what is not known."""
        ends = written(self.interval())
        return {
            "value": rounded(self.rate),
            "count": self.successes,
            "of": self.trials,
            clusters: self.clusters,
            "interval": ends,
        }


def freedom(things: int, squares: int) -> float:
    """The degrees of freedom of a variance over clusters: their effective number less one, 1 at least.

    The effective number is (sum of sizes)^2 / sum of squared sizes, the number itself where all are of one size: one cluster of
    40 beside seven of 1 tells hardly more than itself (Kish 1965; Carter, Schnepel and Steigerwald 2017).
    """
    return max(1.0, things**2 / squares - 1.0)


@lru_cache(maxsize=4096)
def _worth(of: float, level: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(0.5 + level / 2) / stdtrit(of, 0.5 + level / 2)) ** 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, and the p-value of its being 0; None where the data do not tell."""

    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None


def clustered_mean(values: Sequence[float], clusters: Sequence[int], level: float = LEVEL) -> Estimate:
    """The plain mean of values that come in clusters. Raises ValueError without a value.

    The interval is mean +- t * se, with the cluster-robust error of Liang and Zeger (1986), corrected for few clusters
    (statsmodels' OLS on a constant), and t of `freedom` degrees of freedom (Cameron and Miller 2015).
    The mean of differences between two judges, a pair each, is the paired comparison of the two.
    """
    y, groups = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if not len(y):
        raise ValueError("the mean of no values")
    if len(np.unique(groups)) < 2 or np.ptp(y) == 0.0:
        return Estimate(float(y.mean()))
    from scipy.special import stdtr, stdtrit
    from statsmodels.regression.linear_model import OLS

    found = OLS(y, np.ones(len(y))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    mean, se, of = float(found.params[0]), float(found.bse[0]), _freedom_of(groups)
    if not se > 0.0:
        return Estimate(mean)
    half = float(stdtrit(of, 0.5 + level / 2)) * se
    return Estimate(mean, (mean - half, mean + half), float(2.0 * stdtr(of, -abs(mean) / se)))


def _freedom_of(clusters: NDArray[Any]) -> float:
    sizes = np.unique(clusters, return_counts=True)[1]
    return freedom(int(sizes.sum()), int(sizes @ sizes))


def kappa(table: ArrayLike) -> float | None:
    """Cohen's kappa (1960) of a square table of counts; None if chance alone would agree always, or nothing was counted."""
    from statsmodels.stats.inter_rater import cohens_kappa

    counts = np.asarray(table, dtype=np.float64)
    total = counts.sum()
    if not total or math.isclose(float(counts.sum(0) @ counts.sum(1)), total**2):
        return None
    return float(cohens_kappa(counts, return_results=False))


def clustered_kappa(one: Sequence[int], other: Sequence[int], clusters: Sequence[int], level: float = LEVEL) -> Estimate | None:
    """Cohen's kappa between two lists of labels (numbers from 0) of the same things, which come in clusters. None as `kappa`.

    kappa = (o - e) / (1 - e), with o the share of agreement and e = sum_k a_k b_k from the shares of each label. It is a smooth
    function of means, so that a thing with the labels (i, j) moves it by (delta method)

        u = ((i = j) - o) / (1 - e) - (1 - o) / (1 - e)^2 * (b_i + a_j - 2 e)

    and its variance is that of the mean of u: G / (G - 1) * sum over clusters of (sum of u)^2 / n^2, for G clusters. With one
    thing a cluster this is the variance of Fleiss, Cohen and Everitt (1969). The interval is kappa +- t * se with t of
    `freedom` degrees of freedom, cut off at -1 and 1.
    """
    x, y = np.asarray(one, dtype=np.int64), np.asarray(other, dtype=np.int64)
    if not len(x):
        return None
    size = int(max(x.max(), y.max())) + 1
    table = np.bincount(x * size + y, minlength=size * size).reshape(size, size)
    value = kappa(table)
    if value is None:
        return None
    shares = table / len(x)
    a, b = shares.sum(1), shares.sum(0)
    o, e = float(np.trace(shares)), float(a @ b)
    moved = ((x == y) - o) / (1 - e) - (1 - o) / (1 - e) ** 2 * (b[x] + a[y] - 2 * e)
    _, groups = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(groups, moved)
    count = len(sums)
    variance = count / (count - 1) * float(sums @ sums) / len(x) ** 2 if count > 1 else 0.0
    if variance <= 0.0:
        return Estimate(value)
    from scipy.special import stdtrit

    half = float(stdtrit(_freedom_of(groups), 0.5 + level / 2)) * math.sqrt(variance)
    return Estimate(value, (max(-1.0, value - half), min(1.0, value + half)))


def sign_test(successes: int, n: int) -> float:
    """P(at least so many successes in n tosses of a fair coin), by scipy. Raises ValueError unless 0 <= successes <= n."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if n == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(successes, n, alternative="greater").pvalue)
