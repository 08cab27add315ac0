"""Constraints on form that a program can check, under the names of IFEval (Zhou et al. 2023, arXiv:2311.07911).

A prompt carries them as `instruction_id_list` and `kwargs`, two aligned lists. A constraint holds or does not; where that
cannot be told (an unknown name, a setting that is missing, a text too short to say its language) `Unclear` is raised.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from rlaif.degenerate.language import known_languages, language_of


class Unclear(Exception):
    """It cannot be told whether the constraint holds; the message says why."""


_LETTERS = string.ascii_letters
Settings = Mapping[str, Any]

_SENTENCE_END = re.compile(r"(?<![.!?。！？…])[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]+[”’）」』]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|approx|Inc|Ltd|Co|No|Fig|U\.S|a\.m|p\.m)|(?:^|\s)[A-Z]|^\s*\d{1,3})$",
    re.MULTILINE,
)
_SAME_SCRIPT = {"mr": "hi", "ne": "hi", "fa": "ar", "ur": "ar"}  # told by the script: these share it


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> int:
    """How many sentences there are: by their marks, abbreviations and numbers of lists aside; one for words without any."""
    count = end = 0
    for found in _SENTENCE_END.finditer(text):
        if found[0].startswith(".") and _ABBREVIATION.search(text, max(0, found.start() - 12), found.start()):
            continue
        count, end = count + 1, found.end()
    return count + bool(re.search(r"\w", text[end:]))


def paragraphs(text: str, divider: str) -> list[str]:
    """The parts between dividers (a pattern) that are not blank."""
    return [part for part in re.split(divider, text) if part.strip()]


def _compare(count: int, relation: str, limit: int) -> bool:
    if relation == "less than":
        return count < limit
    if relation == "at least":
        return count >= limit
    raise Unclear(f"the relation {relation!r} is neither 'less than' nor 'at least'")


def _bullets(text: str) -> int:
    return len(re.findall(r"^[ \t]*(?:\*(?!\*)|-(?!--))[ \t]*\S", text, re.MULTILINE))


def _highlights(text: str) -> int:
    """Passages between asterisks or double ones."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool((double or single).strip()) for double, single in found)


def _nth_paragraph(text: str, s: Settings) -> bool:
    parts = paragraphs(text, r"\n\n+")
    nth = int(s["nth_paragraph"])
    if len(parts) != int(s["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    first = re.match(r"\W*([\w'’-]+)", parts[nth - 1])
    return first is not None and first[1].casefold() == str(s["first_word"]).casefold()


def _is_json(text: str) -> bool:
    text = text.strip()
    if text.startswith("```"):
        text = text[3:].lstrip(_LETTERS).removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _in_language(text: str, s: Settings) -> bool:
    wanted = str(s["language"])
    wanted = _SAME_SCRIPT.get(wanted, wanted)
    if wanted not in known_languages():
        raise Unclear(f"the language {s['language']!r} is not known; known are {', '.join(known_languages())}")
    found = language_of(text)
    if found is None:
        raise Unclear("the text is too short or too mixed to tell its language")
    return found == wanted


def _two_responses(text: str) -> bool:
    """Two different parts around a line of six asterisks; nothing between two such lines is no response."""
    first, *others = [part.strip() for part in text.strip().removeprefix("******").removesuffix("******").split("******")]
    return len(others) == 1 and bool(first) and bool(others[0]) and first != others[0]


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in words(text))


_CHECKS: dict[str, Callable[[str, Settings], bool]] = {
    "keywords:existence": lambda t, s: all(str(k).casefold() in t.casefold() for k in s["keywords"]),
    "keywords:frequency": lambda t, s: _compare(
        t.casefold().count(str(s["keyword"]).casefold()), s["relation"], int(s["frequency"])
    ),
    "keywords:forbidden_words": lambda t, s: (
        not any(re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", t, re.IGNORECASE) for word in s["forbidden_words"])
    ),
    "keywords:letter_frequency": lambda t, s: _compare(
        t.lower().count(str(s["letter"]).lower()), s["let_relation"], int(s["let_frequency"])
    ),
    "language:response_language": _in_language,
    "length_constraints:number_sentences": lambda t, s: _compare(sentences(t), s["relation"], int(s["num_sentences"])),
    "length_constraints:number_words": lambda t, s: _compare(len(words(t)), s["relation"], int(s["num_words"])),
    "length_constraints:number_paragraphs": lambda t, s: len(paragraphs(t, r"\s?\*\*\*\s?")) == int(s["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda t, s: len(re.findall(r"\[[^\[\]]*\]", t)) >= int(s["num_placeholders"]),
    "detectable_content:postscript": lambda t, s: (
        re.search(rf"(?mi)^[^\w\n]*{re.escape(str(s['postscript_marker']).rstrip('.'))}", t) is not None
    ),
    "detectable_format:number_bullet_lists": lambda t, s: _bullets(t) == int(s["num_bullets"]),
    "detectable_format:constrained_response": lambda t, s: any(f"My answer is {word}." in t for word in ("yes", "no", "maybe")),
    "detectable_format:number_highlighted_sections": lambda t, s: _highlights(t) >= int(s["num_highlights"]),
    "detectable_format:multiple_sections": lambda t, s: (
        len(re.findall(rf"(?m)^[^\w\n]*{re.escape(str(s['section_spliter']).strip())}[ \t]+\d", t)) >= int(s["num_sections"])
    ),
    "detectable_format:json_format": lambda t, s: _is_json(t),
    "detectable_format:title": lambda t, s: any(map(str.strip, re.findall(r"<<([^\n<>]+)>>", t))),
    "combination:two_responses": lambda t, s: _two_responses(t),
    "combination:repeat_prompt": lambda t, s: t.strip().casefold().startswith(str(s["prompt_to_repeat"]).strip().casefold()),
    "startend:end_checker": lambda t, s: (
        t.strip().strip('"').casefold().endswith(str(s["end_phrase"]).strip().strip('"').casefold())
    ),
    "startend:quotation": lambda t, s: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda t, s: _compare(
        _capital_words(t), s["capital_relation"], int(s["capital_frequency"])
    ),
    "change_case:english_capital": lambda t, s: t.isupper(),
    "change_case:english_lowercase": lambda t, s: t.islower(),
    "punctuation:no_comma": lambda t, s: "," not in t,
}
NAMES = tuple(_CHECKS)


def holds(name: str, settings: Settings, text: str) -> bool:
    """Whether the text keeps the constraint; an empty text keeps none. Raises Unclear."""
    check = _CHECKS.get(name)
    if check is None:
        raise Unclear(f"there is no constraint {name!r}")
    if not text.strip():
        return False
    try:
        return check(text, settings)
    except KeyError as error:
        raise Unclear(f"the constraint {name!r} lacks {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise Unclear(f"the constraint {name!r} has settings that cannot be used: {error}") from None
