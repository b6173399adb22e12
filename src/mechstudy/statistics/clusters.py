"""Sums over clusters: prompts of one template and lexical item are not independent, so they are counted together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCK = 4_000_000  # resampled cells held at a time
ONE_GROUP, ALL_EQUAL = "one group", "equal in every group"  # why a mean has no interval


def cluster_sums(values: Array, clusters: Sequence[str]) -> Array:
    """Sum per cluster, clusters in the order they first occur."""
    number: dict[str, int] = {}
    index = [number.setdefault(c, len(number)) for c in clusters]
    if not index:
        return np.zeros(0)
    return np.bincount(index, weights=values, minlength=len(number)).astype(np.float64)
