"""Weights of a dictionary in training, gradients of the same shape, and the buffers a step reuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Weights:
    """Weights in the normalised space. `enc` is W_enc transposed, so that both big matrices are rows by feature.

    enc [F, d_in], b_enc [F], dec [F, d_out], b_dec [d_out], skip [d_out, d_in] or None; extra: further weights of an
    architecture, [F] each. A cross-layer transcoder has dec [pairs, F / L, d_out / L] (`cross_layer`).
    """

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor
    skip: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, in a fixed order."""
        for name in ("enc", "b_enc", "dec", "b_dec", "skip"):
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor
        yield from sorted(self.extra.items())

    def put(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor by its name."""
        if name in self.extra:
            self.extra[name] = tensor
        else:
            setattr(self, name, tensor)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Weights:
        """From named tensors, as `named` yields them."""
        extra = dict(tensors)
        fixed = {name: extra.pop(name) for name in ("enc", "b_enc", "dec", "b_dec", "skip") if name in extra}
        return cls(**fixed, extra=extra)


@dataclass
class Scratch:
    """Buffers by name, and copies of weights in the dtype of the products.

    A fresh matrix of tens of megabytes costs more in page faults than the product that fills it. Results of a step may
    be in these buffers, and are valid until the next step.
    """

    buffers: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape with undefined contents."""
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.shape[1:] != shape[1:] or len(buffer) < shape[0]:
            buffer = self.buffers[name] = large_empty(shape, dtype, device)
        return buffer[: shape[0]]

    def copy_of(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in ``dtype``: itself, or a copy that the optimizer keeps up to date (`Adam.step`)."""
        if weight.dtype == dtype:
            return weight
        if name not in self.copies:
            self.copies[name] = large_empty(tuple(weight.shape), dtype, weight.device).copy_(weight)
        return self.copies[name]


def large_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor with undefined contents; on a CPU NumPy allocates it, which puts large matrices into huge pages.

    With 4 KiB pages, reading rows in random order costs a search of the page tables for every other row.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
