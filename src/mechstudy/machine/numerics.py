"""Precision of float32 matrix products on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Whether float32 products on CUDA may round their factors to TF32 (10 bits), inside the block only."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def exact_products() -> None:
    """Turns TF32 off from here on: an earlier unit of the same process may have turned it on."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_float32_matmul_precision("highest")
