"""Tokens from logits: greedy, or drawn with a row's own random numbers; constrained to options where a request says so.

A row draws one number a token from a generator of its own and takes the token where the cumulated probability passes it:
what it says does not depend on which rows stand beside it, but for the rounding of the network's own sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_AHEAD = 128


@dataclass(frozen=True, slots=True)
class Filters:
    """What is not drawn; as they stand, nothing. `repetition_penalty` is that of CTRL (Keskar et al. 2019)."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, tokens] at their temperature, with -inf for what is left out."""
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            probabilities = ordered.softmax(-1)
            out = probabilities.cumsum(-1) - probabilities >= self.top_p
            logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
        if self.min_p > 0.0:
            probabilities = logits.softmax(-1)
            logits = logits.masked_fill(probabilities < self.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
        return logits

    def penalise(self, logits: torch.Tensor, seen: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits with the tokens that each row has `seen` made less likely."""
        if self.repetition_penalty == 1.0:
            return logits
        logits = logits.clone()
        for row, ids in zip(logits, seen, strict=True):
            index = torch.as_tensor(sorted(set(ids)), device=row.device)
            there = row[index]
            row[index] = torch.where(there < 0, there * self.repetition_penalty, there / self.repetition_penalty)
        return logits


class Numbers:
    """Uniform random numbers of one row, from its seed: one for each place in its answer."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: list[float] = []

    def at(self, place: int) -> float:
        """The number for a place, from 0 to 1; the same whenever it is asked for."""
        while place >= len(self._drawn):
            self._drawn += torch.rand(_AHEAD, generator=self._generator, dtype=torch.float64).tolist()
        return self._drawn[place]


def draw(logits: torch.Tensor, temperatures: Sequence[float], numbers: Sequence[float], filters: Filters) -> list[int]:
    """A token for each row of `logits` [rows, tokens]; the most likely one where the temperature is 0."""
    best = logits.argmax(-1)
    if not any(temperatures):
        return best.tolist()  # type: ignore[no-any-return]
    heat = torch.tensor([t or 1.0 for t in temperatures], device=logits.device, dtype=logits.dtype)
    sums = filters.apply(logits / heat[:, None]).softmax(-1).cumsum(-1)
    total = sums[:, -1:]
    reached = torch.tensor(numbers, device=logits.device, dtype=sums.dtype)[:, None] * total
    reached = torch.minimum(reached, torch.nextafter(total, torch.zeros_like(total)))  # else 1 - 1e-9 rounds to the whole
    drawn = torch.searchsorted(sums, reached, right=True)[:, 0]
    greedy = torch.tensor([not t for t in temperatures], device=logits.device)
    return torch.where(greedy, best, drawn).tolist()  # type: ignore[no-any-return]


def only(logits: torch.Tensor, allowed: Sequence[int]) -> torch.Tensor:
    """One row's logits with -inf for all tokens that are not `allowed`."""
    kept = torch.full_like(logits, -torch.inf)
    index = torch.as_tensor(list(allowed), device=logits.device)
    kept[index] = logits[index]
    return kept


def next_of(options: Sequence[Sequence[int]], made: Sequence[int], stop: int | None) -> list[int]:
    """The tokens that may follow `made` if the whole has to be one of the `options`; `stop` where one is complete.

    Empty if nothing may follow: the option is complete, and no longer one begins with it.
    """
    length = len(made)
    begun = [option for option in options if list(option[:length]) == list(made)]
    following = {option[length] for option in begun if len(option) > length}
    if following and stop is not None and any(len(option) == length for option in begun):
        following.add(stop)
    return sorted(following)


def top(logits: torch.Tensor, count: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The `count` most likely tokens of one row with their log-probabilities, as chat completions list them."""
    found = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
    return [
        {"token": tokenizer.decode([token]), "logprob": value}
        for value, token in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        if value > -torch.inf
    ]
