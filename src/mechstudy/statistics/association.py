"""Association of two quantities: least-squares slopes and rank correlation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mechstudy.statistics.clusters import Array


def slopes(alphas: ArrayLike, values: ArrayLike) -> Array:
    """Least-squares slope of each row of ``values`` [N, A] over ``alphas`` [A]."""
    a = np.asarray(alphas, dtype=np.float64)
    centred = a - a.mean()
    result: Array = np.asarray(values, dtype=np.float64) @ centred / (centred @ centred)
    return result


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation; None for fewer than three points or where one side is constant."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)
