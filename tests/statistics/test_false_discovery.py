"""Benjamini-Hochberg, against scipy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechstudy.statistics import benjamini_hochberg


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_equals_scipys(p):
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist(), abs=1e-15)


def test_a_missing_p_value_stays_missing_and_does_not_count():
    assert benjamini_hochberg([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert benjamini_hochberg([None]) == [None] and benjamini_hochberg([]) == []
