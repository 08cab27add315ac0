"""What is odd about answers that are taken all the same: counted, and said once.

other_model       the response names another model than was asked for; a dated version of it is no other
repeated_id       the response has the id of an earlier one: perhaps it is a copy from a cache
unknown_finish    a choice ends for no reason, or for one that is not known: it counts as complete
"""

from __future__ import annotations

import logging
import re
from collections import Counter

from rlaif.responses import one_line
from rlaif.types import Reply

log = logging.getLogger("rlaif")

_FINISHES = {"stop", "length", "content_filter", "tool_calls", "function_call", "error"}
_REMEMBERED, _SAID = 10_000, 5
_DATED = re.compile(r"[-@:]\d[\d-]*")


class Oddities:
    """Counts of one model's answers, by the words above. Without `served_as`, any model it names is its own."""

    def __init__(self, name: str, served_as: str | None) -> None:
        self.counts: Counter[str] = Counter()
        self._name, self._served_as = name, served_as
        self._ids: dict[str, None] = {}
        self._said: set[str] = set()

    def note(self, reply: Reply) -> None:
        """Looks at one answer."""
        if reply.model is not None and not self._is_own(reply.model):
            self._count("other_model", f"answers as {one_line(reply.model)[:200]!r}")
        if reply.id is not None:
            name = reply.id[:200]
            if name in self._ids:
                self._count("repeated_id", "gives several answers one id, perhaps from a cache: they are taken as they are")
            self._ids[name] = None
            if len(self._ids) > _REMEMBERED:
                del self._ids[next(iter(self._ids))]
        for choice in reply.choices:
            if choice.error is None and choice.finish not in _FINISHES:
                ends = "without a finish_reason" if choice.finish is None else f"with {one_line(choice.finish)[:200]!r}"
                self._count("unknown_finish", f"ends answers {ends}: they count as complete")

    def _is_own(self, model: str) -> bool:
        asked = self._served_as
        return asked is None or model == asked or (model.startswith(asked) and _DATED.fullmatch(model, len(asked)) is not None)

    def _count(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        if what not in self._said and len(self._said) < _SAID:
            self._said.add(what)
            log.warning("%s %s", self._name, what)
