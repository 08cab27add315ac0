"""From stored records to files and numbers: ranking, selection, export, summary. Costs nothing and can be done again.

What is written is a function of the ledger and the configuration: records in input order, the position terms pooled over
all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rlaif import pairs, records
from rlaif.audit import Audit, kl_bound
from rlaif.config import RunConfig
from rlaif.errors import InputError
from rlaif.export import dpo, sft, write_jsonl, write_whole
from rlaif.ledger import Ledger
from rlaif.pairs import Best
from rlaif.ranking import bradley_terry
from rlaif.types import PreferencePair, Prompt, Ranking, Record

FORMATS = ("dpo", "sft")


def rows(directory: Path, form: str, config: RunConfig | None = None) -> Iterator[dict[str, Any]]:
    """The rows of format `form` (dpo or sft) from a run directory's ledger, in input order. Raises InputError."""
    if form not in FORMATS:
        raise InputError(f"format {form!r} is unknown; there are {', '.join(FORMATS)}")
    return _read_rows(Ledger.read(directory), form, config)


def _read_rows(ledger: Ledger, form: str, config: RunConfig | None) -> Iterator[dict[str, Any]]:
    try:
        with ledger.snapshot():
            yield from _rows(_selected(ledger, config or stored_config(ledger), form, Audit()))
    finally:
        ledger.close()


def finish(ledger: Ledger, config: RunConfig, *, write: bool, free: bool) -> dict[str, Any]:
    """The summary of the stored records, but for what only the running process knows. With `write`, the export too.

    `free` says that none of the run's models costs money; of others the price is unknown.
    """
    audit, form = Audit(), format_of(config)
    found = _rows(_selected(ledger, config, form, audit))
    if write:
        write_jsonl(ledger.directory / f"{form}.jsonl", found)
    else:
        for _ in found:
            pass
    spend = ledger.spend()
    summary: dict[str, Any] = {
        "prompts": audit.records,
        "pairs": audit.records - audit.dropped.total(),
        "dropped": dict(sorted(audit.dropped.items())),
        "tokens": {"prompt": spend.prompt_tokens, "completion": spend.completion_tokens},
        "cost_usd": None if spend.unpriced or not free else 0.0,
        **audit.numbers(),
        "failures": audit.failures(),
    }
    if spend.uncounted:
        summary["tokens"]["calls_without_a_count"] = spend.uncounted
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
    return pairs.best_worst(record, _rank([record], config)[0], allow_truncated=config.allow_truncated)


def stored_config(ledger: Ledger) -> RunConfig:
    """The configuration of the directory's last run. Raises InputError if it holds none."""
    text = ledger.meta("config")
    if text is None:
        raise InputError(f"{str(ledger.directory)!r} holds no run that was started: run it again")
    return RunConfig.model_validate(yaml.safe_load(text))


def _selected(ledger: Ledger, config: RunConfig, form: str, audit: Audit) -> Iterator[PreferencePair | Best]:
    """Selections in input order, each record counted in `audit`."""

    def stored() -> Iterator[Record]:
        return (records.load(body) for body in ledger.records(config.limit))

    allow_truncated = config.allow_truncated
    for record, ranking in zip(stored(), _rank(stored(), config), strict=True):
        audit.add(record)
        pair = pairs.best_worst(record, ranking, allow_truncated=allow_truncated)
        if isinstance(pair, PreferencePair):
            audit.add_pair(pair)
        one = pair if form == "dpo" else pairs.best_of_n(record, ranking, allow_truncated=allow_truncated)
        if isinstance(one, str):
            audit.drop(one)
        else:
            yield one


def _rows(selected: Iterable[PreferencePair | Best]) -> Iterator[dict[str, Any]]:
    for one in selected:
        yield sft.row(one) if isinstance(one, Best) else dpo.row(one)


_NO_PROMPT = Prompt("", ())


def _rank(found: Iterable[Record], config: RunConfig) -> Sequence[Ranking]:
    """Rankings of the eligible candidates; texts are dropped as they are read."""
    kept, ids = [], []
    for record in found:
        ids.append([c.id for c in pairs.eligible(record.candidates, allow_truncated=config.allow_truncated)])
        verdicts = tuple(replace(v, reason=None) for v in record.verdicts)
        kept.append(Record(record.ordinal, _NO_PROMPT, (), verdicts))
    return bradley_terry.rank(kept, ids)
