"""EleutherAI's sparsify: makes, saves and computes small sparse coders."""

from __future__ import annotations

from typing import Any

import torch
from sparsify import SparseCoder, SparseCoderConfig

from tests.peers.workers.serve import answer, randomise, rows, serve


def make(folder: str, d: int, options: dict[str, Any], dtype: str, seed: int = 0) -> None:
    coder = SparseCoder(d, SparseCoderConfig(**options), dtype=getattr(torch, dtype))
    randomise(coder, seed)
    coder.save_to_disk(folder)
    compute(folder, coder)


def load(folder: str) -> None:
    compute(folder, SparseCoder.load_from_disk(folder))


def compute(folder: str, coder: SparseCoder) -> None:
    x = rows(folder)
    values, indices, _ = coder.encode(x)
    features = torch.zeros(len(x), coder.num_latents, dtype=x.dtype).scatter_(1, indices, values)
    answer(folder, features, coder(x).sae_out)


if __name__ == "__main__":
    serve(make=make, load=load)
