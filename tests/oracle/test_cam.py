"""Class activation maps against closed forms and Captum."""

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of, weighed
from nnscan.cam import cam, grad_cam
from nnscan.errors import ModelError
from nnscan.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_cam_by_hand():
    model, x = pooled(), images(20)
    classes = [number % 3 for number in range(20)]
    maps = model[:4](x)
    expected = torch.einsum("nk,nkij->nij", model[6].weight[classes], maps).detach()
    found = cam(model, x, classes)
    torch.testing.assert_close(found, expected)
    scores = model(x)[torch.arange(20), classes] - model[6].bias[classes]
    torch.testing.assert_close(found.mean((1, 2)), scores.detach())  # the score is the mean of its map


def test_cam_is_drawn_up_bilinearly():
    model, x = pooled(padding=0), images()
    maps = torch.einsum("nk,nkij->nij", model[6].weight[CLASSES], model[:4](x)).detach()
    expected = functional.interpolate(maps[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(cam(model, x, CLASSES), expected)


@pytest.mark.parametrize("build", [pooled, Residual])  # whose maps are as large as the input
def test_grad_cam_is_the_positive_part_of_cam_where_both_are_defined(build):
    model, x = build(), images()
    first, second = cam(model, x, CLASSES), grad_cam(model, x, CLASSES)
    assert float(first.relu().max()) > 0
    torch.testing.assert_close(second, first.relu() / 64)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (plain, "4"),
        (pooled, "3"),
        (Residual, "ends"),
        (Dense, "ends"),
        (lambda: build_model("lenet5", {"in_channels": 2, "classes": 3}).eval().double(), "features.4"),
        (lambda: build_model("vgg11", {"in_channels": 2, "classes": 3}).eval().double(), "features.19"),
        (lambda: build_model("resnet18", {"in_channels": 2, "classes": 3}).eval().double(), "features.10.relu2"),
    ],
    ids=["plain", "pooled", "residual", "dense", "lenet5", "vgg11", "resnet18"],
)
def test_grad_cam_agrees_with_captum(build, layer):
    torch.manual_seed(7)
    model = build()
    x = images(size=32 if "." in layer else 8)
    method = LayerGradCam(lambda inputs: scores_of(model, inputs), model.get_submodule(layer))
    expected = method.attribute(x, target=torch.tensor(CLASSES), relu_attributions=True)
    expected = functional.interpolate(expected, x.shape[2:], mode="bilinear", align_corners=False)[:, 0].detach()
    assert float(expected.max()) > 0
    torch.testing.assert_close(grad_cam(model, x, CLASSES), expected)


def test_networks_without_class_activation_maps_say_why():
    with pytest.raises(ModelError, match=r"only global average pooling and one linear layer.*here Relu"):
        cam(plain(), images(), CLASSES)
    with pytest.raises(ModelError, match="a layer that weighs each place by itself"):
        cam(weighed(), images(), CLASSES)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    for method in (cam, grad_cam):
        with pytest.raises(ModelError, match="need a convolution"):
            method(linear, images(), CLASSES)
    assert float(grad_cam(weighed(), images(), CLASSES).max()) > 0
