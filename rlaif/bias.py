"""Can a judge be trusted? What its verdicts say of itself: place, length, agreement, contradictions. Counted over records.

A judge may rate, rank and compare under one name; each figure counts the verdicts that can speak of it:

    first_shown      comparisons of two that were shown in both orders: without bias one half, whatever the judge prefers
    flip             pairs read in both orders: the share whose orders named different winners
    first_ranked     rankings of three or more that were shown in more than one order: how often the first shown came out
                     first; without bias `expected`, the mean of 1/k
    longer           pairs of unequal length for which the judge names a winner: how often it is the longer text
    no_verdict       all verdicts: the share that could not be read

The winner that a judge names for a pair is that of its comparisons, the mean over both orders; of a pair that it did not
compare, that of its rankings, else of its ratings. A judge that was asked by each principle is one judge, the principles
weighed as in the fit. Intervals are over prompts (`ClusteredRate`): verdicts on one prompt do not speak independently.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from rlaif import intervals
from rlaif.intervals import ClusteredRate
from rlaif.types import Record, Verdict

GAPS = (1.0, 1.1, 1.5, 2.0, 4.0)
"""Where the bins by length gap begin: the longer text's characters over the shorter one's."""
RANDOM_CYCLES = 0.25
"""The share of triples that go round by chance."""
OTHERS = "other judges"
_MOST_JUDGES, _MOST_CAUSES, _LONGEST_CAUSE = 16, 50, 80
_EQUAL = 2e-6

Pair = tuple[str, str]
"""Two candidates' ids, sorted."""
_Key = tuple[str | int, ...]
_OF_JUDGE = ("first_shown", "flip", "longer", "no_verdict", "intransitive")
_OF_GAP = ("first_shown", "flip", "longer")


class Bias:
    """Counts over records; add each once, then read `numbers`.

    Memory does not grow with the records: all judges after the sixteenth count as one.
    """

    def __init__(self) -> None:
        self._rates: defaultdict[_Key, ClusteredRate] = defaultdict(ClusteredRate)
        self._judges: dict[str, None] = {}
        self._expected: defaultdict[str, float] = defaultdict(float)
        self._causes: Counter[str] = Counter()
        self._tables: defaultdict[Pair, Counter[tuple[int, int]]] = defaultdict(Counter)

    def add(self, record: Record) -> None:
        """Counts a record's verdicts."""
        lengths = {c.id: len(c.text) for c in record.candidates}
        found: defaultdict[_Key, list[int]] = defaultdict(lambda: [0, 0])
        views: dict[str, dict[Pair, int]] = {}
        for name, verdicts in self._by_judge(record.verdicts).items():
            self._read(found, name, verdicts)
            _places(found, name, verdicts, lengths)
            self._expected[name] += _ranked_first(found, name, verdicts)
            views[name], compared = winners(verdicts)
            _lengths(found, name, views[name], lengths)
            triples, cyclic = cycles(compared)
            for of in (name, ""):
                _count(found, ("intransitive", of), cyclic, triples)
        self._agree(views)
        for key, (successes, trials) in found.items():
            if trials:
                self._rates[key].add(successes, trials)

    def numbers(self) -> dict[str, Any]:
        """What summary.json says of it. A rate is None, and so is its interval, where there is nothing to count."""
        triples = self._rates["intransitive", ""]
        return {
            "by_judge": {name: self._of_judge(name) for name in self._judges},
            "by_length_gap": [self._of_gap(gap) for gap in range(len(GAPS))],
            "agreement": [self._of_two(*two) for two in self._tables],
            "intransitive": triples.numbers(),
            "no_verdict": dict(self._causes.most_common()),
        }

    def _by_judge(self, verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
        found: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            name = verdict.judge.partition("#")[0] if verdict.principle else verdict.judge
            if name not in self._judges:
                name = name if len(self._judges) < _MOST_JUDGES else OTHERS
                self._judges[name] = None
            found.setdefault(name, []).append(verdict)
        return found

    def _read(self, found: dict[_Key, list[int]], name: str, verdicts: Sequence[Verdict]) -> None:
        unread = [v for v in verdicts if v.scores is None]
        _count(found, ("no_verdict", name), len(unread), len(verdicts))
        for verdict in unread:
            cause = str(verdict.cause)[:_LONGEST_CAUSE]
            self._causes[cause if cause in self._causes or len(self._causes) < _MOST_CAUSES else "other"] += 1

    def _agree(self, views: Mapping[str, Mapping[Pair, int]]) -> None:
        """Counts the pairs of which every two judges spoke; as one cluster, as they are one prompt's."""
        for one, other in combinations(sorted(views.keys() - {OTHERS}, key=list(self._judges).index), 2):
            named = [(a, views[other][pair]) for pair, a in views[one].items() if pair in views[other]]
            self._tables[one, other].update(named)
            both = [a == b for a, b in named if a and b]
            self._rates["agreement", one, other].add(sum(both), len(both))

    def _of_judge(self, name: str) -> dict[str, Any]:
        ranked = self._rates["first_ranked", name]
        return {
            **{kind: self._rates[kind, name].numbers() for kind in _OF_JUDGE},
            **(
                {"first_ranked": ranked.numbers() | {"expected": round(self._expected[name] / ranked.trials, 6)}}
                if ranked.trials
                else {}
            ),
        }

    def _of_gap(self, gap: int) -> dict[str, Any]:
        to = GAPS[gap + 1] if gap + 1 < len(GAPS) else None
        return {"from": GAPS[gap], "to": to, **{kind: self._rates[kind, gap].numbers() for kind in _OF_GAP}}

    def _of_two(self, one: str, other: str) -> dict[str, Any]:
        table = self._tables[one, other]
        return {"judges": [one, other], **self._rates["agreement", one, other].numbers(), "kappa": kappa(table)}


def kappa(table: Mapping[tuple[int, int], int]) -> float | None:
    """Cohen's kappa of two judges' words on pairs (1, -1, or 0 for no winner), None where it is not defined.

    Which of two candidates is called the first means nothing, so each pair counts from both sides: kappa then does not change
    when a pair is turned round.
    """
    words = (1, 0, -1)
    found = intervals.kappa([[table.get((a, b), 0) + table.get((-a, -b), 0) for b in words] for a in words])
    return None if found is None else round(found, 6)


def winners(verdicts: Sequence[Verdict]) -> tuple[dict[Pair, int], dict[Pair, int]]:
    """What one judge says of pairs: 1 where the first of the pair is better, -1 where the second is, 0 for neither.

    Of every pair that it spoke of in any way; and of those alone that it compared directly and was read on in both orders.
    """
    orders: dict[tuple[str, ...], list[float]] = {}
    ranked: defaultdict[Pair, float] = defaultdict(float)
    alone: dict[str, dict[str, list[float]]] = {}
    weights: dict[str, float] = {}
    for v in verdicts:
        if v.scores is None:
            continue
        if len(v.shown) == 2:
            (x, y), total = v.scores, sum(v.scores)
            sure = (x - y) / total if v.scale == "probability" and total > 0 else float((x > y) - (x < y))
            sums = orders.setdefault(v.shown, [0.0, 0.0])
            sums[0] += v.weight * sure
            sums[1] += v.weight
        elif len(v.shown) == 1:
            alone.setdefault(v.judge, {}).setdefault(v.shown[0], []).append(v.scores[0])
            weights[v.judge] = v.weight
        else:
            _meet(ranked, dict(zip(v.shown, v.scores, strict=True)), v.weight)
    rated: defaultdict[Pair, float] = defaultdict(float)
    for judge, given in alone.items():
        _meet(rated, {c: sum(scores) / len(scores) for c, scores in given.items()}, weights[judge])
    compared: dict[Pair, float] = {}
    both: dict[Pair, int] = {}
    for shown, (total, weight) in orders.items():
        pair, sure = (shown[0], shown[1]), total / (weight or 1.0)
        swapped = orders.get(shown[::-1])
        if swapped is not None and pair > pair[::-1]:
            continue  # the other order speaks of both
        mean = sure if swapped is None else (sure - swapped[0] / (swapped[1] or 1.0)) / 2
        pair, mean = (pair, mean) if pair < pair[::-1] else (pair[::-1], -mean)
        compared[pair] = mean
        if swapped is not None:
            both[pair] = _sign(mean)
    return {pair: _sign(sure) for pair, sure in (rated | ranked | compared).items()}, both


def cycles(named: Mapping[Pair, int]) -> tuple[int, int]:
    """(triples of which all three pairs have a winner, those of them that go round: a beats b, b beats c, c beats a).

    Of a judge that tossed coins a quarter would go round (Kendall and Babington Smith 1940).
    """
    if len(named) < 3:
        return 0, 0
    place = {c: k for k, c in enumerate(dict.fromkeys(c for pair in named for c in pair))}
    beats, met = [0] * len(place), [0] * len(place)
    games = [(place[a], place[b]) if sign > 0 else (place[b], place[a]) for (a, b), sign in named.items() if sign]
    for winner, loser in games:
        beats[winner] |= 1 << loser
        met[winner] |= 1 << loser
        met[loser] |= 1 << winner
    triples = sum((met[i] & met[j]).bit_count() for i, j in games)
    cyclic = sum((beats[j] & met[i] & ~beats[i]).bit_count() for i, j in games)
    return triples // 3, cyclic // 3


def gap_of(one: int, other: int) -> int:
    """The bin, by place in `GAPS`, of two texts of so many characters."""
    return bisect_right(GAPS, max(one, other) / max(1, min(one, other))) - 1 if one or other else 0


def _places(found: dict[_Key, list[int]], name: str, verdicts: Sequence[Verdict], lengths: Mapping[str, int]) -> None:
    """Counts first_shown and flip of comparisons that were shown in both orders."""
    orders = {(v.judge, v.shown): v.scores for v in verdicts if len(v.shown) == 2}
    for (judge, shown), scores in orders.items():
        if scores is None or (judge, shown[::-1]) not in orders:
            continue
        first, swapped = scores[0] - scores[1], orders[judge, shown[::-1]]
        for of in (name, gap_of(*(lengths.get(c, 0) for c in shown))):
            if first:
                _count(found, ("first_shown", of), first > 0, 1)
            if swapped is not None and shown < shown[::-1]:
                _count(found, ("flip", of), first * (swapped[0] - swapped[1]) > 0, 1)


def _ranked_first(found: dict[_Key, list[int]], name: str, verdicts: Sequence[Verdict]) -> float:
    """Counts the rankings in which the first shown came out first; returns how many would have by chance."""
    ranked = [v for v in verdicts if len(v.shown) > 2]
    shown = {(v.judge, v.shown) for v in ranked}
    orders = Counter((judge, frozenset(ids)) for judge, ids in shown)
    expected = 0.0
    for v in ranked:
        if v.winner is not None and orders[v.judge, frozenset(v.shown)] > 1:
            _count(found, ("first_ranked", name), v.winner == v.shown[0], 1)
            expected += 1 / len(v.shown)
    return expected


def _lengths(found: dict[_Key, list[int]], name: str, named: Mapping[Pair, int], lengths: Mapping[str, int]) -> None:
    for (one, other), sign in named.items():
        longer = lengths.get(one, 0) - lengths.get(other, 0)
        if sign and longer:
            for of in (name, gap_of(lengths.get(one, 0), lengths.get(other, 0))):
                _count(found, ("longer", of), (longer > 0) == (sign > 0), 1)


def _count(found: dict[_Key, list[int]], key: _Key, successes: int, trials: int) -> None:
    sums = found[key]
    sums[0] += successes
    sums[1] += trials


def _meet(into: defaultdict[Pair, float], scores: Mapping[str, float], weight: float) -> None:
    for one, other in combinations(sorted(scores), 2):
        into[one, other] += weight * ((scores[one] > scores[other]) - (scores[one] < scores[other]))


def _sign(sure: float) -> int:
    return 0 if abs(sure) < _EQUAL else 1 if sure > 0 else -1
