"""JSON read strictly: no repeated keys, no NaN, no number that would be rounded, no half of a surrogate pair."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from rlaif.errors import InputError
from rlaif.rows.mend import MENDABLE

_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')


def quick_json(raw: bytes) -> Any:
    """What `strict_json` would say, or None where it has to be asked: orjson takes repeated keys, and rounds long numbers.

    Every key stands before a colon. So a text with no more of `":` than the value has keys repeats none.
    """
    try:
        value = orjson.loads(raw)
        keys = _keys([value])
    except (ValueError, RecursionError):
        return None
    return value if raw.count(b":") == keys or len(_KEY_ENDS.findall(raw)) == keys else None


def _keys(value: dict[str, Any] | list[Any]) -> int:
    """How many keys `value` and the objects in it have. Raises ValueError for a number that may have been rounded."""
    found, items = (len(value), value.values()) if isinstance(value, dict) else (0, value)
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            found += _keys(item)
        elif kind is float and abs(item) >= 2.0**63:
            raise ValueError
    return found


def strict_json(where: str, text: str, lossy: bool) -> Any:
    """Strict JSON: no repeated keys, no NaN; unless `lossy`, nothing that is no text. Raises InputError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            twice = next(k for k in found if sum(k == other for other, _ in items) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    def real(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise ValueError(f"{digits[:40]} is larger than any number can be")
        return number

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=real)
        if not lossy and "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: a text holds half a surrogate pair: {error.object[error.start : error.end]!r}{MENDABLE}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, at character {error.pos + 1}") from None
    except ValueError as error:
        reason = "a number has thousands of digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{where}: not valid JSON: {reason}") from None
