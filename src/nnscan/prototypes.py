"""ProtoPNet: a network that classifies by saying "this looks like that" about patches of training images.

Chen, Li, Tao, Barnett, Su, Rudin: This looks like that: deep learning for interpretable image recognition, NeurIPS
2019. The convolutional part of a network, two 1 x 1 convolutions that map onto (0, 1)^D, m prototypes of each class,
which are points of that latent space, and a linear layer without bias on the similarities of the best fitting patches.
After a push each prototype *is* the latent patch of a training image of its class.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nnscan.artifacts import digest
from nnscan.data import Dataset
from nnscan.errors import DataError, ModelError, TrainingError
from nnscan.models import (
    ZOO,
    ClassAttentionCNN,
    SequentialCNN,
    chosen_device,
    device_of,
    evaluation,
    load_weights,
    read_state,
    save_weights,
)
from nnscan.training import (
    SPLITS,
    augment,
    checkpoint_results,
    deterministic,
    evaluate,
    load_state,
    random_states,
    restore_random_states,
    save_state,
    split_tensors,
    write_csv,
)

log = logging.getLogger(__name__)

EPSILON = 1e-4
"""Of the similarity log((d^2 + 1) / (d^2 + EPSILON)), which is at most ln(10,000) = 9.2103."""
WRONG_CLASS = -0.5
"""First weight of a prototype for the classes that are not its own; for its own it is 1."""
BOX_SHARE = 0.95
NEIGHBOURS, LEAST_OWN = 6, 3
PRUNED_PASSES = 100

HISTORY = [
    *("stage", "epoch", "cross_entropy", "cluster", "separation", "sparsity", "train_accuracy"),
    *("validation_loss", "validation_accuracy"),
]

_IMAGES = 256  # in one pass without gradients; fixed, because sums may differ in their last digit with it
_RATE_FACTOR = 0.1

Stage = Literal["warm", "joint", "push", "last", "prune"]
Box = tuple[int, int, int, int]
"""First row, first column, row and column behind the last, in pixels."""


# The network ----------------------------------------------------------------------------------------------------------


def similarity(squared: Tensor) -> Tensor:
    """Return log((d^2 + 1) / (d^2 + 1e-4)) of squared distances: 9.2103 at 0, falling to 0."""
    return torch.log((squared + 1) / (squared + EPSILON))


class ProtoPNet(nn.Module):
    """A prototypical part network on the convolutional part of a network.

    Attributes:
        backbone: Convolutional part: images (N, C, H, W) to maps (N, K, h, w).
        added: Two 1 x 1 convolutions to D channels, with ReLU and sigmoid: maps to latent patches in (0, 1)^D.
        prototypes: Prototypes (P, D), those of a class side by side.
        last: Linear layer without bias from similarities to class scores.
        owners: Class of each prototype (P,).
        sources: Where each prototype comes from (P, 3): image of the training split, row and column of the latent grid;
            -1 before the first push.
        boxes: The source's patch (P, 4) in pixels: see `Box`; -1 before the first push.
    """

    owners: Tensor
    sources: Tensor
    boxes: Tensor

    def __init__(self, backbone: nn.Module, maps: int, owners: Tensor, classes: int, channels: int = 128) -> None:
        """Build a network with prototypes at random places.

        Args:
            backbone: Convolutional part.
            maps: Channels K of its output.
            owners: Class of each prototype (P,), int64.
            classes: Number of classes.
            channels: Channels D of the latent space.
        """
        super().__init__()
        self.backbone = backbone
        first, second = nn.Conv2d(maps, channels, 1), nn.Conv2d(channels, channels, 1)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.added = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        self.prototypes = nn.Parameter(torch.rand(len(owners), channels))
        self.last = nn.Linear(len(owners), classes, bias=False)
        self.register_buffer("owners", owners)
        self.register_buffer("sources", torch.full((len(owners), 3), -1))
        self.register_buffer("boxes", torch.full((len(owners), 4), -1))
        with torch.no_grad():
            own = functional.one_hot(owners, classes).T
            self.last.weight.copy_(torch.where(own == 1, 1.0, WRONG_CLASS))

    def latent(self, x: Tensor) -> Tensor:
        """Return the latent patches (N, D, h, w) of images (N, C, H, W)."""
        patches: Tensor = self.added(self.backbone(x))
        return patches

    def distances(self, patches: Tensor) -> Tensor:
        """Return the squared distances (N, P, h, w) of latent patches (N, D, h, w) to the prototypes, float64.

        They are computed from products, of which float32 would leave errors as large as the epsilon of the similarity.
        """
        patches, prototypes = patches.double(), self.prototypes.double()
        products = torch.einsum("ndij,pd->npij", patches, prototypes)
        norms = prototypes.square().sum(1)[:, None, None]
        return (patches.square().sum(1, keepdim=True) - 2 * products + norms).clamp(min=0)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the squared distance (N, P) of each image's nearest patch to each prototype, float64."""
        return self.distances(self.latent(x)).flatten(2).amin(2)

    def scores(self, nearest: Tensor) -> Tensor:
        """Return the class scores (N, classes) that belong to distances of `nearest`."""
        scores: Tensor = self.last(similarity(nearest).to(self.last.weight.dtype))
        return scores

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (N, classes) of images (N, C, H, W)."""
        return self.scores(self.nearest(x))


def protopnet(model: nn.Module, x: Tensor, classes: int, per_class: int = 10, channels: int = 128) -> ProtoPNet:
    """Return a ProtoPNet on a copy of a network's convolutional part, initialised from torch's global generator.

    The network is cut in front of its head: the grid of patches is what its last stage gives at the images' resolution.

    Args:
        model: A convolutional network of the zoo, trained or not.
        x: An image (1, C, H, W) for a probe pass.
        classes: Number of classes.
        per_class: Prototypes m of each class.
        channels: Channels D of the latent space.

    Raises:
        ModelError: The network has no convolutions or is not of the zoo, or images are too small for it.
    """
    backbone, maps = _backbone(model, x)
    owners = torch.arange(classes).repeat_interleave(per_class)
    return ProtoPNet(backbone, maps, owners, classes, channels).to(_precise(device_of(model)))


def _precise(device: torch.device) -> torch.device:
    """Return the device, or the CPU in place of Apple's GPUs, which have no float64 for the distances."""
    if device.type != "mps":
        return device
    log.info("ProtoPNets compute distances in float64, which mps has not: this one is on the CPU")
    return torch.device("cpu")


def _backbone(model: nn.Module, x: Tensor) -> tuple[nn.Module, int]:
    if not isinstance(model, SequentialCNN | ClassAttentionCNN):
        possible = ", ".join(name for name in ZOO if name != "fcn")
        raise ModelError(
            f"ProtoPNet needs the convolutional part of a network of the zoo, and {type(model).__name__} has none; "
            f"choose one of {possible}"
        )
    backbone = copy.deepcopy(model.features)
    try:
        with torch.no_grad(), evaluation(backbone):
            maps = backbone(x[:1].to(device_of(model)))
    except RuntimeError as error:
        raise ModelError(
            f"images of {tuple(x.shape[1:])} do not pass the convolutional part ({error}); use larger ones"
        ) from error
    return backbone, maps.shape[1]


def load_prototypes(path: str | Path, model: nn.Module, x: Tensor) -> ProtoPNet:
    """Return a ProtoPNet from its checkpoint, in evaluation mode.

    Args:
        path: A file of `train_prototypes`.
        model: A network as that which the ProtoPNet was made of; its weights do not matter.
        x: An image (1, C, H, W) for a probe pass.

    Raises:
        ModelError: The file cannot be read or does not belong to such a network.
    """
    state = read_state(path)
    missing = [name for name in ("prototypes", "owners", "last.weight") if name not in state]
    if missing:
        raise ModelError(f"the checkpoint {path} is not one of a ProtoPNet: it has no {', '.join(missing)}")
    backbone, maps = _backbone(model, x)
    classes, channels = state["last.weight"].shape[0], state["prototypes"].shape[-1]
    network = ProtoPNet(backbone, maps, state["owners"], classes, channels)
    load_weights(network, state, path)
    return network.to(_precise(chosen_device())).eval()


# Losses, push, last layer, pruning ------------------------------------------------------------------------------------


def patch_losses(nearest: Tensor, labels: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cluster cost and the separation of a batch.

    Args:
        nearest: Squared distances (N, P) of `ProtoPNet.nearest`.
        labels: Labels (N,).
        owners: Class of each prototype (P,).

    Returns:
        Means over the images of the smallest distance to a prototype of the own class, and to one of another class.

    Source: Chen et al. 2019, section 2.2.
    """
    own = labels[:, None] == owners[None]
    infinite = torch.full_like(nearest, math.inf)
    return (
        torch.where(own, nearest, infinite).amin(1).mean(),
        torch.where(own, infinite, nearest).amin(1).mean(),
    )


def _all_nearest(model: ProtoPNet, x: Tensor) -> Tensor:
    """Return `ProtoPNet.nearest` of all images, in evaluation mode."""
    device = device_of(model)
    with torch.no_grad(), evaluation(model):
        return torch.cat([model.nearest(part.to(device, copy=True)) for part in torch.split(x, _IMAGES)])


def push(model: ProtoPNet, x: Tensor, y: Tensor) -> int:
    """Put each prototype onto the nearest latent patch of the training images of its class.

    Distances are taken from differences in float64, so that only equal patches have distance zero; of equal distances
    the first image, row and column counts. A second push therefore changes nothing.

    Args:
        model: The network; its prototypes, sources and boxes are changed, its modes are restored.
        x: Training images (N, C, H, W) without augmentation.
        y: Labels (N,).

    Returns:
        How many prototypes have moved.

    Raises:
        DataError: A class has no training image.

    Source: Chen et al. 2019, section 2.2, stage 2.
    """
    device = device_of(model)
    empty = sorted(set(model.owners.tolist()) - set(y.tolist()))
    if empty:
        raise DataError(f"prototypes of the classes {empty} cannot be pushed: no training image belongs to them")
    best = torch.full((len(model.owners),), math.inf, dtype=torch.float64)
    found, sources = model.prototypes.detach().clone(), model.sources.clone()
    with torch.no_grad(), evaluation(model):
        for start in range(0, len(x), _IMAGES):
            labels = y[start : start + _IMAGES]
            patches = model.latent(x[start : start + _IMAGES].to(device, copy=True))
            height, width = patches.shape[2:]
            for number in sorted(set(labels.tolist())):
                images = torch.nonzero(labels == number)[:, 0]
                candidates = patches[images.to(device)].permute(0, 2, 3, 1).flatten(0, 2)
                own = torch.nonzero(model.owners == number)[:, 0]
                far = torch.cdist(
                    model.prototypes[own].double(), candidates.double(), compute_mode="donot_use_mm_for_euclid_dist"
                )
                for prototype, line in zip(own.tolist(), far, strict=True):
                    place = int(line.argmin())
                    if float(line[place]) < best[prototype]:
                        best[prototype] = float(line[place])
                        found[prototype] = candidates[place]
                        image, position = divmod(place, height * width)
                        row, column = divmod(position, width)
                        sources[prototype] = torch.tensor([start + int(images[image]), row, column])
        # on a copy, so that an error leaves nothing half done
        trial = copy.deepcopy(model)
        trial.prototypes.copy_(found)
        boxes = [
            high_activation_box(similarity_maps(trial, x[image], [number])[0])
            for number, (image, *_) in enumerate(sources.tolist())
        ]
        moved = int((found != model.prototypes).any(1).sum())
        model.prototypes.copy_(found)
        model.sources.copy_(sources)
        model.boxes.copy_(torch.tensor(boxes))
    return moved


def similarity_maps(model: ProtoPNet, x: Tensor, prototypes: list[int]) -> NDArray[np.float64]:
    """Return the similarity maps (n, H, W) of prototypes on one image (C, H, W), enlarged bicubically to its size.

    Each patch lies where its receptive field has its centre; where no patch lies, the map is 0. The authors stretch the
    map over the image, which comes to the same where convolutions are padded, but moves the patches of LeNet-5 outwards
    by up to five of 32 pixels.
    """
    first, step = patch_centres(model.backbone)
    with torch.no_grad(), evaluation(model):
        squared = model.distances(model.latent(x[None].to(device_of(model), copy=True)))[:, prototypes]
        axes = [
            # grid_sample counts from -1 to 1 between the outer edges of the map
            (2 * ((torch.arange(pixels, dtype=squared.dtype) - first) / step) + 1) / cells - 1
            for pixels, cells in zip(x.shape[1:], squared.shape[2:], strict=True)
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None].to(squared.device)
        maps = functional.grid_sample(
            similarity(squared), places, mode="bicubic", padding_mode="border", align_corners=False
        )
        covered = (places.abs() <= 1).all(-1)
    found: NDArray[np.float64] = (maps * covered)[0].cpu().numpy()
    return found


def patch_centres(backbone: nn.Module) -> tuple[float, float]:
    """Return the pixel (row or column) at the centre of the first patch's receptive field, and the step to the next.

    Args:
        backbone: Convolutional part of a network of the zoo: what it calls shortcut runs beside the rest.
    """
    first, step = 0.0, 1.0
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and "shortcut" not in name.split("."):
            kernel, stride, padding = (
                float(size[0] if isinstance(size, tuple) else size)
                for size in (module.kernel_size, module.stride, module.padding)
            )
            first += step * ((kernel - 1) / 2 - padding)
            step *= stride
    return first, step


def high_activation_box(activation: NDArray[np.floating], share: float = BOX_SHARE) -> Box:
    """Return the smallest box around the pixels (H, W) at or above the quantile `share` of an activation map."""
    high = activation >= np.quantile(activation, share)
    rows, columns = np.flatnonzero(high.any(1)), np.flatnonzero(high.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def wrong_class_weights(model: ProtoPNet) -> Tensor:
    """Return the sum of the sizes of the weights of prototypes for classes that are not their own."""
    classes = torch.arange(model.last.out_features, device=model.owners.device)
    return model.last.weight.abs()[classes[:, None] != model.owners[None]].sum()


def fit_last_layer(
    model: ProtoPNet, x: Tensor, y: Tensor, protocol: PrototypeProtocol, passes: int, order: torch.Generator
) -> dict[str, float]:
    """Fit the last layer alone: cross entropy, and the sizes of the weights for wrong classes.

    All else is fixed, so the similarities of the images are computed once and the problem is convex.

    Args:
        model: The network; only the weights of its last layer are changed.
        x: Training images (N, C, H, W) without augmentation.
        y: Labels (N,).
        protocol: Learning rate, batch size and factor of the second term.
        passes: Passes over the images.
        order: Shuffles the images.

    Returns:
        The record of the last pass: cross_entropy, sparsity and train_accuracy.

    Raises:
        TrainingError: The loss is not finite.

    Source: Chen et al. 2019, section 2.2, stage 3.
    """
    device, weight = device_of(model), model.last.weight
    near, labels = _all_nearest(model, x), y.to(device)
    asked = weight.requires_grad
    weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], protocol.last_rate)
    sums: dict[str, float] = {}
    try:
        for _ in range(passes):
            sums = dict.fromkeys(("cross_entropy", "sparsity", "train_accuracy"), 0.0)
            for batch in torch.split(torch.randperm(len(x), generator=order), protocol.batch_size):
                batch = batch.to(device)
                scores = model.scores(near[batch])
                entropy = functional.cross_entropy(scores, labels[batch])
                sizes = wrong_class_weights(model)
                loss = entropy + protocol.sparsity * sizes
                _check(loss, "the last layer", protocol.last_rate)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                share = len(batch) / len(x)
                sums["cross_entropy"] += share * entropy.item()
                sums["sparsity"] += share * sizes.item()
                sums["train_accuracy"] += int((scores.argmax(1) == labels[batch]).sum()) / len(x)
    finally:
        weight.requires_grad_(asked)
        weight.grad = None
    return sums


def _check(loss: Tensor, what: str, rate: float) -> None:
    if not math.isfinite(loss.item()):
        raise TrainingError(f"the training of {what} diverged: loss {loss.item()} at learning rate {rate}; lower it")


def typical(model: ProtoPNet, x: Tensor, y: Tensor) -> NDArray[np.int64]:
    """Return the prototypes that pruning keeps: those that look like images of their class.

    Of the 6 training images with the nearest patches at least 3 belong to the prototype's class. Where no prototype of
    a class would be left, the one with most such images is kept, the first of several.

    Args:
        model: A pushed network; it is left unchanged.
        x: Training images (N, C, H, W) without augmentation.
        y: Labels (N,).

    Returns:
        Sorted positions of prototypes.

    Source: Chen et al. 2019, supplement; code.
    """
    near, owners = _all_nearest(model, x).cpu(), model.owners.cpu()
    images = near.argsort(dim=0, stable=True)[:NEIGHBOURS]
    own = (y[images] == owners[None]).sum(0)
    keep = own >= LEAST_OWN
    for number in sorted(set(owners.tolist())):
        members = torch.nonzero(owners == number)[:, 0]
        if not keep[members].any():
            keep[members[own[members].argmax()]] = True
    found: NDArray[np.int64] = torch.nonzero(keep)[:, 0].numpy()
    return found


def pruned(model: ProtoPNet, kept: NDArray[np.int64]) -> ProtoPNet:
    """Return a copy of a network that has some of its prototypes only."""
    places = torch.from_numpy(kept).to(device_of(model))
    smaller = copy.deepcopy(model)
    smaller.prototypes = nn.Parameter(model.prototypes.detach()[places])
    smaller.last = nn.Linear(len(kept), model.last.out_features, bias=False).to(device_of(model))
    smaller.last.weight = nn.Parameter(model.last.weight.detach()[:, places])
    for name in ("owners", "sources", "boxes"):
        smaller.register_buffer(name, getattr(model, name)[places])
    return smaller


# Training -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrototypeProtocol:
    """How a ProtoPNet is trained; the defaults are the authors', but for the number of epochs.

    Attributes:
        per_class: Prototypes of each class.
        channels: Channels D of the latent space.
        warm_epochs: First epochs, in which the convolutional part is fixed.
        epochs: All epochs of stage 1.
        push_every: Epochs between pushes; there is one after the last epoch in any case.
        last_passes: Passes of stage 3 after each push.
        batch_size: Images in a batch.
        augmentation: "none", "shift", "flip" or "shift_flip", in stage 1.
        cluster: Factor of the cluster cost.
        separation: Factor of the separation, which is subtracted.
        sparsity: Factor of the weights for wrong classes.
        rate_epochs: Epochs after the warm ones in which the next three rates fall to a tenth. The authors' 5 epochs
            have about 11,000 batches.
        backbone_rate: Learning rate of the convolutional part.
        added_rate: Learning rate of the added convolutions.
        prototype_rate: Learning rate of the prototypes.
        last_rate: Learning rate of the last layer.
        weight_decay: Weight decay of the convolutions.
        prune: Whether prototypes that do not look like their class are removed in the end.
    """

    per_class: int = 10
    channels: int = 128
    warm_epochs: int = 5
    epochs: int = 30
    push_every: int = 10
    last_passes: int = 20
    batch_size: int = 80
    augmentation: str = "none"
    cluster: float = 0.8
    separation: float = 0.08
    sparsity: float = 1e-4
    rate_epochs: int = 5
    backbone_rate: float = 1e-4
    added_rate: float = 3e-3
    prototype_rate: float = 3e-3
    last_rate: float = 1e-4
    weight_decay: float = 1e-3
    prune: bool = False


def schedule(protocol: PrototypeProtocol) -> list[tuple[Stage, int]]:
    """Return the steps of a training, each with the epoch after which, or in which, it is done."""
    steps: list[tuple[Stage, int]] = []
    for epoch in range(1, protocol.epochs + 1):
        steps.append(("warm" if epoch <= protocol.warm_epochs else "joint", epoch))
        if epoch % protocol.push_every == 0 or epoch == protocol.epochs:
            steps += [("push", epoch), ("last", epoch)]
    return [*steps, ("prune", protocol.epochs)] if protocol.prune else steps


class _Trainer:
    """One training: network, optimisers and order of the images, advanced step by step, and its state for resuming."""

    def __init__(self, model: ProtoPNet, protocol: PrototypeProtocol, seed: int) -> None:
        self.model, self.protocol = model, protocol
        added: dict[str, Any] = {"params": list(model.added.parameters()), "weight_decay": protocol.weight_decay}
        backbone = {"params": list(model.backbone.parameters()), "weight_decay": protocol.weight_decay}
        prototypes: dict[str, Any] = {"params": [model.prototypes], "lr": protocol.prototype_rate}
        warm = [{**added, "lr": protocol.added_rate}, prototypes]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "warm": torch.optim.Adam([dict(group) for group in warm]),
            "joint": torch.optim.Adam([*map(dict, warm), {**backbone, "lr": protocol.backbone_rate}]),
        }
        # apart from each other, so that the order does not depend on the augmentation
        self.order = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.history: list[dict[str, Any]] = []

    def step(self, stage: Stage, epoch: int, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> None:
        """Do one step of the schedule and append its record to the history."""
        found: dict[str, float] = {}
        if stage in ("warm", "joint"):
            found = self._epoch(stage, epoch, *train)
        elif stage == "push":
            log.info("%d of %d prototypes moved", push(self.model, *train), len(self.model.owners))
        else:
            if stage == "prune":
                kept = typical(self.model, *train)
                log.info("%d of %d prototypes are kept", len(kept), len(self.model.owners))
                self.model = pruned(self.model, kept)
            passes = self.protocol.last_passes if stage == "last" else PRUNED_PASSES
            found = fit_last_layer(self.model, *train, self.protocol, passes, self.order)
        loss, accuracy = evaluate(self.model, *validation)
        record = {**dict.fromkeys(HISTORY, math.nan), "stage": stage, "epoch": epoch, **found}
        self.history.append({**record, "validation_loss": loss, "validation_accuracy": accuracy})

    def _epoch(self, stage: Stage, epoch: int, x: Tensor, y: Tensor) -> dict[str, float]:
        protocol, model, device = self.protocol, self.model, device_of(self.model)
        optimizer = self.optimizers[stage]
        if stage == "joint":
            factor = _RATE_FACTOR ** ((epoch - protocol.warm_epochs - 1) // protocol.rate_epochs)
            rates = (protocol.added_rate, protocol.prototype_rate, protocol.backbone_rate)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * rate
        model.train()
        model.last.requires_grad_(False)
        model.backbone.requires_grad_(stage == "joint").train(stage == "joint")
        sums = dict.fromkeys(("cross_entropy", "cluster", "separation", "train_accuracy"), 0.0)
        seen = 0
        for batch in torch.split(torch.randperm(len(x), generator=self.order), protocol.batch_size):
            if len(batch) == 1 and len(x) > 1:  # batch normalisation has no variance of one image
                continue
            images, labels = augment(x[batch], protocol.augmentation, self.noise).to(device), y[batch].to(device)
            near = model.nearest(images)
            scores = model.scores(near)
            cluster, separation = patch_losses(near, labels, model.owners)
            entropy = functional.cross_entropy(scores, labels)
            loss = entropy + protocol.cluster * cluster - protocol.separation * separation
            _check(loss, f"a ProtoPNet in epoch {epoch}", max(group["lr"] for group in optimizer.param_groups))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen += len(batch)
            for name, value in (("cross_entropy", entropy), ("cluster", cluster), ("separation", separation)):
                sums[name] += len(batch) * value.item()
            sums["train_accuracy"] += int((scores.argmax(1) == labels).sum())
        model.requires_grad_(True)
        return {name: value / seen for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
            "random": random_states(),
            "history": self.history,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        left = len(state["model"]["owners"])
        if left < len(self.model.owners):
            self.model = pruned(self.model, np.arange(left))
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.order.set_state(state["order"])
        self.noise.set_state(state["noise"])
        restore_random_states(state["random"])
        self.history = list(state["history"])


def train_prototypes(
    model: nn.Module,
    dataset: Dataset,
    protocol: PrototypeProtocol,
    folder: str | Path,
    seed: int,
    origin: Mapping[str, str],
    progress: bool = True,
) -> pd.DataFrame:
    """Train a ProtoPNet on a network's convolutional part and write it with its tables.

    Written to `folder` are prototypes.safetensors, prototypes.csv (`prototype_table`), prototypes_distinct.csv
    (`distinct_prototypes`), prototypes_history.csv with one row per step (stage, epoch, losses, accuracies; `HISTORY`)
    and prototypes_results.csv. A state file is kept after each step; a call that finds one of the same training goes on
    there, with the same bits in the end.

    Args:
        model: A convolutional network of the zoo, best with the weights of a run; it is left unchanged.
        dataset: Data with the splits train, validation and test.
        protocol: Epochs, rates and so on.
        folder: Where to write.
        seed: Seed of initialisation and data order.
        origin: Provenance; its entries "model" and "code" tell one training from another when resuming.
        progress: Show a progress bar.

    Returns:
        The table of results: checkpoint ("backbone", the network that was given, and "prototypes"), split, loss (cross
        entropy), accuracy.

    Raises:
        ModelError: The network has no convolutions or is not of the zoo.
        DataError: A class has no training image.
        TrainingError: A loss is not finite.

    Source: Chen et al. 2019, section 2.2.
    """
    folder = Path(folder)
    tensors = {split: split_tensors(dataset, split) for split in SPLITS}
    start = [value.cpu().numpy() for value in model.state_dict().values()]
    key = digest(asdict(protocol), dataset.digest, seed, origin.get("model"), origin.get("code"), *start)
    state_path, steps = folder / "state_prototypes.pt", schedule(protocol)
    with deterministic():
        torch.manual_seed(seed)
        image = tensors["train"][0][:1]
        network = protopnet(model, image, len(dataset.classes), protocol.per_class, protocol.channels)
        trainer = _Trainer(network.to(_precise(chosen_device())), protocol, seed)
        state = load_state(state_path, key)
        if state is not None:
            trainer.resume(state)
            log.info("the training goes on after step %d", len(trainer.history))
        with tqdm(
            total=len(steps), initial=len(trainer.history), desc="ProtoPNet", mininterval=5, disable=not progress
        ) as bar:
            while len(trainer.history) < len(steps):
                trainer.step(*steps[len(trainer.history)], tensors["train"], tensors["validation"])
                log.info("%s", trainer.history[-1])
                bar.update()
                save_state(state_path, key, trainer.state())
    network = trainer.model.eval()
    save_weights(folder / "prototypes.safetensors", network, origin)
    results = pd.concat(
        [checkpoint_results(model, "backbone", tensors), checkpoint_results(network, "prototypes", tensors)],
        ignore_index=True,
    )
    write_csv(folder / "prototypes.csv", prototype_table(network, dataset.classes))
    write_csv(folder / "prototypes_distinct.csv", distinct_prototypes(network, dataset.classes))
    write_csv(folder / "prototypes_history.csv", pd.DataFrame(trainer.history, columns=HISTORY))
    write_csv(folder / "prototypes_results.csv", results)
    state_path.unlink(missing_ok=True)
    return results


# What the prototypes are ----------------------------------------------------------------------------------------------


def prototype_table(model: ProtoPNet, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return one row per prototype: where it comes from, and what it counts.

    Returns:
        Columns prototype, class (number), name (of the class), image (in the training split), row and column (of the
        latent grid), top, left, bottom, right (`Box` on the image), weight (for its class). -1 before the first push.
    """
    owners = model.owners.cpu().numpy()
    frame = pd.DataFrame(model.sources.cpu().numpy(), columns=["image", "row", "column"])
    frame[["top", "left", "bottom", "right"]] = model.boxes.cpu().numpy()
    frame["weight"] = model.last.weight.detach().cpu().numpy()[owners, np.arange(len(owners))]
    frame.insert(0, "prototype", np.arange(len(owners)))
    frame.insert(1, "class", owners)
    frame.insert(2, "name", [classes[owner] for owner in owners])
    return frame


def distinct_prototypes(model: ProtoPNet, classes: tuple[str, ...], tolerance: float = EPSILON) -> pd.DataFrame:
    """Return for each class how many of its prototypes are distinct.

    Two are the same if they come from the same patch, or if their squared distance is at most the tolerance; the
    default is the epsilon of the similarity, below which it hardly tells them apart.

    Args:
        model: A network; it is left unchanged.
        classes: Class names.
        tolerance: Squared distance.

    Returns:
        One row per class: class (number), name, prototypes, distinct, images (from which they come; 0 before the first
        push) and smallest_distance (Euclidean, between two of them; NaN of one).
    """
    rows = []
    for number, name in enumerate(classes):
        own = torch.nonzero(model.owners == number)[:, 0]
        points, sources = model.prototypes.detach()[own].double(), model.sources[own].cpu()
        apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").cpu()
        pushed = (sources >= 0).all(1)
        same = (sources[:, None] == sources[None]).all(2) & pushed[:, None]
        groups, _ = connected_components(((apart.square() <= tolerance) | same).numpy(), directed=False)
        upper = apart[tuple(torch.triu_indices(len(own), len(own), 1))]
        rows.append(
            {
                "class": number,
                "name": name,
                "prototypes": len(own),
                "distinct": groups,
                "images": len(set(sources[pushed, 0].tolist())),
                "smallest_distance": float(upper.min()) if len(upper) else math.nan,
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Likeness:
    """That an image looks like a prototype.

    Attributes:
        prototype: The prototype.
        owner: Its class.
        similarity: Of the image's nearest patch, 0 to 9.2103.
        contribution: What it adds to each class score (classes,): similarity times weight.
        activation: Similarity map (H, W), enlarged to the image.
        box: Where the map is at or above its 95th percentile.
        source: The training image that the prototype comes from.
        source_box: The prototype's patch there.
    """

    prototype: int
    owner: int
    similarity: float
    contribution: NDArray[np.float64]
    activation: NDArray[np.float64]
    box: Box
    source: int
    source_box: Box


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image gets its class scores.

    Attributes:
        scores: Class scores (classes,), as the network gives them.
        contributions: What each prototype adds (P, classes); the sums over the prototypes are the scores.
        likenesses: The most activated prototypes, the most similar first.
    """

    scores: NDArray[np.float64]
    contributions: NDArray[np.float64]
    likenesses: tuple[Likeness, ...]


def explain(model: ProtoPNet, x: Tensor, count: int = 5) -> Explanation:
    """Return which prototypes an image looks like, and what they contribute to its class scores.

    Args:
        model: A pushed network; it is left unchanged.
        x: The image (C, H, W), as fed to the network.
        count: Prototypes that are described.

    Raises:
        ModelError: The network has never been pushed: its prototypes come from no image.
    """
    if bool((model.sources < 0).any()):
        raise ModelError("the prototypes come from no image yet; push them first")
    with torch.no_grad(), evaluation(model):
        near = model.nearest(x[None].to(device_of(model), copy=True))
        scores = model.scores(near)[0].double().cpu().numpy()
        values = similarity(near)[0].cpu().numpy()
    weights = model.last.weight.detach().double().cpu().numpy()
    contributions = values[:, None] * weights.T
    order = np.argsort(-values, kind="stable")[:count].tolist()
    maps = similarity_maps(model, x, order)
    likenesses = tuple(
        Likeness(
            prototype,
            int(model.owners[prototype]),
            float(values[prototype]),
            contributions[prototype],
            activation,
            high_activation_box(activation),
            int(model.sources[prototype, 0]),
            tuple(model.boxes[prototype].tolist()),
        )
        for prototype, activation in zip(order, maps, strict=True)
    )
    return Explanation(scores, contributions, likenesses)
