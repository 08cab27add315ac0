"""Verdicts as games of two candidates, in arrays in a temporary file: however many prompts, memory holds one chunk.

A verdict that shows two is a game; one that shows k, or k ratings of one judge, are the games of all their pairs. A pair
with votes gets one game more, half won by each: see `bradley_terry`. The chunks follow the order and the content of the
prompts alone, so that equal prompts give equal sums.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
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
    """The games of many prompts in `file`, added once each in a fixed order. `judges` are those whose order may matter."""

    def __init__(self, file: IO[bytes], ranked: Iterable[Ranked], chunk_size: int) -> None:
        self._file = file
        self._chunks: list[tuple[int, list[tuple[int, int, int, int]]]] = []
        self.judges: dict[str, int] = {}
        chunk = _Chunk()
        for ids, verdicts in ranked:
            chunk.add(ids, verdicts, self.judges)
            if chunk.size >= chunk_size:
                self._put(chunk)
                chunk = _Chunk()
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

    def __init__(self) -> None:
        self.counts = array("i")
        self.size = 0
        self._games, self._won, self._weight = array("i"), array("d"), array("d")

    def add(self, ids: Sequence[str], verdicts: Sequence[Verdict], judges: dict[str, int]) -> None:
        place = {c: k for k, c in enumerate(ids)}
        voted: set[tuple[int, int]] = set()
        alone: dict[tuple[str, float], list[tuple[int, float]]] = {}
        before = len(self._won)
        verdicts = within(ids, verdicts)
        for verdict in verdicts:
            if verdict.scores is None:
                continue
            shown = [(place[c], score) for c, score in zip(verdict.shown, verdict.scores, strict=True)]
            if len(shown) == 1:
                alone.setdefault((verdict.judge, verdict.weight), []).extend(shown)
                continue
            judge = judges.setdefault(verdict.judge, len(judges)) if _order_may_matter(verdict, verdicts) else -1
            self._meet(shown, judge, None if verdict.scale == "probability" else voted, verdict.weight)
        for (_, weight), ratings in alone.items():
            self._meet(ratings, -1, voted, weight)
        for i, j in sorted(voted):
            self._meet([(i, 0.5), (j, 0.5)], -1, None, 1.0)
        self.counts.append(len(ids))
        self.size += len(ids) ** 2 + len(self._won) - before

    def _meet(self, scored: Sequence[tuple[int, float]], judge: int, voted: set[tuple[int, int]] | None, weight: float) -> None:
        """A game of every two, the earlier one first; of votes, which are put into `voted`, or of probabilities."""
        for (i, x), (j, y) in (scored,) if len(scored) == 2 else combinations(scored, 2):
            if voted is None:
                won = x / (x + y) if x + y > 0 else 0.5
            else:
                won = 1.0 if x > y else 0.0 if x < y else 0.5
                voted.add((i, j) if i < j else (j, i))
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


def _order_may_matter(verdict: Verdict, verdicts: Sequence[Verdict]) -> bool:
    """Whether it compares two; two ratings are a comparison where the judge was shown them in the other order too."""
    if len(verdict.shown) != 2 or verdict.scale != "rating":
        return len(verdict.shown) == 2
    return any(other.judge == verdict.judge and other.shown == verdict.shown[::-1] for other in verdicts)


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
