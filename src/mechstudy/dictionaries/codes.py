"""Feature activations of a batch, and products in which only the active ones take part.

Of F features only about k are active in a row, so a training step needs one dense product (the encoder); the
decoder and all gradients are sums over active entries. On a CPU `embedding_bag` and `sampled_addmm` do these at
memory speed, at a tenth of the dense product's time. Where many features are active (early in a training with a
sparsity penalty) `DenseCodes` says the same with dense products. Sums run in a fixed order: the same input gives
the same bits on one machine.

*Entries* are one number per stored activation: [M] of sparse codes, [N, F] of dense ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

# Share of active entries from which dense products are faster. Measured on a step's products, 2,048 x 576 x 2,304,
# float32, 2 cores without AMX: 50 ms sparse against 89 dense at 1/24, 70 against 78 at 1/16, 86 against 80 at 1/12.
DENSE_FROM = 1 / 14


@dataclass(frozen=True)
class SparseCodes:
    """Active entries of a code matrix [N, F], row after row.

    offsets [N+1]: row n owns entries offsets[n]:offsets[n+1]; features [M] int64; values [M] >= 0. A value of 0
    stands for "no feature" and gets no gradient. n_features is F.
    """

    offsets: Tensor
    features: Tensor
    values: Tensor
    n_features: int

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Tensor:
        """[M]: the row of each entry."""
        return torch.arange(self.n_rows, device=self.features.device).repeat_interleave(
            self.offsets.diff(), output_size=len(self.features)
        )

    @cached_property
    def by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order [M], rows [M], offsets [F+1]): the entries sorted by feature, rows ascending within each."""
        order = torch.sort(self.features.to(torch.int32), stable=True)[1]
        counts = torch.bincount(self.features, minlength=self.n_features)
        offsets = torch.zeros(self.n_features + 1, dtype=torch.int64, device=self.features.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return order, self.rows[order], offsets

    def fired(self) -> Tensor:
        """bool [F]: features with a positive value in at least one row."""
        seen = torch.zeros(self.n_features, dtype=torch.bool, device=self.features.device)
        seen[self.features[self.values > 0]] = True
        return seen

    def dense(self) -> Tensor:
        """[N, F]."""
        return self.times(torch.eye(self.n_features, dtype=self.values.dtype, device=self.values.device))

    def times(self, table_FD: Tensor) -> Tensor:
        """codes @ table -> [N, D], in the table's dtype."""
        return nnf.embedding_bag(
            self.features,
            table_FD,
            self.offsets,
            mode="sum",
            per_sample_weights=self.values.to(table_FD.dtype),
            include_last_offset=True,
        )

    def transposed_times(self, entries: Tensor, rows_ND: Tensor) -> Tensor:
        """[F, D]: for each feature the sum over its entries of entry x row. With entries = values: codes.T @ rows."""
        order, rows, offsets = self.by_feature
        return nnf.embedding_bag(
            rows,
            rows_ND,
            offsets,
            mode="sum",
            per_sample_weights=entries[order].to(rows_ND.dtype),
            include_last_offset=True,
        )

    def products(self, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
        """Entries <rows[n], table[f]>, in the inputs' dtype."""
        if rows_ND.device.type != "cpu":
            return (rows_ND @ table_FD.T)[self.rows, self.features]
        pattern = torch.sparse_csr_tensor(
            self.offsets,
            self.features,
            torch.zeros(len(self.features), dtype=rows_ND.dtype),
            (self.n_rows, self.n_features),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, rows_ND, table_FD.T, beta=0.0).values()

    def at(self, of_NF: Tensor) -> Tensor:
        """Entries of a dense matrix."""
        return of_NF[self.rows, self.features]

    def per_feature(self, v_F: Tensor) -> Tensor:
        """Entries that repeat one number per feature."""
        return v_F[self.features]

    def sum_features(self, entries: Tensor) -> Tensor:
        """[F]: the sum of each feature's entries."""
        ones = torch.ones(self.n_rows, 1, dtype=entries.dtype, device=entries.device)
        return self.transposed_times(entries, ones).squeeze(1)

    def split(self, bounds: Sequence[int]) -> list[Part]:
        """Features [0, b0), [b0, b1), ...: each part's codes, renumbered, and where its entries are in the whole."""
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
    """The same as `SparseCodes`, held whole: values [N, F] >= 0. Products run in `dtype`."""

    values: Tensor
    dtype: torch.dtype

    @property
    def n_rows(self) -> int:
        return len(self.values)

    @property
    def n_features(self) -> int:
        return self.values.shape[1]

    def fired(self) -> Tensor:
        return (self.values > 0).any(0)

    def dense(self) -> Tensor:
        return self.values

    def times(self, table_FD: Tensor) -> Tensor:
        return (self.values.to(self.dtype) @ table_FD.to(self.dtype)).to(table_FD.dtype)

    def transposed_times(self, entries: Tensor, rows_ND: Tensor) -> Tensor:
        return (entries.to(self.dtype).T @ rows_ND.to(self.dtype)).to(rows_ND.dtype)

    def products(self, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
        return (rows_ND.to(self.dtype) @ table_FD.to(self.dtype).T).to(rows_ND.dtype)

    def at(self, of_NF: Tensor) -> Tensor:
        return of_NF

    def per_feature(self, v_F: Tensor) -> Tensor:
        return v_F

    def sum_features(self, entries: Tensor) -> Tensor:
        return entries.sum(0)

    def split(self, bounds: Sequence[int]) -> list[Part]:
        places = [slice(low, high) for low, high in zip((0, *bounds[:-1]), bounds, strict=True)]
        return [(DenseCodes(self.values[:, p], self.dtype), (slice(None), p)) for p in places]


Codes = SparseCodes | DenseCodes
Part = tuple[Codes, Any]  # codes of some features, and the index of their entries among the whole's


def codes_where(mask_NF: Tensor, values_NF: Tensor, dtype: torch.dtype, dense_dtype: torch.dtype) -> Codes:
    """Codes that are `values` where `mask` is true, held sparse or dense, whichever is faster.

    Args:
        dtype: of the entries.
        dense_dtype: of dense products, if it comes to those.
    """
    n_rows, n_features = mask_NF.shape
    counts = mask_NF.sum(1)
    if int(counts.sum()) > DENSE_FROM * mask_NF.numel():
        return DenseCodes(values_NF.to(dtype).masked_fill(~mask_NF, 0.0), dense_dtype)
    chosen = flat_nonzero(mask_NF)
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=mask_NF.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    features = chosen - torch.arange(n_rows, device=chosen.device).repeat_interleave(
        counts, output_size=len(chosen)
    ) * n_features  # fmt: skip
    return SparseCodes(offsets, features, values_NF.reshape(-1)[chosen].to(dtype), n_features)


def flat_nonzero(mask: Tensor) -> Tensor:
    """Flat indices of the true entries, ascending. NumPy's search is several times faster than torch's on a CPU."""
    flat = mask.reshape(-1)
    if flat.device.type != "cpu":
        return flat.nonzero().squeeze(1)
    return torch.from_numpy(flat.numpy().nonzero()[0])
