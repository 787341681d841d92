"""nnscan.sweeps: every pixel goes through the network once, in batches of windows or of whole maps."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnscan import sweeps
from nnscan.linearisation import Linearisation
from nnscan.models import prepare
from nnscan.sweeps import WholeMapSweep, WindowSweep, block_sum, live_pixels
from nnscan.windows import Grid
from twins import block_sum as naive_block_sum
from twins import images, noise, seeded

LAYERS = ["first", "second", "third", "head"]


class Net(nn.Module):
    """Three convolutions, two of them with a stride, and a linear layer; for images of 12 x 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.third, self.head = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(5 * 3 * 2, 3)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.third(x)).flatten(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return prepare(Net().double())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Three images; each has other pixels of zero, one of them none."""
    drawn = noise(3, 2, 12, 10)
    drawn[0] *= torch.rand((12, 10), generator=seeded(1)) < 0.4
    drawn[2] *= torch.rand((12, 10), generator=seeded(2)) < 0.7
    drawn[2, 0, :4] = 0
    return drawn


@pytest.fixture(scope="module")
def expected(model, x) -> dict[tuple[str, int], torch.Tensor]:
    """The images of all neurons of each layer and sample (n, H, W), summed over channels."""
    return {(layer, s): images(model, x[s], layer).sum(1) for layer in LAYERS for s in range(len(x))}


def columns(sweep, samples: int, block: int, parts: int = 1) -> dict[str, torch.Tensor]:
    """Push all batches, in some calls; return the columns (S, P, K, h, w) and check what the sweep says of them."""
    pixels = (12 // block) * (10 // block)
    found = {layer: torch.zeros((samples, pixels, *value.shape[1:])) for layer, value in sweep.values.items()}
    found = {layer: values.to(sweep.values[layer].dtype) for layer, values in found.items()}
    seen, left = [], []
    for numbers in np.array_split(np.arange(len(sweep.batches)), parts):
        run = [sweep.batches[number] for number in numbers]

        def read(layer, number, windows, run=run):
            grid = sweep.grids(run[number])[layer]
            assert windows.grid.same_places(grid)
            assert windows.data.shape == (len(grid), grid.height, grid.width, windows.channels)
            seen.append((layer, id(run[number])))
            maps = windows.whole().images()
            for tangent, pixel in enumerate(run[number].pixels):
                if pixel >= 0:
                    found[layer][tangent % samples, pixel] = maps[tangent]
                else:
                    assert not maps[tangent].any()

        def leave(layer, run=run):
            assert {batch for name, batch in seen if name == layer} >= {id(batch) for batch in run}
            left.append(layer)

        sweep.push(run, read, leave)
    assert sorted(seen) == sorted((layer, id(batch)) for layer in sweep.values for batch in sweep.batches)
    assert sorted(left) == sorted([*sweep.values] * parts)
    return found


def assert_columns(found: dict[str, torch.Tensor], expected, samples: list[int], block: int) -> None:
    for layer, values in found.items():
        for position, sample in enumerate(samples):
            wanted = torch.from_numpy(naive_block_sum(expected[layer, sample].numpy(), block)).flatten(1).T
            torch.testing.assert_close(values[position].flatten(1), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cache_bytes", [1, 2**12, 2**16, 2**24])
@pytest.mark.parametrize("block", [1, 2])
def test_columns_of_windows(model, x, expected, block, cache_bytes):
    sweep = WindowSweep(Linearisation(model, x, LAYERS), x, block, cache_bytes=cache_bytes)
    assert_columns(columns(sweep, 3, block), expected, [0, 1, 2], block)
    if cache_bytes == 2**12:
        assert_columns(columns(sweep, 3, block, parts=3), expected, [0, 1, 2], block)


@pytest.mark.parametrize("modulus", [1, 2, 4])
def test_the_modulus_does_not_matter(model, x, expected, modulus, monkeypatch):
    monkeypatch.setattr(sweeps, "MODULI", (1, modulus))
    monkeypatch.setattr(sweeps, "CALL_PRODUCTS", 10**9 if modulus == 1 else -(10**9))  # many batches cost, or pay
    sweep = WindowSweep(Linearisation(model, x, LAYERS), x, 1)
    assert_columns(columns(sweep, 3, 1), expected, [0, 1, 2], 1)
    for batch in sweep.batches:
        live = batch.pixels >= 0
        kinds = {(int(p) // 10 % modulus, int(p) % 10 % modulus) for p in batch.pixels[live]}
        assert len(kinds) == 1
    assert len(sweep.batches) >= modulus**2


@pytest.mark.parametrize("together", [1, 7, 200])
@pytest.mark.parametrize("block", [1, 2])
def test_columns_of_whole_maps(model, x, expected, block, together):
    for sample in range(2):
        sweep = WholeMapSweep(model, x[sample : sample + 1], LAYERS, block, together)
        assert all(len(batch.pixels) <= together for batch in sweep.batches)
        assert_columns(columns(sweep, 1, block), expected, [sample], block)
        assert sweep.bytes_each == together * 8 * sum(value[0].numel() for value in sweep.values.values())


def test_every_live_pixel_goes_once(model, x):
    linear = Linearisation(model, x, LAYERS)
    for block, cache_bytes in itertools.product([1, 2], [1, 2**14, 2**24]):
        sweep = WindowSweep(linear, x, block, cache_bytes=cache_bytes)
        for sample in range(3):
            pushed = np.concatenate([batch.pixels[sample::3] for batch in sweep.batches])
            assert sorted(pushed[pushed >= 0].tolist()) == live_pixels(x, block)[sample].tolist()
        filled = sum(int((batch.pixels < 0).sum()) for batch in sweep.batches)
        assert filled > 0  # samples have different numbers of pixels
        assert all((batch.pixels.reshape(-1, 3) >= 0).any(1).all() for batch in sweep.batches)  # none only fills up


def test_another_tangent_than_the_input(model, x):
    """The tangent of one channel gives that channel's part of the images."""
    linear = Linearisation(model, x, ["second"])
    both = columns(WindowSweep(linear, x, 1), 3, 1)["second"]
    channels = torch.eye(2, dtype=torch.float64)[:, None, :, None, None]
    parts = [columns(WindowSweep(linear, x * channel, 1), 3, 1)["second"] for channel in channels]
    torch.testing.assert_close(parts[0] + parts[1], both, rtol=1e-10, atol=1e-12)
    expected = images(model, x[1], "second")[:, 0].flatten(1).T
    torch.testing.assert_close(parts[0][1].flatten(1), expected, rtol=1e-10, atol=1e-12)


def test_tangents_of_another_type(model, x, expected):
    sweep = WindowSweep(Linearisation(model, x, LAYERS), x, 2, dtype=torch.bfloat16)
    found = columns(sweep, 3, 2)
    exact = columns(WindowSweep(Linearisation(model, x, LAYERS), x, 2), 3, 2)
    for layer, values in exact.items():
        assert sweep.values[layer].dtype == torch.float64
        error = (found[layer] - values).abs().max() / values.abs().max()
        assert 1e-4 < error < 0.03


def test_an_image_of_zeros_has_no_batches(model):
    blank = torch.zeros((2, 2, 12, 10), dtype=torch.float64)
    for sweep in (
        WindowSweep(Linearisation(model, blank, LAYERS), blank, 1),
        WholeMapSweep(model, blank[:1], LAYERS, 1, 5),
    ):
        assert sweep.batches == []
        assert sweep.room >= 1
        assert not columns(sweep, len(sweep.values["first"]), 1)["head"].any()


def test_products_are_those_of_the_windows_pushed(model, x):
    monochrome = x[1:2]
    linear = Linearisation(model, monochrome, LAYERS)
    sweep = WindowSweep(linear, monochrome, 1, cache_bytes=1)
    single = [Grid(np.array([y]), np.array([x]), 1, 1, 12, 10, 1) for y in range(12) for x in range(10)]
    exact = sum(linear.products(linear.grids(grid)) for grid in single)
    assert sweep.products == pytest.approx(exact, rel=0.4)  # an estimate by pixels of one class
    assert sweep.products < 120 * linear.whole_products()


def test_room_is_how_many_times_as_many_samples_fill_the_batches(model, x):
    def sweep(samples: int) -> WindowSweep:
        several = x[1:2].repeat(samples, 1, 1, 1)
        return WindowSweep(Linearisation(model, several, LAYERS), several, 2, cache_bytes=2**20)

    one = sweep(1)
    assert one.room > 1
    more = sweep(min(one.room, 64))
    assert len(more.batches) <= len(one.batches)
    assert more.bytes_each <= 3 * 2**20  # largest map twice, and what waits
    small = WindowSweep(Linearisation(model, x, LAYERS), x, 1, cache_bytes=1)
    assert small.room == 1


def test_memory_of_a_batch_is_bounded(model, x):
    for cache_bytes in (2**12, 2**16):
        sweep = WindowSweep(Linearisation(model, x, LAYERS), x, 1, cache_bytes=cache_bytes)
        sizes = []

        def read(layer, number, windows, sizes=sizes):
            sizes.append(windows.data.numel() * 8)

        sweep.push(sweep.batches, read, lambda _: None)
        assert sweep.bytes_each >= 1.5 * max(sizes)  # two such maps, and what waits for later layers
        assert max(sizes) <= 2 * cache_bytes


@pytest.mark.parametrize("block", [1, 2, 4])
def test_sums_of_blocks_and_live_pixels(x, block):
    x = x[..., :8]
    summed = block_sum(x, block)
    np.testing.assert_allclose(summed.numpy(), naive_block_sum(x.numpy(), block), rtol=1e-12, atol=1e-12)
    cancelling = x.clone()
    cancelling[1] = torch.tensor([1.0, -1.0])[:, None, None]  # channels and places that sum up to nothing
    for sample, live in enumerate(live_pixels(cancelling, block)):
        any_value = naive_block_sum((cancelling[sample] != 0).any(0).double().numpy(), block).reshape(-1) > 0
        assert live.tolist() == np.flatnonzero(any_value).tolist()


def test_a_model_that_changes_its_input_in_place(x):
    class Centring(Net):
        def forward(self, x):
            x -= 0.5
            return super().forward(x)

    torch.manual_seed(0)
    model = prepare(Centring().double())
    before = x.clone()
    whole = columns(WholeMapSweep(model, x[:1], LAYERS, 2, 9), 1, 2)
    windows = columns(WindowSweep(Linearisation(model, x[:1], LAYERS), x[:1], 2), 1, 2)
    for layer in LAYERS:
        torch.testing.assert_close(windows[layer], whole[layer], rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)
