"""Tables and statistics of the thesis on small run folders whose numbers are known by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from nnscan import thesis
from nnscan.contents import TABLES
from nnscan.rendering import readable
from nnscan.tables import UndefinedStatistic, read_published
from result_files import fill, make_runs, pick, put


def put_classes(run, accuracies, **recognised):
    """Write the accuracy (0 to 1) of each class, and which averages of each kind are recognised."""
    rows = [
        {"class": number, "name": f"name{number}", "samples": 10, "accuracy": accuracy,
         **{f"confidence_{kind}": 0.5 for kind in recognised},
         **{f"recognised_{kind}": number < count for kind, count in recognised.items()}}
        for number, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    put(run, thesis.CLASSES, rows)


def similarity_rows(curves, average="simple", method=2, spreads=None):
    """Return two filters per layer, `spread` above and below the mean, of each class's curve by layer."""
    return [
        {"average": average, "method": method, "class": number, "layer": f"l{depth}", "depth": depth, "filter": filter,
         "similarity": mean + sign * (spreads[number][depth] if spreads else 0.1)}
        for number, curve in enumerate(curves)
        for depth, mean in enumerate(curve)
        for filter, sign in enumerate((-1, 1))
    ]  # fmt: skip


def put_histories(run, losses, chosen):
    """Write the validation losses by convolutions."""
    rows = [
        {"convolutions": convolutions, "chosen": convolutions == chosen, "epoch": epoch, "validation_loss": loss}
        for convolutions, values in losses.items()
        for epoch, loss in enumerate(values, start=1)
    ]
    put(run, thesis.HISTORIES, rows)


@pytest.fixture
def run(tmp_path):
    return make_runs(tmp_path, "vgg11", seeds=(0,), dataset="cifar10")[0]


# ----------------------------------------------------------------------------------------------------------- tables


def test_published_accuracies_of_the_classes(published):
    frame = read_published(published, "thesis_4-2")
    assert len(frame) == 10
    assert frame.loc[frame["value"].idxmin(), ["class", "value"]].tolist() == ["2", 51.8]
    # the thesis prints 73.9 % for the whole test split, of which each class is a tenth
    assert frame["value"].mean() == pytest.approx(73.9, abs=0.05)


def test_table_classes(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0, 1), dataset="cifar10")
    for one in runs:
        put_classes(one, [0.9, 0.8 + 0.1 * one.seed, *([0.7] * 7), 0.4])
    frame = fill("thesis_4-2", runs, published)
    row = pick(frame, **{"class": 1})
    assert (row["ours"], row["published CIFAR-10"], row["name"], row["note"]) == (pytest.approx(85), 88.3, "name1", "")
    assert row["spread"] == pytest.approx(10 / math.sqrt(2))
    worst = pick(frame, **{"class": 9})
    assert (worst["ours"], worst["published CIFAR-10"]) == (40, 86.6)
    assert worst["note"] == "the lowest accuracy of the classes"
    assert frame["class"].tolist() == list(range(10))
    assert (frame["note"] != "").sum() == 1
    view = readable(frame, TABLES["thesis_4-2"])
    assert view.frame["class"].tolist()[:2] == ["0", "1"]
    assert str(view.frame.iloc[1, -1]) == "88.3 / 85.0 ± 7.1"


def test_classes_of_other_data_have_no_published_values(tmp_path, published):
    runs = make_runs(tmp_path, "vgg11", seeds=(0,))
    put_classes(runs[0], [0.5, math.nan, *[0.9] * 10])
    frame = fill("thesis_4-2", runs, published)
    assert frame["class"].tolist() == list(range(12))  # by number, not by text
    assert frame["published CIFAR-10"].isna().all()
    assert pick(frame, **{"class": 1})["note"] == "no test image of this class"
    assert pick(frame, **{"class": 0})["note"] == "the lowest accuracy of the classes"
    assert "Published values beside" not in readable(frame, TABLES["thesis_4-2"]).legend


def test_published_classes_stand_alone_where_nothing_was_measured(tmp_path, published):
    frame = fill("thesis_4-2", make_runs(tmp_path, "vgg11", seeds=(0,), dataset="cifar10"), published)
    shown = frame[frame["quantity"] != ""]
    assert shown["published CIFAR-10"].notna().all()
    assert shown["class"].tolist() == list(range(10))
    assert all("classes.parquet is missing" in note for note in shown["note"])


# ------------------------------------------------------------------------------------------------------- statistics


def test_statistics_of_similarity_measures(run):
    rows = [
        {"measure": measure, "class": number, "over_other": share + 0.1 * number, "brightness": shift}
        for measure, share, shift in (("cosine", 0.8, 0), ("Euclidean", 0.7, 0.75), ("histogram", 0.2, math.nan))
        for number in (0, 1)
    ]
    put(run, thesis.MEASURES, rows)
    assert thesis.cosine_over_other_measures(run) == pytest.approx(0.1)
    assert thesis.euclidean_brightness_over_cosine(run) == pytest.approx(0.75)
    put(run, thesis.MEASURES, [{**row, "brightness": math.nan} for row in rows])
    with pytest.raises(UndefinedStatistic, match="worth as much"):
        thesis.euclidean_brightness_over_cosine(run)


def test_statistics_of_recognised_averages(run):
    put_classes(run, [0.5] * 10, simple=3, most=9, least=2, ascended=10)
    assert thesis.most_over_simple_recognised(run) == pytest.approx(0.6)
    assert thesis.least_recognised(run) == pytest.approx(0.2)
    assert thesis.most_recognised(run) == pytest.approx(0.9)
    assert thesis.ascended_recognised(run) == 1


def test_statistics_of_similarity_curves(run):
    curves = [[0.1, 0.3, 0.9, 0.4], [0.1, 0.5, 0.7, 0.6]]
    spreads = [[0.1, 0.2, 0.4, 0.3]] * 2
    rows = similarity_rows(curves, spreads=spreads)
    rows += similarity_rows([[0.9, 0.5, 0.3, 0.1]] * 2, method=1)
    put(run, thesis.SIMILARITY, rows)
    assert thesis.similarity_trend(run) == pytest.approx(0.8)  # 0.1, 0.4, 0.8, 0.5
    assert thesis.late_deviation_growth(run) == pytest.approx(-0.1)  # 0.4, 0.3
    assert thesis.layers_after_peak(run) == 1


def test_curves_are_those_of_the_similarity_values(run):
    from nnscan.similarities import layer_curves

    rng = np.random.default_rng(0)
    rows = [{**row, "similarity": rng.random()} for row in similarity_rows([[0, 0, 0]] * 2)]
    expected = layer_curves(pd.DataFrame(rows))
    found = pd.DataFrame(thesis.curves(pd.DataFrame(rows)))
    for quantity in ("mean", "sd"):
        own = found[found["quantity"] == quantity].sort_values(["class", "position"])
        np.testing.assert_allclose(own["value"], expected[quantity])


def test_one_layer_has_no_curve(run):
    put(run, thesis.SIMILARITY, similarity_rows([[0.5], [0.4]]))
    for statistic in (thesis.similarity_trend, thesis.late_deviation_growth, thesis.layers_after_peak):
        with pytest.raises(UndefinedStatistic, match=r"one layer only|no trend: 1 layers, and 4 are needed"):
            statistic(run)


def test_statistics_of_the_worst_class(run):
    put_classes(run, [0.9, 0.5, 0.8])
    rows = similarity_rows([[0.6, 0.8], [0.2, 0.3], [0.4, 0.7]], "least", spreads=[[0.3] * 2, [0.1] * 2, [0.2] * 2])
    rows += similarity_rows([[0.6, 0.8], [0.5, 0.6], [0.4, 0.7]], "most")
    put(run, thesis.SIMILARITY, rows)
    assert thesis.worst_class_least_lag(run) == pytest.approx(0.25 - 0.5)
    assert thesis.worst_class_least_over_most_lag(run) == pytest.approx((0.25 - 0.5) - (0.55 - 0.6))
    assert thesis.worst_class_least_deviation(run) == pytest.approx(0.1 - 0.2)
    put_classes(run, [0.5, 0.5, 0.8])
    with pytest.raises(UndefinedStatistic, match="several classes have the lowest accuracy"):
        thesis.worst_class_least_lag(run)
    put(run, thesis.SIMILARITY, similarity_rows([[0.5, 0.6]], "most"))
    put_classes(run, [0.5, 0.6, 0.8])
    with pytest.raises(UndefinedStatistic, match="no similarity with least averages"):
        thesis.worst_class_least_lag(run)


def test_statistics_of_cut_training(run):
    put_histories(run, {4: [3, 2, 1, 2], 5: [2, 1, 3, 3], 8: [1, 2, 3, 4]}, chosen=4)
    assert thesis.cut_delay_over_whole(run) == 2
    assert thesis.cut_delay_over_later(run) == 1
    put_histories(run, {8: [1, 2, 3, 4]}, chosen=8)
    for statistic in (thesis.cut_delay_over_whole, thesis.cut_delay_over_later):
        with pytest.raises(UndefinedStatistic, match="nothing is cut"):
            statistic(run)


def test_statistics_of_training(run):
    history = [
        {"phase": "regular", "epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate([3, 1, 2, 5, 4, 6])
    ]
    put(run, thesis.HISTORY, history)
    assert thesis.loss_trend_after_lowest(run) == pytest.approx(0.8)  # 2, 5, 4, 6
    put(run, thesis.HISTORY, history[:5])
    with pytest.raises(UndefinedStatistic, match="no trend: 3 epochs after the lowest loss, and 4 are needed"):
        thesis.loss_trend_after_lowest(run)
    (run.folder / thesis.HISTORY).write_text("phase,epoch,validation_loss\n", encoding="utf-8")
    with pytest.raises(UndefinedStatistic, match="not trained"):
        thesis.loss_trend_after_lowest(run)


def test_losses_that_only_scatter_have_no_trend_after_the_lowest(run):
    """The lowest one is lower than those after it by choice."""
    generator, found = np.random.default_rng(0), []
    for _ in range(300):
        rows = [{"phase": "regular", "epoch": epoch, "validation_loss": generator.random()} for epoch in range(12)]
        put(run, thesis.HISTORY, rows)
        try:
            found.append(thesis.loss_trend_after_lowest(run))
        except UndefinedStatistic:
            continue
    assert len(found) > 150
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


@pytest.mark.parametrize("name", sorted(thesis.STATISTICS))
def test_statistics_of_missing_files_are_undefined(run, name):
    with pytest.raises(UndefinedStatistic, match="is missing"):
        thesis.STATISTICS[name](run)
