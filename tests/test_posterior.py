"""The posterior of one prompt against a grid over all strengths, which shares no code with it, and the laws it must obey."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.ranking.posterior import of_one, win_probabilities
from rlaif.ranking.propagation import RELIABILITY, Parameters, settle
from rlaif.ranking.reading import Reader
from rlaif.types import Verdict

Known = dict[tuple[str, str], tuple[float, float]]
"""(position, discrimination) of an instrument of games, (reliability, scale) of one of ratings."""


def soft(first: str, second: str, p: float, judge: str = "j", weight: float = 1.0) -> Verdict:
    return Verdict(judge, (first, second), (p, 1.0 - p), "probability", weight=weight)


def vote(first: str, second: str, won: float, judge: str = "j", weight: float = 1.0) -> Verdict:
    return Verdict(judge, (first, second), (won, 1.0 - won), "vote", weight=weight)


def rated(ratings: Sequence[float], judge: str = "r") -> list[Verdict]:
    return [Verdict(judge, (c,), (float(r),)) for c, r in zip("abcdefgh", ratings, strict=False)]


def found(ids: str, verdicts: Sequence[Verdict], known: Known | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(means, mean 0; win probabilities) under the instruments' parameters, by default those of the prior."""
    reader = Reader({}, set())
    reader.add(ids, verdicts)
    (block,) = reader.blocks()
    parameters = Parameters.start(np.full(len(reader.instruments), 2.0))
    for instrument, (one, other) in (known or {}).items():
        if (number := reader.instruments.get(instrument)) is not None:
            if instrument[1] == "ratings":
                parameters.reliability[number], parameters.scale[number] = one, other
            else:
                parameters.position[number], parameters.discrimination[number] = one, other
    posterior = settle(block, parameters)
    means = posterior.mean[0]
    return means - sum(means) / max(len(means), 1), win_probabilities(block, parameters, posterior)[0]


def log_posterior(grids: Sequence[np.ndarray], ids: str, verdicts: Sequence[Verdict], known: Known) -> np.ndarray:
    """The documented posterior at the strengths in `grids`, up to a constant."""
    total = sum(-0.5 * (s / 2.0) ** 2 for s in grids)
    at = dict(zip(ids, grids, strict=True))
    ratings: dict[str, dict[str, list[float]]] = {}
    for v in verdicts:
        if len(v.shown) == 1 or v.scale == "rating":
            for c, score in zip(v.shown, v.scores, strict=True):
                ratings.setdefault(v.judge, {}).setdefault(c, []).append(score)
            continue
        pairs = len(v.shown) == 2
        b, a = known.get((v.judge, "pairs" if pairs else "lists"), (0.0, 1.0))
        for (i, x), (j, y) in itertools.combinations(zip(v.shown, v.scores, strict=True), 2):
            won = x / (x + y) if v.scale == "probability" else 0.5 + 0.5 * ((x > y) - (x < y))
            odds = a * (at[i] - at[j]) + (b if pairs else 0.0)
            weight = v.weight * 2.0 / len(v.shown)
            total = total - weight * (won * np.logaddexp(0, -odds) + (1 - won) * np.logaddexp(0, odds))
    for judge, said in ratings.items():
        r, scale = known.get((judge, "ratings"), (RELIABILITY, 2.0))
        z = {c: np.mean(given) / scale for c, given in said.items()}
        errors = [z[c] - r**0.5 * at[c] / 2.0 for c in said]
        level = sum(errors) / len(errors)
        total = total - 0.5 * sum((e - level) ** 2 for e in errors) / (1 - r)
    return np.asarray(total)


def on_a_grid(ids: str, verdicts: Sequence[Verdict], known: Known) -> tuple[np.ndarray, np.ndarray]:
    """What `found` should be."""
    n = len(ids)
    line = np.linspace(-11, 11, {2: 401, 3: 101}[n])
    grids = np.meshgrid(*[line] * n, indexing="ij", sparse=True)
    mass = log_posterior(grids, ids, verdicts, known)
    mass = np.exp(mass - mass.max())
    mass /= mass.sum()
    means = np.array([(mass * s).sum() for s in grids])
    wins = np.full((n, n), 0.5)
    for i, j in itertools.permutations(range(n), 2):
        gap = grids[i] - grids[j]
        wins[i, j] = (mass * ((gap > 1e-9) + 0.5 * (np.abs(gap) <= 1e-9))).sum()
    return means - means.mean(), wins


def any_verdicts(rng: random.Random, ids: str) -> list[Verdict]:
    """Votes, ties and probabilities of several weights and judges, lists and ratings."""
    said: list[Verdict] = []
    for _ in range(rng.randint(1, 8)):
        i, j = rng.sample(ids, 2)
        judge, weight = rng.choice(["one", "two"]), rng.choice([0.5, 1.0, 1.0, 3.0])
        kind = rng.choice(["soft", "vote", "vote", "list", "rated"])
        if kind == "list" and len(ids) > 2:
            order = rng.sample(range(len(ids)), len(ids))
            said.append(Verdict(judge, tuple(rng.sample(ids, len(ids))), tuple(float(k // 2) for k in order), "vote"))
        elif kind == "rated":
            said += rated([rng.randint(1, 9) for _ in ids], judge)
        elif kind == "soft":
            said.append(soft(i, j, rng.choice([rng.random(), 0.0, 1.0]), judge, weight))
        else:
            said.append(vote(i, j, rng.choice([0.0, 0.5, 1.0]), judge, weight))
    return said


@pytest.mark.parametrize(("ids", "cases", "close"), [("ab", 40, 1e-3), ("abc", 15, 1e-2)])
def test_the_posterior_is_that_of_a_grid_over_all_strengths(ids, cases, close):
    rng = random.Random(4)
    for _ in range(cases):
        said = any_verdicts(rng, ids)
        known: Known = {}
        for judge in ("one", "two"):
            known[judge, "pairs"] = rng.gauss(0, 1), np.exp(rng.gauss(0, 0.4))
            known[judge, "lists"] = 0.0, np.exp(rng.gauss(0, 0.4))
            known[judge, "ratings"] = rng.uniform(0.4, 0.9), 2.0
        means, wins = found(ids, said, known)
        expected, chances = on_a_grid(ids, said, known)
        assert wins == pytest.approx(chances, abs=close) and means == pytest.approx(expected, abs=2 * close)


def test_of_many_candidates_the_posterior_is_that_of_drawn_strengths():
    """Strengths drawn from the prior and weighed, where a grid would be too large; most of the pairs never met."""
    said = [soft("a", "b", 0.9), soft("b", "c", 0.8), vote("c", "d", 0.0), *rated([5, 6, 2, 3]), soft("d", "e", 0.3)]
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 2, (5, 400_000))
    mass = np.exp(log_posterior(list(drawn), "abcde", said, {}) + 0.5 * (drawn**2).sum(axis=0) / 4)
    means, wins = found("abcde", said)
    expected = drawn @ mass / mass.sum()
    assert means == pytest.approx(expected - expected.mean(), abs=0.03)
    for i, j in itertools.combinations(range(5), 2):
        assert wins[i, j] == pytest.approx(mass[drawn[i] > drawn[j]].sum() / mass.sum(), abs=0.01)


def test_more_of_the_same_is_surer_and_a_contradiction_is_even():
    chances = []
    for count in (1, 2, 3, 10, 30):
        said = [
            vote(*order, float(order == "ab")) for order, _ in zip(itertools.cycle(["ab", "ba"]), range(count), strict=False)
        ]
        chances.append(found("ab", said)[1][0, 1])
    assert chances == sorted(chances) and 0.8 < chances[0] < 0.85 and 0.93 < chances[1] < 0.95 and chances[-1] > 0.999
    assert found("ab", [vote("a", "b", 1.0), vote("b", "a", 1.0)])[1][0, 1] == 0.5
    assert found("ab", [vote("a", "b", 0.5)])[1][0, 1] == 0.5


@settings(database=None, deadline=None, max_examples=40)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1e3))
def test_a_larger_share_never_makes_the_winner_less_likely(p, q, weight):
    less, more = sorted((p, q))
    low, high = (found("ab", [soft("a", "b", share, weight=weight)])[1][0, 1] for share in (less, more))
    assert 0.0 <= low <= high + 1e-9 and high <= 1.0


@settings(database=None, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_names_and_places_of_candidates_do_not_matter(seed, order):
    rng = random.Random(seed)
    said = any_verdicts(rng, "abcd")
    turned = "".join("abcd"[k] for k in order)
    shuffled = rng.sample(said, len(said))
    means, wins = found("abcd", said)
    again, chances = found(turned, shuffled)
    assert again == pytest.approx(means[list(order)], abs=1e-6)
    assert chances == pytest.approx(wins[np.ix_(order, order)], abs=1e-6)
    assert (wins + wins.T == 1.0).all() and (np.diagonal(wins) == 0.5).all()


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ([vote("a", "b", 1.0)] * 3000, (0.999, 1.0)),
        ([vote("a", "b", float(k % 3 > 0)) for k in range(3000)], (0.999, 1.0)),
        ([soft(i, j, float(i < j), weight=1000.0) for i, j in itertools.permutations("abcdef", 2)], (0.999, 1.0)),
        ([soft(i, j, float(i + j in {"ab", "bc", "ca"}), weight=1000.0) for i, j in itertools.permutations("abc", 2)], (0, 1)),
        ([soft("a", "b", 0.7, weight=1e-6), soft("c", "d", 1.0)], (0.5, 0.501)),
        (rated([1e300, -1e300, 0.0, 1.0, 1.0]), (0.999, 1.0)),
        (rated([3.0] * 6), (0.5, 0.5)),
    ],
    ids=["one-sided", "two to one", "orderly", "circular", "hardly anything", "huge", "equal"],
)
def test_nothing_is_too_much_or_too_little(said, first):
    means, wins = found("abcdef", said)
    assert np.isfinite(means).all() and ((wins >= 0.0) & (wins <= 1.0)).all()
    assert first[0] <= wins[0, 1] <= first[1]


def test_candidates_without_verdicts_stay_in_the_middle_and_groups_apart_know_nothing_of_each_other():
    means, wins = found("abcde", [vote("a", "b", 1.0), vote("c", "d", 1.0)])
    assert means == pytest.approx([means[0], -means[0], means[0], -means[0], 0.0], abs=1e-9) and means[0] > 0.5
    assert wins[0, 2] == pytest.approx(0.5) and 0.5 < wins[0, 4] < wins[0, 1]
    assert found("", [])[1].shape == (0, 0) and found("a", [])[1].tolist() == [[0.5]]


def test_one_outlier_among_ratings_does_not_hide_the_others():
    _, wins = found("abcd", rated([1, 3, 5, 900]))
    assert wins[0, 1] < 0.35 and wins[1, 2] < 0.35 and wins[2, 3] < 0.01


def test_ratings_of_some_shown_together_count_by_their_order_alone():
    few, large = (found("abcd", [Verdict("r", ("b", "a", "c"), scores)])[1] for scores in ((2.0, 1.0, 3.0), (2.0, -50.0, 99.0)))
    assert few == pytest.approx(large) and few[1, 0] > 0.6
    with pytest.raises(AssertionError):
        assert found("abc", [Verdict("r", ("b", "a", "c"), (2.0, -5.0, 9.0))])[1] == pytest.approx(few[:3, :3], abs=0.01)


def test_a_list_says_less_than_its_pairs_one_by_one():
    ranked = Verdict("j", tuple("abcd"), (4.0, 3.0, 2.0, 1.0), "vote")
    whole, apart = found("abcd", [ranked])[1], found("abcd", [vote(i, j, 1.0) for i, j in itertools.combinations("abcd", 2)])[1]
    assert 0.5 < whole[0, 1] < apart[0, 1] and whole[0, 3] < apart[0, 3]


def test_of_one_prompt_the_ratings_scale_is_its_own_shrunk_to_what_is_expected():
    narrow, wide = rated([4.9, 5.0, 5.1]), rated([1.0, 5.0, 9.0])
    by_prior, by_itself = (of_one("abc", narrow, scale)[0] for scale in (1.8, None))
    assert abs(by_prior[0]) < 0.2 < abs(by_itself[0]) and of_one("abc", wide, 1.8)[0][2] > 1.0
    means, covariance = of_one("abcd", [soft("a", "b", 0.8), soft("b", "a", 0.3)])
    assert means[0] == -means[1] > 0.5 and means[2:].tolist() == [0.0, 0.0]
    gap = np.array([1.0, -1.0, 0.0, 0.0])
    assert 2.0 < gap @ covariance @ gap < 8.0 and covariance[2, 2] == pytest.approx(4.0)
