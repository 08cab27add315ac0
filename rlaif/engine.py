"""Prompts in, records out, as they finish.

A prompt's own work is sampling, then judging; different prompts overlap, at most `window` of them: no prompt waits for
another. Which candidates a judge is shown together, and after which verdicts, its schedule says. When the run has to stop, or
one prompt's work meets a bug, nothing new begins, what is in flight ends and is stored, and the reason is raised at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial

from rlaif import degenerate, pairs
from rlaif.aio import all_of
from rlaif.errors import StopRun
from rlaif.keys import seed_of
from rlaif.ranking.schedule import Every
from rlaif.types import Candidate, Judge, Prompt, Propose, Record, Verdict

Stopping = Callable[[], StopRun | None]
Enough = Callable[[Sequence[Verdict]], bool]
_HOPELESS = ("too_long:", "bad_request:")  # asked again, they would be refused again


async def run(
    prompts: Iterable[Prompt],
    propose: Propose,
    judges: Sequence[Judge],
    *,
    window: int,
    allow_truncated: bool,
    allow_degenerate: bool = False,
    enough: Enough | None = None,
    save: Callable[[Record], Awaitable[None]] | None = None,
    stopping: Stopping = lambda: None,
    on_stop: Callable[[StopRun], object] = lambda reason: None,
) -> AsyncGenerator[Record, None]:
    """Yields each prompt's record when it is finished and saved, in no fixed order. Raises StopRun.

    `stopping` is asked before a prompt or a judgement begins; the reason that it gives ends the run. `on_stop` is told why the
    run ends as soon as it does: calls that wait for their turn can end then. At most `window` records wait for the reader, and
    one more in each place; then the work waits too.

    With `enough`, each candidate is judged by itself, and a prompt gets more and more of them until its verdicts are enough or
    there are no more.
    """
    waiting = iter(prompts)
    eligible = partial(pairs.eligible, allow_truncated=allow_truncated, allow_degenerate=allow_degenerate)
    finished: asyncio.Queue[Record | None] = asyncio.Queue(window)
    stop: list[BaseException] = []
    told: list[StopRun] = []

    async def work() -> None:
        """One place of the window: a prompt after another."""
        try:
            while (reason := why_stop()) is None:
                prompt = next(waiting, None)
                if prompt is None:
                    return
                record = await _record(prompt, propose, judges, eligible, why_stop, enough)
                if save is not None:
                    await save(record)
                await finished.put(record)
            raise reason
        except Exception as error:  # the first one ends the run; a bug counts for more than a reason to stop
            if not stop or not isinstance(error, StopRun):
                stop.insert(0, error)
            if not told:
                told.append(
                    error if isinstance(error, StopRun) else StopRun("failed", f"the work on a prompt failed: {error!r}")
                )
                on_stop(told[0])

    def why_stop() -> StopRun | None:
        return told[0] if told else stopping()

    places = [asyncio.ensure_future(work()) for _ in range(window)]
    ended = asyncio.ensure_future(_after(places, finished))
    try:
        while (record := await finished.get()) is not None:
            yield record
        if stop:
            raise stop[0]
    finally:
        for task in (*places, ended):
            task.cancel()
        await asyncio.gather(*places, ended, return_exceptions=True)


async def _after(places: Sequence[asyncio.Future[None]], finished: asyncio.Queue[Record | None]) -> None:
    await asyncio.gather(*places, return_exceptions=True)
    await finished.put(None)


async def _record(
    prompt: Prompt,
    propose: Propose,
    judges: Sequence[Judge],
    eligible: Callable[[Sequence[Candidate]], list[Candidate]],
    stopping: Stopping,
    enough: Enough | None,
) -> Record:
    """Candidates and what was said of them: once, all together; with `enough`, round after round, each by itself."""
    candidates: list[Candidate] = []
    verdicts: list[Verdict] = []
    while True:
        new = await propose(prompt, len(candidates))
        candidates += degenerate.marked(prompt, new)
        judged = {c for verdict in verdicts for c in verdict.shown}
        shown = [c for c in eligible(candidates) if c.id not in judged]
        if len(shown) >= (2 if enough is None else 1):
            alone = enough is not None
            for said in await all_of(*(_verdicts(prompt, shown, judge, stopping, alone=alone) for judge in judges)):
                verdicts.extend(said)
        hopeless = all((c.error or "").startswith(_HOPELESS) for c in new)
        if enough is None or enough(verdicts) or hopeless:
            return Record(prompt, tuple(candidates), tuple(verdicts))
        reason = stopping()
        if reason is not None:
            raise reason


async def _verdicts(
    prompt: Prompt, candidates: Sequence[Candidate], judge: Judge, stopping: Stopping, *, alone: bool
) -> list[Verdict]:
    """What the judge says of the groups that its schedule asks about, round after round, in the order asked."""

    async def ask(group: Sequence[int]) -> Verdict | None:
        reason = stopping()
        if reason is not None:
            raise reason
        return await judge(prompt, [candidates[k] for k in group], candidates)

    verdicts: list[Verdict] = []
    rounds = (Every(1) if alone else judge.schedule).rounds([c.id for c in candidates], seed_of(prompt.id))
    groups = next(rounds, None)
    while groups:
        said = await all_of(*(ask(group) for group in groups))
        verdicts += [verdict for verdict in said if verdict is not None]
        try:
            groups = rounds.send(said)
        except StopIteration:
            break
    return verdicts
