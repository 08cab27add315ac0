"""Intervals hold the truth as often as they say, and the pure numbers of an evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from rlaif.data.gold import GoldPair
from rlaif.evaluation.judged import Judged, Opinion, baselines
from rlaif.evaluation.numbers import calibration, clusters_of, numbers
from rlaif.evaluation.paired import against, difference
from rlaif.intervals import ClusteredRate, clustered_kappa, clustered_mean
from rlaif.types import Candidate, Prompt

RUNS = 1000


def held(intervals, truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


# Coverage by simulation: each setting has its truth in closed form or from millions of draws


@pytest.mark.parametrize(
    ("prompts", "bias"), [(60, 0.0), (200, 0.5), (200, 2.0)], ids=["no bias", "some bias", "the first place decides"]
)
def test_the_interval_of_accuracy_over_both_orders_holds_its_level(prompts, bias):
    """A judge with a signal, an error of each pair and a bonus for the first place; two orders, 1 to 3 pairs a prompt."""
    rng = np.random.default_rng(7)

    def right(shared, count):
        margin = 0.6 + shared + rng.normal(0, 1.0, count)
        return (margin + bias + rng.normal(0, 0.3, count) > 0).astype(int), (margin - bias + rng.normal(0, 0.3, count) > 0)

    many = right(rng.normal(0, 0.7, 2_000_000), 2_000_000)
    truth = float(np.mean(many))
    found = []
    for _ in range(RUNS):
        where = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
        one, other = right(rng.normal(0, 0.7, prompts)[where], len(where))
        found.append(ClusteredRate.of(np.concatenate([one, other]), np.concatenate([where, where])).interval())
    assert 0.93 <= held(found, truth) <= 0.97


def test_an_interval_holds_its_level_where_one_prompt_has_most_of_the_pairs():
    rng = np.random.default_rng(3)
    rates, means = [], []
    for _ in range(300):
        sizes = rng.choice([1, 1, 1, 1, 40], 12)
        right = rng.random(sizes.sum()) < np.repeat(rng.beta(4, 1, 12), sizes)
        where = np.repeat(np.arange(12), sizes)
        rates.append(ClusteredRate.of(right, where).interval())
        means.append(clustered_mean(right.astype(float), where).interval or (right.mean(), right.mean()))
    assert held(rates, 0.8) > 0.85 and held(means, 0.8) > 0.8  # of z and of t(11): 0.71, 0.70


def test_the_interval_of_a_paired_difference_holds_its_level():
    """Two judges that err on the same pairs: single orders of each, two pairs a prompt."""
    rng = np.random.default_rng(8)

    def scores(count, edge, hard):
        return ((edge + hard + rng.normal(0, 1, (2, count)) > 0).mean(0), (hard + rng.normal(0, 1, (2, count)) > 0).mean(0))

    one, other = scores(2_000_000, 0.4, rng.normal(0.3, 1.2, 2_000_000))
    truth = float((one - other).mean())
    where, found = np.repeat(np.arange(100), 2), []
    for _ in range(RUNS):
        one, other = scores(200, 0.4, np.repeat(rng.normal(0.3, 0.9, 100), 2) + rng.normal(0, 0.8, 200))
        found.append(clustered_mean(one - other, where).interval)
    assert 0.93 <= held(found, truth) <= 0.97


def test_the_interval_of_kappa_holds_its_level():
    """Labels that are gold with a probability of each prompt, else drawn at random; two pairs a prompt."""
    rng = np.random.default_rng(9)

    def drawn(prompts):
        gold = rng.choice(3, 2 * prompts, p=(0.45, 0.4, 0.15))
        sure = np.repeat(rng.beta(3, 2, prompts), 2)
        return gold, np.where(rng.random(2 * prompts) < sure, gold, rng.choice(3, 2 * prompts, p=(0.5, 0.4, 0.1)))

    gold, label = drawn(1_000_000)
    table = np.bincount(gold * 3 + label, minlength=9).reshape(3, 3)
    truth = float(cohens_kappa(table, return_results=False))
    where = np.repeat(np.arange(100), 2)
    found = [clustered_kappa(*drawn(100), where).interval for _ in range(RUNS)]
    assert 0.93 <= held(found, truth) <= 0.97


def test_without_clusters_kappa_has_the_error_that_statsmodels_gives():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 3, 400)
    y = np.where(rng.random(400) < 0.6, x, rng.integers(0, 3, 400))
    theirs = cohens_kappa(np.bincount(x * 3 + y, minlength=9).reshape(3, 3))
    ours = clustered_kappa(x, y, range(400))
    assert ours.value == pytest.approx(theirs.kappa)
    assert (ours.interval[1] - ours.interval[0]) / 2 == pytest.approx(1.966 * theirs.std_kappa, rel=0.01)
    assert clustered_kappa([0, 0], [0, 0], [0, 1]) is None  # chance alone agrees always


# Numbers of made-up judges


def pair(number: int, gold: str, longer: str = "A", prompt: str | None = None) -> GoldPair:
    name = f"p{number}"
    texts = ("long answer", "short") if longer == "A" else ("short", "long answer")
    asked = Prompt(name, ({"role": "user", "content": prompt or name},))
    return GoldPair(asked, Candidate(f"{name}/0", texts[0]), Candidate(f"{name}/1", texts[1]), gold)


def both(ab: str | None, ba: str | None) -> tuple[Opinion, Opinion]:
    return Opinion("j", "AB", ab), Opinion("j", "BA", ba)


def test_brier_and_log_loss_by_hand():
    gold = [pair(0, "A"), pair(1, "B"), pair(2, "A"), pair(3, "tie")]
    judged = Judged("j", [both("A", "A")] * 4, [0.8, 0.6, 1.0, 0.9])
    found = numbers(judged, gold, clusters_of(gold))
    assert found["brier"]["value"] == pytest.approx((0.04 + 0.36 + 0.0) / 3, abs=1e-6) and found["brier"]["of"] == 3
    expected = (-math.log(0.8) - math.log(0.4) - math.log(1 - 1e-6)) / 3
    assert found["log_loss"]["value"] == pytest.approx(expected, abs=1e-6)
    assert found["kappa"]["of"] == 4  # gold ties count here alone
    wrong = numbers(Judged("j", [both("B", "B")], [0.0]), gold[:1], [0])
    assert wrong["log_loss"]["value"] == pytest.approx(-math.log(1e-6), abs=1e-5)


def test_calibration_by_hand():
    found = calibration([(0.5, 1.0), (0.92, 1.0), (0.08, 1.0), (0.94, 1.0), (1.0, 1.0)])
    assert [(b["from"], b["pairs"]) for b in found["bins"]] == [(0.5, 1), (0.9, 3), (0.95, 1)]
    assert [b["accuracy"] for b in found["bins"]] == pytest.approx([0.5, 2 / 3, 1.0], abs=1e-6)
    assert found["ece"] == pytest.approx(3 / 5 * ((0.92 + 0.92 + 0.94) / 3 - 2 / 3), abs=1e-6)
    almost = calibration([(0.5 + 1e-9, 1.0), (0.5 - 1e-9, 1.0), (0.5 + 1e-9, 0.0)])  # a tie, whatever the fit left of it
    assert almost["ece"] == 0.0 and [b["accuracy"] for b in almost["bins"]] == [0.5]


def test_a_coin_has_its_expected_values():
    gold = [pair(k, "AB"[k % 2], longer="AB"[k % 3 == 0]) for k in range(30)]
    _, coin, _ = (numbers(judged, gold, clusters_of(gold)) for judged in baselines(gold))
    assert coin["accuracy"] == {"value": 0.5, "count": None, "of": 30, "prompts": 30, "interval": None}
    assert (coin["brier"]["value"], coin["kappa"]["value"]) == (0.25, 0.0)
    assert coin["log_loss"]["value"] == pytest.approx(math.log(2), abs=1e-6) and coin["no_verdict"] is None


def test_differences_that_are_known():
    """One judge is right on 60 of 100 pairs, another on 40 of the same and 10 others; a third saw none of them."""
    gold = [pair(k, "A") for k in range(120)]
    right = lambda places: [both("A", "A") if k in places else both("B", "B") for k in range(100)] + [()] * 20  # noqa: E731
    one = Judged("one", right(range(60)), [0.9 if k < 60 else 0.1 for k in range(100)] + [None] * 20)
    other_places = {*range(40), *range(90, 100)}
    other = Judged("other", right(other_places), [0.9 if k in other_places else 0.1 for k in range(100)] + [None] * 20)
    apart = Judged("apart", [()] * 100 + [both("A", "A")] * 20, [None] * 100 + [0.9] * 20)
    clusters = clusters_of(gold)
    found = difference(one, other, gold, clusters)
    assert found["value"] == 0.1 and found["of"] == 100
    low, high = found["interval"]
    error = np.std([1.0] * 20 + [-1.0] * 10 + [0.0] * 70, ddof=1) / 10
    assert (low + high) / 2 == pytest.approx(0.1) and (high - low) / 2 == pytest.approx(1.984 * error, rel=1e-3)
    assert (found["mcnemar"]["only_this_right"], found["mcnemar"]["only_reference_right"]) == (20, 10)
    assert found["mcnemar"]["p"] == pytest.approx(0.1003, abs=1e-3)  # (|20 - 10| - 1)^2 / 30 with one degree of freedom
    back = difference(other, one, gold, clusters)
    assert back["value"] == -0.1 and back["p"] == pytest.approx(found["p"])
    listed = against(one, [other, apart], gold, clusters)["differences"]
    assert listed[1]["of"] == 0 and listed[1]["value"] is None
    assert listed[0]["p_holm"] == pytest.approx(listed[0]["p"])  # one comparison: nothing to adjust
