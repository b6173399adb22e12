"""Seeded permutations of row numbers in O(1) memory, which shuffle rows once, as they are written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
RUN_BYTES = 16 * 1024
RUNS_PER_WINDOW = 256
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Feistel:
    """A permutation of 0..n-1: a balanced Feistel network over the next power of four, with cycle walking.

    Outputs outside of the range pass through the network again, which keeps it a permutation and takes at most four
    passes on average (Black and Rogaway, CT-RSA 2002, "Ciphers with arbitrary finite domains").
    """

    def __init__(self, n: int, seed: int) -> None:
        assert n > 0, n
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [np.uint64(_mixed((seed * ROUNDS + i) & _MASK)) for i in range(ROUNDS)]

    def __call__(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Images of ``rows`` (each in 0..n-1), as int64 of the same shape."""
        out = self._encrypt(np.asarray(rows).astype(np.uint64))
        outside = np.flatnonzero(out >= self.n)
        while outside.size:
            out.flat[outside] = image = self._encrypt(out.flat[outside])
            outside = outside[image >= self.n]
        return out.astype(np.int64)

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            mixed = (right + key) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & self._mask)
        return (left << self._half) | right


def run_length(row_bytes: int) -> int:
    """Rows that are written contiguously: the smallest power of two that fills 16 KiB."""
    return 1 << max(0, (-(-RUN_BYTES // row_bytes) - 1).bit_length())


class WindowedShuffle:
    """The place of each row in the file: shuffled within its window, whose short runs are spread over the whole file.

    Writing single rows to random places costs a page of disk traffic each. Here each window is shuffled by its own
    Feistel network, and its runs of ``run`` rows are assigned to slots of the whole file by another, so writes are
    contiguous pieces of about 16 KiB. Any stretch of the file holds runs from everywhere, and each run holds rows from
    its whole window. Rows that do not fill a run stay at the end of the file.
    """

    def __init__(self, n_rows: int, seed: int, run: int = 1, window: int | None = None) -> None:
        self.n_rows = n_rows
        self.seed = seed
        self.run = run
        self.window = RUNS_PER_WINDOW * run if window is None else window
        assert self.window % run == 0, (self.window, run)
        self._slots = Feistel(max(1, n_rows // run), _mixed(seed))

    def __call__(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Places of rows in the file."""
        rows = np.asarray(rows, dtype=np.int64)
        shuffled = np.empty_like(rows)
        windows = rows // self.window
        for window in np.unique(windows).tolist():
            inside = windows == window
            first = window * self.window
            size = min(self.window, self.n_rows - first)
            feistel = Feistel(size, _mixed(self.seed ^ _mixed(window + 1)))
            shuffled[inside] = first + feistel(rows[inside] - first)
        run, offset = np.divmod(shuffled, self.run)
        whole = run < self.n_rows // self.run
        run[whole] = self._slots(run[whole])
        return run * self.run + offset
