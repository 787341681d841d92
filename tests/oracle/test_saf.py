"""Oracles of the search for anomaly filters: the CH index, clouds with moved points, and the mixture's likelihood."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import calinski_harabasz_score

from nnscan.anomaly import UNSTRUCTURED_CH, _fit, anomaly_points, calinski_harabasz, mixture


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


def test_the_mixture_is_one():
    """Responsibilities sum to one, EM never lowers the likelihood, and BIC is that of the formula."""
    points = np.exp(np.random.default_rng(0).standard_normal((300, 2)))
    points = (points - points.mean(axis=0)) / np.sqrt(points.var(axis=0).sum())
    model = _fit(points, 3, seed=0, initialisations=2)
    responsibilities = model.predict_proba(points)
    np.testing.assert_allclose(responsibilities.sum(axis=1), 1, atol=1e-12)
    assert len(model.lower_bounds_) > 2
    assert (np.diff(model.lower_bounds_) > -1e-6).all()
    densities = [
        weight * multivariate_normal(mean, covariance).pdf(points)
        for weight, mean, covariance in zip(model.weights_, model.means_, model.covariances_, strict=True)
    ]
    likelihood = sum(np.log(sum(density[sample] for density in densities)) for sample in range(300))
    assert model.bic(points) == pytest.approx(-2 * likelihood + (3 * 6 - 1) * np.log(300), rel=1e-9)
    np.testing.assert_allclose(responsibilities, (np.array(densities) / sum(densities)).T, atol=1e-9)
