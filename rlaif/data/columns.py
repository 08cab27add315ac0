"""Which columns hold what, where the user says so by name.

A name is a column's, or leads into nested ones by dots (`reward_model.ground_truth`, `turns.0`). A named column that is not
there is an error with those that are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.errors import InputError
from rlaif.rows import kind_of


@dataclass(frozen=True, slots=True)
class Columns:
    """The names that were given; None or nothing: the usual ones. `prompt` may be several, `instruction+input`.

    `responses` are columns with an answer each, `candidates` is one with a list of them. `gold`: rows must be gold pairs.
    """

    prompt: str | None = None
    reference: str | None = None
    id: str | None = None
    candidates: str | None = None
    responses: tuple[str, ...] = ()
    gold: bool = False

    @property
    def empty(self) -> dict[str, str | None]:
        """What empty cells stand for that are not to be left out: in these columns, "" is an empty text."""
        texts = ["prompt", "chosen", "rejected", "response_a", "response_b", *self.responses]
        if self.prompt is not None:
            texts += [self.prompt, *self.prompt.split("+")]
        found: dict[str, str | None] = {name: None for name in (self.reference, self.id, self.candidates) if name is not None}
        return found | dict.fromkeys(texts, "")


def find(where: str, row: Mapping[str, Any], name: str, option: str) -> Any:
    """The value of the column `name`. Raises InputError naming the `option` and what there is instead."""
    if name in row:
        return row[name]
    value, before = row, ""
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise InputError(f"{where}: there is no column {name!r} ({option}); {_there(value, before)}")
        before += f"{part}."
    return value


def _there(value: Any, before: str) -> str:
    if isinstance(value, Mapping):
        return f"there are {names(before + str(key) for key in value)}"
    if isinstance(value, (list, tuple)):
        return f"there are {len(value)} items in `{before[:-1]}`, counted from 0"
    return f"`{before[:-1]}` is {kind_of(value)}"


def names(found: Any) -> str:
    """Names of columns in a message, not too many."""
    listed = [str(name) for name in found]
    return ", ".join(listed[:30]) + (", ..." if len(listed) > 30 else "") if listed else "none"


def joined(where: str, row: Mapping[str, Any], name: str) -> Any:
    """The value of the prompt's column; the texts of several (`A+B`) with an empty line between, empty ones left out."""
    if name in row or "+" not in name:
        return find(where, row, name, "--prompt-field")
    parts = []
    for one in name.split("+"):
        part = find(where, row, one, "--prompt-field")
        if part is not None and not isinstance(part, str):
            raise InputError(f"{where}: the column {one!r} (--prompt-field) must be a text to be joined, got {kind_of(part)}")
        parts.append(part or "")
    return "\n\n".join(part for part in parts if part.strip())
