"""A judge that is the user's own function: no registration, no base class.

    def shortest(prompt, candidates):
        return [-float(len(c.text)) for c in candidates]

It gets a Prompt and the candidates it is to score, and returns one number each (higher is better) or a Verdict. It may be
async, may set `arity` to be called on that many at a time, and raises to abstain. Its verdicts are kept in the ledger
under a digest of its source: an unchanged function is not run twice on the same candidates.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import json
import marshal
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.keys import digest
from rlaif.ledger import Failure, Ledger
from rlaif.types import Candidate, Prompt, Verdict

JudgeFunction = Callable[[Prompt, Sequence[Candidate]], Any]


class CodeJudge:
    """Calls a function and keeps what it said. A function that is not async runs in one thread of its own."""

    def __init__(
        self, function: JudgeFunction, ledger: Ledger, tally: Tally, *, name: str | None = None, source: str | None = None
    ) -> None:
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.arity: int | None = getattr(function, "arity", None)
        self.digest = digest(["code", self.name, source or _source_digest(function), self.arity])
        self._function, self._ledger, self._tally = function, ledger, tally
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"judge-{self.name}")

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The function's verdict on `shown`; one that raises or returns no usable scores has an error instead."""
        ids = tuple(c.id for c in shown)
        key = digest(
            [
                self.digest,
                list(prompt.messages),
                prompt.reference,
                dict(prompt.fields),
                [[c.text, c.model, c.score] for c in shown],
            ]
        )
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
        except Exception as error:
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
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._function, prompt, shown)

    def _verdict(self, ids: tuple[str, ...], said: Any) -> Verdict:
        """What the function returned, as a verdict on `ids`. Raises ValueError if it is none."""
        if isinstance(said, Verdict):
            if sorted(said.shown) != sorted(ids):
                raise ValueError(f"the verdict is about {list(said.shown)}, shown were {list(ids)}")
            if said.scores is None:
                return Verdict(self.name, ids, None, error=said.error or "the judge gave no scores")
            by_id = dict(zip(said.shown, _numbers(said.scores, len(ids)), strict=True))
            return Verdict(self.name, ids, tuple(by_id[i] for i in ids), said.scale, reason=said.reason)
        if said is None:
            raise ValueError("the judge returned None; return one number for each candidate, or raise to abstain")
        return Verdict(self.name, ids, _numbers(said, len(ids)))


def load(spec: str, path: Path, function: str) -> tuple[JudgeFunction, str]:
    """(the function, a digest of its file) of `path:function`. Raises InputError."""
    module_spec = importlib.util.spec_from_file_location(f"rlaif_judge_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"judge {spec!r}: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
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


def _source_digest(function: JudgeFunction) -> str:
    """A digest of the function's source, of its code where there is no source (a function typed at a prompt)."""
    target = function if inspect.isroutine(function) else type(function)
    try:
        return hashlib.sha256(inspect.getsource(target).encode()).hexdigest()
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        raw = marshal.dumps(code) if code is not None else repr(target).encode()
        return hashlib.sha256(raw).hexdigest()
