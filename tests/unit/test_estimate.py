"""Estimates: counts against the pipeline's own data, models and jobs; formulas against counts by hand."""

from __future__ import annotations

import inspect
import io
import itertools
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnscan import (
    attacks,
    components,
    dimension,
    dissection,
    exhibits,
    faithfulness,
    gradients,
    infilling,
    maximisation,
    perturbations,
    prototypes,
    sanity,
    scores,
    stability,
    surrogates,
)
from nnscan.broden import camvid, read_broden, write_broden
from nnscan.configuration import (
    DatasetConfig,
    DissectionConfig,
    ScanConfig,
    Study,
    TrainingConfig,
    parse_study,
    read_study,
)
from nnscan.data import load_dataset, read_dataset, write_dataset
from nnscan.errors import ConfigurationError
from nnscan.estimate import (
    ACTIVE,
    ATTACK_STEPS,
    BRODEN,
    CARRIED,
    CASCADE,
    CLIMBS,
    COUNT_BYTES,
    CURVE_STEPS,
    DIGIT_BITS,
    EFFORTS,
    EXPLAINED_BATCH,
    FILLER_WIDTH,
    FILTER_BYTES,
    GPU_MACS,
    HELD_BYTES,
    HELPER_BATCH,
    LABELLED_BATCH,
    LEVELS,
    LIVE,
    MAKER_WIDTH,
    NEARBY,
    POWERS,
    PROBED,
    PROTOTYPE_BATCH,
    PRUNED_PASSES,
    PUBLISHED,
    REMOVED,
    RULES,
    SHEET,
    Anatomy,
    Effort,
    Estimate,
    Images,
    Labelled,
    Layer,
    Network,
    Speed,
    Sweeps,
    Systems,
    Work,
    count_images,
    count_labelled,
    describe,
    dissect,
    estimate,
    explaining,
    filler_products,
    find_systems,
    maker_products,
    masking,
    measure_machine,
    measure_speed,
    passes,
    syntheses,
)
from nnscan.explainers import METHODS
from nnscan.explanations import Setting
from nnscan.fitting import Fitting
from nnscan.layout import QUESTIONS, Layout
from nnscan.linearisation import Linearisation
from nnscan.models import ZOO, build_model, network_layers, parameter_count, prepare
from nnscan.scanner import filter_images, scan
from nnscan.sweeps import WindowSweep
from nnscan.training import Protocol, train

SMALL = """
study: small
datasets:
  - {name: digits, source: digits, size: 16, train_limit: 300, validation_limit: 100, test_limit: 100,
     foreground: {kind: threshold}}
  - {name: plain, source: digits, size: 16}
  - {name: unused, source: cifar10}
models:
  - {name: simple_cnn, source: simple_cnn, datasets: [digits, plain]}
  - {name: short, source: lenet5, options: {size: 32}, training: {overfitting_epochs: 0}, datasets: [plain], seeds: [0]}
  - {name: mine, source: "model.py:make", weights: mine.pt, datasets: [digits]}
  - {name: theirs, source: lenet5, weights: mine.pt, datasets: [plain], seeds: [0], stages: [prototypes]}
seeds: [0, 1]
training: {epochs: 3, overfitting_epochs: 4}
averages: {steps: 5}
scan: {samples: 4, shards: 2}
properties: {samples: 10}
anomaly: {samples: 60, history_checkpoints: 2}
experiments: {draws: 2, steps: 3}
stages: [theses, dissection, dimension, prototypes, explainers, retraining]
dissection: {root: nowhere}
dimension: {samples: 100}
prototypes: {per_class: 2, channels: 8}
explainers: {samples: 8, judged: 4, infiller_steps: 20, generator_steps: 20}
"""
EXPLAINED = """
study: explained
datasets:
  - {name: digits, source: digits, size: 16, foreground: {kind: threshold}}
  - {name: plain, source: digits, size: 16}
models:
  - {name: lenet5, source: lenet5, options: {size: 32}, methods: [rise, grad_cam, random]}
  - {name: simple_cnn, source: simple_cnn, datasets: [plain], methods: [dgn_am], stages: [explainers]}
  - {name: theirs, source: lenet5, weights: mine.pt, datasets: [digits], methods: [generative_infilling], seeds: [0]}
seeds: [0, 1]
stages: [explainers, retraining]
"""
WITHOUT_THESES = """
study: systems
datasets: [{name: digits, source: digits}]
models:
  - {name: lenet5, source: lenet5, stages: [dissection]}
  - {name: simple_cnn, source: simple_cnn, stages: [dimension]}
seeds: [0]
stages: [dissection, dimension]
dissection: {concepts: broden, root: concepts}
"""
MODEL = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small study of every kind of run."""
    path = tmp_path_factory.mktemp("small")
    (path / "study.yaml").write_text(SMALL)
    (path / "model.py").write_text(MODEL)
    (path / "mine.pt").write_bytes(b"")
    return path


@pytest.fixture(scope="module")
def small(folder) -> Study:
    values = yaml.safe_load(SMALL)
    values["datasets"].pop()  # no rule would touch it, and what is not used need not be known
    values["models"][1]["options"] = {}
    values["datasets"][1]["size"] = 32
    values["models"][2]["source"] = f"{folder}/model.py:make"
    return parse_study(values)


@pytest.fixture(scope="module")
def found(small) -> Estimate:
    return estimate(small, 2, GPU_MACS, 2.0)


# Images -------------------------------------------------------------------------------------------------------------


def config(**values) -> DatasetConfig:
    return DatasetConfig(**{"name": "data", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"source": "digits"},
        {"source": "digits", "test_fraction": 0.5, "validation_fraction": 0.1, "train_limit": 50, "test_limit": 20},
        {"source": "digits", "size": 8, "channels": 3, "foreground": {"kind": "threshold"}},
    ],
)
def test_images_are_those_of_the_data_set(values):
    settings = config(**values)
    counted = count_images(settings)
    options = settings.model_dump(exclude={"name", "source", "foreground"})
    dataset = load_dataset(settings.source, **options)
    for split in ("train", "validation", "test"):
        images = dataset.splits[split].images
        assert abs(getattr(counted, split) - len(images)) <= 10  # rounded within each class
        assert images.shape[1:] == (counted.channels, counted.side, counted.side)
    assert counted.classes == len(dataset.classes)
    assert counted.masked == (settings.foreground.kind != "none")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"source": "mnist"}, (48_000, 12_000, 10_000, 10, 1)),
        ({"source": "mnist", "channels": 3, "train_limit": 99}, (99, 12_000, 10_000, 10, 3)),
        ({"source": "cifar100", "validation_fraction": 0.1}, (45_000, 5_000, 10_000, 100, 3)),
        ({"source": "cub"}, (4_795, 1_199, 5_794, 200, 3)),
        ({"source": "voc", "size": 224}, (1_171, 293, 1_449, 20, 3)),
        ({"source": "det", "classes": ["dog", "cat"]}, (3_167, 792, 201, 2, 3)),
    ],
)
def test_published_sizes_need_no_data(values, expected):
    found = count_images(config(**values))
    assert (found.train, found.validation, found.test, found.classes, found.channels) == expected


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_an_image_folder_is_counted_where_it_is_there(tmp_path, packed):
    for part, count in (("train", 10), ("test", 3)):
        for label in ("a", "b", "c"):
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(_jpeg())
            (folder / ".hidden").touch()
    root = tmp_path / "data"
    if packed:
        root = tmp_path / "data.tar.gz"
        with tarfile.open(root, "w:gz") as archive:
            archive.add(tmp_path / "data", arcname=".")
    settings = config(source="image_folder", root=str(root), size=4)
    counted = count_images(settings)
    dataset = load_dataset("image_folder", root=root, size=4, validation_fraction=0.2)
    assert {split: len(part.labels) for split, part in dataset.splits.items()} == {
        "train": counted.train, "validation": counted.validation, "test": counted.test,
    }  # fmt: skip
    assert counted.classes == 3


def test_an_image_folder_that_is_not_there_has_its_limits_or_an_error(tmp_path):
    limited = config(source="image_folder", root=str(tmp_path / "no"), train_limit=80, test_limit=10)
    found = count_images(limited)
    assert (found.train, found.validation, found.test) == (80, 20, 10)
    with pytest.raises(ConfigurationError, match=r"datasets \(data\).train_limit and test_limit"):
        count_images(config(source="image_folder", root=str(tmp_path / "no"), train_limit=80))
    with pytest.raises(ConfigurationError, match="size is null"):
        count_images(config(source="cub", size=None))
    with pytest.raises(ConfigurationError, match="no images in train/<class>/"):
        count_images(config(source="image_folder", root=str(tmp_path)))
    with pytest.raises(ConfigurationError, match="cannot be counted"):
        count_images(config(source="camvid", root=str(tmp_path)))


def test_camvid_s_crops_are_counted(shared_data):
    settings = config(source="camvid", root=str(shared_data / "camvid"), classes=["car", "pedestrian"])
    found = count_images(settings)
    dataset = load_dataset("camvid", root=shared_data / "camvid", size=2, classes=["car", "pedestrian"],
                           validation_fraction=settings.validation_fraction)  # fmt: skip
    assert (found.train, found.validation, found.test) == tuple(
        len(dataset.splits[split].labels) for split in ("train", "validation", "test")
    )


def test_the_live_share_of_digits_is_measured():
    images = load_dataset("digits", size=32).splits["test"].images[:, 0] > 0
    for side, share in LIVE["digits"].items():
        blocks = images.reshape(len(images), 32 // side, side, 32 // side, side).any((2, 4))
        assert blocks.mean() == pytest.approx(share, abs=0.02)
    assert count_images(config(source="digits")).live_share(2) == LIVE["digits"][1]
    assert count_images(config(source="digits", normalization="standard")).live_share(1) == 1


def test_data_takes_the_bytes_it_has_in_memory(tmp_path):
    counted = count_images(config(source="digits", foreground={"kind": "threshold"}))
    dataset = load_dataset("digits", foreground=None)
    sizes = sum(part.images.nbytes for part in dataset.splits.values())
    assert counted.stored == pytest.approx(2 * sizes, rel=0.01)  # a byte for each value and for each pixel's mask
    write_dataset(tmp_path / "data.h5", dataset, {})
    assert read_dataset(tmp_path / "data.h5").digest == dataset.digest


@pytest.mark.parametrize("values", [{}, {"side": 60}, {"tile": 100}, {"tile": 64, "side": 32}])
def test_labelled_images_are_those_that_are_written(tmp_path, shared_data, values):
    settings = DissectionConfig(root=str(shared_data), **values)
    counted = count_labelled(settings)
    classes, frames = camvid(shared_data)
    some = list(itertools.islice(frames, 3))
    write_broden(tmp_path / "concepts", some, classes, side=settings.side, tile=settings.tile)
    found = read_broden(tmp_path / "concepts")
    assert counted.frames == 367 + 101  # the test part is not read
    assert counted.count * len(some) == len(found) * counted.frames
    assert {counted.pixels} == {float(np.prod(row.shape)) for row in found.rows}
    assert {counted.mask} == {float(np.prod(row.mask_shape)) for row in found.rows}
    assert counted.concepts >= len(found.concepts)
    own = count_labelled(DissectionConfig(concepts="broden", root=str(tmp_path / "concepts")))
    assert own == Labelled(len(found), counted.pixels, counted.mask, 2, len(found.concepts))


def test_labelled_images_that_are_not_there_are_as_published(tmp_path):
    frames = count_labelled(DissectionConfig(root=str(tmp_path)))
    assert (frames.count, frames.pixels, frames.mask) == (468, 480 * 360, 240 * 180)
    tiles = count_labelled(DissectionConfig(root=str(tmp_path), tile=100, side=50))
    assert (tiles.count, tiles.pixels, tiles.mask, tiles.frame) == (468 * 3 * 4, 50 * 50, 25 * 25, 480 * 360)
    assert count_labelled(DissectionConfig(concepts="broden", root=str(tmp_path))) == BRODEN
    assert BRODEN.count == 63_305
    with pytest.raises(ConfigurationError, match=r"dissection.tile 400 is larger than CamVid's frames"):
        count_labelled(DissectionConfig(root=str(tmp_path), tile=400))


# Networks -----------------------------------------------------------------------------------------------------------


def anatomy(source: str, channels: int = 3, side: int = 32, samples: int = 100, **scanned) -> tuple[nn.Module, Anatomy]:
    model = build_model(source, {"in_channels": channels, "size": side, "classes": 10})
    return model, dissect(model, (channels, side, side), ScanConfig(**scanned), samples)


@pytest.mark.parametrize("source", ["fcn", "lenet5", "alexnet", "resnet18"])
def test_multiply_adds_are_those_that_torch_counts(source):
    model, found = anatomy(source)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, 32, 32))
    assert found.products == counter.get_total_flops() / 2
    assert found.parameters == parameter_count(model)
    assert found.classes == 10
    assert sum(layer.products for layer in found.layers) == found.products


@pytest.mark.parametrize("source", sorted(ZOO))
def test_a_network_of_the_zoo_with_another_number_of_classes(source):
    def found(classes: int) -> Anatomy:
        options = {"in_channels": 1, "size": 32, "classes": classes}
        return dissect(build_model(source, options), (1, 32, 32), ScanConfig(block=16), 100)

    ten, many = found(10), found(37)
    assert ten.with_classes(37) == replace(many, sweeps=ten.sweeps)


def test_a_network_of_torchvision_with_another_number_of_classes():
    def found(classes: int) -> Anatomy:
        model = build_model("torchvision:resnet18", {"num_classes": classes})
        return dissect(model, (3, 64, 64), ScanConfig(block=16), 100)

    few, many = found(10), found(200)
    assert few.with_classes(200) == replace(many, sweeps=few.sweeps)


def test_networks_that_differ_in_their_classes_are_measured_once(repository, monkeypatch):
    values = yaml.safe_load((repository / "config/studies/smoke.yaml").read_text(encoding="utf-8"))
    named = {"ten": {"num_classes": 10}, "twenty": {"num_classes": 20}, "thousand": {}}
    source = "torchvision:resnet18"
    values["models"] = [{"name": name, "source": source, "options": options} for name, options in named.items()]
    values["datasets"] = [{"name": "digits", "source": "digits", "channels": 3}]
    measured = []
    monkeypatch.setattr("nnscan.estimate.measure_speed", lambda *_: measured.append(1) or Speed(1e9, 1e9))
    found = estimate(parse_study(values), 2, 2e12, 1.0)
    assert [network.parameters for network in found.networks] == [11_181_642, 11_186_772, 11_689_512]
    assert len(measured) == 2  # an option that is not given is another factory call


def test_layers_of_lenet5_by_hand():
    _, found = anatomy("lenet5", channels=1)
    convolutions = [layer for layer in found.layers if layer.scanned]
    assert [(layer.filters, layer.positions, layer.products) for layer in convolutions] == [
        (6, 28 * 28, 6 * 28 * 28 * 25),
        (16, 10 * 10, 16 * 10 * 10 * 6 * 25),
    ]
    assert [layer.before for layer in found.layers][-1] == 416_520


def test_the_scan_s_sweep_is_the_scanner_s_own():
    model, found = anatomy("simple_cnn", block=2)
    probe, x = prepare(model), torch.rand(1, 3, 32, 32)
    names = [layer.name for layer in network_layers(probe, x) if layer.convolutional]
    assert found.sweeps.products == WindowSweep(Linearisation(probe, x, names), x, 2).products


def test_a_sweep_holds_the_windows_that_a_pixel_reaches():
    """Of one 3 x 3 convolution a pixel reaches nine places, each of which the whole kernel is applied to."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    found = dissect(model, (1, 8, 8), ScanConfig(), 100)
    assert found.sweeps.values == 64 * 9 * 4
    assert found.sweeps.products == 64 * 9 * 4 * 9


def test_channel_sweeps_are_taken_where_filter_images_take_them(monkeypatch):
    model, found = anatomy("simple_cnn", side=16)
    taken = []
    monkeypatch.setattr("nnscan.scanner._contract", lambda sweeps, x, layer, *rest: taken.append(layer))
    monkeypatch.setattr("nnscan.scanner._sum_agrees", lambda *_: True)
    for layer in found.layers:
        if layer.scanned:
            filter_images(model.eval(), torch.rand(1, 3, 16, 16), layer.name)
    assert list(found.sweeps.channels) == [layer for layer in taken if layer in found.sweeps.channels]
    assert FILTER_BYTES == components._BUFFER_BYTES


def test_a_network_that_cannot_be_followed_is_swept_whole():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 1)
            self.head = nn.Linear(2 * 16, 3)

        def forward(self, x):
            return self.head(self.layer(x.flip(0)).flatten(1))

    found = dissect(Mixing(), (1, 4, 4), ScanConfig(block=2), 100)
    assert found.sweeps.products == 4 * 2 * 16
    assert found.sweeps.channels == {}


def test_layers_are_scanned_by_kind_or_name():
    assert [layer.name for layer in anatomy("lenet5", layers="all")[1].layers if layer.scanned] == [
        "features.0", "features.3", "head.1", "head.3", "head.5",
    ]  # fmt: skip
    assert [layer.name for layer in anatomy("lenet5", layers=["features.3"])[1].layers if layer.scanned] == [
        "features.3"
    ]
    with pytest.raises(ConfigurationError, match=r"none of features.1 is a convolution"):
        anatomy("lenet5", layers=["features.1"])
    with pytest.raises(ConfigurationError, match="block 5 does not divide"):
        anatomy("lenet5", block=5)


def systems(source: str, **values) -> tuple[nn.Module, Systems]:
    study = Study(stages=["dissection", "dimension", "prototypes"], **values)
    model = build_model(source, {"in_channels": 3, "size": 32, "classes": 10})
    return model, find_systems(model, (3, 32, 32), study, study.stages)


@pytest.mark.parametrize("source", ["lenet5", "simple_cnn", "resnet18"])
def test_a_protopnet_has_the_multiply_adds_that_torch_counts(source):
    model, found = systems(source)
    network = prototypes.protopnet(model, torch.rand(1, 3, 32, 32), classes=10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        patches = network.eval().latent(torch.rand(1, 3, 32, 32))
    assert found.backbone + found.added == counter.get_total_flops() / 2
    assert found.patches == patches[0, 0].numel()
    assert found.weights == parameter_count(network.backbone) + parameter_count(network.added)


def test_systems_of_lenet5_by_hand():
    _, found = systems("lenet5", dissection={"layers": "all"}, dimension={"layers": ["features.3"]})
    assert found.units == ((6, 28 * 28), (16, 10 * 10), (120, 1), (84, 1), (10, 1))
    assert found.places == (3 * 32 * 32, 16 * 10 * 10)
    assert (found.patches, found.added) == (5 * 5, 5 * 5 * (16 * 128 + 128 * 128))
    _, default = systems("lenet5")
    assert default.units == ((6, 28 * 28), (16, 10 * 10))
    assert default.places == (3 * 32 * 32, 6 * 14 * 14, 16 * 5 * 5, 120, 84, 10)
    study = Study()
    assert find_systems(build_model("lenet5", {"size": 32}), (1, 32, 32), study, study.stages) == Systems()


def test_a_layer_that_is_not_used_cannot_be_dissected():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.layer(x).amax((2, 3))

    study = Study(dissection={"layers": ["layer", "idle"]})
    with pytest.raises(ConfigurationError, match=r"dissection.layers: idle is not used"):
        find_systems(Idle(), (1, 8, 8), study, ["dissection"])


# Speeds -------------------------------------------------------------------------------------------------------------


def test_speeds_leave_the_threads_and_the_model_s_weights_alone():
    model, found = anatomy("simple_cnn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speed = measure_speed(
            model, (3, 32, 32), found, TrainingConfig(augmentation="shift_flip", precision="bfloat16")
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert min(speed.forward, speed.training) > 1e6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    machine = measure_machine(2.0)
    assert machine.start == 2.0
    assert machine.products > speed.forward  # nothing is faster than a large matrix product
    assert 0 < machine.step < 1e-6


# Formulas -----------------------------------------------------------------------------------------------------------


def network(model: str = "simple_cnn", **values) -> Network:
    """A network of three layers whose work can be counted by hand: 100, 200 and 50 multiply-adds."""
    layers = (
        Layer("a", 4, 25, 4, 100, 100, True),
        Layer("b", 5, 4, 50, 200, 300, True),
        Layer("c", 10, 1, 50, 50, 350, False),
    )
    made = Anatomy(layers, 104, 10, 3, 130, Sweeps({"a": 700.0}, 1000.0, 400, 1600))
    images = Images(50, 20, 30, 10, 1, 8, True, False, False)
    study = Study(**{"models": [{"name": model, "source": model}], **values})
    return Network(study, "digits", model, images, made, 2, 1, 3)


def test_training_passes_each_image_each_epoch():
    n = network(training={"epochs": 6, "overfitting_epochs": 10, "batch_size": 20})
    work = RULES["train_model"].work(n)
    assert work.training == 6 * 50 * 3 * 350
    assert work.forward == (6 * 20 + 4 * 100) * 350  # the validation split each epoch, all splits for each checkpoint
    assert work.steps == 6 * 3
    assert work.disk == 4 * 4 * 104
    assert RULES["overfit_model"].work(n).training == 10 * 50 * 3 * 350


def test_masking_runs_what_is_behind_a_layer_for_each_choice():
    n = network()
    work = masking(n, n.layers, 30, choices=7, share=0.5)
    first, second = 250 - 100, 50 - 25  # of the layer that reads the maps, half
    assert work.forward == 30 * 7 * (first + second) + 2 * 350 * (30 + PROBED)


def test_filters_are_swept_or_carried_back_for_each_sample():
    n = network(anomaly={"samples": 50})
    work = RULES["project_filters"].work(n)
    assert work.products == 2 * 50 * 700  # of two checkpoints the first layer
    carried = CARRIED * ACTIVE * 5 * 300  # the second one's filters
    assert work.forward == pytest.approx(2 * 50 * (2 * 3 * 350 + carried))
    assert work.disk == 2 * 50 * 9 * 24


def test_layer_removal_trains_the_cut_networks():
    _, found = anatomy("simple_cnn")
    n = replace(network(training={"epochs": 3}), anatomy=found)
    cut, half, whole = (layer.before for layer in found.layers[:3])
    mean = (cut + half + whole + half + whole + whole) / 3  # the curve may peak at each of three convolutions
    assert RULES["remove_layers"].work(n).training == pytest.approx(3 * 50 * 3 * mean)


def test_a_scan_keeps_sixteen_quantities_and_two_images():
    n = network(scan={"samples": 6, "block": 2})
    work = RULES["scan_neurons"].work(n)
    assert work.products == 6 * 1000
    assert work.disk == 6 * 4 * (16 * (4 * 25 + 5 * 4) + 2 * 9 * 16)


def systems_network(**values) -> Network:
    """The network of `network` with labelled images of four times as many pixels, all facts easy to count by hand."""
    seen = Systems(((4, 25), (5, 4)), (64, 20), backbone=300, added=60, patches=4, weights=90)
    return replace(network(**values), systems=seen, labelled=Labelled(40, 256, 64, 2, 20, 10, 1024))


def test_constants_are_those_of_the_systems():
    assert (COUNT_BYTES, DIGIT_BITS) == (dissection._COUNT_BYTES, dissection._DIGIT_BITS)
    for stage in (dissection.network_dissection, dissection.rotation_counts):
        assert inspect.signature(stage).parameters["batch_size"].default == LABELLED_BATCH
    assert len(dissection.ALPHAS) == POWERS
    assert dimension._HELD == HELD_BYTES
    assert prototypes.PrototypeProtocol().batch_size == PROTOTYPE_BATCH
    assert prototypes.PRUNED_PASSES == PRUNED_PASSES


@pytest.mark.parametrize("units", [1, 512, 513, 16_384, 16_385])
def test_thresholds_take_as_many_passes_as_their_selection(units):
    selection, done = dissection.Selection.begin(np.full(units, 1000), 0.005), 0
    while not selection.complete:
        selection = replace(selection, known=selection.known + selection.bins.bit_length() - 1)
        done += 1
    assert passes(units) == done


def test_a_dissection_passes_the_labelled_images_three_times():
    n = systems_network(dissection={"rotations": 2})
    work = RULES["dissect_network"].work(n)
    assert work.forward == 3 * 40 * 4 * 350
    # maps of 10 x 10 and of 4 x 4 places are enlarged to 8 x 8 pixels, along one side after the other
    first, second = 4 * (10 * 10 * 8 + 8 * 8 * 10), 5 * (4 * 4 * 8 + 8 * 8 * 4)
    assert work.products == pytest.approx(40 * ACTIVE * (first + second))
    turned = RULES["rotate_units"].work(n)
    assert turned.forward == work.forward
    assert turned.products == pytest.approx(40 * (3 * 10 * 25 * 16 + ACTIVE * 11 * second))
    resized = systems_network(dissection={"size": 8})
    assert RULES["dissect_network"].work(resized).forward == 3 * 40 * 350


def test_a_protopnet_is_trained_in_warm_and_joint_epochs():
    n = systems_network(prototypes={"per_class": 2, "channels": 6, "epochs": 5, "warm_epochs": 2, "push_every": 2,
                                    "last_passes": 3})  # fmt: skip
    work = RULES["train_prototypes"].work(n)
    behind = 60 + 2 * 4 * 20 * 6  # distances of 4 patches to 20 prototypes, in float64
    assert work.training == 3 * 50 * (3 * (300 + behind) + 2 * behind)
    pushes = sum(
        stage == "push" for stage, _ in prototypes.schedule(prototypes.PrototypeProtocol(epochs=5, push_every=2))
    )
    evaluated = 20 * (5 + 2 * pushes) + 100
    assert work.forward == 50 * 2 * 300 + (50 * 2 * pushes + evaluated) * (300 + behind) + 100 * 350
    assert work.disk == 4 * (90 + 20 * (6 + 10))
    other = RULES["train_prototypes"].work(
        replace(n, study=Study(**{**n.study.model_dump(), "training": {"precision": "bfloat16"}}))
    )
    assert (other.training, other.forward) == (0, work.forward + work.training)  # a ProtoPNet is trained in float32


def test_dimensions_take_the_distances_of_all_pairs():
    n = systems_network(dimension={"samples": 100})  # of 50 images
    work = RULES["measure_dimension"].work(n)
    assert work.forward == 50 * 350
    wide, narrow = 2 * 50 * 64 * (50 + 50) + 2 * 50**3, 2 * 50 * 20 * (50 + 20) + 2 * 20**3
    assert work.products == wide + narrow


def explained_network(**values) -> Network:
    """The network of `network` with methods of explanation."""
    return replace(network(**values), methods=("occlusion", "grad_cam", "score_cam", "random", "fq", "dgn_am"))


def test_constants_are_those_of_the_explainers():
    assert (scores.BATCH, Fitting().batch_size) == (EXPLAINED_BATCH, HELPER_BATCH)
    assert (infilling.WIDTH, maximisation.WIDTH) == (FILLER_WIDTH, MAKER_WIDTH)
    assert maximisation.STEPS == maximisation.CODE_STEPS == CLIMBS
    assert (faithfulness.STEPS, len(faithfulness.SHARES) - 1) == (CURVE_STEPS, REMOVED)
    assert (sanity.STAGES, attacks.STEPS, len(attacks.GOALS)) == (CASCADE, ATTACK_STEPS, 2)
    assert len(stability.EPSILONS) + 2 * stability.DRAWS == NEARBY
    assert perturbations.LEVELS == LEVELS
    assert inspect.signature(exhibits.explained_images).parameters["count"].default == SHEET
    squares = 2 / perturbations.WINDOW - 1  # along a side, each half as far as the last one
    assert {name: (effort.copies, effort.rounds) for name, effort in EFFORTS.items() if effort.copies > 1} == {
        "occlusion": (squares**2, 1),
        "rise": (perturbations.RISE_MASKS, 1),
        "extremal_perturbation": (len(perturbations.EXTREMAL_AREAS), perturbations.EXTREMAL_STEPS),
        "generative_infilling": (perturbations.INFILLING_SAMPLES, perturbations.INFILLING_STEPS),
        "smooth_grad": (gradients.SAMPLES, 1),
        "integrated_gradients": (gradients.STEPS, 1),
        "lime": (surrogates.SAMPLES, 1),
        "shap": (surrogates.SAMPLES, 1),
    }
    assert EFFORTS["meaningful_perturbation"].rounds == perturbations.MEANINGFUL_STEPS


def test_methods_with_an_effort_are_methods():
    """A method without one, such as a new one, counts as a gradient."""
    assert set(EFFORTS) <= set(METHODS)
    assert {"activation_maximisation", "dgn_am"} <= set(syntheses())
    n = network()
    assert explaining(n, ["a new one"], 10, 10).forward == explaining(n, ["vanilla_gradient"], 10, 10).forward


@pytest.mark.parametrize(("channels", "side"), [(1, 32), (3, 18)])
def test_helper_networks_have_the_multiply_adds_that_torch_counts(channels, side):
    _, found = anatomy("lenet5", channels=channels)
    n = replace(network(), anatomy=found, images=replace(network().images, channels=channels, side=side))
    filler = infilling.Infiller(channels).eval()
    x, kept = torch.rand(1, channels, side, side), torch.ones(1, 1, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        filler(x, kept)
    assert filler_products(n.images) == counter.get_total_flops() / 2
    maker = maximisation.Generator(84, channels, (side, side)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maker(torch.rand(1, 84))
    assert maker_products(n) == counter.get_total_flops() / 2


@pytest.mark.parametrize("name", ["occlusion", "rise", "vanilla_gradient", "smooth_grad", "score_cam", "shap", "cam"])
def test_methods_pass_a_network_as_often_as_they_are_counted(name):
    """Backward passes cannot be counted; of these methods there is one for each forward pass, or none."""
    model = build_model("simple_cnn", {"in_channels": 1, "global_pooling": True}).eval()
    found = dissect(model, (1, 32, 32), ScanConfig(block=16), 100)
    passed = []

    class Counting(nn.Module):
        def forward(self, x):
            passed.append(len(x))
            return x

    counted = nn.Sequential(Counting(), model)
    METHODS[name].explain(counted, torch.rand(2, 1, 32, 32), [0, 1], Setting())
    effort = EFFORTS.get(name, Effort())
    work = explaining(replace(network(), anatomy=found), [name], 2, 2).forward / found.products - 1  # of the check
    back = effort.passes
    assert work / back == pytest.approx(sum(passed) - 1, rel=0.05)


def test_explaining_passes_the_copies_of_each_image():
    n = explained_network()
    assert explaining(n, ["occlusion"], 10, 10).forward == (10 * 225 + 1) * 350
    assert explaining(n, ["score_cam"], 10, 5).forward == (10 * (1 + 5) + 2) * 350  # the five filters of the last maps
    assert explaining(n, ["grad_cam", "random"], 10, 10).forward == (2 * 10 + 1 + 1) * 350
    assert explaining(n, ["dgn_am"], 10, 10).forward == 0
    one, all_ = (explaining(n, ["rise"], 10, together) for together in (1, 10))
    assert one.seconds > all_.seconds


def test_each_question_has_its_own_work():
    n = explained_network(scan={"samples": 30}, explainers={"samples": 20, "judged": 6})
    works = {question: RULES["evaluate_explainers"].work(replace(n, question=question)) for question in QUESTIONS}
    changing = ["occlusion", "grad_cam", "score_cam", "random"]
    once = explaining(n, changing, 6, 6).forward
    assert works["localisation"].forward == 0
    assert works["faithfulness"].forward == 2 * 33 * 5 * 20 * 350
    assert works["sanity"].forward == (1 + 4 + 1) * once
    assert works["stability"].forward == explaining(n, changing, 19 * 6, 19 * 6).forward
    assert works["attack"].forward > 4 * once
    assert works["cost"].forward > explaining(n, changing, 7, 1).forward
    adopted = replace(
        n, study=Study(**{**n.study.model_dump(), "models": [{"name": n.model, "source": "lenet5", "weights": "a.pt"}]})
    )
    assert RULES["evaluate_explainers"].work(replace(adopted, question="sanity")).forward == 5 * once
    few = explained_network(scan={"samples": 4}, explainers={"samples": 20, "judged": 6})
    assert RULES["explain_inputs"].work(few).disk == 4 * 6 * 4 * 64


def test_a_network_is_retrained_for_each_share_and_method():
    n = network(explainers={"retrained": ["random", "grad_cam"], "retrained_epochs": 3})
    work = RULES["retrain_without_pixels"].work(n)
    assert work.training == (1 + 5 * 4) * 3 * 50 * 3 * 350


def test_work_adds_up():
    one = Work(forward=1, training=2, products=3, steps=4, seconds=5, memory=6, disk=7)
    assert one + one == Work(2, 4, 6, 8, 10, 6, 14)  # one after the other in the same memory
    assert one * 3 == Work(3, 6, 9, 12, 15, 6, 21)


# Rules against the workflow -----------------------------------------------------------------------------------------


def snakemake(repository: Path, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--snakefile", repository / "Snakefile", "--directory", folder]
    command += ["--configfile", folder / "study.yaml", "--cores", "1", *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def planned_jobs(repository: Path, folder: Path) -> dict[str, int]:
    output = snakemake(repository, folder, "--dry-run", "--quiet", "host", "reason")
    rows = re.findall(r"^(\w+) +(\d+)$", output.split("Job stats:")[1].split("\n\n")[0], re.M)
    return {name: int(count) for name, count in rows if name not in ("all", "total")}


def counted_jobs(found: Estimate) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for part in found.parts:
        counted[part.rule] += part.jobs
    return dict(counted)


def test_every_rule_has_an_estimate_and_as_many_jobs(repository, folder, found):
    planned = planned_jobs(repository, folder)
    assert counted_jobs(found) == planned
    assert set(RULES) == set(planned)  # this study has jobs of every rule


def test_a_study_without_theses_has_none_of_their_jobs(repository, tmp_path):
    """One network is dissected, in a folder of Broden's format, the other's dimension is measured."""
    (tmp_path / "study.yaml").write_text(WITHOUT_THESES)
    (tmp_path / "concepts").mkdir()
    counted = counted_jobs(estimate(read_study(tmp_path / "study.yaml"), 2, GPU_MACS, 2.0))
    assert counted == planned_jobs(repository, tmp_path)
    assert counted == {
        "prepare_data": 1, "train_model": 2, "initialise_model": 2, "shuffle_labels": 1, "dissect_network": 4,
        "rotate_units": 1, "measure_dimension": 3, "draw_units": 1, "draw_dimension": 1, "render_tables": 1,
        "write_report": 1,
    }  # fmt: skip


def test_a_study_of_explainers_has_the_jobs_that_its_methods_need(repository, tmp_path):
    text = EXPLAINED.replace("mine.pt", str(tmp_path / "mine.pt")).replace("options: {size: 32}, ", "")
    (tmp_path / "study.yaml").write_text(text)
    (tmp_path / "mine.pt").write_bytes(b"")
    values = yaml.safe_load(text)
    for dataset in values["datasets"]:
        dataset["size"] = 32
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    counted = counted_jobs(estimate(read_study(tmp_path / "study.yaml"), 2, GPU_MACS, 2.0))
    assert counted == planned_jobs(repository, tmp_path)
    expected = {
        "train_model": 6, "adopt_model": 1, "shuffle_labels": 6, "scan_neurons": 7, "train_infiller": 1,
        "train_generator": 2, "explain_inputs": 7, "evaluate_explainers": 42, "maximise_activations": 7,
        "retrain_without_pixels": 5,
    }  # fmt: skip
    assert {name: counted[name] for name in expected} == expected


def test_an_unknown_method_is_named(tmp_path):
    values = yaml.safe_load(EXPLAINED)
    values["models"][0]["methods"] = ["grad-cam"]
    with pytest.raises(ConfigurationError, match=r"there is no method 'grad-cam'; did you mean 'grad_cam'\?"):
        estimate(parse_study({**values, "datasets": [{"name": "digits", "source": "digits"}],
                              "models": values["models"][:1]}), 2, GPU_MACS, 2.0)  # fmt: skip


def _reached(after: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return all rules that a rule waits for, directly or not."""
    found: dict[str, set[str]] = defaultdict(set)

    def visit(name: str) -> set[str]:
        if name not in found:
            found[name] = set()
            for earlier in after.get(name, ()):
                found[name] |= {earlier} | visit(earlier)
        return found[name]

    return {name: visit(name) for name in after}


def test_rules_wait_for_what_the_workflow_waits_for(repository, folder):
    graph = snakemake(repository, folder, "--rulegraph")
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    planned: dict[str, set[str]] = {name: set() for name in names.values()}
    for earlier, later in re.findall(r"(\d+) -> (\d+)", graph):
        planned[names[later]].add(names[earlier])
    del planned["all"]
    assert _reached({name: set(rule.after) for name, rule in RULES.items()}) == _reached(planned)


def test_rules_use_a_gpu_where_their_environment_has_one(repository):
    environments: dict[str, str] = {}
    for path in sorted((repository / "workflow" / "rules").glob("*.smk")):
        for block in re.split(r"^(?=(?:use )?rule )", path.read_text(), flags=re.M)[1:]:
            own = re.search(r"envs/(\w+)\.yaml", block)
            base = re.match(r"use rule (\w+) as (\w+) with", block)
            name = base[2] if base else re.match(r"rule (\w+):", block)[1]
            environments[name] = own[1] if own else environments[base[1]] if base else "none"
    own = {name: environments[name] for name in RULES}  # a partial report is not part of a study's plan
    assert {name: "cuda" if rule.gpu else "cpu" for name, rule in RULES.items()} == own


# The whole ----------------------------------------------------------------------------------------------------------


def test_costs_add_up_over_networks(found):
    assert found.processor == pytest.approx(sum(part.processor for part in found.parts))
    assert found.wall >= max(found.processor / 2, found.chain)
    assert max(part.processor / part.jobs for part in found.parts) < found.chain < found.processor
    assert all((part.gpu > 0) == RULES[part.rule].gpu for part in found.parts)
    assert replace(found, cores=10_000).wall == found.chain
    assert replace(found, cores=1).wall == found.processor


def test_a_faster_gpu_takes_less_and_more_samples_more(small, found):
    def gpu(of: Estimate) -> float:
        return sum(part.gpu for part in of.parts)

    assert gpu(estimate(small, 2, 1e7, 2.0)) > 2 * gpu(found)
    more = parse_study({**small.model_dump(exclude_unset=True), "scan": {"samples": 100}})
    scans = [
        sum(part.disk for part in of.parts if part.rule == "scan_neurons") for of in (found, estimate(more, 2, 1e12, 2))
    ]
    assert scans[1] == pytest.approx(25 * scans[0])


def test_the_published_matrix_needs_no_data(repository, tmp_path, monkeypatch):
    """Every data set of the study for a cluster can be counted where none of them is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNSCAN_DATA", raising=False)
    study = read_study(repository / "config/studies/theses-full.yaml")
    images = {settings.name: count_images(settings) for settings in study.datasets}
    assert images["imagenet10"].test == 500
    assert {settings.source for settings in study.datasets} <= {*PUBLISHED, "image_folder"}
    assert len(Layout(study).networks()) == 31


def test_the_text_says_all_in_plain_words(found):
    text = describe(found)
    for rule in RULES:
        assert re.search(rf"^{rule} +\d", text, re.M)
    assert "Study small: 5 networks (data set and model), 8 runs" in text
    assert re.search(r"wall time on 2 cores +[\d.]+ minutes without a GPU", text)
    assert "Assumed of a GPU: 2.0e+12 multiply-adds per second" in text
    tables = [block.splitlines() for block in text.split("\n\n")[1:3]]
    for lines in tables:
        assert len({len(line) for line in lines}) == 1  # the last column is aligned at the right
    huge = replace(found, parts=tuple(replace(part, memory=1e15, processor=1e7) for part in found.parts))
    assert "more than the" in describe(huge)
    assert "processor h" in describe(huge)


# Against what is measured -------------------------------------------------------------------------------------------


def test_a_training_and_a_scan_take_about_as_long_as_predicted(tmp_path):
    dataset = load_dataset("digits", size=32, validation_fraction=0.2, train_limit=500)
    study = Study(
        datasets=[{"name": "digits", "source": "digits", "train_limit": 500}],
        models=[{"name": "simple_cnn", "source": "simple_cnn"}],
        training={"epochs": 3},
        scan={"samples": 10},
    )
    found = estimate(study, 1, GPU_MACS, 0.0)
    parts = {part.rule: part.processor / part.jobs for part in found.parts}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        train(lambda: build_model("simple_cnn", {"in_channels": 1}), dataset, Protocol(epochs=3), tmp_path, 0, {},
              progress=False)  # fmt: skip
        trained = time.process_time() - start
        x = torch.from_numpy(dataset.inputs("test", np.arange(10)))
        model = build_model("simple_cnn", {"in_channels": 1}).eval()
        scan(model, x[:1])  # loads what the estimate counts as the start of the job
        start = time.process_time()
        scan(model, x)
        scanned = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert 1 / 3 < parts["train_model"] / trained < 3
    assert 1 / 3 < parts["scan_neurons"] / scanned < 3
