"""nnscan.interventions: a masked filter is a filter that does not exist, and the tables name what was done."""

import copy
import os

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nnscan import interventions, suffixes
from nnscan.data import Split, build_dataset
from nnscan.errors import LayerError, ModelError
from nnscan.interventions import (
    RANKINGS,
    ablation_masking,
    aipc,
    anomaly_masking,
    curve_area,
    diversity_masking,
    experiment_layer,
    layer_removal,
    masked,
    masked_result,
    neuron_pruning,
    outlier_gradients,
    property_masking,
    pruned,
    sample_gradients,
    single_masking,
    type_masking,
)
from nnscan.models import build_model, capture, network_layers, parameter_count
from nnscan.training import Protocol, evaluate, model_builder, train


@pytest.fixture(autouse=True)
def _quick(monkeypatch, one_thread):
    """Do not wait for the disk, nor for other threads."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def plain(inplace=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(inplace), nn.Flatten(),
        nn.Linear(5 * 4, 6), nn.ReLU(inplace), nn.Linear(6, 3),
    )  # fmt: skip
    return model.double().eval()


def normalised():
    """Convolutions with batch normalisation, whose shifts are not zero."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for module in (model[1], model[5]):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.2, 1)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(0.5, 1)
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(30, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def y():
    return torch.arange(30) % 3


def without(model, convolution, following, normalisation, gone):
    """Build the smaller network by hand: the filters and what the next layer does with them are taken out."""
    smaller = copy.deepcopy(model)
    old, new = model[convolution], smaller[convolution]
    left = [index for index in range(old.out_channels) if index not in gone]
    smaller[convolution] = nn.Conv2d(old.in_channels, len(left), old.kernel_size, bias=old.bias is not None).double()
    new = smaller[convolution]
    new.weight.data = old.weight.data[left]
    if old.bias is not None:
        new.bias.data = old.bias.data[left]
    if normalisation is not None:
        smaller[normalisation] = nn.BatchNorm2d(len(left)).double().eval()
        for name, value in model[normalisation].state_dict().items():
            if value.ndim:
                smaller[normalisation].state_dict()[name].copy_(value[left])
    target = model[following]
    if isinstance(target, nn.Conv2d):
        smaller[following] = nn.Conv2d(len(left), target.out_channels, target.kernel_size).double()
        smaller[following].weight.data = target.weight.data[:, left]
    else:
        positions = target.in_features // old.out_channels
        kept = [index * positions + place for index in left for place in range(positions)]
        smaller[following] = nn.Linear(len(kept), target.out_features).double()
        smaller[following].weight.data = target.weight.data[:, kept]
    smaller[following].bias.data = target.bias.data
    return smaller


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [getattr(module, "inplace", None) for module in model.modules()],
    )


def unchanged(model, before):
    now = snapshot(model)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    same = all(torch.equal(before[0][name], now[0][name]) for name in before[0])
    return same and now[1:] == before[1:] and not any(hooks)


# Masking and pruning ------------------------------------------------------------------------------------------------

NETS = [
    pytest.param(plain, "0", 0, 3, None, id="plain, first"),
    pytest.param(plain, "3", 3, 6, None, id="plain, last"),
    pytest.param(normalised, "1", 0, 4, 1, id="normalised, first"),
    pytest.param(normalised, "0", 0, 4, 1, id="normalised, by its convolution"),
    pytest.param(normalised, "5", 4, 8, 5, id="normalised, last"),
]


@pytest.mark.parametrize("way", [masked, pruned])
@pytest.mark.parametrize(("network", "layer", "convolution", "following", "normalisation"), NETS)
@pytest.mark.parametrize("gone", [[2], [0, 3], [3, 1, 0]])
def test_a_filter_masked_or_pruned_is_a_filter_taken_out(
    x, way, network, layer, convolution, following, normalisation, gone
):
    model = network()
    intact = model(x)
    expected = without(model, convolution, following, normalisation, gone)(x)
    with way(model, x, {layer: gone}):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(intact, expected)
    assert torch.equal(model(x), intact)


@pytest.mark.parametrize("way", [masked, pruned])
def test_several_layers_at_once(x, way):
    model = plain(inplace=True)
    expected = without(without(model, 0, 3, None, [1, 2]), 3, 6, None, [0])(x)
    with way(model, x, {"0": [1, 2], "3": [0]}):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", [masked, pruned])
def test_neurons_of_a_linear_layer(x, way):
    model = plain()
    smaller = copy.deepcopy(model)
    smaller[8].weight.data[:, [1, 4]] = 0  # what the next layer reads of them
    with way(model, x, {"6": [1, 4]}):
        torch.testing.assert_close(model(x), smaller(x))


@pytest.mark.parametrize("way", [masked, pruned])
def test_the_shift_of_a_normalisation_does_not_survive(x, way):
    model = normalised()
    with way(model, x, {"1": [2]}), capture(model, ["1", "2"]) as outputs:
        model(x)
        assert not outputs["1"][:, 2].any()
        assert not outputs["2"][:, 2].any()
        assert outputs["2"][:, 0].any()
    without_weights = copy.deepcopy(model)
    without_weights[0].weight.data[2] = 0
    with capture(without_weights, ["2"]) as outputs:
        without_weights(x)
        assert outputs["2"][:, 2].min() > 0.1  # what zero weights alone would leave


def test_a_filter_inside_a_residual_block(x):
    model = build_model("resnet18", {"in_channels": 2, "size": 8}).double().eval()
    with masked(model, x, {"features.3.bn2": [5]}), capture(model, ["features.2", "features.3.relu2"]) as outputs:
        model(x)
    entered, left = outputs["features.2"], outputs["features.3.relu2"]
    assert torch.equal(left[:, 5], entered[:, 5])  # the shortcut alone, rectified already
    assert not torch.equal(left[:, 6], entered[:, 6])


@pytest.mark.parametrize("way", [masked, pruned])
@pytest.mark.parametrize("network", [plain, normalised, lambda: plain(inplace=True)])
def test_the_model_is_restored(x, way, network):
    model = network().train()
    model[0].eval()
    before = snapshot(model)
    with way(model, x, {"0": [1], "3" if len(model) == 9 and isinstance(model[3], nn.Conv2d) else "4": [0, 2]}):
        pass
    assert unchanged(model, before)
    with pytest.raises(ZeroDivisionError), way(model, x, {"0": [1]}):
        raise ZeroDivisionError
    assert unchanged(model, before)
    with pytest.raises(LayerError), way(model, x, {"0": [1], "nowhere": [0]}):
        pytest.fail("the block must not run")
    assert unchanged(model, before)
    with pytest.raises(LayerError), way(model, x, {"0": [1], "4": [99]}):
        pytest.fail("the block must not run")
    assert unchanged(model, before)


@pytest.mark.parametrize("way", [masked, pruned])
def test_a_layer_under_two_names_and_a_filter_named_twice(x, way):
    model = normalised()
    before = snapshot(model)
    expected = without(model, 0, 4, 1, [1, 2])(x)
    with way(model, x, {"1": [1, 1], "0": [1, 2]}):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert unchanged(model, before)


@pytest.mark.parametrize("way", [masked, pruned])
def test_no_filters_change_nothing(x, way):
    model = plain()
    expected = model(x)
    for filters in ({}, {"0": []}):
        with way(model, x, filters):
            assert torch.equal(model(x), expected)


@pytest.mark.parametrize("way", [masked, pruned])
@pytest.mark.parametrize(("filters", "message"), [
    ({"0": [4]}, r"'1' has the filters 0 to 3; asked for \[4\]"),
    ({"0": [-1, 2]}, r"asked for \[-1\]"),
    ({"1": [5, 0, 7]}, r"'1' has the filters 0 to 3; asked for \[5, 7\]"),
    ({"11": [0]}, r"no layer '11'"),
    ({"2": [0]}, r"'2' is not a layer of neurons"),
])  # fmt: skip
def test_filters_and_layers_that_do_not_exist(x, way, filters, message):
    with pytest.raises(LayerError, match=message), way(normalised(), x, filters):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("activation", "value"), [(nn.Sigmoid(), "0.5"), (nn.Softplus(), "0.693"), (nn.Hardsigmoid(), "0.5")]
)
def test_an_activation_that_answers_nothing_with_something_is_refused(x, activation, value):
    model = plain()
    model[4] = activation
    name = type(activation).__name__
    with pytest.raises(ModelError, match=f"'3' cannot be masked: its activation {name} turns 0 into {value}"):
        masked_result(model, x, torch.zeros(30, dtype=torch.int64), {"3": [1]})
    with masked(model, x, {"0": [1]}):  # the other layer is followed by a ReLU
        model(x)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.LeakyReLU(0.1), nn.PReLU(5).double(), nn.Identity()])
def test_an_activation_of_zero_at_zero_can_be_masked(x, activation):
    model = plain()
    model[4] = activation
    expected = without(model, 3, 6, None, [1]) if not isinstance(activation, nn.PReLU) else None
    with masked(model, x, {"3": [1]}), capture(model, ["4"]) as outputs:
        scores = model(x)
        assert not outputs["4"][:, 1].any()
    if expected is not None:
        torch.testing.assert_close(scores, expected(x), rtol=1e-12, atol=1e-12)


def test_masked_result_is_the_evaluation_of_the_smaller_network(x, y):
    model = normalised()
    smaller = without(model, 0, 4, 1, [0, 3])
    assert masked_result(model, x, y, {"1": [0, 3]}) == pytest.approx(evaluate(smaller, x, y), rel=1e-12)


# Tables of masking --------------------------------------------------------------------------------------------------


def table(**layers):
    """A diversity table; layers by name, each a list of (clusters, noise)."""
    rows = [
        (layer, depth, number, 9, clusters, noise, 0.1)
        for depth, (layer, filters) in enumerate(layers.items())
        for number, (clusters, noise) in enumerate(filters)
    ]
    return pd.DataFrame(rows, columns=["layer", "depth", "filter", "neurons", "clusters", "noise", "eps"])


def recorder(monkeypatch, result=(2.0, 0.5), ways=None):
    """Take the place of masking; note which filters it was asked for, and which way."""
    asked, ways = [], [] if ways is None else ways

    def fake(model, x, y, filters):
        asked.append({layer: list(chosen) for layer, chosen in filters.items()})
        return result

    class FakeMasking:
        def __init__(self, model, x, y, layer, way=masked):
            self.layer, self.way = layer, way
            ways.append(way)

        def results(self, choices):
            found = [fake(None, None, None, {self.layer: chosen}) if chosen else (1.6, 0.75) for chosen in choices]
            return tuple(np.array(found).T)

    monkeypatch.setattr(interventions, "LayerMasking", FakeMasking)
    monkeypatch.setattr(interventions, "masked_result", fake)
    monkeypatch.setattr(interventions, "evaluate", lambda model, x, y: (1.6, 0.75))
    return asked


def test_the_most_and_the_least_diverse_filters(monkeypatch):
    asked = recorder(monkeypatch)
    diversity = table(
        early=[(1, 0), (3, 5), (2, 0), (3, 1), (0, 9), (1, 3), (2, 0), (1, 0)],
        late=[(1, 0)] * 11 + [(1, 1)],
        alike=[(1, 0)] * 12,
        tiny=[(2, 0), (4, 0)],
    ).sample(frac=1, random_state=0)
    found = diversity_masking(None, None, None, diversity, count=2, draws=3, seed=5)
    assert asked[0] == {"early": [3, 1]}  # most clusters; of equal ones that of less noise
    assert asked[1] == {"early": [5, 4]}
    assert asked[5] == {"late": [0, 1]}  # of equal ones by number
    assert asked[6] == {"late": [10, 11]}
    assert asked[10] == {"tiny": [1]}  # at least one
    assert asked[11] == {"tiny": [0]}
    assert len(asked) == 15
    for start, size, count in ((2, 2, 8), (7, 2, 12), (12, 1, 2)):
        for chosen in asked[start : start + 3]:
            ((_, filters),) = chosen.items()
            assert len(set(filters)) == size
            assert set(filters) <= set(range(count))
    assert len({tuple(chosen["late"]) for chosen in asked[7:10]}) > 1
    assert found["layer"].tolist() == ["early"] * 5 + ["late"] * 5 + ["tiny"] * 5
    assert found["depth"].tolist() == [0] * 5 + [1] * 5 + [3] * 5  # of equally diverse filters none are the most
    assert found["group"].tolist() == ["top", "bottom", "random", "random", "random"] * 3
    assert found["draw"].tolist() == [0, 0, 0, 1, 2] * 3
    assert found["filters"].tolist() == [2] * 10 + [1] * 5
    np.testing.assert_allclose(found["loss_change"], 25.0)  # 1.6 -> 2.0
    assert set(found["accuracy"]) == {0.5}
    again = list(asked)
    asked.clear()
    diversity_masking(None, None, None, diversity, count=2, draws=3, seed=5)
    assert asked == again
    asked.clear()
    diversity_masking(None, None, None, diversity, count=2, draws=3, seed=6)
    assert asked != again


@pytest.mark.parametrize(("filters", "count", "size"), [(16, 3, 3), (16, 20, 4), (7, 20, 1), (3, 1, 1), (100, 20, 20)])
def test_at_most_a_quarter_of_a_layer(monkeypatch, filters, count, size):
    asked = recorder(monkeypatch)
    diversity_masking(None, None, None, table(layer=[(1, 0)] * (filters - 1) + [(2, 0)]), count=count, draws=1)
    assert [len(chosen["layer"]) for chosen in asked] == [size] * 3


def test_diversity_masking_of_a_network(x, y):
    model = plain()
    before = snapshot(model)
    found = diversity_masking(model, x, y, table(**{"0": [(1, 0), (2, 0), (0, 3), (1, 1)], "3": [(1, 0)] * 5}), 1, 2)
    base, _ = evaluate(model, x, y)
    loss, accuracy = evaluate(without(model, 0, 3, None, [1]), x, y)
    top = found.iloc[0]
    assert (top["loss"], top["accuracy"]) == pytest.approx((loss, accuracy), rel=1e-9)
    assert top["loss_change"] == pytest.approx(100 * (loss - base) / base)
    assert unchanged(model, before)


def test_ends_of_each_ranking_without_an_element(monkeypatch):
    asked = recorder(monkeypatch)
    one = table(early=[(1, 0), (3, 5), (2, 0), (3, 1), (0, 9), (1, 3), (2, 0), (1, 0)], late=[(1, 0), (2, 0)])
    two = table(early=[(0, 9), (1, 0), (1, 3), (1, 0), (3, 5), (2, 0), (2, 0), (3, 1)], late=[(2, 0), (1, 0)])
    found = ablation_masking(None, None, None, pd.concat([one.assign(without="l"), two.assign(without="s")]), count=2)
    assert ablation_masking(None, None, None, table(a=[(0, 4)] * 8).assign(without="l")).empty
    assert asked == [
        {"early": [3, 1]}, {"early": [5, 4]}, {"early": [7, 4]}, {"early": [2, 0]},
        {"late": [1]}, {"late": [0]}, {"late": [0]}, {"late": [1]},
    ]  # fmt: skip
    assert found["without"].tolist() == ["l", "l", "s", "s"] * 2
    assert found["layer"].tolist() == ["early"] * 4 + ["late"] * 4
    assert found["depth"].tolist() == [0] * 4 + [1] * 4
    assert found["group"].tolist() == ["top", "bottom"] * 4
    assert found["filters"].tolist() == [2] * 4 + [1] * 4
    np.testing.assert_allclose(found["loss_change"], 25.0)  # 1.6 -> 2.0


def test_ablation_masking_of_a_network(x, y):
    model = plain()
    before = snapshot(model)
    ablation = table(**{"0": [(1, 0), (2, 0), (0, 3), (1, 1)], "3": [(1, 0)] * 5}).assign(without="vf")
    found = ablation_masking(model, x, y, ablation, 1)
    expected = diversity_masking(model, x, y, ablation, 1, 1).query("group != 'random'").reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns="without"), expected.drop(columns="draw"))
    assert unchanged(model, before)


def test_the_curve_starts_at_nothing_and_ends_at_constant_scores(x, y):
    model = plain()
    scores = {name: np.random.default_rng(number).random(5) for number, name in enumerate(RANKINGS)}
    found = aipc(model, x, y, "3", scores, steps=5, draws=3, seed=1)
    base = evaluate(model, x, y)[1]
    constant = model[6:](torch.zeros(1, 20, dtype=torch.float64)).argmax().item()
    end = float((y == constant).double().mean())
    assert list(found.columns) == ["layer", "ranking", "draw", "fraction", "accuracy", "change"]
    curves = found.groupby(["ranking", "draw"])
    assert sorted(curves.groups) == sorted(
        [*((name, 0) for name in RANKINGS), *(("random", draw) for draw in range(3))]
    )
    for _, curve in curves:
        np.testing.assert_allclose(curve["fraction"], [0, 0.2, 0.4, 0.6, 0.8, 1])
        assert curve["change"].iloc[0] == 0
        assert curve["accuracy"].iloc[0] == base
        assert curve["accuracy"].iloc[-1] == pytest.approx(end)
        np.testing.assert_allclose(curve["change"], 100 * (curve["accuracy"] - base), atol=1e-12)
    order = np.argsort(-scores["T_v"])
    for size in (1, 3):
        expected = evaluate(without(model, 3, 6, None, order[:size].tolist()), x, y)[1]
        curve = found[found["ranking"] == "T_v"]
        assert curve["accuracy"].iloc[size] == expected


def test_the_curve_masks_from_the_highest_score_down(monkeypatch):
    asked = recorder(monkeypatch)
    aipc(None, None, None, "late", {"T_m": np.array([0.1, 0.7, 0.7, -3.0, 2.0, 0.0])}, steps=3, draws=2, seed=0)
    assert asked[:3] == [{"late": [4, 1]}, {"late": [4, 1, 2, 0]}, {"late": [4, 1, 2, 0, 5, 3]}]
    for start in (3, 6):
        few, more, all_of_them = (chosen["late"] for chosen in asked[start : start + 3])
        assert few == all_of_them[:2]
        assert more == all_of_them[:4]
        assert sorted(all_of_them) == [0, 1, 2, 3, 4, 5]
    assert asked[5] != asked[8]


def test_random_orders_come_from_the_seed(monkeypatch):
    asked = recorder(monkeypatch)
    scores = {"T_m": np.arange(8.0)}
    runs = []
    for seed in (3, 3, 4):
        aipc(None, None, None, "late", scores, steps=2, draws=4, seed=seed)
        runs.append(list(asked))
        asked.clear()
    assert runs[0] == runs[1] != runs[2]
    aipc(None, None, None, "late", {**scores, "T_v": -scores["T_m"]}, steps=2, draws=4, seed=3)
    assert asked[4:] == runs[0][2:]  # whatever stands beside them


def test_more_steps_than_filters(monkeypatch):
    recorder(monkeypatch)
    found = aipc(None, None, None, "late", {"T_m": np.arange(3.0)}, steps=10, draws=0)
    np.testing.assert_allclose(found["fraction"], [0, 1 / 3, 2 / 3, 1])


def properties_table():
    rng = np.random.default_rng(0)
    rows = [
        (layer, depth, number, *rng.random(4))
        for layer, depth, count in (("0", 0, 4), ("3", 1, 5))
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["layer", "depth", "filter", *RANKINGS]).sample(frac=1, random_state=1)


@pytest.mark.parametrize(("layer", "name"), [("last", "3"), ("3", "3"), ("0", "0")])
def test_property_masking_ranks_one_layer_by_each_property(monkeypatch, layer, name):
    given = {}
    monkeypatch.setattr(interventions, "aipc", lambda *args: given.update(args=args) or pd.DataFrame())
    properties = properties_table()
    property_masking("model", "x", "y", properties, layer, steps=7, draws=3, seed=9)
    model, x, y, chosen, rankings, steps, draws, seed = given["args"]
    assert (model, x, y, chosen, steps, draws, seed) == ("model", "x", "y", name, 7, 3, 9)
    assert list(rankings) == list(RANKINGS)
    for ranking, scores in rankings.items():
        for number, score in enumerate(scores):
            row = properties[(properties["layer"] == name) & (properties["filter"] == number)]
            assert row[ranking].item() == score


def test_property_masking_of_a_layer_that_was_not_scanned(x, y):
    with pytest.raises(LayerError, match=r"experiments.layer '33' was not scanned; did you mean '3'\? Known: 0, 3"):
        property_masking(plain(), x, y, properties_table(), "33")


def test_layer_of_an_experiment():
    assert experiment_layer("last", ["a", "c", "b"]) == "b"
    assert experiment_layer("a", ["a", "c", "b"]) == "a"


def undecided(model, x):
    """Centre the class scores, so that every filter has a say; return the answers that the model then gives."""
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
        return model(x).argmax(1)


def hooked_accuracy(model, x, y, layer, filters):
    """The share of right answers, sample by sample, with the filters' maps zeroed by a hook."""

    def zero(module, args, output):
        output = output.clone()
        output[:, filters] = 0
        return output

    handle = model.get_submodule(layer).register_forward_hook(zero)
    with torch.no_grad():
        right = [int(model(image[None]).argmax()) == int(label) for image, label in zip(x, y, strict=True)]
    handle.remove()
    return sum(right) / len(right)


TYPED = {"H-H": [0, 3], "H-noH": [1], "noH-H": [], "L-L": np.array([2, 4])}


@pytest.mark.parametrize("layer", ["3", "0"])
def test_filters_of_a_type_are_masked_together(x, layer):
    model = plain()
    y = undecided(model, x)
    before = snapshot(model)
    types = {name: [index for index in filters if index < 4 or layer == "3"] for name, filters in TYPED.items()}
    count = {"3": 5, "0": 4}[layer]
    found = type_masking(model, x, y, layer, types, "third2", draws=3, seed=5)
    columns = ["checkpoint", "layer", "type", "group", "draw", "filters", "proportion", "accuracy_lost"]
    assert list(found.columns) == columns
    assert found["type"].tolist() == [name for name in types for _ in range(4)]
    assert found["group"].tolist() == ["type", "random", "random", "random"] * 4
    assert found["draw"].tolist() == [0, 0, 1, 2] * 4
    assert set(found["checkpoint"]) == {"third2"}
    assert set(found["layer"]) == {layer}
    base = evaluate(model, x, y)[1]
    own = found[found["group"] == "type"].set_index("type")
    for name, filters in types.items():
        assert own.loc[name, "filters"] == len(filters)
        assert own.loc[name, "proportion"] == len(filters) / count
        lost = 100 * (base - hooked_accuracy(model, x, y, layer, filters))
        assert own.loc[name, "accuracy_lost"] == pytest.approx(lost)
        assert set(found[found["type"] == name]["filters"]) == {len(filters)}
    assert own.loc["H-H", "accuracy_lost"] != 0
    assert (found[found["type"] == "noH-H"]["accuracy_lost"] == 0).all()
    assert unchanged(model, before)


def test_random_filters_stand_beside_each_type(monkeypatch):
    asked = recorder(monkeypatch, (0.0, 0.5))
    monkeypatch.setattr(interventions, "_filter_count", lambda model, layer: 9)
    found = type_masking(None, None, None, "late", {"H-H": [8, 1, 4], "L-L": [2]}, "third1", draws=6, seed=3)
    chosen = [filters["late"] for filters in asked]
    assert chosen[0] == [8, 1, 4]
    assert chosen[7] == [2]
    assert [len(set(filters)) for filters in chosen[1:7]] == [3] * 6
    assert [len(set(filters)) for filters in chosen[8:]] == [1] * 6
    assert len({tuple(filters) for filters in chosen[1:7]}) > 1
    assert set(found["accuracy_lost"]) == {25}  # from 0.75 to 0.5


def test_no_types_no_rows(x, y):
    found = type_masking(plain(), x, y, "3", {}, "third1")
    assert found.empty
    assert "accuracy_lost" in found


def test_area_of_known_curves():
    grid = np.linspace(0, 1, 11)
    assert curve_area(grid, -80 * grid) == pytest.approx(40)
    assert curve_area(grid, np.zeros(11)) == 0
    assert curve_area(grid, 10 * grid) == pytest.approx(-5)  # a gain
    assert curve_area(np.array([0, 0.25, 1]), np.array([0, -40.0, -40.0])) == pytest.approx(5 + 30)  # uneven steps
    fine = np.linspace(0, 1, 1001)
    assert curve_area(fine, -60 * fine**2) == pytest.approx(20, rel=1e-5)


def anomalies(**layers):
    rows = [(layer, number, bool(sign)) for layer, signs in layers.items() for number, sign in enumerate(signs)]
    return pd.DataFrame(rows, columns=["layer", "filter", "is_anomaly"])


def test_anomaly_filters_are_masked_together_beside_as_many_random_ones(monkeypatch):
    asked = recorder(monkeypatch, (9.0, 0.7))
    found = anomaly_masking(
        None, None, None, anomalies(a=[0, 1, 0, 0, 1, 0], b=[0, 0, 0], c=[1, 0, 0, 0]), "overfitted", draws=6, seed=1
    )
    assert asked[0] == {"a": [1, 4], "c": [0]}
    for chosen in asked[1:]:
        assert {layer: len(set(filters)) for layer, filters in chosen.items()} == {"a": 2, "c": 1}
        assert set(chosen["a"]) <= set(range(6))
        assert set(chosen["c"]) <= set(range(4))
    assert len({str(chosen) for chosen in asked[1:]}) > 1
    assert list(found.columns) == ["checkpoint", "group", "draw", "filters", "accuracy_change"]
    assert found["group"].tolist() == ["anomaly"] + ["random"] * 6
    assert found["draw"].tolist() == [0, *range(6)]
    assert set(found["filters"]) == {3}
    assert set(found["checkpoint"]) == {"overfitted"}
    np.testing.assert_allclose(found["accuracy_change"], -5)  # 0.75 -> 0.7
    again = list(asked)
    asked.clear()
    table = anomalies(a=[0, 1, 0, 0, 1, 0], b=[0, 0, 0], c=[1, 0, 0, 0])
    anomaly_masking(None, None, None, table, "overfitted", draws=6, seed=1)
    assert asked == again


def test_anomaly_masking_of_a_network(x, y):
    model = normalised()
    found = anomaly_masking(model, x, y, anomalies(**{"1": [0, 1, 0, 0], "5": [0] * 5}), "well_trained", draws=2)
    expected = evaluate(without(model, 0, 4, 1, [1]), x, y)[1] - evaluate(model, x, y)[1]
    assert found["accuracy_change"].iloc[0] == pytest.approx(100 * expected)


def test_without_anomalies_the_table_is_empty(x, y):
    found = anomaly_masking(plain(), x, y, anomalies(**{"0": [0] * 4}), "well_trained")
    assert found.empty
    assert list(found.columns) == ["checkpoint", "group", "draw", "filters", "accuracy_change"]


# Gradients of samples -----------------------------------------------------------------------------------------------


def test_each_anomaly_filter_is_masked_alone(x):
    model = normalised()
    y = undecided(model, x)
    before = snapshot(model)
    table = anomalies(**{"5": [1, 0, 1, 0, 1], "1": [0, 1, 0, 0]})
    table["depth"] = table["layer"].map({"1": 0, "5": 1})
    splits = {"train": (x, y), "validation": (x[:7] + 0.5, y[:7])}
    found = single_masking(model, splits, table, "overfitted")
    assert list(found.columns) == ["checkpoint", "layer", "depth", "filter", "split", "accuracy_change"]
    expected = [("1", 0, 1, "train"), ("1", 0, 1, "validation")]
    expected += [("5", 1, index, split) for split in splits for index in (0, 2, 4)]
    assert found[["layer", "depth", "filter", "split"]].to_records(index=False).tolist() == expected
    assert set(found["checkpoint"]) == {"overfitted"}
    for row in found.itertuples():
        images, labels = splits[row.split]
        change = hooked_accuracy(model, images, labels, row.layer, [row.filter]) - evaluate(model, images, labels)[1]
        assert row.accuracy_change == pytest.approx(100 * change)
    assert found["accuracy_change"].nunique() > 2
    assert unchanged(model, before)


def test_no_anomaly_filter_to_mask_alone(x, y):
    table = anomalies(**{"0": [0] * 4}).assign(depth=0)
    found = single_masking(plain(), {"train": (x, y)}, table, "well_trained")
    assert found.empty
    assert "accuracy_change" in found


def gradient_norms(model, x, y):
    norms = []
    for image, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(np.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients)))
    return np.array(norms)


@pytest.mark.parametrize("network", [plain, normalised, lambda: plain(inplace=True)])
def test_gradients_equal_autograd_sample_by_sample(network):
    model = network()
    x = torch.randn(70, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))  # more than a chunk
    y = torch.arange(70) % 3
    expected = gradient_norms(model, x, y)
    model.train()  # the gradients are those of evaluation mode nevertheless
    before = snapshot(model)
    found = sample_gradients(model, x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.dtype == np.float64
    assert unchanged(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "resnet18"])
def test_gradients_of_the_zoo(name):
    torch.manual_seed(0)
    model = build_model(name, {"in_channels": 1}).eval()
    x, y = torch.rand(3, 1, 32, 32), torch.tensor([1, 0, 7])
    np.testing.assert_allclose(sample_gradients(model, x, y), gradient_norms(model, x, y), rtol=1e-4)


def test_frozen_parameters_count_like_others(x, y):
    model = plain()
    expected = gradient_norms(model, x, y)
    model[0].requires_grad_(False)
    np.testing.assert_allclose(sample_gradients(model, x, y), expected, rtol=1e-9)


def test_gradients_of_outliers_and_of_the_others(x, y):
    model = plain()
    samples = np.arange(30) * 10 + 3
    outliers = pd.DataFrame({"sample": [13, 203, 13, 53], "is_anomaly": [True, True, True, False]})
    found = outlier_gradients(model, x, y, samples, outliers, "overfitted")
    norms = gradient_norms(model, x, y)
    expected = [norms[[1, 20]].mean(), np.delete(norms, [1, 20]).mean()]
    assert found["group"].tolist() == ["outlier", "normal"]
    assert found["samples"].tolist() == [2, 28]
    assert set(found["checkpoint"]) == {"overfitted"}
    np.testing.assert_allclose(found["gradient"], expected, rtol=1e-9)


def test_an_empty_group_has_no_gradient(x, y):
    nobody = pd.DataFrame({"sample": [], "is_anomaly": []}).astype({"sample": int, "is_anomaly": bool})
    everybody = pd.DataFrame({"sample": np.arange(30), "is_anomaly": True})
    for outliers, empty in ((nobody, "outlier"), (everybody, "normal")):
        found = outlier_gradients(plain(), x, y, np.arange(30), outliers, "well_trained").set_index("group")
        assert found.loc[empty, "samples"] == 0
        assert np.isnan(found.loc[empty, "gradient"])
        assert found["gradient"].notna().sum() == 1


# Pruning neurons and layers -----------------------------------------------------------------------------------------


def similarities(**layers):
    rows = [
        (layer, depth, number, value)
        for depth, (layer, values) in enumerate(layers.items())
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["layer", "depth", "filter", "similarity"]).sample(frac=1, random_state=2)


def test_pruning_takes_the_most_and_the_least_similar_neurons(monkeypatch):
    ways = []
    asked = recorder(monkeypatch, (0.0, 0.25), ways)
    table = similarities(**{"0": [0.1, 0.5, 0.5, -0.2], "3": [0.3, 0.9, 0.0, 0.7, -0.1]})
    found = neuron_pruning(None, None, None, table, fraction=0.4, draws=3, seed=2)
    assert asked[:2] == [{"0": [1, 2]}, {"0": [0, 3]}]  # 1.6 of 4
    assert asked[5:7] == [{"3": [1, 3]}, {"3": [2, 4]}]
    assert all(list(gone) == ["0"] and len(gone["0"]) == 2 for gone in asked[2:5])
    assert all(list(gone) == ["3"] and len(gone["3"]) == 2 for gone in asked[7:])
    assert ways == [pruned, pruned]
    assert found["layer"].tolist() == ["0"] * 5 + ["3"] * 5
    assert found["depth"].tolist() == [0] * 5 + [1] * 5
    assert found["neurons"].tolist() == [4] * 5 + [5] * 5
    assert found["group"].tolist() == ["most", "least", "random", "random", "random"] * 2
    assert found["draw"].tolist() == [0, 0, 0, 1, 2] * 2
    assert set(found["fraction"]) == {0.4}
    assert set(found["accuracy"]) == {0.25}
    again = list(asked)
    asked.clear()
    neuron_pruning(None, None, None, table, fraction=0.4, draws=3, seed=2)
    assert asked == again


def test_pruning_a_network(x, y):
    model = normalised()
    before = snapshot(model)
    table = similarities(**{"1": [0.4, 0.1, 0.3, 0.2], "5": [0.1, 0.2, 0.3, 0.4, 0.5]})
    found = neuron_pruning(model, x, y, table, fraction=0.25, draws=1).set_index(["layer", "group"])
    for layer, group, gone in (("1", "most", 0), ("1", "least", 1), ("5", "most", 4), ("5", "least", 0)):
        smaller = without(model, 0, 4, 1, [gone]) if layer == "1" else without(model, 4, 8, 5, [gone])
        assert found.loc[(layer, group), "accuracy"] == evaluate(smaller, x, y)[1]
    assert unchanged(model, before)


@pytest.mark.parametrize(("fraction", "count", "size"), [(0.4, 512, 205), (0.01, 6, 1), (0.99, 2, 2)])
def test_at_least_one_neuron_is_pruned(monkeypatch, fraction, count, size):
    asked = recorder(monkeypatch)
    neuron_pruning(None, None, None, similarities(wide=np.arange(count)), fraction, draws=1)
    assert [len(chosen["wide"]) for chosen in asked] == [size] * 3


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(0)
    splits = {
        split: Split(rng.integers(0, 255, (size, 1, 8, 8), dtype=np.uint8), np.arange(size) % 2)
        for split, size in (("train", 12), ("validation", 6), ("test", 10))
    }
    return build_dataset("noise", ("a", "b"), splits)


@pytest.mark.parametrize(
    ("curve", "kept", "chosen"),
    [([0.1, 0.3, 0.2], [2, 3], [True, False]), ([0.4, 0.3, 0.2], [1, 2, 3], [True, False, False]),
     ([0.1, 0.2, 0.3], [3], [True]), ([0.2, 0.2, 0.1], [1, 2, 3], [True, False, False])],
)  # fmt: skip
def test_layers_are_cut_where_the_curve_peaks(digits, tmp_path, curve, kept, chosen):
    protocol = Protocol(epochs=3, batch_size=6, overfitting_epochs=50)

    def build(convolutions):
        return model_builder("simple_cnn", {"convolutions": convolutions}, digits)()

    found, histories = layer_removal(build, curve, digits, protocol, tmp_path, 4, {"model": "simple_cnn", "code": "1"})
    assert list(found.columns) == ["convolutions", "chosen", "parameters", "accuracy", "loss"]
    assert found["convolutions"].tolist() == kept
    assert found["chosen"].tolist() == chosen
    assert found["parameters"].tolist() == [parameter_count(build(number)) for number in kept]
    for row in found.itertuples():
        results = train(
            lambda kept=row.convolutions: build(kept), digits, protocol, tmp_path / "alone", 4, {}, progress=False
        )
        last = results.set_index(["checkpoint", "split"]).loc[("third3", "test")]
        assert (row.accuracy, row.loss) == (last["accuracy"], last["loss"])
        history = histories[histories["convolutions"] == row.convolutions]
        assert set(history["chosen"]) == {row.chosen}
        alone = pd.read_csv(tmp_path / "alone" / "history.csv")
        pd.testing.assert_frame_equal(history.drop(columns=["convolutions", "chosen"]).reset_index(drop=True), alone)
    assert histories["convolutions"].unique().tolist() == kept
    assert not list(tmp_path.rglob("overfitted*"))


class Residual(nn.Module):
    """A shortcut past the masked layer, and a concatenation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        early = torch.relu(self.first(images))
        late = torch.relu(self.second(early) + early)
        return self.head(torch.cat([late, early], 1).mean((2, 3)))


class Untraceable(Residual):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.mean() > -1e9 else -images)


def pooled(channels=3):
    """Filters whose maps are often, or always, without any value above zero."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.3, -1.4, -50, -1.2, 0, 0.1]))
        model[4].bias.copy_(torch.tensor([0.5, -0.2, -50, 0, 0.2]))
    return model


def affineless():
    model = pooled()
    model[4] = nn.BatchNorm2d(5, affine=False).eval()
    model[4].running_mean.uniform_(-0.5, 0.5)
    return model


class Tied(nn.Module):
    """One kernel serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


CASES = [
    pytest.param(Residual, "first", True, True, id="shortcuts, first"),
    pytest.param(Residual, "second", True, True, id="shortcuts, second"),
    pytest.param(Untraceable, "first", False, False, id="untraceable"),
    pytest.param(pooled, "0", True, True, id="first"),
    pytest.param(pooled, "4", True, True, id="normalised"),
    pytest.param(pooled, "7", True, True, id="linear"),
    pytest.param(pooled, "9", True, True, id="last"),
    pytest.param(affineless, "4", True, False, id="normalised without parameters"),
    pytest.param(Tied, "first", True, False, id="tied"),
]


@pytest.mark.parametrize("way", [masked, pruned])
@pytest.mark.parametrize(("network", "layer", "maskable", "prunable"), CASES)
def test_masking_one_layer_again_and_again_is_masking_the_whole_network(
    network, layer, maskable, prunable, way, caplog
):
    caplog.set_level("INFO")
    torch.manual_seed(0)
    model, x, y = network().double().eval(), torch.randn(11, 3, 6, 6).double(), torch.randint(0, 3, (11,))
    before = snapshot(model.train())
    masking = interventions.LayerMasking(model, x, y, layer, way, batch_size=4)
    assert (masking.suffix is not None) == (maskable if way is masked else prunable)
    if way is pruned and maskable and not prunable:
        assert f"pruning filters of {layer} is more than masking" in caplog.text
    everything = list(range(len(model.get_submodule(masking.layer.weights).weight)))
    choices = [[], [1], [0, 2], [2, 0, 0], [1, 2], everything]
    expected = []
    for filters in choices:
        with way(model, x, {layer: filters}):
            expected.append(evaluate(model, x, y))
    losses, accuracies = masking.results(choices)
    np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=1e-12)
    np.testing.assert_array_equal(accuracies, [accuracy for _, accuracy in expected])
    assert len(set(losses)) > 1
    assert unchanged(model, before)
    with pytest.raises(LayerError, match="has the filters 0 to"):
        masking.results([[0], [99]])


@pytest.mark.parametrize(("name", "size"), [("lenet5", 32), ("alexnet", 16), ("vgg11", 16), ("resnet18", 8)])
def test_each_filter_of_the_zoo_alone(name, size):
    torch.manual_seed(1)
    model = build_model(name, {"in_channels": 1, "size": size}).eval()
    x, y = torch.rand(3, 1, size, size), torch.tensor([3, 1, 4])
    layers = [layer for layer in network_layers(model, x) if layer.convolutional]
    for layer in (layers[0].name, layers[len(layers) // 2].name):
        losses, accuracies = interventions.LayerMasking(model, x, y, layer).each()
        count = len(losses)
        assert len(accuracies) == count == len(model.get_submodule(layer).weight)
        for index in (0, 1, count - 1):
            expected = masked_result(model, x, y, {layer: [index]})
            assert losses[index] == pytest.approx(expected[0], rel=1e-5)
            assert accuracies[index] == expected[1]


@pytest.mark.parametrize("memory", [1, 1000, 2**24])
def test_only_samples_on_which_a_filter_shows_are_run(memory, monkeypatch):
    monkeypatch.setattr(suffixes, "PASS_BYTES", memory)
    model, x, y = pooled(), torch.randn(20, 3, 6, 6), torch.randint(0, 3, (20,))
    with torch.no_grad():
        shows = (model[:2](x).flatten(2).amax(2) > 0).sum(0).tolist()
    assert 0 in shows
    assert 0 < min(shows[1], shows[3]) < 20
    masking = interventions.LayerMasking(model, x, y, "0")
    run = []
    handle = model[9].register_forward_hook(lambda module, args, output: run.append(len(output)))
    losses, _ = masking.each()
    handle.remove()
    assert sum(run) == 20 + sum(shows)  # unchanged, and masked
    assert (len(run) == 2) == (memory == 2**24)
    assert losses[2] == pytest.approx(evaluate(model, x, y)[0])  # of a filter that never shows


def test_masking_refuses_what_masking_refuses(x, y):
    model = plain()
    model[1] = nn.Sigmoid()
    with pytest.raises(ModelError, match="cannot be masked"):
        interventions.LayerMasking(model, x, y, "0")
    pruning = interventions.LayerMasking(model, x, y, "0", pruned)  # zero parameters need no such activation
    with pruned(model, x, {"0": [1]}):
        expected = evaluate(model, x, y)
    assert [float(values[0]) for values in pruning.results([[1]])] == pytest.approx(list(expected), rel=1e-12)


def test_anomaly_filters_of_one_layer_run_only_what_is_behind_it(x, y):
    model, run = normalised(), []
    table = anomalies(**{"1": [0] * 4, "5": [1, 0, 1, 0, 0]})
    expected = 100 * (masked_result(model, x, y, {"5": [0, 2]})[1] - evaluate(model, x, y)[1])
    handle = model[0].register_forward_hook(lambda module, args, output: run.append(len(output)))
    found = anomaly_masking(model, x, y, table, "overfitted", draws=4)
    handle.remove()
    assert found["accuracy_change"].iloc[0] == pytest.approx(expected)
    assert sum(run) < 4 * len(x)
