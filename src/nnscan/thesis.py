"""The tables of Wang Xinyuan's bachelor's thesis, and the statistics of the claims that the thesis makes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnscan.tables import (
    DATA,
    MISSING,
    Row,
    Run,
    Table,
    UndefinedStatistic,
    assemble,
    mean_of,
    measure,
    percent,
    positions,
    published_rows,
    records_of,
    reduced,
    summarise,
    trend,
    values_of,
)

_THESIS = "Wang Xinyuan, bachelor's thesis, table"

PRUNING = "experiments/pruning.parquet"
LAYERS = "experiments/layers.parquet"
RESULTS = "training/results.csv"
HISTORY = "training/history.csv"
OVERFITTED_RESULTS = "training/overfitted_results.csv"
CLASSES = "metrics/well_trained/classes.parquet"
SIMILARITY = "metrics/well_trained/similarity.parquet"
MEASURES = "metrics/well_trained/measures.parquet"
HISTORIES = "experiments/layers_histories.parquet"

LAST_EPOCH = "third3"  # the thesis keeps the model after its last epoch


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 2: similarity measures


def measure_results(frame: pd.DataFrame) -> list[Row]:
    """Return of each measure the mean over the classes of what `measures.compare` finds."""
    return [
        {"measure": measure, "quantity": quantity, "value": mean_of(part[quantity])}
        for measure, part in frame.groupby("measure")
        for quantity in ("over_other", "brightness")
    ]


def cosine_over_other_measures(run: Run) -> float:
    """Return how much more often the cosine prefers the own picture to another class's than the best other measure."""
    rows = reduced(run, MEASURES, measure_results)
    share = {row["measure"]: row["value"] for row in rows if row["quantity"] == "over_other"}
    return float(share.pop("cosine") - max(share.values()))


def euclidean_brightness_over_cosine(run: Run) -> float:
    """Return the reaction to half brightness of the Euclidean distance minus that of the cosine."""
    rows = reduced(run, MEASURES, measure_results)
    euclidean, cosine = (
        values_of(rows, "a class's picture is worth as much as another's", measure=measure, quantity="brightness")[0]
        for measure in ("Euclidean", "cosine")
    )
    return euclidean - cosine


_STATISTICS_2 = (cosine_over_other_measures, euclidean_brightness_over_cosine)


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 4: training


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


def table_training(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 4-1: losses and accuracy after training. Source: Wang Xinyuan, bachelor's thesis, ch. 4."""
    measured = measure(runs, RESULTS, training_results, "not trained")
    measured += measure(runs, OVERFITTED_RESULTS, training_results, "no overfitted checkpoint")
    ours = summarise(measured, ("checkpoint",), "no such checkpoint")
    rows = published_rows(published, runs, checkpoint=LAST_EPOCH)
    return assemble(ours, rows, published, ("checkpoint",), "not trained by nnscan")


def accuracy_after_training(run: Run) -> float:
    """Return the test accuracy after the last regular epoch (%)."""
    rows = reduced(run, RESULTS, training_results)
    return values_of(rows, "accuracy undefined", checkpoint=LAST_EPOCH, quantity="test accuracy")[0]


def loss_history(frame: pd.DataFrame) -> list[Row]:
    """Return the validation loss of each epoch."""
    return [{"epoch": int(row["epoch"]), "value": float(row["validation_loss"])} for row in records_of(frame)]


def loss_trend_after_lowest(run: Run) -> float:
    """Return the rank correlation of epoch and validation loss after the epoch of the lowest loss.

    Without that epoch itself, whose loss is the lowest by choice.
    """
    values = [row["value"] for row in reduced(run, HISTORY, loss_history)]
    if not values:
        raise UndefinedStatistic("not trained by nnscan")
    return trend(values[int(np.argmin(values)) + 1 :], "epochs after the lowest loss")


def loss_gap_after_training(run: Run) -> float:
    """Return the test loss minus the training loss after the last regular epoch."""
    rows = reduced(run, RESULTS, training_results)
    test, training = (
        values_of(rows, "loss not finite", checkpoint=LAST_EPOCH, quantity=f"{split} loss")[0]
        for split in ("test", "training")
    )
    return test - training


def class_accuracies(frame: pd.DataFrame) -> list[Row]:
    """Return the test accuracy (%) of each class."""
    return [
        {"class": int(row["class"]), "name": row["name"], "quantity": "test accuracy", "value": 100 * row["accuracy"]}
        for row in records_of(frame)
    ]


def table_classes(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 4-2: test accuracy by class. Source: Wang Xinyuan, bachelor's thesis, ch. 4."""
    keys = ("class", "name")
    ours = summarise(measure(runs, CLASSES, class_accuracies, "not measured"), keys, "no test image of this class")
    for network in {(row["dataset"], row["model"]) for row in ours}:
        known = [row for row in ours if (row["dataset"], row["model"]) == network and math.isfinite(row["ours"])]
        for row in known:
            if row["ours"] == min(other["ours"] for other in known):
                row["note"] = "; ".join(filter(None, (row["note"], "the lowest accuracy of the classes")))
    data = set(published["data"])
    rows = [row for row in published_rows(published, runs) if DATA.get(row["dataset"]) in data]
    for row in rows:
        row["class"] = int(row["class"])
    return assemble(ours, rows, published, keys, "not measured in these runs")


def average_results(frame: pd.DataFrame) -> list[Row]:
    """Return the share of the averages of each kind that the network takes for their class."""
    kinds = [str(name).removeprefix("recognised_") for name in frame.columns if str(name).startswith("recognised_")]
    return [
        {"average": kind, "quantity": "recognised", "value": float(frame[f"recognised_{kind}"].mean())}
        for kind in kinds
    ]


def _recognised(run: Run, kind: str) -> float:
    return values_of(reduced(run, CLASSES, average_results), "undefined", average=kind)[0]


def most_over_simple_recognised(run: Run) -> float:
    """Return the share of recognised averages of the most confident images minus that of the simple averages."""
    return _recognised(run, "most") - _recognised(run, "simple")


def least_recognised(run: Run) -> float:
    """Return the share of the averages of the least confident images that the network takes for their class."""
    return _recognised(run, "least")


def most_recognised(run: Run) -> float:
    """Return the share of the averages of the most confident images that the network takes for their class."""
    return _recognised(run, "most")


def ascended_recognised(run: Run) -> float:
    """Return the share of the network-driven averages that the network takes for their class."""
    return _recognised(run, "ascended")


def curves(frame: pd.DataFrame) -> list[Row]:
    """Return mean and standard deviation of the similarity over each layer's filters, by class, average and method."""
    keys = ["average", "method", "class", "layer"]
    places = positions(frame)
    groups = frame.groupby(keys)["similarity"]
    found = pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=0)}).reset_index()
    return [
        {**{key: row[key] for key in keys}, "position": places[str(row["layer"])], "quantity": quantity,
         "value": row[quantity]}
        for row in records_of(found)
        for quantity in ("mean", "sd")
    ]  # fmt: skip


def _curve(run: Run, average: str, quantity: str, number: int | None = None) -> list[float]:
    """Return a curve by layer, by method 2 as the thesis shows them: of a class, or the mean over the classes."""
    rows = reduced(run, SIMILARITY, curves)
    found = [row for row in rows if (row["average"], row["method"], row["quantity"]) == (average, 2, quantity)]
    if not found:
        raise UndefinedStatistic(f"no similarity with {average} averages")
    places = sorted({row["position"] for row in found})
    return [
        float(np.mean([row["value"] for row in found if row["position"] == place and number in (None, row["class"])]))
        for place in places
    ]


def similarity_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with its mean similarity to the simple averages."""
    return trend(_curve(run, "simple", "mean"))


def late_deviation_growth(run: Run) -> float:
    """Return the standard deviation in the last layer minus that in the first layer of the second half."""
    values = _curve(run, "simple", "sd")
    if len(values) < 3:
        raise UndefinedStatistic("one layer only in the second half")
    return values[-1] - values[len(values) // 2]


def layers_after_peak(run: Run) -> float:
    """Return how many layers follow the one where the mean similarity to the simple averages peaks."""
    values = _curve(run, "simple", "mean")
    if len(values) < 2:
        raise UndefinedStatistic("one layer only")
    return float(len(values) - 1 - int(np.argmax(values)))


def _worst_class(run: Run) -> int:
    """Return the class of the lowest test accuracy.

    Raises:
        UndefinedStatistic: Several classes share it.
    """
    accuracies = {row["class"]: row["value"] for row in reduced(run, CLASSES, class_accuracies)}
    known = {number: value for number, value in accuracies.items() if math.isfinite(value)}
    lowest = [number for number, value in known.items() if value == min(known.values())]
    if len(lowest) != 1:
        raise UndefinedStatistic("several classes have the lowest accuracy")
    return int(lowest[0])


def _worst_lag(run: Run, average: str, quantity: str) -> float:
    """Return a curve of the class of the lowest accuracy minus the mean over the classes, mean over the layers."""
    own, every = _curve(run, average, quantity, _worst_class(run)), _curve(run, average, quantity)
    return float(np.mean(own) - np.mean(every))


def worst_class_least_lag(run: Run) -> float:
    """Return how far the worst class's similarity with its least confident average is above the mean of classes."""
    return _worst_lag(run, "least", "mean")


def worst_class_least_over_most_lag(run: Run) -> float:
    """Return the same minus what it is with the most confident averages."""
    return _worst_lag(run, "least", "mean") - _worst_lag(run, "most", "mean")


def worst_class_least_deviation(run: Run) -> float:
    """Return how far the worst class's standard deviation with its least confident average is above the mean."""
    return _worst_lag(run, "least", "sd")


_TABLES_4 = (
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
        id="thesis_4-2",
        title="Test accuracy by class",
        source=f"{_THESIS} 4-2",
        direction="one class clearly below the others",
        inputs=(CLASSES,),
        function=table_classes,
        columns="quantity",
        caption="Test accuracy of each class in percent, of the well-trained network, to which our similarity values "
        "belong; the thesis measures the network after the last epoch and prints shares. Its lowest is class 2 with "
        "51.8 %. The classes of other data are other classes: no published values stand beside them.",
    ),
)
_STATISTICS_4 = (
    most_over_simple_recognised,
    least_recognised,
    most_recognised,
    ascended_recognised,
    similarity_trend,
    late_deviation_growth,
    layers_after_peak,
    worst_class_least_lag,
    worst_class_least_over_most_lag,
    worst_class_least_deviation,
    accuracy_after_training,
    loss_gap_after_training,
    loss_trend_after_lowest,
)


# ---------------------------------------------------------------------------------------------------------------------
# Chapter 5: pruning


def pruned_accuracies(frame: pd.DataFrame) -> list[Row]:
    """Return the accuracy (0 to 1) left without each group of neurons, by layer and pruned share."""
    places = positions(frame)
    names = {"most": "most similar", "least": "least similar", "random": "random neurons"}
    rows = []
    for (layer, _), part in frame.groupby(["layer", "fraction"]):
        keys = {"position": places[str(layer)], "layer": layer, "pruned": percent(part["fraction"].iloc[0])}
        accuracy = {str(group): mean_of(draws["accuracy"]) for group, draws in part.groupby("group")}
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


def table_pruning(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill thesis 5-1: accuracy after pruning by similarity. Source: Wang Xinyuan, bachelor's thesis, ch. 5."""
    keys = ("position", "layer", "pruned")
    ours = summarise(measure(runs, PRUNING, pruned_accuracies, "nothing pruned"), keys, "accuracy undefined")
    fractions = published[published["quantity"] == "pruned fraction"].set_index("layer")["value"]
    rows = published_rows(published[published["quantity"] != "pruned fraction"], runs)
    for row in rows:
        layer = row.pop("layer")
        row["position"], row["pruned"] = int(layer) + 1, percent(fractions[layer] / 100)
    return assemble(ours, rows, published, keys, "this share of this layer was not pruned in these runs")


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
    measured = _with_choices(measure(runs, LAYERS, cut_results, "not cut, or it cannot be cut"))
    ours = summarise(measured, keys, "the similarity curve chose another cut")
    cuts = {(row["dataset"], row["model"], row["convolutions"]) for row in ours}
    rows = published_rows(published[published["quantity"] != "best test accuracy"], runs)
    for row in rows:
        row["convolutions"] = int(row["convolutions"])
        if (row["dataset"], row["model"], row["convolutions"]) in cuts:
            del row["chosen"]  # the same network stands beside ours, whichever curve chose it
    return assemble(ours, rows, published, keys, "not one of the cuts of these runs")


def _damages(run: Run, other: str) -> list[float]:
    """Return per layer how much less accuracy is left when the most similar are pruned, instead of the other group."""
    rows = reduced(run, PRUNING, pruned_accuracies)
    most, others = (
        values_of(rows, "accuracy undefined", quantity=f"accuracy, {group} pruned") for group in ("most similar", other)
    )
    return [b - a for a, b in zip(most, others, strict=True)]


def most_over_least_damage(run: Run) -> float:
    """Return the accuracy left without the least similar neurons minus without the most similar, mean over layers."""
    return float(np.mean(_damages(run, "least similar")))


def layers_where_most_hurts_more(run: Run) -> float:
    """Return the share of layers that keep less accuracy without the most than without the least similar neurons."""
    return float(np.mean([damage > 0 for damage in _damages(run, "least similar")]))


def most_over_random_damage(run: Run) -> float:
    """Return the accuracy left without random neurons minus without the most similar, mean over layers."""
    return float(np.mean(_damages(run, "random neurons")))


def _cuts(run: Run) -> tuple[int, dict[int, float]]:
    """Return after how many convolutions the similarity curve cuts, and the test accuracy (%) by convolutions kept.

    Raises:
        UndefinedStatistic: The curve peaks at the last layer, or there is no file.
    """
    rows = reduced(run, LAYERS, cut_results)
    kept = {row["convolutions"]: row["chosen"] for row in rows}
    accuracies = {
        count: values_of(rows, "accuracy undefined", convolutions=count, quantity="test accuracy")[0] for count in kept
    }
    cut = next(count for count, chosen in kept.items() if chosen)
    if cut == max(kept):
        raise UndefinedStatistic("the similarity curve peaks at the last layer: nothing is cut")
    return cut, accuracies


def cut_over_whole(run: Run) -> float:
    """Return the test accuracy of the network cut where the similarity curve peaks minus that of the whole one (pp)."""
    cut, accuracies = _cuts(run)
    return accuracies[cut] - accuracies[max(accuracies)]


def cut_over_later(run: Run) -> float:
    """Return the test accuracy of the network cut where the similarity curve peaks minus that one layer later (pp)."""
    cut, accuracies = _cuts(run)
    return accuracies[cut] - accuracies[cut + 1]


def lowest_losses(frame: pd.DataFrame) -> list[Row]:
    """Return the epoch of the lowest validation loss of each network that was cut, and of the whole."""
    lowest = frame.sort_values("validation_loss", kind="stable").drop_duplicates("convolutions")
    return [
        {
            "convolutions": int(row["convolutions"]),
            "chosen": bool(row["chosen"]),
            "quantity": "epoch",
            "value": float(row["epoch"]),
        }
        for row in records_of(lowest)
    ]


def _delay(run: Run, later: bool) -> float:
    """Return the epoch of the lowest validation loss of the cut network minus that of another one."""
    rows = {row["convolutions"]: row for row in reduced(run, HISTORIES, lowest_losses)}
    cut = next(count for count, row in rows.items() if row["chosen"])
    if cut == max(rows):
        raise UndefinedStatistic("the similarity curve peaks at the last layer: nothing is cut")
    return float(rows[cut]["value"] - rows[cut + 1 if later else max(rows)]["value"])


def cut_delay_over_whole(run: Run) -> float:
    """Return how many epochs later the cut network has its lowest validation loss than the whole one."""
    return _delay(run, later=False)


def cut_delay_over_later(run: Run) -> float:
    """Return how many epochs later the cut network has its lowest validation loss than one cut a layer later."""
    return _delay(run, later=True)


_TABLES_5 = (
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
_STATISTICS_5 = (
    most_over_least_damage,
    layers_where_most_hurts_more,
    most_over_random_damage,
    cut_over_whole,
    cut_over_later,
    cut_delay_over_whole,
    cut_delay_over_later,
)


TABLES = {table.id: table for table in (*_TABLES_4, *_TABLES_5)}
STATISTICS = {function.__name__: function for function in (*_STATISTICS_2, *_STATISTICS_4, *_STATISTICS_5)}
