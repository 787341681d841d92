"""nnscan.broden: the on-disk format read and written, colour names, damaged and hostile folders."""

import csv
import os
import zlib
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from hostile import refused
from labelled_sets import make, save_mask
from nnscan.broden import (
    COLORS,
    SHADES,
    Frame,
    camvid,
    cielab,
    color_names,
    read_broden,
    write_broden,
)
from nnscan.errors import ArtifactError, DataError

LABELS = {
    1: ("sky", {"object": 4.0, "material": 0.2}),
    7: ("street-s", {"scene": 2.0}),
    300: ("wood", {"object": 0.5, "material": 1.5}),
    65535: ("last", {"material": 0.1}),
}
CATEGORIES = ("object", "material", "scene")


def rng(seed=0):
    return np.random.default_rng(seed)


def photograph(shape=(6, 8), seed=0):
    return rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def mask(*values, shape=(3, 4)):
    return rng(len(values)).choice(np.array([0, *values]), shape)


@pytest.fixture
def folder(tmp_path):
    """Three images: two masks of a category and a scene; nothing but a scene; nothing at all."""
    annotations = [
        {"object": [mask(1, 300), mask(300)], "material": [mask(300, 65535), 300], "scene": [7]},
        {"scene": [7]},
        {},
    ]
    return make(tmp_path / "set", [photograph(seed=n) for n in range(3)], LABELS, annotations, CATEGORIES)


# Reading ------------------------------------------------------------------------------------------------------------


def test_masks_and_labels_of_whole_images_are_read(folder):
    broden = read_broden(folder)
    broden.check()
    assert len(broden) == 3
    assert broden.categories == CATEGORIES
    first = broden.labels(0)
    assert first.shape == (3, 4)
    assert (first.masks["object"] == np.stack([mask(1, 300), mask(300)])).all()
    assert (first.masks["material"] == mask(300, 65535)[None]).all()
    assert first.whole == {"material": (300,), "scene": (7,)}
    second = broden.labels(1)
    assert second.masks == {}
    assert second.whole == {"scene": (7,)}
    assert (np.asarray(broden.image(2)) == photograph(seed=2)).all()


def test_a_label_of_two_categories_belongs_where_it_covers_most(folder):
    concepts = read_broden(folder).concepts
    assert concepts[300].category == "material"
    assert concepts[1].category == "object"
    assert concepts[1].synonyms == ("other", "names")
    assert set(concepts) == set(LABELS)


def test_a_row_for_no_label_is_none(folder):
    with open(folder / "label.csv", "a") as stream:
        stream.write("0,-,,0,0,\n")
    assert 0 not in read_broden(folder).concepts


# Writing ------------------------------------------------------------------------------------------------------------


def frames(count=3, shape=(12, 16), classes=4):
    return [
        Frame(f"part/{n}", photograph(shape, n), rng(n + 9).integers(0, classes, shape), "val" if n else "train")
        for n in range(count)
    ]


CLASSES = ("car", "tree", "void", "road")


def test_what_is_written_is_read_back(tmp_path):
    write_broden(tmp_path / "set", iter(frames()), CLASSES, unlabelled=["void"], reduction=1)
    broden = read_broden(tmp_path / "set")
    broden.check()
    assert broden.categories == ("color", "object")
    assert [row.split for row in broden.rows] == ["train", "val", "val"]
    assert {n: concept.name for n, concept in broden.concepts.items() if concept.category == "object"} == {
        1: "car", 2: "tree", 4: "road",
    }  # fmt: skip
    for index, frame in enumerate(frames()):
        found = broden.labels(index)
        assert (np.asarray(broden.image(index)) == frame.image).all()
        assert found.whole == {}
        assert found.masks["object"].dtype == np.uint16
        assert (found.masks["object"] == np.array([1, 2, 0, 4])[frame.classes][None]).all()
        names = [broden.concepts[number].name for number in found.masks["color"].ravel()]
        assert names == [COLORS[place] for place in color_names(frame.image).ravel()]


def test_statistics_count_images_and_add_up_shares(tmp_path):
    classes = np.zeros((4, 4), int)
    classes[0] = 1
    both = [Frame("a", photograph((4, 4)), classes), Frame("b", photograph((4, 4)), classes * 0)]
    write_broden(tmp_path / "set", both, ["x", "y", "never"], reduction=1)
    with open(tmp_path / "set/label.csv") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert rows["x"]["category"] == "object(2)"
    assert float(rows["x"]["coverage"]) == pytest.approx(1.75)
    assert (rows["y"]["frequency"], float(rows["y"]["coverage"])) == ("1", pytest.approx(0.25))
    assert "never" not in rows
    with open(tmp_path / "set/c_object.csv") as stream:
        assert [(row["code"], row["number"], row["name"]) for row in csv.DictReader(stream)] == [
            ("1", "1", "x"), ("2", "2", "y"),
        ]  # fmt: skip
    with open(tmp_path / "set/category.csv") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["color", "object"]


def test_tiles_and_sizes(tmp_path):
    shape = (13, 21)
    classes = np.arange(13)[:, None] // 5 * 5 + np.arange(21) // 5
    write_broden(
        tmp_path / "set", [Frame("f", photograph(shape), classes)], [f"c{n}" for n in range(15)], tile=5, side=10
    )
    broden = read_broden(tmp_path / "set")
    assert [row.image for row in broden.rows] == [f"f_{row}_{column}.png" for row in (0, 1) for column in range(4)]
    assert {row.shape for row in broden.rows} == {(10, 10)}
    assert {row.mask_shape for row in broden.rows} == {(5, 5)}
    for index in range(8):
        assert (broden.labels(index).masks["object"] == index // 4 * 5 + index % 4 + 1).all()


def test_a_frame_keeps_its_proportions(tmp_path):
    write_broden(tmp_path / "set", [Frame("f", photograph((9, 18)), np.zeros((9, 18), int))], ["c"], side=6)
    row = read_broden(tmp_path / "set").rows[0]
    assert (row.shape, row.mask_shape) == ((6, 12), (3, 6))


def test_equal_frames_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_broden(tmp_path / name, frames(), CLASSES)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 5 + 9
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    def failing():
        yield frames()[0]
        raise RuntimeError("the disk of the photographs is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        write_broden(tmp_path / "set", failing(), CLASSES)
    assert list(tmp_path.iterdir()) == []
    write_broden(tmp_path / "set", frames(), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(ArtifactError, match="exists already"):
        write_broden(tmp_path / "set", frames(), CLASSES)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / ".set.abcd1234/images").mkdir(parents=True)
    (tmp_path / ".other.abcd1234").mkdir()
    write_broden(tmp_path / "set", frames(1), CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abcd1234", "set"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": []}, "no frame"),
        ({"frames": [Frame("a", photograph(), np.zeros((5, 8), int))]}, "classes"),
        ({"frames": [Frame("a", photograph(), np.full((6, 8), 4))]}, "0 to 3"),
        ({"frames": [Frame("a", photograph(), np.zeros((6, 8)))]}, "integers"),
        ({"frames": [Frame("../a", photograph(), np.zeros((6, 8), int))]}, "leaves"),
        ({"frames": [Frame("a", photograph(), np.zeros((6, 8), int))] * 2}, "same|two frames"),
        ({"tile": 7}, "smaller than a tile"),
        ({"reduction": 0}, "1 or more"),
        ({"unlabelled": ["sea"]}, "'sea'"),
        ({"category": "color"}, "cannot be named"),
        ({"category": "a/b"}, "cannot be named"),
        ({"classes": ["a", "a"]}, "differ"),
        ({"classes": ["a\n", "b", "c", "d"]}, "can be shown"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, given, message):
    options = {"frames": [Frame("a", photograph(), np.zeros((6, 8), int))], "classes": CLASSES, **given}
    with pytest.raises(DataError, match=message):
        write_broden(tmp_path / "set", options.pop("frames"), options.pop("classes"), **options)
    assert list(tmp_path.iterdir()) == []


def test_camvid(tmp_path, shared_data):
    classes, every = camvid(shared_data)
    chosen = list(islice(every, 2))
    write_broden(tmp_path / "set", chosen, classes, unlabelled=["unlabelled"], tile=60)
    broden = read_broden(tmp_path / "set")
    broden.check()
    assert len(broden) == 2 * 3 * 4
    numbers = np.array([*range(1, 12), 0])
    place = [(row.image, index) for index, row in enumerate(broden.rows)]
    for name, index in place:
        stem, row, column = name.removesuffix(".png").rsplit("_", 2)
        frame = next(frame for frame in chosen if frame.name == stem)
        part = frame.classes[int(row) * 60 :, int(column) * 60 :][:60, :60]
        assert (broden.labels(index).masks["object"][0] == numbers[part][1::2, 1::2]).all()
    assert [concept.name for concept in broden.concepts.values()][:3] == ["sky", "building", "pole"]


# Colours ------------------------------------------------------------------------------------------------------------

KEYWORDS = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "green": (0, 128, 0), "grey": (128, 128, 128),
    "orange": (255, 165, 0), "pink": (255, 192, 203), "purple": (128, 0, 128), "red": (255, 0, 0),
    "white": (255, 255, 255), "yellow": (255, 255, 0),
}  # fmt: skip


def named(*rgb):
    return COLORS[color_names(np.array(rgb, np.uint8))]


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_cielab_has_the_values_of_the_standard(rgb, lab):
    assert cielab(np.array(rgb, np.uint8)) == pytest.approx(lab, abs=0.02)


def test_the_eleven_keywords_of_css_have_their_own_names():
    assert {name: named(*rgb) for name, rgb in KEYWORDS.items()} == {name: name for name in COLORS}


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((135, 206, 235), "blue"), ((139, 69, 19), "brown"), ((34, 49, 29), "green"), ((70, 72, 75), "grey"),
        ((35, 37, 40), "black"), ((240, 242, 245), "white"), ((200, 30, 40), "red"), ((250, 128, 114), "pink"),
        ((255, 140, 0), "orange"), ((75, 0, 130), "purple"), ((255, 215, 0), "yellow"),
    ],
)  # fmt: skip
def test_colors_of_things(rgb, name):
    assert named(*rgb) == name


def test_every_color_has_a_name():
    level = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(level, level, level), -1)
    found = color_names(cube)
    assert found.max() < len(COLORS)
    assert set(np.unique(found)) == set(range(len(COLORS)))
    assert {shade.name for shade in SHADES} == set(COLORS)


# Damage -------------------------------------------------------------------------------------------------------------


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_all_problems_of_the_tables_are_named_in_one_error(folder):
    (folder / "images/a/0_object_1.png").unlink()
    (folder / "images/a/2.png").unlink()
    edit(folder / "index.csv", "a/1.png,train,6,8,6,8,,,7", "a/1.png,train,6,8,9,8,,,8")
    with pytest.raises(DataError) as caught:
        read_broden(folder)
    sentence = str(caught.value)
    assert "4 problem(s)" in sentence
    assert "index.csv, line 2: the mask images/a/0_object_1.png is missing" in sentence
    assert "index.csv, line 3: image 6x8 and masks 9x8" in sentence
    assert "index.csv, line 3: label.csv does not name the label 8" in sentence
    assert "index.csv, line 4: the image images/a/2.png is missing" in sentence


def test_all_problems_of_the_files_are_named_in_one_error(folder):
    save_mask(folder / "images/a/0_object_0.png", np.full((3, 4), 2))
    save_mask(folder / "images/a/0_object_1.png", np.ones((4, 3), int))
    Image.fromarray(np.ones((3, 4), np.uint8)).save(folder / "images/a/0_material_0.png")
    (folder / "images/a/1.png").write_bytes(b"no image")
    Image.fromarray(photograph((5, 8))).save(folder / "images/a/2.png")
    with pytest.raises(DataError) as caught:
        read_broden(folder).check()
    sentence = str(caught.value)
    assert "5 problem(s)" in sentence
    for part in (
        "images/a/0_object_0.png holds the label 2, which label.csv does not name",
        "images/a/0_object_1.png is 3x4 pixels but its image is 4x3",
        "images/a/0_material_0.png has mode L",
        "images/a/1.png is no image or damaged",
        "images/a/2.png is 8x5 pixels but index.csv says 8x6",
    ):
        assert part in sentence
    with pytest.raises(DataError, match="holds the label 2"):
        read_broden(folder).labels(0)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("label.csv", "300,wood", "1,wood", "'1' is none of 1 to 65535, or there twice"),
        ("label.csv", "300,wood", "70000,wood", "'70000' is none of"),
        ("label.csv", "300,wood", "-3,wood", "'-3' is none of"),
        ("label.csv", "sky", "", "label 1 has a name"),
        ("label.csv", "sky", "s\x1b[2Jy", "label 1 has a name"),
        ("label.csv", "object(1)", "animal(1)", "category 'animal', which category.csv lacks"),
        ("label.csv", "number,", "id,", "lacks the column(s) number"),
        ("c_object.csv", "4.0", "much", "no coverage"),
        ("c_object.csv", "4.0", "nan", "no coverage"),
        ("c_object.csv", "code", "id", "lacks the column(s) code"),
        ("index.csv", "a/0.png,train,6,8", "a/0.png,train,6,x", "are no sizes"),
        ("index.csv", "a/0.png", "../0.png", "leaves the data set's folder"),
        ("index.csv", "a/0_object_0.png", "/etc/passwd", "leaves the data set's folder"),
        ("index.csv", "a/0_object_0.png", "C:\\x.png", "leaves the data set's folder"),
        ("index.csv", ",scene", ",other", "lacks the column(s) scene"),
        ("category.csv", "scene", "../scene", "cannot be part of a file's name"),
        ("category.csv", "scene", "split", "cannot be part of a file's name"),
        ("category.csv", "name", "title", "lacks the column(s) name"),
    ],
)  # fmt: skip
def test_damaged_tables_are_named(folder, name, old, new, message):
    edit(folder / name, old, new)
    with pytest.raises(DataError) as caught:
        read_broden(folder)
    assert message in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["index.csv", "label.csv", "category.csv", "c_scene.csv"])
def test_missing_and_binary_tables_are_named(folder, name):
    (folder / name).write_bytes(b"\xff\xfe\x00name,image")
    assert name in refused(lambda: read_broden(folder), DataError)
    (folder / name).unlink()
    assert name in refused(lambda: read_broden(folder), DataError)


def test_no_image_is_an_error(folder):
    header = (folder / "index.csv").read_text().splitlines()[0]
    (folder / "index.csv").write_text(f"{header}\n")
    with pytest.raises(DataError, match="lists no image"):
        read_broden(folder)


# Attacks ------------------------------------------------------------------------------------------------------------


def test_a_thousand_problems_make_one_short_sentence(folder):
    with open(folder / "index.csv", "a") as stream:
        stream.writelines(f"{'n' * 5000}{n}\x1b.png,train,6,8,3,4,,,\n" for n in range(1000))
    sentence = refused(lambda: read_broden(folder), DataError)
    assert "1000 problem(s)" in sentence
    assert "and 980 more" in sentence


def test_an_endless_cell_is_refused(folder):
    with open(folder / "index.csv", "a") as stream:
        stream.write("x" * 2**20)
    assert "index.csv" in refused(lambda: read_broden(folder), DataError)


@pytest.mark.parametrize("kind", ["device", "queue", "sparse"])
def test_files_without_an_end_are_not_read(folder, kind):
    place = folder / "images/a/0_object_0.png"
    place.unlink()
    if kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "queue":
        os.mkfifo(place)
    else:
        with open(place, "wb") as stream:
            stream.truncate(2**40)
    assert "0_object_0.png" in refused(lambda: read_broden(folder).check(), DataError)


def test_a_mask_that_unpacks_to_gigabytes_is_refused(folder):
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    size = (30000).to_bytes(4, "big")
    header = chunk(b"IHDR", size * 2 + b"\x08\x02\x00\x00\x00")
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (folder / "images/a/0_object_0.png").write_bytes(bomb)
    assert "0_object_0.png" in refused(lambda: read_broden(folder).check(), DataError)


def test_masks_larger_than_their_image_are_refused(folder):
    """A label of the whole image has no file behind its claim of a size."""
    edit(folder / "index.csv", "a/1.png,train,6,8,6,8", "a/1.png,train,6,8,60000,80000")
    assert "are no sizes" in refused(lambda: read_broden(folder), DataError)


def test_two_writers_do_not_disturb_each_other(tmp_path):
    def interrupted():
        write_broden(tmp_path / "set", frames(1), CLASSES)
        yield from frames(3)

    with pytest.raises(ArtifactError, match="cannot write"):
        write_broden(tmp_path / "set", interrupted(), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(read_broden(tmp_path / "set")) == 1
