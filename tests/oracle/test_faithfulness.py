"""Insertion, deletion and remove-and-retrain: slow twins, closed forms and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from torch import nn

from networks import CLASSES, Residual, images, plain, scores_of
from nnscan.controls import METHODS
from nnscan.data import Split, build_dataset
from nnscan.explanations import Method, Setting, simply
from nnscan.faithfulness import (
    BLUR,
    blurred,
    deletion_curves,
    faithfulness_scores,
    insertion_curves,
    retrained_accuracy,
    without_peaks,
)
from nnscan.metrics import COLUMNS, Inputs
from nnscan.resemblance import ordered
from nnscan.training import Protocol, train
from twins import noise

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = torch.tensor([0.2, -0.4], dtype=torch.float64).reshape(2, 1, 1)


def walked(model, start, end, order, label, counts):
    """Walk from one image (C, H, W) to another and return the class probability after each of some counts of pixels."""
    found = []
    for count in counts:
        image = start.clone()
        for pixel in order[:count]:
            row, column = divmod(int(pixel), image.shape[2])
            image[:, row, column] = end[:, row, column]
        found.append(float(scores_of(model, image[None]).softmax(1)[0, label].detach()))
    return found


@pytest.mark.parametrize("build", [plain, Residual])
def test_curves_are_those_of_a_slow_walk(build):
    model, x, maps = build(), images(), noise(3, 8, 8, seed=7)
    counts = [0, 8, 16, 24, 32, 40, 48, 56, 64]
    removed = deletion_curves(model, x, CLASSES, maps, MEAN, 8)
    added = insertion_curves(model, x, CLASSES, maps, 8)
    soft = blurred(x)
    np.testing.assert_allclose(removed.shares, np.array(counts) / 64)
    for number, label in enumerate(CLASSES):
        order = np.argsort(-maps[number].flatten().numpy())
        gray = MEAN.expand_as(x[number])
        expected = walked(model, x[number], gray, order, label, counts)
        np.testing.assert_allclose(removed.probabilities[number], expected, atol=1e-12)
        assert removed.areas[number] == pytest.approx(auc(np.array(counts) / 64, expected))
        expected = walked(model, soft[number], x[number], order, label, counts)
        np.testing.assert_allclose(added.probabilities[number], expected, atol=1e-12)
        assert added.areas[number] == pytest.approx(auc(np.array(counts) / 64, expected))


def test_blur_keeps_what_is_even_and_is_gaussian():
    even = torch.full((1, 2, 16, 16), 0.3)
    torch.testing.assert_close(blurred(even), even)
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1
    found = blurred(point)[0, 0]
    assert float(found.sum()) == pytest.approx(1)
    variance = (found.sum(0) * (torch.arange(33) - 16) ** 2).sum()
    assert float(variance) == pytest.approx((BLUR * 33) ** 2, rel=0.01)


def test_the_known_answer_of_a_linear_model():
    """Where one pixel alone makes the class, deleting it first and inserting it first are best."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, 5] = 40
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1] = 1
    right = x[0].clone()
    nothing = torch.zeros(1, 1, 1, dtype=torch.float64)
    best, worst = (deletion_curves(model, x, [1], maps, nothing, 16) for maps in (right, -right))
    np.testing.assert_allclose(best.probabilities[0], [1] + [0.5] * 16)
    np.testing.assert_allclose(worst.probabilities[0], [1] * 16 + [0.5])
    assert best.areas[0] == pytest.approx(0.5 + 0.25 / 16)
    assert worst.areas[0] == pytest.approx(1 - 0.25 / 16)
    assert insertion_curves(model, x, [1], right, 16).areas[0] > insertion_curves(model, x, [1], -right, 16).areas[0]


def test_deletion_agrees_with_quantus(peer):
    quantus = peer("quantus")
    model, x, maps = plain().float().eval(), images().float(), noise(3, 8, 8, seed=8).float()
    flipping = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.0, abs=False, normalise=False, disable_warnings=True
    )
    expected = flipping(model, x.numpy(), np.array(CLASSES), maps[:, None].numpy(), device="cpu", softmax=True)
    found = deletion_curves(model, x, CLASSES, maps, torch.zeros(2, 1, 1))
    np.testing.assert_allclose(found.probabilities[:, 1:], np.array(expected), atol=1e-5)


def test_scores_are_the_areas():
    model, x = plain(), images(20)
    classes = [number % 3 for number in range(20)]
    low, high = torch.full((2, 1, 1), -3.0), torch.full((2, 1, 1), 3.0)
    inputs = Inputs(x, classes, np.arange(100, 120), low, high, MEAN)
    wrong = Method(**{**vars(METHODS[0]), "name": "images", "explain": None})
    frame = faithfulness_scores(model, inputs, [*METHODS, wrong])
    assert tuple(frame.columns) == COLUMNS
    assert frame["sample"].unique().tolist() == list(range(100, 120))
    edges = METHODS[1].explain(model, x[19:], classes[19:], inputs.setting)
    for metric, curves in (
        ("deletion", deletion_curves(model, x[19:], classes[19:], edges, MEAN)),
        ("insertion", insertion_curves(model, x[19:], classes[19:], edges)),
    ):
        own = frame[(frame["method"] == "edges") & (frame["metric"] == metric) & (frame["sample"] == 119)]
        assert own["value"].tolist() == pytest.approx(curves.areas.tolist())
        steps = frame[(frame["method"] == "edges") & (frame["metric"] == f"{metric}_curve") & (frame["sample"] == 119)]
        assert steps["value"].tolist() == pytest.approx(curves.probabilities[0].tolist())
        assert steps["case"].astype(float).tolist() == pytest.approx(curves.shares.tolist(), rel=1e-3)
    refused = frame[frame["method"] == "images"]
    assert len(refused) == 20 * 4  # areas and curves
    assert refused["value"].isna().all()
    assert refused["reason"].str.contains("makes images of classes").all()
    assert (frame[frame["method"] != "images"]["reason"] == "").all()
    # maps that are there already are not made again
    cached = faithfulness_scores(model, replace(inputs, maps={"edges": torch.ones(20, 8, 8)}), [METHODS[1]])
    assert cached["value"].tolist() != frame[frame["method"] == "edges"]["value"].tolist()


def test_pixels_are_removed_by_hand():
    pictures = np.arange(2 * 2 * 2 * 2, dtype=np.uint8).reshape(2, 2, 2, 2)
    maps = torch.tensor([[[1.0, 4.0], [2.0, 3.0]], [[9.0, -9.0], [0.0, 1.0]]])
    found = without_peaks(pictures, maps, 0.5, np.array([0.5, 1], np.float32))
    assert found[0].tolist() == [[[0, 128], [2, 128]], [[4, 255], [6, 255]]]
    assert found[1].tolist() == [[[128, 9], [10, 128]], [[255, 13], [14, 255]]]
    assert np.array_equal(without_peaks(pictures, maps, 0, np.zeros(2, np.float32)), pictures)
    assert not without_peaks(pictures, maps, 1, np.zeros(2, np.float32)).any()


def half_bright(count, seed):
    """Images whose class is the half that is bright; the lower rows are noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pictures = generator.integers(0, 60, (count, 1, 8, 8)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[0, :2, 4 * label : 4 * label + 4] += 150
    return Split(pictures, labels.astype(np.int64))


def told(model, x, classes):
    """The rows that tell the class."""
    maps = torch.zeros(len(x), 8, 8)
    maps[:, :2] = 1
    return maps


def test_networks_trained_without_the_pixels_that_tell_the_class_do_not_learn_it(tmp_path):
    dataset = build_dataset(
        "halves", ["left", "right"], {part: half_bright(size, seed) for seed, (part, size) in
                                      enumerate((("train", 96), ("validation", 32), ("test", 64)))},
    )  # fmt: skip
    protocol = Protocol(epochs=4, batch_size=16, learning_rate=0.02)

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    torch.manual_seed(0)
    model = build()
    right = Method(**{**vars(METHODS[0]), "name": "right", "explain": simply(told)})
    wrong = Method(**{**vars(METHODS[0]), "name": "wrong", "explain": simply(lambda *given: -told(*given))})
    images_only = Method(**{**vars(METHODS[0]), "name": "images", "explain": None})
    state = torch.get_rng_state()
    frame = retrained_accuracy(
        model, build, dataset, [right, wrong, images_only, METHODS[0]], protocol, 0, Setting(), (0, 0.25)
    )
    assert torch.equal(torch.get_rng_state(), state)
    value = frame.set_index(["method", "case"])["value"]
    assert value["right", "0"] == value["wrong", "0"] == 1
    assert value["right", "0.25"] < 0.7
    assert value["wrong", "0.25"] == 1
    assert value["random", "0.25"] > 0.9
    assert frame[frame["method"] == "images"]["reason"].str.contains("makes images of classes").all()
    # nothing removed is the plain training
    results = train(build, dataset, protocol, tmp_path, 0, {}, progress=False)
    plain_test = results[(results["checkpoint"] == "well_trained") & (results["split"] == "test")]
    assert value["right", "0"] == plain_test["accuracy"].iloc[0]
    again = retrained_accuracy(model, build, dataset, [METHODS[0]], protocol, 0, Setting(), (0.25,))
    assert again["value"].tolist() == [value["random", "0.25"]]
    # a method gets what the study gives it
    seeds = []
    seeded = Method(**{**vars(METHODS[0]), "explain": lambda *given: seeds.append(given[3].seed) or told(*given[:3])})
    retrained_accuracy(model, build, dataset, [seeded], protocol, 0, Setting(seed=7), (0.25,))
    assert set(seeds) == {7}


def test_the_order_of_a_random_map_differs_between_images():
    x = images(2)
    maps = METHODS[0].explain(plain(), x, [0, 0], Inputs(x, [0, 0], np.arange(2), MEAN, MEAN, MEAN).setting)
    assert not torch.equal(*ordered(maps))
