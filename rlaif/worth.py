"""What a schedule of judge calls is expected to keep of the gap that all pairs in both orders reach.

The gap is the mean true quality of chosen less that of rejected, best and worst of a prompt. `curves.yaml` holds what
`benchmarks/ranking.py --curves` measured on simulated judges of known truth: by schedule, form of verdicts (soft:
probabilities; hard: named winners) and number of candidates, the calls a prompt and the share kept. Between numbers of
candidates, and between calls, the share is interpolated by the logarithm; beyond what was measured it is the nearest's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlaif.ranking.adaptive import Adaptive
from rlaif.ranking.schedule import Elimination, Every, RandomPair, Swiss
from rlaif.templates import read_yaml
from rlaif.types import Schedule

_NAMES: dict[type, str] = {Adaptive: "adaptive", Swiss: "swiss", Elimination: "elimination", RandomPair: "random-pair"}


def name_of(schedule: Schedule) -> str | None:
    """The schedule's name in the curves; None for one that was not measured."""
    if isinstance(schedule, Every):
        if schedule.orders:
            return "listwise"
        return {1: "pointwise", 2: "pairwise"}.get(schedule.arity or 0)
    return next((name for kind, name in _NAMES.items() if isinstance(schedule, kind)), None)


def kept(schedule: Schedule, count: int, *, soft: bool) -> float | None:
    """The share of the gap that is expected to be kept with `count` candidates; None where it was not measured.

    All pairs in both orders keep all of it.
    """
    name, calls = name_of(schedule), schedule.calls(count)
    if count < 2 or name is None:
        return None
    if calls == Every(2).calls(count):
        return 1.0
    measured: dict[int, list[tuple[float, float]]] = _curves().get(name, {}).get("soft" if soft else "hard", {})
    if not measured:
        return None
    shares = [(n, _between([(c / n, share) for c, share in points], calls.total() / count)) for n, points in measured.items()]
    return _between(sorted(shares), count)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at a place between points in ascending order, by its logarithm."""
    below = max((p for p in points if p[0] <= at), default=points[0])
    above = min((p for p in points if p[0] >= at), default=points[-1])
    if above[0] <= below[0]:
        return below[1]
    part = math.log(at / below[0]) / math.log(above[0] / below[0])
    return below[1] + part * (above[1] - below[1])


@cache
def _curves() -> dict[str, Any]:
    found = read_yaml(Path(__file__).with_name("curves.yaml"))
    assert isinstance(found, dict)
    return found
