"""Anomaly filters: those that respond to a handful of samples apart from all others.

The samples' points of one filter are clustered by a Gaussian mixture; a filter is an anomaly when a tiny cluster lies
far away and its samples drive the filter hard (Dou Hui, doctoral slides, ch. 6; arXiv 2412.10457). The sources state
the three signs, not their thresholds: those are arguments here, and `outlier_sweep` shows how much they matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from nnscan.components import LayerComponents, filter_components, in_threads
from nnscan.errors import DataError

Rule = Literal["ch", "bic"]

SIGNS = ("unbalanced", "high_ch", "high_activation", "is_anomaly")
"""The three signs of an anomaly filter, and all three together."""

SHARES = (0.005, 0.01, 0.02, 0.05)
"""Sizes of an outlier cluster, as shares of the samples, for which anomaly filters are counted beside the chosen."""

UNSTRUCTURED_CH = 0.467
"""CH per degree of freedom, CH / (N - 2), of one isotropic plane Gaussian cut in two.

Cutting N(0, I) through its centre along one axis leaves the centres at +-sqrt(2 / pi), so that the squared scatter
per point is 2 / pi between and 2 - 2 / pi within the halves.
"""

_PARAMETERS_PER_COMPONENT = 6  # of a plane Gaussian in a mixture: two means, three covariances, one weight

# scikit-learn's defaults
_REGULARISATION = 1e-6  # added to the variances
_TOLERANCE = 1e-3  # of the mean log-likelihood, below whose change an expectation-maximisation has converged
_MAX_ITERATIONS = 100
_NO_WEIGHT = 10 * float(np.finfo(np.float64).eps)  # added to a component's weight, so that it may be empty

_POINTS_TOGETHER = 32_000  # whose mixtures one thread fits at a time: their arrays stay in a cache


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
    names, members = np.unique(np.asarray(labels), return_inverse=True)
    values = np.asarray(points, dtype=np.float64)
    return float(_calinski_harabasz(values[None], members[None], len(names), squared)[0])


def _calinski_harabasz(
    points: NDArray[np.float64], labels: NDArray[np.int64], clusters: int, squared: bool = True
) -> NDArray[np.float64]:
    """Return `calinski_harabasz` (B,) of several sets of points (B, N, D) with labels (B, N) below `clusters`."""
    power, samples = 2 if squared else 1, points.shape[1]
    members = (labels[:, None] == np.arange(clusters)[:, None]).astype(np.float64)  # (B, clusters, N)
    sizes = members.sum(axis=2)
    count = (sizes > 0).sum(axis=1)
    centres = members @ points / np.maximum(sizes, 1)[..., None]
    from_mean = np.linalg.norm(centres - points.mean(axis=1, keepdims=True), axis=2) ** power
    from_centre = np.linalg.norm(points - np.take_along_axis(centres, labels[..., None], axis=1), axis=2) ** power
    between, within = (sizes * from_mean).sum(axis=1), from_centre.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (between / (count - 1)) / (within / (samples - count))
    return np.where((count < 2) | (count >= samples), np.nan, ratio)


def mixture(
    points: ArrayLike, seed: int = 0, rule: Rule = "ch", max_components: int = 5, initialisations: int = 3
) -> Mixture:
    """Cluster points by a Gaussian mixture with full covariances and a number of components of its own choice.

    Neither source states how the number is chosen. Both rules here are ours: "ch" keeps one component where
    BIC(1) <= BIC(2), since CH is undefined for one, and takes the number of largest CH otherwise; "bic" takes the
    number of smallest BIC. The covariances are regularised by 1e-6 of the points' total variance, so that the result
    does not depend on the points' scale.

    The mixtures are those of scikit-learn's GaussianMixture with init_params="k-means++": from the same random
    numbers the same seeds, from them the same steps to the same convergence, up to rounding. Rounding also decides
    between seeds of equal merit (two outliers, each as near to the other), so that one start in a hundred differs.

    Args:
        points: (N, 2) of one filter.
        seed: Seed of the initialisations.
        rule: How the number of components is chosen.
        max_components: The largest number tried, 2 or more.
        initialisations: How often each mixture is started, each time from other k-means++ seeds; the likeliest counts.

    Returns:
        The clusters; one where all points coincide.

    Raises:
        DataError: The points do not lie in a plane, one is not finite, max_components is below 2, or there are fewer
            points than six per component (the parameters of a component).
    """
    return mixtures(np.asarray(points)[None], seed, rule, max_components, initialisations)[0]


def mixtures(
    points: ArrayLike, seed: int = 0, rule: Rule = "ch", max_components: int = 5, initialisations: int = 3
) -> list[Mixture]:
    """Cluster the samples of every filter; see `mixture`. A filter's result does not depend on the other filters.

    The mixtures of many filters are fitted together, in as many threads as numpy's linear algebra may use.

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
    if max_components < 2:
        raise DataError(f"max_components must be 2 or more for a choice to exist, got {max_components}")
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 3 or values.shape[2] != 2:
        raise DataError(f"mixtures need points of shape (filters, samples, 2), got {values.shape}")
    filters, samples, _ = values.shape
    needed = _PARAMETERS_PER_COMPONENT * max_components
    if samples < needed:
        raise DataError(
            f"a Gaussian mixture of up to {max_components} components needs at least {needed} samples, "
            f"got {samples}; scan more samples or lower max_components"
        )
    if not np.isfinite(values).all():
        raise DataError("a Gaussian mixture needs finite points; these hold NaN or infinity")
    groups = np.array_split(values, max(1, -(-filters * samples // _POINTS_TOGETHER)))
    found = in_threads(lambda group: _choose(group, seed, rule, max_components, initialisations), groups)
    return [chosen for group in found for chosen in group]


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
    shares: Sequence[float] = SHARES,
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


class _Candidate(NamedTuple):
    clusters: Mixture
    bic: float


class _Gaussians(NamedTuple):
    """B mixtures of K plane Gaussians: weights (B, K), means (B, K, 2), covariances xx, xy, yy (B, K, 3)."""

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    covariances: NDArray[np.float64]


class _Fits(NamedTuple):
    """Fitted mixtures, the mean log-likelihood that decided on their convergence, and whether they did (B,)."""

    gaussians: _Gaussians
    bound: NDArray[np.float64]
    converged: NDArray[np.bool_]


def _choose(
    points: NDArray[np.float64], seed: int, rule: Rule, max_components: int, initialisations: int
) -> list[Mixture]:
    """Return the mixture of each of some filters, (F, N, 2)."""
    centred = points - points.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=(1, 2)) / points.shape[1])
    coincide = (spread == 0) | (points == points[:, :1]).all(axis=(1, 2))
    scaled = centred[~coincide] / spread[~coincide, None, None]  # of total variance 1
    tried: list[list[_Candidate]] = [[] for _ in scaled]
    for components in range(1, max_components + 1):
        undecided = [
            index for index, fits in enumerate(tried) if rule == "bic" or len(fits) < 2 or fits[0].bic > fits[1].bic
        ]
        if undecided:
            candidates = _candidates(scaled[undecided], components, seed, initialisations)
            for index, candidate in zip(undecided, candidates, strict=True):
                tried[index].append(candidate)
    chosen = (_best(fits, rule) for fits in tried)
    one_cluster = np.zeros(points.shape[1], dtype=np.int64)
    return [Mixture(one_cluster, 1, float("nan"), converged=True) if alike else next(chosen) for alike in coincide]


def _best(fits: Sequence[_Candidate], rule: Rule) -> Mixture:
    """Choose among the mixtures of one filter with 1, 2, ... components."""
    if rule == "bic":
        return min(fits, key=lambda fit: fit.bic).clusters
    single, pair, *_ = fits
    if single.bic <= pair.bic:
        return single.clusters
    split = [fit.clusters for fit in fits if fit.clusters.k > 1]
    return max(split, key=lambda clusters: clusters.ch) if split else pair.clusters


def _candidates(points: NDArray[np.float64], components: int, seed: int, initialisations: int) -> list[_Candidate]:
    """Fit a mixture to each filter's points of total variance 1, (F, N, 2), and assign each point to a component."""
    samples = points.shape[1]
    fits = _fit(points, components, seed, initialisations)
    joint = _log_densities(fits.gaussians, points)
    bic = (6 * components - 1) * np.log(samples) - 2 * logsumexp(joint, axis=1).sum(axis=1)
    likeliest = joint.argmax(axis=1)
    occupied = (likeliest[:, None] == np.arange(components)[:, None]).any(axis=2)  # the others are no clusters
    labels = np.take_along_axis(occupied.cumsum(axis=1) - 1, likeliest, axis=1)
    ch = _calinski_harabasz(points, labels, components)
    return [
        _Candidate(Mixture(labels[index], int(occupied[index].sum()), float(ch[index]), bool(converged)), bic[index])
        for index, converged in enumerate(fits.converged)
    ]


def _fit(points: NDArray[np.float64], components: int, seed: int, initialisations: int) -> _Fits:
    """Fit a mixture to each filter's points (F, N, 2), the likeliest of some initialisations.

    Each row of the arrays is one initialisation of one filter and is computed independently of the others; those that
    go on are kept in front.
    """
    starts = initialisations if components > 1 else 1  # one component has nothing to initialise
    seeds = _seeds(points, components, seed, starts)
    means = np.take_along_axis(points[:, None], seeds[..., None], axis=2).reshape(-1, components, 2)
    rows, samples = len(means), points.shape[1]
    weights = np.full((rows, components), 1 / samples)
    covariances = np.tile([_REGULARISATION, 0.0, _REGULARISATION], (rows, components, 1))
    gaussians, bound, active = _Gaussians(weights, means, covariances), np.full(rows, -np.inf), np.arange(rows)
    found = _Fits(_Gaussians(*map(np.copy, gaussians)), bound.copy(), np.zeros(rows, dtype=np.bool_))
    features, joint = np.repeat(_features(points), starts, axis=0), np.empty((rows, components, samples))
    for _ in range(_MAX_ITERATIONS):
        before = bound
        gaussians, bound = _step(gaussians, features[: len(active)], joint[: len(active)])
        settled = np.abs(bound - before) < _TOLERANCE
        for whole, part in zip(
            (*found.gaussians, found.bound, found.converged), (*gaussians, bound, settled), strict=True
        ):
            whole[active] = part
        going = np.flatnonzero(~settled)
        if not len(going):
            break
        gaps = np.flatnonzero(settled[: len(going)])
        order = np.arange(len(going))
        order[gaps] = going[len(going) - len(gaps) :]
        features[gaps] = features[order[gaps]]
        gaussians, bound, active = _Gaussians(*(part[order] for part in gaussians)), bound[order], active[order]
    best = np.arange(0, rows, starts) + found.bound.reshape(-1, starts).argmax(axis=1)
    return _Fits(_Gaussians(*(part[best] for part in found.gaussians)), found.bound[best], found.converged[best])


def _seeds(points: NDArray[np.float64], components: int, seed: int, starts: int) -> NDArray[np.int64]:
    """Return the samples (F, starts, components) with which greedy k-means++ begins, for each filter's points.

    The random numbers and what is made of them are those of scikit-learn's GaussianMixture (D. Arthur and
    S. Vassilvitskii, k-means++: the advantages of careful seeding, 2007); each filter gets the same numbers.
    """
    filters, samples, _ = points.shape
    random, trials = np.random.RandomState(seed), 2 + int(np.log(components))
    x, y = np.ascontiguousarray(np.moveaxis(points, 2, 0))
    every = np.arange(filters)[:, None]
    chosen = np.empty((filters, starts, components), dtype=np.int64)

    def squared_distances(candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the squared distances (F, candidates, N) of all points from some."""
        squares: NDArray[np.float64] = (x[:, None] - x[every, candidates][..., None]) ** 2
        squares += (y[:, None] - y[every, candidates][..., None]) ** 2
        return squares

    for start in range(starts):
        first = random.choice(samples, p=np.full(samples, 1 / samples))
        chosen[:, start, 0] = first
        nearest = squared_distances(np.full((filters, 1), first))  # squared distance from the nearest seed (F, 1, N)
        for component in range(1, components):
            drawn = random.uniform(size=trials) * nearest.sum(axis=2)
            candidates = (nearest.cumsum(axis=2) < drawn[..., None]).sum(axis=2)
            candidates = np.minimum(candidates, samples - 1)  # where rounding leaves the sum below the drawn number
            distances = np.minimum(squared_distances(candidates), nearest)
            best = distances.sum(axis=2).argmin(axis=1)[:, None]
            chosen[:, start, component] = candidates[every, best][:, 0]
            nearest = distances[every, best]
    return chosen


def _features(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1, x, y, x^2, x y, y^2 of each point, (F, 6, N): a log-density is linear in them, and so are moments."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


def _step(
    gaussians: _Gaussians, features: NDArray[np.float64], joint: NDArray[np.float64]
) -> tuple[_Gaussians, NDArray[np.float64]]:
    """Take one step of expectation-maximisation: the next mixtures, and the mean log-likelihood of these (B,).

    Args:
        gaussians: The mixtures.
        features: Those of each mixture's points (B, 6, N).
        joint: Room for (B, K, N), which is overwritten.
    """
    np.matmul(_coefficients(gaussians), features, out=joint)
    highest = joint.max(axis=1, keepdims=True)
    responsibilities = np.exp(np.subtract(joint, highest, out=joint), out=joint)
    total = responsibilities.sum(axis=1, keepdims=True)
    likelihood = (highest + np.log(total)).mean(axis=(1, 2))
    responsibilities *= 1 / total

    moments = responsibilities @ features.swapaxes(1, 2)  # (B, K, 6)
    mass, x, y, xx, xy, yy = np.moveaxis(moments, 2, 0)
    weight = mass + _NO_WEIGHT
    m_x, m_y = x / weight, y / weight
    covariances = np.stack(
        [
            (xx - 2 * x * m_x + mass * m_x * m_x) / weight + _REGULARISATION,
            (xy - x * m_y - y * m_x + mass * m_x * m_y) / weight,
            (yy - 2 * y * m_y + mass * m_y * m_y) / weight + _REGULARISATION,
        ],
        axis=2,
    )
    return _Gaussians(weight / weight.sum(axis=1, keepdims=True), np.stack([m_x, m_y], axis=2), covariances), likelihood


def _coefficients(gaussians: _Gaussians) -> NDArray[np.float64]:
    """Return the coefficients (B, K, 6) of log(weight density) in the features."""
    m_x, m_y = np.moveaxis(gaussians.means, 2, 0)
    c_xx, c_xy, c_yy = np.moveaxis(gaussians.covariances, 2, 0)
    determinant = c_xx * c_yy - c_xy * c_xy
    p_xx, p_xy, p_yy = c_yy / determinant, -c_xy / determinant, c_xx / determinant  # the inverse of the covariance
    x, y = p_xx * m_x + p_xy * m_y, p_xy * m_x + p_yy * m_y
    constant = np.log(gaussians.weights / (2 * np.pi)) - 0.5 * (np.log(determinant) + x * m_x + y * m_y)
    return np.stack([constant, x, y, -0.5 * p_xx, -p_xy, -0.5 * p_yy], axis=2)


def _log_densities(gaussians: _Gaussians, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(weight density) of each component at each point (B, N, 2), as (B, K, N).

    Unlike the product of coefficients and features it loses nothing far from the origin, and equal points get equal
    values.
    """
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    m_x, m_y = np.moveaxis(gaussians.means[..., None], 2, 0)
    c_xx, c_xy, c_yy = np.moveaxis(gaussians.covariances[..., None], 2, 0)
    root_x = np.sqrt(c_xx)
    slope = c_xy / root_x
    root_y = np.sqrt(c_yy - slope**2)
    u = (x - m_x) / root_x
    v = (y - m_y - slope * u) / root_y
    height = np.log(gaussians.weights[..., None] / (2 * np.pi * root_x * root_y))
    joint: NDArray[np.float64] = height - 0.5 * (u**2 + v**2)
    return joint


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
        The table of `anomaly_signs` with layer and depth in front and without the lists of outliers, with the columns
        is_anomaly_0.005, ... for the outlier shares of `SHARES`; and the outlier samples of every filter that has any:
        layer, filter, sample (identifier), is_anomaly (of the filter).
    """
    tables, outliers = [], []
    for depth, (layer, found) in enumerate(components.items()):
        clustered = mixtures(found.points, seed, k_rule)
        table = anomaly_signs(clustered, found.activation, outlier_share, ch_factor, activation_sd)
        for share in SHARES:
            signs = anomaly_signs(clustered, found.activation, share, ch_factor, activation_sd)
            table[f"is_anomaly_{share:g}"] = signs["is_anomaly"]
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


def anomaly_history(found: Iterable[tuple[str, int, pd.DataFrame]]) -> pd.DataFrame:
    """Count the filters with each sign in the checkpoints of a training.

    Args:
        found: Name and epoch of each checkpoint, and its table of `network_anomalies`.

    Returns:
        One row per checkpoint: checkpoint, epoch, filters (examined), unbalanced, high_ch, high_activation, is_anomaly
        (how many filters show the sign).

    Source: Dou Hui, doctoral slides, figure 6-4 (b).
    """
    rows = [
        (checkpoint, epoch, len(filters), *(int(filters[sign].sum()) for sign in SIGNS))
        for checkpoint, epoch, filters in found
    ]
    return pd.DataFrame(rows, columns=["checkpoint", "epoch", "filters", *SIGNS])
