"""The published tables beside ours, the claims and their verdicts, and the rendering of both.

A table is data: where its numbers come from, how to read it, and the function that fills it from the result files of
the runs. A filled table is a tidy frame, one row per number:

    dataset, model, <row keys>, quantity, unit, ours, spread, seeds, published <data> ..., note

`ours` is the mean over the seeds, `spread` their standard deviation (NaN for one seed), `seeds` how many had a value.
What does not exist is NaN, and `note` says why. A claim is a statistic of one run, a side on which it has to lie, and
the verdict over the seeds.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import escape
from scipy.stats import spearmanr, t

from nnscan.artifacts import atomic_path, read_frame
from nnscan.errors import ArtifactError, ConfigurationError, NnscanError, did_you_mean

_LOG = logging.getLogger(__name__)

MODELS = {
    "fcn": "FCN",
    "lenet5": "LeNet-5",
    "simple_cnn": "Simple CNN",
    "alexnet": "AlexNet",
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "resnet18": "ResNet-18",
}
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

# How keys are written for people, in the order in which rows and columns stand.
LABELS = {
    "SSIM": "SSIM",
    "FQ": "FQ",
    "top": "most clusters",
    "bottom": "fewest clusters",
    "outlier": "outlier samples",
    "normal": "normal samples",
    "anomaly": "anomaly filters",
    "T_m": "T_m",
    "T_v": "T_v",
    "T_c": "T_c",
    "T_cor": "T_cor",
    "random": "random",
    "area": "area",
    "drop at 50 %": "drop at 50 %",
    "AVoU": "AVoU",
    "SoU": "SoU",
    "third1": "after 1/3 of the training",
    "third2": "after 2/3 of the training",
    "third3": "after the training",
    "well_trained": "well trained (WT)",
    "overfitted": "overfitted (OF)",
    "gradient": "gradient",
    "samples": "samples",
    "accuracy change": "accuracy change",
    "filters masked": "filters masked",
    "anomaly filters": "anomaly filters",
    "filters examined": "filters examined",
    "training loss": "training loss",
    "test loss": "test loss",
    "test accuracy": "test accuracy",
    "neurons": "neurons",
    "accuracy, most similar pruned": "accuracy, most similar pruned",
    "accuracy, least similar pruned": "accuracy, least similar pruned",
    "accuracy, random neurons pruned": "accuracy, random neurons pruned",
    "difference": "difference",
}
_ORDER = {name: place for place, name in enumerate(LABELS)}

PROPERTIES = ("T_m", "T_v", "T_c", "T_cor")
QUANTITY = "metrics/well_trained/quantity.parquet"
PROPERTY = "metrics/well_trained/properties.parquet"
ANOMALY = {name: f"metrics/{name}/anomaly.parquet" for name in ("well_trained", "overfitted")}
DIVERSITY_MASKING = "experiments/diversity_masking.parquet"
AIPC = "experiments/aipc.parquet"
ANOMALY_MASKING = "experiments/anomaly_masking.parquet"
GRADIENTS = "experiments/gradients.parquet"
PRUNING = "experiments/pruning.parquet"
RESULTS = "training/results.csv"

MEAN_LAYER = "mean of the layers"
LAST_EPOCH = "third3"  # the bachelor's thesis keeps the model after its last epoch
PRUNED = 0.4

_BASE = ("dataset", "model")
_MISSING = ""  # the quantity of a row that only says which file a run lacks
_DASH = "–"

Row = dict[str, Any]
Reducer = Callable[[pd.DataFrame], list[Row]]


class UndefinedStatistic(NnscanError):
    """A claim's statistic has no value in a run; the text says why."""


@dataclass(frozen=True, order=True)
class Run:
    """One trained model of a study: `folder` holds training/, metrics/ and experiments/."""

    dataset: str
    model: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class Table:
    """A published table and how ours is made.

    Attributes:
        id: Name of the published CSV and of the rendered files.
        title: What the table shows.
        source: Where it was published.
        direction: Which way the source expects the numbers to go.
        inputs: Result files of a run that the function reads, relative to the run's folder.
        function: Fills the table: (runs, published values) -> tidy frame.
        columns: The key whose values become the columns of the readable table.
        caption: How to read the table and what our reading assumes.
        digits: Significant digits in the readable table.
    """

    id: str
    title: str
    source: str
    direction: str
    inputs: tuple[str, ...]
    function: Callable[[Sequence[Run], pd.DataFrame], pd.DataFrame]
    columns: str
    caption: str
    digits: int = 4


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.suffix == ".csv" else read_frame(path)


def missing(runs: Iterable[Run], relative_path: str) -> list[Run]:
    """Return the runs that lack a result file."""
    return [run for run in sorted(runs) if not (run.folder / relative_path).is_file()]


def collect(runs: Iterable[Run], relative_path: str) -> pd.DataFrame:
    """Return a result file of all runs as one frame.

    Args:
        runs: The runs, in any order.
        relative_path: A Parquet or CSV file inside a run's folder.

    Returns:
        The files' rows with the columns dataset, model and seed in front, sorted by run. A run without the file
        has no rows and is logged (`missing` lists it); without any file the frame has these three columns only.
    """
    runs = sorted(runs)
    absent = missing(runs, relative_path)
    for run in absent:
        _LOG.warning("%s/%s/seed%d has no %s: left out", run.dataset, run.model, run.seed, relative_path)
    frames = []
    for run in (run for run in runs if run not in absent):
        frame = _read(run.folder / relative_path)
        for place, name in enumerate((*_BASE, "seed")):
            frame.insert(place, name, getattr(run, name))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*_BASE, "seed"])


def read_published(folder: str | Path, table: str) -> pd.DataFrame:
    """Read the published values of a table: table, model, data, row keys, quantity, value, unit, source.

    Raises:
        ArtifactError: There is no such file.
    """
    path = Path(folder) / f"{table}.csv"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist{did_you_mean(table, sorted(p.stem for p in path.parent.glob('*.csv')))}")
    frame = pd.read_csv(path, dtype=str)
    frame["value"] = frame["value"].astype(float)
    return frame


# ---------------------------------------------------------------------------------------------------------------------
# From a run's file to numbers. Each reducer returns rows: keys, quantity, value. A NaN in a file reaches the number.


def _mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy(dtype=float)))


def _positions(frame: pd.DataFrame) -> dict[str, int]:
    """Return the layers and their places 1, 2, ...: by depth, or as they stand where the file holds no depth."""
    layers = frame.drop_duplicates("layer")
    if "depth" in layers:
        layers = layers.sort_values("depth")
    return {str(layer): place for place, layer in enumerate(layers["layer"], start=1)}


def _rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant or a value is missing."""
    if first.isna().any() or second.isna().any() or first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)


def _quantity_by_layer(frame: pd.DataFrame) -> list[Row]:
    frame = frame.assign(SSIM=frame["l"] * frame["c"] * frame["s"], FQ=frame["fq"])
    layers = dict(list(frame.groupby("layer")))
    return [
        {"position": place, "layer": layer, "quantity": quantity, "value": _mean(layers[layer][quantity])}
        for layer, place in _positions(frame).items()
        for quantity in ("SSIM", "FQ")
    ]


def _loss_changes(frame: pd.DataFrame) -> list[Row]:
    places = _positions(frame)
    rows = []
    for (layer, group), part in frame.groupby(["layer", "group"]):
        filters = " to ".join(str(count) for count in sorted({part["filters"].min(), part["filters"].max()}))
        keys = {"position": places[str(layer)], "layer": layer, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": _mean(part["loss_change"])})
    filters = " to ".join(str(count) for count in sorted({frame["filters"].min(), frame["filters"].max()}))
    for group in frame["group"].unique():
        mean = float(np.mean([row["value"] for row in rows if row["group"] == group]))
        keys = {"position": None, "layer": MEAN_LAYER, "filters": filters, "group": group}
        rows.append({**keys, "quantity": "loss change", "value": mean})
    return rows


def _areas(frame: pd.DataFrame) -> list[Row]:
    places = _positions(frame)
    rows = []
    for (layer, ranking), part in frame.groupby(["layer", "ranking"]):
        curve = part.groupby("fraction")["change"].agg(_mean).sort_index()
        masked, drop = curve.index.to_numpy(dtype=float), -curve.to_numpy(dtype=float)
        if masked[0] != 0 or masked[-1] != 1:
            raise ArtifactError(f"the curve of {ranking} in {layer} runs from {masked[0]:g} to {masked[-1]:g}, not from 0 to 1")
        keys = {"position": places[str(layer)], "layer": layer, "ranking": ranking}
        rows.append({**keys, "quantity": "area", "value": float(np.trapezoid(drop, masked))})
        rows.append({**keys, "quantity": "drop at 50 %", "value": float(np.interp(0.5, masked, drop))})
    return rows


def _rank_correlations(frame: pd.DataFrame) -> list[Row]:
    layer, place = list(_positions(frame).items())[-1]
    part = frame[frame["layer"] == layer]
    return [
        {
            "position": place,
            "layer": layer,
            "measure": measure,
            "property": name,
            "quantity": "rank correlation",
            "value": _rank_correlation(part[measure], part[name]),
        }
        for measure in ("AVoU", "SoU")
        for name in PROPERTIES
    ]


def _anomaly_counts(frame: pd.DataFrame) -> list[Row]:
    return [
        {"quantity": "anomaly filters", "value": float(frame["is_anomaly"].astype(bool).sum())},
        {"quantity": "filters examined", "value": float(len(frame))},
    ]


def _gradients(frame: pd.DataFrame) -> list[Row]:
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": _mean(part[quantity])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity in ("gradient", "samples")
    ]


def _accuracy_changes(frame: pd.DataFrame) -> list[Row]:
    names = {"accuracy change": "accuracy_change", "filters masked": "filters"}
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": _mean(part[column])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity, column in names.items()
    ]


def _training_results(frame: pd.DataFrame) -> list[Row]:
    names = {("train", "loss"): "training loss", ("test", "loss"): "test loss", ("test", "accuracy"): "test accuracy"}
    rows = []
    for result in frame.to_dict("records"):
        for (split, column), quantity in names.items():
            if result["split"] == split:
                value = float(result[column]) * (100 if column == "accuracy" else 1)
                rows.append({"checkpoint": result["checkpoint"], "quantity": quantity, "value": value})
    return rows


def _pruned_accuracies(frame: pd.DataFrame) -> list[Row]:
    places = _positions(frame)
    names = {"most": "most similar", "least": "least similar", "random": "random neurons"}
    rows = []
    for (layer, fraction), part in frame.groupby(["layer", "fraction"]):
        keys = {"position": places[str(layer)], "layer": layer, "pruned": f"{fraction:.0%}"}
        accuracy = {str(group): _mean(draws["accuracy"]) for group, draws in part.groupby("group")}
        rows.append({**keys, "quantity": "neurons", "value": float(part["neurons"].iloc[0])})
        for group in (group for group in names if group in accuracy):
            rows.append({**keys, "quantity": f"accuracy, {names[group]} pruned", "value": accuracy[group]})
        if {"most", "least"} <= accuracy.keys():
            rows.append({**keys, "quantity": "difference", "value": accuracy["most"] - accuracy["least"]})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# From the runs to a tidy frame


def _measure(runs: Sequence[Run], path: str, reduce: Reducer, reason: str, **labels: str) -> list[Row]:
    """Return the reduced numbers of every run; a run without the file gives one row that says so.

    Args:
        runs: The runs.
        path: The result file.
        reduce: From the file's frame to rows of keys, quantity and value.
        reason: Why the file can be missing.
        labels: Keys that hold for every row.
    """
    rows: list[Row] = []
    for run in sorted(runs):
        base = {"dataset": run.dataset, "model": run.model, "seed": run.seed, **labels}
        frame = collect([run], path)
        if frame.empty:
            rows.append({**base, "quantity": _MISSING, "value": math.nan, "note": f"{reason} ({path})"})
        else:
            rows.extend({**base, "note": "", **row} for row in reduce(frame))
    return rows


def _seeds(rows: Iterable[Row]) -> str:
    numbers = sorted({row["seed"] for row in rows})
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {', '.join(str(number) for number in numbers)}"


def _summarise(measured: list[Row], keys: Sequence[str], undefined: str) -> list[Row]:
    """Return mean, spread and number of seeds per key; rows of missing files are merged to one per data set and model."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in measured:
        distinct = [row["note"]] if row["quantity"] == _MISSING else [row.get(key) for key in keys]
        groups.setdefault((row["dataset"], row["model"], row["quantity"], *distinct), []).append(row)
    rows = []
    for group in groups.values():
        first = group[0]
        known = [row["value"] for row in group if math.isfinite(row["value"])]
        unknown = [row for row in group if not math.isfinite(row["value"])]
        note = ""
        if first["quantity"] == _MISSING:
            note = f"{_seeds(group)}: {first['note']}"
        elif unknown:
            note = f"{_seeds(unknown)}: {undefined}"
        rows.append(
            {
                **{key: first.get(key) for key in (*_BASE, *keys, "quantity")},
                "ours": float(np.mean(known)) if known else math.nan,
                "spread": float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
                "seeds": len(known),
                "note": note,
            }
        )
    return rows


def _published_rows(published: pd.DataFrame, runs: Iterable[Run], **fixed: str) -> list[Row]:
    """Return the published values of the models in the study, one row per key with one entry per published data set."""
    keys = [name for name in published if name not in ("table", "model", "data", "value", "unit", "source")]
    rows: dict[tuple[object, ...], Row] = {}
    for dataset, model in sorted({(run.dataset, run.model) for run in runs}):
        for record in published[published["model"] == MODELS.get(model, model)].to_dict("records"):
            row = {"dataset": dataset, "model": model, **fixed, **{key: record[key] for key in keys}}
            rows.setdefault(tuple(row.values()), row)[f"published {record['data']}"] = record["value"]
    return list(rows.values())


def _assemble(
    ours: list[Row],
    published: list[Row],
    frame: pd.DataFrame,
    keys: Sequence[str],
    units: Mapping[str, str],
    unmatched: str,
) -> pd.DataFrame:
    """Join ours with the published rows and sort.

    Args:
        ours: Rows of `_summarise`.
        published: Rows of `_published_rows`; they join where their keys agree with ours.
        frame: The published values, for the order of their data sets.
        keys: The row keys.
        units: Unit of each quantity.
        unmatched: Why a published row can have no counterpart.
    """
    columns = [f"published {data}" for data in frame["data"].unique()]
    rows = [{**{column: math.nan for column in columns}, **row} for row in ours]
    for other in published:
        shared = [key for key in (*_BASE, *keys, "quantity") if key in other]
        matches = [row for row in rows if all(row[key] == other[key] for key in shared)]
        values = {column: other.get(column, math.nan) for column in columns}
        for row in matches:
            row.update(values)
        if not matches:
            why = {row["note"] for row in ours if row["quantity"] == _MISSING and all(row[k] == other[k] for k in _BASE)}
            blank: Row = {"ours": math.nan, "spread": math.nan, "seeds": 0, "note": "; ".join(sorted(why)) or unmatched}
            rows.append({**dict.fromkeys(keys), **blank, **other, **values})
    for row in rows:
        row["unit"] = units.get(row["quantity"], "")
    rows.sort(key=lambda row: [_place(key, row[key]) for key in (*_BASE, *keys, "quantity")])
    order = [*_BASE, *keys, "quantity", "unit", "ours", "spread", "seeds", *columns, "note"]
    tidy = pd.DataFrame(rows, columns=order)
    return _typed(tidy)


def _place(key: str, value: Any) -> tuple[float, str]:
    """Return where a value of a key sorts: models and labels as listed above, layers by position, no position last."""
    if key == "position":
        return (math.inf if value is None else float(value), "")
    known = {name: place for place, name in enumerate(MODELS)} if key == "model" else _ORDER
    return (known.get(value, math.inf) if key != "dataset" else 0, "" if value is None else str(value))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a tidy frame with its types: numbers as float, seeds and positions as integers, all else as text."""
    typed = {}
    for name in frame:
        column = frame[name]
        if name in ("seeds", "undefined", "position"):
            typed[name] = pd.to_numeric(column.replace("", None)).astype("Int64")
        elif name in ("ours", "spread", "statistic", "ci_low", "ci_high", "threshold") or str(name).startswith("published "):
            typed[name] = pd.to_numeric(column.replace("", None)).astype(float)
        else:
            typed[name] = column.fillna("").astype(str)
    return pd.DataFrame(typed)


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def table_fq(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-2: mean SSIM and FQ of each layer's neurons. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer")
    ours = _summarise(_measure(runs, QUANTITY, _quantity_by_layer, "not scanned"), keys, "no foreground mask")
    rows = _published_rows(published, runs)
    for row in rows:
        same = [other for other in (*ours, *rows) if all(other[key] == row[key] for key in _BASE)]
        layers = {other["layer"] for other in same if "ours" in other and other["layer"]}
        if len(layers) == len({other["layer"] for other in same if "ours" not in other}):
            row["position"] = int(row["layer"].removeprefix("conv"))
    aligned = [{k: v for k, v in row.items() if k != "layer"} if "position" in row else row for row in rows]
    for row in aligned:
        if "layer" in row:
            row["layer"] = f"{row['layer']} of the source"
    unmatched = "the source does not say which layers of the network these are"
    return _assemble(ours, aligned, published, keys, {"SSIM": "1", "FQ": "1"}, unmatched)


def table_diversity(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-3: loss change when diverse filters are masked. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer", "filters", "group")
    measured = _measure(runs, DIVERSITY_MASKING, _loss_changes, "diverse filters not masked")
    ours = _summarise(measured, keys, "loss not finite")
    rows = _published_rows(published, runs, layer=MEAN_LAYER)
    return _assemble(ours, rows, published, keys, {"loss change": "%"}, "not measured in these runs")


def _for_each_layer(published: list[Row], ours: list[Row]) -> list[Row]:
    """Return the published rows once for every layer of ours: the source does not name its layer."""
    rows = []
    for row in published:
        layers = {other["layer"] for other in ours if other["layer"] and all(other[key] == row[key] for key in _BASE)}
        rows.extend({**row, "layer": layer} for layer in sorted(layers) or [None])
    return rows


def table_aipc(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-1: areas under the masking curves. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("position", "layer", "ranking")
    ours = _summarise(_measure(runs, AIPC, _areas, "no masking curves"), keys, "accuracy undefined")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    units = {"area": "percentage points", "drop at 50 %": "percentage points"}
    return _assemble(ours, rows, published, keys, units, "not measured in these runs")


def table_ranks(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-2: rank correlations of importance and properties. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("position", "layer", "measure", "property")
    ours = _summarise(_measure(runs, PROPERTY, _rank_correlations, "not scanned"), keys, "all filters rank alike")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    return _assemble(ours, rows, published, keys, {"rank correlation": "1"}, "not measured in these runs")


def table_anomaly(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-2: anomaly filters of both checkpoints. Source: Dou Hui, doctoral slides, ch. 6."""
    reasons = {"well_trained": "not scanned", "overfitted": "no overfitted checkpoint"}
    measured = [
        row
        for checkpoint, path in ANOMALY.items()
        for row in _measure(runs, path, _anomaly_counts, reasons[checkpoint], checkpoint=checkpoint)
    ]
    ours = _summarise(measured, ("checkpoint",), "undefined")
    units = {"anomaly filters": "filters", "filters examined": "filters"}
    return _assemble(ours, _published_rows(published, runs), published, ("checkpoint",), units, "not scanned")


def table_gradients(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-3: gradients of outlier and normal samples. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    ours = _summarise(_measure(runs, GRADIENTS, _gradients, "gradients not measured"), keys, "no such samples")
    units = {"gradient": "norm", "samples": "samples"}
    return _assemble(ours, _published_rows(published, runs), published, keys, units, "no such checkpoint")


def table_anomaly_masking(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-5: validation accuracy without the anomaly filters. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    measured = _measure(runs, ANOMALY_MASKING, _accuracy_changes, "anomaly filters not masked")
    ours = _summarise(measured, keys, "no anomaly filters to mask")
    rows = _published_rows(published, runs, checkpoint="overfitted")
    units = {"accuracy change": "percentage points", "filters masked": "filters"}
    return _assemble(ours, rows, published, keys, units, "no overfitted checkpoint")


def table_training(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 4-1: losses and accuracy after training. Source: Wang Xinyuan, bachelor's thesis, ch. 4."""
    ours = _summarise(_measure(runs, RESULTS, _training_results, "not trained"), ("checkpoint",), "loss not finite")
    rows = _published_rows(published, runs, checkpoint=LAST_EPOCH)
    units = {"training loss": "1", "test loss": "1", "test accuracy": "%"}
    return _assemble(ours, rows, published, ("checkpoint",), units, "not trained by nnscan")


def table_pruning(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 5-1: accuracy after pruning by similarity. Source: Wang Xinyuan, bachelor's thesis, ch. 5."""
    keys = ("position", "layer", "pruned")
    ours = _summarise(_measure(runs, PRUNING, _pruned_accuracies, "nothing pruned"), keys, "accuracy undefined")
    fractions = published[published["quantity"] == "pruned fraction"].set_index("layer")["value"]
    rows = _published_rows(published[published["quantity"] != "pruned fraction"], runs)
    for row in rows:
        layer = row.pop("layer")
        row["position"], row["pruned"] = int(layer) + 1, f"{fractions[layer]:.0f}%"
    accuracies = {f"accuracy, {name} pruned": "1" for name in ("most similar", "least similar", "random neurons")}
    units = {"neurons": "neurons", **accuracies, "difference": "1"}
    return _assemble(ours, rows, published, keys, units, "not measured in these runs")


_SLIDES = "Dou Hui, doctoral slides, table"
_THESIS = "Wang Xinyuan, bachelor's thesis, table"

TABLES = {
    table.id: table
    for table in (
        Table(
            id="slides_4-2",
            title="Learning images by layer: similarity alone and feature quantity",
            source=f"{_SLIDES} 4-2",
            direction="FQ rises with depth, SSIM falls",
            inputs=(QUANTITY,),
            function=table_fq,
            columns="quantity",
            caption="Means over the neurons of a layer. A neuron counts with the scanned sample on which its feature "
            "quantity FQ is largest. SSIM is l·c·s of that same sample, the similarity of its learning image to the "
            "input's foreground without any regard to blank areas; the source does not define its SSIM further. "
            "Published values stand beside ours only where the network has as many layers as the source lists; the "
            "eight layers listed for deeper networks are not named there and keep rows of their own. The published "
            "images are 224 pixels wide, so absolute values differ by construction.",
            digits=3,
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
            "masked at either end, in one layer at a time; 'random' is the mean over draws of as many filters. The "
            "change is in percent of the unmasked test loss. The source does not say which layer it masks, so its "
            "values stand beside the mean of our layers. It numbers its data sets 1 to 3 and has no random draws.",
        ),
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
        Table(
            id="thesis_4-1",
            title="Losses and test accuracy after training",
            source=f"{_THESIS} 4-1",
            direction="test loss above training loss",
            inputs=(RESULTS,),
            function=table_training,
            columns="quantity",
            caption="The thesis keeps the network after the last of 30 epochs, so its values stand beside our "
            "checkpoint after the regular training. Losses are mean cross-entropies, the accuracy is in percent. "
            "A study on part of a data set, or with fewer epochs, need not reach the published accuracy.",
        ),
        Table(
            id="thesis_5-1",
            title="Test accuracy after pruning the most or the least similar neurons of one layer",
            source=f"{_THESIS} 5-1",
            direction="lower when the most similar neurons are pruned",
            inputs=(PRUNING,),
            function=table_pruning,
            columns="quantity",
            caption="In one layer at a time the given share of neurons (filters) is set to zero without retraining: "
            "those with the highest mean similarity to the class averages, those with the lowest, or random ones "
            "(mean over draws). 'difference' is most minus least. The source prints 512 neurons for its layer 3 "
            "(position 4), where VGG-11 and the parameter count printed in the source have 256.",
        ),
    )
}
