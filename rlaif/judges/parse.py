"""Reading verdicts, driven by the grammar that a template declares.

Front matter of a template:

    verdict: token            # the reply is one bare option; its probabilities are read from the log-probabilities
    verdict: '\\[\\[([ABC])\\]\\]'  # a regular expression whose group 1 is the verdict
    occurrence: all           # all (default): every occurrence must agree; first; last
    means: {A: first, B: second, C: tie}

A reply that offers no verdict, contradicts itself or names what was not offered is no verdict: never a tie, never the
nearest match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.errors import InputError

_SPACE = (
    " \t\r\n\u0120\u010a\u2581"  # some servers show tokens as the vocabulary spells them: space, newline, SentencePiece's space
)
_MEANINGS = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}


class Unreadable(Exception):
    """The reply gives no verdict; its text says why in a few words."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply may say and what it means: `means` maps an option to the scores of (first, second)."""

    pattern: re.Pattern[str] | None
    occurrence: str
    means: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, front: Mapping[str, Any], where: str) -> Grammar:
        """The grammar in a template's front matter. Raises InputError naming `where`."""
        verdict, means = front.get("verdict"), front.get("means")
        if not isinstance(verdict, str) or not isinstance(means, dict) or not means:
            raise InputError(f"template {where!r}: the front matter needs `verdict` and `means`")
        for option, meaning in means.items():
            if isinstance(option, bool) or option is None:
                raise InputError(f"template {where!r}: YAML reads an option of `means` as {option!r}; put it in quotes")
            if not isinstance(meaning, str) or meaning not in _MEANINGS:
                raise InputError(f"template {where!r}: `means` may say {', '.join(_MEANINGS)}, not {meaning!r}")
        occurrence = str(front.get("occurrence", "all"))
        if occurrence not in ("all", "first", "last"):
            raise InputError(f"template {where!r}: `occurrence` may be all, first or last, not {occurrence!r}")
        try:
            pattern = None if verdict == "token" else re.compile(verdict)
        except re.error as error:
            raise InputError(f"template {where!r}: `verdict` is no regular expression: {error}") from None
        if pattern is not None and pattern.groups != 1:
            raise InputError(f"template {where!r}: `verdict` needs exactly one group, the option")
        return cls(pattern, occurrence, {str(k): _MEANINGS[v] for k, v in means.items()})

    @property
    def options(self) -> tuple[str, ...]:
        """What may be said."""
        return tuple(self.means)

    def read_text(self, text: str) -> tuple[float, float]:
        """Scores of (first, second): (1, 0), (0, 1) or a tie's (0.5, 0.5). Raises Unreadable."""
        if self.pattern is None:
            found = [text.strip()] if text.strip() in self.means else []
        else:
            found = [m[1] for m in self.pattern.finditer(text) if m[1] is not None]
        if not found:
            raise Unreadable("no verdict in the reply")
        if self.occurrence == "first":
            found = found[:1]
        elif self.occurrence == "last":
            found = found[-1:]
        if len(set(found)) > 1:
            raise Unreadable(f"contradictory verdicts {', '.join(sorted(set(found)))}")
        if found[0] not in self.means:
            raise Unreadable(f"{found[0]!r} was not offered")
        return self.means[found[0]]

    def lists_all(self, first_token: Mapping[str, float]) -> bool:
        """True if every option is among the tokens."""
        return {token.strip(_SPACE) for token in first_token}.issuperset(self.means)

    def read_token(self, first_token: Mapping[str, float]) -> tuple[tuple[float, float], float]:
        """(scores, mass): probabilities of (first, second), and how much of the whole they were before.

        Probabilities are summed over the tokens that strip to an option. An option that is not listed gets the most that
        it can have: no more than the least likely token listed, and than what is left. Raises Unreadable if none is listed.
        """
        held = dict.fromkeys(self.means, 0.0)
        seen: set[str] = set()
        for token, probability in first_token.items():
            option = token.strip(_SPACE)
            if option in held:
                held[option] += probability
                seen.add(option)
        mass = sum(held.values())
        if mass <= 0.0:
            raise Unreadable("none of the options is among the likely tokens")
        unlisted = max(0.0, min(*first_token.values(), 1.0 - sum(first_token.values())))
        held |= dict.fromkeys(held.keys() - seen, unlisted)
        first = sum(p * self.means[option][0] for option, p in held.items()) / sum(held.values())
        return (first, 1.0 - first), mass
