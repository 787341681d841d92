"""nnscan.similarities: cosines, the tables of both methods, and what is derived from them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nnscan import backprop
from nnscan import similarities as module
from nnscan.errors import ConfigurationError, DataError, LayerError, ModelError, ScanError
from nnscan.models import build_model
from nnscan.similarities import (
    class_results,
    cosine,
    filter_similarity,
    layer_curves,
    seed_curves,
    similarities,
    similarity,
)


@pytest.fixture
def model():
    torch.manual_seed(6)
    return build_model("simple_cnn", {"in_channels": 1, "size": 16, "classes": 4}).double()


@pytest.fixture
def averages():
    return torch.rand(4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def test_cosine_known_answers():
    references = torch.tensor([[[[1.0, 0]]], [[[1.0, 1]]], [[[0.0, 0]]]])
    one = torch.tensor([[2.0, 0], [-3.0, 0], [0.0, 5], [0.0, 0], [1.0, 1]]).view(1, 5, 1, 1, 2)
    images = one.expand(3, -1, -1, -1, -1)
    half = 0.5**0.5
    expected = [[1, -1, 0, 0, half], [half, -half, half, 0, 1], [0, 0, 0, 0, 0]]
    torch.testing.assert_close(cosine(references, images), torch.tensor(expected, dtype=torch.float64))


def test_cosine_is_bounded_and_blind_to_scale():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(5, 3, 8, 8, generator=generator)
    images = torch.cat([torch.randn(5, 6, 3, 8, 8, generator=generator), 7 * references[:, None]], dim=1)
    values = cosine(references, images)
    assert values.dtype == torch.float64
    assert values.abs().max() <= 1
    torch.testing.assert_close(values[:, -1], torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(cosine(references * 1e-20, images * 1e18), values)
    torch.testing.assert_close(cosine(references, -images), -values)


def test_cosine_does_not_hide_values_that_are_not_finite():
    images = torch.tensor([torch.nan, torch.inf, 1]).view(1, 3, 1, 1, 1).expand(-1, -1, 1, 2, 2)
    values = cosine(torch.ones(1, 1, 2, 2), images)
    assert torch.isfinite(values).tolist() == [[False, False, True]]


def test_table_has_one_row_per_class_layer_and_filter(model, averages):
    frame = similarity(model, averages)
    assert list(frame.columns) == ["class", "layer", "filter", "similarity"]
    expected = pd.MultiIndex.from_tuples(
        (label, layer, k)
        for label in range(4)
        for layer, count in (("features.0", 16), ("features.3", 32), ("features.6", 64))
        for k in range(count)
    )
    assert list(frame.set_index(["class", "layer", "filter"]).index) == list(expected)
    assert frame["similarity"].between(-1, 1).all()
    assert frame["similarity"].std() > 0.01


def test_scale_of_an_average_does_not_matter_without_biases(model, averages):
    for layer in model.modules():
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    for method in (1, 2):
        first, second = (similarity(model, averages * scale, method=method) for scale in (1, 40))
        np.testing.assert_allclose(first["similarity"], second["similarity"], rtol=0, atol=1e-12)


def test_filter_that_is_not_active_has_the_similarity_zero(model, averages):
    with torch.no_grad():
        model.features[3].bias[5] = -100
    for method in (1, 2):
        frame = similarity(model, averages, layers=["features.3"], method=method)
        assert (frame.loc[frame["filter"] == 5, "similarity"] == 0).all()
        assert (frame.loc[frame["filter"] != 5, "similarity"] != 0).any()


def test_layers_by_name_or_module_in_the_order_given(model, averages):
    whole = similarity(model, averages)
    part = similarity(model, averages, layers=[model.features[6], "features.0"])
    assert list(part["layer"].unique()) == ["features.6", "features.0"]
    merged = part.merge(whole, on=["class", "layer", "filter"])
    assert len(merged) == len(part) == 4 * (64 + 16)
    np.testing.assert_allclose(merged["similarity_x"], merged["similarity_y"], rtol=0, atol=1e-14)


def test_class_scores_are_not_rectified(averages):
    torch.manual_seed(0)
    model = build_model("fcn", {"in_channels": 1, "size": 16, "classes": 4, "widths": (8,)}).double()
    with torch.no_grad():
        model[-1].bias[:] = -100  # every class score is negative
    frame = similarity(model, averages, method=2)
    assert list(frame["layer"].unique()) == ["1", "3"]
    own = frame[(frame["layer"] == "3") & (frame["filter"] == frame["class"])]
    np.testing.assert_allclose(own["similarity"], 1)  # phi_i compared with itself


def test_both_methods_together_equal_each_alone(model, averages, monkeypatch):
    calls = []
    original = module.guided_batches
    monkeypatch.setattr(module, "guided_batches", lambda *a, **k: calls.append(list(a[2])) or original(*a, **k))
    other = averages.flip(0)
    together = similarities(model, {"simple": averages, "least": other, "ascended": averages}, layers=["features.0"])
    assert calls == [["features.0"], ["features.0"]]  # once per kind, for both methods
    assert list(together.columns) == ["average", "method", "class", "layer", "depth", "filter", "similarity"]
    assert list(together["average"].unique()) == ["simple", "least"]
    for kind, images in (("simple", averages), ("least", other)):
        for method in (1, 2):
            part = together[(together["average"] == kind) & (together["method"] == method)]
            alone = similarity(model, images, ["features.0"], method)
            pd.testing.assert_frame_equal(part[alone.columns].reset_index(drop=True), alone)


def test_pieces_do_not_change_the_values(model, averages, monkeypatch):
    whole = similarities(model, {"simple": averages})
    monkeypatch.setattr(backprop, "PASS_BYTES", 1)  # one pair of sample and filter in a pass
    pd.testing.assert_frame_equal(similarities(model, {"simple": averages}), whole, rtol=0, atol=1e-13)


def test_layer_asked_for_twice_is_computed_once(model, averages, monkeypatch):
    calls = []
    original = module.guided_batches
    monkeypatch.setattr(module, "guided_batches", lambda *a, **k: calls.append(list(a[2])) or original(*a, **k))
    frame = similarities(model, {"simple": averages}, ["features.3", "features.0", "features.3"])
    assert calls == [["features.3", "features.0"]]
    first, _, last = (frame[frame["depth"] == depth] for depth in range(3))
    pd.testing.assert_frame_equal(
        first.drop(columns="depth").reset_index(drop=True), last.drop(columns="depth").reset_index(drop=True)
    )


def test_depth_follows_the_layers(model, averages):
    frame = similarities(model, {"simple": averages})
    assert frame.groupby("layer")["depth"].unique().map(list).to_dict() == {
        "features.0": [0],
        "features.3": [1],
        "features.6": [2],
    }


def test_means_over_classes_and_curves_over_filters():
    frame = pd.DataFrame(
        {
            "average": "simple",
            "method": [1, 1, 1, 1, 2, 2, 2, 2],
            "class": [0, 0, 1, 1] * 2,
            "layer": "conv",
            "depth": 0,
            "filter": [0, 1] * 4,
            "similarity": [0.2, 0.6, 0.4, -0.2, 1, 1, 0, 0],
        }
    )
    filters = filter_similarity(frame)
    assert list(filters.columns) == ["average", "method", "layer", "depth", "filter", "similarity"]
    np.testing.assert_allclose(filters["similarity"], [0.3, 0.2, 0.5, 0.5])
    curves = layer_curves(frame)
    assert list(curves.columns) == ["average", "method", "class", "layer", "depth", "mean", "sd"]
    np.testing.assert_allclose(curves["mean"], [0.4, 0.1, 1, 0])
    np.testing.assert_allclose(curves["sd"], [0.2, 0.3, 0, 0], atol=1e-15)
    short = frame.loc[frame["method"] == 1, ["class", "layer", "filter", "similarity"]]
    np.testing.assert_allclose(filter_similarity(short)["similarity"], [0.3, 0.2])
    np.testing.assert_allclose(layer_curves(short)["sd"], [0.2, 0.3])


def test_wrong_requests_are_named(model, averages):
    with pytest.raises(ConfigurationError, match="method 3 does not exist"):
        similarity(model, averages, method=3)
    with pytest.raises(LayerError, match=r"did you mean 'features\.0'"):
        similarity(model, averages, layers=["features0"])
    with pytest.raises(DataError, match="empty list of layers"):
        similarity(model, averages, layers=[])
    with pytest.raises(DataError, match=r"averages \(n_classes"):
        similarity(model, averages[0])
    with pytest.raises(DataError, match="no class averages"):
        similarities(model, {"ascended": averages})
    with pytest.raises(ModelError, match="class scores 0 to 4"):
        similarity(model, torch.cat([averages, averages[:1]]), method=2)


def test_weights_that_are_not_finite_are_an_error(model, averages):
    with torch.no_grad():
        model.features[0].weight[0] = torch.nan
    for layers in (None, ["features.0"], ["features.6"]):
        with pytest.raises(ModelError, match="not finite"):
            similarity(model, averages, layers)


def test_layer_that_is_not_used_is_named(model, averages):
    model.spare = nn.Conv2d(1, 1, 1).double()
    with pytest.raises(ScanError, match="'spare' is not used"):
        similarity(model, averages, ["features.0", "spare"])


def test_seed_curves_are_means_of_the_seeds_curves():
    index = pd.MultiIndex.from_product(
        [(0, 1), ("simple", "most"), (1, 2), (0, 1), (0, 1), range(3)],
        names=["seed", "average", "method", "class", "depth", "filter"],
    )
    frame = pd.DataFrame({"similarity": np.random.default_rng(0).random(len(index))}, index=index).reset_index()
    frame["layer"] = frame["depth"].map({0: "z", 1: "a"})
    curves = seed_curves(frame.sample(frac=1, random_state=0))
    assert len(curves) == 2 * 2 * 2 * 2
    assert list(curves.columns) == ["average", "method", "class", "layer", "depth", "mean", "sd"]
    for keys, part in curves.groupby(["average", "method", "class"]):
        assert part["layer"].tolist() == ["z", "a"]
        for row in part.itertuples():
            own = frame[(frame["average"] == keys[0]) & (frame["method"] == keys[1]) & (frame["class"] == keys[2])]
            values = own[own["depth"] == row.depth].groupby("seed")["similarity"]
            assert row.mean == pytest.approx(values.mean().mean())
            assert row.sd == pytest.approx(values.std(ddof=0).mean())


def test_class_results(model, averages):
    x = torch.rand(30, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = np.arange(30) % 3  # nothing of the fourth class
    matrices = {"simple": np.array([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0, 0, 1, 0], [0.3, 0.3, 0.2, 0.2]])}
    frame = class_results(model, x, y, ["a", "b", "c", "d"], matrices)
    answers = model(x).argmax(1).numpy()
    for row in frame.itertuples(index=False):
        own = answers[y == row[0]]
        assert row.samples == len(own) == (10 if row.name != "d" else 0)
        assert row.accuracy == pytest.approx((own == row[0]).mean()) if len(own) else np.isnan(row.accuracy)
    assert frame["name"].tolist() == ["a", "b", "c", "d"]
    assert frame["confidence_simple"].tolist() == [0.7, 0.3, 1, 0.2]
    assert frame["recognised_simple"].tolist() == [True, False, True, False]
