"""Explanations that only ask the network for answers, to inputs with some of their segments hidden: LIME and SHAP.

Segments: an image of three channels is cut into about `SEGMENTS` superpixels of similar colour by SLIC; any other one,
which has no colours, into a regular grid of as many cells. Hidden pixels are zero as fed to the network: black where
inputs lie in [0, 1], the data's mean where they are standardised. It is the image from which integrated gradients
start, so that both promise the same sum. What is explained is the class score before the softmax.

Captum's Lime and KernelShap are not called, but tests hold these two against them. Both round the scores to float32
and advance the global random generator (KernelShap draws from it, Lime by its data loader); KernelShap draws sets of
segments with replacement also where all of them could be asked for, and has a weight of 10^6 in the place of the two
equations that hold for no and for all segments, so that its values add up in part only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic
from torch import Tensor, nn

from nnscan.explanations import Method, Setting, simply
from nnscan.models import logits
from nnscan.scores import BATCH, ready, rises

SEGMENTS = 49
"""Segments of an image, about."""

SAMPLES = 1000
"""Inputs with hidden segments that a surrogate is fitted to."""

KERNEL_WIDTH = 0.25
"""Width w of the kernel by which LIME weighs samples at a distance d: `exp(-d^2 / (2 w^2))`."""


def segments(image: Tensor) -> Tensor:
    """Return the segment, from 0, that each pixel (H, W) of an image (C, H, W) belongs to.

    Colours are compared in CIELAB, for which the image is stretched to [0, 1] as a whole and smoothed by a pixel:
    otherwise noise of a twentieth of the range leaves half as many segments, and more noise one.

    Source: Achanta et al., "SLIC Superpixels" (2012), by scikit-image.
    """
    channels, height, width = image.shape
    if channels != 3:
        side = math.isqrt(SEGMENTS)
        rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
        cells = rows[:, None] * side + columns
    else:
        colours = image.detach().double().cpu().permute(1, 2, 0).numpy()
        spread = np.ptp(colours)
        stretched = (colours - colours.min()) / (spread if spread > 0 else 1)
        cells = slic(stretched, n_segments=SEGMENTS, sigma=1, start_label=0)
    return torch.from_numpy(np.unique(cells, return_inverse=True)[1])


def _scores(
    prepared: nn.Module, image: Tensor, cells: Tensor, kept: NDArray[np.bool_], label: int
) -> NDArray[np.float64]:
    """Return the class scores (S,) of an image (C, H, W) of which only the segments kept (S, M) are left."""
    with torch.no_grad():
        parts = [
            logits(prepared(part[:, cells][:, None] * image))[:, label].double().cpu()
            for part in torch.split(torch.from_numpy(kept).to(image.device), BATCH)
        ]
    return torch.cat(parts).numpy()


def lime(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return LIME's maps (N, H, W): each pixel has its segment's coefficient in a linear model of the class score.

    The model is fitted by least squares to the scores of `SAMPLES` inputs in which each segment is hidden with
    probability 1/2, the first of them the input itself. A sample of which the share s of the segments is left has the
    weight `exp(-d^2 / (2 KERNEL_WIDTH^2))`, with its cosine distance `d = 1 - sqrt(s)` from the whole input: distance,
    width and kernel of the authors' own package, which takes the root of the paper's `exp(-d^2 / w^2)`. As there are
    many more samples than segments, all segments take part and there is no penalty.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its seed decides which segments are hidden, alike for all inputs with as many segments.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Ribeiro et al., "Why Should I Trust You?" (2016), ch. 3.
    """
    x, prepared = ready(model, x, classes)
    maps = []
    for one, label in zip(x, classes, strict=True):
        cells = segments(one).to(x.device)
        generator = torch.Generator().manual_seed(setting.seed)
        kept = torch.rand((SAMPLES, int(cells.max()) + 1), generator=generator).numpy() < 0.5
        kept[0] = True
        distances = 1 - np.sqrt(kept.mean(1))
        root = np.exp(-((distances / KERNEL_WIDTH) ** 2) / 4)  # of the weights
        design = np.column_stack([kept, np.ones(SAMPLES)])
        scores = _scores(prepared, one, cells, kept, label)
        coefficients = np.linalg.lstsq(root[:, None] * design, root * scores, rcond=None)[0][:-1]
        maps.append(torch.from_numpy(coefficients).to(x.dtype).to(x.device)[cells])
    return torch.stack(maps)


def coalitions(count: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which segments are left in each sample (S, count), and the samples' weights (S,), for Kernel SHAP.

    As far as there are no more than `SAMPLES` of them, these are all sets of segments but none and all, with their
    Shapley kernel: the values that follow are the Shapley values. Otherwise sizes k are drawn with the kernel's share
    of all sets of this size, `1 / (k (count - k))`, and sets of this size alike; each comes with its complement, and
    all have the same weight.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions" (2017), theorem 2; complements:
    Covert and Lee, "Improving KernelSHAP" (2021), ch. 4.2.
    """
    sizes = np.arange(1, count)
    if 2**count - 2 <= SAMPLES:
        kept = np.array(list(itertools.product((False, True), repeat=count))[1:-1], dtype=bool).reshape(-1, count)
        alike = np.array([math.comb(count, int(size)) for size in sizes])
        kernel = (count - 1) / (alike * sizes * (count - sizes))
        return kept, kernel[kept.sum(1) - 1]
    generator = torch.Generator().manual_seed(seed)
    shares = torch.from_numpy(1 / (sizes * (count - sizes)))
    drawn = 1 + torch.multinomial(shares, SAMPLES // 2, replacement=True, generator=generator)
    order = torch.rand((SAMPLES // 2, count), generator=generator).argsort(stable=True, dim=1)
    half = (order.argsort(1) < drawn[:, None]).numpy()
    return np.concatenate([half, ~half]), np.ones(len(half) * 2)


def shapley_values(
    kept: NDArray[np.bool_], weights: NDArray[np.float64], scores: NDArray[np.float64], lowest: float, highest: float
) -> NDArray[np.float64]:
    """Return the values (M,) of segments whose sums come nearest to the scores of coalitions and add up to the rise.

    Args:
        kept: Which segments are left in each sample (S, M).
        weights: The samples' weights (S,).
        scores: Their scores (S,).
        lowest: The score where no segment is left.
        highest: The score where all are left.

    Source: Lundberg and Lee 2017, theorem 2: the kernel's infinite weights of none and all are two equations, which
    take the last value out of the least squares.
    """
    members, rise = kept.astype(float), highest - lowest
    root = np.sqrt(weights)
    design = root[:, None] * (members[:, :-1] - members[:, -1:])
    values = np.linalg.lstsq(design, root * (scores - lowest - members[:, -1] * rise), rcond=None)[0]
    return np.append(values, rise - values.sum())


def shap(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return Kernel SHAP's maps (N, H, W): each segment's Shapley value, spread evenly over its pixels.

    They add up to the class score less that of the image with all pixels hidden.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its seed decides which segments are hidden, alike for all inputs with as many segments.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Lundberg and Lee 2017, ch. 4.1; see `coalitions` and `shapley_values`.
    """
    x, prepared = ready(model, x, classes)
    maps = []
    for one, label in zip(x, classes, strict=True):
        cells = segments(one).to(x.device)
        count = int(cells.max()) + 1
        kept, weights = coalitions(count, setting.seed)
        lowest, highest = _scores(prepared, one, cells, np.array([[False] * count, [True] * count]), label)
        values = shapley_values(kept, weights, _scores(prepared, one, cells, kept, label), lowest, highest)
        spread = torch.from_numpy(values / np.bincount(cells.cpu().flatten().numpy()))
        maps.append(spread.to(x.dtype).to(x.device)[cells])
    return torch.stack(maps)


METHODS = (
    Method(
        name="lime",
        title="LIME",
        family="model-agnostic",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=False,
        explains="class score",
        scope="local",
        paper="Ribeiro et al., KDD",
        year=2016,
        explain=lime,
    ),
    Method(
        name="shap",
        title="SHAP",
        family="model-agnostic",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=False,
        explains="class score",
        scope="local",
        paper="Lundberg and Lee, NeurIPS",
        year=2017,
        explain=shap,
        total=simply(rises),
    ),
)
"""The survey's other methods (table 3), which need nothing of a network but its answers."""
