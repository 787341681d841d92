"""Other explainers beside nnscan's own, all called alike: (model, x, classes) -> one map (N, H, W) for each input.

Each explains the score of one class for each input. Those that go back to the pixels give attributions (N, C, H, W)
first, which `saliency` turns into maps: the largest size over the channels (Simonyan et al. 2013; Wang Xinyuan,
bachelor's thesis, ch. 2.1.2). Class activation maps are maps already, of the last convolution, drawn up to the input's
size. `EXPLAINERS` lists them by the names that the literature uses.

Maps of nnscan's own that stand beside them need no class: `neuron_map` (FQ) and `filter_map` (TIP).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from nnscan.backprop import deconvolved_scores, guided_scores
from nnscan.errors import ModelError, ScanError
from nnscan.linearisation import Linearisation, LinearisationError
from nnscan.models import capture, device_of, logits, prepare, resolve_layer
from nnscan.moments import open_moments, read_layer
from nnscan.quantity import Form, Noise, quantity_parts
from nnscan.scanner import CHECK_TOLERANCE
from nnscan.sweeps import Prefix, Sweep, WholeMapSweep, WindowSweep, enlarged, random_signs
from nnscan.windows import Windows, map_rows

BATCH = 16
"""Inputs that go through a network together."""

STEPS = 50
"""Places on the way from the baseline at which integrated gradients takes a gradient."""

THRESHOLDS = (0.5, 0.2)
"""Shares of a map's range from which on a pixel counts as located."""

Explainer = Callable[[nn.Module, Tensor, Sequence[int]], Tensor]

log = logging.getLogger(__name__)


def _checked(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the inputs on the model's device.

    Raises:
        ScanError: They are no images, or the classes are not one for each.
        ModelError: The network has no such class scores.
    """
    if x.ndim != 4 or not len(x) or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    if len(classes) != len(x):
        raise ScanError(f"{len(classes)} classes were given for {len(x)} inputs; one per input is needed")
    x = x.detach().to(device_of(model))
    with torch.no_grad():
        scores = logits(prepare(model)(x[:1].clone()))
    if scores.ndim != 2 or not all(0 <= number < scores.shape[1] for number in classes):
        raise ModelError(
            f"the model's output has the shape {(len(x), *scores.shape[1:])}, but the class scores {min(classes)} to "
            f"{max(classes)} of each input were asked for"
        )
    return x


def _own(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """Return each input's score of its class (n,)."""
    return scores[torch.arange(len(scores), device=scores.device), torch.tensor(classes, device=scores.device)]


def answers(model: nn.Module, x: Tensor) -> list[int]:
    """Return the class that a network gives to each input (N, C, H, W)."""
    prepared = prepare(model)
    with torch.no_grad():
        parts = [logits(prepared(part.clone())).argmax(1) for part in torch.split(x.to(device_of(model)), BATCH)]
    return [int(number) for number in torch.cat(parts)]


# Back to the pixels -------------------------------------------------------------------------------------------------


def saliency(attributions: Tensor) -> Tensor:
    """Return maps (N, H, W) of attributions (N, C, H, W): the largest size over the channels.

    Source: Simonyan et al., "Deep Inside Convolutional Networks" (2013); Wang Xinyuan, bachelor's thesis, ch. 2.1.2.
    """
    return attributions.abs().amax(1)


@torch.inference_mode(False)
def score_gradients(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradient (N, C, H, W) of each input's class score, in units of the score per unit of input.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input whose score is explained.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Simonyan et al. 2013, eq. 4; Wang Xinyuan, bachelor's thesis, eq. 2-2.
    """
    x, prepared = _checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        source = x[start : start + BATCH].clone().requires_grad_(True)
        with torch.enable_grad():
            own = _own(logits(prepared(source.clone())), classes[start : start + BATCH])
            parts.append(torch.autograd.grad(own.sum(), source)[0])
    return torch.cat(parts)


@torch.inference_mode(False)
def integrated_attributions(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return integrated gradients (N, C, H, W), in units of the class score; Captum's, with Gauss-Legendre steps.

    The way begins at the image that is zero as fed to the network: black where inputs lie in [0, 1]. The attributions
    of an input add up to its score less that of the beginning.

    Args:
        model: See `score_gradients`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks" (2017); Wang Xinyuan, bachelor's thesis,
    eq. 2-3. Its eq. 2-4 lacks the derivative's sign and is read as the sum that approximates eq. 2-3.
    """
    x, prepared = _checked(model, x, classes), prepare(model)
    method = IntegratedGradients(lambda inputs: logits(prepared(inputs.clone())))
    targets = torch.tensor(classes, device=x.device)
    parts = [
        method.attribute(part.clone(), target=own, n_steps=STEPS, internal_batch_size=BATCH).to(x.dtype)
        for part, own in zip(torch.split(x, BATCH), torch.split(targets, BATCH), strict=True)
    ]
    return torch.cat(parts).detach()


def backpropagation(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the class scores' gradients; see `score_gradients`."""
    return saliency(score_gradients(model, x, classes))


def deconvolution(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the deconvolution images; see `backprop.deconvolved_scores`."""
    return saliency(deconvolved_scores(model, _checked(model, x, classes), classes))


def guided_backpropagation(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the guided-backpropagation images; see `backprop.guided_scores`."""
    return saliency(guided_scores(model, _checked(model, x, classes), classes))


def integrated_gradients(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of integrated gradients; see `integrated_attributions`."""
    return saliency(integrated_attributions(model, x, classes))


# Class activation maps ----------------------------------------------------------------------------------------------

_LINEAR = frozenset(
    (
        *("Addmm", "Mm", "Mean", "Sum", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D"),
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    )
)
"""Operations, by the name of their graph node, that keep a class score a weighted sum of the feature maps."""


class _LastMaps(TorchFunctionMode):
    """Finds the feature maps that the last convolution ends in.

    They are followed from the convolution's output through normalisation, sums, concatenation and activation, as far as
    the places stay the same: up to the pooling or to the layer that gives up places.

    Attributes:
        maps: The feature maps (N, K, h, w) after the forward pass, None without a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: Tensor | None = None
        self._follow = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        given = [*args, *(kwargs or {}).values()]
        given += [entry for part in given if isinstance(part, list | tuple) for entry in part]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        if getattr(func, "__name__", "") == "conv2d":
            self.maps, self._follow = result, True
        elif self._follow and any(entry is self.maps for entry in given):
            if result.ndim == 4 and self.maps is not None and result.shape[2:] == self.maps.shape[2:]:
                self.maps = result
            else:
                self._follow = False
        return result


def _maps_and_scores(prepared: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature maps (n, K, h, w) and the class scores (n, classes), with the graph between them.

    Raises:
        ModelError: The network has no convolution, or none on the way to the scores.
    """
    source = x.clone().requires_grad_(True)
    with torch.enable_grad(), _LastMaps() as found:
        scores = logits(prepared(source.clone()))
    if found.maps is None or not found.maps.requires_grad:
        raise ModelError(
            "class activation maps need a convolution, and this network has none that nnscan can see (calls inside "
            "scripted code do not show)"
        )
    return found.maps, scores


def _drawn_up(maps: Tensor, x: Tensor) -> Tensor:
    """Return maps (n, h, w) at the inputs' size, bilinearly."""
    size = (int(x.shape[-2]), int(x.shape[-1]))
    return nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _nodes_between(scores: Tensor, maps: Tensor) -> set[str]:
    """Return the names of the operations that lead from the maps to the scores."""
    waiting, seen, names = [scores.grad_fn], set[Node](), set[str]()
    while waiting:
        node = waiting.pop()
        if node is None or node is maps.grad_fn or node in seen:
            continue
        seen.add(node)
        names.add(re.sub(r"Backward\d*$", "", node.name()))
        waiting.extend(parent for parent, _ in node.next_functions)
    return names


@torch.inference_mode(False)
def cam(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the class activation maps `sum_k w_ck A_k` (N, H, W), signed, in units of the class score.

    A_k are the feature maps of the last convolution, w_ck the weights with which their means make up the score of the
    class. Only a network in which global average pooling and one linear layer follow these maps has such weights.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: Something else than global pooling and one linear layer follows the last convolution, or there is
            none, or the network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (2016).
    """
    x, prepared = _checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        other = sorted(_nodes_between(scores, maps) - _LINEAR)
        (gradient,) = torch.autograd.grad(_own(scores, classes[start : start + BATCH]).sum(), maps)
        mean = gradient.mean((2, 3), keepdim=True)
        if other or not torch.allclose(
            gradient, mean.expand_as(gradient), rtol=1e-4, atol=1e-6 * float(mean.abs().max())
        ):
            found = ", ".join(other) if other else "a layer that weighs each place by itself"
            raise ModelError(
                "CAM is defined for networks in which only global average pooling and one linear layer follow the last "
                f"feature maps; here {found} comes in between. Grad-CAM needs no such layers."
            )
        places = maps.shape[2] * maps.shape[3]
        parts.append(_drawn_up(places * (mean * maps).sum(1), part).detach())
    return torch.cat(parts)


@torch.inference_mode(False)
def grad_cam(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradient-weighted class activation maps `relu(sum_k a_ck A_k)` (N, H, W).

    A_k are the feature maps of the last convolution (after normalisation, shortcut and ReLU, before pooling), a_ck the
    mean over their places of the class score's gradient.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: The network has no convolution, or no such class scores.
        ScanError: x or classes have another shape.

    Source: Selvaraju et al., "Grad-CAM" (2017).
    """
    x, prepared = _checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        (gradient,) = torch.autograd.grad(_own(scores, classes[start : start + BATCH]).sum(), maps)
        weights = gradient.mean((2, 3), keepdim=True)
        parts.append(_drawn_up((weights * maps).sum(1).relu(), part).detach())
    return torch.cat(parts)


BACKPROPAGATIONS: Mapping[str, Explainer] = {
    "backpropagation": backpropagation,
    "deconvolution": deconvolution,
    "guided backpropagation": guided_backpropagation,
    "integrated gradients": integrated_gradients,
}
"""The four ways back that the thesis compares, in its order (ch. 2.1, fig. 3-7)."""

EXPLAINERS: Mapping[str, Explainer] = {"CAM": cam, "Grad-CAM": grad_cam, **BACKPROPAGATIONS}
"""All explainers by name."""


# nnscan's own maps --------------------------------------------------------------------------------------------------


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
        own = torch.from_numpy(weights[number : number + 1]).to(one)
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
    value = sweep.values[layer]  # noqa: PD011 - no pandas frame
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


# How well maps locate the object ------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Scanned:
    """What maps of nnscan need of a scan: its last layer with places.

    Attributes:
        layer: The layer.
        samples: Positions of the inputs in their split (N,).
        quantities: Feature quantity F(I, x) of each neuron for each input (N, K, h, w); NaN without foreground masks.
        absolute: Sum of |I| over each filter's neurons (N, K, H / b, W / b).
        block: Side b of the blocks of pixels of the learning images.
    """

    layer: str
    samples: NDArray[np.int64]
    quantities: NDArray[np.float64]
    absolute: NDArray[np.floating]
    block: int


def read_scanned(paths: Sequence[str | Path], noise: Noise = "linear", form: Form = "printed") -> Scanned:
    """Return what maps need of the shards of a scan: of the deepest scanned layer whose neurons have places.

    Of a network without such a layer it is the deepest one.

    Args:
        paths: The shards.
        noise: See `quantity.feature_quantity`.
        form: See `quantity.feature_quantity`.
    """
    with open_moments(paths[0]) as file:
        placed = [layer for layer in file.layers if np.prod(file.file[f"layers/{layer}/activation"].shape[2:]) > 1]
        layer = (placed or file.layers)[-1]
    moments = read_layer(paths, layer)
    quantities = quantity_parts(moments, layer, noise, form)["fq"]
    return Scanned(layer, moments.samples, quantities, moments.absolute_images[layer], moments.block)


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
