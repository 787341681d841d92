"""Every family of convolutional networks against plain autograd in float64; docs/architectures.md shows the outcome."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import SqueezeExcitation

import twins
from nnscan import scanner
from nnscan.backprop import guided_backpropagation
from nnscan.errors import ModelError
from nnscan.linearisation import Linearisation, LinearisationError
from nnscan.models import capture, neuron_layers, prepare, smooth_operations
from nnscan.scanner import filter_images, learning_images, scan
from nnscan.windows import Grid

aten = torch.ops.aten

EXACT, LOCAL = "exact", "local linearisation"
WINDOWS, EVERYWHERE = "windows", "whole network"


@dataclass(frozen=True)
class Family:
    """A network and what is expected of it.

    Attributes:
        scan: Status of scans, learning images and filter images: exact, or exact for the linearisation at the input.
        guided: Status of guided backpropagation: exact, or what it is refused for.
        maps: How far a scan goes on windows: to the end, to an operation, or not at all.
        first: The operations of `Linearisation.whole_maps`.
        size: Side of the images.
        block: Side of the blocks of pixels.
        scores_gated: Whether a ReLU follows the class scores.
        options: Options of the factory.
    """

    scan: str = EXACT
    guided: str = EXACT
    maps: str = WINDOWS
    first: tuple[str, ...] = ()
    size: int = 64
    block: int = 16
    scores_gated: bool = False
    options: dict[str, Any] = field(default_factory=dict)


POOL = {"maps": "windows; whole maps from the pool in front of the classifier on", "first": ("_adaptive_avg_pool2d",)}
GATES = {"maps": "whole maps from the first squeeze-and-excitation gate on", "first": ("mul",)}
PLAIN = {"aux_logits": False, "init_weights": False}

FAMILIES = {
    "alexnet": Family(**POOL),
    "vgg11": Family(size=32, block=8, **POOL),
    "vgg11_bn": Family(size=32, block=8, **POOL),
    "resnet18": Family(size=32, block=8),
    "resnext50_32x4d": Family(size=32, block=8),
    "wide_resnet50_2": Family(size=32, block=16),
    "densenet121": Family(size=32, block=16),
    "googlenet": Family(size=32, block=8, options=PLAIN),
    "inception_v3": Family(size=80, block=40, options=PLAIN),
    "mobilenet_v2": Family(guided="refused: hardtanh or relu6", size=32, block=8),
    "mobilenet_v3_small": Family(LOCAL, "refused: hardsigmoid, hardswish", **GATES),
    "shufflenet_v2_x0_5": Family(),
    "squeezenet1_0": Family(scores_gated=True),
    "squeezenet1_1": Family(scores_gated=True),
    "mnasnet0_5": Family(size=32, block=8),
    "efficientnet_b0": Family(LOCAL, "refused: sigmoid, silu", size=64, block=32, **GATES),
    "efficientnet_v2_s": Family(LOCAL, "refused: sigmoid, silu", size=64, block=32, **GATES),
    "regnet_y_400mf": Family(LOCAL, "refused: sigmoid", size=32, block=16, **GATES),
    "regnet_x_400mf": Family(size=32, block=16),
    "convnext_tiny": Family(LOCAL, "refused: gelu", EVERYWHERE, size=32, block=16),
}


# Networks with weights as after training ----------------------------------------------------------------------------


@contextmanager
def uninitialised() -> Iterator[None]:
    """Skip the initialisation of weights, which takes most of the time of building a large network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield


def shorten(part: nn.Sequential) -> None:
    """Keep two blocks of a stage, and 32 of 4096 neurons of a classifier: the others only take time."""
    shapes = [(type(child), [parameter.shape for parameter in child.parameters()]) for child in part]
    names = list(part._modules)
    for place in range(len(names) - 1, 1, -1):
        if shapes[place][1] and shapes[place] == shapes[place - 1]:
            del part._modules[names[place]]
    for place, layer in enumerate(part):
        if isinstance(layer, nn.Linear) and 4096 in (layer.in_features, layer.out_features):
            part[place] = nn.Linear(*(32 if size == 4096 else size for size in (layer.in_features, layer.out_features)))


def build(name: str, family: Family) -> nn.Module:
    """Return a network in float64 with random weights that keep the size of values, and random running statistics."""
    with uninitialised():
        model = getattr(torchvision.models, name)(weights=None, num_classes=5, **family.options)
        for part in model.modules():
            if isinstance(part, nn.Sequential):
                shorten(part)
    generator = twins.seeded(0)
    drawn = torch.randn(1 << 20, generator=generator, dtype=torch.float64)

    def random(like: torch.Tensor) -> torch.Tensor:
        first = int(torch.randint(len(drawn), (1,), generator=generator))
        count = like.numel()
        return drawn.roll(first).repeat(-(-count // len(drawn)))[:count].view(like.shape)

    normalisations = []
    gates = {part for gate in model.modules() if isinstance(gate, SqueezeExcitation) for part in gate.modules()}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = random(parameter) * (0.3 if module in gates else 1)  # random large gates make a network chaotic
            if parameter.ndim > 1 and key == "weight":
                value = value * (2 / parameter[0].numel()) ** 0.5
            elif key == "layer_scale" or (key == "weight" and isinstance(module, nn.BatchNorm2d | nn.LayerNorm)):
                value = 1 + 0.2 * value
            else:
                value = 0.2 * value
            setattr(module, key, nn.Parameter(value))
        if isinstance(module, nn.BatchNorm2d):
            module.to(torch.float64)
            module.momentum = 1.0
            normalisations.append(module)
    model.eval()
    for module in normalisations:
        module.train()
    with torch.no_grad():
        model(twins.noise(4, 3, family.size, family.size, seed=1))
    for module in normalisations:  # not quite the statistics of any images
        module.running_mean += 0.2 * module.running_var.sqrt() * random(module.running_mean)
        module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))
        module.running_var *= random(module.running_var).clamp(-2, 2).mul(0.3).exp()
    return model.eval().requires_grad_(False)


class Kinks(TorchDispatchMode):
    """Notes on which side of each kink of a network its values lie, and which places win in pools."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kinks = {"relu": (0,), "hardtanh": (0, 6), "hardswish": (-3, 3), "hardsigmoid": (-3, 3)}
        for kink in kinks.get(func.overloadpacket.__name__.removesuffix("_"), ()):
            self.sides.append(args[0] > kink)
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is aten.max_pool2d_with_indices:
            self.sides.append(result[1])
        return result


def kinks(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad(), Kinks() as noted:
        model(x)
    return noted.sides


@dataclass
class Case:
    """A network, an input and the twin's images of some neurons.

    Attributes:
        x: The input (1, 3, H, W): float32 and float64 agree on every gate and winner.
        layers: Some layers.
        neurons: Neurons of each: active ones, and one that is not where the layer has one.
        images: Their gated learning images.
        filters: The most active filter of each convolutional layer.
    """

    family: Family
    models: dict[torch.dtype, nn.Module]
    x: torch.Tensor
    layers: list[str]
    neurons: dict[str, list[int]]
    images: dict[str, torch.Tensor]
    filters: dict[str, int]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
    family = FAMILIES[request.param]
    model = build(request.param, family)
    single = copy.deepcopy(model).float()
    for seed in range(2, 40):
        x = twins.noise(1, 3, family.size, family.size, seed=seed).float().double()
        if all(torch.equal(a, b) for a, b in zip(kinks(model, x), kinks(single, x.float()), strict=True)):
            break
    else:
        pytest.fail("float32 and float64 disagree about the gates of every input")
    every, convolutional = neuron_layers(model, x, "all"), neuron_layers(model, x)
    layers = [convolutional[0], convolutional[len(convolutional) // 2], convolutional[-1]]
    layers = list(dict.fromkeys([*layers, every[-1]]))
    neurons, images = {}, {}
    with torch.no_grad(), capture(model, layers) as outputs:
        model(x.clone())
    for layer in layers:
        values = outputs[layer].reshape(-1)
        margin = 0.05 * values.abs().max()
        live, dead = (values > margin).nonzero()[:, 0].tolist(), (values < -margin).nonzero()[:, 0].tolist()
        neurons[layer] = [*live[:1], *live[1::2][:1], *live[-1:], *dead[:1]]
        images[layer] = twins.images(model, x[0], layer, neurons[layer])
        if layer != every[-1] or family.scores_gated:
            images[layer][values[neurons[layer]] <= 0] = 0
    filters = {layer: int(outputs[layer][0].relu().sum((1, 2)).argmax()) for layer in layers if layer in convolutional}
    return Case(family, {torch.float64: model, torch.float32: single}, x, layers, neurons, images, filters)


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

SHARE = {torch.float64: 1e-11, torch.float32: 5e-3}
"""Errors as a share of an image's largest value.

Gates and winners agree, so that what remains is rounding. In float64 at most 1e-13 was found. In float32 it was 1e-5 in
piecewise linear networks, and up to 5e-4 in deep smooth ones, whose derivative turns with the values it is taken at.
"""


def assert_images(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((found - expected).abs().max())
    allowed = SHARE[found.dtype] * float(expected.abs().max())
    assert error <= allowed, f"off by {error}, allowed are {allowed}"


@DTYPES
def test_scan(case, dtype):
    model, x, block = case.models[dtype], case.x.to(dtype), case.family.block
    foreground = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.bool)
    foreground[:, : x.shape[2] // 2] = True
    moments = scan(model, x, foreground, case.layers, block)
    for layer in case.layers:
        assert moments.layers[layer]["maximum"].dtype == np.dtype(str(dtype).removeprefix("torch."))
        expected = twins.moments_of(case.images[layer], case.x[0], foreground[0], block)
        twins.assert_moments(moments, layer, 0, case.neurons[layer], expected, SHARE[dtype])
        if layer not in case.filters:
            continue
        image = twins.filter_image(case.models[torch.float64], case.x[0], layer, case.filters[layer])
        found = torch.from_numpy(moments.filter_images[layer][0, case.filters[layer]])
        assert_images(found, torch.from_numpy(twins.block_sum(image.sum(0).numpy(), block)))


@DTYPES
def test_learning_images(case, dtype):
    for layer in case.layers[1:]:
        gate = layer != case.layers[-1] or layer in case.filters
        found = learning_images(case.models[dtype], case.x[0].to(dtype), layer, case.neurons[layer], gate)
        assert_images(found, case.images[layer])


@DTYPES
@pytest.mark.parametrize("forwards", [True, False], ids=["forwards", "backwards"])
def test_filter_images(case, dtype, forwards, monkeypatch):
    monkeypatch.setattr(scanner, "_forward_is_cheaper", lambda *_: forwards)
    x = torch.zeros_like(case.x)
    middle = x.shape[-1] // 2
    x[..., middle : middle + 2, middle - 1 : middle + 1] = 1 + case.x[..., :2, :2].abs()
    layer = list(case.filters)[1]
    with torch.no_grad(), capture(case.models[torch.float64], [layer]) as outputs:
        case.models[torch.float64](x.clone())
    index = int(outputs[layer][0].relu().sum((1, 2)).argmax())
    expected = twins.filter_image(case.models[torch.float64], x[0], layer, index)
    assert_images(filter_images(case.models[dtype], x.to(dtype), layer, [index])[0, 0], expected)


@DTYPES
def test_guided_backpropagation(case, dtype):
    model, x, status = case.models[dtype], case.x.to(dtype), case.family.guided
    for layer in list(case.filters)[1:]:
        if status != EXACT:
            with pytest.raises(ModelError, match=rf"this one applies {status.removeprefix('refused: ')}"):
                guided_backpropagation(model, x, layer, [0])
            continue
        index = case.filters[layer]
        expected = twins.guided_image(case.models[torch.float64], case.x[0], layer, index)
        assert_images(guided_backpropagation(model, x, layer, [index])[0, 0], expected)


def test_how_far_windows_go(case):
    assert bool(smooth_operations(case.models[torch.float64], case.x)) == (case.family.scan == LOCAL)
    model = prepare(case.models[torch.float32])
    if case.family.maps == EVERYWHERE:
        with pytest.raises(LinearisationError, match="mixes the samples with other dimensions"):
            Linearisation(model, case.x.float(), case.layers)
        return
    linear = Linearisation(model, case.x.float(), case.layers)
    assert linear.whole_maps == list(case.family.first)
    rows, columns = case.x.shape[2:]
    middle = np.array([rows // 2])
    grids = linear.grids(Grid(middle, middle, 1, 1, rows, columns, 1))
    here = [grids[place] for layer, place in linear.places.items() if layer in case.filters]
    assert here[0].height < here[0].rows
    assert here[0].width < here[0].columns
    assert linear.products(grids) < linear.whole_products()


# Operations and spellings -------------------------------------------------------------------------------------------


class Around(nn.Module):
    """An operation between a convolution and a linear map of whatever it returns; the maps between are layers too."""

    def __init__(self, operation: Any, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.operation = operation
        self.behind = nn.Identity()
        self.last = nn.LazyLinear(3)

    def forward(self, x):
        return self.last(F.relu(self.behind(self.operation(self.first(x)))).flatten(1))


class Shortcut(nn.Module):
    """A residual block with option A: a strided slice, and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))

    def forward(self, x):
        return F.relu(self.two(F.relu(self.one(x))) + self.shortcut(x))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.again(F.relu(self.again(x)))


class Branches(nn.Module):
    """Two convolutions of one map, added up or side by side, and one of both; no activation anywhere."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.both, self.joined = nn.Conv2d(8 if joined else 4, 4, 3, padding=1), joined

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        return self.both(torch.cat([one, two], 1) if self.joined else one + two)


class Cut(nn.Module):
    """Some channels, padded or cut at their edges, and a convolution of them; no activation in between."""

    def __init__(self, *edges: int) -> None:
        super().__init__()
        self.one, self.edges = nn.Conv2d(2, 4, 3, padding=1), edges

    def forward(self, x):
        return self.one(F.pad(x[:, ::2], self.edges))


class Rows(nn.Module):
    """A convolution along the places of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Conv1d(4, 3, 3)

    def forward(self, x):
        return self.along(x.flatten(2))


class Permute(nn.Module):
    """Another order of the dimensions."""

    def __init__(self, *dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x):
        return x.permute(self.dimensions)


class Scaled(nn.Module):
    """Parameters as factors."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(twins.noise(4, 1, 1)), nn.Parameter(twins.noise(1, 4, 1, 1))

    def forward(self, x):
        return self.bias + self.gain * x / 3 * 2


def relu_of_a_part(x):
    x[:, :2].relu_()
    return x


def written_into(x):
    result = torch.zeros_like(x)
    result[:, 1:] = x[:, :-1]
    return result


def residual_in_place(x):
    inner = 2 * x
    inner += x
    inner.mul_(0.5)
    inner.relu_()
    return inner


def twice_in_place(x):
    return F.relu(F.relu_(x) - 0.1, inplace=True)


def shuffled(x):
    return x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def swish(x):
    return x * torch.sigmoid(x)


def straight_through(x):
    return x + (torch.round(x) - x).detach()


def normalisation() -> nn.Module:
    layer = nn.BatchNorm2d(4).eval()
    layer.running_mean, layer.running_var = twins.noise(4), twins.noise(4).exp()
    return layer


def convolution(*args: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(4, 4, *args, **options)


RELU = nn.ReLU(inplace=True)

ON_WINDOWS = {
    "ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu_ and F.relu in place": twice_in_place,
    "ReLU6": nn.ReLU6(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "PReLU": nn.PReLU(4, 0.3),
    "clamp": lambda x: x.clamp(-0.1, 0.2),
    "hardswish": F.hardswish,
    "swish by hand": swish,
    "batch normalisation": normalisation(),
    "batch normalisation twice": nn.Sequential(normalisation(), normalisation()),
    "grouped convolution": convolution(3, groups=2),
    "depthwise convolution": convolution(3, padding=1, groups=4),
    "dilated convolution": convolution(3, padding=2, dilation=2),
    "strided convolution": convolution(3, stride=2, padding=1),
    "stride beyond the kernel": convolution(1, stride=2),
    "stride far beyond the kernel": convolution(2, stride=4),
    "kernel of two sizes": convolution((1, 3), stride=(2, 1), padding=(0, 2)),
    'padding="same"': convolution(3, padding="same"),
    'padding="same" of an even kernel': convolution(4, padding="same"),
    "convolutions without activation": nn.Sequential(
        convolution(3, padding=1), normalisation(), convolution(3, padding=1)
    ),
    "a sum of branches without activation": Branches(joined=False),
    "branches side by side without activation": Branches(joined=True),
    "channels without activation": Cut(0, 0),
    "cut edges without activation": Cut(-1, -1, -1, 0),
    "padded edges without activation": Cut(1, 0, 2, 1),
    "max pool": nn.MaxPool2d(2),
    "max pool of two sizes": nn.MaxPool2d((2, 3), (1, 2)),
    "overlapping max pool": nn.MaxPool2d(3, 2, 1),
    "max pool with ceil mode": nn.MaxPool2d(3, 2, ceil_mode=True),
    "dilated max pool": nn.MaxPool2d(2, 1, dilation=2),
    "average pool": nn.AvgPool2d(2),
    "average pool of two sizes": nn.AvgPool2d((3, 2), (2, 1), (1, 0)),
    "overlapping average pool": nn.AvgPool2d(3, 2, 1),
    "average pool without padding in the count": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool with ceil mode": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average pool with a divisor": nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5),
    "adaptive average pool that divides": nn.AdaptiveAvgPool2d(2),
    "global average pool": nn.AdaptiveAvgPool2d(1),
    "mean of the places": lambda x: x.mean((2, 3)),
    "zero padding": lambda x: F.pad(x, (1, 0, 2, 1)),
    "negative padding": lambda x: F.pad(x, (-1, 2, 1, -2)),
    "padding with a constant": lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
    "padding of channels": lambda x: F.pad(x, (0, 0, 1, 1, 2, 0)),
    "slice of places": lambda x: x[:, :, 1::2, -3:],
    "slice of channels": lambda x: x[:, 1::2],
    "concatenation": lambda x: torch.cat([F.relu(x), x], 1),
    "concatenation with constants": lambda x: torch.cat([x, torch.ones_like(x[:, :1]), x.new_zeros(x[:, :1].shape)], 1),
    "chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "channel shuffle": shuffled,
    "residual sum": lambda x: F.relu(x) + x,
    "residual sum in place": residual_in_place,
    "residual sum with option A": Shortcut(),
    "difference": lambda x: F.relu(x) - 0.5 * x,
    "factors and summands": Scaled(),
    "a mask": lambda x: x * (x > 0.1),
    "a layer used twice": Twice(),
    "an activation used twice": nn.Sequential(RELU, convolution(3, padding=1), RELU),
    "straight-through rounding": straight_through,
    "a map of size 1": nn.Sequential(nn.MaxPool2d(6), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)),
    "dropout": nn.Dropout2d(0.5),
}

ON_WHOLE_MAPS = {
    "adaptive average pool that does not divide": (nn.AdaptiveAvgPool2d(5), ["_adaptive_avg_pool2d"]),
    "adaptive max pool": (nn.AdaptiveMaxPool2d(3), ["adaptive_max_pool2d"]),
    "global max": (lambda x: x.amax((2, 3)), ["amax"]),
    "sum of the places": (lambda x: x.sum((2, 3)), ["sum"]),
    "reflected padding": (convolution(3, padding=1, padding_mode="reflect"), ["reflection_pad2d"]),
    "replicated padding": (convolution(3, padding=1, padding_mode="replicate"), ["replication_pad2d"]),
    "transposed convolution": (nn.ConvTranspose2d(4, 3, 3, 2), ["convolution"]),
    "convolution of rows": (Rows(), ["convolution"]),
    "nearest upsampling": (nn.Upsample(scale_factor=2), ["upsample_nearest2d"]),
    "bilinear upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), ["upsample_bilinear2d"]),
    "pixel shuffle": (nn.PixelShuffle(2), ["pixel_shuffle"]),
    "gate": (Gate(), ["mul"]),
    "less its mean by channel": (lambda x: x - x.mean((2, 3), keepdim=True), ["sub"]),
    "a quotient": (lambda x: x / (1 + x.abs()), ["div"]),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), ["where"]),
    "maximum": (lambda x: torch.maximum(x, 0.1 * x), ["maximum"]),
    "rows and columns exchanged": (lambda x: x.transpose(2, 3), ["transpose"]),
    "group normalisation": (nn.GroupNorm(2, 4), ["native_group_norm"]),
    "layer normalisation": (nn.LayerNorm([4, 6, 10]), ["native_layer_norm"]),
    "local response normalisation": (nn.LocalResponseNorm(3), ["avg_pool3d", "pow", "div"]),
    "softmax": (nn.Softmax(1), ["_softmax"]),
}

NOT_FOLLOWED = {
    "instance normalisation": (nn.InstanceNorm2d(4), "mixes the samples with other dimensions"),
    "less its mean": (lambda x: x - x.mean(), "mean mixes the samples with other dimensions"),
    "a part changed in place": (relu_of_a_part, "relu_ changes a tensor that is seen elsewhere too"),
    "written into zeros": (written_into, "copy_ changes a tensor that is seen elsewhere too"),
    "circular padding": (convolution(3, padding=1, padding_mode="circular"), "copy_ changes a tensor"),
    "copied in place": (lambda x: x.copy_(2 * x), "torch has no forward-mode derivative of copy"),
    "a matrix product of the places": (
        nn.Sequential(Permute(0, 2, 3, 1), nn.Linear(4, 4), Permute(0, 3, 1, 2)),
        "view mixes the samples with other dimensions",
    ),
}


def around(operation: Any, channels: int = 3, height: int = 6, width: int = 10) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Around(copy.deepcopy(operation), channels).double()
    x = twins.noise(3, channels, height, width, seed=3)
    x *= torch.rand((3, 1, height, width), generator=twins.seeded(4)) < 0.7  # each sample has other pixels of zero
    model(x.clone())
    return model.eval().requires_grad_(False), x


def assert_scanned(model: nn.Module, x: torch.Tensor, blocks: tuple[int, ...] = (1, 2)) -> None:
    """Compare all neurons of some layers and all samples with autograd, at several block sizes."""
    layers = ["first", "behind", "last"]
    foreground = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
    foreground[:, :, : x.shape[3] // 2] = True
    samples = (0, len(x) - 1)  # the first is scanned alone, the others together
    images = {(layer, sample): twins.images(model, x[sample], layer) for layer in layers for sample in samples}
    for block in blocks:
        moments = scan(model, x, foreground, layers, block)
        for (layer, sample), found in images.items():
            values = torch.from_numpy(moments.layers[layer]["activation"][sample]).reshape(-1)
            open_ = (values > 0) if layer != "last" else torch.ones_like(values, dtype=torch.bool)
            expected = twins.moments_of(found * open_[:, None, None, None], x[sample], foreground[sample], block)
            twins.assert_moments(moments, layer, sample, range(len(found)), expected, 1e-9)


def followed(model: nn.Module, x: torch.Tensor) -> Linearisation:
    return Linearisation(prepare(model), x, ["first", "behind", "last"])


@pytest.mark.parametrize("name", ON_WINDOWS)
def test_operations_on_windows(name):
    model, x = around(ON_WINDOWS[name])
    assert_scanned(model, x)
    assert followed(model, x).whole_maps == []

    model, x = around(ON_WINDOWS[name], height=24, width=24)
    linear = followed(model, x)
    middle = np.full(len(x), 12)
    grids = linear.grids(Grid(middle, middle, 1, 1, 24, 24, len(x)))
    behind = grids[linear.places["behind"]]
    assert behind.height <= max(3, behind.rows // 2)
    assert behind.width <= max(3, behind.columns // 2)


@pytest.mark.parametrize("forwards", [True, False], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", ON_WINDOWS)
def test_filter_images_behind_operations(name, forwards, monkeypatch):
    monkeypatch.setattr(scanner, "_forward_is_cheaper", lambda *_: forwards)
    model, x = around(ON_WINDOWS[name])
    found = filter_images(model, x, "behind", [1, 0])
    for sample in (0, 2):
        for place, index in enumerate((1, 0)):
            expected = twins.filter_image(model, x[sample], "behind", index)
            torch.testing.assert_close(found[sample, place], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ON_WHOLE_MAPS)
def test_operations_on_whole_maps(name):
    operation, listed = ON_WHOLE_MAPS[name]
    model, x = around(operation)
    assert_scanned(model, x)
    assert followed(model, x).whole_maps == listed


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_operations_that_cannot_be_followed(name, caplog):
    operation, reason = NOT_FOLLOWED[name]
    model, x = around(operation)
    with pytest.raises(LinearisationError, match=reason):
        followed(model, x)
    assert_scanned(model, x)
    assert "the whole network is swept on whole maps" in caplog.text


class Several(nn.Module):
    """A network that returns several things."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.first, self.behind, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.kind = kind

    def forward(self, x):
        maps = F.relu(self.behind(F.relu(self.first(x))))
        scores = self.last(maps.mean((2, 3)))
        return {"scores": scores, "maps": maps} if self.kind is dict else self.kind((scores, [maps, None]))


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_networks_that_return_several_things(kind):
    torch.manual_seed(0)
    assert_scanned(Several(kind).double().requires_grad_(False), twins.noise(3, 3, 8, 6))


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 4, 12), (4, 10, 2), (2, 1, 6), (3, 6, 1)])
def test_images_of_other_shapes(channels, height, width):
    operation = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())
    model, x = around(operation, channels, height, width)
    assert_scanned(model, x, (1,) if height % 2 or width % 2 else (1, 2))


def test_networks_without_places():
    torch.manual_seed(0)
    layers = {"flat": nn.Flatten(), "first": nn.Linear(48, 6), "one": nn.ReLU(), "behind": nn.Linear(6, 5)}
    model = nn.Sequential(OrderedDict(**layers, two=nn.ReLU(), last=nn.Linear(5, 3))).double().requires_grad_(False)
    x = twins.noise(3, 3, 4, 4)
    assert_scanned(model, x, (1, 2, 4))
    assert followed(model, x).whole_maps == []


def test_the_documentation_shows_this(repository):
    text = (repository / "docs" / "architectures.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| `")]
    assert rows == [[f"`{name}`", family.scan, family.guided, family.maps] for name, family in FAMILIES.items()]
    words = " ".join(text.split())
    for operations in (ON_WINDOWS, ON_WHOLE_MAPS, NOT_FOLLOWED):
        assert f" {'; '.join(operations)}." in words
