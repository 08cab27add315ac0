"""Final answers of mathematics: where they stand in a text, and whether two of them are equal.

An answer says which of its words are the final ones: after `####` (GSM8K), in the last `\\boxed{}`, between `<answer>` marks,
after "A:" or "the answer is". Where it does not, the last number or formula of its last lines is taken. Two plain numbers
are compared exactly; all else by math-verify (Kydlíček et al. 2025), in a process that a time limit can end.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlaif.judges.rules.worker import Worker

LONGEST_ANSWER = 2000
"""Characters of a final answer: what is longer holds no number that could be one, and takes long to parse."""

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SAID = re.compile(
    r"^[ \t>*#]*(?:A|Ans|(?:final )?answer)[ \t]*[*_]*[:=][*_ \t]*(.+)$"
    r"|\b(?:final )?(?:answer|result|total) (?:is|=|equals|would be)[ \t]*:?[ \t]*([^\n]+)",
    re.MULTILINE | re.IGNORECASE,
)
_NUMBER = re.compile(r"[$€£]?[ \t]*([-+−]?)[$€£]?[ \t]*(\d{1,40}|\d{1,3}(?:,\d{3}){1,13})(\.\d{1,40})?(?![\d.,]*\d)")
_AFTER_NUMBER = re.compile(r"\s*[-+*/^=×÷\\(%]|\s*:\s*\d|[A-Za-z_]\w*[(^]")


def final_answer(text: str) -> str | None:
    """The words that hold the final answer of a solution, or of a reference; None of an empty text."""
    text = text.rstrip()
    marked = text.rpartition("####")
    if marked[1] and marked[2].strip():
        return _shortened(marked[2].strip().splitlines()[0])
    _, tag, tagged = text.rpartition("<answer>")
    for found in (_boxed(text), tagged.partition("</answer>")[0] if tag else None):
        if found is not None and found.strip():
            return _as_formula(_shortened(found.strip()))
    said = None
    for said in _SAID.finditer(text):  # noqa: B007 - the last one
        pass
    if said is not None:
        words = (said[1] or said[2]).strip(" *_")
        number = _NUMBER.match(words)
        if number is not None and _AFTER_NUMBER.match(words, number.end()) is None:
            return number[0]
        return _as_formula(_shortened(words))
    lines = text.splitlines()
    return _as_formula(_shortened("\n".join(lines[-2:]))) if len(lines) > 1 else _as_formula(_shortened(text)) or None


def _boxed(text: str) -> str | None:
    """What the last box holds, its braces balanced."""
    start = max((m.end() for m in _BOXED.finditer(text)), default=None)
    if start is None:
        return None
    depth = 1
    for place in range(start, min(len(text), start + LONGEST_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start : start + LONGEST_ANSWER]


def _shortened(text: str) -> str:
    return text[-LONGEST_ANSWER:]


def _as_formula(text: str) -> str:
    """Bare LaTeX between dollar signs, as math-verify wants it."""
    return (
        f"${text}$" if re.search(r"[\\^]|_\{", text) and "$" not in text and "\\(" not in text and "\\[" not in text else text
    )


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one decimal number, perhaps with a currency sign before and a point behind it."""
    text = text.strip().rstrip(".").strip("$ ")
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = Fraction(found[2].replace(",", "") + (found[3] or ""))
    return -value if found[1] in ("-", "−") else value


def are_equal(reference: str, answer: str, worker: Worker, limit_s: float) -> bool | None:
    """Whether two final answers are equal, None if the reference cannot be read. Raises OverLimit or ValueError.

    An answer in which there is no number or formula is another one.
    """
    one, other = plain_number(reference), plain_number(answer)
    if one is not None and other is not None and (one == other or one.denominator == other.denominator == 1):
        return one == other
    said = worker.do("equal", limit_s, reference=reference, answer=answer)
    return None if said == "no reference" else said == "equal"
