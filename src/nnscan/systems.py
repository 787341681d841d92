"""Tables and statistics of the systems beside the theses: Network Dissection, intrinsic dimension, ProtoPNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from nnscan.correlation import error_correlation
from nnscan.errors import DataError
from nnscan.layout import DISSECTED, MEASURED
from nnscan.tables import (
    BASE,
    Row,
    Run,
    Table,
    UndefinedStatistic,
    assemble,
    measure,
    named_seeds,
    positions,
    published_rows,
    rank_correlation,
    records_of,
    reduced,
    require_learned_labels,
    summarise,
    values_of,
)

TRAINING = DISSECTED  # in the order of time
ALL = "all"  # categories, or layers, together

_PLATEAU = "plateau of the blocks"
_NO_PLATEAU = "no threefold range of points gives one estimate"
_NO_DIMENSION = "the dimension does not exist"

ROTATIONS = "experiments/rotations.parquet"
RESULTS = "training/results.csv"
HISTORY = "training/history.csv"
PROTOTYPES = "training/prototypes_results.csv"
DISTINCT = "training/prototypes_distinct.csv"


def detectors_of(checkpoint: str) -> str:
    """Return the path of a checkpoint's counts of detectors."""
    return f"metrics/{checkpoint}/detectors.parquet"


def dimension_of(checkpoint: str) -> str:
    """Return the path of a checkpoint's intrinsic dimensions."""
    return f"metrics/{checkpoint}/dimension.parquet"


# ---------------------------------------------------------------------------------------------------------------------
# Network Dissection


def detector_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the detectors of each layer, by category and of all categories together."""
    places = positions(frame)
    names = {
        "best": "unique detectors",
        "top": "unique detectors, top labels only",
        "units": "detector units",
        "share": "share of units",
    }
    rows = []
    for layer, own in frame.groupby("layer"):
        keys = {"position": places[str(layer)], "layer": layer}
        sums = {column: own[column].sum() for column in ("best", "top", "units")}
        together = {"category": ALL, **sums, "share": 100 * sums["units"] / own["of"].iloc[0]}
        rows += [
            {**keys, "category": found["category"], "quantity": quantity, "value": float(found[column])}
            for found in [*records_of(own.assign(share=100 * own["units"] / own["of"])), together]
            for column, quantity in names.items()
        ]
    return rows


def table_detectors(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the unique detectors by layer. Source: Bau et al. 2017, released statistics."""
    measured: list[Row] = []
    for checkpoint in TRAINING:
        measured += measure(runs, detectors_of(checkpoint), detector_numbers, "not dissected", checkpoint=checkpoint)
    keys = ("checkpoint", "position", "layer", "category")
    ours = summarise(measured, keys, "undefined")
    rows = published_rows(published, runs)
    for row in rows:
        row["position"] = int(row["position"])
    return assemble(ours, rows, published, keys, "the network has no such layer, or the labels no such category")


def rotation_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the unique detectors for each power of the rotations, mean over the rotations, and their change in %.

    Beside them the largest change of a class score when the layer is rotated and rotated back, in millionths of the
    largest score.
    """
    changes = (1e6 * frame.groupby("alpha")["deviation"].max()).to_dict()
    totals = frame.groupby(["alpha", "rotation"])["best"].sum().groupby("alpha").mean()
    rows = []
    for alpha, count in totals.items():
        rows.append({"power": f"{alpha:g}", "quantity": "unique detectors", "value": float(count)})
        change = 100 * (float(count) / float(totals[0.0]) - 1) if totals[0.0] else np.nan
        rows.append({"power": f"{alpha:g}", "quantity": "change of unique detectors", "value": change})
        rows.append({"power": f"{alpha:g}", "quantity": "change of the outputs", "value": float(changes[alpha])})
    return rows


def table_rotation(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the rotation experiment. Source: Bau et al. 2017, section 3.2."""
    measured = measure(runs, ROTATIONS, rotation_numbers, "not rotated")
    ours = summarise(measured, ("power",), "there is no detector without rotation")
    return assemble(ours, published_rows(published, runs), published, ("power",), "not rotated so far")


def _detectors(run: Run, checkpoint: str, layer: int = -1, category: str = ALL) -> float:
    """Return the unique detectors of a layer, the last one by default.

    Raises:
        UndefinedStatistic: There is no such file or category.
    """
    rows = reduced(run, detectors_of(checkpoint), detector_numbers)
    return values_of(rows, "undefined", category=category, quantity="unique detectors")[layer]


def detectors_over_untrained(run: Run) -> float:
    """Return the unique detectors of the last layer minus those of the untrained network's."""
    return _detectors(run, "well_trained") - _detectors(run, "untrained")


def epochs_trained(frame: pd.DataFrame) -> list[Row]:
    """Return after how many epochs each dissected checkpoint was kept."""
    lowest = min(records_of(frame), key=lambda row: float(row["validation_loss"]))["epoch"]
    thirds = {f"third{part}": round(len(frame) * part / 3) for part in (1, 2)}  # as `training.kept_epochs`
    epochs = {"untrained": 0, **thirds, "well_trained": lowest}
    return [{"checkpoint": checkpoint, "value": float(epochs[checkpoint])} for checkpoint in TRAINING]


def detectors_over_training(run: Run) -> float:
    """Return the rank correlation of the last layer's unique detectors with the epochs of training."""
    counts = pd.Series([_detectors(run, checkpoint) for checkpoint in TRAINING])
    epochs = values_of(reduced(run, HISTORY, epochs_trained), "undefined")
    found = rank_correlation(counts, pd.Series(epochs))
    if np.isnan(found):
        raise UndefinedStatistic("every checkpoint has as many unique detectors")
    return found


def _share_lost(run: Run, category: str) -> float:
    """Return the share of a category among the first layer's unique detectors minus that of the last layer's."""
    shares = []
    if len({row["layer"] for row in reduced(run, detectors_of("well_trained"), detector_numbers)}) < 2:
        raise UndefinedStatistic("one layer only")
    for layer in (0, -1):
        total = _detectors(run, "well_trained", layer)
        if not total:
            raise UndefinedStatistic("the first or the last layer detects nothing")
        shares.append(_detectors(run, "well_trained", layer, category) / total)
    return shares[0] - shares[1]


def color_share_lost(run: Run) -> float:
    """Return the share of colors among the first layer's unique detectors minus that of the last layer's."""
    return _share_lost(run, "color")


def object_share_gained(run: Run) -> float:
    """Return the share of objects among the last layer's unique detectors minus that of the first layer's.

    Raises:
        UndefinedStatistic: There are two categories at most, of which one's share is what the other's is not.
    """
    rows = reduced(run, detectors_of("well_trained"), detector_numbers)
    labelled = sorted({str(row["category"]) for row in rows} - {ALL})
    if len(labelled) < 3:
        raise UndefinedStatistic(f"nothing but {' and '.join(labelled)} is labelled: one share follows from the other")
    return -_share_lost(run, "object")


def all_detectors(run: Run) -> tuple[str, float]:
    """Return the model's name and the unique detectors of its last layer."""
    return run.model, _detectors(run, "well_trained")


def object_detectors(run: Run) -> tuple[str, float]:
    """Return the model's name and the unique object detectors of its last layer."""
    return run.model, _detectors(run, "well_trained", category="object")


def change_by(suffix: str) -> Callable[[Sequence[tuple[str, float]]], tuple[float, float, float]]:
    """Return what takes the values of runs by model to how much larger they are for models with a suffix to the name.

    The difference of the means over the runs of such a model and of its twin without it, mean over the pairs, with the
    95 % interval after Welch and Satterthwaite: what differs between pairs is not what differs within them.
    """

    def change(values: Sequence[tuple[str, float]]) -> tuple[float, float, float]:
        runs: dict[str, list[float]] = {}
        for name, value in values:
            runs.setdefault(name, []).append(value)
        twins = [(runs[f"{name}{suffix}"], runs[name]) for name in runs if f"{name}{suffix}" in runs]
        if not twins:
            raise UndefinedStatistic(f"no model has a twin whose name ends in {suffix!r}")
        pairs = [pair for pair in twins if min(map(len, pair)) > 1]
        sides = [side for pair in pairs for side in pair]
        if all(len({*side}) == 1 for side in sides):
            raise UndefinedStatistic("too few seeds, or all alike: no interval")
        mean = float(np.mean([np.mean(beside) - np.mean(without) for beside, without in pairs]))
        errors = [np.var(side, ddof=1) / len(side) / len(pairs) ** 2 for side in sides]
        freedom = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
        reach = float(student.ppf(0.975, freedom) * np.sqrt(sum(errors)))
        return mean, mean - reach, mean + reach

    return change


def _rotations(run: Run) -> pd.Series:
    rows = reduced(run, ROTATIONS, rotation_numbers)
    counts = {float(row["power"]): row["value"] for row in rows if row["quantity"] == "unique detectors"}
    if not any(counts.values()):
        raise UndefinedStatistic("there is no detector in any basis")
    return pd.Series(counts)


def detectors_lost_by_rotation(run: Run) -> float:
    """Return how many unique detectors a full random rotation takes away, mean over the rotations.

    A difference, not a share of the own basis' detectors: runs in which that basis has none count, so that by chance
    alone nothing is lost on average.
    """
    counts = _rotations(run)
    return float(counts[0.0] - counts[1.0])


def rotation_trend(run: Run) -> float:
    """Return the rank correlation of the unique detectors with the power of the rotation."""
    counts = _rotations(run)
    found = rank_correlation(counts, pd.Series(counts.index, counts.index))
    if np.isnan(found):
        raise UndefinedStatistic("every rotation has as many unique detectors")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Intrinsic dimension


def _place(found: Row) -> str:
    return "input" if found["layer"] == "input" else "output" if found["relative_depth"] == 1 else "hidden"


def dimension_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return what TwoNN and PCA say of each place of a network: its input, hidden layers and output.

    Why not to trust an estimate stands with the intrinsic dimension, as the warning; why there is no plateau with that.
    """
    quantities = {
        "dimension": "intrinsic dimension",
        "plateau": _PLATEAU,
        "fit": "fit of the line",
        "dropped": "points left out",
        "pca_dimension": "PCA dimension",
    }
    rows = []
    for position, found in enumerate(records_of(frame)):
        keys = {"position": position, "layer": found["layer"], "place": _place(found)}
        keys |= {"depth": found["relative_depth"], "width": found["width"]}
        values = {quantity: float(found[column]) for column, quantity in quantities.items()}
        why = dict.fromkeys(values, "") | {"intrinsic dimension": found["warning"]}
        if np.isnan(values[_PLATEAU]):
            why[_PLATEAU] = _NO_DIMENSION if np.isnan(values["intrinsic dimension"]) else _NO_PLATEAU
        rows += [{**keys, "quantity": name, "value": value, "warning": why[name]} for name, value in values.items()]
    return rows


def _beside(published: list[Row], ours: list[Row]) -> list[Row]:
    """Return the published places with the positions of ours.

    A negative position counts from the output. A place without position is one that the zoo's smaller networks lack;
    it keeps the source's name. So does every place of a network that was not measured, in the source's order.
    """
    last: dict[tuple[str, str], int] = {}
    for row in (row for row in ours if row["position"] is not None):
        network = (row["dataset"], row["model"])
        last[network] = max(last.get(network, 0), row["position"])
    rows: list[Row] = []
    count: dict[tuple[str, str], int] = {}
    for row in published:
        network = (row["dataset"], row["model"])
        count[network] = count.get(network, 0) + 1
        if network not in last:
            rows.append({**row, "position": count[network] - 1})
        elif pd.isna(row["position"]):
            rows.append({**row, "position": None})
        else:
            position = int(row["position"])
            rows.append({**row, "position": position if position >= 0 else last[network] + 1 + position})
            del rows[-1]["layer"]
    return rows


def _warnings(measured: list[Row], keys: Sequence[str]) -> dict[tuple[object, ...], list[str]]:
    """Return why not to trust numbers, or why there are none, by key, with the seeds where they are not all."""
    seeds: dict[tuple[object, ...], set[int]] = {}
    said: dict[tuple[object, ...], dict[str, list[int]]] = {}
    for row in (row for row in measured if "warning" in row):
        key = tuple(row[name] for name in keys)
        seeds.setdefault(key, set()).add(row["seed"])
        texts = [row["warning"]] if np.isnan(row["value"]) else row["warning"].split("; ")
        for text in filter(None, texts):
            said.setdefault(key, {}).setdefault(text, []).append(row["seed"])
    return {
        key: [text if len(own) == len(seeds[key]) else f"{named_seeds(own)}: {text}" for text, own in texts.items()]
        for key, texts in said.items()
    }


def table_dimension(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the intrinsic dimension by layer. Source: Ansuini et al. 2019, figure 3."""
    measured: list[Row] = []
    for checkpoint in MEASURED:
        path = dimension_of(checkpoint)
        asking = [run for run in runs if run.asks(path)]
        measured += measure(asking, path, dimension_numbers, "not measured", checkpoint=checkpoint)
    keys = ("checkpoint", "position", "layer")
    ours = summarise(measured, keys, _NO_DIMENSION)
    named = (*BASE, *keys, "quantity")
    warned = _warnings(measured, named)
    for row in ours:
        note = "" if row["quantity"] == _PLATEAU else row["note"]
        row["note"] = "; ".join(filter(None, [note, *warned.get(tuple(row[key] for key in named), [])]))
    rows = _beside(published_rows(published, runs), ours)
    return assemble(ours, rows, published, keys, "the network has no such place")


def last_hidden(frame: pd.DataFrame) -> list[Row]:
    """Return the record of the last hidden layer, if one was measured."""
    return [found for found in records_of(frame) if _place(found) == "hidden"][-1:]


def last_hidden_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the intrinsic dimension of the last hidden layer, if one was measured."""
    quantity = "dimension of the last hidden layer"
    return [{"quantity": quantity, "value": float(found["dimension"])} for found in last_hidden(frame)]


def wrong_answers(frame: pd.DataFrame) -> list[Row]:
    """Return the test error (%) of the well-trained checkpoint."""
    chosen = frame[(frame["checkpoint"] == "well_trained") & (frame["split"] == "test")]
    return [{"quantity": "test error", "value": 100 * (1 - float(value))} for value in chosen["accuracy"]]


def hidden_and_error(dimensions: pd.DataFrame, results: pd.DataFrame) -> list[Row]:
    """Return dimension and sd of the last hidden layer and the test error (0 to 1) of a run, if it has both."""
    return [
        {"dimension": found["dimension"], "sd": found["sd"], "error": wrong["value"] / 100}
        for found in last_hidden(dimensions)
        for wrong in wrong_answers(results)
        if np.isfinite(found["dimension"])
    ]


def table_error(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the last hidden layer's dimension beside the test error. Source: Ansuini et al. 2019, figure 4."""
    measured = measure(runs, dimension_of("well_trained"), last_hidden_numbers, "not measured", "no hidden layer")
    measured += measure(runs, RESULTS, wrong_answers, "not trained")
    ours = summarise(measured, (), "the dimension does not exist")
    return assemble(ours, published_rows(published, runs), published, (), "not measured by nnscan")


def _dimensions(run: Run, checkpoint: str, **place: str) -> list[float]:
    """Return the intrinsic dimension of each place, or of those of a kind: input, hidden or output.

    Raises:
        UndefinedStatistic: There is no such place, or a dimension does not exist.
    """
    rows = reduced(run, dimension_of(checkpoint), dimension_numbers)
    return values_of(rows, "a layer's dimension does not exist", quantity="intrinsic dimension", **place)


def dimension_rise(run: Run) -> float:
    """Return the largest dimension of a hidden layer minus that of the input."""
    return max(_dimensions(run, "well_trained", place="hidden")) - _dimensions(run, "well_trained", place="input")[0]


def dimension_fall(run: Run) -> float:
    """Return the largest dimension of the earlier hidden layers minus that of the last hidden one."""
    *earlier, last = _dimensions(run, "well_trained", place="hidden")
    if not earlier:
        raise UndefinedStatistic("one hidden layer only")
    return max(earlier) - last


def _places(run: Run) -> list[Row]:
    """Return the intrinsic dimension of each place of the well-trained network; all exist."""
    _dimensions(run, "well_trained")
    rows = reduced(run, dimension_of("well_trained"), dimension_numbers)
    return [row for row in rows if row["quantity"] == "intrinsic dimension"]


def dimension_early_peak(run: Run) -> float:
    """Return by how much the dimension is higher in the first half of the network than in the input and the second.

    The largest of the places behind the input at a relative depth below a half, minus the largest of the others. Not
    the peak's own depth: it takes few values, of which three seeds may agree by chance.

    Raises:
        UndefinedStatistic: No place in the first half was measured.
    """
    found = [(row["place"] != "input" and row["depth"] < 0.5, row["value"]) for row in _places(run)]
    early = [value for first, value in found if first]
    if not early:
        raise UndefinedStatistic("no place in the first half of the network was measured")
    return float(max(early) - max(value for first, value in found if not first))


def dimension_by_width(run: Run) -> float:
    """Return the largest share that the dimension has in the number of features of a hidden layer.

    Raises:
        UndefinedStatistic: There is no hidden layer.
    """
    shares = [row["value"] / row["width"] for row in _places(run) if row["place"] == "hidden"]
    if not shares:
        raise UndefinedStatistic("no hidden layer")
    return float(max(shares))


def _variation(run: Run, checkpoint: str) -> float:
    found = _dimensions(run, checkpoint)
    return (max(found) - min(found)) / float(np.mean(found))


def dimension_variation_over_untrained(run: Run) -> float:
    """Return the range of the dimension over the layers, as a multiple of its mean, minus the untrained network's."""
    return _variation(run, "well_trained") - _variation(run, "untrained")


def shuffled_over_trained_dimension(run: Run) -> float:
    """Return the last hidden layer's dimension for shuffled labels minus that of the well-trained network.

    Raises:
        UndefinedStatistic: The network has not learned the shuffled labels by heart.
        NotAsked: The study trains no network on shuffled labels.
    """
    require_learned_labels(run)
    return _dimensions(run, "shuffled", place="hidden")[-1] - _dimensions(run, "well_trained", place="hidden")[-1]


def pca_over_dimension(run: Run) -> float:
    """Return the PCA dimension of the last hidden layer by its intrinsic dimension."""
    rows = reduced(run, dimension_of("well_trained"), dimension_numbers)
    components = values_of(rows, "undefined", quantity="PCA dimension", place="hidden")[-1]
    return components / _dimensions(run, "well_trained", place="hidden")[-1]


def dimension_and_error(run: Run) -> tuple[tuple[str, float], float]:
    """Return the model's name with the last hidden layer's dimension, and the test error (%)."""
    dimension = _dimensions(run, "well_trained", place="hidden")[-1]
    error = values_of(reduced(run, RESULTS, wrong_answers), "undefined", quantity="test error")[0]
    return (run.model, dimension), error


def correlation_over_models(values: Sequence[tuple[tuple[str, float], float]]) -> tuple[float, float, float]:
    """Return Pearson's r of two values over models, each the mean over its runs, and the bounds of its 95 % interval.

    Seeds of a model are alike, and would count as so many models.

    Args:
        values: Of each run the model's name with the first value, and the second.

    Raises:
        UndefinedStatistic: There are fewer than four models, or one side is constant.
    """
    rows = [(model, first, second) for (model, first), second in values]
    means = pd.DataFrame(rows, columns=["model", "first", "second"]).groupby("model").mean()
    try:
        found = error_correlation(means["first"], means["second"])
    except DataError as error:
        raise UndefinedStatistic(f"mean over the seeds of each model: {error}") from None
    return found.r, found.low, found.high


# ---------------------------------------------------------------------------------------------------------------------
# ProtoPNet


def prototype_results(frame: pd.DataFrame) -> list[Row]:
    """Return the test accuracy (%) of the backbone and of the ProtoPNet, and what the ProtoPNet gains (pp)."""
    accuracy = frame[frame["split"] == "test"].set_index("checkpoint")["accuracy"] * 100
    values = {
        "accuracy of the backbone": accuracy["backbone"],
        "accuracy of the ProtoPNet": accuracy["prototypes"],
        "accuracy gained": accuracy["prototypes"] - accuracy["backbone"],
    }
    return [{"quantity": quantity, "value": float(value)} for quantity, value in values.items()]


def distinct_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the number of prototypes and the share (%) that is distinct within its class."""
    count = float(frame["prototypes"].sum())
    return [
        {"quantity": "prototypes", "value": count},
        {"quantity": "distinct prototypes", "value": 100 * float(frame["distinct"].sum()) / count},
    ]


def table_prototypes(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the accuracy of ProtoPNets. Source: Chen et al. 2019, table 1."""
    reason = "no ProtoPNet on this network"
    measured = measure(runs, PROTOTYPES, prototype_results, reason) + measure(runs, DISTINCT, distinct_numbers, reason)
    ours = summarise(measured, (), "undefined")
    return assemble(ours, published_rows(published, runs), published, (), reason)


def prototype_accuracy_gained(run: Run) -> float:
    """Return the test accuracy of the ProtoPNet minus that of its backbone (pp)."""
    return values_of(reduced(run, PROTOTYPES, prototype_results), "undefined", quantity="accuracy gained")[0]


def distinct_prototypes_share(run: Run) -> float:
    """Return the share of prototypes (%) that are distinct within their class."""
    return values_of(reduced(run, DISTINCT, distinct_numbers), "undefined", quantity="distinct prototypes")[0]


# ---------------------------------------------------------------------------------------------------------------------

_DISSECTION = "Bau et al. 2017, Network Dissection"
_DIMENSION = "Ansuini et al. 2019, Intrinsic dimension of data representations"

TABLES = {
    table.id: table
    for table in (
        Table(
            id="dissection_detectors",
            title="Network Dissection: unique detectors by layer",
            source=f"{_DISSECTION}, released statistics",
            direction="more when trained than untrained; colors in early layers, objects in late ones",
            inputs=tuple(map(detectors_of, TRAINING)),
            function=table_detectors,
            columns="quantity",
            caption="A unit detects the concept of its highest IoU where that is above the threshold. Unique detectors "
            "are distinct concepts: counted by each unit's best concept within every category, as the released "
            "statistics do, or by its top label only, as the paper's text does. The published values are those of the "
            "last convolution on Broden's 1,197 concepts with networks for 224 pixels, trained on ImageNet or Places; "
            "'untrained' is AlexNet with random weights.",
        ),
        Table(
            id="dissection_rotation",
            title="Network Dissection: unique detectors of a rotated layer",
            source=f"{_DISSECTION}, section 3.2",
            direction="fewer, the further the rotation",
            inputs=(ROTATIONS,),
            function=table_rotation,
            columns="quantity",
            caption="The last dissected layer is multiplied by a power of a random rotation, and what reads it by the "
            "inverse, so that the network's outputs stay the same: the largest change of a class score, over the "
            "rotations and the first images, stands in millionths of the largest score. Detectors: mean over the "
            "rotations. Published: conv5 of AlexNet on Places205; values between are in a figure only.",
        ),
        Table(
            id="dimension_layers",
            title="Intrinsic dimension by layer",
            source=f"{_DIMENSION}, figure 3",
            direction="rises in early layers, falls towards the output; flat when untrained",
            inputs=tuple(map(dimension_of, MEASURED)),
            function=table_dimension,
            columns="quantity",
            caption="TwoNN, and the components that hold 90 % of the variance. Position 0 is the input. Values above "
            "20 are lower bounds. Plateau: the estimate where it does not change with the number of points. Fit: R² of "
            "the line through the ratios of distances. Left out: points that coincide with another, or nearly. The "
            "published values belong to networks for 224 pixels on ImageNet, read off the figure: each of "
            "seven categories was measured by itself, with 500 images; ours are of all classes together, so that each "
            "class has fewer. Their pools, or blocks, stand beside ours in order, their last "
            "two linear layers beside our last two; the first of three (fc6) and ResNet's first pool stand alone.",
        ),
        Table(
            id="dimension_error",
            title="Intrinsic dimension of the last hidden layer and test error",
            source=f"{_DIMENSION}, figure 4",
            direction="the lower the dimension, the lower the error (r = 0.94)",
            inputs=(dimension_of("well_trained"), RESULTS),
            function=table_error,
            columns="quantity",
            caption="Ours is the error of the first guess, the published one that of the first five, on ImageNet.",
        ),
        Table(
            id="prototypes_accuracy",
            title="ProtoPNet beside its backbone",
            source="Chen et al. 2019, This looks like that, table 1",
            direction="about as accurate: 3.5 points lost at most",
            inputs=(PROTOTYPES, DISTINCT),
            function=table_prototypes,
            columns="quantity",
            caption="Test accuracy of the network that ends in prototypes and of the same network without them. "
            "Published: birds (CUB-200-2011, cropped), networks that were trained on ImageNet before. Prototypes of a "
            "class are distinct if they come from different patches and differ.",
        ),
    )
}
STATISTICS = {
    function.__name__: function
    for function in (
        detectors_over_untrained,
        detectors_over_training,
        color_share_lost,
        object_share_gained,
        detectors_lost_by_rotation,
        rotation_trend,
        dimension_rise,
        dimension_fall,
        dimension_early_peak,
        dimension_by_width,
        dimension_variation_over_untrained,
        shuffled_over_trained_dimension,
        pca_over_dimension,
        prototype_accuracy_gained,
        distinct_prototypes_share,
    )
}


class OverRuns(NamedTuple):
    """A statistic of several runs together.

    Attributes:
        of_run: The values of one run; raises UndefinedStatistic where it has none.
        combine: From the runs' values to the statistic and the bounds of its 95 % interval; likewise.
    """

    of_run: Callable[[Run], tuple[Any, float]]
    combine: Callable[[Sequence[tuple[Any, float]]], tuple[float, float, float]]


OVER_RUNS = {
    "dimension_and_error": OverRuns(dimension_and_error, correlation_over_models),
    "batch_norm_detectors": OverRuns(all_detectors, change_by("-bn")),
    "dropout_object_detectors": OverRuns(object_detectors, change_by("-dropout")),
}
