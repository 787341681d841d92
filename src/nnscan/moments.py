"""Moments of learning images: what remains of every neuron's image after the sweep, in memory and in HDF5.

A learning image is channel-summed (and block-summed, with blocks of b x b pixels); below, I is that image of one neuron
for one sample, x the likewise summed input scaled to [0, 1], M the support of I (|I| > 0.001 max |I|), and a *pixel* is
one position of this grid. Each array of a layer has the shape (N, K, h, w): sample, filter, row, column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnscan.artifacts import create_hdf5, open_hdf5
from nnscan.errors import ArtifactError
from nnscan.limits import reading

SUPPORT = 1e-3
"""A pixel belongs to the support of a learning image when |I| exceeds this share of the image's maximum."""

WHOLE = {
    "activation": "value before the ReLU",
    "signed_total": "sum of I",
    "maximum": "max of |I|",
    "minimum": "min of |I|",
}
"""Quantities over the whole image, with their meaning."""

REGIONAL = {
    "count": "pixels of M in the region",
    "total": "sum of |I| over the region",
    "square": "sum of |I|^2 over the region",
    "input_total": "sum of x over M in the region",
    "input_square": "sum of x^2 over M in the region",
    "cross": "sum of x |I| over M in the region",
}
"""Quantities over a region, with their meaning."""

IMAGES = {"filter_images": "L^k = sum of I f over positions", "absolute_images": "sum of |I| over positions"}
"""Images of filters, with their meaning."""

REGIONS = ("foreground", "background")
QUANTITIES = (*WHOLE, *(f"{quantity}_{region}" for region in REGIONS for quantity in REGIONAL))

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Moments:
    """Moments of the learning images of every neuron of some layers, for N samples.

    Attributes:
        layers: For each layer its arrays by quantity (`QUANTITIES`), each (N, K, h, w). Without foreground masks
            the foreground is the whole image and the background is empty.
        samples: Identifiers of the samples (N,).
        pixels: Pixels of the image grid, (H / b) (W / b).
        foreground_pixels: Foreground pixels of each sample (N,).
        masked: Whether the samples had foreground masks.
        block: Side b of the blocks.
        filter_images: For each layer the images L^k = sum over positions of I f, (N, K, H / b, W / b).
        absolute_images: For each layer the sum over positions of |I|, of the same shape: where a filter looks at all.
    """

    layers: Mapping[str, Mapping[str, Array]]
    samples: NDArray[np.int64]
    pixels: int
    foreground_pixels: NDArray[np.int64]
    masked: bool
    block: int = 1
    filter_images: Mapping[str, Array] = field(default_factory=dict)
    absolute_images: Mapping[str, Array] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per layer, neuron and sample: layer, filter, row, column, sample, then the quantities."""
        frames = []
        for layer, arrays in self.layers.items():
            sample, filters, row, column = np.indices(arrays["activation"].shape).reshape(4, -1)
            frames.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "filter": filters,
                        "row": row,
                        "column": column,
                        "sample": self.samples[sample],
                        **{quantity: arrays[quantity].ravel() for quantity in QUANTITIES},
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def select(self, layer: str) -> Moments:
        """Return the moments of one layer alone."""
        return Moments(
            {layer: self.layers[layer]},
            self.samples,
            self.pixels,
            self.foreground_pixels,
            self.masked,
            self.block,
            {name: images for name, images in self.filter_images.items() if name == layer},
            {name: images for name, images in self.absolute_images.items() if name == layer},
        )


def concatenate(parts: Sequence[Moments]) -> Moments:
    """Join the moments of several shards of samples, in their order.

    Raises:
        ArtifactError: The parts are of different scans.
    """
    first = parts[0]
    for part in parts[1:]:
        if (list(part.layers), part.pixels, part.block, part.masked) != (
            list(first.layers), first.pixels, first.block, first.masked,
        ):  # fmt: skip
            raise ArtifactError("the shards do not belong to one scan: layers, pixels, block or masks differ")

    def joined(pick: str, layer: str) -> Array:
        return np.concatenate([part.layers[layer][pick] for part in parts])

    return Moments(
        {layer: {quantity: joined(quantity, layer) for quantity in QUANTITIES} for layer in first.layers},
        np.concatenate([part.samples for part in parts]),
        first.pixels,
        np.concatenate([part.foreground_pixels for part in parts]),
        first.masked,
        first.block,
        {layer: np.concatenate([part.filter_images[layer] for part in parts]) for layer in first.filter_images},
        {layer: np.concatenate([part.absolute_images[layer] for part in parts]) for layer in first.absolute_images},
    )


def _create(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, dimensions: str, meaning: str
) -> None:
    dataset = group.create_dataset(name, shape=shape, dtype=dtype, chunks=(1, *shape[1:]) if shape[0] else None)
    dataset.attrs["dimensions"] = dimensions
    dataset.attrs["meaning"] = meaning


def write_moments(path: str | Path, parts: Iterable[Moments], count: int, origin: Mapping[str, str]) -> None:
    """Stream the moments of samples, in parts, into one HDF5 file.

    Args:
        path: The file; it appears when all parts are written.
        parts: Moments of one or more samples each, in order.
        count: Samples in all.
        origin: Provenance.

    Raises:
        ArtifactError: There are more or fewer samples than announced.
    """
    with create_hdf5(path, "scan", origin) as file:
        position = 0
        for part in parts:
            if position == 0:
                file.attrs.update(pixels=part.pixels, block=part.block, masked=part.masked)
                file.attrs["support"] = SUPPORT
                _create(file, "samples", (count,), np.dtype(np.int64), "sample", "index in the split")
                _create(file, "foreground_pixels", (count,), np.dtype(np.int64), "sample", "pixels of M^f")
                file.create_group("layers", track_order=True)
                for layer, arrays in part.layers.items():
                    group = file.create_group(f"layers/{layer}")
                    for quantity in QUANTITIES:
                        meaning = WHOLE.get(quantity) or REGIONAL[quantity.rsplit("_", 1)[0]]
                        shape = (count, *arrays[quantity].shape[1:])
                        _create(group, quantity, shape, arrays[quantity].dtype, "sample filter row column", meaning)
                for kind, meaning in IMAGES.items():
                    for layer, images in getattr(part, kind).items():
                        shape = (count, *images.shape[1:])
                        _create(file, f"{kind}/{layer}", shape, images.dtype, "sample filter row column", meaning)
            rows = slice(position, position + len(part.samples))
            if rows.stop > count:
                raise ArtifactError(f"{path}: more than the {count} samples announced")
            file["samples"][rows] = part.samples
            file["foreground_pixels"][rows] = part.foreground_pixels
            for layer, arrays in part.layers.items():
                for quantity in QUANTITIES:
                    file[f"layers/{layer}/{quantity}"][rows] = arrays[quantity]
            for kind in IMAGES:
                for layer, images in getattr(part, kind).items():
                    file[f"{kind}/{layer}"][rows] = images
            position = rows.stop
            file.check()
        if position != count:
            raise ArtifactError(f"{path}: {position} samples came, {count} were announced")


@contextmanager
def open_moments(path: str | Path) -> Iterator[MomentsFile]:
    """Open a file of `write_moments` for reading layer by layer."""
    with open_hdf5(path, "scan") as file:
        with reading(path):
            moments = MomentsFile(file)
        yield moments


class MomentsFile:
    """A scan on disk; layers are read one at a time."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.layers: list[str] = list(file["layers"])

    def read(self, layer: str, images: bool = True) -> Moments:
        """Return the moments (and the images of filters) of one layer."""
        with reading(self.file.filename):
            group = self.file[f"layers/{layer}"]
            found = [{layer: self.file[f"{kind}/{layer}"][()]} if images else {} for kind in IMAGES]
            return Moments(
                {layer: {quantity: group[quantity][()] for quantity in QUANTITIES}},
                self.file["samples"][()],
                int(self.file.attrs["pixels"]),
                self.file["foreground_pixels"][()],
                bool(self.file.attrs["masked"]),
                int(self.file.attrs["block"]),
                *found,
            )


def read_layer(paths: Sequence[str | Path], layer: str, images: bool = True) -> Moments:
    """Return one layer's moments (and the images of its filters), joined over the shards of a scan."""
    parts = []
    for path in paths:
        with open_moments(path) as file:
            parts.append(file.read(layer, images))
    return concatenate(parts)


def read_layers(paths: Sequence[str | Path], images: bool = True) -> Iterator[tuple[str, Moments]]:
    """Yield each layer's moments, joined over the shards of a scan, one layer in memory at a time."""
    with open_moments(paths[0]) as first:
        layers = first.layers
    for layer in layers:
        yield layer, read_layer(paths, layer, images)
