"""Accumulators: the sums over pixels that are kept of every neuron's learning image, taken from windows.

The windows of a layer's tangents are laid on planes, each of which holds tangents whose windows do not overlap: plane q
of place (i, j) holds the column of one pixel. For one place the sums over pixels are then sums over planes, which a
matrix product with the pixels' weights gives for all filters at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnscan.moments import IMAGES, QUANTITIES, REGIONS, SUPPORT
from nnscan.windows import Grid, Windows, map_rows

TILE_BYTES = 2**20
"""Planes are summed up in tiles of about this size, which stay in a processor's cache."""

FOREGROUND, BACKGROUND, ONE, SIGN = 0, 1, 6, 7
"""Rows of a pixel's weights; rows 2 and 3 are x on both regions, 4 and 5 are x squared."""


def pixel_weights(grid: Tensor, foreground: Tensor, signs: Tensor) -> Tensor:
    """Return the weights of each sample's pixels (S, P + 1, 8), zero for the last, which stands for no pixel.

    Args:
        grid: Input of each pixel (S, P), scaled to [0, 1].
        foreground: Whether it belongs to the foreground (S, P).
        signs: The coefficients of the check (S, P); see `LayerSums.checksum`.
    """
    inside, outside = foreground.to(grid.dtype), (~foreground).to(grid.dtype)
    rows = [inside, outside, inside * grid, outside * grid, inside * grid**2, outside * grid**2]
    weights = torch.stack([*rows, torch.ones_like(grid), signs.to(grid.dtype)], dim=2)
    return torch.nn.functional.pad(weights, (0, 0, 0, 1))


class Batch:
    """A batch of tangents of pixels.

    Attributes:
        pixels: Pixel of each tangent (T,), -1 for a tangent that only fills up; tangent t is of sample t % S.
        row: Its row in the image's grid of pixels.
        column: Its column.
    """

    def __init__(self, pixels: NDArray[np.int64], columns: int, samples: int) -> None:
        self.pixels = pixels
        self.samples = samples
        # what only fills up lies where another sample's pixel does, as all of a batch are of one class
        known = np.where(pixels < 0, pixels.reshape(-1, samples).max(axis=1).repeat(samples), pixels)
        self.row, self.column = known // columns, known % columns


def _colours(
    places: Sequence[NDArray[np.int64]], firsts: Sequence[NDArray[np.int64]], sizes: Sequence[int], extent: int
) -> int:
    """Return the least n so that windows along an axis whose pixels are n or more apart do not overlap in the map.

    Args:
        places: The pixels' coordinates, by batch.
        firsts: Where their windows begin.
        sizes: Size of a batch's windows.
        extent: Size of the map.
    """
    count = 1 + max(int(place.max()) for place in places)
    begin, end = np.full(count + 1, extent), np.zeros(count, np.int64)
    for place, first, size in zip(places, firsts, sizes, strict=True):
        np.minimum.at(begin, place, np.clip(first, 0, extent))
        np.maximum.at(end, place, np.clip(first + size, 0, extent))
    begin = np.minimum.accumulate(begin[::-1])[::-1]  # of this pixel or a later one
    for apart in range(1, count):
        if (begin[apart:count] >= end[: count - apart]).all():
            return apart
    return count


class Scratch:
    """Memory for planes that one layer after the other uses: fresh memory costs time on a CPU."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return a matrix with the type and device of another tensor; its values are arbitrary."""
        buffer = self.free.pop() if self.free else like.new_empty(0)
        if buffer.numel() < rows * columns:
            del buffer  # give the former memory back first
            buffer = like.new_empty(rows * columns)
        return buffer[: rows * columns].view(rows, columns)

    def give(self, planes: Tensor) -> None:
        """Take a matrix back."""
        self.free.append(torch.empty(0, dtype=planes.dtype, device=planes.device).set_(planes.untyped_storage()))


class LayerSums:
    """The sums of all neurons of one layer, for S samples.

    Args:
        value: The layer's output (S, K, h, w).
        weights: Weights of the pixels (`pixel_weights`).
        gate: Whether neurons with value <= 0 have the zero image.
        regions: Whether there is a background; without one its sums are zero.
    """

    def __init__(self, value: Tensor, weights: Tensor, gate: bool, regions: bool) -> None:
        self.samples, self.filters, self.rows, self.columns = value.shape
        self.shape = value.shape
        self.weights, self.regions = weights, regions
        self.value = map_rows(value)[:-1].view(self.samples * self.rows * self.columns, 1, self.filters)
        self.open = self.value > 0 if gate else torch.ones_like(self.value, dtype=torch.bool)
        self.feature_map = map_rows(value.relu())
        self.gates = map_rows((value > 0).to(value.dtype) if gate else torch.ones_like(value))
        count = len(self.value)
        self.maximum = self.value.new_zeros((count, 1, self.filters))
        self.minimum = self.value.new_full((count, 1, self.filters), torch.inf)
        # the signs of a column's values cancel; Apple's GPUs have no float64
        wide = value.dtype if value.device.type == "mps" else torch.float64
        self.signed = torch.zeros((count, 2, self.filters), dtype=wide, device=value.device)
        self.used = list(range(6)) if regions else [0, 2, 4]
        self.on_support = self.value.new_zeros((count, len(self.used), self.filters))
        self.cross = self.value.new_zeros((count, 2 if regions else 1, self.filters))
        self.total = torch.zeros_like(self.cross)
        self.square = torch.zeros_like(self.cross)
        self.filter_image = self.value.new_zeros((self.samples, weights.shape[1], self.filters))
        self.absolute_image = torch.zeros_like(self.filter_image)
        self.reached = torch.zeros((count, 1, 1), dtype=torch.int64, device=value.device)

    def begin(self, batches: Sequence[Batch], grids: Sequence[Grid], alone: bool, scratch: Scratch) -> None:
        """Prepare planes for batches of tangents.

        Args:
            batches: The batches.
            grids: Where their windows lie at this layer.
            alone: Whether these are all tangents of the sweep.
            scratch: Memory for the planes, until `leave`.
        """
        self.alone, self.scratch = alone, scratch
        self.whole = all(grid.dense for grid in grids)
        live = np.concatenate([batch.pixels for batch in batches]) >= 0
        if self.whole:
            starts = np.cumsum([0, *(len(batch.pixels) // self.samples for batch in batches)])
            slots = [
                np.arange(len(batch.pixels)) // self.samples + start
                for batch, start in zip(batches, starts[:-1], strict=True)
            ]
            self.planes_used = int(starts[-1])
        else:
            down = _colours([b.row for b in batches], [g.top for g in grids], [g.height for g in grids], self.rows)
            across = _colours(
                [b.column for b in batches], [g.left for g in grids], [g.width for g in grids], self.columns
            )
            slots = [(batch.row % down) * across + batch.column % across for batch in batches]
            names, found = np.unique(np.concatenate(slots)[live], return_inverse=True)
            every = np.zeros(len(live), np.int64)
            every[live] = found
            slots = np.split(every, np.cumsum([len(batch.pixels) for batch in batches])[:-1])
            self.planes_used = len(names)
        self.batches, self.slots = batches, slots
        places = self.samples * self.rows * self.columns
        size = places * self.planes_used
        none = self.weights.shape[1] - 1
        if self.whole:
            self.planes = scratch.take(size, self.filters, self.value)
            pixel = torch.full((self.samples, self.planes_used), none)
        else:
            self.planes = scratch.take(size + 1, self.filters, self.value).zero_()
            pixel = torch.full((size + 1,), none)
        self.pixel = pixel.to(self.value.device)

    def add(self, number: int, windows: Windows, images: bool) -> None:
        """Lay a batch's windows on the planes; with `images` add its share of the images of filters too."""
        batch, slot, samples = self.batches[number], self.slots[number], self.samples
        pixels = torch.from_numpy(np.where(batch.pixels < 0, self.weights.shape[1] - 1, batch.pixels))
        pixels = pixels.to(self.value.device)
        data, grid = windows.data, windows.grid
        dtype = self.value.dtype
        if data.dtype != dtype:
            data = data.to(dtype)
        layer_windows = Windows(data, grid)
        if self.whole:
            first, last = int(slot[0]), int(slot[-1]) + 1
            planes = self.planes.view(samples, -1, self.planes_used, self.filters)
            planes[:, :, first:last] = data.view(-1, samples, planes.shape[1], self.filters).permute(1, 2, 0, 3)
            self.pixel[:, first:last] = pixels.view(-1, samples).T
        else:
            index = grid.index.to(data.device).view(len(grid), -1)
            target = index * self.planes_used + torch.from_numpy(slot).to(data.device)[:, None]
            outside = (index == len(self.value)) | (pixels == self.weights.shape[1] - 1)[:, None]
            target = target.masked_fill(outside, len(self.planes) - 1).view(-1)
            self.planes.index_copy_(0, target, data.reshape(-1, self.filters))
            self.pixel.index_copy_(0, target, pixels[:, None].expand_as(index).reshape(-1))
        if not images:
            return
        open_size = layer_windows.scaled(self.gates).data.abs_()
        for image, share in (
            (self.filter_image, layer_windows.scaled(self.feature_map).data.sum((1, 2))),
            (self.absolute_image, open_size.sum((1, 2))),
        ):
            for sample in range(samples):  # a pixel has one tangent in a whole sweep
                image[sample].index_copy_(0, pixels[sample::samples], share[sample::samples])

    def _tiles(self) -> list[tuple[slice, Tensor, Tensor]]:
        """Return tiles: places, their planes (n, Q, K), and the pixels' weights (n or 1, 8, Q)."""
        places, planes = len(self.value), self.planes_used
        step = max(1, TILE_BYTES // (planes * self.filters * self.planes.element_size()))
        values = self.planes[: places * planes].view(places, planes, self.filters)
        area = self.rows * self.columns
        tiles = []
        for sample in range(self.samples):
            if self.whole:
                shared = self.weights[sample][self.pixel[sample]].T[None]
            for start in range(sample * area, (sample + 1) * area, step):
                rows = slice(start, min(start + step, (sample + 1) * area))
                if self.whole:
                    weights = shared
                else:
                    chosen = self.pixel[rows.start * planes : rows.stop * planes]
                    weights = self.weights[sample][chosen].view(-1, planes, 8).transpose(1, 2)
                tiles.append((rows, values[rows], weights))
        return tiles

    def take(self, extremes: bool, sums: bool) -> None:
        """Take sums over the planes.

        Args:
            extremes: Take the signed sums, the largest and the smallest size.
            sums: Take the sums of sizes and supports, for which the largest sizes of all planes must be known: those
                of other calls, or of this one.
        """
        for rows, values, weights in self._tiles():
            size = values.abs()
            if extremes:
                self.signed[rows] += weights[:, ONE:] @ values
                self.maximum[rows] = torch.maximum(self.maximum[rows], size.amax(1, keepdim=True))
                self._smallest(rows, size, weights)
            if sums:
                self._sums(rows, size, weights)

    def _smallest(self, rows: slice, size: Tensor, weights: Tensor) -> None:
        if self.alone and self.planes_used < self.weights.shape[1] - 1:
            return  # some pixel reaches no place of this tile: the smallest size is zero
        # planes that nobody reaches hold zeros; they are only there where not every pixel reaches the place
        self.minimum[rows] = torch.minimum(self.minimum[rows], size.amin(1, keepdim=True))
        self.reached[rows] += (weights[:, ONE, :, None] > 0).sum(1, keepdim=True)

    def _sums(self, rows: slice, size: Tensor, weights: Tensor) -> None:
        regions = slice(0, 2 if self.regions else 1)
        # a comparison that writes numbers is several times faster than one that writes booleans to be converted
        support = torch.gt(size, SUPPORT * self.maximum[rows], out=torch.empty_like(size))
        self.on_support[rows] += weights[:, self.used] @ support
        self.total[rows] += weights[:, regions] @ size
        self.cross[rows] += weights[:, 2 : 2 + regions.stop] @ support.mul_(size)
        self.square[rows] += weights[:, regions] @ size.square_()

    def leave(self) -> None:
        """Give the planes' memory back."""
        self.scratch.give(self.planes)
        del self.planes, self.pixel, self.scratch

    def checksum(self) -> Tensor:
        """Return the sum of the signed columns of all pixels, each times its sign (S, K, h, w)."""
        return self._maps(self.signed[:, 1:])

    def _maps(self, values: Tensor) -> Tensor:
        return values.view(self.samples, self.rows, self.columns, self.filters).permute(0, 3, 1, 2)

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """Return the quantities of `moments.QUANTITIES`, each (S, K, h, w)."""
        dtype = self.value.dtype
        everywhere = self.reached == self.weights.shape[1] - 1
        rows = {
            "signed_total": (self.signed[:, :1] * self.open).to(dtype),
            "maximum": self.maximum * self.open,
            "minimum": torch.where(everywhere, self.minimum, 0) * self.open,
        }
        regional = {
            **{name: (self.on_support, place) for place, name in enumerate(("count", "input_total", "input_square"))},
            **{"total": (self.total, 0), "square": (self.square, 0), "cross": (self.cross, 0)},
        }
        for number, region in enumerate(REGIONS):
            for name, (sums, place) in regional.items():
                if number and not self.regions:
                    rows[f"{name}_{region}"] = torch.zeros_like(self.maximum)
                    continue
                column = 2 * place + number if self.regions else place
                rows[f"{name}_{region}"] = sums[:, column : column + 1] * self.open
        rows["activation"] = self.value
        return {name: self._maps(rows[name]).cpu().numpy() for name in QUANTITIES}

    def images(self) -> dict[str, NDArray[np.floating]]:
        """Return the images of the filters, by the names of `moments.IMAGES`, each (S, K, P)."""
        found = {"filter_images": self.filter_image, "absolute_images": self.absolute_image}
        return {name: found[name][:, :-1].transpose(1, 2).cpu().numpy() for name in IMAGES}
