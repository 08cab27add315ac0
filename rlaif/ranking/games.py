"""Verdicts as games of two candidates, in arrays in a temporary file: however many prompts, memory holds one chunk.

A verdict that shows two is a game; one that shows k, or k ratings of one judge, are the games of all their pairs. A pair
with votes gets one game more, half won by each: see `bradley_terry`. The chunks follow the order and the content of the
prompts alone, so that equal prompts give equal sums.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rlaif.types import Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Ranked = tuple[Sequence[str], Sequence[Verdict]]
"""The ids of a prompt's candidates that are ranked, and the verdicts on the prompt."""


@dataclass(frozen=True, slots=True)
class Block:
    """Prompts of a chunk with the same number of candidates, and their games.

    `prompts` are their places in the chunk, `strengths` has a row for each. In a game, `one` met `other`, both counted
    through the flat strengths, and won the share `won`. `judge` is the judge's index where `one` was shown before `other`
    by a judge of pairs, -1 where order played no part; the game counts `weight` times.
    """

    prompts: Ints
    strengths: Floats
    one: Ints
    other: Ints
    judge: Ints
    won: Floats
    weight: Floats


class Games:
    """The games of many prompts in `file`, added once each in a fixed order.

    `judges` are those whose order may matter; `both_orders` those who were read in both orders of a pair: of no other can it
    be known what the first place is worth to them.
    """

    def __init__(self, file: IO[bytes], ranked: Iterable[Ranked], chunk_size: int) -> None:
        self._file = file
        self._chunks: list[tuple[int, list[tuple[int, int, int, int]]]] = []
        self.judges: dict[str, int] = {}
        self.both_orders: set[int] = set()
        chunk = _Chunk(self.judges, self.both_orders)
        for ids, verdicts in ranked:
            chunk.add(ids, verdicts)
            if chunk.size >= chunk_size:
                self._put(chunk)
                chunk = _Chunk(self.judges, self.both_orders)
        if chunk.counts:
            self._put(chunk)

    def __len__(self) -> int:
        """The number of chunks."""
        return len(self._chunks)

    def chunks(self, most: int | None = None) -> Iterator[tuple[int, Iterator[Block]]]:
        """(number of prompts, their blocks) of each chunk, of the first `most`. The strengths are as they were kept."""
        for count, places in self._chunks[:most]:
            yield count, (self._get(*place) for place in places)

    def blocks(self, most: int | None = None) -> Iterator[Block]:
        """The blocks of all chunks; what is written to a block's strengths is kept when the next one is asked for."""
        for _, places in self._chunks[:most]:
            for place in places:
                block = self._get(*place)
                yield block
                self._file.seek(place[0])
                self._file.write(block.strengths.tobytes())

    def _put(self, chunk: _Chunk) -> None:
        places = []
        for block in chunk.blocks():
            places.append((self._file.seek(0, 2), *block.strengths.shape, len(block.won)))
            for part in (block.strengths, block.won, block.weight, block.prompts, block.one, block.other, block.judge):
                self._file.write(part.tobytes())
        self._chunks.append((len(chunk.counts), places))

    def _get(self, start: int, prompts: int, width: int, games: int) -> Block:
        self._file.seek(start)
        floats = np.frombuffer(self._file.read(8 * (prompts * width + 2 * games)))
        ints = np.frombuffer(self._file.read(4 * (prompts + 3 * games)), dtype=np.int32)
        strengths = floats[: prompts * width].reshape(prompts, width).copy()
        one, other, judge = ints[prompts:].reshape(3, games)
        won, weight = floats[prompts * width :].reshape(2, games)
        return Block(ints[:prompts], strengths, one, other, judge, won, weight)


class _Chunk:
    """Games as they come in: the prompt, the two candidates' places and the judge in `_games`, the share in `_won`, ..."""

    def __init__(self, judges: dict[str, int], both_orders: set[int]) -> None:
        self.counts = array("i")
        self.size = 0
        self._judges, self._both_orders = judges, both_orders
        self._games, self._won, self._weight = array("i"), array("d"), array("d")

    def add(self, ids: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        place = {c: k for k, c in enumerate(ids)}
        before = len(self._won)
        by_judge: dict[str, list[Verdict]] = {}
        for verdict in within(ids, verdicts):
            if verdict.scores is not None:
                by_judge.setdefault(verdict.judge, []).append(verdict)
        found = [self._games_of(place, judge, said) for judge, said in by_judge.items()]
        if len(found) == 1:
            for game in found[0]:
                self._put(*game)
        else:
            self._put_jury(found)
        self.counts.append(len(ids))
        self.size += len(ids) ** 2 + len(self._won) - before

    def _games_of(self, place: Mapping[str, int], judge: str, verdicts: Sequence[Verdict]) -> list[_Game]:
        """One judge's games: of every two that it showed together or rated, the one shown earlier first.

        A pair with votes has one more, half won by each.
        """
        games: list[_Game] = []
        voted: dict[tuple[int, int], float] = {}
        alone: list[tuple[int, float]] = []
        shown = {v.shown for v in verdicts if len(v.shown) == 2}
        for verdict in verdicts:
            scored = [(place[c], score) for c, score in zip(verdict.shown, verdict.scores or (), strict=True)]
            if len(scored) == 1:
                alone.extend(scored)
                continue
            number = -1
            if len(scored) == 2 and (verdict.scale != "rating" or verdict.shown[::-1] in shown):
                number = self._judges.setdefault(judge, len(self._judges))
                if verdict.shown[::-1] in shown:
                    self._both_orders.add(number)
            _meet(games, scored, number, None if verdict.scale == "probability" else voted, verdict.weight)
        _meet(games, alone, -1, voted, verdicts[0].weight)
        games.extend((i, j, -1, 0.5, weight) for (i, j), weight in sorted(voted.items()))
        return games

    def _put_jury(self, found: Sequence[Sequence[_Game]]) -> None:
        """Puts several judges' games so that each judge counts alike on a pair, however often it was asked about it.

        Of a pair by itself, the strengths are then those of the mean of what each judge by itself makes of it.
        """
        totals = [Counter[tuple[int, int]]() for _ in found]
        for total, games in zip(totals, found, strict=True):
            for i, j, *_ in games:
                total[min(i, j), max(i, j)] += 1
        for total, games in zip(totals, found, strict=True):
            for i, j, judge, won, weight in games:
                pair = min(i, j), max(i, j)
                self._put(i, j, judge, won, weight * max(other[pair] for other in totals) / total[pair])

    def _put(self, i: int, j: int, judge: int, won: float, weight: float) -> None:
        self._games.extend((len(self.counts), i, j, judge))
        self._won.append(won)
        self._weight.append(weight)

    def blocks(self) -> Iterator[Block]:
        counts, won, weight = np.array(self.counts), np.array(self._won), np.array(self._weight)
        p, i, j, judge = np.array(self._games).reshape(-1, 4).T
        place = np.empty_like(counts)
        for width in sorted(set(self.counts)):
            prompts = np.flatnonzero(counts == width).astype(np.int32)
            place[prompts] = np.arange(len(prompts))
            mine = np.flatnonzero(counts[p] == width)
            row = place[p[mine]] * width
            games = row + i[mine], row + j[mine], judge[mine], won[mine], weight[mine]
            yield Block(prompts, np.zeros((len(prompts), width)), *games)


_Game = tuple[int, int, int, float, float]
"""(one, other, judge, won, weight), as of `Block`."""


def _meet(
    games: list[_Game],
    scored: Sequence[tuple[int, float]],
    judge: int,
    voted: dict[tuple[int, int], float] | None,
    weight: float,
) -> None:
    """Adds a game of every two, the earlier one first; of votes, which are put into `voted`, or of probabilities."""
    for (i, x), (j, y) in (scored,) if len(scored) == 2 else combinations(scored, 2):
        if voted is None:
            won = x / (x + y) if x + y > 0 else 0.5
        else:
            won = 1.0 if x > y else 0.0 if x < y else 0.5
            voted[(i, j) if i < j else (j, i)] = weight
        games.append((i, j, judge, won, weight))


def within(ids: Sequence[str], verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """What the verdicts say of `ids`: others that were shown are left out, and so is what then compares or rates none."""
    known = set(ids)
    if known.issuperset(chain.from_iterable([v.shown for v in verdicts])):
        return verdicts
    return [v if known.issuperset(v.shown) else _among(known, v) for v in verdicts if _says_something(known, v)]


def _says_something(known: set[str], verdict: Verdict) -> bool:
    return len(known.intersection(verdict.shown)) >= min(2, len(verdict.shown))


def _among(known: set[str], verdict: Verdict) -> Verdict:
    kept = [place for place, candidate in enumerate(verdict.shown) if candidate in known]
    scores = None if verdict.scores is None else tuple([verdict.scores[place] for place in kept])
    return replace(verdict, shown=tuple([verdict.shown[place] for place in kept]), scores=scores)
