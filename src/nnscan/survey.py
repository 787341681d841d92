"""Tables and statistics of methods of explanation: the survey's tables with what was measured beside, and all scores.

The survey is Si Nianwen et al., "Representation visualization of convolutional neural networks: A survey" (Acta
Automatica Sinica 48(8), 2022). What it prints of a method is words; they stand beside those of `explainers.METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnscan.configuration import CONTROLS
from nnscan.rankings import FILES, IMAGES, MEASURES, PICTURES, RETRAINING, Measure, means
from nnscan.tables import (
    BASE,
    MISSING,
    OURS,
    QUANTITIES,
    NotAsked,
    Row,
    Run,
    Table,
    UndefinedStatistic,
    collect,
    interval,
    measure,
    missing,
    named_seeds,
    records_of,
    require_learned_labels,
    sort_key,
    summarise,
    typed,
)

if TYPE_CHECKING:
    from nnscan.explanations import Method

VALIDATION = "validation"
"""Images of the validation split, beside which images of classes stand."""

_COSTS = {"time per image": "seconds", "memory per image": "megabytes"}

FACTS = (
    "family",
    "paper",
    "year",
    "detail",
    "depends on the class",
    "online",
    "access to the model",
    "explains",
    "scope",
    "needs",
)
"""What table 3 says of a method: the survey's columns, and the paper and what the method needs."""

_WITHOUT = {  # why an image lacks a number
    "agreement": "no network of another seed judges them",
    "megabytes": "the memory of a process cannot be told on this system",
}
_EXPLAINS = {  # the survey's terms, of ours
    "class score": "output class",
    "class probability": "output class",
    "log-odds of the class": "output class",
    "class": "output class",
}
_SHUFFLED = {measure.quantity for measure in MEASURES if measure.metric.startswith("labels_")}
_GRADIENT = ("vanilla_gradient", "guided_backpropagation", "smooth_grad", "integrated_gradients", "rectified_gradient")
_CAM = ("cam", "grad_cam", "grad_cam_plus_plus", "score_cam")
_SOURCE = "Si Nianwen et al. 2022, Representation visualization of CNNs"


# ---------------------------------------------------------------------------------------------------------------------
# From the runs to rows


def _methods() -> Mapping[str, Method]:
    """Return the register; methods need torch, which the other tables do without."""
    from nnscan.explainers import METHODS

    return METHODS


def title_of(method: Method) -> str:
    """Return the title of a method in tables, with its group where that is not one of the survey's."""
    return f"{method.title} ({method.family})" if method.family in ("nnscan", "control") else method.title


def picture_means(frame: pd.DataFrame) -> list[Row]:
    """Return the mean over the images of each method that makes images of classes; as `rankings.means`."""
    rows = []
    columns = dict(zip(PICTURES, ("probability", "agreement", "distance"), strict=True)) | _COSTS
    for quantity, column in columns.items():
        for method, own in frame.groupby("method", sort=False):
            if method == VALIDATION and quantity in _COSTS:  # nobody made them
                continue
            absent = own[column].isna()
            reasons = dict.fromkeys(own["reason"][absent].replace("", _WITHOUT.get(column, "")))
            value = math.nan if absent.all() else float(own[column].mean())
            rows.append(
                {"method": str(method), "quantity": quantity, "value": value, "images": len(own),
                 "without": int(absent.sum()), "reason": "; ".join(reasons)}
            )  # fmt: skip
    return rows


def retrained(frame: pd.DataFrame) -> list[Row]:
    """Return the test accuracy (%) of networks that were trained without pixels, by method and share removed."""
    return [
        {"method": row["method"], "removed": f"{100 * float(row['case']):g} %", "quantity": "accuracy without pixels",
         "value": 100 * float(row["value"]), "images": 1, "without": 0, "reason": row["reason"]}
        for row in records_of(frame)
    ]  # fmt: skip


def measured(runs: Sequence[Run]) -> list[Row]:
    """Return what was measured of each method in each run; a file that is missing or empty has a row that says so.

    What was measured on a network that has not learned its shuffled labels has a remark that says so.
    """
    rows: list[Row] = []
    for question, path in FILES.items():
        empty = "no foreground masks" if question == "localisation" else "no method that explains inputs"
        rows += measure(runs, path, means, "not evaluated", empty)
    doubts = {(run.dataset, run.model, run.seed): _doubt(run) for run in runs}
    for row in rows:
        if row["quantity"] in _SHUFFLED:
            row["remark"] = doubts[row["dataset"], row["model"], row["seed"]]
    return rows + measure(runs, IMAGES, picture_means, "no images of classes made")


def _doubt(run: Run) -> str:
    """Return why a comparison with the network trained on shuffled labels says little; empty where it does not."""
    try:
        require_learned_labels(run)
    except UndefinedStatistic as error:
        return str(error)
    return ""


def summaries(rows: Iterable[Row], *keys: str) -> list[Row]:
    """Return mean, spread, interval and number of seeds of each network, method, quantity and further key."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        names = (*BASE, "method", *keys, "quantity")
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    found = []
    for group in groups.values():
        values = [row["value"] for row in group if math.isfinite(row["value"])]
        mean, low, high = interval(values)
        found.append(
            {
                **{name: group[0][name] for name in (*BASE, "method", *keys, "quantity")},
                **{"ours": mean, "spread": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan},
                **{"seeds": len(values), "ci_low": low, "ci_high": high, "note": _note(group)},
            }
        )
    return found


def _note(group: Sequence[Row]) -> str:
    """Return why seeds, or some of their images, have no value, and what is to be said of those that have one."""
    unknown = [row for row in group if not math.isfinite(row["value"])]
    partly = [row for row in group if row["without"] and math.isfinite(row["value"])]
    notes = []
    if unknown:
        why = "; ".join(dict.fromkeys(row["reason"] for row in unknown))
        notes.append(why if len(unknown) == len(group) else f"{named_seeds(row['seed'] for row in unknown)}: {why}")
    if partly:
        without, images = (sum(row[name] for row in partly) for name in ("without", "images"))
        why = "; ".join(dict.fromkeys(row["reason"] for row in partly))
        notes.append(f"{without} of {images} images have no value: {why}")
    doubted: dict[str, list[int]] = {}
    for row in group:
        if math.isfinite(row["value"]) and row.get("remark"):
            doubted.setdefault(row["remark"], []).append(row["seed"])
    notes += [f"{named_seeds(seeds)}: {remark}" for remark, seeds in doubted.items()]
    return "; ".join(notes)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _complete(rows: Sequence[Row], quantities: Sequence[str], methods: Container[str]) -> list[Row]:
    """Return the rows of some methods and quantities, and one with a reason for each that is not there."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for gap in summarise([row for row in rows if row["quantity"] == MISSING], (), ""):
        lacking.setdefault((gap["dataset"], gap["model"]), []).append(gap["note"])
    own = summaries(row for row in rows if row["quantity"] != MISSING)
    by_key = {(row["dataset"], row["model"], row["method"], row["quantity"]): row for row in own}
    painters = {(row["dataset"], row["model"], row["method"]) for row in own if row["quantity"] in PICTURES}
    painted = {(dataset, model) for dataset, model, method in painters if method != VALIDATION}
    named = dict.fromkeys((row["dataset"], row["model"], row["method"]) for row in own)
    asked = {one.quantity: one for one in MEASURES}
    found = []
    for key in named:
        network, method = key[:2], key[2]
        if method not in methods or (method == VALIDATION and network not in painted):
            continue
        for quantity in quantities:
            row = by_key.get((*key, quantity))
            why = "" if row else _absent(asked.get(quantity), method, key in painters, lacking.get(network, []))
            blank = {"ours": math.nan, "spread": math.nan, "seeds": 0, "ci_low": math.nan, "ci_high": math.nan}
            base = {"dataset": network[0], "model": network[1], "method": method, "quantity": quantity}
            found.append(row or {**base, **blank, "note": why})
    found += [
        {"dataset": dataset, "model": model, "method": "", "quantity": MISSING, "ours": math.nan, "note": note}
        for (dataset, model), notes in lacking.items()
        for note in notes
    ]
    return found


def _absent(asked: Measure | None, method: str, painter: bool, notes: Sequence[str]) -> str:
    """Return why a method has no number."""
    if method == VALIDATION:
        return "real images: they explain nothing"
    if painter:
        return "the method makes images of classes; it has no maps of inputs"
    if asked is None:
        return "the method makes no images"
    return next((note for note in notes if asked.path in note), asked.absent or "not measured")


def _table(rows: list[Row], *keys: str) -> pd.DataFrame:
    """Return a tidy frame of rows of methods, which stand in the register's order under their titles."""
    register = _methods()
    order = {name: place for place, name in enumerate((*register, VALIDATION))}
    for row in rows:
        row["unit"] = QUANTITIES[row["quantity"]][0] if row["quantity"] != MISSING else ""
        row["position"] = order.get(row["method"], len(order))
        row.update({name: row.get(name, "") for name in ("statement", "survey")})
    names = (*BASE, "position", *keys, "quantity")
    rows.sort(key=lambda row: [sort_key(key, row.get(key)) for key in names])
    titles = {name: title_of(method) for name, method in register.items()} | {VALIDATION: "validation images"}
    for row in rows:
        row["method"] = titles.get(row["method"], row["method"])
    numbers = ("ours", "spread", "seeds", "ci_low", "ci_high")
    order_of = [*BASE, "position", "method", *keys, "quantity", "unit", *numbers, "statement", "survey", "note"]
    return typed(pd.DataFrame(rows, columns=order_of))


def table_scores(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill all scores of all methods. No source prints such numbers."""
    rows, quantities = measured(runs), [*(one.quantity for one in MEASURES), *PICTURES]
    found = _complete(rows, quantities, {row["method"] for row in rows if row["quantity"] != MISSING})
    return _table(found).drop(columns=["statement", "survey"])


def table_retraining(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the accuracy of networks that were trained without pixels. No source prints numbers of such networks."""
    rows = measure(runs, RETRAINING, retrained, "not retrained")
    found = summaries((row for row in rows if row["quantity"] != MISSING), "removed")
    found += [{**row, "method": ""} for row in summarise([row for row in rows if row["quantity"] == MISSING], (), "")]
    return _table(found, "removed").drop(columns=["statement", "survey"])


def facts_of(method: Method) -> dict[str, str]:
    """Return what the register says of a method, in the survey's terms."""
    return {
        "family": method.family,
        "paper": method.paper,
        "year": str(method.year),
        "detail": method.detail or "image of a class",
        "depends on the class": "yes" if method.class_specific else "no",
        "online": "online" if method.online else "offline",
        "access to the model": "transparent" if method.transparent else "agnostic",
        "explains": method.explains,
        "scope": method.scope,
        "needs": ", ".join(method.needs) or "nothing",
    }


def agrees(fact: str, ours: str, survey: str) -> bool:
    """Return whether the register says of a fact what the survey prints: of several years or views, one."""
    if fact == "year":
        return ours in survey.split(", ")
    if fact == "explains":
        return _EXPLAINS.get(ours, ours) in survey
    return ours == survey


def _survey(
    runs: Sequence[Run],
    published: pd.DataFrame,
    quantities: Sequence[str],
    methods: Iterable[str],
    facts: Sequence[str],
) -> pd.DataFrame:
    """Return a table of the survey with numbers beside.

    Args:
        runs: The runs.
        published: What the survey prints.
        quantities: The numbers that stand beside.
        methods: Which stand in it, beside the controls.
        facts: What it states in words: the survey, the register of methods (`facts_of`), or both.
    """
    register = _methods()
    shown = {*methods, *CONTROLS}
    rows = _complete(measured(runs), quantities, shown)
    printed: dict[str, dict[str, str]] = {}
    for one in records_of(published):
        printed.setdefault(one["method"], {})[one["quantity"]] = one["statement"]
    networks: dict[tuple[str, str], set[str]] = {(run.dataset, run.model): set() for run in sorted(runs)}
    for row in rows:
        networks[row["dataset"], row["model"]].add(row["method"])
    for (dataset, model), found in networks.items():
        base = {"dataset": dataset, "model": model}
        for method in found - {""}:
            for fact in facts:
                says = facts_of(register[method]).get(fact, "") if method in register else ""
                survey = printed.get(method, {}).get(fact, "")
                differ = bool(says and survey) and not agrees(fact, says, survey)
                note = f"the survey prints “{survey}”" if differ else ""
                rows.append(
                    {**base, "method": method, "quantity": fact, "statement": says, "survey": survey, "note": note}
                )
        unasked = [title_of(register[name]) for name in register if name in shown - found]
        if found and unasked:
            note = f"not asked for: {', '.join(unasked)}"
            rows.append({**base, "method": "", "quantity": MISSING, "note": note})
    return _table(rows)


def table_gradients(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the survey's table 1: gradient methods."""
    numbers = ("roughness", "noise, rank", "max-sensitivity", "IoU at 0.5", "deletion", "insertion",
               "random network, rank of sizes", "time per image", "memory per image")  # fmt: skip
    return _survey(runs, published, numbers, _GRADIENT, ("basis of the map", "traits", *OURS))


def table_activation(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the survey's table 2: class activation maps."""
    numbers = ("IoU at 0.5", "pointing game", "energy inside the object", "deletion", "insertion", "noise, rank",
               "max-sensitivity", "random network, rank of sizes", "time per image", "memory per image")  # fmt: skip
    return _survey(runs, published, numbers, _CAM, ("channel weights", "advantages", "drawbacks", *OURS))


def table_methods(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Fill the survey's table 3: all methods."""
    numbers = ("IoU at 0.5", "pointing game", "energy inside the object", "deletion", "insertion",
               "random network, rank of sizes", "noise, rank", "max-sensitivity", "roughness", "residual",
               "time per image", "memory per image", "probability of the class",
               "agreement of the judges")  # fmt: skip
    return _survey(runs, published, numbers, (*_methods(), VALIDATION), FACTS)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of a run


def _values(run: Run, path: str, metric: str, method: str, case: str = "") -> pd.DataFrame:
    """Return sample, case and value of a method's scores.

    Raises:
        NotAsked: The study does not ask for the method.
        UndefinedStatistic: There is no such score; the text says why.
    """
    if missing([run], path):
        raise UndefinedStatistic(f"{path} is missing")
    frame = collect([run], path)
    if not len(frame):
        raise UndefinedStatistic(f"no rows in {path}")
    if method not in set(frame["method"]):
        raise NotAsked(f"{method} was not asked for")
    own = frame[(frame["method"] == method) & (frame["metric"] == metric)]
    chosen = own[own["case"].str.fullmatch(case) & own["value"].notna()]
    if not len(chosen):
        reasons = "; ".join(dict.fromkeys(own["reason"][own["reason"] != ""]))
        raise UndefinedStatistic(f"{method}: {reasons or f'no {metric} in this case'}")
    return chosen[[name for name in ("sample", "case", "value") if name in chosen]]


def _less(one: pd.DataFrame, two: pd.DataFrame, on: list[str], nothing: str) -> float:
    """Return the mean difference of two lists of values, paired by columns.

    Raises:
        UndefinedStatistic: They have no pair; the text is what `nothing` says.
    """
    pairs = one.merge(two, on=on, suffixes=("", "_other"))
    if not len(pairs):
        raise UndefinedStatistic(nothing)
    return float((pairs["value"] - pairs["value_other"]).mean())


def _difference(run: Run, asked: Measure, first: str, second: str) -> float:
    """Return the mean over the images of a score of one method minus that of another."""
    one, two = (_values(run, asked.path, asked.metric, method, asked.case) for method in (first, second))
    return _less(one, two, ["sample", "case"], f"{first} and {second} have no image in common")


def difference(quantity: str, first: str, second: str) -> Callable[[Run], float]:
    """Return the statistic: mean over the images of a score of one method minus that of another on the same image."""
    asked = next(one for one in MEASURES if one.quantity == quantity)
    return lambda run: _difference(run, asked, first, second)


def _seconds(run: Run, method: str) -> float:
    return float(_values(run, FILES["cost"], "seconds", method)["value"].mean())


def times(first: str, second: str) -> Callable[[Run], float]:
    """Return the statistic: how many times as long as another a method takes for an image."""
    return lambda run: _seconds(run, first) / _seconds(run, second)


def score_cam_over_family(run: Run) -> float:
    """Return how many times as long as the slowest other class activation map Score-CAM takes; some may refuse."""
    own, others = _seconds(run, "score_cam"), []
    for method in _CAM[:-1]:
        try:
            others.append(_seconds(run, method))
        except UndefinedStatistic:
            continue
    if not others:
        raise UndefinedStatistic("no other class activation map")
    return own / max(others)


def labels_guided_over_gradient(run: Run) -> float:
    """Return how much less guided backpropagation changes than the gradient, after training on shuffled labels.

    Raises:
        UndefinedStatistic: The network has not learned the shuffled labels by heart.
    """
    found = difference("random labels, rank of sizes", "guided_backpropagation", "vanilla_gradient")(run)
    require_learned_labels(run)  # of runs that are asked for the methods
    return found


def fine_over_regional(run: Run) -> float:
    """Return the mean roughness of the methods that are called fine-grained minus that of the regional ones."""
    register, path = _methods(), FILES["faithfulness"]
    if missing([run], path):
        raise UndefinedStatistic(f"{path} is missing")
    found: dict[str | None, list[float]] = {}
    for row in means(collect([run], path)):
        method = register.get(row["method"])
        if method and method.family not in ("control", "nnscan") and row["quantity"] == "roughness":
            found.setdefault(method.detail, []).append(row["value"])
    sides = [found.get(detail, []) for detail in ("fine-grained", "regional")]
    if not all(sides):
        raise NotAsked("no method of one of the two kinds was asked for")
    sides = [[value for value in side if math.isfinite(value)] for side in sides]
    if not all(sides):
        raise UndefinedStatistic("no method of one of the two kinds has maps")
    return float(np.mean(sides[0]) - np.mean(sides[1]))


def between_cases(metric: str, case: str, other: str, method: str = "vanilla_gradient") -> Callable[[Run], float]:
    """Return the statistic: a method's score in a case of the attack minus that in another, mean over the images."""

    def statistic(run: Run) -> float:
        one, two = (_values(run, FILES["attack"], metric, method, own) for own in (case, other))
        return _less(one, two, ["sample"], "no image has both")

    return statistic


def pictures(quantity: str, first: str, second: str) -> Callable[[Run], float]:
    """Return the statistic: mean over the classes of a number of images by one method minus that by another."""

    def statistic(run: Run) -> float:
        if missing([run], IMAGES):
            raise UndefinedStatistic(f"{IMAGES} is missing")
        rows = [row for row in picture_means(collect([run], IMAGES)) if row["quantity"] == quantity]
        values: list[float] = []
        for method in (first, second):
            own = [row for row in rows if row["method"] == method]
            if not own:
                raise NotAsked(f"{method} was not asked for")
            if not math.isfinite(own[0]["value"]):
                raise UndefinedStatistic(f"{method}: {own[0]['reason']}")
            values.append(own[0]["value"])
        return values[0] - values[1]

    return statistic


def retrained_over_random(method: str) -> Callable[[Run], float]:
    """Return the statistic: accuracy (pp) after training without a method's pixels minus that without random ones.

    Mean over the shares that were removed.
    """

    def statistic(run: Run) -> float:
        if missing([run], RETRAINING):
            raise UndefinedStatistic(f"{RETRAINING} is missing")
        one, two = (_values(run, RETRAINING, "roar", name, ".+") for name in (method, "random"))
        return 100 * _less(one[one["case"].astype(float) > 0], two, ["case"], "nothing was removed")

    return statistic


STATISTICS: dict[str, Callable[[Run], float]] = {
    "roughness_gradient_over_smooth": difference("roughness", "vanilla_gradient", "smooth_grad"),
    "roughness_guided_over_smooth": difference("roughness", "guided_backpropagation", "smooth_grad"),
    "sensitivity_gradient_over_smooth": difference("max-sensitivity", "vanilla_gradient", "smooth_grad"),
    "sensitivity_gradient_over_integrated": difference("max-sensitivity", "vanilla_gradient", "integrated_gradients"),
    "time_integrated_over_gradient": times("integrated_gradients", "vanilla_gradient"),
    "time_smooth_over_gradient": times("smooth_grad", "vanilla_gradient"),
    "time_rectified_over_guided": times("rectified_gradient", "guided_backpropagation"),
    "time_score_cam_over_family": score_cam_over_family,
    "time_plus_plus_over_grad_cam": times("grad_cam_plus_plus", "grad_cam"),
    "sensitivity_grad_cam_over_score_cam": difference("max-sensitivity", "grad_cam", "score_cam"),
    "sensitivity_plus_plus_over_score_cam": difference("max-sensitivity", "grad_cam_plus_plus", "score_cam"),
    "roughness_fine_over_regional": fine_over_regional,
    "distance_am_over_dgn": pictures("distance to training images", "activation_maximisation", "dgn_am"),
    "agreement_dgn_over_am": pictures("agreement of the judges", "dgn_am", "activation_maximisation"),
    "iou_fq_over_grad_cam": difference("IoU at 0.5", "fq", "grad_cam"),
    "iou_grad_cam_over_cam": difference("IoU at 0.5", "grad_cam", "cam"),
    "iou_fq_over_cam": difference("IoU at 0.5", "fq", "cam"),
    "sanity_guided_over_gradient": difference(
        "random last layers, rank of sizes", "guided_backpropagation", "vanilla_gradient"
    ),
    "sanity_guided_over_grad_cam": difference(
        "random last layers, rank of sizes", "guided_backpropagation", "grad_cam"
    ),
    "labels_guided_over_gradient": labels_guided_over_gradient,
    "attack_over_chance": between_cases("attack_approach", "target", "chance"),
    "attacked_peaks_over_chance": between_cases("attack_peaks", "peaks", "chance"),
    "fgsm_grad_cam_over_gradient": difference("FGSM 0.25, other answer, rank", "grad_cam", "vanilla_gradient"),
    "retrained_gradient_over_random": retrained_over_random("vanilla_gradient"),
    "retrained_integrated_over_random": retrained_over_random("integrated_gradients"),
}

_FILES = tuple(FILES.values())
_READ = (
    "Each number is the mean over the images, then over the seeds. Controls explain nothing: chance, the edges of the "
    "image, the image itself. Rank: Spearman's correlation with the map of the changed network or image."
)

TABLES = {
    table.id: table
    for table in (
        Table(
            id="survey_1",
            title="Gradient methods",
            source=f"{_SOURCE}, table 1",
            direction="plain and guided gradients are noisy; integrated, smoothed and rectified ones take longer",
            inputs=(*_FILES, IMAGES),
            function=table_gradients,
            columns="quantity",
            caption=f"What the survey says of a method, then what was measured. {_READ}",
        ),
        Table(
            id="survey_2",
            title="Class activation maps",
            source=f"{_SOURCE}, table 2",
            direction="Score-CAM is stable and takes longest; the gradients of Grad-CAM and Grad-CAM++ are not stable",
            inputs=(*_FILES, IMAGES),
            function=table_activation,
            columns="quantity",
            caption=f"What the survey says of a method, then what was measured. {_READ}",
        ),
        Table(
            id="survey_3",
            title="All methods of explanation",
            source=f"{_SOURCE}, table 3",
            direction="none is printed: the survey compares in words",
            inputs=(*_FILES, IMAGES),
            function=table_methods,
            columns="quantity",
            caption="What the survey says of a method: where nnscan's register says otherwise, the survey's words "
            "stand before the slash. Its column on dependence on the class is drawn with marks that our copy lacks. "
            f"Extremal perturbation, nnscan's maps and the controls are not in the survey's table. {_READ} The images "
            "of AM and DGN-AM are judged by the networks of the other seeds; validation images stand beside.",
        ),
        Table(
            id="explainers_scores",
            title="All scores of all methods of explanation",
            source="measured here",
            direction="no source prints these numbers",
            inputs=(*_FILES, IMAGES),
            function=table_scores,
            columns="quantity",
            caption=f"{_READ} What each score means, and which values are better, is on the page explainers.html of "
            "the study. Random network: all its layers; random last layers: mean over the other stages of the cascade. "
            "Peaks: share of a map's largest tenth of pixels that stays.",
        ),
        Table(
            id="explainers_retraining",
            title="Accuracy after training without the pixels that methods point at (ROAR)",
            source="measured here, after Hooker et al. 2019",
            direction="lower than for random pixels, if a method finds what matters",
            inputs=(RETRAINING,),
            function=table_retraining,
            columns="removed",
            caption="Test accuracy (%) of a network that was trained anew on images whose most important pixels were "
            "set to the mean, by the share removed; their maps are those of the first network.",
        ),
    )
}
