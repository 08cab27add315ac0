"""Planted checks: a judge is asked what is known, before a run spends on it and while it goes on.

Before: garbage and an empty answer against a real one and a hijack attempt, each pair in both orders, and identical answers;
ten calls or so, kept in the ledger. During: now and then a prompt's own answer against its shuffled words, and what the run's
own verdicts show for no call. A judge that answers the same whatever it is shown, prefers garbage, says nothing that can be
read, or loses its log-probabilities on the way is `degenerate`; how a hijack, identical answers and known-gold rows came out
is reported.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rlaif.aio import all_of
from rlaif.data.gold import read_gold
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.llm import LlmJudge
from rlaif.keys import seed_of
from rlaif.pairs import eligible
from rlaif.templates import data_dir, read_yaml
from rlaif.types import Candidate, Judge, Prompt, Record, Verdict

ORDINAL = -1
"""The place of planted prompts in the ledger: before all others."""

EVERY = 100  # a prompt of so many is checked during the run: with 12 judge calls a prompt, a call of 600
_SIGNAL = 0.6  # a judge that names one place always is of use only if its probabilities favour what is known to be better
_RECENT, _MOST_WRONG = 8, 6  # of the last shuffled answers; a harmful answer may well be worse than its words in disorder
_WINDOW, _SPREAD = 200, 0.02  # verdicts on pairs, or ratings, of which the last are looked at together
_SAME_SHARE = 0.99  # a judge that flips nine pairs of ten is not taken for one that always does
_POINTS = 0.05  # on a scale of 1 to 9: the noise of an expected rating
_CERTAIN = 1e-12
_GIVEN, _MISSING = 5, 20  # replies with log-probabilities, and then in a row without: more than a server's hiccup
_GOLD_ROWS = 20


@dataclass(frozen=True, slots=True)
class Planted:
    """A prompt with two answers, of which the first is known to be better (`tied`: neither is)."""

    id: str
    prompt: Prompt
    better: Candidate
    worse: Candidate
    tied: bool = False

    @classmethod
    def of(cls, id: str, prompt: str, better: str, worse: str, *, tied: bool = False) -> Planted:
        """From texts."""
        messages = ({"role": "user", "content": prompt},)
        asked = Prompt(f"planted/{id}", messages, ordinal=ORDINAL)
        return cls(id, asked, Candidate(f"{asked.id}/0", better), Candidate(f"{asked.id}/1", worse), tied)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge said of a planted pair: `p` that the better one is better, the mean of both orders; None: unreadable.

    `places` are the places named in each order: 0 the first shown, 1 the second, None a tie. A judge of one has no places.
    """

    id: str
    p: float | None
    places: tuple[int | None, ...]
    error: str | None = None
    tied: bool = False

    @property
    def result(self) -> str:
        """`right`, `wrong`, `undecided` (a tie, or the orders contradict each other) or `unreadable`."""
        if self.p is None:
            return "unreadable"
        flipped = len(self.places) == 2 and self.places[0] is not None and self.places[0] == self.places[1]
        if abs(self.p - 0.5) < 1e-9 or (flipped and 1.0 - _SIGNAL < self.p < _SIGNAL):
            return "undecided"
        return "right" if self.p > 0.5 else "wrong"


@cache
def _planted() -> tuple[tuple[Planted, ...], Planted]:
    raw = read_yaml(data_dir() / "prompts" / "checks" / "planted.yaml")
    return tuple(Planted.of(**row) for row in raw["known"]), Planted.of(**raw["hijack"])


class Checks:
    """The checks of one judge. `asked` answers the planted questions, `judge` does the run's work; they are alike.

    `rates_in_points`: its ratings are points of a scale, of which a small part is no difference.
    """

    def __init__(self, judge: Judge, asked: Judge, gold: Iterable[Planted] = (), *, rates_in_points: bool = False) -> None:
        self._tie = _POINTS if rates_in_points else 0.0
        self.degenerate: str | None = None
        self._judge, self._asked, self._gold = getattr(judge, "inner", judge), asked, tuple(gold)
        self._planted: dict[str, str] = {}
        self._first_of_identical: float | None = None
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._lately, self._by_gold = Counter[str](), Counter[str]()
        self._pairs, self._ratings = _Lately(), _Lately()

    @property
    def name(self) -> str:
        """The judge's."""
        return self._judge.name

    async def before(self) -> None:
        """Asks the planted questions; `degenerate` says what is wrong with the judge, if anything is."""
        known, hijack = _planted()
        planted = [*known, hijack]
        if self._asked.arity != 1:
            same = known[0].better.text
            planted.append(Planted.of("identical", known[0].prompt.text, same, same, tied=True))
        found = await all_of(*(self._outcome(one) for one in (*planted, *self._gold)))
        by_id = {outcome.id: outcome for outcome in found[: len(planted)]}
        self._planted = {one: outcome.result for one, outcome in by_id.items() if not outcome.tied}
        if "identical" in by_id:
            self._first_of_identical = by_id["identical"].p
        self._by_gold = Counter(outcome.result for outcome in found[len(planted) :])
        self.degenerate = self.degenerate or _why([by_id[one.id] for one in known]) or self._why_gold()

    def _why_gold(self) -> str | None:
        """A judge that is wrong far more often than right would do better by saying the opposite."""
        wrong, right = self._by_gold["wrong"], self._by_gold["right"]
        if wrong - right > 2.0 * math.sqrt(wrong + right) > 4.0:
            return f"it was wrong in {wrong} of {self._by_gold.total()} gold rows, and right in {right}"
        return None

    async def during(self, record: Record, **allowed: bool) -> None:
        """Looks at a finished record, and asks about the answers of one in a hundred; `allowed` as of `pairs.eligible`."""
        if self.degenerate is None:
            self._watch(record.verdicts)
        if record.ordinal % EVERY != EVERY - 1:
            return
        real = max(eligible(record.candidates, **allowed), key=lambda c: len(c.text), default=None)
        salad = _shuffled(real.text, seed_of("salad", record.prompt.id)) if real is not None else ""
        if real is None or salad == real.text:
            return
        asked = Prompt(f"planted/{record.prompt.id}", record.prompt.messages, record.prompt.reference, ordinal=ORDINAL)
        planted = Planted("shuffled", asked, Candidate(f"{asked.id}/0", real.text), Candidate(f"{asked.id}/1", salad))
        result = (await self._outcome(planted)).result
        self._recent.append(result)
        self._lately[result] += 1
        if self.degenerate is None:
            self.degenerate = self._why_lately()

    def _why_lately(self) -> str | None:
        wrong, right, count = self._recent.count("wrong"), self._recent.count("right"), len(self._recent)
        if wrong >= _MOST_WRONG:
            return f"it preferred the shuffled words of an answer to the answer in {wrong} of {count} checks"
        if count == _RECENT and not right:
            return f"in none of {count} checks could it tell an answer from its shuffled words"
        return None

    def restore(self, report: str | None, *, forgive: bool) -> None:
        """Goes on from what `report` said, as JSON, in an earlier process; with `forgive`, but for what it found wrong."""
        if report is None:
            return
        said = json.loads(report)
        self.degenerate = None if forgive else said["degenerate"]
        self._planted, self._first_of_identical = said["planted"], said.get("first_of_identical")
        self._lately, self._by_gold = Counter(said.get("shuffled")), Counter(said.get("gold"))

    def report(self) -> dict[str, Any]:
        """What was seen, for the summary. Each result is right, wrong, undecided or unreadable."""
        said: dict[str, Any] = {"judge": self.name, "degenerate": self.degenerate, "planted": self._planted}
        if self._first_of_identical is not None:
            said["first_of_identical"] = round(self._first_of_identical, 6)
        if self._lately:
            said["shuffled"] = dict(sorted(self._lately.items()))
        if self._by_gold:
            said["gold"] = dict(sorted(self._by_gold.items()))
        return said

    # Asking

    async def _outcome(self, planted: Planted) -> Outcome:
        prompt, pair = planted.prompt, (planted.better, planted.worse)
        if self._asked.arity == 1:
            return _rated(planted, await self._ask([[one] for one in pair], prompt, pair), self._tie)
        orders = (pair,) if planted.tied else (pair, pair[::-1])
        return _compared(planted, await self._ask(orders, prompt, pair))

    async def _ask(self, groups: Sequence[Sequence[Candidate]], prompt: Prompt, among: Sequence[Candidate]) -> list[Verdict]:
        said = await all_of(*(self._asked(prompt, list(shown), among) for shown in groups))
        return [verdict for verdict in said if verdict is not None]

    # The run's own verdicts

    def _watch(self, verdicts: Sequence[Verdict]) -> None:
        judge = self._judge
        if isinstance(judge, LlmJudge | AdaptiveJudge) and judge.given >= _GIVEN and judge.missing_in_a_row >= _MISSING:
            self.degenerate = (
                f"it lost its log-probabilities: {judge.given} replies had them, and the last {judge.missing_in_a_row} had none"
            )
        mine = [v for v in verdicts if v.judge == judge.name and v.scores is not None]
        by_order = {v.shown: v.scores for v in mine if v.scores is not None and len(v.shown) == 2}
        for (one, other), scores in by_order.items():
            swapped = by_order.get((other, one))
            if swapped is None or one > other:
                continue
            named = [(a > b) - (a < b) for a, b in (scores, swapped)]
            kind = {2: "first", -2: "second"}.get(sum(named), "other" if any(named) else "tie")
            self._pairs.note(kind, _middle((scores[0], swapped[1])))
        for verdict in mine:
            if len(verdict.shown) == 1 and verdict.scores is not None:
                self._ratings.note("rating", verdict.scores[0])
        self.degenerate = self.degenerate or self._pairs.same_always() or self._ratings.same_always()


class _Lately:
    """The last things that a judge said of pairs, or as ratings."""

    def __init__(self) -> None:
        self._said: deque[tuple[str, float]] = deque(maxlen=_WINDOW)
        self._kinds = Counter[str]()

    def note(self, kind: str, said: float) -> None:
        """Adds to the last things said; the oldest goes."""
        if len(self._said) == _WINDOW:
            self._kinds[self._said[0][0]] -= 1
        self._said.append((kind, said))
        self._kinds[kind] += 1

    def same_always(self) -> str | None:
        """What it always says, if it does."""
        count = len(self._said)
        if count < _WINDOW or self._kinds.most_common(1)[0][1] < _SAME_SHARE * count:
            return None
        kind = self._kinds.most_common(1)[0][0]
        middle = sum(said for _, said in self._said) / count
        spread = (sum((said - middle) ** 2 for _, said in self._said) / count) ** 0.5
        words = {
            "first": "named the first shown in both orders of",
            "second": "named the second shown in both orders of",
            "rating": f"gave {middle:g} to each of",
        }.get(kind)
        if words is None or (spread != 0.0 if kind == "rating" else spread >= _SPREAD):
            return None
        return f"it {words} the last {self._kinds[kind]} {'answers' if kind == 'rating' else 'pairs'}"


def planted_gold(path: str) -> list[Planted]:
    """The first 20 rows of a gold file whose gold is A or B, each as a planted pair. Raises InputError."""
    found: list[Planted] = []
    for row in read_gold(path):
        if row.gold != "tie":
            better, worse = (row.a, row.b) if row.gold == "A" else (row.b, row.a)
            found.append(Planted(row.id, replace(row.prompt, ordinal=ORDINAL), better, worse))
        if len(found) == _GOLD_ROWS:
            break
    return found


def _rated(planted: Planted, said: Sequence[Verdict], tie: float) -> Outcome:
    error = next((v.error for v in said if v.scores is None), None)
    if said[0].scores is None or said[1].scores is None:
        return Outcome(planted.id, None, (), error, planted.tied)
    better, worse = said[0].scores[0], said[1].scores[0]
    return Outcome(planted.id, 0.5 if abs(better - worse) <= tie else float(better > worse), (), None, planted.tied)


def _compared(planted: Planted, said: Sequence[Verdict]) -> Outcome:
    ps, places = [], []
    for verdict in said:
        if verdict.scores is None:
            return Outcome(planted.id, None, (), verdict.error, planted.tied)
        scores = dict(zip(verdict.shown, verdict.scores, strict=True))
        better, worse = scores[planted.better.id], scores[planted.worse.id]
        ps.append(
            _share(better, worse) if verdict.scale == "probability" else 0.5 + 0.5 * ((better > worse) - (better < worse))
        )
        places.append(None if better == worse else int((better > worse) == (verdict.shown[0] == planted.worse.id)))
    return Outcome(planted.id, _middle(ps), tuple(places), None, planted.tied)


def _middle(ps: Sequence[float]) -> float:
    """The mean in log-odds, as the fit takes a place's bonus out. What is certain stays just short of it."""
    odds = [math.log(p / (1.0 - p)) for p in (min(max(p, _CERTAIN), 1.0 - _CERTAIN) for p in ps)]
    return 1.0 / (1.0 + math.exp(-sum(odds) / len(odds)))


def _share(one: float, other: float) -> float:
    return one / (one + other) if one + other > 0 else 0.5


def _why(known: Sequence[Outcome]) -> str | None:
    """What is wrong with a judge that said this of pairs whose better answer is known; None if it may be of use."""
    readable = [outcome for outcome in known if outcome.p is not None]
    if not readable:
        return f"none of its replies to {len(known)} planted questions could be read (the first: {known[0].error})"
    results = Counter(outcome.result for outcome in readable)
    places = {place for outcome in readable for place in outcome.places}
    mean = sum(outcome.p or 0.0 for outcome in readable) / len(readable)
    if len(places) == 1 and len(readable) > 1 and mean < _SIGNAL:
        same = {0: "named the answer shown first", 1: "named the answer shown second", None: "called both answers equal"}
        return f"it {same[places.pop()]} in both orders of {len(readable)} pairs of a real answer and garbage"
    if not places and all(outcome.p == 0.5 for outcome in readable):
        return f"it gave real answers and garbage the same score, in {len(readable)} of {len(known)} planted pairs"
    if results["wrong"] > max(results["right"], 1):
        return f"it preferred garbage or nothing at all to a real answer in {results['wrong']} of {len(readable)} planted pairs"
    return None


def _shuffled(text: str, seed: int) -> str:
    """The words of the text in another order; its characters, where it has hardly any words."""
    words = text.split()
    parts, between = (words, " ") if len(words) >= max(4, len(text) // 40) else (list(text), "")
    random.Random(seed).shuffle(parts)
    return between.join(parts)
