"""Means and ratios of means with cluster bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mechstudy.statistics.clusters import ALL_EQUAL, BLOCK, ONE_GROUP, Array, cluster_sums

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

    Each end is the farther one of two intervals. The percentiles of a cluster bootstrap (Davison & Hinkley 1997, 3.8),
    widened for few clusters (Hesterberg 2015, "expanded percentile"): the plain ones of ten clusters cover 90% instead
    of 95%. And Student's t of the jackknife, transformed for skewness (Hall 1992): of few skewed clusters, percentiles
    alone cover 92%.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if ratio(x, w) is None:
        return Estimate(None, None, len(x), len(set(clusters)))
    return bootstrap_of_sums(
        lambda sums: sums[0] / sums[1], [x, w], clusters, rng, n_resamples=n_resamples, level=level
    )


def bootstrap_of_sums(
    statistic: Callable[[Array], Array],
    columns: Sequence[ArrayLike],
    clusters: Sequence[str],
    rng: np.random.Generator,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """A function of sums over rows with a confidence interval, as `cluster_bootstrap` has it.

    Args:
        statistic: from sums [columns, resamples] to its value in each resample; not finite where it is undefined.
        columns: numbers of the same rows.
        clusters: of the rows.
        rng: draws clusters.
        n_resamples: how often.
        level: of the interval.
    """
    sums = [cluster_sums(np.asarray(column, dtype=np.float64), clusters) for column in columns]
    n_rows, n = len(clusters), len(sums[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.array([[column.sum()] for column in sums]))[0])
        if not np.isfinite(value):
            return Estimate(None, None, n_rows, n)
        if n < 2:
            return Estimate(value, None, n_rows, n, ONE_GROUP)
        values = statistic(_resampled(sums, rng, n_resamples))
        without_one = statistic(np.array([column.sum() - column for column in sums]))
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(value, None, n_rows, n)
    if values.max() - values.min() <= _ROUNDING * np.abs(values).max():
        return Estimate(value, None, n_rows, n, ALL_EQUAL)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    if np.isfinite(without_one).all():
        t_low, t_high = skewed_t_interval(value, (n - 1) * (without_one.mean() - without_one), level)
        low, high = min(low, t_low), max(high, t_high)
    return Estimate(value, (float(low), float(high)), n_rows, n)


def skewed_t_interval(value: float, influence: Array, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean, or of what is nearly one, transformed for skewness.

    Args:
        value: the estimate.
        influence: [clusters], what each adds to it, of mean 0.
        level: of the interval.

    Formula: Hall 1992 (On the removal of skewness by transformation), the cubic and its inverse; without skewness it is
    Student's interval.
    """
    n = len(influence)
    error = influence.std(ddof=1) / np.sqrt(n)
    skewness = (influence**3).mean() / influence.std() ** 3
    ends = stats.t.ppf([(1 + level) / 2, (1 - level) / 2], n - 1)
    if abs(skewness) > _ROUNDING**0.5:
        inner = 1 + skewness * (ends / np.sqrt(n) - skewness / (6 * n))
        ends = 3 * np.sqrt(n) / skewness * (np.cbrt(inner) - 1)
    low, high = value - error * ends
    return float(low), float(high)


def _resampled(columns: Sequence[Array], rng: np.random.Generator, n_resamples: int) -> Array:
    """Sums of each column over clusters drawn with replacement, [columns, resamples]."""
    n = len(columns[0])
    sums = np.empty((len(columns), n_resamples))
    step = max(1, BLOCK // n)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(0, n, (rows, n))
        for row, column in zip(sums, columns, strict=True):
            row[start : start + rows] = column[drawn].sum(1)
    return sums


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
    if estimate.ci is not None:
        return replace(estimate, ci=(max(0.0, estimate.ci[0]), min(1.0, estimate.ci[1])))
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
