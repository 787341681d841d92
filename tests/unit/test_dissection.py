"""nnscan.dissection: places, exact quantiles, rotations, tables, explanations; the whole against its formula is in
tests/oracle/test_dissection.py."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from labelled_sets import make
from nnscan.broden import read_broden
from nnscan.data import Split, build_dataset
from nnscan.dissection import (
    Counting,
    Feed,
    Geodesic,
    Probe,
    Selection,
    Tally,
    View,
    concept_table,
    detector_counts,
    dissected_modules,
    exemplar_table,
    explain,
    interpolation,
    network_dissection,
    random_rotation,
    rotated,
    rotation_counts,
    unique_detectors,
    unit_contributions,
    unit_table,
)
from nnscan.errors import DataError, LayerError, ModelError, ScanError
from nnscan.exhibits import shown_layers, unit_exhibits
from nnscan.linearisation import Linearisation
from nnscan.models import prepare, resnet18


def rng(seed=0):
    return np.random.default_rng(seed)


def labelled(tmp_path, count=4, shape=(8, 8), labels=None, annotations=None, categories=("object",)):
    """A set of random images whose upper half is `top`."""
    half = np.repeat([1, 0], shape[0] // 2)[:, None] * np.ones(shape[1], int)
    images = [rng(n).integers(0, 256, (*shape, 3), dtype=np.uint8) for n in range(count)]
    return read_broden(
        make(
            tmp_path / "set",
            images,
            labels or {1: ("top", {"object": 1.0})},
            annotations or [{"object": [half]}] * count,
            categories,
        )
    )


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


# Places -------------------------------------------------------------------------------------------------------------


def centres(model, size, layer, channels=1):
    """Return where the places of a module's map lie."""
    x = torch.rand(1, channels, size, size)
    with torch.no_grad():
        fields = Linearisation(prepare(model.eval()), x, [layer]).fields(layer)
    return None if fields is None else fields[0].centres(3).tolist(), fields


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([nn.Conv2d(1, 1, 3, padding=1)], [0, 1, 2]),
        ([nn.Conv2d(1, 1, 3)], [1, 2, 3]),
        ([nn.Conv2d(1, 1, 3, padding=3)], [-2, -1, 0]),
        ([nn.Conv2d(1, 1, 5, stride=2, padding=2)], [0, 2, 4]),
        ([nn.Conv2d(1, 1, 2, stride=2)], [0.5, 2.5, 4.5]),
        ([nn.Conv2d(1, 1, 3, dilation=2)], [2, 3, 4]),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()], [1, 2, 3]),
        ([nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)], [0.5, 2.5, 4.5]),
        ([nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 3)], [2, 4, 6]),
        ([nn.ZeroPad2d((4, 4, 4, 4)), nn.Conv2d(1, 1, 3)], [-3, -2, -1]),
        ([nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1)], [1.5, 5.5, 9.5]),
    ],
)
def test_places_lie_at_the_centres_of_receptive_fields(modules, expected):
    model = nn.Sequential(*modules)
    found, _ = centres(model, 16, str(len(modules) - 1))
    assert found == expected


def test_fields_are_what_a_pixel_changes():
    """The pixels that a place reads are those in which it has a derivative."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 5, stride=2, padding=1), nn.MaxPool2d(3, 2), nn.Conv2d(3, 2, 3, padding=2, dilation=2)
    )
    nn.init.uniform_(model[0].weight, 0.1, 1)
    nn.init.uniform_(model[2].weight, 0.1, 1)
    _, fields = centres(model, 65, "2")
    x = torch.rand(1, 1, 65, 65).double().requires_grad_(True)
    smooth = nn.Sequential(model[0].double(), nn.AvgPool2d(3, 2), model[2].double())  # which reads all that a max reads
    for place in (4, 6):
        (gradient,) = torch.autograd.grad(smooth(x)[0, 0, place, place], x)
        rows = gradient[0, 0].abs().sum(1).nonzero()[:, 0]
        first = fields[0].first + fields[0].stride * place
        assert (int(rows[0]), int(rows[-1])) == (first, first + fields[0].size - 1)


def test_a_residual_block_keeps_its_places():
    model = resnet18(3, 32, 10)
    found, fields = centres(model, 32, "features.5", channels=3)
    assert found == [0, 2, 4]
    assert fields[0].size == 1 + 2 + 4 + 4 + (2 + 4)  # stem, two blocks, a block of stride 2


class Gated(nn.Module):
    """A convolution whose channels are scaled by a gate that looks at the whole image."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool, self.gate, self.out = nn.Conv2d(1, 3, 3), pool, nn.Conv2d(3, 3, 1), nn.Identity()

    def forward(self, x):
        maps = self.conv(x)
        return self.out(maps * torch.sigmoid(self.gate(self.pool(maps))))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(7), nn.MaxPool2d(7)])
def test_a_gate_does_not_move_the_places(pool):
    assert centres(Gated(pool), 9, "out")[0] == [1, 2, 3]


class Shuffling(nn.Module):
    """A layer whose places are none of the image's."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.out(self.conv(x).flatten(2).sort(dim=2)[0].view(len(x), 4, *x.shape[2:])).mean((2, 3))


def test_a_layer_without_places_can_only_be_resized(tmp_path):
    broden = labelled(tmp_path)
    with pytest.raises(ModelError, match=r"'out' cannot be derived.*sort.*'plain'"):
        Probe(Shuffling(), broden, Feed(), {"a": View("out")})
    assert Probe(Shuffling(), broden, Feed(), {"a": View("out")}, "plain").shapes == {"a": (4, 8, 8)}


def test_interpolation_by_hand():
    """Places at 1, 5 and 9 of twelve pixels; masks of six pixels lie at 0.5, 2.5, ..., 10.5."""
    assert interpolation(np.array([1.0, 5.0, 9.0]), 12, 6) == pytest.approx(
        np.array([[1, 0, 0], [5 / 8, 3 / 8, 0], [1 / 8, 7 / 8, 0], [0, 5 / 8, 3 / 8], [0, 1 / 8, 7 / 8], [0, 0, 1]])
    )


def test_interpolation_with_places_outside_the_image():
    """Places at -2, 0, 2, 4 and 6 of four pixels."""
    assert interpolation(np.array([-2.0, 0.0, 2.0, 4.0, 6.0]), 4, 4) == pytest.approx(
        np.array([[0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0.5, 0.5, 0]])
    )


def test_plain_upsampling_is_that_of_torch(tmp_path):
    probe = Probe(network(), labelled(tmp_path), Feed(), {"a": View("4")}, "plain")
    maps = torch.randn(5, 4, 4)
    expected = nn.functional.interpolate(maps[None], (8, 8), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(probe._upsampled("a", maps, (8, 8)), expected, atol=1e-6)


def test_a_map_as_large_as_the_mask_stays_as_it_is(tmp_path):
    probe = Probe(network(), labelled(tmp_path), Feed(), {"a": View("1")})
    maps = torch.randn(5, 8, 8)
    assert (probe._upsampled("a", maps, (8, 8)) == maps).all()


# Thresholds ---------------------------------------------------------------------------------------------------------


def found_thresholds(maps, share, parts=1, batch=3, digit=None):
    """Select thresholds of maps (n, K, h, w), in parts whose counts are added up."""
    units, size = maps.shape[1], maps[:, 0].size
    selection = Selection.begin(np.full(units, size), share)
    if digit is not None:
        selection = Selection(selection.ranks, selection.leading, 0, digit)
    while not selection.complete:
        counts = np.zeros((units, selection.bins), np.int64)
        for part in range(parts):
            counting = Counting(selection)
            own = maps[part::parts]
            for start in range(0, len(own), batch):
                counting.add(0, torch.from_numpy(own[start : start + batch]))
                counting.raise_floors()
            counts += counting.counts
        selection = selection.narrowed(counts)
    return selection.values()


def order_statistic(maps, share_inverse):
    values = np.sort(maps.swapaxes(0, 1).reshape(maps.shape[1], -1), axis=1)[:, ::-1]
    return values[:, values.shape[1] // share_inverse]


def hard_maps():
    """Values of all sizes and signs, many of them equal, by unit."""
    random = rng()
    maps = random.standard_normal((40, 8, 5, 7)).astype(np.float32)
    maps[:, 1] = np.maximum(maps[:, 1], 0)
    maps[:, 2] = 0
    maps[:, 3] = -np.exp(20 * maps[:, 3])
    maps[:, 4] = np.rint(maps[:, 4])
    maps[:, 5] = np.where(maps[:, 5] > 0, np.float32(-0.0), np.float32(0.0))
    maps[:, 6] = random.choice(np.array([3.4e38, 1e-45, -1e-45, -3.4e38], np.float32), (40, 5, 7))
    maps[:, 7] = 1 + maps[:, 7] * 2**-22  # differences in the last bits alone
    return maps


@pytest.mark.parametrize("inverse", [200, 20, 2, 1400])
@pytest.mark.parametrize("parts", [1, 3])
def test_thresholds_are_the_order_statistic(inverse, parts):
    maps = hard_maps()
    found = found_thresholds(maps, 1 / inverse if inverse != 1400 else 0.0, parts)
    expected = order_statistic(maps, inverse) if inverse != 1400 else maps.max((0, 2, 3))
    assert (found == expected).all()
    assert not np.signbit(found[5])
    above = (maps > found[None, :, None, None]).mean((0, 2, 3))
    assert (above <= 1 / inverse + 1e-12).all()


@pytest.mark.parametrize("inverse", [200, 20, 2])
def test_what_comes_first_does_not_hide_what_decides(inverse):
    """The largest values come first, so that what is left out early reaches up to the threshold itself."""
    values = np.sort(rng().standard_normal(40 * 35).astype(np.float32))[::-1]
    maps = np.stack([values, values * 2**-10 - 7, np.rint(values * 3)]).reshape(3, 40, 5, 7).swapaxes(0, 1).copy()
    for order in (maps, maps[::-1].copy()):
        assert (found_thresholds(order, 1 / inverse, batch=2) == order_statistic(maps, inverse)).all()


@pytest.mark.parametrize("digit", [4, 11, 14])
def test_thresholds_do_not_depend_on_the_bits_of_a_pass(digit):
    maps = hard_maps()
    assert (found_thresholds(maps, 0.005, digit=digit) == found_thresholds(maps, 0.005)).all()


def test_the_share_is_taken_as_the_decimal_number():
    """0.07 * 100 is below 7 in the machine's arithmetic, 0.29 * 100 below 29."""
    assert Selection.begin(np.array([100, 1000]), 0.07).ranks.tolist() == [7, 70]
    assert Selection.begin(np.array([100]), 0.29).ranks.tolist() == [29]
    for share in (-0.1, 1.0):
        with pytest.raises(ScanError, match=r"\[0, 1\)"):
            Selection.begin(np.array([100]), share)


def test_counts_take_bounded_memory():
    for units in (1, 512, 513, 2048, 50_000):
        selection = Selection.begin(np.full(units, 10), 0.005)
        assert units * selection.bins * 8 <= 2**28


def test_counts_of_a_part_alone_are_refused():
    selection = Selection.begin(np.array([1000]), 0.5)
    with pytest.raises(ScanError, match="fewer"):
        selection.narrowed(np.zeros((1, selection.bins), np.int64))


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = network()
    nn.init.constant_(model[3].bias, float("nan"))
    with pytest.raises(ScanError, match="'3' has activations that are not finite"):
        Probe(model, labelled(tmp_path), Feed(), {"a": View("3")})


# What is dissected --------------------------------------------------------------------------------------------------


def test_feed_treats_images_like_the_data_set(tmp_path):
    broden = labelled(tmp_path)
    images = rng().integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    part = Split(images, np.zeros(6, np.int64))
    for normalization in ("unit", "standard"):
        dataset = build_dataset("d", ["x"], dict.fromkeys(("train", "validation", "test"), part), normalization)
        feed = Feed.like(dataset)
        assert np.allclose(feed.inputs(images).numpy(), dataset.inputs("train"), atol=1e-6)
    assert feed.pixels(broden, [2, 0]).shape == (2, 3, 8, 8)
    assert (feed.pixels(broden, [2])[0] == np.asarray(broden.image(2)).transpose(2, 0, 1)).all()
    assert Feed(1, (4, 5)).pixels(broden, [0]).shape == (1, 1, 4, 5)


def test_images_of_several_sizes_need_one(tmp_path):
    folder = make(
        tmp_path / "set",
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
        {1: ("x", {"object": 1.0})},
        [{"object": [1]}, {}],
        ["object"],
    )
    broden = read_broden(folder)
    with pytest.raises(DataError, match="give a size"):
        Feed().pixels(broden, [0, 1])
    assert Feed(size=(8, 8)).pixels(broden, [0, 1]).shape == (2, 3, 8, 8)
    # also where a batch has images of one size only
    with pytest.raises(DataError, match=r"8 x 9.*8 x 8.*dissection.size|8 x 8.*8 x 9.*dissection.size"):
        Probe(network(), broden, Feed(), {"a": View("0")}, batch_size=1)


def test_the_activation_behind_a_layer_is_dissected():
    found = dissected_modules(network(), torch.zeros(1, 3, 8, 8), ["0", "3", "2", "7"])
    assert found == {"0": "1", "3": "4", "2": "2", "7": "7"}


class Reusing(nn.Module):
    """A block whose ReLU is used behind its normalisation and again behind its sum, as in torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.block = nn.Module()
        self.block.conv, self.block.bn, self.block.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x):
        return self.block.relu(self.block.relu(self.block.bn(self.block.conv(x))) + x).mean((2, 3))


def test_a_module_that_is_used_twice_is_refused():
    message = r"'block.bn' cannot be dissected.*'block.relu'.*its 2 uses.*such as the block 'block'"
    with pytest.raises(LayerError, match=message):
        dissected_modules(Reusing().eval(), torch.zeros(1, 3, 8, 8), ["block.bn"])
    assert dissected_modules(Reusing().eval(), torch.zeros(1, 3, 8, 8), ["block.conv"]) == {"block.conv": "block.conv"}


def test_unknown_and_unused_modules_are_errors(tmp_path):
    broden, model = labelled(tmp_path), network()
    with pytest.raises(LayerError, match="no layer 'conv'"):
        Probe(model, broden, Feed(), {"a": View("conv")})
    model.extra = nn.Sequential(nn.ReLU())
    model.forward = network().forward
    with pytest.raises(LayerError, match="not used"):
        Probe(model, broden, Feed(), {"a": View("extra")}, "plain")
    with pytest.raises(DataError, match=r"rotation \(3, 3\) of 4 channels"):
        Probe(network(), broden, Feed(), {"a": View("1", np.eye(3))})


def test_the_model_is_left_as_it_was(tmp_path):
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network_dissection(model, labelled(tmp_path), Feed(), ["0", "3"], least_images=1)
    assert all(module.training for module in model.modules())
    assert model[1].inplace
    assert all(not module._forward_hooks for module in model.modules())
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


# Tables -------------------------------------------------------------------------------------------------------------


def some_tally():
    """Three units and the concepts a, b (object) and c (color) on 2 x 100 pixels."""
    tally = Tally.empty(3, 3, 2)
    tally.both[:] = [[10, 5, 5], [0, 0, 0], [0, 5, 5]]
    tally.active[:] = [[10, 10], [10, 10], [10, 5]]
    tally.labelled[:] = [20, 5, 5]
    tally.images[:] = [20, 20, 5]
    tally.pixels[:] = [200, 100]
    tally.above[:] = [4, 4, 0]
    return tally


def some_labels(tmp_path):
    labels = {3: ("a", {"object": 1.0}), 4: ("b", {"object": 1.0}), 9: ("c", {"color": 1.0})}
    return labelled(tmp_path, 1, labels=labels, annotations=[{"object": [3]}], categories=("object", "color"))


def test_units_are_named_by_their_best_concept(tmp_path):
    table = unit_table(some_tally(), some_labels(tmp_path), np.array([1, 2, 3], np.float32), 800, least_images=5)
    assert table["label"].tolist() == ["a", "", "c"]
    assert table["category"].tolist() == ["object", "", "color"]
    # a and b tie at 10 / 20 and 5 / 10; of equal ones the first
    assert table["iou"].tolist() == [0.5, 0, 1]
    assert table["object_label"].tolist() == ["a", "", "b"]
    assert table["object_iou"].tolist() == [0.5, 0, 0.5]
    assert table["color_iou"].tolist() == [0.5, 0, 1]
    assert table["is_detector"].tolist() == [True, False, True]
    assert table["share"].tolist() == [0.005, 0.005, 0]


def test_concepts_in_few_images_name_no_unit(tmp_path):
    table = unit_table(some_tally(), some_labels(tmp_path), np.zeros(3, np.float32), 800, least_images=6)
    assert table["label"].tolist() == ["a", "", "b"]
    assert (table["color_iou"] == 0).all()
    assert (table["color_label"] == "").all()


def test_concepts_are_reachable_as_far_as_they_are_neither_large_nor_small(tmp_path):
    table = concept_table(some_tally(), some_labels(tmp_path), share=0.05)
    assert table["coverage"].tolist() == [0.1, 0.025, 0.05]
    assert table["reachable"].tolist() == pytest.approx([0.5, 0.5, 1])
    assert table["chance"].tolist() == pytest.approx([0.005 / 0.145, 0.00125 / 0.07375, 0.0025 / 0.0975])


def test_both_ways_of_counting():
    units = pd.DataFrame(
        {
            "label": ["car", "car", "red", "road", ""],
            "category": ["object", "object", "color", "object", ""],
            "iou": [0.2, 0.1, 0.3, 0.03, 0],
            "object_label": ["car", "car", "tree", "road", ""],
            "object_iou": [0.2, 0.1, 0.05, 0.03, 0],
            "color_label": ["red", "red", "red", "grey", ""],
            "color_iou": [0.05, 0.0, 0.3, 0.02, 0],
        }
    )
    assert unique_detectors(units).to_dict("list") == {
        "category": ["object", "color"], "top": [1, 1], "best": [2, 1], "units": [2, 1],
    }  # fmt: skip
    layers = pd.concat([units.assign(layer="z", depth=0), units.head(1).assign(layer="a", depth=1)])
    counts = detector_counts(layers)
    assert counts["layer"].tolist() == ["z", "z", "a", "a"]
    assert counts["top"].tolist() == [1, 1, 1, 0]
    assert (unique_detectors(units, detector=0.25)["top"] == [0, 1]).all()


def test_top_images_are_kept_and_put_together():
    values = np.rint(rng().standard_normal((50, 3)) * 2).astype(np.float32)  # with many ties
    whole = Tally.empty(3, 1, 1)
    whole.keep(values, np.arange(50))
    parts = []
    for part in (range(30, 50), range(7), range(7, 30)):
        tally = Tally.empty(3, 1, 1)
        for index in part:
            tally.keep(values[[index]], np.array([index]))
        parts.append(tally)
    merged = parts[0].merged(parts[1]).merged(parts[2])
    assert (merged.tops == whole.tops).all()
    assert (merged.peaks == whole.peaks).all()
    for unit in range(3):
        assert whole.tops[unit].tolist() == sorted(range(50), key=lambda n: (-values[n, unit], n))[:16]
    few = Tally.empty(2, 1, 1)
    few.keep(np.array([[1, 3], [2, 2]], np.float32), np.array([5, 8]))
    assert exemplar_table(few).to_dict("list") == {
        "unit": [0, 0, 1, 1], "rank": [0, 1, 0, 1], "image": [8, 5, 5, 8], "peak": [2.0, 1.0, 3.0, 2.0],
    }  # fmt: skip


# Rotations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_powers_of_a_rotation_are_a_way_from_the_identity(size):
    rotation = random_rotation(size, seed=size)
    geodesic = Geodesic(rotation)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert geodesic.power(0) == pytest.approx(np.eye(size), abs=1e-12)
    assert geodesic.power(1) == pytest.approx(rotation, abs=1e-10)
    for one, other in ((0.2, 0.4), (0.5, 0.5), (0.7, -0.7), (1, 0.8)):
        product = geodesic.power(one) @ geodesic.power(other)
        assert product == pytest.approx(geodesic.power(one + other), abs=1e-10)
    power = geodesic.power(0.3)
    assert power @ power.T == pytest.approx(np.eye(size), abs=1e-12)
    assert np.linalg.det(power) == pytest.approx(1)
    assert np.isrealobj(power)


def test_axes_that_are_turned_round_are_turned_together():
    basis = random_rotation(5, 1)
    rotation = basis @ np.diag([-1.0, 1, -1, -1, -1]) @ basis.T
    geodesic = Geodesic(rotation)
    half = geodesic.power(0.5)
    assert half @ half == pytest.approx(rotation, abs=1e-9)
    assert np.linalg.det(half) == pytest.approx(1)


def test_what_is_no_rotation_is_refused():
    with pytest.raises(DataError, match="reflection"):
        Geodesic(np.diag([1.0, -1, 1]))
    with pytest.raises(DataError, match="orthogonal"):
        Geodesic(np.diag([1.0, 2, 1]))


def test_random_rotations_are_uniform():
    """By Haar's measure an entry has the mean 0 and the square 1 / n, and the trace the mean 0 and the square 1."""
    drawn = np.stack([random_rotation(4, seed) for seed in range(2000)])
    assert (random_rotation(4, 3) == drawn[3]).all()
    assert abs(drawn.mean(0)).max() < 0.05
    assert abs((drawn**2).mean(0) - 1 / 4).max() < 0.03
    traces = np.trace(drawn, axis1=1, axis2=2)
    assert abs(traces.mean()) < 0.1
    assert (traces**2).mean() == pytest.approx(1, abs=0.15)


def test_a_rotated_network_says_the_same():
    model, x = network(), torch.rand(5, 3, 8, 8)
    plain = model(x)
    rotation = random_rotation(6, 0)
    with rotated(model, "4", rotation) as seen, torch.no_grad():
        assert torch.allclose(model(x), plain, atol=1e-5)
    maps = model[:5](x)
    assert torch.allclose(seen["4"], torch.einsum("ij,njhw->nihw", torch.from_numpy(rotation).float(), maps), atol=1e-5)
    assert not torch.allclose(seen["4"], maps, atol=0.01)
    assert not model[4]._forward_hooks
    with rotated(model, "7", random_rotation(3, 0)), torch.no_grad():
        assert torch.allclose(model(x), plain, atol=1e-5)


def test_rotated_bases_are_counted_beside_the_own(tmp_path):
    broden = labelled(tmp_path)
    table = rotation_counts(network(), broden, Feed(), "3", rotations=2, alphas=(0.5, 1), least_images=1, share=0.3)
    assert table[["rotation", "alpha"]].drop_duplicates().to_numpy().tolist() == [
        [-1, 0], [0, 0.5], [0, 1], [1, 0.5], [1, 1],
    ]  # fmt: skip
    assert table["deviation"].max() < 1e-5
    assert (table.loc[table["rotation"] >= 0, "deviation"] > 0).any()
    counts = ["top", "best", "units"]
    for (number, alpha), found in table[table["rotation"] >= 0].groupby(["rotation", "alpha"]):
        mixed, power = nn.Sequential(*network()[:5]), Geodesic(random_rotation(6, number)).power(alpha)
        mixed.append(nn.Conv2d(6, 6, 1, bias=False))  # the rotation as a layer of the network
        mixed[-1].weight.data = torch.from_numpy(power).float()[:, :, None, None]
        own, _ = network_dissection(mixed, broden, Feed(), ["5"], least_images=1, share=0.3)
        assert found[counts].to_numpy().tolist() == unique_detectors(own)[counts].to_numpy().tolist()
    units, _ = network_dissection(network(), broden, Feed(), ["3"], least_images=1, share=0.3)
    assert table.loc[table["rotation"] == -1, ["top", "best", "units"]].to_numpy().tolist() == (
        unique_detectors(units)[["top", "best", "units"]].to_numpy().tolist()
    )


# Explanations -------------------------------------------------------------------------------------------------------


def test_behind_average_pooling_a_contribution_is_weight_times_mean():
    model, x = network(), torch.rand(5, 3, 8, 8)
    classes, found = unit_contributions(model, x, "4")
    with torch.no_grad():
        scores, pooled = model(x), model[:5](x).mean((2, 3))
    assert (classes == scores.argmax(1).numpy()).all()
    weight, bias = model[7].weight.detach()[classes], model[7].bias.detach()[classes]
    assert found == pytest.approx((weight * pooled).numpy(), abs=1e-6)
    assert found.sum(1) == pytest.approx((scores.amax(1) - bias).detach().numpy(), abs=1e-5)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("layer", ["1", "4"])
def test_contributions_are_what_is_lost_without_the_unit(layer):
    model, x = network(1), torch.rand(4, 3, 8, 8)
    classes, found = unit_contributions(model, x, layer)
    expected = np.empty_like(found)
    with torch.no_grad():
        scores, maps = model(x), model[: int(layer) + 1](x)
        for unit in range(maps.shape[1]):
            without = maps.clone()
            without[:, unit] = 0
            changed = model[int(layer) + 1 :](without)
            expected[:, unit] = (scores - changed)[range(4), classes].numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    whole = Untraceable()
    whole.inner = model
    assert unit_contributions(whole, x, f"inner.{layer}")[1] == pytest.approx(expected, abs=1e-6)


def test_an_explanation_lists_units_by_what_they_contribute(tmp_path):
    model, x = network(), torch.rand(2, 3, 8, 8)
    units, _ = network_dissection(model, labelled(tmp_path), Feed(), ["0", "3"], least_images=1)
    table = explain(model, x, "3", units, ["u", "v", "w"])
    classes, contributions = unit_contributions(model, x, "4")
    assert len(table) == 2 * 6
    for number in range(2):
        own = table[table["input"] == number]
        assert (np.diff(own["contribution"]) <= 0).all()
        assert set(own["class"]) == {"uvw"[classes[number]]}
        assert own.set_index("unit")["contribution"].sort_index().to_numpy() == pytest.approx(contributions[number])
        names = units[units["layer"] == "3"].set_index("unit")["label"]
        assert (own["label"].to_numpy() == names.loc[own["unit"]].to_numpy()).all()


# Pictures -----------------------------------------------------------------------------------------------------------


def test_galleries_show_the_detectors_of_different_concepts_first(tmp_path):
    broden, model = labelled(tmp_path), network()
    units, exemplars = network_dissection(model, broden, Feed(), ["0", "3"], least_images=1, share=0.3)
    layer = units["layer"] == "3"
    units.loc[layer, ["label", "iou", "is_detector"]] = pd.DataFrame(
        {"label": [*"aabbc", ""], "iou": [0.5, 0.4, 0.3, 0.2, 0.01, 0], "is_detector": [True] * 4 + [False] * 2}
    ).to_numpy()
    galleries = unit_exhibits(model, broden, Feed(), units, exemplars, "3", shown=3)
    assert [gallery.title[:9] for gallery in galleries] == [
        "unit 0: a",
        "unit 2: b",
        "unit 1: a",
        "unit 3: b",
        "unit 4: c",
    ]
    first = exemplars[(exemplars["layer"] == "3") & (exemplars["unit"] == 0)].sort_values("rank")["image"].head(3)
    assert galleries[0].images.shape == (3, 3, 8, 8)
    assert (galleries[0].images[1] * 255).round().astype(np.uint8).tolist() == (
        Feed().pixels(broden, [first.iloc[1]])[0].tolist()
    )
    # each image's mask holds the place of its highest activation
    assert all(mask.any() and not mask.all() for mask in galleries[0].masks)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (5, [0, 1, 2, 3, 4]), (8, list(range(8))), (15, [0, 2, 4, 6, 8, 10, 12, 14])]
)
def test_a_gallery_shows_few_layers_from_the_first_to_the_last(count, expected):
    layers = [f"l{number}" for number in range(count)]
    assert shown_layers(layers) == [layers[number] for number in expected]


def test_masks_are_where_the_unit_is_above_its_threshold(tmp_path):
    broden, model = labelled(tmp_path), network()
    probe = Probe(model, broden, Feed(), {"a": View("1")})
    thresholds = probe.thresholds(0.2)["a"]
    with torch.no_grad():
        # image by image, because rounding depends on what is computed together
        maps = np.concatenate([model[:2](Feed().inputs(Feed().pixels(broden, [n]))).numpy() for n in (2, 0)])
    assert (probe.masks("a", thresholds, [2, 0], (8, 8)) == (maps > thresholds[:, None, None])).all()
