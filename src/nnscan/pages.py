"""Interactive pages: the curves of which a picture can show only some at a time.

A page is one HTML file with everything inside, Plotly's code too: it opens without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from nnscan.artifacts import atomic_path
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
