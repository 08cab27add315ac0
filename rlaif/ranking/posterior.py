"""The posterior of the strengths of a prompt's candidates, given the instruments that spoke of them.

Model (Bradley and Terry 1952; the order effect as in Davidson and Beaver 1977; judges of unequal worth as in Crowd-BT, Chen et
al. 2013). Strengths s_i ~ N(0, 2^2) are log-odds: a difference has a standard deviation of 2.83, so that with nothing known
the better one of two wins 83 % of an ideal judge's comparisons in the mean. Of an instrument m (`games`),

    a game       i, shown first, beats j with probability sigmoid(a_m (s_i - s_j) + b_m); it counts as often as it weighs
    ratings      z = ratings / k_m less a level of the prompt's own = sqrt(r_m) s / 2 + sqrt(1 - r_m) N(0, 1)

with discrimination a, position b, reliability r and scale k. The posterior is approximated by expectation propagation (Minka
2001; its accuracy for such likelihoods: Kuss and Rasmussen 2005) with a site for each pair that met: all its games at once, so
that of two candidates the result is exact up to quadrature. Prior and ratings are Gaussian and taken as they are. The
probability that i is better than j is that of s_i > s_j under the pair's own likelihood times its Gaussian cavity, and of a
pair that never met under the Gaussian.

Everything works on a block of prompts at once, on pairs that met alone, and each prompt comes out as it would by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.ranking.propagation import Parameters, Posterior, cells_of, settle, surplus
from rlaif.ranking.reading import Block, Floats, Rated, Reader, scale_of
from rlaif.types import Verdict

_PRIOR_RATINGS = 4
_CLOSE_ENOUGH = 1e-4
_NODES, _MASSES = np.polynomial.legendre.leggauss(16)
_NODES, _MASSES = 0.5 * (_NODES + 1.0), 0.5 * _MASSES
_REACH = 7.0


def of_one(
    ids: Sequence[str], verdicts: Sequence[Verdict], rating_scale: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(means, covariance) of the strengths of `ids` by the verdicts on one prompt alone, every instrument as good as the prior.

    The ratings' scale k is their own standard deviation, shrunk to `rating_scale` as by four more ratings: 1.8 suits ratings of
    1 to 9. With None it is that of the pooled fit, from this prompt alone.
    Good to about 1e-4.
    """
    reader = Reader({}, set())
    reader.add(ids, verdicts)
    (block,) = reader.blocks()
    scale = np.ones(len(reader.instruments))
    for rated in block.rated:
        scale[rated.instrument] = _own_scale(rated, rating_scale)
    found = settle(block, Parameters.start(scale), close=_CLOSE_ENOUGH)
    return found.mean[0], found.covariance[0]


def _own_scale(rated: Rated, prior: float | None) -> float:
    """The scale of one prompt's ratings: see `of_one`."""
    ratings = rated.ratings[rated.weight > 0.0]
    if prior is None:
        gaps = np.abs(ratings[:, None] - ratings)
        return scale_of(gaps[gaps > 0.0])
    apart = ratings - ratings.mean() if len(ratings) else ratings
    return math.sqrt((_PRIOR_RATINGS * prior**2 + float(apart @ apart)) / (_PRIOR_RATINGS + max(len(ratings), 1) - 1))


def win_probabilities(block: Block, parameters: Parameters, found: Posterior) -> Floats:
    """P(i better than j) of the block's prompts (prompts, n, n): 1/2 on the diagonal, mirrored exactly."""
    rows, n = block.size
    wins = np.full((rows, n, n), 0.5)
    i, j = np.triu_indices(n, 1)
    if len(block.one) < rows * len(i):
        from scipy.special import ndtr  # it takes a third of a second to load

        own = found.covariance[:, np.arange(n), np.arange(n)]
        variance = own[:, i] + own[:, j] - 2.0 * found.covariance[:, i, j]
        wins[:, i, j] = ndtr((found.mean[:, i] - found.mean[:, j]) / np.sqrt(variance))
    if len(block.one):
        wins[block.one // n, block.one % n, block.other % n] = _met(block, parameters, found)
    wins[:, j, i] = 1.0 - wins[:, i, j]
    return wins


def _met(block: Block, parameters: Parameters, found: Posterior) -> Floats:
    """P(one better than other) of each site, by quadrature on either side of equality: of equals exactly 1/2."""
    cells, deviation = cells_of(block.layers, parameters), np.sqrt(found.variance)
    apart = (np.abs(found.gap) + _REACH * deviation)[:, None] * _NODES
    heights = []
    for gaps in (apart, -apart):
        height = surplus(cells, block.precision, block.shift, gaps)
        height -= 0.5 * ((gaps - found.gap[:, None]) / deviation[:, None]) ** 2
        heights.append(height)
    top = np.maximum(heights[0].max(axis=1, initial=-np.inf), heights[1].max(axis=1, initial=-np.inf))[:, None]
    above, below = (np.exp(height - top) @ _MASSES for height in heights)
    return np.asarray(above / (above + below))
