"""Explanations by the way back from a class score to the pixels.

These methods give attributions (N, C, H, W) first, which `saliency` turns into maps: the largest size over the channels
(Simonyan et al. 2013; Wang Xinyuan, bachelor's thesis, ch. 2.1.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from nnscan.backprop import deconvolved_scores, guided_scores
from nnscan.models import logits, prepare
from nnscan.scores import BATCH, Explainer, checked, own_scores

STEPS = 50
"""Places on the way from the baseline at which integrated gradients takes a gradient."""


def saliency(attributions: Tensor) -> Tensor:
    """Return maps (N, H, W) of attributions (N, C, H, W): the largest size over the channels.

    Source: Simonyan et al., "Deep Inside Convolutional Networks" (2013); Wang Xinyuan, bachelor's thesis, ch. 2.1.2.
    """
    return attributions.abs().amax(1)


@torch.inference_mode(False)
def score_gradients(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradient (N, C, H, W) of each input's class score, in units of the score per unit of input.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input whose score is explained.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Simonyan et al. 2013, eq. 4; Wang Xinyuan, bachelor's thesis, eq. 2-2.
    """
    x, prepared = checked(model, x, classes), prepare(model)
    parts = []
    for start in range(0, len(x), BATCH):
        source = x[start : start + BATCH].clone().requires_grad_(True)
        with torch.enable_grad():
            own = own_scores(logits(prepared(source.clone())), classes[start : start + BATCH])
            parts.append(torch.autograd.grad(own.sum(), source)[0])
    return torch.cat(parts)


@torch.inference_mode(False)
def integrated_attributions(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return integrated gradients (N, C, H, W), in units of the class score; Captum's, with Gauss-Legendre steps.

    The way begins at the image that is zero as fed to the network: black where inputs lie in [0, 1]. The attributions
    of an input add up to its score less that of the beginning.

    Args:
        model: See `score_gradients`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks" (2017); Wang Xinyuan, bachelor's thesis,
    eq. 2-3. Its eq. 2-4 lacks the derivative's sign and is read as the sum that approximates eq. 2-3.
    """
    x, prepared = checked(model, x, classes), prepare(model)
    method = IntegratedGradients(lambda inputs: logits(prepared(inputs.clone())))
    targets = torch.tensor(classes, device=x.device)
    parts = [
        method.attribute(part.clone(), target=own, n_steps=STEPS, internal_batch_size=BATCH).to(x.dtype)
        for part, own in zip(torch.split(x, BATCH), torch.split(targets, BATCH), strict=True)
    ]
    return torch.cat(parts).detach()


def backpropagation(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the class scores' gradients; see `score_gradients`."""
    return saliency(score_gradients(model, x, classes))


def deconvolution(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the deconvolution images; see `backprop.deconvolved_scores`."""
    return saliency(deconvolved_scores(model, checked(model, x, classes), classes))


def guided_backpropagation(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of the guided-backpropagation images; see `backprop.guided_scores`."""
    return saliency(guided_scores(model, checked(model, x, classes), classes))


def integrated_gradients(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the saliency maps (N, H, W) of integrated gradients; see `integrated_attributions`."""
    return saliency(integrated_attributions(model, x, classes))


BACKPROPAGATIONS: Mapping[str, Explainer] = {
    "backpropagation": backpropagation,
    "deconvolution": deconvolution,
    "guided backpropagation": guided_backpropagation,
    "integrated gradients": integrated_gradients,
}
"""The four ways back that the thesis compares, in its order (ch. 2.1, fig. 3-7)."""
