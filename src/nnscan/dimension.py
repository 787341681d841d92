"""Intrinsic dimension of representations by the distances to two neighbours (TwoNN).

Facco, d'Errico, Rodriguez, Laio: Estimating the intrinsic dimension of datasets by a minimal neighborhood information,
Scientific Reports 7 (2017). With the ratio mu = r2 / r1 of a point's second and first neighbour distance,
`-log(1 - F(mu)) = d log mu`: d is the slope of a line through the origin.

Ansuini, Laio, Macke, Zoccolan: Intrinsic dimension of data representations in deep neural networks, NeurIPS 2019,
measure it along the depth of a network. Their code gives the protocol: input, pooling outputs and linear layers behind
their ReLU, flattened, Euclidean distances, no standardisation except for PCA.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor, nn

from nnscan.errors import DataError, LayerError
from nnscan.models import device_of, evaluation, network_layers, resolve_layer

LEAST_POINTS = 20
SHARE = 0.9
"""Share of the smallest ratios that the line is fitted to, and of the points in a resample."""
RESAMPLES, BLOCKS = 20, 20
LOWER_BOUND = 20
"""Estimates above this are lower bounds: neighbours of few points in many dimensions are too far away."""

_BYTES = 2**28  # of working memory: for the distances of some rows, and again for a slice of the features
_HELD = 2**30  # of representations that are held at once
_CLOSE = 1e-6  # of the squared norms: below, a squared distance from products has lost six digits or more
_ROUNDING = 1e-9  # of a ratio: of points of a grid the distances are equal but for it
_FREQUENT = 0.05
_POOR_FIT = 0.95
_PLATEAU_RANGE = 3
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ADAPTIVE = tuple(kind for kind in _POOLS if "Adaptive" in kind.__name__)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

Array = NDArray[np.float64]


# Points and their neighbours ------------------------------------------------------------------------------------------


_NOT_FINITE = (
    "the features hold values that are not finite, so that distances do not exist; leave those points out, or look for "
    "the layer in which the network diverges"
)
_NO_SLOPE = (
    "every point is as far from its second neighbour as from its first: the dimension is not defined; such points lie "
    "on a grid or come in copies, give others"
)


class _Cloud:
    """The distinct ones of some points, read as float64 in slices of their features, centred and scaled."""

    def __init__(self, features: ArrayLike) -> None:
        given = np.asarray(features)
        values = given if given.dtype == np.float32 else given.astype(np.float64, copy=False)
        self.values = values.reshape(len(values), int(np.prod(values.shape[1:])))
        # numpy's maximum is NaN where a value is
        peaks = [np.abs(self.values[:, part]).max(initial=0) for part in self._slices(len(values))]
        peak = float(np.max(peaks, initial=0))
        if not np.isfinite(peak):
            raise DataError(_NOT_FINITE)
        # by a power of two, which changes no digit: squares neither overflow nor vanish
        self.scale = 2.0 ** -np.frexp(peak)[1] if peak else 1.0
        self.zeros = sum(not row.any() for row in self.values)
        self.kept = _distinct(self.values)
        self.duplicates = len(self.values) - len(self.kept)
        _require(len(self.kept), "distinct points")

    def __len__(self) -> int:
        return len(self.kept)

    def _slices(self, points: int) -> list[slice]:
        width = self.values.shape[1]
        step = max(1, _BYTES // (16 * max(1, points)))
        return [slice(start, start + step) for start in range(0, width, step)]

    def _read(self, part: slice) -> Array:
        values = self.values[:, part]
        return (values[self.kept] if self.duplicates else values).astype(np.float64) * self.scale

    def parts(self) -> Iterator[Array]:
        """Yield the points (n, w) slice by slice of the features, centred, because small norms keep more digits."""
        for part in self._slices(len(self)):
            values = self._read(part)
            values -= values.mean(0)
            yield values

    def squared_distances(self, rows: slice) -> Array:
        """Return the squared distances (rows, n) of some points to all, accurate to nine digits; inf to itself."""
        squared: Array = np.zeros((len(self.kept[rows]), len(self)))
        norms: Array = np.zeros(len(self))
        for values in self.parts():
            squared += euclidean_distances(values[rows], values, squared=True)
            norms += np.einsum("ij,ij->i", values, values)
        own = np.arange(len(self))[rows]
        close = squared < _CLOSE * (norms[rows, None] + norms)
        close[np.arange(len(own)), own] = False
        for row in np.flatnonzero(close.any(1)):
            others = np.flatnonzero(close[row])
            squared[row, others] = self._direct(own[row], others)
        squared[np.arange(len(own)), own] = np.inf
        return squared

    def _direct(self, one: int, others: NDArray[np.int64]) -> Array:
        """Return the squared distances of one point to others, from differences."""
        total: Array = np.zeros(len(others))
        for part in self._slices(len(others)):
            values = self.values[:, part]
            differences = (values[self.kept[others]].astype(np.float64) - values[self.kept[one]]) * self.scale
            total += np.einsum("ij,ij->i", differences, differences)
        return total

    def neighbours(self, samples: NDArray[np.int64]) -> Array:
        """Return the distances of each point to its first and second neighbour, in several samples of the points.

        Args:
            samples: (S, n); in a sample points of the same number are neighbours of each other. There are at least
                three of each number.

        Returns:
            Distances (S, n, 2), in units of the scaled points.
        """
        found: Array = np.empty((len(samples), len(self), 2))
        step = max(1, _BYTES // (48 * len(self)))
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            squared = self.squared_distances(rows)
            order = np.argsort(squared, axis=1)
            lines = np.arange(len(order))
            for sample, numbers in enumerate(samples):
                member = numbers[order] == numbers[rows, None]
                for place in range(2):
                    column = member.argmax(1)
                    member[lines, column] = False
                    found[sample, rows, place] = squared[lines, order[lines, column]]
        return np.sqrt(found)


def _distinct(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the places of points (N, D) that do not coincide with an earlier one, without a copy of them."""
    found: dict[bytes, int] = {}
    for place, row in enumerate(points):
        # adding 0 makes -0 a 0
        found.setdefault(hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest(), place)
    return np.fromiter(found.values(), np.int64, len(found))


def _require(count: int, what: str) -> None:
    if count < LEAST_POINTS:
        raise DataError(f"{count} {what} are too few for the intrinsic dimension; give at least {LEAST_POINTS}")


def _ratios(distances: Array) -> Array:
    """Return mu of the points (n, 2) whose first neighbour's distance is not zero; 1 where rounding made it more."""
    kept = distances[distances[:, 0] > 0]
    ratios = kept[:, 1] / kept[:, 0]
    return np.where(ratios < 1 + _ROUNDING, 1, ratios)


def neighbour_ratios(features: ArrayLike) -> Array:
    """Return mu = r2 / r1 >= 1 of each point; points that coincide with another count once.

    Distances are sums of squares in float64 and, where points are so close together that products would lose digits,
    of squared differences. Beside the features this needs about half a GiB, however wide they are.

    Args:
        features: Points (N, ...), flattened to (N, D); float32 is read slice by slice, other types are converted.

    Raises:
        DataError: Values are not finite, or fewer than 20 distinct points are left.
    """
    return _cloud_ratios(_Cloud(features))


def _cloud_ratios(cloud: _Cloud) -> Array:
    ratios = _ratios(cloud.neighbours(np.zeros((1, len(cloud)), np.int64))[0])
    _require(len(ratios), "points at a distance from their neighbours")
    return ratios


# Estimates from ratios ------------------------------------------------------------------------------------------------


def _line(ratios: ArrayLike, share: float) -> tuple[Array, Array, float]:
    """Return log mu and -log(1 - F) of the fitted points, and the slope."""
    ratios = np.sort(np.asarray(ratios, dtype=np.float64))
    count = len(ratios)
    fitted = min(int(np.floor(share * count)), count - 1)  # the last point has F = 1
    x = np.log(ratios[:fitted])
    y = -np.log1p(-np.arange(1, fitted + 1) / count)
    if not x.any():
        raise DataError(_NO_SLOPE)
    return x, y, float(x @ y / (x @ x))


def dimension_of_ratios(ratios: ArrayLike, share: float = SHARE) -> float:
    """Return the slope d of the line through the origin of the smallest `share` of the ratios.

    Args:
        ratios: mu >= 1 of each point (N,).
        share: Share of the points that is fitted; the largest ratios are the least reliable.
    """
    return _line(ratios, share)[2]


def fit_quality(ratios: ArrayLike, share: float = SHARE) -> float:
    """Return R^2 of the line of `dimension_of_ratios`: 1 less residual by total sum of squares, at most 1.

    Args:
        ratios: mu >= 1 of each point (N,).
        share: Share of the points that is fitted.
    """
    x, y, slope = _line(ratios, share)
    return float(1 - ((y - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def likelihood_dimension(ratios: ArrayLike, share: float = 1.0) -> float:
    """Return the unbiased maximum-likelihood estimate of d, `(k - 1) / (sum of log mu_(i) + (N - k) log mu_(k))`.

    Args:
        ratios: mu >= 1 of each point (N,).
        share: Share of the smallest ratios that count with their values, k of N; the others count as larger than
            these (censored). With all of them this is the closed form `(N - 1) / sum of log mu`.

    Raises:
        DataError: All ratios that count are 1.
    """
    logarithms = np.log(np.sort(np.asarray(ratios, dtype=np.float64)))
    count = len(logarithms)
    kept = int(np.floor(share * count))
    total = logarithms[:kept].sum() + (count - kept) * logarithms[kept - 1]
    if not total:
        raise DataError(_NO_SLOPE)
    return float((kept - 1) / total)


def two_nn(features: ArrayLike) -> float:
    """Return the intrinsic dimension of points, by TwoNN on the smallest 90 % of the ratios.

    Estimates above about 20 are lower bounds: neighbours of few points in many dimensions are too far away. That, and
    whatever else speaks against an estimate (`Dimension.warning`), is a `UserWarning`.

    Args:
        features: Points (N, ...), for example a layer's representation of N images; flattened to (N, D).

    Raises:
        DataError: Values are not finite, or there are fewer than 20 distinct points.

    Source: Facco et al. 2017, steps 1 to 5.
    """
    cloud = _Cloud(features)
    ratios = _cloud_ratios(cloud)
    dimension = dimension_of_ratios(ratios)
    if reasons := _warning(cloud, ratios, dimension, fit_quality(ratios)):
        warnings.warn(reasons, stacklevel=2)
    return dimension


# All about one representation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dimension:
    """What TwoNN says of some points, and how far it can be trusted.

    Attributes:
        dimension: The slope of the line through the smallest 90 % of the ratios.
        sd: Standard deviation of `dimension` over 20 draws of 90 % of the points: the paper's error bar. The draws
            share most points: new ones would spread about twice as much (measured on cubes of 2 and 5 dimensions).
        mle: Closed-form maximum-likelihood estimate.
        censored_mle: The same with the largest 10 % of the ratios censored.
        fit: R^2 of the line.
        points: Points that were given.
        duplicates: Points left out because they coincide with an earlier one.
        zero_distances: Further points left out because the distance to their neighbour vanishes in float64.
        blocks: One row per number of blocks: blocks, points (of a block), dimension (mean over the blocks), sd (over
            the blocks; NaN of one).
        plateau: See `plateau`; NaN where there is none.
        warning: Why not to trust the estimate; empty if nothing speaks against it.
    """

    dimension: float
    sd: float
    mle: float
    censored_mle: float
    fit: float
    points: int
    duplicates: int
    zero_distances: int
    blocks: pd.DataFrame
    plateau: float
    warning: str


def intrinsic_dimension(features: ArrayLike, seed: int = 0) -> Dimension:
    """Return the intrinsic dimension of points with error bar, variants, block analysis and warnings.

    The distances are computed once for the whole, 20 draws of 90 % of the points and the blocks: N^2 D operations.

    Args:
        features: Points (N, ...), flattened to (N, D).
        seed: Seed of the draws and of the order in which points are cut into blocks.

    Raises:
        DataError: Values are not finite, fewer than 20 distinct points are left, or the dimension is not defined
            because all ratios are 1.

    Source: Facco et al. 2017 (estimate and block analysis); Ansuini et al. 2019 (draws of 90 %).
    """
    cloud = _Cloud(features)
    count = len(cloud)
    generator = np.random.default_rng(seed)
    drawn = int(SHARE * count)
    cuts = range(1, min(BLOCKS, count // LEAST_POINTS) + 1)
    order = generator.permutation(count)
    samples: NDArray[np.int64] = np.full((RESAMPLES + len(cuts), count), -1, np.int64)
    for draw in range(RESAMPLES):
        samples[draw, generator.choice(count, drawn, replace=False)] = 0
    for row, cut in enumerate(cuts, start=RESAMPLES):
        size = count // cut
        samples[row, order[: cut * size]] = np.repeat(np.arange(cut), size)
    # what is left over has no neighbours to be asked for
    distances = cloud.neighbours(samples)
    ratios = _ratios(distances[RESAMPLES])
    _require(len(ratios), "points at a distance from their neighbours")
    draws = [dimension_of_ratios(_ratios(distances[draw][samples[draw] == 0])) for draw in range(RESAMPLES)]
    rows = []
    for row, cut in enumerate(cuts, start=RESAMPLES):
        each = [dimension_of_ratios(_ratios(distances[row][samples[row] == block])) for block in range(cut)]
        rows.append((cut, count // cut, float(np.mean(each)), float(np.std(each, ddof=1)) if cut > 1 else np.nan))
    blocks = pd.DataFrame(rows, columns=["blocks", "points", "dimension", "sd"])
    dimension, fit = dimension_of_ratios(ratios), fit_quality(ratios)
    return Dimension(
        dimension=dimension,
        sd=float(np.std(draws, ddof=1)),
        mle=likelihood_dimension(ratios),
        censored_mle=likelihood_dimension(ratios, SHARE),
        fit=fit,
        points=len(cloud.values),
        duplicates=cloud.duplicates,
        zero_distances=count - len(ratios),
        blocks=blocks,
        plateau=plateau(blocks),
        warning=_warning(cloud, ratios, dimension, fit),
    )


def _warning(cloud: _Cloud, ratios: Array, dimension: float, fit: float) -> str:
    given = len(cloud.values)
    reasons = []
    if cloud.duplicates > _FREQUENT * given:
        zero = f", {cloud.zeros} are zero everywhere" if cloud.zeros > 1 else ""
        reasons.append(f"{cloud.duplicates} of {given} points coincide with another{zero}: what is left is a selection")
    vanished = len(cloud) - len(ratios)
    if vanished > _FREQUENT * given:
        reasons.append(f"{vanished} of {given} points have a neighbour at a distance that vanishes in float64")
    ties = int((ratios == 1).sum())
    if ties > _FREQUENT * len(ratios):
        reasons.append(f"{ties} of {len(ratios)} points are as far from their second neighbour as from their first")
    if fit < _POOR_FIT:
        reasons.append(f"the ratios do not follow a line (R^2 {fit:.3f}): there is no single dimension")
    if dimension > LOWER_BOUND:
        reasons.append(f"above {LOWER_BOUND} an estimate is a lower bound")
    return "; ".join(reasons)


def plateau(blocks: pd.DataFrame) -> float:
    """Return the dimension that does not change with the number of points, NaN where there is none.

    The plateau is a run of successive numbers of blocks over which the number of points changes at least threefold and
    every estimate differs from the run's mean by at most the share 2.8 / sqrt(N) of it (N: all points), twice the
    relative standard error that TwoNN was measured to have on cubes. Of several runs the one over which the number of
    points changes most counts, then the one with more points. The result is the mean over the run.

    Args:
        blocks: `Dimension.blocks`.
    """
    numbers, values = blocks["blocks"].to_numpy(), blocks["dimension"].to_numpy(np.float64)
    tolerance = 2.8 / np.sqrt(blocks["points"].iloc[0])
    best, widest = np.nan, 0.0
    for first in range(len(values)):
        for last in range(first + 1, len(values)):
            mean = values[first : last + 1].mean()
            spread = numbers[last] / numbers[first]
            level = (np.abs(values[first : last + 1] - mean) <= tolerance * mean).all()
            if level and spread >= _PLATEAU_RANGE and spread > widest:
                best, widest = float(mean), spread
    return best


def principal_dimension(features: ArrayLike, share: float = SHARE) -> int:
    """Return the number of principal components that hold a share of the variance of the standardised features.

    Constant features are left out; 0 if all are.

    Args:
        features: Points (N, ...), flattened to (N, D).
        share: Share of the variance, 0 to 1.

    Raises:
        DataError: Values are not finite.

    Source: Ansuini et al. 2019 (PC-ID).
    """
    given = np.asarray(features)
    points = given.reshape(len(given), int(np.prod(given.shape[1:])))
    count, width = points.shape
    products: Array = np.zeros((min(count, width),) * 2)
    step = max(1, _BYTES // (16 * max(1, count)))
    standard: list[Array] = []
    for start in range(0, width, step):
        values = points[:, start : start + step].astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError(_NOT_FINITE)
        varying = values.min(0) < values.max(0)
        values -= values.mean(0)
        deviations = values.std(0)
        values = values[:, varying] / deviations[varying]
        if width < count:  # so few features fit into memory whole
            standard.append(values)
        else:
            products += values @ values.T
    if width < count:
        whole = np.hstack(standard)
        products = whole.T @ whole
    variances = np.maximum(linalg.eigvalsh(products), 0)[::-1] if products.any() else np.zeros(0)
    total = np.cumsum(variances)
    return int(np.searchsorted(total, share * total[-1]) + 1) if len(total) else 0


# Representations of a network -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Representation:
    """A place in a network.

    Attributes:
        layer: "input", or a layer's name; "<name>:2" for the second call of one that is used several times.
        module: The module whose output it is; the activation that follows a layer where a module does that.
        call: Which of the module's calls in a forward pass, from 0.
        depth: Convolutions and linear layers that have been applied up to here.
        relative_depth: `depth` by that of the output, 0 to 1.
        width: Features of an image.
    """

    layer: str
    module: str
    call: int
    depth: int
    relative_depth: float
    width: int


@dataclass(frozen=True)
class _Call:
    name: str
    number: int
    depth: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def _calls(model: nn.Module, x: Tensor) -> tuple[list[_Call], int]:
    """Return the calls of modules that return a tensor, in the order in which they end, and the depth of the output."""
    found: list[_Call] = []
    counts: dict[str, int] = {}
    depth = 0

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal depth
            depth += isinstance(module, _WEIGHTED)
            number = counts.get(name, 0)
            counts[name] = number + 1
            if isinstance(output, Tensor):
                before = tuple(args[0].shape[1:]) if args and isinstance(args[0], Tensor) else ()
                found.append(_Call(name, number, depth, before, tuple(output.shape[1:])))

        return hook

    with ExitStack() as stack, torch.no_grad(), evaluation(model):
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(watch(name)).remove)
        model(x[:1].to(device_of(model), copy=True))
    return found, depth


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is a building block as of a residual network: no sequence, none and no pool inside."""
    inner = [part for part in module.modules() if part is not module]
    return (
        bool(inner)
        and not isinstance(module, nn.Sequential)
        and all(not list(part.children()) or isinstance(part, nn.Sequential) for part in inner)
        and not any(isinstance(part, _POOLS) for part in inner)
    )


def representation_layers(model: nn.Module, x: Tensor, layers: str | Sequence[str] = "pools") -> list[Representation]:
    """Return the places of a network whose representations are measured, in the order of the forward pass.

    Args:
        model: Any network; it is left unchanged.
        x: Images (N, C, H, W); the first one makes a probe pass.
        layers: "pools": the input, the outputs of pooling modules, in residual networks the last block of each map
            size, and linear layers; "all": the input, convolutions and linear layers; or names of modules. Layers
            count behind the activation module that they feed. Functional pooling and activations are not seen: name
            modules there.

    Raises:
        LayerError: A name does not exist, or its module is not called or returns no tensor.

    Source: Ansuini et al. 2019, code.
    """
    calls, total = _calls(model, x)
    modules = dict(model.named_modules())
    chosen: list[tuple[str, _Call]] = []
    if isinstance(layers, str) and layers in ("pools", "all"):
        behind = _behind_layers(model, x, calls)
        last_block = {call.after[1:]: call for call in calls if len(call.after) > 1 and _is_block(modules[call.name])}
        for place, call in enumerate(calls):
            layer, module = behind.get(place), modules[call.name]
            pooled = isinstance(module, _POOLS) and not (isinstance(module, _ADAPTIVE) and call.before == call.after)
            if layer is not None and (layers == "all" or isinstance(modules[layer], nn.Linear)):
                chosen.append((layer, call))
            elif layers == "pools" and (pooled or call in last_block.values()):
                chosen.append((call.name, call))
    elif isinstance(layers, str):
        raise LayerError(f"layers {layers!r} do not exist; choose 'pools', 'all' or a list of names")
    else:
        names = [resolve_layer(model, layer) for layer in layers]
        silent = [name for name in names if name not in {call.name for call in calls}]
        if silent:
            raise LayerError(f"the layer {silent[0]!r} is not called or returns no tensor; choose another")
        chosen = [(call.name, call) for call in calls if call.name in names]
    places = [Representation("input", "", 0, 0, 0.0, int(np.prod(x.shape[1:])))]
    seen: dict[str, int] = {}
    for name, call in chosen:
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}:{seen[name]}"
        width = int(np.prod(call.after))
        places.append(Representation(label, call.name, call.number, call.depth, call.depth / max(total, 1), width))
    return places


def _behind_layers(model: nn.Module, x: Tensor, calls: Sequence[_Call]) -> dict[int, str]:
    """Return which layer's value each call gives: that of the activation it feeds next, or else its own."""
    found: dict[int, str] = {}
    for layer in network_layers(model, x):
        for place, call in enumerate(calls):
            if call.name == layer.name:
                later = range(place + 1, len(calls))
                found[next((n for n in later if calls[n].name == layer.activation), place)] = layer.name
    return found


@contextmanager
def _collected(model: nn.Module, places: Sequence[Representation]) -> Iterator[dict[Representation, Tensor]]:
    """Collect the outputs (N, D) at places of the latest forward pass in the block."""
    wanted = {(place.module, place.call): place for place in places}
    outputs: dict[Representation, Tensor] = {}
    counts: dict[str, int] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            place = wanted.get((name, counts.setdefault(name, 0)))
            counts[name] += 1
            if place is not None:
                outputs[place] = output.detach().flatten(1).to("cpu", torch.float32, copy=True)

        return hook

    def restart(*_: Any) -> None:
        counts.clear()

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(restart).remove)
        for name in dict.fromkeys(place.module for place in places):
            stack.callback(model.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield outputs


def _room(place: Representation, count: int) -> NDArray[np.float32]:
    """Return an array for the representations of images at a place."""
    size = 4 * count * place.width
    if size <= _HELD:
        return np.empty((count, place.width), np.float32)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # on a full disk, writing to mapped memory kills the process
        except OSError as error:
            raise DataError(
                f"the representations of {count} images at {place.layer!r} need {size / 2**30:.1f} GiB in "
                f"{tempfile.gettempdir()} ({error.strerror}); give fewer images, or set TMPDIR to a larger disk"
            ) from error
        return np.memmap(file, np.float32, "r+", shape=(count, place.width))


def representations(
    model: nn.Module, x: Tensor, places: Sequence[Representation], batch_size: int = 256
) -> Iterator[tuple[Representation, NDArray[np.float32]]]:
    """Yield the representations (N, D) of images place by place, float32, in evaluation mode.

    As many places are filled in one pass over the images as fit into 1 GiB. One that is larger alone lies in a
    temporary file, in the folder that TMPDIR names.

    Args:
        model: The network; it is left unchanged.
        x: Images (N, C, H, W), as fed to the network.
        places: Places of `representation_layers`.
        batch_size: Images in one forward pass.

    Raises:
        DataError: There is no room for the temporary file.
    """
    waiting = list(places)
    while waiting:
        group = [waiting.pop(0)]
        while waiting and sum(place.width for place in (*group, waiting[0])) * 4 * len(x) <= _HELD:
            group.append(waiting.pop(0))
        arrays = {place: _room(place, len(x)) for place in group}
        inner = [place for place in group if place.module]
        for place in group:
            if not place.module:
                arrays[place][:] = x.detach().flatten(1).cpu().numpy()
        if inner:
            with torch.no_grad(), evaluation(model), _collected(model, inner) as outputs:
                for start in range(0, len(x), batch_size):
                    model(x[start : start + batch_size].to(device_of(model), copy=True))
                    for place in inner:
                        arrays[place][start : start + batch_size] = outputs[place].numpy()
        for place in group:
            yield place, arrays.pop(place)


COLUMNS = [
    *("layer", "depth", "relative_depth", "width", "points", "dropped", "dimension", "sd", "mle"),
    *("censored_mle", "plateau", "pca_dimension", "fit", "warning"),
]


def layer_dimensions(
    model: nn.Module, x: Tensor, layers: str | Sequence[str] = "pools", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the intrinsic dimension of a network's representations of images, layer by layer.

    Args:
        model: The network; it is left unchanged.
        x: Images (N, C, H, W), as fed to the network; 500 to 2000 are usual.
        layers: See `representation_layers`.
        seed: Seed of the draws.

    Returns:
        The table of `COLUMNS`, one row per place from the input to the output: layer, depth, relative_depth, width
        (features), points, dropped (points that coincide with another, or nearly), dimension, sd, mle, censored_mle,
        plateau, pca_dimension (components for 90 % of the variance of the standardised features), fit
        (R^2) and warning. Where the dimension does not exist it is NaN, and the warning says why.

        The block analysis: layer, depth, blocks, points, dimension, sd.

    Source: Ansuini et al. 2019, figures 2 and 3.
    """
    rows, curves = [], []
    for place, features in representations(model, x, representation_layers(model, x, layers)):
        row: dict[str, Any] = {
            "layer": place.layer, "depth": place.depth, "relative_depth": place.relative_depth, "width": place.width,
            "points": len(features),
        }  # fmt: skip
        try:
            row["pca_dimension"] = principal_dimension(features)
            found = intrinsic_dimension(features, seed)
        except DataError as error:
            rows.append({**row, "dropped": len(features) - len(_distinct(features)), "warning": str(error)})
            continue
        row |= {name: getattr(found, name) for name in COLUMNS if hasattr(found, name)}
        rows.append({**row, "dropped": found.duplicates + found.zero_distances})
        curves.append(found.blocks.assign(layer=place.layer, depth=place.depth))
    table = pd.DataFrame(rows, columns=COLUMNS)
    columns = ["layer", "depth", "blocks", "points", "dimension", "sd"]
    return table, pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns)
