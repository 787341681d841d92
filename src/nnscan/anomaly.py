"""Anomaly filters: those that respond to a handful of samples apart from all others.

The samples' points of one filter are clustered by a Gaussian mixture; a filter is an anomaly when a tiny cluster lies
far away and its samples drive the filter hard (Dou Hui, doctoral slides, ch. 6; arXiv 2412.10457). The sources state
the three signs, not their thresholds: those are arguments here, and `outlier_sweep` shows how much they matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from nnscan.components import LayerComponents, filter_components
from nnscan.errors import DataError

Rule = Literal["ch", "bic"]

SIGNS = ("unbalanced", "high_ch", "high_activation", "is_anomaly")
"""The three signs of an anomaly filter, and all three together."""

UNSTRUCTURED_CH = 0.467
"""CH per degree of freedom, CH / (N - 2), of one isotropic plane Gaussian cut in two.

Cutting N(0, I) through its centre along one axis leaves the centres at +-sqrt(2 / pi), so that the squared scatter
per point is 2 / pi between and 2 - 2 / pi within the halves.
"""

_PARAMETERS_PER_COMPONENT = 6  # of a plane Gaussian in a mixture: two means, three covariances, one weight


@dataclass(frozen=True)
class Mixture:
    """How a filter's samples fall into clusters.

    Attributes:
        labels: (N,), the cluster of each sample, from 0.
        k: Number of clusters that hold a sample.
        ch: Calinski-Harabasz index, squared norms; NaN for one cluster.
        converged: Whether the chosen mixture's likelihood settled.
    """

    labels: NDArray[np.int64]
    k: int
    ch: float
    converged: bool


def calinski_harabasz(points: ArrayLike, labels: ArrayLike, squared: bool = True) -> float:
    """Return the Calinski-Harabasz index CH = (SSB / (K - 1)) / (SSW / (N - K)) of a clustering.

    SSB sums the distances of the cluster centres from the mean, weighted by cluster size; SSW those of the points
    from their centre (Dou Hui, doctoral slides, ch. 6).

    Args:
        points: (N, D).
        labels: (N,), the cluster of each point.
        squared: Take squared distances, as the index was defined; False takes the plain norms that the slides print.

    Returns:
        A value from 0 upwards; infinite where every cluster is a single place; NaN where the index is undefined, for
        one cluster or as many clusters as points.
    """
    values, clusters = np.asarray(points, dtype=np.float64), np.asarray(labels)
    power = 2 if squared else 1
    names, members = np.unique(clusters, return_inverse=True)
    count, total = len(names), len(values)
    if count < 2 or count >= total:
        return float("nan")
    centres = np.stack([values[members == index].mean(axis=0) for index in range(count)])
    from_mean = np.linalg.norm(centres - values.mean(axis=0), axis=1) ** power
    between = float(np.bincount(members) @ from_mean)
    within = float((np.linalg.norm(values - centres[members], axis=1) ** power).sum())
    if within == 0:
        return float("inf") if between > 0 else float("nan")
    return (between / (count - 1)) / (within / (total - count))


def mixture(
    points: ArrayLike, seed: int = 0, rule: Rule = "ch", max_components: int = 5, initialisations: int = 3
) -> Mixture:
    """Cluster points by a Gaussian mixture with full covariances and a number of components of its own choice.

    Neither source states how the number is chosen. Both rules here are ours: "ch" keeps one component where
    BIC(1) <= BIC(2), since CH is undefined for one, and takes the number of largest CH otherwise; "bic" takes the
    number of smallest BIC. The covariances are regularised by 1e-6 of the points' total variance, so that the result
    does not depend on the points' scale.

    Args:
        points: (N, 2) of one filter.
        seed: Seed of the initialisations.
        rule: How the number of components is chosen.
        max_components: The largest number tried, 2 or more.
        initialisations: How often each mixture is started, each time from other k-means++ seeds; the likeliest counts.

    Returns:
        The clusters; one where all points coincide.

    Raises:
        DataError: A point is not finite, max_components is below 2, or there are fewer points than six per component
            (the parameters of a component).
    """
    if max_components < 2:
        raise DataError(f"max_components must be 2 or more for a choice to exist, got {max_components}")
    values = np.asarray(points, dtype=np.float64)
    needed = _PARAMETERS_PER_COMPONENT * max_components
    if len(values) < needed:
        raise DataError(
            f"a Gaussian mixture of up to {max_components} components needs at least {needed} samples, "
            f"got {len(values)}; scan more samples or lower max_components"
        )
    if not np.isfinite(values).all():
        raise DataError("a Gaussian mixture needs finite points; these hold NaN or infinity")
    centred = values - values.mean(axis=0)
    spread = np.sqrt((centred**2).sum() / len(values))
    one_cluster = np.zeros(len(values), dtype=np.int64)
    if spread == 0 or (values == values[0]).all():
        return Mixture(one_cluster, 1, float("nan"), converged=True)
    scaled = centred / spread  # of total variance 1

    def fit(components: int) -> GaussianMixture:
        return _fit(scaled, components, seed, initialisations)

    single = fit(1)
    if rule == "bic":
        fits = [single, *(fit(components) for components in range(2, max_components + 1))]
        return _clusters(scaled, min(fits, key=lambda model: model.bic(scaled)))
    pair = fit(2)
    if single.bic(scaled) <= pair.bic(scaled):
        return _clusters(scaled, single)
    fits = [pair, *(fit(components) for components in range(3, max_components + 1))]
    found = [_clusters(scaled, model) for model in fits]
    split = [clusters for clusters in found if clusters.k > 1]
    return max(split, key=lambda clusters: clusters.ch) if split else found[0]


def mixtures(
    points: ArrayLike, seed: int = 0, rule: Rule = "ch", max_components: int = 5, initialisations: int = 3
) -> list[Mixture]:
    """Cluster the samples of every filter; see `mixture`. A filter's result does not depend on the other filters.

    Args:
        points: (K, N, 2), as `filter_components` returns them.
        seed: Seed of the initialisations, the same for each filter.
        rule: How the number of components is chosen.
        max_components: The largest number tried.
        initialisations: How often each mixture is started.

    Returns:
        One mixture per filter.

    Raises:
        DataError: See `mixture`.
    """
    return [mixture(values, seed, rule, max_components, initialisations) for values in np.asarray(points)]


def anomaly_signs(
    clustered: Sequence[Mixture],
    activations: ArrayLike,
    outlier_share: float = 0.01,
    ch_factor: float = 2.0,
    activation_sd: float = 3.0,
) -> pd.DataFrame:
    """Judge each filter's clustering by the three signs of an anomaly.

    - unbalanced: some cluster has at most max(1, outlier_share * N) samples; its samples are the outliers.
    - high_ch: CH > ch_factor * 0.467 * (N - 2), the second factor being the value of an unstructured cloud.
    - high_activation: the outliers' mean activation exceeds the filter's mean by more than activation_sd standard
      deviations (over all samples, population form).

    Args:
        clustered: The clusters of every filter.
        activations: (N, K) activation of each sample, or (N, K, h, w) feature maps, whose mean over positions counts.
        outlier_share: Largest share of the samples that an outlier cluster may hold, in (0, 0.5).
        ch_factor: How many times the CH of an unstructured cloud is high.
        activation_sd: How many standard deviations above the mean are a high activation.

    Returns:
        One row per filter: filter, k, ch (NaN for one cluster), outlier_count, unbalanced, high_ch, high_activation,
        is_anomaly (all three), dead (no activation on any sample), converged, outliers (list of sample indices).

    Raises:
        DataError: The activations do not belong to these filters and samples, or the share is out of range.
    """
    if not 0 < outlier_share < 0.5:
        raise DataError(
            f"outlier_share is the share of the samples in an outlier cluster, in (0, 0.5); got {outlier_share}"
        )
    values = np.asarray(activations)
    strength = values.reshape(*values.shape[:2], -1).mean(axis=2, dtype=np.float64)
    expected = (len(clustered[0].labels) if clustered else 0, len(clustered))
    if strength.shape != expected:
        raise DataError(f"activations must be (samples, filters) = {expected} like the points, got {strength.shape}")
    rows = [
        {"filter": index, **_judge(clusters, strength[:, index], outlier_share, ch_factor, activation_sd)}
        for index, clusters in enumerate(clustered)
    ]
    return pd.DataFrame(rows)


def outlier_sweep(
    clustered: Sequence[Mixture],
    activations: ArrayLike,
    shares: Sequence[float] = (0.005, 0.01, 0.02, 0.05),
    ch_factor: float = 2.0,
    activation_sd: float = 3.0,
) -> pd.DataFrame:
    """Count the filters that show each sign, alone and all together, for several sizes of an outlier cluster.

    The mixtures are not fitted again: a share only decides which clusters count as outliers.

    Args:
        clustered: The clusters of every filter.
        activations: (N, K) or (N, K, h, w); see `anomaly_signs`.
        shares: The outlier shares to try.
        ch_factor: See `anomaly_signs`.
        activation_sd: See `anomaly_signs`.

    Returns:
        Columns share, sign (unbalanced, high_ch, high_activation, is_anomaly for all three), filters (how many).

    Raises:
        DataError: See `anomaly_signs`.
    """
    rows = []
    for share in shares:
        signs = anomaly_signs(clustered, activations, share, ch_factor, activation_sd)
        rows += [{"share": share, "sign": sign, "filters": int(signs[sign].sum())} for sign in SIGNS]
    return pd.DataFrame(rows)


def anomaly_points(
    points: ArrayLike,
    activations: ArrayLike,
    seed: int = 0,
    rule: Rule = "ch",
    outlier_share: float = 0.01,
    ch_factor: float = 2.0,
    activation_sd: float = 3.0,
) -> pd.DataFrame:
    """Find the anomaly filters among filters whose samples are points already.

    Args:
        points: (K, N, 2), as `filter_components` or `filter_image_components` return them.
        activations: (N, K) or (N, K, h, w); see `anomaly_signs`.
        seed: Seed of the mixtures.
        rule: How the number of clusters is chosen; see `mixture`.
        outlier_share: See `anomaly_signs`.
        ch_factor: See `anomaly_signs`.
        activation_sd: See `anomaly_signs`.

    Returns:
        The table of `anomaly_signs`.

    Raises:
        DataError: Too few samples, values that are not finite, or shapes that do not belong together.
    """
    return anomaly_signs(mixtures(points, seed, rule), activations, outlier_share, ch_factor, activation_sd)


def anomaly_filters(
    fimgs: ArrayLike,
    activations: ArrayLike,
    seed: int = 0,
    rule: Rule = "ch",
    outlier_share: float = 0.01,
    ch_factor: float = 2.0,
    activation_sd: float = 3.0,
) -> pd.DataFrame:
    """Find the anomaly filters of a layer (Dou Hui, doctoral slides, ch. 6; arXiv 2412.10457).

    Each filter's images become points on their first two principal components, the points are clustered by a
    Gaussian mixture, and the clustering is judged by its sizes, its CH index and the outliers' activation.

    Args:
        fimgs: (N, K, C, H, W) filter images, summed over their channels, or (N, K, h, w) feature maps. Arrays or
            tensors in main memory.
        activations: (N, K) activation of each sample, or (N, K, h, w) feature maps, whose mean over positions counts.
        seed: Seed of the mixtures.
        rule: How the number of clusters is chosen; see `mixture`.
        outlier_share: See `anomaly_signs`.
        ch_factor: See `anomaly_signs`.
        activation_sd: See `anomaly_signs`.

    Returns:
        The table of `anomaly_signs`, one row per filter; `outliers` holds the outlier samples' indices.

    Raises:
        DataError: Too few samples, values that are not finite, or shapes that do not belong together.
    """
    points, _ = filter_components(fimgs)
    return anomaly_points(points, activations, seed, rule, outlier_share, ch_factor, activation_sd)


def _fit(scaled: NDArray[np.float64], components: int, seed: int, initialisations: int) -> GaussianMixture:
    """Fit one mixture to points of total variance 1."""
    model = GaussianMixture(
        components,
        covariance_type="full",
        reg_covar=1e-6,
        n_init=initialisations if components > 1 else 1,  # one component has nothing to initialise
        init_params="k-means++",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # recorded as `converged` instead
        model.fit(scaled)
    return model


def _clusters(scaled: NDArray[np.float64], model: GaussianMixture) -> Mixture:
    """Assign each point to its likeliest component; components that receive none are no clusters."""
    occupied, labels = np.unique(model.predict(scaled), return_inverse=True)
    return Mixture(labels, len(occupied), calinski_harabasz(scaled, labels), bool(model.converged_))


def _judge(
    clusters: Mixture, strength: NDArray[np.float64], share: float, ch_factor: float, activation_sd: float
) -> dict[str, Any]:
    """Return one filter's signs from its clusters and its activation (N,) on every sample."""
    samples = len(strength)
    sizes = np.bincount(clusters.labels)
    outliers = np.flatnonzero((sizes <= max(1.0, share * samples))[clusters.labels])
    unbalanced = len(outliers) > 0
    high_ch = bool(clusters.ch > ch_factor * UNSTRUCTURED_CH * (samples - 2))
    high_activation = unbalanced and bool(strength[outliers].mean() > strength.mean() + activation_sd * strength.std())
    return {
        "k": clusters.k,
        "ch": clusters.ch,
        "outlier_count": len(outliers),
        "unbalanced": unbalanced,
        "high_ch": high_ch,
        "high_activation": high_activation,
        "is_anomaly": unbalanced and high_ch and high_activation,
        "dead": not strength.any(),
        "converged": clusters.converged,
        "outliers": outliers.tolist(),
    }


def network_anomalies(
    samples: NDArray[np.int64],
    components: Mapping[str, LayerComponents],
    seed: int = 0,
    k_rule: Rule = "ch",
    outlier_share: float = 0.01,
    ch_factor: float = 2.0,
    activation_sd: float = 3.0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the anomaly filters of all layers.

    Args:
        samples: Identifiers of the samples (N,).
        components: Points and activations by layer, in order of depth (`components.read_components`).
        seed: Seed of the mixtures.
        k_rule: How the number of clusters is chosen; see `mixture`.
        outlier_share: See `anomaly_signs`.
        ch_factor: See `anomaly_signs`.
        activation_sd: See `anomaly_signs`.

    Returns:
        The table of `anomaly_signs` with layer and depth in front and without the lists of outliers; and the outlier
        samples of every filter that has any: layer, filter, sample (identifier), is_anomaly (of the filter).
    """
    tables, outliers = [], []
    for depth, (layer, found) in enumerate(components.items()):
        table = anomaly_points(found.points, found.activation, seed, k_rule, outlier_share, ch_factor, activation_sd)
        table.insert(0, "layer", layer)
        table.insert(1, "depth", depth)
        for row in table.to_dict("records"):
            verdict = bool(row["is_anomaly"])
            outliers += [(layer, row["filter"], int(samples[position]), verdict) for position in row["outliers"]]
        tables.append(table.drop(columns="outliers"))
    return (
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(outliers, columns=["layer", "filter", "sample", "is_anomaly"]).astype(
            {"filter": int, "sample": int, "is_anomaly": bool}
        ),
    )
