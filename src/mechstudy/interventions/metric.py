"""The KL divergence of next-token distributions, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 64  # rows of a vocabulary held in float64 at a time


def kl_divergence(clean_BV: Float[Tensor, "b v"], edited_BV: Float[Tensor, "b v"]) -> Float64[Tensor, " b"]:
    """KL(clean || edited) in nats; exactly 0 where the logits are equal, never below 0."""
    parts = []
    for start in range(0, clean_BV.shape[0], _ROWS):
        p = torch.log_softmax(clean_BV[start : start + _ROWS].double(), -1)
        q = torch.log_softmax(edited_BV[start : start + _ROWS].double(), -1)
        parts.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
    return torch.cat(parts)
