"""Relevance propagation against matrix twins of the papers' rules, numbers by hand, gradients, Captum and zennit."""

import copy
import math

import numpy as np
import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of, weighed
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Setting
from nnscan.gradients import score_gradients
from nnscan.models import build_model
from nnscan.relevance import (
    EPSILON,
    METHODS,
    contrastive_lrp,
    deep_taylor,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_z_plus,
    softmax_gradient_lrp,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BY_NAME = {method.name: method for method in METHODS}


def explained(name, model, x, classes=CLASSES):
    return BY_NAME[name].explain(model, x, classes, Setting())


def residuals(name, model, x, classes=CLASSES):
    """What a map's sum lacks of what the method promises."""
    return BY_NAME[name].total(model, x, classes, Setting()) - explained(name, model, x, classes).sum((1, 2))


def unbiased(model):
    """Without biases and running means."""
    for module in model.modules():
        for name in ("bias", "running_mean"):
            if isinstance(getattr(module, name, None), torch.Tensor):
                getattr(module, name).data.zero_()
    return model


def random_norm(kind, count):
    norm = kind(count).double().eval()
    with torch.no_grad():
        for values, least, most in (
            (norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2), (norm.weight, -1.5, 1.5), (norm.bias, -0.5, 0.5)
        ):  # fmt: skip
            values.uniform_(least, most)
    return norm


def normed():
    """A normalisation that belongs to no layer, and that has something to do."""
    torch.manual_seed(8)
    model = Dense()
    model.norm = random_norm(nn.BatchNorm2d, 7)
    return model


# Twins: every stage of a network as a matrix, every neuron by itself -------------------------------------------------


def share_epsilon(x, weight, bias, relevance):
    values = weight @ x + bias
    size = math.sqrt(np.mean(values**2))
    found = np.zeros_like(x)
    for j, value in enumerate(values):
        found += x * weight[j] / (value + EPSILON * size * (1 if value >= 0 else -1)) * relevance[j]
    return found


def share_alpha_beta(x, weight, bias, relevance):
    found = np.zeros_like(x)
    for j in range(len(weight)):
        terms = x * weight[j]
        positive, negative = np.maximum(terms, 0), np.minimum(terms, 0)
        above, below = positive.sum() + max(bias[j], 0), negative.sum() + min(bias[j], 0)
        if above > 0 and below < 0:
            found += (2 * positive / above - negative / below) * relevance[j]
        elif above > 0:
            found += positive / above * relevance[j]
        elif below < 0:
            found += negative / below * relevance[j]
    return found


def share_z_plus(x, weight, bias, relevance):
    found = np.zeros_like(x)
    for j in range(len(weight)):
        positive = np.maximum(x * weight[j], 0)
        if positive.sum() > 0:
            found += positive / positive.sum() * relevance[j]
    return found


def share_box(x, least, most, weight, relevance):
    found = np.zeros_like(x)
    for j in range(len(weight)):
        terms = x * weight[j] - least * np.maximum(weight[j], 0) - most * np.minimum(weight[j], 0)
        if terms.sum() > 1e-12:
            found += terms / terms.sum() * relevance[j]
    return found


SHARES = {"lrp_epsilon": share_epsilon, "lrp_alpha_beta": share_alpha_beta, "lrp_z_plus": share_z_plus}


def as_matrix(stage, shape):
    """The matrix and bias of a stage that is linear, from what it makes of unit vectors."""
    count = math.prod(shape)
    with torch.no_grad():
        bias = stage(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = stage(torch.eye(count, dtype=torch.float64).reshape(count, *shape)).flatten(1) - bias
    return columns.T.numpy(), bias.numpy()


def winners(x):
    """The maxima of 2 x 2 places of (C, H, W) as a matrix: one at the winner of each."""
    channels, rows, columns = x.shape
    numbers = np.arange(x.numel()).reshape(x.shape)
    chosen = [
        numbers[c, i : i + 2, j : j + 2].flatten()[int(x[c, i : i + 2, j : j + 2].argmax())]
        for c in range(channels)
        for i in range(0, rows - 1, 2)
        for j in range(0, columns - 1, 2)
    ]
    return np.eye(x.numel())[chosen]


def twin(name, stages, x, start):
    """Relevance (H, W) of one input (C, H, W) by the rule in matrix form, from the relevance of the scores."""
    kept, values = [], x
    for stage in stages:
        kept.append(values)
        values = stage(values[None])[0].detach()
    relevance = start(values.numpy())
    for number in reversed(range(len(stages))):
        stage, inputs = stages[number], kept[number]
        if isinstance(stage, nn.ReLU | nn.Flatten):
            continue
        if isinstance(stage, nn.MaxPool2d):
            relevance = winners(inputs).T @ relevance
            continue
        weight, bias = as_matrix(stage, inputs.shape)
        if name not in SHARES and all(isinstance(before, nn.Flatten) for before in stages[:number]):
            least, most = (end.expand_as(x).flatten().numpy() for end in (x.amin((1, 2), True), x.amax((1, 2), True)))
            relevance = share_box(x.flatten().numpy(), least, most, weight, relevance)
        else:
            relevance = SHARES.get(name, share_z_plus)(inputs.flatten().numpy(), weight, bias, relevance)
    return relevance.reshape(x.shape).sum(0)


def starts(name, label):
    """The relevance of the scores, as the papers define it."""

    def start(scores):
        one = np.eye(len(scores))[label]
        if name == "lrp_epsilon":
            return one * scores
        if name == "clrp":
            return abs(scores[label]) * (one - (1 - one) / (len(scores) - 1))
        if name == "sglrp":
            y = np.exp(scores) / np.exp(scores).sum()
            return y * (1 - y) * one - y * y[label] * (1 - one)
        return one * abs(scores[label])

    return start


STEMS = {
    "conv": lambda: [nn.Conv2d(2, 3, 3, padding=1)],
    "conv without bias": lambda: [nn.Conv2d(2, 3, 3, bias=False)],
    "strided": lambda: [nn.Conv2d(2, 3, 3, stride=2, padding=1)],
    "grouped": lambda: [nn.Conv2d(2, 4, 3, groups=2)],
    "dilated": lambda: [nn.Conv2d(2, 3, 3, dilation=2, padding="same", bias=False)],
    "normalised": lambda: [nn.Sequential(nn.Conv2d(2, 3, 3), random_norm(nn.BatchNorm2d, 3))],
    "normalised without bias": lambda: [
        nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False), random_norm(nn.BatchNorm2d, 4))
    ],
    "linear": lambda: [nn.Flatten(), nn.Linear(128, 7)],
    "linear without bias": lambda: [nn.Flatten(), nn.Linear(128, 7, bias=False)],
    "linear normalised": lambda: [nn.Flatten(), nn.Sequential(nn.Linear(128, 7), random_norm(nn.BatchNorm1d, 7))],
    "average pool": lambda: [nn.AvgPool2d(3, stride=2, padding=1)],
    "conv and average pool": lambda: [nn.Conv2d(2, 3, 3), nn.AvgPool2d(2)],
    "conv and adaptive pool": lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2))],
    "two convs and max pool": lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2, stride=2)],
}


def stemmed(stem):
    """A stem, a hidden layer and three scores, as the stages of a network."""
    torch.manual_seed(15)
    stages = [*STEMS[stem](), nn.ReLU(), nn.Flatten()]
    stages = [stage.double().eval() for stage in stages]
    with torch.no_grad():
        width = nn.Sequential(*stages)(images(1)).shape[1]
    return [*stages, nn.Linear(width, 16).double(), nn.ReLU(), nn.Linear(16, 3).double()]


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("stem", STEMS)
def test_rules_are_those_of_the_matrix_twins(stem, name):
    stages, x = stemmed(stem), images()
    found = explained(name, nn.Sequential(*stages), x)
    expected = np.stack([twin(name, stages, one, starts(name, label)) for one, label in zip(x, CLASSES, strict=True)])
    expected = np.maximum(expected, 0) if name == "clrp" else expected
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


# Numbers by hand ------------------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """Two units a = (3, 1) of the pixels (1, 2, 0), b = (2, 2) of a, s = a + b = (5, 3), which are the scores."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.double()
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1, 1, 0], [2, -0.5, 0]]))
            self.second.weight.copy_(torch.tensor([[1, -1], [0, 2]]))

    def forward(self, x):
        early = functional.relu(self.first(x.flatten(1)))
        return functional.relu(early + self.second(early))


def test_a_shortcut_by_hand():
    model, x = Shortcut(), torch.tensor([1, 2, 0], dtype=torch.float64).reshape(1, 1, 1, 3)
    assert model(x).tolist() == [[5, 3]]

    def assert_map(found, *expected):
        torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64))

    # s_0 gives 3 to a_0 and 2 to b_0 = a_0 - a_1 = 3 - 1
    assert_map(lrp_epsilon(model, x, [0], 1e-12), 6 * 1 / 3 - 1 * 2, 6 * 2 / 3 - 1 * -1, 0)  # b_0: 3 and -1
    assert_map(lrp_alpha_beta(model, x, [0]), 7 * 1 / 3 - 2 * 2, 7 * 2 / 3 - 2 * -1, 0)  # b_0: 2 * 2 and -2
    assert_map(lrp_z_plus(model, x, [0]), 5 * 1 / 3, 5 * 2 / 3, 0)  # b_0: 2 and 0
    assert_map(deep_taylor(model, x, [0], Setting()), 5 * 1 / 3, 5 * 2 / 3, 0)
    # s_1 gives all to a_1, through b_1 or not; pixels lie in [0, 2], so that x_1 = h_1 does not speak by its -0.5
    assert_map(deep_taylor(model, x, [1], Setting()), 3, 0, 0)
    assert_map(contrastive_lrp(model, x, [0], Setting()), 0, 5 * 2 / 3, 0)  # (5/3 - 5, 10/3)
    assert_map(contrastive_lrp(model, x, [1], Setting()), 3 - 3 * 1 / 3, 0, 0)
    y = 1 / (1 + math.exp(-2))
    assert_map(softmax_gradient_lrp(model, x, [0], Setting()), y * (1 - y) * (1 / 3 - 1), y * (1 - y) * 2 / 3, 0)


def test_a_neuron_for_which_all_speaks_with_one_sign_gives_its_relevance_undivided():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, -3.0], [0.0, 0.0]]))
    x = torch.ones(3, 1, 1, 2, dtype=torch.float64)
    assert lrp_alpha_beta(model, x, [0, 1, 2]).flatten(1).tolist() == [[1, 3], [1, 3], [0, 0]]
    assert lrp_z_plus(model, x, [0, 1, 2]).flatten(1).tolist() == [[1, 3], [0, 0], [0, 0]]
    assert residuals("lrp_z_plus", model, x, [0, 1, 2]).tolist() == [0, 4, 0]
    assert lrp_epsilon(model, x, [0, 1, 2], 0).flatten(1).tolist() == [[1, 3], [-1, -3], [0, 0]]


def test_biases_take_relevance_or_not_as_the_rule_says():
    """One score 2 x_1 + 3 x_2 - 4 x_3 + 1 at ones; the scores' root mean square is their size."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 3.0, -4.0]]))
        model[1].bias.fill_(1)
    x = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    share = 1 / (1 + EPSILON)
    torch.testing.assert_close(lrp_epsilon(model, x, [0]).flatten(), share * torch.tensor([2.0, 3.0, -4.0]).double())
    torch.testing.assert_close(
        lrp_alpha_beta(model, x, [0]).flatten(), 2 * torch.tensor([4 / 6, 6 / 6, -4 / 4]).double()
    )
    torch.testing.assert_close(lrp_z_plus(model, x, [0]).flatten(), torch.tensor([4 / 5, 6 / 5, 0]).double())


def test_the_box_of_the_pixels_by_hand():
    """One score x_1 - x_2 of pixels 0.75 and 0.25: they speak by x_1 - l and h - x_2, other channels do not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1.0, 0, 0]]))
    x = torch.tensor([0.75, 0.25, -9, 9], dtype=torch.float64).reshape(1, 2, 1, 2)

    def found(box):
        return deep_taylor(model, x, [0], Setting(box=box)).flatten().tolist()

    assert found(((0, -9), (1, 9))) == [0.5 * 0.75 / 1.5, 0.5 * 0.75 / 1.5]
    assert found(((0.8, 0), (1, 0))) == [0, 0.5]  # 0.75 lies outside
    assert found(None) == [0.25, 0.25]
    with pytest.raises(ScanError, match="of 1 channels, the inputs have 2"):
        found(((0,), (1,)))


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense, normed, weighed])
def test_epsilon_rule_goes_over_into_gradient_times_input(build):
    model, x = build(), images(20)
    classes = [number % 3 for number in range(20)]
    expected = (x * score_gradients(model, x, classes)).sum(1)
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(lrp_epsilon(model, x, classes, 1e-13), expected, rtol=1e-6, atol=1e-9)
    assert float((lrp_epsilon(model, x, classes) - expected).abs().max()) > 1e-3 * float(expected.abs().max())


def wide():
    """With so many units that something speaks for each class."""
    return nn.Sequential(*stemmed("two convs and max pool"))


class Arithmetic(nn.Module):
    """Sums, differences and factors in many forms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(14)
        self.first, self.head = nn.Conv2d(2, 4, 3).double(), nn.Linear(4, 3).double()
        self.second = nn.Conv2d(4, 4, 1).double()

    def forward(self, x):
        early = functional.relu(self.first((x * torch.tensor([[[2.0]], [[-3.0]]], dtype=x.dtype)).div(4)))
        late = torch.sub(1 - early / 4, self.second(early), alpha=3)
        late = torch.rsub(early, late, alpha=2) + early.neg() * (early > 0.3) - 0.5
        late += torch.add(early, late.relu(), alpha=0.5)
        late -= 0.25
        late /= 2
        return self.head(late.sum((2, 3)) / 36)


def test_arithmetic_goes_over_into_gradient_times_input():
    model, x = Arithmetic(), images()
    expected = (x * score_gradients(model, x, CLASSES)).sum(1)
    torch.testing.assert_close(lrp_epsilon(model, x, CLASSES, 1e-13), expected, rtol=1e-6, atol=1e-9)
    for method in METHODS:
        assert bool(torch.isfinite(method.explain(model, x, CLASSES, Setting())).all())


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].total])
@pytest.mark.parametrize("build", [wide, pooled, Residual, Dense, normed, weighed])
def test_relevance_is_kept_without_biases_also_by_shortcuts_and_concatenations(build, name):
    model, x = unbiased(build()), images()
    size = scores_of(model, x).detach().abs().max()
    if name == "lrp_epsilon":
        lost = BY_NAME[name].total(model, x, CLASSES, Setting()) - lrp_epsilon(model, x, CLASSES, 1e-13).sum((1, 2))
    else:
        lost = residuals(name, model, x)
    assert float(lost.abs().max()) < 1e-9 * float(size)


@pytest.mark.parametrize("build", [pooled, Residual, Dense, weighed])
def test_z_plus_keeps_relevance_beside_biases(build):
    for name in ("lrp_z_plus", "deep_taylor", "sglrp"):
        assert float(residuals(name, build(), images()).abs().max()) < 1e-12
    for name in ("lrp_epsilon", "lrp_alpha_beta"):
        assert float(residuals(name, build(), images()).abs().max()) > 1e-3


def test_a_negative_score_is_explained_by_what_speaks_for_it():
    model, x = unbiased(pooled()), images(8)
    scores = scores_of(model, x).detach()
    classes = scores.argmin(1).tolist()
    assert float(scores.amin(1).max()) < 0
    for name in ("lrp_z_plus", "deep_taylor"):
        found = explained(name, model, x, classes)
        assert float(found.min()) >= 0
        torch.testing.assert_close(found.sum((1, 2)), -scores.amin(1))


def test_softmax_gradient_is_where_the_relevance_starts():
    """Of scores that are the pixels themselves, each pixel has its score's relevance."""
    model = nn.Flatten()
    x = 3 * images(3, 1, 2)
    source = x.flatten(1).clone().requires_grad_(True)
    own = source.softmax(1)[torch.arange(3), torch.tensor(CLASSES)]
    (expected,) = torch.autograd.grad(own.sum(), source)
    torch.testing.assert_close(softmax_gradient_lrp(model, x, CLASSES, Setting()).flatten(1), expected)
    sure = torch.tensor([90.0, 0, 0, 0]).reshape(1, 1, 2, 2)  # whose probability rounds to 1
    found = softmax_gradient_lrp(model, sure, [0], Setting()).flatten()
    torch.testing.assert_close(found, math.exp(-90) * torch.tensor([3.0, -1, -1, -1]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["deep_taylor", "clrp", "sglrp"])
def test_deep_taylor_does_not_depend_on_the_units_of_the_pixels(name):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).double()  # fmt: skip
    x, mean, deviation = images(), torch.tensor([0.3, -2.0]).double(), torch.tensor([0.5, 4.0]).double()
    wide = (slice(None), None, None)
    standardised = nn.Sequential(nn.Conv2d(2, 4, 3).double(), *model[1:])
    with torch.no_grad():
        standardised[0].weight.copy_(model[0].weight * deviation[wide])
        standardised[0].bias.copy_(model[0].bias + (model[0].weight * mean[wide]).sum((1, 2, 3)))
    expected = explained(name, model, x)
    torch.testing.assert_close(explained(name, standardised, (x - mean[wide]) / deviation[wide]), expected)
    ends = x.amin((0, 2, 3)) - 0.5, x.amax((0, 2, 3)) + 0.5
    first, second = (
        BY_NAME[name].explain(own, own_x, CLASSES, Setting(box=tuple(tuple(end.tolist()) for end in own_ends)))
        for own, own_x, own_ends in (
            (model, x, ends),
            (standardised, (x - mean[wide]) / deviation[wide], [(end - mean) / deviation for end in ends]),
        )
    )
    torch.testing.assert_close(first, second)
    assert float((first - expected).abs().max()) > 0.01 * float(expected.abs().max())

    class Inside(nn.Module):
        """Puts the pixels into the units of the network first, in one of many spellings."""

        def __init__(self, spelling):
            super().__init__()
            self.spelling, self.rest, self.norm = (
                spelling,
                model,
                nn.BatchNorm2d(2, affine=False, eps=0).double().eval(),
            )
            self.norm.running_mean.copy_(-mean / deviation)
            self.norm.running_var.copy_(deviation**-2)

        def forward(self, x):
            if self.spelling == "operators":
                return self.rest(-(x * -deviation[wide] - mean[wide]))
            if self.spelling == "in place":
                return self.rest(x.mul_(deviation[wide]).add_(mean[wide]))
            if self.spelling == "turned":
                return turned(x * -deviation[wide] - mean[wide])
            if self.spelling == "by channel":
                parts = [part * d + m for part, d, m in zip(x.chunk(2, 1), deviation, mean, strict=True)]
                return self.rest(torch.cat(parts, 1))
            return self.rest(self.norm(x))

    turned = nn.Sequential(nn.Conv2d(2, 4, 3).double(), *model[1:])
    with torch.no_grad():
        turned[0].weight.copy_(-model[0].weight)
        turned[0].bias.copy_(model[0].bias)
    for spelling in ("operators", "in place", "turned", "by channel", "normalisation"):
        found = explained(name, Inside(spelling), (x - mean[wide]) / deviation[wide])
        torch.testing.assert_close(found, expected)


# Maintained libraries -------------------------------------------------------------------------------------------------


def of_modules():
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, stride=1, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3),
    ).double()  # fmt: skip


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not already require")
def test_rules_agree_with_captum():
    x = images().abs()  # its z+ rule is for inputs that are not negative
    signs = of_modules()(x)[range(3), CLASSES].sign().detach()[:, None, None]

    def by_captum(layers, pools, x, label):
        model = of_modules()
        for module in model:
            if not isinstance(module, nn.ReLU):
                module.rule = layers(module) if isinstance(module, nn.Conv2d | nn.Linear) else pools(module)
        return LRP(model).attribute(x, target=label).detach().sum(1)

    def exact(_):
        return EpsilonRule(1e-13)

    found = lrp_z_plus(of_modules(), x, CLASSES) * signs
    rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    rule.STABILITY_FACTOR = 1e-13
    expected = by_captum(lambda _: copy.deepcopy(rule), exact, x, torch.tensor(CLASSES))
    torch.testing.assert_close(found, expected)

    found = lrp_epsilon(of_modules(), x, CLASSES)
    for number, label in enumerate(CLASSES):  # its epsilon is in units of the values, and the same for all inputs
        one, sizes, values = x[number : number + 1], {}, x[number : number + 1]
        for place, module in enumerate(of_modules()):
            values = module(values).detach()
            sizes[place] = float(values.square().mean().sqrt())
        model = of_modules()
        for place, module in enumerate(model):
            if not isinstance(module, nn.ReLU):
                copies = isinstance(module, nn.MaxPool2d | nn.Flatten)
                module.rule = EpsilonRule(1e-13 if copies else EPSILON * sizes[place])
        expected = LRP(model).attribute(one, target=label).detach().sum(1)
        torch.testing.assert_close(found[number : number + 1], expected)


def test_rules_agree_with_zennit(peer):
    rules = peer("zennit.rules")
    from zennit.attribution import Gradient
    from zennit.composites import NameMapComposite
    from zennit.core import Stabilizer

    model, x = of_modules(), images()
    chosen = torch.eye(3, dtype=x.dtype)[CLASSES]
    plus = rules.ZPlus(stabilizer=1e-13, zero_params="bias")
    box = rules.ZBox(
        x.amin((2, 3), True).expand_as(x), x.amax((2, 3), True).expand_as(x), stabilizer=1e-13, zero_params="bias"
    )
    every = {
        "lrp_epsilon": [rules.Epsilon(Stabilizer(EPSILON, norm_scale=True))] * 3,
        "lrp_alpha_beta": [rules.AlphaBeta(2, 1, stabilizer=1e-13)] * 2 + [rules.Norm(stabilizer=1e-13)],
        "lrp_z_plus": [plus] * 2 + [rules.Norm(stabilizer=1e-13)],
        "deep_taylor": [box, plus, rules.Norm(stabilizer=1e-13)],
    }
    for name, (first, layer, pool) in every.items():
        composite = NameMapComposite(
            [(("0",), first), (("3", "7", "9"), layer), (("5",), pool), (("1", "4", "8"), rules.Pass())]
        )

        def start(scores, name=name):
            return chosen * (scores if name == "lrp_epsilon" else scores.abs()).detach()

        with Gradient(model, composite) as attributor:
            _, expected = attributor(x.clone(), start)
        torch.testing.assert_close(explained(name, model, x), expected.sum(1))


# Networks -------------------------------------------------------------------------------------------------------------


class By(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Spelled(nn.Module):
    """One network of a stem, a shortcut, a pooling and a head, spelled in many ways."""

    def __init__(self, spelling):
        super().__init__()
        torch.manual_seed(9)
        self.spelling = spelling
        self.stem, self.inner = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = random_norm(nn.BatchNorm2d, 4), random_norm(nn.BatchNorm2d, 4)
        self.relu, self.head = nn.ReLU(inplace=spelling == "in place"), nn.Linear(4, 3)
        self.others = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        self.drop = nn.Dropout()
        self.double().eval()

    def forward(self, x):
        return getattr(self, "by_" + self.spelling.replace(" ", "_"))(x)

    def by_modules(self, x):
        relu_1, relu_2, pool, mean, flatten = self.others
        early = relu_1(self.first(self.stem(x)))
        return self.head(self.drop(flatten(mean(pool(relu_2(self.second(self.inner(early)) + early))))))

    def by_in_place(self, x):
        early = self.relu(self.first(self.stem(x)))
        late = self.second(self.inner(early))
        late += early
        late = torch.relu_(late)
        return [self.head(functional.max_pool2d(late, 2).mean((2, 3)))]

    def by_one_relu(self, x):
        early = self.relu(self.first(self.stem(x)))
        late = self.relu(torch.add(early, self.second(self.inner(early))))
        pooled = functional.avg_pool2d(functional.max_pool2d(late, 2), 4)
        return self.head(functional.dropout(pooled, training=self.training).squeeze(3).squeeze(2))

    def by_functions(self, x):
        stem = functional.conv2d(x, self.stem.weight, padding=1)
        early = functional.batch_norm(
            stem, self.first.running_mean, self.first.running_var, self.first.weight, self.first.bias
        ).relu()
        late = functional.conv2d(early, weight=self.inner.weight, bias=self.inner.bias, padding=(1, 1))
        late = functional.relu(self.second(late).add_(early), inplace=True)
        pooled = functional.adaptive_avg_pool2d(functional.max_pool2d(late, 2), (1, 1))
        return {"scores": functional.linear(pooled.reshape(len(x), -1), self.head.weight, self.head.bias)}

    def by_changes(self, x):
        stem = self.stem(x)
        early = self.relu(self.first(stem))
        stem.zero_()
        late = self.second(self.inner(early)) + early
        result = late.relu()
        late.zero_()
        means = functional.max_pool2d(result, 2).mean((2, 3))
        return self.head(means)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_spelling_of_a_network_does_not_matter(name):
    x = images()
    expected = explained(name, Spelled("modules"), x)
    assert float(expected.abs().max()) > 0
    for spelling in ("in place", "one relu", "functions", "changes"):
        torch.testing.assert_close(explained(name, Spelled(spelling), x), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_layer_that_was_changed_in_place_is_no_longer_what_a_normalisation_is_merged_with(name):
    torch.manual_seed(12)
    conv, norm, dense = nn.Conv2d(2, 4, 3), random_norm(nn.BatchNorm2d, 4), nn.Linear(144, 3)
    first, second = (
        nn.Sequential(conv, By(own), norm, nn.ReLU(), nn.Flatten(), dense).double().eval()
        for own in (torch.relu_, torch.relu)
    )
    expected = explained(name, second, images())
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(explained(name, first, images()), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_pixels_that_were_changed_by_their_sums_are_pixels_no_more(name):
    torch.manual_seed(13)
    rest = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    first, second = (
        nn.Sequential(By(own), *rest).double()
        for own in (lambda x: x.add_(x.mean((2, 3), True)), lambda x: x + x.mean((2, 3), True))
    )
    expected = explained(name, second, images())
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(explained(name, first, images()), expected)


def test_a_constant_may_be_larger_than_what_it_is_added_to():
    """Two copies of a value, one of them 3 larger: (2, 5) times (1, 1)."""

    class Copies(nn.Module):
        def forward(self, x):
            return (x.flatten(1) + torch.tensor([0.0, 3.0], dtype=x.dtype)).sum(1, keepdim=True)

    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    torch.testing.assert_close(lrp_epsilon(Copies(), x, [0], 0).flatten(), torch.tensor([2.0 + 2.0]).double())
    torch.testing.assert_close(lrp_z_plus(Copies(), x, [0]).flatten(), torch.tensor([7.0]).double())


@pytest.mark.parametrize("name", BY_NAME)
def test_normalisation_is_merged_with_its_layer(name):
    torch.manual_seed(10)
    conv, dense = nn.Conv2d(2, 4, 3, stride=2).double().eval(), nn.Linear(36, 8).double().eval()
    norm_2d, norm_1d = random_norm(nn.BatchNorm2d, 4), random_norm(nn.BatchNorm1d, 8)
    head = nn.Linear(8, 3).double()
    apart = nn.Sequential(conv, norm_2d, nn.ReLU(), nn.Flatten(), dense, norm_1d, nn.ReLU(), head)
    merged = nn.Sequential(
        fuse_conv_bn_eval(conv, norm_2d), nn.ReLU(), nn.Flatten(), fuse_linear_bn_eval(dense, norm_1d), nn.ReLU(), head
    )
    found = explained(name, apart, images())
    assert float(found.abs().max()) > 0
    torch.testing.assert_close(found, explained(name, merged, images()))


@pytest.mark.parametrize("name", BY_NAME)
def test_networks_of_the_zoo(name):
    for source in ("lenet5", "vgg11", "resnet18", "alexnet"):
        torch.manual_seed(7)
        options = {"batch_norm": True, "dropout": 0.5} if source == "alexnet" else {}
        model = build_model(source, {"in_channels": 1, "classes": 3, **options}).eval().double()
        x = images(1, 1, 32)
        found = explained(name, model, x, [2])
        assert float(found.abs().max()) > 0
        if name == "lrp_epsilon":
            expected = (x * score_gradients(model, x, [2])).sum(1)
            torch.testing.assert_close(lrp_epsilon(model, x, [2], 1e-13), expected, rtol=1e-6, atol=1e-9)
        elif name in ("lrp_z_plus", "deep_taylor", "sglrp"):
            assert float(residuals(name, model, x, [2]).abs().max()) < 1e-9 * float(found.abs().sum())


class Applies(nn.Module):
    """A stem, something else, and a head."""

    def __init__(self, other):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.other, self.head = nn.Conv2d(2, 4, 3), other, nn.Linear(4, 3)
        self.double().eval()

    def forward(self, x):
        maps = self.other(self.stem(x))
        return self.head(maps.mean((2, 3)))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


REFUSED = {
    "sigmoid": (nn.Sigmoid(), "applies sigmoid,"),
    "gelu": (nn.GELU(), "applies gelu,"),
    "leaky_relu": (nn.LeakyReLU(), "applies leaky_relu,"),
    "gate": (By(lambda x: x * x.mean((2, 3), True)), "applies a product of two maps "),
    "quotient": (By(lambda x: x / x.sum(1, True)), "applies div,"),
    "attention": (By(lambda x: x.flatten(2).softmax(2).reshape_as(x)), "applies softmax,"),
    "layer norm": (nn.GroupNorm(2, 4), "applies native_group_norm,"),
    "batch norm": (nn.BatchNorm2d(4, track_running_stats=False), "applies batch normalisation by the batch's own"),
    "dropout": (By(lambda x: functional.dropout(x, 0.5, training=True)), "dropout"),
    "matrix product": (By(lambda x: x @ torch.eye(6, dtype=x.dtype)), "applies unsafe_view|applies (mm|bmm),"),
    "transposed": (nn.ConvTranspose2d(4, 4, 2), "applies a convolution of another kind,"),
    "own function": (By(Doubled.apply), "applies the custom function Doubled,"),
    "clamp": (By(lambda x: x.clamp(min=0)), "applies clamp,"),
}


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("other", REFUSED)
def test_what_has_no_rule_is_refused_by_name(other, name):
    module, sentence = REFUSED[other]
    with pytest.raises(ModelError, match=sentence):
        explained(name, Applies(module), images())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_cannot_be_reached_is_refused():
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).double(), torch.zeros(1, 4, 6, 6).double())
    with pytest.raises(ModelError, match="applies a ReLU that nnscan cannot reach, a convolution of another kind,"):
        lrp_z_plus(Applies(traced), images(), CLASSES)
    with pytest.raises(ModelError, match="do not depend on the input"):
        lrp_z_plus(Applies(By(lambda x: x.detach())), images(), CLASSES)


def test_a_contrast_needs_another_class():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).double()
    for name in ("clrp", "sglrp"):
        with pytest.raises(ModelError, match="single class score"):
            explained(name, model, images(), [0, 0, 0])


@pytest.mark.parametrize("name", BY_NAME)
def test_maps_and_totals_come_in_batches_and_leave_the_model_alone(name):
    model = nn.Sequential(*pooled()[:3], nn.ReLU(inplace=True), *pooled()[4:]).float().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, classes = images(20).float(), [number % 3 for number in range(20)]
    kept, other, random = x.clone(), Applies(nn.Sigmoid()).float(), torch.get_rng_state()
    with torch.inference_mode():
        found = explained(name, model, x.clone(), classes)
    assert (found.shape, found.dtype, found.requires_grad) == ((20, 8, 8), torch.float32, False)
    torch.testing.assert_close(found[17:], explained(name, model, x[17:], classes[17:]))
    total = BY_NAME[name].total
    assert (total is None) == (name == "clrp")
    if total is not None:
        torch.testing.assert_close(
            total(model, x, classes, Setting())[17:], total(model, x[17:], classes[17:], Setting())
        )
    for wrong in (other, model):
        with pytest.raises((ModelError, ScanError)):
            explained(name, wrong, x, [3] * 20)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model[3].inplace
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
