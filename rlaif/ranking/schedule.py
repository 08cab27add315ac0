"""Which candidates a judge is shown together, and in which order."""

from __future__ import annotations

import random
from itertools import permutations


def groups(count: int, arity: int | None, orders: int = 0, seed: int = 0) -> list[tuple[int, ...]]:
    """Index groups for a judge that is shown `arity` of `count` candidates at a time (None: all at once).

    With `orders` 0, arity 1: each alone; arity k: every choice of k in every order, so 2 means all pairs in both orders;
    sorted by the first shown: neighbours share the longest prefix.

    With `orders` n: n rounds, in each of which everyone is shown at least once. A round is a shuffle of all, cut into groups
    of `arity` that overlap by one, so that nobody is out of comparison; every second round shows the groups of the one
    before in reverse: each two that meet are shown in both orders.
    """
    if count < 1:
        return []
    if orders:
        return _rounds(count, min(arity or count, count), orders, random.Random(seed))
    if arity is None or (arity >= count and arity > 2):
        return [tuple(range(count))]
    return list(permutations(range(count), arity))


def _rounds(count: int, size: int, orders: int, shuffle: random.Random) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    cut: list[tuple[int, ...]] = []
    for number in range(orders):
        if number % 2:
            cut = [group[::-1] for group in cut]
        else:
            order = list(range(count))
            shuffle.shuffle(order)
            starts = [*range(0, max(1, count - size), max(1, size - 1)), count - size]
            cut = [tuple(order[start : start + size]) for start in dict.fromkeys(starts)]
        found.extend(cut)
    return found


def calls(count: int, arity: int | None, orders: int = 0) -> int:
    """How many groups there are: at most how many verdicts a judge is asked for. Fewer than two candidates need none."""
    return 0 if count < 2 else len(groups(count, arity, orders))
