"""Content keys: equal content, equal key, on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces, UTF-8. Raises TypeError or ValueError if it is no JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def digest(value: Any, size: int = 16) -> str:
    """BLAKE2b of the canonical form as hexadecimal, `size` bytes long."""
    return hashlib.blake2b(canonical(value), digest_size=size).hexdigest()


def seed_of(*parts: Any) -> int:
    """A 31-bit seed hashed from `parts`; endpoints differ on wider ones."""
    return int(digest(list(parts), 4), 16) & 0x7FFFFFFF
