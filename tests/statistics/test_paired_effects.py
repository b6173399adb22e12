"""Statistics of interventions, against scipy and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechstudy.statistics.paired_effects import (
    benjamini_hochberg,
    cluster_bootstrap,
    cluster_sums,
    ratio,
    sign_flip_p,
    slopes,
    spearman,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_equals_scipys(p):
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist(), abs=1e-15)


def test_a_missing_p_value_stays_missing_and_does_not_count():
    assert benjamini_hochberg([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert benjamini_hochberg([None]) == [None] and benjamini_hochberg([]) == []


def test_every_row_its_own_cluster_is_the_ordinary_bootstrap():
    x = rng(1).normal(size=30)
    names = [f"row {i}" for i in range(30)]
    found = cluster_bootstrap(x, names, rng(7), n_resamples=500, level=0.9)
    means = x[rng(7).integers(0, 30, (500, 30))].mean(1)
    tail = stats.norm.cdf(np.sqrt(30 / 29) * stats.t.ppf(0.05, 29))
    assert found.value == pytest.approx(x.mean())
    assert found.ci == pytest.approx(tuple(np.quantile(means, [tail, 1 - tail])))
    assert (found.n, found.n_clusters) == (30, 30)


def test_rows_that_repeat_their_cluster_do_not_narrow_the_interval():
    x = rng(2).normal(size=20)
    names = [str(i) for i in range(20)]
    once = cluster_bootstrap(x, names, rng(3))
    tenfold = cluster_bootstrap(np.tile(x, 10), names * 10, rng(3))
    assert tenfold.ci == pytest.approx(once.ci)
    naive = cluster_bootstrap(np.tile(x, 10), [str(i) for i in range(200)], rng(3))
    assert naive.ci[1] - naive.ci[0] < 0.5 * (once.ci[1] - once.ci[0])


@pytest.mark.parametrize("n_clusters", [8, 30])
def test_95_percent_intervals_of_clustered_data_cover_about_95_percent(n_clusters):
    g, hits, trials = rng(11), 0, 400
    sizes = g.integers(1, 6, n_clusters)
    names = [str(c) for c in np.repeat(np.arange(n_clusters), sizes)]
    for _ in range(trials):
        x = 1.0 + np.repeat(g.normal(size=n_clusters), sizes) + 0.5 * g.normal(size=sizes.sum())
        low, high = cluster_bootstrap(x, names, g, n_resamples=400).ci
        hits += low <= 1.0 <= high
    assert 0.91 <= hits / trials <= 0.985


def test_p_values_of_no_effect_are_uniform_and_of_a_large_effect_small():
    g = rng(5)
    names = [str(i // 3) for i in range(30)]
    null = [sign_flip_p(np.repeat(g.normal(size=10), 3), names, g, n_permutations=199) for _ in range(300)]
    assert 0.02 <= np.mean(np.array(null) <= 0.05) <= 0.09 and 0.4 < np.mean(null) < 0.6
    assert sign_flip_p(np.full(30, 2.0), names, g, n_permutations=999) == pytest.approx(2 / 2**10, abs=4e-3)


def test_p_is_never_zero_counts_the_observed_and_is_one_where_nothing_moved():
    many = [str(i) for i in range(60)]
    assert sign_flip_p(np.ones(60), many, rng(), n_permutations=99) == 1 / 100
    assert sign_flip_p(np.zeros(60), many, rng()) == 1.0
    assert sign_flip_p([], [], rng()) is None
    assert sign_flip_p([3.0, 4.0], ["one", "one"], rng()) == 1.0  # a single cluster says nothing about chance


def test_the_sign_of_an_effect_does_not_change_its_p():
    x, names = rng(9).normal(0.4, 1, 25), [str(i) for i in range(25)]
    assert sign_flip_p(x, names, rng(1)) == sign_flip_p(-x, names, rng(1))


def test_a_ratio_whose_denominator_is_about_zero_is_refused():
    assert ratio([1.0, 2.0], [2.0, 4.0]) == 0.5
    assert ratio([1.0, 2.0], [3.0, -3.0]) is None
    assert ratio([1.0], [0.0]) is None and ratio([], []) is None
    assert cluster_bootstrap([1.0, 1.0], ["a", "b"], rng(), weights=[1.0, -1.0]).ci is None


def test_a_ratio_of_means_lies_within_its_interval():
    g = rng(4)
    gap = g.normal(3, 0.5, 40)
    found = cluster_bootstrap(0.25 * gap + g.normal(0, 0.1, 40), [str(i // 2) for i in range(40)], g, weights=gap)
    assert found.ci[0] < 0.25 < found.ci[1] and found.ci[1] - found.ci[0] < 0.06 and found.n_clusters == 20


def test_one_cluster_has_a_mean_and_no_interval():
    found = cluster_bootstrap([1.0, 3.0], ["a", "a"], rng())
    assert (found.value, found.ci, found.n, found.n_clusters) == (2.0, None, 2, 1)
    assert cluster_bootstrap([], [], rng()).value is None


def test_cluster_sums_keep_the_order_of_first_occurrence():
    assert cluster_sums(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"]).tolist() == [5.0, 2.0]


def test_the_slope_of_a_line_is_its_slope():
    assert slopes([-2, 0, 1], [[-5.0, 1.0, 4.0], [2.0, 2.0, 2.0]]).tolist() == pytest.approx([3.0, 0.0])


def test_spearman_needs_three_points_that_differ():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2], [1, 2]) is None and spearman([1, 2, 3], [5, 5, 5]) is None
