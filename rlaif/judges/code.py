"""A judge that is the user's own function: no registration, no base class.

    def shortest(prompt, candidates):
        return [-float(len(c.text)) for c in candidates]

It gets a Prompt and the candidates it is to score, and returns one number each (higher is better) or a Verdict. It may be
async, may set `arity` to be called on that many at a time and `timeout_s` to have more or less time, and raises to abstain.
Its verdicts are kept in the ledger under a digest of its source: an unchanged function is not run twice on the same
candidates. A call that raises or hangs harms its own item only, unless the function fails from the start in the same way
on every item, or hangs again and again: that stops the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import json
import math
import re
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.judges.runners import Hung, Outcome, TaskRunner, ThreadRunner
from rlaif.judges.source import source_digest
from rlaif.keys import digest, plain
from rlaif.ledger import KEY_BYTES, Failure, Ledger, Stored
from rlaif.prices import Usage
from rlaif.ranking.schedule import Every
from rlaif.types import Candidate, Prompt, Schedule, Verdict

TIMEOUT_S = 300.0
_NOTHING = Usage(0, 0, 0)
_SAME_AT_FIRST = 5
_ABANDONED = 4
_REMEMBERED = 256
_LONGEST_MESSAGE = 1000
_PARTICULARS = re.compile(r"0x[0-9a-fA-F]+|\d+|'[^']*'|\"[^\"]*\"")
_LIBRARIES = tuple({str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

JudgeFunction = Callable[[Prompt, Sequence[Candidate]], Any]


class Engine(Protocol):
    """What a function works with and does not own."""

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin."""

    async def close(self) -> None:
        """Frees what it holds."""


class CodeJudge:
    """Calls a function and keeps what it said: an async one at most 64 times at once, others one after another, in a thread.

    A call may take `timeout_s`, or what the function's own attribute of that name says. `engine` is what the function works
    with, a reward model say: it is stopped and closed with the judge.
    """

    def __init__(
        self,
        function: JudgeFunction,
        ledger: Ledger,
        tally: Tally,
        *,
        name: str | None = None,
        source: str | None = None,
        timeout_s: float = TIMEOUT_S,
        engine: Engine | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.arity = arity_of(function)
        self.schedule = schedule or Every(self.arity)
        self.digest = digest(["code", self.name, source or source_digest(function), self.arity])
        self._function, self._ledger, self._tally, self._engine = function, ledger, tally, engine
        self._timeout_s = timeout_of(function, timeout_s)
        kind = (TaskRunner, self._verdict_later) if _is_async(function) else (ThreadRunner, self._verdict)
        self._new_runner: Callable[..., ThreadRunner | TaskRunner] = kind[0]
        self._work: Callable[..., Any] = kind[1]
        self._runner: ThreadRunner | TaskRunner | None = None
        self._stopped: StopRun | None = None
        self._asked: dict[int, tuple[Prompt, hashlib.blake2b]] = {}
        self._worked, self._failures, self._abandoned = False, list[str](), 0

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin: those that wait for their turn raise `reason`."""
        self._stopped = reason
        if self._runner is not None:
            self._runner.stop(reason)
        if self._engine is not None:
            self._engine.stop(reason)

    async def close(self) -> None:
        """Closes the engine, if there is one."""
        if self._engine is not None:
            await self._engine.close()

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The function's verdict on `shown`; one that raises, hangs or returns no usable scores has an error instead."""
        ids = tuple([c.id for c in shown])
        key = self._key(prompt, shown)
        stored = self._stored(prompt, key)
        if isinstance(stored, Failure):
            return Verdict(self.name, ids, None, error=f"{stored.kind}: {stored.message}")
        if stored is not None:
            self._tally.reused += 1
            self._worked = True
            return _load(self.name, ids, self._ledger.body(stored.call))
        verdict: Verdict
        try:
            verdict, error = await self._run(prompt, shown, ids)
        except Hung as hung:
            return await self._gave_up(prompt, key, ids, hung)
        if error is not None:
            return await self._raised(prompt, key, ids, error)
        self._worked = True
        if verdict.scores is None and verdict.reason is None:  # a failure, which --retry-failed opens again
            kind, colon, message = (verdict.error or "").partition(": ")
            kind, message = (kind, message) if colon else ("abstained", kind)
            await self._fail(prompt, key, kind, message)
            return replace(verdict, error=f"{kind}: {message}")
        await self._keep(prompt, key, verdict)
        self._tally.bought("judge", 0.0)
        return verdict

    # The function

    async def _run(self, prompt: Prompt, shown: Sequence[Candidate], ids: tuple[str, ...]) -> Outcome:
        """(its verdict, None), or (None, what it raised). Raises Hung or StopRun."""
        loop = asyncio.get_running_loop()
        if self._runner is None or self._runner.loop is not loop:
            self._runner = self._new_runner(loop, self._timeout_s, f"judge-{self.name}")
        if self._stopped is not None:
            raise self._stopped
        return await self._runner.run(self._work, prompt, shown, ids)

    def _verdict(self, prompt: Prompt, shown: Sequence[Candidate], ids: tuple[str, ...]) -> Verdict:
        return _read(self.name, ids, self._function(prompt, shown))

    async def _verdict_later(self, prompt: Prompt, shown: Sequence[Candidate], ids: tuple[str, ...]) -> Verdict:
        return _read(self.name, ids, await self._function(prompt, shown))

    # When it fails

    async def _raised(self, prompt: Prompt, key: bytes, ids: tuple[str, ...], error: BaseException) -> Verdict:
        """The failed verdict, stored. Raises StopRun if the function seems to fail on everything."""
        if isinstance(error, StopRun):
            raise error
        message = _message(error)
        hopeless = self._hopeless(message)
        await self._fail(prompt, key, "judge_raised", message)
        if hopeless:
            raise self._stop(
                f"the judge {self.name!r} failed in the same way on each of its first {_SAME_AT_FIRST} calls: {message}"
                f" ({_place(error, self._function)}). Correct it and run again, with --retry-failed if what you change is"
                " outside its file; a judge that means to abstain returns a Verdict whose scores are None"
            )
        return Verdict(self.name, ids, None, error=f"judge_raised: {message}")

    def _hopeless(self, message: str) -> bool:
        """Whether the function has failed like this, but for the particulars, on every call so far."""
        if not self._worked:
            self._failures.append(_PARTICULARS.sub("#", message))
            self._worked = len(set(self._failures)) > 1  # it looks at what it gets
        return not self._worked and len(self._failures) >= _SAME_AT_FIRST

    async def _gave_up(self, prompt: Prompt, key: bytes, ids: tuple[str, ...], hung: Hung) -> Verdict:
        """The failed verdict, stored. Raises StopRun when too many calls run on without an end."""
        message = f"it did not return within {self._timeout_s:g} s"
        await self._fail(prompt, key, "judge_hung", message)
        self._abandoned += hung.abandoned
        if self._abandoned >= _ABANDONED:
            raise self._stop(
                f"the judge {self.name!r} did not return within {self._timeout_s:g} s for {self._abandoned} calls, the last one"
                f" on prompt {prompt.id!r}. If it only needs longer, set `{self.name}.timeout_s` beside the function; else"
                " correct it. Then run again with --retry-failed; without it, the same command goes on with the other prompts"
            )
        return Verdict(self.name, ids, None, error=f"judge_hung: {message}")

    def _stop(self, message: str) -> StopRun:
        """Stops the run, unless it is being stopped; returns the reason."""
        if self._stopped is None:
            self.stop(StopRun("judge", message))
        assert self._stopped is not None
        return self._stopped

    # The ledger

    def _key(self, prompt: Prompt, shown: Sequence[Candidate]) -> bytes:
        """The content of a call. The prompt is hashed once, however often it is asked about."""
        known = self._asked.get(id(prompt))
        if known is None or known[0] is not prompt:
            known = (prompt, hashlib.blake2b(f"{self.digest} {_prompt_digest(prompt)}\n".encode(), digest_size=KEY_BYTES))
            if len(self._asked) >= _REMEMBERED:
                del self._asked[next(iter(self._asked))]
            self._asked[id(prompt)] = known
        hasher = known[1].copy()
        for c in shown:
            text = c.text.encode("utf-8", "surrogatepass")
            hasher.update(f"{len(text)} {c.model!r} {c.score!r}\n".encode())
            hasher.update(text)
        return hasher.digest()

    def _stored(self, prompt: Prompt, key: bytes) -> Stored | Failure | None:
        return self._ledger.lookup(prompt.ordinal, key)

    async def _keep(self, prompt: Prompt, key: bytes, verdict: Verdict) -> None:
        body = {"scores": verdict.scores, "scale": verdict.scale, "error": verdict.error, "reason": verdict.reason}
        await self._ledger.keep(
            prompt.ordinal, [key], json.dumps(body).encode(), role="judge", model=self.name, free=True, usage=_NOTHING
        )

    async def _fail(self, prompt: Prompt, key: bytes, kind: str, message: str) -> None:
        await self._ledger.fail(prompt.ordinal, [key], kind, message, role="judge", model=self.name)


def load(spec: str, path: Path, function: str) -> tuple[JudgeFunction, str]:
    """(the function, a digest of its file) of `path:function`. Raises InputError."""
    module_spec = importlib.util.spec_from_file_location(f"rlaif_judge_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"judge {spec!r}: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    if str(path.parent.resolve()) not in sys.path:  # as Python does for a script: its neighbours can be imported
        sys.path.append(str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"judge {spec!r}: {str(path)!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"judge {spec!r}: no function {function!r} in {str(path)!r}; it has {_functions(module)}")
    return found, hashlib.sha256(path.read_bytes()).hexdigest()


def _functions(module: ModuleType) -> str:
    names = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    return ", ".join(names) or "none"


def arity_of(function: JudgeFunction) -> int | None:
    """How many candidates the function wants at a time, None for all. Raises InputError for anything but 1, 2, ..."""
    arity = getattr(function, "arity", None)
    if arity is not None and (not isinstance(arity, int) or isinstance(arity, bool) or arity < 1):
        raise InputError(f"the judge's arity is {arity!r}; it must be 1, 2, ... or None for all candidates at once")
    return arity


def timeout_of(function: JudgeFunction, otherwise: float = TIMEOUT_S) -> float:
    """How many seconds a call of the function may take. Raises InputError for anything but a positive number."""
    timeout_s = getattr(function, "timeout_s", otherwise)
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool) or not 0 < timeout_s < math.inf:
        raise InputError(f"the judge's timeout_s is {timeout_s!r}; it must be a positive number of seconds")
    return float(timeout_s)


def _is_async(function: JudgeFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked for
    )


def _prompt_digest(prompt: Prompt) -> str:
    parts = [list(prompt.messages), prompt.reference, dict(prompt.fields)]
    try:
        return digest(parts)
    except (TypeError, ValueError):  # a value that JSON has no kind for
        return digest(plain(parts))


def _read(name: str, ids: tuple[str, ...], said: Any) -> Verdict:
    """What the function returned, as a verdict on `ids`. Raises ValueError or TypeError if it is none."""
    if isinstance(said, Verdict):
        if sorted(said.shown) != sorted(ids):
            raise ValueError(f"the verdict is about {list(said.shown)}, shown were {list(ids)}")
        if said.scores is None:
            return Verdict(name, ids, None, error=said.error or "abstained: the judge gave no scores", reason=said.reason)
        numbers = _numbers(said.scores, len(ids))
        if said.scale not in ("probability", "vote", "rating"):
            raise ValueError(f"the verdict's scale is {said.scale!r}; it may be probability, vote or rating")
        if said.scale == "probability" and (min(numbers) < 0.0 or abs(sum(numbers) - 1.0) > 1e-6):
            raise ValueError(f"probabilities must not be negative and sum to 1, got {list(numbers)}")
        by_id = dict(zip(said.shown, numbers, strict=True))
        return Verdict(name, ids, tuple(by_id[i] for i in ids), said.scale, reason=said.reason)
    if said is None or isinstance(said, (str, bytes, dict, set, frozenset)):
        kind = "None" if said is None else f"a {type(said).__name__}"
        raise ValueError(f"the judge returned {kind}; return one number for each candidate, or raise to abstain")
    if inspect.iscoroutine(said):
        said.close()
        raise ValueError("the judge returned a coroutine; make the function `async def` and await it there")
    return Verdict(name, ids, _numbers(said, len(ids)))


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple([float(v) for v in values])
    if len(numbers) != count:
        raise ValueError(f"the judge returned {len(numbers)} scores for {count} candidates")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"the judge returned a score that is no finite number: {list(numbers)}")
    return numbers


def _load(name: str, ids: tuple[str, ...], body: bytes) -> Verdict:
    said = json.loads(body)
    scores = None if said["scores"] is None else tuple(said["scores"])
    return Verdict(name, ids, scores, said["scale"], error=said["error"], reason=said["reason"])


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # it is the user's own class
        text = "(it has no message)"
    return f"{type(error).__name__}: {text}"[:_LONGEST_MESSAGE]


def _place(error: BaseException, function: JudgeFunction) -> str:
    """FILE:LINE of the last step in the user's own code; of the function, where the error is about what it returned."""
    package = str(Path(__file__).parents[1])
    steps, trace = [], error.__traceback__
    while trace is not None:
        steps.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    theirs = [(file, line) for file, line in steps if not file.startswith((package, "<frozen"))]
    if not theirs:
        code = getattr(inspect.unwrap(function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
    own = [(file, line) for file, line in theirs if not file.startswith(_LIBRARIES)] or theirs
    return "{}:{}".format(*own[-1])
