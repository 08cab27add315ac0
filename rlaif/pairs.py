"""Which candidates of a record may be compared, which were, and what a pair or a best answer says of them. Pure.

Which pairs are made is for the rules of `selection` to say. Every record ends in a pair or in a reason:

    sampling_failed   no candidate has any text, and some failed
    ineligible        fewer than two candidates are left without the empty, the truncated and the degenerate ones
    identical         the candidates that are left all say the same
    no_verdict        no judge said anything readable about them
    tied              the judges find them equally good
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rlaif.types import Candidate, PreferencePair, Ranking, Record, Verdict

TIE = 1e-6
_ENDING = 80


def normalised(text: str) -> str:
    """The text as duplicates are told by: NFC, white space collapsed."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def eligible(
    candidates: Sequence[Candidate], *, allow_truncated: bool = False, allow_degenerate: bool = False
) -> list[Candidate]:
    """The candidates worth judging, the first of each that says the same: not empty; truncated or degenerate if allowed.

    Degenerate are those that `rlaif.degenerate` has marked. One that is truncated, too, needs both permissions.
    """
    usable = _usable(candidates, allow_truncated, allow_degenerate)
    if _end_apart([c.text for c in usable]):
        return usable
    first: dict[str, Candidate] = {}
    for candidate in usable:
        first.setdefault(normalised(candidate.text), candidate)
    return list(first.values())


def _usable(candidates: Sequence[Candidate], allow_truncated: bool, allow_degenerate: bool) -> list[Candidate]:
    return [
        c
        for c in candidates
        if (allow_truncated or not c.truncated) and (allow_degenerate or c.degenerate is None) and not c.empty
    ]


def _end_apart(texts: Sequence[str]) -> bool:
    """Whether the last two words tell all texts apart, as they mostly do: then the texts need not be gone through."""
    tails = [text[-_ENDING:] for text in texts]
    words = [tail.split() for tail in tails if tail.isascii()]
    return len({(w[-2], w[-1]) for w in words if len(w) > 2}) == len(texts)


def why_not_judged(candidates: Sequence[Candidate], *, allow_truncated: bool = False, allow_degenerate: bool = False) -> str:
    """The reason of a record with fewer than two different eligible candidates."""
    if all(c.empty for c in candidates):
        return "sampling_failed" if any(c.error for c in candidates) else "ineligible"
    return "identical" if len(_usable(candidates, allow_truncated, allow_degenerate)) >= 2 else "ineligible"


def pair(record: Record, ranking: Ranking, chosen: int, rejected: int, by_id: Mapping[str, Candidate]) -> PreferencePair:
    """The pair of two places in the ranking. `by_id` are the record's candidates."""
    one, other = ranking.ids[chosen], ranking.ids[rejected]
    return PreferencePair(
        prompt=record.prompt,
        chosen=by_id[one],
        rejected=by_id[other],
        score_chosen=ranking.scores[chosen],
        score_rejected=ranking.scores[rejected],
        p_chosen=ranking.p(chosen, rejected),
        judge=judge_name(record),
        flip=flip(record.verdicts, one, other),
    )


@dataclass(frozen=True, slots=True)
class Best:
    """The best of n candidates. `p_win` is its mean probability of beating another of the n; a copy of it counts 1/2.

    It is None where there was no other. `margin` is its score less the mean of the others that it was compared with, `longer`
    counts those of another length than its own, and those of them that are shorter.
    """

    record: Record
    winner: Candidate
    score: float
    p_win: float | None
    n: int
    judge: str
    margin: float | None = None
    longer: tuple[int, int] = (0, 0)


def best_of_n(
    record: Record,
    ranking: Ranking,
    *,
    accepted: Mapping[str, float] | None = None,
    allow_truncated: bool = False,
    allow_degenerate: bool = False,
) -> Best | str:
    """The strongest candidate, the first one of equals, or the reason why there is none.

    Candidates that all say the same need no verdict: any of them is the best, with p_win 1/2. With `accepted`,
    ids with their ratings, the winner is one of these and has its rating as score.
    """
    usable = _usable(record.candidates, allow_truncated, allow_degenerate)
    if not usable:
        return why_not_judged(record.candidates, allow_truncated=allow_truncated, allow_degenerate=allow_degenerate)
    judged = compared(record.verdicts) if len(ranking.ids) >= 2 else set(ranking.ids)
    if accepted is None and not judged:
        return "no_verdict"
    if accepted is not None and not accepted:
        return "not_accepted" if any(v.scores is not None for v in record.verdicts) else "no_verdict"
    among = judged if accepted is None else accepted
    best = max((k for k, c in enumerate(ranking.ids) if c in among), key=lambda k: (ranking.strengths[k], -k))
    by_text = {normalised(c.text): ranking.ids.index(c.id) for c in usable if c.id in judged and ranking.ids[best] in judged}
    others = [by_text.get(normalised(c.text)) for c in usable if c.id != ranking.ids[best]]
    wins = [ranking.p(best, k) for k in others if k is not None]
    winner = next(c for c in usable if c.id == ranking.ids[best])
    score = ranking.scores[best] if accepted is None else accepted[winner.id]
    apart = [k for k in by_text.values() if k != best]
    margin = ranking.scores[best] - sum(ranking.scores[k] for k in apart) / len(apart) if apart else None
    texts = {c.id: c.text for c in usable}
    differ = [len(winner.text) - len(texts[ranking.ids[k]]) for k in apart]
    longer = sum(d != 0 for d in differ), sum(d > 0 for d in differ)
    return Best(record, winner, score, sum(wins) / len(wins) if wins else None, len(usable), judge_name(record), margin, longer)


def compared(verdicts: Sequence[Verdict]) -> set[str]:
    """The candidates that readable verdicts set against each other, directly or through others.

    Candidates are linked by being shown together, or by being rated alone by the same judge. Where they fall apart into
    several groups, strengths of different groups say nothing about each other: the largest group counts.
    """
    groups: list[set[str]] = []
    alone: dict[str, set[str]] = {}
    for verdict in verdicts:
        if verdict.scores is not None and len(verdict.shown) > 1:
            _link(groups, verdict.shown)
        elif verdict.scores is not None:
            alone.setdefault(verdict.judge, set()).update(verdict.shown)
    for rated in alone.values():
        if len(rated) > 1:
            _link(groups, rated)
    return max(groups, key=lambda group: (len(group), sorted(group)), default=set())


def _link(groups: list[set[str]], shown: Collection[str]) -> None:
    """Puts those shown, and the groups that they belong to, into one group."""
    for group in groups:
        if group.issuperset(shown):
            return
    touched = [group for group in groups if not group.isdisjoint(shown)]
    groups[:] = [group for group in groups if group.isdisjoint(shown)] + [set(shown).union(*touched)]


def judge_name(record: Record) -> str:
    """The judges of a record, joined: a jury is `first+second`. A judge that was asked by each principle is one."""
    return "+".join(dict.fromkeys(v.judge.partition("#")[0] if v.principle else v.judge for v in record.verdicts))


def flip(verdicts: Sequence[Verdict], first: str, second: str) -> bool | None:
    """Whether the two orders of a pair named different winners, for any judge; None unless both were readable."""
    theirs = [v for v in verdicts if v.shown in ((first, second), (second, first))]
    found = [f for fs in flips(theirs).values() for f in fs if f is not None]
    return any(found) if found else None


def flips(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], list[bool | None]]:
    """For each pair (sorted) shown in both orders, a judge each: did the orders name different winners?

    None where not both are readable.
    """
    by_order = {(v.judge, v.shown): v.scores for v in verdicts if len(v.shown) == 2}
    found: dict[tuple[str, str], list[bool | None]] = {}
    for (judge, (first, second)), scores in by_order.items():
        if first > second or (judge, (second, first)) not in by_order:
            continue
        swapped = by_order[judge, (second, first)]
        flipped = None
        if scores is not None and swapped is not None:
            (a, b), (c, d) = scores, swapped
            flipped = (a > b and c > d) or (a < b and c < d)  # the same place won twice
        found.setdefault((first, second), []).append(flipped)
    return found
