"""An atlas: the raw maps of some inputs by all methods of explanation, and why methods have none.

Maps are kept as methods give them, so that stretching them, and judging them, is a matter of whoever reads them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnscan.artifacts import create_hdf5, open_hdf5
from nnscan.data import Dataset, stratified_sample
from nnscan.errors import ModelError, NnscanError
from nnscan.explanations import Method, Scanned, Setting
from nnscan.infilling import load_infiller
from nnscan.limits import fixed_text, reading
from nnscan.maximisation import load_generator, synthesis_scores
from nnscan.metrics import Inputs, maps_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Maps of some inputs.

    Attributes:
        samples: Positions of the inputs in the test split (N,).
        classes: The class of each that is explained (N,), the network's answer.
        maps: Raw maps (N, H, W) by the name of their method.
        totals: What the sums of a map should be (N,), by the name of the method, where it promises that.
        refusals: Why a method has no maps, by its name.
    """

    samples: NDArray[np.int64]
    classes: NDArray[np.int64]
    maps: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    totals: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)

    def part(self, places: NDArray[np.int64]) -> Atlas:
        """Return the atlas of some of its inputs (n,), by their places."""
        return Atlas(
            self.samples[places],
            self.classes[places],
            {name: values[places] for name, values in self.maps.items()},
            {name: values[places] for name, values in self.totals.items()},
            self.refusals,
        )

    def residuals(self, name: str) -> NDArray[np.float64]:
        """Return by how much the sums of a method's maps miss what it promises (N,), in [0, 2].

        It is a share of the promise, or of the sum of the map's sizes where that is larger: what relevance is promised
        in all can be next to nothing, or nothing (SGLRP), and is still handed out in both signs.
        """
        maps, promised = self.maps[name].astype(np.float64), self.totals[name].astype(np.float64)
        whole = np.maximum(np.abs(promised), np.abs(maps).sum((1, 2)))
        found: NDArray[np.float64] = np.abs(maps.sum((1, 2)) - promised) / np.where(whole > 0, whole, 1)
        return found


def explained_samples(dataset: Dataset, scanned: Scanned, count: int) -> NDArray[np.int64]:
    """Return which of the scanned samples are explained, as positions in the scan, ascending.

    They are of different classes as far as possible. Where there are masks, only samples with a foreground pixel count.
    """
    split = dataset.splits["test"]
    masks = None if split.foreground is None else split.foreground[scanned.samples].any((1, 2))
    places = np.arange(len(scanned.samples)) if masks is None or not masks.any() else np.flatnonzero(masks)
    labels = split.labels[scanned.samples[places]]
    return np.sort(places[stratified_sample(labels, min(count, len(places)), seed=0)])


def setting_of(
    dataset: Dataset,
    seed: int,
    scanned: Scanned | None = None,
    infiller: Sequence[str | Path] = (),
    generator: Sequence[str | Path] = (),
) -> Setting:
    """Return what methods of explanation are given in a study.

    Args:
        dataset: The data set.
        seed: The run's seed.
        scanned: What the scan says of the inputs.
        infiller: Checkpoint of the network that fills hidden pixels, alone; none where no method needs it.
        generator: Checkpoint of the network that makes images, likewise.
    """
    return Setting(
        seed=seed,
        scanned=scanned,
        infiller=load_infiller(infiller[0]) if infiller else None,
        generator=load_generator(generator[0]) if generator else None,
        box=dataset.box,
    )


def draw_atlas(model: nn.Module, inputs: Inputs, methods: Iterable[Method]) -> Atlas:
    """Return the maps of inputs by methods; one that does not apply has its reason instead.

    Args:
        model: The model.
        inputs: The inputs, and what methods may use.
        methods: The methods; those that explain no inputs are left out.
    """
    maps, totals, refusals = {}, {}, {}
    for method in tqdm([one for one in methods if one.explain is not None], unit="method"):
        try:
            found = maps_of(method, model, inputs.x, inputs.classes, inputs.setting)
        except NnscanError as error:
            log.info("%s: %s", method.title, error)
            refusals[method.name] = str(error)
            continue
        maps[method.name] = found.cpu().numpy()
        if method.total is not None:
            whole = method.total(model, inputs.x, inputs.classes, inputs.setting)
            totals[method.name] = whole.detach().double().cpu().numpy()
    return Atlas(inputs.samples, np.asarray(inputs.classes, np.int64), maps, totals, refusals)


def write_atlas(path: str | Path, atlas: Atlas, origin: Mapping[str, str]) -> None:
    """Write an atlas as HDF5: samples, classes, maps/<method> (sample, row, column), totals/<method>, refusals.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with create_hdf5(path, "atlas", origin) as file:
        file["samples"], file["classes"] = atlas.samples, atlas.classes
        file["refusals"] = fixed_text(json.dumps(dict(atlas.refusals)))
        for group, arrays, axes in (("maps", atlas.maps, ("row", "column")), ("totals", atlas.totals, ())):
            place = file.create_group(group, track_order=True)
            for name, values in arrays.items():
                data = place.create_dataset(name, data=values)
                data.attrs["units"] = "of the method"
                for axis, label in enumerate(("sample", *axes)):
                    data.dims[axis].label = label


def read_atlas(path: str | Path) -> Atlas:
    """Return an atlas of `write_atlas`.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "atlas") as file, reading(path):
        return Atlas(
            file["samples"][()],
            file["classes"][()],
            {name: data[()] for name, data in file["maps"].items()},
            {name: data[()] for name, data in file["totals"].items()},
            json.loads(file["refusals"][()]),
        )


# Images of classes ----------------------------------------------------------------------------------------------------


def synthesised(
    model: nn.Module, dataset: Dataset, methods: Iterable[Method], setting: Setting
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return one image of each class (classes, C, H, W), by the name of the method, and why methods have none.

    Args:
        model: The model.
        dataset: The data set.
        methods: The methods; those that make no images are left out.
        setting: What they may use.
    """
    shape = dataset.inputs("train", np.array([0])).shape[1:]
    images, refusals = {}, {}
    for method in methods:
        if method.synthesise is None:
            continue
        try:
            found = method.synthesise(model, shape, range(len(dataset.classes)), setting).detach()
        except NnscanError as error:
            log.info("%s: %s", method.title, error)
            refusals[method.name] = str(error)
            continue
        if found.shape != (len(dataset.classes), *shape) or not bool(torch.isfinite(found).all()):
            raise ModelError(f"{method.title} gave images {tuple(found.shape)} that are not one finite image per class")
        images[method.name] = found
    return images, refusals


def first_images(dataset: Dataset) -> dict[int, NDArray[np.float32]]:
    """Return the first image of the validation split of each class there (C, H, W), as fed to a network."""
    classes, places = np.unique(dataset.splits["validation"].labels, return_index=True)
    return dict(zip(classes.tolist(), dataset.inputs("validation", places), strict=True))


def judged_images(
    images: Mapping[str, Tensor],
    refusals: Mapping[str, str],
    model: nn.Module,
    judges: Sequence[nn.Module],
    dataset: Dataset,
) -> pd.DataFrame:
    """Return what networks say of the images that methods made for classes, and of validation images beside them.

    Args:
        images: One image of each class (classes, C, H, W), by the name of the method.
        refusals: Why a method has none.
        model: The network that they were made for.
        judges: The same network from other seeds.
        dataset: The data set.

    Returns:
        method (with "validation": the first image of each class of that split), the columns of
        `maximisation.synthesis_scores`, and reason; a method that refuses has one row without values.
    """
    real = first_images(dataset)
    every: dict[str, tuple[Tensor, Sequence[int]]] = {name: (made, range(len(made))) for name, made in images.items()}
    every["validation"] = torch.from_numpy(np.stack(list(real.values()))), list(real)
    parts = [
        synthesis_scores(shown, classes, model, judges, dataset).assign(method=name, reason="")
        for name, (shown, classes) in every.items()
    ]
    parts += [pd.DataFrame({"method": [name], "reason": [reason]}) for name, reason in refusals.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["method", *(name for name in table.columns if name not in ("method", "reason")), "reason"]]


def write_images(
    path: str | Path, images: Mapping[str, Tensor], refusals: Mapping[str, str], origin: Mapping[str, str]
) -> None:
    """Write images of classes as HDF5: images/<method> (class, channel, row, column), as fed to the network, refusals.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with create_hdf5(path, "images", origin) as file:
        file["refusals"] = fixed_text(json.dumps(dict(refusals)))
        place = file.create_group("images", track_order=True)
        for name, made in images.items():
            data = place.create_dataset(name, data=made.cpu().numpy())
            for axis, label in enumerate(("class", "channel", "row", "column")):
                data.dims[axis].label = label


def read_images(path: str | Path) -> tuple[dict[str, NDArray[np.floating]], dict[str, str]]:
    """Return the images (classes, C, H, W) of a file of `write_images` by method, and why methods have none.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "images") as file, reading(path):
        images = {name: data[()] for name, data in file["images"].items()}
        return images, json.loads(file["refusals"][()])
