"""Permutation tests of paired effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mechstudy.statistics.clusters import BLOCK, cluster_sums


def smallest_p(n_clusters: int, n_permutations: int = 9999) -> float:
    """The smallest p-value that `sign_flip_p` reaches in expectation, however large the effect.

    All ``2**n_clusters`` patterns of signs are equally likely, and two of them give the observed sum's size: 0.25 with
    three clusters, 0.06 with five, 0.03 with six.
    """
    chance = 2.0 ** (1 - n_clusters) if n_clusters else 1.0
    return (1 + n_permutations * chance) / (1 + n_permutations)


def sign_flip_p(
    values: ArrayLike, clusters: Sequence[str], rng: np.random.Generator, *, n_permutations: int = 9999
) -> float | None:
    """Two-sided p-value of the hypothesis that the mean is 0.

    Each cluster's sign is flipped at random ``B = n_permutations`` times; with ``b`` sums at least as large as the
    observed one, p = (1 + b) / (1 + B).

    None without data. Never 0; 1 where every value is 0.
    """
    sums = cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    if not len(sums):
        return None
    observed = abs(sums.sum())
    limit = observed - 1e-12 * np.abs(sums).sum()
    count, step = 0, max(1, BLOCK // len(sums))
    for start in range(0, n_permutations, step):
        rows = min(step, n_permutations - start)
        signs = rng.integers(0, 2, (rows, len(sums))) * 2.0 - 1.0
        count += int((np.abs(signs @ sums) >= limit).sum())
    return (1 + count) / (1 + n_permutations)
