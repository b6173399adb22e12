"""Sums over clusters."""

import numpy as np

from mechstudy.statistics import cluster_sums


def test_cluster_sums_keep_the_order_of_first_occurrence():
    assert cluster_sums(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"]).tolist() == [5.0, 2.0]
