"""Bradley-Terry with soft counts and a position term.

Model (Bradley and Terry 1952; the order effect as in Davidson and Beaver 1977): candidate i beats j, shown first, with
probability sigmoid(s_i - s_j + b), where b is the judge's bonus for the first place. A probability verdict p counts as
p wins and 1 - p losses; a vote as one win or as two halves; a verdict of weight w as w verdicts. The fit is the maximum
a posteriori under

    s_i ~ N(0, 100^2 / 2), so that a difference has standard deviation 100: it only keeps strengths finite;
    b   ~ N(0, 10^2) for each judge that was read in both orders of some pair, and 0 for others: it cannot be known;
    half a win to each side of every pair that has votes (Jeffreys' prior of a binomial): a vote is one draw of the
    judge's preference, so two of two agreeing votes mean 0.83 and not 1. A probability is the preference itself.

Where several judges spoke of a pair, each counts alike, however often it was asked: of a pair by itself the result is the
mean of the judges' own probabilities, by their weights.

The position terms are few and pooled over all prompts; given them, each prompt is solved by itself. So they are fitted by
Newton's method on the profile likelihood, in which the strengths have been maximised out: its gradient and curvature are
sums over the prompts, taken chunk by chunk from a file. The first chunk alone gives the start: then two or three passes do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.games import Block, Floats, Games, Ranked, within
from rlaif.types import Ranking, Record, Verdict

STRENGTH_SD = 100.0 / 2**0.5
POSITION_SD = 10.0
_CLOSE = 1e-6  # the error after a step of Newton's method is about the square of the step
_EQUAL = 1e-9
_MOST_STEPS = 100
_LONGEST_STEP = 3.0
_HELD_BYTES = 2**20
CHUNK_SIZE = 2**17


@dataclass(frozen=True, slots=True)
class Fit:
    """`position` is each judge's bonus for the first place, `strengths` yields each prompt's, mean 0, once, in order."""

    position: Mapping[str, float]
    strengths: Iterator[list[float]]


@contextmanager
def fit(ranked: Iterable[Ranked], *, chunk_size: int = CHUNK_SIZE) -> Iterator[Fit]:
    """The fit of all prompts together. Reads `ranked` once; while it is open, the games are in an unnamed temporary file.

    A chunk ends when its games and the squares of its prompts' numbers of candidates reach `chunk_size` together.
    """
    with SpooledTemporaryFile(_HELD_BYTES) as file:
        games = Games(file, ranked, chunk_size)
        position = _position(games)
        yield Fit(dict(zip(games.judges, position.tolist(), strict=True)), _strengths(games, position))


def _position(games: Games) -> Floats:
    """The judges' position terms, in the order of `games.judges`."""
    position = np.zeros(len(games.judges))
    known = np.array([number in games.both_orders for number in range(len(position))], dtype=bool)
    for most in sorted({1, len(games)}) if known.any() else ():
        for _ in range(_MOST_STEPS):
            gradient: Floats = -position / POSITION_SD**2
            curvature: Floats = np.eye(len(position)) / POSITION_SD**2
            for block in games.blocks(most):
                if block.judge.max(initial=-1) >= 0:
                    step = _settle(block, position)
                    gradient, curvature = gradient + step.gradient, curvature + step.curvature
            moved = np.zeros_like(position)
            moved[known] = _capped(
                np.asarray(np.linalg.solve(curvature[np.ix_(known, known)], gradient[known]), dtype=np.float64)
            )
            position = position + moved
            if np.abs(moved).max() < _CLOSE:
                break
    return position


def _strengths(games: Games, position: Floats) -> Iterator[list[float]]:
    for count, blocks in games.chunks():
        rows: list[list[float]] = [[]] * count
        for block in blocks:
            if len(block.won):
                _settle(block, position)
                block.strengths[:] -= block.strengths.mean(axis=1, keepdims=True)
            for prompt, row in zip(block.prompts.tolist(), block.strengths.tolist(), strict=True):
                rows[prompt] = row
        yield from rows


@dataclass(frozen=True, slots=True)
class _Step:
    """Newton's step of a block's strengths, and the block's share of the profile likelihood in the position terms."""

    strengths: Floats
    gradient: Floats
    curvature: Floats


def _settle(block: Block, position: Floats) -> _Step:
    """Moves the block's strengths to their best, given the position terms; returns the last step."""
    for _ in range(_MOST_STEPS):
        step = _newton(block, position)
        moved = _capped(step.strengths)
        block.strengths[:] += moved
        if np.abs(moved).max(initial=0.0) < _CLOSE:
            break
    return step


def _newton(block: Block, position: Floats) -> _Step:
    one, other, judge, judges = block.one, block.other, block.judge, len(position)
    prompts, width = block.strengths.shape
    strengths, cells = block.strengths.ravel(), block.strengths.size
    expected = _sigmoid(strengths[one] - strengths[other] + np.append(position, 0.0)[judge])
    surprise, weight = block.weight * (block.won - expected), block.weight * expected * (1.0 - expected)

    gradient = _sums(one, surprise, cells) - _sums(other, surprise, cells) - strengths / STRENGTH_SD**2
    met = _sums(one * width + other % width, weight, cells * width).reshape(prompts, width, width)
    hessian = -met - met.transpose(0, 2, 1)
    diagonal = np.arange(width)
    total = _sums(one, weight, cells) + _sums(other, weight, cells) + 1.0 / STRENGTH_SD**2
    hessian[:, diagonal, diagonal] += total.reshape(prompts, width)

    ordered = np.flatnonzero(judge >= 0)
    judge, surprise, weight = judge[ordered], surprise[ordered], weight[ordered]
    cross = _sums(one[ordered] * judges + judge, weight, cells * judges)
    cross -= _sums(other[ordered] * judges + judge, weight, cells * judges)
    cross = cross.reshape(prompts, width, judges)

    right = np.concatenate([gradient.reshape(prompts, width, 1), cross], axis=2)
    solved = np.linalg.solve(hessian, right)
    alone, with_position = solved[:, :, 0], solved[:, :, 1:]
    return _Step(
        alone,
        _sums(judge, surprise, judges) - np.einsum("pkj,pk->j", cross, alone),
        np.diag(_sums(judge, weight, judges)) - np.einsum("pkj,pkl->jl", cross, with_position),
    )


def _sums(cells: NDArray[np.integer[Any]], shares: Floats, size: int) -> Floats:
    """The sum of the shares that fall into each of `size` cells."""
    return np.asarray(np.bincount(cells, shares, size), dtype=np.float64)


def _capped(step: Floats) -> Floats:
    """The step, each prompt's shortened to at most 3: far from the solution Newton's method overshoots."""
    longest = np.abs(step).max(axis=-1, keepdims=True, initial=0.0)
    return np.asarray(step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _LONGEST_STEP)))


def rank(records: Sequence[Record], ranked_ids: Sequence[Sequence[str]]) -> list[Ranking]:
    """A ranking of each record's `ranked_ids` from its verdicts, the position terms pooled over all records."""
    ranked = [(ids, record.verdicts) for record, ids in zip(records, ranked_ids, strict=True)]
    with fit(ranked) as fitted:
        return [ranking(*one, strengths) for one, strengths in zip(ranked, fitted.strengths, strict=True)]


def ranking(ids: Sequence[str], verdicts: Sequence[Verdict], strengths: Sequence[float]) -> Ranking:
    """The ranking of `ids` with their fitted strengths, equal for equals; its scores are the ratings of a lone rating judge."""
    fitted = _evened(strengths)
    return Ranking(tuple(ids), fitted, _ratings(ids, within(ids, verdicts)) or fitted)


def _evened(strengths: Sequence[float]) -> tuple[float, ...]:
    """The strengths, those of equals made equal: the last bits in which the solver leaves them apart are nobody's verdict."""
    equal: dict[float, float] = {}
    head = math.inf
    for strength in sorted(strengths, reverse=True):
        if head - strength > _EQUAL:
            head = strength
        equal[strength] = head
    return tuple(equal[strength] for strength in strengths)


def _ratings(ids: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """Mean ratings, where one judge rated every candidate and nothing else was said."""
    if not verdicts or any(v.judge != verdicts[0].judge for v in verdicts):
        return None
    given: dict[str, list[float]] = {c: [] for c in ids}
    for verdict in verdicts:
        if verdict.scores is None:
            continue
        if verdict.scale != "rating" or len(verdict.shown) not in (1, len(ids)):
            return None
        for c, score in zip(verdict.shown, verdict.scores, strict=True):
            given[c].append(score)
    if not all(given.values()):
        return None
    return tuple(sum(scores) / len(scores) for scores in given.values())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def win_probability(stronger: float, weaker: float) -> float:
    """P(the first is better) from two strengths."""
    return 0.5 * (1.0 + math.tanh(0.5 * (stronger - weaker)))
