"""Which of two options an answer chose, read strictly: what is not said outright is unreadable, never guessed. Pure.

An answer chooses by exactly one letter in parentheses, or by being an option's text, or its letter, and nothing else. It is
unreadable for one of these causes:

    empty      there is nothing in it
    both       it has both letters
    negated    the letter stands with words that turn it round ("not (A)", "rather than (A)", "(A) is wrong") or leave it open
               ("if (A)")
    refusal    it declines
    none       it names neither
"""

from __future__ import annotations

import re

from rlaif.degenerate.refusal import is_refusal
from rlaif.pairs import normalised

_LETTER = re.compile(r"\(([ABab])\)")
_TURNED = re.compile(
    r"\b(?:not|cannot (?:say|choose|pick|recommend)|never|neither|nor|without|against|reject\w*|disagree\w*|avoid\w*"
    r"|exclud\w*|except|unlike|wrong"
    r"|rather than|instead of)\b|n['’]t\b|\b(?:if|whether)\s*[\"'“‘*]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\"'”’*]*\s+(?:isn['’]t|wasn['’]t|(?:doesn|can|won|wouldn|couldn)['’]t|cannot|(?:is|was|seems|looks|would be|sounds)\s+"
    r"(?:\w+\s+)?(?:not|wrong|incorrect|false|mistaken|worse)\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?;:,\n]")
_LEAD = re.compile(r"^(?:the |my )?(?:answer|choice)(?: is)?\s*:?\s*", re.IGNORECASE)
_AROUND = " \t\n\"'“”‘’*_`.!()[]"


def read(text: str, options: tuple[str, str]) -> int | str:
    """The place of the chosen option, 0 or 1, or why the answer cannot be read."""
    if not text.strip():
        return "empty"
    bare = _LEAD.sub("", normalised(text).strip(_AROUND)).strip(_AROUND).casefold()
    said = [normalised(option).strip(_AROUND).casefold() for option in options]
    if bare in said:
        return said.index(bare)
    if bare in ("a", "b"):
        return "ab".index(bare)
    found = list(_LETTER.finditer(text))
    letters = {match[1].lower() for match in found}
    if len(letters) == 2:
        return "both"
    if any(_DENIED.match(text, match.end()) or _TURNED.search(_CLAUSE.split(text[: match.start()])[-1]) for match in found):
        return "negated"
    if is_refusal(text):
        return "refusal"
    return "ab".index(letters.pop()) if letters else "none"
