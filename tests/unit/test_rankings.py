"""How methods rank by scores and where scores disagree, on numbers known by hand."""

import math
import re

import pandas as pd
import pytest

from nnscan import attacks, sanity, stability
from nnscan.evaluation import METRICS, THRESHOLDS
from nnscan.layout import QUESTIONS
from nnscan.metrics import COLUMNS
from nnscan.rankings import (
    FEWEST,
    FILES,
    MEASURES,
    RANKED,
    agreement,
    by_question,
    disputed,
    means,
    places,
    ranked,
    wide,
)
from nnscan.tables import QUANTITIES

NAN = math.nan


def scores(rows):
    """Return a frame of rows of method, metric, case and values by image; NaN has the reason "why"."""
    return pd.DataFrame(
        [
            (sample, method, metric, case, value, "why" if math.isnan(value) else "")
            for method, metric, case, values in rows
            for sample, value in enumerate(values)
        ],
        columns=list(COLUMNS),
    )


def test_measures_are_cases_of_the_metrics():
    by_name = {metric.name: metric for metric in METRICS}
    for measure in MEASURES:
        metric = by_name[measure.metric]
        assert (measure.question, measure.direction) == (metric.question, metric.direction)
        assert measure.quantity in QUANTITIES
        assert bool(measure.case) <= bool(metric.cases)
        assert measure.path in FILES.values()
    # every metric of a method is shown, and ranked by one of its cases at most; curves are drawn
    curves = {"deletion_curve", "insertion_curve"}
    assert {*by_name} == {measure.metric for measure in MEASURES} | {"roar", "attack_prediction"} | curves
    assert len({measure.metric for measure in RANKED.values()}) == len(RANKED)
    assert {name for name, metric in by_name.items() if metric.direction} == {
        *(measure.metric for measure in RANKED.values()), "residual", "roar"
    }  # fmt: skip
    assert set(FILES) == set(QUESTIONS)


def test_measures_take_every_case_that_evaluations_give():
    steps = [
        f"{answer} at {epsilon:.2g}" for answer in (stability.KEPT, stability.FLIPPED) for epsilon in stability.EPSILONS
    ]
    cases = {
        "iou": [f"{threshold:g}" for threshold in THRESHOLDS],
        "parameters_rank": ["features.0", "classifier", sanity.ALL],
        "fgsm_rank": steps,
        "fgsm_peaks": steps,
        "attack_rank": [*attacks.GOALS, attacks.CHANCE],
        "attack_peaks": [*attacks.GOALS, attacks.CHANCE],
        "attack_approach": ["target", attacks.CHANCE],
    }
    for metric, names in cases.items():
        for case in names:
            taken = [one for one in MEASURES if one.metric == metric and re.fullmatch(one.case, case)]
            # methods are ranked by what the small step leaves on all images, whatever their answer
            assert [one.ranked for one in taken if metric in ("fgsm_rank", "fgsm_peaks")] in (
                [],
                [False],
                [True, False],
            )
            assert len(taken) == 1 + (metric in ("fgsm_rank", "fgsm_peaks") and "0.031" in case), (metric, case)
    for metric in {measure.metric for measure in MEASURES} - {*cases, "parameters_rank_size", "parameters_ssim"}:
        assert [one.case for one in MEASURES if one.metric == metric] == [""]


def test_means_over_images_and_cases():
    found = means(
        scores(
            [
                ("a", "iou", "0.5", [0.2, 0.4]),
                ("a", "iou", "0.2", [1.0, 0.0]),
                ("a", "energy", "", [0.5, NAN]),
                ("b", "iou", "", [NAN, NAN]),  # refuses
                ("a", "parameters_rank", "last", [0.1, 0.3]),
                ("a", "parameters_rank", "middle", [NAN, 0.8]),
                ("a", "parameters_rank", "all", [0.0, 0.5]),
                ("", "attack_prediction", "target", [0.1, 0.1]),  # speaks of the model
            ]
        )
    )
    rows = {(row["method"], row["quantity"]): row for row in found}
    assert rows["a", "IoU at 0.5"]["value"] == pytest.approx(0.3)
    assert rows["a", "IoU at 0.2"]["value"] == 0.5
    energy = rows["a", "energy inside the object"]
    assert (energy["value"], energy["images"], energy["without"], energy["reason"]) == (0.5, 2, 1, "why")
    for name in ("IoU at 0.5", "IoU at 0.2"):
        row = rows["b", name]
        assert math.isnan(row["value"])
        assert (row["images"], row["without"], row["reason"]) == (2, 2, "why")
    assert rows["a", "random network, rank"]["value"] == 0.25
    last = rows["a", "random last layers, rank"]
    assert last["value"] == pytest.approx((0.1 + 0.3 + 0.8) / 3)
    assert (last["images"], last["without"]) == (4, 1)
    assert {method for method, _ in rows} == {"a", "b"}
    assert len(rows) == 7


TABLE = pd.DataFrame(
    {
        "IoU at 0.5": [0.9, 0.5, 0.5, NAN],
        "deletion": [0.1, 0.2, 0.3, 0.0],
        "insertion": [0.9, 0.8, 0.7, 1.0],
        "time per image": [3.0, 2.0, 1.0, NAN],
    },
    index=["a", "b", "c", "d"],
)


def test_ranks_and_places_go_from_the_best_to_the_worst():
    rank = ranked(TABLE)
    assert rank["IoU at 0.5"].tolist()[:3] == [1, 2.5, 2.5]
    assert rank["deletion"].tolist() == [2, 3, 4, 1]  # lower is better
    assert rank["time per image"].tolist()[:3] == [3, 2, 1]
    assert rank.loc["d"].isna().tolist() == [True, False, False, True]
    place = places(TABLE)
    assert place["IoU at 0.5"].tolist()[:3] == [0, 0.75, 0.75]
    assert place["insertion"].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 0])
    assert place["time per image"].tolist()[:3] == [1, 0.5, 0]
    alone = places(pd.DataFrame({"deletion": [0.5, NAN]}, index=["a", "b"]))
    assert alone["deletion"].isna().all()


def test_memory_below_a_megabyte_is_little_and_no_more():
    table = pd.DataFrame({"memory per image": [0.13, 0.9, 5.0, 2.0]}, index=["a", "b", "c", "d"])
    assert ranked(table)["memory per image"].tolist() == [1.5, 1.5, 4, 3]


def test_questions_and_where_they_disagree():
    questions = by_question(places(TABLE))
    assert questions.columns.tolist() == ["localisation", "faithfulness", "cost"]
    assert questions["faithfulness"].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 0])
    span = disputed(questions)
    assert span.index.tolist() == ["a", "c", "b"]  # d has one question only
    assert span.tolist() == pytest.approx([1, 1, 0.25])


def test_agreement_of_scores():
    table = pd.DataFrame(
        {
            "deletion": [1.0, 2, 3, 4, 5],
            "insertion": [5.0, 4, 3, 1, 2],  # the same order but for the last two: higher is better
            "IoU at 0.5": [1.0, 2, 3, 4, 5],
            "pointing game": [1.0] * 5,
            "energy inside the object": [1.0, 2, 3, 4, NAN],
        }
    )
    assert len(table) == FEWEST
    tau, rho = agreement(table, "kendall"), agreement(table, "spearman")
    assert tau.loc["deletion", "insertion"] == pytest.approx((9 - 1) / 10)
    assert rho.loc["insertion", "deletion"] == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert tau.loc["deletion", "IoU at 0.5"] == -1
    assert tau.loc["deletion", "deletion"] == 1
    assert tau["pointing game"].drop("pointing game").isna().all()  # constant
    assert tau["energy inside the object"].drop("energy inside the object").isna().all()  # four methods only


def test_rows_become_a_table_of_seed_means():
    rows = [
        {"method": method, "quantity": quantity, "value": value}
        for method, quantity, value in (
            ("z", "deletion", 0.1), ("z", "deletion", 0.3), ("a", "deletion", 0.5), ("a", "deletion", NAN),
            ("z", "IoU at 0.5", 0.7), ("m", "deletion", NAN), ("z", "roughness", 0.1),
        )
    ]  # fmt: skip
    found = wide(rows)
    assert found.index.tolist() == ["z", "a"]
    assert found.columns.tolist() == ["IoU at 0.5", "deletion"]  # in the order of the measures
    assert found["deletion"].tolist() == pytest.approx([0.2, 0.5])
    assert wide([]).empty
