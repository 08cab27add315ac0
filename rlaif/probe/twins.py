"""Twin prompts: the same question with the same two options under opposite biographies.

A row is `{"id", "prompt", "twin", "options": [2 texts], "sycophantic": "(A)" or "(B)", "other", "category"?, "bio"?}`; the two
rows of a twin have equal options, and the sycophantic one, which matches the stated biography, is another one in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.errors import InputError
from rlaif.pairs import normalised
from rlaif.rows import rows

SHIPPED = "prompts/probes/sycophancy.jsonl"
_LETTERS = ("(A)", "(B)")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt: `matching` is the place of the option in `options` that matches the biography."""

    id: str
    prompt: str
    options: tuple[str, str]
    matching: int
    bio: str = ""

    @property
    def listed(self) -> str:
        """The options as such prompts list them at their end."""
        return "\n".join(f" {letter} {option}" for letter, option in zip(_LETTERS, self.options, strict=True))

    @property
    def open_question(self) -> str:
        """The prompt without the list of options at its end: to one who judges answers, their letters are none of these."""
        return self.prompt.removesuffix("\n\nAnswer:").removesuffix(self.listed).rstrip()


@dataclass(frozen=True, slots=True)
class Twin:
    """Two prompts. `question` is what they have in common: twins of one question are not independent of each other."""

    name: str
    one: Asked
    other: Asked
    question: str
    category: str = ""

    @property
    def asked(self) -> tuple[Asked, Asked]:
        """Both prompts."""
        return self.one, self.other


def read(source: str | Iterable[Any]) -> list[Twin]:
    """The twins of a file or of Python values, in the order in which they begin. Raises InputError."""
    found: dict[str, list[tuple[str, Asked, str]]] = {}
    ids: set[str] = set()
    for where, row in rows(source, lossy=False):
        asked = _asked(where, row)
        if asked.id in ids:
            raise InputError(f"{where}: a second row with the id {asked.id!r}")
        ids.add(asked.id)
        found.setdefault(str(_given(where, row, "twin")), []).append((where, asked, str(row.get("category") or "")))
    if not found:
        raise InputError("there are no twin prompts in the input")
    return [_twin(name, of) for name, of in found.items()]


def _twin(name: str, rows: list[tuple[str, Asked, str]]) -> Twin:
    where, one, category = rows[0]
    if len(rows) != 2:
        raise InputError(f"{where}: the twin {name!r} has {len(rows)} rows; it needs the same question under two biographies")
    other = rows[1][1]
    if sorted(one.options) != sorted(other.options):
        raise InputError(f"{rows[1][0]}: the twin {name!r} has other options than in {where}")
    if one.options[one.matching] == other.options[other.matching]:
        raise InputError(f"{rows[1][0]}: both rows of the twin {name!r} name {one.options[one.matching]!r} as sycophantic")
    return Twin(
        name, one, other, _common_end(one.open_question, other.open_question) or "/".join(sorted(one.options)), category
    )


def _common_end(one: str, other: str) -> str:
    """The whole sentences with which both texts end."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    common = one[len(one) - length :]
    begins = [at + len(end) for end in (". ", "! ", "? ", "\n") for at in [common.find(end)] if at >= 0]
    return common if length == min(len(one), len(other)) or not begins else common[min(begins) :]


def _asked(where: str, row: Mapping[str, Any]) -> Asked:
    prompt, options = _given(where, row, "prompt"), _given(where, row, "options")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: `prompt` must be a text, got {str(prompt)[:60]!r}")
    if not isinstance(options, list) or len(options) != 2 or not all(isinstance(o, str) and o.strip() for o in options):
        raise InputError(f"{where}: `options` must be a list of two texts, got {str(options)[:60]!r}")
    if normalised(options[0]).casefold() == normalised(options[1]).casefold():
        raise InputError(f"{where}: the two options say the same: {options[0]!r}")
    letter = _given(where, row, "sycophantic")
    if letter not in _LETTERS:
        raise InputError(f"{where}: `sycophantic` must be (A) or (B), got {str(letter)[:60]!r}")
    if row.get("other") not in (None, *(o for o in _LETTERS if o != letter)):
        raise InputError(f"{where}: `other` must be the option that is not sycophantic, got {str(row['other'])[:60]!r}")
    id = _given(where, row, "id")
    return Asked(str(id), prompt, (options[0], options[1]), _LETTERS.index(letter), str(row.get("bio") or ""))


def _given(where: str, row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise InputError(f"{where}: a twin prompt needs `{name}`; there are {', '.join(map(str, row))}")
    return row[name]
