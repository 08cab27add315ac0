"""Bradley-Terry with soft counts and a position term.

Model (Bradley and Terry 1952; the order effect as in Davidson and Beaver 1977): candidate i beats j, shown first, with
probability sigmoid(s_i - s_j + b), where b is the judge's bonus for the first place. A probability verdict p counts as
p wins and 1 - p losses; a vote as one win or as two halves. The fit is the maximum a posteriori under

    s_i ~ N(0, 100^2 / 2), so that a difference has standard deviation 100: it only keeps strengths finite;
    b   ~ N(0, 10^2) for each judge;
    half a win to each side of every pair that has votes (Jeffreys' prior of a binomial): a vote is one draw of the
    judge's preference, so two of two agreeing votes mean 0.83 and not 1. A probability is the preference itself.

The strengths of all prompts and the position terms of all judges are fitted together by Newton's method. The Hessian is
block diagonal but for the few position terms: each prompt is solved by itself, and the rest by its Schur complement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlaif.types import Ranking, Record, Verdict

STRENGTH_SD = 100.0 / 2**0.5
POSITION_SD = 10.0
_TOLERANCE = 1e-9
_MOST_STEPS = 100
_LONGEST_STEP = 3.0
_CELLS = 2**18

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


def fit(data: Games) -> tuple[list[Floats], Floats]:
    """(each prompt's strengths, mean 0; the judges' position terms, in the order of `data.judges`)."""
    judges = len(data.judges)
    position = np.zeros(judges)
    blocks = _blocks(data)
    for _ in range(_MOST_STEPS):
        steps = [_solve(block, position) for block in blocks]
        gradient = sum((step.gradient for step in steps), -position / POSITION_SD**2)
        schur = sum((step.schur for step in steps), np.eye(judges) / POSITION_SD**2)
        moved: Floats = _capped(np.asarray(np.linalg.solve(schur, gradient))) if judges else position
        longest = float(np.abs(moved).max(initial=0.0))
        for block, step in zip(blocks, steps, strict=True):
            by = _capped(step.alone - step.with_position @ moved)
            block.strengths[:] += by
            longest = max(longest, float(np.abs(by).max(initial=0.0)))
        position = position + moved
        if longest < _TOLERANCE:
            break
    found: list[Floats] = [np.zeros(0)] * len(data.counts)
    for block in blocks:
        for prompt, row in zip(block.prompts, block.strengths, strict=True):
            found[prompt] = row - row.mean() if len(row) else row
    return found, position


@dataclass(frozen=True, slots=True)
class _Block:
    """Prompts with the same number of candidates and their games, `p` counted within the block."""

    prompts: Ints
    strengths: Floats
    p: Ints
    i: Ints
    j: Ints
    won: Floats
    judge: Ints


def _blocks(data: Games) -> list[_Block]:
    """The prompts, those of one width together, in blocks of bounded memory."""
    order = np.argsort(data.counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    games = np.argsort(place[data.p], kind="stable")
    sorted_p, widths = place[data.p][games], data.counts[order]
    blocks, start = [], 0
    while start < len(order):
        width = int(widths[start])
        same = int(np.searchsorted(widths, width, side="right"))
        stop = min(same, start + max(1, _CELLS // max(1, width * width)))
        rows = games[np.searchsorted(sorted_p, start) : np.searchsorted(sorted_p, stop)]
        blocks.append(
            _Block(
                order[start:stop],
                np.zeros((stop - start, width)),
                place[data.p[rows]] - start,
                data.i[rows],
                data.j[rows],
                data.won[rows],
                data.judge[rows],
            )
        )
        start = stop
    return blocks


@dataclass(frozen=True, slots=True)
class _Step:
    """Newton's step of a block of prompts, as it depends on the position terms' step d: `alone - with_position @ d`.

    `gradient` and `schur` are the block's share of the position terms' own equation, the strengths eliminated.
    """

    alone: Floats
    with_position: Floats
    gradient: Floats
    schur: Floats


def _solve(block: _Block, position: Floats) -> _Step:
    strengths, p, i, j, judge = block.strengths, block.p, block.i, block.j, block.judge
    ordered, judges = judge >= 0, len(position)
    bonus = np.where(ordered, np.append(position, 0.0)[judge], 0.0)
    expected = _sigmoid(strengths[p, i] - strengths[p, j] + bonus)
    surprise, weight = block.won - expected, expected * (1.0 - expected)

    gradient = -strengths / STRENGTH_SD**2
    np.add.at(gradient, (p, i), surprise)
    np.add.at(gradient, (p, j), -surprise)
    hessian = np.zeros((*strengths.shape, strengths.shape[1]))
    diagonal = np.arange(strengths.shape[1])
    hessian[:, diagonal, diagonal] = 1.0 / STRENGTH_SD**2
    for a, b, sign in ((i, i, 1.0), (j, j, 1.0), (i, j, -1.0), (j, i, -1.0)):
        np.add.at(hessian, (p, a, b), sign * weight)
    cross = np.zeros((*strengths.shape, judges))
    np.add.at(cross, (p[ordered], i[ordered], judge[ordered]), weight[ordered])
    np.add.at(cross, (p[ordered], j[ordered], judge[ordered]), -weight[ordered])

    solved = np.linalg.solve(hessian, np.concatenate([gradient[:, :, None], cross], axis=2))
    alone, with_position = solved[:, :, 0], solved[:, :, 1:]
    own = np.bincount(judge[ordered], surprise[ordered], minlength=judges)
    curvature = np.bincount(judge[ordered], weight[ordered], minlength=judges)
    return _Step(
        alone,
        with_position,
        own - np.einsum("pkj,pk->j", cross, alone),
        np.diag(curvature) - np.einsum("pkj,pkl->jl", cross, with_position),
    )


def _capped(step: Floats) -> Floats:
    """The step, each prompt's shortened to at most 3: far from the solution Newton's method overshoots."""
    longest = np.abs(step).max(axis=-1, keepdims=True, initial=0.0)
    return np.asarray(step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _LONGEST_STEP)))


def rank(records: Sequence[Record], ranked_ids: Sequence[Sequence[str]]) -> list[Ranking]:
    """A ranking of each record's `ranked_ids` from its verdicts, the position terms pooled over all records."""
    kept = [
        (ids, [v for v in record.verdicts if set(v.shown) <= set(ids)]) for record, ids in zip(records, ranked_ids, strict=True)
    ]
    strengths, _ = fit(games(kept))
    rankings = []
    for (ids, verdicts), row in zip(kept, strengths, strict=True):
        fitted = tuple(float(x) for x in row)
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
