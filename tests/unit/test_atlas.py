"""An atlas of maps: which samples, what is kept of them, and images of classes with what networks say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnscan.atlas import (
    Atlas,
    draw_atlas,
    explained_samples,
    judged_images,
    read_atlas,
    read_images,
    setting_of,
    synthesised,
    write_atlas,
    write_images,
)
from nnscan.controls import METHODS
from nnscan.data import Split, build_dataset
from nnscan.errors import ArtifactError, ConfigurationError, ModelError, ScanError
from nnscan.evaluation import completeness_scores, evaluate
from nnscan.explanations import Method, Scanned, Setting, simply
from nnscan.infilling import Infiller
from nnscan.layout import QUESTIONS
from nnscan.maximisation import METHODS as MAKING
from nnscan.maximisation import Generator
from nnscan.metrics import COLUMNS, inputs_of
from nnscan.models import load_model, save_weights
from nnscan.scores import answers, checked, own_scores

pytestmark = pytest.mark.usefixtures("one_thread")
RANDOM, EDGES, INPUT = METHODS


def dataset(masks="some", normalization="unit"):
    """Twelve images of three classes in each split; of the test split every third has an empty mask."""
    generator = np.random.default_rng(0)
    foreground = np.ones((12, 8, 8), bool)
    foreground[::3] = masks == "all"
    splits = {
        part: Split(
            generator.integers(0, 256, (12, 2, 8, 8)).astype(np.uint8),
            np.repeat([0, 1, 2], 4),
            None if masks == "none" else foreground,
        )
        for part in ("train", "validation", "test")
    }
    return build_dataset("own", ["a", "b", "c"], splits, normalization)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def scanned(count=12, layer="0"):
    generator = np.random.default_rng(1)
    samples = np.sort(generator.permutation(12)[:count])
    return Scanned(layer, samples, generator.random((count, 4, 6, 6)), generator.random((count, 4, 8, 8)), 1)


def method(name, explain=None, total=None, synthesise=None):
    return Method(**{**vars(RANDOM), "name": name, "explain": explain, "total": total, "synthesise": synthesise})


def refusing(model, x, classes):
    raise ModelError("this network has no such thing")


def double_score(model, x, classes):
    """Return maps that are twice the score at the first pixel."""
    x = checked(model, x, classes)
    maps = torch.zeros_like(x[:, 0])
    with torch.no_grad():
        maps[:, 0, 0] = 2 * own_scores(model(x), classes)
    return maps


def score(model, x, classes):
    with torch.no_grad():
        return own_scores(model(x), classes)


SCORE = method("double", simply(double_score), simply(score))


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 5, 8, 100])
def test_explained_samples_have_an_object_and_are_of_all_classes(count):
    data, scan = dataset(), scanned()
    places = explained_samples(data, scan, count)
    assert (np.diff(places) > 0).all()
    assert len(places) == min(count, 8)  # of twelve, four have no foreground
    samples = scan.samples[places]
    assert data.splits["test"].foreground[samples].any((1, 2)).all()
    assert len(set(data.splits["test"].labels[samples])) == min(count, 3)


@pytest.mark.parametrize("masks", ["none", "all"])
def test_without_masks_or_with_all_of_them_every_scanned_sample_may_be_explained(masks):
    assert explained_samples(dataset(masks), scanned(7), 50).tolist() == list(range(7))


def test_masks_that_are_all_empty_are_as_none():
    data = dataset()
    data.splits["test"].foreground[:] = False
    assert len(explained_samples(data, scanned(), 4)) == 4


def test_a_setting_has_what_the_study_gives(tmp_path):
    data = dataset(normalization="standard")
    bare = setting_of(data, 3)
    assert (bare.seed, bare.scanned, bare.infiller, bare.generator) == (3, None, None, None)
    assert bare.box == data.box
    save_weights(tmp_path / "infiller.safetensors", Infiller(2, width=2), {})
    save_weights(tmp_path / "generator.safetensors", Generator(4, 2, (8, 8), width=2), {})
    found = setting_of(data, 0, scanned(), [tmp_path / "infiller.safetensors"], [tmp_path / "generator.safetensors"])
    assert isinstance(found.infiller, Infiller)
    assert isinstance(found.generator, Generator)
    assert found.scanned is not None


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "promised", "residual"),
    [
        ([3, 1], 4, 0),
        ([3, -1], 4, 0.5),  # 2 of 4 are missing
        ([6, -2], 3, 0.125),  # 1 is too much, of 8 that are handed out
        ([1e-20, -2e-20], 0, 1 / 3),  # a promise of nothing, as of SGLRP
        ([0, 0], 0, 0),
        ([0, 0], -5, 1),
    ],
)
def test_a_residual_is_a_share_of_what_is_promised_or_handed_out(pixels, promised, residual):
    maps, totals = np.array([[pixels]], np.float32), np.array([promised], np.float32)
    atlas = Atlas(np.array([0]), np.array([0]), {"some": maps}, {"some": totals})
    np.testing.assert_allclose(atlas.residuals("some"), residual, rtol=1e-6)


def atlas_of(model, methods=(RANDOM, EDGES, SCORE), **given):
    data = dataset()
    inputs = inputs_of(model, data, "test", np.array([1, 4, 8]), Setting(seed=2))
    return inputs, draw_atlas(model, inputs, methods, **given)


def test_an_atlas_holds_raw_maps_totals_and_reasons(model):
    refuser = method("refuser", simply(refusing))
    inputs, found = atlas_of(model, (RANDOM, refuser, SCORE, MAKING[0]))
    assert found.samples.tolist() == [1, 4, 8]
    assert found.classes.tolist() == answers(model, inputs.x)
    assert list(found.maps) == ["random", "double"]  # no method that makes images of classes
    assert found.refusals == {"refuser": "this network has no such thing"}
    np.testing.assert_array_equal(found.maps["random"], RANDOM.explain(model, inputs.x, inputs.classes, inputs.setting))
    np.testing.assert_allclose(found.totals["double"], score(model, inputs.x, inputs.classes))
    assert found.totals.keys() == {"double"}
    np.testing.assert_allclose(found.residuals("double"), 0.5, rtol=1e-6)  # the maps add up to twice the score
    rows = completeness_scores(found)
    assert rows[["sample", "method", "metric"]].to_numpy().tolist() == [
        [sample, "double", "residual"] for sample in (1, 4, 8)
    ]
    assert completeness_scores(atlas_of(model, (RANDOM,))[1]).empty


def test_what_a_method_may_not_give_is_named(model):
    wrong = method("wrong", lambda model, x, classes, setting: x[:, 0, :4])
    endless = method("endless", lambda model, x, classes, setting: x[:, 0] * torch.inf)
    found = atlas_of(model, (wrong, endless))[1]
    assert "gave maps of the shape (3, 4, 8)" in found.refusals["wrong"]
    assert "not finite" in found.refusals["endless"]
    broken = method("broken", lambda model, x, classes, setting: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # an error in a method is no refusal
        atlas_of(model, (broken,))


def test_an_atlas_comes_back_as_it_was_written(model, tmp_path):
    found = atlas_of(model, (RANDOM, EDGES, SCORE, method("refuser", simply(refusing))))[1]
    write_atlas(tmp_path / "atlas.h5", found, {"seed": "2"})
    again = read_atlas(tmp_path / "atlas.h5")
    for name in ("samples", "classes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    for kept, back in ((found.maps, again.maps), (found.totals, again.totals)):
        assert list(back) == list(kept)  # in the methods' order
        for name, values in kept.items():
            np.testing.assert_array_equal(back[name], values)
            assert back[name].dtype == values.dtype
    assert again.refusals == found.refusals
    empty = Atlas(np.arange(2), np.zeros(2, np.int64))
    write_atlas(tmp_path / "empty.h5", empty, {})
    assert read_atlas(tmp_path / "empty.h5").maps == {}


def test_a_part_of_an_atlas(model):
    found = atlas_of(model)[1]
    part = found.part(np.array([2, 0]))
    assert part.samples.tolist() == [8, 1]
    np.testing.assert_array_equal(part.maps["edges"], found.maps["edges"][[2, 0]])
    np.testing.assert_array_equal(part.totals["double"], found.totals["double"][[2, 0]])


def test_files_of_another_kind_and_damaged_ones_are_refused(model, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_atlas(tmp_path / "nothing.h5")
    write_images(tmp_path / "images.h5", {}, {}, {})
    with pytest.raises(ArtifactError, match="holds 'images', not 'atlas'"):
        read_atlas(tmp_path / "images.h5")
    write_atlas(tmp_path / "atlas.h5", atlas_of(model)[1], {})
    with pytest.raises(ArtifactError, match="holds 'atlas', not 'images'"):
        read_images(tmp_path / "atlas.h5")
    whole = (tmp_path / "atlas.h5").read_bytes()
    (tmp_path / "atlas.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError):
        read_atlas(tmp_path / "atlas.h5")


# Questions ------------------------------------------------------------------------------------------------------------


def ask(question, model, data, count=6, anew=2, setting=None, methods=(RANDOM, EDGES, SCORE), shuffled=None):
    scan = scanned()
    scan = scan.part(explained_samples(data, scan, count))
    setting = setting or Setting(scanned=scan)
    inputs = inputs_of(model, data, "test", scan.samples, setting)
    return evaluate(question, model, data, draw_atlas(model, inputs, methods), setting, methods, anew, shuffled)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("masks", ["some", "none"])
def test_each_question_has_rows_of_the_same_columns(model, question, masks):
    data = dataset(masks)
    rows = ask(question, model, data)
    assert tuple(rows.columns) == COLUMNS
    if question == "localisation" and masks == "none":
        assert rows.empty
        return
    assert set(rows["method"]) - {""} == {"random", "edges", "double"}
    count = 6 if question in ("localisation", "faithfulness") else 2
    assert rows["sample"].nunique() == count
    assert (rows["value"].isna() == (rows["reason"] != "")).all()
    assert ("residual" in set(rows["metric"])) == (question == "faithfulness")


def test_a_shuffled_network_adds_its_rows(model):
    torch.manual_seed(7)
    other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    without, with_ = (set(ask("sanity", model, dataset(), shuffled=one)["metric"]) for one in (None, other))
    assert with_ - without == {"labels_rank", "labels_rank_size", "labels_ssim"}


def test_maps_of_a_scan_are_those_of_the_asked_samples(model):
    """nnscan's maps have values where inputs stay what they are, and refuse by name where they change."""
    seen = []

    def own(model, x, classes, setting):
        if setting.scanned is None:
            raise ScanError("this map is made of a scan of these very inputs")
        seen.append(setting.scanned.samples.tolist())
        return x.sum(1)

    methods = (method("own", own),)
    assert ask("cost", model, dataset(), methods=methods)["value"].notna().any()
    assert {len(samples) for samples in seen} == {6, 1}  # all for the atlas, each alone for its cost
    rows = ask("stability", model, dataset(), methods=methods)
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"this map is made of a scan of these very inputs"}


def test_an_unknown_question_is_named(model):
    with pytest.raises(ConfigurationError, match="there is no question 'stabilty'; did you mean 'stability'"):
        ask("stabilty", model, dataset())


# Images of classes ----------------------------------------------------------------------------------------------------


def constant(model, shape, classes, setting):
    return torch.stack([torch.full(shape, 0.1 * number) for number in classes])


def test_images_of_classes_and_what_networks_say_of_them(model, tmp_path):
    data = dataset()
    refuser = method("refuser", synthesise=lambda *_: refusing(*_[:3]))
    images, refusals = synthesised(model, data, (RANDOM, method("plain", synthesise=constant), refuser), Setting())
    assert list(images) == ["plain"]
    assert images["plain"].shape == (3, 2, 8, 8)
    assert refusals == {"refuser": "this network has no such thing"}
    write_images(tmp_path / "images.h5", images, refusals, {})
    back, reasons = read_images(tmp_path / "images.h5")
    np.testing.assert_array_equal(back["plain"], images["plain"])
    assert reasons == refusals
    rows = judged_images(images, refusals, model, [model, load_model_like(model)], data)
    assert set(rows["method"]) == {"plain", "validation", "refuser"}
    assert len(rows) == 3 + 3 + 1
    own = rows[rows["method"] == "plain"]
    assert own["class"].tolist() == [0, 1, 2]
    assert own["agreement"].between(0, 1).all()
    assert rows[rows["method"] == "refuser"][["score", "agreement"]].isna().all(axis=None)
    assert rows.set_index("method")["reason"]["refuser"] == "this network has no such thing"
    validation = data.inputs("validation", np.array([0, 4, 8]))
    real = rows[rows["method"] == "validation"]
    np.testing.assert_allclose(real["score"], score(model, torch.from_numpy(validation), [0, 1, 2]), rtol=1e-5)
    alone = judged_images(images, {}, model, [], data)  # one seed: nobody else to ask
    assert alone["agreement"].isna().all()


def load_model_like(model):
    torch.manual_seed(9)
    other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert not torch.equal(other[0].weight, model[0].weight)
    return other.eval()


def test_a_method_that_gives_something_else_is_an_error(model):
    short = method("short", synthesise=lambda model, shape, classes, setting: torch.zeros(1, *shape))
    with pytest.raises(ModelError, match="not one finite image per class"):
        synthesised(model, dataset(), (short,), Setting())


def test_fully_connected_networks_have_the_atlas_of_what_fits_them():
    """A network without a convolution, whose scan is of a layer without places."""
    from nnscan.explainers import chosen

    data = dataset("none")
    network = load_model("fcn", factory_options={"in_channels": 2, "size": 8, "classes": 3, "widths": [6, 5]})
    generator = np.random.default_rng(0)
    scan = Scanned("layers.1", np.arange(3), np.full((3, 5, 1, 1), np.nan), generator.random((3, 5, 8, 8)), 1)
    inputs = inputs_of(network, data, "test", scan.samples, Setting(scanned=scan, box=data.box))
    methods = chosen(["vanilla_gradient", "deep_taylor", "grad_cam", "score_cam", "nns", "fq", "random"])
    found = draw_atlas(network, inputs, methods)
    assert set(found.maps) == {"vanilla_gradient", "deep_taylor", "nns", "random"}
    assert "need a convolution" in found.refusals["grad_cam"]
    assert "foreground masks" in found.refusals["fq"]
