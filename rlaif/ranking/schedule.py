"""Which candidates a judge is shown together, and in which order."""

from __future__ import annotations

from itertools import permutations


def groups(count: int, arity: int | None) -> list[tuple[int, ...]]:
    """Index groups for a judge that is shown `arity` of `count` candidates at a time (None: all at once).

    Arity 1: each alone. Arity k: every choice of k in every order, so 2 means all pairs in both orders. The groups are
    sorted by the first shown: neighbours share the longest prefix.
    """
    if count < 1:
        return []
    if arity is None or (arity >= count and arity > 2):
        return [tuple(range(count))]
    return list(permutations(range(count), arity))


def calls(count: int, arity: int | None) -> int:
    """How many groups there are: at most how many verdicts a judge is asked for. Fewer than two candidates need none."""
    return 0 if count < 2 else len(groups(count, arity))
