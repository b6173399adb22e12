"""Training batches from an activation store: sequential reads, prefetched, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.checksums import FileSum
from mechstudy.activations.config import ITEM_SIZES, scales_per_row
from mechstudy.activations.encoding import DTYPES, RAW, decode
from mechstudy.activations.prefetch import prefetched
from mechstudy.activations.row_file import RowFile, Run, Slabs
from mechstudy.activations.statistics import SINK_RATIO
from mechstudy.activations.store import SiteFiles, Store
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.models.device_transfer import copied_ahead
from mechstudy.models.sites import Site

BLOCK_BYTES = 4 << 20
SCAN_ROWS = 1 << 20


class RowReader:
    """Endless batches ``(x, y)`` of the rows of an input and an output site.

    Batches are fully determined by the store, the seed and the step they start from. Rows at a document's first
    position are skipped, and so are sinks (input or output norm above ``sink_ratio`` times its median): in SmolLM2 the
    normed inputs of a sink look like any others, and the MLP's output there is 500 times the rest. Rows that are not
    finite are kept, so that training detects and reports them. The store is shuffled on disk, so an epoch reads it from
    end to end. The seed determines where it begins.

    Args:
        store: the store.
        site_in: the site of ``x``.
        site_out: the site of ``y``; it may be the same.
        batch_size: rows per batch.
        seed: where in the store the first epoch begins.
        drop_first_position: skip first positions.
        sink_ratio: see above; None keeps sinks.
        prefetch: batches read ahead.
        widen: return bf16 rows as float32.
        verify: compare every block with its checksum when it is first read, which halves the speed of reading for that
            time. An error names the file and the block.
        device: where batches are; to CUDA the next one is copied while the current one is used.

    Attributes:
        d_in: width of the input site.
        d_out: width of the output site.
        n_rows: rows in the store.
        rows_per_epoch: rows that are not skipped.
        max_input_norm: rows of a larger input norm are sinks; None with ``sink_ratio=None``.
        max_output_norm: likewise for output norms.
        sink_rows: rows skipped as sinks (first positions not counted).

    Raises:
        MechstudyError: no row is left, or a site was not captured.
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
        widen: bool = False,
        verify: bool = False,
        device: str = "cpu",
    ) -> None:
        assert batch_size > 0, batch_size
        self.store, self.site_in, self.site_out = store, site_in, site_out
        self.batch_size, self.seed, self.prefetch, self.device = batch_size, seed, prefetch, device
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
        self._rows = KeptRows(
            files, self._keep, seed, widen=widen, checksums=checksums_of(store, files.values(), verify)
        )

    def batches(self, start: int = 0) -> Iterator[tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]]:
        """Batches from step ``start`` on.

        They are bf16 if stored as such (and ``widen`` is not set), else float32: a training step widens them faster on
        its own device. If the two sites are the same, so are the tensors. A thread reads ahead; it ends when the
        iterator is closed or deleted.
        """
        batches = self._pairs(start)
        return copied_ahead(batches, self.device) if self.device.startswith("cuda") else batches

    def _pairs(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in prefetched(self._rows.batches(start, self.batch_size), self.prefetch):
            yield rows["x"], rows.get("y", rows["x"])

    def _kept_rows(self, drop_first_position: bool) -> tuple[NDArray[np.bool_], int]:
        keep = kept_positions(self.store) if drop_first_position else np.ones(self.n_rows, dtype=bool)
        before = int(np.count_nonzero(keep))
        for first in range(0, self.n_rows, SCAN_ROWS):
            rows = slice(first, min(self.n_rows, first + SCAN_ROWS))
            for site, limit in ((self.site_in, self.max_input_norm), (self.site_out, self.max_output_norm)):
                if limit is not None:
                    norms = self.store.norms(site, rows)
                    keep[rows] &= (norms <= limit) | ~np.isfinite(norms)  # kept, so that training reports them
        return keep, before - int(np.count_nonzero(keep))


class KeptRows:
    """The rows of several sites that a mask keeps, read together and in order.

    Args:
        files: the files of each site, under the name that batches use.
        keep: mask [n_rows], true for at least one row.
        seed: determines the kept row at which the first epoch begins.
        widen: return bf16 rows as float32.
        checksums: of the files that are verified.
    """

    def __init__(
        self,
        files: Mapping[str, SiteFiles],
        keep: NDArray[np.bool_],
        seed: int,
        *,
        widen: bool = False,
        checksums: Mapping[Path, FileSum] = MappingProxyType({}),
    ) -> None:
        self._files, self._keep, self._widen, self._checksums = files, keep, widen, checksums
        self._row_bytes = max(file.width * ITEM_SIZES[file.dtype] for file in files.values())
        self._block = max(1, BLOCK_BYTES // self._row_bytes)
        counts = np.add.reduceat(keep, np.arange(0, len(keep), self._block), dtype=np.int64)
        self._kept_before = np.concatenate([[0], np.cumsum(counts)])
        self._offset = int(np.random.default_rng(seed).integers(self._kept_before[-1]))

    def batches(self, start: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Endless batches of ``size`` rows by name, from batch ``start`` on.

        NumPy only, which uses one core, as this runs beside the training step.
        """
        together = max(1, BLOCK_BYTES // (self._row_bytes * size))  # several small batches are read at a time
        runs = self._runs((self._offset + start * size) % int(self._kept_before[-1]))
        left: Run = (0, 0)
        with ExitStack() as stack:
            sites = {
                name: stack.enter_context(SiteRows(file, together * size, self._widen, self._checksums))
                for name, file in self._files.items()
            }
            while True:
                taken, missing = [], together * size
                while missing:
                    first, last = left if left[0] < left[1] else next(runs)
                    taken.append((first, min(last, first + missing)))
                    left = taken[-1][1], last
                    missing -= taken[-1][1] - first
                read = {name: site.read(taken) for name, site in sites.items()}
                for number in range(0, together * size, size):
                    yield {name: rows[number : number + size] for name, rows in read.items()}
                del read  # else its memory could not be reused for the next one

    def _runs(self, position: int) -> Iterator[Run]:
        """Consecutive kept rows, from the ``position``-th kept row on, epoch after epoch."""
        block = int(np.searchsorted(self._kept_before, position, side="right")) - 1
        skip = position - int(self._kept_before[block])
        while True:
            first = block * self._block
            kept = np.flatnonzero(self._keep[first : first + self._block])[skip:] + first
            ends = np.flatnonzero(np.diff(kept) != 1) + 1
            starts = kept[np.concatenate([[0], ends])] if len(kept) else kept
            lasts = kept[np.concatenate([ends, [len(kept)]]) - 1] + 1 if len(kept) else kept
            yield from zip(starts.tolist(), lasts.tolist(), strict=True)
            block, skip = (block + 1) % (len(self._kept_before) - 1), 0


class SiteRows:
    """One site's rows as tensors, decoded if they are int8."""

    def __init__(self, site: SiteFiles, n_rows: int, widen: bool, checksums: Mapping[Path, FileSum]) -> None:
        self._file = RowFile(site.file, site.width, RAW[site.dtype], checksums.get(site.file))
        shape = (n_rows, site.width)
        self._raw, self._wide = Slabs(shape, RAW[site.dtype]), Slabs(shape, np.float32)
        self._scales: tuple[RowFile, Slabs] | None = None
        if site.scales_file is not None:
            blocks = scales_per_row(site.width)
            file = RowFile(site.scales_file, blocks, np.float32, checksums.get(site.scales_file))
            self._scales = file, Slabs((n_rows, blocks), np.float32)
        self._dtype = DTYPES[site.dtype]
        self._decode = site.dtype == "int8" or (widen and site.dtype == "bfloat16")

    def __enter__(self) -> SiteRows:
        with ExitStack() as stack:
            stack.enter_context(self._file)
            if self._scales is not None:
                stack.enter_context(self._scales[0])
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, runs: Sequence[Run]) -> Tensor:
        """The rows of consecutive ranges, [n, width], bf16 or float32."""
        raw = self._raw.take()
        self._file.read(runs, raw)
        if not self._decode:
            signed = raw.view(np.int16 if raw.dtype == np.uint16 else np.int32)  # torch has no views of unsigned types
            return torch.from_numpy(signed).view(self._dtype)
        scales = None
        if self._scales is not None:
            scales = self._scales[1].take()
            self._scales[0].read(runs, scales)
        out = self._wide.take()
        decode(raw, scales, out)
        return torch.from_numpy(out)


def row_files(files: Iterable[SiteFiles]) -> list[Path]:
    """The files that hold the sites' rows."""
    return [path for site in files for path in (site.file, site.scales_file) if path is not None]


def checksums_of(store: Store, files: Iterable[SiteFiles], verify: bool) -> Mapping[Path, FileSum]:
    """The checksums of the sites' row files; empty unless ``verify``."""
    return store.checksums(row_files(files)) if verify else {}


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
