"""Activation stores: finished captures on disk, opened for reading."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from mechstudy.activations.checksums import FileSum, check_files
from mechstudy.activations.config import (
    INDEX_ITEM_SIZE,
    NORM_ITEM_SIZE,
    scale_bytes,
    scales_per_row,
    site_bytes,
)
from mechstudy.activations.encoding import RAW, decode
from mechstudy.activations.permutation import WindowedShuffle
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

SCHEMA = 2
READABLE_SCHEMAS = (1, 2)  # 1: before int8 rows and checksums
INDEX_FILE, STATISTICS_FILE, STORE_FILE = "index.bin", "statistics.safetensors", "store.json"
CHECKSUMS_FILE = "checksums.safetensors"


@dataclass(frozen=True)
class SiteFiles:
    """Files and statistics of one site of a store.

    Statistics exclude first positions and rows that are not finite; they are None without rows. ``quantisation_fvu`` is
    the squared error of int8 rows over their variance, sinks excluded; None for other dtypes.
    """

    width: int
    dtype: str
    file: Path
    norms_file: Path
    scales_file: Path | None  # of int8 rows only
    count: int
    mean_squared_norm: float | None
    median_norm: float | None
    max_norm: float | None
    not_finite: int = 0
    quantisation_fvu: float | None = None


@dataclass(frozen=True)
class Index:
    """The document, position and token of each row."""

    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    tokens: NDArray[np.int32]


class Store:
    """A finished store, opened for reading. The sizes of all files are checked.

    ``copies`` maps files to the copies that are read instead (see `reading`).

    Raises:
        MechstudyError: not a store, a missing or truncated file (named).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / STORE_FILE).read_text())
            assert meta["schema"] in READABLE_SCHEMAS, meta["schema"]
            self.n_rows, self.seed, self.dtype = int(meta["n_rows"]), int(meta["seed"]), str(meta["dtype"])
            self.sites = {Site.parse(name): self._site(site) for name, site in meta["sites"].items()}
            shuffle = meta["shuffle"]
            self._files: dict[str, dict[str, Any]] = meta.get("files", {})
            self._block = int(meta["checksums"]["block"]) if self._files else 0
        except FileNotFoundError as error:
            raise MechstudyError(
                "no activation store here: store.json is missing", where=str(folder), fix="capture it again"
            ) from error
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise MechstudyError(
                "store.json is not readable", where=str(folder), facts={"reason": repr(error)}
            ) from error
        self.copies: Mapping[Path, Path] = {}
        self._shuffle = WindowedShuffle(self.n_rows, self.seed, **shuffle) if shuffle else None
        self._check_sizes()

    def rows(self, site: Site, rows: slice = slice(None)) -> Float[Tensor, "n d"]:
        """Rows of a site in float32. Only the bytes of the slice's span are read."""
        files = self.sites[site]
        raw = self._read(files.file, RAW[files.dtype], files.width, rows)
        scales = None
        if files.scales_file is not None:
            scales = self._read(files.scales_file, np.float32, scales_per_row(files.width), rows)
        out = np.empty(raw.shape, np.float32)
        decode(raw, scales, out)
        return torch.from_numpy(out)

    def norms(self, site: Site, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Euclidean norms of a site's rows."""
        return self._read(self.sites[site].norms_file, np.float32, 1, rows)[:, 0]

    def index(self, rows: slice = slice(None)) -> Index:
        """Documents, positions and tokens of rows."""
        columns = self._read(self.folder / INDEX_FILE, np.int32, 3, rows)
        return Index(columns[:, 0], columns[:, 1], columns[:, 2])

    def places(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Places in the files of rows that were put under these numbers."""
        return np.asarray(numbers, dtype=np.int64) if self._shuffle is None else self._shuffle(numbers)

    def mean(self, site: Site) -> Float[Tensor, " d"]:
        """Mean row of a site, in float64, without first positions."""
        with safe_open(self.folder / STATISTICS_FILE, "pt") as file:
            mean: Tensor = file.get_tensor(f"{site}.mean")
        return mean

    def verify(self) -> None:
        """Reads every file from end to end and compares it with the checksums taken when it was written.

        Raises:
            MechstudyError: a file differs (named, with its first block that does), or there are no checksums.
        """
        self._require_checksums()
        small = {self.folder / name: self._sum(name, ()) for name in (CHECKSUMS_FILE, STATISTICS_FILE)}
        check_files(small.items())  # first, as one of them holds the checksums of blocks
        check_files(self.checksums([self.folder / name for name in self._files if name.endswith(".bin")]).items())

    def checksums(self, files: Iterable[Path]) -> dict[Path, FileSum]:
        """The checksums of some of the row files.

        Raises:
            MechstudyError: the store was written by a version without checksums.
        """
        self._require_checksums()
        with safe_open(self.folder / CHECKSUMS_FILE, "pt") as opened:
            return {file: self._sum(file.name, opened.get_tensor(file.name).tolist()) for file in files}

    def sha256(self, name: str) -> str | None:
        """The sha256 of a file when it was written; None in a store without checksums."""
        return self._files[name]["sha256"] if name in self._files else None

    def reading(self, copies: Mapping[Path, Path]) -> Store:
        """This store, with some row files read from copies (see `staging`)."""
        other = copy(self)
        other.copies = dict(copies)
        other.sites = {
            site: replace(
                files,
                file=copies.get(files.file, files.file),
                scales_file=files.scales_file and copies.get(files.scales_file, files.scales_file),
            )
            for site, files in self.sites.items()
        }
        return other

    def _require_checksums(self) -> None:
        if not self._files:
            raise MechstudyError(
                "the store has no checksums: it was written by an earlier version",
                where=str(self.folder),
                fix="capture it again",
            )

    def _sum(self, name: str, crc32: Sequence[int]) -> FileSum:
        entry = self._files.get(name, {"bytes": 0, "sha256": ""})
        return FileSum(entry["bytes"], entry["sha256"], tuple(crc32), self._block)

    def _site(self, meta: Mapping[str, Any]) -> SiteFiles:
        (shard,) = meta["shards"]
        return SiteFiles(
            int(meta["width"]),
            str(meta["dtype"]),
            self.folder / shard["file"],
            self.folder / meta["norms"],
            self.folder / meta["scales"]["file"] if "scales" in meta else None,
            **meta["statistics"],
        )

    def _read(self, file: Path, dtype: type[np.generic], width: int, rows: slice) -> NDArray[Any]:
        first, last, step = rows.indices(self.n_rows)
        assert step > 0, "rows are read forwards"
        count = max(0, last - first) * width
        offset = first * width * np.dtype(dtype).itemsize
        return np.fromfile(file, dtype, count=count, offset=offset).reshape(-1, width)[::step]

    def _check_sizes(self) -> None:
        expected = {self.folder / name: entry["bytes"] for name, entry in self._files.items()}
        expected[self.folder / INDEX_FILE] = self.n_rows * INDEX_ITEM_SIZE
        for site in self.sites.values():
            expected[site.file] = site_bytes(self.n_rows, site.width, site.dtype)
            expected[site.norms_file] = self.n_rows * NORM_ITEM_SIZE
            if site.scales_file is not None:
                expected[site.scales_file] = scale_bytes(self.n_rows, site.width, site.dtype)
        for file, size in expected.items():
            actual = file.stat().st_size if file.exists() else None
            if actual != size:
                raise MechstudyError(
                    f"{file.name} is missing" if actual is None else f"{file.name} is truncated or damaged",
                    where=str(self.folder),
                    facts={"expected": f"{size:,} bytes"} | ({"found": f"{actual:,} bytes"} if actual else {}),
                    fix="capture it again",
                )
