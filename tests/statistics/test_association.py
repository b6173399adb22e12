"""Slopes and rank correlation."""

import pytest

from mechstudy.statistics import slopes, spearman


def test_the_slope_of_a_line_is_its_slope():
    assert slopes([-2, 0, 1], [[-5.0, 1.0, 4.0], [2.0, 2.0, 2.0]]).tolist() == pytest.approx([3.0, 0.0])


def test_spearman_needs_three_points_that_differ():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2], [1, 2]) is None and spearman([1, 2, 3], [5, 5, 5]) is None
