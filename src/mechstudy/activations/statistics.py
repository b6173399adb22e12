"""Statistics of activation rows, computed in float64 while rows are written.

Sums are kept by chunk and added in the order of the chunks, which depend on the store alone. The totals are therefore
the same bits for any number of writing processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

BINS_PER_OCTAVE = 256
OCTAVES = 32  # the histogram covers norms between 2**-32 and 2**32
N_BINS = 2 * OCTAVES * BINS_PER_OCTAVE
ROWS_AT_ONCE = 64  # in float64, so that they stay in the CPU's cache
SINK_RATIO = 10.0  # rows of a larger norm than this, relative to the median, are sinks


class RowStatistics:
    """Count, mean vector, mean squared norm and median norm of the finite rows, all sums in float64.

    The median comes from a histogram of log2 norms with 256 bins per octave, so its error is at most 0.14%.

    Args:
        width: coordinates per row.
        chunks: parts of the store that are summed separately.
        quantised: also measure the error of storing the rows in 8 bits.
    """

    def __init__(self, width: int, chunks: int = 1, *, quantised: bool = False) -> None:
        self.count = 0
        self.not_finite = 0
        self.max_norm = 0.0
        self.sum = np.zeros((chunks, width))
        self.sum_squared_norm = np.zeros(chunks)
        self.histogram = np.zeros(N_BINS, dtype=np.int64)
        self.quantisation = Quantisation(width, chunks) if quantised else None

    def add(
        self,
        rows_ND: Float[Tensor, "n d"],
        norms_N: NDArray[np.float64],
        chunk: int = 0,
        originals_ND: Float[Tensor, "n d"] | None = None,
    ) -> None:
        """Adds rows. Those that are not finite are only counted.

        Args:
            rows_ND: the rows as stored.
            norms_N: their Euclidean norms.
            chunk: the chunk of the store that they are in.
            originals_ND: the rows before they were quantised.
        """
        finite = np.isfinite(norms_N)
        if not finite.all():
            self.not_finite += int(np.count_nonzero(~finite))
            kept = torch.from_numpy(np.flatnonzero(finite))
            rows_ND, norms_N = rows_ND[kept], norms_N[finite]
            originals_ND = None if originals_ND is None else originals_ND[kept]
        if not len(norms_N):
            return
        self.count += len(norms_N)
        self.sum[chunk] += rows_ND.double().sum(0).numpy()
        self.sum_squared_norm[chunk] += float(np.square(norms_N).sum())
        self.max_norm = max(self.max_norm, float(norms_N.max()))
        with np.errstate(divide="ignore"):
            bins = np.floor((np.log2(norms_N) + OCTAVES) * BINS_PER_OCTAVE)
        bins = np.nan_to_num(bins, neginf=0)
        self.histogram += np.bincount(np.clip(bins, 0, N_BINS - 1).astype(np.int64), minlength=N_BINS)
        if self.quantisation is not None and originals_ND is not None:
            kept = torch.from_numpy(np.flatnonzero(norms_N <= SINK_RATIO * np.median(norms_N)))
            self.quantisation.add(originals_ND[kept], rows_ND[kept], chunk)

    @property
    def median_norm(self) -> float | None:
        """Median of the rows' norms, as the geometric middle of its bin; None without rows."""
        if not self.count:
            return None
        middle = int(np.searchsorted(np.cumsum(self.histogram), (self.count + 1) // 2))
        return 0.0 if middle == 0 else 2.0 ** ((middle + 0.5) / BINS_PER_OCTAVE - OCTAVES)

    def summary(self) -> dict[str, float | int | None]:
        """The statistics in ``store.json``; None without rows, or where a sum overflows."""
        squared = float(in_order(self.sum_squared_norm)) / self.count if self.count else math.nan
        numbers: dict[str, float | int | None] = {
            "count": self.count,
            "not_finite": self.not_finite,
            "mean_squared_norm": squared if math.isfinite(squared) else None,
            "median_norm": self.median_norm,
            "max_norm": self.max_norm if self.count else None,
        }
        return numbers if self.quantisation is None else numbers | {"quantisation_fvu": self.quantisation.fvu()}

    def mean(self) -> Float[Tensor, " d"]:
        """Mean vector, in float64; zeros without rows."""
        return torch.from_numpy(in_order(self.sum) / max(1, self.count))

    def merge(self, other: RowStatistics) -> None:
        """Adds the statistics of another writer of the same store; exact, as no chunk is in both."""
        self.count += other.count
        self.not_finite += other.not_finite
        self.max_norm = max(self.max_norm, other.max_norm)
        self.sum += other.sum
        self.sum_squared_norm += other.sum_squared_norm
        self.histogram += other.histogram
        if self.quantisation is not None and other.quantisation is not None:
            self.quantisation.merge(other.quantisation)

    def state(self) -> dict[str, Tensor]:
        """The statistics as tensors for a checkpoint."""
        tensors = {
            "sum": torch.from_numpy(self.sum.copy()),
            "sum_squared_norm": torch.from_numpy(self.sum_squared_norm.copy()),
            "scalars": torch.tensor([self.count, self.not_finite, self.max_norm], dtype=torch.float64),
            "histogram": torch.from_numpy(self.histogram.copy()),
        }
        return tensors if self.quantisation is None else tensors | self.quantisation.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores a `state`, exactly."""
        self.sum = state["sum"].numpy().copy()
        self.sum_squared_norm = state["sum_squared_norm"].numpy().copy()
        count, not_finite, self.max_norm = state["scalars"].tolist()
        self.count, self.not_finite = int(count), int(not_finite)
        self.histogram = state["histogram"].numpy().copy()
        if self.quantisation is not None:
            self.quantisation.restore(state)


class Quantisation:
    """The error of 8-bit storage: squared error of the stored rows over the variance of the originals.

    Whoever adds rows leaves out first positions and sinks (norms above 10 times the median of the rows added together),
    as the variance of a single sink would hide the error of all other rows.
    """

    def __init__(self, width: int, chunks: int = 1) -> None:
        self.count = 0
        self.sum = np.zeros((chunks, width))
        self.squares = np.zeros((chunks, 2))  # of the errors, of the originals

    def add(self, originals_ND: Float[Tensor, "n d"], stored_ND: Float[Tensor, "n d"], chunk: int = 0) -> None:
        """Adds rows."""
        self.count += len(originals_ND)
        for first in range(0, len(originals_ND), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            originals = originals_ND[part].double()
            self.sum[chunk] += originals.sum(0).numpy()
            self.squares[chunk, 1] += _sum_of_squares(originals)
            self.squares[chunk, 0] += _sum_of_squares(originals.sub_(stored_ND[part]))

    def fvu(self) -> float | None:
        """Fraction of variance unexplained; None without rows, or if they do not vary."""
        error, total = in_order(self.squares).tolist()
        variance = total - float(np.square(in_order(self.sum)).sum()) / max(1, self.count)
        # a smaller variance is the rounding error of the sums
        return error / variance if variance > 1e-12 * total else None

    def merge(self, other: Quantisation) -> None:
        """Adds what another writer measured."""
        self.count += other.count
        self.sum += other.sum
        self.squares += other.squares

    def state(self) -> dict[str, Tensor]:
        """The sums as tensors for a checkpoint."""
        return {
            "quantisation_sum": torch.from_numpy(self.sum.copy()),
            "quantisation_squares": torch.from_numpy(self.squares.copy()),
            "quantisation_count": torch.tensor(self.count),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores a `state`, exactly."""
        self.sum = state["quantisation_sum"].numpy().copy()
        self.squares = state["quantisation_squares"].numpy().copy()
        self.count = int(state["quantisation_count"])


def _sum_of_squares(rows_ND: Tensor) -> float:
    """Sums each row first, as torch's sum over everything depends on the number of threads."""
    return float(rows_ND.square().sum(1).numpy().sum())


def in_order(chunks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum over the first axis in its order, as the order of NumPy's own sum depends on the shape."""
    total = np.zeros(chunks.shape[1:])
    for chunk in chunks:
        total = total + chunk
    return np.asarray(total)  # one number is an array too
