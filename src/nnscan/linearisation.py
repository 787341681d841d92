"""The linearisation of a network at some inputs: its operations with gates and pooling winners frozen, run on windows.

One plain forward pass is watched operation by operation, in whatever way the network calls them: modules or functions,
in place or not, reused or not. Each operation that depends on the input becomes a node that knows how a tangent passes
it; the tangents of pixels are then pushed through the nodes as windows (`windows`), so that nothing is computed where a
pixel does not reach. How windows pass is derived from each operation's own parameters. An operation without a rule of
its own runs on whole maps, by torch's forward-mode derivative, and is listed in `Linearisation.whole_maps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnscan.errors import ModelError
from nnscan.windows import Filtering, Grid, Passage, Windows, joined, map_rows, padded

aten = torch.ops.aten

_POINTWISE = frozenset(
    (
        *(aten.relu, aten.hardtanh, aten.leaky_relu, aten._prelu_kernel, aten.threshold, aten.clamp, aten.clamp_min),
        *(aten.clamp_max, aten.abs, aten.sigmoid, aten.tanh, aten.silu, aten.gelu, aten.hardswish, aten.hardsigmoid),
        *(aten.elu, aten.softplus, aten.mish, aten.exp, aten.log, aten.sqrt, aten.rsqrt, aten.neg, aten.erf),
        *(aten.hardshrink, aten.softshrink, aten.log_sigmoid, aten.square, aten.reciprocal, aten.relu6, aten.celu),
    )
)
"""Functions of each value alone; their factor is the derivative at the value."""

_NORMALISATIONS = frozenset((aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training))
_SAME = frozenset((aten.alias, aten.clone, aten.lift_fresh))
_CONSTANT = frozenset(
    (
        *(aten.detach, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like),
        *(aten.randn_like, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided),
    )
)
"""Operations that pass no derivative on."""

_RESHAPES = frozenset((aten.view, aten._unsafe_view, aten._reshape_alias, aten.unsqueeze, aten.squeeze))
_REORDERS = frozenset((aten.permute, aten.transpose, aten.slice, aten.select))
_SPLITS = frozenset((aten.split, aten.split_with_sizes))


class LinearisationError(ModelError):
    """A network's linearisation cannot be run on windows; the message says why."""


class Cell:
    """A value of the forward pass, kept as it was even if the network changes it in place afterwards."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Field(NamedTuple):
    """Which pixels along one axis a map is computed from: place i reads `size` pixels, from `first + stride * i` on.

    What padding adds counts as pixels, so that a field may begin in front of the image and end behind it.
    """

    first: int
    size: int
    stride: int

    def through(self, filtering: Filtering) -> Field:
        """Return the field of a map that a filter makes of this one."""
        extent, stride, padding = filtering
        return Field(self.first - self.stride * padding, self.size + self.stride * (extent - 1), self.stride * stride)

    def union(self, other: Field) -> Field | None:
        """Return the field of a sum of two maps; None where their strides differ."""
        first = min(self.first, other.first)
        end = max(self.first + self.size, other.first + other.size)
        return Field(first, end - first, self.stride) if self.stride == other.stride else None

    def centres(self, count: int) -> NDArray[np.float64]:
        """Return the middle of the pixels that each place reads (count,); 0 is the middle of the first pixel."""
        return self.first + (self.size - 1) / 2 + self.stride * np.arange(count, dtype=np.float64)


Fields = tuple[Field, Field]
"""The fields of a map's rows and columns."""


def _united(fields: Sequence[Fields | None]) -> Fields | None:
    """Return the fields of an operation on several maps, of which those without a place do not count."""
    placed = [both for both in fields if both is not None]
    if not placed:
        return None
    (rows, columns), *others = placed
    for down, across in others:
        both = (rows.union(down), columns.union(across))
        if both[0] is None or both[1] is None:
            return None
        rows, columns = both[0], both[1]
    return rows, columns


class Rule:
    """How tangents pass an operation."""

    def ready(self) -> None:
        """Compute what the rule takes from the forward pass; called once, for operations that are needed."""

    def grid(self, *grids: Grid) -> Grid:
        """Return where the result's windows lie."""
        raise NotImplementedError

    def push(self, *windows: Windows) -> Windows:
        """Return the tangents behind the operation."""
        raise NotImplementedError

    def products(self, grid: Grid) -> int:
        """Return the multiply-adds of a result with these windows, where they are many."""
        return 0

    def fields(self, *fields: Fields | None) -> Fields | None:
        """Return the fields of the result; None where its places are none of the image's."""
        return None


class _SamePlace(Rule):
    """An operation whose result has the places of what it reads; a sum of several joins their fields."""

    def fields(self, *fields: Fields | None) -> Fields | None:
        return _united(fields)


class _Filter(Rule):
    """An operation that slides over its map.

    Attributes:
        filters: Both axes.
    """

    filters: tuple[Filtering, Filtering]

    def fields(self, *fields: Fields | None) -> Fields | None:
        if fields[0] is None:
            return None
        (rows, columns), (down, across) = fields[0], self.filters
        return rows.through(down), columns.through(across)


def _extents(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return rows, columns and channels of a map (S, ..., H, W); what has no place has one row and column."""
    if len(shape) < 4:
        return 1, 1, int(np.prod(shape[1:]))
    return shape[-2], shape[-1], int(np.prod(shape[1:-2]))


def _from_maps(values: Tensor, samples: int) -> Windows:
    """Return tangents given as whole maps (T, ..., H, W)."""
    rows, columns, channels = _extents(values.shape)
    data = values.reshape(len(values), channels, rows, columns).permute(0, 2, 3, 1).contiguous()
    nothing = np.zeros(len(values), np.int64)
    return Windows(data, Grid(nothing, nothing, rows, columns, rows, columns, samples))


def _maps(windows: Windows, shape: Sequence[int]) -> Tensor:
    """Return tangents as whole maps (T, ..., H, W) of a tensor with the given shape (S, ..., H, W)."""
    whole = windows.whole()
    return whole.images().reshape(len(whole.grid), *shape[1:])


@dataclass
class _Convolution(_Filter):
    """A convolution; also with the factors of the batch normalisation behind it, where nothing else reads it."""

    weight: Tensor
    filters: tuple[Filtering, Filtering]
    dilation: tuple[int, int]
    groups: int
    extents: tuple[int, int]

    def grid(self, *grids: Grid) -> Grid:
        passages = grids[0].through(self.filters, *self.extents)
        return grids[0].after(passages, *self.extents)

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        passages = source.grid.through(self.filters, *self.extents)
        source = source.cleaned().placed(source.grid.before(passages))
        (down, across), data = passages, source.data
        paddings = (down.before, across.before)
        if not (_symmetric(down, self.filters[0]) and _symmetric(across, self.filters[1])):
            data = padded(data, across.before, across.after, down.before, down.after)
            paddings = (0, 0)
        strides = (self.filters[0].stride, self.filters[1].stride)
        weight = self.weight.to(data.dtype)
        images = functional.conv2d(
            data.permute(0, 3, 1, 2), weight, None, strides, paddings, self.dilation, self.groups
        )
        result = images.permute(0, 2, 3, 1).contiguous()
        return Windows(result, source.grid.after(passages, *self.extents), clean=False)

    def products(self, grid: Grid) -> int:
        return grid.size * self.weight.numel()


def _symmetric(passage: Passage, filtering: Filtering) -> bool:
    """Whether as much padding behind as in front gives the same result; the convolution can do that without a copy."""
    count = (passage.size + 2 * passage.before - filtering.extent) // filtering.stride + 1
    return passage.before >= 0 and count == passage.length


@dataclass
class _Factor(_SamePlace):
    """A multiplication by a map of the forward pass, one factor per value or per place.

    Attributes:
        value: Returns the factors in the shape of the value (S, ..., H, W).
        reuse: Whether nobody else reads the tangents that come in, so that they may be written over.
    """

    value: Callable[[], Tensor]
    reuse: bool = False
    rows: Tensor = field(default_factory=lambda: torch.empty(0))

    def ready(self) -> None:
        factors = self.value()
        del self.value  # and with it what the factors were computed from
        rows, columns, channels = _extents(factors.shape)
        self.rows = map_rows(factors.reshape(len(factors), channels, rows, columns))

    def grid(self, *grids: Grid) -> Grid:
        return grids[0]

    def push(self, *windows: Windows) -> Windows:
        return windows[0].scaled(self.rows.to(windows[0].data.dtype), self.reuse)


@dataclass
class _ChannelFactor(_SamePlace):
    """A multiplication by one factor per channel, or one for all (K or 1,)."""

    factors: Tensor

    def grid(self, *grids: Grid) -> Grid:
        return grids[0]

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        return Windows(source.data * self.factors.to(source.data.dtype), source.grid, source.clean)


@dataclass
class _MaxPool(_Filter):
    """Max-pooling: each place takes the tangent of its winner.

    Attributes:
        indices: The winners as torch gives them (S, K, H, W): row times columns plus column, in the map in front.
        columns: Columns of that map.
        kernel: Rows and columns of the kernel.
        dilation: Distance between its taps.
        filters: Both axes.
        extents: Rows and columns of the result.
        winners: Which tap won, as rows of `windows.map_rows`, counted from 1; 0 is nowhere.
    """

    indices: Tensor
    columns: int
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    filters: tuple[Filtering, Filtering]
    extents: tuple[int, int]
    winners: Tensor = field(default_factory=lambda: torch.empty(0))

    def ready(self) -> None:
        taps = []
        for axis, places in enumerate((self.indices // self.columns, self.indices % self.columns)):
            starts = torch.arange(self.extents[axis], device=places.device) * self.filters[axis].stride
            starts = (
                (starts - self.filters[axis].padding).view(-1, 1) if axis == 0 else starts - self.filters[axis].padding
            )
            taps.append((places - starts) // self.dilation[axis])
        del self.indices
        number = taps[0] * self.kernel[1] + taps[1] + 1
        self.winners = map_rows(number.to(torch.float32))

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].after(grids[0].through(self.filters, *self.extents), *self.extents)

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        down, across = source.grid.through(self.filters, *self.extents)
        source = source.cleaned().placed(source.grid.before((down, across)))
        data = padded(source.data, across.before, max(across.after, 0), down.before, max(down.after, 0))
        grid = source.grid.after((down, across), *self.extents)
        result = Windows(data.new_zeros((len(grid), grid.height, grid.width, source.channels)), grid)
        winners = result.under(self.winners)
        target = result.data.view(-1, *winners.shape[1:])
        (row_stride, column_stride), (height, width) = (way.stride for way in self.filters), (grid.height, grid.width)
        for tap in range(self.kernel[0] * self.kernel[1]):
            y = (tap // self.kernel[1]) * self.dilation[0]
            x = (tap % self.kernel[1]) * self.dilation[1]
            taken = data[
                :,
                y : y + row_stride * (height - 1) + 1 : row_stride,
                x : x + column_stride * (width - 1) + 1 : column_stride,
            ]
            # a comparison that writes numbers is several times faster than one that writes booleans
            won = torch.eq(winners, tap + 1, out=torch.empty_like(winners)).to(data.dtype)
            target.addcmul_(taken.reshape(target.shape), won)
        return result


@dataclass
class _AveragePool(_Filter):
    """Average-pooling: the sum over the kernel times a factor per place, which knows what padding counts for."""

    kernel: tuple[int, int]
    filters: tuple[Filtering, Filtering]
    extents: tuple[int, int]
    factors: Tensor

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].after(grids[0].through(self.filters, *self.extents), *self.extents)

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        down, across = source.grid.through(self.filters, *self.extents)
        source = source.cleaned().placed(source.grid.before((down, across)))
        data = padded(source.data, across.before, max(across.after, 0), down.before, max(down.after, 0))
        strides = (self.filters[0].stride, self.filters[1].stride)
        sums = functional.avg_pool2d(data.permute(0, 3, 1, 2), self.kernel, strides, divisor_override=1)
        sums = sums[:, :, : down.length, : across.length].permute(0, 2, 3, 1).contiguous()
        grid = source.grid.after((down, across), *self.extents)
        return Windows(sums, grid, clean=False).scaled(self.factors.to(sums.dtype), reuse=True)


@dataclass
class _Mean(Rule):
    """The mean over all places."""

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].on_map(1, 1)

    def push(self, *windows: Windows) -> Windows:
        source = windows[0].cleaned()
        total = source.data.sum((1, 2), keepdim=True) / (source.grid.rows * source.grid.columns)
        return Windows(total, source.grid.on_map(1, 1))


@dataclass
class _Sum(_SamePlace):
    """A weighted sum of maps of the same shape."""

    weights: tuple[float, ...]

    def grid(self, *grids: Grid) -> Grid:
        result = grids[0]
        for other in grids[1:]:
            result = result if result.same_places(other) else result.union(other)
        return result

    def push(self, *windows: Windows) -> Windows:
        parts = joined(windows)
        total = parts[0].data if self.weights[0] == 1 else parts[0].data * self.weights[0]
        for part, weight in zip(parts[1:], self.weights[1:], strict=True):
            total = total.add(part.data, alpha=weight)
        return Windows(total, parts[0].grid, all(part.clean for part in parts))


@dataclass
class _Product(_SamePlace):
    """The product of maps of two shapes that both depend on the input, as of a gate: x dy + y dx, on whole maps."""

    values: tuple[Cell, Cell]
    shape: Sequence[int]

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].on_map(*_extents(self.shape)[:2])

    def push(self, *windows: Windows) -> Windows:
        samples = windows[0].grid.samples
        total = None
        for source, own, other in zip(windows, self.values, reversed(self.values), strict=True):
            maps = _maps(source, own.value.shape)
            split = maps.view(-1, samples, *maps.shape[1:])
            part = split * other.value.to(maps.dtype)
            total = part if total is None else total + part
        assert total is not None
        return _from_maps(total.reshape(-1, *total.shape[2:]), samples)


@dataclass
class _Concatenation(_SamePlace):
    """Maps behind one another along their channels; an operand that does not depend on the input has no tangent."""

    channels: tuple[int, ...]
    present: tuple[bool, ...]

    def grid(self, *grids: Grid) -> Grid:
        return _Sum(()).grid(*grids)

    def push(self, *windows: Windows) -> Windows:
        parts = joined(windows)
        remaining = iter(parts)
        grid = parts[0].grid
        data = [
            next(remaining).data if present else parts[0].data.new_zeros((len(grid), grid.height, grid.width, channels))
            for channels, present in zip(self.channels, self.present, strict=True)
        ]
        return Windows(torch.cat(data, dim=3), grid, all(part.clean for part in parts))


@dataclass
class _Channels(_SamePlace):
    """A rearrangement or choice of channels: a function of tensors whose last dimensions are those of the channels."""

    before: tuple[int, ...]
    change: Callable[[Tensor], Tensor]

    def grid(self, *grids: Grid) -> Grid:
        return grids[0]

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        changed = self.change(source.data.reshape(*source.data.shape[:3], *self.before))
        return Windows(changed.flatten(3).contiguous(), source.grid, source.clean)


@dataclass
class _Shift(Rule):
    """Zero padding, or with negative numbers cropping, in front of the rows and columns."""

    top: int
    left: int
    extents: tuple[int, int]

    def grid(self, *grids: Grid) -> Grid:
        (old,) = grids
        return Grid(old.top + self.top, old.left + self.left, old.height, old.width, *self.extents, old.samples)

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        return Windows(source.cleaned().data, self.grid(source.grid), clean=False)

    def fields(self, *fields: Fields | None) -> Fields | None:
        if fields[0] is None:
            return None
        rows, columns = fields[0]
        return rows.through(Filtering(1, 1, self.top)), columns.through(Filtering(1, 1, self.left))


@dataclass
class _Matrix(_SamePlace):
    """A linear layer (K_in, K_out) on maps of one place."""

    weight: Tensor

    def grid(self, *grids: Grid) -> Grid:
        return grids[0]

    def push(self, *windows: Windows) -> Windows:
        (source,) = windows
        return Windows(source.data @ self.weight.to(source.data.dtype), source.grid)

    def products(self, grid: Grid) -> int:
        return grid.size * self.weight.numel()


@dataclass
class _Rearrangement(Rule):
    """A change of shape or order of whole maps: a function of (T, ...) that leaves the first dimension alone."""

    before: Sequence[int]
    after: Sequence[int]
    change: Callable[[Tensor], Tensor]

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].on_map(*_extents(self.after)[:2])

    def push(self, *windows: Windows) -> Windows:
        return _from_maps(self.change(_maps(windows[0], self.before)), windows[0].grid.samples)


@dataclass
class _Derivative(Rule):
    """Any other operation: torch's forward-mode derivative, on whole maps.

    Attributes:
        name: The operation's name.
        function: The operation as a function of the tensors that depend on the input.
        values: These tensors.
        shape: Shape of the result.
    """

    name: str
    function: Callable[..., Tensor]
    values: tuple[Cell, ...]
    shape: Sequence[int]

    def ready(self) -> None:
        try:
            self._derivative([torch.zeros_like(cell.value)[None] for cell in self.values])
        except RuntimeError as error:
            raise LinearisationError(f"torch has no forward-mode derivative of {self.name}: {error}") from error

    def grid(self, *grids: Grid) -> Grid:
        return grids[0].on_map(*_extents(self.shape)[:2])

    def push(self, *windows: Windows) -> Windows:
        samples, dtype = windows[0].grid.samples, windows[0].data.dtype
        tangents = [
            _maps(source, cell.value.shape).reshape(-1, *cell.value.shape).to(cell.value.dtype)
            for source, cell in zip(windows, self.values, strict=True)
        ]
        pushed = self._derivative(tangents)
        return _from_maps(pushed.reshape(-1, *pushed.shape[2:]).to(dtype), samples)

    def _derivative(self, tangents: Sequence[Tensor]) -> Tensor:
        """Return the derivatives (n, S, ...) in directions (n, S, ...), one for each tensor."""
        primals = tuple(cell.value.contiguous() for cell in self.values)  # not views that repeat one number
        along: Tensor = torch.func.vmap(lambda *given: torch.func.jvp(self.function, primals, given)[1])(*tangents)
        return along


@dataclass
class Node:
    """An operation of the network.

    Attributes:
        rule: How tangents pass it.
        sources: The nodes that it reads.
        shape: Shape of its value (S, ...).
    """

    rule: Rule
    sources: tuple[int, ...]
    shape: tuple[int, ...]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a forward pass and writes down its operations as nodes."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = [Node(Rule(), (), tuple(x.shape))]
        self.places: dict[int, int] = {id(x): 0}
        self.cells: dict[int, Cell] = {}
        self.kept: list[Tensor] = [x]  # what is watched must live, so that its id stays its own
        self.storages: dict[int, set[int]] = {x.untyped_storage().data_ptr(): {id(x)}}
        self.whole_maps: list[tuple[str, int]] = []
        self.broken: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to load its compiler, which takes as long as a small scan, only to keep it away from here."""
        return False

    def place(self, value: Any) -> int | None:
        """Return the node that computed a tensor, or None where it does not depend on the input."""
        return self.places.get(id(value)) if isinstance(value, Tensor) else None

    def cell(self, value: Tensor) -> Cell:
        """Return the cell that keeps a watched tensor's present value."""
        return self.cells.setdefault(id(value), Cell(value))

    def node(self, shape: Sequence[int], rule: Rule, *sources: int) -> int:
        """Write down an operation, or a part of one, with the shape of its value (S, ...)."""
        self.nodes.append(Node(rule, sources, tuple(shape)))
        return len(self.nodes) - 1

    def add(self, value: Tensor, rule: Rule, *sources: int) -> None:
        """Write down the operation that gave a tensor."""
        self.watch(value, self.node(value.shape, rule, *sources))

    def add_whole(self, name: str, value: Tensor, rule: Rule, *sources: int) -> None:
        """Write down an operation that takes whole maps; listed where these have several places."""
        several = [_extents(shape)[:2] != (1, 1) for shape in (value.shape, *(self.nodes[s].shape for s in sources))]
        if several[0] and any(several[1:]):
            self.whole_maps.append((name, len(self.nodes)))
        self.add(value, rule, *sources)

    def watch(self, value: Tensor, place: int) -> None:
        """Remember which node a tensor belongs to."""
        self.places[id(value)] = place
        self.keep(value)

    def keep(self, value: Tensor) -> None:
        """Keep a tensor alive, and remember whose memory it shares."""
        self.kept.append(value)
        self.storages.setdefault(value.untyped_storage().data_ptr(), set()).add(id(value))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [value for value in _tensors((args, kwargs)) if id(value) in self.places]
        if self.broken or not (given or func._schema.is_mutable):
            return func(*args, **kwargs)
        if not func._schema.is_mutable:
            result = func(*args, **kwargs)
            self._record(func.overloadpacket, func, args, kwargs, result)
            return result
        return self._in_place(func, args, kwargs)

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write down an operation that changes its first argument, as one on that argument's former value."""
        target = args[0] if args else None
        aliases = self.storages.get(target.untyped_storage().data_ptr(), set()) if isinstance(target, Tensor) else set()
        depends = any(id(value) in self.places for value in _tensors((args, kwargs)))
        if not depends and not aliases:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        counterpart = getattr(aten, name[:-1], None) if name.endswith("_") else None
        if target is None or self.place(target) is None or aliases != {id(target)} or counterpart is None:
            self.broken = f"{name} changes a tensor that is seen elsewhere too"
            return func(*args, **kwargs)
        former = target.clone()
        if id(target) in self.cells:
            self.cells.pop(id(target)).value = former
        self.places[id(former)] = self.places[id(target)]
        self.kept.append(former)
        result = func(*args, **kwargs)
        read = {id(target): former}  # also where the operation reads the tensor that it changes a second time
        self._record(counterpart, func, _replaced(args, read), _replaced(kwargs, read), target)
        return result

    def _record(self, operation: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if operation in _NORMALISATIONS or operation in (aten.max_pool2d_with_indices,):
            outputs = [result[0]]
        else:
            outputs = [value for value in _tensors(result) if value.is_floating_point()]
        if not outputs:
            return
        if operation in _CONSTANT:
            if operation is aten.detach:  # in the memory of a value that is watched
                self.keep(result)
            return
        samples = self.nodes[0].shape[0]
        if any(value.ndim < 1 or value.shape[0] != samples for value in outputs):
            self.broken = f"{operation.__name__} mixes the samples with other dimensions"
            return
        writer = _WRITERS.get(operation)
        if writer is None or not writer(self, func, args, kwargs, result):
            self._derivative(operation, func, args, kwargs, result)

    def _derivative(
        self, operation: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Write down an operation by its derivative on whole maps."""
        watched = [value for value in _tensors((args, kwargs)) if id(value) in self.places]
        names = [id(value) for value in watched]
        cells = tuple(self.cell(value) for value in watched)
        outputs = [index for index, value in enumerate(_listed(result)) if _is_real(value)]
        overload = getattr(operation, func._overloadname)
        for index in outputs:

            def function(*values: Tensor, index: int = index) -> Tensor:
                replaced = dict(zip(names, values, strict=True))
                found = overload(*_replaced(args, replaced), **_replaced(kwargs, replaced))
                chosen: Tensor = _listed(found)[index]
                return chosen

            value = _listed(result)[index]
            self.whole_maps.append((operation.__name__, len(self.nodes)))
            rule = _Derivative(operation.__name__, function, cells, tuple(value.shape))
            self.add(value, rule, *(self.places[name] for name in names))


# Writers: an operation's rule from its arguments ------------------------------------------------------------------

_Arguments = tuple[Any, ...]


def _numbers(value: Any) -> tuple[int, int]:
    """Return both axes' numbers of an argument that may hold one for both."""
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])


def _bound(func: Any, args: _Arguments, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, with the defaults of the operation."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    return {
        argument.name: given.get(argument.name, argument.default_value if argument.has_default_value() else None)
        for argument in func._schema.arguments
    }


def _filters(kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Filtering, Filtering]:
    axes = zip(_numbers(kernel), _numbers(stride), _numbers(padding), _numbers(dilation), strict=True)
    down, across = (Filtering(apart * (size - 1) + 1, step, before) for size, step, before, apart in axes)
    return down, across


def _write_convolution(
    recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any
) -> bool:
    given = _bound(func, args, kwargs)
    source, weight = given["input"], given["weight"]
    if source.ndim != 4 or given["transposed"] or recorder.place(weight) is not None:
        return False
    if recorder.place(given["bias"]) is not None:
        return False
    filters = _filters(weight.shape[2:], given["stride"], given["padding"], given["dilation"])
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    rule = _Convolution(weight, filters, _numbers(given["dilation"]), given["groups"], _numbers(result.shape[2:]))
    recorder.add(result, rule, recorder.places[id(source)])
    return True


def _write_normalisation(
    recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any
) -> bool:
    given = _bound(func, args, kwargs)
    source = given["input"]
    if any(recorder.place(given[name]) is not None for name in ("weight", "bias", "running_mean", "running_var")):
        return False
    if given.get("training", False):
        recorder.broken = "a batch normalisation takes its statistics from the batch, which mixes the samples"
        return True
    epsilon = given["eps"] if "eps" in given else given["epsilon"]
    factors = (given["running_var"] + epsilon).rsqrt()
    if given["weight"] is not None:
        factors = factors * given["weight"]
    rest = int(np.prod(source.shape[2:])) if source.ndim < 4 else int(np.prod(source.shape[2:-2]))
    recorder.add(result[0], _ChannelFactor(factors.detach().repeat_interleave(rest)), recorder.places[id(source)])
    return True


def _write_pointwise(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    source, *rest = args
    if recorder.place(source) is None or any(recorder.place(value) is not None for value in _tensors((rest, kwargs))):
        return False
    if result.shape != source.shape:
        return False
    cell = recorder.cell(source)
    overload = getattr(getattr(aten, func.overloadpacket.__name__.rstrip("_")), func._overloadname)

    def slope() -> Tensor:
        value = cell.value.detach()
        if overload is aten.relu.default:
            return (value > 0).to(value.dtype)
        with torch.enable_grad():
            variable = value.clone().requires_grad_(True)
            (slopes,) = torch.autograd.grad(overload(variable, *rest, **kwargs).sum(), variable)
        return slopes.detach()

    recorder.add(result, _Factor(slope), recorder.places[id(source)])
    return True


def _write_sum(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    weights = {0: 1.0, 1: float(kwargs.get("alpha", 1)) * (-1 if "sub" in func.overloadpacket.__name__ else 1)}
    watched = {index: value for index, value in enumerate(args[:2]) if recorder.place(value) is not None}
    if any(value.shape != result.shape for value in watched.values()):
        return False
    if len(watched) == 1 and weights[next(iter(watched))] == 1:
        recorder.watch(result, recorder.places[id(next(iter(watched.values())))])
        return True
    rule = _Sum(tuple(weights[index] for index in watched))
    recorder.add(result, rule, *(recorder.places[id(value)] for value in watched.values()))
    return True


def _write_product(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    first, second = args[:2]
    if recorder.place(first) is not None and recorder.place(second) is not None:
        if first.ndim != second.ndim or "div" in func.overloadpacket.__name__:
            return False
        cells, places = (
            (recorder.cell(first), recorder.cell(second)),
            (recorder.places[id(first)], recorder.places[id(second)]),
        )
        if first.shape == second.shape:
            parts = [
                recorder.node(result.shape, _Factor(_value_of(cell)), place)
                for cell, place in zip(reversed(cells), places, strict=True)
            ]
            recorder.add(result, _Sum((1.0, 1.0)), *parts)
        else:
            recorder.add_whole("mul", result, _Product(cells, tuple(result.shape)), *places)
        return True
    source, other = (first, second) if recorder.place(first) is not None else (second, first)
    if source.shape != result.shape:
        return False
    factors = torch.as_tensor(other, dtype=result.dtype, device=result.device)
    if "div" in func.overloadpacket.__name__:
        if source is second or kwargs.get("rounding_mode") is not None:
            return False
        factors = 1 / factors
    if factors.numel() == 1:
        recorder.add(result, _ChannelFactor(factors.reshape(1)), recorder.places[id(source)])
    else:
        cell = Cell(factors if factors is not other else factors.clone())
        recorder.add(result, _Factor(lambda: cell.value.expand(result.shape)), recorder.places[id(source)])
    return True


def _value_of(cell: Cell) -> Callable[[], Tensor]:
    return lambda: cell.value


def _write_mean(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source = given["self"]
    if source.ndim != 4 or given.get("dtype") is not None or given["dim"] is None:
        return False
    if sorted(axis % 4 for axis in given["dim"]) != [2, 3]:
        return False
    recorder.add(result, _Mean(), recorder.places[id(source)])
    return True


def _write_average_pool(
    recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any
) -> bool:
    given = _bound(func, args, kwargs)
    source = given["self"]
    if source.ndim != 4:
        return False
    if func.overloadpacket is aten._adaptive_avg_pool2d:
        if source.shape == result.shape:
            recorder.watch(result, recorder.places[id(source)])
            return True
        if source.shape[2] % result.shape[2] or source.shape[3] % result.shape[3]:
            return False
        kernel = (source.shape[2] // result.shape[2], source.shape[3] // result.shape[3])
        stride, padding = kernel, (0, 0)
    else:
        kernel = _numbers(given["kernel_size"])
        stride, padding = _numbers(given["stride"] or kernel), _numbers(given["padding"])
    ones = source.new_ones((1, *source.shape))[:, 0, :1]
    counts = functional.avg_pool2d(ones, kernel, stride, padding, bool(given.get("ceil_mode")), divisor_override=1)
    averages = counts / (kernel[0] * kernel[1]) if "kernel_size" not in given else func(ones, *args[1:], **kwargs)
    factors = (averages / counts).expand(len(source), -1, -1, -1)
    rule = _AveragePool(kernel, _filters(kernel, stride, padding), _numbers(result.shape[2:]), map_rows(factors))
    recorder.add(result, rule, recorder.places[id(source)])
    return True


def _write_max_pool(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source, (values, indices) = given["self"], result
    if source.ndim != 4:
        return False
    kernel, dilation = _numbers(given["kernel_size"]), _numbers(given["dilation"])
    filters = _filters(kernel, given["stride"] or kernel, given["padding"], dilation)
    rule = _MaxPool(indices, source.shape[3], kernel, dilation, filters, _numbers(values.shape[2:]))
    recorder.add(values, rule, recorder.places[id(source)])
    return True


def _write_concatenation(
    recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any
) -> bool:
    given = _bound(func, args, kwargs)
    parts = given["tensors"]
    if given["dim"] % result.ndim != 1 or any(part.ndim != result.ndim for part in parts):
        return False
    places = [recorder.place(part) for part in parts]
    rule = _Concatenation(
        tuple(_extents(part.shape)[2] for part in parts), tuple(place is not None for place in places)
    )
    recorder.add(result, rule, *(place for place in places if place is not None))
    return True


def _write_reshape(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    before, after = tuple(args[0].shape), tuple(result.shape)
    if _extents(before) == _extents(after):
        recorder.watch(result, recorder.places[id(args[0])])
        return True
    rule = _Rearrangement(before, after, lambda maps: maps.reshape(len(maps), *after[1:]))
    recorder.add_whole(func.overloadpacket.__name__, result, rule, recorder.places[id(args[0])])
    return True


def _write_same(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    recorder.watch(result, recorder.places[id(args[0])])
    return True


def _write_order(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source = given["self"]
    last = source.ndim - 2  # where the places begin, if the value has any
    operation = func.overloadpacket
    if operation is aten.permute:
        moved = [axis for axis, old in enumerate(given["dims"]) if old % source.ndim != axis]
    elif operation is aten.transpose:
        moved = [given["dim0"] % source.ndim, given["dim1"] % source.ndim]
    else:
        moved = [given["dim"] % source.ndim]
    if operation is aten.slice and result.shape == source.shape:
        recorder.watch(result, recorder.places[id(source)])
        return True
    if 0 in moved:
        recorder.broken = f"{operation.__name__} mixes the samples with other dimensions"
        return True
    place = recorder.places[id(source)]
    if source.ndim >= 4 and operation is aten.slice and moved[0] >= last:
        taken = range(source.shape[moved[0]])[given["start"] : given["end"] : given["step"]]
        filters = [Filtering(1, 1, 0), Filtering(1, 1, 0)]
        filters[moved[0] - last] = Filtering(1, taken.step, -taken.start)
        ones = map_rows(result.new_ones((len(result), 1, *result.shape[-2:])))
        # a choice of rows or columns is a pool over single places
        rule: Rule = _AveragePool((1, 1), (filters[0], filters[1]), _numbers(result.shape[-2:]), ones)
        recorder.add(result, rule, place)
        return True
    if source.ndim < 4 or result.ndim < 4 or any(axis >= last for axis in moved):
        rule = _Rearrangement(tuple(source.shape), tuple(result.shape), lambda maps: func(maps, *args[1:], **kwargs))
        recorder.add_whole(operation.__name__, result, rule, place)
        return True

    def change(values: Tensor) -> Tensor:  # the axes of the channels begin at 3 here, at 1 in the network
        if operation is aten.permute:
            return values.permute(0, 1, 2, *(axis % source.ndim + 2 for axis in given["dims"][1:last]))
        if operation is aten.transpose:
            return values.transpose(given["dim0"] % source.ndim + 2, given["dim1"] % source.ndim + 2)
        chosen = {"dim": given["dim"] % source.ndim + 2}
        changed: Tensor = func(values, **{**{name: given[name] for name in given if name != "self"}, **chosen})
        return changed

    recorder.add(result, _Channels(tuple(source.shape[1:last]), change), place)
    return True


def _write_split(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source = given["self"]
    axis, last = given["dim"] % source.ndim, source.ndim - 2
    if axis == 0:
        recorder.broken = "split divides the samples"
        return True
    start = 0
    for part in result:
        length = part.shape[axis]
        place = recorder.places[id(source)]
        if source.ndim >= 4 and axis < last:
            recorder.add(part, _Channels(tuple(source.shape[1:last]), _narrow(axis + 2, start, length)), place)
        else:
            rule = _Rearrangement(tuple(source.shape), tuple(part.shape), _narrow(axis, start, length))
            recorder.add_whole("split", part, rule, place)
        start += length
    return True


def _narrow(axis: int, start: int, length: int) -> Callable[[Tensor], Tensor]:
    return lambda values: values.narrow(axis, start, length)


def _write_padding(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source, pad = given["self"], [*given["pad"], 0, 0, 0, 0]
    if source.ndim < 4 or any(pad[6:]):
        return False
    place = recorder.places[id(source)]
    if any(pad[4:]):
        rule = _Channels(tuple(source.shape[1:-2]), lambda values: functional.pad(values, pad[4:6]))
        place = recorder.node((*result.shape[:-2], *source.shape[-2:]), rule, place)
    recorder.add(result, _Shift(pad[2], pad[0], _numbers(result.shape[-2:])), place)
    return True


def _write_matrix(recorder: _Recorder, func: Any, args: _Arguments, kwargs: Mapping[str, Any], result: Any) -> bool:
    given = _bound(func, args, kwargs)
    source, weight = (given["mat1"], given["mat2"]) if "mat1" in given else (given["self"], given["mat2"])
    rest = [value for value in _tensors((args, kwargs)) if value is not source]
    if recorder.place(source) is None or any(recorder.place(value) is not None for value in rest):
        return False
    if given.get("alpha", 1) != 1:
        return False
    recorder.add(result, _Matrix(weight.detach()), recorder.places[id(source)])
    return True


_WRITERS: dict[Any, Callable[..., bool]] = {
    aten.convolution: _write_convolution,
    **dict.fromkeys(_NORMALISATIONS, _write_normalisation),
    **dict.fromkeys(_POINTWISE, _write_pointwise),
    **dict.fromkeys((aten.add, aten.sub), _write_sum),
    **dict.fromkeys((aten.mul, aten.div), _write_product),
    aten.mean: _write_mean,
    **dict.fromkeys((aten.avg_pool2d, aten._adaptive_avg_pool2d), _write_average_pool),
    aten.max_pool2d_with_indices: _write_max_pool,
    aten.cat: _write_concatenation,
    **dict.fromkeys(_RESHAPES, _write_reshape),
    **dict.fromkeys(_SAME, _write_same),
    **dict.fromkeys(_REORDERS, _write_order),
    **dict.fromkeys(_SPLITS, _write_split),
    aten.constant_pad_nd: _write_padding,
    **dict.fromkeys((aten.addmm, aten.mm), _write_matrix),
}


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _replaced(value: Any, by: Mapping[int, Tensor]) -> Any:
    """Return arguments with some tensors, known by their id, replaced."""
    if isinstance(value, Tensor):
        return by.get(id(value), value)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(part, by) for part in value)
    if isinstance(value, dict):
        return {key: _replaced(part, by) for key, part in value.items()}
    return value


# The linearisation --------------------------------------------------------------------------------------------------


class Linearisation:
    """A network's layers as linear functions of the input, at given inputs.

    Args:
        model: A network prepared by `models.prepare`; hooks are removed afterwards.
        x: Inputs (S, C, H, W).
        layers: Names of the modules whose outputs are wanted.

    Attributes:
        values: Output of each layer (S, K, h, w); see `as_maps`.
        whole_maps: Operations without a rule for windows, in the order of their appearance.

    Raises:
        LinearisationError: An operation in front of a layer cannot be followed.
    """

    def __init__(self, model: nn.Module, x: Tensor, layers: Sequence[str]) -> None:
        self.x = x
        recorder, found = _record(model, x, layers)
        self.values = {layer: as_maps(cell.value) for layer, (cell, _) in found.items()}
        self.nodes = recorder.nodes
        self.places = {layer: self._map_place(layer, place) for layer, (_, place) in found.items() if place is not None}
        self._simplify()
        self.whole_maps = list(dict.fromkeys(name for name, place in recorder.whole_maps if place in self.order))

    def _map_place(self, layer: str, place: int) -> int:
        """Return the node of a layer's output as maps."""
        before, after = self.nodes[place].shape, tuple(self.values[layer].shape)
        if _extents(before) == _extents(after):
            return place
        rule = _Rearrangement(before, after, lambda maps: maps.reshape(len(maps), *after[1:]))
        self.nodes.append(Node(rule, (place,), after))
        return len(self.nodes) - 1

    def _simplify(self) -> None:
        """Keep the operations that the layers need; join a normalisation to the convolution that it alone reads."""
        needed = set(self.places.values())
        for index in range(len(self.nodes) - 1, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].sources)
        layers = set(self.places.values())
        readers = Counter(place for index in needed for place in self.nodes[index].sources)
        for index in sorted(needed):
            node = self.nodes[index]
            if not isinstance(node.rule, _ChannelFactor) or not node.sources:
                continue
            (place,) = node.sources
            source = self.nodes[place]
            if isinstance(source.rule, _Convolution) and readers[place] == 1 and place not in layers:
                factors = node.rule.factors.expand(len(source.rule.weight))
                folded = replace(source.rule, weight=source.rule.weight * factors.view(-1, 1, 1, 1))
                self.nodes[index] = replace(node, rule=folded, sources=source.sources)
                needed.discard(place)
        self.order = sorted(needed)
        self.last_reader = {place: index for index in self.order for place in self.nodes[index].sources}
        for index in self.order:
            node = self.nodes[index]
            if isinstance(node.rule, _Factor):
                (place,) = node.sources
                # what others may still read, or share memory with, is not written over
                node.rule.reuse = readers[place] == 1 and isinstance(
                    self.nodes[place].rule, _Convolution | _Sum | _MaxPool | _AveragePool | _ChannelFactor
                )
            node.rule.ready()
        kept = set(self.order)
        # what the other operations keep of the forward pass is not needed any more
        self.nodes = [node if index in kept else replace(node, rule=Rule()) for index, node in enumerate(self.nodes)]

    def grids(self, start: Grid) -> dict[int, Grid]:
        """Return where the windows of a batch of tangents lie at every operation that is run."""
        found = {0: start}
        for index in self.order:
            if index:
                node = self.nodes[index]
                found[index] = node.rule.grid(*(found[source] for source in node.sources))
        return found

    def fields(self, layer: str) -> Fields | None:
        """Return which pixels the places of a layer's map are computed from; None where its places are none of theirs.

        A map of one place that several places take part of, such as a gate's, does not move theirs.
        """
        found: dict[int, Fields | None] = {0: (Field(0, 1, 1), Field(0, 1, 1))}
        for index in self.order:
            node = self.nodes[index]
            several = _extents(node.shape)[:2] != (1, 1)
            read = (
                None if several and _extents(self.nodes[source].shape)[:2] == (1, 1) else found[source]
                for source in node.sources
            )
            if index:
                found[index] = node.rule.fields(*read)
        return found.get(self.places.get(layer, -1))

    def products(self, grids: Mapping[int, Grid]) -> int:
        """Return the multiply-adds of convolutions and linear maps on these windows."""
        return sum(self.nodes[index].rule.products(grid) for index, grid in grids.items())

    def whole_products(self) -> int:
        """Return the multiply-adds of convolutions and linear maps on whole maps, for one sample."""
        total = 0
        for index in self.order:
            rows, columns, _ = _extents(self.nodes[index].shape)
            nothing = np.zeros(1, np.int64)
            total += self.nodes[index].rule.products(Grid(nothing, nothing, rows, columns, rows, columns, 1))
        return total

    def held(self, grids: Mapping[int, Grid]) -> int:
        """Return the most values that are kept of these windows while a layer waits for the next."""
        most = 0
        for place in set(self.places.values()):
            kept = [index for index in self.order if index <= place < self.last_reader.get(index, -1)]
            most = max(most, sum(grids[index].size * self.channels(index) for index in kept))
        return most

    def channels(self, index: int) -> int:
        """Return the channels of an operation's value."""
        return _extents(self.nodes[index].shape)[2]

    def push(self, batches: Sequence[Callable[[], Windows]], read: Callable[[str, int, Windows], None],
             leave: Callable[[str], None]) -> None:  # fmt: skip
        """Push batches of tangents of the input through the network, layer by layer.

        All batches reach one layer before any of them goes on to the next, so that a layer can be summed up before
        the next one is computed, and no more than the maps between two layers are in memory.

        Args:
            batches: Each returns the windows of a batch of tangents of the input.
            read: Called with a layer, the number of a batch and its windows at this layer, which it must not change.
            leave: Called with a layer when all batches have passed it.
        """
        layers: dict[int, list[str]] = {}
        for layer, place in self.places.items():
            layers.setdefault(place, []).append(layer)
        states: list[dict[int, Windows]] = [{} for _ in batches]
        done = -1
        for place in sorted(layers):
            stretch = [index for index in self.order if done < index <= place]
            for number, state in enumerate(states):
                for index in stretch:
                    node = self.nodes[index]
                    state[index] = (
                        node.rule.push(*(state[source] for source in node.sources)) if index else batches[number]()
                    )
                    for source in set(node.sources):
                        if self.last_reader[source] == index:
                            del state[source]
                for layer in layers[place]:
                    read(layer, number, state[place])
                if place not in self.last_reader:
                    del state[place]
            for layer in layers[place]:
                leave(layer)
            done = place


def as_maps(value: Tensor) -> Tensor:
    """Return a layer's output as maps (S, K, h, w): (S, K) has the map 1 x 1, (S, K, w) has one row."""
    return value.reshape(*value.shape[:2], -1, value.shape[-1] if value.ndim > 2 else 1)


def _record(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[_Recorder, dict[str, tuple[Cell, int | None]]]:
    """Watch a forward pass; return the operations, and each layer's value with its operation."""
    source = x.detach().clone()  # a model may change its input in place
    recorder = _Recorder(source)
    found: dict[str, tuple[Cell, int | None]] = {}

    def note(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"the layer {layer!r} returns {type(output).__name__}, not a tensor; choose a layer inside it"
                )
            if recorder.broken:
                raise LinearisationError(f"in front of {layer!r}, {recorder.broken}")
            place = recorder.place(output)
            found[layer] = (recorder.cell(output) if place is not None else Cell(output.clone()), place)

        return hook

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(model.get_submodule(layer).register_forward_hook(note(layer)).remove)
        with torch.no_grad(), recorder:
            model(source)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        raise LinearisationError(f"the layers {', '.join(missing)} are not used in the forward pass")
    return recorder, {layer: found[layer] for layer in layers}
