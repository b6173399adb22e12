"""Means and ratios of means with cluster bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mechstudy.statistics.clusters import BLOCK, cluster_sums

_ZERO_SHARE = 0.05  # a mean below this share of the mean size is about 0


@dataclass(frozen=True)
class Estimate:
    """A mean, or a ratio of means, with its interval; None where undefined (no data, one cluster)."""

    value: float | None
    ci: tuple[float, float] | None
    n: int
    n_clusters: int


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
    A ratio's value is None where its denominator is about 0. Sums are float64.

    Methods: cluster bootstrap (Davison & Hinkley 1997, 3.8); its percentiles are widened for few clusters (Hesterberg
    2015, "expanded percentile"), because the plain percentile interval of ten clusters covers 90% instead of 95%.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    top, bottom = cluster_sums(x, clusters), cluster_sums(w, clusters)
    n = len(top)
    value = ratio(x, w)
    if value is None or n < 2:
        return Estimate(value, None, len(x), n)
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
    return Estimate(value, (float(low), float(high)), len(x), n)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> float | None:
    """Ratio of means; None where the denominator's mean is about 0 against its own size."""
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if not len(bottom) or abs(bottom.mean()) <= max(_ZERO_SHARE * np.abs(bottom).mean(), 1e-12):
        return None
    return float(top.sum() / bottom.sum())
