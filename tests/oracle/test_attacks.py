"""Attacks on explanations: what they reach, what they must leave alone, and the curvature that they need."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of
from nnscan import attacks
from nnscan.attacks import PREDICTION, TOLERANCE, attack, attack_scores, border
from nnscan.controls import METHODS
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Method, Setting, simply
from nnscan.gradients import backpropagation, score_gradients
from nnscan.metrics import COLUMNS, Inputs
from nnscan.models import prepare
from nnscan.resemblance import rank_correlation, shared_peaks

pytestmark = pytest.mark.usefixtures("one_thread")

LOW, HIGH = torch.full((2, 1, 1), -2.0, dtype=torch.float64), torch.full((2, 1, 1), 2.0, dtype=torch.float64)
BUDGET = torch.tensor([0.2, 0.3], dtype=torch.float64).reshape(2, 1, 1)
GRADIENT = Method(**{**vars(METHODS[0]), "name": "gradient", "explain": simply(backpropagation)})


def whole(maps):
    return maps / maps.sum((1, 2), keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("goal", ["target", "peaks"])
@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense])
def test_what_is_reported_is_of_the_network_as_it_is(build, goal):
    model, x = build().train(), images(20).clamp(-2, 2)
    classes = [number % 3 for number in range(20)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept, state = x.clone(), torch.get_rng_state()
    target = border(x) if goal == "target" else None
    with torch.inference_mode():
        found = attack(model, x.clone(), classes, BUDGET, LOW, HIGH, target, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.eval()
    assert bool(((found.x - x).abs() <= BUDGET + 1e-12).all())
    assert bool(((found.x >= LOW) & (found.x <= HIGH)).all())
    chances = [scores_of(model, own).detach().softmax(1) for own in (x, found.x)]
    assert torch.equal(chances[0].argmax(1), chances[1].argmax(1))
    moved = (chances[1] - chances[0]).abs().max(1).values
    torch.testing.assert_close(found.probability, moved)
    assert float(moved.max()) <= TOLERANCE
    maps = [whole(score_gradients(model, own, classes).abs().max(1).values) for own in (x, found.x)]
    if goal == "target":
        losses = [(own - whole(border(x))).square().sum((1, 2)) for own in maps]
    else:
        top = maps[0].flatten(1).topk(6).indices
        losses = [own.flatten(1).gather(1, top).sum(1) for own in maps]
    torch.testing.assert_close(found.before, losses[0])
    torch.testing.assert_close(found.after, losses[1])
    assert bool((found.after <= found.before).all())
    # a positive gradient of most networks can be moved
    assert float((found.after / found.before).mean()) < 0.97
    target = None if target is None else target[17:]
    alone = attack(model, x[17:], classes[17:], BUDGET, LOW, HIGH, target, 8)
    torch.testing.assert_close(found.x[17:], alone.x)


def test_it_does_more_than_chance():
    model, x = plain(), images(20).clamp(-2, 2)
    classes = [number % 3 for number in range(20)]
    given = Inputs(x, classes, np.arange(20), LOW, HIGH, 0 * LOW)
    frame = attack_scores(model, given, [GRADIENT], 0.05)
    mean = frame[frame["method"] == "gradient"].groupby(["metric", "case"])["value"].mean()
    assert mean["attack_peaks", "peaks"] < mean["attack_peaks", "chance"] - 0.1
    assert mean["attack_approach", "target"] > mean["attack_approach", "chance"] + 0.1


def test_probabilities_stay_within_the_tolerance(monkeypatch):
    monkeypatch.setattr(attacks, "TOLERANCE", 1e-3)
    model, x = plain(), images(20).clamp(-2, 2)
    found = attack(model, x, [number % 3 for number in range(20)], 2 * BUDGET, LOW, HIGH, border(x), 20)
    assert 1e-4 < float(found.probability.max()) <= 1e-3


class Called(nn.Module):
    """ReLUs of every kind of call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)]).double()
        self.inplace, self.module = nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        calls = [self.inplace, self.module, functional.relu, torch.relu, torch.relu_, lambda own: own.relu()]
        x = x.flatten(1)
        for layer, call in zip(self.layers, calls, strict=True):
            x = call(layer(x))
        return x


def test_every_relu_becomes_softplus():
    model, x = Called(), images(3, 1, 2)
    with attacks._SmoothReLUs(5.0):
        found = model(x)
    expected = x.flatten(1)
    for layer in model.layers:
        expected = torch.log1p(torch.exp(5 * layer(expected))) / 5
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model(x), Called()(x))  # and is a ReLU again outside


@pytest.mark.parametrize("build", [plain, Residual, Dense])
def test_the_smooth_network_has_second_derivatives(build):
    """The gradient of a gradient map, against a difference."""
    prepared, x = prepare(build()), images().requires_grad_(True)
    direction = images(3)[[1, 2, 0]]

    def share(source):
        with attacks._SmoothReLUs(5.0):
            return attacks._gradient_maps(prepared, source, CLASSES, smooth=True)[0][:, 2:5, 2:5].sum()

    (gradient,) = torch.autograd.grad(share(x), x)
    assert float(gradient.abs().max()) > 0
    ends = [float(share((x + sign * 1e-6 * direction).detach().requires_grad_(True)).detach()) for sign in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_networks_with_other_straight_pieces_are_refused():
    x = images()
    for layer, name in ((nn.LeakyReLU(), "leaky_relu"), (nn.ReLU6(), "hardtanh or relu6"), (nn.PReLU(), "prelu")):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        with pytest.raises(ModelError, match=f"only straight pieces are ReLUs.*{name}"):
            attack(model, x, CLASSES, BUDGET, LOW, HIGH)
    scripted = nn.Sequential(nn.Conv2d(2, 3, 3), torch.jit.script(nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"a ReLU that nnscan cannot reach|scripted code"):
        attack(scripted.double(), x, CLASSES, BUDGET, LOW, HIGH)
    given = Inputs(x, CLASSES, np.arange(3), LOW, HIGH, 0 * LOW)
    frame = attack_scores(model, given, [GRADIENT, *METHODS])
    assert frame["value"].isna().all()
    assert frame["reason"].str.contains("only straight pieces are ReLUs").all()
    assert set(frame["method"]) == {"gradient", "random", "edges", "input", ""}
    with pytest.raises(ScanError, match="target maps"):
        attack(plain(), x, CLASSES, BUDGET, LOW, HIGH, torch.ones(2, 8, 8))


def test_a_smooth_network_is_attacked_as_it_is_and_a_linear_one_gives_nothing_away():
    x = images()
    smooth = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = attack(smooth.double(), x, CLASSES, BUDGET, LOW, HIGH, border(x), 8)
    assert bool((found.after < found.before).any())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    found = attack(linear, x.clamp(-2, 2), CLASSES, BUDGET, LOW, HIGH, border(x), 8)
    torch.testing.assert_close(found.after, found.before)


def test_the_target_is_a_frame():
    assert border(torch.zeros(2, 1, 16, 16))[1].sum() == 16**2 - 12**2
    assert border(torch.zeros(1, 1, 3, 4))[0].tolist() == [[1] * 4, [1, 0, 0, 1], [1] * 4]


def test_scores():
    model, x = plain(), images(4).clamp(-2, 2)
    given = Inputs(x, [0, 1, 2, 0], np.arange(4), LOW, HIGH, 0 * LOW, setting=Setting(seed=2))
    frame = attack_scores(model, given, [GRADIENT, *METHODS], 0.05)
    assert tuple(frame.columns) == COLUMNS
    value = frame.set_index(["method", "metric", "case"])["value"]
    maps = backpropagation(model, x, given.classes)
    for goal, target in (("target", border(x)), ("peaks", None)):
        found = attack(model, x, given.classes, 0.05 * given.range, LOW, HIGH, target)
        after = backpropagation(model, found.x, given.classes)
        np.testing.assert_allclose(value["gradient", "attack_rank", goal], rank_correlation(maps, after))
        np.testing.assert_allclose(value["gradient", "attack_peaks", goal], shared_peaks(maps, after))
        np.testing.assert_allclose(value["", PREDICTION.name, goal], found.probability)
        edges = [METHODS[1].explain(model, own, given.classes, given.setting) for own in (x, found.x)]
        np.testing.assert_allclose(value["edges", "attack_rank", goal], rank_correlation(*edges))
        if target is not None:
            grown = rank_correlation(after, target) - rank_correlation(maps, target)
            np.testing.assert_allclose(value["gradient", "attack_approach", goal], grown)
    assert set(frame["case"]) == {"target", "peaks", "chance"}
