"""Activation maximisation: images that a network itself would take for a class, with and without a generator.

Images of plain gradient ascent are held together by an L2 decay, a jitter and a blur; those of a generator by what the
generator can make: it is trained to make images of the codes that a network's last hidden layer gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnscan.artifacts import digest
from nnscan.data import Dataset
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Method, Setting
from nnscan.fitting import Fitting, fit
from nnscan.models import (
    capture,
    chosen_device,
    device_of,
    evaluation,
    load_weights,
    logits,
    prepare,
    read_state,
    save_weights,
)
from nnscan.scores import BATCH, answers, class_scores, followed, own_scores, ready
from nnscan.smoothing import blurred
from nnscan.training import deterministic, split_tensors, write_csv

STEPS, RATE = 200, 0.05
"""Steps of Adam, and the learning rate of the first as a share of the box; it falls linearly to zero."""
DECAY = 0.01
"""Weight of the sum of squared pixels."""
JITTER = 1 / 16
"""Largest shift of the image in each step, as a share of the side."""
BLUR, BLUR_EVERY = 1 / 32, 10
"""Standard deviation of the blur, as a share of the side, and steps between two of them; none in the last quarter."""
NOISE = 0.01
"""Standard deviation of the noise at which images start, as a share of the box."""

CODE_STEPS, CODE_RATE, CODE_DECAY = 200, 0.1, 0.005
"""Steps of Adam on codes, in standard deviations, and the weight of the sum of their squares."""
DEVIATIONS = 3
"""Standard deviations at which the box of codes ends."""
FEATURE_WEIGHT = 0.1
"""Weight of the feature loss beside that of the image, of which each is 1 for a constant guess."""
WIDTH = 32
"""Filters of the generator's last hidden layer; the one before has twice, the first one four times as many."""

_IMAGES = 256  # in one pass without gradients
_CODES = ("floor", "ceiling", "deviation")
_DOUBLINGS = 3
_LARGEST = 4096  # pixels along a side


# Activation maximisation ----------------------------------------------------------------------------------------------


def _box(setting: Setting, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return the ends (C, 1, 1) of the box in which images must stay.

    Raises:
        ScanError: The setting has none, or one for other channels.
    """
    if setting.box is None or {len(end) for end in setting.box} != {shape[0]}:
        raise ScanError(
            f"activation maximisation needs the smallest and the largest value of {shape[0]} channels (Dataset.box), "
            f"and the setting has {setting.box}"
        )
    low, high = (torch.tensor(end, dtype=torch.float32)[:, None, None] for end in setting.box)
    return low, high


@torch.inference_mode(False)
def activation_maximisation(
    model: nn.Module, shape: tuple[int, int, int], classes: Sequence[int], setting: Setting
) -> Tensor:
    """Return images (N, C, H, W) that a network gives a high score of a class: `max_x S_c(x) - l |x|^2` in the box.

    Gradient ascent by Adam from weak noise around zero, the value to which the decay draws: black where inputs lie in
    [0, 1], the mean color where they are standardised. In each step the network sees the image shifted by up to a
    sixteenth of its side, and now and then the image is blurred; both stop in the last quarter of the steps. After each
    step pixels are brought back into the box of the data.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        shape: C, H, W of the images.
        classes: The class of each image.
        setting: Its box is that of the pixels as fed to the network; its seed draws noise and shifts, the same for each
            image.

    Raises:
        ScanError: The setting has no box.
        ModelError: The network has no such class scores.

    Source: Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009); decay: Simonyan et al. 2013, eq.
    1; blur: Yosinski et al. 2015; shifts: Mordvintsev et al. 2015. Si et al. 2022, fig. 21.
    """
    low, high = (end.to(device_of(model), dtype_of(model)) for end in _box(setting, shape))
    generator = torch.Generator().manual_seed(setting.seed)
    noise = torch.randn((1, *shape), generator=generator).to(low)
    start = (NOISE * (high - low) * noise).clamp(low, high).expand(len(classes), *shape)
    start, prepared = ready(model, start, classes)
    reach, sigma = round(JITTER * min(shape[1:])), BLUR * min(shape[1:])
    shifts = torch.randint(-reach, reach + 1, (STEPS, 2), generator=generator).tolist()
    parts = []
    for first in range(0, len(classes), BATCH):
        own = classes[first : first + BATCH]
        # in units of the box, so that one learning rate fits all data
        image = (start[first : first + BATCH] / (high - low)).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([image], RATE)
        for number, shift in enumerate(shifts):
            free = number < 3 * STEPS // 4
            optimizer.param_groups[0]["lr"] = RATE * (1 - number / STEPS)
            with torch.enable_grad():
                x = image * (high - low)
                seen = x.roll(shift if free else (0, 0), (2, 3))
                gain = own_scores(followed(logits(prepared(seen.clone()))), own) - DECAY * x.square().sum((1, 2, 3))
                (image.grad,) = torch.autograd.grad(-gain.sum(), image)
            optimizer.step()
            if free and (number + 1) % BLUR_EVERY == 0:
                image.data = blurred(image.data, sigma)
            image.data = image.data.clamp(low / (high - low), high / (high - low))
        parts.append((image.detach() * (high - low)).clamp(low, high))
    return torch.cat(parts)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of a network's parameters, float32 without any."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


# The generator --------------------------------------------------------------------------------------------------------


class Head:
    """The last linear layer of a network, whose input is the code of an image.

    Attributes:
        name: The layer.
    """

    def __init__(self, prepared: nn.Module, x: Tensor) -> None:
        """Find the layer by a probe pass.

        Args:
            prepared: A prepared network.
            x: An image (1, C, H, W).

        Raises:
            ModelError: The class scores are not what one linear layer gives.
        """
        self._prepared = prepared
        linear = [name for name, module in prepared.named_modules() if isinstance(module, nn.Linear)]
        with torch.no_grad(), capture(prepared, linear) as outputs:
            scores = logits(prepared(x.clone()))
        last = [name for name, output in outputs.items() if torch.equal(output, scores)]
        if not last:
            raise ModelError(
                "a generator is trained on the input of the linear layer that gives the class scores, and this network "
                "has none that nnscan can see: its scores come from something else than a torch.nn.Linear"
            )
        self.name = last[-1]

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        kept: list[Tensor] = []
        layer = self._prepared.get_submodule(self.name)
        handle = layer.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
        try:
            yield kept
        finally:
            handle.remove()

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes (N, D) of images (N, C, H, W), with their graph where there is one."""
        with self._watched() as kept:
            self._prepared(x.clone())
        return kept[-1].flatten(1)


class Generator(nn.Module):
    """Makes images of codes of a network's last hidden layer.

    Attributes:
        size: H and W of the images (2,).
        low: Smallest value of each channel (C,), as fed to a network.
        high: Largest value of each channel (C,); images lie between these, but in training.
        mean: Mean of each channel of the training images (C,).
        spread: Standard deviation of each channel (C,).
        floor: Smallest value that codes may take (D,): 0, the end of a ReLU, or of codes that go below it
            -`DEVIATIONS` standard deviations.
        ceiling: Largest value that codes may take (D,): `DEVIATIONS` standard deviations.
        deviation: Standard deviation of the codes of the training images (D,), 1 for those that never change.

    Source: up-convolutions after Dosovitskiy and Brox 2016, smaller.
    """

    size: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    spread: Tensor
    floor: Tensor
    ceiling: Tensor
    deviation: Tensor

    def __init__(self, codes: int, channels: int, size: tuple[int, int], width: int = WIDTH) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(size))
        for name, value in (("low", 0.0), ("high", 1.0), ("mean", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        for name, value in zip(_CODES, (0.0, 1.0, 1.0), strict=True):
            self.register_buffer(name, torch.full((codes,), value))
        self._first = tuple(-(-side // 2**_DOUBLINGS) for side in size)
        self.linear = nn.Linear(codes, 4 * width * self._first[0] * self._first[1])
        self.up = nn.Sequential(
            nn.ReLU(), nn.Conv2d(4 * width, 8 * width, 3, padding=1), nn.PixelShuffle(2),
            nn.ReLU(), nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.PixelShuffle(2),
            nn.ReLU(), nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return images (N, C, H, W), as fed to a network, of codes (N, D)."""
        maps = self.linear(codes / self.deviation).reshape(len(codes), -1, *self._first)
        height, width = self.size.tolist()
        found: Tensor = self.last(functional.relu(self.up(maps)))[..., :height, :width]
        mean, spread, low, high = (value[:, None, None] for value in (self.mean, self.spread, self.low, self.high))
        made: Tensor = found * spread + mean
        if not self.training:  # a value at the end of the box would not learn
            made = torch.minimum(torch.maximum(made, low), high)
        return made


def train_generator(
    model: nn.Module,
    dataset: Dataset,
    protocol: Fitting,
    folder: str | Path,
    seed: int,
    origin: Mapping[str, str],
    progress: bool = True,
) -> pd.DataFrame:
    """Train a generator for the codes of a network on the training images, and write it with its tables.

    The loss is `|G(c) - x|^2 / var(x) + w mean ((E(G(c)) - c) / sd)^2` with the network E up to its last hidden layer
    and c = E(x). The adversarial loss of the paper is left out: images are smoother for it, and training needs no
    second network that could fail to settle. Written to `folder` are generator.safetensors, generator_history.csv
    (step, loss) and generator_results.csv. A state file is kept on the way; a call that finds one of the same training
    goes on there.

    Args:
        model: A network whose class scores come from a linear layer; it is left unchanged.
        dataset: Data with the splits train and validation; labels are not used.
        protocol: Steps, batch size and learning rate.
        folder: Where to write.
        seed: Seed of initialisation and of the images' order.
        origin: Provenance; its entries "model" and "code" tell one training from another when resuming.
        progress: Show a progress bar.

    Returns:
        The table of results on the validation images: images ("generator": made of the codes of the originals; "mean":
        the mean training image), error (mean squared error of pixels by their variance) and agreement (share of made
        images that the network gives the class of the original; NaN for "mean").

    Raises:
        ModelError: The class scores come from something else.
        TrainingError: A loss is not finite.

    Source: Dosovitskiy and Brox, "Generating Images with Perceptual Similarity Metrics based on Deep Networks" (2016);
    Nguyen et al. 2016.
    """
    folder = Path(folder)
    state_path = folder / "state_generator.pt"
    start = [value.cpu().numpy() for value in model.state_dict().values()]
    settings = (asdict(protocol), WIDTH, FEATURE_WEIGHT, DEVIATIONS)
    key = digest("generator", *settings, dataset.digest, seed, origin.get("model"), origin.get("code"), *start)
    x, _ = split_tensors(dataset, "train")
    device, kind = chosen_device(), dtype_of(model)
    prepared = prepare(model).to(device)
    head = Head(prepared, x[:1].to(device, kind))
    codes = _all_codes(head, x, device, kind)
    low, high = dataset.box
    with deterministic():
        torch.manual_seed(seed)
        network = Generator(codes.shape[1], x.shape[1], (int(x.shape[2]), int(x.shape[3])), WIDTH)
        deviation = codes.std(0)
        network.low.copy_(torch.tensor(low))
        network.high.copy_(torch.tensor(high))
        network.mean.copy_(x.mean((0, 2, 3)))
        network.spread.copy_(x.std((0, 2, 3)).clamp(min=1e-6))
        network.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))
        network.ceiling.copy_(DEVIATIONS * deviation)
        network.floor.copy_(torch.where(codes.amin(0) < 0, -DEVIATIONS * deviation, 0.0))
        network.to(device)
        variance = float(x.var())

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            given, images = codes[batch].to(device), x[batch].to(device)
            made = network(given)
            features = head.codes(made.to(kind)).to(given.dtype)
            image = (made - images).square().mean() / variance
            feature = ((features - given) / network.deviation).square().mean()
            whole: Tensor = image + FEATURE_WEIGHT * feature
            return whole

        history = fit(network, loss, len(x), protocol, seed, state_path, key, progress)
        results = _inversion(network, head, prepared, dataset)
    save_weights(folder / "generator.safetensors", network, origin)
    write_csv(folder / "generator_history.csv", pd.DataFrame(history, columns=["step", "loss"]))
    write_csv(folder / "generator_results.csv", results)
    state_path.unlink(missing_ok=True)
    return results


def _all_codes(head: Head, x: Tensor, device: torch.device, kind: torch.dtype) -> Tensor:
    """Return the codes (N, D) of all images, float32, on the CPU."""
    with torch.no_grad():
        return torch.cat([head.codes(part.to(device, kind)).float().cpu() for part in torch.split(x, _IMAGES)])


def _inversion(network: Generator, head: Head, model: nn.Module, dataset: Dataset) -> pd.DataFrame:
    """Return how well validation images are made again; see `train_generator`."""
    x, _ = split_tensors(dataset, "validation")
    device, kind = device_of(network), dtype_of(model)
    with torch.no_grad(), evaluation(network):
        codes = _all_codes(head, x, device, kind)
        made = torch.cat([network(part.to(device)).cpu() for part in torch.split(codes, _IMAGES)])
    variance = float(x.var())
    mean = torch.from_numpy(dataset.inputs("train")).mean(0)
    same = (torch.tensor(answers(model, made.to(kind))) == torch.tensor(answers(model, x.to(kind)))).float().mean()
    rows = [
        ("generator", float((made - x).square().mean()) / variance, float(same)),
        ("mean", float((mean - x).square().mean()) / variance, math.nan),
    ]
    return pd.DataFrame(rows, columns=["images", "error", "agreement"])


def load_generator(path: str | Path) -> Generator:
    """Return a generator from its checkpoint, in evaluation mode; no code of the file is run.

    Args:
        path: A file of `train_generator`.

    Raises:
        ModelError: The file cannot be read or is not one of a generator.
    """
    state = read_state(path)
    shapes = {"floor": 1, "low": 1, "size": 1, "last.weight": 4}
    wrong = [name for name, count in shapes.items() if name not in state or state[name].ndim != count]
    if wrong:
        raise ModelError(
            f"the checkpoint {path} is not one of a generator ({', '.join(wrong)} missing or of another shape); give a "
            "file that maximisation.train_generator wrote"
        )
    size = state["size"].tolist()
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= _LARGEST for side in size):
        raise ModelError(f"the checkpoint {path} is not one of a generator: its images would have the size {size}")
    network = Generator(len(state["floor"]), len(state["low"]), (size[0], size[1]), state["last.weight"].shape[1])
    load_weights(network, state, path)
    return network.to(chosen_device()).eval()


@torch.inference_mode(False)
def generator_maximisation(
    model: nn.Module, shape: tuple[int, int, int], classes: Sequence[int], setting: Setting
) -> Tensor:
    """Return images (N, C, H, W) of the codes to which a network gives a high score: DGN-AM.

    `max_y S_c(G(y)) - l |y / sd|^2` by Adam over codes y of the setting's generator G, which after each step are
    brought back into their box: from 0 (where they come from a ReLU) to 3 standard deviations. Codes start as noise of
    their standard deviations, in the box. The generator may come from another network than the one that is explained.

    Args:
        model: Any network that has a gradient; it is left unchanged.
        shape: C, H, W of the images.
        classes: The class of each image.
        setting: Its generator is G (see `load_generator`); its seed draws the start, the same for each image.

    Raises:
        ModelError: The setting has no such generator, or it makes images of another shape; the network has no such
            class scores.

    Source: Nguyen et al., "Synthesizing the Preferred Inputs for Neurons in Neural Networks via Deep Generator
    Networks" (2016), eq. 1 and section 2.3; Si et al. 2022, fig. 22.
    """
    if setting.generator is None:
        raise ModelError(
            "activation maximisation with a prior needs a generator, and the setting has none; train one with "
            "maximisation.train_generator"
        )
    if not all(isinstance(getattr(setting.generator, name, None), Tensor) for name in _CODES):
        raise ModelError(
            f"the generator {type(setting.generator).__name__} does not say in which box its codes lie; give one of "
            "maximisation.load_generator"
        )
    device, kind = device_of(model), dtype_of(model)
    made = prepare(setting.generator).to(device, kind)
    floor, ceiling, deviation = (getattr(made, name) for name in _CODES)
    noise = torch.randn(floor.shape, generator=torch.Generator().manual_seed(setting.seed))
    start = (noise.to(floor) * deviation).clamp(floor, ceiling).expand(len(classes), -1)
    with torch.no_grad():
        first = made(start[:1])
    if tuple(first.shape) != (1, *shape):
        raise ModelError(f"the generator makes images of {tuple(first.shape[1:])}, not of {shape}; it is of other data")
    _, prepared = ready(model, first.expand(len(classes), *shape), classes)
    parts = []
    for number in range(0, len(classes), BATCH):
        own = classes[number : number + BATCH]
        # in standard deviations, so that one learning rate fits all codes
        codes = (start[number : number + BATCH] / deviation).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([codes], CODE_RATE)
        for step in range(CODE_STEPS):
            optimizer.param_groups[0]["lr"] = CODE_RATE * (1 - step / CODE_STEPS)
            with torch.enable_grad():
                scores = followed(logits(prepared(made(codes * deviation))))
                gain = own_scores(scores, own) - CODE_DECAY * codes.square().sum(1)
                (codes.grad,) = torch.autograd.grad(-gain.sum(), codes)
            optimizer.step()
            codes.data = codes.data.clamp(floor / deviation, ceiling / deviation)
        with torch.no_grad():
            parts.append(made(codes.detach() * deviation))
    return torch.cat(parts)


# What images of classes are worth -------------------------------------------------------------------------------------


def synthesis_scores(
    images: Tensor, classes: Sequence[int], model: nn.Module, judges: Sequence[nn.Module], dataset: Dataset
) -> pd.DataFrame:
    """Return what networks say of images that were made for classes, and how near they come to training images.

    A high score by the network that an image was made for says little, other networks (judges, of other seeds) tell
    whether they see the class, too. An image is no copy if it is not much nearer to a training image than images of the
    validation split are, which may be given as images for comparison.

    Args:
        images: Images (N, C, H, W), as fed to the networks.
        classes: The class of each.
        model: The network that the images were made for.
        judges: Other networks; may be none.
        dataset: The data with the training images.

    Returns:
        image (number), class, score (class score), probability (of the class, softmax), agreement (share of judges that
        give the class, NaN without judges), distance (to the nearest training image, root mean square over pixels and
        channels, in units of the inputs), nearest (its position in the train split), nearest_class.

    Raises:
        ScanError: Classes are not one for each image, or training images have another shape.
        ModelError: A network has no such class scores.
    """
    x, prepared = ready(model, images, classes)
    train = torch.from_numpy(dataset.inputs("train"))
    if train.shape[1:] != x.shape[1:]:
        raise ScanError(f"images {tuple(x.shape[1:])} cannot be compared with training images {tuple(train.shape[1:])}")
    scores = class_scores(prepared, x).double()
    given = [answers(judge, x.to(device_of(judge), dtype_of(judge))) for judge in judges]
    agreement = [
        sum(answer[place] == label for answer in given) / len(given) if given else math.nan
        for place, label in enumerate(classes)
    ]
    flat = x.flatten(1).double().cpu()
    distances = torch.cat(
        [
            torch.cdist(flat, part.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
            for part in torch.split(train, _IMAGES)
        ],
        1,
    ).numpy()
    nearest = distances.argmin(1)
    return pd.DataFrame(
        {
            "image": range(len(x)),
            "class": list(classes),
            "score": own_scores(scores, classes).cpu().numpy(),
            "probability": own_scores(scores.softmax(1), classes).cpu().numpy(),
            "agreement": agreement,
            "distance": distances.min(1) / math.sqrt(train[0].numel()),
            "nearest": nearest,
            "nearest_class": dataset.splits["train"].labels[nearest],
        }
    )


METHODS = (
    Method(
        name="activation_maximisation",
        title="AM",
        family="activation maximisation",
        detail=None,
        class_specific=True,
        online=False,
        transparent=True,
        explains="class",
        scope="global",
        paper="Erhan et al., Univ. Montreal",
        year=2009,
        needs=("a gradient",),
        synthesise=activation_maximisation,
    ),
    Method(
        name="dgn_am",
        title="DGN-AM",
        family="activation maximisation",
        detail=None,
        class_specific=True,
        online=False,
        transparent=True,
        explains="class",
        scope="global",
        paper="Nguyen et al., NeurIPS",
        year=2016,
        needs=("a gradient", "a generator of images"),
        synthesise=generator_maximisation,
    ),
)
"""The survey's methods of activation maximisation (Si et al. 2022, table 3)."""
