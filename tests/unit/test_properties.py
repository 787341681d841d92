"""Interpretable properties, AVoU and SoU against loops written straight from the slides' formulas."""

import copy
import math
import warnings

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad
from torch.nn.functional import cross_entropy

from nnscan import properties, suffixes
from nnscan.errors import DataError, LayerError
from nnscan.models import load_model, weight_module
from nnscan.properties import (
    TYPES,
    activation_value,
    area_means,
    filter_types,
    interpretable_properties,
    rank_correlation,
    sensitivities,
    sensitivity,
)
from nnscan.scanner import learning_images
from nnscan.suffixes import find_suffix

NAMES = ("T_m", "T_v", "T_c", "T_cor")


def naive_sample(image, pixels, area):
    """P_m, P_v, P_c, P_cor of one channel-summed image over the pixels of an area; None where it is empty."""
    places = [(i, j) for i in range(image.shape[0]) for j in range(image.shape[1]) if area[i, j]]
    if not places:
        return None
    n = len(places)
    mean_l = sum(image[p] for p in places) / n
    mean_x = sum(pixels[p] for p in places) / n
    variance = sum((image[p] - mean_l) ** 2 for p in places) / n
    covariance = sum((image[p] - mean_l) * (pixels[p] - mean_x) for p in places) / n
    spread_x = sum((pixels[p] - mean_x) ** 2 for p in places) / n
    constant = len({image[p] for p in places}) == 1 or len({pixels[p] for p in places}) == 1
    return mean_l, variance, covariance, 0.0 if constant else covariance / math.sqrt(variance * spread_x)


def naive_properties(fimgs, x, area):
    samples, filters = fimgs.shape[:2]
    table = np.full((filters, 4), np.nan)
    for k in range(filters):
        found = []
        for s in range(samples):
            image = sum(fimgs[s, k, c].astype(np.float64) for c in range(fimgs.shape[2]))
            pixels = sum(x[s, c].astype(np.float64) for c in range(x.shape[1])) / x.shape[1]
            one = naive_sample(image, pixels, area[s])
            if one is not None:
                found.append(one)
        if found:
            table[k] = [sum(one[p] for one in found) / len(found) for p in range(4)]
    return table


def example(samples=4, filters=3, size=6, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((samples, 3, size, size)) + 1).astype(np.float32)
    fimgs = (rng.standard_normal((samples, filters, 3, size, size)) * x[:, None]).astype(np.float32)
    return fimgs, x, rng.random((samples, size, size)) < 0.4


@pytest.mark.parametrize("chunk", [1, 1000, 2**26])  # a single image, a part of the filters, everything
def test_properties_equal_their_formulas(monkeypatch, chunk):
    monkeypatch.setattr(properties, "_CHUNK_BYTES", chunk)
    fimgs, x, foreground = example()
    frame = interpretable_properties(fimgs, x, foreground)
    assert frame["filter"].tolist() == [0, 1, 2]
    everywhere = np.ones_like(foreground)
    for suffix, area in (("", everywhere), ("_foreground", foreground), ("_background", ~foreground)):
        computed = frame[[name + suffix for name in NAMES]].to_numpy()
        np.testing.assert_allclose(computed, naive_properties(fimgs, x, area), rtol=1e-10, atol=1e-12)
    assert frame[["empty_foreground", "empty_background"]].to_numpy().tolist() == [[0, 0]] * 3
    assert list(interpretable_properties(fimgs, x).columns) == ["filter", *NAMES]


def test_tensors_and_files_are_read_like_arrays(tmp_path):
    fimgs, x, foreground = example()
    expected = interpretable_properties(fimgs, x, foreground)
    tensors = interpretable_properties(torch.from_numpy(fimgs), torch.from_numpy(x), torch.from_numpy(foreground))
    assert tensors.equals(expected)
    with h5py.File(tmp_path / "images.h5", "w") as file:
        assert interpretable_properties(file.create_dataset("fimgs", data=fimgs), x, foreground).equals(expected)


def test_a_dead_filter_and_a_constant_input_correlate_with_nothing():
    fimgs, x, _ = example()
    fimgs[:, 1] = 0
    frame = interpretable_properties(fimgs, x)
    assert frame.loc[1, list(NAMES)].tolist() == [0, 0, 0, 0]
    fimgs[:, 2] = 0.1  # of variance zero, not of rounding
    assert frame.loc[0, "T_cor"] != 0
    constant = interpretable_properties(fimgs, np.full_like(x, 0.1))
    assert (constant["T_c"] == 0).all()
    assert (constant["T_cor"] == 0).all()
    assert constant.loc[2, "T_v"] == 0
    assert constant.loc[2, "T_m"] == pytest.approx(3 * 0.1, rel=1e-6)


def test_samples_with_an_empty_mask_are_left_out_and_counted():
    fimgs, x, foreground = example()
    foreground[1] = False
    foreground[3] = True
    frame = interpretable_properties(fimgs, x, foreground)
    for suffix, area in (("_foreground", foreground), ("_background", ~foreground)):
        computed = frame[[name + suffix for name in NAMES]].to_numpy()
        np.testing.assert_allclose(computed, naive_properties(fimgs, x, area), rtol=1e-10, atol=1e-12)
    assert frame[["empty_foreground", "empty_background"]].iloc[0].tolist() == [1, 1]
    nowhere = interpretable_properties(fimgs, x, np.zeros_like(foreground))
    assert nowhere[[f"{name}_foreground" for name in NAMES]].isna().all(axis=None)
    assert (nowhere["empty_foreground"] == 4).all()
    for name in NAMES:
        np.testing.assert_array_equal(nowhere[f"{name}_background"], nowhere[name])


def test_a_block_grid_averages_the_input_and_takes_masks_by_majority():
    fimgs, x, _ = example(size=6)
    grid = fimgs.sum(axis=2, keepdims=True).reshape(4, 3, 1, 3, 2, 3, 2).sum(axis=(4, 6))
    masks = np.zeros((4, 6, 6), dtype=bool)
    masks[:, :2, :2] = True  # a whole block
    masks[:, 2, 2:4] = True  # half a block counts
    masks[:, 4, 4] = True  # a quarter does not
    coarse = np.zeros((4, 3, 3), dtype=bool)
    coarse[:, 0, 0] = coarse[:, 1, 1] = True
    averaged = x.reshape(4, 3, 3, 2, 3, 2).mean(axis=(3, 5), dtype=np.float64)
    frame = interpretable_properties(grid, x, masks)
    for suffix, area in (("", np.ones_like(coarse)), ("_foreground", coarse), ("_background", ~coarse)):
        computed = frame[[name + suffix for name in NAMES]].to_numpy()
        np.testing.assert_allclose(computed, naive_properties(grid, averaged, area), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(frame["T_m"], 4 * interpretable_properties(fimgs, x)["T_m"], rtol=1e-6)


def test_shapes_that_do_not_belong_together_are_refused():
    fimgs, x, foreground = example()
    with pytest.raises(DataError, match=r"\(N, K, C, H, W\)"):
        interpretable_properties(fimgs[:, :, 0], x)
    with pytest.raises(DataError, match=r"\(N, K, C, H, W\)"):
        interpretable_properties(fimgs, x[:3])
    with pytest.raises(DataError, match="no whole blocks"):
        interpretable_properties(fimgs[..., :4], x)
    with pytest.raises(DataError, match="foreground"):
        interpretable_properties(fimgs, x, foreground[:, :3])


def test_activation_value_is_the_mean_map():
    maps = np.random.default_rng(0).random((3, 4, 2, 5)).astype(np.float32)
    expected = [
        sum(float(maps[s, k, i, j]) for s in range(3) for i in range(2) for j in range(5)) / (2 * 5 * 3)
        for k in range(4)
    ]
    np.testing.assert_allclose(activation_value(torch.from_numpy(maps)), expected, rtol=1e-12)
    np.testing.assert_allclose(activation_value(maps[:, :, 0, 0]), maps[:, :, 0, 0].mean(axis=0, dtype=float))


@pytest.fixture
def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3),
    ).double().train()  # fmt: skip


@pytest.fixture
def labelled():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 1, 0])


def naive_exact(model, x, y, weights):
    model = copy.deepcopy(model).eval()
    weight = model.get_submodule(weights).weight
    values = []
    with torch.no_grad():
        for k in range(len(weight)):
            total = 0.0
            for w in range(weight[k].numel()):
                for s in range(len(x)):
                    intact = cross_entropy(model(x[s : s + 1]), y[s : s + 1]).item()
                    kept = weight[k].view(-1)[w].item()
                    weight[k].view(-1)[w] = 0
                    total += abs(intact - cross_entropy(model(x[s : s + 1]), y[s : s + 1]).item())
                    weight[k].view(-1)[w] = kept
            values.append(total / (weight[k].numel() * len(x)))
    return values


def naive_first_order(model, x, y, weights):
    model = copy.deepcopy(model).eval()
    weight = model.get_submodule(weights).weight
    totals = torch.zeros(len(weight), dtype=torch.float64)
    for s in range(len(x)):
        (slope,) = torch.autograd.grad(cross_entropy(model(x[s : s + 1]), y[s : s + 1]), weight)
        totals += (weight * slope).abs().flatten(1).mean(dim=1).detach()
    return totals / len(x)


@pytest.mark.parametrize(("layer", "weights"), [("4", "4"), ("1", "0"), ("0", "0"), ("7", "7")])
def test_sensitivity_equals_removing_each_weight(small, labelled, layer, weights):
    x, y = labelled
    exact = sensitivity(small, x, y, layer, exact=True, batch_size=2)
    np.testing.assert_allclose(exact, naive_exact(small, x, y, weights), rtol=1e-9, atol=1e-14)
    assert exact.shape == (len(small.get_submodule(weights).weight),)


@pytest.mark.parametrize("memory", [1, 2**28])  # one sample at a time, a whole batch
@pytest.mark.parametrize(("layer", "weights"), [("4", "4"), ("1", "0"), ("7", "7")])
def test_first_order_sensitivity_equals_gradients_sample_by_sample(
    small, labelled, monkeypatch, memory, layer, weights
):
    monkeypatch.setattr(properties, "PASS_BYTES", memory)
    x, y = labelled
    computed = sensitivity(small, x.numpy(), y.numpy().astype(np.int32), small.get_submodule(layer), batch_size=3)
    np.testing.assert_allclose(computed, naive_first_order(small, x, y, weights), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("exact", [False, True])
def test_sensitivities_of_several_layers_come_in_their_order(small, labelled, exact):
    x, y = labelled
    naive = naive_exact if exact else naive_first_order
    found = sensitivities(small, x, y, ["7", small[1], "4", "0"], exact)
    assert len(found) == 4
    for values, weights in zip(found, ("7", "0", "4", "0"), strict=True):
        np.testing.assert_allclose(values, naive(small, x, y, weights), rtol=1e-9, atol=1e-14)
    assert sensitivities(small, x, y, [], exact) == []


def test_all_layers_share_their_passes_to_first_order(small, labelled, monkeypatch):
    passes = []
    monkeypatch.setattr(properties, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    sensitivities(small, *labelled, ["0", "4", "7"], batch_size=2)
    assert len(passes) == 3  # of 2, 2 and 1 samples


class Reused(nn.Module):
    """One convolution at two places and sizes, a linear map of the channels at each position."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(2, 2, 2), nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, images):
        maps = torch.relu(self.conv(input=images))
        maps = F.max_pool2d(maps, 2, 1) + 0.1
        again = self.conv(maps)
        return self.head(self.mix(again.movedim(1, -1)).relu().mean((1, 2))) + maps.mean()


class Windows(nn.Module):
    """A convolution that takes the four quarters of an image as four images."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 2, groups=2), nn.Linear(64, 3)

    def forward(self, images):
        quarters = images.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(-1, 2, 3, 3)
        return self.head(self.conv(quarters).relu().reshape(-1, 64))


class Standardised(nn.Conv2d):
    """A convolution whose weights are not what its filters use."""

    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(images, weight, self.bias, self.stride, self.padding)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3), nn.Linear(2, 3)

    def forward(self, images):
        maps = self.conv(images) if images.shape[1] == 2 else images
        return self.head(maps.relu().mean((2, 3)))


def convolved(*layers, features, normalisation=nn.BatchNorm2d):
    width = layers[-1].out_channels
    return nn.Sequential(
        *layers, normalisation(width), nn.ReLU(), nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 3)
    )


ARCHITECTURES = {
    "grouped": (lambda: convolved(nn.Conv2d(2, 4, 2, groups=2), features=100), ["0", "4", "6"]),
    "depthwise": (lambda: convolved(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 2, groups=6), features=150), ["0", "1"]),
    "strided": (lambda: convolved(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), features=45), ["0"]),
    "dilated": (lambda: convolved(nn.Conv2d(2, 3, (2, 3), dilation=(3, 2), bias=False), features=18), ["0"]),
    "same": (lambda: convolved(nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(3, 1)), features=108), ["0"]),
    "valid": (lambda: convolved(nn.Conv2d(2, 3, 3, padding="valid"), features=48), ["0"]),
    "circular": (
        lambda: convolved(nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), features=144), ["0"],
    ),
    "reflected": (
        lambda: convolved(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 2, padding=1, padding_mode="reflect"),
                          features=98), ["0", "1"],
    ),
    "one position": (lambda: convolved(nn.Conv2d(2, 3, 6), features=3), ["1", "6"]),
    "one axis": (
        lambda: nn.Sequential(nn.Flatten(2), *convolved(nn.Conv1d(2, 3, 3, stride=2, padding=2), features=57,
                                                        normalisation=nn.BatchNorm1d)), ["1"],
    ),
    "three axes": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), *convolved(nn.Conv3d(1, 3, 2, padding=(1, 0, 0)), features=225,
                                                                  normalisation=nn.BatchNorm3d)), ["1"],
    ),
    "reused": (Reused, ["conv", "mix", "head"]),
    "windows": (Windows, ["conv", "head"]),
    "standardised": (lambda: convolved(Standardised(2, 3, 3, padding=1), features=108), ["0", "4"]),
    "branching": (Branching, ["conv", "head"]),
}  # fmt: skip


@pytest.mark.parametrize("memory", [1, 2**24])
@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sensitivities_of_layers_of_all_kinds(name, memory, monkeypatch, caplog):
    monkeypatch.setattr(properties, "PASS_BYTES", memory)
    monkeypatch.setattr(suffixes, "PASS_BYTES", max(memory, 1000))
    monkeypatch.setattr(properties, "_KEPT_BYTES", memory)
    caplog.set_level("INFO")
    build, layers = ARCHITECTURES[name]
    torch.manual_seed(5)
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x, y = torch.randn(3, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 2, 1])
    weights = [weight_module(model, x, layer) for layer in layers]
    for exact, naive in ((True, naive_exact), (False, naive_first_order)):
        for values, owner in zip(sensitivities(model, x, y, layers, exact), weights, strict=True):
            expected = naive(model, x, y, owner)
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-14)
            assert max(expected) > 0
    whole = [line for line in caplog.messages if "runs the whole network each time" in line]
    assert len(whole) == {"reused": 2, "windows": 1, "standardised": 1, "branching": 2}.get(name, 0)


class Spent(nn.Module):
    """A network that changes its input after a layer has read it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.changing = nn.Conv2d(2, 3, 3), nn.Linear(3, 3), True

    def forward(self, images):
        maps = self.conv(images)
        images = images.mul_(0.5) if self.changing else images * 0.5
        return self.head(maps.relu().mean((2, 3)) + images.mean((1, 2, 3))[:, None])


@pytest.mark.parametrize("exact", [False, True])
def test_the_input_may_be_changed_by_the_network_but_is_not_by_the_measure(labelled, exact):
    torch.manual_seed(5)
    model, (x, y) = Spent().double(), labelled
    before = x.clone()
    found = sensitivity(model, x, y, "conv", exact)
    assert torch.equal(x, before)
    model.changing = False
    naive = naive_exact if exact else naive_first_order
    np.testing.assert_allclose(found, naive(model, x, y, "conv"), rtol=1e-9)


def test_removal_runs_only_what_a_weight_changes(labelled, monkeypatch):
    torch.manual_seed(6)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, -99.0]))  # the second filter is silent with and without any weight
    run, scores, suffix = [], suffixes.Suffix.scores, find_suffix(model, "0", labelled[0])

    def noted(suffix, kept, changes):
        run.extend(len(change.samples) for change in changes)
        return scores(suffix, kept, changes)

    monkeypatch.setattr(properties, "find_suffix", lambda *args: suffix)
    monkeypatch.setattr(suffixes.Suffix, "scores", noted)
    exact = sensitivity(model, *labelled, "0", exact=True)
    np.testing.assert_allclose(exact, naive_exact(model, *labelled, "0"), rtol=1e-9)
    assert exact[1] == 0
    assert run == [5 * 18]


def test_removal_in_lenet_is_that_of_the_plain_loop(monkeypatch):
    torch.manual_seed(0)
    model = load_model("lenet5", factory_options={"in_channels": 1}).double()
    x, y = torch.rand(2, 1, 32, 32).double(), torch.tensor([3, 8])
    layers = ["features.0", "head.5"]
    found = sensitivities(model, x, y, layers, exact=True)
    monkeypatch.setattr(properties, "find_suffix", lambda *args: None)
    for values, expected in zip(found, sensitivities(model, x, y, layers, exact=True), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_removal_and_first_order_agree_where_weights_are_small(small, labelled):
    """The loss is smooth in the last layer, so the two differ by a term of second order in the weights."""
    errors = []
    for scale in (1e-1, 1e-2, 1e-3):
        with torch.no_grad():
            shrunk = copy.deepcopy(small)
            shrunk[7].weight *= scale
        exact, first = (sensitivity(shrunk, *labelled, "7", exact=exact) for exact in (True, False))
        errors.append(np.abs(exact / first - 1).max())
    assert errors[0] < 0.1
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_removal_and_first_order_rank_the_filters_of_lenet_alike():
    torch.manual_seed(0)
    model = load_model("lenet5", factory_options={"in_channels": 1})
    x, y = torch.rand(8, 1, 32, 32), torch.arange(8)
    exact, first = (sensitivity(model, x, y, "features.0", exact=exact) for exact in (True, False))
    assert rank_correlation(exact, first) > 0.9


def test_sensitivity_leaves_the_model_as_it_was(small, labelled):
    before = copy.deepcopy(small.state_dict())
    for exact in (False, True):
        sensitivity(small, *labelled, "4", exact=exact)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in before.items())
    assert small.training
    assert small[2].inplace
    assert all(parameter.requires_grad and parameter.grad is None for parameter in small.parameters())


def test_sensitivity_refuses_what_it_cannot_measure(small, labelled):
    x, y = labelled
    with pytest.raises(DataError, match="5 samples and 3 classes"):
        sensitivity(small, x, y[:3], "4")
    with pytest.raises(LayerError, match="not a layer of neurons"):
        sensitivity(small, x, y, "3")


# Types of filters ---------------------------------------------------------------------------------------------------

# by hand: ten filters, so that the three of the highest and lowest values are high and low
FOREGROUND = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]  # high: 0 1 2, low: 7 8 9
BACKGROUND = [9, 8, 1, 2, 7, 3, 4, -1, -2, 5]  # high: 0 1 4, low: 2 7 8
BY_HAND = {"H-H": [0, 1], "H-noH": [2], "noH-H": [4], "L-L": [7, 8], "L-noL": [9], "noL-L": [2]}


def listed(types):
    return {name: filters.tolist() for name, filters in types.items()}


def test_types_by_hand():
    assert tuple(BY_HAND) == TYPES
    assert listed(filter_types(FOREGROUND, BACKGROUND)) == BY_HAND
    order = np.random.default_rng(0).permutation(10)
    shuffled = filter_types(np.array(FOREGROUND)[order], np.array(BACKGROUND)[order])
    assert {name: sorted(order[filters].tolist()) for name, filters in shuffled.items()} == BY_HAND


def test_types_are_the_published_proportions_of_512_filters():
    """Where 13 of 154 filters high on the foreground are not high on the background, and 8 of 154 low likewise."""
    foreground = np.arange(512.0, 0, -1)
    background = foreground.copy()
    background[141:154], background[160:173] = foreground[160:173], foreground[141:154]
    background[358:366], background[300:308] = foreground[300:308], foreground[358:366]
    sizes = {name: len(filters) for name, filters in filter_types(foreground, background).items()}
    assert sizes == {"H-H": 141, "H-noH": 13, "noH-H": 13, "L-L": 146, "L-noL": 8, "noL-L": 8}
    assert [round(sizes[name] / 512, 2) for name in TYPES] == [0.28, 0.03, 0.03, 0.29, 0.02, 0.02]


@pytest.mark.parametrize(
    ("filters", "share", "high"),
    [(512, 0.3, 154), (16, 0.3, 5), (10, 0.5, 5), (7, 0.5, 3), (6, 0.01, 1), (2, 0.3, 1), (1, 0.3, 0)],
)
def test_high_and_low_are_a_share_and_never_the_same_filter(filters, share, high):
    values = np.random.default_rng(1).random(filters)
    types = listed(filter_types(values, values, share))
    assert [len(types[name]) for name in TYPES] == [high, 0, 0, high, 0, 0]
    assert not set(types["H-H"]) & set(types["L-L"])


def test_dead_filters_are_low_together():
    """Ties are broken by filter number in both rankings, so that equal filters stay together."""
    foreground, background = np.zeros(10), np.zeros(10)
    foreground[[2, 5]], background[[2, 7]] = 1, 1
    types = listed(filter_types(foreground, background))
    assert types["H-H"] == [0, 2]  # two high values and, of eight dead filters, the first
    assert (types["H-noH"], types["noH-H"]) == ([5], [7])
    assert types["L-L"] == [8, 9]  # on the foreground 7, 8, 9; on the background 6, 8, 9
    assert (types["L-noL"], types["noL-L"]) == ([7], [6])


def test_no_types_where_there_is_no_foreground_or_no_background(small, labelled):
    x, _ = labelled
    assert filter_types([1.0, np.nan], [1.0, 2.0]) == {}
    assert filter_types([1.0, 2.0], [np.nan, 2.0]) == {}
    for foreground in (None, np.ones((len(x), *x.shape[2:]), bool), np.zeros((len(x), *x.shape[2:]), bool)):
        means = area_means(small, x, foreground, "4")
        assert filter_types(means["T_m_foreground"], means["T_m_background"]) == {}
        assert len(means) == small[4].out_channels


@pytest.mark.parametrize("memory", [1, 3 * 36 * 8, 2**26])
def test_means_over_an_area_are_those_of_the_learning_images(memory, monkeypatch):
    """T^f and T^b neuron by neuron: mean over samples of the mean over the area of sum_ij I_ij f_ij, in float64."""
    monkeypatch.setattr(properties, "_CHUNK_BYTES", memory)
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)
    ).double()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    foreground = np.random.default_rng(4).random((5, 6, 6)) < 0.3
    foreground[1], foreground[2] = False, True  # these have one area only
    sums, counts = np.zeros((2, 5)), np.zeros(2)
    for sample, mask in zip(x, foreground, strict=True):
        with torch.no_grad():
            maps = model[:4](sample[None])[0]
        neurons = learning_images(model, sample, "3").sum(1).reshape(*maps.shape, 6, 6)
        image = (neurons * maps.relu()[..., None, None]).sum((1, 2)).numpy()
        for number, area in enumerate((mask, ~mask)):
            if area.any():
                sums[number] += image[:, area].sum(1) / area.sum()
                counts[number] += 1
    assert counts.tolist() == [4, 4]
    found = area_means(model, x, foreground, "3")
    assert found["filter"].tolist() == list(range(5))
    np.testing.assert_allclose(found["T_m_foreground"], sums[0] / 4, rtol=1e-10)
    np.testing.assert_allclose(found["T_m_background"], sums[1] / 4, rtol=1e-10)
    assert not np.allclose(sums[0], sums[1])


def test_rank_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.permutation(30), rng.permutation(30)
    distance = sum((int(p) - int(q)) ** 2 for p, q in zip(a, b, strict=True))
    assert rank_correlation(a, np.exp(b / 10)) == pytest.approx(1 - 6 * distance / (30 * (30**2 - 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(rank_correlation(a, np.ones(30)))
        assert np.isnan(rank_correlation([1.0], [2.0]))
    with pytest.raises(DataError, match="one length"):
        rank_correlation(a, b[:5])
