"""Messages in a model's chat template, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.errors import CallFailed
from rlaif.types import Message


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    template: str | None,
    generation_prompt: bool,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The messages as token ids; `generation_prompt` opens the assistant's turn. `template` None: the tokenizer's own.

    Raises CallFailed if the template refuses the messages.
    """
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=generation_prompt,
            chat_template=template,
            **(variables or {}),
        )
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise CallFailed("bad_request", f"the chat template refuses the messages: {error}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has the special tokens
    if not ids:
        raise CallFailed("bad_request", "the chat template makes nothing of the messages")
    return ids
