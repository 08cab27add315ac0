"""Answers that are no answers, told by rules: which of them is worth a judgement, and which belongs on neither side of a pair.

    empty           nothing to read
    truncated       cut at the token limit
    looping         a phrase, a word or a character over and over takes a good part of it (`repetition`)
    tail            it ends in such a loop, or in a row of marks: "pls pls pls", "??????" (`repetition`)
    echo            the prompt again, and nothing added (`echo`)
    refusal         nothing but a refusal, of a prompt that gives no reason for one (`refusal`)
    wrong_language  in another language than the prompt, which names none (`language`)

The rules look at one prompt and one answer, never at the other answers: the same answer is judged alike in every run. Where
a rule cannot tell, it stays silent: an answer that is let in costs a judgement, a good one kept out costs a label. Each
threshold is a constant with its reason beside it. The time is linear in the length, some microseconds for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast, get_args

from rlaif.degenerate.echo import echoes
from rlaif.degenerate.language import in_wrong_language
from rlaif.degenerate.refusal import is_refusal, refuses_unasked
from rlaif.degenerate.repetition import asks_for_repetition, ends_in_loop, loops, quotes_loop
from rlaif.types import Candidate, Prompt

__all__ = [
    "KINDS",
    "RULES",
    "asks_for_repetition",
    "echoes",
    "ends_in_loop",
    "in_wrong_language",
    "is_refusal",
    "kind_of",
    "kind_of_text",
    "loops",
    "marked",
    "quotes_loop",
    "refuses_unasked",
]

Kind = Literal["empty", "truncated", "looping", "tail", "echo", "refusal", "wrong_language"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RULES = 2
"""The version of the rules: it rises with every change that could mark an answer otherwise."""


def kind_of(candidate: Candidate) -> Kind | None:
    """The first kind that applies to a marked candidate, in the order of `KINDS`, or None for an answer worth judging."""
    if candidate.empty:
        return "empty"
    return "truncated" if candidate.truncated else cast("Kind | None", candidate.degenerate)


def kind_of_text(prompt: Prompt, text: str) -> Kind | None:
    """The first kind that the words themselves show, "empty" and "truncated" left out: an answer that loops is cut, too."""
    if not text.strip():
        return None
    asked = str(prompt.messages[-1]["content"]) if prompt.messages else ""
    looping = loops(text)
    if (looping or ends_in_loop(text)) and not asks_for_repetition(asked) and not quotes_loop(asked, text):
        return "looping" if looping else "tail"
    if echoes(asked, text):
        return "echo"
    if refuses_unasked(prompt, text):
        return "refusal"
    return "wrong_language" if in_wrong_language(prompt, text) else None


def marked(prompt: Prompt, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each with what `kind_of_text` says of it in its field `degenerate`."""
    found = []
    for candidate in candidates:
        kind = None if candidate.error is not None else kind_of_text(prompt, candidate.text)
        found.append(candidate if kind == candidate.degenerate else replace(candidate, degenerate=kind))
    return found
