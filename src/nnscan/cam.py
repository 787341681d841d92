"""Class activation maps: weighted sums of the last convolution's feature maps, drawn up to the input's size."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from nnscan.errors import ModelError
from nnscan.models import logits, prepare
from nnscan.scores import BATCH, checked, own_scores

_LINEAR = frozenset(
    (
        *("Addmm", "Mm", "Mean", "Sum", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D"),
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    )
)
"""Operations, by the name of their graph node, that keep a class score a weighted sum of the feature maps."""


class _LastMaps(TorchFunctionMode):
    """Finds the feature maps that the last convolution ends in.

    They are followed from the convolution's output through normalisation, sums, concatenation and activation, as far as
    the places stay the same: up to the pooling or to the layer that gives up places.

    Attributes:
        maps: The feature maps (N, K, h, w) after the forward pass, None without a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: Tensor | None = None
        self._follow = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        given = [*args, *(kwargs or {}).values()]
        given += [entry for part in given if isinstance(part, list | tuple) for entry in part]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        if getattr(func, "__name__", "") == "conv2d":
            self.maps, self._follow = result, True
        elif self._follow and any(entry is self.maps for entry in given):
            if result.ndim == 4 and self.maps is not None and result.shape[2:] == self.maps.shape[2:]:
                self.maps = result
            else:
                self._follow = False
        return result


def _maps_and_scores(prepared: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature maps (n, K, h, w) and the class scores (n, classes), with the graph between them.

    Raises:
        ModelError: The network has no convolution, or none on the way to the scores.
    """
    source = x.clone().requires_grad_(True)
    with torch.enable_grad(), _LastMaps() as found:
        scores = logits(prepared(source.clone()))
    if found.maps is None or not found.maps.requires_grad:
        raise ModelError(
            "class activation maps need a convolution, and this network has none that nnscan can see (calls inside "
            "scripted code do not show)"
        )
    return found.maps, scores


def _drawn_up(maps: Tensor, x: Tensor) -> Tensor:
    """Return maps (n, h, w) at the inputs' size, bilinearly."""
    size = (int(x.shape[-2]), int(x.shape[-1]))
    return nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _nodes_between(scores: Tensor, maps: Tensor) -> set[str]:
    """Return the names of the operations that lead from the maps to the scores."""
    waiting, seen, names = [scores.grad_fn], set[Node](), set[str]()
    while waiting:
        node = waiting.pop()
        if node is None or node is maps.grad_fn or node in seen:
            continue
        seen.add(node)
        names.add(re.sub(r"Backward\d*$", "", node.name()))
        waiting.extend(parent for parent, _ in node.next_functions)
    return names


@torch.inference_mode(False)
def cam(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the class activation maps `sum_k w_ck A_k` (N, H, W), signed, in units of the class score.

    A_k are the feature maps of the last convolution, w_ck the weights with which their means make up the score of the
    class. Only a network in which global average pooling and one linear layer follow these maps has such weights.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: Something else than global pooling and one linear layer follows the last convolution, or there is
            none, or the network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (2016).
    """
    x, prepared = checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        other = sorted(_nodes_between(scores, maps) - _LINEAR)
        (gradient,) = torch.autograd.grad(own_scores(scores, classes[start : start + BATCH]).sum(), maps)
        mean = gradient.mean((2, 3), keepdim=True)
        if other or not torch.allclose(
            gradient, mean.expand_as(gradient), rtol=1e-4, atol=1e-6 * float(mean.abs().max())
        ):
            found = ", ".join(other) if other else "a layer that weighs each place by itself"
            raise ModelError(
                "CAM is defined for networks in which only global average pooling and one linear layer follow the last "
                f"feature maps; here {found} comes in between. Grad-CAM needs no such layers."
            )
        places = maps.shape[2] * maps.shape[3]
        parts.append(_drawn_up(places * (mean * maps).sum(1), part).detach())
    return torch.cat(parts)


@torch.inference_mode(False)
def grad_cam(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradient-weighted class activation maps `relu(sum_k a_ck A_k)` (N, H, W).

    A_k are the feature maps of the last convolution (after normalisation, shortcut and ReLU, before pooling), a_ck the
    mean over their places of the class score's gradient.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: The network has no convolution, or no such class scores.
        ScanError: x or classes have another shape.

    Source: Selvaraju et al., "Grad-CAM" (2017).
    """
    x, prepared = checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        (gradient,) = torch.autograd.grad(own_scores(scores, classes[start : start + BATCH]).sum(), maps)
        weights = gradient.mean((2, 3), keepdim=True)
        parts.append(_drawn_up((weights * maps).sum(1).relu(), part).detach())
    return torch.cat(parts)
