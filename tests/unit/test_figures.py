"""nnscan.figures: every figure draws without a warning, also where little is known; equal input gives equal files."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.contour import ContourSet
from matplotlib.image import AxesImage

from nnscan import figures
from nnscan.artifacts import write_frame
from nnscan.figures import (
    Cloud,
    Contest,
    MapColumn,
    MapPair,
    Portrait,
    Process,
    SimilarNeuron,
    UnitGallery,
    by_checkpoint,
    by_seed,
    numbered_layers,
    save_figure,
    short_layers,
)

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
                found.append(Portrait(layer, "FQ", f"FQ {number}\nfilter {number}", ends, sample, image))
    return found


def quantities(layers=3, seeds=(0, 1), masked=True):
    generator = rng()
    parts = []
    for seed in seeds:
        for depth in reversed(range(layers)):
            values = generator.random((20, 5))
            frame = pd.DataFrame(values, columns=["l", "c", "s", "ssim", "fq"])
            places = np.arange(20) % 10
            parts.append(frame.assign(layer=f"features.{3 * depth}", depth=depth, seed=seed, row=places, column=places))
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


def process(title="LeNet-5", layers=3, samples=2, channels=1):
    images = [[rng().standard_normal((6, 6)) for _ in range(layers)] for _ in range(samples)]
    names = numbered_layers([True] * (layers - 1) + [False])
    return Process(title, names, list(rng().random((samples, channels, 6, 6))), images)


def amounts(models=("FCN", "LeNet-5"), layers=2, seeds=(0, 1)):
    rows = [
        (model, seed, f"l{depth}", depth, 0.5, 0.1 * depth + seed, 0.2 + 0.1 * depth, 0.01 * (depth + 1), 0.7)
        for model in models for seed in seeds for depth in range(layers)
    ]  # fmt: skip
    columns = ["model", "seed", "layer", "depth", "active", "intensity", "intensity_share", "count", "input_count"]
    return pd.DataFrame(rows, columns=columns)


def distance_table(kinds=(True, True, False), seeds=(0, 1), neurons=3):
    index = pd.MultiIndex.from_product([seeds, range(len(kinds)), range(neurons)], names=["seed", "depth", "neuron"])
    names = ["own", "other", "own_scaled", "other_scaled"]
    frame = pd.DataFrame(rng().uniform(1, 1.4, (len(index), 4)), index=index, columns=names).reset_index()
    frame["convolutional"] = frame["depth"].map(lambda depth: kinds[depth])
    return frame.assign(layer="l" + frame["depth"].astype(str))


def winner_table(seeds=(0, 1), samples=4, outputs=3):
    index = pd.MultiIndex.from_product([seeds, range(samples), range(outputs)], names=["seed", "sample", "output"])
    frame = pd.DataFrame(index=index).reset_index()
    frame["score"] = -frame["output"] + 0.0
    frame["winner"] = frame["output"] == 0
    frame["distance"] = np.where(frame["sample"] == 0, 5 - frame["output"], frame["output"] + 1.0)  # one miss
    return frame.assign(distance_scaled=frame["output"] / 10 + 1)


def contest(outputs=3, channels=1):
    titles = [f"c{number}: 1.{number}" for number in range(outputs)]
    return Contest(rng().random((channels, 6, 6)), titles, list(rng().standard_normal((outputs, 6, 6))))


def map_pairs(layers=("a", "b"), filters=3):
    return [
        MapPair(layer, f"filter {number}", rng().random((3, 3)) * number, rng().random((6, 6)) * number)
        for layer in layers
        for number in range(filters)
    ]


def elements(layers=3, seeds=(0, 1), masked=True, places=4):
    rows = [
        (seed, f"features.{depth}", depth, places, without, *(0.1 * rng().random(4) + 0.1 * depth))
        for seed in seeds for depth in reversed(range(layers)) for without in figures.ELEMENT_LABELS
    ]  # fmt: skip
    measures = ["mean", "variance", "correlation", "correlation_active"]
    frame = pd.DataFrame(rows, columns=["seed", "layer", "depth", "places", "without", *measures])
    return frame if masked else frame.assign(**dict.fromkeys(measures, np.nan))


def anomaly_counts(seeds=(0, 1), epochs=(2, 4, 5)):
    """Counts along an overfitting training that ends in the epoch 5; the seed's number is added to each."""
    rows = [
        (f"overfitting{epoch}", epoch, 30, 3 * epoch + seed, 2 * epoch + seed, epoch + seed, epoch + seed, seed)
        for seed in seeds
        for epoch in epochs
    ]
    rows += [("well_trained", 3 + seed, 30, 9, 9, 9, 8 + seed, seed) for seed in seeds]
    signs = ["unbalanced", "high_ch", "high_activation", "is_anomaly"]
    return pd.DataFrame(rows, columns=["checkpoint", "epoch", "filters", *signs, "seed"])


def strongest(count=2, channels=1):
    filters = {"T_m": 7, "T_v": 7, "T_c": 0, "T_cor": 12}
    images = {name: rng().standard_normal((count, 6, 6)) + place for place, name in enumerate(filters)}
    return "features.3", filters, rng().random((count, channels, 6, 6)), images


def explained(count=3, channels=1):
    maps = rng().random((count, 6, 6))
    columns = [MapColumn("one", maps), MapColumn("two", None, "not defined for this network, " * 4)]
    return rng().random((count, channels, 6, 6)), [f"image {number}" for number in range(count)], columns


def alike(layers=("conv1", "conv2"), count=3, channels=1):
    neurons = [
        SimilarNeuron(layer, most, f"filter {number}\n0.5", rng().standard_normal((channels, 6, 6)))
        for layer in layers
        for most in (False, True)
        for number in range(count)
    ]
    return neurons, rng().random((channels, 6, 6)), rng().standard_normal((channels, 6, 6))


def cut_histories(seeds=(0, 1), chosen=(2, 2), networks=(2, 3, 5)):
    rows = [
        (convolutions, convolutions == choice, epoch, 1 / epoch, 0.5, abs(epoch - convolutions) + 1, seed)
        for seed, choice in zip(seeds, chosen, strict=True)
        for convolutions in networks
        for epoch in range(1, 7)
    ]
    columns = ["convolutions", "chosen", "epoch", "train_loss", "validation_accuracy", "validation_loss", "seed"]
    return pd.DataFrame(rows, columns=columns)


def measures(seeds=(0, 1)):
    rows = [
        {"measure": measure, "class": number, "value": 0.1, "over_other": share, "over_shuffled": 0.5,
         "darker_over_other": 1.0, "brightness": np.nan if measure == "histogram" else share + seed, "seed": seed}
        for seed in seeds
        for measure, share in (("cosine", 0.9), ("Euclidean", 0.4), ("histogram", 0.2))
        for number in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


# Drawing ------------------------------------------------------------------------------------------------------------

EVERY = {
    "class_averages": lambda: figures.class_averages(*averages()),
    "learning_images": lambda: figures.learning_images(portraits()),
    "quantity": lambda: figures.quantity(quantities()),
    "similarity": lambda: figures.similarity(similarities(), CLASSES),
    "aipc": lambda: figures.aipc(curves()),
    "training": lambda: figures.training(history()),
    "strongest_filters": lambda: figures.strongest_filters(*strongest()),
    "anomaly_history": lambda: figures.anomaly_history(history(("overfitting",)), anomaly_counts()),
    "anomaly": lambda: figures.anomaly(anomalies(), clouds()),
    "explanations": lambda: figures.explanations(*explained(), "Maps"),
    "similar_neurons": lambda: figures.similar_neurons(*alike(), "Neurons"),
    "cut_training": lambda: figures.cut_training(cut_histories()),
    "similarity_measures": lambda: figures.similarity_measures(measures()),
    "learning_process": lambda: figures.learning_process([process("FCN", 2), process()]),
    "knowledge": lambda: figures.knowledge(amounts()),
    "distances": lambda: figures.distances(distance_table()),
    "winners": lambda: figures.winners(winner_table(), [contest()]),
    "feature_maps": lambda: figures.feature_maps(rng().random((1, 6, 6)), map_pairs()),
    "quantity_correlation": lambda: figures.quantity_correlation(elements()),
    "quantity_ablation": lambda: figures.quantity_ablation(elements()),
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
    images_shown = figure.axes[: len(kinds) * shown]
    assert [axes.get_xlabel() for axes in images_shown[-shown:]] == names[:shown]
    matrices = figure.axes[len(kinds) * shown :][: len(kinds)]
    assert figure.axes[-1].get_ylim() == (0, 1)  # the color bar's
    for axes, kind in zip(matrices, kinds, strict=True):
        assert axes.get_title() == f"{figures.AVERAGE_LABELS[kind]} averages"
        (mesh,) = axes.collections
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(classes, classes), confidences[kind])
        assert mesh.get_clim() == (0, 1)
        assert len(axes.texts) == (classes**2 if classes <= 10 else 0)
        labels = [tick.get_text() for tick in axes.get_yticklabels()]
        assert labels == (names if classes <= 10 else [])
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
    assert "largest FQ" in figure.get_suptitle()
    assert "largest SSIM" in figures.learning_images([replace(one, measure="SSIM") for one in found]).get_suptitle()
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
    left, middle, right = figure.axes
    names = [label.get_text() for label in left.get_legend().get_texts()]
    assert names == (["FQ", "SSIM"] if masked else ["SSIM"])
    assert [tick.get_text() for tick in left.get_xticklabels()] == [f"conv{number + 1}" for number in range(layers)]
    assert right.get_ylabel() == ("FQ of a neuron" if masked else "SSIM of a neuron")
    groups = table.groupby(["depth", "seed"])["fq" if masked else "ssim"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), groups.mean().groupby("depth").mean())
    np.testing.assert_allclose(middle.lines[0].get_ydata(), groups.var(ddof=0).groupby("depth").mean())
    linear = drawn(figures.quantity(table.assign(row=0, column=0))).axes[0]
    assert [tick.get_text() for tick in linear.get_xticklabels()] == [f"layer{number + 1}" for number in range(layers)]


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
    spread = part[part["class"] == 0].groupby(["seed", "depth"])["similarity"].std(ddof=0).groupby("depth").mean()
    np.testing.assert_allclose(deviations, spread)
    labels = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert labels == [f"conv{number + 1}" for number in range(layers)]
    linear = drawn(figures.similarity(table, [f"c{number}" for number in range(classes)], convolutional=False)).axes[-1]
    assert [tick.get_text() for tick in linear.get_xticklabels()] == [f"layer{number + 1}" for number in range(layers)]


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
    assert figure.axes[0].get_ylim()[0] == 0 < figure.axes[0].get_ylim()[1]
    assert len(pictures(figure)) == sum(len(cloud.samples) for cloud in chosen)
    scattered = [axes for axes in figure.axes[1:] if axes.collections]
    assert len(scattered) == len(chosen)
    for axes, cloud in zip(scattered, chosen, strict=True):
        inside, outside = (collection.get_offsets() for collection in axes.collections)
        np.testing.assert_array_equal(outside, cloud.points[cloud.outliers])
        assert len(inside) + len(outside) == len(cloud.points)


@pytest.mark.parametrize(("first", "second"), [((2, 3, 1), (5, 2, 3)), ((1, 1, 1), None)])
def test_learning_process(first, second):
    processes = [process("FCN", *first)] + ([process("CNN", *second)] if second else [])
    figure = drawn(figures.learning_process(processes))
    assert len(pictures(figure)) == sum(len(own.samples) * (1 + len(own.layers)) for own in processes)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [title for own in processes for title in ("input", *own.layers)]
    headings = [panel.get_suptitle() for panel in figure.subfigs]
    assert [heading.split(":")[0] for heading in headings] == [own.title for own in processes]
    signed = [picture.get_array() for picture in pictures(figure) if picture.get_clim()[0] < 0]
    expected = [image for own in processes for images in own.images for image in images]
    for found, image in zip(signed, expected, strict=True):
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(("models", "layers", "seeds"), [(("FCN", "LeNet-5"), 3, (0, 1)), (("VGG-11",), 1, (4,))])
def test_knowledge(models, layers, seeds):
    table = amounts(models, layers, seeds)
    figure = drawn(figures.knowledge(table))
    count, intensity, active = figure.axes
    names = [label.get_text() for label in count.get_legend().get_texts()]
    assert names == [*models, "input"]
    first = table[table["model"] == models[0]].groupby("depth").mean(numeric_only=True)
    np.testing.assert_allclose(count.lines[0].get_xydata(), [*zip(first.index + 1, 100 * first["count"], strict=True)])
    np.testing.assert_allclose(intensity.lines[0].get_ydata(), first["intensity_share"])
    np.testing.assert_allclose(active.lines[0].get_ydata(), 100 * first["active"])
    low, high = count.get_ylim()
    assert low == 0
    assert high > 70  # the line of the input shows


@pytest.mark.parametrize(("kinds", "labels"), [
    ((True, False, True, False), ["conv1", "fc1", "conv2", "fc2"]), ((False,), ["fc1"]), ((True,) * 13, None),
])  # fmt: skip
def test_distances(kinds, labels):
    table = distance_table(kinds)
    figure = drawn(figures.distances(table))
    raw, scaled, difference = figure.axes
    ticks = [tick.get_text() for tick in raw.get_xticklabels()]
    assert ticks == (labels or [f"conv{number + 1}" for number in range(13)])
    means = table.groupby(["seed", "depth"]).mean(numeric_only=True)
    for axes, ending in ((raw, ""), (scaled, "_scaled")):
        for line, name in zip(axes.lines, ("own", "other"), strict=False):
            np.testing.assert_allclose(line.get_ydata(), means[name + ending].groupby("depth").mean())
    closeness = (100 * (1 - means["own_scaled"] / means["other_scaled"])).groupby("depth").mean()
    np.testing.assert_allclose(difference.lines[0].get_ydata(), closeness)


def test_distances_of_neurons_that_are_never_active():
    figure = drawn(figures.distances(distance_table()[:0]))
    assert "no neuron" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("outputs", "shown", "channels"), [(3, [3, 2], 1), (12, [10], 3)])
def test_winners(outputs, shown, channels):
    found = [contest(count, channels) for count in shown]
    figure = drawn(figures.winners(winner_table(outputs=outputs), found))
    raw, scaled, hits = figure.axes[:3]
    assert [bar.get_height() for bar in hits.patches] == pytest.approx([75, 100])
    assert hits.lines[-1].get_ydata()[0] == pytest.approx(100 / outputs)
    ranks = np.arange(outputs)
    np.testing.assert_allclose(scaled.lines[0].get_xydata(), np.stack([ranks + 1, 1 + ranks / 10], 1))
    np.testing.assert_allclose(raw.lines[0].get_ydata(), (5 - ranks + 3 * (ranks + 1)) / 4)
    assert len(pictures(figure)) == sum(1 + count for count in shown)
    titles = [axes.get_title() for axes in figure.axes[3:] if axes.get_title()]
    assert titles == [title for own in found for title in ("input", *own.titles)]


@pytest.mark.parametrize("layers", [("a",), ("a", "b", "c")])
def test_feature_maps(layers):
    pairs = map_pairs(layers)
    figure = drawn(figures.feature_maps(rng().random((3, 6, 6)), pairs))
    assert len(pictures(figure)) == 1 + 2 * len(pairs)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    expected = [(f"conv{place}\nfeature map", "learning\nimage") for place in range(1, len(layers) + 1)]
    assert labels == [label for both in expected for label in both]
    shown = {picture.get_array().shape: picture.get_array().max() for picture in pictures(figure)[1:]}
    assert set(shown) == {(3, 3), (6, 6)}
    assert all(picture.get_array().max() in (0, 1) for picture in pictures(figure)[1:])  # by its own largest value


def test_a_network_without_feature_maps():
    figure = drawn(figures.feature_maps(rng().random((1, 6, 6)), []))
    assert "no layer has feature maps" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("layers", "seeds", "places", "label"), [(3, (0, 1), 4, "conv1"), (1, (2,), 1, "layer1")])
def test_quantity_by_layer(layers, seeds, places, label):
    table = elements(layers, seeds, places=places)
    (bars,) = drawn(figures.quantity_correlation(table)).axes
    whole = table[table["without"] == ""].groupby("depth").mean(numeric_only=True)
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["all neurons", "active neurons"]
    expected = [*whole["correlation"], *whole["correlation_active"]]
    assert [bar.get_height() for bar in bars.patches[: 2 * layers]] == pytest.approx(expected)
    figure = drawn(figures.quantity_ablation(table))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(figures.ELEMENT_LABELS.values())
    for axes, name in zip(figure.axes, ("correlation", "mean", "variance"), strict=True):
        assert axes.get_xticklabels()[0].get_text() == label
        for line, without in zip(axes.lines, figures.ELEMENT_LABELS, strict=False):
            own = table[table["without"] == without].groupby("depth")[name].mean()
            np.testing.assert_allclose(line.get_ydata(), own)


def test_quantity_by_layer_without_masks_or_with_dead_neurons():
    for draw in (figures.quantity_correlation, figures.quantity_ablation):
        assert "no foreground masks" in drawn(draw(elements(masked=False))).axes[0].texts[0].get_text()
    drawn(figures.quantity_ablation(elements().assign(mean=0.0, variance=0.0)))


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (3, 3)])
def test_strongest_filters(count, channels):
    layer, filters, samples, images = strongest(count, channels)
    figure = drawn(figures.strongest_filters(layer, filters, samples, images))
    assert len(pictures(figure)) == 5 * count
    heads = [axes.get_title() for axes in figure.axes]
    assert [head.split("\n")[-1] for head in heads[:5]] == ["input", "filter 7", "filter 7", "filter 0", "filter 12"]
    assert [head.split("\n")[0] for head in heads[1:5]] == list(figures.PROPERTY_LABELS.values())
    assert not any(heads[5:])
    for row in range(count):
        for column, name in enumerate(filters, start=1):
            (picture,) = (c for c in figure.axes[5 * row + column].get_children() if isinstance(c, AxesImage))
            np.testing.assert_array_equal(picture.get_array(), images[name][row])
    assert "features.3" in figure.get_suptitle()


@pytest.mark.parametrize(("seeds", "factor"), [((0,), 1), ((0, 1), 1), ((0, 1), 0)])
def test_anomaly_history(seeds, factor):
    counts = anomaly_counts(seeds)
    counts["is_anomaly"] *= factor
    figure = drawn(figures.anomaly_history(history(("overfitting",), seeds, 5), counts))
    left, middle, right = figure.axes
    np.testing.assert_allclose(left.lines[1].get_ydata(), 1.2 / np.arange(1, 6))
    shift = factor * np.mean(seeds)
    np.testing.assert_allclose(middle.lines[0].get_xydata(), [(e, factor * e + shift) for e in (2, 4, 5)])
    crosses = middle.collections[-1].get_offsets()
    np.testing.assert_allclose(crosses, [(3 + seed, factor * (8 + seed)) for seed in seeds])
    assert middle.get_ylabel() == "anomaly filters (of 30)"
    for line, sign in zip(right.lines[:3], figures.SIGN_LABELS, strict=True):
        expected = counts[counts["checkpoint"] != "well_trained"].groupby("epoch")[sign].mean()
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert all(axes.get_ylim()[0] < 0 < axes.get_ylim()[1] for axes in (middle, right))
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == list(figures.SIGN_LABELS.values())


def test_anomaly_history_of_a_model_that_was_not_overfitted():
    figure = drawn(figures.anomaly_history(by_seed([], []), by_seed([], [])))
    assert "no overfitting training" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (4, 3)])
def test_explanations(count, channels):
    samples, titles, columns = explained(count, channels)
    figure = drawn(figures.explanations(samples, titles, columns, "Maps"))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["input", "one", "two"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == titles
    assert len(pictures(figure)) == 2 * count
    shown = [picture.get_array() for picture in pictures(figure)[1::2]]
    np.testing.assert_array_equal(shown, columns[0].maps)
    (text,) = figure.axes[2].texts
    assert text.get_text().replace("\n", " ") == columns[1].reason.strip()


@pytest.mark.parametrize(("layers", "count", "channels"), [(("conv1",), 1, 3), (("conv1", "conv2", "conv5"), 8, 1)])
def test_similar_neurons(layers, count, channels):
    neurons, average, visualisation = alike(layers, count, channels)
    figure = drawn(figures.similar_neurons(neurons, average, visualisation, "Neurons"))
    assert len(pictures(figure)) == len(neurons) + 2
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == [f"{layer}\n{end} similar" for layer in layers for end in ("least", "most")]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title().startswith("filter")]
    assert titles == [neuron.title for neuron in neurons]
    first = pictures(figure)[1].get_array()
    expected = neurons[0].image
    if channels == 3:
        scaled = 0.5 + 0.5 * expected / np.abs(expected).max()
        np.testing.assert_allclose(first, scaled.transpose(1, 2, 0))
    else:
        np.testing.assert_array_equal(first, expected[0])


def test_no_similar_neuron_at_all():
    _, average, visualisation = alike()
    figure = drawn(figures.similar_neurons([], average, visualisation, "Neurons"))
    assert "no neuron is active" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(("seeds", "chosen", "labels"), [
    ((0,), (2,), ["2 convolutions (the curve's choice)", "3 convolutions", "5 convolutions"]),
    ((0, 1), (2, 3), ["2 convolutions (chosen by 1 of 2 seeds)", "3 convolutions (chosen by 1 of 2 seeds)",
                      "5 convolutions"]),
])  # fmt: skip
def test_cut_training(seeds, chosen, labels):
    figure = drawn(figures.cut_training(cut_histories(seeds, chosen)))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [*labels, "lowest validation loss"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "validation accuracy", "validation loss"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 / np.arange(1, 7))
    markers = [line.get_xydata().tolist() for line in figure.axes[2].lines if line.get_marker() == "v"]
    assert markers == [[[2, 1]], [[3, 1]], [[5, 1]]]


def test_no_layers_removed():
    figure = drawn(figures.cut_training(None))
    assert "no layers were removed" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_similarity_measures(seeds):
    figure = drawn(figures.similarity_measures(measures(seeds)))
    assert len(figure.axes) == 4
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cosine", "Euclidean", "histogram"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.9, 0.4, 0.2])
    widths = [bar.get_width() for bar in figure.axes[3].patches if np.isfinite(bar.get_width())]
    assert widths[:2] == pytest.approx([0.9 + np.mean(seeds), 0.4 + np.mean(seeds)])


# Reading ------------------------------------------------------------------------------------------------------------


def test_layers_are_numbered_as_the_sources_do():
    assert short_layers(["features.0", "features.3"]) == ["conv1", "conv2"]
    assert short_layers(["1", "3"], convolutional=False) == ["layer1", "layer2"]
    assert short_layers([]) == []
    assert numbered_layers([True, False, True, False, False]) == ["conv1", "fc1", "conv2", "fc2", "fc3"]


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


# Network Dissection -------------------------------------------------------------------------------------------------


def test_units_are_outlined_and_the_rest_of_their_images_dimmed():
    images = np.ones((3, 3, 4, 6))
    masks = np.zeros((3, 4, 6), bool)
    masks[:, 1] = True
    galleries = [UnitGallery(f"unit {n}: $car, IoU 0.1", images[: 3 - n], masks[: 3 - n]) for n in range(3)]
    figure = drawn(figures.unit_galleries({"conv1": galleries[:1], "silent": [], "conv5": galleries[1:]}))
    shown = [picture.get_array() for picture in pictures(figure)]
    assert len(shown) == 3 + 2 + 1
    assert all((np.asarray(image)[1] == 1).all() and (np.asarray(image)[[0, 2, 3]] == 0.5).all() for image in shown)
    outlines = [[part for part in axes.collections if isinstance(part, ContourSet)] for axes in figure.axes]
    assert [len(found) for found in outlines] == [1] * 6
    masks[1], masks[2] = True, False  # there is nothing to outline
    some = drawn(figures.unit_galleries({"a": [UnitGallery("unit", images, masks)]}))
    assert [len(axes.collections) for axes in some.axes] == [1, 0, 0]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert list(filter(None, titles)) == [
        rf"{layer}, unit {unit}: \$car, IoU 0.1" for unit, layer in enumerate(("conv1", "conv5", "conv5"))
    ]
    tops = [figure.axes[place].get_position().y1 for place in (0, 3, 5)]
    assert tops[0] > tops[1] == pytest.approx(tops[2])  # each layer begins a row
    nothing = drawn(figures.unit_galleries({"a": []}))
    assert [text.get_text() for axes in nothing.axes for text in axes.texts] == ["no unit overlaps with a concept"]


def detector_counts(top):
    rows = [
        {
            "layer": layer,
            "depth": depth,
            "category": category,
            "top": top,
            "best": 2 * top,
            "units": 3 * top,
            "seed": seed,
        }
        for depth, layer in enumerate(("z", "a"))
        for category in ("color", "object")
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("top", [0, 3])
def test_unique_detectors_are_drawn_by_layer_and_category(top):
    figure = drawn(figures.unique_detectors(detector_counts(top)))
    left, right = figure.axes[:2]
    assert [label.get_text() for label in left.get_xticklabels()] == ["conv1", "conv2"]
    heights = [[patch.get_height() for patch in axes.patches if patch.get_width() > 0] for axes in (left, right)]
    assert set(heights[0]) - {0} == {top} - {0}
    assert set(heights[1]) - {0} == {2 * top} - {0}


def test_the_rotation_curve_adds_up_the_categories():
    rows = [
        {"layer": "conv", "rotation": rotation, "alpha": alpha, "category": category, "top": 5 - 4 * alpha,
         "best": 6 - 4 * alpha, "units": 9 - 4 * alpha, "seed": seed}
        for rotation, alpha in ((-1, 0.0), (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0))
        for category in ("color", "object")
        for seed in (0, 1)
    ]  # fmt: skip
    (axes,) = drawn(figures.rotation(pd.DataFrame(rows))).axes
    assert [list(line.get_ydata()) for line in axes.lines[:1]] == [[10, 6, 2]]
