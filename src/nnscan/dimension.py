"""Intrinsic dimension of representations by the distances to two neighbours (TwoNN).

Facco, d'Errico, Rodriguez, Laio: Estimating the intrinsic dimension of datasets by a minimal neighborhood information,
Scientific Reports 7 (2017). With the ratio mu = r2 / r1 of a point's second and first neighbour distance,
`-log(1 - F(mu)) = d log mu`: d is the slope of a line through the origin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

from nnscan.errors import DataError

LEAST_POINTS = 20


def neighbour_ratios(features: ArrayLike) -> NDArray[np.float64]:
    """Return mu = r2 / r1 >= 1 of each point; points that coincide with another count once.

    Args:
        features: Points (N, ...), flattened to (N, D).

    Raises:
        DataError: Values are not finite, or fewer than 20 distinct points are left.
    """
    points = np.asarray(features, dtype=np.float64)
    points = points.reshape(len(points), -1)
    if not np.isfinite(points).all():
        raise DataError("the features hold values that are not finite")
    points = np.unique(points, axis=0)
    if len(points) < LEAST_POINTS:
        raise DataError(
            f"{len(points)} distinct points are too few for the intrinsic dimension; give at least {LEAST_POINTS}"
        )
    distances, _ = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(points)
    # distances of distinct points can still underflow to zero
    kept = distances[:, 1] > 0
    return np.asarray(distances[kept, 2] / distances[kept, 1])


def dimension_of_ratios(ratios: ArrayLike, share: float = 0.9) -> float:
    """Return the slope d of the line through the origin of the smallest `share` of the ratios.

    Args:
        ratios: mu >= 1 of each point (N,).
        share: Share of the points that is fitted; the largest ratios are the least reliable.
    """
    ratios = np.sort(np.asarray(ratios, dtype=np.float64))
    count = len(ratios)
    fitted = min(int(np.floor(share * count)), count - 1)  # the last point has F = 1
    x = np.log(ratios[:fitted])
    y = -np.log1p(-np.arange(1, fitted + 1) / count)
    if not x.any():
        raise DataError(
            "every point is as far from its second neighbour as from its first: the dimension is not defined"
        )
    return float(x @ y / (x @ x))


def two_nn(features: ArrayLike) -> float:
    """Return the intrinsic dimension of points, by TwoNN on the smallest 90 % of the ratios.

    Estimates above about 20 are lower bounds: neighbours of few points in many dimensions are too far away.

    Args:
        features: Points (N, ...), for example a layer's representation of N images; flattened to (N, D).

    Raises:
        DataError: Values are not finite, or there are fewer than 20 distinct points.

    Source: Facco et al. 2017, steps 1 to 5.
    """
    return dimension_of_ratios(neighbour_ratios(features))
