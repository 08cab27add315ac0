"""Making a text harmless: a space is put into each match of a pattern, so that nothing in it can be read as a verdict.

Where no space helps (a pattern of a single letter), the letters and digits of the verdict become full-width ones, which ASCII
patterns do not know. Each pass takes time linear in the text; a match can make room for another one, so there are a few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_PASSES = 8
_CONTEXT = 64
_WIDE = {code: code + 0xFEE0 for code in range(0x30, 0x7B) if chr(code).isalnum()}


def disarm(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """The text without a match of any pattern, changed as little as that takes; itself where nothing matches."""
    for _ in range(_PASSES):
        before = text
        for pattern in patterns:
            text = _pass(text, pattern)
        if text == before:
            break
    return text


def _pass(text: str, pattern: re.Pattern[str]) -> str:
    done: list[str] = []
    tail, last = "", 0
    for match in pattern.finditer(text):
        start, end = match.span()
        between = text[last:start]
        tail = (tail + between[-_CONTEXT:])[-_CONTEXT:]
        harmless = _harmless(pattern, match, tail, text[end : end + _CONTEXT])
        done += (between, harmless)
        tail = (tail + harmless[-_CONTEXT:])[-_CONTEXT:]
        last = end
    done.append(text[last:])
    return "".join(done)


def _harmless(pattern: re.Pattern[str], match: re.Match[str], before: str, after: str) -> str:
    """The match with a space in the first place that helps, else in full-width letters."""
    said = match[0]
    for place in _places(match):
        spaced = f"{said[:place]} {said[place:]}"
        if not _matches_in(pattern, before, spaced, after, len(before) + place):
            return spaced
    return said.translate(_WIDE) if not said.isspace() else said


def _places(match: re.Match[str]) -> Iterator[int]:
    """Where a space may go into the match: behind its first letter or sign, then about its group, then before its end."""
    said = match[0]
    inner = match.start(match.lastindex or 0) - match.start() if match.start(match.lastindex or 0) >= 0 else 0
    tried = set()
    for place in (len(said) - len(said.lstrip()) + 1, inner + 1, inner, len(said) - 1):
        if 0 < place < len(said) and place not in tried:
            tried.add(place)
            yield place


def _matches_in(pattern: re.Pattern[str], before: str, middle: str, after: str, space: int) -> bool:
    """Whether a match touches the middle. One that reaches over its end and not over the space is left to the next pass."""
    start, end = len(before), len(before) + len(middle)
    for match in pattern.finditer(before + middle + after):
        if match.start() >= end:
            return False
        another = (match.start() < start and match.end() <= space) or (match.start() > space and match.end() > end)
        if start < match.end() > match.start() and not another:
            return True
    return False
