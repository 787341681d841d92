"""Activation maximisation against closed forms: linear networks and linear generators."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import Dense, Residual, images, plain, pooled
from nnscan import maximisation
from nnscan.data import Split, build_dataset
from nnscan.explanations import Setting
from nnscan.maximisation import (
    Head,
    activation_maximisation,
    generator_maximisation,
    synthesis_scores,
)
from nnscan.models import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(width, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(width, classes)).double()


class LinearGenerator(nn.Module):
    def __init__(self, codes=6):
        super().__init__()
        torch.manual_seed(3)
        self.basis = nn.Parameter(torch.randn(codes, 2 * 8 * 8, dtype=torch.float64))
        self.register_buffer("floor", torch.tensor([0.0, 0.0, 0.0, 0.0, -1.5, -6.0][:codes], dtype=torch.float64))
        self.register_buffer("deviation", torch.tensor([1.0, 2.0, 0.2, 0.5, 0.5, 2.0][:codes], dtype=torch.float64))
        self.register_buffer("ceiling", 3 * self.deviation)

    def forward(self, codes):
        return (codes @ self.basis).reshape(-1, 2, 8, 8)


def test_the_image_of_a_linear_network_is_known(monkeypatch):
    """max w x - l |x|^2 in a box: each pixel is w / 2 l, or the end of the box."""
    monkeypatch.setattr(maximisation, "JITTER", 0.0)
    monkeypatch.setattr(maximisation, "BLUR", 0.0)
    monkeypatch.setattr(maximisation, "DECAY", 0.05)
    model, box = linear(128), ((-0.5, 0.0), (0.5, 1.5))
    classes = [number % 3 for number in range(18)]
    found = activation_maximisation(model, (2, 8, 8), classes, Setting(box=box))
    best = (model[1].weight[classes] / 0.1).reshape(-1, 2, 8, 8).detach()
    low, high = (torch.tensor(end, dtype=torch.float64)[:, None, None] for end in box)
    assert 0.1 < float(((best > low) & (best < high)).double().mean()) < 0.9
    torch.testing.assert_close(found, best.clamp(low, high), atol=0.01, rtol=0)


def test_shifts_and_blur_keep_to_the_box_and_raise_the_score():
    box = ((0.0, -1.0), (1.0, 1.0))
    for build in (plain, pooled, Residual, Dense):
        model = build()
        found = activation_maximisation(model, (2, 8, 8), [2, 0], Setting(box=box, seed=1))
        assert float(found[:, 0].min()) >= 0
        assert float(found[:, 1].min()) >= -1
        assert float(found.max()) <= 1
        table = synthesis_scores(found, [2, 0], model, [], dataset())
        start = synthesis_scores(torch.zeros_like(found), [2, 0], model, [], dataset())
        assert (table["score"] > start["score"]).all()


def test_the_code_of_a_linear_generator_is_known(monkeypatch):
    """max w B y - l |y / sd|^2: each code is sd^2 (w B) / 2 l, or the end of its box."""
    monkeypatch.setattr(maximisation, "CODE_DECAY", 0.5)
    model, generator = linear(128), LinearGenerator()
    classes = [number % 3 for number in range(18)]
    found = generator_maximisation(model, (2, 8, 8), classes, Setting(generator=generator))
    gains = model[1].weight[classes].detach() @ generator.basis.T.detach()
    best = (generator.deviation**2 * gains).clamp(generator.floor, generator.ceiling)
    inside = (best > generator.floor) & (best < generator.ceiling)
    assert 0.1 < float(inside.double().mean()) < 0.9
    torch.testing.assert_close(found, generator(best).detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense])
def test_codes_are_what_the_last_layer_is_fed(build):
    model, x = build(), images()
    prepared = prepare(model)
    head = Head(prepared, x[:1])
    layer = prepared.get_submodule(head.name)
    output = prepared(x.clone())
    scores = output["scores"] if isinstance(output, dict) else output
    torch.testing.assert_close(head.codes(x) @ layer.weight.T + layer.bias, scores)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in prepared.modules())


def dataset():
    generator = np.random.default_rng(0)
    splits = {
        name: Split(generator.integers(0, 256, (count, 2, 8, 8), dtype=np.uint8), np.arange(count) % 3)
        for name, count in (("train", 300), ("validation", 6), ("test", 6))
    }
    return build_dataset("noise", ("a", "b", "c"), splits)


def test_scores_of_images_by_hand():
    data, model = dataset(), linear(128)
    judges = [linear(128, seed=seed) for seed in (1, 2, 3)]
    train = torch.from_numpy(data.inputs("train")).double()
    x = train[[7, 290]] + 0.25
    table = synthesis_scores(x, [1, 2], model, judges, data)
    scores = model(x).detach()
    for place, label in enumerate([1, 2]):
        row = table.iloc[place]
        own = scores[place].exp() / scores[place].exp().sum()
        assert row["score"] == pytest.approx(float(scores[place, label]))
        assert row["probability"] == pytest.approx(float(own[label]))
        says = [int(judge(x[place : place + 1]).argmax()) == label for judge in judges]
        assert row["agreement"] == pytest.approx(sum(says) / 3)
    assert table["nearest"].tolist() == [7, 290]
    assert table["nearest_class"].tolist() == [7 % 3, 290 % 3]
    np.testing.assert_allclose(table["distance"], 0.25, rtol=1e-6)
    far = (train - x[0]).square().mean((1, 2, 3)).sqrt()
    assert float(far[8]) > 0.25
    assert all(map(math.isnan, synthesis_scores(x, [1, 2], model, [], data)["agreement"]))
