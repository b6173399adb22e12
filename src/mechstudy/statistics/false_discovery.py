"""Control of the false discovery rate over many tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that control the false discovery rate; None stays None and does not count.

    Benjamini & Hochberg 1995. `scipy.stats.false_discovery_control` multiplies by m / i where this multiplies by m and
    divides by i: its values differ in the last bit.
    """
    present = [i for i, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[i] for i in present], dtype=np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    adjusted = np.empty_like(p)
    ranks = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum.accumulate(np.minimum(p[order] * len(p) / ranks, 1.0))
    result: list[float | None] = [None] * len(p_values)
    for i, value in zip(present, adjusted.tolist(), strict=True):
        result[i] = value
    return result
