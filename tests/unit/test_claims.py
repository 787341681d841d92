"""Claims on small run folders whose statistics are known by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from nnscan.claims import STATISTICS, Claim, evaluate_claims, interval, read_claims, verdict
from nnscan.contents import TABLES
from nnscan.errors import ConfigurationError
from result_files import (
    make_runs,
    pick,
    put,
    put_anomalies,
    put_curves,
    put_layers,
    put_masking,
    put_properties,
    put_pruning,
    put_results,
    quantities,
)

T_975_2 = (2 * 0.975 - 1) * math.sqrt(2 / (4 * 0.975 * 0.025))  # quantile of Student's t, two degrees of freedom


def test_claims_statistics_and_tables_belong_together(published):
    claims = read_claims(published / "claims.csv")
    assert {claim.statistic for claim in claims} == set(STATISTICS)
    assert {claim.table for claim in claims} == set(TABLES)
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
