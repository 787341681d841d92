"""nnscan.windows: the arithmetic of windows against brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnscan.windows import Filtering, Grid, Windows, _passage, joined, map_rows, padded

KERNELS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1)]
"""Sizes and dilations of kernels."""


def filters():
    """Yield taps, width, stride, padding, extent of the map and of the result of all small filters, with ceil mode."""
    for (size, dilation), stride, padding, extent in itertools.product(KERNELS, range(1, 5), range(3), range(1, 8)):
        width = dilation * (size - 1) + 1
        if extent + 2 * padding < width or padding > width:
            continue
        floor = (extent + 2 * padding - width) // stride + 1
        ceil = -((width - extent - 2 * padding) // stride) + 1
        if (ceil - 1) * stride >= extent + padding:  # as torch: no output begins in the padding behind
            ceil -= 1
        for result in {floor, ceil}:
            yield range(0, width, dilation), width, stride, padding, extent, result


def starts(extent, size):
    """Yield where windows of a batch begin: alone, at equal and at mixed residues, hanging over both edges too."""
    every = range(1 - size, extent)
    yield from ([first] for first in every)
    yield [*every]
    yield [*every][::2]
    yield [0, extent - 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_passages_hold_every_output_that_a_window_reaches(size):
    for taps, width, stride, padding, extent, result in filters():
        for firsts in starts(extent, size):
            first = np.array(firsts)
            passage = _passage(first, size, extent, Filtering(width, stride, padding), result)
            case = (taps, stride, padding, extent, result, firsts, passage)
            assert 1 <= passage.length <= result, case
            # windows are as large as the padding says, and output 0 of each window is output `result` of the map
            if passage.length < result:
                assert passage.size + passage.before + passage.after == stride * (passage.length - 1) + width, case
            assert (passage.first - passage.before == stride * passage.result - padding).all(), case
            assert -passage.before < passage.size, case  # no padding cuts everything off
            for old, begin, found in zip(firsts, passage.first, passage.result, strict=True):
                inside = [place for place in range(old, old + size) if 0 <= place < extent]
                assert all(begin <= place < begin + passage.size for place in inside), case
                for output in range(result):
                    if any(stride * output - padding + tap in inside for tap in taps):
                        assert found <= output < found + passage.length, case


@pytest.mark.parametrize("size", [1, 2, 3])
def test_passages_are_no_larger_than_needed(size):
    for _, width, stride, padding, extent, result in filters():
        for firsts in starts(extent, size):
            first = np.array(firsts)
            passage = _passage(first, size, extent, Filtering(width, stride, padding), result)
            # outputs whose kernel touches a window, on a map without end
            low = -((width - 1 - padding - first) // stride)
            high = (first + size - 1 + padding) // stride
            needed = max(1, int((high - low + 1).max()))
            if len(set((first % stride).tolist())) == 1:
                assert passage.length == min(needed, result), (width, stride, padding, extent, result, firsts, passage)
            else:
                assert passage.length <= min(needed + 1, result)


def test_windows_that_cover_the_result_are_the_whole_map():
    passage = _passage(np.array([3, 5]), 4, 9, Filtering(3, 1, 1), 6)
    assert (passage.first.tolist(), passage.size) == ([0, 0], 9)
    assert (passage.before, passage.after) == (1, -2)
    assert (passage.result.tolist(), passage.length) == ([0, 0], 6)


# Grids --------------------------------------------------------------------------------------------------------------


def random_grid(
    generator: np.random.Generator, rows: int = 5, columns: int = 7, samples: int = 2, count: int = 3
) -> Grid:
    height, width = (int(generator.integers(1, size + 1)) for size in (rows, columns))
    top = generator.integers(-height, rows + 1, samples * count)
    left = generator.integers(-width, columns + 1, samples * count)
    return Grid(top, left, height, width, rows, columns, samples)


def places(grid: Grid, tangent: int) -> set[tuple[int, int]]:
    """Return the places of the map in a window."""
    rows = range(grid.top[tangent], grid.top[tangent] + grid.height)
    columns = range(grid.left[tangent], grid.left[tangent] + grid.width)
    return {(y, x) for y in rows for x in columns if 0 <= y < grid.rows and 0 <= x < grid.columns}


@pytest.fixture(params=range(20))
def generator(request):
    return np.random.default_rng(request.param)


def test_index_is_the_row_of_each_place(generator):
    grid = random_grid(generator)
    index = iter(grid.index.tolist())
    for tangent in range(len(grid)):
        for y in range(grid.top[tangent], grid.top[tangent] + grid.height):
            for x in range(grid.left[tangent], grid.left[tangent] + grid.width):
                inside = 0 <= y < grid.rows and 0 <= x < grid.columns
                row = ((tangent % grid.samples) * grid.rows + y) * grid.columns + x
                assert next(index) == (row if inside else grid.samples * grid.rows * grid.columns)
    assert next(index, None) is None
    assert grid.size == len(grid.index)
    assert grid.inside == (max(grid.index.tolist()) < grid.samples * grid.rows * grid.columns)


def test_windows_inside_the_map():
    for top, left, height, width in itertools.product(range(-2, 4), range(-2, 4), range(1, 4), range(1, 4)):
        grid = Grid(np.array([0, top]), np.array([0, left]), height, width, 3, 3, 1)
        assert grid.inside == all(len(places(grid, tangent)) == height * width for tangent in range(2))


def test_a_union_holds_both(generator):
    one, two = random_grid(generator), random_grid(generator)
    union = one.union(two)
    assert (union.rows, union.columns, union.samples) == (one.rows, one.columns, one.samples)
    spans = []
    for tangent in range(len(one)):
        assert places(union, tangent) >= places(one, tangent) | places(two, tangent)
        begin = min(one.top[tangent], two.top[tangent])
        spans.append(max(one.top[tangent] + one.height, two.top[tangent] + two.height) - begin)
    assert union.height == min(max(spans), one.rows)
    assert union.width <= one.columns


def test_same_places_and_whole_maps(generator):
    grid = random_grid(generator)
    assert grid.same_places(replace(grid, top=grid.top.copy(), left=grid.left.copy()))
    moved = grid.top.copy()
    moved[-1] += 1
    for other in (replace(grid, top=moved), replace(grid, height=grid.height + 1), replace(grid, left=grid.left - 1)):
        assert not grid.same_places(other)
    whole = grid.whole()
    assert whole.dense
    assert all(len(places(whole, t)) == 35 for t in range(6))
    assert grid.dense == all(places(grid, t) == places(whole, t) for t in range(6))
    assert (grid.on_map(2, 3).rows, grid.on_map(2, 3).width, len(grid.on_map(2, 3))) == (2, 3, 6)


# Windows ------------------------------------------------------------------------------------------------------------


def random_windows(generator: np.random.Generator, channels: int = 3) -> Windows:
    """Return windows with numbers also where they hang over the edge, which must not matter."""
    grid = random_grid(generator)
    data = torch.from_numpy(generator.normal(size=(len(grid), grid.height, grid.width, channels)))
    return Windows(data, grid, clean=grid.inside)


def maps(windows: Windows) -> torch.Tensor:
    """Return the tangents as whole maps (T, K, H, W), place by place."""
    grid = windows.grid
    result = torch.zeros((len(grid), windows.channels, grid.rows, grid.columns), dtype=windows.data.dtype)
    for tangent in range(len(grid)):
        for y, x in places(grid, tangent):
            result[tangent, :, y, x] = windows.data[tangent, y - grid.top[tangent], x - grid.left[tangent]]
    return result


def test_cleaned_windows_are_zero_beyond_the_edge(generator):
    windows = random_windows(generator)
    before = windows.data.clone()
    cleaned = windows.cleaned()
    assert torch.equal(maps(cleaned), maps(windows))
    assert cleaned.data.count_nonzero() == maps(windows).count_nonzero()
    assert torch.equal(windows.data, before)
    assert cleaned.cleaned() is cleaned


@pytest.mark.parametrize("shifted_alike", [False, True])
def test_placed_windows_are_the_same_tangents(generator, shifted_alike):
    windows = random_windows(generator)
    old = windows.grid
    if shifted_alike:
        y, x = generator.integers(0, 3, 2)
        size = (old.height + int(y) + 1, old.width + int(x) + 2)
        target = Grid(old.top - y, old.left - x, *size, old.rows, old.columns, old.samples)
    else:
        target = old.union(random_grid(generator))
    placed = windows.placed(target)
    assert placed.grid is target
    assert torch.equal(maps(placed), maps(windows))
    assert placed.data.count_nonzero() == maps(windows).count_nonzero()  # nothing that hung over the edge came along
    assert torch.equal(maps(windows.whole()), maps(windows))
    assert torch.equal(windows.whole().images(), maps(windows))
    assert windows.placed(old) is windows


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("dense", [False, True])
def test_scaled_windows(generator, channels, dense):
    windows = random_windows(generator)
    if dense:
        windows = windows.whole()
    factors = torch.from_numpy(generator.normal(size=(2, channels, 5, 7)))
    expected = maps(windows) * factors.repeat(len(windows.grid) // 2, 1, 1, 1)
    before = windows.data.clone()
    scaled = windows.scaled(map_rows(factors))
    assert torch.equal(maps(scaled), expected)
    assert scaled.data.count_nonzero() == expected.count_nonzero()  # zero beyond the edge
    assert torch.equal(windows.data, before)
    reused = windows.scaled(map_rows(factors), reuse=True)
    assert reused.data.data_ptr() == windows.data.data_ptr()
    assert torch.equal(reused.data, scaled.data)


def test_joined_windows_have_the_same_places(generator):
    parts = [random_windows(generator) for _ in range(3)]
    found = joined(parts)
    for part, placed in zip(parts, found, strict=True):
        assert placed.grid.same_places(found[0].grid)
        assert torch.equal(maps(placed), maps(part))
    alone = joined(parts[:1])
    assert alone[0] is parts[0]


def test_rows_of_a_map():
    values = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    rows = map_rows(values)
    assert rows.shape == (9, 3)
    assert rows[5].tolist() == values[1, :, 0, 1].tolist()
    assert rows[8].tolist() == [0, 0, 0]


def test_padded_windows():
    data = torch.arange(6.0).view(1, 2, 3, 1)
    assert padded(data, 0, 0, 0, 0) is data
    found = padded(data, -1, 2, 1, -1)
    assert found[0, :, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 0, 0]]


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (1, 3, 0, 1), (2, 2, 1, 2)]
)
def test_a_convolution_of_windows(generator, size, stride, padding, dilation):
    """The passages of both axes say how a convolution of whole maps is one of windows."""
    windows = random_windows(generator)
    kernel = torch.from_numpy(generator.normal(size=(4, 3, size, size)))
    expected = F.conv2d(maps(windows), kernel, None, stride, padding, dilation)
    way = Filtering(dilation * (size - 1) + 1, stride, padding)
    down, across = passages = windows.grid.through((way, way), *expected.shape[2:])
    placed = windows.placed(windows.grid.before(passages))
    data = padded(placed.cleaned().data, across.before, across.after, down.before, down.after)
    found = F.conv2d(data.permute(0, 3, 1, 2), kernel, None, stride, 0, dilation).permute(0, 2, 3, 1)
    grid = windows.grid.after(passages, *expected.shape[2:])
    assert found.shape[1:3] == (grid.height, grid.width)
    torch.testing.assert_close(maps(Windows(found, grid)), expected)
