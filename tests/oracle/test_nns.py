"""NNS against known answers (docs/methods.md): learning images, and the moments that a scan takes of the same images.

`single_pixels` makes a scan show single pixels of all images: with one pixel as the foreground, the total over the
foreground is |I| there.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nnscan.models import capture
from nnscan.moments import Moments
from nnscan.scanner import learning_images, scan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def network(bias: bool) -> nn.Sequential:
    """Two convolutions with max- and average-pooling, then two linear layers; for 2 x 8 x 8 pixels."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3, padding=1, bias=bias), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(20, 6, bias=bias), nn.ReLU(), nn.Linear(6, 3, bias=bias)),
    ).double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * noise(*parameter.shape, seed=index)
    return model.eval()


LAYERS = ("0", "3", "7", "9")
LAST = "9"


def values_of(model: nn.Module, x: torch.Tensor, layer: str) -> torch.Tensor:
    """Return the layer's output for one input, flat."""
    with torch.no_grad(), capture(model, [layer]) as outputs:
        model(x[None])
    return outputs[layer].reshape(-1)


def flat(moments: Moments, layer: str, quantity: str, sample: int = 0) -> torch.Tensor:
    return torch.as_tensor(moments.layers[layer][quantity][sample].reshape(-1))


def same(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


def assert_scanned(moments: Moments, layer: str, images: torch.Tensor) -> None:
    """Compare what a scan without masks keeps of the images (n, C, H, W)."""
    summed = images.sum(1).reshape(len(images), -1)
    size = summed.abs()
    same(flat(moments, layer, "signed_total"), summed.sum(1))
    same(flat(moments, layer, "maximum"), size.amax(1))
    same(flat(moments, layer, "minimum"), size.amin(1))
    same(flat(moments, layer, "total_foreground"), size.sum(1))
    same(flat(moments, layer, "square_foreground"), size.square().sum(1))


def single_pixels(model: nn.Module, x: torch.Tensor, layer: str, pixels: list[tuple[int, int]]) -> torch.Tensor:
    """Return |I| of each of a layer's neurons at some pixels (n, pixels), from a scan."""
    masks = torch.zeros((len(pixels), *x.shape[1:]), dtype=torch.bool)
    for index, (row, column) in enumerate(pixels):
        masks[index, row, column] = True
    moments = scan(model, x.expand(len(pixels), *x.shape).clone(), masks, [layer])
    return torch.stack([flat(moments, layer, "total_foreground", index) for index in range(len(pixels))], dim=1)


# 1. Completeness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_without_biases_an_image_sums_to_the_value(layer):
    model, x = network(bias=False), noise(2, 8, 8)
    values = values_of(model, x, layer)
    same(learning_images(model, x, layer, gate=False).sum((1, 2, 3)), values)
    same(learning_images(model, x, layer).sum((1, 2, 3)), values.clamp(min=0))
    gated = values if layer == LAST else values.clamp(min=0)
    same(flat(scan(model, x[None], layers=[layer]), layer, "signed_total"), gated)


@pytest.mark.parametrize("layer", LAYERS)
def test_with_biases_the_rest_is_what_the_biases_contribute(layer):
    model, x = network(bias=True), noise(2, 8, 8)
    with capture(model, [layer]) as outputs:
        model(x[None])
    values = outputs[layer].reshape(-1)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    contributed = torch.zeros_like(values)
    for neuron in range(len(values)):
        slopes = torch.autograd.grad(values[neuron], biases, retain_graph=True, allow_unused=True)
        for bias, slope in zip(biases, slopes, strict=True):
            if slope is not None:
                contributed[neuron] += (bias * slope).sum()
    values, contributed = values.detach(), contributed.detach()
    assert (contributed.abs() > 1e-3).all()
    same(learning_images(model, x, layer, gate=False).sum((1, 2, 3)), values - contributed)
    kept = torch.ones_like(values) if layer == LAST else (values > 0).double()
    same(flat(scan(model, x[None], layers=[layer]), layer, "signed_total"), (values - contributed) * kept)


# 2. Input times gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_image_is_the_input_times_the_gradient(layer, bias):
    model, x = network(bias), noise(2, 8, 8)
    source = x[None].clone().requires_grad_(True)
    with capture(model, [layer]) as outputs:
        model(source)
    values = outputs[layer].reshape(-1)
    expected = torch.stack([x * torch.autograd.grad(value, source, retain_graph=True)[0][0] for value in values])
    same(learning_images(model, x, layer, gate=False), expected)
    if layer != LAST:
        expected[values <= 0] = 0
    assert_scanned(scan(model, x[None], layers=[layer]), layer, expected)
    pixels = [(0, 0), (3, 4), (7, 7)]
    at_pixels = torch.stack([expected[:, :, row, column].sum(1).abs() for row, column in pixels], dim=1)
    same(single_pixels(model, x, layer, pixels), at_pixels)


# 3. Inactive neurons, receptive fields, the empty input ---------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_an_inactive_neuron_has_the_zero_image(layer):
    model, x = network(bias=True), noise(2, 8, 8)
    values = values_of(model, x, layer)
    inactive = values <= 0
    assert inactive.any()
    assert (~inactive).any()
    images = learning_images(model, x, layer)
    assert (images[inactive] == 0).all()
    assert (images[~inactive].abs().amax((1, 2, 3)) > 0).all()
    if layer != LAST:
        maximum = flat(scan(model, x[None], layers=[layer]), layer, "maximum")
        assert ((maximum == 0) == inactive).all()


def test_a_neuron_that_is_exactly_zero_is_inactive():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[1.0, -1, 0, 0], [1, 1, 0, 0]]).double()
    x = torch.tensor([[[1.0, 1], [1, 1]]]).double()
    assert values_of(model, x, "1").tolist() == [0, 2]
    assert (learning_images(model, x, "1")[0] == 0).all()
    assert flat(scan(model, x[None], layers=["1"]), "1", "maximum").tolist() == [0, 1]


def test_an_image_lies_inside_the_receptive_field():
    model, x = network(bias=True), noise(2, 8, 8)
    # rows of the input that row i sees: the first convolution i-1 .. i+1; the second, behind the pooling, 2i-3 .. 2i+4
    for layer, size, seen in (("0", 8, lambda i: (i - 1, i + 1)), ("3", 4, lambda i: (2 * i - 3, 2 * i + 4))):
        images = learning_images(model, x, layer, gate=False).reshape(-1, size, size, 2, 8, 8)
        for row in range(size):
            for column in range(size):
                inside = torch.zeros(8, 8, dtype=torch.bool)
                (top, bottom), (left, right) = seen(row), seen(column)
                inside[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
                assert (images[:, row, column][..., ~inside] == 0).all()
        lower = torch.zeros((1, 8, 8), dtype=torch.bool)
        lower[:, 6:] = True
        arrays = scan(model, x[None], lower, [layer]).layers[layer]
        for row in range(size):
            below = arrays["count_foreground"][0, :, row]
            active = arrays["activation"][0, :, row] > 0
            if seen(row)[1] < 6:
                assert (below == 0).all()
                assert (arrays["total_foreground"][0, :, row] == 0).all()
            elif row == size - 1:
                assert (below[active] > 0).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_empty_input_has_empty_images(layer):
    model, x = network(bias=True), torch.zeros(2, 8, 8, dtype=torch.float64)
    assert (learning_images(model, x, layer, gate=False) == 0).all()
    moments = scan(model, x[None], layers=[layer])
    for quantity, values in moments.layers[layer].items():
        assert np.isfinite(values).all()
        assert (values == 0).all() == (quantity != "activation")
    assert (moments.filter_images[layer] == 0).all()


# 4. Homogeneity and linearity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.01, 3.0, 1000.0])
def test_without_biases_images_scale_with_the_input(factor):
    model, x = network(bias=False), noise(2, 8, 8)
    mask = torch.zeros((1, 8, 8), dtype=torch.bool)
    mask[:, 2:6] = True
    one, scaled = scan(model, x[None], mask, list(LAYERS)), scan(model, factor * x[None], mask, list(LAYERS))
    powers = {"activation": 1, "signed_total": 1, "maximum": 1, "minimum": 1, "total": 1, "square": 2, "cross": 1}
    for layer in LAYERS:
        same(learning_images(model, factor * x, layer), factor * learning_images(model, x, layer))
        for quantity, values in one.layers[layer].items():
            power = powers.get(quantity.rsplit("_", 1)[0], powers.get(quantity, 0))
            np.testing.assert_allclose(
                scaled.layers[layer][quantity], factor**power * values, rtol=1e-9, atol=1e-12 * factor**power
            )
        np.testing.assert_allclose(
            scaled.filter_images[layer], factor**2 * one.filter_images[layer], rtol=1e-9, atol=1e-12 * factor**2
        )


def test_a_linear_layer_weighs_the_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    model[1].weight.data, model[1].bias.data = noise(5, 12, seed=1), noise(5, seed=2)
    x, y = noise(3, 2, 2, seed=3), noise(3, 2, 2, seed=4)
    expected = model[1].weight.data.reshape(5, 3, 2, 2) * x
    same(learning_images(model, x, "1", gate=False), expected)
    assert_scanned(scan(model, x[None], layers=["1"]), "1", expected)
    images = [learning_images(model, image, "1", gate=False) for image in (x, y, x + y)]
    same(images[2], images[0] + images[1])
    totals = [flat(scan(model, image[None], layers=["1"]), "1", "signed_total") for image in (x, y, x + y)]
    same(totals[2], totals[0] + totals[1])


# 5. Pooling and the identity ----------------------------------------------------------------------------------------


def _pooled(pool: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return model, input, the images of the layer in front of the pooling (K, h, w, C, H, W) and its values."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Identity(), pool).double()
    model[0].weight.data, model[0].bias.data = noise(3, 2, 3, 3, seed=1), noise(3, seed=2)
    x = noise(2, 8, 8)
    images = learning_images(model, x, "0", gate=False).reshape(3, 6, 6, 2, 8, 8)
    return model, x, images, values_of(model, x, "0").reshape(3, 6, 6)


def test_max_pooling_hands_on_the_image_of_the_winner():
    model, x, images, values = _pooled(nn.MaxPool2d(2))
    expected = torch.zeros(3, 3, 3, 2, 8, 8, dtype=torch.float64)
    for k, i, j in np.ndindex(3, 3, 3):
        window = [(2 * i + a, 2 * j + b) for a in range(2) for b in range(2)]
        row, column = max(window, key=lambda at: float(values[k][at]))
        expected[k, i, j] = images[k, row, column]
    expected = expected.reshape(27, 2, 8, 8)
    same(learning_images(model, x, "2", gate=False), expected)
    expected[values_of(model, x, "2") <= 0] = 0
    same(learning_images(model, x, "2"), expected)
    assert_scanned(scan(model, x[None], layers=["0", "2"]), "2", expected)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)])
def test_average_pooling_hands_on_the_mean_image(pool):
    model, x, images, _ = _pooled(pool)
    expected = torch.stack(
        [images[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for k, i, j in np.ndindex(3, 3, 3)]
    )
    same(learning_images(model, x, "2", gate=False), expected)
    expected[values_of(model, x, "2") <= 0] = 0
    assert_scanned(scan(model, x[None], layers=["2"]), "2", expected)


def test_of_equal_values_max_pooling_takes_one():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1, bias=False)).double()
    model[0].weight.data.fill_(1)
    x = torch.ones(1, 2, 2, dtype=torch.float64)
    image = learning_images(model, x, "1")[0, 0]
    assert image.tolist() == [[1, 0], [0, 0]]
    assert scan(model, x[None], layers=["1"]).layers["1"]["count_foreground"].item() == 1


def test_an_identity_convolution_changes_nothing():
    first, identity = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3)[:, :, None, None]
    model = nn.Sequential(first, nn.ReLU(), identity, nn.ReLU()).double()
    x = noise(2, 6, 6)
    images = learning_images(model, x, "0")
    same(learning_images(model, x, "2"), images)
    moments = scan(model, x[None])
    for quantity, values in moments.layers["0"].items():
        closed = moments.layers["0"]["activation"] <= 0
        wanted = np.where(closed, 0, values) if quantity == "activation" else values
        np.testing.assert_allclose(moments.layers["2"][quantity], wanted, rtol=1e-12, atol=1e-15)
    alone = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).double()
    alone[0].weight.data.fill_(1)
    pixel = noise(1, 3, 3)
    same(learning_images(alone, pixel, "0", gate=False).reshape(9, 9), torch.diag(pixel.reshape(-1)))


# 6. Folded normalisations -------------------------------------------------------------------------------------------


def test_folding_the_batch_normalisation_changes_nothing():
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU()),
    ).double()
    for index in (1, 4):
        norm = model[index]
        norm.running_mean.copy_(noise(norm.num_features, seed=index))
        norm.running_var.copy_(0.2 + noise(norm.num_features, seed=index + 1).abs())
        norm.weight.data = noise(norm.num_features, seed=index + 2)  # negative ones too: they turn the gates around
        norm.bias.data = noise(norm.num_features, seed=index + 3)
    model.eval()
    folded = nn.Sequential(
        *(fuse_conv_bn_eval(model[0], model[1]), nn.ReLU()), *(fuse_conv_bn_eval(model[3], model[4]), nn.ReLU())
    )
    x = noise(2, 8, 8)
    before, after = scan(model, x[None]), scan(folded, x[None])
    assert list(before.layers) == ["1", "4"]
    assert list(after.layers) == ["0", "2"]
    for layer, twin in (("1", "0"), ("4", "2")):
        same(learning_images(model, x, layer), learning_images(folded, x, twin))
        for quantity, values in before.layers[layer].items():
            np.testing.assert_allclose(after.layers[twin][quantity], values, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(before.filter_images[layer], after.filter_images[twin], rtol=1e-8, atol=1e-11)


# 7. The layerwise recursion -----------------------------------------------------------------------------------------


def _convolution_matrix(weight: np.ndarray, height: int, width: int, padding: int) -> np.ndarray:
    """Return the (K h w, C H W) matrix of a convolution of stride 1, tap by tap."""
    filters, channels, side, _ = weight.shape
    out_height, out_width = height + 2 * padding - side + 1, width + 2 * padding - side + 1
    matrix = np.zeros((filters, out_height, out_width, channels, height, width))
    for k, i, j, c, a, b in np.ndindex(filters, out_height, out_width, channels, side, side):
        row, column = i + a - padding, j + b - padding
        if 0 <= row < height and 0 <= column < width:
            matrix[k, i, j, c, row, column] = weight[k, c, a, b]
    return matrix.reshape(filters * out_height * out_width, channels * height * width)


def _max_pool_matrix(values: np.ndarray, side: int) -> np.ndarray:
    """Return the matrix that selects the winner of each 2 x 2 window of maps (K, side, side)."""
    maps = values.reshape(-1, side, side)
    matrix = np.zeros((len(maps), side // 2, side // 2, *maps.shape))
    for k, i, j in np.ndindex(matrix.shape[:3]):
        winner = max(((2 * i + a, 2 * j + b) for a in range(2) for b in range(2)), key=lambda at: maps[k][at])
        matrix[(k, i, j, k, *winner)] = 1
    return matrix.reshape(-1, values.size)


def _average_pool_matrix(filters: int, side: int) -> np.ndarray:
    matrix = np.zeros((filters, side // 2, side // 2, filters, side, side))
    for k, i, j, a, b in np.ndindex(filters, side // 2, side // 2, 2, 2):
        matrix[k, i, j, k, 2 * i + a, 2 * j + b] = 0.25
    return matrix.reshape(-1, filters * side * side)


def test_the_layerwise_recursion_gives_the_same_images():
    model, x = network(bias=True), noise(2, 8, 8)
    weights = {layer: model[int(layer)].weight.detach().numpy() for layer in LAYERS}
    biases = {layer: model[int(layer)].bias.detach().numpy() for layer in LAYERS}
    pixels = x.numpy().reshape(-1)
    expected = {}

    # C_q^(0,l) = W_q^l times the product of the C^(i-1,i) before; rows of inactive neurons are zero
    matrix = _convolution_matrix(weights["0"], 8, 8, 1)
    value = matrix @ pixels + np.repeat(biases["0"], 64)
    product = expected["0"] = (value > 0)[:, None] * matrix
    value = np.maximum(value, 0)
    pooling = _max_pool_matrix(value, 8)
    product, value = pooling @ product, pooling @ value

    matrix = _convolution_matrix(weights["3"], 4, 4, 1)
    product, value = matrix @ product, matrix @ value + np.repeat(biases["3"], 16)
    product = expected["3"] = (value > 0)[:, None] * product
    pooling = _average_pool_matrix(5, 4)
    product, value = pooling @ product, pooling @ np.maximum(value, 0)

    product, value = weights["7"] @ product, weights["7"] @ value + biases["7"]
    product = expected["7"] = (value > 0)[:, None] * product
    product, value = weights["9"] @ product, weights["9"] @ np.maximum(value, 0) + biases["9"]
    expected["9"] = product

    np.testing.assert_allclose(value, model(x[None])[0].detach().numpy(), rtol=1e-10)
    moments = scan(model, x[None], layers=list(LAYERS))
    for layer in LAYERS:
        images = torch.as_tensor(expected[layer] * pixels).reshape(-1, 2, 8, 8)
        same(learning_images(model, x, layer, gate=layer != LAST), images)
        assert_scanned(moments, layer, images)


def test_a_network_small_enough_to_follow_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[1.0, 0, -1], [2, 1, 0]]).double()
    model[1].bias.data = torch.tensor([5.0, -1]).double()
    model[3].weight.data = torch.tensor([[2.0, 7]]).double()
    model[3].bias.data = torch.tensor([0.5]).double()
    x = torch.tensor([[[1.0, -2, 3]]]).double()
    # the hidden values are 1 - 3 + 5 = 3 and 2 - 2 - 1 = -1, the score 2 * 3 + 0.5
    assert values_of(model, x, "3").tolist() == [6.5]
    assert learning_images(model, x, "1").reshape(2, 3).tolist() == [[1, 0, -3], [0, 0, 0]]
    assert learning_images(model, x, "1", gate=False).reshape(2, 3).tolist() == [[1, 0, -3], [2, -2, 0]]
    assert learning_images(model, x, "3").reshape(3).tolist() == [2, 0, -6]  # sums to 6.5 less 2 * 5 + 0.5
    moments = scan(model, x[None], layers=["1", "3"])
    assert flat(moments, "1", "activation").tolist() == [3, -1]
    assert flat(moments, "1", "signed_total").tolist() == [-2, 0]
    score = {quantity: float(flat(moments, "3", quantity)) for quantity in moments.layers["3"]}
    assert score["signed_total"] == -4
    assert (score["maximum"], score["minimum"]) == (6, 0)
    assert (score["total_foreground"], score["square_foreground"], score["count_foreground"]) == (8, 40, 2)
    # |x| = (1, 2, 3) scaled to [0, 1] is (0, 1/2, 1); of it the pixels 0 and 2 belong to the support
    assert (score["input_total_foreground"], score["input_square_foreground"]) == (1, 1)
    assert score["cross_foreground"] == 6
    assert moments.filter_images["3"].reshape(3).tolist() == [13, 0, -39]
