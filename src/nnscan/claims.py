"""The claims of the sources: sentences that can fail, their statistics and their verdicts.

A claim is a statistic of one run, a side of a threshold on which it has to lie, and the verdict over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t

from nnscan.errors import ArtifactError, ConfigurationError, NnscanError, did_you_mean
from nnscan.tables import (
    AIPC,
    ANOMALY,
    ANOMALY_MASKING,
    DIVERSITY_MASKING,
    GRADIENTS,
    LAST_EPOCH,
    LAYERS,
    MEAN_LAYER,
    PROPERTIES,
    PROPERTY,
    PRUNING,
    QUANTITY,
    RESULTS,
    TABLES,
    Reducer,
    Row,
    Run,
    accuracy_changes,
    anomaly_counts,
    areas,
    collect,
    cut_results,
    gradients,
    loss_changes,
    missing,
    named_seeds,
    pruned_accuracies,
    quantity_by_layer,
    rank_correlation,
    rank_correlations,
    records_of,
    sort_key,
    training_results,
    typed,
)


class UndefinedStatistic(NnscanError):
    """A claim's statistic has no value in a run; the text says why."""


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of one run


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
    values = [float(row["value"]) for row in sorted(found, key=lambda row: sort_key("position", row.get("position")))]
    if not all(math.isfinite(value) for value in values):
        raise UndefinedStatistic(undefined)
    return values


def fq_rise(run: Run) -> float:
    """Return the mean FQ of the last layer minus that of the first."""
    values = _values(_reduced(run, QUANTITY, quantity_by_layer), "no foreground mask", quantity="FQ")
    return values[-1] - values[0]


def ssim_trend(run: Run) -> float:
    """Return the rank correlation of a layer's position with its mean SSIM."""
    values = _values(_reduced(run, QUANTITY, quantity_by_layer), "SSIM undefined", quantity="SSIM")
    trend = rank_correlation(pd.Series(range(len(values))), pd.Series(values))
    if math.isnan(trend):
        raise UndefinedStatistic("no trend: one layer, or the same SSIM in all")
    return trend


def _loss_lead(run: Run, other: str) -> float:
    rows = _reduced(run, DIVERSITY_MASKING, loss_changes)
    changes = [_values(rows, "loss not finite", layer=MEAN_LAYER, group=group)[0] for group in ("top", other)]
    return changes[0] - changes[1]


def loss_top_over_bottom(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without the least, mean over layers (%)."""
    return _loss_lead(run, "bottom")


def loss_top_over_random(run: Run) -> float:
    """Return the loss change without the most diverse filters minus that without random ones, mean over layers (%)."""
    return _loss_lead(run, "random")


def _area(run: Run, ranking: str) -> float:
    rows = _reduced(run, AIPC, areas)
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
    rows = _reduced(run, PROPERTY, rank_correlations)
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
        name: _values(_reduced(run, path, anomaly_counts), "undefined", quantity="anomaly filters")[0]
        for name, path in ANOMALY.items()
    }
    return counts["overfitted"] - counts["well_trained"]


def _gradient(run: Run, checkpoint: str, group: str) -> float:
    rows = _reduced(run, GRADIENTS, gradients)
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
    rows, undefined = _reduced(run, ANOMALY_MASKING, accuracy_changes), "accuracy undefined"
    if not any(row["checkpoint"] == "overfitted" for row in rows):
        raise UndefinedStatistic("no anomaly filters in the overfitted network, or no such network")
    change = {
        group: _values(rows, undefined, checkpoint="overfitted", group=group, quantity="accuracy change")[0]
        for group in ("anomaly", "random")
    }
    return change["anomaly"] - change["random"]


def accuracy_after_training(run: Run) -> float:
    """Return the test accuracy after the last regular epoch (%)."""
    rows = _reduced(run, RESULTS, training_results)
    return _values(rows, "accuracy undefined", checkpoint=LAST_EPOCH, quantity="test accuracy")[0]


def loss_gap_after_training(run: Run) -> float:
    """Return the test loss minus the training loss after the last regular epoch."""
    rows = _reduced(run, RESULTS, training_results)
    test, training = (
        _values(rows, "loss not finite", checkpoint=LAST_EPOCH, quantity=f"{split} loss")[0]
        for split in ("test", "training")
    )
    return test - training


def _damages(run: Run, other: str) -> list[float]:
    """Return per layer how much less accuracy is left when the most similar are pruned, instead of the other group."""
    rows = _reduced(run, PRUNING, pruned_accuracies)
    most, others = (
        _values(rows, "accuracy undefined", quantity=f"accuracy, {group} pruned") for group in ("most similar", other)
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
    rows = _reduced(run, LAYERS, cut_results)
    kept = {row["convolutions"]: row["chosen"] for row in rows}
    accuracies = {
        count: _values(rows, "accuracy undefined", convolutions=count, quantity="test accuracy")[0] for count in kept
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
        cut_over_whole,
        cut_over_later,
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# Verdicts over the seeds


Verdict = Literal["reproduced", "contradicted", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "contradicted", "inconclusive")
_CLAIM_COLUMNS = (
    *("id", "table", "dataset", "model", "statement", "direction", "threshold", "unit"),
    *("statistic", "ci_low", "ci_high", "seeds", "undefined", "verdict", "note", "remark", "source"),
)


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
    order = sorted(groups, key=lambda group: (group[0], sort_key("model", group[1])))
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
            notes = [f"undefined for {named_seeds(seeds)}: {reason}" for reason, seeds in reasons.items()]
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
    return typed(pd.DataFrame(rows, columns=_CLAIM_COLUMNS))
