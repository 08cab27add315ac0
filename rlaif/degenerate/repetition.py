"""Loops: a unit (a character, a word, a phrase, a paragraph) that follows itself again and again, word for word.

In a loop of period p each character equals the one p places before it. A few characters are taken at every step of the text
and looked for in what follows directly; where they are found again, the loop is measured in both directions and passed over.
So every character is looked at a few times at most, in any script, with or without spaces between words.

What is no loop: a refrain (it does not follow itself at once, or not four times), a table, a rule of dashes, code, ASCII art,
a short laugh, and numbers in rows, which are values more often than a fault.
"""

from __future__ import annotations

import re

REPEATS = 4
"""A unit has to stand at least so many times in a row: three in a row are rhetoric ("never, never, never")."""
LEAST_CHARACTERS = 160
"""A loop of this length or more, about two lines, is no figure of speech; one that takes SHARE of the answer spoils it."""
SHARE = 0.2
"""With less of the answer in a loop than one fifth, and less than MANY_CHARACTERS, most of it can still be read."""
MANY_CHARACTERS = 800
"""Ten lines of the same words: a model that wrote these was stuck, however much it wrote before and after."""
SHORT_CHARACTERS = 80
"""In an answer of a few lines a loop of this length counts if half of the answer is in it; a shorter one only at the end."""
HALF = 0.5
"""For short loops; for units of digits or in fenced code, where equal rows can be meant; and for repeated paragraphs."""
PARAGRAPH_CHARACTERS, PARAGRAPH_REPEATS = 160, 3
"""A paragraph of this length that stands three times in a row, and is half of the answer: no song repeats a verse at once."""
LONGEST_UNIT = 240
"""The longest unit that is looked for everywhere; of longer ones only those that fill half of the answer are found."""

MARKS = 6
"""Marks of exclamation or question in a row at the end: people put up to three or four for emphasis, and five for fun."""
DOTS = 12
"""Dots in a row at the end: three to six are an ellipsis, more a line to fill in, which stands within the text."""
SYMBOLS = 8
"""One and the same emoji or sign in a row at the end: people put up to five."""
LETTERS = 12
"""One letter in a row at the end: "sooooo" and "zzzzzz" are shorter."""
WORDS = 3
"""The same word in a row at the end, with a space between, behind a finished sentence or where no sentence can end: "pls pls
pls", "the the the". Names and sayings that do this are rare."""
WORDS_IN_SENTENCE = 5
"""The same where it can be the end of a sentence: "A duck goes quack quack quack", "it rained and rained and rained"."""
SEPARATED_WORDS = 5
"""The same with commas or line ends between: "location, location, location" is a saying."""
LAUGHS = 12
"""Sounds that are written in rows ("ha ha ha", "la la la") have to go on for longer."""
PHRASE_REPEATS, PHRASE_CHARACTERS = 5, 48
"""A phrase at the end, so many times and in all so long: a last line of a song has four."""

_ASKED = re.compile(
    r"\brepeat|\bduplicat|\brepetit|over and over|again and again|in a loop|\b(?:say|write|print|type|list|output"
    r"|generate|give)\b.{0,120}?"
    r"\btimes\b|\bzero(?:e?s)\b|\bones\b|\bascii|\bdraw|\bpattern|\bsong|\blyric|\bsing\b|\bpoem|\bchant|\bmantra|\btandem|\bmicrosatellite|\bhomopolymer|\bpoly-?[ACGTU]\b|\brhyme"
    r"|\bscream|\blaugh|\bspam|重复|重覆|反复|循环|[遍次]|歌|诗|繰り返|повтор|wiederhol|répèt|répét|repit",
    re.IGNORECASE | re.DOTALL,
)
_FINISHED = re.compile(r"[.!?。！？)\]}\d*`\n]\s*\Z")
_UNFINISHED = (
    "a an the and or but of to in on at by for from with as if than that which who is are was were be been has have "
    "had do does did will would can could should may might must very so too i we he she they my your his her its our "
    "their this these those pls plz please thx thanks sorry hello hi hey "
)
_ENDS_NO_SENTENCE = frozenset(_UNFINISHED.split())
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LAUGHING = re.compile(
    r"(?:ha|he|hi|ho|ja|la|na|da|ah|oh|no|yes|bye|blah|woo|yay|knock|tick|tock|beep|boom|meow|woof|end)+h?", re.I
)
_LAUGH_CHARACTERS = frozenset("哈呵嘻嘿啊呜哇嗯喵汪")
_SYMBOL = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")  # no lines, blocks or Braille: those draw
QUOTED = 3
"""A prompt that holds so many of the units in a row speaks of them."""
_ENDING = 400
_STEP = 100  # with a probe of 12 and REPEATS of a unit: no loop of LEAST_CHARACTERS lies between two steps


def asks_for_repetition(asked: str) -> bool:
    """Whether a prompt asks for something that may repeat itself: so many times, zeros, a pattern, a song, a poem."""
    return _ASKED.search(asked) is not None


def quotes_loop(asked: str, text: str) -> bool:
    """Whether the loop in a text is in its prompt, too: QUOTED of its units in a row, at the end or about the middle."""
    asked = " ".join(asked.casefold().split())
    for part in (text[-_ENDING:], text[len(text) // 2 : len(text) // 2 + _ENDING]):
        part = " ".join(part.casefold().split()).rstrip(".,;:!?\"'”’)")
        row = _row(part)
        if any(map(str.isalpha, row)) and row.strip() in asked:
            return True
    return False


def _row(text: str) -> str:
    """The last QUOTED units of the loop that a text ends in, "" where it ends in none."""
    for period in range(2, min(LONGEST_UNIT, len(text) // 2) + 1):
        row = text[-QUOTED * period :]
        if len(row) > 2 * period and row[period:] == row[:-period]:
            return row
    return ""


def loops(text: str) -> bool:
    """Whether a loop takes so much of the text as the constants say."""
    size = len(text)
    if size < SHORT_CHARACTERS:
        return False
    # a letter of a script without spaces holds about as much as three of Latin script
    scale = 3 if not text.isascii() and _WIDE.search(text[:200]) else 1
    step = min(_STEP // scale, max(size // 8, 4))
    probe = 4 if scale > 1 else min(12, step)
    reach, place = LONGEST_UNIT + probe, 0
    find = text.find
    while place < size - probe:
        again = find(text[place : place + probe], place + 1, place + reach)
        if again < 0:
            place += step
            continue
        start, end = _extent(text, place, again - place)
        if _spoils(text, start, end, again - place, scale):
            return True
        past = end - probe + 1  # where the loop breaks: a longer one that holds it begins to show
        place = past if past >= place + step // 4 else place + step
    return _paragraphs(text)


def _paragraphs(text: str) -> bool:
    """Whether half of the text is one long unit, three times or more. Three places are enough to meet such a loop."""
    size = len(text)
    if size < PARAGRAPH_REPEATS * PARAGRAPH_CHARACTERS:
        return False
    for place in (size // 10, size * 2 // 5, size * 7 // 10):
        again = text.find(text[place : place + 32], place + PARAGRAPH_CHARACTERS)
        if again < 0:
            continue
        start, end = _extent(text, place, again - place)
        if end - start >= max(PARAGRAPH_REPEATS * (again - place), HALF * size) and any(map(str.isalpha, text[place:again])):
            return True
    return False


def _extent(text: str, place: int, period: int) -> tuple[int, int]:
    """The loop of this period around `place`: (where it starts, where it ends)."""
    size, ahead = len(text), 0
    length = 16
    while length:  # forward, in steps that double while they fit and halve when they do not
        at = place + ahead
        if at + period + length <= size and text[at : at + length] == text[at + period : at + period + length]:
            ahead += length
            length *= 2
        else:
            length //= 2
    back, length = 0, 16
    while length:
        at = place - back
        if at - length >= 0 and text[at - length : at] == text[at - length + period : at + period]:
            back += length
            length *= 2
        else:
            length //= 2
    return place - back, place + ahead + period


def _spoils(text: str, start: int, end: int, period: int, scale: int) -> bool:
    length, size = end - start, len(text)
    if length < REPEATS * period or length * scale < SHORT_CHARACTERS:
        return False
    unit = text[start : start + period]
    weak = False
    if not any(map(str.isalpha, unit)):
        if any(map(str.isdigit, unit)):
            weak = True
        elif not set(unit) <= set("?!？！ "):
            return False
    if _LAUGHING.fullmatch("".join(unit.split())) and length * scale < LEAST_CHARACTERS:
        return False
    if weak or _fenced(text, start):
        return length * scale >= LEAST_CHARACTERS and length >= HALF * size
    return (
        length >= HALF * size
        or (length * scale >= LEAST_CHARACTERS and length >= SHARE * size)
        or length * scale >= MANY_CHARACTERS
    )


def _fenced(text: str, place: int) -> bool:
    return text.count("```", 0, place) % 2 == 1


def ends_in_loop(text: str) -> bool:
    """Whether the end is a row of marks, of one letter, of one word or of one phrase, as the constants say."""
    end = text[-_ENDING:].rstrip()
    last = end[-1:]
    if not last.isalnum():
        if _ends_in_marks(end, last):
            return True
    elif end[-2:-1] == last:
        limit = 6 if _WIDE.match(last) else LETTERS
        row = len(end) - len(end.rstrip(last))
        if row >= (20 if last in _LAUGH_CHARACTERS else limit) and not last.isdigit():
            return True
    return _ends_in_words(end) or _ends_in_phrase(end)


def _ends_in_marks(end: str, last: str) -> bool:
    if last in "?!？！":
        return len(end) - len(end.rstrip("?!？！ ")) >= MARKS
    if last in ".。…·":
        return len(end) - len(end.rstrip(last)) >= (DOTS if last == "." else MARKS)
    return _SYMBOL.match(last) is not None and len(end) - len(end.rstrip(last + " \ufe0f")) >= SYMBOLS


def _ends_in_words(end: str) -> bool:
    words = end[-120:].rsplit(None, WORDS)
    if len(words) < WORDS or words[-2].rstrip(",;.!?") != words[-3].rstrip(",;.!?"):
        return False
    word = words[-2].rstrip(",;.!?").casefold()
    if not word.isalpha() or len(word) < 2 or words[-1].rstrip(",;.!?").casefold() != word:
        return False
    row, plain, others = 0, True, end.split()
    for other in reversed(others):
        if other.rstrip(",;.!?").casefold() != word:
            break
        row += 1
        plain = plain and (row == 1 or other[-1].isalpha())
    before = " ".join(others[:-row])
    apart = word in _ENDS_NO_SENTENCE or (len(before) >= SHORT_CHARACTERS and _FINISHED.search(before) is not None)
    least = WORDS if apart else WORDS_IN_SENTENCE
    if not plain or "\n" in end[-(len(word) + 1) * row - 1 :]:
        least = SEPARATED_WORDS
    return row >= (LAUGHS if _LAUGHING.fullmatch(word) else least)


def _ends_in_phrase(end: str) -> bool:
    probe = 8 if end.isascii() else 4
    before = end.rfind(end[-probe:], 0, len(end) - 1)
    if before < 0:
        return False
    period = len(end) - probe - before
    start, stop = _extent(end, before, period)
    unit, length = end[start : start + period], stop - start
    if length < PHRASE_REPEATS * period or not any(map(str.isalpha, unit)) or "<" in unit:
        return False
    scale = 3 if _WIDE.search(unit) else 1
    laugh = _LAUGHING.fullmatch("".join(letter for letter in unit if letter.isalpha())) or unit[0] in _LAUGH_CHARACTERS
    return length * scale >= (LEAST_CHARACTERS if laugh else PHRASE_CHARACTERS)
