"""Checks of torch: its build against the driver, the speed of each precision, and threads."""

from __future__ import annotations

import shutil
import time

import numba
import torch

from mechstudy.doctor.machine import Check
from mechstudy.machine.cgroup import usable_cores

_WIDTH = 2048  # of the measured matrix products; four times as wide on a GPU
_SECONDS = 0.3


def build() -> list[Check]:
    """Whether torch's build fits the driver and the GPUs."""
    cuda = torch.version.cuda or torch.version.hip
    name = f"torch {torch.__version__}"
    driver = shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [Check("torch", "ok", f"{name}, CUDA {cuda}: {', '.join(names)}"), *_kernels()]
    if cuda is None and driver:
        fix = "install torch for CUDA: https://pytorch.org/get-started/locally"
        return [Check("torch", "warn", f"{name} is built for CPUs, and this machine has a GPU's driver", fix)]
    if cuda is not None and driver:
        fix = "a newer driver, or torch for an older CUDA; CUDA_VISIBLE_DEVICES may hide the GPUs"
        return [Check("torch", "bad", f"{name} is built for CUDA {cuda} and sees no GPU: {_cuda_error()}", fix)]
    if cuda is not None:
        return [Check("torch", "ok", f"{name}, built for CUDA {cuda}; no GPU here (normal on a login node)")]
    return [Check("torch", "ok", f"{name}, built for CPUs; {torch.get_num_threads()} threads")]


def _cuda_error() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return str(error).splitlines()[0]
    return "no reason given"


def _kernels() -> list[Check]:
    """GPUs for which this build has no kernels."""
    built_for = {arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")}
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        if built_for and not any(arch.startswith(str(major)) for arch in built_for):
            text = f"GPU {i} is sm_{major}{minor}; this torch has kernels for {', '.join(sorted(built_for))}"
            return [Check("torch's kernels", "bad", text, "another build of torch")]
    return []


def precision() -> list[Check]:
    """FLOP/s of a matrix product in each precision, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device == "cuda":
        dtypes["float16"] = torch.float16
    rates = {name: _rate(dtype, device) for name, dtype in dtypes.items()}
    text = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    ratio = rates["bfloat16"] / rates["float32"]
    verdict = f"bfloat16 is {ratio:.1f} times as fast" if ratio >= 1.2 else "bfloat16 is not faster here"
    if device == "cpu":
        verdict += "; `auto` in the study takes the faster one"
    checks = [Check("precision", "ok", f"{text} on {device}: {verdict}")]
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        fix = "dictionaries.model_dtype: float16, training.precision: float32"
        checks.append(Check("bfloat16", "warn", "this GPU has no bfloat16", fix))
    return checks


def _rate(dtype: torch.dtype, device: str) -> float:
    width = _WIDTH if device == "cpu" else 4 * _WIDTH
    a, b = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        times.append(time.perf_counter() - began)
    return float(2 * width**3 / min(times[1:] or times))  # the first warms up


def threading() -> list[Check]:
    """Threads of torch beside the usable cores, and numba's threading layer."""
    usable, threads = usable_cores(), torch.get_num_threads()
    openmp = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call, unused-ignore]
    text = f"torch {threads} threads, {'OpenMP' if openmp else 'no OpenMP'}"
    text += f"; numba {numba.get_num_threads()} threads, {_layer()}; {usable:g} cores"
    if threads > usable:
        fix = f"compute.threads: {max(1, int(usable))}"
        return [Check("threads", "warn", text, fix)]
    return [Check("threads", "ok", text)]


def _layer() -> str:
    @numba.njit(parallel=True)
    def total(n: int) -> float:
        result = 0.0
        for i in numba.prange(n):
            result += i
        return result

    total(64)
    return str(numba.threading_layer())  # type: ignore[attr-defined]
