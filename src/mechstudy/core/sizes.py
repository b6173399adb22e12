"""Sizes in bytes: as text, of a number, and of a safetensors file before it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "int8": 1}
_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32", "int64": "I64"}


def human(n: float) -> str:
    """Bytes as text: ``1.25 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":  # above, three digits round to 1000
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"


def safetensors_bytes(tensors: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Exact size of a safetensors file of these tensors (name -> shape, all of one dtype) without metadata.

    The format: 8 bytes, a JSON header padded to a multiple of 8, the numbers in the order of names.
    """
    header, offset = {}, 0
    for name in sorted(tensors):
        end = offset + prod(tensors[name]) * ITEM_BYTES[dtype]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(tensors[name]), "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-text // 8) * 8 + offset
