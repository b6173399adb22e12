"""Rows of one file of a store, read directly into the arrays that batches use.

A few rows in a hundred are skipped. `os.preadv` scatters one sequential read over many buffers: kept rows go to the
batch, skipped ones to a buffer that is not used. The memory of batches that are no longer referenced is reused, as
fresh pages cost as much time as reading.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechstudy.activations.checksums import BlockCheck, FileSum
from mechstudy.core.errors import MechstudyError

Run = tuple[int, int]  # consecutive rows: the first, and the one after the last
MAX_PIECES = 1000  # buffers of one preadv; Linux allows 1024
MAX_GAP = 256 << 10  # bytes between two kept rows; larger gaps are skipped by a seek
MAX_SLABS = 32


class Slabs:
    """Arrays of one shape and dtype, reused once neither they nor their views are referenced."""

    def __init__(self, shape: tuple[int, int], dtype: type[np.generic]) -> None:
        self._shape, self._dtype = shape, dtype
        self._slabs: list[NDArray[Any]] = []
        probe = [np.empty(0)]
        self._idle = sys.getrefcount(probe[0])  # references of the list and of the call itself

    def take(self) -> NDArray[Any]:
        """An array with arbitrary content."""
        for number in range(len(self._slabs)):
            if sys.getrefcount(self._slabs[number]) <= self._idle:
                return self._slabs[number]
        slab = np.empty(self._shape, self._dtype)
        if len(self._slabs) < MAX_SLABS:  # batches that are never deleted are not held here as well
            self._slabs.append(slab)
        return slab


class RowFile:
    """One file of fixed-size rows, read forwards.

    Args:
        path: the file.
        width: numbers per row.
        dtype: of the numbers.
        expected: checksums that each block is compared with when it is first read.
    """

    def __init__(self, path: Path, width: int, dtype: type[np.generic], expected: FileSum | None = None) -> None:
        self.path, self.width, self.dtype = path, width, dtype
        self._check = None if expected is None else BlockCheck(path, expected)
        self.row_bytes = width * np.dtype(dtype).itemsize
        self._rest = bytearray(max(self.row_bytes, min(MAX_GAP, 64 << 10) // self.row_bytes * self.row_bytes))

    def __enter__(self) -> RowFile:
        self._file = os.open(self.path, os.O_RDONLY)
        with suppress(AttributeError, OSError):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, runs: Sequence[Run], out: NDArray[Any]) -> None:
        """Reads the rows of the runs, in order, into contiguous ``out`` [n, width].

        Raises:
            MechstudyError: the file is too short, or a block does not match its checksum.
        """
        checking = self._check is not None and not self._check.done
        max_gap = 0 if checking else MAX_GAP  # the check needs the bytes in between
        target, done = out.reshape(-1).view(np.uint8).data, 0
        pieces: list[memoryview] = []
        offset = position = runs[0][0] * self.row_bytes
        for first, last in runs:
            start = first * self.row_bytes
            gap = start - position
            if gap < 0 or gap > max_gap or len(pieces) > MAX_PIECES - 2 - gap // len(self._rest):
                self._fill(pieces, offset)
                pieces, offset = [], start
            else:
                while gap:
                    pieces.append(memoryview(self._rest)[: min(gap, len(self._rest))])
                    gap -= len(pieces[-1])
            size = (last - first) * self.row_bytes
            pieces.append(target[done : done + size])
            done, position = done + size, start + size
        self._fill(pieces, offset)

    def _fill(self, pieces: list[memoryview], offset: int) -> None:
        if not pieces:
            return
        wanted, position = sum(map(len, pieces)), offset
        count = os.preadv(self._file, pieces, position)
        rest = pieces
        while count < wanted:  # rare: a signal, or a file system that reads less at a time
            if not count:
                raise MechstudyError(
                    f"{self.path.name} ended early", where=str(self.path.parent), fix="capture it again"
                )
            position, wanted = position + count, wanted - count
            filled = 0
            while count >= len(rest[filled]):
                count -= len(rest[filled])
                filled += 1
            rest = [rest[filled][count:], *rest[filled + 1 :]]
            count = os.preadv(self._file, rest, position)
        if self._check is not None:
            self._check.feed(self._file, offset, pieces)
