"""What rows have in common: the prompt's messages and tools, an answer, and how sure a label is.

A message keeps all its keys. Tools are the JSON text of a list of schemas: TRL reads it in every trainer, and no reader takes
it apart and fills the gaps between different schemas with nulls, which chat templates would print.
"""

from __future__ import annotations

import json
from typing import Any

from rlaif.errors import InputError
from rlaif.export import number
from rlaif.types import Message, PreferencePair, Prompt

Row = dict[str, Any]


def answer(text: str) -> list[Message]:
    """The text as the assistant's turn."""
    return [{"role": "assistant", "content": text}]


def labels(pair: PreferencePair) -> Row:
    """How sure the pair's label is, and by whom. Raises ValueError for a number that is none."""
    return {
        "score_chosen": number(pair.score_chosen),
        "score_rejected": number(pair.score_rejected),
        "p_chosen": number(pair.p_chosen),
        "p_source": pair.p_source,
        "judge": pair.judge,
        "flip": pair.flip,
    }


def check(pair: PreferencePair) -> None:
    """Raises ValueError if the pair is none: equal or empty texts."""
    chosen, rejected = pair.chosen.text, pair.rejected.text
    if chosen == rejected or not chosen or not rejected or chosen.isspace() or rejected.isspace():
        raise ValueError(f"prompt {pair.prompt.id!r}: chosen and rejected are equal or empty")


def tools_of(prompt: Prompt) -> Row:
    """{"tools": JSON text} where the prompt's row had a column `tools` that names any, else nothing.

    Raises InputError where that column is no list of objects.
    """
    given = prompt.fields.get("tools") if prompt.fields else None
    if not given:
        return {}
    try:
        listed = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        listed = given
    if not listed:
        return {}
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise InputError(
            f"prompt {prompt.id!r}: `tools` must be a list of schemas, or its JSON text; it is {str(given)[:80]!r}"
        )
    return {"tools": given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)}


def plain_text(prompt: Prompt, form: str) -> str:
    """The one user message that the prompt is. Raises InputError if it is anything more, for a format that holds texts."""
    only = prompt.messages[0] if len(prompt.messages) == 1 else {}
    if only.keys() != {"role", "content"} or only["role"] != "user":
        roles = ", ".join(m["role"] if len(m) == 2 else f"{m['role']} with {', '.join(sorted(m)[:4])}" for m in prompt.messages)
        raise _cannot(prompt, form, f"its prompt is more than one user message ({roles})")
    if tools_of(prompt):
        raise _cannot(prompt, form, "it has tools")
    return str(only["content"])


def _cannot(prompt: Prompt, form: str, why: str) -> InputError:
    return InputError(f"prompt {prompt.id!r} cannot be held by format {form!r}: {why}; dpo holds conversations")
