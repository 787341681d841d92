"""The published tables beside ours: what each shows, and how the result files of the runs fill it.

A table is data: where its numbers come from, how to read it, and the function that fills it from the result files of
the runs. A filled table is a tidy frame, one row per number:

    dataset, model, <row keys>, quantity, unit, ours, spread, seeds, published <data> ..., note

`ours` is the mean over the seeds, `spread` their standard deviation (NaN for one seed), `seeds` how many had a value.
What does not exist is NaN, and `note` says why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from nnscan.artifacts import read_frame
from nnscan.errors import ArtifactError, did_you_mean

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
    "parameters": ("parameters", 0),
    "training loss": ("1", 3),
    "test loss": ("1", 3),
    "test accuracy": ("%", 1),
    "neurons": ("neurons", 0),
    "accuracy, most similar pruned": ("1", 3),
    "accuracy, least similar pruned": ("1", 3),
    "accuracy, random neurons pruned": ("1", 3),
    "difference": ("1", 3),
}
# The order in which the values of keys stand.
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
LAYERS = "experiments/layers.parquet"
RESULTS = "training/results.csv"
OVERFITTED_RESULTS = "training/overfitted_results.csv"

MISSING = ""  # the quantity of a row that only says which file a run lacks
MEAN_LAYER = "mean of the layers"
LAST_EPOCH = "third3"  # the bachelor's thesis keeps the model after its last epoch

_BASE = ("dataset", "model")
_COUNTS = ("position", "convolutions")  # keys that are whole numbers
_NUMBERS = ("ours", "spread", "statistic", "ci_low", "ci_high", "threshold")

Row = dict[str, Any]  # of a frame, by column
Reducer = Callable[[pd.DataFrame], list[Row]]


@dataclass(frozen=True, order=True)
class Run:
    """One trained model of a study: `folder` holds training/, metrics/ and experiments/.

    `files`, where given, are the result files that the study asks for; others in the folder are leftovers of an
    earlier configuration and count as missing.
    """

    dataset: str
    model: str
    seed: int
    folder: Path
    files: frozenset[str] | None = field(default=None, compare=False)

    def has(self, relative_path: str) -> bool:
        """Return whether a result file belongs to the study and exists."""
        return (self.files is None or relative_path in self.files) and (self.folder / relative_path).is_file()


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
    return [run for run in sorted(runs) if not run.has(relative_path)]


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


def columns_of(frame: pd.DataFrame) -> list[str]:
    """Return the names of a frame's columns."""
    return [str(name) for name in frame.columns]


def _mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy(dtype=float)))


def _positions(frame: pd.DataFrame) -> dict[str, int]:
    """Return the layers and their places 1, 2, ... by depth."""
    layers = frame.drop_duplicates("layer").sort_values("depth")
    return {str(layer): place for place, layer in enumerate(layers["layer"], start=1)}


def rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant or a value is missing."""
    if first.isna().any() or second.isna().any() or first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def quantity_by_layer(frame: pd.DataFrame) -> list[Row]:
    """Return the mean SSIM and FQ of each layer's neurons."""
    frame = frame.rename(columns={"ssim": "SSIM", "fq": "FQ"})
    layers = dict(list(frame.groupby("layer")))
    return [
        {"position": place, "layer": layer, "quantity": quantity, "value": _mean(layers[layer][quantity])}
        for layer, place in _positions(frame).items()
        for quantity in ("SSIM", "FQ")
    ]


def loss_changes(frame: pd.DataFrame) -> list[Row]:
    """Return the loss change (%) of each masked group, by layer and as mean of the layers."""
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


def areas(frame: pd.DataFrame) -> list[Row]:
    """Return the area under each masking curve and the drop at half of the filters (percentage points).

    Raises:
        ArtifactError: A curve does not run from 0 to 1.
    """
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


def rank_correlations(frame: pd.DataFrame) -> list[Row]:
    """Return the rank correlations of importance and properties over the filters of the last layer."""
    layer, place = list(_positions(frame).items())[-1]
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


def anomaly_counts(frame: pd.DataFrame) -> list[Row]:
    """Return how many filters are anomaly filters, and of how many."""
    return [
        {"quantity": "anomaly filters", "value": float(frame["is_anomaly"].astype(bool).sum())},
        {"quantity": "filters examined", "value": float(len(frame))},
    ]


def gradients(frame: pd.DataFrame) -> list[Row]:
    """Return the mean gradient of outlier and normal samples, and how many there are."""
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": _mean(part[quantity])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity in ("gradient", "samples")
    ]


def accuracy_changes(frame: pd.DataFrame) -> list[Row]:
    """Return the accuracy change (percentage points) without each masked group of filters."""
    names = {"accuracy change": "accuracy_change", "filters masked": "filters"}
    return [
        {"checkpoint": checkpoint, "group": group, "quantity": quantity, "value": _mean(part[column])}
        for (checkpoint, group), part in frame.groupby(["checkpoint", "group"])
        for quantity, column in names.items()
    ]


def training_results(frame: pd.DataFrame) -> list[Row]:
    """Return the losses and the test accuracy (%) of each checkpoint."""
    names = {("train", "loss"): "training loss", ("test", "loss"): "test loss", ("test", "accuracy"): "test accuracy"}
    rows = []
    for result in records_of(frame):
        for (split, column), quantity in names.items():
            if result["split"] == split:
                value = float(result[column]) * (100 if column == "accuracy" else 1)
                rows.append({"checkpoint": result["checkpoint"], "quantity": quantity, "value": value})
    return rows


def pruned_accuracies(frame: pd.DataFrame) -> list[Row]:
    """Return the accuracy (0 to 1) left without each group of neurons, by layer and pruned share."""
    places = _positions(frame)
    names = {"most": "most similar", "least": "least similar", "random": "random neurons"}
    rows = []
    for (layer, _), part in frame.groupby(["layer", "fraction"]):
        keys = {"position": places[str(layer)], "layer": layer, "pruned": _percent(part["fraction"].iloc[0])}
        accuracy = {str(group): _mean(draws["accuracy"]) for group, draws in part.groupby("group")}
        rows.append({**keys, "quantity": "neurons", "value": float(part["neurons"].iloc[0])})
        for group in (group for group in names if group in accuracy):
            rows.append({**keys, "quantity": f"accuracy, {names[group]} pruned", "value": accuracy[group]})
        if {"most", "least"} <= accuracy.keys():
            rows.append({**keys, "quantity": "difference", "value": accuracy["most"] - accuracy["least"]})
    return rows


def cut_results(frame: pd.DataFrame) -> list[Row]:
    """Return the parameters and the test accuracy (%) of each network that was cut and retrained, and of the whole."""
    return [
        {"convolutions": result["convolutions"], "chosen": bool(result["chosen"]), "quantity": quantity, "value": value}
        for result in records_of(frame)
        for quantity, value in (
            ("parameters", float(result["parameters"])),
            ("test accuracy", 100 * float(result["accuracy"])),
        )
    ]


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
            rows.append({**base, "quantity": MISSING, "value": math.nan, "note": why})
    return rows


def named_seeds(numbers: Iterable[int]) -> str:
    """Return seeds in words: "seed 0", "seeds 0, 2"."""
    ordered = sorted(set(numbers))
    return f"{'seed' if len(ordered) == 1 else 'seeds'} {', '.join(str(number) for number in ordered)}"


def _summarise(measured: list[Row], keys: Sequence[str], undefined: str) -> list[Row]:
    """Return mean, spread and number of seeds per key; missing files give one row per data set, model and reason."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    seeds: dict[tuple[str, str], tuple[set[int], set[int]]] = {}  # all, and those with numbers
    for row in measured:
        distinct = [row["note"]] if row["quantity"] == MISSING else [row.get(key) for key in keys]
        groups.setdefault((row["dataset"], row["model"], row["quantity"], *distinct), []).append(row)
        network = seeds.setdefault((row["dataset"], row["model"]), ({row["seed"]}, set()))
        network[0].add(row["seed"])
        network[1].update({row["seed"]} if row["quantity"] != MISSING else ())
    rows = []
    for group in groups.values():
        first = group[0]
        everyone, measuring = seeds[first["dataset"], first["model"]]
        known = {row["seed"]: row["value"] for row in group if math.isfinite(row["value"])}
        note = ""
        if first["quantity"] == MISSING:
            note = f"{named_seeds(row['seed'] for row in group)}: {first['note']}"
        elif unknown := measuring - known.keys():
            note = f"{named_seeds(unknown)}: {undefined}" if known else undefined
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
    keys = [name for name in columns_of(published) if name not in ("table", "model", "data", "value", "unit", "source")]
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
            why = {row["note"] for row in network if row["quantity"] == MISSING and row["everywhere"]}
            blank: Row = {"ours": math.nan, "spread": math.nan, "seeds": 0, "note": "; ".join(sorted(why)) or unmatched}
            rows.append({**dict.fromkeys(keys), **blank, **other, **values})
    for row in rows:
        row["unit"] = QUANTITIES[row["quantity"]][0] if row["quantity"] != MISSING else ""
    rows.sort(key=lambda row: [sort_key(key, row[key]) for key in (*_BASE, *keys, "quantity")])
    order = [*_BASE, *keys, "quantity", "unit", "ours", "spread", "seeds", *columns, "note"]
    return typed(pd.DataFrame(rows, columns=order))


def sort_key(key: str, value: Any) -> tuple[float, str]:
    """Return where a value of a key sorts: models and labels as listed above, numbers by size, no number last."""
    if key in _COUNTS:
        return (math.inf if value is None else float(value), "")
    known = tuple(MODELS) if key == "model" else _ORDER if key != "dataset" else ()
    return (known.index(value) if value in known else math.inf, "" if value is None else str(value))


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a tidy frame with its types: numbers as float, counts as integers, all else as text."""
    columns: dict[str, pd.Series[Any]] = {}
    for name in columns_of(frame):
        column = frame[name]
        if name in ("seeds", "undefined", *_COUNTS):
            columns[name] = pd.to_numeric(column.replace("", None)).astype("Int64")
        elif name in _NUMBERS or name.startswith("published "):
            columns[name] = pd.to_numeric(column.replace("", None)).astype(float)
        else:
            columns[name] = column.fillna("").astype(str)
    return pd.DataFrame(columns)


# ---------------------------------------------------------------------------------------------------------------------
# The tables


def table_fq(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-2: mean SSIM and FQ of each layer's neurons. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer")
    ours = _summarise(_measure(runs, QUANTITY, quantity_by_layer, "not scanned"), keys, "no foreground mask")
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
        if row["quantity"] != MISSING:
            layers.setdefault((row["dataset"], row["model"]), set()).add(row["layer"])
    return {network: len(names) for network, names in layers.items()}


def table_diversity(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 4-3: loss change when diverse filters are masked. Source: Dou Hui, doctoral slides, ch. 4."""
    keys = ("position", "layer", "filters", "group")
    measured = _measure(runs, DIVERSITY_MASKING, loss_changes, "diverse filters not masked")
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
    ours = _summarise(_measure(runs, AIPC, areas, "no masking curves"), keys, "accuracy undefined")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    return _assemble(ours, rows, published, keys, "not measured in these runs")


def table_ranks(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 5-2: rank correlations of importance and properties. Source: Dou Hui, doctoral slides, ch. 5."""
    keys = ("position", "layer", "measure", "property")
    ours = _summarise(_measure(runs, PROPERTY, rank_correlations, "not scanned"), keys, "all filters rank alike")
    rows = _for_each_layer(_published_rows(published, runs), ours)
    return _assemble(ours, rows, published, keys, "not measured in these runs")


def table_anomaly(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-2: anomaly filters of both checkpoints. Source: Dou Hui, doctoral slides, ch. 6."""
    reasons = {"well_trained": "not scanned", "overfitted": "no overfitted checkpoint"}
    measured = [
        row
        for checkpoint, path in ANOMALY.items()
        for row in _measure(runs, path, anomaly_counts, reasons[checkpoint], checkpoint=checkpoint)
    ]
    ours = _summarise(measured, ("checkpoint",), "no such checkpoint")
    return _assemble(ours, _published_rows(published, runs), published, ("checkpoint",), "not scanned")


def table_gradients(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-3: gradients of outlier and normal samples. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    ours = _summarise(_measure(runs, GRADIENTS, gradients, "gradients not measured"), keys, "no such samples")
    return _assemble(ours, _published_rows(published, runs), published, keys, "no such checkpoint")


def table_anomaly_masking(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill slides 6-5: validation accuracy without the anomaly filters. Source: Dou Hui, doctoral slides, ch. 6."""
    keys = ("checkpoint", "group")
    measured = _measure(runs, ANOMALY_MASKING, accuracy_changes, "anomaly filters not masked", "no anomaly filters")
    ours = _summarise(measured, keys, "no anomaly filters to mask")
    rows = _published_rows(published, runs, checkpoint="overfitted")
    return _assemble(ours, rows, published, keys, "no overfitted checkpoint, or no anomaly filters in it")


def table_training(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 4-1: losses and accuracy after training. Source: Wang Xinyuan, bachelor's thesis, ch. 4."""
    measured = _measure(runs, RESULTS, training_results, "not trained")
    measured += _measure(runs, OVERFITTED_RESULTS, training_results, "no overfitted checkpoint")
    ours = _summarise(measured, ("checkpoint",), "no such checkpoint")
    rows = _published_rows(published, runs, checkpoint=LAST_EPOCH)
    return _assemble(ours, rows, published, ("checkpoint",), "not trained by nnscan")


def table_pruning(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 5-1: accuracy after pruning by similarity. Source: Wang Xinyuan, bachelor's thesis, ch. 5."""
    keys = ("position", "layer", "pruned")
    ours = _summarise(_measure(runs, PRUNING, pruned_accuracies, "nothing pruned"), keys, "accuracy undefined")
    fractions = published[published["quantity"] == "pruned fraction"].set_index("layer")["value"]
    rows = _published_rows(published[published["quantity"] != "pruned fraction"], runs)
    for row in rows:
        layer = row.pop("layer")
        row["position"], row["pruned"] = int(layer) + 1, _percent(fractions[layer] / 100)
    return _assemble(ours, rows, published, keys, "this share of this layer was not pruned in these runs")


def _with_choices(measured: list[Row]) -> list[Row]:
    """Return the rows with the choices of all seeds in words: "yes", "no" or "in 1 of 3 seeds"."""
    seeds: dict[tuple[str, str], set[int]] = {}
    choosing: dict[tuple[str, str, int], set[int]] = {}
    rows = [row for row in measured if row["quantity"] != MISSING]
    for row in rows:
        seeds.setdefault((row["dataset"], row["model"]), set()).add(row["seed"])
        chosen = choosing.setdefault((row["dataset"], row["model"], row["convolutions"]), set())
        chosen.update({row["seed"]} if row["chosen"] else ())

    def choice(row: Row) -> str:
        every, chosen = seeds[row["dataset"], row["model"]], choosing[row["dataset"], row["model"], row["convolutions"]]
        return "no" if not chosen else "yes" if chosen == every else f"in {len(chosen)} of {len(every)} seeds"

    return [row if row["quantity"] == MISSING else {**row, "chosen": choice(row)} for row in measured]


def table_layers(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 5-1, layers: networks cut after a layer. Source: Wang Xinyuan, bachelor's thesis, ch. 5.1."""
    keys = ("convolutions", "chosen")
    measured = _with_choices(_measure(runs, LAYERS, cut_results, "not cut, or it cannot be cut"))
    ours = _summarise(measured, keys, "the similarity curve chose another cut")
    cuts = {(row["dataset"], row["model"], row["convolutions"]) for row in ours}
    rows = _published_rows(published[published["quantity"] != "best test accuracy"], runs)
    for row in rows:
        row["convolutions"] = int(row["convolutions"])
        if (row["dataset"], row["model"], row["convolutions"]) in cuts:
            del row["chosen"]  # the same network stands beside ours, whichever curve chose it
    return _assemble(ours, rows, published, keys, "not one of the cuts of these runs")


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
            "(mean over draws). 'difference' is most minus least. The source prunes 40 % only, so its values stand "
            "beside ours where we prune as much. It prints 512 neurons for its layer 3 "
            "(position 4), where VGG-11 and the parameter count printed in the source have 256.",
        ),
        Table(
            id="thesis_5-1_layers",
            title="Layer removal",
            source="Wang Xinyuan, bachelor's thesis, ch. 5.1",
            direction="higher accuracy where the similarity curve cuts than one layer later, and than whole",
            inputs=(LAYERS,),
            function=table_layers,
            columns="quantity",
            caption="The network is cut after a convolution, closed with global pooling and a head like its own, and "
            "trained like the whole one: cut after the layer where the mean similarity over filters and classes peaks "
            "('chosen'), one layer later, and whole. The accuracy is that of the test split after the last epoch. A "
            "published value stands beside the network with as many convolutions, whichever ours chose; the source "
            "chose 4. For 5 convolutions it prints 77.8 % as best and 76.8 % as final accuracy, of which the latter is "
            "shown, and no number of parameters.",
        ),
    )
}
