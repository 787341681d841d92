"""Sweeps: the tangents of all pixels of some samples, pushed through a network in batches.

The tangent of one pixel, pushed through the linearised network, is that pixel's column of the learning images of all
neurons at once. `WindowSweep` carries only the windows that a pixel reaches; `WholeMapSweep` carries whole maps, by
torch's forward-mode derivative of the network as it is, for networks whose operations cannot be followed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.accumulators import Batch
from nnscan.errors import ScanError
from nnscan.linearisation import Linearisation, as_maps
from nnscan.models import capture, counted_calls
from nnscan.windows import Grid, Windows, map_rows

CACHE_BYTES = 6 << 20
"""A batch's largest map takes about this much, so that the batch stays in a processor's cache."""

CALL_PRODUCTS = 10_000_000
"""An operation on a batch takes about the time of as many multiply-adds, however small the batch."""

MODULI = (1, 2, 4, 8, 16, 32)
"""Pixels whose coordinates agree modulo one of these go together; see `WindowSweep`."""

Read = Callable[[str, int, Windows], None]
Leave = Callable[[str], None]


def block_sum(image: Tensor, block: int) -> Tensor:
    """Sum (..., H, W) over blocks of b x b pixels."""
    *rest, height, width = image.shape
    return image.reshape(*rest, height // block, block, width // block, block).sum((-3, -1))


def enlarged(maps: Tensor, block: int) -> Tensor:
    """Return maps (..., H / b, W / b) on all pixels (..., H, W): each value b x b times."""
    return maps.repeat_interleave(block, -2).repeat_interleave(block, -1)


def random_signs(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return 1 and -1 at random, always the same, with the type and device of another tensor.

    A sweep's columns, each times its sign, add up to one derivative of torch's, which checks them all.
    """
    return torch.randint(0, 2, tuple(shape), generator=torch.Generator().manual_seed(0)).to(like) * 2 - 1


def live_pixels(x: Tensor, block: int) -> list[NDArray[np.int64]]:
    """Return for each sample (S, C, H, W) its blocks with any value but zero; the columns of the others are zero."""
    reached = block_sum((x != 0).any(1).to(x.dtype), block).flatten(1) > 0
    return [np.flatnonzero(sample) for sample in reached.cpu().numpy()]


class Sweep(Protocol):
    """A sweep over the pixels of some samples.

    Attributes:
        values: Output of each layer (S, K, h, w).
        batches: The batches of tangents.
        bytes_each: Memory that a batch needs.
        room: How many times as many samples would fill the batches without making them more.
    """

    values: dict[str, Tensor]
    batches: list[Batch]
    bytes_each: int
    room: int

    def grids(self, batch: Batch) -> dict[str, Grid]:
        """Return where a batch's windows lie at each layer that the input reaches."""

    def push(self, batches: Sequence[Batch], read: Read, leave: Leave) -> None:
        """Push batches through the network.

        Args:
            batches: The batches.
            read: Called with a layer, the number of a batch in the list and its windows at this layer.
            leave: Called with a layer when all batches have passed it.
        """


class WindowSweep:
    """Tangents as windows, through the network's linearisation.

    A batch's windows are smallest where all its pixels agree modulo the strides that they meet; but then batches are
    many and small. The modulus is the one of `MODULI` with the least estimated work.

    Args:
        linear: The network's linearisation at inputs x (S, C, H, W).
        tangent: The tangent (S, C, H, W) whose blocks of pixels are pushed one by one; x itself for learning images.
        block: Side of the blocks.
        dtype: Type in which tangents are computed; gates and winners are those of x's own type.
        cache_bytes: See `CACHE_BYTES`.

    Attributes:
        products: Multiply-adds of the sweep.
        room: How many times as many samples would fill the batches without making them more.
    """

    def __init__(
        self,
        linear: Linearisation,
        tangent: Tensor,
        block: int,
        dtype: torch.dtype | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.linear, self.block, self.cache_bytes = linear, block, cache_bytes
        self.shape, self.samples, self.width = tangent.shape, len(tangent), tangent.shape[-1] // block
        self.values = linear.values
        self.rows = map_rows(tangent).to(dtype or tangent.dtype)
        self.live = live_pixels(tangent, block)
        count = max(1, max(map(len, self.live)))
        profiles = {modulus: self._profile(modulus) for modulus in MODULI if modulus == 1 or modulus <= self.width // 2}

        def work(modulus: int) -> float:
            products, _, together = profiles[modulus]
            batches = modulus**2 * max(1.0, count / modulus**2 / together)
            return products * count * self.samples + CALL_PRODUCTS * batches * len(self.linear.order)

        modulus = min(profiles, key=work)
        self.room = max(1, profiles[modulus][2] * modulus**2 // count)
        each, self.bytes_each, together = profiles[modulus]
        self.products = each * sum(map(len, self.live))
        self.bytes_each *= together * self.samples
        self.batches = list(self._batches(modulus, together))

    def _profile(self, modulus: int) -> tuple[float, int, int]:
        """Return what windows of pixels that agree modulo a number cost.

        Returns:
            Multiply-adds of a tangent, its bytes, and how many tangents of each sample go together.
        """
        height = self.shape[-2] // self.block
        row = np.arange(height // 2 % modulus, height, modulus)[:32]
        column = np.arange(self.width // 2 % modulus, self.width, modulus)[:32]
        count = max(len(row), len(column))
        grid = Grid(
            np.resize(row, count) * self.block, np.resize(column, count) * self.block,
            self.block, self.block, self.shape[-2], self.shape[-1], 1,
        )  # fmt: skip
        grids = self.linear.grids(grid)
        item = self.rows.element_size()
        largest = max(self.linear.channels(index) * found.size for index, found in grids.items()) * item // count
        together = max(1, self.cache_bytes // max(1, largest * self.samples))
        held = self.linear.held(grids) * item // count
        return self.linear.products(grids) / count, held + 2 * largest, together

    def _batches(self, modulus: int, together: int) -> Iterator[Batch]:
        classes = [live // self.width % modulus * modulus + live % self.width % modulus for live in self.live]
        for kind in range(modulus**2):
            members = [live[own == kind] for live, own in zip(self.live, classes, strict=True)]
            count = max(map(len, members))
            pixels = np.full((count, self.samples), -1)
            for sample, member in enumerate(members):
                pixels[: len(member), sample] = member
            for start in range(0, count, together):
                yield Batch(pixels[start : start + together].reshape(-1), self.width, self.samples)

    def _grid(self, batch: Batch) -> Grid:
        size = self.block
        return Grid(batch.row * size, batch.column * size, size, size, self.shape[-2], self.shape[-1], self.samples)

    def grids(self, batch: Batch) -> dict[str, Grid]:
        """See `Sweep`."""
        found = self.linear.grids(self._grid(batch))
        return {layer: found[place] for layer, place in self.linear.places.items()}

    def _start(self, batch: Batch) -> Windows:
        grid = self._grid(batch)
        data = self.rows.index_select(0, grid.index.to(self.rows.device))
        data = data.view(len(grid), self.block, self.block, -1)
        missing = torch.from_numpy(batch.pixels < 0).to(data.device)
        return Windows(data.masked_fill(missing[:, None, None, None], 0), grid)

    def push(self, batches: Sequence[Batch], read: Read, leave: Leave) -> None:
        """See `Sweep`."""
        self.linear.push([lambda batch=batch: self._start(batch) for batch in batches], read, leave)  # type: ignore[misc]


class Prefix:
    """A network up to the last of some layers. What is behind is run once and needs no derivative.

    Args:
        model: A network prepared by `models.prepare`.
        x: Its input.
        layers: Names of layers.

    Attributes:
        values: Output of each layer at x.
    """

    def __init__(self, model: nn.Module, x: Tensor, layers: Sequence[str]) -> None:
        self.model, self.x, self.layers = model, x, layers
        self.calls: int | None = None
        with torch.no_grad():
            self.values = self._outputs(x)

    def derivative(self, tangent: Tensor) -> tuple[Tensor, ...]:
        """Return torch's forward-mode derivative of each layer's output at x along a tangent.

        Raises:
            ScanError: torch has none of an operation of the network.
        """
        with torch.no_grad():
            try:
                found: tuple[Tensor, ...] = torch.func.jvp(self._outputs, (self.x,), (tangent,))[1]
            except NotImplementedError as error:
                raise ScanError(f"the network cannot be scanned: {error}") from error
        return found

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        with capture(self.model, self.layers) as outputs, counted_calls(self.model, self.layers, self.calls) as calls:
            self.model(x.clone())  # it may change its input in place
        self.calls = len(calls)
        return tuple(outputs[layer] for layer in self.layers)


class WholeMapSweep:
    """Tangents as whole maps, through torch's forward-mode derivative of the network.

    Args:
        model: A network prepared by `models.prepare`.
        x: One input (1, C, H, W): what a network does with several at once is not known here.
        layers: Names of layers.
        block: Side of the blocks of pixels.
        together: Tangents in a batch.
    """

    def __init__(self, model: nn.Module, x: Tensor, layers: Sequence[str], block: int, together: int) -> None:
        self.x, self.layers, self.block = x, layers, block
        self.width, self.room = x.shape[-1] // block, 1
        self.prefix = Prefix(model, x, layers)
        self.values = {layer: as_maps(output) for layer, output in zip(layers, self.prefix.values, strict=True)}
        live = live_pixels(x, block)[0]
        self.batches = [Batch(live[start : start + together], self.width, 1) for start in range(0, len(live), together)]
        self.bytes_each = sum(value.nbytes for value in self.values.values()) * together

    def grids(self, batch: Batch) -> dict[str, Grid]:
        """See `Sweep`."""
        nothing = np.zeros(len(batch.pixels), np.int64)
        extents = {layer: (value.shape[2], value.shape[3]) for layer, value in self.values.items()}
        return {layer: Grid(nothing, nothing, *size, *size, 1) for layer, size in extents.items()}

    def _tangents(self, batch: Batch) -> Tensor:
        height = self.x.shape[-2] // self.block
        selected = torch.zeros((len(batch.pixels), height, self.width), dtype=self.x.dtype, device=self.x.device)
        selected[torch.arange(len(batch.pixels)), batch.row, batch.column] = 1
        return enlarged(selected, self.block)[:, None, None] * self.x

    def push(self, batches: Sequence[Batch], read: Read, leave: Leave) -> None:
        """See `Sweep`."""
        derivative = torch.func.vmap(self.prefix.derivative)
        for number, batch in enumerate(batches):
            with torch.no_grad():
                columns = derivative(self._tangents(batch))
            for (layer, grid), column in zip(self.grids(batch).items(), columns, strict=True):
                maps = column.reshape(len(grid), -1, grid.rows, grid.columns)
                read(layer, number, Windows(maps.permute(0, 2, 3, 1).contiguous(), grid))
        for layer in self.layers:
            leave(layer)
