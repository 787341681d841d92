"""Layer-wise relevance propagation: a class score is handed back to the pixels, neuron by neuron, by rules.

On the way back a neuron j holds the relevance R_j, which was its own share of the score, and splits it among its
inputs x_i in proportion to their contributions x_i w_ij. The rules differ in which contributions count. With
`(u)+ = max(0, u)` and `(u)- = min(0, u)`:

- epsilon: `R_i = sum_j x_i w_ij / (z_j + epsilon s sign(z_j)) R_j`, with `z_j = sum_i x_i w_ij + b_j` and the root mean
  square s of the layer's z;
- alpha-beta: `R_i = sum_j (alpha (x_i w_ij)+ / z_j+ - beta (x_i w_ij)- / z_j-) R_j`, with
  `z_j+ = sum_i (x_i w_ij)+ + (b_j)+` and z_j- likewise; where all has one sign, that side gets R_j undivided;
- z+: `R_i = sum_j (x_i w_ij)+ / sum_i' (x_i' w_i'j)+ R_j`, without bias;
- z^B, for pixels between l and h: `R_i = sum_j c_ij / sum_i' c_i'j R_j`, with
  `c_ij = x_i w_ij - l_i (w_ij)+ - h_i (w_ij)-`.

Every linear operation is such a layer of neurons: a convolution or linear map, with the normalisation behind it merged
into its weights; a pooling by means; a sum of maps, as in a shortcut, whose summands are its inputs. A ReLU hands on
what it gets, a maximum gives all to its winner, and what only moves values moves their relevance. A neuron with a
single input (a normalisation that follows no layer, a factor, a constant added to a map) gives it everything; by the
epsilon rule its bias has a part.

All of it is read off the calls that reach torch, however a network spells them; Captum's LRP knows modules that are
used once and leaves functions out, so it serves the tests only. What has no rule stands in the graph of the forward
pass as torch's own operation, and is refused by its name.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nnscan.backprop import operations
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Method, Setting, simply
from nnscan.models import logits
from nnscan.scores import BATCH, checked, class_scores, own_scores, ready

EPSILON = 0.01
"""The epsilon rule's stabiliser, as a share of the root mean square of a layer's values for the input.

As a share it works for layers of any scale (Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019,
measure it so, too); Bach et al. leave it open.
"""

ALPHA, BETA = 2.0, 1.0
"""Weights of what speaks for a neuron and against it; alpha - beta = 1 keeps the total (Bach et al. 2015)."""


# Layers and rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """Neurons whose values are `sums(weight, *inputs) + bias`, linear in the weight as in the inputs."""

    sums: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor | None = None


Box = tuple[tuple[float, ...], tuple[float, ...]]
"""Least and largest value of each channel (C,), as in `explanations.Setting`."""

_Maps = tuple[Tensor, ...]
_Ends = tuple[_Maps, _Maps]
"""Least and largest values of each of a layer's inputs."""

_Split = Callable[[_Layer, _Maps, _Ends | None, Tensor], _Maps]
"""`(layer, inputs, their ends if they are pixels, relevance of the neurons)` -> relevance of the inputs."""


_Parts = list[tuple[Tensor, _Maps]]
"""Weights, each with the inputs that they are applied to."""


def _contributions(layer: _Layer, parts: _Parts) -> tuple[Tensor, Callable[[Tensor], _Maps]]:
    """Return the sums `z_j = sum_i c_ij` of contributions, and what makes `sum_j c_ij s_j` of factors s_j."""
    parts = [part for part in parts if any(bool(entry.any()) for entry in part[1])] or parts[:1]
    leaves = [(weight, [entry.detach().requires_grad_() for entry in inputs]) for weight, inputs in parts]
    with torch.enable_grad():
        total = torch.stack([layer.sums(weight, *inputs) for weight, inputs in leaves]).sum(0)

    def back(factors: Tensor) -> _Maps:
        flat = [leaf for _, inputs in leaves for leaf in inputs]
        gradients = torch.autograd.grad(total, flat, factors)
        shares = [leaf.detach() * gradient for leaf, gradient in zip(flat, gradients, strict=True)]
        count = len(flat) // len(leaves)
        return tuple(torch.stack(shares[number::count]).sum(0) for number in range(count))

    return total.detach(), back


def _of_samples(numbers: Tensor, maps: Tensor) -> Tensor:
    """Return a number for each sample (n,) in a shape that goes with its maps (n, ...)."""
    return numbers.reshape(-1, *[1] * (maps.ndim - 1))


def _present(sums: Tensor, sizes: Tensor) -> Tensor:
    """Return which sums are more than rounding beside the largest of the sizes of the same sample."""
    largest = sizes.abs().reshape(len(sizes), -1).amax(1)
    return sums.abs() > torch.finfo(sums.dtype).eps * _of_samples(largest, sums)


def _ratio(relevance: Tensor, sums: Tensor, present: Tensor) -> Tensor:
    """Return relevance by sum; 0 where there is no sum, so that no input gets anything."""
    return torch.where(present, relevance / torch.where(present, sums, 1), 0)


def _epsilon(epsilon: float) -> _Split:
    """Return the epsilon rule. Source: Bach et al. 2015, eq. 58."""

    def split(layer: _Layer, inputs: _Maps, ends: _Ends | None, relevance: Tensor) -> _Maps:
        values, back = _contributions(layer, [(layer.weight, inputs)])
        if layer.bias is not None:
            values = values + layer.bias
        size = _of_samples(values.square().reshape(len(values), -1).mean(1).sqrt(), values)
        stabilised = values + epsilon * size * torch.where(values < 0, -1, 1)
        return back(_ratio(relevance, stabilised, stabilised != 0))

    return split


def _halves(inputs: _Maps) -> tuple[_Maps, _Maps]:
    """Return the positive and the negative parts of inputs."""
    return tuple(entry.clamp(min=0) for entry in inputs), tuple(entry.clamp(max=0) for entry in inputs)


def _signed(layer: _Layer, positive: _Maps, negative: _Maps) -> tuple[_Parts, _Parts]:
    """Return the positive contributions and the negative ones of inputs that are not negative and not positive."""
    above, below = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    return [(above, positive), (below, negative)], [(below, positive), (above, negative)]


def _positive_only(layer: _Layer, positive: _Maps, negative: _Maps, relevance: Tensor) -> _Maps:
    """Split in proportion to the positive contributions."""
    sums, back = _contributions(layer, _signed(layer, positive, negative)[0])
    return back(_ratio(relevance, sums, _present(sums, sums)))


def _z_plus(layer: _Layer, inputs: _Maps, ends: _Ends | None, relevance: Tensor) -> _Maps:
    """Split by the z+ rule; negative inputs have positive contributions too. Source: Montavon et al. 2017."""
    return _positive_only(layer, *_halves(inputs), relevance)


def _deep_taylor(layer: _Layer, inputs: _Maps, ends: _Ends | None, relevance: Tensor) -> _Maps:
    """Split by the z^B rule at the pixels, by z+ behind them. Source: Montavon et al. 2017.

    `x w - l (w)+ - h (w)-` is `(x - l) (w)+ + (x - h) (w)-`, of which no term is negative.
    """
    if ends is None:
        return _z_plus(layer, inputs, ends, relevance)
    least, most = ends
    above = tuple(entry - end for entry, end in zip(inputs, least, strict=True))
    below = tuple(entry - end for entry, end in zip(inputs, most, strict=True))
    return _positive_only(layer, above, below, relevance)


def _alpha_beta(layer: _Layer, inputs: _Maps, ends: _Ends | None, relevance: Tensor) -> _Maps:
    """Split by the alpha-beta rule. Source: Bach et al. 2015, eq. 60."""
    (positive, to_positive), (negative, to_negative) = (
        _contributions(layer, parts) for parts in _signed(layer, *_halves(inputs))
    )
    if layer.bias is not None:
        positive, negative = positive + layer.bias.clamp(min=0), negative + layer.bias.clamp(max=0)
    sizes = torch.maximum(positive, -negative)
    speaks, objects = _present(positive, sizes), _present(negative, sizes)
    shares = (
        to_positive(_ratio(torch.where(objects, ALPHA * relevance, relevance), positive, speaks)),
        to_negative(_ratio(torch.where(speaks, -BETA * relevance, relevance), negative, objects)),
    )
    return tuple(one + other for one, other in zip(*shares, strict=True))


@dataclass(frozen=True)
class _Rule:
    """How relevance passes a network.

    Attributes:
        split: For layers of neurons.
        bias_counts: Whether the bias of a neuron with a single input has a part.
    """

    split: _Split
    bias_counts: bool = False


_Z_PLUS, _DEEP_TAYLOR, _ALPHA_BETA = _Rule(_z_plus), _Rule(_deep_taylor), _Rule(_alpha_beta)


# The way through a network ------------------------------------------------------------------------------------------


class _Propagated(torch.autograd.Function):
    """An operation that goes back by a rule: what torch carries as a gradient is relevance."""

    @staticmethod
    def forward(value: Callable[[], Tensor], back: Callable[..., _Maps], *inputs: Tensor) -> Tensor:
        return value()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.back, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        return None, None, *ctx.back(relevance, *ctx.saved_tensors)


class _Passed(torch.autograd.Function):
    """An operation on each value by itself, which hands its relevance on."""

    @staticmethod
    def forward(value: Callable[[], Tensor], source: Tensor) -> Tensor:
        return value()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        return None, relevance  # torch adds up what goes to copies of a value


_WEIGHTED = {"conv2d": ("stride", "padding", "dilation", "groups"), "linear": ()}
_MEANS = ("avg_pool2d", "adaptive_avg_pool2d", "mean", "sum")
_SUMS = {"add": "add", "sub": "sub", "subtract": "sub", "rsub": "rsub", "__rsub__": "rsub"}
_FACTORS = {"mul": "mul", "multiply": "mul", "div": "div", "divide": "div", "true_divide": "div", "neg": "neg"}
"""Operations by the names of the functions that torch is called with."""

_MOVES = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T"),
        *("Slice", "Select", "Index", "IndexSelect", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Expand"),
        *("Repeat", "Flip", "Roll", "PixelShuffle", "PixelUnshuffle", "ToCopy", "CopyBackwards", "CopySlices"),
        *("ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "MaxPool2DWithIndices", "AdaptiveMaxPool2D"),
        *("Max", "Amax", "AccumulateGrad"),
    )
)
"""Operations, by the names of their graph nodes, whose values are moved, copied or chosen among their inputs'."""

_SPELLED = {
    "Mul": "a product of two maps (or dropout that is left on)",
    "NativeBatchNorm": "batch normalisation by the batch's own statistics",
    "CudnnBatchNorm": "batch normalisation by the batch's own statistics",
    "Relu": "a ReLU that nnscan cannot reach",
    "Convolution": "a convolution of another kind",
}
"""What a graph node that has no rule stands for, where its name does not say it."""


def _plain_name(func: Callable[..., Any]) -> tuple[str, bool]:
    """Return the name of a function without the mark of a change in place, and whether it has the mark."""
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__")
    return name.removesuffix("_") if inplace else name, inplace


def _maps_in(value: Any) -> list[Tensor]:
    """Return the tensors that depend on the pixels, among arguments or results; parameters have no history."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for entry in entries for tensor in _maps_in(entry)]


class _Pixels(TorchFunctionMode):
    """Follows the least and largest values that pixels may have, up to the first layers of neurons.

    Attributes:
        ends: By the id of a tensor of pixels the tensor itself, the least values and the largest.
    """

    def __init__(self, pixels: Tensor, box: Box | None) -> None:
        super().__init__()
        values = pixels.detach()
        if box is None:
            least, most = values.amin((2, 3), True), values.amax((2, 3), True)
        else:
            least, most = (values.new_tensor(end)[:, None, None] for end in box)
        self.ends = {id(pixels): (pixels, torch.minimum(least, values), torch.maximum(most, values))}

    def of(self, inputs: _Maps) -> _Ends | None:
        """Return the ends of a layer's inputs; None if they are not all pixels."""
        if any(id(entry) not in self.ends for entry in inputs):
            return None
        kept = [self.ends[id(entry)] for entry in inputs]
        return tuple(least for _, least, _ in kept), tuple(most for _, _, most in kept)

    def _with_end(self, value: Any, side: int) -> Any:
        """Return arguments in which pixels are replaced by one of their ends."""
        if isinstance(value, Tensor):
            return self.ends[id(value)][side].clone() if value.grad_fn is not None else value
        if isinstance(value, tuple | list):
            return type(value)(self._with_end(entry, side) for entry in value)
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given, (name, _) = _maps_in((args, kwargs)), _plain_name(func)
        layer = name in _WEIGHTED or name in _MEANS or (name in _SUMS and len(given) > 1)
        sides: list[Any] = []
        if given and not layer and all(id(entry) in self.ends for entry in given):
            with torch.no_grad():
                for side in (1, 2):
                    named = {key: self._with_end(entry, side) for key, entry in kwargs.items()}
                    sides.append(func(*self._with_end(args, side), **named))
        result = func(*args, **kwargs)
        single = isinstance(result, Tensor)
        results = [result] if single else result if isinstance(result, tuple | list) else []
        for entry in results:
            self.ends.pop(id(entry), None)
        if sides and results:
            first, second = ([side] if single else side for side in sides)
            for entry, one, other in zip(results, first, second, strict=True):
                if _maps_in(entry):
                    self.ends[id(entry)] = (entry, torch.minimum(one, other), torch.maximum(one, other))
        return result


@dataclass(frozen=True)
class _Made:
    """What a layer made: as long as nobody changes it, a normalisation of it belongs to the layer."""

    value: weakref.ref[Tensor]
    layer: _Layer
    source: Tensor
    versions: tuple[int, int]

    def is_still(self, value: Tensor) -> bool:
        """Return whether a map is what the layer made, of what is still there."""
        return self.value() is value and self.versions == (value._version, self.source._version)


class _Propagation(TorchFunctionMode):
    """Inside the block linear operations, normalisations and ReLUs go back by a rule."""

    def __init__(self, rule: _Rule, pixels: _Pixels) -> None:
        super().__init__()
        self.rule = rule
        self.pixels = pixels
        self._made: dict[int, _Made] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name, inplace = _plain_name(func)
        result = None
        if maps := _maps_in((args, kwargs)):
            if name == "relu":
                inplace = inplace or (args[1] if len(args) > 1 else kwargs.get("inplace", False))
                result = _Passed.apply(lambda: torch.relu(maps[0]), maps[0])
            elif name in _WEIGHTED:
                result = self._weighted(func, name, args, kwargs)
            elif func is functional.batch_norm:
                result = self._normalised(args, kwargs)
            elif name in _MEANS:
                result = self._averaged(func, args, kwargs)
            elif name in _SUMS:
                result = self._summed(_SUMS[name], args, kwargs)
            elif name in _FACTORS:
                result = self._scaled(_FACTORS[name], args, kwargs)
        if result is None:
            return func(*args, **kwargs)
        changed = args[0] if args else kwargs["input"]
        return changed.copy_(result) if inplace else result

    def _layer(self, layer: _Layer, value: Callable[[], Tensor], *inputs: Tensor, copied: bool = True) -> Tensor:
        """Return the value of a layer, with the rule as its way back.

        Args:
            layer: The layer.
            value: What computes the value.
            inputs: What it is computed from.
            copied: Whether the rule gets copies of the inputs: torch's own operation does not look at them again, so
                that a network may change them in place.
        """
        split, ends = self.rule.split, self.pixels.of(inputs)

        def back(relevance: Tensor, *kept: Tensor) -> _Maps:
            return split(layer, kept, ends, relevance)

        result: Tensor = _Propagated.apply(value, back, *(entry.clone() if copied else entry for entry in inputs))
        return result

    def _single(self, value: Callable[[], Tensor], source: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Return the value of neurons `gain * source + shift`, each of which has a single input."""
        if not self.rule.bias_counts:
            result: Tensor = _Passed.apply(value, source)
            return result
        layer = _Layer(lambda weight, own: weight * own + torch.zeros_like(shift), gain, shift)
        return self._layer(layer, value, source)

    def _weighted(
        self, func: Callable[..., Tensor], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        given = dict(zip(("input", "weight", "bias", *_WEIGHTED[name]), args, strict=False)) | kwargs
        source, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        if _maps_in((weight, bias)):
            return None
        layer = _Layer(
            lambda own, values: func(values, own, None, **given),
            weight.detach(),
            None if bias is None else bias.detach().reshape(-1, *[1] * (weight.ndim - 2)),
        )
        result = self._layer(layer, lambda: func(*args, **kwargs), source, copied=False)
        self._made[id(result)] = _Made(weakref.ref(result), layer, source, (result._version, source._version))
        return result

    def _normalised(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        bound = inspect.signature(functional.batch_norm).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        source, mean = given["input"], given["running_mean"]
        if given["training"] or mean is None:
            return None
        with torch.no_grad():
            gain = (given["running_var"] + given["eps"]).rsqrt()
            gain = gain if given["weight"] is None else gain * given["weight"]
            shift = -mean * gain if given["bias"] is None else given["bias"] - mean * gain
        wide = [-1, *[1] * (source.ndim - 2)]
        shift = shift.reshape(wide)
        value = partial(functional.batch_norm, *args, **kwargs)
        made = self._made.get(id(source))
        if made is None or not made.is_still(source) or source.ndim != made.layer.weight.ndim:
            return self._single(value, source, gain.reshape(wide), shift)
        weight, bias = made.layer.weight * gain.reshape(-1, *[1] * (source.ndim - 1)), made.layer.bias
        bias = shift if bias is None else bias * gain.reshape(wide) + shift
        return self._layer(_Layer(made.layer.sums, weight, bias), value, made.source, copied=False)

    def _averaged(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        source, *rest = (*args, *([kwargs["input"]] if not args else []))
        named = {key: entry for key, entry in kwargs.items() if key != "input"}
        layer = _Layer(lambda weight, values: weight * func(values, *rest, **named), source.new_ones(()))
        return self._layer(layer, lambda: func(*args, **kwargs), source)

    def _summed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        given = dict(zip(("input", "other"), args, strict=False)) | kwargs
        first, second, alpha = given["input"], given["other"], given.get("alpha", 1)
        value = partial(getattr(torch, name), first, second, alpha=alpha)
        first_factor, second_factor = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[name]
        maps = _maps_in((first, second))
        weight = maps[0].new_tensor((first_factor, second_factor))
        if len(maps) == 2:
            layer = _Layer(lambda own, one, other: own[0] * one + own[1] * other, weight)
            return self._layer(layer, value, first, second)
        if maps[0] is first:
            return self._single(value, first, weight[0], weight[1] * _constant(second, first))
        return self._single(value, second, weight[1], weight[0] * _constant(first, second))

    def _scaled(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        given = dict(zip(("input", "other"), args, strict=False)) | kwargs
        first, second = given["input"], given.get("other")
        maps = _maps_in((first, second))
        if len(maps) == 2 or (name == "div" and (maps[0] is second or given.get("rounding_mode"))):
            return None
        operands = (first,) if name == "neg" else (first, second)
        result: Tensor = _Passed.apply(partial(getattr(torch, name), *operands), maps[0])
        return result


def _constant(value: Any, like: Tensor) -> Tensor:
    """Return a number or tensor as a tensor of the same type, on the same device as another."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _check(scores: Tensor) -> None:
    """Raise a ModelError where scores were computed with anything that has no rule."""
    if scores.grad_fn is None:
        raise ModelError("the class scores do not depend on the input in a differentiable way")
    found = set()
    for name, node in operations(scores):
        if name.startswith("torch::jit"):
            found.add("scripted code")
        elif isinstance(node, BackwardCFunction):
            if name not in (_Propagated.__name__, _Passed.__name__):
                found.add(f"the custom function {name}")
        elif name not in _MOVES:
            found.add(_SPELLED.get(name, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()))
    if found:
        raise ModelError(
            "relevance propagation has rules for convolutions, linear layers, batch normalisation, ReLU, pooling, sums "
            f"and constant factors; this network applies {', '.join(sorted(found))}, which has none. A method by "
            "gradients or perturbation needs no rules."
        )


# Explainers ---------------------------------------------------------------------------------------------------------

_Start = Callable[[Tensor, Tensor], Tensor]
"""`(class scores (n, classes), which is explained (n, classes) of bools)` -> the relevance of the scores."""


@torch.inference_mode(False)
def _relevance(
    model: nn.Module, x: Tensor, classes: Sequence[int], rule: _Rule, start: _Start, box: Box | None = None
) -> Tensor:
    """Return the relevance (N, H, W) of each pixel, summed over its channels."""
    x, prepared = ready(model, x, classes)
    if box is not None and any(len(end) != x.shape[1] for end in box):
        raise ScanError(f"the box of the pixels is that of {len(box[0])} channels, the inputs have {x.shape[1]}")
    parts = []
    for first in range(0, len(x), BATCH):
        source = x[first : first + BATCH].clone().requires_grad_(True)
        with torch.enable_grad():
            given = source.clone()
            pixels = _Pixels(given, box)
            with _Propagation(rule, pixels), pixels:
                scores = logits(prepared(given))
        _check(scores)
        own = torch.tensor(classes[first : first + BATCH], device=x.device)
        chosen = functional.one_hot(own, scores.shape[1]).bool()
        parts.append(torch.autograd.grad(scores, source, start(scores.detach(), chosen))[0].sum(1))
    return torch.cat(parts)


def _score(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return the score itself. Source: Bach et al. 2015."""
    return torch.where(chosen, scores, 0)


def _size(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return the size of the score."""
    return _score(scores, chosen).abs()


def _others(scores: Tensor) -> int:
    """Return the number of classes beside the one that is explained.

    Raises:
        ModelError: There is none.
    """
    if scores.shape[1] < 2:
        raise ModelError(
            "a contrast to other classes was asked for, but the model has a single class score; take LRP, which "
            "explains one score"
        )
    return scores.shape[1] - 1


def _contrast(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return the size of the score, less as much spread over the other classes. Source: Gu et al. 2018, CLRP1."""
    size = _size(scores, chosen)
    return torch.where(chosen, size, -size.sum(1, keepdim=True) / _others(scores))


def _softmax_gradient(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return the gradient of the class's probability y_t by the scores: `y_t (1 - y_t)`, `-y_t y_n` of the others.

    Source: Iwana et al. 2019.
    """
    _others(scores)
    probabilities = scores.softmax(1)
    own, others = (torch.where(mask, probabilities, 0) for mask in (chosen, ~chosen))
    of_class = own.sum(1, keepdim=True)
    return of_class * torch.where(chosen, others.sum(1, keepdim=True), -others)  # 1 - y_t would lose the last digits


def lrp_epsilon(model: nn.Module, x: Tensor, classes: Sequence[int], epsilon: float = EPSILON) -> Tensor:
    """Return the relevance maps (N, H, W) by the epsilon rule, signed, in units of the class score.

    A map adds up to the score less what the biases and epsilon have taken. As epsilon goes to 0 it becomes gradient
    times input.

    Args:
        model: A network of linear layers, convolutions, batch normalisation, ReLU, pooling, sums and concatenations, in
            any spelling; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input whose score is explained.
        epsilon: See `EPSILON`.

    Raises:
        ModelError: The network applies something that has no rule, or has no such class scores.
        ScanError: x or classes have another shape.

    Source: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation" (2015), eq. 58; the survey's rule-based methods.
    """
    return _relevance(model, x, classes, _Rule(_epsilon(epsilon), bias_counts=True), _score)


def lrp_alpha_beta(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the relevance maps (N, H, W) by the alpha-beta rule, signed, in units of the class score.

    A map adds up to the size of the score but for what the biases have taken, or given back. Relevance starts with
    the size, as by this rule a negative score would turn what speaks for its class into evidence against it.

    Args:
        model: See `lrp_epsilon`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.

    Source: Bach et al. 2015, eq. 60, with alpha = 2 and beta = 1 (their beta is -1).
    """
    return _relevance(model, x, classes, _ALPHA_BETA, _size)


def lrp_z_plus(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the relevance maps (N, H, W) by the z+ rule, not negative, in units of the class score.

    A map adds up to the size of the score less the relevance of neurons for which nothing speaks but their bias.

    Args:
        model: See `lrp_epsilon`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.

    Source: Bach et al. 2015, eq. 60 with alpha = 1 and beta = 0, without biases as in Montavon et al. 2017.
    """
    return _relevance(model, x, classes, _Z_PLUS, _size)


def deep_taylor(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the deep Taylor decompositions (N, H, W), not negative, in units of the class score.

    The rule is z+ in hidden layers and z^B at the pixels. Their box is that of the setting, drawn out to pixels that
    lie outside; without one it goes, channel by channel, from the least value of the input to the largest. Either way
    the map is the same whether inputs are standardised or not.

    Args:
        model: See `lrp_epsilon`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.
        setting: Its box counts.

    Source: Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition" (2017).
    """
    return _relevance(model, x, classes, _DEEP_TAYLOR, _size, setting.box)


def contrastive_lrp(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the contrastive relevance maps `max(0, R - R_dual)` (N, H, W), in units of the class score.

    R is the deep Taylor decomposition of the class score, R_dual that of as much relevance which starts from the other
    classes, evenly. The maps keep no total.

    Args:
        model: See `lrp_epsilon`, as for the other arguments and errors; one of two classes or more.
        x: Inputs (N, C, H, W).
        classes: The class of each input.
        setting: See `deep_taylor`.

    Source: Gu et al., "Understanding Individual Decisions of CNNs via Contrastive Backpropagation" (2018), CLRP1.
    """
    # the rules are linear in the relevance: one way back carries the difference
    return _relevance(model, x, classes, _DEEP_TAYLOR, _contrast, setting.box).clamp(min=0)


def softmax_gradient_lrp(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the softmax-gradient relevance maps (N, H, W), signed, in units of the class's probability.

    The rules are those of `deep_taylor`, relevance starts as the gradient of the class's probability by the scores. A
    map adds up to 0 but for the relevance of neurons for which nothing speaks.

    Args:
        model: See `lrp_epsilon`, as for the other arguments and errors; one of two classes or more.
        x: Inputs (N, C, H, W).
        classes: The class of each input.
        setting: See `deep_taylor`.

    Source: Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance
    Propagation" (2019).
    """
    return _relevance(model, x, classes, _DEEP_TAYLOR, _softmax_gradient, setting.box)


# What the methods are -----------------------------------------------------------------------------------------------


def _own_scores(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return each input's score of its class (N,)."""
    x, prepared = ready(model, x, classes)
    return own_scores(class_scores(prepared, x), classes)


def _sizes(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    return _own_scores(model, x, classes).abs()


def _zeros(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    return checked(model, x, classes).new_zeros(len(x))


_NEEDS = ("ReLU as its only activation", "linear operations and maxima otherwise")
_method = partial(
    Method,
    family="rule-based",
    detail="fine-grained",
    class_specific=True,
    online=False,
    transparent=True,
    explains="class score",
    scope="local",
    needs=_NEEDS,
)

METHODS = (
    _method(
        name="lrp_epsilon",
        title="LRP-ε",
        paper="Bach et al., PLOS ONE",
        year=2015,
        explain=simply(lrp_epsilon),
        total=simply(_own_scores),
    ),
    _method(
        name="lrp_alpha_beta",
        title="LRP-αβ",
        paper="Bach et al., PLOS ONE",
        year=2015,
        explain=simply(lrp_alpha_beta),
        total=simply(_sizes),
    ),
    _method(
        name="lrp_z_plus",
        title="LRP-z⁺",
        paper="Bach et al., PLOS ONE",
        year=2015,
        explain=simply(lrp_z_plus),
        total=simply(_sizes),
    ),
    _method(
        name="deep_taylor",
        title="Deep Taylor",
        paper="Montavon et al., Pattern Recognition",
        year=2017,
        explain=deep_taylor,
        total=simply(_sizes),
    ),
    _method(
        name="clrp",
        title="CLRP",
        paper="Gu et al., ACCV",
        year=2018,
        explain=contrastive_lrp,
    ),
    _method(
        name="sglrp",
        title="SGLRP",
        explains="class probability",
        paper="Iwana et al., ICCV Workshops",
        year=2019,
        explain=softmax_gradient_lrp,
        total=simply(_zeros),
    ),
)
"""The rule-based methods beside deconvolution. CLRP keeps no total: it drops what is negative."""
