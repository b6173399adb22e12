"""What a training step reuses from the last one, so that no step has to ask the system for memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Scratch:
    """Buffers by name, and copies of weights in the dtype of the products.

    A fresh matrix of tens of megabytes costs more in page faults than the product that fills it. What a step returns
    may lie in these buffers, and holds until the next step.
    """

    buffers: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape, contents undefined."""
        found = self.buffers.get(name)
        if found is None or found.dtype != dtype or found.shape[1:] != shape[1:] or len(found) < shape[0]:
            found = self.buffers[name] = large_empty(shape, dtype, device)
        return found[: shape[0]]

    def copy_of(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in ``dtype``: itself, or a copy that the optimizer keeps up to date (`Adam.step`)."""
        if weight.dtype == dtype:
            return weight
        if name not in self.copies:
            self.copies[name] = large_empty(tuple(weight.shape), dtype, weight.device).copy_(weight)
        return self.copies[name]


def large_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor, contents undefined; on a CPU NumPy asks for it, which has large matrices lie in huge pages.

    A matrix that is read row by row in no order costs a search of the page tables for every other row of 4 KiB pages.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
