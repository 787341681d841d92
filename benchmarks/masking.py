"""Every filter masked alone, against the plain loop: a hook that zeroes the filter, and a pass of the whole network.

The models are trained a moment on scikit-learn's digits, because an untrained network has few silent filters. What
depends on the filter is timed on some filters of each layer and multiplied; what does not, on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Ratio, paired, run, seconds
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nnscan.interventions import LayerMasking
from nnscan.models import build_model, network_layers
from nnscan.suffixes import zeroed
from nnscan.training import evaluate

SAMPLES = {"alexnet": 128, "vgg11": 64, "resnet18": 24}
STEPS = 25  # of training
PICKED = 4  # filters of each layer
TARGET = 3


def digits() -> tuple[Tensor, Tensor]:
    """Return the digits as images (N, 3, 32, 32), and their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return nn.functional.interpolate(images, 32, mode="bilinear").expand(-1, 3, -1, -1), torch.tensor(found.target)


def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = build_model(name).train(), digits()
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    for _ in range(STEPS):
        batch = torch.randint(0, len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


def active_share(masking: LayerMasking) -> float:
    """Return the share of pairs of a filter and a sample that mask something."""
    assert masking.suffix is not None
    with torch.no_grad():
        incoming, others = masking.suffix.before(masking.x)
        kept = masking.suffix.keep(incoming, others)
        blank = masking.suffix.chain(torch.zeros_like(masking.suffix.layer(incoming[:1])))
    return float((kept.maps != blank).flatten(2).any(2).double().mean())


def compare(name: str, repeats: int) -> list[Ratio]:
    model = trained(name)
    x, y = (values[-SAMPLES[name] :] for values in digits())
    layers = [layer for layer in network_layers(model, x) if layer.convolutional]
    counts = {layer.name: len(model.get_submodule(layer.weights).weight) for layer in layers}  # type: ignore[arg-type]
    picks = {layer: [[index * count // PICKED] for index in range(PICKED)] for layer, count in counts.items()}
    maskings: dict[str, LayerMasking] = {}
    prepared = {
        layer: seconds(lambda layer=layer: maskings.setdefault(layer, LayerMasking(model, x, y, layer)))
        for layer in counts
    }
    first, *_, last = counts

    def plainly() -> None:
        for layer in (first, last):
            with zeroed(model.get_submodule(layer), [1]):
                evaluate(model, x, y)

    functions: dict[str, Callable[[], Any]] = {"plain": plainly}
    for layer, masking in maskings.items():
        functions[f"prefix {layer}"] = lambda masking=masking: masking.results([[]])
        functions[f"picked {layer}"] = lambda masking=masking, layer=layer: masking.results(picks[layer])
    times = paired(functions, repeats)
    ours, plain = {}, {}
    for layer, count in counts.items():
        prefix = times[f"prefix {layer}"]
        behind = max(0.0, times[f"picked {layer}"] - prefix) / PICKED
        ours[layer] = prepared[layer] + prefix + count * behind
        plain[layer] = count * times["plain"] / 2
    middle = list(counts)[len(counts) // 2]
    shares = {layer: active_share(masking) for layer, masking in maskings.items()}
    accuracy = evaluate(model, x, y)[1]
    title = f"each filter of {name} masked, {len(x)} samples"
    rows = [
        Ratio(
            f"{title}: {position} convolution", "hook and whole pass", ours[layer], plain[layer],
            note=f"{counts[layer]} filters; active in {shares[layer]:.0%} of pairs",
        )
        for position, layer in (("first", first), ("middle", middle), ("last", last))
    ]  # fmt: skip
    pairs = sum(shares[layer] * count for layer, count in counts.items()) / sum(counts.values())
    note = (
        f"{sum(counts.values())} filters, extrapolated from {PICKED} of each layer; active in {pairs:.0%} of pairs; "
        f"accuracy {accuracy:.2f} after {STEPS} steps"
    )
    total = Ratio(
        f"{title}: all convolutions", "hook and whole pass", sum(ours.values()), sum(plain.values()), TARGET, note
    )
    return [*rows, total]


def measure(repeats: int) -> list[Ratio]:
    return [row for name in SAMPLES for row in compare(name, repeats)]


if __name__ == "__main__":
    run(measure)
