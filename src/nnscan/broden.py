"""Broden: densely labelled images on disk, in the format of Network Dissection's data set, read and made.

A folder holds `index.csv` with a row for each image, `label.csv` with the labels, `category.csv`, a `c_<category>.csv`
for each category, and `images/`. A label holds for a whole image, by its number, or for some pixels: then a mask image
has its number in them, red + 256 * green. An image may have several labels, and several masks, of each category
(Bau, Zhou, Khosla, Oliva, Torralba: Network Dissection, CVPR 2017).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nnscan.annotations import camvid_classes, camvid_frames, check_same_size, decode_image, inside
from nnscan.artifacts import atomic_folder
from nnscan.data import FolderStore
from nnscan.errors import DataError
from nnscan.places import data_places, data_root

COLOR = "color"
"""The category of the color names that the writer adds by itself."""

LABELS = 2**16
"""Numbers that a mask image can hold; 0 is no label."""

_FIXED = ("image", "split", "ih", "iw", "sh", "sw")
_LABEL_COLUMNS = ("number", "name", "category", "frequency", "coverage", "syns")
_CODE_COLUMNS = ("code", "number", "name", "frequency", "coverage")
_CATEGORY_COLUMNS = ("name", "first", "last", "count", "frequency")
_SHARE_OF = re.compile(r"([^()]*)(?:\(\d+\))?")  # object(36), or object

_NAME_LENGTH = 100
_LISTED, _LISTED_LENGTH = 20, 120  # problems that a message names, and characters of each


class Concept(NamedTuple):
    """A label.

    Attributes:
        number: Its number in the masks, from 1.
        name: Its name.
        category: Its category; of several the one where it covers most.
        synonyms: Other names.
    """

    number: int
    name: str
    category: str
    synonyms: tuple[str, ...]


class Row(NamedTuple):
    """An image and its annotations.

    Attributes:
        image: File below `images`.
        split: The part of the data set that it belongs to.
        shape: Height and width of the image.
        mask_shape: Height and width of its masks.
        masks: Mask files below `images`, by category.
        whole: Numbers of the labels that hold for the whole image, by category.
    """

    image: str
    split: str
    shape: tuple[int, int]
    mask_shape: tuple[int, int]
    masks: dict[str, tuple[str, ...]]
    whole: dict[str, tuple[int, ...]]


class Labels(NamedTuple):
    """The labels of an image.

    Attributes:
        shape: Height and width of the masks.
        masks: Label numbers, uint16 (n, h, w) by category; 0 is none.
        whole: Numbers of the labels that hold for the whole image, by category.
    """

    shape: tuple[int, int]
    masks: dict[str, NDArray[np.uint16]]
    whole: dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Broden:
    """A folder in Broden's format. Only its tables are in memory; images and masks are read when they are asked for.

    Attributes:
        root: The folder.
        categories: Names of the categories.
        concepts: The labels by number.
        rows: The images.
    """

    root: Path
    categories: tuple[str, ...]
    concepts: dict[int, Concept]
    rows: tuple[Row, ...]
    _store: FolderStore = field(repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Return an image.

        Raises:
            DataError: It is damaged or has another size than the index says.
        """
        row = self.rows[index]
        path = f"images/{row.image}"
        where = self._store.where(path)
        image = decode_image(where, self._content(path))
        if (image.height, image.width) != row.shape:
            raise DataError(
                f"{where} is {image.width}x{image.height} pixels but index.csv says {row.shape[1]}x{row.shape[0]}; "
                "correct one of them"
            )
        return image

    def labels(self, index: int) -> Labels:
        """Return the labels of an image.

        Raises:
            DataError: A mask is damaged, has another size than the index says, or holds an unknown label.
        """
        row = self.rows[index]
        masks = {
            category: np.stack([self._mask(path, row.mask_shape) for path in paths])
            for category, paths in row.masks.items()
        }
        return Labels(row.mask_shape, masks, row.whole)

    def check(self) -> None:
        """Read every image and mask once.

        Raises:
            DataError: Some are damaged, have another size than the index says, or hold unknown labels; they are named
                file by file.
        """
        problems: list[str] = []
        for index, row in enumerate(tqdm(self.rows, desc="checking images", disable=None)):
            _collect(problems, lambda index=index: self.image(index))  # type: ignore[misc]
            for paths in row.masks.values():
                for path in paths:
                    _collect(problems, lambda path=path, shape=row.mask_shape: self._mask(path, shape))  # type: ignore[misc]
        _refuse(self.root, problems)

    def _content(self, path: str) -> bytes:
        [(_, content)] = self._store.read([path])
        return content

    def _mask(self, name: str, shape: tuple[int, int]) -> NDArray[np.uint16]:
        path = f"images/{name}"
        where = self._store.where(path)
        image = decode_image(where, self._content(path))
        if image.mode != "RGB":
            raise DataError(f"{where} has mode {image.mode}; a mask holds its labels in red and green (RGB)")
        check_same_size(where, (image.height, image.width), shape)
        pixels = np.asarray(image)
        numbers = pixels[..., 0] + pixels[..., 1].astype(np.uint16) * 256
        strange = [number for number in np.flatnonzero(np.bincount(numbers.ravel())).tolist()
                   if number and number not in self.concepts]  # fmt: skip
        if strange:
            raise DataError(f"{where} holds the label {strange[0]}, which label.csv does not name; correct one of them")
        return numbers


def _collect(problems: list[str], attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except DataError as error:
        problems.append(str(error))


def _refuse(root: Path, problems: Sequence[str]) -> None:
    """Raise a DataError that names the problems, if there are any."""
    if not problems:
        return
    start = f"{root}/"
    lines = [problem.replace(start, "") for problem in problems[:_LISTED]]
    shown = "\n".join(
        f"- {line if len(line) <= _LISTED_LENGTH else line[: _LISTED_LENGTH - 3] + '...'}" for line in lines
    )
    more = f"\n- and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise DataError(f"{root} has {len(problems)} problem(s):\n{shown}{more}")


# Reading --------------------------------------------------------------------------------------------------------------


def read_broden(root: str | Path) -> Broden:
    """Read the tables of a folder in Broden's format, and check that they agree and that every file is there.

    The images and masks themselves are checked when they are read, or all at once by `Broden.check`.

    Args:
        root: The folder that holds index.csv.

    Raises:
        DataError: A table is missing or damaged; or images, masks or labels are missing or wrong, which are named file
            by file.
    """
    folder = Path(root)
    store = FolderStore(folder)
    categories = [row["name"] for _, row in _table(store, "category.csv", _CATEGORY_COLUMNS)]
    for category in categories:
        if not _is_name(category) or "/" in category or "\\" in category or category in _FIXED:
            raise DataError(
                f"{store.where('category.csv')} has a category {category[:_NAME_LENGTH]!r}, whose name cannot be part "
                "of a file's name; rename it"
            )
    problems: list[str] = []
    concepts = _read_concepts(store, categories, problems)
    existing = frozenset(store.listing("images")[1])
    rows = []
    for place, row in _table(store, "index.csv", (*_FIXED, *categories)):
        found = _read_row(place, row, categories, concepts, existing, problems)
        if found is not None:
            rows.append(found)
    if not rows and not problems:
        problems.append("index.csv lists no image; add some")
    _refuse(folder, problems)
    return Broden(folder, tuple(categories), concepts, tuple(rows), store)


def _table(store: FolderStore, path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place (file and line, for messages) and the named columns of each row of a CSV file."""
    where = store.where(path)
    [(_, content)] = store.read([path])
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{where} lacks the column(s) {', '.join(missing)[:500]}; it is no table of Broden")
        for row in reader:
            yield f"{where}, line {reader.line_num}", {column: row[column] or "" for column in columns}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is no CSV file ({error}); fetch it again") from error


def _is_name(name: str) -> bool:
    return name.isprintable() and 1 <= len(name) <= _NAME_LENGTH


def _number(text: str) -> int | None:
    """Return a number from 0 that a cell holds."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _read_concepts(store: FolderStore, categories: Sequence[str], problems: list[str]) -> dict[int, Concept]:
    coverage: dict[str, dict[int, float]] = {category: {} for category in categories}
    for category in categories:
        for place, row in _table(store, f"c_{category}.csv", _CODE_COLUMNS):
            number, covered = _number(row["number"]), _real(row["coverage"])
            if number is None or covered is None:
                problems.append(f"{place}: {row['number']!r}, {row['coverage']!r} are no label number and no coverage")
            else:
                coverage[category][number] = covered
    concepts: dict[int, Concept] = {}
    for place, row in _table(store, "label.csv", _LABEL_COLUMNS):
        number = _number(row["number"])
        if number == 0:
            continue  # stands for no label
        own = [match[1] if (match := _SHARE_OF.fullmatch(part)) else part for part in row["category"].split(";")]
        unknown = [category for category in own if category not in categories]
        if number is None or number >= LABELS or number in concepts:
            problems.append(f"{place}: the label number {row['number']!r} is none of 1 to {LABELS - 1}, or there twice")
        elif not _is_name(row["name"]):
            problems.append(f"{place}: label {number} has a name that is empty, too long or cannot be shown")
        elif unknown:
            problems.append(f"{place}: label {number} has the category {unknown[0]!r}, which category.csv lacks")
        else:
            largest = max(own, key=lambda category: coverage[category].get(number, 0.0))
            synonyms = tuple(name for name in row["syns"].split(";") if name)
            concepts[number] = Concept(number, row["name"], largest, synonyms)
    return concepts


def _real(text: str) -> float | None:
    """Return the finite number from 0 that a cell holds; an empty cell is 0."""
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _read_row(
    place: str,
    row: Mapping[str, str],
    categories: Sequence[str],
    concepts: Mapping[int, Concept],
    existing: frozenset[str],
    problems: list[str],
) -> Row | None:
    """Return a row of the index; None, with the reasons among the problems, if it cannot be used."""
    before = len(problems)
    masks: dict[str, tuple[str, ...]] = {}
    whole: dict[str, tuple[int, ...]] = {}

    def there(kind: str, name: str) -> str:
        """Return a file's name after a check."""
        try:
            path = inside(place, name)
        except DataError as error:
            problems.append(str(error))
            return name
        if f"images/{path}" not in existing:
            problems.append(f"{place}: the {kind} images/{path} is missing")
        return path

    image = there("image", row["image"])
    sizes = [_number(row[column]) for column in ("ih", "iw", "sh", "sw")]
    ih, iw, sh, sw = (size or 0 for size in sizes)
    if not (0 < sh <= ih and 0 < sw <= iw):
        problems.append(
            f"{place}: image {ih}x{iw} and masks {sh}x{sw} (height x width) are no sizes, masks at most the image's"
        )
    for category in categories:
        cells = [cell for cell in row[category].split(";") if cell]
        numbers = [(cell, number) for cell in cells if (number := _number(cell)) is not None]
        for cell, number in numbers:
            if number not in concepts and number != 0:
                problems.append(f"{place}: label.csv does not name the label {cell}")
        paths = [there("mask", cell) for cell in cells if _number(cell) is None]
        if paths:
            masks[category] = tuple(paths)
        if any(number for _, number in numbers):
            whole[category] = tuple(number for _, number in numbers if number)
    if len(problems) > before:
        return None
    return Row(image, row["split"], (ih, iw), (sh, sw), masks, whole)


# Colours --------------------------------------------------------------------------------------------------------------


class Shade(NamedTuple):
    """A part of the colour space that has a name.

    Attributes:
        name: One of the eleven basic colour names.
        lightness: Least and largest L*, 0 to 100, the largest exclusive.
        chroma: Least and largest C*, the largest exclusive.
        hue: First and last hue angle in degrees, the last exclusive; from 0 to 360 it does not matter.
    """

    name: str
    lightness: tuple[float, float]
    chroma: tuple[float, float]
    hue: tuple[float, float]


COLORS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
"""The eleven basic colour names of English (Berlin and Kay, Basic Color Terms, 1969), in the order of their labels."""

_ANY = (0.0, 360.0)

SHADES = (
    Shade("black", (0, 10), (0, math.inf), _ANY),
    Shade("black", (0, 26), (0, 10), _ANY),
    Shade("white", (88, math.inf), (0, 10), _ANY),
    Shade("grey", (26, 88), (0, 10), _ANY),
    Shade("pink", (62, math.inf), (10, math.inf), (0, 42)),
    Shade("brown", (0, 62), (10, 59), (25, 42)),
    Shade("red", (0, 62), (10, math.inf), (0, 42)),
    Shade("red", (42, 62), (80, math.inf), (42, 50)),
    Shade("orange", (58, math.inf), (34, math.inf), (42, 80)),
    Shade("brown", (0, math.inf), (10, math.inf), (42, 80)),
    Shade("yellow", (58, math.inf), (10, math.inf), (80, 112)),
    Shade("brown", (0, 58), (10, math.inf), (80, 100)),
    Shade("green", (0, math.inf), (10, math.inf), (100, 195)),
    Shade("blue", (0, math.inf), (10, math.inf), (195, 312)),
    Shade("pink", (62, math.inf), (10, math.inf), (328, 360)),
    Shade("purple", (0, math.inf), (10, math.inf), (312, 352)),
    Shade("red", (0, 62), (10, math.inf), (352, 360)),
)
"""Where each name holds in CIELAB's lightness, chroma and hue; the first shade that fits counts, and one always does.

The boundaries are ours, from no published table: set so that the eleven keywords of CSS have their own names and that
street scenes come out as one would say. What they cannot do: a pixel is named by itself, so that shadow, the colour of
the light and the neighbourhood, which people discount, count fully; between two names there is a sharp edge where
people disagree; dark and pale colours are named least surely; there is one name to a pixel.
"""

# sRGB (IEC 61966-2-1) to CIE XYZ with the white point D65, divided by that white point
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def cielab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return sRGB pixels (..., 3) in CIELAB (..., 3): L* in 0 to 100, a* and b*; white is sRGB's own, D65."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)[pixels]
    ratio = linear @ (_TO_XYZ / _TO_XYZ.sum(1, keepdims=True)).T
    small = (6 / 29) ** 3
    root = np.where(ratio > small, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def color_names(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the name of each sRGB pixel (..., 3), by `SHADES`, as a position in `COLORS` (...)."""
    lab = cielab(pixels)
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    names = np.full(pixels.shape[:-1], len(COLORS), np.uint8)
    for shade in reversed(SHADES):
        there = np.ones(names.shape, np.bool_)
        for value, (least, most) in ((lightness, shade.lightness), (chroma, shade.chroma), (hue, shade.hue)):
            there &= (value >= least) & (value < most)
        names[there] = COLORS.index(shade.name)
    return names


# Writing --------------------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """A photograph with a class for each pixel.

    Attributes:
        name: Its name, from which files are named; it may hold folders.
        image: uint8 (H, W, 3).
        classes: Integers (H, W), positions in the class names.
        split: The part of the data set that it belongs to.
    """

    name: str
    image: NDArray[np.uint8]
    classes: NDArray[np.integer]
    split: str = "train"


@dataclass
class _Counts:
    """What the tables say of the labels of a category: in how many images, and how much of their pixels."""

    frequency: NDArray[np.int64]
    coverage: NDArray[np.float64]
    images: int = 0

    def add(self, mask: NDArray[np.integer]) -> None:
        counts = np.bincount(mask.ravel(), minlength=len(self.frequency))[1:]
        self.frequency[1:] += counts > 0
        self.coverage[1:] += counts / mask.size
        self.images += bool(counts.any())


def write_broden(
    root: str | Path,
    frames: Iterable[Frame],
    classes: Sequence[str],
    *,
    unlabelled: Sequence[str] = (),
    category: str = "object",
    tile: int | None = None,
    side: int | None = None,
    reduction: int = 2,
) -> None:
    """Make a folder in Broden's format of densely labelled frames; color names are added as a category of their own.

    The folder appears complete or not at all. The same frames give the same bytes.

    Args:
        root: The folder; it must not exist or be empty.
        frames: The frames; they are read one after the other.
        classes: Names of the classes. Labels are the classes from 1 on, then the color names.
        unlabelled: Names of classes that stand for no label.
        category: The category of the classes.
        tile: Cut frames into squares of so many pixels, from the upper left corner; what is left over at the right and
            below is left out. None: whole frames.
        side: Resize images so that their shorter side has so many pixels, bilinearly. None: as they are.
        reduction: How many pixels of the image a pixel of the masks is wide. Masks of classes take the nearest pixel,
            those of colors name the average color (Broden has 2).

    Raises:
        DataError: A frame's image and classes do not fit each other or the names, a frame is smaller than a tile, two
            have the same name, or there is none; or a name is of no use.
        ArtifactError: The folder exists, or the disk is full or not writable.
    """
    _check_writing(classes, unlabelled, category, tile, side, reduction)
    offset = len(classes) + 1  # the number of the first color name
    numbers = np.array([0 if name in unlabelled else number for number, name in enumerate(classes, 1)], np.int64)
    counts = {
        name: _Counts(np.zeros(offset + len(COLORS), np.int64), np.zeros(offset + len(COLORS)))
        for name in (COLOR, category)
    }
    with atomic_folder(root) as folder:
        rows: list[list[object]] = []
        seen: set[str] = set()
        for frame in tqdm(frames, desc="labelled images", disable=None):
            _check_frame(frame, len(classes))
            for name, image, values in _tiles(frame, tile):
                stem = inside("frame", name)
                if stem in seen:
                    raise DataError(f"there are two frames with the name {name!r}; rename one")
                seen.add(stem)
                photograph = Image.fromarray(image)
                if side is not None:
                    width, height = (round(length * side / min(photograph.size)) for length in photograph.size)
                    photograph = photograph.resize((width, height), Image.Resampling.BILINEAR)
                size = (max(1, photograph.width // reduction), max(1, photograph.height // reduction))
                masks = {
                    COLOR: offset + color_names(np.asarray(photograph.resize(size, Image.Resampling.BOX))).astype(int),
                    category: numbers[_nearest(values, size)],
                }
                for kind, mask in masks.items():
                    _save(folder, f"{stem}_{kind}.png", _encoded(mask))
                    counts[kind].add(mask)
                _save(folder, f"{stem}.png", photograph)
                paths = [f"{stem}_{kind}.png" for kind in masks]
                rows.append([f"{stem}.png", frame.split, photograph.height, photograph.width, size[1], size[0], *paths])
        if not rows:
            raise DataError("there is no frame to make a folder in Broden's format of; give at least one")
        _write_table(folder / "index.csv", [*_FIXED, COLOR, category], rows)
        _write_labels(folder, [*classes, *COLORS], offset, category, counts)


def _check_writing(
    classes: Sequence[str], unlabelled: Sequence[str], category: str, tile: int | None, side: int | None, reduction: int
) -> None:
    wrong = [name for name in (*classes, category) if not _is_name(name)]
    if wrong or not classes or len(set(classes)) < len(classes):
        raise DataError(
            "a folder in Broden's format needs class names that differ and can be shown, of at most "
            f"{_NAME_LENGTH} characters; got {', '.join(map(repr, wrong or classes))[:500] or 'none'}"
        )
    if category in (COLOR, *_FIXED) or "/" in category or "\\" in category:
        raise DataError(f"the category of the classes cannot be named {category!r}; choose another name")
    if len(classes) + len(COLORS) >= LABELS:
        raise DataError(f"masks can hold {LABELS - 1} labels, {len(COLORS)} of them color names; got {len(classes)}")
    unknown = [name for name in unlabelled if name not in classes]
    if unknown:
        raise DataError(f"unlabelled names {unknown[0]!r}, which is no class; the classes are {', '.join(classes)}")
    if min(tile or 1, side or 1, reduction) < 1:
        raise DataError(f"tile, side and reduction are pixels, 1 or more; got {tile}, {side}, {reduction}")


def _check_frame(frame: Frame, classes: int) -> None:
    image, values = frame.image, frame.classes
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or values.shape != image.shape[:2]:
        raise DataError(
            f"frame {frame.name!r} has an image {image.dtype} {image.shape} and classes {values.shape}; it needs uint8 "
            "(H, W, 3) and (H, W)"
        )
    if not image.size or values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes:
        raise DataError(f"frame {frame.name!r} has no pixel, or classes that are no integers in 0 to {classes - 1}")


def _tiles(frame: Frame, tile: int | None) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.integer]]]:
    """Yield name, image and classes of the parts of a frame."""
    if tile is None:
        yield frame.name, frame.image, frame.classes
        return
    height, width = frame.classes.shape
    if min(height, width) < tile:
        raise DataError(f"frame {frame.name!r} is {width}x{height} pixels, smaller than a tile of {tile}; take smaller")
    for row in range(height // tile):
        for column in range(width // tile):
            part = (slice(row * tile, (row + 1) * tile), slice(column * tile, (column + 1) * tile))
            yield f"{frame.name}_{row}_{column}", frame.image[part], frame.classes[part]


def _nearest(values: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Return classes (H, W) in another size (width, height), each of the pixel that holds its centre."""
    width, height = size
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    return values[np.ix_(rows, columns)]


def _encoded(mask: NDArray[np.integer]) -> Image.Image:
    """Return label numbers (h, w) as a mask image."""
    return Image.fromarray(np.stack([mask % 256, mask // 256, np.zeros_like(mask)], axis=-1).astype(np.uint8))


def _save(folder: Path, name: str, image: Image.Image) -> None:
    path = folder / "images" / PurePosixPath(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


def _write_labels(
    folder: Path, names: Sequence[str], offset: int, category: str, counts: Mapping[str, _Counts]
) -> None:
    """Write the tables of the labels that occur; the numbers of the others stay free."""
    present = {kind: np.flatnonzero(count.frequency).tolist() for kind, count in counts.items()}
    labels: list[list[Any]] = []
    for number, name in enumerate(names, 1):
        kind = category if number < offset else COLOR
        frequency, coverage = int(counts[kind].frequency[number]), float(counts[kind].coverage[number])
        if frequency:
            labels.append([number, name, f"{kind}({frequency})", frequency, f"{coverage:.6f}", ""])
    _write_table(folder / "label.csv", _LABEL_COLUMNS, labels)
    by_number = {row[0]: row for row in labels}
    for kind, numbers in present.items():
        rows = [[code, number, by_number[number][1], *by_number[number][3:5]] for code, number in enumerate(numbers, 1)]
        _write_table(folder / f"c_{kind}.csv", _CODE_COLUMNS, rows)
    categories = [
        [kind, min(numbers, default=0), max(numbers, default=0), len(numbers), counts[kind].images]
        for kind, numbers in present.items()
    ]
    _write_table(folder / "category.csv", _CATEGORY_COLUMNS, categories)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


# CamVid ---------------------------------------------------------------------------------------------------------------


def camvid(root: str | Path | None = None) -> tuple[list[str], Iterator[Frame]]:
    """Return CamVid's class names and its frames with all their labels, to be written by `write_broden`.

    Args:
        root: The folder that holds `camvid`, or that folder itself; the environment variable NNSCAN_DATA when None.

    Raises:
        DataError: CamVid is not there, or a file is missing, damaged or contradicts another.
    """
    places = data_places("camvid", root)
    if not places:
        raise DataError(f"camvid not found: looked in {data_root(root)}. Let root or NNSCAN_DATA name its folder")
    store = FolderStore(places[0])
    frames = (Frame(*frame, part) for part in ("train", "val") for frame in camvid_frames(store, part))
    return camvid_classes(store), frames
