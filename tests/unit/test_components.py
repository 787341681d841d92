"""Principal components against the singular value decomposition, and the streamed filter images against autograd."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
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


def of_spectrum(singular, samples=540, width=520, seed=0):
    """Return centred images with given singular values."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((samples, len(singular)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    return (left * singular) @ np.linalg.qr(rng.standard_normal((width, len(singular))))[0].T


@pytest.mark.parametrize("samples", [510, 900])
def test_large_images_by_iteration_equal_scikit_learn(samples):
    """The spectrum of trained filters: a few strong components, then a long slow decay."""
    rng = np.random.default_rng(samples)
    images = rng.standard_normal((samples, 600)) * np.linspace(1, 0.3, 600) + 5
    images += np.outer(rng.standard_normal(samples), rng.standard_normal(600)) * 0.15
    images = images.astype(np.float32)
    centred = images - images.mean(axis=0, dtype=np.float64)
    assert components._by_iteration(centred, 2, (centred**2).sum()) is not None
    points, ratio = principal_components(images)
    exact = PCA(2, svd_solver="full").fit(images.astype(np.float64))
    expected = exact.transform(images.astype(np.float64))
    signs = np.sign((points * expected).sum(axis=0))
    np.testing.assert_allclose(points, expected * signs, atol=1e-6 * exact.singular_values_[0])
    np.testing.assert_allclose(ratio, exact.explained_variance_ratio_, rtol=1e-9)
    loadings = centred.T @ points
    assert (loadings[np.abs(loadings).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.parametrize(
    "singular",
    [
        np.linspace(1, 0.5, 500),  # no component stands out
        np.concatenate([[1, 0.6], np.full(400, 1e-3)]),
        np.array([1, 1 - 1e-4, 0.9, 0.5]),
        np.concatenate([[1, 0.8, 0.8 - 1e-3], np.linspace(0.5, 0.1, 300)]),
        np.concatenate([[1, 0.8, 0.8 - 1e-5], np.linspace(0.5, 0.1, 300)]),
        np.concatenate([[1, 1 - 1e-6, 1 - 2e-6], np.linspace(0.5, 0.1, 300)]),
        np.concatenate([[1, 1e-4], np.full(400, 1e-5)]),
    ],
)
def test_iteration_and_decomposition_agree_also_where_eigenvalues_nearly_coincide(singular):
    images = of_spectrum(singular)
    points, ratio = principal_components(images)
    exact = components._by_decomposition(images - images.mean(axis=0), 2)
    signs = np.sign((points * exact.points).sum(axis=0))
    np.testing.assert_allclose(points, exact.points * signs, atol=1e-6 * singular[0])
    np.testing.assert_allclose(ratio, exact.eigenvalues / (singular**2).sum(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("equal", [(0, 1), (1, 2), (0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6)])
def test_iteration_gives_up_where_eigenvalues_coincide(equal):
    singular = np.linspace(1, 0.2, 300)
    singular[list(equal)] = singular[equal[0]]
    images = of_spectrum(singular)
    assert components._by_iteration(images, 2, (images**2).sum()) is None
    points, ratio = principal_components(images)
    np.testing.assert_allclose(ratio, singular[:2] ** 2 / (singular**2).sum())
    np.testing.assert_allclose((points**2).sum(axis=0), singular[:2] ** 2)


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_images_of_low_rank(rank, dtype):
    """A filter that fires for a few samples only; components beyond the rank are zero, not rounding."""
    images = np.zeros((700, 640), dtype=dtype)
    images[[3, 50, 77, 300, 404, 600][:rank]] = np.random.default_rng(rank).standard_normal((rank, 640))
    centred = images - images.mean(axis=0, dtype=np.float64)
    assert components._by_iteration(centred, 2, (centred**2).sum()) is not None
    points, ratio = principal_components(images)
    _, singular, right = np.linalg.svd(centred)
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])
    np.testing.assert_allclose(points[:, :rank], (centred @ right[:2].T * signs)[:, :rank], atol=1e-8 * singular[0])
    np.testing.assert_allclose(ratio, singular[:2] ** 2 / (singular**2).sum(), atol=1e-12)
    if rank == 1:
        np.testing.assert_array_equal(points[:, 1], 0)
        assert ratio[1] == 0


def test_large_images_along_one_direction():
    rng = np.random.default_rng(0)
    along, direction = rng.standard_normal(600), rng.standard_normal(600)
    images = np.outer(along, direction) + 3
    centred = images - images.mean(axis=0)
    assert components._by_iteration(centred, 2, (centred**2).sum()) is not None
    points, ratio = principal_components(images)
    sign = np.sign(direction[np.abs(direction).argmax()])
    expected = (along - along.mean()) * np.linalg.norm(direction) * sign
    np.testing.assert_allclose(points[:, 0], expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_array_equal(points[:, 1], 0)
    np.testing.assert_allclose(ratio, [1, 0], atol=1e-12)
    assert ratio[1] == 0


@pytest.mark.parametrize(
    ("eigenvalues", "residuals", "expected"),
    [
        ([1, 0.5, 0.2], [1e-9, 1e-7, 0.02], True),
        ([1, 0.5, 0.2], [1e-9, 1e-7, 0.04], False),  # the third may yet come near the second
        ([1, 0.5, 0.2], [1e-9, 4e-7, 0.02], False),
        ([1, 0.5, 0.49], [1e-9, 1e-7, 0.0], False),
        ([1, 0.9999, 0.2], [1e-9, 1e-7, 0.0], False),
        ([2, 1e-17, 1e-18], [1e-9, 1.0, 1.0], False),
        ([2, 1e-17, 1e-18], [1e-9, 0.1, 1.0], True),  # all the variance is in the first: no second to look for
    ],
)
def test_what_counts_as_settled(eigenvalues, residuals, expected):
    found = components._settled(np.array(eigenvalues, dtype=float), np.array(residuals), variance=2.0, rounding=1e-13)
    assert found is expected


@pytest.mark.parametrize("samples", [20, 80, 101])
def test_a_block_product_is_that_of_the_scatter_matrix(monkeypatch, samples):
    monkeypatch.setattr(components, "_PRODUCT", 120 * 40)
    rng = np.random.default_rng(0)
    centred, block = rng.standard_normal((samples, 30)), rng.standard_normal((4, 30))
    np.testing.assert_allclose(components._scatter_product(centred, block), block @ (centred.T @ centred), rtol=1e-10)


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_as_linear_algebra_may_use(threads):
    together = threading.Barrier(threads)

    def task(item):
        together.wait(timeout=10)
        return item, {pool["num_threads"] for pool in components._thread_pools().select(user_api="blas").info()}

    with threadpool_limits(threads):
        assert components.in_threads(task, range(4)) == [(item, {1}) for item in range(4)]
        assert {pool["num_threads"] for pool in components._thread_pools().select(user_api="blas").info()} == {threads}


def test_components_do_not_depend_on_the_number_of_threads():
    images = np.random.default_rng(0).standard_normal((510, 3, 23, 23)).astype(np.float32)
    with threadpool_limits(1):
        expected = filter_components(images)
    with threadpool_limits(2):
        found = filter_components(images)
    for values, others in zip(found, expected, strict=True):
        assert values.tobytes() == others.tobytes()
    assert principal_components(images[:, 1].reshape(510, -1))[0].tobytes() == expected[0][1].tobytes()


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


@pytest.mark.parametrize("shape", [(7, 33), (511, 530)])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_images_all_alike_give_zeros(value, shape, recwarn):
    images = np.full(shape, value)
    tiny = np.zeros(shape)
    tiny[0, 0] = 1e-200  # the square is zero
    for alike in (images, tiny):
        points, ratio = principal_components(alike)
        np.testing.assert_array_equal(points, np.zeros((shape[0], 2)))
        np.testing.assert_array_equal(ratio, np.zeros(2))
    assert not recwarn.list


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
