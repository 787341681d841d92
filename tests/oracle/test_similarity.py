"""Guided backpropagation and similarity values against twins written from the formulas, and against Captum."""

import math

import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop, NeuronGuidedBackprop
from torch import nn

from nnscan.backprop import guided_backpropagation, guided_scores
from nnscan.models import build_model
from nnscan.similarities import similarity


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 5),
    ).double()


@pytest.fixture
def x():
    return torch.randn(2, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def convolve(image, weight, bias, stride, padding):
    """Convolve one image (C, H, W), tap by tap."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    size = (image.shape[1] - weight.shape[2]) // stride + 1
    result = np.zeros((len(weight), size, size))
    for k, i, j in np.ndindex(result.shape):
        window = image[:, i * stride : i * stride + weight.shape[2], j * stride : j * stride + weight.shape[3]]
        result[k, i, j] = (window * weight[k]).sum() + bias[k]
    return result


def transpose(gradient, weight, stride, padding, shape):
    """Spread the gradient (K, h, w) of a convolution's output back over its input (C, H, W), tap by tap."""
    result = np.zeros((shape[0], shape[1] + 2 * padding, shape[2] + 2 * padding))
    for k, i, j in np.ndindex(gradient.shape):
        rows, columns = i * stride, j * stride
        result[:, rows : rows + weight.shape[2], columns : columns + weight.shape[3]] += gradient[k, i, j] * weight[k]
    return result[:, padding : padding + shape[1], padding : padding + shape[2]]


def guided(gradient, feature_map):
    """Springenberg's rule at one ReLU."""
    return gradient * (gradient > 0) * (feature_map > 0)


def twin(net, image):
    """Return by hand the images of all filters of both convolutions, and of all class scores, for one image."""
    first, second, linear = net[0], net[2], net[5]
    w1, b1, w2, b2, w3 = (t.detach().numpy() for t in (*first.parameters(), *second.parameters(), linear.weight))
    f1 = np.maximum(convolve(image, w1, b1, 1, 1), 0)
    f2 = np.maximum(convolve(f1, w2, b2, 2, 0), 0)

    def below_first(gradient):
        return transpose(guided(gradient, f1), w1, 1, 1, image.shape)

    def below_second(gradient):
        return below_first(transpose(guided(gradient, f2), w2, 2, 0, f1.shape))

    ones = lambda maps, k: np.ones_like(maps) * (np.arange(len(maps)) == k)[:, None, None]  # noqa: E731
    return (
        np.stack([below_first(ones(f1, k)) for k in range(len(f1))]),
        np.stack([below_second(ones(f2, k)) for k in range(len(f2))]),
        np.stack([below_second(w3[unit].reshape(f2.shape)) for unit in range(len(w3))]),
    )


def test_images_equal_guided_backpropagation_by_hand(net, x):
    twins = [twin(net, image.numpy()) for image in x]
    results = (
        guided_backpropagation(net, x, "0"),
        guided_backpropagation(net, x, "2"),
        guided_backpropagation(net, x, "5", rectify=False),
    )
    for position, result in enumerate(results):
        expected = np.stack([one[position] for one in twins])
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(guided_scores(net, x, [4, 1])[1].numpy(), twins[1][2][1], rtol=0, atol=1e-13)


def test_rule_differs_from_the_plain_gradient(net, x):
    source = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(source)[:, 0].sum(), source)
    assert (guided_scores(net, x, [0, 0]) - gradient).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_images_equal_captum(net, x):
    images = guided_backpropagation(net, x, "2")
    for k in range(4):
        peer = NeuronGuidedBackprop(net, net[3]).attribute(
            x.clone().requires_grad_(), lambda maps, k=k: maps[:, k].sum(dim=(1, 2))
        )
        torch.testing.assert_close(images[:, k], peer, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        guided_scores(net, x, [3, 3]),
        GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=3),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize("source", ["lenet5", "resnet18"])
def test_images_of_the_zoo_equal_captum(source):
    torch.manual_seed(1)
    model = build_model(source, {"in_channels": 1}).double().eval()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    peer = GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=torch.tensor([7, 2]))
    assert peer.abs().max() > 0
    torch.testing.assert_close(guided_scores(model, x, [7, 2]), peer, rtol=1e-9, atol=1e-15)


def test_images_without_relu_are_gradients(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2)).double()
    images = guided_backpropagation(net, x, "2", rectify=False)
    source = x.clone().requires_grad_()
    for k in range(4):
        (gradient,) = torch.autograd.grad(net(source)[:, k].sum(), source)
        torch.testing.assert_close(images[:, k], gradient, rtol=0, atol=1e-14)


def test_similarity_values_equal_the_equations(net):
    averages = torch.rand(5, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def cosine(first, second):
        norms = math.sqrt((first**2).sum()) * math.sqrt((second**2).sum())
        return (first * second).sum() / norms if norms else 0.0

    for method in (1, 2):
        frame = similarity(net, averages, method=method)
        assert len(frame) == 5 * (3 + 4)
        values = frame.set_index(["class", "layer", "filter"])["similarity"]
        for label, image in enumerate(averages.numpy()):
            first, second, scores = twin(net, image)
            reference = image if method == 1 else scores[label]
            for layer, images in (("0", first), ("2", second)):
                for k, omega in enumerate(images):
                    assert values[label, layer, k] == pytest.approx(cosine(reference, omega), abs=1e-12)
