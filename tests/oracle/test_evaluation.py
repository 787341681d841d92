"""What evaluations of explanations give, by hand and against twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from networks import CLASSES, images, plain, pooled
from nnscan.atlas import Atlas
from nnscan.cam import cam, grad_cam
from nnscan.controls import METHODS
from nnscan.evaluation import (
    energy,
    localisation,
    localisation_scores,
    noise_scores,
    overlap,
    pointing,
    roughness,
    scaled,
)
from nnscan.explanations import Method, Scanned, simply
from nnscan.metrics import COLUMNS, Inputs
from nnscan.quantity import feature_quantity
from nnscan.scanner import scan
from nnscan.scores import answers
from twins import summed

pytestmark = pytest.mark.usefixtures("one_thread")


def scanned_of(model, x, foreground, layer="3"):
    moments = scan(model, x, foreground, [layer])
    frame = feature_quantity(moments)
    shape = moments.layers[layer]["activation"].shape
    return Scanned(layer, np.arange(10, 10 + len(x)), frame["fq"].to_numpy().reshape(shape),
                   moments.absolute_images[layer], 1)  # fmt: skip


def test_overlap_by_hand():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    torch.testing.assert_close(scaled(maps), torch.tensor([[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]))
    foreground = torch.tensor([[[True, False], [False, True]], [[True, False], [False, False]]])
    # of what is positive 1 lies at a third of the range; a map that is nowhere positive locates nothing
    assert overlap(maps, foreground, 0.5).tolist() == [1 / 2, 0]
    assert overlap(maps, foreground, 0.3).tolist() == [1 / 3, 0]
    assert overlap(-maps.abs(), foreground, 0.2).tolist() == [0, 0]
    # what speaks against the class does not move the threshold
    assert overlap(maps - 100 * (maps < 0), foreground, 0.3).tolist() == [1 / 3, 0]
    assert overlap(foreground.double(), foreground, 0.5).tolist() == [1, 1]
    # what rounding leaves of a constant map is none
    rounded = 7 * torch.ones(1, 8, 8) + 1e-6 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(rounded.unique()) > 1
    assert not scaled(rounded).any()
    assert roughness(rounded).isnan().all()


def test_localisation():
    model, x = plain(), images().abs()
    foreground = np.zeros((3, 8, 8), bool)
    foreground[0, 2:5, 2:6] = foreground[2, 1:7, 3:5] = True  # nothing in the second sample
    scanned = scanned_of(model, x, foreground)
    frame = localisation(model, x, foreground, scanned)
    assert frame["sample"].unique().tolist() == [10, 12]
    assert frame["method"].unique().tolist() == ["CAM", "Grad-CAM", "FQ map", "NNS", "input"]
    assert frame["threshold"].unique().tolist() == [0.5, 0.2]
    assert frame[frame["method"] == "CAM"]["iou"].isna().all()
    assert frame[frame["method"] != "CAM"]["iou"].between(0, 1).all()
    chosen, truth = [0, 2], torch.from_numpy(foreground[[0, 2]])
    maps = {
        "Grad-CAM": grad_cam(model, x[chosen], answers(model, x[chosen])),
        "FQ map": summed(model, x[chosen], "3", scanned.quantities[chosen], 1),
        "NNS": summed(model, x[chosen], "3", np.ones((2, 5, 2, 2)), 1),
        "input": x[chosen].sum(1),
    }
    for (method, threshold), part in frame[frame["method"] != "CAM"].groupby(["method", "threshold"]):
        np.testing.assert_allclose(part["iou"], overlap(maps[method], truth, threshold))
    own = localisation(pooled(), x, foreground, scanned_of(pooled(), x, foreground, "2"))
    assert own[own["method"] == "CAM"]["iou"].notna().all()


def test_without_masks_there_is_nothing_to_locate():
    model, x = plain(), images()
    scanned = scanned_of(model, x, None)
    for foreground in (None, np.zeros((3, 8, 8), bool)):
        frame = localisation(model, x, foreground, scanned)
        assert frame.empty
        assert list(frame.columns) == ["sample", "method", "threshold", "iou"]


def test_pointing_by_hand():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]], [[2.0, 0.0], [2.0, -7.0]]])
    foreground = torch.tensor([[[True, False], [False, True]], [[True, False], [False, False]],
                               [[False, True], [False, False]]])  # fmt: skip
    assert pointing(maps, foreground).tolist() == [1, 0.25, 0]
    assert pointing(maps, foreground, 1).tolist() == [1, 0.75, 0.5]  # not over the corner, which is farther than 1
    assert pointing(-maps, foreground).tolist() == [1, 0.25, 0]


def test_energy_by_hand():
    maps = torch.tensor([[[-9.0, 2.0], [1.0, 1.0]], [[-1.0, 0.0], [-2.0, 0.0]]])
    foreground = torch.tensor([[[True, True], [False, False]]]).expand(2, 2, 2)
    found = energy(maps, foreground)
    assert float(found[0]) == 0.5
    assert bool(found[1].isnan())


def test_pointing_and_energy_against_a_slow_twin():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 9, 7, generator=generator, dtype=torch.float64).round(decimals=1)
    maps[:, 2, 3] = maps[:, 5, 5] = 4.0  # two largest
    foreground = torch.rand(6, 9, 7, generator=generator) < 0.3
    for margin in (0, 1, 2):
        for one, mask, found in zip(maps, foreground, pointing(maps, foreground, margin), strict=True):
            places = mask.nonzero().double()
            largest = (one == one.max()).nonzero().double()
            near = [float((places - place).norm(dim=1).min()) <= margin for place in largest]
            assert float(found) == sum(near) / len(near)
    for one, mask, found in zip(maps, foreground, energy(maps, foreground), strict=True):
        inside = sum(max(0.0, float(value)) for value in one[mask])
        assert float(found) == pytest.approx(inside / sum(max(0.0, float(value)) for value in one.flatten()))


def test_localisation_scores():
    model, x = plain(), images().abs()
    foreground = np.zeros((3, 8, 8), bool)
    foreground[0, 2:5, 2:6] = foreground[2, 1:7, 3:5] = True  # nothing in the second sample
    bound = torch.ones(2, 1, 1)
    given = Inputs(x, CLASSES, np.arange(10, 13), bound, bound, bound, foreground)
    methods = [Method(**{**vars(METHODS[0]), "name": own.__name__, "explain": simply(own)}) for own in (cam, grad_cam)]
    frame = localisation_scores(model, given, [*methods, *METHODS])
    assert tuple(frame.columns) == COLUMNS
    assert frame["sample"].unique().tolist() == [10, 12]
    refused = frame[frame["method"] == "cam"]
    assert refused["value"].isna().all()
    assert refused["reason"].str.contains("CAM is defined for networks").all()
    maps = grad_cam(model, x, CLASSES)[[0, 2]]
    truth = torch.from_numpy(foreground[[0, 2]])
    value = frame.set_index(["method", "metric", "case"])["value"]
    np.testing.assert_allclose(value["grad_cam", "iou", "0.2"], overlap(maps, truth, 0.2))
    np.testing.assert_allclose(value["grad_cam", "pointing", ""], pointing(maps, truth))
    np.testing.assert_allclose(value["grad_cam", "energy", ""], energy(maps, truth))
    blank = Method(**{**vars(METHODS[0]), "name": "blank", "explain": lambda *given: torch.zeros(3, 8, 8)})
    own = localisation_scores(model, given, [blank]).set_index("metric")
    assert own.loc["energy", "reason"].tolist() == ["the map has no positive value"] * 2
    assert own.loc["pointing", "value"].tolist() == pytest.approx([12 / 64, 12 / 64])
    for none in (None, np.zeros((3, 8, 8), bool)):
        empty = localisation_scores(model, replace(given, foreground=none), methods)
        assert empty.empty
        assert tuple(empty.columns) == COLUMNS


def test_localisation_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(5, 6, 6, generator=generator, dtype=torch.float64)
    foreground = torch.rand(5, 6, 6, generator=generator) < 0.4
    for one, mask, found in zip(maps, foreground, overlap(maps, foreground, 0.5), strict=True):
        located = scaled(one[None])[0] >= 0.5
        assert float(found) == pytest.approx(jaccard_score(mask.flatten(), located.flatten()))


def test_localisation_agrees_with_quantus(peer):
    quantus = peer("quantus")
    model, x = pooled().float().eval(), images(5).float()
    maps = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1))
    foreground = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.4
    given = {"model": model, "x_batch": x.numpy(), "y_batch": np.zeros(5, int), "a_batch": maps[:, None].numpy(),
             "s_batch": foreground[:, None].numpy(), "device": "cpu"}  # fmt: skip
    options = {"abs": False, "normalise": False, "disable_warnings": True}
    assert pointing(maps, foreground).tolist() == [float(hit) for hit in quantus.PointingGame(**options)(**given)]
    np.testing.assert_allclose(energy(maps, foreground), quantus.RelevanceMassAccuracy(**options)(**given), rtol=1e-5)


def test_roughness_by_hand():
    stripes = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])  # two of four pairs differ by 1; squares about the mean: 1
    assert roughness(stripes).item() == 3 * 2 / (2 * 4 * 1)
    maps = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(roughness(3 - 2 * maps), roughness(maps))
    assert torch.isnan(roughness(torch.full((1, 4, 4), 0.1))).all()


def test_roughness_against_a_slow_twin():
    maps = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for found, one in zip(roughness(maps).tolist(), maps.tolist(), strict=True):
        pixels = [(row, column) for row in range(4) for column in range(6)]
        mean = sum(one[r][c] for r, c in pixels) / len(pixels)
        weighted = weights = 0
        for r, c in pixels:
            for s, d in pixels:
                if abs(r - s) + abs(c - d) == 1:
                    weighted, weights = weighted + (one[r][c] - one[s][d]) ** 2, weights + 1
        squares = sum((one[r][c] - mean) ** 2 for r, c in pixels)
        assert found == pytest.approx((len(pixels) - 1) * weighted / (2 * weights * squares), rel=1e-12)


def test_pixels_in_random_order_have_a_roughness_of_one_and_a_slope_has_nearly_none():
    noise = torch.rand(40, 28, 28, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert roughness(noise).mean().item() == pytest.approx(1, abs=0.02)
    assert roughness(torch.arange(28.0).repeat(1, 28, 1)).item() < 0.01


def test_noise_scores_have_a_row_for_each_image_and_a_reason_where_there_is_none():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3))
    atlas = Atlas(
        np.array([3, 7]),
        np.array([0, 1]),
        {"a": maps.numpy(), "b": np.zeros((2, 4, 4))},
        refusals={"c": "does not fit"},
    )
    frame = noise_scores(atlas)
    assert tuple(frame.columns) == COLUMNS
    assert frame["method"].tolist() == ["a", "a", "b", "b", "c", "c"]
    assert frame["value"].tolist()[:2] == roughness(maps).tolist()
    assert frame["reason"].tolist() == ["", "", *2 * ["the map is constant"], *2 * ["does not fit"]]
    assert noise_scores(Atlas(np.array([1]), np.array([0]))).empty
