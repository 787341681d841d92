"""Perturbations against loops, closed forms and exact expectations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import Dense, Residual, images, plain, scores_of
from nnscan import perturbations
from nnscan.explanations import Setting
from nnscan.perturbations import (
    METHODS,
    area_loss,
    extremal_masks,
    faded,
    generative_infilling,
    meaningful_perturbation,
    occlusion,
    pyramid,
    rise,
)
from nnscan.smoothing import blurred

pytestmark = pytest.mark.usefixtures("one_thread")


class LinearProbability(nn.Module):
    """Two classes; the probability of the first is a linear function of the image."""

    def __init__(self, weights, bias):
        super().__init__()
        self.weights, self.bias = nn.Parameter(weights), bias

    def forward(self, x):
        share = (self.bias + (x * self.weights).sum((1, 2, 3))).clamp(1e-9, 1 - 1e-9)
        return torch.stack([share.log(), (1 - share).log()], 1)


class Constant(nn.Module):
    """Fills hidden pixels with one value."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, kept):
        return x * kept + self.value * (1 - kept)


def uniform(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Occlusion and RISE ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [plain, Residual, Dense])
def test_occlusion_by_loops(build, monkeypatch):
    monkeypatch.setattr(perturbations, "WINDOW", 3 / 8)  # 3 x 3 pixels, that move by one
    model, x = build(), images(17)
    classes = [number % 3 for number in range(17)]
    found = occlusion(model, x, classes)
    for number in (0, 16):
        total, covers = np.zeros((8, 8)), np.zeros((8, 8))
        before = scores_of(model, x[number : number + 1])[0, classes[number]].item()
        for row in range(6):
            for column in range(6):
                hidden = x[number].clone()
                for channel in range(2):
                    hidden[channel, row : row + 3, column : column + 3] = x[number, channel].mean()
                drop = before - scores_of(model, hidden[None])[0, classes[number]].item()
                total[row : row + 3, column : column + 3] += drop
                covers[row : row + 3, column : column + 3] += 1
        np.testing.assert_allclose(found[number], total / covers, rtol=1e-5, atol=1e-7)


def test_occlusion_of_a_uniform_image_is_zero():
    assert float(occlusion(plain(), torch.full((1, 2, 8, 8), 0.7, dtype=torch.float64), [1]).abs().max()) < 1e-12


def bilinear(large, small):
    """Weights (large, small) of a line of cells drawn up to more pixels, as the formula says."""
    weights = np.zeros((large, small))
    for pixel in range(large):
        place = min(max((pixel + 0.5) * small / large - 0.5, 0), small - 1)
        left = min(int(place), small - 1)
        weights[pixel, left] += 1 - (place - left)
        weights[pixel, min(left + 1, small - 1)] += place - left
    return weights


def test_rise_masks_are_shifted_grids():
    cells = (uniform(3, 7, 7) < 0.5).double()
    shifts = torch.tensor([[0.0, 0.0], [0.5, 0.99], [0.99, 0.2]], dtype=torch.float64)
    found = perturbations._rise_masks(cells, shifts, torch.zeros(1, 20, 10, dtype=torch.float64))
    assert found.shape == (3, 1, 20, 10)  # cells of 3 x 2 pixels
    for mask, cell, (row, column) in zip(found, cells, [(0, 0), (1, 1), (2, 0)], strict=True):
        rows, columns = bilinear(24, 7)[row : row + 20], bilinear(16, 7)[column : column + 10]
        np.testing.assert_allclose(mask[0], rows @ cell.numpy() @ columns.T)


def test_rise_estimates_the_exact_expectation_without_bias(monkeypatch):
    """The probability is linear, so that of E[f M(u)] the second moments of masks are needed alone."""
    x = uniform(1, 1, 8, 8)
    weights = uniform(1, 8, 8, seed=1) ** 6 / 10
    model, cell, runs = LinearProbability(weights, 0.1), 2, 24
    assert float(0.1 + (weights * x).sum()) < 1
    lines = bilinear(8 * cell, 7)
    second = np.zeros((8, 8, 8, 8))
    for row in range(cell):
        for column in range(cell):
            rows, columns = lines[row : row + 8] @ lines[row : row + 8].T, lines[column : column + 8]
            second += 0.25 + 0.25 * np.einsum("ik,jl->ijkl", rows, columns @ columns.T)
    second /= cell**2
    gains = (weights * x[0])[0].numpy()
    exact = 0.1 + np.einsum("ij,ijkl->kl", gains, second) / 0.5
    monkeypatch.setattr(perturbations, "RISE_MASKS", 500)
    found = np.stack([rise(model, x, [0], Setting(seed=seed))[0].detach().numpy() for seed in range(runs)])
    error = found.mean(0) - exact
    standard = found.std(0, ddof=1) / math.sqrt(runs)
    assert standard.max() < 0.1 * np.ptp(exact)
    # 64 pixels that go together: 4 standard errors are more than chance
    assert (np.abs(error) < 4 * standard).all()


# Masks ----------------------------------------------------------------------------------------------------------------


def test_blur_by_loops():
    x, sigma = uniform(1, 1, 5, 7), 1.3
    expected = np.zeros((5, 7))
    for i, j in np.ndindex(5, 7):
        weights = np.array([[math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * sigma**2)) for m in range(7)]
                            for k in range(5)])  # fmt: skip
        expected[i, j] = (weights / weights.sum() * x[0, 0].numpy()).sum()
    np.testing.assert_allclose(blurred(x, sigma)[0, 0], expected)
    assert blurred(x, 0) is x


def test_a_mask_fades_between_the_image_and_its_blur():
    x = images(2)
    levels = pyramid(x, 3.0)
    one = torch.ones(2, 1, 8, 8, dtype=x.dtype)
    torch.testing.assert_close(faded(levels, one), x)
    torch.testing.assert_close(faded(levels, 0 * one), blurred(x, 3.0))
    torch.testing.assert_close(faded(levels, one * (1 - 2.25 / 7)), 0.75 * levels[:, 2] + 0.25 * levels[:, 3])
    for share, lower in ((1.0, 0), (1.0 + 1e-15, 0), (1 - 2.25 / 7, 2), (0.0, 6)):  # also at the ends, with rounding
        kept = (share * one).requires_grad_(True)
        (slope,) = torch.autograd.grad(faded(levels, kept).sum(), kept)
        torch.testing.assert_close(slope, 7 * (levels[:, lower] - levels[:, lower + 1]).sum(1, keepdim=True))


def test_area_loss_by_hand():
    mask = torch.tensor([0.0, 1.0, 0.25, 1.0, 0.0, 0.0, 0.0, 0.5], dtype=torch.float64).reshape(1, 1, 2, 4)
    areas = torch.tensor([0.25], dtype=torch.float64)
    assert float(area_loss(mask, areas)) == pytest.approx((0.25**2 + 0.5**2) / 8)
    exact = (mask == 1).double()
    assert float(area_loss(exact, areas)) == 0
    assert float(area_loss(exact, 2 * areas)) == pytest.approx(2 / 8)


def test_smooth_masks_by_loops():
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    parameters = uniform(1, 1, 16, 16)
    found = perturbations._smooth_masks(x)(parameters)
    assert found.shape == (1, 1, 32, 32)
    for row, column in ((0, 0), (17, 4), (31, 30)):
        values = []
        for down in range(-3, 4):
            for across in range(-3, 4):
                i, j = row // 2 + down, column // 2 + across
                distance = math.hypot(row - (2 * i + 0.5), column - (2 * j + 0.5))
                near = parameters[0, 0, min(max(i, 0), 15), min(max(j, 0), 15)].item()
                values.append(math.exp(-2 * max(distance / 3 - 0.5, 0) ** 2) * near)
        weights = np.exp(20 * np.array(values))
        assert float(found[0, 0, row, column]) == pytest.approx((weights * values).sum() / weights.sum())
    uniform_mask = perturbations._smooth_masks(x)(torch.ones_like(parameters))
    assert float(uniform_mask[..., ::2, ::2].std()) < 1e-12  # the border does not stand out


def test_meaningful_perturbation_finds_the_optimum_of_a_linear_problem(monkeypatch):
    """Two levels, no jitter, no variation: each cell of the mask pays or does not, by itself."""
    monkeypatch.setattr(perturbations, "LEVELS", 2)
    monkeypatch.setattr(perturbations, "MEANINGFUL_VARIATION", 0.0)
    x = uniform(3, 1, 16, 16)
    weights = (uniform(1, 16, 16, seed=1) - 0.4) / 60
    enlarged = perturbations._enlargement((4, 4), x)
    units = enlarged(torch.eye(16, dtype=x.dtype).reshape(16, 1, 4, 4))[:, 0]
    gains = torch.einsum("nij,kij->nk", (weights * (x - blurred(x, 2.0)))[:, 0], units)
    monkeypatch.setattr(perturbations, "MEANINGFUL_JITTER", 0.0)
    some = gains[gains > 0].sort().values
    price = float(some[len(some) // 2 : len(some) // 2 + 2].mean())  # between two, so that each is decided
    monkeypatch.setattr(perturbations, "MEANINGFUL_AREA", 16 * price)
    found = meaningful_perturbation(LinearProbability(weights, 0.3), x, [0] * 3, Setting())
    hidden = (gains > price).double().reshape(3, 1, 4, 4)
    assert 3 < int(hidden.sum()) < 45
    torch.testing.assert_close(found, enlarged(hidden)[:, 0], atol=1e-6, rtol=0)


def test_extremal_masks_keep_what_the_score_needs():
    """Where each pixel adds to the score by itself, the best mask of an area lies on the largest gains."""
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    x[0, 0, 6:13, 18:25] = 1.0  # 49 of 1024 pixels
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([x.flatten(), 0 * x.flatten()]) / 3)
    masks = extremal_masks(model, x, [0])[0].detach()
    areas = torch.tensor(perturbations.EXTREMAL_AREAS, dtype=x.dtype)
    # smooth masks have borders of half values
    torch.testing.assert_close(masks.mean((1, 2)), areas, atol=0.02, rtol=0)
    assert float(masks[2][6:13, 18:25].mean()) > 0.97  # corners are round
    kept = torch.stack([model(faded(pyramid(x, 4.0), mask[None, None]))[0, 0] for mask in masks]).detach()
    assert bool((kept.diff() > -1e-3 * kept[-1]).all())
    assert float(kept[2]) > 0.97 * float(model(x).detach()[0, 0])


def test_infilling_shows_what_pays():
    """A linear network of two classes: the odds are linear, each pixel pays for itself or is hidden."""
    x = uniform(2, 1, 8, 8) + 0.5
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    price = perturbations.INFILLING_AREA / 64
    pays = torch.zeros(8, 8, dtype=torch.bool)
    pays[:4, :4] = pays[4:, 4:] = True
    fill, gain = 0.3, torch.where(pays, 2 * price, 0.5 * price)
    for number in range(2):
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].weight[1] = (gain / (x[number, 0] - fill)).flatten()
        found = generative_infilling(model, x[number : number + 1], [1], Setting(infiller=Constant(fill)))[0]
        inner = torch.zeros(8, 8, dtype=torch.bool)  # cells are drawn up bilinearly, borders lie between
        inner[1:3, 1:3] = inner[1:3, 5:7] = inner[5:7, 1:3] = inner[5:7, 5:7] = True
        assert float(found[pays & inner].min()) > 0.9
        assert float(found[~pays & inner].max()) < 0.1
        swapped = generative_infilling(model, x[number : number + 1], [0], Setting(infiller=Constant(fill)))[0]
        assert float(swapped.max()) < 0.1  # all pixels speak for the other class


class Checks(nn.Module):
    """Two classes: the first has as much score as there are steps between neighbours in the upper half of the image."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Conv2d(1, 2, (1, 2), bias=False).double()
        self.steps.weight.data = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(1, 1, 1, 2) * torch.tensor(
            [1.0, -1.0], dtype=torch.float64
        ).reshape(2, 1, 1, 1)

    def forward(self, x):
        found = self.steps(x).relu()[:, :, :16].sum((1, 2, 3)) / 10 - 4
        return torch.stack([found, 0 * found], 1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_planted_object_is_found(method):
    """A network that looks for checks in the upper half; those in the lower half do not matter."""
    checks = torch.tensor([[(-1.0) ** (row + column) for column in range(7)] for row in range(7)], dtype=torch.float64)
    x = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    x[0, 0, 4:11, 5:12] = x[0, 0, 22:29, 20:27] = checks
    x[1, 0, 4:11, 20:27] = x[1, 0, 22:29, 5:12] = checks
    found = method.explain(Checks(), x, [0, 0], Setting(infiller=Constant())).detach()
    for number, columns in enumerate((slice(5, 12), slice(20, 27))):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[4:11, columns] = True
        distractor = x[number, 0].bool() & ~inside
        one = found[number]
        assert inside.flatten()[int(one.argmax())]
        assert float(one[inside].mean()) > float(one[~inside].mean()) + float(one.std())
        assert float(one[inside].mean()) > float(one[distractor].mean()) + float(one.std())


def test_log_odds_by_hand():
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    share = scores.softmax(1)[torch.arange(2), [1, 0]]
    torch.testing.assert_close(perturbations._log_odds(scores, [1, 0]), (share / (1 - share)).log())
