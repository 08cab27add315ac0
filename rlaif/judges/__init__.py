"""Judge names and what they mean: a shipped spec, a path to a YAML spec, `file.py:function`; or a spec or function itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlaif.calls import Tally
from rlaif.errors import InputError
from rlaif.judges import code, recorded, reward, rules
from rlaif.judges.adaptive import AdaptiveJudge
from rlaif.judges.llm import Forms, Kind, LlmJudge
from rlaif.judges.plan import JudgePlan
from rlaif.judges.reward import RewardSpec
from rlaif.judges.rules import RulesSpec
from rlaif.judges.spec import (
    AdaptiveSpec,
    FunctionSpec,
    JurySpec,
    ListwiseSpec,
    LlmSpec,
    PairwiseSpec,
    PointwiseSpec,
    Principles,
    RecordedSpec,
    load_spec,
)
from rlaif.keys import digest
from rlaif.ledger import Ledger
from rlaif.models import smollm2
from rlaif.prices import guess_tokens
from rlaif.ranking.adaptive import Adaptive, Aim
from rlaif.ranking.schedule import Elimination, Every, RandomPair, Swiss
from rlaif.templates import data_dir, find, is_file, load_constitution
from rlaif.types import Answers, Judge, Schedule

__all__ = [
    "DEFAULT_CONSTITUTION",
    "AdaptiveSpec",
    "FunctionSpec",
    "JudgeLike",
    "JudgePlan",
    "JurySpec",
    "ListwiseSpec",
    "PairwiseSpec",
    "PointwiseSpec",
    "RecordedSpec",
    "RewardSpec",
    "RulesSpec",
    "resolve",
]

JudgeLike = str | BaseModel | code.JudgeFunction
"""A name, a spec, or a function."""

DEFAULT_CONSTITUTION = "hhh"
_DEEPEST = 5
_DUELS: dict[str, Callable[[int | None], Schedule]] = {
    "swiss": Swiss,
    "elimination": Elimination,
    "random-pair": RandomPair,
}


@dataclass(frozen=True, slots=True)
class _Given:
    """What a command says about its judges; it takes precedence over their specs."""

    model: str | None
    policy: str | None
    constitution: str | None
    principles: Principles | None
    seed: int
    timeout_s: float
    calls: int | None
    aim: Aim


def resolve(
    judge: JudgeLike,
    *,
    model: str | None,
    constitution: str | None,
    policy: str | None = None,
    principles: Principles | None = None,
    seed: int = 0,
    timeout_s: float = code.TIMEOUT_S,
    calls: int | None = None,
    aim: Aim = "gap",
) -> list[JudgePlan]:
    """What `judge` means: one plan, several for a jury or for a verdict a principle. Raises InputError.

    `model`, `constitution`, `principles` and `calls` (of each judge, at most, for a prompt) take precedence over a spec's;
    `policy` drives LLM judges that name no model. `aim` is what an adaptive judge's duels are for.
    """
    return _resolve(judge, _Given(model, policy, constitution, principles, seed, timeout_s, calls, aim), ())


def _resolve(judge: JudgeLike, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    if isinstance(judge, BaseModel):
        return _from_spec(judge, _Place(getattr(judge, "kind", "judge"), None), given, inside)
    if not isinstance(judge, str):
        if not callable(judge):
            raise InputError(f"judge {judge!r} is neither a name nor a function nor a spec")
        return [_from_function(judge, given)]
    file, colon, function = judge.rpartition(":")
    if colon and file.endswith(".py"):
        return [_from_file(judge, find("judges", file, ".py"), function, given)]
    try:
        path = find("judges", judge, ".yaml")
    except InputError as error:
        functions = sorted(f"{p.name}:{p.stem}" for p in (data_dir() / "judges").glob("*.py"))
        raise InputError(f"{error}; or a function: {', '.join(functions)}, FILE.py:FUNCTION") from None
    if path.suffix == ".py":
        raise InputError(f"judge {judge!r} is a Python file: name the function too, as {judge}:{path.stem}")
    return _from_spec(load_spec(judge, path), _Place(path.stem, path), given, inside)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a spec stands: the judge's name, and the file, if it is one."""

    name: str
    path: Path | None

    def __str__(self) -> str:
        return f"{self.name!r} ({self.path})" if self.path else repr(self.name)

    def file(self, name: str) -> str:
        """What a spec names, as a path if it stands beside the spec."""
        there = self.path.parent / name if self.path else None
        return str(there) if there is not None and is_file(there) else name


def _from_spec(spec: Any, place: _Place, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    if isinstance(spec, LlmSpec):
        return _llm(spec, place, given)
    if isinstance(spec, JurySpec):
        return _jury(spec, place, given, inside)
    if isinstance(spec, FunctionSpec):
        file, _, function = spec.function.rpartition(":")
        if not file.endswith(".py"):
            raise InputError(f"judge {place}: function: {spec.function!r} is not FILE.py:FUNCTION")
        return [_from_file(place.name, find("judges", place.file(file), ".py"), function, given)]
    if isinstance(spec, RecordedSpec):
        replayed = recorded.load(place.file(spec.verdicts), judge=spec.judge, config=spec.config, grammar=spec.grammar)
        return [_from_function(replayed, given, name=place.name, source=replayed.source)]
    if isinstance(spec, RulesSpec):
        rated = rules.judge_of(spec, place.name)
        return [_from_function(rated, given, name=place.name, source=rated.settings)]
    if isinstance(spec, RewardSpec):
        return [_reward(spec, given)]
    raise InputError(f"judge {spec!r} is no judge spec")


# Functions


def _from_file(judge: str, path: Path, function: str, given: _Given) -> JudgePlan:
    found, source = code.load(judge, path, function)
    return _from_function(found, given, name=function, source=source)


def _from_function(
    function: code.JudgeFunction, given: _Given, *, name: str | None = None, source: str | None = None
) -> JudgePlan:
    code.timeout_of(function)
    arity = code.arity_of(function)
    schedule = Every(arity, most=given.calls)

    def build(_: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        return code.CodeJudge(function, ledger, tally, name=name, source=source, timeout_s=given.timeout_s, schedule=schedule)

    return JudgePlan(None, arity, schedule, build)


def _reward(spec: RewardSpec, given: _Given) -> JudgePlan:
    """A reward model: opened now, loaded with its first call, and opened again where an earlier run has closed it.

    A spec that names its model keeps it: what drives the LLM judges of a jury is no reward model.
    """
    named = spec.model or (given.model if given.model is not None and given.model.startswith("hf/") else None)
    spec = spec.model_copy(update={"model": named.removeprefix("hf/") if named else None})
    cache = smollm2.cache_dir() / "digests.json"
    scorers = [reward.open_scorer(spec, cache=cache)]

    def build(_: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        if scorers[0].stopped is not None:
            scorers[0] = reward.open_scorer(spec, cache=cache)
        scorer = scorers[0]
        function = reward.judge_of(scorer)
        return code.CodeJudge(function, ledger, tally, name=scorer.name, source=scorer.digest, engine=scorer)

    return JudgePlan(None, 1, Every(1, most=given.calls), build, check=build)


# LLM judges


def _llm(spec: Any, place: _Place, given: _Given) -> list[JudgePlan]:
    model = given.model or spec.model or given.policy
    if model is None:
        raise InputError(f"judge {place} needs a model: give --judge-model")
    own = place.file(spec.constitution) if spec.constitution else None
    named = given.constitution or own or DEFAULT_CONSTITUTION
    constitution = load_constitution(named)
    principles = given.principles or spec.principles
    schedule, arity = _schedule(spec, given), {"pointwise": 1, "listwise": getattr(spec, "shown", None)}.get(spec.kind, 2)
    forms = _forms(spec, place, "pairwise" if spec.kind == "adaptive" else spec.kind)
    others = [_forms(spec, place, kind) for kind in ("pointwise", "listwise")] if spec.kind == "adaptive" else []
    whole = partial(LlmJudge, constitution=constitution, name=place.name, reference=spec.reference, max_tokens=spec.max_tokens)

    def build(of: Callable[..., LlmJudge], answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        assert answers is not None, "an LLM judge is built with its model"
        if not others:
            return of(answers, forms=forms, shown=arity, schedule=schedule)
        duel = of(answers, forms=forms)
        rate, rank = (of(answers, forms=other, beside=duel) for other in others)
        return AdaptiveJudge(schedule, duel=duel, rate=rate, rank=rank)

    plans: list[JudgePlan] = []
    for principle in constitution.principles if principles == "each" else (None,):
        make = partial(whole, principle=principle, sampled=principles == "sampled", seed=given.seed)
        text = constitution.text if principles == "all" else max((p.text for p in constitution.principles), key=len)
        plans.append(
            JudgePlan(
                model,
                arity,
                schedule,
                partial(build, make),
                template_tokens=guess_tokens((forms.token or forms.text).text) + guess_tokens(text),
                letter=forms.token is not None,
                check=None if plans else partial(build, whole),
                constitution=named,
                rubric=digest([constitution.digest, principles, spec.reference, [one.digests for one in (forms, *others)]]),
            )
        )
    return plans


def _forms(spec: Any, place: _Place, kind: Kind) -> Forms:
    """The templates by which a judge of the spec asks in one of the forms; one of its own is for the form of its kind."""
    own = kind == ("pairwise" if spec.kind == "adaptive" else spec.kind)
    asks_letter = spec.logprobs and not spec.reason and kind != "listwise"
    token, text = (spec.token_template, spec.text_template) if own else (None, None)
    return Forms.load(
        kind,
        place.file(token or f"{kind}-token") if asks_letter else None,
        place.file(text or f"{kind}-{'reason' if spec.reason else 'text'}"),
        reference=spec.reference,
    )


def _schedule(spec: Any, given: _Given) -> Schedule:
    """When a judge of the spec is shown what."""
    if isinstance(spec, AdaptiveSpec):
        rates = spec.logprobs and not spec.reason
        return Adaptive(given.calls or spec.calls, spec.target, given.aim, rates)
    if isinstance(spec, ListwiseSpec):
        return Every(spec.shown, spec.orders, given.calls)
    if isinstance(spec, PairwiseSpec) and spec.schedule != "all":
        return _DUELS[spec.schedule](given.calls)
    return Every(1 if spec.kind == "pointwise" else 2, most=given.calls)


# A jury


def _judge_beside(judge: str | code.JudgeFunction, place: _Place) -> str | code.JudgeFunction:
    """The judge, as a path if its file stands beside the spec that names it."""
    if not isinstance(judge, str):
        return judge
    file, colon, function = judge.rpartition(":")
    return f"{place.file(file)}:{function}" if colon and file.endswith(".py") else place.file(judge)


def _jury(spec: JurySpec, place: _Place, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    path = place.path or Path(place.name)
    if (place.path and path in inside) or len(inside) >= _DEEPEST:
        raise InputError(f"judge {place}: a jury that sits on itself, or too deep")
    weights = spec.weights or [1.0] * len(spec.judges)
    if len(weights) != len(spec.judges):
        raise InputError(f"judge {place}: {len(weights)} weights for {len(spec.judges)} judges")
    plans: list[JudgePlan] = []
    for judge, weight in zip(spec.judges, weights, strict=True):
        share = weight * len(weights) / sum(weights)
        if isinstance(judge, BaseModel):
            members = _from_spec(judge, _Place(getattr(judge, "kind", "judge"), place.path), given, inside)
        else:
            members = _resolve(_judge_beside(judge, place), given, (*inside, path))
        plans.extend(plan.weighted(share) for plan in members)
    return plans
