"""Network Dissection against its formula: a slow twin in float64, and sets in which the answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from labelled_sets import make
from nnscan.broden import read_broden
from nnscan.dissection import (
    Concepts,
    Feed,
    Probe,
    Selection,
    Tally,
    View,
    network_dissection,
    random_rotation,
    unit_table,
)


def rng(seed=0):
    return np.random.default_rng(seed)


# The slow twin ------------------------------------------------------------------------------------------------------

LABELS = {
    1: ("sky", {"object": 3.0}),
    2: ("car", {"object": 2.0}),
    5: ("wheel", {"object": 0.5, "part": 1.0}),
    400: ("red", {"color": 1.0}),
    401: ("blue", {"color": 1.0}),
    9: ("street", {"scene": 1.0}),
    10: ("field", {"scene": 1.0}),
}
CATEGORIES = ("object", "part", "color", "scene")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images with masks of two sizes, several masks of a category, labels of the whole image, and none at all."""
    random = rng(3)
    annotations = []
    for number in range(22):
        shape = (10, 12) if number % 3 else (5, 6)
        own = {}
        if number % 4:
            own["object"] = [random.choice([0, 1, 2, 5], shape), random.choice([0, 0, 2, 5], shape)]
        if number % 5 == 1:
            own["part"] = [random.choice([0, 5], shape)]
        if number % 2:
            own["color"] = [random.choice([400, 401], shape), 400]
        if number % 7 < 3:
            own["scene"] = [9] if number % 7 else [9, 10]
        annotations.append(own)
    images = [random.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in annotations]
    return read_broden(make(tmp_path_factory.mktemp("mixed") / "set", images, LABELS, annotations, CATEGORIES))


class Branched(nn.Module):
    """Strides, padding, pooling, normalisation and a sum of two branches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 5, 5, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.first = nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(5, 7, 1)
        self.pool, self.last = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(self.norm.running_var, 0.1, 0.5)

    def forward(self, x):
        x = self.first(self.norm(self.stem(x)))
        return self.last(self.pool(self.left(x) + self.right(x))).mean((2, 3))


CENTRES = {"first": (1.0, 2.0), "last": (2.0, 4.0)}  # worked out by hand: first place, stride


def bilinear(values, y, x):
    """Return a map's value at fractional rows and columns of places, going on as at its edge beyond it."""
    rows, columns = values.shape
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = min(int(y), rows - 2), min(int(x), columns - 2)
    dy, dx = y - top, x - left
    upper = (1 - dx) * values[top, left] + dx * values[top, left + 1]
    lower = (1 - dx) * values[top + 1, left] + dx * values[top + 1, left + 1]
    return (1 - dy) * upper + dy * lower


def slow_dissection(maps, broden, share, place):
    """Dissect maps (N, K, h, w) pixel by pixel; place(r, n, size) is where pixel r of n of a mask lies in the map."""
    maps = maps.astype(np.float64)
    count, units = maps.shape[:2]
    numbers = sorted(broden.concepts)
    best_category = {number: max(LABELS[number][1], key=LABELS[number][1].__getitem__) for number in numbers}
    thresholds, iou = np.empty(units), np.zeros((units, len(numbers)))
    for unit in range(units):
        falling = np.sort(maps[:, unit].ravel())[::-1]
        thresholds[unit] = falling[int(share * len(falling) + 1e-9)]
    both, union = np.zeros_like(iou), np.zeros_like(iou)
    for index in range(count):
        labels = broden.labels(index)
        height, width = labels.shape
        pixels = [[set() for _ in range(width)] for _ in range(height)]
        for row in range(height):
            for column in range(width):
                for masks in labels.masks.values():
                    pixels[row][column] |= {int(mask[row, column]) for mask in masks} - {0}
                for whole in labels.whole.values():
                    pixels[row][column] |= set(whole)
        there = {best_category[number] for line in pixels for cell in line for number in cell}
        for unit in range(units):
            for row in range(height):
                for column in range(width):
                    value = bilinear(
                        maps[index, unit],
                        place(row, height, maps.shape[2], 0),
                        place(column, width, maps.shape[3], 1),
                    )
                    active = value > thresholds[unit]
                    for position, number in enumerate(numbers):
                        if best_category[number] in there:
                            labelled = number in pixels[row][column]
                            both[unit, position] += active and labelled
                            union[unit, position] += active or labelled
    return thresholds, both, both / np.maximum(union, 1)


@pytest.mark.parametrize(
    ("module", "upsampling", "rotated"),
    [("first", "anchored", False), ("last", "anchored", False), ("last", "plain", False), ("last", "anchored", True)],
)
def test_dissection_is_its_formula(mixed, module, upsampling, rotated):
    model, feed = Branched().eval(), Feed()
    with torch.no_grad():
        x = feed.inputs(feed.pixels(mixed, range(len(mixed))))
        maps = model.first(model.norm(model.stem(x)))
        if module == "last":
            maps = model.last(model.pool(model.left(maps) + model.right(maps)))
    rotation = random_rotation(maps.shape[1], 0) if rotated else None
    if rotation is not None:
        maps = torch.einsum("ij,njhw->nihw", torch.from_numpy(rotation).to(maps), maps)
    first, stride = CENTRES[module]

    def place(pixel, count, extent, axis):
        size = (20, 24)[axis]
        middle = (pixel + 0.5) * size / count - 0.5
        return (middle - first) / stride if upsampling == "anchored" else (pixel + 0.5) * extent / count - 0.5

    share = 0.1
    thresholds, both, iou = slow_dissection(maps.numpy(), mixed, share, place)
    probe = Probe(model, mixed, feed, {"view": View(module, rotation)}, upsampling, batch_size=5)
    found = probe.thresholds(share)["view"]
    assert found == pytest.approx(thresholds, abs=1e-6)
    tally = probe.tally({"view": found})["view"]
    assert (tally.both == both).all()
    assert tally.iou(Concepts(mixed).category) == pytest.approx(iou, abs=1e-12)
    assert iou.max() > 0.05
    assert (iou.argmax(1) > 0).any()


def test_parts_of_the_data_give_the_same_bits(mixed):
    model = Branched().eval()
    views = {"a": View("first"), "b": View("last"), "c": View("last", random_rotation(7, 0))}
    probe = Probe(model, mixed, Feed(), views, batch_size=4)
    whole = probe.thresholds(0.02)
    tallies = probe.tally(whole)
    shards = [Probe(model, mixed, Feed(), views, batch_size=4) for _ in range(3)]
    selection = probe.selection(0.02)
    while not selection.complete:
        counts = [shard.count(selection, shard.batches[k::3]) for k, shard in enumerate(shards)]
        selection = selection.narrowed(counts[2] + counts[0] + counts[1])
    assert isinstance(selection, Selection)
    merged = probe.split(selection.values())
    parts = [shard.tally(merged, shard.batches[k::3]) for k, shard in enumerate(shards)]
    for name in views:
        assert merged[name].tobytes() == whole[name].tobytes()
        together = parts[1][name].merged(parts[2][name]).merged(parts[0][name])
        for entry in Tally.__dataclass_fields__:
            assert getattr(together, entry).tobytes() == getattr(tallies[name], entry).tobytes(), entry


# Known answers ------------------------------------------------------------------------------------------------------


class Levels(nn.Module):
    """Units that say what the three channels of every so-many-th pixel hold: 0 to 255."""

    def __init__(self, scale=1.0, shift=0.0, step=1):
        super().__init__()
        self.scale, self.shift, self.step, self.units = scale, shift, step, nn.Identity()

    def forward(self, x):
        levels = torch.round(x[:, :, :: self.step, :: self.step] * 255)
        return self.units(levels * self.scale + self.shift).mean((2, 3))


SIDE, COUNT = 40, 10  # 16,000 places, of which 80 lie above the threshold


def planted(tmp_path, channels, masks, categories=("object",)):
    """A set whose images hold the activations (N, H, W, 3) of three units."""
    labels = {number: (f"concept {number}", {"object": 1.0}) for number in range(1, 4)}
    annotations = [{"object": [mask]} for mask in masks]
    return read_broden(make(tmp_path / "set", list(channels.astype(np.uint8)), labels, annotations, categories))


def dissected(broden, model=None, **options):
    # maps as large as the masks are left alone by both ways of upsampling
    options |= {"upsampling": "plain", "least_images": 1}
    units, _ = network_dissection(model or Levels(), broden, Feed(), ["units"], **options)
    return units.set_index("unit")


def spots(count, seed):
    """True at exactly so many of all places (N, H, W)."""
    there = np.zeros(COUNT * SIDE * SIDE, bool)
    there[rng(seed).permutation(len(there))[:count]] = True
    return there.reshape(COUNT, SIDE, SIDE)


def test_a_planted_unit_has_iou_one(tmp_path):
    concept = spots(80, 0)
    activations = np.zeros((COUNT, SIDE, SIDE, 3))
    activations[..., 0] = concept  # all alike where it is active, all alike elsewhere
    activations[..., 1] = np.where(
        concept, rng(1).integers(100, 256, concept.shape), rng(2).integers(0, 100, concept.shape)
    )
    activations[..., 2] = spots(81, 0)  # one more than the share: the tie at the threshold leaves nothing above it
    units = dissected(planted(tmp_path, activations, concept.astype(int)))
    assert units["iou"].tolist() == [1, 1, 0]
    assert units["label"].tolist() == ["concept 1", "concept 1", ""]
    assert units["share"].tolist() == [0.005, 0.005, 0]
    assert units["threshold"][0] == 0
    assert units["threshold"][2] == 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_a_unit_inside_a_concept_has_its_share_of_it(tmp_path, share):
    concept = spots(int(share * 16_000), 0)
    inside = np.flatnonzero(concept)[:80]
    activations = np.zeros((COUNT * SIDE * SIDE, 3))
    activations[inside] = 7
    units = dissected(planted(tmp_path, activations.reshape(COUNT, SIDE, SIDE, 3), concept.astype(int)))
    # images without any label do not count, and this concept is in all
    assert concept.any((1, 2)).all()
    assert units["iou"].to_numpy() == pytest.approx(0.005 / share, abs=1e-12)


def test_a_random_unit_detects_nothing(tmp_path):
    masks = rng(0).choice(4, (COUNT, SIDE, SIDE), p=[0.3, 0.5, 0.15, 0.05])
    activations = rng(1).integers(0, 256, (COUNT, SIDE, SIDE, 3))
    activations = np.where(activations < 250, activations, 249)  # at the top there must be no tie
    flat = activations.reshape(-1, 3)
    for channel in range(3):
        flat[rng(channel + 5).permutation(16_000)[:80], channel] = 255
    broden = planted(tmp_path, activations, masks)
    units = dissected(broden)
    assert (units["share"] == 0.005).all()
    assert not units["is_detector"].any()
    probe = Probe(Levels(), broden, Feed(), {"view": View("units")}, "plain")
    found = probe.tally(probe.thresholds(0.005))["view"].iou(Concepts(broden).category)
    share = np.array([(masks == number).mean() for number in (1, 2, 3)])
    chance = 0.005 * share / (0.005 + share - 0.005 * share)
    # of 80 places a binomial number lies in the concept; four standard deviations of it
    spread = 4 * np.sqrt(80 * share * (1 - share)) / (80 + 16_000 * share)
    assert (np.abs(found - chance) < spread).all()


def test_only_images_with_the_category_count(tmp_path):
    """A unit is active on the concept and, as widely, on images that have no label of its category."""
    concept = np.zeros((COUNT, SIDE, SIDE), int)
    concept[:5, :8, :1] = 1
    activations = np.zeros((COUNT, SIDE, SIDE, 3))
    activations[:5, :8, :1, :] = 1
    activations[5:, :8, :1, :] = 1
    assert activations[..., 0].sum() == 80
    assert dissected(planted(tmp_path, activations, concept))["iou"].tolist() == [1, 1, 1]
    concept[5:, -1, -1] = 2  # now they have one
    labelled = planted(tmp_path / "labelled", activations, concept)
    assert dissected(labelled)["iou"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("scale", "shift"), [(8.0, 0.0), (0.125, 3.0), (3.0, -7.0), (1000.0, 1e5)])
def test_increasing_affine_maps_change_nothing(tmp_path, scale, shift):
    masks = rng(0).choice(4, (COUNT, SIDE, SIDE))
    activations = rng(1).integers(0, 256, (COUNT, SIDE, SIDE, 3))
    broden = planted(tmp_path, activations, masks)
    plain = dissected(broden, Levels(step=4), share=0.03)
    changed = dissected(broden, Levels(scale, shift, step=4), share=0.03)
    assert (changed["threshold"] == plain["threshold"] * scale + shift).all()
    assert (changed["iou"] == plain["iou"]).all()
    assert (changed["label"] == plain["label"]).all()
    assert plain["iou"].min() > 0


def test_labels_of_whole_images(tmp_path):
    """A unit that is active somewhere on every beach, and nowhere else, has the share of the beaches as its IoU."""
    activations = np.zeros((COUNT, SIDE, SIDE, 3), np.uint8)
    activations[:2, :5, :8] = 9
    labels = {1: ("beach", {"scene": 1.0}), 2: ("street", {"scene": 1.0})}
    annotations = [{"scene": [1]} if number < 2 else {"scene": [2]} for number in range(COUNT)]
    broden = read_broden(make(tmp_path / "set", list(activations), labels, annotations, ["scene"]))
    units = dissected(broden)
    assert units["label"].tolist() == ["beach"] * 3
    assert units["iou"].to_numpy() == pytest.approx(80 / 3200)


def test_upsampling_follows_the_receptive_field(tmp_path):
    """A unit without padding sits at the middle of its window; resized plainly, its map is stretched."""
    image = np.zeros((1, 18, 18, 3), np.uint8)
    image[0, 8, 12] = 255
    concept = np.zeros((1, 18, 18), int)
    concept[0, 8, 12] = 1
    broden = planted(tmp_path, image, concept)

    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 9, bias=False)
            nn.init.zeros_(self.conv.weight)
            with torch.no_grad():
                self.conv.weight[:, :, 4, 4] = 1

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    options = {"least_images": 1, "share": 1 / 100}
    anchored, _ = network_dissection(Middle(), broden, Feed(), ["conv"], **options)
    plain, _ = network_dissection(Middle(), broden, Feed(), ["conv"], upsampling="plain", **options)
    assert anchored["iou"].tolist() == [1]
    assert plain["iou"][0] < 0.2


def test_tables_agree_with_the_overlaps(mixed):
    probe = Probe(Branched().eval(), mixed, Feed(), {"v": View("last")})
    thresholds = probe.thresholds(0.1)["v"]
    tally = probe.tally({"v": thresholds})["v"]
    table = unit_table(tally, mixed, thresholds, 22 * 4 * 5, least_images=1)
    concepts = Concepts(mixed)
    iou = tally.iou(concepts.category)
    assert table["iou"].to_numpy() == pytest.approx(iou.max(1))
    for place, category in enumerate(CATEGORIES):
        assert table[f"{category}_iou"].to_numpy() == pytest.approx(iou[:, concepts.category == place].max(1))
    assert table[[f"{category}_iou" for category in CATEGORIES]].max(axis=1).to_numpy() == pytest.approx(table["iou"])
