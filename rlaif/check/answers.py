"""Answers that hardly were meant to be taught: refusals without a reason, loops, echoes, and such as break off.

Degenerate answers are told by the rules of `rlaif.degenerate`. That an answer was cut is told by a column that says so, or by
its last line: an open code block, or prose without an end in an answer whose other sentences have one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlaif.check.formats import Example, Said
from rlaif.degenerate import kind_of_text
from rlaif.types import Prompt

LEAST = 200
"""A shorter answer was hardly cut at a limit of tokens."""
LEAST_SENTENCES = 3
"""An answer with so many finished sentences is prose that ends its sentences."""
LEAST_LINE = 60
"""A shorter last line may be a name below a letter, a label, a line of a poem."""

_SENTENCE = re.compile(r"[.!?][\"'”’)\]]*\s")
_LISTED = re.compile(r"\s*(?:[-*•+|>#]|\d+[.)]|[A-Za-z][.)]\s)")
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_OPEN_ENDS = (",", "-", "(", "–")
_SAYS_CUT = ("{}_finish_reason", "{}_finish", "finish_reason_{}", "finish_{}", "{}_truncated", "truncated_{}")
_PLAIN_SAYS_CUT = ("finish_reason", "finish", "truncated")
_CUT = ("length", "max_tokens", "MAX_TOKENS", True)


def fault(example: Example, name: str, text: str) -> tuple[str, str] | None:
    """(code, detail) of the first thing that is wrong with an answer: truncated, refusal or degenerate; None for none."""
    if breaks_off(example.row, name, text):
        return "truncated", "…" + text[-80:]
    kind = kind_of_text(_prompt(example.prompt), text)
    if kind is None or kind in ("empty", "truncated"):
        return None
    return ("refusal" if kind == "refusal" else "degenerate"), f"{kind}: {text[:40] if kind != 'tail' else text[-60:]}"


def breaks_off(row: Mapping[str, Any], name: str, text: str) -> bool:
    """Whether a column says that the answer was cut, or its own end does."""
    columns = [form.format(name) for form in _SAYS_CUT]
    if name not in ("chosen", "rejected"):
        columns += _PLAIN_SAYS_CUT
    for column in columns:
        if column in row and row[column] is not None:
            return row[column] in _CUT
    return looks_cut(text)


def looks_cut(text: str) -> bool:
    """Whether the words themselves show that they were cut, by the constants."""
    if len(text) < LEAST:
        return False
    if "```" in text and len(_FENCE.findall(text)) % 2:
        return True
    text = text.rstrip()
    last = text[-1:]
    if not (last.isalpha() or last in _OPEN_ENDS) or not last.isascii():
        return False
    line = text[text.rfind("\n") + 1 :]
    if len(line) < LEAST_LINE or _LISTED.match(line) or "http" in line[-60:] or "#" in line:
        return False
    return len(_SENTENCE.findall(text)) >= LEAST_SENTENCES


def _prompt(said: Said | None) -> Prompt:
    if not said:
        return Prompt("", ({"role": "user", "content": ""},))
    return Prompt("", ({"role": "user", "content": said},) if isinstance(said, str) else tuple(said))
