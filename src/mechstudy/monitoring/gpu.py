"""Use of NVIDIA GPUs, read through NVML; nothing where the library or a GPU is missing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.monitoring.record import Gpu, GpuSample


class GpuProbe:
    """Reads some GPUs through NVML (the ``nvidia-ml-py`` package). Created by `gpu_probe`."""

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml, self._handles = nvml, list(handles)
        self._busy = [0.0] * len(self._handles)
        self._joules: list[float | None] = [0.0] * len(self._handles)

    def describe(self) -> tuple[Gpu, ...]:
        """Name, memory and power limit of each."""
        gpus = []
        for handle in self._handles:
            name = self._nvml.nvmlDeviceGetName(handle)
            name = name.decode() if isinstance(name, bytes) else str(name)
            milliwatts = self._try("nvmlDeviceGetEnforcedPowerLimit", handle)
            memory = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
            gpus.append(Gpu(name, memory, None if milliwatts is None else milliwatts / 1000))
        return tuple(gpus)

    def read(self, seconds: float) -> tuple[GpuSample, ...]:
        """Each GPU's use so far, by all processes: present rates are taken for the ``seconds`` since the last call."""
        samples = []
        for i, handle in enumerate(self._handles):
            rates = self._try("nvmlDeviceGetUtilizationRates", handle)
            milliwatts, before = self._try("nvmlDeviceGetPowerUsage", handle), self._joules[i]
            self._busy[i] += 0.0 if rates is None else rates.gpu / 100 * seconds
            joules = None if milliwatts is None or before is None else before + milliwatts / 1000 * seconds
            self._joules[i] = joules
            memory = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
            samples.append(GpuSample(round(self._busy[i], 4), memory, None if joules is None else round(joules, 1)))
        return tuple(samples)

    def _try(self, name: str, handle: Any) -> Any:
        """None where this GPU (or a slice of one) does not report it."""
        try:
            return getattr(self._nvml, name)(handle)
        except Exception:  # NVML has its own exception for each reason
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
        probe.read(0.0)
        return probe if chosen else None
    except Exception:  # monitoring must not fail a run: no library, no driver, no permission
        return None


def _visible(nvml: Any, asked: str | None) -> list[Any]:
    """Handles of the GPUs visible to CUDA, in its order, by numbers or by ids of GPUs and of slices of them."""
    if asked is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for word in (part.strip() for part in asked.split(",") if part.strip()):
        if word.lstrip("-").isdecimal():
            if int(word) < 0:  # CUDA ignores the rest of the list
                break
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(word)))
        else:
            handles.append(nvml.nvmlDeviceGetHandleByUUID(word))
    return handles
