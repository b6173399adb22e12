"""The kernels on a CUDA device: `cuda`'s Triton kernels with the arguments that `reference` has."""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import cuda, reference
from mechstudy.dictionaries.kernels.reference import BETA1, BETA2, EPSILON, by_feature, sum_entries, top_k

__all__ = [
    "adam",
    "batch_top_k",
    "between",
    "by_feature",
    "gradient_rows",
    "positive_top_k",
    "reconstruct",
    "row_products",
    "sum_entries",
    "sum_rows",
    "supports",
    "top_k",
]


def supports(*tensors: Tensor) -> bool:
    """Whether these kernels take the tensors: on a CUDA device, float32 or bfloat16, rows side by side."""
    return (
        all(t.device.type == "cuda" and t.dtype in (torch.float32, torch.bfloat16) for t in tensors)
        and all(t.is_contiguous() for t in tensors)
        and cuda.available()
    )


def positive_top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.positive_top_k`."""
    return cuda.top_k(pre_NF, k)


def batch_top_k(pre_NF: Tensor, wanted: int, guess: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.batch_top_k`."""
    return cuda.batch_top_k(pre_NF, wanted, guess)[:3]


def between(pre_NF: Tensor, low_F: Tensor, high_F: Tensor, at_most: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.between`."""
    offsets, features, values = cuda.above(pre_NF, low_F)
    values = values.to(low_F.dtype)
    below = ~(values >= high_F[features])  # NaN stays, and shows
    if not bool(below.all()):
        kept = torch.zeros(len(features) + 1, dtype=torch.int64, device=features.device)
        torch.cumsum(below, 0, out=kept[1:])
        offsets, features, values = kept[offsets], features[below], values[below]
    return None if len(features) > at_most else (offsets, features, values)


def sum_rows(offsets: Tensor, features: Tensor, entries: Tensor, table_FD: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.sum_rows`."""
    total = cuda.sum_rows(offsets, features, entries, table_FD)
    return total if out is None else out.copy_(total)


def row_products(offsets: Tensor, features: Tensor, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
    """See `reference.row_products`."""
    return cuda.row_products(offsets, reference.row_numbers(offsets, len(features)), features, rows_ND, table_FD)


def reconstruct(
    offsets: Tensor, features: Tensor, values: Tensor, table_FD: Tensor, base_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.reconstruct`."""
    return cuda.reconstruct(offsets, features, values, table_FD, base_ND)


def gradient_rows(
    ends: Tensor, rows: Tensor, entries: Tensor, table_ND: Tensor, unit_FD: Tensor | None, out: Tensor
) -> Tensor:
    """See `reference.gradient_rows`."""
    sum_rows(ends, rows, entries, table_ND, out)
    if unit_FD is not None:
        reference.remove_parallel(out, unit_FD)
    return cuda.row_squares(out)


def adam(
    weight_FD: Tensor, gradient_FD: Tensor, mean_FD: Tensor, square_FD: Tensor, *, lr: float, step: int, factor: float,
    unit: bool, half: Tensor | None, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """See `reference.adam`."""
    cuda.adam(
        weight_FD, gradient_FD, mean_FD, square_FD, lr=lr, beta1=BETA1, beta2=BETA2, eps=EPSILON, step=step,
        clip=factor, unit_rows=unit, half=half,
    )  # fmt: skip
