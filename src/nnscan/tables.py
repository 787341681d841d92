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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

# Keys of the tables as people read them, and the order in which they stand; a key without a label reads as it is.
LABELS = {
    "top": "most clusters",
    "bottom": "fewest clusters",
    "outlier": "outlier samples",
    "normal": "normal samples",
    "anomaly": "anomaly filters",
    "third1": "after 1/3 of the training",
    "third2": "after 2/3 of the training",
    "third3": "after the training",
    "well_trained": "well trained (WT)",
    "overfitted": "overfitted (OF)",
    "accuracy, most similar pruned": "most similar pruned",
    "accuracy, least similar pruned": "least similar pruned",
    "accuracy, random neurons pruned": "random pruned",
}
# Every quantity of the tables: its unit and the decimals that people see of ours.
QUANTITIES = {
    "SSIM": ("1", 3),
    "FQ": ("1", 4),
    "loss change": ("%", 1),
    "area": ("pp", 1),
    "drop at 50 %": ("pp", 1),
    "rank correlation": ("1", 2),
    "anomaly filters": ("filters", 1),
    "filters examined": ("filters", 0),
    "gradient": ("norm", 3),
    "samples": ("samples", 1),
    "accuracy change": ("pp", 2),
    "filters masked": ("filters", 1),
    "training loss": ("1", 3),
    "test loss": ("1", 3),
    "test accuracy": ("%", 1),
    "neurons": ("neurons", 0),
    "accuracy, most similar pruned": ("1", 3),
    "accuracy, least similar pruned": ("1", 3),
    "accuracy, random neurons pruned": ("1", 3),
    "difference": ("1", 3),
}
_ORDER = (
    *QUANTITIES,
    *("top", "bottom", "outlier", "normal", "anomaly", "T_m", "T_v", "T_c", "T_cor", "random", "AVoU", "SoU"),
    *("third1", "third2", "third3", "well_trained", "overfitted"),
)

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
OVERFITTED_RESULTS = "training/overfitted_results.csv"

MEAN_LAYER = "mean of the layers"
LAST_EPOCH = "third3"  # the bachelor's thesis keeps the model after its last epoch
PRUNED = 0.4

_BASE = ("dataset", "model")
_MISSING = ""  # the quantity of a row that only says which file a run lacks
_DASH = "–"
_NUMBERS = ("ours", "spread", "statistic", "ci_low", "ci_high", "threshold")

Row = dict[str, Any]  # of a frame, by column
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
    """

    id: str
    title: str
    source: str
    direction: str
    inputs: tuple[str, ...]
    function: Callable[[Sequence[Run], pd.DataFrame], pd.DataFrame]
    columns: str
    caption: str


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
        raise ArtifactError(
            f"{path} does not exist{did_you_mean(table, sorted(p.stem for p in path.parent.glob('*.csv')))}"
        )
    frame = pd.read_csv(path, dtype=str)
    frame["value"] = frame["value"].astype(float)
    return frame


# ---------------------------------------------------------------------------------------------------------------------
# From a run's file to numbers. Each reducer returns rows: keys, quantity, value. A NaN in a file reaches the number.


def records_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _names(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns]


def _mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy(dtype=float)))


def _positions(frame: pd.DataFrame) -> dict[str, int]:
    """Return the layers and their places 1, 2, ... by depth."""
    layers = frame.drop_duplicates("layer").sort_values("depth")
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
    rows = []
    for (layer, ranking), part in frame.groupby(["layer", "ranking"]):
        curve = part.groupby("fraction")["change"].agg(_mean).sort_index()
        masked, drop = curve.index.to_numpy(dtype=float), -curve.to_numpy(dtype=float)
        if masked[0] != 0 or masked[-1] != 1:
            raise ArtifactError(
                f"the curve of {ranking} in {layer} runs from {masked[0]:g} to {masked[-1]:g}, not from 0 to 1"
            )
        keys = {"layer": layer, "ranking": ranking}
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
    for result in records_of(frame):
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


def _measure(
    runs: Sequence[Run], path: str, reduce: Reducer, reason: str, empty: str = "no rows", **labels: str
) -> list[Row]:
    """Return the reduced numbers of every run; a run without numbers gives one row that says why.

    Args:
        runs: The runs.
        path: The result file.
        reduce: From the file's frame to rows of keys, quantity and value.
        reason: Why the file can be missing.
        empty: What it means that the file has no rows.
        labels: Keys that hold for every row.
    """
    rows: list[Row] = []
    for run in sorted(runs):
        base = {"dataset": run.dataset, "model": run.model, "seed": run.seed, **labels, "note": ""}
        frame = collect([run], path)
        found = reduce(frame) if len(frame) else []
        rows.extend({**base, **row} for row in found)
        if not found:
            why = f"{reason}: {path} is missing" if missing([run], path) else f"{empty} in {path}"
            rows.append({**base, "quantity": _MISSING, "value": math.nan, "note": why})
    return rows


def _seeds(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    return f"{'seed' if len(ordered) == 1 else 'seeds'} {', '.join(str(number) for number in ordered)}"


def _summarise(measured: list[Row], keys: Sequence[str], undefined: str) -> list[Row]:
    """Return mean, spread and number of seeds per key; missing files give one row per data set, model and reason."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    seeds: dict[tuple[str, str], tuple[set[int], set[int]]] = {}  # all, and those with numbers
    for row in measured:
        distinct = [row["note"]] if row["quantity"] == _MISSING else [row.get(key) for key in keys]
        groups.setdefault((row["dataset"], row["model"], row["quantity"], *distinct), []).append(row)
        network = seeds.setdefault((row["dataset"], row["model"]), ({row["seed"]}, set()))
        network[0].add(row["seed"])
        network[1].update({row["seed"]} if row["quantity"] != _MISSING else ())
    rows = []
    for group in groups.values():
        first = group[0]
        everyone, measuring = seeds[first["dataset"], first["model"]]
        known = {row["seed"]: row["value"] for row in group if math.isfinite(row["value"])}
        note = ""
        if first["quantity"] == _MISSING:
            note = f"{_seeds(row['seed'] for row in group)}: {first['note']}"
        elif unknown := measuring - known.keys():
            note = f"{_seeds(unknown)}: {undefined}" if known else undefined
        values = list(known.values())
        rows.append(
            {
                **{key: first.get(key) for key in (*_BASE, *keys, "quantity")},
                "ours": float(np.mean(values)) if values else math.nan,
                "spread": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                "seeds": len(values),
                "note": note,
                "everywhere": len(group) == len(everyone),
            }
        )
    return rows


def _published_rows(published: pd.DataFrame, runs: Iterable[Run], **fixed: str) -> list[Row]:
    """Return the published values of the models in the study, one row per key with one entry per published data set."""
    keys = [name for name in _names(published) if name not in ("table", "model", "data", "value", "unit", "source")]
    rows: dict[tuple[object, ...], Row] = {}
    for dataset, model in sorted({(run.dataset, run.model) for run in runs}):
        for record in records_of(published[published["model"] == MODELS.get(model, model)]):
            row = {"dataset": dataset, "model": model, **fixed, **{key: record[key] for key in keys}}
            rows.setdefault(tuple(row.values()), row)[f"published {record['data']}"] = record["value"]
    return list(rows.values())


def _assemble(
    ours: list[Row],
    published: list[Row],
    frame: pd.DataFrame,
    keys: Sequence[str],
    unmatched: str,
) -> pd.DataFrame:
    """Join ours with the published rows and sort.

    Args:
        ours: Rows of `_summarise`.
        published: Rows of `_published_rows`; they join where their keys agree with ours.
        frame: The published values, for the order of their data sets.
        keys: The row keys.
        unmatched: Why a published row can have no counterpart.
    """
    columns = [f"published {data}" for data in frame["data"].unique()]
    rows: list[Row] = [{**dict.fromkeys(columns, math.nan), **row} for row in ours]
    for other in published:
        shared = [key for key in (*_BASE, *keys, "quantity") if key in other]
        matches = [row for row in rows if all(row[key] == other[key] for key in shared)]
        values = {column: other.get(column, math.nan) for column in columns}
        for row in matches:
            row.update(values)
        if not matches:
            network = [row for row in ours if all(row[key] == other[key] for key in _BASE)]
            why = {row["note"] for row in network if row["quantity"] == _MISSING and row["everywhere"]}
            blank: Row = {"ours": math.nan, "spread": math.nan, "seeds": 0, "note": "; ".join(sorted(why)) or unmatched}
            rows.append({**dict.fromkeys(keys), **blank, **other, **values})
    for row in rows:
        row["unit"] = QUANTITIES[row["quantity"]][0] if row["quantity"] != _MISSING else ""
    rows.sort(key=lambda row: [_place(key, row[key]) for key in (*_BASE, *keys, "quantity")])
    order = [*_BASE, *keys, "quantity", "unit", "ours", "spread", "seeds", *columns, "note"]
    return _typed(pd.DataFrame(rows, columns=order))


def _place(key: str, value: Any) -> tuple[float, str]:
    """Return where a value of a key sorts: models and labels as listed above, layers by position, no position last."""
    if key == "position":
        return (math.inf if value is None else float(value), "")
    known = tuple(MODELS) if key == "model" else _ORDER if key != "dataset" else ()
    return (known.index(value) if value in known else math.inf, "" if value is None else str(value))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a tidy frame with its types: numbers as float, seeds and positions as integers, all else as text."""
    typed: dict[str, pd.Series[Any]] = {}
    for name in _names(frame):
        column = frame[name]
        if name in ("seeds", "undefined", "position"):
            typed[name] = pd.to_numeric(column.replace("", None)).astype("Int64")
        elif name in _NUMBERS or name.startswith("published "):
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
    depth, source_depth = _layer_counts(ours), _layer_counts(rows)
    for row in rows:
        layer, network = row.pop("layer"), (row["dataset"], row["model"])
        if depth.get(network) == source_depth[network]:
            row["position"] = int(layer.removeprefix("conv"))
        else:
            row["layer"] = f"{layer} of the source"
    unmatched = "the source does not say which layers of the network these are"
    return _assemble(ours, rows, published, keys, unmatched)


def _layer_counts(rows: list[Row]) -> dict[tuple[str, str], int]:
    """Return how many layers the rows name for each data set and model."""
    layers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["quantity"] != _MISSING:
            layers.setdefault((row["dataset"], row["model"]), set()).add(row["layer"])
    return {network: len(names) for network, names in layers.items()}


def table_diversity(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-3: loss change when diverse filters are masked. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer", "filters", "group")
    measured = _measure(runs, DIVERSITY_MASKING, _loss_changes, "diverse filters not masked")
    ours = _summarise(measured, keys, "loss not finite")
    rows = _published_rows(published, runs, layer=MEAN_LAYER)
    return _assemble(ours, rows, published, keys, "not measured in these runs")


def _for_each_layer(published: list[Row], ours: list[Row]) -> list[Row]:
    """Return the published rows once for every layer of ours: the source does not name its layer."""
    rows: list[Row] = []
    for row in published:
        layers = {other["layer"] for other in ours if other["layer"] and all(other[key] == row[key] for key in _BASE)}
        rows.extend({**row, "layer": layer} for layer in sorted(layers) or [None])
    return rows


def table_aipc(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-1: areas under the masking curves. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("layer", "ranking")
    ours = _summarise(_measure(runs, AIPC, _areas, "no masking curves"), keys, "accuracy undefined")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    return _assemble(ours, rows, published, keys, "not measured in these runs")


def table_ranks(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-2: rank correlations of importance and properties. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("position", "layer", "measure", "property")
    ours = _summarise(_measure(runs, PROPERTY, _rank_correlations, "not scanned"), keys, "all filters rank alike")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    return _assemble(ours, rows, published, keys, "not measured in these runs")


def table_anomaly(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-2: anomaly filters of both checkpoints. Source: Dou Hui, doctoral slides, ch. 6."""
    reasons = {"well_trained": "not scanned", "overfitted": "no overfitted checkpoint"}
    measured = [
        row
        for checkpoint, path in ANOMALY.items()
        for row in _measure(runs, path, _anomaly_counts, reasons[checkpoint], checkpoint=checkpoint)
    ]
    ours = _summarise(measured, ("checkpoint",), "no such checkpoint")
    return _assemble(ours, _published_rows(published, runs), published, ("checkpoint",), "not scanned")


def table_gradients(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-3: gradients of outlier and normal samples. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    ours = _summarise(_measure(runs, GRADIENTS, _gradients, "gradients not measured"), keys, "no such samples")
    return _assemble(ours, _published_rows(published, runs), published, keys, "no such checkpoint")


def table_anomaly_masking(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-5: validation accuracy without the anomaly filters. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    measured = _measure(runs, ANOMALY_MASKING, _accuracy_changes, "anomaly filters not masked", "no anomaly filters")
    ours = _summarise(measured, keys, "no anomaly filters to mask")
    rows = _published_rows(published, runs, checkpoint="overfitted")
    return _assemble(ours, rows, published, keys, "no overfitted checkpoint, or no anomaly filters in it")


def table_training(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 4-1: losses and accuracy after training. Source: Wang Xinyuan, bachelor's thesis, ch. 4."""
    measured = _measure(runs, RESULTS, _training_results, "not trained")
    measured += _measure(runs, OVERFITTED_RESULTS, _training_results, "no overfitted checkpoint")
    ours = _summarise(measured, ("checkpoint",), "no such checkpoint")
    rows = _published_rows(published, runs, checkpoint=LAST_EPOCH)
    return _assemble(ours, rows, published, ("checkpoint",), "not trained by nnscan")


def table_pruning(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 5-1: accuracy after pruning by similarity. Source: Wang Xinyuan, bachelor's thesis, ch. 5."""
    keys = ("position", "layer", "pruned")
    ours = _summarise(_measure(runs, PRUNING, _pruned_accuracies, "nothing pruned"), keys, "accuracy undefined")
    fractions = published[published["quantity"] == "pruned fraction"].set_index("layer")["value"]
    rows = _published_rows(published[published["quantity"] != "pruned fraction"], runs)
    for row in rows:
        layer = row.pop("layer")
        row["position"], row["pruned"] = int(layer) + 1, f"{fractions[layer]:.0f}%"
    return _assemble(ours, rows, published, keys, "not measured in these runs")


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
            inputs=(RESULTS, OVERFITTED_RESULTS),
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

# ---------------------------------------------------------------------------------------------------------------------
# Claims: a statistic of one run, and the verdict over the seeds


def _reduced(run: Run, path: str, reduce: Reducer) -> list[Row]:
    if missing([run], path):
        raise UndefinedStatistic(f"{path} is missing")
    frame = collect([run], path)
    return reduce(frame) if len(frame) else []


def _values(rows: Iterable[Row], undefined: str, **keys: object) -> list[float]:
    """Return the values of the rows with these keys, in the order of the layers.

    Raises:
        UndefinedStatistic: There are none, or, for the reason `undefined`, one of them is not finite.
    """
    found = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
    if not found:
        raise UndefinedStatistic(f"no value for {', '.join(str(value) for value in keys.values())}")
    values = [float(row["value"]) for row in sorted(found, key=lambda row: _place("position", row.get("position")))]
    if not all(math.isfinite(value) for value in values):
        raise UndefinedStatistic(undefined)
    return values


def fq_rise(run: Run) -> float:
    """Return the mean FQ of the last layer minus that of the first."""
    values = _values(_reduced(run, QUANTITY, _quantity_by_layer), "no foreground mask", quantity="FQ")
    return values[-1] - values[0]


def ssim_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with its mean SSIM."""
    values = _values(_reduced(run, QUANTITY, _quantity_by_layer), "SSIM undefined", quantity="SSIM")
    trend = _rank_correlation(pd.Series(range(len(values))), pd.Series(values))
    if math.isnan(trend):
        raise UndefinedStatistic("no trend: one layer, or the same SSIM in all")
    return trend


def _loss_lead(run: Run, other: str) -> float:
    rows = _reduced(run, DIVERSITY_MASKING, _loss_changes)
    changes = [_values(rows, "loss not finite", layer=MEAN_LAYER, group=group)[0] for group in ("top", other)]
    return changes[0] - changes[1]


def loss_top_over_bottom(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without the least, mean over layers (%)."""
    return _loss_lead(run, "bottom")


def loss_top_over_random(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without random ones, mean over layers (%)."""
    return _loss_lead(run, "random")


def _area(run: Run, ranking: str) -> float:
    rows = _reduced(run, AIPC, _areas)
    return float(np.mean(_values(rows, "accuracy undefined", ranking=ranking, quantity="area")))


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
    rows = _reduced(run, PROPERTY, _rank_correlations)
    return _values(rows, "all filters rank alike", measure=measure, property=name)[0]


def rank_avou_tm(run: Run) -> float:
    """Return the rank correlation of AVoU and T_m in the last layer."""
    return _rank(run, "AVoU", "T_m")


def rank_avou_tc(run: Run) -> float:
    """Return the rank correlation of AVoU and T_c in the last layer."""
    return _rank(run, "AVoU", "T_c")


def rank_sou_tm(run: Run) -> float:
    """Return the rank correlation of SoU and T_m in the last layer."""
    return _rank(run, "SoU", "T_m")


def anomaly_growth(run: Run) -> float:
    """Return the anomaly filters of the overfitted network minus those of the well-trained one."""
    counts = {
        name: _values(_reduced(run, path, _anomaly_counts), "undefined", quantity="anomaly filters")[0]
        for name, path in ANOMALY.items()
    }
    return counts["overfitted"] - counts["well_trained"]


def _gradient(run: Run, checkpoint: str, group: str) -> float:
    rows = _reduced(run, GRADIENTS, _gradients)
    undefined = f"no {group} samples in the {checkpoint.replace('_', '-')} network"
    return _values(rows, undefined, checkpoint=checkpoint, group=group, quantity="gradient")[0]


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
    rows, undefined = _reduced(run, ANOMALY_MASKING, _accuracy_changes), "accuracy undefined"
    if not any(row["checkpoint"] == "overfitted" for row in rows):
        raise UndefinedStatistic("no anomaly filters in the overfitted network, or no such network")
    change = {
        group: _values(rows, undefined, checkpoint="overfitted", group=group, quantity="accuracy change")[0]
        for group in ("anomaly", "random")
    }
    return change["anomaly"] - change["random"]


def accuracy_after_training(run: Run) -> float:
    """Return the test accuracy after the last regular epoch (%)."""
    rows = _reduced(run, RESULTS, _training_results)
    return _values(rows, "accuracy undefined", checkpoint=LAST_EPOCH, quantity="test accuracy")[0]


def loss_gap_after_training(run: Run) -> float:
    """Return the test loss minus the training loss after the last regular epoch."""
    rows = _reduced(run, RESULTS, _training_results)
    test, training = (
        _values(rows, "loss not finite", checkpoint=LAST_EPOCH, quantity=f"{split} loss")[0]
        for split in ("test", "training")
    )
    return test - training


def _damages(run: Run, other: str) -> list[float]:
    """Return per layer how much less accuracy is left when the most similar are pruned, instead of the other group."""
    rows = _reduced(run, PRUNING, _pruned_accuracies)
    most, others = (
        _values(rows, "accuracy undefined", pruned=f"{PRUNED:.0%}", quantity=f"accuracy, {group} pruned")
        for group in ("most similar", other)
    )
    return [b - a for a, b in zip(most, others, strict=True)]


def most_over_least_damage(run: Run) -> float:
    """Return the accuracy left without the 40 % least similar minus without the most similar, mean over layers."""
    return float(np.mean(_damages(run, "least similar")))


def layers_where_most_hurts_more(run: Run) -> float:
    """Return the share of layers that keep less accuracy without the most than without the least similar 40 %."""
    return float(np.mean([damage > 0 for damage in _damages(run, "least similar")]))


def most_over_random_damage(run: Run) -> float:
    """Return the accuracy left without 40 % random neurons minus without the most similar, mean over layers."""
    return float(np.mean(_damages(run, "random neurons")))


STATISTICS: dict[str, Callable[[Run], float]] = {
    function.__name__: function
    for function in (
        fq_rise,
        ssim_trend,
        loss_top_over_bottom,
        loss_top_over_random,
        area_best_over_random,
        area_lead_of_tm,
        area_lead_of_tc,
        rank_avou_tm,
        rank_avou_tc,
        rank_sou_tm,
        anomaly_growth,
        gradient_gap_well_trained,
        gradient_gap_overfitted,
        outlier_gradient_growth,
        anomaly_over_random,
        accuracy_after_training,
        loss_gap_after_training,
        most_over_least_damage,
        layers_where_most_hurts_more,
        most_over_random_damage,
    )
}

Verdict = Literal["reproduced", "contradicted", "inconclusive"]
_CLAIM_COLUMNS = (
    *("id", "table", "dataset", "model", "statement", "direction", "threshold", "unit"),
    *("statistic", "ci_low", "ci_high", "seeds", "undefined", "verdict", "note", "remark", "source"),
)
VERDICTS: tuple[Verdict, ...] = ("reproduced", "contradicted", "inconclusive")


@dataclass(frozen=True)
class Claim:
    """A sentence of a source that can fail: its statistic lies on one side of the threshold.

    Attributes:
        id: Name of the claim.
        table: Id of the table that it speaks about.
        statement: The claim in a sentence.
        statistic: Name of a function in `STATISTICS`.
        direction: "greater" or "less".
        threshold: The value that the statistic has to exceed or stay under.
        unit: Unit of the statistic.
        models: The models that it speaks about; empty: all.
        datasets: The data sets that it speaks about; empty: all.
        remark: What a reader of the verdict should know.
        source: Who claims it, and where.
    """

    id: str
    table: str
    statement: str
    statistic: str
    direction: str
    threshold: float
    unit: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    remark: str
    source: str


def read_claims(path: str | Path) -> list[Claim]:
    """Read claims.csv.

    Raises:
        ArtifactError: The file is missing.
        ConfigurationError: A claim names a table, statistic or direction that does not exist.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist; the published claims belong in workflow/published/claims.csv")
    claims = []
    for row in records_of(pd.read_csv(path, dtype=str, keep_default_na=False)):
        for column, known in (("table", TABLES), ("statistic", STATISTICS), ("direction", ("greater", "less"))):
            if row[column] not in known:
                asked = f"claim {row['id']!r} in {path} names the {column} {row[column]!r}"
                raise ConfigurationError(asked + did_you_mean(row[column], known))
        lists = {column: tuple(name for name in row[column].split(";") if name) for column in ("models", "datasets")}
        claims.append(Claim(**{**row, **lists, "threshold": float(row["threshold"])}))
    return claims


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of the values and the bounds of its t interval.

    Args:
        values: One value per seed.
        level: Coverage.

    Returns:
        Mean, lower and upper bound; the mean is NaN without a value, the bounds are NaN with fewer than two.
    """
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    if len(set(values)) == 1:  # the mean of equal values can differ from them by rounding
        return values[0], values[0], values[0]
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def verdict(low: float, high: float, direction: str, threshold: float) -> Verdict:
    """Return "reproduced" if the interval lies on the claimed side, "contradicted" on the other, else "inconclusive".

    Args:
        low: Lower bound of the statistic, NaN where there is none.
        high: Upper bound.
        direction: The claimed side of the threshold: "greater" or "less".
        threshold: The border; an interval that touches it decides nothing.
    """
    above, below = low > threshold, high < threshold
    if above or below:
        return "reproduced" if above == (direction == "greater") else "contradicted"
    return "inconclusive"


def evaluate_claims(claims: Iterable[Claim], runs: Sequence[Run]) -> pd.DataFrame:
    """Evaluate each claim for each data set and model that it speaks about.

    Args:
        claims: The claims.
        runs: The runs; a statistic of one run gives one value, the seeds are the sample.

    Returns:
        One row per claim, data set and model: id, table, dataset, model, statement, direction, threshold, unit,
        statistic (mean over the seeds that have one), ci_low, ci_high (95 % t interval), seeds, undefined (seeds
        without a value), verdict, note (why a value or an interval is missing), remark and source (of the claim).
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs):
        groups.setdefault((run.dataset, run.model), []).append(run)
    order = sorted(groups, key=lambda group: (group[0], _place("model", group[1])))
    rows = []
    for claim in claims:
        for dataset, model in order:
            if (claim.models and model not in claim.models) or (claim.datasets and dataset not in claim.datasets):
                continue
            values: list[float] = []
            reasons: dict[str, list[int]] = {}
            for run in groups[dataset, model]:
                try:
                    values.append(STATISTICS[claim.statistic](run))
                except UndefinedStatistic as reason:
                    reasons.setdefault(str(reason), []).append(run.seed)
            mean, low, high = interval(values)
            notes = [f"undefined for {_seeds(seeds)}: {reason}" for reason, seeds in reasons.items()]
            if len(values) == 1:
                notes.append("one seed has a value: no interval")
            rows.append(
                {
                    **{name: getattr(claim, name) for name in ("id", "table")},
                    "dataset": dataset,
                    "model": model,
                    **{name: getattr(claim, name) for name in ("statement", "direction", "threshold", "unit")},
                    "statistic": mean,
                    "ci_low": low,
                    "ci_high": high,
                    "seeds": len(values),
                    "undefined": len(groups[dataset, model]) - len(values),
                    "verdict": verdict(low, high, claim.direction, claim.threshold),
                    "note": "; ".join(notes),
                    "remark": claim.remark,
                    "source": claim.source,
                }
            )
    return _typed(pd.DataFrame(rows, columns=_CLAIM_COLUMNS))


# ---------------------------------------------------------------------------------------------------------------------
# Rendering


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a tidy frame with six significant digits; the same frame always gives the same bytes."""
    numbers = frame.select_dtypes("float").columns
    frame = frame.assign(**{name: frame[name] + 0.0 for name in numbers})  # turns -0 into 0
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a tidy frame, of a table or of evaluated claims, that `write_csv` has written.

    Raises:
        ArtifactError: The file is missing.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that makes it")
    return _typed(pd.read_csv(path, dtype=str, keep_default_na=False))


@dataclass(frozen=True)
class Cell:
    """Published values, ours and its spread as text; `mark` points to a footnote."""

    published: tuple[str, ...]
    ours: str
    spread: str = ""
    mark: str = ""

    @property
    def measured(self) -> str:
        """Ours with its spread."""
        return f"{self.ours} ± {self.spread}" if self.spread else self.ours

    def __str__(self) -> str:
        return f"{', '.join(self.published)} / {self.measured}"


@dataclass(frozen=True)
class Readable:
    """A table for people.

    Attributes:
        frame: Text columns that name the row, then columns of `Cell`. Data set and model are the first two.
        labels: How many columns name the row.
        legend: What a cell holds.
        notes: The footnotes; a cell's mark is the number of its note, counted from 1.
        remarks: What concerns a whole run: missing files.
    """

    frame: pd.DataFrame
    labels: int
    legend: str
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def number(value: float, decimals: int | None = None) -> str:
    """Return a number as people read it, an en dash for NaN.

    Args:
        value: The number.
        decimals: Decimals shown; None: as few as say it exactly. A number that they would round to 0 keeps one digit.
    """
    if math.isnan(value):
        return _DASH
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.15g}"
    if value and not float(text):
        text = np.format_float_positional(value, precision=1, fractional=False, trim="-")
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def _with_unit(name: str, unit: str) -> str:
    return name if unit in ("", "1") or unit in name.split() else f"{name} [{unit}]"


def _key_text(row: Row, key: str) -> str:
    """Return the value of a row's key as people read it."""
    text = str(row[key])
    text = LABELS.get(text, text)
    if key == "quantity":
        return _with_unit(text, row["unit"])
    if key == "layer" and not pd.isna(row.get("position")):
        return f"{row['position']} · {text}" if text else str(row["position"])
    return text


def readable(frame: pd.DataFrame, table: Table) -> Readable:
    """Return a filled table as people read it: one row per layer or group, cells "published / ours ± spread".

    Args:
        frame: What the table's function returned, or `read_csv` of it.
        table: The table.
    """
    columns = _names(frame)
    rows = [{**row, "model": MODELS.get(row["model"], row["model"])} for row in records_of(frame)]
    absent: dict[tuple[str, ...], list[str]] = {}
    for row in (row for row in rows if row["quantity"] == _MISSING):
        absent.setdefault((row["dataset"], row["model"]), []).append(row["note"])
    remarks = tuple(f"{dataset}, {model}, {note}" for (dataset, model), lacks in absent.items() for note in lacks)
    rows = [row for row in rows if row["quantity"] != _MISSING]
    keys = [key for key in columns[2 : columns.index("unit")] if key not in ("position", table.columns)]
    if len({row["quantity"] for row in rows}) < 2 and "quantity" in keys:
        keys.remove("quantity")

    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    headings: dict[str, tuple[float, str]] = {}
    for row in rows:
        heading = _key_text(row, table.columns)
        headings[heading] = _place(table.columns, row[table.columns])
        lines.setdefault((row["dataset"], row["model"], *(_key_text(row, key) for key in keys)), {})[heading] = row
    ordered = sorted(headings, key=lambda heading: headings[heading])
    notes: dict[str, str] = {}
    body: list[list[Any]] = []
    for names, line in lines.items():
        missing_files = "; ".join(absent.get(names[:2], ["not measured in these runs"]))
        cells = [_cell(line.get(heading), columns, missing_files, notes) for heading in ordered]
        body.append([*names, *cells])
    labels = ["data", "model", *keys]
    view = pd.DataFrame(body, columns=[*labels, *ordered])
    units = {row["unit"] for row in rows} if "quantity" not in (*keys, table.columns) else set()
    return Readable(view, len(labels), _legend(rows, columns, units), tuple(notes), remarks)


def _published_columns(columns: Sequence[str], dataset: str) -> list[str]:
    """Return the columns of published values that stand beside a data set: on the same data, else all."""
    own = f"published {DATA.get(dataset)}"
    return [own] if own in columns else [name for name in columns if name.startswith("published ")]


def _cell(row: Row | None, columns: Sequence[str], absent: str, notes: dict[str, str]) -> Cell:
    """Return a cell, one without a row for the reason `absent`; its note is added to `notes` (text to mark)."""
    if row is None:
        return Cell((_DASH,), _DASH, mark=notes.setdefault(absent, str(len(notes) + 1)))
    published = [row[name] for name in _published_columns(columns, row["dataset"])]
    shown = [_DASH] if all(math.isnan(value) for value in published) else [number(value) for value in published]
    decimals = QUANTITIES[row["quantity"]][1]
    spread = "" if math.isnan(row["spread"]) else number(row["spread"], decimals)
    mark = notes.setdefault(row["note"], str(len(notes) + 1)) if row["note"] else ""
    return Cell(tuple(shown), number(row["ours"], decimals), spread, mark)


def _legend(rows: Sequence[Row], columns: Sequence[str], units: set[str]) -> str:
    unit = ", ".join(sorted(units - {"1"}))
    sentences = ["Each cell: published / ours ± standard deviation over the seeds" + (f", in {unit}." if unit else ".")]
    every = _published_columns(columns, "")
    others = sorted({row["dataset"] for row in rows if _published_columns(columns, row["dataset"]) == every})
    if others:
        listed = ", ".join(name.removeprefix("published ") for name in every)
        sentences.append(f"Published values beside {' and '.join(others)} are those on {listed}, in this order.")
    sentences.append(f"“{_DASH}” before the slash: the source has no such value.")
    if any(row["unit"] == "pp" for row in rows):
        sentences.append("pp: percentage points.")
    return " ".join(sentences)


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


def to_markdown(view: Readable, table: Table) -> str:
    """Return the table as a Markdown section."""
    names = _names(view.frame)
    lines = [f"## {table.title}", "", _markdown_text(f"{table.source}. Expected: {table.direction}."), ""]
    if len(view.frame):
        lines.append("| " + " | ".join(_markdown_text(name) for name in names) + " |")
        lines.append("|" + "---|" * view.labels + "---:|" * (len(names) - view.labels))
        above = ["", ""]
        for row in view.frame.to_numpy().tolist():
            shown = ["", ""] if row[:2] == above else row[:2]
            above = row[:2]
            cells = [_markdown_cell(cell) for cell in row[view.labels :]]
            lines.append("| " + " | ".join([*map(_markdown_text, [*shown, *row[2 : view.labels]]), *cells]) + " |")
        lines.append("")
    notes = [f"<sup>{place}</sup> {_markdown_text(note)}" for place, note in enumerate(view.notes, start=1)]
    for paragraph in (_markdown_text(view.legend), *notes, *map(_markdown_text, view.remarks)):
        lines += [paragraph, ""]
    return "\n".join([*lines, f"How to read: {_markdown_text(table.caption)}", ""])


def _markdown_cell(cell: Cell) -> str:
    return _markdown_text(str(cell)) + (f"<sup>{cell.mark}</sup>" if cell.mark else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "–": "--",
    "“": "``",
    "”": "''",
}


def latex_text(text: str) -> str:
    """Return text in which every character that LaTeX would act upon is escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(view: Readable, table: Table) -> str:
    r"""Return the table as a LaTeX longtable; the document needs `\usepackage{booktabs,longtable}`."""
    heads = _names(view.frame)[2:]
    caption = f"{table.title} ({table.source}). {view.legend}"
    lines = [
        r"% needs \usepackage{booktabs,longtable}",
        r"\begingroup",
        r"\footnotesize",
        r"\setlength{\LTcapwidth}{\textwidth}",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{longtable}}{{{'l' * (view.labels - 2)}{'r' * (len(heads) + 2 - view.labels)}}}",
        rf"\caption{{{latex_text(caption)}}}\label{{tab:{table.id}}} \\",
    ]
    if len(view.frame):
        lines += [r"\toprule", " & ".join(latex_text(name) for name in heads) + r" \\", r"\midrule", r"\endfirsthead"]
        lines += [r"\toprule", " & ".join(latex_text(name) for name in heads) + r" \\", r"\midrule", r"\endhead"]
        lines += [r"\bottomrule", r"\endfoot"]
    for (data, model), group in view.frame.groupby(["data", "model"], sort=False):
        lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{\textbf{{{latex_text(f'{data}, {model}')}}}}} \\*")
        for row in group.to_numpy().tolist():
            names = [latex_text(text) for text in row[2 : view.labels]]
            lines.append(" & ".join([*names, *(_latex_cell(cell) for cell in row[view.labels :])]) + r" \\")
        lines.append(r"\addlinespace")
    lines.append(r"\end{longtable}")
    notes = [rf"\textsuperscript{{{place}}} {latex_text(note)}" for place, note in enumerate(view.notes, start=1)]
    lines += [rf"\noindent {note}\par" for note in [*notes, *(latex_text(remark) for remark in view.remarks)]]
    return "\n".join([*lines, r"\endgroup", ""])


def _latex_cell(cell: Cell) -> str:
    """Return a cell; several published values stand above ours, so that the table fits a page."""
    mark = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    if len(cell.published) == 1:
        return latex_text(str(cell)) + mark
    above, below = latex_text(f"{', '.join(cell.published)} /"), latex_text(cell.measured)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{above}\\{below}{mark}\end{{tabular}}"


def to_html(view: Readable) -> str:
    """Return the table as an HTML fragment: a scrolling table with a heading row per data set and model, then notes."""
    parts = []
    if len(view.frame):
        places = enumerate(_names(view.frame)[2:], start=2)
        heads = [
            f"<th scope='col'{' class=name' * (place < view.labels)}>{escape(name)}</th>" for place, name in places
        ]
        parts.append(f"<div class='scroll'><table><thead><tr>{''.join(heads)}</tr></thead>")
        for (data, model), group in view.frame.groupby(["data", "model"], sort=False):
            parts.append(f"<tbody><tr class='run'><th scope='rowgroup' colspan='{len(heads)}'>")
            parts.append(f"{escape(data)} · {escape(model)}</th></tr>")
            for row in group.to_numpy().tolist():
                names = [f"<th scope='row'>{escape(value)}</th>" for value in row[2 : view.labels]]
                parts.append(f"<tr>{''.join(names)}{''.join(_html_cell(value) for value in row[view.labels :])}</tr>")
            parts.append("</tbody>")
        parts.append("</table></div>")
    parts.append(f"<p class='legend'>{escape(view.legend)}</p>")
    if view.notes:
        parts.append(f"<ol class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in view.notes)}</ol>")
    parts.extend(f"<p class='legend'>{escape(remark)}</p>" for remark in view.remarks)
    return "\n".join(parts)


def _html_cell(cell: Cell) -> str:
    published = escape(", ".join(cell.published))
    spread = f" <span class='spread'>± {escape(cell.spread)}</span>" if cell.spread else ""
    mark = f"<sup>{escape(cell.mark)}</sup>" if cell.mark else ""
    ours = f"<span class='ours'><b>{escape(cell.ours)}</b>{spread}{mark}</span>"
    return f"<td><span class='published'>{published} /</span> {ours}</td>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .8rem; text-align: right; vertical-align: top; }}
.published, .ours, tbody th {{ white-space: nowrap; }}
tbody th, .name {{ text-align: left; }}
thead th, .run th {{ border-bottom: 1px solid; }}
.published, .spread, .legend, .notes {{ opacity: .7; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{source}. Expected: {direction}.</p>
{table}
<p>{caption}</p>
</body>
</html>
"""


def render(frame: pd.DataFrame, table: Table, folder: str | Path) -> dict[str, Path]:
    """Write a filled table as CSV, Markdown, LaTeX and HTML.

    The CSV holds the tidy frame; the other three show the same `readable` view.

    Args:
        frame: What the table's function returned.
        table: The table.
        folder: Where <id>.csv, .md, .tex and .html go.

    Returns:
        The four paths by ending.
    """
    view = readable(frame, table)
    page = _PAGE.format(
        **{name: escape(getattr(table, name)) for name in ("title", "source", "direction", "caption")},
        table=to_html(view),
    )
    texts = {"md": to_markdown(view, table), "tex": to_latex(view, table), "html": page}
    paths = {ending: Path(folder) / f"{table.id}.{ending}" for ending in ("csv", *texts)}
    write_csv(paths["csv"], frame)
    for ending, text in texts.items():
        with atomic_path(paths[ending]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths
