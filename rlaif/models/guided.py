"""Answers held to a list of choices: which servers can do that, and how each is asked.

A server says who it is in its list of models (`owned_by`). Others may ignore such a field silently, so they are not asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

Fields = Callable[[Sequence[str]], dict[str, Any]]


def _vllm(choices: Sequence[str]) -> dict[str, Any]:
    """Both names of the field: `guided_choice` until 0.11, `structured_outputs` since; it ignores the one it does not know."""
    return {"structured_outputs": {"choice": list(choices)}, "guided_choice": list(choices)}


def _sglang(choices: Sequence[str]) -> dict[str, Any]:
    return {"regex": "(" + "|".join(re.escape(choice) for choice in choices) + ")"}


def grammar(choices: Sequence[str]) -> dict[str, Any]:
    """llama.cpp's GBNF."""
    return {"grammar": "root ::= " + " | ".join(json.dumps(choice) for choice in choices)}


_BY_OWNER: dict[str, Fields] = {"vllm": _vllm, "sglang": _sglang, "llamacpp": grammar}


def fields_of(listing: Any) -> Fields | None:
    """How the server with this list of models is asked for one of some choices, None if it cannot be."""
    try:
        owners = {str(model.get("owned_by")).lower() for model in listing["data"]}
    except (TypeError, KeyError, AttributeError):
        return None
    return next((fields for owner, fields in _BY_OWNER.items() if owner in owners), None)
