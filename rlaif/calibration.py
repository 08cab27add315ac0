"""From a judge's probability to how often it is right: a map fitted on gold pairs, for `--calibration`.

The map is logistic on the log-odds, p' = sigmoid(slope * logit(p)), with Platt's smoothed targets (1999): of n pairs, what is
right counts as (n + 1) / (n + 2). There is no intercept, as swapping A and B must mirror it; so 1/2 stays 1/2, and the slope
alone says whether the judge is too sure (below 1), too modest (above 1), or worse than a coin (below 0).

An isotonic map would follow any shape, and needs more pairs than gold sets have (Niculescu-Mizil and Caruana 2005: about a
thousand). In five-fold cross-validation by prompt over 75 recorded judges of JudgeBench, LLMBar, Auto-J and PandaLM, with 137
to 542 pairs each, the mean log loss is 0.768 without a map, 0.620 with a mirrored isotonic one and 0.617 with this one, which
is the better of the two for 60 judges.

A probability that is mapped to 1/2 or below says that the label is not to be trusted: such a pair is dropped as `uncertain`,
never swapped. The map is of one judge, on answers such as those of the gold pairs: known by its name and, where it was asked
by `rlaif eval-judge` itself, by its rubric, the constitution and templates that it was asked by.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.pairs import TIE
from rlaif.selection import Selection

_CLIP = 1e-6
UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A slope with its 95 % interval, clustered by prompt (None where nothing tells how far it scatters)."""

    slope: float
    interval: tuple[float, float] | None


def fit(ps: Sequence[float], right: Sequence[bool], clusters: Sequence[int]) -> Fitted | None:
    """The map from P(A is better) and whether A is gold, of pairs in clusters; None of fewer than two, or if every p is 1/2."""
    import numpy as np

    odds = np.array([_logit(p) for p in ps])
    if len(odds) < 2 or np.abs(odds).max() == 0.0:
        return None
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    n, y = len(odds), np.asarray(right, dtype=bool)
    groups = np.asarray(clusters)
    how: dict[str, Any] = {}
    if len(np.unique(groups)) > 1:
        how = {"cov_type": "cluster", "cov_kwds": {"groups": groups}}
    with warnings.catch_warnings():  # the targets are never 0 or 1: that a fit is exact means nothing here
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        found = GLM(np.where(y, (n + 1) / (n + 2), 1 / (n + 2)), odds, family=Binomial()).fit(**how)
    ends = found.conf_int()[0] if how and found.bse[0] > 1e-9 else None
    return Fitted(float(found.params[0]), None if ends is None else (float(ends[0]), float(ends[1])))


def mapped(p: float, slope: float) -> float:
    """What a probability becomes; mapped(1 - p) is 1 - mapped(p)."""
    return 0.5 * (1.0 + math.tanh(0.5 * slope * _logit(p)))


def _logit(p: float) -> float:
    p = min(max(p, _CLIP), 1.0 - _CLIP)
    return math.log(p / (1.0 - p))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The maps in a file: of each judge, by its name, the slope, and the rubric that it was asked by if that is known."""

    path: str
    maps: Mapping[str, tuple[float, str | None]]

    def slope(self, judge: str, rubric: str | None = None) -> float:
        """The slope for a judge. Raises InputError if the file is of others, or of this one by another rubric."""
        if judge not in self.maps:
            raise InputError(
                f"the calibration {self.path!r} was made for {', '.join(map(repr, self.maps))}, and the judge here is"
                f" {judge!r}: measure it with `rlaif eval-judge`"
            )
        slope, measured = self.maps[judge]
        if None not in (rubric, measured) and rubric != measured:
            raise InputError(
                f"the calibration {self.path!r} was made of {judge!r} by another constitution, other principles or other"
                " templates than here: measure it again with `rlaif eval-judge` and the same settings"
            )
        return slope

    def map(self, selection: Selection, rubric: str | None = None) -> Selection:
        """The same with each pair's probability mapped; pairs that are mapped to 1/2 or below are dropped.

        The rule and its limits have gone by the judge's own probabilities. Raises InputError as of `slope`.
        """
        pairs = [
            replace(pair, p_chosen=mapped(pair.p_chosen, self.slope(pair.judge, rubric)), p_source="calibrated")
            for pair in selection.pairs
        ]
        kept = [pair for pair in pairs if pair.p_chosen >= 0.5 + TIE]
        reason = UNCERTAIN if pairs and not kept else selection.reason
        dropped = [UNCERTAIN] * (len(pairs) - len(kept))
        return replace(selection, pairs=kept, reason=reason, limited=[*selection.limited, *dropped])


def load(path: str) -> Calibration:
    """The maps in a file that `rlaif eval-judge` wrote. Raises InputError."""
    try:
        maps = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))["maps"]
        found = {str(one["judge"]): (float(one["slope"]), _text(one.get("rubric"))) for one in maps}
    except OSError as error:
        raise InputError(f"cannot read the calibration {path!r}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path!r} is no calibration: give the calibration.json of `rlaif eval-judge`") from None
    if not found or not all(math.isfinite(slope) for slope, _ in found.values()):
        raise InputError(f"the calibration {path!r} holds no map of a judge")
    return Calibration(path, found)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
