"""Data sets: images, labels and foreground masks in memory, split once and for all by a seed.

Images stay uint8 until they are fed to a network; every split is stratified by class, and which image belongs to which
split depends on the labels and the split seed alone, never on sizes, limits or normalization.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol, cast

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nnscan.annotations import (
    Sample,
    Store,
    check_same_size,
    decode_image,
    fill_boxes,
    lies_outside,
    read_catalogue,
)
from nnscan.artifacts import create_hdf5, digest, open_hdf5
from nnscan.configuration import OWN_MASKS
from nnscan.errors import DataError, did_you_mean
from nnscan.limits import FILE_BYTES, attributes, fits, fixed_text, reading
from nnscan.places import LAYOUTS, data_places, data_root

Normalization = Literal["unit", "standard"]

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder", *LAYOUTS)
SPLITS = ("train", "validation", "test")
FOREGROUNDS = ("none", "threshold", "masks", "boxes")
NORMALIZATIONS = ("unit", "standard")

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_IDX_DIMENSIONS = 3
_CHUNK_BYTES = 2**20
# What tarfile reads are headers; those of members with long names and many attributes have some thousand bytes.
_HEADER_BYTES = 2**14
_NAME_LENGTH = 100


@dataclass(frozen=True)
class Foreground:
    """Where the foreground of each image comes from.

    Attributes:
        kind: `"none"`; `"threshold"`: pixels brighter than `threshold`; `"masks"`: the masks that the data set brings
            along (`image_folder`, `camvid`, `cub`, `voc`); `"boxes"`: the union of the image's boxes (`image_folder`,
            `det`, `cub`).
        threshold: Least brightness, exclusive: the mean over the channels, in [0, 1].
        masks: Of `image_folder`: folder below the root; the mask of `train/<class>/<stem>.jpg` is
            `<masks>/train/<class>/<stem>.png`, as large as its image, non-zero where the foreground is.
        boxes: Of `image_folder`: CSV file with the columns path (of the image, relative to the root), x0, y0, x1, y1;
            the file itself is relative to the root or absolute. Coordinates are in pixels of the original image, the
            left upper corner of the image is (0, 0) and x1, y1 are exclusive; rows of images that do not exist are
            ignored.
    """

    kind: str = "none"
    threshold: float = 0.2
    masks: str = "masks"
    boxes: str = "boxes.csv"


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split.

    Attributes:
        images: uint8 (N, C, H, W), grey levels 0..255.
        labels: int64 (N,), positions in the data set's `classes`.
        foreground: bool (N, H, W), or None where the data set has no masks.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    foreground: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its three splits.

    Attributes:
        name: The data set's name, one of `DATASETS` or the user's own.
        classes: Class names; a label is a position in it.
        splits: `"train"`, `"validation"` and `"test"`.
        mean: float32 (C,), mean of the train split's channels in [0, 1] units.
        std: float32 (C,), standard deviation of the train split's channels in [0, 1] units.
        normalization: What a network is fed with: `"unit"` pixel / 255, `"standard"` (pixel / 255 - mean) / std.
        digest: Digest of images, labels, masks, classes and normalization.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    normalization: Normalization
    digest: str

    def inputs(self, split: str, indices: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return images as they are fed to the network.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
            indices: Positions in the split, (N,); all when None.

        Returns:
            float32 (N, C, H, W), in [0, 1] or standardized by channel.

        Raises:
            DataError: The data set has no such split.
        """
        if split not in self.splits:
            raise DataError(f"data set {self.name!r} has no split {split!r}{did_you_mean(split, self.splits)}")
        images = self.splits[split].images
        values = (images if indices is None else images[indices]).astype(np.float32)
        values /= 255
        if self.normalization == "standard":
            values -= self.mean[:, None, None]
            values /= self.std[:, None, None]
        return values

    @property
    def box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The smallest and the largest value of each channel (C,) that an image can have, as fed to the network."""
        black, white = np.zeros_like(self.mean), np.ones_like(self.mean)
        if self.normalization == "standard":
            black, white = ((end - self.mean) / self.std for end in (black, white))
        return tuple(map(float, black)), tuple(map(float, white))

    def display(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return network inputs as images that can be shown: the inverse of `inputs`, clipped to [0, 1].

        Args:
            inputs: float32 (N, C, H, W) or (C, H, W), as fed to the network.
        """
        values = inputs
        if self.normalization == "standard":
            values = inputs * self.std[:, None, None] + self.mean[:, None, None]
        return np.clip(values, 0, 1).astype(np.float32)


def stratified_sample(labels: NDArray[np.integer], count: int, seed: int) -> NDArray[np.int64]:
    """Draw samples as evenly over the classes as the class sizes permit.

    Class counts differ by at most one, except for classes that are used up. With one seed a smaller sample is part
    of every larger one.

    Args:
        labels: (N,) class of each sample.
        count: How many to draw, 1..N.
        seed: Seed of the draw.

    Returns:
        Sorted positions, int64 (count,).

    Raises:
        DataError: `count` is not between 1 and N.
    """
    if not 1 <= count <= len(labels):
        raise DataError(f"asked for {count} samples of {len(labels)}; ask for 1 to {len(labels)}")
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    turns = generator.permutation(len(members))
    # Everybody's first sample, then everybody's second, ...: `turns` settles which class comes first in each round.
    rounds = np.concatenate([np.arange(len(group)) for group in members])
    order = np.lexsort((np.repeat(turns, [len(group) for group in members]), rounds))
    return np.sort(np.concatenate(members)[order[:count]]).astype(np.int64)


def build_dataset(
    name: str, classes: Sequence[str], splits: Mapping[str, Split], normalization: Normalization = "unit"
) -> Dataset:
    """Return a data set of the given splits, with its statistics and its digest.

    Args:
        name: Name for files and messages.
        classes: Class names in the order of the labels.
        splits: `"train"`, `"validation"` and `"test"`.
        normalization: `"unit"` or `"standard"`.

    Raises:
        DataError: A split is missing, empty or does not fit the others, the normalization is unknown, or a channel
            that shall be standardized is constant.
    """
    if normalization not in NORMALIZATIONS:
        raise DataError(f"unknown normalization {normalization!r}{did_you_mean(normalization, NORMALIZATIONS)}")
    _check_names(name, classes)
    if set(splits) != set(SPLITS):
        raise DataError(f"data set {name!r} needs the splits {', '.join(SPLITS)}; given: {', '.join(splits) or 'none'}")
    parts = {split: splits[split] for split in SPLITS}
    for split, part in parts.items():
        _check_split(f"split {split!r} of data set {name!r}", part, parts["train"], len(classes))
    mean, std = _channel_statistics(parts["train"].images)
    if normalization == "standard" and not std.all():
        constant = int(np.flatnonzero(std == 0)[0])
        raise DataError(
            f"channel {constant} of data set {name!r} is constant ({mean[constant]:g}) in the train split and cannot "
            "be standardized; use the normalization 'unit' or drop the channel"
        )
    contents: list[object] = [list(classes), normalization]
    for split, part in parts.items():
        contents += [split, part.images, part.labels, part.foreground]
    return Dataset(name, tuple(classes), parts, mean, std, normalization, digest(*contents))


def _check_names(name: str, classes: Sequence[str]) -> None:
    """Raise a DataError unless the class names, which stand in figures, pages, tables and logs, can be shown."""
    for label in classes:
        if not (label.isprintable() and 1 <= len(label) <= _NAME_LENGTH):
            raise DataError(
                f"data set {name!r} has a class {label[:_NAME_LENGTH]!r}, whose name is empty, has more than "
                f"{_NAME_LENGTH} characters or some that cannot be shown; rename it"
            )


def _check_split(name: str, split: Split, train: Split, class_count: int) -> None:
    images, labels, foreground = split.images, split.labels, split.foreground
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != train.images.shape[1:] or not len(images):
        raise DataError(
            f"{name} has images {images.dtype} {images.shape}; it needs at least one, uint8 (N, C, H, W) of the train "
            f"split's shape {train.images.shape[1:]}"
        )
    if labels.dtype != np.int64 or labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= class_count:
        raise DataError(
            f"{name} has labels {labels.dtype} {labels.shape}; it needs {len(images)} int64 labels in "
            f"0..{class_count - 1}, one for each image"
        )
    if (foreground is None) != (train.foreground is None):
        raise DataError(f"{name} and the train split must both have foreground masks, or neither")
    if foreground is not None:
        shape = (len(images), *images.shape[2:])
        if foreground.dtype != np.bool_ or foreground.shape != shape:
            raise DataError(f"{name} has a foreground {foreground.dtype} {foreground.shape}; it needs bool {shape}")


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each channel in [0, 1] units; exact, from the channel's histogram."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # One block of images at a time: bincount turns its argument into int64.
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):
            counts += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
        mean = np.average(levels, weights=counts)
        means.append(mean)
        # A single level is constant by definition; rounding of the mean must not hide it.
        stds.append(np.sqrt(np.average((levels - mean) ** 2, weights=counts)) if np.count_nonzero(counts) > 1 else 0.0)
    return np.array(means, np.float32), np.array(stds, np.float32)


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
    channels: int | None = None,
    split_seed: int = 0,
    validation_fraction: float | None = None,
    test_fraction: float = 0.2,
    normalization: Normalization = "unit",
    foreground: Foreground | None = None,
    classes: Sequence[str] | None = None,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    test_limit: int | None = None,
) -> Dataset:
    """Load a data set and split it.

    A data set with a test part of its own keeps it, and the validation split is a stratified part of its train part;
    `digits` has none, and both are stratified parts of the whole.

    The annotated data sets are read where their archives were unpacked: `"camvid"`, square crops of its objects;
    `"det"` (ILSVRC), `"cub"` (CUB-200-2011) and `"voc"` (Pascal VOC's segmentation sets), whole images of the class
    that covers the largest area; `nnscan.annotations` tells the details. The labelled validation part of `camvid`,
    `det` and `voc` is our test part.

    Args:
        name: One of `DATASETS`: `"digits"` (bundled with scikit-learn), `"mnist"`, `"fashion_mnist"`, `"cifar10"`,
            `"cifar100"`, `"image_folder"` for `<root>/train/<class>/*` and `<root>/test/<class>/*`, or one of the
            annotated data sets.
        root: Folder of the data, for `image_folder` also a `.tar.gz` archive; the environment variable NNSCAN_DATA
            when None, and `data` when that is not set either.
        download: Whether torchvision may download what is missing into `root`.
        size: Height and width in pixels, by bilinear resizing. None: 32 for digits, MNIST and Fashion-MNIST, else as
            the images are.
        channels: 1 (grey) or 3 (RGB). None: 3 for `image_folder` and the annotated data sets, else as the images are.
        split_seed: Fixes which image belongs to which split, and which images the limits take.
        validation_fraction: Fraction of the train part, 0.1 when None; for digits of the whole, 0.2 when None.
        test_fraction: Fraction of the whole; only for a data set without a test part (digits).
        normalization: `"unit"` (inputs in [0, 1]) or `"standard"` (by mean and deviation of the train split).
        foreground: Where the foreground masks come from; none when None.
        classes: Of an annotated data set, the classes to take, in the order of the labels. None: of CamVid
            `annotations.CAMVID_CLASSES`, of the others all; of these, the ones that both parts have images of.
        train_limit: Keep so many images of the train split, evenly over the classes; all when None.
        validation_limit: The same for the validation split.
        test_limit: The same for the test split.

    Raises:
        DataError: The data are missing, damaged or inconsistent, or an argument does not fit; the text says where
            it was looked for and what to do.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}{did_you_mean(name, DATASETS)}")
    if size is not None and size < 1:
        raise DataError(f"size is the height and width in pixels and must be at least 1, not {size}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), not {channels}")
    foreground = Foreground() if foreground is None else foreground
    _check_foreground(foreground, name)
    if classes is not None and name not in LAYOUTS:
        raise DataError(f"classes can be chosen of {', '.join(LAYOUTS)}, not of {name!r}, which is taken as a whole")
    source = _open_source(name, root, download, size, channels, foreground, classes)
    _check_names(name, source.classes)
    chosen = _assign_splits(source, split_seed, validation_fraction, test_fraction)
    limits = {"train": train_limit, "validation": validation_limit, "test": test_limit}
    splits = {}
    for split in SPLITS:
        part, indices = chosen[split]
        labels = source.labels[part][indices]
        limit = limits[split]
        if limit is not None:
            if not 1 <= limit <= len(indices):
                raise DataError(
                    f"{split}_limit is {limit}, but the {split} split of {name!r} has {len(indices)} images; "
                    f"take 1 to {len(indices)}, or none for all"
                )
            kept = stratified_sample(labels, limit, split_seed)
            indices, labels = indices[kept], labels[kept]
        images, masks = source.read(part, indices)
        if foreground.kind == "threshold":
            masks = images.mean(axis=1, dtype=np.float32) / 255 > foreground.threshold
        splits[split] = Split(images, labels, masks)
    return build_dataset(name, source.classes, splits, normalization)


def _check_foreground(foreground: Foreground, name: str) -> None:
    if foreground.kind not in FOREGROUNDS:
        raise DataError(f"unknown kind of foreground {foreground.kind!r}{did_you_mean(foreground.kind, FOREGROUNDS)}")
    if foreground.kind == "threshold" and not 0 <= foreground.threshold < 1:
        raise DataError(f"the foreground's threshold is a brightness in [0, 1), not {foreground.threshold}")
    if foreground.kind in ("masks", "boxes") and foreground.kind not in OWN_MASKS.get(name, ()):
        possible = ("none", "threshold", *OWN_MASKS.get(name, ()))
        raise DataError(f"{name!r} has no {foreground.kind}; its foreground can be {', '.join(possible)}")


@dataclass(frozen=True)
class _Source:
    """A data set before it is split: labels are known at once, images are read when it is clear which are needed.

    `labels` has the parts "train" and "test", or the single part "whole"; `read(part, indices)` returns the images
    uint8 (n, C, H, W) and their masks bool (n, H, W) or None.
    """

    name: str
    classes: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    read: Callable[[str, NDArray[np.int64]], tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]


def _open_source(
    name: str,
    root: str | Path | None,
    download: bool,
    size: int | None,
    channels: int | None,
    foreground: Foreground,
    classes: Sequence[str] | None,
) -> _Source:
    folder = data_root(root)
    if name == "image_folder":
        return _image_folder(folder, size, channels or 3, foreground)
    if name in LAYOUTS:
        return _annotated(name, folder, size, channels or 3, foreground.kind, classes)
    if name == "digits":
        names, parts = _digits()
    elif name in ("mnist", "fashion_mnist"):
        names, parts = _idx_parts(name, folder, download)
    else:
        names, parts = _cifar_parts(name, folder, download)
    size = 32 if size is None else size
    return _Source(
        name,
        names,
        {part: labels for part, (_, labels) in parts.items()},
        lambda part, indices: (_resize(parts[part][0][indices], size, channels), None),
    )


def _assign_splits(
    source: _Source, seed: int, validation_fraction: float | None, test_fraction: float
) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Return for each split the part that it comes from and the sorted positions in that part."""
    if "whole" in source.labels:
        fractions = {"test": test_fraction, "validation": 0.2 if validation_fraction is None else validation_fraction}
        part = "whole"
    else:
        fractions = {"validation": 0.1 if validation_fraction is None else validation_fraction}
        part = "train"
    for split, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise DataError(f"{split}_fraction must lie between 0 and 1, not {fraction}")
    cut = {split: (part, indices) for split, indices in _stratified_cut(source, part, fractions, seed).items()}
    return cut if "test" in cut else {**cut, "test": ("test", np.arange(len(source.labels["test"])))}


def _stratified_cut(
    source: _Source, part: str, fractions: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Cut the fractions off each class, at least one image each; what is left is the train split."""
    labels = source.labels[part]
    generator = np.random.default_rng(seed)
    pieces: dict[str, list[NDArray[np.int64]]] = {split: [] for split in (*fractions, "train")}
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        counts = [max(1, int(fraction * len(members) + 0.5)) for fraction in fractions.values()]
        if sum(counts) >= len(members):
            raise DataError(
                f"class {source.classes[label]!r} of {source.name!r} has {len(members)} image(s) to split, of which "
                f"{' and '.join(f'{split} would take {n}' for split, n in zip(fractions, counts, strict=True))} and "
                "train nothing; add images or lower the fractions"
            )
        for piece, indices in zip(pieces.values(), np.split(members, np.cumsum(counts)), strict=True):
            piece.append(indices)
    return {split: np.sort(np.concatenate(piece)) for split, piece in pieces.items()}


# Images in arrays ----------------------------------------------------------------------------------------------------

_Parts = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def _resize(images: NDArray[np.uint8], size: int, channels: int | None) -> NDArray[np.uint8]:
    """Return images (N, C, H, W) with the given height, width and number of channels."""
    channels = channels or images.shape[1]
    shape = (channels, size, size)
    if images.shape[1:] == shape:
        return images
    resized = np.empty((len(images), *shape), np.uint8)
    for index, pixels in enumerate(images):
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        resized[index] = _pixels(image, channels, (size, size))
    return resized


def _pixels(image: Image.Image, channels: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image as uint8 (C, H, W), resized bilinearly to `shape` (H, W)."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != shape[::-1]:
        image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*shape, channels).transpose(2, 0, 1)


def _digits() -> tuple[tuple[str, ...], _Parts]:
    """Return scikit-learn's 1,797 handwritten digits, 8x8, with the levels 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return tuple(str(digit) for digit in range(10)), {"whole": (images, bunch.target.astype(np.int64))}


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, the format of MNIST, plain or packed with gzip.

    Two zero bytes, a byte for the type (8: unsigned byte), a byte for the number of dimensions, the dimensions as
    big-endian 32-bit integers, then the values in C order.

    Raises:
        DataError: The file is damaged or holds something else.
    """
    try:
        with gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb") as stream:
            start = stream.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08":
                raise DataError(f"{path} is no IDX file of unsigned bytes (it begins with {start!r}); fetch it again")
            header = stream.read(4 * start[3])
            if len(header) < 4 * start[3]:
                raise DataError(f"{path} ends within its header of {4 + 4 * start[3]} bytes; fetch it again")
            shape = struct.unpack(f">{start[3]}I", header)
            expected = math.prod(shape)
            if len(shape) > _IDX_DIMENSIONS or not fits(expected, Path(path).stat().st_size):
                raise DataError(f"{path} claims values of shape {shape}, which it is too small for; fetch it again")
            content = stream.read(expected)
            found = len(content) + sum(map(len, iter(lambda: stream.read(_CHUNK_BYTES), b"")))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}); fetch the file again") from error
    if found != expected or not expected:
        raise DataError(f"{path} should hold {expected} values {shape} but holds {found}; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_parts(name: str, root: Path, download: bool) -> tuple[tuple[str, ...], _Parts]:
    title, classes = {
        "mnist": ("MNIST", tuple(str(digit) for digit in range(10))),
        "fashion_mnist": ("FashionMNIST", _FASHION_CLASSES),
    }[name]
    folders = data_places(name, root)
    files = _find_idx_files(folders)
    if files is None and download:
        _torchvision(title, root, download=True)
        files = _find_idx_files(folders)
    if files is None:
        names = ", ".join(file for pair in _IDX_FILES.values() for file in pair)
        raise DataError(
            f"{name} not found: looked for {names} (each plain or .gz) in {' and '.join(map(str, folders))}. "
            f"Set download: true, or let root or NNSCAN_DATA name the folder that holds {title}/raw"
        )
    parts: _Parts = {}
    for part, (image_file, label_file) in files.items():
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(f"{image_file} has shape {images.shape} but {label_file} {labels.shape}; fetch both again")
        if not len(labels) or labels.max() >= len(classes):
            raise DataError(f"{label_file} holds no labels or labels beyond {len(classes) - 1}; fetch it again")
        parts[part] = (images[:, None], labels.astype(np.int64))
    return classes, parts


def _find_idx_files(folders: Iterable[Path]) -> dict[str, tuple[Path, Path]] | None:
    """Return the image and the label file of each part, all from the first folder that has the four."""
    for folder in folders:
        found = {}
        for part, pair in _IDX_FILES.items():
            paths = [path for file in pair for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
            by_name = {path.name.removesuffix(".gz"): path for path in paths}
            if len(by_name) == len(pair):
                found[part] = (by_name[pair[0]], by_name[pair[1]])
        if len(found) == len(_IDX_FILES):
            return found
    return None


def _cifar_parts(name: str, root: Path, download: bool) -> tuple[tuple[str, ...], _Parts]:
    parts: _Parts = {}
    for part in ("train", "test"):
        dataset = _torchvision(name.upper(), root, train=part == "train", download=download)
        images = np.asarray(dataset.data, np.uint8).transpose(0, 3, 1, 2)
        parts[part] = (images, np.asarray(dataset.targets, np.int64))
    return tuple(dataset.classes), parts


class _TorchvisionSet(Protocol):
    data: NDArray[np.uint8]
    targets: list[int]
    classes: list[str]


def _torchvision(title: str, root: Path, *, download: bool, train: bool = True) -> _TorchvisionSet:
    """Return a data set of torchvision, checked by torchvision against its published checksums."""
    from torchvision import datasets

    try:
        return cast(_TorchvisionSet, getattr(datasets, title)(root=str(root), train=train, download=download))
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(
                f"cannot download {title} into {root}: {error}. Check the network, or copy the data there"
            ) from error
        raise DataError(
            f"{title} not found or damaged: looked in {root} for the files that torchvision keeps there ({error}). "
            "Set download: true, or let root or NNSCAN_DATA name the folder that holds them"
        ) from error


# Images in folders and archives --------------------------------------------------------------------------------------


def _visible(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if not any(name.startswith(".") for name in PurePosixPath(path).parts))


class FolderStore:
    """The files of a folder; see `annotations.Store`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def listing(self, top: str) -> tuple[list[str], list[str]]:
        """Return the folders and files below a folder; see `annotations.Store`."""
        folders, files = [], []
        seen = set()
        for folder, below, names in os.walk(self._root / top, followlinks=True):
            place = os.stat(folder)
            if (place.st_dev, place.st_ino) in seen:
                raise DataError(f"{folder} was listed before; remove the link that leads there a second time")
            seen.add((place.st_dev, place.st_ino))
            relative = Path(folder).relative_to(self._root)
            folders += [(relative / name).as_posix() for name in below]
            files += [(relative / name).as_posix() for name in names]
        return _visible(folders), _visible(files)

    def read(self, paths: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the files' contents in the order of the paths; see `annotations.Store`."""
        for position, path in enumerate(paths):
            try:
                place = os.stat(self._root / path)
                _check_member(self.where(path), stat.S_ISREG(place.st_mode), place.st_size)
                with open(self._root / path, "rb") as stream:
                    content = stream.read(place.st_size)
            except (OSError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"cannot read {self.where(path)}: {reason}; add it or correct what names it") from error
            yield position, content

    def where(self, path: str) -> str:
        """Return the file's path."""
        return str(self._root / path)


def _check_member(where: str, plain: bool, size: int) -> None:
    """Raise a DataError unless a file of a data set is a plain one that may be read whole."""
    if not plain or size > FILE_BYTES:
        what = f"has {size} bytes, more than {FILE_BYTES}" if plain else "is no plain file"
        raise DataError(f"{where} {what}; remove it")


class _Headers:
    """A stream in which tarfile cannot read more at once than headers have, whatever they claim."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)


def archive_members(root: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a `.tar.gz` archive; nothing is unpacked, no name is used as a path.

    Raises:
        DataError: The archive is damaged, its checksum is wrong, or a member claims a place or size that cannot be.
    """
    end = -1
    try:
        with gzip.open(root) as stream, tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as archive:
            for member in archive:
                if member.size < 0 or member.offset <= end or member.issparse():
                    raise tarfile.ReadError(f"{member.name} has a size that cannot be")
                end = member.offset
                cast(Any, archive).members.clear()  # tarfile would keep them all
                yield member
            # The checksum stands at the very end, behind the padding that the tar reader leaves unread.
            while stream.read(_CHUNK_BYTES):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise DataError(f"{root} is no complete .tar.gz archive ({error}); fetch or pack it again") from error


class _ArchiveStore:
    """A tar file packed with gzip, whose checksum is tested once; read straight through from the front."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._places: dict[str, tuple[int, int]] = {}
        folders: set[str] = set()
        for member in archive_members(root):
            path = PurePosixPath(member.name)
            folders.update(parent.as_posix() for parent in path.parents)
            if member.isfile():
                self._places[path.as_posix()] = (member.offset_data, member.size)
            elif member.isdir():
                folders.add(path.as_posix())
            else:
                raise DataError(
                    f"{self.where(path.as_posix())} is a link or a device, not a file; unpack the archive and name its "
                    "folder as root"
                )
        self._folders = _visible(folders - {"."})
        self._files = _visible(self._places)

    def listing(self, top: str) -> tuple[list[str], list[str]]:
        start = f"{top}/"
        return (
            [path for path in self._folders if path.startswith(start)],
            [path for path in self._files if path.startswith(start)],
        )

    def read(self, paths: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        missing = [path for path in paths if path not in self._places]
        if missing:
            raise DataError(f"cannot read {self.where(missing[0])}: no such file in the archive")
        with gzip.open(self._root) as stream:
            for position in sorted(range(len(paths)), key=lambda position: self._places[paths[position]][0]):
                offset, size = self._places[paths[position]]
                _check_member(self.where(paths[position]), True, size)
                stream.seek(offset)
                yield position, stream.read(size)

    def where(self, path: str) -> str:
        return f"{self._root}:{path}"


def _image_folder(root: Path, size: int | None, channels: int, foreground: Foreground) -> _Source:
    store: Store
    if root.is_dir():
        store = FolderStore(root)
    elif root.is_file() and root.name.endswith((".tar.gz", ".tgz")):
        store = _ArchiveStore(root)
    else:
        found = "which is neither a folder nor a .tar.gz archive" if root.exists() else "which does not exist"
        raise DataError(
            f"image_folder not found: looked for {root}, {found}. Let root or NNSCAN_DATA name a folder or an archive "
            "with train/<class>/* and test/<class>/*"
        )
    by_class = {part: _class_files(store, part) for part in ("train", "test")}
    _check_classes(store, by_class)
    classes = tuple(by_class["train"])
    paths = {part: [path for files in groups.values() for path in files] for part, groups in by_class.items()}
    labels = {
        part: np.repeat(np.arange(len(classes)), [len(files) for files in groups.values()])
        for part, groups in by_class.items()
    }
    if size is None:
        [(_, content)] = store.read(paths["train"][:1])
        first = _decode(store.where(paths["train"][0]), content).size
        shape, resize = (first[1], first[0]), False
    else:
        shape, resize = (size, size), True
    reader = _ImageReader(store, channels, shape, resize, _mask_maker(root, store, foreground, shape))
    return _Source(
        "image_folder", classes, labels, lambda part, indices: reader.read(part, [paths[part][i] for i in indices])
    )


def _class_files(store: Store, part: str) -> dict[str, list[str]]:
    """Return the image files of each class folder of a part, both sorted by name."""
    folders, files = store.listing(part)
    groups: dict[str, list[str]] = {folder.split("/")[1]: [] for folder in folders if folder.count("/") == 1}
    if not groups:
        raise DataError(
            f"no class folders in {store.where(part)}; image_folder needs train/<class>/* and test/<class>/* there"
        )
    for path in files:
        if path.count("/") != 2:
            raise DataError(f"{store.where(path)} is not in a class folder; move it to {part}/<class>/ or away")
        groups[path.split("/")[1]].append(path)
    return groups


def _check_classes(store: Store, by_class: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    only = {
        part: [name for name in by_class[part] if name not in by_class[other]]
        for part, other in (("train", "test"), ("test", "train"))
    }
    if any(only.values()):
        differences = "; ".join(f"only in {part}: {', '.join(names)}" for part, names in only.items() if names)
        raise DataError(f"the class folders of {store.where('train')} and {store.where('test')} differ: {differences}")
    for part, groups in by_class.items():
        empty = [name for name, files in groups.items() if not files]
        if empty:
            raise DataError(
                f"no images in {', '.join(store.where(f'{part}/{name}') for name in empty)}; add some, or remove the "
                "class from train and test"
            )


def _decode(where: str, content: bytes) -> Image.Image:
    """Return a decoded image of 8 bits a channel."""
    image = decode_image(where, content)
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's conversion to 8 bits clips such images instead of scaling them.
        raise DataError(f"{where} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    return image


def _check_shape(where: str, image: Image.Image, shape: tuple[int, int]) -> None:
    if (image.height, image.width) != shape:
        raise DataError(
            f"{where} is {image.width}x{image.height} pixels but the first image is {shape[1]}x{shape[0]}; set size to "
            "resize all images"
        )


_MaskMaker = Callable[[Sequence[str], Sequence[tuple[int, int]]], NDArray[np.bool_]]


@dataclass(frozen=True)
class _ImageReader:
    """Decodes image files into one array that is allocated beforehand."""

    store: Store
    channels: int
    shape: tuple[int, int]
    resize: bool
    masks: _MaskMaker | None

    def read(self, part: str, paths: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        images = np.empty((len(paths), self.channels, *self.shape), np.uint8)
        originals = [self.shape] * len(paths)
        progress = tqdm(self.store.read(paths), desc=f"reading {part} images", total=len(paths), disable=None)
        for position, content in progress:
            where = self.store.where(paths[position])
            image = _decode(where, content)
            originals[position] = (image.height, image.width)
            if not self.resize:
                _check_shape(where, image, self.shape)
            images[position] = _pixels(image, self.channels, self.shape)
        return images, None if self.masks is None else self.masks(paths, originals)


def _mask_maker(root: Path, store: Store, foreground: Foreground, shape: tuple[int, int]) -> _MaskMaker | None:
    """Return the function that makes the masks bool (n, H, W) of images, given their paths and original shapes."""
    if foreground.kind == "masks":
        return partial(_read_masks, store, foreground.masks, frozenset(store.listing(foreground.masks)[1]), shape)
    if foreground.kind == "boxes":
        return partial(_draw_boxes, store, _read_boxes(store, foreground.boxes), shape)
    return None


def _read_masks(
    store: Store,
    folder: str,
    existing: frozenset[str],
    shape: tuple[int, int],
    paths: Sequence[str],
    originals: Sequence[tuple[int, int]],
) -> NDArray[np.bool_]:
    mask_paths = [(PurePosixPath(folder) / path).with_suffix(".png").as_posix() for path in paths]
    for path, mask_path in zip(paths, mask_paths, strict=True):
        if mask_path not in existing:
            raise DataError(f"{store.where(path)} has no mask: looked for {store.where(mask_path)}")
    masks = np.empty((len(paths), *shape), np.bool_)
    for position, content in tqdm(store.read(mask_paths), desc="reading masks", total=len(paths), disable=None):
        where = store.where(mask_paths[position])
        image = decode_image(where, content)
        if "A" in image.getbands():
            raise DataError(f"{where} has an alpha channel, so it is unclear what is non-zero; save it without one")
        check_same_size(where, (image.height, image.width), originals[position])
        values = np.asarray(image)
        mask = values.any(axis=2) if values.ndim == 3 else values != 0
        masks[position] = np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST))
    return masks


def _read_boxes(store: Store, path: str) -> dict[str, NDArray[np.float64]]:
    """Return the boxes (n, 4) as x0, y0, x1, y1 of each image in a CSV file."""
    if Path(path).is_absolute():
        store, path = FolderStore(Path(path).parent), Path(path).name
    [(_, content)] = store.read([path])
    where = store.where(path)
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, index_col=False)
    except ValueError as error:
        raise DataError(f"{where} is no CSV file ({error})") from error
    corners = ["x0", "y0", "x1", "y1"]
    missing = [column for column in ("path", *corners) if column not in table.columns]
    if missing:
        raise DataError(
            f"{where} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)} and needs path, "
            "x0, y0, x1, y1"
        )
    values = table[corners].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    proper = np.isfinite(values).all(axis=1) & (values[:, :2] < values[:, 2:]).all(axis=1) & table["path"].notna()
    if not proper.all():
        bad = int(np.flatnonzero(~proper)[0])
        raise DataError(
            f"{where}, row {bad + 1} after the header: {', '.join(map(str, table.loc[bad, ['path', *corners]]))} is no "
            "box; it needs a path and numbers x0 < x1, y0 < y1"
        )
    names = table["path"].map(lambda name: PurePosixPath(name).as_posix())
    return {str(name): values[rows] for name, rows in names.groupby(names).indices.items()}


def _draw_boxes(
    store: Store,
    boxes: Mapping[str, NDArray[np.float64]],
    shape: tuple[int, int],
    paths: Sequence[str],
    originals: Sequence[tuple[int, int]],
) -> NDArray[np.bool_]:
    masks = np.empty((len(paths), *shape), np.bool_)
    for position, (path, original) in enumerate(zip(paths, originals, strict=True)):
        if path not in boxes:
            raise DataError(f"{store.where(path)} has no box in the boxes file; add a row with the path {path}")
        if lies_outside(boxes[path], original):
            raise DataError(
                f"{store.where(path)} is {original[1]}x{original[0]} pixels and has a box outside; correct its boxes"
            )
        masks[position] = fill_boxes(boxes[path], original, shape)
        if not masks[position].any():
            raise DataError(
                f"the boxes of {store.where(path)} cover no pixel once the image is {shape[1]}x{shape[0]}; use a "
                "larger size or leave the image out"
            )
    return masks


# Annotated data sets -------------------------------------------------------------------------------------------------


def _annotated(
    name: str, root: Path, size: int | None, channels: int, foreground: str, classes: Sequence[str] | None
) -> _Source:
    folder, sign = LAYOUTS[name]
    places = data_places(name, root)
    if not places:
        raise DataError(
            f"{name} not found: looked for {sign} in {root / folder} and {root}. Let root or NNSCAN_DATA name the "
            f"folder that holds {folder}, unpacked"
        )
    store = FolderStore(places[0])
    catalogue = read_catalogue(name, store, classes, foreground)
    positions = {label: position for position, label in enumerate(catalogue.classes)}
    labels = {
        part: np.array([positions[sample.category] for sample in samples], np.int64)
        for part, samples in catalogue.samples.items()
    }
    if size is None:
        first = catalogue.samples["train"][0]
        [(_, content)] = store.read([first.image])
        _, (left, top, right, bottom) = _open_sample(store, first, content)
        shape, resize = (bottom - top, right - left), False
    else:
        shape, resize = (size, size), True
    reader = _SampleReader(store, channels, shape, resize, foreground in ("masks", "boxes"))
    return _Source(
        name,
        catalogue.classes,
        labels,
        lambda part, indices: reader.read(part, [catalogue.samples[part][i] for i in indices]),
    )


def _open_sample(store: Store, sample: Sample, content: bytes) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Return a decoded image and the part of it, (left, top, right, bottom), that is the sample."""
    image = _decode(store.where(sample.image), content)
    if sample.labels is not None:
        path, size = sample.labels
        check_same_size(store.where(path), size, (image.height, image.width))
    return image, sample.crop or (0, 0, image.width, image.height)


@dataclass(frozen=True)
class _SampleReader:
    """Decodes the samples of an annotated data set into arrays that are allocated beforehand."""

    store: Store
    channels: int
    shape: tuple[int, int]
    resize: bool
    masked: bool

    def read(self, part: str, samples: Sequence[Sample]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        images = np.empty((len(samples), self.channels, *self.shape), np.uint8)
        masks = np.empty((len(samples), *self.shape), np.bool_) if self.masked else None
        contents = self.store.read([sample.image for sample in samples])
        for position, content in tqdm(contents, desc=f"reading {part} images", total=len(samples), disable=None):
            sample = samples[position]
            where = self.store.where(sample.image)
            whole, crop = _open_sample(self.store, sample, content)
            image = whole.crop(crop)
            if not self.resize:
                _check_shape(where, image, self.shape)
            images[position] = _pixels(image, self.channels, self.shape)
            if masks is not None:
                left, top, right, bottom = crop
                mask = sample.outline.mask(self.store, (whole.height, whole.width))[top:bottom, left:right]
                if not mask.any():
                    raise DataError(f"the {sample.category} of {where} covers no pixel; correct its annotation")
                masks[position] = _shrink(mask, self.shape)
        return images, masks


def _shrink(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask that is not empty in another size, by the nearest pixel.

    A small object can lie between the pixels that are asked; then the one that it covers most of is left.
    """
    nearest = np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST))
    if nearest.any():
        return nearest
    cover = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(shape[::-1], Image.Resampling.BOX))
    kept = np.zeros(shape, np.bool_)
    kept.flat[cover.argmax()] = True
    return kept


# Files between the stages --------------------------------------------------------------------------------------------


def write_dataset(path: str | Path, dataset: Dataset, origin: Mapping[str, str]) -> None:
    """Write a data set to one HDF5 file.

    Each split is a group with `images`, `labels` and, where there are masks, `foreground`, chunked by rows; the group
    `description` holds the rest. The same data set and origin give the same bytes.

    Args:
        path: The file; it appears complete or not at all.
        dataset: What to write.
        origin: Provenance, stored as attributes of the file.
    """
    with create_hdf5(path, "dataset", origin) as file:
        description = file.create_group("description")
        for name in ("name", "normalization", "digest"):
            description.attrs[name] = fixed_text(getattr(dataset, name))
        description["classes"] = fixed_text(dataset.classes)
        for statistic, values in (("mean", dataset.mean), ("std", dataset.std)):
            array = description.create_dataset(statistic, data=values)
            array.attrs.update(units="1 (grey level / 255)", dimensions="channel")
        for split in SPLITS:
            part, group = dataset.splits[split], file.create_group(split)
            _write_rows(group, "images", part.images, "grey level 0..255", "sample, channel, row, column")
            _write_rows(group, "labels", part.labels, "position in classes", "sample")
            if part.foreground is not None:
                _write_rows(group, "foreground", part.foreground, "true in the foreground", "sample, row, column")


def _write_rows(group: h5py.Group, name: str, values: NDArray[Any], units: str, dimensions: str) -> None:
    rows = min(len(values), max(1, _CHUNK_BYTES // values[0].nbytes))
    array = group.create_dataset(
        name, data=values, chunks=(rows, *values.shape[1:]), compression="gzip", compression_opts=1
    )
    array.attrs.update(units=units, dimensions=dimensions)


def read_dataset(path: str | Path) -> Dataset:
    """Read a data set written by `write_dataset`.

    Raises:
        ArtifactError: The file is missing, of another kind or damaged (its contents do not give its digest).
    """
    with open_hdf5(path, "dataset") as file, reading(path):
        description = file["description"]
        splits = {
            split: Split(
                file[split]["images"][:],
                file[split]["labels"][:],
                file[split]["foreground"][:] if "foreground" in file[split] else None,
            )
            for split in SPLITS
        }
        entries = attributes(description)
        dataset = build_dataset(
            entries["name"],
            [str(name) for name in description["classes"].asstr()[:]],
            splits,
            cast(Normalization, entries["normalization"]),
        )
        if dataset.digest != entries["digest"]:
            raise DataError(f"its digest is {dataset.digest}, not {entries['digest']}")
    return dataset
