"""How the evidence of a block of prompts changes with the parameters of the instruments.

At a fixed point of expectation propagation the gradient of its evidence is, by Fisher's identity, the score of the
parameters expected under the approximate posterior. Games that are given as probabilities p, with x the log-odds, stand for
draws y; log evidence is their cumulant generating function, so that in the mean over the draws it is larger than at their
means, to the second order, by sum p (1 - p) Var(x) / 2 over the games. That is added, with its explicit and implicit slopes but
for those of the position. The information is that of the complete data less the posterior variance
of the score (Louis 1982), in which the score of a pair is taken as a parabola in its difference across pairs, and as it is
within one. It only sets the length of steps: where they end, the gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.propagation import Parameters, Posterior, cells_of, centred, laplacian, levelled, shares, weighed
from rlaif.ranking.reading import Block, Floats, Rated, sums

KINDS = 3
"""Position, log discrimination and log-odds of the reliability of each instrument: the parameters stand in this order."""


@dataclass(frozen=True, slots=True)
class Slope:
    """The gradient (3 instruments) of the log evidence in the parameters, and the information (the same, squared)."""

    gradient: Floats
    information: Floats

    def __add__(self, other: Slope) -> Slope:
        return Slope(self.gradient + other.gradient, self.information + other.information)


def slope(block: Block, parameters: Parameters, found: Posterior) -> Slope:
    """The block's, whose posterior was `found`."""
    count = len(parameters.position)
    gradient, information = np.zeros(KINDS * count), np.zeros((KINDS * count, KINDS * count))
    pulls: dict[int, Floats] = {}
    bends: dict[int, Floats] = {}
    scatter = _scatter(block, parameters, found)
    for part in (
        *_of_games(block, parameters, found, scatter),
        *(_of_ratings(r, parameters, found, scatter) for r in block.rated),
    ):
        at = [kind * count + part.instrument for kind in part.kinds]
        gradient[at] += part.gradient
        information[np.ix_(at, at)] += part.information
        pulls.update(zip(at, part.pulls, strict=True))
        bends.update(zip(at, part.bends, strict=True))
    for one, other in combinations_with_replacement(pulls, 2):
        shared = np.vdot(pulls[one], (found.covariance @ pulls[other][:, :, None])[:, :, 0])
        shared += 0.5 * np.vdot(bends[one], bends[other].transpose(0, 2, 1))
        information[one, other] -= shared
        if one != other:
            information[other, one] -= shared
    return Slope(gradient, information)


def _scatter(block: Block, parameters: Parameters, found: Posterior) -> Floats:
    """C D C of each prompt (prompts, n, n) for the covariance C and D, the precision that the draws' scatter would have."""
    weight = np.zeros(len(block.one))
    for layer in block.layers:
        weight[: len(layer.scatter)] += parameters.discrimination[layer.instrument] ** 2 * layer.scatter
    if not weight.any():
        return np.zeros_like(found.covariance)
    scatter = laplacian(block.one, block.other, weight, block.size)
    return np.asarray(found.covariance @ scatter @ found.covariance)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one instrument adds, of the parameters `kinds`.

    `pulls` are the score's slopes in the strengths (prompts, n), `bends` its curvatures times the covariance (prompts, n, n).
    """

    instrument: int
    kinds: tuple[int, ...]
    gradient: Floats
    information: Floats
    pulls: Sequence[Floats]
    bends: Sequence[Floats]


def _of_games(block: Block, parameters: Parameters, found: Posterior, scatter: Floats) -> Iterator[_Part]:
    """Position and discrimination of every instrument of pairs or lists."""
    if not len(block.one):
        return
    cells, nodes = cells_of(block.layers, parameters), found.nodes()
    weight, _ = weighed(cells, block.precision, block.shift, found)
    apart = nodes - (weight * nodes).sum(axis=1, keepdims=True)
    n, one, other = block.n, block.one, block.other
    flat, own = scatter.ravel(), scatter.reshape(-1, n * n)[:, :: n + 1].ravel()
    loss = 0.5 * (own[one] + own[other] - 2.0 * flat[one * n + other % n])
    for instrument in np.unique(np.concatenate([layer.instrument for layer in block.layers])).tolist():
        score, curvature, scattered = np.zeros((2, *nodes.shape)), np.zeros((2, 2)), 0.0
        for layer, cell in zip(block.layers, cells, strict=True):
            mine = _places(layer.instrument == instrument)
            tilt, order = nodes[mine] * cell.slope[mine, None], layer.order[mine, None]
            p = 0.5 * (1.0 + np.tanh(0.5 * (tilt + cell.offset[mine, None])))
            surprise = cell.wins[mine, None] - cell.total[mine, None] * p
            bend = p * (1.0 - p) * cell.total[mine, None] * weight[mine]
            score[0, mine] += order * surprise
            surprise *= tilt
            score[1, mine] += surprise
            curvature[0] += (bend * order**2).sum(), (bend * order * tilt).sum()
            curvature[1, 1] += (bend * tilt**2).sum() - (weight[mine] * surprise).sum()
            sharper = (bend * (2.0 + (1.0 - 2.0 * p) * tilt)).sum(axis=1)
            gained = layer.scatter[mine] * found.variance[mine] - sharper * loss[mine]
            scattered += float((cell.slope[mine] ** 2 * gained).sum())
        curvature[1, 0] = curvature[0, 1]
        mean, (slopes, curves), within = _parabolas(score, weight, apart)
        size = block.size[0] * n
        pulls = [(sums(one, c, size) - sums(other, c, size)).reshape(block.size) for c in slopes]
        bends = [laplacian(one, other, c, block.size) @ found.covariance for c in curves]
        gradient = mean.sum(axis=1) + np.array([0.0, scattered])
        yield _Part(instrument, (0, 1), gradient, curvature - within, pulls, bends)


def _places(yes: NDArray[np.bool_]) -> slice | NDArray[np.intp]:
    """Where it is true; all of the first ones as a slice, which copies nothing."""
    return slice(len(yes)) if yes.all() else np.flatnonzero(yes)


def _parabolas(score: Floats, weight: Floats, apart: Floats) -> tuple[Floats, Floats, Floats]:
    """(mean, (slopes, curvatures) of the parabolas nearest to the scores, what of the scores' covariance these leave)."""
    spread = (weight * apart**2).sum(axis=1)
    square = apart**2 - spread[:, None]
    square -= ((weight * square * apart).sum(axis=1) / spread)[:, None] * apart
    mean = (weight * score).sum(axis=2)
    score = score - mean[:, :, None]
    slopes = (weight * score * apart).sum(axis=2) / spread
    curves = (weight * score * square).sum(axis=2) / np.maximum((weight * square**2).sum(axis=1), 1e-300)
    score -= slopes[:, :, None] * apart + curves[:, :, None] * square
    within = (score * weight).reshape(len(score), -1) @ score.reshape(len(score), -1).T
    return mean, np.stack([slopes, 2.0 * curves]), np.asarray(within)


def _of_ratings(rated: Rated, parameters: Parameters, found: Posterior, scatter: Floats) -> _Part:
    """The reliability r: the log-likelihood is - (k - 1) / 2 log(1 - r) - |z - sqrt(r) s / 2|^2 / 2 / (1 - r), both centred."""
    r, weight = float(parameters.reliability[rated.instrument]), rated.weight
    z = centred(levelled(rated, float(parameters.scale[rated.instrument])), weight)
    half = 0.5 * centred(found.mean, weight)
    free = float(np.maximum((weight > 0.0).sum(axis=1) - 1, 0).sum())
    precision = weight[:, :, None] * (np.eye(weight.shape[1]) - shares(weight)[:, None, :])
    precision *= 0.25 * r / (1 - r)
    bend = -precision @ found.covariance
    spread = (1 - r) / r * float(np.vdot(precision, found.covariance))
    fit, square = float((weight * z * half).sum()), float((weight * half**2).sum()) + spread
    root = r**0.5
    misfit = float((weight * z**2).sum()) - 2 * root * fit + r * square
    gradient = 0.5 * free * r - 0.5 * misfit * r / (1 - r) + 0.5 * root * (fit - root * square)
    gradient -= 0.5 * float(np.vdot(precision, scatter))
    pull = 0.5 * weight * (root * r / (1 - r) * (z - root * half) + 0.5 * root * (z - 2 * root * half))
    information = 0.25 * r * (1 - r) * square + 0.5 * free * r**2
    return _Part(rated.instrument, (2,), np.array([gradient]), np.array([[information]]), [pull], [bend])
