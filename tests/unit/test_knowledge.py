"""What neurons know: tables of small networks, files, and what happens where there is nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nnscan import knowledge
from nnscan.knowledge import (
    layer_knowledge,
    map_agreement,
    sample_distances,
    scan_knowledge,
    score_images,
    winning_neurons,
)
from nnscan.models import build_model
from nnscan.moments import write_moments
from nnscan.scanner import scan

LAYERS = ("0", "3")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )
    return model.eval()


@pytest.fixture(scope="module")
def x():
    return torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.2


@pytest.fixture
def moments(model, x):
    return scan(model, x, layers=LAYERS)


def by_layer(moments):
    return [(layer, moments.select(layer)) for layer in moments.layers]


# Scans ----------------------------------------------------------------------------------------------------------------


def test_a_scan_on_disk_gives_the_same(tmp_path, model, x, moments):
    for shard, samples in enumerate((slice(0, 2), slice(2, 6))):
        part = scan(model, x[samples], layers=LAYERS)
        part.samples[:] = np.arange(6)[samples]
        write_moments(tmp_path / f"{shard}.h5", [part], len(part.samples), {})
    asked = []

    def inputs(samples):
        asked.append(samples.tolist())
        return x.numpy()[samples]

    found, agreement = scan_knowledge([tmp_path / "0.h5", tmp_path / "1.h5"], inputs)
    assert asked == [list(range(6))] * 2
    pd.testing.assert_frame_equal(found, layer_knowledge(by_layer(moments), x.numpy()))
    pd.testing.assert_frame_equal(agreement, map_agreement(by_layer(moments)))


def test_a_layer_without_active_neurons(model, x):
    quiet = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).eval()
    with torch.no_grad():
        quiet[0].weight.zero_()
        quiet[0].bias.fill_(-1)
    moments = scan(quiet, x, layers=["0"])
    found = layer_knowledge(by_layer(moments), x.numpy()).iloc[0]
    assert (found["active"], found["neurons"]) == (0, 108)
    assert found[["intensity", "intensity_share", "count"]].isna().all()
    agreement = map_agreement(by_layer(moments))
    assert (agreement["filters"] == 0).all()
    assert agreement[["agreement", "iou", "iou_any"]].isna().all().all()


def test_neurons_that_are_active_by_their_bias_alone_know_nothing(x):
    # active everywhere, but no pixel reaches a neuron: it counts, with an empty image
    biased = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).eval()
    with torch.no_grad():
        biased[0].weight.zero_()
        biased[0].bias.fill_(1)
    found = layer_knowledge(by_layer(scan(biased, x, layers=["0"])), x.numpy()).iloc[0]
    assert found[["active", "intensity", "count"]].tolist() == [1, 0, 0]
    assert sample_distances(biased, x).empty  # nor do the class scores, which see nothing else


def test_a_blank_input_has_no_share(model):
    found = layer_knowledge(by_layer(scan(model, torch.zeros(2, 2, 8, 8), layers=LAYERS)), np.zeros((2, 2, 8, 8)))
    assert (found["intensity_share"] == 0).all()
    assert (found["input_count"] == 0).all()


def test_a_network_without_places_has_no_agreement(x):
    fcn = build_model("fcn", {"in_channels": 2, "size": 8, "classes": 3, "widths": (6, 5)}).eval()
    moments = scan(fcn, x)
    agreement = map_agreement(by_layer(moments))
    assert agreement.empty
    assert list(agreement) == list(map_agreement(by_layer(moments)))
    assert layer_knowledge(by_layer(moments), x.numpy())["neurons"].tolist() == [6, 5, 3]


# Distances ------------------------------------------------------------------------------------------------------------


def test_neurons_are_drawn_from_those_that_are_active_twice(model, x):
    found = sample_distances(model, x, neurons=9, seed=4)
    assert found["layer"].drop_duplicates().tolist() == ["0", "3", "6"]
    assert found["convolutional"].groupby(found["layer"]).first().tolist() == [True, True, False]
    assert found.groupby("layer").size().le(9).all()
    assert (found["samples"] > 1).all()
    for layer, own in found.groupby("layer"):
        with torch.no_grad():
            active = (model[: int(layer) + 1](x).flatten(1) > 0).sum(0)
        assert (active[own["neuron"].tolist()] > 1).all()
        assert own["neuron"].is_monotonic_increasing
        assert own["neuron"].is_unique
    pd.testing.assert_frame_equal(found, sample_distances(model, x, neurons=9, seed=4))
    other = sample_distances(model, x, neurons=9, seed=5)
    assert found["neuron"].tolist() != other["neuron"].tolist()
    everyone = sample_distances(model, x, neurons=10_000)
    both = found.merge(everyone, on=["layer", "neuron"], suffixes=("", "_all"))
    assert len(both) == len(found)
    np.testing.assert_array_equal(both["own"], both["own_all"])


def test_scaled_distances_do_not_depend_on_sizes(model, x):
    torch.manual_seed(1)
    free = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2, bias=False)).eval()
    one, ten = sample_distances(free, x), sample_distances(free, 10 * x)
    np.testing.assert_array_equal(one["neuron"], ten["neuron"])
    for name in ("own", "other"):
        np.testing.assert_allclose(ten[name], 10 * one[name], rtol=1e-4)
        np.testing.assert_allclose(ten[f"{name}_scaled"], one[f"{name}_scaled"], rtol=1e-4)
        assert one[f"{name}_scaled"].between(0, 2).all()


# Winners --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [1, 3 * 128, 3 * 128 * 4, 10**9])
def test_winners_do_not_depend_on_how_many_go_together(model, x, values, monkeypatch):
    expected = winning_neurons(model, x)
    sizes = []

    def counted(network, part):
        sizes.append(len(part))
        return score_images(network, part)

    monkeypatch.setattr(knowledge, "score_images", counted)
    monkeypatch.setattr(knowledge, "VALUES", values)
    found = winning_neurons(model, x)
    assert sizes == {1: [1] * 6, 3 * 128: [1] * 6, 3 * 128 * 4: [4, 2], 10**9: [6]}[values]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    assert found.groupby("sample")["winner"].sum().eq(1).all()


@pytest.mark.parametrize("measure", [sample_distances, winning_neurons, score_images])
def test_the_model_and_its_input_stay_as_they_were(model, x, measure):
    before, weights = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        measure(model, x)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(x, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Sneaky(nn.Module):
    """Changes its input in place, and returns its scores in a dictionary."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(128, 3)

    def forward(self, x):
        return {"scores": self.linear(torch.relu_(x).flatten(1))}


def test_scores_in_a_dictionary_of_a_network_that_changes_its_input(x):
    before = x.clone()
    torch.manual_seed(0)
    sneaky = Sneaky().eval()
    scores, images = score_images(sneaky, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(images.flatten(2).sum(2), scores - sneaky.linear.bias.detach())
    assert winning_neurons(sneaky, x)["output"].tolist() == [0, 1, 2] * 6
