"""The tables of Dou Hui's doctoral slides, and the statistics of the claims that the slides make.

By chapter: from a result file of a run to numbers (functions of a frame that return rows of keys, quantity and value),
the functions that fill the tables, the statistics, and what each table shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnscan.errors import ArtifactError
from nnscan.tables import (
    BASE,
    MISSING,
    MODELS,
    Row,
    Run,
    Table,
    UndefinedStatistic,
    assemble,
    columns_of,
    mean_of,
    measure,
    percent,
    positions,
    published_rows,
    rank_correlation,
    records_of,
    reduced,
    summarise,
    trend,
    values_of,
)

_SLIDES = "Dou Hui, doctoral slides, table"

PROPERTIES = ("T_m", "T_v", "T_c", "T_cor")
TYPES = ("H-H", "H-noH", "noH-H", "L-L", "L-noL", "noL-L")  # of filters: on the foreground, on the background
PHASES = ("third1", "third2", "third3")
KNOWLEDGE = "metrics/well_trained/knowledge.parquet"
AGREEMENT = "metrics/well_trained/agreement.parquet"
DISTANCES = "metrics/well_trained/distances.parquet"
WINNERS = "metrics/well_trained/winners.parquet"
QUANTITY = "metrics/well_trained/quantity.parquet"
LAYER_QUANTITY = "metrics/well_trained/quantity_layers.parquet"
PROPERTY = "metrics/well_trained/properties.parquet"
ANOMALY = {name: f"metrics/{name}/anomaly.parquet" for name in ("well_trained", "overfitted")}
DIVERSITY_MASKING = "experiments/diversity_masking.parquet"
ABLATION_MASKING = "experiments/ablation_masking.parquet"
_ALIKE = "in no layer do filters differ in clusters (too few neurons of a filter to have any)"
AIPC = "experiments/aipc.parquet"
FILTER_TYPES = "experiments/filter_types.parquet"
ANOMALY_MASKING = "experiments/anomaly_masking.parquet"
ANOMALY_SINGLE = "experiments/anomaly_single.parquet"
ANOMALY_HISTORY = "metrics/anomaly_history.parquet"
GRADIENTS = "experiments/gradients.parquet"
LOCALISATION = "metrics/well_trained/localisation.parquet"

MEAN_LAYER = "mean of the layers"

# ---------------------------------------------------------------------------------------------------------------------
# Chapter 3: learning images

# Which convolutions the five layers of tables 3-3 and 3-4 are: of VGG-16 the last of each block, as we read it.
_FIVE_LAYERS = {"alexnet": (1, 2, 3, 4, 5), "vgg16": (2, 4, 7, 10, 13)}


def knowledge(frame: pd.DataFrame) -> list[Row]:
    """Return intensity and count of each layer's knowledge amount."""
    return [
        {"position": place, "layer": layer, "quantity": quantity, "value": mean_of(part[quantity])}
        for layer, place in positions(frame).items()
        for part in [frame[frame["layer"] == layer]]
        for quantity in ("intensity", "count")
    ]


def agreements(frame: pd.DataFrame) -> list[Row]:
    """Return the agreement of feature maps and learning images, means over the samples on which there are images."""
    places = positions(frame)
    return [
        {"position": places[str(layer)], "layer": layer, "binarised": binarised, "quantity": "agreement",
         "value": mean_of(part["agreement"].dropna())}
        for (layer, binarised), part in frame.groupby(["layer", "binarised"])
    ]  # fmt: skip


def overlaps(frame: pd.DataFrame) -> list[Row]:
    """Return the IoU of the images of two filters, means over the samples on which two filters have images."""
    places = positions(frame)
    return [
        {"position": places[str(layer)], "layer": layer, "binarised": binarised, "pair": pair, "quantity": "IoU",
         "value": mean_of(part[column].dropna())}
        for (layer, binarised), part in frame.groupby(["layer", "binarised"])
        for pair, column in (("most activated pair", "iou"), ("any pair", "iou_any"))
    ]  # fmt: skip


def closeness(frame: pd.DataFrame) -> list[Row]:
    """Return how much nearer than other samples the own sample is to a layer's images, as a share (unit norms)."""
    rows = []
    for layer, place in positions(frame).items():
        part = frame[frame["layer"] == layer]
        kind = "convolutional" if part["convolutional"].all() else "linear"
        value = 1 - mean_of(part["own_scaled"]) / mean_of(part["other_scaled"])
        rows.append({"position": place, "layer": layer, "kind": kind, "quantity": "closeness", "value": value})
    return rows


def hit_rates(frame: pd.DataFrame) -> list[Row]:
    """Return the share of inputs to which the winner's image is the nearest of all outputs', and what chance gives."""
    rows: list[Row] = [{"quantity": "chance", "value": 1 / frame["output"].nunique()}]
    for quantity in ("distance", "distance_scaled"):
        nearest = frame.loc[frame.groupby("sample")[quantity].idxmin()]
        rows.append({"quantity": quantity, "value": float(nearest["winner"].mean())})
    return rows


def _five_layers(published: list[Row], ours: list[Row]) -> list[Row]:
    """Return the published rows with the places of our layers that they belong to, or as layers of the source."""
    depth = _layer_counts(ours)
    for row in published:
        layer, places = int(row.pop("layer")), _FIVE_LAYERS[row["model"]]
        if depth.get((row["dataset"], row["model"])) == places[-1]:
            row["position"] = places[layer - 1]
        else:
            row["layer"] = f"layer {layer} of the source"
    return published


def table_agreement(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 3-3: agreement of feature maps and learning images. Source: Dou Hui, doctoral slides, ch. 3."""
    keys = ("position", "layer", "binarised")
    measured = measure(runs, AGREEMENT, agreements, "not measured", "no feature maps with places")
    ours = summarise(measured, keys, "no filter has an image")
    rows = _five_layers(published_rows(published, runs, binarised="above 5 %"), ours)
    return assemble(ours, rows, published, keys, "not the network of the source")


def table_overlap(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 3-4: IoU of the images of highly activated filters. Source: Dou Hui, doctoral slides, ch. 3."""
    keys = ("position", "layer", "binarised", "pair")
    measured = measure(runs, AGREEMENT, overlaps, "not measured", "no feature maps with places")
    ours = summarise(measured, keys, "no two filters have images")
    fixed = {"binarised": "above 5 %", "pair": "most activated pair"}
    rows = _five_layers(published_rows(published, runs, **fixed), ours)
    return assemble(ours, rows, published, keys, "not the network of the source")


def _of_layers(run: Run, quantity: str) -> list[float]:
    """Return a knowledge amount of each layer; two layers or more."""
    values = values_of(reduced(run, KNOWLEDGE, knowledge), "a layer without active neurons", quantity=quantity)
    if len(values) < 2:
        raise UndefinedStatistic("one layer only")
    return values


def knowledge_count_growth(run: Run) -> float:
    """Return the count of the last layer's knowledge minus that of the first (share of the pixels)."""
    values = _of_layers(run, "count")
    return values[-1] - values[0]


def intensity_over_count(run: Run) -> float:
    """Return by how much the intensity varies more from layer to layer than the count (coefficients of variation)."""
    intensity, count = (np.array(_of_layers(run, quantity)) for quantity in ("intensity", "count"))
    if not (intensity.any() and count.any()):
        raise UndefinedStatistic("no layer knows anything")
    return float(intensity.std() / intensity.mean() - count.std() / count.mean())


def _agreement(run: Run) -> list[float]:
    return values_of(reduced(run, AGREEMENT, agreements), "no filter has an image", binarised="above 5 %")


def agreement_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with the agreement of its feature maps and images."""
    return trend(_agreement(run))


def agreement_least(run: Run) -> float:
    """Return the least agreement of feature maps and images of all layers."""
    return min(_agreement(run))


def _overlap(run: Run, pair: str) -> list[float]:
    undefined = "no two filters have images"
    return values_of(reduced(run, AGREEMENT, overlaps), undefined, binarised="above 5 %", pair=pair)


def overlap_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with the IoU of its two most activated filters' images."""
    return trend(_overlap(run, "most activated pair"))


def overlap_over_any(run: Run) -> float:
    """Return the IoU of the two most activated filters' images minus that of any two, mean over layers."""
    return float(np.mean(_overlap(run, "most activated pair")) - np.mean(_overlap(run, "any pair")))


def _closeness(run: Run, kind: str) -> list[float]:
    rows = reduced(run, DISTANCES, closeness)
    if not any(row["kind"] == kind for row in rows):
        raise UndefinedStatistic(f"no {kind} layer with active neurons")
    return values_of(rows, "distances undefined", kind=kind)


def closeness_linear(run: Run) -> float:
    """Return how much nearer their own samples are to the images of linear layers than others (share, mean)."""
    return float(np.mean(_closeness(run, "linear")))


def closeness_linear_over_convolutional(run: Run) -> float:
    """Return the mean closeness to the own sample in linear layers minus that in convolutional ones."""
    return closeness_linear(run) - float(np.mean(_closeness(run, "convolutional")))


def closeness_growth(run: Run) -> float:
    """Return the closeness to the own sample in the last convolutional layer minus that in the first."""
    values = _closeness(run, "convolutional")
    if len(values) < 2:
        raise UndefinedStatistic("one convolutional layer only")
    return values[-1] - values[0]


def _hits(run: Run, quantity: str) -> float:
    return values_of(reduced(run, WINNERS, hit_rates), "distances undefined", quantity=quantity)[0]


def winner_hit_rate(run: Run) -> float:
    """Return the share of test images to which the winner's learning image is the nearest of all outputs'."""
    return _hits(run, "distance")


def winner_hit_rate_scaled(run: Run) -> float:
    """Return `winner_hit_rate` with images and inputs scaled to unit norm."""
    return _hits(run, "distance_scaled")


def winner_over_chance(run: Run) -> float:
    """Return `winner_hit_rate` minus the share that chance gives, 1 / classes."""
    return winner_hit_rate(run) - _hits(run, "chance")


_BINARISED = (
    "The image of a filter is the sum of the absolute learning images of its neurons, its feature map is resized to "
    "the input (bilinear). A place belongs to either where its value exceeds 5 % of the largest, or 0: the source "
    "names no threshold, and its values of layer 1 are only possible for such sums. Means over scanned samples{}. Of "
    "VGG-16 the source's layers are read as the last convolution of each block. It names no data set."
)
_TABLES_3 = (
    Table(
        id="slides_3-3",
        title="Agreement of feature maps and learning images",
        source=f"{_SLIDES} 3-3",
        direction="high, falling with depth",
        inputs=(AGREEMENT,),
        function=table_agreement,
        columns="binarised",
        caption="Share of a filter's learning image that lies on its feature map. "
        + _BINARISED.format(" and filters that have an image"),
    ),
    Table(
        id="slides_3-4",
        title="Overlap of the learning images of highly activated filters",
        source=f"{_SLIDES} 3-4",
        direction="near 1, falling with depth",
        inputs=(AGREEMENT,),
        function=table_overlap,
        columns="pair",
        caption="IoU of the images of the two filters of a layer with the highest mean activation; beside it, as a "
        "control, the mean over all pairs of filters. " + _BINARISED.format(""),
    ),
)
_STATISTICS_3 = (
    knowledge_count_growth,
    intensity_over_count,
    agreement_trend,
    agreement_least,
    overlap_trend,
    overlap_over_any,
    closeness_linear,
    closeness_linear_over_convolutional,
    closeness_growth,
    winner_hit_rate,
    winner_hit_rate_scaled,
    winner_over_chance,
)

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
    """Return the loss change (%) of each masked group, by layer and as mean of the layers; of no layer, nothing."""
    if frame.empty:
        return []
    rows = []
    for (layer, group), part in frame.groupby(["layer", "group"]):
        filters = " to ".join(str(count) for count in sorted({part["filters"].min(), part["filters"].max()}))
        keys = {"position": int(part["depth"].iloc[0]) + 1, "layer": layer, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": mean_of(part["loss_change"])})
    filters = " to ".join(str(count) for count in sorted({frame["filters"].min(), frame["filters"].max()}))
    for group in frame["group"].unique():
        mean = float(np.mean([row["value"] for row in rows if row["group"] == group]))
        keys = {"position": None, "layer": MEAN_LAYER, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": mean})
    return rows


def ablated_loss_changes(frame: pd.DataFrame) -> list[Row]:
    """Return the loss change (%) of each masked group, mean of the layers, without each element of FQ."""
    return [
        {"without": without, **{key: row[key] for key in ("filters", "group", "quantity", "value")}}
        for without, part in frame.groupby("without")
        for row in loss_changes(part)
        if row["layer"] == MEAN_LAYER
    ]


def elements_by_layer(frame: pd.DataFrame) -> list[Row]:
    """Return correlation, mean and variance of each layer's FQ, whole ("") and without each element."""
    places = positions(frame)
    return [
        {"position": places[row["layer"]], **{key: row[key] for key in ("layer", "without")},
         "quantity": quantity, "value": row[quantity]}
        for row in records_of(frame)
        for quantity in ("correlation", "correlation_active", "mean", "variance")
    ]  # fmt: skip


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
    measured = measure(runs, DIVERSITY_MASKING, loss_changes, "diverse filters not masked", _ALIKE)
    ours = summarise(measured, keys, "loss not finite")
    rows = published_rows(published, runs, layer=MEAN_LAYER)
    return assemble(ours, rows, published, keys, "not measured in these runs")


def table_ablation(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-4: as table 4-3, without one element of FQ. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("without", "filters", "group")
    measured = measure(runs, ABLATION_MASKING, ablated_loss_changes, "diverse filters not masked", _ALIKE)
    ours = summarise(measured, keys, "loss not finite")
    return assemble(ours, published_rows(published, runs), published, keys, "not measured in these runs")


def localisations(frame: pd.DataFrame) -> list[Row]:
    """Return the mean IoU over the samples of each method's map with the foreground, by threshold."""
    return [
        {"level": f"{threshold:g}", "method": method, "quantity": "IoU", "value": mean_of(part["iou"])}
        for (threshold, method), part in frame.groupby(["threshold", "method"])
    ]


def table_localisation(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-5: IoU of CAM, Grad-CAM and FQ with the object. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("level", "method")
    measured = measure(runs, LOCALISATION, localisations, "not measured", "no foreground masks")
    undefined = "not defined: CAM needs only global pooling and one linear layer behind the last convolution"
    ours = summarise(measured, keys, undefined)
    rows = published_rows(published, runs, level="0.5")
    return assemble(ours, rows, published, keys, "not measured in these runs")


def fq_rise(run: Run) -> float:
    """Return the mean FQ of the last layer minus that of the first."""
    values = values_of(reduced(run, QUANTITY, quantity_by_layer), "no foreground mask", quantity="FQ")
    return values[-1] - values[0]


def ssim_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with its mean SSIM."""
    return trend(values_of(reduced(run, QUANTITY, quantity_by_layer), "SSIM undefined", quantity="SSIM"))


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


def _correlations(run: Run, quantity: str, without: str) -> list[float]:
    rows = reduced(run, LAYER_QUANTITY, elements_by_layer)
    undefined = "no foreground mask, or FQ or activation is the same for all neurons of a layer"
    return values_of(rows, undefined, quantity=quantity, without=without)


def correlation_positive(run: Run) -> float:
    """Return the share of layers in which activation and FQ correlate positively over the neurons."""
    return float(np.mean(np.array(_correlations(run, "correlation", "")) > 0))


def correlation_positive_active(run: Run) -> float:
    """Return the share of layers in which activation and FQ correlate positively over the active neurons."""
    return float(np.mean(np.array(_correlations(run, "correlation_active", "")) > 0))


def _variances(run: Run) -> list[float]:
    rows = reduced(run, LAYER_QUANTITY, elements_by_layer)
    values = values_of(rows, "no foreground mask", quantity="variance", without="")
    if len(values) < 3:
        raise UndefinedStatistic("fewer than three layers: none in the middle")
    return values


def variance_middle_over_last(run: Run) -> float:
    """Return the mean variance of FQ in the layers between first and last minus that in the last."""
    values = _variances(run)
    return float(np.mean(values[1:-1])) - values[-1]


def variance_middle_over_first(run: Run) -> float:
    """Return the mean variance of FQ in the layers between first and last minus that in the first."""
    values = _variances(run)
    return float(np.mean(values[1:-1])) - values[0]


def lead_lost_without_element(run: Run) -> float:
    """Return by how much the lead of the top over the bottom filters falls without an element, the least of all (%)."""
    rows = reduced(run, ABLATION_MASKING, ablated_loss_changes)
    leads = []
    for without in sorted({row["without"] for row in rows}):
        top, bottom = (
            values_of(rows, "loss not finite", without=without, group=group)[0] for group in ("top", "bottom")
        )
        leads.append(top - bottom)
    if not leads:
        raise UndefinedStatistic("no element was left out")
    return loss_top_over_bottom(run) - max(leads)


def correlation_change_without_element(run: Run) -> float:
    """Return by how much r changes without an element: absolute change, mean over layers, the least of all elements."""
    whole = np.array(_correlations(run, "correlation", ""))
    elements = {row["without"] for row in reduced(run, LAYER_QUANTITY, elements_by_layer)} - {""}
    return min(
        float(np.abs(np.array(_correlations(run, "correlation", without)) - whole).mean())
        for without in sorted(elements)
    )


def _iou_lead(run: Run, other: str) -> float:
    """Return the mean IoU of the FQ map minus that of another map, at the threshold 0.5."""
    rows = reduced(run, LOCALISATION, localisations)
    if not rows:
        raise UndefinedStatistic("no foreground masks")
    own, others = (
        values_of(rows, f"{method} is not defined for this network", level="0.5", method=method)[0]
        for method in ("FQ map", other)
    )
    return own - others


def fq_over_grad_cam(run: Run) -> float:
    """Return the IoU of the FQ map with the foreground minus that of Grad-CAM."""
    return _iou_lead(run, "Grad-CAM")


def fq_over_cam(run: Run) -> float:
    """Return the IoU of the FQ map with the foreground minus that of CAM."""
    return _iou_lead(run, "CAM")


def fq_over_unweighted(run: Run) -> float:
    """Return the IoU of the FQ map with the foreground minus that of the same map without FQ."""
    return _iou_lead(run, "NNS")


def fq_over_input(run: Run) -> float:
    """Return the IoU of the FQ map with the foreground minus that of the input itself."""
    return _iou_lead(run, "input")


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
        "neurons rank first. Layers in which all filters are alike, as linear ones, are left out. 'random' is the mean "
        "over draws of as many filters. The change is in percent of the unmasked test loss. The source does not say "
        "which layer it masks, so its values stand beside the mean of our layers. It numbers its "
        "data sets 1 to 3 and has no random draws.",
    ),
    Table(
        id="slides_4-4",
        title="Loss change after masking filters ranked without one element of FQ",
        source=f"{_SLIDES} 4-4",
        direction="another picture than with all elements (table 4-3)",
        inputs=(ABLATION_MASKING,),
        function=table_ablation,
        columns="group",
        caption="As table 4-3, mean of the layers, but one of l, c, s, vf, nf is left out of what describes a neuron "
        "when the neurons of a filter are clustered; the filters are ranked by these clusters. The source does not say "
        "what it leaves the element out of, nor on which data. Its rows of vf and nf are the same, probably a copying "
        "error; they are shown as printed.",
    ),
    Table(
        id="slides_4-5",
        title="IoU of CAM, Grad-CAM and the FQ map with the object",
        source=f"{_SLIDES} 4-5",
        direction="FQ above Grad-CAM above CAM",
        inputs=(LOCALISATION,),
        function=table_localisation,
        columns="method",
        caption="Means over the scanned test samples. A map, with 0 for negative values, is stretched to [0, 1]; its "
        "pixels from the level on are compared with the foreground mask. The source states no level; its "
        "values stand beside ours at half of the range. CAM and Grad-CAM explain the class that the network "
        "gives. CAM is defined only where global pooling "
        "and one linear layer follow the last convolution; the source does not say how it got CAM for AlexNet and "
        "VGG. The FQ map is the sum of the absolute learning images of the last convolutional layer's neurons, "
        "weighted with FQ. FQ is computed with the very mask that it is compared with, and learning images vanish "
        "where the input is zero, so two controls stand beside: 'NNS', the same sum without FQ, and 'input', the size "
        "of the input itself. On strokes over black the controls say how much of the lead is built in.",
    ),
)
_STATISTICS_4 = (
    fq_over_grad_cam,
    fq_over_cam,
    fq_over_unweighted,
    fq_over_input,
    fq_rise,
    ssim_trend,
    loss_top_over_bottom,
    loss_top_over_random,
    correlation_positive,
    correlation_positive_active,
    variance_middle_over_last,
    variance_middle_over_first,
    lead_lost_without_element,
    correlation_change_without_element,
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


def type_effects(frame: pd.DataFrame) -> list[Row]:
    """Return the proportion of each type of filters, and the accuracy lost without them and without random ones."""
    rows = []
    for (layer, name, checkpoint), part in frame.groupby(["layer", "type", "checkpoint"]):
        own, random = part[part["group"] == "type"], part[part["group"] == "random"]
        keys = {"layer": layer, "type": name, "checkpoint": checkpoint}
        rows.append({**keys, "quantity": "proportion", "value": mean_of(own["proportion"])})
        rows.append({**keys, "quantity": "accuracy lost", "value": mean_of(own["accuracy_lost"])})
        rows.append({**keys, "quantity": "accuracy lost, random filters", "value": mean_of(random["accuracy_lost"])})
    return rows


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


def table_types(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-3: filters by foreground and background. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("layer", "type", "checkpoint")
    reason = "no phases: the model came trained"
    measured = measure(runs, FILTER_TYPES, type_effects, reason, "no foreground and background to tell apart")
    ours = summarise(measured, keys, "accuracy undefined")
    # the source does not name its network: its values stand beside every one that is measured
    found = {(row["dataset"], row["model"]) for row in ours if row["quantity"] != MISSING}
    rows = [
        row
        for run in sorted({(run.dataset, run.model): run for run in runs}.values())
        if (run.dataset, run.model) in found
        for row in published_rows(published.assign(model=MODELS.get(run.model, run.model)), [run])
    ]
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


def _of_type(run: Run, name: str, quantity: str) -> list[float]:
    """Return a quantity of a type of filters in the three phases."""
    rows = reduced(run, FILTER_TYPES, type_effects)
    if not rows:
        raise UndefinedStatistic("no foreground and background to tell apart")
    keys = {"type": name, "quantity": quantity}
    return [values_of(rows, "accuracy undefined", checkpoint=phase, **keys)[0] for phase in PHASES]


def _mean_of_type(run: Run, name: str, quantity: str) -> float:
    return float(np.mean(_of_type(run, name, quantity)))


def types_alike_over_foreground_only(run: Run) -> float:
    """Return the proportion of H-H filters minus that of H-noH filters, mean over the phases."""
    return _mean_of_type(run, "H-H", "proportion") - _mean_of_type(run, "H-noH", "proportion")


def types_alike_over_others(run: Run) -> float:
    """Return the proportion of H-H and L-L filters minus that of the other four types, mean over the phases."""
    shares = {name: _mean_of_type(run, name, "proportion") for name in TYPES}
    alike = shares.pop("H-H") + shares.pop("L-L")
    return alike - sum(shares.values())


def high_high_lead(run: Run) -> float:
    """Return the accuracy lost without the H-H filters minus the most lost without another type, mean over phases."""
    others = [_mean_of_type(run, name, "accuracy lost") for name in TYPES if name != "H-H"]
    return _mean_of_type(run, "H-H", "accuracy lost") - max(others)


def high_high_over_random(run: Run) -> float:
    """Return the accuracy lost without the H-H filters minus that without random ones, mean over the phases."""
    return _mean_of_type(run, "H-H", "accuracy lost") - _mean_of_type(run, "H-H", "accuracy lost, random filters")


def high_high_over_foreground_only(run: Run) -> float:
    """Return the accuracy lost per percent of filters, without H-H filters minus without H-noH filters, last phase."""
    lost = {}
    for name in ("H-H", "H-noH"):
        proportion = _of_type(run, name, "proportion")[-1]
        if proportion == 0:
            raise UndefinedStatistic(f"no {name} filters")
        lost[name] = _of_type(run, name, "accuracy lost")[-1] / (100 * proportion)
    return lost["H-H"] - lost["H-noH"]


def high_high_growth(run: Run) -> float:
    """Return the accuracy lost without the H-H filters in the last phase minus that in the first."""
    lost = _of_type(run, "H-H", "accuracy lost")
    return lost[-1] - lost[0]


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
    Table(
        id="slides_5-3",
        title="Filters by what they see of foreground and background, and how they matter",
        source=f"{_SLIDES} 5-3",
        direction="most typed filters are H-H or L-L; masking H-H costs most, and more from phase to phase",
        inputs=(FILTER_TYPES,),
        function=table_types,
        columns="checkpoint",
        caption="Filters of the masked layer are ranked by the mean of their images over the foreground (first "
        "letter) and over the background (second). H: among the highest of the ranking, L: among the lowest, noH and "
        "noL: not among them; the share that counts as high or low, 30 % by default, is in the configuration. So H-H "
        "filters are strong on both, H-noH on the foreground only. The six proportions need not sum to 1. 'accuracy "
        "lost' is the test accuracy lost, in percentage points, when all filters of a type are masked together, "
        "positive for a loss; 'random filters' is the mean over draws of as many filters of the layer, since a type "
        "of more filters costs more by that alone. The three phases are our reading: the checkpoints after each third "
        "of the training. The source names neither phases, layer, network nor data of this table, so its values stand "
        "beside every network that has some of its own. Where the foreground is what is brighter than a threshold, the "
        "background is nearly black; a learning image is the input times a weight, so it then rests on a few dim "
        "pixels beside the strokes.",
    ),
)
_STATISTICS_5 = (
    area_best_over_random,
    area_lead_of_tm,
    area_lead_of_tc,
    rank_avou_tm,
    rank_avou_tc,
    rank_sou_tm,
    types_alike_over_foreground_only,
    types_alike_over_others,
    high_high_lead,
    high_high_over_random,
    high_high_over_foreground_only,
    high_high_growth,
)

# ---------------------------------------------------------------------------------------------------------------------
# Chapter 6: anomaly filters

_EXCHANGED = (
    "the source's values of ResNet-18 and VGG-16 on ILSVRC-2013 DET look exchanged (table 6-2 has 301 and 3 anomaly "
    "filters there); they stand as printed"
)


def anomaly_counts(frame: pd.DataFrame) -> list[Row]:
    """Return how many filters are anomaly filters and of how many, how many show each sign, and the outlier sweep."""
    names = {"anomaly filters": "is_anomaly", "unbalanced clusters": "unbalanced", "high CH index": "high_ch"}
    names |= {"high activation": "high_activation"}
    for column in columns_of(frame):
        if column.startswith("is_anomaly_"):
            share = percent(float(column.removeprefix("is_anomaly_")))
            names[f"anomaly filters, outliers up to {share}"] = column
    counts = {quantity: float(frame[column].astype(bool).sum()) for quantity, column in names.items()}
    counts["filters examined"] = float(len(frame))
    return [{"quantity": quantity, "value": value} for quantity, value in counts.items()]


def anomaly_curve(frame: pd.DataFrame) -> list[Row]:
    """Return the number of anomaly filters in each checkpoint of the overfitting training, with its epoch."""
    return [
        {"epoch": row["epoch"], "quantity": "anomaly filters", "value": float(row["is_anomaly"])}
        for row in records_of(frame[frame["checkpoint"] != "well_trained"])
    ]


def single_effects(frame: pd.DataFrame) -> list[Row]:
    """Return how many anomaly filters change the accuracy when masked alone, and in which direction."""
    rows = []
    for checkpoint, part in frame.groupby("checkpoint"):
        change = part.pivot_table("accuracy_change", ["layer", "filter"], "split")
        counts = {
            "training accuracy falls": change["train"] < 0,
            "validation accuracy rises": change["validation"] > 0,
            "either accuracy changes": (change != 0).any(axis=1),
            "filters masked": change["train"].notna(),
        }
        rows += [
            {"checkpoint": checkpoint, "quantity": quantity, "value": float(found.sum())}
            for quantity, found in counts.items()
        ]
    return rows


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


def table_single_masking(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-4: anomaly filters masked one by one. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint",)
    measured = measure(runs, ANOMALY_SINGLE, single_effects, "anomaly filters not masked", "no anomaly filters")
    ours = summarise(measured, keys, "no anomaly filters to mask")
    rows = published_rows(published, runs, checkpoint="overfitted")
    frame = assemble(ours, rows, published, keys, "no overfitted checkpoint, or no anomaly filters in it")
    suspect = frame["model"].isin(("resnet18", "vgg16")) & frame["published ILSVRC-2013 DET"].notna()
    notes = frame.loc[suspect, "note"].map(lambda note: "; ".join(text for text in (note, _EXCHANGED) if text))
    frame.loc[suspect, "note"] = notes
    return frame


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


def anomaly_trend(run: Run) -> float:
    """Return the rank correlation of the epoch and the number of anomaly filters along the overfitting training."""
    rows = reduced(run, ANOMALY_HISTORY, anomaly_curve)
    return trend([row["value"] for row in sorted(rows, key=lambda row: float(row["epoch"]))], "checkpoints")


def _share_of_changes(run: Run, quantity: str) -> float:
    rows = [row for row in reduced(run, ANOMALY_SINGLE, single_effects) if row["checkpoint"] == "overfitted"]
    if not rows:
        raise UndefinedStatistic("no anomaly filters in the overfitted network, or no such network")
    changed, found = (values_of(rows, "undefined", quantity=name)[0] for name in ("either accuracy changes", quantity))
    if changed == 0:
        raise UndefinedStatistic("masking any one anomaly filter leaves the accuracy as it is")
    return found / changed


def training_falls(run: Run) -> float:
    """Return the share that lowers the training accuracy, of the anomaly filters whose masking changes an accuracy."""
    return _share_of_changes(run, "training accuracy falls")


def validation_rises(run: Run) -> float:
    """Return the same share for masking that raises the validation accuracy."""
    return _share_of_changes(run, "validation accuracy rises")


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
        "cluster, separate unusually well, and the outliers activate it strongly. 'unbalanced clusters', 'high CH "
        "index' and 'high activation' count the filters that show one of these signs, whether or not the others; high "
        "activation is that of outliers, so it needs an outlier cluster. 'outliers up to' counts the anomaly filters "
        "for other sizes of an outlier cluster, where one sample is always few enough: with 80 samples 0.5%, 1% and 2% "
        "all mean one. 'filters examined' counts the filters of all scanned layers. The "
        "source's thresholds are not known; ours are in the configuration.",
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
        id="slides_6-4",
        title="Anomaly filters whose masking changes the accuracy",
        source=f"{_SLIDES} 6-4",
        direction="training accuracy falls and validation accuracy rises in most cases",
        inputs=(ANOMALY_SINGLE,),
        function=table_single_masking,
        columns="quantity",
        caption="Each anomaly filter is masked alone. Of those whose masking changes the training or the validation "
        "accuracy at all ('either accuracy changes'), the first column counts those that lower the training accuracy, "
        "the second those that raise the validation accuracy. The source prints both as a/b with the same b in both "
        "columns, which we read so; its b exceeds the anomaly filters of the well-trained network (table 6-2), so it "
        "speaks of the overfitted one. Its values on ILSVRC-2013 DET for ResNet-18 (3/3, 2/3) and VGG-16 (209/237, "
        "114/237) look exchanged, since table 6-2 has 301 and 3 anomaly filters there; they stand as printed.",
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
    anomaly_trend,
    training_falls,
    validation_rises,
)


TABLES = {table.id: table for table in (*_TABLES_3, *_TABLES_4, *_TABLES_5, *_TABLES_6)}
STATISTICS = {
    function.__name__: function for function in (*_STATISTICS_3, *_STATISTICS_4, *_STATISTICS_5, *_STATISTICS_6)
}
