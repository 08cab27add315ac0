"""A configuration becomes objects, the objects a run, the run its files. The only place that composes.

Left of the records costs money and goes through the ledger; right of them, in `results`, is recomputed from the ledger.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlaif import data, engine, records, results
from rlaif.aio import iterate
from rlaif.calls import Client, Tally
from rlaif.config import RunConfig
from rlaif.errors import InputError, StopRun
from rlaif.export import write_whole
from rlaif.judges import JudgePlan, resolve
from rlaif.judges.code import CodeJudge, JudgeFunction
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.live import Snapshot
from rlaif.models import Models
from rlaif.ranking import schedule
from rlaif.sampling import Given, Sampler
from rlaif.types import Candidate, Judge, PreferencePair, Prompt, Propose, Record

if TYPE_CHECKING:
    import datasets


_SHOWN = 120


@dataclass
class Progress:
    """Where a run stands: finished prompts out of all, and calls so far."""

    prompts: int = 0
    done: int = 0
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Parts:
    """What a run works with: `window` prompts at once keep it busy; `free` says that no model costs money."""

    policies: list[Client]
    judges: list[Judge]
    clients: list[Client]
    window: int
    free: bool


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
        self._interrupted: StopRun | None = None
        self._stopped: StopRun | None = None
        self._stop_calls: Callable[[StopRun], object] | None = None
        self._source: str | list[Any] = config.prompts if source is None or isinstance(source, (str, Path)) else list(source)
        self._judges: list[str | JudgeFunction] = list(judges if judges is not None else config.judge)

    def interrupt(self) -> None:
        """Lets what is in flight end and be stored, then stops with StopRun("interrupted"). May be called in any thread."""
        self._interrupted = StopRun("interrupted", "the run was interrupted")
        if self._stop_calls is not None:
            self._stop_calls(self._interrupted)

    def snapshot(self) -> Snapshot:
        """Where the run stands now. May be called in any thread, before, during and after it."""
        tally, stopped = self.progress.tally, self._stopped
        running: Literal["running", "stopping"] = "running" if self._interrupted is None else "stopping"
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "state": running if self.summary is None else "done" if stopped is None else "stopped",
            "reason": None if stopped is None else f"{stopped.kind}: {stopped}",
            "prompts": self.progress.prompts,
            "done": self.progress.done,
            "failed": 0,
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused, "faults": 0},
            "tokens": {"prompt": tally.tokens, "completion": 0},
            "cost_usd": None,
            "budget_usd": None,
            "wall_s": time.monotonic() - self.progress.started,
            "in_flight": 0,
            "maybe_lost": 0,
            "endpoints": [],
        }

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.config.out).expanduser()

    def __iter__(self) -> Iterator[Record]:
        return iterate(self.__aiter__)

    def __aiter__(self) -> AsyncGenerator[Record, None]:
        return self._execute()

    def pairs(self) -> Iterator[PreferencePair]:
        """Preference pairs as their prompts finish, each from its own prompt's verdicts.

        The files that the run writes at its end pool the position term over all prompts: their `p_chosen` is the better one.
        """
        for record in self:
            pair = results.pair_of(record, self.config)
            if isinstance(pair, PreferencePair):
                yield pair

    def wait(self) -> dict[str, Any]:
        """Runs to the end if it has not, and returns the summary. Raises StopRun, also if the run was stopped before."""
        if self.summary is None:
            for _ in self:
                pass
        if self._stopped is not None:
            raise self._stopped
        assert self.summary is not None
        return self.summary

    def to_dataset(self) -> datasets.Dataset:
        """The rows of the run's file (dpo.jsonl or sft.jsonl) as a Dataset, after running to the end."""
        import datasets

        self.wait()
        return datasets.Dataset.from_list(list(results.rows(self.directory, results.format_of(self.config), self.config)))

    def dry_run(self) -> dict[str, Any]:
        """What the run would ask for if nothing were on file and every reply were usable. Spends nothing.

        Answers that are alike need fewer judge calls; a judge that falls back to text, and missing choices, need more.
        """
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
        policies = [models.open(name).identity for name in config.policy]
        if any(one in policies[:place] for place, one in enumerate(policies)):
            raise InputError("the same policy is named twice: raise -n for more samples of it")
        return models, plans

    async def _execute(self) -> AsyncGenerator[Record, None]:
        config = self.config
        seen = [(ordinal, prompt.id, _marks(prompt, candidates)) for ordinal, (prompt, candidates) in enumerate(self._read())]
        self.progress.prompts = len(seen)
        models, plans = self._open()
        loop = asyncio.get_running_loop()
        ledger = Ledger.open(self.directory)
        parts: _Parts | None = None

        def stop(reason: StopRun) -> None:
            models.stop(reason)
            for judge in parts.judges if parts else ():
                if isinstance(judge, CodeJudge):
                    judge.stop(reason)

        self._stop_calls = lambda reason: loop.call_soon_threadsafe(stop, reason)
        try:
            facts = self._facts([dict(models.open(name).identity) for name in config.policy])
            _check_unchanged(ledger, facts, seen, limited=config.limit is not None)
            parts = self._compose(ledger, models, plans)
            plan = digest([[judge.digest for judge in parts.judges], config.n, config.allow_truncated])
            stored = {name: json.dumps(value) for name, value in facts.items()}
            await ledger.begin(stored | {"config": config.to_yaml()}, seen, plan=plan, forget_failures=config.retry_failed)
            write_whole(self.directory / "config.yaml", config.to_yaml().encode())
            async with aclosing(self._work(ledger, parts)) as work:
                async for record in work:
                    yield record
        finally:
            self._stop_calls = None
            try:
                for client in parts.clients if parts else ():
                    await client.close()
                await models.close()
            finally:
                ledger.close()

    def _compose(self, ledger: Ledger, models: Models, plans: Sequence[JudgePlan]) -> _Parts:
        tally = self.progress.tally
        policies = [Client(models.open(name), ledger, tally, role="policy") for name in self.config.policy]
        drivers = {p.model: Client(models.open(p.model), ledger, tally, role="judge") for p in plans if p.model}
        judges = [p.build(drivers[p.model] if p.model else None, ledger, tally) for p in plans]
        _name_apart(judges)
        clients = [*policies, *drivers.values()]
        return _Parts(
            policies,
            judges,
            clients,
            window=max((client.window for client in clients), default=self.config.concurrency),
            free=all(client.free for client in clients),
        )

    async def _work(self, ledger: Ledger, parts: _Parts) -> AsyncGenerator[Record, None]:
        config, given = self.config, Given()
        propose: Propose = given
        prompts: Iterator[tuple[int, Prompt]] = enumerate(given.put(*row) for row in self._read())
        if config.command != "judge":
            propose = Sampler(
                parts.policies, n=config.n, temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed
            )
            prompts = enumerate(prompt for prompt, _ in self._read())
        finished = engine.run(
            prompts,
            propose,
            parts.judges,
            window=parts.window,
            allow_truncated=config.allow_truncated,
            stopping=lambda: self._interrupted,
        )
        stopped: StopRun | None = None
        try:
            async with aclosing(finished):
                async for record in finished:
                    await ledger.save_record(record.ordinal, records.dump(record))
                    self.progress.done += 1
                    yield record
        except StopRun as error:
            stopped = error
            if error.kind == "config":
                await ledger.forget_failures("bad_request")
        try:
            self.summary = self._finish(ledger, parts, stopped)
        except OSError as error:
            raise StopRun("disk", f"cannot write the results in {str(self.directory)!r}: {error.strerror or error}") from None
        self._stopped = stopped
        if stopped is not None:
            raise stopped

    def _finish(self, ledger: Ledger, parts: _Parts, stopped: StopRun | None) -> dict[str, Any]:
        """Writes the export (of a run that was not stopped) and summary.json; returns the summary."""
        tally = self.progress.tally
        summary = results.finish(ledger, self.config, write=stopped is None, free=parts.free) | {
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused},
            "judges": [judge.name for judge in parts.judges],
            "wall_s": round(time.monotonic() - self.progress.started, 3),
            "state": "done" if stopped is None else "stopped",
        }
        if stopped is not None:
            summary["stopped"] = {"kind": stopped.kind, "message": str(stopped)}
            summary["unfinished"] = self.progress.prompts - summary["prompts"]
        results.write_summary(self.directory, summary)
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


def _name_apart(judges: Sequence[Judge]) -> None:
    """Gives judges of one name -2, -3, ...: verdicts are told apart by it."""
    seen: set[str] = set()
    for judge in judges:
        name, number = judge.name, 1
        while judge.name in seen:
            number += 1
            judge.name = f"{name}-{number}"
        seen.add(judge.name)


def _marks(prompt: Prompt, candidates: Sequence[Candidate]) -> str:
    """What an input row was, part by part, as the ledger remembers it: digests and the beginning of the text."""
    given = [[c.text, c.model, c.score] for c in candidates]
    parts = {"messages": list(prompt.messages), "reference": prompt.reference, "candidates": given}
    return json.dumps(
        {"id": prompt.id, "text": prompt.text[:_SHOWN], **{name: digest(part, 8) for name, part in parts.items()}},
        ensure_ascii=False,
    )


def _check_unchanged(ledger: Ledger, facts: dict[str, Any], seen: Sequence[tuple[int, str, str]], *, limited: bool) -> None:
    """Raises InputError with the difference if the directory's earlier run cannot be continued by this one."""
    where = str(ledger.directory)
    for name, value in facts.items():
        text = ledger.meta(name)
        before = value if text is None else json.loads(text)
        if before != value:
            changes = "; ".join(_changes(name, before, value))
            raise InputError(f"{where!r} was made with other settings: {changes}. Set it back or choose another directory")
    for ordinal, name, mark in ledger.prompts():
        if ordinal >= len(seen):
            if not limited:
                raise InputError(f"prompt {ordinal + 1} ({name!r}) of the earlier run is gone from the input; put it back")
            return
        if seen[ordinal][2] != mark:
            changes = "; ".join(_changes("", json.loads(mark), json.loads(seen[ordinal][2])))
            raise InputError(
                f"prompt {ordinal + 1} ({name!r}) has changed since the earlier run in {where!r}: {changes}."
                " Add new prompts at the end, or choose another directory"
            )


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """Where two JSON values differ, in words; digests are not shown."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            yield from _changes(f"{name} {key}".strip(), before[key], now[key])
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True), 1):
            yield from _changes(f"{name} {place}" if len(now) > 1 else name, one, other)
    elif before != now:
        hidden = name in ("messages", "reference", "candidates")
        yield f"{name} changed" if hidden else f"{name} was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."
