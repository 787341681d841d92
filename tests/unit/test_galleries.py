"""nnscan.galleries: the pictures are those of the neurons and filters that the tables name."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from nnscan.backprop import guided_backpropagation
from nnscan.components import LayerComponents
from nnscan.data import Split, build_dataset, stratified_sample
from nnscan.errors import LayerError
from nnscan.explainers import EXPLAINERS
from nnscan.explanations import Scanned
from nnscan.figures import anomaly, explanations, learning_images, strongest_filters
from nnscan.galleries import (
    anomaly_clouds,
    contests,
    explanation_columns,
    learning_process,
    map_pairs,
    quantity_portraits,
    similar_neurons,
    strongest_filter_images,
)
from nnscan.quantity import feature_quantity, neuron_quantity
from nnscan.scanner import filter_images, scan
from nnscan.scanner import learning_images as images_of_neurons
from nnscan.similarities import similarities

LAYERS = ("0", "3")


@pytest.fixture(autouse=True)
def _one_thread_and_no_open_figures(one_thread):
    yield
    plt.close("all")


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


def ranked(filters=(4, 5), **columns):
    """A table of properties in any order, in which the first filter of each layer leads every ranking but some."""
    rows = [
        (layer, depth, k) for depth, (layer, count) in enumerate(zip("03", filters, strict=True)) for k in range(count)
    ]
    table = pd.DataFrame(rows, columns=["layer", "depth", "filter"])
    for name in ("T_m", "T_v", "T_c", "T_cor"):
        table[name] = -table["filter"] - 1.0
        for layer, leader in columns.get(name, {}).items():
            table.loc[(table["layer"] == layer) & (table["filter"] == leader), name] = 0.5
    return table.sample(frac=1, random_state=3)


@pytest.mark.parametrize(("layer", "name"), [("last", "3"), ("3", "3"), ("0", "0")])
def test_the_strongest_filters_are_those_of_the_table_with_their_images(model, dataset, layer, name):
    properties = ranked((5, 4), T_v={"3": 2, "0": 4}, T_cor={"3": 3, "0": 1})
    found, filters, samples, images = strongest_filter_images(model, dataset, properties, layer, count=2)
    assert found == name
    leaders = {"3": (0, 2, 0, 3), "0": (0, 4, 0, 1)}[name]
    assert filters == dict(zip(("T_m", "T_v", "T_c", "T_cor"), leaders, strict=True))
    chosen = stratified_sample(dataset.splits["test"].labels, 2, seed=0)
    assert set(dataset.splits["test"].labels[chosen]) == {0, 1}
    np.testing.assert_allclose(samples, dataset.splits["test"].images[chosen] / 255, atol=1e-6)
    every = filter_images(model, torch.from_numpy(dataset.inputs("test", chosen)), name).sum(2).numpy()
    for ranking, index in filters.items():
        np.testing.assert_allclose(images[ranking], every[:, index], rtol=1e-5, atol=1e-7)
    assert any(image.any() for image in images.values())
    strongest_filters(found, filters, samples[:, :1], images)


def test_strongest_filters_of_a_layer_that_was_not_scanned(model, dataset):
    with pytest.raises(LayerError, match=r"experiments\.layer '6' was not scanned"):
        strongest_filter_images(model, dataset, ranked(), "6")


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


def test_portraits_of_class_scores_have_no_gate(dataset):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    with torch.no_grad():
        model[3].bias.fill_(-100.0)
    x = torch.from_numpy(dataset.inputs("test"))
    assert (model(x) < 0).all()
    table = neuron_quantity([("3", scan(model, x, dataset.splits["test"].foreground, layers=["3"]).select("3"))])
    portraits = quantity_portraits(model, dataset, table, count=2)
    assert len(portraits) == 4
    assert all(np.abs(portrait.image).max() > 0 for portrait in portraits)


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


def derivative(model, dataset, sample, depth, neuron):
    """Return x * d a / d x (C, H, W) of a neuron behind the first modules of a sequential network, and its layer."""
    x = torch.from_numpy(dataset.inputs("test"))[sample].clone().requires_grad_(True)
    values = model[:depth](x[None])[0].flatten()
    (gradient,) = torch.autograd.grad(values[neuron], x)
    return (x * gradient).detach().numpy(), values.detach()


def test_the_process_shows_each_layer_s_most_activated_neuron(model, dataset):
    found = learning_process("mine", model, dataset, count=2)
    chosen = stratified_sample(dataset.splits["test"].labels, 2, seed=0)
    assert set(dataset.splits["test"].labels[chosen]) == {0, 1}
    assert (found.title, list(found.layers)) == ("mine", ["conv1", "conv2", "fc1"])
    for sample, shown, images in zip(chosen, found.samples, found.images, strict=True):
        np.testing.assert_allclose(shown, dataset.splits["test"].images[sample] / 255, atol=1e-6)
        for layer, image in zip((0, 3, 6), images, strict=True):
            strongest = int(derivative(model, dataset, sample, layer + 1, 0)[1].argmax())
            expected, values = derivative(model, dataset, sample, layer + 1, strongest)
            np.testing.assert_allclose(image, expected.sum(0) * (values[strongest].item() > 0), rtol=1e-3, atol=1e-6)


def test_of_a_deep_network_layers_all_over_the_depth_are_shown(dataset):
    torch.manual_seed(0)
    layers = [module for _ in range(9) for module in (nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())]
    deep = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 2)).eval()
    found = learning_process("deep", deep, dataset, count=1, most=4)
    assert list(found.layers) == ["conv1", "conv4", "conv7", "fc1"]
    assert len(found.images[0]) == 4


def test_contests_show_the_winner_first(model, dataset):
    found = contests(model, dataset, count=2, outputs=5)  # the network has two classes
    for sample, contest in zip(stratified_sample(dataset.splits["test"].labels, 2, seed=0), found, strict=True):
        x = dataset.inputs("test", np.array([sample]))[0]
        scores = derivative(model, dataset, sample, 7, 0)[1]
        for title, image, place in zip(contest.titles, contest.images, scores.argsort(descending=True), strict=True):
            expected, _ = derivative(model, dataset, sample, 7, int(place))
            np.testing.assert_allclose(image, expected.sum(0), rtol=1e-3, atol=1e-6)
            far = np.linalg.norm(expected / np.linalg.norm(expected) - x / np.linalg.norm(x))
            assert title == f"{dataset.classes[int(place)]}: {far:.2f}"
        np.testing.assert_allclose(contest.sample, dataset.splits["test"].images[sample] / 255, atol=1e-6)


def test_pairs_of_the_most_activated_filters(model, dataset):
    x = torch.from_numpy(dataset.inputs("test"))
    moments = scan(model, x[3:5], layers=["0", "3", "6"])
    moments.samples[:] = [3, 4]
    sample, found = map_pairs([(layer, moments.select(layer)) for layer in ("0", "3", "6")], dataset, count=2)
    np.testing.assert_allclose(sample, dataset.splits["test"].images[3] / 255, atol=1e-6)
    assert [pair.layer for pair in found] == ["0", "0", "3", "3"]  # the class scores have no places
    with torch.no_grad():
        for layer in LAYERS:
            maps = model[: int(layer) + 1](x[3:4])[0].relu()
            order = maps.mean((1, 2)).argsort(descending=True)[:2].tolist()
            own = [pair for pair in found if pair.layer == layer]
            assert [pair.title for pair in own] == [f"filter {place}" for place in order]
            for pair, place in zip(own, order, strict=True):
                np.testing.assert_allclose(pair.feature_map, maps[place], rtol=1e-5)
                np.testing.assert_array_equal(pair.image, moments.absolute_images[layer][0, place])


@pytest.fixture(scope="module")
def scanned(model, dataset):
    def of(masked):
        x = torch.from_numpy(dataset.inputs("test"))
        moments = scan(model, x, dataset.splits["test"].foreground if masked else None, ["3"])
        shape = moments.layers["3"]["activation"].shape
        quantities = feature_quantity(moments)["fq"].to_numpy().reshape(shape)
        return Scanned("3", np.arange(8), quantities, moments.absolute_images["3"], 1)

    return of


def test_explanations_are_those_of_the_networks_answers(model, dataset, scanned):
    found = scanned(masked=True)
    samples, titles, columns = explanation_columns(model, dataset, found, count=3)
    chosen = stratified_sample(dataset.splits["test"].labels, 3, seed=0)
    x = torch.from_numpy(dataset.inputs("test", chosen))
    answers = model(x).argmax(1).tolist()
    np.testing.assert_allclose(samples, dataset.splits["test"].images[chosen] / 255, atol=1e-6)
    assert list(columns) == ["NNS", "FQ", "TIP", *EXPLAINERS]
    assert columns["CAM"].maps is None
    assert columns["CAM"].reason.startswith("CAM is defined for networks in which only global average pooling")
    for name in ("Grad-CAM", "integrated gradients", "deconvolution"):
        np.testing.assert_allclose(columns[name].maps, EXPLAINERS[name](model, x, answers).numpy(), atol=1e-6)
    learned = [images_of_neurons(model, one, "3").sum(1).numpy() for one in x]
    np.testing.assert_allclose(columns["NNS"].maps, [np.abs(one).sum(0) for one in learned], rtol=1e-3, atol=1e-5)
    weighted = [
        (np.abs(one) * own.reshape(-1, 1, 1)).sum(0) for one, own in zip(learned, found.quantities[chosen], strict=True)
    ]
    np.testing.assert_allclose(columns["FQ"].maps, weighted, rtol=1e-3, atol=1e-6)
    for title, label, answer in zip(titles, dataset.splits["test"].labels[chosen], answers, strict=True):
        assert title == ("ab"[label] if label == answer else f"{'ab'[label]}, taken\nfor {'ab'[answer]}")
    explanations(samples[:, :1], titles, list(columns.values()), "Maps")


def test_explanations_without_masks_say_what_is_missing(model, dataset, scanned):
    _, _, columns = explanation_columns(model, dataset, scanned(masked=False), count=20)
    assert columns["FQ"].maps is None
    assert "foreground masks" in columns["FQ"].reason
    assert len(columns["NNS"].maps) == 8


def test_explanations_of_a_smooth_network(dataset, scanned):
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 2))
    x = torch.from_numpy(dataset.inputs("test"))
    moments = scan(smooth, x, dataset.splits["test"].foreground, ["2"])
    fq = feature_quantity(moments)["fq"].to_numpy().reshape(moments.layers["2"]["activation"].shape)
    _, _, columns = explanation_columns(
        smooth, dataset, Scanned("2", np.arange(8), fq, moments.absolute_images["2"], 1)
    )
    refused = {name for name, column in columns.items() if column.maps is None}
    assert refused == {"CAM", "deconvolution", "guided backpropagation"}
    assert "ReLU as their only activation" in columns["deconvolution"].reason


def test_similar_neurons_of_each_layer(model, dataset):
    average = torch.from_numpy(dataset.inputs("test"))[:2]
    table = similarities(model, {"most": average}, ["0", "3"])
    own = table[(table["class"] == 1) & (table["method"] == 2)].sample(frac=1, random_state=0)
    neurons, visualisation = similar_neurons(model, average[1], 1, own, count=2)
    assert visualisation.shape == (2, 8, 6)
    for label, layer in (("conv1", "0"), ("conv2", "3")):
        images = guided_backpropagation(model, average[1:2], layer)[0].numpy()
        part = own[own["layer"] == layer].set_index("filter")["similarity"]
        active = part[[bool(np.abs(images[number]).max() > 0) for number in part.index]].sort_values()
        size = min(2, len(active) // 2)
        for most, expected in ((False, active[:size]), (True, active[::-1][:size])):
            found = [neuron for neuron in neurons if (neuron.layer, neuron.most) == (label, most)]
            titles = [f"filter {number}\n{value:.3f}" for number, value in expected.items()]
            assert [neuron.title for neuron in found] == titles
            for neuron, number in zip(found, expected.index, strict=True):
                np.testing.assert_array_equal(neuron.image, images[number])


def test_neurons_that_are_not_active_are_left_out(model, dataset):
    silent = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    with torch.no_grad():
        silent[0].bias[:] = torch.tensor([-100.0, 100, -100, 100, -100, 100])
    average = torch.from_numpy(dataset.inputs("test"))[:2]
    own = similarities(silent, {"most": average}, ["0"]).query("`class` == 0 and method == 1")
    neurons, _ = similar_neurons(silent, average[0], 0, own)
    assert sorted(int(neuron.title.split()[1]) % 2 for neuron in neurons) == [1, 1]  # half of the three that are active
    with torch.no_grad():
        silent[0].bias[:] = -100
    assert similar_neurons(silent, average[0], 0, own)[0] == []
