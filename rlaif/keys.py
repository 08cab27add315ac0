"""Content keys: equal content, equal key, on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces, UTF-8. Raises TypeError or ValueError if it is no JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def digest(value: Any, size: int = 16) -> str:
    """BLAKE2b of the canonical form as hexadecimal, `size` bytes long."""
    return hashlib.blake2b(canonical(value), digest_size=size).hexdigest()


def feed(hasher: hashlib.blake2b, *texts: str) -> None:
    """Adds texts to a hash so that no two lists of texts look alike."""
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(raw))
        hasher.update(raw)


def seed_of(*parts: Any) -> int:
    """A 31-bit seed hashed from `parts`; endpoints differ on wider ones."""
    return int(digest(list(parts), 4), 16) & 0x7FFFFFFF


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: what it has no kind for as text, a number that is none as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
