"""The claims of the sources: sentences that can fail, their statistics and their verdicts.

A claim is a statistic of one run, a side of a threshold on which it has to lie, and the verdict over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd

from nnscan.contents import CONTENTS, OVER_RUNS, STATISTICS
from nnscan.errors import ArtifactError, ConfigurationError, did_you_mean
from nnscan.tables import NotAsked, Row, Run, UndefinedStatistic, interval, named_seeds, records_of, sort_key, typed

Verdict = Literal["reproduced", "contradicted", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "contradicted", "inconclusive")
EVERY = "all"  # models, of a statistic over the runs of a data set
Value = TypeVar("Value")
_CLAIM_COLUMNS = (
    *("id", "table", "dataset", "model", "statement", "direction", "threshold", "unit"),
    *("statistic", "ci_low", "ci_high", "seeds", "undefined", "verdict", "note", "remark", "source"),
)


@dataclass(frozen=True)
class Claim:
    """A sentence of a source that can fail: its statistic lies on one side of the threshold.

    Attributes:
        id: Name of the claim.
        table: Id of the table or figure that it speaks about (`contents.CONTENTS`).
        statement: The claim in a sentence.
        statistic: Name of a function in `STATISTICS`, or in `OVER_RUNS`.
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
        for column, known in (
            ("table", CONTENTS),
            ("statistic", {**STATISTICS, **OVER_RUNS}),
            ("direction", ("greater", "less")),
        ):
            if row[column] not in known:
                asked = f"claim {row['id']!r} in {path} names the {column} {row[column]!r}"
                raise ConfigurationError(asked + did_you_mean(row[column], known))
        lists = {column: tuple(name for name in row[column].split(";") if name) for column in ("models", "datasets")}
        claims.append(Claim(**{**row, **lists, "threshold": float(row["threshold"])}))
    return claims


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
    """Evaluate each claim for each data set and model that it speaks about, and of which the study asks for it.

    Args:
        claims: The claims.
        runs: The runs; a statistic of one run gives one value, the seeds are the sample. A statistic over runs takes
            all of a data set that the claim speaks about and has an interval of its own; its model is "all".

    Returns:
        One row per claim, data set and model: id, table, dataset, model, statement, direction, threshold, unit,
        statistic (mean over the seeds that have one), ci_low, ci_high (95 % t interval), seeds (with a value; for a
        statistic over runs, runs), undefined (seeds or runs without one), verdict, note (why a value or an interval is
        missing), remark and source (of the claim).
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs):
        groups.setdefault((run.dataset, run.model), []).append(run)
    order = sorted(groups, key=lambda group: (group[0], sort_key("model", group[1])))
    rows = []
    for claim in claims:
        spoken = [
            group
            for group in order
            if (not claim.datasets or group[0] in claim.datasets) and (not claim.models or group[1] in claim.models)
        ]
        parts = {group: groups[group] for group in spoken}
        judge = _over_seeds
        if claim.statistic in OVER_RUNS:
            judge = _over_runs
            datasets = dict.fromkeys(dataset for dataset, _ in spoken)
            parts = {
                (name, EVERY): [run for group in spoken if group[0] == name for run in groups[group]]
                for name in datasets
            }
        for (dataset, model), own in parts.items():
            try:
                found = judge(claim, own)
            except NotAsked:
                continue
            rows.append(
                {
                    **{name: getattr(claim, name) for name in ("id", "table")},
                    "dataset": dataset,
                    "model": model,
                    **{name: getattr(claim, name) for name in ("statement", "direction", "threshold", "unit")},
                    **found,
                    "verdict": verdict(found["ci_low"], found["ci_high"], claim.direction, claim.threshold),
                    "remark": claim.remark,
                    "source": claim.source,
                }
            )
    return typed(pd.DataFrame(rows, columns=_CLAIM_COLUMNS))


def _sampled(function: Callable[[Run], Value], runs: Sequence[Run]) -> tuple[list[Value], dict[str, list[Run]]]:
    """Return the values of the runs that have one, and the others by the reason why not.

    Raises:
        NotAsked: Of no run the study asks for what the statistic takes.
    """
    values: list[Value] = []
    reasons: dict[str, list[Run]] = {}
    unasked: list[NotAsked] = []
    for run in runs:
        try:
            values.append(function(run))
        except UndefinedStatistic as reason:
            reasons.setdefault(str(reason), []).append(run)
            unasked += [reason] if isinstance(reason, NotAsked) else []
    if runs and len(unasked) == len(runs):
        raise unasked[0]
    return values, reasons


def _over_seeds(claim: Claim, runs: Sequence[Run]) -> Row:
    values, reasons = _sampled(STATISTICS[claim.statistic], runs)
    mean, low, high = interval(values)
    notes = [f"undefined for {named_seeds(run.seed for run in own)}: {reason}" for reason, own in reasons.items()]
    if len(values) == 1:
        notes.append("one seed has a value: no interval")
    return {
        **{"statistic": mean, "ci_low": low, "ci_high": high, "seeds": len(values)},
        **{"undefined": len(runs) - len(values), "note": "; ".join(notes)},
    }


def _over_runs(claim: Claim, runs: Sequence[Run]) -> Row:
    values, reasons = _sampled(OVER_RUNS[claim.statistic].of_run, runs)
    notes = []
    for reason, own in reasons.items():
        models = dict.fromkeys(run.model for run in own)
        named = [f"{model} {named_seeds(run.seed for run in own if run.model == model)}" for model in models]
        notes.append(f"undefined for {', '.join(named)}: {reason}")
    try:
        statistic, low, high = OVER_RUNS[claim.statistic].combine(values)
    except UndefinedStatistic as reason:
        statistic = low = high = math.nan
        notes.append(f"undefined: {reason}")
    return {
        **{"statistic": statistic, "ci_low": low, "ci_high": high, "seeds": len(values)},
        **{"undefined": len(runs) - len(values), "note": "; ".join(notes)},
    }
