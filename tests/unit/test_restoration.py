"""Whatever runs a model leaves it, its inputs and torch's settings as they were, also when the model fails midway."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from nnscan.averages import average_kinds, confidence_averages, confidences
from nnscan.backprop import guided_backpropagation, guided_batches, guided_scores
from nnscan.components import filter_image_components, mean_activation
from nnscan.interventions import LayerMasking, masked, masked_result, pruned, sample_gradients
from nnscan.linearisation import Linearisation
from nnscan.models import evaluation, network_layers, neuron_layers, prepare, smooth_operations
from nnscan.properties import sensitivity
from nnscan.scanner import filter_images, learning_images, scan, scan_samples
from nnscan.similarities import similarity
from nnscan.sweeps import WholeMapSweep
from nnscan.training import evaluate
from twins import noise


class Countdown:
    """Counts the passes of a model and of its copies, and fails when none is left."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.passes = 0

    def step(self) -> None:
        self.passes += 1
        if self.left is not None and self.passes > self.left:
            raise RuntimeError("the model failed")

    def __deepcopy__(self, memo):
        return self


class Watched(nn.Module):
    """A network with everything that is easily left changed; it fails in the middle of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.in_place = False
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)
        self.countdown = Countdown()

    def forward(self, x):
        if self.in_place:
            x -= 0.1
        x = self.bn1(self.conv1(F.relu(self.bn(self.stem(x)), inplace=True)))
        self.countdown.step()
        return self.head(self.dropout(self.relu(x).mean((2, 3))))


def masked_pass(model, x, y):
    with masked(model, x, {"bn": [1], "bn1": [0, 2]}), evaluation(model):
        model(x.clone())


def pruned_pass(model, x, y):
    with pruned(model, x, {"bn": [1], "bn1": [0, 2]}), evaluation(model):
        model(x.clone())


def whole_map_sweep(model, x, y):
    sweep = WholeMapSweep(prepare(model), x[:1].detach(), ["bn1"], 1, 16)
    sweep.push(sweep.batches, lambda *_: None, lambda *_: None)


CALLS = {
    "learning_images": lambda model, x, y: learning_images(model, x[0], "bn1", [0, 1]),
    "filter_images": lambda model, x, y: filter_images(model, x, "bn1"),
    "scan": lambda model, x, y: scan(model, x),
    "scan of a layer": lambda model, x, y: scan(model, x, layers=[model.conv1], block=2, precision="float32"),
    "first sample of a scan": lambda model, x, y: next(scan_samples(model, x)),
    "Linearisation": lambda model, x, y: Linearisation(prepare(model), x, ["bn", "bn1"]),
    "WholeMapSweep": whole_map_sweep,
    "guided_backpropagation": lambda model, x, y: guided_backpropagation(model, x, "bn1"),
    "guided_scores": lambda model, x, y: guided_scores(model, x, [0, 1, 2]),
    "first of guided_batches": lambda model, x, y: next(guided_batches(model, x, {"bn": True, "bn1": True})),
    "similarity": lambda model, x, y: similarity(model, x),
    "similarity by method 2": lambda model, x, y: similarity(model, x.detach(), ["bn1"], 2),
    "sensitivity": lambda model, x, y: sensitivity(model, x, y, "bn1"),
    "exact sensitivity": lambda model, x, y: sensitivity(model, x, y, "bn", exact=True),
    "filter_image_components": lambda model, x, y: filter_image_components(model, x, "bn1"),
    "components of feature maps": lambda model, x, y: filter_image_components(model, x, "bn1", source="feature_maps"),
    "mean_activation": lambda model, x, y: mean_activation(model, x, "bn1"),
    "masked": masked_pass,
    "pruned": pruned_pass,
    "masked_result": lambda model, x, y: masked_result(model, x, y, {"bn1": [0]}),
    "LayerMasking": lambda model, x, y: LayerMasking(model, x, y, "bn1").each(),
    "LayerMasking by pruning": lambda model, x, y: LayerMasking(model, x, y, "bn", pruned).results([[0], [1, 2]]),
    "sample_gradients": lambda model, x, y: sample_gradients(model, x, y),
    "confidences": lambda model, x, y: confidences(model, x),
    "confidence_averages": lambda model, x, y: confidence_averages(model, x, np.arange(3), 3, 1),
    "average_kinds": lambda model, x, y: average_kinds(model, x, np.arange(3), 3, steps=3),
    "evaluate": lambda model, x, y: evaluate(model, x, y),
    "neuron_layers": lambda model, x, y: neuron_layers(model, x),
    "network_layers": lambda model, x, y: network_layers(model, x),
    "smooth_operations": lambda model, x, y: smooth_operations(model, x),
}

HOOKS = [
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_state_dict_hooks"),
]


@pytest.fixture
def watched() -> tuple[Watched, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = Watched().double().train()
    model.bn.running_mean.copy_(0.2 * noise(4))
    model.bn1.running_var.copy_(noise(6).exp())
    model.bn1.eval()
    model.stem.weight.requires_grad_(False)
    model.bn1.register_forward_hook(lambda *_: None)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model, noise(3, 3, 6, 6).requires_grad_(True), torch.tensor([0, 1, 2])


def state(model: nn.Module, x: torch.Tensor) -> dict[str, object]:
    """Return everything that must stay as it is; floating-point numbers as bytes."""

    def content(tensor: torch.Tensor | None) -> object:
        return None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes())

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "values": {key: content(value) for key, value in model.state_dict().items()},
        "objects": [id(value) for value in (*model.parameters(), *model.buffers(), *model.modules())],
        "modes": [module.training for module in model.modules()],
        "hooks": [[len(getattr(module, kind)) for kind in HOOKS] for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "forwards": ["forward" in vars(module) for module in model.modules()],
        "in place": model.relu.inplace,
        "gradients": [(parameter.requires_grad, content(parameter.grad)) for parameter in model.parameters()],
        "input": (content(x), content(x.grad), x.requires_grad, x._version),
        "random numbers": (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state())),  # noqa: NPY002
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "overrides": (list(_get_current_function_mode_stack()), list(_get_current_dispatch_mode_stack())),
        "settings": (
            *(torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()),
            *(matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark),
        ),
        "global hooks": len(nn.modules.module._global_forward_hooks),
    }


@pytest.mark.parametrize("name", CALLS)
def test_everything_is_left_as_it_was(name, watched):
    model, x, y = watched
    before = state(model, x)
    CALLS[name](model, x, y)
    assert state(model, x) == before
    passes = model.countdown.passes
    assert passes > 0
    for left in sorted({0, 1, passes // 2, passes - 1} - {passes}):
        model.countdown.passes, model.countdown.left = 0, left
        if left == 0:
            with pytest.raises(RuntimeError, match="the model failed"):
                CALLS[name](model, x, y)
        else:  # a probe that fails may have another way out
            with suppress(RuntimeError):
                CALLS[name](model, x, y)
        assert model.countdown.passes > left
        assert state(model, x) == before


@pytest.mark.parametrize("name", CALLS)
def test_a_model_that_changes_its_input_in_place(name, watched):
    model, x, y = watched
    model.in_place, x = True, x.detach()
    before = x.clone()
    CALLS[name](model, x, y)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CALLS)
def test_inside_inference_mode(name, watched):
    model, x, y = watched
    with torch.inference_mode():
        CALLS[name](model, x.detach().clone(), y)
        assert torch.is_inference_mode_enabled()


def test_torchs_settings_between_the_samples_of_a_scan(watched):
    model, x, _ = watched
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        settings = [(matmul.allow_tf32, cudnn.allow_tf32) for _ in scan_samples(model, x, precision="float32")]
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
    assert settings
    assert set(settings) == {(True, True)}


@pytest.mark.parametrize("context", [masked, pruned])
def test_a_block_that_fails_inside(context, watched):
    model, x, _ = watched
    before = state(model, x)
    during = []

    def fail():
        with context(model, x, {"bn": [1], "bn1": [0, 0, 2], "conv1": [0, 1]}):
            during.append(state(model, x))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during[0] != before
    assert state(model, x) == before


@pytest.mark.parametrize("context", [masked, pruned])
def test_a_block_that_cannot_begin(context, watched):
    model, x, _ = watched
    before = state(model, x)
    with pytest.raises(Exception, match="has the filters 0 to 5"), context(model, x, {"bn": [1], "bn1": [6]}):
        pass
    assert state(model, x) == before


def test_calls_without_gradients_give_the_same(watched):
    model, x, y = watched
    with torch.no_grad():
        found = [
            learning_images(model, x[0], "bn1"),
            filter_images(model, x, "bn1"),
            guided_scores(model, x, y.tolist()),
        ]
    expected = [
        learning_images(model, x[0], "bn1"),
        filter_images(model, x, "bn1"),
        guided_scores(model, x, y.tolist()),
    ]
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)
        assert not two.requires_grad
        assert two.abs().sum() > 0
