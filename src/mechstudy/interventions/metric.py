"""Metrics of an intervention: the logit difference and the KL divergence of next-token distributions, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_ROWS = 64  # rows of a vocabulary held in float64 at a time


def logit_difference(
    logits_BV: Float[Tensor, "b v"], answer_B: Int[Tensor, " b"], wrong_B: Int[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """logit(answer) - logit(wrong answer), from the model's own (soft-capped) logits."""
    rows = torch.arange(logits_BV.shape[0], device=logits_BV.device)
    answer, wrong = logits_BV[rows, answer_B.to(rows)], logits_BV[rows, wrong_B.to(rows)]
    return answer.double() - wrong.double()


def kl_divergence(clean_BV: Float[Tensor, "b v"], edited_BV: Float[Tensor, "b v"]) -> Float64[Tensor, " b"]:
    """KL(clean || edited) in nats; exactly 0 where the logits are equal, never below 0."""
    parts = []
    for start in range(0, clean_BV.shape[0], _ROWS):
        p = torch.log_softmax(clean_BV[start : start + _ROWS].double(), -1)
        q = torch.log_softmax(edited_BV[start : start + _ROWS].double(), -1)
        parts.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
    return torch.cat(parts)
