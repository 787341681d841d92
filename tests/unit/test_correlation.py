"""nnscan.correlation: closed forms, and what it refuses."""

import numpy as np
import pytest

from nnscan.correlation import error_correlation
from nnscan.errors import DataError


def test_the_correlation_of_a_line_and_its_exact_p():
    found = error_correlation([1, 2, 3, 4, 5], [3, 5, 7, 9, 11])
    assert found.r == pytest.approx(1)
    assert found.p == pytest.approx(2 / 120)  # of the 120 orders, this one and its reverse
    assert found.runs == 5


def test_the_interval_by_hand():
    x, y = np.arange(10.0), np.array([1, 0, 3, 2, 5, 4, 7, 6, 9, 8.0])
    found = error_correlation(x, y)
    r = np.corrcoef(x, y)[0, 1]
    assert found.r == pytest.approx(r)
    ends = np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.959964 / np.sqrt(7))
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-5)
    assert found.p < 0.001


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2, 3], [1, 2, 3], "needs 4 pairs of values, there are 3"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], "finite"),
        ([1] * 4, range(4), "differ"),
    ],
)
def test_what_a_correlation_needs(x, y, reason):
    with pytest.raises(DataError, match=reason):
        error_correlation(x, y)
