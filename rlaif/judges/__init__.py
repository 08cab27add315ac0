"""Judge names and what they mean: a shipped spec, a path to a YAML spec, `file.py:function`, or a function itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.calls import Tally
from rlaif.errors import InputError, StopRun
from rlaif.judges import code, recorded, reward, rules
from rlaif.judges.llm import Forms, LlmJudge
from rlaif.judges.spec import FunctionSpec, JurySpec, LlmSpec, Principles, RecordedSpec, load_spec
from rlaif.ledger import Ledger
from rlaif.models import smollm2
from rlaif.prices import guess_tokens
from rlaif.templates import data_dir, find, load_constitution
from rlaif.types import Answers, Candidate, Judge, Prompt, Verdict

DEFAULT_CONSTITUTION = "hhh"
DEFAULT_JUDGE = "pairwise"
_DEEPEST = 5


Build = Callable[[Answers | None, Ledger, Tally], Judge]


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """A judge that is known to be usable: `model` is the chat model it needs, if any, `arity` and `orders` as of `Judge`.

    `check` builds the judge that planted checks ask in its stead, None where there are none for it. For a forecast: about how
    many tokens its own words are, and whether it asks for a bare option with log-probabilities.
    """

    model: str | None
    arity: int | None
    build: Build
    orders: int = 0
    template_tokens: int = 0
    letter: bool = False
    check: Build | None = None


@dataclass(frozen=True, slots=True)
class _Given:
    """What a command says about its judges; it takes precedence over their specs."""

    model: str | None
    policy: str | None
    constitution: str | None
    principles: Principles | None
    seed: int
    timeout_s: float


def resolve(
    judge: str | code.JudgeFunction,
    *,
    model: str | None,
    constitution: str | None,
    policy: str | None = None,
    principles: Principles | None = None,
    seed: int = 0,
    timeout_s: float = code.TIMEOUT_S,
) -> list[JudgePlan]:
    """What `judge` means: one plan, several for a jury or for a verdict a principle. Raises InputError.

    `model`, `constitution` and `principles` take precedence over a spec's; `policy` drives LLM judges that name no model.
    """
    return _resolve(judge, _Given(model, policy, constitution, principles, seed, timeout_s), ())


def _resolve(judge: str | code.JudgeFunction, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    if not isinstance(judge, str):
        if not callable(judge):
            raise InputError(f"judge {judge!r} is neither a name nor a function")
        return [_from_function(judge, given.timeout_s)]
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
    return _from_spec(judge, path, given, inside)


def _from_spec(judge: str, path: Path, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    spec = load_spec(judge, path)
    if isinstance(spec, LlmSpec):
        return _llm(judge, path.stem, spec, given)
    if isinstance(spec, JurySpec):
        return _jury(judge, path, spec, given, inside)
    if isinstance(spec, FunctionSpec):
        file, _, function = spec.function.rpartition(":")
        if not file.endswith(".py"):
            raise InputError(f"judge {judge!r} ({path}): function: {spec.function!r} is not FILE.py:FUNCTION")
        return [_from_file(judge, _beside(path, file) or find("judges", file, ".py"), function, given)]
    if isinstance(spec, RecordedSpec):
        file = str(_beside(path, spec.verdicts) or spec.verdicts)
        replayed = recorded.load(file, judge=spec.judge, config=spec.config, grammar=spec.grammar)
        return [_from_function(replayed, given.timeout_s, name=path.stem, source=replayed.source)]
    if isinstance(spec, rules.RulesSpec):
        rated = rules.judge_of(spec, path.stem)
        return [_from_function(rated, given.timeout_s, name=path.stem, source=rated.settings)]
    return [_reward(spec, given)]


def _beside(path: Path, name: str) -> Path | None:
    """The file that a spec names, if it stands where the spec does."""
    there = path.parent / name
    return there if there.is_file() else None


# Functions


def _from_file(judge: str, path: Path, function: str, given: _Given) -> JudgePlan:
    found, source = code.load(judge, path, function)
    return _from_function(found, given.timeout_s, name=function, source=source)


def _from_function(
    function: code.JudgeFunction, timeout_s: float, *, name: str | None = None, source: str | None = None
) -> JudgePlan:
    code.timeout_of(function)

    def build(_: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
        return code.CodeJudge(function, ledger, tally, name=name, source=source, timeout_s=timeout_s)

    return JudgePlan(None, code.arity_of(function), build)


def _reward(spec: reward.RewardSpec, given: _Given) -> JudgePlan:
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

    return JudgePlan(None, 1, build, check=build)


# LLM judges


def _llm(judge: str, name: str, spec: Any, given: _Given) -> list[JudgePlan]:
    model = given.model or spec.model or given.policy
    if model is None:
        raise InputError(f"judge {judge!r} needs a model: give --judge-model")
    constitution = load_constitution(given.constitution or spec.constitution or DEFAULT_CONSTITUTION)
    asks_letter = spec.logprobs and not spec.reason and spec.kind != "listwise"
    forms = Forms.load(
        spec.kind,
        (spec.token_template or f"{spec.kind}-token") if asks_letter else None,
        spec.text_template or f"{spec.kind}-{'reason' if spec.reason else 'text'}",
        reference=spec.reference,
    )
    principles = given.principles or spec.principles
    listed = {"shown": spec.shown, "orders": spec.orders} if spec.kind == "listwise" else {}
    words = guess_tokens((forms.token or forms.text).text)
    whole = partial(
        LlmJudge,
        constitution=constitution,
        forms=forms,
        name=name,
        reference=spec.reference,
        max_tokens=spec.max_tokens,
        **listed,
    )
    plans: list[JudgePlan] = []
    for principle in constitution.principles if principles == "each" else (None,):
        make = partial(whole, principle=principle, sampled=principles == "sampled", seed=given.seed)
        text = constitution.text if principles == "all" else max((p.text for p in constitution.principles), key=len)
        plans.append(
            JudgePlan(
                model,
                {"pairwise": 2, "pointwise": 1}.get(spec.kind, listed.get("shown")),
                partial(_build_llm, make),
                orders=listed.get("orders", 0),
                template_tokens=words + guess_tokens(text),
                letter=asks_letter,
                check=None if plans else partial(_build_llm, whole),
            )
        )
    return plans


def _build_llm(make: Callable[[Answers], Judge], answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
    assert answers is not None, "an LLM judge is built with its model"
    return make(answers)


# A jury


def _jury(judge: str, path: Path, spec: JurySpec, given: _Given, inside: tuple[Path, ...]) -> list[JudgePlan]:
    if path in inside or len(inside) >= _DEEPEST:
        raise InputError(f"judge {judge!r} ({path}): a jury that sits on itself, or too deep")
    weights = spec.weights or [1.0] * len(spec.judges)
    if len(weights) != len(spec.judges):
        raise InputError(f"judge {judge!r} ({path}): {len(weights)} weights for {len(spec.judges)} judges")
    plans = []
    for name, weight in zip(spec.judges, weights, strict=True):
        there = _beside(path, name)
        share = weight * len(weights) / sum(weights)
        for plan in _resolve(str(there) if there else name, given, (*inside, path)):
            plans.append(plan if share == 1.0 else replace(plan, build=partial(_build_weighted, plan, share)))
    return plans


def _build_weighted(plan: JudgePlan, weight: float, answers: Answers | None, ledger: Ledger, tally: Tally) -> Judge:
    return Weighted(plan.build(answers, ledger, tally), weight)


class Weighted:
    """A judge whose verdicts count `weight` times."""

    def __init__(self, judge: Judge, weight: float) -> None:
        self.inner, self._weight = judge, weight
        self.arity, self.orders = judge.arity, judge.orders
        self.digest = f"{judge.digest}*{weight:g}"

    @property
    def name(self) -> str:
        """The judge's own."""
        return self.inner.name

    @name.setter
    def name(self, name: str) -> None:
        self.inner.name = name

    async def __call__(self, prompt: Prompt, shown: Sequence[Candidate], among: Sequence[Candidate]) -> Verdict:
        """The judge's verdict, with the weight."""
        said = await self.inner(prompt, shown, among)
        return replace(said, weight=said.weight * self._weight)

    def stop(self, reason: StopRun) -> None:
        """Stops the judge."""
        self.inner.stop(reason)

    async def close(self) -> None:
        """Closes the judge."""
        await self.inner.close()
