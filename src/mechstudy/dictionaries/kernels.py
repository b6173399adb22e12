"""Selection of active features, and products in which only they take part.

Of F features only about k are active in a row, so a training step needs one dense product (the encoder); the
decoder and all gradients are sums over active entries. On a CPU `embedding_bag` and `sampled_addmm` do these at
memory speed, at a tenth of the dense product's time. Sums run in a fixed order: the same input gives the same
bits on one machine.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as nnf
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

_GROUPS = 8  # groups of features whose maxima are searched first; 8 measured best of 4, 8, 12, 16


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
    def by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order [M], rows [M], offsets [F+1]): the entries sorted by feature, rows ascending within each."""
        order = torch.sort(self.features.to(torch.int32), stable=True)[1]
        lengths = self.offsets.diff()
        rows = torch.arange(self.n_rows, device=self.features.device).repeat_interleave(
            lengths, output_size=len(self.features)
        )
        counts = torch.bincount(self.features, minlength=self.n_features)
        offsets = torch.zeros(self.n_features + 1, dtype=torch.int64, device=self.features.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return order, rows[order], offsets

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

    def transposed_times(self, weights_M: Tensor, rows_ND: Tensor) -> Tensor:
        """[F, D]: for each feature the sum over its entries of weight x row. With weights = values: codes.T @ rows."""
        order, rows, offsets = self.by_feature
        return nnf.embedding_bag(
            rows,
            rows_ND,
            offsets,
            mode="sum",
            per_sample_weights=weights_M[order].to(rows_ND.dtype),
            include_last_offset=True,
        )

    def products(self, rows_ND: Tensor, table_FD: Tensor) -> Tensor:
        """[M]: <rows[n], table[f]> at each entry (n, f), in the inputs' dtype."""
        if rows_ND.device.type != "cpu":
            lengths = self.offsets.diff()
            n = torch.arange(self.n_rows, device=rows_ND.device).repeat_interleave(
                lengths, output_size=len(self.features)
            )
            return (rows_ND @ table_FD.T)[n, self.features]
        pattern = torch.sparse_csr_tensor(
            self.offsets,
            self.features,
            torch.zeros(len(self.features), dtype=rows_ND.dtype),
            (self.n_rows, self.n_features),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, rows_ND, table_FD.T, beta=0.0).values()


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row: (values [N, k], indices [N, k]), unordered, exact.

    The k largest entries lie in the k groups with the largest maxima, so on a CPU a cheap pass over group maxima
    leaves only _GROUPS * k candidates. Which of equal entries is taken is unspecified.
    """
    n_rows, n_features = pre_NF.shape
    per_group = n_features // _GROUPS
    if pre_NF.device.type != "cpu" or n_features % _GROUPS or 2 * k > per_group:
        values, indices = torch.topk(pre_NF, k, dim=1, sorted=False)
        return values, indices
    grouped = pre_NF.reshape(n_rows, _GROUPS, per_group)
    best = torch.topk(grouped.amax(1), k, dim=1, sorted=False)[1]
    candidates = grouped.gather(2, best[:, None, :].expand(n_rows, _GROUPS, k)).reshape(n_rows, _GROUPS * k)
    values, place = torch.topk(candidates, k, dim=1, sorted=False)
    group = torch.div(place, k, rounding_mode="floor")
    return values, best.gather(1, place - group * k) + group * per_group


def topk_codes(pre_NF: Tensor, k: int, dtype: torch.dtype) -> SparseCodes:
    """TopK: the k largest pre-activations of each row, negative ones cut to zero."""
    values, indices = top_k(pre_NF, k)
    offsets = torch.arange(0, values.numel() + 1, k, device=pre_NF.device)
    return SparseCodes(offsets, indices.reshape(-1), values.reshape(-1).to(dtype).relu_(), pre_NF.shape[1])


def batch_topk_codes(pre_NF: Tensor, k: int, dtype: torch.dtype, guess: float | None) -> tuple[SparseCodes, float]:
    """BatchTopK: the N*k largest positive pre-activations of the whole batch.

    Args:
        guess: where the last batch's smallest kept value lay. Entries below 0.8 of it are not looked at, which
            is exact whenever at least N*k entries lie above; otherwise everything is searched.

    Returns:
        The codes, and the smallest value kept (0.0 if nothing is positive).
    """
    n_rows, n_features = pre_NF.shape
    flat = pre_NF.reshape(-1)
    wanted = min(n_rows * k, flat.numel())
    chosen: Tensor | None = None
    if guess is not None and guess > 0:
        candidates = _above(flat, 0.8 * guess)
        if len(candidates) >= wanted:
            chosen = candidates[torch.topk(flat[candidates].float(), wanted, sorted=False)[1]]
    if chosen is None:
        chosen = torch.topk(flat, wanted, sorted=False)[1]
        chosen = chosen[flat[chosen] > 0]
    chosen = chosen.sort()[0]
    values = flat[chosen].to(dtype)
    rows = torch.div(chosen, n_features, rounding_mode="floor")
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=flat.device)
    torch.cumsum(torch.bincount(rows, minlength=n_rows), 0, out=offsets[1:])
    codes = SparseCodes(offsets, chosen - rows * n_features, values, n_features)
    return codes, float(values.min()) if len(values) else 0.0


def _above(flat: Tensor, bound: float) -> Tensor:
    """Indices of entries above a positive bound, ascending."""
    limit = torch.tensor(bound, dtype=flat.dtype, device=flat.device)
    if flat.device.type != "cpu":
        return (flat > limit).nonzero().squeeze(1)
    if flat.dtype == torch.bfloat16:  # positive floats sort like their bits, and integers compare faster
        flat, limit = flat.view(torch.int16), limit.view(torch.int16)
    mask = flat > limit
    return torch.from_numpy(mask.numpy().nonzero()[0])
