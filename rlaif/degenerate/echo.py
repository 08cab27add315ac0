"""Echoes: an answer that is nearly only the prompt again. A prompt that asks for its own text back has none."""

from __future__ import annotations

import re
from itertools import pairwise

LEAST_CHARACTERS, LEAST_WIDE = 24, 10
"""A shorter prompt (of a script without spaces: LEAST_WIDE) can be answered in its own words: "Good morning!"."""
SIZE = 0.2
"""The lengths differ by at most this share of the prompt: an answer that adds more than that says something of its own."""
MORE_CHARACTERS, MORE_WORDS = 12, 2
"""What may come to the whole of a short prompt: "Answer:", a bracket, a name."""
SAME = 0.9
"""The least share of the pairs of neighbouring words that the two have in common: marks and a word may change."""

_PROBE = 8
_COMPARED = 20_000

_GIVES_TEXT_BACK = re.compile(
    r"\brepeat|\btranslat|\bedit|\bquot|\bcop(?:y|ies)\b|\bcorrect|\bproofread|\bre-?(?:write|phrase|word|format|state|order)"
    r"|\bparaphras|\bfix|\bformat|\bconvert|\bcontinu|\bcomplete (?:the|this)|\bfill in|\badd\b|\bremove|\breplac|\bcapitali"
    r"|\b(?:upper|lower) ?case|\bpunctuat|\bgramma|\bspell|\becho|\bverbatim|\bimprov|\bchange\b|\bmodif|\btranscri|\binsert"
    r"|重复|翻译|翻譯|改写|改成|润色|纠正|修改|复述|引用|抄写|续写|填空|整理|提取",
    re.IGNORECASE,
)
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W_]+")
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def echoes(asked: str, text: str) -> bool:
    """Whether `text` is nearly only what was `asked`, by the constants, and was not asked for."""
    size = len(asked)
    if not (1 - SIZE) * size - 2 <= len(text.strip()) <= size + max(SIZE * size, MORE_CHARACTERS):
        return False
    if size < (LEAST_WIDE if _WIDE.search(asked) else LEAST_CHARACTERS):
        return False
    asked, text = asked.casefold(), text.casefold()
    places = range(0, size - _PROBE + 1, max(1, (size - _PROBE) // 6))
    if not any(asked[place : place + _PROBE] in text for place in places):
        return False
    ours, theirs = _neighbours(asked), _neighbours(text)
    common = len(ours & theirs)
    same = common >= SAME * max(len(ours), len(theirs)) or (common == len(ours) and len(theirs) <= common + MORE_WORDS)
    return common > 0 and same and not gives_text_back(asked)


def gives_text_back(asked: str) -> bool:
    """Whether a prompt asks for a text of its own again, changed or not."""
    return _GIVES_TEXT_BACK.search(asked) is not None


def _neighbours(text: str) -> set[tuple[str, str]]:
    words = _WORD.findall(text[:_COMPARED])
    return set(pairwise(words))
