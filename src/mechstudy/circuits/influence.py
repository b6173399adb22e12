"""Influence of nodes on the target, and the two scores of a graph.

``A^ = |A|`` with rows normalised; ``I = w A^ + w A^^2 + ...`` where ``w`` weighs the logit targets (Ameisen et al.
2025). Bias columns are left out, as in circuit-tracer, so that scores are comparable; they are in the ledger. Features
without a row and pruned nodes and edges count as error, which is stricter than leaving them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a graph, both in [0, 1].

    ``replacement``: share of the target's influence that reaches tokens rather than errors. ``completeness``: share of
    every node's inputs, weighted by its influence, that is not error.
    """

    replacement: float
    completeness: float


def normalised(A_RS: Tensor, kept_S: Tensor) -> Tensor:
    """|A| with each row divided by its sum over ``kept_S`` [S] bool; other columns are zero.

    A row of zeros stays zero.
    """
    magnitude = A_RS.abs() * kept_S
    return magnitude / magnitude.sum(1, keepdim=True).clamp_min(torch.finfo(A_RS.dtype).tiny)


def influence(A_hat_RS: Tensor, weights_R: Tensor, column_R: Tensor) -> tuple[Tensor, Tensor]:
    """Influence of every source, [S], and of every row as a node in its own right, [R].

    Args:
        A_hat_RS: normalised rows.
        weights_R: w for the rows that are logit targets, 0 for feature rows.
        column_R: the column of the feature that a row explains, -1 for logit rows.

    The graph has no cycles, so the sum ends after as many steps as its longest path has edges.
    """
    total = _propagated(A_hat_RS, weights_R, column_R)
    return total, torch.where(column_R >= 0, total[column_R.clamp_min(0)], 0.0)


def scores(A_hat_RS: Tensor, weights_R: Tensor, column_R: Tensor, token_S: Tensor, error_S: Tensor) -> Scores:
    """Replacement and completeness.

    Args:
        A_hat_RS, weights_R, column_R: as for `influence`.
        token_S, error_S: which sources are tokens, and which count as error; [S] bool.
    """
    source_I, row_I = influence(A_hat_RS, weights_R, column_R)
    tokens, errors = source_I[token_S].sum(), source_I[error_S].sum()
    both = tokens + errors
    weight_R = row_I + weights_R
    not_error_R = 1 - (A_hat_RS * error_S).sum(1)
    total = weight_R.sum()
    return Scores(
        float(tokens / both) if both > 0 else 0.0,
        float((not_error_R * weight_R).sum() / total) if total > 0 else 0.0,
    )


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
    relative_RS = A_RS / torch.where(column_R >= 0, value_R, 1.0)[:, None]
    return _propagated(relative_RS, weights_R, column_R)


def _propagated(M_RS: Tensor, weights_R: Tensor, column_R: Tensor) -> Tensor:
    """The series w M + w M^2 + ..., [S]; a power passes from a feature's column to its row. No cycles, so it ends."""
    is_feature = column_R >= 0
    columns = column_R.clamp_min(0)
    total = torch.zeros_like(M_RS[0])
    step = weights_R.to(M_RS)
    for _ in range(len(M_RS) + 1):
        arrived = step @ M_RS
        total += arrived
        step = torch.where(is_feature, arrived[columns], 0.0)
        if not step.any():
            break
    return total
