"""A configuration becomes objects, the objects a run, the run its files. The only place that composes.

Left of the records costs money and goes through the ledger; right of them, in `results`, is recomputed from the ledger.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif import against, degenerate, engine, forecast, records, results
from rlaif.aio import all_of, iterate
from rlaif.calls import Client, Tally, billed_as
from rlaif.config import RunConfig, make_config
from rlaif.doctor import check_log
from rlaif.errors import InputError, StopRun
from rlaif.export import write_whole
from rlaif.judges import DEFAULT_CONSTITUTION, JudgePlan, resolve
from rlaif.judges.checks import Checks, Planted, read_gold
from rlaif.judges.code import JudgeFunction
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.live import Snapshot
from rlaif.models import Models
from rlaif.prices import FREE, Budget, Price, Prices, guess_message_tokens, guess_tokens, spent
from rlaif.ranking import schedule
from rlaif.sampling import Given, Sampler
from rlaif.source import Source, changes
from rlaif.types import Judge, PreferencePair, Prompt, Propose, Record

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("rlaif")

_COLLECT_AFTER = 50_000


@dataclass
class Progress:
    """Where a run stands: finished prompts out of all, those begun and not finished, and calls so far."""

    prompts: int = 0
    under_way: int = 0
    done: int = 0
    failed: int = 0
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Parts:
    """What a run works with: `window` prompts at once keep it busy. `check_tally` counts what planted checks buy."""

    policies: list[Client]
    judges: list[Judge]
    clients: list[Client]
    window: int
    checks: list[Checks]
    check_tally: Tally

    def degenerate(self) -> StopRun | None:
        """Why the run should not go on with its judges."""
        for check in self.checks:
            if check.degenerate is not None:
                return StopRun(
                    "judge_degenerate",
                    f"the judge {check.name!r} is of no use: {check.degenerate}. Choose another --judge-model or --judge,"
                    " or go on all the same with --accept-judge",
                )
        return None


def new_run(
    command: str, source: str | Path | Iterable[Any], judges: Sequence[str | JudgeFunction], settings: dict[str, Any]
) -> Run:
    """A run that is described by `settings` of RunConfig, with judges by name or as functions. Raises InputError."""
    names = [j if isinstance(j, str) else getattr(j, "__name__", type(j).__name__) for j in judges]
    path = str(source) if isinstance(source, (str, Path)) else None
    given = {"prompts": path or "(Python)", "judge": names, **settings, "out": str(settings["out"]), "command": command}
    policy = given.get("policy")
    if policy is not None and not isinstance(policy, str):
        given["policy"] = list(policy)
    return Run(make_config(given), source=path if path is not None else source, judges=judges)


class Run:
    """One command on one run directory. Iterate it, sync or async, for records: those on file, then others as they finish.

    `summary` is there when it has ended. Raises InputError before anything is spent, StopRun when it has to stop.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        source: str | Path | Iterable[Any] | None = None,
        judges: Sequence[str | JudgeFunction | JudgePlan] | None = None,
    ) -> None:
        self.config, self.progress = config, Progress()
        self.summary: dict[str, Any] | None = None
        self._interrupted: StopRun | None = None
        self._stopped: StopRun | None = None
        self._stop_calls: Callable[[StopRun], object] | None = None
        self._given = source if source is None or isinstance(source, (str, Path)) else list(source)
        self._source = Source(config, self._given)
        self._judges: list[str | JudgeFunction | JudgePlan] = list(judges if judges is not None else config.judge)
        self._budget: Budget | None = None
        self._ledger: Ledger | None = None
        self._models: Models | None = None
        self._maybe_lost = 0
        self._gold: list[Planted] = []
        self._other: Run | None = None

    def interrupt(self) -> None:
        """Lets what is in flight end and be stored, then stops with StopRun("interrupted"). May be called in any thread."""
        self._interrupted = StopRun("interrupted", "the run was interrupted")
        if self._other is not None:
            self._other.interrupt()
        stop_calls = self._stop_calls
        if stop_calls is not None:
            with suppress(RuntimeError):  # its loop has just closed
                stop_calls(self._interrupted)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.config.out).expanduser()

    def __iter__(self) -> Iterator[Record]:
        return iterate(self.__aiter__)

    def __aiter__(self) -> AsyncGenerator[Record, None]:
        return self._execute(stored=True)

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
            for _ in iterate(self._quietly):
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

    def dry_run(self, probe: int = 0, *, follow: Callable[[Run], object] | None = None) -> dict[str, Any]:
        """What the run would ask for if nothing were on file: counts of calls, and `forecast.forecast`'s figures.

        Spends nothing, but for the first `probe` prompts: these are run for real, by `follow` (`Run.wait` if left out), in the
        run directory, where they stay. `finished` prompts are there by now, and have cost `spent_usd`.
        """
        config = self.config
        models, plans = self._open()
        prices = Prices(config.prices)
        sizes, prompt_tokens, answer_tokens = Counter[int](), 0, 0
        for prompt, given in self._source.read():
            sizes[len(given) if config.command == "judge" else config.n * len(config.policy)] += 1
            prompt_tokens += guess_message_tokens(prompt.messages)
            answer_tokens += sum(guess_tokens(candidate.text) for candidate in given)
        prompts, answers = sizes.total(), sum(size * count for size, count in sizes.items())
        calls = [sum(schedule.calls(size, plan.arity, plan.orders) * count for size, count in sizes.items()) for plan in plans]

        def known(name: str) -> tuple[str, Price | None]:
            model = models.open(name)
            return billed_as(model), FREE if model.free else prices.of_model(billed_as(model))

        work = forecast.Work(
            prompts,
            prompt_tokens,
            config.n,
            [forecast.PolicyWork(*known(name), models.open(name).max_n) for name in config.policy],
            [
                forecast.JudgeWork(billed, count / prompts, price, plan.template_tokens, plan.letter)
                for plan, count in zip(plans, calls, strict=True)
                if plan.model
                for billed, price in [known(plan.model)]
            ],
            config.max_tokens,
            config.concurrency,
            config.rpm,
            config.tpm,
            answer_tokens / answers if config.command == "judge" and answers else None,
        )
        measured = self._probe(probe, follow or Run.wait) if probe else None
        finished, spent_usd = self._on_file(models, prices)
        return {
            "prompts": prompts,
            "finished": finished,
            "spent_usd": spent_usd,
            "policy_calls": prompts * sum(math.ceil(config.n / policy.max_n) for policy in work.policies),
            "judge_calls": sum(calls),
            "judges": len(plans),
        } | forecast.forecast(work, measured, seed=config.seed)

    def _on_file(self, models: Models, prices: Prices) -> tuple[int, float | None]:
        """How many prompts are finished in the directory, and what it has cost. Raises InputError if it is another run's."""
        if not (self.directory / "run.sqlite").exists():
            return 0, 0.0
        with closing(Ledger.read(self.directory)) as ledger:
            _check_settings(ledger, self._facts([dict(models.open(name).identity) for name in self.config.policy]))
            return ledger.finished(self.config.limit)[0], spent(ledger.spend(), prices.of_model).cost_usd

    def _probe(self, count: int, follow: Callable[[Run], object]) -> forecast.Probe:
        """Runs the first prompts for real; what each of their calls used, and how long calls of its role took on average."""
        limit = count if self.config.limit is None else min(count, self.config.limit)
        run = Run(self.config.model_copy(update={"limit": limit}), source=self._given, judges=self._judges)
        follow(run)
        tally = run.progress.tally
        seconds = {role: sum(times) / len(times) for role, times in tally.seconds.items() if times}
        with closing(Ledger.read(self.directory)) as ledger:
            calls = [
                [forecast.ProbeCall(use.role, use.model, *use.tokens, seconds.get(use.role), use.cached) for use in uses]
                for uses in ledger.uses(limit)
            ]
        return forecast.Probe(calls)

    def snapshot(self) -> Snapshot:
        """Where the run stands at this moment. May be called in any thread, before, during and after it."""
        progress, tally, budget, models = self.progress, self.progress.tally, self._budget, self._models
        endpoints = models.states() if models is not None else []
        summary, stopped = self.summary, self._stopped
        reason = stopped or self._interrupted or (models.stopped() if models is not None else None)
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "state": ("stopping" if reason else "running") if summary is None else "stopped" if stopped else "done",
            "reason": None if reason is None else reason.kind if reason is self._interrupted else f"{reason.kind}: {reason}",
            "prompts": progress.prompts,
            "done": progress.done,
            "failed": progress.failed,
            "under_way": progress.under_way,
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused, "faults": tally.faults},
            "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
            "cost_usd": budget.spent().cost_usd if budget is not None else None,
            "budget_usd": self.config.budget_usd,
            "wall_s": time.monotonic() - progress.started,
            "in_flight": sum(endpoint["in_flight"] for endpoint in endpoints),
            "maybe_lost": self._maybe_lost,
            "endpoints": endpoints,
        }

    def _open(self) -> tuple[Models, list[JudgePlan]]:
        """The models and judges of the configuration, known to be usable. Raises InputError."""
        config = self.config
        plans: list[JudgePlan] = []
        for judge in self._judges:
            plans.extend([judge] if isinstance(judge, JudgePlan) else self._resolve(judge))
        if not plans:
            raise InputError("no judge: give --judge")
        self._gold = read_gold(config.check_gold) if config.check_gold and config.checks else []
        models = Models(
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            transport=config.transport,
            extra_body=config.extra_body,
            rpm=config.rpm,
            tpm=config.tpm,
            max_wait_s=config.max_wait_s,
            strict_model=config.strict_model,
        )
        for name in [*config.policy, *(plan.model for plan in plans if plan.model)]:
            models.open(name)
        policies = [models.open(name).identity for name in config.policy]
        if any(one in policies[:place] for place, one in enumerate(policies)):
            raise InputError("the same policy is named twice: raise -n for more samples of it")
        return models, plans

    def _resolve(self, judge: str | JudgeFunction) -> list[JudgePlan]:
        config = self.config
        return resolve(
            judge,
            model=config.judge_model,
            policy=next(iter(config.policy), None),
            constitution=config.constitution,
            principles=config.principles,
            seed=config.seed,
            timeout_s=config.judge_timeout_s,
        )

    async def _quietly(self) -> AsyncGenerator[Record, None]:
        """Runs to the end without a record."""
        async with aclosing(self._execute(stored=False)) as work:
            async for _ in work:
                pass
        if False:
            yield  # an async generator, as `iterate` wants one

    async def _execute(self, *, stored: bool) -> AsyncGenerator[Record, None]:
        config, started = self.config, time.monotonic()
        models, plans = self._open()
        prices = Prices(config.prices)
        loop = asyncio.get_running_loop()
        check_log(self.directory)
        ledger = Ledger.open(self.directory)
        self.progress, self.summary, self._stopped = Progress(started=started), None, None
        parts: _Parts | None = None

        def stop(reason: StopRun) -> None:
            models.stop(reason)
            for judge in parts.judges if parts else ():
                judge.stop(reason)

        self._stop_calls = ledger.on_trouble = lambda reason: loop.call_soon_threadsafe(stop, reason)
        self._models = models
        try:
            self._budget = Budget(
                ledger.spend, prices.of_model, usd=config.budget_usd, tokens=config.budget_tokens, where=str(self.directory)
            )
            facts = self._facts([dict(models.open(name).identity) for name in config.policy])
            _check_settings(ledger, facts)
            parts = self._compose(ledger, models, plans)
            self._budget.check_prices(client.billed for client in parts.clients if not client.free)
            await self._begin(ledger, parts, facts)
            write_whole(self.directory / "config.yaml", config.to_yaml().encode())
            with _rare_collections():
                async with aclosing(self._work(ledger, parts, stored=stored, on_stop=stop)) as work:
                    async for record in work:
                        yield record
        except InputError:
            ledger.discard()
            raise
        finally:
            self._stop_calls = None
            stop(StopRun("closed", "the run has ended"))
            try:
                for judge in parts.judges if parts else ():
                    await judge.close()
                await models.close()
            finally:
                ledger.close()

    async def _begin(self, ledger: Ledger, parts: _Parts, facts: dict[str, Any]) -> None:
        """Puts the prompts into the ledger, where they are not there yet, and says what an earlier process left."""
        config, progress = self.config, self.progress
        if ledger.died_with:
            log.warning(
                "the earlier process ended with %d calls in flight: at most so many may be billed and lost", ledger.died_with
            )
        fingerprint = await asyncio.to_thread(self._source.fingerprint)
        same = fingerprint is not None and fingerprint == ledger.meta("source")
        plan = digest(
            [
                [judge.digest for judge in parts.judges],
                config.n,
                config.allow_truncated,
                config.allow_degenerate,
                degenerate.RULES,
            ]
        )
        stored = {name: json.dumps(value) for name, value in facts.items()}
        await ledger.begin(
            stored | {"config": config.to_yaml(), "source": fingerprint or ""},
            None if same else self._source.rows,
            plan=plan,
            changed=partial(self._source.changed, earlier=ledger.meta("config")),
            forget_failures=config.retry_failed,
        )
        self._maybe_lost = ledger.maybe_lost()
        progress.prompts = ledger.prompts() if config.limit is None else min(config.limit, ledger.prompts())
        progress.done, progress.tally.reused = ledger.finished(config.limit)

    def _compose(self, ledger: Ledger, models: Models, plans: Sequence[JudgePlan]) -> _Parts:
        tally, budget = self.progress.tally, self._budget
        assert budget is not None
        policies = [Client(models.open(name), ledger, tally, role="policy", budget=budget) for name in self.config.policy]
        drivers = {p.model: Client(models.open(p.model), ledger, tally, role="judge", budget=budget) for p in plans if p.model}
        judges = [p.build(drivers[p.model] if p.model else None, ledger, tally) for p in plans]
        _name_apart(judges)
        clients = [*policies, *drivers.values()]
        window = max((client.window for client in clients), default=self.config.concurrency)
        checks, checked = [], Tally()
        for plan, judge in zip(plans, judges, strict=True) if self.config.checks else ():
            if plan.check is not None:
                asked = Client(models.open(plan.model), ledger, checked, role="judge", budget=budget) if plan.model else None
                checks.append(Checks(judge, plan.check(asked, ledger, checked), self._gold))
        return _Parts(policies, judges, clients, window, checks, checked)

    async def _work(
        self, ledger: Ledger, parts: _Parts, *, stored: bool, on_stop: Callable[[StopRun], object]
    ) -> AsyncGenerator[Record, None]:
        config, given = self.config, Given()
        propose: Propose = given
        if config.command != "judge":
            propose = Sampler(
                parts.policies, n=config.n, temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed
            )

        def prompts() -> Iterator[Prompt]:
            for row in ledger.unfinished(config.limit):
                prompt, candidates = records.load_prompt(row.ordinal, row.id, row.body)
                self.progress.under_way += 1
                yield given.put(prompt, candidates) if config.command == "judge" else prompt

        async def save(record: Record) -> None:
            await ledger.save_record(record.ordinal, records.dump(record))
            self.progress.done += 1
            self.progress.under_way -= 1
            self.progress.failed += any(c.error for c in record.candidates) or any(v.error for v in record.verdicts)
            for check in parts.checks:
                await check.during(record, allow_truncated=config.allow_truncated)

        def stopping() -> StopRun | None:
            return self._interrupted or (None if config.accept_judge else parts.degenerate())

        on_file = ledger.finished_now(config.limit) if stored else None
        new = engine.run(
            prompts(),
            propose,
            parts.judges,
            window=parts.window,
            allow_truncated=config.allow_truncated,
            allow_degenerate=config.allow_degenerate,
            save=save,
            stopping=stopping,
            on_stop=on_stop,
        )
        stopped: StopRun | None = None
        try:
            if self.progress.done < self.progress.prompts:
                await all_of(*(check.before() for check in parts.checks))
            async with aclosing(new):
                ahead = asyncio.ensure_future(anext(new, None))  # the work begins while what is on file is read
                try:
                    for ordinal, name, prompt, body in on_file() if on_file is not None else ():
                        yield records.load(records.load_prompt(ordinal, name, prompt)[0], body)
                        await asyncio.sleep(0)
                    record = await ahead
                finally:
                    ahead.cancel()
                    await asyncio.gather(ahead, return_exceptions=True)
                while record is not None:
                    yield record
                    record = await anext(new, None)
        except StopRun as error:
            stopped = error
            if error.kind == "config":
                await ledger.forget_failures("bad_request")
        difference: dict[str, Any] | None = None
        if stopped is None and config.against is not None:
            try:
                difference = await self._against(config.against)
            except StopRun as error:
                stopped = error
        try:
            summary = self._finish(ledger, parts, stopped)
            if difference is not None:
                summary["against"] = difference
                results.write_summary(self.directory, summary)
        except OSError as error:
            raise StopRun("disk", f"cannot write the results in {str(self.directory)!r}: {error.strerror or error}") from None
        self._stopped, self.summary = stopped, summary
        if stopped is not None:
            raise stopped

    async def _against(self, constitution: str) -> dict[str, Any]:
        """Judges the same candidates under the other constitution, in DIR/against, and writes where the two differ."""
        config, budget = self.config, self._budget
        assert budget is not None
        log.warning("now by the constitution %r", constitution)
        left = budget.left()
        settings = {"out": str(self.directory / "against"), "constitution": constitution, "against": None, **left}
        other = Run(config.model_copy(update=settings), source=self._given, judges=self._judges)
        self._other = other
        async for _ in other._execute(stored=False):
            pass
        names = (config.constitution or DEFAULT_CONSTITUTION, constitution)
        return against.compare(config, self.directory, other.directory, names, self.directory / "against.jsonl")

    def _finish(self, ledger: Ledger, parts: _Parts, stopped: StopRun | None) -> dict[str, Any]:
        """Writes the export (of a run that was not stopped) and summary.json; returns the summary."""
        tally, budget = self.progress.tally, self._budget
        assert budget is not None
        self._maybe_lost = ledger.maybe_lost()
        summary = results.finish(ledger, self.config, write=stopped is None, spend=_spend(budget, parts.clients)) | {
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused},
            "faults": ledger.faults(),
            "maybe_lost": self._maybe_lost,
            "odd": self._models.oddities() if self._models is not None else {},
            "judges": [judge.name for judge in parts.judges],
            **({"checks": self._checked(parts)} if parts.checks else {}),
            "wall_s": round(time.monotonic() - self.progress.started, 3),
            "state": "done" if stopped is None else "stopped",
        }
        if stopped is not None:
            summary["stopped"] = {"kind": stopped.kind, "message": str(stopped)}
            summary["unfinished"] = self.progress.prompts - summary["prompts"]
        results.write_summary(self.directory, summary)
        return summary

    def _checked(self, parts: _Parts) -> dict[str, Any]:
        """What planted checks showed, for the summary."""
        tally = parts.check_tally
        calls = {"judge": tally.judge, "reused": tally.reused}
        return {"accepted": self.config.accept_judge, "calls": calls, "judges": [check.report() for check in parts.checks]}

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


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Has the collector of cycles run less often: with hundreds of calls in flight it looks at what is alive, a fifth of the
    CPU time, and finds next to nothing. A threshold that is higher already, or 0 (never), is left alone.
    """
    before = gc.get_threshold()
    if not 0 < before[0] < _COLLECT_AFTER:
        yield
        return
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _name_apart(judges: Sequence[Judge]) -> None:
    """Gives judges of one name -2, -3, ...: verdicts are told apart by it."""
    seen: set[str] = set()
    for judge in judges:
        name, number = judge.name, 1
        while judge.name in seen:
            number += 1
            judge.name = f"{name}-{number}"
        seen.add(judge.name)


def _spend(budget: Budget, clients: Sequence[Client]) -> dict[str, Any]:
    """What the directory's calls have used, for the summary: None if there are calls and none says what it used.

    The cost is unknown where a price is, whatever came of the calls.
    """
    spent, rows = budget.spent(), budget.rows()
    calls = sum(row.calls for row in rows)
    counted = calls == 0 or spent.uncounted < calls
    tokens = {
        "prompt": spent.prompt_tokens if counted else None,
        "completion": spent.completion_tokens if counted else None,
    }
    if spent.uncounted:
        tokens["calls_without_a_count"] = spent.uncounted
    priced = not budget.unpriced(client.billed for client in clients if not client.free)
    summary: dict[str, Any] = {"tokens": tokens, "cost_usd": spent.cost_usd if priced else None}
    if priced and spent.cost_usd is None and spent.cost_usd_guessed is not None:
        summary["cost_usd_guessed"] = spent.cost_usd_guessed
    return summary


def _check_settings(ledger: Ledger, facts: dict[str, Any]) -> None:
    """Raises InputError with the difference if the directory's earlier run cannot be continued by this one."""
    for name, value in facts.items():
        text = ledger.meta(name)
        before = value if text is None else json.loads(text)
        if before != value:
            differences = "; ".join(changes(name, before, value))
            raise InputError(
                f"{str(ledger.directory)!r} was made with other settings: {differences}."
                " Set it back or choose another directory"
            )
