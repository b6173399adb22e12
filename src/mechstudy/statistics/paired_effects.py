"""Paired effects with clusters: bootstrap intervals, sign-flip p-values, Benjamini-Hochberg. Numpy, float64.

Prompts made from one template and one lexical item are not independent, so they are resampled and flipped
together. Methods: cluster bootstrap (Davison & Hinkley 1997, 3.8); its percentiles widened for few clusters
(Hesterberg 2015, "expanded percentile"), because the plain percentile interval of ten clusters covers 90%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
_BLOCK = 4_000_000  # resampled cells held at a time
_ZERO_SHARE = 0.05  # a mean below this share of the mean size is about 0


@dataclass(frozen=True)
class Estimate:
    """A mean (or ratio of means) with its interval; None where it cannot be had (no data, one cluster)."""

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
    The ratio is refused (value None) where its denominator is about 0.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    top, bottom = cluster_sums(x, clusters), cluster_sums(w, clusters)
    n = len(top)
    value = ratio(x, w)
    if value is None or n < 2:
        return Estimate(value, None, len(x), n)
    means = np.empty(n_resamples)
    step = max(1, _BLOCK // n)
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


def sign_flip_p(
    values: ArrayLike, clusters: Sequence[str], rng: np.random.Generator, *, n_permutations: int = 9999
) -> float | None:
    """Two-sided p-value of "the mean is 0": each cluster's sign flipped at random, (1 + b) / (1 + B).

    None without data. Never 0; 1 where every value is 0.
    """
    sums = cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    if not len(sums):
        return None
    observed = abs(sums.sum())
    limit = observed - 1e-12 * np.abs(sums).sum()
    count, step = 0, max(1, _BLOCK // len(sums))
    for start in range(0, n_permutations, step):
        rows = min(step, n_permutations - start)
        signs = rng.integers(0, 2, (rows, len(sums))) * 2.0 - 1.0
        count += int((np.abs(signs @ sums) >= limit).sum())
    return (1 + count) / (1 + n_permutations)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that hold the false discovery rate; None stays None and does not count."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[i] for i in known], dtype=np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    adjusted = np.empty_like(p)
    ranks = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum.accumulate(np.minimum(p[order] * len(p) / ranks, 1.0))
    result: list[float | None] = [None] * len(p_values)
    for i, value in zip(known, adjusted.tolist(), strict=True):
        result[i] = value
    return result


def slopes(alphas: ArrayLike, values: ArrayLike) -> Array:
    """Least-squares slope of each row of ``values`` [N, A] over ``alphas`` [A]."""
    a = np.asarray(alphas, dtype=np.float64)
    centred = a - a.mean()
    result: Array = np.asarray(values, dtype=np.float64) @ centred / (centred @ centred)
    return result


def cluster_sums(values: Array, clusters: Sequence[str]) -> Array:
    """Sum per cluster, clusters in the order they first occur."""
    number: dict[str, int] = {}
    index = [number.setdefault(c, len(number)) for c in clusters]
    if not index:
        return np.zeros(0)
    return np.bincount(index, weights=values, minlength=len(number)).astype(np.float64)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation; None for fewer than three points or where one side is constant."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)
