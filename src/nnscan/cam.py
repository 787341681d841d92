"""Class activation maps: weighted sums of the last convolution's feature maps, drawn up to the input's size.

pytorch-grad-cam has the same methods, and a test holds Grad-CAM++ and Score-CAM against it. It is not called, as it
takes its feature maps from modules alone, where those of a network with functional ReLUs, sums or concatenations have
none, and as it stretches every map to [0, 1], so that maps of several inputs could not be compared any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnscan.backprop import operations
from nnscan.errors import ModelError
from nnscan.explanations import Method, simply
from nnscan.models import logits
from nnscan.scores import BATCH, drawn_up, followed, own_scores, ready

_LINEAR = frozenset(
    (
        *("Addmm", "Mm", "Mean", "Sum", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D"),
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze", "Permute", "Transpose"),
    )
)
"""Operations, by the name of their graph node, that keep a class score a weighted sum of the feature maps."""


class _LastMaps(TorchFunctionMode):
    """Finds the feature maps that the last convolution ends in.

    They are followed from the convolution's output through normalisation, sums, concatenation, activation and gates, as
    far as the places stay the same: up to the pooling or to the layer that gives up places. A convolution of pooled
    maps, which has one place only, makes the factors of a gate or class scores, and no maps.

    Attributes:
        maps: The feature maps (N, K, h, w) after the forward pass, None without a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: Tensor | None = None

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
            if self.maps is None or result.shape[2:].numel() > 1:
                self.maps = result
        elif self.maps is not None and any(entry is self.maps for entry in given):
            # what is as large goes on; a mean beside it may come back as the factors of a gate
            self.maps = result if result.ndim == 4 and result.shape[2:] == self.maps.shape[2:] else self.maps
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
            "scripted code do not show); gradients, perturbation, LIME and SHAP do without"
        )
    return found.maps, scores


def _gradient(maps: Tensor, scores: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradient of each input's class score by its feature maps (n, K, h, w).

    Raises:
        ModelError: No gradient leads from the scores to the maps.
    """
    return torch.autograd.grad(own_scores(followed(scores), classes).sum(), maps)[0]


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
            none, or no gradient leads to it, or the network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization" (2016).
    """
    x, prepared = ready(model, x, classes)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        other = sorted({name for name, _ in operations(scores, behind=maps)} - _LINEAR)
        gradient = _gradient(maps, scores, classes[start : start + BATCH])
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
        parts.append(drawn_up(places * (mean * maps).sum(1), part).detach())
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
        ModelError: The network has no convolution, or no gradient leads to it, or there are no such class scores.
        ScanError: x or classes have another shape.

    Source: Selvaraju et al., "Grad-CAM" (2017).
    """
    x, prepared = ready(model, x, classes)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        gradient = _gradient(maps, scores, classes[start : start + BATCH])
        weights = gradient.mean((2, 3), keepdim=True)
        parts.append(drawn_up((weights * maps).sum(1).relu(), part).detach())
    return torch.cat(parts)


@torch.inference_mode(False)
def grad_cam_plus_plus(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the maps of Grad-CAM++, `relu(sum_k w_ck A_k)` (N, H, W).

    With g the gradient of the class score by the places of A_k, the paper's weight is `w = sum_ij a_ij relu(g_ij)`,
    `a_ij = g_ij^2 / (2 g_ij^2 + g_ij^3 sum_ab A_ab)`: the sum of `g_ij / (2 + g_ij sum_ab A_ab)` where g is positive.
    The paper takes the derivatives of exp(score), whose common factor exp(score) is left out here: it changes the
    map's unit for an input alone, and overflows.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: The network has no convolution, or no gradient leads to it, or there are no such class scores, or
            the weights are not defined, which can happen if feature maps are negative.
        ScanError: x or classes have another shape.

    Source: Chattopadhay et al., "Grad-CAM++" (2018), eq. 10, 11 and 19.
    """
    x, prepared = ready(model, x, classes)
    parts = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        maps, scores = _maps_and_scores(prepared, part)
        gradient = _gradient(maps, scores, classes[start : start + BATCH])
        rising = gradient.relu()
        denominator = 2 + rising * maps.sum((2, 3), keepdim=True)
        if bool((denominator <= 0).any()):
            raise ModelError(
                "the weights of Grad-CAM++ are defined for feature maps that are not negative, as behind a ReLU; those "
                "of this network are. Grad-CAM has no such condition."
            )
        weights = (rising / denominator).sum((2, 3), keepdim=True)
        parts.append(drawn_up((weights * maps).sum(1).relu(), part).detach())
    return torch.cat(parts)


@torch.inference_mode(False)
def score_cam(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the maps of Score-CAM, `relu(sum_k a_ck A_k)` (N, H, W), without any gradient.

    Each A_k, drawn up to the input's size and stretched to [0, 1], is laid over the input as a mask; a_ck is the
    softmax, over the K maps, of the class score that the network gives to what is left. The score of the baseline,
    which the paper takes off each, cancels in the softmax. A map without any differences leaves nothing.

    Every input goes through the network K + 1 times.

    Args:
        model: A network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network; hidden pixels become zero.
        classes: The class of each input.

    Raises:
        ModelError: The network has no convolution, or no such class scores.
        ScanError: x or classes have another shape.

    Source: Wang et al., "Score-CAM" (2020), algorithm 1, with the class score before the softmax as f.
    """
    x, prepared = ready(model, x, classes)
    parts = []
    for one, label in zip(torch.split(x, 1), classes, strict=True):
        maps = _maps_and_scores(prepared, one)[0].detach()[0]
        scores = []
        with torch.no_grad():
            for some in torch.split(maps, BATCH):
                masks = drawn_up(some, one)
                lowest, highest = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
                spread = highest - lowest
                masks = torch.where(spread > 0, (masks - lowest) / spread, 0)
                scores.append(logits(prepared(masks[:, None] * one))[:, label])
        weights = torch.cat(scores).softmax(0)
        parts.append(drawn_up(torch.einsum("k,kij->ij", weights, maps).relu()[None], one))
    return torch.cat(parts)


METHODS = (
    Method(
        name="cam",
        title="CAM",
        family="class activation",
        detail="regional",
        class_specific=True,
        online=True,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Zhou et al., CVPR",
        year=2015,
        needs=("global average pooling and one linear layer behind the last convolution",),
        explain=simply(cam),
    ),
    Method(
        name="grad_cam",
        title="Grad-CAM",
        family="class activation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Selvaraju et al., ICCV",
        year=2017,
        needs=("a convolution",),
        explain=simply(grad_cam),
    ),
    Method(
        name="grad_cam_plus_plus",
        title="Grad-CAM++",
        family="class activation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Chattopadhay et al., WACV",
        year=2018,
        needs=("a convolution", "last feature maps that are not negative"),
        explain=simply(grad_cam_plus_plus),
    ),
    Method(
        name="score_cam",
        title="Score-CAM",
        family="class activation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Wang et al., CVPR workshops",
        year=2019,
        needs=("a convolution",),
        explain=simply(score_cam),
    ),
)
"""The survey's class activation maps (tables 2 and 3), with its years."""
