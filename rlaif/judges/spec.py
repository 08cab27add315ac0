"""Judge specs: what a YAML file in `judges/` may say, by `kind`; from Python, what `judge=` takes.

rlaif.generate(prompts, judge=PairwiseSpec(reason=True, constitution="honest"), ...)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rlaif.errors import InputError
from rlaif.judges.llm import LETTERS
from rlaif.judges.reward import RewardSpec
from rlaif.judges.rules import RulesSpec
from rlaif.ranking.adaptive import TARGET
from rlaif.templates import read_yaml

Principles = Literal["all", "sampled", "each"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _LlmSpec(_Spec):
    """What all LLM judges have: the settings beside the kind's own."""

    model: str | None = None
    constitution: str | None = None
    principles: Principles = "all"
    reason: bool = False
    reference: bool = False
    logprobs: bool = True
    token_template: str | None = None
    text_template: str | None = None
    max_tokens: int = Field(default=2048, ge=1)


def _is_judge(value: Any) -> Any:
    if isinstance(value, dict):
        return _SPECS.validate_python(value)
    if isinstance(value, (str, BaseModel)) or callable(value):
        return value
    raise ValueError(f"{value!r} is no judge: give a name, a spec or FILE.py:FUNCTION")


class PairwiseSpec(_LlmSpec):
    """Two at a time, in both orders: all pairs, or those that `schedule` says."""

    kind: Literal["pairwise"] = "pairwise"
    schedule: Literal["all", "swiss", "elimination", "random-pair"] = "all"


class AdaptiveSpec(_LlmSpec):
    """Scores of all, then duels where they matter: at most `calls`, and none beyond P(chosen better) = `target`."""

    kind: Literal["adaptive"] = "adaptive"
    calls: int | None = Field(default=None, ge=2)
    target: float = Field(default=TARGET, gt=0.5, le=1.0)


class PointwiseSpec(_LlmSpec):
    """One at a time, rated 1 to 9."""

    kind: Literal["pointwise"] = "pointwise"


class ListwiseSpec(_LlmSpec):
    """`shown` at a time, ranked, in `orders` seeded orders."""

    kind: Literal["listwise"] = "listwise"
    shown: int = Field(default=4, ge=2, le=len(LETTERS))
    orders: int = Field(default=2, ge=1, le=100)


class RecordedSpec(_Spec):
    """Verdicts read from a file; `judge` and `config` choose among those in it, `grammar` reads their raw texts anew."""

    kind: Literal["recorded"] = "recorded"
    verdicts: str
    judge: str | None = None
    config: str | None = None
    grammar: str | None = None


class FunctionSpec(_Spec):
    """`file.py:function`."""

    kind: Literal["function"] = "function"
    function: str


class JurySpec(_Spec):
    """Several judges at once, by name or as specs or functions; `weights` say how much each counts."""

    kind: Literal["jury"] = "jury"
    judges: list[Annotated[Any, AfterValidator(_is_judge)]] = Field(min_length=1)
    weights: list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None = None


LlmSpec = AdaptiveSpec | PairwiseSpec | PointwiseSpec | ListwiseSpec
Spec = Annotated[
    LlmSpec | RewardSpec | RulesSpec | RecordedSpec | FunctionSpec | JurySpec,
    Field(discriminator="kind"),
]
_SPECS: TypeAdapter[Any] = TypeAdapter(Spec)


def load_spec(judge: str, path: Path) -> Any:
    """The spec in the file. Raises InputError naming the judge, the file and the place."""
    raw = read_yaml(path)
    try:
        return _SPECS.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        kind = raw.get("kind") if isinstance(raw, dict) else None
        loc = first["loc"][1:] if first["loc"][:1] == (kind,) else first["loc"]
        place = ".".join(map(str, loc)) or ("kind" if isinstance(raw, dict) else "the whole")
        raise InputError(f"judge {judge!r} ({path}): {place}: {first['msg']}") from None
