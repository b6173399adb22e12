"""Selecting and summing active entries on any device; `reference` defines each kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from mechstudy.dictionaries.kernels import gpu, reference


@cache
def _cpu() -> Any:
    """The kernels for CPUs; None with a Python that Numba does not support yet: slower, the same results."""
    try:
        from mechstudy.dictionaries.kernels import cpu  # Numba takes half a second, and graphs of neurons need none
    except ImportError:
        return None
    return cpu


def kernels_for(*tensors: Tensor) -> Any:
    """The module whose kernels support these tensors."""
    cpu = _cpu()
    if cpu is not None and cpu.supports(*tensors):
        return cpu
    return gpu if gpu.supports(*tensors) else reference


def positive_top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.positive_top_k`."""
    return kernels_for(pre_NF).positive_top_k(pre_NF, k)  # type: ignore[no-any-return]


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `reference.top_k`."""
    return kernels_for(pre_NF).top_k(pre_NF, k)  # type: ignore[no-any-return]


def batch_top_k(pre_NF: Tensor, wanted: int, guess: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.batch_top_k`."""
    return kernels_for(pre_NF).batch_top_k(pre_NF, wanted, guess)  # type: ignore[no-any-return]


def between(pre_NF: Tensor, low_F: Tensor, high_F: Tensor, at_most: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.between`."""
    return kernels_for(pre_NF).between(pre_NF, low_F, high_F, at_most)  # type: ignore[no-any-return]
