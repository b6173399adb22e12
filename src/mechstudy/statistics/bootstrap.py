"""Means and ratios of means with cluster bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mechstudy.statistics.clusters import ALL_EQUAL, BLOCK, ONE_GROUP, cluster_sums

_ZERO_SHARE = 0.05  # a mean below this share of the mean size is about 0
_ROUNDING = 1e-12  # of the value: resampled means closer than this are equal


@dataclass(frozen=True)
class Estimate:
    """A mean, or a ratio of means, with its interval; None where undefined.

    ``missing`` says why a value has no interval: the data are of one cluster (`ONE_GROUP`), or every cluster has the
    same mean (`ALL_EQUAL`), so that resampling shows no spread.
    """

    value: float | None
    ci: tuple[float, float] | None
    n: int
    n_clusters: int
    missing: str | None = None

    def missing_fields(self, interval: str) -> dict[str, str]:
        """``{"<interval>_missing": ALL_EQUAL}`` for a record whose interval is null for that reason; else empty.

        A null interval of a value that has no such field is of one group.
        """
        return {f"{interval}_missing": ALL_EQUAL} if self.missing == ALL_EQUAL else {}


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[str],
    rng: np.random.Generator,
    *,
    weights: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of ``values`` (or sum(values) / sum(weights)) with a confidence interval.

    Whole clusters are drawn with replacement. With every row its own cluster this is the ordinary bootstrap.
    A ratio's value is None where its denominator is about 0. Sums are float64. Clusters that all have the same mean
    have no interval: its width would be zero, as if the value were certain.

    Methods: cluster bootstrap (Davison & Hinkley 1997, 3.8); its percentiles are widened for few clusters (Hesterberg
    2015, "expanded percentile"), because the plain percentile interval of ten clusters covers 90% instead of 95%.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    top, bottom = cluster_sums(x, clusters), cluster_sums(w, clusters)
    n = len(top)
    value = ratio(x, w)
    if value is None or n < 2:
        return Estimate(value, None, len(x), n, None if value is None else ONE_GROUP)
    means = np.empty(n_resamples)
    step = max(1, BLOCK // n)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(0, n, (rows, n))
        with np.errstate(divide="ignore", invalid="ignore"):
            means[start : start + rows] = top[drawn].sum(1) / bottom[drawn].sum(1)
    means = means[np.isfinite(means)]
    if not len(means):
        return Estimate(value, None, len(x), n)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    if means.max() - means.min() <= _ROUNDING * np.abs(means).max():
        return Estimate(value, None, len(x), n, ALL_EQUAL)
    return Estimate(value, (float(low), float(high)), len(x), n)


def cluster_share(
    correct: ArrayLike,
    clusters: Sequence[str],
    rng: np.random.Generator,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """A share of rows (each 0 or 1) with a confidence interval: `cluster_bootstrap`'s, and Wilson's at the ends.

    Where every cluster has the same share (all right, none right), resampling shows no spread. The interval is then
    Wilson's score interval with the clusters as trials: 24 of 24 is [0.86, 1].
    """
    estimate = cluster_bootstrap(correct, clusters, rng, n_resamples=n_resamples, level=level)
    if estimate.missing != ALL_EQUAL or estimate.value is None:
        return estimate
    return replace(estimate, ci=wilson(estimate.value, estimate.n_clusters, level), missing=None)


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of ``n`` independent trials."""
    z2 = stats.norm.isf((1 - level) / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> float | None:
    """Ratio of means; None where the denominator's mean is about 0 against its own size."""
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if not len(bottom) or abs(bottom.mean()) <= max(_ZERO_SHARE * np.abs(bottom).mean(), 1e-12):
        return None
    return float(top.sum() / bottom.sum())
