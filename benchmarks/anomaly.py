"""The search for anomaly filters in a VGG-16: principal components and mixtures of its 4,224 filters, 1,000 samples.

Both sides compute the same filters and are extrapolated to all. scikit-learn has one thread, since more slow down its
small products. Target: on two cores, components and mixtures together in a minute.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from harness import Ratio, paired, run
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from nnscan.anomaly import mixtures
from nnscan.components import filter_components

FILTERS, SAMPLES, SIDE = 4224, 1000, 32
MINUTE = 60.0


def clouds(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return points (count, SAMPLES, 2) like those of trained filters: clouds, clusters, heavy tails, some outliers."""
    found = []
    for index in range(count):
        points = [
            rng.standard_normal((SAMPLES, 2)) * [3, 1],
            rng.normal(0, 4, (3, 2))[rng.integers(3, size=SAMPLES)] + rng.standard_normal((SAMPLES, 2)),
            rng.standard_t(3, (SAMPLES, 2)),
            np.exp(rng.standard_normal((SAMPLES, 2))) * [1, -1],
        ][index % 4]
        if index % 3 == 0:
            points[rng.choice(SAMPLES, 5, replace=False)] += [25, 0]
        found.append(points)
    return np.stack(found)


def images(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return images (SAMPLES, count, SIDE, SIDE) whose eigenvalues fall like those of learning images, as i ** -0.7."""
    width = SIDE * SIDE
    found = np.empty((SAMPLES, count, width), dtype=np.float32)
    for index in range(count):
        basis = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.arange(1, width + 1) ** -0.35
        strength = rng.lognormal(sigma=0.5, size=(SAMPLES, 1))
        found[:, index] = strength * rng.standard_normal((SAMPLES, width)) @ basis.T
    return found.reshape(SAMPLES, count, SIDE, SIDE)


def mixtures_of_scikit_learn(points: NDArray[np.float64]) -> None:
    """Cluster each filter's points as `mixtures` does, one mixture after the other."""
    with threadpool_limits(1):
        for cloud in points:
            cluster_by_scikit_learn(cloud)


def cluster_by_scikit_learn(cloud: NDArray[np.float64]) -> None:
    """Choose among the mixtures of one filter."""
    scaled = (cloud - cloud.mean(axis=0)) / np.sqrt(cloud.var(axis=0).sum())
    fit = partial(GaussianMixture, n_init=3, init_params="k-means++", random_state=0)
    single, pair = (fit(components).fit(scaled) for components in (1, 2))
    if single.bic(scaled) > pair.bic(scaled):
        for model in (pair, *(fit(components).fit(scaled) for components in (3, 4, 5))):
            calinski_harabasz_score(scaled, model.predict(scaled))


def components_of_scikit_learn(values: NDArray[np.float32]) -> None:
    """Project each filter's images by scikit-learn's fastest solver that is exact at this size."""
    with threadpool_limits(1):
        for index in range(values.shape[1]):
            rows = values[:, index].reshape(SAMPLES, -1).astype(np.float64)
            PCA(2, svd_solver="arpack", random_state=0).fit_transform(rows)


def measure(repeats: int) -> list[Ratio]:
    rng = np.random.default_rng(0)
    many, few = clouds(128, rng), 16
    pictures, some = images(16, rng), 4
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        times = paired(
            {
                "mixtures": lambda: mixtures(many),
                "scikit mixtures": lambda: mixtures_of_scikit_learn(many[:few]),
                "components": lambda: filter_components(pictures),
                "scikit components": lambda: components_of_scikit_learn(pictures[:, :some]),
            },
            repeats,
        )
    ours, others = times["mixtures"] * FILTERS / len(many), times["scikit mixtures"] * FILTERS / few
    projected = times["components"] * FILTERS / pictures.shape[1]
    other_projected = times["scikit components"] * FILTERS / some
    size = f"{FILTERS:,} filters x {SAMPLES:,} samples"
    return [
        Ratio(
            f"SAF mixtures, K = 1 to 5, {size}",
            "scikit-learn GaussianMixture, one thread",
            ours,
            others,
            note=f"extrapolated from {len(many)} and {few} filters",
        ),
        Ratio(
            f"SAF components, {size} x {SIDE * SIDE:,} pixels",
            "scikit-learn PCA (arpack), one thread",
            projected,
            other_projected,
            note=f"extrapolated from {pictures.shape[1]} and {some} filters",
        ),
        Ratio(f"SAF, mixtures and components, {size}", "a minute", ours + projected, MINUTE, 1),
    ]


if __name__ == "__main__":
    run(measure)
