"""Answers that already exist, in any form of file that has two or more of them a row.

The form shows in a row's columns. What the file says of its answers becomes their score: higher is better, and only the order
within a row has a meaning.

    candidates       `candidates`: texts, or objects with `response` or `text`, and perhaps `model` and `score`
    responses        a column an answer, named by the user; no label
    gold pairs       `response_a`, `response_b`, `gold`: A or B: 1 and 0, tie: 1/2 each
    preference       `chosen`, `rejected`: 1 and 0; beside a prompt (TRL's explicit form), or as whole conversations
                     (implicit), or as transcripts of Human and Assistant (Anthropic's HH)
    UltraFeedback    `completions` with `annotations`: the mean of the aspects' ratings. Their `overall_score` is no label:
                     in the original a 1 was often stored as 10
    Nectar           `answers` with `rank`, 1 the best: minus the rank

A preference file tells its label by place or name. So its answers are put into an order hashed from their texts: a judge that
always takes the first agrees with half of the labels.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlaif.data.columns import Columns, find, names
from rlaif.data.ids import Answer
from rlaif.data.messages import TOOL_CALLS, answerable, conversation, encodable, transcript
from rlaif.data.prompts import CHATS, no_prompt, prompt_of
from rlaif.errors import InputError
from rlaif.keys import canonical
from rlaif.rows import MENDABLE, kind_of
from rlaif.types import Message

_PAIR = ("response_a", "response_b")
_SIDES = ("chosen", "rejected")
_GOLD = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.5, 0.5), None: (None, None)}
_APART = 0.5

DIFFERENT_PROMPTS, NO_ANSWER, CALLS = "different_prompts", "no_answer", "calls_tools"
LEFT_OUT = {
    DIFFERENT_PROMPTS: "chosen and rejected answer different prompts",
    NO_ANSWER: "chosen or rejected does not end with an answer",
    CALLS: "chosen or rejected ends with calls of tools, and texts alone are judged",
}
CONTRADICTED = "contradicted"


class Comparison(NamedTuple):
    """What a row asks, and the answers to it. `hidden` are the columns that this was read from.

    `left_out`: a reason why the row is no comparison, though it is well formed.
    """

    form: str
    messages: tuple[Message, ...]
    answers: list[Answer]
    hidden: tuple[str, ...]
    left_out: str | None = None


def comparison(where: str, row: Mapping[str, Any], columns: Columns, notes: Counter[str]) -> Comparison:
    """The comparison in a row. Raises InputError. `notes` counts rows whose own labels contradict each other."""
    if columns.gold:
        return _gold(where, row, columns)
    if "candidates" in row and columns.candidates is None and not columns.responses:
        return _plain(where, row, columns, "candidates", row["candidates"], _PAIR)
    if columns.responses:
        given = [find(where, row, name, "--response-field") for name in columns.responses]
        return _plain(where, row, columns, "responses", given, columns.responses)
    if columns.candidates is not None:
        given = find(where, row, columns.candidates, "--candidates-field")
        return _plain(where, row, columns, "candidates", given, (columns.candidates,))
    if all(name in row for name in _PAIR):
        return _gold(where, row, columns)
    if _is_list_of(row.get("completions"), "response"):
        return _scored(where, row, columns, "UltraFeedback", "completions", notes)
    if _is_list_of(row.get("answers"), "answer"):
        return _scored(where, row, columns, "Nectar", "answers", notes)
    if all(name in row for name in _SIDES):
        return _preference(where, row, columns)
    if any(isinstance(row.get(name), list) for name in CHATS):
        raise InputError(
            f"{where}: a chat log has one answer, and judging needs two: give `candidates` beside it, or sample answers with"
            " `rlaif generate`"
        )
    raise InputError(
        f"{where}: there are no `candidates` in this row; there are {names(row)} (--candidates-field or --response-field say"
        " which columns hold them)"
    )


def _is_list_of(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) and key in item for item in value)


def _plain(where: str, row: Mapping[str, Any], columns: Columns, form: str, given: Any, hidden: tuple[str, ...]) -> Comparison:
    if not isinstance(given, list):
        raise InputError(f"{where}: `{columns.candidates or 'candidates'}` must be a list, got {kind_of(given)}")
    messages, asked = prompt_of(where, row, columns)
    return Comparison(form, messages, _answers(where, given), (*asked, "candidates", *hidden))


def _gold(where: str, row: Mapping[str, Any], columns: Columns) -> Comparison:
    missing = next((name for name in (*_PAIR, *(["gold"] if columns.gold else [])) if row.get(name) is None), None)
    if missing is not None:
        raise InputError(f"{where}: a gold pair needs `{missing}`; there are {names(row)}")
    gold = row.get("gold")
    if not isinstance(gold, str | None) or gold not in _GOLD:
        raise InputError(f"{where}: `gold` must be A, B or tie, got {str(gold)[:40]!r}")
    messages, asked = prompt_of(where, row, columns)
    answers = [
        (text, model, score)
        for (text, model, _), score in zip(_answers(where, [row[name] for name in _PAIR]), _GOLD[gold], strict=True)
    ]
    return Comparison("gold pairs", messages, answers, (*asked, *_PAIR))


def _scored(where: str, row: Mapping[str, Any], columns: Columns, form: str, column: str, notes: Counter[str]) -> Comparison:
    """Rows of UltraFeedback and Nectar: a list of answers, each with what was said of it."""
    messages, asked = prompt_of(where, row, columns)
    given = row[column]
    if form == "Nectar":
        answers = _answers(where, [{"response": i["answer"], "model": i.get("model"), "score": i.get("rank")} for i in given])
        answers = [(text, model, None if rank is None else -rank) for text, model, rank in answers]
    else:
        rated = [{"response": i["response"], "model": i.get("model"), "score": _rating(i)} for i in given]
        answers = _answers(where, rated)
        notes[CONTRADICTED] += any(
            _contradicts(i.get("overall_score"), i_rating["score"]) for i, i_rating in zip(given, rated, strict=True)
        )
    return Comparison(form, messages, _shuffled(messages, answers), (*asked, column))


def _rating(completion: Mapping[str, Any]) -> float | None:
    """The mean of the aspects' ratings (1 to 5), those that are none ("N/A") left out; else the mean that is given."""
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    ratings = [r for r in (_number(a.get("Rating")) for a in aspects if isinstance(a, Mapping)) if r is not None]
    return sum(ratings) / len(ratings) if ratings else _number(completion.get("fine-grained_score"))


def _contradicts(overall: Any, rating: float | None) -> bool:
    """Whether an overall score (1 to 10) and a mean rating (1 to 5) are half of their scales apart, or more."""
    number = _number(overall)
    return number is not None and rating is not None and abs((number - 1) / 9 - (rating - 1) / 4) >= _APART


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _preference(where: str, row: Mapping[str, Any], columns: Columns) -> Comparison:
    """A row with `chosen` and `rejected`: texts, or lists of messages."""
    sides = [[row[name]] if isinstance(row[name], Mapping) else row[name] for name in _SIDES]
    kinds = {str if isinstance(side, str) else list if isinstance(side, list) else None for side in sides}
    if len(kinds) > 1 or None in kinds:
        raise InputError(
            f"{where}: `chosen` and `rejected` must both be texts or both be lists of messages, got"
            f" {kind_of(row['chosen'])} and {kind_of(row['rejected'])}"
        )
    messages, asked = (None, ()) if no_prompt(row, columns) else prompt_of(where, row, columns)
    hidden = (*asked, *_SIDES)
    told: list[list[Message]]
    if str in kinds:
        if messages is not None:
            return _labelled(where, row, "preference pairs", messages, list(map(str, sides)), hidden)
        form = "transcripts"
        told = [transcript(where, str(side), name) for name, side in zip(_SIDES, sides, strict=True)]
    else:
        form = "preference pairs" if messages is not None else "whole conversations"
        told = [conversation(where, side, name) for name, side in zip(_SIDES, sides, strict=True)]
    if any(one[-1]["role"] != "assistant" for one in told):
        return Comparison(form, (), [], hidden, NO_ANSWER)
    if any(one[-1].get(name) for one in told for name in TOOL_CALLS):
        return Comparison(form, (), [], hidden, CALLS)
    before = [one[:-1] for one in told]
    if before[0] != before[1]:
        return Comparison(form, (), [], hidden, DIFFERENT_PROMPTS)
    if before[0]:
        whole = answerable(where, before[0], "chosen")
        if messages is not None and not _opens(whole, messages):
            raise InputError(
                f"{where}: `chosen` and `rejected` open with another prompt than `{asked[0] if asked else 'prompt'}`"
            )
        messages = whole
    if messages is None:
        raise InputError(f"{where}: `chosen` and `rejected` are answers without a prompt; there are {names(row)}")
    return _labelled(where, row, form, messages, [one[-1]["content"] for one in told], hidden)


def _opens(whole: tuple[Message, ...], asked: tuple[Message, ...]) -> bool:
    """Whether what was asked is the end of the conversation, or the text of a user's message in it."""
    if whole[-len(asked) :] == asked:
        return True
    texts = [m["content"].strip() for m in whole if m["role"] == "user"]
    return len(asked) == 1 and asked[0]["content"].strip() in texts


def _labelled(
    where: str, row: Mapping[str, Any], form: str, messages: tuple[Message, ...], texts: list[str], hidden: tuple[str, ...]
) -> Comparison:
    """The two answers of a preference pair, the chosen one given first, in an order that does not tell which it was."""
    given = [
        {"response": text, "model": row.get(f"{name}_model") or row.get(f"{name}-model"), "score": score}
        for name, text, score in zip(_SIDES, texts, (1.0, 0.0), strict=True)
    ]
    return Comparison(form, messages, _shuffled(messages, _answers(where, given)), hidden)


def _shuffled(messages: tuple[Message, ...], answers: list[Answer]) -> list[Answer]:
    """The answers in the order of a hash of prompt and text."""
    asked = canonical(list(messages))

    def place(answer: Answer) -> bytes:
        return hashlib.blake2b(asked + b"\n" + answer[0].encode(), digest_size=16).digest()

    return sorted(answers, key=place)


def _answers(where: str, given: list[Any]) -> list[Answer]:
    return [_answer(where, place, item) for place, item in enumerate(given, 1)]


def _answer(where: str, place: int, item: Any) -> Answer:
    if type(item) is str and encodable(item):
        return item, "", None
    row = {"response": item} if isinstance(item, str) else item
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: candidate {place} must be a text or an object, got {kind_of(item)}")
    text = row.get("text") if row.get("response") is None else row["response"]
    if not isinstance(text, str):
        raise InputError(f"{where}: candidate {place} needs a text as `response`, got {kind_of(text)}")
    if not encodable(text):
        raise InputError(f"{where}: candidate {place} holds half a surrogate pair, which is no text{MENDABLE}")
    score = row.get("score")
    try:
        number = None if score is None else float(score)
        fine = number is None or (math.isfinite(number) and isinstance(score, (int, float)) and not isinstance(score, bool))
    except (TypeError, ValueError, OverflowError):
        number, fine = None, False
    if not fine:
        raise InputError(f"{where}: the score of candidate {place} must be a number, got {str(score)[:40]!r}")
    return text, str(row.get("model") or ""), number
