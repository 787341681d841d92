"""One matrix of tests for all methods of explanation: an entry of the registry is tested by being there.

Each method is run on the first network of `FITTING` that it fits; a method with a new need adds a network there. What
is right on it is the matter of the method's own tests.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from networks import CLASSES, Dense, Detached, Residual, images, plain, pooled, weighed
from nnscan import explainers, gradients, maximisation, perturbations, surrogates
from nnscan.errors import ConfigurationError, ModelError, NnscanError, ScanError
from nnscan.explainers import EXPLAINERS, METHODS, chosen
from nnscan.explanations import Scanned, Setting
from nnscan.models import build_model

SMALL = [
    (perturbations, {"RISE_MASKS": 32, "MEANINGFUL_STEPS": 4, "EXTREMAL_STEPS": 4, "INFILLING_STEPS": 3}),
    (surrogates, {"SAMPLES": 60}),
    (gradients, {"STEPS": 8, "SAMPLES": 8}),
    (maximisation, {"STEPS": 6, "CODE_STEPS": 6}),
]
"""Constants of slow methods; nothing here depends on them."""

EXPLAINING = [name for name, method in METHODS.items() if method.explain is not None]
MAKING = [name for name, method in METHODS.items() if method.synthesise is not None]
SHAPE = (2, 8, 8)
BOX = ((-4.0, -4.0), (4.0, 4.0))


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SMALL:
            for name, value in values.items():
                assert hasattr(module, name)
                patch.setattr(module, name, value)
        yield


pytestmark = pytest.mark.usefixtures("one_thread")


# Networks -----------------------------------------------------------------------------------------------------------


class ExplodedError(RuntimeError):
    """What a network raises that has been told to."""


class Fuse:
    """Counts the passes of a network and of all its copies, and ends one of them."""

    def __init__(self):
        self.passes, self.limit = 0, None

    def __deepcopy__(self, memo):
        return self

    def burn(self):
        self.passes += 1
        if self.limit is not None and self.passes > self.limit:
            raise ExplodedError

    @contextmanager
    def after(self, limit):
        self.passes, self.limit = 0, limit
        yield
        self.limit = None


class Fused(nn.Module):
    """A network with a fuse."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.fuse = inner, Fuse()

    def forward(self, x):
        output = self.inner(x)
        self.fuse.burn()
        return output


class Filler(nn.Module):
    """Fills hidden pixels with a tenth."""

    def forward(self, x, kept):
        return x * kept + 0.1 * (1 - kept)


def in_place():
    """Global pooling and one linear layer; a ReLU that changes its input, one that is used twice."""
    network = pooled()
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(*network[:1], relu, *network[2:3], relu, *network[4:]).double()


def attentive(kind):
    torch.manual_seed(0)
    return build_model("simple_cnn", {"in_channels": 2, "size": 8, "classes": 3, "attention": kind}).double()


FITTING = [in_place, lambda: attentive("se"), lambda: attentive("cbam"), lambda: attentive("class")]


def setting(count, first=0):
    """Return a setting with all that a method may need of `in_place`; `first`: of the inputs from there on."""
    rng = np.random.default_rng(0)
    quantities, absolute = rng.random((32, 5, 8, 8)), rng.random((32, 5, 8, 8))
    own = slice(first, first + count)
    scanned = Scanned("inner.2", np.arange(32)[own], quantities[own], absolute[own], 1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = maximisation.Generator(4, SHAPE[0], SHAPE[1:], width=4).eval()
    return Setting(seed=1, scanned=scanned, infiller=Filler(), generator=generator, box=BOX)


def fitting(method, run):
    """Return the first network that a method fits, and what it gives there; it leaves all else alone."""
    reasons = []
    for make in FITTING:
        network = Fused(make()).train()
        before = states(network)
        try:
            found = run(network)
        except NnscanError as error:
            reasons.append(str(error))
        else:
            assert_left_alone(network, before)
            return network, found
    pytest.fail(f"{method.name} fits no network here, and so cannot be tested; add one to FITTING: {reasons}")


def states(network):
    """Return all of a network, and of torch, that a method must leave alone."""
    return {
        "parameters": [value.clone() for value in network.state_dict().values()],
        "gradients": [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()],
        "modes": [module.training for module in network.modules()],
        "in place": [getattr(module, "inplace", None) for module in network.modules()],
        "hooks": [
            len(hooks)
            for module in network.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
        "forwards": [vars(module).get("forward") for module in network.modules()],
        "random": [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy())],  # noqa: NPY002
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
    }


def assert_left_alone(network, before):
    for what, values in states(network).items():
        for one, other in zip(values, before[what], strict=True):
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, f"{what} changed"


# Maps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_method_gives_each_input_its_map_and_leaves_all_else_alone(name):
    method, x = METHODS[name], images(18)
    classes = [number % 3 for number in range(18)]
    kept = x.clone()

    def inferred(network):
        with torch.inference_mode():
            return method.explain(network, x.clone(), classes, setting(18))

    network, found = fitting(method, inferred)
    before = states(network)
    again = method.explain(network, x, classes, setting(18))
    assert found.shape == (18, 8, 8)
    assert found.dtype == x.dtype
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    assert torch.equal(found, again)  # the same seed, the same bits
    assert torch.equal(x, kept)
    assert_left_alone(network, before)
    for first, count in ((16, 2), (5, 1)):  # whatever the other inputs are
        own = slice(first, first + count)
        alone = method.explain(network, x[own], classes[own], setting(count, first))
        torch.testing.assert_close(found[own], alone, rtol=1e-6, atol=1e-9)
    if method.total is not None:
        total = method.total(network, x, classes, setting(18))
        assert total.shape == (18,)
        assert bool(torch.isfinite(total).all())
    assert_left_alone(network, before)


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_map_depends_on_the_class_where_the_register_says_so(name):
    method, x = METHODS[name], images()
    network, found = fitting(method, lambda network: method.explain(network, x, CLASSES, setting(3)))
    others = [(label + 1) % 3 for label in CLASSES]
    assert torch.equal(method.explain(network, x, others, setting(3)), found) != method.class_specific


class Opaque(nn.Module):
    """A network that only answers: no gradient reaches its input, and its parts are not to be seen."""

    def __init__(self, inner):
        super().__init__()
        self.answer = [inner]

    def forward(self, x):
        with torch.no_grad():
            return self.answer[0](x.detach())


@pytest.mark.parametrize("closed", [Opaque, Detached])
@pytest.mark.parametrize("name", EXPLAINING)
def test_a_method_needs_more_than_answers_where_the_register_says_so(name, closed):
    method, x = METHODS[name], images()
    given = replace(setting(3), scanned=None)  # a scan looks into the network
    try:
        found = method.explain(closed(in_place()), x, CLASSES, given)
    except NnscanError:
        assert method.transparent
        assert method.needs
    else:
        assert not method.transparent or closed is Detached  # whose convolutions Score-CAM sees
        torch.testing.assert_close(found, method.explain(in_place(), x, CLASSES, given))


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_method_computes_in_the_type_of_its_inputs(name):
    method, x = METHODS[name], images().float()
    network, _ = fitting(method, lambda network: method.explain(network, images(), CLASSES, setting(3)))
    found = method.explain(network.float(), x, CLASSES, setting(3))
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_method_refuses_wrong_shapes_and_classes(name):
    method, x = METHODS[name], images()
    network, _ = fitting(method, lambda network: method.explain(network, x, CLASSES, setting(3)))
    before = states(network)
    for wrong, classes, sentence in (
        (x, [0, 1], "2 classes were given for 3 inputs"),
        (x, [0, 1, 3], "class scores 0 to 3"),
        (x[0], CLASSES, r"expected a floating-point tensor \(N, C, H, W\)"),
        (x.long(), CLASSES, r"expected a floating-point tensor \(N, C, H, W\)"),
    ):
        with pytest.raises((ScanError, ModelError), match=sentence):
            method.explain(network, wrong, classes, setting(3))
    assert_left_alone(network, before)


@pytest.mark.parametrize("name", EXPLAINING)
def test_a_network_that_fails_in_the_middle_is_left_alone(name):
    method, x = METHODS[name], images()
    network, found = fitting(method, lambda network: method.explain(network, x, CLASSES, setting(3)))
    with network.fuse.after(None):
        found = method.explain(network, x, CLASSES, setting(3))
        passes = network.fuse.passes
    before = states(network)
    for limit in {passes - 1, passes // 2} - {-1, passes}:
        with network.fuse.after(limit), pytest.raises(ExplodedError):
            method.explain(network, x, CLASSES, setting(3))
        assert_left_alone(network, before)
    assert torch.equal(method.explain(network, x, CLASSES, setting(3)), found)


def connected():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)
    ).double()


def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("make", [plain, pooled, Residual, Dense, weighed, connected, smooth])
@pytest.mark.parametrize("name", EXPLAINING)
def test_a_method_fits_a_network_or_refuses_it_by_what_it_needs(name, make):
    method, network = METHODS[name], make()
    given = Setting(seed=1, infiller=Filler(), box=BOX)
    before = states(network)
    found, reason = None, ""
    try:
        found = method.explain(network, images(), CLASSES, given)
    except NnscanError as error:
        reason = str(error)
    if found is None:
        assert method.needs, f"it refuses ({reason}), but its metadata say that it needs nothing"
        assert len(reason) > 30
    else:
        assert found.shape == (3, 8, 8)
        assert bool(torch.isfinite(found).all())
    assert_left_alone(network, before)


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("cam", plain, "only global average pooling and one linear layer"),
        ("grad_cam", connected, "need a convolution"),
        ("guided_backpropagation", smooth, "ReLU as their only activation"),
        ("rectified_gradient", smooth, "ReLU as (their|its) only activation"),
        ("lrp_epsilon", smooth, "[Gg]elu"),
        ("channel_attention", pooled, "option attention: se"),
        ("class_attention", pooled, "option attention: class"),
        ("generative_infilling", pooled, "no infiller"),
        ("dgn_am", pooled, "has none"),
        ("nns", pooled, "a scan of these very inputs"),
        ("fq", pooled, "a scan of these very inputs"),
    ],
)
def test_what_does_not_fit_is_named(name, make, sentence):
    method, bare = METHODS[name], Setting(box=BOX)
    run, given = (method.explain, images()) if method.explain is not None else (method.synthesise, SHAPE)
    with pytest.raises(NnscanError, match=sentence):
        run(make(), given, CLASSES, bare)


# Images of classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKING)
def test_a_method_makes_an_image_of_each_class_and_leaves_all_else_alone(name):
    method, given = METHODS[name], setting(3)
    classes = [number % 3 for number in range(18)]
    network, found = fitting(method, lambda network: method.synthesise(network, SHAPE, classes, given))
    before = states(network)
    assert found.shape == (18, *SHAPE)
    assert found.dtype == torch.float64
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    assert float(found.min()) >= -4
    assert float(found.max()) <= 4
    assert torch.equal(found, method.synthesise(network, SHAPE, classes, given))
    torch.testing.assert_close(found[16:], method.synthesise(network, SHAPE, classes[16:], given), rtol=1e-6, atol=1e-9)
    assert_left_alone(network, before)
    with pytest.raises(ModelError, match="class scores 3 to 3"):
        method.synthesise(network, SHAPE, [3], given)
    for limit in (1, 4):
        with network.fuse.after(limit), pytest.raises(ExplodedError):
            method.synthesise(network, SHAPE, CLASSES, given)
        assert_left_alone(network, before)


# The register -------------------------------------------------------------------------------------------------------


def test_a_method_explains_inputs_or_makes_images_and_says_so():
    assert not set(EXPLAINING) & set(MAKING)
    assert set(EXPLAINING) | set(MAKING) == set(METHODS)
    assert sum(len(module.METHODS) for module in explainers._MODULES) == len(METHODS)  # no name twice
    for name, method in METHODS.items():
        assert method.name == name == name.lower().replace(" ", "_")
        assert method.title
        assert (method.detail is None) == (method.synthesise is not None) == (method.scope == "global")
        assert method.paper
        assert 2000 < method.year < 2027
        assert method.total is None or method.explain is not None


def test_methods_are_chosen_by_name_in_the_register_s_order():
    assert [method.name for method in chosen(None)] == list(METHODS)
    assert [method.name for method in chosen(["random", "rise"])] == ["rise", "random"]
    with pytest.raises(ConfigurationError, match=r"there is no method 'grad-cam'; did you mean 'grad_cam'\?"):
        chosen(["rise", "grad-cam"])
    with pytest.raises(
        ConfigurationError, match=r"explainers.methods: there is no method 'rize'; did you mean 'rise'\?"
    ):
        explainers.check_names({"explainers.methods": ["rize"]})


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_explainers_of_the_theses_leave_the_model_alone(name):
    network, x = Fused(in_place()).train(), images(20)
    before, kept, classes = states(network), x.clone(), [number % 3 for number in range(20)]
    found = EXPLAINERS[name](network, x, classes)
    assert found.shape == (20, 8, 8)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[17:], EXPLAINERS[name](network, x[17:], classes[17:]))
    assert torch.equal(x, kept)
    assert_left_alone(network, before)


def test_smooth_networks_have_maps_but_those_of_rules_for_relu():
    refused = {"deconvolution", "guided backpropagation"}
    for name, explain in EXPLAINERS.items():
        if name in refused:
            with pytest.raises(ModelError, match="ReLU as their only activation"):
                explain(smooth(), images(), CLASSES)
        else:
            assert explain(smooth(), images(), CLASSES).shape == (3, 8, 8)
