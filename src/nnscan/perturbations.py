"""Explanations by perturbation: what happens to a class when parts of the image are hidden.

Constants of the papers are for images of 224 x 224 pixels. Lengths are scaled with the side of the image; masks have
cells of no less than 2 to 4 pixels, because finer ones on small images find adversarial patterns instead of regions; a
weight of a sum over the cells of a mask is scaled so that the whole mask, or a border across it, costs what it costs in
the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnscan.errors import ModelError
from nnscan.explanations import Method, Setting, simply
from nnscan.models import logits, prepare
from nnscan.scores import BATCH, followed, own_scores, ready
from nnscan.smoothing import blurred, gaussian_weights

# Side of images in the papers that give lengths in pixels.
_PAPER_SIDE = 224
_TINY = 1e-6  # of a probability

WINDOW = 1 / 8
"""Side of the gray square of simple occlusion, as a share of the image's; it moves by half of itself."""

RISE_MASKS = 2000
"""Random masks of RISE; the paper takes 4000 (VGG) and 8000 (ResNet) for 224 x 224 pixels."""
RISE_GRID, RISE_KEPT = 7, 0.5
"""Cells along a side of RISE's grid, and the probability that a cell is shown; as in the paper."""

LEVELS = 8
"""Images of growing blur between which a mask interpolates."""

MEANINGFUL_STEPS, MEANINGFUL_RATE = 300, 0.1
MEANINGFUL_AREA = 1e-4 * 28**2
"""Cost of hiding the whole image: the paper's 1e-4 for each of 28 x 28 cells."""
MEANINGFUL_VARIATION, MEANINGFUL_POWER = 1e-2 * 28, 3
"""Cost of a sharp border across the whole mask, and the power beta of the differences of neighbouring cells."""
MEANINGFUL_CELL, MEANINGFUL_MOST = 4, 28
"""Smallest side of a cell in pixels (8 in the paper), and most cells along a side (as in the paper)."""
MEANINGFUL_SMOOTH = 5 / 8
"""Standard deviation of the Gaussian that draws the mask up to the image, in cells."""
MEANINGFUL_JITTER = 4 / _PAPER_SIDE
MEANINGFUL_BLUR = 1 / 8
"""Standard deviation of the strongest blur, as a share of the side. The paper's 10 / 224 leaves digits of 32 pixels
readable, and so does not hide anything."""
MEANINGFUL_DROP, MEANINGFUL_DISCS = 0.99, 12
"""Share of the possible drop of probability that the disc must cause at which the mask starts; discs that are tried."""

EXTREMAL_AREAS = (0.025, 0.05, 0.1, 0.2)
"""Shares of the image that masks may keep; the maps of the four are added up, as in the paper's pointing game."""
EXTREMAL_STEPS, EXTREMAL_RATE, EXTREMAL_MOMENTUM = 200, 0.01, 0.9
EXTREMAL_START = 0.5
EXTREMAL_WEIGHT, EXTREMAL_GROWTH = 300.0, 1.0035**4
"""Weight of the area at the first step, and its growth with each: 300 and 1.0035 in the authors' 800 steps."""
EXTREMAL_CELLS, EXTREMAL_SMOOTH = 16, 21 / _PAPER_SIDE
"""Cells along a side of the mask's parameters (32 in the authors' code: cells of 7 pixels), and the radius of the
kernel as a share of the side."""
EXTREMAL_COLDNESS = 20.0
EXTREMAL_BLUR = 1 / 8
EXTREMAL_FILTER = 0.09
"""Standard deviation of the Gaussian filter on the sum of masks, as a share of the side; it breaks ties."""

INFILLING_STEPS, INFILLING_RATE, INFILLING_SAMPLES = 100, 0.1, 4
INFILLING_TEMPERATURE = 0.1
INFILLING_AREA = 1e-3 * _PAPER_SIDE**2
"""Cost of showing the whole image: the paper's 1e-3 for each of 224 x 224 pixels."""
INFILLING_CELL, INFILLING_MOST = 2, 56
"""Smallest side of a cell in pixels (4 in the paper), and most cells along a side (as in the paper)."""


def _parts(x: Tensor, classes: Sequence[int], copies: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield inputs and their classes, so few that they with all their copies are at most BATCH."""
    size = max(1, BATCH // copies)
    for start in range(0, len(x), size):
        yield x[start : start + size], list(classes[start : start + size])


def _cells(x: Tensor, smallest: int, most: int) -> tuple[int, int]:
    """Return the number of cells of a mask along the image's height and width; at least four."""
    height, width = (min(most, max(4, int(side) // smallest)) for side in x.shape[-2:])
    return height, width


def _probabilities(prepared: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the softmax probability (n,) of each input's class."""
    return own_scores(logits(prepared(x.clone())).softmax(1), classes)


def _log_odds(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the logarithm (n,) of the odds of each input's class, log p - log (1 - p)."""
    own = functional.one_hot(torch.tensor(classes, device=scores.device), scores.shape[1]).bool()
    return own_scores(scores, classes) - scores.masked_fill(own, -math.inf).logsumexp(1)


# Occlusion and RISE ---------------------------------------------------------------------------------------------------


def occlusion(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return by how much the class score falls (N, H, W) when a gray square hides a place; signed, by Captum.

    A pixel gets the mean over the squares that cover it. The square's side is `WINDOW` of the image's, it moves by half
    of its side. Gray is the mean of each channel of the very image, so that maps do not depend on whether inputs are
    standardised, and a uniform image has the map zero.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Returns:
        Maps in units of the class score.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2; the paper
    maps the class probability, which hardly moves where a network is sure. Si et al. 2022, table 3.
    """
    from captum.attr import Occlusion  # takes half a second, which jobs of other methods need not wait

    x, prepared = ready(model, x, classes)
    method = Occlusion(lambda inputs: logits(prepared(inputs.clone())))
    window = [min(int(side), max(2, round(WINDOW * side))) for side in x.shape[2:]]
    parts = []
    for part, own in _parts(x, classes, 1):
        gray = part.mean((2, 3), keepdim=True).expand_as(part)
        found = method.attribute(
            part,
            sliding_window_shapes=(part.shape[1], *window),
            strides=(1, *(max(1, side // 2) for side in window)),
            baselines=gray,
            target=torch.tensor(own, device=x.device),
            perturbations_per_eval=max(1, BATCH // len(part)),
        )
        parts.append(found[:, 0].to(x.dtype))  # the square covers all channels alike
    return torch.cat(parts)


def _rise_masks(cells: Tensor, shifts: Tensor, x: Tensor) -> Tensor:
    """Return masks (n, 1, H, W) in [0, 1]: grids of cells (n, s, s), drawn up bilinearly and shifted.

    Args:
        cells: 1 where a cell is shown, else 0.
        shifts: Shift of each grid (n, 2) as a share of a cell, in [0, 1).
        x: An image; its size and type are taken.
    """
    sides = [math.ceil(side / cells.shape[-1]) for side in x.shape[-2:]]
    size = [side * (cells.shape[-1] + 1) for side in sides]
    large = functional.interpolate(cells[:, None].to(x), size, mode="bilinear", align_corners=False)
    height, width = x.shape[-2:]
    starts = (shifts * torch.tensor(sides, dtype=shifts.dtype)).long().tolist()
    return torch.stack(
        [
            mask[:, row : row + height, column : column + width]
            for mask, (row, column) in zip(large, starts, strict=True)
        ]
    )


def rise(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return RISE's maps (N, H, W): the mean of random masks, weighted by the class probability of what they show.

    `S(u) = 1 / (n p) sum_i f(x * M_i) M_i(u)` over n = `RISE_MASKS` masks is an unbiased estimate of the expected
    probability given that the pixel is shown, since each M(u) has the mean p. Hidden pixels are zero as fed to the
    network, as the paper's formula says: the mean color where inputs are standardised, black where they lie in [0, 1].

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its seed draws the masks, which are the same for each input.

    Returns:
        Maps >= 0, in units of the probability.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models" (2018), eq. 6; Si et
    al. 2022, fig. 6.
    """
    x, prepared = ready(model, x, classes)
    generator = torch.Generator().manual_seed(setting.seed)
    cells = torch.rand((RISE_MASKS, RISE_GRID, RISE_GRID), generator=generator) < RISE_KEPT
    shifts = torch.rand((RISE_MASKS, 2), dtype=torch.float64, generator=generator)
    maps = torch.zeros_like(x[:, 0])
    with torch.no_grad():
        for some, moved in zip(torch.split(cells, BATCH), torch.split(shifts, BATCH), strict=True):
            masks = _rise_masks(some, moved, x)
            for one, label, found in zip(x, classes, maps, strict=True):
                values = _probabilities(prepared, one * masks, [label] * len(masks))
                found += (values[:, None, None] * masks[:, 0]).sum(0)
    return maps / (RISE_MASKS * RISE_KEPT)


# Masks that are learned -----------------------------------------------------------------------------------------------


def pyramid(x: Tensor, sigma: float) -> Tensor:
    """Return images (N, `LEVELS`, C, H, W) of growing blur: as they are first, blurred by sigma pixels last."""
    return torch.stack([blurred(x, sigma * level / (LEVELS - 1)) for level in range(LEVELS)], 1)


def faded(levels: Tensor, kept: Tensor) -> Tensor:
    """Return images (N, C, H, W), each pixel as sharp as a mask says, linear between two levels of a `pyramid`.

    Args:
        levels: Pyramids (N, L, C, H, W).
        kept: Masks (N, 1, H, W) in [0, 1]: 1 for a pixel as it is, 0 for the strongest blur.
    """
    places = torch.arange(levels.shape[1], dtype=levels.dtype, device=levels.device)
    level = (1 - kept) * (levels.shape[1] - 1)
    # the level below is found without a gradient, so that the slope is that of the piece also where two pieces meet
    below = level.detach().floor().clamp(0, levels.shape[1] - 2)
    offset = places[None, :, None, None] - below
    weights = torch.where(offset == 0, 1 - (level - below), torch.where(offset == 1, level - below, 0.0))
    return (levels * weights[:, :, None]).sum(1)


def _enlargement(cells: Sequence[int], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what draws masks of cells (n, 1, g, g') up to the image's size (n, 1, H, W) by a Gaussian."""
    matrices = []
    for count, side in zip(cells, x.shape[-2:], strict=True):
        centres = (torch.arange(count, dtype=x.dtype, device=x.device) + 0.5) * side / count - 0.5
        pixels = torch.arange(side, dtype=x.dtype, device=x.device)
        matrices.append(gaussian_weights(pixels, centres, MEANINGFUL_SMOOTH * side / count))
    rows, columns = matrices
    return lambda mask: rows @ mask @ columns.T


def _discs(prepared: nn.Module, levels: Tensor, classes: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Return the masks (n, 1, g, g') at which meaningful perturbation starts: the smallest disc that hides the class.

    It lies in the middle of the image and lowers the probability of the class by `MEANINGFUL_DROP` of what hiding the
    whole image does.
    """
    enlarged = _enlargement(cells, levels)
    offsets = [(torch.arange(count, dtype=levels.dtype, device=levels.device) + 0.5) / count - 0.5 for count in cells]
    distance = (offsets[0].square()[:, None] + offsets[1].square()[None]).sqrt()
    radii = torch.linspace(0, math.sqrt(0.5), MEANINGFUL_DISCS, dtype=levels.dtype, device=levels.device)
    discs = (distance >= radii[:, None, None]).to(levels)[:, None]
    discs[-1] = 0
    with torch.no_grad():
        shown = enlarged(discs)
        values = torch.stack(
            [_probabilities(prepared, faded(levels, one.expand(len(levels), 1, -1, -1)), classes) for one in shown]
        )
    # where blur changes nothing, rounding must not decide
    hides = values[0] - values >= MEANINGFUL_DROP * (values[0] - values[-1]) - _TINY
    return discs[hides.int().argmax(0)].clone()


@torch.inference_mode(False)
def meaningful_perturbation(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return which places (N, H, W) must be blurred for the class to disappear: 1 - m, in [0, 1].

    The mask m, 1 where the image stays as it is, is learned for each image by Adam:
    `min_m l1 mean (1 - m) + l2 sum |dm|^beta + E_t p_c(blur(x(. - t), m))`, with the class probability p_c and a jitter
    t of the image below the mask. It starts at the smallest disc in the middle that hides the class. Constants are the
    paper's, scaled to the image (see this module and the constants above).

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its seed draws the jitter.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Fong and Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation" (2017), eq. 6 and
    section 4.3; Si et al. 2022, fig. 5.
    """
    x, prepared = ready(model, x, classes)
    cells, side = _cells(x, MEANINGFUL_CELL, MEANINGFUL_MOST), min(x.shape[2:])
    enlarged, reach = _enlargement(cells, x), round(MEANINGFUL_JITTER * side)
    generator = torch.Generator().manual_seed(setting.seed)
    moves = torch.randint(0, 2 * reach + 1, (MEANINGFUL_STEPS, 2), generator=generator).tolist()
    height, width = x.shape[2:]
    parts = []
    for part, own in _parts(x, classes, 1):
        levels = pyramid(part, MEANINGFUL_BLUR * side)
        wide = functional.pad(levels.flatten(0, 1), (reach,) * 4, mode="replicate")
        wide = wide.reshape(*levels.shape[:2], *wide.shape[1:])
        mask = _discs(prepared, levels, own, cells).requires_grad_(True)
        optimizer = torch.optim.Adam([mask], MEANINGFUL_RATE)
        for row, column in moves:
            with torch.enable_grad():
                moved = wide[..., row : row + height, column : column + width]
                area = MEANINGFUL_AREA * (1 - mask).mean((1, 2, 3))
                differences = (mask.diff(dim=axis).abs().pow(MEANINGFUL_POWER).sum((1, 2, 3)) for axis in (2, 3))
                variation = MEANINGFUL_VARIATION * sum(
                    found / count for found, count in zip(differences, reversed(cells), strict=True)
                )
                loss = area + variation + followed(_probabilities(prepared, faded(moved, enlarged(mask)), own))
                (mask.grad,) = torch.autograd.grad(loss.sum(), mask)
            optimizer.step()
            mask.data.clamp_(0, 1)
        parts.append(enlarged(1 - mask.detach())[:, 0])
    return torch.cat(parts)


def _smooth_masks(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the smooth max-convolution: parameters (n, 1, g, g') in [0, 1] to masks (n, 1, H, W).

    `m(u) = smax_v k(|u - v| / sigma) p(v)` over cells v, with k(z) = exp(-2 max(z - 1/2, 0)^2) and smax the mean that
    is weighted by exp(20 .). Cells further away than two sigma, where k is below 0.012, are left out.
    """
    step = max(1, math.ceil(max(x.shape[-2:]) / EXTREMAL_CELLS))
    sigma = EXTREMAL_SMOOTH * min(x.shape[-2:])
    reach = math.ceil(2 * sigma / step)
    centre = (step - 1) / 2
    inside = torch.arange(step, dtype=x.dtype, device=x.device) - centre
    around = step * torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    squares = (inside[:, None] - around[None]).square()  # (place in the cell, neighbour)
    distance = (squares.T[:, None, :, None] + squares.T[None, :, None, :]).sqrt().reshape(len(around) ** 2, step**2)
    kernel = torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0).square())[None, :, :, None]
    height, width = x.shape[-2:]

    def masks(parameters: Tensor) -> Tensor:
        # cells beyond the border are as those at it: of a uniform mask no place stands out
        wide = functional.pad(parameters, (reach,) * 4, mode="replicate")
        neighbours = functional.unfold(wide, 2 * reach + 1)
        values = kernel * neighbours[:, :, None]
        smooth = (values * torch.softmax(EXTREMAL_COLDNESS * values, 1)).sum(1)
        folded = functional.pixel_shuffle(smooth.reshape(*smooth.shape[:2], *parameters.shape[-2:]), step)
        return folded[..., :height, :width]

    return masks


def area_loss(masks: Tensor, areas: Tensor) -> Tensor:
    """Return how far masks (n, 1, H, W) are from being 1 on a share of the image and 0 elsewhere (n,).

    It is the mean squared difference of the sorted pixels from a vector of zeros and then ones.

    Args:
        masks: Masks in [0, 1].
        areas: The share of each (n,).

    Source: Fong et al. 2019, eq. 3.
    """
    pixels = masks.flatten(1).sort(1).values
    places = torch.arange(pixels.shape[1], dtype=masks.dtype, device=masks.device)
    target = (places[None] >= ((1 - areas) * pixels.shape[1]).floor()[:, None]).to(masks)
    return (pixels - target).square().mean(1)


@torch.inference_mode(False)
def extremal_masks(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the masks (N, A, H, W) in [0, 1] that keep most of the class score on a share of the image.

    `max_m S_c(blur(x, m)) - w_t R_a(m)` over smooth masks, for each area of `EXTREMAL_AREAS`, by gradient descent with
    momentum. The weight w_t grows with the steps. The authors' flips of the image are left out: digits are not what
    they were when they are mirrored. They compute masks with a margin outside the image; ours end with it.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Fong, Patrick, Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks" (2019),
    sections 3.1 to 3.3; constants from the authors' code.
    """
    x, prepared = ready(model, x, classes)
    smooth = _smooth_masks(x)
    step = max(1, math.ceil(max(x.shape[2:]) / EXTREMAL_CELLS))
    cells = [math.ceil(side / step) for side in x.shape[2:]]
    parts = []
    for part, own in _parts(x, classes, len(EXTREMAL_AREAS)):
        labels = [label for label in own for _ in EXTREMAL_AREAS]
        levels = pyramid(part, EXTREMAL_BLUR * min(x.shape[2:])).repeat_interleave(len(EXTREMAL_AREAS), 0)
        areas = part.new_tensor(EXTREMAL_AREAS).repeat(len(part))
        parameters = part.new_full((len(labels), 1, *cells), EXTREMAL_START).requires_grad_(True)
        optimizer = torch.optim.SGD([parameters], EXTREMAL_RATE, EXTREMAL_MOMENTUM, dampening=EXTREMAL_MOMENTUM)
        for number in range(EXTREMAL_STEPS):
            with torch.enable_grad():
                masks = smooth(parameters)
                scores = own_scores(followed(logits(prepared(faded(levels, masks)))), labels)
                # a uniform mask has no order by which pixels could be sorted: the first step is the score's alone
                weight = EXTREMAL_WEIGHT * EXTREMAL_GROWTH**number if number else 0.0
                loss = weight * area_loss(masks, areas) - scores
                (parameters.grad,) = torch.autograd.grad(loss.sum(), parameters)
            optimizer.step()
            parameters.data.clamp_(0, 1)
        parts.append(smooth(parameters.detach()).reshape(len(part), -1, *x.shape[2:]))
    return torch.cat(parts)


def extremal_perturbation(model: nn.Module, x: Tensor, classes: Sequence[int]) -> Tensor:
    """Return maps (N, H, W): the sum of the masks of all areas, smoothed by a Gaussian; in [0, number of areas].

    See `extremal_masks`, also for arguments and errors. Source: Fong et al. 2019, section 4.1 (pointing game).
    """
    masks = extremal_masks(model, x, classes)
    return blurred(masks.sum(1), EXTREMAL_FILTER * min(x.shape[2:]))


@torch.inference_mode(False)
def generative_infilling(model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return with which probability (N, H, W) a pixel must be shown so that the rest, filled in, keeps the class.

    FIDO's smallest sufficient region: `max_q E_z [log odds of c for z x + (1 - z) g(x, z)] - l sum_u q(u)`, where z
    shows each pixel with its probability q and the generative network g fills what is hidden. z is drawn from the
    concrete relaxation, g gets it rounded and is not differentiated, as in the authors' code. Since g gives shown
    pixels as they are, z > 1/2 would have no gradient; what is mixed is therefore min(2 z, 1) of x.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        setting: Its infiller is g (see `infilling.load_infiller`), its seed draws z, the same for each input.

    Raises:
        ModelError: There is no infiller, or it gives images of another shape; the network has no such class scores, or
            only one.
        ScanError: x or classes have another shape.

    Source: Chang et al., "Explaining Image Classifiers by Counterfactual Generation" (2019), section 3; the same idea
    with other maps: Agarwal and Nguyen 2020. Si et al. 2022, fig. 7.
    """
    x, prepared = ready(model, x, classes)
    if setting.infiller is None:
        raise ModelError(
            "generative infilling needs a network that fills hidden pixels, and the setting has no infiller; train one "
            "with infilling.train_infiller"
        )
    infiller = prepare(setting.infiller).to(x.device, x.dtype)
    generator = torch.Generator().manual_seed(setting.seed)
    size, cells = (int(x.shape[2]), int(x.shape[3])), _cells(x, INFILLING_CELL, INFILLING_MOST)
    draws = [torch.rand((INFILLING_SAMPLES, 1, *size), generator=generator) for _ in range(INFILLING_STEPS)]
    parts = []
    for part, own in _parts(x, classes, INFILLING_SAMPLES):
        labels = [label for label in own for _ in range(INFILLING_SAMPLES)]
        copies = part.repeat_interleave(INFILLING_SAMPLES, 0)
        weights = part.new_zeros(len(part), 1, *cells).requires_grad_(True)
        optimizer = torch.optim.Adam([weights], INFILLING_RATE)
        for draw in draws:
            noise = torch.logit(draw.to(part), 1e-6).repeat(len(part), 1, 1, 1)
            with torch.enable_grad():
                shown = functional.interpolate(weights.sigmoid(), size, mode="bilinear", align_corners=False)
                odds = torch.logit(shown, 1e-6).repeat_interleave(INFILLING_SAMPLES, 0)
                kept = ((odds + noise) / INFILLING_TEMPERATURE).sigmoid()
                filled = _filled(infiller, copies, (kept.detach() > 0.5).to(kept))
                # the infiller gives shown pixels as they are, from one half on: there the whole image must be reached
                share = (2 * kept).clamp(max=1)
                scores = followed(logits(prepared(share * copies + (1 - share) * filled)))
                if scores.shape[1] < 2:
                    raise ModelError("generative infilling explains the odds of a class, and this network has only one")
                gain = _log_odds(scores, labels).reshape(len(part), -1).mean(1)
                loss = INFILLING_AREA * shown.mean((1, 2, 3)) - gain
                (weights.grad,) = torch.autograd.grad(loss.sum(), weights)
            optimizer.step()
        found = functional.interpolate(weights.detach().sigmoid(), size, mode="bilinear", align_corners=False)
        parts.append(found[:, 0])
    return torch.cat(parts)


def _filled(infiller: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    """Return images whose hidden pixels a network has filled.

    Raises:
        ModelError: It gives something else.
    """
    with torch.no_grad():
        filled = infiller(x.clone(), kept)
    if not isinstance(filled, Tensor) or filled.shape != x.shape:
        found = tuple(filled.shape) if isinstance(filled, Tensor) else type(filled).__name__
        raise ModelError(f"the infiller returned {found} for images {tuple(x.shape)}; it belongs to other data")
    return filled


METHODS = (
    Method(
        name="occlusion",
        title="Occlusion",
        family="perturbation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=False,
        explains="class score",
        scope="local",
        paper="Zeiler and Fergus, ECCV",
        year=2014,
        explain=simply(occlusion),
    ),
    Method(
        name="rise",
        title="RISE",
        family="perturbation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=False,
        explains="class probability",
        scope="local",
        paper="Petsiuk et al., BMVC",
        year=2018,
        explain=rise,
    ),
    Method(
        name="meaningful_perturbation",
        title="Meaningful perturbation",
        family="perturbation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class probability",
        scope="local",
        paper="Fong and Vedaldi, ICCV",
        year=2017,
        needs=("a gradient",),
        explain=meaningful_perturbation,
    ),
    Method(
        name="extremal_perturbation",
        title="Extremal perturbation",
        family="perturbation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="class score",
        scope="local",
        paper="Fong et al., ICCV",
        year=2019,
        needs=("a gradient",),
        explain=simply(extremal_perturbation),
    ),
    Method(
        name="generative_infilling",
        title="Generative infilling (FIDO)",
        family="perturbation",
        detail="regional",
        class_specific=True,
        online=False,
        transparent=True,
        explains="log-odds of the class",
        scope="local",
        paper="Chang et al., ICLR",
        year=2019,
        needs=("a gradient", "a network that fills hidden pixels", "two classes or more"),
        explain=generative_infilling,
    ),
)
"""The survey's methods of perturbation (Si et al. 2022, table 3)."""
