"""Sanity checks: what becomes random, in which order, and how alike the maps stay."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from networks import Residual, images, plain, pooled
from nnscan.cam import grad_cam
from nnscan.controls import METHODS
from nnscan.errors import ModelError
from nnscan.explanations import Method, Scanned, Setting, simply
from nnscan.gradients import backpropagation, score_gradients
from nnscan.metrics import COLUMNS, Inputs
from nnscan.models import build_model
from nnscan.resemblance import rank_correlation, structure_correlation
from nnscan.sanity import randomised, sanity_scores, similarities
from twins import noise

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND = torch.ones(2, 1, 1, dtype=torch.float64)


def method(name, explain):
    return Method(**{**vars(METHODS[0]), "name": name, "explain": explain})


def inputs_of(x, **given):
    return Inputs(x, [number % 3 for number in range(len(x))], np.arange(len(x)), -3 * BOUND, 3 * BOUND, 0 * BOUND,
                  **given)  # fmt: skip


@pytest.mark.parametrize("build", [plain, pooled, Residual])
def test_layers_become_random_from_the_last_to_the_first(build):
    model = build().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = list(randomised(model, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    layers = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert [name for name, _ in found] == layers[::-1]
    kept, changed = set(layers), set()
    for name, network in found:
        kept.remove(name)
        changed.add(name)
        for key, value in network.state_dict().items():
            layer, _, kind = key.rpartition(".")
            same = torch.equal(value, before[key])
            # a normalisation starts from ones and zeros, as it may have been before
            assert same if layer in kept else not same or kind in ("num_batches_tracked",) or layer == "norm"
        assert all(parameter.requires_grad for parameter in network.parameters())
    # a layer's draw depends on the seed and its name alone
    other = dict(randomised(model, 5, 2))
    assert list(other) == [layers[len(layers) - round(len(layers) / 2)], layers[0]]
    for key, value in other[layers[0]].state_dict().items():
        assert torch.equal(value, found[-1][1].state_dict()[key])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(next(iter(randomised(model, 6)))[1].state_dict(), found[0][1].state_dict())


def test_random_parameters_have_the_spread_of_a_fresh_layer():
    model = nn.Sequential(nn.Linear(400, 300))
    with torch.no_grad():
        model[0].weight.fill_(7)
    ((_, network),) = randomised(model, 0)
    bound = 1 / 400**0.5
    assert float(network[0].weight.detach().abs().max()) <= bound
    assert float(network[0].weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_what_cannot_become_random_is_refused_by_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x * self.scale

    model = nn.Sequential(*plain(), Own())
    with pytest.raises(ModelError, match=r"9 \(Own\) has parameters but no method reset_parameters"):
        list(randomised(model, 0))
    with pytest.raises(ModelError, match="no parameters"):
        list(randomised(nn.ReLU(), 0))
    frame = sanity_scores(model, inputs_of(images()), [METHODS[1]], plain())
    cascade = frame[frame["metric"].str.startswith("parameters")]
    assert cascade["value"].isna().all()
    assert cascade["reason"].str.contains("no method reset_parameters").all()
    labels = frame[frame["metric"].str.startswith("labels")]
    np.testing.assert_allclose(labels["value"], 1)  # edges do not know the network


def test_sign_counts_in_one_similarity_only():
    first = noise(3, 8, 8, seed=2)
    found = similarities(first, first.abs())
    np.testing.assert_allclose(found["rank"], np.abs(rank_correlation(first, first.abs())))
    assert found["rank"].max() < 0.5
    np.testing.assert_allclose(found["rank_size"], 1)
    np.testing.assert_allclose(found["ssim"], 1)


def test_an_inverted_map_depends_as_little_on_what_was_learned_as_the_same_one():
    first = noise(3, 8, 8, seed=2)
    for name, values in similarities(first, -first).items():
        np.testing.assert_allclose(values, 1, err_msg=name)
    inverted = similarities(first.abs(), -first.abs() + 9)
    np.testing.assert_allclose(inverted["rank"], 1)
    np.testing.assert_allclose(inverted["rank_size"], 1)


@pytest.mark.parametrize("attention", ["se", "cbam", "class"])
def test_networks_with_attention_can_forget_everything(attention):
    model = build_model("simple_cnn", {"attention": attention})
    *_, (_, network) = randomised(model, 0)
    for (name, before), after in zip(model.named_parameters(), network.parameters(), strict=True):
        assert not torch.equal(before, after), name


def test_scores():
    model, x = pooled(), images(20)
    scanned = Scanned("0", np.arange(20), np.zeros((20, 1, 1, 1)), np.zeros((20, 1, 8, 8)), 1)
    given = inputs_of(x, setting=Setting(seed=4, scanned=scanned))

    def signed(model, x, classes):
        return score_gradients(model, x, classes).sum(1)

    def needs_scan(model, x, classes, setting):
        if setting.scanned is None:
            raise ModelError("a scan is needed")
        raise AssertionError("a scan of the inputs says nothing of another network")

    methods = [method("gradient", simply(signed)), method("grad_cam", simply(grad_cam)), method("fq", needs_scan)]
    frame = sanity_scores(model, given, [*methods, *METHODS], pooled().apply(_shaken), 2)
    assert tuple(frame.columns) == COLUMNS
    assert frame[frame["metric"] == "parameters_rank"]["case"].unique().tolist() == ["2", "all", ""]
    value = frame.set_index(["method", "metric", "case"]).sort_index()["value"]
    networks = dict(zip(["2", "all"], [network for _, network in randomised(model, 4, 2)], strict=True))
    maps = signed(model, x, given.classes)
    for case, network in networks.items():
        after = signed(network, x, given.classes)
        np.testing.assert_allclose(value["gradient", "parameters_rank", case], np.abs(rank_correlation(maps, after)))
        sizes = np.abs(rank_correlation(maps.abs(), after.abs()))
        np.testing.assert_allclose(value["gradient", "parameters_rank_size", case], sizes)
        np.testing.assert_allclose(value["gradient", "parameters_ssim", case], structure_correlation(maps, after))
    after = signed(pooled().apply(_shaken), x, given.classes)
    np.testing.assert_allclose(value["gradient", "labels_rank", ""], np.abs(rank_correlation(maps, after)))
    for control in METHODS:
        np.testing.assert_allclose(value[control.name, "parameters_ssim", "all"], 1)
    refused = frame[frame["method"] == "fq"]
    assert refused["value"].isna().all()
    assert set(refused["reason"]) == {"a scan is needed"}


def _shaken(module):
    if isinstance(module, nn.Conv2d):
        with torch.no_grad():
            module.weight.mul_(noise(*module.weight.shape, seed=9))


def test_a_map_that_does_not_know_the_class_says_so_by_a_constant():
    """A network whose last layer is random may give Grad-CAM nothing to show: no value, and why."""
    model, x = pooled(), images(4)
    blank = method("blank", lambda model, x, classes, setting: torch.zeros(len(x), 8, 8))
    frame = sanity_scores(model, inputs_of(x), [blank], None, 1)
    assert frame["value"].isna().all()
    assert set(frame["reason"]) == {"a map is constant"}
    assert set(frame["metric"]) == {"parameters_rank", "parameters_rank_size", "parameters_ssim"}
    one = sanity_scores(model, inputs_of(x[:1]), [method("gradient", simply(backpropagation))], None, 1)
    many = sanity_scores(model, inputs_of(x), [method("gradient", simply(backpropagation))], None, 1)
    np.testing.assert_allclose(one["value"], many[many["sample"] == 0]["value"])
