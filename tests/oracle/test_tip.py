"""Oracles of the interpretable properties: what the slides' formulas imply for networks that can be solved by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from nnscan.properties import activation_value, interpretable_properties, rank_correlation
from nnscan.scanner import filter_images

NAMES = ["T_m", "T_v", "T_c", "T_cor"]


def network(bias):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1, bias=bias), nn.ReLU()
    ).double()


@pytest.fixture
def x():
    return torch.randn(6, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_definition(model, x):
    """L^k = sum_ij I^k_ij f^k_ij with the learning images I = x * d a_ij / d x, neuron by neuron."""
    images = torch.zeros(len(x), 5, *x.shape[1:], dtype=x.dtype)
    for s in range(len(x)):
        source = x[s : s + 1].clone().requires_grad_(True)
        maps = model(source)[0]
        for k in range(maps.shape[0]):
            for value in maps[k].flatten():
                if value > 0:
                    (gradient,) = torch.autograd.grad(value, source, retain_graph=True)
                    images[s, k] += (x[s] * gradient[0] * value).detach()
    return images


@pytest.mark.parametrize("bias", [False, True])
def test_one_backward_pass_gives_the_sum_over_neurons(x, bias):
    model = network(bias)
    expected = interpretable_properties(by_definition(model, x), x)
    computed = interpretable_properties(filter_images(model, x, "3"), x)
    np.testing.assert_allclose(computed[NAMES], expected[NAMES], rtol=1e-9, atol=1e-14)


def test_without_biases_the_mean_is_the_energy_of_the_map(x):
    model = network(bias=False)
    frame = interpretable_properties(filter_images(model, x, "3"), x)
    with torch.no_grad():
        energy = (model(x) ** 2).sum(dim=(2, 3)).mean(dim=0)
    assert (energy > 0).any()
    np.testing.assert_allclose(frame["T_m"], energy.numpy() / 100, rtol=1e-10)


def test_the_mean_ranks_filters_nearly_as_their_activation_does(x):
    """Why the slides' rank correlation of T_m with AVoU, 0.97 to 1.00, says little: it is nearly built in."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.ReLU()).double()
    frame = interpretable_properties(filter_images(model, x, "0"), x)
    with torch.no_grad():
        assert rank_correlation(frame["T_m"], activation_value(model(x))) > 0.9


def test_a_dead_filter_has_no_properties(x):
    model = network(bias=True)
    with torch.no_grad():
        model[3].bias[2] = -1e6
    frame = interpretable_properties(filter_images(model, x, "3"), x)
    assert frame.loc[2, NAMES].tolist() == [0, 0, 0, 0]
    assert frame.drop(index=2)[NAMES].notna().all(axis=None)


def test_the_identity_filter_on_positive_pixels():
    x = torch.rand(3, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).double()
    nn.init.ones_(model[0].weight)
    images = filter_images(model, x, "0")
    torch.testing.assert_close(images[:, 0], x**2)
    row = interpretable_properties(images, x).iloc[0]
    values = x.numpy().reshape(3, -1)
    assert row["T_m"] == pytest.approx((values**2).mean())
    assert row["T_cor"] == pytest.approx(np.mean([np.corrcoef(v**2, v)[0, 1] for v in values]))
    assert row["T_v"] == pytest.approx(np.mean([np.var(v**2) for v in values]))
    assert row["T_c"] == pytest.approx(np.mean([np.cov(v**2, v, bias=True)[0, 1] for v in values]))


@pytest.mark.parametrize("t", [0.5, 3.0])
def test_powers_of_the_inputs_scale(x, t):
    model = network(bias=False)
    plain, scaled = (interpretable_properties(filter_images(model, t_x, "3"), t_x) for t_x in (x, t * x))
    for name, power in zip(NAMES, (2, 4, 3, 0), strict=True):
        np.testing.assert_allclose(scaled[name], t**power * plain[name], rtol=1e-9, atol=1e-14)


def test_rank_correlation_is_spearman_by_its_formula():
    rng = np.random.default_rng(1)
    for size in (5, 50):
        a, b = rng.random(size), rng.random(size)
        ranks = [np.array([sum(other < value for other in column) for value in column]) for column in (a, b)]
        formula = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (size * (size**2 - 1))
        assert rank_correlation(a, b) == pytest.approx(formula)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_a_filter_that_shows_only_the_foreground():
    """Constant images by hand: 3 inside the mask and 1 outside."""
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, :2], mask[1, 0, 0] = True, True
    images = np.where(mask, 3.0, 1.0)[:, None, None]
    row = interpretable_properties(images, images[:, 0], mask).iloc[0]
    assert (row["T_m_foreground"], row["T_m_background"]) == (3, 1)
    assert row[["T_v_foreground", "T_c_background", "T_cor_foreground"]].tolist() == [0, 0, 0]
    assert row["T_m"] == pytest.approx(((8 * 3 + 8) / 16 + (3 + 15) / 16) / 2)
    assert row["T_cor"] == pytest.approx(1)
