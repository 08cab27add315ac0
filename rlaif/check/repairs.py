"""What can be put right without guessing, row by row. Everything else of a row stays as it is, and in its order.

A repair changes how a row is written, never what it says or which answer is the better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.check.findings import Fault
from rlaif.check.formats import MARK, Example, Format, chatml, format_of, has_speaker, split

LEAST = 24
"""Plain answers may well begin with a shorter prompt's words. In none of 3,761 real pairs one begins with a longer prompt."""
_TALK = ("prompt", "chosen", "rejected", "completion", "messages")


def repaired(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Fault]]:
    """(the row as it should be written, what was wrong with it)."""
    faults: list[Fault] = []
    if format_of(row).dialect:  # another reader's format, in which it is right
        return row, faults
    for name in _TALK:
        value = row.get(name)
        if isinstance(value, dict) and name != "prompt" and ("role" in value or "from" in value):
            row = {**row, name: [value]}
            faults.append(("object_answer", f"`{name}` is one message"))
        value = row.get(name)
        if isinstance(value, list) and any(map(has_speaker, value)):
            row = {**row, name: chatml(value)}
            faults.append(("from_value", f"`{name}` has messages with from/value"))
    cut = _cut(row)
    if cut is not None:
        row = cut
        faults.append(("prompt_repeated", "the answers begin with the prompt"))
    label = row.get("label")
    if type(label) in (int, float) and label in (0, 1) and "completion" in row:
        row = {**row, "label": bool(label)}
        faults.append(("wrong_label", f"`label` is a number: {label!r}"))
    return row, faults


def _cut(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row without the prompt at the beginning of every answer; None where it does not stand there."""
    prompt = row.get("prompt")
    names = [name for name in ("chosen", "rejected", "completion") if row.get(name)]
    if not names or not prompt:
        return None
    answers = [row[name] for name in names]
    if isinstance(prompt, list):
        begins = all(isinstance(said, list) and said[: len(prompt)] == prompt and len(said) > len(prompt) for said in answers)
        return {**row, **{name: row[name][len(prompt) :] for name in names}} if begins else None
    if not isinstance(prompt, str):
        return None
    if all(isinstance(said, str) for said in answers):
        begins = len(prompt) >= LEAST and all(said.startswith(prompt) and said[len(prompt) :].strip() for said in answers)
        return {**row, **{name: row[name][len(prompt) :] for name in names}} if begins else None
    if not all(isinstance(said, list) and len(said) > 1 for said in answers):
        return None
    # one text beside whole conversations, as in binarized UltraFeedback: the text is what the user says first
    first = answers[0][:-1]
    if any(said[:-1] != first for said in answers) or not all(isinstance(message, dict) for message in first):
        return None
    asked = [message.get("content") for message in first if message.get("role") == "user"]
    if prompt not in asked or any(not isinstance(said[-1], dict) or said[-1].get("role") != "assistant" for said in answers):
        return None
    return {**row, "prompt": first, **{name: row[name][-1:] for name in names}}


def explicit(row: Mapping[str, Any], form: Format) -> Mapping[str, Any]:
    """A pair with an implicit prompt of plain text, with the prompt in a column of its own."""
    if form.kind != "preference" or form.prompt != "implicit" or form.form != "text":
        return row
    prompt, chosen, rejected = split(row["chosen"], row["rejected"])
    rest = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **rest}


def separable(example: Example) -> bool:
    """Whether a transcript's mark says where the implicit prompt of plain text ends, so that it can be written apart."""
    prompt = example.prompt
    return example.is_pair and example.format.prompt == "implicit" and isinstance(prompt, str) and prompt.endswith(MARK)
