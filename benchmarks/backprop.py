"""Guided backpropagation of all filters of a VGG-11, and the similarity values of both methods.

Run `python benchmarks/backprop.py [--repeats 3] [--threads 2]`. Ours is the whole of `similarities`, for one class
average and extrapolated to ten; it is compared with what computes the images alone:

- bound: one plain backward pass for every pair of sample and filter, in the batches that are fastest for the layer;
- rectangles: 10 samples x 6 filters per call of autograd's `is_grads_batched`, as nnscan did it before;
- Captum: NeuronGuidedBackprop filter by filter, 10 samples at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.attr import NeuronGuidedBackprop
from harness import Ratio, paired, run
from torch import Tensor, nn

from nnscan.models import build_model, capture, neuron_layers, prepare
from nnscan.similarities import similarities

SAMPLES = 10
FILTERS = 6  # of all samples in one call of the old way
SHOWN = 2  # filters of a layer that Captum is timed with
BATCHES = (16, 32, 64)
CALLS = 4  # of the short calls in one timing, so that no timing is a lucky moment of the machine


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(values):
        return torch.relu(values)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output > 0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(min=0) * ctx.saved_tensors[0]


class _Ruled(nn.Module):
    def forward(self, values):
        return _Rule.apply(values)


def _graph(model: nn.Module, x: Tensor, layers: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    source = x.clone().requires_grad_()
    with capture(model, layers) as outputs:
        model(source)
    return source, outputs


def bounds(model: nn.Module, x: Tensor, layers: list[str]) -> dict[str, Callable[[], object]]:
    """Return one backward pass for each size of batch and layer."""

    def one(source: Tensor, values: Tensor) -> Callable[[], object]:
        gradient = torch.zeros_like(values)
        pairs = torch.arange(len(values))
        gradient[pairs, pairs % values.shape[1]] = 1
        return lambda: torch.autograd.grad(values, source, gradient, retain_graph=True)

    functions = {}
    for batch in BATCHES:
        source, outputs = _graph(model, x[:1].repeat(batch, 1, 1, 1), layers)
        functions |= {f"bound {batch} {layer}": one(source, outputs[layer]) for layer in layers}
    return functions


def rectangles(model: nn.Module, x: Tensor, layers: list[str]) -> dict[str, Callable[[], object]]:
    """Return one call of the old way for each layer: all samples, some filters."""
    ruled = prepare(model)
    for name, module in list(ruled.named_modules()):
        if isinstance(module, nn.ReLU):
            ruled.set_submodule(name, _Ruled())
    source, outputs = _graph(ruled, x, layers)

    def one(values: Tensor) -> Callable[[], object]:
        totals = torch.relu(values).transpose(0, 1).flatten(1).sum(1)
        selectors = torch.eye(len(totals))[:FILTERS]
        return lambda: torch.autograd.grad(totals, source, selectors, retain_graph=True, is_grads_batched=True)

    return {f"rectangles {layer}": one(outputs[layer]) for layer in layers}


def peers(model: nn.Module, x: Tensor, layers: list[str]) -> dict[str, Callable[[], object]]:
    """Return Captum's images of some filters for each layer; the module behind a layer is its ReLU."""

    def one(layer: str) -> Callable[[], object]:
        prefix, _, index = layer.rpartition(".")
        peer = NeuronGuidedBackprop(model, model.get_submodule(f"{prefix}.{int(index) + 1}"))
        return lambda: [
            peer.attribute(x.clone().requires_grad_(), lambda maps, k=k: maps[:, k].sum((1, 2))) for k in range(SHOWN)
        ]

    return {f"captum {layer}": one(layer) for layer in layers}


def measure(repeats: int) -> list[Ratio]:
    torch.manual_seed(0)
    model = prepare(build_model("vgg11"))
    x = torch.rand(SAMPLES, 3, 32, 32)
    layers = neuron_layers(model, x)
    filters = {layer: model.get_submodule(layer).out_channels for layer in layers}
    parts = bounds(model, x, layers) | rectangles(model, x, layers) | peers(model, x, layers)
    times = paired(
        {"ours": lambda: similarities(model, {"simple": x[:1]})}
        | {name: lambda part=part: [part() for _ in range(CALLS)] for name, part in parts.items()},
        repeats,
    )
    times |= {name: times[name] / CALLS for name in parts}
    ours = times["ours"] * SAMPLES
    bound = sum(
        SAMPLES * count * min(times[f"bound {batch} {layer}"] / batch for batch in BATCHES)
        for layer, count in filters.items()
    )
    old = sum(times[f"rectangles {layer}"] * count / FILTERS for layer, count in filters.items())
    peer = sum(times[f"captum {layer}"] * count / SHOWN for layer, count in filters.items())
    title = f"similarity of all {sum(filters.values()):,} filters, VGG-11, {SAMPLES} averages of 32 x 32"
    note = "ours from 1 average, the other from some filters of each layer; both extrapolated"
    return [
        Ratio(title, "bound: one plain backward pass per sample and filter", ours, bound, note=note),
        Ratio(title, "rectangles of 10 x 6 with is_grads_batched", ours, old, note=note),
        Ratio(title, "Captum NeuronGuidedBackprop", ours, peer, note=note),
    ]


if __name__ == "__main__":
    run(measure)
