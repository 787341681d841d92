"""nnscan.pages: the page holds all curves, needs nothing but itself, and equal tables give equal pages."""

import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from nnscan.pages import similarity_page
from nnscan.similarities import layer_curves

CLASSES = ("ant", "bee <b>", "cat")


def table(seeds=(0, 1), kinds=("simple", "most", "least")):
    index = pd.MultiIndex.from_product(
        [seeds, kinds, (1, 2), range(3), range(4), range(5)],
        names=["seed", "average", "method", "class", "depth", "filter"],
    )
    frame = pd.DataFrame({"similarity": np.random.default_rng(0).uniform(-1, 1, len(index))}, index=index)
    frame = frame.reset_index()
    return frame.assign(layer="features." + (3 * frame["depth"]).astype(str))


def content(path):
    """Return traces and layout of the page."""
    text = path.read_text(encoding="utf-8")
    call = text[text.rindex("Plotly.newPlot(") :]
    decoder, parts, place = json.JSONDecoder(), [], call.index(",") + 1
    for _ in range(2):
        place = re.compile(r"[\s,]*").match(call, place).end()
        part, place = decoder.raw_decode(call, place)
        parts.append(part)
    return parts


def test_every_curve_is_there_and_the_menu_shows_one_view(tmp_path):
    frame = table()
    similarity_page(tmp_path / "page.html", frame, CLASSES, "A title")
    traces, layout = content(tmp_path / "page.html")
    assert len(traces) == 3 * 2 * 4 * 2  # kinds, methods, classes and their mean, mean and standard deviation
    buttons = layout["updatemenus"][0]["buttons"]
    assert [button["label"] for button in buttons] == [
        f"{kind} averages, method {method}"
        for kind in ("simple", "most confident", "least confident")
        for method in (1, 2)
    ]
    assert [trace["visible"] for trace in traces] == buttons[0]["args"][0]["visible"]
    curves = layer_curves(frame).groupby(["average", "method", "class", "depth"])[["mean", "sd"]].mean()
    for button, (kind, method) in zip(
        buttons, [(kind, method) for kind in ("simple", "most", "least") for method in (1, 2)], strict=True
    ):
        shown = [trace for trace, on in zip(traces, button["args"][0]["visible"], strict=True) if on]
        assert [unescape(trace["name"]) for trace in shown] == [
            name for name in (*CLASSES, "mean of the classes") for _ in range(2)
        ]
        own = curves.loc[(kind, method)]
        for place, trace in enumerate(shown):
            statistic = ("mean", "sd")[place % 2]
            number = place // 2
            expected = own.loc[number][statistic] if number < 3 else own[statistic].groupby("depth").mean()
            np.testing.assert_allclose(trace["y"], expected)
            assert trace["x"] == [f"{depth + 1}: features.{3 * depth}" for depth in range(4)]
    assert sum(sum(button["args"][0]["visible"]) for button in buttons) == len(traces)
    assert layout["title"]["text"] == "A title"


def test_the_page_loads_nothing(tmp_path):
    similarity_page(tmp_path / "page.html", table(), CLASSES, "A title")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)\s*=", text)
    assert len(text) > 1_000_000  # Plotly's code


def test_equal_tables_give_equal_pages(tmp_path):
    for number in range(2):
        similarity_page(tmp_path / f"{number}.html", table(kinds=("most", "simple")), CLASSES, "A title")
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()


@pytest.mark.parametrize("kinds", [("simple",), ("least", "simple")])
def test_only_what_is_there_can_be_chosen(tmp_path, kinds):
    similarity_page(tmp_path / "page.html", table(kinds=kinds), CLASSES, "A title")
    _, layout = content(tmp_path / "page.html")
    assert len(layout["updatemenus"][0]["buttons"]) == 2 * len(kinds)
