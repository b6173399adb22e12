"""Shares of the behaviour that circuits carry, with intervals."""

import pytest
import torch

from mechstudy.verdict.shares import ALL, NONE, Shares

VALUES = {
    ALL: [4.0, 5.0, 6.0, 5.0],
    NONE: [0.0, 1.0, 0.0, -1.0],
    "half": [2.0, 3.5, 2.0, 2.5],
    "other": [1.0, 2.0, 1.0, 1.0],
}


def shares(values=VALUES, clusters="abcd"):
    tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}
    return Shares(tensors, list(clusters), seed=0, n_resamples=500)


def test_everything_carries_all_and_nothing_carries_none():
    s = shares()
    assert s.f(ALL).value == pytest.approx(1) and s.f(NONE).value == pytest.approx(0)
    assert s.lost(ALL).value == pytest.approx(0) and s.lost(NONE).value == pytest.approx(1)
    assert s.f("half").value == pytest.approx(10 / 20)
    low, high = s.f("half").ci
    assert low < 0.5 < high


def test_sums_of_shares_are_resampled_together():
    s = shares()
    both = s.combined(["half", "other"], [1.0, -1.0])
    assert both.value == pytest.approx(s.f("half").value - s.f("other").value)
    assert s.combined(["half", "half"], [1.0, -1.0]).ci is None  # always 0
    assert s.combined(["half"], [2.0], plus=3.0).value == pytest.approx(4.0)


def test_points_of_some_prompts():
    s = shares()
    assert s.point("half") == pytest.approx(s.f("half").value)
    assert s.point("half", [0, 2]) == pytest.approx((2 + 2) / (4 + 6))


def test_without_an_effect_nothing_is_defined():
    s = shares(VALUES | {NONE: VALUES[ALL]})
    assert not s.defined and s.f("half").value is None and s.point("half") is None
    assert s.combined(["half"], [1.0]).value is None


def test_one_cluster_has_no_interval():
    assert shares(clusters="aaaa").f("half").ci is None


def test_the_mean_is_in_units_of_the_metric():
    assert shares().mean(ALL).value == pytest.approx(5.0)
