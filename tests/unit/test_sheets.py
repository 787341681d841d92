"""Figures of methods of explanation: what stands where, and that nothing is left out."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from nnscan.atlas import Atlas
from nnscan.data import Split, build_dataset
from nnscan.exhibits import explained_images, painted_images
from nnscan.explainers import METHODS
from nnscan.figures import save_figure
from nnscan.sheets import (
    ROWS,
    Painted,
    Shown,
    contact_sheet,
    explainer_ranks,
    faithfulness_curves,
    retraining_curves,
    synthesis,
    tinted,
)

NAN = math.nan


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    splits = {
        split: Split(rng.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8), np.arange(6) % 3)
        for split in ("train", "validation", "test")
    }
    return build_dataset("own", ("ant", "bee $x$", "cat"), splits)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def pictures(axes):
    """Return place (left, top) and colors of each picture."""
    return [((image.get_extent()[0], image.get_extent()[3]), np.asarray(image.get_array())) for image in axes.images]


def test_maps_are_stretched_each_by_itself():
    (dark, bright), (low, high), (constant, _) = tinted(np.array([[[0.0, 2.0]], [[5.0, 5.5]], [[3.0, 3.0]]]))[:, 0]
    assert np.allclose(dark, low)
    assert np.allclose(bright, high)
    assert np.allclose(dark, constant)
    assert bright.sum() > dark.sum() + 1
    red, white, blue = tinted(np.array([[[2.0, 0.0, -1.0]]]))[0, 0]
    assert red[0] > red[2] + 0.2
    assert white.min() > 0.9
    assert blue[2] > blue[0] + 0.2
    assert np.allclose(tinted(np.array([[[-1.0, 0.5]], [[0.0, 0.0]]]))[1], white, atol=1e-6)  # zero where nothing is


def test_the_sheet_has_every_map_of_every_method_and_every_reason():
    rng = np.random.default_rng(0)
    images = [rng.random((1, 4, 6)) for _ in range(3)]
    methods = [Shown(f"method {number}", "gradient", rng.random((3, 4, 6))) for number in range(ROWS + 4)]
    methods[2] = Shown(
        "refusing $1$", "control", None, "it needs what the network lacks, namely a great deal of it " * 9
    )
    figure = contact_sheet(images, ["ant", "bee\n(is cat)", "a very long name of a class"], methods, "Heading")
    assert len(figure.axes) == 2  # blocks
    shown = [pictures(axes) for axes in figure.axes]
    assert sum(map(len, shown)) == 3 * (2 + ROWS + 3)
    first = dict(shown[0][:3])
    assert [np.allclose(colors[..., 0], images[n][0]) for n, colors in enumerate(first.values())] == [True] * 3
    rows = {}
    for (left, top), colors in shown[0][3:]:
        rows.setdefault(round(top, 6), []).append((left, colors))
    assert len(rows) == len(shown[0]) // 3 - 1
    for colors, method in zip(rows.values(), [m for m in methods if m.maps is not None], strict=False):
        assert [left for left, _ in colors] == [0, 1, 2]
        assert all(np.allclose(own, tint) for (_, own), tint in zip(colors, tinted(method.maps), strict=True))
    words = texts(figure)
    assert {"bee\n(is cat)", "refusing \\$1\\$", "control"} <= set(words)
    assert sum(word.startswith("it needs what") and word.endswith("…") for word in words) == 1
    assert {f"method {number}" for number in range(ROWS + 4) if number != 2} <= set(words)


def test_equal_sheets_give_equal_bytes(tmp_path):
    rng = np.random.default_rng(0)
    images, methods = [rng.random((3, 4, 4))], [Shown("a", "control", rng.random((1, 4, 4)) - 0.5)]
    for name in ("a.png", "b.png"):
        save_figure(tmp_path / name, contact_sheet(images, ["x"], methods, "h"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_images_of_classes_with_what_networks_say():
    rng = np.random.default_rng(0)
    classes = [f"c{number}" for number in range(13)]
    made = {number: rng.random((1, 5, 5)) for number in range(13)}
    captions = {number: f"p = {number}" for number in range(13)}
    some = {number: made[number] for number in (0, 12)}
    rows = [
        Painted("validation image", some, captions),
        Painted("AM", made, captions),
        Painted("DGN-AM", None, {}, "none"),
    ]
    figure = synthesis(rows, classes, "Heading")
    found = pictures(figure.axes[0])
    assert len(found) == 2 + 13
    assert len({place for place, _ in found}) == 15
    words = texts(figure)
    assert set(classes) <= set(words)
    assert words.count("none") == 2  # in each of two bands
    assert words.count("p = 12") == 2
    assert texts(synthesis([Painted("AM", None, {}, "why")], classes, "")) == ["no method made images of classes"]


SCORES = pd.DataFrame(
    {"deletion": [0.1, 0.2, NAN], "insertion": [0.9, 0.8, 0.7], "time per image": [2.0, 1.0, 1.0]},
    index=["grad_cam", "random", "lime"],
)


def test_ranks_are_written_and_methods_stand_in_their_order():
    figure = explainer_ranks(SCORES, {"grad_cam": "Grad-CAM"}, "Heading")
    left, middle = figure.axes  # three methods are too few to compare scores
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["Grad-CAM", "random", "lime"]  # mean places 1/2, 5/8, 5/8
    assert [text.get_text() for text in left.texts] == [
        "1",
        "1",
        "3",
        "2",
        "2",
        "1.5",
        "3",
        "1.5",
    ]  # no deletion of lime
    assert [text.get_text() for text in middle.texts] == ["0.00", "1.00", "0.75", "0.25", "1.00", "0.25"]
    assert [label.get_text() for label in middle.get_xticklabels()] == ["faithfulness", "cost"]
    twice = pd.concat([SCORES, SCORES.rename("other {}".format)])
    right = explainer_ranks(twice, {}, "Heading").axes[2]
    assert [label.get_text() for label in right.get_yticklabels()] == list(SCORES.columns)
    assert [text.get_text() for text in right.texts] == ["1.0", "-0.8", "-0.8", "1.0"]  # four methods have a deletion
    assert texts(explainer_ranks(SCORES.iloc[:, :0], {}, "")) == ["no method has a score"]


def test_faithfulness_curves_are_means_with_the_best_methods_and_the_controls_by_name():
    methods = {"random": 0.5, "edges": 0.4, **{f"method{number}": 0.05 * number for number in range(12)}}
    rows = [
        {"seed": seed, "method": method, "metric": f"{name}_curve", "case": share, "value": value}
        for seed in (0, 1)
        for method, low in methods.items()
        for name, ends in {"deletion": (0.9, low + 0.1 * seed), "insertion": (low + 0.1 * seed, 0.9)}.items()
        for share, value in zip(("0", "1"), ends, strict=True)
    ]
    rows += [{"seed": 0, "method": "cam", "metric": "deletion_curve", "case": "", "value": NAN}]
    rows += [{"seed": 0, "method": "method0", "metric": "deletion", "case": "", "value": 0.7}]  # an area
    figure = faithfulness_curves(pd.DataFrame(rows), {"method0": "Best"}, "Heading")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("deletion", "insertion")
    assert len(left.get_lines()) == len(methods)
    named = {line.get_label(): line for line in left.get_lines() if not line.get_label().startswith("_")}
    assert set(named) == {"random", "edges", "Best", *(f"method{n}" for n in (1, 2, 3, 4, 7, 8, 9, 10, 11))}
    assert named["Best"].get_xdata().tolist() == [0, 100]
    assert named["Best"].get_ydata().tolist() == pytest.approx([0.9, 0.05])
    assert (named["random"].get_color(), named["random"].get_linestyle()) == ("black", "--")
    assert [text.get_text() for text in left.get_legend().get_texts()][:2] == ["Best", "method1"]
    high = {line.get_label(): line for line in right.get_lines() if not line.get_label().startswith("_")}
    assert {name: line.get_color() for name, line in high.items()} == {
        name: line.get_color() for name, line in named.items()
    }
    assert right.get_legend().get_texts()[0].get_text() == "method11"
    thin = [line for line in left.get_lines() if line.get_color() == "0.75"]
    assert [line.get_ydata()[1] for line in thin] == pytest.approx([0.35, 0.3])  # method6, method5
    nothing = pd.DataFrame(rows).assign(value=NAN)
    assert texts(faithfulness_curves(nothing, {}, "")) == ["no method has maps of inputs"]


def test_retraining_curves_are_means_over_seeds():
    rows = [
        {"seed": seed, "method": method, "case": share, "value": value + 0.1 * seed}
        for seed in (0, 1)
        for method, values in {"random": (0.8, 0.4), "grad_cam": (0.8, 0.2), "cam": (NAN, NAN)}.items()
        for share, value in zip(("0", "0.9"), values, strict=True)
    ]
    axes = retraining_curves(pd.DataFrame(rows), {"grad_cam": "Grad-CAM"}, "Heading").axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"random", "Grad-CAM"}
    assert lines["Grad-CAM"].get_xdata().tolist() == [0, 90]
    assert lines["Grad-CAM"].get_ydata().tolist() == pytest.approx([85, 25])
    assert (lines["random"].get_color(), lines["random"].get_linestyle()) == ("black", "--")
    nothing = pd.DataFrame(rows).assign(value=NAN)
    assert texts(retraining_curves(nothing, {}, "")) == ["no method applies to this network"]


def test_exhibits_are_of_the_images_that_the_atlas_explains(dataset):
    rng = np.random.default_rng(1)
    maps = {"grad_cam": rng.random((4, 4, 4)), "random": rng.random((4, 4, 4))}
    samples = np.array([0, 1, 3, 5])  # of the classes 0, 1, 0, 2
    atlas = Atlas(samples, np.array([0, 2, 0, 2]), maps, refusals={"cam": "why"})
    images, titles, rows = explained_images(dataset, atlas, METHODS, count=3)
    assert titles == ["ant", "cat\n(is bee $x$)", "cat"]
    assert [row.title for row in rows] == ["CAM", "Grad-CAM", "random"]
    assert (rows[0].maps, rows[0].refusal) == (None, "why")
    chosen = [0, 1, 3] if np.allclose(images[0], dataset.display(dataset.inputs("test", [0])[0])) else [2, 1, 3]
    assert np.array_equal(rows[1].maps, maps["grad_cam"][chosen])
    expected = [dataset.display(image) for image in dataset.inputs("test", samples[chosen])]
    assert all(np.allclose(image, own) for image, own in zip(images, expected, strict=True))


def test_images_of_classes_stand_beside_validation_images(dataset):
    images = {"activation_maximisation": np.random.default_rng(0).random((3, 1, 4, 4))}
    judged = pd.DataFrame(
        [("validation", number, 0.5, NAN) for number in range(3)]
        + [("activation_maximisation", number, 0.25, 0.5) for number in range(3)]
        + [("dgn_am", NAN, NAN, NAN)],
        columns=["method", "class", "probability", "agreement"],
    )
    real, made, refused = painted_images(dataset, images, {"dgn_am": "why"}, judged, METHODS)
    assert (real.title, made.title, refused.title) == ("validation image", "AM", "DGN-AM")
    assert real.captions == dict.fromkeys(range(3), "p = 0.50")
    assert made.captions == dict.fromkeys(range(3), "p = 0.25\njudges 50%")
    assert np.allclose(real.images[2], dataset.display(dataset.inputs("validation", [2])[0]))
    assert np.allclose(made.images[1], dataset.display(images["activation_maximisation"][1]))
    assert (refused.images, refused.refusal) == (None, "why")
    assert painted_images(dataset, {}, {}, judged, METHODS) == []
    assert texts(synthesis([], dataset.classes, "")) == ["no method made images of classes"]
