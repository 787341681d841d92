"""Clustering and the three signs of an anomaly filter, on points whose clusters are known."""

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits

from nnscan import anomaly
from nnscan.anomaly import (
    Mixture,
    anomaly_filters,
    anomaly_points,
    anomaly_signs,
    calinski_harabasz,
    mixture,
    mixtures,
    outlier_sweep,
)
from nnscan.errors import DataError

COLUMNS = [
    "filter", "k", "ch", "outlier_count", "unbalanced", "high_ch", "high_activation", "is_anomaly", "dead",
    "converged", "outliers",
]  # fmt: skip


def cloud(samples=300, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, 2))


def moved(samples=300, outliers=(5, 77, 140), distance=30.0, seed=0):
    points = cloud(samples, seed)
    points[list(outliers), 0] += distance
    return points


def naive_ch(points, labels, power):
    clusters = sorted(set(labels))
    dimensions = range(len(points[0]))
    mean = [sum(p[d] for p in points) / len(points) for d in dimensions]
    between = within = 0.0
    for cluster in clusters:
        members = [p for p, label in zip(points, labels, strict=True) if label == cluster]
        centre = [sum(p[d] for p in members) / len(members) for d in dimensions]
        between += len(members) * sum((centre[d] - mean[d]) ** 2 for d in dimensions) ** (power / 2)
        within += sum(sum((p[d] - centre[d]) ** 2 for d in dimensions) ** (power / 2) for p in members)
    return (between / (len(clusters) - 1)) / (within / (len(points) - len(clusters)))


@pytest.mark.parametrize(("squared", "power"), [(True, 2), (False, 1)])
def test_calinski_harabasz_equals_its_formula(squared, power):
    rng = np.random.default_rng(0)
    points, labels = rng.standard_normal((40, 3)), rng.choice([2, 5, 9], 40)
    assert calinski_harabasz(points, labels, squared) == pytest.approx(naive_ch(points, labels, power), rel=1e-12)


def test_calinski_harabasz_where_it_is_undefined():
    points = cloud(6)
    assert np.isnan(calinski_harabasz(points, np.zeros(6)))
    assert np.isnan(calinski_harabasz(points, np.arange(6)))
    two_places = np.repeat([[0.0, 0.0], [1.0, 1.0]], 3, axis=0)
    assert calinski_harabasz(two_places, [0, 0, 0, 1, 1, 1]) == np.inf
    assert np.isnan(calinski_harabasz(np.zeros((4, 2)), [0, 0, 1, 1]))


@pytest.mark.parametrize("rule", ["ch", "bic"])
def test_three_clusters_are_found(rule):
    truth = np.repeat([0, 1, 2], 60)
    points = cloud(180) + np.array([[0, 0], [20, 0], [0, 20]])[truth]
    found = mixture(points, seed=0, rule=rule)
    assert found.k == 3
    assert found.converged
    assert len(set(zip(truth, found.labels, strict=True))) == 3
    assert found.ch == pytest.approx(naive_ch(points.tolist(), truth.tolist(), 2))


@pytest.mark.parametrize("rule", ["ch", "bic"])
def test_one_cloud_is_one_cluster(rule):
    found = mixture(cloud(), rule=rule)
    assert found.k == 1
    assert np.isnan(found.ch)
    assert not found.labels.any()


def test_the_rules_differ_where_clusters_share_their_centre():
    """A wide cloud around a narrow one: the likelihood sees two, the distances of centres do not."""
    points = np.concatenate([0.05 * cloud(200, 1), 5 * cloud(200, 2)])
    by_bic, by_ch = mixture(points, rule="bic"), mixture(points, rule="ch")
    assert by_bic.k == 2
    assert by_ch.ch >= by_bic.ch
    assert by_ch.k > 2


def test_points_that_coincide_are_one_cluster():
    found = mixture(np.full((50, 2), 0.1))
    assert (found.k, found.converged) == (1, True)
    assert np.isnan(found.ch)


def test_many_identical_points_and_a_few_others():
    """The usual picture of a sparse filter: zero for nearly all samples."""
    points = np.zeros((300, 2))
    points[:3] = [[9, 1], [9.1, 1], [9, 1.1]]
    found = mixture(points)
    assert found.k >= 2
    assert len(set(found.labels[3:])) == 1
    assert found.labels[3] not in found.labels[:3]


def test_scale_and_place_do_not_matter():
    points = moved()
    for scale in (1e-12, 1e9):
        other = mixture(points * scale + 3 * scale, seed=4)
        np.testing.assert_array_equal(other.labels, mixture(points, seed=4).labels)


def assert_same_bits(found, expected):
    assert (found.k, found.converged) == (expected.k, expected.converged)
    assert np.array(found.ch).tobytes() == np.array(expected.ch).tobytes()
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("samples", [77, 300])
def test_a_filter_does_not_depend_on_the_others_nor_on_how_many_are_fitted_at_a_time(monkeypatch, samples):
    points = np.stack([np.exp(cloud(samples, seed)) for seed in range(9)])
    points[4] = 0
    points[5, 3:] = 0.1
    expected = mixtures(points, seed=7)
    for together, threads in ((1, 1), (4 * samples, 2)):
        monkeypatch.setattr(anomaly, "_POINTS_TOGETHER", together)
        with threadpool_limits(threads):
            for found, other in zip(mixtures(points, seed=7), expected, strict=True):
                assert_same_bits(found, other)
    for found, other in zip(mixtures(points[::-1], seed=7), expected[::-1], strict=True):
        assert_same_bits(found, other)
    assert_same_bits(mixture(points[2], seed=7), expected[2])


@pytest.mark.parametrize("components", [2, 5])
def test_the_fit_of_a_start_does_not_depend_on_the_others(components):
    points = np.stack([np.exp(cloud(250, seed)) / 3 for seed in range(7)])
    together = anomaly._fit(points, components, seed=1, initialisations=3)
    for index in range(7):
        alone = anomaly._fit(points[index : index + 1], components, seed=1, initialisations=3)
        for part, other in zip((*alone.gaussians, alone.bound), (*together.gaussians, together.bound), strict=True):
            assert part[0].tobytes() == other[index].tobytes()


@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
def test_seeds_are_those_of_scikit_learn(components):
    points = np.stack([cloud(200, 1), np.exp(cloud(200, 2)), cloud(200, 3) ** 3])
    found = anomaly._seeds(points, components, seed=4, starts=3)
    for index, values in enumerate(points):
        random = np.random.RandomState(4)
        for start in range(3):
            _, expected = kmeans_plusplus(values, components, random_state=random)
            np.testing.assert_array_equal(found[index, start], expected)


def test_both_forms_of_the_log_densities_agree():
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((4, 3, 2, 2))
    covariances = (roots @ roots.swapaxes(2, 3))[:, :, [0, 0, 1], [0, 1, 1]]
    weights, means, points = (
        rng.dirichlet(np.ones(3), 4),
        rng.standard_normal((4, 3, 2)),
        rng.standard_normal((4, 50, 2)),
    )
    gaussians = anomaly._Gaussians(weights, means, covariances)
    np.testing.assert_allclose(
        anomaly._coefficients(gaussians) @ anomaly._features(points),
        anomaly._log_densities(gaussians, points),
        rtol=1e-8,
    )


@pytest.mark.parametrize("places", [2, 3, 4])
def test_fewer_places_than_components(places):
    """Each place is a cluster, whichever component it fell to; no cluster is cut by rounding."""
    spots = np.array([[0.0, 0.0], [0.1, 0.3], [5.0, 0.2], [-3.0, 0.7]])[:places]
    labels = np.random.default_rng(0).integers(places, size=101)
    found = mixture(spots[labels])
    assert found.k == places
    assert len(set(zip(labels, found.labels, strict=True))) == places
    assert set(found.labels) == set(range(places))
    assert found.ch > 1e12


def test_a_component_without_points_keeps_everything_finite():
    points = cloud(50)[None]
    far = anomaly._Gaussians(
        np.full((1, 2), 0.5), np.array([[[0.0, 0.0], [1e4, 0.0]]]), np.tile([1.0, 0.0, 1.0], (1, 2, 1))
    )
    (weights, means, covariances), likelihood = anomaly._step(far, anomaly._features(points), np.empty((1, 2, 50)))
    np.testing.assert_allclose(weights, [[1, 0]], atol=1e-14)
    np.testing.assert_allclose(means, [[points[0].mean(axis=0), [0, 0]]])
    np.testing.assert_allclose(covariances[0, 1], [1e-6, 0, 1e-6])
    assert np.isfinite(likelihood).all()


def test_components_without_points_are_no_clusters(monkeypatch):
    points = np.repeat([[-1.0, 0.0], [1.0, 0.0]], 30, axis=0)[None]
    means = np.array([[[0.0, 50.0], [1.0, 0.0], [0.0, 60.0], [-1.0, 0.0]]])
    gaussians = anomaly._Gaussians(np.full((1, 4), 0.25), means, np.tile([1e-2, 0.0, 1e-2], (1, 4, 1)))
    monkeypatch.setattr(anomaly, "_fit", lambda *_: anomaly._Fits(gaussians, np.zeros(1), np.ones(1, dtype=bool)))
    ((found, _),) = anomaly._candidates(points, 4, seed=0, initialisations=1)
    assert (found.k, found.ch) == (2, np.inf)
    np.testing.assert_array_equal(found.labels, np.repeat([1, 0], 30))


def test_log_densities_far_from_the_origin():
    """Two tight clusters: equal points get equal values, and a thousandth of a unit at a distance of 1000 counts."""
    near = np.repeat(1e-3 * cloud(20), 3, axis=0)
    gaussians = anomaly._Gaussians(
        np.array([[0.25, 0.75]]), np.array([[[1e3, -1e3], [0.0, 0.0]]]), np.tile([2e-6, 1e-6, 1e-6], (1, 2, 1))
    )
    found = anomaly._log_densities(gaussians, near[None] + [1e3, -1e3])[0, 0]
    expected = anomaly._log_densities(gaussians, near[None])[0, 1] + np.log(0.25 / 0.75)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_array_equal(found.reshape(20, 3), found[::3, None].repeat(3, axis=1))


def test_more_initialisations_find_likelier_mixtures():
    points = cloud()[None] / np.sqrt(2)
    once, often = (np.array([anomaly._fit(points, 4, seed, n).bound[0] for seed in range(5)]) for n in (1, 3))
    assert (often >= once).all()
    assert (often > once).any()


def test_a_mixture_that_does_not_settle_is_recorded_and_says_nothing(monkeypatch, recwarn):
    monkeypatch.setattr(anomaly, "_MAX_ITERATIONS", 1)
    found = mixture(np.exp(cloud()))
    assert found.k > 1
    assert not found.converged
    assert not anomaly_signs([found], np.ones((300, 1)))["converged"].any()
    assert not recwarn.list


def test_too_few_samples_are_refused_with_their_number():
    with pytest.raises(DataError, match=r"at least 30 samples, got 29"):
        mixture(cloud(29))
    assert mixture(cloud(30)).k == 1
    assert len(mixture(cloud(12), max_components=2).labels) == 12
    with pytest.raises(DataError, match="max_components"):
        mixture(cloud(), max_components=1)
    with pytest.raises(DataError, match="finite"):
        mixture(np.where(cloud() > 2, np.nan, 0.0))
    with pytest.raises(DataError, match=r"filters, samples, 2.*\(1, 60, 3\)"):
        mixture(np.zeros((60, 3)))


def test_no_filters_and_dead_filters():
    assert mixtures(np.zeros((0, 50, 2))) == []
    assert [found.k for found in mixtures(np.zeros((3, 50, 2)))] == [1, 1, 1]


def activations(samples=300, outliers=(5, 77, 140), strong=10.0):
    values = np.random.default_rng(9).uniform(0.9, 1.1, samples)
    values[list(outliers)] = strong
    return values


def test_an_anomaly_and_each_of_its_signs_missing():
    points = np.stack([moved(), moved(), moved(outliers=range(40)), moved(distance=5.0), cloud(), np.zeros((300, 2))])
    strong, plain = activations(), activations(strong=1.0)
    frame = anomaly_points(points, np.column_stack([strong, plain, strong, strong, strong, np.zeros(300)]), seed=0)
    assert list(frame.columns) == COLUMNS
    assert frame["filter"].tolist() == list(range(6))
    assert frame["is_anomaly"].tolist() == [True, False, False, False, False, False]
    anomalous, weak, crowd, near, whole, dead = frame.to_dict("records")
    assert anomalous["outliers"] == weak["outliers"] == [5, 77, 140]
    assert all(type(index) is int for index in anomalous["outliers"])
    assert (weak["unbalanced"], weak["high_ch"], weak["high_activation"]) == (True, True, False)
    assert (crowd["unbalanced"], crowd["high_ch"], crowd["high_activation"]) == (False, True, False)
    assert (crowd["k"], crowd["outlier_count"], crowd["outliers"]) == (2, 0, [])
    assert not near["high_ch"]
    assert (whole["k"], whole["outlier_count"], whole["high_ch"]) == (1, 0, False)
    assert np.isnan(whole["ch"])
    assert frame["dead"].tolist() == [False] * 5 + [True]
    assert (dead["k"], dead["unbalanced"]) == (1, False)
    assert frame[["unbalanced", "high_ch", "high_activation", "is_anomaly", "dead", "converged"]].dtypes.eq(bool).all()


def clusters(sizes, ch=1e6):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return Mixture(labels, len(sizes), ch, converged=True)


@pytest.mark.parametrize(
    ("sizes", "share", "outliers"),
    [
        ((990, 10), 0.01, 10),
        ((989, 11), 0.01, 0),
        ((980, 15, 5), 0.02, 20),
        ((980, 15, 5), 0.01, 5),
        ((39, 1), 0.01, 1),  # 0.4 samples: a single one always counts
        ((38, 2), 0.01, 0),
    ],
)
def test_the_size_of_an_outlier_cluster(sizes, share, outliers):
    row = anomaly_signs([clusters(sizes)], np.ones((sum(sizes), 1)), outlier_share=share).iloc[0]
    assert row["outlier_count"] == outliers
    assert row["unbalanced"] == (outliers > 0)
    assert row["outliers"] == [
        index for index in range(sum(sizes)) if np.repeat(sizes, sizes)[index] <= max(1, share * sum(sizes))
    ]


def test_the_threshold_of_ch_is_a_multiple_of_an_unstructured_cloud():
    limit = 2 * 0.467 * 998
    for ch, high in ((limit * 1.001, True), (limit * 0.999, False), (float("nan"), False)):
        assert anomaly_signs([clusters((990, 10), ch)], np.ones((1000, 1)))["high_ch"].item() == high
    assert anomaly_signs([clusters((990, 10), limit * 0.6)], np.ones((1000, 1)), ch_factor=1)["high_ch"].item()


def test_the_threshold_of_the_activation_counts_standard_deviations():
    values = np.concatenate([np.tile([0.0, 2.0], 495), np.full(10, 4.5)])
    above = (4.5 - values.mean()) / np.sqrt(sum((v - values.mean()) ** 2 for v in values) / 1000)
    for factor, high in ((above - 1e-6, True), (above + 1e-6, False)):
        frame = anomaly_signs([clusters((990, 10))], values[:, None], activation_sd=factor)
        assert frame["high_activation"].item() == high


def test_maps_count_by_their_mean_over_positions():
    maps = np.repeat(activations()[:, None, None, None], 6, axis=3).reshape(300, 1, 2, 3)
    maps[:, :, 0] *= 2
    maps[:, :, 1] = 0
    found = [mixture(moved())]
    from_maps, from_means = (
        anomaly_signs(found, values) for values in (torch.from_numpy(maps), activations()[:, None])
    )
    assert from_maps.equals(from_means)
    assert from_maps["is_anomaly"].item()


def test_activations_of_other_filters_or_samples_are_refused():
    with pytest.raises(DataError, match=r"\(300, 1\)"):
        anomaly_signs([mixture(cloud())], np.ones((1, 300)))
    with pytest.raises(DataError, match="outlier_share"):
        anomaly_signs([mixture(cloud())], np.ones((300, 1)), outlier_share=0.5)


def test_sweep_counts_each_sign_alone_and_all_together():
    fits = [clusters((990, 10)), clusters((960, 40)), clusters((990, 10), ch=1.0), clusters((1000,), ch=float("nan"))]
    strength = np.ones((1000, 4))
    strength[990:] = 5.0
    strength[990:, 0] = 1.0
    frame = outlier_sweep(fits, strength)
    assert list(frame.columns) == ["share", "sign", "filters"]
    table = frame.pivot_table(index="share", columns="sign", values="filters")
    assert table.index.tolist() == [0.005, 0.01, 0.02, 0.05]
    assert table["unbalanced"].tolist() == [0, 2, 2, 3]
    assert table["high_ch"].tolist() == [2, 2, 2, 2]
    assert table["high_activation"].tolist() == [0, 1, 1, 1]  # the 40's mean does not reach 3 sd
    assert table["is_anomaly"].tolist() == [0, 0, 0, 0]


def test_filter_images_end_to_end():
    """Two filters over 200 images; three images light one filter's picture far beyond the others."""
    rng = np.random.default_rng(5)
    images = rng.standard_normal((200, 2, 3, 6, 6)).astype(np.float32)
    images[[3, 50, 199], 1, :, 2:4, 2:4] += 40
    strength = np.abs(images).mean(axis=(2, 3, 4))
    frame = anomaly_filters(torch.from_numpy(images), torch.from_numpy(strength), outlier_share=0.015)
    assert frame["is_anomaly"].tolist() == [False, True]
    assert frame["outliers"][1] == [3, 50, 199]
    maps = np.abs(images).mean(axis=2)
    assert anomaly_filters(maps, maps, outlier_share=0.015)["is_anomaly"].tolist() == [False, True]
