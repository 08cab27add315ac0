"""Preference data with an AI judge.

    run = rlaif.generate("prompts.jsonl", policy="smollm2", judge="pairwise", out="outputs/first")
    for record in run: ...          # as they finish; or `async for`
    run.to_dataset()                # a datasets.Dataset, ready for DPO

`generate`, `best_of_n` and `judge` take what the commands of the same names take. A judge may be a function of your own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlaif.config import make_config
from rlaif.errors import CallFailed, InputError, RlaifError, StopRun
from rlaif.jobs import Run
from rlaif.judges.code import JudgeFunction
from rlaif.types import Candidate, PreferencePair, Prompt, Ranking, Record, Verdict

__version__ = "0.1.0"
__all__ = [
    "CallFailed",
    "Candidate",
    "InputError",
    "PreferencePair",
    "Prompt",
    "Ranking",
    "Record",
    "RlaifError",
    "Run",
    "StopRun",
    "Verdict",
    "best_of_n",
    "generate",
    "judge",
]

Source = str | Path | Iterable[Any]
Judges = str | JudgeFunction | Sequence[str | JudgeFunction]


def generate(
    prompts: Source, *, policy: str | Sequence[str], out: str | Path, judge: Judges = "pairwise", **settings: Any
) -> Run:
    """Samples candidates and compares them; the run's pairs go to `out`/dpo.jsonl.

    `prompts` is a path, or rows as in a file: texts, lists of messages, or dicts with `prompt`. `settings` are those of
    `RunConfig` (n, temperature, max_tokens, judge_model, constitution, ...). Raises InputError when it is iterated if
    something is wrong, before anything is spent.
    """
    return _run("generate", prompts, out, judge, {"policy": policy, **settings})


def best_of_n(
    prompts: Source, *, policy: str | Sequence[str], out: str | Path, judge: Judges = "pairwise", **settings: Any
) -> Run:
    """As `generate`, with the best answer of each prompt in `out`/sft.jsonl."""
    return _run("best-of-n", prompts, out, judge, {"policy": policy, **settings})


def judge(candidates: Source, *, judge: Judges, out: str | Path, **settings: Any) -> Run:
    """Compares answers that already exist: a path, or dicts with `prompt` and `candidates`; pairs go to `out`/dpo.jsonl."""
    return _run("judge", candidates, out, judge, settings)


def _run(command: str, source: Source, out: str | Path, judge: Judges, settings: dict[str, Any]) -> Run:
    judges = [judge] if isinstance(judge, str) or callable(judge) else list(judge)
    named = [j if isinstance(j, str) else getattr(j, "__name__", type(j).__name__) for j in judges]
    path = str(source) if isinstance(source, (str, Path)) else None
    given = {"prompts": path or "(Python)", "out": str(out), "judge": named, **settings, "command": command}
    policy = given.get("policy")
    if policy is not None and not isinstance(policy, str):
        given["policy"] = list(policy)
    return Run(make_config(given), source=path if path is not None else source, judges=judges)
