"""The formats by name: what each is made from, and its pure function from that to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.errors import InputError
from rlaif.export import dpo, sft

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    `rows` takes, of one prompt, what `takes` says: "pairs", the list of its PreferencePairs, at least one; "best", its Best;
    "ranking", its Record and its Ranking, of every finished prompt. It raises InputError, naming the prompt, where the format
    cannot hold it.
    """

    name: str
    takes: Literal["pairs", "best", "ranking"]
    rows: Callable[..., Iterable[Row]]


FORMATS = {
    form.name: form
    for form in (
        Format("dpo", "pairs", lambda pairs: map(dpo.row, pairs)),
        Format("sft", "best", lambda best: (sft.row(best),)),
    )
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError if there is none."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is unknown; there are {', '.join(FORMATS)}")
    return FORMATS[name]
