"""nnscan.measures: each measure by hand, and what the comparison says of pictures whose answer is known."""

import math

import numpy as np
import pytest

from nnscan.measures import MEASURES, compare, cosine, euclidean, hamming, hash_bits, histogram, levels, perceptual_hash
from nnscan.similarities import cosine as tensor_cosine


def image(seed=0, channels=3, size=16):
    return np.random.default_rng(seed).uniform(-1, 1, (channels, size, size))


def test_cosine_is_that_of_the_similarity_values():
    import torch

    first, second = image(0), image(1)
    expected = tensor_cosine(torch.from_numpy(first)[None], torch.from_numpy(second)[None, None])
    assert cosine(first, second) == pytest.approx(float(expected))
    assert cosine(first, 3 * first) == pytest.approx(1)
    assert cosine(first, -first) == pytest.approx(-1)
    assert cosine(first, np.zeros_like(first)) == 0


def test_euclidean():
    first = np.zeros((1, 2, 2))
    assert euclidean(first, np.array([[[3.0, 0], [0, 4]]])) == 5
    assert euclidean(-np.ones((3, 4, 5)), np.ones((3, 4, 5))) == pytest.approx(2 * math.sqrt(60))


def test_levels():
    assert levels(np.array([-2, -1, 0.0, 1, 5])).tolist() == [0, 0, 128, 255, 255]
    assert len(np.unique(levels(np.linspace(-1, 1, 10_000)))) == 256


def test_hamming_counts_values_of_another_level():
    first = image()
    second = first.copy()
    second[0, :2] = -first[0, :2]
    assert hamming(first, second) == pytest.approx(2 * 16 / first.size, abs=1 / first.size)
    assert hamming(first, first + 1e-9) <= 1 / first.size
    assert hamming(first, first) == 0
    assert hamming(first, np.roll(first, 1)) > 0.9


def test_histogram_ignores_places():
    first = image(channels=1)
    assert histogram(first, first[:, ::-1, ::-1]) == 0
    assert histogram(np.full((1, 4, 4), -1.0), np.full((1, 4, 4), 1.0)) == 1
    half = np.full((1, 4, 4), -1.0)
    half[:, 2:] = 1
    assert histogram(half, np.full((1, 4, 4), 1.0)) == 0.5
    colored = np.stack([np.full((4, 4), value) for value in (-0.6, 0.0, 0.6)])  # gray on average
    assert histogram(colored, np.zeros((3, 4, 4))) == 0


def test_perceptual_hash_compares_the_shrunken_image_with_its_mean():
    blocks = np.random.default_rng(1).permutation(64).reshape(8, 8) / 64
    fine = np.kron(blocks, np.ones((2, 2)))[None]
    assert hash_bits(fine).tolist() == (blocks > blocks.mean()).ravel().tolist()
    noise = np.tile([[0.01, -0.01], [-0.01, 0.01]], (8, 8))
    assert perceptual_hash(fine, fine / 2 + 0.1 + noise) == 0
    assert perceptual_hash(fine, -fine) == 1
    flipped = blocks.copy()
    high, low = np.unravel_index([blocks.argmax(), blocks.argmin()], blocks.shape)
    flipped[high[0], low[0]], flipped[high[1], low[1]] = blocks.min(), blocks.max()
    assert perceptual_hash(fine, np.kron(flipped, np.ones((2, 2)))[None]) == 2 / 64


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_are_symmetric_and_end_where_images_are_equal(measure):
    first, second = image(0), image(1)
    assert MEASURES[measure](first, second) == pytest.approx(MEASURES[measure](second, first))
    assert MEASURES[measure](first, first) == pytest.approx(1 if measure == "cosine" else 0)


def shapes(classes=4, size=16):
    """Averages with a bar each, at another place, on black, and as pictures the same bars in other units."""
    averages = np.zeros((classes, 1, size, size), np.float32)
    for number in range(classes):
        averages[number, 0, :, 4 * number : 4 * number + 3] = 0.8
    return averages, 250 * averages


def test_pictures_of_the_averages_themselves():
    frame = compare(*shapes()).groupby("measure")
    means = frame[["over_other", "over_shuffled", "darker_over_other", "brightness"]].mean()
    assert means.loc["cosine"].tolist() == [1, 1, 1, 0]
    assert means.loc["perceptual hash"].tolist() == [1, 1, 1, 0]
    assert means.loc["histogram", "over_other"] == 0.5  # the bars have the same grey levels
    assert means.loc["histogram", "over_shuffled"] == 0.5
    assert means.loc["histogram", "darker_over_other"] == 0
    assert np.isnan(means.loc["histogram", "brightness"])  # another class changes nothing
    # |a - a / 2| = |a| / 2 against |a - b| = sqrt(2) |a|
    assert means.loc["Euclidean", "over_other"] == means.loc["Euclidean", "darker_over_other"] == 1
    assert means.loc["Euclidean", "brightness"] == pytest.approx(0.5 / math.sqrt(2), rel=1e-6)
    assert means.loc["Hamming", "brightness"] == pytest.approx(0.5)  # 3 of 6 columns


def test_a_measure_that_is_fooled_by_brightness():
    averages, pictures = shapes()
    averages[1:] *= 0.05  # so dark that half of the first is nearer to them than to itself
    frame = compare(averages, pictures).set_index(["measure", "class"])
    assert frame.loc[("Euclidean", 0), "darker_over_other"] == 1
    assert frame.loc[("Euclidean", 0), "value"] == pytest.approx(0)
    assert frame.loc[("Euclidean", 1), "value"] == pytest.approx(0.95 * math.sqrt(48), rel=1e-6)
    assert frame.loc["cosine"]["value"].tolist() == pytest.approx([1] * 4)
    assert frame.loc["Euclidean"]["over_other"].tolist() == [1] * 4


def test_wrong_pictures_are_seen():
    averages, pictures = shapes()
    frame = compare(averages, np.roll(pictures, 1, axis=0)).groupby("measure")["over_other"].mean()
    assert frame["cosine"] == pytest.approx(1 / 3)  # one of the three others is right, the other two tie
    assert frame["histogram"] == 0.5


def test_equal_seeds_shuffle_alike_and_blank_pictures_do_no_harm():
    averages, pictures = shapes()
    pictures[2] = 0
    first, second = compare(averages, pictures, seed=3), compare(averages, pictures, seed=3)
    assert first.equals(second)
    assert list(first.columns) == [
        "measure", "class", "value", "over_other", "over_shuffled", "darker_over_other", "brightness",
    ]  # fmt: skip
    assert first[["over_other", "over_shuffled", "darker_over_other"]].stack().between(0, 1).all()
