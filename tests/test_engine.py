"""Prompts in, records out: what waits for what, what is held in memory, and how it ends.

What gives the candidates and what judges them are objects of the two protocols, as slow or as broken as a test needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif import engine
from rlaif.errors import StopRun
from rlaif.ranking.schedule import Every
from rlaif.types import Candidate, Prompt, Record, Verdict

WINDOW = 4
T = TypeVar("T")


class Work:
    """Proposes `answers` candidates a prompt, judges and saves; notes what begins and what ends.

    `slow` is awaited in each step, with the step's name and the prompt's number; what it raises, the step raises.
    """

    name, digest = "judge", ""

    def __init__(
        self, slow: Callable[[str, int], Awaitable[object]] | None = None, *, answers: int = 2, arity: int | None = 2
    ) -> None:
        self.slow, self.answers, self.arity, self.schedule = slow, answers, arity, Every(arity)
        self.began: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []
        self.shown: list[tuple[str, ...]] = []
        self.open = self.most_open = 0

    async def propose(self, prompt: Prompt, have: int = 0) -> list[Candidate]:
        await self._step("propose", prompt.ordinal)
        return [Candidate(f"{prompt.id}/{k}", f"Answer {k}.") for k in range(self.answers)]

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        ids = tuple(c.id for c in shown)
        self.shown.append(ids)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await self._step("judge", prompt.ordinal)
        finally:
            self.open -= 1
        return Verdict(self.name, ids, tuple(float(k) for k in range(len(ids))))

    async def save(self, record: Record) -> None:
        await self._step("save", record.ordinal)

    async def _step(self, name: str, k: int) -> None:
        self.began.append((name, k))
        if self.slow is not None:
            await self.slow(name, k)
        self.ended.append((name, k))

    def numbers(self, name: str) -> list[int]:
        """The prompts for which the step has ended, in the order it did."""
        return [k for step, k in self.ended if step == name]

    def run(self, prompts: int | Iterator[Prompt] = 20, *, window: int = WINDOW, **more: Any) -> AsyncGenerator[Record, None]:
        given = numbered(prompts) if isinstance(prompts, int) else prompts
        return engine.run(given, self.propose, [self], window=window, allow_truncated=False, save=self.save, **more)


def numbered(most: int | None = None) -> Iterator[Prompt]:
    for k in count() if most is None else range(most):
        yield Prompt(f"p{k}", ({"role": "user", "content": f"{k}?"},), ordinal=k)


async def read(records: AsyncGenerator[Record, None], into: list[int] | None = None) -> list[int]:
    """The numbers of the prompts as their records come."""
    found = [] if into is None else into
    async for record in records:
        found.append(record.ordinal)
    return found


async def settled() -> None:
    """Lets everything run that can."""
    for _ in range(200):
        await asyncio.sleep(0)


def ran(work: Coroutine[Any, Any, T]) -> T:
    """Runs it, and fails if a task is left behind."""

    async def main() -> T:
        try:
            async with asyncio.timeout(20):
                return await work
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(main())


# Who is judged


@pytest.mark.parametrize("allowed", [False, True])
def test_degenerate_answers_are_marked_in_the_record_and_not_shown_to_judges(allowed: bool) -> None:
    class Looping(Work):
        async def propose(self, prompt: Prompt, have: int = 0) -> list[Candidate]:
            texts = ("the tide " * 40, "Gravity.", "Because the moon pulls.", "Yes!!!!!!!!!!")
            return [Candidate(f"{prompt.id}/{k}", text) for k, text in enumerate(texts)]

    async def main() -> None:
        work = Looping(arity=1)
        async for record in engine.run(
            numbered(3), work.propose, [work], window=2, allow_truncated=False, allow_degenerate=allowed
        ):
            assert [c.degenerate for c in record.candidates] == ["looping", None, None, "tail"]
        assert {shown[0][-1] for shown in work.shown} == (set("0123") if allowed else set("12"))

    ran(main())


# What waits for what


@pytest.mark.parametrize("step", ["propose", "judge", "save"])
def test_one_slow_prompt_delays_no_other(step: str) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def slow(name: str, k: int) -> None:
            if (name, k) == (step, 2):
                await go_on.wait()

        records, found = Work(slow).run(30), []
        for _ in range(29):
            found.append((await anext(records)).ordinal)
        assert sorted(found) == [k for k in range(30) if k != 2]
        go_on.set()
        assert await read(records) == [2]

    ran(main())


def test_a_full_window_is_at_work_and_no_more() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def slow(name: str, k: int) -> None:
            await go_on.wait()

        work = Work(slow)
        reading = asyncio.ensure_future(read(work.run(numbered(9))))
        await settled()
        assert work.began == [("propose", k) for k in range(WINDOW)]
        go_on.set()
        assert sorted(await reading) == list(range(9))

    ran(main())


def test_a_reader_that_does_not_read_stops_the_work_and_the_reading_of_prompts() -> None:
    async def main() -> None:
        prompts, work = numbered(), Work()
        records = work.run(prompts)
        await anext(records)
        await settled()
        waiting = len(work.numbers("save")) - 1
        assert WINDOW <= waiting <= 2 * WINDOW  # in the queue, and one in each place
        assert next(prompts).ordinal == len(work.numbers("save")), "prompts are read when their turn comes"
        for k in range(1, 50):
            await anext(records)
            await settled()
            assert len(work.numbers("save")) - k - 1 <= 2 * WINDOW
        await records.aclose()

    ran(main())


def test_the_first_judgement_goes_ahead_of_its_others() -> None:
    async def main() -> list[int]:
        open_at_end: list[int] = []

        async def slow(name: str, k: int) -> None:
            if name == "judge":
                await asyncio.sleep(0)
                open_at_end.append(work.open)

        work = Work(slow, answers=3)
        await read(work.run(1))
        return open_at_end

    assert ran(main()) == [1, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(("answers", "arity", "groups"), [(3, 2, 6), (3, 1, 3), (3, None, 1), (2, 2, 2), (1, 2, 0), (0, 1, 0)])
def test_verdicts_have_a_fixed_order_whatever_time_they_take(answers: int, arity: int | None, groups: int) -> None:
    async def main(reverse: bool) -> list[tuple[str, ...]]:
        async def slow(name: str, k: int) -> None:
            left = groups - len(work.shown)
            await asyncio.sleep((left if reverse else len(work.shown)) / 1000 if name == "judge" else 0)

        work = Work(slow, answers=answers, arity=arity)
        (record,) = [record async for record in work.run(1)]
        assert len(record.candidates) == answers and sorted(v.shown for v in record.verdicts) == sorted(work.shown)
        return [v.shown for v in record.verdicts]

    found = ran(main(reverse=True))
    assert found == ran(main(reverse=False)) and len(set(found)) == len(found) == groups


def test_a_record_is_saved_before_it_is_yielded() -> None:
    async def main() -> None:
        async def slow(name: str, k: int) -> None:
            await asyncio.sleep(0.001 * (k % 3))

        work = Work(slow)
        async for record in work.run(40):
            assert ("save", record.ordinal) in work.ended
        assert sorted(work.numbers("save")) == list(range(40))

    ran(main())


def test_no_prompts_end_at_once() -> None:
    assert ran(read(Work().run(0))) == []


# How it ends


ERRORS = [StopRun("quota", "no money left"), ZeroDivisionError("a bug")]


@pytest.mark.parametrize("error", ERRORS, ids=["stop", "bug"])
@pytest.mark.parametrize("step", ["propose", "judge", "save"])
def test_what_is_in_flight_ends_and_nothing_new_begins(step: str, error: Exception) -> None:
    """The second prompt fails while the others of the window are in the same step. Theirs ends; no step of theirs follows."""

    async def main() -> None:
        failed, told = asyncio.Event(), []

        async def slow(name: str, k: int) -> None:
            if name == step and k == 1:
                await settled()
                failed.set()
                raise error
            if name == step:
                await failed.wait()
                await settled()

        work, found = Work(slow), []
        with pytest.raises(type(error)) as caught:
            await read(work.run(20, on_stop=told.append), found)
        assert caught.value is error
        others = [0, 2, 3]
        assert sorted(k for name, k in work.ended if name == step) == others, "what was in flight has ended"
        assert max(k for _, k in work.began) == 3, "no other prompt was begun"
        if step == "propose":
            assert not [k for name, k in work.began if name != "propose"] and found == []
        if step == "judge":
            assert len(work.shown) == WINDOW, "the second order of a pair is not asked"
        if step == "save":
            assert sorted(found) == others, "what was saved is yielded"
        (reason,) = told
        assert isinstance(reason, StopRun) and (reason is error or not isinstance(error, StopRun))

    ran(main())


@pytest.mark.parametrize("first", ["stop", "bug"])
def test_a_bug_counts_for_more_than_a_reason_to_stop(first: str) -> None:
    async def slow(name: str, k: int) -> None:
        if name == "judge" and k in (0, 2):
            is_first = (k == 0) == (first == "bug")
            await asyncio.sleep(0.0 if is_first else 0.02)
            raise ERRORS[1] if k == 0 else ERRORS[0]

    with pytest.raises(ZeroDivisionError):
        ran(read(Work(slow).run(20)))


def test_the_first_of_several_reasons_is_the_one_that_is_raised() -> None:
    async def slow(name: str, k: int) -> None:
        await asyncio.sleep(0.01 * (3 - k))
        raise StopRun("quota", str(k))

    with pytest.raises(StopRun, match="3"):
        ran(read(Work(slow).run(20)))


def test_a_reason_from_outside_is_asked_for_before_each_prompt_and_each_judgement() -> None:
    reasons: list[StopRun] = []

    async def slow(name: str, k: int) -> None:
        if (name, k) == ("judge", 5):
            reasons.append(StopRun("interrupted", "enough"))

    async def main() -> None:
        work, found = Work(slow, answers=3), []
        with pytest.raises(StopRun, match="enough"):
            await read(work.run(20, window=1, stopping=lambda: reasons[0] if reasons else None), found)
        assert found == list(range(5)) and work.numbers("judge").count(5) == 1 and work.began[-1] == ("judge", 5)

    ran(main())


def test_a_reason_there_is_from_the_start_lets_nothing_begin() -> None:
    work = Work()
    with pytest.raises(StopRun, match="enough"):
        ran(read(work.run(20, stopping=lambda: StopRun("interrupted", "enough"))))
    assert work.began == []


def test_an_error_of_the_prompts_themselves_ends_the_run_after_those_before_it() -> None:
    def prompts() -> Iterator[Prompt]:
        yield from numbered(6)
        raise StopRun("damaged", "the file ends here")

    found: list[int] = []
    with pytest.raises(StopRun, match="ends here"):
        ran(read(Work().run(prompts()), found))
    assert set(found) >= {0, 1, 2} and len(found) == len(set(found))


@pytest.mark.parametrize("step", ["propose", "judge", "save"])
@pytest.mark.parametrize("read_first", [0, 3])
def test_closing_early_cancels_everything(step: str, read_first: int) -> None:
    async def main() -> None:
        cancelled: list[tuple[str, int]] = []

        async def slow(name: str, k: int) -> None:
            if name == step and k >= read_first:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.01)
                    cancelled.append((name, k))
                    raise

        work = Work(slow)
        records = work.run(20)
        for _ in range(read_first):
            await anext(records)
        ahead = asyncio.ensure_future(anext(records))
        await settled()
        ahead.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ahead
        await records.aclose()
        assert sorted(cancelled) == [(step, k) for k in range(read_first, read_first + WINDOW)]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_before_the_first_record_is_asked_for_begins_nothing() -> None:
    async def main() -> None:
        work = Work()
        await work.run(20).aclose()
        await settled()
        assert work.began == []

    ran(main())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.dictionaries(st.integers(0, 11), st.sampled_from(ERRORS)), st.randoms())
def test_every_prompt_is_saved_and_yielded_once_or_the_run_says_why_not(
    prompts: int, window: int, failing: dict[int, Exception], random: Any
) -> None:
    async def slow(name: str, k: int) -> None:
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        if name == "judge" and k in failing:
            raise failing[k]

    work, found = Work(slow), list[int]()
    errors = [failing[k] for k in range(prompts) if k in failing]
    try:
        ran(read(work.run(prompts, window=window), found))
        assert not errors and sorted(found) == list(range(prompts))
    except (StopRun, ZeroDivisionError) as error:
        assert error in errors
    assert sorted(found) == sorted(work.numbers("save")) and len(set(found)) == len(found)
    proposed = work.numbers("propose")
    assert proposed == sorted(proposed) or window > 1
    assert not set(found) & failing.keys()
