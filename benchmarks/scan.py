"""The scan of every neuron against its peer and its bound, in one run.

Run `python benchmarks/scan.py [--models lenet5 simple_cnn alexnet] [--threads 2]`. For one sample of random pixels
and all convolutional layers, in seconds:

- sweep: `nnscan.scan`, every neuron, with all sums and the filter images;
- bound: as many plain forward passes, in the sweep's batches, as the sweep pushes tangents;
- peer: Captum's NeuronGradient, neuron by neuron, on some neurons of each layer, extrapolated to all.
"""

from __future__ import annotations

import argparse
import time

import captum.attr
import torch

import nnscan
from nnscan.models import build_model, neuron_layers, prepare
from nnscan.scanner import CHUNK


def seconds(function, repeats: int = 3) -> float:
    """Return the fastest of some runs, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def bound(model: torch.nn.Module, x: torch.Tensor) -> float:
    tangents = x.shape[-2] * x.shape[-1]
    batch = x.expand(CHUNK, -1, -1, -1).contiguous()
    with torch.no_grad():
        return seconds(lambda: model(batch)) * tangents / CHUNK


def peer(model: torch.nn.Module, x: torch.Tensor, layers: list[str], shown: int = 20) -> float:
    total = 0.0
    for name in layers:
        layer = model.get_submodule(name)
        with torch.no_grad(), nnscan.models.capture(model, [name]) as outputs:
            model(x)
            shape = outputs[name].shape[1:]
        gradient = captum.attr.NeuronGradient(model, layer)
        picks = [tuple(int(torch.randint(size, ())) for size in shape) for _ in range(shown)]
        started = time.perf_counter()
        for pick in picks:
            gradient.attribute(x.clone().requires_grad_(True), pick)
        total += (time.perf_counter() - started) / shown * shape.numel()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet5", "simple_cnn", "alexnet"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    titles = ("neurons", "sweep s", "bound s", "sweep/bound", "peer s", "peer/sweep")
    print(f"{'model':12}" + "".join(f"{title:>12}" for title in titles))
    for name in options.models:
        model = prepare(build_model(name))
        x = torch.rand(1, 3, 32, 32)
        layers = neuron_layers(model, x)
        neurons = sum(arrays["activation"].size for arrays in nnscan.scan(model, x).layers.values())
        sweep = seconds(lambda model=model, x=x: nnscan.scan(model, x))
        floor, other = bound(model, x), peer(model, x, layers)
        print(
            f"{name:12}{neurons:12,}{sweep:12.2f}{floor:12.2f}{sweep / floor:12.1f}{other:12.1f}{other / sweep:12.0f}"
        )


if __name__ == "__main__":
    main()
