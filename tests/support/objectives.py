"""Parts of the papers' objectives, for autograd."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENT, BANDWIDTH = 0.3, 0.8
PHI = {
    "l1": lambda s: s,
    "sqrt": lambda s: (s + 1e-4).sqrt() - 1e-2,
    "tanh": lambda s: torch.tanh(4 * s),
}


class Jump(torch.autograd.Function):
    """pre where pre > threshold; pseudo-derivative -(threshold / bandwidth) 1[|pre - threshold| < bandwidth / 2]."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, gradient):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).to(pre)
        return gradient * (pre > threshold), (-threshold / BANDWIDTH * near * gradient).sum(0)


class Step(torch.autograd.Function):
    """weight where pre > threshold: what an entry counts in a penalty; only the threshold moves it."""

    @staticmethod
    def forward(ctx, pre, threshold, weight):
        ctx.save_for_backward(pre, threshold, weight)
        return weight * (pre > threshold)

    @staticmethod
    def backward(ctx, gradient):
        pre, threshold, weight = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).to(pre)
        return None, (-weight / BANDWIDTH * near * gradient).sum(0), None


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
