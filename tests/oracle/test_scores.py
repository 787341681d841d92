"""Class scores of inputs."""

import pytest

from networks import Residual, images, scores_of
from nnscan.scores import answers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_answers():
    model, x = Residual(), images(40)
    assert answers(model, x) == scores_of(model, x).argmax(1).tolist()
