"""Rejection sampling: which answers are good enough, so that their prompt is sampled no further. Pure.

    correct     the final answer equals the prompt's `reference`: the judge is rules-math, where no other is named
    score:T     the judge's rating of the answer is at least T: the judge is pointwise, where no other is named

Each answer is rated by itself. Of several judges each has to accept it; where one of them has failed, it is not accepted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.errors import InputError
from rlaif.types import Verdict

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Accept:
    """An acceptance rule: the lowest rating that is accepted, and the judge that it goes with."""

    least: float
    judge: str
    needs_reference: bool = False


def parse(text: str) -> Accept:
    """The rule that `text` names. Raises InputError if it is none."""
    name, _, value = text.replace(">=", ":").replace("=", ":").partition(":")
    if text.strip() == "correct":
        return Accept(1.0, "rules-math", needs_reference=True)
    try:
        least = float(value) if name.strip() == "score" else math.nan
    except ValueError:
        least = math.nan
    if not math.isfinite(least):
        raise InputError(f"--accept {text!r} is no rule: give `correct`, or `score:T` with a number T, as in score:7")
    return Accept(least, "pointwise")


def accepted(rule: Accept, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The ids of the candidates that every judge has rated high enough, with their ratings, the mean over the judges.

    Ratings of a candidate by one judge are averaged; what was said of several candidates together is no rating.
    """
    ratings: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        if verdict.scores is not None and len(verdict.shown) == 1 and verdict.scale == "rating":
            ratings[verdict.shown[0]][verdict.judge].append(verdict.scores[0])
    judges = {verdict.judge for verdict in verdicts}
    found: dict[str, float] = {}
    for candidate, given in ratings.items():
        means = [sum(said) / len(said) for said in given.values()]
        if given.keys() == judges and min(means) >= rule.least - _ROUNDING:
            found[candidate] = sum(means) / len(means)
    return found
