"""nnscan.figures: every figure draws without a warning, also where little is known; equal input gives equal files."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import AxesImage

from nnscan import figures
from nnscan.artifacts import write_frame
from nnscan.figures import Cloud, Portrait, by_checkpoint, by_seed, save_figure, short_layers

CLASSES = ("ant", "bee", "cat")


pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _small_figures_that_are_closed():
    with mpl.rc_context({"figure.dpi": 40}):
        yield
    plt.close("all")


def drawn(figure):
    """Draw the figure, so that all that happens late has happened."""
    figure.canvas.draw()
    return figure


def pictures(figure):
    return [child for axes in figure.axes for child in axes.get_children() if isinstance(child, AxesImage)]


def rng():
    return np.random.default_rng(0)


# Synthetic results --------------------------------------------------------------------------------------------------


def averages(classes=3, channels=1, kinds=("simple", "most", "least", "ascended")):
    images = {kind: rng().random((classes, channels, 6, 6)) * 1.2 - 0.1 for kind in kinds}
    return images, [f"c{number}" for number in range(classes)], {kind: np.eye(classes) * 0.9 for kind in kinds}


def portraits(layers=("a", "b"), strongest=2, weakest=2, channels=1):
    found = []
    for layer in layers:
        for ends, count in ((True, strongest), (False, weakest)):
            for number in range(count):
                sample = rng().random((channels, 6, 6))
                image = np.zeros((6, 6)) if number else rng().standard_normal((6, 6))
                found.append(Portrait(layer, f"FQ {number}\nfilter {number}", ends, sample, image))
    return found


def quantities(layers=3, seeds=(0, 1), masked=True):
    generator = rng()
    parts = []
    for seed in seeds:
        for depth in reversed(range(layers)):
            values = generator.random((20, 5))
            frame = pd.DataFrame(values, columns=["l", "c", "s", "ssim", "fq"])
            parts.append(frame.assign(layer=f"features.{3 * depth}", depth=depth, seed=seed))
    frame = pd.concat(parts, ignore_index=True)
    return frame if masked else frame.assign(fq=np.nan)


def similarities(layers=3, seeds=(0, 1), classes=3, filters=4, kinds=("simple", "most", "least")):
    index = pd.MultiIndex.from_product(
        [seeds, kinds, (1, 2), range(classes), range(layers), range(filters)],
        names=["seed", "average", "method", "class", "depth", "filter"],
    )
    frame = pd.DataFrame({"similarity": rng().uniform(-1, 1, len(index))}, index=index).reset_index()
    return frame.assign(layer="features." + (3 * frame["depth"]).astype(str))


def curves(seeds=(0, 1), draws=2, rankings=("T_m", "T_v", "T_c", "T_cor")):
    rows = [
        ("features.6", ranking, draw, fraction, 0.9, -50 * fraction - draw, seed)
        for seed in seeds
        for ranking in (*rankings, "random")
        for draw in range(draws if ranking == "random" else 1)
        for fraction in (0, 0.5, 1)
    ]
    return pd.DataFrame(rows, columns=["layer", "ranking", "draw", "fraction", "accuracy", "change", "seed"])


def history(phases=("regular", "overfitting"), seeds=(0, 1), epochs=4):
    rows = [
        (phase, epoch, 0.0 if epoch == epochs else 1 / epoch, 0.8, 1.2 / epoch, 0.7, seed)
        for phase in phases
        for seed in seeds
        for epoch in range(1, epochs + 1)
    ]
    columns = ["phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seed"]
    return pd.DataFrame(rows, columns=columns)


def anomalies(checkpoints=("well_trained", "overfitted"), seeds=(0, 1), share=0.25):
    rows = [
        (checkpoint, seed, number < 8 * share)
        for checkpoint in checkpoints
        for seed in seeds
        for number in range(8)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["checkpoint", "seed", "is_anomaly"])


def clouds(count=2, outliers=2, channels=1):
    return [
        Cloud(
            f"layer filter {number}: anomaly",
            rng().standard_normal((50, 2)),
            np.arange(outliers, dtype=np.int64),
            rng().random((min(outliers, 3), channels, 6, 6)),
        )
        for number in range(count)
    ]


# Drawing ------------------------------------------------------------------------------------------------------------

EVERY = {
    "class_averages": lambda: figures.class_averages(*averages()),
    "learning_images": lambda: figures.learning_images(portraits()),
    "quantity": lambda: figures.quantity(quantities()),
    "similarity": lambda: figures.similarity(similarities(), CLASSES),
    "aipc": lambda: figures.aipc(curves()),
    "training": lambda: figures.training(history()),
    "anomaly": lambda: figures.anomaly(anomalies(), clouds()),
}


@pytest.mark.parametrize("name", EVERY)
def test_equal_input_gives_equal_files(tmp_path, name):
    with mpl.rc_context({"savefig.dpi": 50}):
        for number in (1, 2):
            save_figure(tmp_path / f"{number}.png", EVERY[name]())
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (tmp_path / "1.png").read_bytes()[:4] == b"\x89PNG"
    assert not plt.get_fignums()


@pytest.mark.parametrize(("classes", "channels", "kinds"), [
    (3, 3, ("simple", "most", "least", "ascended")), (1, 1, ("simple",)), (25, 3, ("simple", "ascended")),
])  # fmt: skip
def test_class_averages(classes, channels, kinds):
    images, names, confidences = averages(classes, channels, kinds)
    figure = drawn(figures.class_averages(images, names, confidences))
    shown = min(classes, 20)
    assert len(pictures(figure)) == len(kinds) * shown
    assert figure.axes[0].get_title() == "0.90"
    assert figure.axes[0].get_ylabel() == "simple"
    assert [axes.get_xlabel() for axes in figure.axes[-shown:]] == names[:shown]
    first = pictures(figure)[0].get_array()
    expected = images[kinds[0]][0]
    assert first.shape == ((6, 6, 3) if channels == 3 else (6, 6))
    if channels == 3:
        np.testing.assert_array_equal(first, np.clip(expected.transpose(1, 2, 0), 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("layers", "strongest", "weakest"), [(("a", "b"), 3, 1), (("a",), 1, 1), (("a", "b"), 2, 0)])
def test_learning_images(channels, layers, strongest, weakest):
    found = portraits(layers, strongest, weakest, channels)
    figure = drawn(figures.learning_images(found))
    assert len(pictures(figure)) == 2 * len(found)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == [text for number in range(len(layers)) for text in (f"conv{number + 1}\ninput", "learning\nimage")]
    signed = [picture for picture in pictures(figure) if picture.get_clim()[0] < 0]
    assert len(signed) == len(found)
    assert all(low == -high for low, high in (picture.get_clim() for picture in signed))


def test_no_learning_image_at_all():
    figure = drawn(figures.learning_images([]))
    assert "no neuron" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("layers", "seeds", "masked"), [(3, (0,), True), (1, (0, 1), True), (1, (4,), False),
                                                         (12, (0, 1), False)])  # fmt: skip
def test_quantity(layers, seeds, masked):
    table = quantities(layers, seeds, masked)
    figure = drawn(figures.quantity(table))
    left, right = figure.axes
    names = [label.get_text() for label in left.get_legend().get_texts()]
    assert names == (["FQ", "SSIM"] if masked else ["SSIM"])
    assert [tick.get_text() for tick in left.get_xticklabels()] == [f"conv{number + 1}" for number in range(layers)]
    assert right.get_ylabel() == ("FQ of a neuron" if masked else "SSIM of a neuron")
    expected = table.groupby(["depth", "seed"])["fq" if masked else "ssim"].mean().groupby("depth").mean()
    np.testing.assert_allclose(left.lines[0].get_ydata(), expected)


@pytest.mark.parametrize(("layers", "seeds", "classes", "filters", "kinds"), [
    (3, (0,), 3, 4, ("simple", "most", "least")), (1, (0,), 1, 1, ("simple",)), (2, (0, 1), 25, 2, ("simple", "least")),
])  # fmt: skip
def test_similarity(layers, seeds, classes, filters, kinds):
    table = similarities(layers, seeds, classes, filters, kinds)
    figure = drawn(figures.similarity(table, [f"c{number}" for number in range(classes)]))
    assert len(figure.axes) == 4 * len(kinds)
    assert bool(figure.legends) == (classes <= 20)
    axes = figure.axes[len(kinds) * 1]  # method 2, mean
    part = table[(table["average"] == kinds[0]) & (table["method"] == 2)]
    assert len(axes.lines) == classes + 1
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), part.groupby("depth")["similarity"].mean())
    np.testing.assert_allclose(
        axes.lines[0].get_ydata(), part[part["class"] == 0].groupby("depth")["similarity"].mean()
    )
    deviations = figure.axes[len(kinds) * 3].lines[0].get_ydata()
    spread = part[part["class"] == 0].groupby(["seed", "depth"])["similarity"].std().fillna(0).groupby("depth").mean()
    np.testing.assert_allclose(deviations, spread)


@pytest.mark.parametrize(("seeds", "draws", "rankings"), [((0,), 1, ("T_m", "T_v", "T_c", "T_cor")),
                                                          ((0, 1, 2), 3, ("T_c",))])  # fmt: skip
def test_aipc(seeds, draws, rankings):
    figure = drawn(figures.aipc(curves(seeds, draws, rankings)))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_legend().get_texts()]
    assert names == [*(figures.PROPERTY_LABELS[name] for name in rankings), "random order"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 0), (0.5, -25), (1, -50)])
    assert "features.6" in axes.get_title()


@pytest.mark.parametrize(("phases", "seeds", "epochs"), [(("regular",), (0,), 3), (("regular", "overfitting"), (5,), 1),
                                                         (("regular", "overfitting"), (0, 1, 2), 6)])  # fmt: skip
def test_training(phases, seeds, epochs):
    figure = drawn(figures.training(history(phases, seeds, epochs)))
    assert len(figure.axes) == 2 * len(phases)
    assert [axes.get_title() for axes in figure.axes[: len(phases)]] == [f"{phase} training" for phase in phases]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), 1.2 / np.arange(1, epochs + 1))


def test_training_of_a_model_that_was_not_trained_here():
    empty = history(seeds=()).astype({"phase": object})
    figure = drawn(figures.training(empty))
    assert "not trained by nnscan" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("checkpoints", "seeds", "share", "chosen"), [
    (("well_trained",), (0,), 0.0, []),
    (("well_trained",), (0, 1), 0.5, clouds(1, outliers=0)),
    (("well_trained", "overfitted"), (0,), 0.25, clouds(4, outliers=5, channels=3)),
    (("well_trained", "overfitted"), (0, 1, 2), 0.0, clouds(2, outliers=1)),
])  # fmt: skip
def test_anomaly(checkpoints, seeds, share, chosen):
    figure = drawn(figures.anomaly(anomalies(checkpoints, seeds, share), chosen))
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([100 * share] * len(checkpoints))
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["well trained", "overfitted"][: len(checkpoints)]
    assert len(pictures(figure)) == sum(len(cloud.samples) for cloud in chosen)
    scattered = [axes for axes in figure.axes[1:] if axes.collections]
    assert len(scattered) == len(chosen)
    for axes, cloud in zip(scattered, chosen, strict=True):
        inside, outside = (collection.get_offsets() for collection in axes.collections)
        np.testing.assert_array_equal(outside, cloud.points[cloud.outliers])
        assert len(inside) + len(outside) == len(cloud.points)


# Reading ------------------------------------------------------------------------------------------------------------


def test_layers_are_numbered_as_the_sources_do():
    assert short_layers(["features.0", "features.3"]) == ["conv1", "conv2"]
    assert short_layers(["1", "3"], convolutional=False) == ["layer1", "layer2"]
    assert short_layers([]) == []


def test_files_of_seeds_and_checkpoints_become_one_table(tmp_path):
    paths = []
    for checkpoint in ("well_trained", "overfitted"):
        for seed in (7, 3):
            paths.append(tmp_path / f"{checkpoint}{seed}.parquet")
            write_frame(paths[-1], pd.DataFrame({"value": [f"{checkpoint}{seed}"] * 2}), {})
    found = by_checkpoint(paths, ["well_trained", "overfitted"], [7, 3])
    assert (found["checkpoint"] + found["seed"].astype(str) == found["value"]).all()
    assert len(found) == 8
    pd.DataFrame({"epoch": [1, 2]}).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"epoch": []}).to_csv(tmp_path / "b.csv", index=False)
    found = by_seed([tmp_path / "a.csv", tmp_path / "b.csv"], [4, 5])
    assert found["seed"].tolist() == [4, 4]
    with pytest.raises(ValueError, match="shorter"):
        by_seed(paths[:2], [1])


def test_a_failed_figure_leaves_no_file(tmp_path):
    figure, axes = plt.subplots()
    axes.set_title("$\\nothing$")
    with pytest.raises(ValueError, match="nothing"):
        save_figure(tmp_path / "figure.png", figure)
    assert not list(tmp_path.iterdir())
