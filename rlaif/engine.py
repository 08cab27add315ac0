"""Prompts in, records out, as they finish.

A prompt's own work is sampling, then judging; different prompts overlap, at most `window` of them. The first judgement of
a prompt goes ahead of its others, so that these find the shared prefix in the endpoint's cache. When the run has to stop,
nothing new begins, what is in flight ends and is stored, and StopRun is raised at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from rlaif import pairs
from rlaif.aio import all_of
from rlaif.errors import StopRun
from rlaif.ranking import schedule
from rlaif.types import Candidate, Judge, Prompt, Propose, Record, Verdict


async def run(
    prompts: Iterable[tuple[int, Prompt]],
    propose: Propose,
    judges: Sequence[Judge],
    *,
    window: int,
    allow_truncated: bool,
    stopping: Callable[[], StopRun | None] = lambda: None,
) -> AsyncGenerator[Record, None]:
    """Yields each prompt's record when it is finished, in no fixed order. Raises StopRun.

    `stopping` is asked before a prompt or a judgement begins; the reason that it gives ends the run.
    """
    waiting = iter(prompts)
    running: set[asyncio.Task[Record]] = set()
    stop: BaseException | None = None

    def start() -> bool:
        item = next(waiting, None)
        if item is not None:
            running.add(asyncio.ensure_future(_record(item[1], propose, judges, allow_truncated, stopping)))
        return item is not None

    try:
        while True:
            stop = stop or stopping()
            while stop is None and len(running) < window and start():
                pass
            if not running:
                break
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            running -= done
            for task in done:
                error = task.exception()
                if error is None:
                    yield task.result()
                elif stop is None or not isinstance(error, StopRun):
                    stop = error
        if stop is not None:
            raise stop
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _record(
    prompt: Prompt,
    propose: Propose,
    judges: Sequence[Judge],
    allow_truncated: bool,
    stopping: Callable[[], StopRun | None],
) -> Record:
    candidates = await propose(prompt)
    shown = pairs.eligible(candidates, allow_truncated=allow_truncated)
    verdicts: list[Verdict] = []
    if len(shown) >= 2:
        for said in await all_of(*(_verdicts(prompt, shown, judge, stopping) for judge in judges)):
            verdicts.extend(said)
    return Record(prompt, tuple(candidates), tuple(verdicts))


async def _verdicts(
    prompt: Prompt, candidates: Sequence[Candidate], judge: Judge, stopping: Callable[[], StopRun | None]
) -> list[Verdict]:
    async def ask(group: Sequence[int]) -> Verdict:
        reason = stopping()
        if reason is not None:
            raise reason
        return await judge(prompt, [candidates[k] for k in group], candidates)

    first, *others = schedule.groups(len(candidates), judge.arity)
    return [await ask(first), *await all_of(*(ask(group) for group in others))]
