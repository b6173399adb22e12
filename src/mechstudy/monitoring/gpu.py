"""What NVIDIA's management library says of the GPUs a unit runs on. Without the library or a GPU there is nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.monitoring.record import Gpu


@dataclass(frozen=True)
class GpuState:
    """One GPU now: the share of the last moments in which a kernel ran, bytes in use, watts."""

    busy: float
    memory: int
    watts: float | None


class GpuProbe:
    """Reads some GPUs through NVML (the `nvidia-ml-py` package); made by `gpu_probe`."""

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml, self._handles = nvml, list(handles)
        self.n = len(self._handles)

    def describe(self) -> tuple[Gpu, ...]:
        """Name, memory and power limit of each."""
        found = []
        for handle in self._handles:
            name = self._nvml.nvmlDeviceGetName(handle)
            limit = self._try("nvmlDeviceGetEnforcedPowerLimit", handle)
            found.append(
                Gpu(
                    name.decode() if isinstance(name, bytes) else str(name),
                    int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total),
                    None if limit is None else limit / 1000,
                )
            )
        return tuple(found)

    def read(self) -> list[GpuState]:
        """Each GPU now. Its numbers are of all processes that use it."""
        states = []
        for handle in self._handles:
            rates = self._try("nvmlDeviceGetUtilizationRates", handle)
            watts = self._try("nvmlDeviceGetPowerUsage", handle)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle).used
            busy = 0.0 if rates is None else rates.gpu / 100
            states.append(GpuState(busy, int(memory), None if watts is None else watts / 1000))
        return states

    def _try(self, name: str, handle: Any) -> Any:
        """None where this GPU (or a slice of one) does not tell."""
        try:
            return getattr(self._nvml, name)(handle)
        except Exception:  # NVML has an exception of its own for each reason
            return None


def gpu_probe(device: str, n: int = 1, environment: Mapping[str, str] = os.environ) -> GpuProbe | None:
    """A probe of the ``n`` GPUs that units on this device (``cuda``, ``cuda:1``) use; None where none can be read."""
    if not device.startswith("cuda"):
        return None
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        visible = _visible(nvml, environment.get("CUDA_VISIBLE_DEVICES"))
        first = int(device.partition(":")[2] or 0)
        chosen = visible[first : first + 1] if n == 1 else visible[:n]
        probe = GpuProbe(nvml, chosen)
        probe.read()
        return probe if chosen else None
    except Exception:  # monitoring is no reason to fail: no library, no driver, no permission
        return None


def _visible(nvml: Any, asked: str | None) -> list[Any]:
    """Handles of the GPUs that CUDA shows this process, in its order: numbers, or ids of GPUs and of slices of them."""
    if asked is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for word in (part.strip() for part in asked.split(",") if part.strip()):
        if word.lstrip("-").isdecimal():
            if int(word) < 0:  # CUDA shows none from here on
                break
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(word)))
        else:
            handles.append(nvml.nvmlDeviceGetHandleByUUID(word))
    return handles
