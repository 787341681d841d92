"""The scanner: one sweep agrees with autograd, neuron by neuron, for every kind of network."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nnscan
from nnscan import scanner
from nnscan.errors import LayerError, ModelError, ScanError
from nnscan.linearisation import Linearisation, LinearisationError
from nnscan.models import build_model, capture, network_layers, neuron_layers, prepare
from nnscan.moments import QUANTITIES, Moments
from nnscan.scanner import filter_images, learning_images, scan, scan_samples
from nnscan.sweeps import WholeMapSweep, WindowSweep
from twins import block_sum, moments_of, seeded


def image(*shape: int, seed: int = 0, zeros: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return noise with negative values and, if wanted, pixels that are zero in all channels or in the first."""
    x = torch.randn(shape, generator=seeded(seed), dtype=dtype)
    if zeros:
        x[..., : shape[-2] // 2, : shape[-1] // 2] = 0
        if shape[-3] > 1:
            x[..., 0, shape[-2] // 2 :, : shape[-1] // 2] = 0
    return x


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give the batch normalisations running statistics and weights as after training."""
    generator = seeded(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(size, generator=generator))
            module.bias.data.copy_(0.2 * torch.randn(size, generator=generator))
    return model


def autograd_images(model: nn.Module, x: torch.Tensor, layer: str, neurons: list[int], gate: bool) -> torch.Tensor:
    """Return x * d a_q / d x, one backward pass per neuron, without anything of the scanner."""
    kept: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: kept.append(output.clone()))
    source = x[None].clone().requires_grad_(True)
    model(source)
    handle.remove()
    values = kept[-1].reshape(-1)
    images = torch.zeros((len(neurons), *x.shape), dtype=x.dtype)
    for position, neuron in enumerate(neurons):
        if not gate or values[neuron] > 0:
            (gradient,) = torch.autograd.grad(values[neuron], source, retain_graph=True)
            images[position] = x * gradient[0]
    return images


def assert_equal_moments(moments: Moments, layer: str, sample: int, neurons: list[int], expected: dict) -> None:
    arrays = moments.layers[layer]
    for quantity, values in expected.items():
        found = arrays[quantity][sample].reshape(-1)[neurons]
        scale = max(np.abs(values).max(), 1e-12)
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-9 * scale, err_msg=f"{quantity} of {layer}")


def assert_same(one: Moments, two: Moments, rtol: float = 1e-9) -> None:
    assert list(one.layers) == list(two.layers)
    assert one.samples.tolist() == two.samples.tolist()
    assert one.foreground_pixels.tolist() == two.foreground_pixels.tolist()
    assert (one.pixels, one.block, one.masked) == (two.pixels, two.block, two.masked)
    for layer in one.layers:
        for quantity in QUANTITIES:
            a, b = one.layers[layer][quantity], two.layers[layer][quantity]
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=f"{quantity} of {layer}")
        np.testing.assert_allclose(one.filter_images[layer], two.filter_images[layer], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(one.absolute_images[layer], two.absolute_images[layer], rtol=rtol, atol=rtol)


# Models -------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A small network with normalisations, a strided shortcut, and a functional and a reused in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        inner += self.shortcut(x)
        return self.head(F.adaptive_avg_pool2d(self.relu(inner), 1).flatten(1))


class TwoOutputs(nn.Module):
    """A network that returns a tuple, as those with auxiliary heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        maps = F.relu(self.conv(x))
        return self.head(maps.mean((2, 3))), {"maps": maps}


def _small(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == "residual":
        return randomised(Residual()).double().eval()
    options = {"fcn": {"size": 8, "widths": (12, 6)}, "simple_cnn": {"in_channels": 1}, "lenet5": {"in_channels": 1}}
    return build_model(name, {"classes": 4, **options[name]}).double().eval()


SHAPES = {"lenet5": (1, 32, 32), "simple_cnn": (1, 8, 8), "residual": (3, 8, 8), "fcn": (3, 8, 8)}


# One sweep against autograd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_scan_is_learning_images_for_every_neuron(name, masked):
    model = _small(name)
    x = image(2, *SHAPES[name], zeros=masked)
    foreground = torch.zeros((2, *SHAPES[name][1:]), dtype=torch.bool)
    foreground[0, 2:6, 1:7] = True
    foreground[1, 3:] = True
    block = 4 if name == "lenet5" else 1
    layers = neuron_layers(model, x, "all")
    moments = scan(model, x, foreground if masked else None, layers, block)
    assert list(moments.layers) == layers
    assert moments.masked == masked
    for sample in range(2):
        mask = foreground[sample] if masked else None
        for layer in layers:
            images = learning_images(model, x[sample], layer, gate=layer != layers[-1])
            expected = moments_of(images, x[sample], mask, block)
            assert_equal_moments(moments, layer, sample, list(range(len(images))), expected)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_learning_images_are_input_times_gradient(name):
    model = _small(name)
    x = image(*SHAPES[name])
    for layer in neuron_layers(model, x[None], "all"):
        count = len(learning_images(model, x, layer))
        neurons = torch.randperm(count, generator=seeded(2))[:12].tolist()
        for gate in (True, False):
            found = learning_images(model, x, layer, neurons, gate)
            torch.testing.assert_close(found, autograd_images(model, x, layer, neurons, gate), rtol=1e-9, atol=1e-12)


TORCHVISION = {
    "alexnet": (64, 32, {}),
    "squeezenet1_0": (64, 16, {}),
    "mobilenet_v2": (64, 32, {}),
    "densenet121": (64, 32, {}),
    "googlenet": (64, 32, {"aux_logits": False, "init_weights": False}),
}


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_networks_of_torchvision(name):
    size, block, options = TORCHVISION[name]
    torch.manual_seed(0)
    model = randomised(build_model(f"torchvision:{name}", {"num_classes": 5, **options}))
    model = model.double().eval()  # in float32 a gate now and then differs between the two routes
    x = image(1, 3, size, size, zeros=False)
    foreground = torch.zeros((1, size, size), dtype=torch.bool)
    foreground[:, : size // 2] = True
    moments = scan(model, x, foreground, block=block)
    layers = list(moments.layers)
    assert layers == neuron_layers(model, x)

    # some neurons of some layers against one backward pass each
    for layer in {layers[0], layers[len(layers) // 2], layers[-1]}:
        values = moments.layers[layer]["activation"][0].reshape(-1)
        live, dead = np.flatnonzero(values > 0), np.flatnonzero(values <= 0)
        assert len(live), f"nothing is active in {layer}"
        neurons = [int(live[0]), int(live[-1]), *(int(index) for index in dead[:1])]
        images = autograd_images(model, x[0], layer, neurons, gate=True)
        torch.testing.assert_close(learning_images(model, x[0], layer, neurons), images, rtol=1e-8, atol=1e-12)
        assert_equal_moments(moments, layer, 0, neurons, moments_of(images, x[0], foreground[0], block))

    # all neurons of all layers: in a piecewise linear network sum(I_q) is the derivative of a_q(t x) at t = 1
    step = 1e-6
    with torch.no_grad(), capture(model, layers) as outputs:
        model(x * (1 - step))
        low = dict(outputs)
        model(x * (1 + step))
        high = dict(outputs)
    for layer in layers:
        arrays = moments.layers[layer]
        slope = ((high[layer] - low[layer]) / (2 * step)).numpy() * (arrays["activation"] > 0)
        rounding = 1e-9 * np.abs(arrays["activation"]).max()  # of values, divided by the step
        close = np.isclose(arrays["signed_total"], slope, rtol=1e-4, atol=rounding)
        assert close.mean() > 0.999, f"{layer}: {(~close).sum()} of {close.size} neurons differ"


def test_the_last_layer_is_gated_where_a_relu_follows_it():
    torch.manual_seed(0)
    x = image(1, 3, 8, 8)
    ending = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)).double()
    moments = scan(ending, x)
    negative = moments.layers["2"]["activation"] <= 0
    assert negative.any()
    assert (moments.layers["2"]["maximum"][negative] == 0).all()
    scores = ending[:3]
    assert (scan(scores, x).layers["2"]["maximum"] > 0).all()
    assert (scan(nn.Sequential(*scores, nn.Softmax(1)), x).layers["2"]["maximum"] > 0).all()


def test_the_class_scores_have_no_gate_in_a_scan():
    model = _small("lenet5")
    x = image(1, 1, 32, 32)
    moments = scan(model, x, layers=["head.3", "head.5"], block=8)
    hidden, scores = moments.layers["head.3"], moments.layers["head.5"]
    assert scores["activation"].shape == (1, 4, 1, 1)
    assert (scores["activation"] < 0).any()
    assert (scores["maximum"] > 0).all()
    assert (hidden["maximum"][hidden["activation"] <= 0] == 0).all()
    assert (hidden["maximum"][hidden["activation"] > 0] > 0).all()


def test_inactive_neurons_have_zero_moments_but_keep_their_value():
    model = _small("residual")
    moments = scan(model, image(2, 3, 8, 8))
    for arrays in moments.layers.values():
        closed = arrays["activation"] <= 0
        assert closed.any()
        for quantity in QUANTITIES[1:]:
            assert (arrays[quantity][closed] == 0).all()
        assert (arrays["activation"][closed] != 0).any()


# Routes that must not matter ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet():
    model = _small("lenet5")
    x = image(3, 1, 32, 32)
    foreground = torch.zeros((3, 32, 32), dtype=torch.bool)
    foreground[:, 8:28, 4:24] = True
    return model, x, foreground, scan(model, x, foreground, block=4)


def counted(monkeypatch, kind):
    """Count the batches that sweeps of a kind push."""
    pushed = []
    push = kind.push
    monkeypatch.setattr(
        kind, "push", lambda self, batches, *rest: (pushed.append(len(batches)), push(self, batches, *rest))[1]
    )
    return pushed


@pytest.mark.parametrize("kind", [WindowSweep, WholeMapSweep])
def test_two_sweeps_give_what_kept_columns_give(lenet, monkeypatch, kind):
    model, x, foreground, expected = lenet
    if kind is WholeMapSweep:
        monkeypatch.setattr(scanner, "Linearisation", refused)
    monkeypatch.setattr(scanner, "CACHE_BYTES", 2**15)
    monkeypatch.setattr(scanner, "_together", lambda _: 10)
    pushed = counted(monkeypatch, kind)
    assert_same(scan(model, x, foreground, block=4), expected)
    assert len(pushed) <= len(x)  # all batches of a group of samples together
    batches = sum(pushed)
    assert batches > 3 * len(pushed)
    pushed.clear()
    monkeypatch.setattr(scanner, "KEEP_BYTES", 0)
    assert_same(scan(model, x, foreground, block=4), expected)
    assert set(pushed) == {1}
    assert len(pushed) >= 2 * batches


def refused(*_: object) -> None:
    raise LinearisationError("refused by the test")


@pytest.mark.parametrize("cache_bytes", [2**12, 2**16, 2**24])
@pytest.mark.parametrize("kind", [WindowSweep, WholeMapSweep])
def test_the_size_of_batches_does_not_matter(lenet, monkeypatch, cache_bytes, kind):
    model, x, foreground, expected = lenet
    monkeypatch.setattr(scanner, "CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(scanner, "_together", lambda _: max(1, cache_bytes // 2**14))
    if kind is WholeMapSweep:
        monkeypatch.setattr(scanner, "Linearisation", refused)
    assert_same(scan(model, x, foreground, block=4), expected)


def test_a_full_gpu_halves_the_batches(lenet, monkeypatch, caplog):
    model, x, foreground, expected = lenet
    sizes = []
    start = WindowSweep._start

    def limited(self, batch):
        sizes.append(len(batch.pixels))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(self, batch)

    monkeypatch.setattr(WindowSweep, "_start", limited)
    room = 5
    assert_same(scan(model, x, foreground, block=4), expected)
    assert max(sizes) > room >= sizes[-1]
    refusals = sum(size > room for size in sizes)
    assert 0 < refusals == caplog.text.count("the GPU's memory is full: the scan goes on with batches of")
    later = sizes[max(index for index, size in enumerate(sizes) if size > room) + 1 :]
    assert len(later) > len(x)  # found once, kept for the samples after
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        scan(model, x, foreground, block=4)


def test_a_sweep_that_loses_a_part_is_found_out(lenet, monkeypatch, caplog):
    model, x, foreground, expected = lenet
    begin = WindowSweep._start

    def cut(self, batch):
        windows = begin(self, batch)
        windows.data[0, -1] = 0  # the last row of one block of pixels
        return windows

    monkeypatch.setattr(WindowSweep, "_start", cut)
    assert_same(scan(model, x, foreground, block=4), expected)
    assert "disagrees with torch's derivative: the network is swept on whole maps" in caplog.text


def test_a_network_that_cannot_be_followed_is_swept_on_whole_maps(lenet, monkeypatch, caplog):
    model, x, foreground, expected = lenet
    monkeypatch.setattr(scanner, "Linearisation", refused)
    assert_same(scan(model, x, foreground, block=4), expected)
    assert caplog.text.count("swept on whole maps, which takes longer: refused by the test") == 1


class OneByOne(nn.Module):
    """A network that takes the axis of samples away where there is one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.second(self.first(x).unsqueeze(0).relu().squeeze(0))


def test_samples_that_cannot_go_together_go_one_by_one(caplog):
    torch.manual_seed(0)
    model = OneByOne().double()
    x = image(5, 1, 8, 8)
    parts = list(scan_samples(model, x))
    assert [part.samples.tolist() for part in parts] == [[0], [1], [2], [3], [4]]
    assert caplog.text.count("samples are scanned one by one: ") == 1
    assert "whole maps" not in caplog.text
    expected = torch.cat([filter_images(model, x[index : index + 1], "second") for index in range(5)]).sum(2)
    found = np.concatenate([part.filter_images["second"] for part in parts])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_group_that_loses_a_part_goes_one_by_one(lenet, monkeypatch, caplog):
    model, x, foreground, expected = lenet
    begin = WindowSweep._start

    def cut(self, batch):
        windows = begin(self, batch)
        if self.samples > 1:
            windows.data[0, -1] = 0
        return windows

    monkeypatch.setattr(WindowSweep, "_start", cut)
    parts = list(scan_samples(model, x, foreground, block=4))
    assert [part.samples.tolist() for part in parts] == [[0], [1], [2]]
    assert_same(nnscan.moments.concatenate(parts), expected)
    assert "one by one: a sweep of several together disagrees with torch's derivative" in caplog.text


class Attentive(nn.Module):
    """A network with an operation that has no forward-mode derivative."""

    def __init__(self, in_front: bool) -> None:
        super().__init__()
        self.in_front = in_front
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)

    def forward(self, x):
        x = self.conv(x).relu()
        if self.in_front:
            x = self.attention(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])
        return self.attention(self.last(x).repeat(1, 2, 1, 1).flatten(2).mT)


def test_what_lies_behind_the_layers_needs_no_derivative(monkeypatch, caplog):
    torch.manual_seed(0)
    model, x = Attentive(False).double(), image(2, 1, 8, 8)
    expected = scan(model, x, layers=["conv", "last"])
    assert "whole maps" not in caplog.text
    monkeypatch.setattr(scanner, "Linearisation", refused)
    assert_same(scan(model, x, layers=["conv", "last"]), expected)


def test_an_operation_without_a_derivative_is_named():
    torch.manual_seed(0)
    with pytest.raises(ScanError, match=r"the network cannot be scanned: .*transformer_encoder_layer"):
        scan(Attentive(True).double(), image(1, 1, 8, 8), layers=["last"])


def test_filter_images_that_lose_a_part_are_found_out(lenet, monkeypatch, caplog):
    model, x, *_ = lenet
    monkeypatch.setattr(scanner, "_forward_is_cheaper", lambda *_: True)
    expected = filter_images(model, x, "features.3")
    assert "disagree" not in caplog.text
    begin = WindowSweep._start

    def cut(self, batch):
        windows = begin(self, batch)
        windows.data[0] = 0
        return windows

    monkeypatch.setattr(WindowSweep, "_start", cut)
    torch.testing.assert_close(filter_images(model, x, "features.3"), expected, rtol=1e-9, atol=1e-12)
    assert "filter images of features.3 by windows disagree with torch's derivative" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "tf32", "float64"])
def test_a_precision_may_be_asked_for(lenet, precision):
    model, x, foreground, expected = lenet
    moments = scan(model, x, foreground, block=4, precision=precision)
    array = moments.layers["features.3"]["maximum"]
    assert array.dtype == (np.float64 if precision == "float64" else np.float32)
    np.testing.assert_allclose(array, expected.layers["features.3"]["maximum"], rtol=1e-3, atol=1e-6)
    assert next(model.parameters()).dtype == torch.float64  # the model is left alone
    assert not torch.backends.cuda.matmul.allow_tf32


def test_bfloat16_tangents_keep_the_gates_of_float32(lenet):
    model, x, foreground, _ = lenet
    single, rounded = (scan(model, x, foreground, block=4, precision=kind) for kind in ("float32", "bfloat16"))
    for layer, arrays in single.layers.items():
        np.testing.assert_array_equal(rounded.layers[layer]["activation"], arrays["activation"])
        np.testing.assert_array_equal(rounded.layers[layer]["maximum"] > 0, arrays["maximum"] > 0)
        error = np.abs(rounded.layers[layer]["maximum"] - arrays["maximum"]).max() / arrays["maximum"].max()
        assert 1e-5 < error < 0.02


def test_learning_images_do_not_depend_on_their_chunks(lenet, monkeypatch):
    model, x, *_ = lenet
    neurons = list(range(0, 400, 9))
    expected = learning_images(model, x[0], "features.3", neurons)
    monkeypatch.setattr(scanner, "CHUNK", 7)
    torch.testing.assert_close(learning_images(model, x[0], "features.3", neurons), expected, rtol=1e-12, atol=1e-14)


def test_samples_one_by_one_are_one_scan(lenet):
    model, x, foreground, expected = lenet
    parts = list(scan_samples(model, x, foreground, block=4))
    assert [part.samples.tolist() for part in parts] == [[0], [1, 2]]  # small networks: samples go together
    assert_same(nnscan.moments.concatenate(parts), expected)
    shards = [scan(model, x[:2], foreground[:2], block=4), scan(model, x[2:], foreground[2:].numpy(), block=4)]
    joined = nnscan.moments.concatenate(shards)
    assert joined.samples.tolist() == [0, 1, 0]
    for layer in expected.layers:
        for quantity in QUANTITIES:
            np.testing.assert_allclose(
                joined.layers[layer][quantity], expected.layers[layer][quantity], rtol=1e-9, atol=1e-12
            )


def test_samples_with_other_zero_pixels_go_together(lenet, caplog):
    model, x, *_ = lenet
    x = torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    x[torch.rand(x.shape, generator=seeded(4)) < 0.7] = 0  # each sample has pixels of its own
    x[0] = 0
    parts = list(scan_samples(model, x))
    assert [len(part.samples) for part in parts] == [1, 2]
    assert "disagrees" not in caplog.text
    alone = [scan(model, x[index : index + 1]) for index in range(len(x))]
    for layer in parts[0].layers:
        for quantity in QUANTITIES:
            joined = np.concatenate([part.layers[layer][quantity] for part in alone])
            found = np.concatenate([part.layers[layer][quantity] for part in parts])
            np.testing.assert_allclose(found, joined, rtol=1e-9, atol=1e-12, err_msg=f"{quantity} of {layer}")


def test_samples_carry_their_identifiers(lenet):
    model, x, foreground, _ = lenet
    parts = list(scan_samples(model, x, foreground, block=8, samples=[7, 70, 5]))
    assert [sample for part in parts for sample in part.samples.tolist()] == [7, 70, 5]
    assert parts[0].samples.dtype == np.int64


def test_layers_by_name_or_module_in_the_order_asked(lenet):
    model, x, *_ = lenet
    moments = scan(model, x[:1], layers=[model.features[3], "features.0"], block=8)
    assert list(moments.layers) == ["features.3", "features.0"]


def test_zero_pixels_are_left_out_and_change_nothing(lenet):
    model, x, *_ = lenet
    sweep = WindowSweep(Linearisation(prepare(model), x[:1], ["features.0"]), x[:1], 4)
    assert sum((batch.pixels >= 0).sum() for batch in sweep.batches) == 64 - 16  # a quarter of the image is zero
    images = learning_images(model, x[0], "features.0")
    minimum = scan(model, x[:1], block=4).layers["features.0"]["minimum"]
    assert (minimum == 0).all()
    assert (images[:, :, :16, :16] == 0).all()


def test_an_image_of_one_value_has_a_blank_input(lenet):
    model, *_ = lenet
    x = torch.full((1, 1, 32, 32), 0.5, dtype=torch.float64)
    arrays = scan(model, x, block=8).layers["features.3"]
    assert (arrays["maximum"] > 0).any()
    assert (arrays["input_total_foreground"] == 0).all()
    assert (arrays["cross_foreground"] == 0).all()


def test_float32_agrees_with_float64():
    model = _small("simple_cnn")
    x = image(1, 1, 8, 8)
    double, single = scan(model, x), scan(copy.deepcopy(model).float(), x.float())
    for layer in double.layers:
        assert double.layers[layer]["maximum"].dtype == np.float64
        assert single.layers[layer]["maximum"].dtype == np.float32
        assert single.filter_images[layer].dtype == np.float32
        for quantity in ("activation", "signed_total", "maximum", "total_foreground", "square_foreground"):
            a, b = double.layers[layer][quantity], single.layers[layer][quantity]
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * np.abs(a).max())
    assert learning_images(model, x[0], "features.0", [0]).dtype == torch.float64
    assert filter_images(model, x, "features.0").dtype == torch.float64


# Foreground ---------------------------------------------------------------------------------------------------------


def test_a_block_is_foreground_when_half_of_it_is():
    model = _small("simple_cnn")
    x = image(1, 1, 8, 8, zeros=False)
    foreground = torch.zeros((1, 8, 8), dtype=torch.bool)
    foreground[0, 0, :2] = True  # half of the first block
    foreground[0, 0, 2] = True  # a quarter of the second
    foreground[0, 4:6, 4:6] = True
    foreground[0, 4:6, 6] = True
    moments = scan(model, x, foreground, block=2)
    assert moments.pixels == 16
    assert moments.foreground_pixels.tolist() == [3]
    assert scan(model, x, foreground).foreground_pixels.tolist() == [9]


def test_without_masks_the_foreground_is_everything():
    model = _small("simple_cnn")
    x = image(2, 1, 8, 8)
    plain = scan(model, x)
    everywhere = scan(model, x, torch.ones((2, 8, 8), dtype=torch.bool))
    assert not plain.masked
    assert everywhere.masked
    assert plain.foreground_pixels.tolist() == [64, 64]
    for layer, arrays in plain.layers.items():
        for quantity in QUANTITIES:
            np.testing.assert_array_equal(arrays[quantity], everywhere.layers[layer][quantity])
            if quantity.endswith("background"):
                assert (arrays[quantity] == 0).all()


# Filter images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_filter_images_are_the_sum_of_image_times_activation(name):
    model = _small(name)
    x = image(2, *SHAPES[name])
    for layer in neuron_layers(model, x, "all"):
        found = filter_images(model, x, layer)
        for sample in range(2):
            images = learning_images(model, x[sample], layer)
            values = _values(model, x[sample], layer)
            expected = torch.zeros_like(found[sample])
            for index, value in enumerate(values):
                expected[index * len(found[sample]) // len(values)] += images[index] * max(float(value), 0)
            torch.testing.assert_close(found[sample], expected, rtol=1e-9, atol=1e-12)


def _values(model: nn.Module, x: torch.Tensor, layer: str) -> torch.Tensor:
    probe = prepare(model)
    with torch.no_grad(), capture(probe, [layer]) as outputs:
        probe(x[None])
    return outputs[layer].reshape(-1)


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("block", [1, 2])
def test_images_of_filters_of_a_scan_are_block_sums(name, block):
    """The filter images are those of `filter_images`; the absolute images sum the sizes of the neurons' images."""
    model = _small(name)
    x = image(2, *SHAPES[name])
    if name == "lenet5":
        x, block = x[:1], 4 * block
    layers = neuron_layers(model, x, "all")
    moments = scan(model, x, layers=layers, block=block)
    for layer in layers:
        expected = block_sum(filter_images(model, x, layer).sum(2).numpy(), block)
        assert moments.filter_images[layer].shape == expected.shape
        np.testing.assert_allclose(moments.filter_images[layer], expected, rtol=1e-9, atol=1e-12)
        gated = layer != network_layers(model, x)[-1].name
        for sample, found in enumerate(moments.absolute_images[layer]):
            images = learning_images(model, x[sample], layer, gate=gated).sum(1).numpy()
            sizes = np.abs(block_sum(images, block))
            expected = sizes.reshape(len(found), -1, *sizes.shape[1:]).sum(1)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_some_filters_only():
    model = _small("lenet5")
    x = image(2, 1, 32, 32)
    every = filter_images(model, x, "features.3")
    some = filter_images(model, x, "features.3", [5, 0])
    assert some.shape == (2, 2, 1, 32, 32)
    torch.testing.assert_close(some, every[:, [5, 0]])
    with pytest.raises(
        ScanError, match=r"filters \[5, 16\] were asked of 'features\.3', which has the filters 0 to 15"
    ):
        filter_images(model, x, "features.3", [5, 16])
    with pytest.raises(ScanError, match=r"\[-1\]"):
        filter_images(model, x, "features.3", [-1])


def test_filter_images_that_do_not_fit_into_memory(monkeypatch):
    model = _small("lenet5")
    monkeypatch.setattr(scanner, "available_bytes", lambda: 100_000)
    with pytest.raises(
        ScanError, match=r"16 filters of 'features\.3' for 2 samples need .* GiB.*ask for fewer filters"
    ):
        filter_images(model, image(2, 1, 32, 32), "features.3")


# Any network --------------------------------------------------------------------------------------------------------


def test_a_model_that_returns_several_things():
    torch.manual_seed(0)
    model = TwoOutputs().double()
    x = image(1, 3, 8, 8)
    moments = scan(model, x)
    images = learning_images(model, x[0], "conv")
    assert_equal_moments(moments, "conv", 0, list(range(len(images))), moments_of(images, x[0]))
    assert filter_images(model, x, "conv").shape == (1, 4, 3, 8, 8)


@pytest.mark.parametrize("kind", ["module", "in place", "functional", "functional in place", "reused", "method"])
def test_every_spelling_of_relu_gives_the_same(kind):
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.one, self.two = nn.ReLU(kind == "in place"), nn.ReLU(kind == "in place")

        def forward(self, x):
            first, second = {
                "module": (self.one, self.two),
                "in place": (self.one, self.two),
                "functional": (F.relu, F.relu),
                "functional in place": (F.relu_, F.relu_),
                "reused": (self.one, self.one),
                "method": (torch.Tensor.relu, torch.Tensor.clamp_min_),
            }[kind]
            arguments = (0,) if kind == "method" else ()
            return second(self.b(first(self.a(x))), *arguments)

    torch.manual_seed(0)
    model = Spelled().double()
    plain = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU())
    x = image(1, 3, 8, 8)
    moments, expected = scan(model, x, layers=["a", "b"]), scan(plain, x, layers=["0", "2"])
    for name, twin in (("a", "0"), ("b", "2")):
        for quantity in QUANTITIES:
            gated = moments.layers[name]["activation"] > 0  # whether the last layer is gated depends on the spelling
            found, wanted = moments.layers[name][quantity], expected.layers[twin][quantity]
            np.testing.assert_allclose(found[gated], wanted[gated], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(learning_images(model, x[0], name), learning_images(plain, x[0], twin))
        torch.testing.assert_close(filter_images(model, x, name), filter_images(plain, x, twin))


def test_a_model_without_known_layers_is_scanned_by_name():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.values = nn.Identity()

        def forward(self, x):
            return F.relu(self.values(F.conv2d(x, self.kernel)))

    torch.manual_seed(0)
    model = Bare().double()
    x = image(1, 3, 8, 8)
    moments = scan(model, x, layers=["values"])
    images = learning_images(model, x[0], "values")
    assert_equal_moments(moments, "values", 0, list(range(len(images))), moments_of(images, x[0]))
    with pytest.raises(ModelError, match="name its layers explicitly"):
        scan(model, x)


def test_a_model_that_changes_its_input_in_place():
    class Centring(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.conv, self.changes = nn.Conv2d(3, 4, 3), inplace

        def forward(self, x):
            if self.changes:
                x -= 0.5
            else:
                x = x - 0.5
            return F.relu(self.conv(x))

    torch.manual_seed(0)
    model = Centring(inplace=True).double()
    twin = Centring(inplace=False).double()
    twin.load_state_dict(model.state_dict())
    x = image(2, 3, 8, 8)
    before = x.clone()
    assert_same(scan(model, x), scan(twin, x))
    torch.testing.assert_close(learning_images(model, x[0], "conv"), learning_images(twin, x[0], "conv"))
    torch.testing.assert_close(filter_images(model, x, "conv"), filter_images(twin, x, "conv"))
    assert torch.equal(x, before)


def test_a_layer_that_the_input_does_not_reach():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.constant = nn.Linear(2, 5)

        def forward(self, x):
            return self.conv(x).mean() + self.constant(torch.ones(1, 2, dtype=x.dtype))

    torch.manual_seed(0)
    model = Constant().double()
    x = image(1, 3, 8, 8)
    assert (scan(model, x, layers=["constant"]).layers["constant"]["maximum"] == 0).all()
    assert (scan(model, x, layers=["conv"]).layers["conv"]["maximum"] > 0).any()


# The model is left alone --------------------------------------------------------------------------------------------


class Watched(Residual):
    """Counts down to an error in its forward pass; None for no error. The count is shared by copies."""

    def __init__(self) -> None:
        super().__init__()
        self.countdown = _Countdown()

    def forward(self, x):
        result = super().forward(x)
        self.countdown.step()
        return result


class _Countdown:
    left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of memory")

    def __deepcopy__(self, memo):
        return self


CALLS = {
    "learning_images": lambda model, x: learning_images(model, x[0], "bn1", [0, 1]),
    "filter_images": lambda model, x: filter_images(model, x, "bn1"),
    "scan": lambda model, x: scan(model, x),
}


@pytest.mark.parametrize("left", [None, 0, 1, 2])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_the_model_is_unchanged_afterwards(call, left):
    torch.manual_seed(0)
    model = randomised(Watched()).double().train()
    model.bn1.eval()
    model.stem.weight.requires_grad_(False)
    model.bn2.register_forward_hook(lambda *_: None)
    x = image(2, 3, 8, 8).requires_grad_(True)

    def state() -> list[object]:
        return [
            {key: value.clone() for key, value in model.state_dict().items()},
            [module.training for module in model.modules()],
            [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
            model.relu.inplace,
            x.grad,
            x.detach().clone(),
            torch.is_grad_enabled(),
            torch.get_rng_state(),
        ]

    before = state()
    model.countdown.left = left
    # each function runs the network at least once; the others more than twice
    if left is None or (left > 0 and call == "learning_images"):
        CALLS[call](model, x)
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            CALLS[call](model, x)
    after = state()
    for old, new in zip(before, after, strict=True):
        if isinstance(old, dict):
            assert list(old) == list(new)
            assert all(torch.equal(old[key], new[key]) for key in old)
        elif isinstance(old, torch.Tensor):
            assert torch.equal(old, new)
        else:
            assert old == new


def test_results_carry_no_graph_and_work_under_no_grad():
    model = _small("residual")
    x = image(1, 3, 8, 8).requires_grad_(True)
    with torch.no_grad():
        images = learning_images(model, x[0], "bn1", [3, 4], gate=False)
        fimgs = filter_images(model, x, "bn1")
    assert not images.requires_grad
    assert not fimgs.requires_grad
    assert images.abs().sum() > 0
    assert fimgs.abs().sum() > 0
    torch.testing.assert_close(images, learning_images(model, x[0], "bn1", [3, 4], gate=False))


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return _small("simple_cnn"), image(2, 1, 8, 8)


def test_an_unknown_layer_is_named_with_the_closest(small):
    model, x = small
    for call in (
        lambda: learning_images(model, x[0], "features.00"),
        lambda: filter_images(model, x, "features.00"),
        lambda: scan(model, x, layers=["features.3", "features.00"]),
    ):
        with pytest.raises(
            LayerError, match=r"no layer 'features\.00'; did you mean 'features\.0'\? Known: features\.0"
        ):
            call()
    with pytest.raises(LayerError, match="the module Conv2d does not belong to the model"):
        scan(model, x, layers=[nn.Conv2d(1, 1, 1)])


def test_an_input_of_another_shape_or_type_is_named(small):
    model, x = small
    with pytest.raises(ScanError, match=r"expected a floating-point tensor \(C, H, W\), got \(2, 1, 8, 8\)"):
        learning_images(model, x, "features.0")
    with pytest.raises(ScanError, match=r"expected a floating-point tensor \(N, C, H, W\), got \(1, 8, 8\)"):
        filter_images(model, x[0], "features.0")
    with pytest.raises(ScanError, match=r"expected a floating-point tensor \(N, C, H, W\), got \(1, 8, 8\)"):
        scan(model, x[0])
    with pytest.raises(ScanError, match=r"torch\.int64"):
        scan(model, x.long())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(small, value):
    model, x = small
    x = x.clone()
    x[1, 0, 2, 2] = value
    for call in (
        lambda: learning_images(model, x[1], "features.0"),
        lambda: filter_images(model, x, "features.0"),
        lambda: scan(model, x),
    ):
        with pytest.raises(ScanError, match="not finite"):
            call()


@pytest.mark.parametrize("block", [3, 0, -2, 16])
def test_a_block_that_does_not_divide_the_image_is_named(small, block):
    model, x = small
    with pytest.raises(ScanError, match=rf"block {block} does not divide images of 8 x 8.*\[1, 2, 4, 8\]"):
        scan(model, x, block=block)


def test_blocks_of_images_that_are_not_square():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).double()
    x = image(1, 3, 8, 12)
    with pytest.raises(ScanError, match=r"8 x 12 pixels; possible: \[1, 2, 4\]"):
        scan(model, x, block=8)
    moments = scan(model, x, block=4)
    assert moments.filter_images["0"].shape == (1, 2, 2, 3)
    images = learning_images(model, x[0], "0")
    assert_equal_moments(moments, "0", 0, list(range(len(images))), moments_of(images, x[0], block=4))


def test_a_neuron_outside_the_map_is_named(small):
    model, x = small
    with pytest.raises(ScanError, match=r"indices run from 3 to 1024.*'features\.0' has the 1024 neurons 0 to 1023"):
        learning_images(model, x[0], "features.0", [3, 1024])
    with pytest.raises(ScanError, match="indices run from -1 to 2"):
        learning_images(model, x[0], "features.0", [2, -1])


def test_neurons_may_be_a_list_an_array_or_a_tensor(small):
    model, x = small
    expected = learning_images(model, x[0], "features.0", [5, 900, 5], gate=False)
    assert expected.shape == (3, 1, 8, 8)
    assert torch.equal(expected[0], expected[2])
    for neurons in (np.array([5, 900, 5]), torch.tensor([5, 900, 5]), (5, 900, 5)):
        assert torch.equal(learning_images(model, x[0], "features.0", neurons, gate=False), expected)
    assert learning_images(model, x[0], "features.0", []).shape == (0, 1, 8, 8)
    assert learning_images(model, x[0], "features.0").shape == (1024, 1, 8, 8)


def test_masks_of_another_shape_are_named(small):
    model, x = small
    for shape in ((1, 8, 8), (2, 4, 4), (2, 1, 8, 8), (8, 8)):
        with pytest.raises(ScanError, match=r"foreground masks .* do not fit images \(2, 1, 8, 8\)"):
            scan(model, x, torch.ones(shape, dtype=torch.bool))


def test_nothing_to_scan_is_named(small):
    model, x = small
    with pytest.raises(ScanError, match="nothing to scan: 0 samples and 3 layers"):
        scan(model, x[:0])
    with pytest.raises(ScanError, match="nothing to scan: 2 samples and 0 layers"):
        scan(model, x, layers=[])


# The table ----------------------------------------------------------------------------------------------------------


def test_a_scan_as_a_table(small):
    model, x = small
    moments = scan(model, x, layers=["features.3", "features.0"])
    table = moments.to_dataframe()
    assert table.columns.tolist() == ["layer", "filter", "row", "column", "sample", *QUANTITIES]
    assert table["layer"].unique().tolist() == ["features.3", "features.0"]
    assert len(table) == 2 * (32 * 4 * 4 + 16 * 8 * 8)
    assert not table.isna().any().any()
    row = table.query("layer == 'features.3' and filter == 7 and row == 2 and column == 3 and sample == 1")
    assert len(row) == 1
    for quantity in QUANTITIES:
        assert row[quantity].item() == moments.layers["features.3"][quantity][1, 7, 2, 3]


def test_public_names(small):
    model, x = small
    assert nnscan.scan is scan
    assert nnscan.learning_images is learning_images
    assert nnscan.filter_images is filter_images
    assert network_layers(model, x)[0].name == "features.0"
