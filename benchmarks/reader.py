"""The store's reader against a plain sequential read of the same files, from the page cache and from the disk.

Makes a store of random rows (default 4 GB), reads one site's rows through RowReader, and the same bytes with
readinto, in turn. Cold rounds drop the files from the page cache first (posix_fadvise).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.activations.reader import BLOCK_BYTES, RowReader
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.models.sites import Site

SITES = (Site("mlp_in", 0), Site("mlp_out", 0))


def make(folder: Path, n_rows: int, width: int) -> Store:
    writer = StoreWriter(folder, dict.fromkeys(SITES, width), n_rows, "bfloat16", seed=0)
    rows = torch.randn(65_536, width)
    for first in range(0, n_rows, len(rows)):
        part = rows[: min(len(rows), n_rows - first)]
        numbers = np.arange(first, first + len(part), dtype=np.int32)
        writer.put(first, dict.fromkeys(SITES, part), numbers // 128, numbers % 128, torch.from_numpy(numbers))
    return writer.close()


def forget(store: Store) -> None:
    os.sync()
    for site in SITES:
        file = os.open(store.sites[site].file, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def plain(store: Store) -> float:
    """Bytes a second of reading both files from end to end, block by block in turn."""
    buffer, total = bytearray(BLOCK_BYTES), 0
    began = time.perf_counter()
    files = [store.sites[site].file.open("rb", buffering=0) for site in SITES]
    while counts := [n for file in files if (n := file.readinto(buffer))]:
        total += sum(counts)
    for file in files:
        file.close()
    return total / (time.perf_counter() - began)


def reader(store: Store, batch: int) -> float:
    """Bytes a second of the same rows as float32 batches, as training gets them."""
    source = RowReader(store, *SITES, batch)
    steps = source.rows_per_epoch // batch
    began = time.perf_counter()
    for _ in islice(source.batches(), steps):
        pass
    seconds = time.perf_counter() - began
    return sum(store.sites[site].file.stat().st_size for site in SITES) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reader.json")
    a = parser.parse_args()
    n_rows = int(a.gigabytes * 1e9 / (2 * 2 * a.width))
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        store = make(Path(folder), n_rows, a.width)
        found: dict[str, list[float]] = {}
        for kind in ("warm", "cold"):
            for _ in range(a.rounds):
                for name, measure in (("plain", lambda: plain(store)), ("reader", lambda: reader(store, a.batch))):
                    if kind == "cold":
                        forget(store)
                    found.setdefault(f"{kind} {name}", []).append(measure() / 1e9)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for kind in ("warm", "cold"):
        ours, theirs = medians[f"{kind} reader"], medians[f"{kind} plain"]
        print(f"{kind}: plain {theirs:.2f} GB/s, reader {ours:.2f} GB/s: {ours / theirs:.0%}")
    write(a.out, gigabytes=a.gigabytes, width=a.width, batch=a.batch, gigabytes_per_second=found, medians=medians)


if __name__ == "__main__":
    main()
