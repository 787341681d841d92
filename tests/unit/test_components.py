"""Principal components against the singular value decomposition, and the streamed filter images against autograd."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from nnscan import components
from nnscan.components import filter_components, filter_image_components, principal_components
from nnscan.errors import DataError, LayerError
from nnscan.models import build_model


def by_svd(images, count=2):
    centred = images.astype(np.float64) - images.mean(axis=0, dtype=np.float64)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(images), count))
    for component in range(count):
        loading = right[component]
        sign = 1 if loading[np.argmax(np.abs(loading))] > 0 else -1
        for sample in range(len(images)):
            points[sample, component] = sign * sum(centred[sample] * loading)
    return points, singular[:count] ** 2 / (singular**2).sum()


@pytest.mark.parametrize(("samples", "width"), [(40, 90), (90, 40), (30, 30)])
def test_both_routes_equal_the_singular_value_decomposition(samples, width):
    rng = np.random.default_rng(samples)
    images = (rng.standard_normal((samples, width)) * np.linspace(3, 0.1, width) + 5).astype(np.float32)
    points, ratio = principal_components(images)
    expected_points, expected_ratio = by_svd(images)
    np.testing.assert_allclose(points, expected_points, atol=1e-9)
    np.testing.assert_allclose(ratio, expected_ratio, rtol=1e-10)
    assert points.dtype == np.float64
    np.testing.assert_allclose(points.var(axis=0) / images.astype(float).var(axis=0).sum(), ratio, rtol=1e-9)


@pytest.mark.parametrize("samples", [2, 50])  # by samples, by pixels
def test_the_loading_of_largest_magnitude_is_positive(samples):
    along = np.linspace(-1, 1, samples)
    direction = np.array([0.1, -0.9, 0.3])
    points, ratio = principal_components(along[:, None] * direction)
    np.testing.assert_allclose(points[:, 0], -along * np.linalg.norm(direction), atol=1e-12)
    np.testing.assert_array_equal(points[:, 1], 0)  # rank one: exactly zero, not rounding
    np.testing.assert_allclose(ratio, [1, 0])


def test_components_do_not_depend_on_the_order_of_samples():
    images = np.random.default_rng(1).standard_normal((20, 60))
    order = np.random.default_rng(2).permutation(20)
    np.testing.assert_allclose(
        principal_components(images[order])[0], principal_components(images)[0][order], atol=1e-10
    )


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_images_all_alike_give_zeros(value):
    points, ratio = principal_components(np.full((7, 33), value))
    np.testing.assert_array_equal(points, np.zeros((7, 2)))
    np.testing.assert_array_equal(ratio, np.zeros(2))


def test_one_value_per_sample_leaves_the_second_component_zero():
    values = np.array([[3.0], [1.0], [8.0]])
    points, ratio = principal_components(values)
    np.testing.assert_allclose(points, np.column_stack([values[:, 0] - 4, np.zeros(3)]))
    np.testing.assert_allclose(ratio, [1, 0])


@pytest.mark.parametrize("images", [np.zeros((3, 4, 5)), np.zeros((0, 4)), np.array([[1.0, np.nan], [0, 1]])])
def test_unusable_images_are_refused(images):
    with pytest.raises(DataError, match="principal components"):
        principal_components(images)


def test_filter_components_sum_channels_and_take_each_filter_alone():
    images = np.random.default_rng(3).standard_normal((12, 3, 2, 4, 5)).astype(np.float32)
    points, ratio = filter_components(torch.from_numpy(images))
    assert points.shape == (3, 12, 2)
    assert ratio.shape == (3, 2)
    for k in range(3):
        expected_points, expected_ratio = by_svd((images[:, k, 0].astype(float) + images[:, k, 1]).reshape(12, -1))
        np.testing.assert_allclose(points[k], expected_points, atol=1e-9)
        np.testing.assert_allclose(ratio[k], expected_ratio)
    maps = images[:, :, 0]
    np.testing.assert_allclose(filter_components(maps)[0][1], by_svd(maps[:, 1].reshape(12, -1))[0], atol=1e-9)
    with pytest.raises(DataError, match="samples, filters"):
        filter_components(np.zeros((3, 4)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU())
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(5 * 2 * 2, 3)).double()
    with torch.no_grad():
        model[0][3].bias.fill_(0.3)
        model[0][3].bias[2] = -1e3  # a dead filter
    return model.train()


def images_by_autograd(model, x, filters):
    images = []
    for k in range(filters):
        source = x.clone().requires_grad_(True)
        f = model[0][:4](source)[:, k].relu()
        (gradient,) = torch.autograd.grad(0.5 * (f**2).sum(), source)
        images.append((x * gradient).detach())
    return torch.stack(images, dim=1)


@pytest.mark.parametrize("buffer", [1, 2**20])  # one filter at a time, all together
def test_streamed_filter_images_equal_autograd(network, monkeypatch, buffer):
    monkeypatch.setattr(components, "_BUFFER_BYTES", buffer)
    x = torch.randn(11, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    points, ratio, dead = filter_image_components(network, x, "0.3", batch_size=4)
    expected, expected_ratio = filter_components(images_by_autograd(network, x, 5))
    np.testing.assert_allclose(points, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(ratio, expected_ratio, atol=1e-5)
    assert dead.tolist() == [False, False, True, False, False]
    assert not points[2].any()
    assert network.training
    assert network[0][1].inplace
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in network.modules())


def test_feature_maps_instead_of_learning_images(network, monkeypatch):
    monkeypatch.setattr(components, "_BUFFER_BYTES", 1000)
    x = torch.randn(11, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    points, ratio, dead = filter_image_components(network, x, network[0][3], source="feature_maps", batch_size=4)
    with torch.no_grad():
        maps = network[0](x)
    expected, expected_ratio = filter_components(maps)
    np.testing.assert_allclose(points, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(ratio, expected_ratio, atol=1e-5)
    assert dead.tolist() == [False, False, True, False, False]


def test_a_linear_layer_has_one_value_per_filter():
    torch.manual_seed(0)
    model = build_model("fcn", {"in_channels": 1, "size": 4, "classes": 3, "widths": (6,)})
    x = np.random.default_rng(0).standard_normal((9, 1, 4, 4)).astype(np.float32)
    points, _, _ = filter_image_components(model, x, "1", source="feature_maps")
    assert points.shape == (6, 9, 2)
    with torch.no_grad():
        values = model[1](torch.from_numpy(x).flatten(1)).relu().double().numpy()
    np.testing.assert_allclose(np.abs(points[:, :, 0].T), np.abs(values - values.mean(axis=0)), atol=1e-6)
    images, _, _ = filter_image_components(model, x, "1")
    assert images.shape == (6, 9, 2)


def test_unknown_layer(network):
    with pytest.raises(LayerError, match=r"0\.9"):
        filter_image_components(network, torch.zeros(2, 3, 10, 10), "0.9")


def test_importing_does_not_pay_for_torch():
    code = "import sys, nnscan.anomaly; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
