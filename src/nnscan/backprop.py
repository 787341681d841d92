"""Guided backpropagation: what in the input speaks for a filter, with every ReLU closed to negative gradients.

Springenberg et al., "Striving for Simplicity" (2015); used by Wang Xinyuan, bachelor's thesis, ch. 3.3. On the way back
a ReLU with output f lets a gradient R pass as `R * [R > 0] * [f > 0]`; all other operations pass their plain gradient.
The rule is not linear in the gradient, so filters are carried back one by one, batched, and never summed first: the
network sees copies of a sample side by side, and one backward pass carries one filter back through each copy. A filter
that is not active is left out, as its image is zero; behind a convolution only the filter's own weights are used.

A ReLU may be a module, reused or not, in place or not, or a function call: all of them reach torch as a call of `relu`,
and are replaced there. What does not show up as such a call (scripted code, custom autograd functions) and activations
for which the rule is not defined are found in the graph of the forward pass and refused by name.

Deconvolution (`deconvolved_scores`) is the same with another rule at the ReLU: `R * [R > 0]`, whatever f was. The
rectified gradient (`rectified_scores`) has the rule `R * [f * R > t]`, t a percentile of f * R in the layer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.autograd.graph import GradientEdge, Node
from torch.overrides import TorchFunctionMode

from nnscan.errors import ModelError, ScanError
from nnscan.models import capture, counted_calls, logits, prepare, resolve_layer

PASS_PAIRS = 128
"""Pairs of sample and filter in one pass at most; more gain nothing."""

PASS_BYTES = 4 << 20
"""Size at most of the largest array of a pass of more than one pair; with larger ones every pair takes longer."""

COPIES = 16
"""Copies of a sample in a pass that several samples share; some stay unused, as samples differ in active filters."""

RECTIFIED_SHARE = 0.98
"""The share q of a layer's units that the rectified gradient stops, as in the experiments of its paper."""

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
        ctx.save_for_backward((output > 0).to(output.dtype))  # a mask of its own: the output may change in place

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> Tensor:
        active: Tensor = ctx.saved_tensors[0]
        return gradient.clamp(min=0).mul_(active)


class _DeconvolvedReLU(torch.autograd.Function):
    """ReLU forwards; backwards only what is positive, whatever the output was."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return torch.relu(values)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> Tensor:
        return gradient.clamp(min=0)


class _RectifiedReLU(torch.autograd.Function):
    """ReLU forwards; backwards only where output times gradient is above its percentile among a sample's units."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return torch.relu(values)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output.clone())  # the output may change in place

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> Tensor:
        output: Tensor = ctx.saved_tensors[0]
        importance = (output * gradient).flatten(1)
        passing = importance > _percentile(importance, RECTIFIED_SHARE)
        return gradient * passing.view_as(gradient)


def _percentile(values: Tensor, share: float) -> Tensor:
    """Return the percentile (n, 1) of each row of values (n, m), between two ranks by linear interpolation.

    torch.quantile gives the same, but takes no more than 16 million values.
    """
    ranked = values.sort(1).values
    place = share * (values.shape[1] - 1)
    lower = int(place)
    upper = min(lower + 1, values.shape[1] - 1)
    return torch.lerp(ranked[:, lower : lower + 1], ranked[:, upper : upper + 1], place - lower)


_Rule = type[_GuidedReLU] | type[_DeconvolvedReLU] | type[_RectifiedReLU]


class _RuledReLUs(TorchFunctionMode):
    """Inside the block every call of relu, by module or by function, goes back by another rule than its gradient.

    Attributes:
        largest: Bytes of the largest result of an operation so far.
        rows: Lengths of the first axes of what went into the ReLUs: the batch's, of most networks.
    """

    def __init__(self, rule: _Rule = _GuidedReLU) -> None:
        super().__init__()
        self.rule = rule
        self.largest = 0
        self.rows: set[int] = set()

    def _relu(self, values: Tensor, inplace: bool) -> Tensor:
        self.rows.add(values.shape[0] if values.ndim > 1 else 0)
        result: Tensor = self.rule.apply(values)
        return values.copy_(result) if inplace else result

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in ("relu", "relu_"):
            given = dict(zip(("input", "inplace"), args, strict=False)) | (kwargs or {})
            result: object = self._relu(given["input"], inplace=name == "relu_" or given.get("inplace", False))
        else:
            result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


def operations(*tensors: Tensor, behind: Tensor | None = None) -> Iterator[tuple[str, Node]]:
    """Yield every operation that tensors were computed with, by torch's name for it ("Relu", "Convolution").

    Args:
        tensors: Tensors with a graph.
        behind: A tensor on the way; what it was computed with is left out.
    """
    waiting = [tensor.grad_fn for tensor in tensors]
    seen: set[Node | None] = {None, None if behind is None else behind.grad_fn}
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
            yield re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::")), node


def _check_guided(model: nn.Module, *tensors: Tensor) -> None:
    """Raise a ModelError where a tensor was computed with anything for which the guided rule is not defined."""
    found: set[str] = set()
    for name, node in operations(*tensors):
        if name.startswith("torch::jit"):
            found.add("scripted code")
        elif isinstance(node, BackwardCFunction):
            if name != _GuidedReLU.__name__:
                found.add(f"the custom function {name}")
        elif name in _REFUSED:
            found.add(_REFUSED[name])
    if found:
        modules = [
            f"{name} ({type(module).__name__})"
            for name, module in model.named_modules()
            if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _PASSED)
        ]
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        place = f" (in {', '.join(modules[:3])}{more})" if modules else ""
        raise ModelError(
            "guided backpropagation, deconvolution and the rectified gradient are defined for networks with ReLU as "
            f"their only activation; this one applies {', '.join(sorted(found))}{place}. Use a ReLU model, or learning "
            "images instead."
        )


def _source(x: Tensor) -> Tensor:
    """Return the input that gradients are taken of; the model gets a clone of it, which it may change in place."""
    return x.detach().clone().requires_grad_(True)


@dataclass(frozen=True)
class _Probe:
    """What a forward pass of two samples shows.

    Attributes:
        scores: Class scores (2, n).
        filters: Number of filters of each layer.
        calls: How often the layers are called in all.
        pairs: Pairs of sample and filter that one pass carries back best.
        sampled: Whether the first axis of everything that goes into a ReLU is that of the samples.
    """

    scores: Tensor
    filters: dict[str, int]
    calls: int
    pairs: int
    sampled: bool


def _probe(model: nn.Module, x: Tensor, layers: Sequence[str]) -> _Probe:
    """Run a prepared model with its first input and half of it; refuse it where guided images are not defined.

    Args:
        model: The model.
        x: Inputs (N, C, H, W).
        layers: The layers whose images are asked for; none of them for those of the class scores.
    """
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    source = _source(torch.cat([x[:1], x[:1] / 2]))
    with (
        torch.enable_grad(),
        _RuledReLUs() as relus,
        capture(model, layers) as outputs,
        counted_calls(model, layers) as calls,
    ):
        scores = logits(model(source.clone()))
    _check_guided(model, scores, *outputs.values())
    for layer in layers:
        if layer not in outputs:
            raise ScanError(f"the layer {layer!r} is not used in the forward pass; choose one that is")
    results = [outputs[layer] for layer in layers]
    if not layers:
        if scores.ndim != 2:
            raise ModelError(f"the model's output has the shape {tuple(scores.shape)}, not one class score per unit")
        results = [scores]
    if not all(result.requires_grad for result in results):
        raise ModelError("the output does not depend on the input in a differentiable way")
    _check_independent(source, results)
    filters = {layer: outputs[layer].shape[1] for layer in layers}
    pairs = max(1, min(PASS_PAIRS, PASS_BYTES * len(source) // relus.largest))
    return _Probe(scores, filters, len(calls), pairs, relus.rows <= {len(source)})


def _check_independent(source: Tensor, results: Sequence[Tensor]) -> None:
    """Raise a ModelError where the second of two samples reaches the first row of a result."""
    first_rows = [torch.zeros_like(result) for result in results]
    for row, result in zip(first_rows, results, strict=True):
        row[0] = result[0].detach()
    (gradient,) = torch.autograd.grad(results, source, first_rows)
    if bool((gradient[1].abs() > 0).any()):
        raise ModelError(
            "the samples of a batch influence each other in this network, as in a batch normalisation without running "
            "statistics: a sample has no image of its own"
        )


def _is_convolution(operation: Any) -> bool:
    """Return whether an operation of the graph is a plain convolution of images."""
    return (
        operation.name() == "ConvolutionBackward0"
        and operation._saved_weight.ndim == 4
        and operation._saved_groups == 1
        and not operation._saved_transposed
    )


def _own_weights(convolution: Any, maps: Tensor, filters: Tensor) -> Tensor:
    """Return the gradients of a convolution's input where only one filter's map of its output has one, per row.

    A backward pass through the convolution takes the weights of all K filters; this takes those of the row's filter.
    """
    weight, inputs = convolution._saved_weight, convolution._saved_input
    (rows, columns), (height, width) = weight.shape[2:], maps.shape[1:]
    (down, right), (top, left) = convolution._saved_stride, convolution._saved_padding
    below, beside = convolution._saved_dilation
    # what each tap of the filter brings to each position of the input: the map, shifted, and spread by the stride
    padded = [size + 2 * padding for size, padding in zip(inputs.shape[2:], (top, left), strict=True)]
    reached = maps.new_zeros((len(maps), rows, columns, *padded))
    for i, j in itertools.product(range(rows), range(columns)):
        spread = reached[:, i, j, i * below :: down, j * beside :: right]
        spread[:, :height, :width] = maps
    reached = reached[..., top : padded[0] - top, left : padded[1] - left]
    gradient = torch.bmm(weight[filters].flatten(2), reached.reshape(len(maps), rows * columns, -1))
    return gradient.view(len(maps), *inputs.shape[1:])


def _carried_back(source: Tensor, values: Tensor, maps: Tensor, filters: Tensor) -> Tensor:
    """Return the images (B, C, H, W) of one filter per row.

    Args:
        source: The input (B, C, H, W).
        values: The layer's output (B, K, h, w), as `capture` clones it.
        maps: The gradient (B, h, w) of the row's filter.
        filters: The row's filter (B,).
    """
    clone: Any = values.grad_fn
    operation = clone.next_functions[0][0]
    if _is_convolution(operation):
        start: Tensor | GradientEdge = GradientEdge(*operation.next_functions[0])
        gradient = _own_weights(operation, maps, filters)
    else:
        start, gradient = values, torch.zeros_like(values)
        gradient[torch.arange(len(values)), filters] = maps
    (images,) = torch.autograd.grad(start, source, gradient, retain_graph=True)
    return images


def _evenly(count: int, most: int) -> int:
    """Return the size of parts of about the same size, at most `most` where that is possible."""
    return -(-count // -(-count // max(1, most)))


def _turns(active: Tensor, copies: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Distribute pairs of sample and filter over passes, in each of which every sample has some copies.

    Args:
        active: Which filter of which sample is to be carried back (n, k).
        copies: Rows of a sample in a pass; row i belongs to the sample i // copies.

    Yields:
        Rows, samples and filters of the pairs of one pass.
    """
    samples, filters = active.nonzero(as_tuple=True)
    ranks = active.cumsum(1)[samples, filters] - 1
    rows = samples * copies + ranks % copies
    for turn in range(0, int(active.sum(1).max()), copies):
        now = (ranks >= turn) & (ranks < turn + copies)
        yield rows[now], samples[now], filters[now]


def _pieces(
    model: nn.Module,
    probe: _Probe,
    x: Tensor,
    layers: Mapping[str, bool],
    filters: Sequence[int] | None,
    chunk: int | None,
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield what `guided_batches` does, of a prepared model."""
    if chunk is not None and chunk < 1:
        raise ScanError(f"chunk={chunk} is not possible; at least 1 pair of sample and filter has to be carried back")
    names = list(layers)
    chosen = {}
    for name, count in probe.filters.items():
        indices = list(range(count)) if filters is None else [int(index) for index in filters]
        if not indices:
            raise ScanError(f"no image was asked for: no filters of {name!r}")
        if any(not 0 <= index < count for index in indices):
            raise ScanError(f"filters {indices} were asked of {name!r}, which has the filters 0 to {count - 1}")
        chosen[name] = torch.tensor(indices, device=x.device)
    pairs = probe.pairs if chunk is None else chunk
    widest = max(len(indices) for indices in chosen.values())
    together = _evenly(len(x), pairs // min(widest, COPIES))
    copies = _evenly(widest, pairs // together)
    for first in range(0, len(x), together):
        source = _source(x[first : first + together].repeat_interleave(copies, 0))
        with (
            torch.enable_grad(),
            _RuledReLUs(),
            capture(model, names) as outputs,
            counted_calls(model, names, probe.calls),
        ):
            model(source.clone())
        for name, rectified in layers.items():
            values = outputs[name].detach()
            # the gradient of sum_ij relu(f_ij); written so that it is 1 where f is not a number, as torch's own is
            opened = ~(values <= 0) if rectified else torch.ones_like(values, dtype=torch.bool)
            active = opened[::copies].reshape(len(values) // copies, values.shape[1], -1).any(2)
            for rows, samples, positions in _turns(active[:, chosen[name]], copies):
                own = torch.zeros(len(values), dtype=torch.long, device=x.device)
                own[rows] = chosen[name][positions]
                maps = torch.zeros_like(values[:, 0])
                maps[rows] = opened[rows, own[rows]].to(maps.dtype)
                yield name, first + samples, positions, _carried_back(source, outputs[name], maps, own)[rows]


@torch.inference_mode(False)
def guided_batches(
    model: nn.Module,
    x: Tensor,
    layers: Mapping[str, bool],
    filters: Sequence[int] | None = None,
    *,
    chunk: int | None = None,
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield the images of `guided_backpropagation` of several layers piece by piece, where all would be too large.

    Args:
        model: See `guided_backpropagation`, as for the other arguments.
        x: Inputs (N, C, H, W).
        layers: Names of layers, each with whether a ReLU follows it.
        filters: Filters to compute of every layer.
        chunk: Pairs of sample and filter in one piece, at most.

    Yields:
        A layer, samples (n,), positions in `filters` (n,), and the images (n, C, H, W) of these pairs. Pairs whose
        filter is not active are left out: their images are zero.
    """
    prepared = prepare(model)
    yield from _pieces(prepared, _probe(prepared, x, list(layers)), x, layers, filters, chunk)


@torch.inference_mode(False)
def guided_backpropagation(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    filters: Sequence[int] | None = None,
    *,
    rectify: bool = True,
    chunk: int | None = None,
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
        chunk: Pairs of sample and filter carried back in one pass, at most; it bounds the memory. None for as many as
            are fast with a network of this size.

    Returns:
        Images (N, K, C, H, W) in units of activation per unit of input; zero where a filter is not active.

    Raises:
        LayerError: The model has no such layer.
        ModelError: The model has activations other than ReLU, or a ReLU that cannot be intercepted, or its samples
            influence each other.
        ScanError: x has another shape, or a filter does not exist.

    Source: Springenberg et al. 2015; Wang Xinyuan, bachelor's thesis, ch. 3.3, eq. 3-2.
    """
    name, prepared = resolve_layer(model, layer), prepare(model)
    probe = _probe(prepared, x, [name])
    images = x.new_zeros((len(x), probe.filters[name] if filters is None else len(filters), *x.shape[1:]))
    for _, samples, positions, part in _pieces(prepared, probe, x, {name: rectify}, filters, chunk):
        images[samples, positions] = part
    return images


@torch.inference_mode(False)
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
    return _score_images(model, x, units, _GuidedReLU)


@torch.inference_mode(False)
def deconvolved_scores(model: nn.Module, x: Tensor, units: Sequence[int]) -> Tensor:
    """Return for each input the deconvolution image of one class score of the model's output.

    On the way back a ReLU lets a gradient R pass as `R * [R > 0]`, whatever its own output was; max-pooling sends it to
    the winner, as the switches of the deconvolution network do, and a convolution becomes its transpose.

    Args:
        model: As in `guided_scores`.
        x: As in `guided_scores`.
        units: As in `guided_scores`.

    Returns:
        Images (N, C, H, W) in units of the class score per unit of input.

    Raises:
        ModelError: See `guided_scores`.
        ScanError: See `guided_scores`.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014); Wang Xinyuan, bachelor's
    thesis, ch. 2.1.1.
    """
    return _score_images(model, x, units, _DeconvolvedReLU)


@torch.inference_mode(False)
def rectified_scores(model: nn.Module, x: Tensor, units: Sequence[int]) -> Tensor:
    """Return for each input the rectified gradient of one class score of the model's output.

    On the way back a ReLU with output a lets a gradient R pass as `R * [a * R > t]`. t is the percentile
    `RECTIFIED_SHARE` of a * R among all units of this call of ReLU, for each input by itself, by linear interpolation,
    so that the largest of few units passes too (the paper does not say how its percentile is interpolated). All other
    operations pass their plain gradient; the paper's extras for max-pooling and for padded borders are left out.

    Args:
        model: As in `guided_scores`.
        x: As in `guided_scores`.
        units: As in `guided_scores`.

    Returns:
        What arrives at the input (N, C, H, W), in units of the class score per unit of input.

    Raises:
        ModelError: See `guided_scores`; or a ReLU acts on something whose first axis is not that of the samples, so
            that no layer of one sample can be told.
        ScanError: See `guided_scores`.

    Source: Kim et al., "Why are Saliency Maps Noisy? Cause of and Solution to Noisy Saliency Maps" (2019).
    """
    return _score_images(model, x, units, _RectifiedReLU)


def _score_images(model: nn.Module, x: Tensor, units: Sequence[int], rule: _Rule) -> Tensor:
    """Return the images (N, C, H, W) of one class score for each input, by a rule for the ReLUs."""
    if len(units) != len(x):
        raise ScanError(f"{len(units)} output units were given for {len(x)} inputs; one per input is needed")
    prepared = prepare(model)
    probe = _probe(prepared, x, [])
    if not all(0 <= unit < probe.scores.shape[1] for unit in units):
        raise ModelError(
            f"the model's output has the shape {(len(x), *probe.scores.shape[1:])}, but the class scores {min(units)} "
            f"to {max(units)} of each input were asked for"
        )
    if rule is _RectifiedReLU and not probe.sampled:
        raise ModelError(
            "the rectified gradient compares the units of a layer for each sample by itself, but a ReLU of this "
            "network acts on a tensor whose first axis is not that of the samples"
        )
    images = torch.empty_like(x)
    for first in range(0, len(x), probe.pairs):
        source = _source(x[first : first + probe.pairs])
        with torch.enable_grad(), _RuledReLUs(rule):
            scores = logits(prepared(source.clone()))
            own = scores[torch.arange(len(scores)), list(units[first : first + probe.pairs])]
            (images[first : first + probe.pairs],) = torch.autograd.grad(own.sum(), source)
    return images
