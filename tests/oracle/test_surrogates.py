"""LIME and SHAP against linear models, Shapley values by their definition, and Captum."""

import itertools
import math

import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from captum.attr import KernelShap, Lime
from torch import nn

from networks import CLASSES, Dense, Residual, images, plain, scores_of
from nnscan import surrogates
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Setting
from nnscan.surrogates import METHODS, coalitions, lime, segments, shap, shapley_values

pytestmark = pytest.mark.usefixtures("one_thread")


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()


def cells(count, size=8):
    """Return a way to cut images into a few segments of different sizes."""
    sizes = np.arange(1, count + 1)
    ends = np.cumsum(sizes) * size * size // sizes.sum()
    numbers = np.searchsorted(ends, np.arange(size * size), side="right")
    return lambda image: torch.from_numpy(numbers.reshape(size, size))


def hidden(x, kept, segment):
    return torch.where(kept[segment], x, torch.zeros_like(x))


def exact(model, x, label, segment):
    """Return the Shapley values of segments by their definition: mean rise over all orders, by sets."""
    count = int(segment.max()) + 1

    def score(members):
        kept = torch.tensor([number in members for number in range(count)])
        return float(scores_of(model, hidden(x, kept, segment)[None])[0, label].detach())

    values = []
    for number in range(count):
        others = [other for other in range(count) if other != number]
        value = 0.0
        for size in range(count):
            share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for members in itertools.combinations(others, size):
                value += share * (score({*members, number}) - score(set(members)))
        values.append(value)
    return np.array(values)


@pytest.mark.parametrize("build", [plain, Residual, Dense])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shap_of_few_segments_is_exact(build, count, monkeypatch):
    cut = cells(count)
    monkeypatch.setattr(surrogates, "segments", cut)
    model, x = build(), images()
    segment = cut(x[0])
    assert int(segment.max()) == count - 1
    found = shap(model, x, CLASSES, Setting())
    for one, image, label in zip(found, x, CLASSES, strict=True):
        sums = torch.bincount(segment.flatten(), one.flatten()).numpy()
        np.testing.assert_allclose(sums, exact(model, image, label, segment), rtol=1e-8, atol=1e-12)
        for number in range(count):
            assert len(one[segment == number].unique()) == 1  # spread evenly


@pytest.mark.parametrize("method", [lime, shap])
def test_both_recover_a_linear_model(method):
    model, x = linear(), images()
    terms = (x * model[1].weight[CLASSES].reshape(x.shape).detach()).sum(1)
    segment = segments(x[0])
    found = method(model, x, CLASSES, Setting(seed=5))
    for one, own in zip(found, terms, strict=True):
        sums = torch.bincount(segment.flatten(), own.flatten())
        if method is shap:
            sums = sums / torch.bincount(segment.flatten())
        torch.testing.assert_close(one, sums[segment])


@pytest.mark.parametrize("build", [plain, Residual, Dense])
def test_sampled_shap_adds_up_and_comes_near_to_the_exact_values(build, monkeypatch):
    cut = cells(7)
    monkeypatch.setattr(surrogates, "segments", cut)
    model, x = build(), images()
    segment = cut(x[0])
    total = next(method.total for method in METHODS if method.name == "shap")(model, x, CLASSES, Setting())
    expected = (scores_of(model, x) - scores_of(model, torch.zeros_like(x)))[torch.arange(3), CLASSES].detach()
    torch.testing.assert_close(total, expected)
    monkeypatch.setattr(surrogates, "SAMPLES", 124)  # of 126 sets: they are drawn
    found = shap(model, x, CLASSES, Setting(seed=1))
    torch.testing.assert_close(found.sum((1, 2)), total)
    for one, image, label in zip(found, x, CLASSES, strict=True):
        values = exact(model, image, label, segment)
        sums = torch.bincount(segment.flatten(), one.flatten()).numpy()
        assert np.abs(sums - values).max() > 1e-9
        assert np.abs(sums - values).max() < 0.2 * np.abs(values).max()


def test_coalitions_are_drawn_by_the_kernel():
    kept, weights = coalitions(20, seed=3)
    assert kept.shape == (surrogates.SAMPLES, 20)
    assert (weights == 1).all()
    half = surrogates.SAMPLES // 2
    assert (kept[:half] == ~kept[half:]).all()
    sizes = np.arange(1, 20)
    shares = 1 / (sizes * (20 - sizes))
    counts = np.bincount(kept.sum(1), minlength=20)[1:]
    assert np.abs(counts / len(kept) - shares / shares.sum()).max() < 0.04
    assert np.abs(kept[:half].mean(0) - 0.5).max() < 0.1  # no segment is favoured
    assert (coalitions(20, seed=3)[0] == kept).all()
    assert (coalitions(20, seed=4)[0] != kept).any()
    few, kernel = coalitions(3, seed=0)
    assert sorted(few.sum(1)) == [1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(kernel, 2 / (3 * 1 * 2))


def test_values_by_hand():
    """Scores v(1) = 1, v(2) = 2, v(12) = 5 above v() = 10: values 1 + 2/2 and 2 + 2/2."""
    kept, weights = coalitions(2, seed=0)
    scores = np.where(kept[:, 0], 11.0, 12.0)
    np.testing.assert_allclose(shapley_values(kept, weights, scores, 10, 15), [2, 3])


def test_shap_is_nearer_to_the_truth_than_captum_and_agrees_with_it(monkeypatch):
    cut = cells(6)
    monkeypatch.setattr(surrogates, "segments", cut)
    model, x = plain(), images(1)
    segment = cut(x[0])
    found = torch.bincount(segment.flatten(), shap(model, x, [2], Setting())[0].flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = KernelShap(model).attribute(
            x, target=2, feature_mask=segment.expand_as(x), n_samples=4000, perturbations_per_eval=500,
            return_input_shape=False,
        )  # fmt: skip
    assert float((found - expected.flatten()).abs().max()) < 0.03 * float(found.abs().max())


@pytest.mark.parametrize("build", [plain, Dense])
def test_lime_agrees_with_captum(build):
    """The same sets of segments and weights through Captum's Lime and scikit-learn's regression."""
    model, x = build(), images(2)
    found = lime(model, x, CLASSES[:2], Setting(seed=2))

    def draws(original, num_interp_features, **_):
        kept = torch.rand((surrogates.SAMPLES, num_interp_features), generator=torch.Generator().manual_seed(2)) < 0.5
        kept[0] = True
        yield from torch.split(kept.long(), 1)

    def weight(original, perturbed, kept, **_):
        cosine = float(nn.functional.cosine_similarity(kept.double(), torch.ones_like(kept).double()))
        return math.exp(-((1 - cosine) ** 2) / (2 * 0.25**2))

    method = Lime(model, SkLearnLinearRegression(), weight, draws)
    with torch.random.fork_rng(devices=[]):
        for one, label, own in zip(torch.split(x, 1), CLASSES[:2], found, strict=True):
            segment = segments(one[0])
            expected = method.attribute(
                one, target=label, feature_mask=segment.expand_as(one), n_samples=surrogates.SAMPLES,
                perturbations_per_eval=100,
            )  # fmt: skip
            error = float((own - expected[0, 0]).abs().max())
            assert error < 1e-4 * float(own.abs().max())


def test_segments_are_a_grid_or_superpixels():
    gray = segments(torch.rand(1, 28, 28))
    assert gray.shape == (28, 28)
    assert (gray == (torch.arange(28) // 4)[:, None] * 7 + torch.arange(28) // 4).all()
    assert len(segments(torch.rand(2, 5, 5)).unique()) == 25  # no more cells than pixels
    image = torch.full((3, 32, 32), -2.0)  # standardised values
    image[0, :, 11:] = 3
    image[2, 17:, :] = 1.5
    found = segments(image)
    assert found.dtype == torch.int64
    assert 25 <= int(found.max()) + 1 <= 80
    assert found.unique().tolist() == list(range(int(found.max()) + 1))
    # edges are kept up to a pixel
    sides = image[0].unique(return_inverse=True)[1] + 2 * image[2].unique(return_inverse=True)[1]
    alike = [sides[found == number].bincount().max() for number in range(int(found.max()) + 1)]
    assert sum(alike) > 0.9 * 32 * 32
    assert torch.equal(segments(image), found)
    assert torch.equal(segments(image.double() * 7 - 100), found)
    assert segments(torch.zeros(3, 16, 16)).unique().tolist()[0] == 0


@pytest.mark.parametrize("deviation", [0.05, 0.25])
def test_noise_leaves_as_many_segments(deviation):
    """Otherwise the stability of a method would be that of its segments."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 1, 32).expand(3, 32, 32) * torch.tensor([1.0, 0.5, -1.0])[:, None, None]
    noise = torch.randn(3, 32, 32, generator=generator) * deviation
    found = [len(segments(image).unique()) for image in (smooth, smooth + noise)]
    assert min(found) >= 25
    assert max(found) < 1.5 * min(found)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("channels", [2, 3])
def test_maps_of_a_batch_are_those_of_its_inputs(method, channels):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double().train()  # fmt: skip
    x = images(3, channels)
    kept, state = x.clone(), torch.get_rng_state()
    with torch.inference_mode():
        found = method.explain(model, x.clone(), CLASSES, Setting(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (3, 8, 8)
    assert found.dtype == x.dtype
    assert torch.equal(x, kept)
    assert model.training
    torch.testing.assert_close(method.explain(model, x[1:2], CLASSES[1:2], Setting(seed=1)), found[1:2])
    assert not torch.equal(method.explain(model, x[1:2], CLASSES[1:2], Setting(seed=2)), found[1:2])
    with pytest.raises(ModelError, match="class scores 3 to 3"):
        method.explain(model, x, [3] * 3, Setting())
    with pytest.raises(ScanError, match="1 classes were given"):
        method.explain(model, x, [0], Setting())
    single = method.explain(model.float(), x.float(), CLASSES, Setting(seed=1))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-5)
