"""Preference data with an AI judge.

    run = rlaif.generate("prompts.jsonl", policy="smollm2", judge="adaptive", out="outputs/first")
    for record in run: ...          # as they finish; or `async for`
    run.to_dataset()                # a datasets.Dataset, ready for DPO

`generate`, `best_of_n` and `judge` take what the commands of the same names take. A judge may be a function of your own;
`judge_pair` and `rank` ask one about the answers to a single prompt, and `rlaif.testing.check_judge` tests it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlaif.errors import CallFailed, InputError, RlaifError, StopRun
from rlaif.jobs import Run, new_run
from rlaif.judges import JudgeLike
from rlaif.single import Comparison, Ranked, judge_pair, rank
from rlaif.types import Candidate, PreferencePair, Prompt, Ranking, Record, Verdict

__version__ = "0.1.0"
__all__ = [
    "CallFailed",
    "Candidate",
    "Comparison",
    "InputError",
    "PreferencePair",
    "Prompt",
    "Ranked",
    "Ranking",
    "Record",
    "RlaifError",
    "Run",
    "StopRun",
    "Verdict",
    "best_of_n",
    "generate",
    "judge",
    "judge_pair",
    "rank",
]

Source = str | Path | Iterable[Any]
Judges = JudgeLike | Sequence[JudgeLike]


def generate(
    prompts: Source, *, policy: str | Sequence[str], out: str | Path, judge: Judges | None = None, **settings: Any
) -> Run:
    """Samples candidates and compares them; the run's pairs go to `out`/dpo.jsonl.

    `prompts` is a path, or rows as in a file: texts, lists of messages, or dicts with `prompt`. `settings` are those of
    `RunConfig` (n, temperature, max_tokens, judge_model, constitution, ...); the judge is "adaptive" where none is given.
    Raises InputError when it is iterated if something is wrong, before anything is spent.
    """
    return _run("generate", prompts, out, judge, {"policy": policy, **settings})


def best_of_n(
    prompts: Source, *, policy: str | Sequence[str], out: str | Path, judge: Judges | None = None, **settings: Any
) -> Run:
    """As `generate`, with the best answer of each prompt in `out`/sft.jsonl.

    With `accept` ("correct" or "score:T") a prompt is sampled until an answer is accepted, `max_samples` (16) at most, and the
    run ends at `target` accepted answers.
    """
    return _run("best-of-n", prompts, out, judge, {"policy": policy, **settings})


def judge(candidates: Source, *, judge: Judges, out: str | Path, **settings: Any) -> Run:
    """Compares answers that already exist: a path, or dicts with `prompt` and `candidates`; pairs go to `out`/dpo.jsonl."""
    return _run("judge", candidates, out, judge, settings)


def _run(command: str, source: Source, out: str | Path, judge: Judges | None, settings: dict[str, Any]) -> Run:
    return new_run(command, source, judge, {**settings, "out": out})
