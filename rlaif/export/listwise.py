"""All candidates of a prompt with their ranks, in the names of Nectar (Zhu et al. 2023).

A rank belongs to the candidate beside it, 1 for the best: it is no place in the list, which keeps the order of the
candidates. One that was not compared with the others has no rank, and no score that could be set beside theirs.
"""

from __future__ import annotations

from collections.abc import Collection

from rlaif.export import number
from rlaif.export.parts import Row, tools_of
from rlaif.pairs import TIE, compared, judge_name
from rlaif.types import Candidate, Ranking, Record


def row(record: Record, ranking: Ranking) -> Row:
    """`answers`: every candidate with `rank` (1 + the number of better ones, so equals share it), `score` and `strength`."""
    judged = compared(record.verdicts)
    known = {
        c: (strength, score)
        for c, strength, score in zip(ranking.ids, ranking.strengths, ranking.scores, strict=True)
        if c in judged
    }
    ranks = ranks_of(ranking, known)
    return {
        "id": record.prompt.id,
        "prompt": list(record.prompt.messages),
        "answers": [_answer(c, ranks.get(c.id), known.get(c.id), c.id in ranking.ids) for c in record.candidates],
        "judge": judge_name(record),
        **tools_of(record.prompt),
    }


def ranks_of(ranking: Ranking, among: Collection[str]) -> dict[str, int]:
    """The rank of each: 1 for the strongest; those that a pair would call tied share one, and the next ranks are left out."""
    ranks: dict[str, int] = {}
    rank = head = 0
    places = sorted((k for k, c in enumerate(ranking.ids) if c in among), key=lambda k: -ranking.strengths[k])
    for place, k in enumerate(places, 1):
        if place == 1 or ranking.p(head, k) >= 0.5 + TIE:
            rank, head = place, k
        ranks[ranking.ids[k]] = rank
    return ranks


def _answer(candidate: Candidate, rank: int | None, known: tuple[float, float] | None, eligible: bool) -> Row:
    strength, score = known or (None, None)
    return {
        "answer": candidate.text,
        "model": candidate.model,
        "rank": rank,
        "score": None if score is None else number(score),
        "strength": None if strength is None else number(strength),
        "eligible": eligible,
        "truncated": candidate.truncated,
        "degenerate": candidate.degenerate,
        "error": candidate.error,
    }
