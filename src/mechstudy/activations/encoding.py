"""Rows as stored bytes: bf16 and float32 unchanged, int8 with one scale for every block of coordinates.

A residual stream has a few coordinates hundreds of times larger than the rest. One scale for the whole row would round
the others to zero; with a scale for every 64 coordinates, only an outlier's own block is coarse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import SCALE_BLOCK, scales_per_row

DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
RAW: dict[str, type[np.generic]] = {"bfloat16": np.uint16, "float32": np.uint32, "int8": np.int8}
_RAW_TORCH = {"bfloat16": torch.int16, "float32": torch.int32, "int8": torch.int8}
_CACHED = 1 << 15  # numbers processed at a time, so that they stay in the CPU's cache
LEVELS = 127  # -127..127: symmetric, so that -x is stored as the negative of x


@dataclass(frozen=True)
class Encoded:
    """Stored rows: ``raw`` [n, width], and for int8 ``scales`` [n, blocks]."""

    raw: NDArray[Any]
    scales: NDArray[np.float32] | None = None


def encode(rows_ND: Float[Tensor, "n d"], dtype: str) -> Encoded:
    """Encodes rows on the CPU.

    The scale of an int8 block is its largest magnitude / 127: 0 for a block of zeros, and NaN for a block with a number
    that is not finite, which is decoded as NaN.
    """
    if dtype != "int8":
        return Encoded(rows_ND.to(DTYPES[dtype]).contiguous().view(_RAW_TORCH[dtype]).numpy())
    n, width = rows_ND.shape
    raw = np.empty((n, width), np.int8)
    scales = np.empty((n, scales_per_row(width)), np.float32)
    step = max(1, _CACHED // width)
    for first in range(0, n, step):
        part = slice(first, first + step)
        levels, scale = _quantise(rows_ND[part])
        raw[part], scales[part] = levels.numpy(), scale.numpy()
    return Encoded(raw, scales)


def _quantise(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    n, width = rows_ND.shape
    blocks = scales_per_row(width)
    values = rows_ND.float()
    if width % SCALE_BLOCK:
        values = torch.nn.functional.pad(values, (0, blocks * SCALE_BLOCK - width))
    values = values.view(n, blocks, SCALE_BLOCK)
    scales = values.abs().amax(2) / LEVELS
    scales = torch.where(torch.isfinite(scales), scales, torch.nan)
    divisor = torch.where(scales > 0, scales, torch.inf)  # x / inf: a block without a scale is stored as zeros
    levels = (values / divisor[:, :, None]).nan_to_num_(0.0).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
    return levels.view(n, -1)[:, :width], scales


def decode(raw: NDArray[Any], scales: NDArray[Any] | None, out: NDArray[Any]) -> None:
    """Decodes stored rows [n, width] into contiguous float32 ``out`` [n, width], on one core (NumPy only)."""
    if scales is None:
        bits = out.view(np.uint32)
        bits[...] = raw
        if raw.dtype == np.uint16:  # a bf16 is the upper half of a float32
            np.left_shift(bits, 16, out=bits)
        return
    n, width = out.shape
    whole = width // SCALE_BLOCK
    end = whole * SCALE_BLOCK
    blocks = (n, whole, SCALE_BLOCK)
    if whole:
        np.multiply(raw[:, :end].reshape(blocks), scales[:, :whole, None], out=out[:, :end].reshape(blocks))
    if end < width:
        np.multiply(raw[:, end:], scales[:, whole:], out=out[:, end:])


def decoded(encoded: Encoded) -> Float[Tensor, "n d"]:
    """The rows as a reader returns them, in float32."""
    out = np.empty(encoded.raw.shape, np.float32)
    decode(encoded.raw, encoded.scales, out)
    return torch.from_numpy(out)
