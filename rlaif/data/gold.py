"""Gold pairs: two answers to a prompt, and which one is known to be better. A judge is measured on them.

    {"id"?, "prompt", "response_a", "response_b", "gold": "A" | "B" | "tie", "category"?}

A row that is not of this form is refused by file and line, and so is a second row with the same id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from rlaif.data import Columns, read_candidates
from rlaif.types import Candidate, Prompt

Winner = Literal["A", "B", "tie"]
_USUAL = Columns()


@dataclass(frozen=True, slots=True)
class GoldPair:
    """A pair with known gold. The ids of `a` and `b` are `ID/0` and `ID/1`; `category` is None where the row has none."""

    prompt: Prompt
    a: Candidate
    b: Candidate
    gold: Winner
    category: str | None = None

    @property
    def id(self) -> str:
        """The prompt's."""
        return self.prompt.id

    @property
    def longer(self) -> Winner:
        """The side with more characters, or tie."""
        one, other = len(self.a.text), len(self.b.text)
        return "tie" if one == other else "A" if one > other else "B"


def read_gold(path: str, *, limit: int | None = None, replace: bool = False, columns: Columns = _USUAL) -> Iterator[GoldPair]:
    """The pairs of a file, in order, `limit` at most; any kind of file that prompts come in. Raises InputError.

    `replace` and `columns` as of `read_prompts`.
    """
    wanted = Columns(columns.prompt, columns.reference, columns.id, gold=True)
    for prompt, (a, b) in read_candidates(path, limit=limit, replace=replace, columns=wanted):
        category = prompt.fields.get("category")
        yield GoldPair(prompt, a, b, cast(Winner, prompt.fields["gold"]), None if category is None else str(category))
