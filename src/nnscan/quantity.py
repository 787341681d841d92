"""FQ, the feature quantity: how much of the input's foreground a neuron has learned.

Dou Hui, doctoral slides, ch. 4. With the input I, the learning image I_x of neuron x, the support M_x of that image and
the foreground M^f and background M^b of the input:

    I^fe = I M^f M_x      I^e = I_x M^f      I^n = I_x M^b
    l = 2 mu_fe mu_e / (mu_fe^2 + mu_e^2 + C1)       c = 2 sd_fe sd_e / (sd_fe^2 + sd_e^2 + C2)
    s = cov(fe, e) / (sd_fe sd_e + C3)
    F(I, x) = K(N_n / N) (N_e / N_f) (l c s),    FQ(x) = max over the inputs

The slides print l and c without the constant in the numerator, unlike SSIM; we follow the slides. Both images are
scaled to [0, 1] by minimum and maximum of their absolute values beforehand; statistics are taken over the whole image,
zeros included (docs/methods.md gives the reasons).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnscan.errors import NnscanError
from nnscan.moments import Moments, read_layers

C1 = 0.01**2
C2 = 0.03**2
C3 = C2 / 2

PARTS = ("l", "c", "s", "vf", "nf")
Noise = Literal["linear", "exponential"]
Form = Literal["printed", "ssim"]
Array = NDArray[np.float64]


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def luminance(mean_input: Array, mean_image: Array) -> Array:
    """Return the luminance comparison l in [0, 1]."""
    return 2 * mean_input * mean_image / (mean_input**2 + mean_image**2 + C1)


def contrast(deviation_input: Array, deviation_image: Array) -> Array:
    """Return the contrast comparison c in [0, 1]."""
    return 2 * deviation_input * deviation_image / (deviation_input**2 + deviation_image**2 + C2)


def structure(covariance: Array, deviation_input: Array, deviation_image: Array) -> Array:
    """Return the structure comparison s in (-1, 1)."""
    return covariance / (deviation_input * deviation_image + C3)


def structural_similarity(
    mean_input: Array, mean_image: Array, deviation_input: Array, deviation_image: Array, covariance: Array
) -> Array:
    """Return the SSIM index of two images from their statistics over the whole image, in [-1, 1].

    Unlike l, c and s as the slides print them it has the constants in its numerators too, so that two nearly blank
    images are similar.
    """
    numerator = (2 * mean_input * mean_image + C1) * (2 * covariance + C2)
    return numerator / ((mean_input**2 + mean_image**2 + C1) * (deviation_input**2 + deviation_image**2 + C2))


def noise_factor(noise_share: Array, noise: Noise = "linear") -> Array:
    """Return K of the share of noise pixels N_n / N: 1 without noise, falling with it.

    The slides write K without defining it. "linear" is 1 - r, "exponential" is exp(-r).
    """
    if noise == "linear":
        return 1 - noise_share
    if noise == "exponential":
        return np.exp(-noise_share)
    raise NnscanError(f"unknown noise factor {noise!r}; possible: linear, exponential")


class _Statistics(NamedTuple):
    """Statistics of the scaled I^fe ("input") and I^e ("image") over the whole image, each (N, K, h, w)."""

    mean_input: Array
    mean_image: Array
    deviation_input: Array
    deviation_image: Array
    covariance: Array


def _statistics(moments: Moments, layer: str) -> _Statistics:
    raw = {name: values.astype(np.float64) for name, values in moments.layers[layer].items()}
    pixels = moments.pixels
    foreground = moments.foreground_pixels.astype(np.float64).reshape(-1, 1, 1, 1)
    low, spread = raw["minimum"], raw["maximum"] - raw["minimum"]

    def scaled_total(total: Array, number: Array) -> Array:
        return _ratio(total - low * number, spread)

    mean_input = raw["input_total_foreground"] / pixels
    mean_image = scaled_total(raw["total_foreground"], foreground) / pixels
    square_image = _ratio(raw["square_foreground"] - 2 * low * raw["total_foreground"] + low**2 * foreground, spread**2)
    product = scaled_total(raw["cross_foreground"], raw["input_total_foreground"])
    deviation_input = np.sqrt(np.maximum(raw["input_square_foreground"] / pixels - mean_input**2, 0))
    deviation_image = np.sqrt(np.maximum(square_image / pixels - mean_image**2, 0))
    covariance = product / pixels - mean_input * mean_image
    return _Statistics(mean_input, mean_image, deviation_input, deviation_image, covariance)


def _check_form(form: Form) -> None:
    if form not in ("printed", "ssim"):
        raise NnscanError(f"unknown form {form!r} of a learning image's quality; possible: printed, ssim")


def quantity_parts(moments: Moments, layer: str, noise: Noise = "linear", form: Form = "printed") -> dict[str, Array]:
    """Return l, c, s, vf, nf, fq and ssim of every neuron and sample of a layer, each (N, K, h, w).

    Without foreground masks l, c and s compare with the whole input, and vf, nf and fq, which need a foreground, are
    NaN. A neuron without an image (its value is <= 0) has all parts 0 except nf, which is 1.
    """
    _check_form(form)
    found = _statistics(moments, layer)
    parts = {
        "l": luminance(found.mean_input, found.mean_image),
        "c": contrast(found.deviation_input, found.deviation_image),
        "s": structure(found.covariance, found.deviation_input, found.deviation_image),
    }
    ssim = structural_similarity(*found)
    parts.update(_shares(moments, layer, noise))
    if moments.masked:
        quality = ssim if form == "ssim" else parts["l"] * parts["c"] * parts["s"]
        # a negative covariance would make a quantity negative; it counts as nothing learned
        parts["fq"] = np.maximum(parts["nf"] * parts["vf"] * quality, 0)
    else:
        parts["fq"] = np.full_like(ssim, np.nan)
    # a neuron without an image has nothing to be compared
    parts["ssim"] = np.where(moments.layers[layer]["maximum"] > 0, ssim, 0)
    return parts


def _shares(moments: Moments, layer: str, noise: Noise) -> dict[str, Array]:
    """Return vf = N_e / N_f and nf = K(N_n / N), each (N, K, h, w); NaN without foreground masks."""
    arrays = moments.layers[layer]
    valid = arrays["count_foreground"].astype(np.float64)
    if not moments.masked:
        return {name: np.full_like(valid, np.nan) for name in ("vf", "nf")}
    foreground = moments.foreground_pixels.astype(np.float64).reshape(-1, 1, 1, 1)
    return {
        "vf": _ratio(valid, np.broadcast_to(foreground, valid.shape).copy()),
        "nf": noise_factor(arrays["count_background"].astype(np.float64) / moments.pixels, noise),
    }


def elements(moments: Moments, layer: str, noise: Noise = "linear", form: Form = "printed") -> dict[str, Array]:
    """Return the factors l, c, s, vf and nf whose product is F(I, x), each (N, K, h, w); see `quantity_parts`.

    In the form "ssim" l, c and s have the constants in their numerators too; their product is the SSIM index.
    """
    _check_form(form)
    found = _statistics(moments, layer)
    quality = {
        "l": luminance(found.mean_input, found.mean_image),
        "c": contrast(found.deviation_input, found.deviation_image),
        "s": structure(found.covariance, found.deviation_input, found.deviation_image),
    }
    if form == "ssim":
        quality["l"] += C1 / (found.mean_input**2 + found.mean_image**2 + C1)
        quality["c"] += C2 / (found.deviation_input**2 + found.deviation_image**2 + C2)
        quality["s"] += C3 / (found.deviation_input * found.deviation_image + C3)
    return {**quality, **_shares(moments, layer, noise)}


def feature_quantity(moments: Moments, noise: Noise = "linear", form: Form = "printed") -> pd.DataFrame:
    """Return the feature quantity of every neuron for every sample; FQ of a neuron is its maximum over samples.

    Args:
        moments: The result of a scan.
        noise: The noise factor K: "linear" (1 - r) or "exponential" (exp(-r)).
        form: The quality of an image: "printed", l c s as the slides print them; "ssim", the SSIM index, whose
            numerators have the constants too.

    Returns:
        One row per layer, neuron and sample with the columns layer, filter, row, column, sample, activation, l, c, s
        (similarity of image and foreground, each <= 1), vf = N_e / N_f and nf = K(N_n / N) in [0, 1], and
        fq = nf vf (l c s), or nf vf ssim, in [0, 1], negative values counted as 0; ssim in
        [-1, 1] beside them. Without foreground masks vf, nf and fq are NaN.

    Source: Dou Hui, doctoral slides, ch. 4 (feature quantity of a neuron).
    """
    frames = []
    for layer in moments.layers:
        part = moments.select(layer)
        frame = part.to_dataframe()[["layer", "filter", "row", "column", "sample", "activation"]]
        for name, values in quantity_parts(part, layer, noise, form).items():
            frame[name] = values.ravel()
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def neuron_quantity(
    layers: Iterable[tuple[str, Moments]], noise: Noise = "linear", form: Form = "printed"
) -> pd.DataFrame:
    """Return FQ of every neuron: the parts at the sample with the largest fq, layer by layer.

    Where there are no foreground masks, the sample is the one with the largest ssim.

    Args:
        layers: Layer names and their moments, in depth order (`moments.read_layers`).
        noise: See `feature_quantity`.
        form: See `feature_quantity`.

    Returns:
        One row per neuron: layer, depth, filter, row, column, l, c, s, vf, nf, fq, ssim, sample, activation (at that
        sample), fq_mean (over samples), active (share of samples with value > 0), negative (share of samples whose
        covariance is negative), correlation (Pearson's r of activation and fq over samples, NaN where constant). Where
        samples have the same score, 0 above all, the one of the highest activation is taken.
    """
    frames = [_neurons(depth, layer, moments, noise, form) for depth, (layer, moments) in enumerate(layers)]
    return pd.concat(frames, ignore_index=True)


def _neurons(depth: int, layer: str, moments: Moments, noise: Noise, form: Form) -> pd.DataFrame:
    """Return the rows of a layer in `neuron_quantity`."""
    parts = quantity_parts(moments, layer, noise, form)
    activation = moments.layers[layer]["activation"].astype(np.float64)
    score = parts["fq"] if moments.masked else parts["ssim"]
    best = _strongest(score, activation)
    _, filters, row, column = (index.ravel() for index in np.indices(best.shape))
    return pd.DataFrame(
        {
            "layer": layer,
            "depth": depth,
            "filter": filters,
            "row": row,
            "column": column,
            **{name: np.take_along_axis(values, best, 0).ravel() for name, values in parts.items()},
            "sample": moments.samples[best.ravel()],
            "activation": np.take_along_axis(activation, best, 0).ravel(),
            "fq_mean": parts["fq"].mean(0).ravel(),
            "active": (activation > 0).mean(0).ravel(),
            "negative": (parts["s"] < 0).mean(0).ravel(),
            "correlation": _correlation(np.maximum(activation, 0), parts["fq"]).ravel(),
        }
    )


def layer_quantity(
    layers: Iterable[tuple[str, Moments]], noise: Noise = "linear", form: Form = "printed"
) -> pd.DataFrame:
    """Return mean, variance and correlation with the activation of each layer's FQ, whole and without each element.

    Without an element, F(I, x) is the product of the other four, and FQ(x) its maximum over the samples: the sample
    may be another one than that of the whole FQ.

    Args:
        layers: Layer names and their moments, in depth order (`moments.read_layers`).
        noise: See `feature_quantity`.
        form: See `feature_quantity`.

    Returns:
        One row per layer and element left out: layer, depth, places (of a filter's map), without ("" for the whole FQ,
        or l, c, s, vf, nf), mean and variance (population form) of FQ over the layer's neurons, correlation (Pearson's
        r over the neurons of FQ and the ReLU of the activation at the sample that FQ is taken from),
        correlation_active (r over the neurons that are active at that sample). All measures are NaN without foreground
        masks; r is NaN where a side is constant.

    Source: Dou Hui, doctoral slides, figures 4-3, 4-4 and 4-5.
    """
    frames = [_layer(depth, layer, moments, noise, form) for depth, (layer, moments) in enumerate(layers)]
    return pd.concat(frames, ignore_index=True)


def _layer(depth: int, layer: str, moments: Moments, noise: Noise, form: Form) -> pd.DataFrame:
    """Return the rows of a layer in `layer_quantity`."""
    arrays = moments.layers[layer]
    factors = elements(moments, layer, noise, form)
    activation = np.maximum(arrays["activation"].astype(np.float64), 0)
    blank = arrays["maximum"] == 0  # I_x = 0 has F = 0, whatever is left of the product
    rows = []
    for without in ("", *PARTS):
        product = math.prod(factor for name, factor in factors.items() if name != without)
        quantity = np.maximum(np.where(blank, 0 * product, product), 0)
        best = _strongest(quantity, activation)
        learned = np.take_along_axis(quantity, best, 0).ravel()
        active = np.take_along_axis(activation, best, 0).ravel()
        on = active > 0
        correlations = (_correlation(active, learned), _correlation(active[on], learned[on]))
        places = best.shape[-2] * best.shape[-1]
        rows.append((layer, depth, places, without, learned.mean(), learned.var(), *map(float, correlations)))
    columns = ["layer", "depth", "places", "without", "mean", "variance", "correlation", "correlation_active"]
    return pd.DataFrame(rows, columns=columns)


def _strongest(score: Array, activation: Array) -> NDArray[np.intp]:
    """Return the sample (1, ...) of the highest score, of equal ones that of the highest activation.

    Neurons that never see foreground have the score 0 on all samples, and must not hang on which one comes first.
    """
    best: NDArray[np.intp] = np.where(score == score.max(0), activation, -np.inf).argmax(0)[None]
    return best


def _correlation(a: Array, b: Array) -> Array:
    """Return Pearson's r along the first axis; NaN where one side is constant or there is nothing."""
    if not len(a):
        return np.full(a.shape[1:], np.nan)
    varies = (np.ptp(a, 0) > 0) & (np.ptp(b, 0) > 0)  # the mean of equal values need not equal them in floating point
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    correlation: Array = np.divide((a * b).sum(0), scale, out=np.full_like(scale, np.nan), where=varies & (scale > 0))
    return correlation


def scan_quantity(
    paths: Sequence[str | Path], noise: Noise = "linear", form: Form = "printed"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `neuron_quantity` and `layer_quantity` of the shards of a scan on disk, which is read once."""
    neurons, layers = [], []
    for depth, (layer, moments) in enumerate(read_layers(paths, images=False)):
        neurons.append(_neurons(depth, layer, moments, noise, form))
        layers.append(_layer(depth, layer, moments, noise, form))
    return pd.concat(neurons, ignore_index=True), pd.concat(layers, ignore_index=True)


def knee(values: Array) -> float:
    """Return the value at the knee of an increasing curve: the point furthest below the line between its ends."""
    values = np.sort(values)
    if len(values) < 3 or values[-1] == values[0]:
        return float(values[-1])
    position = np.linspace(0, 1, len(values))
    height = (values - values[0]) / (values[-1] - values[0])
    return float(values[np.argmax(position - height)])


def diversity(quantities: pd.DataFrame, neighbours: int = 5, parts: Sequence[str] = PARTS) -> pd.DataFrame:
    """Return how many kinds of neurons each filter has: the clusters that DBSCAN finds among its neurons.

    A neuron is described by (l, c, s, vf, nf). The radius eps is the knee of the sorted positive distances to the
    fifth neighbour, one for the whole layer.

    Args:
        quantities: The result of `neuron_quantity`.
        neighbours: min_samples of DBSCAN.
        parts: What describes a neuron.

    Returns:
        One row per filter: layer, depth, filter, neurons, clusters (noise excluded), noise (neurons), eps. Filters
        of a scan without foreground masks are described by (l, c, s) alone.

    Source: Dou Hui, doctoral slides, ch. 4, analysis 3; features and parameters are our reading (docs/methods.md).
    """
    from sklearn.cluster import DBSCAN  # takes half a second, which other jobs need not wait

    rows = []
    for (depth, layer), frame in quantities.groupby(["depth", "layer"], sort=True):
        described = [part for part in parts if frame[part].notna().all()]
        groups = [(number, group[described].to_numpy(np.float64)) for number, group in frame.groupby("filter")]
        distances = [
            np.asarray(cKDTree(points).query(points, k=neighbours + 1)[0])[:, -1]
            for _, points in groups
            if len(points) > neighbours
        ]
        pooled = np.concatenate(distances) if distances else np.empty(0)
        # dead neurons coincide; left in, their zeros would put the knee at 0 as soon as they are many
        eps = knee(pooled[pooled > 0]) if (pooled > 0).any() else 0.0
        for number, points in groups:
            clusters, noise = 0, len(points)
            if eps > 0:
                labels = DBSCAN(eps=eps, min_samples=neighbours).fit_predict(points)
                clusters, noise = int(labels.max() + 1), int((labels == -1).sum())
            elif len(points) > neighbours:  # all neurons of the layer coincide with their neighbours
                clusters, noise = len(np.unique(points, axis=0)), 0
            rows.append((layer, depth, number, len(points), clusters, noise, eps))
    return pd.DataFrame(rows, columns=["layer", "depth", "filter", "neurons", "clusters", "noise", "eps"])


def diversity_ablation(quantities: pd.DataFrame, neighbours: int = 5) -> pd.DataFrame:
    """Return `diversity` with each element of FQ left out of the description of the neurons in turn.

    Args:
        quantities: The result of `neuron_quantity`.
        neighbours: See `diversity`.

    Returns:
        One row per filter and element left out: without (l, c, s, vf or nf), then the columns of `diversity`. An
        element that the scan does not have, vf and nf without foreground masks, cannot be left out and has no rows.

    Source: Dou Hui, doctoral slides, table 4-4; what is left out of what is our reading (docs/methods.md).
    """
    frames = []
    for without in (part for part in PARTS if quantities[part].notna().all()):
        frame = diversity(quantities, neighbours, [part for part in PARTS if part != without])
        frame.insert(0, "without", without)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
