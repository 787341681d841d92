"""Annotated data sets: which objects their files name, and which pixels of an image each object covers.

CamVid and Pascal VOC draw their objects in label images, CUB-200-2011 has masks and boxes, ILSVRC DET boxes alone. A
reader lists the objects without opening the photographs; an object's pixels are worked out when its photograph is
read. All files count as a stranger's: names must stay below the root, XML may define no entities.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from nnscan.errors import DataError, did_you_mean
from nnscan.limits import DAMAGED

CAMVID_CLASSES = ("sign_symbol", "car", "pedestrian", "bicyclist")
"""Classes of CamVid that are taken where none are named: things with a shape. Trees and buildings are cut into patches
by what stands before them, and poles are thinner than a pixel once their crop is 32 pixels wide."""

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Pascal VOC's classes; grey level n + 1 of a label image is class n, 0 background, 255 the border of an object."""

_VOC_BORDER = 255
# Smaller components of a CamVid frame are specks: 108 of 240 x 180 pixels.
_LEAST_SHARE = 1 / 400
_MARGIN = 0.1
# CUB's masks count the votes of five annotators in steps of 51; three of them are the majority.
_MAJORITY = 128
_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int64)

# Pillow knows many more; of these the reader of EPS starts another program, and most are seldom tried on hostile files.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow's readers raise on damaged bytes, whose lengths and types they often trust.
_UNREADABLE = (*DAMAGED, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Store(Protocol):
    """Files by their path relative to the root, with slashes."""

    def listing(self, top: str) -> tuple[list[str], list[str]]:
        """Return the folders and the files at any depth below the folder `top`, sorted; hidden ones left out."""

    def read(self, paths: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield position in `paths` and content of each file, in the order that the store reads fastest."""

    def where(self, path: str) -> str:
        """Return how a message names the file."""


class Outline(Protocol):
    """The pixels of an object."""

    def mask(self, store: Store, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the object's pixels in the whole image.

        Args:
            store: The data set's files.
            shape: Height and width of the image.

        Returns:
            bool (H, W).

        Raises:
            DataError: The annotation does not fit the image.
        """


@dataclass(frozen=True, slots=True)
class Boxes:
    """The union of boxes.

    Attributes:
        corners: float64 (n, 4): x0, y0, x1, y1 in pixels; (0, 0) is the image's left upper corner, x1, y1 exclusive.
        path: The file that they are from.
    """

    corners: NDArray[np.float64]
    path: str

    def mask(self, store: Store, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the pixels whose centre lies in a box; see `Outline`."""
        if lies_outside(self.corners, shape):
            raise DataError(
                f"{store.where(self.path)} has a box outside its image of {shape[1]}x{shape[0]} pixels; correct it"
            )
        return fill_boxes(self.corners, shape, shape)


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels of a label image that have one value.

    Attributes:
        path: The label image.
        value: The value.
        component: Number of the connected component (of eight neighbours) that is the object; None: all of them.
    """

    path: str
    value: int
    component: int | None = None

    def mask(self, store: Store, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the pixels of the value; see `Outline`."""
        there: NDArray[np.bool_] = _label_image(store, self.path, _content(store, self.path)) == self.value
        return there if self.component is None else _components(there) == self.component


@dataclass(frozen=True, slots=True)
class Votes:
    """Pixels that the majority of CUB's five annotators call bird.

    Attributes:
        path: The mask, whose grey level is 51 for each vote.
    """

    path: str

    def mask(self, store: Store, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the pixels with at least three votes; see `Outline`."""
        where = store.where(self.path)
        image = decode_image(where, _content(store, self.path))
        if image.mode not in ("L", "LA"):
            raise DataError(f"{where} is no grey image (mode {image.mode}); fetch the segmentations again")
        check_same_size(where, (image.height, image.width), shape)
        return np.asarray(image.getchannel("L")) >= _MAJORITY


@dataclass(frozen=True, slots=True)
class Sample:
    """An object and the image or the part of an image that shows it.

    Attributes:
        image: Path of the image file.
        category: Name of the object's class.
        outline: The object's pixels.
        labels: Path, height and width of the label image, which the image must agree with; None: it has none.
        crop: The part of the image, (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; None: all of it.
    """

    image: str
    category: str
    outline: Outline
    labels: tuple[str, tuple[int, int]] | None = None
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Catalogue:
    """The objects of a data set.

    Attributes:
        classes: Class names; a label is a position in it.
        samples: Of the parts `"train"` and `"test"`, in an order that depends on the files' contents and names alone.
    """

    classes: tuple[str, ...]
    samples: dict[str, list[Sample]]


def read_catalogue(name: str, store: Store, wanted: Sequence[str] | None, outlines: str) -> Catalogue:
    """Read the lists and annotations of a data set.

    Args:
        name: One of `places.LAYOUTS`.
        store: Its files.
        wanted: The classes to take, in the order of the labels. None: of CamVid `CAMVID_CLASSES`, of the others all;
            then a class without an object in one of the parts is left out.
        outlines: `"masks"` or `"boxes"`, for a data set that has both (CUB).

    Raises:
        DataError: A file is missing, damaged or contradicts another, or a class is unknown or has no object.
    """
    if name == "camvid":
        catalogue = _camvid(store, wanted)
    elif name == "det":
        catalogue = _det(store, wanted)
    elif name == "cub":
        catalogue = _cub(store, wanted, outlines)
    else:
        catalogue = _voc(store, wanted)
    counts = {part: Counter(sample.category for sample in samples) for part, samples in catalogue.samples.items()}
    empty = {part: [label for label in catalogue.classes if not count[label]] for part, count in counts.items()}
    lacking = "; ".join(f"none in the {part} part: {', '.join(labels)}" for part, labels in empty.items() if labels)
    kept = tuple(label for label in catalogue.classes if not any(label in labels for labels in empty.values()))
    if lacking and (wanted is not None or not kept):
        raise DataError(f"{name} has classes without an object ({lacking}); leave them out of classes or add images")
    return Catalogue(
        kept,
        {
            part: [sample for sample in samples if sample.category in kept]
            for part, samples in catalogue.samples.items()
        },
    )


def decode_image(where: str, content: bytes) -> Image.Image:
    """Return a decoded image.

    Args:
        where: How a message names the file.
        content: Its bytes.

    Raises:
        DataError: It is no image of a usual format, damaged, or larger than Pillow's limit.
    """
    try:
        # Pillow only warns of an image that is up to twice as large as its limit
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            image.load()
    except _UNREADABLE as error:
        raise DataError(f"{where} is no image or damaged ({error}); repair or remove it") from error
    return image


def check_same_size(where: str, found: tuple[int, int], shape: tuple[int, int]) -> None:
    """Raise a DataError unless a mask of height and width `found`, named `where`, is as large as its image."""
    if found != shape:
        raise DataError(
            f"{where} is {found[1]}x{found[0]} pixels but its image is {shape[1]}x{shape[0]}; both must agree"
        )


def lies_outside(corners: NDArray[np.float64], shape: tuple[int, int]) -> bool:
    """Return whether one of the boxes (n, 4) has nothing in common with an image of height and width `shape`."""
    x0, y0, x1, y1 = corners.T
    return bool(((x0 >= shape[1]) | (y0 >= shape[0]) | (x1 <= 0) | (y1 <= 0)).any())


def fill_boxes(corners: NDArray[np.float64], original: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw the union of boxes.

    Args:
        corners: (n, 4): x0, y0, x1, y1 in pixels of the original image.
        original: Height and width of the original image.
        shape: Height and width of the result.

    Returns:
        bool (H, W): the pixels whose centre, in coordinates of the original image, lies in a box.
    """
    x = (np.arange(shape[1]) + 0.5) * original[1] / shape[1]
    y = (np.arange(shape[0]) + 0.5) * original[0] / shape[0]
    across, down = np.searchsorted(x, corners[:, 0::2]), np.searchsorted(y, corners[:, 1::2])
    inside = np.zeros(shape, np.bool_)
    for (left, right), (top, bottom) in set(zip(map(tuple, across), map(tuple, down), strict=True)):
        inside[top:bottom, left:right] = True
    return inside


# Files of a stranger -------------------------------------------------------------------------------------------------


def _content(store: Store, path: str) -> bytes:
    [(_, content)] = store.read([path])
    return content


def _rows(store: Store, path: str, fields: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield place (file and line, for messages) and fields of each line that is not blank; the last may have spaces."""
    where = store.where(path)
    try:
        text = _content(store, path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text ({error}); fetch it again") from error
    for number, line in enumerate(text.split("\n"), 1):
        found = line.split(maxsplit=len(fields) - 1)
        if not found:
            continue
        if len(found) < len(fields):
            raise DataError(f"{where}, line {number}: {line.strip()!r} lacks some of: {', '.join(fields)}; correct it")
        yield f"{where}, line {number}", [field.strip() for field in found]


def _by_id(store: Store, path: str, fields: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Return place and further fields of each line by its first field."""
    table: dict[str, tuple[str, list[str]]] = {}
    for place, (key, *values) in _rows(store, path, fields):
        if key in table:
            raise DataError(f"{place}: {fields[0]} {key} stands there for the second time; remove one of the lines")
        table[key] = (place, values)
    return table


def inside(place: str, name: str) -> str:
    """Return a file name from a list if it cannot leave the folder that it is relative to, on any system.

    Args:
        place: Where the name stands, for messages.
        name: The name.

    Raises:
        DataError: It is absolute, goes upwards or holds a zero byte.
    """
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or "\0" in name:
        raise DataError(f"{place}: {name!r} leaves the data set's folder; correct the line")
    return PurePosixPath(name).as_posix()


def _one_of(place: str, field: str, value: str, possible: Iterable[str]) -> str:
    if value not in possible:
        raise DataError(f"{place}: {field} is {value!r}, not one of {', '.join(possible)}; correct the line")
    return value


def _choose(where: str, known: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the wanted classes of those that a file names, all when None."""
    twice = [label for label, count in Counter(known).items() if count > 1]
    if twice:
        raise DataError(f"{where} has two classes with the name {twice[0]!r}; correct it")
    if wanted is None:
        return tuple(known)
    if not wanted:
        raise DataError(f"classes is empty; name at least one of: {', '.join(known)}")
    for position, label in enumerate(wanted):
        if label not in known:
            raise DataError(f"classes: {where} has no class {label!r}{did_you_mean(label, known)}")
        if label in wanted[:position]:
            raise DataError(f"classes: {label!r} is named twice; name it once")
    return tuple(wanted)


def _label_image(store: Store, path: str, content: bytes) -> NDArray[np.uint8]:
    """Return the values (H, W) of a label image, whose grey level or palette index is the class."""
    image = decode_image(store.where(path), content)
    if image.mode not in ("L", "P"):
        raise DataError(
            f"{store.where(path)} has no class indices (mode {image.mode}); it must be grey or have a palette"
        )
    return np.asarray(image)


def _components(there: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the number, from 1, of the connected component of each true pixel, and 0 elsewhere."""
    return np.asarray(ndimage.label(there, _EIGHT_NEIGHBOURS)[0], np.int32)


def parse_objects(where: str, content: bytes) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Read the objects of an annotation in Pascal VOC's XML format, which ILSVRC shares.

    Args:
        where: How a message names the file.
        content: Its bytes, UTF-8.

    Returns:
        Of each object, name and xmin, ymin, xmax, ymax as they stand there.

    Raises:
        DataError: It is no such file, defines a document type, or an object has no name or no proper box.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not encoded in UTF-8 ({error}); fetch it again") from error
    # Entities, which can expand without end or name other files, can only be defined in a document type; where bytes
    # are zero, the parser would find one in another encoding.
    if "<!DOCTYPE" in text or "\0" in text:
        raise DataError(f"{where} defines a document type, which can do harm and which no annotation needs; remove it")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{where} is no complete XML ({error}); fetch it again") from error
    objects = []
    for number, node in enumerate(root.iterfind("object"), 1):
        texts = [node.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        name = (node.findtext("name") or "").strip()
        try:
            x0, y0, x1, y1 = (float(text or "") for text in texts)
        except ValueError:
            x0 = y0 = x1 = y1 = math.nan
        if not (name and math.isfinite(x0 + y0 + x1 + y1) and x0 <= x1 and y0 <= y1):
            raise DataError(
                f"{where}, object {number}: {name or 'no name'}, {', '.join(map(str, texts))} is no object; it needs a "
                "name and numbers xmin <= xmax, ymin <= ymax in bndbox; correct it"
            )
        objects.append((name, (x0, y0, x1, y1)))
    return objects


# CamVid --------------------------------------------------------------------------------------------------------------


def _camvid(store: Store, wanted: Sequence[str] | None) -> Catalogue:
    """List the connected components of the wanted classes, each a square crop of its frame.

    `classes.txt` names the values of the label images, one class a line; `train` and `val` (our test part) each hold
    `images/<name>.<any>` and `labels/<name>.png`.
    """
    known = camvid_classes(store)
    chosen = _choose(store.where("classes.txt"), known, CAMVID_CLASSES if wanted is None else wanted)
    samples = {}
    for part, folder in (("train", "train"), ("test", "val")):
        images, paths = _frames(store, folder)
        samples[part] = [
            sample
            for position, content in tqdm(store.read(paths), f"reading {part} labels", len(paths), disable=None)
            for sample in _frame(store, images[position], paths[position], content, known, chosen)
        ]
    return Catalogue(chosen, samples)


def camvid_frames(store: Store, part: str) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Read the whole frames of CamVid with all their labels.

    Args:
        store: The data set's files.
        part: `"train"` or `"val"`.

    Yields:
        Name, image (H, W, 3) and classes (H, W) of each frame, positions in `camvid_classes`, by name.

    Raises:
        DataError: A file is missing, damaged or contradicts another.
    """
    known = camvid_classes(store)
    images, labels = _frames(store, part)
    for image, path in zip(images, labels, strict=True):
        where = store.where(image)
        pixels = np.asarray(decode_image(where, _content(store, image)).convert("RGB"))
        values = _labels_of(store, path, _content(store, path), known)
        check_same_size(store.where(path), values.shape, pixels.shape[:2])
        yield PurePosixPath(image).stem, pixels, values


def camvid_classes(store: Store) -> list[str]:
    """Return the names of CamVid's classes, in the order of the values of its label images.

    Raises:
        DataError: The list is missing or damaged.
    """
    return [label for _, [label] in _rows(store, "classes.txt", ("class",))]


def _frames(store: Store, folder: str) -> tuple[list[str], list[str]]:
    """Return the images and the label images of a part of CamVid, in the same order."""
    images, labels = _by_stem(store, f"{folder}/images"), _by_stem(store, f"{folder}/labels")
    for one, other, kind in ((images, labels, "label image"), (labels, images, "image")):
        alone = sorted(set(one) - set(other))
        if alone:
            raise DataError(
                f"{store.where(one[alone[0]])} has no {kind} of the same name in {store.where(folder)}; add it"
            )
    stems = sorted(labels)
    return [images[stem] for stem in stems], [labels[stem] for stem in stems]


def _by_stem(store: Store, folder: str) -> dict[str, str]:
    """Return the files of a folder by their name without the ending."""
    paths = store.listing(folder)[1]
    stems = {PurePosixPath(path).stem: path for path in paths}
    if not paths:
        raise DataError(f"no files in {store.where(folder)}; unpack the data set again")
    for path in paths:
        if stems[PurePosixPath(path).stem] != path:
            raise DataError(f"{store.where(path)} has a twin with another ending; remove one of them")
    return stems


def _labels_of(store: Store, path: str, content: bytes, known: Sequence[str]) -> NDArray[np.uint8]:
    """Return the classes (H, W) of a frame's pixels."""
    values = _label_image(store, path, content)
    if values.max() >= len(known):
        raise DataError(
            f"{store.where(path)} holds the value {values.max()}, but {store.where('classes.txt')} names "
            f"{len(known)} classes from 0; correct one of them"
        )
    return values


def _frame(
    store: Store, image: str, path: str, content: bytes, known: Sequence[str], chosen: Sequence[str]
) -> Iterator[Sample]:
    values = _labels_of(store, path, content, known)
    for label in chosen:
        value = known.index(label)
        numbers = _components(values == value)
        large = np.flatnonzero(np.bincount(numbers.ravel()) >= _LEAST_SHARE * values.size)
        large = large[large > 0]
        # specks can be millions: places are looked for of what is large alone
        kept = np.where(np.isin(numbers, large), np.searchsorted(large, numbers) + 1, 0)
        for number, (rows, columns) in zip(large.tolist(), ndimage.find_objects(kept), strict=True):
            outline, crop = Region(path, value, number), square_around(rows, columns, values.shape)
            yield Sample(image, label, outline, (path, values.shape), crop)


def square_around(rows: slice, columns: slice, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a square around a box, with a margin of a tenth of the longer side, moved into the image.

    Args:
        rows: Of the box.
        columns: Of the box.
        shape: Height and width of the image; its shorter side is the largest square.

    Returns:
        x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """
    longer = max(rows.stop - rows.start, columns.stop - columns.start)
    side = min(math.ceil(longer * (1 + 2 * _MARGIN)), *shape)
    y0, x0 = (
        min(max((span.start + span.stop - side) // 2, 0), length - side)
        for span, length in zip((rows, columns), shape, strict=True)
    )
    return x0, y0, x0 + side, y0 + side


# ILSVRC DET ----------------------------------------------------------------------------------------------------------


def _det(store: Store, wanted: Sequence[str] | None) -> Catalogue:
    """List the images of ILSVRC DET by the class whose boxes are largest in total, with the boxes of that class.

    `devkit/data/map_det.txt` gives synset, number n and name of each class. `ImageSets/DET/train_<n>.txt` marks an
    image by 1 where all instances of the class have boxes, by 0 where only some have, by -1 where there are none; of
    these the first are taken. `val.txt`, our test part, lists images of which all instances of all classes have boxes.
    Coordinates count from 0 and include xmax, ymax.
    """
    synsets = _by_id(store, "devkit/data/map_det.txt", ("synset", "number", "name"))
    names = {synset: name for synset, (_, [_, name]) in synsets.items()}
    chosen = _choose(store.where("devkit/data/map_det.txt"), list(names.values()), wanted)
    complete: dict[str, list[str]] = {}
    for synset, (place, [number, name]) in synsets.items():
        if name not in chosen:
            continue
        path = f"ImageSets/DET/train_{inside(place, number)}.txt"
        for line, (image, mark) in _rows(store, path, ("image", "mark")):
            if _one_of(line, "mark", mark, ("-1", "0", "1")) == "1":
                complete.setdefault(inside(line, image), []).append(synset)
    every = list(names)
    listed = {
        inside(place, image): every for place, [image, _] in _rows(store, "ImageSets/DET/val.txt", ("image", "index"))
    }
    return Catalogue(
        chosen,
        {
            part: list(_boxed_images(store, part, folder, images, names, chosen))
            for part, folder, images in (("train", "train", complete), ("test", "val", listed))
        },
    )


def _boxed_images(
    store: Store,
    part: str,
    folder: str,
    complete: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    chosen: Sequence[str],
) -> Iterator[Sample]:
    """Yield the images whose largest class is chosen and has boxes around all its instances (`complete`)."""
    images = sorted(complete)
    paths = [f"Annotations/DET/{folder}/{image}.xml" for image in images]
    for position, content in tqdm(store.read(paths), f"reading {part} boxes", len(paths), disable=None):
        path, image = paths[position], images[position]
        boxes: dict[str, list[tuple[float, float, float, float]]] = {}
        for number, (synset, (x0, y0, x1, y1)) in enumerate(parse_objects(store.where(path), content), 1):
            if synset not in names:
                raise DataError(
                    f"{store.where(path)}, object {number}: unknown class {synset!r}, which "
                    f"{store.where('devkit/data/map_det.txt')} does not list; correct one of them"
                )
            boxes.setdefault(synset, []).append((x0, y0, x1 + 1, y1 + 1))
        if not boxes:
            continue
        areas = {synset: sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in group) for synset, group in boxes.items()}
        largest = min(areas, key=lambda synset: (-areas[synset], synset))
        if names[largest] in chosen and largest in complete[image]:
            yield Sample(f"Data/DET/{folder}/{image}.JPEG", names[largest], Boxes(np.array(boxes[largest]), path))


# CUB-200-2011 --------------------------------------------------------------------------------------------------------


def _cub(store: Store, wanted: Sequence[str] | None, outlines: str) -> Catalogue:
    """List the birds of CUB-200-2011 with their masks or their boxes, by its own split into train and test.

    `images.txt`, `image_class_labels.txt`, `train_test_split.txt` (1: train) and `bounding_boxes.txt` (x, y, width,
    height) have a line for each image, `classes.txt` one for each class; the mask of `images/<class>/<stem>.jpg` is
    `segmentations/<class>/<stem>.png`.
    """
    names = {number: name for number, (_, [name]) in _by_id(store, "classes.txt", ("class", "name")).items()}
    chosen = _choose(store.where("classes.txt"), list(names.values()), wanted)
    tables = {
        path: _by_id(store, path, ("image", *fields))
        for path, fields in (
            ("image_class_labels.txt", ["class"]),
            ("train_test_split.txt", ["is_training_image"]),
            *([("bounding_boxes.txt", ["x", "y", "width", "height"])] if outlines != "masks" else []),
        )
    }
    masks = frozenset(store.listing("segmentations")[1])
    if outlines == "masks" and not masks:
        raise DataError(
            f"there are no masks in {store.where('segmentations')}; unpack segmentations.tgz there, or take the boxes "
            "as foreground (kind 'boxes')"
        )
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    for number, (place, [name]) in _by_id(store, "images.txt", ("image", "name")).items():
        for path, table in tables.items():
            if number not in table:
                raise DataError(f"{place}: image {number} has no line in {store.where(path)}; add it")
        line, [label] = tables["image_class_labels.txt"][number]
        category = names[_one_of(line, "class", label, names)]
        line, [training] = tables["train_test_split.txt"][number]
        part = "train" if _one_of(line, "is_training_image", training, ("0", "1")) == "1" else "test"
        image = f"images/{inside(place, name)}"
        if category not in chosen:
            continue
        outline: Outline
        if outlines == "masks":
            outline = Votes(PurePosixPath("segmentations", name).with_suffix(".png").as_posix())
            if outline.path not in masks:
                raise DataError(f"{place}: {name} has no mask; looked for {store.where(outline.path)}")
        else:
            outline = Boxes(_cub_box(*tables["bounding_boxes.txt"][number]), "bounding_boxes.txt")
        samples[part].append(Sample(image, category, outline))
    return Catalogue(chosen, samples)


def _cub_box(place: str, fields: Sequence[str]) -> NDArray[np.float64]:
    """Return the box (1, 4) of x, y, width and height."""
    try:
        x, y, width, height = map(float, fields)
    except ValueError:
        x = y = width = height = math.nan
    if not (math.isfinite(x + y + width + height) and width > 0 and height > 0):
        raise DataError(f"{place}: {' '.join(fields)} is no box x, y, width > 0, height > 0; correct it")
    return np.array([[x, y, x + width, y + height]])


# Pascal VOC ----------------------------------------------------------------------------------------------------------


def _voc(store: Store, wanted: Sequence[str] | None) -> Catalogue:
    """List the images of Pascal VOC's segmentation sets by the class that covers most pixels, with those pixels.

    `ImageSets/Segmentation/train.txt` and `val.txt` (our test part) name `JPEGImages/<name>.jpg` and
    `SegmentationClass/<name>.png`. An image without any object is left out.
    """
    chosen = _choose("Pascal VOC", VOC_CLASSES, wanted)
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    seen: dict[str, str] = {}
    for part, path in (("train", "ImageSets/Segmentation/train.txt"), ("test", "ImageSets/Segmentation/val.txt")):
        names = []
        for place, [name] in _rows(store, path, ("image",)):
            if name in seen:
                raise DataError(f"{place}: {name} stands already in {seen[name]}; remove one of the lines")
            seen[name] = place
            names.append(inside(place, name))
        labels = [f"SegmentationClass/{name}.png" for name in names]
        for position, content in tqdm(store.read(labels), f"reading {part} labels", len(labels), disable=None):
            values = _label_image(store, labels[position], content)
            counts = np.bincount(values.ravel(), minlength=256)
            strange = np.flatnonzero(counts[len(VOC_CLASSES) + 1 : _VOC_BORDER])
            if len(strange):
                raise DataError(
                    f"{store.where(labels[position])} holds the value {strange[0] + len(VOC_CLASSES) + 1}, but VOC has "
                    f"0..{len(VOC_CLASSES)} and {_VOC_BORDER}; fetch it again"
                )
            areas = counts[1 : len(VOC_CLASSES) + 1]
            largest = int(areas.argmax())
            if areas[largest] and VOC_CLASSES[largest] in chosen:
                outline = Region(labels[position], largest + 1)
                image = f"JPEGImages/{names[position]}.jpg"
                samples[part].append(Sample(image, VOC_CLASSES[largest], outline, (labels[position], values.shape)))
    return Catalogue(chosen, samples)
