"""Copies of tensors to a device, asynchronous where that is possible."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(tensor: Shaped[Tensor, "*shape"], device: torch.device | str) -> Shaped[Tensor, "*shape"]:
    """The tensor on a device. To CUDA it is copied asynchronously, through pinned memory.

    The original may be changed at once: pinned memory is a copy, and it is not reused before it has been read.
    """
    target = torch.device(device)
    if target.type == "cuda" and tensor.device.type == "cpu":
        return (tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()).to(target, non_blocking=True)
    return tensor.to(target)


def copied_ahead(
    batches: Iterator[tuple[Tensor, Tensor]], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs on a device. The copy of the next pair begins before the current one is used.

    A pair of one tensor twice stays one tensor.
    """
    waiting: tuple[Tensor, Tensor] | None = None
    try:
        for x, y in batches:
            on_device = to_device(x, device)
            pair = on_device, on_device if y is x else to_device(y, device)
            if waiting is not None:
                yield waiting
            waiting = pair
        if waiting is not None:
            yield waiting
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
