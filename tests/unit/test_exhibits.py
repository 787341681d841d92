"""nnscan.exhibits and the drawings of units over training: the pictures show what the tables say."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from nnscan.data import Split, build_dataset
from nnscan.dissection import dissected_modules, unit_contributions
from nnscan.drawings import detectors_over_training, likeness_page, unit_explanations
from nnscan.exhibits import likenesses, unit_reasons
from nnscan.models import build_model
from nnscan.prototypes import explain, protopnet, push


@pytest.fixture(autouse=True)
def _one_thread_and_no_open_figures(one_thread):
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    splits = {
        split: Split(rng.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8), np.arange(count) % 3)
        for split, count in (("train", 12), ("validation", 6), ("test", 9))
    }
    return build_dataset("noise", ("a", "b", "c"), splits)


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    return build_model("simple_cnn", {"in_channels": 1, "size": 16, "classes": 3}).eval()


def test_reasons_are_the_units_of_the_largest_contributions(model, dataset):
    layer, count = "features.6", 64
    units = pd.DataFrame({"layer": layer, "unit": range(count), "label": [f"l{u}" for u in range(count)], "iou": 0.1})
    units = units.assign(category="color", is_detector=units["unit"] % 2 == 0)
    reasons = unit_reasons(model, dataset, units, layer, count=3, shown=5)
    assert [reason.title[0] for reason in reasons] == ["a", "b", "c"]
    x = torch.from_numpy(dataset.inputs("test"))
    module = dissected_modules(model, x[:1], [layer])[layer]
    for reason in reasons:
        (place,) = [n for n, image in enumerate(dataset.inputs("test")) if np.allclose(image, reason.image, atol=1e-6)]
        answers, contributions = unit_contributions(model, x[place : place + 1], module)
        assert reason.title == f"{dataset.classes[place % 3]}, taken for {dataset.classes[int(answers[0])]}"
        order = np.argsort(-np.abs(contributions[0]), kind="stable")[:5]
        assert reason.contributions == pytest.approx(contributions[0][order].tolist(), rel=1e-4, abs=1e-7)
        names = [f"unit {u}: l{u}" if u % 2 == 0 else f"unit {u} (no detector)" for u in order]
        assert list(reason.labels) == names
    figure = unit_explanations(reasons, layer)
    bars = [axes for axes in figure.axes if axes.patches]
    for axes, reason in zip(bars, reasons, strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(reason.contributions)
        assert [label.get_text() for label in axes.get_yticklabels()] == list(reason.labels)


def test_counts_over_training_are_summed_over_categories_and_averaged_over_seeds():
    checkpoints, layers = ("untrained", "third1", "well_trained"), ("features.0", "features.3")
    rows = [
        {"checkpoint": checkpoint, "seed": seed, "layer": layer, "depth": depth, "category": category,
         "best": 10 * time + 4 * depth + seed + extra, "top": 0, "units": 0}
        for time, checkpoint in enumerate(checkpoints)
        for seed in (0, 2)
        for depth, layer in enumerate(layers)
        for category, extra in (("color", 0), ("object", 1))
    ]  # fmt: skip
    axes = detectors_over_training(pd.DataFrame(rows)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["untrained", "after 1/3", "well trained"]
    for depth, line in enumerate(axes.lines[: len(layers)]):
        np.testing.assert_allclose(line.get_ydata(), [2 * (10 * time + 4 * depth + 1) + 1 for time in range(3)])


def test_the_first_right_and_the_first_wrong_answer_are_explained(model, dataset):
    torch.manual_seed(0)
    x, y = torch.from_numpy(dataset.inputs("train")), torch.from_numpy(dataset.splits["train"].labels)
    network = protopnet(model, x[:1], 3, per_class=2, channels=4).eval()
    push(network, x, y)
    test = torch.from_numpy(dataset.inputs("test"))
    with torch.no_grad():
        right = network(test).argmax(1).numpy() == dataset.splits["test"].labels
    assert right.any()
    assert not right.all()
    for wanted in (True, False):
        place = int(np.flatnonzero(right == wanted)[0])
        found = likenesses(network, dataset, wanted)
        assert found.heading.startswith(f"test image {place}: {dataset.classes[place % 3]}, taken for ")
        assert (found.heading[-1] == dataset.classes[place % 3]) == wanted
        expected = explain(network, test[place])
        assert [one.prototype for one in found.explanation.likenesses] == [one.prototype for one in expected.likenesses]
        for image, one in zip(found.sources, found.explanation.likenesses, strict=True):
            np.testing.assert_allclose(image, dataset.inputs("train")[one.source], atol=1e-6)
    with torch.no_grad():
        network.last.weight.zero_()
        network.last.weight[0] = 1  # every answer is the first class
    only_first = build_dataset(
        "first", dataset.classes,
        {name: Split(part.images, part.labels * 0 if name == "test" else part.labels)
         for name, part in dataset.splits.items()},
    )  # fmt: skip
    assert likenesses(network, only_first, right=False) is None
    assert likeness_page(None, dataset.classes).axes[0].texts[0].get_text() == "no test image of this kind"
