"""nnscan.backprop: every form of ReLU, refusals, and a model that leaves unchanged."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from nnscan import backprop
from nnscan.backprop import guided_backpropagation, guided_batches, guided_scores, rectified_scores
from nnscan.errors import LayerError, ModelError, ScanError


class Net(nn.Module):
    """Two convolutions and a linear layer with the activations that a test gives; equal weights for every test."""

    def __init__(self, first, second):
        super().__init__()
        torch.manual_seed(11)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.linear = nn.Linear(5, 3)
        self.first = first
        self.second = second
        self.double()

    def forward(self, x):
        x = self.conv1(x)
        x = self.first(x)
        x = F.max_pool2d(x, 2)
        x = self.conv2(x)
        x = self.second(x)
        return self.linear(x.mean((2, 3)))


class Wrapped(torch.autograd.Function):
    """A ReLU of a user's own."""

    @staticmethod
    def forward(ctx, x):
        return torch.relu(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def used_in_place(x):
    """Work as `x.relu_()` does for a caller that keeps x and drops the result."""
    x.relu_()
    return x


def half_in_place(x):
    x[:, :2].relu_()
    x[:, 2:].relu_()
    return x


REUSED = nn.ReLU()
REUSED_IN_PLACE = nn.ReLU(inplace=True)
FORMS = {
    "reused module": (REUSED, REUSED),
    "in-place modules": (nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "reused in-place module": (REUSED_IN_PLACE, REUSED_IN_PLACE),
    "F.relu": (F.relu, F.relu),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), lambda x: F.relu(input=x, inplace=True)),
    "F.relu in place by position": (lambda x: F.relu(x, True), lambda x: F.relu_(x)),
    "torch.relu": (torch.relu, torch.relu),
    "torch.relu_": (torch.relu_, torch.relu_),
    "Tensor.relu": (lambda x: x.relu(), torch.Tensor.relu),
    "Tensor.relu_": (used_in_place, used_in_place),
    "parts in place": (half_in_place, half_in_place),
    "aten": (torch.ops.aten.relu, torch.ops.aten.relu.default),
    "module and function": (nn.ReLU(), F.relu),
}


@pytest.fixture
def x():
    return torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def modules():
    return Net(nn.ReLU(), nn.ReLU())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_every_form_of_relu_gives_the_same_images(form, layer, x, modules):
    expected = guided_backpropagation(modules, x, layer)
    assert expected.abs().amax((0, 2, 3, 4)).min() > 0
    torch.testing.assert_close(guided_backpropagation(Net(*FORMS[form]), x, layer), expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_relu_gives_the_same_score_images(form, x, modules):
    expected = guided_scores(modules, x, [2, 0, 1])
    torch.testing.assert_close(guided_scores(Net(*FORMS[form]), x, [2, 0, 1]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"parts in place"}))  # each of its calls is a layer
def test_every_form_of_relu_gives_the_same_rectified_images(form, x, modules):
    expected = rectified_scores(modules, x, [2, 0, 1])
    assert expected.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(rectified_scores(Net(*FORMS[form]), x, [2, 0, 1]), expected, rtol=0, atol=0)


def test_a_rectified_layer_is_that_of_one_sample(x):
    turned = Net(F.relu, lambda values: values.transpose(0, 1).relu().transpose(0, 1))
    assert guided_scores(turned, x, [2, 0, 1]).abs().max() > 0
    with pytest.raises(ModelError, match="first axis is not that of the samples"):
        rectified_scores(turned, x, [2, 0, 1])


def test_rectified_images_of_other_activations_are_refused(x):
    with pytest.raises(ModelError, match="the rectified gradient are defined for networks with ReLU as their only"):
        rectified_scores(Net(F.relu, nn.GELU()), x, [2, 0, 1])


def test_rule_is_applied_in_functional_networks(x):
    net = Net(F.relu, F.relu)
    source = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(source)[:, 1].sum(), source)
    assert (guided_scores(net, x, [1, 1, 1]) - gradient).abs().max() > 0.01


REFUSED = {
    "GELU": (nn.GELU(), "GELU"),
    "SiLU": (nn.SiLU(), "SiLU"),
    "Sigmoid": (nn.Sigmoid(), "Sigmoid"),
    "Tanh": (nn.Tanh(), "Tanh"),
    "LeakyReLU": (nn.LeakyReLU(), "LeakyReLU"),
    "PReLU": (nn.PReLU(), "PReLU"),
    "RReLU": (nn.RReLU(), "RReLU"),
    "ELU": (nn.ELU(), "ELU"),
    "SELU": (nn.SELU(), "SELU"),
    "CELU": (nn.CELU(), "CELU"),
    "Mish": (nn.Mish(), "Mish"),
    "Softplus": (nn.Softplus(), "Softplus"),
    "Softsign": (nn.Softsign(), "Softsign"),
    "LogSigmoid": (nn.LogSigmoid(), "LogSigmoid"),
    "Hardswish": (nn.Hardswish(), "Hardswish"),
    "Hardsigmoid": (nn.Hardsigmoid(), "Hardsigmoid"),
    "Hardtanh": (nn.Hardtanh(), "Hardtanh"),
    "Hardshrink": (nn.Hardshrink(), "Hardshrink"),
    "Softshrink": (nn.Softshrink(), "Softshrink"),
    "Tanhshrink": (nn.Tanhshrink(), "Tanhshrink"),
    "Threshold": (nn.Threshold(0.1, 0), "Threshold"),
    "ReLU6": (nn.ReLU6(), "ReLU6"),
    "F.gelu": (F.gelu, "gelu"),
    "F.silu": (F.silu, "silu"),
    "F.relu6": (F.relu6, "relu6"),
    "F.leaky_relu": (F.leaky_relu, "leaky_relu"),
    "F.elu": (F.elu, "elu"),
    "F.softplus": (F.softplus, "softplus"),
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "Tensor.tanh_": (lambda x: x.tanh_(), "tanh"),
    "clamp as a ReLU": (lambda x: x.clamp(min=0), "clamp"),
    "clamp_min as a ReLU": (lambda x: torch.clamp_min(x, 0), "clamp"),
    "maximum as a ReLU": (lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)), "maximum"),
    "where as a ReLU": (lambda x: torch.where(x > 0, x, 0.0), "where"),
    "masked_fill as a ReLU": (lambda x: x.masked_fill(x < 0, 0), "masked_fill"),
    "a custom ReLU": (Wrapped.apply, "custom function Wrapped"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("position", [0, 1])
def test_other_activations_are_refused_by_name(name, position, x):
    activation, named = REFUSED[name]
    net = Net(activation, nn.ReLU()) if position == 0 else Net(nn.ReLU(), activation)
    with pytest.raises(ModelError, match=rf"ReLU as their only activation.*\b{named}\b"):
        guided_backpropagation(net, x, "conv2")
    with pytest.raises(ModelError, match=rf"ReLU as their only activation.*\b{named}\b"):
        guided_scores(net, x, [0, 0, 0])


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_relus_are_refused(x):
    net = Net(torch.jit.trace(nn.ReLU(), torch.zeros(1)), nn.ReLU())
    with pytest.raises(ModelError, match="a ReLU that nnscan cannot reach"):
        guided_backpropagation(net, x, "conv2")


def test_refusal_names_the_modules_that_are_in_the_way(x):
    with pytest.raises(ModelError, match=r"gelu \(in first \(GELU\), second \(GELU\)\)"):
        guided_backpropagation(Net(nn.GELU(), nn.GELU()), x, "conv2")


@pytest.mark.parametrize(
    "mixing", [lambda x: x - x.mean(0), lambda x: x * x.mean(), nn.BatchNorm2d(4, track_running_stats=False).double()]
)
def test_samples_that_influence_each_other_are_refused(mixing, x):
    with pytest.raises(ModelError, match="samples of a batch influence each other"):
        guided_backpropagation(Net(lambda values: F.relu(mixing(values)), F.relu), x, "conv2")
    with pytest.raises(ModelError, match="samples of a batch influence each other"):
        guided_scores(Net(lambda values: F.relu(mixing(values)), F.relu), x, [0, 1, 2])


@pytest.mark.parametrize("shape", [lambda scores: scores.T, lambda scores: scores.sum(), lambda scores: scores[None]])
def test_layers_of_networks_without_one_row_of_scores_per_sample(shape, x, modules):
    class Shaped(Net):
        def forward(self, x):
            return shape(super().forward(x))

    net = Shaped(F.relu, F.relu)
    torch.testing.assert_close(guided_backpropagation(net, x, "conv2"), guided_backpropagation(modules, x, "conv2"))
    if shape(torch.zeros(2, 3)).ndim != 2:
        with pytest.raises(ModelError, match="class score"):
            guided_scores(net, x, [0, 1, 2])


def test_inactive_filter_has_a_zero_image(x, modules):
    with torch.no_grad():
        modules.conv2.bias[3] = -100
    images = guided_backpropagation(modules, x, "conv2")
    assert not images[:, 3].any()
    assert images[:, :3].any()


def test_class_scores_are_carried_back_whatever_their_sign(x, modules):
    with torch.no_grad():
        modules.linear.bias[:] = -100
    assert not guided_backpropagation(modules, x, "linear").any()
    raw = guided_backpropagation(modules, x, "linear", rectify=False)
    assert raw.any()
    torch.testing.assert_close(raw[:, 2], guided_scores(modules, x, [2, 2, 2]), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 1000])
def test_chunks_do_not_change_the_images(chunk, x, modules):
    expected = guided_backpropagation(modules, x, "conv2")
    torch.testing.assert_close(guided_backpropagation(modules, x, "conv2", chunk=chunk), expected)
    largest = max(len(images) for *_, images in guided_batches(modules, x, {"conv2": True}, chunk=chunk))
    assert largest <= chunk


@pytest.mark.parametrize("size", [1, 5000, 20000, 10**9])
@pytest.mark.parametrize("copies", [1, 3, 16])
def test_size_of_a_pass_does_not_change_the_images(size, copies, x, modules, monkeypatch):
    expected = {layer: guided_backpropagation(modules, x, layer) for layer in ("conv1", "conv2")}
    scores = guided_scores(modules, x, [2, 0, 1])
    monkeypatch.setattr(backprop, "PASS_BYTES", size)
    monkeypatch.setattr(backprop, "COPIES", copies)
    with batches(modules) as sizes:
        for layer, images in expected.items():
            torch.testing.assert_close(guided_backpropagation(modules, x, layer), images)
        torch.testing.assert_close(guided_scores(modules, x, [2, 0, 1]), scores)
    largest = 4 * 8 * 8 * 8  # bytes of conv1's output
    assert max(sizes) <= max(2, size // largest)
    if (size, copies) == (20000, 3):
        assert max(sizes) == size // largest == 9
    monkeypatch.setattr(backprop, "PASS_PAIRS", 2)
    with batches(modules) as sizes:
        torch.testing.assert_close(guided_backpropagation(modules, x, "conv2"), expected["conv2"])
    assert max(sizes) <= 2


@contextmanager
def batches(model, layer="conv1"):
    """Collect the batch sizes with which a layer is called, in copies of the model too."""
    sizes = []
    handle = model.get_submodule(layer).register_forward_hook(Noting(sizes))
    yield sizes
    handle.remove()


class Noting:
    """A hook that a copied model shares with its original."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __deepcopy__(self, memo):
        return self

    def __call__(self, module, args, output):
        self.sizes.append(len(output))


def test_layers_together_equal_each_alone(x, modules):
    layers = {"conv2": True, "linear": False, "conv1": True}
    expected = {name: guided_backpropagation(modules, x, name, rectify=layers[name]) for name in layers}
    with batches(modules) as sizes:
        found = {name: torch.full_like(images, torch.nan) for name, images in expected.items()}
        for name, samples, filters, images in guided_batches(modules, x, layers):
            assert found[name][samples, filters].isnan().all()  # no image is computed twice
            found[name][samples, filters] = images
    assert sizes == [2, 15]  # one pass to look at the network, one for all images
    for name, images in found.items():
        left_out = images.isnan().flatten(2).all(2)
        assert not expected[name][left_out].any()
        torch.testing.assert_close(images[~left_out], expected[name][~left_out])


def test_filters_that_are_not_active_are_left_out(x, modules):
    with torch.no_grad():
        modules.conv2.bias[[1, 3]] = -100
    taken = torch.cat([filters for _, _, filters, _ in guided_batches(modules, x, {"conv2": True})])
    assert sorted(set(taken.tolist())) == [0, 2, 4]
    assert not list(guided_batches(modules, x, {"conv2": True}, [3, 1]))
    assert not guided_backpropagation(modules, x, "conv2", [3, 1]).any()
    assert len(list(guided_batches(modules, x, {"conv2": False}, [3, 1]))) == 1


def test_samples_differ_in_how_many_filters_are_active(x, modules, monkeypatch):
    monkeypatch.setattr(backprop, "COPIES", 2)
    monkeypatch.setattr(backprop, "PASS_PAIRS", 6)  # all three samples in each pass
    x = x * torch.tensor([0.05, 1, 4]).view(3, 1, 1, 1)
    with torch.no_grad():
        modules.conv2.bias.copy_(0.1 - torch.arange(5) / 5)
    images = guided_backpropagation(modules, x, "conv2")
    assert images.flatten(2).any(2).sum(1).tolist() == [1, 3, 4]
    for sample, image in enumerate(x):
        for k in range(5):
            alone = guided_backpropagation(modules, image[None], "conv2", [k])[0, 0]
            torch.testing.assert_close(images[sample, k], alone)


def test_network_is_run_no_further_than_needed(x, modules):
    with batches(modules, "conv2") as sizes:
        guided_backpropagation(modules, x, "conv1")
    assert sizes == [2]  # to see that the rule is defined for the whole network
    with batches(modules, "linear") as sizes:
        list(guided_batches(modules, x, {"conv2": True, "conv1": True}))
    assert sizes == [2]


def test_network_may_catch_every_error(x, modules):
    class Catching(Net):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return None

    torch.testing.assert_close(
        guided_backpropagation(Catching(F.relu, F.relu), x, "conv1"), guided_backpropagation(modules, x, "conv1")
    )


def test_nothing_is_left_switched_on_between_pieces(x, modules):
    before = snapshot(modules)
    with torch.no_grad():
        for _ in guided_batches(modules, x, {"conv1": True, "conv2": True}, chunk=2):
            assert not torch.is_grad_enabled()
            assert not _get_current_function_mode_stack()
            assert snapshot(modules) == before
            break
    assert snapshot(modules) == before


def test_output_changed_in_place_after_a_relu(x, modules):
    added = Net(lambda x: F.relu(x).add_(1), lambda x: F.relu(x).mul_(1))
    plain = Net(lambda x: F.relu(x) + 1, F.relu)
    torch.testing.assert_close(guided_backpropagation(added, x, "conv2"), guided_backpropagation(plain, x, "conv2"))


def test_samples_do_not_influence_each_other(x, modules):
    alone = torch.cat([guided_backpropagation(modules, image[None], "conv2") for image in x])
    torch.testing.assert_close(guided_backpropagation(modules, x, "conv2"), alone)


def test_filters_come_in_the_order_asked_for(x, modules):
    images = guided_backpropagation(modules, x, "conv2")
    some = guided_backpropagation(modules, x, modules.conv2, filters=[4, 0, 4])
    torch.testing.assert_close(some, images[:, [4, 0, 4]])


def snapshot(model):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
        for m in model.modules()
    ]
    modes = [m.training for m in model.modules()]
    return hooks, modes, [getattr(m, "inplace", None) for m in model.modules()]


def failing(x):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (nn.ReLU(inplace=True), nullcontext()),
        (failing, pytest.raises(RuntimeError, match="out of order")),
        (nn.GELU(), pytest.raises(ModelError, match="GELU")),
    ],
    ids=["runs", "raises", "is refused"],
)
def test_model_and_modes_are_left_unchanged(second, outcome, x):
    net = Net(nn.ReLU(inplace=True), second).train()
    net.conv1.weight.requires_grad_(False)
    before = snapshot(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    image = x.clone()
    with outcome:
        guided_backpropagation(net, x, "conv2")
    with outcome:
        guided_scores(net, x, [0, 1, 2])
    assert snapshot(net) == before
    assert not _get_current_function_mode_stack()
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(x, image, rtol=0, atol=0)
    assert torch.relu(x.clone().requires_grad_()).grad_fn.name() == "ReluBackward0"


def test_network_that_changes_its_input_leaves_the_users_image(x):
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3)).double()
    expected = guided_backpropagation(net, x, "1")

    class Changing(nn.Sequential):
        def forward(self, values):
            return self[1](values.relu_())

    image = x.clone()
    torch.testing.assert_close(guided_backpropagation(Changing(*net), x, "1"), expected)
    torch.testing.assert_close(x, image, rtol=0, atol=0)


def test_works_where_gradients_are_switched_off(x, modules):
    expected = guided_backpropagation(modules, x, "conv2")
    with torch.no_grad():
        torch.testing.assert_close(guided_backpropagation(modules, x, "conv2"), expected)
        scores = guided_scores(modules, x, [0, 1, 2])
    torch.testing.assert_close(scores, guided_scores(modules, x, [0, 1, 2]))


def test_wrong_requests_are_named(x, modules):
    with pytest.raises(LayerError, match="did you mean 'conv2'"):
        guided_backpropagation(modules, x, "conv3")
    with pytest.raises(ScanError, match="filters 0 to 4"):
        guided_backpropagation(modules, x, "conv2", filters=[5])
    with pytest.raises(ScanError, match="no image"):
        guided_backpropagation(modules, x, "conv2", filters=[])
    with pytest.raises(ScanError, match=r"tensor \(N, C, H, W\), got \(0, 1, 8, 8\)"):
        guided_backpropagation(modules, x[:0], "conv2")
    with pytest.raises(ScanError, match="chunk=0"):
        guided_backpropagation(modules, x, "conv2", chunk=0)
    with pytest.raises(ScanError, match="floating-point"):
        guided_backpropagation(modules, x.long(), "conv2")
    with pytest.raises(ScanError, match="one per input"):
        guided_scores(modules, x, [0])
    with pytest.raises(ModelError, match="class scores 0 to 3"):
        guided_scores(modules, x, [0, 1, 3])


def test_layers_outside_the_forward_pass_or_the_graph_are_named(x, modules):
    modules.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ScanError, match="'spare' is not used"):
        guided_backpropagation(modules, x, "spare")
    detached = Net(torch.Tensor.detach, nn.ReLU())
    for request in (lambda: guided_backpropagation(detached, x, "conv2"), lambda: guided_scores(detached, x, [0] * 3)):
        with pytest.raises(ModelError, match="does not depend on the input"):
            request()
