"""Checks of one row by itself: what is empty or equal, where an implicit prompt ends, whose turn it is, numbers.

Each is a function that yields (code, detail). Nothing here needs a tokenizer or another row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from rlaif.check.findings import Fault
from rlaif.check.formats import Example, Said, elsewhere, split, split_point
from rlaif.pairs import normalised
from rlaif.types import Message

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Columns in which files say how good the two are: rlaif, binarized UltraFeedback, Tülu, Argilla's mixes."""


def empty(example: Example) -> Iterator[Fault]:
    """Prompts and answers without anything to read. A message that only calls tools is not empty."""
    if example.prompt is not None:
        if not _says(example.prompt) and example.format.prompt != "implicit" and example.format.kind != "messages":
            yield "empty", "the prompt is empty"
        elif isinstance(example.prompt, list):
            yield from _empty_messages(example.prompt)
    for name, said in example.answers if example.format.kind != "ranked" else ():  # such files keep what is worth nothing
        if not _says(said):
            yield "empty", f"`{name}` is empty" if name != "messages" else "no answer of the assistant at the end"
        elif isinstance(said, list) and len(said) > 1:
            yield from _empty_messages(said)


def _says(said: Said) -> bool:
    if isinstance(said, str):
        return bool(said.strip())
    return any(message.get("tool_calls") or str(message.get("content") or "").strip() for message in said)


def _empty_messages(messages: list[Message]) -> Iterator[Fault]:
    for place, message in enumerate(messages, 1):
        if not _says([message]):
            code = "empty_system" if message["role"] in ("system", "developer") else "empty"
            yield code, f"message {place}, of the {message['role']}, is empty"


def equal(example: Example) -> Iterator[Fault]:
    """Chosen and rejected that say the same, white space apart (`rlaif.pairs.normalised`)."""
    if not example.is_pair:
        return
    (_, chosen), (_, rejected) = example.answers
    if chosen == rejected or (normalised(example.texts[0]) == normalised(example.texts[1]) and not _calls(chosen, rejected)):
        yield "equal", example.texts[0] or "both are empty"


def _calls(*sides: Said) -> bool:
    return any(isinstance(side, list) and any(message.get("tool_calls") for message in side) for side in sides)


def implicit(example: Example) -> Iterator[Fault]:
    """Implicit prompts that do not end where the answers begin, by the rule of TRL's `extract_prompt`."""
    if not example.is_pair or example.format.prompt != "implicit":
        return
    column = elsewhere(example.row, example.format)
    if column is not None:
        yield "prompt_elsewhere", f"`{column}`: {example.row[column]}"
        return
    chosen, rejected = example.row["chosen"], example.row["rejected"]
    if chosen == rejected:
        return
    at = split_point(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        why = _text_leak(chosen, rejected, at)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        why = _turn_leak(chosen, rejected, at)
    else:
        return
    if why:
        yield "implicit_prompt", why


def _text_leak(chosen: str, rejected: str, at: int) -> str:
    """Why a split of texts at this character is wrong; "" where nothing shows that it is."""
    if at <= 0:
        return f"chosen and rejected begin differently: {chosen[:40]!r}, {rejected[:40]!r}"
    prompt, _, _ = split(chosen, rejected)
    taken = chosen[len(prompt) : at]
    if taken.strip():
        return f"the first words of both answers become prompt: {taken[:60]!r}"
    ahead, inside = {chosen[at : at + 1], rejected[at : at + 1]}, chosen[at - 1]
    if len(prompt) >= at and _in_word(inside) and any(map(_in_word, ahead)):
        return f"it splits within a word: {chosen[max(0, at - 25) : at]!r} | {chosen[at : at + 15]!r}"
    return ""


def _in_word(letter: str) -> bool:
    """Whether the letter is of a script that puts spaces between its words."""
    return letter.isalnum() and ord(letter) < 0x2E80


def _turn_leak(chosen: list[Message], rejected: list[Message], at: int) -> str:
    """Why a split of conversations at this message is wrong; "" where it is right."""
    if at == 0 or not any(message["role"] == "user" for message in chosen[:at]):
        return "chosen and rejected share no message of the user"
    if chosen[at : at + 1] == rejected[at : at + 1]:
        return "one is the beginning of the other"
    if chosen[at]["role"] != "assistant" or rejected[at]["role"] != "assistant":
        return f"message {at + 1} differs, and is of the {chosen[at]['role']}: the prompts differ"
    if chosen[at - 1]["role"] == "assistant":
        return "a message of the assistant becomes the end of the prompt"
    return ""


def roles(example: Example) -> Iterator[Fault]:
    """Whose turn it is: one system message at most, then user and assistant in turn; tools answer the assistant's calls."""
    if example.format.form != "messages" or example.format.kind in ("text", "stepwise"):
        return
    prompt = example.prompt
    if not isinstance(prompt, list):
        return
    why = _out_of_turn(prompt)
    if not why and example.format.kind != "messages" and prompt and prompt[-1]["role"] not in ("user", "tool"):
        why = f"the prompt ends with the {prompt[-1]['role']}"
    if why:
        yield "roles", why
        return
    for name, said in example.answers:
        if not isinstance(said, list) or not said:
            continue
        if said[0]["role"] != "assistant" or said[-1]["role"] != "assistant":
            yield "roles", f"`{name}` begins with the {said[0]['role']} and ends with the {said[-1]['role']}"
        elif len(said) > 1 or example.format.kind == "messages":
            why = _out_of_turn(prompt + said)
            if why:
                yield "roles", f"`{name}`: {why}"


def _out_of_turn(messages: list[Message]) -> str:
    before, calls = "", False
    for place, message in enumerate(messages, 1):
        role = message["role"]
        if role in ("system", "developer"):
            fine = place == 1
        elif role == "user":
            fine = before in ("", "system", "developer", "assistant") and not calls
        elif role == "assistant":
            fine = before in ("user", "tool")
        else:
            fine = role == "tool" and (before == "tool" or (before == "assistant" and calls))
        if not fine:
            return f"message {place} is of the {role}, after " + (f"the {before}" if before else "nothing")
        calls = bool(message.get("tool_calls")) if role == "assistant" else False
        before = role
    return ""


def numbers(example: Example) -> Iterator[Fault]:
    """Numbers are finite, chosen has not the lower score, `margin` is not below 0, p_chosen is within 0.5..1."""
    row = example.row
    for name, value in row.items():
        if (name == "margin" and value is not None and not _finite(value)) or (type(value) is float and not _finite(value)):
            yield "wrong_number", f"{name} is {value!r}"
        elif type(value) in (list, dict) and _has_nan(value):
            yield "wrong_number", f"{name} holds a number that is not finite"
    if _finite(row.get("margin")) and row["margin"] < 0:
        yield "scores_reversed", f"margin is {row['margin']!r}: the reward of chosen is to be the lower one"
    for better, worse in SCORES:
        if row.get(better) is None or row.get(worse) is None:
            continue
        if _finite(row[better]) and _finite(row[worse]) and row[better] < row[worse]:
            yield "scores_reversed", f"{better} {row[better]!r} < {worse} {row[worse]!r}"
    p = row.get("p_chosen")
    if p is not None and not (_finite(p) and 0.5 <= p <= 1.0):
        yield "p_chosen", f"p_chosen is {p!r}"


def _has_nan(value: Any) -> bool:
    """Whether a number deep in a column is none: such a row cannot be written as JSON."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(not math.isfinite(item) if type(item) is float else _has_nan(item) for item in items)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


CHECKS: tuple[Callable[[Example], Iterator[Fault]], ...] = (empty, equal, implicit, roles, numbers)
