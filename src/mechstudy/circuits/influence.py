"""Influence of nodes on the target, and first-order effects along every path.

``A^ = |A|`` with rows normalised; ``I = w A^ + w A^^2 + ...`` where ``w`` weighs the logit targets (Ameisen et al.
2025). Bias columns are left out, as in circuit-tracer, so that scores are comparable; they are in the ledger. Features
without a row and pruned nodes and edges count as error, which is stricter than leaving them out.

The matrix can be large: it is read a few rows at a time and never copied.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK = 1 << 20  # numbers of the matrix that are looked at together: they stay in a cache


def row_sums(A_RS: Float[Tensor, "r s"], kept_S: Bool[Tensor, " s"]) -> Float[Tensor, " r"]:
    """Sum of |A| over the kept columns of each row."""
    kept = kept_S.to(A_RS)
    return torch.cat([rows.abs() @ kept for _, rows in _chunks(A_RS)]) if len(A_RS) else A_RS.new_zeros(0)


def propagated(
    M_RQ: Float[Tensor, "r q"], weights_R: Float[Tensor, " r"], row_Q: Int[Tensor, " q"]
) -> Float[Tensor, " r"]:
    """The weights of rows with everything that passes on to them: ``u = w + u M``, the graph having no cycles.

    Args:
        M_RQ: what a row passes on to each of Q rows.
        weights_R: weights of the targets, 0 for the other rows.
        row_Q: which rows these are.
    """
    total = weights_R.to(M_RQ).clone()
    step = total.clone()
    for _ in range(len(M_RQ) + 1):
        arrived = step @ M_RQ
        if not arrived.any():
            break
        step = torch.zeros_like(total)
        step[row_Q] = arrived
        total += step
    return total


def feature_rows(column_R: Int[Tensor, " r"]) -> tuple[Int[Tensor, " q"], Int[Tensor, " q"]]:
    """Which rows are those of features, and their columns."""
    row_Q = (column_R >= 0).nonzero()[:, 0]
    return row_Q, column_R[row_Q]


def influence(
    A_RS: Float[Tensor, "r s"],
    kept_S: Bool[Tensor, " s"],
    weights_R: Float[Tensor, " r"],
    column_R: Int[Tensor, " r"],
    sums_R: Float[Tensor, " r"] | None = None,
) -> tuple[Float[Tensor, " s"], Float[Tensor, " r"]]:
    """Influence of every kept source, and of every row: its weight as a target or its influence as a node.

    Args:
        A_RS: rows of direct effects.
        kept_S: columns that count; the others have no influence.
        weights_R: w for the rows that are logit targets, 0 for feature rows.
        column_R: the column of the feature that a row explains, -1 for logit rows.
        sums_R: `row_sums`, if they are known.
    """
    sums = row_sums(A_RS, kept_S) if sums_R is None else sums_R
    scale_R = 1 / sums.clamp_min(torch.finfo(A_RS.dtype).tiny)
    row_Q, column_Q = feature_rows(column_R)
    rows_I = propagated(A_RS[:, column_Q].abs() * scale_R[:, None], weights_R, row_Q)
    weights = rows_I * scale_R
    sources_I = torch.zeros_like(A_RS[0])
    for part, rows in _chunks(A_RS):
        sources_I += weights[part] @ rows.abs()
    return sources_I * kept_S, rows_I


def total_effects(
    A_RS: Float[Tensor, "r s"],
    weights_R: Float[Tensor, " r"],
    column_R: Int[Tensor, " r"],
    value_R: Float[Tensor, " r"],
) -> Float[Tensor, " s"]:
    """Signed first-order effect of each source on the weighted target, through every path.

    A feature's relative change equals its pre-activation's, gates frozen: removing ``s`` changes feature ``t``
    by ``A[t, s]``, and a change of ``t`` by its whole value ``a_t`` changes the target by t's own effect.
    """
    scale_R = 1 / torch.where(column_R >= 0, value_R, 1.0)
    row_Q, column_Q = feature_rows(column_R)
    rows = propagated(A_RS[:, column_Q] * scale_R[:, None], weights_R, row_Q) * scale_R
    return rows @ A_RS


def _chunks(A_RS: Tensor) -> Iterator[tuple[slice, Tensor]]:
    size = max(1, _CHUNK // max(1, A_RS.shape[1]))
    for start in range(0, len(A_RS), size):
        part = slice(start, start + size)
        yield part, A_RS[part]
