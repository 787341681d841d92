"""Tables and claims on small run folders whose numbers are known by hand."""

import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnscan.artifacts import write_frame
from nnscan.errors import ArtifactError, ConfigurationError
from nnscan.tables import (
    QUANTITIES,
    STATISTICS,
    TABLES,
    Cell,
    Claim,
    Run,
    collect,
    evaluate_claims,
    interval,
    latex_text,
    missing,
    number,
    read_claims,
    read_csv,
    read_published,
    readable,
    render,
    verdict,
    write_csv,
)

T_975_2 = (2 * 0.975 - 1) * math.sqrt(2 / (4 * 0.975 * 0.025))  # quantile of Student's t, two degrees of freedom


@pytest.fixture(scope="session")
def published(repository):
    return repository / "workflow" / "published"


def put(run: Run, path: str, rows: list[dict]) -> None:
    if path.endswith(".csv"):
        (run.folder / path).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(run.folder / path, index=False)
    else:
        write_frame(run.folder / path, pd.DataFrame(rows), {})


def make_runs(folder: Path, model: str, seeds=(0, 1, 2), dataset: str = "digits") -> list[Run]:
    return [Run(dataset, model, seed, folder / dataset / model / f"seed{seed}") for seed in seeds]


def quantities(layers: dict[str, list[tuple[float, float, float, float]]]) -> list[dict]:
    return [
        {"layer": layer, "depth": depth, "l": luminance, "c": contrast, "s": structure, "fq": fq}
        for depth, (layer, neurons) in enumerate(layers.items())
        for luminance, contrast, structure, fq in neurons
    ]


def fill(table: str, runs: list[Run], published: Path) -> pd.DataFrame:
    return TABLES[table].function(runs, read_published(published, table))


def pick(frame: pd.DataFrame, **keys) -> dict:
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0].to_dict()


# ------------------------------------------------------------------------------------------------- published values


@pytest.mark.parametrize(
    ("table", "count"),
    [
        ("slides_4-2", 2 * 2 * (5 + 8 + 8 + 8)),  # two data sets, SSIM and FQ, AlexNet has five layers
        ("slides_4-3", 4 * 3 * 2),
        ("slides_5-1", 3 * 3 * 4),
        ("slides_5-2", 2 * 3 * 3 * 4),
        ("slides_6-2", 2 * (5 * 3 - 2)),  # LeNet-5 and Simple CNN lack the third data set
        ("slides_6-3", 2 * 2 * (5 * 3 - 2)),
        ("slides_6-5", 2 * (5 * 3 - 2)),
        ("thesis_4-1", 6 * 3),
        ("thesis_5-1", 8 * 5),
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
    assert set(frame["quantity"]) <= {*QUANTITIES, "pruned fraction"}


@pytest.mark.parametrize(
    ("table", "keys", "value"),
    [
        ("slides_4-2", {"model": "VGG-11", "data": "CUB200-2011", "layer": "conv7", "quantity": "SSIM"}, 0.87),
        ("slides_4-2", {"model": "AlexNet", "data": "ILSVRC-2013 DET", "layer": "conv5", "quantity": "FQ"}, 0.34),
        ("slides_4-2", {"model": "ResNet-18", "data": "CUB200-2011", "layer": "conv8", "quantity": "FQ"}, 0.51),
        ("slides_4-3", {"model": "VGG-16", "data": "data 2", "group": "bottom"}, 0.01),
        ("slides_4-3", {"model": "ResNet-18", "data": "data 3", "group": "bottom"}, 1.3),
        ("slides_5-1", {"model": "VGG-16", "data": "data 3", "ranking": "T_v"}, 66.15),
        ("slides_5-1", {"model": "AlexNet", "data": "data 1", "ranking": "T_cor"}, 24.40),
        ("slides_5-2", {"model": "AlexNet", "data": "data 3", "measure": "SoU", "property": "T_c"}, 0.18),
        ("slides_5-2", {"model": "VGG-11", "data": "data 1", "measure": "AVoU", "property": "T_cor"}, -0.32),
        ("slides_6-2", {"model": "ResNet-18", "data": "CIFAR-100", "checkpoint": "overfitted"}, 419),
        ("slides_6-3", {"model": "LeNet-5", "data": "CIFAR-10", "checkpoint": "overfitted", "group": "outlier"}, 2.811),
        ("slides_6-3", {"model": "VGG-16", "data": "CIFAR-100", "checkpoint": "overfitted", "group": "normal"}, 0.010),
        ("slides_6-5", {"model": "VGG-16", "data": "CIFAR-100", "group": "anomaly"}, 0),
        ("slides_6-5", {"model": "LeNet-5", "data": "CIFAR-100", "group": "random"}, -6.92),
        ("thesis_4-1", {"model": "VGG-11", "data": "CIFAR-10", "quantity": "test loss"}, 1.555),
        ("thesis_5-1", {"layer": "3", "quantity": "neurons"}, 512),  # as printed, though it must be 256
        ("thesis_5-1", {"layer": "4", "quantity": "accuracy, most similar pruned"}, 0.100),
    ],
)
def test_published_cells(published, table, keys, value):
    assert pick(read_published(published, table), **keys)["value"] == value


def test_published_differences_agree_with_their_accuracies(published):
    frame = read_published(published, "thesis_5-1").pivot_table("value", "layer", "quantity")
    difference = frame["accuracy, most similar pruned"] - frame["accuracy, least similar pruned"]
    np.testing.assert_allclose(difference, frame["difference"], atol=0.0011)  # the source rounds unrounded numbers


def test_claims_statistics_and_tables_belong_together(published):
    claims = read_claims(published / "claims.csv")
    assert {claim.statistic for claim in claims} == set(STATISTICS)
    assert {claim.table for claim in claims} == set(TABLES)
    assert len({claim.id for claim in claims}) == len(claims)
    assert {path.stem for path in published.glob("*.csv")} == {*TABLES, "claims"}


def test_unknown_published_table_names_the_closest(published):
    with pytest.raises(ArtifactError, match=r"did you mean 'slides_4-2'"):
        read_published(published, "slides_4_2")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("statistic", "fq_rises", "did you mean 'fq_rise'"),
        ("direction", "up", "greater, less"),
        ("table", "slides_9-9", "slides_4-2"),
    ],
)
def test_claim_that_names_something_unknown(published, tmp_path, column, value, message):
    frame = pd.read_csv(published / "claims.csv", dtype=str)
    frame.loc[0, column] = value
    frame.to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(ConfigurationError, match=message):
        read_claims(tmp_path / "claims.csv")


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


def alexnet_quantities(runs: list[Run]) -> None:
    # SSIM of layer a: (1 + 0.5) / 2; FQ of layer a: 0.2, 0.3, 0.4 over the seeds
    for run in runs:
        shift = 0.1 * run.seed
        others = {layer: [(0.5, 0.5, 1.0, 0.5)] for layer in "bcde"}
        put(
            run,
            "metrics/well_trained/quantity.parquet",
            quantities({"a": [(1, 1, 1, 0.1 + shift), (0.5, 1, 1, 0.3 + shift)], **others}),
        )


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


def put_curves(run: Run, drops: dict[str, float]) -> None:
    # the change falls linearly to -drop at half and stays there: area = drop / 4 + drop / 2
    rows = [
        {"layer": "z", "ranking": ranking, "draw": 0, "fraction": fraction, "change": -drop * min(1.0, 2 * fraction)}
        for ranking, drop in drops.items()
        for fraction in (0.0, 0.5, 1.0)
    ]
    put(run, "experiments/aipc.parquet", rows)


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


def put_properties(run: Run, **columns: list[float]) -> None:
    filler = {name: [1.0, 2.0, 3.0, 4.0] for name in ("T_m", "T_v", "T_c", "T_cor", "AVoU", "SoU")}
    first = pd.DataFrame({"layer": "a", "depth": 0, **{name: values[::-1] for name, values in filler.items()}})
    last = pd.DataFrame({"layer": "b", "depth": 1, **filler, **columns})
    write_frame(run.folder / "metrics/well_trained/properties.parquet", pd.concat([last, first]), {})


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


def put_anomalies(run: Run, checkpoint: str, count: int) -> None:
    rows = [{"layer": "a", "depth": 0, "filter": k, "is_anomaly": k < count} for k in range(10)]
    put(run, f"metrics/{checkpoint}/anomaly.parquet", rows)


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


def put_masking(run: Run, anomaly: float, random: list[float]) -> None:
    rows = [{"checkpoint": "overfitted", "group": "anomaly", "draw": 0, "filters": 4, "accuracy_change": anomaly}]
    rows += [
        {"checkpoint": "overfitted", "group": "random", "draw": draw, "filters": 4, "accuracy_change": value}
        for draw, value in enumerate(random)
    ]
    put(run, "experiments/anomaly_masking.parquet", rows)


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


def put_results(run: Run, accuracy: float, test_loss: float) -> None:
    rows = [
        {"checkpoint": checkpoint, "split": split, "loss": loss, "accuracy": accuracy - 0.1 * (checkpoint == "third1")}
        for checkpoint in ("third1", "third3")
        for split, loss in (("train", 0.25), ("test", test_loss))
    ]
    put(run, "training/results.csv", rows)


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


def put_pruning(run: Run, accuracies: dict[str, tuple[float, float, list[float]]]) -> None:
    rows = [
        {
            "layer": layer,
            "depth": depth,
            "neurons": 64,
            "group": group,
            "draw": draw,
            "fraction": 0.4,
            "accuracy": value,
        }
        for depth, (layer, (most, least, random)) in enumerate(accuracies.items())
        for group, values in (("most", [most]), ("least", [least]), ("random", random))
        for draw, value in enumerate(values)
    ]
    put(run, "experiments/pruning.parquet", rows)


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


# ----------------------------------------------------------------------------------------------------------- claims


def test_interval_closed_form():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(T_975_2 / math.sqrt(3), rel=1e-12)
    assert mean - low == pytest.approx(high - mean)


def test_interval_of_few_or_equal_values():
    assert interval([0.1, 0.1, 0.1]) == (0.1, 0.1, 0.1)
    assert interval([5.0])[0] == 5
    assert np.isnan(interval([5.0])[1:]).all()
    assert np.isnan(interval([])).all()


@pytest.mark.parametrize(
    ("low", "high", "direction", "threshold", "expected"),
    [
        (0.1, 0.3, "greater", 0, "reproduced"),
        (0.1, 0.3, "less", 0, "contradicted"),
        (-0.3, -0.1, "less", 0, "reproduced"),
        (-0.3, -0.1, "greater", 0, "contradicted"),
        (-0.1, 0.1, "greater", 0, "inconclusive"),
        (0.0, 0.1, "greater", 0, "inconclusive"),
        (0.2, 0.2, "greater", 0, "reproduced"),
        (0.0, 0.0, "greater", 0, "inconclusive"),
        (0.91, 0.95, "greater", 0.9, "reproduced"),
        (0.5, 0.8, "greater", 0.9, "contradicted"),
        (math.nan, math.nan, "greater", 0, "inconclusive"),
    ],
)
def test_verdict(low, high, direction, threshold, expected):
    assert verdict(low, high, direction, threshold) == expected


def claim(statistic: str, direction: str = "greater", **changes) -> Claim:
    values = {
        "id": statistic,
        "table": "slides_4-2",
        "statement": "A sentence.",
        "statistic": statistic,
        "direction": direction,
        "threshold": 0.0,
        "unit": "1",
        "models": (),
        "datasets": (),
        "remark": "",
        "source": "somebody",
    }
    return Claim(**{**values, **changes})


def test_claim_over_seeds(tmp_path):
    runs = make_runs(tmp_path, "lenet5")
    for run in runs:  # last minus first layer: 1, 2, 3
        put(
            run,
            "metrics/well_trained/quantity.parquet",
            quantities({"a": [(1, 1, 1, 0)], "b": [(0.5, 1, 1, 1 + run.seed)]}),
        )
    row = pick(evaluate_claims([claim("fq_rise")], runs))
    assert row["statistic"] == 2
    assert row["ci_low"] == pytest.approx(2 - T_975_2 / math.sqrt(3))
    assert row["verdict"] == "inconclusive"  # the interval is [-0.48, 4.48]
    assert (row["seeds"], row["undefined"], row["note"]) == (3, 0, "")
    trend = pick(evaluate_claims([claim("ssim_trend", "less")], runs))
    assert trend["statistic"] == trend["ci_low"] == trend["ci_high"] == pytest.approx(-1)
    assert trend["verdict"] == "reproduced"
    assert pick(evaluate_claims([claim("ssim_trend", "greater")], runs))["verdict"] == "contradicted"


def test_one_seed_is_inconclusive_and_says_so(tmp_path):
    runs = make_runs(tmp_path, "lenet5", seeds=(7,))
    put(runs[0], "metrics/well_trained/quantity.parquet", quantities({"a": [(1, 1, 1, 0)], "b": [(1, 1, 1, 1)]}))
    row = pick(evaluate_claims([claim("fq_rise")], runs))
    assert (row["statistic"], row["verdict"], row["note"]) == (1, "inconclusive", "one seed has a value: no interval")


def test_undefined_statistics_are_counted_and_named(tmp_path):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1, 2, 3))
    put_masking(runs[0], 1.0, [-1.0, -3.0])
    put_masking(runs[1], 1.0, [-2.0, -2.0])
    rows = [{"checkpoint": "well_trained", "group": "anomaly", "draw": 0, "filters": 1, "accuracy_change": 0.0}]
    put(runs[2], "experiments/anomaly_masking.parquet", rows)  # nothing to mask in the overfitted network
    row = pick(evaluate_claims([claim("anomaly_over_random", remark="Mind this.")], runs))
    assert (row["statistic"], row["seeds"], row["undefined"], row["verdict"]) == (3, 2, 2, "reproduced")
    assert "undefined for seed 2: no anomaly filters in the overfitted network" in row["note"]
    assert "undefined for seed 3: experiments/anomaly_masking.parquet is missing" in row["note"]
    assert row["remark"] == "Mind this."


def test_claims_speak_only_about_their_models_and_data(tmp_path):
    runs = make_runs(tmp_path, "alexnet") + make_runs(tmp_path, "vgg11") + make_runs(tmp_path, "vgg11", dataset="mnist")
    claims = [
        claim("area_lead_of_tm", models=("vgg11", "vgg16")),
        claim("loss_gap_after_training", datasets=("mnist",)),
    ]
    frame = evaluate_claims(claims, runs)
    assert list(zip(frame["id"], frame["dataset"], frame["model"], strict=True)) == [
        ("area_lead_of_tm", "digits", "vgg11"),
        ("area_lead_of_tm", "mnist", "vgg11"),
        ("loss_gap_after_training", "mnist", "vgg11"),
    ]
    assert set(frame["verdict"]) == {"inconclusive"}
    assert frame["note"].str.contains("is missing").all()


def test_statistics_of_masking_and_pruning(tmp_path):
    run = make_runs(tmp_path, "vgg11", seeds=(0,))[0]
    put_curves(run, {"T_m": 80, "T_v": 40, "T_c": 20, "T_cor": 8, "random": 4})  # area: 3/4 of the drop
    assert STATISTICS["area_best_over_random"](run) == pytest.approx(57)
    assert STATISTICS["area_lead_of_tm"](run) == pytest.approx(30)
    assert STATISTICS["area_lead_of_tc"](run) == pytest.approx(-45)
    put_properties(run, AVoU=[1, 2, 4, 3], T_c=[4, 3, 2, 1], SoU=[2, 1, 3, 4])
    assert STATISTICS["rank_avou_tm"](run) == pytest.approx(0.8)
    assert STATISTICS["rank_avou_tc"](run) == pytest.approx(-0.8)
    assert STATISTICS["rank_sou_tm"](run) == pytest.approx(0.8)
    put_anomalies(run, "well_trained", 2)
    put_anomalies(run, "overfitted", 5)
    assert STATISTICS["anomaly_growth"](run) == 3
    put_pruning(run, {"a": (0.2, 0.6, [0.5]), "b": (0.5, 0.4, [0.7]), "c": (0.1, 0.4, [0.2])})
    assert STATISTICS["most_over_least_damage"](run) == pytest.approx((0.4 - 0.1 + 0.3) / 3)
    assert STATISTICS["layers_where_most_hurts_more"](run) == pytest.approx(2 / 3)
    assert STATISTICS["most_over_random_damage"](run) == pytest.approx((0.3 + 0.2 + 0.1) / 3)
    put_results(run, 0.75, 0.5)
    assert STATISTICS["accuracy_after_training"](run) == pytest.approx(75)
    assert STATISTICS["loss_gap_after_training"](run) == 0.25
    values = {("well_trained", "outlier"): 3, ("well_trained", "normal"): 1, ("overfitted", "outlier"): 9}
    values[("overfitted", "normal")] = 4
    rows = [{"checkpoint": c, "group": g, "gradient": float(v), "samples": 1} for (c, g), v in values.items()]
    put(run, "experiments/gradients.parquet", rows)
    assert STATISTICS["gradient_gap_well_trained"](run) == 2
    assert STATISTICS["gradient_gap_overfitted"](run) == 5
    assert STATISTICS["outlier_gradient_growth"](run) == 6
    changes = {"top": 100.0, "bottom": -5.0, "random": 30.0}
    rows = [
        {"layer": "a", "depth": 0, "group": group, "draw": 0, "filters": 4, "loss_change": change}
        for group, change in changes.items()
    ]
    put(run, "experiments/diversity_masking.parquet", rows)
    assert STATISTICS["loss_top_over_bottom"](run) == 105
    assert STATISTICS["loss_top_over_random"](run) == 70


# -------------------------------------------------------------------------------------------------------- rendering


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (math.nan, 2, "–"),
        (-0.346, 2, "−0.35"),
        (0.0012, None, "0.0012"),
        (66.15, None, "66.15"),
        (-12.8, None, "−12.8"),
        (0.00012, 3, "0.0001"),
        (-0.0, 1, "0.0"),
        (12345.6, 1, "12345.6"),
        (0.0, 3, "0.000"),
    ],
)
def test_number(value, decimals, expected):
    assert number(value, decimals) == expected


def test_latex_text_escapes_what_latex_acts_upon():
    assert latex_text(r"a_b & 5 % of $x$ #1 {y} ~^\z") == (
        r"a\_b \& 5 \% of \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}z"
    )
    assert latex_text("−1 ± 2 – 3") == r"$-$1 $\pm$ 2 -- 3"


def strange_runs(folder: Path) -> list[Run]:
    runs = make_runs(folder, "my_net<b>|50%", seeds=(0, 1))
    for run in runs:
        layers = {"block_1.conv": [(1, 1, 1, 0.2 + 0.1 * run.seed)], "head & tail": [(1, 1, -0.5, math.nan)]}
        put(run, "metrics/well_trained/quantity.parquet", quantities(layers))
    return runs


def test_rendered_texts_are_escaped(tmp_path, published):
    frame = fill("slides_4-2", strange_runs(tmp_path), published)
    paths = render(frame, TABLES["slides_4-2"], tmp_path / "tables")
    assert sorted(path.name for path in paths.values()) == [
        f"slides_4-2.{kind}" for kind in ("csv", "html", "md", "tex")
    ]
    tex, page, text = (paths[ending].read_text(encoding="utf-8") for ending in ("tex", "html", "md"))
    assert r"\textbf{digits, my\_net\textless{}b\textgreater{}\textbar{}50\%}" in tex
    assert r"2 $\cdot$ head \& tail & -- / $-$0.500 $\pm$ 0.000 & -- / --\textsuperscript{1} \\" in tex
    assert r"\textsuperscript{1} no foreground mask" in tex
    assert tex.count(r"\begin{") == tex.count(r"\end{")
    assert "my_net&lt;b&gt;|50%" in page
    assert "my_net<b>" not in page
    assert r"my\_net\<b\>\|50%" in text
    assert r"| 1 · block\_1.conv | – / 1.000 ± 0.000 | – / 0.2500 ± 0.0707 |" in text


def test_readable_cells(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet")
    alexnet_quantities(runs)
    view = readable(fill("slides_4-2", runs, published), TABLES["slides_4-2"])
    assert list(view.frame) == ["data", "model", "layer", "SSIM", "FQ"]
    assert str(view.frame.loc[0, "FQ"]) == "0.0012, 0.0003 / 0.3000 ± 0.1000"
    assert "those on ILSVRC-2013 DET, CUB200-2011, in this order" in view.legend


def test_csv_is_rounded_sorted_and_repeatable(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet")
    alexnet_quantities(runs)
    table = TABLES["slides_4-2"]
    first = render(fill(table.id, runs, published), table, tmp_path / "one")
    second = render(fill(table.id, runs[::-1], published), table, tmp_path / "two")
    for ending, path in first.items():
        assert path.read_bytes() == second[ending].read_bytes()
    write_csv(tmp_path / "x.csv", pd.DataFrame({"ours": [1 / 3, -0.0, 1234567.8], "note": ["", "a,b", ""]}))
    assert (tmp_path / "x.csv").read_text() == 'ours,note\n0.333333,\n0,"a,b"\n1.23457e+06,\n'


def test_csv_reads_back_as_the_same_table(tmp_path, published):
    runs = make_runs(tmp_path, "alexnet", seeds=(0, 1)) + make_runs(tmp_path, "vgg16", seeds=(0,))
    alexnet_quantities(runs[:2])
    table = TABLES["slides_4-2"]
    frame = fill(table.id, runs, published)
    again = read_csv(render(frame, table, tmp_path)["csv"])
    pd.testing.assert_frame_equal(frame, again, rtol=1e-5)
    before, after = readable(frame, table), readable(again, table)
    assert (before.frame.equals(after.frame), before.notes, before.remarks) == (True, after.notes, after.remarks)


def test_evaluated_claims_read_back(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    alexnet_quantities(runs)
    frame = evaluate_claims(read_claims(published / "claims.csv"), runs)
    write_csv(tmp_path / "claims.csv", frame)
    pd.testing.assert_frame_equal(frame, read_csv(tmp_path / "claims.csv"), rtol=1e-5)


def test_a_study_without_any_file_still_renders(tmp_path, published):
    runs = make_runs(tmp_path, "lenet5", seeds=(0,))
    for table in TABLES.values():
        paths = render(fill(table.id, runs, published), table, tmp_path / "tables")
        assert "is missing" in paths["md"].read_text()


def test_import_needs_no_torch():
    code = "import sys, nnscan.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
