"""Numbers about a run: how often the judge flips, favours the first shown or the longer, or says nothing readable."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from rlaif.pairs import flips
from rlaif.types import PreferencePair, Record

_MOST_FAILURES, _MOST_KINDS, _LONGEST_MESSAGE = 10, 1000, 500


class Audit:
    """Counts over records and pairs; add each once, then read `numbers`. Rates are None where there is nothing to count."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, record: Record) -> None:
        """Counts a record's verdicts. Flips are over pairs judged readably in both orders, by a judge each."""
        for candidate in record.candidates:
            if candidate.error:
                self._fail("policy", candidate.error)
        count = self._counts
        count["records"] += 1
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

    def add_pair(self, pair: PreferencePair) -> None:
        """Counts a pair; pairs of equal length say nothing of length."""
        self._counts["pairs"] += 1
        longer = len(pair.chosen.text) - len(pair.rejected.text)
        if longer:
            self._counts["lengths"] += 1
            self._counts["longer_chosen"] += longer > 0

    def drop(self, reason: str) -> None:
        """Counts a prompt that yields nothing."""
        self.dropped[reason] += 1

    def numbers(self) -> dict[str, Any]:
        """The rates of summary.json."""
        return {
            "flip_rate": self._rate("flipped", "both_orders"),
            "no_verdict_rate": self._rate("unread", "verdicts"),
            "first_shown_rate": self._rate("named_first", "named"),
            "longer_chosen_rate": self._rate("longer_chosen", "lengths"),
        }

    @property
    def records(self) -> int:
        """Records added so far."""
        return self._counts["records"]

    def _rate(self, part: str, whole: str) -> float | None:
        return round(self._counts[part] / self._counts[whole], 6) if self._counts[whole] else None


def kl_bound(n: int) -> float:
    """At most how far best-of-n moves from the policy, in nats: log n - (n - 1)/n (Beirami et al. 2024; an upper bound)."""
    return math.log(n) - (n - 1) / n
