"""Guided backpropagation: what in the input speaks for a filter, with every ReLU closed to negative gradients.

Springenberg et al., "Striving for Simplicity" (2015); used by Wang Xinyuan, bachelor's thesis, ch. 3.3. On the way back
a ReLU with output f lets a gradient R pass as `R * [R > 0] * [f > 0]`; all other operations pass their plain gradient.
The rule is not linear in the gradient, so filters are carried back one by one, batched, and never summed first.

A ReLU may be a module, reused or not, in place or not, or a function call: all of them reach torch as a call of `relu`,
and are replaced there. What does not show up as such a call (scripted code, custom autograd functions) and activations
for which the rule is not defined are found in the graph of the forward pass and refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from nnscan.errors import ModelError, ScanError
from nnscan.models import capture, logits, prepare, resolve_layer

_REFUSED = {
    "Relu": "a ReLU that nnscan cannot reach",
    "LeakyRelu": "leaky_relu",
    "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu",
    "Elu": "elu or selu",
    "Celu": "celu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Mish": "mish",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
    "Hardtanh": "hardtanh or relu6",
    "Hardshrink": "hardshrink",
    "Softshrink": "softshrink",
    "Threshold": "threshold",
    "Glu": "glu",
    "Clamp": "clamp",
    "ClampMin": "clamp",
    "ClampMax": "clamp",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Fmax": "fmax",
    "Fmin": "fmin",
    "Abs": "abs or softsign",
    "Where": "where",
    "MaskedFill": "masked_fill",
    "Exp": "exp",
    "Erf": "erf",
    "Sin": "sin",
    "Cos": "cos",
}
"""Activations other than ReLU, and selections that may be a ReLU in other words, by the name of their graph node."""

_PASSED = (nn.ReLU, nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention)
"""Modules that torch files under activations, but that are not in the way."""


class _GuidedReLU(torch.autograd.Function):
    """ReLU forwards; backwards only what is positive, where the output is positive."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return torch.relu(values)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output > 0)

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> Tensor:
        active: Tensor = ctx.saved_tensors[0]
        return gradient.clamp(min=0) * active


def _guided_relu(values: Tensor, inplace: bool) -> Tensor:
    result: Tensor = _GuidedReLU.apply(values)
    return values.copy_(result) if inplace else result


class _GuidedReLUs(TorchFunctionMode):
    """Inside the block every call of relu, by module or by function, is a guided one."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name not in ("relu", "relu_"):
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "inplace"), args, strict=False)) | (kwargs or {})
        return _guided_relu(given["input"], inplace=name == "relu_" or given.get("inplace", False))


def _graph(*tensors: Tensor) -> Iterator[Node]:
    """Yield every operation that the tensors were computed with."""
    waiting = [tensor.grad_fn for tensor in tensors]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
            yield node


def _check_guided(model: nn.Module, *tensors: Tensor) -> None:
    """Raise a ModelError where a tensor was computed with anything for which the guided rule is not defined."""
    found: set[str] = set()
    for node in _graph(*tensors):
        name = node.name()
        if name.startswith("torch::jit"):
            found.add("scripted code")
        elif isinstance(node, BackwardCFunction):
            if name != f"{_GuidedReLU.__name__}Backward":
                found.add(f"the custom function {name.removesuffix('Backward')}")
        else:
            operation = re.sub(r"Backward\d*$", "", name)
            if operation in _REFUSED:
                found.add(_REFUSED[operation])
    if found:
        modules = [
            f"{name} ({type(module).__name__})"
            for name, module in model.named_modules()
            if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _PASSED)
        ]
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        place = f" (in {', '.join(modules[:3])}{more})" if modules else ""
        raise ModelError(
            "guided backpropagation is defined for networks with ReLU as their only activation; this one applies "
            f"{', '.join(sorted(found))}{place}. Use a ReLU model, or learning images instead."
        )


def _guided_forward(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return a fresh copy of the input, the layers' outputs and the class scores, connected by guided ReLUs."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    source = x.detach().clone().requires_grad_(True)
    with torch.enable_grad(), capture(model, layers) as outputs, _GuidedReLUs():
        scores = logits(model(source.clone()))  # a clone, which the model may change in place
    _check_guided(model, scores, *outputs.values())
    return source, outputs, scores


def _batched_gradients(totals: Tensor, source: Tensor, chosen: Sequence[int]) -> Tensor:
    """Return the gradients of the chosen entries of a vector, stacked behind the samples: (N, n, C, H, W)."""
    if not totals.requires_grad:
        raise ModelError("the layer's output does not depend on the input in a differentiable way")
    selectors = torch.zeros((len(chosen), len(totals)), dtype=totals.dtype, device=totals.device)
    selectors[torch.arange(len(chosen)), list(chosen)] = 1
    (gradients,) = torch.autograd.grad(totals, source, selectors, retain_graph=True, is_grads_batched=True)
    return gradients.transpose(0, 1)


def guided_batches(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    filters: Sequence[int] | None = None,
    *,
    rectify: bool = True,
    chunk: int = 64,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the images of `guided_backpropagation` piece by piece, for layers whose images together are too large.

    Args:
        model: See `guided_backpropagation`, as for the other arguments.
        x: Inputs (N, C, H, W).
        layer: The layer.
        filters: Filters to compute.
        rectify: Whether a ReLU follows the layer.
        chunk: Pairs of sample and filter in one piece.

    Yields:
        Samples (a slice of x), filters (a slice of `filters`) and their images (n, k, C, H, W).
    """
    if chunk < 1:
        raise ScanError(f"chunk={chunk} is not possible; at least 1 pair of sample and filter has to be carried back")
    name = resolve_layer(model, layer)
    prepared = prepare(model)
    samples = max(1, min(len(x), chunk))
    step = max(1, chunk // samples)
    for first in range(0, len(x), samples):
        part = x[first : first + samples]
        source, outputs, _ = _guided_forward(prepared, part, [name])
        if name not in outputs:
            raise ScanError(f"the layer {name!r} is not used in the forward pass; choose one that is")
        values = outputs[name]
        chosen = list(range(values.shape[1])) if filters is None else [int(index) for index in filters]
        if any(not 0 <= index < values.shape[1] for index in chosen):
            raise ScanError(
                f"filters {chosen} were asked of {name!r}, which has the filters 0 to {values.shape[1] - 1}"
            )
        with torch.enable_grad():
            maps = torch.relu(values) if rectify else values
            totals = maps.transpose(0, 1).flatten(1).sum(1)  # over samples too: each depends on its own input only
        for start in range(0, len(chosen), step):
            images = _batched_gradients(totals, source, chosen[start : start + step])
            yield slice(first, first + len(part)), slice(start, start + images.shape[1]), images


def guided_backpropagation(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    filters: Sequence[int] | None = None,
    *,
    rectify: bool = True,
    chunk: int = 64,
) -> Tensor:
    """Return the guided-backpropagation images of a layer's filters.

    The thesis does not state which number of a filter is carried back. It is the sum of the filter's feature map over
    all positions, `sum_ij f^k_ij` with `f = relu(layer output)`: every active position starts with the gradient 1.

    Args:
        model: A network whose only activation is ReLU; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network, on the model's device.
        layer: The layer whose output is the value before the ReLU, by name or module; (N, K, h, w) or (N, K).
        filters: Filters to compute, in this order; None for all K.
        rectify: Whether a ReLU follows the layer. False for class scores: the sum of the raw output is carried back.
        chunk: Pairs of sample and filter carried back in one call; it bounds the memory.

    Returns:
        Images (N, K, C, H, W) in units of activation per unit of input; zero where a filter is not active.

    Raises:
        LayerError: The model has no such layer.
        ModelError: The model has activations other than ReLU, or a ReLU that cannot be intercepted.
        ScanError: x has another shape, or a filter does not exist.

    Source: Springenberg et al. 2015; Wang Xinyuan, bachelor's thesis, ch. 3.3, eq. 3-2.
    """
    rows: dict[int, list[Tensor]] = {}
    for samples, _, images in guided_batches(model, x, layer, filters, rectify=rectify, chunk=chunk):
        rows.setdefault(samples.start, []).append(images)
    if not rows:
        raise ScanError(f"no image was asked for: {len(x)} samples, filters {filters}")
    return torch.cat([torch.cat(parts, dim=1) for parts in rows.values()])


def guided_scores(model: nn.Module, x: Tensor, units: Sequence[int]) -> Tensor:
    """Return for each input the guided-backpropagation image of one class score of the model's output.

    Args:
        model: A network whose only activation is ReLU; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network, on the model's device.
        units: The output unit of each input, N of them.

    Returns:
        Images (N, C, H, W) in units of the class score per unit of input.

    Raises:
        ModelError: The model has activations other than ReLU, or too few outputs.
        ScanError: The number of units is not that of the inputs.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.3.2, eq. 3-5.
    """
    if len(units) != len(x):
        raise ScanError(f"{len(units)} output units were given for {len(x)} inputs; one per input is needed")
    source, _, scores = _guided_forward(prepare(model), x, [])
    if scores.ndim != 2 or not all(0 <= unit < scores.shape[1] for unit in units):
        raise ModelError(
            f"the model's output has the shape {tuple(scores.shape)}, but the class scores {min(units)} to "
            f"{max(units)} of each input were asked for"
        )
    with torch.enable_grad():
        totals = scores[torch.arange(len(x)), list(units)].sum(0, keepdim=True)
    return _batched_gradients(totals, source, [0])[:, 0]
