"""From stored records to files and numbers: ranking, selection, export, summary. Costs nothing and can be done again.

What is written is a function of the ledger and the configuration: records in input order, the position terms pooled over
all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlaif import pairs, records
from rlaif.audit import Audit, kl_bound
from rlaif.config import RunConfig
from rlaif.errors import InputError
from rlaif.export import write_jsonl, write_whole
from rlaif.export.formats import FORMATS, Format, format_named
from rlaif.ledger import Ledger
from rlaif.ranking import bradley_terry
from rlaif.ranking.games import Ranked
from rlaif.types import PreferencePair, Prompt, Ranking, Record

Row = tuple[int, str, bytes, bytes]
"""A finished record as the ledger yields it: the prompt's place, id and body, and the record's body."""

Stored = Callable[[], Iterable[Row]]
"""Reads the finished records from the first one on, in input order; may be called several times."""


def rows(directory: Path, form: str, config: RunConfig | None = None) -> Iterator[dict[str, Any]]:
    """The rows of format `form` from a run directory's ledger, in input order. Raises InputError."""
    found = format_named(form)
    return _read_rows(Ledger.read(directory), found, config)


def _read_rows(ledger: Ledger, form: Format, config: RunConfig | None) -> Iterator[dict[str, Any]]:
    try:
        with ledger.snapshot():
            config = config or stored_config(ledger)
            yield from _rows(partial(ledger.records, config.limit), config, form, Audit())
    finally:
        ledger.close()


def finish(ledger: Ledger, config: RunConfig, *, write: bool, spend: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of the stored records, but for what only the running process knows. With `write`, the export too.

    `spend` are the keys that the ledger's calls account for: `tokens` and `cost_usd`.
    """
    audit, form = Audit(), format_of(config)
    found = _rows(partial(ledger.records, config.limit), config, FORMATS[form], audit)
    if write:
        write_jsonl(ledger.directory / f"{form}.jsonl", found)
    else:
        for _ in found:
            pass
    summary: dict[str, Any] = {
        "prompts": audit.records,
        "pairs": audit.records - audit.dropped.total(),
        "dropped": dict(sorted(audit.dropped.items())),
        "degenerate": audit.degenerate(),
        **spend,
        **audit.numbers(),
        "failures": audit.failures(),
    }
    if form == "sft":
        n = config.n * len(config.policy)
        summary["best_of_n"] = {"n": n, "kl_bound_nats": round(kl_bound(n), 6)}
    return summary


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    write_whole(directory / "summary.json", (json.dumps(summary, ensure_ascii=False, indent=2) + "\n").encode())


def format_of(config: RunConfig) -> str:
    """The format that a command writes."""
    return "sft" if config.command == "best-of-n" else "dpo"


def pair_of(record: Record, config: RunConfig) -> PreferencePair | str:
    """The pair of one record by itself, its position terms not pooled with others', or the reason for none."""
    allowed = _allowed(config)
    (ranking,) = bradley_terry.rank([record], [_eligible(record, allowed)])
    return pairs.best_worst(record, ranking, **allowed)


def stored_config(ledger: Ledger) -> RunConfig:
    """The configuration of the directory's last run. Raises InputError if it holds none."""
    text = ledger.meta("config")
    if text is None:
        raise InputError(f"{str(ledger.directory)!r} holds no run that was started: run it again")
    return RunConfig.model_validate(yaml.safe_load(text))


def ranked(directory: Path, config: RunConfig) -> Iterator[tuple[Record, Ranking]]:
    """The finished records of a run directory in input order, each with its ranking. Raises InputError."""
    with closing(Ledger.read(directory)) as ledger, ledger.snapshot():
        yield from _rankings(partial(ledger.records, config.limit), _allowed(config))


def _rankings(stored: Stored, allowed: Mapping[str, bool]) -> Iterator[tuple[Record, Ranking]]:
    """Records in input order, each with its ranking. Reads the records twice and holds none of them."""
    with bradley_terry.fit(_ranked(stored(), allowed)) as fitted:
        for row, strengths in zip(stored(), fitted.strengths, strict=True):
            record = _record(*row)
            yield record, bradley_terry.ranking(_eligible(record, allowed), record.verdicts, strengths)


def _rows(stored: Stored, config: RunConfig, form: Format, audit: Audit) -> Iterator[dict[str, Any]]:
    """The format's rows in input order, each record counted in `audit`."""
    allowed = _allowed(config)
    for record, ranking in _rankings(stored, allowed):
        audit.add(record)
        pair = pairs.best_worst(record, ranking, **allowed)
        if isinstance(pair, PreferencePair):
            audit.add_pair(pair)
        if form.takes == "ranking":
            yield from form.rows(record, ranking)
            continue
        one = pair if form.takes == "pairs" else pairs.best_of_n(record, ranking, **allowed)
        if isinstance(one, str):
            audit.drop(one)
        else:
            yield from form.rows([one] if form.takes == "pairs" else one)


_NO_PROMPT = Prompt("", ())


def _ranked(rows: Iterable[Row], allowed: Mapping[str, bool]) -> Iterator[Ranked]:
    """What the fit needs of each record."""
    for row in rows:
        body = row[3]
        record = records.load(_NO_PROMPT, body) if records.is_marked(body) else _record(*row)
        yield _eligible(record, allowed), record.verdicts


def _record(ordinal: int, id: str, prompt: bytes, body: bytes) -> Record:
    return records.load(records.load_prompt(ordinal, id, prompt)[0], body)


def _allowed(config: RunConfig) -> dict[str, bool]:
    """Which kinds of answers `pairs` lets in."""
    return {"allow_truncated": config.allow_truncated, "allow_degenerate": config.allow_degenerate}


def _eligible(record: Record, allowed: Mapping[str, bool]) -> list[str]:
    return [c.id for c in pairs.eligible(record.candidates, **allowed)]
