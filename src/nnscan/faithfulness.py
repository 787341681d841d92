"""Whether the pixels that an explanation points at are those that the answer depends on.

Insertion and deletion change pixels of an input in the map's order and watch the class probability of the network as
it is. Remove-and-retrain takes the pixels out of all images and trains a network anew, so that no network is asked
about images of a kind that it has never seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from nnscan.artifacts import digest
from nnscan.data import Dataset
from nnscan.errors import NnscanError
from nnscan.explanations import Method, Setting
from nnscan.metrics import Inputs, Metric, Score, judged, maps_of, own_maps
from nnscan.models import device_of, logits, prepare
from nnscan.resemblance import ordered
from nnscan.scores import BATCH, answers, checked, own_scores
from nnscan.training import SPLITS, Protocol, train

STEPS = 32
"""Steps at most in which all pixels are changed."""

BLUR = 1 / 8
"""Standard deviation of the blur at which insertion starts, as a share of the image's shorter side."""

SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the pixels that remove-and-retrain takes out."""

_SPLIT_BATCH = 16 * BATCH  # images of a split that are explained in one call

RETRAINED = ("method", "metric", "case", "value", "reason")
"""Columns of the frames of `retrained_accuracy`: those of `metrics.COLUMNS` without the sample."""

METRICS = (
    Metric(
        name="deletion",
        title="deletion",
        question="faithfulness",
        direction="lower",
        low=0,
        high=1,
        paper="Petsiuk et al., RISE",
        year=2018,
        meaning="Mean probability of the class while pixels are set to the channel's mean, the most important first.",
    ),
    Metric(
        name="insertion",
        title="insertion",
        question="faithfulness",
        direction="higher",
        low=0,
        high=1,
        paper="Petsiuk et al., RISE",
        year=2018,
        meaning="Mean probability of the class while pixels come back into the blurred image, the most important "
        "first.",
    ),
    *(
        Metric(
            name=f"{name}_curve",
            title=f"{name} curve",
            question="faithfulness",
            direction=None,
            low=0,
            high=1,
            paper="Petsiuk et al., RISE",
            year=2018,
            meaning=f"Probability of the class after a step of {name}.",
            cases="share of the pixels that was changed",
        )
        for name in ("deletion", "insertion")
    ),
)
"""The metrics of `faithfulness_scores`."""

ROAR = Metric(
    name="roar",
    title="ROAR",
    question="faithfulness",
    direction="lower",
    low=0,
    high=1,
    paper="Hooker et al., ROAR",
    year=2019,
    meaning="Test accuracy of a network trained on images without their most important pixels; to be read beside that "
    "of random pixels.",
    cases="share of the pixels that was removed",
)
"""The metric of `retrained_accuracy`."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Class probabilities on the way from one image to another.

    Attributes:
        shares: Shares of the pixels that were changed (S,), from 0 to 1.
        probabilities: Probability of each input's class (N, S).
    """

    shares: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def areas(self) -> NDArray[np.float64]:
        """The areas under the curves (N,), by trapezoids: mean probabilities, from 0 to 1."""
        return np.asarray(np.trapezoid(self.probabilities, self.shares, axis=1))


def _curves(model: nn.Module, start: Tensor, end: Tensor, classes: Sequence[int], maps: Tensor, steps: int) -> Curves:
    """Return the curves from images (N, C, H, W) to others, pixels in the order of maps (N, H, W)."""
    prepared, order = prepare(model), ordered(maps)
    pixels = order.shape[1]
    counts = torch.linspace(0, pixels, min(steps, pixels) + 1, dtype=torch.float64).round().long().to(start.device)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order))
    pairs = torch.cartesian_prod(torch.arange(len(start)), torch.arange(len(counts))).to(start.device)
    found = []
    with torch.no_grad():
        for own, step in (part.unbind(1) for part in torch.split(pairs, BATCH)):
            changed = (rank[own] < counts[step, None]).view(len(own), 1, *start.shape[2:])
            scores = logits(prepared(torch.where(changed, end[own], start[own])))
            found.append(own_scores(scores.double().softmax(1), [classes[number] for number in own.tolist()]))
    probabilities = torch.cat(found).view(len(start), len(counts)).cpu().numpy()
    return Curves((counts.double() / pixels).cpu().numpy(), probabilities)


def deletion_curves(
    model: nn.Module, x: Tensor, classes: Sequence[int], maps: Tensor, baseline: Tensor, steps: int = STEPS
) -> Curves:
    """Return the class probabilities while pixels are removed, the most important first; all channels of a pixel at
    once.

    Args:
        model: Any network; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input.
        maps: Raw maps (N, H, W); their order counts (`resemblance.ordered`), with their sign.
        baseline: What a removed pixel is set to, one value per channel (C, 1, 1), as fed to the network.
        steps: Steps at most, of about equally many pixels.

    Raises:
        ModelError: The network has no such class scores.
        ScanError: x or classes have another shape.

    Source: Petsiuk et al., "RISE" (2018), ch. 4.3 and alg. 1; the probability is the softmax of the class scores.
    """
    x = checked(model, x, classes)
    return _curves(model, x, baseline.to(x).expand_as(x), classes, maps.to(x.device), steps)


def insertion_curves(model: nn.Module, x: Tensor, classes: Sequence[int], maps: Tensor, steps: int = STEPS) -> Curves:
    """Return the class probabilities while pixels come back into the blurred input, the most important first.

    The blur is Gaussian, of the width `BLUR`, mirrored at the border: an empty image would gain sharp edges that no
    image has.

    Args:
        model: See `deletion_curves`, as for the other arguments and errors.
        x: Inputs (N, C, H, W).
        classes: The class of each input.
        maps: Raw maps (N, H, W).
        steps: Steps at most.

    Source: Petsiuk et al., "RISE" (2018), ch. 4.3.
    """
    x = checked(model, x, classes)
    return _curves(model, blurred(x), x, classes, maps.to(x.device), steps)


def blurred(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) with a Gaussian blur of the width `BLUR`."""
    width = BLUR * min(x.shape[2:])
    return torch.from_numpy(gaussian_filter(x.cpu().numpy(), (0, 0, width, width))).to(x)


def faithfulness_scores(model: nn.Module, inputs: Inputs, methods: Iterable[Method]) -> pd.DataFrame:
    """Return the deletion and insertion curves of methods and the areas under them, for each input.

    Args:
        model: The model.
        inputs: The inputs; a removed pixel is set to the channel's mean over the training images.
        methods: The methods.

    Returns:
        See `metrics.COLUMNS`; the metrics are `METRICS`.
    """

    def judge(method: Method) -> Iterator[Score]:
        maps = own_maps(method, model, inputs)
        deletion = deletion_curves(model, inputs.x, inputs.classes, maps, inputs.mean)
        insertion = insertion_curves(model, inputs.x, inputs.classes, maps)
        for name, curves in (("deletion", deletion), ("insertion", insertion)):
            yield Score(name, curves.areas)
            for share, probabilities in zip(curves.shares, curves.probabilities.T, strict=True):
                yield Score(f"{name}_curve", probabilities, case=f"{share:.4g}")

    return judged(methods, inputs.samples, METRICS, judge)


def without_peaks(
    images: NDArray[np.uint8], maps: Tensor, share: float, mean: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return images without the largest pixels of their maps, which are set to a mean in all channels.

    Args:
        images: Grey levels 0..255 (N, C, H, W).
        maps: Raw maps (N, H, W); for ties see `resemblance.ordered`.
        share: Share of the pixels of an image to remove, rounded to whole pixels.
        mean: Mean of each channel (C,), in [0, 1]; rounded to a whole grey level.
    """
    order = ordered(maps).cpu().numpy()
    removed = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(removed, order[:, : round(share * order.shape[1])], True, axis=1)
    levels = np.rint(255 * mean).astype(np.uint8)[:, None, None]
    return np.where(removed.reshape(len(images), 1, *images.shape[2:]), levels, images)


def _split_maps(method: Method, model: nn.Module, dataset: Dataset, split: str, setting: Setting) -> Tensor:
    """Return a method's maps (N, H, W) of a whole split, each for the model's own answer."""
    parts = []
    for numbers in np.array_split(np.arange(count := len(dataset.splits[split].images)), -(-count // _SPLIT_BATCH)):
        x = torch.from_numpy(dataset.inputs(split, numbers)).to(device_of(model))
        parts.append(maps_of(method, model, x, answers(model, x), setting).cpu())
    return torch.cat(parts)


def retrained_accuracy(
    model: nn.Module,
    build: Callable[[], nn.Module],
    dataset: Dataset,
    methods: Iterable[Method],
    protocol: Protocol,
    seed: int,
    setting: Setting,
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """Return the test accuracy of networks that were trained without the pixels that methods call most important.

    The pixels of all splits are removed, by maps of the given model for its own answers, so that no label is told. A
    removed pixel has its channel's mean over the original training images, whose mean and deviation also stay those of
    the network's input. Each network is trained by `training.train`, from the same start and in the same order of
    images; its well-trained state (lowest validation loss) counts. To be read beside random pixels, the control
    `random`.

    Args:
        model: The network that is explained; it is left unchanged.
        build: Returns the network to train, freshly initialised from torch's global generator.
        dataset: The images, with the splits train, validation and test.
        methods: The methods.
        protocol: How networks are trained.
        seed: Seed of initialisation and order.
        setting: What methods are given; a scan is left out.
        shares: Shares of the pixels to remove, from 0 to 1; 0 is trained once for all methods.

    Returns:
        See `RETRAINED`; the metric is `ROAR`, the value the accuracy from 0 to 1, NaN with a reason where a method
        does not apply.

    Raises:
        TrainingError: A training diverges.

    Source: Hooker et al., "A Benchmark for Interpretability Methods in Deep Neural Networks" (2019), ch. 3.
    """
    setting = replace(setting, scanned=None)
    untouched: float | None = None
    rows: list[tuple[str, str, str, float, str]] = []
    for method in methods:
        try:
            maps = {split: _split_maps(method, model, dataset, split, setting) for split in SPLITS}
        except NnscanError as error:
            rows += [(method.name, ROAR.name, f"{share:g}", np.nan, str(error)) for share in shares]
            continue
        for share in shares:
            if share == 0 and untouched is not None:
                accuracy = untouched
            else:
                accuracy = _accuracy_without(build, dataset, maps, share, protocol, seed)
            if share == 0:
                untouched = accuracy
            rows.append((method.name, ROAR.name, f"{share:g}", accuracy, ""))
    return pd.DataFrame(rows, columns=list(RETRAINED))


def _accuracy_without(
    build: Callable[[], nn.Module],
    dataset: Dataset,
    maps: dict[str, Tensor],
    share: float,
    protocol: Protocol,
    seed: int,
) -> float:
    splits = {
        split: replace(part, images=without_peaks(part.images, maps[split], share, dataset.mean))
        for split, part in dataset.splits.items()
    }
    contents = [part for split in SPLITS for part in (split, splits[split].images)]
    changed = replace(dataset, splits=splits, digest=digest(dataset.digest, *contents))
    with tempfile.TemporaryDirectory() as folder:
        results = train(build, changed, protocol, Path(folder), seed, {}, progress=False)
    chosen = results[(results["checkpoint"] == "well_trained") & (results["split"] == "test")]
    return float(chosen["accuracy"].iloc[0])
