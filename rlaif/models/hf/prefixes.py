"""Which prefixes several token sequences share, and those whose keys and values are held in memory for the next.

Judge calls are built so that the constitution, the prompt and the answer shown first stand at the beginning: the calls of
a prompt are a tree of prefixes, and each of its branches is read once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
State = list[tuple[Any, Any]]
"""Keys and values of one sequence, a pair of tensors [heads, tokens, size] for each layer."""

LEAST_SHARED = 24
"""Fewer tokens are not worth a forward pass of their own."""


def tokens_of(ids: Sequence[int]) -> Tokens:
    """Token ids as an array."""
    return np.asarray(ids, dtype=np.int32)


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens the two begin with alike."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


def shared(sequences: Sequence[Tokens], known: Sequence[int], least: int = LEAST_SHARED) -> list[list[Tokens]]:
    """The prefixes that are worth reading once because several of the sequences begin with them, shortest first.

    `known` says how many tokens of each sequence are held already. The prefixes of one level do not need each other, those of
    the next level begin with one of them. None is a whole sequence: its last token is read for its own sake.
    """
    levels: list[list[Tokens]] = []
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())

    def visit(group: list[int], held: int, depth: int) -> None:
        if len(group) < 2:
            return
        first = sequences[group[0]]
        length = min(common(first, sequences[group[-1]]), min(len(sequences[i]) for i in group) - 1)
        held = max(held, max(min(known[i], length) for i in group))
        if length - held >= least:
            if depth == len(levels):
                levels.append([])
            levels[depth].append(first[:length])
            held, depth = length, depth + 1
        branches = [list(branch) for _, branch in groupby(group, key=lambda i: int(sequences[i][length]))]
        if len(branches) > 1:
            for branch in branches:
                visit(branch, held, depth)

    visit(order, 0, 0)
    return levels


class Held:
    """States of sequences that were read lately, at most `limit_bytes` of them; the one used longest ago goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._entries: OrderedDict[bytes, tuple[Tokens, State, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, tokens: Tokens) -> tuple[State | None, int]:
        """(the state that shares the longest prefix with `tokens`, how many tokens of it hold)."""
        best, state, length = b"", None, 0
        for key, (known, held, _) in self._entries.items():
            alike = common(known, tokens)
            if alike > length:
                best, state, length = key, held, alike
        if best:
            self._entries.move_to_end(best)
        return state, length

    def put(self, tokens: Tokens, state: State) -> None:
        """Drops others where there is no room, and holds a copy of a state. Out of memory over the copy, it holds the rest."""
        size = sum(part.numel() * part.element_size() for layer in state for part in layer)
        key = tokens.tobytes()
        if size > self.limit_bytes or key in self._entries:
            return
        while self.bytes + size > self.limit_bytes:
            _, (_, _, gone) = self._entries.popitem(last=False)
            self.bytes -= gone
        self._entries[key] = tokens, [(keys.clone(), values.clone()) for keys, values in state], size
        self.bytes += size

    def clear(self) -> None:
        """Drops all."""
        self._entries.clear()
        self.bytes = 0
