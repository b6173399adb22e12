"""Tensors from the host's memory to a device's, without waiting for the copy where that is possible."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. To CUDA it goes by way of pinned memory, and the copy runs beside what comes next.

    What was given may be changed at once: pinned memory is a copy, and is not given away before it has been read.
    """
    target = torch.device(device)
    if target.type == "cuda" and tensor.device.type == "cpu":
        return (tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()).to(target, non_blocking=True)
    return tensor.to(target)


def sent_ahead(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs on a device, the next one's copy begun before the last one is used; equal tensors stay one."""
    waiting: tuple[Tensor, Tensor] | None = None
    try:
        for x, y in batches:
            x_there = sent(x, device)
            pair = x_there, x_there if y is x else sent(y, device)
            if waiting is not None:
                yield waiting
            waiting = pair
        if waiting is not None:
            yield waiting
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
