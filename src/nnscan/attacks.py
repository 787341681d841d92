"""Attacks on an explanation: inputs that look alike and are answered alike, but explained otherwise.

An input is changed within a small budget so that its gradient map comes to resemble another map, or its largest pixels
lose their size, while class and probabilities stay. A network of ReLUs has a gradient that is constant almost
everywhere, so the direction is taken from the network with softplus in their place; what is reported is of the network
as it is. The changed inputs are then explained by other methods, which were not attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnscan.backprop import operations
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Method
from nnscan.gradients import saliency
from nnscan.metrics import COLUMNS, Inputs, Metric, Score, changed_maps, frame, judged
from nnscan.models import logits, prepare
from nnscan.resemblance import UNDEFINED, ordered, peak_count, rank_correlation, shared_peaks
from nnscan.scores import BATCH, class_scores, followed, own_scores, ready

BUDGET = 8 / 255
"""Largest change of a pixel, as a share of its channel's range."""

STEPS = 50
"""Steps of the attack."""

SHARPNESS = (10.0, 100.0)
"""beta of softplus at the first and the last step; it grows evenly in its logarithm."""

TOLERANCE = 0.05
"""Largest change of a class probability."""

_BLIND = {
    "Relu": "a ReLU that nnscan cannot reach",
    "Threshold": "threshold",
    "LeakyRelu": "leaky_relu",
    "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu",
    "Hardtanh": "hardtanh or relu6",
    "ClampMin": "clamp",
    "Clamp": "clamp",
    "Maximum": "maximum",
}
"""Functions of straight pieces, by the name of their graph node, of which no second derivative tells anything."""

Goal = Literal["target", "peaks"]
GOALS: tuple[Goal, ...] = ("target", "peaks")
"""target: the map shall resemble a frame along the border; peaks: its largest pixels shall lose their size."""

CHANCE = "chance"
"""Case: the input with random signs, as large as the budget, which no one has aimed."""

_CASES = (
    "'target': the gradient map was driven to a frame along the border; 'peaks': away from its largest pixels; "
    "'chance': a random change of the same size, as a control"
)

METRICS = (
    Metric(
        name="attack_rank",
        title="attack, rank correlation",
        question="attack",
        direction="higher",
        low=-1,
        high=1,
        paper="Dombrowski et al., Explanations Can Be Manipulated",
        year=2019,
        meaning="Spearman's correlation of the map with that of the input that was changed to mislead the gradient map "
        "while the answer stays.",
        cases=_CASES,
    ),
    Metric(
        name="attack_peaks",
        title="attack, shared peaks",
        question="attack",
        direction="higher",
        low=0,
        high=1,
        paper="Ghorbani et al., Fragile Interpretation",
        year=2019,
        meaning="Share of the map's largest pixels that are still among them after the attack on the gradient map.",
        cases=_CASES,
    ),
    Metric(
        name="attack_approach",
        title="attack, approach to the target",
        question="attack",
        direction="lower",
        low=-2,
        high=2,
        paper="Dombrowski et al., Explanations Can Be Manipulated",
        year=2019,
        meaning="How much the map's rank correlation with the attack's target map has grown.",
        cases="'target' and 'chance', as above",
    ),
)
"""The metrics of methods that `attack_scores` gives."""

PREDICTION = Metric(
    name="attack_prediction",
    title="attack, change of the answer",
    question="attack",
    direction=None,
    low=0,
    high=1,
    paper="Dombrowski et al., Explanations Can Be Manipulated",
    year=2019,
    meaning=f"Largest change of a class probability; the attack keeps the class, and this at {TOLERANCE:g} at most. It "
    "speaks of the model, and its rows name no method.",
    cases=_CASES,
)
"""The metric of the model that `attack_scores` gives."""


class _SmoothReLUs(TorchFunctionMode):
    """Inside the block every call of relu, by module or by function, is softplus with a given beta."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name not in ("relu", "relu_"):
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "inplace"), args, strict=False)) | (kwargs or {})
        values: Tensor = given["input"]
        if name == "relu_" or given.get("inplace", False):
            return values.copy_(
                nn.functional.softplus(values.clone(), beta=self.beta)
            )  # whose gradient needs its input
        return nn.functional.softplus(values, beta=self.beta)


def _check_smooth(scores: Tensor) -> None:
    """Raise a ModelError where class scores were computed with straight pieces that softplus has not replaced."""
    found = set()
    for name, _ in operations(scores):
        if name.startswith("torch::jit"):
            found.add("scripted code")
        elif name in _BLIND:
            found.add(_BLIND[name])
    if found:
        raise ModelError(
            "the attack on the gradient needs a network whose only straight pieces are ReLUs, which it replaces by "
            f"softplus; this one applies {', '.join(sorted(found))}"
        )


def _gradient_maps(prepared: nn.Module, x: Tensor, classes: Sequence[int], *, smooth: bool) -> tuple[Tensor, Tensor]:
    """Return gradient maps (n, H, W), each with the sum 1, and class scores; with a graph of their own if smooth."""
    with torch.enable_grad():
        source = x if smooth else x.detach().clone().requires_grad_(True)
        scores = followed(logits(prepared(source.clone())))
        if smooth:
            _check_smooth(scores)
        (gradient,) = torch.autograd.grad(own_scores(scores, classes).sum(), source, create_graph=smooth)
        sizes = saliency(gradient)
        total = sizes.sum((1, 2), keepdim=True)
        return sizes / total.clamp(min=torch.finfo(total.dtype).tiny), scores


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack has reached.

    Attributes:
        x: The changed inputs (N, C, H, W), as fed to the network. Where no change within the budget reached anything
            while the answer stayed, the input itself.
        before: What is driven down, for the input's gradient map of the network as it is (N,): for the goal "target"
            the squared distance from the target map, both with the sum 1; for "peaks" the share of the map's sum that
            its largest pixels hold.
        after: The same for the changed inputs (N,); never larger.
        probability: Largest change of a class probability (N,), from 0 to `TOLERANCE`.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    probability: Tensor


@torch.inference_mode(False)
def attack(
    model: nn.Module,
    x: Tensor,
    classes: Sequence[int],
    budget: Tensor,
    low: Tensor,
    high: Tensor,
    target: Tensor | None = None,
    steps: int = STEPS,
) -> Attacked:
    """Change inputs so that their gradient maps become others while their class and probabilities stay.

    Each step goes along the sign of a gradient, through softplus in place of ReLU (`SHARPNESS`): of what is driven down
    or, where the last step moved a probability by more than `TOLERANCE` or changed the class, of the squared change of
    the scores. Of all inputs on the way whose class is the same and whose probabilities moved by no more than that, the
    one whose gradient map, of the network as it is, went furthest counts.

    Args:
        model: Any network whose only straight pieces are ReLUs; it is left unchanged.
        x: Inputs (N, C, H, W), as fed to the network.
        classes: The class of each input whose score is explained.
        budget: Largest change of a pixel of each channel (C, 1, 1), as fed to the network.
        low: Smallest value of each channel (C, 1, 1).
        high: Largest value of each channel (C, 1, 1).
        target: Maps (N, H, W) that the gradient maps shall resemble, none negative or zero everywhere; None to take
            their size from the largest pixels (`resemblance.PEAKS`).
        steps: Steps.

    Raises:
        ModelError: The network has other straight pieces, or ReLUs that cannot be reached, or no such class scores.
        ScanError: x or classes have another shape, or the target maps.

    Source: Dombrowski et al., "Explanations can be manipulated and geometry is to blame" (2019), ch. 2 (target map,
    softplus); Ghorbani et al., "Interpretation of Neural Networks Is Fragile" (2019), alg. 1 (top-k; sign steps,
    budget in the largest norm).
    """
    x, prepared = ready(model, x, classes)
    if target is not None and (target.shape != (len(x), *x.shape[2:]) or bool((target < 0).any())):
        raise ScanError(f"target maps {tuple(target.shape)} do not fit the inputs {tuple(x.shape)}, or are negative")
    within, lowest, highest = (bound.to(x) for bound in (budget, low, high))
    parts = []
    for start in range(0, len(x), BATCH):
        chosen = slice(start, start + BATCH)
        aim = None if target is None else target[chosen].to(x)
        parts.append(_attack(prepared, x[chosen], classes[chosen], within, lowest, highest, aim, steps))
    return Attacked(*(torch.cat([getattr(part, name) for part in parts]) for name in Attacked.__dataclass_fields__))


def _attack(
    prepared: nn.Module,
    x: Tensor,
    classes: Sequence[int],
    budget: Tensor,
    low: Tensor,
    high: Tensor,
    target: Tensor | None,
    steps: int,
) -> Attacked:
    """Attack one batch; see `attack`."""
    maps, scores = _gradient_maps(prepared, x, classes, smooth=False)
    scores = scores.detach()
    answer, probabilities = scores.argmax(1), scores.softmax(1)
    if target is None:
        peaks = torch.zeros_like(maps).flatten(1)
        peaks = peaks.scatter_(1, ordered(maps)[:, : peak_count(maps)], 1.0).view_as(maps)
    else:
        aim = target / target.sum((1, 2), keepdim=True)

    def loss(found: Tensor) -> Tensor:
        return (found * peaks).sum((1, 2)) if target is None else (found - aim).square().sum((1, 2))

    before = loss(maps).detach()
    best, after, moved = x.clone(), before.clone(), torch.zeros_like(before)
    current, astray = x, torch.zeros_like(before, dtype=torch.bool)
    stride = 2.5 * budget / steps
    for beta in np.geomspace(*SHARPNESS, steps):
        source = current.detach().clone().requires_grad_(True)
        with _SmoothReLUs(float(beta)):
            found, _ = _gradient_maps(prepared, source, classes, smooth=True)
        with torch.enable_grad():
            answers_now = logits(prepared(source.clone()))
            back = (answers_now - scores).square().sum(1)
            total = torch.where(astray, back, loss(found)).sum()
            (gradient,) = torch.autograd.grad(total, source)
        current = current - stride * gradient.sign()
        current = torch.clamp(torch.clamp(current, x - budget, x + budget), low, high)
        found, reached = _gradient_maps(prepared, current, classes, smooth=False)
        change = (reached.softmax(1) - probabilities).abs().amax(1).detach()
        astray = (reached.argmax(1) != answer) | (change > TOLERANCE)
        reaches = loss(found).detach()
        better = ~astray & (reaches < after)
        best = torch.where(better[:, None, None, None], current, best)
        after, moved = torch.where(better, reaches, after), torch.where(better, change, moved)
    return Attacked(best, before, after, moved)


def border(x: Tensor) -> Tensor:
    """Return the target maps (N, H, W) of attacks: one on a frame as wide as an eighth of the shorter side, else zero.

    Nothing that a network explains lies there, and the target of an input does not depend on the others.
    """
    height, width = x.shape[2:]
    wide = max(1, min(height, width) // 8)
    maps = x.new_ones(height, width)
    maps[wide : height - wide, wide : width - wide] = 0
    return maps.expand(len(x), height, width)


def _by_chance(model: nn.Module, inputs: Inputs, budget: float) -> tuple[Tensor, Tensor]:
    """Return inputs with random signs of a size, the same for all, and the largest change of a class probability."""
    generator = torch.Generator().manual_seed(inputs.setting.seed)
    signs = torch.randint(0, 2, inputs.x.shape[1:], generator=generator).to(inputs.x) * 2 - 1
    x = torch.clamp(inputs.x + budget * inputs.range * signs, inputs.low, inputs.high)
    prepared = prepare(model)
    before, after = (class_scores(prepared, images).softmax(1) for images in (inputs.x, x))
    return x, (after - before).abs().amax(1)


def attack_scores(model: nn.Module, inputs: Inputs, methods: Iterable[Method], budget: float = BUDGET) -> pd.DataFrame:
    """Return how maps of all methods change on inputs that were changed to mislead the gradient map, for each input.

    Args:
        model: The model.
        inputs: The inputs.
        methods: The methods. Only the gradient map (`gradients.backpropagation`) is attacked; what others show on the
            same inputs tells how the attack transfers. One that needs a scan of the inputs is refused.
        budget: Largest change of a pixel, as a share of its channel's range.

    Returns:
        See `metrics.COLUMNS`; the metrics are `METRICS`, and `PREDICTION` in rows whose method is empty. The case is
        the goal of the attack, or `CHANCE`, beside which attacks have to stand. A model that cannot be attacked has
        rows without values, with the reason.
    """
    methods = list(methods)
    target = border(inputs.x)
    missing = np.full(len(inputs.samples), np.nan)
    try:
        found = {
            goal: attack(
                model, inputs.x, inputs.classes, budget * inputs.range, inputs.low, inputs.high,
                target if goal == "target" else None,
            )
            for goal in GOALS
        }  # fmt: skip
    except ModelError as error:
        refused = [Score(metric.name, missing, reason=str(error)) for metric in METRICS]
        rows = [frame(inputs.samples, method.name, refused) for method in methods]
        rows.append(frame(inputs.samples, "", [Score(PREDICTION.name, missing, reason=str(error))]))
        return pd.concat(rows, ignore_index=True)[list(COLUMNS)]

    reached: dict[str, tuple[Tensor, Tensor]] = {goal: (own.x, own.probability) for goal, own in found.items()}
    reached[CHANCE] = _by_chance(model, inputs, budget)

    def judge(method: Method) -> Iterator[Score]:
        maps = changed_maps(method, model, inputs.x, inputs)
        for goal, (x, _) in reached.items():
            after = changed_maps(method, model, x, inputs)
            yield Score("attack_rank", rank_correlation(maps, after), goal, UNDEFINED)
            yield Score("attack_peaks", shared_peaks(maps, after), goal, UNDEFINED)
            if goal != "peaks":
                grown = rank_correlation(after, target) - rank_correlation(maps, target)
                yield Score("attack_approach", grown, goal, UNDEFINED)

    changes = [Score(PREDICTION.name, moved.cpu().numpy(), goal) for goal, (_, moved) in reached.items()]
    parts = [judged(methods, inputs.samples, METRICS, judge), frame(inputs.samples, "", changes)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
