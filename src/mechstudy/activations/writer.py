"""Writers of activation stores, alone or as one of several processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from mechstudy.activations.checksums import BLOCK, sum_of, sums_of
from mechstudy.activations.config import (
    INDEX_ITEM_SIZE,
    NORM_ITEM_SIZE,
    SCALE_BLOCK,
    scale_bytes,
    site_bytes,
    store_bytes,
)
from mechstudy.activations.encoding import DTYPES, decoded, encode
from mechstudy.activations.permutation import WindowedShuffle, run_length
from mechstudy.activations.quota import Quota, no_room, require_room
from mechstudy.activations.statistics import RowStatistics
from mechstudy.activations.store import CHECKSUMS_FILE, INDEX_FILE, SCHEMA, STATISTICS_FILE, STORE_FILE, Store
from mechstudy.activations.store_parts import Shares, read_parts, remove_parts, write_part
from mechstudy.core.files import is_full_disk
from mechstudy.models.sites import Site

Ints = Sequence[int] | NDArray[np.integer] | Tensor


class StoreWriter:
    """Writes rows of several sites, which are put in order, to their shuffled places.

    Rows are buffered until a window of them is complete (see `permutation.WindowedShuffle`), about 4 MiB for each site.
    With ``shuffle=False`` rows keep the place they are put at, and may be put in any order. `state` and `restore` make
    an interrupted capture resumable: all rows before `written_rows` are on disk, and putting them again does nothing.

    One of several writers takes the rows from ``first_row`` to ``last_row``, ignores others, and ends with
    `close_part`. `merge` makes one store of the parts, with the bytes that a single writer would write.
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[Site, int],
        n_rows: int,
        dtype: str = "bfloat16",
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        n_writers: int = 1,
        quota: Quota | None = None,
    ) -> None:
        """Creates the files at their full size, or reopens them.

        Args:
            folder: of the store.
            sites: width of each site.
            n_rows: rows of the whole store, exactly.
            dtype: of stored rows: ``bfloat16``, ``float32`` or ``int8``.
            seed: of the shuffle.
            shuffle: shuffle rows as they are written.
            rank: number of this writer, from 0.
            n_writers: number of writers; several need ``shuffle``.
            quota: limit on the bytes of the run's files.

        Raises:
            MechstudyError: the disk, or the quota, has not enough room.
        """
        assert sys.byteorder == "little", "stores are little-endian"
        assert sites and n_rows > 0, (sites, n_rows)
        assert shuffle or n_writers == 1, "rows that are not shuffled have one writer"
        self.folder, self.sites, self.n_rows, self.dtype, self.seed = folder, dict(sites), n_rows, dtype, seed
        self.rank, self.n_writers = rank, n_writers
        self.shuffle: WindowedShuffle | None = None
        if shuffle:
            # int8 rows have the places of bf16 rows: two stores of one corpus differ in rounding alone
            row = site_bytes(1, min(self.sites.values()), "bfloat16" if dtype == "int8" else dtype)
            self.shuffle = WindowedShuffle(n_rows, seed, run_length(row))
        self._shares = Shares(n_rows, self.shuffle.window if self.shuffle else n_rows)
        self.first_row, self.last_row = self._shares.rows(rank, n_writers)
        self._buffers: dict[Site, Tensor] = {}
        self._index = np.empty((0, 3), dtype=np.int32)
        self.statistics = _statistics(self.sites, self._shares.n_chunks, dtype)
        self.written_rows = self.first_row
        self._buffered = 0
        self._sizes = _sizes(self.sites, n_rows, dtype)
        self._files: dict[str, int] = {}
        require_room(folder, self.sites, n_rows, dtype, quota, corpus=shuffle)
        with self._disk_errors():
            self._allocate()

    # ------------------------------------------------------------------ writing

    def put(
        self,
        first_row: int | NDArray[np.integer],
        rows: Mapping[Site, Tensor],
        documents: Ints,
        positions: Ints,
        tokens: Ints,
    ) -> None:
        """Adds n rows.

        Args:
            first_row: number of the first row, which continues where the last put ended; without shuffling it may also
                be the array of the rows' places [n].
            rows: [n, width] of each site, on any device.
            documents: of each row.
            positions: of each row.
            tokens: of each row.
        """
        index = np.stack([np.asarray(c, dtype=np.int32) for c in (documents, positions, tokens)], axis=1)
        n = len(index)
        for site, width in self.sites.items():
            assert rows[site].shape == (n, width), (site, tuple(rows[site].shape), (n, width))
        if self.shuffle is None:
            places = np.arange(n) + first_row if isinstance(first_row, int) else np.asarray(first_row)
            cpu = {site: rows[site].to("cpu", self._held_dtype(rows[site])) for site in self.sites}
            self._scatter(places.astype(np.int64), cpu, index, 0)
            self.written_rows += n
            return
        assert isinstance(first_row, int)
        next_row = self.written_rows + self._buffered
        assert first_row <= next_row and first_row + n <= self.n_rows, (first_row, n, next_row, self.n_rows)
        done = min(n, next_row - first_row)  # rows before are on disk, or another writer's
        end = min(n, self.last_row - first_row)  # rows after are another writer's
        while done < end:
            size = min(self.shuffle.window, self.last_row - self.written_rows)
            take = slice(done, done + min(end - done, size - self._buffered))
            to = slice(self._buffered, self._buffered + take.stop - take.start)
            for site, buffer in self._held(rows).items():
                buffer[to].copy_(rows[site][take])
            self._index[to] = index[take]
            self._buffered, done = to.stop, take.stop
            if self._buffered == size:
                self._write_window(size)

    def _held_dtype(self, rows: Tensor) -> torch.dtype:
        """The dtype of buffered rows: that of the store, but for int8 one that the error can be measured in."""
        if self.dtype != "int8":
            return DTYPES[self.dtype]
        return rows.dtype if rows.dtype in (torch.bfloat16, torch.float16) else torch.float32

    def _held(self, rows: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        if not self._buffers:
            assert self.shuffle is not None
            size = min(self.shuffle.window, self.n_rows)
            self._buffers = {s: torch.empty(size, w, dtype=self._held_dtype(rows[s])) for s, w in self.sites.items()}
            self._index = np.empty((size, 3), dtype=np.int32)
        return self._buffers

    def _write_window(self, size: int) -> None:
        assert self.shuffle is not None
        places = self.shuffle(np.arange(self.written_rows, self.written_rows + size))
        chunk = self._shares.chunk_of(self.written_rows)
        self._scatter(places, {s: b[:size] for s, b in self._buffers.items()}, self._index[:size], chunk)
        self.written_rows += size
        self._buffered = 0

    def _scatter(
        self, places: NDArray[np.int64], rows: Mapping[Site, Tensor], index: NDArray[np.int32], chunk: int
    ) -> None:
        """Writes rows to their places, neighbours together, and adds them to the statistics."""
        order = np.argsort(places, kind="stable")
        ordered = places[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered) != 1) + 1, [len(ordered)]])
        pieces = list(zip(ordered[starts[:-1]].tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        inner = torch.from_numpy(np.flatnonzero(index[:, 1] > 0))
        with self._disk_errors():
            self._write(INDEX_FILE, index[order], pieces)
            for site, originals in rows.items():
                encoded = encode(originals, self.dtype)
                stored = originals if encoded.scales is None else decoded(encoded)
                norms = torch.linalg.vector_norm(stored.float(), dim=1).double()
                before = None if encoded.scales is None else originals[inner]
                self.statistics[site].add(stored[inner], norms[inner].numpy(), chunk, before)
                self._write(f"{site}.bin", encoded.raw[order], pieces)
                if encoded.scales is not None:
                    self._write(f"{site}.scales.bin", encoded.scales[order], pieces)
                self._write(f"{site}.norms.bin", norms.numpy().astype(np.float32)[order], pieces)

    def _write(self, name: str, ordered: NDArray[Any], pieces: Sequence[tuple[int, int, int]]) -> None:
        file = self._files[name]
        item = ordered.nbytes // max(1, len(ordered))
        data = ordered.reshape(-1).view(np.uint8).data
        for place, first, last in pieces:
            piece, offset = data[first * item : last * item], place * item
            while piece:
                written = os.pwrite(file, piece, offset)
                piece, offset = piece[written:], offset + written

    # --------------------------------------------------------- resume and finish

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON for a checkpoint. Rows before `written_rows` are on disk when this returns."""
        with self._disk_errors():
            for file in self._files.values():
                os.fsync(file)
        tensors = {
            f"{site}/{name}": tensor
            for site, statistics in self.statistics.items()
            for name, tensor in statistics.state().items()
        }
        share = {"rank": self.rank, "n_writers": self.n_writers}
        return tensors, {"written_rows": self.written_rows, "n_rows": self.n_rows, "seed": self.seed} | share

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continues from a `state` of a writer with the same arguments."""
        own = {"n_rows": self.n_rows, "seed": self.seed, "rank": self.rank, "n_writers": self.n_writers}
        assert {key: state[key] for key in own} == own, (state, own)
        _restore(self.statistics, tensors)
        self.written_rows, self._buffered = int(state["written_rows"]), 0

    def close(self) -> Store:
        """Writes the store's description, once all rows have been put, and opens the store."""
        assert self.n_writers == 1, "one of several writers ends with close_part"
        self._finish()
        with self._disk_errors():
            return _describe(self.folder, self._header(), self.statistics)

    def close_part(self) -> Path:
        """Writes this writer's part for `merge`, once all its rows have been put, and returns its file."""
        tensors, _ = self.state()
        self._finish()
        rows = self.first_row, self.last_row
        return write_part(self.folder, self.rank, self.n_writers, rows, self._header(), tensors)

    def _finish(self) -> None:
        rows = self.written_rows - self.first_row, self.last_row - self.first_row
        assert rows[0] == rows[1], f"{rows[0]} of {rows[1]} rows were put"
        with self._disk_errors():
            for file in self._files.values():
                os.close(file)
        self._files, self._buffers = {}, {}

    def _header(self) -> dict[str, Any]:
        """The facts that all writers of a store share."""
        shuffle = {"run": self.shuffle.run, "window": self.shuffle.window} if self.shuffle else None
        return {
            "n_rows": self.n_rows,
            "seed": self.seed,
            "dtype": self.dtype,
            "shuffle": shuffle,
            "chunks": self._shares.n_chunks,
            "sites": {str(site): width for site, width in self.sites.items()},
        }

    def _allocate(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        existing = [p.stat() for name in self._sizes if (p := self.folder / name).exists()]
        # Several writers' files are sparse: only what has been written takes disk space.
        present = sum(f.st_size if self.n_writers == 1 else min(f.st_size, f.st_blocks * 512) for f in existing)
        needed = store_bytes(self.n_rows, self.sites.values(), self.dtype) - present
        if needed > shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, "not enough room for the store")
        for name, size in self._sizes.items():
            # Write only: an NFS client that may read completes pages, and overwrites the rows of other writers in them.
            self._files[name] = file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            if self.n_writers > 1:  # the C library's fallback writes a byte into every page
                os.ftruncate(file, size)
                continue
            if os.fstat(file).st_size > size:
                os.ftruncate(file, size)
            try:
                os.posix_fallocate(file, 0, size)
            except (AttributeError, OSError) as error:  # some systems and file systems cannot reserve
                if is_full_disk(error):
                    raise
                os.ftruncate(file, size)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full_disk(error):
                raise
            free = shutil.disk_usage(self.folder).free
            corpus = self.shuffle is not None
            raise no_room(self.folder, self.sites, self.n_rows, self.dtype, free, corpus=corpus) from error


def merge(folder: Path) -> Store:
    """Merges the parts of several writers into one store, as a single writer would have written it, and opens it.

    Raises:
        MechstudyError: a part is missing, overlaps another, or belongs to another store (named).
    """
    parts = read_parts(folder)
    header = dict(parts[0].header)
    sites = {Site.parse(name): width for name, width in header["sites"].items()}
    total = _statistics(sites, header["chunks"], header["dtype"])
    for part in parts:
        one = _statistics(sites, header["chunks"], header["dtype"])
        _restore(one, part.tensors)
        for site, statistics in one.items():
            total[site].merge(statistics)
    store = _describe(folder, header, total)
    remove_parts(folder)
    return store


def _describe(folder: Path, header: Mapping[str, Any], statistics: Mapping[Site, RowStatistics]) -> Store:
    """Reads every file once for its checksums, writes the store's description, and opens the store."""
    save_file({f"{site}.mean": rows.mean() for site, rows in statistics.items()}, folder / STATISTICS_FILE)
    n_rows, dtype = header["n_rows"], header["dtype"]
    row_files = list(_sizes({site: header["sites"][str(site)] for site in statistics}, n_rows, dtype))
    sums = dict(zip(row_files, sums_of([folder / name for name in row_files]), strict=True))
    save_file({name: torch.tensor(file.crc32) for name, file in sums.items()}, folder / CHECKSUMS_FILE)
    for name in (STATISTICS_FILE, CHECKSUMS_FILE):
        sums[name] = sum_of(folder / name)
    description = {
        "schema": SCHEMA,
        "n_rows": n_rows,
        "seed": header["seed"],
        "dtype": dtype,
        "byte_order": "little",
        "shuffle": header["shuffle"],
        "index": {"file": INDEX_FILE, "dtype": "int32", "columns": ["document", "position", "token"]},
        "sites": {
            str(site): {
                "width": header["sites"][str(site)],
                "dtype": dtype,
                "shards": [{"file": f"{site}.bin", "rows": n_rows}],
                "norms": f"{site}.norms.bin",
                "statistics": rows.summary(),
            }
            | ({"scales": {"file": f"{site}.scales.bin", "columns": SCALE_BLOCK}} if dtype == "int8" else {})
            for site, rows in statistics.items()
        },
        "checksums": {"file": CHECKSUMS_FILE, "block": BLOCK},
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sums.items()},
    }
    (folder / STORE_FILE).write_text(json.dumps(description, indent=1) + "\n")
    return Store(folder)


def _sizes(sites: Mapping[Site, int], n_rows: int, dtype: str) -> dict[str, int]:
    """Bytes of every row file, by name."""
    sizes = {INDEX_FILE: n_rows * INDEX_ITEM_SIZE}
    for site, width in sites.items():
        sizes[f"{site}.bin"] = site_bytes(n_rows, width, dtype)
        if scales := scale_bytes(n_rows, width, dtype):
            sizes[f"{site}.scales.bin"] = scales
        sizes[f"{site}.norms.bin"] = n_rows * NORM_ITEM_SIZE
    return sizes


def _statistics(sites: Mapping[Site, int], chunks: int, dtype: str) -> dict[Site, RowStatistics]:
    return {site: RowStatistics(width, chunks, quantised=dtype == "int8") for site, width in sites.items()}


def _restore(statistics: Mapping[Site, RowStatistics], tensors: Mapping[str, Tensor]) -> None:
    for site, rows in statistics.items():
        prefix = f"{site}/"
        rows.restore({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
