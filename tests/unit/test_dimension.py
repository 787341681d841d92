"""nnscan.dimension: what it refuses, warns of and counts; invariances; a network's representations and their table."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import nnscan
from nnscan import dimension
from nnscan.correlation import error_correlation
from nnscan.dimension import (
    COLUMNS,
    dimension_of_ratios,
    fit_quality,
    intrinsic_dimension,
    layer_dimensions,
    likelihood_dimension,
    neighbour_ratios,
    plateau,
    principal_dimension,
    representation_layers,
    representations,
)
from nnscan.drawings import dimension_blocks, dimension_curves, dimension_errors
from nnscan.errors import DataError, LayerError
from nnscan.models import build_model


@pytest.fixture(autouse=True)
def _one_thread_and_no_open_figures(one_thread):
    yield
    plt.close("all")


# Points ---------------------------------------------------------------------------------------------------------------


def test_the_quantiles_of_the_law_give_the_dimension_itself():
    for number in (1, 3.5, 12):
        quantiles = np.arange(1, 1001) / 1000
        ratios = (1 - quantiles[:-1]) ** (-1 / number)
        ratios = np.append(ratios, ratios[-1] * 2)
        assert dimension_of_ratios(ratios) == pytest.approx(number, rel=1e-9)
        assert fit_quality(ratios) == pytest.approx(1, abs=1e-12)


def test_independent_ratios_give_the_dimension_within_four_standard_errors():
    ratios = (1 - np.random.default_rng(0).random(4000)) ** (-1 / 7)
    for estimate in (dimension_of_ratios(ratios), likelihood_dimension(ratios), likelihood_dimension(ratios, 0.9)):
        assert abs(estimate - 7) < 4 * 7 / np.sqrt(4000)
    assert fit_quality(ratios) > 0.98


def test_the_likelihood_by_hand():
    ratios = np.exp([4.0, 1.0, 2.0, 3.0])
    assert likelihood_dimension(ratios) == pytest.approx(3 / 10)
    assert likelihood_dimension(ratios, 0.5) == pytest.approx(1 / (1 + 2 + 2 * 2))
    with pytest.raises(DataError, match="not defined"):
        likelihood_dimension(np.ones(30))


def test_the_fit_of_ratios_that_follow_no_line_is_poor():
    mixed = np.concatenate([np.full(60, 1.001), np.linspace(5, 6, 40)])
    assert fit_quality(mixed) < 0.8


@pytest.mark.parametrize(("number", "expected", "tolerance"), [(1, 1.0, 0.2), (2, 1.98, 0.25)])
def test_uniform_cubes(number, expected, tolerance):
    points = np.random.default_rng(1).random((1000, number))
    found = nnscan.two_nn(points)
    assert type(found) is float
    assert found == pytest.approx(expected, abs=tolerance)


def test_scaling_moving_turning_and_constant_columns_change_nothing():
    generator = np.random.default_rng(3)
    points = generator.random((300, 3))
    turn, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    moved = 40 * np.hstack([points, np.full((300, 2), 7.0)]) @ turn - 3
    assert nnscan.two_nn(moved) == pytest.approx(nnscan.two_nn(points), rel=1e-6)


@pytest.mark.parametrize("factor", [1e-200, 1e200, 2.0**-900])
def test_tiny_and_huge_numbers(factor):
    points = np.random.default_rng(3).random((100, 3))
    assert nnscan.two_nn(factor * points) == pytest.approx(nnscan.two_nn(points), rel=1e-12)


def test_far_from_the_origin_no_digits_are_lost():
    points = np.round(np.random.default_rng(4).random((200, 3)) * 2**20) / 2**20
    assert nnscan.two_nn(points + 2.0**30) == pytest.approx(nnscan.two_nn(points), rel=1e-12)


def all_ratios(points):
    """By differences, one pair after the other."""
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    return distances[:, 2] / distances[:, 1]


def test_ratios_against_all_distances():
    points = np.random.default_rng(5).random((40, 4))
    np.testing.assert_allclose(neighbour_ratios(points), all_ratios(points), rtol=1e-9)


def test_points_that_nearly_coincide_keep_their_distances():
    generator = np.random.default_rng(6)
    centres = generator.normal(size=(10, 50))
    points = np.concatenate([centres + 1e-9 * generator.normal(size=(10, 50)) for _ in range(4)])
    np.testing.assert_allclose(neighbour_ratios(points), all_ratios(points), rtol=1e-6)


def test_slices_of_rows_and_features_change_nothing(monkeypatch):
    points = np.random.default_rng(7).normal(size=(60, 30)).astype(np.float32)
    points[40:] = points[:20] + np.float32(1e-5)
    whole, components = intrinsic_dimension(points), principal_dimension(points)
    monkeypatch.setattr(dimension, "_BYTES", 16 * 60 * 7)
    found = intrinsic_dimension(points)
    assert found.dimension == pytest.approx(whole.dimension, rel=1e-9)
    assert found.sd == pytest.approx(whole.sd, rel=1e-7)
    np.testing.assert_allclose(found.blocks, whole.blocks, rtol=1e-7)
    assert principal_dimension(points) == components


def test_repeated_rows_count_once_and_are_counted():
    points = np.random.default_rng(4).random((200, 2))
    points[0] = 0
    repeated = np.vstack([points, points[:50], [[-0.0, 0.0]]])
    assert nnscan.two_nn(repeated) == nnscan.two_nn(points)
    found = intrinsic_dimension(repeated)
    assert (found.points, found.duplicates, found.zero_distances) == (251, 51, 0)
    assert found.warning == "51 of 251 points coincide with another, 3 are zero everywhere: what is left is a selection"
    assert intrinsic_dimension(points).warning == ""


def test_a_distance_that_vanishes_is_counted():
    points = np.random.default_rng(8).random((100, 2))
    points[:6] = [[0, value] for value in (0, 1e-200, 2e-200, 3e-200, 4e-200, 5e-200)]
    found = intrinsic_dimension(points)
    assert found.zero_distances == 6
    assert "6 of 100 points have a neighbour at a distance that vanishes" in found.warning
    assert found.dimension == pytest.approx(2, abs=0.6)


def test_ties_a_poor_fit_and_many_dimensions_are_warned_of():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    for points in (grid, np.vstack([grid, [[100, 1]]]) / 3):  # the mean of the second one cannot be written exactly
        with pytest.raises(DataError, match="as far from its second neighbour as from its first"):
            intrinsic_dimension(points)
    generator = np.random.default_rng(9)
    found = intrinsic_dimension(np.concatenate([grid, 100 + generator.random((400, 2))]) / 3)
    assert "100 of 500 points are as far from their second neighbour as from their first" in found.warning
    assert "above 20 an estimate is a lower bound" in intrinsic_dimension(generator.normal(size=(300, 60))).warning
    pairs = generator.normal(size=(40, 3))
    found = intrinsic_dimension(np.concatenate([pairs, pairs + 1e-6, generator.normal(size=(20, 3))]))
    assert "do not follow a line" in found.warning
    assert found.fit < 0.95


@pytest.mark.parametrize("points", [np.zeros((100, 3)), np.random.default_rng(6).random((19, 3)), np.zeros((0, 4))])
def test_too_few_distinct_points_are_refused(points):
    with pytest.raises(DataError, match=r"(0|1|19) distinct points are too few.*at least 20"):
        nnscan.two_nn(points)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    points = np.random.default_rng(0).random((30, 2))
    points[3, 1] = value
    for call in (nnscan.two_nn, intrinsic_dimension, principal_dimension):
        with pytest.raises(DataError, match="not finite"):
            call(points)


@pytest.mark.parametrize("column", [0, 1, 5])
def test_values_that_are_not_finite_are_found_in_every_slice_of_the_features(monkeypatch, column):
    monkeypatch.setattr("nnscan.dimension._BYTES", 2 * 16 * 30)  # two features of 30 points
    points = np.random.default_rng(0).random((30, 6))
    points[3, column] = np.nan
    for call in (nnscan.two_nn, principal_dimension):
        with pytest.raises(DataError, match="not finite"):
            call(points)


# Error bars and blocks ------------------------------------------------------------------------------------------------


def test_draws_and_blocks_are_those_of_the_points_alone():
    """The one pass over all distances gives what each part of the points gives by itself."""
    points = np.random.default_rng(10).normal(size=(130, 3))
    found = intrinsic_dimension(points, seed=5)
    generator = np.random.default_rng(5)
    order = generator.permutation(130)
    draws = [points[generator.choice(130, 117, replace=False)] for _ in range(20)]
    assert found.sd == pytest.approx(np.std([nnscan.two_nn(draw) for draw in draws], ddof=1))
    assert found.blocks["blocks"].tolist() == [1, 2, 3, 4, 5, 6]  # a block has 20 points or more
    for row in found.blocks.itertuples():
        assert row.points == 130 // row.blocks
        parts = [points[order[n * row.points : (n + 1) * row.points]] for n in range(row.blocks)]
        assert row.dimension == pytest.approx(np.mean([nnscan.two_nn(part) for part in parts]))
    assert found.dimension == found.blocks["dimension"][0] == nnscan.two_nn(points)


def test_the_seed_decides_on_the_draws_alone():
    points = np.random.default_rng(11).random((100, 2))
    one, two, other = (intrinsic_dimension(points, seed) for seed in (0, 0, 1))
    assert (one.dimension, one.sd) == (two.dimension, two.sd)
    assert one.dimension == other.dimension
    assert one.sd != other.sd


def curve(values, points=10_000):
    numbers = np.arange(1, len(values) + 1)
    return pd.DataFrame({"blocks": numbers, "points": points // numbers, "dimension": values, "sd": 0.0})


def test_the_plateau_is_the_widest_level_run():
    assert plateau(curve([3.0] * 20)) == 3
    assert plateau(curve([9, 8, 7, 5, 4, *[2.0] * 15])) == 2  # 6 to 20: more than threefold
    assert np.isnan(plateau(curve([9, 8, 7, 5, 4, 3, *[2.0] * 14])))  # 7 to 20: not
    assert np.isnan(plateau(curve(np.geomspace(20, 5, 20))))
    assert plateau(curve([3.0] * 4 + [1.0] * 16)) == 3  # both fourfold, and 1 to 4 has more points
    assert np.isnan(plateau(curve([3.0] * 2)))


def test_the_plateau_by_width_then_points():
    wide = curve([3.0] * 8 + [1.0] * 12)
    assert plateau(wide) == 3


# PCA ------------------------------------------------------------------------------------------------------------------


def test_principal_components_of_a_flat_in_space():
    generator = np.random.default_rng(12)
    flat = generator.normal(size=(300, 4)) @ generator.normal(size=(4, 50))
    assert principal_dimension(flat) <= 4
    assert principal_dimension(flat, 1 - 1e-12) == 4
    assert principal_dimension(flat.T.copy().T[:30], 1 - 1e-12) == 4  # fewer points than features
    assert principal_dimension(np.hstack([flat, np.full((300, 3), 0.1)])) == principal_dimension(flat)
    assert principal_dimension(np.full((30, 3), 0.1)) == 0


# Networks -------------------------------------------------------------------------------------------------------------


def places(model, kind="pools", size=32):
    return [(p.layer, p.module, p.depth) for p in representation_layers(model, torch.rand(1, 3, size, size), kind)]


def test_the_places_of_a_plain_network_are_those_of_the_protocol():
    assert places(build_model("alexnet")) == [
        *(("input", "", 0), ("features.2", "features.2", 1), ("features.5", "features.5", 2)),
        *(("features.12", "features.12", 5), ("head.1", "head.2", 6), ("head.3", "head.3", 7)),
    ]
    assert [place[0] for place in places(build_model("lenet5"), "all")] == [
        *("input", "features.0", "features.3", "head.1", "head.3", "head.5"),
    ]


def test_of_a_residual_network_the_last_block_of_each_size_counts():
    found = [place[0] for place in places(build_model("resnet18"))]
    assert found == ["input", "features.4", "features.6", "features.8", "features.10", "pool", "head.1"]


def test_places_by_name_and_names_that_do_not_exist():
    model = build_model("lenet5")
    assert places(model, ["features.4", "features.0"]) == [
        *(("input", "", 0), ("features.0", "features.0", 1), ("features.4", "features.4", 2)),
    ]
    with pytest.raises(LayerError, match=r"no layer 'features.44'; did you mean 'features.4'"):
        places(model, ["features.44"])
    with pytest.raises(LayerError, match="'pooling' do not exist; choose 'pools', 'all'"):
        places(model, "pooling")
    model.unused = nn.Linear(3, 3)
    with pytest.raises(LayerError, match="'unused' is not called"):
        places(model, ["unused"])


class Shared(nn.Module):
    """Uses one pool and one in-place ReLU several times, and fails on request."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.fc1, self.dropout, self.fc2 = nn.Linear(20, 6), nn.Dropout(0.5), nn.Linear(6, 2)
        self.fails = False

    def steps(self, x):
        one = self.pool(self.relu(self.conv1(x)))
        two = self.pool(self.relu(self.conv2(one)))
        three = self.relu(self.fc1(two.flatten(1)))
        return [one, two, three, self.fc2(self.dropout(three))]

    def forward(self, x):
        steps = self.steps(x)
        if self.fails:
            raise RuntimeError("the model failed")
        return steps[-1]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("held", [2**30, 1])
def test_representations_are_what_the_network_computes(held, monkeypatch):
    monkeypatch.setattr(dimension, "_HELD", held)  # all at once, or one place at a time and in a file
    torch.manual_seed(0)
    model, x = Shared().train(), torch.randn(7, 3, 8, 8)
    found = representation_layers(model, x)
    assert [place.layer for place in found] == ["input", "pool", "pool:2", "fc1", "fc2"]
    assert [place.relative_depth for place in found] == [0, 0.25, 0.5, 0.75, 1]
    arrays = {place.layer: features for place, features in representations(model, x, found, batch_size=3)}
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0
    with torch.no_grad():
        expected = [x, *model.eval().steps(x)]
    for features, values in zip(arrays.values(), expected, strict=True):
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, values.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
    assert arrays["fc1"].min() == 0  # behind its ReLU


def test_a_network_that_fails_is_left_as_it_was():
    model, x = Shared().train(), torch.randn(7, 3, 8, 8)
    found = representation_layers(model, x)
    model.fails = True
    for call in (lambda: list(representations(model, x, found)), lambda: representation_layers(model, x)):
        with pytest.raises(RuntimeError, match="the model failed"):
            call()
        assert hooks(model) == 0
        assert all(module.training for module in model.modules())


def test_no_room_for_a_wide_representation(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dimension, "_HELD", 1)
    monkeypatch.setattr("os.posix_fallocate", full)
    model, x = Shared(), torch.randn(7, 3, 8, 8)
    with pytest.raises(DataError, match=r"7 images at 'input' need .* GiB in .*No space left.*fewer images"):
        list(representations(model, x, representation_layers(model, x)))


@pytest.fixture(scope="module")
def tables():
    torch.manual_seed(0)
    model = build_model("simple_cnn")
    nn.init.zeros_(model.head[1].weight)  # a dead layer: all images give the same
    nn.init.zeros_(model.head[1].bias)
    x = torch.rand(60, 3, 32, 32)
    x[50:] = x[:10]
    return model, x, *layer_dimensions(model, x, seed=3)


def test_a_layer_with_values_that_are_not_finite_has_no_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4))
    nn.init.constant_(model[1].weight, 1e38)
    table, blocks = layer_dimensions(model, torch.rand(60, 3, 2, 2))
    assert table["layer"].tolist() == ["input", "1", "2"]
    assert table["dimension"].notna().tolist() == table["pca_dimension"].notna().tolist() == [True, False, False]
    assert table["warning"].str.contains("not finite").tolist() == [False, True, True]
    assert set(blocks["layer"]) == {"input"}


def test_the_table_of_layers(tables):
    model, x, table, blocks = tables
    assert list(table.columns) == COLUMNS
    assert table["layer"].tolist() == ["input", "features.2", "features.5", "features.8", "pool", "head.1", "head.3"]
    assert table["points"].tolist() == [60] * 7
    assert table["dropped"].tolist() == [10] * 5 + [59] * 2
    features = {p.layer: f for p, f in representations(model, x, representation_layers(model, x))}
    row = table.iloc[2]
    found = intrinsic_dimension(features["features.5"], 3)
    for name in ("dimension", "sd", "mle", "censored_mle", "fit"):
        assert row[name] == getattr(found, name)
    assert row["width"] == features["features.5"].shape[1]
    assert row["pca_dimension"] == principal_dimension(features["features.5"])
    assert "10 of 60 points coincide" in row["warning"]
    own = blocks[blocks["layer"] == "features.5"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[found.blocks.columns.tolist()], found.blocks)


def test_a_layer_without_a_dimension_says_why(tables):
    _, _, table, _ = tables
    dead = table[table["layer"] == "head.1"].iloc[0]
    assert np.isnan(dead["dimension"])
    assert dead["warning"].startswith("1 distinct points are too few")


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_curves_show_the_tables(tables):
    table = tables[2]
    lifted = table.assign(dimension=table["dimension"] + 4)
    seeds = pd.concat([table.assign(seed=0), lifted.assign(seed=1)])
    figure = dimension_curves({"one": table, "two seeds": seeds})
    left, right = figure.axes
    one, two = left.containers
    np.testing.assert_allclose(one.lines[0].get_ydata(orig=False), table["dimension"])
    np.testing.assert_allclose(one.lines[0].get_xdata(orig=False), table["relative_depth"])
    np.testing.assert_allclose(two.lines[0].get_ydata(orig=False), table["dimension"] + 2)
    first = np.diff(two.lines[2][0].get_segments()[0][:, 1])[0] / 2
    assert first == pytest.approx(np.std([0, 4], ddof=1))  # the spread over the seeds
    first = np.diff(one.lines[2][0].get_segments()[0][:, 1])[0] / 2
    assert first == pytest.approx(table["sd"].iloc[0])
    np.testing.assert_allclose(right.lines[0].get_ydata(orig=False), table["pca_dimension"])


def test_the_block_analysis_and_the_errors_are_drawn(tables):
    blocks = tables[3]
    layers = blocks["layer"].unique()
    axes = dimension_blocks(blocks).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(layers)
    np.testing.assert_allclose(
        axes.containers[1].lines[0].get_ydata(orig=False), blocks[blocks["layer"] == layers[1]]["dimension"]
    )
    runs = pd.DataFrame(
        {"network": ["a", "a", "b", "b"], "dimension": [5.0, 6, 7, 9], "sd": 0.2, "error": [0.1, 0.1, 0.2, 0.3]}
    )
    found = error_correlation(runs["dimension"], runs["error"])
    axes = dimension_errors(runs, found).axes[0]
    assert axes.get_title() == f"r = {found.r:.2f}, 4 runs of 2 networks"
    np.testing.assert_allclose(axes.containers[1].lines[0].get_ydata(orig=False), [20, 30])
    assert dimension_errors(runs, "there are three").axes[0].get_title() == "there are three"
