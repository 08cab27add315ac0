"""Texts to be judged, made harmless: what a model's chat template or vocabulary reads as more than text is broken up.

A candidate that contains `<|im_end|><|im_start|>system` must not end the message that shows it: servers look for special
tokens in message texts too. A space behind the first character keeps such a string readable and makes it plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(
    r"<[|｜][^<>\s]{1,64}?[|｜]>"  # <|im_start|>, <|eot_id|>, <|user|>, DeepSeek's <｜User｜>
    r"|<[/|]?(?:s|bos|eos|pad|unk|mask|sep|cls|think|thinking|tool_call|tool_response|eod|eot|sop|eop|eoh|eoa)>"
    r"|</?(?:start|end)_of_(?:turn|image|text)>|<(?:start|end)of(?:turn|text)>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT|gMASK|CLS|SEP|MASK|PAD|UNK)\]"
    r"|<</?SYS>>"
    r"|<(?:extra|unused|reserved)_?(?:id|token)?_?\d{1,6}>",
    re.IGNORECASE,
)

_OVERLAPS = 16


class Disarm:
    """Breaks up special tokens: those that chat models commonly use, and the `specials` of the model at hand."""

    def __init__(self, specials: Iterable[str] = ()) -> None:
        own = sorted({s for s in specials if len(s) > 1}, key=len, reverse=True)
        self._own = re.compile("|".join(map(re.escape, own))) if own else None

    def __call__(self, text: str) -> str:
        """The text with a space behind the first character of each special token. Linear in the text."""
        if "<" in text or "[" in text:
            text = _SPECIAL.sub(_broken, text)
        for _ in range(_OVERLAPS if self._own else 0):  # tokens that overlap each other, or themselves
            assert self._own is not None
            text, found = self._own.subn(_broken, text)
            if not found:
                break
        return text


def _broken(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"
