"""How good explanations are: how well maps locate the object, and the register of all metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from nnscan import attacks, costs, faithfulness, sanity, stability
from nnscan.atlas import Atlas
from nnscan.data import Dataset, stratified_sample
from nnscan.errors import ConfigurationError, ModelError, did_you_mean
from nnscan.explainers import EXPLAINERS
from nnscan.explanations import Method, Scanned, Setting
from nnscan.maps import neuron_map
from nnscan.metrics import COLUMNS, Inputs, Metric, Score, frame, inputs_of, judged, own_maps
from nnscan.models import device_of
from nnscan.resemblance import constant
from nnscan.scores import answers
from nnscan.sweeps import enlarged

THRESHOLDS = (0.5, 0.2)
"""Shares of the range of a map's positive values from which on a pixel counts as located."""

log = logging.getLogger(__name__)

LOCALISATION = (
    Metric(
        name="iou",
        title="IoU",
        question="localisation",
        direction="higher",
        low=0,
        high=1,
        paper="Everingham et al., PASCAL VOC",
        year=2010,
        meaning="Overlap of the object with the pixels at which the map, stretched to [0, 1] with 0 in the place of "
        "negative values, reaches a threshold.",
        cases="the threshold",
    ),
    Metric(
        name="pointing",
        title="pointing game",
        question="localisation",
        direction="higher",
        low=0,
        high=1,
        paper="Zhang et al., Excitation Backprop",
        year=2018,
        meaning="Whether the map's largest pixel lies on the object; of equally large ones the share that does.",
    ),
    Metric(
        name="energy",
        title="energy inside the object",
        question="localisation",
        direction="higher",
        low=0,
        high=1,
        paper="Wang et al., Score-CAM",
        year=2020,
        meaning="Share of the sum of the map's positive values that lies on the object.",
    ),
)
"""The metrics of `localisation_scores`."""

RESIDUAL = Metric(
    name="residual",
    title="residual",
    question="completeness",
    direction="lower",
    low=0,
    high=2,
    paper="Sundararajan et al., Integrated gradients",
    year=2017,
    meaning="By how much the sum of a map misses what its method promises, as a share of that or, where it is larger, "
    "of the sum of the map's sizes.",
)
"""The metric of `completeness_scores`."""

ROUGHNESS = Metric(
    name="roughness",
    title="roughness",
    question="noise",
    direction=None,
    low=0,
    high=math.inf,
    paper="Geary, Contiguity Ratio",
    year=1954,
    meaning="How much neighbouring pixels of a map differ, as a share of how much any two pixels do: 1 where they come "
    "in random order, near 0 where the map is smooth.",
)
"""The metric of `noise_scores`."""

METRICS: tuple[Metric, ...] = (
    *LOCALISATION,
    RESIDUAL,
    ROUGHNESS,
    *faithfulness.METRICS,
    faithfulness.ROAR,
    *sanity.METRICS,
    *stability.METRICS,
    *attacks.METRICS,
    attacks.PREDICTION,
    *costs.METRICS,
)
"""All metrics of explanations."""


def scaled(maps: Tensor) -> Tensor:
    """Return maps (N, H, W), each stretched to [0, 1] by its smallest and largest value; a constant one is zero."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varied = ~constant(maps)[:, None, None]
    return torch.where(varied, (maps - low) / torch.where(varied, high - low, 1), 0.0)


def overlap(maps: Tensor, foreground: Tensor, threshold: float) -> Tensor:
    """Return the IoU (N,) of what maps locate with the true foreground.

    What speaks against the class locates nothing: values below 0 count as 0, as in `energy`. Stretched with them, a map
    whose lowest value is as far from 0 as its highest would locate every pixel of which it says nothing.

    Args:
        maps: Raw maps (N, H, W); their positive values are stretched to [0, 1].
        foreground: Foreground masks (N, H, W), boolean, none of them empty.
        threshold: A pixel is located where the stretched map is at least this large.

    Source: Dou Hui, doctoral slides, ch. 4 (IOU of table 4-5; it does not state its threshold).
    """
    located = scaled(maps.clamp(min=0)) >= threshold
    both, either = (located & foreground).sum((1, 2)), (located | foreground).sum((1, 2))
    return both.double() / either


def pointing(maps: Tensor, foreground: Tensor, margin: int = 0) -> Tensor:
    """Return the share (N,) of each map's largest pixels that lie on the object, or not farther from it than a margin.

    Of a map with one largest pixel it is 1, a hit, or 0. Where several are equally large it is what picking one of them
    at random hits on average: a constant map gets the object's share of the image.

    Args:
        maps: Raw maps (N, H, W).
        foreground: Foreground masks (N, H, W), boolean, none of them empty.
        margin: Distance in pixels, from pixel centre to pixel centre, at which a pixel still counts as on the object.

    Source: Zhang et al., "Top-Down Neural Attention by Excitation Backprop" (2018), ch. 4.2 (which allows 15 pixels in
    images of about 500; none are allowed here unless asked for).
    """
    distance = np.stack([distance_transform_edt(~mask) for mask in foreground.cpu().numpy()])
    near = torch.from_numpy(distance <= margin).to(maps.device)
    largest = maps == maps.amax((1, 2), keepdim=True)
    return (largest & near).sum((1, 2)).double() / largest.sum((1, 2))


def energy(maps: Tensor, foreground: Tensor) -> Tensor:
    """Return the share (N,) of the sum of each map's positive values that lies on the object; NaN where none is.

    Args:
        maps: Raw maps (N, H, W).
        foreground: Foreground masks (N, H, W), boolean.

    Source: Wang et al., "Score-CAM" (2020), ch. 4.3 (energy-based pointing game, of maps that are not negative).
    """
    positive = maps.double().clamp(min=0)
    return (positive * foreground).sum((1, 2)) / positive.sum((1, 2))


def roughness(maps: Tensor) -> Tensor:
    """Return Geary's contiguity ratio (N,) of maps over pixels side by side; NaN of a constant map.

    `(n - 1) sum_pairs (m_p - m_q)^2 / (2 P sum_p (m_p - mean m)^2)`, with n pixels p and P pairs of neighbours in a row
    or column. Its mean over all orders of the pixels is 1. Neither scale nor shift of the map changes it.

    Args:
        maps: Raw maps (N, H, W), with their sign.

    Source: Geary, "The Contiguity Ratio and Statistical Mapping" (1954).
    """
    even, maps = constant(maps), maps.double()
    steps = [maps.diff(dim=axis).flatten(1) for axis in (1, 2)]
    pairs, pixels = sum(step.shape[1] for step in steps), maps[0].numel()
    between = sum(step.square().sum(1) for step in steps)
    spread = (maps - maps.mean((1, 2), keepdim=True)).square().sum((1, 2))
    return torch.where(~even, (pixels - 1) * between / (2 * pairs * spread), torch.nan)


def localisation_scores(model: nn.Module, inputs: Inputs, methods: Iterable[Method], margin: int = 0) -> pd.DataFrame:
    """Return how well the maps of methods locate the object, for each input that has a foreground pixel.

    Args:
        model: The model.
        inputs: The inputs, with foreground masks; without them there are no rows.
        methods: The methods.
        margin: See `pointing`.

    Returns:
        See `metrics.COLUMNS`; the metrics are `LOCALISATION`, the case of the IoU is its threshold (`THRESHOLDS`).

    Source: Dou Hui, doctoral slides, table 4-5 (IoU); see `pointing` and `energy`.
    """
    if inputs.foreground is None or not inputs.foreground.any():
        return pd.DataFrame(columns=list(COLUMNS))
    chosen = np.flatnonzero(inputs.foreground.any((1, 2)))
    kept = torch.from_numpy(chosen).to(inputs.x.device)
    truth = torch.from_numpy(inputs.foreground[chosen]).to(inputs.x.device)

    def judge(method: Method) -> Iterator[Score]:
        maps = own_maps(method, model, inputs)[kept]
        for threshold in THRESHOLDS:
            yield Score("iou", overlap(maps, truth, threshold).cpu().numpy(), f"{threshold:g}")
        yield Score("pointing", pointing(maps, truth, margin).cpu().numpy())
        yield Score("energy", energy(maps, truth).cpu().numpy(), reason="the map has no positive value")

    return judged(methods, inputs.samples[chosen], LOCALISATION, judge)


def completeness_scores(atlas: Atlas) -> pd.DataFrame:
    """Return by how much the maps of an atlas miss the sums that their methods promise; see `metrics.COLUMNS`."""
    parts = [frame(atlas.samples, name, [Score("residual", atlas.residuals(name))]) for name in atlas.totals]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def noise_scores(atlas: Atlas) -> pd.DataFrame:
    """Return how rough the maps of an atlas are; see `metrics.COLUMNS`. A method without maps has its reason."""
    missing = np.full(len(atlas.samples), np.nan)
    scores = {
        name: Score("roughness", roughness(torch.from_numpy(maps)).numpy(), reason="the map is constant")
        for name, maps in atlas.maps.items()
    } | {name: Score("roughness", missing, reason=reason) for name, reason in atlas.refusals.items()}
    parts = [frame(atlas.samples, name, [score]) for name, score in scores.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def evaluate(
    question: str,
    model: nn.Module,
    dataset: Dataset,
    atlas: Atlas,
    setting: Setting,
    methods: Sequence[Method],
    anew: int,
    shuffled: nn.Module | None = None,
) -> pd.DataFrame:
    """Return the scores of methods that answer a question; see `metrics.COLUMNS`.

    Args:
        question: See `metrics.Metric.question`; "faithfulness" comes with what maps tell by themselves: by
            how much they miss what they promise, and how rough they are.
        model: The model.
        dataset: The data set.
        atlas: The maps of some test images.
        setting: What methods may use; its scan is of these images at least.
        methods: The methods; those that explain no inputs are left out.
        anew: Images at most that are explained anew, of different classes as far as possible.
        shuffled: The model trained on shuffled labels, for the question "sanity".

    Raises:
        ConfigurationError: There is no such question.
    """
    explained = [method for method in methods if method.explain is not None]
    judges: dict[str, Callable[[Inputs], pd.DataFrame]] = {
        "localisation": lambda inputs: localisation_scores(model, inputs, explained),
        "faithfulness": lambda inputs: faithfulness.faithfulness_scores(model, inputs, explained),
        "sanity": lambda inputs: sanity.sanity_scores(model, inputs, explained, shuffled),
        "stability": lambda inputs: stability.stability_scores(model, inputs, explained),
        "attack": lambda inputs: attacks.attack_scores(model, inputs, explained),
        "cost": lambda inputs: costs.cost_scores(model, inputs, explained),
    }
    if question not in judges:
        raise ConfigurationError(f"there is no question {question!r}{did_you_mean(question, judges)}")
    labels = dataset.splits["test"].labels[atlas.samples]
    count = len(labels) if question in ("localisation", "faithfulness") else min(anew, len(labels))
    own = atlas.part(stratified_sample(labels, count, seed=0))
    if setting.scanned is not None:
        setting = replace(setting, scanned=setting.scanned.part(np.searchsorted(setting.scanned.samples, own.samples)))
    maps = {name: torch.from_numpy(values) for name, values in own.maps.items()}
    scores = judges[question](inputs_of(model, dataset, "test", own.samples, setting, maps))
    parts = [scores]
    if question == "faithfulness":
        parts += [completeness_scores(own), noise_scores(own)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else scores


def localisation(model: nn.Module, x: Tensor, foreground: NDArray[np.bool_] | None, scanned: Scanned) -> pd.DataFrame:
    """Return the IoU with the true foreground of CAM, Grad-CAM and the FQ map, and of two maps as controls.

    CAM and Grad-CAM explain the class that the network gives to an input. The FQ map knows the foreground from its
    weights; the control "NNS" is the same sum without weights, the control "input" the size of the input itself.

    Args:
        model: The model.
        x: The scanned inputs (N, C, H, W), as fed to the network.
        foreground: Their foreground masks (N, H, W); None where there are none.
        scanned: What the scan says of them.

    Returns:
        sample, method (CAM, Grad-CAM, FQ map, NNS, input), threshold, iou (0 to 1; NaN where the method is not defined
        for the network). Samples without a foreground pixel are left out; without masks there are no rows.

    Source: Dou Hui, doctoral slides, table 4-5.
    """
    columns = ["sample", "method", "threshold", "iou"]
    chosen = np.flatnonzero(foreground.any((1, 2))) if foreground is not None else np.empty(0, np.int64)
    if foreground is None or not len(chosen):
        return pd.DataFrame(columns=columns)
    x = x[torch.from_numpy(chosen)].to(device_of(model))
    truth = torch.from_numpy(foreground[chosen]).to(x.device)
    classes = answers(model, x)
    maps: dict[str, Tensor | None] = {}
    for name in ("CAM", "Grad-CAM"):
        try:
            maps[name] = EXPLAINERS[name](model, x, classes)
        except ModelError as error:
            log.info("%s is left out: %s", name, error)
            maps[name] = None
    maps["FQ map"] = neuron_map(model, x, scanned.layer, scanned.quantities[chosen], scanned.block)
    maps["NNS"] = enlarged(torch.from_numpy(scanned.absolute[chosen]).to(x).sum(1), scanned.block)
    maps["input"] = x.sum(1).abs()
    parts = []
    for name, found in maps.items():
        for threshold in THRESHOLDS:
            iou = np.full(len(x), np.nan) if found is None else overlap(found, truth, threshold).cpu().numpy()
            rows = {"sample": scanned.samples[chosen], "method": name, "threshold": threshold, "iou": iou}
            parts.append(pd.DataFrame(rows)[columns])
    return pd.concat(parts, ignore_index=True)
