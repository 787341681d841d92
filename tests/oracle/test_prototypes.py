"""ProtoPNet against its formulas: distances, similarities, scores, losses, push and last layer, by loops."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional

from nnscan import prototypes
from nnscan.models import SequentialCNN, _BasicBlock, build_model
from nnscan.prototypes import (
    EPSILON,
    ProtoPNet,
    PrototypeProtocol,
    explain,
    fit_last_layer,
    patch_centres,
    patch_losses,
    protopnet,
    push,
    similarity,
    similarity_maps,
    typical,
)

CLASSES, PER_CLASS, CHANNELS = 3, 2, 5


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    owners = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return ProtoPNet(backbone, 4, owners, CLASSES, CHANNELS)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % CLASSES


def loop_distances(patches, prototypes):
    """Squared distances by single differences."""
    count, _, height, width = patches.shape
    result = np.zeros((count, len(prototypes), height, width))
    for n, p, i, j in np.ndindex(result.shape):
        difference = patches[n, :, i, j].double() - prototypes[p].double()
        result[n, p, i, j] = float((difference**2).sum())
    return result


def test_distances_by_loops(net, data):
    patches = net.eval().latent(data[0][:3]).detach()
    assert patches.shape == (3, CHANNELS, 3, 3)
    assert patches.min() > 0
    assert patches.max() < 1
    found = net.distances(patches)
    np.testing.assert_allclose(found.detach(), loop_distances(patches, net.prototypes.detach()), atol=1e-14)
    assert found.max() < CHANNELS
    near = net.nearest(data[0][:3])
    np.testing.assert_array_equal(near.detach(), found.detach().amin((2, 3)))


def test_a_patch_has_the_distance_zero_to_itself_and_the_largest_similarity(net, data):
    patches = net.eval().latent(data[0][:1]).detach()
    net.prototypes.data[0] = patches[0, :, 1, 2]
    squared = net.nearest(data[0][:1])[0, 0].item()
    assert squared < 1e-13
    assert float(similarity(torch.tensor(squared))) == pytest.approx(9.21034, abs=1e-5)


def test_values_of_the_similarity():
    squared = torch.tensor([0, 1e-4, 1, 1e12], dtype=torch.float64)
    expected = [math.log(1e4), math.log(1.0001 / 2e-4), math.log(2 / 1.0001), 0]
    np.testing.assert_allclose(similarity(squared), expected, atol=1e-9)
    many = similarity(torch.linspace(0, 128, 1000, dtype=torch.float64))
    assert (many.diff() < 0).all()


def test_scores_of_a_fresh_network_are_own_similarities_less_half_of_the_others(net, data):
    net.eval()
    values = similarity(net.nearest(data[0])).detach()
    for image, scores in zip(values, net(data[0]).detach(), strict=True):
        for number in range(CLASSES):
            own = image[number * PER_CLASS : (number + 1) * PER_CLASS].sum()
            assert float(scores[number]) == pytest.approx(float(own - 0.5 * (image.sum() - own)), rel=1e-5)


def blocks():
    return SequentialCNN(nn.Sequential(_BasicBlock(1, 2, 1), _BasicBlock(2, 3, 2), _BasicBlock(3, 3, 1)), 3, 1, (), 2)


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "alexnet", "blocks"])
def test_patches_lie_at_the_centre_of_their_receptive_field(name):
    """Found by which pixels change a patch in the middle, with weights that let everything pass."""
    model = blocks() if name == "blocks" else build_model(name, {"in_channels": 1})
    backbone = model.features.eval().double()
    for parameter in backbone.parameters():
        nn.init.ones_(parameter)
    for module in backbone.modules():
        if isinstance(module, nn.MaxPool2d):  # a mean depends on all pixels
            module.forward = nn.AvgPool2d(module.kernel_size).forward
    x = torch.rand(1, 1, 128, 128, dtype=torch.float64).requires_grad_(True)
    maps = backbone(x)
    cell = maps.shape[2] // 2
    (gradient,) = torch.autograd.grad(maps[0, 0, cell].sum(), x)
    rows = torch.nonzero(gradient[0, 0].abs().sum(1))[:, 0].tolist()
    assert rows[0] > 0
    assert rows[-1] < 127
    first, step = patch_centres(backbone)
    assert (rows[0] + rows[-1]) / 2 == first + cell * step


def test_cluster_and_separation_by_loops(net, data):
    near = net.eval().nearest(data[0]).detach()
    own = [min(float(near[i, p]) for p in range(6) if p // 2 == y) for i, y in enumerate(data[1].tolist())]
    other = [min(float(near[i, p]) for p in range(6) if p // 2 != y) for i, y in enumerate(data[1].tolist())]
    cluster, separation = patch_losses(near, data[1], net.owners)
    assert float(cluster) == pytest.approx(np.mean(own))
    assert float(separation) == pytest.approx(np.mean(other))


def test_push_puts_every_prototype_onto_the_nearest_patch_of_its_class(net, data):
    x, y = data
    before = net.prototypes.detach().clone()
    with torch.no_grad():
        patches = net.eval().latent(x)
    far = loop_distances(patches, before)
    assert push(net.train(), x, y) == 6
    assert all(module.training for module in net.modules())
    for number in range(6):
        own = np.where((y.numpy() == number // 2)[:, None, None], far[:, number], np.inf)
        image, row, column = np.unravel_index(own.argmin(), own.shape)
        assert net.sources[number].tolist() == [image, row, column]
        assert y[image] == net.owners[number]
        assert torch.equal(net.prototypes[number], patches[image, :, row, column])
        squared = net.eval().nearest(x[image : image + 1])[0, number]
        assert similarity(squared).item() == pytest.approx(9.2103, abs=1e-4)
    after = {name: value.clone() for name, value in net.state_dict().items()}
    assert push(net, x, y) == 0
    assert all(torch.equal(value, after[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("images", [256, 12])
def test_of_equal_patches_the_first_counts(images, net, data, monkeypatch):
    monkeypatch.setattr(prototypes, "_IMAGES", images)  # equal ones in one pass, or in several
    x, y = data
    again, labels = torch.cat([x, x, x]), torch.cat([y, y, y])
    push(net, again, labels)
    assert net.sources[:, 0].max() < len(x)
    assert push(net, again.flip(0), labels.flip(0)) == 0
    flat = torch.zeros(6, 1, 8, 8)  # all patches of all images are equal
    push(net, flat, torch.arange(6) % 3)
    assert net.sources.tolist() == [[owner, 0, 0] for owner in (0, 0, 1, 1, 2, 2)]


def test_the_last_layer_is_fitted_alone_and_as_a_convex_problem(net, data):
    x, y = data
    push(net, x, y)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    near = net.eval().nearest(x).detach()
    protocol = PrototypeProtocol(last_rate=0.05, batch_size=12, sparsity=0.05)
    record = fit_last_layer(net, x, y, protocol, 800, torch.Generator().manual_seed(0))
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["last.weight"]
    assert torch.equal(net.nearest(x), near)  # and with it the cluster cost and the separation

    wrong = torch.arange(3)[:, None] != net.owners[None]
    values = similarity(near)

    def cost(parts):
        """The same for weights that are differences of two non-negative parts, which makes it smooth."""
        parts = torch.from_numpy(parts).requires_grad_(True)
        positive, negative = parts.reshape(2, 3, 6)
        entropy = functional.cross_entropy(values @ (positive - negative).T, y)
        total = entropy + 0.05 * (positive + negative)[wrong].sum()
        total.backward()
        return total.item(), parts.grad.numpy()

    best = minimize(cost, np.ones(36), jac=True, bounds=[(0, None)] * 36, method="L-BFGS-B").fun
    found = record["cross_entropy"] + 0.05 * record["sparsity"]
    assert best - 1e-4 < found < best + 0.01


def test_pruning_counts_the_classes_of_the_six_nearest_images(net, data):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % CLASSES
    push(net, x, y)
    near = net.eval().nearest(x).detach().numpy()
    own = [sum(y[i] == number // 2 for i in np.argsort(near[:, number], kind="stable")[:6]) for number in range(6)]
    expected = {number for number in range(6) if own[number] >= 3}
    for owner in range(3):
        pair = [2 * owner, 2 * owner + 1]
        if not expected & set(pair):
            expected.add(max(pair, key=lambda number: (own[number], -number)))
    assert set(typical(net, x, y)) == expected
    assert len(expected) < 6


def keys(place, cells):
    """Return the weights of `cells` values for their cubic interpolation (a = -0.75) at a place, edges repeated."""
    result = np.zeros(cells)
    for cell in range(math.floor(place) - 1, math.floor(place) + 3):
        far = abs(place - cell)
        near = (1.25 * far - 2.25) * far**2 + 1
        weight = near if far <= 1 else ((-0.75 * far + 3.75) * far - 6) * far + 3
        result[min(max(cell, 0), cells - 1)] += weight
    return result


def test_where_convolutions_are_padded_maps_are_stretched_over_the_image():
    torch.manual_seed(0)
    network = protopnet(build_model("simple_cnn"), torch.rand(1, 3, 32, 32), 3, 2, 8).eval()
    x = torch.rand(3, 32, 32)
    with torch.no_grad():
        squared = network.distances(network.latent(x[None]))
        expected = functional.interpolate(similarity(squared), size=(32, 32), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(similarity_maps(network, x, [4, 1]), expected[0, [4, 1]], atol=1e-12)


def test_contributions_add_up_to_the_scores(net, data):
    x, y = data
    push(net, x, y)
    found = explain(net, x[4], count=3)
    scores = net.eval()(x[4:5])[0].detach().numpy()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    np.testing.assert_allclose(found.contributions.sum(0), scores, rtol=1e-5)
    values = similarity(net.nearest(x[4:5]))[0].detach().numpy()
    assert [one.prototype for one in found.likenesses] == np.argsort(-values, kind="stable")[:3].tolist()
    for one in found.likenesses:
        assert one.similarity == values[one.prototype]
        weights = net.last.weight.detach().numpy()[:, one.prototype]
        np.testing.assert_allclose(one.contribution, values[one.prototype] * weights, rtol=1e-6)
        squared = net.distances(net.latent(x[4:5])).detach()[:, [one.prototype]]
        exact = torch.log((squared + 1) / (squared + EPSILON))
        # patches are centred on 1.5, 3.5, 5.5 and two pixels wide
        matrix = np.stack([keys((pixel - 1.5) / 2, 3) if 0.5 <= pixel <= 6.5 else np.zeros(3) for pixel in range(8)])
        enlarged = matrix @ exact[0, 0].numpy() @ matrix.T
        np.testing.assert_allclose(one.activation, enlarged, atol=1e-9)
        top, left, bottom, right = one.box
        high = np.argwhere(enlarged >= np.percentile(enlarged, 95))
        assert ([top, left], [bottom - 1, right - 1]) == (high.min(0).tolist(), high.max(0).tolist())
        assert one.source == int(net.sources[one.prototype, 0])
        assert one.source_box == tuple(net.boxes[one.prototype].tolist())
