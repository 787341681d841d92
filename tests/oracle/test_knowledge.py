"""Knowledge amount, agreement, distances and winners against slow twins from the formulas, and closed forms."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nnscan.knowledge import (
    layer_knowledge,
    map_agreement,
    sample_distances,
    score_images,
    winning_neurons,
)
from nnscan.scanner import learning_images, scan
from twins import block_sum, forward, images, noise

pytestmark = pytest.mark.usefixtures("one_thread")


def small_cnn() -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )
    x = noise(3, 2, 8, 8, seed=1)
    x[:, :, :3] = 0  # neurons there may be active by their bias alone
    return model.double().eval(), x, ["0", "3", "6"]


def small_fcn() -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return model.double().eval(), noise(3, 2, 4, 4, seed=2), ["1", "3", "5"]


def gated_images(model: nn.Module, x: torch.Tensor, layer: str, gate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return values (K h w) and learning images (K h w, C, H, W) of one input."""
    values = forward(model, x, layer)[1].reshape(-1).detach().numpy()
    found = images(model, x, layer).numpy()
    if gate:
        found[values <= 0] = 0
    return values, found


def tables(model, x, layers, block):
    # half of the image is foreground, which must not matter
    foreground = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
    foreground[..., : x.shape[-1] // 2] = True
    moments = scan(model, x, foreground, layers, block)
    return [(layer, moments.select(layer)) for layer in layers]


# Knowledge amount -----------------------------------------------------------------------------------------------------


def slow_knowledge(model: nn.Module, x: torch.Tensor, layer: str, block: int, gate: bool) -> dict[str, float]:
    open_neurons, intensity, shares, count, neurons = 0, [], [], [], 0
    for one in x:
        size = sum(abs(value) for value in block_sum(one.sum(0).numpy(), block).ravel())
        for value, image in zip(*gated_images(model, one, layer, gate), strict=True):
            neurons += 1
            if gate and value <= 0:
                continue
            open_neurons += 1
            pixels = [abs(pixel) for pixel in block_sum(image.sum(0), block).ravel()]
            intensity.append(sum(pixels))
            shares.append(sum(pixels) / size)
            count.append(sum(pixel > 1e-3 * max(pixels) for pixel in pixels) / len(pixels))
    return {
        "neurons": neurons / len(x),
        "active": open_neurons / neurons,
        "intensity": sum(intensity) / len(intensity),
        "intensity_share": sum(shares) / len(shares),
        "count": sum(count) / len(count),
    }


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("build", [small_cnn, small_fcn])
def test_knowledge_is_that_of_the_slow_twin(build, block):
    model, x, layers = build()
    found = layer_knowledge(tables(model, x, layers, block), x.numpy())
    assert found["layer"].tolist() == layers
    assert found["depth"].tolist() == [0, 1, 2]
    assert (found["active"][:2] < 1).all()
    for _, row in found.iterrows():
        expected = slow_knowledge(model, x, row["layer"], block, gate=row["layer"] != layers[-1])
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9), (row["layer"], name)


def test_neurons_that_pass_the_input_on_know_all_of_it():
    # layer 1 passes each pixel to a neuron of its own, layer 2 the whole image to two neurons, once and twice
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(16))
        model[3].weight.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 16))
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    x[0, 0, :2], x[1, 0, 0] = 0.5, 0.25  # 8 and 4 pixels
    found = layer_knowledge(tables(model.eval(), x, ["1", "3"], 1), x.numpy())
    assert found["count"].tolist() == [1 / 16, (8 + 4) / 2 / 16]
    np.testing.assert_allclose(found["intensity"], [(8 * 0.5 + 4 * 0.25) / 12, (4 + 8 + 1 + 2) / 4])
    np.testing.assert_allclose(found["intensity_share"], [(8 / 8 + 4 / 4) / 12, 1.5])
    assert found["active"].tolist() == [12 / 32, 1.0]  # the class scores have no gate
    assert found["input_count"].tolist() == [6 / 16] * 2


# Agreement and overlap ------------------------------------------------------------------------------------------------


def slow_resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a bilinearly resized map: pixel centres at (i + 1/2) h / H - 1/2, held at the border."""
    rows, columns = values.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, across = y - top, x - left
            upper = values[top, left] * (1 - across) + values[top, right] * across
            lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
            result[i, j] = upper * (1 - down) + lower * down
    return result


def slow_agreement(model: nn.Module, x: torch.Tensor, layer: str, block: int, threshold: float) -> dict[str, float]:
    """Return the measures of one input (C, H, W) and gated layer."""
    maps = forward(model, x, layer)[1][0].detach().clamp(min=0).numpy()
    _, found = gated_images(model, x, layer, gate=True)
    places = maps.shape[1] * maps.shape[2]
    sets, shares, strength = [], [], []
    for number, feature_map in enumerate(maps):
        total = sum(np.abs(block_sum(image.sum(0), block)) for image in found[number * places : (number + 1) * places])
        if total.max() == 0:
            continue
        seen = block_sum(slow_resized(feature_map, *x.shape[1:]), block)
        there = {tuple(at) for at in np.argwhere(total > threshold * total.max())}
        shown = {tuple(at) for at in np.argwhere(seen > threshold * seen.max())}
        shares.append(len(shown & there) / len(there))
        sets.append(there)
        strength.append(feature_map.mean())
    if len(sets) < 2:
        return {"filters": len(sets), "agreement": sum(shares) / len(shares), "iou": math.nan, "iou_any": math.nan}
    first, second = sorted(range(len(sets)), key=lambda k: -strength[k])[:2]

    def iou(a: set, b: set) -> float:
        return len(a & b) / len(a | b)

    every = [iou(a, b) for k, a in enumerate(sets) for b in sets[k + 1 :]]
    return {
        "filters": len(sets),
        "agreement": sum(shares) / len(shares),
        "iou": iou(sets[first], sets[second]),
        "iou_any": sum(every) / len(every),
    }


@pytest.mark.parametrize("block", [1, 2])
def test_agreement_is_that_of_the_slow_twin(block):
    model, x, layers = small_cnn()
    found = map_agreement(tables(model, x, layers, block))
    assert found["layer"].tolist() == ["0"] * 6 + ["3"] * 6  # the linear layer has no places
    assert found["sample"].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert found["binarised"].tolist() == ["above 5 %", "above 0"] * 6
    for _, row in found.iterrows():
        threshold = {"above 5 %": 0.05, "above 0": 0.0}[row["binarised"]]
        for name, value in slow_agreement(model, x[row["sample"]], row["layer"], block, threshold).items():
            assert row[name] == pytest.approx(value, rel=1e-9, nan_ok=True), (row["layer"], row["sample"], name)
    assert found["iou"].notna().sum() >= 8
    assert found["agreement"].between(0.01, 0.99).any()
    assert (found["iou"] != found["iou_any"]).any()


def convolution(weights: torch.Tensor, padding: int = 0) -> nn.Module:
    layer = nn.Conv2d(weights.shape[1], len(weights), weights.shape[2], padding=padding, bias=False)
    layer.weight = nn.Parameter(weights.double())
    return nn.Sequential(layer, nn.ReLU()).eval()


def test_a_filter_that_passes_the_input_on_agrees_fully():
    x = noise(2, 1, 6, 6).abs() + 0.5
    x[0, 0, 2:4] = 0
    found = map_agreement(tables(convolution(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)), x, ["0"], 1))
    assert (found["agreement"] == 1).all()
    assert (found["iou"] == 1).all()  # all three look at the same
    assert (found["iou_any"] == 1).all()


def test_filters_that_look_at_different_channels_of_different_places_share_nothing():
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    x[0, 0, :2], x[0, 1, 2:], x[0, 2, :2] = 1, 2, 0.1
    found = map_agreement(tables(convolution(torch.eye(3).view(3, 3, 1, 1)), x, ["0"], 1))
    assert (found["agreement"] == 1).all()
    assert (found["iou"] == 0).all()  # of the filters with means 1 and 0.5
    np.testing.assert_allclose(found["iou_any"], 1 / 3)


def test_a_field_wider_than_the_map_halves_the_agreement():
    # one bright pixel, seen by a neuron that looks one pixel to the left of itself and by none at the pixel's place
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1], x[0, 0, 2, 2] = 1, 1
    weights = torch.zeros(1, 1, 3, 3)
    weights[0, 0, 0, 0] = 1  # neuron (i, j) sees pixel (i - 1, j - 1)
    found = map_agreement(tables(convolution(weights, padding=1), x, ["0"], 1))
    assert (found["agreement"] == 0.5).all()  # S = {(2, 2), (3, 3)}, I = {(1, 1), (2, 2)}
    assert found[["iou", "iou_any"]].isna().all().all()  # one filter


# Distances ------------------------------------------------------------------------------------------------------------


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(sum((one - other) ** 2 for one, other in zip(a.ravel(), b.ravel(), strict=True)))


def unit(a: np.ndarray) -> np.ndarray:
    return a / math.sqrt(sum(value**2 for value in a.ravel()))


@pytest.mark.parametrize("build", [small_cnn, small_fcn])
def test_distances_are_those_of_the_slow_twin(build):
    model, x, layers = build()
    x = torch.cat([x, noise(2, *x.shape[1:], seed=5)])
    found = sample_distances(model, x, neurons=7, seed=3)
    assert found["layer"].drop_duplicates().tolist() == layers
    for _, row in found.iterrows():
        own, other, samples = {True: [], False: []}, {True: [], False: []}, 0
        for sample, one in enumerate(x):
            values, learned = gated_images(model, one, row["layer"], gate=True)
            image = learned[row["neuron"]]
            if values[row["neuron"]] <= 0 or not image.any():
                continue
            samples += 1
            for position, target in enumerate(x.numpy()):
                for scaled in (False, True):
                    pair = (unit(image), unit(target)) if scaled else (image, target)
                    (own if position == sample else other)[scaled].append(distance(*pair))
        assert row["samples"] == samples
        for scaled, ending in ((False, ""), (True, "_scaled")):
            assert row[f"own{ending}"] == pytest.approx(np.mean(own[scaled]), rel=1e-9)
            assert row[f"other{ending}"] == pytest.approx(np.mean(other[scaled]), rel=1e-9)


def test_a_neuron_that_passes_the_input_on_is_at_its_own_sample():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [3.0]]).expand(2, 9))
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    x[0, 0, 0, 0], x[1, 0, 2, 2] = 3, 4
    found = sample_distances(model, x).set_index("neuron")
    assert found["own"].tolist() == [0, (2 * 3 + 2 * 4) / 2]
    assert found["other"].tolist() == pytest.approx([5, (math.hypot(9, 4) + math.hypot(12, 3)) / 2])
    assert found["own_scaled"].tolist() == [0, 0]
    assert found["other_scaled"].tolist() == pytest.approx([math.sqrt(2)] * 2)


# The winner -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small_cnn, small_fcn])
def test_images_of_class_scores_are_the_scanner_s(build):
    model, x, layers = build()
    scores, found = score_images(model, x)
    assert found.shape == (3, 3, *x.shape[1:])
    for position, one in enumerate(x):
        torch.testing.assert_close(found[position], learning_images(model, one, layers[-1], gate=False))
        torch.testing.assert_close(scores[position], model(one[None])[0].detach())


def test_winners_of_a_linear_network_by_hand():
    # two pixels; class scores 2 a, a + b, 3 b: images (2a, 0), (a, b), (0, 3b), so that the middle one is the input
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 0], [1, 1], [0, 3]]))
    x = torch.tensor([[4.0, 3], [5, 0], [3, 2]], dtype=torch.float64).view(3, 1, 1, 2)
    found = winning_neurons(model, x)
    assert found["sample"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert found["output"].tolist() == [0, 1, 2] * 3
    assert found["score"].tolist() == [8, 7, 9, 10, 5, 0, 6, 5, 6]
    assert found["winner"].tolist() == [False, False, True, True, False, False, True, False, False]  # the first of ties
    expected = [5, 0, math.hypot(4, 6), 5, 0, 5, math.hypot(3, 2), 0, 5]
    np.testing.assert_allclose(found["distance"], expected)
    angle = math.sqrt(2 - 2 * 4 / 5), math.sqrt(2 - 2 * 3 / 5)  # of (4, 3) to the axes
    np.testing.assert_allclose(found["distance_scaled"][:3], [angle[0], 0, angle[1]], atol=1e-12)
    np.testing.assert_allclose(found["distance_scaled"][3:6], [0, 0, 1], atol=1e-12)  # the zero image stays zero


def test_winners_are_those_of_the_slow_twin():
    model, x, layers = small_cnn()
    found = winning_neurons(model, x)
    for sample, one in enumerate(x):
        values, learned = gated_images(model, one, layers[-1], gate=False)
        own = found[found["sample"] == sample]
        np.testing.assert_allclose(own["score"], values)
        assert own["output"][own["winner"]].tolist() == [int(values.argmax())]
        np.testing.assert_allclose(own["distance"], [distance(image, one.numpy()) for image in learned])
        expected = [distance(unit(image), unit(one.numpy())) for image in learned]
        np.testing.assert_allclose(own["distance_scaled"], expected)
    assert isinstance(found, pd.DataFrame)
