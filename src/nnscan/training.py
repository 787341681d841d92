"""Training: checkpoints along the way, the well-trained one and the overfitted one.

The regular training keeps its state after each third and at the lowest validation loss (well-trained, WT). A second,
long training from the same start and in the same data order, without weight decay and augmentation, ends in the
overfitted checkpoint (OF; Dou Hui, doctoral slides, ch. 6, whose protocol is not stated); on request it keeps its state
at some epochs before that, evenly spaced, whose anomaly filters are counted (figure 6-4). A third one does the same on
labels in random order (Ansuini et al. 2019): the network can only learn them by heart.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from nnscan.artifacts import atomic_path, digest, file_digest
from nnscan.data import Dataset
from nnscan.errors import TrainingError
from nnscan.limits import DAMAGED
from nnscan.models import (
    ZOO,
    build_model,
    chosen_device,
    device_of,
    evaluation,
    load_plain,
    load_weights,
    logits,
    read_state,
    save_weights,
)

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
HISTORY = ["phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
THIRDS = ("third1", "third2", "third3")
EVALUATED = (*THIRDS, "well_trained", "overfitted", "shuffled")  # checkpoints with a table of results
Phase = Literal["regular", "overfitting", "shuffled"]
_DIGEST, _PIECE = 16, 1 << 20  # bytes: of a digest of `file_digest`; read at once


def model_builder(source: str, options: Mapping[str, Any], dataset: Dataset) -> Callable[[], nn.Module]:
    """Return what builds a study's model: the zoo's models get channels, size and classes from the data."""
    images = dataset.splits["train"].images
    fitted = {"in_channels": images.shape[1], "size": images.shape[-1], "classes": len(dataset.classes)}
    return lambda: build_model(source, {**(fitted if source in ZOO else {}), **options})


def restore(source: str, options: Mapping[str, Any], dataset: Dataset, weights: str | Path) -> nn.Module:
    """Return a run's model with the weights of one of its checkpoints, in evaluation mode."""
    model = model_builder(source, options, dataset)()
    load_weights(model, read_state(weights), weights)
    return model.to(chosen_device()).eval()


@dataclass(frozen=True)
class Protocol:
    """How a model is trained.

    Attributes:
        optimizer: "adam" or "sgd".
        learning_rate: Learning rate.
        momentum: Momentum of sgd.
        weight_decay: Weight decay of the regular training.
        epochs: Epochs of the regular training.
        batch_size: Images in a batch.
        augmentation: "none", "shift", "flip" or "shift_flip", in the regular training.
        overfitting_epochs: Epochs of the overfitting training; 0 for none.
        precision: "float32", or "bfloat16": products of the training passes in bfloat16, weights and sums in float32.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-5
    epochs: int = 30
    batch_size: int = 128
    augmentation: str = "none"
    overfitting_epochs: int = 80
    precision: str = "float32"


def binned(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the means of maps (N, K, H, W) over the bins of adaptive average pooling (N, K, *size), by two products.

    Bin i of m of n places goes from floor(i n / m) to ceil((i + 1) n / m), as torch has it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    shares = []
    for places, bins in zip(x.shape[-2:], size, strict=True):
        share = torch.zeros(bins, places, dtype=wide)
        for number in range(bins):
            start, end = number * places // bins, -((number + 1) * places // -bins)
            share[number, start:end] = 1 / (end - start)
        shares.append(share.to(x.device))
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return (shares[0] @ x.to(wide) @ shares[1].T).to(x.dtype)


class _BinnedPooling(TorchFunctionMode):
    """Gives adaptive average pooling a backward pass that is deterministic on a GPU, where torch has none."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(zip(("input", "output_size"), args, strict=False)) | (kwargs or {})
        if getattr(func, "__name__", "") != "adaptive_avg_pool2d" or given["input"].device.type == "cpu":
            return func(*args, **(kwargs or {}))
        x, size = given["input"], given["output_size"]
        pair = (size, size) if isinstance(size, int) or size is None else size
        height, width = (own or places for own, places in zip(pair, x.shape[-2:], strict=True))
        return binned(x, (height, width))


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, and global generators of their own, inside the block."""
    before = torch.get_deterministic_debug_mode()
    gpus = [torch.cuda.current_device()] if chosen_device().type == "cuda" else []
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not give the same bits twice
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms` would load torch's compiler
    try:
        with torch.random.fork_rng(devices=gpus), _BinnedPooling():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


def random_states() -> dict[str, Tensor]:
    """Return the states of torch's global generators that a training draws from (dropout), by kind of device."""
    device = chosen_device()
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's global generators to what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], chosen_device())


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy (0 to 1) of a model, in evaluation mode.

    Args:
        model: The model; its modes are restored.
        x: Inputs (N, C, H, W).
        y: Labels (N,).
        batch_size: Images in one forward pass.
    """
    loss, correct, device = 0.0, 0, device_of(model)
    with torch.no_grad(), evaluation(model):
        for start in range(0, len(x), batch_size):
            scores = logits(model(x[start : start + batch_size].to(device, copy=True)))  # it may change its input
            labels = y[start : start + batch_size].to(device)
            loss += float(nn.functional.cross_entropy(scores, labels, reduction="sum"))
            correct += int((scores.argmax(1) == labels).sum())
    return loss / len(x), correct / len(x)


def split_tensors(dataset: Dataset, split: str) -> tuple[Tensor, Tensor]:
    """Return a split's inputs (N, C, H, W) and labels (N,) as tensors."""
    return torch.from_numpy(dataset.inputs(split)), torch.from_numpy(dataset.splits[split].labels)


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are slower than in float32: torch has kernels for them from AVX-512 on."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


def augment(x: Tensor, augmentation: str, generator: torch.Generator) -> Tensor:
    """Return a batch with each image shifted by up to an eighth of its side and flipped at random, as named."""
    if "shift" in augmentation:
        reach = x.shape[-1] // 8
        padded = nn.functional.pad(x, (reach, reach, reach, reach))
        offsets = torch.randint(0, 2 * reach + 1, (len(x), 2), generator=generator)
        x = torch.stack(
            [
                image[:, row : row + x.shape[-2], column : column + x.shape[-1]]
                for image, (row, column) in zip(padded, offsets.tolist(), strict=True)
            ]
        )
    if "flip" in augmentation:
        flipped = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
    return x


def kept_epochs(protocol: Protocol, phase: Phase, history: int = 0) -> dict[str, int]:
    """Return the checkpoints that a training keeps whatever their validation loss, and the epoch after which each is.

    Args:
        protocol: How the model is trained.
        phase: "regular": after each third; "overfitting": `history` checkpoints on the way, evenly spaced, and the end;
            "shuffled": the end.
        history: Checkpoints overfitting1, overfitting2, ... before the last epoch of the overfitting training.
    """
    names: Mapping[Phase, tuple[str, ...]] = {
        "regular": THIRDS,
        "overfitting": (*(f"overfitting{part}" for part in range(1, history + 1)), "overfitted"),
        "shuffled": ("shuffled",),
    }
    epochs = protocol.epochs if phase == "regular" else protocol.overfitting_epochs
    own = names[phase]
    return {name: max(1, round(epochs * part / len(own))) for part, name in enumerate(own, start=1)}


class _Trainer:
    """One training: model, optimiser and data order, advanced epoch by epoch, and its state for resuming."""

    def __init__(self, model: nn.Module, protocol: Protocol, phase: Phase, seed: int, history: int) -> None:
        self.model, self.protocol, self.phase = model, protocol, phase
        self.checkpoints = kept_epochs(protocol, phase, history)
        decay = protocol.weight_decay if phase == "regular" else 0.0
        self.augmentation = protocol.augmentation if phase == "regular" else "none"
        self.epochs = protocol.epochs if phase == "regular" else protocol.overfitting_epochs
        if protocol.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                model.parameters(), protocol.learning_rate, protocol.momentum, weight_decay=decay
            )
        else:
            self.optimizer = torch.optim.Adam(model.parameters(), protocol.learning_rate, weight_decay=decay)
        # apart from each other, so that the order does not depend on the augmentation
        self.order = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.history: list[dict[str, Any]] = []
        self.kept: dict[str, dict[str, Tensor]] = {}

    def epoch(self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> None:
        """Train one epoch and append its record to the history."""
        number = len(self.history) + 1
        x, y = train
        total, correct, seen = 0.0, 0, 0
        device = device_of(self.model)
        self.model.train()
        order = torch.randperm(len(x), generator=self.order)
        for batch in torch.split(order, self.protocol.batch_size):
            if len(batch) == 1 and len(x) > 1:  # batch normalisation has no variance of one image
                continue
            images, labels = augment(x[batch], self.augmentation, self.noise).to(device), y[batch].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.protocol.precision == "bfloat16"):
                scores = logits(self.model(images)).to(images.dtype)
            loss = nn.functional.cross_entropy(scores, labels)
            self._check("loss", loss.item(), number)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(batch)
            correct += int((scores.argmax(1) == labels).sum())
            seen += len(batch)
        validation_loss, validation_accuracy = evaluate(self.model, *validation)
        self._check("validation loss", validation_loss, number)
        lowest = min((record["validation_loss"] for record in self.history), default=math.inf)
        self.history.append(
            {
                "phase": self.phase,
                "epoch": number,
                "train_loss": total / seen,
                "train_accuracy": correct / seen,
                "validation_loss": validation_loss,
                "validation_accuracy": validation_accuracy,
            }
        )
        names = [name for name, epoch in self.checkpoints.items() if epoch == number]
        if self.phase == "regular" and validation_loss < lowest:
            names.append("well_trained")
        for name in names:
            self.kept[name] = copy.deepcopy(self.model.state_dict())

    def _check(self, what: str, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"training diverged: {what} {loss} in epoch {epoch} of the {self.phase} training at learning "
                f"rate {self.protocol.learning_rate}; lower training.learning_rate or change the optimiser"
            )

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
            "random": random_states(),
            "history": self.history,
            "kept": self.kept,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"])
        self.noise.set_state(state["noise"])
        restore_random_states(state["random"])
        self.history, self.kept = list(state["history"]), dict(state["kept"])


def save_state(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Keep the state of a training, tensors and plain values, with the key that tells it from others.

    The kind of device tells, too: generators and sums of one differ from another's.
    """
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as stream:  # of a path torch would not say why it cannot write
            torch.save({"key": key, "device": chosen_device().type, **state}, stream)
        written = file_digest(temporary)
        with open(temporary, "ab") as stream:
            stream.write(written.encode("ascii"))


def _is_intact(path: Path) -> bool:
    """Return whether a state file ends with the digest of what stands before it; torch would not notice."""
    found, left = hashlib.sha256(), path.stat().st_size - _DIGEST
    with open(path, "rb") as stream:
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            found.update(piece)
            left -= len(piece)
        return stream.read() == found.hexdigest()[:_DIGEST].encode("ascii")


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """Return the state that an interrupted run of the very same training left on this kind of device, if any."""
    if not path.is_file():
        return None
    if not _is_intact(path):
        log.warning("%s is damaged; training starts again", path)
        return None
    try:
        state: Any = load_plain(path)
    except (pickle.UnpicklingError, *DAMAGED) as error:
        log.warning("%s is damaged (%s); training starts again", path, type(error).__name__)
        return None
    if not isinstance(state, dict) or (state.get("key"), state.get("device")) != (key, chosen_device().type):
        log.warning("%s belongs to another training; training starts again", path)
        return None
    return state


def train(
    build: Callable[[], nn.Module],
    dataset: Dataset,
    protocol: Protocol,
    folder: str | Path,
    seed: int,
    origin: Mapping[str, str],
    phase: Phase = "regular",
    progress: bool = True,
    history: int = 0,
) -> pd.DataFrame:
    """Train a model from one seed and write its checkpoints, history and results.

    The regular phase writes to `folder` third1, third2, third3 and well_trained as safetensors, history.csv with one
    row per epoch, and results.csv with loss and accuracy of each checkpoint on each split. The overfitting phase,
    which starts from the same weights and sees the same order of images, writes overfitted, overfitted_history.csv and
    overfitted_results.csv, and overfitting1, overfitting2, ..., of which there are no results. The shuffled phase is
    that training with the labels of the train split in random order, drawn from the seed; it writes shuffled,
    shuffled_history.csv and shuffled_results.csv, whose accuracy on the train split is of those labels. A state file is
    kept after each epoch; a call that finds one of the same training goes on there.

    Args:
        build: Returns the model, freshly initialised from torch's global generator.
        dataset: Data with the splits train, validation and test.
        protocol: Optimiser, epochs and so on.
        folder: Where to write.
        seed: Seed of initialisation and data order; equal seeds give equal bits on one number of threads of a
            processor, or on one kind of GPU.
        origin: Provenance; its entries "model" and "code" tell one training from another when resuming.
        phase: "regular", "overfitting" or "shuffled".
        progress: Show a progress bar.
        history: Checkpoints on the way through the overfitting phase; see `kept_epochs`.

    Returns:
        The table of results: checkpoint, split, loss, accuracy.

    Raises:
        TrainingError: The loss of a batch or of the validation split is not finite.
    """
    folder = Path(folder)
    state_path = folder / f"state_{phase}.pt"
    key = digest(asdict(protocol), dataset.digest, seed, phase, history, origin.get("model"), origin.get("code"))
    tensors = {split: split_tensors(dataset, split) for split in SPLITS}
    if phase == "shuffled":
        images, labels = tensors["train"]
        drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        tensors["train"] = images, labels[drawn]
    results = []
    with deterministic():
        model = _fresh(build, seed)
        if protocol.precision == "bfloat16" and emulates_bfloat16(device_of(model)):
            log.warning(
                "%s has no instructions for bfloat16, whose products take up to 30 times as long as float32's there: "
                "set training.precision to float32, or train on a GPU",
                torch.backends.cpu.get_cpu_capability(),
            )
        trainer = _Trainer(model, protocol, phase, seed, history)
        state = load_state(state_path, key)
        if state is not None:
            trainer.resume(state)
            log.info("the %s training goes on after epoch %d", phase, len(trainer.history))
        with tqdm(
            total=trainer.epochs, initial=len(trainer.history), desc=phase, mininterval=5, disable=not progress
        ) as bar:
            while len(trainer.history) < trainer.epochs:
                trainer.epoch(tensors["train"], tensors["validation"])
                record = trainer.history[-1]
                log.info("%s", record)
                bar.update()
                save_state(state_path, key, trainer.state())
        for name in [*trainer.checkpoints, *(["well_trained"] if phase == "regular" else [])]:
            model.load_state_dict(trainer.kept[name])
            save_weights(folder / f"{name}.safetensors", model, origin)
            if name in EVALUATED:
                results.append(checkpoint_results(model, name, tensors))
    table = pd.concat(results, ignore_index=True)
    prefix = {"regular": "", "overfitting": "overfitted_", "shuffled": "shuffled_"}[phase]
    write_csv(folder / f"{prefix}history.csv", pd.DataFrame(trainer.history, columns=HISTORY))
    write_csv(folder / f"{prefix}results.csv", table)
    state_path.unlink(missing_ok=True)
    return table


def _fresh(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build().to(chosen_device())


def initialise(build: Callable[[], nn.Module], path: str | Path, seed: int, origin: Mapping[str, str]) -> None:
    """Write a checkpoint of the model before its first step: the weights from which `train` starts.

    Args:
        build: See `train`.
        path: The checkpoint's file.
        seed: See `train`.
        origin: Provenance.
    """
    with deterministic():
        save_weights(path, _fresh(build, seed), origin)


def checkpoint_results(model: nn.Module, name: str, tensors: Mapping[str, tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """Return loss and accuracy of a checkpoint on each split: checkpoint, split, loss, accuracy."""
    rows = [(name, split, *evaluate(model, *tensors[split])) for split in tensors]
    return pd.DataFrame(rows, columns=["checkpoint", "split", "loss", "accuracy"])


def adopt(model: nn.Module, dataset: Dataset, folder: str | Path, origin: Mapping[str, str]) -> pd.DataFrame:
    """Take a user's trained model into a run: write it as the well-trained checkpoint, with its results.

    Raises:
        TrainingError: The model does not return one score per class.
    """
    folder = Path(folder)
    tensors = {split: split_tensors(dataset, split) for split in SPLITS}
    with torch.no_grad(), evaluation(model):
        scores = logits(model(tensors["train"][0][:1]))
    if scores.shape != (1, len(dataset.classes)):
        raise TrainingError(
            f"the model returns {tuple(scores.shape[1:])} scores for an image, but the data has {len(dataset.classes)} "
            f"classes ({', '.join(dataset.classes[:5])}{', ...' if len(dataset.classes) > 5 else ''})"
        )
    save_weights(folder / "well_trained.safetensors", model, origin)
    table = checkpoint_results(model, "well_trained", tensors)
    write_csv(folder / "results.csv", table)
    write_csv(folder / "history.csv", pd.DataFrame(columns=HISTORY))
    return table


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, atomically, with nine significant digits."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.9g")
