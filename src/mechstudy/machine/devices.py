"""Devices by name, their threads, free memory and precision. Asks torch only where a GPU may be."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechstudy.core.errors import MechstudyError

DEVICES = "auto, cpu, cuda or cuda:1"


def resolve_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        MechstudyError: the device does not exist here, or is of a kind that nothing was tested on.
    """
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise MechstudyError(f"{device!r} is not a device", fix=DEVICES) from error
    if named.type not in ("cpu", "cuda", "mps"):
        raise MechstudyError(f"{device!r} is not a device that mechstudy runs on", fix=DEVICES)
    n = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if (named.type == "cuda" and (named.index or 0) >= n) or (named.type == "mps" and not has_mps):
        raise MechstudyError(
            f"there is no device {device} on this machine",
            facts={"CUDA devices": str(n)},
            fix="auto or cpu (compute.device, --device)",
        )
    return device


def device_of(device: str, local_rank: int) -> str:
    """The device of one of several processes of this machine: a GPU each, where there are several and none is named."""
    device = resolve_device(device)
    if device != "cuda":
        return device
    import torch

    if (n := torch.cuda.device_count()) > 1:
        device = f"cuda:{local_rank % n}"
        torch.cuda.set_device(device)
    return device


def set_threads(threads: int) -> None:
    """Sets torch's threads where torch is loaded; otherwise it reads OMP_NUM_THREADS once it is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def free_memory() -> None:
    """Returns memory that is no longer referenced to the system and to the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Whether float32 products on CUDA may round their factors to TF32 (10 bits), inside the block only."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def exact_products() -> None:
    """Turns TF32 off from here on: an earlier unit of the same process may have turned it on."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_float32_matmul_precision("highest")


def _may_have_gpu() -> bool:
    """False where no GPU driver is visible, so that torch need not be imported to ask."""
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    return any(Path(driver).exists() for driver in drivers) or shutil.which("nvidia-smi") is not None
