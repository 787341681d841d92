"""Knowledge of neurons: how much the learning images of a layer hold, and how near they are to feature maps and inputs.

Dou Hui, doctoral slides, ch. 3. Four measures, each with what the slides leave open (docs/methods.md):

- *knowledge amount* of a layer: intensity `mean ||I_q||_1` and count `mean |supp(I_q)| / N` over active neurons q;
- *agreement* of filter k: `C^k = |S^k n I^k| / |I^k|` of its feature map S^k and its image `I^k = sum_ij |I^k_ij|`, and
  the IoU of the images of the two most activated filters;
- *distances* `||I_q(x) - x'||` of a neuron's images to their own samples (x' = x) and to others;
- *winning neuron*: the distances `||I_o - x||` of the images of all class scores o to the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from nnscan.models import capture, device_of, logits, network_layers, prepare
from nnscan.moments import SUPPORT, Moments, read_layers
from nnscan.scanner import learning_images

THRESHOLDS: Mapping[str, float] = {"above 5 %": 0.05, "above 0": 0.0}
"""A place belongs to a feature map or image when its value exceeds this share of the largest."""

VALUES = 2**24
"""Numbers in the images of class scores that are made together."""

Array = NDArray[np.float64]


def _on_grid(x: NDArray[np.floating], block: int) -> Array:
    """Return inputs (N, C, H, W), summed over channels and blocks of pixels, as the images of moments are: (N, P)."""
    count, _, height, width = x.shape
    tiled = x.sum(1, dtype=np.float64).reshape(count, height // block, block, width // block, block)
    summed: Array = tiled.sum((2, 4)).reshape(count, -1)
    return summed


def layer_knowledge(layers: Iterable[tuple[str, Moments]], x: NDArray[np.floating]) -> pd.DataFrame:
    """Return the knowledge amount of each layer.

    A neuron counts for the samples on which it is active: its value is positive, or it has no gate.

    Args:
        layers: Layer names and their moments, in depth order (`moments.read_layers`).
        x: The scanned inputs (N, C, H, W), in the order of the moments' samples.

    Returns:
        One row per layer: layer, depth, neurons; active (share of neurons, mean over samples); intensity (mean over
        active neurons and samples of ||I_q||_1, in units of the neuron's value), intensity_share (the same, as
        multiple of ||x||_1), count (mean of |supp(I_q)| / N, share of the pixels); input_count (|supp(x)| / N, mean
        over samples). The support is |I| > 0.001 max |I|. Where no neuron is active the means are NaN.

    Source: Dou Hui, doctoral slides, figure 3-8.
    """
    rows = [_knowledge(depth, layer, moments, x) for depth, (layer, moments) in enumerate(layers)]
    return pd.DataFrame(rows)


def _knowledge(depth: int, layer: str, moments: Moments, x: NDArray[np.floating]) -> dict[str, object]:
    """Return the row of a layer in `layer_knowledge`."""
    raw = {name: values.astype(np.float64) for name, values in moments.layers[layer].items()}
    active = (raw["activation"] > 0) | (raw["maximum"] > 0)
    size = np.abs(_on_grid(x, moments.block))
    input_size = np.broadcast_to(size.sum(1).reshape(-1, 1, 1, 1), active.shape)
    intensity = raw["total_foreground"] + raw["total_background"]
    count = (raw["count_foreground"] + raw["count_background"]) / moments.pixels

    def mean(values: Array) -> float:
        return float(values[active].mean()) if active.any() else float("nan")

    share = np.divide(intensity, input_size, out=np.zeros_like(intensity), where=input_size > 0)
    return {
        "layer": layer,
        "depth": depth,
        "neurons": active[0].size,
        "active": float(active.mean()),
        "intensity": mean(intensity),
        "intensity_share": mean(share),
        "count": mean(count),
        "input_count": float((size > SUPPORT * size.max(1, keepdims=True)).mean()),
    }


def _upsampled(maps: NDArray[np.floating], shape: tuple[int, int], block: int) -> Tensor:
    """Return maps (K, h, w), resized bilinearly to the input's pixels and averaged over blocks: (K, P)."""
    values = torch.from_numpy(maps.astype(np.float64))[None]
    pixels = (shape[0] * block, shape[1] * block)
    resized = nn.functional.interpolate(values, pixels, mode="bilinear", align_corners=False)
    return nn.functional.avg_pool2d(resized, block)[0].flatten(1)


def _sets(values: Tensor, threshold: float) -> Tensor:
    """Return which places of each row (K, P) exceed a share of the row's largest value, as 0 and 1."""
    return (values > threshold * values.amax(1, keepdim=True)).double()


def map_agreement(layers: Iterable[tuple[str, Moments]]) -> pd.DataFrame:
    """Return how well learning images and feature maps agree, and the images of the most activated filters.

    `S^k` is the feature map of filter k, resized bilinearly to the input; `I^k` the sum of the absolute images of its
    neurons. Filters without an image for a sample do not count for it, nor do layers whose maps have one place only.

    Args:
        layers: Layer names and their moments with absolute images, in depth order (`moments.read_layers`).

    Returns:
        One row per layer, sample and threshold: layer, depth, sample, binarised (`THRESHOLDS`), filters (with an
        image), agreement (C = |S n I| / |I|, mean over these filters), iou (|I_1 n I_2| / |I_1 u I_2| of the two of
        the highest mean activation), iou_any (mean over all pairs of filters). Each is in [0, 1]; NaN where there are
        too few filters.

    Source: Dou Hui, doctoral slides, tables 3-3 and 3-4.
    """
    rows = [row for depth, (layer, moments) in enumerate(layers) for row in _agreements(depth, layer, moments)]
    return pd.DataFrame(rows, columns=_AGREEMENT)


_AGREEMENT = ("layer", "depth", "sample", "binarised", "filters", "agreement", "iou", "iou_any")


def _agreements(depth: int, layer: str, moments: Moments) -> list[tuple[object, ...]]:
    """Return the rows of a layer in `map_agreement`."""
    feature_maps = np.maximum(moments.layers[layer]["activation"], 0)
    images = moments.absolute_images[layer]
    if feature_maps.shape[-2:] == (1, 1):
        return []
    rows: list[tuple[object, ...]] = []
    for sample, maps, own in zip(moments.samples.tolist(), feature_maps, images, strict=True):
        learned = np.flatnonzero(own.any((1, 2)))
        if not len(learned):
            rows += [(layer, depth, sample, name, 0, *[float("nan")] * 3) for name in THRESHOLDS]
            continue
        ranked = np.argsort(-maps[learned].mean((1, 2)), kind="stable").tolist()
        shown = _upsampled(maps[learned], (own.shape[1], own.shape[2]), moments.block)
        size = torch.from_numpy(own[learned].astype(np.float64)).flatten(1)
        for name, threshold in THRESHOLDS.items():
            seen, there = _sets(shown, threshold), _sets(size, threshold)
            agreement = float(((seen * there).sum(1) / there.sum(1)).mean())
            iou = iou_any = float("nan")
            if len(learned) > 1:
                both, area = there @ there.T, there.sum(1)
                overlap = both / (area[:, None] + area - both)
                pairs = torch.triu_indices(len(learned), len(learned), offset=1)
                iou, iou_any = float(overlap[ranked[0], ranked[1]]), float(overlap[pairs[0], pairs[1]].mean())
            rows.append((layer, depth, sample, name, len(learned), agreement, iou, iou_any))
    return rows


def scan_knowledge(
    paths: Sequence[str | Path], inputs: Callable[[NDArray[np.int64]], NDArray[np.floating]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `layer_knowledge` and `map_agreement` of the shards of a scan on disk, which is read once.

    Args:
        paths: The shards.
        inputs: Returns the scanned inputs (N, C, H, W) of sample identifiers (N,).
    """
    knowledge, agreement = [], []
    for depth, (layer, moments) in enumerate(read_layers(paths)):
        knowledge.append(_knowledge(depth, layer, moments, inputs(moments.samples)))
        agreement += _agreements(depth, layer, moments)
    return pd.DataFrame(knowledge), pd.DataFrame(agreement, columns=_AGREEMENT)


def _unit(images: Array) -> Array:
    """Scale each row (n, D) to unit L2 norm; zero stays zero."""
    norm = np.linalg.norm(images, axis=1, keepdims=True)
    scaled: Array = np.divide(images, norm, out=np.zeros_like(images), where=norm > 0)
    return scaled


def sample_distances(model: nn.Module, x: Tensor, neurons: int = 20, seed: int = 0) -> pd.DataFrame:
    """Return how far the learning images of neurons are from their own samples and from others.

    Of each layer, convolutional or linear, neurons are drawn from those that are active on two samples or more. A
    neuron counts for the samples for which it has an image; its image is compared with all samples.

    Args:
        model: The network.
        x: Inputs (N, C, H, W), two or more.
        neurons: How many neurons to draw from a layer.
        seed: Seed of the draw.

    Returns:
        One row per neuron: layer, depth (place among all layers), convolutional, neuron (flat index into the layer's
        map), samples (for which it has an image), own and other (mean L2 distance of its images to their own samples,
        and to the others, in the input's units), own_scaled and other_scaled (with images and samples scaled to unit
        L2 norm, in [0, 2]).

    Source: Dou Hui, doctoral slides, figure 3-9.
    """
    found, probe = network_layers(model, x), prepare(model)
    with torch.no_grad(), capture(probe, [layer.name for layer in found]) as outputs:
        probe(x.to(device_of(model), copy=True))
    inputs = x.double().flatten(1).cpu().numpy()
    generator = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    for depth, layer in enumerate(found):
        active = (outputs[layer.name].flatten(1) > 0).sum(0).cpu().numpy()
        able = np.flatnonzero(active > 1)
        chosen = np.sort(generator.choice(able, min(neurons, len(able)), replace=False))
        images = np.stack([learning_images(model, one, layer.name, chosen).flatten(1).cpu().numpy() for one in x])
        for position, neuron in enumerate(chosen.tolist()):
            own_images = images[:, position].astype(np.float64)
            learned = np.flatnonzero(own_images.any(1))
            if len(learned):
                raw = _own_and_other(own_images, inputs, learned)
                scaled = _own_and_other(_unit(own_images), _unit(inputs), learned)
                rows.append((layer.name, depth, layer.convolutional, neuron, len(learned), *raw, *scaled))
    columns = ["layer", "depth", "convolutional", "neuron", "samples", "own", "other", "own_scaled", "other_scaled"]
    return pd.DataFrame(rows, columns=columns)


def _own_and_other(images: Array, inputs: Array, learned: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean distances of the images of some samples to their own inputs and to the other inputs."""
    distances = cdist(images[learned], inputs)
    own = np.arange(len(inputs)) == learned[:, None]
    return float(distances[own].mean()), float(distances[~own].mean())


@torch.inference_mode(False)
def score_images(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class scores (N, classes) and their learning images (N, classes, C, H, W), without a gate.

    As `scanner.learning_images` for the output, but of many inputs: one backward pass for each class.

    Args:
        model: A network whose samples do not influence each other.
        x: Inputs (N, C, H, W).
    """
    source = x.detach().to(device_of(model), copy=True).requires_grad_(True)
    with torch.enable_grad():
        scores = logits(prepare(model)(source.clone()))
        gradients = [torch.autograd.grad(total, source, retain_graph=True)[0] for total in scores.sum(0)]
    return scores.detach(), torch.stack([source.detach() * gradient for gradient in gradients], 1)


def winning_neurons(model: nn.Module, x: Tensor) -> pd.DataFrame:
    """Return the distances of the learning images of the class scores to the input.

    Args:
        model: The network.
        x: Inputs (N, C, H, W).

    Returns:
        One row per input and class: sample (position in x), output (class), score, winner (whether its score is the
        highest), distance (L2 norm of I_o - x, in the input's units), distance_scaled (with both scaled to unit L2
        norm, in [0, 2]).

    Source: Dou Hui, doctoral slides, figure 3-10.
    """
    with torch.no_grad():
        classes = logits(prepare(model)(x[:1].to(device_of(model), copy=True))).shape[1]
    step = max(1, VALUES // (classes * x[0].numel()))
    frames = []
    for start in range(0, len(x), step):
        part = x[start : start + step]
        scores, images = score_images(model, part)
        count = len(part)
        learned = images.double().flatten(2).cpu().numpy()
        inputs = part.double().flatten(1).cpu().numpy()
        scaled = [_unit(own) - _unit(one[None]) for own, one in zip(learned, inputs, strict=True)]
        frames.append(
            pd.DataFrame(
                {
                    "sample": np.repeat(np.arange(start, start + count), classes),
                    "output": np.tile(np.arange(classes), count),
                    "score": scores.double().cpu().numpy().ravel(),
                    "winner": (np.arange(classes) == scores.argmax(1).cpu().numpy()[:, None]).ravel(),
                    "distance": np.linalg.norm(learned - inputs[:, None], axis=2).ravel(),
                    "distance_scaled": np.linalg.norm(scaled, axis=2).ravel(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
