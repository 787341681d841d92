"""Class activation maps against closed forms, slow twins, Captum and pytorch-grad-cam."""

import math

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional

from networks import CLASSES, Dense, Residual, images, plain, pooled, scores_of, weighed
from nnscan.cam import cam, grad_cam, grad_cam_plus_plus, score_cam
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


class Gated(nn.Module):
    """Ends in a gate whose factors come from convolutions of pooled maps, as in many published networks."""

    def __init__(self):
        super().__init__()
        self.first, self.squeeze, self.excite = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 3)

    def gated(self, maps):
        return maps * self.excite(self.squeeze(maps.mean((2, 3), keepdim=True)).relu()).sigmoid()

    def forward(self, x):
        return self.head(self.gated(self.first(x).relu()).mean((2, 3)))


def test_the_factors_of_a_gate_are_no_maps():
    torch.manual_seed(3)
    model, x = Gated().double(), images()
    maps = model.gated(model.first(x).relu()).detach()
    expected = torch.einsum("nk,nkij->nij", model.head.weight[CLASSES], maps).relu().detach() / 36
    expected = functional.interpolate(expected[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(grad_cam(model, x, CLASSES), expected)


def parts(build):
    """Return a network, one of its inputs, its last maps (K, h, w) and the function from maps to class scores."""
    model = build()
    (x,) = images(1)
    if build is plain:
        return model, x, model[:5](x[None])[0].detach(), lambda maps: model[5:](maps[None])[0]
    if build is weighed:
        return model, x, model[:2](x[None])[0].detach(), lambda maps: model[2:](maps[None])[0]
    kept = []
    handle = model.ends.register_forward_hook(lambda _m, _a, output: kept.append(output.detach()[0]))
    model(x[None].clone())
    handle.remove()
    return model, x, kept[0], lambda maps: model.head(maps.mean((1, 2)))


def enlarged(one, x):
    return functional.interpolate(one[None, None], x.shape[1:], mode="bilinear", align_corners=False)[0, 0]


BUILDS = pytest.mark.parametrize("build", [plain, weighed, Residual, Dense])


@BUILDS
@pytest.mark.parametrize("label", [0, 1, 2])
def test_grad_cam_plus_plus_is_its_formula_place_by_place(build, label):
    model, x, maps, rest = parts(build)
    source = maps.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(rest(source)[label], source)
    score = float(rest(maps)[label].detach())
    first, second, third = (math.exp(score) * gradient**power for power in (1, 2, 3))  # derivatives of exp(score)
    expected = torch.zeros(maps.shape[1:], dtype=x.dtype)
    for k, one in enumerate(maps):
        weight = 0.0
        for i in range(one.shape[0]):
            for j in range(one.shape[1]):
                if gradient[k, i, j] > 0:
                    share = second[k, i, j] / (2 * second[k, i, j] + one.sum() * third[k, i, j])
                    weight += float(share * first[k, i, j])
        expected += weight * one
    expected = expected.relu() / math.exp(score)
    assert float(expected.max()) > 0
    torch.testing.assert_close(grad_cam_plus_plus(model, x[None], [label])[0], enlarged(expected, x))


def test_grad_cam_plus_plus_refuses_maps_without_such_weights():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
        model[3].weight.fill_(1)
    with pytest.raises(ModelError, match="feature maps that are not negative"):
        grad_cam_plus_plus(model, images(), CLASSES)
    assert grad_cam(model, images(), CLASSES).shape == (3, 8, 8)


@BUILDS
@pytest.mark.parametrize("label", [0, 2])
def test_score_cam_is_its_algorithm_map_by_map(build, label):
    model, x, maps, _ = parts(build)
    scores = []
    baseline = scores_of(model, torch.zeros_like(x)[None])[0, label]
    for one in maps:
        mask = enlarged(one, x)
        mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else 0 * mask
        scores.append(float((scores_of(model, (x * mask)[None])[0, label] - baseline).detach()))
    total = sum(math.exp(score) for score in scores)
    expected = sum(math.exp(score) / total * one for score, one in zip(scores, maps, strict=True)).relu()
    assert max(scores) - min(scores) > 1e-3
    torch.testing.assert_close(score_cam(model, x[None], [label])[0], enlarged(expected, x))


def test_score_cam_lays_a_dead_map_over_the_input_as_nothing():
    model, x = pooled(), images(1)
    with torch.no_grad():
        model[2].bias[1] = -100  # this map is zero everywhere
        model[2].weight[1] = 0
    found = score_cam(model, x, [0])
    assert bool(torch.isfinite(found).all())
    maps = model[:4](x)[0].detach()
    assert float(maps[1].max()) == 0
    stretched = maps - maps.amin((1, 2), keepdim=True)
    stretched /= stretched.amax((1, 2), keepdim=True).clamp(min=1e-300)
    weights = torch.stack([model(mask * x)[0, 0] for mask in stretched]).softmax(0)
    torch.testing.assert_close(found[0], torch.einsum("k,kij->ij", weights, maps).detach())


@pytest.mark.parametrize(("ours", "theirs"), [(grad_cam_plus_plus, "GradCAMPlusPlus"), (score_cam, "ScoreCAM")])
def test_maps_agree_with_pytorch_grad_cam_up_to_its_stretching(peer, ours, theirs):
    library = peer("pytorch_grad_cam")
    targets = peer("pytorch_grad_cam.utils.model_targets")
    model, x = pooled().float(), images().float()  # its maps are as large as the input: nothing is drawn up
    with torch.no_grad():
        model[6].weight *= 1000  # beside such gradients what the library adds to a denominator is nothing
    with getattr(library, theirs)(model, [model[3]]) as method:
        expected = torch.from_numpy(method(x, [targets.ClassifierOutputTarget(label) for label in CLASSES]))
    found = ours(model, x, CLASSES)
    found = found - found.amin((1, 2), keepdim=True)
    torch.testing.assert_close(found / found.amax((1, 2), keepdim=True), expected, rtol=1e-4, atol=1e-5)
