"""Tables and statistics of the systems beside the theses, on small run folders whose numbers are known by hand."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from nnscan import systems
from nnscan.contents import TABLES
from nnscan.dimension import layer_dimensions, representation_layers
from nnscan.dissection import detector_counts
from nnscan.models import load_model
from nnscan.rendering import read_csv, readable, render
from nnscan.tables import QUANTITIES, NotAsked, UndefinedStatistic, read_published, reduced
from nnscan.training import Protocol, kept_epochs
from result_files import (
    fill,
    make_runs,
    pick,
    put,
    put_detectors,
    put_dimensions,
    put_prototypes,
    put_rotations,
    put_shuffled_accuracy,
    put_test_accuracy,
)


def put_history(run, losses):
    rows = [{"phase": "regular", "epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    put(run, systems.HISTORY, rows)


def detected(run, checkpoint, *layers):
    """Write the unique detectors (colors, objects) of each layer."""
    counts = {f"l{depth}": {"color": (1, a, a), "object": (1, b, b)} for depth, (a, b) in enumerate(layers)}
    put_detectors(run, checkpoint, counts)


@pytest.fixture
def run(tmp_path):
    return make_runs(tmp_path, "alexnet", seeds=(0,), dataset="camvid")[0]


# ----------------------------------------------------------------------------------------- published values


DETECTORS = {  # unique detectors of all categories, objects and colors, detector units: methods.md 5.2
    ("AlexNet", "untrained", "ImageNet"): (2, 0, 0, 9),
    ("AlexNet", "well_trained", "ImageNet"): (61, 21, 4, 97),
    ("AlexNet", "well_trained", "Places205"): (79, 36, 2, 107),
    ("AlexNet", "well_trained", "Places365"): (91, 40, 2, 118),
    ("VGG-16", "well_trained", "ImageNet"): (119, 49, 1, 319),
    ("VGG-16", "well_trained", "Places205"): (209, 78, 1, 317),
    ("VGG-16", "well_trained", "Places365"): (203, 74, 2, 296),
}


def test_published_detectors(published):
    frame = read_published(published, "dissection_detectors")
    found = {
        key: tuple(
            pick(part, category=category, quantity=quantity)["value"]
            for category, quantity in (
                *((category, "unique detectors") for category in ("all", "object", "color")),
                ("all", "detector units"),
            )
        )
        for key, part in frame.groupby(["model", "checkpoint", "data"])
    }
    assert found == DETECTORS
    top = frame[frame["quantity"] == "unique detectors, top labels only"]
    assert dict(zip(top["data"], top["value"], strict=True)) == {"ImageNet": 50, "Places205": 60, "Places365": 72}
    assert set(top["model"]) == {"AlexNet"}
    assert len(frame) == 4 * len(DETECTORS) + 3
    # the layer is the last convolution
    assert frame.groupby("model")["position"].unique().map(list).to_dict() == {"AlexNet": ["5"], "VGG-16": ["13"]}


def test_published_dimensions(published):
    frame = read_published(published, "dimension_layers")
    assert frame.groupby("model")["value"].apply(list).to_dict() == {  # figure 3
        "AlexNet": [30.2, 66.3, 66.4, 37.2, 26.1, 21.5, 16.8],
        "VGG-16": [31.7, 78.2, 104, 119.5, 74.5, 33.3, 26.9, 21.1, 15.7],
        "ResNet-18": [31.4, 50.2, 104.2, 102.1, 65.5, 39.0, 26.7, 21.2],
    }
    assert set(frame["checkpoint"]) == {"well_trained"}
    frame = read_published(published, "dimension_error")
    last = frame[frame["quantity"] == "dimension of the last hidden layer"]
    assert dict(zip(last["model"], last["value"], strict=True)) == {  # figure 4
        "AlexNet": 25.2, "VGG-11": 18.4, "VGG-16": 15.9, "ResNet-18": 18.6,
    }  # fmt: skip
    assert pick(frame, model="AlexNet", quantity="test error, top 5")["value"] == 20.9
    assert len(frame) == 5


def test_published_rotation_and_prototypes(published):
    row = pick(read_published(published, "dissection_rotation"))
    assert (row["model"], row["data"], row["power"], row["value"]) == ("AlexNet", "Places205", "1", -80)
    frame = read_published(published, "prototypes_accuracy")
    assert set(frame["model"]) == {"VGG-16"}
    values = dict(zip(frame["quantity"], frame["value"], strict=True))
    assert values == {"accuracy of the backbone": 74.6, "accuracy of the ProtoPNet": 76.1, "accuracy gained": 1.5}


@pytest.mark.parametrize("table", sorted(systems.TABLES))
def test_published_units_are_those_of_the_quantities(table, published):
    frame = read_published(published, table)
    assert [QUANTITIES[quantity][0] for quantity in frame["quantity"]] == frame["unit"].tolist()
    assert set(frame["table"]) == {table}


# ----------------------------------------------------------------------------------------- Network Dissection


def test_table_of_detectors(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1), dataset="camvid")
    for one in runs:
        layers = {f"l{depth}": {"color": (2, 3, 4), "object": (1, 2, 2)} for depth in range(4)}
        layers["l4"] = {"color": (1, 2, 3), "object": (4, 6 + 2 * one.seed, 7)}
        put_detectors(one, "well_trained", layers)
        put_detectors(one, "untrained", {**layers, "l4": {"color": (0, 0, 0), "object": (0, 0, 0)}})
    frame = fill("dissection_detectors", runs, published)
    last = {"checkpoint": "well_trained", "position": 5}
    row = pick(frame, **last, category="all", quantity="unique detectors")
    assert (row["layer"], row["ours"], row["spread"], row["seeds"]) == ("l4", 9, pytest.approx(math.sqrt(2)), 2)
    assert [row[f"published {data}"] for data in ("ImageNet", "Places205", "Places365")] == [61, 79, 91]
    row = pick(frame, **last, category="all", quantity="unique detectors, top labels only")
    assert (row["ours"], row["published Places365"]) == (5, 72)
    row = pick(frame, **last, category="all", quantity="detector units")
    assert (row["ours"], row["published ImageNet"]) == (10, 97)
    assert pick(frame, **last, category="all", quantity="share of units")["ours"] == 50
    assert pick(frame, **last, category="object", quantity="unique detectors")["published ImageNet"] == 21
    first = pick(frame, **{**last, "position": 1}, category="color", quantity="unique detectors")
    assert (first["ours"], math.isnan(first["published ImageNet"])) == (3, True)
    row = pick(frame, checkpoint="untrained", position=5, category="all", quantity="unique detectors")
    assert (row["ours"], row["published ImageNet"]) == (0, 2)
    assert frame["checkpoint"].drop_duplicates().tolist() == ["untrained", "third1", "third2", "well_trained"]
    missing = frame[frame["quantity"] == ""]
    assert missing["note"].tolist() == [
        f"seeds 0, 1: not dissected: metrics/{name}/detectors.parquet is missing" for name in ("third1", "third2")
    ]
    view = readable(frame, TABLES["dissection_detectors"])
    assert "5 · l4" in view.frame["layer"].tolist()


def test_detectors_as_dissection_counts_them():
    units = pd.DataFrame(
        [
            ("red", "color", 0.2, "red", 0.2, "car", 0.05),
            ("red", "color", 0.1, "red", 0.1, "tree", 0.03),
            ("car", "object", 0.06, "blue", 0.05, "car", 0.06),
            ("sky", "object", 0.02, "red", 0.01, "sky", 0.02),
        ],
        columns=["label", "category", "iou", "color_label", "color_iou", "object_label", "object_iou"],
    ).assign(layer="a", depth=0)
    rows = systems.detector_numbers(detector_counts(units).assign(of=len(units)))
    found = {row["quantity"]: row["value"] for row in rows if row["category"] == "all"}
    assert found == {
        "unique detectors": 3,  # red, blue and car
        "unique detectors, top labels only": 2,  # red and car
        "detector units": 3,
        "share of units": 75,
    }


def test_a_layer_of_the_source_that_the_network_lacks_stands_alone(run, published):
    detected(run, "well_trained", (3, 1))
    frame = fill("dissection_detectors", [run], published)
    row = pick(frame, checkpoint="well_trained", position=5, category="all", quantity="unique detectors")
    assert (row["published ImageNet"], row["seeds"]) == (61, 0)
    assert row["note"] == "the network has no such layer, or the labels no such category"


def test_statistics_of_detectors(run):
    detected(run, "untrained", (0, 0), (1, 1))
    detected(run, "third1", (0, 0), (1, 2))
    detected(run, "third2", (0, 0), (2, 4))
    detected(run, "well_trained", (3, 1), (2, 3))
    put_history(run, [5, 4, 3, 2, 1, 2])  # third1 after 2 epochs, third2 after 4, the lowest loss after 5
    assert systems.detectors_over_untrained(run) == 5 - 2
    assert systems.detectors_over_training(run) == pytest.approx(0.8)  # 2, 3, 6, 5
    assert systems.color_share_lost(run) == pytest.approx(3 / 4 - 2 / 5)
    with pytest.raises(UndefinedStatistic, match="nothing but color and object is labelled: one share follows"):
        systems.object_share_gained(run)
    layers = {"a": {"color": (1, 3, 3), "object": (1, 1, 1)}, "b": {"color": (1, 2, 2), "object": (1, 3, 3)}}
    put_detectors(run, "well_trained", {name: {**own, "texture": (1, 1, 1)} for name, own in layers.items()})
    assert systems.color_share_lost(run) == pytest.approx(3 / 5 - 2 / 6)
    assert systems.object_share_gained(run) == pytest.approx(3 / 6 - 1 / 5)


def test_the_best_checkpoint_may_come_before_a_third(run):
    for checkpoint, count in {"untrained": 1, "well_trained": 2, "third1": 3, "third2": 4}.items():
        detected(run, checkpoint, (count, 0))
    put_history(run, [1, 2, 3, 4, 5, 6])
    assert systems.detectors_over_training(run) == pytest.approx(1)
    put_history(run, [2, 3, 3, 1, 5, 6])  # in the same epoch as third2
    assert systems.detectors_over_training(run) == pytest.approx(3 / math.sqrt(5 * 4.5))


@pytest.mark.parametrize("epochs", [3, 4, 5, 30, 200])
def test_epochs_of_the_thirds_are_those_of_training(epochs, run):
    put_history(run, range(epochs, 0, -1))
    found = {row["checkpoint"]: row["value"] for row in reduced(run, systems.HISTORY, systems.epochs_trained)}
    kept = kept_epochs(Protocol(epochs=epochs), "regular")
    assert found == {"untrained": 0, "third1": kept["third1"], "third2": kept["third2"], "well_trained": epochs}


def test_detectors_that_tell_nothing(run):
    for checkpoint in systems.TRAINING:
        detected(run, checkpoint, (0, 0), (2, 2))
    put_history(run, [3, 2, 1])
    with pytest.raises(UndefinedStatistic, match="every checkpoint has as many unique detectors"):
        systems.detectors_over_training(run)
    with pytest.raises(UndefinedStatistic, match="the first or the last layer detects nothing"):
        systems.color_share_lost(run)
    detected(run, "well_trained", (2, 2))
    with pytest.raises(UndefinedStatistic, match="one layer only"):
        systems.color_share_lost(run)
    put_detectors(run, "well_trained", {"a": {"object": (1, 1, 1)}, "b": {"object": (1, 1, 1)}})
    with pytest.raises(UndefinedStatistic, match="no value for color"):
        systems.color_share_lost(run)
    (run.folder / systems.detectors_of("untrained")).unlink()
    with pytest.raises(UndefinedStatistic, match=r"metrics/untrained/detectors\.parquet is missing"):
        systems.detectors_over_untrained(run)


def test_table_of_rotations(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1), dataset="camvid")
    put_rotations(runs[0], {0.0: [(4, 6)], 0.2: [(4, 4), (2, 6)], 1.0: [(1, 0), (2, 1)]})
    put_rotations(runs[1], {0.0: [(0, 0)], 0.2: [(0, 0), (0, 0)], 1.0: [(1, 0), (0, 0)]})
    frame = fill("dissection_rotation", runs, published)
    assert pick(frame, power="0", quantity="unique detectors")["ours"] == 5
    assert pick(frame, power="0.2", quantity="unique detectors")["ours"] == 4
    row = pick(frame, power="1", quantity="change of unique detectors")
    assert (row["ours"], row["published Places205"], row["seeds"]) == (pytest.approx(-80), -80, 1)
    assert row["note"] == "seed 1: there is no detector without rotation"
    row = pick(frame, power="1", quantity="change of the outputs")
    assert (row["ours"], row["unit"]) == (pytest.approx(1), "ppm")
    assert frame[frame["quantity"] == "change of unique detectors"]["power"].tolist() == ["0", "0.2", "1"]


def test_statistics_of_rotations(run):
    put_rotations(run, {0.0: [(4, 6)], 0.2: [(4, 4), (4, 6)], 0.6: [(5, 6), (4, 5)], 1.0: [(1, 0), (2, 1)]})
    assert systems.detectors_lost_by_rotation(run) == 10 - 2
    assert systems.rotation_trend(run) == pytest.approx(-3 / math.sqrt(5 * 4.5))  # 10, 9, 10, 2
    put_rotations(run, {0.0: [(1, 1)], 0.2: [(1, 1)], 1.0: [(0, 2)]})
    assert systems.detectors_lost_by_rotation(run) == 0
    with pytest.raises(UndefinedStatistic, match="every rotation has as many unique detectors"):
        systems.rotation_trend(run)
    put_rotations(run, {0.0: [(0, 0)], 1.0: [(1, 0), (2, 0)]})  # its own basis detects nothing, and that counts, too
    assert systems.detectors_lost_by_rotation(run) == -1.5
    assert systems.rotation_trend(run) == pytest.approx(1)
    put_rotations(run, {0.0: [(0, 0)], 1.0: [(0, 0)]})
    for statistic in (systems.detectors_lost_by_rotation, systems.rotation_trend):
        with pytest.raises(UndefinedStatistic, match="there is no detector in any basis"):
            statistic(run)


# ----------------------------------------------------------------------------------------- intrinsic dimension


def beside(frame, model):
    """Return the published value beside each of our places of a model, by layer."""
    own = frame[(frame["model"] == model) & (frame["quantity"] == "intrinsic dimension") & (frame["seeds"] > 0)]
    return own.set_index("layer")["published ImageNet"].dropna().to_dict()


@pytest.mark.parametrize(
    ("model", "source", "size", "expected", "alone"),
    [
        ("alexnet", "alexnet", 32, {"input": 30.2, "features.2": 66.3, "features.5": 66.4, "features.12": 37.2,
                                    "head.1": 21.5, "head.3": 16.8}, {"fc6": 26.1}),
        ("vgg16", "vgg16", 32, {"input": 31.7, "features.4": 78.2, "features.9": 104, "features.16": 119.5,
                                "features.23": 74.5, "pool": 33.3, "head.1": 21.1, "head.3": 15.7}, {"fc6": 26.9}),
        ("resnet18", "resnet18", 32, {"input": 31.4, "features.4": 104.2, "features.6": 102.1, "features.8": 65.5,
                                      "features.10": 39.0, "pool": 26.7, "head.1": 21.2}, {"maxpool": 50.2}),
        ("resnet18", "torchvision:resnet18", 64, {"input": 31.4, "layer1.1": 104.2, "layer2.1": 102.1, "layer3.1": 65.5,
                                                  "layer4.1": 39.0, "avgpool": 26.7, "fc": 21.2}, {"maxpool": 50.2}),
    ],
)  # fmt: skip
def test_published_dimensions_stand_beside_the_same_places(tmp_path, published, model, source, size, expected, alone):
    options = {} if ":" in source else {"size": size}
    network = load_model(source, factory_options=options)
    places = representation_layers(network, torch.zeros(1, 3, size, size))
    runs = make_runs(tmp_path, model, seeds=(0,), dataset="cifar10")
    rows = [
        {"layer": place.layer, "depth": place.depth, "relative_depth": place.relative_depth, "dimension": 5.0,
         "pca_dimension": 9, "plateau": 5.0, "fit": 1.0, "dropped": 0, "warning": "", "width": 9}
        for place in places
    ]  # fmt: skip
    put(runs[0], systems.dimension_of("well_trained"), rows)
    frame = fill("dimension_layers", runs, published)
    assert beside(frame, model) == expected
    unmatched = frame[(frame["seeds"] == 0) & (frame["quantity"] != "")]
    assert dict(zip(unmatched["layer"], unmatched["published ImageNet"], strict=True)) == alone
    assert set(unmatched["note"]) == {"the network has no such place"}
    alone_last = readable(frame, TABLES["dimension_layers"]).frame["layer"].tolist()[-1]
    assert [alone_last] == list(alone)
    assert frame["published ImageNet"].notna().sum() == len(expected) + len(alone)


def test_table_of_dimensions(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1), dataset="camvid")
    for one in runs:
        put_dimensions(one, "well_trained", [(12.0, 40), (8.0 + 2 * one.seed, 20), (3.0, 6)])
    put_dimensions(runs[0], "untrained", [(12.0, 40), (math.nan, 30), (5.0, 6)])
    put_dimensions(runs[1], "untrained", [(12.0, 40), (6.0, 30), (5.0, 6)])
    frame = fill("dimension_layers", runs, published)
    row = pick(frame, checkpoint="well_trained", position=1, quantity="intrinsic dimension")
    assert (row["layer"], row["ours"], row["spread"]) == ("l1", 9, pytest.approx(math.sqrt(2)))
    assert pick(frame, checkpoint="well_trained", position=0, quantity="PCA dimension")["ours"] == 40
    row = pick(frame, checkpoint="untrained", position=1, quantity="intrinsic dimension")
    why = "seed 0: the dimension does not exist; seed 0: 0 points are too few; give more"
    assert (row["ours"], row["seeds"], row["note"]) == (6, 1, why)
    assert pick(frame, checkpoint="well_trained", position=1, quantity="plateau of the blocks")["ours"] == 9
    row = pick(frame, checkpoint="well_trained", position=0, quantity="plateau of the blocks")
    assert row["note"] == "no threefold range of points gives one estimate"
    row = pick(frame, checkpoint="untrained", position=1, quantity="plateau of the blocks")
    assert (row["ours"], row["note"]) == (6, "seed 0: the dimension does not exist")
    assert pick(frame, checkpoint="well_trained", position=0, quantity="fit of the line")["ours"] == 0.99
    assert pick(frame, checkpoint="well_trained", position=0, quantity="points left out")["ours"] == 2
    # why not to trust an estimate
    assert (
        pick(frame, checkpoint="well_trained", layer="input", quantity="intrinsic dimension")["note"]
        == "above 10; also"
    )
    put_dimensions(runs[1], "well_trained", [(12.0, 40), (18.0, 20), (3.0, 6)])
    again = fill("dimension_layers", runs, published)
    note = pick(again, checkpoint="well_trained", position=1, quantity="intrinsic dimension")["note"]
    assert note == "seed 1: above 10; seed 1: also"
    for one in runs:  # a reason is one text
        put_dimensions(one, "well_trained", [(12.0, 40), (math.nan, 20), (3.0, 6)])
    again = fill("dimension_layers", runs, published)
    note = pick(again, checkpoint="well_trained", position=1, quantity="intrinsic dimension")["note"]
    texts = [f"seed {seed}: {seed} points are too few; give more" for seed in (0, 1)]
    assert note == "; ".join(["the dimension does not exist", *texts])
    assert pick(frame, checkpoint="shuffled")["note"].startswith("seeds 0, 1: not measured")
    assert frame["published ImageNet"].isna().all()
    view = readable(frame, TABLES["dimension_layers"]).frame
    assert view["layer"].tolist()[:3] == ["0 · input", "1 · l1", "2 · l2"]


def test_places_of_a_network_that_was_not_measured_have_the_source_s_names(tmp_path, published):
    runs = make_runs(tmp_path, "resnet18", seeds=(0,), dataset="cifar10")
    frame = fill("dimension_layers", runs, published)
    shown = frame[frame["quantity"] != ""]
    layers = ["input", "maxpool", *(f"layer{n}" for n in (1, 2, 3, 4)), "avgpool", "fc"]
    assert shown["layer"].tolist() == layers
    assert all("dimension.parquet is missing" in note for note in shown["note"])
    table = TABLES["dimension_layers"]
    paths = render(frame, table, tmp_path / "tables")
    view = readable(frame, table)
    assert view.frame["layer"].tolist() == [f"{place} · {layer}" for place, layer in enumerate(layers)]
    assert readable(read_csv(paths["csv"]), table).frame.equals(view.frame)


def test_table_of_dimension_and_error(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1), dataset="camvid")
    for one in runs:
        put_dimensions(one, "well_trained", [(12.0, 40), (9.0, 9), (8.0 + one.seed, 20), (3.0, 6)])
        put_test_accuracy(one, 0.75)
    frame = fill("dimension_error", runs, published)
    row = pick(frame, quantity="dimension of the last hidden layer")
    assert (row["ours"], row["published ImageNet"]) == (8.5, 25.2)
    assert pick(frame, quantity="test error")["ours"] == 25
    row = pick(frame, quantity="test error, top 5")
    assert (row["published ImageNet"], row["note"]) == (20.9, "not measured by nnscan")


def test_without_a_hidden_layer_there_is_no_last_one(run, published):
    put_dimensions(run, "well_trained", [(12.0, 40), (3.0, 6)])
    put_test_accuracy(run, 0.75)
    notes = fill("dimension_error", [run], published)["note"].tolist()
    assert "seed 0: no hidden layer in metrics/well_trained/dimension.parquet" in notes


def test_places_as_they_are_measured():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4))
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for layers, expected in {
        "pools": [("input", "input"), ("2", "hidden"), ("4", "output")],
        "all": [("input", "input"), ("0", "hidden"), ("4", "output")],
        ("2",): [("input", "input"), ("2", "hidden")],
    }.items():
        table, _ = layer_dimensions(network, images, layers)
        rows = [row for row in systems.dimension_numbers(table) if row["quantity"] == "intrinsic dimension"]
        assert [(row["layer"], row["place"]) for row in rows] == expected
        assert [row["value"] for row in systems.last_hidden_numbers(table)] == [rows[1]["value"]]


def test_statistics_of_dimensions(run):
    put_dimensions(run, "well_trained", [(10.0, 40), (16.0, 30), (14.0, 20), (4.0, 12), (1.0, 3)])
    put_dimensions(run, "untrained", [(10.0, 40), (12.0, 30), (11.0, 20), (9.0, 18), (8.0, 3)])
    put_dimensions(run, "shuffled", [(10.0, 40), (12.0, 30), (13.0, 20), (21.0, 18), (9.0, 3)])
    put_shuffled_accuracy(run, 0.9)
    assert systems.dimension_rise(run) == 16 - 10
    assert systems.dimension_fall(run) == 16 - 4
    assert systems.dimension_variation_over_untrained(run) == pytest.approx(15 / 9 - 4 / 10)
    assert systems.shuffled_over_trained_dimension(run) == 21 - 4
    assert systems.pca_over_dimension(run) == 12 / 4
    assert systems.dimension_early_peak(run) == 16 - 14  # the middle belongs to the second half
    assert systems.dimension_by_width(run) == 16 / 64


def test_labels_that_were_not_learned_by_heart_say_nothing(run):
    put_dimensions(run, "well_trained", [(10.0, 40), (4.0, 12), (1.0, 3)])
    put_dimensions(run, "shuffled", [(10.0, 40), (21.0, 18), (9.0, 3)])
    with pytest.raises(UndefinedStatistic, match=r"training/shuffled_results.csv is missing"):
        systems.shuffled_over_trained_dimension(run)
    put_shuffled_accuracy(run, 0.89)
    with pytest.raises(UndefinedStatistic, match="were not learned: training accuracy 89 %"):
        systems.shuffled_over_trained_dimension(run)


def test_a_study_without_shuffled_labels_says_nothing_of_them(run, published):
    put_dimensions(run, "well_trained", [(10.0, 40), (4.0, 12), (1.0, 3)])
    files = frozenset({systems.dimension_of("untrained"), systems.dimension_of("well_trained")})
    without = replace(run, files=files)
    with pytest.raises(NotAsked, match="overfitting_epochs is 0"):
        systems.shuffled_over_trained_dimension(without)
    assert "shuffled" not in set(fill("dimension_layers", [without], published)["checkpoint"])
    asking = replace(run, files=files | {systems.dimension_of("shuffled")})
    notes = set(fill("dimension_layers", [asking], published)["note"])
    assert "seed 0: not measured: metrics/shuffled/dimension.parquet is missing" in notes


def test_what_batch_normalisation_changes():
    values = [("a", 4.0), ("a", 6.0), ("a-bn", 1.0), ("a-bn", 3.0), ("b", 90.0), ("c-bn", 80.0), ("a-dropout", 70.0)]
    change, low, high = systems.change_by("-bn")(values)
    assert change == 2 - 5
    # both sides have variance 2 and two values: standard error sqrt(2), two degrees of freedom, t = 4.302653
    assert (low, high) == pytest.approx((-3 - 4.302653 * math.sqrt(2), -3 + 4.302653 * math.sqrt(2)))


def test_changes_are_taken_within_each_pair_of_models():
    """That one pair has ten times the detectors of the other, or more runs, is not what the suffix changes."""
    pair = [("a", 4.0), ("a", 6.0), ("a-bn", 1.0), ("a-bn", 3.0)]
    other = [(name.replace("a", "b"), value + 60) for name, value in pair]
    change, low, high = systems.change_by("-bn")([*pair, *other])
    assert change == -3
    # four sides of variance 2 and two values, over two pairs: standard error 1, four degrees of freedom, t = 2.776445
    assert (low, high) == pytest.approx((-3 - 2.776445, -3 + 2.776445))
    assert systems.change_by("-bn")([*pair, ("c", 1.0), ("c-bn", 9.0)]) == systems.change_by("-bn")(pair)  # one seed
    change, low, high = systems.change_by("-bn")([*pair, *other, ("a", 5.0), ("a", 5.0), ("b-bn", 62.0)])
    assert change == -3
    assert low < -3 < high


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([("a", 1.0), ("b-bn", 2.0)], "no model has a twin whose name ends in '-bn'"),
        ([("a", 1.0), ("a", 2.0), ("a-bn", 2.0)], "too few seeds"),
        ([("a", 1.0), ("a", 1.0), ("a-bn", 2.0), ("a-bn", 2.0)], "all alike"),
    ],
)
def test_changes_that_do_not_exist(values, reason):
    with pytest.raises(UndefinedStatistic, match=reason):
        systems.change_by("-bn")(values)


def test_a_dimension_that_never_rises_or_falls_says_so(run):
    put_dimensions(run, "well_trained", [(10.0, 40), (5.0, 30), (6.0, 20), (9.0, 12), (20.0, 3)])
    assert systems.dimension_rise(run) == -1  # the output does not count
    assert systems.dimension_fall(run) == -3  # the claim is contradicted, not merely undecided


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [((10, 16, 4, 3), 16 - 10), ((10, 8, 4, 3), 8 - 10), ((10, 16, 17, 3), 16 - 17), ((10, 16, 4, 18), 16 - 18)],
)
def test_an_early_peak_is_above_the_input_and_the_second_half(dimensions, expected, run):
    put_dimensions(run, "well_trained", [(float(value), 40) for value in dimensions])
    assert systems.dimension_early_peak(run) == expected


def test_named_layers_need_not_end_with_the_output(run):
    put_dimensions(run, "well_trained", [(10.0, 40), (16.0, 30), (4.0, 12)], output=False)
    assert systems.dimension_fall(run) == 12
    assert systems.pca_over_dimension(run) == 3


def test_dimensions_that_do_not_exist(run):
    put_shuffled_accuracy(run, 1.0)
    for checkpoint in ("well_trained", "untrained", "shuffled"):
        put_dimensions(run, checkpoint, [(10.0, 40), (16.0, 30), (math.nan, 1), (2.0, 3)])
    put_test_accuracy(run, 0.5)
    statistics = (
        *(systems.dimension_rise, systems.dimension_fall, systems.dimension_variation_over_untrained),
        *(systems.shuffled_over_trained_dimension, systems.pca_over_dimension, systems.dimension_and_error),
    )
    for statistic in (*statistics, systems.dimension_early_peak, systems.dimension_by_width):
        with pytest.raises(UndefinedStatistic, match="a layer's dimension does not exist"):
            statistic(run)
    for checkpoint in ("well_trained", "shuffled"):
        put_dimensions(run, checkpoint, [(10.0, 40), (2.0, 3)])
    for statistic in set(statistics) - {systems.dimension_variation_over_untrained}:
        with pytest.raises(UndefinedStatistic, match=r"no value for (intrinsic|PCA) dimension, hidden"):
            statistic(run)
    with pytest.raises(UndefinedStatistic, match="no hidden layer"):
        systems.dimension_by_width(run)
    with pytest.raises(UndefinedStatistic, match="no place in the first half of the network was measured"):
        systems.dimension_early_peak(run)
    put_dimensions(run, "well_trained", [(10.0, 40), (5.0, 9), (2.0, 3)])
    with pytest.raises(UndefinedStatistic, match="one hidden layer only"):
        systems.dimension_fall(run)


def test_dimension_and_error_of_a_run(run):
    put_dimensions(run, "well_trained", [(10.0, 40), (16.0, 30), (4.0, 12), (1.0, 3)])
    put_test_accuracy(run, 0.75)
    assert systems.dimension_and_error(run) == ((run.model, 4), 25)


def of_models(pairs):
    return [((f"model {number}", first), second) for number, (first, second) in enumerate(pairs)]


def test_correlation_closed_form():
    pairs = of_models([(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)])
    r, low, high = systems.correlation_over_models(pairs)
    assert r == pytest.approx(0.8)
    half = 1.959963984540054 / math.sqrt(4 - 3)  # Fisher: atanh(r) has the deviation 1 / sqrt(n - 3)
    assert (low, high) == (
        pytest.approx(math.tanh(math.atanh(0.8) - half)),
        pytest.approx(math.tanh(math.atanh(0.8) + half)),
    )
    falling = of_models([(1.0, 8.0), (2.0, 6.0), (3.0, 4.0), (4.0, 2.0)])
    assert systems.correlation_over_models(falling) == pytest.approx((-1, -1, -1))
    # seeds that scatter about their model's values change nothing
    seeds = [((model, first + 0.3 * k), second + 0.1 * k) for (model, first), second in pairs for k in (-1, 0, 1)]
    assert systems.correlation_over_models(seeds) == pytest.approx((r, low, high))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "a correlation needs 4 pairs"),
        (of_models([(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)]) * 3, "4 pairs of values, there are 3"),
        (of_models([(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 2.0)]), "differ between the runs"),
    ],
)
def test_correlations_that_do_not_exist(values, reason):
    with pytest.raises(UndefinedStatistic, match=reason):
        systems.correlation_over_models(values)


# ----------------------------------------------------------------------------------------- ProtoPNet


def test_table_of_prototypes(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0, 1), dataset="cub")
    put_prototypes(runs[0], 0.75, 0.7, [(10, 10), (10, 5)])
    put_prototypes(runs[1], 0.5, 0.6, [(10, 10), (10, 9)])
    frame = fill("prototypes_accuracy", runs, published)
    values = {row["quantity"]: (row["ours"], row["published CUB-200-2011"]) for _, row in frame.iterrows()}
    assert values["accuracy of the backbone"] == (pytest.approx(62.5), 74.6)
    assert values["accuracy of the ProtoPNet"] == (pytest.approx(65), 76.1)
    assert values["accuracy gained"] == (pytest.approx(2.5), 1.5)
    assert values["prototypes"][0] == 20
    assert values["distinct prototypes"][0] == pytest.approx(85)
    frame = fill("prototypes_accuracy", make_runs(tmp_path, "fcn", seeds=(0,)), published)
    assert frame["note"].str.startswith("seed 0: no ProtoPNet on this network: training/prototypes").all()


def test_statistics_of_prototypes(run):
    put_prototypes(run, 0.75, 0.7, [(10, 10), (10, 5)])
    assert systems.prototype_accuracy_gained(run) == pytest.approx(-5)
    assert systems.distinct_prototypes_share(run) == pytest.approx(75)
    put_prototypes(run, 0.75, math.nan, [(1, 1)])
    with pytest.raises(UndefinedStatistic, match="undefined"):
        systems.prototype_accuracy_gained(run)


# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({**systems.STATISTICS, **systems.OVER_RUNS}))
def test_statistics_of_missing_files_are_undefined(run, name):
    statistic = systems.STATISTICS[name] if name in systems.STATISTICS else systems.OVER_RUNS[name].of_run
    with pytest.raises(UndefinedStatistic, match="is missing"):
        statistic(run)


def test_inputs_are_the_files_that_a_table_reads(tmp_path, published):
    run = make_runs(tmp_path, "alexnet", seeds=(0,))[0]
    for table in systems.TABLES.values():
        notes = " ".join(table.function([run], read_published(published, table.id))["note"])
        assert all(f"{path} is missing" in notes for path in table.inputs)
