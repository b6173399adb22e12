"""The faster precision on this machine, measured once and remembered."""

from __future__ import annotations

import time

import torch

from mechstudy.machine.cache import remembered

GAIN = 1.2  # bfloat16 must be faster by this factor to be worth its rounding
_ROWS = 2048


def faster_dtype(d_in: int, d_out: int, device: str, n_rows: int = _ROWS) -> str:
    """``bfloat16`` if a product [n_rows, d_in] x [d_in, d_out] is clearly faster in it, else ``float32``.

    On GPUs and on CPUs with AMX, bfloat16 is several times faster; on other CPUs it may be half as fast.
    """
    question = f"product {n_rows} x {d_in} x {d_out} on {device}, {torch.get_num_threads()} threads"

    def measure() -> str:
        times = {dtype: _product_seconds(n_rows, d_in, d_out, device, dtype) for dtype in _DTYPES}
        return "bfloat16" if times[torch.float32] > GAIN * times[torch.bfloat16] else "float32"

    return remembered(question, measure)


_DTYPES = (torch.float32, torch.bfloat16)


def _product_seconds(n_rows: int, d_in: int, d_out: int, device: str, dtype: torch.dtype) -> float:
    a = torch.ones(n_rows, d_in, dtype=dtype, device=device)
    b = torch.ones(d_out, d_in, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        product = a @ b.T
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return best
