"""A digest of what a function would say, from its code and what it holds: an unchanged function has an unchanged digest."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from pathlib import PurePath
from types import CodeType
from typing import Any

from rlaif.keys import digest


def source_digest(function: Any, seen: tuple[int, ...] = ()) -> str:
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
        return source_digest(value, seen)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, _mark(vars(value) if hasattr(value, "__dict__") else repr(value), inside)]
    wrapped = getattr(value, "__wrapped__", None)  # functools.cache and its like
    if inspect.isroutine(wrapped):
        return source_digest(wrapped, seen)
    kind = value if isinstance(value, type) or inspect.isbuiltin(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
