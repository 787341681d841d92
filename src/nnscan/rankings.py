"""How methods of explanation rank by each score, and where scores disagree.

Nothing here imports torch: the tables need it, and tables are rendered without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from nnscan.layout import QUESTIONS

FEWEST = 5
"""Methods at least that two scores must have in common for their agreement."""

FILES = {question: f"explainers/{question}.parquet" for question in QUESTIONS}
"""The files of scores of a run, by question; they have the columns `metrics.COLUMNS`."""

RETRAINING = "explainers/retraining.parquet"
IMAGES = "explainers/images.parquet"

PICTURES = {
    "probability of the class": "What the network that the image was made for gives the class (softmax).",
    "agreement of the judges": "Share of the networks of other seeds whose answer is the class.",
    "distance to training images": "Root mean square over pixels and channels of the difference to the nearest "
    "training image, in units of the network's input. Validation images say what is usual; far less would be a copy.",
}
"""The numbers of images of classes, which methods that explain inputs do not have, and what they mean."""

_LABELS = "no network was trained on shuffled labels"
_PROMISE = "the method promises no sum"
_STAGES = "there is one stage of random layers only"


class Measure(NamedTuple):
    """A number that tables show of a method: a metric in one of its cases.

    Attributes:
        quantity: Its name in tables (`tables.QUANTITIES`).
        metric: Name of the metric (`metrics.Metric`).
        question: What is asked of an explanation, as of the metric.
        direction: Which values are better, as of the metric; None where neither are.
        case: Regular expression of the metric's cases that count.
        ranked: Whether methods are ranked by it. Where a metric has several cases, one is.
        absent: Why a method that has maps may have no such number.
        least: Values below this one say only that they are little: ranks take them as equal.
    """

    quantity: str
    metric: str
    question: str
    direction: Literal["higher", "lower"] | None
    case: str = ""
    ranked: bool = False
    absent: str = ""
    least: float = -math.inf

    @property
    def path(self) -> str:
        """The file of a run that holds it."""
        return FILES.get(self.question, FILES["faithfulness"])


def _compared(name: str, metric: str, case: str, ranked: bool, absent: str) -> list[Measure]:
    """Return the three ways of comparing maps of two networks."""
    ways = {"rank": "rank", "rank of sizes": "rank_size", "SSIM": "ssim"}
    return [
        Measure(f"{name}, {way}", f"{metric}_{ending}", "sanity", "lower", case, ranked, absent)
        for way, ending in ways.items()
    ]


def _stepped() -> list[Measure]:
    """Return how much of a map is left after a step of FGSM, by the step's size and whether the answer stays.

    Methods are ranked by what is left on all images after the small step: few may keep their answer.
    """
    cases = {
        "0.031": "(kept|flipped) at 0.031",
        **{f"{size}, same answer": f"kept at {size}" for size in ("0.031", "0.25")},
        **{f"{size}, other answer": f"flipped at {size}" for size in ("0.031", "0.25")},
    }
    return [
        Measure(
            f"FGSM {name}, {way}",
            f"fgsm_{way}",
            "stability",
            "higher",
            case.replace(".", r"\."),
            name == "0.031",
            "no image has this answer after this step",
        )
        for way in ("rank", "peaks")
        for name, case in cases.items()
    ]


def _attacked() -> list[Measure]:
    """Return how much of a map is left after an attack on the gradient map, and after a random change of that size."""
    changes = {"target": "attack to a target", "peaks": "attack on the peaks", "chance": "random change"}
    return [
        Measure(f"{name}, {way}", f"attack_{way}", "attack", "higher", case, case == goal)
        for way, goal in (("rank", "target"), ("peaks", "peaks"))
        for case, name in changes.items()
    ]


MEASURES: tuple[Measure, ...] = (
    Measure("IoU at 0.5", "iou", "localisation", "higher", r"0\.5", ranked=True),
    Measure("IoU at 0.2", "iou", "localisation", "higher", r"0\.2"),
    Measure("pointing game", "pointing", "localisation", "higher", ranked=True),
    Measure("energy inside the object", "energy", "localisation", "higher", ranked=True),
    Measure("deletion", "deletion", "faithfulness", "lower", ranked=True),
    Measure("insertion", "insertion", "faithfulness", "higher", ranked=True),
    Measure("roughness", "roughness", "noise", None),
    Measure("residual", "residual", "completeness", "lower", absent=_PROMISE),
    *_compared("random network", "parameters", "all", True, ""),
    *_compared("random last layers", "parameters", "(?!all$).+", False, _STAGES),
    *_compared("random labels", "labels", "", True, _LABELS),
    Measure("noise, rank", "noise_rank", "stability", "higher", ranked=True),
    Measure("max-sensitivity", "max_sensitivity", "stability", "lower", ranked=True),
    *_stepped(),
    *_attacked(),
    Measure("attack to a target, approach", "attack_approach", "attack", "lower", "target", ranked=True),
    Measure("random change, approach", "attack_approach", "attack", "lower", "chance"),
    Measure("time per image", "seconds", "cost", "lower", ranked=True),
    Measure("memory per image", "megabytes", "cost", "lower", ranked=True, least=1),
)
"""The numbers of methods that explain inputs, in the order of tables."""

RANKED = {measure.quantity: measure for measure in MEASURES if measure.ranked}


def means(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the mean over the images of each method and measure in a run's file of scores.

    Args:
        scores: Of `metrics.COLUMNS`.

    Returns:
        Of each method and measure that the file speaks of: method, quantity, value (mean over the images that have
        one), images, without (how many of them have no value) and reason (why).
    """
    scores = scores[scores["method"] != ""]
    missing = scores[scores["value"].isna()]
    cases: dict[tuple[str, str], list[_Case]] = {}
    reasons = missing.groupby(["metric", "case", "method"])["reason"].unique().to_dict()
    own = scores.groupby(["metric", "method", "case"], sort=False)["value"].agg(["sum", "count", "size"])
    for (metric, method, case), total, count, size in own.itertuples(name=None):
        found = _Case(case, total, count, size, tuple(reasons.get((metric, case, method), ())))
        cases.setdefault((metric, method), []).append(found)
    rows = []
    for measure in MEASURES:
        for (metric, method), every in cases.items():
            if metric != measure.metric:
                continue
            # a method that refuses has rows without a case
            chosen = [one for one in every if re.fullmatch(measure.case, one.name) or (not one.name and not one.known)]
            if not chosen:
                continue
            count, images = sum(one.known for one in chosen), sum(one.images for one in chosen)
            rows.append(
                {
                    **{"method": method, "quantity": measure.quantity},
                    "value": sum(one.total for one in chosen) / count if count else math.nan,
                    **{"images": images, "without": images - count},
                    "reason": "; ".join(dict.fromkeys(reason for one in chosen for reason in one.reasons)),
                }
            )
    return rows


class _Case(NamedTuple):
    """The scores of a method in a case of a metric: their sum, how many there are, of how many, why not more."""

    name: str
    total: float
    known: int
    images: int
    reasons: tuple[str, ...]


def places(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the place of each method by each measure: 0 the best, 1 the worst, evenly between; NaN without a score.

    Equal scores share the mean of their places. Of a measure that one method alone has there are none.

    Args:
        scores: Methods in rows, quantities of `RANKED` in columns.
    """
    ranks = ranked(scores)
    others = scores.notna().sum() - 1
    return (ranks - 1) / others.where(others > 0)


def ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rank of each method by each measure, from 1, the best; equal scores share a mean rank."""
    return _oriented(scores).rank(ascending=False)


def _oriented(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores of which larger ones are better."""
    told = scores.clip(lower=pd.Series({name: RANKED[str(name)].least for name in scores.columns}), axis=1)
    return told * [1 if RANKED[str(name)].direction == "higher" else -1 for name in scores.columns]


def by_question(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean place of each method by question; NaN where it has none.

    Args:
        found: Of `places`.
    """
    questions = list(dict.fromkeys(RANKED[str(name)].question for name in found.columns))
    own = {
        question: found[[name for name in found.columns if RANKED[str(name)].question == question]].mean(axis=1)
        for question in questions
    }
    return pd.DataFrame(own, index=found.index)


def agreement(scores: pd.DataFrame, kind: Literal["kendall", "spearman"]) -> pd.DataFrame:
    """Return how alike measures rank methods: 1 alike, -1 the other way round, NaN where that cannot be told.

    Methods that have both scores count; there must be `FEWEST` of them, and neither score may be constant.

    Args:
        scores: Methods in rows, quantities of `RANKED` in columns.
        kind: Kendall's tau-b or Spearman's rank correlation.
    """
    return _oriented(scores).corr(kind, min_periods=FEWEST)


def disputed(questions: pd.DataFrame) -> pd.Series[float]:
    """Return how far apart the mean places of each method by two questions are at most (0 to 1), the widest first.

    Args:
        questions: Of `by_question`; a method needs two.
    """
    span = questions.max(axis=1) - questions.min(axis=1)
    return span[questions.notna().sum(axis=1) > 1].sort_values(ascending=False, kind="stable")


def wide(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows of method, quantity and value as scores: methods in rows, quantities of `RANKED` in columns.

    Rows of several seeds are averaged over those that have a value. A method without any value is left out, a quantity
    that no method has likewise.
    """
    frame = pd.DataFrame(rows, columns=["method", "quantity", "value"])
    frame = frame[frame["quantity"].isin(RANKED) & frame["value"].notna()]
    table = frame.pivot_table(values="value", index="method", columns="quantity", aggfunc="mean")
    methods = list(dict.fromkeys(frame["method"]))
    return table.reindex(index=methods, columns=[name for name in RANKED if name in table.columns]).astype(float)
