"""What a metric is, and rows of scores."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from networks import images, plain
from nnscan.controls import METHODS
from nnscan.data import Split, build_dataset
from nnscan.errors import ModelError, ScanError
from nnscan.evaluation import METRICS
from nnscan.explanations import Method, Setting
from nnscan.metrics import COLUMNS, Inputs, Score, frame, inputs_of, judged, maps_of
from nnscan.models import load_model
from nnscan.scores import answers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_metric_says_what_it_means():
    assert len({metric.name for metric in METRICS}) == len({metric.title for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name == metric.name.lower().replace(" ", "_")
        assert metric.low < metric.high
        assert metric.meaning.endswith(".")
        assert (metric.paper == "") == (metric.year == 0) == (metric.question == "cost")
    undirected = {metric.name for metric in METRICS if metric.direction is None}
    assert undirected == {"roughness", "deletion_curve", "insertion_curve", "attack_prediction"}


def test_inputs_are_fed_as_the_data_set_says():
    generator = np.random.default_rng(0)
    splits = {
        part: Split(
            generator.integers(0, 256, (9, 3, 8, 8)).astype(np.uint8), np.arange(9) % 2, np.ones((9, 8, 8), bool)
        )
        for part in ("train", "validation", "test")
    }
    model = load_model("fcn", factory_options={"in_channels": 3, "size": 8, "classes": 2})
    for normalization in ("unit", "standard"):
        dataset = build_dataset("own", ["a", "b"], splits, normalization)
        found = inputs_of(model, dataset, "test", np.array([1, 4]), Setting(seed=7), {"own": torch.ones(2, 8, 8)})
        np.testing.assert_array_equal(found.x, dataset.inputs("test", np.array([1, 4])))
        assert found.classes == answers(model, found.x)
        assert found.setting.seed == 7
        assert list(found.maps) == ["own"]
        assert found.foreground.shape == (2, 8, 8)
        ends = np.stack([np.zeros((3, 8, 8)), np.full((3, 8, 8), 255)]).astype(np.uint8)
        fed = dataclasses.replace(dataset, splits={"test": Split(ends, np.zeros(2, np.int64))}).inputs("test")
        np.testing.assert_allclose(found.low.expand(3, 8, 8), fed[0], rtol=1e-5)
        np.testing.assert_allclose(found.high.expand(3, 8, 8), fed[1], rtol=1e-5)
        np.testing.assert_allclose(found.mean.flatten(), dataset.inputs("train").mean((0, 2, 3)), atol=1e-5)
        np.testing.assert_allclose(found.range, found.high - found.low)


def test_rows():
    scores = [Score("a", np.array([1, np.nan]), reason="why"), Score("b", np.array([2.0, 3]), ["x", "y"])]
    rows = frame(np.array([4, 9]), "own", scores)
    expected = pd.DataFrame(
        [(4, "own", "a", "", 1.0, ""), (9, "own", "a", "", np.nan, "why"),
         (4, "own", "b", "x", 2.0, ""), (9, "own", "b", "y", 3.0, "")], columns=list(COLUMNS),
    )  # fmt: skip
    pd.testing.assert_frame_equal(rows, expected, check_dtype=False)
    assert tuple(frame(np.array([4]), "own", []).columns) == COLUMNS
    assert tuple(judged([], np.array([4]), METRICS, lambda method: []).columns) == COLUMNS


def test_maps_are_checked():
    model, x = plain(), images()

    def method(explain):
        return Method(**{**vars(METHODS[0]), "explain": explain})

    for explain, error, sentence in (
        (None, ModelError, "makes images of classes"),
        (lambda *given: torch.ones(3, 4, 4), ScanError, r"maps of the shape \(3, 4, 4\)"),
        (lambda *given: torch.full((3, 8, 8), torch.nan), ScanError, "not finite"),
    ):
        with pytest.raises(error, match=sentence):
            maps_of(method(explain), model, x, [0, 0, 0], Setting())
        given = Inputs(x, [0] * 3, np.arange(3), *(torch.ones(2, 1, 1),) * 3)
        rows = judged([method(explain)], given.samples, METRICS[:2], lambda own: [
            Score("iou", maps_of(own, model, x, [0] * 3, Setting()).mean((1, 2)).numpy())])  # fmt: skip
        assert rows["metric"].unique().tolist() == ["iou", "pointing"]
        assert rows["value"].isna().all()
        assert rows["reason"].str.contains(sentence).all()
