"""nnscan.pages: a page holds all curves or scores, needs nothing but itself, and equal tables give equal pages."""

import dataclasses
import json
import math
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from nnscan.metrics import Metric
from nnscan.pages import ranking_page, similarity_page
from nnscan.rankings import PICTURES
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


# ----------------------------------------------------------------------------------------- ranking of explanations

METRIC = Metric("deletion", "deletion <b>", "faithfulness", "lower", -1, math.inf, "Someone", 2018, "What it & says.")
METRICS = [
    METRIC,
    *(dataclasses.replace(METRIC, name=name, title=name) for name in ("insertion", "roughness")),
    dataclasses.replace(METRIC, name="seconds", title="time", question="cost", paper="", year=0),
]
CONTROL = "random (control)"


def ranked_scores():
    """Two networks; of the first four methods with deletion, insertion (the other way round), roughness and time."""
    values = {
        "a": (0.1, 0.1, 0.5, 3.0),
        "b <i>": (0.2, 0.2, 0.5, 2.0),
        CONTROL: (0.3, 0.3, 0.5, 1.0),
        "d": (0.4, 0.4, 0.5, 4.0),
    }
    values |= {"e": (0.5, 0.5, 0.5, math.nan), "f": (math.nan,) * 4}
    rows = []
    for model in ("net", "<script>alert(1)</script>"):
        for method, own in values.items():
            for quantity, value in zip(("deletion", "insertion", "roughness", "time per image"), own, strict=True):
                note = "needs <a href='x'>pooling</a>" if math.isnan(value) else ""
                rows.append(("digits", model, method, quantity, value, value - 1, value + 1, note))
    rows.append(("digits", "net", "", "", math.nan, math.nan, math.nan, "seed 0: missing"))
    return pd.DataFrame(rows, columns=["dataset", "model", "method", "quantity", "ours", "ci_low", "ci_high", "note"])


@pytest.fixture
def ranking(tmp_path):
    links = {("digits", "net"): [("Sheet & more", "figures/digits/net/sheet.png")]}
    ranking_page(tmp_path / "page.html", "s <1>", ranked_scores(), METRICS, [CONTROL], links)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_ranking_needs_nothing_else_and_no_text_can_break_it(ranking):
    assert "<script>alert" not in ranking
    assert ranking.count("<script>") == ranking.count("</script>") == 1
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", ranking)
    assert "<a href='x'>" not in ranking
    for text in (
        "s &lt;1&gt;",
        "b &lt;i&gt;",
        "deletion &lt;b&gt;",
        "needs &lt;a href=&#39;x&#39;&gt;pooling&lt;/a&gt;",
    ):
        assert text in ranking
    assert '<a href="figures/digits/net/sheet.png">Sheet &amp; more</a>' in ranking


def rows_of(page, heading):
    """Return the rows of the first table below a heading, as texts."""
    own = page[page.index(f">{heading}<") :]
    body = own[own.index("<tbody>") : own.index("</tbody>")]
    return [
        [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", body, re.S)
    ]


def test_the_ranking_says_what_scores_mean(ranking):
    (first, *_) = rows_of(ranking, "Faithfulness: do the pixels that it points at matter for the answer?")
    assert first == ["deletion <b>", "↓", "−1 to ∞", "What it & says.", "", "Someone 2018"]
    assert rows_of(ranking, "Cost: what does an image take?") == [["time", "↓", "−1 to ∞", "What it & says.", "", ""]]


def test_methods_stand_by_their_mean_place(ranking):
    # deletion and insertion cancel out: places 0.5 each; time: control, b, a, d
    found = rows_of(ranking, "Mean place by question")
    assert [row[0] for row in found] == [CONTROL, "b <i>", "e", "a", "d"]
    assert found[1] == ["b <i>", "0.42", "0.50", "0.33"]
    assert found[2] == ["e", "0.50", "0.50", "–"]


def test_scores_have_rank_interval_and_whether_they_beat_the_controls(ranking):
    own = ranking[ranking.index("<h3>Scores</h3>") :]
    row = re.search(r"<th scope=\"row\">a</th>(.*?)</tr>", own, re.S)[1]
    deletion, insertion, rough, seconds = re.findall(r"<td.*?</td>", row)
    assert 'title="95 % interval −0.9 to 1.1; rank 1 of 5"'.replace("−", "-") in deletion
    assert 'data-order="1"' in deletion
    assert "behind" not in deletion
    assert "behind" in insertion
    assert 'data-order="5"' in insertion
    assert "rank" not in rough
    assert "background" not in rough
    assert "behind" in seconds


def test_disagreements_are_named(ranking):
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", ranking)).split())
    assert "least alike: deletion and insertion (tau −1.00)" in text
    assert re.search(r"a : faithfulness 0.50, cost 0.67", text.replace("a:", "a :"))
    assert "Methods without any score f : needs <a href='x'>pooling</a>" in text


def test_it_says_how_alike_networks_rank_methods(ranking):
    names = ["net on digits", "<script>alert(1)</script> on digits"]
    assert rows_of(ranking, "Do networks rank methods alike?") == [[name, "1.00", "1.00"] for name in names]


def test_equal_scores_give_equal_pages_and_none_gives_a_page(tmp_path, ranking):
    links = {("digits", "net"): [("Sheet & more", "figures/digits/net/sheet.png")]}
    ranking_page(tmp_path / "again.html", "s <1>", ranked_scores(), METRICS, [CONTROL], links)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == ranking
    refusing = ranked_scores().assign(ours=math.nan)
    ranking_page(tmp_path / "none.html", "s", refusing, METRICS, [CONTROL], {})
    assert "No method has a score here." in (tmp_path / "none.html").read_text(encoding="utf-8")
    ranking_page(tmp_path / "none.html", "s", refusing[:0], METRICS, [CONTROL], {})


def test_a_method_that_is_as_good_as_a_control_is_not_better(tmp_path):
    scores = ranked_scores()
    scores.loc[(scores["method"] == "b <i>") & (scores["quantity"] == "deletion"), "ours"] = 0.3  # the control's
    ranking_page(tmp_path / "page.html", "s", scores, METRICS, [CONTROL], {})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    row = re.search(r"<th scope=\"row\">b &lt;i&gt;</th>(.*?)</tr>", page[page.index("<h3>Scores</h3>") :], re.S)[1]
    deletion = re.findall(r"<td.*?</td>", row)[0]
    assert "rank 2.5 of 5" in deletion
    assert "behind" in deletion


def test_methods_that_make_images_of_classes_stand_apart_and_change_no_rank(tmp_path):
    scores = ranked_scores()
    quantities = ("deletion", "insertion", "roughness", "time per image", *PICTURES)
    made = {
        "AM": (*[math.nan] * 3, 0.5, 0.9, math.nan, 2.0),
        "validation images": (*[math.nan] * 4, 0.8, 0.7, 1.0),
        "DGN-AM": [math.nan] * 7,
    }
    rows = [
        ("digits", "net", method, quantity, value, math.nan, math.nan, "a reason" if math.isnan(value) else "")
        for method, own in made.items()
        for quantity, value in zip(quantities, own, strict=True)
    ]
    scores = pd.concat([scores, pd.DataFrame(rows, columns=scores.columns)], ignore_index=True)
    ranking_page(tmp_path / "page.html", "s", scores, METRICS, [CONTROL], {})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert rows_of(page, "Images of classes") == [
        ["AM", "0.9", "–", "2", "0.5"],
        ["validation images", "0.8", "0.7", "1", "–"],
    ]
    assert page.count("<h3>Images of classes</h3>") == 1  # not of the network without any
    assert all(meaning in unescape(page) for meaning in PICTURES.values())
    assert [row[0] for row in rows_of(page, "Mean place by question")] == [CONTROL, "b <i>", "e", "a", "d"]
    refused = page[page.index("<h3>Methods without any score</h3>") :]
    assert "<b>DGN-AM</b>: a reason" in refused
    assert "<b>AM</b>" not in refused
