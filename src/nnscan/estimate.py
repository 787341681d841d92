"""What a study costs before it runs: jobs, processor and GPU hours, wall time, disk and memory.

A study is counted from its configuration; its data need not be there. Three things make an estimate:

- *facts* of each network: multiply-adds of its layers and of a sweep over the pixels, neurons, parameters, counted on
  the model built as the pipeline builds it, and the number of images in each split, and of labelled images;
- *speeds* of this machine with one thread, measured on the very network (small networks are far from what a processor
  can do): multiply-adds per second of forward passes, of training, and of large matrix products;
- `RULES`: for each rule of the workflow the work of one of its jobs, as a formula of the facts.

What is a fit to measured jobs, and no count, stands in the section "Fits"; docs/performance.md compares estimates with
what studies took.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.annotations import CAMVID_CLASSES
from nnscan.broden import camvid, read_broden
from nnscan.configuration import DatasetConfig, DissectionConfig, ScanConfig, Stage, Study, TrainingConfig
from nnscan.data import archive_members, load_dataset
from nnscan.errors import ConfigurationError, DataError
from nnscan.layout import CUTTABLE, QUESTIONS, SHOWN_IMAGES, SHOWN_LAYERS, SHOWN_UNITS, Layout
from nnscan.linearisation import Linearisation, LinearisationError, as_maps
from nnscan.models import (
    ZOO,
    build_model,
    capture,
    chosen_layers,
    evaluation,
    logits,
    network_layers,
    parameter_count,
    prepare,
    resolve_layer,
    select_layers,
)
from nnscan.moments import IMAGES, QUANTITIES
from nnscan.places import LAYOUTS, data_places, data_root
from nnscan.scanner import KEEP_BYTES
from nnscan.sweeps import WindowSweep
from nnscan.training import augment, deterministic

GPU_MACS = 2e12
"""Multiply-adds per second of a GPU where none are given: a fifth of the peak of an A100 in float32."""

TRIAL = 1.2e10
"""Multiply-adds of the training batch that a model's speed is measured on: some tenths of a second."""

FLOAT = 4
"""Bytes of a number in a network."""

FILTER_BYTES = 256 * 2**20
"""Images of a filter that `components` holds at a time; of as many filters as fit, of one at least."""

COUNT_BYTES, DIGIT_BITS = 2**28, 16
"""Counts of all units' values that `dissection` holds in a pass, and bits of a threshold that a pass finds at most."""

LABELLED_BATCH, PROTOTYPE_BATCH = 16, 80
"""Images in a batch of Network Dissection, and in one of ProtoPNet's training."""

POWERS = 5
"""Powers of each rotation, `dissection.ALPHAS`."""

HELD_BYTES = 2**30
"""Representations that `dimension` holds at a time."""

PRUNED_PASSES = 100
"""Passes in which the last layer is fitted after prototypes have been removed."""

EXPLAINED_BATCH, HELPER_BATCH = 16, 32
"""Inputs that explainers pass together; images in a step of a helper network's training (`fitting.Fitting`)."""

FILLER_WIDTH, MAKER_WIDTH = 16, 32
"""Filters that give the widths of the network that fills hidden pixels, and of the generator of images."""

CLIMBS = 200
"""Steps of activation maximisation, with and without a generator."""

CURVE_STEPS, CASCADE, NEARBY, ATTACK_STEPS = 32, 4, 18, 50
"""Points of a faithfulness curve but the first; stages of random parameters; changed copies of an input whose maps show
stability; steps of an attack, of which there are two."""

REMOVED = 5
"""Shares of the pixels that are removed before a network is retrained, but none."""

# Fits ---------------------------------------------------------------------------------------------------------------
# Seconds of one thread on the machine of docs/performance.md, from the benchmarks of studies; bytes likewise.

START = {
    "plain": 0.35, "statistics": 0.65, "torch": 1.0, "both": 1.4, "derivatives": 1.95, "drawing": 1.5,
    "explainers": 2.0,
}  # fmt: skip
"""Interpreter and imports, as a multiple of importing torch and what trains a network: without torch, also with
scikit-learn; with torch, also with scikit-learn or scipy's distributions; with torch's function transforms, which load
its compiler; with the libraries that draw; with the methods of explanation and torch's optimisers."""

START_BYTES = {
    "plain": 0.2e9, "statistics": 0.25e9, "torch": 0.65e9, "both": 0.75e9, "derivatives": 0.85e9, "drawing": 0.85e9,
    "explainers": 0.95e9,
}  # fmt: skip
"""Memory of a job that has imported its modules."""

AUTOGRAD_BYTES = 0.13e9  # what the first training step loads
DECODE_FILE, DECODE_PIXEL = 4e-4, 2.3e-8  # open an image file; decode a pixel of a photograph
PHOTOGRAPH = 500 * 375  # pixels of an image of ILSVRC, CUB and VOC
WRITE_BYTE, READ_BYTE = 3e-8, 1e-8  # pack, or unpack and check, a byte of data.h5
STORED = {"strokes": 0.3, "photographs": 0.9}  # of data.h5, packed: drawn digits are mostly blank
STATE_BYTE = 1e-9  # write a byte of the state that a training keeps after each epoch
AVERAGE_VALUE = 1e-8  # a value of an image in the averages of classes
WINDOW_VALUE = 1.2e-8  # a value in the windows of a sweep, through all that is no matrix product
SWEPT_SAMPLE = 0.01  # follow the network for a sample, and put its sums together
PROJECTED_VALUE = 1e-8  # a value of a filter's images in their principal components
CLUSTERED_SAMPLE = 8e-6  # a sample of a filter in the mixtures with 1 to 5 components
READ_NEURON = 1e-7  # a neuron and sample of a scan
MEASURED_NEURON = 5e-7  # a neuron and sample in FQ
COMPARED_NEURON = 2e-5  # a neuron in DBSCAN
COMPARED_PAIR, PAIR_BYTES = 2e-8, 15  # two coinciding neurons in DBSCAN
MEASURED_PIXEL = 5e-8  # a pixel of a filter image in TIP, on three areas
CARRIED = 1.3  # carry several filters back at a time, in multiply-adds, as a multiple of their passes
PROBED = 40  # forward passes that show what is behind a layer
PER_SAMPLE = 15  # forward passes that take as long as the size of each weight's gradient for a sample
GRADIENT = 50  # multiply-adds for the norm of a sample's gradient, as a multiple of a forward pass's
MASKED_SAMPLE = 8e-6  # a sample on which a choice of filters is masked, besides its multiply-adds
QUANTITY_BYTES = 60  # a neuron's row of quantity.parquet
ACTIVE = 0.8  # share of the filters that respond to a sample
ANOMALIES = 0.02  # share of the filters that are anomalies
LABEL_FILE, LABEL_PIXEL = 1.2e-3, 4e-7  # name colours and write an image with its masks; a pixel of it
LABELLED_BYTES = 1.5  # a pixel of an image with its masks, packed
COUNTED_VALUE = 5e-9  # a value of a unit in a pass for the thresholds
OVERLAPPED_PIXEL = 4e-9  # a mask's pixel of a unit that responds to an image, besides enlarging the map
UNIT_BYTES = 300  # a unit's rows of units.parquet and exemplars.parquet
NEIGHBOUR_PAIR = 1.2e-7  # two points in the orders of neighbours in all draws and blocks, besides their distance
PUSHED_VALUE = 1e-9  # a value of a patch's difference from a prototype of its class
PROTOTYPE_STEP, LAST_STEP = 3e-3, 1e-3  # a batch in the training of a ProtoPNet, and in that of its last layer alone
DRAWN_PROTOTYPE = 0.02  # a prototype on its image in the sheet
EXPLAINING = 6e-3  # check an explainer's inputs and copy the network, besides its parameters
COPIED_PARAMETER = 1e-9  # a parameter of that copy
EXPLAINED_STEP, EXPLAINED_MODULE = 3e-4, 3e-5  # a batch that an explainer passes; a module in it, back and forth
EXPLAINED_VALUE = 1e-9  # a number of an image, or of a mask, in what an explainer computes beside
SURROGATE = 0.02  # segments of an image, and the linear model of what is hidden
HELPER = 1.2  # convolutions of a small helper network take as long as so many multiply-adds of large matrix products
HELPER_STEP = 0.012  # a step of its training, besides its multiply-adds
HIDDEN_PIXEL = 1e-8  # a pixel of the masks that it is trained with
COMPARED_PIXEL = 4e-7  # a pixel of two maps of which the ranks and the structure are compared
DISTANT_VALUE = 2e-9  # a value in the distance of a made image from a training image
ATTACKED = 12  # passes of the network, back and forth, in a step of an attack
WATCHED = 1.3  # explain images one by one while memory is looked at
SHEET, DRAWN_MAP = 6, 0.02  # images on the sheet of all maps; a map on it
ORDERED_PIXEL = 2.5e-7  # a pixel of a map whose order is found, and removed from its image
SCORE_BYTES = 12  # a row of scores, packed
GPU_MODULE = 1e-4  # a module in a step of training on a GPU, however small: its operations have to be started


# Facts: images ------------------------------------------------------------------------------------------------------


class _Published(NamedTuple):
    """Images of the train and the test part of a data set as its makers publish it, its classes and channels."""

    train: int
    test: int
    classes: int
    channels: int = 3


PUBLISHED: Mapping[str, _Published] = {
    "mnist": _Published(60_000, 10_000, 10, 1),
    "fashion_mnist": _Published(60_000, 10_000, 10, 1),
    "cifar10": _Published(50_000, 10_000, 10),
    "cifar100": _Published(50_000, 10_000, 100),
    "det": _Published(395_909, 20_121, 200),
    "cub": _Published(5_994, 5_794, 200),
    "voc": _Published(1_464, 1_449, 20),
}
"""Sizes of the data sets; of VOC2012 the segmentation sets. Of DET and VOC somewhat fewer images have objects."""

DIGITS = 1797
"""Images of scikit-learn's digits, which have no test part."""

UNKNOWN_CLASSES = 10
"""Classes of an image folder that is not there; only the class scores depend on them."""

LIVE = {"mnist": {1: 0.26, 2: 0.32, 4: 0.43, 8: 0.69}, "digits": {1: 0.70, 4: 0.87}}
"""Measured share of the blocks of b x b pixels that are not all zero, at 32 x 32: a scan passes over the others."""


@dataclass(frozen=True)
class Images:
    """The images of a data set.

    Attributes:
        train: Images of the train split; validation and test likewise.
        classes: Number of classes.
        channels: Channels.
        side: Height and width in pixels.
        masked: Whether they have foreground masks.
        drawn: Whether they are strokes on black.
        photographs: Whether they have to be decoded from files of photographs.
        live: Share of live blocks by their side, see `LIVE`.
    """

    train: int
    validation: int
    test: int
    classes: int
    channels: int
    side: int
    masked: bool
    drawn: bool
    photographs: bool
    live: Mapping[int, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Images of all splits."""
        return self.train + self.validation + self.test

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.side**2

    @property
    def values(self) -> int:
        """Numbers of an image, all channels."""
        return self.channels * self.pixels

    @property
    def stored(self) -> int:
        """Bytes of all images and masks in memory, as they are read: a byte for each value, and for each mask pixel."""
        return self.count * (self.values + self.masked * self.pixels)

    def live_share(self, block: int) -> float:
        """Return the share of blocks of a side that a scan does not pass over."""
        return next((share for side, share in sorted(self.live.items(), reverse=True) if side <= block), 1.0)


def count_images(config: DatasetConfig) -> Images:
    """Return the number and shape of a data set's images: published, counted where the data is there, or as limited.

    Splits are cut as `data.load_dataset` cuts them, up to the rounding within each class.

    Raises:
        ConfigurationError: A number cannot be known without the data and is not given by a limit.
    """
    folder = data_root(config.root)
    if config.source == "digits":
        test = round(DIGITS * config.test_fraction)
        parts = {"validation": round(DIGITS * config.validation_fraction), "test": test}
        parts["train"] = DIGITS - sum(parts.values())
        classes, channels = 10, 1
    elif config.source in PUBLISHED:
        published = PUBLISHED[config.source]
        share = len(config.classes or ()) / published.classes or 1.0
        classes, channels = round(share * published.classes), published.channels
        parts = _cut(round(share * published.train), round(share * published.test), config.validation_fraction)
    elif config.source == "camvid":
        parts, classes = _camvid_crops(config, folder)
        channels = 3
    else:
        parts, classes = _folder_images(config, folder)
        channels = 3
    limits = {"train": config.train_limit, "validation": config.validation_limit, "test": config.test_limit}
    kept = {split: min(count, limits[split] or count) for split, count in parts.items()}
    drawn = config.source in ("digits", "mnist", "fashion_mnist")
    return Images(
        **kept,
        classes=classes,
        channels=config.channels or channels,
        side=_side(config),
        masked=config.foreground.kind != "none",
        drawn=drawn,
        photographs=config.source == "image_folder" or config.source in LAYOUTS,
        live=LIVE.get(config.source, {}) if config.normalization == "unit" else {},
    )


def _cut(train: int, test: int, validation_fraction: float) -> dict[str, int]:
    """Return the images of each split of a data set that has a test part."""
    validation = round(train * validation_fraction)
    return {"train": train - validation, "validation": validation, "test": test}


def _side(config: DatasetConfig) -> int:
    if config.size is not None:
        return config.size
    if config.source == "image_folder" or config.source in LAYOUTS:
        raise ConfigurationError(
            f"datasets ({config.name}).size is null: without it an estimate does not know how large the images are; "
            "give the side in pixels"
        )
    return 32  # as `data.load_dataset` has it


def _camvid_crops(config: DatasetConfig, folder: Path) -> tuple[dict[str, int], int]:
    """Return the crops of each split of CamVid, which are cut out of its frames, and the number of classes."""
    classes = config.classes or CAMVID_CLASSES
    try:
        dataset = load_dataset(
            "camvid",
            root=folder,
            size=1,
            classes=classes,
            split_seed=config.split_seed,
            validation_fraction=config.validation_fraction,
        )
    except DataError as error:
        return _limited(config, str(error)), len(classes)
    return {split: len(part.labels) for split, part in dataset.splits.items()}, len(classes)


def _folder_images(config: DatasetConfig, root: Path) -> tuple[dict[str, int], int]:
    """Return the images of each split of class folders, and the number of classes."""
    if root.is_dir():
        paths = [path.relative_to(root).as_posix() for part in ("train", "test") for path in (root / part).glob("*/*")]
    elif root.is_file():
        try:
            paths = [PurePosixPath(member.name).as_posix() for member in archive_members(root) if member.isfile()]
        except DataError as error:
            raise ConfigurationError(f"datasets ({config.name}).root: {error}") from None
    else:
        return _limited(config, f"{root} is not there"), UNKNOWN_CLASSES
    names = [path.split("/") for path in paths if path.count("/") == 2 and "/." not in f"/{path}"]
    counts = Counter(part for part, _, _ in names)
    if not counts["train"] or not counts["test"]:
        raise ConfigurationError(
            f"datasets ({config.name}).root: {root} has no images in train/<class>/ or none in test/<class>/"
        )
    classes = {label for part, label, _ in names if part == "train"}
    return _cut(counts["train"], counts["test"], config.validation_fraction), len(classes)


def _limited(config: DatasetConfig, reason: str) -> dict[str, int]:
    """Return the images of each split where only the limits are known."""
    if config.train_limit is None or config.test_limit is None:
        raise ConfigurationError(
            f"the images of the data set {config.name!r} cannot be counted ({reason}); give "
            f"datasets ({config.name}).train_limit and test_limit for an estimate without the data"
        )
    share = config.validation_fraction
    cut = config.validation_limit or round(config.train_limit * share / (1 - share))
    return {"train": config.train_limit, "validation": cut, "test": config.test_limit}


@dataclass(frozen=True)
class Labelled:
    """The labelled images of Network Dissection; none where a study does not ask for it.

    Attributes:
        count: Images.
        pixels: Pixels of an image, on average; likewise below.
        mask: Pixels of a mask.
        masks: Masks of an image.
        concepts: Concepts at most.
        frames: Frames that the images are made of; 0 where they are there as they are.
        frame: Pixels of a frame.
    """

    count: int = 0
    pixels: float = 0
    mask: float = 0
    masks: float = 0
    concepts: int = 0
    frames: int = 0
    frame: float = 0


BRODEN = Labelled(63_305, 224**2, 112**2, 3, 1_197)
"""Broden at 224 x 224 pixels, as published; the number of masks is assumed."""

CAMVID_FRAMES = [(360, 480)] * 468
"""Sizes of CamVid's frames without its 233 test frames, as published with SegNet."""

CAMVID_CONCEPTS = 43
"""CamVid's 32 classes and 11 color names."""


def count_labelled(settings: DissectionConfig) -> Labelled:
    """Return number and size of the labelled images: counted where they are there, else as published.

    Raises:
        ConfigurationError: Frames are smaller than the tiles that they shall be cut into.
        DataError: Frames, or the tables of a folder in Broden's format, are damaged.
    """
    if settings.concepts == "broden":
        folder = data_root(settings.root)
        if not (folder / "index.csv").is_file():
            return BRODEN
        found = read_broden(folder)
        count = len(found)
        return Labelled(
            count,
            sum(math.prod(row.shape) for row in found.rows) / count,
            sum(math.prod(row.mask_shape) for row in found.rows) / count,
            sum(len(paths) for row in found.rows for paths in row.masks.values()) / count,
            len(found.concepts),
        )
    frames = CAMVID_FRAMES
    if data_places("camvid", settings.root):
        frames = [frame.classes.shape for frame in camvid(settings.root)[1]]
    tile = settings.tile
    parts = [shape if tile is None else (tile, tile) for shape in frames for _ in range(_tiles(shape, tile))]
    if not parts:
        raise ConfigurationError(f"dissection.tile {tile} is larger than CamVid's frames; choose smaller tiles")
    sizes = [
        [round(length * settings.side / min(part)) if settings.side else length for length in part] for part in parts
    ]
    return Labelled(
        len(parts),
        sum(height * width for height, width in sizes) / len(parts),
        sum((height // 2) * (width // 2) for height, width in sizes) / len(parts),
        2,
        CAMVID_CONCEPTS,
        len(frames),
        sum(math.prod(shape) for shape in frames) / len(frames),
    )


def _tiles(shape: tuple[int, int], tile: int | None) -> int:
    """Return the number of squares that a frame is cut into; 1 where it stays whole."""
    return 1 if tile is None else (shape[0] // tile) * (shape[1] // tile)


# Facts: networks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution or linear map, for one image.

    Attributes:
        name: Its name as a layer of neurons.
        filters: Filters K.
        positions: Places of a filter's map.
        weights: Weights of all filters.
        products: Multiply-adds: positions x weights.
        before: Multiply-adds of the network as far as here, this layer's included.
        scanned: Whether the study scans it.
    """

    name: str
    filters: int
    positions: int
    weights: int
    products: int
    before: int
    scanned: bool


@dataclass(frozen=True)
class Sweeps:
    """Sweeps over the pixels of one image, none of them blank. They hardly depend on the number of classes.

    Attributes:
        channels: Multiply-adds of sweeps over the single pixels, one for each channel, as far as a layer, by its name;
            of the layers for which these are fewer than those of carrying each filter back.
        products: Multiply-adds of the scan's sweep.
        values: Numbers in the windows that it reads.
        bytes: Memory of all its tangents at once.
    """

    channels: Mapping[str, float]
    products: float
    values: int
    bytes: int


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of, for one image.

    Attributes:
        layers: Its convolutions and linear maps, in the order of the forward pass.
        parameters: Parameters.
        classes: Class scores.
        modules: Modules that compute something.
        outputs: Numbers that all modules put out.
        sweeps: Sweeps.
    """

    layers: tuple[Layer, ...]
    parameters: int
    classes: int
    modules: int
    outputs: int
    sweeps: Sweeps

    @property
    def products(self) -> int:
        """Multiply-adds of a forward pass."""
        return self.layers[-1].before

    def with_classes(self, count: int) -> Anatomy:
        """Return the same network with another number of classes: its last layer is their head."""
        *body, head = self.layers
        inputs, more = head.weights // head.filters, count - head.filters
        weights, products = count * inputs, count * inputs * head.positions
        before = head.before - head.products + products
        head = replace(head, filters=count, weights=weights, products=products, before=before)
        parameters, outputs = self.parameters + more * (inputs + 1), self.outputs + more
        return replace(self, layers=(*body, head), parameters=parameters, classes=count, outputs=outputs)


def dissect(model: nn.Module, shape: tuple[int, int, int], scan: ScanConfig, samples: int) -> Anatomy:
    """Return what a model is made of.

    Args:
        model: The model as the pipeline builds it.
        shape: Channels, height and width of its input.
        scan: Which layers are scanned, in which blocks.
        samples: Samples of the anomaly search; with many of them few filters are carried back together.

    Raises:
        ConfigurationError: The blocks do not divide the image.
    """
    if shape[1] % scan.block or shape[2] % scan.block:
        raise ConfigurationError(f"scan.block {scan.block} does not divide images of {shape[1]} x {shape[2]} pixels")
    probe = prepare(model)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    sizes, outputs, classes = _sizes(probe, x)
    found = network_layers(probe, x)
    if isinstance(scan.layers, str):
        chosen = chosen_layers(found, "all" if scan.layers == "all" else "convolutional")
    else:
        chosen = [resolve_layer(probe, layer) for layer in scan.layers]
    layers: list[Layer] = []
    for layer in found:
        filters, positions, weights = sizes[layer.weights]
        before = positions * weights + (layers[-1].before if layers else 0)
        scanned = layer.name in chosen or layer.weights in chosen
        layers.append(Layer(layer.name, filters, positions, weights, positions * weights, before, scanned))
    if not any(layer.scanned for layer in layers):
        raise ConfigurationError(f"scan.layers: none of {', '.join(chosen)} is a convolution or linear map")
    sweeps = _find_sweeps(probe, x, layers, scan.block, samples)
    return Anatomy(tuple(layers), parameter_count(model), classes, len(outputs), sum(outputs), sweeps)


def _sizes(probe: nn.Module, x: Tensor) -> tuple[dict[str, tuple[int, int, int]], list[int], int]:
    """Return filters, positions and weights of each convolution and linear map, each output's size, and the classes.

    A map that is called several times has the positions of all its calls.
    """
    sizes: dict[str, tuple[int, int, int]] = {}
    outputs: list[int] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append(output.numel())
                if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    filters = len(module.weight)
                    earlier = sizes[name][1] if name in sizes else 0
                    sizes[name] = filters, earlier + output.numel() // filters, module.weight.numel()

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in probe.named_modules():
            if not list(module.children()):
                stack.callback(module.register_forward_hook(record(name)).remove)
        return sizes, outputs, logits(probe(x.clone())).shape[1]


def _find_sweeps(probe: nn.Module, x: Tensor, layers: Sequence[Layer], block: int, samples: int) -> Sweeps:
    """Return the sweeps of a model; see `dissect`."""
    scanned = [layer for layer in layers if layer.scanned]
    together = max(1, FILTER_BYTES // (samples * x[0, 0].numel() * FLOAT))
    channels: dict[str, float] = {}
    for layer in scanned:
        found = _channel_sweeps(probe, x, layer.name)
        if found is None or found >= min(layer.filters, together) * layer.before:
            break  # nor does it pay for deeper layers, which a pixel reaches more of
        channels[layer.name] = found
    try:
        linear = Linearisation(probe, x, [layer.name for layer in scanned])
    except LinearisationError:  # every tangent is carried through the whole network
        tangents = x[0, 0].numel() // block**2
        values = tangents * sum(layer.filters * layer.positions for layer in scanned)
        return Sweeps(channels, tangents * scanned[-1].before, values, values * FLOAT)
    sweep = WindowSweep(linear, x, block)
    values = sum(
        grid.size * linear.channels(linear.places[layer])
        for batch in sweep.batches
        for layer, grid in sweep.grids(batch).items()
    )
    return Sweeps(channels, sweep.products, values, sweep.bytes_each * len(sweep.batches))


def _channel_sweeps(probe: nn.Module, x: Tensor, layer: str) -> float | None:
    """Return the multiply-adds of a sweep for each channel of the input; None where the network cannot be followed."""
    try:
        linear = Linearisation(probe, x, [layer])
    except LinearisationError:
        return None
    return None if linear.whole_maps or layer not in linear.places else x.shape[1] * WindowSweep(linear, x, 1).products


@dataclass(frozen=True)
class Systems:
    """What Network Dissection, TwoNN and ProtoPNet see of a model, for one image; nothing where they are not asked for.

    Attributes:
        units: Units and places of each dissected layer.
        places: Features of each place whose intrinsic dimension is measured.
        backbone: Multiply-adds of the convolutional part.
        added: Multiply-adds of the convolutions that ProtoPNet puts behind it.
        patches: Latent patches.
        weights: Parameters of both.
    """

    units: tuple[tuple[int, int], ...] = ()
    places: tuple[int, ...] = ()
    backbone: int = 0
    added: int = 0
    patches: int = 0
    weights: int = 0


def find_systems(model: nn.Module, shape: tuple[int, int, int], study: Study, stages: Sequence[Stage]) -> Systems:
    """Return what the systems of a study see of a model.

    Args:
        model: The model as the pipeline builds it.
        shape: Channels, height and width of its input.
        study: The study.
        stages: The model's stages.

    Raises:
        ConfigurationError: A layer that shall be dissected is not used.
        LayerError: A layer does not exist.
        ModelError: Images are too small for a ProtoPNet.
    """
    # the libraries that these load are not in the start of a job
    from nnscan.dimension import representation_layers
    from nnscan.prototypes import protopnet

    probe, found = prepare(model), Systems()
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    if "dissection" in stages:
        names = select_layers(probe, x, study.dissection.layers)
        with torch.no_grad(), capture(probe, names) as outputs:
            probe(x.clone())
        unused = [name for name in names if name not in outputs]
        if unused:
            raise ConfigurationError(f"dissection.layers: {unused[0]} is not used in the forward pass; choose another")
        maps = [as_maps(outputs[name]) for name in names]
        found = replace(found, units=tuple((own.shape[1], own[0, 0].numel()) for own in maps))
    if "dimension" in stages:
        places = representation_layers(probe, x, study.dimension.layers)
        found = replace(found, places=tuple(place.width for place in places))
    if "prototypes" in stages:
        network = protopnet(probe, x, classes=1, per_class=1, channels=study.prototypes.channels)
        sizes = _sizes(network, x)[0]
        products = {name: positions * weights for name, (_, positions, weights) in sizes.items()}
        found = replace(
            found,
            backbone=sum(count for name, count in products.items() if name.startswith("backbone.")),
            added=sum(count for name, count in products.items() if name.startswith("added.")),
            patches=sizes["added.2"][1],
            weights=parameter_count(network.backbone) + parameter_count(network.added),
        )
    return found


@dataclass(frozen=True)
class Network:
    """A model of a study on a data set: what the formulas of `RULES` are written in.

    Attributes:
        study: The study.
        dataset: Name of the data set.
        model: Name of the model.
        images: The data set's images.
        anatomy: What the model is made of.
        checkpoints: Checkpoints that are searched for anomaly filters.
        shards: Shards of the scan.
        seeds: Runs.
        systems: What the systems beside the theses see of it.
        labelled: The labelled images of Network Dissection.
        methods: Its methods of explanation; none where they are not asked for.
        question: What is asked of explanations, by a job that asks one of `layout.QUESTIONS`.
    """

    study: Study
    dataset: str
    model: str
    images: Images
    anatomy: Anatomy
    checkpoints: int
    shards: int
    seeds: int
    systems: Systems = field(default_factory=Systems)
    labelled: Labelled = field(default_factory=Labelled)
    methods: tuple[str, ...] = ()
    question: str = ""

    @property
    def forward(self) -> int:
        """Multiply-adds of a forward pass of an image."""
        return self.anatomy.products

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.anatomy.parameters

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The scanned layers."""
        return tuple(layer for layer in self.anatomy.layers if layer.scanned)

    @property
    def filters(self) -> int:
        """Scanned filters."""
        return sum(layer.filters for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Scanned neurons."""
        return sum(layer.filters * layer.positions for layer in self.layers)

    @property
    def block(self) -> int:
        """Side of the scan's blocks."""
        return self.study.scan_of(self.model).block

    @property
    def blocks(self) -> int:
        """Blocks of an image."""
        return (self.images.side // self.block) ** 2

    @property
    def samples(self) -> int:
        """Scanned samples."""
        return min(self.study.scan.samples, self.images.test)

    @property
    def training(self) -> TrainingConfig:
        """How the model is trained."""
        return self.study.training_of(self.model)

    @property
    def masked_layer(self) -> Layer:
        """The layer whose filters are masked step by step; a named one counts as the middle one."""
        return self.layers[-1 if self.study.experiments.layer == "last" else len(self.layers) // 2]

    @property
    def enlarged(self) -> float:
        """Pixels of a labelled image as the network is shown it, as a multiple of those of its own images."""
        side = self.study.dissection.size
        return (side**2 if side else self.labelled.pixels) / self.images.pixels

    @property
    def explained(self) -> int:
        """Images that are explained."""
        return min(self.study.explainers.samples, self.samples)

    @property
    def shuffled(self) -> bool:
        """Whether there is a checkpoint that was trained on shuffled labels."""
        return self.study.model(self.model).weights is None and self.training.overfitting_epochs > 0

    def behind(self, layer: Layer) -> int:
        """Multiply-adds of the network behind a layer."""
        return self.forward - layer.before

    def reader(self, layer: Layer) -> int:
        """Multiply-adds of the layer that reads a layer's maps."""
        following = self.anatomy.layers[self.anatomy.layers.index(layer) + 1 :]
        return following[0].products if following else 0


def find_methods(study: Study, model: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the methods of explanation of a model; none where they are not asked for.

    Raises:
        ConfigurationError: There is no such method.
    """
    if "explainers" not in stages:
        return ()
    # the libraries that these load are not in the start of a job
    from nnscan.explainers import chosen

    return tuple(method.name for method in chosen(study.methods_of(model)))


# Speeds -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a thread of this machine does.

    Attributes:
        start: Seconds of an interpreter that imports torch and what trains a network.
        products: Multiply-adds per second of large matrix products.
        step: Seconds in which Adam changes a parameter.
    """

    start: float
    products: float
    step: float


@dataclass(frozen=True)
class Speed:
    """What a thread of this machine does with a network.

    Attributes:
        forward: Multiply-adds per second of forward passes.
        training: Multiply-adds per second of forward and backward passes together, three times those of a forward pass.
    """

    forward: float
    training: float


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the processor time of some work, the least of some repeats."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return max(min(times), 1e-9)


def measure_machine(start: float) -> Machine:
    """Return what a thread of this machine does.

    Args:
        start: See `Machine`.
    """
    a, b = torch.rand(1024, 1152), torch.rand(1152, 256)
    weights = nn.Parameter(torch.rand(4_000_000))
    weights.grad = torch.rand(len(weights))
    optimizer = torch.optim.Adam([weights])
    with _one_thread():
        with torch.inference_mode():
            products = 16 * a.numel() * b.shape[1] / _seconds(lambda: [a @ b for _ in range(16)], 3)
        optimizer.step()
        return Machine(start, products, _seconds(optimizer.step, 3) / len(weights))


def measure_speed(model: nn.Module, shape: tuple[int, int, int], anatomy: Anatomy, training: TrainingConfig) -> Speed:
    """Return the speed of a model with one thread, in batches of the study or of `TRIAL` multiply-adds.

    Args:
        model: The model; statistics of its batch normalisation are changed.
        shape: Channels, height and width of its input.
        anatomy: What it is made of.
        training: How it is trained.
    """
    generator = torch.Generator().manual_seed(0)
    # batch normalisation has no variance of one image
    count = max(2, min(training.batch_size, int(TRIAL / (3 * anatomy.products))))
    images, classes = torch.rand(count, *shape, generator=generator), torch.arange(count) % anatomy.classes

    def passes() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
            scores = logits(model(augment(images, training.augmentation, generator))).to(images.dtype)
        nn.functional.cross_entropy(scores, classes).backward()  # type: ignore[no-untyped-call]

    with _one_thread(), deterministic(), torch.enable_grad():
        model.train()
        first = _seconds(passes, 1)  # it prepares the kernels, of which little is seen in a long pass
        repeats = 2 if first < 1 else 1
        both = (_seconds(passes, repeats) if first < 1 else first) / count
        model.zero_grad()
    with _one_thread(), evaluation(model), torch.no_grad():
        forward = _seconds(lambda: model(images.clone()), repeats) / count
    return Speed(anatomy.products / forward, 3 * anatomy.products / both)


# Rules --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a job has to do.

    Attributes:
        forward: Multiply-adds of forward passes, and of backward passes to the input alone.
        training: Multiply-adds of training: three times those of the forward passes.
        products: Multiply-adds of large matrix products.
        steps: Changes of all parameters by the optimiser.
        seconds: Processor time of all else.
        memory: Bytes beyond an interpreter with its modules and the data.
        disk: Bytes that stay.
    """

    forward: float = 0
    training: float = 0
    products: float = 0
    steps: float = 0
    seconds: float = 0
    memory: float = 0
    disk: float = 0

    def __add__(self, other: Work) -> Work:
        """Return the work of both, one after the other in one job."""
        return Work(
            self.forward + other.forward,
            self.training + other.training,
            self.products + other.products,
            self.steps + other.steps,
            self.seconds + other.seconds,
            max(self.memory, other.memory),
            self.disk + other.disk,
        )

    def __mul__(self, times: float) -> Work:
        """Return the work done several times."""
        return Work(
            self.forward * times,
            self.training * times,
            self.products * times,
            self.steps * times,
            self.seconds * times,
            self.memory,
            self.disk * times,
        )


NONE = Work()


def prepare_data(n: Network) -> Work:
    """Decode and resize each image, pack all."""
    d = n.images
    decode = DECODE_FILE + DECODE_PIXEL * (PHOTOGRAPH if d.side > 64 else d.pixels) if d.photographs else 5e-5
    stored = STORED["strokes" if d.drawn else "photographs"] * d.stored
    held = d.stored * (1 + d.train / d.count)  # one part is copied for the checksum
    return Work(seconds=d.count * decode + WRITE_BYTE * d.stored, memory=held, disk=stored)


def _floats(n: Network, images: float) -> float:
    """Return the bytes of images as they are fed to a network."""
    return FLOAT * images * n.images.values


def _passed(n: Network, images: int) -> float:
    """Return the bytes of what a forward pass of a batch holds at a time: two of its larger maps."""
    largest = max(layer.filters * layer.positions for layer in n.anatomy.layers)
    return 2 * FLOAT * images * max(largest, n.images.values)


def training(n: Network, epochs: int, evaluated: int, kept: int, share: float = 1) -> Work:
    """Train for some epochs: each image forward and back, the validation split forward; all images per checkpoint.

    Args:
        n: The network.
        epochs: Epochs.
        evaluated: Checkpoints that are evaluated on all splits.
        kept: Checkpoints that are kept.
        share: Share of the network that is left.
    """
    d, batch = n.images, n.training.batch_size
    state = FLOAT * n.parameters * (3 + kept)  # parameters, two moments of the optimiser, what is kept
    return Work(
        training=3 * share * n.forward * d.train * epochs,
        forward=share * n.forward * (d.validation * epochs + d.count * evaluated),
        steps=epochs * math.ceil(d.train / batch),
        seconds=STATE_BYTE * state * epochs,
        memory=AUTOGRAD_BYTES
        + _floats(n, d.count)
        + max(2 * FLOAT * batch * n.anatomy.outputs, _passed(n, 512))
        + state,
        disk=FLOAT * n.parameters * kept * share,
    )


def train_model(n: Network) -> Work:
    """Train regularly; kept are three thirds and the well-trained checkpoint."""
    return training(n, n.training.epochs, evaluated=4, kept=4)


def overfit_model(n: Network) -> Work:
    """Train long, with checkpoints on the way."""
    return training(n, n.training.overfitting_epochs, evaluated=1, kept=1 + n.study.anomaly.history_checkpoints)


def adopt_model(n: Network) -> Work:
    """Evaluate a checkpoint on all images."""
    d = n.images
    return Work(forward=n.forward * d.count, memory=_floats(n, d.count) + _passed(n, 512), disk=FLOAT * n.parameters)


def average_images(n: Network) -> Work:
    """Average the images of each class, classify each, and climb the gradient from each average."""
    d, steps = n.images, n.study.averages.steps
    return Work(
        forward=n.forward * (d.train + 2 * steps * d.classes),
        seconds=AVERAGE_VALUE * d.train * d.values,
        memory=_floats(n, d.train * (1 + 1 / d.classes)) + _passed(n, 256),
        disk=_floats(n, 4 * d.classes),
    )


def _sweep_work(n: Network, samples: float) -> Work:
    """Return the work of sweeping over the live blocks of some samples."""
    sweep, live = n.anatomy.sweeps, n.images.live_share(n.block)
    return Work(
        products=samples * live * sweep.products,
        forward=4 * samples * n.forward,  # follow the network, and check the sweep against torch's derivative
        seconds=samples * (live * WINDOW_VALUE * sweep.values + SWEPT_SAMPLE),
        memory=min(KEEP_BYTES, live * sweep.bytes),
    )


def scan_neurons(n: Network) -> Work:
    """Sweep over the samples of a shard; the quantities of each neuron and the images of each filter stay."""
    samples = n.samples / n.shards
    kept = FLOAT * (len(QUANTITIES) * n.neurons + len(IMAGES) * n.filters * n.blocks)
    return _sweep_work(n, samples) + Work(
        memory=2 * kept + min(KEEP_BYTES, n.anatomy.sweeps.bytes), disk=samples * kept
    )


def projection(n: Network) -> Work:
    """Compute the images of each filter for each sample of the anomaly search, and their principal components.

    Images of feature maps take a forward pass. Learning images take a sweep of single pixels for each group of filters
    that fits into memory, or for each active filter a backward pass as far as the layer.
    """
    count, d = min(n.study.anomaly.samples, n.images.train), n.images
    maps = n.study.anomaly.source == "feature_maps"
    work = NONE
    for layer in n.layers:
        width = layer.positions if maps else d.pixels
        group = max(1, FILTER_BYTES // (count * width * FLOAT))
        groups = math.ceil(layer.filters / group)
        passes = groups * count * n.forward * (1 if maps else 2) + count * n.forward
        work += Work(
            forward=passes,
            seconds=PROJECTED_VALUE * layer.filters * count * width,
            memory=count * width * (FLOAT * min(group, layer.filters) + 16),
            disk=24 * layer.filters * count,  # two coordinates and an activation
        )
        if layer.name in n.anatomy.sweeps.channels and not maps:
            work += Work(products=groups * count * d.live_share(1) * n.anatomy.sweeps.channels[layer.name])
        elif not maps:
            work += Work(forward=CARRIED * ACTIVE * layer.filters * count * layer.before)
    return work + Work(memory=_passed(n, 64) * 2)


def clustering(n: Network) -> Work:
    """Fit mixtures to the samples of each filter."""
    return Work(seconds=CLUSTERED_SAMPLE * n.filters * min(n.study.anomaly.samples, n.images.train))


def project_filters(n: Network) -> Work:
    """Project the filters of each checkpoint that is searched."""
    return projection(n) * n.checkpoints


def anomaly_filters(n: Network) -> Work:
    """Cluster the samples of each checkpoint that is searched."""
    return clustering(n) * n.checkpoints


def anomaly_history(n: Network) -> Work:
    """Project and cluster each checkpoint on the way to the overfitted one; the points are not kept."""
    work = (projection(n) + clustering(n)) * n.study.anomaly.history_checkpoints
    return replace(work, disk=0)


def _moments(n: Network, layer: Layer) -> float:
    """Return the bytes of a layer's moments, joined over shards, and of what is computed from them in float64."""
    return n.samples * layer.filters * layer.positions * (2 * FLOAT + 8) * len(QUANTITIES)


def feature_quantity(n: Network) -> Work:
    """Compute FQ of each neuron and sample; run DBSCAN among each filter's neurons, without each element of FQ too."""
    runs = 6 if n.images.masked else 4
    # the neurons of a filter that does not respond are all neighbours of each other
    pairs = [layer.positions**2 for layer in n.layers]
    coinciding = (1 - ACTIVE) * sum(layer.filters * size for layer, size in zip(n.layers, pairs, strict=True))
    return Work(
        seconds=MEASURED_NEURON * n.samples * n.neurons
        + runs * (COMPARED_NEURON * n.neurons + COMPARED_PAIR * coinciding),
        memory=max(*(_moments(n, layer) for layer in n.layers), PAIR_BYTES * max(pairs)),
        disk=QUANTITY_BYTES * n.neurons,
    )


def neuron_knowledge(n: Network) -> Work:
    """Read the scan; compare images of filters pair by pair; images of drawn neurons and of all class scores."""
    k, d = n.study.knowledge, n.images
    compared, shown = min(k.samples, d.test), min(k.winners, d.test)
    pairs = 2 * sum(layer.filters**2 for layer in n.layers) * n.blocks
    drawn = sum(n.forward + k.neurons * layer.before for layer in n.anatomy.layers)
    largest = max(_moments(n, layer) for layer in n.layers)
    return Work(
        forward=1.5 * (compared * drawn + shown * n.forward * (1 + d.classes)),
        products=2 * n.samples * pairs,  # in float64
        seconds=READ_NEURON * n.samples * n.neurons
        + MEASURED_PIXEL / 2 * n.samples * n.filters * d.pixels
        + 2e-9 * compared**2 * k.neurons * len(n.anatomy.layers) * d.values,
        memory=largest + 8 * max(layer.filters for layer in n.layers) * d.pixels * 3,
    )


def interpretable_properties(n: Network) -> Work:
    """Compute properties of each filter image on three areas, and the gradient of each weight for each sample."""
    samples, weights = min(n.study.properties.samples, n.images.test), sum(layer.weights for layer in n.layers)
    work = Work(
        forward=PER_SAMPLE * samples * n.forward,
        seconds=MEASURED_PIXEL * n.samples * n.filters * n.blocks + READ_NEURON * n.samples * n.neurons,
        memory=max(_moments(n, layer) for layer in n.layers) / 2 + 0.3e9,
    )
    if n.study.properties.sensitivity == "exact":
        removed = sum(layer.weights * (n.behind(layer) + layer.positions) for layer in n.layers)
        work += Work(forward=samples * removed, seconds=MASKED_SAMPLE * samples * weights)
    return work


def similarity(n: Network) -> Work:
    """Carry each active filter back, for the averages of each class: simple, most and least confident."""
    carried = sum(ACTIVE * layer.filters * layer.before for layer in n.layers)
    d = n.images
    return Work(
        forward=3 * d.classes * (carried + 3 * n.forward) + d.test * n.forward,
        seconds=4e-4 * d.classes**2 + 1e-8 * 3 * d.classes * n.filters * d.values,
        memory=_floats(n, d.test) + 4 * _passed(n, 64),
    )


def localise_objects(n: Network) -> Work:
    """Compute CAM, Grad-CAM and a sweep for each scanned sample."""
    if not n.images.masked:
        return NONE
    last = n.layers[-1]
    return _sweep_work(n, n.samples) + Work(forward=6 * n.samples * n.forward, memory=_moments(n, last))


def masking(n: Network, layers: Sequence[Layer], images: int, choices: float, share: float) -> Work:
    """Mask choices of filters of some layers: what is before a layer runs once, what is behind it for each choice.

    Args:
        n: The network.
        layers: The layers.
        images: Images.
        choices: Choices of filters of each layer.
        share: Share of the layer's filters in a choice: of the layer that reads them no more is run again.
    """
    choice = sum(n.behind(layer) - (1 - share) * n.reader(layer) for layer in layers)
    return Work(
        forward=len(layers) * (images + PROBED) * n.forward + images * choices * choice,
        seconds=MASKED_SAMPLE * len(layers) * choices * images,
        memory=_floats(n, images) + _passed(n, 512),
    )


def mask_diverse_filters(n: Network) -> Work:
    """Mask the most, least and random diverse filters of each layer; most and least without each of five elements."""
    e, test = n.study.experiments, n.images.test
    filters = n.filters / len(n.layers)
    share = min(e.diversity_filters, filters / 4) / filters
    elements = 5 if n.images.masked else 3
    return masking(n, n.layers, test, 2 + e.draws + 2 * elements, share)


def mask_by_properties(n: Network) -> Work:
    """Mask one layer by four rankings and in random orders, step by step."""
    e = n.study.experiments
    return masking(n, [n.masked_layer], n.images.test, (4 + e.draws) * (e.steps + 1), 0.5)


def filter_types(n: Network) -> Work:
    """Compute images of one layer's filters after each third of the training; mask six types beside random filters."""
    if not n.images.masked:
        return NONE
    layer, test = n.masked_layer, n.images.test
    samples = min(n.study.properties.samples, test)
    images = Work(
        forward=samples * (2 * n.forward + CARRIED * ACTIVE * layer.filters * layer.before),
        seconds=MEASURED_PIXEL * samples * layer.filters * n.images.pixels,
        memory=0.3e9 + _floats(n, test),
    )
    return (images + masking(n, [layer], test, 6 * (1 + n.study.experiments.draws), 0.2)) * 3


def mask_anomalies(n: Network) -> Work:
    """Mask anomaly filters together, beside random ones, and alone; compute the gradient of each sample."""
    d = n.images
    samples = min(n.study.anomaly.samples, d.train)
    together = Work(forward=n.forward * d.validation * (2 + n.study.experiments.draws))
    alone = NONE
    for layer in n.layers:
        found = ANOMALIES * layer.filters
        if found >= 1:
            alone += masking(n, [layer], d.train + d.validation, found, 1 / layer.filters)
    chunk = max(1, min(64, 100_000_000 // n.parameters))
    gradients = Work(products=GRADIENT * samples * n.forward, memory=3 * FLOAT * chunk * n.parameters)
    read = Work(memory=_floats(n, d.train + d.validation + samples))
    return (together + alone + gradients) * n.checkpoints + read


def prune_neurons(n: Network) -> Work:
    """Prune the most and the least similar and random neurons of each layer."""
    e = n.study.experiments
    return masking(n, n.layers, n.images.test, 2 + e.draws, e.prune_fraction)


def remove_layers(n: Network) -> Work:
    """Train the network cut after a convolution, one later, and whole; the mean over where the cut may be."""
    whole = CUTTABLE[n.study.model(n.model).source]
    cuts = [{peak, min(peak + 1, whole), whole} for peak in range(1, whole + 1)]
    left = [n.anatomy.layers[length - 1].before / n.forward for chosen in cuts for length in chosen]
    return training(n, n.training.epochs, evaluated=4, kept=4, share=sum(left) / len(left)) * (len(left) / whole)


def draw_figures(n: Network) -> Work:
    """Draw seven figures, from tables of all runs."""
    return Work(seconds=6 + n.seeds * 3e-7 * n.neurons, memory=n.seeds * 300 * n.neurons)


def draw_neurons(n: Network) -> Work:
    """Draw seven figures; compute images of the most activated neuron of each layer for three samples."""
    return Work(
        forward=6 * n.forward * len(n.anatomy.layers),
        seconds=6 + READ_NEURON * n.samples * n.neurons,
        memory=max(_moments(n, layer) for layer in n.layers) / 2,
    )


def draw_filters(n: Network) -> Work:
    """Draw two figures; compute images of four filters."""
    return Work(forward=40 * n.forward, seconds=3)


def draw_explanations(n: Network) -> Work:
    """Draw five figures and a page; compute integrated gradients, sweeps and filters of some samples."""
    carried = sum(layer.filters * layer.before for layer in n.layers[:2] + n.layers[len(n.layers) // 2 :: 4])
    last = _moments(n, n.layers[-1])
    return _sweep_work(n, 4) + Work(forward=4 * 60 * 3 * n.forward + carried, seconds=7, memory=last)


def initialise_model(n: Network) -> Work:
    """Build the model and write it."""
    return Work(disk=FLOAT * n.parameters)


def shuffle_labels(n: Network) -> Work:
    """Train as long as for the overfitted checkpoint; only the end is kept."""
    return training(n, n.training.overfitting_epochs, evaluated=1, kept=1)


def label_concepts(n: Network) -> Work:
    """Decode each frame; name the colours of its parts, and write them with their masks."""
    found = n.labelled
    written = LABEL_FILE + LABEL_PIXEL * found.pixels
    return Work(
        seconds=found.frames * (DECODE_FILE + DECODE_PIXEL * found.frame) + found.count * written,
        disk=LABELLED_BYTES * found.count * found.pixels,
    )


def _read_labels(n: Network) -> float:
    """Return the seconds in which all masks are read once."""
    found = n.labelled
    return found.count * found.masks * (DECODE_FILE + DECODE_PIXEL * found.mask)


def _read_labelled(n: Network) -> float:
    """Return the seconds in which all labelled images are read once."""
    return n.labelled.count * (DECODE_FILE + DECODE_PIXEL * n.labelled.pixels)


def passes(units: int) -> int:
    """Return the passes over the labelled images that the thresholds of so many units take."""
    return math.ceil(32 / min(DIGIT_BITS, int(math.log2(COUNT_BYTES / (8 * units)))))


def dissection(n: Network, layers: Sequence[tuple[int, float]], bases: int = 1) -> Work:
    """Pass over the labelled images for the thresholds and once for the overlaps, of all units together.

    Args:
        n: The network.
        layers: Units, and places on a labelled image, of each layer.
        bases: Bases in which the units are looked at; in all but one the maps are multiplied by a rotation.
    """
    found, mask = n.labelled, n.labelled.mask
    units = bases * sum(count for count, _ in layers)
    values = bases * sum(count * places for count, places in layers)
    rotated = (bases - 1) * sum(count**2 * places for count, places in layers)
    larger = bases * sum(count * math.sqrt(size * mask) * (math.sqrt(size) + math.sqrt(mask)) for count, size in layers)
    narrowing = passes(units)
    batch = LABELLED_BATCH * (_floats(n, 1) + 2 * FLOAT * n.anatomy.outputs) * n.enlarged
    return Work(
        forward=(narrowing + 1) * found.count * n.enlarged * n.forward,
        products=found.count * ((narrowing + 1) * rotated + ACTIVE * larger),
        seconds=(narrowing + 1) * _read_labelled(n)
        + _read_labels(n)
        + COUNTED_VALUE * narrowing * found.count * values
        + OVERLAPPED_PIXEL * ACTIVE * found.count * units * mask,
        memory=min(COUNT_BYTES, 8 * units * 2**DIGIT_BITS)
        + 8 * units * found.concepts
        + batch
        + 2 * FLOAT * LABELLED_BATCH * values,
    )


def _dissected(n: Network) -> list[tuple[int, float]]:
    """Return units, and places on a labelled image, of each dissected layer; linear layers have one in any case."""
    return [(count, places * n.enlarged if places > 1 else 1) for count, places in n.systems.units]


def dissect_network(n: Network) -> Work:
    """Check all labelled images and masks, and dissect the layers of one checkpoint."""
    layers = _dissected(n)
    check = Work(seconds=_read_labelled(n) + _read_labels(n))
    return check + dissection(n, layers) + Work(disk=UNIT_BYTES * sum(count for count, _ in layers))


def rotate_units(n: Network) -> Work:
    """Dissect the last layer in its own basis and in the powers of each rotation."""
    return dissection(n, _dissected(n)[-1:], 1 + POWERS * n.study.dissection.rotations)


def measure_dimension(n: Network) -> Work:
    """Compute the representations of some images; of each place the distances of all pairs and principal components."""
    count, places = min(n.study.dimension.samples, n.images.train), n.systems.places
    less = [min(count, width) for width in places]
    held = FLOAT * count * sum(places)
    # products are in float64, which takes twice as long
    products = sum(2 * count * width * (count + few) + 2 * few**3 for width, few in zip(places, less, strict=True))
    return Work(
        forward=math.ceil(held / HELD_BYTES) * count * n.forward,
        products=products,
        seconds=NEIGHBOUR_PAIR * count**2 * len(places),
        memory=min(HELD_BYTES, held)
        + min(COUNT_BYTES, 48 * count**2)
        + 2 * min(COUNT_BYTES, 16 * count * max(places))
        + _floats(n, count)
        + _passed(n, 256),
    )


def train_prototypes(n: Network) -> Work:
    """Train a ProtoPNet, its convolutional part fixed in warm epochs; push and fit the last layer in between.

    After each step the validation split is evaluated; in the end all images, by the network that was given too.
    """
    p, s, d = n.study.prototypes, n.systems, n.images
    prototypes, warm = p.per_class * d.classes, min(p.warm_epochs, p.epochs)
    # distances are in float64, which takes twice as long
    behind = s.added + 2 * s.patches * prototypes * p.channels
    whole = s.backbone + behind
    batches, pushes = math.ceil(d.train / PROTOTYPE_BATCH), math.ceil(p.epochs / p.push_every)
    last = pushes * p.last_passes + p.prune * PRUNED_PASSES
    passed = d.train * (pushes + p.prune) * 2 + d.validation * (p.epochs + 2 * pushes + p.prune) + d.count
    trained = 3 * d.train * ((p.epochs - warm) * whole + warm * behind)
    # it is trained in float32, whose speed in training is measured only where the model is trained so too
    single = n.training.precision == "float32"
    return Work(
        training=trained if single else 0,
        forward=d.train * warm * s.backbone + passed * whole + d.count * n.forward + (0 if single else trained),
        steps=batches * (p.epochs - warm),
        seconds=batches * (PROTOTYPE_STEP * p.epochs + LAST_STEP * last)
        + PUSHED_VALUE * pushes * d.train * s.patches * p.per_class * p.channels,
        memory=AUTOGRAD_BYTES
        + _floats(n, d.count)
        + max(2 * FLOAT * PROTOTYPE_BATCH * n.anatomy.outputs, _passed(n, 512))
        + 3 * 8 * 256 * s.patches * prototypes
        + 4 * FLOAT * s.weights,
        disk=FLOAT * (s.weights + prototypes * (p.channels + d.classes)),
    )


def draw_units(n: Network) -> Work:
    """Draw five figures; find where units of each layer respond on their images, and set each to zero for three."""
    counts = [units for units, _ in n.systems.units]
    layers, shown = min(SHOWN_LAYERS, len(counts)), SHOWN_UNITS * SHOWN_IMAGES
    return Work(
        forward=n.forward * (layers * shown * n.enlarged + 3 * (1 + counts[-1])),
        seconds=4 + OVERLAPPED_PIXEL * shown * layers * sum(counts) / len(counts) * n.labelled.pixels,
    )


def draw_dimension(n: Network) -> Work:
    """Draw three figures, from tables of all runs."""
    return Work(seconds=1.5)


def draw_prototypes(n: Network) -> Work:
    """Draw a sheet of all prototypes and two pages, for each of which the test images are passed."""
    s, d = n.systems, n.images
    prototypes = n.study.prototypes.per_class * d.classes
    return Work(
        forward=2 * d.test * (s.backbone + s.added),
        seconds=4 + DRAWN_PROTOTYPE * prototypes,
        memory=_floats(n, d.test) + _passed(n, 512),
    )


# Explanations -------------------------------------------------------------------------------------------------------


class Effort(NamedTuple):
    """What a method of explanation takes for an image.

    Attributes:
        passes: Passes of the network for each copy in each round: 1 forward, 2 forward and back.
        copies: Copies of the image that pass.
        rounds: How often they do, each time after the other.
        values: Numbers for each value of a copy that are computed beside, in each round.
        masks: The same for each pixel of a copy.
        seconds: Processor time of all else.
    """

    passes: float = 2
    copies: float = 1
    rounds: float = 1
    values: float = 0
    masks: float = 0
    seconds: float = 0


LEVELS, NEIGHBOURS = 8, 49
"""Blurred images between which masks interpolate, and cells around a pixel of an extremal perturbation's mask."""

EFFORTS: Mapping[str, Effort] = {
    "occlusion": Effort(passes=1, copies=15**2),
    "rise": Effort(passes=1, copies=2000, values=2, masks=4),
    "meaningful_perturbation": Effort(rounds=300, values=20 * LEVELS),
    "extremal_perturbation": Effort(copies=4, rounds=200, values=20 * LEVELS, masks=6 * NEIGHBOURS),
    "generative_infilling": Effort(copies=4, rounds=100, masks=60),
    "smooth_grad": Effort(copies=50, values=6),
    "integrated_gradients": Effort(copies=50, values=6),
    "rectified_gradient": Effort(passes=4),
    "lrp_epsilon": Effort(passes=6),
    "lrp_alpha_beta": Effort(passes=14),
    "lrp_z_plus": Effort(passes=8),
    "deep_taylor": Effort(passes=8),
    "clrp": Effort(passes=8),
    "sglrp": Effort(passes=8),
    "score_cam": Effort(passes=1),
    "lime": Effort(passes=1, copies=1000, values=3, seconds=SURROGATE),
    "shap": Effort(passes=1, copies=1000, values=3, seconds=SURROGATE),
    "channel_attention": Effort(passes=1),
    "channel_spatial_attention": Effort(passes=1),
    "class_attention": Effort(passes=1),
    "nns": Effort(passes=0),
    "random": Effort(passes=0),
    "edges": Effort(passes=0),
    "input": Effort(passes=0),
    "activation_maximisation": Effort(passes=0),
    "dgn_am": Effort(passes=0),
}
"""What methods take; one that is not here, such as a new one, is taken to pass each image once forward and once back.
Those that make images of classes explain no inputs."""


@cache
def syntheses() -> tuple[str, ...]:
    """Return the methods that make images of classes."""
    from nnscan.explainers import METHODS  # not in the start of a job, either

    return tuple(name for name, method in METHODS.items() if method.synthesise is not None)


def filler_products(images: Images) -> float:
    """Return the multiply-adds in which the infiller fills an image; its halves are those of `infilling.Infiller`."""
    width, pixels = FILLER_WIDTH, (4 * math.ceil(images.side / 4)) ** 2
    return pixels * width * (148 * width + 27 * images.channels + 18)


def maker_products(n: Network) -> float:
    """Return the multiply-adds in which the generator makes an image of a code; see `maximisation.Generator`."""
    head = n.anatomy.layers[-1]
    width, codes = MAKER_WIDTH, head.weights // head.filters
    return math.ceil(n.images.side / 8) ** 2 * width * (4 * codes + 1152 * width + 576 * n.images.channels)


def _effort(n: Network, method: str) -> Effort:
    effort = EFFORTS.get(method, Effort())
    if method == "score_cam":
        placed = [layer.filters for layer in n.anatomy.layers if layer.positions > 1]
        effort = effort._replace(copies=1 + placed[-1]) if placed else effort
    return effort


def explaining(n: Network, methods: Sequence[str], images: int, together: int) -> Work:
    """Explain images by methods.

    Args:
        n: The network.
        methods: Names of the methods.
        images: Images.
        together: Images in a call of a method.
    """
    work, calls = NONE, math.ceil(images / together)
    for name in methods:
        effort = _effort(n, name)
        if name in syntheses():
            continue
        passed = images * effort.copies * effort.rounds
        steps = calls * math.ceil(together * effort.copies / EXPLAINED_BATCH) * effort.rounds
        values = passed * (effort.values * n.images.values + effort.masks * n.images.pixels)
        work += Work(
            forward=effort.passes * passed * n.forward + calls * n.forward,
            seconds=calls * (EXPLAINING + COPIED_PARAMETER * n.parameters)
            + effort.passes * steps * (EXPLAINED_STEP + EXPLAINED_MODULE * n.anatomy.modules)
            + EXPLAINED_VALUE * values
            + images * effort.seconds,
        )
        if name == "generative_infilling":
            work += Work(products=HELPER * passed * filler_products(n.images))
    masks = FLOAT * EXPLAINED_BATCH * n.images.pixels * (4 * NEIGHBOURS + 4 * LEVELS * n.images.channels)
    return work + Work(memory=AUTOGRAD_BYTES + 2 * FLOAT * EXPLAINED_BATCH * n.anatomy.outputs + masks)


def train_infiller(n: Network) -> Work:
    """Train the network that fills hidden pixels, for some steps, and fill the validation images."""
    d, steps = n.images, n.study.explainers.infiller_steps
    passed = 3 * steps * HELPER_BATCH + d.validation
    held = 10 * FLOAT * FILLER_WIDTH * d.pixels  # numbers of all maps of an image
    return Work(
        products=HELPER * passed * filler_products(d),
        seconds=steps * (HELPER_STEP + HIDDEN_PIXEL * HELPER_BATCH * d.pixels),
        memory=AUTOGRAD_BYTES + _floats(n, d.train + 3 * d.validation) + max(2 * HELPER_BATCH, 256) * held,
        disk=FLOAT * 148 * FILLER_WIDTH**2 * 6,
    )


def train_generator(n: Network) -> Work:
    """Train the generator for some steps, each through the network to the code too; make validation images again."""
    d, steps = n.images, n.study.explainers.generator_steps
    head = n.anatomy.layers[-1]
    codes = head.weights // head.filters
    made = 3 * steps * HELPER_BATCH + d.validation
    held = 4 * FLOAT * MAKER_WIDTH * d.pixels
    weights = MAKER_WIDTH * (4 * codes * math.ceil(d.side / 8) ** 2 + (288 + 72 + 36) * MAKER_WIDTH)
    return Work(
        products=HELPER * made * maker_products(n),
        forward=n.forward * (d.train + 3 * d.validation + 2 * steps * HELPER_BATCH),
        seconds=steps * (HELPER_STEP + EXPLAINED_MODULE * n.anatomy.modules),
        memory=AUTOGRAD_BYTES + _floats(n, d.train + 3 * d.validation) + _passed(n, 256) + 256 * held,
        disk=FLOAT * weights,
    )


def explain_inputs(n: Network) -> Work:
    """Explain the scanned images by all methods, the FQ map by a sweep."""
    work = explaining(n, n.methods, n.explained, n.explained)
    if "fq" in n.methods and n.images.masked:
        work += _sweep_work(n, n.explained)
    return work + Work(
        seconds=READ_NEURON * n.samples * n.layers[-1].filters * n.layers[-1].positions,
        memory=_moments(n, n.layers[-1]),
        disk=FLOAT * len(n.methods) * n.explained * n.images.pixels,
    )


def evaluate_explainers(n: Network) -> Work:
    """Ask one question; methods that need a scan answer to changed inputs and networks by a refusal."""
    methods = [name for name in n.methods if name not in syntheses()]
    changing = [name for name in methods if name not in ("nns", "fq", "tip")]
    judged, maps = min(n.study.explainers.judged, n.explained), len(methods) * n.explained
    pixels = n.images.pixels
    cascade = 1 + CASCADE + n.shuffled
    asked = {
        "localisation": Work(seconds=2 * ORDERED_PIXEL * maps * pixels),
        "faithfulness": Work(
            forward=2 * (CURVE_STEPS + 1) * maps * n.forward,
            seconds=2 * (CURVE_STEPS + 1) * maps / EXPLAINED_BATCH * EXPLAINED_STEP + ORDERED_PIXEL * maps * pixels,
        ),
        "sanity": explaining(n, changing, judged, judged) * cascade
        + Work(
            seconds=COMPARED_PIXEL * cascade * len(changing) * judged * pixels,
            memory=FLOAT * (1 + CASCADE) * n.parameters,
        ),
        "stability": explaining(n, changing, (1 + NEARBY) * judged, (1 + NEARBY) * judged)
        + Work(seconds=COMPARED_PIXEL * NEARBY / 3 * len(changing) * judged * pixels),
        "attack": explaining(n, changing, judged, judged) * 4
        + Work(
            forward=2 * ATTACK_STEPS * ATTACKED * judged * n.forward,
            seconds=2 * ATTACK_STEPS * math.ceil(judged / EXPLAINED_BATCH) * EXPLAINED_MODULE * 20 * n.anatomy.modules
            + COMPARED_PIXEL * len(changing) * judged * pixels,
        ),
        "cost": explaining(n, changing, judged + 1, 1) * WATCHED,
    }
    if "fq" in methods and n.images.masked:
        asked["cost"] += _sweep_work(n, judged + 1)
    rows = {"sanity": 3 * cascade * judged, "stability": 6 * judged, "attack": 8 * judged, "cost": 2 * judged}
    rows["faithfulness"] = 2 * (CURVE_STEPS + 2) * n.explained
    read = Work(
        seconds=READ_NEURON * n.samples * n.layers[-1].filters * n.layers[-1].positions,
        memory=_moments(n, n.layers[-1]),
        disk=SCORE_BYTES * len(methods) * rows.get(n.question, 4 * n.explained),
    )
    return asked[n.question] + read


def maximise_activations(n: Network) -> Work:
    """Climb from noise and from a code to an image of each class, and to one alone; compare with training images."""
    d, made = n.images, [name for name in syntheses() if name in n.methods]
    climbed = CLIMBS * (d.classes + 1)
    steps = CLIMBS * (math.ceil(d.classes / EXPLAINED_BATCH) + 1)
    work = Work(
        forward=2 * climbed * n.forward,
        seconds=steps * (EXPLAINED_STEP + 2 * EXPLAINED_MODULE * n.anatomy.modules),
        memory=AUTOGRAD_BYTES + 2 * FLOAT * EXPLAINED_BATCH * n.anatomy.outputs,
    ) * len(made)
    if "dgn_am" in made:
        work += Work(products=2 * HELPER * climbed * maker_products(n))
    return work + Work(
        seconds=DISTANT_VALUE * (1 + len(made)) * d.classes * d.train * d.values,
        memory=_floats(n, d.train),
        disk=_floats(n, len(made) * d.classes),
    )


def retrain_without_pixels(n: Network) -> Work:
    """Explain all images by some methods; train anew without shares of their pixels, and once with all of them."""
    d, settings = n.images, n.study.explainers
    trained = training(n, settings.retrained_epochs, evaluated=4, kept=4)
    trainings = 1 + REMOVED * len(n.study.retrained)
    maps = Work(
        seconds=ORDERED_PIXEL * REMOVED * len(n.study.retrained) * d.count * d.pixels,
        memory=trained.memory + (FLOAT + 2 * 8) * d.count * d.pixels + 2 * d.count * d.values,
    )
    explained = explaining(n, n.study.retrained, d.count, min(d.count, EXPLAINED_BATCH**2))
    return replace(trained * trainings + explained + maps, disk=SCORE_BYTES * trainings)


def draw_explainers(n: Network) -> Work:
    """Draw a sheet of all maps, one of the images of classes, and the ranks."""
    shown = min(SHEET, n.explained) * len(n.methods)
    return Work(seconds=2 + DRAWN_MAP * shown, memory=FLOAT * len(n.methods) * n.explained * n.images.pixels)


def draw_retraining(n: Network) -> Work:
    """Draw a figure from the tables of all runs."""
    return Work(seconds=1)


def draw_ranking(n: Network) -> Work:
    """Rank the methods of a run, on a page."""
    return Work(seconds=0.2)


def render_tables(n: Network) -> Work:
    """Read the tables of a run."""
    return Work(seconds=0.1 + 3e-7 * n.neurons, memory=100 * n.neurons)


def write_report(n: Network) -> Work:
    """Read the provenance of a run, and its share of the figures."""
    return Work(seconds=0.05)


Unit = Literal["data set", "network", "run", "checkpoint", "shard", "question", "study", "labels"]


def _well_trained(layout: Layout, model: str) -> list[str]:
    return ["well_trained"]


@dataclass(frozen=True)
class Rule:
    """A rule of the workflow.

    Attributes:
        job: What one job is for; "labels": all labelled images.
        work: The work of one job; of a rule for the whole study, the share of one run.
        imports: What it imports, see `START`.
        reads: Whether it reads all images, as every job does that reads data.h5.
        gpu: Whether it runs on a GPU where there is one.
        after: Rules whose results it needs, not counting those that these need.
        only: Whether there are such jobs for a model.
        stages: The stages of a model any of which asks for it; none where every study does.
        checkpoints: The checkpoints of a model that have a job each, where one job is for a checkpoint.
    """

    job: Unit
    work: Callable[[Network], Work]
    imports: str = "torch"
    reads: bool = True
    gpu: bool = False
    after: tuple[str, ...] = ()
    only: Callable[[Layout, str], bool] = lambda layout, model: True
    stages: tuple[Stage, ...] = ()
    checkpoints: Callable[[Layout, str], Sequence[str]] = _well_trained

    def asked(self, layout: Layout, model: str) -> bool:
        """Return whether a study has such jobs for a model."""
        stages = layout.stages(model)
        return (not self.stages or any(stage in stages for stage in self.stages)) and self.only(layout, model)


def _trained(layout: Layout, model: str) -> bool:
    return model in layout.trained()


def _adopted(layout: Layout, model: str) -> bool:
    return model in layout.adopted()


def _overfitted(layout: Layout, model: str) -> bool:
    return model in layout.overfitted()


def _never_overfitted(layout: Layout, model: str) -> bool:
    return model in layout.never_overfitted()


def _filled(layout: Layout, model: str) -> bool:
    return layout.uses(model, "generative_infilling")


def _made(layout: Layout, model: str) -> bool:
    return layout.uses(model, "dgn_am")


def _of_camvid(layout: Layout, model: str) -> bool:
    return layout.study.dissection.concepts == "camvid"


_MODEL = ("train_model", "adopt_model")
_ANOMALIES = ("anomaly_filters", "anomaly_filters_of_one_checkpoint")
_METRICS = ("feature_quantity", "neuron_knowledge", "interpretable_properties", "similarity", "localise_objects")
_EXPERIMENTS = (
    "mask_diverse_filters", "mask_by_properties", "filter_types", "mask_anomalies", "prune_neurons", "remove_layers",
)  # fmt: skip
_SYSTEMS = ("dissect_network", "rotate_units", "measure_dimension", "train_prototypes")
_EXPLANATIONS = ("evaluate_explainers", "maximise_activations", "retrain_without_pixels")
_FIGURES = (
    "draw_figures", "draw_neurons", "draw_filters", "draw_explanations",
    "draw_units", "draw_dimension", "draw_prototypes", "draw_explainers", "draw_retraining",
)  # fmt: skip
_THESES: tuple[Stage, ...] = ("theses",)
_DISSECTION: tuple[Stage, ...] = ("dissection",)
_DIMENSION: tuple[Stage, ...] = ("dimension",)
_PROTOTYPES: tuple[Stage, ...] = ("prototypes",)
_EXPLAINERS: tuple[Stage, ...] = ("explainers",)
_RETRAINING: tuple[Stage, ...] = ("retraining",)

RULES: Mapping[str, Rule] = {
    "prepare_data": Rule("data set", prepare_data, "plain", reads=False),
    "train_model": Rule("run", train_model, gpu=True, after=("prepare_data",), only=_trained),
    "overfit_model": Rule("run", overfit_model, gpu=True, after=("prepare_data",), only=_overfitted, stages=_THESES),
    "adopt_model": Rule("run", adopt_model, after=("prepare_data",), only=_adopted),
    "average_images": Rule("run", average_images, after=_MODEL, stages=_THESES),
    "scan_neurons": Rule("shard", scan_neurons, "derivatives", gpu=True, after=_MODEL, stages=(*_THESES, *_EXPLAINERS)),
    "project_filters": Rule(
        "run",
        project_filters,
        "derivatives",
        gpu=True,
        after=("train_model", "overfit_model"),
        only=_overfitted,
        stages=_THESES,
    ),
    "project_filters_of_one_checkpoint": Rule(
        "run", project_filters, "derivatives", gpu=True, after=_MODEL, only=_never_overfitted, stages=_THESES
    ),
    "feature_quantity": Rule(
        "run", feature_quantity, "statistics", reads=False, after=("scan_neurons",), stages=_THESES
    ),
    "neuron_knowledge": Rule("run", neuron_knowledge, "derivatives", after=("scan_neurons",), stages=_THESES),
    "interpretable_properties": Rule(
        "run", interpretable_properties, "derivatives", after=("scan_neurons",), stages=_THESES
    ),
    "anomaly_filters": Rule(
        "run", anomaly_filters, "plain", reads=False, after=("project_filters",), only=_overfitted, stages=_THESES
    ),
    "anomaly_filters_of_one_checkpoint": Rule(
        "run",
        anomaly_filters,
        "plain",
        reads=False,
        after=("project_filters_of_one_checkpoint",),
        only=_never_overfitted,
        stages=_THESES,
    ),
    "anomaly_history": Rule(
        "run", anomaly_history, "derivatives", gpu=True, after=("anomaly_filters",), only=_overfitted, stages=_THESES
    ),
    "similarity": Rule("run", similarity, after=("average_images",), stages=_THESES),
    "localise_objects": Rule("run", localise_objects, "derivatives", after=("scan_neurons",), stages=_THESES),
    "mask_diverse_filters": Rule("run", mask_diverse_filters, after=("feature_quantity",), stages=_THESES),
    "mask_by_properties": Rule("run", mask_by_properties, after=("interpretable_properties",), stages=_THESES),
    "filter_types": Rule(
        "run", filter_types, "derivatives", gpu=True, after=("train_model",), only=_trained, stages=_THESES
    ),
    "mask_anomalies": Rule("run", mask_anomalies, "derivatives", after=_ANOMALIES, stages=_THESES),
    "prune_neurons": Rule("run", prune_neurons, after=("similarity",), stages=_THESES),
    "remove_layers": Rule("run", remove_layers, gpu=True, after=("similarity",), only=Layout.cuttable, stages=_THESES),
    "draw_figures": Rule(
        "network",
        draw_figures,
        "drawing",
        after=("feature_quantity", "similarity", "mask_by_properties", *_ANOMALIES),
        stages=_THESES,
    ),
    "draw_neurons": Rule(
        "network", draw_neurons, "drawing", after=("feature_quantity", "neuron_knowledge"), stages=_THESES
    ),
    "draw_filters": Rule(
        "network", draw_filters, "drawing", after=("interpretable_properties", "anomaly_history"), stages=_THESES
    ),
    "draw_explanations": Rule(
        "network", draw_explanations, "drawing", after=("scan_neurons", "similarity", "remove_layers"), stages=_THESES
    ),
    "initialise_model": Rule(
        "run", initialise_model, after=("prepare_data",), only=_trained, stages=(*_DISSECTION, *_DIMENSION)
    ),
    "shuffle_labels": Rule(
        "run",
        shuffle_labels,
        gpu=True,
        after=("prepare_data",),
        only=_overfitted,
        stages=(*_DIMENSION, *_EXPLAINERS),
    ),
    "label_concepts": Rule("labels", label_concepts, "plain", reads=False, only=_of_camvid, stages=_DISSECTION),
    "dissect_network": Rule(
        "checkpoint",
        dissect_network,
        "both",
        gpu=True,
        after=("label_concepts", "initialise_model", *_MODEL),
        stages=_DISSECTION,
        checkpoints=Layout.dissected,
    ),
    "rotate_units": Rule("run", rotate_units, "both", gpu=True, after=("label_concepts", *_MODEL), stages=_DISSECTION),
    "measure_dimension": Rule(
        "checkpoint",
        measure_dimension,
        "both",
        after=("initialise_model", "shuffle_labels", *_MODEL),
        stages=_DIMENSION,
        checkpoints=Layout.measured,
    ),
    "train_prototypes": Rule("run", train_prototypes, gpu=True, after=_MODEL, stages=_PROTOTYPES),
    "draw_units": Rule("network", draw_units, "drawing", after=("dissect_network", "rotate_units"), stages=_DISSECTION),
    "draw_dimension": Rule(
        "network", draw_dimension, "drawing", reads=False, after=("measure_dimension",), stages=_DIMENSION
    ),
    "draw_prototypes": Rule("network", draw_prototypes, "drawing", after=("train_prototypes",), stages=_PROTOTYPES),
    "train_infiller": Rule(
        "data set", train_infiller, gpu=True, after=("prepare_data",), only=_filled, stages=_EXPLAINERS
    ),
    "train_generator": Rule("run", train_generator, gpu=True, after=_MODEL, only=_made, stages=_EXPLAINERS),
    "explain_inputs": Rule(
        "run", explain_inputs, "explainers", gpu=True, after=("scan_neurons", "train_infiller"), stages=_EXPLAINERS
    ),
    "evaluate_explainers": Rule(
        "question",
        evaluate_explainers,
        "explainers",
        gpu=True,
        after=("explain_inputs", "shuffle_labels"),
        stages=_EXPLAINERS,
    ),
    "maximise_activations": Rule(
        "run", maximise_activations, "explainers", gpu=True, after=(*_MODEL, "train_generator"), stages=_EXPLAINERS
    ),
    "retrain_without_pixels": Rule(
        "run", retrain_without_pixels, "explainers", gpu=True, after=_MODEL, stages=_RETRAINING
    ),
    "draw_explainers": Rule(
        "network",
        draw_explainers,
        "explainers",
        after=("evaluate_explainers", "maximise_activations"),
        stages=_EXPLAINERS,
    ),
    "draw_retraining": Rule(
        "network", draw_retraining, "explainers", reads=False, after=("retrain_without_pixels",), stages=_RETRAINING
    ),
    "render_tables": Rule(
        "study",
        render_tables,
        "plain",
        reads=False,
        after=(*_EXPERIMENTS, *_METRICS, "anomaly_history", *_SYSTEMS, *_EXPLANATIONS),
    ),
    "draw_ranking": Rule(
        "study", draw_ranking, "explainers", reads=False, after=("render_tables",), stages=_EXPLAINERS
    ),
    "write_report": Rule(
        "study", write_report, "plain", reads=False, after=(*_FIGURES, "render_tables", "draw_ranking")
    ),
}
"""The rules of the workflow: what there is a job for, what it costs, and what it waits for."""


# The estimate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What the jobs of a rule cost for one network, data set, or the whole study.

    Attributes:
        rule: The rule.
        dataset: The data set; empty for the whole study.
        model: The model; empty for a whole data set or study.
        jobs: Jobs.
        processor: Seconds of one thread, all jobs, without a GPU.
        gpu: Seconds for which a GPU is held, all jobs; 0 for rules that have no use for one.
        memory: Bytes of main memory of one job.
        disk: Bytes that stay, of all jobs.
    """

    rule: str
    dataset: str
    model: str
    jobs: int
    processor: float
    gpu: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Estimate:
    """What a study costs.

    Attributes:
        study: Name of the study.
        networks: Its networks.
        speeds: What this machine does with each of them.
        machine: What this machine does.
        gpu_macs: Multiply-adds per second that a GPU is taken to do.
        cores: Cores for the wall time.
        parts: Costs by rule and network.
        chain: Seconds of the longest chain of jobs that wait for each other, without a GPU.
    """

    study: str
    networks: tuple[Network, ...]
    speeds: tuple[Speed, ...]
    machine: Machine
    gpu_macs: float
    cores: int
    parts: tuple[Part, ...]
    chain: float

    @property
    def processor(self) -> float:
        """Seconds of one thread, without a GPU."""
        return sum(part.processor for part in self.parts)

    @property
    def wall(self) -> float:
        """Seconds on the cores, if no core ever waits and memory suffices for as many jobs."""
        return max(self.processor / self.cores, self.chain)


def estimate(study: Study, cores: int, gpu_macs: float, start: float) -> Estimate:
    """Return what a study costs.

    Args:
        study: The study.
        cores: Cores for the wall time.
        gpu_macs: Multiply-adds per second of a GPU.
        start: Seconds in which an interpreter starts here and imports torch and what trains a network.

    Raises:
        ConfigurationError: Images cannot be counted, or blocks do not divide them.
        DataError: Labelled images are damaged.
        LayerError: A layer does not exist.
        ModelError: A model cannot be built, or a ProtoPNet on it.
    """
    layout = Layout(study)
    counted = {config.name: count_images(config) for config in study.datasets}
    labelled = count_labelled(study.dissection) if "dissection" in study.stages else Labelled()
    machine = measure_machine(start)
    anatomies: dict[str, Anatomy] = {}
    systems: dict[str, Systems] = {}
    measured: dict[str, Speed] = {}
    networks, speeds = [], []
    for dataset, name in tqdm(layout.networks(), "networks", unit="network", disable=None, leave=False):
        images, config, training = counted[dataset], study.model(name), study.training_of(name)
        shape, scan = (images.channels, images.side, images.side), study.scan_of(name)
        samples = min(study.anomaly.samples, images.train)
        ours = config.source in ZOO
        fitted = {"in_channels": images.channels, "size": images.side, "classes": images.classes}
        options = {**(fitted if ours else {}), **config.options}
        # only the head of these networks depends on the number of classes, and their speed hardly does
        head = "classes" if ours else "num_classes" if config.source.startswith("torchvision:") else ""
        body = repr((config.source, {key: value if key != head else None for key, value in options.items()}, shape))
        stages = layout.stages(name)
        swept = f"{body} {scan} {samples} {stages}"
        trained = f"{body} {training.augmentation} {training.precision} {training.batch_size}"
        if swept not in anatomies or trained not in measured:
            model = build_model(config.source, options)
            if swept not in anatomies:
                anatomies[swept] = dissect(model, shape, scan, samples)
                systems[swept] = find_systems(model, shape, study, stages)
            if trained not in measured:
                measured[trained] = measure_speed(model, shape, anatomies[swept], training)
        anatomy = anatomies[swept].with_classes(options[head]) if head in options else anatomies[swept]
        checkpoints, seeds = len(layout.checkpoints(name)), len(layout.seeds(name))
        shards = len(layout.shards())
        networks.append(
            Network(
                study, dataset, name, images, anatomy, checkpoints, shards, seeds, systems[swept], labelled,
                find_methods(study, name, stages),
            )
        )  # fmt: skip
        speeds.append(measured[trained])
    parts, chain = _count(layout, networks, speeds, machine, gpu_macs)
    return Estimate(study.study, tuple(networks), tuple(speeds), machine, gpu_macs, cores, tuple(parts), chain)


def _count(
    layout: Layout, networks: Sequence[Network], speeds: Sequence[Speed], machine: Machine, gpu_macs: float
) -> tuple[list[Part], float]:
    """Return the costs by rule and network, and the seconds of the longest chain of jobs."""
    parts: list[Part] = []
    ends: list[dict[str, float]] = [{} for _ in networks]  # when the first job of a rule can have ended
    for name, rule in RULES.items():
        asked = [rule.asked(layout, n.model) for n in networks]
        if rule.job == "labels" and any(asked):
            one = asked.index(True)
            job = _job(rule, networks[one], rule.work(networks[one]), speeds[one], machine, gpu_macs)
            parts.append(Part(name, "", "", 1, *job))
            for ended in ends:
                ended[name] = job.processor
            continue
        if rule.job == "study" and not any(asked):
            continue
        if rule.job == "study":
            parts.append(_of_study(name, rule, networks, machine))
            ready = max(ended.get(earlier, 0) for ended in ends for earlier in rule.after)
            for ended in ends:
                ended[name] = ready + parts[-1].processor
            continue
        prepared: set[str] = set()
        for n, speed, ended, wanted in zip(networks, speeds, ends, asked, strict=True):
            if not wanted:
                continue
            asked_for = [replace(n, question=question) for question in QUESTIONS] if rule.job == "question" else [n]
            kinds = [_job(rule, one, rule.work(one), speed, machine, gpu_macs) for one in asked_for]
            longest = max(kind.processor for kind in kinds)
            ended[name] = longest + max((ended.get(earlier, 0) for earlier in rule.after), default=0)
            if rule.job == "data set":
                if n.dataset not in prepared:
                    parts.append(Part(name, n.dataset, "", 1, *kinds[0]))
                prepared.add(n.dataset)
                continue
            checkpoints = len(rule.checkpoints(layout, n.model))
            each = {
                "network": 1, "run": n.seeds, "question": n.seeds,
                "checkpoint": n.seeds * checkpoints, "shard": n.seeds * n.shards,
            }[rule.job]  # fmt: skip
            processor, gpu, memory, disk = zip(*kinds, strict=True)
            whole = _Job(each * sum(processor), each * sum(gpu), max(memory), each * sum(disk))
            parts.append(Part(name, n.dataset, n.model, each * len(kinds), *whole))
    return parts, max(end for ended in ends for end in ended.values())


def _of_study(name: str, rule: Rule, networks: Sequence[Network], machine: Machine) -> Part:
    """Return what the one job of a rule for the whole study costs; it reads tables only."""
    shares = [rule.work(n) * n.seeds for n in networks]
    seconds = machine.start * START[rule.imports] + sum(share.seconds for share in shares)
    memory = START_BYTES[rule.imports] + sum(n.seeds * share.memory for n, share in zip(networks, shares, strict=True))
    return Part(name, "", "", 1, seconds, 0, memory, sum(share.disk for share in shares))


class _Job(NamedTuple):
    processor: float
    gpu: float
    memory: float
    disk: float


def _job(rule: Rule, n: Network, work: Work, speed: Speed, machine: Machine, gpu_macs: float) -> _Job:
    """Return what one job costs on one thread of this machine, and on a GPU."""
    begin = machine.start * START[rule.imports] + rule.reads * READ_BYTE * n.images.stored
    processor = (
        begin
        + work.forward / speed.forward
        + work.training / speed.training
        + work.products / machine.products
        + work.steps * machine.step * n.parameters
        + work.seconds
    )
    products = (work.forward + work.training + work.products) / gpu_macs
    on_gpu = begin + work.seconds + max(products, work.steps * n.anatomy.modules * GPU_MODULE)
    # a job that reads the data copies one part of them for its checksum
    memory = (
        START_BYTES[rule.imports] + rule.reads * n.images.stored * (1 + n.images.train / n.images.count) + work.memory
    )
    return _Job(processor, on_gpu if rule.gpu else 0, memory, work.disk)


# Text ---------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    """Return a count: 12, 1,234, 12.3 million."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _bytes(value: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:,.1f} {name}"
    return f"{value / 1e3:,.0f} kB"


def _time(seconds: float) -> str:
    """Return a time in minutes, hours, or hours and days."""
    if seconds < 3 * 3_600:
        return f"{seconds / 60:,.1f} minutes"
    hours = f"{seconds / 3_600:,.1f} hours"
    return hours if seconds < 3 * 86_400 else f"{hours} ({seconds / 86_400:,.0f} days)"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], named: int) -> list[str]:
    """Return the lines of a table whose first columns are names, and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < named else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def describe(found: Estimate) -> str:
    """Return an estimate as plain text: by rule, by network, in all."""
    hours = found.processor >= 3 * 3_600
    unit, size = ("h", 3_600) if hours else ("min", 60)

    def costs(parts: Sequence[Part]) -> list[str]:
        gpu, disk = sum(part.gpu for part in parts), sum(part.disk for part in parts)
        return [
            f"{sum(part.processor for part in parts) / size:,.1f}",
            f"{gpu / size:,.1f}" if gpu else "-",
            _bytes(max(part.memory for part in parts)),
            _bytes(disk) if disk else "-",
        ]

    columns = [f"processor {unit}", f"GPU {unit}", "memory of a job", "disk"]
    by_rule = {rule: [part for part in found.parts if part.rule == rule] for rule in RULES}
    rules = [[rule, f"{sum(part.jobs for part in parts):,}", *costs(parts)] for rule, parts in by_rule.items() if parts]
    networks = []
    for network, speed in zip(found.networks, found.speeds, strict=True):
        own = [part for part in found.parts if (part.dataset, part.model) == (network.dataset, network.model)]
        facts = (network.parameters, network.neurons, network.forward, speed.forward)
        networks.append([network.dataset, network.model, str(network.seeds), *map(_number, facts), *costs(own)])
    return "\n".join(
        [
            f"Study {found.study}: {_some(len(found.networks), 'network')} (data set and model), "
            f"{_some(sum(network.seeds for network in found.networks), 'run')}, "
            f"{_some(sum(part.jobs for part in found.parts), 'job')} of one thread each.",
            f"Measured here with one thread: a job starts in {found.machine.start:.1f} s; "
            f"{found.machine.products:.1e} multiply-adds per second of large matrix products.",
            f"Assumed of a GPU: {found.gpu_macs:.1e} multiply-adds per second.",
            f"processor {unit}: without a GPU; GPU {unit}: of the stages that have a use for one, where there is one.",
            "",
            *_table(["rule", "jobs", *columns], rules, 1),
            "",
            *_table(
                ["data set", "model", "runs", "parameters", "neurons", "multiply-adds", "per second", *columns],
                networks,
                2,
            ),
            "",
            *_table(["in all", ""], _totals(found), 2),
        ]
    )


def _totals(found: Estimate) -> list[list[str]]:
    other = sum(part.processor for part in found.parts if not part.gpu)
    largest = max(found.parts, key=lambda part: part.memory)
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    beyond = [part for part in found.parts if part.memory > here]
    rows = [
        ["processors", f"{_time(found.processor)} without a GPU"],
        [
            "GPUs",
            f"{_time(sum(part.gpu for part in found.parts))}, and {_time(other)} of processors for the other stages",
        ],
        [
            f"wall time on {_some(found.cores, 'core')}",
            f"{_time(found.wall)} without a GPU; the longest chain of jobs takes {_time(found.chain)}",
        ],
        ["disk", _bytes(sum(part.disk for part in found.parts))],
        [
            "memory of a job",
            f"up to {_bytes(largest.memory)} ({largest.rule}, {largest.model or 'all'} on {largest.dataset or 'all'})",
        ],
    ]
    if beyond:
        datasets = ", ".join(dict.fromkeys(part.dataset or "the whole study" for part in beyond))
        jobs = _some(sum(part.jobs for part in beyond), "job")
        rows.append(["", f"more than the {_bytes(here)} of this machine: {jobs} of {datasets}"])
    return [[f"  {name}", text] for name, text in rows]
