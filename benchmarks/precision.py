"""The sweep in bfloat16 (gates and winners from float32) against float32: time, and the error of the final metrics.

The networks of the errors are trained for a few seconds on scikit-learn's digits: their gates are not those of noise.
"""

from __future__ import annotations

import numpy as np
import torch
from harness import Ratio, paired, run
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

import nnscan
from nnscan.models import build_model, prepare


def trained(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network that knows the digits, and 20 of them."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    x, y = nn.functional.interpolate(images, size=(32, 32), mode="bilinear"), torch.from_numpy(digits.target).long()
    model = build_model(name, {"in_channels": 1})
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(6):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    return prepare(model), x[:20]


def metrics(model: nn.Module, x: Tensor, precision: str) -> dict[str, np.ndarray]:
    """Return FQ of every neuron and the interpretable properties of every filter."""
    moments = nnscan.scan(model, x, foreground=x[:, 0] > 0.2, precision=precision)
    found = {"FQ": nnscan.feature_quantity(moments)["fq"].to_numpy()}
    for layer, images in moments.filter_images.items():
        table = nnscan.interpretable_properties(images[:, :, None], x.numpy())
        found |= {f"{name} of {layer}": table[name].to_numpy() for name in ("T_m", "T_v", "T_c", "T_cor")}
    return found


def errors(name: str) -> str:
    """Return how far the metrics of a bfloat16 sweep are from those of a float32 sweep."""
    model, x = trained(name)
    single, rounded = metrics(model, x, "float32"), metrics(model, x, "bfloat16")
    worst: dict[str, tuple[float, float]] = {}
    for name, exact in single.items():
        error = float(np.abs(rounded[name] - exact).max() / np.abs(exact).max())
        rank = float(spearmanr(exact, rounded[name]).statistic)
        metric = name.split(" ")[0]
        most, least = worst.get(metric, (0.0, 1.0))
        worst[metric] = max(most, error), min(least, rank)
    return "largest error as a share of the layer's largest value: " + ", ".join(
        f"{metric} {100 * error:.2g} % (rank correlation {rank:.4f})" for metric, (error, rank) in worst.items()
    )


def measure(repeats: int) -> list[Ratio]:
    """Return the comparison for networks of several sizes."""
    rows = []
    for name in ("simple_cnn", "alexnet", "vgg11", "resnet18"):
        torch.manual_seed(0)
        model, x = prepare(build_model(name)), torch.rand(1, 3, 32, 32)
        times = paired(
            {
                precision: lambda precision=precision: nnscan.scan(model, x, precision=precision)  # noqa: B023
                for precision in ("bfloat16", "float32")
            },
            repeats,
        )
        note = errors(name) if name in ("simple_cnn", "alexnet") else ""
        rows.append(
            Ratio(f"scan in bfloat16, {name}, 32 x 32", "float32", times["bfloat16"], times["float32"], note=note)
        )
    return rows


if __name__ == "__main__":
    run(measure)
