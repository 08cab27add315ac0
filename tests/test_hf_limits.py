"""What ends the calls of a transformers model before they are answered: windows, memory, stops, an engine that breaks down.

Nothing is faked but memory that runs out: a wrapper around the network, or a mode of torch that sees every operation,
raises torch's own error. Skipped where transformers is missing.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import Books
from tiny import PROMPTS, Noted, answers, ask, chat_of, judge_calls, make, said, user

from rlaif.errors import CallFailed, StopRun
from rlaif.models.hf import prefixes
from rlaif.models.hf.worker import Job, Worker
from rlaif.types import Reply, Request

torch = pytest.importorskip("torch", reason="torch is missing: pip install 'rlaif[local]'")
transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install 'rlaif[local]'")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - as the next

from rlaif.models.hf import network, running, slots  # noqa: E402 - they need torch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lengths_ends_and_what_does_not_fit_the_window(llama: Path, tmp_path: Path):
    short = Request(user("Hi"), n=2, temperature=1.0, max_tokens=5, seed=1)
    endless = Request(user("Hi"), temperature=0.0)
    long = Request(user("a" * 600), max_tokens=3)
    tool = Request(({"role": "tool", "content": "x"},), max_tokens=3)
    five, whole, too_long, refused = ask(make(llama, tmp_path), short, endless, long, tool)
    assert five.completion_tokens <= 10 and {c.finish for c in five.choices} <= {"length", "stop"}
    assert whole.prompt_tokens + whole.completion_tokens <= 512
    assert isinstance(too_long, CallFailed) and too_long.kind == "too_long" and "512" in str(too_long)
    assert isinstance(refused, CallFailed) and refused.kind == "bad_request" and "no tools here" in str(refused)


class Limited:
    """A network for which memory runs out, as torch says it, when so many numbers of states go in at once."""

    def __init__(self, model: Any, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.model, self.most, self.error, self.refused = model, most, error, 0

    def __call__(self, **inputs: Any) -> Any:
        if inputs["attention_mask"].numel() > self.most:
            self.refused += 1
            raise self.error("CUDA out of memory. Tried to allocate more than there is")
        return self.model(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_when_memory_runs_out_less_is_done_at_once_and_nothing_else_changes(llama: Path, error: type[Exception]):
    loaded = network.load(llama, dtype=None)
    requests = [Request(p, n=3, temperature=1.0, max_tokens=40, seed=i) for i, p in enumerate(PROMPTS)]
    requests += judge_calls(random.Random(1), 1)
    wanted = answers(chat_of(loaded), requests)
    loaded.model = Limited(loaded.model, 420, error)
    chat = chat_of(loaded)
    found = answers(chat, requests)
    for ours, theirs, request in zip(found, wanted, requests, strict=True):
        assert request.logprobs or said(ours) == said(theirs)
        if request.logprobs:
            ours, theirs = (one.choices[0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] for one in (ours, theirs))
            assert ours == pytest.approx(theirs, abs=1e-4)
    refused = loaded.model.refused
    assert 0 < refused < 12 and chat.most_rows < running.CPU_ROWS
    answers(chat, requests[:5])
    assert loaded.model.refused - refused <= 2, "the size that worked is remembered"


def test_one_that_does_not_fit_alone_fails_alone(llama: Path):
    loaded = network.load(llama, dtype=None)
    loaded.model = Limited(loaded.model, 80)
    big = Request(user("b" * 100), n=2, temperature=0.0, max_tokens=5)
    grows = Request(user("c"), temperature=0.0, max_tokens=200)
    small = Request(user("d"), n=2, temperature=1.0, max_tokens=20, seed=1)
    first, second, third = answers(chat_of(loaded), [big, grows, small])
    assert isinstance(first, CallFailed) and "memory" in str(first)
    assert isinstance(second, CallFailed) or second.choices[0]["finish_reason"] == "stop"
    assert isinstance(third, running.Answered) and len(third.choices) == 2


class Scarce(TorchDispatchMode):
    """Memory runs out at operations that make new tensors, all of them counted: at those that `refused` says.

    `inside` functions alone, where some are given: only operations that they lead to are counted.
    """

    def __init__(self, refused: Callable[[int], bool], *inside: Any) -> None:
        super().__init__()
        self.refused, self.codes, self.count = refused, {function.__code__ for function in inside}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any("Tensor" in str(made.type) and made.alias_info is None for made in func._schema.returns) and self._here():
            self.count += 1
            if self.refused(self.count):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return func(*args, **kwargs or {})

    def _here(self) -> bool:
        frame = sys._getframe(2) if self.codes else None
        while frame is not None and frame.f_code not in self.codes:
            frame = frame.f_back
        return frame is not None or not self.codes


def mixed() -> list[Request]:
    """Answers of several lengths, constrained ones, verdicts, and a long prompt whose columns are taken away when it ends."""
    long = [Request(p, n=3, temperature=1.0, max_tokens=40, seed=i) for i, p in enumerate(PROMPTS)]
    wide = Request(user("z" * 200), n=2, temperature=1.0, max_tokens=4, seed=1)
    bound = Request(user("yes?"), n=2, temperature=1.0, max_tokens=20, seed=1, choices=("yes", "yesterday", "no"))
    return [*long, wide, bound, *judge_calls(random.Random(1), 2)[::3]]


def same(one: Any, other: running.Answered) -> bool:
    """The same answers, or the same log-probabilities of a verdict, which has no seed."""
    if not isinstance(one, running.Answered) or "logprobs" not in other.choices[0]:
        return isinstance(one, running.Answered) and said(one) == said(other)
    first, second = ([x["logprob"] for x in a.choices[0]["logprobs"]["content"][0]["top_logprobs"]] for a in (one, other))
    return first == pytest.approx(second, abs=1e-4)


def agree(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(same(one, other) for one, other in zip(found, wanted, strict=True))


SCARCE = {
    "put": (slots.Slots.put,),
    "narrow": (slots.Slots.narrow,),
    "hold": (prefixes.Held.put,),
    "choose": (running.Chat._choose,),
    "begin": (running.Chat._begin,),
    "forward": (network.Network.forward,),
    "anywhere": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", SCARCE)
def test_memory_that_runs_out_once_anywhere_changes_no_answer(llama: Path, place: str):
    loaded = network.load(llama, dtype=None)
    wanted = answers(chat_of(loaded), mixed())
    with Scarce(lambda _: False, *SCARCE[place]) as counting:
        assert agree(answers(chat_of(loaded), mixed()), wanted)
    assert counting.count > 0 or place == "narrow"
    for number in sorted(random.Random(7).sample(range(1, counting.count + 1), min(6, counting.count))):
        with Scarce(lambda count, number=number: count == number, *SCARCE[place]):
            assert agree(answers(chat_of(loaded), mixed()), wanted), f"operation {number}"


def test_memory_that_runs_out_again_and_again_slows_down_and_ends_nothing(llama: Path):
    loaded = network.load(llama, dtype=None)
    wanted = answers(chat_of(loaded), mixed())
    with Scarce(lambda count: count % 3000 > 2990):
        found = answers(chat_of(loaded), mixed())
    failed = [one for one in found if not isinstance(one, running.Answered)]
    assert all(isinstance(one, CallFailed) and "memory" in str(one) for one in failed)
    assert len(failed) <= 2 and sum(same(*pair) for pair in zip(found, wanted, strict=True)) == len(found) - len(failed)


@pytest.mark.parametrize("place", ["put", "choose", "forward"])
def test_a_row_that_fits_not_even_alone_fails_and_later_calls_are_answered(llama: Path, place: str):
    loaded = network.load(llama, dtype=None)
    chat = chat_of(loaded)
    rows = [Request(PROMPTS[0], n=2, temperature=1.0, max_tokens=9, seed=1), Request(PROMPTS[1], max_tokens=9, seed=1)]
    verdict = judge_calls(random.Random(1), 1)[0]
    with Scarce(lambda _: True, *SCARCE[place]):
        *found, judged = answers(chat, [*rows, verdict])
    assert all(isinstance(one, CallFailed) and one.kind == "too_long" and "memory" in str(one) for one in found)
    assert isinstance(judged, running.Answered if place == "put" else CallFailed)
    assert chat.most_rows == running.CPU_ROWS, "what fits nowhere does not make the others few"
    assert agree(answers(chat, [*rows, verdict]), answers(chat_of(loaded), [*rows, verdict]))


@pytest.mark.slow
def test_a_row_that_needs_what_others_have_waits_until_it_is_alone(llama: Path):
    """Memory for one long row or several short ones: all are answered, whichever comes first."""
    loaded = network.load(llama, dtype=None)
    requests = [Request(user("y" * 150), temperature=1.0, max_tokens=30, seed=1), *(r for r in mixed() if r.max_tokens == 40)]
    wanted = answers(chat_of(loaded), requests)
    for order in (list(range(len(requests))), list(reversed(range(len(requests))))):
        loaded.model = Limited(loaded.model, 200)
        found = answers(chat_of(loaded), [requests[i] for i in order])
        loaded.model = loaded.model.model
        assert agree(found, [wanted[i] for i in order])


def test_another_error_of_the_network_is_not_taken_for_memory(llama: Path):
    loaded = network.load(llama, dtype=None)
    loaded.model = Limited(loaded.model, 0, ValueError)
    with pytest.raises(ValueError, match="out of memory"):
        answers(chat_of(loaded), [Request(user("Hi"), max_tokens=3)])


def test_a_short_answer_does_not_wait_for_long_ones(llama: Path):
    loaded = network.load(llama, dtype=None)
    chat = chat_of(loaded)
    long = [Noted(Request(p, n=2, temperature=1.0, max_tokens=300, seed=i)) for i, p in enumerate(PROMPTS)]
    short, verdict = Noted(Request(user("Hi"), max_tokens=3, seed=1)), Noted(judge_calls(random.Random(1), 1)[0])
    chat.take(list(long))
    for _ in range(5):
        chat.step()
    chat.take([short, verdict])
    for _ in range(3):
        chat.step()
    assert short.outcome is not None and verdict.outcome is not None
    assert sum(job.outcome is None for job in long) >= 3
    for job in long:
        job.gone = True
    assert chat.step() is False, "what nobody waits for is dropped"


def test_stopping_ends_what_waits_and_lets_what_runs_end(llama: Path, tmp_path: Path):
    async def run() -> list[Any]:
        model = make(llama, tmp_path)
        running_ = [asyncio.ensure_future(model.send(Request(p, n=30, max_tokens=60, seed=1), Books())) for p in PROMPTS]
        while model.state()["in_flight"] == 0:
            await asyncio.sleep(0.001)
        model.stop(StopRun("budget", "no more"))
        with pytest.raises(StopRun, match="no more"):
            await model.send(Request(user("late")), Books())
        found = await asyncio.gather(*running_, return_exceptions=True)
        await model.close()
        return found

    found = asyncio.run(run())
    ended = [one for one in found if isinstance(one, Reply)]
    stopped = [one for one in found if isinstance(one, StopRun) and one.kind == "budget"]
    assert ended and stopped and len(ended) + len(stopped) == len(PROMPTS)


def test_closing_ends_every_call_and_the_loop_goes_on_meanwhile(llama: Path, tmp_path: Path):
    async def run() -> tuple[list[Any], float]:
        model = make(llama, tmp_path)
        calls = [asyncio.ensure_future(model.send(Request(p, n=8, max_tokens=400, seed=1), Books())) for p in PROMPTS]
        calls[0].cancel()
        longest, last = 0.0, time.monotonic()
        while model.state()["in_flight"] == 0:
            await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await model.close()
        return await asyncio.gather(*calls, return_exceptions=True), longest

    found, _ = asyncio.run(run())
    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.kind for one in found[1:] if isinstance(one, StopRun)} <= {"closed"}
    assert all(isinstance(one, (StopRun, Reply)) for one in found[1:])


class Echo:
    """An engine that says what it is given, and breaks down over a word."""

    def __init__(self) -> None:
        self.line: list[Job] = []

    def take(self, jobs: list[Job]) -> None:
        self.line += jobs

    def step(self) -> bool:
        while self.line:
            job = self.line.pop()
            if job.work == "broken":
                raise RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
            job.finish(job.work)
        return False


def test_an_engine_that_breaks_down_stops_the_run_and_fails_no_single_call():
    async def run() -> tuple[list[Any], Worker]:
        worker = Worker("hf-tiny", Echo)
        assert await worker.run("hi") == "hi"
        found = await asyncio.gather(*map(worker.run, ["broken", "beside", "too"]), return_exceptions=True)
        found += await asyncio.gather(worker.run("later"), return_exceptions=True)
        await worker.close()
        return found, worker

    found, worker = asyncio.run(run())
    stops = [one for one in found if not isinstance(one, str)]
    assert isinstance(found[0], StopRun) and isinstance(found[3], StopRun) and set(stops) == {worker.stopped}
    assert stops[0].kind == "model" and str(stops[0]).endswith("RuntimeError: CUDA error: device-side assert triggered")
    assert isinstance(stops[0].__cause__, RuntimeError)


def test_any_thread_may_ask_for_the_state_while_calls_come_and_go():
    found: list[Any] = []

    async def run() -> None:
        worker = Worker("hf-tiny", Echo)
        ended = threading.Event()

        def watch() -> None:
            try:
                while not ended.is_set():
                    found.append(worker.state("tiny", 64))
            except RuntimeError as error:
                found.append(error)

        watching = threading.Thread(target=watch)
        watching.start()
        for _ in range(5):
            await asyncio.gather(*map(worker.run, range(1500)))
        ended.set()
        watching.join()
        await worker.close()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        asyncio.run(run())
    finally:
        sys.setswitchinterval(before)
    assert [one for one in found if isinstance(one, RuntimeError)] == []
    assert all(one["in_flight"] >= 0 and one["waiting"] >= 0 for one in found) and any(one["waiting"] for one in found)
