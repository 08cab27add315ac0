"""Schedules by themselves: what each asks about, whatever a judge says, and how it goes on after what an oracle says."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.ranking.adaptive import Adaptive, Aim, default_calls
from rlaif.ranking.schedule import Elimination, Every, RandomPair, Swiss
from rlaif.types import Group, Said, Schedule, Verdict

DUELS: list[Callable[[int | None], Schedule]] = [lambda most: Every(2, most=most), Swiss, Elimination, RandomPair, Adaptive]
COUNTS, SEEDS = st.integers(2, 20), st.integers(0, 2**32)
CAPS = st.none() | st.integers(2, 60)


@dataclass(frozen=True)
class Oracle:
    """Knows the quality, 0 to 1, of each candidate. What it is not `able` to say is a failed verdict.

    `gives` says for how many shown it gives a verdict at all, `soft` whether by probabilities; one on one or two takes `calls`.
    """

    qualities: Sequence[float]
    soft: bool = True
    gives: Callable[[int], bool] = lambda shown: True
    able: Callable[[int], bool] = lambda shown: True
    calls: int = 1

    def takes(self, shown: int) -> int:
        """The calls of a verdict; of several, who are ranked as text, one."""
        return self.calls if shown <= 2 and self.gives(shown) else 1

    def __call__(self, ids: Sequence[str], group: Group) -> Verdict | None:
        shown, q = tuple(ids[place] for place in group), [self.qualities[place] for place in group]
        if not self.gives(len(group)):
            return None
        if not self.able(len(group)):
            return Verdict("j", shown, None, error="unreadable: it would rather not say", calls=self.takes(len(group)))
        if len(group) == 1:
            return Verdict("j", shown, (1.0 + 8.0 * q[0],), calls=self.takes(len(group)))
        if len(group) > 2 or not self.soft:
            return Verdict("j", shown, tuple(q), "vote", calls=self.takes(len(group)))
        p = 1.0 / (1.0 + math.exp(-6.0 * (q[0] - q[1])))
        return Verdict("j", shown, (p, 1.0 - p), "probability", calls=self.takes(len(group)))


def ask(
    schedule: Schedule, judge: Oracle, seed: int = 0, ids: Sequence[str] | None = None
) -> tuple[list[list[Group]], list[Verdict]]:
    """The groups asked about, round by round, and what was said."""
    ids = ids or [f"c{k}" for k in range(len(judge.qualities))]
    work, asked, verdicts = schedule.rounds(ids, seed), list[list[Group]](), list[Verdict]()
    groups = next(work, None)
    while groups is not None:
        assert groups, "a round asks about something"
        asked.append(groups)
        said: Said = [judge(ids, group) for group in groups]
        verdicts += filter(None, said)
        try:
            groups = work.send(said)
        except StopIteration:
            break
    return asked, verdicts


def flat(asked: Sequence[Sequence[Group]]) -> list[Group]:
    return [group for groups in asked for group in groups]


def drawn(count: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(count)]


def paid(asked: Sequence[Sequence[Group]], judge: Oracle) -> int:
    return sum(judge.takes(len(group)) for group in flat(asked))


# Laws of all


@pytest.mark.parametrize("make", [*DUELS, lambda most: Every(1, most=most), lambda most: Every(4, 2, most)])
@settings(deadline=None, max_examples=60)
@given(count=COUNTS, seed=SEEDS, most=CAPS, calls=st.integers(1, 3), soft=st.booleans(), unable=st.sampled_from([0, 1, 3]))
def test_groups_are_sound_and_within_the_calls(
    make: Callable[[int | None], Schedule],
    count: int,
    seed: int,
    most: int | None,
    calls: int,
    soft: bool,
    unable: int,
) -> None:
    schedule = make(most)
    judge = Oracle(drawn(count, seed), soft, able=lambda shown: min(shown, 3) != unable, calls=calls)
    asked, _ = ask(schedule, judge, seed)
    groups = flat(asked)
    assert all(set(group) <= set(range(count)) and len(set(group)) == len(group) for group in groups)
    assert len(set(groups)) == len(groups), "nothing is asked twice"
    if most is not None:
        assert paid(asked, judge) <= max(most, calls * len(asked[0])), "only the first ones may be dearer than they looked"
    if calls == 1:
        duels = {group for group in groups if len(group) == 2}
        assert duels == {group[::-1] for group in duels}, "a duel has both orders"
        if most is not None or unable != 1:
            assert len(groups) <= schedule.calls(count).total()
        if not isinstance(schedule, Adaptive):
            assert Counter(map(len, groups)) == schedule.calls(count) or isinstance(schedule, Swiss)


@pytest.mark.parametrize("make", DUELS)
@settings(deadline=None, max_examples=15)
@given(count=st.integers(2, 9), seed=SEEDS, most=CAPS)
def test_the_same_seed_and_verdicts_give_the_same_groups(
    make: Callable[[int | None], Schedule], count: int, seed: int, most: int | None
) -> None:
    judge = Oracle(drawn(count, seed))
    assert ask(make(most), judge, seed)[0] == ask(make(most), judge, seed)[0]
    assert ask(make(most), judge, seed, [f"another {k}" for k in range(count)])[0] == ask(make(most), judge, seed)[0]


@pytest.mark.parametrize("make", DUELS)
@pytest.mark.parametrize("shown", [1, 2, 3])
def test_nobody_needs_calls_where_there_is_nobody(make: Callable[[int | None], Schedule], shown: int) -> None:
    for count in (0, 1):
        assert make(None).calls(count) == make(4).calls(count) == Every(shown).calls(count) == Counter()


# All groups, or a part of them


@given(count=COUNTS, arity=st.sampled_from([1, 2, 3]), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_every_shows_all_in_all_orders(count: int, arity: int, seed: int) -> None:
    count = min(count, 7)
    asked, _ = ask(Every(arity), Oracle(drawn(count, seed)), seed)
    if arity >= count and arity > 2:
        assert asked == [[tuple(range(count))]]
    else:
        assert len(asked[0]) == 1 and len(flat(asked)) == len(set(flat(asked))) == math.perm(count, arity)


@given(count=st.integers(3, 20), seed=SEEDS, extra=st.integers(0, 400), calls=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_a_part_of_the_pairs_leaves_nobody_out(count: int, seed: int, extra: int, calls: int) -> None:
    most = calls * (2 * (count - 1) + extra)
    groups = flat(ask(Every(2, most=most), Oracle(drawn(count, seed), calls=calls), seed)[0])
    together = {0}
    for _ in range(count):
        together |= {place for group in groups if together & set(group) for place in group}
    assert together == set(range(count))
    assert len(groups) == min(most // calls // 2 * 2, count * (count - 1))


@given(count=st.integers(4, 12), seed=SEEDS, most=st.integers(2, 23))
@settings(deadline=None, max_examples=30)
def test_a_part_of_larger_groups_repeats_none(count: int, seed: int, most: int) -> None:
    groups = flat(ask(Every(3, most=most), Oracle(drawn(count, seed)), seed)[0])
    assert len(groups) == len(set(groups)) <= most and all(len(group) == 3 for group in groups)
    if most >= 6 * count:
        assert set(range(count)) == {place for group in groups for place in group}


def test_a_dear_first_verdict_costs_the_others_nothing() -> None:
    """A first reply without log-probabilities is asked again as text; the others are asked as text at once."""

    class Judge(Oracle):
        def __call__(self, ids: Sequence[str], group: Group) -> Verdict | None:
            verdict = super().__call__(ids, group)
            if verdict is None or group != first:
                return verdict
            return Verdict("j", verdict.shown, verdict.scores, verdict.scale, calls=2)

    cases: tuple[tuple[Schedule, int], ...] = (
        (Every(2, most=20), 18),
        (Every(2, most=13), 12),
        (Every(2, most=30), 28),
        (Elimination(9), 8),
    )
    for schedule, expected in cases:
        first = next(schedule.rounds([str(k) for k in range(6)], 3))[0]
        groups = flat(ask(schedule, Judge(drawn(6, 1)), 3)[0])
        assert len(groups) == expected, (schedule, len(groups))
        assert set(groups) == {group[::-1] for group in groups}


# Duels of those that stand next to each other, or that have won


@given(count=COUNTS, seed=SEEDS, soft=st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_best_wins_single_elimination(count: int, seed: int, soft: bool) -> None:
    judge = Oracle(drawn(count, seed), soft)
    groups = flat(ask(Elimination(), judge, seed)[0])
    best = max(range(count), key=lambda place: judge.qualities[place])
    lost = Counter(min(group, key=lambda place: judge.qualities[place]) for group in groups)
    assert lost == {place: 2 for place in range(count) if place != best}, "everybody else loses one duel, in both orders"


@given(count=COUNTS, seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_swiss_rounds_pair_everybody_with_somebody_new(count: int, seed: int) -> None:
    (alone, *others), _ = ask(Swiss(), Oracle(drawn(count, seed)), seed)
    rounds = [alone + others[0], *others[1:]]
    assert len(rounds) <= math.ceil(math.log2(count))
    for groups in rounds:
        fought = Counter(place for group in groups for place in group)
        assert set(fought.values()) == {2} and len(fought) >= count - count % 2 - 2


def test_swiss_rounds_bring_the_best_together() -> None:
    for seed in range(20):
        judge = Oracle(drawn(8, seed))
        last = ask(Swiss(), judge, seed)[0][-1]
        best = sorted(range(8), key=lambda place: -judge.qualities[place])
        assert len({min(best.index(place) for place in group) for group in last}) == 4  # each pair's better one
        opponent = next(group[0] for group in last if group[1] == best[0])
        assert best.index(opponent) <= 4, "the best meets no loser of both rounds"


@given(count=COUNTS, seed=SEEDS)
@settings(deadline=None, max_examples=60)
def test_a_random_pair_is_any_pair(count: int, seed: int) -> None:
    one, other = flat(ask(RandomPair(), Oracle(drawn(count, seed)), seed)[0])
    assert one == other[::-1] and one[0] != one[1]


def test_random_pairs_differ_by_the_seed() -> None:
    seen = {frozenset(next(RandomPair().rounds("abcd", seed))[0]) for seed in range(100)}
    assert len(seen) == 6


# Where it matters


def test_what_adaptive_takes_by_default() -> None:
    assert [default_calls(count) for count in (2, 3, 4, 5, 6, 8, 16)] == [2, 6, 8, 9, 12, 14, 24]
    for count in range(2, 21):
        assert Adaptive().calls(count).total() == default_calls(count) <= count * (count - 1)


def test_a_plan_has_no_half_of_a_duel() -> None:
    alike = Oracle([0.5] * 6)  # no duel is worth less than another: all that may be asked for are
    for most in range(6, 20):
        assert Counter(map(len, flat(ask(Adaptive(most), alike)[0]))) == Adaptive(most).calls(6)


@given(count=COUNTS, seed=SEEDS, soft=st.booleans())
@settings(deadline=None, max_examples=40)
def test_an_oracle_needs_few_calls(count: int, seed: int, soft: bool) -> None:
    judge = Oracle(drawn(count, seed), soft, gives=lambda shown: soft or shown > 1)
    asked, _ = ask(Adaptive(), judge, seed)
    groups = flat(asked)
    assert len(groups) <= default_calls(count)
    if count > 3:
        assert asked[0] == [(0,)], "the first one tells whether there are ratings"
        scored = [group for group in groups if len(group) != 2]
        lists = scored[1:]
        assert len(lists) == (count - 1 if soft else 2)
        assert soft or (lists[0] == lists[1][::-1] and sorted(lists[0]) == list(range(count)))
        assert len(groups) - len(scored) <= 2 * round(math.log2(count))
        assert all(len({place for group in groups[:4] for place in group}) in (2, 4) for groups in asked if len(groups[0]) == 2)


@pytest.mark.parametrize(("aim", "wanted"), [("gap", [{0, 1}, {2, 3}]), ("best", [{0, 1}])])
def test_duels_are_of_those_who_may_be_chosen(aim: Aim, wanted: list[set[int]]) -> None:
    judge = Oracle([1.0, 0.9875, 0.0, 0.0125, 0.5, 0.5])  # ratings 9, 8.9, 1, 1.1, 5, 5
    for most in (8, 10, 12):
        duels = [set(group) for group in flat(ask(Adaptive(most, aim=aim), judge)[0]) if len(group) == 2]
        first = duels[: 2 * len(wanted)]
        assert all(duel in wanted for duel in first), duels
        assert all(duel & {0, 1, 2, 3} if aim == "gap" else not duel & {2, 3} for duel in duels), duels


def test_it_ends_at_the_target() -> None:
    judge = Oracle([0.8, 0.3, 0.45, 0.5, 0.75, 0.4, 0.7, 0.32])
    for q in (judge, Oracle(judge.qualities[::-1])):
        spent = [len(flat(ask(Adaptive(40, target), q)[0])) for target in (0.95, 0.99, 1.0)]
        assert spent[0] == 8 < spent[1] < spent[2] == 40
    alike = Oracle([0.5, 0.5, 0.51, 0.49, 0.5, 0.52, 0.5, 0.48])
    assert len(flat(ask(Adaptive(30, 0.9), alike)[0])) > 20


def test_best_of_n_ends_when_the_best_is_better_than_each_other() -> None:
    judge = Oracle([0.99, 0.97, 0.01, 0.5, 0.5, 0.5, 0.5, 0.5])  # surely better than the worst, hardly than the second
    assert len(flat(ask(Adaptive(30, 0.95, "gap"), judge)[0])) == 8
    duels = [set(group) for group in flat(ask(Adaptive(30, 0.95, "best"), judge)[0]) if len(group) == 2]
    assert duels[:2] == [{0, 1}, {0, 1}]


def test_it_ends_where_no_duel_changes_anything() -> None:
    judge = Oracle([0.99, 0.01, 0.45, 0.5, 0.55, 0.4, 0.6, 0.52])
    assert 8 < len(flat(ask(Adaptive(50), judge)[0])) < 30


def test_equal_ratings_are_no_certainty() -> None:
    tied = Oracle([0.5] * 8)
    asked, _ = ask(Adaptive(), tied)
    assert len(flat(asked)) == default_calls(8), "who is rated alike is compared"


def test_what_fails_is_not_asked_again_and_ends_nothing() -> None:
    judge = Oracle(drawn(8, 5), able=lambda shown: shown != 2)
    asked = flat(ask(Adaptive(20), judge)[0])
    assert len(asked) == len(set(asked)) == 20
    assert Counter(map(len, asked)) == {1: 8, 2: 12}


@pytest.mark.parametrize("lists", [True, False])
def test_without_ratings_all_are_ranked_together_and_else_compared(lists: bool) -> None:
    judge = Oracle(drawn(8, 2), soft=False, gives=lambda shown: shown > 1, able=lambda shown: lists or shown == 2)
    asked, _ = ask(Adaptive(), judge)
    (one, other), rest = asked[1], asked[2:]
    assert asked[0] == [(0,)] and one == other[::-1] and sorted(one) == list(range(8))
    assert all(len(group) == 2 for group in flat(rest))
    assert len(flat(rest)) == (6 if lists else 14)
    few, _ = ask(Adaptive(), Oracle(drawn(4, 2), soft=False, able=lambda shown: shown == 2))
    assert Counter(map(len, flat(few))) == {1: 4, 2: 12}, "of four that cannot be scored, all pairs"
    never, _ = ask(Adaptive(rates=False), judge)
    assert never[0] == asked[1] and flat(never) == flat(asked[1:])


def test_two_and_three_are_all_compared() -> None:
    for count in (2, 3):
        asked, _ = ask(Adaptive(), Oracle(drawn(count, 0)))
        assert sorted(flat(asked)) == sorted(flat(ask(Every(2), Oracle(drawn(count, 0)))[0]))


def test_more_than_letters_are_ranked_in_parts() -> None:
    judge = Oracle(drawn(30, 3), soft=False, gives=lambda shown: shown > 1)
    asked, _ = ask(Adaptive(), judge)
    lists = asked[1]
    assert [len(group) for group in lists] == [26] * 4 and lists[2:] == [group[::-1] for group in lists[:2]]
    assert {place for group in lists for place in group} == set(range(30)) and set(lists[0]) & set(lists[1])
    assert len(flat(asked)) <= default_calls(30)


@given(seed=SEEDS, count=st.integers(4, 9))
@settings(deadline=None, max_examples=25)
def test_where_a_candidate_stands_does_not_matter(seed: int, count: int) -> None:
    """Duels are chosen by what was said of candidates, not by their places: of another order they are the same."""
    judge = Oracle(drawn(count, seed))
    order = list(range(count))
    random.Random(seed).shuffle(order)
    moved = Oracle([judge.qualities[place] for place in order])
    here = [{frozenset(group) for group in groups} for groups in ask(Adaptive(), judge)[0][2:]]
    there = [{frozenset(order[k] for k in group) for group in groups} for groups in ask(Adaptive(), moved)[0][2:]]
    assert here == there


def test_the_best_and_the_worst_come_out_under_noise() -> None:
    """What `adaptive` says of the best and the worst is what all pairs say, far oftener than ratings alone do."""
    from rlaif.ranking import posterior

    right = Counter[str]()
    for seed in range(60):
        draw = random.Random(seed)
        q = [draw.random() for _ in range(8)]
        noise = [q[k] + draw.gauss(0.0, 0.14) for k in range(8)]

        class Judge(Oracle):
            def __call__(self, ids: Sequence[str], group: Group) -> Verdict | None:
                return Oracle(noise if len(group) == 1 else q)(ids, group)  # noqa: B023

        ids = [f"c{k}" for k in range(8)]
        for name, schedule in (("adaptive", Adaptive()), ("ratings", Every(1))):
            _, verdicts = ask(schedule, Judge(q), seed)
            means, _ = posterior.of_one(ids, verdicts, 1.8)
            right[name] += (int(means.argmax()) == q.index(max(q))) + (int(means.argmin()) == q.index(min(q)))
    assert right["adaptive"] > right["ratings"] + 15, right
