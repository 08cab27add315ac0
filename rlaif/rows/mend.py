"""Bytes and halves of surrogate pairs that are no text: replaced by U+FFFD where that is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlaif.errors import InputError

MENDABLE = " (--replace puts U+FFFD there)"
_NO_TEXT = re.compile("[\ud800-\udfff]")


class Mender:
    """Puts U+FFFD for each byte that is not UTF-8 (as `surrogateescape` reads it) and each half of a surrogate pair.

    `rows` is how many it was done to.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._found = 0

    def mend(self, where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row, in which every text is one."""
        self._found = 0
        try:
            mended: Mapping[str, Any] = self._value(row)
        except RecursionError:
            raise InputError(f"{where}: a column is nested too deeply") from None
        except KeyError as error:
            raise InputError(
                f"{where}: the key {error.args[0]!r} stands twice, once U+FFFD stands for what is no text"
            ) from None
        self.rows += self._found > 0
        return mended

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            if value.isascii():
                return value
            text, found = _NO_TEXT.subn("\ufffd", value)
            self._found += found
            return text
        if isinstance(value, Mapping):
            mended = dict[Any, Any]()
            for key, item in value.items():
                name = self._value(key)
                if name in mended:
                    raise KeyError(name)
                mended[name] = self._value(item)
            return mended
        return [self._value(item) for item in value] if isinstance(value, (list, tuple)) else value
