"""The scan of every neuron against its peers and its bound.

- the bound: as many plain forward passes of the convolutional part, in the batch that suits them best, as the sweep
  pushes tangents (one for each pixel or block of pixels);
- Captum's NeuronGradient, neuron by neuron, and batched reverse mode (`learning_images`), on some neurons of each
  layer, extrapolated to all;
- filter images against Captum's gradient of a filter's 1/2 sum f^2, filter by filter.

The scan's time is that of the whole call for one sample: following the network, the check of its first sample, all
sums and the filter images.
"""

from __future__ import annotations

import captum.attr
import numpy as np
import torch
import torchvision
from harness import Ratio, paired, peak_of, run, seconds
from torch import Tensor, nn

import nnscan
from nnscan.models import build_model, capture, neuron_layers, prepare

LARGE = {"alexnet": 0.45, "vgg16": 0.2, "resnet18": 0.6}
"""Networks at 224 x 224 with 8 x 8 blocks, and the share of the bound's time that their scan may take."""


def convolutional(model: nn.Module) -> nn.Module:
    """Return the part of a network up to its last convolution's activation."""
    if isinstance(getattr(model, "features", None), nn.Module):
        return model.features  # type: ignore[return-value]
    return nn.Sequential(*list(model.children())[:-2])  # a torchvision ResNet without pooling and classifier


def forward_passes(model: nn.Module, x: Tensor, count: int) -> float:
    """Return the seconds of some forward passes, in the best of several batch sizes."""
    part, rates = convolutional(model), []
    with torch.no_grad():
        for batch in (16, 64, 256):
            images = x.expand(batch, -1, -1, -1).contiguous()
            if images.numel() > 2**24:
                continue
            part(images)
            rates.append(seconds(lambda images=images: part(images)) / batch)
    return min(rates) * count


def neuron_by_neuron(model: nn.Module, x: Tensor, layers: list[str], shown: int) -> float:
    """Return the seconds of Captum's NeuronGradient for all neurons, from some of each layer."""
    total = 0.0
    generator = np.random.default_rng(0)
    for name in layers:
        with torch.no_grad(), capture(model, [name]) as outputs:
            model(x)
            shape = outputs[name].shape[1:]
        gradient = captum.attr.NeuronGradient(model, model.get_submodule(name))
        picks = [tuple(int(generator.integers(size)) for size in shape) for _ in range(shown)]
        given = x.clone().requires_grad_(True)
        gradient.attribute(given, picks[0])
        total += seconds(lambda: [gradient.attribute(given, pick) for pick in picks]) / shown * shape.numel()  # noqa: B023
    return total


def batched_reverse(model: nn.Module, x: Tensor, layers: list[str], shown: int) -> float:
    """Return the seconds of `learning_images` for all neurons, from some of each layer."""
    total = 0.0
    for name in layers:
        with torch.no_grad(), capture(model, [name]) as outputs:
            model(x)
            count = outputs[name].numel()
        neurons = list(range(0, count, max(1, count // shown)))[:shown]
        nnscan.learning_images(model, x[0], name, neurons[:8])
        total += seconds(lambda: nnscan.learning_images(model, x[0], name, neurons)) / len(neurons) * count  # noqa: B023
    return total


def captum_filters(model: nn.Module, x: Tensor, name: str, filters: list[int]) -> None:
    """Compute filters' images with Captum, one after the other."""
    gradient = captum.attr.NeuronGradient(model, model.get_submodule(name))
    given = x.clone().requires_grad_(True)
    for index in filters:
        gradient.attribute(given, lambda output: 0.5 * output[:, index].relu().square().sum((1, 2)))  # noqa: B023


def small(repeats: int) -> list[Ratio]:
    """Compare at 32 x 32 pixels, single pixels."""
    rows = []
    for name in ("lenet5", "alexnet", "vgg11", "resnet18"):
        torch.manual_seed(0)
        model, x = prepare(build_model(name)), torch.rand(1, 3, 32, 32)
        layers = neuron_layers(model, x)
        count = sum(arrays["activation"].size for arrays in nnscan.scan(model, x).layers.values())
        times: dict[str, list[float]] = {"scan": [], "bound": [], "captum": [], "reverse": []}
        for _ in range(repeats):
            times["scan"].append(seconds(lambda: nnscan.scan(model, x)))  # noqa: B023
            times["bound"].append(forward_passes(model, x, 1024))
            times["captum"].append(neuron_by_neuron(model, x, layers, 4))
            times["reverse"].append(batched_reverse(model, x, layers, 128))
        ours, bound, captum_time, reverse = (float(np.median(values)) for values in times.values())
        what = f"scan, {name}, 32 x 32, {count:,} neurons"
        vgg = name == "vgg11"
        rows += [
            Ratio(what, "1,024 forward passes", ours, bound, 1.0 if vgg else None),
            Ratio(
                what,
                "Captum NeuronGradient",
                ours,
                captum_time,
                500 if vgg else None,
                "4 neurons a layer, extrapolated",
            ),
            Ratio(what, "batched reverse mode", ours, reverse, None, "128 neurons a layer, extrapolated"),
        ]
    memory = peak_of(
        "import torch, nnscan; from nnscan.models import build_model; torch.set_num_threads(2);"
        "nnscan.scan(build_model('vgg11'), torch.rand(1, 3, 32, 32))"
    )
    rows[6] = Ratio(**{**vars(rows[6]), "note": f"peak memory {memory:.2f} GiB (target < 2)"})
    return rows


def large(repeats: int) -> list[Ratio]:
    """Compare at 224 x 224 pixels in blocks of 8 x 8."""
    rows = []
    for name, share in LARGE.items():
        torch.manual_seed(0)
        model = prepare(torchvision.models.get_model(name, weights=None))
        x = torch.rand(1, 3, 224, 224)
        count = sum(value["activation"].size for value in nnscan.scan(model, x, block=8).layers.values())
        ours, bound = [], []
        for _ in range(repeats):
            ours.append(seconds(lambda: nnscan.scan(model, x, block=8)))  # noqa: B023
            bound.append(forward_passes(model, x, 784))
        memory = peak_of(
            "import torch, torchvision, nnscan; torch.set_num_threads(2);"
            f"nnscan.scan(torchvision.models.{name}(), torch.rand(1, 3, 224, 224), block=8)"
        )
        rows.append(
            Ratio(
                f"scan, {name}, 224 x 224, 8 x 8 blocks, {count:,} neurons",
                "784 forward passes",
                float(np.median(ours)),
                float(np.median(bound)),
                1 / share,
                f"peak memory {memory:.2f} GiB (target < 6)",
            )
        )
    return rows


def filters(repeats: int) -> list[Ratio]:
    """Compare the filter images of a layer with Captum's, and the two routes with one another."""
    rows = []
    torch.manual_seed(0)
    for name, layer, size in (
        ("lenet5", "features.3", 16),
        ("alexnet", "features.6", 384),
        ("vgg11", "features.8", 256),
    ):
        model, x = prepare(build_model(name)), torch.rand(8, 3, 32, 32)
        shown = list(range(0, size, max(1, size // 16)))
        times = paired(
            {
                "ours": lambda: nnscan.filter_images(model, x, layer),  # noqa: B023
                "captum": lambda: captum_filters(model, x, layer, shown),  # noqa: B023
            },
            repeats,
        )
        rows.append(
            Ratio(
                f"filter images, {name}, {layer}, {size} filters, 8 samples",
                "Captum, filter by filter",
                times["ours"],
                times["captum"] * size / len(shown),
                None,
                f"{len(shown)} filters, extrapolated",
            )
        )
    return rows


def measure(repeats: int) -> list[Ratio]:
    """Return all comparisons."""
    return [*small(repeats), *large(repeats), *filters(repeats)]


if __name__ == "__main__":
    run(measure)
