"""Verdicts as games of two candidates and as ratings, in arrays: what the fit reads of the verdicts.

An instrument is a judge and the form in which it spoke, for a judge that does several things is good at each in its own way:

    pairs     two were shown: a game. A probability p is p of a win and 1 - p of a loss, a tie is half of each
    lists     k > 2 were shown and their order counts: a game of every two of them, each of weight 2 / k, since a ranking of k
              is k - 1 choices (Plackett and Luce) and not the k (k - 1) / 2 independent draws that its games would be
    ratings   each candidate was rated alone, or all of the prompt's at once on the scale "rating"

Ratings of only some of a prompt's candidates, shown together, count by their order. A verdict of weight w counts w times.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.types import Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Form = Literal["pairs", "lists", "ratings"]
Instrument = tuple[str, Form]
Ranked = tuple[Sequence[str], Sequence[Verdict]]
"""The ids of a prompt's candidates that are ranked, and the verdicts on the prompt."""

MEDIAN_GAP = 0.9538725524089  # of two standard normals: sqrt(2) times the upper quartile of one


@dataclass(frozen=True, slots=True)
class Layer:
    """At most one cell of each site: the games of a pair by one instrument in one order.

    `order` is 1 where the site's `one` was shown first, -1 where `other` was, 0 where order plays no part; of games with the
    summed weight `total`, `one` won `wins`.
    """

    instrument: Ints
    order: Floats
    wins: Floats
    total: Floats


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
        self.size = 0
        self.instruments, self._repeated = instruments, repeated
        self._games, self._won, self._weight = array("i"), array("d"), array("d")
        self._rated, self._ratings = array("i"), array("d")

    def add(self, ids: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Takes in a prompt's verdicts on `ids`."""
        place = {c: k for k, c in enumerate(ids)}
        prompt, before, known = len(self.counts), len(self._won), self.instruments
        heard: dict[int, int] = {}
        games, won, weights = self._games, self._won, self._weight
        judge, pairs = None, -1
        for verdict in within(ids, verdicts):
            scores, shown = verdict.scores, verdict.shown
            if scores is None:
                continue
            if len(shown) != 2 or (verdict.scale == "rating" and _at_once(verdict, ids, verdicts)):
                number, choices = self._add_other(prompt, place, verdict)
                heard[number] = heard.get(number, 0) + choices
                continue
            if verdict.judge != judge:
                judge = verdict.judge
                pairs = known.setdefault((judge, "pairs"), len(known))
            x, y = scores
            games.extend((prompt, place[shown[0]], place[shown[1]], pairs))
            won.append(_share(x, y, verdict.scale == "probability"))
            weights.append(verdict.weight)
            heard[pairs] = heard.get(pairs, 0) + 1
        self._repeated.update(heard if len(heard) > 1 else (k for k, choices in heard.items() if choices >= len(ids)))
        self.counts.append(len(ids))
        self.size += len(ids) ** 2 + len(won) - before

    def _add_other(self, prompt: int, place: Mapping[str, int], verdict: Verdict) -> tuple[int, int]:
        """Puts down a verdict that shows one or more than two: (the instrument's number, how many choices it made)."""
        shown, scores, known = verdict.shown, verdict.scores or (), self.instruments
        if len(shown) == 1 or (verdict.scale == "rating" and len(shown) == len(place)):
            number = known.setdefault((verdict.judge, "ratings"), len(known))
            for c, score in zip(shown, scores, strict=True):
                self._rated.extend((prompt, place[c], number))
                self._ratings.extend((score, verdict.weight))
            return number, 0
        number = known.setdefault((verdict.judge, "lists"), len(known))
        for (one, x), (other, y) in combinations(zip(shown, scores, strict=True), 2):
            self._games.extend((prompt, place[one], place[other], number))
            self._won.append(_share(x, y, verdict.scale == "probability"))
            self._weight.append(2.0 * verdict.weight / len(shown))
        return number, len(shown) - 1

    def blocks(self) -> Iterator[Block]:
        """The prompts by their numbers of candidates."""
        counts, won, weight = np.array(self.counts), np.array(self._won), np.array(self._weight)
        p, i, j, number = np.array(self._games).reshape(-1, 4).T
        rated_p, rated_i, rated_by = np.array(self._rated).reshape(-1, 3).T
        ratings = np.array(self._ratings).reshape(-1, 2)
        lists = np.array([form == "lists" for _, form in self.instruments], dtype=bool)
        row = np.empty_like(counts)
        for n in sorted(set(self.counts)):
            prompts = np.flatnonzero(counts == n).astype(np.int32)
            row[prompts] = np.arange(len(prompts))
            mine = counts[p] == n
            games = row[p[mine]], i[mine], j[mine], number[mine]
            sites = _sites(n, *games, lists[games[3]], won[mine], weight[mine])
            mine = counts[rated_p] == n
            cells = row[rated_p[mine]] * n + rated_i[mine]
            rated = _rated(len(prompts), n, cells, rated_by[mine], ratings[mine])
            yield Block(prompts, n, *sites, tuple(rated), np.zeros(len(sites[0])), np.zeros(len(sites[0])))


def _at_once(verdict: Verdict, ids: Sequence[str], verdicts: Sequence[Verdict]) -> bool:
    """Whether a judge that rated two rated all that there are, once: in both orders it compares."""
    if len(ids) != 2:
        return False
    turned = verdict.shown[::-1]
    return not any(v.judge == verdict.judge and v.shown == turned for v in verdicts)


def _share(x: float, y: float, probable: bool) -> float:
    """What the first one won."""
    if probable:
        return x / (x + y) if x + y > 0 else 0.5
    return 1.0 if x > y else 0.0 if x < y else 0.5


def _sites(
    n: int, row: Ints, i: Ints, j: Ints, number: Ints, free: NDArray[np.bool_], won: Floats, weight: Floats
) -> tuple[Ints, Ints, tuple[Layer, ...]]:
    """(one, other, layers) of a block: equal games merged into cells, the cells of a pair into a site."""
    turned = i > j
    one, other = np.where(turned, j, i), np.where(turned, i, j)
    order = np.where(free, 0, np.where(turned, -1, 1))
    kinds = 3 * (int(number.max(initial=0)) + 1)
    pair = (row.astype(np.int64) * n + one) * n + other
    cells, where = np.unique(pair * kinds + 3 * number + order + 1, return_inverse=True)
    wins = sums(where, np.where(turned, 1.0 - won, won) * weight, len(cells))
    total = sums(where, weight, len(cells))
    pairs, first, sizes = np.unique(cells // kinds, return_index=True, return_counts=True)
    most = np.argsort(-sizes, kind="stable")
    pairs, first, sizes = pairs[most], first[most], sizes[most]
    layers = []
    for depth in range(int(sizes.max(initial=0))):
        at = first[sizes > depth] + depth
        kind = cells[at] % kinds
        layers.append(Layer((kind // 3).astype(np.int32), kind % 3 - 1.0, wins[at], total[at]))
    base = pairs // (n * n) * n if n else pairs
    return (
        (base + pairs // max(n, 1) % max(n, 1)).astype(np.int32),
        (base + pairs % max(n, 1)).astype(np.int32),
        tuple(layers),
    )


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
