"""Judges that are rules: a spec names them, each gives an answer 0 to 1, and the score is their weighted sum.

    kind: rules
    rules:
      - {rule: math}
      - {rule: length, prefer: shorter, unit: words, weight: 0.1}

A rule sees one prompt and one answer, so a rules judge rates candidates one at a time and its verdicts hold for any others.
A rule that cannot apply (no reference, no constraints, a language that cannot be told, a time limit) makes the verdict
abstain, with the reason: it never counts as 0. What might not end, regular expressions and algebra, runs in a process of
its own with a time limit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rlaif.errors import InputError
from rlaif.judges.rules import checks, ifeval
from rlaif.judges.rules.checks import Abstained, Found
from rlaif.judges.rules.worker import Worker
from rlaif.keys import digest
from rlaif.types import Candidate, Prompt, Verdict

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0.0, le=60.0, allow_inf_nan=False)]


def _compiles(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


def _is_json_type(name: str | None) -> str | None:
    if name is not None and name not in checks.JSON_TYPES:
        raise ValueError(f"{name!r} is no type of JSON; there are {', '.join(checks.JSON_TYPES)}")
    return name


Pattern = Annotated[str, AfterValidator(_compiles)]
JsonType = Annotated[str, AfterValidator(_is_json_type)]


class _Rule(BaseModel):
    """What every rule has: its share of the score. A negative weight turns it round."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, allow_inf_nan=False)


class LengthRule(_Rule):
    """Length in words or characters: limits, a target, or a preference."""

    rule: Literal["length"]
    unit: Literal["words", "characters"] = "words"
    min: Positive | None = None
    max: Positive | None = None
    target: Positive | None = None
    prefer: Literal["shorter", "longer"] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LengthRule:
        if self.min is None and self.max is None and self.target is None and self.prefer is None:
            raise ValueError("give `min`, `max`, `target` or `prefer`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` {self.min} is above `max` {self.max}")
        return self


class RegexRule(_Rule):
    """A pattern of Python's `re` that must be found, or must not."""

    rule: Literal["regex"]
    must: Pattern | None = None
    must_not: Pattern | None = None
    ignore_case: bool = False
    multiline: bool = False
    timeout_s: Seconds = 1.0

    @model_validator(mode="after")
    def _names_one(self) -> RegexRule:
        if (self.must is None) == (self.must_not is None):
            raise ValueError("give one of `must` and `must_not`")
        return self


class RepetitionRule(_Rule):
    """0 for an answer that loops, as `rlaif.degenerate` tells it."""

    rule: Literal["repetition"]


class RefusalRule(_Rule):
    """0 for a refusal; `unasked`: only where the prompt gave no reason for one."""

    rule: Literal["refusal"]
    unasked: bool = True


class LanguageRule(_Rule):
    """1 for an answer in this language (ISO 639-1), or in the prompt's."""

    rule: Literal["language"]
    language: str | None = None


class MathRule(_Rule):
    """1 if the final answer equals the reference's, or that of another field of the prompt."""

    rule: Literal["math"]
    field: str | None = None
    timeout_s: Seconds = 5.0


class JsonRule(_Rule):
    """1 for JSON, perhaps of one type, perhaps with keys: `{NAME: TYPE or null}`."""

    rule: Literal["json"]
    type: JsonType | None = None
    keys: dict[str, JsonType | None] = {}
    fenced: bool = True


class Constraint(BaseModel):
    """One constraint of `ifeval.NAMES`, with its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Literal[ifeval.NAMES]  # type: ignore[valid-type]
    kwargs: dict[str, Any] = {}


class FormatRule(_Rule):
    """The share of the constraints that hold: those of the prompt, and those named here; with `every`, all or nothing."""

    rule: Literal["format"]
    constraints: list[Constraint] = []
    every: bool = False


Rule = Annotated[
    LengthRule | RegexRule | RepetitionRule | RefusalRule | LanguageRule | MathRule | JsonRule | FormatRule,
    Field(discriminator="rule"),
]


class RulesSpec(BaseModel):
    """A YAML judge spec of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rules"] = "rules"
    rules: list[Rule] = Field(min_length=1)


def judge_of(spec: RulesSpec, name: str) -> RulesJudge:
    """The judge of a spec, a function as `rlaif.judge` and `CodeJudge` take it (`source` is `digest_of(spec)`).

    Its verdicts are ratings of one candidate each, and their reasons say what each rule gave. Raises InputError if a rule
    needs a package that is not installed.
    """
    if any(rule.rule == "math" for rule in spec.rules) and importlib.util.find_spec("math_verify") is None:
        raise InputError(f"judge {name!r}: the rule math needs a package that is not installed: pip install 'rlaif[math]'")
    return RulesJudge(name, digest_of(spec), spec)


def digest_of(spec: RulesSpec) -> str:
    """Changes with whatever could change a verdict: the spec, the rules' own code, and the package that compares formulas."""
    folders = (Path(__file__).parent, Path(__file__).parents[2] / "degenerate")
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for folder in folders for path in sorted(folder.glob("*.py"))]
    packages = ("math-verify", "latex2sympy2-extended", "sympy") if any(r.rule == "math" for r in spec.rules) else ()
    return digest(["rules", spec.model_dump(mode="json"), code, [_version(package) for package in packages]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class RulesJudge:
    """Rates candidates by the rules of a spec; `settings` is its digest."""

    name: str
    settings: str
    spec: RulesSpec
    worker: Worker = field(default_factory=Worker, compare=False, repr=False)
    arity: ClassVar[int] = 1

    @property
    def __name__(self) -> str:
        """The name, where that of a function is asked for."""
        return self.name

    def __call__(self, prompt: Prompt, candidates: Sequence[Candidate]) -> Verdict:
        """The ratings, in the order given, with what each rule said; without scores and with the error if one abstains."""
        ids = tuple(c.id for c in candidates)
        scores, reasons = [], []
        for candidate in candidates:
            total, parts = 0.0, []
            for rule in self.spec.rules:
                try:
                    value, why = _value(rule, prompt, candidate.text, self.worker)
                except Abstained as error:
                    return Verdict(self.name, ids, None, error=f"abstained: {rule.rule}: {error}")
                total += rule.weight * value
                parts.append(f"{rule.rule} {value:.3g} ({why})")
            scores.append(total)
            reasons.append(", ".join(parts))
        return Verdict(self.name, ids, tuple(scores), reason="; ".join(reasons))


def _value(rule: Rule, prompt: Prompt, text: str, worker: Worker) -> Found:
    return _VALUES[rule.rule](rule, prompt, text, worker)


def _regex(rule: RegexRule, prompt: Prompt, text: str, worker: Worker) -> Found:
    flags = (re.IGNORECASE if rule.ignore_case else 0) | (re.MULTILINE if rule.multiline else 0)
    pattern = rule.must if rule.must is not None else rule.must_not
    assert pattern is not None, "the spec has one of the two"
    return checks.matches(text, pattern, int(flags), worker, rule.timeout_s, wanted=rule.must is not None)


_VALUES: Mapping[str, Callable[[Any, Prompt, str, Worker], Found]] = {
    "length": lambda r, p, t, w: checks.length(t, r.unit, least=r.min, most=r.max, target=r.target, prefer=r.prefer),
    "regex": _regex,
    "repetition": lambda r, p, t, w: checks.repetition(p, t),
    "refusal": lambda r, p, t, w: checks.refusal(p, t, unasked=r.unasked),
    "language": lambda r, p, t, w: checks.in_language(p, t, r.language),
    "math": lambda r, p, t, w: checks.is_right(p, t, r.field, w, r.timeout_s),
    "json": lambda r, p, t, w: checks.is_json(t, r.keys, r.type, fenced=r.fenced),
    "format": lambda r, p, t, w: checks.constraints(p, t, [(c.id, c.kwargs) for c in r.constraints], every=r.every),
}
