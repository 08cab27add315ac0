"""Intervals and tests of proportions. Pure; no SciPy."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
_EXACT = 1000


def wilson(successes: int, trials: int, *, z: float = Z95) -> tuple[float, float]:
    """The score interval (low, high) of a proportion, 95 % unless `z` says otherwise; (0, 1) without trials.

    Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927. It stays within 0..1, and holds
    its level for few trials and for proportions near 0 or 1, where the normal approximation does not. Raises ValueError
    unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes!r} successes in {trials!r} trials")
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return low, 1.0 if successes == trials else min(1.0, middle + half)


def sign_test(successes: int, trials: int) -> float:
    """P(at least so many successes) where each trial is one with probability 1/2: the one-sided p-value of the sign test.

    Exact up to 1000 trials, above them by the normal approximation with correction for continuity. Raises ValueError unless
    0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes!r} successes in {trials!r} trials")
    if trials <= _EXACT:
        return float(sum(math.comb(trials, k) for k in range(successes, trials + 1)) / (1 << trials))
    return math.erfc((successes - 0.5 - trials / 2) / math.sqrt(trials / 2)) / 2
