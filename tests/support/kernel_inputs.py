"""Random rows and codes for the kernels' tests."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_codes(n: int, f: int, share: float, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dense [n, f], offsets, features, values) of random codes, some rows and features empty."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, f, generator=generator) < share
    mask[:, f // 2] |= torch.rand(n, generator=generator) < 0.8  # one that is active nearly everywhere
    mask[n // 3] = False
    dense = torch.rand(n, f, generator=generator, dtype=torch.float64).to(dtype).add_(0.1) * mask
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    return dense, offsets, mask.nonzero()[:, 1], dense[mask]
