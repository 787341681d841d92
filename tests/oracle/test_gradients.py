"""Ways back to the pixels against differences of scores, closed forms and Captum."""

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from torch import nn

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of
from nnscan.explainers import EXPLAINERS
from nnscan.gradients import integrated_attributions, saliency, score_gradients

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
