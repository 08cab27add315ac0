"""A judge against the labels that candidates came with: on which pairs does it prefer what the file prefers?

A label is a candidate's `score`, higher being better; pairs of a prompt with unequal ones are counted, and each ends as one of

    agree, disagree   the judge prefers the same one, the other one
    undecided         the judge finds them equally good
    no_verdict        no judge said anything readable about the two
    not_judged        one of them was not put to the judge: empty, degenerate, cut off, or saying the same as an earlier one

Who is right is not said: labels of preference files are wrong too. Pure: records and rankings in, numbers and rows out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from rlaif import pairs
from rlaif.intervals import ClusteredRate, rounded, written
from rlaif.types import Candidate, Ranking, Record

SURE = 0.8
_BINS = (0.5, 0.6, 0.7, 0.8, 0.9)
_KINDS = ("agree", "disagree", "undecided", "no_verdict", "not_judged")


class Agreement:
    """Counts over records; add each once, then read `numbers`. Memory does not grow with the records."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._all, self._sure = ClusteredRate(), ClusteredRate()
        self._bins = [Counter[str]() for _ in _BINS]
        self._p_sums = [0.0] * len(_BINS)

    def add(self, record: Record, ranking: Ranking) -> Iterator[dict[str, Any]]:
        """Counts the record; yields a row for each pair on which the judge and the label disagree. Exhaust it."""
        place = {c: k for k, c in enumerate(ranking.ids)}
        judged = pairs.compared(record.verdicts)
        found, sure = Counter[str](), Counter[str]()
        for better, worse in _labelled(record):
            if better.id not in place or worse.id not in place:
                found["not_judged"] += 1
                continue
            if not judged.issuperset((better.id, worse.id)):
                found["no_verdict"] += 1
                continue
            p = ranking.p(place[better.id], place[worse.id])
            kind = "undecided" if abs(p - 0.5) < pairs.TIE else "agree" if p > 0.5 else "disagree"
            found[kind] += 1
            if kind == "undecided":
                continue
            self._place(kind, max(p, 1.0 - p), better, worse)
            sure[kind] += max(p, 1.0 - p) >= SURE
            if kind == "disagree":
                yield _row(record, better, worse, 1.0 - p)
        self._counts.update(found)
        self._counts["prompts"] += bool(found)
        self._all.add(found["agree"], found["agree"] + found["disagree"])
        self._sure.add(sure["agree"], sure["agree"] + sure["disagree"])

    def _place(self, kind: str, p: float, better: Candidate, worse: Candidate) -> None:
        place = max(k for k, low in enumerate(_BINS) if p >= low)
        self._bins[place][kind] += 1
        self._p_sums[place] += p
        longer = len(better.text) - len(worse.text)
        if longer:
            self._counts["lengths"] += 1
            self._counts["longer_by_label"] += longer > 0
            self._counts["longer_by_judge"] += (longer > 0) == (kind == "agree")

    def numbers(self) -> dict[str, Any]:
        """What summary.json says as `labels`. Rates are None where there is nothing to count.

        `agreement` is agree / (agree + disagree) with its 95 % interval, over prompts (`ClusteredRate`); `sure` is the same
        where the judge's probability is at least 0.8, `by_p` by that probability; `longer` is how often the longer of two
        unequally long answers is preferred, by the labels and by the judge, over the pairs that both decide.
        """
        count, lengths = self._counts, self._counts["lengths"]
        return {
            "prompts": count["prompts"],
            "pairs": sum(count[kind] for kind in _KINDS),
            **{kind: count[kind] for kind in _KINDS},
            **_rate(self._all),
            "sure": {"p_at_least": SURE, "pairs": self._sure.trials, **_rate(self._sure)},
            "by_p": [
                {
                    "from": low,
                    "pairs": found.total(),
                    "mean_p": round(total / found.total(), 6),
                    "agreement": round(found["agree"] / found.total(), 6),
                }
                for low, found, total in zip(_BINS, self._bins, self._p_sums, strict=True)
                if found
            ],
            "longer": {
                "pairs": lengths,
                "labels": round(count["longer_by_label"] / lengths, 6) if lengths else None,
                "judge": round(count["longer_by_judge"] / lengths, 6) if lengths else None,
            },
        }


def _rate(of: ClusteredRate) -> dict[str, Any]:
    return {"agreement": rounded(of.rate), "interval": written(of.interval())}


def _labelled(record: Record) -> Iterator[tuple[Candidate, Candidate]]:
    """The pairs with unequal labels, the one that is labelled better first."""
    for one, other in combinations(record.candidates, 2):
        if one.score is not None and other.score is not None and one.score != other.score:
            yield (one, other) if one.score > other.score else (other, one)


def _row(record: Record, better: Candidate, worse: Candidate, p: float) -> dict[str, Any]:
    """A pair as the judge sees it, with the labels that say the opposite."""
    return {
        "id": record.prompt.id,
        "prompt": list(record.prompt.messages),
        "chosen": [{"role": "assistant", "content": worse.text}],
        "rejected": [{"role": "assistant", "content": better.text}],
        "p_chosen": round(p, 6),
        "judge": pairs.judge_name(record),
        "flip": pairs.flip(record.verdicts, worse.id, better.id),
        "label_chosen": worse.score,
        "label_rejected": better.score,
    }
