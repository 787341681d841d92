"""Claims on small run folders whose statistics are known by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from nnscan import slides, systems
from nnscan.artifacts import write_frame
from nnscan.claims import STATISTICS, Claim, evaluate_claims, interval, read_claims, verdict
from nnscan.contents import CONTENTS, OVER_RUNS, TABLES
from nnscan.errors import ConfigurationError
from nnscan.properties import TYPES
from nnscan.training import THIRDS
from result_files import (
    make_runs,
    pick,
    put,
    put_ablation,
    put_agreement,
    put_anomalies,
    put_curves,
    put_detectors,
    put_dimensions,
    put_distances,
    put_history,
    put_knowledge,
    put_layer_quantities,
    put_layers,
    put_localisation,
    put_masking,
    put_properties,
    put_prototypes,
    put_pruning,
    put_results,
    put_rotations,
    put_shuffled_accuracy,
    put_single,
    put_test_accuracy,
    put_types,
    put_winners,
    quantities,
)

T_975_2 = (2 * 0.975 - 1) * math.sqrt(2 / (4 * 0.975 * 0.025))  # quantile of Student's t, two degrees of freedom


def test_claims_statistics_and_tables_belong_together(published):
    claims = read_claims(published / "claims.csv")
    assert {claim.statistic for claim in claims} == {*STATISTICS, *OVER_RUNS}
    assert not STATISTICS.keys() & OVER_RUNS.keys()
    assert set(TABLES) <= {claim.table for claim in claims} <= set(CONTENTS)
    assert len({claim.id for claim in claims}) == len(claims)
    assert {path.stem for path in published.glob("*.csv")} == {*TABLES, "claims"}


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
        between = {"b": [(0.9, 1, 1, 0.5)], "c": [(0.7, 1, 1, 0.5)]}
        put(
            run,
            "metrics/well_trained/quantity.parquet",
            quantities({"a": [(1, 1, 1, 0)], **between, "d": [(0.5, 1, 1, 1 + run.seed)]}),
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


def test_types_and_phases_are_those_of_the_library():
    assert slides.TYPES == TYPES
    assert slides.PHASES == THIRDS


def test_statistics_of_filter_types(tmp_path):
    run = make_runs(tmp_path, "vgg11", seeds=(0,))[0]
    types = {"H-H": (0.3, [6.0, 12.0, 24.0], 3.0), "H-noH": (0.1, [1.0, 2.0, 6.0], 0.5), "L-L": (0.2, [0, 3.0, 0], 2.0)}
    types |= {name: (0.05, [0, 0, 0], 0) for name in ("noH-H", "L-noL", "noL-L")}
    put_types(run, types)
    assert STATISTICS["types_alike_over_foreground_only"](run) == pytest.approx(0.2)
    assert STATISTICS["types_alike_over_others"](run) == pytest.approx(0.5 - 0.25)
    assert STATISTICS["high_high_lead"](run) == pytest.approx(14 - 3)
    assert STATISTICS["high_high_over_random"](run) == pytest.approx(14 - 3)
    assert STATISTICS["high_high_over_foreground_only"](run) == pytest.approx(24 / 30 - 6 / 10)
    assert STATISTICS["high_high_growth"](run) == 18
    put_types(run, {**types, "L-L": (0.2, [20.0, 20.0, 20.0], 2.0), "H-H": (0.3, [6.0, 12.0, 24.0], 15.0)})
    assert STATISTICS["high_high_lead"](run) == pytest.approx(14 - 20)
    assert STATISTICS["high_high_over_random"](run) == pytest.approx(-1)


def test_claims_about_types_are_undefined_without_types(tmp_path):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1, 2))
    nothing = pd.DataFrame(columns=["checkpoint", "layer", "type", "group", "draw", "proportion", "accuracy_lost"])
    write_frame(runs[0].folder / "experiments/filter_types.parquet", nothing, {})
    put_types(runs[1], {name: (0.2 * (name != "H-noH"), [1, 2, 3], 1) for name in TYPES})
    row = pick(evaluate_claims([claim("high_high_over_foreground_only")], runs))
    assert (row["seeds"], row["undefined"], row["verdict"]) == (0, 3, "inconclusive")
    assert "undefined for seed 0: no foreground and background to tell apart" in row["note"]
    assert "undefined for seed 1: no H-noH filters" in row["note"]
    assert "undefined for seed 2: experiments/filter_types.parquet is missing" in row["note"]
    assert pick(evaluate_claims([claim("high_high_growth")], runs))["statistic"] == 2


def test_statistics_of_single_anomaly_filters(tmp_path):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1, 2))
    put_single(runs[0], [(-1, -1), (-0.5, 0), (-2, 2), (0, 0), (0, 1)])
    assert STATISTICS["training_falls"](runs[0]) == 0.75
    assert STATISTICS["validation_rises"](runs[0]) == 0.5
    put_single(runs[1], [(0, 0)])
    put_single(runs[2], [(-1, 1)], "well_trained")
    row = pick(evaluate_claims([claim("training_falls")], runs))
    assert (row["statistic"], row["seeds"], row["undefined"]) == (0.75, 1, 2)
    assert "undefined for seed 1: masking any one anomaly filter leaves the accuracy as it is" in row["note"]
    assert "undefined for seed 2: no anomaly filters in the overfitted network" in row["note"]


def test_trend_of_anomaly_filters_along_the_overfitting_training(tmp_path):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1, 2))
    put_history(runs[0], {20: 1, 40: 3, 60: 2, 80: 7})
    assert STATISTICS["anomaly_trend"](runs[0]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # the well-trained is left out
    put_history(runs[1], {20: 4, 40: 4, 60: 4, 80: 4})
    row = pick(evaluate_claims([claim("anomaly_trend")], runs))
    assert (row["seeds"], row["undefined"]) == (1, 2)
    assert "undefined for seed 1: no trend: the same value in all checkpoints" in row["note"]
    assert "undefined for seed 2: metrics/anomaly_history.parquet is missing" in row["note"]


def test_statistics_of_knowledge(tmp_path):
    run = make_runs(tmp_path, "alexnet", seeds=(0,))[0]
    put_knowledge(run, {"a": (1.0, 0.125), "b": (2.0, 0.25), "c": (3.0, 0.375)})
    assert STATISTICS["knowledge_count_growth"](run) == 0.25
    assert STATISTICS["intensity_over_count"](run) == pytest.approx(0)
    put_knowledge(run, {"a": (1.0, 0.5), "b": (3.0, 0.5)})
    assert STATISTICS["intensity_over_count"](run) == 0.5  # deviation 1 of the mean 2, and none
    layers = {"a": [(0.9, 0.8, 0.6)], "b": [(0.7, 0.9, 0.5)], "c": [(0.4, 0.4, 0.1)], "d": [(0.3, 0.5, 0.2)]}
    put_agreement(run, layers)
    assert STATISTICS["agreement_trend"](run) == pytest.approx(-1)
    assert STATISTICS["agreement_least"](run) == 0.3
    assert STATISTICS["overlap_trend"](run) == pytest.approx(-0.6)  # 0.8, 0.9, 0.4, 0.5
    assert STATISTICS["overlap_over_any"](run) == pytest.approx(0.3)


def test_statistics_of_distances(tmp_path):
    run = make_runs(tmp_path, "alexnet", seeds=(0,))[0]
    near, far = [(0.5, 1.0), (1.0, 1.0)], [(0.5, 1.0), (0.5, 1.0)]  # 1 - 0.75 / 1, 1 - 0.5 / 1
    put_distances(run, {"a": (True, [(1.0, 1.0)]), "b": (True, near), "c": (False, far), "d": (False, near)})
    assert STATISTICS["closeness_linear"](run) == 0.375
    assert STATISTICS["closeness_linear_over_convolutional"](run) == 0.25
    assert STATISTICS["closeness_growth"](run) == 0.25
    miss, hit = [(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)], [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    put_winners(run, [hit, hit, hit, miss])
    assert STATISTICS["winner_hit_rate"](run) == 0.75
    assert STATISTICS["winner_hit_rate_scaled"](run) == 1
    assert STATISTICS["winner_over_chance"](run) == pytest.approx(0.75 - 1 / 3)


def test_statistics_of_layers_and_elements(tmp_path):
    run = make_runs(tmp_path, "alexnet", seeds=(0,))[0]
    layers = [{"": 0.5, "l": 0.25, "vf": 0.75}, {"": -0.5, "l": -0.25, "vf": -0.5}, {"": 0.5, "l": 0.5, "vf": 0.5}]
    put_layer_quantities(run, layers, variance=[0.25, 0.75, 0.5], active=[-0.5, -0.5, 0.25])
    assert STATISTICS["correlation_positive"](run) == pytest.approx(2 / 3)
    assert STATISTICS["correlation_positive_active"](run) == pytest.approx(1 / 3)
    assert STATISTICS["variance_middle_over_last"](run) == 0.25
    assert STATISTICS["variance_middle_over_first"](run) == 0.5
    assert STATISTICS["correlation_change_without_element"](run) == pytest.approx(0.25 / 3)  # that of vf
    rows = [
        {"layer": "a", "depth": 0, "group": group, "draw": 0, "filters": 4, "loss_change": change}
        for group, change in {"top": 100.0, "bottom": -5.0, "random": 30.0}.items()
    ]
    put(run, "experiments/diversity_masking.parquet", rows)
    put_ablation(run, {"l": [(10.0, 20.0)], "s": [(80.0, 5.0)], "vf": [(50.0, 0.0)]})
    assert STATISTICS["lead_lost_without_element"](run) == 105 - 75  # without s most of the lead is left


@pytest.mark.parametrize(
    ("statistic", "reason"),
    [
        ("knowledge_count_growth", "one layer only"),
        ("intensity_over_count", "one layer only"),
        ("agreement_trend", "no trend"),
        ("closeness_growth", "one convolutional layer only"),
        ("closeness_linear", "no linear layer"),
        ("variance_middle_over_last", "fewer than three layers"),
        ("variance_middle_over_first", "fewer than three layers"),
        ("correlation_positive", "no foreground mask"),
        ("correlation_change_without_element", "no foreground mask"),
        ("lead_lost_without_element", "no element was left out"),
    ],
)
def test_statistics_that_a_small_network_does_not_have(tmp_path, statistic, reason):
    runs = make_runs(tmp_path, "lenet5", seeds=(0, 1))
    for run in runs:
        put_knowledge(run, {"a": (1.0, 0.5)})
        put_agreement(run, {"a": [(0.9, 0.8, 0.6)]})
        put_distances(run, {"a": (True, [(1.0, 1.0)])})
        put_layer_quantities(run, [{"": math.nan, "l": 0.5}, {"": 0.5, "l": 0.5}])
        columns = ["without", "layer", "depth", "group", "filters", "loss_change"]
        write_frame(run.folder / "experiments/ablation_masking.parquet", pd.DataFrame(columns=columns), {})
    row = pick(evaluate_claims([claim(statistic)], runs))
    assert (row["seeds"], row["undefined"], row["verdict"]) == (0, 2, "inconclusive")
    assert reason in row["note"]


def test_pruning_claims_hold_for_the_share_that_was_pruned(tmp_path):
    run = make_runs(tmp_path, "vgg11", seeds=(0,))[0]
    put_pruning(run, {"a": (0.25, 0.75, [0.5]), "b": (0.5, 0.25, [1.0])}, fraction=0.25)
    assert STATISTICS["most_over_least_damage"](run) == 0.125
    assert STATISTICS["layers_where_most_hurts_more"](run) == 0.5
    assert STATISTICS["most_over_random_damage"](run) == 0.375


def test_statistics_of_layer_removal(tmp_path):
    run = make_runs(tmp_path, "vgg11", seeds=(0,))[0]
    put_layers(run, 4, {4: (1, 0.75), 5: (2, 0.625), 8: (3, 0.5)})
    assert STATISTICS["cut_over_whole"](run) == 25
    assert STATISTICS["cut_over_later"](run) == 12.5
    put_layers(run, 7, {7: (2, 0.25), 8: (3, 0.5)})  # one layer later is the whole network
    assert STATISTICS["cut_over_whole"](run) == STATISTICS["cut_over_later"](run) == -25


def test_claims_about_layers_are_undefined_where_nothing_is_cut(tmp_path):
    runs = make_runs(tmp_path, "simple_cnn", seeds=(0, 1, 2))
    put_layers(runs[0], 2, {2: (1, 0.75), 3: (2, 0.5)})
    put_layers(runs[1], 3, {3: (2, 0.5)})
    for statistic in ("cut_over_whole", "cut_over_later"):
        row = pick(evaluate_claims([claim(statistic)], runs))
        assert (row["statistic"], row["seeds"], row["undefined"], row["verdict"]) == (25, 1, 2, "inconclusive")
        assert "undefined for seed 1: the similarity curve peaks at the last layer" in row["note"]
        assert "undefined for seed 2: experiments/layers.parquet is missing" in row["note"]


def test_statistics_of_localisation(tmp_path):
    run = make_runs(tmp_path, "vgg11", seeds=(0,))[0]
    values = {"CAM": [0.1, 0.2], "Grad-CAM": [0.2, 0.4], "FQ map": [0.6, 0.8], "NNS": [0.5, 0.6], "input": [0.9, 0.9]}
    put_localisation(run, values)
    assert STATISTICS["fq_over_cam"](run) == pytest.approx(0.55)
    assert STATISTICS["fq_over_grad_cam"](run) == pytest.approx(0.4)
    assert STATISTICS["fq_over_unweighted"](run) == pytest.approx(0.15)
    assert STATISTICS["fq_over_input"](run) == pytest.approx(-0.2)
    put_localisation(run, {**values, "CAM": [math.nan, math.nan]})
    row = pick(evaluate_claims([claim("fq_over_cam")], [run]))
    assert row["note"] == "undefined for seed 0: CAM is not defined for this network"
    columns = ["sample", "method", "threshold", "iou"]
    write_frame(run.folder / "metrics/well_trained/localisation.parquet", pd.DataFrame(columns=columns), {})
    assert "no foreground masks" in pick(evaluate_claims([claim("fq_over_cam")], [run]))["note"]


def put_pair(run, dimension: float, error: float) -> None:
    """Write the dimension of the last hidden layer and the test error (%)."""
    put_dimensions(run, "well_trained", [(20.0, 40), (dimension, 9), (2.0, 3)])
    put_test_accuracy(run, 1 - error / 100)


MODELS = ("lenet5", "vgg11", "alexnet", "fcn")


def test_claim_over_runs(tmp_path):
    runs = [run for model in MODELS for run in make_runs(tmp_path, model)]
    runs += make_runs(tmp_path, "vgg11", dataset="mnist")
    pairs = [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (4.0, 40.0)]  # r = 0.8
    for number, (dimension, error) in enumerate(pairs):
        put_pair(runs[3 * number], dimension - 0.5, error + 1)
        put_pair(runs[3 * number + 1], dimension + 0.5, error - 1)
    put_dimensions(runs[2], "well_trained", [(20.0, 40), (math.nan, 9), (2.0, 3)])
    put_pair(runs[12], 1.0, 10.0)
    frame = evaluate_claims([claim("dimension_and_error", table="dimension_error")], runs)
    assert list(zip(frame["dataset"], frame["model"], strict=True)) == [("digits", "all"), ("mnist", "all")]
    row = pick(frame, dataset="digits")
    assert row["statistic"] == pytest.approx(0.8)
    half = 1.959963984540054  # of Fisher's z, for four models
    assert row["ci_low"] == pytest.approx(math.tanh(math.atanh(0.8) - half))
    assert row["ci_high"] == pytest.approx(math.tanh(math.atanh(0.8) + half))
    assert (row["seeds"], row["undefined"], row["verdict"]) == (8, 4, "inconclusive")
    missing = "metrics/well_trained/dimension.parquet is missing"
    assert row["note"] == (
        f"undefined for fcn seed 2, alexnet seed 2, vgg11 seed 2: {missing}; "
        "undefined for lenet5 seed 2: a layer's dimension does not exist"
    )
    row = pick(frame, dataset="mnist")
    assert math.isnan(row["statistic"])
    assert (row["seeds"], row["undefined"], row["verdict"]) == (1, 2, "inconclusive")
    assert f"undefined for vgg11 seeds 1, 2: {missing}" in row["note"]
    assert "undefined: mean over the seeds of each model: a correlation needs 4 pairs" in row["note"]


def test_claim_over_runs_is_judged_by_its_own_interval(tmp_path):
    names = (*MODELS, "vgg16", "resnet18")
    runs = [run for model in names for run in make_runs(tmp_path, model, seeds=[0])]
    for number, run in enumerate(runs):
        put_pair(run, 1.0 + number, 10.0 * (number + 1) + (number == 3))
    claims = [claim("dimension_and_error", direction) for direction in ("greater", "less")]
    assert evaluate_claims(claims, runs)["verdict"].tolist() == ["reproduced", "contradicted"]


def test_claim_over_runs_speaks_only_about_its_models_and_data(tmp_path):
    runs = make_runs(tmp_path, "lenet5", seeds=range(4)) + make_runs(tmp_path, "vgg11", seeds=range(4), dataset="mnist")
    for run in runs:
        put_pair(run, 1.0 + run.seed, 10.0 + run.seed)
    for change in ({"models": ("vgg11",)}, {"datasets": ("mnist",)}):
        row = pick(evaluate_claims([claim("dimension_and_error", **change)], runs))
        assert (row["dataset"], row["model"], row["seeds"]) == ("mnist", "all", 4)
    assert evaluate_claims([claim("dimension_and_error", models=("alexnet",))], runs).empty


def put_systems(run, holds: bool) -> None:
    """Write result files of all systems that are as their sources have it, or the contrary."""
    counts = (6, 7, 8, 9) if holds else (9, 8, 7, 6)
    for checkpoint, count in zip(("untrained", "third1", "third2", "well_trained"), counts, strict=True):
        first = {"color": (4, 4, 4), "object": (1, 1, 1)} if holds else {"color": (0, 0, 0), "object": (4, 4, 4)}
        layers = {"a": first, "b": {"color": (1, 1, 1), "object": (count, count, count)}}
        put_detectors(run, checkpoint, {name: {**own, "texture": (1, 1, 1)} for name, own in layers.items()})
    history = [{"phase": "regular", "epoch": epoch, "validation_loss": 9 - epoch} for epoch in range(1, 7)]
    put(run, "training/history.csv", history)
    turned = {0.0: 9, 0.2: 6, 1.0: 3} if holds else {0.0: 3, 0.2: 6, 1.0: 9}
    put_rotations(run, {power: [(0, count)] for power, count in turned.items()})
    more = 0.1 * run.seed
    own = [(10, 40), (15, 30), (3 + more, 16), (2, 3)] if holds else [(20, 40), (5, 30), (9 + more, 8), (25, 3)]
    untrained = [(10, 40)] * 4 if holds else [(40, 40), (5, 30), (5, 20), (5, 3)]
    shuffled = [(10, 40), (10, 30), (8 if holds else 5, 8), (3, 3)]
    for checkpoint, places in {"well_trained": own, "untrained": untrained, "shuffled": shuffled}.items():
        put_dimensions(run, checkpoint, places, width=640 if holds else 64)
    put_shuffled_accuracy(run, 1.0)
    put_test_accuracy(run, 0.5 - more if holds else 0.5 + more)
    put_prototypes(run, 0.75, 0.73 if holds else 0.7, [(10, 10), (10, 9 if holds else 7)])


@pytest.mark.parametrize(("holds", "expected"), [(True, "reproduced"), (False, "contradicted")])
def test_each_claim_about_the_systems_can_hold_and_can_fail(published, tmp_path, holds, expected):
    claims = [one for one in read_claims(published / "claims.csv") if one.table in systems.TABLES]
    assert {one.statistic for one in claims} == {*systems.STATISTICS, *systems.OVER_RUNS}
    runs = make_runs(tmp_path, "alexnet", seeds=range(5))
    for run in runs:
        put_systems(run, holds)
    for name, sign in (("alexnet-bn", -1), ("alexnet-dropout", 1)):
        for run in make_runs(tmp_path, name, seeds=range(5)):
            count = 8 + 5 * (sign if holds else -sign) + run.seed % 2
            put_detectors(run, "well_trained", {"b": {"color": (1, 1, 1), "object": (count, count, count)}})
            runs.append(run)
    for number, name in enumerate(("lenet5", "simple_cnn", "vgg11", "vgg16")):
        (run,) = make_runs(tmp_path, name, seeds=[0])
        more = 5.0 * number + number % 2
        put_pair(run, number + (4.0 if holds else 10.0), 75 + more if holds else 25 - more)
        runs.append(run)
    found = evaluate_claims(claims, runs)
    found = found[found["model"].isin(["alexnet", "all"])]
    about_all = found["model"] == "all"
    assert found[~about_all]["note"].tolist() == [""] * len(systems.STATISTICS)
    assert (found[about_all]["seeds"] >= 5).all()
    assert dict(zip(found["id"], found["verdict"], strict=True)) == {one.id: expected for one in claims}
