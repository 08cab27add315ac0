"""Records as the ledger keeps them: JSON, one object a record."""

from __future__ import annotations

import json
from typing import Any

from rlaif.types import Candidate, Prompt, Record, Verdict


def dump(record: Record) -> bytes:
    """The record as JSON; `load` is its inverse. Raises TypeError if a field of the prompt is no JSON value."""
    prompt = record.prompt
    body = {
        "ordinal": record.ordinal,
        "prompt": {"id": prompt.id, "messages": prompt.messages, "reference": prompt.reference, "fields": dict(prompt.fields)},
        "candidates": [_fields(c) for c in record.candidates],
        "verdicts": [_fields(v) for v in record.verdicts],
    }
    return json.dumps(body, ensure_ascii=False, default=str).encode("utf-8", "replace")


def load(body: bytes) -> Record:
    """The record in `body`."""
    data: dict[str, Any] = json.loads(body)
    prompt = data["prompt"]
    verdicts = []
    for item in data["verdicts"]:
        scores = item.pop("scores", None)
        verdicts.append(Verdict(shown=tuple(item.pop("shown")), scores=None if scores is None else tuple(scores), **item))
    return Record(
        data["ordinal"],
        Prompt(prompt["id"], tuple(prompt["messages"]), prompt["reference"], prompt["fields"]),
        tuple(Candidate(**item) for item in data["candidates"]),
        tuple(verdicts),
    )


def _fields(value: Candidate | Verdict) -> dict[str, Any]:
    """The fields that are set."""
    return {name: getattr(value, name) for name in value.__slots__ if getattr(value, name) is not None}
