"""A judge that is the user's own function: no registration, no base class.

    def shortest(prompt, candidates):
        return [-float(len(c.text)) for c in candidates]

It gets a Prompt and the candidates it is to score, and returns one number each (higher is better) or a Verdict. It may be
async, may set `arity` to be called on that many at a time, and raises to abstain. Its verdicts are kept in the ledger
under a digest of its source: an unchanged function is not run twice on the same candidates.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import inspect
import json
import marshal
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.keys import digest, plain
from rlaif.ledger import Failure, Ledger
from rlaif.types import Candidate, Prompt, Verdict

JudgeFunction = Callable[[Prompt, Sequence[Candidate]], Any]


class CodeJudge:
    """Calls a function and keeps what it said. A function that is not async runs in one thread of its own."""

    def __init__(
        self, function: JudgeFunction, ledger: Ledger, tally: Tally, *, name: str | None = None, source: str | None = None
    ) -> None:
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.arity = arity_of(function)
        self.digest = digest(["code", self.name, source or _source_digest(function), self.arity])
        self._function, self._ledger, self._tally = function, ledger, tally
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"judge-{self.name}")

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The function's verdict on `shown`; one that raises or returns no usable scores has an error instead."""
        ids = tuple(c.id for c in shown)
        asked = [list(prompt.messages), prompt.reference, dict(prompt.fields), [[c.text, c.model, c.score] for c in shown]]
        key = digest([self.digest, plain(asked)])
        stored = self._ledger.lookup(key)
        if isinstance(stored, Failure):
            return Verdict(self.name, ids, None, error=f"{stored.kind}: {stored.message}")
        if stored is not None:
            self._tally.reused += 1
            return _load(self.name, ids, stored.body)
        try:
            verdict = self._verdict(ids, await self._call(prompt, shown))
        except StopRun:
            raise
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}"
            await self._ledger.fail([key], "judge_raised", message)
            return Verdict(self.name, ids, None, error=f"judge_raised: {message}")
        body = {"scores": verdict.scores, "scale": verdict.scale, "error": verdict.error, "reason": verdict.reason}
        await self._ledger.keep([key], json.dumps(body).encode(), role="judge", model=self.name, free=True)
        self._tally.bought("judge")
        return verdict

    async def _call(self, prompt: Prompt, shown: Sequence[Candidate]) -> Any:
        if inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(
            getattr(self._function, "__call__", None)  # noqa: B004 - the method itself is asked for
        ):
            return await self._function(prompt, shown)
        said, error = await asyncio.get_running_loop().run_in_executor(self._thread, self._call_here, prompt, shown)
        if error is not None:
            raise (
                RuntimeError(f"{type(error).__name__}: {error}")
                if not isinstance(error, Exception) or isinstance(error, StopIteration)
                else error
            )
        return said

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
            by_id = dict(zip(said.shown, _numbers(said.scores, len(ids)), strict=True))
            return Verdict(self.name, ids, tuple(by_id[i] for i in ids), said.scale, reason=said.reason)
        if said is None or isinstance(said, (str, bytes, dict)):
            kind = "None" if said is None else f"a {type(said).__name__}"
            raise ValueError(f"the judge returned {kind}; return one number for each candidate, or raise to abstain")
        return Verdict(self.name, ids, _numbers(said, len(ids)))


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
    """A digest of what the function would say: its source, its defaults, what it closes over, and the object it is bound to.

    Of objects that are neither plain values nor functions only the kind counts. Without a source (a function typed at a
    prompt), its code counts.
    """
    seen = (*seen, id(function))
    if isinstance(function, functools.partial):
        parts = [function.func, list(function.args), function.keywords]
        return digest([_mark(part, seen) for part in parts])
    target = function if inspect.isroutine(function) else type(function)
    code = getattr(function, "__code__", None)
    try:
        source = inspect.getsource(target)
    except (OSError, TypeError):
        source = hashlib.sha256(marshal.dumps(code)).hexdigest() if code is not None else repr(target)
    cells = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            cells.append(_mark(cell.cell_contents, seen))
        except ValueError:  # not filled yet
            cells.append("empty")
    holder = function if not inspect.isroutine(function) else getattr(function, "__self__", None)
    settings = _mark(getattr(holder, "__dict__", None), seen)
    defaults = [_mark(getattr(function, name, None), seen) for name in ("__defaults__", "__kwdefaults__")]
    return digest([source, defaults, cells, settings])


def _mark(value: Any, seen: tuple[int, ...]) -> Any:
    """`value` where it is plain, a digest where it is a function, the name of its kind otherwise; once round a circle."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if id(value) in seen:
        return "again"
    inside = (*seen, id(value))
    if isinstance(value, (list, tuple)):
        return [_mark(v, inside) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _mark(v, inside) for k, v in value.items()}
    if inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, functools.partial):
        return _source_digest(value, seen)
    return f"{type(value).__module__}.{type(value).__qualname__}"
