"""nnscan.accumulators: sums over pixels taken from windows, against sums over whole columns, neuron by neuron."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nnscan import accumulators
from nnscan.accumulators import Batch, LayerSums, Scratch, _colours, pixel_weights
from nnscan.moments import IMAGES, QUANTITIES, SUPPORT
from nnscan.windows import Grid, Windows

HEIGHT, WIDTH = 4, 3
"""Pixels of the image."""


@dataclass
class Sweep:
    """Random columns of a layer, in batches of windows.

    Attributes:
        value: The layer's output (S, K, h, w).
        columns: The columns (S, P, K, h, w), whole.
        grid: The input scaled to [0, 1] (S, P).
        foreground: Its foreground (S, P).
        signs: Coefficients of the check (S, P).
        batches: Batches of pixels.
        windows: Windows of each batch; beyond the edge of the map they hold numbers that must not matter.
    """

    value: torch.Tensor
    columns: torch.Tensor
    grid: torch.Tensor
    foreground: torch.Tensor
    signs: torch.Tensor
    batches: list[Batch]
    windows: list[Windows]


def make_sweep(seed: int, samples: int = 2, whole: bool = False, dead: bool = True, dtype=torch.float64) -> Sweep:
    generator = np.random.default_rng(seed)
    filters, rows, columns = 3, 5, 6
    pixels = HEIGHT * WIDTH
    drawn = torch.from_numpy(generator.normal(size=(samples, filters, rows, columns)))
    value = drawn.to(dtype)
    dense = torch.zeros((samples, pixels, filters, rows, columns), dtype=dtype)
    live = [
        np.flatnonzero(generator.random(pixels) < 0.7) if dead and sample else np.arange(pixels - 2 * dead)
        for sample in range(samples)
    ]
    batches, windows = [], []
    for part in np.array_split(np.arange(max(map(len, live))), 3):
        numbers = np.full((len(part), samples), -1)
        for sample, own in enumerate(live):
            numbers[: len(own[part[part < len(own)]]), sample] = own[part[part < len(own)]]
        batch = Batch(numbers.reshape(-1), WIDTH, samples)
        if whole:
            grid = Grid(0 * batch.row, 0 * batch.row, rows, columns, rows, columns, samples)
        else:  # windows of a size of the batch's own, near the pixel, also beyond the edge
            top = batch.row + generator.integers(-1, 1, len(batch.row))
            left = 2 * batch.column + generator.integers(-1, 1, len(batch.row))
            grid = Grid(top, left, *generator.integers(1, 4, 2).tolist(), rows, columns, samples)
        shape = (len(grid), grid.height, grid.width, filters)
        scale = 10.0 ** generator.integers(-5, 1, shape)  # on both sides of the edge of the support
        data = torch.from_numpy(generator.normal(size=shape) * scale).to(dtype)
        data[torch.from_numpy(batch.pixels) < 0] = 0
        for tangent, pixel in enumerate(batch.pixels):
            for y in range(grid.height):
                for x in range(grid.width):
                    place = (grid.top[tangent] + y, grid.left[tangent] + x)
                    if pixel >= 0 and 0 <= place[0] < rows and 0 <= place[1] < columns:
                        dense[tangent % samples, pixel, :, *place] = data[tangent, y, x]
        batches.append(batch)
        windows.append(Windows(data, grid, clean=False))
    grid01 = torch.from_numpy(generator.random((samples, pixels))).to(dtype)
    foreground = torch.from_numpy(generator.random((samples, pixels)) < 0.4)
    signs = torch.from_numpy(generator.integers(0, 2, (samples, pixels)) * 2 - 1)
    return Sweep(value, dense, grid01, foreground, signs, batches, windows)


def run(
    sweep: Sweep, gate: bool = True, regions: bool = True, parts: int = 1, scratch: Scratch | None = None
) -> LayerSums:
    """Sum up as the scanner does: all batches at once, or in parts, each of which comes twice."""
    foreground = sweep.foreground if regions else torch.ones_like(sweep.foreground)
    sums = LayerSums(sweep.value, pixel_weights(sweep.grid, foreground, sweep.signs), gate, regions)
    scratch = scratch or Scratch()
    for last in (False, True) if parts > 1 else (False,):
        for numbers in np.array_split(np.arange(len(sweep.batches)), parts):
            chosen = [sweep.windows[number] for number in numbers]
            sums.begin([sweep.batches[n] for n in numbers], [w.grid for w in chosen], parts == 1, scratch)
            for place, windows in enumerate(chosen):
                sums.add(place, windows, images=not last)
            sums.take(extremes=not last, sums=last or parts == 1)
            sums.leave()
    return sums


def naive(sweep: Sweep, gate: bool, regions: bool) -> dict[str, np.ndarray]:
    """Return the quantities from whole columns, by their definitions in moments.py."""
    columns = sweep.columns.numpy()
    if gate:
        columns = columns * (sweep.value > 0).numpy()[:, None]
    size = np.abs(columns)
    maximum = size.max(1)
    support = size > SUPPORT * maximum[:, None]
    result = {
        "activation": sweep.value.numpy(),
        "signed_total": columns.sum(1),
        "maximum": maximum,
        "minimum": size.min(1),
    }
    x = sweep.grid.numpy()[:, :, None, None, None]
    inside = sweep.foreground.numpy()[:, :, None, None, None] if regions else np.ones_like(x, dtype=bool)
    for region, there in (("foreground", inside), ("background", ~inside)):
        result |= {
            f"count_{region}": (support & there).sum(1),
            f"total_{region}": (size * there).sum(1),
            f"square_{region}": (size**2 * there).sum(1),
            f"input_total_{region}": (x * (support & there)).sum(1),
            f"input_square_{region}": (x**2 * (support & there)).sum(1),
            f"cross_{region}": (x * size * (support & there)).sum(1),
        }
    return result


def assert_sums(sums: LayerSums, sweep: Sweep, gate: bool, regions: bool) -> None:
    arrays, expected = sums.arrays(), naive(sweep, gate, regions)
    assert list(arrays) == list(QUANTITIES)
    assert set(expected) == set(QUANTITIES)
    for quantity in QUANTITIES:
        assert arrays[quantity].dtype == sweep.value.numpy().dtype
        np.testing.assert_allclose(arrays[quantity], expected[quantity], rtol=1e-12, atol=1e-13, err_msg=quantity)
    images = np.einsum("spkhw,skhw->skp", sweep.columns.numpy(), sweep.value.relu().numpy())
    gate_open = (sweep.value > 0).numpy() if gate else np.ones(sweep.value.shape)
    sizes = np.einsum("spkhw,skhw->skp", np.abs(sweep.columns.numpy()), gate_open)
    found = sums.images()
    assert list(found) == list(IMAGES)
    np.testing.assert_allclose(found["filter_images"], images, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found["absolute_images"], sizes, rtol=1e-12, atol=1e-13)
    check = np.einsum("spkhw,sp->skhw", sweep.columns.numpy(), sweep.signs.numpy())
    np.testing.assert_allclose(sums.checksum().numpy(), check, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole maps"])
@pytest.mark.parametrize("dead", [False, True], ids=["all pixels", "some pixels"])
@pytest.mark.parametrize("samples", [1, 3])
def test_sums_are_those_of_whole_columns(parts, whole, dead, samples):
    for seed in range(3):
        sweep = make_sweep(seed, samples, whole, dead)
        assert_sums(run(sweep, parts=parts), sweep, gate=True, regions=True)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_gates_and_regions(parts, gate, regions):
    sweep = make_sweep(7)
    assert (sweep.value <= 0).any()
    assert_sums(run(sweep, gate, regions, parts), sweep, gate, regions)


@pytest.mark.parametrize("tile_bytes", [1, 300, 2**20])
def test_the_size_of_tiles_does_not_matter(monkeypatch, tile_bytes):
    monkeypatch.setattr(accumulators, "TILE_BYTES", tile_bytes)
    for whole in (False, True):
        sweep = make_sweep(8, whole=whole)
        assert_sums(run(sweep, parts=2), sweep, gate=True, regions=True)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole maps"])
def test_the_smallest_size_is_zero_unless_every_pixel_reaches_a_place(parts, whole):
    sweep = make_sweep(1, 1, whole, dead=False)
    minimum = run(sweep, gate=False, parts=parts).arrays()["minimum"]
    assert (minimum > 0).all() if whole else not minimum.any()
    sweep = make_sweep(1, 2, whole, dead=True)
    assert not run(sweep, gate=False, parts=parts).arrays()["minimum"].any()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_place_that_every_pixel_reaches_in_windows(parts):
    """Windows that all hold one place, but not the whole map: there the smallest size is that of a pixel."""
    sweep = make_sweep(2, 1, dead=False)
    for number, windows in enumerate(sweep.windows):
        grid = windows.grid
        top, left = np.full(len(grid), 2 - number % 2), np.full(len(grid), 3)
        same = Grid(top, left, 2, 2, grid.rows, grid.columns, 1)
        data = torch.randn((len(grid), 2, 2, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        sweep.windows[number] = Windows(data, same)
        for tangent, pixel in enumerate(sweep.batches[number].pixels):
            sweep.columns[0, pixel] = 0
            sweep.columns[0, pixel, :, top[tangent] : top[tangent] + 2, 3:5] = data[tangent].permute(2, 0, 1)
    sums = run(sweep, gate=False, parts=parts)
    assert_sums(sums, sweep, gate=False, regions=True)
    minimum = sums.arrays()["minimum"][0]
    assert (minimum[:, 2, 3:5] > 0).all()
    assert minimum[:, [0, 1, 3, 4]].max() == 0


def test_tangents_of_less_precision_are_summed_in_that_of_the_values():
    sweep = make_sweep(3)
    exact = run(sweep).arrays()
    sweep.windows = [Windows(windows.data.bfloat16(), windows.grid, windows.clean) for windows in sweep.windows]
    rounded = run(sweep).arrays()
    assert rounded["maximum"].dtype == np.float64
    error = np.abs(rounded["maximum"] - exact["maximum"]).max() / exact["maximum"].max()
    assert 1e-5 < error < 2**-8


def test_signed_sums_of_float32_are_kept_in_float64():
    """Columns of opposite sign, in different parts of a sweep: what is left of them is far below their size."""
    sweep = make_sweep(4, 1, whole=True, dead=False, dtype=torch.float32)
    for number, windows in enumerate(sweep.windows):
        windows.data.fill_(0 if number else 1 / 3)
        windows.data[0] = (1 / 3, 1e8, -1e8)[number]
        sweep.columns[0, torch.from_numpy(sweep.batches[number].pixels)] = windows.data.permute(0, 3, 1, 2)
    expected = sweep.columns.double().sum(1).numpy()
    found = run(sweep, gate=False, parts=3).arrays()["signed_total"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_batches_give_the_pixels_places():
    batch = Batch(np.array([0, 7, 4, -1, 11, 2]), 3, 2)
    assert batch.row.tolist() == [0, 2, 1, 1, 3, 0]  # what fills up lies where the other sample's pixel does
    assert batch.column.tolist() == [0, 1, 1, 1, 2, 2]
    alone = Batch(np.array([0, 7, 4]), 3, 1)
    assert (alone.row.tolist(), alone.column.tolist()) == ([0, 2, 1], [0, 1, 1])


def test_weights_of_pixels():
    x, foreground = torch.tensor([[0.5, 1.0]]), torch.tensor([[True, False]])
    weights = pixel_weights(x, foreground, torch.tensor([[-1, 1]]))
    assert weights.tolist() == [[[1, 0, 0.5, 0, 0.25, 0, 1, -1], [0, 1, 0, 1, 0, 1, 1, 1], [0] * 8]]


# Planes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_colours_are_the_fewest_that_keep_windows_apart(seed):
    generator = np.random.default_rng(seed)
    extent, count = int(generator.integers(3, 12)), int(generator.integers(1, 10))
    stride = generator.choice([0.5, 1, 2])
    places, firsts, sizes = [], [], []
    for _ in range(3):
        place = generator.permutation(count)[: generator.integers(1, count + 1)]
        places.append(place)
        firsts.append((place * stride).astype(np.int64) + generator.integers(-2, 2, len(place)))
        sizes.append(int(generator.integers(1, 5)))
    found = _colours(places, firsts, sizes, extent)
    taken = [
        (pixel, set(range(first, first + size)) & set(range(extent)))
        for place, first, size in zip(places, firsts, sizes, strict=True)
        for pixel, first in zip(place.tolist(), first.tolist(), strict=True)
    ]

    def apart(distance: int) -> bool:
        """Whether windows of pixels at this distance or a larger one lie in order, without a place in common."""
        return all(
            not one or not two or max(one) < min(two) for p, one in taken for q, two in taken if q - p >= distance
        )

    assert apart(found)
    if all(covered for _, covered in taken):
        assert found == 1 or found == 1 + max(place.max() for place in places) or not apart(found - 1)


def test_windows_of_a_plane_do_not_overlap_and_planes_are_few():
    rows = columns = 12
    pixels = np.arange(rows * columns)
    batches = [Batch(pixels[kind::2], columns, 1) for kind in range(2)]
    grids = [Grid(b.row - 1, b.column - 1, 3, 3, rows, columns, 1) for b in batches]
    value = torch.zeros((1, 2, rows, columns))
    weights = pixel_weights(
        *(torch.ones((1, len(pixels)), dtype=kind) for kind in (torch.float32, torch.bool, torch.long))
    )
    sums = LayerSums(value, weights, gate=True, regions=False)
    sums.begin(batches, grids, True, Scratch())
    assert sums.planes_used == 9
    covered = np.zeros((sums.planes_used, rows, columns), int)
    for slots, grid in zip(sums.slots, grids, strict=True):
        for slot, top, left in zip(slots, grid.top, grid.left, strict=True):
            covered[slot, max(top, 0) : top + 3, max(left, 0) : left + 3] += 1
    assert covered.max() == 1
    assert covered.mean() > 0.8


def test_whole_maps_have_a_plane_for_each_pixel():
    sweep = make_sweep(5, 2, whole=True)
    sums = LayerSums(sweep.value, pixel_weights(sweep.grid, sweep.foreground, sweep.signs), True, True)
    sums.begin(sweep.batches, [windows.grid for windows in sweep.windows], True, Scratch())
    assert sums.planes_used == sum(len(batch.pixels) for batch in sweep.batches) // 2
    assert len(sums.planes) == 2 * 30 * sums.planes_used


# Memory -------------------------------------------------------------------------------------------------------------


def test_planes_use_the_same_memory_again():
    scratch, like = Scratch(), torch.zeros(1, dtype=torch.float64)
    first = scratch.take(4, 5, like)
    assert first.shape == (4, 5)
    assert first.dtype == torch.float64
    address = first.data_ptr()
    scratch.give(first)
    smaller = scratch.take(3, 2, like)
    assert smaller.data_ptr() == address
    other = scratch.take(3, 2, like)
    assert other.data_ptr() != address
    scratch.give(smaller)
    again = scratch.take(2, 10, like)  # what was given back is the whole memory
    assert again.data_ptr() == address
    scratch.give(again)
    assert scratch.take(5, 5, like).shape == (5, 5)
    assert not scratch.free


def test_what_an_earlier_layer_left_in_memory_does_not_matter():
    scratch = Scratch()
    scratch.give(torch.full((10_000, 1), torch.nan, dtype=torch.float64))
    for seed, whole in ((1, False), (2, True), (3, False)):
        sweep = make_sweep(seed, whole=whole)
        assert_sums(run(sweep, parts=2, scratch=scratch), sweep, gate=True, regions=True)
        assert len(scratch.free) == 1


def test_columns_are_only_read():
    sweep = make_sweep(6)
    before = [windows.data.clone() for windows in sweep.windows]
    run(sweep, parts=2)
    assert all(torch.equal(windows.data, old) for windows, old in zip(sweep.windows, before, strict=True))
