"""The study's configuration: closed, typed classes; the default file, the JSON schema and the manual come from them.

`python -m nnscan.configuration` rewrites config/config.yaml, config/schema.json and config/README.md's key table.
"""

from __future__ import annotations

import json
import re
import reprlib
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from nnscan.errors import ConfigurationError, did_you_mean

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Stage = Literal["theses", "dissection", "dimension", "prototypes", "explainers", "retraining"]

PRESETS: dict[str, dict[str, Any]] = {
    "thesis": {
        "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-5, "epochs": 30, "batch_size": 128,
        "augmentation": "none",
    },
    "slides": {
        "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 200,
        "batch_size": 128, "augmentation": "shift",
    },
}  # fmt: skip
"""Training protocols: "thesis" is stated by Wang Xinyuan (ch. 4.1); "slides" is our proposal, the slides state none."""


# Of a configuration with every reference written out, and of what is said about a wrong one.
_VALUES, _DEPTH, _INTEGER, _PROBLEMS, _NAME = 10_000, 20, 2**63, 12, 200
_RUNS = 10_000

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxlist, _shown.maxdict, _shown.maxstring, _shown.maxother = 3, 20, 20, 200, 200

Model = TypeVar("Model", bound=BaseModel)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Foreground(_Closed):
    """Where the foreground mask of each image comes from."""

    kind: Literal["none", "threshold", "masks", "boxes"] = Field(
        "none",
        description="threshold: pixels brighter than `threshold` (strokes on black); masks: those that belong to the "
        "data (image_folder: mask images, camvid, cub, voc); boxes: likewise rectangles (image_folder: a CSV file, "
        "det, cub); none: metrics that need a foreground are marked as missing",
    )
    threshold: float = Field(
        0.2, ge=0, le=1, description="brightness (channel mean, 0 to 1) above which a pixel is stroke"
    )
    masks: str = Field(
        "masks",
        description="image_folder: folder below the root; <masks>/<split>/<class>/<stem>.png, nonzero = foreground",
    )
    boxes: str = Field(
        "boxes.csv",
        description="image_folder: CSV below the root with path,x0,y0,x1,y1 in pixels of the original image; several "
        "rows unite",
    )


OWN_MASKS = {
    "image_folder": ("masks", "boxes"),
    "camvid": ("masks",),
    "det": ("boxes",),
    "cub": ("masks", "boxes"),
    "voc": ("masks",),
}
"""Kinds of foreground for which a source of data has files of its own; "threshold" and "none" need none."""


class DatasetConfig(_Closed):
    """One data set."""

    name: Name = Field(description="name in paths and tables")
    source: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder", "camvid", "det", "cub", "voc"
    ] = Field(
        description="what reads it; image_folder wants train/<class>/ and test/<class>/, in a folder or a .tar.gz; "
        "det (ILSVRC), cub (CUB-200-2011) and voc (Pascal VOC) want their unpacked archives, camvid a "
        "folder camvid with images/, labels/ and classes.txt"
    )
    root: str | None = Field(
        None, description="where the files lie; default: $NNSCAN_DATA, else ./data (digits needs none)"
    )
    download: bool = Field(False, description="fetch a missing torchvision data set")
    size: Positive | None = Field(
        32,
        description="side in pixels that images are resized to; null keeps theirs (digits and MNIST-like: 32)",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1: gray, 3: RGB; null: 3 for folders and annotated sets, else as in the source"
    )
    normalization: Literal["unit", "standard"] = Field(
        "unit",
        description="what the network is fed: [0, 1], or (value - mean) / deviation of each channel of the train split",
    )
    test_fraction: Share = Field(0.2, description="share cut off for testing where the source has no test part")
    validation_fraction: Share = Field(
        0.2,
        description="share of the training part cut off for validation; of the whole where the source has no test part",
    )
    split_seed: int = Field(0, ge=0, description="seed of the stratified cuts, the same for all runs")
    train_limit: Positive | None = Field(None, description="use a stratified subset of this many training images")
    validation_limit: Positive | None = Field(None, description="likewise for validation")
    test_limit: Positive | None = Field(None, description="likewise for testing")
    foreground: Foreground = Field(default_factory=Foreground, description="foreground masks")
    classes: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="classes of camvid, det, cub or voc, in the order of the labels; null: of camvid "
        "sign_symbol, car, pedestrian, bicyclist; of the others all that there are images of to train and to test",
    )

    @model_validator(mode="after")
    def _masks_have_files(self) -> Self:
        possible = ("none", "threshold", *OWN_MASKS.get(self.source, ()))
        if self.foreground.kind not in possible:
            raise ValueError(
                f"{self.source} has no {self.foreground.kind}; its foreground.kind can be {', '.join(possible)}"
            )
        return self

    @model_validator(mode="after")
    def _classes_can_be_chosen(self) -> Self:
        if self.classes is not None and self.source not in ("camvid", "det", "cub", "voc"):
            raise ValueError(f"classes can be chosen of camvid, det, cub and voc; {self.source} is taken as a whole")
        return self


class ModelConfig(_Closed):
    """One model."""

    name: Name = Field(description="name in paths and tables")
    source: str = Field(
        description="a name of the zoo (fcn, lenet5, simple_cnn, alexnet, vgg11, vgg16, resnet18), torchvision:<name>, "
        "package.module:factory or path/to/file.py:factory"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the factory; the zoo gets channels, size and classes from the data",
    )
    weights: str | None = Field(
        None, description="your own checkpoint: then the model is scanned as it is, not trained"
    )
    state_dict_key: str | None = Field(None, description="key of the state dict inside the checkpoint")
    strip_prefix: str | None = Field(
        None, description="prefix to take off the checkpoint's keys, for example 'module.'"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="training settings that differ for this model")
    datasets: list[str] | None = Field(
        None, min_length=1, description="names of the data sets that it is run on; null: all of the study"
    )
    seeds: list[int] | None = Field(
        None, min_length=1, description="its seeds, where not all of the study's are affordable; null: all"
    )
    stages: list[Stage] | None = Field(
        None, min_length=1, description="what is measured on it, of the study's stages; null: all of them"
    )
    block: Positive | None = Field(None, description="its scan.block, where it differs; null: the study's")
    methods: list[str] | None = Field(
        None, min_length=1, description="its explainers.methods, where they differ; null: the study's"
    )


class TrainingConfig(_Closed):
    """How models are trained."""

    preset: Literal["thesis", "slides"] | None = Field(
        None,
        description="a protocol by name; keys given beside it win. thesis: Adam 1e-3, weight decay 1e-5, 30 epochs, "
        "batch 128; slides: our proposal, since the slides state none: SGD 0.01, momentum 0.9, weight decay 5e-4, "
        "200 epochs, batch 128, shift",
    )  # fmt: skip
    optimizer: Literal["adam", "sgd"] = Field("adam", description="optimiser")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd only)")
    weight_decay: float = Field(1e-5, ge=0, description="weight decay")
    epochs: int = Field(30, ge=3, description="epochs of the regular training; its thirds are kept as checkpoints")
    batch_size: Positive = Field(128, description="images in a batch")
    augmentation: Literal["none", "shift", "flip", "shift_flip"] = Field(
        "none", description="shift: random crop after padding by an eighth; flip: left to right"
    )
    overfitting_epochs: int = Field(
        80, ge=0,
        description="epochs of the long training without weight decay and augmentation that ends in the overfitted "
        "checkpoint, from the same start, and of that on shuffled labels; 0: neither",
    )  # fmt: skip
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the products of training passes; bfloat16 trains large networks almost twice as fast on GPUs "
        "and on processors with AVX-512, up to 30 times slower on others; everything after training is float32",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, Mapping) else None
        if isinstance(preset, str) and preset in PRESETS:
            return {**PRESETS[preset], **values}
        return values


class AveragesConfig(_Closed):
    """Class-average images."""

    rescale: bool = Field(True, description="stretch each channel of a simple average to the class's own range")
    extremes: Positive = Field(
        50, description="K: images of highest and of lowest confidence in the data-driven averages"
    )
    steps: Positive = Field(
        100, description="most steps of gradient ascent in the network-driven averages; it stops at confidence 0.99"
    )
    rate: float = Field(0.05, gt=0, description="factor of the gradient of the log-confidence in each step")


class ScanConfig(_Closed):
    """The scan of every neuron, from which FQ and TIP are computed."""

    samples: Positive = Field(40, description="test images that are scanned, balanced over classes")
    shards: Positive = Field(
        1, le=10_000, description="jobs into which the samples are cut; results depend on it by rounding at most"
    )
    block: Positive = Field(
        1, description="side of the pixel blocks of the learning images; costs fall with its square"
    )
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = Field(
        "float32",
        description="of the sweep; tf32: a GPU may round products to TF32; bfloat16: gates and winners from float32, "
        "tangents in bfloat16, up to 1.6 times faster; T_* off by less than 1 %, FQ of single neurons by up to a "
        "quarter, with the same ranks (docs/performance.md)",
    )
    layers: Literal["convolutional", "all"] | list[str] = Field(
        "convolutional",
        description="layers: the convolutions (or their batch normalisation); all: linear ones too; or names",
    )


class QuantityConfig(_Closed):
    """Feature quantity FQ."""

    noise: Literal["linear", "exponential"] = Field("linear", description="noise factor K(r): 1 - r, or exp(-r)")
    form: Literal["printed", "ssim"] = Field(
        "printed",
        description="quality of a learning image: l c s as the slides print them, or the SSIM index, which has the "
        "constants in its numerators too",
    )


class KnowledgeConfig(_Closed):
    """What neurons know: distances of their learning images to the inputs."""

    samples: Annotated[int, Field(ge=2)] = Field(
        20, description="test images with which the learning images of drawn neurons are compared"
    )
    neurons: Positive = Field(20, description="neurons drawn from each layer, linear ones too")
    winners: Positive = Field(
        200, description="test images for the winning neuron's distance to the input; all of them where there are fewer"
    )


class PropertiesConfig(_Closed):
    """Interpretable properties TIP, with AVoU and SoU."""

    sensitivity: Literal["first_order", "exact"] = Field(
        "first_order", description="SoU by |w dloss/dw|, or by removing each weight in turn (seconds for LeNet-5)"
    )
    samples: Positive = Field(
        100, description="test images for SoU and the types of filters; AVoU is that of the scanned ones"
    )
    type_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.3, description="share of a layer's filters that counts as high, and as low, on foreground or background"
    )


class AnomalyConfig(_Closed):
    """Anomaly filters SAF."""

    source: Literal["learning_images", "feature_maps"] = Field(
        "learning_images", description="what is clustered: the slides' learning images or the preprint's feature maps"
    )
    samples: Annotated[int, Field(ge=50)] = Field(400, description="training images, the same for every checkpoint")
    k_rule: Literal["ch", "bic"] = Field(
        "ch",
        description="number of clusters. ch: 1 if BIC prefers one to two, else 2 to 5 by highest CH index; bic: 1 to 5 "
        "by lowest BIC",
    )
    outlier_share: float = Field(
        0.01, gt=0, lt=0.5, description="a cluster of at most this share of the samples, or one sample, is outliers"
    )
    ch_factor: float = Field(2.0, gt=0, description="CH counts as high above this multiple of an unstructured cloud's")
    activation_sd: float = Field(3.0, ge=0, description="activation counts as high this many deviations above the mean")
    history_checkpoints: Annotated[int, Field(ge=0, le=1000)] = Field(
        4, description="checkpoints along the overfitting training, evenly spaced, whose anomaly filters are counted"
    )


class ExperimentsConfig(_Closed):
    """Masking and pruning."""

    layer: str = Field(
        "last", description="layer whose filters are masked step by step: last, the deepest scanned one, or a name"
    )
    diversity_filters: Positive = Field(
        20,
        description="filters masked at each end of the diversity ranking; at most a quarter of the layer",
    )
    draws: Positive = Field(10, description="random draws beside each masking")
    steps: Annotated[int, Field(ge=2)] = Field(10, description="steps of the AIPC curve from 0 to all filters masked")
    similarity_method: Literal[1, 2] = Field(
        2,
        description="similarity values that rank neurons and choose layers: 1, to the class average; 2, to the class's "
        "guided-backpropagation image (the thesis shows its curves with 2 and names none for pruning)",
    )
    prune_fraction: Share = Field(0.4, description="share of a layer's neurons that is pruned")
    layer_removal: bool = Field(
        True,
        description="retrain the model cut after the layer where similarity peaks, and one layer later "
        "(models that can be cut: simple_cnn, vgg11, vgg16)",
    )


def _default_stages() -> list[Stage]:
    return ["theses"]


CONTROLS = ("random", "edges", "input")
"""Methods that explain nothing and stand in every table of explanations, so that others can be read beside them."""


def _with_controls(methods: Sequence[str]) -> list[str]:
    return [*methods, *(name for name in CONTROLS if name not in methods)]


def _default_retrained() -> list[str]:
    return [*CONTROLS, "vanilla_gradient", "integrated_gradients", "grad_cam"]


class DissectionConfig(_Closed):
    """Network Dissection: which concepts units detect."""

    concepts: Literal["camvid", "broden"] = Field(
        "camvid", description="labelled images: camvid with the eleven color names, or a folder in Broden's format"
    )
    root: str | None = Field(
        None, description="folder of the labelled images; null: the environment variable NNSCAN_DATA, else data"
    )
    side: Positive | None = Field(
        None, description="camvid: pixels of the shorter side that frames are resized to; null: as they are"
    )
    tile: Positive | None = Field(
        None, description="camvid: side of the squares that frames are cut into, before resizing; null: whole frames, "
        "which pass networks whose head takes maps of any size"
    )  # fmt: skip
    size: Positive | None = Field(
        None, description="side of the squares to which the network's inputs are resized; null: as the images are"
    )
    layers: Literal["convolutional", "all"] | list[str] = Field(
        "convolutional",
        description="layers whose units are dissected, behind their activation; all: linear ones too; or names",
    )
    share: Share = Field(0.005, description="share of a unit's activations that lies above its threshold")
    detector: Share = Field(0.04, description="a unit whose IoU with a concept is above this detects it")
    least_images: Positive = Field(10, description="labelled images that a concept needs to name a unit")
    upsampling: Literal["anchored", "plain"] = Field(
        "anchored", description="of a unit's map: anchored at receptive-field centres, or stretched over the image"
    )
    rotations: Positive = Field(3, description="random rotations of the last dissected layer")


class DimensionConfig(_Closed):
    """Intrinsic dimension of representations by TwoNN."""

    samples: Annotated[int, Field(ge=100)] = Field(1000, description="training images, the same for every network")
    layers: Literal["pools", "all"] | list[str] = Field(
        "pools", description="pools: input, pooling and linear layers; all: convolutions and linear layers; or names"
    )


class PrototypesConfig(_Closed):
    """ProtoPNet on the convolutional part of the well-trained networks."""

    per_class: Positive = Field(10, description="prototypes of each class")
    channels: Positive = Field(128, description="channels of the latent space")
    warm_epochs: Annotated[int, Field(ge=0)] = Field(
        5, description="first epochs, in which the convolutional part is fixed"
    )
    epochs: Positive = Field(30, description="all epochs before the last push")
    push_every: Positive = Field(10, description="epochs between pushes; there is one after the last epoch in any case")
    last_passes: Positive = Field(20, description="passes in which the last layer alone is fitted, after each push")
    rate_epochs: Positive = Field(5, description="epochs after the warm ones in which rates fall to a tenth")
    backbone_rate: float = Field(
        1e-4, gt=0, description="learning rate of the convolutional part; the authors' is for one trained on ImageNet"
    )
    prune: bool = Field(False, description="remove prototypes in the end that do not look like their class")


class ExplainersConfig(_Closed):
    """Methods of explanation, judged on equal terms."""

    methods: list[str] | None = Field(
        None,
        min_length=1,
        description="methods by name (docs/methods.md lists them), to which the controls random, edges and input "
        "are added; null: all of them",
    )
    samples: Positive = Field(
        32, description="scanned test images that are explained, of those with a foreground where there are masks"
    )
    judged: Positive = Field(
        8, description="of them, those that are explained anew for sanity, stability, attack and cost"
    )
    infiller_steps: Positive = Field(
        2000, description="batches in the training of the network that fills hidden pixels"
    )
    generator_steps: Positive = Field(2000, description="batches in the training of the generator of images (DGN-AM)")
    retrained: list[str] = Field(
        default_factory=_default_retrained, min_length=1,
        description="retraining: methods whose pixels are removed, to which the controls are added; fast ones, as they "
        "explain all images",
    )  # fmt: skip
    retrained_epochs: Annotated[int, Field(ge=3)] = Field(5, description="retraining: epochs of each training")


class Study(_Closed):
    """A study: data sets x models x seeds, and what is measured on them."""

    study: Name = Field("digits", description="name of the study; results go to results/<study>")
    datasets: list[DatasetConfig] = Field(
        default_factory=lambda: [
            DatasetConfig(name="digits", source="digits", foreground=Foreground(kind="threshold", threshold=0.2))
        ],
        min_length=1, description="data sets",
    )  # fmt: skip
    models: list[ModelConfig] = Field(
        default_factory=lambda: [
            ModelConfig(name="lenet5", source="lenet5"),
            ModelConfig(name="simple_cnn", source="simple_cnn"),
        ],
        min_length=1, description="models",
    )  # fmt: skip
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0, 1, 2],
        min_length=1,
        description="seeds of initialisation, data order and random draws",
    )
    stages: list[Stage] = Field(
        default_factory=_default_stages, min_length=1,
        description="what is measured: theses (NNS, FQ, TIP, SAF and similarity with their experiments), dissection "
        "(Network Dissection), dimension (TwoNN), prototypes (ProtoPNet; of the zoo's networks but fcn, others are "
        "left out), explainers (the survey's methods of explanation, evaluated), retraining (remove and retrain, ROAR)",
    )  # fmt: skip
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        "auto", description="where models run: auto (a GPU where torch sees one, else the CPU), cpu, cuda, cuda:1, mps"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="training")
    averages: AveragesConfig = Field(default_factory=AveragesConfig, description="class-average images")
    scan: ScanConfig = Field(default_factory=ScanConfig, description="scan of every neuron")
    quantity: QuantityConfig = Field(default_factory=QuantityConfig, description="feature quantity FQ")
    knowledge: KnowledgeConfig = Field(default_factory=KnowledgeConfig, description="knowledge of neurons NNS")
    properties: PropertiesConfig = Field(default_factory=PropertiesConfig, description="interpretable properties TIP")
    anomaly: AnomalyConfig = Field(default_factory=AnomalyConfig, description="anomaly filters SAF")
    experiments: ExperimentsConfig = Field(default_factory=ExperimentsConfig, description="masking and pruning")
    dissection: DissectionConfig = Field(default_factory=DissectionConfig, description="Network Dissection")
    dimension: DimensionConfig = Field(default_factory=DimensionConfig, description="intrinsic dimension")
    prototypes: PrototypesConfig = Field(default_factory=PrototypesConfig, description="ProtoPNet")
    explainers: ExplainersConfig = Field(default_factory=ExplainersConfig, description="methods of explanation")

    @field_validator("datasets", "models")
    @classmethod
    def _unique_names(cls, entries: list[Any]) -> list[Any]:
        names = [entry.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names must differ, found twice: {', '.join(twice)}")
        return entries

    @field_validator("seeds", "stages")
    @classmethod
    def _unique_entries(cls, entries: list[Any], info: ValidationInfo) -> list[Any]:
        if len(set(entries)) < len(entries):
            raise ValueError(f"{info.field_name} must differ")
        return entries

    @model_validator(mode="after")
    def _models_choose_from_the_study(self) -> Self:
        known: dict[str, list[Any]] = {
            "datasets": [dataset.name for dataset in self.datasets],
            "seeds": self.seeds,
            "stages": self.stages,
        }
        for model in self.models:
            for key, values in known.items():
                chosen = getattr(model, key)
                for value in chosen or ():
                    if value not in values:
                        raise ValueError(f"models ({model.name}).{key} names {value!r}, the study has {values}")
                if len(set(chosen or ())) < len(chosen or ()):
                    raise ValueError(f"models ({model.name}).{key} must differ, found {chosen}")
        return self

    @model_validator(mode="after")
    def _runs_can_be_planned(self) -> Self:
        runs = len(self.datasets) * len(self.models) * len(self.seeds)
        if runs > _RUNS:
            raise ValueError(
                f"data sets x models x seeds are {runs} runs, more than the {_RUNS} that can be planned; cut the study"
            )
        return self

    def dataset(self, name: str) -> DatasetConfig:
        """Return the data set of a name."""
        return next(dataset for dataset in self.datasets if dataset.name == name)

    def methods_of(self, name: str) -> list[str] | None:
        """Return the methods of explanation of a model, with the controls; None for all."""
        named = self.model(name).methods or self.explainers.methods
        return None if named is None else _with_controls(named)

    @property
    def retrained(self) -> list[str]:
        """The methods whose pixels are removed before retraining, with the controls."""
        return _with_controls(self.explainers.retrained)

    def named_methods(self) -> dict[str, list[str]]:
        """Return the methods of explanation that the study names, by the key that does; no defaults."""
        named = {}
        if "explainers" in self.stages:
            named["explainers.methods"] = self.explainers.methods or []
            named |= {f"models ({model.name}).methods": model.methods or [] for model in self.models}
        if "retraining" in self.stages and "retrained" in self.explainers.model_fields_set:
            named["explainers.retrained"] = self.explainers.retrained
        return {key: names for key, names in named.items() if names}

    def model(self, name: str) -> ModelConfig:
        """Return the model of a name."""
        return next(model for model in self.models if model.name == name)

    def scan_of(self, model: str) -> ScanConfig:
        """Return the scan of a model: the study's, with the model's own blocks."""
        block = self.model(model).block
        return self.scan if block is None else self.scan.model_copy(update={"block": block})

    def training_of(self, model: str) -> TrainingConfig:
        """Return the training of a model: the study's, with the model's own settings on top."""
        own = self.model(model).training
        shared = {} if own.get("preset") else self.training.model_dump(exclude={"preset"})
        return _validated(TrainingConfig, {**shared, **own}, f"models ({model}).training")


# Reading ------------------------------------------------------------------------------------------------------------


def _class_at(root: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] = root
    for part in path:
        if isinstance(part, int):
            continue
        if part not in current.model_fields:
            return None
        inner = _inner_class(current.model_fields[part].annotation)
        if inner is None:
            return None
        current = inner
    return current


def _inner_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _inner_class(argument)
        if found is not None:
            return found
    return None


def _sentence(root: type[BaseModel], error: Any, prefix: str) -> str:
    path = tuple(part for part in error["loc"])
    names = [str(part)[:_NAME] for part in path]
    key = ".".join([prefix, *names] if prefix else names)
    if error["type"] == "extra_forbidden":
        owner = _class_at(root, path[:-1])
        known = list(owner.model_fields) if owner else []
        return f"unknown key {key}{did_you_mean(str(path[-1]), known)}"
    if error["type"] == "literal_error":
        options = [option.strip("'") for option in re.split(", | or ", error["ctx"]["expected"])]
        key = re.sub(r"\.literal\[.*$", "", key)
        return f"{key}: {_shown.repr(error['input'])} is not possible{did_you_mean(str(error['input']), options)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    key = re.sub(r"\.(literal|list)\[.*$", "", key)
    return f"{key}: {error['msg'].removeprefix('Value error, ')} (found {_shown.repr(error['input'])})"


def _validated(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(model, one, prefix) for one in error.errors()[:_PROBLEMS]]
        if error.error_count() > _PROBLEMS:
            problems.append(f"and {error.error_count() - _PROBLEMS} more")
        raise ConfigurationError("the configuration is not valid:\n  - " + "\n  - ".join(problems)) from None


def _check_extent(root: Any, parts: Callable[[Any], Iterable[Any]]) -> None:
    """Raise a ConfigurationError where references make a short file long: every value counts wherever it stands."""
    waiting, count = [(root, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _VALUES or depth > _DEPTH:
            raise ConfigurationError(
                f"the configuration has more than {_VALUES} values, or one inside more than {_DEPTH} others; a study "
                "needs some hundred. Do not repeat parts of it by reference."
            )
        waiting.extend((part, depth + 1) for part in parts(value))


def _values_in(value: Any) -> Iterable[Any]:
    """Return the parts of a value of a configuration, which is what JSON could hold."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigurationError(
                    f"the configuration has the key {_shown.repr(key)}, which is no text; quote it"
                )
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if not (value is None or isinstance(value, str | float | bool | int)):
        raise ConfigurationError(
            f"the configuration has the value {_shown.repr(value)}, which is neither text nor number nor list; quote it"
        )
    if isinstance(value, int) and abs(value) >= _INTEGER:
        raise ConfigurationError("the configuration has a whole number of more than 63 bits; choose a smaller one")
    return ()


def _nodes_in(node: yaml.Node) -> Iterable[yaml.Node]:
    """Return the parts of a value of a YAML file before anything is made of it."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _load_yaml(text: str) -> Any:
    """Return what a YAML file holds, as `yaml.safe_load`, if references do not make it endless."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(node, _nodes_in)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def parse_study(values: Mapping[str, Any]) -> Study:
    """Return the study that a configuration describes; keys that it leaves out have their defaults.

    Raises:
        ConfigurationError: A key or value is unknown or does not fit; each is named, with the closest valid one.
    """
    _check_extent(values, _values_in)
    study = _validated(Study, values)
    for model in study.models:
        study.training_of(model.name)
    return study


def read_study(path: str | Path) -> Study:
    """Return the study described by a YAML file.

    Raises:
        ConfigurationError: The file is missing, is not YAML, or is not a valid study.
    """
    try:
        values = _load_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"the configuration {path} does not exist") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    # PyYAML passes on what dates, numbers and deep nesting raise
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{path} must hold keys and values")
    return parse_study(values)


# The generated files ------------------------------------------------------------------------------------------------


def json_schema() -> str:
    """Return the JSON schema of a study."""
    return json.dumps(Study.model_json_schema(), indent=2) + "\n"


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _lines(model: BaseModel, indent: str, only_set: bool = False) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if only_set and name not in model.model_fields_set:
            continue
        if not only_set:
            for line in textwrap.wrap(str(field.description), 116 - len(indent)):
                yield f"{indent}# {line}"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ", only_set)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:"
            for position, entry in enumerate(value):
                lines = list(_lines(entry, indent + "    ", only_set or position > 0))
                start = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
                yield from lines[:start]
                yield f"{indent}  - {lines[start].strip()}"
                yield from lines[start + 1 :]
        else:
            yield f"{indent}{name}: {_plain(value)}"


def default_yaml() -> str:
    """Return the default configuration as YAML, every key with its meaning above it."""
    head = "# The embedded default study. Generated from src/nnscan/configuration.py; `make config` rewrites it.\n"
    return head + "\n".join(_lines(Study(), "")) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = _inner_class(field.annotation)
        key = f"{prefix}{name}"
        if inner is not None:
            listed = typing.get_origin(field.annotation) is list
            yield f"| **`{key}{'[]' if listed else ''}`** | | {inner.__doc__} |"
            yield from _rows(inner, f"{key}{'[]' if listed else ''}.")
            continue
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        properties = model.model_json_schema()["properties"][name]
        parts = (properties, *properties.get("anyOf", []))
        options = [value for part in parts for value in part.get("enum", [])]
        open_ = any(part.get("type") == "array" for part in parts)
        possible = f" One of: {', '.join(map(str, options))}." if options and not open_ else ""
        text = str(field.description).replace("|", "\\|")
        yield f"| `{key}` | {default} | {text}.{possible} |"


def key_table() -> str:
    """Return the table of all keys, in Markdown, for config/README.md."""
    return "| key | default | meaning |\n| --- | --- | --- |\n" + "\n".join(_rows(Study, "")) + "\n"


KEYS_BEGIN, KEYS_END = "<!-- keys: generated -->\n", "<!-- end of keys -->\n"


def with_key_table(text: str) -> str:
    """Return config/README.md's text with its key table renewed."""
    before, _, rest = text.partition(KEYS_BEGIN)
    _, _, after = rest.partition(KEYS_END)
    return f"{before}{KEYS_BEGIN}{key_table()}{KEYS_END}{after}"


def _rewrite(folder: Path) -> None:
    (folder / "config.yaml").write_text(default_yaml(), encoding="utf-8")
    (folder / "schema.json").write_text(json_schema(), encoding="utf-8")
    manual = folder / "README.md"
    manual.write_text(with_key_table(manual.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _rewrite(Path("config"))
