"""One prompt's answers judged at once, for notebooks and scripts: `judge_pair` and `rank`.

Both are a run on one prompt, with all that a run does: both orders, a typed failure for what cannot be read, a ledger (in a
temporary directory, or in one of its own inside `out`, where nothing is bought twice). For many prompts use `rlaif.judge`,
which asks about all of them at the same time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif import pairs, results
from rlaif.errors import InputError
from rlaif.jobs import new_run
from rlaif.judges import JudgeLike
from rlaif.keys import digest
from rlaif.ranking.bradley_terry import rank as fit
from rlaif.types import Message, Record, Verdict

Judge = JudgeLike
Asked = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was said of two answers.

    `p_a` is the probability that the first is better (0.5: a tie), None where nothing could be said: `why` says why not.
    `flip` is whether the two orders named different winners, None where not both could be read.
    """

    p_a: float | None
    flip: bool | None
    verdicts: tuple[Verdict, ...]
    why: str | None = None

    @property
    def winner(self) -> str | None:
        """`a`, `b`, or None for a tie or no verdict."""
        if self.p_a is None or abs(self.p_a - 0.5) < pairs.TIE:
            return None
        return "a" if self.p_a > 0.5 else "b"


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer in a ranking: its place among those given (from 0), its text, its score, higher is better.

    `score` is the mean rating of a rating judge, else the Bradley-Terry strength (log-odds, mean 0); None for an answer that
    was not compared: it is empty, or no verdict on it could be read.
    """

    index: int
    text: str
    score: float | None


def judge_pair(prompt: Asked, a: str, b: str, *, judge: Judge | Sequence[Judge] = "pairwise", **settings: Any) -> Comparison:
    """Compares two answers to a prompt (a text, or a list of messages).

    `settings` are those of `rlaif.judge`: `judge_model`, `constitution`, `reference` for the prompt's, `out`, ... Raises
    InputError, or StopRun where the endpoint lets nothing through.
    """
    record = _record(prompt, [a, b], judge, settings)
    if pairs.normalised(a) == pairs.normalised(b):
        return Comparison(0.5, None, record.verdicts, "identical")
    one, other = (c.id for c in record.candidates)
    if not record.verdicts:
        return Comparison(None, None, (), pairs.why_not_judged(record.candidates, allow_truncated=True, allow_degenerate=True))
    flip = pairs.flip(record.verdicts, one, other)
    if not pairs.compared(record.verdicts):
        return Comparison(None, flip, record.verdicts, next((v.error for v in record.verdicts if v.error), "no_verdict"))
    (ranking,) = fit([record], [[one, other]])
    return Comparison(ranking.p(0, 1), flip, record.verdicts)


def rank(
    prompt: Asked, answers: Sequence[str], *, judge: Judge | Sequence[Judge] = "pairwise", **settings: Any
) -> list[Ranked]:
    """The answers from the best to the worst, those that could not be compared last. Answers that say the same share a score.

    Takes what `judge_pair` takes. Raises InputError if there are fewer than two answers.
    """
    if len(answers) < 2:
        raise InputError(f"there are {len(answers)} answers; a ranking needs two")
    record = _record(prompt, answers, judge, settings)
    ids = [c.id for c in pairs.eligible(record.candidates, allow_truncated=True, allow_degenerate=True)]
    known = pairs.compared(record.verdicts)
    (ranking,) = fit([record], [ids])
    scores = {pairs.normalised(c.text): s for c, s in _scored(record, ranking.ids, ranking.scores) if c.id in known}
    ranked = [Ranked(k, text, scores.get(pairs.normalised(text))) for k, text in enumerate(answers)]
    return sorted(ranked, key=lambda r: (r.score is None, -(r.score or 0.0), r.index))


def _scored(record: Record, ids: Sequence[str], scores: Sequence[float]) -> list[tuple[Any, float]]:
    by_id = {c.id: c for c in record.candidates}
    return [(by_id[i], score) for i, score in zip(ids, scores, strict=True)]


def _record(prompt: Asked, answers: Sequence[str], judge: Judge | Sequence[Judge], settings: dict[str, Any]) -> Record:
    """The record of a run on one prompt. Planted checks are left out unless they are asked for."""
    row: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "candidates": list(answers)}
    if (reference := settings.pop("reference", None)) is not None:
        row["reference"] = reference
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
        if "out" in settings:  # a directory is for one prompt: each has its own in there
            settings["out"] = Path(settings["out"]) / digest([row["prompt"], row["candidates"], row.get("reference")], 8)
        given = {"out": folder, "checks": False, "allow_truncated": True, "allow_degenerate": True, **settings}
        run = new_run("judge", [row], judge, given)
        run.wait()
        ((record, _),) = results.ranked(run.directory, run.config)
    return record
