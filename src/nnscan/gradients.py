"""Explanations by the way back from a class score to the pixels.

These methods give attributions (N, C, H, W) first, which `saliency` turns into maps: the largest size over the channels
(Simonyan et al. 2013; Wang Xinyuan, bachelor's thesis, ch. 2.1.2). Where attributions promise a sum or are signed by
definition, the method's map is their sum over the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nnscan.backprop import deconvolved_scores, guided_scores, rectified_scores
from nnscan.explanations import Method, Setting, simply
from nnscan.models import logits
from nnscan.scores import BATCH, Explainer, checked, followed, own_scores, ready, rises

STEPS = 50
"""Places on the way from the baseline at which integrated gradients takes a gradient."""

SAMPLES = 50
"""Noisy copies of an input whose gradients SmoothGrad averages, as many as its paper finds to be enough."""

NOISE = 0.15
"""Standard deviation of SmoothGrad's noise as a share of the input's range: between the paper's 10 and 20 %."""


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
    x, prepared = ready(model, x, classes)
    starts = range(0, len(x), BATCH)
    return torch.cat([_gradients(prepared, x[i : i + BATCH], classes[i : i + BATCH]) for i in starts])


def _gradients(prepared: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the gradients (n, C, H, W) of the class scores of one batch of inputs."""
    source = x.clone().requires_grad_(True)
    with torch.enable_grad():
        own = own_scores(followed(logits(prepared(source.clone()))), classes)
        return torch.autograd.grad(own.sum(), source)[0]


@torch.inference_mode(False)
def smoothed_gradients(model: nn.Module, x: Tensor, classes: Sequence[int], seed: int = 0) -> Tensor:
    """Return the mean gradient (N, C, H, W) of each input's class score over `SAMPLES` copies of it with noise.

    The noise is Gaussian; its standard deviation is the share `NOISE` of the input's own range of values. All inputs
    meet the same draws. The signed gradients are averaged, and only their mean may become a size.

    Captum's NoiseTunnel does the same, but draws from the global generator of the inputs' device, and for each input
    of a batch anew: what an input gets would depend on the others.

    Args:
        model: See `score_gradients`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.
        seed: Of the noise.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise" (2017), ch. 3.
    """
    x, prepared = ready(model, x, classes)
    means = []
    for one, label in zip(x, classes, strict=True):
        spread = NOISE * (one.max() - one.min())
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(one)
        for start in range(0, SAMPLES, BATCH):
            count = min(BATCH, SAMPLES - start)
            noise = torch.randn((count, *one.shape), generator=generator, dtype=torch.float64)
            noise = noise.to(x.dtype).to(x.device)
            total += _gradients(prepared, one + spread * noise, [label] * count).sum(0)
        means.append(total / SAMPLES)
    return torch.stack(means)


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
    from captum.attr import IntegratedGradients  # takes half a second, which jobs of other methods need not wait

    x, prepared = ready(model, x, classes)
    method = IntegratedGradients(lambda inputs: followed(logits(prepared(inputs.clone()))))
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


def smooth_grad(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return the saliency maps (N, H, W) of SmoothGrad; see `smoothed_gradients`."""
    return saliency(smoothed_gradients(model, x, classes, setting.seed))


def signed_integrated_gradients(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return integrated gradients summed over the channels (N, H, W), which add up to what `scores.rises` gives."""
    return integrated_attributions(model, x, classes).sum(1)


def rectified_gradient(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the rectified gradient times the input, summed over the channels (N, H, W): signed.

    The paper takes the product with the input as the last step of its rule; the threshold that it may put on the
    result is a matter of drawing. See `backprop.rectified_scores`.
    """
    x = checked(model, x, classes)
    return (x * rectified_scores(model, x, classes)).sum(1)


_RELU = "a network whose only activation is ReLU"

METHODS = (
    Method(
        name="vanilla_gradient",
        title="Gradient (VBP)",
        family="gradient",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Simonyan et al., arXiv",
        year=2013,
        needs=("a gradient",),
        explain=simply(backpropagation),
    ),
    Method(
        name="guided_backpropagation",
        title="Guided backpropagation (GBP)",
        family="gradient",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Springenberg et al., arXiv",
        year=2014,
        needs=(_RELU,),
        explain=simply(guided_backpropagation),
    ),
    Method(
        name="smooth_grad",
        title="SmoothGrad",
        family="gradient",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Smilkov et al., arXiv",
        year=2017,
        needs=("a gradient",),
        explain=smooth_grad,
    ),
    Method(
        name="integrated_gradients",
        title="Integrated gradients",
        family="gradient",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Sundararajan et al., ICML",
        year=2017,
        needs=("a gradient",),
        explain=simply(signed_integrated_gradients),
        total=simply(rises),
    ),
    Method(
        name="rectified_gradient",
        title="Rectified gradient",
        family="gradient",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Kim et al., ICCV workshops",
        year=2019,
        needs=(_RELU,),
        explain=simply(rectified_gradient),
    ),
    Method(
        name="deconvolution",
        title="Deconvolution",
        family="rule-based",
        detail="fine-grained",
        class_specific=True,
        online=False,
        transparent=True,
        explains="neuron or layer",
        scope="local",
        paper="Zeiler and Fergus, ECCV",
        year=2013,
        needs=(_RELU,),
        explain=simply(deconvolution),
    ),
)
"""The survey's gradient methods (tables 1 and 3), and deconvolution, which it counts among the rules.

VBP and the next two are shown as sizes, as their papers show them; the signed sum has the methods that promise it.
"""
