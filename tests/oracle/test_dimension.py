"""TwoNN on data of known dimension, against exact ratios, and against scikit-dimension."""

import numpy as np
import pytest
import torch
from skdim.id import TwoNN
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from nnscan import two_nn
from nnscan.dimension import (
    dimension_of_ratios,
    intrinsic_dimension,
    layer_dimensions,
    likelihood_dimension,
    neighbour_ratios,
    principal_dimension,
)

REPEATS = 4


def cube(generator, n, d):
    return generator.random((n, d))


def gauss(generator, n, d):
    return generator.normal(size=(n, d))


def sphere(generator, n, d):
    points = generator.normal(size=(n, d + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def swiss_roll(generator, n, d):
    angle = 1.5 * np.pi * (1 + 2 * generator.random(n))
    return np.stack([angle * np.cos(angle), 21 * generator.random(n), angle * np.sin(angle)], 1)


def torus(generator, n, d):
    """Evenly over the surface of radii 2 and 1, by rejection."""
    angles = 2 * np.pi * generator.random((4 * n, 2))
    angles = angles[generator.random(4 * n) < (2 + np.cos(angles[:, 1])) / 3][:n]
    ring = 2 + np.cos(angles[:, 1])
    return np.stack([ring * np.cos(angles[:, 0]), ring * np.sin(angles[:, 0]), np.sin(angles[:, 1])], 1)


def cube_in_1000_dimensions(generator, n, d):
    turn, _ = np.linalg.qr(generator.normal(size=(1000, d)))
    return generator.random((n, d)) @ turn.T


# shape, dimension, points, what the reference code finds, its deviation over samples
KNOWN = [
    (cube, 1, 1000, 1.00, 0.06),
    (cube, 2, 1000, 1.98, 0.06),
    (cube, 5, 1000, 4.63, 0.17),
    (cube, 10, 1000, 8.63, 0.24),
    (cube, 20, 1000, 15.2, 0.6),
    (gauss, 2, 1000, 1.98, 0.08),
    (gauss, 5, 1000, 5.01, 0.21),
    (gauss, 10, 1000, 9.51, 0.29),
    (gauss, 20, 1000, 16.3, 0.6),
    (sphere, 2, 1000, 1.98, 0.08),
    (sphere, 5, 1000, 5.02, 0.2),
    (sphere, 10, 1000, 9.31, 0.3),
    (swiss_roll, 2, 1000, 2.02, 0.08),
    (swiss_roll, 2, 2500, 2.00, 0.05),
    (torus, 2, 1000, 2.00, 0.08),
    (cube_in_1000_dimensions, 5, 1000, 4.57, 0.19),
]


@pytest.mark.parametrize(("shape", "number", "count", "expected", "sd"), KNOWN)
def test_data_of_known_dimension(shape, number, count, expected, sd):
    generator = np.random.default_rng(20)
    found = [two_nn(shape(generator, count, number)) for _ in range(REPEATS)]
    # the expected value is a mean of 12 samples itself
    assert np.mean(found) == pytest.approx(expected, abs=3 * sd * np.sqrt(1 / REPEATS + 1 / 12))


def periodic_ratios(points):
    """Return mu of points in the unit cube whose opposite faces are one."""
    squared = np.zeros((len(points), len(points)))
    for column in points.T:
        gap = np.abs(column[:, None] - column[None])
        squared += np.minimum(gap, 1 - gap) ** 2
    distances = np.sqrt(np.partition(squared, 2, axis=1)[:, 1:3])
    return distances[:, 1] / distances[:, 0]


@pytest.mark.parametrize(("number", "expected", "sd"), [(2, 1.96, 0.07), (5, 4.92, 0.17), (14, 14.3, 0.45)])
def test_cubes_without_an_edge(number, expected, sd):
    generator = np.random.default_rng(21)
    found = [dimension_of_ratios(periodic_ratios(generator.random((1500, number)))) for _ in range(2)]
    assert np.mean(found) == pytest.approx(expected, abs=3 * sd * np.sqrt(1 / 2 + 1 / 12))


def test_a_heavy_tail_does_not_reach_the_share():
    ratios = (1 - np.random.default_rng(22).random(2000)) ** (-1 / 5)
    ratios[:60] = 1e6
    assert dimension_of_ratios(ratios, 1.0) < 2
    assert dimension_of_ratios(ratios, 0.9) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("number", [2, 10, 50])
def test_bias_and_deviation_of_the_estimators(number):
    generator = np.random.default_rng(23)
    samples = (1 - generator.random((600, 500))) ** (-1 / number)
    unit = number / np.sqrt(500)
    for estimate, low, high in (
        (dimension_of_ratios, 1.0, 1.2),
        (likelihood_dimension, 0.9, 1.1),
        (lambda ratios: likelihood_dimension(ratios, 0.9), 0.95, 1.15),
    ):
        found = [estimate(sample) for sample in samples]
        assert np.mean(found) == pytest.approx(number, rel=0.01)
        assert low < np.std(found) / unit < high


def test_the_error_bar_is_about_half_of_the_spread_over_samples():
    generator = np.random.default_rng(24)
    found = [intrinsic_dimension(generator.random((250, 2)), seed) for seed in range(60)]
    spread = np.std([one.dimension for one in found], ddof=1)
    assert 1.4 < spread / np.mean([one.sd for one in found]) < 2.6


def test_the_plateau_sees_through_noise():
    """A plane with noise in ten directions: few points see the plane, many the noise (Facco et al. 2017, figure 3)."""
    generator = np.random.default_rng(25)
    plane = np.hstack([generator.random((2500, 2)), np.zeros((2500, 8))])
    found = intrinsic_dimension(plane + 0.001 * generator.normal(size=plane.shape))
    assert found.dimension > 2.3
    assert found.plateau == pytest.approx(2, abs=0.2)
    assert intrinsic_dimension(plane).plateau == pytest.approx(2, abs=0.1)


# scikit-dimension -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "number"), [(gauss, 3), (cube_in_1000_dimensions, 5)])
def test_all_three_estimates_are_those_of_scikit_dimension(shape, number):
    points = shape(np.random.default_rng(26), 500, number)
    ratios = neighbour_ratios(points)
    pairs = [
        (two_nn(points), TwoNN(discard_fraction=0.1)),
        (likelihood_dimension(ratios), TwoNN(discard_fraction=0, method="mle")),
        (likelihood_dimension(ratios, 0.9), TwoNN(discard_fraction=0.1, method="mle")),
    ]
    for ours, peer in pairs:
        assert ours == pytest.approx(peer.fit(points).dimension_, rel=1e-7)


def test_mostly_zero_rows_do_not_hide_the_dimension():
    """A layer that is silent for two thirds of the images: its zeros count once."""
    points = np.zeros((500, 20))
    active = np.random.default_rng(27).random((170, 3))
    points[:170, :3] = active + 0.05
    found = intrinsic_dimension(points)
    assert found.dimension == pytest.approx(two_nn(active), rel=0.05)
    with pytest.warns(UserWarning, match="329 of 500 points coincide with another, 330 are zero everywhere"):
        assert two_nn(points) == found.dimension
    assert "329 of 500 points coincide with another, 330 are zero everywhere" in found.warning


# PCA and networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 30), (40, 300)])
def test_principal_components_are_those_of_scikit_learn(shape):
    points = np.random.default_rng(28).normal(size=shape) @ np.diag(np.linspace(0.1, 3, shape[1]))
    points += np.outer(points[:, 0], np.ones(shape[1]))
    spectrum = PCA().fit(StandardScaler().fit_transform(points)).explained_variance_ratio_
    for share in (0.5, 0.9, 0.99):
        assert principal_dimension(points, share) == int((np.cumsum(spectrum) < share).sum()) + 1


def test_a_network_that_keeps_distances_keeps_the_dimension():
    torch.manual_seed(0)
    first, second = nn.Linear(12, 30), nn.Linear(30, 30)
    for layer in (first, second):
        nn.init.orthogonal_(layer.weight)
    points = swiss_roll(np.random.default_rng(29), 400, 2) @ np.eye(3, 12)
    x = torch.from_numpy(points.astype(np.float32)).reshape(400, 3, 2, 2)
    table, _ = layer_dimensions(nn.Sequential(nn.Flatten(), first, second), x)
    assert table["layer"].tolist() == ["input", "1", "2"]
    assert table["relative_depth"].tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(table["dimension"], two_nn(points), rtol=1e-3)
