"""Interactive pages: the curves of which a picture can show only some at a time, and the ranking of explanations.

A page is one HTML file with everything inside, Plotly's code too: it opens without a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from nnscan.artifacts import atomic_path
from nnscan.markup import write_page
from nnscan.metrics import Metric
from nnscan.rankings import FEWEST, MEASURES, PICTURES, agreement, by_question, disputed, places, ranked, wide
from nnscan.similarities import seed_curves

KINDS = {"simple": "simple averages", "most": "most confident averages", "least": "least confident averages"}


def _shown(name: str) -> str:
    """Return a name that Plotly shows as it is; it takes a part of HTML, links too."""
    return escape(name, quote=False)


def similarity_page(path: str | Path, similarities: pd.DataFrame, classes: Sequence[str], title: str) -> None:
    """Write the page of the similarity curves: by layer and class, for each kind of average and method.

    Mean over the filters of a layer above, standard deviation below; a menu chooses average and method, the legend
    hides and shows classes. Equal tables give equal bytes.

    Args:
        path: The HTML file.
        similarities: The tables of all seeds, with the column seed.
        classes: Class names.
        title: What is written above.

    Source: Wang Xinyuan, bachelor's thesis, ch. 4.3.2 (figs 4-18 to 4-23, made with Plotly there too).
    """
    curves = seed_curves(similarities)
    views = [
        (kind, method)
        for kind in KINDS
        for method in sorted(curves["method"].unique())
        if kind in set(curves["average"])
    ]
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08,
        subplot_titles=("mean over the filters of a layer", "standard deviation over the filters of a layer"),
    )  # fmt: skip
    owners: list[tuple[str, int]] = []
    for kind, method in views:
        part = curves[(curves["average"] == kind) & (curves["method"] == method)]
        lines = [(_shown(classes[int(number)]), curve) for number, curve in part.groupby("class")]
        whole = part.groupby(["layer", "depth"])[["mean", "sd"]].mean().reset_index().sort_values("depth")
        for place, (name, curve) in enumerate([*lines, ("mean of the classes", whole)]):
            overall = place == len(lines)
            for row, statistic in ((1, "mean"), (2, "sd")):
                figure.add_trace(
                    go.Scatter(
                        x=[f"{number}: {_shown(str(layer))}" for number, layer in enumerate(curve["layer"], 1)],
                        y=[float(value) for value in curve[statistic]],
                        name=str(name), legendgroup=str(name), showlegend=row == 1,
                        mode="lines+markers", visible=(kind, method) == views[0],
                        line={
                            "color": "black" if overall else qualitative.Dark24[place % len(qualitative.Dark24)],
                            "width": 4 if overall else 1.5,
                        },
                        hovertemplate="%{y:.4f}",
                    ),
                    row=row, col=1,
                )  # fmt: skip
                owners.append((kind, method))
    buttons = [
        {
            "label": f"{KINDS[kind]}, method {method}",
            "method": "update",
            "args": [{"visible": [owner == (kind, method) for owner in owners]}],
        }
        for kind, method in views
    ]
    figure.update_layout(
        title={"text": title, "x": 0.02, "y": 0.98, "yanchor": "top"}, template="plotly_white", hovermode="x unified",
        height=820, margin={"t": 130},
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.13, "yanchor": "top"}],
    )  # fmt: skip
    figure.update_yaxes(title_text="similarity", row=1, col=1)
    figure.update_yaxes(title_text="standard deviation", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="layer", row=2, col=1)
    page = figure.to_html(include_plotlyjs=True, full_html=True, div_id="similarity", config={"displaylogo": False})
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The ranking of methods of explanation

ASKED = {
    "localisation": "does the map show where the object is?",
    "completeness": "does the map add up to what its method promises?",
    "noise": "how rough is the map?",
    "faithfulness": "do the pixels that it points at matter for the answer?",
    "sanity": "does the map change when the network forgets what it has learned?",
    "stability": "does the map stay when the image hardly changes?",
    "attack": "does the map stay when someone aims at it, and the answer stays?",
    "cost": "what does an image take?",
}
"""What each question asks."""

_ARROWS = {"higher": "↑", "lower": "↓", None: "·"}
_DISPUTED, _PAIRS = 6, 3  # methods, and pairs of scores, that the page names

Cell = dict[str, Any]  # of the page's tables: text, order, shade, behind, note


def ranking_page(
    path: str | Path,
    study: str,
    scores: pd.DataFrame,
    metrics: Sequence[Metric],
    controls: Sequence[str],
    links: Mapping[tuple[str, str], Sequence[tuple[str, str]]],
) -> None:
    """Write the page that ranks the methods of explanation and says what each score means. Equal scores, equal bytes.

    Args:
        path: The HTML file.
        study: The study's name.
        scores: The tidy table of all scores (`survey.table_scores`).
        metrics: The metrics whose meaning is told.
        controls: Titles of the methods that explain nothing.
        links: By data set and model, texts and addresses of what belongs to it.
    """
    meanings = {metric.name: metric.meaning for metric in metrics}
    networks = [
        {
            **_network(own[own["quantity"] != ""], controls, meanings),
            **{"id": f"network-{place}", "title": f"{model} on {dataset}"},
            "links": list(links.get((str(dataset), str(model)), ())),
        }
        for place, ((dataset, model), own) in enumerate(scores.groupby(["dataset", "model"], sort=False), start=1)
    ]
    write_page(
        path,
        "explainers.html.j2",
        study=study,
        meanings=[(question, asks, _meanings(metrics, question)) for question, asks in ASKED.items()],
        overview=_overview({one["title"]: one["overall"] for one in networks}, controls),
        networks=networks,
    )


def _meanings(metrics: Sequence[Metric], question: str) -> list[dict[str, str]]:
    return [
        {
            **{"title": metric.title, "arrow": _ARROWS[metric.direction], "meaning": metric.meaning},
            **{"cases": metric.cases, "paper": f"{metric.paper} {metric.year}" if metric.paper else ""},
            "range": f"{metric.low:g} to {metric.high:g}".replace("inf", "∞").replace("-", "−"),
        }
        for metric in metrics
        if metric.question == question
    ]


def _numbers(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the numbers of a table by column, then by row."""
    return {
        str(column): dict(zip(map(str, frame.index), frame[column].to_numpy(float).tolist(), strict=True))
        for column in frame.columns
    }


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _cell(text: str, order: float = math.nan, place: float = math.nan, *, behind: bool = False, note: str = "") -> Cell:
    """Return a cell: what sorts it, and how dark it is by its place (0 the first, 1 the last)."""
    return {
        **{"text": text, "behind": behind, "note": note},
        "order": None if math.isnan(order) else f"{order:.6g}",
        "shade": None if math.isnan(place) else f"{0.5 * (1 - place):.2f}",
    }


def _column(name: str, arrow: str = "", meaning: str = "", *, chosen: bool = False) -> dict[str, Any]:
    return {"name": name, "arrow": arrow, "meaning": meaning, "sorted": chosen}


def _places(found: pd.DataFrame, controls: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a table of places, with the mean in the first column."""
    return [
        {
            **{"name": name, "control": name in controls},
            "cells": [_cell("–" if math.isnan(one) else f"{one:.2f}", one, one) for one in row],
        }
        for name, row in zip(map(str, found.index), found.to_numpy().tolist(), strict=True)
    ]


def _network(own: pd.DataFrame, controls: Sequence[str], meanings: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows of a network."""
    rows: list[dict[str, Any]] = [
        {"method": row["method"], "quantity": row["quantity"], "value": row["ours"], "note": row["note"],
         "low": row["ci_low"], "high": row["ci_high"]}
        for row in own.to_dict("records")
    ]  # fmt: skip
    painters = dict.fromkeys(
        row["method"] for row in rows if row["quantity"] in PICTURES and not math.isnan(row["value"])
    )
    scores = wide([row for row in rows if row["method"] not in painters])
    place = places(scores)
    questions = by_question(place)
    overall = questions.mean(axis=1).sort_values(kind="stable")
    order = overall.index
    asked = [one for one in MEASURES if one.quantity in scores.columns or not one.direction]
    paid = [one for one in asked if one.question == "cost"]
    valued = {row["method"] for row in rows if not math.isnan(row["value"])}
    refused: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["method"] not in valued:
            refused.setdefault(row["method"], {})[row["note"]] = None
    return {
        "overall": overall,
        "question_columns": [_column("mean", chosen=True), *(_column(str(one)) for one in questions.columns)],
        "questions": _places(questions.loc[order].assign(mean=overall)[["mean", *questions.columns]], controls),
        "score_columns": [_column(one.quantity, _ARROWS[one.direction], meanings[one.metric]) for one in asked],
        "scores": _scores(rows, scores.loc[order], [one.quantity for one in asked], controls),
        "picture_columns": [
            *(_column(quantity, meaning=meaning) for quantity, meaning in PICTURES.items()),
            *(_column(one.quantity, _ARROWS[one.direction], meanings[one.metric]) for one in paid),
        ],
        "pictures": _scores(
            rows, pd.DataFrame(index=list(painters)), [*PICTURES, *(one.quantity for one in paid)], controls
        ),
        "refused": [(name, "; ".join(note.rstrip(".") for note in notes)) for name, notes in refused.items()],
        **_disagreements(scores, questions),
    }


def _scores(
    rows: Sequence[Mapping[str, Any]], scores: pd.DataFrame, quantities: Sequence[str], controls: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of the table of scores, in the order of the methods."""
    rank, place = _numbers(ranked(scores)), _numbers(places(scores))
    best = {
        name: min((own[one] for one in controls if not math.isnan(own.get(one, math.nan))), default=math.nan)
        for name, own in rank.items()
    }
    known = {(row["method"], row["quantity"]): row for row in rows}

    def cell(method: str, quantity: str) -> Cell:
        row = known[method, quantity]
        if math.isnan(row["value"]):
            return _cell("–", note=row["note"])
        notes = [] if math.isnan(row["low"]) else [f"95 % interval {row['low']:.3g} to {row['high']:.3g}"]
        own = rank[quantity][method] if quantity in rank else math.nan
        if not math.isnan(own):
            notes.append(f"rank {own:g} of {sum(not math.isnan(other) for other in rank[quantity].values())}")
        behind = method not in controls and own >= best.get(quantity, math.nan)
        shade = place[quantity][method] if quantity in place else math.nan
        note = "; ".join([*notes, row["note"]] if row["note"] else notes)
        sorted_by = row["value"] if math.isnan(own) else own
        return _cell(f"{row['value']:.3g}".replace("-", "−"), sorted_by, shade, behind=behind, note=note)

    return [
        {"name": method, "control": method in controls, "cells": [cell(method, quantity) for quantity in quantities]}
        for method in map(str, scores.index)
    ]


def _disagreements(scores: pd.DataFrame, questions: pd.DataFrame) -> dict[str, Any]:
    """Return which scores rank methods least alike, on which methods questions disagree, and how alike scores rank."""
    kendall, spearman = (_numbers(agreement(scores, kind)) for kind in ("kendall", "spearman"))
    pairs = sorted(_pairs(kendall))[:_PAIRS]
    widest = disputed(questions)
    rows = []
    for name in widest[widest > 0].index[:_DISPUTED]:
        own = questions.loc[name].dropna().sort_values(kind="stable")
        ends = {"best": str(own.index[0]), "best_place": f"{own.iloc[0]:.2f}"}
        rows.append({"name": name, **ends, "worst": str(own.index[-1]), "worst_place": f"{own.iloc[-1]:.2f}"})
    return {
        "pairs": [{"first": first, "second": second, "tau": _signed(tau)} for tau, first, second in pairs],
        "disputed": rows,
        "alike": _matrix(kendall, spearman),
    }


def _matrix(
    kendall: Mapping[str, Mapping[str, float]], spearman: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, list[dict[str, str]]]]:
    """Return the rows of a square table of rank correlations: of each its name and its cells; none without a pair."""
    if not _pairs(kendall):
        return []
    return [
        (first, [_agreement_cell(kendall[first][second], spearman[first][second]) for second in kendall])
        for first in kendall
    ]


def _pairs(found: Mapping[str, Mapping[str, float]]) -> list[tuple[float, str, str]]:
    """Return the values above the diagonal of a square table that are there, with row and column."""
    names = list(found)
    return [
        (found[first][second], first, second)
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        if not math.isnan(found[first][second])
    ]


def _agreement_cell(tau: float, rho: float) -> dict[str, str]:
    if math.isnan(tau):
        return {"text": "", "color": "", "shade": "", "note": "too few methods have both, or one is constant"}
    return {
        **{"text": _signed(tau), "note": f"Spearman {_signed(rho)}"},
        **{"color": "alike" if tau > 0 else "apart", "shade": f"{0.7 * abs(tau):.2f}"},
    }


def _overview(overall: Mapping[str, pd.Series[float]], controls: Sequence[str]) -> dict[str, Any]:
    """Return the mean places of all networks side by side, and how alike they are."""
    table = pd.DataFrame(dict(overall))
    table.insert(0, "mean", table.mean(axis=1))
    table = table.sort_values("mean", kind="stable")
    networks = table.drop(columns="mean")
    kendall, spearman = (_numbers(networks.corr(kind, min_periods=FEWEST)) for kind in ("kendall", "spearman"))
    return {
        "columns": [_column("mean", chosen=True), *(_column(f"{name} ({len(own)})") for name, own in overall.items())],
        "methods": _places(table, controls),
        "alike": _matrix(kendall, spearman),
    }
