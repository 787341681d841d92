"""Figures: what people would rather look at than read. Each function draws one figure and returns it.

A figure shows one model on one data set: measures over all seeds, pictures of the first seed.
"""

from __future__ import annotations

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
from numpy.typing import NDArray

from nnscan.artifacts import atomic_path, read_frame

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
CHECKPOINT_LABELS = {"well_trained": "well trained", "overfitted": "overfitted"}

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


def short_layers(layers: Sequence[str], convolutional: bool = True) -> list[str]:
    """Return layer labels for an axis: conv1, conv2, ... as the sources number them."""
    return [f"{'conv' if convolutional else 'layer'}{index}" for index, _ in enumerate(layers, start=1)]


def by_seed(paths: Sequence[str | Path], seeds: Sequence[int]) -> pd.DataFrame:
    """Return a file of each seed (Parquet or CSV) as one table with the column seed."""
    frames = [pd.read_csv(path) if str(path).endswith(".csv") else read_frame(path) for path in paths]
    return pd.concat([frame.assign(seed=seed) for frame, seed in zip(frames, seeds, strict=True)], ignore_index=True)


def by_checkpoint(paths: Sequence[str | Path], checkpoints: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Return the files of each checkpoint and seed, in this order, as one table with these two columns."""
    parts = []
    for position, checkpoint in enumerate(checkpoints):
        own = paths[position * len(seeds) : (position + 1) * len(seeds)]
        parts.append(by_seed(own, seeds).assign(checkpoint=checkpoint))
    return pd.concat(parts, ignore_index=True)


def _show(axes: Axes, image: Image, title: str = "", signed: bool = False) -> None:
    """Draw a (C, H, W) or (H, W) image; signed images in blue and red around zero."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if signed:
        limit = float(np.abs(image).max()) or 1.0
        axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    elif image.ndim == 3 and image.shape[0] == 3:
        axes.imshow(np.clip(image.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    else:
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, pad=3)


def class_averages(averages: Mapping[str, Image], classes: Sequence[str], confidences: Mapping[str, Image]) -> Figure:
    """Draw the class-average images: a row for each kind, a column for each class.

    Args:
        averages: Images (n_classes, C, H, W) in [0, 1] by kind.
        classes: Class names.
        confidences: Confidence matrices by kind; the diagonal is written above each image.
    """
    shown = range(min(len(classes), 20))
    figure, grid = plt.subplots(
        len(averages), len(shown), figsize=(1.05 * len(shown) + 1.2, 1.3 * len(averages)), squeeze=False
    )
    for row, (kind, images) in enumerate(averages.items()):
        for column in shown:
            _show(grid[row, column], images[column], f"{confidences[kind][column, column]:.2f}")
            if row == len(averages) - 1:
                grid[row, column].set_xlabel(classes[column], fontsize=8)
        grid[row, 0].set_ylabel(AVERAGE_LABELS[kind], fontsize=9)
    figure.suptitle("Class-average images, with the network's confidence in their class", y=1.0)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class Portrait:
    """A neuron's learning image beside the input it belongs to.

    Attributes:
        layer: The layer's name.
        title: What is written above the learning image.
        strongest: Whether the neuron is among the strongest of its layer, or among the weakest.
        sample: The input (C, H, W) in [0, 1].
        image: The channel-summed learning image (H, W).
    """

    layer: str
    title: str
    strongest: bool
    sample: Image
    image: Image


def learning_images(portraits: Sequence[Portrait]) -> Figure:
    """Draw learning images of the strongest and weakest neurons: a row for each layer, inputs above their images."""
    if not portraits:
        figure, axes = plt.subplots(figsize=(5, 1.5))
        axes.axis("off")
        axes.text(0.5, 0.5, "no neuron has a positive value", ha="center", transform=axes.transAxes)
        return figure
    layers = list(dict.fromkeys(portrait.layer for portrait in portraits))
    widest = max(
        sum(p.layer == layer and p.strongest == s for p in portraits) for layer in layers for s in (True, False)
    )
    figure, grid = plt.subplots(
        2 * len(layers), 2 * widest, figsize=(2 * widest * 1.15 + 1, 2 * len(layers) * 1.3), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, (layer, label) in enumerate(zip(layers, short_layers(layers), strict=True)):
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
        "Learning images: neurons of the largest FQ of each layer (left) and of the smallest above 0 (right)", y=1.0
    )
    figure.tight_layout()
    return figure


def quantity(quantities: pd.DataFrame) -> Figure:
    """Draw FQ and SSIM = l c s by layer: mean over neurons, spread over seeds, and the distribution of the neurons.

    Args:
        quantities: The tables of feature quantities of all seeds, with the column seed.
    """
    frame = quantities.assign(SSIM=quantities["ssim"])
    layers = frame.sort_values("depth")["layer"].unique().tolist()
    frame["conv"] = frame["layer"].map(dict(zip(layers, short_layers(layers), strict=True)))
    masked = bool(frame["fq"].notna().any())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    means = frame.groupby(["seed", "depth", "conv"])[["fq", "SSIM"]].mean().reset_index()
    for name, label in (("fq", "FQ"), ("SSIM", "SSIM")):
        if name == "SSIM" or masked:
            sns.lineplot(means.sort_values("depth"), x="conv", y=name, marker="o", errorbar="sd", ax=left, label=label)
    left.set(xlabel="", ylabel="mean over neurons", title="By layer (band: spread over seeds)", ylim=(0, None))
    shown = "fq" if masked else "SSIM"
    sns.boxenplot(
        frame.sort_values("depth"), x="conv", y=shown, ax=right, color=sns.color_palette()[0], showfliers=False
    )
    right.set(xlabel="", ylabel="FQ of a neuron" if masked else "SSIM of a neuron", title="Distribution over neurons")
    figure.tight_layout()
    return figure


def similarity(similarities: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Draw mean and standard deviation of the similarity values by layer, for each average image and method.

    Args:
        similarities: The tables of similarity values of all seeds, with the column seed.
        classes: Class names.
    """
    layers = similarities.sort_values("depth")["layer"].unique().tolist()
    labels = dict(zip(layers, short_layers(layers), strict=True))
    frame = similarities.assign(conv=similarities["layer"].map(labels))
    kinds = list(dict.fromkeys(frame["average"]))
    statistics = (
        frame.groupby(["seed", "average", "method", "class", "depth", "conv"])["similarity"]
        .agg(["mean", "std"])
        .reset_index()
    )
    statistics["std"] = statistics["std"].fillna(0.0)
    figure, grid = plt.subplots(
        4, len(kinds), figsize=(3.7 * len(kinds), 9.5), sharex=True, sharey="row", squeeze=False
    )
    for column, kind in enumerate(kinds):
        for row, (method, statistic) in enumerate([(1, "mean"), (2, "mean"), (1, "std"), (2, "std")]):
            axes = grid[row, column]
            part = statistics[(statistics["average"] == kind) & (statistics["method"] == method)].sort_values("depth")
            by_class = part.groupby(["class", "depth", "conv"])[statistic].mean().reset_index().sort_values("depth")
            for number, curve in by_class.groupby("class"):
                axes.plot(curve["conv"], curve[statistic], linewidth=0.9, alpha=0.55, label=classes[int(number)])
            overall = by_class.groupby(["depth", "conv"])[statistic].mean().reset_index()
            axes.plot(overall["conv"], overall[statistic], color="black", linewidth=2, marker="o", label="mean")
            name = "mean" if statistic == "mean" else "standard deviation"
            axes.set(ylabel=f"{name}\nmethod {method}" if column == 0 else "")
            axes.set_title(f"{AVERAGE_LABELS[kind]} averages" if row == 0 else "")
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
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
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
