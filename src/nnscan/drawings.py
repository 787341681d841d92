"""Figures of the systems that nnscan is compared with. Each function draws one figure and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from nnscan.correlation import Correlation
from nnscan.dimension import LOWER_BOUND
from nnscan.figures import Image, plain, sentence, short_layers
from nnscan.prototypes import Box, Explanation


def dimension_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the intrinsic dimension with error bars, and the PCA dimension, against the relative depth.

    Args:
        tables: By network ("trained", "untrained", "shuffled labels", ...) its table of `dimension.layer_dimensions`,
            or those of several seeds with the column seed: then points are means over the seeds, and bars their
            standard deviation; else bars are the estimates' own.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
    for name, color in zip(tables, sns.color_palette("deep", len(tables)), strict=True):
        table = tables[name]
        groups = table.groupby(["depth", "relative_depth", "layer"], sort=False)
        values = groups[["dimension", "pca_dimension", "sd"]].mean().reset_index()
        seeds = int(groups.size().max())
        spread = groups["dimension"].std().to_numpy() if seeds > 1 else values["sd"]
        x = values["relative_depth"]
        left.errorbar(x, values["dimension"], spread, marker="o", capsize=3, color=color, label=plain(name))
        right.plot(x, values["pca_dimension"], marker="o", color=color, label=plain(name))
    if left.get_ylim()[1] > LOWER_BOUND:
        left.axhspan(LOWER_BOUND, left.get_ylim()[1], color="0.93", zorder=0)
        left.text(0.99, LOWER_BOUND, "lower bounds from here up", ha="right", va="bottom", fontsize=7, color="0.4",
                  transform=left.get_yaxis_transform())  # fmt: skip
    left.set_ylim(0, None)
    left.margins(y=0)
    right.set_yscale("symlog", linthresh=1)  # a layer that is the same for all images has no component
    right.set_ylim(0, None)
    left.set(xlabel="relative depth", ylabel="intrinsic dimension (TwoNN)", title="Intrinsic dimension")
    right.set(xlabel="relative depth", ylabel="components", title="PCA: components for 90 % of the variance")
    left.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    return figure


def dimension_blocks(blocks: pd.DataFrame) -> Figure:
    """Draw the dimension against the number of points, a line for each layer: where it is level, it can be trusted.

    Args:
        blocks: The block analysis of `dimension.layer_dimensions`.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    layers = blocks.drop_duplicates(["depth", "layer"])["layer"].tolist()
    for layer, color in zip(layers, sns.color_palette("viridis", len(layers)), strict=True):
        part = blocks[blocks["layer"] == layer]
        axes.errorbar(part["points"], part["dimension"], part["sd"], marker=".", linewidth=1, capsize=2, color=color,
                      label=plain(layer))  # fmt: skip
    axes.set_xscale("log")
    low, high = blocks["points"].min(), blocks["points"].max()
    ticks = [digit * 10**power for power in range(1, 6) for digit in (1, 2, 5)]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="points in a block", ylabel="intrinsic dimension", title="Block analysis (bars: over the blocks)")
    axes.set_ylim(0, None)
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    return figure


def detectors_over_training(counts: pd.DataFrame) -> Figure:
    """Draw how many distinct concepts each layer detects before, during and after training.

    Args:
        counts: The tables of `dissection.detector_counts` of all checkpoints and seeds, with the columns checkpoint (in
            the order of training) and seed.
    """
    checkpoints = counts["checkpoint"].unique().tolist()
    layers = counts.sort_values("depth")["layer"].unique().tolist()
    totals = counts.groupby(["checkpoint", "seed", "layer"], sort=False)["best"].sum().reset_index()
    totals["time"] = totals["checkpoint"].map(checkpoints.index)
    totals["conv"] = totals["layer"].map(dict(zip(layers, short_layers(layers), strict=True)))
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    sns.lineplot(totals, x="time", y="best", hue="conv", hue_order=short_layers(layers), marker="o", errorbar="sd",
                 palette=sns.color_palette("viridis", len(layers)), ax=axes)  # fmt: skip
    times = {"third1": "after 1/3", "third2": "after 2/3", "well_trained": "well trained"}
    axes.set_xticks(range(len(checkpoints)), [times.get(name, name) for name in checkpoints])
    axes.set(xlabel="", ylabel="unique detectors, all categories", ylim=(0, None), title="Unique detectors in training")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class UnitReasons:
    """An image, and what the units that detect something add to the score of its class.

    Attributes:
        title: What is written above: true class and answer.
        image: (C, H, W) in [0, 1].
        labels: Of the units with the largest contributions, by size.
        contributions: In units of the class score.
    """

    title: str
    image: Image
    labels: Sequence[str]
    contributions: Sequence[float]


def unit_explanations(reasons: Sequence[UnitReasons], layer: str) -> Figure:
    """Draw predictions with the labelled units that contribute most to them; negative ones speak against the class."""
    figure, grid = plt.subplots(
        len(reasons), 2, figsize=(8, 2.1 * len(reasons) + 0.4), width_ratios=(1, 2.4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    colors = sns.color_palette("deep")
    for (left, right), reason in zip(grid, reasons, strict=True):
        _picture(left, reason.image)
        left.set_title(plain(reason.title), fontsize=9)
        places = range(len(reason.labels))[::-1]
        right.barh(places, reason.contributions, color=[colors[0 if v >= 0 else 3] for v in reason.contributions])
        right.set_yticks(places, [plain(label) for label in reason.labels], fontsize=8)
        right.axvline(0, color="0.4", linewidth=0.8)
        right.tick_params(axis="x", labelsize=7)
        right.grid(False, axis="y")
    grid[-1, 1].set_xlabel("score that the class loses without the unit", fontsize=8)
    figure.suptitle(f"Why these classes: units of {plain(layer)} and what they detect", fontsize=11)
    return figure


def dimension_errors(runs: pd.DataFrame, correlation: Correlation | str) -> Figure:
    """Draw the test error of runs against the intrinsic dimension of their last hidden layers.

    Args:
        runs: One row per run: network, dimension, sd, error (0 to 1).
        correlation: Of `correlation.error_correlation` over the runs, or why there is none.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4.2))
    for name, part in runs.groupby("network", sort=False):
        axes.errorbar(part["dimension"], 100 * part["error"], xerr=part["sd"], fmt="o", capsize=2,
                      label=plain(str(name)))  # fmt: skip
    axes.set(xlabel="intrinsic dimension of the last hidden layer", ylabel="test error (%)")
    axes.set_title(
        correlation
        if isinstance(correlation, str)
        else f"r = {correlation.r:.2f}, {correlation.runs} runs of {runs['network'].nunique()} networks",
        wrap=True,
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


class Likenesses(NamedTuple):
    """An image with its explanation by prototypes.

    Attributes:
        heading: What is written above.
        image: The image (C, H, W) in [0, 1].
        explanation: Its explanation.
        sources: For each likeness of the explanation its training image (C, H, W) in [0, 1].
    """

    heading: str
    image: Image
    explanation: Explanation
    sources: Sequence[Image]


def likeness_page(found: Likenesses | None, classes: Sequence[str]) -> Figure:
    """Draw "this looks like that": a row for each of the most activated prototypes, and what they add up to.

    A row shows the image with the patch that fits, the training image that the prototype comes from with its patch,
    that patch alone, where the image is similar to it, and its contribution to each class. The last row holds the
    class scores, with the part that the prototypes above account for.

    Args:
        found: The image; None where there is none of its kind.
        classes: Class names.
    """
    if found is None:
        return sentence("no test image of this kind")
    heading, image, explanation, sources = found
    rows, names = len(explanation.likenesses), [plain(name) for name in classes]
    heads = ("this image", "looks like that one,", "here", "similarity", "contribution to each class")
    figure, grid = plt.subplots(
        rows + 1, len(heads), figsize=(9.5, 1.6 * (rows + 1) + 0.6), width_ratios=(1, 1, 1, 1, 2), layout="constrained"
    )
    colors = sns.color_palette("deep")
    for number, (axes, likeness, source) in enumerate(zip(grid, explanation.likenesses, sources, strict=False)):
        top, left, bottom, right = likeness.source_box
        for one, picture, box in ((axes[0], image, likeness.box), (axes[1], source, likeness.source_box)):
            _picture(one, picture)
            one.add_patch(_outline(box))
        _picture(axes[2], source[:, top:bottom, left:right])
        _picture(axes[3], image)
        axes[3].imshow(likeness.activation, cmap="inferno", alpha=0.6, interpolation="nearest")
        axes[1].set_xlabel(f"{names[likeness.owner]} (no. {likeness.source})", fontsize=7)
        axes[3].set_xlabel(f"{likeness.similarity:.2f}", fontsize=7)
        own = [colors[1] if place == likeness.owner else colors[0] for place in range(len(names))]
        axes[4].bar(range(len(names)), likeness.contribution, color=own)
        axes[4].axhline(0, color="0.4", linewidth=0.8)
        axes[4].set_xticks(range(len(names)), [""] * len(names))
        axes[4].tick_params(labelsize=7)
        if number == 0:
            for one, head in zip(axes, heads, strict=True):
                one.set_title(head, fontsize=9)
    for axes in grid[-1, :4]:
        axes.axis("off")
    shown = sum((likeness.contribution for likeness in explanation.likenesses), np.zeros(len(names)))
    total = grid[-1, 4]
    total.bar(range(len(names)), explanation.scores, color="0.8", label=f"score: all {len(explanation.contributions)}")
    total.bar(range(len(names)), shown, width=0.4, color=colors[0], label="the prototypes above")
    total.axhline(0, color="0.4", linewidth=0.8)
    total.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    total.tick_params(labelsize=7)
    answer = int(explanation.scores.argmax())
    total.set_title(
        f"total for {names[answer]}: {explanation.scores[answer]:.2f}, prototypes above: {shown[answer]:.2f}",
        fontsize=8,
    )
    grid[-1, 3].legend(*total.get_legend_handles_labels(), fontsize=7, loc="center right")
    for axes in grid[:, 4]:
        axes.grid(False, axis="x")
    figure.suptitle(plain(heading), fontsize=11)
    return figure


def prototype_sheet(prototypes: pd.DataFrame, sources: Mapping[int, Image]) -> Figure:
    """Draw all prototypes, a row for each class: the training images that they come from, with their patches.

    Args:
        prototypes: `prototypes.prototype_table`.
        sources: Training images (C, H, W) in [0, 1] by their position in the split.
    """
    classes = prototypes.groupby("class", sort=True)
    widest = int(classes.size().max())
    figure, grid = plt.subplots(len(classes), widest, figsize=(0.95 * widest + 1, 1.05 * len(classes)), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (_, part) in zip(grid, classes, strict=True):
        places = part[["image", "top", "left", "bottom", "right"]].to_numpy(np.int64).tolist()
        for axes, (image, top, left, bottom, right) in zip(line, places, strict=False):
            axes.axis("on")
            _picture(axes, sources[image])
            axes.add_patch(_outline((top, left, bottom, right)))
        line[0].set_ylabel(plain(str(part["name"].iloc[0])), fontsize=8)
    figure.suptitle("Prototypes of each class: training image and patch", y=1.0, fontsize=10)
    figure.tight_layout(pad=0.3)
    return figure


def _picture(axes: Axes, image: Image) -> None:
    """Draw an image (C, H, W) in [0, 1], gray or in color."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    values = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    axes.imshow(np.clip(values, 0, 1), interpolation="nearest")


def _outline(box: Box) -> Rectangle:
    """Return the frame of a box of pixels."""
    top, left, bottom, right = box
    return Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="gold", linewidth=1.5)
