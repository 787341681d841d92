"""The library functions that whole stages consist of: one call of a rule's script, from artefact to artefact."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from nnscan import anomaly
from nnscan.anomaly import anomaly_points, anomaly_signs, mixtures, network_anomalies
from nnscan.artifacts import read_frame, read_provenance, write_frame
from nnscan.averages import (
    ascended_averages,
    average_kinds,
    class_averages,
    confidence_averages,
    confidences,
    read_averages,
    read_confidences,
    write_averages,
)
from nnscan.components import (
    LayerComponents,
    filter_image_components,
    mean_activation,
    read_components,
    write_components,
)
from nnscan.errors import ArtifactError, DataError, LayerError
from nnscan.moments import read_layers, write_moments
from nnscan.properties import activation_value, filter_table, interpretable_properties, sensitivity
from nnscan.scanner import filter_images, scan, scan_samples
from nnscan.similarities import chosen_similarities, filter_similarity, mean_curve, similarities

LAYERS = ("3", "0")  # not in alphabetical order


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )
    with torch.no_grad():
        for layer in (0, 3):
            model[layer].bias.fill_(0.3)  # no filter is dead
    return model.eval()


@pytest.fixture(scope="module")
def x():
    return torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def y():
    return torch.arange(40) % 3


# Components ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["learning_images", "feature_maps"])
def test_components_come_back_as_they_were_written(tmp_path, model, x, source):
    path, samples = tmp_path / "components.h5", np.arange(40) * 3
    write_components(path, model, x, LAYERS, samples, source, {"seed": "4"})
    found_samples, found = read_components(path)
    np.testing.assert_array_equal(found_samples, samples)
    assert tuple(found) == LAYERS
    for layer, components in found.items():
        expected = filter_image_components(model, x, layer, source=source)
        np.testing.assert_array_equal(components.points, expected.points)
        np.testing.assert_array_equal(components.ratio, expected.ratio)
        np.testing.assert_array_equal(components.dead, expected.dead)
        assert components.points.shape == ({"0": 4, "3": 5}[layer], 40, 2)
        with torch.no_grad():
            maps = model[: int(layer) + 1](x).relu().double().numpy()
        expected_activation = [[sample_map.mean() for sample_map in sample] for sample in maps]
        np.testing.assert_allclose(components.activation, expected_activation, rtol=1e-6)
    assert read_provenance(path)["seed"] == "4"
    assert read_provenance(path)["source"] == source


def test_dotted_layer_names_in_a_file(tmp_path, x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Flatten(), nn.Linear(108, 2)).eval()
    write_components(tmp_path / "c.h5", model, x[:8], ["0.0", "2"], np.arange(8), "feature_maps", {})
    _, found = read_components(tmp_path / "c.h5")
    assert [(name, layer.points.shape) for name, layer in found.items()] == [("0.0", (3, 8, 2)), ("2", (2, 8, 2))]


def test_components_that_are_missing_or_of_another_kind(tmp_path, model, x):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_components(tmp_path / "components.h5")
    with pytest.raises(LayerError, match="no layer 'x'"):
        write_components(tmp_path / "components.h5", model, x, ["0", "x"], np.arange(40), "feature_maps", {})
    assert not list(tmp_path.iterdir())
    write_moments(tmp_path / "scan.h5", [scan(model, x[:1], layers=["0"])], 1, {})
    with pytest.raises(ArtifactError, match="holds 'scan', not 'components'"):
        read_components(tmp_path / "scan.h5")


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_mean_activation_in_batches_leaves_the_model(model, x, batch_size):
    model.train()
    try:
        found = mean_activation(model, x, "3", batch_size)
        assert model.training
    finally:
        model.eval()
    with torch.no_grad():
        expected = model[:4](x).relu().double().mean((2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float64
    assert not any(module._forward_hooks for module in model.modules())


def test_mean_activation_of_a_linear_layer_is_its_activation(model, x):
    with torch.no_grad():
        expected = model(x).relu().double()
    np.testing.assert_allclose(mean_activation(model, x, "6"), expected, rtol=1e-6)


# Anomaly filters ----------------------------------------------------------------------------------------------------


def cloud(rng, far=0):
    """Points of one filter; the first `far` samples lie apart."""
    points = rng.standard_normal((100, 2))
    points[:far] += 60
    return points


@pytest.fixture
def components():
    rng = np.random.default_rng(0)
    activation = rng.random((100, 3))
    activation[0, 1] = 50  # the outlier of filter 1 drives it
    quiet = LayerComponents(
        np.stack([cloud(rng) for _ in range(2)]), np.zeros((2, 2)), np.zeros(2, bool), rng.random((100, 2))
    )
    loud = LayerComponents(
        np.stack([cloud(rng), cloud(rng, 1), cloud(rng, 1)]), np.zeros((3, 2)), np.zeros(3, bool), activation
    )
    return {"z": quiet, "a": loud}


def test_anomalies_of_all_layers_in_order_of_depth(components):
    samples = np.arange(100) * 10 + 5
    filters, outliers = network_anomalies(samples, components, seed=3)
    assert filters[["layer", "depth", "filter"]].to_numpy().tolist() == [
        ["z", 0, 0], ["z", 0, 1], ["a", 1, 0], ["a", 1, 1], ["a", 1, 2],
    ]  # fmt: skip
    assert filters["is_anomaly"].tolist() == [False, False, False, True, False]
    assert "outliers" not in filters
    for layer, found in components.items():
        expected = anomaly_points(found.points, found.activation, seed=3).drop(columns="outliers")
        own = filters[filters["layer"] == layer].drop(columns=["layer", "depth"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(own[list(expected)], expected)
        sweep = anomaly.outlier_sweep(mixtures(found.points, seed=3), found.activation).set_index(["share", "sign"])
        counts = {share: int(own[f"is_anomaly_{share:g}"].sum()) for share in anomaly.SHARES}
        assert counts == sweep.xs("is_anomaly", level="sign")["filters"].to_dict()
    apart = outliers[outliers["layer"] == "a"].to_numpy().tolist()
    assert ["a", 1, 5, True] in apart
    assert ["a", 2, 5, False] in apart  # an outlier, but it does not drive the filter
    counts = outliers.groupby(["layer", "filter"]).size()
    expected = filters[filters["outlier_count"] > 0].set_index(["layer", "filter"])["outlier_count"]
    assert counts.to_dict() == expected.to_dict()


def test_settings_of_the_anomaly_search_arrive(components, monkeypatch):
    fitted, judged = [], []

    def fit(points, *settings):
        fitted.append(settings)
        return mixtures(points)

    def judge(clustered, activations, *settings):
        judged.append(settings)
        return anomaly_signs(clustered, activations)

    monkeypatch.setattr(anomaly, "mixtures", fit)
    monkeypatch.setattr(anomaly, "anomaly_signs", judge)
    network_anomalies(np.arange(100), components, 7, k_rule="bic", outlier_share=0.1, ch_factor=5, activation_sd=1)
    assert fitted == [(7, "bic")] * 2  # once for all outlier shares
    assert judged == [(share, 5, 1) for share in (0.1, 0.005, 0.01, 0.02, 0.05)] * 2


def test_history_counts_the_signs_of_each_checkpoint(components):
    tables = {name: network_anomalies(np.arange(100), {name: components[name]})[0] for name in ("z", "a")}
    tables["a"].loc[0, ["unbalanced", "high_ch", "high_activation"]] = True, True, False
    found = anomaly.anomaly_history((name, epoch, tables[name]) for name, epoch in (("z", 3), ("a", 20)))
    columns = ["checkpoint", "epoch", "filters", "unbalanced", "high_ch", "high_activation", "is_anomaly"]
    assert list(found.columns) == columns
    assert found[["checkpoint", "epoch", "filters", "is_anomaly"]].to_numpy().tolist() == [
        ["z", 3, 2, 0], ["a", 20, 3, 1]
    ]  # fmt: skip
    for row in found.to_dict("records"):
        table = tables[row["checkpoint"]]
        assert row["unbalanced"] == sum(table["unbalanced"])
        assert row["high_ch"] == sum(table["high_ch"])
        assert row["high_activation"] == sum(table["high_activation"])
    assert found.loc[1, "unbalanced"] > found.loc[1, "high_activation"]


def test_a_table_without_outliers_keeps_its_columns_in_a_file(components, tmp_path):
    rng = np.random.default_rng(5)
    calm = components["z"]._replace(points=rng.standard_normal((2, 100, 2)))
    filters, outliers = network_anomalies(np.arange(100), {"z": calm}, k_rule="bic")
    assert not filters["unbalanced"].any()
    write_frame(tmp_path / "outliers.parquet", outliers, {})
    found = read_frame(tmp_path / "outliers.parquet")
    assert list(found.columns) == ["layer", "filter", "sample", "is_anomaly"]
    assert found.empty
    assert found[found["is_anomaly"]].empty
    assert found["sample"].dtype == np.int64


# Interpretable properties -------------------------------------------------------------------------------------------


def table_of(model, x, y, foreground, block=1, exact=False):
    moments = scan(model, x[:12], foreground, layers=["0", "3"], block=block)
    samples = moments.samples

    def scanned(asked):
        np.testing.assert_array_equal(asked, samples)
        return x[:12].numpy()[asked], None if foreground is None else foreground[asked]

    return filter_table(model, ((layer, moments.select(layer)) for layer in ("0", "3")), scanned, x[20:], y[20:], exact)


@pytest.mark.parametrize("masked", [False, True])
def test_properties_of_all_filters(model, x, y, masked):
    foreground = (x[:12].mean(1) > 0.5).numpy() if masked else None
    found = table_of(model, x, y, foreground)
    assert found["layer"].tolist() == ["0"] * 4 + ["3"] * 5
    assert found["depth"].tolist() == [0] * 4 + [1] * 5
    assert ("T_cor_background" in found) == masked
    for layer in ("0", "3"):
        own = found[found["layer"] == layer].reset_index(drop=True)
        expected = interpretable_properties(filter_images(model, x[:12], layer).detach(), x[:12], foreground)
        for column in expected:
            np.testing.assert_allclose(own[column], expected[column], rtol=1e-4, atol=1e-7, err_msg=column)
        with torch.no_grad():
            maps = model[: int(layer) + 1](x[:12]).relu().numpy()
        np.testing.assert_allclose(own["AVoU"], activation_value(maps), rtol=1e-5)
        np.testing.assert_allclose(own["SoU"], sensitivity(model, x[20:], y[20:], layer), rtol=1e-6)


def test_sensitivity_by_removal_on_request(model, x, y):
    found = table_of(model, x[:], y, None, exact=True)
    np.testing.assert_allclose(found["SoU"][:4], sensitivity(model, x[20:], y[20:], "0", exact=True))
    assert not np.allclose(found["SoU"], table_of(model, x, y, None)["SoU"], rtol=1e-4)


def test_a_block_keeps_the_mean_of_an_image(model, x, y):
    fine, coarse = table_of(model, x, y, None), table_of(model, x, y, None, block=2)
    np.testing.assert_allclose(coarse["T_m"], fine["T_m"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(coarse["AVoU"], fine["AVoU"], rtol=1e-5)
    assert (coarse["T_v"] < fine["T_v"]).all()  # of block means


def test_shards_on_disk_give_the_same_properties(model, x, y, tmp_path):
    paths = []
    for shard, positions in enumerate(np.array_split(np.arange(12), 3)):
        paths.append(tmp_path / f"shard{shard}.h5")
        parts = scan_samples(model, x[positions], None, ["0", "3"], 1, positions)
        write_moments(paths[-1], parts, len(positions), {})

    def scanned(samples):
        return x.numpy()[samples], None

    found = filter_table(model, read_layers(paths), scanned, x[20:], y[20:])
    pd.testing.assert_frame_equal(found, table_of(model, x, y, None), rtol=1e-5)


# Class averages -----------------------------------------------------------------------------------------------------


def test_all_kinds_of_averages(model, x, y):
    found = average_kinds(model, x, y, 3, rescale=False, extremes=2, steps=4, rate=0.3)
    simple = class_averages(x, y, 3, rescale=False)
    most, least = confidence_averages(model, x, y, 3, 2)
    expected = {"simple": simple, "most": most, "least": least, "ascended": ascended_averages(model, simple, 4, 0.3)}
    assert list(found) == list(expected)
    for kind, images in expected.items():
        assert torch.equal(found[kind], images)
    assert not torch.equal(found["ascended"], found["simple"])
    rescaled = average_kinds(model, x, y, 3, extremes=2, steps=1)
    assert torch.equal(rescaled["simple"], class_averages(x, y, 3, rescale=True))
    assert torch.equal(rescaled["most"], most)


def test_averages_of_a_class_without_images(model, x, y):
    with pytest.raises(DataError, match="no image of class 3"):
        average_kinds(model, x, y, 4)


def test_confidences_come_back_from_the_file(model, x, y, tmp_path):
    averages = average_kinds(model, x, y, 3, extremes=2, steps=2)
    matrices = {kind: confidences(model, images) for kind, images in averages.items()}
    write_averages(tmp_path / "averages.h5", averages, ["a", "b", "c"], {"seed": "1"}, matrices)
    found = read_confidences(tmp_path / "averages.h5")
    assert list(found) == list(matrices) == list(read_averages(tmp_path / "averages.h5"))
    for kind, matrix in matrices.items():
        np.testing.assert_array_equal(found[kind], matrix)
        np.testing.assert_allclose(found[kind].sum(1), 1)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_confidences(tmp_path / "nothing.h5")


# Similarity ---------------------------------------------------------------------------------------------------------


def test_the_values_that_rank_are_those_of_simple_averages_and_one_method(model, x, y):
    averages = average_kinds(model, x, y, 3, extremes=2, steps=1)
    table = similarities(model, averages, ["0", "3"])
    found = chosen_similarities(table, 2)
    assert len(found) == 3 * (4 + 5)
    assert set(found["average"]) == {"simple"}
    assert set(found["method"]) == {2}
    assert list(filter_similarity(found)["filter"]) == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert not np.allclose(found["similarity"], chosen_similarities(table, 1)["similarity"])


def test_mean_curve_of_known_values():
    rows = [("late", 2, 0, 0, 0.5), ("late", 2, 0, 1, 0.7), ("early", 0, 0, 0, 0.1), ("early", 0, 1, 0, -0.3),
            ("middle", 1, 0, 0, 0.9)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["layer", "depth", "class", "filter", "similarity"])
    found = mean_curve(frame)
    assert found == pytest.approx([-0.1, 0.9, 0.6])
    assert json.loads(json.dumps(found)) == found  # plain numbers
    assert int(np.argmax(found)) + 1 == 2  # the convolution where it peaks
