"""NNS, the Neural Network Scanner: learning images of neurons and filters.

Dou Hui, doctoral slides, ch. 3. The learning image of neuron q is the input, pixel by pixel, times the weight with
which each pixel reaches the neuron through the gates that are open for this input:
`I_q = x * d a_q / d x` with the network's ReLU gates and pooling winners frozen at x. Biases are not drawn. Three
routes compute it:

- a few neurons: reverse mode, batched over neurons (`learning_images`);
- a filter's image `L^k = sum_ij I_ij f_ij = x * grad(1/2 sum f_k^2)`: one backward pass per filter (`filter_images`);
- every neuron of every layer: forward mode (`scan`). The tangent of one pixel, pushed through the linearised network,
  is that pixel's column of all learning images at once; the sums that later stages need are taken while the columns
  stream by.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.errors import ScanError
from nnscan.models import capture, device_of, network_layers, neuron_layers, prepare, resolve_layer, smooth_operations
from nnscan.moments import QUANTITIES, REGIONS, SUPPORT, Moments, concatenate

CHUNK = 256
"""Tangents in one forward call; larger chunks cost memory and gain little."""

KEEP_BYTES = 2 << 30
"""Columns of one sample are kept in memory up to this size, and half of what is free; else the sweep is run twice."""

log = logging.getLogger(__name__)


def available_bytes() -> int:
    """Return the free main memory in bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_image(x: Tensor, dimensions: int, shape: str) -> None:
    if x.ndim != dimensions or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor {shape}, got {tuple(x.shape)} of {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ScanError("the input holds values that are not finite")


def learning_images(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    neurons: Sequence[int] | NDArray[np.integer] | Tensor | None = None,
    gate: bool = True,
) -> Tensor:
    """Return the learning images of chosen neurons for one input.

    Args:
        model: Any network; it is left unchanged.
        x: The input (C, H, W), as fed to the network.
        layer: The layer whose output is the neuron's value before its ReLU, by name or module.
        neurons: Flat indices into the layer's (K, h, w) map; None for all of them.
        gate: Zero the images of neurons whose value is <= 0 (they pass nothing on). Off for class scores.

    Returns:
        Learning images (n, C, H, W), in units of the neuron's value; `sum(I_q)` is the neuron's value less what its
        own and earlier biases contribute.

    Raises:
        LayerError: The model has no such layer.
        ScanError: x has another shape, or an index is outside the map.

    Source: Dou Hui, doctoral slides, ch. 3 (learning-image generation).
    """
    _check_image(x, 3, "(C, H, W)")
    x = x.to(device_of(model))
    probe = prepare(model)
    name = resolve_layer(model, layer)
    source = x.detach()[None].clone().requires_grad_(True)
    with torch.enable_grad(), capture(probe, [name]) as outputs:
        probe(source.clone())  # a model may change its input in place
        values = outputs[name].reshape(-1)
        indices = torch.arange(values.numel()) if neurons is None else torch.as_tensor(neurons, dtype=torch.long).cpu()
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < values.numel():
            raise ScanError(
                f"neuron indices run from {int(indices.min())} to {int(indices.max())}, but the layer {name!r} has the "
                f"{values.numel()} neurons 0 to {values.numel() - 1} of its map {tuple(outputs[name].shape[1:])}"
            )
        images = x.new_zeros((len(indices), *x.shape))
        for start in range(0, len(indices), CHUNK):
            part = indices[start : start + CHUNK]
            selectors = torch.zeros((len(part), *outputs[name].shape), dtype=values.dtype, device=values.device)
            selectors.view(len(part), -1)[torch.arange(len(part)), part] = 1
            (gradients,) = torch.autograd.grad(
                outputs[name], source, selectors, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
            images[start : start + CHUNK] = x * gradients[:, 0]
        if gate:
            images[values[indices] <= 0] = 0
    return images.detach()


def filter_images(model: nn.Module, x: Tensor, layer: str | nn.Module, filters: Sequence[int] | None = None) -> Tensor:
    """Return the learning images of filters, `L^k(x) = sum_ij I^k_ij(x) f^k_ij(x)` with `f = relu(layer output)`.

    Computed as `x * grad_x(1/2 sum_ij f_ij^2)`, which is the same sum: one backward pass per filter for all samples.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        layer: The layer whose output is the value before the ReLU, by name or module.
        filters: Filters to compute; None for all K.

    Returns:
        Filter images (N, K, C, H, W), in units of the squared activation; zero for a filter that is not active.

    Raises:
        LayerError: The model has no such layer.
        ScanError: x has another shape, a filter does not exist, or the result would not fit into memory.

    Source: Dou Hui, doctoral slides, ch. 5, definition of L^k.
    """
    _check_image(x, 4, "(N, C, H, W)")
    x = x.to(device_of(model))
    probe = prepare(model)
    name = resolve_layer(model, layer)
    source = x.detach().clone().requires_grad_(True)
    with torch.enable_grad(), capture(probe, [name]) as outputs:
        probe(source.clone())  # a model may change its input in place
        maps = torch.relu(outputs[name])
        chosen = list(range(maps.shape[1])) if filters is None else [int(index) for index in filters]
        if any(not 0 <= index < maps.shape[1] for index in chosen):
            raise ScanError(f"filters {chosen} were asked of {name!r}, which has the filters 0 to {maps.shape[1] - 1}")
        needed = len(chosen) * x.numel() * x.element_size()
        if x.device.type == "cpu" and needed > available_bytes():
            raise ScanError(
                f"the images of {len(chosen)} filters of {name!r} for {len(x)} samples need {needed / 2**30:.1f} GiB, "
                f"and {available_bytes() / 2**30:.1f} GiB are free; ask for fewer filters or samples at a time"
            )
        images = x.new_empty((len(x), len(chosen), *x.shape[1:]))
        for position, index in enumerate(chosen):
            (gradient,) = torch.autograd.grad(
                maps[:, index], source, maps[:, index].detach(), retain_graph=True, materialize_grads=True
            )
            images[:, position] = x * gradient
    return images.detach()


def _block_sum(image: Tensor, block: int) -> Tensor:
    """Sum (..., H, W) over blocks of b x b pixels."""
    *rest, height, width = image.shape
    return image.reshape(*rest, height // block, block, width // block, block).sum((-3, -1))


def _scaled(image: Tensor) -> Tensor:
    """Scale |image| to [0, 1] by its minimum and maximum; a constant image becomes zero."""
    size = image.abs()
    spread = size.max() - size.min()
    return (size - size.min()) / spread if spread > 0 else torch.zeros_like(size)


class _Sweep:
    """The columns of all learning images of one sample, in chunks of pixels.

    Pixels whose value is zero are left out: their columns are zero.
    """

    def __init__(self, model: nn.Module, x: Tensor, layers: Sequence[str], block: int) -> None:
        self.model, self.x, self.layers, self.block = model, x, layers, block
        height, width = x.shape[-2] // block, x.shape[-1] // block
        reached = _block_sum((x != 0).any(0).to(x.dtype), block) > 0
        self.pixels = torch.nonzero(reached.reshape(-1)).reshape(-1)
        self.grid = (height, width)

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        with capture(self.model, self.layers) as outputs:
            self.model(x.clone())
        return tuple(outputs[layer] for layer in self.layers)

    def values(self) -> dict[str, Tensor]:
        """Return each layer's output (K, h, w); a linear layer's map is (K, 1, 1)."""
        with torch.no_grad():
            return {
                layer: output[0].reshape(output.shape[1], *(output.shape[2:] or (1, 1)))
                for layer, output in zip(self.layers, self._outputs(self.x[None]), strict=True)
            }

    def _tangents(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels // self.grid[1], pixels % self.grid[1]
        selected = torch.zeros((len(pixels), *self.grid), dtype=self.x.dtype, device=self.x.device)
        selected[torch.arange(len(pixels)), rows, columns] = 1
        if self.block > 1:
            selected = selected.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)
        return selected[:, None, None] * self.x

    def columns(self, chunk: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield pixels (t,) and, for each layer, their columns (t, K, h w): I of every neuron at those pixels."""
        push = torch.func.vmap(lambda tangent: torch.func.jvp(self._outputs, (self.x[None],), (tangent,))[1])
        for start in range(0, len(self.pixels), chunk):
            pixels = self.pixels[start : start + chunk]
            with torch.no_grad():
                columns = push(self._tangents(pixels))
            yield (
                pixels,
                {
                    layer: column.reshape(len(pixels), column.shape[2], -1)
                    for layer, column in zip(self.layers, columns, strict=True)
                },
            )


class _Accumulator:
    """The running sums of one layer, over the pixels of one sample.

    Two passes: the support of an image is known only with its maximum.
    """

    def __init__(self, value: Tensor, weights: Tensor, gate: bool, pixels: int) -> None:
        filters, *positions = value.shape
        self.value, self.shape, self.pixels = value.reshape(-1), (filters, *positions), pixels
        self.feature_map = torch.relu(value).reshape(filters, -1, 1)
        self.open = self.value > 0 if gate else torch.ones_like(self.value, dtype=torch.bool)
        self.weights = weights  # (P, 6): foreground, background, x and x^2 on each
        count = self.value.numel()
        self.maximum = self.value.new_zeros(count)
        self.minimum = self.value.new_full((count,), torch.inf)
        self.signed = self.value.new_zeros(count)
        self.on_region = self.value.new_zeros((4, count))
        self.on_support = self.value.new_zeros((8, count))
        self.filter_image = self.value.new_zeros((pixels, filters))
        self.seen = 0

    def extremes(self, pixels: Tensor, columns: Tensor) -> None:
        flat = columns.reshape(len(pixels), -1)
        low, high = torch.aminmax(flat, dim=0)
        self.maximum = torch.maximum(self.maximum, torch.maximum(high, -low))
        # min |I| is min I or min -I where all have one sign, and lies between otherwise
        self.minimum = torch.minimum(
            self.minimum, torch.where((low < 0) & (high > 0), flat.abs().amin(0), torch.minimum(low.abs(), high.abs()))
        )
        self.signed += flat.sum(0)
        self.seen += len(pixels)
        self.filter_image[pixels] = torch.matmul(columns.transpose(0, 1), self.feature_map)[..., 0].T

    def sums(self, pixels: Tensor, columns: Tensor) -> None:
        size = columns.reshape(len(pixels), -1).abs()
        weights = self.weights[pixels]
        regions = weights[:, :2].T
        self.on_region[:2] += regions @ size
        self.on_region[2:] += regions @ size.square()
        support = size > SUPPORT * self.maximum
        self.on_support[:6] += weights.T @ support.to(size.dtype)
        self.on_support[6:] += weights[:, 2:4].T @ size.masked_fill_(~support, 0)

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """Return the quantities of `moments.QUANTITIES`, each (1, K, h, w)."""
        if self.seen < self.pixels:  # pixels of value zero, which the sweep leaves out
            self.minimum.fill_(0)
        rows = {
            "activation": self.value,
            "signed_total": self.signed * self.open,
            "maximum": self.maximum * self.open,
            "minimum": self.minimum * self.open,
        }
        for index, region in enumerate(REGIONS):
            rows[f"count_{region}"] = self.on_support[index]
            rows[f"total_{region}"] = self.on_region[index]
            rows[f"square_{region}"] = self.on_region[2 + index]
            rows[f"input_total_{region}"] = self.on_support[2 + index]
            rows[f"input_square_{region}"] = self.on_support[4 + index]
            rows[f"cross_{region}"] = self.on_support[6 + index]
        gated = {name: row if name == "activation" else row * self.open for name, row in rows.items()}
        return {name: gated[name].reshape(1, *self.shape).cpu().numpy() for name in QUANTITIES}


def _scan_sample(
    model: nn.Module, x: Tensor, mask: Tensor, layers: Sequence[str], block: int, ungated: set[str], chunk: int
) -> tuple[dict[str, dict[str, NDArray[np.floating]]], dict[str, NDArray[np.floating]]]:
    """Return the moments and the filter images of one sample x (C, H, W) with its foreground grid (P,)."""
    sweep = _Sweep(model, x, layers, block)
    grid = _scaled(_block_sum(x.sum(0), block)).reshape(-1)
    inside, outside = mask.to(x.dtype), (~mask).to(x.dtype)
    weights = torch.stack([inside, outside, inside * grid, outside * grid, inside * grid**2, outside * grid**2], dim=1)
    values = sweep.values()
    accumulators = {
        layer: _Accumulator(value, weights, layer not in ungated, len(grid)) for layer, value in values.items()
    }
    neurons = sum(value.numel() for value in values.values())
    needed = neurons * len(sweep.pixels) * x.element_size()
    keep = needed <= (min(KEEP_BYTES, available_bytes() // 2) if x.device.type == "cpu" else KEEP_BYTES)
    kept: list[tuple[Tensor, dict[str, Tensor]]] = []
    for pixels, columns in sweep.columns(chunk):
        for layer, accumulator in accumulators.items():
            accumulator.extremes(pixels, columns[layer])
        if keep:
            kept.append((pixels, columns))
    for pixels, columns in kept if keep else sweep.columns(chunk):
        for layer, accumulator in accumulators.items():
            accumulator.sums(pixels, columns[layer])
    moments = {layer: accumulator.arrays() for layer, accumulator in accumulators.items()}
    images = {
        layer: accumulator.filter_image.T.reshape(1, -1, *sweep.grid).cpu().numpy()
        for layer, accumulator in accumulators.items()
    }
    return moments, images


def _foreground_grid(foreground: Tensor | None, x: Tensor, block: int) -> Tensor:
    """Return the foreground of each sample on the block grid (N, P): blocks of which at least half are foreground."""
    if foreground is None:
        return torch.ones((len(x), (x.shape[-2] // block) * (x.shape[-1] // block)), dtype=torch.bool, device=x.device)
    if foreground.shape != (len(x), *x.shape[-2:]):
        raise ScanError(
            f"foreground masks {tuple(foreground.shape)} do not fit images {tuple(x.shape)}: expected (N, H, W)"
        )
    share = _block_sum(foreground.to(x.dtype), block) / block**2
    return (share >= 0.5).reshape(len(x), -1).to(x.device)


def scan_samples(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor | NDArray[np.bool_] | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    block: int = 1,
    samples: Sequence[int] | NDArray[np.int64] | None = None,
    progress: bool = False,
) -> Iterator[Moments]:
    """Yield the moments of one sample after the other; see `scan`.

    Args:
        model: As in `scan`.
        x: As in `scan`.
        foreground: As in `scan`.
        layers: As in `scan`.
        block: As in `scan`.
        samples: Identifiers of the samples; None for 0 to N - 1.
        progress: Show a progress bar.
    """
    _check_image(x, 4, "(N, C, H, W)")
    x = x.detach().to(device_of(model))
    if block < 1 or x.shape[-2] % block or x.shape[-1] % block:
        fitting = [b for b in range(1, min(x.shape[-2:]) + 1) if x.shape[-2] % b == 0 and x.shape[-1] % b == 0]
        raise ScanError(
            f"block {block} does not divide images of {x.shape[-2]} x {x.shape[-1]} pixels; possible: {fitting}"
        )
    probe = prepare(model)
    names = [resolve_layer(model, layer) for layer in layers] if layers is not None else neuron_layers(model, x)
    if not len(x) or not names:
        raise ScanError(f"nothing to scan: {len(x)} samples and {len(names)} layers were given")
    smooth = smooth_operations(probe, x)
    if smooth:
        log.warning(
            "the network is not piecewise linear (%s): its learning images are those of its linearisation at the input",
            ", ".join(smooth),
        )
    ungated = _class_scores(probe, x)
    masks = _foreground_grid(None if foreground is None else torch.as_tensor(foreground), x, block)
    identifiers = np.arange(len(x)) if samples is None else np.asarray(samples)
    chunk = _chunk_size(x)
    for index in tqdm(range(len(x)), desc="scan", unit="sample", mininterval=5, disable=not progress):
        while True:
            try:
                moments, images = _scan_sample(probe, x[index], masks[index], names, block, ungated, chunk)
                break
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                chunk //= 2
                log.warning("the GPU's memory is full: the scan goes on with %d tangents at a time", chunk)
        yield Moments(
            moments,
            identifiers[index : index + 1].astype(np.int64),
            masks.shape[1],
            masks[index : index + 1].sum(1).cpu().numpy(),
            foreground is not None,
            block,
            images,
        )


def _class_scores(model: nn.Module, x: Tensor) -> set[str]:
    """Return the name of the network's last layer unless a ReLU follows it, as in SqueezeNet."""
    found = network_layers(model, x)
    if not found:
        return set()
    activation = found[-1].activation
    gated = activation is not None and isinstance(model.get_submodule(activation), nn.ReLU | nn.ReLU6)
    return set() if gated else {found[-1].name}


def _chunk_size(x: Tensor) -> int:
    """Return how many tangents go through the network together: fewer for large images."""
    return max(16, min(CHUNK, CHUNK * 64 * 64 // (x.shape[-2] * x.shape[-1])))


def scan(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor | NDArray[np.bool_] | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    block: int = 1,
) -> Moments:
    """Scan every neuron of every layer: the moments of all learning images, and the filter images.

    The images are channel-summed. Neurons whose value is <= 0 have the zero image; the network's last layer, its class
    scores, has no gate, unless a ReLU follows it.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        foreground: Foreground masks (N, H, W), boolean; None where there are none: then the foreground of the
            moments is the whole image, and `Moments.masked` is False.
        layers: Layers by name or module; None for the default (`models.neuron_layers`).
        block: Side of the blocks of pixels that are summed; 1 for single pixels. Costs fall with its square.

    Returns:
        The moments of all neurons and samples, with the filter images.

    Raises:
        LayerError: The model has no such layer.
        ScanError: Shapes do not fit, the block does not divide the image, or there is nothing to scan.

    Source: Dou Hui, doctoral slides, ch. 3 and 4; the sums are those that the feature quantity needs.
    """
    return concatenate(list(scan_samples(model, x, foreground, layers, block)))
