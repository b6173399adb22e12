"""Tests of equivalence and of superfluous parts."""

import numpy as np
import pytest

from mechstudy.verdict.hypotheses import equivalence, part_tests

CLUSTERS = [f"c{i}" for i in range(16)]


def test_a_circuit_that_is_the_model_is_equivalent():
    same = equivalence(np.arange(16.0), np.arange(16.0), CLUSTERS)
    assert (same.above, same.p, same.n_clusters) == (0.5, 1.0, 16)
    assert same.ci[0] < 0.5 < same.ci[1]


def test_a_circuit_that_is_always_below_is_not_however_little_it_misses():
    model = np.linspace(1, 2, 16)
    below = equivalence(model - 1e-6, model, CLUSTERS)
    assert below.above == 0 and below.p == pytest.approx(2 * 0.6**16)
    above = equivalence(model + 1e-6, model, CLUSTERS)
    assert above.above == 1 and above.p == pytest.approx(below.p)


def test_prompts_of_one_cluster_count_once():
    model, clusters = np.zeros(16), [f"c{i // 4}" for i in range(16)]
    assert equivalence(np.ones(16), model, clusters).n_clusters == 4
    assert equivalence(np.ones(16), model, clusters).p == pytest.approx(2 * 0.6**4)


@pytest.mark.parametrize("chance", [0.4, 0.5, 0.6])
def test_equivalent_circuits_are_rejected_no_more_often_than_said(chance):
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((2000, 40)) < chance, 1.0, -1.0)
    clusters = [f"c{i}" for i in range(40)]
    rejected = np.mean([equivalence(row, np.zeros(40), clusters).p <= 0.05 for row in signs])
    assert rejected <= 0.05


def test_a_part_that_changes_nothing_is_superfluous_and_many_are_corrected_for():
    rng = np.random.default_rng(1)
    kept = rng.normal(2, 0.3, 16)
    noise = [kept + rng.normal(0, 0.1, 16) for _ in range(7)]
    p, q = part_tests(kept, [kept - 1 + rng.normal(0, 0.1, 16), kept, *noise], CLUSTERS, seed=0)
    assert p[0] < 0.001 and q[0] < 0.01 and p[1] == q[1] == 1
    assert all(a <= b for a, b in zip(p, q, strict=True))
    assert min(q[1:]) > 0.05
