"""A configuration becomes objects, the objects a run, the run its files. The only place that composes.

Left of the records costs money and goes through the ledger; right of them (ranking, selection, export, summary) is
recomputed from the ledger, for no new call.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif import data, engine, pairs, records
from rlaif.aio import iterate
from rlaif.audit import Audit, kl_bound
from rlaif.calls import Client, Tally
from rlaif.config import RunConfig
from rlaif.errors import InputError, StopRun
from rlaif.export import dpo, sft, write_jsonl
from rlaif.judges import JudgePlan, resolve
from rlaif.judges.code import JudgeFunction
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.models import Models, fake, gguf, openai, smollm2
from rlaif.pairs import Best
from rlaif.ranking import bradley_terry, schedule
from rlaif.sampling import Given, Sampler
from rlaif.types import Candidate, Judge, PreferencePair, Prompt, Propose, Ranking, Record

if TYPE_CHECKING:
    import datasets

FORMATS = ("dpo", "sft")
_CHUNK = 1000


@dataclass
class Progress:
    """Where a run stands: finished prompts out of all, calls so far, and tokens that the directory has used."""

    prompts: int = 0
    done: int = 0
    failed: int = 0
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)


class Run:
    """One command on one run directory. Iterate it, sync or async, for records as they finish; once only.

    `summary` is there when it has ended. Raises InputError before anything is spent, StopRun when it has to stop.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        source: str | Path | Iterable[Any] | None = None,
        judges: Sequence[str | JudgeFunction] | None = None,
    ) -> None:
        self.config, self.progress = config, Progress()
        self.summary: dict[str, Any] | None = None
        self._source: str | list[Any] = config.prompts if source is None or isinstance(source, (str, Path)) else list(source)
        self._judges: list[str | JudgeFunction] = list(judges if judges is not None else config.judge)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.config.out).expanduser()

    def __iter__(self) -> Iterator[Record]:
        return iterate(self.__aiter__)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self._execute()

    def pairs(self) -> Iterator[PreferencePair]:
        """Preference pairs as their prompts finish, each from its own prompt's verdicts.

        The files that the run writes at its end pool the position term over all prompts: their `p_chosen` is the better one.
        """
        for record in self:
            pair = _select_pair(self.config, record, _rank([record], self.config)[0])
            if isinstance(pair, PreferencePair):
                yield pair

    def wait(self) -> dict[str, Any]:
        """Runs to the end if it has not, and returns the summary."""
        if self.summary is None:
            for _ in self:
                pass
        assert self.summary is not None
        return self.summary

    def to_dataset(self) -> datasets.Dataset:
        """The rows of the run's file (dpo.jsonl or sft.jsonl) as a Dataset, after running to the end."""
        import datasets

        self.wait()
        return datasets.Dataset.from_list(list(rows(self.directory, _format_of(self.config), self.config)))

    def dry_run(self) -> dict[str, Any]:
        """What the run would ask for if nothing were on file: prompts, and at most how many calls. Spends nothing."""
        config = self.config
        models, plans = self._open()
        sizes = [len(given) if config.command == "judge" else config.n * len(config.policy) for _, given in self._read()]
        clients = [models.open(name) for name in config.policy]
        return {
            "prompts": len(sizes),
            "policy_calls": len(sizes) * sum(math.ceil(config.n / model.max_n) for model in clients),
            "judge_calls": sum(schedule.calls(size, plan.arity) for size in sizes for plan in plans),
            "judges": len(plans),
        }

    def _open(self) -> tuple[Models, list[JudgePlan]]:
        """The models and judges of the configuration, known to be usable. Raises InputError."""
        config = self.config
        plans = [resolve(j, model=self._judge_model(), constitution=config.constitution) for j in self._judges]
        if not plans:
            raise InputError("no judge: give --judge")
        models = Models(
            concurrency=config.concurrency, timeout_s=config.timeout_s, transport=config.transport, extra_body=config.extra_body
        )
        for name in [*config.policy, *(plan.model for plan in plans if plan.model)]:
            models.open(name)
        return models, plans

    async def _execute(self) -> AsyncIterator[Record]:
        config = self.config
        seen = [
            (ordinal, prompt.id, _prompt_digest(prompt, candidates))
            for ordinal, (prompt, candidates) in enumerate(self._read())
        ]
        self.progress.prompts = len(seen)
        models, plans = self._open()
        ledger = Ledger.open(self.directory)
        try:
            facts = self._facts([dict(models.open(name).identity) for name in config.policy])
            _check_unchanged(ledger, facts, seen, limited=config.limit is not None)
            await ledger.begin(
                {name: json.dumps(value) for name, value in facts.items()} | {"config": config.to_yaml()},
                seen,
                forget_failures=config.retry_failed,
            )
            (self.directory / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
            async for record in self._work(ledger, models, plans):
                yield record
        finally:
            await models.close()
            ledger.close()

    async def _work(self, ledger: Ledger, models: Models, plans: Sequence[JudgePlan]) -> AsyncIterator[Record]:
        config, tally = self.config, self.progress.tally
        policies = [Client(models.open(name), ledger, tally, role="policy") for name in config.policy]
        drivers = {p.model: Client(models.open(p.model), ledger, tally, role="judge") for p in plans if p.model}
        judges: list[Judge] = [p.build(drivers[p.model] if p.model else None, ledger, tally) for p in plans]
        given = Given()
        propose: Propose = (
            given
            if config.command == "judge"
            else Sampler(policies, n=config.n, temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed)
        )
        prompts = (
            (ordinal, given.put(*row) if config.command == "judge" else row[0]) for ordinal, row in enumerate(self._read())
        )
        window = max([client.window for client in (*policies, *drivers.values())], default=config.concurrency)
        state, stopped = "done", None
        try:
            async for record in engine.run(prompts, propose, judges, window=window, allow_truncated=config.allow_truncated):
                await ledger.save_record(record.ordinal, records.dump(record))
                self.progress.done += 1
                self.progress.failed += all(c.empty for c in record.candidates)
                yield record
        except StopRun as error:
            state, stopped = "stopped", error
        self.summary = self._finish(ledger, judges, state, stopped)
        if stopped is not None:
            raise stopped

    def _finish(self, ledger: Ledger, judges: Sequence[Judge], state: str, stopped: StopRun | None) -> dict[str, Any]:
        """Writes the export (of a finished run) and summary.json; returns the summary."""
        audit, form = Audit(), _format_of(self.config)
        rows = _rows(_selected(ledger, self.config, audit))
        if state == "done":
            count = write_jsonl(self.directory / f"{form}.jsonl", rows)
        else:  # nothing is written, all is counted
            count = sum(1 for _ in rows)
        summary = _summary(self.config, self.progress, ledger, audit, count)
        summary["judges"] = [judge.name for judge in judges]
        summary["wall_s"] = round(time.monotonic() - self.progress.started, 3)
        summary["state"] = state
        if stopped is not None:
            summary |= {
                "stopped": {"kind": stopped.kind, "message": str(stopped)},
                "unfinished": self.progress.prompts - audit.records,
            }
        text = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
        (self.directory / "summary.json").write_text(text, encoding="utf-8")
        return summary

    def _read(self) -> Iterator[tuple[Prompt, list[Candidate]]]:
        config = self.config
        if config.command == "judge":
            return data.read_candidates(self._source, system=config.system, limit=config.limit)
        return ((p, []) for p in data.read_prompts(self._source, system=config.system, limit=config.limit))

    def _judge_model(self) -> str | None:
        return self.config.judge_model or next(iter(self.config.policy), None)

    def _facts(self, policies: list[dict[str, Any]]) -> dict[str, Any]:
        """What may not change between two runs in one directory."""
        config = self.config
        if config.command == "judge":
            return {"candidates": "given", "system": config.system}
        return {
            "candidates": "sampled",
            "policy": policies,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "system": config.system,
            "seed": config.seed,
        }


def rows(directory: Path, form: str, config: RunConfig | None = None) -> Iterator[dict[str, Any]]:
    """The rows of format `form` (dpo or sft) from a run directory's ledger, in input order. Raises InputError."""
    if form not in FORMATS:
        raise InputError(f"format {form!r} is unknown; there are {', '.join(FORMATS)}")
    ledger = Ledger.read(directory)
    try:
        config = config or stored_config(ledger)
        as_form = config.model_copy(update={"command": "best-of-n" if form == "sft" else "generate"})
        yield from _rows(_selected(ledger, as_form, Audit()))
    finally:
        ledger.close()


def _rows(selected: Iterable[PreferencePair | Best]) -> Iterator[dict[str, Any]]:
    for one in selected:
        yield sft.row(one) if isinstance(one, Best) else dpo.row(one)


def stored_config(ledger: Ledger) -> RunConfig:
    """The configuration of the directory's last run. Raises InputError if it holds none."""
    import yaml

    text = ledger.meta("config")
    if text is None:
        raise InputError(f"{str(ledger.directory)!r} holds no finished start of a run: run it again")
    return RunConfig.model_validate(yaml.safe_load(text))


def _format_of(config: RunConfig) -> str:
    return "sft" if config.command == "best-of-n" else "dpo"


def _selected(ledger: Ledger, config: RunConfig, audit: Audit) -> Iterator[PreferencePair | Best]:
    """Selections in input order, each record counted in `audit`; rankings pool the position term over all of them."""

    def stored() -> Iterator[Record]:
        return (records.load(body) for body in ledger.records(config.limit))

    rankings = _rank(stored(), config)
    for record, ranking in zip(stored(), rankings, strict=True):
        audit.add(record)
        pair = _select_pair(config, record, ranking)
        best: PreferencePair | Best | str = pair
        if _format_of(config) == "sft":
            best = pairs.best_of_n(record, ranking, allow_truncated=config.allow_truncated)
        if isinstance(pair, PreferencePair):
            audit.add_pair(pair)
        if isinstance(best, str):
            audit.drop(best)
        else:
            yield best


def _rank(found: Iterable[Record], config: RunConfig) -> list[Ranking]:
    kept, ids = [], []
    for record in found:
        eligible = [c.id for c in pairs.eligible(record.candidates, allow_truncated=config.allow_truncated)]
        ids.append(eligible)
        kept.append(Record(record.ordinal, record.prompt, (), record.verdicts))
    return bradley_terry.rank(kept, ids)


def _select_pair(config: RunConfig, record: Record, ranking: Ranking) -> PreferencePair | str:
    return pairs.best_worst(record, ranking, allow_truncated=config.allow_truncated)


def _summary(config: RunConfig, progress: Progress, ledger: Ledger, audit: Audit, count: int) -> dict[str, Any]:
    spend, tally = ledger.spend(), progress.tally
    summary: dict[str, Any] = {
        "prompts": audit.records,
        "pairs": count,
        "dropped": dict(sorted(audit.dropped.items())),
        "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused},
        "tokens": {"prompt": spend.prompt_tokens, "completion": spend.completion_tokens},
        "cost_usd": None if spend.unpriced else 0.0,
        **audit.numbers(),
    }
    if config.command == "best-of-n":
        n = config.n * len(config.policy)
        summary["best_of_n"] = {"n": n, "kl_bound_nats": round(kl_bound(n), 6)}
    return summary


def _prompt_digest(prompt: Prompt, candidates: Sequence[Candidate]) -> str:
    given = [[c.text, c.model, c.score] for c in candidates]
    return digest([prompt.id, list(prompt.messages), prompt.reference, given])


def _check_unchanged(ledger: Ledger, facts: dict[str, Any], seen: Sequence[tuple[int, str, str]], *, limited: bool) -> None:
    """Raises InputError with the difference if the directory's earlier run cannot be continued by this one."""
    for name, value in facts.items():
        before = ledger.meta(name)
        if before is not None and json.loads(before) != value:
            raise InputError(
                f"{str(ledger.directory)!r} was made with another {name}: {_short(json.loads(before))}, now "
                f"{_short(value)}; set it back or choose another directory"
            )
    for ordinal, name, mark in ledger.prompts():
        if ordinal >= len(seen):
            if not limited:
                raise InputError(f"prompt {ordinal + 1} ({name!r}) of the earlier run is gone from the input; put it back")
            return
        if seen[ordinal][2] != mark:
            raise InputError(
                f"prompt {ordinal + 1} has changed since the earlier run in {str(ledger.directory)!r}: it was {name!r}, "
                f"now it is {seen[ordinal][1]!r}; add new prompts at the end, or choose another directory"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."


def known_models() -> list[tuple[str, str]]:
    """(name, whether it can be used here) of each kind of model."""
    llama = importlib.util.find_spec("xllamacpp") is not None
    weights = smollm2.find()
    here = f"ready: {weights}" if weights else "not here: rlaif models get smollm2"
    return [
        ("smollm2", here if llama else str(gguf.missing_extra())),
        ("gguf/FILE", "ready" if llama else str(gguf.missing_extra())),
        (
            "openai/NAME[@URL]",
            "OPENAI_API_KEY is set" if os.environ.get("OPENAI_API_KEY") else "local endpoints; elsewhere set OPENAI_API_KEY",
        ),
        *((f"fake/{name}", "ready") for name in fake.NAMES),
    ]


def get_model(name: str) -> Path:
    """Fetches and verifies the named small model; returns where it is. Raises InputError or StopRun."""
    if name != "smollm2":
        raise InputError(f"{name!r} cannot be fetched; only smollm2 can")
    return smollm2.get()


def served_models(url: str) -> list[str]:
    """The models that the endpoint at `url` lists. Raises InputError if it does not answer."""
    import httpx

    key = openai.api_key_for("models", url)
    try:
        response = httpx.get(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=30)
        return [str(model["id"]) for model in response.raise_for_status().json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} lists no models: {type(error).__name__}: {error}") from None
