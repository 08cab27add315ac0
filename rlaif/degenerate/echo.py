"""Echoes: an answer that is the prompt again and adds nothing. A prompt that asks for its own text back has none.

What stands behind the copy decides: one word or number there is an answer ("The capital of France is" - "The capital of France
is Paris."), a label ("Answer:") is none.
"""

from __future__ import annotations

import re
from itertools import pairwise

LEAST_CHARACTERS, LEAST_WIDE = 24, 10
"""A shorter prompt (of a script without spaces: LEAST_WIDE) can be answered in its own words: "Good morning!"."""
SIZE = 0.2
"""The lengths differ by at most this share of the prompt: an answer that adds more than that says something of its own."""
MORE_CHARACTERS, MORE_WORDS = 12, 2
"""What may come to the whole of a short prompt: "Answer:" behind it, a bracket, a name before it."""
SAME = 0.9
"""The least share of the pairs of neighbouring words that the two have in common: marks and a word may change."""

_LABELS = 40
_PROBE = 8
_COMPARED = 20_000

_GIVES_TEXT_BACK = re.compile(
    r"\brepeat|\btranslat|\bedit|\bquot|\bcop(?:y|ies)\b|\bcorrect|\bproofread|\bre-?(?:write|phrase|word|format|state|order)"
    r"|\bparaphras|\bfix|\bformat|\bconvert|\bcontinu|\bcomplete (?:the|this)|\bfill in|\badd\b|\bremove|\breplac|\bcapitali"
    r"|\b(?:upper|lower) ?case|\bpunctuat|\bgramma|\bspell|\becho|\bverbatim|\bimprov|\bchange\b|\bmodif|\btranscri|\binsert"
    r"|_{2,}|\[(?:blank|mask)\]|<mask>"
    r"|重复|翻译|翻譯|改写|改成|润色|纠正|修改|复述|引用|抄写|续写|填空|整理|提取",
    re.IGNORECASE,
)
_LABEL = (
    r"(?:the |my |your )?(?:answer|response|reply|question|prompt|input|output|human|user|assistant|solution|答案|问题|回答)"
)
_LABEL_BEFORE = re.compile(rf"[\s\W]*(?:{_LABEL}|[qa])\s?[:：|>*]+", re.IGNORECASE)
_LABEL_BEHIND = re.compile(rf"(?<!\w)(?:{_LABEL}|[qa])\s?[:：|>]\W*\Z", re.IGNORECASE)
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W_]+")
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def echoes(asked: str, text: str) -> bool:
    """Whether `text` is nearly only what was `asked`, by the constants, and was not asked for."""
    size, text = len(asked), text.strip()
    if not (1 - SIZE) * size - 2 <= len(text) <= size + max(SIZE * size, MORE_CHARACTERS) + _LABELS:
        return False
    bare = _without_labels(text)
    if len(bare) > size + max(SIZE * size, MORE_CHARACTERS):
        return False
    if size < (LEAST_WIDE if _WIDE.search(asked) else LEAST_CHARACTERS):
        return False
    asked, text, bare = asked.casefold(), text.casefold(), bare.casefold()
    places = range(0, size - _PROBE + 1, max(1, (size - _PROBE) // 6))
    if not any(asked[place : place + _PROBE] in text for place in places):
        return False
    ours, theirs = _words(asked), _words(text)
    if theirs != ours:
        theirs = _words(bare)
    pairs, copied = set(pairwise(ours)), set(pairwise(theirs))
    common = len(pairs & copied)
    same = common >= SAME * max(len(pairs), len(copied)) or (common == len(pairs) and len(copied) <= common + MORE_WORDS)
    return common > 0 and same and not _adds(ours, theirs) and not gives_text_back(asked)


def _without_labels(text: str) -> str:
    """The text without "Human:" before it and "Answer:" behind it."""
    before = _LABEL_BEFORE.match(text)
    text = text[before.end() :] if before is not None else text
    behind = _LABEL_BEHIND.search(text, max(0, len(text) - 40))
    return text[: behind.start()] if behind is not None else text


def _adds(ours: list[str], theirs: list[str]) -> bool:
    """Whether a word or number stands behind the copy: behind all of our words, or behind the last two that are ours."""
    if theirs[: len(ours)] == ours:
        return len(theirs) > len(ours)
    pairs = set(pairwise(ours))
    last = next(pair for pair in reversed(list(pairwise(theirs))) if pair in pairs)
    return theirs[-2:] != list(last)


def gives_text_back(asked: str) -> bool:
    """Whether a prompt asks for a text of its own again, changed or not."""
    return _GIVES_TEXT_BACK.search(asked) is not None


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:_COMPARED])
