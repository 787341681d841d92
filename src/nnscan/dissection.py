"""Network Dissection: the concept that each unit of a layer detects, by the overlap of high activations with labels.

Unit k's activations a_k over all places of all images of a densely labelled set (`broden`) have a threshold T_k, above
which a share of 0.005 lies. Its map on an image, upsampled to the size of the masks, is cut there, M_k = S_k > T_k, and
compared with the mask L_c of each concept c:

    IoU(k, c) = sum |M_k and L_c| / sum |M_k or L_c|,

both sums over the images that have some label of c's category. A unit is a detector of the concept of its highest IoU
where that is above 0.04 (Bau, Zhou, Khosla, Oliva, Torralba: Network Dissection, CVPR 2017).

The data set is passed over several times: two or three times for the thresholds, once for the overlaps. What is kept
are whole numbers, so that the sums of parts of the data set add up to the same bits as the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import schur
from scipy.stats import special_ortho_group
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.broden import LABELS, Broden
from nnscan.data import Dataset
from nnscan.errors import DataError, LayerError, ModelError, ScanError
from nnscan.linearisation import Linearisation, LinearisationError, as_maps
from nnscan.models import capture, counted_calls, device_of, evaluation, logits, network_layers, prepare, resolve_layer
from nnscan.suffixes import PASS_BYTES, Change, find_suffix, zeroed

Upsampling = Literal["anchored", "plain"]

SHARE = 0.005
"""Share of a unit's activations that lies above its threshold."""

DETECTOR = 0.04
"""A unit whose IoU with a concept is above this detects it."""

LEAST_IMAGES = 10
"""A concept needs so many labelled images to name a unit."""

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Powers of a random rotation."""

_KEY_BITS = 32  # of the whole number that stands for a float32
_DIGIT_BITS = 16  # of it that one pass over the data finds at most: more bins than that would not stay in a cache
_COUNT_BYTES = 2**28  # of the bins of all units
_CHUNK_BYTES = 2**24  # of upsampled maps at a time, which stay in a processor's cache
_TOP = 16  # images of the highest activation that are kept of each unit


# What is dissected ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Feed:
    """How the images of a labelled set become inputs of a network.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: Height and width that images are resized to, bilinearly; None: as they are, all of one size.
        mean: Is subtracted from pixels in [0, 1], float32 (C,).
        std: Divides the difference, float32 (C,).
    """

    channels: int = 3
    size: tuple[int, int] | None = None
    mean: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    std: NDArray[np.float32] = field(default_factory=lambda: np.ones(1, np.float32))

    @classmethod
    def like(cls, dataset: Dataset, side: int | None = None) -> Feed:
        """Return the feed that treats images as a data set treats its own.

        Args:
            dataset: The data set that the network was trained on.
            side: Height and width that images are resized to; None: as they are stored.
        """
        size = None if side is None else (side, side)
        channels = dataset.splits["train"].images.shape[1]
        if dataset.normalization == "standard":
            return cls(channels, size, dataset.mean, dataset.std)
        return cls(channels, size)

    def pixels(self, broden: Broden, indices: Iterable[int]) -> NDArray[np.uint8]:
        """Return images uint8 (n, C, H, W).

        Raises:
            DataError: An image is damaged, or they differ in size and shall not be resized.
        """
        images = []
        for index in indices:
            image = broden.image(index).convert("L" if self.channels == 1 else "RGB")
            if self.size is not None and (image.height, image.width) != self.size:
                image = image.resize(self.size[::-1], 2)  # bilinear
            images.append(np.asarray(image).reshape(image.height, image.width, self.channels).transpose(2, 0, 1))
        if len({image.shape for image in images}) > 1:
            raise DataError("the images differ in size; give a size to which they are resized")
        return np.stack(images)

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return images uint8 (n, C, H, W) as they are fed to the network, float32."""
        values = pixels.astype(np.float32) / 255
        return torch.from_numpy((values - self.mean.reshape(-1, 1, 1)) / self.std.reshape(-1, 1, 1))


@dataclass(frozen=True, eq=False)
class View:
    """Units: the channels of a module's output, or of its rotation.

    Attributes:
        module: The module's name.
        rotation: Orthogonal (K, K): unit i is the sum over j of rotation[i, j] times channel j. None: the channels.
    """

    module: str
    rotation: NDArray[np.float64] | None = None


def rotate(maps: Tensor, rotation: Tensor) -> Tensor:
    """Return maps (N, K, ...) whose channels at each place are multiplied by a matrix (K, K)."""
    return (rotation @ maps.flatten(2)).view_as(maps) if maps.ndim > 2 else maps @ rotation.T


class Probe:
    """A network, the labelled images that it is shown, and the units that are looked at.

    Args:
        model: The network; a copy of it is used, in evaluation mode.
        broden: The labelled images.
        feed: How they become inputs.
        views: The units, by names of one's own.
        upsampling: `"anchored"`: a place of a map lies at the centre of its receptive field; `"plain"`: the places
            divide the image evenly, as when the map is resized like an image. Between places maps are interpolated
            bilinearly, beyond the outermost they go on as they are there.
        batch_size: Images in a pass. Parts of the data set are sequences of whole `batches`, because rounding may
            depend on what is computed together.

    Attributes:
        shapes: Units, rows and columns of each view.
        batches: The batches of images.

    Raises:
        LayerError: A module does not exist.
        ModelError: The receptive fields of a module cannot be derived, and upsampling is anchored.
        DataError: A rotation has the wrong shape, an image is damaged, or images differ in size and are not resized.
    """

    def __init__(
        self,
        model: nn.Module,
        broden: Broden,
        feed: Feed,
        views: Mapping[str, View],
        upsampling: Upsampling = "anchored",
        batch_size: int = 16,
    ) -> None:
        sizes = {row.shape: row.image for row in reversed(broden.rows)}
        if feed.size is None and len(sizes) > 1:
            one, other = [f"{name}: {height} x {width}" for (height, width), name in sizes.items()][:2]
            raise DataError(
                f"the images differ in size ({one}, {other}); give a size to which they are resized (dissection.size)"
            )
        self.model, self.broden, self.feed = prepare(model), broden, feed
        self.views = {name: View(resolve_layer(model, view.module), view.rotation) for name, view in views.items()}
        self.batches = [
            range(start, min(start + batch_size, len(broden))) for start in range(0, len(broden), batch_size)
        ]
        self._modules = list(dict.fromkeys(view.module for view in self.views.values()))
        self._rotations = {
            name: torch.from_numpy(view.rotation).to(device_of(self.model), torch.float32)
            for name, view in self.views.items()
            if view.rotation is not None
        }
        first = feed.inputs(feed.pixels(broden, range(1)))
        self._input_shape = (int(first.shape[2]), int(first.shape[3]))
        self.shapes: dict[str, tuple[int, int, int]] = {}
        for name, maps in self._maps(first):
            _, units, rows, columns = maps.shape
            self.shapes[name] = (units, rows, columns)
        extents = {view.module: self.shapes[name][1:] for name, view in self.views.items()}
        self._centres = (_anchors if upsampling == "anchored" else _even)(self.model, first, extents)
        self._weights: dict[tuple[str, tuple[int, int]], tuple[Tensor, Tensor]] = {}

    def _maps(self, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the maps float32 (n, K, h, w) of each view, without gradients."""
        with torch.no_grad(), capture(self.model, self._modules) as outputs:
            self.model(inputs.to(device_of(self.model), copy=True))  # a network may change its input in place
        for name, view in self.views.items():
            if view.module not in outputs:
                raise LayerError(f"the module {view.module!r} is not used in the forward pass; choose another")
            found = outputs[view.module].float()
            if not (torch.isfinite(found.sum()) or torch.isfinite(found).all()):  # a sum may overflow
                raise ScanError(
                    f"{view.module!r} has activations that are not finite, as of a network that has diverged; "
                    "it cannot be dissected, choose another layer or checkpoint"
                )
            maps = as_maps(found)
            if view.rotation is not None:
                if view.rotation.shape != (maps.shape[1], maps.shape[1]):
                    raise DataError(f"view {name!r} has a rotation {view.rotation.shape} of {maps.shape[1]} channels")
                maps = rotate(maps.contiguous(), self._rotations[name])
            yield name, maps

    def _passes(self, batches: Sequence[range], what: str) -> Iterator[tuple[range, Iterator[tuple[str, Tensor]]]]:
        for batch in tqdm(batches, desc=what, unit="batch", disable=None):
            yield batch, self._maps(self.feed.inputs(self.feed.pixels(self.broden, batch)))

    # Thresholds -------------------------------------------------------------------------------------------------------

    def selection(self, share: float = SHARE) -> Selection:
        """Return the state in which the search for the thresholds begins, the same for all parts of the data set."""
        sizes = [(units, rows * columns * len(self.broden)) for units, rows, columns in self.shapes.values()]
        return Selection.begin(np.concatenate([np.full(units, count) for units, count in sizes]), share)

    def count(self, selection: Selection, batches: Sequence[range] | None = None) -> NDArray[np.int64]:
        """Return the counts (units, bins) of a pass for the thresholds; those of parts of the data set are added up.

        Args:
            selection: What the passes before have found.
            batches: A part of `batches`; all when None.
        """
        counting = Counting(selection)
        for _, views in self._passes(self.batches if batches is None else batches, f"thresholds {selection.done + 1}"):
            first = 0
            for _, maps in views:
                counting.add(first, maps)
                first += maps.shape[1]
            counting.raise_floors()
        return counting.counts

    def thresholds(self, share: float = SHARE) -> dict[str, NDArray[np.float32]]:
        """Return the thresholds (K,) of each view's units: see `Selection`.

        Args:
            share: Share of a unit's activations above its threshold.
        """
        selection = self.selection(share)
        while not selection.complete:
            selection = selection.narrowed(self.count(selection))
        return self.split(selection.values())

    def split(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return values of all units (U, ...) by view."""
        ends = np.cumsum([units for units, _, _ in self.shapes.values()])[:-1]
        return dict(zip(self.shapes, np.split(values, ends), strict=True))

    # Overlaps ---------------------------------------------------------------------------------------------------------

    def tally(
        self, thresholds: Mapping[str, NDArray[np.float32]], batches: Sequence[range] | None = None
    ) -> dict[str, Tally]:
        """Return the overlaps of each view's units with all concepts; `Tally.merged` puts those of parts together.

        Args:
            thresholds: Thresholds (K,) by view.
            batches: A part of `batches`; all when None.

        Raises:
            DataError: A mask is damaged.
        """
        concepts = Concepts(self.broden)
        limits = {name: torch.from_numpy(thresholds[name]).to(device_of(self.model)) for name in self.views}
        tallies = {
            name: Tally.empty(units, len(concepts.numbers), len(self.broden.categories))
            for name, (units, _, _) in self.shapes.items()
        }
        for batch, views in self._passes(self.batches if batches is None else batches, "overlaps"):
            groups = list(concepts.groups(batch))
            for name, maps in views:
                peaks = maps.flatten(2).amax(2)
                tallies[name].keep(peaks.cpu().numpy(), np.asarray(batch))
                # an interpolated value is never above the largest of its map
                active = (peaks > limits[name]).nonzero()
                for chunk in torch.split(active, max(1, _CHUNK_BYTES // (4 * maps[0, 0].numel()))):
                    image, unit = chunk.unbind(1)
                    excess = maps[image, unit] - limits[name][unit].view(-1, 1, 1)
                    image_of, unit_of = image.cpu().numpy(), unit.cpu().numpy()
                    above = (excess > 0).sum((1, 2)).cpu().numpy()
                    np.add.at(tallies[name].above, unit_of, above)
                    for group in groups:
                        here = np.flatnonzero(group.place[image_of] >= 0)
                        own = excess if len(here) == len(excess) else excess[torch.from_numpy(here).to(excess.device)]
                        self._add(tallies[name], name, own, group, group.place[image_of[here]], unit_of[here])
            for group in groups:
                for tally in tallies.values():
                    tally.labelled += group.areas
                    tally.images += group.counts
                    tally.pixels += group.categories.sum(0) * group.shape[0] * group.shape[1]
        return tallies

    def masks(
        self, name: str, thresholds: NDArray[np.float32], indices: Sequence[int], shape: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Return the places where units are above their thresholds on some images.

        Args:
            name: The view.
            thresholds: Of its units (K,).
            indices: The images.
            shape: Height and width of the masks.

        Returns:
            bool (n, K, H, W).
        """
        found = []
        for index in indices:
            maps = dict(self._maps(self.feed.inputs(self.feed.pixels(self.broden, [index]))))[name]
            excess = maps - torch.from_numpy(thresholds).to(maps.device).view(1, -1, 1, 1)
            found.append((self._upsampled(name, excess[0], shape) > 0).cpu().numpy())
        return np.stack(found)

    def _upsampled(self, name: str, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return maps (n, h, w) in the size of masks.

        They are maps less their threshold: what is exactly 0 at the places around stays exactly 0 between them.
        """
        module = self.views[name].module
        if (module, shape) not in self._weights:
            self._weights[module, shape] = tuple(  # type: ignore[assignment]
                torch.from_numpy(interpolation(centres, size, count)).to(maps.device, torch.float32)
                for centres, size, count in zip(self._centres[module], self._input_shape, shape, strict=True)
            )
        down, across = self._weights[module, shape]
        return down @ (maps @ across.T)

    def _add(
        self,
        tally: Tally,
        name: str,
        excess: Tensor,
        group: Group,
        images: NDArray[np.int64],
        units: NDArray[np.int64],
    ) -> None:
        """Add the overlaps of some units' maps (n, h, w) with the labels of the images that they are of."""
        concepts = tally.both.shape[1]
        pixels = group.shape[0] * group.shape[1]
        each = max(1, _CHUNK_BYTES // (4 * pixels))
        for start in range(0, len(excess), each):
            image, unit = images[start : start + each], units[start : start + each]
            mask = self._upsampled(name, excess[start : start + each], group.shape) > 0
            # torch finds what is true several times more slowly
            row, pixel = np.divmod(np.flatnonzero(mask.cpu().numpy()), pixels)
            for layer in range(group.labels.shape[1]):
                concept = group.labels[image[row], layer, pixel]
                labelled = concept >= 0
                np.add.at(tally.both.reshape(-1), unit[row[labelled]] * concepts + concept[labelled], 1)
            size = np.bincount(row, minlength=len(image))[:, None]
            np.add.at(tally.active, unit, size * group.categories[image])
            if group.whole.any():
                np.add.at(tally.both, unit, size * group.whole[image])


# Places ---------------------------------------------------------------------------------------------------------------

_Centres = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def _anchors(model: nn.Module, x: Tensor, extents: Mapping[str, tuple[int, int]]) -> _Centres:
    """Return the centres of the receptive fields, in pixels of the input, of the rows and columns of modules' maps."""
    try:
        linear = Linearisation(model, x.to(device_of(model)), list(extents))
    except LinearisationError as error:
        raise ModelError(f"the receptive fields cannot be derived ({error}); take upsampling 'plain'") from error
    found: _Centres = {}
    for module, shape in extents.items():
        fields = linear.fields(module)
        if fields is None and shape != (1, 1):
            raise ModelError(
                f"the receptive fields of {module!r} cannot be derived: in front of it is "
                f"{', '.join(linear.whole_maps) or 'a rearrangement'}; take upsampling 'plain'"
            )
        if fields is None:
            found[module] = np.zeros(1), np.zeros(1)
        else:
            found[module] = fields[0].centres(shape[0]), fields[1].centres(shape[1])
    return found


def _even(model: nn.Module, x: Tensor, extents: Mapping[str, tuple[int, int]]) -> _Centres:
    """Return the middles of equal parts of the input, one for each row and column of modules' maps."""
    sizes = (int(x.shape[2]), int(x.shape[3]))
    found: _Centres = {}
    for module, shape in extents.items():
        rows, columns = (
            (np.arange(count) + 0.5) * size / count - 0.5 for size, count in zip(sizes, shape, strict=True)
        )
        found[module] = rows, columns
    return found


def interpolation(centres: NDArray[np.float64], size: int, count: int) -> NDArray[np.float64]:
    """Return the weights of linear interpolation along one axis.

    Args:
        centres: Where the values of a map lie, in pixels of the input, increasing (h,); 0 is the first one's middle.
        size: Pixels of the input.
        count: Pixels of the mask, which divide the input evenly.

    Returns:
        (count, h), rows add up to 1; beyond the outermost centres the outermost value counts alone.
    """
    weights = np.zeros((count, len(centres)))
    if len(centres) == 1:
        return weights + 1
    middle = (np.arange(count) + 0.5) * size / count - 0.5
    before = np.clip(np.searchsorted(centres, middle, "right") - 1, 0, len(centres) - 2)
    share = np.clip((middle - centres[before]) / (centres[before + 1] - centres[before]), 0, 1)
    every = np.arange(count)
    weights[every, before] = 1 - share
    weights[every, before + 1] = share
    return weights


# Exact quantiles ------------------------------------------------------------------------------------------------------


def _keys(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return whole numbers 0 to 2 ** 32 - 1 in the order of float32 values."""
    bits = values.view(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) + 2**31


def _values(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the float32 values of `_keys`."""
    bits = (keys - 2**31).astype(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)


def _edges(keys: NDArray[np.int64], beyond: float) -> NDArray[np.float32]:
    """Return the float32 values of keys, or what lies beyond all numbers where they stand for none."""
    found = _values(keys)
    return np.where(np.isnan(found), np.float32(beyond), found)


@dataclass(frozen=True, eq=False)
class Selection:
    """The search for the thresholds: of each unit the value that exactly floor(share * N) of its N values may exceed.

    That is the order statistic at place floor(share * N), from 0, of the values in falling order: at most this share
    is strictly above it, and less only where values are equal. The value is found exactly, by its bits: a float32
    stands for a whole number of 32 bits in the same order; a pass over all values counts how many have each of the
    possible leading bits, which settles these, the next pass those behind them. Counts of parts of the data add up.

    A pass finds 16 bits, or as many as let the counts of all units take no more than 256 MiB: two passes for up to 512
    units, three up to 16,384.

    Attributes:
        ranks: How many values with the known leading bits exceed the sought one (U,).
        leading: The known bits as a number (U,).
        known: How many bits are known.
        digit: How many bits a pass finds.
        done: Passes so far.
    """

    ranks: NDArray[np.int64]
    leading: NDArray[np.int64]
    known: int
    digit: int
    done: int = 0

    @classmethod
    def begin(cls, sizes: NDArray[np.int64], share: float) -> Selection:
        """Return the state before the first pass.

        Args:
            sizes: How many values each unit has (U,).
            share: Share above the threshold, in [0, 1); taken as the decimal number that it is printed as.

        Raises:
            ScanError: The share is out of range.
        """
        if not 0 <= share < 1:
            raise ScanError(f"the share of activations above a threshold lies in [0, 1), not {share}")
        exact = Fraction(repr(float(share)))
        ranks = np.array([int(exact * int(size)) for size in sizes], np.int64)
        fitting = int(np.log2(max(2, _COUNT_BYTES // (8 * len(sizes)))))
        return cls(ranks, np.zeros(len(sizes), np.int64), 0, min(_DIGIT_BITS, fitting))

    @property
    def complete(self) -> bool:
        """Whether all bits are known."""
        return self.known == _KEY_BITS

    @property
    def bins(self) -> int:
        """How many values the bits can have that the next pass finds."""
        return 1 << min(self.digit, _KEY_BITS - self.known)

    def narrowed(self, counts: NDArray[np.int64]) -> Selection:
        """Return the state after a pass, given the counts of all values."""
        ranks, leading = self.ranks.copy(), np.empty_like(self.leading)
        for unit, own in enumerate(counts):
            from_above = np.cumsum(own[::-1])
            place = int(np.searchsorted(from_above, ranks[unit], "right"))
            if place == len(own):
                raise ScanError("the counts are not of all values: fewer than the thresholds need")
            ranks[unit] -= from_above[place - 1] if place else 0
            leading[unit] = self.leading[unit] * len(own) + len(own) - 1 - place
        known = self.known + self.bins.bit_length() - 1
        return Selection(ranks, leading, known, self.digit, self.done + 1)

    def values(self) -> NDArray[np.float32]:
        """Return the thresholds (U,), when all passes are done."""
        return _values(self.leading) + np.float32(0)  # -0 becomes 0


class Counting:
    """The counts of a pass over all values, or over a part of them.

    Values that cannot decide are left out: those without the known leading bits, and in the first pass, where none are
    known, those below a floor that so many values exceed already that the threshold cannot lie there.

    Args:
        selection: What the passes before have found.

    Attributes:
        counts: How many values have each of the next bits (U, bins); counts of parts add up.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.counts = np.zeros((len(selection.ranks), selection.bins), np.int64)
        rest = _KEY_BITS - selection.known
        self._shift = rest - selection.bins.bit_length() + 1
        self._least = np.full(len(selection.ranks), -np.inf, np.float32)
        self._most = np.full(len(selection.ranks), np.inf, np.float32)
        if selection.known:
            self._least = _edges(selection.leading << rest, -np.inf)
            self._most = _edges((selection.leading << rest) + (1 << rest) - 1, np.inf)
        self._batches = 0

    def add(self, first: int, maps: Tensor) -> None:
        """Count the values of maps (n, K, h, w), whose units are `first`, `first + 1`, ..."""
        units, bins = slice(first, first + maps.shape[1]), self.selection.bins
        least, most = (
            torch.from_numpy(edge[units]).to(maps.device).view(1, -1, 1, 1) for edge in (self._least, self._most)
        )
        for part in torch.split(maps, max(1, _CHUNK_BYTES // (4 * maps[0].numel()))):
            chosen = part >= least
            if self.selection.known:
                chosen &= part <= most
            there = np.flatnonzero(chosen.cpu().numpy())
            values = part.reshape(-1)[torch.from_numpy(there).to(part.device)].cpu().numpy()
            unit = there // part[0, 0].numel() % part.shape[1] + first
            bits = _keys(values + np.float32(0)) >> self._shift
            own = bits // bins == self.selection.leading[unit]
            np.add.at(self.counts.reshape(-1), unit[own] * bins + bits[own] % bins, 1)

    def raise_floors(self) -> None:
        """Leave out what the values so far exclude; called after each batch, it acts after the 1st, 2nd, 4th, ..."""
        self._batches += 1
        if self.selection.known or self._batches & (self._batches - 1):
            return
        for unit, own in enumerate(self.counts):
            place = int(np.searchsorted(np.cumsum(own[::-1]), self.selection.ranks[unit], "right"))
            if place < len(own):
                self._least[unit] = _edges(np.array([len(own) - 1 - place]) << self._shift, -np.inf)[0]


# Concepts and overlaps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """The labels of those images of a batch whose masks have one size; concepts are positions in `Concepts.numbers`.

    Attributes:
        place: Position of each image of the batch in this group, -1 for none (batch,).
        shape: Height and width of the masks.
        labels: Concepts at each pixel, int32 (n, m, h * w), each at most once; -1 is none.
        whole: Whether a concept holds for the whole image, int64 (n, C).
        categories: Whether an image has a label of a category, int64 (n, categories).
        areas: Pixels with each concept (C,).
        counts: Images with each concept (C,).
    """

    place: NDArray[np.int64]
    shape: tuple[int, int]
    labels: NDArray[np.int32]
    whole: NDArray[np.int64]
    categories: NDArray[np.int64]
    areas: NDArray[np.int64]
    counts: NDArray[np.int64]


class Concepts:
    """The concepts of a labelled set, in the order of their numbers.

    Attributes:
        numbers: Label numbers (C,).
        category: Position of each one's category among the data set's (C,).
    """

    def __init__(self, broden: Broden) -> None:
        self.broden = broden
        self.numbers = np.array(sorted(broden.concepts), np.int64)
        places = {name: place for place, name in enumerate(broden.categories)}
        self.category = np.array([places[broden.concepts[int(number)].category] for number in self.numbers], np.int64)
        self._position = np.full(LABELS, -1, np.int32)
        self._position[self.numbers] = np.arange(len(self.numbers))

    def groups(self, batch: Sequence[int]) -> Iterator[Group]:
        """Yield the labels of images, those with masks of one size together."""
        found = [self.broden.labels(index) for index in batch]
        for shape in dict.fromkeys(labels.shape for labels in found):
            chosen = [place for place, labels in enumerate(found) if labels.shape == shape]
            layers = max(sum(map(len, found[place].masks.values())) for place in chosen)
            pixels = shape[0] * shape[1]
            labels = np.full((len(chosen), layers, pixels), -1, np.int32)
            whole = np.zeros((len(chosen), len(self.numbers)), np.int64)
            areas = np.zeros((len(chosen), len(self.numbers)), np.int64)
            for row, image in enumerate(chosen):
                for numbers in found[image].whole.values():
                    whole[row, self._position[list(numbers)]] = 1
                masks = [mask for own in found[image].masks.values() for mask in own]
                for layer, mask in enumerate(masks):
                    concept = self._position[mask.reshape(-1)]
                    # where a label stands twice it counts once
                    again = (labels[row, :layer] == concept).any(0) | (whole[row, concept] > 0)
                    concept[again] = -1
                    labels[row, layer] = concept
                    areas[row] += np.bincount(concept[concept >= 0], minlength=len(self.numbers))
            areas += whole * pixels
            there = areas > 0
            categories = np.zeros((len(chosen), len(self.broden.categories)), np.int64)
            for category in range(categories.shape[1]):
                categories[:, category] = there[:, self.category == category].any(1)
            position = np.full(len(batch), -1, np.int64)
            position[chosen] = np.arange(len(chosen))
            yield Group(position, shape, labels, whole, categories, areas.sum(0), there.sum(0).astype(np.int64))


@dataclass(eq=False)
class Tally:
    """The overlaps of a view's K units with C concepts: whole numbers of pixels of masks.

    Attributes:
        both: Where unit and concept are both active (K, C).
        active: Where a unit is active, on images with a label of a category (K, categories).
        labelled: Where a concept is labelled (C,).
        images: Images with a concept (C,).
        pixels: Pixels of the images with a label of a category (categories,).
        above: Activations above the threshold, at the map's own resolution (K,).
        peaks: The highest activations on an image (K, 16), falling; -inf where there are fewer images.
        tops: These images (K, 16); of equal ones the first; -1 where there are fewer.
    """

    both: NDArray[np.int64]
    active: NDArray[np.int64]
    labelled: NDArray[np.int64]
    images: NDArray[np.int64]
    pixels: NDArray[np.int64]
    above: NDArray[np.int64]
    peaks: NDArray[np.float32]
    tops: NDArray[np.int64]

    @classmethod
    def empty(cls, units: int, concepts: int, categories: int) -> Tally:
        """Return the overlaps of no image."""
        return cls(
            np.zeros((units, concepts), np.int64),
            np.zeros((units, categories), np.int64),
            np.zeros(concepts, np.int64),
            np.zeros(concepts, np.int64),
            np.zeros(categories, np.int64),
            np.zeros(units, np.int64),
            np.full((units, _TOP), -np.inf, np.float32),
            np.full((units, _TOP), -1, np.int64),
        )

    def keep(self, peaks: NDArray[np.float32], images: NDArray[np.int64]) -> None:
        """Put images (n,) with the highest activations of each unit (n, K) among the top ones."""
        every = np.concatenate([self.peaks, peaks.T], axis=1)
        names = np.concatenate([self.tops, np.broadcast_to(images, (len(every), len(images)))], axis=1)
        order = np.lexsort((names, -every), axis=1)[:, :_TOP]
        self.peaks, self.tops = np.take_along_axis(every, order, 1), np.take_along_axis(names, order, 1)

    def merged(self, other: Tally) -> Tally:
        """Return the overlaps of two parts of the data set together."""
        whole = Tally(
            self.both + other.both,
            self.active + other.active,
            self.labelled + other.labelled,
            self.images + other.images,
            self.pixels + other.pixels,
            self.above + other.above,
            np.concatenate([self.peaks, other.peaks], axis=1),
            np.concatenate([self.tops, other.tops], axis=1),
        )
        whole.keep(np.empty((0, len(self.above)), np.float32), np.empty(0, np.int64))
        return whole

    def iou(self, category: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the IoU of each unit with each concept (K, C), in [0, 1].

        Args:
            category: Position of each concept's category (C,).
        """
        union = self.active[:, category] + self.labelled - self.both
        iou: NDArray[np.float64] = self.both / np.maximum(union, 1)
        return iou


# Tables ---------------------------------------------------------------------------------------------------------------


def unit_table(
    tally: Tally,
    broden: Broden,
    thresholds: NDArray[np.float32],
    places: int,
    least_images: int = LEAST_IMAGES,
    detector: float = DETECTOR,
) -> pd.DataFrame:
    """Return what each unit of a view detects.

    Args:
        tally: The overlaps with all images.
        broden: The labelled images.
        thresholds: The units' thresholds (K,).
        places: Activations of each unit: places of its map times images.
        least_images: A concept needs so many labelled images to name a unit.
        detector: A unit is a detector above this IoU.

    Returns:
        One row per unit: unit, threshold, share (of its activations above the threshold), label and category (of the
        concept of highest IoU, of equal ones the one of lowest number; empty where the unit overlaps with none), iou,
        is_detector, and for each category <category>_label and <category>_iou, of the best concept there.
    """
    concepts = Concepts(broden)
    iou = tally.iou(concepts.category)
    iou[:, tally.images < least_images] = 0
    names = np.array([broden.concepts[int(number)].name for number in concepts.numbers], dtype=object)
    columns: dict[str, Any] = {
        "unit": np.arange(len(iou)),
        "threshold": thresholds.astype(np.float64),
        "share": tally.above / places,
    }
    label, best, chosen = _best(iou, names)
    categories = np.array(broden.categories, dtype=object)[concepts.category[chosen]]
    columns |= {
        "label": label,
        "category": np.where(best > 0, categories, ""),
        "iou": best,
        "is_detector": best > detector,
    }
    for place, name in enumerate(broden.categories):
        own = concepts.category == place
        columns[f"{name}_label"], columns[f"{name}_iou"], _ = _best(iou[:, own], names[own])
    return pd.DataFrame(columns)


def _best(iou: NDArray[np.float64], names: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int64]]:
    """Return name, IoU and position of each unit's best concept."""
    if not iou.shape[1]:
        nothing = np.zeros(len(iou))
        return np.full(len(iou), "", dtype=object), nothing, nothing.astype(np.int64)
    chosen = iou.argmax(1)
    best = iou.max(1)
    return np.where(best > 0, names[chosen], ""), best, chosen


def concept_table(tally: Tally, broden: Broden, share: float = SHARE) -> pd.DataFrame:
    """Return how well each concept can be detected at all in the labelled images.

    A unit that is active on a share s of all pixels has at most the IoU s / q with a concept that covers a share q > s,
    and q / s with a smaller one: with the share 0.005 nothing that covers more than an eighth can be above 0.04. A unit
    that has nothing to do with the concept has s q / (s + q - s q), which is below s.

    Args:
        tally: The overlaps of any view with all images.
        broden: The labelled images.
        share: Share of a unit's activations above its threshold.

    Returns:
        One row per concept: number, label, category, images (that it is in), coverage (its share of the pixels of the
        images with a label of its category), reachable (the highest IoU of a unit that is active on that share), chance
        (the IoU of such a unit that is independent of the concept).
    """
    concepts = Concepts(broden)
    coverage = tally.labelled / np.maximum(tally.pixels[concepts.category], 1)
    known = [broden.concepts[int(number)] for number in concepts.numbers]
    return pd.DataFrame(
        {
            "number": concepts.numbers,
            "label": [concept.name for concept in known],
            "category": [concept.category for concept in known],
            "images": tally.images,
            "coverage": coverage,
            "reachable": np.minimum(coverage, share) / np.maximum(coverage, share),
            "chance": share * coverage / (share + coverage - share * coverage),
        }
    )


def exemplar_table(tally: Tally) -> pd.DataFrame:
    """Return the images on which each unit of a view is most active.

    Returns:
        One row per unit and image: unit, rank (from 0), image (position in the data set), peak (the highest value).
    """
    unit, rank = np.nonzero(tally.tops >= 0)
    return pd.DataFrame(
        {
            "unit": unit,
            "rank": rank,
            "image": tally.tops[unit, rank],
            "peak": tally.peaks[unit, rank].astype(np.float64),
        }
    )


def unique_detectors(units: pd.DataFrame, detector: float = DETECTOR) -> pd.DataFrame:
    """Count the distinct concepts that the units of a layer detect, by category.

    The paper's text counts a unit by its top label only; its released statistics count in each category the concepts
    that are some unit's best one there, so that a unit may count in several categories.

    Args:
        units: The table of `unit_table`.
        detector: A unit is a detector above this IoU.

    Returns:
        One row per category, in the data set's order: category, top (distinct top labels), best (distinct best labels
        within the category), units (units whose top label is of the category and above `detector`).
    """
    rows = []
    for name in [column.removesuffix("_iou") for column in units.columns if column.endswith("_iou")]:
        own = units[(units["category"] == name) & (units["iou"] > detector)]
        best = units.loc[units[f"{name}_iou"] > detector, f"{name}_label"]
        rows.append({"category": name, "top": own["label"].nunique(), "best": best.nunique(), "units": len(own)})
    return pd.DataFrame(rows)


# Stages ---------------------------------------------------------------------------------------------------------------


def dissected_modules(model: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, str]:
    """Return by layer the module whose output is dissected: the activation behind the layer, where there is one.

    Args:
        model: The network.
        x: An input (N, C, H, W) for a probe pass.
        layers: Names of layers (`models.neuron_layers`), or of any other modules, which are dissected themselves.

    Raises:
        LayerError: A layer does not exist, or its module is used several times, so that its output is not one thing.
    """
    activation = {layer.name: layer.activation or layer.name for layer in network_layers(model, x)}
    modules = {layer: activation.get(resolve_layer(model, layer), layer) for layer in layers}
    with counted_calls(model, list(dict.fromkeys(modules.values()))) as calls, torch.no_grad(), evaluation(model):
        model(x[:1].to(device_of(model), copy=True))
    for layer, module in modules.items():
        if calls.count(module) > 1:
            block = layer.rpartition(".")[0]
            raise LayerError(
                f"the layer {layer!r} cannot be dissected: the output of its module {module!r} is another in each of "
                f"its {calls.count(module)} uses in a forward pass; name modules that are used once"
                + (f", such as the block {block!r}" if block else "")
            )
    return modules


def network_dissection(
    model: nn.Module,
    broden: Broden,
    feed: Feed,
    layers: Sequence[str],
    *,
    upsampling: Upsampling = "anchored",
    share: float = SHARE,
    least_images: int = LEAST_IMAGES,
    detector: float = DETECTOR,
    batch_size: int = 16,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dissect layers of a network, all in the same passes over the data.

    In memory are the counts of the thresholds (256 MiB at most), the overlaps of all units with all concepts (8 bytes
    each), and the maps of a batch of images.

    Args:
        model: The network.
        broden: The labelled images.
        feed: How they become inputs.
        layers: Names of the layers, in the order of depth; see `dissected_modules`.
        upsampling: See `Probe`.
        share: Share of a unit's activations above its threshold.
        least_images: A concept needs so many labelled images.
        detector: A unit is a detector above this IoU.
        batch_size: Images in a pass.

    Returns:
        The units: layer, depth (position among the layers, from 0) and the columns of `unit_table`; and the images of
        their highest activations: layer and the columns of `exemplar_table`.

    Raises:
        LayerError: A layer does not exist.
        ModelError: The receptive fields of a layer cannot be derived, and upsampling is anchored.
        DataError: Images or masks are damaged.
        ScanError: Activations are not finite.
    """
    x = feed.inputs(feed.pixels(broden, range(1)))
    modules = dissected_modules(model, x, layers)
    probe = Probe(
        model, broden, feed, {layer: View(module) for layer, module in modules.items()}, upsampling, batch_size
    )
    thresholds = probe.thresholds(share)
    tallies = probe.tally(thresholds)
    units, exemplars = [], []
    for depth, layer in enumerate(layers):
        _, rows, columns = probe.shapes[layer]
        places = rows * columns * len(broden)
        table = unit_table(tallies[layer], broden, thresholds[layer], places, least_images, detector)
        table.insert(0, "layer", layer)
        table.insert(1, "depth", depth)
        units.append(table)
        found = exemplar_table(tallies[layer])
        found.insert(0, "layer", layer)
        exemplars.append(found)
    return pd.concat(units, ignore_index=True), pd.concat(exemplars, ignore_index=True)


def detector_counts(units: pd.DataFrame, detector: float = DETECTOR) -> pd.DataFrame:
    """Count the distinct concepts that each layer detects.

    Args:
        units: The units of `network_dissection`.
        detector: A unit is a detector above this IoU.

    Returns:
        One row per layer and category: layer, depth and the columns of `unique_detectors`.
    """
    parts = []
    for layer, own in units.sort_values("depth", kind="stable").groupby("layer", sort=False):
        counts = unique_detectors(own, detector)
        counts.insert(0, "layer", layer)
        counts.insert(1, "depth", int(own["depth"].iloc[0]))
        parts.append(counts)
    return pd.concat(parts, ignore_index=True)


# Rotations ------------------------------------------------------------------------------------------------------------


def random_rotation(size: int, seed: int) -> NDArray[np.float64]:
    """Return a rotation (n, n) drawn uniformly (by Haar's measure) from SO(n)."""
    if size == 1:
        return np.ones((1, 1))
    return np.asarray(special_ortho_group.rvs(size, random_state=np.random.default_rng(seed)), np.float64)


class Geodesic:
    """The powers Q^a of a rotation: the shortest way in SO(n) from the identity (a = 0) to Q (a = 1).

    Q's real Schur form has a plane rotation by an angle in (-pi, pi] in each of its blocks; Q^a rotates the same planes
    by a times the angle. Axes that Q turns round belong together by two and span a plane with the angle pi.

    Args:
        rotation: Q, orthogonal with determinant 1, float64 (n, n).

    Raises:
        DataError: It is no rotation.
    """

    def __init__(self, rotation: NDArray[np.float64]) -> None:
        size = len(rotation)
        if rotation.shape != (size, size) or not np.allclose(rotation @ rotation.T, np.eye(size), atol=1e-8):
            raise DataError(f"a rotation is an orthogonal matrix; this one {rotation.shape} is not")
        form, self._basis = schur(rotation, output="real")
        self._planes: list[tuple[int, int, float]] = []
        turned = []
        place = 0
        while place < size:
            if place + 1 < size and abs(form[place + 1, place]) > 1e-8:
                angle = float(np.arctan2(form[place + 1, place], form[place, place]))
                self._planes.append((place, place + 1, angle))
                place += 2
            else:
                if form[place, place] < 0:
                    turned.append(place)
                place += 1
        if len(turned) % 2:
            raise DataError("a rotation has determinant 1; this matrix has -1: it is a reflection")
        self._planes += [(one, other, np.pi) for one, other in zip(turned[::2], turned[1::2], strict=True)]

    def power(self, alpha: float) -> NDArray[np.float64]:
        """Return Q^alpha (n, n)."""
        turn = np.eye(len(self._basis))
        for one, other, angle in self._planes:
            cosine, sine = np.cos(alpha * angle), np.sin(alpha * angle)
            turn[one, one] = turn[other, other] = cosine
            turn[one, other], turn[other, one] = -sine, sine
        return np.asarray(self._basis @ turn @ self._basis.T, np.float64)


@contextmanager
def rotated(model: nn.Module, module: str, rotation: NDArray[np.float64]) -> Iterator[dict[str, Tensor]]:
    """Rotate a module's output f(x) inside the block, and rotate it back for what reads it: g'(Q f) = g(Q^T Q f).

    The network's outputs stay the same up to rounding, while the representation between the two rotations is another.

    Args:
        model: The network.
        module: The module's name.
        rotation: Q, (K, K).

    Yields:
        The rotated output of the last forward pass, by the module's name.

    Raises:
        LayerError: The module does not exist.
    """
    name = resolve_layer(model, module)
    matrix = torch.from_numpy(rotation)
    seen: dict[str, Tensor] = {}

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        own = matrix.to(output)
        seen[name] = rotate(output, own)
        return rotate(seen[name], own.T)

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def rotation_counts(
    model: nn.Module,
    broden: Broden,
    feed: Feed,
    layer: str,
    *,
    rotations: int = 3,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
    upsampling: Upsampling = "anchored",
    share: float = SHARE,
    least_images: int = LEAST_IMAGES,
    detector: float = DETECTOR,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Count the concepts that a layer detects in rotated bases, with thresholds of their own.

    A rotation changes what single units stand for, but not what the layer as a whole can tell apart. All bases are
    dissected in the same passes over the data.

    Args:
        model: The network.
        broden: The labelled images.
        feed: How they become inputs.
        layer: The layer; see `dissected_modules`.
        rotations: How many random rotations.
        alphas: Powers of each; 0, the layer as it is, always comes too.
        seed: Seed of the rotations.
        upsampling: See `Probe`.
        share: See `network_dissection`.
        least_images: See `network_dissection`.
        detector: See `network_dissection`.
        batch_size: See `network_dissection`.

    Returns:
        One row per basis and category: layer, rotation (from 0; -1 for the layer as it is), alpha, deviation (the
        largest change of a class score on the first batch when the layer is rotated and rotated back, as a share of the
        largest score) and the columns of `unique_detectors`.

    Raises:
        LayerError: The layer does not exist.
        ModelError: See `Probe`.
    """
    x = feed.inputs(feed.pixels(broden, range(min(batch_size, len(broden)))))
    module = dissected_modules(model, x, [layer])[layer]
    prepared = prepare(model)
    with torch.no_grad(), capture(prepared, [module]) as outputs:
        plain = logits(prepared(x.to(device_of(model), copy=True)))
    units = outputs[module].shape[1]
    bases: dict[str, tuple[int, float, NDArray[np.float64] | None]] = {"": (-1, 0.0, None)}
    for number in range(rotations):
        geodesic = Geodesic(random_rotation(units, seed + number))
        bases |= {f"{number} {alpha}": (number, float(alpha), geodesic.power(alpha)) for alpha in alphas}
    views = {name: View(module, matrix) for name, (_, _, matrix) in bases.items()}
    probe = Probe(model, broden, feed, views, upsampling, batch_size)
    thresholds = probe.thresholds(share)
    tallies = probe.tally(thresholds)
    parts = []
    for name, (number, alpha, matrix) in bases.items():
        _, rows, columns = probe.shapes[name]
        table = unit_table(
            tallies[name], broden, thresholds[name], rows * columns * len(broden), least_images, detector
        )
        counts = unique_detectors(table, detector)
        deviation = 0.0 if matrix is None else _deviation(prepared, x, module, matrix, plain)
        parts.append(counts.assign(layer=layer, rotation=number, alpha=alpha, deviation=deviation))
    order = ["layer", "rotation", "alpha", "deviation", "category", "top", "best", "units"]
    return pd.concat(parts, ignore_index=True)[order]


def _deviation(model: nn.Module, x: Tensor, module: str, rotation: NDArray[np.float64], plain: Tensor) -> float:
    with torch.no_grad(), rotated(model, module, rotation):
        scores = logits(model(x.to(device_of(model), copy=True)))
    return float((scores - plain).abs().max() / plain.abs().max().clamp(min=torch.finfo(plain.dtype).tiny))


# Explanations ---------------------------------------------------------------------------------------------------------


def unit_contributions(model: nn.Module, x: Tensor, module: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return what each unit contributes to the score of the class that the network gives to an input.

    The contribution is by how much the score falls when the unit's output is set to zero. Where the score is linear in
    the units, as behind global average pooling, that is the unit's weight times its pooled activation, by which the
    later paper ranks units (Zhou, Bau, Oliva, Torralba: Interpreting Deep Visual Representations via Network
    Dissection, arXiv 1711.05611); there the contributions and the bias add up to the score.

    Args:
        model: The network; it is left unchanged.
        x: Inputs (n, C, H, W).
        module: The module whose channels are the units; see `dissected_modules`.

    Returns:
        The classes (n,), and the contributions (n, K), in units of the score.

    Raises:
        LayerError: The module does not exist.
    """
    name = resolve_layer(model, module)
    x = x.to(device_of(model))
    with torch.no_grad(), evaluation(model):
        with capture(model, [name]) as outputs:
            scores = logits(model(x.clone()))
        units, classes = outputs[name].shape[1], scores.argmax(1)
        own = scores.gather(1, classes[:, None])
        suffix = find_suffix(model, name, x)
        without = scores.new_empty((len(x), units))
        if suffix is None:
            for unit in range(units):
                with zeroed(model.get_submodule(name), [unit]):
                    without[:, unit] = logits(model(x.clone())).gather(1, classes[:, None])[:, 0]
        else:
            kept = suffix.keep(*suffix.before(x))
            nothing = suffix.chain(torch.zeros_like(outputs[name][:1]))
            each = max(1, PASS_BYTES // kept.entry.nbytes)
            everyone = torch.arange(len(x), device=x.device)
            for start in range(0, units, each):
                channels = torch.arange(start, min(start + each, units), device=x.device)
                changes = [Change(everyone, channel[None], nothing[:, channel[None]]) for channel in channels]
                found = suffix.scores(kept, changes).view(len(channels), len(x), -1)
                without[:, channels] = found.gather(2, classes.view(1, -1, 1).expand(len(channels), -1, 1))[..., 0].T
    return classes.cpu().numpy(), (own - without).cpu().numpy().astype(np.float64)


def explain(model: nn.Module, x: Tensor, layer: str, units: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Explain predictions by the concepts that the units of a layer detect.

    Args:
        model: The network.
        x: Inputs (n, C, H, W).
        layer: The layer, as the table of units names it.
        units: The units of `network_dissection`.
        classes: Class names.

    Returns:
        One row per input and unit, by falling contribution: input, class (the one that the network gives),
        contribution (see `unit_contributions`), unit, label, category, iou, is_detector.
    """
    module = dissected_modules(model, x, [layer])[layer]
    answers, contributions = unit_contributions(model, x, module)
    own = units[units["layer"] == layer].sort_values("unit")
    parts = []
    for number, (answer, values) in enumerate(zip(answers.tolist(), contributions, strict=True)):
        frame = own[["unit", "label", "category", "iou", "is_detector"]].assign(
            **{"input": number, "class": classes[answer], "contribution": values}
        )
        parts.append(frame.sort_values(["contribution", "unit"], ascending=[False, True]))
    order = ["input", "class", "contribution", "unit", "label", "category", "iou", "is_detector"]
    return pd.concat(parts, ignore_index=True)[order]
