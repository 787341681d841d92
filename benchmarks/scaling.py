"""How the cost of a scan grows with pixels, neurons and samples: exponents, and a plot in docs/images/scaling.png.

Run `python benchmarks/scaling.py [--repeats 3] [--threads 2]`. An exponent is the slope of a line through the medians
on logarithmic axes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from harness import seconds
from torch import nn

import nnscan
from nnscan.models import build_model, prepare

PLOT = Path(__file__).parents[1] / "docs" / "images" / "scaling.png"


def model(name: str) -> nn.Module:
    """Return a network of the zoo, always with the same weights."""
    torch.manual_seed(0)
    return prepare(build_model(name))


def neurons(network: nn.Module, size: int) -> int:
    """Return the convolutional neurons of a network for an image of a size."""
    scanned = nnscan.scan(network, torch.rand(1, 3, size, size), block=size // 4)
    return sum(arrays["activation"].size for arrays in scanned.layers.values())


def cases() -> dict[str, dict[float, Callable[[], object]]]:
    """Return what is timed, by what grows and its value."""
    vgg11, lenet5 = model("vgg11"), model("lenet5")

    def scan_of(network: nn.Module, samples: int, size: int, block: int) -> Callable[[], object]:
        x = torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(0))
        return lambda: nnscan.scan(network, x, block=block)

    networks = [model(name) for name in ("lenet5", "simple_cnn", "alexnet", "vgg11", "vgg16")]
    return {
        "pixels (VGG-11, 8 x 8 blocks)": {
            size**2: scan_of(vgg11, 1, size, 8) for size in (32, 64, 96, 128, 160, 192, 224)
        },
        "neurons (LeNet-5 to VGG-16, 32 x 32)": {
            neurons(network, 32): scan_of(network, 1, 32, 1) for network in networks
        },
        "samples (LeNet-5, 32 x 32)": {samples: scan_of(lenet5, samples, 32, 1) for samples in (1, 3, 10, 30, 100)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (what, runs) in zip(axes, cases().items(), strict=True):
        times = []
        for run in runs.values():
            run()
            times.append(statistics.median(seconds(run) for _ in range(options.repeats)))
        grown = np.array(list(runs))
        slope, offset = np.polyfit(np.log(grown), np.log(times), 1)
        axis.loglog(grown, times, "o", color="C0")
        axis.loglog(grown, np.exp(offset) * grown**slope, "-", color="C1", label=f"exponent {slope:.2f}")
        axis.set(xlabel=what, ylabel="seconds")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        pairs = ", ".join(f"{number:,.0f}: {time:.3g} s" for number, time in zip(grown, times, strict=True))
        print(f"{what}: exponent {slope:.2f} ({pairs})")
    figure.savefig(PLOT, dpi=110)
    print(f"plot: {PLOT}")


if __name__ == "__main__":
    main()
