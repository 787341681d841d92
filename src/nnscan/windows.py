"""Windows: the part of a map that the tangent of a pixel reaches, carried through a network without the rest.

The tangent of one pixel (or block of pixels) is exactly zero outside a window of each map. A batch of T tangents holds
one window each, all of one size, each at its own place: tangent t belongs to sample `t % samples`, and its window's
first row and column are `top[t]` and `left[t]`. Windows may hang over the edge of the map. The arithmetic of
convolutions and pools on such windows is in `Grid.through`; everything else moves rows of channels about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Places = NDArray[np.int64]


class Filtering(NamedTuple):
    """A sliding filter along one axis: extent of its kernel (dilation included), stride and padding in front."""

    extent: int
    stride: int
    padding: int


class Passage(NamedTuple):
    """How windows along one axis pass a filter: what is added (or, negative, cut off) at both ends, and what results.

    Attributes:
        first: The places at which the windows have to begin, and `size` their size, before the filter.
        size: See `first`.
        before: Zeros to add in front.
        after: Zeros to add behind.
        result: Where the resulting windows begin.
        length: Their size.
    """

    first: Places
    size: int
    before: int
    after: int
    result: Places
    length: int


def _passage(first: Places, size: int, extent: int, filtering: Filtering, out_extent: int) -> Passage:
    """Return the passage of windows [first, first + size) of a map of some extent through a filter.

    Output i reads the places `stride * i - padding` to `stride * i - padding + extent - 1`. Windows which begin at
    different residues of the stride are widened to begin at one, and windows that a stride beyond the kernel steps over
    to the next place that is read. Windows that would cover the whole output become the whole map.
    """
    width, stride, padding = filtering
    residue = (first + padding - width + 1) % stride
    if (residue == residue[0]).all():
        shift = (stride - int(residue[0])) % stride
        begin, length = first, size
    else:
        shift = 0
        begin, length = first - residue, size + int(residue.max())
    length = max(length, shift - width + 2)
    count = (length - 1 + width - 1 - shift) // stride + 1
    if count < out_extent:
        before = width - 1 - shift
        after = stride * (count - 1) + width - before - length
        return Passage(begin, length, before, after, (begin + padding - width + 1 + shift) // stride, count)
    after = stride * (out_extent - 1) + width - padding - extent
    return Passage(np.zeros_like(first), extent, padding, after, np.zeros_like(first), out_extent)


@dataclass(frozen=True)
class Grid:
    """Where the windows of a batch of tangents lie.

    Attributes:
        top: First row of each window (T,).
        left: First column (T,).
        height: Rows of a window.
        width: Columns of a window.
        rows: Rows of the map.
        columns: Columns of the map.
        samples: Samples S; tangent t is one of sample t % S.
    """

    top: Places
    left: Places
    height: int
    width: int
    rows: int
    columns: int
    samples: int

    def __len__(self) -> int:
        return len(self.top)

    @cached_property
    def dense(self) -> bool:
        """Whether every window is the whole map."""
        return (self.height, self.width) == (self.rows, self.columns) and not (self.top.any() or self.left.any())

    @cached_property
    def inside(self) -> bool:
        """Whether no window hangs over the edge of the map."""
        return bool(
            self.top.min() >= 0
            and self.left.min() >= 0
            and self.top.max() + self.height <= self.rows
            and self.left.max() + self.width <= self.columns
        )

    @property
    def size(self) -> int:
        """Places in all windows together."""
        return len(self) * self.height * self.width

    def whole(self) -> Grid:
        """Return the grid of the same tangents whose windows are the whole map."""
        return self.on_map(self.rows, self.columns)

    def on_map(self, rows: int, columns: int) -> Grid:
        """Return a grid of as many tangents whose windows are the whole of another map."""
        nothing = np.zeros(len(self), np.int64)
        return Grid(nothing, nothing, rows, columns, rows, columns, self.samples)

    def same_places(self, other: Grid) -> bool:
        """Whether the windows of another grid on this map are these windows."""
        return (self.height, self.width) == (other.height, other.width) and (
            bool((self.top == other.top).all()) and bool((self.left == other.left).all())
        )

    def union(self, other: Grid) -> Grid:
        """Return the smallest grid of equal windows that hold both."""
        top, left = np.minimum(self.top, other.top), np.minimum(self.left, other.left)
        bottom = np.maximum(self.top + self.height, other.top + other.height)
        right = np.maximum(self.left + self.width, other.left + other.width)
        height, width = int((bottom - top).max()), int((right - left).max())
        if height >= self.rows:
            top, height = np.zeros_like(top), self.rows
        if width >= self.columns:
            left, width = np.zeros_like(left), self.columns
        return Grid(top, left, height, width, self.rows, self.columns, self.samples)

    def through(self, filters: tuple[Filtering, Filtering], rows: int, columns: int) -> tuple[Passage, Passage]:
        """Return how the windows pass a filter whose output map has these rows and columns."""
        return (
            _passage(self.top, self.height, self.rows, filters[0], rows),
            _passage(self.left, self.width, self.columns, filters[1], columns),
        )

    def before(self, passages: tuple[Passage, Passage]) -> Grid:
        """Return the windows as a filter needs them."""
        down, across = passages
        return Grid(down.first, across.first, down.size, across.size, self.rows, self.columns, self.samples)

    def after(self, passages: tuple[Passage, Passage], rows: int, columns: int) -> Grid:
        """Return the windows behind a filter whose output map has these rows and columns."""
        down, across = passages
        return Grid(down.result, across.result, down.length, across.length, rows, columns, self.samples)

    @cached_property
    def index(self) -> Tensor:
        """Return for each place (T h w,) its row in a map flattened to (S H W,); S H W for a place outside the map."""
        row = self.top[:, None] + np.arange(self.height)
        column = self.left[:, None] + np.arange(self.width)
        sample = np.arange(len(self)) % self.samples
        found = (sample[:, None] * self.rows + row)[:, :, None] * self.columns + column[:, None]
        outside = ((row < 0) | (row >= self.rows))[:, :, None] | ((column < 0) | (column >= self.columns))[:, None]
        return torch.from_numpy(np.where(outside, self.samples * self.rows * self.columns, found).reshape(-1))


@dataclass
class Windows:
    """Tangents and where they are not zero.

    Attributes:
        data: The windows (T, h, w, K); K are all dimensions of the map between the sample and the place.
        grid: Their places.
        clean: Whether what hangs over the edge of the map is zero.
    """

    data: Tensor
    grid: Grid
    clean: bool = True

    @property
    def channels(self) -> int:
        """Return K."""
        return self.data.shape[-1]

    def images(self) -> Tensor:
        """Return the windows as a batch of images (T, K, h, w), a view."""
        return self.data.permute(0, 3, 1, 2)

    def cleaned(self) -> Windows:
        """Return these windows with zeros where they hang over the edge."""
        if self.clean or self.grid.inside:
            return self
        index = self.grid.index.to(self.data.device)
        inside = (index < self.grid.samples * self.grid.rows * self.grid.columns).to(self.data.dtype)
        return Windows(self.data * inside.view(*self.data.shape[:3], 1), self.grid)

    def placed(self, grid: Grid) -> Windows:
        """Return the same tangents in other windows of the same map, which hold all of these that is in the map."""
        if self.grid.same_places(grid):
            return self
        source = self.cleaned()
        down, right = source.grid.top - grid.top, source.grid.left - grid.left
        if (down == down[0]).all() and (right == right[0]).all():
            y, x = int(down[0]), int(right[0])
            ends = (x, grid.width - x - source.grid.width, y, grid.height - y - source.grid.height)
            return Windows(padded(source.data, *ends), grid)
        row = down[:, None] + np.arange(source.grid.height)
        column = right[:, None] + np.arange(source.grid.width)
        target = (np.arange(len(grid))[:, None] * grid.height + row)[:, :, None] * grid.width + column[:, None]
        outside = ((row < 0) | (row >= grid.height))[:, :, None] | ((column < 0) | (column >= grid.width))[:, None]
        index = torch.from_numpy(np.where(outside, grid.size, target).reshape(-1)).to(source.data.device)
        result = source.data.new_zeros((grid.size + 1, self.channels))  # the last row takes what is outside
        result.index_copy_(0, index, source.data.reshape(-1, self.channels))
        return Windows(result[:-1].view(len(grid), grid.height, grid.width, self.channels), grid)

    def whole(self) -> Windows:
        """Return the same tangents as whole maps."""
        return self.placed(self.grid.whole())

    def under(self, rows: Tensor) -> Tensor:
        """Return what lies under the windows of a map given by `map_rows`, in a shape that multiplies `data`.

        Zero for places outside the map.
        """
        grid = self.grid
        if grid.dense:
            return rows[:-1].view(1, grid.samples, grid.rows, grid.columns, -1)
        return rows.index_select(0, grid.index.to(rows.device)).view(1, *self.data.shape[:3], -1)

    def scaled(self, rows: Tensor, reuse: bool = False) -> Windows:
        """Return the tangents times a map of factors, given by `map_rows`, with K channels or one.

        Args:
            rows: The factors.
            reuse: Write over these windows' data.
        """
        factor = self.under(rows)
        data = self.data.view(-1, *factor.shape[1:-1], self.channels)
        result = torch.mul(data, factor, out=data) if reuse else data * factor
        return Windows(result.view_as(self.data), self.grid)


def map_rows(values: Tensor) -> Tensor:
    """Return a map (S, K, H, W) as rows of channels (S H W + 1, K); the last row, for places outside, is zero."""
    rows = values.new_zeros((values.shape[0] * values.shape[2] * values.shape[3] + 1, values.shape[1]))
    rows[:-1] = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
    return rows


def padded(data: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Return windows (T, h, w, K) with zeros added at their edges, or with edges cut off where negative."""
    if left == right == top == bottom == 0:
        return data
    return functional.pad(data, (0, 0, left, right, top, bottom))


def joined(parts: Sequence[Windows]) -> list[Windows]:
    """Return tangents of maps of the same extent in common windows."""
    grid = parts[0].grid
    for part in parts[1:]:
        if not grid.same_places(part.grid):
            grid = grid.union(part.grid)
    return [part.placed(grid) for part in parts]
