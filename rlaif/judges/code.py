"""A judge that is the user's own function: no registration, no base class.

    def shortest(prompt, candidates):
        return [-float(len(c.text)) for c in candidates]

It gets a Prompt and the candidates it is to score, and returns one number each (higher is better) or a Verdict. It may be
async, may set `arity` to be called on that many at a time, and raises to abstain. Its verdicts are kept in the ledger
under a digest of its source: an unchanged function is not run twice on the same candidates.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from types import CodeType, ModuleType
from typing import Any

from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.keys import digest, plain
from rlaif.ledger import Failure, Ledger
from rlaif.prices import Usage
from rlaif.types import Candidate, Prompt, Verdict

_AT_ONCE = 64
JudgeFunction = Callable[[Prompt, Sequence[Candidate]], Any]


class CodeJudge:
    """Calls a function and keeps what it said: an async one at most 64 times at once, others one after another, in a thread."""

    def __init__(
        self, function: JudgeFunction, ledger: Ledger, tally: Tally, *, name: str | None = None, source: str | None = None
    ) -> None:
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.arity = arity_of(function)
        self.digest = digest(["code", self.name, source or _source_digest(function), self.arity])
        self._function, self._ledger, self._tally = function, ledger, tally
        self._alone = asyncio.Lock()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._stopped: StopRun | None = None

    def stop(self, reason: StopRun) -> None:
        """Lets no further call begin: those that wait for their turn raise `reason`."""
        self._stopped = reason

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The function's verdict on `shown`; one that raises or returns no usable scores has an error instead."""
        ids = tuple(c.id for c in shown)
        asked = [list(prompt.messages), prompt.reference, dict(prompt.fields), [[c.text, c.model, c.score] for c in shown]]
        key = bytes.fromhex(digest([self.digest, plain(asked)]))
        stored = self._ledger.lookup(prompt.ordinal, key)
        if isinstance(stored, Failure):
            return Verdict(self.name, ids, None, error=f"{stored.kind}: {stored.message}")
        if stored is not None:
            self._tally.reused += 1
            return _load(self.name, ids, self._ledger.body(stored.call))
        try:
            verdict = self._verdict(ids, await self._call(prompt, shown))
        except StopRun:
            raise
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}"
            await self._ledger.fail(prompt.ordinal, [key], "judge_raised", message, role="judge", model=self.name)
            return Verdict(self.name, ids, None, error=f"judge_raised: {message}")
        body = {"scores": verdict.scores, "scale": verdict.scale, "error": verdict.error, "reason": verdict.reason}
        await self._ledger.keep(
            prompt.ordinal, [key], json.dumps(body).encode(), role="judge", model=self.name, free=True, usage=Usage(0, 0, 0)
        )
        self._tally.bought("judge")
        return verdict

    async def _call(self, prompt: Prompt, shown: Sequence[Candidate]) -> Any:
        if inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(
            getattr(self._function, "__call__", None)  # noqa: B004 - the method itself is asked for
        ):
            async with self._places:
                self._check()
                return await self._function(prompt, shown)
        async with self._alone:
            self._check()
            said, error = await _in_thread(lambda: self._call_here(prompt, shown), f"judge-{self.name}")
        if error is None:
            return said
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        raise RuntimeError(f"{type(error).__name__}: {error}")

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _call_here(self, prompt: Prompt, shown: Sequence[Candidate]) -> tuple[Any, BaseException | None]:
        """What the function returns or raises; a future cannot carry every exception."""
        try:
            return self._function(prompt, shown), None
        except (Exception, SystemExit) as error:
            return None, error

    def _verdict(self, ids: tuple[str, ...], said: Any) -> Verdict:
        """What the function returned, as a verdict on `ids`. Raises ValueError if it is none."""
        if isinstance(said, Verdict):
            if sorted(said.shown) != sorted(ids):
                raise ValueError(f"the verdict is about {list(said.shown)}, shown were {list(ids)}")
            if said.scores is None:
                return Verdict(self.name, ids, None, error=said.error or "the judge gave no scores")
            numbers = _numbers(said.scores, len(ids))
            if said.scale not in ("probability", "vote", "rating"):
                raise ValueError(f"the verdict's scale is {said.scale!r}; it may be probability, vote or rating")
            if said.scale == "probability" and (min(numbers) < 0.0 or abs(sum(numbers) - 1.0) > 1e-6):
                raise ValueError(f"probabilities must not be negative and sum to 1, got {list(numbers)}")
            by_id = dict(zip(said.shown, numbers, strict=True))
            return Verdict(self.name, ids, tuple(by_id[i] for i in ids), said.scale, reason=said.reason)
        if said is None or isinstance(said, (str, bytes, dict)):
            kind = "None" if said is None else f"a {type(said).__name__}"
            raise ValueError(f"the judge returned {kind}; return one number for each candidate, or raise to abstain")
        return Verdict(self.name, ids, _numbers(said, len(ids)))


async def _in_thread(function: Callable[[], Any], name: str) -> Any:
    """What `function` returns, from a thread that does not keep the program from ending; it must not raise."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(said: Any) -> None:
        if not future.done():
            future.set_result(said)

    def work() -> None:
        said = function()
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            future.get_loop().call_soon_threadsafe(settle, said)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future


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


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != count:
        raise ValueError(f"the judge returned {len(numbers)} scores for {count} candidates")
    if not all(math.isfinite(n) for n in numbers):
        raise ValueError(f"the judge returned a score that is no finite number: {list(numbers)}")
    return numbers


def _load(name: str, ids: tuple[str, ...], body: bytes) -> Verdict:
    said = json.loads(body)
    scores = None if said["scores"] is None else tuple(said["scores"])
    return Verdict(name, ids, scores, said["scale"], error=said["error"], reason=said["reason"])


def arity_of(function: JudgeFunction) -> int | None:
    """How many candidates the function wants at a time, None for all. Raises InputError for anything but 1, 2, ..."""
    arity = getattr(function, "arity", None)
    if arity is not None and (not isinstance(arity, int) or isinstance(arity, bool) or arity < 1):
        raise InputError(f"the judge's arity is {arity!r}; it must be 1, 2, ... or None for all candidates at once")
    return arity


def _source_digest(function: Any, seen: tuple[int, ...] = ()) -> str:
    """A digest of what the function would say: its code, defaults, what it closes over, the plain values and functions
    among the globals that it names, and the object it is bound to.

    Of other objects only the kind counts: of a model that a judge holds, say.
    """
    seen = (*seen, id(function))
    if isinstance(function, functools.partial):
        return digest([_mark(part, seen) for part in (function.func, list(function.args), function.keywords)])
    called = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(called, "__code__", None)
    if code is None:  # built in
        return digest(f"{getattr(called, '__module__', '')}.{getattr(called, '__qualname__', repr(called))}")
    cells = []
    for cell in getattr(called, "__closure__", None) or ():
        try:
            cells.append(_mark(cell.cell_contents, seen))
        except ValueError:  # not filled yet
            cells.append("empty")
    holder = getattr(function, "__self__", None) if inspect.isroutine(function) else function
    settings = _mark(getattr(holder, "__dict__", None), seen)
    defaults = [_mark(getattr(called, name, None), seen) for name in ("__defaults__", "__kwdefaults__")]
    known = getattr(called, "__globals__", {})
    named = {name: _mark(known[name], seen) for name in sorted(_names(code)) if name in known}
    return digest([_code(code), defaults, cells, settings, named])


def _code(code: CodeType) -> list[Any]:
    """What the code does, without where it stands."""
    constants = [_code(c) if isinstance(c, CodeType) else _mark(c, ()) for c in code.co_consts[_docs(code) :]]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _docs(code: CodeType) -> int:
    """1 if the first constant is a docstring."""
    return int(bool(code.co_flags & inspect.CO_NEWLOCALS and code.co_consts and isinstance(code.co_consts[0], str)))


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _mark(value: Any, seen: tuple[int, ...]) -> Any:
    """`value` where it is plain, a digest where it is a function, the name of its kind otherwise; once round a circle."""
    if value is None or isinstance(value, (str, int, float, complex, bool, bytes, PurePath, re.Pattern)):
        return repr(value)
    if id(value) in seen:
        return "again"
    inside = (*seen, id(value))
    if isinstance(value, (list, tuple)):
        return [_mark(v, inside) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_mark(v, inside)) for v in value)
    if isinstance(value, Mapping):
        return {str(k): _mark(v, inside) for k, v in value.items()}
    if inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, functools.partial):
        return _source_digest(value, seen)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, _mark(vars(value) if hasattr(value, "__dict__") else repr(value), inside)]
    wrapped = getattr(value, "__wrapped__", None)  # functools.cache and its like
    if inspect.isroutine(wrapped):
        return _source_digest(wrapped, seen)
    kind = value if isinstance(value, type) or inspect.isbuiltin(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
