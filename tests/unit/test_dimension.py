"""TwoNN on data of known dimension."""

import numpy as np
import pytest

import nnscan
from nnscan.dimension import dimension_of_ratios, neighbour_ratios
from nnscan.errors import DataError


def test_the_quantiles_of_the_law_give_the_dimension_itself():
    for dimension in (1, 3.5, 12):
        quantiles = np.arange(1, 1001) / 1000
        ratios = (1 - quantiles[:-1]) ** (-1 / dimension)
        assert dimension_of_ratios(np.append(ratios, ratios[-1] * 2)) == pytest.approx(dimension, rel=1e-9)


def test_independent_ratios_give_the_dimension_within_four_standard_errors():
    ratios = (1 - np.random.default_rng(0).random(4000)) ** (-1 / 7)
    assert abs(dimension_of_ratios(ratios) - 7) < 4 * 7 / np.sqrt(4000)


@pytest.mark.parametrize(("dimension", "expected", "tolerance"), [(1, 1.0, 0.2), (2, 1.98, 0.25)])
def test_uniform_cubes(dimension, expected, tolerance):
    points = np.random.default_rng(1).random((1000, dimension))
    assert nnscan.two_nn(points) == pytest.approx(expected, abs=tolerance)


def test_swiss_roll_in_space_has_two_dimensions():
    generator = np.random.default_rng(2)
    angle, height = 1.5 * np.pi * (1 + 2 * generator.random(2500)), 21 * generator.random(2500)
    roll = np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], 1)
    assert nnscan.two_nn(roll) == pytest.approx(2, abs=0.2)


def test_scaling_moving_turning_and_constant_columns_change_nothing():
    generator = np.random.default_rng(3)
    points = generator.random((300, 3))
    turn, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    moved = 40 * np.hstack([points, np.full((300, 2), 7.0)]) @ turn - 3
    assert nnscan.two_nn(moved) == pytest.approx(nnscan.two_nn(points), rel=1e-6)


def test_repeated_rows_count_once():
    points = np.random.default_rng(4).random((200, 2))
    assert nnscan.two_nn(np.vstack([points, points[:50]])) == nnscan.two_nn(points)


def test_ratios_against_all_distances():
    points = np.random.default_rng(5).random((40, 4))
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    np.testing.assert_allclose(np.sort(neighbour_ratios(points)), np.sort(distances[:, 2] / distances[:, 1]))


@pytest.mark.parametrize("points", [np.zeros((100, 3)), np.random.default_rng(6).random((19, 3))])
def test_too_few_distinct_points_are_refused(points):
    with pytest.raises(DataError, match=r"(1|19) distinct points are too few.*at least 20"):
        nnscan.two_nn(points)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="not finite"):
        nnscan.two_nn(np.full((30, 2), np.nan))
