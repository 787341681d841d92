"""Test with interpretable properties (TIP): what a filter's image says about the filter, and how it matters.

Source: Dou Hui, doctoral slides, ch. 5. The filter image is L^k(x) = sum_ij I^k_ij(x) f^k_ij(x), summed over its
channels; T^k is the mean of a property P^k(x) over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from nnscan.errors import DataError
from nnscan.moments import Moments

if TYPE_CHECKING:
    from torch import Tensor, nn

PROPERTIES = ("T_m", "T_v", "T_c", "T_cor")
"""Mean, variance, covariance with the input, correlation with the input."""

_CHUNK_BYTES = 64 * 2**20  # of filter images in float64; the computation holds three such arrays
_GRADIENT_BYTES = 256 * 2**20  # of the gradients of each sample


class _Sliceable(Protocol):
    """An array, a tensor, or a data set in a file: sliced before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: tuple[slice, slice], /) -> ArrayLike: ...


def interpretable_properties(fimgs: _Sliceable, x: ArrayLike, foreground: ArrayLike | None = None) -> pd.DataFrame:
    """Compute the four interpretable properties of every filter (Dou Hui, doctoral slides, ch. 5).

    Per sample, over the H * W pixels of the filter image L (summed over channels) and of the input x (averaged over
    channels): P_m = mean of L, P_v = variance of L, P_c = covariance of L and x, all in population form, and P_cor
    as Pearson's r in [-1, 1], 0 where L or x is constant (a dead filter). The slide's formula of P_cor divides the
    sum of products by the standard deviations without dividing it by the number of pixels; that is read as a slip.
    T is the mean of P over the samples.

    With a foreground the same properties are also taken over the pixels inside the mask and over those outside,
    each over its own area.

    Args:
        fimgs: (N, K, C, H, W) filter images: an array, a tensor in main memory or an HDF5 data set. They may lie on
            a block grid, (N, K, 1, H / b, W / b), as block sums of the images: then x is averaged over each block,
            a block is foreground where at least half of its pixels are, and the images are taken as they come, so
            that T_m, T_v and T_c are per block, b^2, b^4 and b^2 times those of an image spread evenly in the block.
        x: (N, C, H, W) input as fed to the network.
        foreground: (N, H, W) bool.

    Returns:
        One row per filter: filter, T_m, T_v, T_c, T_cor; with a foreground also T_m_foreground ... T_cor_background,
        and empty_foreground and empty_background: how many samples were left out of these means because their mask
        had no such pixel. Where that is all of them the columns are NaN.

    Raises:
        DataError: The shapes do not belong together.
    """
    pixels, masks = _on_grid(fimgs.shape, np.asarray(x), None if foreground is None else np.asarray(foreground))
    samples, filters, _, height, width = fimgs.shape
    areas = {"": np.ones((samples, height * width), dtype=bool)}
    if masks is not None:
        areas |= {"_foreground": masks, "_background": ~masks}
    sums = {suffix: np.zeros((len(PROPERTIES), filters)) for suffix in areas}

    image_bytes = height * width * 8
    filter_step = max(1, min(filters, _CHUNK_BYTES // image_bytes))
    sample_step = max(1, _CHUNK_BYTES // (filter_step * image_bytes))
    for first in range(0, filters, filter_step):
        chosen = slice(first, first + filter_step)
        for start in range(0, samples, sample_step):
            rows = slice(start, start + sample_step)
            block = np.asarray(fimgs[rows, chosen])
            images = block.sum(axis=2, dtype=np.float64).reshape(*block.shape[:2], -1)
            for suffix, area in areas.items():
                usable = area[rows].any(axis=1)
                found = _sample_properties(images[usable], pixels[rows][usable], area[rows][usable])
                sums[suffix][:, chosen] += found.sum(axis=1)

    columns: dict[str, Any] = {"filter": np.arange(filters)}
    for suffix, area in areas.items():
        used = int(area.any(axis=1).sum())
        for name, total in zip(PROPERTIES, sums[suffix], strict=True):
            columns[name + suffix] = total / used if used else np.full(filters, np.nan)
    for suffix in list(areas)[1:]:
        columns[f"empty{suffix}"] = int((~areas[suffix].any(axis=1)).sum())
    return pd.DataFrame(columns)


def activation_value(feature_maps: ArrayLike) -> NDArray[np.float64]:
    """Return AVoU, the mean of each filter's feature map over positions and samples.

    Source: Dou Hui, doctoral slides, ch. 5.

    Args:
        feature_maps: (N, K, h, w), rectified.

    Returns:
        (K,).
    """
    maps = np.asarray(feature_maps)
    value: NDArray[np.float64] = maps.mean(axis=(0, *range(2, maps.ndim)), dtype=np.float64)
    return value


def sensitivity(
    model: nn.Module,
    x: Tensor | NDArray[np.float32],
    y: Tensor | NDArray[np.int64],
    layer: str | nn.Module,
    exact: bool = False,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """Return SoU, how much the loss changes when a filter loses one weight (Dou Hui, doctoral slides, ch. 5).

    SoU^k is the mean, over the samples and over the filter's weights w, of |loss(w) - loss(w = 0)|, the loss being
    the cross-entropy of the sample. The weights are those of the filter's kernel, without its bias; for a batch
    normalisation those of the convolution that feeds it. To first order the change is |w * d loss / d w|, of each
    sample on its own (the connection sensitivity of SNIP, Lee et al., ICLR 2019, before its mean over samples).

    Args:
        model: The network.
        x: (N, C, H, W) samples as fed to the network.
        y: (N,) class indices.
        layer: The layer.
        exact: Remove each weight in turn, one forward pass per weight and sample, instead of the first order. In
            the network's own precision: in float32 changes below about 1e-7 of the loss are rounding.
        batch_size: Samples per pass, lowered where the gradients of each sample would not fit into 256 MiB.

    Returns:
        (K,).

    Raises:
        LayerError: The layer does not exist or has no weights.
        DataError: There are not as many classes as samples.
    """
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn.functional import cross_entropy

    from nnscan.models import logits, prepare, resolve_layer, weight_module

    if len(x) != len(y) or not len(x):
        raise DataError(f"sensitivity needs one class per sample, got {len(x)} samples and {len(y)} classes")
    name = resolve_layer(model, layer)
    network = prepare(model)
    inputs, classes = torch.as_tensor(x), torch.as_tensor(y, dtype=torch.int64)
    key = f"{weight_module(network, inputs[:1], name)}.weight"
    weight = network.get_parameter(key).detach().contiguous()
    per_filter = weight[0].numel()

    def losses(candidate: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        scores = logits(functional_call(network, {key: candidate}, (batch,)))
        loss: Tensor = cross_entropy(scores, labels, reduction="none")
        return loss

    def sample_loss(candidate: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        return losses(candidate, sample[None], label[None]).squeeze(0)

    def first_order(batch: Tensor, labels: Tensor) -> Tensor:
        slopes: Tensor = vmap(grad(sample_loss), in_dims=(None, 0, 0))(weight, batch, labels)
        return (weight * slopes).abs().flatten(2).sum(dim=(0, 2), dtype=torch.float64)

    def removal(batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            intact = losses(weight, batch, labels)
            total = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
            for index in range(weight.numel()):
                lesioned = weight.clone()
                lesioned.view(-1)[index] = 0
                total[index // per_filter] += (intact - losses(lesioned, batch, labels)).abs().sum()
        return total

    fitting = max(1, _GRADIENT_BYTES // (weight.numel() * weight.element_size()))
    step, measure = (batch_size, removal) if exact else (min(batch_size, fitting), first_order)
    total = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    for start in range(0, len(inputs), step):
        rows = slice(start, start + step)
        total += measure(inputs[rows].to(weight.device), classes[rows].to(weight.device))
    result: NDArray[np.float64] = (total / (len(inputs) * per_filter)).cpu().numpy()
    return result


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of two columns, in [-1, 1]; NaN where one of them is constant.

    Raises:
        DataError: The columns differ in length.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(
            f"a rank correlation needs two columns of one length, got shapes {first.shape} and {second.shape}"
        )
    if len(first) < 2 or (first == first[0]).all() or (second == second[0]).all():
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _on_grid(
    shape: tuple[int, ...], x: NDArray[Any], foreground: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """Return the channel mean of x and the masks, flattened, on the grid of filter images of this shape."""
    if len(shape) != 5 or x.ndim != 4 or len(x) != shape[0] or 0 in shape:
        raise DataError(
            f"properties need filter images (N, K, C, H, W) and inputs (N, C, H, W), got {tuple(shape)} and {x.shape}"
        )
    samples, _, _, rows, columns = shape
    height, width = x.shape[2:]
    if height % rows or width % columns:
        raise DataError(f"the inputs' {height} x {width} pixels are no whole blocks of the images' {rows} x {columns}")
    if foreground is not None and foreground.shape != (samples, height, width):
        raise DataError(f"the foreground must be (N, H, W) = {(samples, height, width)}, got {foreground.shape}")

    def blocks(values: NDArray[Any]) -> NDArray[np.float64]:
        tiled = values.reshape(samples, rows, height // rows, columns, width // columns)
        averaged: NDArray[np.float64] = tiled.mean(axis=(2, 4), dtype=np.float64).reshape(samples, -1)
        return averaged

    pixels = blocks(x.mean(axis=1, dtype=np.float64))
    return pixels, None if foreground is None else blocks(foreground.astype(bool)) >= 0.5


def _sample_properties(
    images: NDArray[np.float64], pixels: NDArray[np.float64], area: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return P_m, P_v, P_c, P_cor, (4, n, K), of images (n, K, P) with pixels (n, P) over an area (n, P), not empty."""
    weights = area / area.sum(axis=1, keepdims=True)
    # Relative to one pixel of the area a constant is exactly zero, and so are its variance and covariance.
    anchor = area.argmax(axis=1)[:, None]
    reference = np.take_along_axis(images, anchor[:, :, None], axis=2)
    centred = images - reference
    offset = centred @ weights[:, :, None]
    centred -= offset
    x = pixels - np.take_along_axis(pixels, anchor, axis=1)
    x -= (x * weights).sum(axis=1, keepdims=True)
    covariance = (centred @ (x * weights)[:, :, None])[:, :, 0]
    variance = (np.square(centred, out=centred) @ weights[:, :, None])[:, :, 0]
    x_variance = (x * x * weights).sum(axis=1, keepdims=True)
    scale = np.sqrt(variance) * np.sqrt(x_variance)
    correlation = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.stack([(reference + offset)[:, :, 0], variance, covariance, correlation])


def filter_table(
    model: nn.Module,
    layers: Iterable[tuple[str, Moments]],
    scanned: Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.bool_] | None]],
    x: Tensor,
    y: Tensor,
    exact: bool = False,
) -> pd.DataFrame:
    """Return the interpretable properties, the activation value and the sensitivity of every filter of a scan.

    Args:
        model: The network.
        layers: Layer names and their moments with filter images, in order of depth (`moments.read_layers`).
        scanned: Returns the scanned inputs (N, C, H, W) and masks (N, H, W) or None of sample identifiers (N,).
        x: Inputs (M, C, H, W) for the sensitivity.
        y: Their labels (M,).
        exact: Remove each weight for the sensitivity, instead of the first order.

    Returns:
        layer, depth, the columns of `interpretable_properties`, AVoU and SoU. AVoU is taken over the scanned samples.
    """
    tables = []
    for depth, (layer, moments) in enumerate(layers):
        images, foreground = scanned(moments.samples)
        # block sums to block means, so that the properties are those of pixels whatever the block
        filter_images = moments.filter_images[layer][:, :, None] / moments.block**2
        table = interpretable_properties(filter_images, images, foreground)
        table["AVoU"] = activation_value(np.maximum(moments.layers[layer]["activation"], 0))
        table["SoU"] = sensitivity(model, x, y, layer, exact=exact)
        table.insert(0, "layer", layer)
        table.insert(1, "depth", depth)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
