"""Final answers of mathematics: where they stand in a text, and whether two of them are equal.

What a text says last counts. An answer says which of its words are the final ones: after `####` (GSM8K), in a `\\boxed{}`,
between `<answer>` marks, after "A:" or "the answer is"; of these the last one. Words about a total, a result or a sum come
second, and only where no other number follows them; else the last number or formula of the last lines is taken. What is said
not to be the answer is left out. Several values ("3 or 4") are a set, which no single value equals. Two plain numbers are
compared exactly; all else by math-verify (Kydlíček et al. 2025), in a process that a time limit can end.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from rlaif.judges.rules.worker import Worker

LONGEST_ANSWER = 2000
"""Characters of a final answer: what is longer holds no number that could be one, and takes long to parse."""
MOST_STATEMENTS = 64
"""Of more places that name an answer only the last ones are looked at."""

_IS = r"(?:is|are|equals?|becomes|comes (?:out )?to|(?:would|will|must|should|has to) be)\b"
_STATED = re.compile(
    r"^[ \t>*#_]*(?:A|Ans)[ \t]{0,9}[*_]{0,4}[:=]"
    r"|\banswers?[ \t]{0,9}[*_]{0,4}(?:[ \t]{0,9}[:=]|['’]s\b"
    rf"|(?:[ \t]+(?:to|of|for)\b[^\n.:=?!]{{0,80}}?)?[ \t]+{_IS}(?:[ \t]*[:=])?)",
    re.MULTILINE | re.IGNORECASE,
)
_COUNTED = re.compile(rf"\b(?:total|result|sum)[ \t]*(?:=|[ \t]{_IS}(?:[ \t]*[:=])?)", re.IGNORECASE)
_MARKED = re.compile(r"(?<!#)#{4,}[ \t]*(?=[-+−$€£\\(\[{]|[A-Za-z][ \t]*=|\d)(?!\d{1,3}[.)][ \t]+[A-Za-z])")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"[\s$\\,()]*(?:or|and|,)[\s$\\,()]*")
_DENIED = re.compile(
    r"\b(?:(?P<answer>answer|result|total|sum)|it|this|that)"
    r"(?:['’]s|[ \t]+(?:is|was|can?|could|will|wo|would|should|must|does))?"
    r"(?:[ \t]+(?:definitely|certainly|clearly|surely|actually|probably|really))?"
    r"(?:n['’]t|[ \t]*not|[ \t]+never|[ \t]*≠)\b(?:(?!\bbut\b|[,.](?!\d))[^\n;:!?]){0,200}"
    r"(?P<but>[ \t]{0,3},?[ \t]{0,3}\bbut(?:[ \t]+rather)?\b)?"
    r"|(?<![\d.,])[-+−]?\d[\d,.]{0,40} (?:is not|isn['’]t) (?:the |my )?(?:right |correct |final )?answer\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[$€£]?[ \t]*([-+−]?)[$€£]?[ \t]*(\d{1,40}|\d{1,3}(?:,\d{3}){1,13})(\.\d{1,40})?(?![\d.,]*\d)")
_AFTER_NUMBER = re.compile(r"\s*[-+*/^=×÷\\%](?!\s+[a-z]{2})|\(|\s*:\s*\d|[A-Za-z_]\w*[(^]")
_VALUE = re.compile(r"[A-Za-z]\s{0,9}=\s{0,9}|\$(?=[^$\n]{1,200}\$)")
_EITHER = re.compile(r",?\s+(?:and/or|or|and)\s+")
_REASON = re.compile(r"\s(?:because|since|as|so|which|where|with|after|if)\b|[;(]|,(?!\s*[$€£]?[-+−\d]|\s*(?:or|and)\b)")
_LIST = re.compile(r",\s+(?=[-+−$€£]?\d)")
_OR_AT_END = re.compile(r"([-+−$€£]?\d[\d,.]*)(?:[ \t]+[^\W\d]+)?,?[ \t]+or[ \t]+([-+−$€£]?\d[\d,.]*)(?:[ \t]+[^\W\d]+)?\W*\Z")
_TUPLE = re.compile(r"[(\[][^()\[\]{}\n$,]{1,99}(?:,[^()\[\]{}\n$,]{1,99}){1,9}[)\]]")
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?][*_\"')\]]*(?=\s+[A-Z(\[*$\\]|\s*\Z)")
_FILLER = re.compile(
    r"(?:(?:that|therefore|thus|hence|then|so|now|simply|just|exactly|only|actually|indeed|clearly|either|both|between|about"
    r"|approximately|roughly|around|equal to|given by)\b[ \t,:]*)+",
    re.IGNORECASE,
)
_HOLDS_VALUE = re.compile(r"[\d$π√∞]|\\[A-Za-z]")
_SYMBOLS = re.compile(r"[A-Za-z](?:\s?[-+*/^=]\s?[A-Za-z])*\.?")
_LATEX = re.compile(r"[\\^]|_\{")
_SUM = re.compile(
    r"(?:(?!\b(?:because|since|as|where)\b)[^\n,;(=]){0,60}?[-+*/×÷](?:(?!\b(?:because|since|as)\b)[^\n,;(=]){0,60}="
)
_PART = re.compile(r"\s?/\s?\d{1,40}|%")
_BOLD = re.compile(r"(?<![\d)])\*\*|\*\*(?![\d(]|\s\d)|__")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(
    r"(?<![\w.,])(\d{1,20}|\d{1,3}(?:,\d{3}){1,9})(\.\d{1,20})?"
    rf"(?:\s{{1,9}}({'|'.join(_SCALES)})s?\b|[\s\\,;~]{{0,9}}\\text\{{\s{{0,9}}({'|'.join(_SCALES)})s?\s{{0,9}}\}}"
    r"|[eE]([-+−]?\d{1,2})(?!\w|\.\d))"
)


def final_answer(text: str) -> str | None:
    """The words that hold the final answer of a solution, or of a reference; None of an empty text. Several are a LaTeX set."""
    text = _DENIED.sub(lambda m: f"{m['answer']} is" if m["answer"] and m["but"] else " ", text.rstrip())
    found = [*_in_marks(text), *((start, value) for start, _, value in _said(text, _STATED))]
    if found:
        return max(found)[1]
    for _, end, value in _said(text, _COUNTED):
        if not any(map(str.isdigit, text[end:])):
            return value
    lines = [line for line in text.splitlines() if line.strip()]
    return _read_last("\n".join(lines[-2:])) or None


def _in_marks(text: str) -> Iterator[tuple[int, str]]:
    """(where it begins, the value) of the last one after `####`, between `<answer>` marks, and in a box."""
    marked = None
    for marked in _MARKED.finditer(text):  # noqa: B007 - the last one
        pass
    if marked is not None:
        line = text[marked.end() : marked.end() + LONGEST_ANSWER].partition("\n")[0].strip()
        yield marked.end(), _several(_plain(line)) or _plain(line)
    before, tag, tagged = text.rpartition("<answer>")
    if tag and (inner := tagged.partition("</answer>")[0].strip()):
        yield len(before), _read_last(inner[-LONGEST_ANSWER:])
    boxes = deque(_BOX.finditer(text), maxlen=2)
    if boxes and (last := _inside(text, boxes[-1].end())).strip():
        other = _inside(text, boxes[0].end())
        between = text[boxes[0].end() + len(other) + 1 : boxes[-1].start()]
        both = len(boxes) == 2 and len(between) < 40 and _BETWEEN_BOXES.fullmatch(between) is not None
        yield boxes[-1].start(), _set([other, last]) if both else _as_formula(_plain(last.strip()))


def _inside(text: str, start: int) -> str:
    """What the box that opens at `start` holds, its braces balanced."""
    depth = 1
    for place in range(start, min(len(text), start + LONGEST_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start : start + LONGEST_ANSWER]


def _said(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int, str]]:
    """(where its words begin, where they end, the value) of the last place that `pattern` finds and that names one."""
    stop = len(text)
    for found in reversed(deque(pattern.finditer(text), maxlen=MOST_STATEMENTS)):
        start, before = found.end(), found.start()
        rest, stop = text[start : min(stop, start + LONGEST_ANSWER)], before
        words = rest.partition("\n")[0]
        if not words.strip(" \t*_:$"):
            words = rest[: len(rest) - len(rest.lstrip(" \t*_:\n"))] + rest.lstrip(" \t*_:\n").partition("\n\n")[0]
        end = _SENTENCE_END.search(words)
        words = words[: end.end()] if end is not None else words
        if (value := _value(words)) is not None:
            yield start, start + len(words), value
            return


def _value(words: str) -> str | None:
    """The value that a sentence names: its first number if it begins with one, a set, a tuple or the formula in it."""
    words = _plain(_FILLER.sub("", _BOLD.sub("", words.strip(" \t\n*_:=")).lstrip(), count=1))
    if (several := _several(words)) is not None:
        return several
    number = _NUMBER.match(words)
    if number is not None and not (_AFTER_NUMBER.match(words, number.end()) or _SUM.match(words, number.end())):
        return number[0]
    if (pair := _TUPLE.match(words)) is not None:
        return f"${pair[0]}$"
    return _as_formula(words) if _HOLDS_VALUE.search(words) or _SYMBOLS.fullmatch(words) else None


def _read_last(text: str) -> str:
    """The last lines of a text, or the whole of a short one, as they are compared."""
    text = _plain(text[-LONGEST_ANSWER:].strip())
    if (several := _several(text)) is not None:
        return several
    if (either := _OR_AT_END.search(text)) is not None:
        return _set([either[1], either[2]])
    return _as_formula(text)


def _several(words: str) -> str | None:
    """The set of the values that stand side by side at the beginning ("3 or 4", "x = 1 and x = 2"); None of one or none."""
    words = words[: reason.start()] if (reason := _REASON.search(words)) is not None else words
    parts = _EITHER.split(words)
    if len(parts) == 1:
        parts = _LIST.split(words)
        if not all(_NUMBER.fullmatch(part.strip(" .")) for part in parts):
            return None
    values = [_leading(part) for part in parts]
    known = [value for value in values if value is not None]
    return _set(known) if values[0] is not None and len(known) > 1 else None


def _leading(part: str) -> str | None:
    """The number or formula that a part begins with."""
    part = part.strip()
    opened = _VALUE.match(part)
    start = opened.end() if opened is not None else 0
    if opened is not None and opened[0] == "$":
        return part[start : part.index("$", start)]
    number = _NUMBER.match(part, start)
    if number is None:
        return None
    fraction = _PART.match(part, number.end())
    if fraction is not None:
        return part[start : fraction.end()]
    return number[0] if _AFTER_NUMBER.match(part, number.end()) is None else None


def _set(values: list[str]) -> str:
    """The values as a LaTeX set; the first alone where all say the same number."""
    values = [value.strip(" $€£.,") for value in values]
    numbers = [_fraction(value) for value in values]
    if None not in numbers and len(set(numbers)) == 1:
        return values[0]
    plain = [re.sub(r"(?<=\d),(?=\d{3})", "", value).replace("−", "-") for value in values]
    return "$\\{" + ", ".join(plain) + "\\}$"


def _fraction(value: str) -> Fraction | None:
    """The value of a number, a fraction or a percentage."""
    over, slash, under = value.rstrip("%").partition("/")
    one, other = plain_number(over), plain_number(under) if slash else Fraction(1)
    if one is None or not other:
        return None
    return one / other / (100 if value.endswith("%") else 1)


def _plain(text: str) -> str:
    """The text with "2 million" and "1e2" written in digits."""

    def written(found: re.Match[str]) -> str:
        scale = found[3] or found[4]
        exponent = _SCALES[scale] if scale else int(found[5].replace("−", "-"))
        return format(Decimal(f"{found[1].replace(',', '')}{found[2] or ''}e{exponent}"), "f")

    return _SCALED.sub(written, text)


def _as_formula(text: str) -> str:
    """A tuple and bare LaTeX between dollar signs, as math-verify wants them."""
    bare = text.rstrip(" .")
    if _TUPLE.fullmatch(bare) or (_LATEX.search(text) and not any(mark in text for mark in ("$", "\\(", "\\["))):
        return f"${bare}$"
    return text


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
