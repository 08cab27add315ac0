"""From stored records to files and numbers: ranking, selection, export, summary. Costs nothing and can be done again.

What is written is a function of the ledger and the configuration: records in input order, the judges' parameters pooled over
all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlaif import accept, calibration, pairs, records, selection
from rlaif.audit import Audit, Choices, kl_bound
from rlaif.config import RunConfig
from rlaif.errors import InputError
from rlaif.export import files, write_jsonl, write_whole
from rlaif.export.formats import Format, format_named
from rlaif.ledger import Ledger
from rlaif.pairs import Best
from rlaif.ranking import bradley_terry
from rlaif.ranking.reading import Ranked
from rlaif.selection import BEST_OF_N, BEST_WORST, Rule
from rlaif.types import PreferencePair, Prompt, Ranking, Record

TARGET_REACHED = "target_reached"
"""Why a prompt has no row in a run that was to stop at so many accepted answers."""

Row = tuple[int, str, bytes, bytes]
"""A finished record as the ledger yields it: the prompt's place, id and body, and the record's body."""

Stored = Callable[[], Iterable[Row]]
"""Reads the finished records from the first one on, in input order; may be called several times."""


def rows(directory: Path, form: str, config: RunConfig | None = None, *, select: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of format `form` from a run directory's ledger, in input order, by the rule `select`. Raises InputError."""
    return _read_rows(Ledger.read(directory), _Export.of(form, select), config)


def _read_rows(ledger: Ledger, export: _Export, config: RunConfig | None) -> Iterator[dict[str, Any]]:
    with closing(ledger), ledger.snapshot():
        config = config or stored_config(ledger)
        yield from export.by(config).rows(partial(ledger.records, config.limit), config)


def export(
    directory: Path, form: str, out: Path, *, select: str | None = None, calibration: str | None = None
) -> dict[str, Any]:
    """Writes what is finished of a run to a file in format `form`, and beside it, in FILE.summary.json, what that came to.

    Returns that summary: every prompt of the run has a row, or a reason in `dropped`, which for a prompt that has no record yet
    is `unfinished`. With `calibration`, a file of maps, probabilities go through the judge's. Raises InputError.
    """
    asked = _Export.of(form, select)
    with closing(Ledger.read(directory)) as ledger, ledger.snapshot():
        config = stored_config(ledger)
        if calibration is not None:
            if asked.form.takes != "pairs":
                raise InputError(
                    f"--calibration maps the probabilities of pairs, and the format {form!r} has none: leave it out"
                )
            config = config.model_copy(update={"calibration": calibration})
        export = asked.by(config, ledger.meta("rubric") or None)
        prompts = min(ledger.prompts(), config.limit or ledger.prompts())
        written = files.write(out, export.rows(partial(ledger.records, config.limit), config), export.form)
    counts = export.choices
    dropped = counts.dropped
    if counts.records < prompts:
        reached = config.target is not None and counts.accepted >= config.target
        dropped[TARGET_REACHED if reached else "unfinished"] += prompts - counts.records
    summary = {
        "format": form,
        "rows": written,
        "prompts": prompts,
        "dropped": dict(sorted(dropped.items())),
        **export.numbers(),
    }
    _write_json(_summary_of(out), summary)
    return summary


def _summary_of(file: Path) -> Path:
    """Where the summary of an exported file stands."""
    return file.with_name(f"{file.name}.summary.json")


def finish(ledger: Ledger, config: RunConfig, *, write: bool, spend: Mapping[str, Any], unneeded: int = 0) -> dict[str, Any]:
    """The summary of the stored records, but for what only the running process knows. With `write`, the export too.

    `spend` are the keys that the ledger's calls account for: `tokens` and `cost_usd`. `unneeded` prompts have no record as the
    run's target was reached without them.
    """
    audit, export = Audit(), _Export.of(format_of(config), None).by(config)
    found = export.rows(partial(ledger.records, config.limit), config, audit)
    if write:
        file = ledger.directory / f"{format_of(config)}.jsonl"
        write_jsonl(file, found)
        _summary_of(file).unlink(missing_ok=True)  # of another export to this place: summary.json speaks of this one
    else:
        for _ in found:
            pass
    choices = export.choices
    if unneeded:
        choices.dropped[TARGET_REACHED] += unneeded
    summary: dict[str, Any] = {
        "prompts": choices.records + unneeded,
        "pairs": choices.made,
        "dropped": dict(sorted(choices.dropped.items())),
        "degenerate": audit.degenerate(),
        **spend,
        **audit.numbers(),
        "longer_chosen_rate": choices.longer_chosen(),
        "audit": export.trust(audit),
        "selection": export.numbers(),
        "failures": audit.failures(),
    }
    if config.accept is not None:
        accepted = {"rule": config.accept, "target": config.target, "accepted": choices.accepted}
        summary["accept"] = accepted | {"samples": audit.candidates}
    elif config.command == "best-of-n":
        n = config.n * len(config.policy)
        summary["best_of_n"] = {"n": n, "kl_bound_nats": round(kl_bound(n), 6)}
    return summary


def examine(directory: Path) -> dict[str, Any]:
    """What the finished records of a run directory, finished or not, say of its judge, by the run's own rule; buys nothing.

    `audit` is that of summary.json; beside it the `command`, how many `prompts` there are and are `finished`, the `pairs`, why
    prompts were `dropped`, `degenerate` answers and `failures`. Raises InputError.
    """
    with closing(Ledger.read(directory)) as ledger, ledger.snapshot():
        config = stored_config(ledger)
        audit, export = Audit(), _Export.of(format_of(config), None).by(config)
        for _ in export.rows(partial(ledger.records, config.limit), config, audit):
            pass
        prompts = min(ledger.prompts(), config.limit or ledger.prompts())
    return {
        "command": config.command,
        "prompts": prompts,
        "finished": export.choices.records,
        "pairs": export.choices.made,
        "dropped": dict(sorted(export.choices.dropped.items())),
        "degenerate": audit.degenerate(),
        **audit.numbers(),
        "audit": export.trust(audit),
        "failures": audit.failures(),
    }


def count_accepted(ledger: Ledger, config: RunConfig) -> int:
    """How many finished records have an accepted answer."""
    rule = accept.parse(config.accept or "")
    with ledger.snapshot():
        return sum(
            bool(accept.accepted(rule, records.load(_NO_PROMPT, row[3]).verdicts)) for row in ledger.records(config.limit)
        )


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    _write_json(directory / "summary.json", summary)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def format_of(config: RunConfig) -> str:
    """The format that a command writes."""
    return "sft" if config.command == "best-of-n" else "dpo"


def pairs_of(record: Record, config: RunConfig) -> Sequence[PreferencePair]:
    """The pairs of one record by itself, its position terms not pooled with others'."""
    allowed = _allowed(config)
    (ranking,) = bradley_terry.rank([record], [_eligible(record, allowed)])
    rule = BEST_WORST if config.select is None else selection.parse(config.select)
    found = selection.select(rule, record, ranking, seed=config.seed, **_allowed(config))
    return (found if config.calibration is None else calibration.load(config.calibration).map(found)).pairs


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
        for row, found in zip(stored(), fitted.posteriors, strict=True):
            record = _record(*row)
            yield record, bradley_terry.ranking(_eligible(record, allowed), record.verdicts, found)


@dataclass(frozen=True)
class _Export:
    """A format, the rule that gives it its pairs or answers (None: it takes every record), and what came of it so far.

    `rubric` is that of the run's judges, by which a calibration is known to be theirs.
    """

    form: Format
    rule: Rule | None
    rubric: str | None = None
    choices: Choices = field(default_factory=Choices)

    @classmethod
    def of(cls, form: str, select: str | None) -> _Export:
        """The export that the names stand for. Raises InputError if there is none, or if they do not go together."""
        found, rule = format_named(form), None if select is None else selection.parse(select)
        if rule is not None and found.takes != _takes(rule):
            takes = {
                "pairs": "a rule for pairs",
                "best": f"the rule {BEST_OF_N}",
                "ranking": "every finished prompt, by no rule",
            }
            raise InputError(
                f"the selection rule {select!r} does not go with the format {form!r}, which takes {takes[found.takes]}"
            )
        return cls(found, rule)

    def by(self, config: RunConfig, rubric: str | None = None) -> _Export:
        """The same, by the run's own rule where none was named and that one fits."""
        takes = self.form.takes
        if self.rule is not None or takes == "ranking":
            return replace(self, rubric=rubric)
        own = None if config.select is None else selection.parse(config.select)
        if own is None or _takes(own) != takes:
            own = BEST_WORST if takes == "pairs" else selection.parse(BEST_OF_N)
        return replace(self, rule=own, rubric=rubric)

    def numbers(self) -> dict[str, Any]:
        """What the rule took and dropped."""
        return {} if self.rule is None else self.choices.numbers(self.rule)

    def trust(self, audit: Audit) -> dict[str, Any]:
        """Whether the judge can be trusted, by its verdicts and by the rule's own rows."""
        return audit.bias.numbers() | ({} if self.rule is None else self.choices.trust(self.rule))

    def rows(self, stored: Stored, config: RunConfig, audit: Audit | None = None) -> Iterator[dict[str, Any]]:
        """The rows in input order; each record is counted in `choices`, and in `audit`."""
        allowed, form, choices, rule = _allowed(config), self.form, self.choices, self.rule
        maps = None if config.calibration is None or form.takes != "pairs" else calibration.load(config.calibration)
        accepting = None if config.accept is None else accept.parse(config.accept)
        for record, ranking in _rankings(stored, allowed):
            if audit is not None:
                audit.add(record)
            accepted = None if accepting is None else accept.accepted(accepting, record.verdicts)
            choices.accepted += bool(accepted)
            if rule is None:
                choices.add_row()
                yield from form.rows(record, ranking)
                continue
            by = BEST_WORST if form.takes == "best" else rule
            chosen = selection.select(by, record, ranking, seed=config.seed, **allowed)
            if maps is not None:
                chosen = maps.map(chosen, self.rubric)
            if form.takes == "pairs":
                choices.add(chosen)
                if chosen.pairs:
                    yield from form.rows(chosen.pairs)
                continue
            best = selection.best(rule, record, ranking, accepted=accepted, **allowed)
            if isinstance(best, Best) and config.target is not None and choices.made >= config.target:
                best = TARGET_REACHED
            choices.add_best(best, chosen.lengths)
            if isinstance(best, Best):
                yield from form.rows(best)


def _takes(rule: Rule) -> str:
    """What a rule gives, as formats name what they take."""
    return "best" if rule.name == BEST_OF_N else "pairs"


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
