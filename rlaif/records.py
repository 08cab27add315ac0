"""Prompts and records as the ledger keeps them: compact JSON, one object each. Fields that are not set are left out.

A prompt's body is canonical: keys are sorted, equal content gives equal bytes. A body that orjson cannot write (integers of
more than 64 bits, deep nesting) is json's and starts with a space; half a surrogate pair, which is no text, becomes "?".

A record opens with the version of the rules by which its candidates were marked as degenerate. One that was made under other
rules, or before there were any, is marked anew when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from rlaif import degenerate
from rlaif.types import Candidate, Message, Prompt, Record, Verdict

_MARKED = tuple(b'%s{"rules":%d,' % (space, degenerate.RULES) for space in (b"", b" "))


def dump(record: Record) -> bytes:
    """The record's candidates, marked as they are, and verdicts; `load` is its inverse."""
    return _encode(
        {
            "rules": degenerate.RULES,
            "candidates": [_candidate(c) for c in record.candidates],
            "verdicts": [_verdict(v) for v in record.verdicts],
        }
    )


def load(prompt: Prompt, body: bytes) -> Record:
    """The record of `prompt` in `body`."""
    data, known = _decode(body), is_marked(body)
    candidates = [
        Candidate(
            c["id"],
            c["text"],
            c.get("model", ""),
            c.get("finish"),
            c.get("thinking"),
            c.get("error"),
            c.get("score"),
            c.get("degenerate") if known else None,
        )
        for c in data["candidates"]
    ]
    if not known:
        candidates = degenerate.marked(prompt, candidates)
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
            v.get("calls", 1),
        )
        for v in data["verdicts"]
    ]
    return Record(prompt, tuple(candidates), tuple(verdicts))


def is_marked(body: bytes) -> bool:
    """Whether the candidates in a record's body were marked by the rules of today: then `load` makes no use of the prompt."""
    return body.startswith(_MARKED)


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
    if candidate.degenerate is not None:
        body["degenerate"] = candidate.degenerate
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
    if verdict.calls != 1:
        body["calls"] = verdict.calls
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
