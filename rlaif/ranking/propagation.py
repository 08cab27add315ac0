"""Expectation propagation on blocks of prompts (Minka 2001), with a site for each pair that met; the model: `posterior`.

Prior and ratings are Gaussian and taken as they are. A site stands for all games of a pair, and is approximated by a Gaussian
in the difference of the two strengths, whose moments under the site's own likelihood and the rest of the approximation, the
cavity, are found by quadrature. All sites move at once. Everything works on a block of prompts, on pairs that met alone; a
prompt stands still as soon as it has arrived, so that each comes out as it would by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.reading import Block, Floats, Ints, Layer, Rated, sums

STRENGTH_SD = 2.0
RELIABILITY = 0.5
"""Of one judge by itself the reliability cannot be known: half of the variance of its ratings within a prompt is quality."""
_OUTLIER = 20.0
CLOSE = 1e-6
_ROUGHLY = 0.1
_LONGEST_STEP = 2.0
_MOST_STEPS = 100
_LEAST = 1e-12
POINTS, _MASSES = np.polynomial.hermite_e.hermegauss(12)
_MASSES /= _MASSES.sum()


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is pooled over all prompts, by the instruments' numbers: see `posterior`."""

    position: Floats
    discrimination: Floats
    reliability: Floats
    scale: Floats

    @classmethod
    def start(cls, scale: Floats) -> Parameters:
        """No position bonus, games and ratings as the prior has them."""
        return cls(np.zeros(len(scale)), np.ones(len(scale)), np.full(len(scale), RELIABILITY), scale)


@dataclass(frozen=True, slots=True)
class Posterior:
    """A block's Gaussian approximation: `mean` (prompts, n), `covariance` (prompts, n, n), and of the sites' differences."""

    mean: Floats
    covariance: Floats
    gap: Floats
    variance: Floats

    def nodes(self) -> Floats:
        """The differences at which the sites' likelihoods are taken (sites, nodes)."""
        return self.gap[:, None] + np.sqrt(self.variance)[:, None] * POINTS


def settle(block: Block, parameters: Parameters, *, close: float = CLOSE) -> Posterior:
    """The posterior of the block's prompts. Moves its sites there from where they are, or from the mode if they are new.

    A prompt has arrived when no site moved by more than `close`, in standard deviations of its difference.
    """
    prior = _prior(block, parameters)
    if block.games:
        if not block.precision.any():
            _repeat(_Work.newton, _Work.of(block, parameters, *prior), block, _ROUGHLY)
        _repeat(_Work.sweep, _Work.of(block, parameters, *prior), block, close)
    return _gaussian(*prior, block.one, block.other, block.precision, block.shift)


def _repeat(step: Callable[[_Work, float, float], None], work: _Work, block: Block, close: float) -> None:
    """Repeats the step until no prompt moves, and writes the sites; later steps are shorter, for those that swing."""
    for count in range(_MOST_STEPS):
        step(work, 1.0 if count < 10 else 0.7 if count < 20 else 0.3, close)
        if not work.going.any():
            break
        if 4 * np.count_nonzero(work.going) < 3 * len(work.going):
            work.write(block)
            work = work.rest()
    work.write(block)


@dataclass(slots=True)
class _Work:
    """Sites that still move, with all that moves them; `place` is where they stand in the block, `going` is by prompt."""

    prior: Floats
    drift: Floats
    one: Ints
    other: Ints
    cells: list[_Cells]
    most: Floats
    precision: Floats
    shift: Floats
    gap: Floats
    place: NDArray[np.intp]
    going: NDArray[np.bool_]

    @classmethod
    def of(cls, block: Block, parameters: Parameters, prior: Floats, drift: Floats) -> _Work:
        cells = cells_of(block.layers, parameters)
        size, going = len(block.one), np.ones(len(block.prompts), dtype=bool)
        most = np.zeros(size)
        for cell in cells:
            most[: len(cell.wins)] += 0.25 * cell.slope**2 * cell.total
        state = block.precision, block.shift, np.zeros(size)
        return cls(prior, drift, block.one, block.other, cells, most, *state, np.arange(size), going)

    def newton(self, damping: float, close: float) -> None:
        """A step of Newton's method to the mode; the sites are the likelihoods' parabolas there."""
        row = self.one // self.drift.shape[1]
        slope, curvature = _derivatives(self.cells, self.gap)
        self.precision = np.where(self.going[row], curvature, self.precision)
        self.shift = np.where(self.going[row], slope + curvature * self.gap, self.shift)
        found = _gaussian(self.prior, self.drift, self.one, self.other, self.precision, self.shift)
        step = np.clip(damping * (found.gap - self.gap), -_LONGEST_STEP, _LONGEST_STEP)
        self.gap = self.gap + step
        self.going &= np.bincount(row, np.abs(step) > close, len(self.going)) > 0.0

    def sweep(self, damping: float, close: float) -> None:
        """A step of expectation propagation for all sites at once.

        A site is nowhere more curved than `most`, so by Brascamp and Lieb (1976) its approximation is neither.
        """
        row = self.one // self.drift.shape[1]
        found = _gaussian(self.prior, self.drift, self.one, self.other, self.precision, self.shift)
        mean, spread = _tilted(self.cells, self.precision, self.shift, found)
        cavity = 1.0 / found.variance - self.precision
        precision = np.clip(1.0 / spread - cavity, 0.0, self.most)
        shift = mean * (precision + cavity) - (found.gap / found.variance - self.shift)
        deviation = np.sqrt(found.variance)
        moved = np.maximum(np.abs(precision - self.precision) * found.variance, np.abs(shift - self.shift) * deviation)
        moves = damping * self.going[row]
        self.precision = self.precision + moves * (precision - self.precision)
        self.shift = self.shift + moves * (shift - self.shift)
        self.going &= np.bincount(row, moved > close, len(self.going)) > 0.0

    def write(self, block: Block) -> None:
        """Puts the sites back into their block."""
        block.precision[self.place], block.shift[self.place] = self.precision, self.shift

    def rest(self) -> _Work:
        """The prompts that still move."""
        n = self.drift.shape[1]
        row = self.one // n
        kept = np.flatnonzero(self.going[row])
        back = (np.arange(len(self.going)) - np.cumsum(self.going) + 1)[row[kept]] * n
        cells = []
        for cell in self.cells:
            head = kept[: np.searchsorted(kept, len(cell.wins))]
            cells.append(_Cells(*(part[head] for part in cell)))
        return _Work(
            self.prior[self.going],
            self.drift[self.going],
            self.one[kept] - back,
            self.other[kept] - back,
            cells,
            self.most[kept],
            self.precision[kept],
            self.shift[kept],
            self.gap[kept],
            self.place[kept],
            self.going[self.going],
        )


class _Cells(NamedTuple):
    """A layer under its instruments' parameters: `wins` of `total` were won with log-odds slope * gap + offset."""

    slope: Floats
    offset: Floats
    wins: Floats
    total: Floats


def cells_of(layers: Sequence[Layer], parameters: Parameters) -> list[_Cells]:
    """The layers under these parameters."""
    return [
        _Cells(
            parameters.discrimination[layer.instrument],
            parameters.position[layer.instrument] * layer.order,
            layer.wins,
            layer.total,
        )
        for layer in layers
    ]


def _derivatives(cells: Sequence[_Cells], gap: Floats) -> tuple[Floats, Floats]:
    """(slope, - curvature) of each site's log-likelihood at its difference."""
    slope, curvature = np.zeros_like(gap), np.zeros_like(gap)
    for cell in cells:
        size = len(cell.wins)
        p = 0.5 * (1.0 + np.tanh(0.5 * (cell.slope * gap[:size] + cell.offset)))
        slope[:size] += cell.slope * (cell.wins - cell.total * p)
        curvature[:size] += cell.slope**2 * cell.total * p * (1.0 - p)
    return slope, curvature


def _tilted(cells: Sequence[_Cells], precision: Floats, shift: Floats, found: Posterior) -> tuple[Floats, Floats]:
    """(mean, variance) of each pair's difference under its own likelihood times its cavity, by quadrature."""
    weight, _ = weighed(cells, precision, shift, found)
    mean = weight @ POINTS
    spread = weight @ POINTS**2 - mean**2
    deviation = np.sqrt(found.variance)
    return found.gap + deviation * mean, np.maximum(found.variance * spread, _LEAST)


def weighed(cells: Sequence[_Cells], precision: Floats, shift: Floats, found: Posterior) -> tuple[Floats, Floats]:
    """(weights of the quadrature's nodes about the posterior, log mass): the likelihood in place of its approximation."""
    weight = surplus(cells, precision, shift, found.nodes())
    top = weight.max(axis=1, initial=-np.inf, keepdims=True)
    weight -= top
    np.exp(weight, out=weight)
    weight *= _MASSES
    mass = weight.sum(axis=1, keepdims=True)
    weight /= mass
    return weight, (top + np.log(mass))[:, 0]


def surplus(cells: Sequence[_Cells], precision: Floats, shift: Floats, gap: Floats) -> Floats:
    """The log-likelihood of each site less that of its approximation, at its differences (sites, nodes)."""
    found = np.zeros_like(gap)
    for cell in cells:
        odds = gap[: len(cell.wins)] * cell.slope[:, None]
        odds += cell.offset[:, None]
        soft = np.abs(odds)
        np.negative(soft, out=soft)
        np.exp(soft, out=soft)
        np.log1p(soft, out=soft)
        soft += np.maximum(odds, 0.0)
        odds *= cell.wins[:, None]
        soft *= cell.total[:, None]
        odds -= soft
        found[: len(odds)] += odds
    found -= gap * (shift[:, None] - (0.5 * precision)[:, None] * gap)
    return found


def _prior(block: Block, parameters: Parameters) -> tuple[Floats, Floats]:
    """(precision, precision times mean) of the strengths before the games: their prior and the ratings."""
    rows, n = block.size
    diagonal = np.arange(n)
    precision, drift = np.zeros((rows, n, n)), np.zeros((rows, n))
    precision[:, diagonal, diagonal] = 1.0 / STRENGTH_SD**2
    for rated in block.rated:
        r = parameters.reliability[rated.instrument]
        z = levelled(rated, parameters.scale[rated.instrument])
        weight = rated.weight * (0.25 * r / (1.0 - r))
        precision -= weight[:, :, None] * shares(weight)[:, None, :]
        precision[:, diagonal, diagonal] += weight
        drift += weight * centred(z, weight) * (2.0 / math.sqrt(r))
    return precision, drift


def shares(weight: Floats) -> Floats:
    """Each candidate's of the weight of its prompt."""
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(weight / np.where(total > 0.0, total, 1.0))


def centred(values: Floats, weight: Floats) -> Floats:
    """The values less their weighted mean in the prompt."""
    return np.asarray(values - (shares(weight) * values).sum(axis=1, keepdims=True))


def levelled(rated: Rated, scale: float) -> Floats:
    """Ratings in units of the scale about their prompt's median; beyond 20 of them only their logarithm goes on growing."""
    known = rated.weight > 0.0
    z = np.clip(rated.ratings / scale, -1e300, 1e300)
    if z.size and np.abs(z).max() > _OUTLIER:
        ordered = np.sort(np.where(known, z, np.inf), axis=1)
        count, row = known.sum(axis=1), np.arange(len(z))
        middle = 0.5 * ordered[row, np.maximum(count - 1, 0) // 2] + 0.5 * ordered[row, np.minimum(count // 2, z.shape[1] - 1)]
        z -= np.where(count > 0, middle, 0.0)[:, None]
        far = np.abs(z)
        z = np.where(far > _OUTLIER, np.sign(z) * (_OUTLIER + np.log(np.maximum(far / _OUTLIER, 1.0))), z)
    return np.where(known, z, 0.0)


def _gaussian(prior: Floats, drift: Floats, one: Ints, other: Ints, precision: Floats, shift: Floats) -> Posterior:
    """The product of prior and approximate sites."""
    rows, n = drift.shape
    whole = prior
    if len(one):
        size = rows * n
        whole = prior + laplacian(one, other, precision, (rows, n))
        drift = drift + (sums(one, shift, size) - sums(other, shift, size)).reshape(rows, n)
    covariance = np.asarray(np.linalg.inv(whole), dtype=np.float64)
    mean = (covariance @ drift[:, :, None])[:, :, 0]
    flat, own = mean.ravel(), covariance.reshape(rows, n * n)[:, :: n + 1].ravel()
    variance = own[one] + own[other] - 2.0 * covariance.ravel()[one * n + other % max(n, 1)]
    return Posterior(mean, covariance, flat[one] - flat[other], np.maximum(variance, _LEAST))


def laplacian(one: Ints, other: Ints, weight: Floats, size: tuple[int, int]) -> Floats:
    """The matrix (prompts, n, n) of the sum of weight * (strength of one - strength of other)^2."""
    rows, n = size
    between = sums(one * n + other % n, weight, rows * n * n).reshape(rows, n, n)
    whole = -between - between.transpose(0, 2, 1)
    own = sums(one, weight, rows * n) + sums(other, weight, rows * n)
    whole.reshape(rows, n * n)[:, :: n + 1] += own.reshape(rows, n)
    return whole
