"""Class-average images: one picture that stands for a class, the yardstick of the similarity values.

Wang Xinyuan, bachelor's thesis, ch. 3.2. Three kinds: the simple average of a class; the averages of the images that
the network is most and least confident about; and the simple average improved by gradient ascent, which the thesis
uses for reference only. All work in the space that is fed to the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnscan.artifacts import create_hdf5, open_hdf5
from nnscan.errors import ArtifactError, DataError, ModelError, TrainingError
from nnscan.limits import fixed_text, reading
from nnscan.models import device_of, evaluation, logits, prepare
from nnscan.scores import followed

BATCH = 256
"""Images in one forward pass."""

Images = Tensor | NDArray[np.float32]
Labels = Tensor | NDArray[np.int64]


def _members(images: Images, labels: Labels, class_count: int) -> list[NDArray[np.int64]]:
    """Return for each class the indices of its images."""
    if images.ndim != 4 or not torch.as_tensor(images[:1]).is_floating_point():
        raise DataError(f"expected floating-point images (N, C, H, W), got {tuple(images.shape)} of {images.dtype}")
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images, but {len(labels)} labels; every image needs one")
    numbers = np.asarray(labels)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < class_count:
        raise DataError(f"labels run from {numbers.min()} to {numbers.max()}, but there are {class_count} classes")
    members = [np.flatnonzero(numbers == label) for label in range(class_count)]
    empty = [str(label) for label, indices in enumerate(members) if not len(indices)]
    if empty:
        raise DataError(f"no image of class {', '.join(empty)}; every class needs at least one for its average")
    return members


def _mean(images: Tensor) -> Tensor:
    return images.mean(dim=0, dtype=torch.float64).to(images.dtype)


def _rescaled(average: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Stretch each channel (C, H, W) to the range from low to high (C, 1, 1); a constant channel stays as it is."""
    own_low, own_high = average.amin((1, 2), keepdim=True), average.amax((1, 2), keepdim=True)
    share = (average - own_low) / torch.where(own_high > own_low, own_high - own_low, 1)
    return torch.where(own_high > own_low, torch.lerp(low, high, share), average)


def class_averages(images: Images, labels: Labels, class_count: int, rescale: bool = True) -> Tensor:
    """Return the simple average image of each class.

    Args:
        images: Images (N, C, H, W), as fed to the network.
        labels: Their classes (N,), from 0 to class_count - 1.
        class_count: Number of classes.
        rescale: Stretch each channel of an average, min-max, to the smallest and largest value that this channel has
            among the class's images. Averaging flattens contrasts until a network hardly reacts; this restores them.

    Returns:
        Averages (class_count, C, H, W).

    Raises:
        DataError: A class has no image, or labels and images do not belong together.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.2.1, eq. 3-1.
    """
    averages = []
    for indices in _members(images, labels, class_count):
        own = torch.as_tensor(images[indices])
        average = _mean(own)
        if rescale:
            low, high = own.amin((0, 2, 3))[:, None, None], own.amax((0, 2, 3))[:, None, None]
            average = _rescaled(average, low, high)
        averages.append(average)
    return torch.stack(averages)


def _log_confidences(model: nn.Module, images: Images) -> Tensor:
    """Return the logarithm of the softmax, float64 (n, n_classes): it ranks images where the softmax rounds to 1."""
    device = device_of(model)
    parts = []
    with evaluation(model), torch.no_grad():
        for start in range(0, len(images), BATCH):
            batch = torch.as_tensor(images[start : start + BATCH]).to(device, copy=True)  # a model may work in place
            scores = logits(model(batch))
            parts.append(scores.to("cpu", torch.float64).log_softmax(dim=1))
    if not parts:
        raise DataError("no images to classify")
    result = torch.cat(parts)
    if not bool(torch.isfinite(result).all()):
        raise ModelError("the model returned class scores that are not finite; check its weights and the images")
    return result


def confidences(model: nn.Module, images: Images) -> Tensor:
    """Return the softmax confidence of each class for each image.

    Args:
        model: A classifier; it is left unchanged.
        images: Images (n, C, H, W), as fed to the network; for averages, row i belongs to class i.

    Returns:
        Confidences (n, n_classes), float64, rows summing to 1 (for averages: the matrix of thesis figs 3-12 to 3-14).

    Raises:
        DataError: There is no image.
        ModelError: The class scores are not finite.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.2.2.
    """
    return _log_confidences(model, images).exp()


def confidence_averages(
    model: nn.Module, images: Images, labels: Labels, class_count: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return for each class the averages of the images that the network recognises best and worst.

    Args:
        model: A classifier; it is left unchanged.
        images: Images (N, C, H, W), as fed to the network.
        labels: Their classes (N,).
        class_count: Number of classes.
        k: How many images of a class, those with the highest and those with the lowest confidence for it, are
            averaged. All of them where the class has fewer. The thesis gives no number.

    Returns:
        The averages of the most and of the least confident images, (class_count, C, H, W) each, not rescaled.

    Raises:
        DataError: k is below 1, a class has no image, or labels and images do not belong together.
        ModelError: The class scores are not finite, or fewer than the classes.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.2.2 (data-driven activation maximisation).
    """
    if k < 1:
        raise DataError(f"k={k} is not possible; an average needs at least 1 image of each class")
    most, least = [], []
    for label, indices in enumerate(_members(images, labels, class_count)):
        own = torch.as_tensor(images[indices])
        scores = _log_confidences(model, own)
        if scores.shape[1] < class_count:
            raise ModelError(f"the model has {scores.shape[1]} class scores, but the data {class_count} classes")
        order = scores[:, label].argsort(stable=True)
        least.append(_mean(own[order[:k]]))
        most.append(_mean(own[order.flip(0)[:k]]))
    return torch.stack(most), torch.stack(least)


@torch.inference_mode(False)
def ascended_averages(model: nn.Module, averages: Images, steps: int, rate: float, stop: float = 0.99) -> Tensor:
    """Return class averages improved by gradient ascent on the network's confidence for their class.

    Each image follows the gradient of the logarithm of its confidence, which points where the confidence's gradient
    does but does not vanish where the network is sure of another class. Values are not clipped.

    Args:
        model: A classifier; it is left unchanged.
        averages: Averages to start from (n_classes, C, H, W), row i of class i.
        steps: Most steps taken.
        rate: Factor of the gradient in each step.
        stop: Confidence, 0 to 1, at which an image is finished and stays as it is.

    Returns:
        Images (n_classes, C, H, W), for reference: a network cannot be explained by pictures of its own making.

    Raises:
        ModelError: The model has fewer class scores than there are averages.
        TrainingError: The ascent produced values that are not finite.

    Source: Wang Xinyuan, bachelor's thesis, ch. 3.2.3 (network-driven activation maximisation).
    """
    prepared = prepare(model)
    current = torch.as_tensor(averages).detach().clone().to(device_of(model))
    for step in range(steps):
        current.requires_grad_(True)
        with torch.enable_grad():
            scores = followed(logits(prepared(current.clone()))).log_softmax(dim=1)
            if scores.shape[1] < len(current):
                raise ModelError(f"the model has {scores.shape[1]} class scores, but there are {len(current)} averages")
            own = scores.diagonal()
            (gradient,) = torch.autograd.grad(own.sum(), current)
        if not bool(torch.isfinite(gradient).all()):
            raise TrainingError(f"gradient ascent of the class averages diverged in step {step}; lower rate={rate}")
        unfinished = (own.detach().exp() < stop).to(current.dtype)[:, None, None, None]
        current = (current + rate * unfinished * gradient).detach()
        if not bool(unfinished.any()):
            break
    return current.detach()


def average_kinds(
    model: nn.Module,
    images: Images,
    labels: Labels,
    class_count: int,
    rescale: bool = True,
    extremes: int = 50,
    steps: int = 100,
    rate: float = 0.05,
) -> dict[str, Tensor]:
    """Return all kinds of class averages (n_classes, C, H, W): simple, most, least and ascended.

    Args:
        model: A classifier; it is left unchanged.
        images: Images (N, C, H, W), as fed to the network.
        labels: Their classes (N,).
        class_count: Number of classes.
        rescale: See `class_averages`.
        extremes: K of `confidence_averages`.
        steps: See `ascended_averages`.
        rate: See `ascended_averages`.

    Raises:
        DataError: A class has no image.
    """
    simple = class_averages(images, labels, class_count, rescale)
    most, least = confidence_averages(model, images, labels, class_count, extremes)
    return {"simple": simple, "most": most, "least": least, "ascended": ascended_averages(model, simple, steps, rate)}


def write_averages(
    path: str | Path,
    averages: Mapping[str, Tensor],
    classes: Sequence[str],
    origin: Mapping[str, str],
    matrices: Mapping[str, Tensor],
) -> None:
    """Write class averages and the confidence matrix of each kind.

    Args:
        path: The HDF5 file: averages/<kind> (n_classes, C, H, W), confidences/<kind> (n_classes, n_classes), classes.
        averages: Averages by kind: simple, most, least, ascended.
        classes: Class names, in the order of the rows.
        origin: The provenance.
        matrices: What `confidences` returned for each kind; row: average of class i, column: confidence of class j.

    Raises:
        ArtifactError: Kinds or shapes do not belong together, or the file cannot be written.
    """
    if set(matrices) != set(averages):
        raise ArtifactError(f"averages {sorted(averages)} and confidences {sorted(matrices)} differ; give one for each")
    for kind, images in averages.items():
        if len(images) != len(classes) or matrices[kind].shape != (len(classes), len(classes)):
            raise ArtifactError(
                f"the averages {kind!r} of shape {tuple(images.shape)} and their confidences "
                f"{tuple(matrices[kind].shape)} do not fit {len(classes)} classes"
            )
    with create_hdf5(path, "averages", origin) as file:
        file["classes"] = fixed_text(classes)
        for group, arrays, rest in (
            ("averages", averages, ("channel", "row", "column")),
            ("confidences", matrices, ("confidence",)),
        ):
            place = file.create_group(group, track_order=True)
            for kind in averages:
                data = place.create_dataset(kind, data=arrays[kind].detach().cpu().numpy())
                for axis, name in enumerate(("class", *rest)):
                    data.dims[axis].label = name


def read_averages(path: str | Path) -> dict[str, Tensor]:
    """Return the class averages (n_classes, C, H, W) of a file of `write_averages`, by kind.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "averages") as file, reading(path):
        return {kind: torch.from_numpy(data[()]) for kind, data in file["averages"].items()}


def read_confidences(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Return the confidence matrices (n_classes, n_classes) of a file of `write_averages`, by kind.

    Raises:
        ArtifactError: The file is missing, damaged or of another kind.
    """
    with open_hdf5(path, "averages") as file, reading(path):
        return {kind: data[()] for kind, data in file["confidences"].items()}
