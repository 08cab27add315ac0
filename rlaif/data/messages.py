"""Messages of a prompt, in whichever of the usual ways they are written.

OpenAI's `{"role", "content"}` (content: a text, text parts, or nothing beside tool calls), ShareGPT's `{"from", "value"}`, and
transcripts of turns after "\\n\\nHuman:" and "\\n\\nAssistant:". Other keys of a message are kept as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.errors import InputError
from rlaif.keys import plain
from rlaif.rows import MENDABLE, kind_of
from rlaif.types import Message

_ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
} | dict(zip(_ROLES, _ROLES, strict=True))
"""What ShareGPT's `from` and its like stand for."""
_TEXT_PARTS = ("text", "input_text", "output_text")
TOOL_CALLS = ("tool_calls", "function_call")
_FLAT = (str, int, bool, type(None))
_TURN = re.compile(r"\n\n(Human|Assistant):")


def messages_of(where: str, prompt: Any, name: str = "prompt") -> tuple[Message, ...]:
    """The messages that a policy can answer: of a text, or of a list. Raises InputError if they do not end with the user's."""
    if isinstance(prompt, str):
        if type(prompt) is str and prompt.strip() and encodable(prompt):  # as most are
            return ({"role": "user", "content": prompt},)
        prompt = [{"role": "user", "content": prompt}]
    return answerable(where, conversation(where, prompt, name), name)


def answerable(where: str, messages: Sequence[Message], name: str = "prompt") -> tuple[Message, ...]:
    """The messages, if the last one is a user's or a tool's. Raises InputError."""
    if messages[-1]["role"] not in ("user", "tool"):
        raise InputError(f"{where}: `{name}` ends with a message of the {messages[-1]['role']}; it must end with the user's")
    if not messages[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty")
    if not all(encodable(m["content"] if len(m) == 2 else json.dumps(m, ensure_ascii=False)) for m in messages):
        raise InputError(f"{where}: the prompt holds half a surrogate pair, which is no text{MENDABLE}")
    return tuple(messages)


def conversation(where: str, given: Any, name: str) -> list[Message]:
    """All messages of a list, each with a role and a text. Raises InputError."""
    if not isinstance(given, (list, tuple)) or not given:
        raise InputError(f"{where}: `{name}` must be a text or a list of messages, got {kind_of(given)}")
    return [_message(where, message, name) for message in given]


def _message(where: str, message: Any, name: str) -> Message:
    if not isinstance(message, (dict, Mapping)):
        raise InputError(f"{where}: a message of `{name}` must be an object with `role` and `content`, got {kind_of(message)}")
    told = {str(k): plainly(v) for k, v in message.items() if v is not None}
    if "role" not in told and "from" in told:
        speaker = told.pop("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise InputError(f"{where}: a message of `{name}` is from {speaker!r}; there are {', '.join(SPEAKERS)}")
        told = {"role": SPEAKERS[speaker], "content": told.pop("value", None), **told}
    if told.get("role") not in _ROLES:
        raise InputError(f"{where}: a message of `{name}` needs a `role` out of {', '.join(_ROLES)}")
    content = told.get("content")
    if type(content) is not str:
        content = _text_of(where, content, name, calls=any(call in told for call in TOOL_CALLS))
        told = {"role": told.pop("role"), "content": content, **{k: v for k, v in told.items() if k != "content"}}
    return told


def _text_of(where: str, content: Any, name: str, *, calls: bool) -> str:
    """The text of a message's content: itself, its text parts line by line, or "" beside tool calls."""
    if content is None and calls:
        return ""
    if isinstance(content, str):
        return str(content)
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: a message of `{name}` needs a text as `content`, got {kind_of(content)}")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise InputError(f"{where}: the `content` of a message of `{name}` has a part of type {kind!r}; only text is read")
        texts.append(text)
    return "\n".join(texts)


def unanswered(messages: list[Message]) -> list[Message]:
    """The messages without the assistant's at the end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def is_transcript(text: Any) -> bool:
    """Whether it is turns of "Human:" and "Assistant:", the human's first."""
    return isinstance(text, str) and ("\n\n" + text.lstrip("\n")).startswith("\n\nHuman:")


def transcript(where: str, text: str, name: str) -> list[Message]:
    """The turns of a transcript; those of one speaker in a row are one, an empty one of the assistant's at the end is kept.

    Raises InputError if it is none.
    """
    if not is_transcript(text):
        raise InputError(
            f"{where}: `{name}` is a text without a `prompt`, and no transcript that begins with 'Human:': where the prompt"
            " ends cannot be known; give `prompt` as a column (--prompt-field)"
        )
    _, *turns = _TURN.split("\n\n" + text.lstrip("\n"))
    found: list[Message] = []
    for speaker, said in zip(turns[::2], turns[1::2], strict=True):
        role = SPEAKERS[speaker.lower()]
        if found and found[-1]["role"] == role:
            found[-1]["content"] = f"{found[-1]['content']}\n\n{said.strip()}".strip()
        else:
            found.append({"role": role, "content": said.strip()})
    return found


def encodable(text: str) -> bool:
    """Whether it is text: no half of a surrogate pair is in it."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plainly(value: Any) -> Any:
    """The value as JSON can hold it."""
    return value if type(value) in _FLAT else plain(value)
