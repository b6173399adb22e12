"""What numbers depend on beside the code: GPU, driver, CUDA, BLAS, threads. Asks only libraries that are loaded."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mechstudy.machine.commands import output_of

_THREADING = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Whether float32 products on CUDA may round their factors to TF32 (10 bits), inside the block alone."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def exact_products() -> None:
    """Float32 products without TF32 from here on: a unit of the same process may have asked for it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_float32_matmul_precision("highest")


@functools.cache
def nvidia_smi() -> str | None:
    """What nvidia-smi says of the GPUs, as CSV; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,mig.mode.current,clocks.max.sm,power.limit"
    return output_of("nvidia-smi", query, "--format=csv") or output_of("nvidia-smi", "-L")


def gpu() -> dict[str, Any] | None:
    """``driver``, ``driver_cuda`` (the newest CUDA it runs), ``cuda`` and ``cudnn`` (torch's own), ``devices``; None
    where there is neither a GPU nor a torch that is made for one."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch.version, "cuda", None) if torch is not None else None
    driver, devices = _driver(nvidia_smi() or "")
    if not devices and cuda is None:
        return None
    cudnn = None
    if cuda is not None and devices:
        with suppress(Exception):  # a provenance without it is better than none
            cudnn = torch.backends.cudnn.version()  # type: ignore[union-attr]  # cuda is torch's
    return {"driver": driver, "driver_cuda": _driver_cuda(), "cuda": cuda, "cudnn": cudnn, "devices": devices}


def _driver(csv: str) -> tuple[str | None, list[str]]:
    """Driver version and names, of nvidia-smi's CSV."""
    header, *rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.strip()] or [[]]
    if "driver_version" not in header:
        return None, []
    of = {name: header.index(name) for name in ("driver_version", "name")}
    whole = [row for row in rows if len(row) == len(header)]
    return next((row[of["driver_version"]] for row in whole), None), [row[of["name"]] for row in whole]


@functools.cache
def _driver_cuda() -> str | None:
    found = re.search(r"CUDA Version:\s*([\d.]+)", output_of("nvidia-smi") or "") if nvidia_smi() else None
    return found[1] if found else None


def threads() -> dict[str, Any]:
    """Threads of the libraries, as they are and as the environment says."""
    torch, numexpr = sys.modules.get("torch"), sys.modules.get("numexpr")
    found: dict[str, Any] = {
        "torch": torch.get_num_threads() if torch is not None else None,
        "torch_interop": torch.get_num_interop_threads() if torch is not None else None,
        "numexpr": getattr(numexpr, "nthreads", None),
    }
    return found | {name: os.environ.get(name) for name in _THREADING if name in os.environ or name == _THREADING[0]}


def libraries() -> dict[str, Any]:
    """``torch_blas``, ``torch_mkldnn``, ``tf32``, ``deterministic``, ``numpy_blas``, ``numexpr``: of what is loaded."""
    found: dict[str, Any] = {}
    torch, numpy, numexpr = (sys.modules.get(name) for name in ("torch", "numpy", "numexpr"))
    if torch is not None:
        with suppress(Exception):
            blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
            found["torch_blas"] = blas[1] if blas else None
            found["torch_mkldnn"] = bool(torch.backends.mkldnn.is_available())
            found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
            found["deterministic"] = bool(torch.are_deterministic_algorithms_enabled())
    if numpy is not None:
        with suppress(Exception):
            blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
            found["numpy_blas"] = f"{blas['name']} {blas['version']}"
    if numexpr is not None:
        found["numexpr"] = getattr(numexpr, "__version__", None)
    return found
