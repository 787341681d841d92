"""A small network that fills hidden pixels of an image: a U-net of gated convolutions.

Explanations by perturbation need to hide pixels without making an image that no network has seen; this network puts
there what training images would let one expect. It is trained on the images alone, without their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnscan.artifacts import digest
from nnscan.data import Dataset
from nnscan.errors import ModelError
from nnscan.fitting import Fitting, fit
from nnscan.models import chosen_device, device_of, evaluation, load_weights, read_state, save_weights
from nnscan.smoothing import blurred
from nnscan.training import deterministic, split_tensors, write_csv

CELLS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Sides of the cells that are hidden in training, as shares of the image's."""
BLUR = 1 / 16
"""Standard deviation of the blur that the network is compared with, as a share of the side."""
WIDTH = 16
"""Filters of the first convolution; deeper ones have two and four times as many."""

_IMAGES = 256  # in one pass without gradients
_HALVINGS = 2


class _Gated(nn.Module):
    """A convolution whose output passes a gate of its own: `relu(a) * sigmoid(b)`."""

    def __init__(self, incoming: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(incoming, 2 * width, 3, stride=stride, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.convolution(x).chunk(2, 1)
        gated: Tensor = functional.relu(values) * torch.sigmoid(gates)
        return gated


class Infiller(nn.Module):
    """Fills the hidden pixels of images; what is shown stays as it is.

    Attributes:
        mean: Mean of each channel of the training images (C,), as fed to a network; hidden pixels start with it.
        deviation: Standard deviation of each channel (C,).
        low: Smallest value of each channel (C,).
        high: Largest value of each channel (C,); what is filled in lies between these, but in training.

    Source: gated convolutions after Yu et al., "Free-Form Image Inpainting with Gated Convolution" (2019), without its
    adversarial loss.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("deviation", 1.0), ("low", 0.0), ("high", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.first = _Gated(channels + 1, width)
        self.down1 = nn.Sequential(_Gated(width, 2 * width, stride=2), _Gated(2 * width, 2 * width))
        self.down2 = nn.Sequential(
            _Gated(2 * width, 4 * width, stride=2), _Gated(4 * width, 4 * width, dilation=2),
            _Gated(4 * width, 4 * width, dilation=4),
        )  # fmt: skip
        self.up1, self.join1 = nn.Conv2d(4 * width, 8 * width, 1), _Gated(4 * width, 2 * width)
        self.up2, self.join2 = nn.Conv2d(2 * width, 4 * width, 1), _Gated(2 * width, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return images (N, C, H, W), as fed to a network, whose hidden pixels are filled.

        Args:
            x: Images (N, C, H, W); what their hidden pixels hold does not matter.
            kept: 1 where a pixel is shown, 0 where it is hidden (N, 1, H, W).
        """
        height, width = x.shape[2:]
        mean, deviation, low, high = (
            value[:, None, None] for value in (self.mean, self.deviation, self.low, self.high)
        )
        shown = torch.where(kept > 0, (x - mean) / deviation, 0.0) * kept
        step = 2**_HALVINGS
        # what is added to reach a multiple of the step counts as hidden
        padded = functional.pad(torch.cat([shown, kept], 1), (0, -width % step, 0, -height % step))
        first = self.first(padded)
        half = self.down1(first)
        deep = functional.pixel_shuffle(self.up1(self.down2(half)), 2)
        deep = self.join1(torch.cat([deep, half], 1))
        deep = functional.pixel_shuffle(self.up2(deep), 2)
        found = self.last(self.join2(torch.cat([deep, first], 1)))[..., :height, :width]
        filled = found * deviation + mean
        if not self.training:  # a value at the end of the box would not learn
            filled = torch.minimum(torch.maximum(filled, low), high)
        whole: Tensor = torch.where(kept > 0, x, 0.0) * kept + filled * (1 - kept)
        return whole


def hiding_masks(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return random masks (count, 1, H, W), float32: 1 where a pixel is shown.

    Of each mask are drawn the side of its cells (`CELLS`), the share of cells that are shown (uniform in [0, 1]), where
    its grid begins and which cells are shown: from single hidden squares to single shown ones.

    Args:
        count: Number of masks.
        size: H and W.
        generator: A generator on the CPU.
    """
    masks = torch.empty(count, 1, *size)
    for mask in masks:
        share = CELLS[int(torch.randint(len(CELLS), (), generator=generator))]
        sides = [max(1, round(share * side)) for side in size]
        shown = torch.rand((), generator=generator)
        counts = [-(-side // cell) + 1 for side, cell in zip(size, sides, strict=True)]
        cells = (torch.rand(*counts, generator=generator) < shown).float()
        row, column = (int(torch.randint(cell, (), generator=generator)) for cell in sides)
        large = cells.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
        mask[0] = large[row : row + size[0], column : column + size[1]]
    return masks


def hidden_error(filled: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    """Return the mean absolute error of the hidden pixels, over images and channels, in units of the inputs.

    Args:
        filled: Filled images (N, C, H, W).
        x: The true ones.
        kept: 1 where a pixel is shown (N, 1, H, W).
    """
    hidden = 1 - kept
    total = ((filled - x).abs() * hidden).sum() / x.shape[1]
    return total / hidden.sum().clamp(min=1)


def blur_fill(x: Tensor, kept: Tensor, mean: Tensor) -> Tensor:
    """Return images whose hidden pixels are a Gaussian mean of the shown ones; of the mean color where none is near.

    Args:
        x: Images (N, C, H, W).
        kept: 1 where a pixel is shown (N, 1, H, W).
        mean: Mean of each channel (C,).
    """
    sigma, mean = BLUR * min(x.shape[2:]), mean[:, None, None]
    near = blurred(kept, sigma)
    smooth = blurred((x - mean) * kept, sigma) / near.clamp(min=1e-3) + mean
    return x * kept + smooth * (1 - kept)


def fill_errors(network: Infiller, x: Tensor, seed: int) -> pd.DataFrame:
    """Return how well images are filled, by the network and by two simple fills, with equal masks.

    Args:
        network: The network; it is left unchanged.
        x: Images (N, C, H, W), as fed to a network, that it was not trained on.
        seed: Draws one mask of `hiding_masks` for each image.

    Returns:
        fill ("network"; "mean": the mean color of the training images, "gray"; "blur": see `blur_fill`), error: see
        `hidden_error`.
    """
    kept = hiding_masks(len(x), (int(x.shape[2]), int(x.shape[3])), torch.Generator().manual_seed(seed))
    device, mean = device_of(network), network.mean.cpu()
    with torch.no_grad(), evaluation(network):
        parts = zip(torch.split(x, _IMAGES), torch.split(kept, _IMAGES), strict=True)
        filled = torch.cat([network(some.to(device), shown.to(device)).cpu() for some, shown in parts])
    gray = torch.where(kept > 0, x, mean[:, None, None])
    fills = {"network": filled, "mean": gray, "blur": blur_fill(x, kept, mean)}
    rows = [(name, float(hidden_error(fill, x, kept))) for name, fill in fills.items()]
    return pd.DataFrame(rows, columns=["fill", "error"])


def train_infiller(
    dataset: Dataset,
    protocol: Fitting,
    folder: str | Path,
    seed: int,
    origin: Mapping[str, str],
    progress: bool = True,
) -> pd.DataFrame:
    """Train an infiller on the training images of a data set and write it with its tables.

    Written to `folder` are infiller.safetensors, infiller_history.csv (step, loss) and infiller_results.csv. A state
    file is kept on the way; a call that finds one of the same training goes on there, with the same bits in the end.

    Args:
        dataset: Data with the splits train and validation; labels are not used.
        protocol: Steps, batch size and learning rate.
        folder: Where to write.
        seed: Seed of initialisation, of the images' order and of the masks.
        origin: Provenance; its entry "code" tells one training from another when resuming.
        progress: Show a progress bar.

    Returns:
        The table of results, `fill_errors` on the validation images: a network that is of use has a smaller error than
        the mean color and the blur.

    Raises:
        TrainingError: A loss is not finite.
    """
    folder = Path(folder)
    state_path = folder / "state_infiller.pt"
    key = digest("infiller", asdict(protocol), dataset.digest, seed, WIDTH, CELLS, origin.get("code"))
    x, _ = split_tensors(dataset, "train")
    size = (int(x.shape[2]), int(x.shape[3]))
    with deterministic():
        torch.manual_seed(seed)
        network = Infiller(x.shape[1], WIDTH)
        for name, value in zip(("low", "high"), dataset.box, strict=True):
            getattr(network, name).copy_(torch.tensor(value))
        network.mean.copy_(x.mean((0, 2, 3)))
        network.deviation.copy_(x.std((0, 2, 3)).clamp(min=1e-6))
        network.to(chosen_device())

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            images, device = x[batch], device_of(network)
            kept = hiding_masks(len(images), size, generator).to(device)
            images = images.to(device)
            return hidden_error(network(images, kept), images, kept)

        history = fit(network, loss, len(x), protocol, seed, state_path, key, progress)
        results = fill_errors(network, split_tensors(dataset, "validation")[0], seed)
    save_weights(folder / "infiller.safetensors", network, origin)
    write_csv(folder / "infiller_history.csv", pd.DataFrame(history, columns=["step", "loss"]))
    write_csv(folder / "infiller_results.csv", results)
    state_path.unlink(missing_ok=True)
    return results


def load_infiller(path: str | Path) -> Infiller:
    """Return an infiller from its checkpoint, in evaluation mode; no code of the file is run.

    Args:
        path: A file of `train_infiller`.

    Raises:
        ModelError: The file cannot be read or is not one of an infiller.
    """
    state = read_state(path)
    missing = [name for name in ("mean", "first.convolution.weight") if name not in state]
    if missing or state["mean"].ndim != 1 or state["first.convolution.weight"].ndim != 4:
        raise ModelError(
            f"the checkpoint {path} is not one of an infiller (mean (C,) and first.convolution.weight are missing "
            "or of another shape); give a file that infilling.train_infiller wrote"
        )
    network = Infiller(len(state["mean"]), len(state["first.convolution.weight"]) // 2)
    load_weights(network, state, path)
    return network.to(chosen_device()).eval()
