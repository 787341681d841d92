"""Ways back to the pixels against differences of scores, closed forms, slow twins and Captum."""

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from torch import nn

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of, weighed
from nnscan.backprop import RECTIFIED_SHARE, guided_scores, rectified_scores
from nnscan.explainers import EXPLAINERS
from nnscan.explanations import Setting
from nnscan.gradients import (
    METHODS,
    NOISE,
    SAMPLES,
    integrated_attributions,
    saliency,
    score_gradients,
    smoothed_gradients,
)

EXPLAIN = {method.name: method.explain for method in METHODS}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense])
def test_gradients_are_differences_of_scores(build):
    model, x, step = build(), images(), 1e-6
    found = score_gradients(model, x, CLASSES)
    generator = torch.Generator().manual_seed(3)
    for number, label in enumerate(CLASSES):
        direction = torch.randn(x.shape[1:], dtype=x.dtype, generator=generator)
        ends = [scores_of(model, x[number : number + 1] + sign * step * direction)[0, label] for sign in (1, -1)]
        expected = float((ends[0] - ends[1]).detach()) / (2 * step)
        assert float((found[number] * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_maps_are_the_largest_size_over_the_channels():
    attributions = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert saliency(attributions).tolist() == [[[3.0, 2.0]]]
    model, x = plain(), images()
    found = EXPLAINERS["backpropagation"](model, x, CLASSES)
    torch.testing.assert_close(found, score_gradients(model, x, CLASSES).abs().max(1).values)
    torch.testing.assert_close(found, Saliency(model).attribute(x, target=torch.tensor(CLASSES)).amax(1))


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(
    ("name", "method"), [("deconvolution", Deconvolution), ("guided backpropagation", GuidedBackprop)]
)
def test_other_ways_back_agree_with_captum(name, method):
    model, x = plain(), images()
    expected = method(model).attribute(x.clone().requires_grad_(True), target=torch.tensor(CLASSES))
    torch.testing.assert_close(EXPLAINERS[name](model, x, CLASSES), expected.abs().amax(1).detach())


def test_deconvolution_by_hand():
    """A ReLU lets every positive gradient pass, also where its own output is zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 2.0], [-3.0, 0.0], [5.0, 7.0]]))
        model[3].weight.copy_(torch.tensor([[2.0, 4.0, -1.0]]))
    x = torch.tensor([1.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2)  # the second hidden unit is not active
    assert EXPLAINERS["deconvolution"](model, x, [0]).tolist() == [[[abs(2 * 1 + 4 * -3), 2 * 2]]]
    assert EXPLAINERS["guided backpropagation"](model, x, [0]).tolist() == [[[2, 4]]]
    assert EXPLAINERS["backpropagation"](model, x, [0]).tolist() == [[[abs(2 - 5), abs(4 - 7)]]]


def test_integrated_gradients_of_a_linear_model_are_its_terms():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    x = images()
    expected = x * model[1].weight[CLASSES].reshape(x.shape).detach()
    torch.testing.assert_close(integrated_attributions(model, x, CLASSES), expected)


@pytest.mark.parametrize("build", [plain, pooled, Residual])
def test_integrated_gradients_add_up_to_the_score(build):
    model, x = build(), images(20)
    classes = [number % 3 for number in range(20)]
    found = integrated_attributions(model, x, classes)
    scores = scores_of(model, x) - scores_of(model, torch.zeros_like(x))
    expected = scores[torch.arange(20), classes].detach()
    error = (found.sum((1, 2, 3)) - expected).abs().max()
    assert float(error) < 0.02 * float(scores.detach().abs().max())
    # the sum of the definition, with many steps
    places = (torch.arange(2000, dtype=x.dtype) + 0.5) / 2000
    for number in (0, 1):
        way = (x[number] * places[:, None, None, None]).requires_grad_(True)
        (gradient,) = torch.autograd.grad(scores_of(model, way)[:, classes[number]].sum(), way)
        twin = x[number] * gradient.mean(0)
        assert float((found[number] - twin).abs().max()) < 0.05 * float(twin.abs().max())


def test_the_map_of_integrated_gradients_adds_up_to_its_total():
    model, x = plain(), images()
    method = next(method for method in METHODS if method.name == "integrated_gradients")
    found, total = method.explain(model, x, CLASSES, Setting()), method.total(model, x, CLASSES, Setting())
    expected = (scores_of(model, x) - scores_of(model, torch.zeros_like(x)))[torch.arange(3), CLASSES].detach()
    torch.testing.assert_close(total, expected)
    assert float(found.min()) < 0 < float(found.max())
    assert float((found.sum((1, 2)) - total).abs().max()) < 0.02 * float(total.abs().max())
    assert [method.name for method in METHODS if method.total] == ["integrated_gradients"]


class Squares(nn.Module):
    """The score of the class c is the sum of `c + 1` times the squared pixels."""

    def forward(self, x):
        return x.square().sum((1, 2, 3))[:, None] * torch.tensor([1, 2, 3], dtype=x.dtype)


def test_smooth_grad_of_squares_shows_its_noise():
    """The mean gradient of w x^2 is 2 w (x + the mean noise), which says what was drawn and how it was scaled."""
    x = images() * torch.tensor([1.0, 5, 0.2]).reshape(3, 1, 1, 1)
    state = torch.get_rng_state()
    found, other = smoothed_gradients(Squares(), x, [1, 1, 1], seed=0), smoothed_gradients(Squares(), x, [1] * 3, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(found, other)
    spread = NOISE * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))
    noise = (found / 4 - x) / spread[:, None, None, None]
    assert float(noise[0].std()) == pytest.approx(SAMPLES**-0.5, rel=0.2)
    assert abs(float(noise[0].mean())) < 4 / (SAMPLES * noise[0].numel()) ** 0.5
    torch.testing.assert_close(noise[1:], noise[:1].expand(2, -1, -1, -1))  # the same draws for all inputs
    again = EXPLAIN["smooth_grad"](Squares(), x, [1, 1, 1], Setting(seed=0))
    torch.testing.assert_close(again, found.abs().amax(1), rtol=0, atol=0)


@pytest.mark.parametrize("build", [plain, Residual])
def test_smooth_grad_is_the_mean_of_gradients_and_the_same_in_both_precisions(build):
    model, x = build(), images(2)
    found = EXPLAIN["smooth_grad"](model, x, CLASSES[:2], Setting(3))
    generator = torch.Generator().manual_seed(3)
    sizes = [16, 16, 16, 2]
    noise = torch.cat([torch.randn((size, *x.shape[1:]), dtype=x.dtype, generator=generator) for size in sizes])
    for number, label in enumerate(CLASSES[:2]):
        copies = x[number] + 0.15 * (x[number].max() - x[number].min()) * noise
        gradients = [score_gradients(model, copy[None], [label])[0] for copy in copies]
        torch.testing.assert_close(found[number], torch.stack(gradients).mean(0).abs().amax(0))
    single = EXPLAIN["smooth_grad"](model.float(), x.float(), CLASSES[:2], Setting(3))
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-6)


def twin_of_rectified(model, x, label):
    """Return the rectified gradient of one input: the rule, put on every ReLU of torch's own graph."""
    source = x[None].clone().requires_grad_(True)
    output = scores_of(model, source)
    waiting, seen = [output.grad_fn], set()

    def rule(gradients_in, gradients_out):
        (arriving,) = gradients_out
        importance = (arriving * outputs.pop(0)).numpy()
        return (arriving * torch.from_numpy(importance > np.percentile(importance, 98)),)

    outputs, nodes = [], []
    while waiting:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        if node.name() == "ReluBackward0":
            nodes.append(node)
    for node in nodes:  # in the order of the way back
        outputs.append(node._saved_result.detach())
        node.register_hook(rule)
    (gradient,) = torch.autograd.grad(output[0, label], source)
    assert not outputs
    return gradient[0]


@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense, weighed])
def test_rectified_gradient_is_that_of_a_rule_on_the_graph(build):
    assert RECTIFIED_SHARE == 0.98
    model, x = build(), images(20)
    classes = [number % 3 for number in range(20)]
    found = rectified_scores(model, x, classes)
    expected = torch.stack([twin_of_rectified(model, one, label) for one, label in zip(x, classes, strict=True)])
    assert float(expected.abs().max()) > 0
    assert float((expected - guided_scores(model, x, classes)).abs().max()) > 1e-4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(EXPLAIN["rectified_gradient"](model, x, classes, Setting()), (x * expected).sum(1))


def test_rectified_gradient_by_hand():
    """Of the products a R = (4, -6, 0, 20) the percentile 98 % lies between 4 and 20: only the last unit passes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 0.0], [-5.0, 1.0], [2.0, 3.0]]))
        model[3].weight.copy_(torch.tensor([[2.0, -2.0, 9.0, 4.0]]))
    x = torch.tensor([1.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    assert rectified_scores(model, x, [0]).tolist() == [[[[4 * 2, 4 * 3]]]]
    assert EXPLAIN["rectified_gradient"](model, 3 * x, [0], Setting()).tolist() == [[[3 * 4 * 2, 3 * 4 * 3]]]
