"""Controls: maps that explain nothing."""

import numpy as np
import pytest
import torch

from networks import images, plain
from nnscan.controls import METHODS
from nnscan.errors import ModelError, ScanError
from nnscan.explanations import Setting

pytestmark = pytest.mark.usefixtures("one_thread")

BY_NAME = {method.name: method.explain for method in METHODS}


@pytest.mark.parametrize("name", BY_NAME)
def test_every_control_is_called_like_a_method(name):
    model, x = plain(), images(20)
    classes = [number % 3 for number in range(20)]
    state = torch.get_rng_state()
    found = BY_NAME[name](model, x, classes, Setting(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (20, 8, 8)
    assert found.dtype == x.dtype
    assert torch.equal(found[17:], BY_NAME[name](model, x[17:], classes[17:], Setting(seed=3)))
    with pytest.raises(ScanError, match="2 classes were given for 20"):
        BY_NAME[name](model, x, [0, 1], Setting())
    with pytest.raises(ModelError, match="class scores 3 to 3"):
        BY_NAME[name](model, x, [3] * 20, Setting())


def test_random_maps_are_even_and_each_input_has_its_own():
    x = images(60)
    maps = BY_NAME["random"](plain(), x, [0] * 60, Setting())
    assert 0 <= float(maps.min()) <= 0.01
    assert 0.99 <= float(maps.max()) < 1
    assert float(maps.mean()) == pytest.approx(0.5, abs=0.02)
    between = np.corrcoef(maps.flatten(1).numpy())[np.triu_indices(60, 1)]
    assert np.abs(between).max() < 0.6  # of 64 pixels, by chance
    assert not torch.equal(maps, BY_NAME["random"](plain(), x, [0] * 60, Setting(seed=1)))


def test_edges_and_input_by_hand():
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    x[0, :, :, 3:] = torch.tensor([2.0, -8.0])[:, None, None]  # an edge of the mean from 0 to -3
    found = BY_NAME["edges"](plain_five(), x, [0], Setting())
    assert found[0, 2].tolist() == [0, 0, 12, 12, 0]  # Sobel: 1 + 2 + 1 times the step
    assert BY_NAME["input"](plain_five(), x, [0], Setting())[0, 0].tolist() == [0, 0, 0, 6, 6]
    assert torch.equal(BY_NAME["edges"](plain_five(), x.mT, [0], Setting())[0], found[0].T)


def plain_five():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(50, 3)).double()
