"""Two constitutions on the same candidates: where do their judgements differ?

Each has its own verdicts, in a run directory of its own. They are fitted apart, and set side by side prompt by prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlaif import pairs, results
from rlaif.config import RunConfig
from rlaif.export import write_jsonl
from rlaif.types import Ranking, Record

_SURE = 1e-6


def compare(config: RunConfig, one: Path, other: Path, names: tuple[str, str], file: Path) -> dict[str, Any]:
    """Writes the prompts on which the two directories differ to `file`; returns the counts.

    A pair of candidates is the `same` if both prefer the same one, `different` if each prefers another, `undecided` if one of
    them is tied or has no verdict. `best_differs` counts prompts. A row shows the pair on which the two are furthest apart.
    """
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        theirs = results.ranked(other, config)
        there = next(theirs, None)
        for record, ranking in results.ranked(one, config):
            while there is not None and there[0].ordinal < record.ordinal:
                there = next(theirs, None)
            if there is not None and there[0].ordinal == record.ordinal:
                both = (record, ranking), there
                known = set.intersection(*(pairs.compared(r.verdicts) for r, _ in both))
                yield from _row(record, (ranking, there[1]), known, names, counts)

    written = write_jsonl(file, rows())
    kinds = ("prompts", "pairs", "same", "different", "undecided", "best_differs")
    return {"constitutions": list(names), **{kind: counts[kind] for kind in kinds}, "rows": written}


def _row(
    record: Record, rankings: tuple[Ranking, Ranking], known: set[str], names: tuple[str, str], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    places = [{c: k for k, c in enumerate(r.ids)} for r in rankings]
    shared = [c for c in rankings[0].ids if c in places[1]]
    if names[0] == names[1]:
        names = (names[0], f"{names[1]} (against)")
    counts["prompts"] += 1
    furthest: tuple[float, str, str, tuple[float, float]] | None = None
    for left, right in combinations(shared, 2):
        p, q = (r.p(at[left], at[right]) for r, at in zip(rankings, places, strict=True))
        counts["pairs"] += 1
        if not known.issuperset((left, right)) or min(abs(p - 0.5), abs(q - 0.5)) < _SURE:
            counts["undecided"] += 1
        elif (p > 0.5) == (q > 0.5):
            counts["same"] += 1
        else:
            counts["different"] += 1
            if furthest is None or abs(p - q) > furthest[0]:
                furthest = (abs(p - q), left, right, (p, q))
    if furthest is None:
        return
    best = [_best(ranking, [c for c in shared if c in known]) for ranking in rankings]
    counts["best_differs"] += best[0] != best[1]
    _, left, right, (p, q) = furthest
    texts = {c.id: c.text for c in record.candidates}
    yield {
        "id": record.prompt.id,
        "prompt": list(record.prompt.messages),
        "left": texts[left],
        "right": texts[right],
        "p_left": {names[0]: round(p, 6), names[1]: round(q, 6)},
        "best": {name: texts[c] for name, c in zip(names, best, strict=True)},
    }


def _best(ranking: Ranking, among: Sequence[str]) -> str:
    strengths = dict(zip(ranking.ids, ranking.strengths, strict=True))
    return max(among, key=strengths.__getitem__)
