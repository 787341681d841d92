"""Whether a map stays the same where the input hardly changes: under an adversarial step and under noise.

Sizes of changes are shares of a channel's range of values, in [0, 1] units of the image. The class that is explained
stays that of the unchanged input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nnscan.errors import ModelError
from nnscan.explanations import Method
from nnscan.metrics import Inputs, Metric, Score, changed_maps, judged
from nnscan.models import logits
from nnscan.resemblance import PEAKS, UNDEFINED, Values, rank_correlation, shared_peaks
from nnscan.scores import BATCH, answers, followed, ready

EPSILONS = (8 / 255, 64 / 255)
"""Sizes of the adversarial step: one that hardly shows and mostly keeps the answer, one that mostly flips it."""

NOISE = 0.05
"""Standard deviation of the Gaussian noise."""

RADIUS = 0.02
"""Largest change of a pixel of which the sensitivity is taken."""

DRAWS = 8
"""Noisy copies of an input."""

KEPT, FLIPPED = "kept", "flipped"
"""Whether the network gives the input the same class after the step; part of the case."""

_CASES = "'kept' or 'flipped', whether the network's answer is the same after the step, and the step's size"

METRICS = (
    Metric(
        name="fgsm_rank",
        title="FGSM, rank correlation",
        question="stability",
        direction="higher",
        low=-1,
        high=1,
        paper="Goodfellow et al., FGSM",
        year=2015,
        meaning="Spearman's correlation of the map with that after a fast-gradient-sign step against the answer.",
        cases=_CASES,
    ),
    Metric(
        name="fgsm_peaks",
        title="FGSM, shared peaks",
        question="stability",
        direction="higher",
        low=0,
        high=1,
        paper="Ghorbani et al., Fragile Interpretation",
        year=2019,
        meaning=f"Share of the map's largest pixels ({PEAKS:.0%}) that are still among them after the FGSM step.",
        cases=_CASES,
    ),
    Metric(
        name="noise_rank",
        title="noise, rank correlation",
        question="stability",
        direction="higher",
        low=-1,
        high=1,
        paper="Ghorbani et al., Fragile Interpretation",
        year=2019,
        meaning=f"Mean Spearman correlation of the map with those of {DRAWS} copies with Gaussian noise of {NOISE:g}.",
    ),
    Metric(
        name="max_sensitivity",
        title="max-sensitivity",
        question="stability",
        direction="lower",
        low=0,
        high=np.inf,
        paper="Yeh et al., (In)fidelity and Sensitivity",
        year=2019,
        meaning=f"Largest change of the map, as a share of its norm, among {DRAWS} draws that change no pixel by more "
        f"than {RADIUS:g}.",
    ),
)
"""The metrics of `stability_scores`."""


@torch.inference_mode(False)
def fgsm(model: nn.Module, x: Tensor, classes: Sequence[int], step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return inputs (N, C, H, W) after a fast-gradient-sign step away from their class.

    `x + step sign(grad_x J(x, class))`, cut to the values that an image can have; J is the cross-entropy.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input that is to be left.
        step: Size of the step for each channel (C, 1, 1), as fed to the network.
        low: Smallest value of each channel (C, 1, 1).
        high: Largest value of each channel (C, 1, 1).

    Raises:
        ModelError: The network has no such class scores, or no gradient leads from them to the input.
        ScanError: x or classes have another shape.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples" (2015), ch. 4.
    """
    x, prepared = ready(model, x, classes)
    targets = torch.tensor(classes, device=x.device)
    parts = []
    for part, own in zip(torch.split(x, BATCH), torch.split(targets, BATCH), strict=True):
        source = part.clone().requires_grad_(True)
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(followed(logits(prepared(source.clone()))), own, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, source)
        parts.append(torch.clamp(part + step.to(x) * gradient.sign(), low.to(x), high.to(x)))
    return torch.cat(parts)


def gaussian_draws(inputs: Inputs, size: float, count: int) -> Iterator[Tensor]:
    """Yield changes (C, H, W), the same for every input: Gaussian with a deviation that is a share of the range."""
    generator = torch.Generator().manual_seed(inputs.setting.seed)
    for _ in range(count):
        drawn = torch.randn(inputs.x.shape[1:], generator=generator, dtype=torch.float64)
        yield drawn.to(inputs.x) * (size * inputs.range).to(inputs.x)


def even_draws(inputs: Inputs, size: float, count: int) -> Iterator[Tensor]:
    """Yield changes (C, H, W), the same for every input: evenly within a share of the range to both sides."""
    generator = torch.Generator().manual_seed(inputs.setting.seed)
    for _ in range(count):
        drawn = 2 * torch.rand(inputs.x.shape[1:], generator=generator, dtype=torch.float64) - 1
        yield drawn.to(inputs.x) * (size * inputs.range).to(inputs.x)


def max_sensitivity(maps: Tensor, changed: Iterable[Tensor]) -> Values:
    """Return the largest `|phi(x + d) - phi(x)| / |phi(x)|` (N,), in the Euclidean norm; NaN where phi(x) is zero.

    Args:
        maps: Maps phi(x) (N, H, W) of the inputs.
        changed: Maps (N, H, W) of each changed copy.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations" (2019), def. 2; divided by the map's norm
    so that methods can be compared.
    """
    # Not Captum's sensitivity_max: that makes the maps of the unchanged inputs once more, and says of a method whose
    # maps are zero that it does not change.
    norm = maps.double().flatten(1).norm(dim=1)
    changes = [(own.double() - maps.double()).flatten(1).norm(dim=1) for own in changed]
    largest: Values = torch.where(norm > 0, torch.stack(changes).amax(0) / norm, torch.nan).cpu().numpy()
    return largest


def stability_scores(
    model: nn.Module, inputs: Inputs, methods: Iterable[Method], epsilons: Sequence[float] = EPSILONS
) -> pd.DataFrame:
    """Return how alike the maps of inputs and of slightly changed inputs are, for each input.

    Args:
        model: The model.
        inputs: The inputs; the seed of their setting is also that of the noise. Noise is not cut to the values that an
            image can have.
        methods: The methods. One that needs a scan of the inputs is refused: it would have to be made for each change.
        epsilons: Sizes of the FGSM step, as shares of a channel's range.

    Returns:
        See `metrics.COLUMNS`; the metrics are `METRICS`. The case of an input after an FGSM step is such as
        "kept at 0.031" or "flipped at 0.25". Where no gradient leads to the input, the metrics of FGSM say so.
    """
    x, given = inputs.x, answers(model, inputs.x)
    steps: list[tuple[Tensor, list[str]]] = []
    no_step = ""
    try:
        for epsilon in epsilons:
            stepped = fgsm(model, x, inputs.classes, epsilon * inputs.range, inputs.low, inputs.high)
            same = [before == after for before, after in zip(given, answers(model, stepped), strict=True)]
            steps.append((stepped, [f"{KEPT if kept else FLIPPED} at {epsilon:.2g}" for kept in same]))
    except ModelError as error:
        no_step = str(error)

    noisy = [x + change for change in gaussian_draws(inputs, NOISE, DRAWS)]
    near = [x + change for change in even_draws(inputs, RADIUS, DRAWS)]
    # in one call, since a method that learns a mask takes about the steps of one input for many
    copies = torch.cat([x, *(stepped for stepped, _ in steps), *noisy, *near])

    def judge(method: Method) -> Iterator[Score]:
        maps, *changed = torch.split(changed_maps(method, model, copies, inputs), len(x))
        of_stepped, of_noisy, of_near = changed[: len(steps)], changed[len(steps) : -DRAWS], changed[-DRAWS:]
        for (_, cases), after in zip(steps, of_stepped, strict=True):
            yield Score("fgsm_rank", rank_correlation(maps, after), cases, UNDEFINED)
            yield Score("fgsm_peaks", shared_peaks(maps, after), cases, UNDEFINED)
        if no_step:
            for name in ("fgsm_rank", "fgsm_peaks"):
                yield Score(name, np.full(len(x), np.nan), reason=no_step)
        noise = np.mean([rank_correlation(maps, after) for after in of_noisy], axis=0)
        yield Score("noise_rank", noise, reason=UNDEFINED)
        yield Score("max_sensitivity", max_sensitivity(maps, of_near), reason="the map is zero")

    return judged(methods, inputs.samples, METRICS, judge)
