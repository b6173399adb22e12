"""Sums over active entries and the optimizer's pass on a CPU; see `reference`."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from mechstudy.dictionaries.kernels.numba_tools import FAST, Array, number, run, values_of, word
from mechstudy.dictionaries.kernels.reference import BETA1, BETA2, EPSILON


@njit(cache=True, fastmath=FAST)
def _add_rows(total: Array, first: int, last: int, numbers: Array, entries: Array, table: Array) -> None:
    """Add to total the sum of entries[j] * table[numbers[j]].

    Eight rows at a time: their loads overlap, and the total is read and written once for all of them.
    """
    width, j = len(total), first
    while j + 8 <= last:
        a, b, c, d = entries[j], entries[j + 1], entries[j + 2], entries[j + 3]
        e, f, g, h = entries[j + 4], entries[j + 5], entries[j + 6], entries[j + 7]
        ra, rb, rc, rd = table[numbers[j]], table[numbers[j + 1]], table[numbers[j + 2]], table[numbers[j + 3]]
        re, rf, rg, rh = table[numbers[j + 4]], table[numbers[j + 5]], table[numbers[j + 6]], table[numbers[j + 7]]
        for i in range(width):
            low = a * number(ra[i]) + b * number(rb[i]) + c * number(rc[i]) + d * number(rd[i])
            high = e * number(re[i]) + f * number(rf[i]) + g * number(rg[i]) + h * number(rh[i])
            total[i] += low + high
        j += 8
    while j + 2 <= last:
        a, b, ra, rb = entries[j], entries[j + 1], table[numbers[j]], table[numbers[j + 1]]
        for i in range(width):
            total[i] += a * number(ra[i]) + b * number(rb[i])
        j += 2
    if j < last:
        a, ra = entries[j], table[numbers[j]]
        for i in range(width):
            total[i] += a * number(ra[i])


@njit(cache=True, fastmath=FAST)
def _dot_rows(row: Array, first: int, last: int, numbers: Array, table: Array, products: Array) -> None:
    """products[j] = <row, table[numbers[j]]>; eight rows at a time."""
    zero, j = products.dtype.type(0), first
    while j + 8 <= last:
        ra, rb, rc, rd = table[numbers[j]], table[numbers[j + 1]], table[numbers[j + 2]], table[numbers[j + 3]]
        re, rf, rg, rh = table[numbers[j + 4]], table[numbers[j + 5]], table[numbers[j + 6]], table[numbers[j + 7]]
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for i in range(len(row)):
            x = number(row[i])
            a += x * number(ra[i])
            b += x * number(rb[i])
            c += x * number(rc[i])
            d += x * number(rd[i])
            e += x * number(re[i])
            f += x * number(rf[i])
            g += x * number(rg[i])
            h += x * number(rh[i])
        products[j], products[j + 1], products[j + 2], products[j + 3] = a, b, c, d
        products[j + 4], products[j + 5], products[j + 6], products[j + 7] = e, f, g, h
        j += 8
    while j < last:
        a, ra = zero, table[numbers[j]]
        for i in range(len(row)):
            a += number(row[i]) * number(ra[i])
        products[j] = a
        j += 1


@njit(parallel=True, cache=True)
def _sum_rows(offsets: Array, numbers: Array, entries: Array, table: Array, total: Array) -> None:
    for n in prange(len(total)):
        total[n] = 0
        _add_rows(total[n], offsets[n], offsets[n + 1], numbers, entries, table)


def sum_rows(offsets: Tensor, features: Tensor, entries: Tensor, table_FD: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.sum_rows`."""
    if out is None:
        out = torch.empty(len(offsets) - 1, table_FD.shape[1], dtype=entries.dtype)
    run(_sum_rows, offsets.numpy(), features.numpy(), entries.numpy(), values_of(table_FD), out.numpy())
    return out


@njit(parallel=True, cache=True)
def _row_products(offsets: Array, features: Array, rows: Array, table: Array, products: Array) -> None:
    for n in prange(len(rows)):
        _dot_rows(rows[n], offsets[n], offsets[n + 1], features, table, products)


def row_products(offsets: Tensor, features: Tensor, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
    """See `reference.row_products`."""
    dtype = torch.float64 if table_FD.dtype == torch.float64 else torch.float32
    products = torch.empty(len(features), dtype=dtype)
    run(_row_products, offsets.numpy(), features.numpy(), values_of(rows_ND), values_of(table_FD), products.numpy())
    return products


@njit(parallel=True, cache=True)
def _reconstruct(
    offsets: Array, features: Array, values: Array, table: Array, base: Array, error: Array, products: Array
) -> None:
    for n in prange(len(error)):
        first, last = offsets[n], offsets[n + 1]
        error[n] = base[n]
        _add_rows(error[n], first, last, features, values, table)
        _dot_rows(error[n], first, last, features, table, products)  # the rows of the table are still in the cache


def reconstruct(
    offsets: Tensor, features: Tensor, values: Tensor, table_FD: Tensor, base_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.reconstruct`."""
    error, products = torch.empty_like(base_ND), torch.empty_like(values)
    run(
        _reconstruct, offsets.numpy(), features.numpy(), values.numpy(), values_of(table_FD), base_ND.numpy(),
        error.numpy(), products.numpy(),
    )  # fmt: skip
    return error, products


@njit(cache=True)
def _by_feature(offsets: Array, features: Array, order: Array, rows: Array, ends: Array) -> None:
    for j in range(len(features)):
        ends[features[j] + 1] += 1
    for f in range(1, len(ends)):
        ends[f] += ends[f - 1]
    place = ends.copy()
    for n in range(len(offsets) - 1):
        for j in range(offsets[n], offsets[n + 1]):
            at = place[features[j]]
            order[at], rows[at] = j, n
            place[features[j]] = at + 1


def by_feature(offsets: Tensor, features: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.by_feature`."""
    order, rows = torch.empty_like(features), torch.empty_like(features)
    ends = torch.zeros(n_features + 1, dtype=torch.int64)
    _by_feature(offsets.numpy(), features.numpy(), order.numpy(), rows.numpy(), ends.numpy())
    return order, rows, ends


@njit(cache=True)
def _sum_entries(offsets: Array, entries: Array, total: Array) -> None:
    for f in range(len(total)):
        s = total.dtype.type(0)
        for j in range(offsets[f], offsets[f + 1]):
            s += entries[j]
        total[f] = s


def sum_entries(offsets: Tensor, entries: Tensor) -> Tensor:
    """See `reference.sum_entries`."""
    total = torch.empty(len(offsets) - 1, dtype=entries.dtype)
    _sum_entries(offsets.numpy(), entries.numpy(), total.numpy())
    return total


@njit(parallel=True, cache=True, fastmath=FAST)
def _gradient_rows(
    ends: Array, rows: Array, entries: Array, table: Array, unit: Array, total: Array, squares: Array
) -> None:
    for f in prange(len(total)):
        first, last = ends[f], ends[f + 1]
        row, square = total[f], total.dtype.type(0)
        if first == last:
            squares[f] = 0
            row[:] = 0
            continue
        row[:] = 0
        _add_rows(row, first, last, rows, entries, table)
        if len(unit):
            along, direction = square, unit[f]
            for i in range(len(row)):
                along += row[i] * direction[i]
            for i in range(len(row)):
                row[i] -= along * direction[i]
        for i in range(len(row)):
            square += row[i] * row[i]
        squares[f] = square


def gradient_rows(
    ends: Tensor, rows: Tensor, entries: Tensor, table_ND: Tensor, unit_FD: Tensor | None, out: Tensor
) -> Tensor:
    """See `reference.gradient_rows`."""
    squares = torch.empty(len(out), dtype=out.dtype)
    unit = np.empty((0, 0), out.numpy().dtype) if unit_FD is None else unit_FD.numpy()
    run(
        _gradient_rows, ends.numpy(), rows.numpy(), entries.numpy(), values_of(table_ND), unit, out.numpy(),
        squares.numpy(),
    )  # fmt: skip
    return squares


@njit(parallel=True, cache=True, fastmath=FAST)
def _adam(
    weight: Array, gradient: Array, mean: Array, square: Array, numbers: Array, unit: bool, half: Array, squares: Array
) -> None:
    rate, beta1, rest1, beta2, rest2, shrink, epsilon, factor = numbers
    one = numbers.dtype.type(1)
    for f in prange(len(weight)):
        w, g, m, v = weight[f], gradient[f], mean[f], square[f]
        if len(squares) and squares[f] == 0:  # of F features few are active in a small batch
            for i in range(len(w)):
                a, b = beta1 * m[i], beta2 * v[i]
                m[i], v[i] = a, b
                w[i] -= rate * a / (np.sqrt(b) * shrink + epsilon)
        else:
            for i in range(len(w)):
                x = g[i] * factor
                a = beta1 * m[i] + rest1 * x
                b = beta2 * v[i] + rest2 * x * x
                m[i], v[i] = a, b
                w[i] -= rate * a / (np.sqrt(b) * shrink + epsilon)
        if unit:
            length = w[0] * 0
            for i in range(len(w)):
                length += w[i] * w[i]
            scale = one / max(np.sqrt(length), numbers.dtype.type(1e-12))
            for i in range(len(w)):
                w[i] *= scale
        if len(half):
            h = half[f]
            for i in range(len(w)):  # to nearest, ties to even
                bits = word(w[i])
                h[i] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


def adam(
    weight_FD: Tensor, gradient_FD: Tensor, mean_FD: Tensor, square_FD: Tensor, *, lr: float, step: int, factor: float,
    unit: bool, half: Tensor | None, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """See `reference.adam`."""
    w = weight_FD.numpy()
    # 1 - beta is taken in double: of a float32 .999 it would be off by 5e-5 of itself.
    numbers = [lr / (1.0 - BETA1**step), BETA1, 1.0 - BETA1, BETA2, 1.0 - BETA2]
    numbers += [1.0 / math.sqrt(1.0 - BETA2**step), EPSILON, factor]
    narrow = np.empty((0, 0), np.uint16) if half is None else values_of(half)
    tensors = (gradient_FD.numpy(), mean_FD.numpy(), square_FD.numpy())
    known = np.empty(0, w.dtype) if squares is None else squares.numpy()
    run(_adam, w, *tensors, np.array(numbers, w.dtype), unit, narrow, known)
