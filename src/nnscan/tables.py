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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

from nnscan.artifacts import read_csv, read_frame
from nnscan.errors import ArtifactError, NnscanError, did_you_mean

_LOG = logging.getLogger(__name__)

LEAST_TREND = 4
"""Values that a trend needs."""

SHUFFLED = "training/shuffled_results.csv"
BY_HEART = 90
"""Training accuracy (%) from which on shuffled labels count as learned."""

MODELS = {
    "fcn": "FCN",
    "lenet5": "LeNet-5",
    "simple_cnn": "Simple CNN",
    "alexnet": "AlexNet",
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "resnet18": "ResNet-18",
}
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "camvid": "CamVid"}
# What the survey says of methods of explanation in words, and the scores of methods.
STATEMENTS = (
    *("basis of the map", "traits", "channel weights", "advantages", "drawbacks"),
    *("family", "paper", "year", "detail", "depends on the class", "online", "access to the model", "explains"),
    *("scope", "needs"),
)
OURS = ("paper", "needs")
"""Of them, what the survey's tables have no column for."""
_AFTER = (
    "FGSM 0.031",
    *(f"FGSM {size}, {answer} answer" for answer in ("same", "other") for size in ("0.031", "0.25")),
)
_CHANGES = ("attack to a target", "attack on the peaks", "random change")
_SCORES = (
    *("IoU at 0.5", "IoU at 0.2", "pointing game", "energy inside the object", "deletion", "insertion", "roughness"),
    *("residual", "random network, rank", "random network, rank of sizes", "random network, SSIM"),
    *("random last layers, rank", "random last layers, rank of sizes", "random last layers, SSIM"),
    *("random labels, rank", "random labels, rank of sizes", "random labels, SSIM", "noise, rank", "max-sensitivity"),
    *(f"{change}, {way}" for changes in (_AFTER, _CHANGES) for way in ("rank", "peaks") for change in changes),
    *("attack to a target, approach", "random change, approach"),
)
# Every quantity of the tables: its unit and the decimals that people see of ours.
QUANTITIES = {
    "agreement": ("1", 3),
    "IoU": ("1", 3),
    "SSIM": ("1", 3),
    "FQ": ("1", 4),
    "loss change": ("%", 1),
    "area": ("pp", 1),
    "drop at 50 %": ("pp", 1),
    "rank correlation": ("1", 2),
    "proportion": ("1", 2),
    "accuracy lost": ("pp", 1),
    "accuracy lost, random filters": ("pp", 1),
    "anomaly filters": ("filters", 1),
    "unbalanced clusters": ("filters", 1),
    "high CH index": ("filters", 1),
    "high activation": ("filters", 1),
    **{f"anomaly filters, outliers up to {share}": ("filters", 1) for share in ("0.5%", "1%", "2%", "5%")},
    "filters examined": ("filters", 0),
    "gradient": ("norm", 3),
    "samples": ("samples", 1),
    "accuracy change": ("pp", 2),
    "training accuracy falls": ("filters", 1),
    "validation accuracy rises": ("filters", 1),
    "either accuracy changes": ("filters", 1),
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
    "unique detectors": ("concepts", 1),
    "unique detectors, top labels only": ("concepts", 1),
    "detector units": ("units", 1),
    "share of units": ("%", 0),
    "change of unique detectors": ("%", 0),
    "change of the outputs": ("ppm", 2),
    "intrinsic dimension": ("1", 1),
    "plateau of the blocks": ("1", 1),
    "fit of the line": ("1", 3),
    "points left out": ("points", 0),
    "PCA dimension": ("1", 0),
    "dimension of the last hidden layer": ("1", 1),
    "test error": ("%", 1),
    "test error, top 5": ("%", 1),
    "accuracy of the backbone": ("%", 1),
    "accuracy of the ProtoPNet": ("%", 1),
    "accuracy gained": ("pp", 1),
    "prototypes": ("prototypes", 0),
    "distinct prototypes": ("%", 1),
    **dict.fromkeys(STATEMENTS, ("1", 0)),
    **dict.fromkeys(_SCORES, ("1", 3)),
    "time per image": ("s", 3),
    "memory per image": ("MB", 1),
    "probability of the class": ("1", 3),
    "agreement of the judges": ("1", 2),
    "distance to training images": ("1", 3),
    "accuracy without pixels": ("%", 1),
}
# The order in which the values of keys stand.
_ORDER = (
    *QUANTITIES,
    *("above 5 %", "above 0", "most activated pair", "any pair", "l", "c", "s", "vf", "nf"),
    *("CAM", "Grad-CAM", "FQ map", "NNS", "input"),
    *("top", "bottom", "outlier", "normal", "anomaly", "T_m", "T_v", "T_c", "T_cor", "random", "AVoU", "SoU"),
    *("H-H", "H-noH", "noH-H", "L-L", "L-noL", "noL-L"),
    *("untrained", "third1", "third2", "third3", "well_trained", "overfitted", "shuffled"),
    "all",
)

MISSING = ""  # the quantity of a row that only says which file a run lacks

BASE = ("dataset", "model")
_COUNTS = ("position", "convolutions", "class")  # keys that are whole numbers
_NUMBERS = ("ours", "spread", "statistic", "ci_low", "ci_high", "threshold")

Row = dict[str, Any]  # of a frame, by column
Reducer = Callable[[pd.DataFrame], list[Row]]


class UndefinedStatistic(NnscanError):
    """A claim's statistic has no value in a run; the text says why."""


class NotAsked(UndefinedStatistic):
    """A study does not ask, of a run, for what a claim speaks about."""


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

    def asks(self, relative_path: str) -> bool:
        """Return whether a result file belongs to the study."""
        return self.files is None or relative_path in self.files

    def has(self, relative_path: str) -> bool:
        """Return whether a result file belongs to the study and exists."""
        return self.asks(relative_path) and (self.folder / relative_path).is_file()


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
    return read_csv(path) if path.suffix == ".csv" else read_frame(path)


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
        for place, name in enumerate((*BASE, "seed")):
            frame.insert(place, name, getattr(run, name))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*BASE, "seed"])


def read_published(folder: str | Path, table: str) -> pd.DataFrame:
    """Read the published values of a table: table, model, data, row keys, quantity, value, unit, source.

    Of a table of words: table, method, quantity, statement, printed (as in the source), source.

    Raises:
        ArtifactError: There is no such file.
    """
    path = Path(folder) / f"{table}.csv"
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist{did_you_mean(table, sorted(p.stem for p in path.parent.glob('*.csv')))}"
        )
    frame = pd.read_csv(path, dtype=str)
    return frame.assign(value=frame["value"].astype(float)) if "value" in frame else frame


# ---------------------------------------------------------------------------------------------------------------------
# From a run's file to numbers. A reducer returns rows of keys, quantity and value. A NaN in a file reaches the number.


def records_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def columns_of(frame: pd.DataFrame) -> list[str]:
    """Return the names of a frame's columns."""
    return [str(name) for name in frame.columns]


def mean_of(values: pd.Series) -> float:
    """Return the mean, NaN if a value is missing."""
    return float(np.mean(values.to_numpy(dtype=float)))


def positions(frame: pd.DataFrame) -> dict[str, int]:
    """Return the layers and their places 1, 2, ... by depth."""
    layers = frame.drop_duplicates("layer").sort_values("depth")
    return {str(layer): place for place, layer in enumerate(layers["layer"], start=1)}


def rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant or a value is missing."""
    if first.isna().any() or second.isna().any() or first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)


def trend(values: Sequence[float], of: str = "layers") -> float:
    """Return the rank correlation of values with their positions.

    Of two values it is 1 or -1 whatever they are, of three one of four numbers, so that three seeds often agree by
    chance and an interval over them has no width: there must be `LEAST_TREND`.

    Args:
        values: The values in their order.
        of: What they are values of, as people name it.

    Raises:
        UndefinedStatistic: There are fewer, or all are the same.
    """
    if len(values) < LEAST_TREND:
        raise UndefinedStatistic(f"no trend: {len(values)} {of}, and {LEAST_TREND} are needed")
    found = rank_correlation(pd.Series(range(len(values))), pd.Series(values))
    if math.isnan(found):
        raise UndefinedStatistic(f"no trend: the same value in all {of}")
    return found


@cache
def _quantile(level: float, count: int) -> float:
    return float(t.ppf((1 + level) / 2, count - 1))


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
    half = _quantile(level, len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def percent(share: float) -> str:
    """Return a share in percent, as text."""
    return f"{100 * share:g}%"


def reduced(run: Run, path: str, reduce: Reducer) -> list[Row]:
    """Return the numbers of a run's result file.

    Raises:
        UndefinedStatistic: The run has no such file.
    """
    if missing([run], path):
        raise UndefinedStatistic(f"{path} is missing")
    frame = collect([run], path)
    return reduce(frame) if len(frame) else []


def values_of(rows: Iterable[Row], undefined: str, **keys: object) -> list[float]:
    """Return the values of the rows with these keys, in the order of the layers.

    Raises:
        UndefinedStatistic: There are none, or, for the reason `undefined`, one of them is not finite.
    """
    found = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
    if not found:
        raise UndefinedStatistic(f"no value for {', '.join(str(value) for value in keys.values())}")
    values = [float(row["value"]) for row in sorted(found, key=lambda row: sort_key("position", row.get("position")))]
    if not all(math.isfinite(value) for value in values):
        raise UndefinedStatistic(undefined)
    return values


def _learned_labels(frame: pd.DataFrame) -> list[Row]:
    chosen = frame[(frame["checkpoint"] == "shuffled") & (frame["split"] == "train")]
    return [{"quantity": "training accuracy", "value": 100 * float(value)} for value in chosen["accuracy"]]


def require_learned_labels(run: Run) -> None:
    """Check that the network trained on shuffled labels has learned them by heart (`BY_HEART`).

    Raises:
        UndefinedStatistic: It has not, or its results are missing.
        NotAsked: The study trains no network on shuffled labels.
    """
    if not run.asks(SHUFFLED):
        raise NotAsked("no network is trained on shuffled labels where overfitting_epochs is 0")
    learned = values_of(reduced(run, SHUFFLED, _learned_labels), "undefined", quantity="training accuracy")[0]
    if learned < BY_HEART:
        raise UndefinedStatistic(f"the shuffled labels were not learned: training accuracy {learned:.0f} %")


# ---------------------------------------------------------------------------------------------------------------------
# From the runs to a tidy frame


def measure(
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


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds, with n - 1; NaN for fewer than two.

    Values that differ by rounding alone have none: else a table would show it with all its digits.
    """
    if len(values) < 2:
        return math.nan
    same = max(values) - min(values) <= 1e-12 * max(map(abs, values))
    return 0.0 if same else float(np.std(values, ddof=1))


def summarise(measured: list[Row], keys: Sequence[str], undefined: str) -> list[Row]:
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
                **{key: first.get(key) for key in (*BASE, *keys, "quantity")},
                "ours": float(np.mean(values)) if values else math.nan,
                "spread": spread(values),
                "seeds": len(values),
                "note": note,
                "everywhere": len(group) == len(everyone),
            }
        )
    return rows


def published_rows(published: pd.DataFrame, runs: Iterable[Run], **fixed: str) -> list[Row]:
    """Return the published values of the models in the study, one row per key with one entry per published data set."""
    keys = [name for name in columns_of(published) if name not in ("table", "model", "data", "value", "unit", "source")]
    rows: dict[tuple[object, ...], Row] = {}
    for dataset, model in sorted({(run.dataset, run.model) for run in runs}):
        for record in records_of(published[published["model"] == MODELS.get(model, model)]):
            row = {"dataset": dataset, "model": model, **fixed, **{key: record[key] for key in keys}}
            rows.setdefault(tuple(row.values()), row)[f"published {record['data']}"] = record["value"]
    return list(rows.values())


def assemble(
    ours: list[Row],
    published: list[Row],
    frame: pd.DataFrame,
    keys: Sequence[str],
    unmatched: str,
) -> pd.DataFrame:
    """Join ours with the published rows and sort.

    Args:
        ours: Rows of `summarise`.
        published: Rows of `published_rows`; they join where their keys agree with ours.
        frame: The published values, for the order of their data sets.
        keys: The row keys.
        unmatched: Why a published row can have no counterpart.
    """
    columns = [f"published {data}" for data in frame["data"].unique()]
    rows: list[Row] = [{**dict.fromkeys(columns, math.nan), **row} for row in ours]
    for other in published:
        shared = [key for key in (*BASE, *keys, "quantity") if key in other]
        matches = [row for row in rows if all(row[key] == other[key] for key in shared)]
        values = {column: other.get(column, math.nan) for column in columns}
        for row in matches:
            row.update(values)
        if not matches:
            absent = [row for row in ours if row["quantity"] == MISSING and row["everywhere"]]
            why = {
                row["note"]
                for row in absent
                if all(row[key] in (None, other.get(key, row[key])) for key in (*BASE, *keys))
            }
            blank: Row = {"ours": math.nan, "spread": math.nan, "seeds": 0, "note": "; ".join(sorted(why)) or unmatched}
            rows.append({**dict.fromkeys(keys), **blank, **other, **values})
    for row in rows:
        row["unit"] = QUANTITIES[row["quantity"]][0] if row["quantity"] != MISSING else ""
    rows.sort(key=lambda row: [sort_key(key, row[key]) for key in (*BASE, *keys, "quantity")])
    order = [*BASE, *keys, "quantity", "unit", "ours", "spread", "seeds", *columns, "note"]
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
            columns[name] = column.astype(object).fillna("").astype(str)
    return pd.DataFrame(columns)
