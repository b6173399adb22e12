"""Writes a store as one of several processes; run by `multiprocessing` with spawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mechstudy.activations import permutation
from mechstudy.activations.capture import capture_corpus, capture_corpus_part
from mechstudy.activations.writer import StoreWriter
from mechstudy.models.sites import Site

SITES = {Site("mlp_in", 1): 70, Site("resid_post", 1): 33}
N_ROWS, CONTEXT = 5003, 11
FEW = 128  # bytes of a run: windows of 512 rows


def rows(first: int, last: int, width: int) -> torch.Tensor:
    """Rows that depend on their number alone, over so many octaves that their float64 sums depend on the order."""
    number = torch.arange(first, last, dtype=torch.float64)[:, None]
    return (torch.sin(number * torch.arange(1, width + 1) * 0.7391) * 2 ** (number % 61 - 30)).float()


def write(folder: Path, rank: int, n_writers: int, dtype: str, step: int = 61, run_bytes: int = FEW) -> None:
    permutation.RUN_BYTES = run_bytes
    torch.set_num_threads(1)
    writer = StoreWriter(folder, SITES, N_ROWS, dtype, 7, rank=rank, n_writers=n_writers)
    for first in range(writer.first_row // step * step, writer.last_row, step):
        last = min(N_ROWS, first + step)
        numbers = np.arange(first, last)
        found = {site: rows(first, last, width) for site, width in SITES.items()}
        writer.put(first, found, numbers // CONTEXT, numbers % CONTEXT, numbers % 13)
    if n_writers == 1:
        writer.close()
    else:
        writer.close_part()


def capture(folder: Path, rank: int, n_writers: int) -> None:
    from tests.support.tiny import tiny_model

    permutation.RUN_BYTES = 1  # windows of 256 rows
    torch.set_num_threads(1)
    model = tiny_model("qwen2", dtype="float32")
    tokens = torch.randint(1, 250, (151, 6), generator=torch.Generator().manual_seed(0)).int()
    sites = [Site("mlp_in", 1), Site("mlp_out", 1)]
    if n_writers == 1:
        capture_corpus(model, tokens, sites, folder, batch_tokens=24)
    else:
        capture_corpus_part(model, tokens, sites, folder, rank, n_writers, batch_tokens=24)
