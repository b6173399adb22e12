"""Rows out, features and reconstructions in, and how equal they must be."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.dictionaries.dictionary import Dictionary

D, F, K, N = 16, 48, 5, 64
# Folded and unfolded forms add the same products in another order: a few roundings of the largest value.
ULPS = 16


def write_rows(folder: Path, dtype: torch.dtype, d: int = D) -> Tensor:
    """N fixed rows that are not centred, for the worker to read."""
    x = torch.randn(N, d, generator=torch.Generator().manual_seed(11), dtype=torch.float64) + 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"x": x.to(dtype)}, folder / "rows.safetensors")
    return x.to(dtype)


def read_answer(folder: Path) -> tuple[Tensor, Tensor]:
    found = load_file(folder / "answer.safetensors")
    return found["features"], found["reconstruction"]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to `ULPS` roundings of the largest value; and some features are active, not all."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    atol = ULPS * torch.finfo(theirs.dtype).eps * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def assert_computes(dictionary: Dictionary, x: Tensor, folder: Path) -> None:
    """The dictionary gives the features and reconstructions that the peer wrote."""
    features, reconstruction = read_answer(folder)
    share = float((features != 0).double().mean())
    assert 0.02 < share < 0.98, f"{share:.0%} of the features are active: this would show nothing"
    assert_same(dictionary.encode(x), features)
    assert_same(dictionary.reconstruct(x), reconstruction)
