"""Feature activations of a batch, and products over the active ones only.

Of F features only about k are active in a row, so a training step needs one dense product (the encoder); the
decoder and all gradients are sums over active entries (`kernels`). If many features are active (early in a training
with a sparsity penalty), `DenseCodes` computes the same with dense products. Sums run in a fixed order: the same input
gives the same bits on one machine.

*Entries* are one number per stored activation: [M] of sparse codes, [N, F] of dense ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import batch_top_k, between, kernels_for, positive_top_k, reference
from mechstudy.dictionaries.training.data_parallel import ALONE, ProcessGroup

# Share of active entries from which dense products are faster. Measured on a step's products, 2,048 x 576 x 2,304,
# float32, 2 cores without AMX: 50 ms sparse against 89 dense at 1/24, 70 against 78 at 1/16, 86 against 80 at 1/12.
DENSE_FROM = 1 / 14


@dataclass(frozen=True)
class SparseCodes:
    """Active entries of a code matrix [N, F], row after row.

    offsets [N+1]: row n owns entries offsets[n]:offsets[n+1]; features [M] int64; values [M] >= 0. A value of 0
    means "no feature" and gets no gradient. n_features is F.
    """

    offsets: Tensor
    features: Tensor
    values: Tensor
    n_features: int

    @property
    def n_rows(self) -> int:
        """Number of rows N."""
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Tensor:
        """[M]: the row of each entry."""
        return reference.row_numbers(self.offsets, len(self.features))

    @cached_property
    def by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order [M], rows [M], offsets [F+1]): the entries sorted by feature, rows ascending within each."""
        return self._kernels.by_feature(self.offsets, self.features, self.n_features)  # type: ignore[no-any-return]

    @property
    def _kernels(self) -> Any:
        return kernels_for(self.values)

    def fired(self) -> Tensor:
        """Bool [F]: features with a positive value in at least one row."""
        return self.sum_features(self.values) > 0

    def dense(self) -> Tensor:
        """The whole matrix [N, F]."""
        return self.times(torch.eye(self.n_features, dtype=self.values.dtype, device=self.values.device))

    def times(self, table_FD: Tensor) -> Tensor:
        """Codes @ table -> [N, D], in the values' dtype."""
        return self._kernels.sum_rows(self.offsets, self.features, self.values, table_FD)  # type: ignore[no-any-return]

    def reconstruct(self, table_FD: Tensor, base_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(error [N, D], entries): base + codes @ table, and the products of the error with the table's rows."""
        return self._kernels.reconstruct(self.offsets, self.features, self.values, table_FD, base_ND)  # type: ignore[no-any-return]

    def gradient_rows(self, entries: Tensor, rows_ND: Tensor, out: Tensor, unit_FD: Tensor | None = None) -> Tensor:
        """Each feature's sum over its entries of entry x row, into ``out`` [F, D]; squared lengths [F].

        With entries = values this is codes.T @ rows. Components along the rows of ``unit_FD`` are removed.
        """
        order, rows, offsets = self.by_feature
        return self._kernels.gradient_rows(offsets, rows, entries[order], rows_ND, unit_FD, out)  # type: ignore[no-any-return]

    def products(self, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
        """Entries <rows[n], table[f]>, in the values' dtype."""
        return self._kernels.row_products(self.offsets, self.features, rows_ND, table_FD)  # type: ignore[no-any-return]

    def at(self, of_NF: Tensor) -> Tensor:
        """Entries of a dense matrix."""
        return of_NF[self.rows, self.features]

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same places with other values."""
        return replace(self, values=values)

    def per_feature(self, v_F: Tensor) -> Tensor:
        """Entries that repeat one number per feature."""
        return v_F[self.features]

    def sum_features(self, entries: Tensor) -> Tensor:
        """[F]: the sum of each feature's entries."""
        order, _, offsets = self.by_feature
        return self._kernels.sum_entries(offsets, entries[order])  # type: ignore[no-any-return]

    def split(self, bounds: Sequence[int]) -> list[Part]:
        """Codes of features [0, b0), [b0, b1), ..., renumbered, with the index of their entries among all."""
        parts: list[Part] = []
        low = 0
        for high in bounds:
            where = ((self.features >= low) & (self.features < high)).nonzero().squeeze(1)
            offsets = torch.searchsorted(where, self.offsets)
            parts.append((SparseCodes(offsets, self.features[where] - low, self.values[where], high - low), where))
            low = high
        return parts


@dataclass(frozen=True)
class DenseCodes:
    """The same as `SparseCodes` as a whole matrix: values [N, F] >= 0. Products run in `dtype`."""

    values: Tensor
    dtype: torch.dtype

    @property
    def n_rows(self) -> int:
        """Number of rows N."""
        return len(self.values)

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return self.values.shape[1]

    def fired(self) -> Tensor:
        """Bool [F]: features with a positive value in at least one row."""
        return (self.values > 0).any(0)

    def dense(self) -> Tensor:
        """The whole matrix [N, F]."""
        return self.values

    def times(self, table_FD: Tensor) -> Tensor:
        """See `SparseCodes.times`."""
        return (self.values.to(self.dtype) @ table_FD.to(self.dtype)).to(self.values.dtype)

    def reconstruct(self, table_FD: Tensor, base_ND: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseCodes.reconstruct`."""
        error = self.times(table_FD).add_(base_ND)
        return error, self.products(error, table_FD)

    def gradient_rows(self, entries: Tensor, rows_ND: Tensor, out: Tensor, unit_FD: Tensor | None = None) -> Tensor:
        """See `SparseCodes.gradient_rows`."""
        out.copy_(entries.to(self.dtype).T @ rows_ND.to(self.dtype))
        if unit_FD is not None:
            reference.remove_parallel(out, unit_FD)
        return out.square().sum(1)

    def products(self, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
        """See `SparseCodes.products`."""
        return (rows_ND.to(self.dtype) @ table_FD.to(self.dtype).T).to(self.values.dtype)

    def at(self, of_NF: Tensor) -> Tensor:
        """See `SparseCodes.at`."""
        return of_NF

    def with_values(self, values: Tensor) -> DenseCodes:
        """See `SparseCodes.with_values`."""
        return replace(self, values=values * (self.values != 0))

    def per_feature(self, v_F: Tensor) -> Tensor:
        """See `SparseCodes.per_feature`."""
        return v_F

    def sum_features(self, entries: Tensor) -> Tensor:
        """See `SparseCodes.sum_features`."""
        return entries.sum(0)

    def split(self, bounds: Sequence[int]) -> list[Part]:
        """See `SparseCodes.split`."""
        places = [slice(low, high) for low, high in zip((0, *bounds[:-1]), bounds, strict=True)]
        return [(DenseCodes(self.values[:, p], self.dtype), (slice(None), p)) for p in places]


Codes = SparseCodes | DenseCodes
Part = tuple[Codes, Any]  # codes of some features, and the index of their entries among the whole's


def codes_between(pre_NF: Tensor, low_F: Tensor, high_F: Tensor | None = None, *, dense_dtype: torch.dtype) -> Codes:
    """Codes that are the pre-activations where low < pre < high, sparse or dense, whichever is faster.

    Args:
        pre_NF: pre-activations.
        low_F: lower bounds, in the dtype of the entries.
        high_F: upper bounds; None: no upper bound.
        dense_dtype: of products with dense codes.
    """
    high = torch.full_like(low_F, torch.inf) if high_F is None else high_F
    entries = between(pre_NF, low_F, high, DENSE_FROM * pre_NF.numel())
    if entries is not None:
        return SparseCodes(*entries, pre_NF.shape[1])
    mask = (pre_NF > low_F) & (pre_NF < high)
    return DenseCodes(pre_NF.to(low_F.dtype).masked_fill(~mask, 0.0), dense_dtype)


def topk_codes(pre_NF: Tensor, k: int, dtype: torch.dtype) -> SparseCodes:
    """TopK: the k largest pre-activations of each row, clamped at zero."""
    offsets, features, values = positive_top_k(pre_NF, k)
    return SparseCodes(offsets, features, values.to(dtype), pre_NF.shape[1])


def batch_topk_codes(
    pre_NF: Tensor, k: int, dtype: torch.dtype, guess: float | None, group: ProcessGroup = ALONE
) -> tuple[SparseCodes, float]:
    """BatchTopK: the N*k largest positive pre-activations of the whole batch, N rows over all processes of the group.

    Args:
        pre_NF: pre-activations of this process' rows.
        k: active features per row, on average.
        dtype: of the values.
        guess: the last batch's smallest kept value.
        group: the processes that share the batch.

    Returns:
        The codes of this process' rows, and the smallest value kept in any process (0.0 if nothing is positive).
    """
    wanted = int(group.total(len(pre_NF))) * k
    offsets, features, values = batch_top_k(pre_NF, wanted, guess)
    if group.size > 1:
        offsets, features, values = _cut_together(offsets, features, values, wanted, group)
    codes = SparseCodes(offsets, features, values.to(dtype), pre_NF.shape[1])
    minima = torch.cat(group.gather(values.min().reshape(1) if len(values) else values))
    return codes, float(minima.min()) if len(minima) else 0.0


def _cut_together(
    offsets: Tensor, features: Tensor, values: Tensor, wanted: int, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries among the ``wanted`` largest of all processes; of ties, those of lower ranks first."""
    by_rank = group.gather(values)
    everything = torch.cat(by_rank)
    if len(everything) <= wanted:
        return offsets, features, values
    cut = torch.topk(everything.float(), wanted, sorted=False)[0].min().to(values.dtype)
    ties = wanted - int((everything > cut).sum()) - sum(int((part == cut).sum()) for part in by_rank[: group.rank])
    at_cut = values == cut
    keep = (values > cut) | (at_cut & (at_cut.cumsum(0) <= ties))
    rows = reference.row_numbers(offsets, len(features))[keep]
    kept = torch.zeros_like(offsets)
    torch.cumsum(torch.bincount(rows, minlength=len(offsets) - 1), 0, out=kept[1:])
    return kept, features[keep], values[keep]
