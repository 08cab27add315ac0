"""Reading prompts: the logits after each of many token sequences, what they share read once and held for the next.

The result is the one of a plain forward pass of each sequence, but for rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rlaif.models.hf.memory import Fit, attempt
from rlaif.models.hf.network import Network
from rlaif.models.hf.prefixes import Held, State, Tokens, shared

_CPU_TOKENS, _GPU_TOKENS = 8192, 32768
_CPU_ENOUGH, _GPU_ENOUGH = 256, 4096
_HELD_SHARE, _MOST_HELD = 0.25, 4 * 2**30
_MOSTLY = 0.8


@dataclass(frozen=True, slots=True)
class Read:
    """What came of reading the sequence at `place`: the logits [vocabulary] after it and its state, a view."""

    place: int
    logits: torch.Tensor
    state: State


class Reader:
    """Reads with one network; `reuse=False` reads every sequence from its beginning."""

    def __init__(self, network: Network, *, reuse: bool = True) -> None:
        self._network, self._reuse = network, reuse
        limit = min(_MOST_HELD, int(network.room_tokens * network.token_bytes * _HELD_SHARE)) if reuse else 0
        self.held = Held(limit)
        gpu = network.device.type == "cuda"
        self.fit = Fit(_GPU_TOKENS if gpu else _CPU_TOKENS, enough=_GPU_ENOUGH if gpu else _CPU_ENOUGH)

    def read(self, sequences: Sequence[Tokens], marks: Sequence[str]) -> Iterator[Read | int]:
        """Each sequence's `Read`, in no fixed order, or its place alone if it does not fit into memory.

        Sequences with a mark are followed by others that begin alike: one that comes alone is held for them.
        """
        if self._reuse:
            known = [self.held.longest(tokens)[1] for tokens in sequences]
            for level in shared(sequences, known):
                for batch, result in self.fit.run(level, len, self._extend):
                    for tokens, (_, state) in zip(batch, result or (), strict=result is not None):
                        self._hold(tokens, state)
        times = Counter(marks)
        known = [self.held.longest(tokens)[1] for tokens in sequences]
        alone = [
            times[mark] == 1 and mark != "" and held < _MOSTLY * len(tokens)
            for mark, tokens, held in zip(marks, sequences, known, strict=True)
        ]

        def act(places: list[int]) -> list[tuple[torch.Tensor, State]]:
            return self._extend([sequences[place] for place in places])

        def length(place: int) -> int:
            return len(sequences[place])

        for places, result in self.fit.run(range(len(sequences)), length, act, read=lambda p: length(p) - known[p]):
            if result is None:
                yield from places
                continue
            for place, (logits, state) in zip(places, result, strict=True):
                if alone[place]:
                    self._hold(sequences[place], state)
                yield Read(place, logits, state)

    def _hold(self, tokens: Tokens, state: State) -> None:
        """Holds a state for later, if there is memory for it: without it, its tokens are read again."""
        attempt(lambda: self.held.put(tokens, state))

    def _extend(self, batch: Sequence[Tokens]) -> list[tuple[torch.Tensor, State]]:
        held = [self.held.longest(tokens) for tokens in batch]
        held = [(state, min(length, len(tokens) - 1)) for (state, length), tokens in zip(held, batch, strict=True)]
        logits, slots = self._network.extend(batch, held)
        columns = slots.length
        return [(logits[row], slots.state(row, columns - len(tokens))) for row, tokens in enumerate(batch)]
