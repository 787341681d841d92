"""Gaussian smoothing of images, as products with two matrices: along rows and along columns."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_weights(places: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """Return the weights (P, Q) with which values at centres make up a smooth value at each place.

    They are those of a Gaussian, and add up to 1 at each place: a constant stays what it is, up to the border.

    Args:
        places: Where values are wanted (P,), in pixels.
        centres: Where values are given (Q,), in pixels.
        sigma: Standard deviation of the Gaussian, > 0, in pixels.
    """
    return torch.softmax(-(places[:, None] - centres[None]).square() / (2 * sigma**2), 1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Return images (..., H, W) smoothed by a Gaussian of standard deviation sigma (pixels); of 0 as they are.

    At the border the weights of what lies outside are given to what lies inside.
    """
    if not sigma:
        return x
    rows, columns = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[-2:])
    return gaussian_weights(rows, rows, sigma) @ x @ gaussian_weights(columns, columns, sigma).T
