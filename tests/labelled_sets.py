"""Small folders in Broden's format, written by hand from the format's description, without nnscan's writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_mask(path: Path, numbers: np.ndarray) -> None:
    """Write label numbers as red + 256 * green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*numbers.shape, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = numbers % 256, numbers // 256
    Image.fromarray(pixels).save(path)


def table(path: Path, columns: str, rows: Sequence[Sequence[object]]) -> None:
    lines = [columns, *(",".join(map(str, row)) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines))


def make(
    root: Path,
    images: Sequence[np.ndarray],
    labels: Mapping[int, tuple[str, Mapping[str, float]]],
    annotations: Sequence[Mapping[str, Sequence[Any]]],
    categories: Sequence[str],
) -> Path:
    """Make a folder.

    Args:
        root: The folder.
        images: uint8 (H, W, 3) each.
        labels: Name, and coverage by category, of each label number.
        annotations: Of each image, by category, masks (h, w) and numbers of labels that hold for the whole image.
        categories: The categories.
    """
    rows = []
    for number, (image, own) in enumerate(zip(images, annotations, strict=True)):
        (root / "images/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"images/a/{number}.png")
        shape, cells = image.shape[:2], []
        for category in categories:
            cell = []
            for place, label in enumerate(own.get(category, ())):
                if isinstance(label, np.ndarray):
                    shape = label.shape
                    save_mask(root / f"images/a/{number}_{category}_{place}.png", label)
                    cell.append(f"a/{number}_{category}_{place}.png")
                else:
                    cell.append(str(label))
            cells.append(";".join(cell))
        rows.append([f"a/{number}.png", "train", *image.shape[:2], *shape, *cells])
    table(root / "index.csv", "image,split,ih,iw,sh,sw," + ",".join(categories), rows)
    table(
        root / "label.csv",
        "number,name,category,frequency,coverage,syns",
        [
            [number, name, ";".join(f"{category}(1)" for category in covers), 1, sum(covers.values()), "other;names"]
            for number, (name, covers) in labels.items()
        ],
    )
    for category in categories:
        own = [(number, name, covers) for number, (name, covers) in labels.items() if category in covers]
        table(
            root / f"c_{category}.csv",
            "code,number,name,frequency,coverage",
            [[code, number, name, 1, covers[category]] for code, (number, name, covers) in enumerate(own, 1)],
        )
    table(root / "category.csv", "name,first,last,count,frequency", [[name, 0, 0, 0, 0] for name in categories])
    return root
