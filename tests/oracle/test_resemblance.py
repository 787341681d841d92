"""How alike maps are: by hand and against SciPy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nnscan.resemblance import ordered, rank_correlation, shared_peaks, structure_correlation
from twins import noise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_order_is_that_of_the_values_and_ties_favour_no_side():
    maps = torch.tensor([[[0.0, 3.0], [-5.0, 1.0]]])
    assert ordered(maps).tolist() == [[1, 3, 0, 2]]
    flat = ordered(torch.zeros(2, 20, 20))
    assert torch.equal(flat[0], flat[1])  # the same for all maps
    assert torch.equal(flat[0].sort().values, torch.arange(400))
    first = flat[0, :200]
    assert 60 < int((first < 200).sum()) < 140  # a plain sort would take the upper half first
    assert 60 < int((first % 20 < 10).sum()) < 140
    # ties stay in the drawn order wherever other pixels come
    peak = torch.zeros(1, 20, 20)
    peak[0, 3, 4] = 1
    assert ordered(peak)[0].tolist() == [64, *(pixel for pixel in flat[0].tolist() if pixel != 64)]


def test_rank_correlation_is_spearmans():
    first, second = noise(4, 5, 6, seed=1), noise(4, 5, 6, seed=2)
    first[0] = first[0].round()  # ties
    second[2] = torch.exp(first[2])
    found = rank_correlation(first, second)
    for one, other, value in zip(first, second, found, strict=True):
        assert value == pytest.approx(spearmanr(one.flatten(), other.flatten()).statistic)
    assert found[2] == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert np.isnan(rank_correlation(first, torch.full_like(first, 0.1))).all()


def test_shared_peaks_by_hand():
    first = torch.tensor([[[4.0, 3.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    second = torch.tensor([[[4.0, 1.0], [3.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]])
    assert shared_peaks(first, second, 0.5)[0] == 0.5
    assert shared_peaks(first, second, 0.01)[0] == 1  # one pixel at least
    assert np.isnan(shared_peaks(first, second, 0.5)[1])


def slow_ssim(one, other):
    """SSIM from its definition, pixel by pixel, each map divided by its largest size."""
    one, other = (np.abs(own) / np.abs(own).max() for own in (one, other))
    reach = 5
    places = np.arange(-reach, reach + 1)
    window = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    padded = [np.pad(own, reach, mode="symmetric") for own in (one, other)]
    found = []
    for row in range(one.shape[0]):
        for column in range(one.shape[1]):
            a, b = (own[row : row + 11, column : column + 11] for own in padded)
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            numerator = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
            found.append(numerator / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return np.mean(found)


def test_structure_correlation_is_ssim():
    first, second = noise(2, 13, 12, seed=3), noise(2, 13, 12, seed=4)
    second[1] = 0.3 * first[1]
    found = structure_correlation(first, second)
    for one, other, value in zip(first.numpy(), second.numpy(), found, strict=True):
        assert value == pytest.approx(slow_ssim(one, other), abs=1e-9)
    assert found[1] == pytest.approx(1)
    assert np.isnan(structure_correlation(first, torch.zeros_like(first))).all()


def test_structure_correlation_agrees_with_scikit_image(peer):
    metrics = peer("skimage.metrics")
    first, second = noise(1, 16, 16, seed=5)[0].abs().numpy(), noise(1, 16, 16, seed=6)[0].abs().numpy()
    first, second = first / first.max(), second / second.max()
    _, index = metrics.structural_similarity(
        first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    assert structure_correlation(torch.from_numpy(first)[None], torch.from_numpy(second)[None]) == pytest.approx(
        index.mean()
    )
