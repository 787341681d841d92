"""Maps that explain nothing, beside which every explanation has to stand: chance, edges, the input itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import sobel
from torch import Tensor, nn

from nnscan.artifacts import seed_of
from nnscan.explanations import Method, Setting, simply
from nnscan.scores import checked


def random_maps(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return maps (N, H, W) drawn evenly from [0, 1).

    They are drawn from the seed and the input's own values: inputs have maps of their own, whatever the others of the
    call are, and the same input has always the same. One map for all would be a single draw, however many inputs there
    are.

    Args:
        model: The network whose answers are (not) explained.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its seed counts.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.
    """
    x = checked(model, x, classes)
    maps = []
    for one in x.cpu():
        own = seed_of(str(setting.seed).encode(), one.contiguous().numpy().tobytes())
        generator = torch.Generator().manual_seed(own)
        maps.append(torch.rand(one.shape[1:], generator=generator, dtype=torch.float64))
    return torch.stack(maps).to(x)


def edges(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the size of the Sobel gradient (N, H, W) of the inputs' mean over the channels, mirrored at the border.

    Args:
        model: See `random_maps`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps" (2018), fig. 1: an edge detector knows neither model nor
    labels.
    """
    x = checked(model, x, classes)
    # image by image: SciPy smooths along every other axis of an array, the inputs' too
    found = [np.hypot(sobel(gray, axis=0), sobel(gray, axis=1)) for gray in x.mean(1).cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(x)


def input_size(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the size (N, H, W) of the inputs' sum over the channels, as fed to the network; see `random_maps`."""
    return checked(model, x, classes).sum(1).abs()


METHODS = (
    Method(
        name="random",
        title="random",
        family="control",
        detail="fine-grained",
        class_specific=False,
        online=False,
        transparent=False,
        explains="nothing (chance)",
        scope="local",
        paper="Hooker et al., ROAR",
        year=2019,
        explain=random_maps,
    ),
    Method(
        name="edges",
        title="edges",
        family="control",
        detail="fine-grained",
        class_specific=False,
        online=False,
        transparent=False,
        explains="nothing (edges of the input)",
        scope="local",
        paper="Adebayo et al., Sanity Checks",
        year=2018,
        explain=simply(edges),
    ),
    Method(
        name="input",
        title="input",
        family="control",
        detail="fine-grained",
        class_specific=False,
        online=False,
        transparent=False,
        explains="nothing (the input)",
        scope="local",
        paper="Adebayo et al., Sanity Checks",
        year=2018,
        explain=simply(input_size),
    ),
)
"""The controls."""
