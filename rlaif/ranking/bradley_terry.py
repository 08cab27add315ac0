"""Bradley-Terry with soft counts and a position term.

Model (Bradley and Terry 1952; the order effect as in Davidson and Beaver 1977): candidate i beats j, shown first, with
probability sigmoid(s_i - s_j + b), where b is the judge's bonus for the first place. A probability verdict p counts as
p wins and 1 - p losses; a vote as one win or as two halves. The fit is the maximum a posteriori under

    s_i ~ N(0, 10^2 / 2), so that a difference has standard deviation 10: weak, it only keeps strengths finite;
    b   ~ N(0, 1.5^2) for each judge;
    half a win to each side of every pair that has votes (Jeffreys' prior of a binomial): a vote is one draw of the
    judge's preference, so two of two agreeing votes mean 0.83 and not 1. A probability is the preference itself.

The strengths of all prompts and the position terms of all judges are fitted together, by Newton's method in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from rlaif.types import Ranking, Record, Verdict

STRENGTH_SD = 10.0 / 2**0.5
POSITION_SD = 1.5
_TOLERANCE = 1e-10
_LONGEST_STEP = 3.0
_CHUNK = 4096

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Games:
    """Comparisons of many prompts, a row each: in prompt `p`, `i` against `j`, of which `i` won the share `won`.

    `judge` is the judge's index where i was shown before j by a judge of pairs, -1 where order played no part.
    """

    counts: Ints
    p: Ints
    i: Ints
    j: Ints
    won: Floats
    judge: Ints
    judges: tuple[str, ...]


def games(records: Sequence[tuple[Sequence[str], Sequence[Verdict]]]) -> Games:
    """The comparisons in the verdicts of each record's ranked ids. Failed verdicts hold none."""
    judges: dict[str, int] = {}
    rows: list[tuple[int, int, int, float, int]] = []
    for p, (ids, verdicts) in enumerate(records):
        place = {c: k for k, c in enumerate(ids)}
        voted: set[tuple[int, int]] = set()
        for group in _by_judge(verdicts):
            for shown, won, is_vote, ordered in group:
                i, j = place[shown[0]], place[shown[1]]
                order = judges.setdefault(ordered, len(judges)) if ordered else -1
                rows.append((p, i, j, won, order))
                if is_vote:
                    voted.add((min(i, j), max(i, j)))
        rows.extend((p, i, j, 0.5, -1) for i, j in sorted(voted))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    ints = table.astype(np.int64)
    counts = np.array([len(ids) for ids, _ in records], dtype=np.int64)
    return Games(counts, ints[:, 0], ints[:, 1], ints[:, 2], table[:, 3], ints[:, 4], tuple(judges))


Row = tuple[tuple[str, str], float, bool, str]


def _by_judge(verdicts: Sequence[Verdict]) -> list[list[Row]]:
    """Each verdict's pairs as (shown, share won by the first, is it a vote, judge if the order may matter)."""
    found: list[list[Row]] = []
    alone: dict[str, list[tuple[str, float]]] = {}
    orders = {(v.judge, v.shown) for v in verdicts}
    for verdict in verdicts:
        if verdict.scores is None:
            continue
        if len(verdict.shown) == 1:
            alone.setdefault(verdict.judge, []).append((verdict.shown[0], verdict.scores[0]))
            continue
        soft = verdict.scale == "probability"
        compares = len(verdict.shown) == 2 and (verdict.scale != "rating" or (verdict.judge, verdict.shown[::-1]) in orders)
        ordered = verdict.judge if compares else ""
        pairs = combinations(zip(verdict.shown, verdict.scores, strict=True), 2)
        found.append([((a, b), _share(x, y, soft), not soft, ordered) for (a, x), (b, y) in pairs])
    for ratings in alone.values():
        found.append([((a, b), _share(x, y, False), True, "") for (a, x), (b, y) in combinations(ratings, 2)])
    return found


def _share(first: float, second: float, soft: bool) -> float:
    if soft:
        return first / (first + second) if first + second > 0 else 0.5
    return 1.0 if first > second else 0.0 if first < second else 0.5


def fit(data: Games) -> tuple[Floats, Floats]:
    """(strengths, position terms): strengths of shape (prompts, most candidates), mean 0 within a prompt."""
    widest = int(data.counts.max(initial=0))
    strengths = np.zeros((len(data.counts), widest))
    position = np.zeros(len(data.judges))
    starts = np.searchsorted(data.p, np.arange(0, len(data.counts) + _CHUNK, _CHUNK))
    for _ in range(200):
        bonus = np.where(data.judge >= 0, np.append(position, 0.0)[data.judge], 0.0)
        for chunk, (low, high) in enumerate(pairwise(starts)):
            rows = slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
            part = slice(low, high)
            strengths[rows] = _strengths(
                strengths[rows], data.p[part] - chunk * _CHUNK, data.i[part], data.j[part], data.won[part], bonus[part]
            )
        moved = _positions(data, strengths)
        change = float(np.abs(moved - position).max(initial=0.0))
        position = moved
        if change < 1e-8:
            break
    inside = np.arange(widest) < data.counts[:, None]
    means = np.where(inside, strengths, 0.0).sum(1, keepdims=True) / np.maximum(data.counts, 1)[:, None]
    return np.where(inside, strengths - means, 0.0), position


def _strengths(start: Floats, p: Ints, i: Ints, j: Ints, won: Floats, bonus: Floats) -> Floats:
    """Newton's method on the strengths of a block of prompts, the position terms fixed."""
    s, precision = start.copy(), 1.0 / STRENGTH_SD**2
    diagonal = np.arange(s.shape[1])
    for _ in range(100):
        expected = _sigmoid(s[p, i] - s[p, j] + bonus)
        gradient, weight = -precision * s, expected * (1.0 - expected)
        np.add.at(gradient, (p, i), won - expected)
        np.add.at(gradient, (p, j), expected - won)
        hessian = np.zeros((*s.shape, s.shape[1]))
        hessian[:, diagonal, diagonal] = precision
        for a, b, sign in ((i, i, 1.0), (j, j, 1.0), (i, j, -1.0), (j, i, -1.0)):
            np.add.at(hessian, (p, a, b), sign * weight)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True, initial=0.0)
        s += step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max(initial=0.0) < _TOLERANCE:
            break
    return s


def _positions(data: Games, strengths: Floats) -> Floats:
    """Newton's method on each judge's position term, the strengths fixed."""
    position = np.zeros(len(data.judges))
    for k in range(len(data.judges)):
        rows = data.judge == k
        gap, won, b = strengths[data.p[rows], data.i[rows]] - strengths[data.p[rows], data.j[rows]], data.won[rows], 0.0
        for _ in range(100):
            expected = _sigmoid(gap + b)
            gradient = float((won - expected).sum()) - b / POSITION_SD**2
            step = gradient / (float((expected * (1.0 - expected)).sum()) + 1.0 / POSITION_SD**2)
            b += max(-_LONGEST_STEP, min(_LONGEST_STEP, step))
            if abs(step) < _TOLERANCE:
                break
        position[k] = b
    return position


def rank(records: Sequence[Record], ranked_ids: Sequence[Sequence[str]]) -> list[Ranking]:
    """A ranking of each record's `ranked_ids` from its verdicts, the position terms pooled over all records."""
    kept = [
        (ids, [v for v in record.verdicts if set(v.shown) <= set(ids)]) for record, ids in zip(records, ranked_ids, strict=True)
    ]
    strengths, _ = fit(games(kept))
    rankings = []
    for (ids, verdicts), row in zip(kept, strengths, strict=True):
        fitted = tuple(float(x) for x in row[: len(ids)])
        rankings.append(Ranking(tuple(ids), fitted, _ratings(ids, verdicts) or fitted))
    return rankings


def _ratings(ids: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """Mean ratings, where one judge rated every candidate and nothing else was said."""
    given: dict[str, list[float]] = {c: [] for c in ids}
    for verdict in verdicts:
        if verdict.scores is None:
            continue
        if verdict.scale != "rating" or len(verdict.shown) not in (1, len(ids)):
            return None
        for c, score in zip(verdict.shown, verdict.scores, strict=True):
            given[c].append(score)
    if len({v.judge for v in verdicts}) != 1 or not all(given.values()):
        return None
    return tuple(sum(scores) / len(scores) for scores in given.values())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def win_probability(stronger: float, weaker: float) -> float:
    """P(the first is better) from two strengths."""
    return 0.5 * (1.0 + math.tanh(0.5 * (stronger - weaker)))
