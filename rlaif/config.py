"""What a run is told to do: one flat configuration, from the command line, a YAML file or Python."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlaif import accept, selection
from rlaif.errors import InputError
from rlaif.templates import read_yaml


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]


_OWN_FIELDS = {
    "model": ": use --policy or --judge-model",
    "messages": "",
    "n": ": use -n",
    "stream": "",
    "temperature": ": use --temperature",
    "max_tokens": ": use --max-tokens",
    "max_completion_tokens": ": use --max-tokens",
    "seed": ": use --seed",
    "logprobs": "",
    "top_logprobs": "",
}


def _is_json(value: dict[str, Any]) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)
    for name in value:
        if name in _OWN_FIELDS:
            raise ValueError(f"the field {name!r} is rlaif's own{_OWN_FIELDS[name]}")
    return value


def _is_text(value: str | None) -> str | None:
    if value is not None:
        value.encode("utf-8")  # UnicodeEncodeError is a ValueError: half a surrogate pair is no text
    return value


_MAX_SAMPLES = 16


class RunConfig(BaseModel):
    """The settings of generate, best-of-n and judge. `config.yaml` in the run directory holds them, without secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Literal["generate", "best-of-n", "judge"] = "generate"
    prompts: str
    out: str
    policy: Names = []
    judge: Names = ["adaptive"]
    judge_model: str | None = None
    judge_calls: int | None = Field(default=None, ge=2)
    constitution: str | None = None
    principles: Literal["all", "sampled", "each"] | None = None
    against: str | None = None
    checks: bool = Field(default_factory=lambda: os.environ.get("RLAIF_CHECKS") != "0")
    check_gold: str | None = None
    accept_judge: bool = False
    n: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    max_tokens: int = Field(default=512, ge=1)
    system: Annotated[str | None, AfterValidator(_is_text)] = None
    seed: int = 0
    limit: int | None = Field(default=None, ge=1)
    dedupe: bool = False
    replace: bool = False
    prompt_field: str | None = None
    reference_field: str | None = None
    id_field: str | None = None
    candidates_field: str | None = None
    response_field: Names = []
    compare_labels: bool = False
    allow_truncated: bool = False
    allow_degenerate: bool = False
    select: str | None = None
    calibration: str | None = None
    accept: str | None = None
    target: int | None = Field(default=None, ge=1)
    max_samples: int = Field(default=_MAX_SAMPLES, ge=1)
    extra_body: Annotated[dict[str, Any], AfterValidator(_is_json)] = {}
    concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=600.0, gt=0.0, allow_inf_nan=False)
    judge_timeout_s: float = Field(default=300.0, gt=0.0, allow_inf_nan=False)
    max_wait_s: float = Field(default=900.0, ge=0.0, allow_inf_nan=False)
    rpm: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    tpm: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    budget_usd: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    budget_tokens: int | None = Field(default=None, ge=1)
    prices: str | None = None
    strict_model: bool = False
    transport: Literal["aiohttp", "openai"] = "aiohttp"
    retry_failed: bool = False

    @property
    def aims_at_best(self) -> bool:
        """Whether only the best answer matters, and the worst does not."""
        return self.command == "best-of-n" or (self.select is not None and selection.parse(self.select).name == "best-random")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `rlaif ... --config` reads it."""
        return str(yaml.safe_dump(self.model_dump(exclude={"retry_failed"}), allow_unicode=True, sort_keys=False))


def make_config(given: dict[str, Any], file: str | None = None) -> RunConfig:
    """The configuration in `file`, with `given` taking precedence. Raises InputError naming the setting."""
    settings: dict[str, Any] = {}
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise InputError(f"no configuration file at {file!r}")
        loaded = read_yaml(path)
        if not isinstance(loaded, dict):
            raise InputError(f"{file}: the file must hold settings, one `name: value` a line")
        settings = loaded
    settings |= {name: value for name, value in given.items() if value is not None}
    if settings.get("accept") is not None:
        settings = {"judge": accept.parse(str(settings["accept"])).judge, "n": 1} | settings
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            how = {"out": "--out DIR", "prompts": "a file of prompts or candidates"}.get(name, name)
            raise InputError(f"the setting `{name}` is missing: give {how}") from None
        if first["type"] == "extra_forbidden":
            raise InputError(f"there is no setting `{name}`; there are {', '.join(RunConfig.model_fields)}") from None
        raise InputError(f"{name.replace('_', '-')} = {first['input']!r}: {first['msg']}") from None
    _check_columns(config)
    _check_selection(config)
    if config.command != "judge" and not config.policy:
        raise InputError("no policy model: give --policy, for example --policy smollm2")
    if config.accept is not None or config.target is not None or config.max_samples != _MAX_SAMPLES:
        _check_accept(config)
    elif config.command != "judge" and config.n * len(config.policy) < 2:
        raise InputError("one candidate a prompt leaves nothing to compare: n times the number of policies must be at least 2")
    return config


def _check_accept(config: RunConfig) -> None:
    """Raises InputError if rejection sampling cannot be done so."""
    if config.accept is None:
        raise InputError(
            "--target and --max-samples are for sampling until one is accepted: give --accept, as in --accept score:7"
        )
    if config.select is not None and selection.parse(config.select).p is not None:
        raise InputError(
            f"--select {config.select}: with --accept, what is accepted is taken; ask for more by the rule of --accept"
        )
    if config.command != "best-of-n":
        raise InputError("--accept is of rlaif best-of-n, which samples until an answer is accepted")
    if config.n * len(config.policy) > config.max_samples:
        raise InputError(
            f"--max-samples {config.max_samples} is less than one round: {config.n} of each of {len(config.policy)} policies"
        )
    if config.temperature == 0.0 and config.n * len(config.policy) < config.max_samples:
        raise InputError("at temperature 0 a second sample is the first one again: raise --temperature")


def _check_columns(config: RunConfig) -> None:
    """Raises InputError if what is said of the input's columns cannot be."""
    if config.command != "judge" and config.compare_labels:
        raise InputError("--compare-labels goes with `rlaif judge`: prompts have no labels")
    if config.candidates_field is not None and config.response_field:
        raise InputError("--candidates-field and --response-field both say where the answers are: give one of them")
    if len(config.response_field) == 1:
        raise InputError("--response-field: one answer leaves nothing to compare; name two columns or more")


def _check_selection(config: RunConfig) -> None:
    """Raises InputError if the command gives nothing that the selection rule could pick from."""
    if config.select is None:
        return
    best_of_n = selection.parse(config.select).name == selection.BEST_OF_N
    if best_of_n != (config.command == "best-of-n"):
        instead = "gives no pairs: use rlaif best-of-n" if best_of_n else "gives pairs, and best-of-n takes answers: use export"
        raise InputError(f"the selection rule {config.select!r} {instead}")
