"""Numbers about a run: how often the judge flips, favours the first shown or the longer, or says nothing readable."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from rlaif.bias import Bias
from rlaif.degenerate import KINDS, kind_of
from rlaif.export import number
from rlaif.intervals import ClusteredRate
from rlaif.pairs import Best, flips
from rlaif.selection import BEST_OF_N, Rule, Selection
from rlaif.types import Record, Verdict

_P_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_MOST_FAILURES, _MOST_KINDS, _LONGEST_MESSAGE = 10, 1000, 500


class Audit:
    """Counts over records; add each once, then read `numbers`. Rates are None where there is nothing to count."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        self._principles: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._degenerate: Counter[str] = Counter()
        self.bias = Bias()

    def add(self, record: Record) -> None:
        """Counts a record's verdicts. Flips are over pairs judged readably in both orders, by a judge each."""
        self.bias.add(record)
        for candidate in record.candidates:
            if candidate.error:
                self._fail("policy", candidate.error)
            elif (kind := kind_of(candidate)) is not None:
                self._degenerate[kind] += 1
        count = self._counts
        count["records"] += 1
        count["candidates"] += len(record.candidates)
        count["verdicts"] += len(record.verdicts)
        both = flips(record.verdicts)
        for found in both.values():
            count["both_orders"] += sum(f is not None for f in found)
            count["flipped"] += sum(f is True for f in found)
        named = first = 0
        for verdict in record.verdicts:
            shown, scores = verdict.shown, verdict.scores
            if scores is None:
                count["unread"] += 1
            elif len(shown) == 2 and scores[0] != scores[1] and (shown in both or shown[::-1] in both):
                named += 1
                first += scores[0] > scores[1]
            if verdict.error:
                self._fail("judge", verdict.error)
        count["named"] += named
        count["named_first"] += first
        if any(v.principle is not None for v in record.verdicts):
            for principle, outcome in outcomes(record.verdicts):
                self._principles[principle][outcome] += 1

    def _fail(self, who: str, error: str) -> None:
        kind = who, error.partition(":")[0][:_LONGEST_MESSAGE]
        if kind not in self._failed and len(self._failed) >= _MOST_KINDS:  # a judge's own words may all be different
            kind, error = (who, ""), "other errors"
        self._failed[kind] += 1
        self._examples.setdefault(kind, error[:_LONGEST_MESSAGE])

    def failures(self) -> list[dict[str, Any]]:
        """What went wrong, most frequent first: whose it is (policy or judge), how often, and the first such message."""
        return [
            {"of": kind[0], "count": count, "error": self._examples[kind]}
            for kind, count in self._failed.most_common(_MOST_FAILURES)
        ]

    def degenerate(self) -> dict[str, int]:
        """How many candidates are degenerate, by kind in the order of `rlaif.degenerate.KINDS`; failed ones are none."""
        return {kind: self._degenerate[kind] for kind in KINDS if self._degenerate[kind]}

    def numbers(self) -> dict[str, Any]:
        """The rates of summary.json."""
        return {
            "flip_rate": self._rate("flipped", "both_orders"),
            "no_verdict_rate": self._rate("unread", "verdicts"),
            "first_shown_rate": self._rate("named_first", "named"),
            **({"principles": self._by_principle()} if self._principles else {}),
        }

    def _by_principle(self) -> dict[str, dict[str, int]]:
        """Of each principle: the pairs of candidates that it decided, tied, and named differently in different orders."""
        kinds = ("decided", "tied", "flipped")
        return {name: {kind: found[kind] for kind in kinds} for name, found in sorted(self._principles.items())}

    @property
    def candidates(self) -> int:
        """Candidates of the records so far."""
        return self._counts["candidates"]

    def _rate(self, part: str, whole: str) -> float | None:
        return _share(self._counts[part], self._counts[whole])


class Choices:
    """Counts over what a selection rule made of records; add each record once, then read `numbers`.

    `made` are the pairs (or best answers), `dropped` the records without any, by reason; `accepted` those with an accepted
    answer, in rejection sampling.
    """

    def __init__(self) -> None:
        self.records = self.made = self.accepted = 0
        self.dropped: Counter[str] = Counter()
        self._limited: Counter[str] = Counter()
        self._before, self._after = [0, 0], ClusteredRate()
        self._probabilities = [0] * len(_P_EDGES)
        self._compared, self._margin, self._p = 0, 0.0, 0.0

    def add(self, selection: Selection) -> None:
        """Counts a record's pairs, or the reason why it has none."""
        self._count(len(selection.pairs), selection.reason)
        self._limited.update(selection.limited)
        self._add_before(selection.lengths)
        longer = [len(pair.chosen.text) - len(pair.rejected.text) for pair in selection.pairs]
        self._after.add(sum(more > 0 for more in longer), sum(more != 0 for more in longer))
        for pair in selection.pairs:
            self._add_compared(pair.score_chosen - pair.score_rejected, pair.p_chosen)

    def add_best(self, best: Best | str, pool: tuple[int, int]) -> None:
        """Counts a record's best answer, or the reason why it has none; `pool` are the `lengths` of its pairs."""
        self._count(*((0, best) if isinstance(best, str) else (1, None)))
        self._add_before(pool)
        if isinstance(best, Best) and best.p_win is not None and best.margin is not None:
            self._add_compared(best.margin, best.p_win)
            self._after.add(best.longer[1], best.longer[0])

    def add_row(self) -> None:
        """Counts a record that has a row in any case."""
        self._count(1, None)

    def _add_before(self, lengths: tuple[int, int]) -> None:
        """Adds pairs of texts of different lengths, and those of them whose winner is the longer."""
        for place, count in enumerate(lengths):
            self._before[place] += count

    def _add_compared(self, margin: float, p: float) -> None:
        self._compared += 1
        self._margin += margin
        self._p += p
        self._probabilities[bisect_right(_P_EDGES, number(p)) - 1] += 1

    def _count(self, made: int, reason: str | None) -> None:
        self.records += 1
        self.made += made
        if reason is not None:
            self.dropped[reason] += 1

    def longer_chosen(self) -> float | None:
        """How often the chosen text of a pair is the longer one."""
        return _share(self._after.successes, self._after.trials)

    def trust(self, rule: Rule) -> dict[str, Any]:
        """What the audit says of the rows: how often the longer is chosen, over prompts, and how many have which probability.

        `bins` hold the probability as it is written, at least `from` and below `to` (the last one: up to 1); `below` is the
        share of rows under each probability.
        """
        best = rule.name == BEST_OF_N
        edges = list(enumerate(_P_EDGES))[0 if best else 1 :]
        total = sum(self._probabilities)
        return {
            "longer_chosen": self._after.numbers(),
            "p_win" if best else "p_chosen": {
                "of": total,
                "bins": [
                    {
                        "from": low,
                        "to": (*_P_EDGES, 1.0)[k + 1],
                        "rows": self._probabilities[k],
                        "share": _share(self._probabilities[k], total),
                    }
                    for k, low in edges
                ],
                "below": {str(low): _share(sum(self._probabilities[:k]), total) for k, low in edges[1:]},
            },
        }

    def numbers(self, rule: Rule) -> dict[str, Any]:
        """What the rule took and dropped.

        `limited` are pairs that a limit dropped, whether or not others were left. `longer_chosen_before` is the share of the
        longer winners among all pairs that the rule could pick from, `longer_chosen` that among its own (of a best answer:
        against each of the others). Pairs of equal length say nothing of length.
        """
        best = rule.name == BEST_OF_N
        return {
            "rule": str(rule),
            "answers" if best else "pairs": self.made,
            **({} if best else {"limited": dict(sorted(self._limited.items()))}),
            "mean_margin": _share(self._margin, self._compared),
            "mean_p_win" if best else "mean_p_chosen": _share(self._p, self._compared),
            "longer_chosen_before": _share(self._before[1], self._before[0]),
            "longer_chosen": self.longer_chosen(),
        }


def _share(part: float, whole: int) -> float | None:
    """None, too, where a sum of scores has left the floats: a summary is JSON, which has no infinity."""
    return round(part / whole, 6) if whole and math.isfinite(part) else None


def outcomes(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(principle, what came of it) for each pair of candidates that were judged by one principle.

    `flipped`: different verdicts of a judge named different winners; `tied`: none named one; else `decided`.
    """
    named: defaultdict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    alone: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for v in verdicts:
        if v.principle is None or v.scores is None:
            continue
        scores = dict(zip(v.shown, v.scores, strict=True))
        if len(scores) == 1:
            alone[v.judge, v.principle] |= scores
        for one, other in combinations(sorted(scores), 2):
            named[v.judge, v.principle, one, other].append((scores[one] > scores[other]) - (scores[one] < scores[other]))
    for (judge, principle), scores in alone.items():
        for one, other in combinations(sorted(scores), 2):
            named[judge, principle, one, other].append((scores[one] > scores[other]) - (scores[one] < scores[other]))
    return [
        (principle, "flipped" if {1, -1} <= set(signs) else "decided" if any(signs) else "tied")
        for (_, principle, _, _), signs in named.items()
    ]


def kl_bound(n: int) -> float:
    """At most how far best-of-n moves from the policy, in nats: log n - (n - 1)/n (Beirami et al. 2024; an upper bound)."""
    return math.log(n) - (n - 1) / n
