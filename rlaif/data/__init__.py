"""Reading what the user brings: prompts, and candidates that already exist.

Everything is checked before anything is spent: the first row that is wrong is named by file and line, and nothing of the
file is used. Lines end at "\n" alone: U+2028 and its like are text. Memory does not grow with the number of rows.

On request a row that only repeats an earlier one is left out, and what is no text in a row (bytes that are not UTF-8, halves
of surrogate pairs) becomes U+FFFD instead of a refusal; how many rows that concerns is said once they are read. Every row
becomes a prompt, or is counted as left out for a reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rlaif.data.candidates import CONTRADICTED, DIFFERENT_PROMPTS, LEFT_OUT, comparison
from rlaif.data.columns import Columns, find
from rlaif.data.ids import Answer, Ids
from rlaif.data.messages import plainly
from rlaif.data.prompts import ANSWERED, prompt_of
from rlaif.errors import InputError
from rlaif.rows import Mender, kind_of, rows
from rlaif.templates import example, is_file
from rlaif.types import Candidate, Prompt

__all__ = ["Columns", "file_of", "read_candidates", "read_prompts"]

log = logging.getLogger("rlaif")

DUPLICATE = "duplicate"
_USUAL = Columns()
_NONE: list[Answer] = []


def read_prompts(
    source: str | Iterable[Any],
    *,
    system: str | None = None,
    limit: int | None = None,
    dedupe: bool = False,
    replace: bool = False,
    columns: Columns = _USUAL,
    left_out: Counter[str] | None = None,
) -> Iterator[Prompt]:
    """The prompts of a file, a dataset or Python values, in order, `limit` at most. Raises InputError at the first wrong row.

    `dedupe` leaves out prompts with the messages of an earlier one, `replace` puts U+FFFD where a text is none, `columns` says
    which columns hold what. `left_out` counts the rows that are left out, by reason.
    """
    for prompt, _ in _read(source, system, limit, dedupe, replace, columns, left_out, judged=False):
        yield prompt


def read_candidates(
    source: str | Iterable[Any],
    *,
    system: str | None = None,
    limit: int | None = None,
    dedupe: bool = False,
    replace: bool = False,
    columns: Columns = _USUAL,
    left_out: Counter[str] | None = None,
) -> Iterator[tuple[Prompt, list[Candidate]]]:
    """Prompts with answers that already exist, as `read_prompts`; `rlaif.data.candidates` lists the forms.

    To `dedupe`, the same prompt with other candidates is another comparison, and stays.
    """
    return _read(source, system, limit, dedupe, replace, columns, left_out, judged=True)


def _read(
    source: str | Iterable[Any],
    system: str | None,
    limit: int | None,
    dedupe: bool,
    replace: bool,
    columns: Columns,
    left_out: Counter[str] | None,
    *,
    judged: bool,
) -> Iterator[tuple[Prompt, list[Candidate]]]:
    kept, form = 0, None
    out, notes = Counter[str]() if left_out is None else left_out, Counter[str]()
    mender = Mender()
    with closing(Ids()) as ids:
        for where, row in rows(source, lossy=replace, empty=columns.empty):
            if replace:
                row = mender.mend(where, row)
            own = row.get("id") if columns.id is None else find(where, row, columns.id, "--id-field")
            answers, reason = _NONE, None
            try:
                if judged:
                    read = comparison(where, row, columns, notes)
                    messages, used, answers, reason = read.messages, read.hidden, read.answers, read.left_out
                    if form != read.form:
                        _same_form(where, form, read.form)
                        form = read.form
                else:
                    messages, used = prompt_of(where, row, columns, notes)
                    reason = None if messages else DIFFERENT_PROMPTS
                reference, fields = _others(where, row, columns, used)
            except RecursionError:
                raise InputError(f"{where}: a column is nested too deeply") from None
            asked = messages
            if system is not None and messages and messages[0]["role"] != "system":
                asked = ({"role": "system", "content": system}, *messages)
            if dedupe and reason is None and ids.repeats(asked, answers):
                reason = DUPLICATE
            if reason is not None:
                if own is not None:
                    ids.take(where, own, messages)
                if not out[reason] and reason in LEFT_OUT:
                    log.warning("%s: %s; such rows are left out", where, LEFT_OUT[reason])
                out[reason] += 1
                continue
            name = ids.take(where, own, messages)
            candidates = [Candidate(f"{name}/{k}", text, by, score=score) for k, (text, by, score) in enumerate(answers)]
            yield Prompt(name, asked, reference, fields, kept), candidates
            kept += 1
            if kept == limit:
                break
    if not kept:
        why = "".join(f"; left out as {words}: {out[reason]}" for reason, words in LEFT_OUT.items() if out[reason])
        raise InputError(f"{_shown(source)} holds no {'candidates' if judged else 'prompts'}{why}")
    _tell(out, notes, mender)


def _tell(left_out: Counter[str], notes: Counter[str], mender: Mender) -> None:
    """Says what was done to rows, once they are read."""
    if left_out[DUPLICATE]:
        log.warning("rows left out, as they only repeat an earlier one (--dedupe): %d", left_out[DUPLICATE])
    for reason, words in LEFT_OUT.items():
        if left_out[reason]:
            log.warning("rows left out, as %s: %d", words, left_out[reason])
    if notes[ANSWERED]:
        log.warning("chat logs that end with an answer, which was left out: %d", notes[ANSWERED])
    if notes[CONTRADICTED]:
        log.warning("rows whose overall_score contradicts their ratings, which are taken as the label: %d", notes[CONTRADICTED])
    if mender.rows:
        log.warning("rows in which U+FFFD stands for what is no text (--replace): %d", mender.rows)


def _same_form(where: str, before: str | None, now: str) -> None:
    if before is not None:
        raise InputError(f"{where}: the row is one of {now}, those before it are {before}: judge them apart")


def _others(where: str, row: Mapping[str, Any], columns: Columns, used: tuple[str, ...]) -> tuple[str | None, dict[str, Any]]:
    """(the row's reference answer, the columns that are left).

    A reference that is no text or number stays a column (one a turn, say), unless it was named.
    """
    hidden = (columns.id or "id", *used)
    if columns.reference is None:
        reference = row.get("reference")
        if reference is not None:
            if isinstance(reference, (str, int, float)):
                hidden += ("reference",)
            else:
                reference = None
    else:
        reference = find(where, row, columns.reference, "--reference-field")
        hidden += (columns.reference,)
        if reference is not None and not isinstance(reference, (str, int, float)):
            raise InputError(
                f"{where}: the column {columns.reference!r} (--reference-field) must hold texts or numbers,"
                f" got {kind_of(reference)}"
            )
    fields = {str(k): v if type(v) is str else plainly(v) for k, v in row.items() if k not in hidden}
    return None if reference is None else str(reference), fields


def file_of(source: str | Iterable[Any]) -> Path | None:
    """The one file that holds the rows of `source`, None where there is no such file."""
    if not isinstance(source, (str, Path)):
        return None
    path = example(str(source))
    return path if is_file(path) else None


def _shown(source: str | Iterable[Any]) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else "the input"
