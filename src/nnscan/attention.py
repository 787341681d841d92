"""Explanations that a network gives of itself: the masks of its own attention, read out of a forward pass.

Only a network that was built and trained with such modules (`gating`) has them: of the zoo `simple_cnn` and `alexnet`
with the option `attention`. Of several modules the last one that is called is read, behind the deepest feature maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nnscan.errors import ModelError
from nnscan.explanations import Method, simply
from nnscan.gating import Attention, ChannelAttention, ClassMasks, SpatialMask
from nnscan.models import capture, counted_calls, prepare
from nnscan.scores import BATCH, checked, drawn_up, own_scores

_OPTIONS: dict[type[nn.Module], Attention] = {ChannelAttention: "se", SpatialMask: "cbam", ClassMasks: "class"}


def _read_out(model: nn.Module, x: Tensor, kind: type[nn.Module]) -> Iterator[Tensor]:
    """Yield what the last module of a kind gives for each batch of inputs (n, ...).

    Raises:
        ModelError: The network has no such module, or does not use it.
    """
    prepared = prepare(model)
    names = [name for name, module in prepared.named_modules() if isinstance(module, kind)]
    for part in torch.split(x, BATCH):
        with torch.no_grad(), capture(prepared, names) as outputs, counted_calls(prepared, names) as calls:
            prepared(part.clone())
        if not calls:
            raise ModelError(
                f"the network's forward pass goes through no {kind.__name__} whose attention could be read; the zoo's "
                f"simple_cnn and alexnet have one when built and trained with the option attention: {_OPTIONS[kind]}"
            )
        yield outputs[calls[-1]]


def channel_attention(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the feature maps behind the last squeeze and excitation, summed: `sum_k s_k A_k` (N, H, W).

    The attention itself has a factor s_k for each map and none for places; the survey shows it by the maps that it has
    weighed (fig. 28). They are drawn up to the input's size, and not negative behind a ReLU. No class is asked for.

    Args:
        model: A network with `gating.ChannelAttention`; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input; the map does not depend on it.

    Raises:
        ModelError: The network has no such module, or no such class scores.
        ScanError: x or classes have another shape.

    Source: Hu et al., "Squeeze-and-Excitation Networks" (2018); Si Nianwen et al. 2022.
    """
    x = checked(model, x, classes)
    return drawn_up(torch.cat([weighed.sum(1) for weighed in _read_out(model, x, ChannelAttention)]), x)


def channel_spatial_attention(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the last mask of channel-spatial attention (N, H, W), in (0, 1), drawn up to the input's size.

    Args:
        model: A network with `gating.ChannelSpatialAttention`; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input; the map does not depend on it.

    Raises:
        ModelError: The network has no such module, or no such class scores.
        ScanError: x or classes have another shape.

    Source: Woo et al., "CBAM" (2018); Si Nianwen et al. 2022.
    """
    x = checked(model, x, classes)
    return drawn_up(torch.cat([mask[:, 0] for mask in _read_out(model, x, SpatialMask)]), x)


def class_attention(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the mask (N, H, W) by which the head weighs places for each input's class, drawn up to the input's size.

    At the size of the feature maps a mask adds up to 1.

    Args:
        model: A network with `gating.ClassAttention`; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: The network has no such module, or no such class scores, or masks of other classes than its scores.
        ScanError: x or classes have another shape.

    Source: see `gating.ClassAttention`; Si Nianwen et al. 2022.
    """
    x = checked(model, x, classes)
    masks = torch.cat(list(_read_out(model, x, ClassMasks)))
    if max(classes) >= masks.shape[1]:
        raise ModelError(
            f"the attention has masks for {masks.shape[1]} classes, but class {max(classes)} was asked for"
        )
    return drawn_up(own_scores(masks, classes), x)


METHODS = (
    Method(
        name="channel_attention",
        title="Channel attention (SE)",
        family="attention",
        detail="regional",
        class_specific=False,
        online=True,
        transparent=True,
        explains="attention",
        scope="local",
        paper="Hu et al., CVPR",
        year=2017,
        needs=("a network trained with squeeze and excitation (option attention: se)",),
        explain=simply(channel_attention),
    ),
    Method(
        name="channel_spatial_attention",
        title="Channel-spatial attention (CBAM)",
        family="attention",
        detail="regional",
        class_specific=False,
        online=True,
        transparent=True,
        explains="attention",
        scope="local",
        paper="Woo et al., ECCV",
        year=2018,
        needs=("a network trained with CBAM (option attention: cbam)",),
        explain=simply(channel_spatial_attention),
    ),
    Method(
        name="class_attention",
        title="Class attention",
        family="attention",
        detail="regional",
        class_specific=True,
        online=True,
        transparent=True,
        explains="attention",
        scope="local",
        paper="Girdhar and Ramanan, NeurIPS",
        year=2017,
        needs=("a network trained with class attention (option attention: class)",),
        explain=simply(class_attention),
    ),
)
"""The survey's attention as a mask (table 3)."""
