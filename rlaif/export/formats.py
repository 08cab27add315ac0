"""The formats by name: what each is made from, its pure function from that to rows, and the kinds of its columns.

    dpo, dpo-text             DPO: conversations, texts
    reward, reward-implicit   a reward model, with margins: the prompt apart, or within both conversations
    kto                       KTO: answers one by one, desirable or not
    sft, sft-messages         SFT on the best of n: prompt and completion, or one conversation
    listwise                  all candidates with ranks and scores
    records                   all that was bought, nothing selected

A row says nothing of a column `tools` where its prompt has none; every other column stands in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from rlaif.errors import InputError
from rlaif.export import dpo, kto, listwise, raw, reward, sft
from rlaif.export.parts import Row

Kind = Literal["text", "number", "count", "flag", "messages", "json", "answers", "candidates", "verdicts"]
Columns = dict[str, Kind]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    `rows` takes, of one prompt, what `takes` says: "pairs", the list of its PreferencePairs, at least one; "best", its Best;
    "ranking", its Record and its Ranking, of every finished prompt. It raises InputError, naming the prompt, where the format
    cannot hold it. `columns` says what may stand in a row, for files that declare it.
    """

    name: str
    takes: Literal["pairs", "best", "ranking"]
    rows: Callable[..., Iterable[Row]]
    columns: Columns = field(default_factory=dict)


_ID: Columns = {"id": "text"}
_PROMPT: Columns = {"id": "text", "prompt": "messages"}
_BOTH: Columns = {"chosen": "messages", "rejected": "messages"}
_TEXTS: Columns = {"prompt": "text", "chosen": "text", "rejected": "text"}
_MARGIN: Columns = {"margin": "number"}
_SURE: Columns = {"p_chosen": "number", "p_source": "text", "judge": "text", "flip": "flag"}
_LABELS: Columns = {"score_chosen": "number", "score_rejected": "number", **_SURE}
_LABEL: Columns = {"completion": "messages", "label": "flag", "score": "number", **_SURE, "model": "text"}
_BEST: Columns = {"score": "number", "p_win": "number", "n": "count", "model": "text", "judge": "text"}
_COMPLETION: Columns = {"completion": "messages"}
_MESSAGES: Columns = {"messages": "messages"}
_ANSWERS: Columns = {"answers": "answers", "judge": "text"}
_RECORD: Columns = {"reference": "text", "fields": "json", "candidates": "candidates", "verdicts": "verdicts"}
_TOOLS: Columns = {"tools": "text"}


def _each(row: Callable[..., Row]) -> Callable[..., Iterable[Row]]:
    """A row for each of a prompt's pairs."""
    return lambda pairs: map(row, pairs)


def _one(row: Callable[..., Row]) -> Callable[..., Iterable[Row]]:
    """One row a prompt."""
    return lambda *made: (row(*made),)


FORMATS = {
    form.name: form
    for form in (
        Format("dpo", "pairs", _each(dpo.row), _PROMPT | _BOTH | _LABELS | _TOOLS),
        Format("dpo-text", "pairs", _each(dpo.text_row), _ID | _TEXTS | _LABELS),
        Format("reward", "pairs", _each(reward.row), _PROMPT | _BOTH | _MARGIN | _LABELS | _TOOLS),
        Format("reward-implicit", "pairs", _each(reward.implicit_row), _ID | _BOTH | _MARGIN | _LABELS | _TOOLS),
        Format("kto", "pairs", kto.rows, _PROMPT | _LABEL | _TOOLS),
        Format("sft", "best", _one(sft.row), _PROMPT | _COMPLETION | _BEST | _TOOLS),
        Format("sft-messages", "best", _one(sft.messages_row), _ID | _MESSAGES | _BEST | _TOOLS),
        Format("listwise", "ranking", _one(listwise.row), _PROMPT | _ANSWERS | _TOOLS),
        Format("records", "ranking", _one(lambda record, ranking: raw.row(record)), _ID | _MESSAGES | _RECORD),
    )
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError if there is none."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is unknown; there are {', '.join(FORMATS)}")
    return FORMATS[name]
