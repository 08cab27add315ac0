"""What a reply without a verdict is called."""

from __future__ import annotations

from typing import Literal

Kind = Literal["no_verdict", "contradiction", "refusal", "truncated", "out_of_range", "echo", "not_offered"]


class Unreadable(Exception):
    """The reply gives no verdict. `kind` says why in one word, the text in a few.

    no_verdict: nothing in the declared form; contradiction: two different ones; refusal: the reply declines to judge;
    truncated: it was cut before its verdict could be known; out_of_range: a number off the scale; echo: it repeats the
    options instead of deciding; not_offered: it names what was not offered.
    """

    def __init__(self, kind: str, message: str | None = None) -> None:
        super().__init__(kind if message is None else message)
        self.kind = "no_verdict" if message is None else kind


def short(value: str) -> str:
    """The value as a message shows it."""
    return value if len(value) <= 40 else value[:40] + "..."
