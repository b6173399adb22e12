"""What an intervention changes: the logit difference, and how far the distribution moved. Sums are float64."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 64  # rows of a vocabulary held in float64 at a time


def logit_difference(logits_BV: Tensor, answer_B: Tensor, wrong_B: Tensor) -> Tensor:
    """logit(answer) - logit(wrong answer), [B] float64, from the model's own (soft-capped) logits."""
    rows = torch.arange(logits_BV.shape[0], device=logits_BV.device)
    answer, wrong = logits_BV[rows, answer_B.to(rows)], logits_BV[rows, wrong_B.to(rows)]
    return answer.double() - wrong.double()


def kl_divergence(clean_BV: Tensor, edited_BV: Tensor) -> Tensor:
    """KL(clean || edited) in nats, [B] float64; exactly 0 where the logits are equal, never below 0."""
    parts = []
    for start in range(0, clean_BV.shape[0], _ROWS):
        p = torch.log_softmax(clean_BV[start : start + _ROWS].double(), -1)
        q = torch.log_softmax(edited_BV[start : start + _ROWS].double(), -1)
        parts.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
    return torch.cat(parts)
