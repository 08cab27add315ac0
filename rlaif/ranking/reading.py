"""Verdicts as games of two candidates and as ratings, in arrays: what the fit reads of the verdicts.

An instrument is a judge and the form in which it spoke, for a judge that does several things is good at each in its own way:

    pairs     two were shown: a game. A probability p is p of a win and 1 - p of a loss, a tie is half of each
    lists     k > 2 were shown and their order counts: a game of every two of them, each of weight 2 / k, since a ranking of k
              is k - 1 choices (Plackett and Luce) and not the k (k - 1) / 2 independent draws that its games would be
    ratings   each candidate was rated alone, or all of the prompt's at once on the scale "rating"

Ratings of only some of a prompt's candidates, shown together, count by their order. A verdict of weight w counts w times.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif.types import Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Form = Literal["pairs", "lists", "ratings"]
Instrument = tuple[str, Form]
Ranked = tuple[Sequence[str], Sequence[Verdict]]
"""The ids of a prompt's candidates that are ranked, and the verdicts on the prompt."""

_FARTHEST = 20.0  # a gap counts as so many times the median one at most
_MEDIAN_GAP = 0.9538725524089  # of two standard normals: sqrt(2) times the upper quartile of one


@dataclass(frozen=True, slots=True)
class Layer:
    """At most one cell of each site: the games of a pair by one instrument in one order.

    `order` is 1 where the site's `one` was shown first, -1 where `other` was, 0 where order plays no part; of games with the
    summed weight `total`, `one` won `wins`. `scatter` is the variance that the wins would have, were the games that are given
    as probabilities played.
    """

    instrument: Ints
    order: Floats
    wins: Floats
    total: Floats
    scatter: Floats


@dataclass(frozen=True, slots=True)
class Rated:
    """An instrument's mean ratings of the candidates of a block's prompts (prompts, n), and their weights: 0 for no rating."""

    instrument: int
    ratings: Floats
    weight: Floats


@dataclass(frozen=True, slots=True)
class Block:
    """Prompts with the same number n of candidates, their sites and their ratings.

    A site is a pair that met, `one` and `other` counted through all candidates of the block. Sites with more cells stand
    before those with fewer: the cells of layer k belong to the first sites. `prompts` are places in the chunk.
    `precision` and `shift` are the Gaussian approximation of each site's likelihood, as it was found last.
    """

    prompts: Ints
    n: int
    one: Ints
    other: Ints
    layers: tuple[Layer, ...]
    rated: tuple[Rated, ...]
    precision: Floats
    shift: Floats

    @property
    def size(self) -> tuple[int, int]:
        """(prompts, n)."""
        return len(self.prompts), self.n

    @property
    def games(self) -> int:
        """The number of cells."""
        return sum(len(layer.wins) for layer in self.layers)


class Reader:
    """Verdicts of a chunk's prompts as they come in. `instruments` are shared by all chunks, and numbered as they are heard.

    `repeated` collects those that somewhere were heard often enough to be measured against themselves or another one.
    """

    def __init__(self, instruments: dict[Instrument, int], repeated: set[int]) -> None:
        self.counts = array("i")
        self.games = array("i")  # of each prompt
        self.instruments, self._repeated = instruments, repeated
        self._met, self._by, self._won, self._weight = array("q"), array("i"), array("d"), array("d")
        self._rated, self._ratings = array("i"), array("d")
        self.size = 0  # games and squares of the prompts' numbers of candidates, together

    def add(self, ids: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Takes in a prompt's verdicts on `ids`."""
        place = {c: k for k, c in enumerate(ids)}
        try:
            heard, games = self._heard(place, verdicts)
        except KeyError:
            heard, games = self._heard(place, within(ids, verdicts))
        self._met.extend(games.met)
        self._by.extend(games.by)
        self._won.extend(games.won)
        self._weight.extend(games.weight)
        self._repeated.update(heard if len(heard) > 1 else (k for k, choices in heard.items() if choices >= len(ids)))
        self.counts.append(len(ids))
        self.games.append(len(games.met))
        self.size += len(ids) ** 2 + len(games.met)

    def _heard(self, place: Mapping[str, int], verdicts: Sequence[Verdict]) -> tuple[dict[int, int], _Games]:
        """(choices made by each instrument, the games). Raises KeyError, with nothing kept, if another candidate was shown."""
        known, n = self.instruments, len(place)
        met, by, won, weights = games = _Games([], [], [], [])
        heard: dict[int, int] = {}
        others: list[Verdict] = []
        judge, number = None, -1
        for verdict in verdicts:
            scores, shown = verdict.scores, verdict.shown
            if scores is None:
                continue
            if len(shown) != 2 or (verdict.scale == "rating" and n == 2):
                others.append(verdict)
                continue
            one, other = shown
            met.append(place[one] * n + place[other])
            if verdict.judge != judge:
                judge = verdict.judge
                number = known.setdefault((judge, "pairs"), len(known))
                heard.setdefault(number, 0)
            by.append(number)
            x, y = scores
            if verdict.scale == "probability":
                won.append(x / (x + y) if x + y > 0 else 0.5)
            else:
                won.append(1.0 if x > y else 0.0 if x < y else 0.5)
            weights.append(verdict.weight)
        for number in heard:
            heard[number] = len(by) if len(heard) == 1 else by.count(number)
        if others:
            self._hear_others(place, others, heard, games)
        return heard, games

    def _hear_others(self, place: Mapping[str, int], verdicts: Sequence[Verdict], heard: dict[int, int], games: _Games) -> None:
        """Puts down verdicts that show one, more than two, or both of two with ratings."""
        known, n = self.instruments, len(place)
        missing = [c for verdict in verdicts for c in verdict.shown if c not in place]
        if missing:
            raise KeyError(missing[0])
        shown_by = {(verdict.judge, verdict.shown) for verdict in verdicts}
        for verdict in verdicts:
            judge, shown, scores = verdict.judge, verdict.shown, verdict.scores or ()
            turned = len(shown) == 2 and (judge, shown[::-1]) in shown_by  # who rates both orders compares
            if len(shown) == 1 or (verdict.scale == "rating" and len(shown) == n and not turned):
                number = known.setdefault((judge, "ratings"), len(known))
                for c, score in zip(shown, scores, strict=True):
                    self._rated.extend((len(self.counts), place[c], number))
                    self._ratings.extend((score, verdict.weight))
                heard.setdefault(number, 0)
                continue
            number = known.setdefault((judge, "pairs" if len(shown) == 2 else "lists"), len(known))
            heard[number] = heard.get(number, 0) + len(shown) - 1
            for (one, x), (other, y) in combinations(zip(shown, scores, strict=True), 2):
                games.met.append(place[one] * n + place[other])
                games.by.append(number)
                games.won.append(_share(x, y, verdict.scale == "probability"))
                games.weight.append(2.0 * verdict.weight / len(shown))

    def blocks(self) -> Iterator[Block]:
        """The prompts by their numbers of candidates."""
        counts, met, by = np.array(self.counts), np.array(self._met), np.array(self._by)
        won, weight = np.array(self._won), np.array(self._weight)
        prompt = np.repeat(np.arange(len(counts)), np.array(self.games))
        rated_p, rated_i, rated_by = np.array(self._rated).reshape(-1, 3).T
        ratings = np.array(self._ratings).reshape(-1, 2)
        lists = np.array([form == "lists" for _, form in self.instruments], dtype=bool)
        row = np.empty_like(counts)
        for n in sorted(set(self.counts)):
            prompts = np.flatnonzero(counts == n).astype(np.int32)
            row[prompts] = np.arange(len(prompts))
            mine = np.flatnonzero(counts[prompt] == n)
            number = by[mine]
            sites = _sites(n, row[prompt[mine]], met[mine], number, lists[number], won[mine], weight[mine])
            mine = np.flatnonzero(counts[rated_p] == n)
            cells = row[rated_p[mine]] * n + rated_i[mine]
            rated = _rated(len(prompts), n, cells, rated_by[mine], ratings[mine])
            yield Block(prompts, n, *sites, tuple(rated), np.zeros(len(sites[0])), np.zeros(len(sites[0])))


class _Games(NamedTuple):
    """Of each game: the places n * one + other, the instrument, the share that one won, the weight."""

    met: list[int]
    by: list[int]
    won: list[float]
    weight: list[float]


def _share(x: float, y: float, probable: bool) -> float:
    """What the first one won."""
    if probable:
        return x / (x + y) if x + y > 0 else 0.5
    return 1.0 if x > y else 0.0 if x < y else 0.5


def _sites(
    n: int, row: Ints, met: NDArray[np.int64], number: Ints, free: NDArray[np.bool_], won: Floats, weight: Floats
) -> tuple[Ints, Ints, tuple[Layer, ...]]:
    """(one, other, layers) of a block: equal games merged into cells, the cells of a pair into a site."""
    if not len(met):
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), ()
    i, j = met // n, met % n
    turned = i > j
    order = np.where(free, 0, np.where(turned, -1, 1))
    kinds = 3 * (int(number.max()) + 1)
    pair = row.astype(np.int64) * (n * n) + np.where(turned, j * n + i, met)
    cells, where = np.unique(pair * kinds + 3 * number + order + 1, return_inverse=True)
    wins = sums(where, np.where(turned, 1.0 - won, won) * weight, len(cells))
    total = sums(where, weight, len(cells))
    scatter = sums(where, weight * won * (1.0 - won), len(cells))
    pairs, first, sizes = np.unique(cells // kinds, return_index=True, return_counts=True)
    most = np.argsort(-sizes, kind="stable")
    pairs, first, sizes = pairs[most], first[most], sizes[most]
    layers = []
    for depth in range(int(sizes[0])):
        at = first[sizes > depth] + depth
        kind = cells[at] % kinds
        layers.append(Layer((kind // 3).astype(np.int32), kind % 3 - 1.0, wins[at], total[at], scatter[at]))
    base = pairs // (n * n) * n
    return (base + pairs // n % n).astype(np.int32), (base + pairs % n).astype(np.int32), tuple(layers)


def sums(cells: NDArray[np.integer[Any]], shares: Floats, size: int) -> Floats:
    """The sum of the shares that fall into each of `size` cells."""
    return np.asarray(np.bincount(cells, shares, size), dtype=np.float64)


def _rated(rows: int, n: int, cells: Ints, number: Ints, said: Floats) -> Iterator[Rated]:
    """Each instrument's mean ratings; a candidate's weight is the mean weight of its ratings."""
    for instrument in np.unique(number).tolist():
        mine = number == instrument
        size = rows * n
        times = np.bincount(cells[mine], minlength=size)
        weight = sums(cells[mine], said[mine, 1], size)
        shares = said[mine, 1] / np.where(weight > 0.0, weight, 1.0)[cells[mine]]
        ratings = sums(cells[mine], said[mine, 0] * shares, size)
        yield Rated(instrument, ratings.reshape(rows, n), (weight / np.maximum(times, 1)).reshape(rows, n))


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


def scale_of(gaps: Floats) -> float:
    """The standard deviation of ratings with these gaps (absolute differences, none of them 0); 1 without any.

    It is that of normal ratings by the median gap, or by the root mean square gap where that is more: where ratings are mostly
    alike and now and then far apart, their common gaps say little, and taken for a standard deviation they make the far ones
    certain. A gap counts as 20 times the median at most, so that an outlier does not hide the others.
    """
    if not len(gaps):
        return 1.0
    middle = float(np.median(gaps))
    square = float(np.mean(np.square(np.minimum(gaps / middle, _FARTHEST))))
    return min(middle * max(1.0 / _MEDIAN_GAP, math.sqrt(square / 2.0)), 1e300)
