"""Judge names and what they mean: a shipped spec, a path to a YAML spec, `file.py:function`, or a function itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlaif.calls import Tally
from rlaif.errors import InputError
from rlaif.judges import code
from rlaif.judges.llm import PairwiseJudge
from rlaif.judges.parse import Grammar
from rlaif.ledger import Ledger
from rlaif.prices import guess_tokens
from rlaif.templates import data_dir, find, load_constitution, load_template, read_yaml
from rlaif.types import Answers, Judge

DEFAULT_CONSTITUTION = "hhh"
_PLACEHOLDERS = ("constitution", "prompt", "a", "b", "mark")


class JudgeSpec(BaseModel):
    """A YAML judge spec."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["pairwise"]
    model: str | None = None
    constitution: str | None = None
    token_template: str = "pairwise-token"
    text_template: str = "pairwise-text"
    logprobs: bool = True
    max_tokens: int = Field(default=2048, ge=1)


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """A judge that is known to be usable: `model` is the model it needs, if any, `arity` how many it is shown at a time.

    For a forecast: about how many tokens its own words are, and whether it asks for a letter with log-probabilities.
    """

    model: str | None
    arity: int | None
    build: Callable[[Answers | None, Ledger, Tally], Judge]
    template_tokens: int = 0
    letter: bool = False


def resolve(
    judge: str | code.JudgeFunction, *, model: str | None, constitution: str | None, timeout_s: float = code.TIMEOUT_S
) -> JudgePlan:
    """What `judge` means. `model` and `constitution` take precedence over a spec's. Raises InputError."""
    if not isinstance(judge, str):
        if not callable(judge):
            raise InputError(f"judge {judge!r} is neither a name nor a function")
        return _from_function(judge, timeout_s)
    file, colon, function = judge.rpartition(":")
    if colon and file.endswith(".py"):
        found, source = code.load(judge, find("judges", file, ".py"), function)
        return _from_function(found, timeout_s, name=function, source=source)
    try:
        path = find("judges", judge, ".yaml")
    except InputError as error:
        functions = sorted(f"{p.name}:{p.stem}" for p in (data_dir() / "judges").glob("*.py"))
        raise InputError(f"{error}; or a function: {', '.join(functions)}, FILE.py:FUNCTION") from None
    if path.suffix == ".py":
        raise InputError(f"judge {judge!r} is a Python file: name the function too, as {judge}:{path.stem}")
    return _from_spec(judge, path, model, constitution)


def _from_function(
    function: code.JudgeFunction, timeout_s: float, *, name: str | None = None, source: str | None = None
) -> JudgePlan:
    code.timeout_of(function)

    def build(_: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        return code.CodeJudge(function, ledger, tally, name=name, source=source, timeout_s=timeout_s)

    return JudgePlan(None, code.arity_of(function), build)


def _from_spec(judge: str, path: Path, model: str | None, constitution: str | None) -> JudgePlan:
    try:
        spec = JudgeSpec.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "the whole"
        raise InputError(f"judge {judge!r} ({path}): {place}: {first['msg']}") from None
    model = model or spec.model
    if model is None:
        raise InputError(f"judge {judge!r} needs a model: give --judge-model")
    principles = load_constitution(constitution or spec.constitution or DEFAULT_CONSTITUTION)
    token = load_template(spec.token_template, needs=_PLACEHOLDERS)
    text = load_template(spec.text_template, needs=_PLACEHOLDERS)
    for template in (token, text):
        Grammar.of(template.front, template.name)

    def build(answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        assert answers is not None, "a pairwise judge is built with its model"
        return PairwiseJudge(
            answers, principles, token=token, text=text, name=path.stem, logprobs=spec.logprobs, max_tokens=spec.max_tokens
        )

    words = guess_tokens((token if spec.logprobs else text).text) + guess_tokens(principles.text)
    return JudgePlan(model, PairwiseJudge.arity, build, words, spec.logprobs)
