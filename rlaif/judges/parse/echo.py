"""Telling a list of the options, as an instruction gives it, from a decision.

`[[A]] if answer A is better, [[B]] if answer B is better, [[C]] if they are equal` says every option once, in the order
of the declaration and close together. Two options make a list only where nothing but a word such as "or" is between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_FARTHEST = 100
_BETWEEN_TWO = re.compile(r"[\s\"'`*,.…]{0,9}(?:/|\||,|-|–|to|or|and|through|bis|oder|und|到|至|或|或者|和)?[\s\"'`*,.…]{0,9}")

Said = tuple[str, int, int]
"""(value, start, end)"""


def without_listings(
    said: Sequence[Said], text: str, listings: Sequence[tuple[str, ...]], key: Callable[[str], str]
) -> list[Said]:
    """What is said outside of listings of the options."""
    keys = [key(value) for value, _, _ in said]
    left: list[Said] = []
    at = 0
    while at < len(said):
        length = next((len(o) for o in listings if len(o) > 1 and _lists(said, keys, at, text, o)), 0)
        if not length:
            left.append(said[at])
        at += length or 1
    return left


def _lists(said: Sequence[Said], keys: Sequence[str], at: int, text: str, options: tuple[str, ...]) -> bool:
    if at + len(options) > len(said) or any(keys[at + k] != option for k, option in enumerate(options)):
        return False
    gaps = [(said[at + k][2], said[at + k + 1][1]) for k in range(len(options) - 1)]
    if any(end - start > _FARTHEST for start, end in gaps):
        return False
    return len(options) > 2 or bool(_BETWEEN_TWO.fullmatch(text, *gaps[0]))
