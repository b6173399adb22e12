"""The CPU, GPUs, driver, BLAS and threads of this machine: what numerical results depend on beside the code.

Libraries are asked only where they are already loaded.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.machine.cgroup import allowed_cores

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_THREADING = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip


def output_of(*words: str, seconds: float = 10) -> str | None:
    """Standard output of a command, stripped; None when it fails, is absent or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def cpu() -> dict[str, Any]:
    """Model, cores, cores this process may use, and the instruction sets that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    supported = set(flags[1].split()) if flags else set()
    return {
        "model": model[1] if model else platform.processor() or platform.machine(),
        "count": os.cpu_count(),
        "usable": allowed_cores(),
        "flags": [flag for flag in _CPU_FLAGS if flag in supported],
    }


@functools.cache
def nvidia_smi() -> str | None:
    """What nvidia-smi reports of the GPUs, as CSV; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,mig.mode.current,clocks.max.sm,power.limit"
    return output_of("nvidia-smi", query, "--format=csv") or output_of("nvidia-smi", "-L")


def gpu() -> dict[str, Any] | None:
    """Driver, CUDA, cuDNN and names of the GPUs; None where there is neither a GPU nor a torch built for one.

    ``driver_cuda`` is the newest CUDA version that the driver runs; ``cuda`` and ``cudnn`` are torch's own.
    """
    torch = sys.modules.get("torch")
    cuda = getattr(torch.version, "cuda", None) if torch is not None else None
    driver, devices = driver_and_names(nvidia_smi() or "")
    if not devices and cuda is None:
        return None
    cudnn = None
    if cuda is not None and devices:
        with suppress(Exception):  # a provenance without it is better than none
            cudnn = torch.backends.cudnn.version()  # type: ignore[union-attr]  # cuda is torch's
    return {"driver": driver, "driver_cuda": driver_cuda(), "cuda": cuda, "cudnn": cudnn, "devices": devices}


def driver_and_names(csv: str) -> tuple[str | None, list[str]]:
    """Driver version and names of the GPUs, from nvidia-smi's CSV."""
    header, *rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.strip()] or [[]]
    if "driver_version" not in header:
        return None, []
    gpus = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return next((gpu["driver_version"] for gpu in gpus), None), [gpu["name"] for gpu in gpus]


@functools.cache
def driver_cuda() -> str | None:
    """The newest CUDA version that the driver runs; None without a driver."""
    match = re.search(r"CUDA Version:\s*([\d.]+)", output_of("nvidia-smi") or "") if nvidia_smi() else None
    return match[1] if match else None


def threads() -> dict[str, Any]:
    """Threads of the loaded libraries, and the environment variables that set them."""
    torch, numexpr = sys.modules.get("torch"), sys.modules.get("numexpr")
    counts = {
        "torch": torch.get_num_threads() if torch is not None else None,
        "torch_interop": torch.get_num_interop_threads() if torch is not None else None,
        "numexpr": getattr(numexpr, "nthreads", None),
    }
    return counts | {name: os.environ.get(name) for name in _THREADING if name in os.environ or name == _THREADING[0]}


def libraries() -> dict[str, Any]:
    """BLAS, determinism and matmul precision of the loaded torch, numpy and numexpr."""
    settings: dict[str, Any] = {}
    torch, numpy, numexpr = (sys.modules.get(name) for name in ("torch", "numpy", "numexpr"))
    if torch is not None:
        with suppress(Exception):
            blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
            settings["torch_blas"] = blas[1] if blas else None
            settings["torch_mkldnn"] = bool(torch.backends.mkldnn.is_available())
            settings["float32_matmul_precision"] = torch.get_float32_matmul_precision()
            settings["deterministic"] = bool(torch.are_deterministic_algorithms_enabled())
    if numpy is not None:
        with suppress(Exception):
            blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
            settings["numpy_blas"] = f"{blas['name']} {blas['version']}"
    if numexpr is not None:
        settings["numexpr"] = getattr(numexpr, "__version__", None)
    return settings
