"""nnscan.linearisation: what is recorded of a forward pass, and what is kept of it.

That tangents pass every operation correctly is tested in tests/oracle/test_architectures.py and in test_sweeps.py.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from nnscan.errors import ModelError
from nnscan.linearisation import Linearisation, LinearisationError, _ChannelFactor, _Convolution, _Factor, as_maps
from nnscan.models import prepare
from nnscan.sweeps import WindowSweep
from nnscan.windows import Grid, Windows
from twins import images, noise


class Net(nn.Module):
    """Two convolutions with a normalisation, and whatever a test does between and behind them."""

    def __init__(self, between=F.relu, behind=lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
        self.bn.running_mean.copy_(0.3 * noise(4))
        self.bn.running_var.copy_(noise(4).exp())
        self.end = nn.Identity()
        self.between, self.behind = between, behind
        self.double().eval()

    def forward(self, x):
        return self.end(self.behind(self.b(self.between(self.bn(self.a(x))))))


class Free(Net):
    """The same modules, called by a function of the network and its input."""

    def __init__(self, run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.end(self.run(self, x))


X = noise(2, 2, 6, 8)


def columns(linear: Linearisation, x: torch.Tensor, block: int = 1, dtype=None) -> dict[str, torch.Tensor]:
    """Return the columns of each layer that the input reaches (S, P, K, h, w)."""
    sweep = WindowSweep(linear, x, block, dtype, cache_bytes=2**13)
    pixels = (x.shape[2] // block) * (x.shape[3] // block)
    found = {layer: x.new_zeros((len(x), pixels, *sweep.values[layer].shape[1:])) for layer in linear.places}

    def read(layer, number, windows):
        for tangent, maps in enumerate(windows.whole().images().to(x.dtype)):
            if (pixel := sweep.batches[number].pixels[tangent]) >= 0:
                found[layer][tangent % len(x), pixel] = maps

    sweep.push(sweep.batches, read, lambda _: None)
    return found


def assert_exact(model: nn.Module, layers: list[str], x: torch.Tensor = X) -> Linearisation:
    """Compare all columns with autograd, and push them twice: nothing that is pushed may change what is kept."""
    linear = Linearisation(prepare(model), x, layers)
    for _ in range(2):
        found = columns(linear, x)
        for layer in layers:
            for sample in range(len(x)):
                expected = images(model, x[sample], layer).sum(1).flatten(1).T
                torch.testing.assert_close(found[layer][sample].flatten(1), expected, rtol=1e-10, atol=1e-12)
    return linear


def rules(linear: Linearisation, kind: type) -> list:
    return [linear.nodes[index].rule for index in linear.order if isinstance(linear.nodes[index].rule, kind)]


# Values and layers --------------------------------------------------------------------------------------------------


def test_values_are_those_before_a_change_in_place():
    def between(x):
        return F.relu_(x).mul_(2)

    model = Net(between, lambda x: F.relu_(x.mul_(-1)))
    linear = Linearisation(model, X, ["a", "bn", "b", "end"])
    with torch.no_grad():
        a = model.a(X)
        bn = model.bn(a)
        b = model.b(2 * bn.relu())
    for layer, expected in {"a": a, "bn": bn, "b": b, "end": (-b).relu()}.items():
        torch.testing.assert_close(linear.values[layer], expected, rtol=0, atol=0)
    assert (linear.values["bn"] < 0).any()


def test_layers_in_the_order_asked_and_of_every_shape():
    class Shapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps, self.rows, self.flat = nn.Conv2d(2, 4, 3), nn.Conv1d(4, 3, 5), nn.Linear(3, 5)
            self.deep, self.input = nn.Identity(), nn.Identity()

        def forward(self, x):
            x = self.maps(self.input(x))
            self.deep(x.view(len(x), 2, 2, *x.shape[2:]))
            return self.flat(self.rows(F.relu(x).flatten(2)).mean(2))

    torch.manual_seed(0)
    layers = ["flat", "deep", "rows", "maps", "input"]
    linear = assert_exact(Shapes().double(), layers)
    assert list(linear.values) == layers
    shapes = {layer: tuple(value.shape[1:]) for layer, value in linear.values.items()}
    assert shapes == {"maps": (4, 4, 6), "rows": (3, 1, 20), "flat": (5, 1, 1), "deep": (2, 8, 6), "input": (2, 6, 8)}
    for value in linear.values.values():
        assert value.reshape(2, -1).shape[1] == value[0].numel()


def test_outputs_as_maps():
    values = torch.arange(48)
    for shape, expected in (((2, 24), (2, 24, 1, 1)), ((2, 6, 4), (2, 6, 1, 4)), ((2, 2, 3, 2, 2), (2, 2, 6, 2))):
        assert as_maps(values.view(shape)).shape == expected
        assert as_maps(values.view(shape)).reshape(-1).tolist() == list(range(48))


def test_a_layer_that_is_called_twice_is_taken_at_its_last_call():
    model = Free(lambda self, x: F.relu(self.a(F.relu(self.a(x))[:, :2])))
    linear = assert_exact(model, ["a", "end"])
    with torch.no_grad():
        torch.testing.assert_close(linear.values["a"], model.a(model.a(X).relu()[:, :2]))


def test_a_layer_that_the_input_does_not_reach_has_a_value_but_no_place():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.constant = nn.Conv2d(2, 4, 3), nn.Linear(2, 3)

        def forward(self, x):
            return self.a(x).mean((2, 3))[:, :3] + self.constant(torch.ones((len(x), 2), dtype=x.dtype))

    linear = Linearisation(Constant().double(), X, ["a", "constant"])
    assert linear.values["constant"].shape == (2, 3, 1, 1)
    assert list(linear.places) == ["a"]


def test_only_what_the_layers_need_is_run():
    model = Net(behind=lambda x: F.interpolate(x, scale_factor=2).softmax(1))
    behind, before = Linearisation(model, X, ["end"]), Linearisation(model, X, ["b"])
    assert behind.whole_maps == ["upsample_nearest2d", "_softmax"]
    assert before.whole_maps == []
    assert len(before.order) == len(behind.order) - 2
    assert max(before.order) == before.places["b"]


# What cannot be followed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (lambda x: x - x.mean(), "mean mixes the samples with other dimensions"),
        (lambda x: x.flip(0).permute(1, 0, 2, 3), "permute mixes the samples"),
        (lambda x: torch.cat(x.split(1, 0)), "mixes the samples|divides the samples"),
        (lambda x: F.instance_norm(x), "mixes the samples"),
        (lambda x: F.batch_norm(x, None, None, training=True), "takes its statistics from the batch"),
        (lambda x: (x[:, :1].relu_(), x)[1], "relu_ changes a tensor that is seen elsewhere too"),
        (lambda x: (x.detach().relu_(), x)[1], "relu_ changes a tensor that is seen elsewhere too"),
        (lambda x: torch.maximum(-x, x.detach()) + x.mul_(2), "mul_ changes a tensor that is seen elsewhere too"),
        (lambda x: torch.zeros_like(x).copy_(x), "copy_ changes a tensor that is seen elsewhere too"),
        (lambda x: x.copy_(2 * x), "torch has no forward-mode derivative of copy"),
    ],
)
def test_the_reason_why_a_network_cannot_be_followed(behind, reason):
    model = Net(behind=behind)
    with pytest.raises(LinearisationError, match=reason):
        Linearisation(model, X, ["a", "end"])
    assert_exact(model, ["a", "b"])  # what comes later does not matter


def test_samples_that_change_places_with_as_many_channels():
    with pytest.raises(LinearisationError, match="transpose mixes the samples with other dimensions"):
        Linearisation(Net(behind=lambda x: x.transpose(0, 1)), noise(3, 2, 6, 8), ["end"])


def test_a_layer_that_is_not_used_or_returns_no_tensor():
    model = Net()
    model.unused = nn.Linear(1, 1)
    with pytest.raises(LinearisationError, match="the layers unused are not used in the forward pass"):
        Linearisation(model, X, ["a", "unused"])
    model.end = nn.LSTM(6, 2).double()
    model.behind = lambda x: x[:, 0]
    with pytest.raises(ModelError, match="the layer 'end' returns tuple, not a tensor; choose a layer inside it"):
        Linearisation(model, X, ["end"])


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_of_the_watch(failing):
    def behind(x):
        if failing:
            raise RuntimeError("the model failed")
        return x

    model, x = Free(lambda self, x: behind(self.a(x.sub_(1)))), X.clone()
    before = [len(module._forward_hooks) for module in model.modules()]
    if failing:
        with pytest.raises(RuntimeError, match="the model failed"):
            Linearisation(model, x, ["a", "end"])
    else:
        torch.testing.assert_close(Linearisation(model, x, ["a", "end"]).values["end"], model.a(X - 1))
    assert [len(module._forward_hooks) for module in model.modules()] == before
    assert not _get_current_dispatch_mode_stack()
    assert torch.is_grad_enabled()
    assert torch.equal(x, X)


# In place, constants and aliases ------------------------------------------------------------------------------------


def residual(x):
    inner = F.hardtanh(x, 0, 2)
    inner += x
    return inner


def read_before_a_change(x):
    half = 0.5 * x
    return half + F.relu_(x.mul_(3))


def squared(x):
    return x * x


@pytest.mark.parametrize(
    "between",
    [
        F.relu_,
        lambda x: F.relu_(F.hardtanh_(x, -1, 2)),
        lambda x: F.leaky_relu_(x.add_(1).mul_(0.5)),
        lambda x: x.clamp_(min=0).sub_(x.mean((2, 3), keepdim=True)),
        lambda x: x.add_(x),
        residual,
        read_before_a_change,
        squared,
        lambda x: x + F.relu(x) + F.relu(-x),
        lambda x: F.relu(x) * F.relu(x + 1),
        lambda x: F.relu(x.view(len(x), 2, 2, 6, 8)).view(x.shape),
        lambda x: F.relu(x.clone()) + x,
        lambda x: F.relu(x[:]) + x.contiguous(),
        lambda x: x + x.detach(),
        lambda x: x * (x.detach() > 0),
        lambda x: x * x.data.sigmoid(),
        lambda x: x + torch.ones_like(x).mul_(2),
        lambda x: x / (1 + x.square()),
        lambda x: x.mean((2, 3), keepdim=True) * noise(4, 6, 8),
        lambda x: F.batch_norm(x.view(len(x), 2, 2, 6, 8), noise(2), noise(2).exp()).view(x.shape),
        lambda x: F.batch_norm(x.flatten(2), noise(4), noise(4).exp()).view(x.shape),
        lambda x: torch.addmm(noise(192), x.flatten(1), noise(192, 192) / 14, alpha=2).view(x.shape),
        lambda x: noise(6, 8) * x - x / noise(4, 1, 8).exp(),
    ],
)
def test_values_read_twice_or_changed_in_place(between):
    assert_exact(Net(between), ["a", "bn", "b"])


def test_a_factor_that_is_changed_in_place_by_itself():
    """x *= x is 2 x dx; autograd refuses to go back through it."""
    found = columns(Linearisation(Net(lambda x: x.mul_(x)), X, ["b"]), X)["b"]
    expected = columns(Linearisation(Net(squared), X, ["b"]), X)["b"]
    assert torch.equal(found, expected)


def test_constants_that_are_changed_after_they_were_used():
    constant = torch.full((4, 1, 1), 2.0, dtype=torch.float64)

    def between(x):
        scaled = constant * x
        constant.fill_(7)
        return scaled

    linear = Linearisation(Net(between), X, ["b"])
    expected = Linearisation(Net(lambda x: 2 * x), X, ["b"])
    torch.testing.assert_close(columns(linear, X)["b"], columns(expected, X)["b"])


def test_weights_that_depend_on_the_input():
    def between(x):
        return F.conv2d(x, x.mean((2, 3), keepdim=True)).expand(-1, 4, -1, -1)

    assert_exact(Net(between), ["a", "b"], X[:1])


# Simplification -----------------------------------------------------------------------------------------------------


def test_a_normalisation_is_folded_into_the_convolution_that_it_alone_reads():
    linear = assert_exact(Net(), ["bn", "b"])
    assert len(rules(linear, _Convolution)) == 2
    assert rules(linear, _ChannelFactor) == []


def test_a_convolution_that_is_read_elsewhere_stays_as_it_is():
    linear = assert_exact(Net(), ["a", "bn", "b"])
    assert len(rules(linear, _ChannelFactor)) == 1  # the convolution is a layer itself
    linear = assert_exact(Free(lambda self, x: self.b((y := self.a(x)) + self.bn(y))), ["b", "end"])
    assert len(rules(linear, _ChannelFactor)) == 1


def test_factors_behind_one_another_are_folded():
    linear = assert_exact(Net(lambda x: 3 * (x / 2) * 0.1), ["b"])
    assert rules(linear, _ChannelFactor) == []
    grouped = Net()
    grouped.a = nn.Conv2d(2, 4, 3, padding=1, groups=2).double()
    assert rules(assert_exact(grouped, ["bn", "b"]), _ChannelFactor) == []


def test_a_model_keeps_its_weights():
    model = Net(F.relu_)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    columns(Linearisation(model, X, ["bn", "b"]), X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tangents_are_written_over_only_where_nobody_else_reads_them():
    alone = Linearisation(Net(), X, ["b"])
    assert [rule.reuse for rule in rules(alone, _Factor)] == [True]
    twice = Linearisation(Net(lambda x: F.relu(x) + x), X, ["b"])
    assert [rule.reuse for rule in rules(twice, _Factor)] == [False]
    # of the input, or of what may share its memory with something else
    begun = Free(lambda self, x: self.a(F.relu(x)) + self.a(x))
    assert not any(rule.reuse for rule in rules(assert_exact(begun, ["end"]), _Factor))
    shuffled = Net(lambda x: F.relu(x[:, [0, 1, 2, 3]]))
    assert not any(rule.reuse for rule in rules(assert_exact(shuffled, ["b"]), _Factor))


# Memory -------------------------------------------------------------------------------------------------------------


class Kept:
    """Weak references to the values of a forward pass, by name; passes them on."""

    def __init__(self) -> None:
        self.references: dict[str, weakref.ref] = {}

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        self.references[name] = weakref.ref(value.untyped_storage())
        return value

    def alive(self) -> set[str]:
        return {name for name, reference in self.references.items() if reference() is not None}


def test_values_that_no_rule_needs_are_not_kept():
    kept = Kept()

    def between(x):
        return kept("pooled", F.max_pool2d(kept("rectified", F.relu(kept("normalised", x))), 2))

    def behind(x):
        return kept("score", kept("gate", x.sigmoid()) * x)

    gc.disable()
    try:
        linear = Linearisation(Net(between, behind), X, ["b"])
        assert set(kept.references) == {"normalised", "rectified", "pooled", "gate", "score"}
        assert kept.alive() == set()  # gates and winners are kept as numbers of their own
        del linear
    finally:
        gc.enable()


def test_values_that_a_rule_needs_live_as_long_as_the_linearisation():
    kept = Kept()
    linear = Linearisation(Net(lambda x: kept("softened", x.softmax(1)), lambda x: kept("score", x)), X, ["b"])
    columns(linear, X)
    del linear
    gc.collect()
    assert kept.alive() == set()


def test_tangents_are_dropped_when_their_last_reader_has_read_them():
    linear = Linearisation(Net(), X, ["a", "bn", "b"])
    references = []

    def read(layer, number, windows):
        assert sum(reference() is not None for reference in references) <= 1  # of the layer before, at most
        references.append(weakref.ref(windows.data))

    sweep = WindowSweep(linear, X, 2, cache_bytes=2**24)
    sweep.push(sweep.batches[:1], read, lambda _: None)
    assert len(references) == 3
    assert not any(reference() is not None for reference in references)


# Costs --------------------------------------------------------------------------------------------------------------


def test_products_and_channels():
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ).double()
    linear = Linearisation(prepare(model), X, ["0", "2", "6"])
    whole = 48 * 4 * 2 * 9 + 48 * 6 * 2 * 9 + 6 * 5
    assert linear.whole_products() == whole
    middle, count = np.array([3, 3]), 2
    grids = linear.grids(Grid(middle, middle, 1, 1, 6, 8, 2))
    assert linear.products(grids) == count * (9 * 4 * 2 * 9 + 25 * 6 * 2 * 9 + 6 * 5)
    assert [linear.channels(linear.places[layer]) for layer in ("0", "2", "6")] == [4, 6, 5]
    assert sorted(grids) == linear.order
    # of each batch the maps that later layers read wait: behind 0 that map, behind 2 that one; behind 6 nothing
    assert linear.held(grids) == count * max(9 * 4, 25 * 6)


def test_layers_are_passed_one_after_the_other():
    linear = Linearisation(Net(), X, ["bn", "a", "b"])
    sweep = WindowSweep(linear, X, 1, cache_bytes=2**12)
    events = []
    sweep.push(
        sweep.batches[:3],
        lambda layer, number, _: events.append((layer, number)),
        lambda layer: events.append((layer, "left")),
    )
    assert events == [(layer, event) for layer in ("a", "bn", "b") for event in (0, 1, 2, "left")]


# Derivatives --------------------------------------------------------------------------------------------------------


def test_operations_without_a_rule_of_less_precision():
    """They are derived in the type of the values, whatever type the tangents have."""
    model = Net(lambda x: F.conv_transpose2d(x, 0.2 * noise(4, 4, 2, 2), stride=2).softmax(1))
    linear = Linearisation(model, X, ["b"])
    exact, rounded = columns(linear, X)["b"], columns(linear, X, dtype=torch.bfloat16)["b"]
    assert 1e-4 < (rounded - exact).abs().max() / exact.abs().max() < 0.03


def test_operations_with_several_results():
    def between(x):
        values, _ = x.sort(1)
        one, two = torch.unbind(values.view(len(x), 2, 2, 6, 8), 1)
        return torch.cat([one, two.flip(1)], 1)

    linear = assert_exact(Net(between), ["b"])
    assert linear.whole_maps == ["sort", "unbind", "flip"]


def test_an_operation_of_values_that_repeat_one_number():
    linear = assert_exact(Net(lambda x: F.normalize(x, dim=1)), ["b"])
    assert linear.whole_maps == ["linalg_vector_norm", "expand", "div"]


def test_whole_maps_are_named_where_there_are_places_to_lose():
    def whole_maps(behind):
        return Linearisation(Net(behind=behind), X, ["end"]).whole_maps

    assert whole_maps(lambda x: x.flatten(1)) == []
    assert whole_maps(lambda x: x.mean((2, 3)).view(len(x), 1, 3)) == []
    assert whole_maps(lambda x: x.mean((2, 3)).view(len(x), 1, 1, 3)) == []
    assert whole_maps(lambda x: x * x.mean((2, 3), keepdim=True)) == ["mul"]
    assert whole_maps(lambda x: x.mean((2, 3), keepdim=True) * x.mean((2, 3), keepdim=True)[:, :1]) == []
    assert whole_maps(lambda x: x.permute(0, 2, 3, 1)) == ["permute"]
    assert whole_maps(lambda x: torch.cat(x.chunk(2, 2)[::-1], 2)) == ["split", "cat"]
    assert whole_maps(lambda x: x.view(len(x), 3, 2, -1)) == ["view"]


def test_windows_pushed_through_a_rule_are_only_read():
    """A layer's windows as they are read are those that a rule in place would spoil later."""
    linear = Linearisation(Net(F.relu_), X, ["a", "bn", "b"])
    sweep = WindowSweep(linear, X, 1)
    taken = {}

    def read(layer: str, number: int, windows: Windows) -> None:
        taken[layer, number] = windows.data.clone(), windows.whole().data

    sweep.push(sweep.batches, read, lambda _: None)
    found = columns(linear, X)
    for (layer, number), (_, whole) in taken.items():
        for tangent, pixel in enumerate(sweep.batches[number].pixels):
            expected = found[layer][tangent % 2, pixel].permute(1, 2, 0)
            torch.testing.assert_close(whole[tangent], expected, rtol=1e-12, atol=1e-14)
