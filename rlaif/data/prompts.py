"""What a row asks: its `prompt`, the column that the user names, or what a form of file that cannot be mistaken holds.

Chat logs (`messages`, `conversations`, `conversation`) are asked up to the last message of the user or a tool: what the
assistant said to that is left out. Preference files are asked what their answers are to. Other columns are never guessed at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlaif.data.columns import Columns, joined, names
from rlaif.data.messages import answerable, conversation, is_transcript, messages_of, transcript, unanswered
from rlaif.errors import InputError
from rlaif.types import Message

CHATS = ("messages", "conversations", "conversation")
ANSWERED = "answered"
_PROMPT = ("prompt",)
_COMMON = ("question", "instruction", "query", "problem", "input", "text", "user")

Asked = tuple[tuple[Message, ...], tuple[str, ...]]
"""(the messages, the columns they were read from)"""


def prompt_of(where: str, row: Mapping[str, Any], columns: Columns, notes: Counter[str] | None = None) -> Asked:
    """What the row asks; nothing where the two sides of a pair do not answer the same. Raises InputError.

    With `notes`, answers at the end of a chat log are left out and counted; without, they are refused: who judges candidates
    must know what these are answers to.
    """
    if columns.prompt is None and "prompt" in row and "answers" not in row:  # as most are
        return messages_of(where, row["prompt"]), _PROMPT
    if columns.prompt is not None:
        value = joined(where, row, columns.prompt)
        used = (columns.prompt,) if columns.prompt in row else tuple(columns.prompt.split("+"))
        if isinstance(value, list):
            return _log(where, value, columns.prompt, notes), used
        return messages_of(where, value, columns.prompt), used
    if "prompt" in row:
        prompt = row["prompt"]
        if is_transcript(prompt) and isinstance(row["answers"], list):
            return answerable(where, unanswered(transcript(where, prompt, "prompt")), "prompt"), _PROMPT
        return messages_of(where, prompt), _PROMPT
    for name in CHATS:
        if isinstance(row.get(name), list):
            return _log(where, row[name], name, notes), (name,)
    if isinstance(row.get("instruction"), str) and isinstance(row.get("completions"), list):
        return messages_of(where, row["instruction"], "instruction"), ("instruction",)
    if notes is not None and "chosen" in row and "rejected" in row:
        return _of_pair(where, row), ()
    common = next((name for name in _COMMON if name in row), "NAME")
    if common == "instruction" and isinstance(row.get("input"), str):
        common = "instruction+input"
    raise InputError(
        f"{where}: there is no `prompt` in this row; there are {names(row)}: say which column it is, as --prompt-field {common}"
    )


def no_prompt(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the row has no column that asks, so that only its answers can tell."""
    return columns.prompt is None and "prompt" not in row and not any(isinstance(row.get(name), list) for name in CHATS)


def _log(where: str, value: list[Any], name: str, notes: Counter[str] | None) -> tuple[Message, ...]:
    messages = conversation(where, value, name)
    if notes is None:
        return answerable(where, messages, name)
    asked = unanswered(messages)
    if not asked:
        raise InputError(f"{where}: `{name}` has no message of the user")
    notes[ANSWERED] += len(asked) < len(messages)
    return answerable(where, asked, name)


def _of_pair(where: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """What two whole conversations open with; nothing where they do not open alike."""
    told = []
    for name in ("chosen", "rejected"):
        side = row[name]
        turns = transcript(where, side, name) if isinstance(side, str) else conversation(where, side, name)
        told.append(unanswered(turns))
    if told[0] != told[1] or not told[0]:
        return ()
    return answerable(where, told[0], "chosen")
