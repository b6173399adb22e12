"""torch against the driver, the precisions with a measured rate of each, and the threading layers."""

from __future__ import annotations

import shutil
import time
from typing import Any

from mechstudy.doctor.check import Check
from mechstudy.machine.cgroup import usable_cores

_WIDTH = 2048  # of the products measured; a GPU's are four times as wide
_SECONDS = 0.3


def build() -> list[Check]:
    """CUDA builds need a driver, drivers a CUDA build."""
    import torch

    cuda = torch.version.cuda or torch.version.hip
    name = f"torch {torch.__version__}"
    driver = shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [Check("torch", "ok", f"{name}, CUDA {cuda}: {', '.join(names)}"), *_capable(torch)]
    if cuda is None and driver:
        fix = "install torch for CUDA: https://pytorch.org/get-started/locally"
        return [Check("torch", "warn", f"{name} is built for CPUs, and this machine has a GPU's driver", fix)]
    if cuda is not None and driver:
        fix = "a newer driver, or torch for an older CUDA; CUDA_VISIBLE_DEVICES may hide the GPUs"
        return [Check("torch", "bad", f"{name} is built for CUDA {cuda} and sees no GPU: {_why(torch)}", fix)]
    if cuda is not None:
        return [
            Check(
                "torch", "ok", f"{name}, built for CUDA {cuda}; no GPU here (on a login node that is as it should be)"
            )
        ]
    return [Check("torch", "ok", f"{name}, built for CPUs; {torch.get_num_threads()} threads")]


def _why(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).splitlines()[0]
    return "it does not say why"


def _capable(torch: Any) -> list[Check]:
    """GPUs that this build has no kernels for."""
    known = {arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")}
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        if known and not any(arch.startswith(str(major)) for arch in known):
            text = f"GPU {i} is sm_{major}{minor}; this torch has kernels for {', '.join(sorted(known))}"
            return [Check("torch's kernels", "bad", text, "another build of torch")]
    return []


def precision() -> list[Check]:
    """FLOP/s of a product in each precision, where it counts: the GPU if there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device == "cuda":
        dtypes["float16"] = torch.float16
    rates = {name: _rate(torch, dtype, device) for name, dtype in dtypes.items()}
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


def _rate(torch: Any, dtype: Any, device: str) -> float:
    width = _WIDTH if device == "cpu" else 4 * _WIDTH
    a, b = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + _SECONDS
    first = True
    while first or time.perf_counter() < end:
        began = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        took = time.perf_counter() - began
        best, first = (best, False) if first else (min(best, took), False)
    return float(2 * width**3 / (best if best < float("inf") else took))


def threading() -> list[Check]:
    """torch's threads against the cores, and the layer under numba's."""
    import numba
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    found = f"torch {threads} threads, {'OpenMP' if torch.backends.openmp.is_available() else 'no OpenMP'}"
    found += f"; numba {numba.get_num_threads()} threads, {_layer(numba)}; {usable:g} cores"
    if threads > usable:
        fix = f"compute.threads: {max(1, int(usable))}"
        return [Check("threads", "warn", found, fix)]
    return [Check("threads", "ok", found)]


def _layer(numba: Any) -> str:
    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def total(n: int) -> float:
        found = 0.0
        for i in numba.prange(n):
            found += i
        return found

    total(64)
    return str(numba.threading_layer())
