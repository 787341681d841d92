"""Figures of methods of explanation: their maps and images side by side, their ranks, and what retraining tells."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnscan.figures import Image, plain, sentence
from nnscan.rankings import RANKED, agreement, by_question, places, ranked

ROWS = 13
"""Rows of methods at most in a block of the contact sheet; more methods take blocks side by side."""

CLASSES = 10
"""Classes at most beside each other; more take bands below each other."""

_CELL, _LABEL = 0.72, 1.3  # inches
_SHARE = 0.94  # of a cell that its picture takes
_HEAD = 0.42  # of a cell, for what stands above the images

_NAMED = 5  # methods that stand out among curves
_CONTROL_LINES = {"random": "--", "edges": ":", "input": "-."}
_FAITHFUL = (("deletion", "removed", True), ("insertion", "brought back", False))  # whether good curves are low


class Shown(NamedTuple):
    """What a method shows of some inputs.

    Attributes:
        title: Of the method.
        family: Its group.
        maps: Raw maps (N, H, W); None where it refuses.
        refusal: Why it has none.
    """

    title: str
    family: str
    maps: NDArray[np.floating] | None
    refusal: str = ""


def tinted(maps: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return raw maps (N, H, W) as colors (N, H, W, 3), each stretched to its own range.

    If a map has a negative value, all are drawn around zero: red where positive, blue where negative. Else the smallest
    value is dark and the largest bright; a map that is constant is dark.
    """
    maps = maps.astype(np.float64)
    if (maps < 0).any():
        limits = np.abs(maps).max((1, 2), keepdims=True)
        stretched = 0.5 + 0.5 * np.divide(maps, limits, out=np.zeros_like(maps), where=limits > 0)
        return np.asarray(mpl.colormaps["RdBu_r"](stretched)[..., :3])
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    stretched = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    return np.asarray(mpl.colormaps["inferno"](stretched)[..., :3])


def _colors(images: Sequence[Image]) -> NDArray[np.floating]:
    """Return images (C, H, W) in [0, 1], gray or in color, as (N, H, W, 3)."""
    return np.stack([np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0) for image in images]).clip(0, 1)


def _canvas(figure: Figure, box: tuple[float, float, float, float], columns: int, rows: float) -> Axes:
    """Return axes without a frame in which a picture takes a unit square and the rows go down."""
    axes = figure.add_axes(box)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    return axes


def _place(axes: Axes, pictures: NDArray[np.floating], row: float, ratio: float, first: int = 0) -> None:
    """Draw pictures (N, H, W, 3) side by side in a row of the height `ratio`, from a column on."""
    for column, picture in enumerate(pictures, start=first):
        extent = (column, column + _SHARE, row + _SHARE * ratio, row)
        axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")


def contact_sheet(images: Sequence[Image], titles: Sequence[str], methods: Sequence[Shown], heading: str) -> Figure:
    """Draw the maps of all methods on the same images: a row for each method, in blocks side by side.

    Args:
        images: The images (C, H, W) in [0, 1]; every block begins with them.
        titles: What stands above each image, in two lines at most.
        methods: The methods.
        heading: What is written above.
    """
    blocks = -(-len(methods) // ROWS)
    each = -(-len(methods) // blocks)
    count, ratio = len(images), images[0].shape[1] / images[0].shape[2]
    high, wide = ratio * (each + 1) + _HEAD, _LABEL + _CELL * count
    width, height = blocks * wide, _CELL * high + 0.35
    figure = plt.figure(figsize=(width, height))
    for block in range(blocks):
        left = (block * wide + _LABEL) / width
        axes = _canvas(figure, (left, 0, _CELL * count / width, _CELL * high / height), count, high)
        for column, title in enumerate(titles):
            lines = [textwrap.shorten(line, 14, placeholder="…") for line in title.splitlines()]
            name = plain("\n".join(lines))
            axes.text(column + _SHARE / 2, _HEAD - 0.06, name, ha="center", va="bottom", fontsize=7, linespacing=1.05)
        _place(axes, _colors(images), _HEAD, ratio)
        axes.text(-0.12, _HEAD + ratio / 2, "image", ha="right", va="center", fontsize=8)
        for line, shown in enumerate(methods[block * each : (block + 1) * each], start=1):
            top = _HEAD + line * ratio
            middle = top + _SHARE * ratio / 2
            name = "\n".join(textwrap.wrap(shown.title, 18))
            axes.text(-0.12, middle, plain(name), ha="right", va="bottom", fontsize=7.5, linespacing=1.05)
            axes.text(-0.12, middle + 0.05, shown.family, ha="right", va="top", fontsize=5.5, color="0.45")
            if shown.maps is not None:
                _place(axes, tinted(shown.maps), top, ratio)
                continue
            lines = textwrap.wrap(shown.refusal, max(16, 13 * count))
            text = "\n".join([*lines[:5], "…"] if len(lines) > 5 else lines)
            axes.text(0.05, middle, plain(text), ha="left", va="center", fontsize=6.5, color="0.35", style="italic")
    figure.suptitle(plain(heading), y=1 - 0.05 / height, va="top", fontsize=11)
    return figure


class Painted(NamedTuple):
    """Images that a method made, one for each class.

    Attributes:
        title: Of the method.
        images: By class, (C, H, W) in [0, 1]; None where it refuses.
        captions: What stands below each, by class.
        refusal: Why it has none.
    """

    title: str
    images: Mapping[int, Image] | None
    captions: Mapping[int, str]
    refusal: str = ""


def synthesis(methods: Sequence[Painted], classes: Sequence[str], heading: str) -> Figure:
    """Draw images that methods made of each class: a row for each method, a column for each class.

    Args:
        methods: The methods.
        classes: Class names.
        heading: What is written above.
    """
    if all(method.images is None for method in methods):
        return sentence("no method made images of classes")
    shape = next(image.shape for method in methods if method.images for image in method.images.values())
    ratio, below, above = shape[1] / shape[2], 0.36, 0.25  # of a cell, for captions and for names
    bands = [range(start, min(start + CLASSES, len(classes))) for start in range(0, len(classes), CLASSES)]
    cell, columns = 1.0, max(map(len, bands))
    band = above + len(methods) * (ratio + below)
    width, height = _LABEL + cell * columns, cell * band * len(bands) + 0.35
    figure = plt.figure(figsize=(width, height))
    high = band * len(bands)
    axes = _canvas(figure, (_LABEL / width, 0, cell * columns / width, cell * high / height), columns, high)
    for number, chosen in enumerate(bands):
        start = number * band + above
        for column, place in enumerate(chosen):
            name = plain(textwrap.shorten(classes[place], 16, placeholder="…"))
            axes.text(column + _SHARE / 2, start - 0.05, name, ha="center", va="bottom", fontsize=8)
        for line, method in enumerate(methods):
            top = start + line * (ratio + below)
            axes.text(-0.1, top + ratio / 2, plain("\n".join(textwrap.wrap(method.title, 18))), ha="right", va="center",
                      fontsize=8)  # fmt: skip
            if method.images is None:
                text = "\n".join(textwrap.wrap(method.refusal, 14 * columns))
                axes.text(0.05, top + ratio / 2, plain(text), va="center", fontsize=7, color="0.35", style="italic")
                continue
            for column, place in enumerate(chosen):
                if place not in method.images:
                    continue
                _place(axes, _colors([method.images[place]]), top, ratio, column)
                axes.text(column + _SHARE / 2, top + ratio, method.captions[place], ha="center", va="top", fontsize=6.5)
    axes.set(xlim=(0, columns), ylim=(high, 0))
    figure.suptitle(plain(heading), y=1 - 0.05 / height, va="top", fontsize=11)
    return figure


def explainer_ranks(scores: pd.DataFrame, titles: Mapping[str, str], heading: str) -> Figure:
    """Draw the rank of each method by each score with the mean places by question, and how alike scores rank.

    Args:
        scores: Methods in rows, quantities of `rankings.RANKED` in columns; see `rankings.wide`.
        titles: Of the methods, by name.
        heading: What is written above.
    """
    if not scores.size:
        return sentence("no method has a score")
    place = places(scores)
    questions = by_question(place)
    order = questions.mean(axis=1).sort_values(kind="stable").index
    place, questions, rank = place.loc[order], questions.loc[order], ranked(scores).loc[order]
    names = [titles.get(str(name), str(name)) for name in order]
    alike = agreement(scores, "kendall")
    compared = bool(alike.notna().to_numpy().any())
    widths = [0.42 * len(place.columns), 0.42 * len(questions.columns) + 0.9]
    heights = [0.235 * len(names)]
    if compared:
        widths.append(0.36 * len(place.columns) + 1.2)
        heights.append(0.36 * len(place.columns))
    figure, grid = plt.subplots(
        1, len(widths), figsize=(sum(widths) + 2.2 * len(heights), max(heights) + 3.4), width_ratios=widths,
        layout="constrained",
    )  # fmt: skip
    left, middle = grid[:2]
    texts = rank.map(lambda value: "" if math.isnan(value) else f"{value:g}")
    shared = {"cmap": "viridis_r", "vmin": 0, "vmax": 1, "annot_kws": {"fontsize": 6.5}, "cbar": False, "fmt": ""}
    sns.heatmap(place, annot=texts, yticklabels=[plain(name) for name in names], ax=left, **shared)
    means = questions.map(lambda value: "" if math.isnan(value) else f"{value:.2f}")
    sns.heatmap(questions, annot=means, yticklabels=False, ax=middle, **shared)
    for axes, title in ((left, "rank by each score"), (middle, "mean place")):
        axes.set(xlabel="", ylabel="", title=title)
        axes.set_facecolor("0.92")
        axes.tick_params(axis="y", labelsize=8, rotation=0)
        axes.tick_params(axis="x", labelsize=7.5, rotation=90)
    groups = [RANKED[str(name)].question for name in place.columns]
    for number in range(1, len(groups)):
        if groups[number] != groups[number - 1]:
            left.axvline(number, color="white", linewidth=2.5)
    if compared:
        right = grid[2]
        sns.heatmap(
            alike, vmin=-1, vmax=1, cmap="RdBu_r", square=True, annot=True, fmt=".1f", annot_kws={"fontsize": 5.5},
            ax=right, cbar_kws={"shrink": 0.5}, yticklabels=True, xticklabels=True,
        )  # fmt: skip
        right.set(title="agreement of two scores (Kendall's tau)", xlabel="", ylabel="")
        right.set_facecolor("0.92")
        right.tick_params(labelsize=7.5)
    figure.suptitle(plain(heading), fontsize=11)
    return figure


def faithfulness_curves(scores: pd.DataFrame, titles: Mapping[str, str], heading: str) -> Figure:
    """Draw how the probability of a class goes while the pixels that maps call most important leave or come back.

    Args:
        scores: Rows of `metrics.COLUMNS` of all seeds, with those of `faithfulness.faithfulness_scores`.
        titles: Of the methods, by name.
        heading: What is written above.
    """
    frame = scores[scores["metric"].str.endswith("_curve") & scores["value"].notna()]
    if not len(frame):
        return sentence("no method has maps of inputs")
    frame = frame.assign(share=100 * frame["case"].astype(float), probability=frame["value"])
    means = frame.pivot_table("probability", ["metric", "method"], "share", sort=False)
    orders, named = {}, dict.fromkeys(_CONTROL_LINES)
    for name, _, falls in _FAITHFUL:
        own = means.loc[f"{name}_curve"].sort_index(axis=1)
        areas = pd.Series(np.trapezoid(own, own.columns, axis=1), own.index).sort_values(ascending=falls, kind="stable")
        orders[name] = own.loc[areas.index]
        named |= dict.fromkeys([method for method in areas.index if method not in _CONTROL_LINES][:_NAMED])
    best = [method for method in named if method not in _CONTROL_LINES]
    colors = dict(zip(best, sns.color_palette("colorblind", len(best)), strict=True))  # the same in both panels
    figure, grid = plt.subplots(1, 2, figsize=(11.2, 4.2), sharey=True, layout="constrained")
    for axes, (name, label, falls) in zip(grid, _FAITHFUL, strict=True):
        own = orders[name]
        for method in own.index[::-1]:  # the best lie above
            if method in _CONTROL_LINES:
                style = {"color": "black", "linestyle": _CONTROL_LINES[method], "linewidth": 1.2}
            elif method in colors:
                style = {"color": colors[method], "linewidth": 2.0}
            else:
                style = {"color": "0.75", "linewidth": 0.8}
            text = plain(titles.get(method, method)) if method in named else None
            axes.plot(own.columns, own.loc[method], label=text, **style)
        axes.set(xlabel=f"share of the pixels {label} (%)", title=name, xlim=(0, 100), ylim=(0, 1.02))
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], fontsize=7, loc="upper right" if falls else "lower right")
    grid[0].set(ylabel="probability of the class")
    figure.suptitle(plain(heading), fontsize=11)
    return figure


def retraining_curves(accuracies: pd.DataFrame, titles: Mapping[str, str], heading: str) -> Figure:
    """Draw the accuracy of networks that were trained without pixels against the share removed, by method.

    Args:
        accuracies: The tables of `faithfulness.retrained_accuracy` of all seeds, with the column seed.
        titles: Of the methods, by name.
        heading: What is written above.
    """
    frame = accuracies[accuracies["value"].notna()]
    if not len(frame):
        return sentence("no method applies to this network")
    frame = frame.assign(share=100 * frame["case"].astype(float), accuracy=100 * frame["value"])
    figure, axes = plt.subplots(figsize=(7.4, 4.4))
    methods = list(dict.fromkeys(frame["method"]))
    for method, color in zip(methods, sns.color_palette("husl", len(methods)), strict=True):
        own = frame[frame["method"] == method].groupby("share")["accuracy"].agg(["mean", "std"]).fillna(0)
        style = {"color": "black", "linestyle": "--", "zorder": 5} if method == "random" else {"color": color}
        axes.plot(own.index, own["mean"], marker="o", markersize=4, label=plain(titles.get(method, method)), **style)
        axes.fill_between(
            own.index, own["mean"] - own["std"], own["mean"] + own["std"], alpha=0.12, color=style["color"]
        )
    axes.set(
        xlabel="share of the pixels removed (%)", ylabel="test accuracy after retraining (%)", title=plain(heading)
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure
