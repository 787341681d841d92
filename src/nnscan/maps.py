"""nnscan's own maps beside those of other explainers: the FQ map and the NNS map, and the map of TIP.

They need no class: they show what a layer's neurons have learned of an input.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.errors import DataError, ScanError
from nnscan.explanations import Explanation, Method, Scanned, Setting
from nnscan.linearisation import Linearisation, LinearisationError
from nnscan.models import capture, device_of, prepare, resolve_layer
from nnscan.scanner import CHECK_TOLERANCE
from nnscan.scores import BATCH, checked
from nnscan.sweeps import Prefix, Sweep, WholeMapSweep, WindowSweep, enlarged, random_signs
from nnscan.windows import Windows, map_rows

log = logging.getLogger(__name__)


@torch.inference_mode(False)
def neuron_map(
    model: nn.Module, x: Tensor, layer: str | nn.Module, weights: NDArray[np.floating], block: int = 1
) -> Tensor:
    """Return `sum_q w_q |I_q|` over the neurons of a layer: with FQ as weights the FQ map.

    With weights of 1 it is the sum of a scan's absolute images over the filters, the map of NNS.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        layer: The layer whose output is the neuron's value before its ReLU, by name or module.
        weights: A weight >= 0 for each input and neuron, (N, K, h, w). A neuron whose value is not positive has no
            image, whatever its weight.
        block: Side of the blocks of pixels on which the channel-summed learning images I_q are given, as in a scan.

    Returns:
        Maps (N, H, W), constant on each block, in units of the weights times the neurons' values.

    Raises:
        LayerError: The model has no such layer.
        ScanError: Shapes do not fit.

    Source: Dou Hui, doctoral slides, ch. 4 (table 4-5; the slides do not say how FQ becomes a map).
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    if block < 1 or x.shape[-2] % block or x.shape[-1] % block:
        raise ScanError(f"block {block} does not divide images of {x.shape[-2]} x {x.shape[-1]} pixels")
    name, prepared = resolve_layer(model, layer), prepare(model)
    x = x.detach().to(device_of(model))
    maps = []
    for number in range(len(x)):
        one = x[number : number + 1]
        own = torch.tensor(weights[number : number + 1]).to(one)
        sweep = _sweep(prepared, one, name, block)
        found, agrees = _weighted(prepared, sweep, one, name, own, block)
        if not agrees:
            log.warning("the sweep of windows disagrees with torch's derivative: whole maps are swept")
            found, _ = _weighted(prepared, WholeMapSweep(prepared, one, [name], block, BATCH), one, name, own, block)
        maps.append(found)
    return enlarged(torch.stack(maps), block)


def _sweep(prepared: nn.Module, x: Tensor, layer: str, block: int) -> Sweep:
    try:
        return WindowSweep(Linearisation(prepared, x, [layer]), x, block)
    except LinearisationError as error:
        log.info("whole maps are swept: %s", error)
        return WholeMapSweep(prepared, x, [layer], block, BATCH)


def _weighted(
    prepared: nn.Module, sweep: Sweep, x: Tensor, layer: str, weights: Tensor, block: int
) -> tuple[Tensor, bool]:
    """Return the map (H / b, W / b) of one input by a sweep, and whether its columns are what torch's derivative gives.

    Raises:
        ScanError: The weights do not fit the layer.
    """
    height, width = x.shape[-2] // block, x.shape[-1] // block
    value = sweep.values[layer]
    if weights.shape != value.shape:
        raise ScanError(f"weights {tuple(weights.shape[1:])} do not fit the map {tuple(value.shape[1:])} of {layer!r}")
    factor = (value > 0) * weights
    rows = map_rows(factor)
    sizes, signed = x.new_zeros(height * width), x.new_zeros(height * width)
    for batch in sweep.batches:

        def read(layer: str, number: int, windows: Windows, pixels: NDArray[np.int64] = batch.pixels) -> None:
            shares = windows.scaled(rows).data
            real = torch.from_numpy(pixels >= 0)
            places = torch.from_numpy(pixels[pixels >= 0])
            sizes[places] = shares.abs().sum((1, 2, 3))[real]
            signed[places] = shares.sum((1, 2, 3))[real]

        sweep.push([batch], read, lambda _: None)
    signs = random_signs((height, width), x)
    expected = (
        Prefix(prepared, x, [layer]).derivative(x * enlarged(signs, block))[0].reshape(factor.shape) * factor
    ).sum()
    error = ((signed.view(height, width) * signs).sum() - expected).abs()
    tolerance = CHECK_TOLERANCE[x.dtype] * sizes.norm() + torch.finfo(x.dtype).tiny
    return sizes.view(height, width), bool(error <= tolerance)


@torch.inference_mode(False)
def filter_map(model: nn.Module, x: Tensor, layer: str | nn.Module) -> Tensor:
    """Return the size of the sum of a layer's filter images, `|sum_k L^k|`, channel-summed: the map of TIP.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        layer: The layer whose output is the value before the ReLU, by name or module.

    Returns:
        Maps (N, H, W), in units of the squared activation.

    Source: Dou Hui, doctoral slides, ch. 5 (L^k; fig. 5-6 does not say which filters it shows, we take all).
    """
    name, prepared = resolve_layer(model, layer), prepare(model)
    x = x.detach().to(device_of(model))
    parts = []
    for part in torch.split(x, BATCH):
        source = part.clone().requires_grad_(True)
        with torch.enable_grad(), capture(prepared, [name]) as outputs:
            prepared(source.clone())
            energy = outputs[name].relu().square().sum() / 2
            (gradient,) = torch.autograd.grad(energy, source)
        parts.append((part * gradient).sum(1).abs())
    return torch.cat(parts)


def _scan_of(setting: Setting, x: Tensor) -> Scanned:
    """Return what a scan says of the inputs.

    Raises:
        ScanError: There is none, or it is of other inputs.
    """
    if setting.scanned is None:
        raise ScanError("this map is made of a scan of these very inputs, and none was given; scan them first")
    if len(setting.scanned.samples) != len(x):
        raise ScanError(f"the scan is of {len(setting.scanned.samples)} inputs, {len(x)} were given")
    return setting.scanned


def nns_map(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the maps of NNS (N, H, W): the absolute learning images of a layer's neurons, added up."""
    x = checked(model, x, classes)
    scanned = _scan_of(setting, x)
    return enlarged(torch.from_numpy(scanned.absolute).to(x).sum(1), scanned.block)


def quantity_map(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the FQ maps (N, H, W): the same, weighted by each neuron's feature quantity; see `neuron_map`.

    Raises:
        DataError: The scanned inputs have no foreground masks.
    """
    x = checked(model, x, classes)
    scanned = _scan_of(setting, x)
    if not np.isfinite(scanned.quantities).all():
        raise DataError("the FQ map needs foreground masks, and these data have none")
    return neuron_map(model, x, scanned.layer, scanned.quantities, scanned.block)


def property_map(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the maps of TIP (N, H, W): the size of the sum of a layer's filter images; see `filter_map`."""
    x = checked(model, x, classes)
    return filter_map(model, x, _scan_of(setting, x).layer)


def _own(name: str, title: str, explain: Explanation, paper: str, needs: tuple[str, ...]) -> Method:
    return Method(
        name=name,
        title=title,
        family="nnscan",
        detail="fine-grained",
        class_specific=False,
        online=False,
        transparent=True,
        explains="neurons of a layer",
        scope="local",
        paper=paper,
        year=2024,
        needs=needs,
        explain=explain,
    )


METHODS = (
    _own("nns", "NNS", nns_map, "Dou Hui, doctoral slides, ch. 3", ("a scan",)),
    _own("fq", "FQ", quantity_map, "Dou Hui, doctoral slides, ch. 4", ("a scan", "foreground masks")),
    _own("tip", "TIP", property_map, "Dou Hui, doctoral slides, ch. 5", ("a scan",)),
)
"""nnscan's own maps as methods."""
