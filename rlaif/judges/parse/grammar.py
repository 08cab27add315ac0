"""A grammar reads a reply: what is said in it is found, what only repeats the instruction is left out, one meaning is left.

Scores are those of the candidates shown, in the order shown, higher is better. A reply without one clear meaning raises
Unreadable, whose kind says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlaif.errors import InputError
from rlaif.judges.parse import disarm, places
from rlaif.judges.parse.declare import KEYS, LONGEST_REFUSAL, OPENS_DECLINING, fields_of
from rlaif.judges.parse.echo import Said, without_listings
from rlaif.judges.parse.unreadable import Unreadable, short
from rlaif.keys import digest
from rlaif.templates import find, read_yaml

_SPACE = (
    " \t\r\n\u0120\u010a\u2581"  # some servers show tokens as the vocabulary spells them: space, newline, SentencePiece's space
)
_MARKS = "*_`\"'#>.:;()- \t\r\n"  # what may stand around a verdict that stands first or last
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_FILTERED = ("content_filter", "content management policy", "safety")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply may say and what it means. `patterns` is empty where the reply is one bare option, a token."""

    kind: Literal["pairwise", "rating", "ranking"]
    patterns: tuple[re.Pattern[str], ...]
    refusals: tuple[re.Pattern[str], ...]
    occurrence: str = "all"
    stands: str = "anywhere"
    means: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    scale: tuple[float, float] = (0.0, 0.0)
    decimals: bool = False
    above: str = ""
    level: str | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, front: Mapping[str, Any], where: str) -> Grammar:
        """The grammar in a template's front matter. Raises InputError naming `where`."""
        return cls(**fields_of(front, f"template {where!r}"))

    @property
    def options(self) -> tuple[str, ...]:
        """What may be said: the options, the whole numbers of the scale, or the names that a ranking may hold."""
        if self.kind == "rating":
            low, high = self.scale
            return tuple(str(n) for n in range(math.ceil(low), math.floor(high) + 1))
        return tuple(self.means) if self.kind == "pairwise" else self.names

    @property
    def digest(self) -> str:
        """Changes with anything that changes how a reply is read."""
        patterns = [[[p.pattern, p.flags] for p in ps] for ps in (self.patterns, self.refusals)]
        return digest([self.kind, patterns, self.occurrence, self.stands, list(map(list, self.means.items())), *self._rest()])

    def _rest(self) -> list[Any]:
        return [list(self.scale), self.decimals, self.above, self.level, list(self.names)]

    def read(self, text: str, shown: int = 2, finish: str | None = None) -> tuple[float, ...]:
        """Scores of the candidates shown, in the order shown. Raises Unreadable.

        Pairwise: (1, 0), (0, 1) or a tie's (0.5, 0.5). Rating: the number. Ranking: for each of the `shown`, how many
        others it is above, an equal counting half. `finish` is why the reply ended, where that is known: one that was cut
        ("length") is read only if its verdict stands first.
        """
        if self.kind == "ranking" and shown > len(self.names):
            raise InputError(f"a ranking of {shown} needs {shown} names; the grammar has {len(self.names)}")
        said = self._said(text)
        if not said:
            raise self._nothing(text, finish)
        if finish == "length" and self.stands != "first" and self.patterns:
            raise Unreadable("truncated", "the reply was cut, and what it says so far need not be its verdict")
        if self.occurrence == "all" and len(text) <= LONGEST_REFUSAL and OPENS_DECLINING.match(text):
            raise Unreadable("contradiction", "the reply declines to judge and gives a verdict all the same")
        if self.above == "places":
            return places.scores([_name_and_place(value) for value, _, _ in said], self.names[:shown])
        decided = said if self.occurrence == "listed" else without_listings(said, text, self._listings(), self._key)
        if not decided and (self.occurrence != "all" or self._count(said) > 1):
            raise Unreadable("echo", "the reply lists the options and decides for none")
        return self._meaning(self._one(said if self.occurrence == "all" else decided), shown)

    def disarm(self, text: str) -> str:
        """The text with a space in each match of the grammar's patterns: nothing in it can be read as a verdict.

        It is unchanged where nothing matches, and where the verdict is a bare token. What was disarmed stays as it is.
        """
        return disarm.disarm(text, self.patterns)

    def lists_all(self, first_token: Mapping[str, float]) -> bool:
        """True if every option is among the tokens."""
        return {token.strip(_SPACE) for token in first_token}.issuperset(self.options)

    def read_token(self, first_token: Mapping[str, float]) -> tuple[tuple[float, ...], float]:
        """(scores, mass): what the first token's probabilities say, and how much of the whole the options held.

        Probabilities are summed over the tokens that strip to an option. Pairwise: the probabilities of (first, second); an
        option that is not listed gets the most that it can have: no more than the least likely token listed, and than what
        is left. Rating: the expected score over the options listed, as G-Eval's (Liu et al. 2023). Raises Unreadable if
        no option is listed, and for a ranking.
        """
        held = dict.fromkeys(() if self.kind == "ranking" else self.options, 0.0)
        seen: set[str] = set()
        for token, probability in first_token.items():
            option = token.strip(_SPACE)
            if option in held:
                held[option] += probability
                seen.add(option)
        mass = sum(held.values())
        if mass <= 0.0:
            raise Unreadable("no_verdict", "none of the options is among the likely tokens")
        if self.kind == "rating":
            low, high = self.scale
            return (min(max(sum(float(option) * p for option, p in held.items()) / mass, low), high),), mass
        unlisted = max(0.0, min(*first_token.values(), 1.0 - sum(first_token.values())))
        held |= dict.fromkeys(held.keys() - seen, unlisted)
        first = sum(p * self.means[option][0] for option, p in held.items()) / sum(held.values())
        return (first, 1.0 - first), mass

    # What is said, and what of it counts

    def _said(self, text: str) -> list[Said]:
        """(value, start, end) of what the first pattern that matches finds, where it may stand."""
        if not self.patterns:
            bare = text.strip()
            return [(bare, 0, len(text))] if bare in self.options else []
        for pattern in self.patterns:
            if self.above == "places":
                found = [(f"{m['name']}\0{m['place']}", *m.span()) for m in pattern.finditer(text) if m["name"] and m["place"]]
            else:
                found = [(self._folded(m[1], pattern), *m.span()) for m in pattern.finditer(text) if m[1] is not None]
            if found := self._in_place(found, text):
                return found
        return []

    def _in_place(self, found: list[Said], text: str) -> list[Said]:
        if self.stands == "first":
            return [f for f in found[:1] if not text[: f[1]].strip(_MARKS)]
        if self.stands == "last":
            return [f for f in found[-1:] if not text[f[2] :].strip(_MARKS)]
        return found

    def _folded(self, value: str, pattern: re.Pattern[str]) -> str:
        """The option that `value` is but for its case, where the pattern takes either."""
        if pattern.flags & re.IGNORECASE and value not in self.means and len(value) < 100:
            return next((option for option in self.means if option.lower() == value.lower()), value)
        return value

    def _nothing(self, text: str, finish: str | None) -> Unreadable:
        if finish == "length":
            return Unreadable("truncated", "no verdict in the reply, which was cut at its token limit")
        if finish in _FILTERED:
            return Unreadable("refusal", f"no verdict in the reply, which a filter ended ({finish})")
        if any(pattern.search(text) for pattern in self.refusals):
            return Unreadable("refusal", "no verdict in the reply, which declines to judge")
        return Unreadable("no_verdict", "no verdict in the reply")

    def _listings(self) -> list[tuple[str, ...]]:
        """How an instruction would list the options."""
        options = () if self.kind == "ranking" else self.options
        return [options, (options[0], options[-1])] if self.kind == "rating" and options else [options]

    def _key(self, value: str) -> str:
        """Equal for what says the same."""
        if self.kind == "rating" and _NUMBER.fullmatch(value.strip()) and len(value) < 20:
            return f"{float(value):g}"
        return "".join(value.split()) if self.kind == "ranking" else value

    def _count(self, said: Sequence[Said]) -> int:
        return len({self._key(value) for value, _, _ in said})

    def _one(self, said: Sequence[Said]) -> str:
        """The value that counts."""
        if self.occurrence == "listed":
            values = {value for value, _, _ in said}
            return next((option for option in self.means if option in values), said[0][0])
        if self.occurrence == "all" and self._count(said) > 1:
            found = sorted({short(value) for value, _, _ in said})
            raise Unreadable("contradiction", f"contradictory verdicts {', '.join(found[:9])}")
        return said[-1 if self.occurrence == "last" else 0][0]

    # What it means

    def _meaning(self, value: str, shown: int) -> tuple[float, ...]:
        if self.kind == "ranking":
            return places.scores(places.of_list(value, self.above, self.level), self.names[:shown])
        if self.kind == "rating":
            return (self._number(value.strip()),)
        if value not in self.means:
            raise Unreadable("not_offered", f"{short(value)!r} was not offered")
        return self.means[value]

    def _number(self, value: str) -> float:
        if not _NUMBER.fullmatch(value):
            raise Unreadable("not_offered", f"{short(value)!r} is no number")
        number, (low, high) = float(value), self.scale
        if not low <= number <= high:
            raise Unreadable("out_of_range", f"{short(value)} is not between {low:g} and {high:g}")
        if not self.decimals and not number.is_integer():
            raise Unreadable("out_of_range", f"{short(value)} is no whole number")
        return number


def load_grammar(name: str) -> Grammar:
    """The grammar of `prompts/grammars/NAME.yaml`, or of a YAML file by its path. Raises InputError naming the file."""
    path = find("prompts/grammars", name, ".yaml")
    front = read_yaml(path)
    if not isinstance(front, dict):
        raise InputError(f"{path}: a grammar's file must hold settings, one `name: value` a line")
    unknown = sorted(str(key) for key in front if key not in KEYS)
    if unknown:
        raise InputError(f"{path}: {', '.join(map(repr, unknown))} is no setting of a grammar; there are {', '.join(KEYS)}")
    return Grammar(**fields_of(front, str(path)))


def _name_and_place(value: str) -> tuple[str, str]:
    name, _, place = value.rpartition("\0")
    return name, place
