"""Time and memory of methods."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from networks import images, plain
from nnscan.controls import METHODS
from nnscan.costs import cost_scores, measured, synthesis_costs
from nnscan.errors import ModelError
from nnscan.explanations import Method, Scanned, Setting
from nnscan.metrics import COLUMNS, Inputs

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND = torch.ones(2, 1, 1)


def method(name, explain):
    return Method(**{**vars(METHODS[0]), "name": name, "explain": explain})


def test_time_and_peak_of_a_block():
    with measured(torch.device("cpu")) as cost:
        held = torch.ones(10_000_000)  # 40 MB, given back before the end
        del held
        time.sleep(0.05)
        held = torch.ones(20_000_000)
        time.sleep(0.01)
        del held
    assert 0.06 <= cost.seconds < 2
    assert 72 <= cost.megabytes <= 128  # the C library may keep the first 40 MB where an earlier test left it room
    with measured(torch.device("cpu")) as cost:
        time.sleep(0.01)
    assert cost.megabytes < 8


def test_each_input_is_explained_alone_after_a_call_that_does_not_count():
    calls = []

    def explain(model, x, classes, setting):
        calls.append((x.clone(), classes, setting.scanned.samples.tolist()))
        if len(calls) == 1:
            time.sleep(0.3)
        return x.sum(1)

    x = images()
    scanned = Scanned("0", np.arange(5, 8), np.zeros((3, 1, 1, 1)), np.zeros((3, 1, 8, 8)), 1)
    given = Inputs(x, [0, 1, 2], np.arange(5, 8), BOUND, BOUND, BOUND, setting=Setting(scanned=scanned))

    def refuse(model, x, classes, setting):
        raise ModelError("not for this network")

    frame = cost_scores(plain(), given, [method("own", explain), method("refused", refuse)])
    assert tuple(frame.columns) == COLUMNS
    assert [(classes, samples) for _, classes, samples in calls] == [([0], [5]), ([0], [5]), ([1], [6]), ([2], [7])]
    assert torch.equal(calls[2][0], x[1:2])
    value = frame.set_index(["method", "metric"])["value"]
    assert (value["own", "seconds"] < 0.3).all()
    assert (value["own", "megabytes"] >= 0).all()
    assert value["refused", "seconds"].isna().all()
    assert set(frame[frame["method"] == "refused"]["reason"]) == {"not for this network"}


def test_an_image_of_a_class_is_made_alone_by_those_that_made_all():
    calls = []

    def make(model, shape, classes, setting):
        calls.append((shape, classes, setting.seed))
        time.sleep(0.02)
        return torch.zeros(len(classes), *shape)

    makers = [replace(method(name, None), synthesise=make) for name in ("own", "refused")]
    frame = synthesis_costs(plain(), {"own": torch.zeros(3, 2, 8, 8)}, [METHODS[0], *makers], Setting(seed=7))
    assert calls == [((2, 8, 8), [0], 7)]
    assert frame["method"].tolist() == ["own"]
    assert 0.02 <= frame["seconds"][0] < 2
    assert frame["megabytes"][0] >= 0
