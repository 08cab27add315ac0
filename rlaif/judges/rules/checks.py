"""The rules by themselves: each gives a text a value from 0 to 1 and says in a few words why, or abstains."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif import degenerate
from rlaif.degenerate.language import language_of
from rlaif.judges.rules import answers, ifeval
from rlaif.judges.rules.worker import OverLimit, Worker
from rlaif.types import Prompt

Found = tuple[float, str]
"""(a value from 0 to 1, why in a few words)"""

_HALF_WORDS, _HALF_CHARACTERS = 150.0, 900.0
"""The length at which `prefer` gives one half: a page in two paragraphs."""
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
"""The names of JSON's types, and what `json` makes of each."""
_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n")


class Abstained(Exception):
    """The rule cannot say anything about this answer; the message says why."""


def length(text: str, unit: str, *, least: int | None, most: int | None, target: int | None, prefer: str | None) -> Found:
    """1 within the limits, else the ratio to the limit that is broken; the ratio to a target; or a preference.

    A preference gives 1/2 for 150 words (900 characters), more for less, or the other way round.
    """
    size = len(ifeval.words(text)) if unit == "words" else len(text.strip())
    value = 1.0
    if least is not None and size < least:
        value = size / least
    if most is not None and size > most:
        value = min(value, most / size)
    if target is not None:
        value *= min(size, target) / max(size, target)
    if prefer is not None:
        half = _HALF_WORDS if unit == "words" else _HALF_CHARACTERS
        value *= half / (half + size) if prefer == "shorter" else size / (half + size)
    return value, f"{size} {unit}"


def matches(text: str, pattern: str, flags: int, worker: Worker, limit_s: float, *, wanted: bool) -> Found:
    """1 if the pattern is found and `wanted`, or neither; the search is in a process that its limit ends."""
    found = bool(_limited(worker, "search", limit_s, pattern=pattern, flags=flags, text=text))
    return float(found == wanted), "found" if found else "not found"


def repetition(prompt: Prompt, text: str) -> Found:
    """0 for an answer that loops or ends in a loop, which the prompt has not asked for."""
    kind = degenerate.kind_of_text(prompt, text)
    return (0.0, kind) if kind in ("looping", "tail") else (1.0, "none")


def refusal(prompt: Prompt, text: str, *, unasked: bool) -> Found:
    """0 for a refusal; with `unasked`, only for one that the prompt gave no reason for."""
    refused = degenerate.refuses_unasked(prompt, text) if unasked else degenerate.is_refusal(text)
    return (0.0, "refused") if refused else (1.0, "none")


def in_language(prompt: Prompt, text: str, wanted: str | None) -> Found:
    """1 if the answer is in the wanted language, or in the prompt's. Raises Abstained where that cannot be told."""
    wanted = wanted or language_of(str(prompt.messages[-1]["content"]) if prompt.messages else "")
    if wanted is None:
        raise Abstained("the prompt's language cannot be told")
    found = language_of(text)
    if found is None:
        raise Abstained("the answer's language cannot be told")
    return float(found == wanted), found


def is_json(text: str, keys: Mapping[str, str | None], kind: str | None, *, fenced: bool) -> Found:
    """1 for JSON of this kind whose top object has the keys, with values of their types. Part of the keys is part of 1."""
    if fenced and (fence := _FENCE.search(text)) is not None:
        text = text[fence.end() :].partition("```")[0]
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return 0.0, f"no JSON: {str(error)[:80]}"
    if kind is not None and not _is_a(value, kind):
        return 0.0, f"no {kind}"
    if not keys:
        return 1.0, "JSON"
    if not isinstance(value, dict):
        return 0.0, "no object"
    wrong = [key for key, of in keys.items() if key not in value or (of is not None and not _is_a(value[key], of))]
    return 1.0 - len(wrong) / len(keys), f"missing or of another type: {', '.join(wrong)}" if wrong else "all keys"


def _is_a(value: Any, kind: str) -> bool:
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def constraints(prompt: Prompt, text: str, own: Sequence[tuple[str, Mapping[str, Any]]], *, every: bool) -> Found:
    """The share of constraints that hold, the rule's `own` and the prompt's; with `every`, 1 only if all do."""
    given = [*own, *_given(prompt)]
    if not given:
        raise Abstained("the prompt has no `instruction_id_list`, and the rule names no constraints")
    try:
        broken = [name for name, settings in given if not ifeval.holds(name, settings, text)]
    except ifeval.Unclear as error:
        raise Abstained(str(error)) from None
    value = 1.0 - len(broken) / len(given)
    return math.floor(value) if every else value, f"broken: {', '.join(broken)}" if broken else f"{len(given)} kept"


def _given(prompt: Prompt) -> list[tuple[str, Mapping[str, Any]]]:
    names, settings = prompt.fields.get("instruction_id_list"), prompt.fields.get("kwargs")
    if names is None:
        return []
    if settings is None:
        settings = [{} for _ in names] if isinstance(names, list) else None
    if not isinstance(names, list) or not isinstance(settings, list) or len(names) != len(settings):
        raise Abstained("`instruction_id_list` and `kwargs` are not two lists of one length")
    if not all(isinstance(s, Mapping) for s in settings):
        raise Abstained("`kwargs` must hold an object for each constraint")
    return [(str(name), s) for name, s in zip(names, settings, strict=True)]


def is_right(prompt: Prompt, text: str, field: str | None, worker: Worker, limit_s: float) -> Found:
    """1 if the final answer equals the reference's, 0 if it does not or there is none."""
    given = prompt.reference if field is None else prompt.fields.get(field)
    reference = None if given is None else answers.final_answer(str(given))
    if reference is None:
        raise Abstained(f"the prompt has no {'reference' if field is None else repr(field)}")
    answer = answers.final_answer(text)
    if answer is None:
        return 0.0, "no answer"
    try:
        equal = answers.are_equal(reference, answer, worker, limit_s)
    except (OverLimit, ValueError) as error:
        raise Abstained(f"{_short(answer)} cannot be compared with {_short(reference)}: {error}") from None
    if equal is None:
        raise Abstained(f"there is no number or formula in the reference {_short(reference)}")
    return float(equal), f"{_short(answer)} for {_short(reference)}"


def _limited(worker: Worker, task: str, limit_s: float, **arguments: Any) -> Any:
    try:
        return worker.do(task, limit_s, **arguments)
    except (OverLimit, ValueError) as error:
        raise Abstained(str(error)) from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
