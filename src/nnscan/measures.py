"""Five ways to say how alike two images are, compared on class averages and their visualisations.

Wang Xinyuan, bachelor's thesis, ch. 2.3, describes them and chooses the cosine. Images are arrays (C, H, W) with values
in [-1, 1]. Where grey levels are needed, this range has 256; a grey image is the mean over the channels.

| measure | range | alike when |
| --- | --- | --- |
| cosine | -1 to 1 | large |
| Euclidean | 0 to 2 sqrt(C H W) | small |
| Hamming | 0 to 1 | small |
| histogram | 0 to 1 | small |
| perceptual hash | 0 to 1 | small |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

LEVELS = 256
"""Grey levels, as of an image with 8 bits."""

HASH_SIDE = 8
"""Side of the shrunken image of the perceptual hash."""

Image = NDArray[np.floating]
Array = NDArray[np.float64]


def cosine(first: Image, second: Image) -> float:
    """Return the cosine between two images, -1 to 1; 0 where either is zero (eq. 2-7)."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale else 0.0


def euclidean(first: Image, second: Image) -> float:
    """Return the Euclidean distance (eq. 2-6)."""
    return float(np.linalg.norm(first.astype(np.float64) - second.astype(np.float64)))


def levels(image: Image) -> NDArray[np.int64]:
    """Return the levels 0 to 255 of values from -1 to 1; values beyond count as the end."""
    return np.rint((np.clip(image, -1, 1) + 1) / 2 * (LEVELS - 1)).astype(np.int64)


def hamming(first: Image, second: Image) -> float:
    """Return the share of values whose levels differ: "only where pixels are the same is it 1"."""
    return float((levels(first) != levels(second)).mean())


def grey(image: Image) -> Array:
    """Return the mean over the channels (H, W)."""
    mean: Array = image.astype(np.float64).mean(0)
    return mean


def histogram(first: Image, second: Image) -> float:
    """Return half the sum of the differences of the relative frequencies of the grey levels: 1 if they share none."""
    counts = [
        np.bincount(levels(grey(image)).ravel(), minlength=LEVELS) / grey(image).size for image in (first, second)
    ]
    return float(np.abs(counts[0] - counts[1]).sum() / 2)


def hash_bits(image: Image) -> NDArray[np.bool_]:
    """Return the fingerprint (64,): the grey image shrunk to 8 x 8 by means, each compared with their mean."""
    shrunk = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grey(image))[None], HASH_SIDE)[0].numpy()
    bits: NDArray[np.bool_] = (shrunk > shrunk.mean()).ravel()
    return bits


def perceptual_hash(first: Image, second: Image) -> float:
    """Return the share of the bits of the fingerprints that differ."""
    return float((hash_bits(first) != hash_bits(second)).mean())


MEASURES: Mapping[str, Callable[[Image, Image], float]] = {
    "cosine": cosine,
    "Euclidean": euclidean,
    "Hamming": hamming,
    "histogram": histogram,
    "perceptual hash": perceptual_hash,
}
"""The measures by name. All but the cosine are distances."""


def likeness(measure: str, first: Image, second: Image) -> float:
    """Return how alike two images are by a measure: the larger, the more; a distance counts negative."""
    value = MEASURES[measure](first, second)
    return value if measure == "cosine" else -value


def _preferred(own: float, others: Array) -> float:
    """Return the share of the others that are less alike than one's own; equally alike ones count half."""
    return float(((own > others) + 0.5 * (own == others)).mean())


def compare(averages: Image, visualisations: Image, seed: int = 0) -> pd.DataFrame:
    """Compare the measures on class averages and their visualisations.

    A class average and the network's picture of it (the guided-backpropagation image of the class score) ought to be
    more alike than the average and the picture of another class, or one whose pixels are shuffled; and how bright an
    image is ought not to matter. Averages are divided by the largest size of any of them, visualisations, which have
    arbitrary units, each by its own.

    Args:
        averages: Class averages (n, C, H, W), as fed to the network, two classes at least.
        visualisations: The picture of each average's own class (n, C, H, W).
        seed: Seed of the shuffling.

    Returns:
        One row per measure and class: measure, class, value (of average and own visualisation, in the measure's units),
        over_other (share of the other classes' visualisations that are less alike than the own), over_shuffled
        (likewise, of ten shufflings of the own), darker_over_other (share of the other averages that are less alike to
        the average than the average itself at half brightness), brightness (change of the value when the visualisation
        has half the brightness, in units of the mean change when it is replaced by another class's; NaN where that
        changes nothing). Shares from 0 to 1, 0.5 for chance; ties count half.

    Source: Wang Xinyuan, bachelor's thesis, ch. 2.3.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(averages.shape[-2] * averages.shape[-1]) for _ in range(10)]
    pictures = averages / (np.abs(averages).max() or 1.0)
    sizes = np.abs(visualisations).max((1, 2, 3), keepdims=True)
    shown = visualisations / np.where(sizes > 0, sizes, 1)
    rows = []
    for measure in MEASURES:
        table = np.array([[likeness(measure, picture, image) for image in shown] for picture in pictures])
        between = np.array([[likeness(measure, picture, other) for other in pictures] for picture in pictures])
        for number, (picture, image) in enumerate(zip(pictures, shown, strict=True)):
            own, others = table[number, number], np.delete(table[number], number)
            flat = image.reshape(len(image), -1)
            shuffled = [likeness(measure, picture, flat[:, order].reshape(image.shape)) for order in orders]
            change = float(np.abs(others - own).mean())
            shift = abs(likeness(measure, picture, image / 2) - own)
            rows.append(
                {
                    "measure": measure,
                    "class": number,
                    "value": MEASURES[measure](picture, image),
                    "over_other": _preferred(own, others),
                    "over_shuffled": _preferred(own, np.array(shuffled)),
                    "darker_over_other": _preferred(
                        likeness(measure, picture, picture / 2), np.delete(between[number], number)
                    ),
                    "brightness": shift / change if change else np.nan,
                }
            )
    return pd.DataFrame(rows)
