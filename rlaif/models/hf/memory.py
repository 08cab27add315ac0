"""Batches that fit: cut to a size, halved when memory runs out, and the size that worked is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rlaif.models.hf.network import out_of_memory, release

T = TypeVar("T")
R = TypeVar("R")

_USED = 0.9


class Fit:
    """How large a batch may be, in `tokens`: rows times the longest of them, padding counted.

    A batch of more than `enough` tokens, which is as fast a token as a larger one, ends where padding would be a tenth of it.
    """

    def __init__(self, tokens: int, *, enough: int) -> None:
        self.tokens, self.enough = tokens, enough

    def run(
        self,
        items: Sequence[T],
        length: Callable[[T], int],
        act: Callable[[list[T]], R],
        *,
        read: Callable[[T], int] | None = None,
    ) -> Iterator[tuple[list[T], R | None]]:
        """(a batch, what `act` makes of it) for all items, like lengths together; None for one that does not fit alone.

        `read` is how much of an item's `length` is worked on, where that is less.
        """
        work = read or length
        waiting = [sorted(items, key=work)]
        while waiting:
            batch = waiting.pop()
            size = self._rows([work(item) for item in batch], [length(item) for item in batch])
            if size < len(batch):
                waiting.append(batch[:-size])
                batch = batch[-size:]
            fitted, result = attempt(lambda batch=batch: act(batch))  # type: ignore[misc]
            if fitted:
                yield batch, result
            elif len(batch) == 1:
                yield batch, None
            else:
                self.tokens = max(1, len(batch) * max(map(length, batch)) // 2)
                half = len(batch) // 2
                waiting += [batch[:half], batch[half:]]

    def _rows(self, works: Sequence[int], lengths: Sequence[int]) -> int:
        """How many rows, from the end of the ordered `works`, make a batch; at least one."""
        rows, used, longest, widest = 0, 0, 0, works[-1]
        for work, length in zip(reversed(works), reversed(lengths), strict=True):
            longest, padded = max(longest, length), widest * (rows + 1)
            if rows and (longest * (rows + 1) > self.tokens or (padded > self.enough and used + work < _USED * padded)):
                break
            rows, used = rows + 1, used + work
        return rows


def attempt(act: Callable[[], R]) -> tuple[bool, R | None]:
    """(True, what `act` returns), or (False, None) if memory ran out; what it had allocated is free again then."""
    try:
        return True, act()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    release()  # here, where the error and the frames that it holds are gone
    return False, None
