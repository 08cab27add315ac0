"""A configuration becomes objects, the objects a run, the run its files. The only place that composes.

Left of the records costs money and goes through the ledger; right of them, in `results`, is recomputed from the ledger.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif import accept, against, degenerate, dryrun, engine, labels, records, results
from rlaif.aio import all_of, iterate
from rlaif.calls import Tally
from rlaif.config import RunConfig, make_config
from rlaif.doctor import check_log
from rlaif.errors import InputError, StopRun
from rlaif.export import files, write_jsonl, write_whole
from rlaif.judges import JudgeLike, JudgePlan
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.live import Snapshot
from rlaif.models import Models
from rlaif.parts import Opened, Parts, check_settings, compose, spend
from rlaif.prices import Budget, Prices, SpendRow
from rlaif.sampling import Given, Sampler
from rlaif.source import Source
from rlaif.types import PreferencePair, Prompt, Record, Verdict

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("rlaif")

_COLLECT_AFTER = 50_000
_DISAGREEMENTS = "disagreements.jsonl"


@dataclass
class Progress:
    """Where a run stands: finished prompts out of all, those begun and not finished, those accepted, and calls so far."""

    prompts: int = 0
    under_way: int = 0
    done: int = 0
    failed: int = 0
    accepted: int = 0
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)


def new_run(
    command: str, source: str | Path | Iterable[Any], judge: JudgeLike | Sequence[JudgeLike] | None, settings: dict[str, Any]
) -> Run:
    """A run that is described by `settings` of RunConfig, with a judge, several, or the command's own. Raises InputError."""
    judges: list[Any] | None = None if judge is None else list(judge) if isinstance(judge, (list, tuple)) else [judge]
    if isinstance(source, Mapping):
        raise InputError(f"the input must be rows, got a mapping of {', '.join(map(str, source))}: give one of them")
    names = judges and [
        j if isinstance(j, str) else getattr(j, "__name__", None) or getattr(j, "kind", type(j).__name__) for j in judges
    ]
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
        judges: Sequence[JudgeLike | JudgePlan] | None = None,
    ) -> None:
        self.config, self.progress = config, Progress()
        self._accepting = None if config.accept is None else accept.parse(config.accept)
        self.summary: dict[str, Any] | None = None
        self._interrupted: StopRun | None = None
        self._stopped: StopRun | None = None
        self._stop_calls: Callable[[StopRun], object] | None = None
        self._given = source if source is None or isinstance(source, (str, Path)) else list(source)
        self._source = Source(config, self._given)
        self._judges: list[JudgeLike | JudgePlan] = list(judges if judges is not None else config.judge)
        self._budget: Budget | None = None
        self._ledger: Ledger | None = None
        self._models: Models | None = None
        self._maybe_lost = 0
        self._other: Run | None = None
        self._beside: list[SpendRow] = []

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
            yield from results.pairs_of(record, self.config)

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
        self.wait()
        return files.dataset(results.rows(self.directory, results.format_of(self.config), self.config))

    def dry_run(self, probe: int = 0, *, follow: Callable[[Run], object] | None = None) -> dict[str, Any]:
        """What the run would ask for if nothing were on file: counts of calls, and `forecast.forecast`'s figures.

        Spends nothing, but for the first `probe` prompts: these are run for real, by `follow` (`Run.wait` if left out), in the
        run directory, where they stay. `finished` prompts are there by now, and have cost `spent_usd`.
        """

        def probed() -> Run:
            limit = probe if self.config.limit is None else min(probe, self.config.limit)
            run = Run(self.config.model_copy(update={"limit": limit}), source=self._given, judges=self._judges)
            (follow or Run.wait)(run)
            return run

        return dryrun.dry_run(self, self._source, Opened.of(self.config, self._judges), probed if probe else None)

    def snapshot(self) -> Snapshot:
        """Where the run stands at this moment. May be called in any thread, before, during and after it."""
        progress, tally, budget, models = self.progress, self.progress.tally, self._budget, self._models
        endpoints = models.states() if models is not None else []
        summary, stopped = self.summary, self._stopped
        reason = stopped or self._interrupted or (models.stopped() if models is not None else None)
        found: Snapshot = {
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
        if self.config.accept is not None:
            found |= {"accepted": progress.accepted, "target": self.config.target}
        return found

    async def _quietly(self) -> AsyncGenerator[Record, None]:
        """Runs to the end without a record."""
        async with aclosing(self._execute(stored=False)) as work:
            async for _ in work:
                pass
        if False:
            yield  # an async generator, as `iterate` wants one

    async def _execute(self, *, stored: bool) -> AsyncGenerator[Record, None]:
        config, started = self.config, time.monotonic()
        opened = Opened.of(config, self._judges)
        models = opened.models
        prices = Prices(config.prices)
        loop = asyncio.get_running_loop()
        check_log(self.directory)
        ledger = Ledger.open(self.directory)
        self.progress, self.summary, self._stopped = Progress(started=started), None, None
        parts: Parts | None = None

        def stop(reason: StopRun) -> None:
            models.stop(reason)
            for judge in parts.judges if parts else ():
                judge.stop(reason)

        self._stop_calls = ledger.on_trouble = lambda reason: loop.call_soon_threadsafe(stop, reason)
        self._models = models
        try:
            self._beside = spent_in(self._against_directory)
            self._budget = Budget(
                lambda: [*ledger.spend(), *self._beside],
                prices.of_model,
                usd=config.budget_usd,
                tokens=config.budget_tokens,
                where=str(self.directory),
            )
            facts = opened.facts(config)
            check_settings(ledger, facts)
            parts = compose(opened, config, ledger, self.progress.tally, self._budget)
            parts.check_calibration(config.calibration)
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

    async def _begin(self, ledger: Ledger, parts: Parts, facts: dict[str, Any]) -> None:
        """Puts the prompts into the ledger, where they are not there yet, and says what an earlier process left."""
        config, progress = self.config, self.progress
        if ledger.died_with:
            log.warning(
                "the earlier process ended with %d calls in flight: at most so many may be billed and lost", ledger.died_with
            )
        fingerprint = await asyncio.to_thread(self._source.fingerprint)
        same = fingerprint == ledger.meta("source") and self._source.read_before(fingerprint, ledger.meta("reading"))
        plan = digest(
            [
                [judge.digest for judge in parts.judges],
                config.n,
                config.allow_truncated,
                config.allow_degenerate,
                degenerate.RULES,
                *([config.accept, config.max_samples] if config.accept is not None else []),
            ]
        )
        stored = {name: json.dumps(value) for name, value in facts.items()}
        await ledger.begin(
            stored | {"config": config.to_yaml(), "source": fingerprint or "", "rubric": parts.rubric or ""},
            None if same else self._source.rows,
            plan=plan,
            changed=partial(self._source.changed, earlier=ledger.meta("config")),
            forget_failures=config.retry_failed,
        )
        if not same:
            await ledger.note({"reading": self._source.reading(fingerprint)})
        self._maybe_lost = ledger.maybe_lost()
        progress.prompts = ledger.prompts() if config.limit is None else min(config.limit, ledger.prompts())
        progress.done, progress.tally.reused = ledger.finished(config.limit)

    async def _work(
        self, ledger: Ledger, parts: Parts, *, stored: bool, on_stop: Callable[[StopRun], object]
    ) -> AsyncGenerator[Record, None]:
        config, given = self.config, Given()
        if self._accepting is not None:
            self.progress.accepted = results.count_accepted(ledger, config)

        def prompts() -> Iterator[Prompt]:
            for row in ledger.unfinished(config.limit):
                prompt, candidates = records.load_prompt(row.ordinal, row.id, row.body)
                self.progress.under_way += 1
                yield given.put(prompt, candidates) if config.command == "judge" else prompt

        on_file = ledger.finished_now(config.limit) if stored else None
        new = engine.run(
            prompts(),
            given if config.command == "judge" else self._sampler(parts),
            parts.judges,
            # Under a target no prompt waits with a call in hand: what is bought beyond it is what was in flight.
            window=parts.window if config.target is None else min(parts.window, config.concurrency),
            allow_truncated=config.allow_truncated,
            allow_degenerate=config.allow_degenerate,
            enough=None if self._accepting is None else self._enough,
            save=partial(self._save, ledger, parts),
            stopping=partial(self._why_stop, parts),
            on_stop=on_stop,
        )
        stopped: StopRun | None = None
        try:
            for name, check in parts.checks.items():
                check.restore(ledger.meta(name), forgive=config.retry_failed)
            if self.progress.done < self.progress.prompts:
                await all_of(*(check.before() for check in parts.checks.values()))
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
            stopped = None if error.kind == results.TARGET_REACHED else error
            if error.kind == "config":
                await ledger.forget_failures("bad_request")
        await self._end(ledger, parts, stopped)

    def _sampler(self, parts: Parts) -> Sampler:
        config = self.config
        return Sampler(
            parts.policies,
            n=config.n,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
            most=None if self._accepting is None else config.max_samples,
        )

    def _enough(self, verdicts: Sequence[Verdict]) -> bool:
        """Whether an answer is accepted."""
        return self._accepting is not None and bool(accept.accepted(self._accepting, verdicts))

    def _why_stop(self, parts: Parts) -> StopRun | None:
        config, accepted = self.config, self.progress.accepted
        if config.target is not None and accepted >= config.target:
            return StopRun(results.TARGET_REACHED, f"{accepted} answers are accepted")
        return self._interrupted or (None if config.accept_judge else parts.degenerate())

    async def _save(self, ledger: Ledger, parts: Parts, record: Record) -> None:
        """Stores a finished record, counts it, and has the planted checks look at it."""
        config, progress = self.config, self.progress
        progress.accepted += self._enough(record.verdicts)  # before it is on disk: nothing more is to be sent
        await ledger.save_record(record.ordinal, records.dump(record))
        progress.done += 1
        progress.under_way -= 1
        progress.failed += any(c.error for c in record.candidates) or any(v.error for v in record.verdicts)
        for name, check in parts.checks.items():
            known = check.degenerate
            await check.during(record, allow_truncated=config.allow_truncated, allow_degenerate=config.allow_degenerate)
            if check.degenerate != known:
                await ledger.note({name: json.dumps(check.report())})

    async def _end(self, ledger: Ledger, parts: Parts, stopped: StopRun | None) -> None:
        """Writes what the work came to, once no call is in flight. Raises StopRun if the run did not reach its end."""
        config = self.config
        try:
            if stopped is None and not config.accept_judge:
                stopped = parts.degenerate()
            await ledger.note({name: json.dumps(check.report()) for name, check in parts.checks.items()})
            summary = self._finish(ledger, parts, stopped)
            (self.directory / _DISAGREEMENTS).unlink(missing_ok=True)  # of an earlier run
            if stopped is None and config.compare_labels:
                self._compare_labels(summary)
            if stopped is None and config.against is not None:
                stopped = await self._judge_against(config.against, parts, summary)
        except OSError as error:
            raise StopRun("disk", f"cannot write the results in {str(self.directory)!r}: {error.strerror or error}") from None
        self._stopped, self.summary = stopped, summary
        if stopped is not None:
            raise stopped

    def _compare_labels(self, summary: dict[str, Any]) -> None:
        """Adds to the summary how far the judge agrees with the labels in the input, and writes down where it does not."""
        agreement, ranked = labels.Agreement(), results.ranked(self.directory, self.config)
        disagreements = (row for record, ranking in ranked for row in agreement.add(record, ranking))
        write_jsonl(self.directory / _DISAGREEMENTS, disagreements)
        summary["labels"] = agreement.numbers()
        results.write_summary(self.directory, summary)

    async def _judge_against(self, constitution: str, parts: Parts, summary: dict[str, Any]) -> StopRun | None:
        """Judges the same candidates by the other constitution, in DIR/against, and adds to the summary where the two differ.

        Returns why it had to stop, if it had to.
        """
        config, budget = self.config, self._budget
        assert budget is not None
        log.warning("now by the constitution %r", constitution)
        own = str(parts.constitution)
        stopped: StopRun | None = None
        self._beside = []  # it counts what its directory holds by itself
        try:
            settings = {
                "out": str(self._against_directory),
                "constitution": constitution,
                "against": None,
                "calibration": None,  # it is of the first one
                "compare_labels": False,
            }
            self._other = Run(config.model_copy(update=settings | budget.left()), source=self._given, judges=self._judges)
            if self._interrupted is not None:
                raise self._interrupted
            async with aclosing(self._other._execute(stored=False)) as work:
                async for _ in work:
                    pass
            file = self.directory / "against.jsonl"
            found = against.compare(config, self.directory, self._other.directory, (own, constitution), file)
            summary["against"] = found | {"calls": (self._other.summary or {}).get("calls")}
        except StopRun as error:
            stopped = error
        self._beside = spent_in(self._against_directory)
        if stopped is not None:
            if stopped.kind == "budget":
                stopped = budget.reached() or stopped  # the limit that the user gave is of both
            summary |= {"state": "stopped", "stopped": {"kind": stopped.kind, "message": str(stopped)}}
        summary |= spend(budget, parts.clients)
        results.write_summary(self.directory, summary)
        return stopped

    @property
    def _against_directory(self) -> Path:
        return self.directory / "against"

    def _finish(self, ledger: Ledger, parts: Parts, stopped: StopRun | None) -> dict[str, Any]:
        """Writes the export (of a run that was not stopped) and summary.json; returns the summary."""
        tally, budget = self.progress.tally, self._budget
        assert budget is not None
        self._maybe_lost = ledger.maybe_lost()
        unneeded = self.progress.prompts - self.progress.done if stopped is None else 0
        found = results.finish(
            ledger, self.config, write=stopped is None, spend=spend(budget, parts.clients), unneeded=unneeded
        )
        summary = found | {
            "calls": {"policy": tally.policy, "judge": tally.judge, "reused": tally.reused},
            "left_out": dict(sorted(self._source.left_out.items())),
            "faults": ledger.faults(),
            "maybe_lost": self._maybe_lost,
            "odd": self._models.oddities() if self._models is not None else {},
            "judges": [judge.name for judge in parts.judges],
            **({"checks": {"accepted": self.config.accept_judge, **parts.checked()}} if parts.checks else {}),
            "wall_s": round(time.monotonic() - self.progress.started, 3),
            "state": "done" if stopped is None else "stopped",
        }
        if stopped is not None:
            summary["stopped"] = {"kind": stopped.kind, "message": str(stopped)}
            summary["unfinished"] = self.progress.prompts - summary["prompts"]
        results.write_summary(self.directory, summary)
        return summary


def spent_in(directory: Path) -> list[SpendRow]:
    """What the calls of a run directory have used; nothing where there is none."""
    if not (directory / "run.sqlite").exists():
        return []
    with closing(Ledger.read(directory)) as ledger:
        return ledger.spend()


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
