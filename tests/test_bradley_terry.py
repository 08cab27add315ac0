"""The pooled fit against an optimiser that shares no code with it, judges whose worth is known, and the laws it must obey."""

from __future__ import annotations

import math
import random
import tracemalloc
from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest

from rlaif.ranking.bradley_terry import Fit, fit, rank
from rlaif.ranking.propagation import RELIABILITY
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
    return rank([found], [ids])[0].p(ids.index(one), ids.index(other))


def fitted(ranked) -> Fit:
    """What the judges are like, by the fit."""
    with fit(ranked) as found:
        return found


def log_evidence(records: list[Record], b: float, a: float, r: float, scale: float) -> float:
    """Of votes on two candidates and their ratings by two judges, by a sum over the difference, with the documented priors."""
    line = np.linspace(-25.0, 25.0, 2001)
    total = -0.5 * (b / 2.0) ** 2 - 0.5 * (math.log(a) / 0.5) ** 2 - 0.5 * (math.log(r / (1 - r)) / 1.5) ** 2
    for one in records:
        density = -0.5 * line**2 / 8.0
        ratings: dict[str, float] = {}
        for v in one.verdicts:
            if v.scale == "rating":
                ratings[v.shown[0]] = v.scores[0] / scale
                continue
            odds = a * (line if v.shown[0] == "a" else -line) + b
            density = density - np.logaddexp(0.0, -odds if v.scores[0] else odds)
        apart = ratings["a"] - ratings["b"] - r**0.5 * line / 2.0
        density = density - 0.25 * apart**2 / (1 - r) - 0.5 * math.log(1 - r)
        total += math.log(np.exp(density - density.max()).sum()) + density.max()
    return total


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


def test_the_parameters_are_the_mode_of_the_documented_evidence():
    """Of votes, which scatter as they are: the largest of the evidence summed exactly, by a search that knows no slopes."""
    rng = random.Random(5)
    records, gaps = [], []
    for _ in range(40):
        d = rng.gauss(0, 2.83)
        said = [
            vote(i, j, rng.choices([i, j], [p := sigmoid(0.7 * (d if i == "a" else -d) + 0.5), 1 - p])[0])
            for i, j in ("ab", "ba")
        ]
        said += [Verdict("r", (i,), (rng.gauss(5 + e, 1),)) for i, e in (("a", d / 2), ("b", -d / 2))]
        records.append(record(said))
        gaps.append(abs(said[2].scores[0] - said[3].scores[0]))
    found = fitted([("ab", r.verdicts) for r in records])
    values = [found.position["j"], found.discrimination["j", "pairs"], found.reliability["r"]]
    scale = max(float(np.median(gaps)) / (2**0.5 * 0.6744897501960817), float(np.mean(np.square(gaps)) / 2) ** 0.5)
    best = log_evidence(records, *values, scale)
    for k, step in product(range(3), (0.98, 1.02)):
        beside = [value * step if place == k else value for place, value in enumerate(values)]
        assert log_evidence(records, *beside, scale) < best


def judged(rng, strengths, *, a=1.0, b=0.0, judge="j", soft_error=None) -> list[Verdict]:
    """All pairs in both orders: votes drawn by the model, or probabilities with an error of that sd in their log-odds."""
    said = []
    for i, j in permutations("abcdefgh"[: len(strengths)], 2):
        odds = a * (strengths["abcdefgh".index(i)] - strengths["abcdefgh".index(j)]) + b
        if soft_error is None:
            said.append(vote(i, j, i if rng.random() < sigmoid(odds) else j, judge))
        else:
            said.append(soft(i, j, sigmoid(odds + rng.gauss(0, soft_error)), judge))
    return said


def ratings(rng, strengths, r: float, judge: str = "r") -> list[Verdict]:
    """As the model has them, around 5 with a standard deviation of 1.7."""
    z = [r**0.5 * s / 2 + (1 - r) ** 0.5 * rng.gauss(0, 1) for s in strengths]
    return [Verdict(judge, (i,), (5 + 1.7 * x,)) for i, x in zip("abcdefgh", z, strict=False)]


def drawn(rng, n: int) -> list[float]:
    return [rng.gauss(0, 2) for _ in range(n)]


def test_where_only_one_order_was_readable_nothing_is_put_down_to_the_place():
    """Strength and position cannot be told apart then: a tie stays a tie, and no preference is turned round."""
    records = [record([soft("a", "b", 0.9), failed("b", "a")]) for _ in range(8)]
    records += [record([soft("a", "b", 0.6)]), record([soft("a", "b", 0.5)]), record([vote("a", "b", None)])]
    found = [ranking.p(0, 1) for ranking in rank(records, ["ab"] * len(records))]
    assert found[0] == found[7] > found[8] > 0.5 and found[9:] == [0.5, 0.5]
    known = fitted((["a", "b"], r.verdicts) for r in records)
    assert known.position == {"j": 0.0} and known.discrimination == {("j", "pairs"): 1.0}


def test_a_judge_s_position_is_known_from_the_pairs_that_it_was_shown_in_both_orders():
    """Then a verdict in one order alone is read in the light of it."""
    both = [record([soft("a", "b", 0.9), soft("b", "a", 0.5)]) for _ in range(100)]
    alone = record([soft("a", "b", 0.75)])
    found = [ranking.p(0, 1) for ranking in rank([*both, alone], ["ab"] * 101)]
    assert found[0] > 0.6 and found[-1] == pytest.approx(0.5, abs=0.03) and p_between(alone) > 0.6


@pytest.mark.parametrize("bonus", [-1.0, 0.0, 2.0])
def test_both_orders_cancel_a_position_bonus(bonus):
    gaps = [-2.0, -0.3, 0.0, 1.0] * 15
    records = [record([soft("a", "b", sigmoid(d + bonus)), soft("b", "a", sigmoid(-d + bonus))]) for d in gaps]
    without = [record([soft("a", "b", sigmoid(d)), soft("b", "a", sigmoid(-d))]) for d in gaps]
    plain = rank(without, ["ab"] * len(gaps))
    for d, found, ranking, other in zip(gaps, records, rank(records, ["ab"] * len(gaps)), plain, strict=True):
        assert ranking.p(0, 1) == pytest.approx(other.p(0, 1), abs=0.1)
        alone = p_between(found) - 0.5
        assert alone == pytest.approx(0.0, abs=1e-9) if d == 0.0 else alone * d > 0


@pytest.mark.parametrize(("a", "b"), [(0.5, -1.0), (1.0, 0.7), (2.0, 0.0)])
def test_position_and_discrimination_of_a_judge_by_itself_are_recovered(a, b):
    """From votes, and from probabilities without any error: both are draws from the same odds."""
    rng = random.Random(1)
    truth = [drawn(rng, 4) for _ in range(300)]
    for error in (None, 0.0):
        found = fitted([("abcd", judged(rng, s, a=a, b=b, soft_error=error)) for s in truth])
        assert found.position["j"] == pytest.approx(b, abs=0.15)
        assert found.discrimination["j", "pairs"] == pytest.approx(min(a, 1.0), rel=0.12)  # by itself never above


@pytest.mark.parametrize("r", [0.4, 0.9])
def test_the_reliability_of_ratings_is_recovered_beside_another_judge_and_left_alone_without(r):
    rng = random.Random(2)
    truth = [drawn(rng, 5) for _ in range(300)]
    rated = [ratings(rng, s, r) for s in truth]
    both = fitted([("abcde", [*said, *judged(rng, s)]) for s, said in zip(truth, rated, strict=True)])
    assert both.reliability["r"] == pytest.approx(r, abs=0.06) and both.discrimination["j", "pairs"] == pytest.approx(
        1, abs=0.12
    )
    assert fitted([("abcde", said) for said in rated]).reliability == {"r": RELIABILITY}


def test_what_a_judge_does_is_told_apart_by_form():
    """A judge that rates, compares and ranks under one name is good at each in its own way."""
    rng = random.Random(3)
    truth = [drawn(rng, 4) for _ in range(200)]
    rows = []
    for s in truth:
        listed = Verdict("j", tuple("bacd"), tuple(rng.random() for _ in "abcd"), "vote")
        rows.append(("abcd", [*ratings(rng, s, 0.9, "j"), *judged(rng, s, b=1.0), listed]))
    found = fitted(rows)
    assert found.reliability["j"] > 0.8 and found.position["j"] == pytest.approx(1.0, abs=0.2)
    assert found.discrimination["j", "pairs"] > 0.8 and found.discrimination["j", "lists"] < 0.2


def test_a_good_judge_outweighs_two_noisy_ones():
    """Better than the same jury with equal weights, and nearly as good as the good one alone or better."""
    rng = random.Random(4)
    truth = [drawn(rng, 5) for _ in range(300)]
    worth = {"good": 1.5, "dull": 0.15, "duller": 0.1}
    said = [{judge: judged(rng, s, a=a, judge=judge) for judge, a in worth.items()} for s in truth]
    whole = [record([v for judge in worth for v in by[judge]], "abcde") for by in said]
    equal = [record([replace(v, judge="all") for v in one.verdicts], "abcde") for one in whole]

    def right(records: list[Record]) -> float:
        found = rank(records, ["abcde"] * len(records))
        return sum(s.index(max(s)) == r.strengths.index(max(r.strengths)) for s, r in zip(truth, found, strict=True)) / len(
            truth
        )

    weighed, flat, alone = right(whole), right(equal), right([record(by["good"], "abcde") for by in said])
    assert weighed > flat + 0.05 and weighed > alone - 0.01
    known = fitted([("abcde", one.verdicts) for one in whole]).discrimination
    assert known["good", "pairs"] > 1.2 and known["dull", "pairs"] < 0.3 and known["duller", "pairs"] < 0.3
    turned = fitted([("abcde", one.verdicts[::-1]) for one in whole]).discrimination
    assert {k: pytest.approx(v, abs=1e-5) for k, v in known.items()} == turned


@pytest.mark.parametrize("a", [0.4, 1.0])
def test_where_the_model_holds_a_probability_is_how_often_it_is_right(a):
    rng = random.Random(6)
    truth = [drawn(rng, 4) for _ in range(1500)]
    records = [record(judged(rng, s, a=a, b=0.5)[:: 1 if k % 2 else 3], "abcd") for k, s in enumerate(truth)]
    found: list[tuple[float, bool]] = []
    for s, ranking in zip(truth, rank(records, ["abcd"] * len(records)), strict=True):
        for i, j in combinations(range(4), 2):
            one, other = (i, j) if ranking.p(i, j) > 0.5 else (j, i)
            found.append((ranking.p(one, other), s[one] > s[other]))
    for low, high in ((0.5, 0.65), (0.65, 0.8), (0.8, 0.9), (0.9, 0.97), (0.97, 1.01)):
        within = [pair for pair in found if low <= pair[0] < high]
        claimed, kept = (sum(column) / len(within) for column in zip(*within, strict=True))
        assert kept == pytest.approx(claimed, abs=4 * math.sqrt(claimed * (1 - claimed) / len(within)) + 0.01)


def test_scores_are_of_one_kind_throughout_a_run():
    """A prompt on which a judge that rates and compares asked for no comparison has strengths beside the others'."""
    rates = [Verdict("j", (c,), (s,)) for c, s in (("a", 7.0), ("b", 3.0))]
    fitted = rank([record(rates), record([*rates, vote("a", "b", "a")])], ["ab", "ab"])
    assert all(ranking.scores == ranking.strengths for ranking in fitted)
    assert rank([record(rates)], ["ab"])[0].scores == (7.0, 3.0)


def test_a_judge_that_contradicts_itself_is_hardly_believed():
    rng = random.Random(8)
    steady, torn = ([drawn(rng, 2) for _ in range(600)] for _ in range(2))
    agreeing = ("ab", [vote("a", "b", "a"), vote("b", "a", "a")])
    ends = []
    for truth, a in ((steady, 3.0), (torn, 0.05)):
        with fit([agreeing, *(("ab", judged(rng, s, a=a)) for s in truth)]) as found:
            ends.append(next(found.posteriors).wins[0][1])
    assert ends[0] > 0.92 and 0.5 < ends[1] < 0.75


def test_a_judge_that_always_repeats_itself_is_not_held_for_infallible():
    rows = [("ab", [vote("a", "b", "ab"[k % 2]), vote("b", "a", "ab"[k % 2])]) for k in range(1000)]
    with fit(rows) as found:
        assert found.discrimination["j", "pairs"] == 1.0
        assert 0.92 < next(found.posteriors).wins[0][1] < 0.95
    twins = [("ab", [Verdict(judge, (c,), (s,)) for judge in "xy" for c, s in (("a", 5.0), ("b", 2.0 + k))]) for k in range(9)]
    with fit(twins * 100) as found:
        assert 0.9 < found.reliability["x"] == found.reliability["y"] < 0.96


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
        assert renamed[names[i]] == pytest.approx(strength, abs=1e-5)


def test_exchanging_the_two_orders_verdicts_leaves_the_strengths_and_turns_the_bonus():
    """A bonus for the second place is the mirror of one for the first."""
    one = record([soft("a", "b", 0.9), soft("b", "a", 0.4)])
    other = record([soft("b", "a", 0.1), soft("a", "b", 0.6)])
    first, second = (fitted([("ab", r.verdicts)]).position["j"] for r in (one, other))
    assert p_between(one) == pytest.approx(p_between(other), abs=1e-6)
    assert first == pytest.approx(-second, abs=1e-6) and abs(first) > 0.1


@pytest.mark.parametrize(("winners", "p"), [("aa", 0.936), ("ab", 0.5), ((None, None), 0.5), (("a", None), 0.768)])
def test_votes_are_draws_and_not_certainty(winners, p):
    assert p_between(record([vote("a", "b", winners[0]), vote("b", "a", winners[1])])) == pytest.approx(p, abs=0.012)


def test_few_comparisons_are_less_sure_than_many_and_no_probability_is_taken_for_the_truth():
    one, two = record([vote("a", "b", "a")]), record([vote("a", "b", "a"), vote("b", "a", "a")])
    four = record([vote(i, j, "a", judge) for i, j in ("ab", "ba") for judge in ("j", "k")])
    assert 0.8 < p_between(one) < p_between(two) < p_between(four) < 1.0
    assert 0.8 < p_between(record([soft("a", "b", 0.97), soft("b", "a", 0.03)])) < p_between(two)
    assert p_between(record([soft("a", "b", 1.0), soft("b", "a", 0.0)])) == pytest.approx(p_between(two), abs=0.02)


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


def test_a_gap_of_ratings_is_as_sure_as_it_is_wide_beside_the_run_s_other_gaps():
    assert p_between(record([Verdict("j", (i,), (4.0,)) for i in "ab"])) == 0.5
    near, far = (p_between(record([Verdict("j", ("a", "b"), (x, 1.0))])) for x in (1.1, 100.0))
    assert near == pytest.approx(far) and near == pytest.approx(0.75, abs=0.01)
    rows = [record([Verdict("j", ("a", "b"), (x, 1.0))]) for x in (*[2.0] * 9, 3.0, 1.5, 9.0)]
    chances = [found.p(0, 1) for found in rank(rows, ["ab"] * len(rows))]
    assert 0.5 < chances[-2] < chances[0] < chances[-3] < chances[-1] < 1.0


def test_ratings_that_are_mostly_alike_do_not_make_the_few_that_are_apart_certain():
    """Nor does one that is off by far make the others say nothing."""
    alike = [
        record([Verdict("j", (i,), (x,)) for i, x in zip("ab", (5.0, 5.0 + gap), strict=True)])
        for gap in [0.5] * 60 + [6.0] * 6
    ]
    chances = [found.p(0, 1) for found in rank(alike, ["ab"] * len(alike))]
    assert 0.35 < chances[0] < 0.45 and 1e-4 < chances[-1] < 0.01
    off = [
        record([Verdict("j", (i,), (x,)) for i, x in zip("ab", (5.0, 5.0 + gap), strict=True)]) for gap in [1.0] * 60 + [1e9]
    ]
    chances = [found.p(0, 1) for found in rank(off, ["ab"] * len(off))]
    assert 0.2 < chances[0] < 0.4


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
        assert ranking.strengths == pytest.approx(straight[place].strengths, abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_every_record_gets_its_own_ranking_whatever_their_number(count):
    """The fit works in blocks; a record at a border is like any other."""
    records = [record([vote("a", "b", "ab"[k % 2]), vote("b", "a", "ab"[k % 2])]) for k in range(count)]
    rankings = rank(records, ["ab"] * count)
    assert len(rankings) == count
    for k, ranking in enumerate(rankings):
        assert (ranking.p(0, 1) > 0.9, ranking.p(1, 0) > 0.9) == (k % 2 == 0, k % 2 == 1)


@pytest.mark.parametrize("chunk_size", [1, 40, 300])
def test_the_fit_does_not_depend_on_how_the_prompts_are_cut_into_chunks(chunk_size):
    """Prompts of every width, also with nothing to rank, and judges that are heard late or never where order matters."""
    records = [r for seed in range(30) for r in random_records(seed)]
    ranked = [([c.id for c in r.candidates], r.verdicts) for r in records]
    ranked += [("", []), ("a", [])]
    ranked += [("ab", [soft("a", "b", 0.6, "late"), soft("b", "a", 0.8, "late")])] * 50
    ranked += [("abc", [Verdict("ratings", ("c", "a", "b"), (3.0, 2.0, 2.0))])]
    with fit(ranked) as whole, fit(ranked, chunk_size=chunk_size) as cut:
        assert cut.position == pytest.approx(whole.position, abs=1e-6) and set(cut.position) == {"one", "two", "late"}
        assert cut.discrimination == pytest.approx(whole.discrimination, abs=1e-6)
        for one, other in zip(whole.posteriors, cut.posteriors, strict=True):
            assert one.strengths == pytest.approx(other.strengths, abs=1e-6)
            assert len(one.wins) == len(other.wins) == len(one.strengths)
            for row, column in zip(one.wins, other.wins, strict=True):
                assert row == pytest.approx(column, abs=1e-6)


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
def test_one_wide_record_among_hundreds_takes_little_memory_and_is_ranked_as_alone():
    rng = random.Random(1)
    wide = [f"c{k}" for k in range(300)]
    quality = {i: rng.gauss(0, 1) for i in wide}
    shown = [pair for k in range(300) for other in rng.sample(range(300), 3) if k != other for pair in [(wide[k], wide[other])]]
    said = [soft(i, j, sigmoid(quality[i] - quality[j] + 0.4), "wide") for i, j in shown]
    narrow = [
        ("abcd", [soft("a", "b", 0.9), soft("c", "b", 0.6), soft("d", "a", 0.2), soft("b", "d", 0.8)]) for _ in range(500)
    ]
    with fit([(wide, said)]) as fitted:
        (alone,), known = fitted.posteriors, fitted
    tracemalloc.start()
    try:
        with fit([*narrow[:200], (wide, said), *narrow[200:]]) as fitted:
            posteriors = list(fitted.posteriors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6
    assert fitted.position["wide"] == pytest.approx(known.position["wide"], abs=1e-3)
    assert posteriors[200].strengths == pytest.approx(alone.strengths, abs=1e-2)
    assert posteriors[0].strengths == pytest.approx(posteriors[-1].strengths, abs=1e-9) and len(posteriors[0].wins) == 4


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


def rated_alone(ratings) -> tuple[list[str], list[Verdict]]:
    ids = [f"c{k}" for k in range(len(ratings))]
    return ids, [Verdict("j", (c,), (float(x),)) for c, x in zip(ids, ratings, strict=True)]


def test_hundreds_of_ratings_of_one_prompt_are_as_good_as_eight_of_many():
    """The first prompt alone has more differences than are kept of a run, and its scale is still found."""
    rng = np.random.default_rng(4)
    with fit([rated_alone(rng.normal(0.0, 3.0, 500)) for _ in range(3)]) as found:
        wide = [max(p.strengths) for p in found.posteriors]
    with fit([rated_alone(3.0 * x) for x in rng.normal(0.0, 1.0, (400, 8))]) as found:
        narrow = [max(p.strengths) for p in found.posteriors]
    assert np.mean(wide) / 3.04 == pytest.approx(np.mean(narrow) / 1.42, rel=0.15)  # E[max] of 500 and of 8 normal draws


def test_ratings_of_every_second_prompt_alone_find_their_scale():
    rng = np.random.default_rng(5)
    rated = [rated_alone(3.0 * x) for x in rng.normal(0.0, 1.0, (600, 40))]
    with fit([prompt for one in rated for prompt in (one, (["a"], []))][1:], chunk_size=2000) as found:
        every_second = [p.strengths for p in found.posteriors if len(p.strengths) > 1]
    with fit(rated) as found:
        assert every_second[0] == pytest.approx(list(found.posteriors)[1].strengths, rel=0.05)
