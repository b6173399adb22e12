"""Statistics of activation rows, gathered in float64 while they are written."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS_PER_OCTAVE = 256
OCTAVES = 32  # norms between 2**-32 and 2**32 are told apart
N_BINS = 2 * OCTAVES * BINS_PER_OCTAVE


class RowStatistics:
    """Count, mean vector, mean squared norm and median norm of rows, all sums in float64.

    The median comes from a histogram of log2 norms with 256 bins per octave: it is right to 0.14%.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum = np.zeros(width)
        self.sum_squared_norm = 0.0
        self.max_norm = 0.0
        self.histogram = np.zeros(N_BINS, dtype=np.int64)

    def add(self, rows_ND: Tensor, norms_N: NDArray[np.float64]) -> None:
        """Count rows in; ``norms_N`` are their Euclidean norms."""
        if not len(norms_N):
            return
        self.count += len(norms_N)
        self.sum += rows_ND.double().sum(0).numpy()
        self.sum_squared_norm += float(np.square(norms_N).sum())
        self.max_norm = max(self.max_norm, float(norms_N.max()))
        with np.errstate(divide="ignore"):
            bins = np.floor((np.log2(norms_N) + OCTAVES) * BINS_PER_OCTAVE)
        bins = np.nan_to_num(bins, nan=N_BINS - 1, posinf=N_BINS - 1, neginf=0)
        self.histogram += np.bincount(np.clip(bins, 0, N_BINS - 1).astype(np.int64), minlength=N_BINS)

    @property
    def median_norm(self) -> float | None:
        """Median of the rows' norms (the geometric middle of its bin); None without rows."""
        if not self.count:
            return None
        middle = int(np.searchsorted(np.cumsum(self.histogram), (self.count + 1) // 2))
        return 0.0 if middle == 0 else 2.0 ** ((middle + 0.5) / BINS_PER_OCTAVE - OCTAVES)

    def summary(self) -> dict[str, float | int | None]:
        """For ``store.json``: numbers only, null without rows or where a sum is not finite."""
        squared = self.sum_squared_norm / self.count if self.count else math.nan
        return {
            "count": self.count,
            "mean_squared_norm": squared if math.isfinite(squared) else None,
            "median_norm": self.median_norm,
            "max_norm": self.max_norm if self.count and math.isfinite(self.max_norm) else None,
        }

    def mean(self) -> Tensor:
        """Mean vector [width], float64; zeros without rows."""
        return torch.from_numpy(self.sum / max(1, self.count))

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors for a checkpoint; `restore` is exact."""
        return {
            "sum": torch.from_numpy(self.sum.copy()),
            "scalars": torch.tensor([self.count, self.sum_squared_norm, self.max_norm], dtype=torch.float64),
            "histogram": torch.from_numpy(self.histogram.copy()),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.sum = state["sum"].numpy().copy()
        count, self.sum_squared_norm, self.max_norm = state["scalars"].tolist()
        self.count = int(count)
        self.histogram = state["histogram"].numpy().copy()
