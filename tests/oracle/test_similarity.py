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


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize(
    ("source", "options", "layer", "after"),
    [
        ("lenet5", {}, "features.3", "features.4"),
        ("simple_cnn", {}, "features.6", "features.7"),
        ("alexnet", {"size": 16}, "features.8", "features.9"),
        ("vgg11", {"size": 16}, "features.3", "features.4"),
        ("resnet18", {"size": 8}, "features.3.bn1", "features.3.relu1"),  # not a convolution
        ("lenet5", {}, "head.1", "head.2"),  # a linear layer
    ],
)
def test_filters_of_the_zoo_equal_captum(source, options, layer, after):
    torch.manual_seed(1)
    model = build_model(source, {"in_channels": 1, **options}).double().eval()
    x = torch.rand(2, 1, options.get("size", 32), options.get("size", 32), dtype=torch.float64)
    images = guided_backpropagation(model, x, layer)
    for k in range(0, images.shape[1], 5):
        peer = NeuronGuidedBackprop(model, model.get_submodule(after)).attribute(
            x.clone().requires_grad_(), lambda maps, k=k: maps[:, k].flatten(1).sum(1) if maps.ndim > 2 else maps[:, k]
        )
        torch.testing.assert_close(images[:, k], peer, rtol=1e-9, atol=1e-14)
    assert (images.flatten(2).abs().amax(2) > 0).double().mean() > 0.3


class Twice(nn.Module):
    """A convolution applied to its own output."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.inner(nn.functional.relu(self.inner(x)))


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "one by one": lambda: nn.Conv2d(4, 6, 1),
    "padded": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1)),
    "padded more than the kernel": lambda: nn.Conv2d(4, 6, 2, padding=3),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "strided past its kernel": lambda: nn.Conv2d(4, 6, 2, stride=(3, 4)),
    "strided and padded": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), bias=False),
    "dilated": lambda: nn.Conv2d(4, 6, (2, 3), dilation=(3, 2), padding=(0, 2)),
    "all at once": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 3)),
    "same": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "twice": Twice,
    "normalised": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_kind_of_convolution_equals_filter_by_filter(kind, rectify):
    torch.manual_seed(2)
    first, layer = nn.Conv2d(2, 4, 3).double(), CONVOLUTIONS[kind]().double().eval()
    net = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d((2, 1)), layer, nn.Flatten(), nn.LazyLinear(3).double())
    x = torch.randn(3, 2, 14, 13, dtype=torch.float64)
    net(x)
    images = guided_backpropagation(net, x, "3", rectify=rectify)

    def relu(values):
        result = torch.relu(values)
        result.register_hook(lambda gradient: gradient * (gradient > 0))
        return result

    for sample, image in enumerate(x):
        source = image[None].clone().requires_grad_()
        values = nn.functional.max_pool2d(relu(first(source)), (2, 1))
        values = layer.inner(relu(layer.inner(values))) if kind == "twice" else layer(values)
        maps = torch.relu(values) if rectify else values
        for k in range(maps.shape[1]):
            (gradient,) = torch.autograd.grad(maps[:, k].sum(), source, retain_graph=True)
            torch.testing.assert_close(images[sample, k], gradient[0], rtol=0, atol=1e-12)
    assert images.any()


def test_single_precision_is_close_to_double():
    torch.manual_seed(0)
    model = build_model("vgg11", {"size": 16}).eval()
    x = torch.rand(2, 3, 16, 16)
    for layer in ("features.0", "features.8"):
        images = guided_backpropagation(model, x, layer)
        exact = guided_backpropagation(model.double(), x.double(), layer)
        model.float()
        assert (images - exact).abs().max() < 1e-5 * exact.abs().max()


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
