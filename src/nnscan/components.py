"""Principal components of a filter's images over the samples: each sample becomes a point in the plane.

The points are what anomaly filters are looked for in (Dou Hui, doctoral slides, ch. 6; arXiv 2412.10457).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from tqdm import tqdm

from nnscan.artifacts import create_hdf5, open_hdf5
from nnscan.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

Source = Literal["learning_images", "feature_maps"]

_BUFFER_BYTES = 256 * 2**20


class FilterComponents(NamedTuple):
    """The samples of every filter as points.

    Attributes:
        points: (K, N, count), float64.
        ratio: (K, count), each component's share of the variance.
        dead: (K,), whether a filter's images are zero for every sample.
    """

    points: NDArray[np.float64]
    ratio: NDArray[np.float64]
    dead: NDArray[np.bool_]


def principal_components(images: ArrayLike, count: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project samples onto their first principal components: centred, not whitened.

    The sign of each component is the one that makes its loading of largest magnitude positive, so that the same
    images always give the same points.

    Args:
        images: (N, D), one flattened image per sample.
        count: Number of components. Those beyond the rank of the images are zero.

    Returns:
        The points (N, count), and each component's share of the variance (count,), in [0, 1]. Images that are all
        alike give zeros.

    Raises:
        DataError: The images are not a matrix with at least one row and column, or hold a value that is not finite.
    """
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"principal components need images of shape (samples, values), got {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("principal components need finite images; these hold NaN or infinity")
    samples, width = values.shape
    points, ratio = np.zeros((samples, count)), np.zeros(count)
    if (values == values[0]).all():  # the rounding of the mean would leave noise instead of zero
        return points, ratio
    centred = values - values.mean(axis=0)
    kept = min(count, samples, width)
    by_samples = samples <= width
    scatter = centred @ centred.T if by_samples else centred.T @ centred
    size = len(scatter)
    with _thread_pools().limit(limits=1, user_api="blas"):  # several threads only wait for each other here
        eigenvalues, vectors = eigh(scatter, subset_by_index=[size - kept, size - 1])
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    # Beyond the rank the eigenvalues are rounding of the largest one.
    eigenvalues = np.where(eigenvalues > size * np.finfo(np.float64).eps * eigenvalues[0], eigenvalues, 0.0)
    if by_samples:
        projected = vectors * np.sqrt(eigenvalues)
        loadings = centred.T @ projected
    else:
        loadings = vectors
        projected = np.where(eigenvalues > 0, centred @ vectors, 0.0)
    largest = np.abs(loadings).argmax(axis=0)
    points[:, :kept] = projected * np.where(loadings[largest, np.arange(kept)] < 0, -1.0, 1.0)
    ratio[:kept] = eigenvalues / np.trace(scatter)
    return points, ratio


def filter_components(images: ArrayLike, count: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project the samples of every filter onto that filter's own principal components.

    Args:
        images: (N, K, C, H, W) filter images, which are summed over their channels first, or (N, K, ...) anything
            else, for example feature maps (N, K, h, w).
        count: Number of components.

    Returns:
        The points (K, N, count) and the shares of the variance (K, count).

    Raises:
        DataError: There is no filter axis, or a value is not finite.
    """
    values = np.asarray(images)
    if values.ndim < 3 or 0 in values.shape:
        raise DataError(f"filter components need images of shape (samples, filters, ...), got {values.shape}")
    found = [
        principal_components(_flat(values[:, index]), count) for index in range(values.shape[1])
    ]  # one filter at a time, so that no second copy of all images exists
    return np.stack([points for points, _ in found]), np.stack([ratio for _, ratio in found])


def filter_image_components(
    model: nn.Module,
    x: Tensor | NDArray[np.float32],
    layer: str | nn.Module,
    count: int = 2,
    source: Source = "learning_images",
    batch_size: int = 64,
) -> FilterComponents:
    """Compute the images of a layer's filters and project them, a few filters at a time.

    The images of all filters over all samples never exist together: the filters come in groups whose images fit
    into a buffer of 256 MiB (one filter at least).

    Args:
        model: The network.
        x: (N, C, H, W) samples as fed to the network.
        layer: The layer, whose output is the neurons' value before their ReLU.
        count: Number of components.
        source: "learning_images": each filter's image L = sum_ij I_ij f_ij, summed over its channels (the slides);
            "feature_maps": its feature map f, the rectified output of the layer (arXiv 2412.10457).
        batch_size: Samples per pass of the network.

    Returns:
        Points, shares of the variance, and which filters are dead on these samples.

    Raises:
        LayerError: The model has no such layer.
        DataError: A value is not finite.
    """
    found = [
        (*principal_components(values, count), not values.any())
        for values in _images_by_filter(model, x, layer, source, batch_size)
    ]
    points, ratio, dead = zip(*found, strict=True)
    return FilterComponents(np.stack(points), np.stack(ratio), np.array(dead))


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def _flat(images: NDArray[Any]) -> NDArray[np.float64]:
    """Return one filter's images (N, ...) as float64 rows; (N, C, H, W) is summed over the channels."""
    if images.ndim == 4:
        images = images.sum(axis=1, dtype=np.float64)
    flat: NDArray[np.float64] = images.reshape(len(images), -1).astype(np.float64)
    return flat


def _images_by_filter(
    model: nn.Module, x: Tensor | NDArray[np.float32], layer: str | nn.Module, source: Source, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield each filter's images of all samples, flattened: (N, H * W) or (N, h * w)."""
    import torch

    from nnscan.models import capture, device_of, prepare, resolve_layer
    from nnscan.scanner import filter_images

    name = resolve_layer(model, layer)
    network = prepare(model)
    device = device_of(network)
    inputs = torch.as_tensor(x)

    def rectified_maps(batch: Tensor) -> Tensor:
        with torch.no_grad(), capture(network, [name]) as outputs:
            network(batch)
        return outputs[name].relu().flatten(2) if outputs[name].ndim > 2 else outputs[name].relu().unsqueeze(2)

    def images(batch: Tensor, filters: Sequence[int]) -> Tensor:
        if source == "feature_maps":
            return rectified_maps(batch)[:, filters]
        return filter_images(network, batch, name, filters).sum(dim=2).flatten(2)

    probe = rectified_maps(inputs[:1].to(device))
    filter_count, positions = probe.shape[1:]
    width = positions if source == "feature_maps" else inputs[0, 0].numel()
    together = max(1, _BUFFER_BYTES // (len(inputs) * width * 4))
    for first in range(0, filter_count, together):
        filters = list(range(first, min(first + together, filter_count)))
        buffer = np.empty((len(filters), len(inputs), width), dtype=np.float32)
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size].to(device)
            found = images(batch, filters).detach().cpu().numpy()
            buffer[:, start : start + len(batch)] = found.swapaxes(0, 1)
        yield from buffer


class LayerComponents(NamedTuple):
    """What the anomaly search needs of one layer.

    Attributes:
        points: Samples of each filter on its components (K, N, 2).
        ratio: Each component's share of the variance (K, 2).
        dead: Filters whose images are zero for every sample (K,).
        activation: Mean of the feature map of each sample and filter (N, K).
    """

    points: NDArray[np.float64]
    ratio: NDArray[np.float64]
    dead: NDArray[np.bool_]
    activation: NDArray[np.float64]


_DIMENSIONS = {"points": "filter sample component", "ratio": "filter component", "dead": "filter",
               "activation": "sample filter"}  # fmt: skip


def write_components(
    path: str | Path,
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    samples: NDArray[np.int64],
    source: Source,
    origin: Mapping[str, str],
) -> None:
    """Project the filter images of several layers and write the points to one HDF5 file.

    Args:
        path: The file.
        model: The network.
        x: (N, C, H, W) samples as fed to the network.
        layers: The layers, in order of depth.
        samples: Identifiers of the samples (N,).
        source: "learning_images" or "feature_maps".
        origin: Provenance.
    """
    with create_hdf5(path, "components", origin) as file:
        file.attrs["source"] = source
        file["samples"] = samples
        group = file.create_group("layers", track_order=True)
        for layer in tqdm(layers, desc="filters", unit="layer", mininterval=5):
            found = LayerComponents(
                *filter_image_components(model, x, layer, source=source), mean_activation(model, x, layer)
            )
            for name, values in found._asdict().items():
                data = group.create_dataset(f"{layer}/{name}", data=values)
                data.attrs["dimensions"] = _DIMENSIONS[name]


def mean_activation(model: nn.Module, x: Tensor, layer: str, batch_size: int = 256) -> NDArray[np.float64]:
    """Return the mean of each filter's feature map for each sample, (N, K)."""
    import torch

    from nnscan.models import capture, device_of, evaluation

    parts = []
    with torch.no_grad(), evaluation(model), capture(model, [layer]) as outputs:
        for start in range(0, len(x), batch_size):
            model(x[start : start + batch_size].to(device_of(model)))
            maps = outputs[layer].relu()
            parts.append(maps.reshape(*maps.shape[:2], -1).mean(2).double().cpu().numpy())
    return np.concatenate(parts)


def read_components(path: str | Path) -> tuple[NDArray[np.int64], dict[str, LayerComponents]]:
    """Return the samples and, for each layer, the points of a file of `write_components`.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "components") as file:
        layers = {
            layer: LayerComponents(**{name: group[name][()] for name in LayerComponents._fields})
            for layer, group in file["layers"].items()
        }
        return file["samples"][()], layers
