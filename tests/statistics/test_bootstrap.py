"""Cluster bootstrap: against numpy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from mechstudy.statistics import bootstrap_of_sums, cluster_bootstrap, cluster_share, ratio, wilson
from mechstudy.statistics.bootstrap import skewed_t_interval
from mechstudy.statistics.clusters import ALL_EQUAL, ONE_GROUP


def rng(seed=0):
    return np.random.default_rng(seed)


def test_each_end_is_the_farther_one_of_bootstrap_and_skewed_t():
    x = rng(1).normal(size=30)
    names = [f"row {i}" for i in range(30)]
    estimate = cluster_bootstrap(x, names, rng(7), n_resamples=500, level=0.9)
    means = x[rng(7).integers(0, 30, (500, 30))].mean(1)
    tail = stats.norm.cdf(np.sqrt(30 / 29) * stats.t.ppf(0.05, 29))
    assert estimate.value == pytest.approx(x.mean())
    both = np.array([np.quantile(means, [tail, 1 - tail]), skewed_t_interval(x.mean(), x - x.mean(), 0.9)])
    assert estimate.ci == pytest.approx((both[:, 0].min(), both[:, 1].max()))
    assert (estimate.n, estimate.n_clusters) == (30, 30)


def test_without_skewness_the_t_interval_is_students():
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) + 3
    student = stats.t.interval(0.9, 4, loc=3, scale=stats.sem(x))
    assert skewed_t_interval(3.0, x - 3, 0.9) == pytest.approx(student)


def test_halls_cubic_of_a_skewed_interval_is_students():
    x = rng(3).exponential(size=12)
    n, skewness, error = 12, stats.skew(x), stats.sem(x)
    t = (x.mean() - np.array(skewed_t_interval(x.mean(), x - x.mean()))) / error / np.sqrt(n)
    cubic = np.sqrt(n) * (t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * n))
    assert cubic == pytest.approx(stats.t.ppf([0.975, 0.025], n - 1))
    assert (x.mean() - t[1] * np.sqrt(n) * error) - x.mean() > t[0] * np.sqrt(n) * error, "farther on the long side"


def test_rows_that_repeat_their_cluster_do_not_narrow_the_interval():
    x = rng(2).normal(size=20)
    names = [str(i) for i in range(20)]
    once = cluster_bootstrap(x, names, rng(3))
    tenfold = cluster_bootstrap(np.tile(x, 10), names * 10, rng(3))
    assert tenfold.ci == pytest.approx(once.ci)
    naive = cluster_bootstrap(np.tile(x, 10), [str(i) for i in range(200)], rng(3))
    assert naive.ci[1] - naive.ci[0] < 0.5 * (once.ci[1] - once.ci[0])


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("n_clusters", [8, 30])
def test_95_percent_intervals_of_clustered_data_cover_about_95_percent(n_clusters, skewed):
    g, hits, trials = rng(11), 0, 400
    sizes = g.integers(1, 6, n_clusters)
    names = [str(c) for c in np.repeat(np.arange(n_clusters), sizes)]
    for _ in range(trials):
        of_clusters = g.exponential(size=n_clusters) - 1 if skewed else g.normal(size=n_clusters)
        x = 1.0 + np.repeat(of_clusters, sizes) + 0.5 * g.normal(size=sizes.sum())
        low, high = cluster_bootstrap(x, names, g, n_resamples=400).ci
        hits += low <= 1.0 <= high
    assert 0.91 <= hits / trials <= 0.985


def test_a_ratio_whose_denominator_is_about_zero_is_refused():
    assert ratio([1.0, 2.0], [2.0, 4.0]) == 0.5
    assert ratio([1.0, 2.0], [3.0, -3.0]) is None
    assert ratio([1.0], [0.0]) is None and ratio([], []) is None
    assert cluster_bootstrap([1.0, 1.0], ["a", "b"], rng(), weights=[1.0, -1.0]).ci is None


def test_a_ratio_of_means_lies_within_its_interval():
    g = rng(4)
    gap = g.normal(3, 0.5, 40)
    estimate = cluster_bootstrap(0.25 * gap + g.normal(0, 0.1, 40), [str(i // 2) for i in range(40)], g, weights=gap)
    assert (
        estimate.ci[0] < 0.25 < estimate.ci[1] and estimate.ci[1] - estimate.ci[0] < 0.06 and estimate.n_clusters == 20
    )


def test_one_cluster_has_a_mean_and_no_interval():
    estimate = cluster_bootstrap([1.0, 3.0], ["a", "a"], rng())
    assert (estimate.value, estimate.ci, estimate.n, estimate.n_clusters) == (2.0, None, 2, 1)
    assert estimate.missing == ONE_GROUP and cluster_share([1, 1], ["a", "a"], rng()).missing == ONE_GROUP
    assert cluster_bootstrap([], [], rng()).value is None


@pytest.mark.parametrize("n", [2, 5, 24, 200])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_at_the_end_has_an_interval_with_width(n, share):
    names = [str(i) for i in range(n)]
    estimate = cluster_share([share] * n, names, rng())
    low, high = estimate.ci
    far = n / (n + stats.norm.isf(0.025) ** 2)  # Wilson's, by hand
    assert (low, high) == pytest.approx((far, 1.0) if share else (0.0, 1 - far))
    assert estimate.missing is None
    tenfold = cluster_share([share] * 10 * n, names * 10, rng())
    assert tenfold.ci == pytest.approx(estimate.ci)  # ten prompts of one group count as one trial


def test_wilson_intervals_equal_scipys_and_contain_their_share():
    for right, n, level in ((24, 24, 0.95), (0, 7, 0.9), (13, 24, 0.99), (1, 2, 0.5)):
        expected = stats.binomtest(right, n).proportion_ci(level, method="wilson")
        assert wilson(right / n, n, level) == pytest.approx((expected.low, expected.high))


def test_a_share_inside_keeps_its_bootstrap_interval():
    correct, names = [1.0] * 20 + [0.0] * 4, [str(i) for i in range(24)]
    assert cluster_share(correct, names, rng(5)) == cluster_bootstrap(correct, names, rng(5))
    low, high = cluster_bootstrap([1.0] * 23 + [0.0], names, rng(5)).ci
    assert high > 1 and cluster_share([1.0] * 23 + [0.0], names, rng(5)).ci == (low, 1.0), "no share is above 1"


@pytest.mark.parametrize("values", [[0.0] * 12, [-0.1] * 12, [0.3, -0.3] * 6])
def test_effects_equal_in_every_group_are_said_to_be_and_have_no_interval(values):
    groups = [str(i // 2) for i in range(12)]  # mirrored pairs cancel within each group
    estimate = cluster_bootstrap(values, groups, rng())
    assert (estimate.ci, estimate.missing) == (None, ALL_EQUAL)
    assert estimate.missing_fields("ci95") == {"ci95_missing": ALL_EQUAL}


def test_effects_that_differ_in_one_group_have_an_interval():
    estimate = cluster_bootstrap([0.0] * 11 + [1e-6], [str(i) for i in range(12)], rng())
    assert estimate.ci[0] < estimate.ci[1] and estimate.missing_fields("ci95") == {}


def test_a_statistic_of_sums_has_the_interval_of_the_same_ratio():
    top, bottom, clusters = rng().normal(2, 1, 40), rng(1).uniform(1, 2, 40), [str(i // 4) for i in range(40)]
    expected = cluster_bootstrap(top, clusters, rng(1), weights=bottom, n_resamples=300)
    of_sums = bootstrap_of_sums(lambda sums: sums[0] / sums[1], [top, bottom], clusters, rng(1), n_resamples=300)
    assert of_sums == expected


def test_a_statistic_that_is_not_finite_is_undefined():
    undefined = bootstrap_of_sums(lambda sums: sums[0] / 0, [np.ones(4)], list("abcd"), rng(0))
    assert undefined.value is None and undefined.ci is None and undefined.n_clusters == 4
    alone = bootstrap_of_sums(lambda sums: sums[0], [np.ones(4)], list("aaaa"), rng(0))
    assert alone.value == 4 and alone.ci is None and alone.missing == ONE_GROUP
