"""Explainers against twins, closed forms and Captum; nnscan's maps against sums of learning images."""

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, LayerGradCam, Saliency
from torch import nn
from torch.nn import functional

from nnscan import explainers
from nnscan.errors import ModelError, ScanError
from nnscan.explainers import (
    EXPLAINERS,
    Scanned,
    answers,
    cam,
    filter_map,
    grad_cam,
    integrated_attributions,
    localisation,
    neuron_map,
    overlap,
    read_scanned,
    saliency,
    scaled,
    score_gradients,
)
from nnscan.models import build_model
from nnscan.moments import write_moments
from nnscan.quantity import feature_quantity
from nnscan.scanner import filter_images, learning_images, scan
from nnscan.sweeps import WholeMapSweep, WindowSweep

CLASSES = [2, 0, 1]


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=3, channels=2, size=8):
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain():
    """Convolutions, pooling and a hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def pooled(padding=1):
    """Global average pooling and one linear layer behind the last maps, which are as large as the input."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=padding), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=padding), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip


class Residual(nn.Module):
    """Normalisation, a shortcut, functional and in-place ReLUs, the scores in a dictionary, an input that changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.5, 2)
        self.ends = nn.Identity()  # for Captum, which takes modules
        self.head = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, x):
        x.mul_(0.5)
        early = torch.relu_(self.first(x))
        late = self.ends(functional.relu(self.norm(self.second(early)) + early))
        return {"scores": self.head(late.mean((2, 3)))}


class Dense(nn.Module):
    """The last maps are a concatenation, normalised."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.norm, self.ends, self.head = nn.BatchNorm2d(7), nn.ReLU(), nn.Linear(7, 3)
        self.double().eval()

    def forward(self, x):
        early = functional.relu(self.first(x))
        joined = torch.cat([early, self.second(early)], 1)
        return self.head(functional.adaptive_avg_pool2d(self.ends(self.norm(joined)), 1).flatten(1))


def scores_of(model, x):
    output = model(x.clone())
    return output["scores"] if isinstance(output, dict) else output


# Back to the pixels -------------------------------------------------------------------------------------------------


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


# Class activation maps ----------------------------------------------------------------------------------------------


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


def weighed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()


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


# All of them --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_explainer_gives_a_map_for_each_input_and_leaves_the_model_alone(name):
    model = nn.Sequential(*pooled()[:3], nn.ReLU(inplace=True), *pooled()[4:]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(20)
    kept = x.clone()
    classes = [number % 3 for number in range(20)]
    with torch.inference_mode():
        found = EXPLAINERS[name](model, x.clone(), classes)
    assert found.shape == (20, 8, 8)
    assert found.dtype == x.dtype
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    torch.testing.assert_close(found[17:], EXPLAINERS[name](model, x[17:], classes[17:]))
    torch.testing.assert_close(x, kept)
    assert model.training
    assert model[3].inplace
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    for wrong, sentence in ((([0, 1], x), "2 classes were given for 20"), (([3] * 20, x), "class scores 3 to 3")):
        with pytest.raises((ScanError, ModelError), match=sentence):
            EXPLAINERS[name](model, wrong[1], wrong[0])
    with pytest.raises(ScanError, match=r"expected a floating-point tensor \(N, C, H, W\)"):
        EXPLAINERS[name](model, x[0], [0] * 2)


def test_answers():
    model, x = Residual(), images(40)
    assert answers(model, x) == scores_of(model, x).argmax(1).tolist()


def test_smooth_networks_have_maps_but_those_of_rules_for_relu():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    refused = {"deconvolution", "guided backpropagation"}
    for name, explain in EXPLAINERS.items():
        if name in refused:
            with pytest.raises(ModelError, match="ReLU as their only activation"):
                explain(model, images(), CLASSES)
        else:
            assert explain(model, images(), CLASSES).shape == (3, 8, 8)


# nnscan's own maps --------------------------------------------------------------------------------------------------


def summed(model, x, layer, weights, block):
    """Add up the learning images of all neurons, one by one."""
    found = []
    for one, own in zip(x, weights, strict=True):
        learned = learning_images(model, one, layer).sum(1)
        blocks = learned.reshape(len(learned), 8 // block, block, 8 // block, block).sum((2, 4))
        total = torch.einsum("q,qij->ij", torch.from_numpy(own).flatten(), blocks.abs())
        found.append(total.repeat_interleave(block, 0).repeat_interleave(block, 1))
    return torch.stack(found)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(("build", "layer", "shape"), [(plain, "3", (5, 2, 2)), (Residual, "norm", (4, 8, 8)),
                                                       (plain, "6", (6, 1, 1))])  # fmt: skip
def test_neuron_map_is_the_weighted_sum_of_learning_images(build, layer, shape, block):
    model, x = build(), images()
    weights = np.random.default_rng(0).random((3, *shape))
    found = neuron_map(model, x, layer, weights, block)
    torch.testing.assert_close(found, summed(model, x, layer, weights, block))


def test_neuron_map_on_whole_maps(monkeypatch, caplog):
    """Where windows cannot be used, or turn out wrong, whole maps are swept."""
    model, x = plain(), images()
    weights = np.random.default_rng(0).random((3, 5, 2, 2))
    expected = summed(model, x, "3", weights, 1)
    monkeypatch.setattr(explainers, "_sweep", lambda model, x, layer, block: WholeMapSweep(model, x, [layer], block, 7))
    torch.testing.assert_close(neuron_map(model, x, "3", weights), expected)

    class Wrong(WindowSweep):
        def push(self, batches, read, leave):
            super().push(batches, lambda layer, number, windows: read(layer, number, spoiled(windows)), leave)

    def spoiled(windows):
        windows.data.mul_(1.01)
        return windows

    monkeypatch.setattr(
        explainers,
        "_sweep",
        lambda model, x, layer, block: Wrong(explainers.Linearisation(model, x, [layer]), x, block),
    )
    torch.testing.assert_close(neuron_map(model, x, "3", weights), expected)
    assert "disagrees" in caplog.text


def test_neuron_map_of_weights_one_is_that_of_the_scan():
    model, x = plain(), images()
    absolute = scan(model, x).absolute_images["3"].sum(1)
    np.testing.assert_allclose(neuron_map(model, x, "3", np.ones((3, 5, 2, 2))).numpy(), absolute, rtol=1e-6)


def test_neuron_map_refuses_what_does_not_fit():
    with pytest.raises(ScanError, match="do not fit the map"):
        neuron_map(plain(), images(), "3", np.ones((3, 5, 2, 1)))
    with pytest.raises(ScanError, match="block 3 does not divide"):
        neuron_map(plain(), images(), "3", np.ones((3, 5, 2, 2)), 3)
    with pytest.raises(ScanError, match="floating-point"):
        neuron_map(plain(), images()[0], "3", np.ones((3, 5, 2, 2)))


def test_filter_map_is_the_size_of_the_sum_of_filter_images():
    model, x = Residual(), images(20)
    expected = filter_images(model, x, "norm").sum((1, 2)).abs()
    torch.testing.assert_close(filter_map(model, x, "norm"), expected)


# Where the object is ------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    torch.testing.assert_close(scaled(maps), torch.tensor([[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]))
    foreground = torch.tensor([[[True, False], [False, True]], [[True, False], [False, False]]])
    assert overlap(maps, foreground, 0.5).tolist() == [1 / 3, 0]
    assert overlap(maps, foreground, 0.2).tolist() == [1 / 4, 0]
    assert overlap(foreground.double(), foreground, 0.5).tolist() == [1, 1]


def scanned_of(model, x, foreground, layer="3"):
    moments = scan(model, x, foreground, [layer])
    frame = feature_quantity(moments)
    shape = moments.layers[layer]["activation"].shape
    return Scanned(layer, np.arange(10, 10 + len(x)), frame["fq"].to_numpy().reshape(shape),
                   moments.absolute_images[layer], 1)  # fmt: skip


def test_localisation():
    model, x = plain(), images().abs()
    foreground = np.zeros((3, 8, 8), bool)
    foreground[0, 2:5, 2:6] = foreground[2, 1:7, 3:5] = True  # nothing in the second sample
    scanned = scanned_of(model, x, foreground)
    frame = localisation(model, x, foreground, scanned)
    assert frame["sample"].unique().tolist() == [10, 12]
    assert frame["method"].unique().tolist() == ["CAM", "Grad-CAM", "FQ map", "NNS", "input"]
    assert frame["threshold"].unique().tolist() == [0.5, 0.2]
    assert frame[frame["method"] == "CAM"]["iou"].isna().all()
    assert frame[frame["method"] != "CAM"]["iou"].between(0, 1).all()
    chosen, truth = [0, 2], torch.from_numpy(foreground[[0, 2]])
    maps = {
        "Grad-CAM": grad_cam(model, x[chosen], answers(model, x[chosen])),
        "FQ map": summed(model, x[chosen], "3", scanned.quantities[chosen], 1),
        "NNS": summed(model, x[chosen], "3", np.ones((2, 5, 2, 2)), 1),
        "input": x[chosen].sum(1),
    }
    for (method, threshold), part in frame[frame["method"] != "CAM"].groupby(["method", "threshold"]):
        np.testing.assert_allclose(part["iou"], overlap(maps[method], truth, threshold))
    own = localisation(pooled(), x, foreground, scanned_of(pooled(), x, foreground, "2"))
    assert own[own["method"] == "CAM"]["iou"].notna().all()


def test_without_masks_there_is_nothing_to_locate():
    model, x = plain(), images()
    scanned = scanned_of(model, x, None)
    for foreground in (None, np.zeros((3, 8, 8), bool)):
        frame = localisation(model, x, foreground, scanned)
        assert frame.empty
        assert list(frame.columns) == ["sample", "method", "threshold", "iou"]


def test_what_maps_need_of_a_scan(tmp_path):
    model, x = plain(), images().float()
    model = model.float()
    foreground = np.ones((3, 8, 8), bool)
    moments = scan(model, x, foreground, ["0", "3", "6", "8"])
    parts = [scan(model, x[rows], foreground[rows], ["0", "3", "6", "8"]) for rows in (slice(0, 2), slice(2, 3))]
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, part in zip(paths, parts, strict=True):
        write_moments(path, [part], len(part.samples), {})
    found = read_scanned(paths, noise="exponential")
    assert found.layer == "3"  # those behind it have no places
    frame = feature_quantity(moments.select("3"), noise="exponential")
    np.testing.assert_allclose(found.quantities.ravel(), frame["fq"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.absolute, moments.absolute_images["3"], rtol=1e-4, atol=1e-6)
    assert found.block == 1
    linear = tmp_path / "linear.h5"
    write_moments(linear, [scan(model, x, foreground, ["6", "8"])], 3, {})
    assert read_scanned([linear]).layer == "8"
