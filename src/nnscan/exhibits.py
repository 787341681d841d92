"""Pictures of the systems beside the theses: units, their reasons, prototypes, and what methods of explanation show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from nnscan.atlas import Atlas, first_images
from nnscan.broden import Broden
from nnscan.data import Dataset, stratified_sample
from nnscan.dissection import Feed, Probe, Upsampling, View, dissected_modules
from nnscan.dissection import explain as explain_units
from nnscan.drawings import Likenesses, UnitReasons
from nnscan.explanations import Method
from nnscan.figures import UnitGallery, evenly
from nnscan.layout import SHOWN_IMAGES, SHOWN_LAYERS, SHOWN_UNITS
from nnscan.prototypes import ProtoPNet
from nnscan.prototypes import explain as explain_likeness
from nnscan.scores import answers
from nnscan.sheets import Painted, Shown
from nnscan.survey import VALIDATION


def shown_layers(layers: Sequence[str]) -> list[str]:
    """Return the layers of which pictures show units: the first, the last, and `SHOWN_LAYERS` in all at most."""
    return [layers[place] for place in evenly(len(layers), SHOWN_LAYERS)]


def unit_exhibits(
    model: nn.Module,
    broden: Broden,
    feed: Feed,
    units: pd.DataFrame,
    exemplars: pd.DataFrame,
    layer: str,
    count: int = SHOWN_UNITS,
    shown: int = SHOWN_IMAGES,
    upsampling: Upsampling = "anchored",
) -> list[UnitGallery]:
    """Return the units of a layer that detect their concept best, with the images that activate them most.

    First come detectors, of these the best of each label, by IoU.

    Args:
        model: The network.
        broden: The labelled images that it was dissected with.
        feed: How they became inputs.
        units: The units of `dissection.network_dissection`.
        exemplars: The images of their highest activations.
        layer: The layer.
        count: Units.
        shown: Images of each.
        upsampling: As in the dissection.
    """
    own = units[(units["layer"] == layer) & (units["iou"] > 0)].sort_values(["iou", "unit"], ascending=[False, True])
    own = own.assign(again=own.duplicated("label")).sort_values(
        ["is_detector", "again"], ascending=[False, True], kind="stable"
    )
    ranked = own.head(count)
    first = feed.inputs(feed.pixels(broden, range(1)))
    module = dissected_modules(model, first, [layer])[layer]
    probe = Probe(model, broden, feed, {layer: View(module)}, upsampling)
    thresholds = units[units["layer"] == layer].sort_values("unit")["threshold"].to_numpy(np.float32)
    galleries = []
    for row in ranked.to_dict("records"):
        tops = exemplars[(exemplars["layer"] == layer) & (exemplars["unit"] == row["unit"])].sort_values("rank")
        images = tops["image"].head(shown).tolist()
        pixels = feed.pixels(broden, images)
        masks = probe.masks(layer, thresholds, images, (pixels.shape[2], pixels.shape[3]))[:, row["unit"]]
        title = f"unit {row['unit']}: {row['label']} ({row['category']}), IoU {row['iou']:.3f}"
        galleries.append(UnitGallery(title, (pixels / 255).astype(np.float32), masks))
    return galleries


def unit_reasons(
    model: nn.Module, dataset: Dataset, units: pd.DataFrame, layer: str, count: int = 3, shown: int = 6
) -> list[UnitReasons]:
    """Return why a network gives some test images their classes, in terms of the concepts that its units detect.

    Args:
        model: The network.
        dataset: Its data.
        units: The units of `dissection.network_dissection`.
        layer: The layer whose units speak.
        count: Test images, of different classes as far as possible.
        shown: Units of each image: those with the largest contributions by size.
    """
    chosen = stratified_sample(dataset.splits["test"].labels, count, seed=0)
    x = dataset.inputs("test", chosen)
    table = explain_units(model, torch.from_numpy(x), layer, units, dataset.classes)
    reasons = []
    for number, position in enumerate(chosen.tolist()):
        own = table[table["input"] == number]
        top = own.loc[own["contribution"].abs().sort_values(ascending=False, kind="stable").index[:shown]]
        labels = [
            f"unit {row['unit']}: {row['label']}" if row["is_detector"] else f"unit {row['unit']} (no detector)"
            for row in top.to_dict("records")
        ]
        truth = dataset.classes[int(dataset.splits["test"].labels[position])]
        title = f"{truth}, taken for {own['class'].iloc[0]}"
        reasons.append(UnitReasons(title, dataset.display(x[number]), labels, top["contribution"].tolist()))
    return reasons


def likenesses(network: ProtoPNet, dataset: Dataset, right: bool) -> Likenesses | None:
    """Return which prototypes the first test image looks like that a ProtoPNet gives its class, or another one.

    Args:
        network: A pushed network.
        dataset: Its data.
        right: Whether the class is the true one.

    Returns:
        None where there is no such image.
    """
    split = dataset.splits["test"]
    x = torch.from_numpy(dataset.inputs("test"))
    found = np.asarray(answers(network, x)) == split.labels
    places = np.flatnonzero(found == right)
    if not len(places):
        return None
    place = int(places[0])
    explanation = explain_likeness(network, x[place])
    truth, answer = dataset.classes[int(split.labels[place])], dataset.classes[int(explanation.scores.argmax())]
    images = dataset.inputs("train", np.array([one.source for one in explanation.likenesses]))
    return Likenesses(
        f"test image {place}: {truth}, taken for {answer}",
        dataset.display(x[place].numpy()),
        explanation,
        [dataset.display(image) for image in images],
    )


def explained_images(
    dataset: Dataset, atlas: Atlas, methods: Mapping[str, Method], count: int = 6
) -> tuple[list[NDArray[np.floating]], list[str], list[Shown]]:
    """Return test images, their classes, and what every method of an atlas shows of them.

    The classes are those that the network gives them; where it errs, the true one stands in a second line.

    Args:
        dataset: The data set.
        atlas: The maps.
        methods: The register.
        count: Images at most, of different classes as far as possible.
    """
    labels = dataset.splits["test"].labels[atlas.samples]
    own = atlas.part(np.sort(stratified_sample(labels, min(count, len(labels)), seed=0)))
    images = [dataset.display(image) for image in dataset.inputs("test", own.samples)]
    rows = [
        Shown(method.title, method.family, own.maps.get(name), own.refusals.get(name, ""))
        for name, method in methods.items()
        if name in own.maps or name in own.refusals
    ]
    true = dataset.splits["test"].labels[own.samples].tolist()
    titles = [
        dataset.classes[given] + ("" if given == is_ else f"\n(is {dataset.classes[is_]})")
        for given, is_ in zip(own.classes.tolist(), true, strict=True)
    ]
    return images, titles, rows


def painted_images(
    dataset: Dataset,
    images: Mapping[str, NDArray[np.floating]],
    refusals: Mapping[str, str],
    judged: pd.DataFrame,
    methods: Mapping[str, Method],
) -> list[Painted]:
    """Return what networks say of the images that methods made of classes, and of validation images beside them.

    Where no method was asked for there is nothing.

    Args:
        dataset: The data set.
        images: Of `atlas.read_images`.
        refusals: Likewise.
        judged: Of `atlas.judged_images`.
        methods: The register.
    """
    if not images and not refusals:
        return []
    every: dict[str, Mapping[int, NDArray[np.floating]]] = {VALIDATION: first_images(dataset)}
    every |= {name: dict(enumerate(images[name])) for name in methods if name in images}
    rows = []
    for name, pictures in every.items():
        own = judged[judged["method"] == name]
        captions = {
            int(row["class"]): f"p = {row['probability']:.2f}"
            + ("" if np.isnan(row["agreement"]) else f"\njudges {row['agreement']:.0%}")
            for row in own.to_dict("records")
        }
        title = "validation image" if name == VALIDATION else methods[name].title
        rows.append(Painted(title, {number: dataset.display(one) for number, one in pictures.items()}, captions))
    return rows + [Painted(methods[name].title, None, {}, why) for name, why in refusals.items()]
