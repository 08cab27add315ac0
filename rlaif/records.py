"""Prompts and records as the ledger keeps them: compact JSON, one object each. Fields that are not set are left out.

A prompt's body is canonical: keys are sorted, equal content gives equal bytes. A body that orjson cannot write (integers of
more than 64 bits, deep nesting) is json's and starts with a space; half a surrogate pair, which is no text, becomes "?".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from rlaif.types import Candidate, Message, Prompt, Record, Verdict


def dump(record: Record) -> bytes:
    """The record's candidates and verdicts; `load` is its inverse."""
    return _encode(
        {"candidates": [_candidate(c) for c in record.candidates], "verdicts": [_verdict(v) for v in record.verdicts]}
    )


def load(prompt: Prompt, body: bytes) -> Record:
    """The record of `prompt` in `body`."""
    data = _decode(body)
    candidates = [
        Candidate(c["id"], c["text"], c.get("model", ""), c.get("finish"), c.get("thinking"), c.get("error"), c.get("score"))
        for c in data["candidates"]
    ]
    verdicts = [
        Verdict(
            v["judge"],
            tuple(v["shown"]),
            tuple(v["scores"]) if "scores" in v else None,
            v["scale"],
            v.get("error"),
            v.get("reason"),
            v.get("principle"),
            v.get("weight", 1.0),
        )
        for v in data["verdicts"]
    ]
    return Record(prompt, tuple(candidates), tuple(verdicts))


def dump_prompt(prompt: Prompt, candidates: Sequence[Candidate] = ()) -> bytes:
    """The prompt but for its id and place, and the candidates that were given with it.

    Raises TypeError if a field of the prompt is no JSON value.
    """
    body: dict[str, Any] = {"messages": prompt.messages}
    if prompt.reference is not None:
        body["reference"] = prompt.reference
    if prompt.fields:
        body["fields"] = dict(prompt.fields)
    if candidates:
        body["candidates"] = [{k: v for k, v in _candidate(c).items() if k in ("text", "model", "score")} for c in candidates]
    return _encode(body, orjson.OPT_SORT_KEYS)


def load_prompt(ordinal: int, id: str, body: bytes) -> tuple[Prompt, list[Candidate]]:
    """The prompt in `body`, and the candidates that were given with it, `id`/0, `id`/1, ..."""
    data = _decode(body)
    prompt = Prompt(id, tuple(map(_message, data["messages"])), data.get("reference"), data.get("fields", {}), ordinal)
    given = enumerate(data.get("candidates", ()))
    return prompt, [Candidate(f"{id}/{k}", c["text"], c.get("model", ""), score=c.get("score")) for k, c in given]


def _candidate(candidate: Candidate) -> dict[str, Any]:
    body: dict[str, Any] = {"id": candidate.id, "text": candidate.text}
    if candidate.model:
        body["model"] = candidate.model
    if candidate.finish is not None:
        body["finish"] = candidate.finish
    if candidate.thinking is not None:
        body["thinking"] = candidate.thinking
    if candidate.error is not None:
        body["error"] = candidate.error
    if candidate.score is not None:
        body["score"] = candidate.score
    return body


def _verdict(verdict: Verdict) -> dict[str, Any]:
    body: dict[str, Any] = {"judge": verdict.judge, "shown": verdict.shown, "scale": verdict.scale}
    if verdict.scores is not None:
        body["scores"] = verdict.scores
    if verdict.error is not None:
        body["error"] = verdict.error
    if verdict.reason is not None:
        body["reason"] = verdict.reason
    if verdict.principle is not None:
        body["principle"] = verdict.principle
    if verdict.weight != 1.0:
        body["weight"] = verdict.weight
    return body


def _message(stored: dict[str, Any]) -> Message:
    """The message as people write it, the role first."""
    return {"role": stored.pop("role"), "content": stored.pop("content"), **stored}


def _encode(body: dict[str, Any], option: int = 0) -> bytes:
    try:
        return orjson.dumps(body, option=option)
    except TypeError:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=bool(option))
        return b" " + text.encode("utf-8", "replace")


def _decode(body: bytes) -> Any:
    return json.loads(body) if body.startswith(b" ") else orjson.loads(body)
