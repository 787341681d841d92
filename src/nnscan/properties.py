"""Test with interpretable properties (TIP): what a filter's image says about the filter, and how it matters.

Source: Dou Hui, doctoral slides, ch. 5. The filter image is L^k(x) = sum_ij I^k_ij(x) f^k_ij(x), summed over its
channels; T^k is the mean of a property P^k(x) over the samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy, pad

from nnscan.errors import DataError
from nnscan.models import device_of, logits, prepare, resolve_layer, weight_module
from nnscan.moments import Moments
from nnscan.scanner import filter_images
from nnscan.suffixes import PASS_BYTES, Change, Suffix, find_suffix

log = logging.getLogger(__name__)

PROPERTIES = ("T_m", "T_v", "T_c", "T_cor")
"""Mean, variance, covariance with the input, correlation with the input."""

TYPES = ("H-H", "H-noH", "noH-H", "L-L", "L-noL", "noL-L")
"""Types of filters: how high they rank on the foreground, then on the background; see `filter_types`."""

_CHUNK_BYTES = 64 * 2**20  # of filter images in float64; the computation holds three such arrays
_KEPT_BYTES = 256 * 2**20  # of what a sensitivity keeps of each sample: gradients, or inputs by weight


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


@dataclass(frozen=True)
class _FilterImages:
    """The filter images of a layer (N, K, 1, H, W), summed over their channels, computed where they are asked for."""

    model: nn.Module
    x: Tensor
    layer: str
    shape: tuple[int, ...]

    def __getitem__(self, key: tuple[slice, slice], /) -> NDArray[Any]:
        rows, filters = key
        images = filter_images(self.model, self.x[rows], self.layer, range(self.shape[1])[filters])
        return images.sum(2, keepdim=True).cpu().numpy()


def area_means(model: nn.Module, x: Tensor, foreground: ArrayLike | None, layer: str) -> pd.DataFrame:
    """Return T^f and T^b of every filter: T_m of its images inside the masks and outside, each over its own area.

    Args:
        model: The network.
        x: (N, C, H, W) samples as fed to the network.
        foreground: (N, H, W) bool, or None.
        layer: The layer, by name.

    Returns:
        One row per filter: filter, T_m_foreground, T_m_background; NaN without masks, and where no sample has such an
        area.

    Raises:
        LayerError: The model has no such layer.

    Source: Dou Hui, doctoral slides, ch. 5 (table 5-3), which only names T^f and T^b.
    """
    filters = filter_images(model, x[:1], layer).shape[1]
    if foreground is None:
        return pd.DataFrame({"filter": np.arange(filters), "T_m_foreground": np.nan, "T_m_background": np.nan})
    images = _FilterImages(model, x, layer, (len(x), filters, 1, *x.shape[2:]))
    return interpretable_properties(images, x.cpu(), foreground)[["filter", "T_m_foreground", "T_m_background"]]


def filter_types(foreground: ArrayLike, background: ArrayLike, share: float = 0.3) -> dict[str, NDArray[np.int64]]:
    """Sort filters into six types by their ranks on the foreground and on the background.

    High (H) are the filters of the highest `share` of a ranking, low (L) those of the lowest; among equal values the
    lower filter number ranks higher. noH and noL are all the others, so that most filters that are neither high nor
    low anywhere have no type.

    Args:
        foreground: T^f (K,).
        background: T^b (K,).
        share: Share of the filters that are high, and that are low: at least one filter each, at most half of them.

    Returns:
        The filters of each of `TYPES`, in order of their number; nothing where a value is missing.

    Source: Dou Hui, doctoral slides, ch. 5 (table 5-3). The conditions for high and low are our reading: the published
    proportions are those of the highest and lowest 30 % of 512 filters.
    """
    values = np.asarray(foreground, dtype=np.float64), np.asarray(background, dtype=np.float64)
    if not np.isfinite(values).all():
        return {}
    filters = len(values[0])
    size = min(max(1, round(share * filters)), filters // 2)
    high, low = np.zeros((2, 2, filters), dtype=bool)  # each on the foreground and on the background
    for area, scores in enumerate(values):
        order = np.argsort(-scores, kind="stable")
        high[area, order[:size]] = True
        low[area, order[filters - size :]] = True
    members = (high[0] & high[1], high[0] & ~high[1], ~high[0] & high[1], low[0] & low[1], low[0] & ~low[1],
               ~low[0] & low[1])  # fmt: skip
    return {name: np.flatnonzero(chosen) for name, chosen in zip(TYPES, members, strict=True)}


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
    """Return SoU of one layer's filters, (K,); see `sensitivities`."""
    (found,) = sensitivities(model, x, y, [layer], exact, batch_size)
    return found


@torch.inference_mode(False)
def sensitivities(
    model: nn.Module,
    x: Tensor | NDArray[np.float32],
    y: Tensor | NDArray[np.int64],
    layers: Sequence[str | nn.Module],
    exact: bool = False,
    batch_size: int = 64,
) -> list[NDArray[np.float64]]:
    """Return SoU, how much the loss changes when a filter loses one weight (Dou Hui, doctoral slides, ch. 5).

    SoU^k is the mean, over the samples and over the filter's weights w, of |loss(w) - loss(w = 0)|, the loss being
    the cross-entropy of the sample. The weights are those of the filter's kernel, without its bias; for a batch
    normalisation those of the convolution that feeds it. To first order the change is |w * d loss / d w|, of each
    sample on its own (the connection sensitivity of SNIP, Lee et al., ICLR 2019, before its mean over samples).

    Args:
        model: The network.
        x: (N, C, H, W) samples as fed to the network.
        y: (N,) class indices.
        layers: The layers; one pass serves all of them to first order.
        exact: Remove each weight in turn instead of the first order. Only what a removed weight changes is run again
            (`suffixes`); a network whose part behind a layer cannot be run alone is run whole for each weight, which
            is logged. In the network's own precision: in float32 changes below about 1e-7 of the loss are rounding.
        batch_size: Samples per pass, lowered where what is kept of each would not fit into 256 MiB.

    Returns:
        One (K,) for each layer.

    Raises:
        LayerError: A layer does not exist or has no weights.
        DataError: There are not as many classes as samples.
    """
    if len(x) != len(y) or not len(x):
        raise DataError(f"sensitivity needs one class per sample, got {len(x)} samples and {len(y)} classes")
    network, device = prepare(model), device_of(model)
    inputs, classes = torch.as_tensor(x).detach().to(device), torch.as_tensor(y, dtype=torch.int64).to(device)
    names = [weight_module(network, inputs[:1], resolve_layer(model, layer)) for layer in layers]
    owners = {name: network.get_submodule(name) for name in names}
    if exact:
        totals = {name: _removals(network, inputs, classes, name, batch_size) for name in owners}
    else:
        totals = _first_orders(network, inputs, classes, owners, batch_size)
    per_filter = {name: _weight(owner)[0].numel() for name, owner in owners.items()}
    return [(totals[name] / (len(inputs) * per_filter[name])).cpu().numpy() for name in names]


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach()


def _losses(scores: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(scores, y, reduction="none").double()


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer is torch's own convolution or linear map, not a class that does something else."""
    return type(layer).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward)


def _factors(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what each weight of a filter is multiplied with at each position, (n, groups, weights, positions).

    Args:
        layer: A plain layer.
        x: What enters it: (n, ..., features) of a linear map, (n, ..., channels, *space) of a convolution.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).mT[:, None]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dimensions = len(layer.kernel_size)
    images = x.reshape(-1, layer.in_channels, *x.shape[x.ndim - dimensions :])
    reaches = [spread * (size - 1) for size, spread in zip(layer.kernel_size, layer.dilation, strict=True)]
    if isinstance(layer.padding, str):
        margins = [(reach // 2, reach - reach // 2) if layer.padding == "same" else (0, 0) for reach in reaches]
    else:
        margins = [(int(width), int(width)) for width in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = pad(images, [width for margin in reversed(margins) for width in margin], mode)
    for axis, (reach, step, spread) in enumerate(zip(reaches, layer.stride, layer.dilation, strict=True), start=2):
        windows = windows.unfold(axis, reach + 1, step)[..., ::spread]
    places = range(2, 2 + dimensions)
    windows = windows.permute(0, 1, *(place + dimensions for place in places), *places)
    weights = layer.weight[0].numel()
    windows = windows.reshape(len(x), -1, layer.groups, weights, math.prod(windows.shape[-dimensions:]))
    return windows.movedim(1, 3).flatten(3)


def _by_group(layer: nn.Module, values: Tensor) -> Tensor:
    """Return values or slopes of a plain layer's output as (n, groups, filters of a group, positions)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), -1, values.shape[-1]).mT[:, None]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    space = values.shape[values.ndim - len(layer.kernel_size) :]
    images = values.reshape(len(values), -1, layer.groups, layer.out_channels // layer.groups, math.prod(space))
    return images.movedim(1, 3).flatten(3)


def _first_orders(
    network: nn.Module, x: Tensor, y: Tensor, layers: Mapping[str, nn.Module], batch_size: int
) -> dict[str, Tensor]:
    """Return the sum over samples and weights of |w * d loss / d w| of each filter, (K,), by layer.

    What enters a layer and the slopes of the loss in its output give the gradients of its weights; all layers' come
    from one backward pass. The slopes are those in a zero that is added to the output.
    """

    def run(zeros: Mapping[str, Sequence[Tensor]] | None, sample: Tensor) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        incoming: dict[str, list[Tensor]] = {name: [] for name in layers}
        outgoing: dict[str, list[Tensor]] = {name: [] for name in layers}

        def observe(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
                incoming[name].append((args[0] if args else kwargs["input"]).clone())  # it may be changed later
                outgoing[name].append(output)
                return output if zeros is None else output + zeros[name][len(outgoing[name]) - 1]

            return hook

        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.callback(layer.register_forward_hook(observe(name), with_kwargs=True).remove)
            return network(sample[None].clone()), incoming, outgoing

    def sample_loss(
        zeros: dict[str, list[Tensor]], sample: Tensor, label: Tensor
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        output, incoming, _ = run(zeros, sample)
        return cross_entropy(logits(output), label[None]), incoming

    with torch.no_grad():
        zeros = {name: [torch.zeros_like(value) for value in seen] for name, seen in run(None, x[0])[2].items()}
    totals = {name: torch.zeros_like(_weight(layer), dtype=torch.float64) for name, layer in layers.items()}
    for batch, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        slopes, incoming = vmap(grad(sample_loss, has_aux=True), in_dims=(None, 0, 0))(zeros, batch, labels)
        for name, layer in layers.items():
            totals[name] += _gradient_sizes(layer, incoming.pop(name), slopes.pop(name))
    return {name: (_weight(layer).abs() * totals[name]).flatten(1).sum(1) for name, layer in layers.items()}


def _gradient_sizes(layer: nn.Module, incoming: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Return the sum over samples of |d loss / d w|, of the weight's shape.

    Args:
        layer: The layer.
        incoming: What entered it at each of its calls, (n, ...).
        slopes: The slopes of the loss in its output at each of its calls, (n, ...).
    """
    sizes, plain = torch.zeros_like(_weight(layer)), _is_plain(layer)
    positions = sum(value[0].numel() for value in slopes) // len(sizes)
    kept = sizes.numel() + (positions * sizes[0].numel() if plain else 0)
    step = max(1, PASS_BYTES // (kept * sizes.element_size()))
    calls, buffer = len(incoming), sizes.new_empty(0)  # one buffer: new memory is slow where gradients are large
    for parts in zip(*(torch.split(value, step) for value in (*incoming, *slopes)), strict=True):
        if not plain:
            gradients = vmap(partial(_weight_gradient, layer))(parts[:calls], parts[calls:])
        else:
            factors = torch.cat([_factors(layer, value) for value in parts[:calls]], 3)
            back = torch.cat([_by_group(layer, value) for value in parts[calls:]], 3)
            if positions == 1:  # a gradient is the product of two vectors, and so is its size
                found = torch.einsum("ngk,ngw->gkw", back.abs().flatten(2), factors.abs().flatten(2))
                sizes += found.reshape(sizes.shape)
                continue
            torch.matmul(back, factors.mT, out=buffer.resize_(0))
            gradients = buffer
        for gradient in gradients.abs_():
            sizes += gradient.reshape(sizes.shape)
    return sizes


def _weight_gradient(layer: nn.Module, incoming: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Return d loss / d w of one sample for a layer of any kind, of the weight's shape."""

    def run(weight: Tensor) -> list[Tensor]:
        return [functional_call(layer, {"weight": weight}, (value,)) for value in incoming]

    gradient: Tensor = vjp(run, _weight(layer))[1](list(slopes))[0]
    return gradient


def _removals(network: nn.Module, x: Tensor, y: Tensor, name: str, batch_size: int) -> Tensor:
    """Return the sum over samples and weights of |loss(w) - loss(w = 0)| of each filter, (K,)."""
    layer = network.get_submodule(name)
    suffix = find_suffix(network, name, x) if _is_plain(layer) else None
    measure: Callable[[Tensor, Tensor], Tensor]
    if suffix is None or (isinstance(layer, nn.Linear) and not suffix.flat):
        log.info("removing a weight of %s runs the whole network each time", name)
        measure = partial(_removed_from_network, network, name)
    else:
        measure = partial(_removed_from_suffix, suffix)
        with torch.no_grad():
            batch_size = min(batch_size, max(1, _KEPT_BYTES // _factors(layer, suffix.before(x[:1])[0]).nbytes))
    with torch.no_grad():
        parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        return torch.stack([measure(batch, labels) for batch, labels in parts]).sum(0)


def _removed_from_network(network: nn.Module, name: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of |loss(w) - loss(w = 0)|, (K,), one pass through the network for each weight."""
    weight = _weight(network.get_submodule(name))
    intact = _losses(logits(network(x.clone())), y)
    changes = torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
    for index in range(weight.numel()):
        lesioned = weight.clone(memory_format=torch.contiguous_format)
        lesioned.view(-1)[index] = 0
        scores = logits(functional_call(network, {f"{name}.weight": lesioned}, (x.clone(),)))
        changes[index] = (intact - _losses(scores, y)).abs().sum()
    return changes.view(len(weight), -1).sum(1)


def _removed_from_suffix(suffix: Suffix, x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of |loss(w) - loss(w = 0)|, (K,), running for each weight what its filter's map changes.

    Without its weight w a filter's output is less by w times what the weight is multiplied with.
    """
    layer = suffix.layer
    incoming, others = suffix.before(x)
    kept = suffix.keep(incoming, others)
    intact = _losses(kept.scores, y)
    output = layer(incoming)
    values, factors = _by_group(layer, output), _factors(layer, incoming)
    weight = _weight(layer)
    shares = weight.reshape(values.shape[1], values.shape[2], -1)
    total = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    together = max(1, PASS_BYTES // output.nbytes)  # weights of a filter; those of all filters at the same place
    for share, factor in zip(torch.split(shares, together, 2), torch.split(factors, together, 2), strict=True):
        lesioned = values - share.movedim(2, 0)[:, None, :, :, None] * factor.movedim(2, 0)[:, :, :, None]
        maps = suffix.chain(lesioned.reshape(-1, *output.shape[1:]))
        maps = maps.reshape(-1, *kept.maps.shape)
        differs = (maps != kept.maps).flatten(3).any(3) if maps.ndim > 3 else maps != kept.maps
        for chosen in suffix.passes(kept, differs.permute(2, 0, 1)):
            filters, sizes = torch.unique_consecutive(chosen[:, 0], return_counts=True)
            changes = [
                Change(samples, filters[number : number + 1], maps[places, samples, filters[number], None])
                for number, (_, places, samples) in enumerate(
                    part.unbind(1) for part in torch.split(chosen, sizes.tolist())
                )
            ]
            samples = chosen[:, 2]
            lost = (_losses(suffix.scores(kept, changes), y[samples]) - intact[samples]).abs()
            total.index_add_(0, chosen[:, 0], lost)
    return total


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
    tables, names = [], []
    for depth, (layer, moments) in enumerate(layers):
        images, foreground = scanned(moments.samples)
        # block sums to block means, so that the properties are those of pixels whatever the block
        filter_images = moments.filter_images[layer][:, :, None] / moments.block**2
        table = interpretable_properties(filter_images, images, foreground)
        table["AVoU"] = activation_value(np.maximum(moments.layers[layer]["activation"], 0))
        table.insert(0, "layer", layer)
        table.insert(1, "depth", depth)
        tables.append(table)
        names.append(layer)
    for table, values in zip(tables, sensitivities(model, x, y, names, exact), strict=True):
        table["SoU"] = values
    return pd.concat(tables, ignore_index=True)
