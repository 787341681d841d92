"""One matrix of tests for all explainers."""

import pytest
import torch
from torch import nn

from networks import CLASSES, images, pooled
from nnscan.errors import ModelError, ScanError
from nnscan.explainers import EXPLAINERS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_explainer_gives_a_map_for_each_input_and_leaves_the_model_alone(name):
    model = nn.Sequential(*pooled()[:3], nn.ReLU(inplace=True), *pooled()[4:]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(20)
    kept = x.clone()
    classes = [number % 3 for number in range(20)]
    with torch.inference_mode():
        found = EXPLAINERS[name](model, x.clone(), classes)
    assert found.shape == (20, 8, 8)
    assert found.dtype == x.dtype
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    torch.testing.assert_close(found[17:], EXPLAINERS[name](model, x[17:], classes[17:]))
    torch.testing.assert_close(x, kept)
    assert model.training
    assert model[3].inplace
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    for wrong, sentence in ((([0, 1], x), "2 classes were given for 20"), (([3] * 20, x), "class scores 3 to 3")):
        with pytest.raises((ScanError, ModelError), match=sentence):
            EXPLAINERS[name](model, wrong[1], wrong[0])
    with pytest.raises(ScanError, match=r"expected a floating-point tensor \(N, C, H, W\)"):
        EXPLAINERS[name](model, x[0], [0] * 2)


def test_smooth_networks_have_maps_but_those_of_rules_for_relu():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    refused = {"deconvolution", "guided backpropagation"}
    for name, explain in EXPLAINERS.items():
        if name in refused:
            with pytest.raises(ModelError, match="ReLU as their only activation"):
                explain(model, images(), CLASSES)
        else:
            assert explain(model, images(), CLASSES).shape == (3, 8, 8)
