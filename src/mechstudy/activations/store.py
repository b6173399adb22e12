"""The on-disk activation store: raw rows of bf16 or f32, shuffled once as they are written.

A folder holds, for every site, ``<site>.bin`` (``n_rows x width`` little-endian numbers, no header) and
``<site>.norms.bin`` (float32 Euclidean norm of each row); ``index.bin`` (int32 document, position, token of
each row); ``statistics.safetensors`` (``<site>.mean``, float64) and ``store.json``. Row i means the same
token in all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import INDEX_ITEM_SIZE, NORM_ITEM_SIZE, site_bytes, store_bytes
from mechstudy.activations.permutation import WindowedShuffle, run_length
from mechstudy.activations.statistics import RowStatistics
from mechstudy.core.disk import free_text, is_full_disk
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

SCHEMA = 1
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RAW: dict[str, type[np.generic]] = {"bfloat16": np.uint16, "float32": np.uint32}
_RAW_TORCH = {"bfloat16": torch.int16, "float32": torch.int32}
INDEX_FILE, STATISTICS_FILE, STORE_FILE = "index.bin", "statistics.safetensors", "store.json"

Ints = Sequence[int] | NDArray[np.integer] | Tensor


class StoreWriter:
    """Writes rows of several sites, put in order, to their shuffled places.

    Rows wait in memory until a window of them is complete (see `permutation.WindowedShuffle`: about 4 MiB
    times the sites, however many rows there are). With ``shuffle=False`` rows stay where they are put, and
    may be put in any order. `state` and `restore` make an interrupted capture resumable: everything up to
    `written_rows` is on disk, and rows below it that are put again are ignored.
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
    ) -> None:
        """Create (or reopen) the files at their full size.

        Args:
            sites: width of each site.
            n_rows: rows that will be put, exactly.

        Raises:
            MechstudyError: the disk has not enough room.
        """
        assert sys.byteorder == "little", "stores are little-endian"
        assert sites and n_rows > 0, (sites, n_rows)
        self.folder, self.sites, self.n_rows, self.dtype, self.seed = folder, dict(sites), n_rows, dtype, seed
        self.shuffle: WindowedShuffle | None = None
        if shuffle:
            run = run_length(site_bytes(1, min(self.sites.values()), dtype))
            self.shuffle = WindowedShuffle(n_rows, seed, run)
            window = min(self.shuffle.window, n_rows)
            self._buffers = {s: torch.empty(window, width, dtype=DTYPES[dtype]) for s, width in self.sites.items()}
            self._index = np.empty((window, 3), dtype=np.int32)
        self.statistics = {site: RowStatistics(width) for site, width in self.sites.items()}
        self.written_rows = 0
        self._buffered = 0
        self._sizes = {INDEX_FILE: n_rows * INDEX_ITEM_SIZE}
        for site, width in self.sites.items():
            self._sizes[f"{site}.bin"] = site_bytes(n_rows, width, dtype)
            self._sizes[f"{site}.norms.bin"] = n_rows * NORM_ITEM_SIZE
        self._files: dict[str, int] = {}
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
        """Add rows: ``rows[site]`` is [n, width] on any device, the rest are [n].

        ``first_row`` is the number of the first one, which continues where the last put ended; without
        shuffling it may also be the array of their places [n].
        """
        index = np.stack([np.asarray(c, dtype=np.int32) for c in (documents, positions, tokens)], axis=1)
        n = len(index)
        for site, width in self.sites.items():
            assert rows[site].shape == (n, width), (site, tuple(rows[site].shape), (n, width))
        if self.shuffle is None:
            places = np.arange(n) + first_row if isinstance(first_row, int) else np.asarray(first_row)
            cpu = {site: rows[site].to("cpu", DTYPES[self.dtype]) for site in self.sites}
            self._scatter(places.astype(np.int64), cpu, index)
            self.written_rows += n
            return
        assert isinstance(first_row, int)
        next_row = self.written_rows + self._buffered
        assert first_row <= next_row and first_row + n <= self.n_rows, (first_row, n, next_row, self.n_rows)
        done = min(n, next_row - first_row)  # rows of an interrupted run that are on disk already
        while done < n:
            size = min(self.shuffle.window, self.n_rows - self.written_rows)
            take = slice(done, done + min(n - done, size - self._buffered))
            to = slice(self._buffered, self._buffered + take.stop - take.start)
            for site, buffer in self._buffers.items():
                buffer[to].copy_(rows[site][take])
            self._index[to] = index[take]
            self._buffered, done = to.stop, take.stop
            if self._buffered == size:
                self._write_window(size)

    def _write_window(self, size: int) -> None:
        assert self.shuffle is not None
        places = self.shuffle(np.arange(self.written_rows, self.written_rows + size))
        self._scatter(places, {s: b[:size] for s, b in self._buffers.items()}, self._index[:size])
        self.written_rows += size
        self._buffered = 0

    def _scatter(self, places: NDArray[np.int64], rows: Mapping[Site, Tensor], index: NDArray[np.int32]) -> None:
        """Write rows to their places, neighbours together; count them into the statistics."""
        order = np.argsort(places, kind="stable")
        ordered = places[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered) != 1) + 1, [len(ordered)]])
        pieces = list(zip(ordered[starts[:-1]].tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        inner = torch.from_numpy(np.flatnonzero(index[:, 1] > 0))
        with self._disk_errors():
            self._write(INDEX_FILE, index[order], pieces)
            for site, values in rows.items():
                norms = torch.linalg.vector_norm(values.float(), dim=1).double()
                self.statistics[site].add(values[inner], norms[inner].numpy())
                raw = values.contiguous().view(_RAW_TORCH[self.dtype]).numpy()
                self._write(f"{site}.bin", raw[order], pieces)
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
        """Tensors and JSON for a checkpoint; rows before `written_rows` are on disk when this returns."""
        with self._disk_errors():
            for file in self._files.values():
                os.fsync(file)
        tensors = {
            f"{site}/{name}": tensor
            for site, statistics in self.statistics.items()
            for name, tensor in statistics.state().items()
        }
        return tensors, {"written_rows": self.written_rows, "n_rows": self.n_rows, "seed": self.seed}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a `state` of a writer with the same arguments."""
        assert (state["n_rows"], state["seed"]) == (self.n_rows, self.seed), state
        for site, statistics in self.statistics.items():
            statistics.restore({n: tensors[f"{site}/{n}"] for n in ("sum", "scalars", "histogram")})
        self.written_rows, self._buffered = int(state["written_rows"]), 0

    def close(self) -> Store:
        """Write the description once every row is there, and open the store."""
        assert self.written_rows == self.n_rows, f"{self.written_rows} of {self.n_rows} rows were put"
        from safetensors.torch import save_file

        means = {f"{site}.mean": statistics.mean() for site, statistics in self.statistics.items()}
        with self._disk_errors():
            save_file(means, self.folder / STATISTICS_FILE)
            (self.folder / STORE_FILE).write_text(json.dumps(self._description(), indent=1) + "\n")
            for file in self._files.values():
                os.close(file)
        self._files = {}
        return Store(self.folder)

    def _description(self) -> dict[str, Any]:
        shuffle = self.shuffle
        return {
            "schema": SCHEMA,
            "n_rows": self.n_rows,
            "seed": self.seed,
            "dtype": self.dtype,
            "byte_order": "little",
            "shuffle": {"run": shuffle.run, "window": shuffle.window} if shuffle else None,
            "index": {"file": INDEX_FILE, "dtype": "int32", "columns": ["document", "position", "token"]},
            "sites": {
                str(site): {
                    "width": width,
                    "dtype": self.dtype,
                    "shards": [{"file": f"{site}.bin", "rows": self.n_rows}],
                    "norms": f"{site}.norms.bin",
                    "statistics": self.statistics[site].summary(),
                }
                for site, width in self.sites.items()
            },
        }

    def _allocate(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        present = sum(p.stat().st_size for name in self._sizes if (p := self.folder / name).exists())
        needed = store_bytes(self.n_rows, self.sites.values(), self.dtype) - present
        if needed > shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, "not enough room for the store")
        for name, size in self._sizes.items():
            self._files[name] = file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
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
            needed = store_bytes(self.n_rows, self.sites.values(), self.dtype)
            raise MechstudyError(
                "the disk has not enough room for the activation store",
                where=str(self.folder),
                facts={"needed": f"{needed:,} bytes", "free": free_text(self.folder)},
                fix="free some disk, or capture fewer tokens, layers or sites",
            ) from error


@dataclass(frozen=True)
class SiteFiles:
    """One site of a store. Statistics leave out first positions; None where there are no rows."""

    width: int
    dtype: str
    file: Path
    norms_file: Path
    count: int
    mean_squared_norm: float | None
    median_norm: float | None
    max_norm: float | None


@dataclass(frozen=True)
class Index:
    """Where rows come from; three int32 arrays of equal length."""

    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    tokens: NDArray[np.int32]


class Store:
    """A finished store, opened for reading; the size of every file is verified.

    Raises:
        MechstudyError: not a store, a missing or truncated file (named).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / STORE_FILE).read_text())
            assert meta["schema"] == SCHEMA, meta["schema"]
            self.n_rows, self.seed, self.dtype = int(meta["n_rows"]), int(meta["seed"]), str(meta["dtype"])
            self.sites = {Site.parse(name): self._site(site) for name, site in meta["sites"].items()}
            shuffle = meta["shuffle"]
        except FileNotFoundError as error:
            raise MechstudyError(
                "no activation store here: store.json is missing", where=str(folder), fix="capture it again"
            ) from error
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise MechstudyError(
                "store.json is not readable", where=str(folder), facts={"reason": repr(error)}
            ) from error
        self._shuffle = WindowedShuffle(self.n_rows, self.seed, **shuffle) if shuffle else None
        self._verify()

    @classmethod
    def open(cls, folder: Path) -> Store:
        return cls(folder)

    def rows(self, site: Site, rows: slice = slice(None)) -> Tensor:
        """Rows of a site as float32 [n, width]; only the bytes of the slice's span are read."""
        files = self.sites[site]
        raw = self._read(files.file, RAW[files.dtype], files.width, rows)
        signed = raw.view(np.int16 if files.dtype == "bfloat16" else np.int32)
        return torch.from_numpy(signed).view(DTYPES[files.dtype]).float()

    def norms(self, site: Site, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Euclidean norms of a site's rows [n]."""
        return self._read(self.sites[site].norms_file, np.float32, 1, rows)[:, 0]

    def index(self, rows: slice = slice(None)) -> Index:
        """Document, position and token of rows."""
        columns = self._read(self.folder / INDEX_FILE, np.int32, 3, rows)
        return Index(columns[:, 0], columns[:, 1], columns[:, 2])

    def places(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where rows ended up, by the number they were put under."""
        return np.asarray(numbers, dtype=np.int64) if self._shuffle is None else self._shuffle(numbers)

    def mean(self, site: Site) -> Tensor:
        """Mean row of a site, float64 [width], without the documents' first positions."""
        from safetensors import safe_open

        with safe_open(self.folder / STATISTICS_FILE, "pt") as file:
            return file.get_tensor(f"{site}.mean")

    def _site(self, meta: Mapping[str, Any]) -> SiteFiles:
        (shard,) = meta["shards"]
        return SiteFiles(
            int(meta["width"]),
            str(meta["dtype"]),
            self.folder / shard["file"],
            self.folder / meta["norms"],
            **meta["statistics"],
        )

    def _read(self, file: Path, dtype: type[np.generic], width: int, rows: slice) -> NDArray[Any]:
        first, last, step = rows.indices(self.n_rows)
        assert step > 0, "rows are read forwards"
        count = max(0, last - first) * width
        offset = first * width * np.dtype(dtype).itemsize
        return np.fromfile(file, dtype, count=count, offset=offset).reshape(-1, width)[::step]

    def _verify(self) -> None:
        expected = {self.folder / INDEX_FILE: self.n_rows * INDEX_ITEM_SIZE}
        for site in self.sites.values():
            expected[site.file] = site_bytes(self.n_rows, site.width, site.dtype)
            expected[site.norms_file] = self.n_rows * NORM_ITEM_SIZE
        for file, size in expected.items():
            found = file.stat().st_size if file.exists() else None
            if found != size:
                raise MechstudyError(
                    f"{file.name} is missing" if found is None else f"{file.name} is truncated or damaged",
                    where=str(self.folder),
                    facts={"expected": f"{size:,} bytes"} | ({"found": f"{found:,} bytes"} if found else {}),
                    fix="capture it again",
                )
