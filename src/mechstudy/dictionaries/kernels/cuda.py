"""The sparse parts of a training step on CUDA, with Triton: the kernels that `kernels.reference` says in PyTorch.

Codes are rows of active entries: row n owns entries offsets[n]:offsets[n+1] (int64 [N+1]), entry j is of feature
features[j] (int64 [M]). Tables are float32 or bfloat16, sums float32. Every sum runs in an order that depends on
shapes and offsets alone, without atomics: the same input gives the same bits.

`available` says whether the kernels can run. Tensors must be contiguous and on one device; ValueError otherwise.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton's functions take pointers, numbers and constants, which have no Python types.)

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import cuda_select
from mechstudy.dictionaries.kernels.cuda_select import (
    above,
    available,
    batch_top_k,
    check,
    jit,
    launch,
    power_of_two,
    top_k,
)

tl: Any = cuda_select.tl  # type: ignore[attr-defined]  # Triton's language, or None without Triton

__all__ = [
    "above",
    "adam",
    "available",
    "batch_top_k",
    "reconstruct",
    "row_products",
    "row_squares",
    "sum_rows",
    "top_k",
]

_CHUNK = 256  # entries; a longer row is summed in such parts, so that a dense feature does not hold up everything


def _columns(width: int, most: int) -> int:
    """Columns of a tile: as many as waste less than an eighth at a row's end."""
    sizes = [size for size in (512, 256, 128, 64, 32, 16) if size <= max(16, most)]
    padded = {size: -(-width // size) * size for size in sizes}
    fitting = [size for size in sizes if 8 * padded[size] <= 9 * width]
    return fitting[0] if fitting else min(sizes, key=lambda size: padded[size])


def _warps(elements: int) -> int:
    """32 elements a thread."""
    return power_of_two(elements // 1024, 1, 8)


def _check_entries(offsets: Tensor, features: Tensor, *others: Tensor) -> None:
    check(offsets, features, dtypes=(torch.int64,))
    if any(len(t) != len(features) for t in others):
        raise ValueError(f"{len(features)} features but {[len(t) for t in others]} entries")


# ------------------------------------------------------------------------------------------------ sums


@jit
def _gathered_sum(features, entries, table, first, last, columns, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK]: the sum of entries[j] * table[features[j], columns] over first <= j < last, K rows at a time."""
    total = tl.zeros([K, BLOCK], tl.float32)
    for j in range(first, last, K):
        at = j + tl.arange(0, K)
        f = tl.load(features + at, mask=at < last, other=0)
        a = tl.load(entries + at, mask=at < last, other=0.0).to(tl.float32)
        mask = (at < last)[:, None] & (columns < width)[None, :]
        rows = tl.load(table + f[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        total += a[:, None] * rows
    return tl.sum(total, 0)


@jit
def _row_of(offsets, n_rows, entry):
    """The row that owns an entry."""
    low = tl.zeros([], tl.int64)
    high = low + n_rows
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(offsets + middle) <= entry
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@jit
def _sum_chunks(
    offsets, features, entries, table, partial, n_rows, n_entries, width,
    CHUNK: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the entries of one chunk give to rows longer than a chunk: there are at most two of those.

    partial[2c] is for the row that owns chunk c's first entry, partial[2c + 1] for one that begins later in it.
    """
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low = chunk * CHUNK
    high = tl.minimum(low + CHUNK, n_entries)
    for side in tl.static_range(2):
        row = _row_of(offsets, n_rows, low if side == 0 else high - 1)
        first = tl.load(offsets + row)
        last = tl.load(offsets + row + 1)
        wanted = last - first > CHUNK
        if side == 1:
            wanted = wanted & (first > low)
        if wanted:
            total = _gathered_sum(
                features, entries, table, tl.maximum(first, low), tl.minimum(last, high), columns, width, K, BLOCK
            )
            tl.store(partial + (2 * chunk + side) * width + columns, total, mask=columns < width)


@jit
def _sum_rows(
    offsets, features, entries, table, partial, base, out, width,
    SPLIT: tl.constexpr, BASE: tl.constexpr, CHUNK: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    if (last - first > CHUNK) & SPLIT:
        parts = tl.zeros([K, BLOCK], tl.float32)
        chunk = first // CHUNK
        for c in range(chunk, (last - 1) // CHUNK + 1, K):
            at = c + tl.arange(0, K)
            slot = 2 * at + ((at == chunk) & (first > chunk * CHUNK)).to(tl.int64)
            mask = (at <= (last - 1) // CHUNK)[:, None] & (columns < width)[None, :]
            parts += tl.load(partial + slot[:, None] * width + columns[None, :], mask=mask, other=0.0)
        total = tl.sum(parts, 0)
    else:
        total = _gathered_sum(features, entries, table, first, last, columns, width, K, BLOCK)
    if BASE:
        total += tl.load(base + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, total, mask=columns < width)


def sum_rows(
    offsets: Tensor, features: Tensor, entries: Tensor, table_FD: Tensor, base: Tensor | None = None,
    *, longest: int | None = None,
) -> Tensor:  # fmt: skip
    """[N, D]: base[n] plus the sum over row n's entries of entry x table[feature].

    With entries sorted by feature (offsets [F+1], features = their rows) this is a gradient: rows differ widely in
    length there, so those over 256 entries are summed in parts. One slice of columns is done for all rows before the
    next: a slice of the table stays in the L2 cache where the whole would not.

    Args:
        entries: [M], floating point.
        base: [N, D]; its dtype is the result's, which is float32 without it.
        longest: no row has more entries (TopK: k), if known; saves looking for long rows.

    Raises:
        ValueError: dtypes, lengths or layouts do not fit.
    """
    _check_entries(offsets, features, entries)
    check(entries, table_FD, *([] if base is None else [base]))
    n_rows, width, n_entries = len(offsets) - 1, table_FD.shape[1], len(features)
    out = torch.empty(n_rows, width, dtype=torch.float32 if base is None else base.dtype, device=table_FD.device)
    if base is not None and base.shape != out.shape:
        raise ValueError(f"base is {tuple(base.shape)}, the sum {tuple(out.shape)}")
    block = _columns(width, 512)
    tile = {"CHUNK": _CHUNK, "K": max(8, min(16, 4096 // block)), "BLOCK": block}
    tile["num_warps"] = _warps(tile["K"] * block)
    n_slices = -(-width // block)
    split = (n_entries if longest is None else min(longest, n_entries)) > _CHUNK
    partial = out
    if split:
        n_chunks = -(-n_entries // _CHUNK)
        partial = torch.empty(2 * n_chunks, width, dtype=torch.float32, device=table_FD.device)
        launch(
            _sum_chunks, (n_chunks, n_slices), offsets, features, entries, table_FD, partial, n_rows, n_entries, width,
            **tile,
        )  # fmt: skip
    launch(
        _sum_rows, (n_rows, n_slices), offsets, features, entries, table_FD, partial, out if base is None else base,
        out, width, SPLIT=split, BASE=base is not None, **tile,
    )  # fmt: skip
    return out


# -------------------------------------------------------------------------------------------- products


@jit
def _row_products(rows, features, rows_ND, table, products, n_entries, width, K: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)
    n = tl.load(rows + at, mask=at < n_entries, other=0)
    f = tl.load(features + at, mask=at < n_entries, other=0)
    dots = tl.zeros([K, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = (at < n_entries)[:, None] & (columns < width)[None, :]
        a = tl.load(rows_ND + n[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(table + f[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        dots += a * b
    tl.store(products + at, tl.sum(dots, 1), mask=at < n_entries)


def row_products(offsets: Tensor, rows: Tensor, features: Tensor, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
    """Entries <rows_ND[row], table[feature]>, float32 [M].

    Args:
        offsets: not read; rows says the same entry by entry.
        rows: [M] int64, the row of each entry, best in ascending order (a row is then read from the L1 cache).

    Raises:
        ValueError: dtypes, lengths or layouts do not fit.
    """
    _check_entries(rows, features, rows)
    check(rows_ND, table_FD)
    width = table_FD.shape[1]
    if rows_ND.shape[1] != width:
        raise ValueError(f"rows are {rows_ND.shape[1]} wide, the table's {width}")
    products = torch.empty(len(features), dtype=torch.float32, device=table_FD.device)
    block = _columns(width, 256)
    launch(
        _row_products, (-(-len(features) // 16),), rows, features, rows_ND, table_FD, products, len(features), width,
        K=16, BLOCK=block, num_warps=_warps(16 * block),
    )  # fmt: skip
    return products


@jit
def _reconstruct(
    offsets, features, values, table, base, error, products, width, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    base += row * width
    error += row * width
    if last - first <= K:
        # All the row's table rows pass through registers once: their slice of the error, then its products with them.
        at = first + tl.arange(0, K)
        inside = at < last
        f = tl.load(features + at, mask=inside, other=0)
        v = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        dots = tl.zeros([K, BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            mask = inside[:, None] & (columns < width)[None, :]
            rows = tl.load(table + f[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            miss = tl.load(base + columns, mask=columns < width, other=0.0).to(tl.float32) + tl.sum(
                v[:, None] * rows, 0
            )
            miss = tl.where(columns < width, miss, 0.0)
            tl.store(error + columns, miss, mask=columns < width)
            dots += rows * miss[None, :]
        tl.store(products + at, tl.sum(dots, 1), mask=inside)
    else:
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            miss = tl.load(base + columns, mask=columns < width, other=0.0).to(tl.float32)
            miss += _gathered_sum(features, values, table, first, last, columns, width, K, BLOCK)
            miss = tl.where(columns < width, miss, 0.0)
            tl.store(error + columns, miss, mask=columns < width)
            for j in range(first, last, K):  # the same slice again, from the L1 or L2 cache
                at = j + tl.arange(0, K)
                f = tl.load(features + at, mask=at < last, other=0)
                mask = (at < last)[:, None] & (columns < width)[None, :]
                rows = tl.load(table + f[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
                so_far = tl.load(products + at, mask=(at < last) & (start > 0), other=0.0)
                tl.store(products + at, so_far + tl.sum(rows * miss[None, :], 1), mask=at < last)
            tl.debug_barrier()  # the next slice's threads read what others wrote to products


def reconstruct(
    offsets: Tensor, features: Tensor, values: Tensor, table_FD: Tensor, base_ND: Tensor, *, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """(error [N, D], products [M]): base + codes @ table, and <error[row], table[feature]> for each entry.

    A table row is read once if its code's row has few entries (up to ``longest`` or 1.5 times the mean, rounded up to
    a power of two, at most 128), else twice, the second time from cache. Products are of the error in float32, whatever
    dtype it is stored in.

    Args:
        values: [M], floating point.
        base_ND: its dtype is the error's.
        longest: no row has more entries (TopK: k), if known.

    Raises:
        ValueError: dtypes, lengths or layouts do not fit.
    """
    _check_entries(offsets, features, values)
    check(values, table_FD, base_ND)
    n_rows, width = base_ND.shape
    if len(offsets) != n_rows + 1 or table_FD.shape[1] != width:
        raise ValueError(f"{len(offsets)} offsets, base {tuple(base_ND.shape)}, table {tuple(table_FD.shape)}")
    error = torch.empty_like(base_ND)
    products = torch.empty(len(features), dtype=torch.float32, device=table_FD.device)
    typical = longest if longest is not None else 3 * len(features) // (2 * max(n_rows, 1))
    k = power_of_two(typical, 16, 128)
    block = _columns(width, min(256, 8192 // k))
    launch(
        _reconstruct, (n_rows,), offsets, features, values, table_FD, base_ND, error, products, width,
        K=k, BLOCK=block, num_warps=_warps(k * block),
    )  # fmt: skip
    return error, products


# ------------------------------------------------------------------------------------------------ Adam


@jit
def _along(grad, weight, width, BLOCK: tl.constexpr):
    """<grad, weight> of one row."""
    dot = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        d = first + tl.arange(0, BLOCK)
        g = tl.load(grad + d, mask=d < width, other=0.0).to(tl.float32)
        dot += g * tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)
    return tl.sum(dot, 0)


@jit
def _row_squares(grad, weight, squares, width, FREE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    grad += row * width
    weight += row * width
    along = _along(grad, weight, width, BLOCK) if FREE else 0.0
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        d = first + tl.arange(0, BLOCK)
        g = tl.load(grad + d, mask=d < width, other=0.0).to(tl.float32)
        if FREE:
            g -= along * tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)
        total += g * g
    tl.store(squares + row, tl.sum(total, 0))


def row_squares(grad_FD: Tensor, unit_FD: Tensor | None = None) -> Tensor:
    """Squared lengths of a gradient's rows, float32 [F], for the clipping factor that `adam` takes.

    Args:
        unit_FD: unit rows; what lies along them is left out, as `adam` does with ``parallel_free``.
    """
    check(grad_FD, *([] if unit_FD is None else [unit_FD]))
    squares = torch.empty(len(grad_FD), dtype=torch.float32, device=grad_FD.device)
    block = power_of_two(grad_FD.shape[1], 16, 1024)
    launch(
        _row_squares, (len(grad_FD),), grad_FD, grad_FD if unit_FD is None else unit_FD, squares, grad_FD.shape[1],
        FREE=unit_FD is not None, BLOCK=block, num_warps=_warps(4 * block),
    )  # fmt: skip
    return squares


@jit
def _adam(
    weight, grad, m, v, half, clip, rate, beta1, rest1, beta2, rest2, shrink, eps, width,
    CLIP: tl.constexpr, UNIT: tl.constexpr, FREE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weight += row * width
    grad += row * width
    m += row * width
    v += row * width
    half += row * width
    factor = tl.load(clip).to(tl.float32) if CLIP else clip
    along = _along(grad, weight, width, BLOCK) if FREE else 0.0
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        d = first + tl.arange(0, BLOCK)
        inside = d < width
        w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + d, mask=inside, other=0.0).to(tl.float32)
        if FREE:
            g -= along * w
        g *= factor
        mean = beta1 * tl.load(m + d, mask=inside, other=0.0).to(tl.float32) + rest1 * g
        square = beta2 * tl.load(v + d, mask=inside, other=0.0).to(tl.float32) + rest2 * g * g
        w -= rate * tl.div_rn(mean, tl.sqrt_rn(square) * shrink + eps)
        tl.store(m + d, mean, mask=inside)
        tl.store(v + d, square, mask=inside)
        tl.store(weight + d, w, mask=inside)
        if UNIT:
            squares += tl.where(inside, w * w, 0.0)
        elif HALF:
            tl.store(half + d, w, mask=inside)
    if UNIT:
        length = tl.sqrt_rn(tl.sum(squares, 0))
        length = tl.where(length < 1e-12, 1e-12, length)  # NaN stays NaN, which tl.maximum would lose
        tl.debug_barrier()  # a thread may read what another wrote
        for first in range(0, width, BLOCK):
            d = first + tl.arange(0, BLOCK)
            w = tl.div_rn(tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32), length)
            tl.store(weight + d, w, mask=d < width)
            if HALF:
                tl.store(half + d, w, mask=d < width)


def adam(
    weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, *, lr: float, beta1: float, beta2: float, eps: float, step: int,
    clip: Tensor | float, unit_rows: bool, parallel_free: bool = False, half: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of Adam (Kingma and Ba 2015) on a matrix [F, D], in place, as torch.optim.Adam does it.

        g = clip * grad; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2
        weight -= lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)

    Args:
        step: of this update; the first is 1.
        clip: the factor that clipping asks for (1.0: none); a tensor of one element is read on the device.
        unit_rows: make the rows unit vectors afterwards.
        parallel_free: first take from each row's gradient what lies along the weight's row, which must have length
            one. `row_squares` then gives the length that clipping needs.
        half: [F, D], any of the dtypes; receives the new weight.

    Raises:
        ValueError: shapes, dtypes or layouts do not fit, or step < 1.
    """
    tensors = [weight, grad, m, v, *([] if half is None else [half])]
    check(*tensors)
    if step < 1 or weight.ndim != 2 or any(t.shape != weight.shape for t in tensors):
        raise ValueError(f"step {step} of matrices {[tuple(t.shape) for t in tensors]}")
    n_rows, width = weight.shape
    block = power_of_two(width, 16, 1024)
    # 1 - beta is taken in double: of float32 beta2 = .999 it would be off by 5e-5 of itself.
    numbers: tuple[Any, ...] = (
        lr / (1.0 - beta1**step), beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / math.sqrt(1.0 - beta2**step), eps,
    )  # fmt: skip
    launch(
        _adam, (n_rows,), weight, grad, m, v, weight if half is None else half,
        clip if isinstance(clip, Tensor) else float(clip), *numbers, width,
        CLIP=isinstance(clip, Tensor), UNIT=unit_rows, FREE=parallel_free, HALF=half is not None, BLOCK=block,
        num_warps=_warps(4 * block),
    )  # fmt: skip
