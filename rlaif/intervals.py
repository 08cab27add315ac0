"""Intervals and tests of rates. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

_EXACT = 1000


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval (low, high) of a rate (Wilson 1927). Raises ValueError without a trial.

    It stays within 0..1 and holds its level for few trials and for rates near 0 or 1, where the normal approximation does not.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} trials")
    z, rate = NormalDist().inv_cdf(0.5 + level / 2), successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else max(0.0, middle - half)), (1.0 if successes == n else min(1.0, middle + half))


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
