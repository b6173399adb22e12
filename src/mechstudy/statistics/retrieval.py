"""How well scores find the members of a known set: areas under curves, F1, precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mechstudy.statistics.clusters import Array


def auroc(scores: ArrayLike, members: ArrayLike) -> float | None:
    """The chance that a member scores above a non-member, equal scores counting half; None without either kind.

    The area under the receiver operating characteristic, by the rank sum (Mann and Whitney 1947).
    """
    of_item, is_member = _columns(scores, members)
    n, others = int(is_member.sum()), int((~is_member).sum())
    if not n or not others:
        return None
    ranks = stats.rankdata(of_item)
    return float((ranks[is_member].sum() - n * (n + 1) / 2) / (n * others))


def precision_at(k: int, scores: ArrayLike, members: ArrayLike) -> float | None:
    """The share of members among the ``k`` highest scores; None for no items or no ``k``.

    Items that tie for the last places count by their mean: the expected precision of a random order of equals.
    """
    of_item, is_member = _columns(scores, members)
    k = min(k, len(of_item))
    if k < 1:
        return None
    last = np.sort(of_item)[-k]
    above, tied = of_item > last, of_item == last
    free = k - int(above.sum())
    return float((is_member[above].sum() + free * is_member[tied].mean()) / k)


def f1_at_true_size(scores: ArrayLike, members: ArrayLike) -> float | None:
    """F1 of the highest scores, as many as there are members: precision and recall are then equal. None without one."""
    return precision_at(int(np.asarray(members, dtype=bool).sum()), scores, members)


def _columns(scores: ArrayLike, members: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    of_item, is_member = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    assert of_item.shape == is_member.shape and of_item.ndim == 1, (of_item.shape, is_member.shape)
    return of_item, is_member
