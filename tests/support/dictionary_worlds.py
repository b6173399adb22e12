"""Small worlds to train dictionaries on: rows made of a few sparse ground-truth features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class SparseWorld:
    """Rows x = sum of about `active` of `n_true` unit features with positive strengths, plus an offset.

    With `other_target`, y is the sum of strength x another direction per feature (what a transcoder must
    learn); else y is x. Batch i depends on (seed, i) alone, like a RowReader's.
    """

    def __init__(
        self,
        *,
        d: int = 24,
        n_true: int = 48,
        active: int = 3,
        batch_size: int = 256,
        other_target: bool = False,
        offset: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.d_in = self.d_out = d
        self.batch_size = batch_size
        self.seed = seed
        self.share = active / n_true
        self.other_target = other_target
        generator = torch.Generator().manual_seed(1_000 + seed)
        self.features = _unit(torch.randn(n_true, d, generator=generator))
        self.targets = _unit(torch.randn(n_true, d, generator=generator))
        self.offset = offset * torch.randn(d, generator=generator)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        shape = (self.batch_size, len(self.features))
        on = torch.rand(shape, generator=generator) < self.share
        strength = on * (0.5 + torch.rand(shape, generator=generator))
        x = strength @ self.features + self.offset
        return x, (strength @ self.targets - self.offset if self.other_target else x)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            yield self.batch(step)
            step += 1


class StoppingWorld(SparseWorld):
    """Dies when the training (which reads after the statistics) asks for batch `stop_at`, like a killed process."""

    stop_at = 20
    reads = 0

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads += 1
        for step, batch in enumerate(super().batches(start), start):
            if step == self.stop_at and self.reads == 2:
                raise KeyboardInterrupt
            yield batch


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
