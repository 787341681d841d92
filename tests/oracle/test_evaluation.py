"""What evaluations of explanations give, by hand and against twins."""

import numpy as np
import pytest
import torch

from networks import images, plain, pooled
from nnscan.cam import grad_cam
from nnscan.evaluation import localisation, overlap, scaled
from nnscan.explanations import Scanned
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
    assert overlap(maps, foreground, 0.5).tolist() == [1 / 3, 0]
    assert overlap(maps, foreground, 0.2).tolist() == [1 / 4, 0]
    assert overlap(foreground.double(), foreground, 0.5).tolist() == [1, 1]


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
