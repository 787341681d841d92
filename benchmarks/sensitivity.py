"""SoU: removing every weight of LeNet-5 against the plain loop, and the first order of all layers in one pass.

The plain loop sets each weight to zero and runs the whole network. The first order is compared with one pass of
gradients of the whole weight, sample by sample, for each layer. Networks and images are random.
"""

from __future__ import annotations

import numpy as np
import torch
from harness import Ratio, paired, run
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nnscan.models import build_model, network_layers, prepare
from nnscan.properties import sensitivities

REMOVAL_SAMPLES = 200
REMOVED = 20  # weights of each layer in the plain loop
SAMPLES = {"lenet5": 200, "alexnet": 64, "vgg11": 32}
GRADIENT_BYTES = 256 * 2**20


def random_task(name: str, samples: int) -> tuple[nn.Module, Tensor, Tensor, list[str]]:
    torch.manual_seed(0)
    model = prepare(build_model(name))
    x, y = torch.rand(samples, 3, 32, 32), torch.randint(0, 10, (samples,))
    return model, x, y, [layer.name for layer in network_layers(model, x)]


def losses(model: nn.Module, key: str, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(model, {key: weight}, (x,)), y, reduction="none")


def plain_removal(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> None:
    """Remove some of a layer's weights."""
    weight = model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        intact = losses(model, f"{layer}.weight", weight, x, y)
        for index in range(REMOVED):
            lesioned = weight.clone()
            lesioned.view(-1)[index] = 0
            (intact - losses(model, f"{layer}.weight", lesioned, x, y)).abs().sum()


def plain_first_order(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> NDArray[np.float64]:
    weight = model.get_parameter(f"{layer}.weight")
    step = max(1, min(64, GRADIENT_BYTES // weight.nbytes))

    def loss(candidate: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        return losses(model, f"{layer}.weight", candidate, sample[None], label[None]).squeeze(0)

    slopes = vmap(grad(loss), in_dims=(None, 0, 0))
    total = sum(
        (weight * slopes(weight, *part)).abs().flatten(2).sum((0, 2), dtype=torch.float64)
        for part in zip(torch.split(x, step), torch.split(y, step), strict=True)
    )
    return (total / (len(x) * weight[0].numel())).numpy()


def removal(repeats: int) -> Ratio:
    model, x, y, layers = random_task("lenet5", REMOVAL_SAMPLES)
    times = paired(
        {
            "ours": lambda: sensitivities(model, x, y, layers, exact=True),
            **{layer: lambda layer=layer: plain_removal(model, x, y, layer) for layer in layers},
        },
        repeats,
    )
    counts = {layer: model.get_parameter(f"{layer}.weight").numel() for layer in layers}
    plain = sum(count * times[layer] / (REMOVED + 1) for layer, count in counts.items())
    note = f"{sum(counts.values())} weights; the plain loop is extrapolated from {REMOVED} of each layer"
    title = f"every weight of LeNet-5 removed, {len(x)} samples"
    return Ratio(title, "plain loop", times["ours"], plain, note=note)


def first_order(name: str, repeats: int) -> list[Ratio]:
    model, x, y, layers = random_task(name, SAMPLES[name])
    for ours, plain in zip(
        sensitivities(model, x, y, layers), [plain_first_order(model, x, y, layer) for layer in layers], strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-12)
    times = paired(
        {
            "together": lambda: sensitivities(model, x, y, layers),
            "one by one": lambda: [sensitivities(model, x, y, [layer]) for layer in layers],
            "plain": lambda: [plain_first_order(model, x, y, layer) for layer in layers],
        },
        repeats,
    )
    title = f"first order of all {len(layers)} layers of {name}, {len(x)} samples"
    return [
        Ratio(title, "gradients of one layer's weights at a time", times["together"], times["plain"]),
        Ratio(title, "ours layer by layer", times["together"], times["one by one"]),
    ]


def measure(repeats: int) -> list[Ratio]:
    return [removal(repeats), *(row for name in SAMPLES for row in first_order(name, repeats))]


if __name__ == "__main__":
    run(measure)
