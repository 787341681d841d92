"""Annotated data sets, each on a tiny set in its real on-disk format whose masks the test draws itself."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnscan.annotations import (
    CAMVID_CLASSES,
    VOC_CLASSES,
    fill_boxes,
    lies_outside,
    parse_objects,
    read_catalogue,
    square_around,
)
from nnscan.configuration import DatasetConfig
from nnscan.data import DATASETS, FOREGROUNDS, FolderStore, Foreground, load_dataset, read_dataset, write_dataset
from nnscan.errors import DataError
from nnscan.places import LAYOUTS

MASKS, BOXES = Foreground("masks"), Foreground("boxes")


def picture(path, shape, seed):
    """Write a random image in the format of the path's ending; return it as it is decoded, (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def rectangle(shape, x0, y0, x1, y1):
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def nearest(mask, size):
    """A mask in another size, at the pixels that hold the centres of the new ones."""
    rows, columns = ([int((position + 0.5) * length / size) for position in range(size)] for length in mask.shape)
    return np.array([[mask[row, column] for column in columns] for row in rows])


def assert_shows(split, expected):
    """Compare a split with the (label, image, mask) of each sample, in any order."""
    assert len(split.labels) == len(expected)
    found = {image.tobytes(): (label, mask) for label, image, mask in
             zip(split.labels.tolist(), split.images, split.foreground, strict=True)}  # fmt: skip
    for label, image, mask in expected:
        assert found[image.tobytes()][0] == label
        np.testing.assert_array_equal(found[image.tobytes()][1], mask)


def joined(dataset):
    """Train and validation split as one."""
    parts = [dataset.splits[split] for split in ("train", "validation")]
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "foreground"))
    return type(parts[0])(*arrays)


# XML


OBJECT = """
	<object>
		<name>{name}</name>
		<bndbox>
			<xmin>{x0}</xmin>
			<xmax>{x1}</xmax>
			<ymin>{y0}</ymin>
			<ymax>{y1}</ymax>
		</bndbox>
		<truncated>0</truncated>
	</object>"""


def annotation(*objects, width=20, height=12):
    """A file of ILSVRC; objects are (name, x0, y0, x1, y1)."""
    text = "".join(OBJECT.format(name=name, x0=x0, y0=y0, x1=x1, y1=y1) for name, x0, y0, x1, y1 in objects)
    return (
        f"<annotation>\n\t<folder>n1</folder>\n\t<filename>n1_1</filename>\n\t<source>\n\t\t<database>ILSVRC_2013"
        f"</database>\n\t</source>\n\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3"
        f"</depth>\n\t</size>\n\t<segmented>0</segmented>{text}\n</annotation>\n"
    )


LAUGHS = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [\n <!ENTITY lol0 "lol">\n'
    + "".join(f' <!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">\n' for n in range(1, 12))
    + "]>\n<annotation><object><name>&lol11;</name></object></annotation>\n"
)


def test_objects_are_read_as_they_stand():
    content = annotation(("n02672831", 0, 3, 17, 11), ("n02691156", 1.5, 2, 1.5, 9)).encode()
    assert parse_objects("x.xml", content) == [("n02672831", (0, 3, 17, 11)), ("n02691156", (1.5, 2, 1.5, 9))]
    declared = b"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8'?>" + content
    assert parse_objects("x.xml", declared) == parse_objects("x.xml", content)
    assert parse_objects("x.xml", annotation().encode()) == []


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS.encode(),
        LAUGHS.encode("utf-16"),
        LAUGHS.encode("utf-16-le"),
        LAUGHS.encode("utf-16-be"),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
        b'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>',
        b"<annotation/>\0",
    ],
)
def test_xml_cannot_define_entities(content):
    begin = time.perf_counter()
    with pytest.raises(DataError, match=r"x\.xml (defines a document type|is not encoded in UTF-8)"):
        parse_objects("x.xml", content)
    assert time.perf_counter() - begin < 1


def test_undefined_entities_are_no_xml():
    with pytest.raises(DataError, match=r"x\.xml is no complete XML \(undefined entity: line 1"):
        parse_objects("x.xml", b"<annotation>&lol;</annotation>")


def test_deeply_nested_xml_does_no_harm():
    depth = 200_000
    assert parse_objects("x.xml", b"<a>" * depth + b"</a>" * depth) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>n1</name>", "", "object 1: no name, 1, 2, 3, 4 is no object"),
        ("<name>n1</name>", "<name> </name>", "object 1: no name"),
        ("<xmin>1</xmin>", "", "object 1: n1, None, 2, 3, 4 is no object"),
        ("<xmin>1</xmin>", "<xmin/>", "object 1: n1, , 2, 3, 4 is no object"),
        ("<xmin>1</xmin>", "<xmin>left</xmin>", "object 1: n1, left, 2, 3, 4 is no object"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "object 1: n1, nan, 2, 3, 4 is no object"),
        ("<xmin>1</xmin>", "<xmin>-1e999</xmin>", "object 1: n1, -1e999, 2, 3, 4 is no object"),
        ("<xmin>1</xmin>", "<xmin>4</xmin>", "object 1: n1, 4, 2, 3, 4 is no object; it needs a name and numbers"),
        ("<ymax>4</ymax>", "<ymax>1</ymax>", "object 1: n1, 1, 2, 3, 1 is no object"),
        ("</annotation>", "", "is no complete XML"),
        ("<annotation>", "annotation", "is no complete XML"),
        ("<name>n1</name>", "<name>n\xe9</name>", "is not encoded in UTF-8"),
    ],
)
def test_wrong_objects_are_named(old, new, message):
    text = annotation(("n1", 1, 2, 3, 4))
    assert old in text
    with pytest.raises(DataError, match=rf"^x\.xml(, | ){message}"):
        parse_objects("x.xml", text.replace(old, new).encode("latin-1"))


# Boxes and squares


def test_boxes_cover_the_pixels_whose_centre_they_hold():
    corners = np.array([[1.0, 2, 4, 5], [3.4, 0, 9, 2.6]])
    for original, shape in (((6, 8), (6, 8)), ((6, 8), (13, 5))):
        expected = np.zeros(shape, bool)
        for i in range(shape[0]):
            for j in range(shape[1]):
                y, x = (i + 0.5) * original[0] / shape[0], (j + 0.5) * original[1] / shape[1]
                expected[i, j] = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in corners)
        np.testing.assert_array_equal(fill_boxes(corners, original, shape), expected)


def test_a_box_is_outside_when_it_shares_nothing_with_the_image():
    for corners, outside in (((-3, 0, 0, 9), True), ((-3, 0, 0.1, 9), False), ((8, 0, 9, 9), True),
                             ((7.9, 5.9, 99, 99), False), ((0, 6, 1, 7), True), ((0, -1, 1, 0), True)):  # fmt: skip
        assert lies_outside(np.array([[1, 1, 2, 2], corners], float), (6, 8)) == outside


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((20, 30), (40, 45), (36, 19, 48, 31)),  # 10 long, a margin of 1 on each side
        ((20, 24), (40, 51), (38, 15, 52, 29)),  # 11 long: 13.2, so 14
        ((0, 10), (0, 5), (0, 0, 12, 12)),  # moved down and to the right
        ((50, 60), (95, 100), (88, 48, 100, 60)),  # moved up and to the left
        ((0, 60), (10, 20), (0, 0, 60, 60)),  # as large as the shorter side allows
        ((10, 20), (0, 100), (20, 0, 80, 60)),  # the ends are cut off
    ],
)
def test_squares_lie_around_their_box_and_in_the_image(rows, columns, expected):
    assert square_around(slice(*rows), slice(*columns), (60, 100)) == expected


# CamVid

FRAME = (40, 60)
NAMES = ("road", "car", "person", "unlabelled")


def camvid(root, frames=3):
    """Frames with two cars of 6 x 10 and a person of 10 x 4 pixels; return the expected samples of each part."""
    lines(root / "classes.txt", *NAMES)
    expected = {}
    for part, folder, seed in (("train", "train", 0), ("test", "val", 100)):
        expected[part] = []
        for number in range(frames):
            image = picture(root / folder / "images" / f"{folder}_{number:02d}.png", FRAME, seed + number)
            labels = np.zeros(FRAME, np.uint8)
            labels[:, 30] = 3
            # Two cars, one at the frame's border, with a hole, and a person: 10 pixels long, squares of 12.
            for label, value, (x0, y0, x1, y1), (left, top) in (
                (1, 1, (0, 30, 10, 36), (0, 27)),
                (1, 1, (40, 10 + number, 50, 16 + number), (39, 7 + number)),
                (0, 2, (15 + number, 5, 19 + number, 15), (11 + number, 4)),
            ):
                mask = rectangle(FRAME, x0, y0, x1, y1)
                mask[y0 + 2, x0 + 1] = False
                labels[mask] = value
                window = np.s_[top : top + 12, left : left + 12]
                expected[part].append((label, image[:, *window], mask[window]))
            labels[2:4, 55:57] = 1  # a speck of 4 of 2400 pixels; 6 are needed
            save(root / folder / "labels" / f"{folder}_{number:02d}.png", labels)
    return expected


def camvid_dataset(root, **options):
    return load_dataset(
        "camvid", **{"root": root, "classes": ["person", "car"], "foreground": MASKS, "size": None, **options}
    )


def test_camvid_crops_are_the_components(tmp_path):
    expected = camvid(tmp_path)
    dataset = camvid_dataset(tmp_path)
    assert dataset.classes == ("person", "car")
    assert_shows(joined(dataset), expected["train"])
    assert_shows(dataset.splits["test"], expected["test"])
    resized = camvid_dataset(tmp_path, size=8, channels=1)
    for one, other in zip(dataset.splits["test"].foreground, resized.splits["test"].foreground, strict=True):
        np.testing.assert_array_equal(other, nearest(one, 8))
    assert resized.splits["test"].images.shape == (9, 1, 8, 8)


def test_camvid_components_of_one_class_are_samples_of_their_own(tmp_path):
    """Of two cars in one crop only the crop's own is foreground; pixels that touch at a corner belong together."""
    camvid(tmp_path)
    labels = np.zeros(FRAME, np.uint8)
    staircase = [(10 + step, 20 + step) for step in range(8)]
    for row, column in staircase:
        labels[row, column] = 1
    labels[10:13, 26:30] = 1
    save(tmp_path / "val" / "labels" / "val_00.png", labels)
    catalogue = read_catalogue("camvid", FolderStore(tmp_path), ["car"], "masks")
    first = [sample for sample in catalogue.samples["test"] if sample.image.endswith("val_00.png")]
    store = FolderStore(tmp_path)
    masks = [sample.outline.mask(store, FRAME) for sample in first]
    assert len(first) == 2
    by_size = sorted(masks, key=np.sum)
    assert [tuple(index) for index in np.argwhere(by_size[0]).tolist()] == staircase
    np.testing.assert_array_equal(by_size[1], rectangle(FRAME, 26, 10, 30, 13))
    assert {sample.crop for sample in first} == {(19, 9, 29, 19), (25, 9, 30, 14)}


def test_camvid_long_components_are_cut(tmp_path):
    camvid(tmp_path)
    labels = np.zeros(FRAME, np.uint8)
    labels[8:12, 2:58] = 1
    labels[20:30, 5:9] = 2
    save(tmp_path / "val" / "labels" / "val_00.png", labels)
    catalogue = read_catalogue("camvid", FolderStore(tmp_path), ["car"], "masks")
    assert (10, 0, 50, 40) in {sample.crop for sample in catalogue.samples["test"]}
    split = camvid_dataset(tmp_path, size=16).splits["test"]
    assert nearest(rectangle((40, 40), 0, 8, 40, 12), 16).tolist() in split.foreground.tolist()


def test_camvid_takes_the_things_where_no_classes_are_named(tmp_path):
    camvid(tmp_path)
    lines(tmp_path / "classes.txt", "bicyclist", "car", "pedestrian", "tree", "sign_symbol")
    assert load_dataset("camvid", root=tmp_path, size=8).classes == ("car", "pedestrian", "bicyclist")
    assert load_dataset("camvid", root=tmp_path, size=8).splits["train"].foreground is None
    lines(tmp_path / "classes.txt", *"abcd")
    with pytest.raises(DataError, match=r"classes\.txt has no class 'sign_symbol'. Known: a, b, c, d"):
        load_dataset("camvid", root=tmp_path, size=8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val/labels/val_01.png").unlink(), r"val_01\.png has no label image of the same name"),
        (lambda root: (root / "val/images/val_01.png").unlink(), r"val_01\.png has no image of the same name"),
        (lambda root: picture(root / "val/images/val_01.jpg", FRAME, 0), r"val_01\.\w+ has a twin with another ending"),
        (lambda root: save(root / "val/labels/val_01.png", np.zeros((40, 59), np.uint8) + 1),
         r"labels/val_01\.png is 59x40 pixels but its image is 60x40; both must agree"),
        (lambda root: save(root / "val/labels/val_01.png", np.full(FRAME, 4, np.uint8)),
         r"labels/val_01\.png holds the value 4, but .*classes\.txt names 4 classes from 0"),
        (lambda root: save(root / "val/labels/val_01.png", np.zeros((*FRAME, 3), np.uint8)),
         r"labels/val_01\.png has no class indices \(mode RGB\)"),
        (lambda root: (root / "val/labels/val_01.png").write_bytes(b"text"), r"labels/val_01\.png is no image"),
        (lambda root: (root / "val/images/val_01.png").write_bytes(b"text"), r"images/val_01\.png is no image"),
        (lambda root: (root / "val").rename(root / "test"), "no files in .*val/images; unpack the data set again"),
        (lambda root: lines(root / "classes.txt", "road", "car", "car", "person"), "two classes with the name 'car'"),
        (lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe"), r"classes\.txt is no text"),
        (lambda root: (root / "classes.txt").unlink(), r"camvid not found: looked for classes\.txt in"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("foreground", [MASKS, None])
def test_camvid_names_what_is_wrong(tmp_path, damage, message, foreground):
    camvid(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        camvid_dataset(tmp_path, foreground=foreground)
    assert str(tmp_path) in str(caught.value)


def test_camvid_crops_of_several_sizes_need_a_size(tmp_path):
    camvid(tmp_path)
    labels = np.zeros(FRAME, np.uint8)
    labels[20:28, 20:28] = 1
    labels[5:15, 5:15] = 2
    save(tmp_path / "val" / "labels" / "val_01.png", labels)
    with pytest.raises(DataError, match=r"val_01\.png is 10x10 pixels but the first image is 12x12; set size"):
        camvid_dataset(tmp_path)


@pytest.fixture(scope="module")
def real_camvid(shared_data):
    """The catalogue of the shared CamVid frames and their folder."""
    folder = shared_data / "camvid"
    return read_catalogue("camvid", FolderStore(folder), None, "masks"), folder


def test_real_camvid_counts(real_camvid):
    catalogue, _ = real_camvid
    assert catalogue.classes == CAMVID_CLASSES == ("sign_symbol", "car", "pedestrian", "bicyclist")
    counts = {
        part: [Counter(sample.category for sample in samples)[label] for label in catalogue.classes]
        for part, samples in catalogue.samples.items()
    }
    assert counts == {"train": [341, 741, 239, 96], "test": [98, 103, 92, 182]}


def test_real_camvid_objects_are_whole_components(real_camvid):
    """A walk over the label image, pixel by pixel, from one pixel of each object."""
    catalogue, folder = real_camvid
    store, names = FolderStore(folder), (folder / "classes.txt").read_text().split()
    samples = [*catalogue.samples["train"][::150], *catalogue.samples["test"][::60]]
    for sample in samples:
        stem = Path(sample.image).stem
        labels = np.asarray(Image.open(folder / sample.image.split("/")[0] / "labels" / f"{stem}.png"))
        mask = sample.outline.mask(store, labels.shape)
        reached, border = set(), [tuple(np.argwhere(mask)[0].tolist())]
        while border:
            row, column = border.pop()
            if (row, column) in reached or not (0 <= row < 180 and 0 <= column < 240):
                continue
            if labels[row, column] == names.index(sample.category):
                reached.add((row, column))
                border += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        assert {tuple(index) for index in np.argwhere(mask).tolist()} == reached
        assert len(reached) >= 108
        x0, y0, x1, y1 = sample.crop
        assert x1 - x0 == y1 - y0
        rows, columns = np.nonzero(mask)
        assert y0 <= rows.min()
        assert rows.max() < y1
        assert x1 - x0 == 180 or (x0 <= columns.min() and columns.max() < x1)


def test_real_camvid_becomes_a_data_set(shared_data, monkeypatch):
    monkeypatch.setenv("NNSCAN_DATA", str(shared_data))
    limits = {"train_limit": 40, "validation_limit": 20, "test_limit": 20}
    dataset = load_dataset("camvid", size=32, validation_fraction=0.2, foreground=MASKS, **limits)
    assert dataset.splits["train"].images.shape == (40, 3, 32, 32)
    assert np.bincount(dataset.splits["test"].labels).tolist() == [5, 5, 5, 5]
    shares = dataset.splits["train"].foreground.mean(axis=(1, 2))
    assert shares.min() > 0.02
    assert 0.1 < shares.mean() < 0.5


# ILSVRC DET

SHAPE = (12, 20)
SYNSETS = {"n1": "accordion", "n2": "baby bed", "n3": "dog"}


def det(root, train, val):
    """Write images given as {name: ({synset: mark}, objects)}; return each image."""
    lines(root / "devkit/data/map_det.txt", *(f"{synset} {n} {name}" for n, (synset, name) in
                                              enumerate(SYNSETS.items(), 1)))  # fmt: skip
    images = {}
    for folder, samples in (("train", train), ("val", val)):
        for number, (name, (_, objects)) in enumerate(samples.items()):
            seed = number + 1000 * (folder == "val")
            images[name] = picture(root / "Data/DET" / folder / f"{name}.JPEG", SHAPE, seed)
            file = root / "Annotations/DET" / folder / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(annotation(*objects))
    for number, synset in enumerate(SYNSETS, 1):
        marked = [f"{name} {marks[synset]}" for name, (marks, _) in train.items() if synset in marks]
        lines(root / f"ImageSets/DET/train_{number}.txt", *marked)
    lines(root / "ImageSets/DET/val.txt", *(f"{name} {number}" for number, name in enumerate(val, 1)))
    return images


def plain_det(root):
    """Three images of each class in each part, of one box each; return expected (label, image, mask)."""

    def box(label, number):
        return (number, label, number + 3 + label, label + 5)

    train, val = {}, {}
    for label, synset in enumerate(SYNSETS):
        for number in range(3):
            objects = [(synset, *box(label, number))]
            train[f"ILSVRC2013_train/{synset}/{synset}_{number}"] = ({synset: 1}, objects)
            val[f"ILSVRC2012_val_0000{label}{number}"] = ({}, objects)
    images = det(root, train, val)
    expected = {"train": [], "test": []}
    for part, samples in (("train", train), ("test", val)):
        for name, (_, [(synset, x0, y0, x1, y1)]) in samples.items():
            mask = rectangle(SHAPE, x0, y0, x1 + 1, y1 + 1)
            expected[part].append((list(SYNSETS).index(synset), images[name], mask))
    return expected


def det_dataset(root, **options):
    return load_dataset("det", **{"root": root, "foreground": BOXES, "size": None, **options})


def test_det_samples_are_images_with_their_boxes(tmp_path):
    expected = plain_det(tmp_path / "ILSVRC")
    for root in (tmp_path, tmp_path / "ILSVRC"):
        dataset = det_dataset(root)
        assert dataset.classes == ("accordion", "baby bed", "dog")
        assert_shows(joined(dataset), expected["train"])
        assert_shows(dataset.splits["test"], expected["test"])
    resized = det_dataset(tmp_path, size=8)
    for one, other in zip(dataset.splits["test"].foreground, resized.splits["test"].foreground, strict=True):
        np.testing.assert_array_equal(other, nearest(one, 8))


def test_det_takes_the_class_of_the_largest_total_area(tmp_path):
    folder = "ILSVRC2014_train_0000/ILSVRC2014_train_0000000"
    train = {
        f"{folder}{number}": (dict.fromkeys(SYNSETS, 1), objects)
        for number, objects in enumerate(
            [
                # n1 has the largest box, 8 x 6 = 48 pixels, n2 two of 5 x 5 that overlap
                [("n1", 0, 0, 7, 5), ("n2", 10, 0, 14, 4), ("n2", 12, 2, 16, 6)],
                # n1 covers 49, n2 2 x 24
                [("n1", 0, 0, 6, 6), ("n2", 10, 0, 15, 3), ("n2", 10, 6, 15, 9)],
                # a tie of 1 pixel each: the first synset
                [("n3", 0, 0, 0, 0), ("n2", 4, 4, 4, 4)],
                [("n1", 0, 0, 6, 6)],
                [("n2", 0, 0, 6, 6)],
            ]
        )
    }
    val = {"ILSVRC2012_val_1": ({}, [("n1", 2, 2, 90, 90)]), "ILSVRC2012_val_2": ({}, [("n2", -5, -5, 0, 0)]),
           "ILSVRC2012_val_3": ({}, [])}  # fmt: skip
    images = det(tmp_path, train, val)
    dataset = det_dataset(tmp_path)
    assert dataset.classes == ("accordion", "baby bed")  # nothing to train or to test "dog" with
    union = rectangle(SHAPE, 10, 0, 15, 5) | rectangle(SHAPE, 12, 2, 17, 7)
    square = rectangle(SHAPE, 0, 0, 7, 7)
    assert_shows(
        joined(dataset),
        [
            (1, images[f"{folder}0"], union),
            (0, images[f"{folder}1"], square),
            (1, images[f"{folder}2"], rectangle(SHAPE, 4, 4, 5, 5)),
            (0, images[f"{folder}3"], square),
            (1, images[f"{folder}4"], square),
        ],
    )
    # Boxes end at the border; the image without objects is left out.
    assert_shows(
        dataset.splits["test"],
        [
            (0, images["ILSVRC2012_val_1"], rectangle(SHAPE, 2, 2, 20, 12)),
            (1, images["ILSVRC2012_val_2"], rectangle(SHAPE, 0, 0, 1, 1)),
        ],
    )


def test_det_trains_on_images_whose_class_has_all_its_boxes(tmp_path):
    small, large = ("n1", 0, 0, 1, 1), ("n2", 3, 3, 9, 9)
    train = {
        "a": ({"n1": 1, "n2": 1}, [small, large]),
        "b": ({"n1": 1, "n2": 0}, [small, large]),  # some of the largest class have no box
        "c": ({"n1": 1, "n2": -1}, [small]),
        "d": ({"n1": 1}, [small]),
        "e": ({"n2": 1}, [large]),
        "f": ({"n2": 0}, [large]),
        "extra": ({"n1": -1, "n2": -1}, []),
    }
    images = det(tmp_path, train, {"v": ({}, [small]), "w": ({}, [large])})
    (tmp_path / "Annotations/DET/train/extra.xml").unlink()
    assert_shows(
        joined(det_dataset(tmp_path)),
        [(0, images[name], rectangle(SHAPE, 0, 0, 2, 2)) for name in "cd"]
        + [(1, images[name], rectangle(SHAPE, 3, 3, 10, 10)) for name in "ae"],
    )


def test_det_reads_the_lists_of_the_wanted_classes_alone(tmp_path):
    expected = plain_det(tmp_path)
    (tmp_path / "ImageSets/DET/train_2.txt").unlink()
    dataset = det_dataset(tmp_path, classes=["dog", "accordion"])
    assert dataset.classes == ("dog", "accordion")
    order = {2: 0, 0: 1}
    for split, part in ((joined(dataset), "train"), (dataset.splits["test"], "test")):
        assert_shows(split, [(order[label], *rest) for label, *rest in expected[part] if label in order])
    with pytest.raises(DataError, match=r"cannot read .*train_2\.txt: No such file or directory; add it"):
        det_dataset(tmp_path)


def test_det_does_not_depend_on_the_order_of_its_lists(tmp_path):
    plain_det(tmp_path)
    first = det_dataset(tmp_path)
    for path in (tmp_path / "ImageSets/DET").iterdir():
        lines(path, *reversed(path.read_text().splitlines()))
    assert det_dataset(tmp_path).digest == first.digest


def test_det_decodes_only_the_images_of_the_limits(tmp_path):
    plain_det(tmp_path)
    limits = {"train_limit": 3, "validation_limit": 3, "test_limit": 3}
    needed = det_dataset(tmp_path, size=8, **limits)
    kept = 0
    for path in sorted((tmp_path / "Data").rglob("*.JPEG")):
        content = path.read_bytes()
        path.write_bytes(b"damaged")
        try:
            assert det_dataset(tmp_path, size=8, **limits).digest == needed.digest
        except DataError:
            path.write_bytes(content)
            kept += 1
    assert kept == 9


def test_det_keeps_tiny_objects_when_images_shrink(tmp_path):
    plain_det(tmp_path)
    file = tmp_path / "Annotations/DET/val/ILSVRC2012_val_000000.xml"
    file.write_text(annotation(("n1", 7, 2, 8, 2)))  # between the centres of the pixels 10 wide and 6 high
    masks = det_dataset(tmp_path, size=2).splits["test"].foreground
    assert masks.any(axis=(1, 2)).all()
    assert [[True, False], [False, False]] in masks.tolist()
    file.write_text(annotation(("n1", 9, 7, 11, 7)))  # one pixel in the left half, two in the right
    assert [[False, False], [False, True]] in det_dataset(tmp_path, size=2).splits["test"].foreground.tolist()


VAL = "Annotations/DET/val/ILSVRC2012_val_000000.xml"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: replace(root / "ImageSets/DET/train_2.txt", "n2_1 1", "n2_1"),
         r"train_2\.txt, line 2: 'ILSVRC2013_train/n2/n2_1' lacks some of: image, mark"),
        (lambda root: replace(root / "ImageSets/DET/train_2.txt", "n2_1 1", "n2_1 2"),
         r"train_2\.txt, line 2: mark is '2', not one of -1, 0, 1"),
        (lambda root: replace(root / "ImageSets/DET/train_2.txt", "n2_1 1", "n2_7 1"),
         r"cannot read .*train/n2/n2_7\.xml: No such file or directory; add it or correct what names it"),
        (lambda root: replace(root / "ImageSets/DET/train_2.txt", "ILSVRC2013_train/n2/n2_1", "../../n2"),
         r"train_2\.txt, line 2: '\.\./\.\./n2' leaves the data set's folder"),
        (lambda root: replace(root / "ImageSets/DET/val.txt", "ILSVRC2012_val_000001", "/etc/passwd"),
         r"val\.txt, line 2: '/etc/passwd' leaves the data set's folder"),
        (lambda root: replace(root / "ImageSets/DET/val.txt", "ILSVRC2012_val_000001", "a\\..\\..\\b"), "leaves the"),
        (lambda root: replace(root / "ImageSets/DET/val.txt", "ILSVRC2012_val_000001", "c:a"), "leaves the"),
        (lambda root: replace(root / "ImageSets/DET/val.txt", "ILSVRC2012_val_000001", "a\0"), "leaves the"),
        (lambda root: replace(root / "devkit/data/map_det.txt", "n2 2 baby bed", "n2 ../2 baby bed"),
         r"map_det\.txt, line 2: '\.\./2' leaves the data set's folder"),
        (lambda root: replace(root / "devkit/data/map_det.txt", "n2 2 baby bed", "n2 2"),
         r"map_det\.txt, line 2: 'n2 2' lacks some of: synset, number, name"),
        (lambda root: replace(root / "devkit/data/map_det.txt", "n2 2", "n1 2"),
         r"map_det\.txt, line 2: synset n1 stands there for the second time"),
        (lambda root: replace(root / "devkit/data/map_det.txt", "baby bed", "dog"), "two classes with the name 'dog'"),
        (lambda root: (root / "devkit/data/map_det.txt").unlink(), r"cannot read .*map_det\.txt"),
        (lambda root: replace(root / VAL, "n1<", "n9<"), r"val_000000\.xml, object 1: unknown class 'n9'"),
        (lambda root: (root / VAL).write_text(LAUGHS), r"val_000000\.xml defines a document type"),
        (lambda root: (root / VAL).write_text(annotation(("n1", 20, 2, 21, 4))),
         r"val_000000\.xml has a box outside its image of 20x12 pixels"),
        (lambda root: (root / VAL).write_text(annotation(("n1", 5, 2, 4, 4))),
         r"val_000000\.xml, object 1: n1, 5, 2, 4, 4 is no object"),
        (lambda root: (root / "Data/DET/val/ILSVRC2012_val_000000.JPEG").unlink(), r"cannot read .*val_000000\.JPEG"),
        (lambda root: (root / "Data/DET/val/ILSVRC2012_val_000000.JPEG").write_bytes(b""), r"000000\.JPEG is no image"),
        (lambda root: save(root / "Data/DET/val/ILSVRC2012_val_000000.JPEG", np.zeros((12, 21), np.uint8)),
         r"000000\.JPEG is 21x12 pixels but the first image is 20x12; set size"),
        (lambda root: (root / "ImageSets/DET/val.txt").unlink(),
         "det not found: looked for ImageSets/DET/val.txt in .*ILSVRC and .*NNSCAN_DATA"),
    ],
)  # fmt: skip
def test_det_names_what_is_wrong(tmp_path, damage, message):
    plain_det(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        det_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_images_beyond_the_size_limit_are_refused(tmp_path, monkeypatch):
    plain_det(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"is no image or damaged .Image size .240 pixels. exceeds limit"):
        det_dataset(tmp_path)


# CUB-200-2011

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def cub(root):
    """Four birds of each class, two to train and two to test; return expected samples by part and kind."""
    names = [f"{bird}/{bird[4:]}_{number:04d}_{label}" for label, bird in enumerate(BIRDS) for number in range(4)]
    expected = {(part, kind): [] for part in ("train", "test") for kind in ("masks", "boxes")}
    boxes, split = [], []
    for index, name in enumerate(names):
        image = picture(root / "images" / f"{name}.jpg", SHAPE, index)
        label, part = index // 4, "train" if index % 4 in (0, 2) else "test"
        votes = np.zeros(SHAPE, np.uint8)
        for row, level in enumerate((51, 102, 153, 204, 255), 2):
            votes[row, index % 4 : 9] = level
        save(root / "segmentations" / f"{name}.png", votes)
        x, y, width, height = index, 2, 6, 5 + label
        boxes.append(f"{index + 1} {x}.0 {y}.0 {width}.0 {height}.0")
        split.append(f"{index + 1} {int(part == 'train')}")
        expected[part, "masks"].append((label, image, rectangle(SHAPE, index % 4, 4, 9, 7)))
        expected[part, "boxes"].append((label, image, rectangle(SHAPE, x, y, x + width, y + height)))
    lines(root / "images.txt", *(f"{n} {name}.jpg" for n, name in enumerate(names, 1)))
    lines(root / "image_class_labels.txt", *(f"{n + 1} {n // 4 + 1}" for n in range(len(names))))
    lines(root / "train_test_split.txt", *split)
    lines(root / "bounding_boxes.txt", *boxes)
    lines(root / "classes.txt", *(f"{n} {bird}" for n, bird in enumerate(BIRDS, 1)))
    return expected


def cub_dataset(root, kind="masks", **options):
    return load_dataset("cub", **{"root": root, "foreground": Foreground(kind), "size": None, **options})


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_cub_samples_are_images_with_masks_or_boxes(tmp_path, kind):
    expected = cub(tmp_path / "CUB_200_2011")
    for root in (tmp_path, tmp_path / "CUB_200_2011"):
        dataset = cub_dataset(root, kind)
        assert dataset.classes == BIRDS
        assert_shows(joined(dataset), expected["train", kind])
        assert_shows(dataset.splits["test"], expected["test", kind])
    chosen = cub_dataset(tmp_path, kind, classes=[BIRDS[2], BIRDS[0]])
    assert chosen.classes == (BIRDS[2], BIRDS[0])
    assert_shows(chosen.splits["test"], [({2: 0, 0: 1}[label], *rest) for label, *rest in expected["test", kind]
                                         if label != 1])  # fmt: skip


def test_cub_needs_only_the_files_of_the_asked_foreground(tmp_path):
    expected = cub(tmp_path)
    (tmp_path / "bounding_boxes.txt").rename(tmp_path / "boxes")
    assert_shows(cub_dataset(tmp_path).splits["test"], expected["test", "masks"])
    (tmp_path / "boxes").rename(tmp_path / "bounding_boxes.txt")
    (tmp_path / "segmentations").rename(tmp_path / "elsewhere")
    assert_shows(cub_dataset(tmp_path, "boxes").splits["test"], expected["test", "boxes"])
    with pytest.raises(DataError, match=r"no masks in .*segmentations; unpack segmentations\.tgz there, or take the"):
        cub_dataset(tmp_path, "masks")


def test_cub_masks_may_have_an_alpha_channel(tmp_path):
    expected = cub(tmp_path)
    for path in (tmp_path / "segmentations").rglob("*.png"):
        Image.open(path).convert("LA").save(path)
    assert_shows(cub_dataset(tmp_path).splits["test"], expected["test", "masks"])


SECOND = f"{BIRDS[0]}/Black_footed_Albatross_0001_0"


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("masks", lambda root: (root / f"segmentations/{SECOND}.png").unlink(),
         r"images\.txt, line 2: .*_0001_0\.jpg has no mask; looked for .*segmentations/.*_0001_0\.png"),
        ("masks", lambda root: save(root / f"segmentations/{SECOND}.png", np.zeros((12, 19), np.uint8)),
         r"segmentations/.*_0001_0\.png is 19x12 pixels but its image is 20x12; both must agree"),
        ("masks", lambda root: save(root / f"segmentations/{SECOND}.png", np.zeros((*SHAPE, 3), np.uint8)),
         r"_0001_0\.png is no grey image \(mode RGB\)"),
        ("masks", lambda root: save(root / f"segmentations/{SECOND}.png", np.full(SHAPE, 102, np.uint8)),
         r"the 001\.Black_footed_Albatross of .*images/.*_0001_0\.jpg covers no pixel; correct its annotation"),
        ("masks", lambda root: (root / f"segmentations/{SECOND}.png").write_bytes(b""), r"_0001_0\.png is no image"),
        ("masks", lambda root: (root / f"images/{SECOND}.jpg").unlink(), r"cannot read .*_0001_0\.jpg"),
        ("masks", lambda root: replace(root / "images.txt", f"{SECOND}.jpg", "../../x.jpg"),
         r"images\.txt, line 2: '\.\./\.\./x\.jpg' leaves the data set's folder"),
        ("masks", lambda root: replace(root / "images.txt", f"2 {SECOND}.jpg", "2"), r"images\.txt, line 2: '2' lacks"),
        ("masks", lambda root: replace(root / "images.txt", "2 ", "1 "), r"image 1 stands there for the second time"),
        ("masks", lambda root: replace(root / "image_class_labels.txt", "2 1\n", "2 4\n"),
         r"image_class_labels\.txt, line 2: class is '4', not one of 1, 2, 3"),
        ("masks", lambda root: replace(root / "train_test_split.txt", "2 0\n", "2 no\n"),
         r"train_test_split\.txt, line 2: is_training_image is 'no', not one of 0, 1"),
        ("masks", lambda root: replace(root / "train_test_split.txt", "\n2 0\n", "\n"),
         r"images\.txt, line 2: image 2 has no line in .*train_test_split\.txt"),
        ("masks", lambda root: replace(root / "image_class_labels.txt", "\n2 1\n", "\n"),
         r"image 2 has no line in .*image_class_labels\.txt"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "\n2 1.0", "\n99 1.0"),
         r"image 2 has no line in .*bounding_boxes\.txt"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "2 1.0 2.0 6.0", "2 1.0 2.0 0.0"),
         r"bounding_boxes\.txt, line 2: 1\.0 2\.0 0\.0 5\.0 is no box x, y, width > 0, height > 0"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "2 1.0 2.0", "2 1.0 two"),
         r"bounding_boxes\.txt, line 2: 1\.0 two 6\.0 5\.0 is no box"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "2 1.0 2.0", "2 1.0 inf"), r"line 2: 1\.0 inf"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "2 1.0 2.0", "2 20.0 2.0"),
         r"bounding_boxes\.txt has a box outside its image of 20x12 pixels"),
        ("boxes", lambda root: replace(root / "bounding_boxes.txt", "2 1.0 2.0 6.0", "2 1.0 2.0 0.2"),
         "covers no pixel"),
        ("boxes", lambda root: (root / "classes.txt").unlink(), r"cannot read .*classes\.txt"),
        ("boxes", lambda root: (root / "images.txt").unlink(), r"cub not found: looked for images\.txt in"),
    ],
)  # fmt: skip
def test_cub_names_what_is_wrong(tmp_path, kind, damage, message):
    cub(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        cub_dataset(tmp_path, kind)
    assert str(tmp_path) in str(caught.value)


# Pascal VOC


def voc(root):
    """Three images of aeroplanes and three of dogs in each part; return expected samples by part."""
    expected = {}
    for part, file, seed in (("train", "train", 0), ("test", "val", 50)):
        names = [f"20{file == 'val':02d}_{number:06d}" for number in range(6)]
        lines(root / f"ImageSets/Segmentation/{file}.txt", *names)
        expected[part] = []
        for number, name in enumerate(names):
            image = picture(root / "JPEGImages" / f"{name}.jpg", SHAPE, seed + number)
            values = np.zeros(SHAPE, np.uint8)
            label = number % 2
            values[1:8, 1 : 10 + number] = 255
            values[2:7, 2 : 9 + number] = (1, 12)[label]
            mask = rectangle(SHAPE, 2, 2, 9 + number, 7)
            values[9:12, 12:20] = 15  # a person of 24 pixels beside at least 35
            values[0] = 255  # a border larger than all else is no object
            indexed = Image.fromarray(values, mode="P")
            indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
            path = root / "SegmentationClass" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            indexed.save(path)
            expected[part].append((label, image, mask))
    return expected


def voc_dataset(root, **options):
    return load_dataset("voc", **{"root": root, "foreground": MASKS, "size": None, **options})


def test_voc_samples_are_images_with_the_pixels_of_their_class(tmp_path):
    expected = voc(tmp_path / "VOCdevkit/VOC2012")
    for root in (tmp_path, tmp_path / "VOCdevkit/VOC2012"):
        dataset = voc_dataset(root)
        assert dataset.classes == ("aeroplane", "dog")
        assert_shows(joined(dataset), expected["train"])
        assert_shows(dataset.splits["test"], expected["test"])
    chosen = voc_dataset(tmp_path, classes=["dog", "aeroplane"])
    assert_shows(chosen.splits["test"], [(1 - label, *rest) for label, *rest in expected["test"]])
    assert voc_dataset(tmp_path, classes=["dog"]).splits["test"].labels.tolist() == [0, 0, 0]


def test_voc_has_the_published_classes():
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert (VOC_CLASSES[0], VOC_CLASSES[11], VOC_CLASSES[14], VOC_CLASSES[19]) == (
        *("aeroplane", "dog", "person", "tvmonitor"),
    )


def test_voc_leaves_out_images_without_an_object(tmp_path):
    expected = voc(tmp_path)
    values = np.zeros(SHAPE, np.uint8)
    values[3:6] = 255
    save(tmp_path / "SegmentationClass/2001_000000.png", values)
    (tmp_path / "JPEGImages/2001_000000.jpg").unlink()
    assert_shows(voc_dataset(tmp_path).splits["test"], expected["test"][1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "SegmentationClass/2001_000002.png").unlink(), r"cannot read .*2001_000002\.png"),
        (lambda root: (root / "JPEGImages/2001_000002.jpg").unlink(), r"cannot read .*2001_000002\.jpg"),
        (lambda root: save(root / "SegmentationClass/2001_000002.png", np.full((12, 19), 1, np.uint8)),
         r"SegmentationClass/2001_000002\.png is 19x12 pixels but its image is 20x12; both must agree"),
        (lambda root: save(root / "SegmentationClass/2001_000002.png", np.full(SHAPE, 21, np.uint8)),
         r"2001_000002\.png holds the value 21, but VOC has 0\.\.20 and 255"),
        (lambda root: save(root / "SegmentationClass/2001_000002.png", np.full((*SHAPE, 3), 1, np.uint8)),
         r"2001_000002\.png has no class indices \(mode RGB\)"),
        (lambda root: replace(root / "ImageSets/Segmentation/val.txt", "2001_000002", "../2001_000002"),
         r"val\.txt, line 3: '\.\./2001_000002' leaves the data set's folder"),
        (lambda root: replace(root / "ImageSets/Segmentation/val.txt", "2001_000002", "2001_000001"),
         r"val\.txt, line 3: 2001_000001 stands already in .*val\.txt, line 2"),
        (lambda root: replace(root / "ImageSets/Segmentation/val.txt", "2001_000002", "2000_000004"),
         r"val\.txt, line 3: 2000_000004 stands already in .*train\.txt, line 5"),
        (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), r"cannot read .*val\.txt"),
        (lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(),
         "voc not found: looked for ImageSets/Segmentation/train.txt in .*VOCdevkit/VOC2012 and"),
    ],
)  # fmt: skip
def test_voc_names_what_is_wrong(tmp_path, damage, message):
    voc(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        voc_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


# All of them

WRITERS = {"camvid": camvid, "det": plain_det, "cub": cub, "voc": voc}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dgo", "car"], "Pascal VOC has no class 'dgo'; did you mean 'dog'"),
        (["dog", "dog"], "'dog' is named twice"),
        ([], "classes is empty; name at least one of: aeroplane"),
        (["dog", "cat", "person"], r"voc has classes without an object \(none in the train part: cat, person; none in "
         r"the test part: cat, person\); leave them out of classes"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_taken_are_named(tmp_path, classes, message):
    voc(tmp_path)
    with pytest.raises(DataError, match=message):
        voc_dataset(tmp_path, classes=classes)


def test_classes_are_chosen_of_annotated_data_sets_alone():
    with pytest.raises(DataError, match="classes can be chosen of camvid, det, cub, voc, not of 'digits'"):
        load_dataset("digits", classes=["1"])


def test_a_set_without_any_object_is_named(tmp_path):
    voc(tmp_path)
    for path in (tmp_path / "SegmentationClass").iterdir():
        save(path, np.zeros(SHAPE, np.uint8))
    with pytest.raises(DataError, match="voc has classes without an object"):
        voc_dataset(tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_annotated_data_sets_become_data_sets_of_a_study(tmp_path, name):
    """As the workflow does it: configuration, data set, file."""
    WRITERS[name](tmp_path / LAYOUTS[name][0])
    kind = "boxes" if name == "det" else "masks"
    settings = DatasetConfig(
        name="mine", source=name, root=str(tmp_path), size=16, foreground={"kind": kind}, normalization="standard",
        validation_fraction=0.34, classes=["car", "person"] if name == "camvid" else None,
    ).model_dump()  # fmt: skip
    del settings["name"]
    dataset = load_dataset(settings.pop("source"), **{**settings, "foreground": Foreground(**settings["foreground"])})
    assert dataset.name == name
    assert dataset.splits["train"].images.shape[1:] == (3, 16, 16)
    assert all(part.foreground.any(axis=(1, 2)).all() for part in dataset.splits.values())
    write_dataset(tmp_path / "data.h5", dataset, {"seed": "0"})
    again = read_dataset(tmp_path / "data.h5")
    assert (again.digest, again.classes) == (dataset.digest, dataset.classes)
    for split, part in dataset.splits.items():
        np.testing.assert_array_equal(again.splits[split].foreground, part.foreground)


@pytest.mark.parametrize("name", LAYOUTS)
def test_threshold_and_no_foreground_are_possible(tmp_path, name):
    WRITERS[name](tmp_path)
    options = {"root": tmp_path, "size": 8} | ({"classes": ["car", "person"]} if name == "camvid" else {})
    assert load_dataset(name, **options).splits["test"].foreground is None
    part = load_dataset(name, foreground=Foreground("threshold", 0.5), **options).splits["test"]
    np.testing.assert_array_equal(part.foreground, part.images.mean(axis=1) / 255 > 0.5)


OWN_KINDS = {
    **{"image_folder": ["masks", "boxes"], "camvid": ["masks"], "det": ["boxes"]},
    **{"cub": ["masks", "boxes"], "voc": ["masks"]},
}


@pytest.mark.parametrize("source", DATASETS)
@pytest.mark.parametrize("kind", FOREGROUNDS)
def test_configuration_and_loader_agree_on_the_foreground(tmp_path, source, kind):
    possible = ["none", "threshold", *OWN_KINDS.get(source, [])]
    values = {"name": "mine", "source": source, "root": str(tmp_path), "foreground": {"kind": kind}}
    if kind in possible:
        assert DatasetConfig.model_validate(values).foreground.kind == kind
        return
    with pytest.raises(ValueError, match=f"{source} has no {kind}; its foreground.kind can be {', '.join(possible)}"):
        DatasetConfig.model_validate(values)
    with pytest.raises(DataError, match=f"'{source}' has no {kind}; its foreground can be {', '.join(possible)}"):
        load_dataset(source, root=tmp_path, foreground=Foreground(kind))


def test_the_configuration_takes_classes_of_annotated_data_sets(tmp_path):
    for source in DATASETS:
        values = {"name": "mine", "source": source, "classes": ["dog", "cat"]}
        if source in LAYOUTS:
            assert DatasetConfig.model_validate(values).classes == ["dog", "cat"]
        else:
            with pytest.raises(ValueError, match=f"classes can be chosen of camvid, .*{source} is taken as a whole"):
                DatasetConfig.model_validate(values)
    with pytest.raises(ValueError, match="at least 1"):
        DatasetConfig.model_validate({"name": "mine", "source": "voc", "classes": []})
