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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.accumulators import Batch, LayerSums, Scratch, pixel_weights
from nnscan.errors import ScanError
from nnscan.linearisation import Linearisation, LinearisationError
from nnscan.models import (
    NeuronLayer,
    capture,
    chosen_layers,
    device_of,
    network_layers,
    prepare,
    resolve_layer,
    smooth_operations,
    tf32,
)
from nnscan.moments import IMAGES, Moments, concatenate
from nnscan.sweeps import (
    CACHE_BYTES,
    Prefix,
    Sweep,
    WholeMapSweep,
    WindowSweep,
    block_sum,
    enlarged,
    random_signs,
)
from nnscan.windows import Windows, map_rows

CHUNK = 256
"""Whole maps of small images that are carried through a network together; see `_together`."""

KEEP_BYTES = 2 << 30
"""Columns of one sample are kept in memory up to this size, and half of what is free; else the sweep is run twice."""

SMALLEST_BYTES = 2**10
"""A GPU that has no room for batches of this size has none at all."""

MOST_TOGETHER = 16
"""Samples of a small network that are scanned together; more gain nothing."""

Precision = Literal["float32", "tf32", "bfloat16", "float64"]

CHECK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far a sweep may be from torch's derivative, as a share of the layer's largest value."""

log = logging.getLogger(__name__)


def available_bytes() -> int:
    """Return the free main memory in bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_image(x: Tensor, dimensions: int, shape: str) -> None:
    if x.ndim != dimensions or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor {shape}, got {tuple(x.shape)} of {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ScanError("the input holds values that are not finite")


def _together(x: Tensor) -> int:
    """Return how many whole maps go through a network together: fewer for large images."""
    return max(16, min(CHUNK, CHUNK * 64 * 64 // (x.shape[-2] * x.shape[-1])))


@torch.inference_mode(False)
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
    x = x.detach().to(device_of(model), copy=True)
    probe = prepare(model)
    name = resolve_layer(model, layer)
    source = x[None].clone().requires_grad_(True)
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
        step = _together(x)
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            selectors = torch.zeros((len(part), *outputs[name].shape), dtype=values.dtype, device=values.device)
            selectors.view(len(part), -1)[torch.arange(len(part)), part] = 1
            (gradients,) = torch.autograd.grad(
                outputs[name], source, selectors, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
            images[start : start + step] = x * gradients[:, 0]
        if gate:
            images[values[indices] <= 0] = 0
    return images.detach()


@torch.inference_mode(False)
def filter_images(model: nn.Module, x: Tensor, layer: str | nn.Module, filters: Sequence[int] | None = None) -> Tensor:
    """Return the learning images of filters, `L^k(x) = sum_ij I^k_ij(x) f^k_ij(x)` with `f = relu(layer output)`.

    Two routes give the same numbers: backwards, `x * grad_x(1/2 sum_ij f_ij^2)`, one pass for each filter that is
    active; and forwards, one tangent for each value of the input, contracted with f. The one with fewer multiply-adds
    is taken.

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
    x = x.detach().to(device_of(model), copy=True)
    probe = prepare(model)
    name = resolve_layer(model, layer)
    with torch.no_grad(), capture(probe, [name]) as outputs:
        probe(x[:1].clone())
    count = outputs[name].shape[1]
    chosen = list(range(count)) if filters is None else [int(index) for index in filters]
    if any(not 0 <= index < count for index in chosen):
        raise ScanError(f"filters {chosen} were asked of {name!r}, which has the filters 0 to {count - 1}")
    needed = len(chosen) * x.numel() * x.element_size()
    if x.device.type == "cpu" and needed > available_bytes():
        raise ScanError(
            f"the images of {len(chosen)} filters of {name!r} for {len(x)} samples need {needed / 2**30:.1f} GiB, "
            f"and {available_bytes() / 2**30:.1f} GiB are free; ask for fewer filters or samples at a time"
        )
    images = x.new_zeros((len(x), len(chosen), *x.shape[1:]))
    step = max(1, _together(x) // 4)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        sweeps = _channel_sweeps(probe, part, name)
        found = images[start : start + step]
        if sweeps and _forward_is_cheaper(sweeps, name, chosen):
            _contract(sweeps, part, name, chosen, found)
            if _sum_agrees(probe, part, name, chosen, found):
                continue
            log.warning("filter images of %s by windows disagree with torch's derivative: they are carried back", name)
        _carry_back(probe, part, name, chosen, found.zero_())
    return images


def _channel_sweeps(model: nn.Module, x: Tensor, layer: str) -> list[WindowSweep]:
    """Return a sweep for each channel of the input, or none where the network cannot be followed."""
    try:
        linear = Linearisation(model, x, [layer])
    except LinearisationError as error:
        log.info("filter images of %s are carried back: %s", layer, error)
        return []
    if linear.whole_maps or layer not in linear.places:
        return []
    channels = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None, :, None, None]
    return [WindowSweep(linear, x * channel, 1) for channel in channels]


def _forward_is_cheaper(sweeps: Sequence[WindowSweep], layer: str, chosen: Sequence[int]) -> bool:
    """Whether the sweeps take fewer multiply-adds than carrying each active filter back through whole maps."""
    values = sweeps[0].values[layer][:, chosen]
    active = int((values > 0).flatten(2).any(2).sum(1).max())
    return sum(sweep.products for sweep in sweeps) < active * sweeps[0].linear.whole_products()


def _contract(sweeps: Sequence[WindowSweep], x: Tensor, layer: str, chosen: Sequence[int], images: Tensor) -> None:
    """Write the filter images (N, n, C, H, W) by forward sweeps: the columns of the layer, contracted with f."""
    feature_map = map_rows(sweeps[0].values[layer].relu())
    for channel, sweep in enumerate(sweeps):
        target = images[:, :, channel].flatten(2)
        for batch in sweep.batches:

            def read(layer: str, number: int, windows: Windows, batch: Batch = batch) -> None:
                share = windows.scaled(feature_map).data.sum((1, 2))[:, chosen]
                for sample in range(len(x)):
                    pixels = torch.from_numpy(batch.pixels[sample :: len(x)])
                    target[sample][:, pixels[pixels >= 0]] = share[sample :: len(x)][pixels >= 0].T  # noqa: B023

            sweep.push([batch], read, lambda _: None)


def _sum_agrees(model: nn.Module, x: Tensor, layer: str, chosen: Sequence[int], images: Tensor) -> bool:
    """Whether the sum of each filter image, with random signs, is what torch's derivative along these signs gives."""
    signs = random_signs(x.shape, x)
    prefix = Prefix(model, x, [layer])
    products = prefix.derivative(x * signs)[0] * prefix.values[0].relu()
    expected = products[:, chosen].reshape(len(x), len(chosen), -1).sum(2)
    error = ((images * signs[:, None]).flatten(2).sum(2) - expected).abs()
    size = images.flatten(2).norm(dim=2)  # about that of a sum with random signs
    return bool((error <= CHECK_TOLERANCE[x.dtype] * size.amax(1, keepdim=True) + torch.finfo(x.dtype).tiny).all())


def _carry_back(model: nn.Module, x: Tensor, layer: str, chosen: Sequence[int], images: Tensor) -> None:
    """Write the filter images (N, n, C, H, W) by backward passes, several filters at a time."""
    source = x.clone().requires_grad_(True)
    with torch.enable_grad(), capture(model, [layer]) as outputs:
        model(source.clone())  # a model may change its input in place
        maps = torch.relu(outputs[layer])
        if not maps.requires_grad:
            return
        active = maps.detach().transpose(0, 1).flatten(1).any(1)[torch.tensor(chosen, device=maps.device)]
        positions = [position for position, alive in enumerate(active.tolist()) if alive]
        step = max(1, _together(x) // len(x))
        for start in range(0, len(positions), step):
            part = positions[start : start + step]
            indices = [chosen[position] for position in part]
            selected = torch.zeros((len(part), *maps.shape), dtype=maps.dtype, device=maps.device)
            selected[torch.arange(len(part)), :, indices] = maps.detach().transpose(0, 1)[indices]
            (gradients,) = torch.autograd.grad(maps, source, selected, retain_graph=True, is_grads_batched=True)
            images[:, part] = (x * gradients).transpose(0, 1)


def _scaled(image: Tensor) -> Tensor:
    """Scale |image| to [0, 1] by its minimum and maximum; a constant image becomes zero."""
    size = image.abs()
    spread = size.max() - size.min()
    return (size - size.min()) / spread if spread > 0 else torch.zeros_like(size)


def _runs(sweep: Sweep, budget: int) -> list[Sequence[Batch]]:
    """Split a sweep's batches so that those that are pushed together fit into memory."""
    step = max(1, budget // max(1, sweep.bytes_each))
    return [sweep.batches[start : start + step] for start in range(0, len(sweep.batches), step)]


def _sum_up(sweep: Sweep, sums: Mapping[str, LayerSums], budget: int, progress: Callable[[int], object]) -> None:
    """Run a sweep and take the sums of every layer.

    The support of an image is known only with its largest value. Where all columns of a layer fit into memory they
    are read twice; else the sweep is run twice.
    """
    runs = _runs(sweep, budget)
    alone, scratch = len(runs) == 1, Scratch()
    for last in (False, True):
        if alone and last:
            return
        for run in runs:
            grids = [sweep.grids(batch) for batch in run]

            def read(layer: str, number: int, windows: Windows) -> None:
                if number == 0:
                    sums[layer].begin(run, [found[layer] for found in grids], alone, scratch)  # noqa: B023
                sums[layer].add(number, windows, images=not last)  # noqa: B023

            def leave(layer: str) -> None:
                sums[layer].take(extremes=not last, sums=alone or last)  # noqa: B023
                sums[layer].leave()

            sweep.push(run, read, leave)
            progress(len(run))


def _foreground_grid(foreground: Tensor | None, x: Tensor, block: int) -> Tensor:
    """Return the foreground of each sample on the block grid (N, P): blocks of which at least half are foreground."""
    if foreground is None:
        return torch.ones((len(x), (x.shape[-2] // block) * (x.shape[-1] // block)), dtype=torch.bool, device=x.device)
    if foreground.shape != (len(x), *x.shape[-2:]):
        raise ScanError(
            f"foreground masks {tuple(foreground.shape)} do not fit images {tuple(x.shape)}: expected (N, H, W)"
        )
    share = block_sum(foreground.to(x.dtype), block) / block**2
    return (share >= 0.5).reshape(len(x), -1).to(x.device)


@torch.inference_mode(False)
def scan_samples(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor | NDArray[np.bool_] | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    block: int = 1,
    samples: Sequence[int] | NDArray[np.int64] | None = None,
    precision: Precision | None = None,
    progress: bool = False,
) -> Iterator[Moments]:
    """Yield the moments of some samples after the other; see `scan`.

    Args:
        model: As in `scan`.
        x: As in `scan`.
        foreground: As in `scan`.
        layers: As in `scan`.
        block: As in `scan`.
        samples: Identifiers of the samples; None for 0 to N - 1.
        precision: As in `scan`.
        progress: Show a progress bar.
    """
    _check_image(x, 4, "(N, C, H, W)")
    x = x.detach().to(device_of(model), copy=True)
    if block < 1 or x.shape[-2] % block or x.shape[-1] % block:
        fitting = [b for b in range(1, min(x.shape[-2:]) + 1) if x.shape[-2] % b == 0 and x.shape[-1] % b == 0]
        raise ScanError(
            f"block {block} does not divide images of {x.shape[-2]} x {x.shape[-1]} pixels; possible: {fitting}"
        )
    probe = prepare(model)
    found = network_layers(probe, x)
    names = chosen_layers(found) if layers is None else [resolve_layer(model, layer) for layer in layers]
    if not len(x) or not names:
        raise ScanError(f"nothing to scan: {len(x)} samples and {len(names)} layers were given")
    smooth = smooth_operations(probe, x)
    if smooth:
        log.warning(
            "the network is not piecewise linear (%s): its learning images are those of its linearisation at the input",
            ", ".join(smooth),
        )
    if precision in ("float32", "tf32", "bfloat16", "float64"):
        own = torch.float64 if precision == "float64" else torch.float32
        probe, x = probe.to(own), x.to(own)
    scanner = _Scanner(probe, names, block, ungated_layers(probe, found), precision)
    masks = _foreground_grid(None if foreground is None else torch.as_tensor(foreground), x, block)
    identifiers = np.arange(len(x)) if samples is None else np.asarray(samples)
    start = 0
    with tqdm(
        total=len(x), desc="scan", unit="sample", mininterval=5, disable=not progress,
        bar_format="{l_bar}{bar}| {n:.2f}/{total_fmt} [{elapsed}<{remaining}]",
    ) as bar:  # fmt: skip
        while start < len(x):
            part = slice(start, min(start + scanner.together, len(x)))
            try:
                with tf32(precision == "tf32"):  # not while the caller has the samples that were scanned
                    arrays, images = scanner.scan(x[part], masks[part], foreground is not None, bar.update)
            except (torch.OutOfMemoryError, LinearisationError) as error:
                if not scanner.shrink(error):
                    raise
                bar.n = start
                continue
            yield Moments(
                arrays,
                identifiers[part].astype(np.int64),
                masks.shape[1],
                masks[part].sum(1).cpu().numpy(),
                foreground is not None,
                block,
                **images,
            )
            start = part.stop


class _Scanner:
    """Scans groups of samples of one network; what it learns from one group it uses for the next.

    Attributes:
        together: Samples to scan in the next group.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], block: int, ungated: set[str], precision: Precision | None
    ) -> None:
        self.model, self.layers, self.block, self.ungated = model, layers, block, ungated
        self.dtype = torch.bfloat16 if precision == "bfloat16" else None
        self.cache_bytes, self.budget_share = CACHE_BYTES, 1.0
        self.whole_maps, self.checked = False, 0  # the most samples of a group that was checked
        self.together, self.most = 1, MOST_TOGETHER

    def scan(
        self, x: Tensor, masks: Tensor, regions: bool, progress: Callable[[float], object]
    ) -> tuple[dict[str, dict[str, NDArray[np.floating]]], dict[str, dict[str, NDArray[np.floating]]]]:
        """Return the arrays of moments of some samples, by layer, and the images of filters, by kind and layer."""
        sums, fits = self._scan(x, masks, regions, progress)
        self.together = min(fits, self.most)
        height, width = x.shape[-2] // self.block, x.shape[-1] // self.block
        images = {layer: found.images() for layer, found in sums.items()}
        return (
            {layer: found.arrays() for layer, found in sums.items()},
            {
                kind: {layer: found[kind].reshape(len(x), -1, height, width) for layer, found in images.items()}
                for kind in IMAGES
            },
        )

    def shrink(self, reason: torch.OutOfMemoryError | LinearisationError) -> bool:
        """Use smaller groups and less memory from now on; False where that is not possible any more."""
        alone = self.together == 1
        self.together, self.most = 1, 1
        if isinstance(reason, LinearisationError):
            log.warning("samples are scanned one by one: %s", reason)
            return not alone
        if self.cache_bytes < SMALLEST_BYTES:
            return False
        self.cache_bytes //= 2
        self.budget_share /= 2
        log.warning("the GPU's memory is full: the scan goes on with batches of %d KiB", self.cache_bytes // 1024)
        return True

    def _budget(self, x: Tensor) -> int:
        free = available_bytes() // 2 if x.device.type == "cpu" else KEEP_BYTES
        return int(min(KEEP_BYTES, free) * self.budget_share)

    def _sweep(self, x: Tensor) -> Sweep:
        """Return a sweep over the samples: of windows where the network can be followed, else of whole maps.

        Raises:
            LinearisationError: The network cannot be followed for several samples together.
        """
        if not self.whole_maps:
            try:
                linear = Linearisation(self.model, x, self.layers)
            except LinearisationError as error:
                if len(x) > 1:
                    raise
                self.whole_maps = True
                log.warning("the whole network is swept on whole maps, which takes longer: %s", error)
            else:
                if linear.whole_maps and not self.checked:
                    log.warning(
                        "tangents are carried on whole maps from the first of these operations on: %s",
                        ", ".join(linear.whole_maps),
                    )
                return WindowSweep(linear, x, self.block, self.dtype, self.cache_bytes)
        return WholeMapSweep(
            self.model, x, self.layers, self.block, max(1, int(_together(x) * self.cache_bytes / CACHE_BYTES))
        )

    def _scan(
        self, x: Tensor, masks: Tensor, regions: bool, progress: Callable[[float], object]
    ) -> tuple[dict[str, LayerSums], int]:
        """Return the sums of every layer, and how many samples may go together in the next group."""
        sweep = self._sweep(x)
        scaled = torch.stack([_scaled(block_sum(image.sum(0), self.block)).reshape(-1) for image in x])
        signs = random_signs(masks.shape, x)
        weights = pixel_weights(scaled, masks, signs)
        sums = {
            layer: LayerSums(value, weights, layer not in self.ungated, regions)
            for layer, value in sweep.values.items()
        }
        budget = self._budget(x)
        share = len(x) / max(1, len(sweep.batches))
        if len(_runs(sweep, budget)) > 1:
            share /= 2
        _sum_up(sweep, sums, budget, lambda batches: progress(share * batches))
        if isinstance(sweep, WholeMapSweep):
            return sums, 1
        if len(x) > self.checked:
            self.checked = len(x)
            if not self._agrees(x, signs, sums):
                if len(x) > 1:
                    raise LinearisationError("a sweep of several together disagrees with torch's derivative")
                self.whole_maps = True
                log.warning(
                    "the sweep of windows disagrees with torch's derivative: the network is swept on whole maps"
                )
                return self._scan(x, masks, regions, lambda _: None)
        need = sweep.bytes_each * len(sweep.batches) // len(x)
        # not the memory that happens to be free: the same scan adds up the same way each time
        return sums, max(1, min(sweep.room * len(x), KEEP_BYTES // max(1, need)))

    def _agrees(self, x: Tensor, signs: Tensor, sums: Mapping[str, LayerSums]) -> bool:
        """Whether a random combination of all columns is what torch's derivative gives for these pixels together.

        The columns' windows follow from rules of geometry; any part of a column that a rule left out shows here.
        """
        height, width = x.shape[-2] // self.block, x.shape[-1] // self.block
        sign = enlarged(signs.view(len(x), 1, height, width), self.block)
        expected = Prefix(self.model, x, self.layers).derivative(x * sign)
        tolerance = CHECK_TOLERANCE[self.dtype or x.dtype]
        for layer, wanted in zip(self.layers, expected, strict=True):
            found = sums[layer].checksum()
            error = (found - wanted.reshape(found.shape)).abs().max()
            if error > tolerance * wanted.abs().max() + torch.finfo(x.dtype).tiny:
                log.warning("%s: off by %.1e of the largest value %.1e", layer, error, wanted.abs().max())
                return False
        return True


def ungated_layers(model: nn.Module, found: Sequence[NeuronLayer]) -> set[str]:
    """Return which of a network's layers has no gate: the last, unless a ReLU follows it, as in SqueezeNet."""
    if not found:
        return set()
    activation = found[-1].activation
    gated = activation is not None and isinstance(model.get_submodule(activation), nn.ReLU | nn.ReLU6)
    return set() if gated else {found[-1].name}


def scan(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor | NDArray[np.bool_] | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    block: int = 1,
    precision: Precision | None = None,
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
        precision: "float32" or "float64" for everything; "tf32": float32, whose products a GPU may round to TF32;
            "bfloat16": the network's values, gates and winners in float32, the tangents in bfloat16 (errors of about
            1 %). None: the type of x.

    Returns:
        The moments of all neurons and samples, with the images of filters.

    Raises:
        LayerError: The model has no such layer.
        ScanError: Shapes do not fit, the block does not divide the image, or there is nothing to scan.

    Source: Dou Hui, doctoral slides, ch. 3 and 4; the sums are those that the feature quantity needs.
    """
    return concatenate(list(scan_samples(model, x, foreground, layers, block, precision=precision)))
