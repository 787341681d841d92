"""Correlation over runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from nnscan.errors import DataError

_EXACT_ORDERS = 50_000  # 8 runs have 40,320 orders
_LEAST_RUNS = 4


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation over runs.

    Attributes:
        r: The coefficient, -1 to 1.
        p: Two-sided permutation p-value; exact up to 8 runs, else from 50,000 random orders.
        low: Lower end of the 95 % interval by Fisher's transformation.
        high: Its upper end.
        runs: Number of runs.
    """

    r: float
    p: float
    low: float
    high: float
    runs: int


def error_correlation(dimensions: ArrayLike, errors: ArrayLike, seed: int = 0) -> Correlation:
    """Return the correlation of the last hidden layer's dimension with the test error over runs.

    Args:
        dimensions: Dimension of each run, or mean of each model (n,), n at least 4.
        errors: Test error of each (n,).
        seed: Seed of the random orders.

    Raises:
        DataError: There are fewer than 4, or not as many on both sides, values are not finite, or one of the two
            is constant.

    Source: Ansuini et al. 2019, figure 4.
    """
    x, y = np.asarray(dimensions, np.float64), np.asarray(errors, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise DataError(f"a correlation needs as many values on both sides; given: {x.shape} and {y.shape}")
    if len(x) < _LEAST_RUNS:
        raise DataError(f"a correlation needs {_LEAST_RUNS} pairs of values, there are {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not (np.ptp(x) and np.ptp(y)):
        raise DataError("a correlation needs finite dimensions and errors that differ between the runs")
    order = stats.PermutationMethod(n_resamples=_EXACT_ORDERS, rng=np.random.default_rng(seed))
    found = stats.pearsonr(x, y, method=order)
    interval = stats.pearsonr(x, y).confidence_interval(0.95)
    return Correlation(float(found.statistic), float(found.pvalue), float(interval.low), float(interval.high), len(x))
