"""Figures: what people would rather look at than read. Each function draws one figure and returns it.

A figure shows one model on one data set: measures over all seeds, pictures of the first seed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnscan.artifacts import atomic_path, read_csv, read_frame
from nnscan.similarities import seed_curves

Image = NDArray[np.floating]

PROPERTY_LABELS = {
    "T_m": "$T_m$ strength",
    "T_v": "$T_v$ diversity",
    "T_c": "$T_c$ dependence",
    "T_cor": "$T_{cor}$ correlation",
}
AVERAGE_LABELS = {
    "simple": "simple", "most": "most confident", "least": "least confident", "ascended": "network-driven",
}  # fmt: skip
ELEMENT_LABELS = {"": "whole FQ", **{name: f"without {name}" for name in ("l", "c", "s", "vf", "nf")}}
CHECKPOINT_LABELS = {"well_trained": "well trained", "overfitted": "overfitted"}
SIGN_LABELS = {
    "unbalanced": "unbalanced clusters", "high_activation": "high activation", "high_ch": "high CH index",
}  # fmt: skip

mpl.use("Agg")
sns.set_theme(
    style="whitegrid",
    context="notebook",
    palette="deep",
    rc={"figure.dpi": 110, "savefig.dpi": 160, "axes.titlesize": 11, "axes.labelsize": 10, "legend.frameon": False,
        "svg.hashsalt": "nnscan"},
)  # fmt: skip


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG and close it; equal figures give equal bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def plain(text: str) -> str:
    """Return text that Matplotlib draws as it stands; between two dollars it would read a formula."""
    return text.replace("$", r"\$")


def short_layers(layers: Sequence[str], convolutional: bool = True) -> list[str]:
    """Return layer labels for an axis: conv1, conv2, ... as the sources number them."""
    return [f"{'conv' if convolutional else 'layer'}{index}" for index, _ in enumerate(layers, start=1)]


def evenly(count: int, most: int) -> list[int]:
    """Return the positions of at most so many of `count` layers: the first, the last and evenly between."""
    chosen: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return chosen


def _tilt_labels(axes: Axes, count: int) -> None:
    """Tilt the labels of an axis of so many layers where they would touch."""
    axes.tick_params(axis="x", rotation=45 if count > 6 else 0)


def by_seed(paths: Sequence[str | Path], seeds: Sequence[int]) -> pd.DataFrame:
    """Return a file of each seed (Parquet or CSV) as one table with the column seed; of no files, without rows."""
    frames = [read_csv(path) if str(path).endswith(".csv") else read_frame(path) for path in paths]
    parts = [frame.assign(seed=seed) for frame, seed in zip(frames, seeds, strict=True)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["seed"])


def by_checkpoint(paths: Sequence[str | Path], checkpoints: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Return the files of each checkpoint and seed, in this order, as one table with these two columns."""
    parts = []
    for position, checkpoint in enumerate(checkpoints):
        own = paths[position * len(seeds) : (position + 1) * len(seeds)]
        parts.append(by_seed(own, seeds).assign(checkpoint=checkpoint))
    return pd.concat(parts, ignore_index=True)


def _show(axes: Axes, image: Image, title: str = "", signed: bool = False, color_map: str | None = None) -> None:
    """Draw a (C, H, W) or (H, W) image; signed images in blue and red around zero, maps (H, W) in a color map."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if signed:
        limit = float(np.abs(image).max()) or 1.0
        axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    elif color_map is not None:
        axes.imshow(image, cmap=color_map, interpolation="nearest")
    elif image.ndim == 3 and image.shape[0] == 3:
        axes.imshow(np.clip(image.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    else:
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, pad=3)


def class_averages(averages: Mapping[str, Image], classes: Sequence[str], confidences: Mapping[str, Image]) -> Figure:
    """Draw the class-average images, and what the network takes them for.

    Above, a row for each kind of average and a column for each class; below, a confidence matrix for each kind.

    Args:
        averages: Images (n_classes, C, H, W) in [0, 1] by kind.
        classes: Class names.
        confidences: Confidence matrices (n_classes, n_classes) by kind; row: average of class i, column: confidence of
            class j. The diagonal is written above each image.
    """
    classes = [plain(name) for name in classes]
    shown, few = range(min(len(classes), 20)), len(classes) <= 10
    width, matrix_rows = max(9.0, 1.05 * len(shown) + 1.2), -(-len(averages) // 2)
    heights = (1.35 * len(averages) + 0.3, 0.46 * width * matrix_rows)
    figure = plt.figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    pictures = above.subplots(len(averages), len(shown), squeeze=False)
    for row, (kind, images) in enumerate(averages.items()):
        for column in shown:
            axes = pictures[row, column]
            _show(axes, images[column], f"{confidences[kind][column, column]:.2f}")
            if row == len(averages) - 1:
                axes.set_xlabel(classes[column], fontsize=8)
            if column == 0:
                axes.set_ylabel(AVERAGE_LABELS[kind], fontsize=9)
    matrices = below.subplots(matrix_rows, 2, squeeze=False)
    for place, axes in enumerate(matrices.flat):
        if place >= len(averages):
            axes.axis("off")
            continue
        kind = list(averages)[place]
        names: Sequence[str] | bool = list(classes) if few else False
        sns.heatmap(
            confidences[kind], vmin=0, vmax=1, cmap="viridis", annot=few, fmt=".2f", annot_kws={"fontsize": 6.5},
            xticklabels=names, yticklabels=names, square=True, ax=axes, cbar=False,
        )  # fmt: skip
        axes.set_title(f"{AVERAGE_LABELS[kind]} averages")
        axes.tick_params(labelsize=7)
        axes.set_xlabel("confidence of class", fontsize=8)
        axes.set_ylabel("average of class", fontsize=8)
    bar = below.colorbar(matrices[0, 0].collections[0], ax=matrices, shrink=0.6, aspect=40)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle("Class-average images, with the network's confidence in their class")
    return figure


@dataclass(frozen=True)
class Portrait:
    """A neuron's learning image beside the input it belongs to.

    Attributes:
        layer: The layer's name.
        measure: What the neurons are chosen by: FQ or SSIM.
        title: What is written above the learning image.
        strongest: Whether the neuron is among the strongest of its layer, or among the weakest.
        sample: The input (C, H, W) in [0, 1].
        image: The channel-summed learning image (H, W).
    """

    layer: str
    measure: str
    title: str
    strongest: bool
    sample: Image
    image: Image


def learning_images(portraits: Sequence[Portrait], convolutional: bool = True) -> Figure:
    """Draw learning images of the strongest and weakest neurons: a row for each layer, inputs above their images.

    Args:
        portraits: The neurons.
        convolutional: Whether the layers are convolutions.
    """
    if not portraits:
        return sentence("no neuron has a positive value")
    layers = list(dict.fromkeys(portrait.layer for portrait in portraits))
    widest = max(
        sum(p.layer == layer and p.strongest == s for p in portraits) for layer in layers for s in (True, False)
    )
    figure, grid = plt.subplots(
        2 * len(layers), 2 * widest, figsize=(2 * widest * 1.15 + 1, 2 * len(layers) * 1.3), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, (layer, label) in enumerate(zip(layers, short_layers(layers, convolutional), strict=True)):
        for strongest in (True, False):
            chosen = [p for p in portraits if p.layer == layer and p.strongest == strongest]
            for position, portrait in enumerate(chosen):
                column = position + (0 if strongest else widest)
                for axes in (grid[2 * row, column], grid[2 * row + 1, column]):
                    axes.axis("on")
                _show(grid[2 * row, column], portrait.sample)
                _show(grid[2 * row + 1, column], portrait.image, portrait.title, signed=True)
        grid[2 * row, 0].set_ylabel(f"{label}\ninput", fontsize=9)
        grid[2 * row + 1, 0].set_ylabel("learning\nimage", fontsize=9)
    figure.suptitle(
        f"Learning images: neurons of the largest {portraits[0].measure} of each layer (left) and of the smallest "
        "above 0 (right)",
        y=1.0,
    )
    figure.tight_layout()
    return figure


def quantity(quantities: pd.DataFrame) -> Figure:
    """Draw FQ and SSIM by layer: mean and variance over neurons, spread over seeds, and the neurons' distribution.

    Args:
        quantities: The tables of feature quantities of all seeds, with the column seed.
    """
    frame = quantities.assign(SSIM=quantities["ssim"])
    layers = frame.sort_values("depth")["layer"].unique().tolist()
    convolutional = bool((frame[["row", "column"]] > 0).any(axis=None))  # a linear layer has one place only
    frame["conv"] = frame["layer"].map(dict(zip(layers, short_layers(layers, convolutional), strict=True)))
    masked = bool(frame["fq"].notna().any())
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8))
    by_layer = frame.groupby(["seed", "depth", "conv"])[["fq", "SSIM"]]
    statistics = ((left, by_layer.mean(), "mean"), (middle, by_layer.var(ddof=0), "variance"))
    for axes, values, statistic in statistics:
        ordered = values.reset_index().sort_values("depth")
        for name, label in (("fq", "FQ"), ("SSIM", "SSIM")):
            if name == "SSIM" or masked:
                sns.lineplot(ordered, x="conv", y=name, marker="o", errorbar="sd", ax=axes, label=label)
        axes.set(
            xlabel="", ylabel=f"{statistic} over neurons", title=f"{statistic.capitalize()} (band: spread over seeds)"
        )
    left.set_ylim(0, None)
    if (middle.lines[0].get_ydata() > 0).any():  # the variances of FQ and SSIM are orders of magnitude apart
        middle.set_yscale("log")
    shown = "fq" if masked else "SSIM"
    sns.boxenplot(
        frame.sort_values("depth"), x="conv", y=shown, ax=right, color=sns.color_palette()[0], showfliers=False
    )
    right.set(xlabel="", ylabel="FQ of a neuron" if masked else "SSIM of a neuron", title="Distribution over neurons")
    for axes in (left, middle, right):
        _tilt_labels(axes, len(layers))
    figure.tight_layout()
    return figure


def similarity(similarities: pd.DataFrame, classes: Sequence[str], convolutional: bool = True) -> Figure:
    """Draw mean and standard deviation of the similarity values by layer, for each average image and method.

    Args:
        similarities: The tables of similarity values of all seeds, with the column seed.
        classes: Class names.
        convolutional: Whether the layers are convolutions.
    """
    layers = similarities.sort_values("depth")["layer"].unique().tolist()
    curves = seed_curves(similarities)
    curves["conv"] = curves["layer"].map(dict(zip(layers, short_layers(layers, convolutional), strict=True)))
    kinds = list(dict.fromkeys(similarities["average"]))
    figure, grid = plt.subplots(
        4, len(kinds), figsize=(3.7 * len(kinds), 9.5), sharex=True, sharey="row", squeeze=False
    )
    for column, kind in enumerate(kinds):
        for row, (method, statistic) in enumerate([(1, "mean"), (2, "mean"), (1, "sd"), (2, "sd")]):
            axes = grid[row, column]
            part = curves[(curves["average"] == kind) & (curves["method"] == method)]
            for number, curve in part.groupby("class"):
                axes.plot(curve["conv"], curve[statistic], linewidth=0.9, alpha=0.55, label=plain(classes[int(number)]))
            overall = part.groupby(["depth", "conv"])[statistic].mean().reset_index()
            axes.plot(overall["conv"], overall[statistic], color="black", linewidth=2, marker="o", label="mean")
            name = "mean" if statistic == "mean" else "standard deviation"
            axes.set(ylabel=f"{name}\nmethod {method}" if column == 0 else "")
            axes.set_title(f"{AVERAGE_LABELS[kind]} averages" if row == 0 else "")
    for axes in grid[-1]:
        _tilt_labels(axes, len(layers))
    handles, names = grid[0, 0].get_legend_handles_labels()
    if len(names) <= 21:
        figure.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle("Similarity of neurons to the class averages, by layer", y=1.0)
    figure.tight_layout()
    return figure


def aipc(curves: pd.DataFrame) -> Figure:
    """Draw the change of accuracy when filters are masked step by step, for each ranking, with random orders.

    Args:
        curves: The tables of `interventions.aipc` of all seeds, with the column seed.
    """
    figure, axes = plt.subplots(figsize=(8.0, 4.2))
    rankings = [name for name in PROPERTY_LABELS if name in set(curves["ranking"])]
    for name in rankings:
        part = curves[curves["ranking"] == name]
        sns.lineplot(part, x="fraction", y="change", marker="o", errorbar="sd", ax=axes, label=PROPERTY_LABELS[name])
    random = curves[curves["ranking"] == "random"]
    sns.lineplot(
        random, x="fraction", y="change", errorbar="sd", ax=axes, label="random order", color="0.45", linestyle="--"
    )
    axes.set(
        xlabel="share of the layer's filters masked, strongest first",
        ylabel="change of accuracy (percentage points)",
        title=f"AIPC, layer {curves['layer'].iloc[0]} (bands: spread over seeds, and draws)",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def strongest_filters(layer: str, filters: Mapping[str, int], samples: Image, images: Mapping[str, Image]) -> Figure:
    """Draw the images of the filter that ranks first by each property, beside the inputs: a row for each sample.

    Args:
        layer: The layer.
        filters: The filter by the property's name.
        samples: Inputs (n, C, H, W) in [0, 1].
        images: Its images (n, H, W) by the property's name.
    """
    figure, grid = plt.subplots(
        len(samples), 1 + len(filters), figsize=(1.75 * (1 + len(filters)), 1.6 * len(samples) + 0.8), squeeze=False
    )
    for row, sample in enumerate(samples):
        _show(grid[row, 0], sample)
        for column, name in enumerate(filters, start=1):
            _show(grid[row, column], images[name][row], signed=True)
    heads = ["input", *(f"{PROPERTY_LABELS[name]}\nfilter {index}" for name, index in filters.items())]
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=9)
    figure.suptitle(f"Images of the filter that ranks first by each property, layer {layer}", fontsize=11, y=1.0)
    figure.tight_layout()
    return figure


def training(history: pd.DataFrame) -> Figure:
    """Draw losses and accuracies over the epochs, of the regular and of the overfitting training.

    Args:
        history: The histories of all seeds, with the column seed.
    """
    phases = list(dict.fromkeys(history["phase"])) or ["regular"]
    figure, grid = plt.subplots(2, len(phases), figsize=(5.2 * len(phases), 6), squeeze=False, sharex="col")
    if history.empty:
        grid[0, 0].text(0.5, 0.5, "not trained by nnscan", ha="center", transform=grid[0, 0].transAxes)
        return figure
    for column, phase in enumerate(phases):
        part = history[history["phase"] == phase]
        for row, quantity_name in enumerate(("loss", "accuracy")):
            axes = grid[row, column]
            for split in ("train", "validation"):
                sns.lineplot(part, x="epoch", y=f"{split}_{quantity_name}", errorbar="sd", ax=axes, label=split)
            axes.set(ylabel=quantity_name, xlabel="epoch")
        grid[0, column].set_title(f"{phase} training")
        grid[0, column].set_yscale("log")
    figure.suptitle("Training curves (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class Cloud:
    """The samples of one filter as points, with the images of some of its outliers.

    Attributes:
        title: What is written above.
        points: (N, 2).
        outliers: Positions in points of the outlier samples.
        samples: Images of up to three outliers (n, C, H, W) in [0, 1].
    """

    title: str
    points: Image
    outliers: NDArray[np.int64]
    samples: Image


def anomaly(anomalies: pd.DataFrame, clouds: Sequence[Cloud]) -> Figure:
    """Draw the number of anomaly filters, and the samples of some of them with their outliers.

    Args:
        anomalies: The tables of anomaly filters of all checkpoints and seeds, with the columns checkpoint and seed.
        clouds: Filters of the first seed: anomalies, or where there are none those of the highest CH index.
    """
    columns = 1 + max(len(clouds), 1)
    figure = plt.figure(figsize=(3.1 * columns, 3.9))
    layout = figure.add_gridspec(2, columns, height_ratios=[3, 1])
    axes = figure.add_subplot(layout[:, 0])
    frame = (
        anomalies.groupby(["checkpoint", "seed"], sort=False)["is_anomaly"]
        .mean()
        .mul(100)
        .rename("share")
        .reset_index()
    )
    frame["checkpoint"] = frame["checkpoint"].map(CHECKPOINT_LABELS)
    sns.barplot(frame, x="checkpoint", y="share", errorbar="sd", ax=axes, hue="checkpoint", legend=False)
    axes.set(xlabel="", ylabel="anomaly filters (% of all)", title="Anomaly filters")
    axes.set_ylim(0, None if frame["share"].any() else 1)  # of no height at all where there are none
    for column, cloud in enumerate(clouds, start=1):
        axes = figure.add_subplot(layout[0, column])
        inliers = np.setdiff1d(np.arange(len(cloud.points)), cloud.outliers)
        axes.scatter(cloud.points[inliers, 0], cloud.points[inliers, 1], s=6, alpha=0.5, color="0.5")
        far = cloud.points[cloud.outliers]
        axes.scatter(far[:, 0], far[:, 1], s=26, color=sns.color_palette()[3], marker="x")
        axes.set(xticklabels=[], yticklabels=[])
        axes.set_title(cloud.title, fontsize=8)
        inner = layout[1, column].subgridspec(1, 3)
        for position, sample in enumerate(cloud.samples):
            _show(figure.add_subplot(inner[0, position]), sample)
    figure.suptitle("Samples of a filter on their two principal components; crosses are outliers, shown below", y=1.0)
    figure.tight_layout()
    return figure


def anomaly_history(losses: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Draw the losses and the numbers of anomaly filters along the overfitting training.

    Args:
        losses: The histories of the overfitting training of all seeds, with the column seed.
        counts: The tables of `anomaly.anomaly_history` of all seeds, with the column seed; no rows for a model that is
            not overfitted.
    """
    if counts.empty:
        return sentence("no overfitting training")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.7))
    for split in ("train", "validation"):
        sns.lineplot(losses, x="epoch", y=f"{split}_loss", errorbar="sd", ax=left, label=split)
    left.set(yscale="log", ylabel="loss", title="(a) losses")
    counts = counts.astype({"epoch": int, "is_anomaly": float})
    well_trained = counts["checkpoint"] == "well_trained"
    on_the_way = counts[~well_trained]
    sns.lineplot(
        on_the_way, x="epoch", y="is_anomaly", errorbar="sd", marker="o", ax=middle, label="overfitting training"
    )
    middle.scatter(
        counts.loc[well_trained, "epoch"], counts.loc[well_trained, "is_anomaly"], marker="x", s=50, zorder=3,
        color=sns.color_palette()[3], label="well trained, each seed",
    )  # fmt: skip
    examined = " to ".join(str(number) for number in sorted({counts["filters"].min(), counts["filters"].max()}))
    middle.set(ylabel=f"anomaly filters (of {examined})", title="(b) all three signs together")
    for (sign, label), marker, dashes in zip(SIGN_LABELS.items(), "os^", ("-", "--", ":"), strict=True):
        signs = on_the_way.astype({sign: float})
        sns.lineplot(
            signs, x="epoch", y=sign, errorbar="sd", marker=marker, linestyle=dashes, ax=right, label=label
        )  # fmt: skip
    right.set(ylabel=f"filters (of {examined})", title="(c) each sign alone")
    for axes, shown in ((middle, ["is_anomaly"]), (right, list(SIGN_LABELS))):
        highest = max(1.0, 1.08 * float(counts[shown].to_numpy(dtype=float).max()))
        axes.set(xlim=left.get_xlim(), ylim=(-0.04 * highest, highest))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    figure.suptitle("Overfitting training (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class Process:
    """What a network learns of some inputs, layer by layer.

    Attributes:
        title: What is written above.
        layers: A label for each layer.
        samples: The inputs (C, H, W) in [0, 1].
        images: For each input and layer the channel-summed learning image (H, W) of one neuron.
    """

    title: str
    layers: Sequence[str]
    samples: Sequence[Image]
    images: Sequence[Sequence[Image]]


def learning_process(processes: Sequence[Process]) -> Figure:
    """Draw networks below each other: a row for each input, a column for each layer."""
    rows = sum(len(process.samples) for process in processes)
    columns = 1 + max(len(process.layers) for process in processes)
    figure = plt.figure(figsize=(1.15 * columns + 0.3, 1.2 * rows + 0.55 * len(processes) + 0.3))
    heights = [len(process.samples) for process in processes]
    layout = figure.add_gridspec(len(processes), 1, height_ratios=heights)
    for position, process in enumerate(processes):
        panel = figure.add_subfigure(layout[position, 0])
        panel.suptitle(f"{process.title}: learning image of each layer's most activated neuron", fontsize=10)
        grid = panel.subplots(len(process.samples), columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for row, (sample, images) in enumerate(zip(process.samples, process.images, strict=True)):
            _show(grid[row, 0], sample, "" if row else "input")
            for column, (layer, image) in enumerate(zip(process.layers, images, strict=True), start=1):
                _show(grid[row, column], image, "" if row else layer, signed=True)
        panel.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.5 / (1.2 * len(grid) + 0.55), wspace=0.08)
    return figure


def knowledge(amounts: pd.DataFrame) -> Figure:
    """Draw the knowledge amount of each layer: count, intensity, and the share of active neurons.

    Args:
        amounts: The tables of `knowledge.layer_knowledge` of all seeds and networks, with the columns model and seed.
    """
    frame = amounts.assign(place=amounts["depth"] + 1, percent=100 * amounts["count"], active=100 * amounts["active"])
    figure, grid = plt.subplots(1, 3, figsize=(13, 3.7))
    shown = (
        ("percent", "Count: support of an image", "% of the pixels"),
        ("intensity_share", "Intensity: size of an image", "multiple of the input's size"),
        ("active", "Active neurons", "% of the layer"),
    )
    for axes, (name, title, label) in zip(grid, shown, strict=True):
        sns.lineplot(frame, x="place", y=name, hue="model", style="model", markers=True, errorbar="sd", ax=axes)
        axes.set(xlabel="scanned layer", ylabel=label, title=title, xticks=sorted(frame["place"].unique()))
        if name == "percent":
            axes.axhline(100 * frame["input_count"].mean(), color="0.5", linestyle=":", label="input")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.legend()
    figure.suptitle("Knowledge amount of each layer, mean over active neurons (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    return figure


def _kind_labels(frame: pd.DataFrame) -> dict[str, str]:
    """Return labels of convolutional and linear layers, numbered apart: conv1, conv2, ..., fc1, ..."""
    layers = frame.drop_duplicates("layer").sort_values("depth")
    return dict(zip(layers["layer"], numbered_layers(layers["convolutional"].tolist()), strict=True))


def numbered_layers(convolutional: Sequence[bool]) -> list[str]:
    """Return labels of layers in order, convolutional and linear ones numbered apart: conv1, conv2, ..., fc1, ..."""
    counts = {True: 0, False: 0}
    labels = []
    for kind in convolutional:
        counts[bool(kind)] += 1
        labels.append(f"{'conv' if kind else 'fc'}{counts[bool(kind)]}")
    return labels


def _one_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put the legend that panels share beside them, in place of one in each."""
    for axes in panels:
        if legend := axes.get_legend():
            legend.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5))


def distances(table: pd.DataFrame) -> Figure:
    """Draw the distances of learning images to their own samples and to others, by layer.

    Args:
        table: The tables of `knowledge.sample_distances` of all seeds, with the column seed.
    """
    if table.empty:
        return sentence("no neuron has learning images for two samples")
    frame = table.assign(label=table["layer"].map(_kind_labels(table)))
    names = ["own", "other", "own_scaled", "other_scaled"]
    means = frame.groupby(["seed", "depth", "label"])[names].mean().reset_index().sort_values("depth")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.7))
    for axes, ending, title in ((left, "", "As they are"), (middle, "_scaled", "Scaled to unit norm")):
        for name in ("own", "other"):
            label = f"{name} sample" + ("s" if name == "other" else "")
            sns.lineplot(means, x="label", y=name + ending, marker="o", errorbar="sd", ax=axes, label=label)
        axes.set(xlabel="", ylabel="L2 distance of image and sample", title=title)
    _one_legend(figure, (left, middle))
    means["closeness"] = 100 * (1 - means["own_scaled"] / means["other_scaled"])
    sns.lineplot(means, x="label", y="closeness", marker="o", errorbar="sd", ax=right, color="0.2")
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set(xlabel="", ylabel="own sample nearer by (%)", title="Difference, unit norm")
    for axes in (left, middle, right):
        _tilt_labels(axes, means["label"].nunique())
    figure.suptitle("Learning images of drawn neurons and samples (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class Contest:
    """An input and the learning images of the output neurons with the highest scores.

    Attributes:
        sample: The input (C, H, W) in [0, 1].
        titles: What is written above the images; the winner's first.
        images: The channel-summed learning images (H, W), the winner's first.
    """

    sample: Image
    titles: Sequence[str]
    images: Sequence[Image]


def winners(table: pd.DataFrame, contests: Sequence[Contest]) -> Figure:
    """Draw the distances of the output neurons' learning images to the input, how often the winner is the nearest, and
    the images of some inputs.

    Args:
        table: The tables of `knowledge.winning_neurons` of all seeds, with the column seed.
        contests: Inputs with images.
    """
    frame = table.assign(rank=table.groupby(["seed", "sample"])["score"].rank(ascending=False, method="first"))
    columns = 1 + max(len(contest.images) for contest in contests)
    figure = plt.figure(figsize=(max(12.0, 1.1 * columns), 3.7 + 1.45 * len(contests)))
    layout = figure.add_gridspec(2, 1, height_ratios=[3.7, 1.45 * len(contests)])
    above, below = (figure.add_subfigure(layout[row, 0]) for row in range(2))
    left, middle, right = above.subplots(1, 3)
    measures = (("distance", "as they are"), ("distance_scaled", "unit norm"))
    for axes, (name, label) in zip((left, middle), measures, strict=True):
        means = frame.groupby(["seed", "rank"])[name].mean().reset_index()
        sns.lineplot(means, x="rank", y=name, marker="o", errorbar="sd", ax=axes)
        axes.set(xlabel="output neurons by score (1: winner)", ylabel=f"distance to the input, {label}")
    nearest = {
        label: frame.loc[frame.groupby(["seed", "sample"])[name].idxmin()].groupby("seed")["winner"].mean()
        for name, label in measures
    }
    hits = pd.DataFrame({label: 100 * values for label, values in nearest.items()}).melt()
    sns.barplot(hits, x="variable", y="value", hue="variable", errorbar="sd", ax=right, legend=False)
    right.axhline(100 / frame["output"].nunique(), color="0.3", linestyle="--")
    right.set(xlabel="", ylabel="% of the images", ylim=(0, 100), title="Winner is the nearest (dashed: chance)")
    above.suptitle("Learning images of the output neurons and the input (bands: spread over seeds)", fontsize=12)
    above.subplots_adjust(left=0.07, right=0.98, bottom=0.17, top=0.84, wspace=0.3)
    grid = below.subplots(len(contests), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, contest in zip(grid, contests, strict=True):
        _show(row[0], contest.sample, "input")
        for axes, title, image in zip(row[1:], contest.titles, contest.images, strict=False):
            _show(axes, image, title, signed=True)
    below.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.86, wspace=0.1, hspace=0.35)
    return figure


@dataclass(frozen=True)
class MapPair:
    """A filter's feature map beside its learning image.

    Attributes:
        layer: The layer's name.
        title: What is written above.
        feature_map: (h, w), not negative.
        image: (H, W), not negative.
    """

    layer: str
    title: str
    feature_map: Image
    image: Image


def feature_maps(sample: Image, pairs: Sequence[MapPair]) -> Figure:
    """Draw filters' feature maps above their learning images: a pair of rows for each layer; the input on the left."""
    if not pairs:
        return sentence("no layer has feature maps with places")
    layers = list(dict.fromkeys(pair.layer for pair in pairs))
    columns = 1 + max(sum(pair.layer == layer for pair in pairs) for layer in layers)
    # an empty column leaves room for the labels between the input and the maps
    figure, every = plt.subplots(
        2 * len(layers), columns + 1, figsize=(1.25 * columns + 0.5, 2.6 * len(layers) + 0.4), squeeze=False,
        width_ratios=[1, 0.3, *[1] * (columns - 1)],
    )  # fmt: skip
    for axes in every.flat:
        axes.axis("off")
    _show(every[0, 0], sample, "input")
    grid = np.delete(every, 1, axis=1)
    for row, (layer, label) in enumerate(zip(layers, short_layers(layers), strict=True)):
        for column, pair in enumerate((pair for pair in pairs if pair.layer == layer), start=1):
            for axes, image, title in (
                (grid[2 * row, column], pair.feature_map, pair.title),
                (grid[2 * row + 1, column], pair.image, ""),
            ):
                axes.axis("on")
                _show(axes, image / (image.max() or 1.0), title)
        grid[2 * row, 1].set_ylabel(f"{label}\nfeature map", fontsize=9)
        grid[2 * row + 1, 1].set_ylabel("learning\nimage", fontsize=9)
    figure.suptitle("Feature maps of the most activated filters, and their learning images", y=1.0, fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.5 / (2.6 * len(layers) + 0.4), hspace=0.25)
    return figure


def sentence(text: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(5, 1.5))
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    return figure


def _elements(by_layer: pd.DataFrame) -> pd.DataFrame:
    """Return the table of layers with axis labels, in order of depth."""
    layers = by_layer.sort_values("depth")["layer"].unique().tolist()
    labels = dict(zip(layers, short_layers(layers, bool((by_layer["places"] > 1).any())), strict=True))
    return by_layer.assign(label=by_layer["layer"].map(labels)).sort_values("depth", kind="stable")


def quantity_correlation(by_layer: pd.DataFrame) -> Figure:
    """Draw Pearson's r of activation and FQ by layer, over all neurons and over the active ones.

    Args:
        by_layer: The tables of `quantity.layer_quantity` of all seeds, with the column seed.
    """
    frame = _elements(by_layer[by_layer["without"] == ""])
    if frame["correlation"].isna().all():
        return sentence("no feature quantity: the data have no foreground masks")
    names = {"correlation": "all neurons", "correlation_active": "active neurons"}
    tidy = frame.rename(columns=names).melt(["seed", "label"], list(names.values()))
    figure, axes = plt.subplots(figsize=(max(5.0, 0.7 * frame["label"].nunique() + 3), 3.9))
    sns.barplot(tidy, x="label", y="value", hue="variable", errorbar="sd", ax=axes)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(
        xlabel="", ylabel="Pearson's r", title="Activation and FQ of a layer's neurons (whiskers: spread over seeds)"
    )
    axes.legend(title="", loc="best")
    figure.tight_layout()
    return figure


def quantity_ablation(by_layer: pd.DataFrame) -> Figure:
    """Draw correlation with the activation, mean and variance of FQ by layer, whole and without each element.

    Args:
        by_layer: The tables of `quantity.layer_quantity` of all seeds, with the column seed.
    """
    frame = _elements(by_layer)
    if frame["mean"].isna().all():
        return sentence("no feature quantity: the data have no foreground masks")
    figure, grid = plt.subplots(1, 3, figsize=(13.5, 3.8))
    colours = ["black", *sns.color_palette()]
    shown = (("correlation", "Pearson's r with the activation"), ("mean", "mean of FQ"), ("variance", "variance of FQ"))
    for axes, (name, label) in zip(grid, shown, strict=True):
        for colour, (without, text) in zip(colours, ELEMENT_LABELS.items(), strict=False):
            part = frame[frame["without"] == without]
            width = 2.6 if without == "" else 1.4
            sns.lineplot(
                part, x="label", y=name, marker="o", errorbar="sd", ax=axes, label=text, color=colour, linewidth=width
            )
        axes.set(xlabel="", ylabel=label)
        _tilt_labels(axes, frame["label"].nunique())
        if name != "correlation" and (frame[name] > 0).any():
            axes.set_yscale("log")
    _one_legend(figure, grid)
    figure.suptitle("FQ over a layer's neurons without each of its elements (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class MapColumn:
    """The maps of one explainer.

    Attributes:
        name: The explainer.
        maps: A map (N, H, W) for each input; None where it has none.
        reason: Why it has none.
    """

    name: str
    maps: Image | None
    reason: str = ""


def explanations(samples: Image, titles: Sequence[str], columns: Sequence[MapColumn], heading: str) -> Figure:
    """Draw the maps of several explainers beside their inputs: a row for each input.

    Each map is stretched to its own range, from dark (smallest) to bright (largest).

    Args:
        samples: Inputs (n, C, H, W) in [0, 1].
        titles: What is written beside each input.
        columns: The explainers.
        heading: What is written above.
    """
    count = len(samples)
    figure, grid = plt.subplots(
        count, 1 + len(columns), figsize=(1.45 * (1 + len(columns)), 1.5 * count + 0.5), squeeze=False
    )
    for row, (sample, title) in enumerate(zip(samples, titles, strict=True)):
        _show(grid[row, 0], sample)
        grid[row, 0].set_ylabel(title, fontsize=8)
        for axes, column in zip(grid[row, 1:], columns, strict=True):
            if column.maps is None:
                axes.axis("off")
                axes.set_box_aspect(1)
                continue
            _show(axes, column.maps[row], color_map="inferno")
    for axes, name in zip(grid[0], ["input", *(column.name for column in columns)], strict=True):
        axes.set_title(name.replace(" ", "\n"), fontsize=9, pad=4)
    for axes, column in zip(grid[0, 1:], columns, strict=True):
        if column.maps is None:
            text = textwrap.fill(column.reason, 20)
            axes.text(0.5, 0.97, text, ha="center", va="top", fontsize=6.5, color="0.35", transform=axes.transAxes)
    figure.suptitle(heading, y=1.0, fontsize=11)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class SimilarNeuron:
    """A neuron (filter) with its guided-backpropagation image for a class average.

    Attributes:
        layer: What the layer is called.
        most: Whether it is among the most similar of its layer, or among the least.
        title: What is written above.
        image: The image (C, H, W), signed.
    """

    layer: str
    most: bool
    title: str
    image: Image


def _show_guided(axes: Axes, image: Image, title: str = "") -> None:
    """Draw a signed image (C, H, W): in color with gray for zero, or, of one channel, in blue and red."""
    if len(image) == 3:
        _show(axes, 0.5 + 0.5 * image / (np.abs(image).max() or 1.0), title)
    else:
        _show(axes, image.sum(0), title, signed=True)


def similar_neurons(neurons: Sequence[SimilarNeuron], average: Image, visualisation: Image, heading: str) -> Figure:
    """Draw the least and the most similar neurons of some layers, two rows for each layer.

    Args:
        neurons: The neurons, those of a row in the order of their similarity.
        average: The class average (C, H, W) in [0, 1].
        visualisation: The guided-backpropagation image of its class score (C, H, W).
        heading: What is written above.
    """
    if not neurons:
        return sentence("no neuron is active")
    rows = list(dict.fromkeys((neuron.layer, neuron.most) for neuron in neurons))
    widest = max(sum((neuron.layer, neuron.most) == row for neuron in neurons) for row in rows)
    figure, grid = plt.subplots(
        max(2, len(rows)), 1 + widest, figsize=(1.15 * (1 + widest) + 0.6, 1.45 * max(2, len(rows))), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes in grid[:2, 0]:
        axes.axis("on")
    _show(grid[0, 0], average, "class average")
    _show_guided(grid[1, 0], visualisation, "its class score")
    for place, (layer, most) in enumerate(rows):
        own = [neuron for neuron in neurons if (neuron.layer, neuron.most) == (layer, most)]
        for axes, neuron in zip(grid[place, 1:], own, strict=False):
            axes.axis("on")
            _show_guided(axes, neuron.image, neuron.title)
        grid[place, 1].set_ylabel(f"{layer}\n{'most' if most else 'least'} similar", fontsize=8)
    figure.suptitle(heading, y=1.0, fontsize=11)
    figure.tight_layout()
    return figure


def cut_training(histories: pd.DataFrame | None) -> Figure:
    """Draw the training curves of the networks that were cut after a layer, and of the whole one.

    Args:
        histories: The histories of `interventions.layer_removal` of all seeds, with the column seed; None where no
            layers were removed.
    """
    if histories is None:
        return sentence("no layers were removed from this network")
    seeds = histories["seed"].nunique()
    labels: dict[int, str] = {}
    for convolutions in sorted(histories["convolutions"].unique().tolist()):
        chosen = histories[(histories["convolutions"] == convolutions) & histories["chosen"]]["seed"].nunique()
        by = " (the curve's choice)" if chosen == seeds else f" (chosen by {chosen} of {seeds} seeds)" if chosen else ""
        labels[convolutions] = f"{convolutions} convolutions{by}"
    frame = histories.assign(network=histories["convolutions"].map(labels))
    order = list(labels.values())
    figure, grid = plt.subplots(1, 3, figsize=(12.5, 4.2))
    for axes, (column, name) in zip(
        grid,
        {
            "train_loss": "training loss",
            "validation_accuracy": "validation accuracy",
            "validation_loss": "validation loss",
        }.items(),
        strict=True,
    ):
        sns.lineplot(frame, x="epoch", y=column, hue="network", hue_order=order, errorbar="sd", ax=axes, legend=False)
        axes.set(xlabel="epoch", ylabel=name)
    grid[0].set_yscale("log")
    for place, label in enumerate(order):
        curve = frame[frame["network"] == label].groupby("epoch")["validation_loss"].mean()
        color = sns.color_palette()[place]
        grid[2].plot([curve.idxmin()], [curve.min()], marker="v", color=color, markersize=8, linestyle="none")
    handles = [Line2D([], [], color=sns.color_palette()[place], label=label) for place, label in enumerate(order)]
    handles.append(Line2D([], [], color="0.4", marker="v", linestyle="none", label="lowest validation loss"))
    figure.suptitle("Training of the cut networks (bands: spread over seeds)", y=1.0)
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=len(handles))
    return figure


MEASURE_PANELS = {
    "over_other": "own picture more alike\nthan another class's (share)",
    "over_shuffled": "own picture more alike\nthan its shuffled pixels (share)",
    "darker_over_other": "darker average more alike\nthan another class's (share)",
    "brightness": "change by half brightness\n(another class's picture = 1)",
}


def similarity_measures(measures: pd.DataFrame) -> Figure:
    """Draw how the five similarity measures tell pictures apart and how they react to brightness.

    Args:
        measures: The tables of `measures.compare` of all seeds, with the column seed.
    """
    names = list(dict.fromkeys(measures["measure"]))
    means = measures.groupby(["seed", "measure"], sort=False)[list(MEASURE_PANELS)].mean().reset_index()
    figure, grid = plt.subplots(1, len(MEASURE_PANELS), figsize=(13.5, 3.6), sharey=True)
    for axes, (column, title) in zip(grid, MEASURE_PANELS.items(), strict=True):
        sns.barplot(
            means, x=column, y="measure", order=names, hue="measure", hue_order=names, errorbar="sd", ax=axes,
            legend=False,
        )  # fmt: skip
        axes.set(xlabel="", ylabel="")
        axes.set_title(title, fontsize=9)
        if column != "brightness":
            axes.set_xlim(0, 1.05)
            axes.axvline(0.5, color="0.3", linestyle="--", linewidth=1)
    figure.suptitle("Similarity measures on class averages and their pictures (dashed: chance)", y=1.0, fontsize=11)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class UnitGallery:
    """The images on which a unit is most active.

    Attributes:
        title: What is written above: unit, label, IoU.
        images: (n, C, H, W) in [0, 1].
        masks: Where the unit is above its threshold, bool (n, H, W).
    """

    title: str
    images: Image
    masks: NDArray[np.bool_]


def unit_galleries(galleries: Mapping[str, Sequence[UnitGallery]]) -> Figure:
    """Draw units with the images that activate them most; a unit's mask is outlined, what lies outside is dimmed.

    Args:
        galleries: Units by the label of their layer, in the order of the layers; each layer begins a row.
    """
    units = [gallery for own in galleries.values() for gallery in own]
    if not units:
        return sentence("no unit overlaps with a concept")
    columns, shown = 2, max(len(gallery.images) for gallery in units)
    height, width = units[0].images.shape[2:]
    placed: list[tuple[int, int, str, UnitGallery]] = []
    rows = 0
    for layer, own in galleries.items():
        placed += [(rows + place // columns, place % columns, layer, gallery) for place, gallery in enumerate(own)]
        rows += -(-len(own) // columns)
    figure = plt.figure(figsize=(1.25 * shown * columns * min(2.0, width / height), 1.6 * rows + 0.4))
    outer = figure.add_gridspec(rows, columns, wspace=0.06, hspace=0.3)
    for row, column, layer, gallery in placed:
        inner = outer[row, column].subgridspec(1, shown, wspace=0.04)
        for position, (image, mask) in enumerate(zip(gallery.images, gallery.masks, strict=True)):
            axes = figure.add_subplot(inner[0, position])
            _show(axes, np.where(mask, image, 0.5 * image))
            if mask.any() and not mask.all():  # dark images hardly show where they are dimmed
                axes.contour(mask, levels=[0.5], colors="gold", linewidths=0.8)
            if position == 0:
                axes.set_title(plain(f"{layer}, {gallery.title}"), fontsize=9, loc="left", pad=3)
    return figure


COUNTING_LABELS = {"top": "by each unit's top label", "best": "by the best label in each category"}


def unique_detectors(counts: pd.DataFrame) -> Figure:
    """Draw how many distinct concepts each layer detects, by category and by both ways of counting.

    Args:
        counts: The tables of `dissection.detector_counts` of all seeds, with the column seed.
    """
    layers = counts.sort_values("depth")["layer"].unique().tolist()
    frame = counts.assign(conv=counts["layer"].map(dict(zip(layers, short_layers(layers), strict=True))))
    figure, grid = plt.subplots(1, 2, figsize=(max(8.0, 1.3 * len(layers) + 4), 3.8), sharey=True)
    for axes, (column, label) in zip(grid, COUNTING_LABELS.items(), strict=True):
        sns.barplot(
            frame, x="conv", y=column, hue="category", order=short_layers(layers), errorbar="sd", ax=axes,
            legend=axes is grid[1],
        )  # fmt: skip
        axes.set(xlabel="", ylabel="unique detectors", title=label)
        axes.set_ylim(0, None if counts[["top", "best"]].to_numpy().any() else 1)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    grid[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Distinct concepts that units detect (bars: mean over seeds)", y=1.0, fontsize=11)
    figure.tight_layout()
    return figure


def rotation(counts: pd.DataFrame) -> Figure:
    """Draw how many distinct concepts a layer detects while its representation is rotated.

    Args:
        counts: The tables of `dissection.rotation_counts` of all seeds, with the column seed.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    totals = counts.groupby(["seed", "rotation", "alpha"])[["top", "best", "units"]].sum().reset_index()
    labels = {**COUNTING_LABELS, "units": "units that detect something"}
    for column, label in labels.items():
        sns.lineplot(totals, x="alpha", y=column, marker="o", errorbar="sd", ax=axes, label=label)
    axes.set(
        xlabel=r"power $\alpha$ of the rotation (0: the network's own units)", ylabel="number", ylim=(0, None),
        title=f"Unique detectors in rotated bases, {counts['layer'].iloc[0]}\n(bands: spread over rotations and seeds)",
    )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.19))
    figure.tight_layout()
    return figure
