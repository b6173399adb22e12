"""Training batches from an activation store: sequential reads, ahead of their use, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import ITEM_SIZES
from mechstudy.activations.prefetch import ahead
from mechstudy.activations.store import RAW, SiteFiles, Store
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.models.sites import Site

BLOCK_BYTES = 4 << 20
SCAN_ROWS = 1 << 20
SINK_RATIO = 10.0  # times the median norm: above it a row is a sink


class RowReader:
    """Batches ``(x, y)`` of one site's rows and another's, for ever.

    They are fully determined by the store, the seed and the step they start from. Rows at a document's first
    position and sinks (input or target norm above ``sink_ratio`` times its median) are left out: in SmolLM2 the
    normed inputs of a sink look like any other, and what the MLP writes there is 500 times the rest. The store
    is shuffled on disk, so an epoch reads it from end to end; the seed says where it begins.

    Attributes:
        d_in, d_out: widths of the two sites.
        n_rows: rows in the store; rows_per_epoch: those that are kept.
        max_input_norm, max_output_norm: rows of a larger norm are sinks; None with ``sink_ratio=None``.
        sink_rows: rows left out as sinks (first positions not counted).
    """

    def __init__(
        self,
        store: Store,
        site_in: Site,
        site_out: Site,
        batch_size: int,
        *,
        seed: int = 0,
        drop_first_position: bool = True,
        sink_ratio: float | None = SINK_RATIO,
        prefetch: int = 4,
    ) -> None:
        assert batch_size > 0, batch_size
        self.store, self.site_in, self.site_out = store, site_in, site_out
        self.batch_size, self.seed, self.prefetch = batch_size, seed, prefetch
        self._in, self._out = files_of(store, site_in), files_of(store, site_out)
        self.d_in, self.d_out = self._in.width, self._out.width
        self.n_rows = store.n_rows
        self.max_input_norm = sink_limit(self._in, sink_ratio)
        self.max_output_norm = sink_limit(self._out, sink_ratio)
        self._keep, self.sink_rows = self._kept_rows(drop_first_position)
        self.rows_per_epoch = int(np.count_nonzero(self._keep))
        if not self.rows_per_epoch:
            raise MechstudyError(
                f"no row of {site_in} is left to train on",
                where=str(store.folder),
                facts={"rows": f"{self.n_rows:,}, all at a first position or above the sink norm"},
                fix="capture longer rows (context), or more tokens",
            )
        files = {"x": self._in} if site_in == site_out else {"x": self._in, "y": self._out}
        self._rows = KeptRows(files, self._keep, seed)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps ``start``, ``start + 1``, ...: float32 [batch_size, d_in] and [batch_size, d_out].

        The two are the same tensor when the sites are. A thread reads ahead; it ends when the iterator is
        closed or let go.
        """
        for rows in ahead(self._rows.batches(start, self.batch_size), self.prefetch):
            x = torch.from_numpy(rows["x"])
            yield x, torch.from_numpy(rows["y"]) if "y" in rows else x

    def _kept_rows(self, drop_first_position: bool) -> tuple[NDArray[np.bool_], int]:
        keep = kept_positions(self.store) if drop_first_position else np.ones(self.n_rows, dtype=bool)
        before = int(np.count_nonzero(keep))
        for first in range(0, self.n_rows, SCAN_ROWS):
            rows = slice(first, min(self.n_rows, first + SCAN_ROWS))
            for site, limit in ((self.site_in, self.max_input_norm), (self.site_out, self.max_output_norm)):
                if limit is not None:
                    keep[rows] &= self.store.norms(site, rows) <= limit
        return keep, before - int(np.count_nonzero(keep))


class KeptRows:
    """Rows of several files of a store, read together and in order, without those a mask leaves out.

    Args:
        files: by the name that batches give their rows.
        keep: [n_rows] bool, true somewhere.
        seed: says at which kept row the first epoch begins.
    """

    def __init__(self, files: Mapping[str, SiteFiles], keep: NDArray[np.bool_], seed: int) -> None:
        self._files, self._keep = files, keep
        widest = max(file.width * ITEM_SIZES[file.dtype] for file in files.values())
        self._block = max(1, BLOCK_BYTES // widest)
        counts = np.add.reduceat(keep, np.arange(0, len(keep), self._block), dtype=np.int64)
        self._kept_before = np.concatenate([[0], np.cumsum(counts)])
        self._offset = int(np.random.default_rng(seed).integers(self._kept_before[-1]))

    def batches(self, start: int, size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Batches ``start``, ``start + 1``, ... of ``size`` rows as float32, for ever.

        NumPy only: it runs beside the training step, and NumPy takes one core.
        """
        position = (self._offset + start * size) % int(self._kept_before[-1])
        block = int(np.searchsorted(self._kept_before, position, side="right")) - 1
        skip = position - int(self._kept_before[block])
        n_blocks = len(self._kept_before) - 1
        with ExitStack() as stack:
            opened = {name: stack.enter_context(RowFile(file, self._block)) for name, file in self._files.items()}
            rows, filled = self._empty(size), 0
            while True:
                span = slice(block * self._block, min(len(self._keep), (block + 1) * self._block))
                kept = np.flatnonzero(self._keep[span])[skip:]
                for file in opened.values():
                    file.load(span)
                while len(kept):
                    take, kept = kept[: size - filled], kept[size - filled :]
                    for name, file in opened.items():
                        file.widen(take, rows[name][filled : filled + len(take)])
                    filled += len(take)
                    if filled == size:
                        yield rows
                        rows, filled = self._empty(size), 0
                block, skip = (block + 1) % n_blocks, 0

    def _empty(self, size: int) -> dict[str, NDArray[np.float32]]:
        return {name: np.empty((size, file.width), np.float32) for name, file in self._files.items()}


def files_of(store: Store, site: Site) -> SiteFiles:
    """A site's files.

    Raises:
        MechstudyError: it was not captured.
    """
    if site not in store.sites:
        names = [str(s) for s in store.sites]
        guess = nearest(str(site), names)
        raise MechstudyError(
            f"{site} was not captured",
            where=str(store.folder),
            facts={"captured": ", ".join(names)},
            fix=f"did you mean {guess}?" if guess else "add it to capture.sites",
        )
    return store.sites[site]


def kept_positions(store: Store) -> NDArray[np.bool_]:
    """True [n_rows] except at documents' first positions."""
    keep = np.ones(store.n_rows, dtype=bool)
    for first in range(0, store.n_rows, SCAN_ROWS):
        rows = slice(first, min(store.n_rows, first + SCAN_ROWS))
        keep[rows] = store.index(rows).positions > 0
    return keep


def sink_limit(site: SiteFiles, ratio: float | None) -> float | None:
    """The norm above which a row of the site is a sink."""
    return None if ratio is None or site.median_norm is None else ratio * site.median_norm


class RowFile:
    """One site's file, read block by block into one buffer that is used again for each."""

    def __init__(self, site: SiteFiles, block_rows: int) -> None:
        self.path: Path = site.file
        self.dtype = site.dtype
        self.row_bytes = site.width * ITEM_SIZES[site.dtype]
        self._buffer = bytearray(block_rows * self.row_bytes)
        self._rows = np.frombuffer(self._buffer, RAW[site.dtype]).reshape(block_rows, site.width)

    def __enter__(self) -> RowFile:
        self._file = FileIO(self.path, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def load(self, rows: slice) -> None:
        """Read rows into the buffer."""
        self._file.seek(rows.start * self.row_bytes)
        wanted = memoryview(self._buffer)[: (rows.stop - rows.start) * self.row_bytes]
        while wanted:
            count = self._file.readinto(wanted)
            if not count:
                raise MechstudyError(
                    f"{self.path.name} ended early", where=str(self.path.parent), fix="capture it again"
                )
            wanted = wanted[count:]

    def widen(self, numbers: NDArray[np.integer], out: NDArray[np.float32]) -> None:
        """Copy rows of the buffer into float32 [n, width]; a bf16 is the upper half of a float32."""
        bits = out.view(np.uint32)
        if self.dtype == "float32":
            np.take(self._rows, numbers, axis=0, out=bits)
        else:
            bits[...] = self._rows[numbers]
            np.left_shift(bits, 16, out=bits)
