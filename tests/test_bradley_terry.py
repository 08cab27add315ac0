"""The fit against an optimiser that shares no code with it, and the laws it must obey."""

from __future__ import annotations

import math
import random
import tracemalloc
from itertools import combinations, permutations, product

import numpy as np
import pytest

from rlaif.ranking.bradley_terry import fit, rank, win_probability
from rlaif.types import Candidate, Prompt, Record, Verdict

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def record(verdicts, ids="ab") -> Record:
    return Record(PROMPT, tuple(Candidate(i, f"answer {i}") for i in ids), tuple(verdicts))


def soft(first: str, second: str, p: float, judge: str = "j") -> Verdict:
    return Verdict(judge, (first, second), (p, 1.0 - p), "probability")


def vote(first: str, second: str, winner: str | None, judge: str = "j") -> Verdict:
    scores = (0.5, 0.5) if winner is None else (float(winner == first), float(winner == second))
    return Verdict(judge, (first, second), scores, "vote")


def failed(*shown: str, judge: str = "j") -> Verdict:
    return Verdict(judge, shown, None, error="unreadable")


def p_between(found: Record, one: str = "a", other: str = "b") -> float:
    ids = [c.id for c in found.candidates]
    strengths = dict(zip(ids, rank([found], [ids])[0].strengths, strict=True))
    return win_probability(strengths[one], strengths[other])


def positions(ranked) -> dict[str, float]:
    with fit(ranked) as fitted:
        return dict(fitted.position)


def posterior_mode(records: list[Record]) -> tuple[list[list[float]], dict[str, float]]:
    """(strengths, position bonus of each judge) by plain gradient ascent on the documented posterior."""
    judges = sorted({v.judge for r in records for v in r.verdicts if v.scores is not None})
    at, count = {}, 0
    for k, r in enumerate(records):
        for c in r.candidates:
            at[k, c.id], count = count, count + 1
    rows, won = [], []

    def add(k: int, i: str, j: str, judge: str | None, share: float, weight: float) -> None:
        row = np.zeros(count + len(judges))
        row[at[k, i]] += 1.0
        row[at[k, j]] -= 1.0
        if judge is not None:
            row[count + judges.index(judge)] = 1.0
        rows.append((row, share, weight))

    readable = {(k, v.judge, v.shown) for k, r in enumerate(records) for v in r.verdicts if v.scores is not None}
    known = {judge for k, judge, shown in readable if (k, judge, shown[::-1]) in readable}
    for k, r in enumerate(records):
        games = [v for v in r.verdicts if v.scores is not None]
        for pair in {frozenset(v.shown) for v in games}:
            own = {judge: [v for v in games if v.judge == judge and frozenset(v.shown) == pair] for judge in judges}
            # a judge that votes has one game more; all that spoke count alike
            total = {judge: len(said) + any(v.scale == "vote" for v in said) for judge, said in own.items() if said}
            for judge, said in own.items():
                weight = max(total.values()) / total[judge] if said else 0.0
                for v in said:
                    (i, j), (x, y) = v.shown, v.scores
                    share = x if v.scale == "probability" else 0.5 + 0.5 * ((x > y) - (x < y))
                    add(k, i, j, judge if judge in known else None, share, weight)
                if any(v.scale == "vote" for v in said):
                    add(k, *sorted(pair), None, 0.5, weight)
    x, won, weight = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    precision = np.array([1 / 5000.0] * count + [1 / 10.0**2] * len(judges))

    def value(theta):
        z = x @ theta
        return float(weight @ (won * z - np.logaddexp(0.0, z)) - 0.5 * precision @ theta**2)

    theta, step = np.zeros(count + len(judges)), 1.0
    for _ in range(20000):
        gradient = x.T @ (weight * (won - 1.0 / (1.0 + np.exp(-(x @ theta))))) - precision * theta
        if np.abs(gradient).max() < 1e-9:
            break
        step *= 2.0
        while value(theta + step * gradient) < value(theta) and step > 1e-12:
            step /= 2.0
        theta = theta + step * gradient
    strengths = []
    for k, r in enumerate(records):
        raw = [float(theta[at[k, c.id]]) for c in r.candidates]
        strengths.append([s - sum(raw) / len(raw) for s in raw])
    return strengths, dict(zip(judges, theta[count:], strict=True))


def random_records(seed: int) -> list[Record]:
    """A few prompts of 2 to 4 candidates, two biased judges of either kind; some verdicts failed or are missing."""
    rng = random.Random(seed)
    found = []
    for _ in range(3):
        ids = "abcd"[: rng.randint(2, 4)]
        quality = {i: rng.gauss(0, 1.5) for i in ids}
        said = []
        for (i, j), judge in [(pair, judge) for pair in permutations(ids, 2) for judge in ("one", "two")]:
            p = sigmoid(quality[i] - quality[j] + (1.0 if judge == "one" else -0.5))
            dice = rng.random()
            if dice < 0.15:
                said.append(failed(i, j, judge=judge))
            elif dice < 0.9:
                verdict = soft(i, j, p) if judge == "one" else vote(i, j, rng.choice([i, j, None]))
                said.append(Verdict(judge, verdict.shown, verdict.scores, verdict.scale))
        found.append(record(said, ids))
    return found


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_the_fit_is_the_mode_of_the_documented_posterior(seed):
    records = random_records(seed)
    ids = [[c.id for c in r.candidates] for r in records]
    expected, bonus = posterior_mode(records)
    with fit((i, r.verdicts) for i, r in zip(ids, records, strict=True)) as fitted:
        for row, want in zip(fitted.strengths, expected, strict=True):
            assert row == pytest.approx(want, abs=1e-4)
    assert fitted.position == pytest.approx(bonus, abs=1e-4)
    assert [list(r.strengths) for r in rank(records, ids)] == [pytest.approx(want, abs=1e-4) for want in expected]


def test_where_only_one_order_was_readable_what_was_said_is_taken_as_it_is():
    """Strength and position cannot be told apart then: a tie stays a tie, and no preference is turned round."""
    records = [record([soft("a", "b", 0.9), failed("b", "a")]) for _ in range(8)]
    records += [record([soft("a", "b", 0.6)]), record([soft("a", "b", 0.5)]), record([vote("a", "b", None)])]
    found = [win_probability(*ranking.strengths) for ranking in rank(records, ["ab"] * len(records))]
    assert found == pytest.approx([*[0.9] * 8, 0.6, 0.5, 0.5], abs=1e-3)
    assert positions((["a", "b"], r.verdicts) for r in records) == {"j": 0.0}


def test_a_judge_s_position_is_known_from_the_pairs_that_it_was_shown_in_both_orders():
    """Then a verdict in one order alone is read in the light of it."""
    both = [record([soft("a", "b", 0.9), soft("b", "a", 0.5)]) for _ in range(30)]
    alone = record([soft("a", "b", 0.75)])
    found = [win_probability(*ranking.strengths) for ranking in rank([*both, alone], ["ab"] * 31)]
    assert found[0] == pytest.approx(0.75, abs=1e-3) and found[-1] == pytest.approx(0.5, abs=0.01)


def test_every_judge_of_a_jury_counts_alike_however_often_it_is_asked():
    """The label is the mean of what each judge by itself makes of the pair."""
    votes = [vote("a", "b", "a", "votes"), vote("b", "a", "a", "votes")]
    rates = [Verdict("rates", (c,), (score,)) for c, score in (("a", 2.0), ("b", 5.0))]
    listed = [Verdict("lists", ("a", "b"), (1.0, 3.0))]
    sure = [soft("a", "b", 0.9, "sure"), soft("b", "a", 0.1, "sure")]
    alone = [p_between(record(said)) for said in (votes, rates, listed, sure)]
    assert alone == pytest.approx([5 / 6, 0.25, 0.25, 0.9], abs=1e-3)
    assert p_between(record([*votes, *rates, *listed])) == pytest.approx(sum(alone[:3]) / 3, abs=1e-3)
    assert p_between(record([*votes, *rates, *listed, *sure])) == pytest.approx(sum(alone) / 4, abs=1e-3)


@pytest.mark.parametrize("bonus", [-1.0, 0.0, 2.0])
def test_both_orders_cancel_a_position_bonus(bonus):
    """Over many prompts the bonus is known and the probabilities come out; over one its prior hides some of it."""
    gaps = [-2.0, -0.3, 0.0, 1.0] * 15
    records = [record([soft("a", "b", sigmoid(d + bonus)), soft("b", "a", sigmoid(-d + bonus))]) for d in gaps]
    for d, found, ranking in zip(gaps, records, rank(records, ["ab"] * len(gaps)), strict=True):
        assert win_probability(*ranking.strengths) == pytest.approx(sigmoid(d), abs=0.03)
        alone = p_between(found) - 0.5
        assert alone == pytest.approx(0.0, abs=1e-9) if d == 0.0 else alone * d > 0


@pytest.mark.parametrize("bonus", [0.0, 1.5])
def test_pooled_over_prompts_the_bonus_and_the_order_are_recovered(bonus):
    rng = random.Random(7)
    ids, truth, records = "abcde", [], []
    for _ in range(30):
        quality = {i: rng.gauss(0, 1) for i in ids}
        truth.append(quality)
        pairs = permutations(ids, 2)
        records.append(record([soft(i, j, sigmoid(quality[i] - quality[j] + bonus)) for i, j in pairs], ids))
    assert positions([(ids, r.verdicts) for r in records])["j"] == pytest.approx(bonus, abs=0.05)
    for ranking, quality in zip(rank(records, [ids] * 30), truth, strict=True):
        strengths = dict(zip(ranking.ids, ranking.strengths, strict=True))
        assert sorted(ids, key=strengths.get) == sorted(ids, key=quality.get)
        for i, j in combinations(ids, 2):
            assert win_probability(strengths[i], strengths[j]) == pytest.approx(sigmoid(quality[i] - quality[j]), abs=0.03)
        assert sum(ranking.strengths) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_names_and_places_of_candidates_do_not_matter(seed):
    rng = random.Random(seed)
    found = random_records(seed)[0]
    ids = [c.id for c in found.candidates]
    names = dict(zip(ids, rng.sample(["w", "x", "y", "z"], len(ids)), strict=True))
    said = [Verdict(v.judge, tuple(names[i] for i in v.shown), v.scores, v.scale, v.error) for v in found.verdicts]
    rng.shuffle(said)
    listed = list(names.values())
    rng.shuffle(listed)
    one, other = rank([found], [ids])[0], rank([record(said, listed)], [listed])[0]
    renamed = dict(zip(other.ids, other.strengths, strict=True))
    for i, strength in zip(one.ids, one.strengths, strict=True):
        assert renamed[names[i]] == pytest.approx(strength, abs=1e-8)


def test_exchanging_the_two_orders_verdicts_leaves_the_strengths_and_turns_the_bonus():
    """A bonus for the second place is the mirror of one for the first."""
    one = record([soft("a", "b", 0.9), soft("b", "a", 0.4)])
    other = record([soft("b", "a", 0.1), soft("a", "b", 0.6)])
    first, second = (positions([("ab", r.verdicts)])["j"] for r in (one, other))
    assert p_between(one) == pytest.approx(p_between(other), abs=1e-8)
    assert first == pytest.approx(-second, abs=1e-8) and abs(first) > 0.1


@pytest.mark.parametrize(
    ("winners", "p"),
    [(("a", "a"), (2 + 0.5) / (2 + 1)), (("a", "b"), 0.5), ((None, None), 0.5), (("a", None), 0.70)],
)
def test_votes_are_draws_and_not_certainty(winners, p):
    assert p_between(record([vote("a", "b", winners[0]), vote("b", "a", winners[1])])) == pytest.approx(p, abs=0.012)


def test_more_votes_are_surer_and_a_probability_is_taken_as_it_is():
    two = p_between(record([vote("a", "b", "a"), vote("b", "a", "a")]))
    four = p_between(record([vote(i, j, "a", judge) for i, j in ("ab", "ba") for judge in ("j", "k")]))
    assert 0.8 < two < four < 0.95
    assert p_between(record([soft("a", "b", 0.97), soft("b", "a", 0.03)])) == pytest.approx(0.97, abs=0.02)


def test_certain_probabilities_stay_finite_and_below_one():
    p = p_between(record([soft("a", "b", 1.0), soft("b", "a", 0.0)]))
    assert 0.97 < p < 1.0


def test_failed_verdicts_say_nothing():
    said = [soft("a", "b", 0.8), soft("b", "a", 0.3)]
    without = p_between(record(said))
    assert p_between(record([failed("b", "a"), *said, failed("a", "b"), failed("a", judge="k")])) == pytest.approx(
        without, abs=1e-12
    )
    assert p_between(record([failed("a", "b"), failed("b", "a")])) == 0.5


def test_one_rating_judge_keeps_its_own_scores():
    alone = record([Verdict("j", (i,), (score,)) for i, score in zip("abc", (7.0, 1.0, 3.5), strict=True)], "abc")
    together = record([Verdict("j", ("c", "a", "b"), (3.5, 7.0, 1.0))], "abc")
    twice = record([Verdict("j", ("a", "b", "c"), s) for s in ((6.0, 1.0, 3.0), (8.0, 1.0, 4.0))], "abc")
    for found in (alone, together, twice):
        ranking = rank([found], ["abc"])[0]
        assert ranking.scores == (7.0, 1.0, 3.5)
        assert ranking.strengths[0] > ranking.strengths[2] > ranking.strengths[1]


def test_ratings_of_two_judges_are_not_averaged_across_their_scales():
    said = [Verdict("ten", (i,), (s,)) for i, s in zip("ab", (9.0, 2.0), strict=True)]
    said += [Verdict("hundred", (i,), (s,)) for i, s in zip("ab", (60.0, 80.0), strict=True)]
    ranking = rank([record(said)], ["ab"])[0]
    assert ranking.scores == ranking.strengths == pytest.approx((0.0, 0.0), abs=1e-9)


def test_equal_ratings_are_ties_and_a_larger_gap_is_no_surer():
    assert p_between(record([Verdict("j", (i,), (4.0,)) for i in "ab"])) == 0.5
    near, far = (p_between(record([Verdict("j", ("a", "b"), (x, 1.0))])) for x in (1.1, 100.0))
    assert near == pytest.approx(far) and near == pytest.approx(0.75, abs=0.012)


def test_verdicts_about_candidates_that_are_not_ranked_are_left_out():
    found = record([soft("a", "b", 0.7), soft("b", "a", 0.3), soft("c", "b", 0.99), soft("a", "c", 0.01)], "abc")
    assert rank([found], [["a", "b"]])[0].strengths == rank([record(found.verdicts[:2])], [["a", "b"]])[0].strengths


def test_the_order_of_the_records_does_not_matter():
    rng = random.Random(3)
    records = [r for seed in range(20) for r in random_records(seed)]
    ids = [[c.id for c in r.candidates] for r in records]
    places = list(range(len(records)))
    rng.shuffle(places)
    straight = rank(records, ids)
    shuffled = rank([records[k] for k in places], [ids[k] for k in places])
    for place, ranking in zip(places, shuffled, strict=True):
        assert ranking.strengths == pytest.approx(straight[place].strengths, abs=1e-8)


@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_every_record_gets_its_own_ranking_whatever_their_number(count):
    """The fit works in blocks; a record at a border is like any other."""
    records = [record([soft("a", "b", p := 0.3 + 0.4 * (k % 2)), soft("b", "a", 1 - p)]) for k in range(count)]
    rankings = rank(records, ["ab"] * count)
    assert len(rankings) == count
    for k, ranking in enumerate(rankings):
        assert win_probability(*ranking.strengths) == pytest.approx(0.3 + 0.4 * (k % 2), abs=0.01)


@pytest.mark.parametrize("chunk_size", [1, 40, 300])
def test_the_fit_does_not_depend_on_how_the_prompts_are_cut_into_chunks(chunk_size):
    """Prompts of every width, also with nothing to rank, and judges that are heard late or never where order matters."""
    records = [r for seed in range(30) for r in random_records(seed)]
    ranked = [([c.id for c in r.candidates], r.verdicts) for r in records]
    ranked += [("", []), ("a", [])]
    ranked += [("ab", [soft("a", "b", 0.6, "late"), soft("b", "a", 0.8, "late")])] * 50
    ranked += [("abc", [Verdict("ratings", ("c", "a", "b"), (3.0, 2.0, 2.0))])]
    with fit(ranked) as whole, fit(ranked, chunk_size=chunk_size) as cut:
        assert cut.position == pytest.approx(whole.position, abs=1e-9) and set(cut.position) == {"one", "two", "late"}
        for one, other in zip(whole.strengths, cut.strengths, strict=True):
            assert one == pytest.approx(other, abs=1e-9)


def test_equal_records_have_equal_bits():
    records = [r for seed in range(20) for r in random_records(seed)]
    ids = [[c.id for c in r.candidates] for r in records]
    assert rank(records, ids) == rank(records, ids)


def test_records_of_any_size_stand_side_by_side():
    records = [record([], ""), record([], "a"), record([soft("a", "b", 0.9), soft("b", "a", 0.1)])]
    rankings = rank(records, ["", "a", "ab"])
    assert [len(r.ids) for r in rankings] == [0, 1, 2]
    assert rankings[1].strengths == (0.0,) and rankings[2].strengths[0] > 0


@pytest.mark.slow
def test_one_wide_record_among_thousands_takes_little_memory_and_is_ranked_as_alone():
    rng = random.Random(1)
    wide = [f"c{k}" for k in range(300)]
    quality = {i: rng.gauss(0, 1) for i in wide}
    shown = [pair for k in range(300) for other in rng.sample(range(300), 3) if k != other for pair in [(wide[k], wide[other])]]
    said = [soft(i, j, sigmoid(quality[i] - quality[j] + 0.4), "wide") for i, j in shown]
    narrow = [
        ("abcd", [soft("a", "b", 0.9), soft("c", "b", 0.6), soft("d", "a", 0.2), soft("b", "d", 0.8)]) for _ in range(3000)
    ]
    with fit([(wide, said)]) as fitted:
        (alone,), bonus = fitted.strengths, fitted.position["wide"]
    tracemalloc.start()
    try:
        with fit([*narrow[:1000], (wide, said), *narrow[1000:]]) as fitted:
            strengths = list(fitted.strengths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6
    assert fitted.position["wide"] == pytest.approx(bonus, abs=1e-9)
    assert strengths[1000] == pytest.approx(alone, abs=1e-9)
    assert strengths[0] == pytest.approx(strengths[-1], abs=1e-9) and len(strengths[0]) == 4


def test_thousands_of_prompts_fit_at_once():
    rng = random.Random(0)
    ids, records, best = "abcdefgh", [], []
    for _ in range(2000):
        quality = {i: rng.gauss(0, 1) for i in ids}
        best.append(max(ids, key=quality.get))
        said = [soft(i, j, sigmoid(quality[i] - quality[j] + 0.8)) for i, j in permutations(ids, 2)]
        records.append(record(said, ids))
    rankings = rank(records, [ids] * len(records))
    assert [max(zip(r.strengths, r.ids, strict=True))[1] for r in rankings] == best


@pytest.mark.parametrize("n", [3, 4, 5])
def test_candidates_of_equal_ratings_have_equal_strengths_to_the_last_bit(n):
    """Bits that the solver leaves between equals would choose among them, in place of their order."""
    ids = "abcde"[:n]
    for ratings in product((0.0, 1.0, 2.0), repeat=n):
        rated = record([Verdict("j", tuple(ids), ratings)], ids)
        (found,) = rank([rated], [list(ids)])
        assert len(set(found.strengths)) == len(set(ratings))
        assert sorted(ids, key=lambda c: -found.strengths[ids.index(c)]) == sorted(ids, key=lambda c: -ratings[ids.index(c)])
