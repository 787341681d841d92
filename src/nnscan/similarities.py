"""Similarity values: how much of a class's average image a filter takes up.

Wang Xinyuan, bachelor's thesis, ch. 3.3. For the average image I_i of class i and filter k of layer j, `omega_ijk` is
the filter's guided-backpropagation image. Method 1 compares it with the average image itself, method 2 with the
guided-backpropagation image phi_i of the class score, both by the cosine; a zero image has the similarity 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.averages import confidences
from nnscan.backprop import guided_batches, guided_scores
from nnscan.errors import ConfigurationError, DataError, ModelError
from nnscan.models import capture, device_of, logits, neuron_layers, prepare, resolve_layer

METHODS = (1, 2)


def cosine(references: Tensor, images: Tensor) -> Tensor:
    """Return the cosines between references (n, C, H, W) and images (n, k, C, H, W) of the same sample.

    Returns:
        Cosines (n, k), float64, -1 to 1; 0 where either is a zero image.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.3, eqs 3-3 and 3-6.
    """
    first = references.double().flatten(1)
    second = images.double().flatten(2)
    products = torch.einsum("nd,nkd->nk", first, second)
    norms = first.norm(dim=1, keepdim=True) * second.norm(dim=2)
    return (products / torch.where(norms == 0, 1, norms)).clamp(-1, 1)  # rounding may exceed 1


def layers_of(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[dict[str, int], dict[str, bool]]:
    """Return each layer's number of filters, and whether a ReLU follows it: not if it gives the class scores."""
    prepared = prepare(model)
    with torch.no_grad(), capture(prepared, layers) as outputs:
        scores = logits(prepared(x.clone()))
    return (
        {layer: output.shape[1] for layer, output in outputs.items()},
        {layer: layer not in outputs or not torch.equal(outputs[layer], scores) for layer in layers},
    )


@torch.inference_mode(False)
def _values(
    model: nn.Module, averages: Tensor, layers: Sequence[str | nn.Module] | None, methods: Sequence[int]
) -> pd.DataFrame:
    """Return the similarity values of all asked methods; the filters' images are computed once."""
    x = torch.as_tensor(averages).detach().to(device_of(model))
    if x.ndim != 4 or not len(x) or not x.is_floating_point():
        raise DataError(f"expected floating-point averages (n_classes, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    if layers is not None and not len(layers):
        raise DataError("an empty list of layers was given; name at least one, or give none for the default ones")
    chosen = neuron_layers(model, x) if layers is None else [resolve_layer(model, layer) for layer in layers]
    references = {method: x if method == 1 else guided_scores(model, x, range(len(x))) for method in methods}
    filters, rectified = layers_of(model, x[:1], chosen)
    values = {  # zero for what is left out below: a filter that is not active has a zero image
        layer: torch.zeros((len(methods), len(x), count), dtype=torch.float64, device=x.device)
        for layer, count in filters.items()
    }
    for layer, samples, positions, images in guided_batches(model, x, rectified):
        for row, reference in enumerate(references.values()):
            cosines = cosine(reference[samples], images[:, None])[:, 0]
            if not bool(torch.isfinite(cosines).all()):
                raise ModelError(f"the images of layer {layer!r} are not finite; check the weights and the averages")
            values[layer][row, samples, positions] = cosines
    parts = []
    for depth, layer in enumerate(chosen):
        index = pd.MultiIndex.from_product(
            [methods, range(len(x)), range(filters[layer])], names=["method", "class", "filter"]
        )
        part = pd.DataFrame({"similarity": values[layer].flatten().cpu().numpy()}, index=index).reset_index()
        parts.append(part.assign(layer=layer, depth=depth))
    frame = pd.concat(parts, ignore_index=True)[["method", "class", "layer", "depth", "filter", "similarity"]]
    return frame.sort_values(["method", "class", "depth", "filter"], ignore_index=True)


def similarity(
    model: nn.Module,
    class_averages: Tensor,
    layers: Sequence[str | nn.Module] | None = None,
    method: int = 1,
) -> pd.DataFrame:
    """Return the similarity value of every filter with every class average.

    Args:
        model: A network whose only activation is ReLU; it is left unchanged.
        class_averages: Average images (n_classes, C, H, W), as fed to the network; row i belongs to output unit i.
        layers: Layers by name or module; None for those that are scanned by default (`nnscan.models.neuron_layers`).
        method: 1: cosine of the filter's image with the average image; 2: with the image of the class score.

    Returns:
        One row per class (0 to n_classes - 1), layer and filter; `similarity` from -1 to 1, 0 for a zero image.

    Raises:
        ConfigurationError: The method is neither 1 nor 2.
        DataError: The averages have another shape.
        LayerError: The model has no such layer.
        ModelError: The model has activations other than ReLU or too few outputs, or values are not finite.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.3, eqs 3-2 to 3-6.
    """
    if method not in METHODS:
        raise ConfigurationError(f"similarity method {method!r} does not exist; choose 1 (average) or 2 (class score)")
    return _values(model, class_averages, layers, [method])[["class", "layer", "filter", "similarity"]]


def similarities(
    model: nn.Module, averages: Mapping[str, Tensor], layers: Sequence[str | nn.Module] | None = None
) -> pd.DataFrame:
    """Return the similarity values by both methods for each kind of class average.

    Args:
        model: A network whose only activation is ReLU; it is left unchanged.
        averages: Averages (n_classes, C, H, W) by kind, as `nnscan.averages.read_averages` returns them. The kind
            "ascended" is left out: it holds the network's own information and is for reference only (ch. 3.2.3).
        layers: See `similarity`.

    Returns:
        Columns average (the kind), method (1, 2), class, layer, depth (position among the layers, from 0), filter,
        similarity.

    Raises:
        DataError: No kind of average is left, or averages have another shape.
        LayerError: The model has no such layer.
        ModelError: See `similarity`.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.3 and 4.3.
    """
    kinds = [kind for kind in averages if kind != "ascended"]
    if not kinds:
        raise DataError(f"no class averages to compare with among {list(averages)}; give simple, most or least")
    parts = [_values(model, averages[kind], layers, METHODS).assign(average=kind) for kind in kinds]
    frame = pd.concat(parts, ignore_index=True)
    return frame[["average", "method", "class", "layer", "depth", "filter", "similarity"]]


def filter_similarity(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean similarity value over the classes, by which filters are ranked for pruning.

    Args:
        frame: A table of `similarity` or `similarities`; what else it distinguishes is kept apart.

    Returns:
        One row per layer and filter (and kind of average and method where given), in the frame's order.

    Source: Wang Xinyuan, bachelor's thesis, ch. 5.2.
    """
    keys = [column for column in frame.columns if column not in ("class", "similarity")]
    return frame.groupby(keys, sort=False, observed=True)["similarity"].mean().reset_index()


def layer_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over the filters of each layer, for each class.

    Args:
        frame: A table of `similarity` or `similarities`; what else it distinguishes is kept apart.

    Returns:
        One row per class and layer with columns mean and sd, in the frame's order. The filters are all there are, so
        sd is the population's.

    Source: Wang Xinyuan, bachelor's thesis, ch. 4.3.2 (figs 4-18 to 4-23).
    """
    keys = [column for column in frame.columns if column not in ("filter", "similarity")]
    groups = frame.groupby(keys, sort=False, observed=True)["similarity"]
    return pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=0)}).reset_index()


def seed_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the similarity curves of each class, means over the seeds.

    Args:
        frame: The tables of `similarities` of all seeds, with the column seed.

    Returns:
        One row per average, method, class and layer: mean and sd over the layer's filters (`layer_curves`), sorted by
        class and depth.
    """
    keys = ["average", "method", "class", "layer", "depth"]
    curves = layer_curves(frame).groupby(keys, sort=False, observed=True)[["mean", "sd"]].mean().reset_index()
    return curves.sort_values(["method", "class", "depth"], kind="stable", ignore_index=True)


def chosen_similarities(frame: pd.DataFrame, method: int) -> pd.DataFrame:
    """Return the values of `similarities` that rank neurons and layers: of simple averages and one method."""
    return frame[(frame["average"] == "simple") & (frame["method"] == method)]


def mean_curve(frame: pd.DataFrame) -> list[float]:
    """Return the mean similarity of each layer over filters and classes, in order of depth."""
    curve = frame.groupby("depth")["similarity"].mean().sort_index()
    return [float(value) for value in curve]


def class_results(
    model: nn.Module,
    x: Tensor,
    y: NDArray[np.int64],
    classes: Sequence[str],
    matrices: Mapping[str, NDArray[np.float64]],
) -> pd.DataFrame:
    """Return for each class how often it is recognised, and what the network makes of its average images.

    Args:
        model: A classifier; it is left unchanged.
        x: Held-out inputs (N, C, H, W), as fed to the network.
        y: Labels (N,).
        classes: Class names.
        matrices: Confidence matrices (n_classes, n_classes) by kind of average (`averages.read_confidences`).

    Returns:
        One row per class: class (number), name, samples, accuracy (0 to 1; NaN without a sample), and for each kind of
        average confidence_<kind> (0 to 1, that it belongs to its class) and recognised_<kind> (whether its class has
        the highest confidence).

    Source: Wang Xinyuan, bachelor's thesis, table 4-2 and figs 3-12 to 3-14 and 4-9 to 4-11.
    """
    right = confidences(model, x).argmax(1).numpy() == y
    members = [y == number for number in range(len(classes))]
    frame = pd.DataFrame(
        {
            "class": range(len(classes)),
            "name": list(classes),
            "samples": [int(own.sum()) for own in members],
            "accuracy": [float(right[own].mean()) if own.any() else float("nan") for own in members],
        }
    )
    for kind, matrix in matrices.items():
        frame[f"confidence_{kind}"] = matrix.diagonal()
        frame[f"recognised_{kind}"] = matrix.argmax(1) == np.arange(len(classes))
    return frame
