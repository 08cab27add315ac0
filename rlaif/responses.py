"""What comes back over the wire, and what it says of itself: error fields, and when to come back."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from rlaif.errors import CallFailed

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `headers` are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No response: unreachable (never sent), or broken, timeout, too_big (perhaps billed), with the `partial` body so far."""

    def __init__(self, message: str, *, kind: str, partial: bytes = b"") -> None:
        super().__init__(message)
        self.kind, self.partial = kind, partial


class Rejected(CallFailed):
    """The endpoint refuses this request as it is (400, 413, 422): `said` in its own words.

    `param` names the field it complains of, "" if it names none.
    """

    def __init__(self, message: str, said: str, param: str) -> None:
        super().__init__("bad_request", message)
        self.said, self.param = said, param


class ErrorInside(CallFailed):
    """A response with status 200 that holds an error object, to be treated like `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("error_inside", message)
        self.status = status


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal asks to wait, None if it does not or says nothing usable.

    `retry-after-ms`, `retry-after` (seconds or a date), else the longest `x-ratelimit-reset-*` of a limit that is used up.
    A date is held against the response's own `date`: this machine's clock does not matter. One in the past says nothing.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0 <= seconds < math.inf:
            return seconds
    until, now = _unix_time(headers.get("retry-after", "")), _unix_time(headers.get("date", ""))
    if until is not None:
        seconds = until - (time.time() if now is None else now)
        if seconds > 0:
            return seconds
    resets = [
        wait
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "0").strip() in ("0", "")
        and (wait := _duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    ]
    return max(resets, default=None)


def _unix_time(text: str) -> float | None:
    """The moment that an HTTP date names, None if it is none. Without a zone it is UTC, as all HTTP dates are."""
    try:
        date = email.utils.parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def _duration_s(text: str) -> float | None:
    """Seconds of `1s`, `6m0s`, `20ms` or a plain number."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def error_fields(body: bytes, known: Collection[str]) -> tuple[str, str, str]:
    """(code, param, message) of an OpenAI-style error body; the message falls back to the body's beginning.

    Of `code` and `type` the one that is `known` is given, "" if neither is. The message is fit to be shown.
    """
    text = one_line(body[:2000].decode("utf-8", "replace"))[:300]
    try:
        error: Any = json.loads(body)
        if isinstance(error, dict):
            error = error.get("error", error)
        if not isinstance(error, dict):
            return "", "", one_line(str(error)[:2000])[:500]
        codes = [str(error.get(name) or "") for name in ("code", "type")]
        found = next((code for code in codes if code in known), "")
        return found, str(error.get("param") or ""), one_line(str(error.get("message") or "")[:2000])[:500] or text
    except (ValueError, RecursionError):
        return "", "", text or "(empty body)"


def one_line(text: str) -> str:
    """`text` as one line of printable characters: what others say may hold escape sequences that a terminal obeys."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())
