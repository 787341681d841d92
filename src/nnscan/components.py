"""Principal components of a filter's images over the samples: each sample becomes a point in the plane.

The points are what anomaly filters are looked for in (Dou Hui, doctoral slides, ch. 6; arXiv 2412.10457).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from tqdm import tqdm

from nnscan.artifacts import create_hdf5, open_hdf5
from nnscan.errors import DataError
from nnscan.limits import fixed_text, reading

if TYPE_CHECKING:
    from torch import Tensor, nn

Source = Literal["learning_images", "feature_maps"]

_BUFFER_BYTES = 256 * 2**20

_DIRECT = 250  # matrices of up to so many rows for each component are decomposed as they are
_BLOCKS = 40  # of the Krylov space; images of trained filters need 8 to 20
_ROUNDING = 1e-20  # of the squares: no more than this share is left of images that are all alike
_ANGLE = 1e-6  # between an eigenvector and its approximation
_PRODUCT = 2**19  # multiplications: OpenBLAS packs matrices of more than a million, which takes longer than multiplying

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Components(NamedTuple):
    eigenvalues: NDArray[np.float64]
    points: NDArray[np.float64]
    loadings: NDArray[np.float64]


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
    images always give the same points. Matrices with more than 250 rows and columns for each component are projected
    from a Krylov space, where that finds the components within an angle of 1e-6, and are decomposed where it does not.

    Args:
        images: (N, D), one flattened image per sample.
        count: Number of components. Those beyond the rank of the images are zero.

    Returns:
        The points (N, count), and each component's share of the variance (count,), in [0, 1]. Images that are all
        alike give zeros.

    Raises:
        DataError: The images are not a matrix with at least one row and column, or hold a value that is not finite.
    """
    with _thread_pools().limit(limits=1, user_api="blas"):  # several threads only wait for each other here
        return _project(np.asarray(images), count)


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
    found = in_threads(  # filter by filter, so that no second copy of all images exists
        lambda index: _project(_flat(values[:, index]), count), range(values.shape[1])
    )
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
        filter_found
        for group in _images_by_filter(model, x, layer, source, batch_size)
        for filter_found in in_threads(lambda values: (*_project(values, count), not values.any()), group)
    ]
    points, ratio, dead = zip(*found, strict=True)
    return FilterComponents(np.stack(points), np.stack(ratio), np.array(dead))


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return the function of each item, computed in as many threads as numpy's linear algebra may use.

    Each call has one thread of linear algebra to itself, so that its result does not depend on how many there are.
    """
    pools = _thread_pools()
    threads = min((pool["num_threads"] for pool in pools.select(user_api="blas").info()), default=1)
    with pools.limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as executor:
        return list(executor.map(function, items))


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def _project(images: NDArray[Any], count: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what `principal_components` returns, in the calling thread."""
    if images.ndim != 2 or 0 in images.shape:
        raise DataError(f"principal components need images of shape (samples, values), got {images.shape}")
    samples, width = images.shape
    points, ratio = np.zeros((samples, count)), np.zeros(count)
    mean = images.mean(axis=0, dtype=np.float64)
    centred = np.subtract(images, mean, dtype=np.float64, order="C")
    variance = float(np.vdot(centred, centred))
    if not np.isfinite(variance):
        raise DataError("principal components need finite images; these hold NaN or infinity")
    if variance <= _ROUNDING * np.vdot(mean, mean) and (images == images[0]).all():
        return points, ratio  # all alike; their mean may be off by rounding
    if variance == 0:
        return points, ratio
    kept = min(count, samples, width)
    found = _by_iteration(centred, kept, variance) if min(samples, width) > _DIRECT * count else None
    eigenvalues, projected, loadings = found or _by_decomposition(centred, kept)
    within_rank = eigenvalues > _rounding(centred) * eigenvalues[0]
    largest = np.abs(loadings).argmax(axis=0)
    signs = np.where(loadings[largest, np.arange(kept)] < 0, -1.0, 1.0)
    points[:, :kept] = np.where(within_rank, projected * signs, 0.0)
    ratio[:kept] = np.where(within_rank, eigenvalues / variance, 0.0)
    return points, ratio


def _rounding(centred: NDArray[np.float64]) -> float:
    """Return the share of the largest eigenvalue below which an eigenvalue is rounding, beyond the rank."""
    return float(min(centred.shape) * np.finfo(np.float64).eps)


def _by_decomposition(centred: NDArray[np.float64], count: int) -> _Components:
    """Return the largest eigenvalues of the scatter matrix (count,), the points (N, count), the loadings (D, count).

    The loadings may have any length.
    """
    by_samples = len(centred) <= centred.shape[1]
    scatter = centred @ centred.T if by_samples else centred.T @ centred
    size = len(scatter)
    eigenvalues, vectors = eigh(scatter, subset_by_index=[size - count, size - 1])
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    if not by_samples:
        return _Components(eigenvalues, centred @ vectors, vectors)
    projected = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return _Components(eigenvalues, projected, centred.T @ projected)


def _by_iteration(centred: NDArray[np.float64], count: int, variance: float) -> _Components | None:
    """Return what `_by_decomposition` returns, from a block Krylov space; None where that does not settle.

    The space grows from random images by products with the scatter matrix, which itself is never formed, and the
    eigenvectors are sought within it (G. Golub and R. Underwood, The block Lanczos method for computing eigenvalues,
    1977). A block holds more images than components are wanted: an eigenvalue that several eigenvectors share then
    shows up more than once, and `_settled` sees that nothing tells them apart.
    """
    width, block = centred.shape[1], 2 * count
    basis = np.empty((_BLOCKS * block, width))
    scatter = np.zeros((len(basis), len(basis)))  # within the space; its lower half
    added = np.linalg.qr(np.random.default_rng(0).standard_normal((width, block)))[0].T
    for size in range(block, len(basis) + 1, block):
        first = size - block
        basis[first:size] = added
        space = basis[:size]
        image = _scatter_product(centred, space[first:])
        scatter[first:size, :size] = image @ space.T
        image -= scatter[first:size, :size] @ space
        if size % (2 * block) == 0:  # looking after each step would cost more than it saves
            values, vectors = eigh(scatter[:size, :size], subset_by_index=[size - count - 1, size - 1])
            values, vectors = values[::-1], vectors[:, ::-1]
            residuals = np.linalg.norm(vectors[first:].T @ image, axis=1)
            if _settled(values, residuals, variance, _rounding(centred)):
                loadings = space.T @ vectors[:, :count]
                return _Components(values[:count], centred @ loadings, loadings)
        added = np.linalg.qr(image.T)[0].T
        added = added - (added @ space.T) @ space  # beyond the rank an image is rounding, along the space or not
        added = np.linalg.qr(added.T)[0].T
    return None


def _settled(
    eigenvalues: NDArray[np.float64], residuals: NDArray[np.float64], variance: float, rounding: float
) -> bool:
    """Say whether all approximate eigenpairs but the last, which they are compared with, are exact enough.

    An approximate eigenvector is off by an angle of at most its residual over the distance to the other eigenvalues.
    """
    remaining = variance - np.concatenate([[0.0], np.cumsum(eigenvalues[:-2])])  # of the variance, for each pair
    wanted = int((remaining > rounding * eigenvalues[0]).sum())  # the others are beyond the rank
    distance = -np.diff(eigenvalues[: wanted + 1]).max()
    return bool(residuals[:wanted].max() <= _ANGLE * distance and residuals[wanted] <= 0.1 * distance)


def _scatter_product(centred: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return images @ centred.T @ centred, (B, D), in slices that linear algebra multiplies without copying them."""
    rows = max(32, _PRODUCT // images.size)
    whole = len(centred) // rows * rows
    slices, rest = centred[:whole].reshape(-1, rows, centred.shape[1]), centred[whole:]
    product: NDArray[np.float64] = ((images @ slices.swapaxes(1, 2)) @ slices).sum(axis=0) + (images @ rest.T) @ rest
    return product


def _flat(images: NDArray[Any]) -> NDArray[Any]:
    """Return one filter's images (N, ...) as rows; (N, C, H, W) is summed over the channels, in float64."""
    return (images.sum(axis=1, dtype=np.float64) if images.ndim == 4 else images).reshape(len(images), -1)


def _images_by_filter(
    model: nn.Module, x: Tensor | NDArray[np.float32], layer: str | nn.Module, source: Source, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the images of some filters and all samples, group by group: (filters, N, H * W) or (filters, N, h * w)."""
    import torch

    from nnscan.models import capture, device_of, prepare, resolve_layer
    from nnscan.scanner import filter_images

    name = resolve_layer(model, layer)
    network = prepare(model)
    device = device_of(network)
    inputs = torch.as_tensor(x)

    def rectified_maps(batch: Tensor) -> Tensor:
        with torch.no_grad(), capture(network, [name]) as outputs:
            network(batch.clone())  # it may change its input in place
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
        yield buffer


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
        file.attrs["source"] = fixed_text(source)
        file["samples"] = samples
        group = file.create_group("layers", track_order=True)
        for layer, found in layer_components(model, x, layers, source):
            for name, values in found._asdict().items():
                data = group.create_dataset(f"{layer}/{name}", data=values)
                data.attrs["dimensions"] = _DIMENSIONS[name]
            file.check()


def layer_components(
    model: nn.Module, x: Tensor, layers: Sequence[str], source: Source
) -> Iterator[tuple[str, LayerComponents]]:
    """Yield each layer's name and what the anomaly search needs of it; arguments as of `write_components`."""
    for layer in tqdm(layers, desc="filters", unit="layer", mininterval=5):
        found = filter_image_components(model, x, layer, source=source)
        yield layer, LayerComponents(*found, mean_activation(model, x, layer))


def mean_activation(model: nn.Module, x: Tensor, layer: str, batch_size: int = 256) -> NDArray[np.float64]:
    """Return the mean of each filter's feature map for each sample, (N, K)."""
    import torch

    from nnscan.models import capture, device_of, evaluation

    parts = []
    with torch.no_grad(), evaluation(model), capture(model, [layer]) as outputs:
        for start in range(0, len(x), batch_size):
            model(x[start : start + batch_size].to(device_of(model), copy=True))
            maps = outputs[layer].relu()
            parts.append(maps.reshape(*maps.shape[:2], -1).mean(2).double().cpu().numpy())
    return np.concatenate(parts)


def read_components(path: str | Path) -> tuple[NDArray[np.int64], dict[str, LayerComponents]]:
    """Return the samples and, for each layer, the points of a file of `write_components`.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "components") as file, reading(path):
        layers = {
            layer: LayerComponents(**{name: group[name][()] for name in LayerComponents._fields})
            for layer, group in file["layers"].items()
        }
        return file["samples"][()], layers
