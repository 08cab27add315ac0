"""Bradley-Terry with soft counts, pooled over a run: what the judges are like, and then each prompt's posterior.

`posterior` states the model of a prompt, `reading` what counts as what. The instruments' parameters are few and pooled over
all prompts. They maximise the evidence of all verdicts, the strengths integrated out, times

    b     ~ N(0, 2^2), the bonus for the first place, of every instrument that was read in both orders of some pair
    log a ~ N(0, 0.5^2), the discrimination, of every instrument of pairs or lists that was heard often enough of a prompt
            to be held against itself or against another instrument: games that close a circle, or ratings beside them
    log-odds of r ~ N(0, 1.5^2), the reliability, of every instrument of ratings that stands beside another one

and are b = 0, a = 1, r = 0.5 for others: of those they cannot be known. A judge by itself has an a, too: in simulations with
a from 0.5 to 2 it keeps probabilities as often right as they say, where a = 1 is off by up to 0.06, and little is lost where
all that it says has errors of its own. A judge that contradicts itself gets a small a, and
all that it says a probability near one half. Judges of a jury weigh as much as they are worth, and more evidence is more. No
judge is held to be better than two of the prior's standard deviations above its middle (a = 2.7, r = 0.95): one that always
repeats itself may as well repeat an error.

A probability counts as the mean of a draw that was not made. Strengths follow from means alone; but the evidence for a and r
lies in how draws scatter, and means do not: taken as they are they ask for a too small and r too large. So these maximise the
log evidence expected over the draws, to the second order: `evidence`.

Fitted by Newton's method on sums over the prompts, taken chunk by chunk from a file. The first games alone give the start:
then one or two passes do, and one more gives the posteriors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.evidence import KINDS, Slope, slope
from rlaif.ranking.games import Games
from rlaif.ranking.posterior import win_probabilities
from rlaif.ranking.propagation import CLOSE, RELIABILITY, Parameters, settle
from rlaif.ranking.reading import Floats, Instrument, Ranked, within
from rlaif.types import Ranking, Record, Verdict

POSITION_SD = 2.0
DISCRIMINATION_SD = 0.5
RELIABILITY_SD = 1.5
_BEST = 2.0
_CLOSE, _CLOSE_ENOUGH = 1e-7, 3e-3
_MOST_STEPS, _MOST_PASSES = 50, 2
_LONGEST_STEP = 0.5
_FLATTEST = 0.1
_EQUAL = 1e-9
_HELD_BYTES = 2**20
CHUNK_SIZE = 2**14


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt's posterior: means of the strengths, mean 0, and `wins[i][j]`, the probability that i is better than j.

    `rated`: in all of the fit nothing but ratings was said.
    """

    strengths: Sequence[float]
    wins: Sequence[Sequence[float]]
    rated: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """What the judges are like, and each prompt's posterior, yielded once, in order.

    `position` is the bonus (log-odds) for the first place of each judge that compared two, `discrimination` how well each
    instrument (judge, "pairs" or "lists") tells better from worse, 1 being what the prior expects, `reliability` the share
    of quality in the variance of each judge's ratings.
    """

    position: Mapping[str, float]
    discrimination: Mapping[Instrument, float]
    reliability: Mapping[str, float]
    posteriors: Iterator[Fitted]


@contextmanager
def fit(ranked: Iterable[Ranked], *, chunk_size: int = CHUNK_SIZE) -> Iterator[Fit]:
    """The fit of all prompts together. Reads `ranked` once; while it is open, the games are in an unnamed temporary file.

    A chunk ends when its games and the squares of its prompts' numbers of candidates reach `chunk_size` together.
    """
    with SpooledTemporaryFile(_HELD_BYTES) as file:
        games = Games(file, ranked, chunk_size)
        found = _pooled(games)
        named = list(games.instruments.items())
        yield Fit(
            {judge: float(found.position[k]) for (judge, form), k in named if form == "pairs"},
            {(judge, form): float(found.discrimination[k]) for (judge, form), k in named if form != "ratings"},
            {judge: float(found.reliability[k]) for (judge, form), k in named if form == "ratings"},
            _posteriors(games, found),
        )


def _pooled(games: Games) -> Parameters:
    """The parameters of the instruments, in the order of `games.instruments`."""
    parameters = Parameters.start(games.scale())
    free = _free(games)
    if not free.any():
        return parameters
    search = _Search(free)
    for _ in range(_MOST_STEPS):
        parameters, step = search.step(parameters, _total(games, parameters, games.head))
        if step < (_CLOSE if games.head is None else _CLOSE_ENOUGH):
            break
    if games.head is not None:
        search.restart()
        for _ in range(_MOST_PASSES):
            parameters, step = search.step(parameters, _total(games, parameters))
            if step < _CLOSE_ENOUGH:
                break
    return parameters


def _total(games: Games, parameters: Parameters, most: int | None = None) -> Slope:
    """The gradient and the information of the first chunks and of the priors."""
    total, close = _of_priors(parameters), CLOSE if games.head is None else _CLOSE_ENOUGH
    for block in games.blocks(most):
        if block.games or block.rated:
            total += slope(block, parameters, settle(block, parameters, close=close))
    return total


def _free(games: Games) -> NDArray[np.bool_]:
    """Which parameters can be known, in the order of `evidence`."""
    free = np.zeros((KINDS, len(games.instruments)), dtype=bool)
    for (_, form), number in games.instruments.items():
        again = number in games.repeated
        free[:, number] = number in games.both_orders, again and form != "ratings", again and form == "ratings"
    return free.ravel()


def _of_priors(parameters: Parameters) -> Slope:
    precision = np.repeat([POSITION_SD**-2, DISCRIMINATION_SD**-2, RELIABILITY_SD**-2], len(parameters.position))
    return Slope(-precision * _vector(parameters), np.diag(precision))


class _Search:
    """Newton's method on the `free` parameters, with the information corrected by how the gradient has changed.

    The correction is the symmetric one of Powell (1970). Where the evidence is not concave a step goes up all the same, and
    it is never long.
    """

    def __init__(self, free: NDArray[np.bool_]) -> None:
        self._free = free
        self._corrected = np.zeros((len(free), len(free)))
        self._last: tuple[Floats, Floats] | None = None
        self._size = 0.0

    def restart(self) -> None:
        """From here on there are more data."""
        self._last = None

    def step(self, parameters: Parameters, total: Slope) -> tuple[Parameters, float]:
        """The parameters after a step, and its largest part."""
        gradient, information = total.gradient, total.information
        size = float(np.trace(information))
        if self._last is None:
            self._corrected *= size / self._size if self._size else 0.0
        else:
            moved, before = self._last
            left = np.where(self._free, before - gradient - (information + self._corrected) @ moved, 0.0)
            square = float(moved @ moved)
            self._corrected += (np.outer(left, moved) + np.outer(moved, left)) / square
            self._corrected -= float(left @ moved) / square**2 * np.outer(moved, moved)
        values = _vector(parameters)
        rising = np.flatnonzero(self._free & ((values < _ceilings(values)) | (gradient < 0.0)))
        flat, axes = np.linalg.eigh((information + self._corrected)[np.ix_(rising, rising)])
        moved = np.zeros(len(values))
        moved[rising] = axes @ ((axes.T @ gradient[rising]) / np.maximum(np.abs(flat), _FLATTEST))
        moved *= min(1.0, _LONGEST_STEP / max(float(np.abs(moved).max()), _LONGEST_STEP))
        moved = np.minimum(moved, _ceilings(values) - values)
        longest = float(np.abs(moved).max())
        self._size, self._last = size, (moved, gradient) if longest > 0.0 else None
        return _parameters(values + moved, parameters), longest


def _vector(parameters: Parameters) -> Floats:
    """The parameters in the order of `evidence`, the reliability's log-odds from those of the prior on."""
    r = parameters.reliability
    odds = np.log(r) - np.log1p(-r) - math.log(RELIABILITY / (1.0 - RELIABILITY))
    return np.concatenate([parameters.position, np.log(parameters.discrimination), odds])


def _parameters(vector: Floats, like: Parameters) -> Parameters:
    position, discrimination, odds = vector.reshape(KINDS, -1)
    r = 1.0 / (1.0 + np.exp(-odds) * (1.0 - RELIABILITY) / RELIABILITY)
    return replace(like, position=position, discrimination=np.exp(discrimination), reliability=r)


def _ceilings(vector: Floats) -> Floats:
    number = len(vector) // KINDS
    return np.repeat([np.inf, _BEST * DISCRIMINATION_SD if number > 1 else 0.0, _BEST * RELIABILITY_SD], number)


def _posteriors(games: Games, parameters: Parameters) -> Iterator[Fitted]:
    rated = all(form == "ratings" for _, form in games.instruments)
    for count, blocks in games.chunks():
        rows: list[Fitted] = [_NOTHING] * count
        for block in blocks:
            found = settle(block, parameters)
            wins = win_probabilities(block, parameters, found).tolist()
            strengths = (found.mean - found.mean.mean(axis=1, keepdims=True)).tolist() if block.n else found.mean.tolist()
            for prompt, row, won in zip(block.prompts.tolist(), strengths, wins, strict=True):
                rows[prompt] = Fitted(row, won, rated)
        yield from rows


_NOTHING = Fitted((), ())


def rank(records: Sequence[Record], ranked_ids: Sequence[Sequence[str]]) -> list[Ranking]:
    """A ranking of each record's `ranked_ids` from its verdicts, the instruments' parameters pooled over all records."""
    ranked = [(ids, record.verdicts) for record, ids in zip(records, ranked_ids, strict=True)]
    with fit(ranked) as fitted:
        return [ranking(*one, found) for one, found in zip(ranked, fitted.posteriors, strict=True)]


def ranking(ids: Sequence[str], verdicts: Sequence[Verdict], found: Fitted) -> Ranking:
    """The ranking of `ids` with their posterior, equal for equals.

    Its scores are the ratings of a lone rating judge. One that also compares (`adaptive`) has strengths throughout a run.
    """
    strengths = _evened(found.strengths)
    scores = (_ratings(ids, within(ids, verdicts)) if found.rated else None) or strengths
    return Ranking(tuple(ids), strengths, scores, tuple([tuple(row) for row in found.wins]))


def _evened(strengths: Sequence[float]) -> tuple[float, ...]:
    """The strengths, those of equals made equal: the last bits in which the solver leaves them apart are nobody's verdict."""
    equal: dict[float, float] = {}
    head = math.inf
    for strength in sorted(strengths, reverse=True):
        if head - strength > _EQUAL:
            head = strength
        equal[strength] = head
    return tuple(equal[strength] for strength in strengths)


def _ratings(ids: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """Mean ratings, where one judge rated every candidate and nothing else was said."""
    if not verdicts or any(v.judge != verdicts[0].judge for v in verdicts):
        return None
    given: dict[str, list[float]] = {c: [] for c in ids}
    for verdict in verdicts:
        if verdict.scores is None:
            continue
        if verdict.scale != "rating" or len(verdict.shown) not in (1, len(ids)):
            return None
        for c, score in zip(verdict.shown, verdict.scores, strict=True):
            given[c].append(score)
    if not all(given.values()):
        return None
    return tuple(sum(scores) / len(scores) for scores in given.values())
