"""How good explanations are: how well maps locate the object."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.errors import ModelError
from nnscan.explainers import EXPLAINERS
from nnscan.explanations import Scanned
from nnscan.maps import neuron_map
from nnscan.models import device_of
from nnscan.scores import answers
from nnscan.sweeps import enlarged

THRESHOLDS = (0.5, 0.2)
"""Shares of a map's range from which on a pixel counts as located."""

log = logging.getLogger(__name__)


def scaled(maps: Tensor) -> Tensor:
    """Return maps (N, H, W), each stretched to [0, 1] by its smallest and largest value; a constant one is zero."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / torch.where(high > low, high - low, 1), 0.0)


def overlap(maps: Tensor, foreground: Tensor, threshold: float) -> Tensor:
    """Return the IoU (N,) of what maps locate with the true foreground.

    Args:
        maps: Maps (N, H, W); each is stretched to [0, 1].
        foreground: Foreground masks (N, H, W), boolean, none of them empty.
        threshold: A pixel is located where the stretched map is at least this large.

    Source: Dou Hui, doctoral slides, ch. 4 (IOU of table 4-5; it does not state its threshold).
    """
    located = scaled(maps) >= threshold
    both, either = (located & foreground).sum((1, 2)), (located | foreground).sum((1, 2))
    return both.double() / either


def localisation(model: nn.Module, x: Tensor, foreground: NDArray[np.bool_] | None, scanned: Scanned) -> pd.DataFrame:
    """Return the IoU with the true foreground of CAM, Grad-CAM and the FQ map, and of two maps as controls.

    CAM and Grad-CAM explain the class that the network gives to an input. The FQ map knows the foreground from its
    weights; the control "NNS" is the same sum without weights, the control "input" the size of the input itself.

    Args:
        model: The model.
        x: The scanned inputs (N, C, H, W), as fed to the network.
        foreground: Their foreground masks (N, H, W); None where there are none.
        scanned: What the scan says of them.

    Returns:
        sample, method (CAM, Grad-CAM, FQ map, NNS, input), threshold, iou (0 to 1; NaN where the method is not defined
        for the network). Samples without a foreground pixel are left out; without masks there are no rows.

    Source: Dou Hui, doctoral slides, table 4-5.
    """
    columns = ["sample", "method", "threshold", "iou"]
    chosen = np.flatnonzero(foreground.any((1, 2))) if foreground is not None else np.empty(0, np.int64)
    if foreground is None or not len(chosen):
        return pd.DataFrame(columns=columns)
    x = x[torch.from_numpy(chosen)].to(device_of(model))
    truth = torch.from_numpy(foreground[chosen]).to(x.device)
    classes = answers(model, x)
    maps: dict[str, Tensor | None] = {}
    for name in ("CAM", "Grad-CAM"):
        try:
            maps[name] = EXPLAINERS[name](model, x, classes)
        except ModelError as error:
            log.info("%s is left out: %s", name, error)
            maps[name] = None
    maps["FQ map"] = neuron_map(model, x, scanned.layer, scanned.quantities[chosen], scanned.block)
    maps["NNS"] = enlarged(torch.from_numpy(scanned.absolute[chosen]).to(x).sum(1), scanned.block)
    maps["input"] = x.sum(1).abs()
    parts = []
    for name, found in maps.items():
        for threshold in THRESHOLDS:
            iou = np.full(len(x), np.nan) if found is None else overlap(found, truth, threshold).cpu().numpy()
            rows = {"sample": scanned.samples[chosen], "method": name, "threshold": threshold, "iou": iou}
            parts.append(pd.DataFrame(rows)[columns])
    return pd.concat(parts, ignore_index=True)
