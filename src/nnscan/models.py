"""Models: the zoo for small images, loading a user's own, and what a network is made of.

A *layer* of nnscan is the module whose output is a neuron's value before its ReLU: the convolution or linear map, or
the batch normalisation that follows it. The feature map of a filter is `f = relu(layer output)`.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import pickle
import sys
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnscan.artifacts import atomic_path
from nnscan.errors import LayerError, ModelError, did_you_mean
from nnscan.gating import GATES, Attention, ClassAttention
from nnscan.limits import DAMAGED

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SMOOTH_CALLS = frozenset(
    (
        *("sigmoid", "sigmoid_", "tanh", "tanh_", "softsign", "gelu", "silu", "silu_", "mish", "elu", "selu", "celu"),
        *("softplus", "hardswish", "hardsigmoid", "softmax", "log_softmax", "exp", "scaled_dot_product_attention"),
        *("layer_norm", "group_norm", "instance_norm", "local_response_norm"),
    )
)

_DAMAGED = (*DAMAGED, SafetensorError)

_SHOWN = 100  # characters of a name in a message

Kind = Literal["convolutional", "all"]


# The zoo ------------------------------------------------------------------------------------------------------------


class FCN(nn.Sequential):
    """Fully connected network: hidden layers with ReLU, then the class scores."""

    def __init__(self, in_channels: int, size: int, classes: int, widths: Sequence[int] = (256, 128, 64)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        incoming = in_channels * size * size
        for width in widths:
            layers += [nn.Linear(incoming, width), nn.ReLU()]
            incoming = width
        super().__init__(*layers, nn.Linear(incoming, classes))


class SequentialCNN(nn.Module):
    """A plain sequence of convolutions with ReLU and max-pooling, then a small fully connected head.

    Args:
        in_channels: Channels of the input.
        classes: Number of classes.
        features: The convolutional part.
        pooled: Side of the map after the adaptive average pooling in front of the head.
        channels: Channels of the last convolution.
        hidden: Width of the head's hidden layers.
        dropout: Share of the values that the head's hidden layers lose in training.
    """

    def __init__(
        self,
        features: nn.Sequential,
        channels: int,
        pooled: int,
        hidden: Sequence[int],
        classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        head: list[nn.Module] = []
        incoming = channels * pooled * pooled
        for width in hidden:
            head += [nn.Linear(incoming, width), nn.ReLU()]
            if dropout:
                head.append(nn.Dropout(dropout))
            incoming = width
        self.head = nn.Sequential(nn.Flatten(), *head, nn.Linear(incoming, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (N, classes) of images (N, C, H, W)."""
        scores: Tensor = self.head(self.pool(self.features(x)))
        return scores


class ClassAttentionCNN(nn.Module):
    """A plain sequence of convolutions whose last maps each class attends to by itself; see `gating.ClassAttention`.

    Args:
        features: The convolutional part.
        channels: Channels of the last convolution.
        classes: Number of classes.
    """

    def __init__(self, features: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = ClassAttention(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (N, classes) of images (N, C, H, W)."""
        scores: Tensor = self.head(self.features(x))
        return scores


def _without_last_pooling(features: nn.Sequential) -> nn.Sequential:
    return features[:-1] if isinstance(features[-1], nn.MaxPool2d) else features


def _attentive(
    features: nn.Sequential,
    channels: int,
    hidden: Sequence[int],
    classes: int,
    attention: Attention | None,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a network of convolutions with a head for 2 x 2 places, and with the attention that is asked for.

    Channel and channel-spatial attention follow each ReLU of the convolutions; the other weights of a seed stay what
    they are without. Class attention takes the place of the last max-pooling, for finer masks, and of the head.

    Raises:
        ModelError: There is no such attention, or it leaves nothing for the dropout.
    """
    if attention == "class":
        if dropout:
            raise ModelError("attention 'class' takes the place of the hidden layer behind which dropout acts")
        return ClassAttentionCNN(_without_last_pooling(features), channels, classes)
    model = SequentialCNN(features, channels, 2, hidden, classes, dropout)
    if attention is None:
        return model
    if attention not in GATES:
        raise ModelError(f"attention {attention!r} is not possible{did_you_mean(attention, (*GATES, 'class'))}")
    layers: list[nn.Module] = []
    width = 0
    for layer in features:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            width = layer.out_channels
        elif isinstance(layer, nn.ReLU):
            layers.append(GATES[attention](width))
    model.features = nn.Sequential(*layers)
    return model


_M = "pool"
_VGG11 = (64, _M, 128, _M, 256, 256, _M, 512, 512, _M, 512, 512)
_VGG16 = (64, 64, _M, 128, 128, _M, 256, 256, 256, _M, 512, 512, 512, _M, 512, 512, 512)
_SIMPLE = (16, _M, 32, _M, 64, _M)


def _truncated(plan: Sequence[int | str], convolutions: int | None) -> list[int | str]:
    total = sum(step != _M for step in plan)
    if convolutions is None:
        return list(plan)
    if not 1 <= convolutions <= total:
        raise ModelError(f"convolutions={convolutions} is not possible: this model has 1 to {total}")
    kept: list[int | str] = []
    for step in plan:
        if step != _M and sum(k != _M for k in kept) == convolutions:
            break
        kept.append(step)
    if convolutions < total and kept[-1] == _M:
        kept.pop()  # the global pooling of the head takes the place of the last one
    return kept


def _three_by_three(plan: Sequence[int | str], in_channels: int) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    incoming = in_channels
    for step in plan:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(incoming, step, 3, padding=1), nn.ReLU()]
            incoming = step
    return nn.Sequential(*layers), incoming


def fcn(in_channels: int, size: int, classes: int, widths: Sequence[int] = (256, 128, 64)) -> nn.Module:
    """Return a fully connected network for images of `size` x `size` pixels."""
    return FCN(in_channels, size, classes, widths)


def lenet5(in_channels: int, size: int, classes: int) -> nn.Module:
    """Return LeNet-5 with ReLU and max-pooling (LeCun 1998, in today's usual form), for 32 x 32 pixels."""
    features = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
    )
    return SequentialCNN(features, 16, 5, (120, 84), classes)


def simple_cnn(
    in_channels: int,
    size: int,
    classes: int,
    convolutions: int | None = None,
    attention: Attention | None = None,
    global_pooling: bool = False,
) -> nn.Module:
    """Return the simple CNN: three 3 x 3 convolutions of 16, 32 and 64 filters (the slides give no widths).

    Options are how many of the convolutions it has; attention: channel ("se"), channel-spatial ("cbam"), "class"; and
    global average pooling with one linear layer in the place of the last max-pooling and the head, as CAM needs it.

    Raises:
        ModelError: There is no such attention or number of convolutions, or attention and global pooling are both
            asked for.
    """
    features, channels = _three_by_three(_truncated(_SIMPLE, convolutions), in_channels)
    if global_pooling:
        if attention is not None:
            raise ModelError("a network with attention keeps its head; leave global_pooling out")
        return SequentialCNN(_without_last_pooling(features), channels, 1, (), classes)
    return _attentive(features, channels, (64,), classes, attention)


def alexnet(
    in_channels: int,
    size: int,
    classes: int,
    batch_norm: bool = False,
    dropout: float = 0.0,
    attention: Attention | None = None,
) -> nn.Module:
    """Return AlexNet for small images: its five convolutions, 3 x 3 throughout, and two fully connected layers.

    Options are batch normalisation behind each convolution, dropout behind the hidden linear layer, and attention as
    in `simple_cnn`.
    """

    def filters(incoming: int, count: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(incoming, count, 3, stride=stride, padding=1)
        return [convolution, *([nn.BatchNorm2d(count)] if batch_norm else []), nn.ReLU()]

    features = nn.Sequential(
        *filters(in_channels, 64, 2), nn.MaxPool2d(2),
        *filters(64, 192), nn.MaxPool2d(2),
        *filters(192, 384), *filters(384, 256), *filters(256, 256), nn.MaxPool2d(2),
    )  # fmt: skip
    return _attentive(features, 256, (512,), classes, attention, dropout)


def _vgg(plan: Sequence[int | str], in_channels: int, classes: int, convolutions: int | None) -> nn.Module:
    features, channels = _three_by_three(_truncated(plan, convolutions), in_channels)
    for module in features:
        if isinstance(module, nn.Conv2d):  # without it the deep plain stack does not start to learn
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return SequentialCNN(features, channels, 1, (512,), classes)


def vgg11(in_channels: int, size: int, classes: int, convolutions: int | None = None) -> nn.Module:
    """Return VGG-11 for small images, without batch normalisation (Wang Xinyuan, bachelor's thesis, ch. 4.1).

    With 3 input channels and 10 classes it has 9,488,266 parameters; its first four convolutions with the head that
    belongs to them have 1,097,610 (ch. 5.1).
    """
    return _vgg(_VGG11, in_channels, classes, convolutions)


def vgg16(in_channels: int, size: int, classes: int, convolutions: int | None = None) -> nn.Module:
    """Return VGG-16 for small images, without batch normalisation."""
    return _vgg(_VGG16, in_channels, classes, convolutions)


class _BasicBlock(nn.Module):
    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(incoming, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(inner + self.shortcut(x))
        return result


def resnet18(in_channels: int, size: int, classes: int) -> nn.Module:
    """Return ResNet-18 for small images: 3 x 3 stem of stride 1, no stem pooling."""
    blocks: list[nn.Module] = [nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    incoming = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [_BasicBlock(incoming, width, stride), _BasicBlock(width, width, 1)]
        incoming = width
    return SequentialCNN(nn.Sequential(*blocks), 512, 1, (), classes)


ZOO: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn,
    "lenet5": lenet5,
    "simple_cnn": simple_cnn,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "resnet18": resnet18,
}
"""Models by name. Each takes in_channels, size and classes; those that can be cut short take convolutions."""

_DEFAULT_OPTIONS = {"in_channels": 3, "size": 32, "classes": 10}


# Loading ------------------------------------------------------------------------------------------------------------


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"the model file {path} does not exist (looked in {path.resolve().parent})")
    name = f"nnscan_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _factory(source: str) -> Callable[..., nn.Module]:
    if source in ZOO:
        return ZOO[source]
    place, separator, name = source.rpartition(":")
    if not separator or not place:
        raise ModelError(
            f"model {source!r} does not exist{did_you_mean(source, ZOO)}, torchvision:<name>, "
            "package.module:factory, path/to/file.py:factory"
        )
    if place == "torchvision":
        from torchvision import models as torchvision_models

        existing = torchvision_models.list_models(module=torchvision_models)
        if name not in existing:
            raise ModelError(f"torchvision has no classification model {name!r}{did_you_mean(name, existing)}")
        builder: Callable[..., nn.Module] = torchvision_models.get_model_builder(name)
        return builder
    if place.endswith(".py"):
        module = _module_from_file(Path(place))
    else:
        if not all(part.isidentifier() for part in place.split(".")):
            raise ModelError(f"model {source!r}: {place!r} is no name of a package or module")
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ModelError(f"cannot import {place!r} for model {source!r}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{place} has no factory {name!r}{did_you_mean(name, callables)}")
    if _is_installed(module) and not _says_network(factory):
        raise ModelError(
            f"{source!r} belongs to an installed package and does not say that it returns a network: it is neither a "
            "class derived from torch.nn.Module nor a function annotated to return one. nnscan calls nothing else "
            "there; write a factory of your own in a file that calls it"
        )
    return factory  # type: ignore[no-any-return]


_PROJECT = ("benchmarks", "docs", "tests", "workflow")


def _is_installed(module: ModuleType) -> bool:
    """Return whether a module comes with a Python, any on this machine, with a package installed there, or with nnscan.

    nnscan may be installed from its repository, whose other code is no more the user's own than the package.
    """
    if getattr(module, "__file__", None) is None:
        return True
    path, package = Path(str(module.__file__)).resolve(), Path(__file__).resolve().parent
    project = package.parents[1]
    own = [package, *(project / name for name in _PROJECT if (project / "Snakefile").is_file())]
    if any(path.is_relative_to(folder) for folder in own):
        return True
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(
        (folder / "os.py").is_file() for folder in path.parents
    )


def _says_network(factory: Callable[..., Any]) -> bool:
    """Return whether a callable is a class of networks, or annotated to return one."""
    found: Any = factory
    if not isinstance(factory, type):
        try:
            found = typing.get_type_hints(factory).get("return")
        except (NameError, TypeError):  # annotated with what is not there at run time, or not by Python
            return False
    return isinstance(found, type) and issubclass(found, nn.Module)


def build_model(source: str, factory_options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a freshly initialised model, in training mode; seed torch before for a reproducible one.

    Args:
        source: A name of `ZOO`, `torchvision:<name>`, `package.module:factory` or `path/to/file.py:factory`.
        factory_options: Keyword arguments of the factory. Models of the zoo take in_channels (3), size (32) and
            classes (10) besides their own.

    Raises:
        ModelError: The source does not exist, does not accept the options or returns no module.
    """
    options = dict(factory_options or {})
    if source in ZOO:
        options = {**_DEFAULT_OPTIONS, **options}
    factory = _factory(source)
    try:
        model = factory(**options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model {source!r} does not accept the options {options}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{source!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def read_state(
    path: str | Path, state_dict_key: str | None = None, strip_prefix: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint; no code of the file is run.

    Args:
        path: A safetensors file, or a file of torch.save, read with weights_only=True.
        state_dict_key: The key of the state dict inside the checkpoint; None where the file is the state dict.
        strip_prefix: A prefix to take off each key, for example "module.".

    Raises:
        ModelError: The file is missing, damaged, or does not hold a state dict there.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"the checkpoint {path} does not exist (looked in {path.resolve().parent})")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else load_plain(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the checkpoint {path} is damaged or holds something else than tensors, which is not loaded because that "
            "could run code; save the model's state_dict()"
        ) from error
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"the checkpoint {path} cannot be read, it is damaged: {reason}") from error
    if state_dict_key is not None:
        if not isinstance(state, Mapping) or state_dict_key not in state:
            keys = list(state) if isinstance(state, Mapping) else []
            raise ModelError(f"the checkpoint {path} has no key {state_dict_key!r}{did_you_mean(state_dict_key, keys)}")
        state = state[state_dict_key]
    if not isinstance(state, Mapping) or not all(map(_is_weight, state.items())):
        inner = state.items() if isinstance(state, Mapping) else ()
        keys = [key[:_SHOWN] for key, value in inner if isinstance(key, str) and isinstance(value, Mapping)][:10]
        hint = f"; name one of its keys as state_dict_key: {', '.join(keys)}" if keys else ""
        raise ModelError(f"the checkpoint {path} is not a state dict of tensors{hint}")
    if strip_prefix:
        return {key.removeprefix(strip_prefix): value for key, value in state.items()}
    return dict(state)


def load_plain(path: str | Path) -> Any:
    """Return what a file of torch.save holds, if it is tensors, numbers and text: no code of the file is run.

    Raises:
        pickle.UnpicklingError: It holds something else.
        ValueError: It needs more memory than there is, or is packed, which torch.save never does and which could make a
            small file large.
        Exception: It is damaged; torch raises many kinds.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(part.file_size for part in archive.infolist())
        if claimed > Path(path).stat().st_size:
            raise ValueError("its parts are packed or overlap")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise ValueError("it needs more memory than there is") from error


def _is_weight(item: tuple[Any, Any]) -> bool:
    """Return whether an entry of a checkpoint is a name and a plain array of real numbers."""
    key, value = item
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_complex())
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str | Path) -> None:
    """Load a state dict into a model, every key and shape matching.

    Raises:
        ModelError: Keys or shapes differ, naming the first of each, or a value is not finite.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shaped = [
        f"{key}: model {tuple(own[key].shape)}, checkpoint {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(name[:_SHOWN] for name in found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("keys missing", missing), ("unknown keys", unknown), ("shapes differ", shaped))
        if found
    ]
    if problems:
        raise ModelError(
            f"the checkpoint {origin} does not fit the model: {'; '.join(problems)}. "
            "Check the model's options, state_dict_key and strip_prefix."
        )
    for key, value in state.items():
        # in the model's own type, in which alone it counts; some types cannot be asked
        if value.is_floating_point() and not bool(torch.isfinite(value.to(own[key].dtype)).all()):
            raise ModelError(f"the checkpoint {origin} holds values that are not finite in {key}")
    model.load_state_dict(state)


def save_weights(path: str | Path, model: nn.Module, origin: Mapping[str, str]) -> None:
    """Write a model's state dict as safetensors, with its provenance as metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # one entry: safetensors writes several in an order of its own
    content = save(state, metadata={"nnscan": json.dumps(dict(origin), sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # not by safetensors, whose own temporary file a kill would leave behind


def load_model(
    source: str,
    weights: str | Path | None = None,
    factory_options: Mapping[str, Any] | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
) -> nn.Module:
    """Return a model in evaluation mode, with the given weights or freshly initialised.

    Args:
        source: `"lenet5"` or another name of the zoo, `"torchvision:vgg11"`, `"package.module:factory"` or
            `"path/to/file.py:factory"`.
        weights: A checkpoint: safetensors, or a file of torch.save (read without running code).
        factory_options: Keyword arguments of the factory.
        state_dict_key: The key of the state dict inside the checkpoint.
        strip_prefix: A prefix to take off the checkpoint's keys.

    Raises:
        ModelError: The model or checkpoint does not exist, cannot be read or does not fit.
    """
    model = build_model(source, factory_options)
    if weights is not None:
        load_weights(model, read_state(weights, state_dict_key, strip_prefix), weights)
    return model.eval()


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def is_convolutional(model: nn.Module) -> bool:
    """Return whether a model has a convolution; the layers of one that has none are numbered as layers."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; inputs are moved there."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


_device_setting: ContextVar[str] = ContextVar("device", default="auto")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside the block, a GPU may or may not use TF32 for products of float32, as torch lets it for convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def device_setting(setting: str) -> Iterator[None]:
    """Inside the block models are put on the device of a setting (see `chosen_device`), with products in float32."""
    token = _device_setting.set(setting)
    try:
        with tf32(False):  # of some thousandths that TF32 is off, gradients make hundredths
            yield
    finally:
        _device_setting.reset(token)


def chosen_device() -> torch.device:
    """Return the device of the setting: "auto" is the first GPU where torch sees one, else the CPU.

    Raises:
        ModelError: The setting names a device that torch does not see.
    """
    setting = _device_setting.get()
    seen = ["cpu"]
    if torch.backends.mps.is_available():
        seen.append("mps")
    if torch.cuda.is_available():
        seen += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if setting == "auto":
        return torch.device("cuda" if "cuda" in seen else seen[-1])
    if setting not in seen:
        raise ModelError(f"device {setting!r} was asked for, but torch sees only: {', '.join(seen)}")
    return torch.device(setting)


# Structure ----------------------------------------------------------------------------------------------------------


def prepare(model: nn.Module) -> nn.Module:
    """Return a copy that can be scanned: evaluation mode, no in-place operations, no gradients of parameters.

    The copy has parameters of its own that share the model's memory; it must not write to them.
    """
    shared = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()}
    prepared = copy.deepcopy(model, shared).eval()
    for module in prepared.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return prepared


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def logits(output: Any) -> Tensor:
    """Return the class scores of a model's output: a tensor, or the first tensor of a tuple or dict."""
    if isinstance(output, Tensor):
        return output
    values = (
        list(output.values())
        if isinstance(output, Mapping)
        else list(output)
        if isinstance(output, tuple | list)
        else []
    )
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ModelError(f"the model returned {type(output).__name__} without a tensor of class scores")


def resolve_layer(model: nn.Module, layer: str | nn.Module) -> str:
    """Return the dotted name of a layer given by name or by module.

    Raises:
        LayerError: The model has no such layer; the closest name and all names are listed.
    """
    names: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is layer:
                return name
        raise LayerError(f"the module {type(layer).__name__} does not belong to the model. Known: {', '.join(names)}")
    if layer not in names:
        leaves = [name for name, module in names.items() if not list(module.children())]
        raise LayerError(f"the model has no layer {layer!r}{did_you_mean(layer, leaves)}")
    return layer


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of layers, by name, at each forward pass inside the block.

    The outputs are clones, so that a later in-place operation does not change them; they keep their graph.

    Raises:
        LayerError: A layer does not exist.
        ModelError: A layer returns something else than a tensor.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"the layer {name!r} returns {type(output).__name__}, not a tensor; choose a layer inside it"
                )
            outputs[name] = output.clone()

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = model.get_submodule(resolve_layer(model, layer)).register_forward_hook(keep(layer))
            stack.callback(handle.remove)
        yield outputs


class _ReachedError(Exception):
    """The last call of a layer that is needed has been made."""


@contextmanager
def counted_calls(model: nn.Module, layers: Sequence[str], needed: int | None = None) -> Iterator[list[str]]:
    """Collect the calls of layers inside the block, by name.

    Args:
        model: The model.
        layers: Names of layers.
        needed: The number of calls after which the block ends, so that nothing behind the layers is run.
    """
    calls: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls.append(name)
            if len(calls) == needed:
                raise _ReachedError

        return hook

    with ExitStack() as stack, suppress(_ReachedError):
        for layer in layers:
            stack.callback(model.get_submodule(layer).register_forward_hook(watch(layer)).remove)
        yield calls


@dataclass(frozen=True)
class NeuronLayer:
    """A layer and what belongs to it.

    Attributes:
        name: The module whose output is the neuron's value before its ReLU.
        weights: The convolution or linear map that holds the neuron's weights; equals `name` without normalisation.
        activation: The activation module fed by `name`, where there is one.
        convolutional: Whether `weights` is a convolution.
    """

    name: str
    weights: str
    activation: str | None
    convolutional: bool


_Seen = tuple[Tensor, int] | None
"""A tensor and how often it had been changed in place when it was seen."""


def _seen(value: Any) -> _Seen:
    return (value, value._version) if isinstance(value, Tensor) else None


@torch.inference_mode(False)
def network_layers(model: nn.Module, x: Tensor) -> list[NeuronLayer]:
    """Return every convolutional and linear layer in the order of the forward pass.

    A normalisation or activation belongs to a layer when it is fed that layer's very output, unchanged by in-place
    operations.

    Args:
        model: Any network.
        x: An input (N, C, H, W) for one probe pass.
    """
    calls: list[tuple[str, nn.Module, _Seen, _Seen]] = []
    entering: list[_Seen] = [None]

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        entering[0] = _seen(args[0] if args else None)

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.append((name, module, entering[0], _seen(output)))

        return hook

    with ExitStack() as stack, torch.no_grad(), evaluation(model):
        for name, module in model.named_modules():
            if name and not list(module.children()):
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(record(name)).remove)
        model(x[:1].to(device_of(model), copy=True))

    def consumer(output: _Seen, kinds: tuple[type[nn.Module], ...] | None) -> tuple[str, _Seen] | None:
        for name, module, incoming, outgoing in calls:
            if incoming and output and incoming[0] is output[0] and incoming[1] == output[1]:
                if kinds is not None and isinstance(module, kinds):
                    return name, outgoing
                if kinds is None and type(module).__module__ == "torch.nn.modules.activation":
                    return name, outgoing
        return None

    layers: dict[str, NeuronLayer] = {}
    for name, module, _, output in calls:
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            normalised = consumer(output, _NORMALISATIONS)
            last, last_output = normalised or (name, output)
            activated = consumer(last_output, None)
            layers.setdefault(
                last, NeuronLayer(last, name, activated[0] if activated else None, not isinstance(module, nn.Linear))
            )
    return list(layers.values())


def neuron_layers(model: nn.Module, x: Tensor, kind: Kind = "convolutional") -> list[str]:
    """Return the names of the layers that are scanned by default, in the order of the forward pass.

    Args:
        model: Any network.
        x: An input (N, C, H, W) for one probe pass.
        kind: "convolutional": the convolutions (or their batch normalisation), or the linear layers of a network
            that has no convolution; "all": linear layers too.

    Raises:
        ModelError: The network has no such layer.
    """
    return chosen_layers(network_layers(model, x), kind)


def chosen_layers(found: Sequence[NeuronLayer], kind: Kind = "convolutional") -> list[str]:
    """Return the names of those of a network's layers that are scanned by default; see `neuron_layers`.

    Raises:
        ModelError: There is none.
    """
    chosen = [layer.name for layer in found if layer.convolutional]
    if kind == "all" or not chosen:
        chosen = [layer.name for layer in found]
    if not chosen:
        raise ModelError("the model has neither a convolution nor a linear layer; name its layers explicitly")
    return chosen


def select_layers(model: nn.Module, x: Tensor, layers: str | Sequence[str]) -> list[str]:
    """Return the layers that a configuration means.

    Args:
        model: Any network.
        x: An input (N, C, H, W) for one probe pass.
        layers: "convolutional" or "all" (see `neuron_layers`), or names.

    Raises:
        LayerError: A name does not exist.
    """
    if isinstance(layers, str):
        return neuron_layers(model, x, "all" if layers == "all" else "convolutional")
    return [resolve_layer(model, layer) for layer in layers]


def find_layer(model: nn.Module, x: Tensor, layer: str | nn.Module) -> NeuronLayer:
    """Return the layer that a name stands for: its own, or the one whose weights it names.

    Raises:
        LayerError: The name is not that of a convolutional or linear layer or of its normalisation.
    """
    name = resolve_layer(model, layer)
    found = network_layers(model, x)
    for candidate in found:
        if name in (candidate.name, candidate.weights):
            return candidate
    raise LayerError(f"{name!r} is not a layer of neurons{did_you_mean(name, [c.name for c in found])}")


def weight_module(model: nn.Module, x: Tensor, layer: str | nn.Module) -> str:
    """Return the name of the convolution or linear map that holds a layer's weights."""
    return find_layer(model, x, layer).weights


class _CallRecorder(TorchFunctionMode):
    """Records which smooth functions are called, and in which module."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.found: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _SMOOTH_CALLS:
            self.found.setdefault(self.stack[-1] if self.stack else "the model", name)
        return func(*args, **(kwargs or {}))


def smooth_operations(model: nn.Module, x: Tensor) -> list[str]:
    """Return the operations that make a network not piecewise linear, as "function in module".

    Where the list is not empty, learning images are those of the network's linearisation at the input.
    """
    places: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: places.append(name or "the model")

    def leave(*_: Any) -> None:
        places.pop()

    with ExitStack() as stack, torch.no_grad(), evaluation(model), _CallRecorder(places) as recorder:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        model(x[:1].to(device_of(model), copy=True))
    return [f"{function} in {place}" for place, function in recorder.found.items()]
