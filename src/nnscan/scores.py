"""Class scores of inputs: what explainers explain.

Every explainer is called alike, `(model, x, classes)` -> one map (N, H, W) for each input, and explains for each input
the score of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnscan.errors import ModelError, ScanError
from nnscan.models import device_of, logits, prepare

BATCH = 16
"""Inputs that go through a network together."""

Explainer = Callable[[nn.Module, Tensor, Sequence[int]], Tensor]


def checked(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the inputs on the model's device; see `ready` for what is checked."""
    return ready(model, x, classes)[0]


def ready(model: nn.Module, x: Tensor, classes: Sequence[int]) -> tuple[Tensor, nn.Module]:
    """Return the inputs on the model's device, and the model prepared (`models.prepare`).

    Raises:
        ScanError: The inputs are no images, or the classes are not one for each.
        ModelError: The network has no such class scores.
    """
    if x.ndim != 4 or not len(x) or not x.is_floating_point():
        raise ScanError(f"expected a floating-point tensor (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    if len(classes) != len(x):
        raise ScanError(f"{len(classes)} classes were given for {len(x)} inputs; one per input is needed")
    x, prepared = x.detach().to(device_of(model)), prepare(model)
    scores = class_scores(prepared, x[:1])
    if scores.ndim != 2 or not all(0 <= number < scores.shape[1] for number in classes):
        raise ModelError(
            f"the model's output has the shape {(len(x), *scores.shape[1:])}, but the class scores {min(classes)} to "
            f"{max(classes)} of each input were asked for"
        )
    return x, prepared


@torch.no_grad()
def class_scores(prepared: nn.Module, x: Tensor) -> Tensor:
    """Return the class scores (N, classes) that a prepared network gives to inputs (N, C, H, W) on its device."""
    return torch.cat([logits(prepared(part.clone())) for part in torch.split(x, BATCH)])


def own_scores(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """Return what scores (n, classes, ...) hold for each input's class (n, ...)."""
    return scores[torch.arange(len(scores), device=scores.device), torch.tensor(classes, device=scores.device)]


def followed(scores: Tensor) -> Tensor:
    """Return class scores as they are, which a gradient is to follow back to the input.

    Raises:
        ModelError: None can: the network computes without gradients, or its answers do not depend on its input.
    """
    if not scores.requires_grad:
        raise ModelError(
            "no gradient leads from this network's answers back to its input: it computes them under torch.no_grad, "
            "detached or outside torch; take a method that needs answers only, such as occlusion, RISE, LIME or SHAP"
        )
    return scores


def answers(model: nn.Module, x: Tensor) -> list[int]:
    """Return the class that a network gives to each input (N, C, H, W)."""
    return class_scores(prepare(model), x.to(device_of(model))).argmax(1).tolist()


def rises(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return by how much each input's class score is above that of the image that is zero as fed (N,).

    It is what attributions add up to where the zero image is their baseline and they are complete.
    """
    x, prepared = ready(model, x, classes)
    beginning = class_scores(prepared, torch.zeros_like(x[:1]))[0, list(classes)]
    return own_scores(class_scores(prepared, x), classes) - beginning


def drawn_up(maps: Tensor, x: Tensor) -> Tensor:
    """Return maps (n, h, w) at the size of the inputs (n, C, H, W), bilinearly."""
    size = (int(x.shape[-2]), int(x.shape[-1]))
    return nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
