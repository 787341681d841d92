"""Whether a map depends on the model at all: sanity checks by random parameters and random labels.

A map that stays the same when the network forgets what it has learned does not show what it has learned (Adebayo et
al., "Sanity Checks for Saliency Maps", 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nnscan.artifacts import seed_of
from nnscan.errors import ModelError
from nnscan.explanations import Method
from nnscan.metrics import Inputs, Metric, Score, changed_maps, judged
from nnscan.models import device_of
from nnscan.resemblance import UNDEFINED, Values, rank_correlation, structure_correlation

STAGES = 4
"""Stages of the cascade at which maps are compared."""

ALL = "all"
"""Case of the cascade's last stage, at which every layer is random."""

_CASES = "the layer from which on, up to the output, all are random; 'all' for the whole network"

_KINDS = {
    "parameters": ("random parameters", "a network whose last layers are random", _CASES),
    "labels": ("random labels", "a network trained on shuffled labels", ""),
}
"""What is random: the title, the network that the maps are compared with, and what cases mean."""

_MEASURES = {
    "rank": (
        "rank correlation",
        "Size of Spearman's correlation of the signed map with that of {}; an inverted map depends as little on what "
        "the network learned as the same one.",
        0,
    ),
    "rank_size": (
        "rank correlation of sizes",
        "Size of Spearman's correlation of the map's absolute values with those of {}.",
        0,
    ),
    "ssim": (
        "SSIM of sizes",
        "SSIM of the map's absolute values, each map divided by its largest, and those of {}.",
        -1,
    ),
}
"""How maps are compared (`similarities`): the title, what it means and its smallest value."""

METRICS = tuple(
    Metric(
        name=f"{kind}_{measure}",
        title=f"{random}, {title}",
        question="sanity",
        direction="lower",
        low=low,
        high=1,
        paper="Adebayo et al., Sanity Checks",
        year=2018,
        meaning=meaning.format(network),
        cases=cases,
    )
    for kind, (random, network, cases) in _KINDS.items()
    for measure, (title, meaning, low) in _MEASURES.items()
)
"""The metrics of `sanity_scores`."""


def _stages(count: int, most: int) -> set[int]:
    """Return at which of the numbers 1 to `count` the cascade stops, at most so many, evenly, the last among them."""
    stages = min(most, count)
    return {round(count * part / stages) for part in range(1, stages + 1)}


@torch.inference_mode(False)
def randomised(model: nn.Module, seed: int, stages: int | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model in which more and more layers are as before training, from the last to the first.

    The layers are the modules with parameters of their own, in the order in which the model names them (the order of
    the forward pass in a network that is written down in that order). Each is initialised by its own
    `reset_parameters`, a normalisation with its running statistics. What is drawn for a layer depends on the seed and
    its name alone. The model and torch's global generators stay as they are.

    Args:
        model: Any network.
        seed: Seed of the draws.
        stages: Copies at most, evenly over the layers, the last with all of them random; None for one for each layer.

    Yields:
        The layer reached, and the copy, on the model's device.

    Raises:
        ModelError: The model has no parameters, or a module with parameters cannot initialise itself.

    Source: Adebayo et al. 2018, ch. 3.1, cascading randomization.
    """
    device, working = device_of(model), copy.deepcopy(model).cpu()
    layers = [(name, module) for name, module in working.named_modules() if module._parameters]
    if not layers:
        raise ModelError("the model has no parameters that could be random")
    chosen = _stages(len(layers), len(layers) if stages is None else stages)
    for number, (name, module) in enumerate(reversed(layers), start=1):
        _reset(name, module, seed)
        if number in chosen:
            yield name, copy.deepcopy(working).to(device)


def _reset(name: str, module: nn.Module, seed: int) -> None:
    """Initialise a module anew, from a seed of its own."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is None:
        raise ModelError(
            f"{name or 'the model'} ({type(module).__name__}) has parameters but no method reset_parameters that would "
            "make them random"
        )
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which reaches every GPU's generator
        torch.default_generator.manual_seed(seed_of(f"{seed} {name}".encode()))
        reset()


def similarities(first: Tensor, second: Tensor) -> dict[str, Values]:
    """Return how alike maps (N, H, W) of a network and of another are: rank (signed), rank_size and ssim (absolute).

    Of the correlations the size counts, from 0 to 1: a map that a random network inverts does not show what was
    learned, and images with opposite signs must not make up for each other.

    Source: Adebayo et al. 2018, ch. 3 (Spearman's rank correlation with and without absolute values, SSIM).
    """
    return {
        "rank": np.abs(rank_correlation(first, second)),
        "rank_size": np.abs(rank_correlation(first.abs(), second.abs())),
        "ssim": structure_correlation(first, second),
    }


def sanity_scores(
    model: nn.Module,
    inputs: Inputs,
    methods: Iterable[Method],
    shuffled: nn.Module | None = None,
    stages: int = STAGES,
) -> pd.DataFrame:
    """Return how alike the maps of a network and of one that knows nothing are, for each input.

    The class that is explained is the same in both networks.

    Args:
        model: The model.
        inputs: The inputs; the seed of their setting is also that of the random parameters.
        methods: The methods. One that needs a scan of the inputs is refused: it would have to be made for each network.
        shuffled: The same network trained on shuffled labels; without it there are no rows of random labels.
        stages: Stages of the cascade; see `randomised`.

    Returns:
        See `metrics.COLUMNS`; the metrics are `METRICS`. Cases come in the order of the cascade.

    A model whose parameters cannot be made random has rows of that without values, with the reason.
    """
    metrics = [metric for metric in METRICS if shuffled is not None or metric.name.startswith("parameters")]
    networks: list[tuple[str, str, nn.Module]] = []
    refused = ""
    try:
        networks += [("parameters", name, network) for name, network in randomised(model, inputs.setting.seed, stages)]
        networks[-1] = ("parameters", ALL, networks[-1][2])
    except ModelError as error:
        refused = str(error)
    if shuffled is not None:
        networks.append(("labels", "", shuffled))

    def judge(method: Method) -> Iterator[Score]:
        maps = changed_maps(method, model, inputs.x, inputs)
        if refused:
            for metric in metrics:
                if metric.name.startswith("parameters"):
                    yield Score(metric.name, np.full(len(maps), np.nan), reason=refused)
        for kind, case, network in networks:
            found = similarities(maps, changed_maps(method, network, inputs.x, inputs))
            for name, values in found.items():
                yield Score(f"{kind}_{name}", values, case, UNDEFINED)

    return judged(methods, inputs.samples, metrics, judge)
