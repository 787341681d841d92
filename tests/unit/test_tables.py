"""Tables filled from small run folders whose numbers are known by hand."""

import logging
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from nnscan import layout
from nnscan.anomaly import SHARES
from nnscan.artifacts import write_frame
from nnscan.contents import TABLES
from nnscan.errors import ArtifactError
from nnscan.rendering import Cell, readable
from nnscan.tables import QUANTITIES, Run, collect, missing, percent, read_published, spread
from result_files import (
    alexnet_quantities,
    fill,
    make_runs,
    pick,
    put,
    put_ablation,
    put_agreement,
    put_anomalies,
    put_curves,
    put_layers,
    put_localisation,
    put_masking,
    put_properties,
    put_pruning,
    put_results,
    put_single,
    put_types,
    quantities,
)

# ------------------------------------------------------------------------------------------------- published values


@pytest.mark.parametrize(
    ("table", "count"),
    [
        ("slides_3-3", 2 * 5),
        ("slides_3-4", 2 * 5),
        ("slides_4-2", 2 * 2 * (5 + 8 + 8 + 8)),  # two data sets, SSIM and FQ, AlexNet has five layers
        ("slides_4-3", 4 * 3 * 2),
        ("slides_4-4", 2 * 5 * 2),
        ("slides_4-5", 4 * 3 * 3),
        ("slides_5-1", 3 * 3 * 4),
        ("slides_5-2", 2 * 3 * 3 * 4),
        ("slides_5-3", 6 * 3 * 2),
        ("slides_6-2", 2 * (5 * 3 - 2)),  # LeNet-5 and Simple CNN lack the third data set
        ("slides_6-3", 2 * 2 * (5 * 3 - 2)),
        ("slides_6-4", 3 * (5 * 3 - 2)),  # train down, validation up, and of how many
        ("slides_6-5", 2 * (5 * 3 - 2)),
        ("thesis_4-1", 6 * 3),
        ("thesis_4-2", 10),
        ("thesis_5-1", 8 * 5),
        ("thesis_5-1_layers", 2 * 2 + 2),  # 5 convolutions: two accuracies, no number of parameters
    ],
)
def test_published_table_is_complete(published, table, count):
    frame = read_published(published, table)
    assert len(frame) == count
    keys = [name for name in frame if name not in ("value", "unit", "source")]
    assert not frame.duplicated(keys).any()
    assert np.isfinite(frame["value"]).all()
    assert set(frame["table"]) == {table}
    assert set(frame["source"]) == {TABLES[table].source}
    assert set(frame["quantity"]) <= {*QUANTITIES, "pruned fraction", "best test accuracy"}


@pytest.mark.parametrize(
    ("table", "keys", "value"),
    [
        ("slides_3-3", {"model": "AlexNet", "layer": "5"}, 0.623),
        ("slides_3-3", {"model": "VGG-16", "layer": "2"}, 0.923),
        ("slides_3-4", {"model": "AlexNet", "layer": "1"}, 0.999),
        ("slides_3-4", {"model": "VGG-16", "layer": "5"}, 0.804),
        ("slides_4-4", {"model": "AlexNet", "without": "l", "group": "top"}, -32.7),
        ("slides_4-4", {"model": "VGG-11", "without": "s", "group": "bottom"}, -0.12),
        ("slides_4-4", {"model": "VGG-11", "without": "nf", "group": "bottom"}, 65.8),  # as printed, like vf
        ("slides_4-2", {"model": "VGG-11", "data": "CUB200-2011", "layer": "conv7", "quantity": "SSIM"}, 0.87),
        ("slides_4-2", {"model": "AlexNet", "data": "ILSVRC-2013 DET", "layer": "conv5", "quantity": "FQ"}, 0.34),
        ("slides_4-2", {"model": "ResNet-18", "data": "CUB200-2011", "layer": "conv8", "quantity": "FQ"}, 0.51),
        ("slides_4-3", {"model": "VGG-16", "data": "data 2", "group": "bottom"}, 0.01),
        ("slides_4-3", {"model": "ResNet-18", "data": "data 3", "group": "bottom"}, 1.3),
        ("slides_4-5", {"model": "VGG-16", "data": "data 2", "method": "Grad-CAM"}, 0.36),
        ("slides_4-5", {"model": "ResNet-18", "data": "data 1", "method": "FQ map"}, 0.58),
        ("slides_5-1", {"model": "VGG-16", "data": "data 3", "ranking": "T_v"}, 66.15),
        ("slides_5-1", {"model": "AlexNet", "data": "data 1", "ranking": "T_cor"}, 24.40),
        ("slides_5-2", {"model": "AlexNet", "data": "data 3", "measure": "SoU", "property": "T_c"}, 0.18),
        ("slides_5-2", {"model": "VGG-11", "data": "data 1", "measure": "AVoU", "property": "T_cor"}, -0.32),
        ("slides_5-3", {"type": "H-H", "checkpoint": "third2", "quantity": "accuracy lost"}, 22.0),
        ("slides_5-3", {"type": "noH-H", "checkpoint": "third3", "quantity": "accuracy lost"}, 1.8),
        ("slides_5-3", {"type": "noL-L", "checkpoint": "third1", "quantity": "proportion"}, 0.02),
        ("slides_6-2", {"model": "ResNet-18", "data": "CIFAR-100", "checkpoint": "overfitted"}, 419),
        ("slides_6-4", {"model": "AlexNet", "data": "CIFAR-10", "quantity": "validation accuracy rises"}, 5),
        ("slides_6-4", {"model": "ResNet-18", "data": "CIFAR-100", "quantity": "either accuracy changes"}, 356),
        ("slides_6-4", {"model": "VGG-16", "data": "ILSVRC-2013 DET", "quantity": "training accuracy falls"}, 209),
        ("slides_6-3", {"model": "LeNet-5", "data": "CIFAR-10", "checkpoint": "overfitted", "group": "outlier"}, 2.811),
        ("slides_6-3", {"model": "VGG-16", "data": "CIFAR-100", "checkpoint": "overfitted", "group": "normal"}, 0.010),
        ("slides_6-5", {"model": "VGG-16", "data": "CIFAR-100", "group": "anomaly"}, 0),
        ("slides_6-5", {"model": "LeNet-5", "data": "CIFAR-100", "group": "random"}, -6.92),
        ("thesis_4-1", {"model": "VGG-11", "data": "CIFAR-10", "quantity": "test loss"}, 1.555),
        ("thesis_5-1", {"layer": "3", "quantity": "neurons"}, 512),  # as printed, though it must be 256
        ("thesis_5-1", {"layer": "4", "quantity": "accuracy, most similar pruned"}, 0.100),
        ("thesis_5-1_layers", {"convolutions": "4", "chosen": "yes", "quantity": "test accuracy"}, 80.0),
        ("thesis_5-1_layers", {"convolutions": "5", "chosen": "no", "quantity": "test accuracy"}, 76.8),
        ("thesis_5-1_layers", {"convolutions": "5", "chosen": "no", "quantity": "best test accuracy"}, 77.8),
        ("thesis_5-1_layers", {"convolutions": "8", "chosen": "no", "quantity": "test accuracy"}, 73.9),
    ],
)
def test_published_cells(published, table, keys, value):
    assert pick(read_published(published, table), **keys)["value"] == value


def test_published_differences_agree_with_their_accuracies(published):
    frame = read_published(published, "thesis_5-1").pivot_table("value", "layer", "quantity")
    difference = frame["accuracy, most similar pruned"] - frame["accuracy, least similar pruned"]
    np.testing.assert_allclose(difference, frame["difference"], atol=0.0011)  # the source rounds unrounded numbers


@pytest.mark.parametrize("convolutions", [4, 8])
def test_published_parameters_are_those_of_vgg11(published, convolutions):
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512][: convolutions + 1]
    count = sum(9 * before * after + after for before, after in pairwise(widths))
    count += (widths[-1] + 1) * 512 + (512 + 1) * 10  # the head: two linear layers
    frame = read_published(published, "thesis_5-1_layers")
    assert pick(frame, convolutions=str(convolutions), quantity="parameters")["value"] == count


def test_study_renders_every_table():
    assert tuple(TABLES) == tuple(layout.TABLES)


def test_unknown_published_table_names_the_closest(published):
    with pytest.raises(ArtifactError, match=r"did you mean 'slides_4-2'"):
        read_published(published, "slides_4_2")


# ------------------------------------------------------------------------------------------------------- collecting


def test_collect_prepends_the_run_and_reports_what_is_missing(tmp_path, caplog):
    runs = make_runs(tmp_path, "lenet5")
    for run in (runs[2], runs[0]):
        put(run, "metrics/x.parquet", [{"value": 10 * run.seed}])
    with caplog.at_level(logging.WARNING):
        frame = collect(reversed(runs), "metrics/x.parquet")
    assert list(frame) == ["dataset", "model", "seed", "value"]
    assert frame["seed"].tolist() == [0, 2]
    assert frame["value"].tolist() == [0, 20]
    assert missing(runs, "metrics/x.parquet") == [runs[1]]
    assert "digits/lenet5/seed1 has no metrics/x.parquet" in caplog.text


def test_collect_without_any_file_is_empty(tmp_path):
    frame = collect(make_runs(tmp_path, "lenet5"), "metrics/x.parquet")
    assert frame.empty
    assert list(frame) == ["dataset", "model", "seed"]


# ----------------------------------------------------------------------------------------------------------- tables


def test_table_fq(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet")
    alexnet_quantities(runs)
    frame = fill("slides_4-2", runs, published)
    ssim = pick(frame, layer="a", quantity="SSIM")
    assert (ssim["ours"], ssim["spread"], ssim["seeds"]) == (0.75, 0.0, 3)
    fq = pick(frame, layer="a", quantity="FQ")
    assert fq["ours"] == pytest.approx(0.3)
    assert fq["spread"] == pytest.approx(0.1)
    assert fq["position"] == 1
    assert fq["published ILSVRC-2013 DET"] == 0.0012
    assert fq["published CUB200-2011"] == 0.0003
    last = pick(frame, layer="e", quantity="FQ")
    assert (last["position"], last["ours"], last["published ILSVRC-2013 DET"]) == (5, 0.5, 0.34)
    assert pick(frame, layer="e", quantity="SSIM")["ours"] == 0.25
    assert len(frame) == 10


def test_table_fq_does_not_align_networks_of_another_depth(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0,))
    put(runs[0], "metrics/well_trained/quantity.parquet", quantities({f"conv{i}": [(1, 1, 1, 0.5)] for i in range(13)}))
    frame = fill("slides_4-2", runs, published)
    ours, source = frame[frame["ours"].notna()], frame[frame["ours"].isna()]
    assert len(ours) == 26
    assert ours["published CUB200-2011"].isna().all()
    assert ours["spread"].isna().all()  # one seed
    assert len(source) == 16
    assert source["published CUB200-2011"].notna().all()
    assert set(source["note"]) == {"the source does not say which layers of the network these are"}
    assert source["layer"].tolist()[:2] == ["conv1 of the source"] * 2


def test_one_missing_seed_does_not_explain_what_the_source_lacks(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0, 1))
    put(runs[0], "metrics/well_trained/quantity.parquet", quantities({"a": [(1, 1, 1, 0.5)]}))
    frame = fill("slides_4-2", runs, published)
    source = frame[frame["seeds"].eq(0) & frame["quantity"].ne("")]
    assert set(source["note"]) == {"the source does not say which layers of the network these are"}
    absent = pick(frame, quantity="")
    assert absent["note"] == "seed 1: not scanned: metrics/well_trained/quantity.parquet is missing"


def test_undefined_quantities_are_named_not_skipped(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5")
    for run in runs:
        fq = math.nan if run.seed == 1 else 0.4
        put(run, "metrics/well_trained/quantity.parquet", quantities({"a": [(1, 1, 1, fq), (1, 1, 1, 0.6)]}))
    row = pick(fill("slides_4-2", runs, published), quantity="FQ")
    assert row["ours"] == 0.5  # a NaN neuron makes the seed's mean undefined, not a mean of the rest
    assert row["seeds"] == 2
    assert row["note"] == "seed 1: no foreground mask"


def test_table_diversity(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1))
    changes = {("a", "top"): [100], ("a", "bottom"): [-2], ("a", "random"): [10, 30], ("b", "top"): [50]}
    changes |= {("b", "bottom"): [4], ("b", "random"): [0, 20]}
    for run in runs:
        rows = [
            {
                "layer": layer,
                "depth": "ab".index(layer),
                "group": group,
                "draw": draw,
                "filters": {"a": 16, "b": 20}[layer],
                "loss_change": float(value + 10 * run.seed),
            }
            for (layer, group), values in changes.items()
            for draw, value in enumerate(values)
        ]
        put(run, "experiments/diversity_masking.parquet", rows)
    frame = fill("slides_4-3", runs, published)
    assert pick(frame, layer="a", group="random")["ours"] == 25  # (10 + 30) / 2, and 10 more in the second seed
    assert pick(frame, layer="a", group="random")["filters"] == "16"
    mean = pick(frame, layer="mean of the layers", group="top")
    assert mean["ours"] == 80  # (100 + 50) / 2, and 10 more in the second seed
    assert mean["spread"] == pytest.approx(10 / math.sqrt(2))
    assert mean["filters"] == "16 to 20"
    assert (mean["published data 1"], mean["published data 3"]) == (93.4, 92.8)
    assert math.isnan(pick(frame, layer="a", group="top")["published data 1"])
    assert math.isnan(pick(frame, layer="mean of the layers", group="random")["published data 1"])


def test_table_agreement(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1))
    for run in runs:
        shift = 0.1 * run.seed
        blank = (math.nan, math.nan, math.nan)  # no filter has an image for this sample
        put_agreement(run, {name: [(0.5 + shift, 0.4, 0.2), blank, (0.7 + shift, 0.6, 0.3)] for name in "abcde"})
    frame = fill("slides_3-3", runs, published)
    assert len(frame) == 5 * 2
    row = pick(frame, layer="e", binarised="above 5 %")
    assert row["ours"] == pytest.approx(0.65)
    assert (row["position"], row["seeds"], row["published data not stated"]) == (5, 2, 0.623)
    above = pick(frame, layer="e", binarised="above 0")
    assert above["ours"] == pytest.approx(0.325)
    assert math.isnan(above["published data not stated"])  # the source's threshold is read as 5 %
    frame = fill("slides_3-4", runs, published)
    assert len(frame) == 5 * 2 * 2
    pair = pick(frame, layer="a", binarised="above 5 %", pair="most activated pair")
    assert (pair["ours"], pair["published data not stated"]) == (0.5, 0.999)
    other = pick(frame, layer="a", binarised="above 5 %", pair="any pair")
    assert other["ours"] == 0.25
    assert math.isnan(other["published data not stated"])
    view = readable(frame, TABLES["slides_3-4"])
    assert list(view.frame)[-2:] == ["most activated pair", "any pair"]


def test_layers_of_vgg16_are_the_last_of_its_blocks(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0,))
    put_agreement(runs[0], {f"conv{place}": [(0.5, 0.4, 0.2)] for place in range(1, 14)})
    frame = fill("slides_3-3", runs, published)
    known = frame[frame["published data not stated"].notna()]
    assert known["position"].tolist() == [2, 4, 7, 10, 13]
    assert known["published data not stated"].tolist() == [0.952, 0.923, 0.688, 0.620, 0.538]
    put_agreement(runs[0], {f"conv{place}": [(0.5, 0.4, 0.2)] for place in range(1, 4)})  # scanned in part
    source = fill("slides_3-3", runs, published).query("seeds == 0")
    assert source["layer"].tolist() == [f"layer {place} of the source" for place in range(1, 6)]
    assert set(source["note"]) == {"not the network of the source"}


def test_a_network_without_places_has_no_agreement(tmp_path, published):
    run = make_runs(tmp_path, "fcn", seeds=(0,))[0]
    empty = pd.DataFrame(columns=["layer", "depth", "sample", "binarised", "filters", "agreement", "iou", "iou_any"])
    write_frame(run.folder / "metrics/well_trained/agreement.parquet", empty, {})
    for table in ("slides_3-3", "slides_3-4"):
        row = pick(fill(table, [run], published))
        assert row["note"] == "seed 0: no feature maps with places in metrics/well_trained/agreement.parquet"


def test_table_ablation(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1))
    for run in runs:
        shift = 10.0 * run.seed
        put_ablation(run, {"l": [(1 + shift, 2), (3 + shift, 4)], "vf": [(5, 6), (7, 8)]})
    frame = fill("slides_4-4", runs, published)
    assert frame["without"].drop_duplicates().tolist() == ["l", "c", "s", "vf", "nf"]
    row = pick(frame, without="l", group="top")
    assert row["ours"] == 7  # (1 + 3) / 2, and 10 more in the second seed
    assert (row["filters"], row["unit"], row["published data not stated"]) == ("4 to 5", "%", -32.7)
    assert pick(frame, without="vf", group="bottom")["ours"] == 7
    for without in ("c", "s", "nf"):  # without foreground masks, for example
        assert pick(frame, without=without, group="top")["note"] == "not measured in these runs"
    printed = frame.pivot_table("published data not stated", "without", "group")
    assert printed.loc["vf"].tolist() == printed.loc["nf"].tolist() == [58.4, 56.8]
    assert "copying error" in TABLES["slides_4-4"].caption


def test_table_localisation(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1))
    for run in runs:
        values = {"CAM": [math.nan] * 2, "Grad-CAM": [0.1, 0.3], "FQ map": [0.6 + 0.1 * run.seed, 0.8]}
        put_localisation(run, {**values, "NNS": [0.5, 0.5], "input": [0.4, 0.4]})
    frame = fill("slides_4-5", runs, published)
    row = pick(frame, method="FQ map", level="0.5")
    assert row["ours"] == pytest.approx(0.725)
    assert [row[f"published data {place}"] for place in (1, 2, 3)] == [0.52, 0.45, 0.35]
    assert math.isnan(pick(frame, method="FQ map", level="0.2")["published data 1"])
    assert pick(frame, method="Grad-CAM", level="0.2")["ours"] == pytest.approx(0.1)
    undefined = pick(frame, method="CAM", level="0.5")
    assert (undefined["seeds"], undefined["published data 1"]) == (0, 0.11)
    assert undefined["note"].startswith("not defined: CAM needs only global pooling")
    view = readable(frame, TABLES["slides_4-5"]).frame
    assert list(view.columns)[3:] == ["CAM", "Grad-CAM", "FQ map", "NNS (control)", "input (control)"]
    assert view["level"].tolist() == ["0.2", "0.5"]


def test_localisation_without_masks(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,))
    columns = ["sample", "method", "threshold", "iou"]
    write_frame(runs[0].folder / "metrics/well_trained/localisation.parquet", pd.DataFrame(columns=columns), {})
    frame = fill("slides_4-5", runs, published)
    assert pick(frame, quantity="")["note"] == (
        "seed 0: no foreground masks in metrics/well_trained/localisation.parquet"
    )
    assert frame[frame["quantity"] != ""]["published data 1"].tolist() == [0.11, 0.24, 0.52]


def test_table_aipc(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0,))
    put_curves(runs[0], {"T_m": 80, "T_v": 40, "T_c": 20, "T_cor": 8, "random": 4})
    frame = fill("slides_5-1", runs, published)
    area = pick(frame, ranking="T_m", quantity="area")
    assert area["ours"] == pytest.approx(60)
    assert area["layer"] == "z"
    assert [area[f"published data {place}"] for place in (1, 2, 3)] == [55.20, 52.61, 56.15]
    assert pick(frame, ranking="T_v", quantity="drop at 50 %")["ours"] == pytest.approx(40)
    assert math.isnan(pick(frame, ranking="random", quantity="area")["published data 1"])


def test_published_areas_stand_beside_their_own_network(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,)) + make_runs(tmp_path, "alexnet", seeds=(0,))
    put_curves(runs[0], {"T_m": 80})
    frame = fill("slides_5-1", runs, published)
    unmeasured = frame[(frame["model"] == "alexnet") & (frame["quantity"] == "area")]
    assert unmeasured["layer"].tolist() == [""] * 4
    assert unmeasured["published data 1"].tolist() == [41.20, 41.40, 52.40, 24.40]


def test_area_of_half_a_curve_is_refused(tmp_path, published):
    run = make_runs(tmp_path, "vgg16", seeds=(0,))[0]
    rows = [{"layer": "z", "ranking": "T_m", "draw": 0, "fraction": f, "change": -f} for f in (0.0, 0.5)]
    put(run, "experiments/aipc.parquet", rows)
    with pytest.raises(ArtifactError, match=r"from 0 to 0\.5"):
        fill("slides_5-1", [run], published)


def test_table_ranks(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0,))
    put_properties(runs[0], AVoU=[1, 2, 4, 3], T_c=[4, 3, 2, 1], T_v=[5, 5, 5, 5])
    frame = fill("slides_5-2", runs, published)
    assert set(frame["layer"]) == {"b"}  # the last layer by depth, whatever the order in the file
    row = pick(frame, measure="AVoU", property="T_m")
    assert row["ours"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # the slides' formula, sum of squared differences 2
    assert row["published data 1"] == 0.99
    assert pick(frame, measure="SoU", property="T_c")["ours"] == pytest.approx(-1)
    constant = pick(frame, measure="SoU", property="T_v")
    assert math.isnan(constant["ours"])
    assert constant["note"] == "all filters rank alike"


TYPED = {"H-H": (0.3, [6.0, 12.0, 24.0], 3.0), "H-noH": (0.1, [1.0, 2.0, 6.0], 0.5), "noH-H": (0.1, [0, 0, 3.0], 0.5)}
TYPED |= {"L-L": (0.2, [0.0, 0.5, 0.0], 2.0), "L-noL": (0.1, [0, 0, 0], 0.5), "noL-L": (0.1, [0, 0, -1.0], 0.5)}


def test_table_types(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1))
    for run in runs:
        put_types(run, {name: (p, [value + run.seed for value in lost], r) for name, (p, lost, r) in TYPED.items()})
    frame = fill("slides_5-3", runs, published)
    assert len(frame) == 6 * 3 * 3
    row = pick(frame, type="H-H", checkpoint="third3", quantity="accuracy lost")
    assert (row["ours"], row["layer"], row["unit"], row["published data not stated"]) == (24.5, "z", "pp", 26)
    assert row["spread"] == pytest.approx(1 / math.sqrt(2))
    row = pick(frame, type="L-noL", checkpoint="third1", quantity="proportion")
    assert (row["ours"], row["published data not stated"]) == (0.1, 0.02)
    random = pick(frame, type="L-L", checkpoint="third2", quantity="accuracy lost, random filters")
    assert random["ours"] == 2
    assert math.isnan(random["published data not stated"])
    view = readable(frame, TABLES["slides_5-3"]).frame
    assert view["type"].drop_duplicates().tolist() == list(TYPED)
    assert list(view)[-3:] == ["after 1/3 of the training", "after 2/3 of the training", "after the training"]


def test_published_types_stand_beside_every_network_that_is_measured(tmp_path, published):
    """The source does not name the network of table 5-3."""
    runs = make_runs(tmp_path, "vgg11", seeds=(0,)) + make_runs(tmp_path, "mine", seeds=(0, 1))
    runs += make_runs(tmp_path, "own", seeds=(0, 1)) + make_runs(tmp_path, "own", seeds=(0,), dataset="cifar10")
    for run in (runs[0], runs[3], runs[5]):
        put_types(run, TYPED)
    frame = fill("slides_5-3", runs, published)
    known = frame[frame["published data not stated"].notna()]
    networks = [("cifar10", "own"), ("digits", "vgg11"), ("digits", "own")]
    assert known.groupby(["dataset", "model"]).size().to_dict() == dict.fromkeys(networks, 6 * 3 * 2)
    assert known["ours"].notna().all()
    missing_file = "no phases: the model came trained: experiments/filter_types.parquet is missing"
    assert frame[frame["model"] == "mine"]["note"].tolist() == [f"seeds 0, 1: {missing_file}"]
    frame = fill("slides_5-3", [runs[0], *runs[1:3]], published)
    assert readable(frame, TABLES["slides_5-3"]).remarks == (f"digits, mine, seeds 0, 1: {missing_file}",)


def test_data_without_a_foreground_has_no_types(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,))
    columns = ["checkpoint", "layer", "type", "group", "draw", "filters", "proportion", "accuracy_lost"]
    write_frame(runs[0].folder / "experiments/filter_types.parquet", pd.DataFrame(columns=columns), {})
    frame = fill("slides_5-3", runs, published)
    note = "seed 0: no foreground and background to tell apart in experiments/filter_types.parquet"
    assert frame["note"].tolist() == [note]
    assert readable(frame, TABLES["slides_5-3"]).remarks == (f"digits, VGG-11, {note}",)


def test_signs_and_sweep_stand_beside_the_anomaly_filters(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1), dataset="cifar10")
    for run in runs:
        put_anomalies(run, "well_trained", 1)
        put_anomalies(run, "overfitted", 3 + run.seed)
    frame = fill("slides_6-2", runs, published)
    expected = {
        "anomaly filters": (1, 3.5), "unbalanced clusters": (3, 5.5), "high CH index": (4, 6.5),
        "high activation": (2, 4.5), "anomaly filters, outliers up to 0.5%": (0, 2.5),
        "anomaly filters, outliers up to 5%": (2, 4.5), "filters examined": (10, 10),
    }  # fmt: skip
    for checkpoint, place in (("well_trained", 0), ("overfitted", 1)):
        part = frame[frame["checkpoint"] == checkpoint]
        assert dict(zip(part["quantity"], part["ours"], strict=True)) == {q: v[place] for q, v in expected.items()}
        assert part["quantity"].tolist() == list(expected)
    assert pick(frame, checkpoint="overfitted", quantity="anomaly filters")["published CIFAR-10"] == 12
    assert math.isnan(pick(frame, checkpoint="overfitted", quantity="high activation")["published CIFAR-10"])


def test_every_share_of_the_sweep_has_a_quantity():
    assert {f"anomaly filters, outliers up to {percent(share)}" for share in SHARES} <= set(QUANTITIES)


def test_table_single_masking(tmp_path, published):
    runs = make_runs(tmp_path, "simple_cnn", seeds=(0, 1), dataset="cifar100")
    # lowers both; only lowers train; raises validation; changes nothing; raises train
    put_single(runs[0], [(-1, -1), (-0.5, 0), (0, 2), (0, 0), (1, 0)])
    put_single(runs[1], [(-1, 1), (0, 0), (0, 0)])
    frame = fill("slides_6-4", runs, published)
    row = pick(frame, checkpoint="overfitted", quantity="training accuracy falls")
    assert (row["ours"], row["unit"], row["published CIFAR-100"], row["note"]) == (1.5, "filters", 8, "")
    row = pick(frame, checkpoint="overfitted", quantity="validation accuracy rises")
    assert (row["ours"], row["published CIFAR-100"]) == (1, 6)
    row = pick(frame, checkpoint="overfitted", quantity="either accuracy changes")
    assert (row["ours"], row["published CIFAR-100"]) == (2.5, 8)
    assert pick(frame, checkpoint="overfitted", quantity="filters masked")["ours"] == 4


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(("model", "falls"), [("resnet18", 3), ("vgg16", 209)])
def test_exchanged_cells_of_the_source_are_shown_as_printed_and_marked(tmp_path, published, model, falls, measured):
    runs = make_runs(tmp_path, model, seeds=(0,))
    if measured:
        put_single(runs[0], [(-1, 1), (1, -1)])
    frame = fill("slides_6-4", runs, published)
    row = pick(frame, checkpoint="overfitted", quantity="training accuracy falls")
    assert row["published ILSVRC-2013 DET"] == falls
    assert "look exchanged" in row["note"]
    assert ("is missing" in row["note"]) != measured
    assert any("look exchanged" in note for note in readable(frame, TABLES["slides_6-4"]).notes)


def test_table_anomaly_without_an_overfitted_checkpoint(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1), dataset="cifar10")
    for run in runs:
        put_anomalies(run, "well_trained", 3 + 2 * run.seed)
    frame = fill("slides_6-2", runs, published)
    row = pick(frame, checkpoint="well_trained", quantity="anomaly filters")
    assert (row["ours"], row["published CIFAR-10"], row["published CIFAR-100"]) == (4, 2, 8)
    assert math.isnan(row["published ILSVRC-2013 DET"])
    lacking = pick(frame, checkpoint="overfitted", quantity="anomaly filters")
    assert math.isnan(lacking["ours"])
    assert lacking["published CIFAR-10"] == 12
    assert lacking["note"].startswith("seeds 0, 1: no overfitted checkpoint: metrics/overfitted/anomaly.parquet")
    view = readable(frame, TABLES["slides_6-2"])
    assert view.remarks == (f"cifar10, LeNet-5, {lacking['note']}",)
    cell = view.frame.loc[0, "overfitted (OF)"]
    assert cell == Cell(published=("12",), ours="–", spread="", mark="1")  # CIFAR-10 stands beside cifar10 only
    assert view.notes == (lacking["note"],)


def test_table_gradients(tmp_path, published):
    runs = make_runs(tmp_path, "resnet18", seeds=(0, 1))
    for run in runs:
        rows = [
            {"checkpoint": "overfitted", "group": "outlier", "gradient": 2.0 + run.seed, "samples": 5},
            {"checkpoint": "overfitted", "group": "normal", "gradient": 1.0, "samples": 95},
            {"checkpoint": "well_trained", "group": "outlier", "gradient": math.nan, "samples": 0},
            {"checkpoint": "well_trained", "group": "normal", "gradient": 0.5, "samples": 100},
        ]
        put(run, "experiments/gradients.parquet", rows)
    frame = fill("slides_6-3", runs, published)
    row = pick(frame, checkpoint="overfitted", group="outlier", quantity="gradient")
    assert (row["ours"], row["published CIFAR-100"]) == (2.5, 0.009)
    none = pick(frame, checkpoint="well_trained", group="outlier", quantity="gradient")
    assert (none["seeds"], none["note"]) == (0, "no such samples")
    assert pick(frame, checkpoint="overfitted", group="normal", quantity="samples")["ours"] == 95


def test_table_anomaly_masking(tmp_path, published):
    runs = make_runs(tmp_path, "simple_cnn", seeds=(0,), dataset="cifar100")
    put_masking(runs[0], -0.5, [-1.0, -2.0])
    frame = fill("slides_6-5", runs, published)
    row = pick(frame, checkpoint="overfitted", group="random", quantity="accuracy change")
    assert (row["ours"], row["published CIFAR-100"], row["unit"]) == (-1.5, -0.74, "pp")
    assert pick(frame, group="anomaly", quantity="filters masked")["ours"] == 4


def test_file_without_rows_is_told_from_a_missing_one(tmp_path, published):
    runs = make_runs(tmp_path, "fcn", seeds=(0,))
    columns = ["checkpoint", "group", "draw", "filters", "accuracy_change"]
    write_frame(runs[0].folder / "experiments/anomaly_masking.parquet", pd.DataFrame(columns=columns), {})
    frame = fill("slides_6-5", runs, published)
    assert frame["note"].tolist() == ["seed 0: no anomaly filters in experiments/anomaly_masking.parquet"]
    assert readable(frame, TABLES["slides_6-5"]).frame.empty


def test_table_training(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1), dataset="cifar10")
    for run in runs:
        put_results(run, 0.75 + 0.01 * run.seed, 0.5)
    frame = fill("thesis_4-1", runs, published)
    row = pick(frame, checkpoint="third3", quantity="test accuracy")
    assert row["ours"] == pytest.approx(75.5)
    assert row["published CIFAR-10"] == 73.9
    assert math.isnan(pick(frame, checkpoint="third1", quantity="test accuracy")["published CIFAR-10"])
    assert pick(frame, checkpoint="third3", quantity="training loss")["ours"] == 0.25
    assert "no overfitted checkpoint" in pick(frame, quantity="")["note"]
    rows = [{"checkpoint": "overfitted", "split": "test", "loss": 4.0, "accuracy": 0.5}]
    put(runs[0], "training/overfitted_results.csv", rows)
    row = pick(fill("thesis_4-1", runs, published), checkpoint="overfitted", quantity="test loss")
    assert (row["ours"], row["seeds"], row["note"]) == (4, 1, "seed 1: no such checkpoint")


def test_table_pruning(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,), dataset="cifar10")
    put_pruning(runs[0], {f"conv{place}": (0.5, 0.75, [0.6, 0.7]) for place in range(8)})
    frame = fill("thesis_5-1", runs, published)
    row = pick(frame, layer="conv4", quantity="accuracy, most similar pruned")
    assert (row["ours"], row["published CIFAR-10"], row["position"], row["pruned"]) == (0.5, 0.100, 5, "40%")
    assert pick(frame, layer="conv4", quantity="difference")["ours"] == -0.25
    assert pick(frame, layer="conv4", quantity="accuracy, random neurons pruned")["ours"] == pytest.approx(0.65)
    assert pick(frame, layer="conv0", quantity="neurons")["published CIFAR-10"] == 64
    assert len(frame) == 8 * 5


@pytest.mark.parametrize(("fraction", "pruned"), [(0.125, "12.5%"), (0.404, "40.4%"), (0.55, "55%")])
def test_published_values_stand_only_beside_the_share_that_the_source_prunes(tmp_path, published, fraction, pruned):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,), dataset="cifar10")
    put_pruning(runs[0], {f"conv{place}": (0.5, 0.75, [0.6, 0.7]) for place in range(8)}, fraction)
    frame = fill("thesis_5-1", runs, published)
    ours, source = frame[frame["pruned"] == pruned], frame[frame["pruned"] == "40%"]
    assert (len(ours), len(source), len(frame)) == (8 * 5, 8 * 4, 8 * 9)
    assert ours["published CIFAR-10"].isna().all()
    assert source["published CIFAR-10"].notna().all()
    assert source["ours"].isna().all()
    assert set(source["note"]) == {"this share of this layer was not pruned in these runs"}


def test_table_layers(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", dataset="cifar10")
    for run in runs[:2]:
        put_layers(run, 4, {4: (1097610, 0.8 + 0.02 * run.seed), 5: (2408842, 0.75), 8: (9488266, 0.5)})
    put_layers(runs[2], 5, {5: (2408842, 0.75), 6: (4768650, 0.6), 8: (9488266, 0.5)})
    frame = fill("thesis_5-1_layers", runs, published)
    assert frame["convolutions"].tolist() == [4, 4, 5, 5, 6, 6, 8, 8]
    cut = pick(frame, convolutions=4, quantity="test accuracy")
    assert cut["ours"] == pytest.approx(81)
    assert cut["spread"] == pytest.approx(math.sqrt(2))
    assert (cut["seeds"], cut["chosen"], cut["unit"]) == (2, "in 2 of 3 seeds", "%")
    assert cut["published CIFAR-10"] == 80.0
    assert cut["note"] == "seed 2: the similarity curve chose another cut"
    later = pick(frame, convolutions=5, quantity="test accuracy")
    assert (later["ours"], later["seeds"], later["chosen"], later["note"]) == (75, 3, "in 1 of 3 seeds", "")
    assert later["published CIFAR-10"] == 76.8  # the final accuracy, as ours; not the best one
    assert math.isnan(pick(frame, convolutions=5, quantity="parameters")["published CIFAR-10"])
    whole = pick(frame, convolutions=8, quantity="parameters")
    assert whole["ours"] == whole["published CIFAR-10"] == 9488266
    assert whole["chosen"] == "no"
    assert pick(frame, convolutions=6, quantity="test accuracy")["chosen"] == "no"


def test_published_cut_that_no_seed_chose_keeps_its_own_row(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1), dataset="cifar10")
    for run in runs:
        put_layers(run, 7, {7: (7128458, 0.7), 8: (9488266, 0.5)})
    frame = fill("thesis_5-1_layers", runs, published)
    assert pick(frame, convolutions=7, quantity="test accuracy")["chosen"] == "yes"
    row = pick(frame, convolutions=4, quantity="test accuracy")
    assert (row["chosen"], row["seeds"], row["published CIFAR-10"]) == ("yes", 0, 80.0)
    assert row["note"] == "not one of the cuts of these runs"
    assert pick(frame, convolutions=5)["chosen"] == "no"


def test_layers_stand_in_the_order_of_their_number(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0,))
    put_layers(runs[0], 9, {9: (9, 0.75), 10: (10, 0.5), 13: (13, 0.25)})
    frame = fill("thesis_5-1_layers", runs, published)
    assert frame["convolutions"].tolist() == [9, 9, 10, 10, 13, 13]


def test_network_that_cannot_be_cut_is_noted(tmp_path, published):
    runs = make_runs(tmp_path, "vgg16", seeds=(0,)) + make_runs(tmp_path, "alexnet", seeds=(0, 1))
    put_layers(runs[0], 9, {9: (9, 0.75), 10: (10, 0.5), 13: (13, 0.25)})
    frame = fill("thesis_5-1_layers", runs, published)
    row = pick(frame, model="alexnet")
    assert (row["quantity"], row["seeds"]) == ("", 0)
    assert row["note"] == "seeds 0, 1: not cut, or it cannot be cut: experiments/layers.parquet is missing"


def test_published_values_of_unmeasured_runs_stand_with_the_reason(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", dataset="cifar10")
    frame = fill("thesis_5-1", runs, published)
    assert len(frame) == 8 * 4 + 1  # published: neurons, two accuracies, difference; and what is missing
    assert frame["ours"].isna().all()
    assert set(frame["note"]) == {"seeds 0, 1, 2: nothing pruned: experiments/pruning.parquet is missing"}


def test_a_table_does_not_depend_on_the_order_of_the_runs(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet") + make_runs(tmp_path, "alexnet", dataset="cifar10")
    alexnet_quantities(runs)
    pd.testing.assert_frame_equal(
        fill("slides_4-2", runs, published), fill("slides_4-2", runs[::-1], published), check_exact=True
    )


@pytest.mark.parametrize("module", ["tables", "claims", "rendering"])
def test_import_needs_no_torch(module):
    code = f"import sys, nnscan.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_leftovers_of_an_earlier_configuration_count_as_missing(tmp_path):
    path = "training/results.csv"
    for files, found in ((None, True), (frozenset({path}), True), (frozenset({"training/history.csv"}), False)):
        run = Run("digits", "lenet5", 0, tmp_path, files)
        run.folder.joinpath("training").mkdir(exist_ok=True)
        run.folder.joinpath(path).write_text("checkpoint,split,loss,accuracy\nthird3,test,0.5,0.9\n", encoding="utf-8")
        assert run.has(path) is found
        assert len(collect([run], path)) == int(found)


def test_equal_values_have_no_spread():
    values = [21.7, np.nextafter(21.7, 22), 21.7]
    assert np.std(values, ddof=1) > 0
    assert spread(values) == spread([0.0, 0.0]) == 0
    assert spread([1.0, 2.0, 3.0]) == 1
    assert spread([1e-9, 2e-9, 3e-9]) == pytest.approx(1e-9)
    assert math.isnan(spread([1.0]))
