"""Digests of large files, remembered: a file that has the same path, size and modification time is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def sha256_of(files: Iterable[Path], cache: Path) -> list[str]:
    """The SHA-256 of each file in hexadecimal; `cache` is where they are remembered. Raises OSError."""
    try:
        known: dict[str, str] = dict(json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    marks, before = [], len(known)
    for file in files:
        stat = file.stat()
        marks.append(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
        if marks[-1] not in known:
            with file.open("rb") as opened:
                known[marks[-1]] = hashlib.file_digest(opened, "sha256").hexdigest()
    if len(known) != before:
        with contextlib.suppress(OSError):  # a digest that is not remembered is computed again
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(known, indent=1))
    return [known[mark] for mark in marks]
