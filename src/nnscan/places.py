"""Where the files of a data set lie, before they are read."""

from __future__ import annotations

import os
from pathlib import Path

from nnscan.artifacts import digest

IDX_FOLDERS = {"mnist": ("MNIST/raw", "raw"), "fashion_mnist": ("FashionMNIST/raw",)}
"""Where the IDX files of a source lie below its root; the first folder that has them is taken."""

LAYOUTS = {
    "camvid": ("camvid", "classes.txt"),
    "det": ("ILSVRC", "ImageSets/DET/val.txt"),
    "cub": ("CUB_200_2011", "images.txt"),
    "voc": ("VOCdevkit/VOC2012", "ImageSets/Segmentation/train.txt"),
}
"""The annotated data sets: the folder that their archives unpack to, and a file by which it is known."""

_TORCHVISION_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


FETCHED = (*IDX_FOLDERS, *_TORCHVISION_FOLDERS)
"""The sources that torchvision can fetch."""


def data_root(root: str | Path | None) -> Path:
    """Return the folder of the data: the given one, else the environment variable NNSCAN_DATA, else ./data."""
    return Path(root or os.environ.get("NNSCAN_DATA") or "data").expanduser()


def data_places(source: str, root: str | Path | None) -> list[Path]:
    """Return the folders, or the archive, in which the files of a source can lie, whether they exist or not."""
    folder = data_root(root)
    if source in IDX_FOLDERS:
        return [folder / place for place in IDX_FOLDERS[source]]
    if source in _TORCHVISION_FOLDERS:
        return [folder / _TORCHVISION_FOLDERS[source]]
    if source in LAYOUTS:
        name, sign = LAYOUTS[source]
        return [place for place in (folder / name, folder) if (place / sign).is_file()]
    return [folder] if source in ("image_folder", "broden") else []


NO_FILES = digest([])
"""The state of data without files: they come with a package, or are not there."""


def needs_files(source: str) -> bool:
    """Return whether the data of a source lie in files of the user's."""
    return source in (*FETCHED, *LAYOUTS, "image_folder", "broden")


def data_state(source: str, root: str | Path | None) -> str:
    """Return a digest of name, size and time of every file of a source, so that a change of the data is noticed.

    The contents are not read: a planned study of a million images would wait for them. Links are followed, as when the
    data are read.

    Returns:
        `NO_FILES` where there is none.
    """
    files = []
    for place in data_places(source, root):
        if place.is_file():
            files.append((place.name, *_stamp(str(place))))
        seen = set()
        for folder, below, names in os.walk(place, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back; whoever reads the data names it
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            inside = os.path.relpath(folder, place)
            files += [(f"{inside}/{name}", *_stamp(os.path.join(folder, name))) for name in names]
    return digest(sorted(files))


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; whoever reads the data names it
        return -1, -1
    return status.st_size, status.st_mtime_ns
