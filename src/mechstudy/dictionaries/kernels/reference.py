"""The kernels in plain PyTorch: what they mean, what tests hold the fast ones to, and what other devices run.

Codes [N, F] are rows of active entries: row n owns entries offsets[n]:offsets[n+1] (int64 [N+1]), entry j is of
feature features[j] (int64 [M]). *Entries* are one number per active feature, [M].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row: (values [N, k], indices [N, k]), unordered, exact; ties are broken anyhow."""
    values, indices = torch.topk(pre_NF, k, dim=1, sorted=False)
    return values, indices


def positive_top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row as codes: offsets, features, values >= 0 (k of each row; a value of 0: no feature)."""
    values, indices = top_k(pre_NF, k)
    offsets = torch.arange(0, values.numel() + 1, k, device=pre_NF.device)
    return offsets, indices.reshape(-1), values.reshape(-1).clamp_min(0.0)


def batch_top_k(pre_NF: Tensor, wanted: int, guess: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The ``wanted`` largest positive entries of the whole matrix (fewer if fewer are positive), exact.

    Args:
        guess: about where the smallest of them lies. Entries below 0.8 of it are looked at only when too few lie
            above; the result does not depend on it, except for ties.

    Returns:
        offsets, features, values in the matrix' dtype.
    """
    flat = pre_NF.reshape(-1)
    chosen: Tensor | None = None
    if guess is not None and guess > 0:
        candidates = (flat > 0.8 * guess).nonzero().squeeze(1)
        if len(candidates) >= wanted:
            chosen = candidates[torch.topk(flat[candidates].float(), wanted, sorted=False)[1]]
    if chosen is None:
        chosen = torch.topk(flat, min(wanted, len(flat)), sorted=False)[1]
        chosen = chosen[flat[chosen] > 0]
    return _rows_of(chosen.sort()[0], pre_NF)


def between(pre_NF: Tensor, low_F: Tensor, high_F: Tensor, at_most: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """Entries with low < x < high: offsets, features, values in the bounds' dtype; None if there are over ``at_most``.

    Comparisons are in the bounds' dtype.
    """
    mask = (pre_NF > low_F) & (pre_NF < high_F)
    chosen = mask.reshape(-1).nonzero().squeeze(1)
    if len(chosen) > at_most:
        return None
    offsets, features, values = _rows_of(chosen, pre_NF)
    return offsets, features, values.to(low_F.dtype)


def sum_rows(offsets: Tensor, features: Tensor, entries: Tensor, table_FD: Tensor, out: Tensor | None = None) -> Tensor:
    """[N, D] in the entries' dtype: each row's sum over its entries of entry x table[feature]; in ``out`` if given.

    On a CPU the sum runs over entries in their order.
    """
    total = nnf.embedding_bag(
        features, table_FD.to(entries.dtype), offsets, mode="sum", per_sample_weights=entries, include_last_offset=True
    )
    return total if out is None else out.copy_(total)


def row_products(offsets: Tensor, features: Tensor, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
    """Entries <rows[n], table[feature]>, float32 (float64 of float64 rows)."""
    dtype = torch.float64 if table_FD.dtype == torch.float64 else torch.float32
    numbers = row_numbers(offsets, len(features))
    parts = zip(torch.split(numbers, _CHUNK), torch.split(features, _CHUNK), strict=True)
    products = [(rows_ND[n].to(dtype) * table_FD[f].to(dtype)).sum(1) for n, f in parts]
    return torch.cat(products) if products else torch.empty(0, dtype=dtype, device=features.device)


def reconstruct(
    offsets: Tensor, features: Tensor, values: Tensor, table_FD: Tensor, base_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """(error [N, D], entries): base + codes @ table, and the products of the error's rows with the table's."""
    error = sum_rows(offsets, features, values, table_FD).add_(base_ND)
    return error, row_products(offsets, features, error, table_FD)


def by_feature(offsets: Tensor, features: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """(order [M], rows [M], offsets [F+1]): the entries sorted by feature, rows ascending within each."""
    order = torch.sort(features, stable=True)[1]
    ends = torch.zeros(n_features + 1, dtype=torch.int64, device=features.device)
    torch.cumsum(torch.bincount(features, minlength=n_features), 0, out=ends[1:])
    return order, row_numbers(offsets, len(features))[order], ends


def sum_entries(offsets: Tensor, entries: Tensor) -> Tensor:
    """[len(offsets) - 1]: the sum of entries offsets[i]:offsets[i+1]."""
    sums = torch.zeros(len(entries) + 1, dtype=torch.float64, device=entries.device)
    torch.cumsum(entries.double(), 0, out=sums[1:])
    return sums[offsets].diff().to(entries.dtype)


def gradient_rows(
    ends: Tensor, rows: Tensor, entries: Tensor, table_ND: Tensor, unit_FD: Tensor | None, out: Tensor
) -> Tensor:
    """For each feature f the sum over ends[f]:ends[f+1] of entry x table[row], into ``out`` [F, D].

    Args:
        unit_FD: unit rows; what lies along them is left out.

    Returns:
        Squared lengths of the rows, [F].
    """
    sum_rows(ends, rows, entries, table_ND, out)
    if unit_FD is not None:
        remove_parallel(out, unit_FD)
    return out.square().sum(1)


def remove_parallel(gradient_FD: Tensor, dec_FD: Tensor) -> None:
    """Take from each row's gradient its component along the (unit) decoder row, in place."""
    gradient_FD.sub_((gradient_FD * dec_FD).sum(1, keepdim=True) * dec_FD)


def normalise_rows(dec_FD: Tensor) -> None:
    """Make each row a unit vector, in place."""
    dec_FD.div_(torch.linalg.vector_norm(dec_FD, dim=1, keepdim=True).clamp_min(1e-12))


def adam(
    weight_FD: Tensor, gradient_FD: Tensor, mean_FD: Tensor, square_FD: Tensor, *, lr: float, step: int, factor: float,
    unit: bool, half: Tensor | None, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of Adam (Kingma and Ba 2015) on a matrix, in place.

        g = factor * gradient; mean = beta1 mean + (1 - beta1) g; square = beta2 square + (1 - beta2) g^2
        weight -= lr / (1 - beta1^step) * mean / (sqrt(square / (1 - beta2^step)) + epsilon)

    Args:
        step: of this update; the first is 1.
        factor: what clipping asks for.
        unit: make the rows unit vectors afterwards.
        half: receives the weight in bfloat16.
        squares: squared lengths of the gradient's rows [F], if known: rows of zeros need not be read.
    """
    g = gradient_FD * factor
    mean_FD.lerp_(g, 1.0 - BETA1)
    square_FD.mul_(BETA2).addcmul_(g, g, value=1.0 - BETA2)
    denominator = square_FD.sqrt().div_(math.sqrt(1.0 - BETA2**step)).add_(EPSILON)
    weight_FD.addcdiv_(mean_FD, denominator, value=-lr / (1.0 - BETA1**step))
    if unit:
        normalise_rows(weight_FD)
    if half is not None:
        half.copy_(weight_FD)


def row_numbers(offsets: Tensor, n_entries: int) -> Tensor:
    """[M]: the row of each entry."""
    numbers = torch.arange(len(offsets) - 1, device=offsets.device)
    return numbers.repeat_interleave(offsets.diff(), output_size=n_entries)


_CHUNK = 65_536  # entries whose rows are gathered at a time


def _rows_of(chosen: Tensor, pre_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, features and values of flat indices that ascend."""
    n_rows, n_features = pre_NF.shape
    rows = torch.div(chosen, n_features, rounding_mode="floor")
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=pre_NF.device)
    torch.cumsum(torch.bincount(rows, minlength=n_rows), 0, out=offsets[1:])
    return offsets, chosen - rows * n_features, pre_NF.reshape(-1)[chosen]
