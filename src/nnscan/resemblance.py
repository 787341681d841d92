"""How alike two maps of one input are: by the ranks of their pixels, by their structure, by their largest pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import Tensor

from nnscan.quantity import structural_similarity

TIES_SEED = 0
"""Seed of the order in which pixels of equal value come."""

PEAKS = 0.1
"""Share of a map's pixels that counts as its largest."""

UNDEFINED = "a map is constant"
"""Why an input has no correlation or no shared peaks."""

_ROUNDING = 32  # steps of the last digit
_SIGMA, _TRUNCATE = 1.5, 3.5  # of SSIM's window: 11 x 11 pixels

Values = NDArray[np.float64]


def ordered(maps: Tensor) -> Tensor:
    """Return each map's pixels (N, H W) from the largest value to the smallest, as positions in the flat map.

    Pixels of equal value come in an order drawn once, from a fixed seed and for all maps of this size, so that a map
    that is constant somewhere does not favour a side of the image.

    Args:
        maps: Raw maps (N, H, W), with their sign: what speaks against the class comes last.
    """
    flat = maps.flatten(1)
    drawn = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(TIES_SEED)).to(flat.device)
    return drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]


def constant(maps: Tensor) -> Tensor:
    """Return which maps (N, H, W) are constant (N,), up to the rounding of what they were computed from."""
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return high - low <= _ROUNDING * torch.finfo(maps.dtype).eps * torch.maximum(high, -low)


def _defined(values: Values, first: Tensor, second: Tensor) -> Values:
    """Return values, with NaN where one of the maps is constant and shows nothing."""
    return np.where((constant(first) | constant(second)).cpu().numpy(), np.nan, values)


def rank_correlation(first: Tensor, second: Tensor) -> Values:
    """Return Spearman's rank correlation (N,) of pairs of maps, from -1 to 1; pixels of equal value share their rank.

    Args:
        first: Maps (N, H, W). Give their sizes (`abs()`) to leave the sign out.
        second: Maps of the same inputs.

    Returns:
        The correlations; NaN where a map is constant.
    """
    ranks = [rankdata(maps.detach().cpu().double().flatten(1).numpy(), axis=1) for maps in (first, second)]
    left, right = (own - own.mean(1, keepdims=True) for own in ranks)
    sizes = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    return _defined((left * right).sum(1) / np.where(sizes > 0, sizes, 1), first, second)


def structure_correlation(first: Tensor, second: Tensor) -> Values:
    """Return the SSIM index (N,) of the sizes of pairs of maps, each divided by its largest, from -1 to 1.

    The mean over all pixels of the index in a Gaussian window (sigma 1.5, 11 x 11 pixels, mirrored at the border), with
    the usual constants for images in [0, 1].

    Args:
        first: Maps (N, H, W), whose sign is left out.
        second: Maps of the same inputs.

    Returns:
        The indices; NaN where a map is constant.

    Source: Wang et al., "Image Quality Assessment" (2004); Adebayo et al., "Sanity Checks for Saliency Maps" (2018).
    """

    def local(images: Values) -> Values:
        smooth: Values = gaussian_filter(images, (0, _SIGMA, _SIGMA), truncate=_TRUNCATE)
        return smooth

    def deviation(images: Values, mean: Values) -> Values:
        return np.sqrt(np.maximum(local(images**2) - mean**2, 0))

    sizes = [maps.detach().cpu().double().abs() for maps in (first, second)]
    left, right = (own.div(own.amax((1, 2), keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)) for own in sizes)
    one, other = left.numpy(), right.numpy()
    means = local(one), local(other)
    index = structural_similarity(
        *means, deviation(one, means[0]), deviation(other, means[1]), local(one * other) - means[0] * means[1]
    )
    return _defined(index.mean((1, 2)), first, second)


def shared_peaks(first: Tensor, second: Tensor, share: float = PEAKS) -> Values:
    """Return the share (N,) of the largest pixels of one map that are among the largest of the other, from 0 to 1.

    Args:
        first: Raw maps (N, H, W).
        second: Maps of the same inputs.
        share: Share of the pixels that counts as largest; at least one pixel. For ties see `ordered`.

    Returns:
        The shares; NaN where a map is constant.

    Source: Ghorbani et al., "Interpretation of Neural Networks Is Fragile" (2019), top-k intersection.
    """
    count = peak_count(first, share)
    peaks = []
    for maps in (first, second):
        order = ordered(maps)
        peaks.append(torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True))
    both = (peaks[0] & peaks[1]).sum(1).double() / count
    return _defined(both.cpu().numpy(), first, second)


def peak_count(maps: Tensor, share: float = PEAKS) -> int:
    """Return how many pixels of a map (N, H, W) are a share of them, at least one."""
    return max(1, round(share * maps.shape[-2] * maps.shape[-1]))
