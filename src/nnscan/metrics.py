"""What a metric of explanations is, on what it is taken, and the rows that it gives.

Every evaluation gives one row per sample, method, metric and case, and summarises nothing: means and intervals over
samples and seeds are for the tables (`tables.interval`). A method that does not apply has rows too, without a value and
with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.data import Dataset
from nnscan.errors import ModelError, NnscanError, ScanError
from nnscan.explanations import Method, Setting
from nnscan.models import device_of
from nnscan.scores import answers

COLUMNS = ("sample", "method", "metric", "case", "value", "reason")
"""Of every frame of scores: position of the sample in its split; names of method and metric; which of a metric's cases
it is (`Metric.cases`), empty where there is one; the value, NaN where there is none; then the reason, else empty."""


@dataclass(frozen=True)
class Metric:
    """A metric of explanations and what a table says of it.

    Attributes:
        name: As in frames, lower case with underscores.
        title: As in tables and figures.
        question: The group of metrics: what is asked of an explanation.
        direction: Which values are better; None where neither are: the value tells of something else than the method.
        low: Smallest possible value.
        high: Largest possible value; infinity where there is none.
        paper: Who and what, in short.
        year: Of the paper.
        meaning: What a value says, in a sentence.
        cases: What the column `case` says; empty where a metric has only one case.
    """

    name: str
    title: str
    question: Literal["localisation", "completeness", "noise", "faithfulness", "sanity", "stability", "attack", "cost"]
    direction: Literal["higher", "lower"] | None
    low: float
    high: float
    paper: str
    year: int
    meaning: str
    cases: str = ""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs on which methods are judged.

    Attributes:
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input that is explained; it stays the same where inputs or models are changed.
        samples: Positions of the inputs in their split (N,).
        low: The smallest value that a pixel of each channel can have, as fed to the network (C, 1, 1).
        high: The largest one.
        mean: The training images' mean of each channel, as fed to the network (C, 1, 1).
        foreground: Foreground masks (N, H, W), boolean; None where there are none.
        setting: What methods are given.
        maps: Raw maps (N, H, W) of the inputs that are there already, by the name of their method.
    """

    x: Tensor
    classes: Sequence[int]
    samples: NDArray[np.int64]
    low: Tensor
    high: Tensor
    mean: Tensor
    foreground: NDArray[np.bool_] | None = None
    setting: Setting = field(default_factory=Setting)
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def range(self) -> Tensor:
        """The width of each channel's values (C, 1, 1): sizes of perturbations are shares of it."""
        return self.high - self.low


def inputs_of(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    samples: NDArray[np.int64],
    setting: Setting | None = None,
    maps: Mapping[str, Tensor] | None = None,
) -> Inputs:
    """Return samples of a data set as inputs, on the model's device; the class that is explained is the model's answer.

    Args:
        model: The model.
        dataset: The data set.
        split: "train", "validation" or "test".
        samples: Positions in the split (N,).
        setting: What methods are given; see `explanations.Setting`.
        maps: Raw maps that are there already, by the name of their method.

    Raises:
        DataError: There is no such split.
    """
    x = torch.from_numpy(dataset.inputs(split, samples)).to(device_of(model))

    def of_channels(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]

    low, high = dataset.box
    mean = [0.0] * len(low) if dataset.normalization == "standard" else dataset.mean.tolist()
    foreground = dataset.splits[split].foreground
    return Inputs(
        x=x,
        classes=answers(model, x),
        samples=samples,
        low=of_channels(low),
        high=of_channels(high),
        mean=of_channels(mean),
        foreground=None if foreground is None else foreground[samples],
        setting=setting or Setting(),
        maps=maps or {},
    )


def maps_of(method: Method, model: nn.Module, x: Tensor, classes: Sequence[int], setting: Setting) -> Tensor:
    """Return a method's raw maps (N, H, W), checked.

    Raises:
        ModelError: The method explains no inputs, or does not apply to the model.
        ScanError: The maps are not finite, or not one for each input.
        NnscanError: Whatever else the method refuses by name.
    """
    if method.explain is None:
        raise ModelError(f"{method.title} makes images of classes; it has no maps of inputs")
    maps = method.explain(model, x, classes, setting).detach()
    if maps.shape != (len(x), *x.shape[2:]):
        raise ScanError(f"{method.title} gave maps of the shape {tuple(maps.shape)} for inputs {tuple(x.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise ScanError(f"{method.title} gave maps with values that are not finite")
    return maps


def own_maps(method: Method, model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a method's raw maps of the inputs as they are; those that are there already are not made again."""
    if method.name in inputs.maps:
        return inputs.maps[method.name].to(inputs.x.device)
    return maps_of(method, model, inputs.x, inputs.classes, inputs.setting)


def changed_maps(method: Method, model: nn.Module, x: Tensor, inputs: Inputs) -> Tensor:
    """Return a method's raw maps of changed inputs, or of another model.

    What a scan has said of the inputs no longer holds there: a method that needs it refuses.

    Args:
        method: The method.
        model: The model.
        x: Any number of copies of the inputs (copies N, C, H, W), one copy after the other.
        inputs: The inputs, with the classes that are explained.
    """
    classes = [*inputs.classes] * (len(x) // len(inputs.classes))
    return maps_of(method, model, x, classes, replace(inputs.setting, scanned=None))


@dataclass(frozen=True)
class Score:
    """What a metric gives for some inputs.

    Attributes:
        metric: Name of the metric.
        values: One for each input (N,); NaN where there is none.
        case: See `Metric.cases`; one for all inputs, or one for each.
        reason: Why there is no value, where there is none.
    """

    metric: str
    values: NDArray[np.floating]
    case: str | Sequence[str] = ""
    reason: str = ""


def frame(samples: NDArray[np.int64], method: str, scores: Iterable[Score]) -> pd.DataFrame:
    """Return scores of a method as rows; see `COLUMNS`."""
    given, count = list(scores), len(samples)
    if not given:
        return pd.DataFrame(columns=list(COLUMNS))
    values = np.concatenate([np.asarray(score.values, dtype=np.float64) for score in given])
    cases = [[score.case] * count if isinstance(score.case, str) else score.case for score in given]
    reasons = np.repeat([score.reason for score in given], count)
    return pd.DataFrame(
        {
            "sample": np.tile(samples, len(given)),
            "method": method,
            "metric": np.repeat([score.metric for score in given], count),
            "case": list(chain.from_iterable(cases)),
            "value": values,
            "reason": np.where(np.isnan(values), reasons, ""),
        }
    )[list(COLUMNS)]


def judged(
    methods: Iterable[Method],
    samples: NDArray[np.int64],
    metrics: Iterable[Metric],
    judge: Callable[[Method], Iterable[Score]],
) -> pd.DataFrame:
    """Return the rows of several methods. One that refuses has rows without a value, with its reason.

    Args:
        methods: The methods.
        samples: Positions of the inputs in their split (N,).
        metrics: The metrics of which a method that refuses has rows.
        judge: What gives a method's scores.
    """
    missing = np.full(len(samples), np.nan)
    parts = []
    for method in methods:
        try:
            scores = list(judge(method))
        except NnscanError as error:
            scores = [Score(metric.name, missing, reason=str(error)) for metric in metrics]
        parts.append(frame(samples, method.name, scores))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
