"""The tables of Dou Hui's doctoral slides, and the statistics of the claims that the slides make.

By chapter: from a result file of a run to numbers (functions of a frame that return rows of keys, quantity and value),
the functions that fill the tables, the statistics, and what each table shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnscan.errors import ArtifactError
from nnscan.tables import (
    BASE,
    MISSING,
    Row,
    Run,
    Table,
    UndefinedStatistic,
    assemble,
    mean_of,
    measure,
    positions,
    published_rows,
    rank_correlation,
    reduced,
    summarise,
    values_of,
)

_SLIDES = "Dou Hui, doctoral slides, table"

PROPERTIES = ("T_m", "T_v", "T_c", "T_cor")
QUANTITY = "metrics/well_trained/quantity.parquet"
PROPERTY = "metrics/well_trained/properties.parquet"
ANOMALY = {name: f"metrics/{name}/anomaly.parquet" for name in ("well_trained", "overfitted")}
DIVERSITY_MASKING = "experiments/diversity_masking.parquet"
AIPC = "experiments/aipc.parquet"
ANOMALY_MASKING = "experiments/anomaly_masking.parquet"
GRADIENTS = "experiments/gradients.parquet"

MEAN_LAYER = "mean of the layers"

# ---------------------------------------------------------------------------------------------------------------------
# Chapter 4: feature quantity


def quantity_by_layer(frame: pd.DataFrame) -> list[Row]:
    """Return the mean SSIM and FQ of each layer's neurons."""
    frame = frame.rename(columns={"ssim": "SSIM", "fq": "FQ"})
    layers = dict(list(frame.groupby("layer")))
    return [
        {"position": place, "layer": layer, "quantity": quantity, "value": mean_of(layers[layer][quantity])}
        for layer, place in positions(frame).items()
        for quantity in ("SSIM", "FQ")
    ]


def loss_changes(frame: pd.DataFrame) -> list[Row]:
    """Return the loss change (%) of each masked group, by layer and as mean of the layers."""
    places = positions(frame)
    rows = []
    for (layer, group), part in frame.groupby(["layer", "group"]):
        filters = " to ".join(str(count) for count in sorted({part["filters"].min(), part["filters"].max()}))
        keys = {"position": places[str(layer)], "layer": layer, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": mean_of(part["loss_change"])})
    filters = " to ".join(str(count) for count in sorted({frame["filters"].min(), frame["filters"].max()}))
    for group in frame["group"].unique():
        mean = float(np.mean([row["value"] for row in rows if row["group"] == group]))
        keys = {"position": None, "layer": MEAN_LAYER, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": mean})
    return rows


def table_fq(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-2: mean SSIM and FQ of each layer's neurons. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer")
    ours = summarise(measure(runs, QUANTITY, quantity_by_layer, "not scanned"), keys, "no foreground mask")
    rows = published_rows(published, runs)
    depth, source_depth = _layer_counts(ours), _layer_counts(rows)
    for row in rows:
        layer, network = row.pop("layer"), (row["dataset"], row["model"])
        if depth.get(network) == source_depth[network]:
            row["position"] = int(layer.removeprefix("conv"))
        else:
            row["layer"] = f"{layer} of the source"
    unmatched = "the source does not say which layers of the network these are"
    return assemble(ours, rows, published, keys, unmatched)


def _layer_counts(rows: list[Row]) -> dict[tuple[str, str], int]:
    """Return how many layers the rows name for each data set and model."""
    layers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["quantity"] != MISSING:
            layers.setdefault((row["dataset"], row["model"]), set()).add(row["layer"])
    return {network: len(names) for network, names in layers.items()}


def table_diversity(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-3: loss change when diverse filters are masked. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer", "filters", "group")
    measured = measure(runs, DIVERSITY_MASKING, loss_changes, "diverse filters not masked")
    ours = summarise(measured, keys, "loss not finite")
    rows = published_rows(published, runs, layer=MEAN_LAYER)
    return assemble(ours, rows, published, keys, "not measured in these runs")


def fq_rise(run: Run) -> float:
    """Return the mean FQ of the last layer minus that of the first."""
    values = values_of(reduced(run, QUANTITY, quantity_by_layer), "no foreground mask", quantity="FQ")
    return values[-1] - values[0]


def ssim_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with its mean SSIM."""
    values = values_of(reduced(run, QUANTITY, quantity_by_layer), "SSIM undefined", quantity="SSIM")
    trend = rank_correlation(pd.Series(range(len(values))), pd.Series(values))
    if math.isnan(trend):
        raise UndefinedStatistic("no trend: one layer, or the same SSIM in all")
    return trend


def _loss_lead(run: Run, other: str) -> float:
    rows = reduced(run, DIVERSITY_MASKING, loss_changes)
    changes = [values_of(rows, "loss not finite", layer=MEAN_LAYER, group=group)[0] for group in ("top", other)]
    return changes[0] - changes[1]


def loss_top_over_bottom(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without the least, mean over layers (%)."""
    return _loss_lead(run, "bottom")


def loss_top_over_random(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without random ones, mean over layers (%)."""
    return _loss_lead(run, "random")


_TABLES_4 = (
    Table(
        id="slides_4-2",
        title="Learning images by layer: similarity alone and feature quantity",
        source=f"{_SLIDES} 4-2",
        direction="FQ rises with depth, SSIM falls",
        inputs=(QUANTITY,),
        function=table_fq,
        columns="quantity",
        caption="Means over the neurons of a layer. A neuron counts with the scanned sample on which its feature "
        "quantity FQ is largest. SSIM is the SSIM index of that same sample's learning image and the input's "
        "foreground under it, over the whole image: two nearly blank images are similar; the source does not "
        "define its SSIM further. "
        "Published values stand beside ours only where the network has as many layers as the source lists; the "
        "eight layers listed for deeper networks are not named there and keep rows of their own. The published "
        "images are 224 pixels wide, so absolute values differ by construction.",
    ),
    Table(
        id="slides_4-3",
        title="Loss change after masking the most and the least diverse filters",
        source=f"{_SLIDES} 4-3",
        direction="large rise for the most clusters, little change for the fewest",
        inputs=(DIVERSITY_MASKING,),
        function=table_diversity,
        columns="group",
        caption="The filters of a layer are ranked by the number of clusters that their neurons form. As many "
        "filters as the column 'filters' says (20, or a quarter of the layer where it has fewer than 80) are "
        "masked at either end, in one layer at a time; among equal numbers of clusters, filters with fewer stray "
        "neurons rank first. 'random' is the mean over draws of as many filters. The change is in percent of the "
        "unmasked test loss. The source does not say which layer it masks, so its values stand beside the mean of "
        "our layers. It numbers its data sets 1 to 3 and has no random draws.",
    ),
)
_STATISTICS_4 = (
    fq_rise,
    ssim_trend,
    loss_top_over_bottom,
    loss_top_over_random,
)

# ---------------------------------------------------------------------------------------------------------------------
# Chapter 5: interpretable properties


def areas(frame: pd.DataFrame) -> list[Row]:
    """Return the area under each masking curve and the drop at half of the filters (percentage points).

    Raises:
        ArtifactError: A curve does not run from 0 to 1.
    """
    rows = []
    for (layer, ranking), part in frame.groupby(["layer", "ranking"]):
        curve = part.groupby("fraction")["change"].agg(mean_of).sort_index()
        masked, drop = curve.index.to_numpy(dtype=float), -curve.to_numpy(dtype=float)
        if masked[0] != 0 or masked[-1] != 1:
            raise ArtifactError(
                f"the curve of {ranking} in {layer} runs from {masked[0]:g} to {masked[-1]:g}, not from 0 to 1"
            )
        keys = {"layer": layer, "ranking": ranking}
        rows.append({**keys, "quantity": "area", "value": float(np.trapezoid(drop, masked))})
        rows.append({**keys, "quantity": "drop at 50 %", "value": float(np.interp(0.5, masked, drop))})
    return rows


def rank_correlations(frame: pd.DataFrame) -> list[Row]:
    """Return the rank correlations of importance and properties over the filters of the last layer."""
    layer, place = list(positions(frame).items())[-1]
    part = frame[frame["layer"] == layer]
    return [
        {
            "position": place,
            "layer": layer,
            "measure": measure,
            "property": name,
            "quantity": "rank correlation",
            "value": rank_correlation(part[measure], part[name]),
        }
        for measure in ("AVoU", "SoU")
        for name in PROPERTIES
    ]


def _for_each_layer(published: list[Row], ours: list[Row]) -> list[Row]:
    """Return the published rows once for every layer of ours: the source does not name its layer."""
    rows: list[Row] = []
    for row in published:
        layers = {other["layer"] for other in ours if other["layer"] and all(other[key] == row[key] for key in BASE)}
        rows.extend({**row, "layer": layer} for layer in sorted(layers) or [None])
    return rows


def table_aipc(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-1: areas under the masking curves. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("layer", "ranking")
    ours = summarise(measure(runs, AIPC, areas, "no masking curves"), keys, "accuracy undefined")
    rows = _for_each_layer(published_rows(published, runs), ours)
    return assemble(ours, rows, published, keys, "not measured in these runs")


def table_ranks(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-2: rank correlations of importance and properties. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("position", "layer", "measure", "property")
    ours = summarise(measure(runs, PROPERTY, rank_correlations, "not scanned"), keys, "all filters rank alike")
    rows = _for_each_layer(published_rows(published, runs), ours)
    return assemble(ours, rows, published, keys, "not measured in these runs")


def _area(run: Run, ranking: str) -> float:
    rows = reduced(run, AIPC, areas)
    return float(np.mean(values_of(rows, "accuracy undefined", ranking=ranking, quantity="area")))


def area_best_over_random(run: Run) -> float:
    """Return the largest area of the four properties minus that of the random orders."""
    return max(_area(run, name) for name in PROPERTIES) - _area(run, "random")


def _area_lead(run: Run, leader: str) -> float:
    return _area(run, leader) - max(_area(run, name) for name in PROPERTIES if name != leader)


def area_lead_of_tm(run: Run) -> float:
    """Return the area of T_m minus the largest of the other three properties."""
    return _area_lead(run, "T_m")


def area_lead_of_tc(run: Run) -> float:
    """Return the area of T_c minus the largest of the other three properties."""
    return _area_lead(run, "T_c")


def _rank(run: Run, measure: str, name: str) -> float:
    rows = reduced(run, PROPERTY, rank_correlations)
    return values_of(rows, "all filters rank alike", measure=measure, property=name)[0]


def rank_avou_tm(run: Run) -> float:
    """Return the rank correlation of AVoU and T_m in the last layer."""
    return _rank(run, "AVoU", "T_m")


def rank_avou_tc(run: Run) -> float:
    """Return the rank correlation of AVoU and T_c in the last layer."""
    return _rank(run, "AVoU", "T_c")


def rank_sou_tm(run: Run) -> float:
    """Return the rank correlation of SoU and T_m in the last layer."""
    return _rank(run, "SoU", "T_m")


_TABLES_5 = (
    Table(
        id="slides_5-1",
        title="Area under the accuracy curve when filters are masked in order",
        source=f"{_SLIDES} 5-1",
        direction="T_c largest in AlexNet, T_m in VGG",
        inputs=(AIPC,),
        function=table_aipc,
        columns="ranking",
        caption="Filters are masked cumulatively, the highest property first. 'area' is the trapezoid area "
        "between the curve of the accuracy change and zero over the masked share 0 to 1, positive where accuracy "
        "is lost; 'drop at 50 %' is the loss with half of the filters masked. A larger number means that the "
        "property finds the filters that matter. 'random' is the mean over random orders. The source states "
        "neither the layer, the grid nor the unit of its area; its values fit single accuracy drops as well, so "
        "compare the order of the properties, not the size.",
    ),
    Table(
        id="slides_5-2",
        title="Rank correlation of a filter's importance with its interpretable properties",
        source=f"{_SLIDES} 5-2",
        direction="near 1 for T_m and T_v, negative for T_c and T_cor",
        inputs=(PROPERTY,),
        function=table_ranks,
        columns="property",
        caption="Spearman's rank correlation over the filters of the last convolutional layer (our reading: the "
        "source does not name its layer). AVoU is a filter's mean activation, SoU the mean change of the loss "
        "when one of its weights is removed. The high correlation of AVoU with T_m is nearly built in: without "
        "biases the sum of a filter image is the sum of the squared activations of its map.",
    ),
)
_STATISTICS_5 = (
    area_best_over_random,
    area_lead_of_tm,
    area_lead_of_tc,
    rank_avou_tm,
    rank_avou_tc,
    rank_sou_tm,
)

# ---------------------------------------------------------------------------------------------------------------------
# Chapter 6: anomaly filters


def anomaly_counts(frame: pd.DataFrame) -> list[Row]:
    """Return how many filters are anomaly filters, and of how many."""
    return [
        {"quantity": "anomaly filters", "value": float(frame["is_anomaly"].astype(bool).sum())},
        {"quantity": "filters examined", "value": float(len(frame))},
    ]


def gradients(frame: pd.DataFrame) -> list[Row]:
    """Return the mean gradient of outlier and normal samples, and how many there are."""
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": mean_of(part[quantity])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity in ("gradient", "samples")
    ]


def accuracy_changes(frame: pd.DataFrame) -> list[Row]:
    """Return the accuracy change (percentage points) without each masked group of filters."""
    names = {"accuracy change": "accuracy_change", "filters masked": "filters"}
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": mean_of(part[column])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity, column in names.items()
    ]


def table_anomaly(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-2: anomaly filters of both checkpoints. Source: Dou Hui, doctoral slides, ch. 6."""
    reasons = {"well_trained": "not scanned", "overfitted": "no overfitted checkpoint"}
    measured = [
        row
        for checkpoint, path in ANOMALY.items()
        for row in measure(runs, path, anomaly_counts, reasons[checkpoint], checkpoint=checkpoint)
    ]
    ours = summarise(measured, ("checkpoint",), "no such checkpoint")
    return assemble(ours, published_rows(published, runs), published, ("checkpoint",), "not scanned")


def table_gradients(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-3: gradients of outlier and normal samples. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    ours = summarise(measure(runs, GRADIENTS, gradients, "gradients not measured"), keys, "no such samples")
    return assemble(ours, published_rows(published, runs), published, keys, "no such checkpoint")


def table_anomaly_masking(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-5: validation accuracy without the anomaly filters. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    measured = measure(runs, ANOMALY_MASKING, accuracy_changes, "anomaly filters not masked", "no anomaly filters")
    ours = summarise(measured, keys, "no anomaly filters to mask")
    rows = published_rows(published, runs, checkpoint="overfitted")
    return assemble(ours, rows, published, keys, "no overfitted checkpoint, or no anomaly filters in it")


def anomaly_growth(run: Run) -> float:
    """Return the anomaly filters of the overfitted network minus those of the well-trained one."""
    counts = {
        name: values_of(reduced(run, path, anomaly_counts), "undefined", quantity="anomaly filters")[0]
        for name, path in ANOMALY.items()
    }
    return counts["overfitted"] - counts["well_trained"]


def _gradient(run: Run, checkpoint: str, group: str) -> float:
    rows = reduced(run, GRADIENTS, gradients)
    undefined = f"no {group} samples in the {checkpoint.replace('_', '-')} network"
    return values_of(rows, undefined, checkpoint=checkpoint, group=group, quantity="gradient")[0]


def gradient_gap_well_trained(run: Run) -> float:
    """Return the mean gradient of outlier minus normal samples in the well-trained network."""
    return _gradient(run, "well_trained", "outlier") - _gradient(run, "well_trained", "normal")


def gradient_gap_overfitted(run: Run) -> float:
    """Return the mean gradient of outlier minus normal samples in the overfitted network."""
    return _gradient(run, "overfitted", "outlier") - _gradient(run, "overfitted", "normal")


def outlier_gradient_growth(run: Run) -> float:
    """Return the mean gradient of outlier samples in the overfitted minus that in the well-trained network."""
    return _gradient(run, "overfitted", "outlier") - _gradient(run, "well_trained", "outlier")


def anomaly_over_random(run: Run) -> float:
    """Return the accuracy change without the anomaly filters minus that without random ones, overfitted network."""
    rows, undefined = reduced(run, ANOMALY_MASKING, accuracy_changes), "accuracy undefined"
    if not any(row["checkpoint"] == "overfitted" for row in rows):
        raise UndefinedStatistic("no anomaly filters in the overfitted network, or no such network")
    change = {
        group: values_of(rows, undefined, checkpoint="overfitted", group=group, quantity="accuracy change")[0]
        for group in ("anomaly", "random")
    }
    return change["anomaly"] - change["random"]


_TABLES_6 = (
    Table(
        id="slides_6-2",
        title="Anomaly filters in the well-trained and the overfitted network",
        source=f"{_SLIDES} 6-2",
        direction="more in the overfitted network",
        inputs=tuple(ANOMALY.values()),
        function=table_anomaly,
        columns="checkpoint",
        caption="A filter is an anomaly filter when the clusters of its learning images leave a small outlier "
        "cluster, separate unusually well, and the outliers activate it strongly. 'filters examined' counts the "
        "filters of all scanned layers. The source's thresholds are not known; ours are in the configuration.",
    ),
    Table(
        id="slides_6-3",
        title="Mean gradient of outlier and normal samples",
        source=f"{_SLIDES} 6-3",
        direction="larger for outlier samples, and larger when overfitted",
        inputs=(GRADIENTS,),
        function=table_gradients,
        columns="group",
        caption="Mean over samples of the L2 norm of the loss gradient with respect to all parameters. Outlier "
        "samples are those in the outlier cluster of at least one anomaly filter of the same checkpoint. The "
        "source does not state its norm, so only the order of the numbers can be compared.",
    ),
    Table(
        id="slides_6-5",
        title="Validation accuracy after masking anomaly filters or random ones",
        source=f"{_SLIDES} 6-5",
        direction="higher for anomaly filters than for random ones",
        inputs=(ANOMALY_MASKING,),
        function=table_anomaly_masking,
        columns="group",
        caption="Change of the validation accuracy in percentage points when all anomaly filters are masked, and "
        "the mean over draws of as many random filters from the same layers. The source does not name its "
        "checkpoint; we read it as the overfitted one. It prints percent, read as percentage points.",
    ),
)
_STATISTICS_6 = (
    anomaly_growth,
    gradient_gap_well_trained,
    gradient_gap_overfitted,
    outlier_gradient_growth,
    anomaly_over_random,
)


TABLES = {table.id: table for table in (*_TABLES_4, *_TABLES_5, *_TABLES_6)}
STATISTICS = {function.__name__: function for function in (*_STATISTICS_4, *_STATISTICS_5, *_STATISTICS_6)}
