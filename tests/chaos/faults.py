"""What can go wrong, by name. Each failure is a row: what is said instead of a completion, or how a completion is changed
or spoilt, and how the reply goes over the wire.

A completion that is changed, spoilt or cut off was worked out all the same: it is billed. What is said instead is not.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from json import dumps
from typing import Any

from chaos.wire import CUTS

MIB = 2**20
ABSENT = object()
"""As a new value: takes the field out."""
Completion = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong. Without a `body`, it is the completion that goes wrong."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Callable[[str | None], bytes] | None = None
    """What is said instead; a function is given the request's authorization."""
    wait: tuple[str, float] | None = None
    """How the client is told to wait (one of `rates.SAYS`), and how long."""
    change: Callable[[Completion], Completion] = lambda completion: completion
    more: int = 0
    """So many choices more than asked for."""
    spoil: Callable[[bytes], bytes] | None = None
    """What becomes of the completion's bytes."""
    intact: bool = True
    """Whether the completion can still be read after that."""
    sent: str = "whole"
    """whole, or one of `wire.CUTS` or `wire.SENT`."""

    def said(self, authorization: str | None) -> bytes:
        """What is said instead of a completion."""
        return self.body(authorization) if callable(self.body) else self.body or b""


def error(
    status: int,
    text: str,
    headers: dict[str, str] | None = None,
    *,
    wait: tuple[str, float] | None = None,
    **more: Any,
) -> Fault:
    """An error object as its status says, or inside a 200."""
    return Fault(status, headers or {}, dumps({"error": {"message": text} | more}).encode(), wait)


def put(path: str, value: Any, completion: Completion) -> None:
    """Sets what is at `path`, where `*` is every one of a list; `ABSENT` takes it out. What is not there stays so."""
    *way, last = path.split(".")
    places: list[Any] = [completion]
    for step in way:
        inner = (place if step == "*" else [place.get(step)] for place in places)
        places = [found for group in inner for found in group if found is not None]
    for place in places:
        if value is ABSENT:
            place.pop(last, None)
        else:
            place[last] = value


def _putting(changes: Iterable[tuple[str, Any]]) -> Callable[[Completion], Completion]:
    def change(completion: Completion) -> Completion:
        for path, value in changes:
            put(path, value, completion)
        return completion

    return change


def _reversed(completion: Completion) -> Completion:
    return completion | {"choices": completion["choices"][::-1]}


@cache
def _bomb() -> bytes:
    return gzip.compress(b" " * (80 * MIB), 1)


SLOW_DOWN = "Slow down."
_QUOTA = "You exceeded your current quota, please check your plan and billing details."
_INVALID = "invalid_request_error"

# Said instead of a completion
REFUSALS: dict[str, Fault] = {
    "auth": error(401, "Incorrect API key provided.", code="invalid_api_key"),
    "forbidden": error(403, "You may not do this."),
    "model": error(404, "The model does not exist.", code="model_not_found"),
    "quota": error(429, "You exceeded your current quota.", type="insufficient_quota", code="insufficient_quota"),
    "quota_hard_limit": error(429, "Billing hard limit has been reached.", type=_INVALID, code="billing_hard_limit_reached"),
    "quota_inactive": error(429, "Your account is not active.", type="billing_not_active", code="billing_not_active"),
    "quota_funds": error(429, "Your balance is too low.", code="insufficient_funds"),
    "quota_type_only": error(429, _QUOTA, type="insufficient_quota", code=None),
    "too_long": error(400, "This model's maximum context length is 8 tokens.", code="context_length_exceeded"),
    "policy": error(400, "This request was rejected by the safety system.", code="content_policy_violation"),
    "surrogate": error(400, "This is no text: \ud800."),
    "unfinished": error(400, "Could not finish the message because max_tokens was reached. Please try a higher max_tokens."),
    "busy": error(429, "Too many requests."),
    "server_error": error(500, "The server had an error."),
    "error_text": Fault(500, {"Content-Type": "text/plain"}, b"upstream connect error or disconnect/reset before headers"),
    "error_empty": Fault(500, {}, b""),
    "error_list": Fault(400, {}, b'[{"error": {"message": "This is a list."}}]'),
    "error_string": Fault(400, {}, b'{"error": "This is no object."}'),
    **{
        f"status_{status}": error(status, text)
        for status, text in {
            402: "Payment required: add credits to go on.",
            408: "Request timeout.",
            409: "The request conflicts with another one.",
            413: "The request is too large.",
            422: "The request cannot be processed.",
            425: "Too early.",
            429: "Too many requests.",
            500: "The server had an error.",
            502: "Bad gateway.",
            503: "The engine is currently overloaded.",
            504: "Gateway timeout.",
            529: "Overloaded.",
        }.items()
    },
}

# When to come back
WAITS: dict[str, Fault] = {
    "rate_limit": error(429, SLOW_DOWN, wait=("exact", 0.05)),
    "hold": error(429, SLOW_DOWN, wait=("exact", 0.5)),
    "hold_20": error(429, SLOW_DOWN, wait=("exact", 20)),
    "hold_503": error(503, "The engine is currently overloaded.", wait=("exact", 0.5)),
    "hold_ms": error(429, SLOW_DOWN, wait=("ms", 0.5)),
    "hold_seconds": error(429, SLOW_DOWN, wait=("seconds", 1)),
    "hold_date": error(429, SLOW_DOWN, wait=("date", 1)),
    "hold_naive_date": error(429, SLOW_DOWN, wait=("naive_date", 1)),
    "hold_reset_headers": error(429, SLOW_DOWN, wait=("reset_headers", 0.5)),
    "hold_6h": error(429, "Come back later.", wait=("seconds", 6 * 3600)),
    "hold_6h_ms": error(429, "Come back later.", wait=("ms", 6 * 3600)),
    "hold_6h_date": error(429, "Come back later.", wait=("date", 6 * 3600)),
    "hold_6h_503": error(503, "Down for maintenance.", wait=("seconds", 6 * 3600)),
    "long_hold": error(429, "Come back tomorrow.", wait=("seconds", 86400)),
    **{
        f"hold_{name}": error(429, SLOW_DOWN, {"Retry-After": value})
        for name, value in {
            "0": "0",
            "past": "Wed, 21 Oct 2015 07:28:00 GMT",
            "year_100000": "Wed, 21 Oct 100000 07:28:00 GMT",
            "garbage": "soon",
            "empty": "",
            "negative": "-3",
            "nan": "nan",
            "infinite": "inf",
            "huge": "9" * 400,
        }.items()
    },
}

# A body that is no completion, with status 200
BODIES: dict[str, Fault] = {
    "html": Fault(200, {"Content-Type": "text/html"}, b"<html><body>502 Bad Gateway</body></html>"),
    "cut_json": Fault(200, {}, b'{"id": "x", "choices": [{"index": 0, "message": {"role": "assist'),
    "whitespace": Fault(200, {}, b"\n" * 400),
    "empty_body": Fault(200, {}, b""),
    "json_null": Fault(200, {}, b"null"),
    "json_list": Fault(200, {}, b"[]"),
    "json_text": Fault(200, {}, b'"Of course!"'),
    "json_deep": Fault(200, {}, b"[" * 200_000),
    "event_stream": Fault(200, {"Content-Type": "text/event-stream"}, b'data: {"choices": []}\n\ndata: [DONE]\n\n'),
    "no_choices": Fault(200, {}, b'{"choices": []}'),
    "null_choices": Fault(200, {}, b'{"choices": null}'),
    "null_content": Fault(200, {}, b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null}}]}'),
    "bomb": Fault(200, {"Content-Encoding": "gzip"}, lambda _: _bomb()),
    "over_cap": Fault(200, {}, lambda _: b" " * (80 * MIB)),
    "error_inside": error(200, "The upstream is overloaded.", code=502),
    "error_inside_429": error(200, SLOW_DOWN, code=429),
    "error_inside_500": error(200, "Internal error.", code=500),
    "error_inside_text_429": error(200, SLOW_DOWN, code="429"),
    "error_inside_rate_limit": error(200, SLOW_DOWN, type="requests", code="rate_limit_exceeded"),
    "error_inside_server_error": error(200, "Internal error.", type="server_error", code="server_error"),
    "error_inside_quota": error(200, _QUOTA, type="insufficient_quota", code="insufficient_quota"),
    "error_inside_auth": error(200, "Incorrect API key provided.", code="invalid_api_key"),
    "error_inside_too_long": error(200, "The maximum context length is 8 tokens.", code="context_length_exceeded"),
    "error_inside_unknown": error(200, "It went wrong.", code="it_went_wrong"),
    "error_inside_no_code": error(200, "It went wrong."),
    "error_inside_string": Fault(200, {}, b'{"error": "It went wrong."}'),
}

_CHOICE, _MESSAGE, _TOKENS = "choices.*", "choices.*.message", "choices.*.logprobs.content.*"
_TOOL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}

# Fields of the completion that are otherwise
CHANGES: dict[str, list[tuple[str, Any]]] = {
    "choices_null": [("choices", None)],
    "choices_missing": [("choices", ABSENT)],
    "choices_empty": [("choices", [])],
    "choices_text": [("choices", "Of course!")],
    "choices_of_null": [("choices", [None])],
    "index_duplicate": [(f"{_CHOICE}.index", 0)],
    "index_missing": [(f"{_CHOICE}.index", ABSENT)],
    "index_text": [(f"{_CHOICE}.index", "0")],
    "index_negative": [(f"{_CHOICE}.index", -1)],
    "message_null": [(_MESSAGE, None)],
    "message_missing": [(_MESSAGE, ABSENT)],
    "content_null": [(f"{_MESSAGE}.content", None)],
    "content_missing": [(f"{_MESSAGE}.content", ABSENT)],
    "content_empty": [(f"{_MESSAGE}.content", "")],
    "content_blank": [(f"{_MESSAGE}.content", " \n\t")],
    "content_number": [(f"{_MESSAGE}.content", 7)],
    "content_parts": [(f"{_MESSAGE}.content", [{"type": "text", "text": "In parts."}])],
    "content_surrogate": [(f"{_MESSAGE}.content", "Half a pair: \ud83d.")],
    "content_nul": [(f"{_MESSAGE}.content", "With a NUL: \0.")],
    "tool_call": [
        (f"{_MESSAGE}.content", None),
        (f"{_MESSAGE}.tool_calls", [_TOOL]),
        (f"{_CHOICE}.finish_reason", "tool_calls"),
    ],
    "reasoning_only": [(f"{_MESSAGE}.content", None), (f"{_MESSAGE}.reasoning_content", "Let me think about it.")],
    "refusal": [(f"{_MESSAGE}.content", None), (f"{_MESSAGE}.refusal", "I cannot help with that.")],
    "refusal_with_content": [(f"{_MESSAGE}.refusal", "I cannot help with that.")],
    "finish_content_filter": [(f"{_CHOICE}.finish_reason", "content_filter")],
    "finish_filtered_empty": [(f"{_MESSAGE}.content", ""), (f"{_CHOICE}.finish_reason", "content_filter")],
    "finish_length": [(f"{_CHOICE}.finish_reason", "length")],
    "finish_unknown": [(f"{_CHOICE}.finish_reason", "eos_token")],
    "finish_null": [(f"{_CHOICE}.finish_reason", None)],
    "finish_missing": [(f"{_CHOICE}.finish_reason", ABSENT)],
    "id_duplicate": [("id", "chatcmpl-1")],
    "id_missing": [("id", ABSENT)],
    "model_other": [("model", "another-model")],
    "model_missing": [("model", ABSENT)],
    "usage_missing": [("usage", ABSENT)],
    "usage_null": [("usage", None)],
    "usage_empty": [("usage", {})],
    "usage_text": [("usage.prompt_tokens", "many")],
    "usage_negative": [("usage.prompt_tokens", -7), ("usage.completion_tokens", -1)],
    "usage_inconsistent": [("usage.total_tokens", 1)],
    "usage_zero": [("usage.prompt_tokens", 0), ("usage.completion_tokens", 0), ("usage.total_tokens", 0)],
    "usage_nan": [("usage.prompt_tokens", math.nan)],
    "usage_fraction": [("usage.prompt_tokens", 1.5)],
    "usage_huge": [
        *((f"usage.{name}_tokens", 10**30) for name in ("prompt", "completion")),
        ("usage.total_tokens", 2 * 10**30),
    ],
    "usage_cached": [("usage.prompt_tokens_details", {"cached_tokens": 1})],
    "logprobs_missing": [(f"{_CHOICE}.logprobs", ABSENT)],
    "logprobs_null": [(f"{_CHOICE}.logprobs", None)],
    "logprobs_empty": [(f"{_CHOICE}.logprobs.content", [])],
    "logprobs_no_top": [(f"{_TOKENS}.top_logprobs", [])],
    **{
        f"logprobs_{name}": [(f"{_TOKENS}.logprob", value), (f"{_TOKENS}.top_logprobs.*.logprob", value)]
        for name, value in {
            "nan": math.nan,
            "positive": 0.5,
            "minus_infinity": -math.inf,
            "minus_9999": -9999.0,
            "nulls": None,
            "text": "-0.1",
        }.items()
    },
}

# The completion's bytes, and how they are sent
SPOILT: dict[str, Fault] = {
    "choices_reversed": Fault(change=_reversed),
    "choices_more": Fault(more=1),
    "choices_fewer": Fault(more=-1),
    "truncated": Fault(spoil=lambda raw: raw[: len(raw) // 2], intact=False),
    "bad_utf8": Fault(spoil=lambda raw: raw.replace(b'"content": "', b'"content": "\xff\xc3', 1), intact=False),
    "twice": Fault(spoil=lambda raw: raw + raw, intact=False),
    "padded": Fault(spoil=lambda raw: b"\n" * 400 + raw),
    "byte_order_mark": Fault(spoil=lambda raw: b"\xef\xbb\xbf" + raw),
    "text_plain": Fault(headers={"Content-Type": "text/plain"}),
    "gzip": Fault(headers={"Content-Encoding": "gzip"}, spoil=lambda raw: gzip.compress(raw, 1, mtime=0)),
    "gzip_cut": Fault(
        headers={"Content-Encoding": "gzip"}, spoil=lambda raw: gzip.compress(raw, 1, mtime=0)[:-12], intact=False
    ),
    "gzip_not": Fault(headers={"Content-Encoding": "gzip"}, intact=False),
    "reset": Fault(body=b"", sent="reset"),
    "close": Fault(body=b"", sent="close"),
    "never": Fault(body=b"", sent="never"),
    "drip": Fault(body=b"", sent="drip"),
    "reset_after_work": Fault(sent="reset"),
    "slow": Fault(sent="slow"),
    **{name: Fault(sent=name) for name in CUTS if name not in ("reset", "close")},
}

NONE = Fault()
"""Nothing goes wrong: the completion is sent whole."""
FAILURES: dict[str, Fault] = (
    REFUSALS | WAITS | BODIES | {name: Fault(change=_putting(changes)) for name, changes in CHANGES.items()} | SPOILT
)


def failure(name: str) -> Fault:
    """The failure of that name; raises ValueError if there is none."""
    if name.startswith("echo_") and name[5:].isdecimal():
        status = int(name[5:])
        return Fault(status, {}, lambda key: dumps({"error": {"message": f"Cannot use {key} for this."}}).encode())
    if name not in FAILURES:
        raise ValueError(f"failure {name!r}: there is none of this name; known are {', '.join(FAILURES)} and echo_STATUS")
    return FAILURES[name]
