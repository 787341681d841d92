"""Attention: its modules against their papers' equations by hand, and what is read out of a network."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import CLASSES, Dense, Residual, images, plain
from nnscan.attention import METHODS, channel_attention, channel_spatial_attention, class_attention
from nnscan.cam import grad_cam
from nnscan.data import Split, build_dataset
from nnscan.errors import ModelError
from nnscan.explanations import Setting
from nnscan.gating import ChannelAttention, ChannelSpatialAttention, ClassAttention
from nnscan.models import build_model, neuron_layers
from nnscan.training import SPLITS, Protocol, model_builder, restore, train

pytestmark = pytest.mark.usefixtures("one_thread")

READERS = {"se": channel_attention, "cbam": channel_spatial_attention, "class": class_attention}


def maps(channels=6, size=5):
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def bottleneck(module, pooled):
    """Return what the two linear layers make of a list of numbers, one by one."""
    first, _, second = module.excitation
    hidden = [max(0.0, float(row @ pooled + bias)) for row, bias in zip(first.weight, first.bias, strict=True)]
    return [float(row @ torch.tensor(hidden).double() + b) for row, b in zip(second.weight, second.bias, strict=True)]


def test_squeeze_and_excitation_by_hand():
    torch.manual_seed(0)
    module, x = ChannelAttention(6).double(), maps()
    found = module(x)
    for own, one in zip(found, x, strict=True):
        pooled = torch.stack([plane.mean() for plane in one])
        for channel, value in enumerate(bottleneck(module.requires_grad_(False), pooled)):
            torch.testing.assert_close(own[channel], one[channel] * sigmoid(value))


def test_cbam_by_hand():
    torch.manual_seed(0)
    module, x = ChannelSpatialAttention(6).double().requires_grad_(False), maps()
    found = module(x)
    for own, one in zip(found, x, strict=True):
        means = bottleneck(module, torch.stack([plane.mean() for plane in one]))
        largest = bottleneck(module, torch.stack([plane.max() for plane in one]))
        weighed = torch.stack([p * sigmoid(a + b) for p, a, b in zip(one, means, largest, strict=True)])
        padded = functional.pad(torch.stack([weighed.mean(0), weighed.max(0).values]), (3, 3, 3, 3))
        for i in range(5):
            for j in range(5):
                value = float((padded[:, i : i + 7, j : j + 7] * module.spatial.weight[0]).sum())
                torch.testing.assert_close(own[:, i, j], weighed[:, i, j] * sigmoid(value))


def test_class_attention_by_hand():
    torch.manual_seed(0)
    module, x = ClassAttention(6, 3).double().requires_grad_(False), maps()
    found, masks = module(x), module.masks(x)
    torch.testing.assert_close(masks.sum((2, 3)), torch.ones(2, 3).double())
    for sample, one in enumerate(x):
        places = [one[:, i, j] for i in range(5) for j in range(5)]
        for label in range(3):
            sizes = [math.exp(float(module.masks.queries.weight[label] @ place) / math.sqrt(6)) for place in places]
            shares = [size / sum(sizes) for size in sizes]
            torch.testing.assert_close(masks[sample, label].flatten(), torch.tensor(shares).double())
            evidence = [float(module.evidence.weight[label] @ place) for place in places]
            score = sum(s * e for s, e in zip(shares, evidence, strict=True)) + float(module.evidence.bias[label])
            assert float(found[sample, label]) == pytest.approx(score)


def network(source, attention):
    torch.manual_seed(3)
    return build_model(source, {"in_channels": 2, "classes": 3, "attention": attention}).eval().double()


@pytest.mark.parametrize("source", ["simple_cnn", "alexnet"])
@pytest.mark.parametrize("attention", READERS)
def test_the_last_attention_is_read_out(source, attention):
    model, x = network(source, attention), images(20, size=32)
    classes = [number % 3 for number in range(20)]
    with torch.no_grad():
        if attention == "class":
            expected = model.head.masks(model.features(x))[torch.arange(20), classes]
        else:
            places = [
                i for i, m in enumerate(model.features) if isinstance(m, ChannelAttention | ChannelSpatialAttention)
            ]
            before = model.features[: places[-1]](x)
            gate = model.features[places[-1]]
            if attention == "se":
                expected = gate(before).sum(1)
            else:
                factors = (gate.excitation(before.mean((2, 3))) + gate.excitation(before.amax((2, 3)))).sigmoid()
                expected = gate.spatial(before * factors[:, :, None, None])[:, 0]
    assert expected.shape[1:] == ((8, 8) if source == "simple_cnn" else (4, 4))
    found = READERS[attention](model, x, classes)
    torch.testing.assert_close(
        found, functional.interpolate(expected[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    )
    assert float(found.std()) > 0
    assert float(found.min()) >= 0
    other = READERS[attention](model, x, [(label + 1) % 3 for label in classes])
    assert torch.equal(found, other) == (attention != "class")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_model_is_left_alone_and_others_are_refused(method):
    option = {"channel_attention": "se", "channel_spatial_attention": "cbam", "class_attention": "class"}[method.name]
    model, x = network("simple_cnn", option).train(), images(3, size=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        found = method.explain(model, x.clone(), CLASSES, Setting())
    assert found.shape == (3, 32, 32)
    assert not found.requires_grad
    torch.testing.assert_close(method.explain(model, x[2:], CLASSES[2:], Setting()), found[2:])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert method.class_specific == (option == "class")
    for other in READERS.keys() - {option}:
        with pytest.raises(ModelError, match=f"with the option attention: {option}"):
            method.explain(network("simple_cnn", other), x, CLASSES, Setting())
    for build in (plain, Residual, Dense):
        with pytest.raises(ModelError, match=f"with the option attention: {option}"):
            method.explain(build(), images(), CLASSES, Setting())


def test_an_attention_that_is_not_used_or_not_of_the_classes_is_refused():
    class Beside(nn.Module):
        def __init__(self, inner, attention):
            super().__init__()
            self.inner, self.attention = inner, attention
            self.used = False

        def forward(self, x):
            if self.used:
                self.attention(x)
            return self.inner(x)

    model = Beside(plain(), ChannelAttention(2).double())
    with pytest.raises(ModelError, match="goes through no ChannelAttention"):
        channel_attention(model, images(), CLASSES)
    model = Beside(plain(), ClassAttention(2, 2).double())
    model.used = True
    with pytest.raises(ModelError, match="masks for 2 classes, but class 2 was asked for"):
        class_attention(model, images(), CLASSES)


@pytest.mark.parametrize("attention", READERS)
def test_other_explainers_and_scans_see_the_features_of_such_networks(attention):
    """The filter of spatial attention is no layer of features, nor do the queries of classes hold last maps."""
    model, x = network("simple_cnn", attention), images(1, size=32)
    assert len(neuron_layers(model, x)) == 3
    found = grad_cam(model, x, [0])
    # what the last convolution ends in, behind its gate and before the pooling, which class attention does without
    last = model.features if attention == "class" else model.features[:-1]
    rest = model.head if attention == "class" else nn.Sequential(model.features[-1], model.pool, model.head)
    features = last(x).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(rest(features)[0, 0], features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
    expected = functional.interpolate(expected[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected)


def stripes(sizes=(240, 30, 60), seed=0):
    """A patch of level or upright stripes somewhere on noise, and its place."""
    rng = np.random.default_rng(seed)
    splits, places = {}, {}
    for split, size in zip(SPLITS, sizes, strict=True):
        labels = np.arange(size) % 2
        images = rng.integers(90, 160, (size, 1, 32, 32), dtype=np.uint8)
        inside = np.zeros((size, 32, 32), dtype=bool)
        pattern = np.where(np.arange(10)[:, None] % 4 < 2, 20, 230).repeat(10, 1).astype(np.uint8)
        for image, label, mask, corner in zip(images, labels, inside, rng.integers(0, 22, (size, 2)), strict=True):
            there = (slice(corner[0], corner[0] + 10), slice(corner[1], corner[1] + 10))
            image[0][there], mask[there] = (pattern, pattern.T)[label], True
        splits[split], places[split] = Split(images, labels), inside
    return build_dataset("stripes", ("level", "upright"), splits), places


@pytest.mark.parametrize("attention", READERS)
def test_such_networks_are_trained_like_any_other_and_attend_to_what_tells_the_classes(attention, tmp_path):
    dataset, places = stripes()
    build = model_builder("simple_cnn", {"attention": attention}, dataset)
    table = train(
        build, dataset, Protocol(epochs=6, batch_size=16, learning_rate=3e-3), tmp_path, 0, {}, progress=False
    )
    reached = table.set_index(["checkpoint", "split"]).loc[("well_trained", "test"), "accuracy"]
    assert reached > 0.95
    model = restore("simple_cnn", {"attention": attention}, dataset, tmp_path / "well_trained.safetensors")
    x, labels = torch.from_numpy(dataset.inputs("test")), dataset.splits["test"].labels.tolist()
    found = READERS[attention](model, x, labels).numpy()
    inside = [one[place].mean() / one.mean() for one, place in zip(found, places["test"], strict=True)]
    assert np.mean(inside) > {"se": 1.5, "cbam": 1.02, "class": 1.5}[attention]
    assert np.min(inside) > 1
