"""nnscan.perturbations: every method on every network, batches, seeds, what is refused."""

import pytest
import torch
from torch import nn

from networks import CLASSES, Dense, Residual, images, plain, pooled, weighed
from nnscan import perturbations
from nnscan.errors import ModelError
from nnscan.explanations import Setting
from nnscan.perturbations import METHODS, generative_infilling

pytestmark = pytest.mark.usefixtures("one_thread")


class Shift(nn.Module):
    """An infiller with a parameter, that changes its inputs."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.2))

    def forward(self, x, kept):
        return x.mul_(kept).add_(self.value * (1 - kept))


SETTING = Setting(infiller=Shift())


@pytest.fixture
def _few(monkeypatch):
    for name, value in (("RISE_MASKS", 20), ("MEANINGFUL_STEPS", 6), ("EXTREMAL_STEPS", 6), ("INFILLING_STEPS", 6)):
        monkeypatch.setattr(perturbations, name, value)


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("build", [plain, pooled, Residual, Dense, weighed], ids=lambda build: build.__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_batch_equals_single_and_nothing_is_changed(method, build):
    model, x = build().train(), images(18)
    model.eval() if build in (Residual, Dense) else model.train()
    classes = [number % 3 for number in range(18)]
    kept, modes = x.clone(), [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = method.explain(model, x.clone(), classes, SETTING)
    assert found.shape == (18, 8, 8)
    assert found.dtype == x.dtype
    assert not found.requires_grad
    assert bool(torch.isfinite(found).all())
    assert len({tuple(one.flatten().tolist()) for one in found}) > 1
    torch.testing.assert_close(found[16:], method.explain(model, x[16:], classes[16:], SETTING))
    torch.testing.assert_close(found[[5]], method.explain(model, x[5:6], classes[5:6], SETTING))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert SETTING.infiller.value.dtype == torch.float32
    assert SETTING.infiller.value.grad is None


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("name", ["rise", "meaningful_perturbation", "generative_infilling"])
def test_seeds_are_what_is_drawn(name):
    (method,) = [method for method in METHODS if method.name == name]
    x = images(1, size=64)  # so large that the image is jittered

    def maps(seed):
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(128, 3)).double()
        nn.init.normal_(model[2].weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(model[2].bias)
        return method.explain(model, x, [1], Setting(seed=seed, infiller=Shift()))

    assert torch.equal(maps(0), maps(0))
    assert not torch.equal(maps(0), maps(1))


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("size", [(7, 10), (28, 28), (33, 20)])
def test_images_of_any_size(method, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert method.explain(model, torch.rand(2, 1, *size), [0, 2], SETTING).shape == (2, *size)


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_network_sees_no_more_inputs_at_once_than_a_batch(method):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain()

        def forward(self, x):
            seen.append(len(x))
            return self.inner(x)

    method.explain(Watched(), images(40), [0] * 40, SETTING)
    assert max(seen) == perturbations.BATCH


def test_a_class_that_cannot_disappear_has_no_meaningful_map():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)  # is its own blur
    found = perturbations.meaningful_perturbation(model, x, [0], Setting())
    assert float(found.abs().max()) == 0


def test_infilling_says_what_it_lacks():
    x = images()
    with pytest.raises(ModelError, match="the setting has no infiller"):
        generative_infilling(plain(), x, CLASSES, Setting())

    class Small(nn.Module):
        def forward(self, x, kept):
            return x[:, :1]

    with pytest.raises(ModelError, match=r"returned \(12, 1, 8, 8\) for images \(12, 2, 8, 8\)"):
        generative_infilling(plain(), x, CLASSES, Setting(infiller=Small()))
    single = nn.Sequential(nn.Flatten(), nn.Linear(128, 1)).double()
    with pytest.raises(ModelError, match="this network has only one"):
        generative_infilling(single, x, [0] * 3, SETTING)
