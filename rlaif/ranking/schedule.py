"""Which candidates a judge is shown together, in which order, and after which verdicts.

What a schedule (`rlaif.types.Schedule`) yields depends on the candidates, the seed and what it was sent, on nothing else. With
`most` (2 or more), it asks for no more model calls than that, as far as what the ones before took tells.

    Every        all groups of a size in all orders, or some seeded orders of all; under `most` a part of them
    RandomPair   one pair, drawn at random
    Elimination  single elimination: who wins a duel goes on, until one is left
    Swiss        each round pairs those who stand next to each other and have not met
    Adaptive     in `rlaif.ranking.adaptive`

Duels, as all but `Every` may ask for, are two verdicts: a pair in both orders.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from rlaif.ranking import posterior
from rlaif.types import Group, Rounds, Said, Verdict


@dataclass(frozen=True, slots=True)
class Every:
    """Every choice of `arity` candidates (None: all at once) in every order; with `orders`, so many rounds that show everyone.

    With `arity` 1, each alone; with 2, all pairs in both orders, sorted by the first shown, as neighbours then share a prefix;
    under `most` whole duels instead, so that a part leaves nobody out.
    """

    arity: int | None
    orders: int = 0
    most: int | None = None

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """See `Schedule`."""
        yield from in_turn(self.groups(len(ids), seed), Purse(self.most))

    def calls(self, count: int) -> Counter[int]:
        """See `Schedule`."""
        return Counter(map(len, self.groups(count, 0))) if count > 1 else Counter()

    def groups(self, count: int, seed: int) -> list[Group]:
        """All that is to be asked about, in this order if it has to be cut."""
        if self.orders:
            return _circuits(count, min(self.arity or count, count), self.orders, random.Random(seed))[: self.most]
        if self.arity is None or (self.arity >= count and self.arity > 2):
            return [tuple(range(count))]
        if self.most is not None and (self.arity == 2 or self.most < math.perm(count, self.arity)):
            return self._some(count, random.Random(seed), self.most)
        return list(permutations(range(count), self.arity))

    def _some(self, count: int, draw: random.Random, most: int) -> list[Group]:
        """A seeded part: of pairs, duels round a circle, first of neighbours, so that everyone is compared soon."""
        if self.arity not in (1, 2):
            return list(dict.fromkeys(_circuits(count, self.arity or count, most, draw)))[:most]
        places = list(range(count))
        draw.shuffle(places)
        if self.arity == 1:
            return sorted((place,) for place in places[:most])
        circle = [(places[k], places[(k + step) % count]) for step in range(1, count // 2 + 1) for k in range(count)]
        return both_orders(list(dict.fromkeys((min(pair), max(pair)) for pair in circle))[: most // 2])


def _circuits(count: int, size: int, orders: int, draw: random.Random) -> list[Group]:
    """`orders` rounds: a shuffle of all, cut into groups of `size` that overlap by one, so that nobody is out of comparison.

    Every second round shows the groups of the one before in reverse: each two that meet are shown in both orders.
    """
    found: list[Group] = []
    cut: list[Group] = []
    for number in range(orders):
        if number % 2:
            cut = [group[::-1] for group in cut]
        else:
            order = list(range(count))
            draw.shuffle(order)
            starts = [*range(0, max(1, count - size), max(1, size - 1)), count - size]
            cut = [tuple(order[start : start + size]) for start in dict.fromkeys(starts)]
        found.extend(cut)
    return found


@dataclass(frozen=True, slots=True)
class RandomPair:
    """One duel of two candidates drawn by the seed."""

    most: int | None = None

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """See `Schedule`."""
        one, other = random.Random(seed).sample(range(len(ids)), 2)
        yield from in_turn(both_orders([(one, other)]), Purse(self.most))

    def calls(self, count: int) -> Counter[int]:
        """See `Schedule`."""
        return Counter({2: 2} if count > 1 else {})


@dataclass(frozen=True, slots=True)
class Elimination:
    """Duels of a seeded draw; who wins goes on, the earlier drawn of a tie, until one is left: count - 1 duels."""

    most: int | None = None

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """See `Schedule`."""
        left = list(range(len(ids)))
        random.Random(seed).shuffle(left)
        purse = Purse(self.most)
        while len(left) > 1:
            pairs = list(zip(left[::2], left[1::2], strict=False))
            said = yield from in_turn(both_orders(pairs), purse)
            won = [pair[0] if _won(ids, pair, two) >= 0.0 else pair[1] for pair, two in zip(pairs, _twos(said), strict=False)]
            if not won:
                return
            left = won + left[2 * len(won) :]

    def calls(self, count: int) -> Counter[int]:
        """See `Schedule`."""
        return _duels(count - 1, self.most)


@dataclass(frozen=True, slots=True)
class Swiss:
    """ceil(log2 count) rounds of duels: of a seeded draw, then of those next to each other by the posterior mean so far."""

    most: int | None = None

    def rounds(self, ids: Sequence[str], seed: int) -> Rounds:
        """See `Schedule`."""
        order = list(range(len(ids)))
        random.Random(seed).shuffle(order)
        purse, met = Purse(self.most), set[frozenset[int]]()
        verdicts: list[Verdict] = []
        for number in range(math.ceil(math.log2(len(ids)))):
            if number:
                means, _ = posterior.of_one(ids, verdicts)
                order.sort(key=lambda place: -means[place])
            pairs = _neighbours(order, met)
            said = yield from in_turn(both_orders(pairs), purse)
            if not said:
                return
            met.update(map(frozenset, pairs))
            verdicts += filter(None, said)

    def calls(self, count: int) -> Counter[int]:
        """See `Schedule`."""
        return _duels((count // 2) * math.ceil(math.log2(max(count, 2))), self.most) if count > 1 else Counter()


def _neighbours(order: Sequence[int], met: set[frozenset[int]]) -> list[tuple[int, int]]:
    """Pairs from the top down, each with the next one it has not met."""
    left, found = list(order), []
    while left:
        one = left.pop(0)
        other = next((place for place in left if frozenset((one, place)) not in met), None)
        if other is not None:
            left.remove(other)
            found.append((one, other))
    return found


class Purse:
    """How many more calls a prompt may take, `left`; None: any number."""

    def __init__(self, most: int | None) -> None:
        self.left = most
        self._prices: dict[int, int] = {}

    def knows(self, shown: int) -> bool:
        """Whether it was seen what one of so many candidates takes, or a rating."""
        return shown in self._prices or 1 in self._prices

    def pay(self, said: Said) -> None:
        """Takes off what these, all of one size, took. A rating that was not to be had (None) is reckoned as one call.

        It may have been none, where it is known by then that the model refuses: what is asked must not depend on when.
        """
        took = [1 if v is None else v.calls for v in said]
        if self.left is not None:
            self.left = max(0, self.left - sum(took))
        self._prices[next((len(v.shown) for v in said if v is not None), 1)] = max(took)

    def asks(self, shown: int) -> int:
        """How many more groups of so many candidates may be asked about.

        One is reckoned to take as many calls as the dearest of its size that was paid for last; before the first of a size, as
        a rating; before that two, for a bare option and a text.
        """
        if self.left is None:
            return 2**31
        return self.left // self._prices.get(shown, self._prices.get(1, 2))

    def duels(self) -> int:
        """How many more pairs may be asked about in both orders."""
        return self.asks(2) // 2


def in_turn(groups: Sequence[Group], purse: Purse) -> Generator[list[Group], Said, Said]:
    """Asks about the groups in this order, as far as the calls go; returns what was said of as many.

    The first one by itself, unless ratings came before: it brings the prefix of the others into the endpoint's cache, and shows
    what they take. A judge that is asked for a bare option and does not give it is then asked for texts: were two the first
    at once, it would depend on the ledger which of them is asked for what.
    """
    said: list[Verdict | None] = []
    while len(said) < len(groups):
        shown = len(groups[0])
        count = purse.asks(shown) if purse.knows(shown) else 1
        if shown == 2 and purse.knows(shown):  # no half of a duel
            count -= (len(said) + count) % 2
        if count <= 0:
            break
        found = yield list(groups[len(said) : len(said) + count])
        purse.pay(found)
        said += found
    return said


def both_orders(pairs: Iterable[tuple[int, int]]) -> list[Group]:
    """Each pair as it is, then the other way round."""
    return [shown for one, other in pairs for shown in ((one, other), (other, one))]


def _duels(count: int, most: int | None) -> Counter[int]:
    """The calls of so many duels."""
    asked = 2 * max(0, min(count, count if most is None else most // 2))
    return Counter({2: asked} if asked else {})


def _twos(said: Said) -> Iterator[Said]:
    return (said[place : place + 2] for place in range(0, len(said), 2))


def _won(ids: Sequence[str], pair: tuple[int, int], said: Said) -> float:
    """By how much the first of the pair won over both orders; 0 for a tie, or if nothing could be read."""
    lead = 0.0
    for verdict in said:
        if verdict is not None and verdict.scores is not None:
            scores = dict(zip(verdict.shown, verdict.scores, strict=True))
            apart = scores[ids[pair[0]]] - scores[ids[pair[1]]]
            lead += apart if verdict.scale == "probability" else math.copysign(1.0, apart) if apart else 0.0
    return lead
