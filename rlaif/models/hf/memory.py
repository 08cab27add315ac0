"""Batches that fit: cut to a size, halved when memory runs out, and the size that worked is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rlaif.models.hf.network import out_of_memory, release

T = TypeVar("T")
R = TypeVar("R")


class Fit:
    """How large a batch may be, in `tokens`: rows times the longest of them, padding counted."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run(
        self, items: Sequence[T], length: Callable[[T], int], act: Callable[[list[T]], R]
    ) -> Iterator[tuple[list[T], R | None]]:
        """(a batch, what `act` makes of it) for all items, like lengths together; None for one that does not fit alone."""
        waiting = [sorted(items, key=length)]
        while waiting:
            batch = waiting.pop()
            size = rows_within(self.tokens, [length(item) for item in batch])
            if size < len(batch):
                waiting.append(batch[:-size])
                batch = batch[-size:]
            fitted, result = attempt(lambda batch=batch: act(batch))  # type: ignore[misc]
            if fitted:
                yield batch, result
            elif len(batch) == 1:
                yield batch, None
            else:
                self.tokens = max(1, len(batch) * length(batch[-1]) // 2)
                half = len(batch) // 2
                waiting += [batch[:half], batch[half:]]


def rows_within(tokens: int, lengths: Sequence[int]) -> int:
    """How many rows, from the longest at the end of the ordered `lengths`, are within so many tokens; at least one."""
    return max(1, min(len(lengths), tokens // max(1, lengths[-1])))


def attempt(act: Callable[[], R]) -> tuple[bool, R | None]:
    """(True, what `act` returns), or (False, None) if memory ran out; what it had allocated is free again then."""
    try:
        return True, act()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    release()  # here, where the error and the frames that it holds are gone
    return False, None
