"""An accelerator against the processor: training, scan, filter images and guided backpropagation, and how they agree.

The note of a row gives the largest deviation between both from the largest value, in float32. Besides, the
multiply-adds per second of each training are printed, to compare with what `nnscan estimate` takes a GPU to do.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import numpy as np
import torch
from harness import Ratio, paired, run
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import nnscan
from nnscan.backprop import guided_backpropagation
from nnscan.errors import ModelError
from nnscan.models import build_model, chosen_device, neuron_layers, tf32

CASES = {"lenet5": (32, 8), "alexnet": (32, 8), "vgg11": (32, 2), "resnet18": (32, 2), "vgg16": (224, 1)}
"""Networks, with the side of their inputs and their number. The last is scanned only: image by image takes minutes."""

BATCH = 128
PASSES = 10


def deviation(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest difference as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Return the multiply-adds of one forward pass of one input."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output[0].numel() * weight[0].numel()

    handles = [part.register_forward_hook(count) for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(x[:1])
    for handle in handles:
        handle.remove()
    return total


def training(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    """Return some training passes, as a function that gives the last loss."""
    optimizer = torch.optim.Adam(model.parameters())

    def passes() -> float:
        for _ in range(PASSES):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float(loss.detach())

    return passes


def compared(name: str, size: int, count: int, device: torch.device, repeats: int) -> list[Ratio]:
    """Compare one network."""
    torch.manual_seed(0)
    model = build_model(name if size == 32 else f"torchvision:{name}").eval()
    images = torch.rand(count, 3, size, size)
    block = 1 if size == 32 else 8
    places = {"cpu": torch.device("cpu"), "other": device}
    models = {key: copy.deepcopy(model).to(place) for key, place in places.items()}
    layer = neuron_layers(model, images[:1])[-1]
    tasks: dict[str, Callable[[nn.Module, Tensor], NDArray[np.floating]]] = {
        "scan": lambda network, x: np.concatenate(
            [part.ravel() for part in nnscan.scan(network, x, block=block).absolute_images.values()]
        ),
        "filter images": lambda network, x: nnscan.filter_images(network, x, layer).cpu().numpy(),
        "guided backpropagation": lambda network, x: guided_backpropagation(network, x, layer).cpu().numpy(),
    }
    rows = []
    for title, task in tasks.items() if size == 32 else [("scan", tasks["scan"])]:
        results: dict[str, NDArray[np.floating]] = {}

        def call(key: str, task: Callable = task, results: dict = results) -> None:  # type: ignore[type-arg]
            results[key] = task(models[key], images.to(places[key]))

        times = paired({key: lambda key=key: call(key) for key in places}, repeats)  # type: ignore[misc]
        off = deviation(results["other"], results["cpu"])
        what = f"{title}, {name}, {size} x {size}, {count} inputs"
        rows.append(Ratio(what, "processor", times["other"], times["cpu"], None, f"deviation {off:.1e}"))
    if size == 32:
        x, y = torch.rand(BATCH, 3, size, size), torch.randint(10, (BATCH,))
        passes = {
            key: training(copy.deepcopy(model).train().to(place), x.to(place), y.to(place))
            for key, place in places.items()
        }
        times = paired(passes, repeats)
        rate = 3 * multiply_adds(model, x) * BATCH * PASSES / times["other"]
        rows.append(
            Ratio(
                f"training, {name}, {PASSES} batches of {BATCH}",
                "processor",
                times["other"],
                times["cpu"],
                None,
                f"{rate:.2e} multiply-adds/s",
            )
        )
    return rows


def measure(repeats: int) -> list[Ratio]:
    """Compare all networks."""
    device = chosen_device()
    if device.type == "cpu":
        raise ModelError("torch sees no accelerator here to compare the processor with")
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads of the processor", file=sys.stderr)
    rows = []
    with tf32(False):  # as in a job
        for case, (size, count) in CASES.items():
            rows += compared(case, size, count, device, repeats)
            print(f"{case} done", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    run(measure)
