"""Oracles of the search for anomaly filters: the CH index, clouds with moved points, and scikit-learn's mixtures."""

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture

from nnscan import anomaly
from nnscan.anomaly import UNSTRUCTURED_CH, anomaly_points, calinski_harabasz, mixture, mixtures


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_ch_equals_scikit_learn(clusters):
    rng = np.random.default_rng(clusters)
    points, labels = rng.standard_normal((200, 4)), rng.integers(clusters, size=200)
    assert calinski_harabasz(points, labels) == pytest.approx(calinski_harabasz_score(points, labels), rel=1e-12)


@pytest.mark.parametrize("squared", [True, False])
def test_ch_ignores_translation_scale_and_rotation(squared):
    rng = np.random.default_rng(0)
    points, labels = rng.standard_normal((200, 2)), rng.integers(3, size=200)
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = 13 * points @ rotation.T + [100, -7]
    assert calinski_harabasz(turned, labels, squared) == pytest.approx(
        calinski_harabasz(points, labels, squared), rel=1e-9
    )


def test_ch_of_an_unstructured_cloud_cut_in_two():
    points = np.random.default_rng(0).standard_normal((200_000, 2))
    ch = calinski_harabasz(points, points[:, 0] > 0)
    assert ch / (len(points) - 2) == pytest.approx(UNSTRUCTURED_CH, rel=0.01)
    assert pytest.approx((2 / np.pi) / (2 - 2 / np.pi), abs=5e-4) == UNSTRUCTURED_CH


def with_moved(moved, distance, seed, samples=1000):
    points = np.random.default_rng(seed).standard_normal((samples, 2))
    points[:moved, 0] += distance
    return points


@pytest.mark.parametrize(("moved", "distance"), [(10, 20), (5, 30), (20, 10)])
def test_moved_points_are_a_cluster_of_their_own(moved, distance):
    """For few moved points CH is about k D^2 / 2, and BIC finds exactly them."""
    labels = np.arange(1000) < moved
    ch = np.mean([calinski_harabasz(with_moved(moved, distance, seed), labels) for seed in range(20)])
    assert ch == pytest.approx(moved * distance**2 / 2, rel=0.08)
    for seed in range(3):
        found = mixture(with_moved(moved, distance, seed), seed=0, rule="bic")
        assert found.k == 2
        assert set(np.flatnonzero(found.labels == found.labels[0])) == set(range(moved))


@pytest.mark.parametrize("rule", ["ch", "bic"])
def test_far_moved_points_that_drive_the_filter_are_an_anomaly(rule):
    points = np.stack([with_moved(10, 20, 0), with_moved(5, 30, 1)])
    activations = np.ones((1000, 2))
    activations[:10, 0] = activations[:5, 1] = 6
    frame = anomaly_points(points, activations, rule=rule)
    assert frame["is_anomaly"].all()
    assert frame["outliers"].tolist() == [list(range(10)), list(range(5))]


@pytest.mark.parametrize("rule", ["ch", "bic"])
def test_a_plain_cloud_is_no_anomaly(rule):
    clouds = np.random.default_rng(2).standard_normal((10, 1000, 2)) * [3, 1]
    strength = np.linalg.norm(clouds, axis=2).T  # even where activation follows the distance
    frame = anomaly_points(clouds, strength, rule=rule)
    assert not frame["is_anomaly"].any()
    assert not frame["high_ch"].any()
    assert (frame["k"] == 1).mean() >= 0.9


def scaled(points):
    centred = points - points.mean(axis=0)
    return centred / np.sqrt(centred.var(axis=0).sum())


def test_the_mixture_is_one(monkeypatch):
    """Responsibilities sum to one, EM never lowers the likelihood, and BIC is that of the formula."""
    points = scaled(np.exp(np.random.default_rng(0).standard_normal((300, 2))))
    fit = anomaly._fit(points[None], 3, seed=0, initialisations=2)
    weights, means, covariances = (part[0] for part in fit.gaussians)
    log_densities = [
        np.log(weight) + multivariate_normal(mean, [[xx, xy], [xy, yy]]).logpdf(points)
        for weight, mean, (xx, xy, yy) in zip(weights, means, covariances, strict=True)
    ]
    joint = anomaly._log_densities(fit.gaussians, points[None])[0]
    np.testing.assert_allclose(joint, log_densities, rtol=1e-9)
    responsibilities = np.exp(joint - logsumexp(joint, axis=0))
    np.testing.assert_allclose(responsibilities.sum(axis=0), 1, atol=1e-12)
    likelihood = sum(np.log(sum(np.exp(density[sample]) for density in log_densities)) for sample in range(300))
    (candidate,) = anomaly._candidates(points[None], 3, seed=0, initialisations=2)
    assert candidate.bic == pytest.approx(-2 * likelihood + (3 * 6 - 1) * np.log(300), rel=1e-9)
    bounds = []
    for iterations in range(1, 20):
        monkeypatch.setattr(anomaly, "_MAX_ITERATIONS", iterations)
        bounds.append(anomaly._fit(points[None], 3, seed=0, initialisations=1).bound[0])
    assert (np.diff(bounds) > -1e-6).all()
    assert bounds[5] > bounds[0]


def realistic(seed, samples=400):
    """Points like those of trained filters: clouds, clusters, heavy tails, a few outliers, most at one place."""
    rng = np.random.default_rng(seed)
    outliers = np.arange(samples) < 4
    cloud = rng.standard_normal((samples, 2)) * [3, 1]
    clusters = rng.normal(0, 5, (3, 2))[rng.integers(3, size=samples)] + rng.standard_normal((samples, 2))
    heavy = rng.standard_t(3, (samples, 2))
    skewed = np.exp(rng.standard_normal((samples, 2))) * [1, -2]
    sparse = np.where(np.arange(samples)[:, None] < samples // 10, rng.exponential(size=(samples, 2)), 0.0)
    return np.stack([cloud, cloud + 20 * outliers[:, None] * rng.random((samples, 2)), clusters, heavy, skewed, sparse])


def by_scikit_learn(points, components, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(components, **settings).fit(points)


@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
def test_each_start_ends_where_scikit_learn_ends_from_there(components):
    """Its means, weights, covariances, likelihood and convergence, from the seeds of each of three starts."""
    points = np.stack([scaled(cloud) for seed in range(2) for cloud in realistic(seed)])
    ended = 0
    for start in range(3):
        fit = anomaly._fit(points, components, seed=start, initialisations=1)
        seeds = anomaly._seeds(points, components, start, 1)[:, 0]
        for index, cloud in enumerate(points):
            expected = by_scikit_learn(
                cloud,
                components,
                means_init=cloud[seeds[index]],
                weights_init=np.full(components, 1 / components),
                precisions_init=np.tile(1e6 * np.eye(2), (components, 1, 1)),
            )
            weights, means, covariances = (part[index] for part in fit.gaussians)
            np.testing.assert_allclose(fit.bound[index], expected.lower_bound_, rtol=1e-7)
            np.testing.assert_allclose(weights, expected.weights_, rtol=1e-6)
            np.testing.assert_allclose(means, expected.means_, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(
                covariances, expected.covariances_[:, [0, 0, 1], [0, 1, 1]], rtol=1e-6, atol=1e-8
            )
            assert fit.converged[index] == expected.converged_
            ended += expected.converged_
    assert ended > 30


@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
def test_mixtures_equal_scikit_learn_with_its_own_seeds(components):
    points = np.stack([scaled(cloud) for cloud in realistic(5)])
    found = anomaly._candidates(points, components, seed=3, initialisations=3)
    for cloud, (clusters, bic) in zip(points, found, strict=True):
        expected = by_scikit_learn(cloud, components, n_init=3, init_params="k-means++", random_state=3)
        assert bic == pytest.approx(expected.bic(cloud), rel=1e-8)
        labels = expected.predict(cloud)
        # starts that end at the same mixture differ in the order of its parts: which of them wins, rounding decides
        assert clusters.k == len(set(labels)) == len(set(zip(clusters.labels, labels, strict=True)))
        assert clusters.converged == expected.converged_
        if clusters.k > 1:
            assert clusters.ch == pytest.approx(calinski_harabasz_score(cloud, labels), rel=1e-9)


@pytest.mark.parametrize("rule", ["ch", "bic"])
def test_the_number_of_components_is_chosen_as_from_scikit_learn(rule):
    points = realistic(7)
    for cloud, found in zip(points, mixtures(points, seed=0, rule=rule), strict=True):
        fits = [
            by_scikit_learn(scaled(cloud), components, n_init=3, init_params="k-means++", random_state=0)
            for components in range(1, 6)
        ]
        bic = [fit.bic(scaled(cloud)) for fit in fits]
        labels = [fit.predict(scaled(cloud)) for fit in fits]
        ch = [calinski_harabasz_score(cloud, clusters) if len(set(clusters)) > 1 else 0 for clusters in labels]
        best = int(np.argmin(bic)) if rule == "bic" else 0 if bic[0] <= bic[1] else int(np.argmax(ch))
        assert found.k == len(set(labels[best]))
        assert len(set(zip(found.labels, labels[best], strict=True))) == found.k
