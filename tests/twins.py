"""Slow twins: what the scanner gives, from plain autograd and the formulas, neuron by neuron."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from nnscan.moments import SUPPORT, Moments
from nnscan.scanner import learning_images


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def forward(model: nn.Module, x: torch.Tensor, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an input (1, C, H, W) that asks for its gradient, and a layer's output (1, K, ...) for it."""
    kept: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: kept.append(output.clone()))
    source = x[None].clone().requires_grad_(True)
    with torch.enable_grad():
        model(source.clone())
    handle.remove()
    return source, kept[-1]


def images(model: nn.Module, x: torch.Tensor, layer: str, neurons: Sequence[int] | None = None) -> torch.Tensor:
    """Return x * d a_q / d x (n, C, H, W) of neurons of one input, without gate; None for all neurons."""
    source, output = forward(model, x, layer)
    values = output.reshape(-1)
    chosen = range(len(values)) if neurons is None else neurons
    if not values.requires_grad:
        return x.new_zeros((len(chosen), *x.shape))
    return torch.stack([x * torch.autograd.grad(values[q], source, retain_graph=True)[0][0] for q in chosen])


def filter_image(model: nn.Module, x: torch.Tensor, layer: str, index: int) -> torch.Tensor:
    """Return x * grad_x(1/2 sum f^2) (C, H, W) with f = relu of a filter's map, for one input."""
    source, output = forward(model, x, layer)
    (gradient,) = torch.autograd.grad(output[0, index].relu().square().sum() / 2, source)
    return x * gradient[0]


def guided_image(model: nn.Module, x: torch.Tensor, layer: str, index: int) -> torch.Tensor:
    """Return the guided gradient (C, H, W) of sum f, f = relu of a filter's map: nothing negative passes a ReLU."""
    source, output = forward(model, x, layer)
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        if node.name() == "ReluBackward0":
            node.register_prehook(lambda gradients: (gradients[0].clamp(min=0),))
    (gradient,) = torch.autograd.grad(output[0, index].relu().sum(), source)
    return gradient[0]


def block_sum(a: np.ndarray, block: int) -> np.ndarray:
    """Sum (..., H, W) over blocks, one by one."""
    height, width = a.shape[-2] // block, a.shape[-1] // block
    result = np.zeros((*a.shape[:-2], height, width))
    for row in range(height):
        for column in range(width):
            tile = a[..., row * block : (row + 1) * block, column * block : (column + 1) * block]
            result[..., row, column] = tile.sum((-1, -2))
    return result


def near_the_support(found: torch.Tensor, block: int) -> np.ndarray:
    """Return which images (n, C, H, W) have a pixel so near the edge of the support that rounding decides on it."""
    size = np.abs(block_sum(found.double().sum(1).numpy(), block)).reshape(len(found), -1)
    edge = SUPPORT * size.max(1, keepdims=True)
    return (np.abs(size - edge) < 0.01 * edge).any(1)


def moments_of(
    found: torch.Tensor, x: torch.Tensor, foreground: torch.Tensor | None = None, block: int = 1
) -> dict[str, np.ndarray]:
    """Return the moments of learning images (n, C, H, W) of one input (C, H, W), as moments.py defines them."""
    whole = block_sum(found.double().sum(1).numpy(), block).reshape(len(found), -1)
    grid = np.abs(block_sum(x.double().sum(0).numpy(), block)).reshape(-1)
    spread = grid.max() - grid.min()
    grid = (grid - grid.min()) / spread if spread > 0 else 0 * grid
    inside = np.ones(grid.shape, dtype=bool)
    if foreground is not None:
        inside = block_sum(foreground.double().numpy(), block).reshape(-1) >= 0.5 * block**2
    size = np.abs(whole)
    support = size > 1e-3 * size.max(1, keepdims=True)
    result = {"signed_total": whole.sum(1), "maximum": size.max(1), "minimum": size.min(1)}
    for region, there in (("foreground", inside), ("background", ~inside)):
        on_both = support & there
        result |= {
            f"count_{region}": on_both.sum(1),
            f"total_{region}": (size * there).sum(1),
            f"square_{region}": (size**2 * there).sum(1),
            f"input_total_{region}": (grid * on_both).sum(1),
            f"input_square_{region}": (grid**2 * on_both).sum(1),
            f"cross_{region}": (grid * size * on_both).sum(1),
        }
    return result


def assert_moments(
    moments: Moments, layer: str, sample: int, neurons: Sequence[int], expected: dict[str, np.ndarray], share: float
) -> None:
    """Compare moments of neurons with a twin's; errors may be a share of the image's own size.

    A sum of signed numbers may come near zero: its error is measured by the sum of their sizes.
    """
    arrays = moments.layers[layer]
    total = expected["total_foreground"] + expected["total_background"]
    sizes = {"signed_total": total, "minimum": expected["maximum"]}
    for quantity, values in expected.items():
        found = arrays[quantity][sample].reshape(-1)[list(neurons)]
        error = np.abs(found - values)
        allowed = share * sizes.get(quantity, np.abs(values)) + np.finfo(found.dtype).tiny
        worst = int((error / allowed).argmax())
        assert error[worst] <= allowed[worst], (
            f"{quantity} of neuron {neurons[worst]} of {layer}, sample {sample}: {found[worst]} is not {values[worst]}"
        )


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose parameters ask for no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def summed(model: nn.Module, x: torch.Tensor, layer: str, weights: np.ndarray, block: int) -> torch.Tensor:
    """Return the weighted sum of the absolute learning images of a layer's neurons (N, 8, 8), one by one."""
    found = []
    for one, own in zip(x, weights, strict=True):
        learned = learning_images(model, one, layer).sum(1)
        blocks = learned.reshape(len(learned), 8 // block, block, 8 // block, block).sum((2, 4))
        total = torch.einsum("q,qij->ij", torch.from_numpy(own).flatten(), blocks.abs())
        found.append(total.repeat_interleave(block, 0).repeat_interleave(block, 1))
    return torch.stack(found)
