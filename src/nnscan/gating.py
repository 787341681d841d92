"""Attention inside a network: modules that weigh feature maps by factors which they compute from these very maps.

They are trained with the network, by its own loss. `attention` reads their masks out as explanations.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Attention = Literal["se", "cbam", "class"]
"""What a network of the zoo may be built with: channel, channel-spatial or class attention."""

REDUCTION, NARROWEST = 16, 4
"""Channels for each hidden unit that channel factors are computed with (both papers), and how few of these may be."""

KERNEL = 7
"""Side of the filter of spatial attention (Woo et al. 2018, ch. 3)."""


def _bottleneck(channels: int) -> nn.Sequential:
    """Return the two layers that turn what stands for each channel into its factor before the sigmoid.

    Narrow networks get more hidden units than one in 16, which would be a single one.
    """
    hidden = max(NARROWEST, channels // REDUCTION)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


class ChannelAttention(nn.Module):
    """Squeeze and excitation: each map is multiplied by a factor in (0, 1) that comes from the means of all maps.

    Args:
        channels: Number of maps K.

    Source: Hu et al., "Squeeze-and-Excitation Networks" (2018), eq. 2 to 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excitation = _bottleneck(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed maps (N, K, h, w) of maps (N, K, h, w)."""
        factors: Tensor = self.excitation(x.mean((2, 3))).sigmoid()
        return x * factors[:, :, None, None]


class SpatialMask(nn.Module):
    """The factor in (0, 1) of each place, from the mean and the largest of the maps there.

    Its filter is no module of its own: it holds no features, and must not be scanned as the network's last layer.

    Source: Woo et al., "CBAM" (2018), eq. 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 2, KERNEL, KERNEL))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filter anew, as a convolution of torch draws its own."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask (N, 1, h, w) of maps (N, K, h, w)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return nn.functional.conv2d(pooled, self.weight, padding=KERNEL // 2).sigmoid()


class ChannelSpatialAttention(nn.Module):
    """CBAM: factors of the channels, from means and maxima of the maps, and then factors of the places.

    Args:
        channels: Number of maps K.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module" (2018), eq. 1 to 3; without its normalisation
    behind the spatial filter, which the paper's equations do not have.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excitation = _bottleneck(channels)
        self.spatial = SpatialMask()

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed maps (N, K, h, w) of maps (N, K, h, w)."""
        factors: Tensor = (self.excitation(x.mean((2, 3))) + self.excitation(x.amax((2, 3)))).sigmoid()
        weighed = x * factors[:, :, None, None]
        masked: Tensor = weighed * self.spatial(weighed)
        return masked


class ClassMasks(nn.Module):
    """How each class spreads its attention over the places: a softmax of the maps' products with the class's query.

    Args:
        channels: Number of maps K.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.queries = nn.Linear(channels, classes, bias=False)  # the same for all places, a bias would change nothing

    def forward(self, x: Tensor) -> Tensor:
        """Return masks (N, classes, h, w), each of which adds up to 1, of maps (N, K, h, w)."""
        agreement: Tensor = self.queries(x.flatten(2).mT) / math.sqrt(x.shape[1])
        return agreement.softmax(1).mT.reshape(len(x), -1, *x.shape[2:])


class ClassAttention(nn.Module):
    """A head that looks for each class at places of its own: `score_c = sum_p a_cp (v_c . A_p) + b_c`.

    A_p are the values of all feature maps at the place p, a_c the mask of the class (`ClassMasks`). It is attentional
    pooling with a query for each class, which the plain loss of the scores trains. The attention branch of Fukui et al.
    2019, which the survey names, makes masks of classes too, but learns them by a loss of its own, and the mask that it
    lays over the network is one for all classes.

    Args:
        channels: Number of maps K.
        classes: Number of classes.

    Source: Girdhar and Ramanan, "Attentional Pooling for Action Recognition" (2017), ch. 3, with the softmax of Vaswani
    et al. 2017 over the places.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.masks = ClassMasks(channels, classes)
        self.evidence = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (N, classes) of maps (N, K, h, w)."""
        found: Tensor = self.evidence(x.flatten(2).mT)
        masks: Tensor = self.masks(x)
        return (masks.flatten(2).mT * found).sum(1)


GATES: dict[str, type[ChannelAttention] | type[ChannelSpatialAttention]] = {
    "se": ChannelAttention,
    "cbam": ChannelSpatialAttention,
}
"""The kinds of attention that weigh maps inside a network, by their option."""
