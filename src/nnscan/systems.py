"""Tables and statistics of the systems beside the theses: Network Dissection, intrinsic dimension, ProtoPNet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnscan.correlation import error_correlation
from nnscan.errors import DataError
from nnscan.tables import (
    Row,
    Run,
    Table,
    UndefinedStatistic,
    assemble,
    measure,
    positions,
    published_rows,
    rank_correlation,
    records_of,
    reduced,
    summarise,
    values_of,
)

TRAINING = ("untrained", "third1", "third2", "well_trained")
ALL = "all"  # categories, or layers, together

ROTATIONS = "experiments/rotations.parquet"
RESULTS = "training/results.csv"
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
    names = {"best": "unique detectors", "top": "unique detectors, top labels only", "units": "detector units"}
    rows = []
    for layer, own in frame.groupby("layer"):
        keys = {"position": places[str(layer)], "layer": layer}
        together = {"category": ALL, **{column: own[column].sum() for column in names}}
        rows += [
            {**keys, "category": found["category"], "quantity": quantity, "value": float(found[column])}
            for found in [*records_of(own), together]
            for column, quantity in names.items()
        ]
        share = 100 * float(own["units"].sum()) / float(own["of"].iloc[0])
        rows.append({**keys, "category": ALL, "quantity": "share of units", "value": share})
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
    """Return the unique detectors for each power of the rotations, mean over the rotations, and their change in %."""
    totals = frame.groupby(["alpha", "rotation"])["best"].sum().groupby("alpha").mean()
    rows = []
    for alpha, count in totals.items():
        rows.append({"power": f"{alpha:g}", "quantity": "unique detectors", "value": float(count)})
        if alpha:
            change = 100 * (float(count) / float(totals[0.0]) - 1) if totals[0.0] else np.nan
            rows.append({"power": f"{alpha:g}", "quantity": "change of unique detectors", "value": change})
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


def detectors_over_training(run: Run) -> float:
    """Return the rank correlation of the last layer's unique detectors with the time of training."""
    counts = pd.Series([_detectors(run, checkpoint) for checkpoint in TRAINING])
    found = rank_correlation(counts, pd.Series(range(len(counts))))
    if np.isnan(found):
        raise UndefinedStatistic("every checkpoint has as many unique detectors")
    return found


def color_share_lost(run: Run) -> float:
    """Return the share of colors among the first layer's unique detectors minus that of the last layer's."""
    shares = []
    for layer in (0, -1):
        total = _detectors(run, "well_trained", layer)
        if not total:
            raise UndefinedStatistic("the first or the last layer detects nothing")
        shares.append(_detectors(run, "well_trained", layer, "color") / total)
    return shares[0] - shares[1]


def _rotations(run: Run) -> pd.Series:
    rows = reduced(run, ROTATIONS, rotation_numbers)
    counts = {float(row["power"]): row["value"] for row in rows if row["quantity"] == "unique detectors"}
    if not counts.get(0.0):
        raise UndefinedStatistic("there is no detector without rotation")
    return pd.Series(counts)


def detectors_lost_by_rotation(run: Run) -> float:
    """Return the share of unique detectors that a full random rotation takes away, mean over the rotations."""
    counts = _rotations(run)
    return float(1 - counts[1.0] / counts[0.0])


def rotation_trend(run: Run) -> float:
    """Return the rank correlation of the unique detectors with the power of the rotation."""
    counts = _rotations(run)
    found = rank_correlation(counts, pd.Series(counts.index, counts.index))
    if np.isnan(found):
        raise UndefinedStatistic("every rotation has as many unique detectors")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Intrinsic dimension


def dimension_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the intrinsic and the PCA dimension of each place of a network, from the input on."""
    return [
        {"position": place, "layer": found["layer"], "quantity": quantity, "value": float(found[column])}
        for place, found in enumerate(records_of(frame))
        for column, quantity in (("dimension", "intrinsic dimension"), ("pca_dimension", "PCA dimension"))
    ]


def table_dimension(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the intrinsic dimension by layer. Source: Ansuini et al. 2019, figure 3."""
    measured: list[Row] = []
    for checkpoint in ("untrained", "well_trained", "shuffled"):
        measured += measure(runs, dimension_of(checkpoint), dimension_numbers, "not measured", checkpoint=checkpoint)
    keys = ("checkpoint", "position", "layer")
    ours = summarise(measured, keys, "the dimension does not exist")
    rows = published_rows(published, runs)
    for row in rows:
        row["position"] = int(row["position"])
    return assemble(ours, rows, published, keys, "the network has no such place")


def last_hidden_numbers(frame: pd.DataFrame) -> list[Row]:
    """Return the intrinsic dimension of the last hidden layer."""
    value = float(frame["dimension"].iloc[-2])
    return [{"quantity": "dimension of the last hidden layer", "value": value}]


def wrong_answers(frame: pd.DataFrame) -> list[Row]:
    """Return the test error (%) of the well-trained checkpoint."""
    chosen = frame[(frame["checkpoint"] == "well_trained") & (frame["split"] == "test")]
    return [{"quantity": "test error", "value": 100 * (1 - float(value))} for value in chosen["accuracy"]]


def table_error(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the last hidden layer's dimension beside the test error. Source: Ansuini et al. 2019, figure 4."""
    measured = measure(runs, dimension_of("well_trained"), last_hidden_numbers, "not measured")
    measured += measure(runs, RESULTS, wrong_answers, "not trained")
    ours = summarise(measured, (), "the dimension does not exist")
    return assemble(ours, published_rows(published, runs), published, (), "not measured by nnscan")


def _dimensions(run: Run, checkpoint: str) -> list[float]:
    rows = reduced(run, dimension_of(checkpoint), dimension_numbers)
    return values_of(rows, "a layer's dimension does not exist", quantity="intrinsic dimension")


def dimension_rise(run: Run) -> float:
    """Return the largest dimension of a hidden layer minus that of the input."""
    found = _dimensions(run, "well_trained")
    return max(found[1:-1]) - found[0]


def dimension_fall(run: Run) -> float:
    """Return the largest dimension of a hidden layer minus that of the last hidden one."""
    found = _dimensions(run, "well_trained")
    return max(found[1:-1]) - found[-2]


def _variation(run: Run, checkpoint: str) -> float:
    found = _dimensions(run, checkpoint)
    return (max(found) - min(found)) / float(np.mean(found))


def dimension_variation_over_untrained(run: Run) -> float:
    """Return the range of the dimension over the layers, as a multiple of its mean, minus the untrained network's."""
    return _variation(run, "well_trained") - _variation(run, "untrained")


def shuffled_over_trained_dimension(run: Run) -> float:
    """Return the last hidden layer's dimension for shuffled labels minus that of the well-trained network."""
    return _dimensions(run, "shuffled")[-2] - _dimensions(run, "well_trained")[-2]


def pca_over_dimension(run: Run) -> float:
    """Return the PCA dimension of the last hidden layer by its intrinsic dimension."""
    rows = reduced(run, dimension_of("well_trained"), dimension_numbers)
    components = values_of(rows, "undefined", quantity="PCA dimension")[-2]
    return components / _dimensions(run, "well_trained")[-2]


def dimension_and_error(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Return Pearson's r of the last hidden layer's dimension and the test error over runs, and its 95 % interval.

    Raises:
        UndefinedStatistic: There are too few runs with both values.
    """
    dimensions, errors = [], []
    for run in runs:
        dimensions.append(_dimensions(run, "well_trained")[-2])
        errors.append(values_of(reduced(run, RESULTS, wrong_answers), "undefined", quantity="test error")[0])
    try:
        found = error_correlation(dimensions, errors)
    except DataError as error:
        raise UndefinedStatistic(str(error)) from None
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
            "inverse, so that the network's outputs stay the same. Mean over the rotations. Published: conv5 of "
            "AlexNet on Places205; values between are in a figure only.",
        ),
        Table(
            id="dimension_layers",
            title="Intrinsic dimension by layer",
            source=f"{_DIMENSION}, figure 3",
            direction="rises in early layers, falls towards the output; flat when untrained",
            inputs=tuple(map(dimension_of, ("untrained", "well_trained", "shuffled"))),
            function=table_dimension,
            columns="quantity",
            caption="TwoNN, and the components that hold 90 % of the variance. Position 0 is the input. Values above "
            "20 are lower bounds. The published values belong to networks for 224 pixels on ImageNet, mean over seven "
            "categories, read off the figure.",
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
        detectors_lost_by_rotation,
        rotation_trend,
        dimension_rise,
        dimension_fall,
        dimension_variation_over_untrained,
        shuffled_over_trained_dimension,
        pca_over_dimension,
        prototype_accuracy_gained,
        distinct_prototypes_share,
    )
}
OVER_RUNS = {function.__name__: function for function in (dimension_and_error,)}
