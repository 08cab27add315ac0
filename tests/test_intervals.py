"""Intervals and the sign test against values from elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.intervals import sign_test, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe 1998, table I: 0/20, 15/148, 1/29; and Wilson for 0/10, 5/10
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_proportion_and_mirrors(pair):
    successes, trials = pair
    low, high = wilson(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_wilson_is_what_statsmodels_gives(level):
    from statsmodels.stats.proportion import proportion_confint

    for n in (1, 2, 7, 30, 1000):
        for successes in {0, 1, n // 3, n - 1, n}:
            given = proportion_confint(successes, n, alpha=1 - level, method="wilson")
            assert wilson(successes, n, level) == pytest.approx(given, abs=1e-12)


def test_sign_test():
    assert sign_test(7, 7) == pytest.approx(0.5**7)
    assert sign_test(0, 7) == 1.0
    assert sign_test(9, 10) == pytest.approx(11 / 1024)
    assert sign_test(540, 1001) == pytest.approx(sign_test(540, 1000), rel=0.1)
    assert 0.0 <= sign_test(600_000, 1_000_000) < 1e-300
    assert sign_test(500_000, 1_000_000) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_no_proportion(successes, trials):
    for function in (wilson, sign_test):
        with pytest.raises(ValueError, match="trials"):
            function(successes, trials)
