"""KTO: answers one by one, each desirable or not.

A candidate stands in one row, however many pairs it is part of. One that is chosen in one pair and rejected in another is
neither desirable nor undesirable, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.export import number
from rlaif.export.parts import Row, answer, check, tools_of
from rlaif.types import Candidate, PreferencePair

Side = dict[str, tuple[Candidate, float, PreferencePair]]
"""Candidates by id, each with its score and the surest of its pairs."""


def rows(pairs: Iterable[PreferencePair]) -> Iterator[Row]:
    """`prompt`, `completion`, `label` of each candidate in one prompt's pairs: the chosen ones first.

    `p_chosen`, `p_source` and `flip` are those of the surest pair that the label comes from. Raises ValueError for a pair that
    is none.
    """
    liked: Side = {}
    disliked: Side = {}
    for pair in pairs:
        check(pair)
        _note(liked, pair.chosen, pair.score_chosen, pair)
        _note(disliked, pair.rejected, pair.score_rejected, pair)
    for label, side, other in ((True, liked, disliked), (False, disliked, liked)):
        for id, (candidate, score, pair) in side.items():
            if id not in other:
                yield _row(candidate, score, pair, label)


def _note(side: Side, candidate: Candidate, score: float, pair: PreferencePair) -> None:
    before = side.get(candidate.id)
    if before is None or pair.p_chosen > before[2].p_chosen:
        side[candidate.id] = candidate, score, pair


def _row(candidate: Candidate, score: float, pair: PreferencePair, label: bool) -> Row:
    return {
        "id": pair.prompt.id,
        "prompt": list(pair.prompt.messages),
        "completion": answer(candidate.text),
        "label": label,
        "score": number(score),
        "p_chosen": number(pair.p_chosen),
        "p_source": pair.p_source,
        "judge": pair.judge,
        "flip": pair.flip,
        "model": candidate.model,
        **tools_of(pair.prompt),
    }
