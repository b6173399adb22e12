"""Finding active entries on a CPU: what is large, or between bounds; see `reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from mechstudy.dictionaries.kernels.numba_tools import Array, bits_of, number, run, values_of

_STRIPES = 16  # features of a group; groups' maxima are looked at before features


@njit(cache=True)
def _bound_for(values: Array, n: int, least: int, most: int) -> Any:
    """A number that at least ``least`` and, where ties allow, at most ``most`` of the first n integers reach.

    By bisection: a few passes that vectorise. With least = most it is the least-th largest.
    """
    low = high = np.int64(values[0])
    for i in range(1, n):
        low, high = min(low, np.int64(values[i])), max(high, np.int64(values[i]))
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        bound, count = values.dtype.type(middle), 0
        for i in range(n):
            count += values[i] >= bound
        if count >= least:
            low = middle
            if count <= most:
                break
        else:
            high = middle - 1
    return low


@njit(cache=True)
def _group_maxima(row: Array, best: Array) -> None:
    """best[g] = the largest of row[g], row[g + G], row[g + 2G], ...: groups are strided, so this vectorises."""
    n_groups = len(best)
    for g in range(n_groups):
        best[g] = row[g]
    for first in range(n_groups, len(row), n_groups):
        stripe = row[first : first + n_groups]
        for g in range(len(stripe)):
            best[g] = max(best[g], stripe[g])


@njit(parallel=True, cache=True)
def _top_k(rows: Array, k: int, n_groups: int, largest: int, indices: Array, values: Array) -> None:
    n_features = rows.shape[1]
    for n in prange(len(rows)):
        row = rows[n]
        best = np.empty(n_groups, rows.dtype)
        _group_maxima(row, best)
        # k groups hold a feature of at least this, so the k largest features are at least this too.
        bound = rows.dtype.type(_bound_for(best, n_groups, k, k + k // 2))
        if bound < 0:  # fewer than k positive: negative floats do not sort like their bits
            keys = row ^ ((row >> 63) & largest)
            chosen = np.argsort(keys)[n_features - k :]
            for i in range(k):
                indices[n, i], values[n, i] = chosen[i], row[chosen[i]]
            continue
        places, found, count = np.empty(n_features, np.int64), np.empty(n_features, rows.dtype), 0
        for g in range(n_groups):
            if best[g] >= bound:
                for f in range(g, n_features, n_groups):
                    places[count], found[count] = f, row[f]
                    count += row[f] >= bound
        cut = rows.dtype.type(_bound_for(found, count, k, k))
        ties = k
        for i in range(count):
            ties -= found[i] > cut
        taken = 0
        for i in range(count):
            equal = found[i] == cut
            if found[i] > cut or (equal and ties > 0):
                indices[n, taken], values[n, taken] = places[i], found[i]
                taken += 1
                ties -= equal


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.top_k`."""
    n_rows, n_features = pre_NF.shape
    indices = torch.empty(n_rows, k, dtype=torch.int64)
    n_groups = min(n_features, max(2 * k, -(-n_features // _STRIPES)))
    rows = bits_of(pre_NF)
    values = np.empty((n_rows, k), rows.dtype)
    run(_top_k, rows, k, n_groups, np.iinfo(rows.dtype).max, indices.numpy(), values)
    return torch.from_numpy(values).view(pre_NF.dtype), indices


def positive_top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.positive_top_k`."""
    values, indices = top_k(pre_NF, k)
    offsets = torch.arange(0, values.numel() + 1, k)
    return offsets, indices.reshape(-1), values.reshape(-1).clamp_min(0.0)


@njit(parallel=True, cache=True)
def _count_from(rows: Array, bound: int, counts: Array) -> None:
    for n in prange(len(rows)):
        row, count = rows[n], 0
        for f in range(len(row)):
            count += row[f] >= bound
        counts[n] = count


@njit(parallel=True, cache=True)
def _take_from(rows: Array, bound: int, n_groups: int, offsets: Array, features: Array, found: Array) -> None:
    for n in prange(len(rows)):
        row, place = rows[n], offsets[n]
        best = np.empty(n_groups, rows.dtype)
        _group_maxima(row, best)
        for g in range(n_groups):
            if best[g] >= bound:
                for f in range(g, len(row), n_groups):
                    if row[f] >= bound:
                        features[place], found[place] = f, row[f]
                        place += 1


@njit(cache=True)
def _keep_largest(offsets: Array, features: Array, found: Array, cut: int, ties: int, kept: Array) -> None:
    """Drop what is below the cut, and all but the first ``ties`` of those at it, in place; kept [N+1]: new offsets."""
    place = 0
    for n in range(len(offsets) - 1):
        kept[n] = place
        for i in range(offsets[n], offsets[n + 1]):
            equal = found[i] == cut
            if found[i] > cut or (equal and ties > 0):
                features[place], found[place] = features[i], found[i]
                place += 1
                ties -= equal
    kept[len(offsets) - 1] = place


def batch_top_k(pre_NF: Tensor, wanted: int, guess: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.batch_top_k`."""
    rows = bits_of(pre_NF)
    n_rows, n_features = rows.shape
    n_groups = -(-n_features // _STRIPES)
    counts = np.empty(n_rows, np.int64)
    first = int(bits_of(torch.tensor([0.8 * (guess or 0.0)], dtype=pre_NF.dtype))[0])
    for bound in (max(1, first), 1):
        bound = rows.dtype.type(bound)
        run(_count_from, rows, bound, counts)
        total = int(counts.sum())
        if total >= wanted or bound == 1:
            break
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    features, found = np.empty(total, np.int64), np.empty(total, rows.dtype)
    run(_take_from, rows, bound, n_groups, offsets, features, found)
    if total > wanted:
        cut = rows.dtype.type(_bound_for(found, total, wanted, wanted))
        kept = np.empty_like(offsets)
        _keep_largest(offsets, features, found, cut, wanted - int(np.count_nonzero(found > cut)), kept)
        offsets, features, found = kept, features[:wanted], found[:wanted]
    return torch.from_numpy(offsets), torch.from_numpy(features), torch.from_numpy(found).view(pre_NF.dtype)


@njit(cache=True)
def _hits(row: Array, low: Array, high: Array, hits: Array) -> None:
    """hits[g]: features of the group between their bounds. Integers as wide as the floats: so it vectorises."""
    n_groups = len(hits)
    hits[:] = 0
    for first in range(0, len(row), n_groups):
        width = min(n_groups, len(row) - first)
        stripe, least, most = row[first : first + width], low[first : first + width], high[first : first + width]
        for g in range(width):
            x = number(stripe[g])
            hits[g] += np.int32(x > least[g]) & np.int32(x < most[g])


@njit(parallel=True, cache=True)
def _count_between(rows: Array, low: Array, high: Array, n_groups: int, counts: Array) -> None:
    for n in prange(len(rows)):
        hits = np.empty(n_groups, np.int32)
        _hits(rows[n], low, high, hits)
        counts[n] = hits.sum()


@njit(parallel=True, cache=True)
def _take_between(
    rows: Array, low: Array, high: Array, n_groups: int, offsets: Array, features: Array, values: Array
) -> None:
    for n in prange(len(rows)):
        row, place = rows[n], offsets[n]
        hits = np.empty(n_groups, np.int32)
        _hits(row, low, high, hits)
        for g in range(n_groups):
            f = g
            for _ in range(hits[g]):
                x = number(row[f])
                while not (x > low[f] and x < high[f]):
                    f += n_groups
                    x = number(row[f])
                features[place], values[place] = f, x
                place += 1
                f += n_groups


def between(pre_NF: Tensor, low_F: Tensor, high_F: Tensor, at_most: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.between`."""
    rows = values_of(pre_NF)
    n_rows, n_features = rows.shape
    low, high = low_F.contiguous().numpy(), high_F.contiguous().numpy()
    counts = np.empty(n_rows, np.int64)
    n_groups = -(-n_features // _STRIPES)
    run(_count_between, rows, low, high, n_groups, counts)
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    total = int(offsets[-1])
    if total > at_most:
        return None
    features, values = np.empty(total, np.int64), np.empty(total, low.dtype)
    run(_take_between, rows, low, high, n_groups, offsets, features, values)
    return torch.from_numpy(offsets), torch.from_numpy(features), torch.from_numpy(values)
