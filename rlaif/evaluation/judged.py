"""What a judge said of gold pairs, in one form: opinions, and the label that a run would make of them.

An *opinion* is what one judge said of one pair in one order: a winner, a tie, or no verdict with its cause. Two ratings of the
answers alone are one opinion, which has no order. The *label* of a pair comes from all verdicts on it by the fit that a run's
export uses (`rlaif.ranking.bradley_terry`), the position term pooled over all the pairs: `p` is P(A is better). Several members
of a jury, or several principles, have an opinion each; the label is of all together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from rlaif import pairs
from rlaif.data.gold import GoldPair, Winner
from rlaif.judges.recorded import RecordedJudge
from rlaif.ranking import bradley_terry
from rlaif.types import Ranking, Record, Verdict

Order = Literal["AB", "BA"] | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """`order`: AB where A was shown first, None where there is none or it is unknown. `winner` is None for no verdict."""

    member: str
    order: Order
    winner: Winner | None
    cause: str | None = None

    @property
    def named_first(self) -> bool | None:
        """Whether the winner is the one shown first; None without a winner or an order."""
        return None if self.order is None or self.winner not in ("A", "B") else self.order[0] == self.winner


@dataclass(frozen=True, slots=True)
class Spend:
    """What a live judge has used in all, with its planted checks; None where it is not known."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's opinions and P(A is better) of each gold pair, in their order; no opinion: it was not asked; p None: no label.

    `rubric` is a digest of how it was told to judge, if that is known. `by_chance`: the labels are a coin's, and the numbers
    are expected values.
    """

    name: str
    opinions: Sequence[tuple[Opinion, ...]]
    p: Sequence[float | None]
    spend: Spend | None = None
    rubric: str | None = None
    by_chance: bool = False
    baseline: bool = False

    def label(self, place: int) -> Winner | None:
        """A where p is above 1/2, B where it is below; None where there is no label."""
        p = self.p[place]
        return None if p is None else "tie" if abs(p - 0.5) < pairs.TIE else "A" if p > 0.5 else "B"


# From records of a run


def of_records(name: str, gold: Sequence[GoldPair], found: Iterable[tuple[Record, Ranking]], spend: Spend | None) -> Judged:
    """What a run on the gold pairs has on file, with the rankings of its export. Pairs without a record were not asked."""
    opinions: list[tuple[Opinion, ...]] = [()] * len(gold)
    ps: list[float | None] = [None] * len(gold)
    places = {pair.id: place for place, pair in enumerate(gold)}
    for record, ranking in found:
        place = places.get(record.prompt.id)
        if place is None:
            continue
        if len(ranking.ids) < 2:
            cause = "empty" if any(c.empty for c in record.candidates) else "identical"
            opinions[place] = (Opinion(name, None, None, cause),)
            continue
        a, b = gold[place].a.id, gold[place].b.id
        opinions[place] = opinions_of(a, b, [(None, v, None) for v in record.verdicts])
        ps[place] = _p(record.verdicts, ranking, a, b)
    return Judged(name, opinions, ps, spend)


Said = tuple[str | None, Verdict, Winner | None]
"""What was said: the order ("unknown", or any other for that shown), the verdict, and the winner if it was named beside it."""


def opinions_of(a: str, b: str, said: Iterable[Said]) -> tuple[Opinion, ...]:
    """The opinions in what was said of candidates `a` and `b`. A winner that was named goes before the scores."""
    found: list[Opinion] = []
    alone: dict[str, dict[str, tuple[Verdict, Winner | None]]] = {}
    for order, verdict, named in said:
        if len(verdict.shown) == 1:
            alone.setdefault(verdict.judge, {})[verdict.shown[0]] = verdict, named
            continue
        shown: Order = None if order == "unknown" else "AB" if verdict.shown.index(a) < verdict.shown.index(b) else "BA"
        scores = None if verdict.scores is None else dict(zip(verdict.shown, verdict.scores, strict=True))
        scored = None if scores is None else (scores[a], scores[b])
        found.append(_opinion(verdict.judge, shown, scored, named, verdict.error))
    for judge, rated in alone.items():
        both = [rated[c][0].scores if c in rated else None for c in (a, b)]
        error = next((v.error for v, _ in rated.values() if v.error), None)
        scored = (both[0][0], both[1][0]) if both[0] is not None and both[1] is not None else None
        found.append(_opinion(judge, None, scored, next(iter(rated.values()))[1], error))
    return tuple(found)


def _opinion(member: str, order: Order, scores: tuple[float, float] | None, named: Winner | None, error: str | None) -> Opinion:
    if not scores:
        return Opinion(member, order, None, (error or "no_verdict").partition(":")[0])
    one, other = scores
    return Opinion(member, order, named or ("tie" if one == other else "A" if one > other else "B"))


def _p(verdicts: Sequence[Verdict], ranking: Ranking, a: str, b: str) -> float | None:
    if not pairs.compared(verdicts).issuperset((a, b)):
        return None
    return ranking.p(ranking.ids.index(a), ranking.ids.index(b))


# Recorded verdicts, and baselines


def of_recorded(judge: RecordedJudge, gold: Sequence[GoldPair]) -> Judged:
    """What a file has of a judge in its config, on all pairs, also those that a run would not put to one."""
    said = [judge.on(pair.id, (pair.a.id, pair.b.id)) for pair in gold]
    name = judge.judge if judge.config is None else f"{judge.judge} {judge.config}"
    return of_verdicts(name, gold, [[(o or "unknown", v, cast(Winner | None, named)) for o, v, named in one] for one in said])


def of_verdicts(name: str, gold: Sequence[GoldPair], said: Sequence[Sequence[Said]]) -> Judged:
    """The opinions and labels from verdicts on each pair. One of `unknown` order is kept from the fit's position term."""
    records = [
        Record(
            pair.prompt,
            (pair.a, pair.b),
            tuple(replace(v, judge=f"{v.judge} (order unknown)") if order == "unknown" else v for order, v, _ in one),
        )
        for pair, one in zip(gold, said, strict=True)
    ]
    rankings = bradley_terry.rank(records, [[pair.a.id, pair.b.id] for pair in gold])
    return Judged(
        name,
        [opinions_of(pair.a.id, pair.b.id, one) for pair, one in zip(gold, said, strict=True)],
        [
            _p(record.verdicts, ranking, pair.a.id, pair.b.id)
            for pair, record, ranking in zip(gold, records, rankings, strict=True)
        ],
    )


def baselines(gold: Sequence[GoldPair]) -> list[Judged]:
    """What needs no judge: the longer answer, a coin, and the answer shown first.

    The first and the last go through all that a judge's verdicts go through. The coin is one for each pair, and its numbers
    are what is expected of it, without the luck of the toss.
    """
    longest: list[list[Said]] = []
    first: list[list[Said]] = []
    for pair in gold:
        a, b = pair.a.id, pair.b.id
        lengths = float(len(pair.a.text)), float(len(pair.b.text))
        longest.append([(None, Verdict("longest", (c,), (n,)), None) for c, n in zip((a, b), lengths, strict=True)])
        first.append([(None, Verdict("first-shown", ids, (1.0, 0.0), "vote"), None) for ids in ((a, b), (b, a))])
    coin = Judged("random", [(Opinion("random", None, "A"),)] * len(gold), [0.5] * len(gold), by_chance=True)
    found = [of_verdicts("longest", gold, longest), coin, of_verdicts("first-shown", gold, first)]
    return [replace(judged, baseline=True) for judged in found]
