"""A configuration becomes objects, the objects a run, the run its files. The only place that composes.

Left of the records costs money and goes through the ledger; right of them, in `results`, is recomputed from the ledger.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif import data, engine, records, results
from rlaif.aio import iterate
from rlaif.calls import Client, Tally
from rlaif.config import RunConfig
from rlaif.errors import InputError, StopRun
from rlaif.export import write_whole
from rlaif.judges import JudgePlan, resolve
from rlaif.judges.code import JudgeFunction
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.models import Models
from rlaif.ranking import schedule
from rlaif.sampling import Given, Sampler
from rlaif.types import Candidate, Judge, PreferencePair, Prompt, Propose, Record

if TYPE_CHECKING:
    import datasets


@dataclass
class Progress:
    """Where a run stands: finished prompts out of all, and calls so far."""

    prompts: int = 0
    done: int = 0
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
        self._interrupted: StopRun | None = None
        self._stop_calls: Callable[[StopRun], object] | None = None
        self._source: str | list[Any] = config.prompts if source is None or isinstance(source, (str, Path)) else list(source)
        self._judges: list[str | JudgeFunction] = list(judges if judges is not None else config.judge)

    def interrupt(self) -> None:
        """Lets what is in flight end and be stored, then stops with StopRun("interrupted"). May be called in any thread."""
        self._interrupted = StopRun("interrupted", "the run was interrupted")
        if self._stop_calls is not None:
            self._stop_calls(self._interrupted)

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
        return datasets.Dataset.from_list(list(results.rows(self.directory, results.format_of(self.config), self.config)))

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

    async def _execute(self) -> AsyncGenerator[Record, None]:
        config = self.config
        seen = [
            (ordinal, prompt.id, _prompt_digest(prompt, candidates))
            for ordinal, (prompt, candidates) in enumerate(self._read())
        ]
        self.progress.prompts = len(seen)
        models, plans = self._open()
        loop = asyncio.get_running_loop()
        ledger = Ledger.open(self.directory)
        self._stop_calls = lambda reason: loop.call_soon_threadsafe(models.stop, reason)
        try:
            facts = self._facts([dict(models.open(name).identity) for name in config.policy])
            _check_unchanged(ledger, facts, seen, limited=config.limit is not None)
            policies, judges, window = self._compose(ledger, models, plans)
            plan = digest([[judge.digest for judge in judges], config.n, config.allow_truncated])
            stored = {name: json.dumps(value) for name, value in facts.items()}
            await ledger.begin(stored | {"config": config.to_yaml()}, seen, plan=plan, forget_failures=config.retry_failed)
            write_whole(self.directory / "config.yaml", config.to_yaml().encode())
            async with aclosing(self._work(ledger, policies, judges, window)) as work:
                async for record in work:
                    yield record
        finally:
            self._stop_calls = None
            await models.close()
            ledger.close()

    def _compose(self, ledger: Ledger, models: Models, plans: Sequence[JudgePlan]) -> tuple[list[Client], list[Judge], int]:
        """The policies, the judges, and how many prompts at once keep them busy."""
        tally = self.progress.tally
        policies = [Client(models.open(name), ledger, tally, role="policy") for name in self.config.policy]
        drivers = {p.model: Client(models.open(p.model), ledger, tally, role="judge") for p in plans if p.model}
        judges = [p.build(drivers[p.model] if p.model else None, ledger, tally) for p in plans]
        _name_apart(judges)
        windows = [client.window for client in (*policies, *drivers.values())]
        return policies, judges, max(windows, default=self.config.concurrency)

    async def _work(
        self, ledger: Ledger, policies: Sequence[Client], judges: Sequence[Judge], window: int
    ) -> AsyncGenerator[Record, None]:
        config, given = self.config, Given()
        propose: Propose = given
        prompts: Iterator[tuple[int, Prompt]] = enumerate(given.put(*row) for row in self._read())
        if config.command != "judge":
            propose = Sampler(
                policies, n=config.n, temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed
            )
            prompts = enumerate(prompt for prompt, _ in self._read())
        finished = engine.run(
            prompts,
            propose,
            judges,
            window=window,
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
        try:
            self.summary = self._finish(ledger, judges, stopped)
        except OSError as error:
            raise StopRun("disk", f"cannot write the results in {str(self.directory)!r}: {error.strerror or error}") from None
        if stopped is not None:
            raise stopped

    def _finish(self, ledger: Ledger, judges: Sequence[Judge], stopped: StopRun | None) -> dict[str, Any]:
        """Writes the export (of a run that was not stopped) and summary.json; returns the summary."""
        tally = self.progress.tally
        summary = results.finish(ledger, self.config, write=stopped is None) | {
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused},
            "judges": [judge.name for judge in judges],
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
    seen: Counter[str] = Counter()
    for judge in judges:
        seen[judge.name] += 1
        if seen[judge.name] > 1:
            judge.name = f"{judge.name}-{seen[judge.name]}"


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
