"""Scores against a known set: areas and precision that can be counted by hand."""

import numpy as np
import pytest

from mechstudy.statistics.retrieval import auroc, f1_at_true_size, precision_at


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores, members = [4.0, 3.0, 2.0, 1.0], [True, False, True, False]
    assert auroc(scores, members) == 3 / 4  # of 2 x 2 pairs, only (2.0, 3.0) is in the wrong order
    assert auroc(scores, [True, True, False, False]) == 1
    assert auroc(scores, [False, False, True, True]) == 0


def test_equal_scores_count_half():
    assert auroc([1.0, 1.0, 1.0], [True, False, False]) == 0.5
    assert auroc([2.0, 1.0, 1.0], [False, True, False]) == 0.25


@pytest.mark.parametrize("members", [[True, True], [False, False]])
def test_auroc_needs_members_and_others(members):
    assert auroc([1.0, 2.0], members) is None


def test_auroc_of_random_scores_is_a_half():
    rng = np.random.default_rng(0)
    assert auroc(rng.normal(size=20_000), rng.random(20_000) < 0.1) == pytest.approx(0.5, abs=0.02)


def test_precision_counts_members_among_the_highest():
    scores, members = [5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False]
    assert [precision_at(k, scores, members) for k in (1, 2, 3)] == [1, 1 / 2, 2 / 3]
    assert precision_at(9, scores, members) == 3 / 5
    assert f1_at_true_size(scores, members) == 2 / 3


def test_precision_of_ties_is_that_of_a_random_order():
    assert precision_at(2, [2.0, 1.0, 1.0, 1.0], [False, True, False, False]) == pytest.approx(1 / 6)
    assert f1_at_true_size([0.0] * 10, [True] * 2 + [False] * 8) == pytest.approx(0.2)


def test_nothing_to_find_has_no_score():
    assert f1_at_true_size([1.0, 2.0], [False, False]) is None
    assert precision_at(1, [], []) is None
