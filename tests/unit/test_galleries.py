"""nnscan.galleries: the pictures are those of the neurons and filters that the tables name."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nnscan.components import LayerComponents
from nnscan.data import Split, build_dataset
from nnscan.figures import anomaly, learning_images
from nnscan.galleries import anomaly_clouds, quantity_portraits
from nnscan.quantity import neuron_quantity
from nnscan.scanner import scan

LAYERS = ("0", "3")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "validation", "test"):
        images = rng.integers(0, 255, (8, 2, 8, 6), dtype=np.uint8)
        splits[split] = Split(images, np.arange(8) % 2, images.mean(1) > 100)
    return build_dataset("noise", ("a", "b"), splits, "standard")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, (2, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 2),
    ).eval()


def quantities(model, dataset, masked=True):
    x = torch.from_numpy(dataset.inputs("test"))
    moments = scan(model, x, dataset.splits["test"].foreground if masked else None)
    return neuron_quantity((layer, moments.select(layer)) for layer in LAYERS)


def learning_image(model, dataset, layer, neuron):
    x = torch.from_numpy(dataset.inputs("test"))[int(neuron["sample"])].clone().requires_grad_(True)
    value = model[: int(layer) + 1](x[None])[0, neuron["filter"], neuron["row"], neuron["column"]]
    (gradient,) = torch.autograd.grad(value, x)
    return (x * gradient).sum(0).detach().numpy()


@pytest.mark.parametrize(("masked", "name", "column"), [(True, "FQ", "fq"), (False, "SSIM", "ssim")])
def test_portraits_are_the_learning_images_of_the_extreme_neurons(model, dataset, masked, name, column):
    table = quantities(model, dataset, masked)
    portraits = quantity_portraits(model, dataset, table.sample(frac=1, random_state=0), count=3)
    for layer in LAYERS:
        own = table[(table["layer"] == layer) & (table[column] > 0)].sort_values(column, ascending=False)
        for strongest, order in ((True, own), (False, own[::-1])):
            expected = order.drop_duplicates("filter")[:3].to_dict("records")
            found = [p for p in portraits if (p.layer, p.strongest) == (layer, strongest)]
            assert len(found) == len(expected) == 3
            for portrait, neuron in zip(found, expected, strict=True):
                assert portrait.title == f"{name} {neuron[column]:.3g}\nfilter {neuron['filter']}"
                image = learning_image(model, dataset, layer, neuron)
                assert np.abs(image).max() > 0
                np.testing.assert_allclose(portrait.image, image, rtol=1e-3, atol=1e-6)
                raw = dataset.splits["test"].images[neuron["sample"]] / 255
                np.testing.assert_allclose(portrait.sample, raw, atol=1e-6)
    assert [p.layer for p in portraits] == ["0"] * 6 + ["3"] * 6
    learning_images([p for p in portraits if p.sample.shape[0] != 2])


def test_neurons_without_a_positive_quantity_are_not_shown(model, dataset):
    table = quantities(model, dataset)
    table.loc[table["layer"] == "0", "fq"] = 0.0
    assert {portrait.layer for portrait in quantity_portraits(model, dataset, table)} == {"3"}
    table["fq"] = 0.0
    assert quantity_portraits(model, dataset, table) == []


def test_neurons_of_a_linear_layer(dataset):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    x = torch.from_numpy(dataset.inputs("test"))
    moments = scan(model, x, dataset.splits["test"].foreground, layers=["1"])
    table = neuron_quantity([("1", moments.select("1"))])
    portraits = quantity_portraits(model, dataset, table, count=2)
    assert len(portraits) == 4
    best = table.loc[table["fq"].idxmax()]
    image = (x[int(best["sample"])].flatten() * model[1].weight[best["filter"]]).detach().reshape(2, 8, 6).sum(0)
    np.testing.assert_allclose(portraits[0].image, image, rtol=1e-3, atol=1e-6)


@pytest.fixture
def components():
    rng = np.random.default_rng(1)
    return {
        layer: LayerComponents(rng.random((3, 6, 2)), rng.random((3, 2)), np.zeros(3, bool), rng.random((6, 3)))
        for layer in LAYERS
    }


def filters(rows):
    return pd.DataFrame(rows, columns=["layer", "filter", "k", "ch", "unbalanced", "is_anomaly"])


def test_clouds_of_anomalies_first(dataset, components):
    samples = np.array([7, 0, 5, 2, 1, 4])  # positions in the train split
    table = filters([
        ("0", 0, 2, 900.0, True, False), ("0", 1, 2, 30.0, True, True), ("0", 2, 1, np.nan, False, False),
        ("3", 0, 3, 5000.0, False, False), ("3", 1, 2, 40.0, True, True), ("3", 2, 5, 20.0, True, False),
    ])  # fmt: skip
    outliers = pd.DataFrame(
        [("0", 1, 5, True), ("3", 1, 0, True), ("3", 1, 4, True), ("3", 1, 2, True), ("3", 1, 7, True),
         ("0", 0, 1, False), ("3", 2, 2, False)],
        columns=["layer", "filter", "sample", "is_anomaly"],
    )  # fmt: skip
    found = anomaly_clouds(dataset, components, samples, table, outliers, count=5)
    titles = [cloud.title for cloud in found]
    assert titles == [
        "3 filter 1: anomaly\nCH 40, K = 2, outliers 4",
        "0 filter 1: anomaly\nCH 30, K = 2, outliers 1",
        "0 filter 0: no anomaly\nCH 900, K = 2, outliers 1",
        "3 filter 2: no anomaly\nCH 20, K = 5, outliers 1",
        "3 filter 0: no anomaly\nCH 5e+03, K = 3, outliers 0",
    ]
    np.testing.assert_array_equal(found[0].points, components["3"].points[1])
    np.testing.assert_array_equal(samples[found[0].outliers], [7, 0, 2, 4])
    assert found[1].outliers.tolist() == [2]
    assert [len(cloud.samples) for cloud in found] == [3, 1, 1, 1, 0]
    raw = dataset.splits["train"].images / 255
    np.testing.assert_allclose(found[0].samples, raw[[0, 4, 2]], atol=1e-6)
    np.testing.assert_allclose(found[1].samples, raw[[5]], atol=1e-6)
    assert anomaly_clouds(dataset, components, samples, table, outliers, count=2)[1].title == titles[1]


def test_clouds_without_any_outlier_can_be_drawn(dataset, components):
    table = filters([("0", 0, 2, 9.0, False, False)])
    nobody = pd.DataFrame(columns=["layer", "filter", "sample", "is_anomaly"])
    found = anomaly_clouds(dataset, components, np.arange(6), table, nobody)
    assert len(found) == 1
    assert len(found[0].outliers) == len(found[0].samples) == 0
    shares = pd.DataFrame({"checkpoint": ["well_trained"], "seed": [0], "is_anomaly": [False]})
    assert len(anomaly(shares, found).axes) == 2
    assert anomaly_clouds(dataset, components, np.arange(6), filters([("0", 0, 1, np.nan, False, False)]), nobody) == []
