"""Chat-completion bodies, as OpenAI-compatible endpoints write them: building requests and reading responses.

Thinking is kept apart from the answer: `reasoning_content` or `reasoning` of the message, or a leading `<think>` block.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from rlaif.errors import CallFailed
from rlaif.responses import ErrorInside
from rlaif.types import Choice, Message, Reply, Request

_OPEN, _CLOSE = "<think>", "</think>"
_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
    "insufficient_quota": 402,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
}


def read(body: bytes) -> Reply:
    """The parsed response. Raises CallFailed (`bad_body`, `empty`) or ErrorInside if it is no answer."""
    try:
        data = parse(body)
    except (ValueError, RecursionError):
        raise CallFailed("bad_body", f"the response is no JSON: {body[:80]!r}") from None
    if not isinstance(data, dict):
        raise CallFailed("bad_body", f"the response is no JSON object: {body[:80]!r}")
    raw = data.get("choices")
    if not raw and data.get("error"):
        raise ErrorInside(_status(data["error"]), str(data["error"])[:300])
    if not isinstance(raw, list):
        raise CallFailed("bad_body", f"the response has no list of choices: {body[:80]!r}")
    if not raw:
        raise CallFailed("empty", "the response has an empty list of choices")
    if not all(isinstance(c, dict) for c in raw):
        raise CallFailed("bad_body", "a choice of the response is no object")
    raw = sorted(raw, key=lambda c: c["index"] if isinstance(c.get("index"), int) else 0)
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        choices=tuple(_choice(c) for c in raw),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        id=_text(data.get("id")),
        model=_text(data.get("model")),
    )


def parse(body: bytes) -> Any:
    """The JSON value in `body`. Raises ValueError or RecursionError."""
    try:
        return orjson.loads(body)
    except ValueError:
        return json.loads(body)  # takes what orjson is too strict for: NaN, half of a surrogate pair


def write(model: str, choices: list[dict[str, Any]], *, prompt_tokens: int | None, completion_tokens: int | None) -> bytes:
    """A response body for models that are no HTTP endpoint; `read` is its inverse."""
    completion: dict[str, Any] = {
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": i, **choice} for i, choice in enumerate(choices)],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }
    return orjson.dumps(completion)


def request_body(model: str, request: Request, extra: dict[str, Any]) -> dict[str, Any]:
    """The request as an endpoint expects it; fields at their default are left out, `extra` wins over the rest."""
    body: dict[str, Any] = {"model": model, "messages": list(request.messages)}
    if request.n > 1:
        body["n"] = request.n
    for name in ("temperature", "max_tokens", "seed"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    return body | extra


def split_thinking(text: str) -> tuple[str, str | None]:
    """(answer, thinking) of a text that may open with a `<think>` block; an unclosed block is all thinking."""
    if "think>" not in text:
        return text, None
    opened = text.lstrip()
    if opened.startswith(_OPEN):
        thinking, closed, answer = opened[len(_OPEN) :].partition(_CLOSE)
        return (answer.lstrip() if closed else ""), thinking.strip()
    if _CLOSE in text and _OPEN not in text:  # the chat template has opened the block in the prompt
        thinking, _, answer = text.partition(_CLOSE)
        return answer.lstrip(), thinking.strip()
    return text, None


def _choice(raw: dict[str, Any]) -> Choice:
    message: Message = raw["message"] if isinstance(raw.get("message"), dict) else {}
    finish = raw.get("finish_reason")
    content, refusal = message.get("content"), message.get("refusal")
    thinking = message.get("reasoning_content") or message.get("reasoning") or None
    error = None
    if not isinstance(content, str):
        error = "refused by the endpoint" if isinstance(refusal, str) else "no text in the message"
        content = ""
    text, inner = split_thinking(content)
    if error is None and finish in ("content_filter", "error"):
        error = "stopped by the endpoint's content filter" if finish == "content_filter" else "the endpoint broke off"
    return Choice(
        text=_encodable(text),
        finish=_encodable(finish) if isinstance(finish, str) else None,
        thinking=_encodable(str(thinking or inner)) if thinking or inner else None,
        first_token=_first_token(raw.get("logprobs")),
        error=error,
    )


def _first_token(logprobs: Any) -> dict[str, float] | None:
    """Token -> probability of the alternatives of the first token. None where there are none or one is no number."""
    try:
        first = logprobs["content"][0]
        listed = first.get("top_logprobs") or first.get("top_probs") or [first]
        found: dict[str, float] = {}
        for entry in listed:
            value = float(entry["prob"]) if "prob" in entry else math.exp(min(float(entry["logprob"]), 1.0))
            if not 0.0 <= value <= 1.001:  # a probability above one by more than rounding is none, nor is NaN
                return None
            value = min(value, 1.0)
            found[str(entry["token"])] = found.get(str(entry["token"]), 0.0) + value
        return found
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _encodable(text: str) -> str:
    """`text` with lone surrogates replaced, so that it can be written as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _status(error: Any) -> int:
    """The HTTP status that an error would have had, by its code or type; 502 where neither says."""
    for name in ("code", "type") if isinstance(error, dict) else ():
        said = str(error.get(name))[:100]
        code = int(said) if said.isdecimal() else _STATUS_OF.get(said, 0)
        if 400 <= code < 600:
            return code
    return 502
